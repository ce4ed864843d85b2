"""Datasets by name, their subsets, and their defaults (one TOML file each). It may import `assets` and `errors`;
images are read when they are asked for. Begin reading at `defaults`, then `images.Images`.

A subset is a rule that says which dataset index each position 0, 1, 2, .. of a run has:
  first        as stored (RobustBench's first n)
  choice:S     RandomState(S).choice(n, m, replace=False): one draw (ScoreOpt, Lee and Kim, COUP: S = 0, m = 512)
  groups:GxM   G such draws of M images, seeds 0 .. G-1, one after the other (DiffPure); an index may come twice
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from purebench import assets
from purebench.errors import UserError, unknown

Table = dict[str, Any]  # of a TOML file: what its values are is known by whoever reads the key
HERE = Path(__file__).parent
ALIASES = {
    "scoreopt": "choice:0",  # ScoreOpt, 5: 512 images
    "lee-kim": "choice:0",  # Lee and Kim 2023, load_data.py: 512 images
    "coup": "choice:0",  # COUP, 5.1: 512 images
    "diffpure-autoattack": "groups:8x64",  # DiffPure run_scripts/cifar10: data seeds 0..7, num_sub 64
    "diffpure-bpda": "groups:5x200",  # DiffPure run_scripts/cifar10/run_cifar_bpda_eot.sh: data seeds 0..4, num_sub 200
    "diffpure-imagenet": "groups:32x16",  # DiffPure run_scripts/imagenet: data seeds 0..31, num_sub 16
    # DiffPure takes 2 % of CelebA-HQ's validation part and then the first batch of 8: a choice without replacement is the start of a
    # permutation, so these are the first 8 of the choice, whatever the 2 % come to.
    "diffpure-celebahq": "groups:64x8",
    "celeba:64x8": "groups:64x8",
    "robustbench": "first",
}
RULE = re.compile(r"first|choice:(?P<seed>\d{1,10})|groups:(?P<groups>\d{1,3})x(?P<each>\d{1,6})")


@cache
def defaults(name: str) -> Table:
    """The dataset's TOML: threat, subset, number of images, evaluations, rows, and parameters per defense and attack. `base` names a
    dataset whose values hold where the file has none; but for those that `without` names, at the top and of every defense."""
    path = HERE / f"{name}.toml"
    # A plug-in's dataset has none.
    if not path.is_file():
        return {"images": 100, "evals": 10, "subset": "first", "rows": 64}
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    base, without = own.pop("base", ""), own.pop("without", [])
    if not base:
        return own
    # Taken away before the own values are laid over it: a dataset may give up its base's score models and name one of its own.
    return _over(_less(defaults(base), without), own)


def base(name: str, values: Mapping[str, Any]) -> str:
    """The dataset whose defaults hold: of one that is made of another, that other."""
    inner = values.get("of")
    if not inner:
        return name
    return (
        str(inner).strip("()").partition(":")[0] if isinstance(inner, str) else base(inner.name, dict(inner.parameters))
    )


def supplied(own: Mapping[str, str], folder: object = "") -> tuple[Path, str]:
    """Where a dataset lies that only its user can supply, there or not, and what the user said of it: the parameter `folder`, else the
    environment variable that INFO's `own` names; empty where it is the cache's own place."""
    given = str(folder) or os.environ.get(own["variable"], "")
    return (Path(os.path.expanduser(given)) if given else assets.path(own["asset"])), given


def _less(table: Table, without: list[str]) -> Table:
    """The table, and those in it, without these keys; no empty tables."""
    rest = {k: _less(v, without) if isinstance(v, dict) else v for k, v in table.items() if k not in without}
    return {k: v for k, v in rest.items() if v != {}}


def _over(base: Table, own: Table) -> Table:
    """`own`, completed by the base, table by table."""
    tables = {k: _over(base[k], v) for k, v in own.items() if isinstance(v, dict) and k in base}
    return base | own | tables


def valid(subset: str) -> str:
    """The canonical rule that `subset` (a rule or a name of ALIASES) stands for. Raises UserError if there is none."""
    rule = ALIASES.get(subset, subset)
    found = RULE.fullmatch(rule)
    if not found:
        if subset.partition(":")[0] in ("choice", "groups"):
            raise UserError(
                f"cannot read the subset `{subset}`",
                "write first, choice:SEED or groups:GxM, such as choice:0 or groups:8x64",
            )
        raise unknown("subset", subset, ["first", "choice:SEED", "groups:GxM", *ALIASES])
    # Through int, so that choice:00 and choice:0, which are the same images, are the same cell.
    if found["seed"]:
        # What RandomState takes.
        if int(found["seed"]) >= 2**32:
            raise UserError(f"there is no subset `{subset}`", "a seed is a whole number from 0 to 4294967295")
        return f"choice:{int(found['seed'])}"
    if found["groups"]:
        if not int(found["groups"]) or not int(found["each"]):
            raise UserError(f"the subset `{subset}` is empty", "write groups:GxM with G and M of at least 1")
        return f"groups:{int(found['groups'])}x{int(found['each'])}"
    return rule


def _rule(subset: str) -> tuple[str, list[int]]:
    """Its kind and numbers: ("first", []), ("choice", [seed]) or ("groups", [groups, images in each])."""
    kind, _, numbers = valid(subset).partition(":")
    return kind, [int(number) for number in numbers.split("x") if number]


def describe(subset: str) -> str:
    """One line for help texts."""
    match _rule(subset):
        case "choice", [seed]:
            return f"RandomState({seed}).choice(n, m, replace=False)"
        case "groups", [groups, each]:
            seeds = f"RandomState(0) to RandomState({groups - 1})"
            return f"{groups} choices of {each} images, {seeds}; an image may come twice"
    return "the first images, as stored"


def capacity(size: int, subset: str) -> int:
    """How many positions the subset has on a dataset of `size` images. UserError if a group is larger than that."""
    kind, numbers = _rule(subset)
    if kind != "groups":
        return size
    groups, each = numbers
    if each > size:
        raise UserError(f"the subset `{subset}` is not possible: there are {size} images", f"M is at most {size}")
    return groups * each


def order(size: int, subset: str) -> list[int]:
    """Dataset indices by position, `capacity(size, subset)` of them; the first m are those of every run of m images.

    With `groups` an index may come at several positions, as in DiffPure's lists. UserError as `capacity`."""
    capacity(size, subset)
    kind, numbers = _rule(subset)
    if kind == "first":
        return list(range(size))
    # Here and not above: planning and `list` import this module, and do without numpy.
    import numpy as np

    def choice(seed: int) -> list[int]:
        # choice(size, m, replace=False) is the first m of a permutation, for every m.
        return np.random.RandomState(seed).permutation(size).tolist()

    if kind == "choice":
        return choice(*numbers)
    groups, each = numbers
    return [index for seed in range(groups) for index in choice(seed)[:each]]


def index_hash(indices: Sequence[int]) -> str:
    """sha256 of the indices as little-endian int64, in their order: says which images a number is of."""
    return hashlib.sha256(struct.pack(f"<{len(indices)}q", *indices)).hexdigest()
