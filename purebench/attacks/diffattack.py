"""DiffAttack (Kang, Song and Li 2023, NeurIPS): Auto-PGD that also drives a diffusion's way back off its way there.

The deviated-reconstruction loss is the mean over some times t of the squared distance between x'_t, the state of the purification, and
x_t, what the forward diffusion makes of the attacked image by then with the same draw of noise. Purification would have them agree; the
further apart they are, the further what comes out is from the image. Its gradient through every step is the engine's.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from purebench.attacks import Attack, Attacked, Running, apgd
from purebench.engine.chain import State, Terms
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, Gradient, Loss
from purebench.spec import ThreatModel

INFO = {
    "diffattack": {
        "summary": "Auto-PGD on the mean loss of `eot` purifications and their deviation from the forward diffusion on the way",
        "gradients": ["exact", "detached"],
        "draws": "eot",
        "of": "diffuses",
        "gradient_calls": "(steps + 1) * eot",
        "version": 1,
        "choices": {"loss": ["ce", "dlr"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["0 < rho", "rho <= 1", "weight >= 0", "points >= 1"],
        "paper": {"Kang et al. 2023": "steps=100,eot=20, every 20th of 100 times (points=5)"},
        "differences": "best point and step size by the mean loss over the draws (the authors' code: the last draw's); the distance is a "
        "mean of squares over values, as in their code, with one weight for all times; forward and backward share the draw of noise. On "
        "coup and reverse-sde, which begin at the image, it is held against a draw of its own",
        "cite": "kang2023diffattack",
    }
}


def diffattack(
    *, steps: int = 100, eot: int = 20, rho: float = 0.75, loss: str = "ce", weight: float = 1.0, points: int = 5
) -> Attack:
    """steps, eot, rho: as for apgd-ce; loss: ce or dlr; weight: of the deviation beside it; points: at how many times, evenly spaced on
    the purification's way, the last at its end. Attacked: the point of the highest mean `loss`."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        running = Running(len(x))
        best, _ = apgd.ascend(
            Deviated(defense, weight, points), x, y, threat, noise,
            loss=LOSSES[loss], steps=steps, eot=eot, rho=rho, running=running,
        )  # fmt: skip
        return Attacked(best, log={"stopped": running.stopped})

    return attack


class Deviated(Defense):
    """A defense whose gradients have the deviation of its states in them; its losses have not."""

    def __init__(self, defense: Defense, weight: float, points: int):
        # A view of the same defense, with its accounts.
        vars(self).update(vars(defense))
        self.weight = weight
        self.at = {round(self.purifier.n * (i + 1) / points) for i in range(points)}

    def loss_grad(self, x: Tensor, y: Tensor, loss: str | Loss, noise: Noise, **options: Any) -> Gradient:
        return super().loss_grad(x, y, loss, noise, **options, terms=self.deviation)

    def deviation(self, noise: Noise) -> Terms:
        """The terms (B,) of purifications that draw from `noise`."""
        purifier = cast(Any, self.purifier)  # the plan has seen that it diffuses

        def term(k: int, state: State, x: Tensor) -> Tensor | None:
            if k not in self.at:
                return None
            apart = state - purifier.diffused(k, x, noise)
            return self.weight / len(self.at) * apart.square().flatten(1).mean(1)

        return term
