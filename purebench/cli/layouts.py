"""A paper's table or figure on the command line, and where its records are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from purebench import errors
from purebench.cli.terminal import say
from purebench.errors import UserError

if TYPE_CHECKING:
    from purebench.plan.grid import Request
    from purebench.plan.layouts import Layout
    from purebench.records.store import Log


def known_layout(name: str, others: Iterable[str] = ()) -> Layout:
    """A paper's table. Raises UserError where there is none of this name; others: names that might have been meant, too."""
    from purebench.plan import grid
    from purebench.report import asked

    if found := asked.layout_of(name):
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
    from purebench.report import asked

    if not logs:
        say_where(results)
    return asked.rendered(layout, request, logs, format, results, compare)


def say_where(results: Path) -> None:
    """Of a folder without records: where there are some."""
    from purebench.records import store as records

    if inside := sorted({path.parent.parent.name for path in results.glob(f"*/*/{records.CELL}")}):
        names = ", ".join(f"`{results / name}`" for name in inside)
        say(f"hint: no record is in `{results}` itself; there are some in {names}")
