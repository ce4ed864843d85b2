"""Adapters of networks that predict the noise of a variance-preserving diffusion: at any time (Song et al. 2021, VP-SDE), or at
1000 indices (Ho et al. 2020, DDPM; Dhariwal and Nichol 2021, guided diffusion)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from purebench.nfe import watch
from purebench.scores.views import BETA_MAX, BETA_MIN, Score, discrete, rows

__all__ = ["BETA_MAX", "BETA_MIN", "IndexScore", "VPScore"]


class VPScore(Score):
    """Both views of a network eps(x, labels), labels = 999 t, with beta(t) = 0.1 + 19.9 t."""

    def __init__(self, network: nn.Module, size: tuple[int, int, int], t_min: float = 1e-3, t_max: float = 1.0):
        self.network: Any = watch(network)
        self.size = size
        self.sigma_min, self.sigma_max = self.sigma(t_min), self.sigma(t_max)

    def eps(self, x: Tensor, t: float) -> Tensor:
        return self.network(x, rows(999 * t, x))

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        return self.network(x, rows(float(i), x))

    def direction(self, x: Tensor, sigma: float) -> Tensor:
        return -self.eps(x / math.sqrt(1 + sigma**2), self.time(sigma))


class IndexScore(Score):
    """Both views of a network net(x, i) trained at indices i = 0..999; its first C channels are eps.

    eps(x, t) asks for index floor(1000 t), taken in float32 as DiffPure does (runners/diffpure_sde.py). In the view at sigma the
    index is fractional: where sigma_index, interpolated in log sigma, has the value sigma.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int]):
        self.network: Any = watch(network)
        self.size = size
        self.sigma_min, self.sigma_max = self.sigma_index(0), self.sigma_index(999)

    def output(self, x: Tensor, i: float) -> Tensor:
        """(B, C or 2C, H, W): eps, and for networks that learn it, the interpolation weight v in [-1,1] of the log variance."""
        return self.network(x, rows(i, x))

    def eps(self, x: Tensor, t: float) -> Tensor:
        return self.eps_index(x, min(int(np.float32(1000) * np.float32(t)), 999))

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        return self.output(x, i)[:, : x.shape[1]]

    def direction(self, x: Tensor, sigma: float) -> Tensor:
        i = float(np.interp(math.log(sigma), np.log(1 / discrete() - 1) / 2, np.arange(1000)))
        return -self.output(x / math.sqrt(1 + sigma**2), i)[:, : x.shape[1]]
