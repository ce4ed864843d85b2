"""A table in a paper's layout: records found by the keys of a `plan.sheet.Sheet`, printed as the paper prints it. No torch.

`render` gives Markdown, LaTeX (booktabs), CSV or JSON. What is printed where no number is: a dash, and below it why.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import fmean, stdev
from typing import Any

from purebench.errors import UserError, unknown
from purebench.plan import sheet as plan
from purebench.plan.layouts import Column, Number, Row
from purebench.plan.sheet import Place, Sheet, Wanted
from purebench.records.store import Log
from purebench.report import metrics
from purebench.report.metrics import Value

FORMATS = ("md", "tex", "csv", "json")
MISSING = "–"
QUOTED = "†"
STAND_IN = "‡"
CLEAN = ("clean", "undefended")  # metrics of a defense, whatever attacked it


@dataclass(frozen=True)
class Entry:
    """One place filled in. `std`: over `seeds`, where there are several; `low`, `high`: of one seed."""

    row: Row
    column: Column
    reported: Number | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    std: float | None = None
    images: int = 0
    evals: int | None = None
    seeds: tuple[int, ...] = ()
    cells: tuple[str, ...] = ()
    stand_in: tuple[str, ...] = ()
    why: str = ""  # there is no number

    @property
    def measured(self) -> bool:
        return self.value is not None


def render(
    table: Sheet,
    logs: Iterable[Log],
    format: str = "md",
    *,
    honest: bool = False,
    compare: bool = False,
    fill: str = "",
) -> str:
    """The table as text that ends in a newline. honest: with our columns beside the paper's; compare: with the reported value, the
    difference, and whether the interval covers it; fill: the command that makes what is missing. Raises UserError for an unknown format,
    and for a comparison of a scaled table."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if compare and table.scaled:
        raise UserError(
            f"`--compare` of `{table.layout.id}` on the digits: no number of a scaled table compares with the paper",
            "leave out `--compare`, or `--dataset digits`",
        )
    records = _Records(logs)
    entries = [_line(table, i, records, honest) for i in range(len(table.layout.rows))]
    if format == "json":
        return json.dumps(_tidy(table, entries), indent=1, ensure_ascii=False) + "\n"
    if format == "csv":
        return _csv(_tidy(table, entries))
    matrix = _Matrix(table, entries, compare)
    notes = _notes(table, entries, records, compare, fill)
    return (_tex if format == "tex" else _markdown)(table, matrix, notes)


# ---- records -------------------------------------------------------------------------------------


class _Records:
    """Logs by the keys of their cells. Of several with one key (other versions or weights) the newest counts."""

    def __init__(self, logs: Iterable[Log]):
        self.cells: dict[str, Log] = {}
        self.clean: dict[str, Log] = {}
        self.twice: dict[str, list[str]] = defaultdict(list)
        # The newest last, so that it is the one that stays.
        for log in sorted(logs, key=_started):
            if not metrics.judged(log):
                continue
            key = plan.key(log.cell)
            if (old := self.cells.get(key)) and old.id != log.id:
                self.twice[log.id].append(old.id)
            self.cells[key] = log
        for log in self.cells.values():
            clean = plan.clean_key(log.cell)
            if clean not in self.clean or _extent(log) > _extent(self.clean[clean]):
                self.clean[clean] = log

    def of(self, one: Wanted, metric: str) -> Log | None:
        """The log that speaks for a cell, cut to the table's images: accuracies of one row are then of the same ones."""
        log = self.clean.get(one.clean) if metric in CLEAN else self.cells.get(one.key)
        if log is None or len(log.images) <= one.images:
            return log
        return replace(log, images=[line for line in log.images if line["position"] < one.images])


def _started(log: Log) -> str:
    return max((str(run.get("started", "")) for run in log.runs), default="")


def _extent(log: Log) -> tuple[int, int]:
    lines = metrics.judged(log)
    return len(lines), sum(len(line["clean"]) for line in lines)


def _line(table: Sheet, i: int, records: _Records, honest: bool) -> list[Entry]:
    """The entries of a row, those that are means of others last."""
    row = table.layout.rows[i]
    shown = table.layout.shown(honest)
    places = [place for place, column in zip(table.places[i], table.layout.columns, strict=True) if column in shown]
    line = [_entry(row, column, place, records) for column, place in zip(shown, places, strict=True)]
    return [_mean(entry, line) if entry.column.mean else entry for entry in line]


