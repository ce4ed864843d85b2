"""A paper's table as data: one TOML file says what is run and how it is printed. Torch-free, and reads no other file.

There is no separate grid: the cells are rows x columns. `read` gives a validated `Layout`; what is wrong in a file is told by its row or
column, before anything is planned. What stands where rows and columns meet is said in `places`.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from purebench.errors import UserError, unknown
from purebench.plan import figures, measures
from purebench.plan.figures import Figure
from purebench.plan.keys import HINT, check, check_items

Cells = dict[str, Any]  # of CELLS
Number = (
    float | str | tuple["Number", ...]
)  # as the paper prints it: a number, a word, or a list: (mean, std) or one per column

CELLS: dict[str, tuple[type, ...]] = {  # key -> what it may be
    "dataset": (str, list), "subset": (str, int), "images": (int,), "evals": (int,), "seeds": (list,), "classifier": (str,),
    "score": (str,), "threat": (str, list), "defense": (str,), "attack": (str, list), "grad": (str, list), "stand_in": (dict,),
}  # fmt: skip
WORST = ("attack", "grad", "threat")  # lists of these are reduced to the worst for the defense; datasets to their mean
OVER = ("min", "image", "mean")
CLEAN = ("clean", "undefended")  # metrics of a defense, whatever attacked it
METRICS = (  # of every record, if its attack has them; others are asked for by name (`measures`)
    *CLEAN, "robust", "robust_std", "aa", "sticky", "cascade",
    "worst10", "vote10", "clean_worst10", "clean_vote10", "masked", "stopped", "not_finite",
    "clean_not_finite",
)  # fmt: skip
UNDRAWN = (
    "",
    "robust_std",
    "masked",
    "stopped",
    "not_finite",
    "clean_not_finite",
)  # no share of right answers: no axis of a figure
RESERVED = (  # keys of the rows that csv and json print
    "table", "column", "metric", "reported", "value", "low", "high", "std", "images", "evals", "seeds", "missing", "masked",
)  # fmt: skip
ROW = {
    "cells": dict, "scaled": dict, "group": str, "panel": str, "model": str, "mark": str, "ours": bool, "needs": (str, list),
    "underline": list, "stand_in": dict, "metrics": dict,
}  # fmt: skip
TOP = {
    "summary": str, "title": str, "cite": str, "quoted": str, "notes": list, "transpose": bool, "cells": dict, "scaled": dict,
    "panel": list, "column": list, "row": list, "figure": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What one column prints: a text of the row, a reported `number`, a measured `metric`, or the `mean` of other columns.

    `place`: of a column that `each` made, where in the row's list its number stands. `axis`: what its cells are averaged over, each a
    set of words for the `{names}` in them.
    """

    title: str
    text: str = ""
    number: str = ""
    metric: str = ""
    mean: tuple[str, ...] = ()
    cells: Cells = field(default_factory=dict)
    scaled: Cells = field(default_factory=dict)
    over: str = ""
    best: str = ""
    honest: bool = False
    panel: str = ""
    group: str = ""
    needs: tuple[str, ...] = ()
    place: int | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    axis: tuple[Mapping[str, str], ...] = ({},)


@dataclass(frozen=True)
class Row:
    """`texts` and `numbers` by key; `cells` is None for what is only quoted."""

    texts: dict[str, str]
    numbers: dict[str, Number]
    cells: Cells | None = None
    scaled: Cells = field(default_factory=dict)
    group: str = ""
    panel: str = ""
    model: str = ""  # the classifier that a quoted row can be measured with, by `--baselines`
    mark: str = ""
    ours: bool = False
    needs: tuple[str, ...] = ()
    underline: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)  # a column's `number` -> its metric in this row

    @property
    def name(self) -> str:
        """What it is called where something is said of it."""
        return self.texts.get("method") or next((text for text in self.texts.values() if text), "") or self.group


@dataclass(frozen=True)
class Panel:
    key: str
    title: str
    cells: Cells


