"""The command line. Light: torch, pandas, matplotlib and rich are imported where a command needs them. It may import every room.

A command reads its options, calls one function of a room, and prints what it returns: data on stdout, all else on stderr. Begin reading
at `run.run`."""

from __future__ import annotations

import io
import os
import sys

from purebench import errors
from purebench.cli import files, gradients, pages, parts, results, run
from purebench.cli.terminal import app, complain, note
from purebench.errors import UserError

# Importing these has added their commands to `app`, which the help names in the order of their use.
MODULES = (run, results, gradients, pages, parts, files)
app.registered_commands.sort(
    key=lambda command: [module.__name__ for module in MODULES].index(command.callback.__module__)
)


def main() -> None:
    """The console script: a UserError becomes one message and its exit code."""
    # A name that the terminal's encoding does not have, or a path that is no text at all, is spelt out and not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        complain(error)
        raise SystemExit(error.code) from None
    except SystemExit as stop:
        # Typer makes this of Ctrl-C, and says nothing.
        if stop.code == errors.INTERRUPTED:
            note("interrupted")
        # Click makes 1 of a closed pipe.
        if isinstance(stop.__context__, BrokenPipeError):
            raise SystemExit(errors.OK) from None
        raise
    except BrokenPipeError:
        # `| head` closed the pipe. Python flushes stdout once more at its end, and that must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(errors.OK) from None
    except OSError as error:
        # No space, no permission, a folder where a file should be. Without file and number it is no such thing, but our bug.
        if error.filename is None and error.errno is None:
            raise
        where = f"`{error.filename}`: " if error.filename else ""
        hint = "free some space or mend the path, and give the command again"
        complain(UserError(f"{where}{error.strerror or error}", hint))
        raise SystemExit(errors.FAILED) from None
