"""The two views of a score model, each from the other.

With B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 and abar = exp(-B), the VP state at time t is x_t = sqrt(abar) (x + sigma n),
sigma(t)^2 = (1 - abar) / abar = exp(B) - 1: a VP network is a denoiser in other units, and the reverse
(Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix C.1).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BETA_MIN, BETA_MAX = 0.1, 20.0  # of the continuous schedule; the discrete one has a thousandth of them, over 1000 steps
Level = float | Tensor  # a noise level sigma > 0 in [-1,1] units: one for all rows, or (B,1,1,1)


def beta(t: float) -> float:
    """beta(t) = 0.1 + 19.9 t, t in [0,1]."""
    return BETA_MIN + (BETA_MAX - BETA_MIN) * t


def integral(t: Any) -> Any:
    """B(t), of a number or a tensor."""
    return (BETA_MAX - BETA_MIN) / 2 * t**2 + BETA_MIN * t


@cache
def betas() -> np.ndarray:
    """beta[i], i = 0..999, of the discrete schedule (Ho et al. 2020, section 4): from 1e-4 to 0.02; float64."""
    return np.linspace(BETA_MIN / 1000, BETA_MAX / 1000, 1000)


@cache
def discrete() -> np.ndarray:
    """abar[i], i = 0..999, of the discrete schedule; float64."""
    return np.cumprod(1 - betas())


class Score:
    """A score model. Images are float, (B,C,H,W) on the [-1,1] scale; t in (0,1]; sigma > 0 in the same units. Deterministic.

    An adapter defines `direction`, and whatever else its network says more directly. `size`: (C,H,W); `sigma_min`,
    `sigma_max`: the noise levels that the network was trained on.
    """

    network: nn.Module
    size: tuple[int, int, int]
    sigma_min: float
    sigma_max: float

    def to(self, device: torch.device) -> Score:
        self.network.to(device)
        return self

    @staticmethod
    def sigma(t: float) -> float:
        """The denoiser view's noise level at time t: std(t) / sqrt(abar(t))."""
        return math.sqrt(math.expm1(integral(t)))

    @staticmethod
    def time(sigma: Level) -> Level:
        """The inverse of `sigma`; of a tensor in float64."""
        width = BETA_MAX - BETA_MIN
        if isinstance(sigma, Tensor):
            return ((BETA_MIN**2 + 2 * width * (sigma.double() ** 2).log1p()).sqrt() - BETA_MIN) / width
        return (math.sqrt(BETA_MIN**2 + 2 * width * math.log1p(sigma**2)) - BETA_MIN) / width

    @staticmethod
    def std(t: float) -> float:
        """sqrt(1 - abar(t)), the noise in the VP state at time t."""
        return math.sqrt(-math.expm1(-integral(t)))

    @staticmethod
    def sigma_index(i: int) -> float:
        """The denoiser view's noise level at index i = 0..999 of the discrete schedule."""
        return math.sqrt(1 / discrete()[i] - 1)

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        """sigma * grad log p(x; sigma) for x = clean + sigma noise."""
        raise NotImplementedError

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        """E[clean | x] for x = clean + sigma noise."""
        return x + sigma * self.direction(x, sigma)

    def eps(self, x: Tensor, t: float) -> Tensor:
        """The noise predicted in the VP state x at time t."""
        sigma = self.sigma(t)
        return -self.direction(x * math.sqrt(1 + sigma**2), sigma)

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        """The same at index i = 0..999 of the discrete schedule, for ancestral samplers."""
        sigma = self.sigma_index(i)
        return -self.direction(x * math.sqrt(1 + sigma**2), sigma)

    def score(self, x: Tensor, t: float) -> Tensor:
        """grad log p_t of the VP state x at time t."""
        return -self.eps(x, t) / self.std(t)


def rows(value: float | Tensor, x: Tensor) -> Tensor:
    """`value` for every row: (B,) in the type and on the device of x."""
    if isinstance(value, Tensor):
        return value.flatten().to(x.dtype)
    return torch.full((len(x),), value, dtype=x.dtype, device=x.device)


def shrink(x: Tensor, sigma: Level) -> Tensor:
    """x = clean + sigma noise as the VP state sqrt(abar) x, abar = 1 / (1 + sigma^2)."""
    return x / (1 + sigma**2).sqrt() if isinstance(sigma, Tensor) else x / math.sqrt(1 + sigma**2)
