"""Where the rows and columns of a table meet: what is reported there, and the cells that are to be measured. Torch-free.

What one cell asks for is `[cells]`, overridden by its row's `cells`, then by its column's, then by the command line, which may not
contradict a heading.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from purebench import assets, registry
from purebench.errors import UserError, unknown
from purebench.plan.layouts import (
    CLEAN,
    WORST,
    Cells,
    Column,
    Layout,
    Number,
    Row,
    cells_of,
    listed,
    metric,
    of_control,
)
from purebench.plan.scaled import Axes, fill
from purebench.spec import CONTROLS, parse

if TYPE_CHECKING:
    from purebench.plan.grid import Request

GRID = {"defense": "defenses", "attack": "attacks", "threat": "threats", "grad": "grads"}  # a cell's key -> a grid's
IDENTITY = ("dataset", "classifier", "score", *WORST)  # what a number is of; the other keys say how much of it


@dataclass(frozen=True)
class Place:
    """Where a row and a column meet. `cells`: what is to be measured, empty for what is not; the outer tuple is averaged over, of the
    inner one the worst counts. Each is a grid of one cell, but for its seeds. `needs`: what does not exist yet."""

    reported: Number | None = None
    cells: tuple[tuple[Cells, ...], ...] = ()
    needs: tuple[str, ...] = ()


def places(layout: Layout, options: Cells | None = None, *, baselines: bool = False) -> list[list[Place]]:
    """Of every row and column what is reported, and what is to be measured. options: cells' keys that the command line gave; they win.

    With `dataset = "digits"` among them the table is scaled: `[scaled]`, and the values of `datasets/digits.toml`, take the place of the
    paper's, but for the parameters that the table varies. Raises UserError for a dataset that is not the table's.
    """
    options = options or {}
    axes = Axes(layout) if is_scaled(layout, options) else None
    return [[_place(layout, row, column, options, axes, baselines) for column in layout.columns] for row in layout.rows]


def _place(layout: Layout, row: Row, column: Column, options: Cells, axes: Axes | None, baselines: bool) -> Place:
    reported, column = _reported(row, column), metric(row, column)
    if row.cells is None and baselines and row.model:
        # A quoted row has no cells; its published model stands for them, bare.
        row = replace(row, cells={"defense": "none", "classifier": row.model})
    if row.cells is None or not column.metric or column.panel not in ("", row.panel):
        return Place(reported)
    if needs := lacking((*row.needs, *column.needs), scaled=axes is not None):
        return Place(reported, needs=needs)
    if axes:
        # The digits may be corrupted ones: `--dataset digits` says that the table is scaled, and no more.
        asked = axes.scale(row, column) | {key: value for key, value in options.items() if key != "dataset"}
    else:
        asked = cells_of(layout, row, column) | options
    if of_control(column.metric):
        asked["attack"] = "null"
    return Place(reported, _expanded(asked, column))


def lacking(needs: Iterable[str], *, scaled: bool = False) -> tuple[str, ...]:
    """Of `attack:NAME`, `metric:NAME` and `asset:NAME` those that do not exist yet. A scaled table needs no network but the digits'."""
    found = []
    for name in needs:
        kind, _, word = name.partition(":")
        trained = assets.cache_folder() / "trained" / f"{word}.safetensors"
        here = kind == "asset" and (scaled or trained.is_file() or (word in assets.table() and assets.present(word)))
        if not here and not (kind == "attack" and word in registry.names("attack")):
            found.append(name)
    return tuple(found)


def _reported(row: Row, column: Column) -> Number | None:
    value = row.numbers.get(column.number)
    return value[column.place] if isinstance(value, tuple) and column.place is not None else value


def is_scaled(layout: Layout, options: Cells) -> bool:
    """Whether the table is run on the embedded digits in place of its own dataset."""
    if "dataset" not in options:
        return False
    given = parse(options["dataset"], "dataset").name
    # Not parsed: `{corruption}` in it is not filled in yet.
    theirs = {name.partition(":")[0] for name in _datasets(layout)}
    if given == "digits" and "digits" not in theirs:
        return True
    info = registry.info("dataset", given)
    sets = {registry.info("dataset", name).get("training_set", name) for name in theirs}
    if given not in theirs and info.get("training_set", given) not in sets and info.get("training_set", given):
        raise UserError(
            f"`{layout.id}` is a table of {', '.join(sorted(theirs))}, and `--dataset {given}` is another dataset",
            "leave it out, or take `--dataset digits` for a small run of everything in it",
        )
    return False


def _datasets(layout: Layout) -> list[str]:
    """The datasets that the table's cells name."""
    given = [layout.cells, *(panel.cells for panel in layout.panels)]
    given += [row.cells or {} for row in layout.whole] + [column.cells for column in layout.columns]
    return [name for cells in given for name in listed(cells.get("dataset", ()))]


