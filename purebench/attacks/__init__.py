"""An attack is a function (defense, x, y, threat, noise) -> Attacked. It computes; the harness judges what it
returns. It may import `engine`, `spec` and `errors`. Begin reading at `pgd`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient
from purebench.spec import ThreatModel


@dataclass(frozen=True)
class Attacked:
    """`x_adv` like x; `verdict` (B,) bool: the attack's own claim that the image withstood it, where it makes one; `log`: per-image
    lists that go into the records (`nfe`: (forward, backward) where images cost differently; `stopped`: the iterate at which a gradient
    that was not finite ended the attack on an image, None elsewhere); `flow` (B,2,H,W): under `StAdv`, what moved x to x_adv, which the
    harness renders again (`engine.flows`). An x_adv that is not finite is a failure of the attack: that image is missing from the cell."""

    x_adv: Tensor
    verdict: Tensor | None = None
    log: dict[str, Any] = field(default_factory=dict)
    flow: Tensor | None = None


class Running:
    """Which images of a batch an attack still moves: an image stops for good at the first gradient that is not finite."""

    def __init__(self, images: int):
        self.stopped: list[int | None] = [None] * images

    def step(self, iterate: int, found: Gradient, moved: Tensor, x_adv: Tensor) -> Tensor:
        """`moved` where the image is still running, `x_adv` (like x) where it has stopped, by the gradient `found` at this iterate."""
        for i in (~found.finite).nonzero()[:, 0].tolist():
            if self.stopped[i] is None:
                self.stopped[i] = iterate
        if not any(at is not None for at in self.stopped):
            return moved
        going = torch.tensor([at is None for at in self.stopped], device=x_adv.device)
        return torch.where(going.view(-1, *[1] * (x_adv.dim() - 1)), moved, x_adv)


Attack = Callable[[Defense, Tensor, Tensor, ThreatModel, Noise], Attacked]
