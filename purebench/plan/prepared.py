"""How a classifier's images were scaled and cut when its published number was made, as RobustBench and torchvision name it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

KEYS = ("resize", "crop", "interpolation")  # parameters of a dataset that is scaled and cut
# The shorter side is scaled (bilinear, else bicubic), then the centre is cut out; of either, what is not named is not done.
WORD = re.compile(r"(?P<bicubic>Bicubic)?(?:Res(?P<resize>\d+))?Crop(?P<crop>\d+)")
# Convolutions down to one mean per channel: such a network takes images of any size.
ANY_SIZE = ("resnet", "wideresnet", "wide_resnet")


def read(word: str) -> dict[str, Any]:
    """`BicubicRes256Crop224`, `Crop288` as the values of `KEYS`; {} for a word of another form, such as RobustBench's `Res224`, which
    squashes."""
    found = WORD.fullmatch(word)
    if not found:
        return {}
    interpolation = "bicubic" if found["bicubic"] else "bilinear"
    return {"resize": int(found["resize"] or 0), "crop": int(found["crop"]), "interpolation": interpolation}


def done(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what a dataset does with these parameters; {} where it leaves its images as they are."""
    size = values.get("size") or 0
    found = {"resize": values.get("resize", size), "crop": values.get("crop") or size}
    interpolation = values.get("interpolation", "bilinear")
    return {**found, "interpolation": interpolation} if found["crop"] else {}


def asked(given: Set[str]) -> bool:
    """Whether a user said how a dataset's images are scaled or cut."""
    return not given.isdisjoint({*KEYS, "size"})


def words(values: Mapping[str, Any]) -> str:
    """`scaled to 256 (bicubic) and cut to 224x224`."""
    scaled = f"scaled to {values['resize']} ({values['interpolation']}) and " if values["resize"] else ""
    return f"{scaled}cut to {values['crop']}x{values['crop']}"
