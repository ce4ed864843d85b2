"""Auto-PGD (Croce and Hein 2020, Algorithm 1) on the expectation over purifications: our own, for random defenses.

As in AutoAttack, but the mean loss over the draws, not the last draw's, chooses the best point and the step size; the draws run
as rows of one batch; every draw belongs to its image, so that no image depends on its batch. With one draw of a deterministic
defense and the same start it is pyautoattack's APGD bit for bit, under Linf, L2 and L1. Its number is not "AutoAttack": it takes no
verdicts.

The best of a hundred mean losses is the luckiest of them: on a random defense it promises more than fresh draws keep. `select=fresh`
lets draws that chose nothing decide between the best points and the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from pyautoattack.autopgd_base import L1_projection
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.attacks.selection import correct, selecting
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, Loss, Objective, cross_entropy, dlr, margin
from purebench.errors import UserError
from purebench.spec import ThreatModel, representable

KEPT = 5  # points that `select=fresh` chooses from: so many of the highest mean loss, and as many of the last
SELECT = 40  # fresh purifications of each of them

# What all four say of themselves; a literal may follow names (`registry.info`). 400: 2 KEPT SELECT.
_GRADIENTS = ["exact", "adjoint", "surrogate", "bpda", "detached"]
_THREATS = ["Linf", "L2", "L1"]
_FORWARDS = "(select == 'fresh' and 400 or 0) + (log == 'iterates' and (steps + 1) * log_draws or 0)"
_CHOICES = {"select": ["loss", "fresh"], "log": ["none", "iterates"]}
_REQUIRES = ["0 < rho", "rho <= 1", "log == 'iterates' or log_draws == 10"]
_PAPER = {"Croce and Hein 2020": "steps=100,eot=1,rho=0.75", "AutoAttack rand": "steps=100,eot=20"}
_DIFFERENCES = (
    "best point and step size by the mean loss over the draws (upstream: the last draw's); under L1 one run at eps, "
    "without AutoAttack's restarts and larger radii before it"
)
INFO = {
    "apgd-ce": {
        "summary": "Auto-PGD on the mean cross-entropy of `eot` purifications; the point of the highest mean loss",
        "gradients": _GRADIENTS,
        "draws": "eot",
        "gradient_calls": "(steps + 1) * eot",
        "forward_calls": _FORWARDS,
        "threats": _THREATS,
        "version": 1,
        "added": ["select", "log", "log_draws"],
        "choices": _CHOICES,
        "requires": _REQUIRES,
        "paper": _PAPER,
        "differences": _DIFFERENCES,
        "cite": "croce2020reliable croce2021mind",
    },
    "apgd-dlr": {
        "summary": "Auto-PGD on the mean difference-of-logits ratio of `eot` purifications; the point of the highest mean loss",
        "gradients": _GRADIENTS,
        "draws": "eot",
        "classes": "3",
        "gradient_calls": "(steps + 1) * eot",
        "forward_calls": _FORWARDS,
        "threats": _THREATS,
        "version": 1,
        "added": ["select", "log", "log_draws"],
        "choices": _CHOICES,
        "requires": _REQUIRES,
        "paper": _PAPER,
        "differences": _DIFFERENCES,
        "cite": "croce2020reliable croce2021mind",
    },
    "apgd-margin": {
        "summary": "Auto-PGD on the mean margin (largest wrong logit less the right one) of `eot` purifications",
        "gradients": _GRADIENTS,
        "draws": "eot",
        "gradient_calls": "(steps + 1) * eot",
        "forward_calls": _FORWARDS,
        "threats": _THREATS,
        "version": 1,
        "choices": _CHOICES,
        "requires": _REQUIRES,
        "paper": {"Carlini and Wagner 2017 (the loss), DiffBreak": "steps=100,eot=10"},
        "differences": "best point and step size by the mean loss over the draws",
        "cite": "croce2020reliable croce2021mind",
    },
    "apgd-targeted": {
        "summary": "Auto-PGD on the targeted DLR loss towards each of the likeliest wrong classes; the point of the highest mean loss",
        "gradients": _GRADIENTS,
        "draws": "eot",
        "classes": "max(4, n_target_classes + 1)",
        "gradient_calls": "n_target_classes * (steps + 1) * eot",
        "forward_calls": "eot + n_target_classes * ((select == 'fresh' and 400 or 0) + "
        "(log == 'iterates' and (steps + 1) * log_draws or 0))",
        "threats": _THREATS,
        "version": 1,
        "choices": _CHOICES,
        "requires": _REQUIRES,
        "paper": {"Croce and Hein 2020": "steps=100,eot=1,rho=0.75,n_target_classes=9"},
        "differences": "the classes are ordered by the mean logits of `eot` clean purifications; every image is attacked towards every one "
        "of them, and the point of the highest mean loss is returned (upstream: an image that one draw got wrong is done)",
        "cite": "croce2020reliable croce2021mind",
    },
}


def apgd_ce(
    *, steps: int = 100, eot: int = 20, rho: float = 0.75, select: str = "loss", log: str = "none", log_draws: int = 10
) -> Attack:
    """steps: iterations; eot: purifications per gradient; rho: the step size is halved where fewer than this share of the
    iterations since the last checkpoint raised the loss. select: `loss`, the point of the highest mean loss of the draws that it was
    found by; `fresh`, of the KEPT best of these and the KEPT last points, that of the highest mean loss of SELECT draws that chose nothing;
    logs `selected`, its iterate. log: `iterates` logs how many of `log_draws` fresh purifications of each of the steps + 1 iterates are
    classified rightly."""
    return _apgd(cross_entropy, steps=steps, eot=eot, rho=rho, select=select, log=log, log_draws=log_draws)


def apgd_dlr(
    *, steps: int = 100, eot: int = 20, rho: float = 0.75, select: str = "loss", log: str = "none", log_draws: int = 10
) -> Attack:
    """On the difference of logits ratio. Parameters as for apgd-ce."""
    return _apgd(dlr, steps=steps, eot=eot, rho=rho, select=select, log=log, log_draws=log_draws)


def apgd_margin(
    *, steps: int = 100, eot: int = 20, rho: float = 0.75, select: str = "loss", log: str = "none", log_draws: int = 10
) -> Attack:
    """On the largest wrong logit less the right one. Parameters as for apgd-ce."""
    return _apgd(margin, steps=steps, eot=eot, rho=rho, select=select, log=log, log_draws=log_draws)


def apgd_targeted(
    *, steps: int = 100, eot: int = 20, rho: float = 0.75, n_target_classes: int = 9, select: str = "loss", log: str = "none",
    log_draws: int = 10,
) -> Attack:  # fmt: skip
    """On the targeted DLR loss, towards each of the n_target_classes likeliest wrong classes in turn. Other parameters as for apgd-ce;
    `selected` is [target, iterate], and `iterates` goes through the targets."""
    _check(steps=steps, eot=eot, n_target_classes=n_target_classes, log_draws=log_draws)

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        likeliest = targets(defense, x, y, noise.fork("targets"), eot=eot)
        if likeliest.shape[1] < max(3, n_target_classes):
            raise UserError(
                f"the targeted DLR loss needs 4 classes, and {n_target_classes} targets {n_target_classes + 1}; there are "
                f"{likeliest.shape[1] + 1}",
                "use fewer `n_target_classes`, or `-a apgd-ce`",
            )
        best, highest = x.clone(), torch.full_like(x[:, 0, 0, 0], -torch.inf)
        words: dict[str, list] = {}
        for number in range(n_target_classes):
            target = likeliest[:, number]
            run = _Run(x, y, noise.fork("target", number), select=select, log=log, log_draws=log_draws)
            found, loss = run(
                defense, threat, loss=dlr_targeted, goal=y + PAIR * target, steps=steps, eot=eot, rho=rho
            )  # fmt: skip
            better = loss > highest
            best, highest = torch.where(_rows(better, x), found, best), torch.where(better, loss, highest)
            words = _joined(words, run.words(), better.tolist(), target.tolist())
        return Attacked(best, log=words)

    return attack


def _joined(before: dict[str, list], now: dict[str, list], better: list[bool], target: list[int]) -> dict[str, list]:
    """What runs towards several targets log of each image: all iterates, and which target and iterate was selected."""
    found = dict(now)
    if "iterates" in now and before:
        found["iterates"] = [a + b for a, b in zip(before["iterates"], now["iterates"], strict=True)]
    if "selected" in now:
        chosen = [[t, i] for t, i in zip(target, now["selected"], strict=True)]
        earlier = before.get("selected", chosen)
        found["selected"] = [new if won else old for new, old, won in zip(chosen, earlier, better, strict=True)]
    if before:
        # A target that stopped says nothing of the others: stopped is an image that every one of them gave up.
        both = zip(before["stopped"], now["stopped"], strict=True)
        found["stopped"] = [None if a is None or b is None else a for a, b in both]
    return found


def _apgd(loss: Loss, *, steps: int, eot: int, rho: float, select: str, log: str, log_draws: int) -> Attack:
    _check(steps=steps, eot=eot, log_draws=log_draws)

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        run = _Run(x, y, noise, select=select, log=log, log_draws=log_draws)
        best, _ = run(defense, threat, loss=loss, steps=steps, eot=eot, rho=rho)
        return Attacked(best, log=run.words())

    return attack


def _check(**counts: int) -> None:
    if any(count < 1 for count in counts.values()):
        said = ",".join(f"{name}={count}" for name, count in counts.items())
        raise UserError(f"`{said}` is out of range", "these are whole numbers from 1 on")


class _Run:
    """One ascent of x (B,C,H,W) with labels y (B,), and what it is to log."""

    def __init__(self, x: Tensor, y: Tensor, noise: Noise, *, select: str, log: str, log_draws: int):
        self.x, self.y, self.noise, self.log_draws = x, y, noise, log_draws
        self.running = Running(len(x))
        self.kept = Kept(x) if select == "fresh" else None
        self.right: list[list[int]] | None = [[] for _ in y] if log == "iterates" else None
        self.selected: list[int] = []

    def __call__(
        self, defense: Defense, threat: ThreatModel, *, loss: Loss, goal: Tensor | None = None, steps: int, eot: int, rho: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(the chosen point like x, the mean loss that chose it (B,)); goal: what the loss reads instead of y, as in `ascend`."""

        def look(i: int, x_adv: Tensor, found: Gradient) -> None:
            if self.kept:
                self.kept.add(i, x_adv, _highest(found.loss))
            if self.right is not None:
                counts = correct(defense, x_adv, self.y, selecting(self.noise, "iterate", i), self.log_draws)
                for image, count in zip(self.right, counts.tolist(), strict=True):
                    image.append(count)

        best, highest = ascend(
            defense, self.x, self.y, threat, self.noise, loss=loss, goal=goal, steps=steps, eot=eot, rho=rho,
            running=self.running, look=look,
        )  # fmt: skip
        if self.kept:
            aim = self.y if goal is None else goal
            best, highest, self.selected = self.kept.choose(defense, aim, loss, selecting(self.noise, "point"))
        return inside(best, self.x, threat), highest

    def words(self) -> dict[str, list]:
        """What the attack logs: nothing new where nothing was asked for."""
        found: dict[str, list] = {"stopped": self.running.stopped}
        if self.kept:
            found["selected"] = self.selected
        if self.right is not None:
            found["iterates"] = self.right
        return found


