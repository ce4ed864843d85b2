"""No purification: the bare classifier, as the row that every table starts with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from purebench.engine.noise import Noise

INFO = {
    "none": {
        "summary": "no purification: the bare classifier",
        "formula": "x",
        "nfe": "0",
        "random": False,
        "output": "unit",
        "version": 1,
        "needs": [],
    }
}


class Identity:
    n = 0

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return x

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        raise AssertionError("the identity has no steps")

    def finish(self, x: Tensor) -> Tensor:
        return x


def none(score: Any = None, classifier: Any = None) -> Identity:
    """The input, unchanged: (B,C,H,W) in [0,1]."""
    return Identity()
