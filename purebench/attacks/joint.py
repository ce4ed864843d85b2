"""Joint attacks on classifier and purifier (Yoon, Hwang & Lee 2021, ADP, section 4.3 and Table 1): along the classifier's gradient and
along what purifies at once, so that purification does not take the step back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.attacks.purified import sign_steps
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient
from purebench.spec import ThreatModel

_VARIANTS = ["code", "paper"]
_ADP = "steps=40,rel_step=0.25,eot=1 and, with EOT, eot=15; w=0.5 (the `eps` of Table 1's note)"
_SUMS = "variant=code: steps are summed in float64, where equal ones cancel exactly (in the published code rounding decides there)"
INFO = {
    "joint-score": {
        "summary": "along the signs of the classifier's gradient and of the score: (1 - w) sign(grad) + w sign(s(x))",
        "gradients": ["bpda"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "score_calls": "steps",
        "needs": ["score"],
        "threats": ["Linf"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"], "variant": _VARIANTS},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": [
            "rel_step > 0",
            "0 <= w",
            "w <= 1",
            "level >= 0",
            "variant == 'code' or eot == 1",  # nothing in it is random
        ],
        "paper": {"ADP": _ADP},
        "differences": _SUMS,
        "cite": "yoon2021adversarial",
    },
    "joint-full": {
        "summary": "along the signs of the classifier's gradient and of what purification does: (1 - w) sign(grad) + w sign(f(x) - x)",
        "gradients": ["bpda"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "threats": ["Linf"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"], "variant": _VARIANTS},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0", "0 <= w", "w <= 1"],
        "paper": {"ADP": _ADP},
        "differences": _SUMS,
        "cite": "yoon2021adversarial",
    },
}

Directions = Callable[[Defense, Tensor, Tensor, float, Noise], tuple[Gradient, Tensor]]


def joint_score(
    *, steps: int = 40, eot: int = 15, rel_step: float = 0.25, w: float = 0.5, loss: str = "ce", variant: str = "code",
    level: float = 0.0,
) -> Attack:  # fmt: skip
    """steps: iterations; eot: purifications per step; rel_step: step size as a share of eps; w: weight of the score; loss: ce, dlr or
    margin; variant: `code`, the sum of sign steps at eot purified images, or `paper`, the gradient at the image itself; level: noise level
    on the [-1,1] scale at which the score is taken, 0: the defense's own (`Defense.direction`)."""

    def directions(defense: Defense, x: Tensor, y: Tensor, step: float, noise: Noise) -> tuple[Gradient, Tensor]:
        towards = defense.direction(x, level)
        if variant == "paper":
            return defense.undefended().loss_grad(x, y, loss, noise), towards
        return sign_steps(defense, x, y, loss, noise, eot=eot, step=step).found, towards

    return _joint(directions, steps=steps, rel_step=rel_step, w=w)


def joint_full(
    *, steps: int = 40, eot: int = 15, rel_step: float = 0.25, w: float = 0.5, loss: str = "ce", variant: str = "code"
) -> Attack:
    """w: weight of f(x) - x, summed over `eot` purifications. The other parameters as for joint-score."""

    def directions(defense: Defense, x: Tensor, y: Tensor, step: float, noise: Noise) -> tuple[Gradient, Tensor]:
        at_purified = sign_steps(defense, x, y, loss, noise, eot=eot, step=step, observe=variant == "code")
        if variant == "paper":
            return defense.undefended().loss_grad(x, y, loss, noise), at_purified.moved
        return at_purified.found, at_purified.moved

    return _joint(directions, steps=steps, rel_step=rel_step, w=w)


def _joint(directions: Directions, *, steps: int, rel_step: float, w: float) -> Attack:
    """No random start; the last iterate. Iteration i draws its purifications from the stream (.., "iterate", i)."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        x_adv, running, step = x, Running(len(x)), rel_step * threat.eps
        for i in range(steps):
            found, other = directions(defense, x_adv, y, step, noise.fork("iterate", i))
            # What is not finite points nowhere.
            direction = (1 - w) * found.grad.sign() + w * other.nan_to_num(0, 0, 0).sign().to(x.dtype)
            x_adv = running.step(i, found, threat.project(x_adv + step * direction, x), x_adv)
        return Attacked(x_adv, log={"stopped": running.stopped})

    return attack
