"""The purifier that changes nothing: what an undefended classifier is to the engine."""

from __future__ import annotations

from torch import Tensor

from purebench.engine.noise import Noise


class Identity:
    """No steps; x (B,C,H,W) goes through as it is."""

    n = 0

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return x

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        raise AssertionError("the identity has no steps")

    def finish(self, x: Tensor) -> Tensor:
        return x
