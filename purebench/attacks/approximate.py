"""The approximate-input attack (Yang et al. 2019, ME-Net), in the form in which ADP's Table 1 (Yoon, Hwang & Lee 2021) has it."""

from __future__ import annotations

from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "approximate-input": {
        "summary": "PGD on the bare classifier, purified before every step: the gradient at the purified image is added to that image",
        "gradients": ["bpda"],
        "gradient_calls": "steps",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0"],
        "paper": {"ADP": "steps and step size are not stated; here those of its other attacks, steps=40,rel_step=0.25"},
        "differences": "no code of it was published. Assumed: one purification before each step and one step after it; no random start; "
        "what comes out is projected onto the ball of the clean image at every step, so that the last iterate is inside it",
        "cite": "yang2019menet yoon2021adversarial",
    }
}


def approximate_input(*, steps: int = 40, rel_step: float = 0.25, loss: str = "ce") -> Attack:
    """steps: iterations, x <- P(f(x) + rel_step eps ascend(grad loss at f(x))), P onto the ball of the clean image; rel_step: step size
    as a share of eps; loss: ce, dlr or margin. Random: one purification per iteration i, (.., "iterate", i)."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        x_adv, running, bare = x, Running(len(x)), defense.undefended()
        for i in range(steps):
            purified = defense.purify(x_adv, noise.fork("iterate", i))
            found = bare.loss_grad(purified, y, loss, noise.fork("iterate", i))
            moved = threat.project(purified + rel_step * threat.eps * threat.ascend(found.grad), x)
            x_adv = running.step(i, found, moved, x_adv)
        return Attacked(x_adv, log={"stopped": running.stopped})

    return attack
