"""What the diffusion U-Nets have in common: the embedding of a noise level, the attention core, resampling by two."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed(labels: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """(sin, cos) of labels (B,) times frequencies (K,): (B, K) each, float32."""
    # As published, even in a float64 network: at labels of 999, float32 angles are off by up to 3e-5, and the weights know these.
    angles = labels.float()[:, None] * frequencies
    return angles.sin(), angles.cos()


def embed_ddpm(labels: Tensor, width: int, shift: float = 1) -> Tensor:
    """Sines, then cosines, of labels (B,) at width/2 frequencies from 1 to 1/10000; (B, width), float32 (Ho et al. 2020). shift: 0 where
    the last one falls short of it."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=labels.device)
    return torch.cat(embed(labels, torch.exp(steps * -(math.log(10000) / (half - shift)))), dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt C) v, all (.., positions, C)."""
    # Written out: PyTorch's fused kernels have no second derivative, which the gradient through guidance asks for.
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


def named(**layers: nn.Module) -> nn.Sequential:
    """The layers in a row, under the names that they have in the published files."""
    return nn.Sequential(OrderedDict(layers))


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of Score SDE and EDM: up to 32 groups of at least 4 channels."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def upsample(x: Tensor) -> Tensor:
    """The nearest pixel: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """The mean of 2 x 2: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)
