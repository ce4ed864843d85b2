"""Records of schema 1, read as those of schema 2. Nothing here looks at today's registry: what a record meant is fixed.

Schema 1 kept a cell's parameters, versions and hashes in three tables, and wrote a threat model and a score model also where a
cell used none: every attack but `null` had a threat model, and of its defenses `none` and `gaussian` had no score model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHOUT_SCORE = ("none", "gaussian")


def _name(part: str) -> str:
    return part.partition(":")[0]


def upgraded(old: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """A cell of schema 1 as one of schema 2. `ids`: old id -> new one, of the cells that transfers read; a source that is not among
    them keeps its old id."""
    surrogate = dict(old["parameters"].get("surrogate", {}))
    purifiers = [_name(old["defense"]), *([surrogate["defense"]] if surrogate else [])]
    scored = any(p not in WITHOUT_SCORE for p in purifiers)
    parts: dict[str, dict[str, Any]] = {}
    for kind, version in old["versions"].items():
        if scored or _name(kind.replace(".", ":")) != "score":
            parts[kind] = {"version": version}
            parts[kind] |= {"hash": old["hashes"][kind]} if kind in old["hashes"] else {}
    for kind, values in old["parameters"].items():
        parts[kind]["values"] = dict(values)
    if surrogate:
        parts["surrogate"]["name"] = parts["surrogate"]["values"].pop("defense")
    kept = {k: v for k, v in old.items() if k not in ("parameters", "versions", "hashes")}
    return kept | {
        "score": old["score"] if scored or old.get("source") else "-",
        "threat": "-" if _name(old["attack"]) == "null" else old["threat"],
        "source": ids.get(old.get("source", ""), old.get("source", "")),
        "parts": parts,
    }
