"""Figures of images: those of the records, purified once more as the judge did first. `strips` and `maps` show them; here, `curve`: how
confident the classifier is of their label on the way, `histogram`: the norms of their scores. Needs the networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from purebench.errors import UserError
from purebench.plan import figures as plan
from purebench.plan.layouts import CLEAN
from purebench.plan.sheet import Sheet
from purebench.records.store import Log, judged
from purebench.report import drawing, maps, papers, strips
from purebench.report.drawing import COLOURS, DASHES, EDGE, MARKERS, Words
from purebench.report.papers import Entry
from purebench.report.replay import Replay, first_right

BINS = 24
LIMIT = 4  # histograms side by side


@dataclass(frozen=True)
class Way:
    """How confident the classifier is of an image's label: of one row, at every step from the attacked image on, one list per image."""

    label: str
    confidences: list[list[float]]


def draw(table: Sheet, logs: Iterable[Log], *, honest: bool = False, fill: str = "") -> tuple[Figure, list[str]]:
    """The figure of a table whose `[figure]` is of images, and what is to be said of it. Raises UserError where nothing can be drawn."""
    figure = table.layout.figure
    assert figure is not None
    filled = papers.filled(table, logs, honest=honest)
    rows, missing = _rows(filled, figure)
    if not rows:
        said = "; ".join(missing) or "no row has an attack"
        raise UserError(
            f"there is nothing to draw for `{table.layout.id}`: {said}", f"fill it with: {fill}" if fill else ""
        )
    found = _chosen(rows, figure)
    positions = found[: figure.images] if figure.kind in plan.SHOWN else found
    replays = {
        name: Replay(
            entry.logs[0],
            [line for line in judged(entry.logs[0]) if line["position"] in positions],
            unattacked=_unattacked(entry),
        )
        for name, entry in rows.items()
    }
    _check_kind(figure.kind, replays)
    under = [table.scaled] if table.scaled else []
    under += [f"Other than in the file: {table.changed}."] if table.changed else []
    words = Words(table.layout.title, under, [_foot(figure, len(positions), len(found), rows)])
    if figure.kind == "strip":
        picture = strips.draw(words, replays, transpose=table.layout.transpose)
    else:
        kinds = {"curve": _curve, "histogram": _histogram, "map": maps.regions, "tsne": maps.tsne}
        picture = kinds[figure.kind](words, replays, figure)
    unfinished = any(why in line for line in missing for why in (papers.NOT_RUN, "unfinished"))
    missing += [f"fill it with: `{fill}`"] if unfinished and fill else []
    return picture, missing + [note for note in filled.notes if not note.startswith((papers.MISSING, "±: "))]


def _check_kind(kind: str, replays: dict[str, Replay]) -> None:
    """Raises UserError for a row of which such a figure has nothing to show."""
    for name, replay in replays.items():
        if kind in ("curve", "map") and not replay.defense.purifier.n:
            raise UserError(f"`{name}` purifies in no steps: it has no way to draw", "choose other rows: `--only WORD`")
        if kind in ("map", "tsne", "histogram") and replay.unattacked:
            raise UserError(f"`{name}` is of clean images, and a `{kind}` shows attacked ones", "name an attack")
        if kind == "histogram" and replay.defense.score is None:
            raise UserError(
                f"`{name}` has no score model, whose norms could be drawn", "choose other rows: `--only WORD`"
            )


def _rows(filled: papers.Filled, figure: plan.Figure) -> tuple[dict[str, Entry], list[str]]:
    """The rows that have records, by name, and why others have none. The first column of the metric counts."""
    found, missing = {}, []
    for line in filled.entries:
        entry = next((e for e in line if e.column.metric in figure.y and e.row.cells is not None), None)
        if entry is None:
            continue
        name = entry.row.texts[figure.lines]
        if entry.why:
            missing.append(f"not drawn, {entry.why}: {name}")
        elif len(entry.logs) > 1:
            missing.append(f"not drawn, it is of several cells: {name}")
        else:
            found[name] = entry
    return found, missing


def _unattacked(entry: Entry) -> bool:
    """Whether a row is about what its defense does to clean images: its record may be any attack's, or the control's."""
    return entry.column.metric in CLEAN or entry.logs[0].cell["attack"] == "null"


def _chosen(rows: dict[str, Entry], figure: plan.Figure) -> list[int]:
    """The positions that all rows have, and on which these were wrong or right as the figure asks."""
    tables = {name: {line["position"]: line for line in judged(entry.logs[0])} for name, entry in rows.items()}
    common = sorted(set.intersection(*(set(table) for table in tables.values())))
    asked = [(name, wanted) for name, wanted in ((figure.wrong, False), (figure.right, True)) if name]
    for name, _ in asked:
        if name not in tables:
            raise UserError(f"the images are chosen by the row `{name}`, which has no records yet", "run it first")
    if asked and any(len({(of[p]["index"], of[p]["label"]) for of in tables.values()}) > 1 for p in common):
        raise UserError(
            f"`{asked[0][0]}` cannot choose the images of all rows: these are of different ones",
            "leave out `wrong` and `right`, or give all rows one dataset and subset",
        )
    for name, wanted in asked:
        key = "clean" if _unattacked(rows[name]) else "adversarial"
        common = [position for position in common if first_right(tables[name][position], key) == wanted]
    if not common:
        raise UserError(
            f"there is no image that `{figure.wrong or figure.right}` got {'wrong' if figure.wrong else 'right'}"
            + (f" and `{figure.right}` right" if figure.wrong and figure.right else ""),
            "run it on more images (`--images`)",
        )
    return common


