"""The arguments of a call as the texts that a command line would have: one or several, objects registered under a name."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Mapping
from typing import Any

from purebench import foreign
from purebench.errors import UserError, unknown
from purebench.plan.grid import Request
from purebench.spec import Part, ThreatModel

# Argument that may be one or several -> its name in a grid, which is understood, too.
PLURALS = {"defense": "defenses", "attack": "attacks", "threat": "threats", "grad": "grads", "seed": "seeds"}
PARTS = {  # argument -> kind
    "defense": "defense",
    "attack": "attack",
    "grad": "gradient",
    "dataset": "dataset",
    "classifier": "classifier",
    "score": "score",
}
OBJECTS = ("dataset", "classifier", "score", "defense", "attack")
EXAMPLES = {
    "defense": "diffpure:t=0.1",
    "attack": "pgd-eot:steps=20",
    "grad": "exact",
    "dataset": "digits",
    "classifier": "digits-cnn",
    "score": "digits-vp",
}


def check_words(function: Any, misspelt: Mapping[str, object]) -> None:
    """Raises UserError for an argument that a function does not have."""
    for name in misspelt:
        raise unknown("argument", name, [key for key in inspect.signature(function).parameters if key != "misspelt"])


def merged(arguments: dict[str, Any], plural: Mapping[str, object]) -> dict[str, Any]:
    """The arguments by the command's names, with those by a grid's. Raises UserError for one that there is not, or that is given twice."""
    singular = {name: argument for argument, name in PLURALS.items()}
    for name, value in plural.items():
        if name not in singular:
            raise unknown("argument", name, [*arguments, *singular])
        if arguments[singular[name]] is not None:
            raise UserError(f"`{singular[name]}` and `{name}` are the same argument", "give one of them")
        arguments[singular[name]] = value
    return arguments


def objects(arguments: Mapping[str, object]) -> list[object]:
    """Those of them that are no text."""
    return [one for name in PARTS for one in _several(arguments[name]) if not isinstance(one, str | Part)]


def request(preset: object, arguments: Mapping[str, Any]) -> Request:
    """What a call asks for. Raises UserError for an argument of another type."""
    if isinstance(preset, os.PathLike):
        preset = os.fspath(preset)
    if preset is not None and not isinstance(preset, str):
        raise UserError(
            f"a preset is a name or a file, got {shown(preset)}", 'write "quick", or give a defense as `defense=..`'
        )
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        key = PLURALS.get(name, name)
        if name == "threat":
            found[key] = tuple(map(_threat, _several(value)))
        elif name == "seed":
            found[key] = tuple(_whole("seed", seed) for seed in _several(value))
        elif name == "only":
            found[key] = tuple(_word("only", word) for word in _several(value))
        elif name in PLURALS:
            found[key] = tuple(part(name, one) for one in _several(value))
        elif name in PARTS:
            found[key] = None if value is None else part(name, value)
        elif name in ("precision", "judge_precision"):
            found[key] = None if value is None else _word(name, value)
        elif name in ("images", "subset", "evals"):
            found[key] = None if value is None else _whole(name, value)
        else:
            found[key] = truth(name, value)
    return Request(preset, **found)


def part(name: str, value: object) -> str:
    """A PART, or an object under the name by which the plan finds it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Part):
        return str(value)
    check_object(name, value)
    return foreign.register(PARTS[name], value)


def check_object(name: str, value: object) -> None:
    """Raises UserError for what is no component in the place of a PART."""
    example = f'write {name}="{EXAMPLES[name]}"'
    if isinstance(value, type):
        raise UserError(f"`{name}={value.__name__}` is a class", f"give an object of it: {value.__name__}(..)")
    if value is None or isinstance(value, bool | int | float | bytes) or PARTS[name] not in OBJECTS:
        raise UserError(f"`{name}={shown(value)}` is no PART", example)
    # Its order of arguments is easily forgotten.
    if name != "dataset" and not callable(value) and hasattr(value, "shape"):
        raise UserError(
            f"`{name}` is an array of shape {tuple(value.shape)}", "the order is: defense, classifier, x, y"
        )


def shown(value: object, width: int = 60) -> str:
    """A value on one line, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else f"{text[: width - 2]}.."


def truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"`{name}={shown(value)}` is neither True nor False", f"write {name}=True, or leave it out")
    return value


def count(name: str, value: object) -> int | None:
    """A whole number, or None."""
    return None if value is None else _whole(name, value)


def _several(value: object) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | range) else [value]


def _whole(name: str, value: Any) -> int:
    try:
        # A bool is an int to Python, and a mistake here; NumPy's integers are good.
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"`{name}={shown(value)}` is no whole number", f"write {name}=8") from None


def _word(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"`{name}={shown(value)}` is no word", f'write {name}="coup"')
    return value


def _threat(value: object) -> str:
    if isinstance(value, ThreatModel):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"`threat={shown(value)}` names no norm", 'write threat="Linf:8/255" or threat="L2:0.5"')
    return value
