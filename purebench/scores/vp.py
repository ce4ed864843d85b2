"""Adapters of networks that predict the noise of a variance-preserving diffusion: at any time (Song et al. 2021, VP-SDE), or at
1000 indices (Ho et al. 2020, DDPM; Dhariwal and Nichol 2021, guided diffusion), or those of another noise schedule (Nichol and
Dhariwal 2021, improved diffusion)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from purebench.assets.architecture import Schedule
from purebench.engine.nfe import watch
from purebench.errors import UserError
from purebench.scores.views import Level, Score, discrete, rows, shrink


class Resident:
    """A constant (float64) that is copied once to each device that asks for it: a copy in every step would make the host wait."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._on: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device in self._on:
            return self._on[device]
        moved = torch.from_numpy(self.values).to(device)
        # Under a mode of tensors without values (`rehearsal.check_memory`) it has none either, and would outlive the mode here.
        if type(moved) is Tensor:
            self._on[device] = moved
        return moved


@cache
def _log_levels() -> Resident:
    return Resident(np.log(1 / discrete() - 1) / 2)


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
        return fractional(_log_levels().on(sigma.device), sigma.double())


class ScheduleScore(Score):
    """Both views of a network net(x, i) trained at the indices of another noise schedule than DDPM's; its first C channels are eps.

    Whatever is asked of it, it is asked at the fractional index of its own schedule where the noise level, interpolated in log sigma, is
    the one that is meant."""

    def __init__(self, network: nn.Module, size: tuple[int, int, int], schedule: Schedule | np.ndarray):
        """schedule: the noise schedule, or its abar[i]; then the network is told the indices themselves."""
        self.network, self.size = watch(network), size
        abar = kept(schedule) if isinstance(schedule, Schedule) else schedule
        self.log_levels = Resident(np.log(1 / abar - 1) / 2)
        self.sigma_min, self.sigma_max = (math.exp(float(self.log_levels.values[i])) for i in (0, -1))
        # What the network is told of index i.
        self.per_index = 1.0
        if isinstance(schedule, Schedule) and schedule.rescaled:
            self.per_index = 1000 / schedule.steps

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        # Filled in there and not copied there, and no scalar, which is read where it is an index: both would make the host wait.
        level = sigma if isinstance(sigma, Tensor) else torch.full((1,), sigma, dtype=torch.float64, device=x.device)
        index = fractional(self.log_levels.on(x.device), level.double())
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


def of_file(said: Mapping[str, Tensor], what: str) -> np.ndarray | None:
    """abar[i] of what a file says of its diffusion, float64; None where it says nothing of it. UserError for what is no noise schedule,
    and for a network that predicts anything but the noise."""
    values = {key: value.numpy() for key, value in said.items()}
    abar = np.cumprod(1 - values["betas"]) if "betas" in values else values.get("alphas_cumprod")
    if abar is None:
        return None
    falling = np.diff(abar, prepend=1.0) < 0
    if abar.ndim != 1 or len(abar) < 2 or not falling.all() or not abar[-1] > 0:
        raise UserError(
            f"the noise schedule in `{what}` does not fall from 1 towards 0", "save the network's weights alone"
        )
    # How training weighs the errors of an image, or of v, is what tells it (denoising-diffusion-pytorch keeps it).
    snr = abar / (1 - abar)
    weight = values.get("loss_weight", values.get("p2_loss_weight"))
    for target, its_own in (("the image", snr), ("v", abar)):
        if weight is not None and weight.shape == snr.shape and np.allclose(weight, its_own, rtol=1e-2, atol=1e-6):
            raise UserError(
                f"the network in `{what}` predicts {target}, by its loss_weight",
                "one that predicts the noise is wanted",
            )
    return abar


def alike(said: np.ndarray, abar: np.ndarray) -> bool:
    """Whether two noise schedules are one, up to float32."""
    # abar[0] is next to 1, where float32 has a few digits of 1 - abar.
    return said.shape == abar.shape and bool(np.allclose(np.log(1 / said - 1), np.log(1 / abar - 1), rtol=0, atol=2e-3))


def check_noise(said: Mapping[str, Tensor], what: str) -> None:
    """Raises UserError where a file says another noise schedule than that of the continuous VP diffusion."""
    abar = of_file(said, what)
    if abar is not None and not alike(abar, discrete()):
        raise UserError(
            f"`{what}` says a noise schedule of {len(abar)} indices, which is not that of this score model",
            "`--score ddpm` and the guided-diffusion families take others",
        )


def fractional(table: Tensor, sigma: Tensor) -> Tensor:
    """The index at which the table of log sigma, interpolated, has the value log sigma; float64, inside the table."""
    log = sigma.log()
    above = torch.searchsorted(table, log).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    return above - 1 + ((log - low) / (high - low)).clamp(0, 1)
