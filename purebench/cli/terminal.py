"""What every command shares: the application, lines for people on stderr, data on stdout, and files that are written."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import purebench
from purebench.errors import UserError

app = typer.Typer(
    name="purebench",
    no_args_is_help=True,
    # Without rich, whose help costs half a second; and what no command expected is a bug of ours, shown as Python shows it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with:  purebench run   then:  purebench table results",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"purebench {purebench.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version, and stop", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """How robust is this purification defense, really, and how does that compare with the paper?"""


def complain(error: UserError) -> None:
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


def say(line: str) -> None:
    """A line for people, on stderr: stdout has the data alone, so that it can be piped."""
    print(line, file=sys.stderr, flush=True)


def note(line: str) -> None:
    say(f"purebench: {line}")


def print_data(data: Any, as_json: bool, text: Callable[[Any], str] | None = None) -> None:
    """Data on stdout, as JSON or as text; without a `text` of its own, rows in aligned columns."""
    print(json.dumps(data, indent=1) if as_json else (text or columns)(data))


def columns(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned plain text."""
    if not rows:
        return "nothing yet"
    lines = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Nothing behind the last word of a line: whoever compares or pastes the text stumbles over blanks that nobody sees.
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def examples(*lines: str) -> str:
    # \b is Click's word for a paragraph that is not to be wrapped.
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)


def check_writable(path: Path | None, name: str = "table.md") -> None:
    """Raises UserError where no file of this name can be written: known before the work, not after it. name: of the file in the hint."""
    from purebench.records import store as records

    if path is None:
        return
    if path.is_dir():
        raise UserError(f"`--out {path}` is a folder", f"name a file in it: --out {shlex.quote(str(path / name))}")
    # Whatever is written there takes the place of a record, or would pass for one.
    if (path.parent / records.CELL).exists():
        raise UserError(f"`--out {path}` is in the folder of a record", f"name another place: --out {name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # By writing there: permissions alone do not know a read-only disk.
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"`--out {path}` cannot be written: {error.strerror or error}", "name another place, or free some space"
        ) from None


def deliver(text: str, out: Path | None) -> None:
    """A table on stdout, or into its file."""
    from purebench.records import store as records

    if out is None:
        print(text)
        return
    # Replaced whole, since a paper may include the file while it is written.
    with records.full_disk_is_an_error(out.parent):
        records.replace(out, text.rstrip("\n") + "\n")
    say(f"wrote {out}")
