"""Drawings for the page as SVG text, by a few lines of our own: a bar of a verdict, and cost against robustness.

Colours and type are classes of the page's style sheet, so that one drawing serves light and dark. No torch, no matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from purebench.report.metrics import Value
from purebench.report.tables import Headline

BAR = 12  # height of a verdict's bar; it is drawn 100 wide, a unit for each percent


def bar(clean: Value | None, robust: Value | None) -> str:
    """Accuracy from 0 to 100 %: filled up to that under the strongest attack, with its interval; a tick at that on clean images."""
    # Stretched to whatever width there is: lines keep theirs by the style sheet's `non-scaling-stroke`.
    parts = [f'<svg class="bar" viewBox="0 0 100 {BAR}" preserveAspectRatio="none" aria-hidden="true">']
    parts.append(f'<rect class="track" width="100" height="{BAR}"/>')
    if clean:
        parts.append(f'<rect class="lost" width="{_n(100 * clean.value)}" height="{BAR}"/>')
    if robust:
        parts.append(f'<rect class="kept" width="{_n(100 * robust.value)}" height="{BAR}"/>')
        if robust.low is not None and robust.high is not None:
            parts.append(f'<path class="whisker" d="M{_n(100 * robust.low)} {BAR / 2:g}H{_n(100 * robust.high)}"/>')
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Point:
    """A defense in the plane: network calls per image, accuracy in percent with its interval, and the name beside it."""

    name: str
    calls: float
    value: float
    low: float
    high: float
    masked: bool


def points(headlines: Sequence[Headline]) -> list[Point]:
    """The defenses that have both a strongest attack and a cost; on a log axis a cost of nothing has no place."""
    found = []
    for of in headlines:
        calls = sum(of.calls) if of.calls else 0.0
        if of.strongest and calls > 0:
            value, low, high = (100 * (of.strongest.value if v is None else v) for v in of.strongest[:3])
            found.append(Point(of.defense, calls, value, low, high, of.masked))
    return found


def cost(found: Sequence[Point], width: int) -> str:
    """Accuracy under the strongest attack against network calls per image, on a log axis: one point per defense. width: in pixels, of the
    drawing at its natural size; a narrow one is made of its own, since scaled-down letters cannot be read."""
    left, right, top, bottom = 40, 14, 14, 46
    height = min(440, max(360, round(0.56 * width)))
    first, last = _decades([point.calls for point in found])

    def x(calls: float) -> float:
        return left + (math.log10(calls) - first) / (last - first) * (width - left - right)

    def y(percent: float) -> float:
        return top + (1 - percent / 100) * (height - top - bottom)

    parts = [f'<svg class="cost" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    parts.append(f"<title>{escape(_said(found))}</title>")
    for percent in range(0, 101, 20):
        parts.append(f'<path class="grid" d="M{left} {_n(y(percent))}H{width - right}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{_n(y(percent) + 4)}" text-anchor="end">{percent}</text>')
    for power in range(math.ceil(first), math.floor(last) + 1):
        at = _n(x(10.0**power))
        parts.append(f'<path class="grid" d="M{at} {top}V{height - bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{height - bottom + 18}" text-anchor="middle">{_power(power)}</text>'
        )
    axis = "network calls per image of the costliest attack"
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2:g}" y="{height - 8}" text-anchor="middle">{axis}</text>'
    )
    for point in found:
        at = _n(x(point.calls))
        parts.append(f'<path class="whisker" d="M{at} {_n(y(point.low))}V{_n(y(point.high))}"/>')
    for point in found:
        parts.append(
            f'<circle class="{"masked" if point.masked else "point"}" cx="{_n(x(point.calls))}" cy="{_n(y(point.value))}" r="4.5"/>'
        )
    for point, (side, level, anchor) in zip(found, _labels(found, x, y, width - right), strict=True):
        if abs(level - 4 - y(point.value)) > 20:
            parts.append(
                f'<path class="leader" d="M{_n(x(point.calls))} {_n(y(point.value))}L{_n(side)} {_n(level - 4)}"/>'
            )
        parts.append(
            f'<text class="name" x="{_n(side)}" y="{_n(level)}" text-anchor="{anchor}">{escape(_short(point.name))}</text>'
        )
    return "".join([*parts, "</svg>"])


def _labels(
    found: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float], right: float
) -> list[tuple[float, float, str]]:
    """Where each name stands: beside its point, the first place of a few that no other name and no point covers."""
    taken = [(x(p.calls) - 6, y(p.value) - 6, x(p.calls) + 6, y(p.value) + 6) for p in found]
    placed: list[tuple[float, float, str]] = []
    for point in found:
        length = 6.6 * len(_short(point.name))
        cx, cy = x(point.calls), y(point.value)
        places = [(cx + side * 9, cy + 4 + down, side) for down in (0, -13, 13, -26, 26, -39, 39) for side in (1, -1)]
        boxes = [
            (at if side > 0 else at - length, top - 10, at + length if side > 0 else at, top + 3)
            for at, top, side in places
        ]
        inside = [i for i, box in enumerate(boxes) if box[0] >= 40 and box[2] <= right]
        best = min(inside or range(len(boxes)), key=lambda i: (sum(_over(boxes[i], box) for box in taken), i))
        taken.append(boxes[best])
        at, top, side = places[best]
        placed.append((at, top, "start" if side > 0 else "end"))
    return placed


def _over(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _decades(calls: Sequence[float]) -> tuple[float, float]:
    """The axis from a little below the least to a little above the most, and at least a decade wide."""
    low, high = math.log10(min(calls)) - 0.25, math.log10(max(calls)) + 0.25
    middle = (low + high) / 2
    return min(low, middle - 0.6), max(high, middle + 0.6)


def _power(power: int) -> str:
    return f"{10**power:,}" if 0 <= power <= 4 else f"10<tspan dy='-5' class='power'>{power}</tspan>"


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"


def _said(found: Sequence[Point]) -> str:
    """The drawing in words, for whoever cannot see it."""
    each = "; ".join(f"{p.name}: {p.value:.1f} % at {p.calls:,.0f} calls" for p in found)
    return f"Accuracy under the strongest attack against network calls per image. {each}."


def _n(number: float) -> str:
    """Two digits are finer than a pixel."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
