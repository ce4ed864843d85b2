"""Adapters of networks that predict the noise of a variance-preserving diffusion: at any time (Song et al. 2021, VP-SDE), or at
1000 indices (Ho et al. 2020, DDPM; Dhariwal and Nichol 2021, guided diffusion), or those of another noise schedule (Nichol and
Dhariwal 2021, improved diffusion)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from purebench.assets.architecture import Schedule
from purebench.engine.nfe import watch
from purebench.scores.views import Level, Score, discrete, rows, shrink


@cache
def _log_levels(device: torch.device) -> Tensor:
    return torch.from_numpy(np.log(1 / discrete() - 1) / 2).to(device)


class VPScore(Score):
    """Both views of a network eps(x, labels), labels = 999 t, with beta(t) = 0.1 + 19.9 t."""

    def __init__(self, network: nn.Module, size: tuple[int, int, int], t_min: float = 1e-3, t_max: float = 1.0):
        self.network = watch(network)
        self.size = size
        self.sigma_min, self.sigma_max = self.sigma(t_min), self.sigma(t_max)

    def eps(self, x: Tensor, t: float) -> Tensor:
        return self.network(x, rows(999 * t, x))

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        return self.network(x, rows(float(i), x))

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        return -self.network(shrink(x, sigma), rows(999 * self.time(sigma), x))


class IndexScore(Score):
    """Both views of a network net(x, i) trained at indices i = 0..999; its first C channels are eps.

    eps(x, t) asks for index floor(1000 t), taken in float32 as DiffPure does (runners/diffpure_sde.py). In the view at sigma the
    index is fractional: where sigma_index, interpolated in log sigma, has the value sigma. `variances`: the network learned them.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int], variances: bool = False):
        self.network = watch(network)
        self.size, self.variances = size, variances
        self.sigma_min, self.sigma_max = self.sigma_index(0), self.sigma_index(999)

    def output(self, x: Tensor, i: float | Tensor) -> Tensor:
        """(B, C or 2C, H, W): eps, and for networks that learn it, the interpolation weight v in [-1,1] of the log variance."""
        return self.network(x, rows(i, x))

    def eps(self, x: Tensor, t: float) -> Tensor:
        return self.eps_index(x, min(int(np.float32(1000) * np.float32(t)), 999))

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        return self.output(x, i)[:, : x.shape[1]]

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        return -self.output(shrink(x, sigma), self.index(sigma))[:, : x.shape[1]]

    @staticmethod
    def index(sigma: Level) -> float | Tensor:
        """The fractional index at which sigma_index, interpolated in log sigma, is sigma; of a tensor in float64."""
        if not isinstance(sigma, Tensor):
            return float(np.interp(math.log(sigma), np.log(1 / discrete() - 1) / 2, np.arange(1000)))
        return fractional(_log_levels(sigma.device), sigma.double())


class ScheduleScore(Score):
    """Both views of a network net(x, i) trained at the indices of another noise schedule than DDPM's; its first C channels are eps.

    Whatever is asked of it, it is asked at the fractional index of its own schedule where the noise level, interpolated in log sigma, is
    the one that is meant."""

    def __init__(self, network: nn.Module, size: tuple[int, int, int], schedule: Schedule):
        self.network, self.size = watch(network), size
        self.log_levels = torch.from_numpy(np.log(1 / kept(schedule) - 1) / 2)
        self.sigma_min, self.sigma_max = (math.exp(float(self.log_levels[i])) for i in (0, -1))
        # What the network is told of index i.
        self.per_index = 1000 / schedule.steps if schedule.rescaled else 1.0

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        index = fractional(self.log_levels.to(x.device), torch.as_tensor(sigma, dtype=torch.float64, device=x.device))
        return -self.network(shrink(x, sigma), rows(self.per_index * index, x))[:, : x.shape[1]]


def kept(schedule: Schedule) -> np.ndarray:
    """abar[i] of a schedule, i = 0 .. steps-1; float64."""
    n = schedule.steps
    if schedule.name == "cosine":
        # Nichol and Dhariwal 2021, section 3.2.
        f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    power = 0.5 if schedule.name == "scaled_linear" else 1.0
    return np.cumprod(1 - np.linspace(schedule.start**power, schedule.end**power, n) ** (1 / power))


def fractional(table: Tensor, sigma: Tensor) -> Tensor:
    """The index at which the table of log sigma, interpolated, has the value log sigma; float64, inside the table."""
    log = sigma.log()
    above = torch.searchsorted(table, log).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return above - 1 + ((log - low) / (high - low)).clamp(0, 1)
