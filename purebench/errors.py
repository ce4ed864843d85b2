"""What a user can get wrong, told as one message and one hint; nothing else is ever shown as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

OK, FAILED, USAGE, DOWNLOAD, UNMET, INTERRUPTED = 0, 1, 2, 3, 4, 130  # exit codes of the command line


class UserError(Exception):
    """A mistake that the user can mend. `message`: what is wrong (got X, expected Y); `hint`: what to do; `code`: exit code."""

    def __init__(self, message: str, hint: str = "", code: int = USAGE):
        super().__init__(message)
        # Plain attributes: a worker's error is pickled on its way here, and they travel with it.
        self.message, self.hint, self.code = message, hint, code

    def __str__(self) -> str:
        """Both, for whoever meets it in Python: there is no command line to print the hint."""
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, which asks for it by this name: what is wrong, and not where we noticed."""
        return [f"UserError: {self}"]


def unknown(kind: str, got: str, names: Iterable[str], see: str = "") -> UserError:
    """The error for a name that is not in `names`, with a did-you-mean."""
    names = sorted(names)
    close = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join(f'`{name}`' for name in close)}?"
    else:
        hint = f"known: {', '.join(names) or 'none'}"
    return UserError(f"unknown {kind} `{got}`", hint + (f" (see `{see}`)" if see else ""))


class Mistake(str):
    """Why a cell failed, where that is its user's to mend, as a UserError is."""
