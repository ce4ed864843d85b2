"""The names that cells had under schema 1 of `cell.json`: records that lie there are found, and a run goes on in them.

Schema 1 kept a cell's components as names with three tables beside them, and wrote a threat model and a score model also where a
cell used none; so a cell of now may have had several names."""

from __future__ import annotations

from collections.abc import Iterable

from purebench.plan.resolved import Component
from purebench.spec import Cell, ThreatModel, identity, rotation, show


def of(cell: Cell, threat: ThreatModel, models: Iterable[Component]) -> str:
    """The cell's id under schema 1, in a grid of this threat model and these score models, used or not."""
    new, models = cell.data(), list(models)
    score = show(rotation([m.resolved for m in models])) if len(models) > 1 else models[0].text if models else "-"
    parts = {kind: part for kind, part in new["parts"].items() if not kind.startswith("score")}
    for i, model in enumerate(models):
        digest = model.digest if cell.scores else model.published  # of one that was not used, what was known without it
        parts["score" if i == 0 else f"score.{i}"] = {"version": model.version, "hash": digest}
    named = {kind: new[kind] for kind in ("dataset", "subset", "classifier", "defense", "gradient", "attack", "seed")}
    surrogate = {"defense": cell.surrogate.name, **parts["surrogate"]["values"]} if cell.surrogate else None
    values = {kind: parts[kind]["values"] for kind in ("defense", "attack")}
    old = named | {
        "score": score,
        "threat": str(threat),
        "parameters": values | ({"surrogate": surrogate} if surrogate else {}),
        "versions": {kind: part["version"] for kind, part in parts.items()},
        "hashes": {kind: part["hash"] for kind, part in parts.items() if "hash" in part},
        "source": cell.source.aliases[0] if cell.source else "",
    }
    return identity(old)
