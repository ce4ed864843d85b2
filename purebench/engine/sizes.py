"""Images at another size: score models see those that they were trained on."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,H,W) -> (B,C,*size), bilinear, align_corners=False."""
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
