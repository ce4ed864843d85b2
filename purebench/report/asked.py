"""A paper's table or figure as a request asks for it: its file, its places under the options, and the commands that make and print it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from purebench.plan import grid, layouts, places, sheet
from purebench.plan.grid import Request
from purebench.plan.layouts import Layout
from purebench.plan.sheet import Sheet
from purebench.records.store import Log

if TYPE_CHECKING:
    from purebench.report import papers


def layout_of(name: str) -> Layout | None:
    """The table of this name or file; None for a grid, and for no preset at all."""
    if not name.endswith(".toml") and name not in grid.presets():
        return None
    name, data = grid.read(name)
    return layouts.of(data, name) if layouts.is_layout(data) else None


def sheet_of(layout: Layout, request: Request) -> Sheet:
    """A table with what the request says."""
    chosen, given = places.chosen(layout, request.only), places.overrides(request)
    places.check_headings(chosen, given, honest=request.honest)
    return sheet.of(chosen, given, baselines=request.baselines)


def printed(layout: Layout, request: Request, logs: Iterable[Log], results: Path) -> papers.Printed:
    """Records in a paper's layout, in words. results: the folder that they are in."""
    # Imported here, as below: pandas, which both need, costs a second, and whoever asks whether a name is a table's does without it.
    from purebench.report import papers

    fill = command(request, "run", results)
    return papers.printed(sheet_of(layout, request), logs, honest=request.honest, fill=fill)


def rendered(
    layout: Layout | None, request: Request, logs: Sequence[Log], format: str, results: Path, compare: bool = False
) -> str:
    """The same as text; without a layout, the grid's tables. compare: a paper's table beside the reported numbers."""
    from purebench.report import papers, tables

    if layout is None:
        return tables.render(logs, format=format)
    fill = command(request, "run", results)
    return papers.render(sheet_of(layout, request), logs, format, honest=request.honest, compare=compare, fill=fill)


def command(request: Request, verb: str, results: Path) -> str:
    """The `purebench run` that makes the cells of a table, the `table` that prints them, or the `figure` that draws them."""
    preset, folder = shlex.quote(str(request.preset)), shlex.quote(str(results))
    given = [
        {
            "run": f"purebench run {preset}",
            "table": f"purebench table {folder} --layout {preset}",
            "figure": f"purebench figure {preset} {folder}",
        }[verb]
    ]
    listed = (("-a", request.attacks), ("-t", request.threats), ("--grad", request.grads), ("--only", request.only))
    for option, values in listed:
        given += [f"{option} {shlex.quote(value)}" for value in values]
    for name in ("dataset", "classifier", "score", "images", "subset"):
        value = getattr(request, name)
        given += [f"--{name} {shlex.quote(str(value))}"] if value is not None else []
    given += [f"--seed {seed}" for seed in request.seeds]
    given += [f"--{name}" for name in ("honest", "baselines") if getattr(request, name)]
    return " ".join(given + ([f"--out {folder}"] if verb == "run" and folder != "results" else []))
