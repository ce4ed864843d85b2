"""The mean and the deviation that images in [0,1] are normalised with: what of them cannot be meant. Torch-free, since a plan asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purebench.errors import UserError

if TYPE_CHECKING:
    from purebench.assets.contents import Normaliser

Values = tuple[float, ...]


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


def said(found: Sequence[Normaliser], file: str, certain: bool) -> tuple[Values, Values] | tuple[()]:
    """(mean, std) that a file says beside its weights; () where it says none. certain: whether its network does not normalise inside.
    UserError where it says them, and what they are, or whether they are meant, is not certain."""
    if not found:
        return ()
    named = f"`{file}` says a normalisation beside its weights, `{'`, `'.join(found[0].places)}`"
    plain = "or mean=[0],std=[1] if its network takes images in [0,1] as they are"
    if len({one.values for one in found}) > 1:
        others = ", ".join(f"`{one.places[0]}`" for one in found)
        raise UserError(
            f"`{file}` says several normalisations beside its weights: {others}", f"say it: mean=..,std=.., {plain}"
        )
    if not found[0].values:
        keys = ["".join(f"['{key}']" for key in place.split(".")) for place in found[0].places]
        read = ", ".join(f"`torch.load(FILE){key}.flatten().tolist()`" for key in keys)
        raise UserError(
            f"{named}, as tensors, which a plan does not read",
            f"say it: mean=[..],std=[..] with the numbers of {read}, {plain}",
        )
    mean, std = found[0].values
    try:
        check(mean, std)
    except UserError as error:
        raise UserError(f"{named}: {error.message}", f"say it: {error.hint}") from None
    if not certain or not found[0].plain:
        why = (
            "and which of its numbers are meant"
            if certain
            else "and its network may normalise by itself: what is meant"
        )
        raise UserError(f"{named}, {why} is not certain", f"say it: {written(mean, std)}, {plain}")
    return mean, std


def written(mean: Sequence[float], std: Sequence[float]) -> str:
    """As parameters have them, to float32's digits."""
    return ",".join(f"{key}=[{','.join(f'{v:.7g}' for v in values)}]" for key, values in (("mean", mean), ("std", std)))


def _divided(values: Sequence[float]) -> str:
    """Those above 1 as of pixels up to 255; a deviation of 1, which divides by nothing, stays."""
    return f"[{','.join(f'{v / 255 if max(values) > 1 else v:.4g}' for v in values)}]"


def _channels(n: int) -> str:
    return f"{n} channel{'s' * (n != 1)}"
