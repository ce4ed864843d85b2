"""A paper's table as data: one TOML file says what is run and how it is printed. Torch-free, and reads no other file.

There is no separate grid: the cells are rows x columns. What one cell asks for is `[cells]`, overridden by its row's `cells`, then by its
column's, then by the command line. `read` gives a validated `Layout`; `places` what stands where rows and columns meet.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purebench import assets, datasets, registry
from purebench.errors import UserError, unknown
from purebench.spec import Part, ThreatModel, parse, threat

if TYPE_CHECKING:
    from purebench.plan.grid import Request

Cells = dict[str, Any]  # of CELLS
Number = (
    float | str | tuple["Number", ...]
)  # as the paper prints it: a number, a word, or a list: (mean, std) or one per column

CELLS: dict[str, tuple[type, ...]] = {  # key -> what it may be
    "dataset": (str, list), "subset": (str, int), "images": (int,), "evals": (int,), "seeds": (list,), "classifier": (str,),
    "score": (str,), "threat": (str, list), "defense": (str,), "attack": (str, list), "grad": (str, list), "stand_in": (dict,),
}  # fmt: skip
GRID = {"defense": "defenses", "attack": "attacks", "threat": "threats", "grad": "grads"}  # a cell's key -> a grid's
WORST = ("attack", "grad", "threat")  # lists of these are reduced to the worst for the defense; datasets to their mean
OVER = ("min", "image", "mean")
ROW = {
    "cells": dict, "scaled": dict, "group": str, "panel": str, "model": str, "mark": str, "ours": bool, "needs": (str, list),
    "underline": list, "stand_in": dict,
}  # fmt: skip
TOP = {
    "summary": str, "title": str, "cite": str, "quoted": str, "notes": list, "transpose": bool, "cells": dict, "scaled": dict,
    "panel": list, "column": list, "row": list,
}  # fmt: skip
HINT = "`purebench show coup/1` prints a table's file; docs/tables.md has every key"


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
    """One table of a paper, or of anybody's. id: `coup/1`, or the name of the file."""

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

    def shown(self, honest: bool) -> list[Column]:
        """The columns that are printed: those of the paper, and on demand ours."""
        return [column for column in self.columns if honest or not column.honest]


@dataclass(frozen=True)
class Place:
    """Where a row and a column meet. `cells`: what is to be measured, empty for what is not; the outer tuple is averaged over, of the
    inner one the worst counts. Each is a grid of one cell, but for its seeds. `needs`: what does not exist yet."""

    reported: Number | None = None
    cells: tuple[tuple[Cells, ...], ...] = ()
    needs: tuple[str, ...] = ()


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path, name: str = "") -> Layout:
    """The table in a file. Raises UserError with the row or column that is wrong."""
    try:
        return of(tomllib.loads(path.read_text(encoding="utf-8")), name or path.stem)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the table `{path}`: {error}", HINT) from None


def is_layout(data: Mapping[str, Any]) -> bool:
    """Whether a preset's file is a table; else it is a grid."""
    return "column" in data or "row" in data


def of(data: Mapping[str, Any], name: str) -> Layout:
    """The same of a file that is read already."""
    where = f"the table `{name}`"
    _check(data, TOP, where)
    for key in ("title", "column", "row"):
        if not data.get(key):
            raise UserError(f"{where} has no `{key}`", HINT)
    panels = tuple(_panel(panel, f"panel {i} of {where}") for i, panel in enumerate(data.get("panel", []), 1))
    columns = tuple(
        column
        for i, given in enumerate(data["column"], 1)
        for column in _columns(given, panels, f"column {i} of {where}")
    )
    rows = tuple(_row(row, columns, panels, f"row {i} of {where}") for i, row in enumerate(data["row"], 1))
    _check_unlike(rows, columns, where)
    _check_axes(data.get("cells", {}), rows, columns, where)
    return Layout(
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
    )


def _check(data: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Refuses keys that are not known, and values of another type."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is no table", HINT)
    for key, value in data.items():
        if key not in known:
            raise unknown(f"key of {where}", key, known)
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        # True is an int to Python, and no number of images.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"`{key} = {value!r}` of {where} has the wrong type", HINT)