@dataclass(frozen=True)
class Layout:
    """One table of a paper, or of anybody's. id: `coup/1`, or the name of the file; `figure`: how it is drawn, if it is."""

    id: str
    title: str
    summary: str
    cite: str
    quoted: str
    notes: tuple[str, ...]
    transpose: bool
    cells: Cells
    scaled: Cells
    panels: tuple[Panel, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    whole: tuple[
        Row, ...
    ]  # the rows of the file, of which `rows` may be some: what a table varies does not depend on who looks
    figure: Figure | None = None

    def shown(self, honest: bool) -> list[Column]:
        """The columns that are printed: those of the paper, and on demand ours."""
        return [column for column in self.columns if honest or not column.honest]


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path, name: str = "") -> Layout:
    """The table in a file. Raises UserError with the row or column that is wrong."""
    try:
        return of(tomllib.loads(path.read_text(encoding="utf-8")), name or path.stem)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the table `{path}`: {error}", HINT) from None


def is_layout(data: Mapping[str, Any]) -> bool:
    """Whether a preset's file is a table; else it is a grid."""
    return "column" in data or "row" in data or "figure" in data


def of(data: Mapping[str, Any], name: str) -> Layout:
    """The same of a file that is read already."""
    where = f"the table `{name}`"
    check(data, TOP, where)
    for key in ("title", "column", "row"):
        if not data.get(key):
            raise UserError(f"{where} has no `{key}`", HINT)
    for key in ("notes", "panel", "column", "row"):
        check_items(data.get(key, []), str if key == "notes" else dict, f"`{key}` of {where}")
    panels = tuple(_panel(panel, f"panel {i} of {where}") for i, panel in enumerate(data.get("panel", []), 1))
    keys = [panel.key for panel in panels]
    if len(set(keys)) < len(keys):
        raise UserError(f"two panels of {where} have one `key`", HINT)
    columns = tuple(
        column
        for i, given in enumerate(data["column"], 1)
        for column in _columns(given, panels, f"column {i} of {where}")
    )
    rows = tuple(_row(row, columns, panels, f"row {i} of {where}") for i, row in enumerate(data["row"], 1))
    layout = Layout(
        id=name,
        title=data["title"],
        summary=data.get("summary", data["title"]),
        cite=data.get("cite", ""),
        quoted=data.get("quoted", ""),
        notes=tuple(data.get("notes", [])),
        transpose=data.get("transpose", False),
        cells=_cells(data.get("cells", {}), f"`[cells]` of {where}"),
        scaled=_cells(data.get("scaled", {}), f"`[scaled]` of {where}"),
        panels=panels,
        columns=columns,
        rows=rows,
        whole=rows,
        figure=figures.of(
            data["figure"],
            columns,
            rows,
            f"`[figure]` of {where}",
            [c.metric for c in columns if c.metric not in UNDRAWN],
        )
        if "figure" in data
        else None,
    )
    # Methods as columns, and tables side by side: what would stand beside what?
    if layout.transpose and layout.panels:
        raise UserError(f"{where} has `transpose` and `[[panel]]`", "leave one out, or make a table of each panel")
    _check_unlike(rows, where)
    _check_means(layout, where)
    for i, row in enumerate(rows, 1):
        if row.cells is not None:
            _check_cells(layout, row, f'row {i} of {where} ("{row.name}")')
    _check_axes(layout, where)
    return layout


def cells_of(layout: Layout, row: Row, column: Column) -> Cells:
    """What the paper's cell of a row and a column asks for: the column's word counts most, `[cells]` least."""
    panel = next((panel.cells for panel in layout.panels if panel.key == row.panel), {})
    return {**layout.cells, **panel, **(row.cells or {}), **column.cells}


def _cells(data: Any, where: str) -> Cells:
    check(data, CELLS, where)
    check(data.get("stand_in", {}), dict.fromkeys(("dataset", "classifier", "score"), str), f"`stand_in` of {where}")
    for key, value in data.items():
        if not isinstance(value, list):
            continue
        kind = int if key == "seeds" else str
        if not value or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise UserError(f"`{key} = {value!r}` of {where} is no list of {'seeds' if kind is int else 'names'}", HINT)
        # Twice the same seed would pass for two that agree.
        if len(set(value)) < len(value):
            raise UserError(f"`{key} = {value!r}` of {where} names one twice", "leave one out")
    return dict(data)


def _panel(data: Any, where: str) -> Panel:
    check(data, {"key": str, "title": str, "cells": dict}, where)
    if "key" not in data:
        raise UserError(f"{where} has no `key`", HINT)
    return Panel(data["key"], data.get("title", ""), _cells(data.get("cells", {}), where))


