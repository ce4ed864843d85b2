"""A figure from a table: its places, filled in by `papers`, as lines of points, and these drawn. No number is computed here.

`picture` gives what is drawn as data, `draw` draws it. What has no number is not drawn, and `missing` says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from purebench.errors import UserError
from purebench.plan.figures import number, numbers, on_x
from purebench.plan.layouts import CLEAN, Number, cells_of
from purebench.plan.sheet import Place, Sheet
from purebench.records.store import Log
from purebench.report import drawing, papers
from purebench.report.drawing import COLOURS, DASHES, EDGE, MARKERS, Words
from purebench.report.papers import Entry

WORDS = {  # metric -> how a line and an axis call it
    "clean": "clean", "undefended": "no defense, clean", "robust": "robust", "aa": "AutoAttack's own count", 
    "sticky": "never broken", "cascade": "cascade's own count", "worst10": "worst of 10",
    "vote10": "vote of 10", "clean_worst10": "clean, worst of 10", "clean_vote10": "clean, vote of 10", "seconds": "seconds per image",
}  # fmt: skip
DODGE = 0.12  # between lines that stand beside each other on words
REPORTED: dict[str, Any] = {  # what a paper says is a dash at its place
    "linestyle": (0, (1, 2)), "linewidth": 0.7, "marker": "_", "markersize": 8, "markeredgewidth": 1.4
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One place of the table in the unit that is printed: `x` and its word; `value` and the ends of its interval; the paper's number."""

    x: float
    word: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reported: float | None = None
    masked: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table under one metric. `row`, `metric`: their places, which choose colour and dash; `panel`: whose axes it is in."""

    label: str
    row: int
    metric: int
    panel: str
    points: list[Point]


@dataclass(frozen=True)
class Picture:
    """What a figure shows, as data. `ticks`: the points of x, measured or not, and what they are called; `words`: these are words and no
    numbers; `under`: what stands below the title; `missing`: one line for each reason why something is not drawn; `notes`: what a reader
    must know, as of a table."""

    table: Sheet
    lines: list[Line]
    ticks: dict[float, str]
    words: bool
    under: list[str]
    foot: list[str]
    missing: list[str]
    notes: list[str]


def picture(
    table: Sheet,
    logs: Iterable[Log],
    *,
    honest: bool = False,
    fill: str = "",
    cost: Callable[[Log], float | None] | None = None,
) -> Picture:
    """The figure of a table whose layout has one, from these records. honest: with our columns; fill: the command that makes what is
    missing; cost: network calls of a record's defense, which a scatter has on x. Raises UserError where there is nothing to draw."""
    filled = papers.filled(table, logs, honest=honest)
    found = _Lines(table, filled.entries, honest, cost)
    if not any(line.points for line in found.lines):
        said = "; ".join(found.missing) or "no row has a place on its axes"
        raise UserError(
            f"there is nothing to draw for `{table.layout.id}`: {said}", f"fill it with: {fill}" if fill else ""
        )
    compares = not (table.scaled or table.changed)
    under = [table.scaled] if table.scaled else []
    under += [f"Other than in the file: {table.changed}."] if table.changed else []
    missing = found.missing + ([f"fill it with: `{fill}`"] if fill and found.unfinished else [])
    if outside := _outside(table, found.lines):
        missing.append(f"not drawn, outside of `ylim`: {outside} points")
    if not compares and found.reported:
        missing.append("the paper's numbers are not drawn: they are of other cells")
    # What is missing is told point by point, where a table names the rows alone; how many images, at the foot.
    notes = [note for note in filled.notes if not note.startswith((papers.MISSING, "Measured: ", "±: "))]
    return Picture(table, found.lines, found.ticks, found.words, under, _foot(filled, found, table), missing, notes)