def _cells(data: Any, where: str) -> Cells:
    _check(data, CELLS, where)
    for key, value in data.items():
        if not isinstance(value, list):
            continue
        kind = int if key == "seeds" else str
        if not value or not all(isinstance(v, kind) and not isinstance(v, bool) for v in value):
            raise UserError(f"`{key} = {value!r}` of {where} is no list of {'seeds' if kind is int else 'names'}", HINT)
    return dict(data)


def _panel(data: Any, where: str) -> Panel:
    _check(data, {"key": str, "title": str, "cells": dict}, where)
    if "key" not in data:
        raise UserError(f"{where} has no `key`", HINT)
    return Panel(data["key"], data.get("title", ""), _cells(data.get("cells", {}), where))


def _columns(data: Any, panels: Sequence[Panel], where: str) -> list[Column]:
    """One column, or with `each` one of every value."""
    known: dict[str, Any] = {
        "title": str, "text": str, "number": str, "metric": str, "mean": list, "cells": dict, "scaled": dict, "over": str, "best": str,
        "honest": bool, "panel": str, "group": str, "needs": (str, list), "for": dict, "each": dict, "titles": list,
    }  # fmt: skip
    _check(data, known, where)
    if not any(data.get(key) for key in ("text", "number", "metric")):
        raise UserError(f"{where} prints nothing: it has no `text`, `number` or `metric`", HINT)
    for key, words in (("over", OVER), ("best", ("max", "min"))):
        if data.get(key) and data[key] not in words:
            raise unknown(f"`{key}` of {where}", data[key], words)
    _check_panel(data, panels, where)
    column = Column(
        title=data.get("title", ""),
        cells=_cells(data.get("cells", {}), where),
        scaled=_cells(data.get("scaled", {}), where),
        mean=tuple(data.get("mean", [])),
        needs=_list(data.get("needs", ())),
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
    titles = data.get("titles", values)
    if len(titles) != len(values):
        raise UserError(f"{where} has {len(titles)} `titles` for {len(values)} values of `{key}`", HINT)
    return [
        _each(column, key, value, str(title), i) for i, (value, title) in enumerate(zip(values, titles, strict=True))
    ]


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
    _check(data, ROW | dict.fromkeys([*texts, *numbers], (str, int, float, list)), where)
    if not any(key in data for key in (*texts, *numbers)):
        raise UserError(f"{where} names no column", f"the columns read {', '.join(dict.fromkeys([*texts, *numbers]))}")
    _check_panel(data, panels, where)
    for key in numbers:
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
        cells=_cells(data["cells"], where) | ({"stand_in": data["stand_in"]} if "stand_in" in data else {})
        if "cells" in data
        else None,
        scaled=_cells(data.get("scaled", {}), where),
        needs=_list(data.get("needs", ())),
        underline=tuple(data.get("underline", [])),
        **{key: data[key] for key in ("group", "panel", "model", "mark", "ours") if key in data},
    )


def _check_panel(data: Mapping[str, Any], panels: Sequence[Panel], where: str) -> None:
    if data.get("panel") and data["panel"] not in [panel.key for panel in panels]:
        raise unknown(f"panel of {where}", data["panel"], [panel.key for panel in panels])


def _check_unlike(rows: Sequence[Row], columns: Sequence[Column], where: str) -> None:
    """Refuses a row that stands twice: nobody could tell whose number is whose."""
    seen: dict[object, int] = {}
    for i, row in enumerate(rows, 1):
        key = repr((row.group, row.panel, row.texts, row.cells, row.numbers, row.model))
        if key in seen:
            raise UserError(f"rows {seen[key]} and {i} of {where} are the same", "leave one out, or tell them apart")
        # The numbers are part of it: papers print the same method twice, under two settings that have no column.
        seen[key] = i


