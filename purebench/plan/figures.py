"""The `[figure]` of a table's file: how its numbers are drawn. Torch-free, and draws nothing.

A figure is a table, whose rows are lines and whose columns of one `each` are the points on x; so it is run and printed as every table is,
and has no cells of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purebench.errors import UserError, unknown
from purebench.plan.keys import check

if TYPE_CHECKING:
    from purebench.plan.layouts import Column, Row

SUFFIXES = (".png", ".svg", ".pdf")
SCALES = ("linear", "log")
HINT = "docs/figures.md has every kind and its keys"
KINDS: dict[str, dict[str, Any]] = {  # kind -> its keys and what they may be
    "sweep": {"x": str, "y": (str, list), "lines": str, "xlabel": str, "ylabel": str, "xscale": str, "ylim": list},
    "scatter": {"y": (str, list), "lines": str, "xlabel": str, "ylabel": str, "ylim": list},
    "strip": {"y": str, "lines": str, "images": int, "wrong": str, "right": str},
    "curve": {"y": str, "lines": str, "wrong": str, "right": str, "noise": (int, float), "xlabel": str, "ylabel": str},
    "histogram": {"y": str, "lines": str, "xlabel": str, "ylabel": str},
    "map": {"y": str, "lines": str, "images": int, "wrong": str, "right": str},
    "tsne": {"y": str, "lines": str, "images": int, "wrong": str, "right": str},
}
OF_IMAGES = ("strip", "curve", "histogram", "map", "tsne")  # kinds that need the records' images, and the networks
SHOWN = {"strip": 6, "map": 3, "tsne": 200}  # kinds that show some images alone, and how many unless it is said
OF_THE_TOY = {  # figures of no records
    "coup-toy": "COUP's Figure 3b: label flips against guidance and the classifier's error; a PNG, half a minute",
    "coup-paths": "COUP's Figures 1 and 3a: a sample near the boundary, purified without and with guidance",
    "coup-flips": "COUP's Proposition 1: label flips against the distance from the boundary, by guidance",
    "coup-distance": "COUP's Proposition 2: distance to the clean image against purification time",
    "coup-variance": "COUP's appendix B: variance of a purification's vote against the density of the image, by guidance",
}
WITHOUT_PRESET = {  # figures that no file says
    "cost": "network calls of a purification against robustness, a point per defense; from any records",
    **OF_THE_TOY,
}


@dataclass(frozen=True)
class Figure:
    """How a table is drawn. `x`: the key of the columns' `each`; `y`: the metrics that are drawn, each in a line of its own; `lines`: the
    text of a row that names its line. Of images: how many are shown; which row is to have got them `wrong`, and which `right`; a factor on
    the `noise` of their purification, None: as it was judged."""

    kind: str
    x: str = ""
    y: tuple[str, ...] = ()
    lines: str = ""
    xlabel: str = ""
    ylabel: str = ""
    xscale: str = "linear"
    ylim: tuple[float, float] | None = None
    images: int = 6
    wrong: str = ""
    right: str = ""
    noise: float | None = None


def of(
    data: Mapping[str, Any], columns: Sequence[Column], rows: Sequence[Row], where: str, metrics: Sequence[str]
) -> Figure:
    """The checked `[figure]` of a table with these columns and rows; metrics: those that have an axis. Raises UserError for what is
    unknown, or is in none of them."""
    kind = data.get("kind")
    if kind is None:
        raise UserError(f"{where} has no `kind`", f"one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise unknown(f"`kind` of {where}", str(kind), KINDS)
    check(data, {"kind": str, **KINDS[kind]}, where, HINT)
    drawn = [column for column in columns if column.metric or column.number]
    if "x" in KINDS[kind]:
        drawn = _on_x(data, drawn, where)
    lines = _lines(data.get("lines"), columns, where)
    _check_apart(rows, lines, where)
    if "x" in KINDS[kind]:
        _check_points(drawn, where)
    for key in ("wrong", "right"):
        names = [row.texts[lines] for row in rows if row.cells is not None]
        if key in data and data[key] not in names:
            raise unknown(f"`{key}` of {where}, which is a row:", data[key], names)
    if data.get("images", 1) < 1 or data.get("noise", 0) < 0:
        raise UserError(f"{where} has an `images` below 1 or a `noise` below 0", HINT)
    return Figure(
        kind=kind,
        x=data.get("x", ""),
        y=_metrics(data.get("y", []), drawn, where, metrics),
        lines=lines,
        xlabel=data.get("xlabel", data.get("x", "")),
        ylabel=data.get("ylabel", ""),
        xscale=_scale(data.get("xscale", "linear"), [column.title for column in drawn], where),
        ylim=_limits(data.get("ylim"), where),
        images=data.get("images", SHOWN.get(kind, 6)),
        **{key: data[key] for key in ("wrong", "right", "noise") if key in data},
    )


def suffix(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str:
    """The format of a figure that is to be written: `.png` of `out/F.PNG`. Raises UserError for one that is not."""
    found = path.suffix.lower()
    if found not in suffixes:
        one = "one of " if len(suffixes) > 1 else ""
        raise UserError(f"`--out {path}` ends in no format that this figure has", f"{one}{', '.join(suffixes)}")
    return found


def number(text: str) -> float | None:
    """A point on x as a number: `0.1`, `8/255`; None for a word."""
    top, slash, bottom = text.partition("/")
    try:
        found = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return None
    # `nan` and `inf` are words: no axis has a place for them.
    return found if math.isfinite(found) else None


def numbers(texts: Sequence[str]) -> list[float] | None:
    """The points of x as numbers; None where one is a word, and so all are."""
    found = [number(text) for text in texts]
    return None if None in found else [value for value in found if value is not None]


def on_x(column: Column, x: str) -> bool:
    """Whether a column is a point on this x: one that `each` made of it."""
    # Of a list of values the words stand in its axis, since it is averaged over.
    return column.place is not None and x in {**column.words, **column.axis[0]}


def _on_x(data: Mapping[str, Any], drawn: Sequence[Column], where: str) -> list[Column]:
    """The columns that are the points of a figure."""
    if "x" not in data:
        raise UserError(f"{where} has no `x`", "the key of a column's `each`")
    found = [column for column in drawn if on_x(column, data["x"])]
    if not found:
        keys = dict.fromkeys(key for column in drawn if column.place is not None for key in column.words)
        raise unknown(f"`x` of {where}, which is the key of a column's `each`:", data["x"], keys)
    return found


def _metrics(
    given: str | Sequence[Any], drawn: Sequence[Column], where: str, metrics: Sequence[str]
) -> tuple[str, ...]:
    """The metrics that are drawn: those named, else all that the columns have."""
    # Drawn on one axis, in percent that are right: the share of masked images, or a deviation, is something else.
    known = dict.fromkeys(column.metric for column in drawn if column.metric in metrics)
    names = [given] if isinstance(given, str) else list(given)
    for name in names:
        if name not in known:
            raise unknown(f"`y` of {where}, which is a column's `metric`:", str(name), known)
    return tuple(dict.fromkeys(names)) or tuple(known)


def _check_apart(rows: Sequence[Row], lines: str, where: str) -> None:
    """Refuses two rows of one name: in a picture nobody could tell them apart, and of images one would take the other's place."""
    names = [(row.panel, row.texts.get(lines, "")) for row in rows]
    for panel, name in names:
        if names.count((panel, name)) > 1:
            raise UserError(f"{where}: two rows are called `{name}`", "`lines` says which text names them")


