"""Projected gradient ascent (Madry et al. 2018) on the expectation over transformations (Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running, sticky
from purebench.attacks.purified import sign_steps
from purebench.attacks.schedule import sizes
from purebench.attacks.selection import closer, correct, selecting, standing
from purebench.engine.defense import BPDA, Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, Gradient, Loss
from purebench.engine.rows import per_row
from purebench.errors import UserError
from purebench.spec import ThreatModel

# A look at every iterate, and at the clean image where the attack starts elsewhere; no gradient is taken of these two ends.
_FORWARDS = (
    "(verify > 0 and (steps + 1 + random_start) * verify + (1 + random_start) * eot or 0)"
    " + (log == 'iterates' and (steps + 1) * log_draws or 0)"
)
_TARGETED_FORWARDS = (
    "(verify > 0 and (steps + 1 + random_start) * verify + (1 + random_start) * eot or 0)"
    " + (log == 'iterates' and (steps + 1) * log_draws or 0) + (targeted == True and (targets + 1) * eot or 0)"
)
_NO_LOG_OF_WHAT_LEFT = "log == 'none' or verify == 0"  # an image that is broken has no more iterates
_NO_MOOT_DRAWS = "log == 'iterates' or log_draws == 10"
# At the usual last step, 0.02 of eps, a pixel at 8/255 moves by a sixth of an 8-bit level.
_SHRINKS = "schedule == 'constant' and last == 0.02 or schedule != 'constant' and 0 < last <= rel_step"
INFO = {
    "pgd-eot": {
        "summary": "PGD on the mean loss of `eot` purifications, by the gradient of your choice",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "gradient_calls": "steps * eot * (targeted == True and targets or 1)",
        "forward_calls": _TARGETED_FORWARDS,
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "verdict": {"sticky": "verify > 0"},
        "added": ["average", "ascent", "targeted", "targets", "verify", "log", "log_draws", "schedule", "last"],
        "choices": {
            "loss": ["ce", "dlr", "margin"],
            "average": ["loss", "logits", "softmax", "logsoftmax"],
            "ascent": ["steepest", "sign"],
            "log": ["none", "iterates"],
            "schedule": ["constant", "linear", "cosine"],
        },
        "classes": "max(loss == 'dlr' and 3 or 2, targeted == True and targets + 1 or 2)",
        "requires": [
            "rel_step > 0",
            _SHRINKS,
            _NO_LOG_OF_WHAT_LEFT,
            _NO_MOOT_DRAWS,
            "targeted == True or targets == 9",
            "targeted == False or (verify == 0 and log == 'none')",  # its iterates are those of several attacks
        ],
        "limits": {
            "ascent == 'steepest' or norm != 'L1'": ["its step is made of a few values", "leave out `ascent=sign`"],
            "ascent == 'steepest' or norm != 'Linf'": [
                "the steepest step is that of the sign",
                "leave out `ascent=sign`",
            ],
        },
        "paper": {
            "Lee and Kim 2023": "steps=200,eot=20,rel_step=0.223125,random_start=false (0.007 at 8/255); as coded under L2 the same "
            "0.007 along the sign: rel_step=0.014,ascent=sign (at 0.5)",
            "ScoreOpt": "steps=20,eot=20,rel_step=0.25,random_start=false,average=logits,verify=150",
        },
        "differences": "targeted: the loss of the target class is descended (pyautoattack's APGD has a loss of its own), and of the "
        "targets' images the one is taken that fewest of eot selection draws classify rightly",
        "cite": "lee2023robust",
    },
    "bpda-eot": {
        "summary": "PGD on the loss of the mean logits of `eot` purifications, identity through the purifier",
        "gradients": ["bpda"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "forward_calls": _FORWARDS,
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "verdict": {"sticky": "verify > 0"},
        "added": ["average", "verify", "log", "log_draws", "schedule", "last"],
        "choices": {
            "loss": ["ce", "dlr", "margin"],
            "average": ["logits", "softmax", "logsoftmax", "loss", "signs"],
            "log": ["none", "iterates"],
            "schedule": ["constant", "linear", "cosine"],
        },
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0", _SHRINKS, _NO_LOG_OF_WHAT_LEFT, _NO_MOOT_DRAWS],
        "limits": {"average != 'signs' or norm == 'Linf'": ["it sums steps along signs", "leave out `average=signs`"]},
        "paper": {
            "Hill et al. 2021": "steps=50,eot=15,rel_step=0.25,random_start=true,verify=150",
            "DiffPure, ScoreOpt": "steps=50,eot=15,rel_step=0.25,verify=150 (CelebA-HQ verify=20)",
            "ADP": "steps=40,eot=15,rel_step=0.25,average=signs",
        },
        "differences": "average=signs: the sign steps are summed in float64, where equal ones cancel exactly (in the published code "
        "rounding decides there); verify: broken images leave the batch, which changes no image, and an attack without a random start "
        "looks at the clean image once, not twice",
        "cite": "hill2021stochastic",
    },
    "transfer-pgd": {
        "summary": "PGD on the bare classifier; the defense is not asked",
        "gradients": [],
        "bare": True,
        "gradient_calls": "steps",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "added": ["schedule", "last"],
        "choices": {"loss": ["ce", "dlr", "margin"], "schedule": ["constant", "linear", "cosine"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0", _SHRINKS],
        "paper": {"ScoreOpt": "steps=40,rel_step=0.25 from a random start"},
    },
}


@dataclass(frozen=True)
class Ascent:
    """`steps` steps of rel_step * eps, or by a `schedule` down to last * eps, from x or from a random point of the ball, up the mean of
    `eot` draws' `loss`, the loss of their mean `average`, or, of `signs`, the sum of sign steps at the purified images (`purified`).
    `ascent`: the threat model's `steepest` direction, or the `sign` in any ball. `verify`: Hill's rule (`sticky`), by so many
    purifications, 0 for none."""

    steps: int
    eot: int
    rel_step: float
    loss: str
    average: str
    random_start: bool
    ascent: str = "steepest"
    verify: int = 0
    log: str = "none"
    log_draws: int = 10
    schedule: str = "constant"
    last: float = 0.02

    @cached_property
    def sizes(self) -> list[float]:
        """Of each step, as a share of eps."""
        return sizes(self.schedule, self.steps, self.rel_step, self.last)

    def gradient(
        self,
        i: int,
        defense: Defense,
        x_adv: Tensor,
        y: Tensor,
        threat: ThreatModel,
        noise: Noise,
        target: Tensor | None,
    ) -> Gradient:
        """At iterate i, of the loss of the labels y; with a `target` (B,) of that class's loss, to be lowered."""
        if target is not None:
            found = defense.loss_grad(
                x_adv, target, _lowered(LOSSES[self.loss]), noise, eot=self.eot, average=self.average, observe=False
            )
            defense.observed.add(noise.ids, y, found)
            return found
        if self.average == "signs":
            step = self.sizes[i] * threat.eps
            return sign_steps(defense, x_adv, y, self.loss, noise, eot=self.eot, step=step).found
        return defense.loss_grad(x_adv, y, self.loss, noise, eot=self.eot, average=self.average)

    def step(self, i: int, x_adv: Tensor, grad: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        """The iterate after the i-th, like x_adv, in the ball around x."""
        direction = grad.sign() if self.ascent == "sign" else threat.ascend(grad)
        return threat.project(x_adv + self.sizes[i] * threat.eps * direction, x)

    def __call__(
        self, defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise, target: Tensor | None = None
    ) -> Attacked:
        """The last iterate, like x, or the one whose gradient was not finite. With `log`: `iterates`, how many of `log_draws` selection
        draws were right at each of steps + 1 iterates. `target` (B,): classes to go to, instead of away from y.

        Iteration i draws its purifications from the stream (.., "iterate", i); the start from (.., "start"); the log from (..,
        "iterates", i) of the role "select"."""
        x_adv = threat.random(noise.fork("start"), x) if self.random_start else x.clone()
        if self.verify:
            return sticky.attack(
                defense, x, y, noise, start=x_adv, natural=self.random_start, steps=self.steps, eot=self.eot,
                gradient=lambda i, at, labels, own: self.gradient(i, defense, at, labels, threat, own, None),
                step=lambda i, at, grad, clean: self.step(i, at, grad, clean, threat),
                combined="logits" if self.average in ("loss", "signs") else self.average, verify=self.verify,
            )  # fmt: skip
        running, right = Running(len(x)), []
        for i in range(self.steps + 1):
            if self.log == "iterates":
                right.append(correct(defense, x_adv, y, selecting(noise, "iterates", i), self.log_draws))
            if i < self.steps:
                found = self.gradient(i, defense, x_adv, y, threat, noise.fork("iterate", i), target)
                x_adv = running.step(i, found, self.step(i, x_adv, found.grad, x, threat), x_adv)
        log: dict[str, Any] = {"stopped": running.stopped}
        return Attacked(x_adv, log=log | ({"iterates": torch.stack(right, 1)} if right else {}))


@dataclass(frozen=True)
class Targeted:
    """`ascent` towards each of the `targets` likeliest wrong classes in turn, likeliest first."""

    ascent: Ascent
    targets: int

    def __call__(self, defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        """Of the targets' images the one that fewest of eot selection draws classify rightly, of equals that of the largest mean margin.

        Random: the classes' order, by the mean logits of eot draws, (.., "order"); the attack on target i, (.., "target", i); the choice,
        (.., "targets") of the role "select"."""
        eot = self.ascent.eot
        logits = defense.draws(x, noise.fork("order"), 0, eot).mean(1)
        if logits.shape[1] <= self.targets:
            raise UserError(
                f"`targets={self.targets}` of {logits.shape[1]} classes: one of them is right",
                f"targets={logits.shape[1] - 1} are all of them",
            )
        # As pyautoattack orders them; the right class, which is first there, is left out wherever it stands.
        order = logits.scatter(1, y[:, None], -torch.inf).sort(1)[1].flip(1)
        best, at = x, (torch.full_like(y, eot + 1), torch.full_like(logits[:, 0], -torch.inf))
        stopped: list[int | None] = [None] * len(x)
        for i in range(self.targets):
            found = self.ascent(defense, x, y, threat, noise.fork("target", i), order[:, i])
            now = standing(defense, found.x_adv, y, selecting(noise, "targets"), eot)
            better = closer(now, at)
            best = torch.where(per_row(better, x), found.x_adv, best)
            at = (torch.where(better, now[0], at[0]), torch.where(better, now[1], at[1]))
            for j in better.nonzero()[:, 0].tolist():
                stopped[j] = found.log["stopped"][j]
        return Attacked(best, log={"stopped": stopped})


def _lowered(loss: Loss) -> Loss:
    return lambda logits, y: -loss(logits, y)


def _attack(prepare: Callable[[Defense], Defense], ascent: Callable[..., Attacked]) -> Attack:
    """`ascent` on what `prepare` makes of the defense."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        return ascent(prepare(defense), x, y, threat, noise)

    return attack


def pgd_eot(
    *, steps: int = 40, eot: int = 20, rel_step: float = 0.25, loss: str = "ce", random_start: bool = True,
    average: str = "loss", ascent: str = "steepest", targeted: bool = False, targets: int = 9, verify: int = 0,
    log: str = "none", log_draws: int = 10, schedule: str = "constant", last: float = 0.02,
) -> Attack:  # fmt: skip
    """steps: iterations; eot: purifications per gradient; rel_step: step size as a share of eps; loss: ce, dlr or margin, of each
    purification, or of their mean `average`; ascent: `sign` steps along the sign under L2 too, as Lee and Kim's code does; targeted:
    towards each of the `targets` likeliest wrong classes, the best of these images; verify: Hill's rule, by so many purifications, 0
    for none; log: `iterates`, the right answers among `log_draws` selection draws of every iterate; schedule: how the step goes from
    rel_step to `last`, `linear` or `cosine`."""
    climb = Ascent(steps, eot, rel_step, loss, average, random_start, ascent, verify, log, log_draws, schedule, last)
    return _attack(lambda defense: defense, Targeted(climb, targets) if targeted else climb)


def bpda_eot(
    *, steps: int = 50, eot: int = 15, rel_step: float = 0.25, loss: str = "ce", random_start: bool = False,
    average: str = "logits", verify: int = 0, log: str = "none", log_draws: int = 10,
    schedule: str = "constant", last: float = 0.02,
) -> Attack:  # fmt: skip
    """As DiffPure's and ScoreOpt's BPDA+EOT: the loss of the mean logits, no random start. Parameters as for pgd-eot; average: `signs`
    sums the sign steps at the purified images, as ADP's code does.

    Their stopping rule is `verify=150`; without it an image is attacked to the end, and the harness judges the last iterate."""
    climb = Ascent(
        steps, eot, rel_step, loss, average, random_start, verify=verify, log=log, log_draws=log_draws,
        schedule=schedule, last=last,
    )  # fmt: skip
    return _attack(lambda defense: defense.using(BPDA), climb)


def transfer_pgd(
    *, steps: int = 40, rel_step: float = 0.25, loss: str = "ce", random_start: bool = True,
    schedule: str = "constant", last: float = 0.02,
) -> Attack:  # fmt: skip
    """PGD on the classifier without the purifier. Parameters as for pgd-eot."""
    climb = Ascent(steps, 1, rel_step, loss, "loss", random_start, schedule=schedule, last=last)
    return _attack(Defense.undefended, climb)
