"""Cells by what a command line says of them: `coup`, `coup:steps=10`, `pgd-eot`, `Linf:8/255`. Torch-free.

What is not said may be anything: `coup` is every cell of COUP, whatever its parameters. What is said is held against the values that the
record resolved, so that `coup:steps=10` finds a cell which is called `coup` since 10 is its dataset's default; `median#3fa2c1` is the one
whose hash begins so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from purebench import registry, spec
from purebench.errors import UserError, unknown
from purebench.records import store
from purebench.records.store import CellData, Log
from purebench.report import coded
from purebench.spec import Part

PARTS = ("dataset", "classifier", "score", "defense", "attack", "gradient")


def read(kind: str, text: str) -> str:
    """The name of a part, a threat model or a seed in the spelling of records. Raises UserError for what cannot be one."""
    if kind == "threat":
        return str(spec.threat(text))
    if kind in PARTS and not text.startswith("["):
        part = spec.parse(text, kind)
        if part.name in registry.names(kind):
            registry.check_parameters(kind, part.name, dict(part.parameters))
        return str(part)
    return text.strip()


def check_known(kind: str, text: str, logs: Iterable[Log]) -> None:
    """Raises UserError, with a did-you-mean, for a name that neither purebench nor a record has: it can only be a typing error."""
    if kind not in PARTS or text.startswith("["):
        return
    names = {*registry.names(kind), *(spec.parse(log.cell[kind]).name for log in logs if _single(log.cell[kind]))}
    if (name := spec.parse(text).name.partition("#")[0]) not in names:
        raise unknown(kind, name, names - {"-"}, see=f"purebench list {kind}s")


def fits(cell: CellData, kind: str, text: str) -> bool:
    """Whether a cell is of what `read` gave."""
    own = str(cell[kind])
    if own == text or kind not in PARTS or not (_single(own) and _single(text)):
        return own == text
    asked, part = spec.parse(text), spec.parse(own)
    name, _, digits = asked.name.partition("#")
    if name != part.name or not coded.of(cell, kind).startswith(digits):
        return False
    values = _values(cell, kind, part)
    return all(key in values and values[key] == spec.recorded(key, value) for key, value in asked.parameters)


def _values(cell: CellData, kind: str, part: Part) -> Mapping[str, Any]:
    """Every value of a cell's part: as recorded, and of what a record leaves out, since it is at its default, that one."""
    known = registry.parameters(kind, part.name) if part.name in registry.names(kind) else {}
    named = {key: spec.recorded(key, value) for key, value in part.parameters}
    return {key: spec.recorded(key, value) for key, value in known.items()} | store.values_of(cell, kind) | named


def _single(text: str) -> bool:
    """Not score models in rotation, which are a list of parts."""
    return not text.startswith("[")


def check(logs: Iterable[Log], wanted: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The wanted names of every kind as `read` spells them. Raises UserError for a typing error, and for a name that no record has."""
    logs = list(logs)
    asked = {kind: [read(kind, text) for text in texts] for kind, texts in wanted.items()}
    for kind, texts in asked.items():
        for text in texts:
            check_known(kind, text, logs)
            if logs and not any(fits(log.cell, kind, text) for log in logs):
                there = sorted({str(log.cell[kind]) for log in logs})
                raise UserError(f"no record is of the {kind} `{text}`", f"there are: {', '.join(there)}")
    return asked


def chosen(logs: Iterable[Log], asked: Mapping[str, Iterable[str]]) -> list[Log]:
    """The logs that fit one of the names of every kind that has any."""
    return [
        log
        for log in logs
        if all(any(fits(log.cell, kind, text) for text in texts) for kind, texts in asked.items() if texts)
    ]
