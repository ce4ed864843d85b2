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
from purebench.plan import layouts, measures
from purebench.plan import sheet as plan
from purebench.plan.layouts import CLEAN, Column, Number, Row
from purebench.plan.sheet import Place, Sheet, Wanted
from purebench.records import frame
from purebench.records import store as records
from purebench.records.store import Log
from purebench.report import markdown, metrics, protocols, tables
from purebench.report.metrics import Value

FORMATS = ("md", "tex", "csv", "json")
MISSING = "–"
QUOTED = "†"
STAND_IN = "‡"
MASKED = "§"
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Entry:
    """One place filled in.

    `std`: over `seeds`, where there are several; `low`, `high`: of one seed; `logs`: what it was made of, cut to the images that all of
    these have; `masked`: every gradient attack was blind, so that the number proves nothing; `why`: there is no number.
    """

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
    logs: tuple[Log, ...] = ()
    stand_in: tuple[str, ...] = ()
    masked: bool = False
    why: str = ""

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
    and for a comparison of a table that is scaled, or of other cells than the file's."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    found = _Records(logs)
    if format in ("md", "tex"):
        return (_tex if format == "tex" else _markdown)(
            _in_words(table, found, honest=honest, compare=compare, fill=fill)
        )
    _check_comparison(table, compare)
    entries = _entries(table, found, honest)
    if format == "json":
        return json.dumps(_tidy(table, entries), indent=1, ensure_ascii=False) + "\n"
    return _csv(_tidy(table, entries))


@dataclass(frozen=True)
class Printed:
    """A table as words that no format has touched yet: `spans`, the headings of panels side by side with their widths; `lines`: words,
    or one text that spans the table; `left`: which columns are flush left. BOLD or UNDERLINE stands before and behind a marked word."""

    table: Sheet
    spans: list[tuple[str, int]]
    header: list[str]
    left: list[bool]
    lines: list[list[str] | str]
    notes: list[str]


def printed(
    table: Sheet, logs: Iterable[Log], *, honest: bool = False, compare: bool = False, fill: str = ""
) -> Printed:
    """The table in words; parameters and errors as of `render`."""
    return _in_words(table, _Records(logs), honest=honest, compare=compare, fill=fill)


@dataclass(frozen=True)
class Filled:
    """A table as its places, row by row, and what a reader must know of them; nothing is printed yet."""

    entries: list[list[Entry]]
    notes: list[str]


def filled(table: Sheet, logs: Iterable[Log], *, honest: bool = False, fill: str = "") -> Filled:
    """The table's places filled in, for whoever draws them; parameters as of `render`."""
    found = _Records(logs)
    entries = _entries(table, found, honest)
    return Filled(entries, _notes(table, entries, found, fill))


def _in_words(table: Sheet, found: _Records, *, honest: bool, compare: bool, fill: str) -> Printed:
    _check_comparison(table, compare)
    entries = _entries(table, found, honest)
    matrix = _Matrix(table, entries, compare)
    return Printed(table, matrix.spans, matrix.header, matrix.left, matrix.lines, _notes(table, entries, found, fill))


def _entries(table: Sheet, found: _Records, honest: bool) -> list[list[Entry]]:
    return [_line(table, i, found, honest) for i in range(len(table.layout.rows))]


def _check_comparison(table: Sheet, compare: bool) -> None:
    if compare and table.scaled:
        raise UserError(
            f"`--compare` of `{table.layout.id}` on the digits: no number of a scaled table compares with the paper",
            "leave out `--compare`, or `--dataset digits`",
        )
    if compare and (other := table.changed):
        raise UserError(
            f"`--compare` of `{table.layout.id}` with {other}: the paper's numbers are of other cells",
            "leave out `--compare`, or these options",
        )


# ---- records -------------------------------------------------------------------------------------


