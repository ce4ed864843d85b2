"""AutoAttack's version `rand` (Croce and Hein 2020) as a random defense needs it, after AutoAttack-Fix (Liu et al. 2025, App. L).

`rand` lets single draws decide three times: whether an image is attacked at all, whether it counts as broken, and whether the next attack
gets it. Here both of its attacks run on every image, and `evals` fresh draws choose among what they found: the fewest right answers win.
Each attack offers two points: that of the highest mean loss, and, as upstream keeps an iterate that failed, the last of those with
the fewest right answers among the draws of its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.attacks.apgd import ascend
from purebench.attacks.selection import correct, selecting
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, cross_entropy, dlr, predicted
from purebench.engine.rows import per_row
from purebench.errors import UserError
from purebench.spec import ThreatModel

INFO = {
    "autoattack-rand-fix": {
        "summary": "AutoAttack-rand with no image skipped: of what APGD on two losses found, the image that fresh draws get right least",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "drops": "drop",
        "classes": "3",
        "gradient_calls": "2 * (n_iter + 1) * eot",
        "forward_calls": "4 * evals + (drop == True and 2 * (n_iter + 1) * evals or 0)",
        "version": 1,
        "paper": {"AutoAttack-Fix (Liu et al. 2025, App. L)": "n_iter=100,eot=20,evals=20"},
        "differences": "our APGD, whose draws belong to the image, by the mean loss over the draws; of each attack two points are tried; "
        "no verdict, since the draws that chose an image cannot say how robust it is: its number is the harness's",
        "cite": "croce2020reliable liu2025towards",
    },
}
ATTACKS = {"apgd-ce": cross_entropy, "apgd-dlr": dlr}


def autoattack_rand_fix(*, n_iter: int = 100, eot: int = 20, evals: int = 20, drop: bool = False) -> Attack:
    """n_iter: APGD's iterations per loss; eot: purifications per gradient; evals: fresh purifications (role `select`) of each point
    that was found, which choose one. drop: an image that all draws of an iterate's gradient and then `evals` fresh ones get wrong is kept
    as it is there, and leaves; fewer right answers there are not.

    Log: `selected`, by what the image was found (`apgd-ce`, or `apgd-ce:fewest`); `select_right`, how many of `evals` draws got it right;
    with `drop`, `left_at`, the evaluation at which it left, through both attacks, -1 for never."""
    if min(n_iter, eot, evals) < 1:
        raise UserError(
            f"`n_iter={n_iter},eot={eot},evals={evals}` is out of range", "these are whole numbers from 1 on"
        )

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        found = _Found(defense, x, y, noise, evals, drop)
        for number, (name, loss) in enumerate(ATTACKS.items()):
            if not found.going.any():
                break
            found.begin(name, number * (n_iter + 1))
            running = Running(len(x))
            best, _ = ascend(
                defense, x, y, threat, noise.fork(name), loss=loss, steps=n_iter, eot=eot, running=running,
                look=found.look, going=found.going,
            )  # fmt: skip
            found.end(best, running)
        return found.chosen()

    return attack


class _Found:
    """What was found of each image x (B,C,H,W), and what that cost."""

    def __init__(self, defense: Defense, x: Tensor, y: Tensor, noise: Noise, evals: int, drop: bool):
        self.defense, self.x, self.y, self.noise, self.evals, self.drop = defense, x, y, noise, evals, drop
        self.going = torch.ones_like(y, dtype=torch.bool)
        self.left_at = torch.full_like(y, -1)
        self.points: dict[str, Tensor] = {}
        self.x_adv, self.name = x.clone(), ["" for _ in y]
        self.right = torch.full_like(y, evals + 1)
        self.stopped: list[list[int | None]] = []
        self.nfe = torch.zeros(len(x), 2, dtype=torch.int64)
        self.seen = defense.spent.total()

    def begin(self, attack: str, evaluation: int) -> None:
        """An attack whose first iterate is this evaluation."""
        self.attack, self.first = attack, evaluation
        self.fewest, self.fewest_right = self.x, torch.full_like(self.y, torch.iinfo(self.y.dtype).max)

    def look(self, i: int, x_adv: Tensor, found: Gradient) -> None:
        """Iterate i of the attack."""
        self.charge(self.going)
        count = (predicted(found.logits) == self.y).sum(0)
        # As upstream keeps the last iterate that failed.
        better = self.going & (count <= self.fewest_right)
        self.fewest = x_adv.where(per_row(better, x_adv), self.fewest)
        self.fewest_right = count.where(better, self.fewest_right)
        wrong = self.going & (count == 0)
        if not self.drop or not wrong.any():
            return
        right = self.answers(x_adv, wrong, self.attack, i)
        self.charge(wrong)
        self.take(f"{self.attack}:fewest", x_adv, right, wrong & (right == 0))
        left = wrong & (right == 0)
        self.left_at[left] = self.first + i
        self.going[left] = False

    def end(self, best: Tensor, running: Running) -> None:
        """The attack's point of the highest mean loss."""
        self.points |= {self.attack: best, f"{self.attack}:fewest": self.fewest}
        self.stopped.append(running.stopped)

    def chosen(self) -> Attacked:
        """Of each image that has not left, the point that fewest draws of one and the same set get right; the first of equals."""
        left = self.going.clone()
        for name, points in self.points.items():
            right = self.answers(points, left, "point")
            self.take(name, points, right, left & (right < self.right))
        self.charge(left)
        # A gradient that was not finite ended an image's attack where it ended both.
        stopped = [None if None in pair else pair[0] for pair in zip(*self.stopped, strict=True)]
        log = {"stopped": stopped, "selected": self.name, "select_right": self.right.tolist()}
        if self.drop:
            log |= {"left_at": self.left_at.tolist(), "nfe": [tuple(calls) for calls in self.nfe.tolist()]}
        return Attacked(self.x_adv, log=log)

    def answers(self, points: Tensor, of: Tensor, *stream: str | int) -> Tensor:
        """(B,) how many of `evals` draws of the stream get an image right, of the images `of` (B,) bool; of the others, more than all."""
        rows = of.nonzero()[:, 0]
        found = torch.full_like(self.y, self.evals + 1)
        if len(rows):
            here = rows.cpu()
            noise = selecting(self.noise.rows(self.noise.ids[here], self.noise.samples[here]), *stream)
            found[rows] = correct(self.defense, points[rows], self.y[rows], noise, self.evals)
        return found

    def take(self, name: str, points: Tensor, right: Tensor, which: Tensor) -> None:
        self.x_adv = points.where(per_row(which, points), self.x_adv)
        self.right = right.where(which, self.right)
        for i in which.nonzero()[:, 0].tolist():
            self.name[i] = name

    def charge(self, of: Tensor) -> None:
        """Network calls since the last charge, to the images `of` (B,) bool, in equal parts: each has the same number of rows."""
        now, rows = self.defense.spent.total(), of.nonzero()[:, 0].cpu()
        if len(rows):
            for kind in range(2):
                self.nfe[rows, kind] += (now[kind] - self.seen[kind]) // len(rows)
        self.seen = now