class _Lines:
    """The lines of a figure: a row of the table under each metric, and for each of them its points."""

    def __init__(
        self,
        table: Sheet,
        entries: list[list[Entry]],
        honest: bool,
        cost: Callable[[Log], float | None] | None,
    ):
        figure = table.layout.figure
        assert figure is not None
        self.table, self.figure, self.cost = table, figure, cost
        self.compares = not (table.scaled or table.changed)
        shown = table.layout.shown(honest)
        self.places = [
            [place for place, column in zip(line, table.layout.columns, strict=True) if column in shown]
            for line in table.places
        ]
        families = dict.fromkeys(key for entry in entries[0] if (key := self._family(entry)) is not None)
        self.families = list(families)
        self.reported = False
        self.unfinished = False
        self.whys: dict[str, list[str]] = {}
        self.ticks: dict[float, str] = {}
        points = [entry.column.title for entry in entries[0] if self._family(entry) is not None]
        # Of all lines: a word has one place on x, whichever line has a point there.
        self.at = {title: float(i) for i, title in enumerate(dict.fromkeys(points))}
        # One word makes words of all: between two numbers and a word there is no distance.
        self.words = figure.kind == "sweep" and numbers(points) is None
        drawn = [[self._points(line, i, family) for family in self.families] for i, line in enumerate(entries)]
        several = sum(any(of[k] for of in drawn) for k in range(len(self.families))) > 1
        self.lines = [
            Line(self._label(entries[i], family, several), i, k, entries[i][0].row.panel, of[k])
            for i, of in enumerate(drawn)
            for k, family in enumerate(self.families)
            if of[k]
        ]

    @property
    def missing(self) -> list[str]:
        """One line for each reason why something is not drawn."""
        return [f"not drawn, {why}: {_some(names)}" for why, names in self.whys.items()]

    def _family(self, entry: Entry) -> tuple[str, str, bool] | None:
        """What a column's points have in common with those beside them; None for a column that is not drawn."""
        column = entry.column
        # A number that is only reported stands with the first metric.
        metric = column.metric or (column.number and next(iter(self.figure.y), "robust"))
        if not metric or (self.figure.y and metric not in self.figure.y and not column.honest):
            return None
        if self.figure.x and not on_x(column, self.figure.x):
            return None
        return metric, column.group, column.honest

    def _label(self, line: Sequence[Entry], family: tuple[str, str, bool], several: bool) -> str:
        row = line[0].row
        metric, group, honest = family
        name = row.texts.get(self.figure.lines) or row.name
        more = group or ("ours" if honest else WORDS.get(metric, metric))
        return f"{name}, {more}" if several else name

    def _points(self, line: Sequence[Entry], i: int, family: tuple[str, str, bool]) -> list[Point]:
        found = []
        entries = [(j, entry) for j, entry in enumerate(line) if self._family(entry) == family]
        for j, entry in entries:
            point = self._point(entry, self.places[i][j], family[0])
            if entry.why:
                self._say(entry, point)
            if point is not None:
                found.append(point)
        # Those without a number stay: a line must not go on through them as if they had one.
        drawn = any(point.value is not None or point.reported is not None for point in found)
        return sorted(found, key=lambda point: point.x) if drawn else []

    def _say(self, entry: Entry, point: Point | None) -> None:
        at = f" at {entry.column.title}" if self.figure.x else ""
        self.whys.setdefault(entry.why, []).append(f"{entry.row.name}{at}")
        self.unfinished |= entry.why == papers.NOT_RUN or entry.why.startswith("unfinished")

    def _point(self, entry: Entry, place: Place, metric: str) -> Point | None:
        reported = _mean(entry.reported)
        self.reported |= reported is not None
        x = self._x(entry, place)
        if x is None:
            return None
        self.ticks[x] = entry.column.title
        scale = papers.scale(metric)
        point = Point(x, entry.column.title, reported=reported if self.compares else None, masked=entry.masked)
        if entry.value is None:
            return point
        low, high = (entry.low, entry.high) if entry.std is None else (entry.value - entry.std, entry.value + entry.std)
        ends = (None, None) if low is None or high is None else (scale * low, scale * high)
        return replace(point, value=scale * entry.value, low=ends[0], high=ends[1])

    def _x(self, entry: Entry, place: Place) -> float | None:
        """Where on x: the number in the column's title, or its place among the words; of a scatter the network calls."""
        if self.figure.kind == "scatter":
            costs = [self.cost(log) for log in entry.logs] if self.cost else []
            known = [cost for cost in costs if cost is not None]
            if entry.value is not None and not known:
                self.whys.setdefault("its network calls cannot be counted", []).append(entry.row.name)
            return max(known, default=None)
        value = number(entry.column.title)
        if self.words or value is None:
            return self.at[entry.column.title]
        asked = cells_of(self.table.layout, entry.row, entry.column)
        # The digits have radii of their own: the paper's would stand under points that are not theirs.
        if self.table.scaled and f"{{{self.figure.x}}}" in repr(asked.get("threat")) and place.wanted:
            return number(json.loads(place.wanted[0][0][0].key)["threat"].partition(":")[2])
        return value


