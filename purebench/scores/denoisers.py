"""Adapters of networks that say the clean image or the direction to it: EDM's denoisers (Karras et al. 2022), NCSNv2 (Song and
Ermon 2020)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from purebench.engine.nfe import watch
from purebench.scores.views import Level, Score, rows


class DenoiserScore(Score):
    """Both views of a network D(x, sigma) = E[clean | x = clean + sigma noise]."""

    def __init__(
        self, network: nn.Module, size: tuple[int, int, int], sigma_min: float = 0.002, sigma_max: float = 80.0
    ):
        self.network = watch(network)
        self.size, self.sigma_min, self.sigma_max = size, sigma_min, sigma_max

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        return self.network(x, rows(sigma, x))

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        return (self.denoise(x, sigma) - x) / sigma


class NCSNScore(Score):
    """Both views of NCSNv2, which sees no noise level: score = raw / sigma, at any sigma (Song and Ermon 2020, technique 3).

    The network takes images in [0,1]. There the noise is half as large and the score twice: their product, raw, is the same.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int], sigma_min: float, sigma_max: float):
        self.network = watch(_Raw(network))
        self.size, self.sigma_min, self.sigma_max = size, sigma_min, sigma_max

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        return self.network((x + 1) / 2)


class _Raw(nn.Module):
    """x in [0,1] -> NCSNv2's output before its division by sigma."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.raw(x)