def _entry(row: Row, column: Column, place: Place, records: _Records) -> Entry:
    entry = Entry(row, column, place.reported)
    if place.needs:
        return replace(entry, why=f"needs {', '.join(name.replace(':', ' ') for name in place.needs)}")
    if not place.wanted:
        return entry
    parts = [_worst(column, worst, records) for worst in place.wanted]
    if missing := [part for part in parts if isinstance(part, str)]:
        return replace(entry, why=missing[0])
    found = [part for part in parts if not isinstance(part, str)]
    return _averaged(entry, found, place)


@dataclass(frozen=True)
class _Found:
    """A metric over the seeds of one cell."""

    of: Value
    std: float | None
    seeds: tuple[int, ...]
    cells: tuple[str, ...]


def _averaged(entry: Entry, found: Sequence[_Found], place: Place) -> Entry:
    """The mean over datasets, severities and the like; its interval is that of a single one, else none."""
    single = len(found) == 1
    evals = [one.of.evals for one in found if one.of.evals is not None]
    stand_ins = [name for worst in place.wanted for seeds in worst for one in seeds for name in one.stand_in]
    return replace(
        entry,
        value=fmean(one.of.value for one in found),
        # Corruptions of the same images are not independent: no interval is better than one too narrow.
        low=found[0].of.low if single else None,
        high=found[0].of.high if single else None,
        std=found[0].std if single else None,
        images=min(one.of.images for one in found),
        evals=min(evals, default=None),
        seeds=found[0].seeds,
        cells=tuple(dict.fromkeys(cell for one in found for cell in one.cells)),
        stand_in=tuple(dict.fromkeys(stand_ins)),
    )


def _worst(column: Column, worst: Sequence[Sequence[Wanted]], records: _Records) -> _Found | str:
    """The least of several attacks, or why it cannot be told: of a table's attacks one missing would flatter the defense."""
    by_attack = [[records.of(one, column.metric) for one in seeds] for seeds in worst]
    # One seed short is short, too: a mean over fewer seeds is another number.
    if any(log is None for logs in by_attack for log in logs):
        return "not run yet"
    known = [[log for log in logs if log is not None] for logs in by_attack]
    seeds = tuple(one.seed for one in worst[0])
    cells = tuple(dict.fromkeys(log.id for logs in known for log in logs))
    if column.over == "image":
        return _over_seeds([_per_image(column.metric, mates) for mates in zip(*known, strict=True)], seeds, cells)
    found = []
    for logs in known:
        one = _over_seeds([metrics.summary(log).get(column.metric) for log in logs], seeds, cells)
        if isinstance(one, str):
            return one
        found.append(one)
    return min(found, key=lambda one: one.of.value)


def _over_seeds(values: Sequence[Value | None], seeds: tuple[int, ...], cells: tuple[str, ...]) -> _Found | str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "its records have no such metric"
    # Over seeds the papers print the sample deviation.
    std = stdev(value.value for value in known) if len(known) > 1 else None
    return _Found(metrics.pool(known), std, seeds, cells)


def _per_image(metric: str, logs: Sequence[Log]) -> Value | None:
    """An image counts as robust only if it withstood every attack."""
    return metrics.aa_all(logs) if metric == "aa" else metrics.robust_image(logs)


def _mean(entry: Entry, line: Sequence[Entry]) -> Entry:
    """A column that is the mean of others: of what was measured in them."""
    parts = [other for other in line if other.column.number in entry.column.mean and other.column is not entry.column]
    values = [part.value for part in parts if part.value is not None]
    # A mean of one column would pass for a mean of two.
    if not parts or len(values) < len(parts):
        return entry
    return replace(
        entry, value=fmean(values), cells=tuple(dict.fromkeys(cell for part in parts for cell in part.cells))
    )


# ---- words ---------------------------------------------------------------------------------------


def _decimals(values: Iterable[Number | None]) -> int:
    """As many digits as the paper prints in a column: 0.00 was read as 0.0."""
    # TOML reads 59.60 as 59.6: the longest number of a column says how many digits the paper prints.
    texts = [
        repr(v)
        for value in values
        for v in (value if isinstance(value, tuple) else (value,))
        if isinstance(v, float | int)
    ]
    return max((len(text.partition(".")[2]) for text in texts if text.partition(".")[2] != "0"), default=0)


