"""Printed tables as HTML: for the page of records, and plain, for a notebook with its own style. Words from records are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from purebench.report import papers, tables

SPREAD = re.compile(r" (±[\d.]+)")


def words(text: str) -> str:
    """A line of a table's notes: escaped, with what is in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{words(line)}</li>" for line in lines)


def number(word: str) -> str:
    """`46.0 ±4.4`, the second a little aside; a line breaks before what stands behind it, and nowhere else."""
    return SPREAD.sub('\u00a0<span class="pm">\\1</span>', escape(word)).replace("n = ", "n\u00a0=\u00a0")


def name(part: str) -> str:
    """A part as it is written, which a narrow column may break behind a `:` or a comma."""
    return re.sub(r"([:,])", r"\1<wbr>", escape(part))


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    left: Sequence[bool],
    label: str,
    spans: Sequence[tuple[str, int]] = (),
) -> str:
    """A wide table of cells that are HTML already; a row that is one text spans it."""

    def line(words: Sequence[str]) -> str:
        cells = [
            f'<th scope="row" class="left">{word}</th>'
            if j == 0 and is_left
            else f"<td{' class=left' if is_left else ''}>{word}</td>"
            for j, (word, is_left) in enumerate(zip(words, left, strict=True))
        ]
        return f"<tr>{''.join(cells)}</tr>"

    heads = "".join(
        f'<th scope="col"{" class=left" if is_left else ""}>{word}</th>'
        for word, is_left in zip(header, left, strict=True)
    )
    over = "".join(f'<th scope="colgroup" class="panel" colspan="{width}">{escape(text)}</th>' for text, width in spans)
    body = "".join(
        f'<tr><td class="span" colspan="{len(header)}">{row}</td></tr>' if isinstance(row, str) else line(row)
        for row in rows
    )
    return (
        # It scrolls sideways, and so must be reached by keyboard.
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="full"><thead>'
        f"{f'<tr>{over}</tr>' if over else ''}<tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paper(printed: papers.Printed) -> str:
    def word(text: str) -> str:
        found = number(text)
        for mark, tag in ((papers.BOLD, "strong"), (papers.UNDERLINE, "u")):
            if mark in found:
                before, inside, after = found.split(mark)
                found = f"{before}<{tag}>{inside}</{tag}>{after}"
        return found

    layout = printed.table.layout
    rows = [word(line) if isinstance(line, str) else list(map(word, line)) for line in printed.lines]
    spans = printed.spans if len(printed.spans) > 1 else ()
    scaled = f'<ul class="warnings"><li>{words(printed.table.scaled)}</li></ul>' if printed.table.scaled else ""
    return (
        f'<h3>{escape(layout.title)}</h3><p class="models">{escape(" · ".join(filter(None, [layout.id, layout.cite])))}</p>{scaled}'
        + table(list(map(word, printed.header)), rows, printed.left, layout.title, spans)
        + f'<ul class="notes">{items(printed.notes)}</ul>'
    )


def grid(printed: tables.Printed) -> str:
    """One table of the grid with its protocol and its warnings, without the page's style."""
    rows = [
        [f"<strong>{number(word)}</strong>" if (i, j) in printed.bold else number(word) for j, word in enumerate(row)]
        for i, row in enumerate(printed.rows)
    ]
    left = [j == 0 for j in range(len(printed.header))]
    warnings = "".join(f"<li><strong>Warning:</strong> {words(text)}</li>" for text in printed.warnings)
    return (
        f"<h4>{escape(printed.title)}</h4><p>{words(printed.models)}</p>"
        + table(list(map(name, printed.header)), rows, left, printed.title)
        # Before the protocol: a number is not read without what weakens it.
        + (f"<ul>{warnings}</ul>" if warnings else "")
        + f"<details><summary>How these numbers were made</summary><ul>{items(printed.notes)}</ul></details>"
    )