def _outside(table: Sheet, lines: Sequence[Line]) -> int:
    """How many points the file's own axis leaves out."""
    limits = table.layout.figure.ylim if table.layout.figure else None
    values = [point.value for line in lines for point in line.points if point.value is not None]
    return sum(not limits[0] <= value <= limits[1] for value in values) if limits else 0


def _mean(reported: Number | None) -> float | None:
    """The number of what a paper prints: of mean and std the mean; None for words."""
    first = reported[0] if isinstance(reported, tuple) else reported
    return float(first) if isinstance(first, int | float) else None


def _some(names: Sequence[str], limit: int = 8) -> str:
    unlike = list(dict.fromkeys(names))
    return ", ".join(unlike[:limit]) + (f" and {len(unlike) - limit} more" if len(unlike) > limit else "")


def _foot(filled: papers.Filled, found: _Lines, table: Sheet) -> list[str]:
    """What must not be lost when the figure is taken out of its page: on how many images it stands, and what its marks mean."""
    points = [point for line in found.lines for point in line.points]
    used = [entry for line in filled.entries for entry in line if entry.measured and found._family(entry) is not None]
    said = []
    if used:
        said.append(papers.amount(table, used))
        several = {entry.std is not None for entry in used if entry.std is not None or entry.low is not None}
        seeds = max(len(entry.seeds) for entry in used)
        behind = {True: f"one standard deviation over {seeds} seeds", False: "the 95 % Wilson interval"}
        band = "bars" if found.words or found.figure.kind == "scatter" else "bands"
        said += [f"{band.capitalize()}: {' or '.join(behind[key] for key in sorted(several))}."] * bool(several)
    if any(point.masked for point in points):
        said.append("×: every gradient attack was masked, no evidence of robustness.")
    foot = [" ".join(said)] if said else []
    if stand_ins := list(dict.fromkeys(name for entry in used for name in entry.stand_in)):
        foot.append(f"Not paper-comparable, for what stands in: {'; '.join(stand_ins)}.")
    return foot


# ---- drawing -------------------------------------------------------------------------------------