class _Records:
    """Logs by the keys of their cells. Of several with one key (other versions or weights) the newest counts."""

    def __init__(self, logs: Iterable[Log]):
        self.cells: dict[str, Log] = {}
        self.clean: dict[str, list[Log]] = defaultdict(list)  # by what a defense does to clean images
        self.twice: dict[str, list[str]] = defaultdict(list)
        # The newest last, so that it is the one that stays. Copies of one cell are not two: the one with the most images is kept.
        for log in sorted(frame.settled(logs), key=lambda log: log.started):
            if not metrics.judged(log):
                continue
            key = plan.key(log.cell)
            if key in self.cells:
                self.twice[log.id].append(self.cells[key].id)
            self.cells[key] = log
        for log in self.cells.values():
            self.clean[plan.clean_key(log.cell)].append(log)

    def null(self, log: Log) -> Log | None:
        """The null control beside a log, on its images."""
        known = [other for other in self.clean.get(plan.clean_key(log.cell), []) if other.cell["attack"] == "null"]
        positions = {line["position"] for line in metrics.judged(log)}
        return _cut(max(known, key=_extent), positions) if known else None

    def of(self, one: Wanted, metric: str) -> Log | None:
        """The log that speaks for a cell: its own, or for what attacks do not change the one that has the most."""
        if metric not in CLEAN:
            return self.cells.get(one.key)
        return max(
            self.clean.get(one.clean, []), key=lambda log: (not _short(log, one.images), _extent(log)), default=None
        )


def _extent(log: Log) -> tuple[int, int]:
    lines = metrics.judged(log)
    return len(lines), sum(len(line["clean"]) for line in lines)


def _short(log: Log, images: int) -> str:
    """Why a log is not yet what a table of so many images asks for; empty if it is. A run that asked for fewer images is done with these:
    the table then says so. One that was cut off may have the easy ones."""
    have, needed, lost = metrics.extent(log, images)
    if have == needed:
        return ""
    return f"the attack made no image: {lost} of {needed}" if lost else f"unfinished: {have} of {needed} images"


def _makes(logs: Iterable[Log]) -> dict[str, set[str]]:
    """Of each part, as a cell names it, the versions and weights that these logs are of."""
    found: dict[str, set[str]] = defaultdict(set)
    for log in logs:
        for kind, part in records.parts(log.cell).items():
            if kind not in ("attack", "gradient"):  # which differ from column to column
                named = f"{kind} {log.cell.get(kind.partition('.')[0], '')}".strip()
                found[named].add(f"{part.get('version')} {part.get('hash')}")
    return found


def _mixed(logs: Iterable[Log]) -> list[str]:
    """The parts of which these logs know more than one version or weights."""
    return sorted(name for name, makes in _makes(logs).items() if len(makes) > 1)


def _line(table: Sheet, i: int, records: _Records, honest: bool) -> list[Entry]:
    """The entries of a row, those that are means of others last."""
    row = table.layout.rows[i]
    shown = table.layout.shown(honest)
    places = [place for place, column in zip(table.places[i], table.layout.columns, strict=True) if column in shown]
    line = [_entry(row, column, place, records) for column, place in zip(shown, places, strict=True)]
    return [_mean(entry, line) if entry.column.mean else entry for entry in line]


Logs = list[list[list[Log]]]  # of a place: averaged over, of these the worst, seeds


def _entry(row: Row, column: Column, place: Place, records: _Records) -> Entry:
    column = layouts.metric(row, column)
    entry = Entry(row, column, place.reported)
    if place.needs:
        return replace(entry, why=f"needs {', '.join(name.replace(':', ' ') for name in place.needs)}")
    if not place.wanted:
        return entry
    found = _gathered(column, place, records)
    return replace(entry, why=found) if isinstance(found, str) else _filled(entry, place, found, records)


def _gathered(column: Column, place: Place, records: _Records) -> Logs | str:
    """The logs of a place, cut to the images that all of them have; or why there is no number. Of a table's attacks, seeds and datasets
    one that is missing, or is not done, would flatter the defense."""
    logs: Logs = []
    for worst in place.wanted:
        logs.append([])
        for seeds in worst:
            logs[-1].append([])
            for one in seeds:
                log = records.of(one, column.metric)
                if log is None:
                    return NOT_RUN
                if short := _short(log, one.images):
                    return short
                logs[-1][-1].append(log)
    everything = [log for worst in logs for seeds in worst for log in seeds]
    if mixed := _mixed(everything):
        return f"its records are of different versions or weights ({', '.join(mixed)})"
    most = min(one.images for worst in place.wanted for seeds in worst for one in seeds)
    common = set(range(most)).intersection(*({line["position"] for line in metrics.judged(log)} for log in everything))
    if not common:
        return "its records have no image in common"
    return [[[_cut(log, common) for log in seeds] for seeds in worst] for worst in logs]


