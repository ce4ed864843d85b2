"""Aligned Markdown tables, for whoever prints one."""

from __future__ import annotations

import re
from collections.abc import Sequence


def escape(text: str) -> str:
    """A word of a Markdown table: `|` would end it, `*`, `<` and a backtick would format it."""
    for char in "\\|*<`":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())


def prose(text: str) -> str:
    """A line of text with `code` in it: elsewhere `<b>` of somebody's name is no tag."""
    return re.sub(r"(`[^`]*`)|<(?=[A-Za-z/!])", lambda found: found[1] or "\\<", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int | Sequence[bool] = 1) -> list[str]:
    """The lines of a table. left: which columns are flush left, or how many of the first; the others are flush right."""
    flush = [i < left for i in range(len(header))] if isinstance(left, int) else left
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    pads = [str.ljust if is_left else str.rjust for is_left in flush]

    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(pad(word, width) for pad, word, width in zip(pads, words, widths, strict=True)) + " |"

    rule = "|".join("-" * (w + 2) if is_left else "-" * (w + 1) + ":" for w, is_left in zip(widths, flush, strict=True))
    return [line(header), f"|{rule}|", *map(line, rows)]
