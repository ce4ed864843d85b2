"""A recorded cell as the grid that makes it: what `purebench run FILE.toml` takes. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purebench.plan.resolved import Component
from purebench.records import store
from purebench.spec import Part, Value, parse

Grid = dict[str, Any]


def grid(cell: Mapping[str, Any], folder: Path | None = None) -> Grid:
    """The keys of a grid of one cell. Every parameter is written out: what a dataset's defaults are now is not what they were then.
    folder: that of the cell, which has the images of an attack that somebody brought."""
    parts = store.parts(cell)
    defense, attack = _full("defense", cell), _full("attack", cell)
    if attack.name == "given" and folder is not None:
        attack = Part(attack.name, (*attack.parameters, ("path", str(folder))))
    if "score" in parts and cell["score"].startswith("["):
        # Several in rotation are a parameter of the defense: a run has one score model.
        defense = Part(defense.name, (*defense.parameters, ("score", _value(cell["score"]))))
    found: Grid = {
        "dataset": cell["dataset"],
        "subset": cell["subset"],
        "classifier": cell["classifier"],
        "score": cell["score"],
        "defenses": [str(defense)],
        "attacks": [str(attack)],
        "threats": [cell["threat"]],
        "grads": [cell["gradient"]],
        "seeds": [cell["seed"]],
    }
    # What a cell does not use has no value to be given.
    unused = [key for key, value in found.items() if value in ("-", ["-"])]
    rotates = ["score"] if str(found["score"]).startswith("[") else []
    return {key: value for key, value in found.items() if key not in (*unused, *rotates)}


def toml(found: Grid) -> str:
    """The grid as a file."""
    # JSON's strings, numbers and flat lists are TOML's, too.
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in found.items())


def located(dataset: Component) -> str:
    """A dataset of the user's own with the place where it lies."""
    part = parse(dataset.text, "dataset")
    return str(Part(part.name, (*part.parameters, *dataset.where.items())))


def _full(kind: str, cell: Mapping[str, Any]) -> Part:
    """A part with every parameter that was recorded. Those that its name has are taken from there, where components are written out."""
    part = parse(cell[kind], kind)
    named = dict(part.parameters)
    values = {key: _value(value) for key, value in store.values_of(cell, kind).items() if value != ""}
    return Part(part.name, tuple((values | named).items()))


def _value(value: Any) -> Value:
    """A JSON value as that of a parameter; text with parameters is a component."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    if isinstance(value, str) and (":" in value or value.startswith(("(", "["))):
        return parse(f"x:y={value if value.startswith(('(', '[')) else f'({value})'}").get("y")
    return value
