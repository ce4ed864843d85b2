"""How an attack's steps shrink as it goes: a decaying step finds with the same gradients what a constant one circles around."""

from __future__ import annotations

import math


def sizes(schedule: str, steps: int, first: float, last: float) -> list[float]:
    """The size of each of `steps` steps, as shares of eps: from `first` to `last`, both of them taken, in a straight line or along half a
    cosine (Loshchilov and Hutter 2017, eq. 5, without restarts); `constant`: `first` throughout. A single step is `first`."""
    if schedule == "constant" or steps == 1:
        return [first] * steps
    way = [i / (steps - 1) for i in range(steps)]
    if schedule == "cosine":
        way = [(1 - math.cos(math.pi * part)) / 2 for part in way]
    return [first * (1 - part) + last * part for part in way]
