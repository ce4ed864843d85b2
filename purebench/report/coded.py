"""Two components of one name: told apart by the first digits of their hashes, `median#3fa2c1`, and only where both are shown. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from purebench.records import store
from purebench.records.store import Log

KINDS = ("dataset", "classifier", "score", "defense", "attack")
DIGITS = 6

Names = dict[str, str]  # kind -> the name that a cell has of it


def of(cell: Mapping[str, Any], kind: str) -> str:
    """The hash of a cell's part, without its algorithm; of score models in rotation all of theirs. "" where none is recorded."""
    parts = store.parts(cell)
    kinds = [k for k in parts if k == kind or (kind == "score" and k.startswith("score."))]
    return "".join(str(parts[k]["hash"] or "").rpartition(":")[2] for k in kinds)


def names(logs: Iterable[Log]) -> list[Names]:
    """Of each log the names of KINDS; where several hashes are behind one, with the digits of its own."""
    logs = list(logs)
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for log in logs:
        for kind in KINDS:
            # Before a file was here its hash was not known: that is no other file.
            if digest := of(log.cell, kind):
                found[kind, _name(log.cell[kind])].add(digest)
    several = {key for key, digests in found.items() if len(digests) > 1}
    return [{kind: _marked(log.cell, kind, several) for kind in KINDS} for log in logs]


def _name(text: str) -> str:
    # Score models in rotation are known by the whole list.
    return text if text.startswith("[") else text.partition(":")[0]


def _marked(cell: Mapping[str, Any], kind: str, several: Iterable[tuple[str, str]]) -> str:
    text, digest = str(cell[kind]), of(cell, kind)
    name = _name(text)
    return f"{name}#{digest[:DIGITS]}{text[len(name) :]}" if digest and (kind, name) in several else text
