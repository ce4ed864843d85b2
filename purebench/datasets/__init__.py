"""Datasets by name, their subsets, and their defaults (one TOML file each)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from purebench.errors import UserError

HERE = Path(__file__).parent


@cache
def defaults(name: str) -> dict[str, Any]:
    """The dataset's TOML: threat, subset, number of images, evaluations, rows, and parameters per defense and attack."""
    path = HERE / f"{name}.toml"
    if not path.is_file():
        raise UserError(
            f"there are no defaults for the dataset `{name}`", f"`{path.name}` is missing beside the other datasets"
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def order(size: int, subset: str) -> list[int]:
    """Dataset indices by position. `first`: as stored; `choice:S`: RandomState(S).choice(size, m, replace=False), whose first m
    entries are the same for every m (the subset rule of DiffPure, ScoreOpt, Lee and Kim, and COUP)."""
    if subset == "first":
        return list(range(size))
    import numpy as np

    return np.random.RandomState(int(subset.partition(":")[2])).permutation(size).tolist()
