"""Auto-PGD (Croce and Hein 2020, Algorithm 1) on the expectation over purifications: our own, for random defenses.

As in AutoAttack, but the mean loss over the draws, not the last draw's, chooses the best point and the step size; the draws run
as rows of one batch; every draw belongs to its image, so that no image depends on its batch. With one draw of a deterministic
defense and the same start it is pyautoattack's APGD bit for bit. Its number is not "AutoAttack": it takes no verdicts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Loss, cross_entropy, dlr
from purebench.errors import UserError
from purebench.spec import ThreatModel, representable

INFO = {
    "apgd-ce": {
        "summary": "Auto-PGD on the mean cross-entropy of `eot` purifications; the point of the highest mean loss",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "gradient_calls": "(steps + 1) * eot",
        "version": 1,
        "requires": ["0 < rho", "rho <= 1"],
        "paper": {"Croce and Hein 2020": "steps=100,eot=1,rho=0.75", "AutoAttack rand": "steps=100,eot=20"},
        "differences": "best point and step size by the mean loss over the draws (upstream: the last draw's)",
        "cite": "croce2020reliable",
    },
    "apgd-dlr": {
        "summary": "Auto-PGD on the mean difference-of-logits ratio of `eot` purifications; the point of the highest mean loss",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "classes": "3",
        "gradient_calls": "(steps + 1) * eot",
        "version": 1,
        "requires": ["0 < rho", "rho <= 1"],
        "paper": {"Croce and Hein 2020": "steps=100,eot=1,rho=0.75", "AutoAttack rand": "steps=100,eot=20"},
        "differences": "best point and step size by the mean loss over the draws (upstream: the last draw's)",
        "cite": "croce2020reliable",
    },
}


def apgd_ce(*, steps: int = 100, eot: int = 20, rho: float = 0.75) -> Attack:
    """steps: iterations; eot: purifications per gradient; rho: the step size is halved where fewer than this share of the
    iterations since the last checkpoint raised the loss. Attacked: the point of the highest mean cross-entropy."""
    return _apgd(cross_entropy, steps=steps, eot=eot, rho=rho)


def apgd_dlr(*, steps: int = 100, eot: int = 20, rho: float = 0.75) -> Attack:
    """On the difference of logits ratio. Parameters as for apgd-ce. Attacked: the point of the highest mean DLR."""
    return _apgd(dlr, steps=steps, eot=eot, rho=rho)


def _apgd(loss: Loss, *, steps: int, eot: int, rho: float) -> Attack:
    if steps < 1 or eot < 1:
        raise UserError(f"`steps={steps},eot={eot}` is out of range", "both are whole numbers from 1 on")

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        running = Running(len(x))
        best, _ = ascend(
            defense, x, y, threat, noise, loss=loss, steps=steps, eot=eot, rho=rho, running=running
        )  # fmt: skip
        return Attacked(best, log={"stopped": running.stopped})

    return attack


def ascend(
    defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise,
    *, loss: Loss, steps: int, eot: int = 1, rho: float = 0.75, start: Tensor | None = None, running: Running | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Algorithm 1 from `start` (default: a random point on the ball's surface): (x_best like x, its mean loss (B,)).

    A loss that is not finite, the purification being so, is the highest there is; a gradient that is not finite stops its image,
    as `running` notes. Random: the start from the stream (.., "start"), the purifications of iterate i from (.., "iterate", i)."""
    x_adv = (surface(x, threat, noise.fork("start")) if start is None else start).clamp(0, 1)
    running = running or Running(len(x))
    found = defense.loss_grad(x_adv, y, loss, noise.fork("iterate", 0), eot=eot)
    grad, x_old = found.grad, x_adv
    x_best, grad_best, loss_best = x_adv, grad, _highest(found.loss)
    step = 2 * threat.eps * torch.ones_like(_rows(loss_best, x))

    period, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    # As in the authors' code, f(x_0) is missing from the list: where f(x_1) is compared with it, stands a zero.
    losses = [torch.zeros_like(loss_best)] * steps
    since, loss_checked, halved = 0, loss_best, torch.ones_like(loss_best, dtype=torch.bool)

    for i in range(steps):
        # z = P(x + step * s(grad));  x <- P(x + alpha (z - x) + (1 - alpha) (x - x_old))
        alpha, momentum, x_old = (0.75 if i else 1.0), x_adv - x_old, x_adv
        z = project(x_adv + step * (grad.sign() if threat.norm == "Linf" else unit(grad, threat)), x, threat)
        moved = project(x_adv + (z - x_adv) * alpha + momentum * (1 - alpha), x, threat)
        x_adv = running.step(i, found, moved, x_adv)

        found = defense.loss_grad(x_adv, y, loss, noise.fork("iterate", i + 1), eot=eot)
        grad, losses[i] = found.grad, _highest(found.loss)
        better = losses[i] > loss_best
        x_best = torch.where(_rows(better, x), x_adv, x_best)
        grad_best = torch.where(_rows(better, x), grad, grad_best)
        loss_best = torch.where(better, losses[i], loss_best)

        since += 1
        if since == period:
            # Checkpoint: an image that oscillates (condition 1) or is stuck (2) goes back to its best point with half the step.
            rises = sum((losses[i - c] > losses[i - c - 1]).to(loss_best.dtype) for c in range(period))
            oscillates = rises <= period * rho * torch.ones_like(loss_best)
            stuck = ~halved & (loss_checked >= loss_best)
            halved, loss_checked = oscillates | stuck, loss_best
            step = torch.where(_rows(halved, x), step / 2, step)
            x_adv = torch.where(_rows(halved, x), x_best, x_adv)
            grad = torch.where(_rows(halved, x), grad_best, grad)
            since, period = 0, max(period - shrink, shortest)
    return x_best, loss_best


def _highest(loss: Tensor) -> Tensor:
    """(B,) with infinity for what is not finite: purifying to NaN is the worst that can happen to a defense."""
    return loss.where(loss.isfinite(), torch.inf)


def surface(x: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    """A random point on the surface of the ball around x, as the authors' code starts; not yet clipped."""
    return x + threat.eps * unit(2 * noise.uniform(0, x) - 1 if threat.norm == "Linf" else noise.normal(0, x), threat)


def unit(v: Tensor, threat: ThreatModel) -> Tensor:
    """v / ||v|| in the threat model's norm; exact zeros stay zero. As the authors' code does, bit for bit, but for L2 norms below
    1e-11: there its division gives (almost) zero, and ours the unit vector."""
    v = representable(v) if threat.norm == "L2" else v
    return v / (_norm(v, threat) + 1e-12)


def project(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Onto the ball around x, then [0,1]; the arithmetic of the authors' code, which differs from ThreatModel's in the last bit."""
    if threat.norm == "Linf":
        return z.clamp(x - threat.eps, x + threat.eps).clamp(0, 1)
    return (x + unit(z - x, threat) * _norm(z - x, threat).clamp(max=threat.eps)).clamp(0, 1)


def _norm(v: Tensor, threat: ThreatModel) -> Tensor:
    flat = v.flatten(1)
    return _rows(flat.abs().amax(1) if threat.norm == "Linf" else (flat**2).sum(1).sqrt(), v)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
