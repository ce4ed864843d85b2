"""The mean and the deviation that images in [0,1] are normalised with: what of them cannot be meant. Torch-free, since a plan asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from purebench.errors import UserError


def check(mean: Sequence[Any], std: Sequence[Any], channels: int = 0) -> None:
    """Raises one UserError for all that is wrong with them. One number stands for every channel; channels: of the images, 0 where it is
    not known."""
    named = {"mean": mean, "std": std}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for values in named.values() for v in values)
    wrong, hint = [], "write mean=[0.49,0.48,0.45],std=[0.25,0.24,0.26]"
    for name, values in named.items():
        other = "std" if name == "mean" else "mean"
        if not values and named[other]:
            wrong.append(f"there is `{other}` and no `{name}`")
        # Of grey images and three numbers torch would make three channels.
        elif values and channels and len(values) not in (1, channels):
            wrong.append(f"`{name}` has {len(values)} numbers, and the images have {_channels(channels)}")
    if mean and std and len(mean) != len(std) and not channels:
        wrong.append(f"`mean` has {len(mean)} numbers and `std` {len(std)}")
    if not numbers:
        raise UserError("`mean` and `std` are not all numbers", hint)
    for name, values in named.items():
        if any(v > 1 for v in values):
            wrong.append(f"`{name}` has {max(values):g}, and images are in [0,1]")
            hint = f"divide by 255: {','.join(f'{k}={_divided(v)}' for k, v in named.items() if v)}"
    if any(v < 0 for v in mean):
        wrong.append(f"`mean` has {min(mean):g}, and images are in [0,1]")
    if any(v <= 0 for v in std):
        wrong.append(f"`std` has {min(std):g}, and is divided by")
    if wrong:
        raise UserError(f"the normalisation cannot be meant: {'; '.join(wrong)}", hint)


def _divided(values: Sequence[float]) -> str:
    """Those above 1 as of pixels up to 255; a deviation of 1, which divides by nothing, stays."""
    return f"[{','.join(f'{v / 255 if max(values) > 1 else v:.4g}' for v in values)}]"


def _channels(n: int) -> str:
    return f"{n} channel{'s' * (n != 1)}"
