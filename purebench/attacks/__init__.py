"""An attack is a function (defense, x, y, threat, noise) -> Attacked. It computes; the harness judges what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from purebench.defense import Defense
from purebench.noise import Noise
from purebench.spec import ThreatModel


@dataclass(frozen=True)
class Attacked:
    """`x_adv` like x; `verdict` (B,) bool: the attack's own claim that the image withstood it, where it makes one;
    `log`: per-image lists that go into the records (`nfe`: (forward, backward) where images cost differently)."""

    x_adv: Tensor
    verdict: Tensor | None = None
    log: dict[str, Any] = field(default_factory=dict)


Attack = Callable[[Defense, Tensor, Tensor, ThreatModel, Noise], Attacked]
