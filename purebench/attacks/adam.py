"""Adam (Kingma and Ba 2015, Algorithm 1) with its defaults, for attacks that step by it."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class Adam:
    """Not torch's: its fused operations round otherwise at a tensor's end than within, and an image's bits would depend on its place."""

    def __init__(self, like: Tensor):
        self.m, self.v, self.t = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, grad: Tensor) -> Tensor:
        """The direction of descent for lr 1, like grad; each value for itself."""
        self.t += 1
        self.m = BETA1 * self.m + (1 - BETA1) * grad
        self.v = BETA2 * self.v + (1 - BETA2) * (grad * grad)
        mean, square = self.m / (1 - BETA1**self.t), self.v / (1 - BETA2**self.t)
        return -mean / (square.sqrt() + EPS)
