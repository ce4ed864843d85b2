"""What robustness costs: the network calls of a purification against the accuracy under the strongest attack, a point per defense, from
any records. The accuracies are those of `tables`; the calls are counted as `--dry-run` counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from purebench.errors import UserError
from purebench.records.store import Log
from purebench.report import drawing, recorded, tables
from purebench.report.drawing import COLOURS, Words
from purebench.report.tables import Headline, Printed

COLOUR, LIGHT = COLOURS[0], "#b3d1e6"
LIMIT = 4  # tables side by side; more are no figure


def purification(log: Log) -> float | None:
    """Network calls, forwards and backwards, of one purification and classification by a record's defense; None where they cannot be
    counted: a plug-in's, or of a file of the user's that is not here."""
    # Imported here: with it comes torch.
    from purebench.running import cost

    try:
        job = recorded.control(log)
    except UserError:
        return None
    calls = cost.purification(job.cell, job.shape)
    return None if calls is None else sum(calls)


def draw(logs: Sequence[Log]) -> tuple[Figure, list[str]]:
    """The figure, and what is to be said of it. Raises UserError where no defense has a number, or where there are too many tables."""
    found = [table for table in tables.printed(logs) if any(h.strongest for h in table.headlines)] if logs else []
    if not found:
        raise UserError(
            "there is nothing to draw for `cost`: no record of an attack", "`purebench run` makes some; name its folder"
        )
    if len(found) > LIMIT:
        names = "; ".join(table.title for table in found)
        raise UserError(
            f"these records are of {len(found)} tables, and `cost` has room for {LIMIT}: {names}", "name fewer folders"
        )
    missing: dict[str, None] = {}
    words = Words(
        "What robustness costs",
        [f"{table.title}: {table.models.replace('`', '')}" for table in found],
        _foot(found),
    )
    # Many defenses have many names.
    height = min(3.2, max(2.0, 0.19 * max(len(table.headlines) for table in found)))
    drawn: list[tuple[Printed, list[tuple[float, Headline]]]] = []
    for table in found:
        points = []
        for headline in table.headlines:
            calls = purification(headline.log)
            if calls is None or headline.strongest is None:
                why = "its network calls cannot be counted" if calls is None else "no attack"
                missing[f"not drawn, {why}: {headline.defense}"] = None
            else:
                points.append((calls, headline))
        if points:
            drawn.append((table, points))
    if not drawn:
        raise UserError(
            "there is nothing to draw for `cost`: " + "; ".join(missing),
            "network calls are counted on the parts of now: of datasets and files of your own these are not here",
        )
    canvas = drawing.canvas(words, axes=len(drawn), height=height, titled=len(drawn) > 1)
    for axes, (table, points) in zip(canvas.axes, drawn, strict=True):
        _axes(axes, points, table.title if len(drawn) > 1 else "")
    warnings = dict.fromkeys(f"Warning: {text}" for table in found for text in table.warnings)
    return canvas.figure, [*missing, *warnings, "`purebench table` prints these numbers, and what stands behind them"]


def _foot(found: Sequence[Printed]) -> list[str]:
    headlines = [headline for table in found for headline in table.headlines if headline.strongest]
    images = sorted({headline.strongest.images for headline in headlines if headline.strongest})
    count = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    said = f"Each defense under its strongest attack, on {count} images; bars: the 95 % Wilson interval. "
    said += "A call is one network forwards, or one backwards."
    # An open point stands where nothing was shown.
    masked = " Open: every gradient attack was masked, no evidence of robustness."
    return [said + masked * any(headline.masked for headline in headlines)]


def _axes(axes: Axes, points: Sequence[tuple[float, Headline]], title: str) -> None:
    axes.set_xscale("log")
    highest = max((100 * (h.strongest.high or h.strongest.value) for _, h in points if h.strongest), default=100.0)
    # A little below 0: many a defense stands there, and has a name.
    axes.set_ylim(-4, min(101, 20 * math.ceil(highest / 20)))
    axes.set_title(title, size=7, loc="left")
    # Room at the right for the last name.
    most = max((calls for calls, _ in points), default=1.0)
    axes.set_xlim(0.7, most * 4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("network calls of a purification")
    axes.set_ylabel("robust accuracy (%)")
    for calls, headline in points:
        value = headline.strongest
        assert value is not None
        y = 100 * value.value
        if value.low is not None and value.high is not None:
            axes.vlines(calls, 100 * value.low, 100 * value.high, color=LIGHT, linewidth=1.6, zorder=1)
        face = "white" if headline.masked else COLOUR
        axes.plot([calls], [y], "o", color=COLOUR, markerfacecolor=face, markersize=4, label=headline.defense, zorder=3)
    drawing.names(axes, [(calls, 100 * h.strongest.value, h.defense) for calls, h in points if h.strongest])
