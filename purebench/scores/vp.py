"""Adapter for networks that predict the noise of a variance-preserving diffusion (Song et al. 2021; Ho et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from purebench.nfe import watch

BETA_MIN, BETA_MAX = 0.1, 20.0


class VPScore:
    """Both views of a network eps(x, labels), labels = 999 t, with beta(t) = 0.1 + 19.9 t.

    Images are float, (B,C,H,W) on the [-1,1] scale; t in (0,1]; sigma > 0 in the same units. Deterministic.
    `size`: (C,H,W); `sigma_min`, `sigma_max`: the noise levels the network was trained on.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int], t_min: float = 1e-3):
        self.network, self.size = watch(network), size
        self.sigma_min, self.sigma_max = self.sigma(t_min), self.sigma(1.0)

    def to(self, device: torch.device) -> VPScore:
        self.network.to(device)
        return self

    @staticmethod
    def sigma(t: float) -> float:
        """The denoiser view's noise level at time t: std(t) / sqrt(abar(t))."""
        return math.sqrt(math.expm1((BETA_MAX - BETA_MIN) / 2 * t**2 + BETA_MIN * t))

    @staticmethod
    def time(sigma: float) -> float:
        """The inverse of `sigma`."""
        width = BETA_MAX - BETA_MIN
        return (math.sqrt(BETA_MIN**2 + 2 * width * math.log1p(sigma**2)) - BETA_MIN) / width

    @staticmethod
    def std(t: float) -> float:
        """sqrt(1 - abar(t)), the noise in the VP state at time t."""
        return math.sqrt(-math.expm1(-(BETA_MAX - BETA_MIN) / 2 * t**2 - BETA_MIN * t))

    def eps_label(self, x: Tensor, label: float) -> Tensor:
        return self.network(x, torch.full((len(x),), label, dtype=x.dtype, device=x.device))

    def eps(self, x: Tensor, t: float) -> Tensor:
        """The noise predicted in the VP state x at time t."""
        return self.eps_label(x, 999 * t)

    def eps_index(self, x: Tensor, i: int) -> Tensor:
        """The same at index i = 0..999 of the discrete schedule, for ancestral samplers."""
        return self.eps_label(x, float(i))

    def score(self, x: Tensor, t: float) -> Tensor:
        """grad log p_t of the VP state x at time t."""
        return -self.eps(x, t) / self.std(t)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[clean | x] for x = clean + sigma noise."""
        return x + sigma * self.direction(x, sigma)

    def direction(self, x: Tensor, sigma: float) -> Tensor:
        """sigma * grad log p(x; sigma) for x = clean + sigma noise."""
        return -self.eps(x / math.sqrt(1 + sigma**2), self.time(sigma))
