"""Tensors whose first dimension is a batch's rows: what every row is asked for, and given, by itself."""

from __future__ import annotations

from torch import Tensor


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """`values` (B,) as (B,1,..), one for each row of `like` (B,..)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def finite_rows(x: Tensor) -> Tensor:
    """(B,) bool: whether all values of a row of x (B,..) are finite."""
    return x.detach().isfinite().flatten(1).all(1)
