"""How every figure looks, and how it is written. Imported only to draw: matplotlib takes half a second.

Colours are Okabe and Ito's (2008), which the colour-blind can tell apart; each comes with a marker and a dash of its own, so that a figure
reads in grey. Sizes are in inches and points of a paper's column: nothing is to be scaled.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purebench.atomic import replacing
from purebench.records.store import full_disk_is_an_error

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}  # of a marker on its line
INK, GREY, LIGHT = "#222222", "#666666", "#dddddd"
COLUMN, PAGE = 3.3, 6.9  # widths of a column and of a page, in inches
TITLE, SMALL = 7.5, 6.0  # points
LINE, HEADLINE = 0.115, 0.15  # a line of SMALL text, and of a title or legend, in inches
# Where a name may stand beside its point, in inches: right, left, and further up and down.
AROUND = [(side * 0.05, step * 0.095) for step in (0, 1, -1, 2, -2, 3, -3, 4, -4) for side in (1, -1)]
STYLE: Any = {  # of rcParams, whose keys are types of matplotlib's newest version alone
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same everywhere
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "savefig.dpi": 220,
    # A `$` is that of a user's name.
    "text.parse_math": False,
    # The same records give the same bytes.
    "svg.hashsalt": "purebench",
    "pdf.fonttype": 42,
}
UNDATED: dict[str, dict[str, None]] = {  # what a file would say of when and by what it was made
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Words:
    """What stands around the axes: `title` and `under` it (what the reader must know first), `notes` at the foot."""

    title: str
    under: Sequence[str] = ()
    notes: Sequence[str] = ()


@contextmanager
def style() -> Iterator[None]:
    """matplotlib as every figure wants it, whatever the user's own settings are; as it was before at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@dataclass(frozen=True)
class Canvas:
    """A figure, its axes, and `corner`, where a legend begins."""

    figure: Figure
    axes: list[Axes]
    corner: tuple[float, float]

    def legend(self, handles: Sequence[Any], columns: int) -> None:
        """The legend between axes and notes, where `canvas` left room for it."""
        self.figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=self.corner,
            ncols=columns,
            borderaxespad=0,
            borderpad=0.1,
            labelspacing=0.35,
            columnspacing=1.2,
            handlelength=2.6,
            labelcolor=INK,
        )


def canvas(
    words: Words,
    *,
    axes: int = 1,
    height: float = 1.75,
    legend: int = 0,
    left: float = 0.46,
    below: float = 0.36,
    titled: bool = False,
    page: bool = False,
) -> Canvas:
    """A figure with so many axes side by side, each so high, and room for the words, for `legend` lines of a legend, and for labels at the
    left of and below the axes (inches). titled: each of the axes has a title; page: as wide as a page, also for one."""
    width = PAGE if page or axes > 1 else COLUMN
    title = _wrapped([words.title], width, TITLE * 1.1)
    under, notes = (_wrapped(lines, width, SMALL) for lines in (words.under, words.notes))
    foot = 0.08 + LINE * len(notes) + (0.04 if notes else 0) + HEADLINE * legend
    total = 0.16 + HEADLINE * (len(title) + titled) + LINE * len(under) + height + below + foot
    figure = Figure(figsize=(width, total))
    _write(figure, title, total - 0.06, HEADLINE, size=TITLE, weight="bold", color=INK)
    _write(figure, under, total - 0.06 - HEADLINE * len(title), LINE, size=SMALL, color=GREY)
    _write(figure, notes, 0.06 + LINE * len(notes), LINE, size=SMALL, color=GREY)
    span = (width - 0.08) / axes
    boxes = [
        ((i * span + left) / width, (foot + below) / total, (span - left - 0.06) / width, height / total)
        for i in range(axes)
    ]
    corner = (0.06 / width, (foot - HEADLINE * legend) / total)
    return Canvas(figure, [figure.add_axes(box) for box in boxes], corner)


def _write(figure: Figure, lines: Sequence[str], top: float, step: float, **style: Any) -> None:
    """Lines of text from `top` (inches) downwards."""
    width, height = figure.get_size_inches()
    for i, line in enumerate(lines):
        figure.text(0.06 / width, (top - step * i) / height, line, va="top", ha="left", **style)


def names(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes a name beside each point (x, y, name), where it covers no other name and no point."""
    dpi = axes.figure.dpi
    at = [(float(x) / dpi, float(y) / dpi) for x, y in (axes.transData.transform(point[:2]) for point in points)]
    taken = [(x - 0.03, y - 0.03, x + 0.03, y + 0.03) for x, y in at]
    left, right, bottom = (float(edge) / dpi for edge in (axes.bbox.x0, axes.bbox.x1, axes.bbox.y0))
    # Who stands alone first: he has no reason to give way. The others from above, so that names stand in the order of their points.
    alone = [sum(abs(x - a) < 0.5 and abs(y - b) < 0.3 for a, b in at) == 1 for x, y in at]
    for i in sorted(range(len(points)), key=lambda i: (not alone[i], -at[i][1])):
        (x, y), name = at[i], points[i][2]
        width, half = 0.047 * len(name), 0.043
        starts = [(x + dx if dx > 0 else x + dx - width, y + dy) for dx, dy in AROUND]
        boxes = [(a, b - half, a + width, b + half) for a, b in starts]
        inside = [box for box in boxes if box[0] >= left and box[2] <= right + 0.05 and box[1] >= bottom - 0.04]
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        after = box[0] > x
        away = (72 * ((box[0] if after else box[2]) - x), 72 * (box[1] + half - y))
        # Beside its point a name needs no line to it; further up or down it does.
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        line["relpos"] = (0.0 if after else 1.0, 0.5)
        axes.annotate(
            name, points[i][:2], away, textcoords="offset points", size=SMALL, color=INK, va="center", ha="left" if after else "right",
            annotation_clip=False, arrowprops=line if abs(away[1]) > 1 else None,
        )  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many labels stand beside each other."""
    longest = max(map(len, labels), default=1)
    return max(1, min(len(labels), int(width / (0.46 + 0.048 * longest))))


def save(figure: Figure, path: Path, suffix: str) -> None:
    """Writes the figure, undated and whole. Raises UserError where the place cannot be written."""
    with full_disk_is_an_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # The keyword is for PNG alone: the other writers refuse it.
            options: Any = {"pil_kwargs": {"optimize": True}} if suffix == ".png" else {}
            figure.savefig(temporary, format=suffix.removeprefix("."), metadata=UNDATED[suffix], **options)


def _wrapped(texts: Sequence[str], width: float, size: float) -> list[str]:
    """Lines that fit: a letter is about 0.52 of its size wide."""
    letters = int((width - 0.12) * 72 / (0.52 * size))
    # Not broken: `95 %` at the end of a line.
    texts = [text.replace(" %", "\u00a0%") for text in texts]
    return [line for text in texts for line in textwrap.wrap(text, letters)]