def _printed(value: Number, digits: int) -> str:
    """A reported number as it stands in the paper."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return " ±".join(_printed(v, digits) for v in value)
    return f"{value:.{digits}f}"


def _measured(entry: Entry) -> str:
    """`93.1 ±0.3`: percent; behind ± the std over seeds, or of one seed the farther end of the interval."""
    value = entry.value or 0.0
    if entry.std is not None:
        spread = f" ±{100 * entry.std:.1f}"
    elif entry.low is None or entry.high is None:
        spread = ""
    else:
        spread = f" ±{100 * max(entry.high - value, value - entry.low):.1f}"
    return f"{100 * value:.1f}{spread}" + (f" {STAND_IN}" if entry.stand_in else "")


class _Matrix:
    """Headers and lines of words, panels side by side, turned round where the paper has methods as columns. A line that is a text alone
    spans the table."""

    def __init__(self, table: Sheet, entries: list[list[Entry]], compare: bool):
        self.table, self.compare = table, compare
        columns = [entry.column for entry in entries[0]]
        self.digits = {c.number: _decimals(row.numbers.get(c.number) for row in table.layout.rows) for c in columns}
        self.best = self._best(entries)
        panels = [panel.key for panel in table.layout.panels] or [""]
        self.spans = [(panel.title, len(self._header(columns, panel.key))) for panel in table.layout.panels]
        blocks = [self._block([line for line in entries if line[0].row.panel in ("", key)], key) for key in panels]
        self.header = [word for key in panels for word in self._header(columns, key)]
        self.left = [flush for key in panels for flush in self._left(columns, key)]
        self.lines = _side_by_side(blocks, [len(self._header(columns, key)) for key in panels])
        if table.layout.transpose:
            self._turn()

    def _header(self, columns: Sequence[Column], panel: str) -> list[str]:
        words = []
        for column in columns:
            if column.panel in ("", panel):
                title = f"{column.group}: {column.title}" if column.group else column.title
                words += [title, *(["reported", "difference"] if self._compared(column) else [])]
        return words

    def _left(self, columns: Sequence[Column], panel: str) -> list[bool]:
        """Which columns are flush left: texts."""
        flush = []
        for column in columns:
            if column.panel in ("", panel):
                flush += [bool(column.text), *([False, False] if self._compared(column) else [])]
        return flush

    def _compared(self, column: Column) -> bool:
        return self.compare and bool(column.number and column.metric)

    def _best(self, entries: list[list[Entry]]) -> set[tuple[int, int]]:
        """Places that are printed bold. Of a scaled table only what was measured is compared, among itself."""
        found = set()
        for j, column in enumerate(entry.column for entry in entries[0]):
            if not column.best:
                continue
            for panel in {line[0].row.panel for line in entries}:
                values = {
                    i: value
                    for i, line in enumerate(entries)
                    if line[0].row.panel == panel and (value := self._comparable(line[j])) is not None
                }
                if len(values) > 1:
                    best = (max if column.best == "max" else min)(values.values())
                    found |= {(id(entries[i][0].row), j) for i, value in values.items() if value == best}
        return found

    def _comparable(self, entry: Entry) -> float | None:
        if entry.value is not None:
            return round(100 * entry.value, 4)
        value = entry.reported[0] if isinstance(entry.reported, tuple) else entry.reported
        quoted = (
            entry.row.cells is None and not self.table.scaled
        )  # what is not run yet prints a dash, and wins nothing
        return float(value) if quoted and isinstance(value, float | int) else None

    def _block(self, lines: list[list[Entry]], panel: str) -> list[tuple[str, list[list[str]]]]:
        """(group, its lines of words), in order."""
        found: list[tuple[str, list[list[str]]]] = []
        for line in lines:
            group = line[0].row.group
            if not found or found[-1][0] != group:
                found.append((group, []))
            words = []
            for j, entry in enumerate(line):
                if entry.column.panel in ("", panel):
                    words += [self._word(entry, j), *self._comparison(entry)]
            found[-1][1].append(words)
        return found

    def _word(self, entry: Entry, j: int) -> str:
        row, column = entry.row, entry.column
        if column.text:
            first = column.text == next(iter(row.texts), "")
            return row.texts[column.text] + (row.mark if first else "")
        if entry.measured:
            word = _measured(entry)
        elif entry.why or entry.reported is None or (row.cells is not None and column.metric):
            return MISSING
        else:
            word = _printed(entry.reported, self.digits[column.number])
            word += f" {QUOTED}" if isinstance(entry.reported, float | int | tuple) else ""
        if (id(row), j) in self.best:
            word = _BOLD + word + _BOLD
        return _LINE + word + _LINE if column.number in row.underline else word

    def _comparison(self, entry: Entry) -> list[str]:
        """The reported value, the difference in points, and whether the 95 % interval covers it."""
        if not self._compared(entry.column):
            return []
        reported = entry.reported
        if reported is None or not entry.measured:
            return ["" if reported is None else _printed(reported, self.digits[entry.column.number]), ""]
        mean = reported[0] if isinstance(reported, tuple) else reported
        if not isinstance(mean, float | int):
            return [str(mean), ""]
        difference = 100 * (entry.value or 0.0) - float(mean)
        covered = {None: "", True: " (covered)", False: " (not covered)"}[covers(entry)]
        return [_printed(reported, self.digits[entry.column.number]), f"{difference:+.1f}{covered}"]

    def _turn(self) -> None:
        """Methods become columns."""
        rows = [line for line in self.lines if not isinstance(line, str)]
        whole = [self.header, *rows]
        # Groups span rows, and have no place beside columns.
        turned = [list(column) for column in zip(*whole, strict=True)]
        self.header, self.lines = turned[0], list(turned[1:])
        self.left = [i == 0 for i in range(len(self.header))]


_BOLD, _LINE = "\0b", "\0u"  # marks inside a word, which every format writes in its own way


def covers(entry: Entry) -> bool | None:
    """Whether the 95 % interval of what was measured has the reported mean in it; None where one of them is missing."""
    mean = entry.reported[0] if isinstance(entry.reported, tuple) else entry.reported
    if not isinstance(mean, float | int) or entry.low is None or entry.high is None:
        return None
    return entry.low <= float(mean) / 100 <= entry.high


def _side_by_side(blocks: list[list[tuple[str, list[list[str]]]]], widths: list[int]) -> list[list[str] | str]:
    """The lines of panels beside each other, group by group; a shorter one is filled up with blanks."""
    lines: list[list[str] | str] = []
    for groups in zip_longest(*blocks, fillvalue=("", [])):
        if title := next((group for group, _ in groups if group), ""):
            lines.append(title)
        for parts in zip_longest(*(of for _, of in groups)):
            lines.append([word for part, width in zip(parts, widths, strict=True) for word in (part or [""] * width)])
    return lines


def _notes(table: Sheet, entries: list[list[Entry]], records: _Records, compare: bool, fill: str) -> list[str]:
    """What a reader must know to believe or repeat the numbers."""
    layout = table.layout
    flat = [entry for line in entries for entry in line]
    measured = [entry for entry in flat if entry.measured and entry.column.metric]
    notes = []
    if any(not entry.measured and isinstance(entry.reported, float | int | tuple) and not entry.why for entry in flat):
        notes.append(f"{QUOTED} quoted: {layout.quoted or layout.cite or 'as the paper prints it'}.")
    if stand_ins := list(dict.fromkeys(name for entry in measured for name in entry.stand_in)):
        notes.append(f"{STAND_IN} not paper-comparable, for what stands in: {'; '.join(stand_ins)}.")
    if measured:
        notes += _protocol(table, measured)
    over = {entry.column.over for entry in measured if entry.column.over}
    if "min" in over:
        notes.append("Of several attacks the lowest accuracy counts, as a mean over the images.")
    if "image" in over:
        notes.append("Of several attacks the worst for each image counts.")
    whys: dict[str, list[str]] = defaultdict(list)
    for entry in flat:
        if entry.why:
            whys[entry.why].append(entry.row.name)
    for why, names in whys.items():
        notes.append(f"{MISSING} {why}: {', '.join(dict.fromkeys(names))}.")
    if fill and any(entry.why == "not run yet" for entry in flat):
        notes.append(f"Fill it with: `{fill}`")
    used = {cell for entry in flat for cell in entry.cells}
    for new, old in records.twice.items():
        if new in used:
            notes.append(
                f"Several records of one cell, by other versions or weights: {new} is the newest and counts, {', '.join(old)} not."
            )
    return notes + [note if note.endswith(".") else f"{note}." for note in layout.notes]


def _protocol(table: Sheet, measured: Sequence[Entry]) -> list[str]:
    images = sorted({entry.images for entry in measured})
    wanted = max(
        one.images for line in table.places for place in line for worst in place.wanted for s in worst for one in s
    )
    evals = sorted({entry.evals for entry in measured if entry.evals})
    # What was measured on fewer images than the table has must be seen to be.
    said = f"Measured: {_range(images)} images"
    if images[0] < wanted:
        said += f" of the table's {wanted}"
    said += f", {_range(evals)} fresh evaluation{'s' * (evals != [1])} each" if evals else ""
    several = any(entry.std is not None for entry in measured)
    return [
        f"{said}; ± {'the standard deviation over seeds' if several else 'the farther end of the 95 % Wilson interval'}."
    ]


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


# ---- formats -------------------------------------------------------------------------------------


def _markdown(table: Sheet, matrix: _Matrix, notes: Sequence[str]) -> str:
    def word(text: str) -> str:
        text = " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "\\<").split())
        return text.replace(_BOLD, "**").replace(_LINE, "__")

    lines = [f"### {word(table.layout.title)}"]
    if table.scaled:
        lines.append(table.scaled)
    lines.append("")
    header = [word(title) for title in matrix.header]
    body = [
        [f"*{word(line)}*", *[""] * (len(header) - 1)] if isinstance(line, str) else list(map(word, line))
        for line in matrix.lines
    ]
    if len(matrix.spans) > 1:
        spans = [word(title) for title, width in matrix.spans for title in [title, *[""] * (width - 1)]]
        header, body = spans, [[f"**{title}**" if title else "" for title in header], *body]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def row(words: Sequence[str]) -> str:
        pads = [str.ljust if left else str.rjust for left in matrix.left]
        return "| " + " | ".join(pad(text, width) for pad, text, width in zip(pads, words, widths, strict=True)) + " |"

    rule = (
        "|"
        + "|".join("-" * (w + 2) if left else "-" * (w + 1) + ":" for w, left in zip(widths, matrix.left, strict=True))
        + "|"
    )
    lines += [row(header), rule, *map(row, body)]
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "*": r"$^*$",
    "±": r"$\pm$", "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$",
}  # fmt: skip


def _tex(table: Sheet, matrix: _Matrix, notes: Sequence[str]) -> str:
    """A `table` environment; needs the package booktabs."""

    def escaped(text: str) -> str:
        return "".join(_TEX.get(char, char) for char in text)

    def word(text: str) -> str:
        parts = escaped(text)
        for mark, command in ((_BOLD, "textbf"), (_LINE, "underline")):
            if mark in parts:
                before, inside, after = parts.split(mark)
                parts = f"{before}\\{command}{{{inside}}}{after}"
        return parts

    n = len(matrix.header)
    lines = [f"% {table.scaled}"] if table.scaled else []
    lines += [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{word(table.layout.title)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in matrix.left)}}}",
        r"\toprule",
    ]
    if len(matrix.spans) > 1:
        lines.append(
            " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{word(title)}}}" for title, width in matrix.spans) + r" \\"
        )
    lines += [" & ".join(map(word, matrix.header)) + r" \\", r"\midrule"]
    for line in matrix.lines:
        lines.append(
            rf"\multicolumn{{{n}}}{{l}}{{\emph{{{word(line)}}}}} \\"
            if isinstance(line, str)
            else " & ".join(map(word, line)) + r" \\"
        )
    lines += [r"\bottomrule", r"\end{tabular}"]
    for note in notes:
        lines.append(rf"\par{{\footnotesize {word(note.replace('`', ''))}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tidy(table: Sheet, entries: list[list[Entry]]) -> list[dict[str, Any]]:
    """One row per place that has a number, or should have one. Values in [0, 1], as everywhere; `reported` as the paper prints it."""
    rows = []
    for line in entries:
        for entry in line:
            if not (entry.column.metric or entry.column.number):
                continue
            rows.append(
                {
                    "table": table.layout.id, "group": entry.row.group, "panel": entry.row.panel, **entry.row.texts,
                    "column": entry.column.title, "metric": entry.column.metric, "reported": entry.reported, "value": _rounded(entry.value),
                    "low": _rounded(entry.low), "high": _rounded(entry.high), "std": _rounded(entry.std), "images": entry.images or None,
                    "evals": entry.evals, "seeds": " ".join(map(str, entry.seeds)), "stand_in": "; ".join(entry.stand_in),
                    "scaled": bool(table.scaled), "missing": entry.why, "cells": " ".join(entry.cells),
                }
            )  # fmt: skip
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"reported": _printed_plain(row["reported"])} for row in rows)
    return file.getvalue()


def _printed_plain(value: Number | None) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
