"""Projected gradient ascent (Madry et al. 2018) on the expectation over transformations (Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.engine.defense import BPDA, Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "pgd-eot": {
        "summary": "PGD on the mean loss of `eot` purifications, by the gradient of your choice",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0"],
        "paper": {"Lee and Kim 2023": "steps=200,eot=20,rel_step=0.223125,random_start=false (0.007 at 8/255)"},
    },
    "bpda-eot": {
        "summary": "PGD on the loss of the mean logits of `eot` purifications, identity through the purifier",
        "gradients": ["bpda"],
        "draws": "eot",
        "gradient_calls": "steps * eot",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0"],
        "paper": {"Hill et al. 2021, DiffPure, ScoreOpt": "steps=50,eot=15,rel_step=0.25"},
    },
    "transfer-pgd": {
        "summary": "PGD on the bare classifier; the defense is not asked",
        "gradients": [],
        "bare": True,
        "gradient_calls": "steps",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "choices": {"loss": ["ce", "dlr", "margin"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["rel_step > 0"],
        "paper": {"ScoreOpt": "steps=40,rel_step=0.25 from a random start"},
    },
}


def ascend(
    defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise,
    *, steps: int, eot: int, rel_step: float, loss: str, average: str, random_start: bool,
) -> Attacked:  # fmt: skip
    """`steps` ascent steps of rel_step * eps from x or from a random point of the ball; the last iterate, like x, or the one whose
    gradient was not finite.

    Iteration i draws its purifications from the stream (.., "iterate", i); the start from (.., "start")."""
    x_adv = threat.random(noise.fork("start"), x) if random_start else x.clone()
    running = Running(len(x))
    for i in range(steps):
        found = defense.loss_grad(x_adv, y, loss, noise.fork("iterate", i), eot=eot, average=average)
        moved = threat.project(x_adv + rel_step * threat.eps * threat.ascend(found.grad), x)
        x_adv = running.step(i, found, moved, x_adv)
    return Attacked(x_adv, log={"stopped": running.stopped})


def _attack(prepare: Callable[[Defense], Defense], average: str, **settings: Any) -> Attack:
    """`ascend` on what `prepare` makes of the defense."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        return ascend(prepare(defense), x, y, threat, noise, average=average, **settings)

    return attack


def pgd_eot(
    *, steps: int = 40, eot: int = 20, rel_step: float = 0.25, loss: str = "ce", random_start: bool = True
) -> Attack:
    """steps: iterations; eot: purifications per gradient; rel_step: step size as a share of eps; loss: ce, dlr or margin."""
    return _attack(
        lambda defense: defense, "loss", steps=steps, eot=eot, rel_step=rel_step, loss=loss, random_start=random_start
    )


def bpda_eot(
    *, steps: int = 50, eot: int = 15, rel_step: float = 0.25, loss: str = "ce", random_start: bool = False
) -> Attack:
    """As DiffPure's and ScoreOpt's BPDA+EOT: the loss of the mean logits, no random start. Parameters as for pgd-eot.

    Their stopping rule (150 more purifications of an image once it seems broken) is a way of judging, which the harness does."""
    return _attack(
        lambda defense: defense.using(BPDA),
        "logits", steps=steps, eot=eot, rel_step=rel_step, loss=loss, random_start=random_start,
    )  # fmt: skip


def transfer_pgd(*, steps: int = 40, rel_step: float = 0.25, loss: str = "ce", random_start: bool = True) -> Attack:
    """PGD on the classifier without the purifier. Parameters as for pgd-eot."""
    return _attack(
        Defense.undefended, "loss", steps=steps, eot=1, rel_step=rel_step, loss=loss, random_start=random_start
    )