def _foot(figure: plan.Figure, shown: int, found: int, rows: dict[str, Entry]) -> str:
    """Which images these are, and what the marks mean."""
    asked = [f"that {name} got {what}" for name, what in ((figure.wrong, "wrong"), (figure.right, "right")) if name]
    of = min(entry.images for entry in rows.values())
    which = f"{found} of {of} images" if asked else f"{found} images"
    said = f"{f'The first {shown} of the' if shown < found else 'The'} {' '.join([which, ' and '.join(asked)]).strip()}"
    said += ", by the judge's first purification." if asked or figure.kind != "tsne" else "."
    more = {
        "strip": " Below each: its class, and × where that is wrong.",
        "curve": " Lines: the mean; bands: the middle half of the images.",
        "map": maps.FOOT,
        "tsne": maps.TSNE,
    }.get(figure.kind, "")
    return said + more + (" Purified without noise." if figure.noise == 0 else "")


# ---- the three kinds -----------------------------------------------------------------------------


def ways(replays: dict[str, Replay], noise: float | None) -> list[Way]:
    """The probability that the bare classifier gives to the label, at every state of every row's purification."""
    found = []
    for name, replay in replays.items():
        at: dict[int, list[float]] = {}

        def see(k: int, images: Tensor, replay: Replay = replay, at: dict[int, list[float]] = at) -> None:
            chances = torch.softmax(replay.defense.classifier(images), dim=1)
            at[k] = chances.gather(1, replay.labels[:, None])[:, 0].tolist()

        replay.walk(see, noise)
        found.append(Way(name, [list(way) for way in zip(*(at[k] for k in sorted(at)), strict=True)]))
    return found


def _curve(words: Words, replays: dict[str, Replay], figure: plan.Figure) -> Figure:
    """The mean confidence along the purification, a line per row, with the middle half of the images."""
    found = ways(replays, figure.noise)
    handles = []
    columns = drawing.legend_columns([way.label for way in found], drawing.COLUMN)
    canvas = drawing.canvas(words, legend=-(-len(found) // columns))
    [axes] = canvas.axes
    for i, way in enumerate(found):
        colour, marker, dash = (looks[i % len(looks)] for looks in (COLOURS, MARKERS, DASHES))
        values = torch.tensor(way.confidences, dtype=torch.float64)
        steps = values.shape[1] - 1
        x = [k / steps for k in range(steps + 1)]
        low, high = (values.quantile(q, dim=0).tolist() for q in (0.25, 0.75))
        look = {
            "color": colour,
            "marker": marker,
            "linestyle": dash,
            "label": way.label,
            "markevery": max(1, steps // 8),
            **EDGE,
        }
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(x, values.mean(0).tolist(), clip_on=False, zorder=3, **look)
        handles.append(Line2D([], [], **look))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(figure.xlabel or "part of the purification")
    axes.set_ylabel(figure.ylabel or "confidence of the label")
    canvas.legend(handles, columns)
    return canvas.figure


def _histogram(words: Words, replays: dict[str, Replay], figure: plan.Figure) -> Figure:
    """The score norms of clean, attacked and once purified images, axes for each row."""
    names = ("clean", "attacked", "purified once")
    if len(replays) > LIMIT:
        raise UserError(
            f"a histogram has room for {LIMIT} rows, and these are {len(replays)}", "choose some: `--only WORD`"
        )
    norms = {
        name: [replay.score_norms(x) for x in (replay.clean(), replay.attacked(), replay.purified())]
        for name, replay in replays.items()
    }
    most = max(max(values) for of in norms.values() for values in of)
    edges = [most * 1.02 * i / BINS for i in range(BINS + 1)]
    looks: list[dict[str, Any]] = [
        {"color": colour, "linestyle": dash, "label": name}
        for colour, dash, name in zip(COLOURS, DASHES, names, strict=False)
    ]
    canvas = drawing.canvas(words, axes=len(norms), legend=1, titled=True)
    for axes, (name, of) in zip(canvas.axes, norms.items(), strict=True):
        axes.set_title(name, size=7, loc="left")
        for values, look in zip(of, looks, strict=True):
            axes.hist(values, edges, histtype="step", linewidth=1.2, **look)
        axes.set_xlim(0, edges[-1] * 1.02)
        axes.set_xlabel(figure.xlabel or "norm of the score")
        axes.set_ylabel(figure.ylabel or "images")
    # One scale for all: they are to be compared.
    top = max(axes.get_ylim()[1] for axes in canvas.axes)
    for axes in canvas.axes:
        axes.set_ylim(0, top)
    canvas.legend([Line2D([], [], **look) for look in looks], 3)
    return canvas.figure
