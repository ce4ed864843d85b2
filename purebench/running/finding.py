"""What `doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line: `wrong` would not work; of a `note` only whoever needs it has to know."""

    topic: str
    state: State
    said: str
    hint: str = ""


def in_a_line(error: BaseException) -> str:
    """An error with its kind, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