def _cut(log: Log, positions: set[int]) -> Log:
    return replace(log, images=[line for line in log.images if line["position"] in positions])


def _filled(entry: Entry, place: Place, logs: Logs, records: _Records) -> Entry:
    """The entry with its number: the mean over datasets, severities and the like; its interval is that of a single one, else none."""
    column, seeds = entry.column, tuple(one.seed for one in place.wanted[0][0])
    parts = [_least(column, worst, records) for worst in logs]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return replace(entry, why=_without(column.metric, [log for worst in logs for mates in worst for log in mates]))
    single = found[0] if len(found) == 1 else None
    everything = [log for worst in logs for mates in worst for log in mates]
    stand_ins = [name for worst in place.wanted for mates in worst for one in mates for name in one.stand_in]
    return replace(
        entry,
        value=fmean(value.value for value, _ in found),
        # Corruptions of the same images are not independent: no interval is better than one too narrow.
        low=single[0].low if single else None,
        high=single[0].high if single else None,
        std=single[1] if single else None,
        images=min(value.images for value, _ in found),
        evals=min((value.evals for value, _ in found if value.evals is not None), default=None),
        seeds=seeds,
        logs=tuple({log.id: log for log in everything}.values()),
        stand_in=tuple(dict.fromkeys(stand_ins)),
        masked=not layouts.of_control(column.metric)
        and any(metrics.all_masked({m[0].id: m for m in worst}) for worst in logs),
    )


def _least(column: Column, worst: Sequence[Sequence[Log]], records: _Records) -> tuple[Value, float | None] | None:
    """The metric of the attack that is worst for the defense, with its deviation over the seeds; None where a record has none."""
    if column.over == "image":
        return _over_seeds([_per_image(column.metric, mates) for mates in zip(*worst, strict=True)], column.metric)
    name = column.metric
    found = [_over_seeds([_value(name, log, records.null(log)) for log in mates], name) for mates in worst]
    known = [one for one in found if one is not None]
    return min(known, key=lambda one: one[0].value) if len(known) == len(found) else None


def _value(metric: str, log: Log, null: Log | None) -> Value | None:
    """The metric of a log, as `table --metric` has it."""
    if metric in layouts.METRICS:
        return metrics.summary(log).get(metric)
    [asked] = measures.read([metric])
    return protocols.values(asked, log, null).get(asked.text)


def _without(metric: str, logs: Sequence[Log]) -> str:
    """Why records have no such number, where they are asked for one."""
    said = f"its records have no `{metric}`"
    try:
        protocols.check(measures.read([metric]), logs)
    except UserError as error:
        return f"{said}: {error.message}, {error.hint}".replace(f": no record has `{metric}`,", ":")
    return said


def _over_seeds(values: Sequence[Value | None], metric: str) -> tuple[Value, float | None] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    # Over seeds the papers print the sample deviation.
    return metrics.pool(known, difference=not measures.of_wilson(metric)), stdev(value.value for value in known) if len(
        known
    ) > 1 else None


def _per_image(metric: str, logs: Sequence[Log]) -> Value | None:
    """An image counts as robust only if it withstood every attack."""
    return metrics.verdict_image(logs, metric) if metric in measures.VERDICTS else metrics.robust_image(logs)


