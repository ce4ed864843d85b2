"""Metrics of what only the loop or the harness could see, and logged: `iterates` and `broken_at` by an attack, `score_norm` and `moved` by
`run --log`, seconds by every run. Pure functions of the records, no torch.

Lines that do not have a key are in no mean of it: a number's own `images` says on how many it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb, prod, sqrt
from statistics import fmean, median, pvariance
from typing import NamedTuple

from purebench import registry, spec
from purebench.records.store import COST, Log, Record, judged, read_lines, values_of
from purebench.report import metrics
from purebench.report.metrics import Value, Z

# ---- inside an attack's loop ---------------------------------------------------------------------


def drawn(log: Log) -> int:
    """How many selection draws an iterate of this attack was tried on: its `log_draws`; 0 where it has none."""
    name = log.cell["attack"].partition(":")[0]
    usual = registry.parameters("attack", name).get("log_draws", 0) if name in registry.names("attack") else 0
    # A parameter that came later is no part of a cell while at its default.
    value = values_of(log.cell, "attack").get("log_draws", usual)
    return value if isinstance(value, int) else 0


def any_iterate(log: Log, n: int) -> Value | None:
    """`any<n>`: the share of images right on all of n draws at every iterate, by the log `iterates` (correct of `log_draws` selection
    draws at each): DiffHammer's and DiffBreak's count (broken if at any iterate any of n draws is wrong). One draw out of (steps + 1) x n
    is enough, so that their luck counts as the attack's. Of more draws than n it is the mean over all choices of n
    at each iterate, prod_i C(c_i, n) / C(N, n), without bias. None without a log, or of fewer draws than n."""
    images = [line for line in judged(log) if line.get("iterates")]
    total = drawn(log)
    if not images or not 0 < n <= total:
        return None
    kept = [prod(comb(correct, n) / comb(total, n) for correct in line["iterates"]) for line in images]
    return metrics.share(fmean(kept), len(images), total)


def curve(images: Sequence[Record]) -> list[Value]:
    """The share of images that no evaluation up to the i-th had broken, i = 0, 1, .., by `broken_at` (an evaluation, -1 never). The last is
    `sticky`. Empty unless every image has the log; no longer than the last break, after which it is flat."""
    if not images or any(line.get("broken_at") is None for line in images):
        return []
    broken = [int(line["broken_at"]) for line in images]
    last = max(broken)
    return [metrics.share(fmean(not 0 <= at <= i for at in broken), len(images), None) for i in range(max(0, last) + 1)]


def until(images: Sequence[Record], evaluation: int) -> Value | None:
    """`sticky@<i>`: one point of the `curve`; None without the log."""
    found = curve(images)
    return found[min(evaluation, len(found) - 1)] if found else None


# ---- detection by the score's norm ---------------------------------------------------------------


def norms(images: Iterable[Record], which: str) -> list[tuple[float, float]]:
    """(clean, attacked) norms of the score, of images that have them; which: `input`, as they reach the defense, or `purified`, after one
    purification."""
    pairs = [line["score_norm"][which] for line in images if line.get("score_norm")]
    # One that is not finite is told by no threshold: recorded as null, it is larger than every other.
    return [tuple(float("inf") if norm is None else norm for norm in pair) for pair in pairs]  # type: ignore[misc]


def detection(images: Iterable[Record], which: str = "input") -> Value | None:
    """AUROC of the score's norm (ADP, Yoon et al. 2021, section 3.4): the probability that an attacked image has a larger one than a clean
    image, ties counting half. The interval is DeLong's (Biometrics 44, 1988), by image: clean and attacked are pairs. None without log."""
    pairs = norms(images, which)
    if not pairs:
        return None
    clean, attacked = ([pair[side] for pair in pairs] for side in (0, 1))
    above = [fmean((a > c) + (a == c) / 2 for c in clean) for a in attacked]
    below = [fmean((a > c) + (a == c) / 2 for a in attacked) for c in clean]
    area, count = fmean(above), len(pairs)
    if count == 1:
        return Value(area, 0.0, 1.0, count, 1)
    # One image adds to both sides: its two components are one observation.
    half = Z * sqrt(pvariance([a + b for a, b in zip(above, below, strict=True)]) / (count - 1))
    return Value(area, max(0.0, area - half), min(1.0, area + half), count, 1)


def detected(images: Iterable[Record], threshold: float, side: int = 1) -> Value | None:
    """`detected@<t>`: the share of attacked images whose norm is above the threshold; side 0: of clean ones, the false alarms
    (`clean_detected@<t>`). ADP's threshold is 25 on CIFAR-10, 35 in its code. None without a log."""
    pairs = norms(images, "input")
    return metrics.share(fmean(pair[side] > threshold for pair in pairs), len(pairs), 1) if pairs else None


# ---- how far a defense moves images --------------------------------------------------------------


def moved(images: Iterable[Record], what: str, norm: str) -> Value | None:
    """`moved_<what>_<norm>`: the mean distance over draws, in L2 or Linf on images in [0, 1], from the purified image: `clean`, the
    clean image from its own purification; `input`, the attacked image from its own; `adversarial`, the clean image from the attacked one's
    purification. The normal 95 % interval over images."""
    values = [line["moved"][what][("l2", "linf").index(norm)] for line in images if line.get("moved")]
    if not values or None in values:
        return None
    half = Z * sqrt(pvariance(values) / (len(values) - 1)) if len(values) > 1 else None
    mean = fmean(values)
    if half is None:
        return Value(mean, None, None, len(values), None)
    return Value(mean, max(0.0, mean - half), mean + half, len(values), None)


def used(log: Log) -> Value | None:
    """`ball_used`: the mean of the perturbation's norm over the radius, under Linf and L2. None under another threat model."""
    images, threat = judged(log), log.cell["threat"]
    kind = spec.threat(threat).norm if threat != "-" else ""
    if kind not in ("Linf", "L2") or not images:
        return None
    # Float32: an image on the edge may stand a last bit outside of it.
    return Value(
        fmean(min(1.0, line[kind.lower()] / spec.threat(threat).eps) for line in images), None, None, len(images), None
    )


# ---- what a purification costs -------------------------------------------------------------------


class Pace(NamedTuple):
    """Seconds of one purification with its classification, and where they were measured."""

    seconds: float
    batches: int
    device: str
    rows: int


def pace(log: Log) -> Pace | None:
    """`seconds`: the median over batches of `judge_seconds` / `purifications`, the first of a cell left out, which warms up. Clean draws
    that another attack's cell has made are in neither. None where there is no second batch, or the records are older. Raises nothing; rows:
    those of the batches counted, the commonest."""
    lines = [line for line in read_lines(log.folder / COST) if line.get("purifications")] if log.folder.name else []
    counted = lines[1:]
    if not counted:
        return None
    rows = [line["rows"] for line in counted]
    common = max(sorted(set(rows)), key=rows.count)
    times = [line["judge_seconds"] / line["purifications"] for line in counted if line["rows"] == common]
    run = log.runs[-1] if log.runs else {}
    return Pace(median(times), len(times), str(run.get("hardware") or run.get("device") or "?"), common)


def seconds(log: Log) -> Value | None:
    """`pace` as a number of a table."""
    found = pace(log)
    return Value(found.seconds, None, None, len(judged(log)), None) if found else None
