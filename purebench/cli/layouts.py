"""A paper's table or figure on the command line: its file, its places under the options, and the command that makes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from purebench import errors
from purebench.cli.terminal import say
from purebench.errors import UserError

if TYPE_CHECKING:
    from purebench.plan.grid import Request
    from purebench.plan.layouts import Layout
    from purebench.plan.sheet import Sheet
    from purebench.records.store import Log


def layout_of(name: str) -> Layout | None:
    """The table of this name or file; None for a grid, and for no preset at all."""
    from purebench.plan import grid, layouts

    if not name.endswith(".toml") and name not in grid.presets():
        return None
    name, data = grid.read(name)
    return layouts.of(data, name) if layouts.is_layout(data) else None


def known_layout(name: str, others: Iterable[str] = ()) -> Layout:
    """A paper's table. Raises UserError where there is none of this name; others: names that might have been meant, too."""
    from purebench.plan import grid

    if found := layout_of(name):
        return found
    if name.endswith(".toml"):
        raise UserError(
            f"`{name}` is no table: it has no `[[column]]` and no `[[row]]`", "docs/tables.md has an example"
        )
    raise errors.unknown("layout", name, [*others, *grid.tables(), *grid.figures()], see="purebench list layouts")


def home(results: list[Path] | None) -> Path:
    """The folder that a run which adds to these records writes to."""
    from purebench.records import store as records

    folder = results[0] if results else Path("results")
    # Of a record's own folder it lies above.
    return folder.parent if (folder / records.CELL).exists() else folder


def in_layout(
    layout: Layout, request: Request, logs: list[Log], format: str, results: Path, compare: bool = False
) -> str:
    """Records in a paper's layout. results: the folder that they are in."""
    from purebench.report import papers

    if not logs:
        say_where(results)
    fill = command(request, "run", results)
    return papers.render(sheet_of(layout, request), logs, format, honest=request.honest, compare=compare, fill=fill)


def say_where(results: Path) -> None:
    """Of a folder without records: where there are some."""
    from purebench.records import store as records

    if inside := sorted({path.parent.parent.name for path in results.glob(f"*/*/{records.CELL}")}):
        names = ", ".join(f"`{results / name}`" for name in inside)
        say(f"hint: no record is in `{results}` itself; there are some in {names}")


def sheet_of(layout: Layout, request: Request) -> Sheet:
    """A table with what the command line says."""
    from purebench.plan import places, sheet

    chosen, given = places.chosen(layout, request.only), places.overrides(request)
    places.check_headings(chosen, given, honest=request.honest)
    return sheet.of(chosen, given, baselines=request.baselines)


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