def _expanded(asked: Cells, column: Column) -> tuple[tuple[Cells, ...], ...]:
    """Lists and `{names}` as single cells: the outer tuple over datasets and the column's axis, the inner over attacks and the like."""
    found = []
    for words in column.axis:
        named = {key: fill(value, {**column.words, **words}) for key, value in asked.items()}
        for dataset in listed(named.get("dataset", ())) or (None,):
            one = named | ({"dataset": dataset} if dataset else {})
            # Every combination: an attacker may choose his gradient along with his attack.
            choices = [[(key, v) for v in listed(one[key])] for key in WORST if key in one]
            found.append(tuple(one | dict(choice) for choice in itertools.product(*choices)))
    return tuple(found)


def overrides(request: Request) -> Cells:
    """What of a request overrides a table's cells. Raises UserError for `-d`: the rows name the defenses."""
    if request.defenses:
        raise UserError("`-d` has no say in a table: its rows name the defenses", "choose rows with `--only WORD`")
    given: Cells = {
        "dataset": request.dataset, "classifier": request.classifier, "score": request.score, "images": request.images,
        "subset": request.subset, "evals": request.evals, "seeds": list(dict.fromkeys(request.seeds)), "attack": list(request.attacks),
        "threat": list(request.threats), "grad": list(request.grads),
    }  # fmt: skip
    return {key: value for key, value in given.items() if value not in (None, [])}


def grids(layout: Layout, request: Request) -> list[dict[str, Any]]:
    """Every cell of a table once, as grids of one, and the null control of every defense."""
    layout = chosen(layout, request.only)
    shown = layout.shown(request.honest)
    found: dict[str, dict[str, Any]] = {}
    given = overrides(request)
    check_headings(layout, given, honest=request.honest)
    for line in places(layout, given, baselines=request.baselines):
        for column, place in zip(layout.columns, line, strict=True):
            if column not in shown:
                continue
            for cells in (cells for worst in place.cells for cells in worst):
                for attack in (cells["attack"], "null"):
                    grid = as_grid(cells | {"attack": attack})
                    found[repr(sorted(grid.items()))] = grid
    if not found:
        lacks = "; ".join(sorted({name for line in places(layout, given) for p in line for name in p.needs}))
        raise UserError(
            f"`{layout.id}` has nothing to run" + (f": it needs {lacks}" if lacks else ""),
            "it prints with `purebench table`",
        )
    order = list(dict.fromkeys(str(grid.get("dataset")) for grid in found.values()))
    # One dataset after the other: a run then reads each of them once.
    return sorted(found.values(), key=lambda grid: order.index(str(grid.get("dataset"))))


def check_headings(layout: Layout, options: Cells, *, honest: bool) -> None:
    """Refuses an option that says something else than a row or a column does of itself: the number would stand under a heading that is
    not its own. Amounts (images, evaluations, seeds, subset) have no heading; on the digits networks are the digits' for all."""
    for name in options.get("attack", ()):
        if parse(name, "attack").name in CONTROLS and any(
            column.metric not in CLEAN for column in layout.shown(honest)
        ):
            raise UserError(
                f"`-a {name}` is a control and no attack, and `{layout.id}` has columns of robustness",
                "name an attack; every run has the null control beside it",
            )
    identity = [key for key in IDENTITY if key in options]
    if is_scaled(layout, options):
        identity = [key for key in identity if key in WORST]
    of_rows = [(f"row `{row.name}`", row.cells or {}) for row in layout.rows]
    of_columns = [(f"column `{column.title}`", column.cells) for column in layout.shown(honest) if column.metric]
    of_panels = [(f"panel `{panel.title}`", panel.cells) for panel in layout.panels]
    for name, cells in of_rows + of_columns + of_panels:
        for key in identity:
            if key in cells and listed(cells[key]) != listed(options[key]):
                raise UserError(
                    f"`--{key}` would undo what {name} of `{layout.id}` says itself: {key} = {', '.join(listed(cells[key]))}",
                    "leave it out; or copy the file (`purebench show` says where it is) and change it there",
                )


def chosen(layout: Layout, only: Sequence[str]) -> Layout:
    """The table with the rows that have one of these words, in any case; all rows for none. Raises UserError where no row is left."""
    if not only:
        return layout
    words = [word.lower() for word in only]
    named = [(row, f"{row.group} {' '.join(row.texts.values())}".lower()) for row in layout.rows]
    # Each word has to find something: of two, one misspelt would go unnoticed.
    for word in words:
        if not any(word in text for _, text in named):
            raise unknown("row", word, [row.name for row in layout.rows])
    # Where a word is the whole name of rows, these are meant: `-` is a name, and in many others.
    whole = {word for word in words if any(row.name.lower() == word for row in layout.rows)}
    rows = [
        row
        for row, text in named
        if row.name.lower() in whole or any(word in text for word in words if word not in whole)
    ]
    return replace(layout, rows=tuple(rows))


def as_grid(cells: Cells) -> dict[str, Any]:
    """A place's cell in the keys of a grid."""
    return {GRID.get(key, key): [value] if key in GRID else value for key, value in cells.items() if key != "stand_in"}