def _check_axes(cells: Cells, rows: Sequence[Row], columns: Sequence[Column], where: str) -> None:
    """Refuses lists that no `over` reduces, and an `over` that has nothing to reduce."""
    for i, column in enumerate(columns, 1):
        if not column.metric or column.metric in ("clean", "undefended"):
            continue
        # Clean accuracies are exempt: they are the same whatever attacked.
        lists = [
            [
                key
                for key in (*WORST, "dataset")
                if isinstance((cells | (row.cells or {}) | column.cells).get(key), list)
            ]
            for row in rows
            if row.cells is not None
        ]
        if any(lists) and not column.over:
            raise UserError(
                f"column {i} of {where} does not say `over` what its several cells become", f"one of {', '.join(OVER)}"
            )
        if column.over and not any(lists) and len(column.axis) == 1:
            raise UserError(
                f"`over` of column {i} of {where} has no list to reduce", "leave it out, or give several attacks"
            )


def _number(value: Any) -> Number:
    return tuple(map(_number, value)) if isinstance(value, list) else value


def _list(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


# ---- rows x columns ------------------------------------------------------------------------------


def places(layout: Layout, options: Cells | None = None, *, baselines: bool = False) -> list[list[Place]]:
    """Of every row and column what is reported, and what is to be measured. options: cells' keys that the command line gave; they win.

    With `dataset = "digits"` among them the table is scaled: `[scaled]`, and the values of `datasets/digits.toml`, take the place of the
    paper's, but for the parameters that the table varies. Raises UserError for a dataset that is not the table's.
    """
    options = options or {}
    scaled = is_scaled(layout, options)
    axes = _Axes(layout) if scaled else None
    found = []
    for row in layout.rows:
        line = []
        for column in layout.columns:
            reported = _reported(row, column)
            needs = lacking((*row.needs, *column.needs), scaled=scaled)
            # A quoted row has no cells; with `--baselines` its published model stands for them, bare.
            cells = row.cells
            if cells is None and baselines and row.model:
                cells = {"defense": "none", "classifier": row.model}
            fits = column.panel in ("", row.panel)
            if cells is None or not column.metric or not fits:
                line.append(Place(reported))
                continue
            if needs:
                line.append(Place(reported, (), needs))
                continue
            own = {**cells, **column.cells}
            asked = {**layout.cells, **_of_panel(layout, row), **own}
            if axes:
                asked = axes.scale(asked, own, _given(row, column), column)
                options = {
                    key: value for key, value in options.items() if key != "dataset"
                }  # which may be corrupted digits
            line.append(Place(reported, _expanded(asked | options, column)))
        found.append(line)
    return found


def lacking(needs: Iterable[str], *, scaled: bool = False) -> tuple[str, ...]:
    """Of `attack:NAME`, `metric:NAME` and `asset:NAME` those that do not exist yet. A scaled table needs no network but the digits'."""
    found = []
    for name in needs:
        kind, _, word = name.partition(":")
        if kind not in ("attack", "metric", "asset") or not word:
            raise UserError(f"`needs = {name!r}` is no `attack:NAME`, `metric:NAME` or `asset:NAME`", HINT)
        trained = assets.cache_folder() / "trained" / f"{word}.safetensors"
        here = kind == "asset" and (scaled or trained.is_file() or (word in assets.table() and assets.present(word)))
        if not here and not (kind == "attack" and word in registry.names("attack")):
            found.append(name)
    return tuple(found)


def _reported(row: Row, column: Column) -> Number | None:
    value = row.numbers.get(column.number)
    return value[column.place] if isinstance(value, tuple) and column.place is not None else value


def _of_panel(layout: Layout, row: Row) -> Cells:
    return next((panel.cells for panel in layout.panels if panel.key == row.panel), {})


def is_scaled(layout: Layout, options: Cells) -> bool:
    """Whether the table is run on the embedded digits in place of its own dataset."""
    if "dataset" not in options:
        return False
    given = parse(options["dataset"], "dataset").name
    # Not parsed: `{corruption}` in it is not filled in yet.
    theirs = {name.partition(":")[0] for name in _datasets(layout)}
    if given == "digits" and "digits" not in theirs:
        return True
    info = registry.info("dataset", given)
    sets = {registry.info("dataset", name).get("training_set", name) for name in theirs}
    if given not in theirs and info.get("training_set", given) not in sets and info.get("training_set", given):
        raise UserError(
            f"`{layout.id}` is a table of {', '.join(sorted(theirs))}, and `--dataset {given}` is another dataset",
            "leave it out, or take `--dataset digits` for a small run of everything in it",
        )
    return False


def _datasets(layout: Layout) -> list[str]:
    """The datasets that the table's cells name."""
    given = [layout.cells, *(panel.cells for panel in layout.panels)]
    given += [row.cells or {} for row in layout.rows] + [column.cells for column in layout.columns]
    return [name for cells in given for name in _list(cells.get("dataset", ()))]


def _expanded(asked: Cells, column: Column) -> tuple[tuple[Cells, ...], ...]:
    """Lists and `{names}` as single cells: the outer tuple over datasets and the column's axis, the inner over attacks and the like."""
    found = []
    for words in column.axis:
        named = {key: _fill(value, {**column.words, **words}) for key, value in asked.items()}
        for dataset in _list(named.get("dataset", ())) or (None,):
            one = named | ({"dataset": dataset} if dataset else {})
            # Every combination: an attacker may choose his gradient along with his attack.
            choices = [[(key, v) for v in _list(one[key])] for key in WORST if key in one]
            found.append(tuple(one | dict(choice) for choice in itertools.product(*choices)))
    return tuple(found)


def _fill(value: Any, words: Mapping[str, str]) -> Any:
    """A value with `{severity}` replaced; other braces stay."""
    if isinstance(value, str):
        for key, word in words.items():
            value = value.replace(f"{{{key}}}", word)
        return value
    return [_fill(v, words) for v in value] if isinstance(value, list) else value


def options(request: Request) -> Cells:
    """What of a request overrides a table's cells. Raises UserError for `-d`: the rows name the defenses."""
    if request.defenses:
        raise UserError("`-d` has no say in a table: its rows name the defenses", "choose rows with `--only WORD`")
    given: Cells = {
        "dataset": request.dataset, "classifier": request.classifier, "score": request.score, "images": request.images,
        "subset": request.subset, "evals": request.evals, "seeds": list(request.seeds), "attack": list(request.attacks),
        "threat": list(request.threats), "grad": list(request.grads),
    }  # fmt: skip
    return {key: value for key, value in given.items() if value not in (None, [])}


def grids(layout: Layout, request: Request) -> list[dict[str, Any]]:
    """Every cell of a table once, as grids of one, and the null control of every defense."""
    layout = chosen(layout, request.only)
    shown = layout.shown(request.honest)
    found: dict[str, dict[str, Any]] = {}
    for line in places(layout, options(request), baselines=request.baselines):
        for column, place in zip(layout.columns, line, strict=True):
            if column not in shown:
                continue
            for cells in (cells for worst in place.cells for cells in worst):
                for attack in (cells.get("attack"), "null"):
                    grid = as_grid(cells | ({"attack": attack} if attack else {}))
                    found[repr(sorted(grid.items()))] = grid
    if not found:
        lacks = "; ".join(sorted({name for line in places(layout, options(request)) for p in line for name in p.needs}))
        raise UserError(
            f"`{layout.id}` has nothing to run" + (f": it needs {lacks}" if lacks else ""),
            "it prints with `purebench table`",
        )
    # A row goes over all datasets before the next row begins.
    order = list(dict.fromkeys(str(grid.get("dataset")) for grid in found.values()))
    # One dataset after the other: a run then reads each of them once.
    return sorted(found.values(), key=lambda grid: order.index(str(grid.get("dataset"))))


def chosen(layout: Layout, only: Sequence[str]) -> Layout:
    """The table with the rows that have one of these words, in any case; all rows for none. Raises UserError where no row is left."""
    if not only:
        return layout
    words = [word.lower() for word in only]
    rows = [
        row
        for row in layout.rows
        if any(word in f"{row.group} {' '.join(row.texts.values())}".lower() for word in words)
    ]
    if not rows:
        raise unknown("row", ", ".join(only), [row.name for row in layout.rows])
    return replace(layout, rows=tuple(rows))


def as_grid(cells: Cells) -> dict[str, Any]:
    """A place's cell in the keys of a grid."""
    return {GRID.get(key, key): [value] if key in GRID else value for key, value in cells.items() if key != "stand_in"}


# ---- the digits in place of the paper's dataset --------------------------------------------------


def _given(row: Row, column: Column) -> Cells:
    """What row and column say for the digits; what a column asks of every row, a row's own word for the digits does not undo."""
    return {key: value for key, value in row.scaled.items() if key not in column.cells} | column.scaled


class _Axes:
    """What a table varies, and so what stays when it is scaled to the digits."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.defaults = datasets.defaults("digits")
        requests = [
            {**layout.cells, **_of_panel(layout, row), **(row.cells or {}), **column.cells, "words": words}
            for row in layout.rows
            if row.cells is not None
            for column in layout.columns
            if column.metric and not lacking((*row.needs, *column.needs), scaled=True)
            # The first of the axis stands for all: what an axis fills in is a dataset, never a parameter of a defense.
            for words in [{**column.words, **column.axis[0]}]
        ]
        self.varied = {
            kind: _varied(
                [parse(_fill(text, of["words"]), kind) for of in requests for text in _list(of.get(kind, ()))]
            )
            for kind in ("defense", "attack")
        }
        radii = [threat(text) for of in requests for text in _list(of.get("threat", ()))]
        self.largest = {limit.norm: max(t.eps for t in radii if t.norm == limit.norm) for limit in radii}

    def scale(self, asked: Cells, own: Cells, given: Cells, column: Column) -> Cells:
        """asked: all that the paper's cell asks for; own: what its row and column say themselves; given: their `scaled`."""
        scaled: Cells = {key: asked[key] for key in ("evals",) if key in asked}
        for kind in ("defense", "attack"):
            scaled[kind] = [self._part(kind, _fill(text, column.words)) for text in _list(asked.get(kind, ()))]
        scaled["defense"] = scaled["defense"][0] if scaled["defense"] else "none"
        scaled["grad"] = asked.get("grad", "exact")
        if "threat" in asked:
            scaled["threat"] = [str(self._threat(threat(text))) for text in _list(asked["threat"])]
        table = {key: value for key, value in self.layout.scaled.items() if key not in own or key == "images"}
        return {"dataset": self._dataset(asked), **scaled, **table, **given}

    def _part(self, kind: str, text: str) -> str:
        part = parse(text, kind)
        return str(
            Part(part.name, tuple((k, v) for k, v in part.parameters if k in self.varied[kind].get(part.name, ())))
        )

    def _threat(self, limit: ThreatModel) -> ThreatModel:
        """The digits' radius for the table's largest of a norm, and others in proportion."""
        # The digits are easier to see and harder to break: 8/255 would break nothing, so radii are the digits' own.
        radii = {t.norm: t.eps for t in map(threat, self.defaults["radii"])}
        if limit.norm not in radii:
            raise UserError(f"the digits have no radius for {limit.norm}", "give `--threat`")
        eps = radii[limit.norm] * float(Fraction(limit.eps / self.largest[limit.norm]).limit_denominator(1000))
        return replace(limit, eps=round(eps, 4))

    def _dataset(self, asked: Cells) -> Any:
        """Of a corrupted dataset the same corruption of the digits."""
        names = [_corrupted(name) for name in _list(asked.get("dataset", ()))]
        return names if len(names) > 1 else (names or ["digits"])[0]


def _corrupted(name: str) -> str:
    kind, _, parameters = name.partition(":")
    return f"corrupted:of=(digits),{parameters}" if kind.endswith("-c") else "digits"


def _varied(of: Sequence[Part]) -> dict[str, set[str]]:
    """By name the parameters that are not the same wherever the name stands."""
    found: dict[str, set[str]] = {}
    # By name: `steps` of one defense says nothing of another's.
    for name in {part.name for part in of}:
        mates = [dict(part.parameters) for part in of if part.name == name]
        keys = {key for values in mates for key in values}
        found[name] = {key for key in keys if len({str(values.get(key)) for values in mates}) > 1}
    return found
