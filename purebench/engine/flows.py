"""Images moved by a flow (spatially transformed adversarial examples, Xiao et al. 2018): how a flow is rendered, and whether an image is
what a flow makes of another. The attack and the judge share it, so that neither believes the other.

A flow is (B,2,H,W): to each pixel what is added to the place from where it is read, [:,0] across and [:,1] down, in the coordinates of
`grid_sample`, in which an image reaches from -1 to 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purebench.engine.rows import per_row

SAME = 1e-5  # of a rendered value: the same image on another shape or device differs by rounding


def render(x: Tensor, flow: Tensor) -> Tensor:
    """x (B,C,H,W) in [0,1] read at the moved places, like x and in [0,1]; differentiable in both. Bilinear, black beyond the edge:
    `affine_grid` and `grid_sample` with their defaults, as published."""
    identity = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    places = F.affine_grid(identity, list(x.shape), align_corners=False) + flow.permute(0, 2, 3, 1)
    # Weights of four neighbours sum to one but for rounding.
    return F.grid_sample(x, places, align_corners=False).clamp(0, 1)


def largest(flow: Tensor) -> Tensor:
    """(B,) the largest component of each flow, without its sign."""
    return flow.flatten(1).abs().amax(1)


def holds(x_adv: Tensor, x: Tensor, flow: Tensor, bound: float) -> Tensor:
    """(B,) bool: whether the flow is finite, no component is above `bound` (up to 1e-6 of it), and it makes x_adv of x."""
    inside = largest(flow) <= bound * (1 + 1e-6)  # false of what is NaN
    made = render(x, flow.where(per_row(inside, flow), 0))
    return inside & ((made - x_adv).flatten(1).abs().amax(1) <= SAME)