def _mean(entry: Entry, line: Sequence[Entry]) -> Entry:
    """A column that is the mean of the paper's others: of what was measured in them."""
    parts = [other for other in line if other.column.number in entry.column.mean and not other.column.honest]
    parts = [part for part in parts if not part.column.mean]
    # A mean of one column would pass for a mean of two.
    if any(part.value is None for part in parts):
        return replace(entry, why=next((part.why for part in parts if part.why), ""))
    return replace(
        entry,
        value=fmean(part.value for part in parts if part.value is not None),
        logs=tuple({log.id: log for part in parts for log in part.logs}.values()),
        stand_in=tuple(dict.fromkeys(name for part in parts for name in part.stand_in)),
        masked=any(part.masked for part in parts),
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
    """`93.1 ±0.3`: percent, or of what is no share its own unit; behind ± the std over seeds, or of one seed the farther end of the
    interval."""
    value = entry.value or 0.0
    word, times = (("{:.3g}", "{:.2g}"), 1) if scale(entry.column.metric) == 1 else (("{:.1f}", "{:.1f}"), 100)
    if entry.std is not None:
        spread = f" ±{word[1].format(times * entry.std)}"
    elif entry.low is None or entry.high is None:
        spread = ""
    else:
        spread = f" ±{word[1].format(times * max(entry.high - value, value - entry.low))}"
    marks = (STAND_IN if entry.stand_in else "") + (MASKED if entry.masked else "")
    return f"{word[0].format(times * value)}{spread} {marks}".rstrip()


def scale(metric: str) -> int:
    """What papers print of a metric: 100, percent; 1, what has a unit of its own (seconds, distances)."""
    return 1 if metric.partition(":")[0] in measures.RAW else 100


class _Matrix:
    """Headers and lines of words, panels side by side, turned round where the paper has methods as columns. A line that is a text alone
    spans the table."""

    def __init__(self, table: Sheet, entries: list[list[Entry]], compare: bool):
        self.table, self.compare = table, compare
        columns = [entry.column for entry in entries[0]]
        self.digits = {c.number: _decimals(row.numbers.get(c.number) for row in table.layout.whole) for c in columns}
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
        """Places that are printed bold: the best of what may be compared. Nothing scaled, and nothing on a stand-in, is held against a
        quoted number; a masked one proves nothing."""
        found = set()
        for j, column in enumerate(entry.column for entry in entries[0]):
            if not column.best:
                continue
            for panel in {line[0].row.panel for line in entries}:
                lines = [(i, line[j]) for i, line in enumerate(entries) if line[0].row.panel == panel]
                quoted = {i: value for i, entry in lines if (value := self._quoted(entry)) is not None}
                values = quoted | {
                    i: round(scale(entry.column.metric) * entry.value, 4)
                    for i, entry in lines
                    if entry.value is not None and not entry.masked and not (quoted and entry.stand_in)
                }
                # While one waits for its run, nobody knows which is best.
                waits = any(entry.why == NOT_RUN or entry.why.startswith("unfinished") for _, entry in lines)
                if len(values) > 1 and not waits:
                    best = (max if column.best == "max" else min)(values.values())
                    found |= {(id(entries[i][0].row), j) for i, value in values.items() if value == best}
        return found

    def _quoted(self, entry: Entry) -> float | None:
        """A number that is only quoted; what is not run yet prints a dash, and wins nothing."""
        value = entry.reported[0] if isinstance(entry.reported, tuple) else entry.reported
        only = entry.row.cells is None and not entry.measured and not self.table.scaled
        return float(value) if only and isinstance(value, float | int) else None

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
            word = BOLD + word + BOLD
        return UNDERLINE + word + UNDERLINE if column.number in row.underline else word

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
        times = scale(entry.column.metric)
        difference = times * (entry.value or 0.0) - float(mean)
        covered = {None: "", True: " (covered)", False: " (not covered)"}[covers(entry)]
        return [
            _printed(reported, self.digits[entry.column.number]),
            f"{difference:+.1f}{covered}" if times > 1 else f"{difference:+.3g}{covered}",
        ]

    def _turn(self) -> None:
        """Methods become columns."""
        rows = [line for line in self.lines if not isinstance(line, str)]
        whole = [self.header, *rows]
        # Groups span rows, and have no place beside columns.
        turned = [list(column) for column in zip(*whole, strict=True)]
        self.header, self.lines = turned[0], list(turned[1:])
        self.left = [i == 0 for i in range(len(self.header))]


BOLD, UNDERLINE = "\0b", "\0u"  # marks inside a word, which every format writes in its own way


def covers(entry: Entry) -> bool | None:
    """Whether the 95 % interval of what was measured has the reported mean in it; None where one of them is missing."""
    mean = entry.reported[0] if isinstance(entry.reported, tuple) else entry.reported
    if not isinstance(mean, float | int) or entry.low is None or entry.high is None:
        return None
    return entry.low <= float(mean) / scale(entry.column.metric) <= entry.high


def _side_by_side(blocks: list[list[tuple[str, list[list[str]]]]], widths: list[int]) -> list[list[str] | str]:
    """The lines of panels beside each other, group by group under one title; a shorter one is filled up with blanks."""
    # A panel alone keeps the order of its rows. Beside others, what has no group comes first: below a title it would seem to belong to it.
    titles = list(dict.fromkeys(group for block in blocks for group, _ in block))
    if len(blocks) == 1:
        lines: list[list[str] | str] = []
        for title, of in blocks[0]:
            lines += [title, *of] if title else of
        return lines
    lines = []
    for title in sorted(titles, key=bool):
        lines += [title] if title else []
        parts_of = [[line for group, of in block if group == title for line in of] for block in blocks]
        for parts in zip_longest(*parts_of):
            lines.append([word for part, width in zip(parts, widths, strict=True) for word in (part or [""] * width)])
    return lines


def _notes(table: Sheet, entries: list[list[Entry]], found: _Records, fill: str) -> list[str]:
    """What a reader must know to believe or repeat the numbers."""
    layout = table.layout
    flat = [entry for line in entries for entry in line]
    measured = [entry for entry in flat if entry.measured and entry.column.metric]
    notes = [f"Other than in the file: {table.changed}."] if table.changed else []
    if any(not entry.measured and isinstance(entry.reported, float | int | tuple) and not entry.why for entry in flat):
        notes.append(f"{QUOTED} quoted: {layout.quoted or layout.cite or 'as the paper prints it'}.")
    if stand_ins := list(dict.fromkeys(name for entry in measured for name in entry.stand_in)):
        notes.append(f"{STAND_IN} not paper-comparable, for what stands in: {'; '.join(stand_ins)}.")
    if any(entry.masked for entry in flat):
        notes.append(f"{MASKED} every gradient attack was masked: no evidence of robustness.")
    if measured:
        notes += _protocol(table, measured)
    for rule in ("sticky", "cascade"):
        counted = [entry.row.name for entry in measured if entry.column.metric.partition("@")[0] == rule]
        if counted:
            notes.append(
                f"By the attack's own count (`{rule}`), not by fresh evaluations: {', '.join(dict.fromkeys(counted))}."
            )
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
    if fill and any(entry.why == NOT_RUN or entry.why.startswith("unfinished") for entry in flat):
        notes.append(f"Fill it with: `{fill}`")
    used = {log.id: log for entry in flat for log in entry.logs}
    for new, old in found.twice.items():
        if new in used:
            notes.append(
                f"Several records of one cell, by other versions or weights: {new} is the newest and counts, {', '.join(old)} not."
            )
    if mixed := _mixed(used.values()):
        notes.append(f"Not all numbers are of the same versions or weights of {', '.join(mixed)}.")
    notes += [f"Warning: {doubt}" for doubt in tables.doubts(used.values())]
    return notes + [note if note.endswith(".") else f"{note}." for note in layout.notes]


def _protocol(table: Sheet, measured: Sequence[Entry]) -> list[str]:
    """On how many images and evaluations, place by place where they differ; and what stands behind the ±."""
    spreads = {entry.std is not None for entry in measured if entry.std is not None or entry.low is not None}
    behind = {
        True: "the standard deviation over seeds",
        False: "the farther end of the 95 % Wilson interval (one seed)",
    }
    return [amount(table, measured)] + [f"±: {' or '.join(behind[several] for several in sorted(spreads))}."] * bool(
        spreads
    )


def amount(table: Sheet, measured: Sequence[Entry]) -> str:
    """On how many images and evaluations these places stand, place by place where they differ."""
    wanted = max(
        one.images for line in table.places for place in line for worst in place.wanted for s in worst for one in s
    )
    by_count: dict[int, list[str]] = defaultdict(list)
    for entry in measured:
        by_count[entry.images].append(f"{entry.column.title} of {entry.row.name}")
    usual = max(by_count, key=lambda count: len(by_count[count]))
    said = f"Measured: {usual} images" + (f" of the table's {wanted}" if usual < wanted else "")
    # What stands on fewer images than its neighbours must be seen to do so.
    others = [f"{count}: {_some(by_count[count])}" for count in sorted(by_count) if count != usual]
    said += f" ({'; '.join(others)})" if others else ""
    evals = sorted({entry.evals for entry in measured if entry.evals})
    said += f", {_range(evals)} fresh evaluation{'s' * (evals != [1])} each" if evals else ""
    return f"{said}."


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


# ---- formats -------------------------------------------------------------------------------------


def _markdown(matrix: Printed) -> str:
    table, notes = matrix.table, matrix.notes

    def word(text: str) -> str:
        return markdown.escape(text).replace(BOLD, "**").replace(UNDERLINE, "__")

    lines = [f"### {word(table.layout.title)}", *([table.scaled] if table.scaled else []), ""]
    header = [word(title) for title in matrix.header]
    body = [
        [f"*{word(line)}*", *[""] * (len(header) - 1)] if isinstance(line, str) else list(map(word, line))
        for line in matrix.lines
    ]
    if len(matrix.spans) > 1:
        spans = [word(title) for title, width in matrix.spans for title in [title, *[""] * (width - 1)]]
        header, body = spans, [[f"**{title}**" if title else "" for title in header], *body]
    lines += markdown.table(header, body, matrix.left)
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "*": r"$^*$",
    "±": r"$\pm$", "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"$^\S$", "−": "$-$", "×": r"$\times$", "≤": r"$\leq$",
    "≥": r"$\geq$", "→": r"$\rightarrow$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$",
    "η": r"$\eta$", "λ": r"$\lambda$", "μ": r"$\mu$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip


def _tex(matrix: Printed) -> str:
    """A `table` environment; needs the package booktabs."""
    table, notes = matrix.table, matrix.notes

    def escaped(text: str) -> str:
        return "".join(_TEX.get(char, char) for char in text)

    def word(text: str) -> str:
        parts = escaped(text)
        for mark, command in ((BOLD, "textbf"), (UNDERLINE, "underline")):
            if mark in parts:
                before, inside, after = parts.split(mark)
                parts = f"{before}\\{command}{{{inside}}}{after}"
        return parts

    n = len(matrix.header)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{word(table.layout.title)}{' (scaled)' if table.scaled else ''}}}",
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
    # In print, and first: with the paper's caption above it nobody would take it for what it is.
    lines.append(r"\par\smallskip")
    for note in ([table.scaled] if table.scaled else []) + notes:
        lines.append(rf"\par{{\footnotesize {word(note.replace('`', ''))}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tidy(table: Sheet, entries: list[list[Entry]]) -> list[dict[str, Any]]:
    """One row per place that has a number, or should have one. Values in [0, 1], as everywhere; `reported` as the paper prints it."""
    rows = []
    for line in entries:
        for entry in line:
            if not (entry.column.metric or entry.column.number or entry.column.mean):
                continue
            rows.append(
                {
                    "table": table.layout.id, "group": entry.row.group, "panel": entry.row.panel, **entry.row.texts,
                    "column": entry.column.title, "metric": entry.column.metric, "reported": entry.reported, "value": _rounded(entry.value),
                    "low": _rounded(entry.low), "high": _rounded(entry.high), "std": _rounded(entry.std), "images": entry.images or None,
                    "evals": entry.evals, "seeds": " ".join(map(str, entry.seeds)), "stand_in": "; ".join(entry.stand_in),
                    "masked": entry.masked, "scaled": bool(table.scaled), "missing": entry.why,
                    "cells": " ".join(log.id for log in entry.logs),
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