def _columns(data: Any, panels: Sequence[Panel], where: str) -> list[Column]:
    """One column, or with `each` one of every value."""
    known: dict[str, Any] = {
        "title": str, "text": str, "number": str, "metric": str, "mean": list, "cells": dict, "scaled": dict, "over": str, "best": str,
        "honest": bool, "panel": str, "group": str, "needs": (str, list), "for": dict, "each": dict, "titles": list,
    }  # fmt: skip
    check(data, known, where)
    if not any(data.get(key) for key in ("text", "number", "metric", "mean")):
        raise UserError(f"{where} prints nothing: it has no `text`, `number`, `metric` or `mean`", HINT)
    if data.get("metric"):
        _check_metric(data["metric"], f"`metric` of {where}")
    for key in ("text", "number"):
        if data.get(key) in (*ROW, *RESERVED):
            raise UserError(f"`{key} = {data[key]!r}` of {where} is a word that every table has", "take another word")
    for key in ("mean", "titles"):
        check_items(data.get(key, []), str, f"`{key}` of {where}")
    for key, words in (("over", OVER), ("best", ("max", "min"))):
        if data.get(key) and data[key] not in words:
            raise unknown(f"`{key}` of {where}", data[key], words)
    _check_panel(data, panels, where)
    column = Column(
        title=data.get("title", ""),
        cells=_cells(data.get("cells", {}), where),
        scaled=_cells(data.get("scaled", {}), where),
        mean=tuple(data.get("mean", [])),
        needs=_needs(data, where),
        axis=tuple(_words(data.get("for", {}), where)),
        **{
            key: data[key]
            for key in ("text", "number", "metric", "over", "best", "honest", "panel", "group")
            if key in data
        },
    )
    if not data.get("each"):
        return [column]
    if len(data["each"]) != 1:
        raise UserError(f"`each` of {where} names {len(data['each'])} things, and a column has one", HINT)
    ((key, values),) = data["each"].items()
    if not isinstance(values, list) or not values or any(value == [] for value in values):
        raise UserError(f"`each` of {where}: `{key}` is no list of values", HINT)
    titles = data.get("titles", values)
    if len(titles) != len(values):
        raise UserError(f"{where} has {len(titles)} `titles` for {len(values)} values of `{key}`", HINT)
    return [
        _each(column, key, value, str(title), i) for i, (value, title) in enumerate(zip(values, titles, strict=True))
    ]


def _check_metric(name: str, where: str) -> None:
    """Refuses what is no metric, or a word for several of them."""
    if name in METRICS:
        return
    try:
        found = measures.read([name])
    except UserError as error:
        if error.message.startswith("unknown metric"):
            raise unknown(where, name, (*METRICS, *measures.PLAIN, *measures.EXAMPLES)) from None
        raise UserError(f"{where}: {error.message}", error.hint) from None
    if [one.text for one in found] != [name] or name == "sticky_curve":
        raise UserError(f"{where}: `{name}` is not one number", "name one, such as `moved_clean_l2` or `sticky@5`")


def of_control(metric: str) -> bool:
    """Whether a null control says it, whatever the table attacks with."""
    return metric in CLEAN or metric.partition(":")[0].partition("@")[0] in measures.OF_CONTROL


def metric(row: Row, column: Column) -> Column:
    """A column as this row measures it."""
    named = row.metrics.get(column.number) if column.number and not column.honest else None
    return replace(column, metric=named) if named else column


def _each(column: Column, key: str, value: Any, title: str, place: int) -> Column:
    """The column of one value; of a list of values, averaged over them."""
    # A category of corruptions: one column, many datasets.
    if isinstance(value, list):
        axis = tuple({**words, key: str(v)} for v in value for words in column.axis)
        return replace(column, title=title, place=place, axis=axis)
    return replace(column, title=title, place=place, words={key: str(value)})


def _words(data: Mapping[str, Any], where: str) -> Iterable[dict[str, str]]:
    """`{severity = [1, 2]}` -> {severity: 1}, {severity: 2}; of several keys all combinations."""
    for key, values in data.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"`for` of {where}: `{key}` is no list of values", HINT)
    for values in itertools.product(*data.values()):
        yield dict(zip(data, map(str, values), strict=True))


