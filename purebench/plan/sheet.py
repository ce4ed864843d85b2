"""A table's places as keys: what a record must be of to stand there. Torch-free; reads no records.

A key is a resolved cell without what cannot be known or chosen beforehand: versions, hashes, and the id of a transfer's source. A table
finds its records by keys alone, so there is no second language that says which cell belongs where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan import places as meeting
from purebench.plan.layouts import Cells, Layout, Number, listed

# What a defense does to clean images depends on none of these.
ATTACK = ("attack", "gradient", "threat")


@dataclass(frozen=True)
class Wanted:
    """One cell of a place: its key, that of the clean images of its defense, and how many images it is to be judged on."""

    key: str
    clean: str
    images: int
    seed: int
    stand_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """What stands where a row and a column meet. `wanted`: averaged over; of these the worst counts; each once per seed."""

    reported: Number | None
    wanted: tuple[tuple[tuple[Wanted, ...], ...], ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A table, and what every place of it is made of. `scaled`: a line that says what stands in for the paper's, or empty."""

    layout: Layout
    places: list[list[Place]]
    scaled: str = ""
    changed: str = ""  # what the command line says in place of the file


def key(cell: Mapping[str, Any]) -> str:
    """The key of a cell's data, as planned or as recorded."""
    names = {
        name: cell[name]
        for name in ("dataset", "subset", "classifier", "score", "defense", "gradient", "attack", "threat", "seed")
    }
    return json.dumps(names | {"values": _values(cell)}, sort_keys=True)


def clean_key(cell: Mapping[str, Any]) -> str:
    """The same of what it does to clean images."""
    # Neither gradient nor threat: the judge purifies clean images without either.
    names = {name: cell[name] for name in ("dataset", "subset", "classifier", "defense", "seed")}
    # A transfer onto a bare classifier is told apart by its source's score model, which its clean images never saw.
    score = cell["score"] if "score" in cell["parts"] else "-"
    values = {kind: of for kind, of in _values(cell).items() if kind not in (*ATTACK, "surrogate")}
    return json.dumps(names | {"score": score, "values": values}, sort_keys=True)


def _values(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: part["values"] for kind, part in cell["parts"].items() if "values" in part}


def of(layout: Layout, options: Cells, *, baselines: bool = False) -> Sheet:
    """The table with these values of the command line. Raises UserError for what no cell can be planned of."""
    known: dict[str, tuple[Wanted, ...]] = {}

    def wanted(cells: Cells) -> tuple[Wanted, ...]:
        name = repr(sorted(cells.items(), key=str))
        if name not in known:
            known[name] = tuple(_wanted(cells))
        return known[name]

    lines = []
    for row, places in zip(layout.rows, meeting.places(layout, options, baselines=baselines), strict=True):
        line = []
        for place in places:
            try:
                cells = tuple(tuple(wanted(one) for one in worst) for worst in place.cells)
            # A table has dozens of rows: which one is wrong is the first thing to know.
            except UserError as error:
                raise UserError(f"`{layout.id}`, row `{row.name}`: {error.message}", error.hint, error.code) from None
            line.append(Place(place.reported, cells, place.needs))
        lines.append(line)
    scaled = meeting.is_scaled(layout, options)
    own = {key: options[key] for key in (*meeting.IDENTITY, "subset", "seeds") if key in options and key != "dataset"}
    own |= {"dataset": options["dataset"]} if "dataset" in options and not scaled else {}
    # What the file says itself, said again, changes nothing.
    own = {key: value for key, value in own.items() if listed(layout.cells.get(key, [])) != listed(value)}
    changed = "; ".join(f"{key} = {_words(value)}" for key, value in own.items())
    return Sheet(layout, lines, _scaled(lines) if scaled else "", changed)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _wanted(cells: Cells) -> list[Wanted]:
    """One for each seed: a cell of a table is one cell of the plan."""
    return [
        Wanted(key(data), clean_key(data), job.images, job.cell.seed, (*job.stand_in, *_stand_in(cells, job)))
        for job in grid.jobs(meeting.as_grid(cells))
        for data in [job.cell.data()]
    ]


def _stand_in(cells: Cells, job: grid.Job) -> Iterator[str]:
    """What the table itself says to stand in for the paper's; a score model only where one is used."""
    for kind, why in (cells.get("stand_in") or {}).items():
        if kind != "score" or job.cell.scores:
            yield f"{kind}: {why}"


def _scaled(lines: list[list[Place]]) -> str:
    """`Scaled: digits, digits-cnn, digits-vp, Linf:0.2; nothing here compares with the paper.`"""
    keys = [
        json.loads(one.key) for line in lines for place in line for worst in place.wanted for of in worst for one in of
    ]
    said = [
        _some(list(dict.fromkeys(key[name] for key in keys if key[name] != "-")))
        for name in ("dataset", "classifier", "score", "threat")
    ]
    return f"Scaled: {', '.join(filter(None, said))}; nothing here compares with the paper."


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