def draw(picture: Picture) -> Figure:
    """The figure of a picture; to be called inside `drawing.style`."""
    layout = picture.table.layout
    panels = [panel for panel in layout.panels if any(line.panel == panel.key for line in picture.lines)]
    keys = [panel.key for panel in panels] or [""]
    handles = _handles(picture)
    width = drawing.COLUMN if len(keys) == 1 else drawing.PAGE
    columns = drawing.legend_columns([str(handle.get_label()) for handle in handles], width)
    # A line alone is what the title says.
    lines = -(-len(handles) // columns) if len(handles) > 1 or len(layout.rows) > 1 else 0
    words = Words(layout.title, picture.under, picture.foot)
    turned = picture.words and any(" " in word for word in picture.ticks.values())
    canvas = drawing.canvas(words, axes=len(keys), legend=lines, below=0.46 if turned else 0.36, titled=bool(panels))
    for axes, key in zip(canvas.axes, keys, strict=True):
        mine = [line for line in picture.lines if line.panel in ("", key)]
        if panels:
            axes.set_title(next(panel.title for panel in panels if panel.key == key), size=7, loc="left")
        _axes(axes, picture, mine)
    if lines:
        canvas.legend(handles, columns)
    return canvas.figure


def _axes(axes: Axes, picture: Picture, lines: list[Line]) -> None:
    figure = picture.table.layout.figure
    assert figure is not None
    for at, line in enumerate(lines):
        _one(axes, line, picture, at - (len(lines) - 1) / 2)
    raw = [name for name in figure.y if papers.scale(name) == 1]
    attacked = not set(figure.y) & set(CLEAN)
    usual = "robust accuracy (%)" if attacked else "accuracy (%)"
    axes.set_ylabel(figure.ylabel or (WORDS.get(raw[0], raw[0]) if raw else usual))
    if figure.ylim:
        axes.set_ylim(*figure.ylim)
    elif not raw:
        # From nothing to everything: half of an axis makes a mountain of a point.
        axes.set_ylim(0, 101)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(figure.xlabel)
    if figure.kind == "scatter":
        axes.set_xscale("log")
        axes.set_xlabel(figure.xlabel or "network calls of a purification")
        return
    axes.set_xscale(figure.xscale)
    _ticks(axes, picture.ticks, picture)


def _one(axes: Axes, line: Line, picture: Picture, beside: float) -> None:
    """One line with its band; on words, and in a scatter, single points with bars. `beside`: its place among lines on words."""
    colour, marker, dash = _look(line, picture)
    shift = DODGE * beside if picture.words else 0.0
    figure = picture.table.layout.figure
    measured = [(p.x + shift, nan if p.value is None else p.value, p.masked) for p in line.points]
    told = [(p.x + shift, p.reported) for p in line.points if p.reported is not None]
    _spread(axes, line, shift, colour, alone=_apart(picture))
    if any(p.value is not None for p in line.points):
        x, y, _ = zip(*measured, strict=True)
        # What a narrower axis leaves out must not be drawn over the title.
        clip = figure is not None and figure.ylim is not None
        axes.plot(x, y, color=colour, linestyle=dash, marker=marker, label=line.label, clip_on=clip, zorder=3, **EDGE)
        blind = [(at, value) for at, value, is_masked in measured if is_masked]
        if blind:
            axes.plot(*zip(*blind, strict=True), "x", color="black", markersize=6, zorder=4)
    if told:
        look = REPORTED | ({"linestyle": "none"} if _apart(picture) else {})
        axes.plot(*zip(*told, strict=True), color=colour, label=f"{line.label}, reported", zorder=2, **look)


def _spread(axes: Axes, line: Line, shift: float, colour: str, *, alone: bool) -> None:
    """The intervals of a line: a band, or bars where its points stand alone."""
    ends = [
        (p.x + shift, nan if p.low is None else p.low, nan if p.high is None else p.high)
        for p in line.points
        if p.value is None or p.low is not None
    ]
    known = [end for end in ends if not isnan(end[1])]
    if not known:
        return
    if alone or len(known) == 1:
        ends = known
    x, low, high = zip(*ends, strict=True)
    if alone or len(known) == 1:
        axes.vlines(x, low, high, color=colour, linewidth=0.8)
        axes.plot(x + x, low + high, "_", color=colour, markersize=3, markeredgewidth=0.8)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _apart(picture: Picture) -> bool:
    """Whether points stand alone: between words, or between defenses, there is nothing."""
    return picture.words or (picture.table.layout.figure is not None and picture.table.layout.figure.kind == "scatter")


def _look(line: Line, picture: Picture) -> tuple[str, str, Any]:
    """Colour and marker are the row's, the dash is the metric's; where there is one row, or one metric, alone, all are the other's."""
    metrics, rows = {other.metric for other in picture.lines}, {other.row for other in picture.lines}
    dash = line.metric if len(metrics) > 1 else line.row
    look = line.row if len(rows) > 1 else line.metric
    way = "none" if _apart(picture) else DASHES[dash % len(DASHES)]
    return COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)], way


def _handles(picture: Picture) -> list[Line2D]:
    """The legend's lines: one for each name, and one for what the paper reports."""
    found = {}
    for line in picture.lines:
        colour, marker, dash = _look(line, picture)
        # What only the paper has is drawn as that, and so in the legend.
        told = all(point.value is None for point in line.points)
        look = REPORTED if told else {"linestyle": dash, "marker": marker, **EDGE}
        found[line.label] = Line2D([], [], color=colour, label=line.label, **look)
    if any(point.reported is not None for line in picture.lines for point in line.points):
        found[""] = Line2D([], [], color=drawing.GREY, label="as reported", **REPORTED | {"linestyle": "none"})
    return list(found.values())


def _ticks(axes: Axes, words: dict[float, str], picture: Picture) -> None:
    """A tick at every point, labelled where there is room."""
    places = sorted(words)
    if picture.words:
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    elif picture.table.layout.figure and picture.table.layout.figure.xscale == "log":
        axes.set_xlim(places[0] / 1.15, places[-1] * 1.15)
    else:
        room = 0.04 * (places[-1] - places[0]) or 0.5
        axes.set_xlim(places[0] - room, places[-1] + room)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    transform = axes.transData.transform
    taken, labels = float("-inf"), []
    for place in places:
        left = float(transform((place, 0))[0]) / axes.figure.dpi
        half = 0.026 * len(words[place]) if not picture.words else 0.0
        # Of labels that would run into each other the later one is left out; its tick stays.
        labels.append(words[place] if left - half > taken else "")
        taken = left + half + 0.05 if labels[-1] else taken
    axes.set_xticks(places, [label.replace(" ", "\n", 1) if picture.words else label for label in labels])
