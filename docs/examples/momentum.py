"""MI-FGSM (Dong et al. 2018, CVPR, "Boosting Adversarial Attacks with Momentum"), Algorithm 1, on the expectation over purifications."""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "mi-fgsm": {
        "summary": "sign gradient steps of eps / steps along a momentum of L1-normalised gradients",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["steps >= 1", "mu >= 0"],
        "paper": {"Dong et al. 2018": "steps=10,mu=1,eot=1"},
    }
}


def mi_fgsm(*, steps: int = 10, mu: float = 1.0, eot: int = 10, loss: str = "ce") -> Attack:
    """steps: iterations; mu: decay of the momentum; eot: purifications per gradient; loss: ce, dlr or margin."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        x_adv, g = x.clone(), torch.zeros_like(x)
        running = Running(len(x))
        for t in range(steps):
            found = defense.loss_grad(x_adv, y, loss, noise.fork("iterate", t), eot=eot)
            size = found.grad.abs().sum((1, 2, 3), keepdim=True)
            # Eq. 6. A gradient that is zero adds nothing, and must not make a NaN of the momentum.
            g = mu * g + found.grad / size.where(size > 0, 1)
            # Eq. 7: alpha = eps / T.
            moved = threat.project(x_adv + threat.eps / steps * threat.ascend(g), x)
            x_adv = running.step(t, found, moved, x_adv)
        return Attacked(x_adv, log={"stopped": running.stopped})

    return attack
