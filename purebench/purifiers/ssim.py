"""Structural similarity (Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE, SIGMA = 11, 1.5  # the Gaussian window
C1, C2 = 0.01**2, 0.03**2  # for a dynamic range of 1, whatever the images' own


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(B,): mean structural similarity of a and b (B,C,H,W); 1 for equal images. Windows at the edge are filled with zeros."""
    channels = a.shape[1]
    offset = torch.arange(SIZE, dtype=a.dtype, device=a.device) - SIZE // 2
    bell = torch.exp(-offset.square() / (2 * SIGMA**2))
    bell = bell / bell.sum()
    window = (bell[:, None] * bell).expand(channels, 1, SIZE, SIZE)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=SIZE // 2, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    both = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    structure = (2 * both + C2) / (var_a + var_b + C2)
    return (luminance * structure).flatten(1).mean(1)