# ------------------------------------------------------------------------------------------------------------------ losses

PAIR = 1 << 32  # label and target class as one integer, so that the pair travels with its row


def dlr_targeted(logits: Tensor, pairs: Tensor) -> Tensor:
    """Targeted DLR (Croce and Hein 2020, eq. 7) of logits (N,K) and label + PAIR * target (N,)."""
    ordered = logits.sort(dim=1)[0]
    right, target = (logits.gather(1, classes[:, None])[:, 0] for classes in (pairs % PAIR, pairs // PAIR))
    return -(right - target) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def targets(defense: Defense, x: Tensor, y: Tensor, noise: Noise, *, eot: int) -> Tensor:
    """(B,K-1) the wrong classes of clean images, the likeliest by the mean logits of `eot` purifications first."""
    logits = defense.draws(x, noise, 0, eot)
    finite = logits.isfinite().all(2, keepdim=True)
    mean = logits.where(finite, 0).sum(1) / finite.sum(1).clamp(min=1)
    # Sorted as upstream does, so that equal logits come in its order; it takes its images to be right, ours need not be.
    order = mean.sort(dim=1)[1].flip(1)
    return order[order != y[:, None]].view(len(x), -1)


# ------------------------------------------------------------------------------------------------------------------ Algorithm 1

Look = Callable[[int, Tensor, Gradient], None]


def ascend(
    defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise,
    *, loss: Loss, steps: int, eot: int = 1, rho: float = 0.75, start: Tensor | None = None, running: Running | None = None,
    goal: Tensor | None = None, look: Look | None = None, going: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Algorithm 1 from `start` (default: a random point on the ball's surface): (x_best like x, its mean loss (B,)).

    A loss that is not finite, the purification being so, is the highest there is; a gradient that is not finite stops its image,
    as `running` notes. `goal` (B,): what the loss reads instead of y. `look` is shown every iterate with its gradient. `going` (B,) bool,
    which it may write to: images that are still asked for; the others stay where they are, and leave their rows to them.
    Random: the start from the stream (.., "start"), the purifications of iterate i from (.., "iterate", i)."""
    aim = y if goal is None else goal
    going = torch.ones_like(y, dtype=torch.bool) if going is None else going

    def ask(i: int, x_adv: Tensor) -> Gradient:
        found = _asked(defense, x_adv, y, aim, loss, noise.fork("iterate", i), eot, going)
        if look:
            look(i, x_adv, found)
        return found

    x_adv = (surface(x, threat, noise.fork("start")) if start is None else start).clamp(0, 1)
    running = running or Running(len(x))
    found = ask(0, x_adv)
    grad, x_old = found.grad, x_adv
    x_best, grad_best, loss_best = x_adv, grad, _highest(found.loss)
    rule: _Rule = (
        _Sparse(x, threat, x_adv if start is not None else None, steps=steps)
        if threat.norm == "L1"
        else _Halved(x, threat, loss_best, steps=steps, rho=rho)
    )

    for i in range(steps):
        if not going.any():
            break
        moved, x_old = rule.move(i, x_adv, x_old, grad), x_adv
        x_adv = running.step(i, found, moved, x_adv)

        found = ask(i + 1, x_adv)
        grad, now = found.grad, _highest(found.loss)
        better = now > loss_best
        x_best = torch.where(_rows(better, x), x_adv, x_best)
        grad_best = torch.where(_rows(better, x), grad, grad_best)
        loss_best = torch.where(better, now, loss_best)

        back = rule.checked(i, now, loss_best, x_best)
        if back is not None:
            x_adv = torch.where(_rows(back, x), x_best, x_adv)
            grad = torch.where(_rows(back, x), grad_best, grad)
    return x_best, loss_best


def _asked(
    defense: Defense, x: Tensor, y: Tensor, aim: Tensor, loss: Loss, noise: Noise, eot: int, going: Tensor
) -> Gradient:
    """The gradient at x; where an image is no longer going, one that is zero, of a loss that is below all others."""
    if aim is y and going.all():
        return defense.loss_grad(x, y, loss, noise, eot=eot)
    rows = going.nonzero()[:, 0]
    there = rows.cpu()
    part = noise.rows(noise.ids[there], noise.samples[there])
    some = defense.loss_grad(x[rows], aim[rows], loss, part, eot=eot, observe=False)
    defense.observed.add(part.ids, y[rows], some)
    if len(rows) == len(x):
        return some

    def spread(values: Tensor, empty: float, dim: int = 0) -> Tensor:
        shape = list(values.shape)
        shape[dim] = len(x)
        return values.new_full(shape, empty).index_copy(dim, rows, values)

    return Gradient(
        spread(some.loss, -torch.inf), spread(some.grad, 0), spread(some.logits, 0, 1), spread(some.finite, True)
    )


class _Rule(Protocol):
    """How an iterate moves, and when it goes back to the best one."""

    def move(self, i: int, x_adv: Tensor, x_old: Tensor, grad: Tensor) -> Tensor: ...

    def checked(self, i: int, loss: Tensor, loss_best: Tensor, x_best: Tensor) -> Tensor | None:
        """At a checkpoint (B,) bool: which images go back to their best point; None between two."""


class _Halved:
    """Linf and L2 (Croce and Hein 2020): momentum, and a step that is halved at checkpoints."""

    def __init__(self, x: Tensor, threat: ThreatModel, loss: Tensor, *, steps: int, rho: float):
        self.x, self.threat, self.rho = x, threat, rho
        self.step = 2 * threat.eps * torch.ones_like(_rows(loss, x))
        self.period, self.shortest, self.shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        # As in the authors' code, f(x_0) is missing from the list: where f(x_1) is compared with it, stands a zero.
        self.losses = [torch.zeros_like(loss)] * steps
        self.since, self.loss_checked, self.halved = 0, loss, torch.ones_like(loss, dtype=torch.bool)

    def move(self, i: int, x_adv: Tensor, x_old: Tensor, grad: Tensor) -> Tensor:
        # z = P(x + step * s(grad));  x <- P(x + alpha (z - x) + (1 - alpha) (x - x_old))
        x, threat = self.x, self.threat
        alpha, momentum = (0.75 if i else 1.0), x_adv - x_old
        z = project(x_adv + self.step * (grad.sign() if threat.norm == "Linf" else unit(grad, threat)), x, threat)
        return project(x_adv + (z - x_adv) * alpha + momentum * (1 - alpha), x, threat)

    def checked(self, i: int, loss: Tensor, loss_best: Tensor, x_best: Tensor) -> Tensor | None:
        self.losses[i] = loss
        self.since += 1
        if self.since != self.period:
            return None
        # An image that oscillates (condition 1) or is stuck (2) goes back to its best point with half the step.
        losses = self.losses
        rises = sum((losses[i - c] > losses[i - c - 1]).to(loss_best.dtype) for c in range(self.period))
        oscillates = rises <= self.period * self.rho * torch.ones_like(loss_best)
        stuck = ~self.halved & (self.loss_checked >= loss_best)
        self.halved, self.loss_checked = oscillates | stuck, loss_best
        self.step = torch.where(_rows(self.halved, self.x), self.step / 2, self.step)
        self.since, self.period = 0, max(self.period - self.shrink, self.shortest)
        return self.halved


class _Sparse:
    """L1 (Croce and Hein 2021, Algorithm 1): steps along the largest entries of the gradient, as many as the best point's perturbation is
    wide; at checkpoints the step shrinks, or, where that perturbation became sparser, is the first one again."""

    def __init__(self, x: Tensor, threat: ThreatModel, start: Tensor | None, *, steps: int):
        self.x, self.eps, self.size = x, threat.eps, math.prod(x.shape[1:])
        self.step = _rows(torch.full((len(x),), threat.eps, dtype=x.dtype, device=x.device), x)
        self.period, self.since = max(int(0.04 * steps), 1), 0
        # Of a random start nothing is known; a given one says how sparse it is.
        self.width = torch.full_like(self.step.flatten(), self.size) if start is None else self._width(start)
        self.share = torch.full_like(self.step.flatten(), 0.2) if start is None else self.width / self.size / 1.5

    def _width(self, x_adv: Tensor) -> Tensor:
        """(B,) how many values of an image are changed."""
        return (x_adv - self.x != 0).flatten(1).sum(1)

    def move(self, i: int, x_adv: Tensor, x_old: Tensor, grad: Tensor) -> Tensor:
        flat = grad.flatten(1)
        place = ((1 - self.share) * self.size).clamp(min=0, max=self.size - 1).long()
        least = flat.abs().sort(1)[0].gather(1, place[:, None])
        signs = (flat * (flat.abs() >= least)).sign()
        count = _rows(signs.abs().sum(1), grad) + 1e-10
        return project(x_adv + self.step * signs.view_as(grad) / count, self.x, ThreatModel("L1", self.eps))

    def checked(self, i: int, loss: Tensor, loss_best: Tensor, x_best: Tensor) -> Tensor | None:
        self.since += 1
        if self.since != self.period:
            return None
        width = self._width(x_best)
        sparser = width / self.width < 0.95
        self.share, self.width, self.since = width / self.size / 1.5, width, 0
        step = torch.where(_rows(sparser, self.x), self.eps, self.step / 1.5)
        self.step = step.clamp(self.eps / 10, self.eps)
        return sparser


def _highest(loss: Tensor) -> Tensor:
    """(B,) with infinity for what is not finite: purifying to NaN is the worst that can happen to a defense."""
    return loss.where(loss.isfinite() | (loss == -torch.inf), torch.inf)


# ---------------------------------------------------------------------------------------------------------------- selection


class Kept:
    """The points of each image that `select=fresh` chooses from: the KEPT of the highest mean loss, and the KEPT last."""

    def __init__(self, x: Tensor):
        empty = x.new_full((len(x), KEPT), -torch.inf)
        self.best = [empty, x.unsqueeze(1).expand(-1, KEPT, *x.shape[1:]), empty]  # loss, point, iterate
        self.last: list[tuple[int, Tensor]] = []

    def add(self, i: int, x_adv: Tensor, loss: Tensor) -> None:
        """Iterate i, with its mean loss (B,)."""
        self.last = [*self.last, (i, x_adv)][-KEPT:]
        loss, iterate = loss[:, None], torch.full_like(loss, i)[:, None]
        losses, points, iterates = (
            torch.cat(pair, 1) for pair in zip(self.best, (loss, x_adv[:, None], iterate), strict=True)
        )
        order = losses.sort(dim=1, descending=True, stable=True)[1][:, :KEPT]
        rows = torch.arange(len(loss), device=loss.device)[:, None]
        self.best = [losses[rows, order], points[rows, order], iterates[rows, order]]

    def choose(self, defense: Defense, aim: Tensor, loss: Loss, noise: Noise) -> tuple[Tensor, Tensor, list[int]]:
        """(the point of the highest mean loss of SELECT fresh draws, that loss (B,), its iterate), the draws being the same for all points
        of an image. aim (B,): what the loss reads."""
        points, losses, iterates = [], [], []
        last = [(x_adv, torch.full_like(self.best[0][:, 0], i)) for i, x_adv in self.last]
        for point, iterate in [*((self.best[1][:, c], self.best[2][:, c]) for c in range(KEPT)), *last]:
            logits = defense.draws(point, noise, 0, SELECT)
            mean = Objective(loss, eot=SELECT, votes=1, combined="logits", average="loss")
            found = mean(logits.flatten(0, 1), aim)[0] / SELECT
            # Where there were fewer iterates than places, an empty one holds the clean image.
            losses.append(_highest(found).where(iterate >= 0, -torch.inf))
            points.append(point)
            iterates.append(iterate)
        which = torch.stack(losses, 1).argmax(1)
        rows = torch.arange(len(aim), device=aim.device)
        chosen = [torch.stack(of, 1)[rows, which] for of in (points, losses, iterates)]
        return chosen[0], chosen[1], [int(i) for i in chosen[2].tolist()]


# ----------------------------------------------------------------------------------------------------------- the ball


def inside(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """x_adv where it keeps to the threat model: the authors' projection onto the L1 ball adds up an image in float32."""
    if threat.norm != "L1":
        return x_adv
    return torch.where(_rows(threat.holds(x_adv, x), x), x_adv, threat.project(x_adv, x))


def surface(x: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    """A random point on the surface of the ball around x, as the authors' code starts; not yet clipped. Under L1 a normal draw's
    projection."""
    if threat.norm == "L1":
        far = noise.normal(0, x)
        return x + far + L1_projection(x, far, threat.eps)
    return x + threat.eps * unit(2 * noise.uniform(0, x) - 1 if threat.norm == "Linf" else noise.normal(0, x), threat)


def unit(v: Tensor, threat: ThreatModel) -> Tensor:
    """v / ||v|| in the threat model's norm; exact zeros stay zero. As the authors' code does, bit for bit, but for L2 norms below
    1e-11: there its division gives (almost) zero, and ours the unit vector."""
    v = representable(v) if threat.norm == "L2" else v
    return v / (_norm(v, threat) + 1e-12)


def project(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Onto the ball around x, then [0,1]; the arithmetic of the authors' code, which differs from ThreatModel's in the last bit. Under L1
    both at once (Croce and Hein 2021, Prop. 2.3)."""
    if threat.norm == "Linf":
        return z.clamp(x - threat.eps, x + threat.eps).clamp(0, 1)
    if threat.norm == "L1":
        move = z - x
        return x + move + L1_projection(x, move, threat.eps)
    return (x + unit(z - x, threat) * _norm(z - x, threat).clamp(max=threat.eps)).clamp(0, 1)


def _norm(v: Tensor, threat: ThreatModel) -> Tensor:
    flat = v.flatten(1)
    return _rows(flat.abs().amax(1) if threat.norm == "Linf" else (flat**2).sum(1).sqrt(), v)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