def _check_points(drawn: Sequence[Column], where: str) -> None:
    """Refuses two points at one place of x."""
    of: dict[tuple[str, str, str], list[str]] = {}
    for column in drawn:
        of.setdefault((column.panel, column.metric or column.number, column.group), []).append(column.title)
    for titles in of.values():
        places: list[object] = list(numbers(titles) or titles)
        for title, place in zip(titles, places, strict=True):
            if places.count(place) > 1:
                raise UserError(f"{where}: two points stand at `{title}`", "each value once")


def _lines(given: str | None, columns: Sequence[Column], where: str) -> str:
    """The text that names the lines: the one given, else that of the first column that has one."""
    texts = dict.fromkeys(column.text for column in columns if column.text)
    if given is not None and given not in texts:
        raise unknown(f"`lines` of {where}, which is a column's `text`:", given, texts)
    if not texts:
        raise UserError(f"{where} has no name for its lines", "a column with `text` names the rows")
    return given or next(iter(texts))


def _scale(given: str, points: Sequence[str], where: str) -> str:
    if given not in SCALES:
        raise unknown(f"`xscale` of {where}", given, SCALES)
    if given == "log" and any((value := number(point)) is None or value <= 0 for point in points):
        raise UserError(f"`xscale = 'log'` of {where}: its points are {', '.join(points)}", "numbers above 0")
    return given


def _limits(given: Sequence[Any] | None, where: str) -> tuple[float, float] | None:
    """The ends of y, in the unit that is printed."""
    if given is None:
        return None
    numbers = [value for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    ends = len(numbers) == len(given) == 2 and all(map(math.isfinite, numbers))
    if not ends or not numbers[0] < numbers[1]:
        raise UserError(
            f"`ylim = {list(given)}` of {where} is no pair of numbers, the lower first", "in percent: [0, 100]"
        )
    return float(numbers[0]), float(numbers[1])