def _row(data: Any, columns: Sequence[Column], panels: Sequence[Panel], where: str) -> Row:
    if not isinstance(data, dict):
        raise UserError(f"{where} is no table", HINT)
    where = f'{where} ("{data["method"]}")' if data.get("method") else where
    texts = [column.text for column in columns if column.text]
    numbers = {column.number: column for column in columns if column.number}
    check(data, ROW | dict.fromkeys(texts, (str, int, float)) | dict.fromkeys(numbers, (str, int, float, list)), where)
    if not any(key in data for key in (*texts, *numbers)):
        raise UserError(f"{where} names no column", f"the columns read {', '.join(dict.fromkeys([*texts, *numbers]))}")
    _check_panel(data, panels, where)
    check_items(data.get("underline", []), str, f"`underline` of {where}")
    for key in numbers:
        if key in data and not all(map(_is_number, data[key] if isinstance(data[key], list) else ())):
            raise UserError(f"`{key} = {data[key]}` of {where} is no list of numbers", HINT)
        _check_range(key, data.get(key), numbers[key], where)
        if isinstance(data.get(key), float) and not math.isfinite(data[key]):
            raise UserError(f"`{key} = {data[key]}` of {where} is no number", 'write what the paper prints: "-"')
        places = [column for column in columns if column.number == key and column.place is not None]
        if key in data and places and not (isinstance(data[key], list) and len(data[key]) == len(places)):
            raise UserError(f"`{key}` of {where} is no list of {len(places)} numbers, one for each column", HINT)
        if key in data and isinstance(data[key], list) and not places and len(data[key]) != 2:
            raise UserError(f"`{key} = {data[key]}` of {where}: a list of two numbers is a mean and its std", HINT)
    for key in data.get("underline", []):
        if key not in numbers:
            raise unknown(f"`underline` of {where}", key, numbers)
    return Row(
        texts={key: str(data.get(key, "")) for key in dict.fromkeys(texts)},
        numbers={key: _number(data[key]) for key in numbers if key in data},
        cells=_row_cells(data, where),
        scaled=_cells(data.get("scaled", {}), where),
        needs=_needs(data, where),
        underline=tuple(data.get("underline", [])),
        metrics=_row_metrics(data, numbers, where),
        **{key: data[key] for key in ("group", "panel", "model", "mark", "ours") if key in data},
    )


def _check_range(key: str, value: Any, column: Column, where: str) -> None:
    """Refuses an accuracy outside 0 to 100 %, and a standard deviation below 0."""
    several = column.place is not None
    mean, *spread = value if isinstance(value, list) and not several else [value]
    accuracies = [v for v in (value if several and isinstance(value, list) else [mean]) if _is_number(v)]
    if measures.share_of_right(column.metric) and any(not 0 <= v <= 100 for v in accuracies):
        raise UserError(f"`{key} = {value}` of {where} is no accuracy in percent", "0 to 100")
    if any(_is_number(v) and v < 0 for v in spread):
        raise UserError(f"`{key} = {value}` of {where}: a standard deviation is not negative", "write [mean, std]")


def _row_metrics(data: Mapping[str, Any], numbers: Mapping[str, Column], where: str) -> dict[str, str]:
    """What a row measures in place of its columns' metrics."""
    given = data.get("metrics", {})
    measured = [key for key, column in numbers.items() if column.metric]
    for key, name in given.items():
        if key not in measured:
            raise unknown(f"`metrics` of {where}", key, measured)
        if not isinstance(name, str):
            raise UserError(f"`metrics.{key} = {name!r}` of {where} is no metric", HINT)
        _check_metric(name, f"`metrics.{key}` of {where}")
    return dict(given)


