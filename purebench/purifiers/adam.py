"""Adam (Kingma and Ba 2015, Algorithm 1) as a step of a chain: its moments are state, and it can be differentiated through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def update(j: int, g: Tensor, u: Tensor, m: Tensor, v: Tensor, lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Update j = 0, 1, .. of u with gradient g -> (u, m, v), all of one shape; m = v = 0 before the first."""
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    m_hat = m / (1 - BETA1 ** (j + 1))
    return u - lr * m_hat / (root(v) / math.sqrt(1 - BETA2 ** (j + 1)) + EPS), m, v


def root(v: Tensor) -> Tensor:
    """sqrt(v) with the gradient 0, not NaN, at v = 0: where the gradient has always been zero."""
    some = v > 0
    return torch.where(some, torch.where(some, v, 1).sqrt(), 0)
