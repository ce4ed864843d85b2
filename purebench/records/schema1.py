"""Records of schema 1, read as those of schema 2. Nothing here looks at today's registry: what a record meant is fixed.

Schema 1 kept a cell's parameters, versions and hashes in three tables, and wrote a threat model and a score model also where a
cell used none: every attack but `null` had a threat model, and of its own defenses `none` and `gaussian` had no score model. Whether
a plug-in's had one, it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHOUT_SCORE = ("none", "gaussian")
WITH_SCORE = (
    "adp", "coup", "diffpure", "diffpure-ddpm", "diffpure-ld", "diffpure-ode", "ebm", "edm", "gdmp", "gns", "lm", "lm-coup", "one-shot",
    "reverse-sde", "scoreopt-n", "scoreopt-o",
)  # fmt: skip


def _name(part: str) -> str:
    return part.partition(":")[0]


def _purifiers(old: Mapping[str, Any]) -> list[str]:
    """The cell's own, and the one that a surrogate gradient differentiates."""
    surrogate = old["parameters"].get("surrogate")
    return [_name(old["defense"]), *([surrogate["defense"]] if surrogate else [])]


def certain(old: Mapping[str, Any]) -> bool:
    """Whether the record says which cell of now it is: not so of a plug-in's defense."""
    return all(purifier in (*WITHOUT_SCORE, *WITH_SCORE) for purifier in _purifiers(old))


def upgraded(old: Mapping[str, Any], source: Mapping[str, str] | None) -> dict[str, Any]:
    """A cell of schema 1 as one of schema 2. `source`: the `id` and the `score` that the source of a transfer has now; None where it is not
    known: the cell then keeps the source's old id, and its own score model."""
    scored = any(p not in WITHOUT_SCORE for p in _purifiers(old))
    parts: dict[str, dict[str, Any]] = {}
    for kind, version in old["versions"].items():
        if scored or _name(kind.replace(".", ":")) != "score":
            parts[kind] = {"version": version}
            parts[kind] |= {"hash": old["hashes"][kind]} if kind in old["hashes"] else {}
    for kind, values in old["parameters"].items():
        parts[kind]["values"] = dict(values)
    if "surrogate" in old["parameters"]:
        parts["surrogate"]["name"] = parts["surrogate"]["values"].pop("defense")
    kept = {k: v for k, v in old.items() if k not in ("parameters", "versions", "hashes")}
    taken_over = old.get("source", "")
    # What a transfer's images were made on, where its own defense uses none.
    unused = (source["score"] if source else old["score"]) if taken_over else "-"
    return kept | {
        "score": old["score"] if scored else unused,
        "threat": "-" if _name(old["attack"]) == "null" else old["threat"],
        "source": source["id"] if source else taken_over,
        "parts": parts,
    }