def _row_cells(data: Mapping[str, Any], where: str) -> Cells | None:
    """The cells of a row, with what it says to stand in; None for a row that is only quoted."""
    if "cells" not in data:
        return None
    return _cells({**data["cells"], **({"stand_in": data["stand_in"]} if "stand_in" in data else {})}, where)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _needs(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    needs = data.get("needs", [])
    check_items([needs] if isinstance(needs, str) else needs, str, f"`needs` of {where}")
    for name in listed(needs):
        kind, _, word = name.partition(":")
        if kind not in ("attack", "metric", "asset") or not word:
            raise UserError(f"`needs = {name!r}` of {where} is no `attack:NAME`, `metric:NAME` or `asset:NAME`", HINT)
    return listed(needs)


def _check_panel(data: Mapping[str, Any], panels: Sequence[Panel], where: str) -> None:
    if data.get("panel") and data["panel"] not in [panel.key for panel in panels]:
        raise unknown(f"panel of {where}", data["panel"], [panel.key for panel in panels])


def _check_unlike(rows: Sequence[Row], where: str) -> None:
    """Refuses a row that stands twice: nobody could tell whose number is whose."""
    seen: dict[object, int] = {}
    for i, row in enumerate(rows, 1):
        key = repr((row.group, row.panel, row.texts, row.cells, row.scaled, row.numbers, row.model))
        if key in seen:
            raise UserError(f"rows {seen[key]} and {i} of {where} are the same", "leave one out, or tell them apart")
        # The numbers are part of it: papers print the same method twice, under two settings that have no column.
        seen[key] = i


def _check_means(layout: Layout, where: str) -> None:
    """Refuses a mean of columns that are not there, of which one that is misspelt would make it that of the others; and of a number that
    two columns have, which would count twice."""
    own = [column for column in layout.columns if column.number and not column.mean and not column.honest]
    for i, column in enumerate(layout.columns, 1):
        for name in column.mean:
            theirs = [
                other for other in own if other.number == name and other.panel in ("", column.panel or other.panel)
            ]
            if not theirs:
                raise unknown(f"`mean` of column {i} of {where}", name, [other.number for other in own])
            panels = [other.panel for other in theirs]
            if len(set(panels)) < len(panels) and any(other.place is None for other in theirs):
                raise UserError(
                    f"`mean` of column {i} of {where}: `{name}` is the number of {len(theirs)} columns",
                    "give each its own name, or all would count",
                )


def _check_cells(layout: Layout, row: Row, where: str) -> None:
    """Refuses a row whose cells leave open what is measured: a grid would take the dataset's defaults, all of them."""
    for column in layout.columns:
        if not column.metric or column.panel not in ("", row.panel):
            continue
        asked = cells_of(layout, row, column)
        for key in ("dataset", "defense", "attack"):
            if key not in asked and not (key == "attack" and of_control(column.metric)):
                raise UserError(f"{where} has cells without `{key}`", f"say it in the row, or in `[cells]` ({HINT})")
        for name in {**column.words, **column.axis[0]}:
            if f"{{{name}}}" not in repr(asked):
                raise UserError(f"`{{{name}}}` of column `{column.title}` stands in no cell of {where}", HINT)


def _check_axes(layout: Layout, where: str) -> None:
    """Refuses lists that no `over` reduces, and an `over` that does not fit: of attacks the worst counts, of datasets the mean."""
    for i, column in enumerate(layout.columns, 1):
        if not column.metric:
            continue
        asked = [cells_of(layout, row, column) for row in layout.rows if row.cells is not None]
        attacks = any(isinstance(cells.get(key), list) for cells in asked for key in WORST)
        # Clean accuracies are the same whatever attacked, and certificates are of null controls.
        attacks = attacks and not of_control(column.metric)
        datasets = len(column.axis) > 1 or any(isinstance(cells.get("dataset"), list) for cells in asked)
        fitting = {(True, False): ("min", "image"), (False, True): ("mean",), (False, False): ("",)}.get(
            (attacks, datasets)
        )
        named = f"column {i} of {where}"
        if fitting is None:
            raise UserError(f"{named} has several attacks and several datasets", "make a column of each")
        named_metrics = {metric(row, column).metric for row in layout.rows if row.cells is not None}
        for one in named_metrics if column.over in ("min", "image") else ():
            rule = one == "robust" or one in measures.VERDICTS
            # Of what is no share of right answers, the lowest need not be the worst for the defense.
            if not (measures.share_of_right(one) if column.over == "min" else rule):
                raise UserError(
                    f"`over = {column.over!r}` of {named} cannot be of `{one}`",
                    "make a column of each attack"
                    if column.over == "min"
                    else 'robust or a verdict; or `over = "min"`',
                )
        if asked and column.over not in fitting:
            if not column.over:
                raise UserError(
                    f"{named} does not say `over` what its several cells become", f"one of {', '.join(fitting)}"
                )
            what = (
                "no list to reduce"
                if fitting == ("",)
                else f"several {'attacks' if attacks else 'datasets'}: {' or '.join(fitting)}"
            )
            raise UserError(f"`over = {column.over!r}` of {named} has {what}", HINT)


def _number(value: Any) -> Number:
    return tuple(map(_number, value)) if isinstance(value, list) else value


def listed(value: Any) -> tuple[str, ...]:
    """A name or a list of names as names."""
    return (value,) if isinstance(value, str) else tuple(value)
