"""`purebench compare`: two cells on the same images, as many times as there are pairs; md, csv or json. No torch.

`of` says which cells are mates, `compared` makes the numbers of one pair (`pairs`), `render` prints them all.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from pandas import DataFrame

from purebench.errors import UserError, unknown
from purebench.plan import measures
from purebench.records import frame, store
from purebench.records.store import Log, Record, judged
from purebench.report import expect, markdown, mates, metrics, pairs, selection, tables
from purebench.report.mates import Side
from purebench.report.pairs import Pair

FORMATS = ("md", "csv", "json")
MASKED = "§"
UNEQUAL = "+"  # behind a pair in which more differs than what is compared
FEW = 50  # images, below which a percentile bootstrap is known to be too narrow
Key = tuple[
    int, int
]  # an image: its index in the dataset, and which of its places in the subset (a subset may hold it twice)


@dataclass(frozen=True)
class Metric:
    """What is compared. `answers`: of a line, whether each draw was right; None where the line says nothing."""

    answers: Callable[[Record], list[bool] | None]
    attacked: bool = True  # whether it depends on the attack


def _draws(field: str) -> Callable[[Record], list[bool] | None]:
    return lambda line: [answer == line["label"] for answer in line.get(field, ())] or None


def _verdict(rule: str) -> Callable[[Record], list[bool] | None]:
    """The attack's own verdict, where it is by this rule."""
    return lambda line: None if metrics.verdict([line], rule) is None else [bool(line["verdict"])]


METRICS = {
    "robust": Metric(_draws("adversarial")),
    "clean": Metric(_draws("clean"), attacked=False),
    **{rule: Metric(_verdict(rule)) for rule in measures.VERDICTS},
    "undefended": Metric(lambda line: [line["undefended"] == line["label"]], attacked=False),
}


@dataclass(frozen=True)
class Compared:
    """One pair. `seeds`, `evals`: of either side; `of`: how many images either has; `masked`: the side whose attack was blind; `unequal`:
    what else differs than what is compared; `corrected`: the p value after Holm, among all pairs of the table."""

    a: Side
    b: Side
    labels: tuple[str, str]
    seeds: tuple[list[int], list[int]]
    evals: tuple[int, int]
    of: tuple[int, int]
    masked: tuple[bool, bool]
    unequal: tuple[str, ...]
    pair: Pair
    corrected: float = 1.0

    def logs(self, side: int) -> list[Log]:
        return [(self.a, self.b)[side].logs[seed] for seed in self.seeds[side]]

    @property
    def attack(self) -> str:
        """The attack that both have, with its gradient where it is not the attack's own; `-` where they differ."""
        attack, gradient = self.common("attack"), self.common("gradient")
        if attack is None or gradient is None or self.a.natural:
            return attack or "-"
        return f"{attack} @{gradient}"

    def name(self) -> str:
        """What is compared and on what, for a note."""
        shared = " ".join(
            name for name in (self.common("defense"), self.attack, self.common("threat")) if name and name != "-"
        )
        labels = " and ".join(dict.fromkeys(self.labels))
        return f"{labels} ({shared})" if shared else labels

    def common(self, name: str) -> str | None:
        """A name that both sides have; None where they differ. What stands beside any (`-`) is no difference."""
        x, y = self.a.names[name], self.b.names[name]
        if name in ("score", "threat") and "-" in (x, y):
            return max(x, y)
        return x if x == y else None


@dataclass(frozen=True)
class Comparison:
    """All pairs: `what` is compared, between `places` (one set of records or two), in which `metric`; `refused`: pairs that were none, and
    why; `alone`: cells without a mate; `without`: the cells of both, of which nothing was compared, and why."""

    places: tuple[str, ...]
    free: tuple[str, ...]
    metric: str
    rows: list[Compared]
    refused: list[str]
    alone: list[str]
    without: list[tuple[Side, str]]


# ---- which, with which ---------------------------------------------------------------------------


def of(
    places: Sequence[Path], by: str | None, wanted: Mapping[str, Sequence[str]], metric: str = "robust"
) -> Comparison:
    """The pairs of one folder of records, or between two. by: one of `mates.AXES`; left out, it is of one folder the kind that has several
    `wanted` names, of two what no cell of one shares with any of the other. Raises UserError for what cannot be compared."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    by = None if by is None else mates.axis(by)
    if len(places) > 2:
        raise UserError(f"{len(places)} folders: two are compared at a time", "`purebench compare A B`")
    if len({place.resolve() for place in places}) < len(places):
        raise UserError(
            f"A and B are one folder, `{places[0]}`",
            "name it once, and say what is compared: `--by gradient`, or `-d` twice",
        )
    sets = [frame.settled(store.load_all([place])) for place in places]
    for logs, place in zip(sets, places, strict=True):
        if not logs:
            raise UserError(
                f"there are no records in `{place}`",
                "name the folder that `purebench run --out` wrote, or a cell in it",
            )
    asked = selection.check(itertools.chain(*sets), wanted)
    sets = [selection.chosen(logs, asked) for logs in sets]
    names = tuple(map(str, places))
    return of_two(sets, names, by, metric) if len(sets) == 2 else of_one(sets[0], names[0], by, asked, metric)


def of_two(sets: Sequence[list[Log]], places: tuple[str, ...], by: str | None, metric: str) -> Comparison:
    """The cells of two sets of records that are alike but for `by`, or for what these differ in as wholes."""
    for logs, place in zip(sets, places, strict=True):
        if not logs:
            raise UserError(
                f"no record in `{place}` is of what was chosen",
                f"`purebench status {shlex.quote(str(place))}` names its cells",
            )
    free = mates.free(*sets) if by is None else [] if by == "version" else [by]
    sides = [mates.sides(logs) for logs in sets]
    found = mates.between(sides[0], sides[1], free)
    if not found:
        differ = f"but for {', '.join(free)}" if free else "in all of its names"
        raise UserError(
            f"no cell of `{places[0]}` is like one of `{places[1]}` {differ}",
            f"`--by` says in what they may differ: {', '.join(mates.AXES)}",
        )
    return _comparison(found, [side for of in sides for side in of], places, free, metric)


def of_one(
    logs: Sequence[Log], place: str, by: str | None, asked: Mapping[str, Sequence[str]], metric: str
) -> Comparison:
    """The cells of one set of records that are alike but for `by`, or for what several names were asked of."""
    several = [kind for kind, texts in asked.items() if len(texts) > 1]
    if by is None and len(several) != 1:
        words = " and ".join(f"several {kind}s" for kind in several)
        what = f"{words}: by which of them?" if several else f"nothing says what of `{place}` is compared"
        raise UserError(what, _by_what(logs))
    by = by or several[0]
    found = list(mates.within(logs, by, asked.get(by, ()) if by in several else ()))
    if not found:
        raise UserError(f"no two cells of `{place}` differ in their {by} alone", _by_what(logs))
    sides = mates.sides(logs, by_seed=by == "seed")
    return _comparison(found, sides, (place,), [] if by == "version" else [by], metric)


def _by_what(logs: Sequence[Log]) -> str:
    known = mates.comparable(logs)
    return (
        f"these can be compared with `--by {'`, `--by '.join(known)}`"
        if known
        else "no two of these cells can be compared"
    )


def _comparison(
    found: Sequence[tuple[Side, Side]], sides: Sequence[Side], places: tuple[str, ...], free: list[str], metric: str
) -> Comparison:
    made = [compared(a, b, free, metric) for a, b in found]
    rows = [one for one in made if isinstance(one, Compared)]
    refused = [one for one in made if isinstance(one, str)]
    without = [(side, one) for pair, one in zip(found, made, strict=True) if isinstance(one, str) for side in pair]
    if not rows:
        raise UserError(
            f"nothing can be compared: {_some(refused, '; ')}", "`purebench status` says what the cells hold"
        )
    corrected = pairs.holm([row.pair.p for row in rows])
    rows = [replace(row, corrected=p) for row, p in zip(rows, corrected, strict=True)]
    rows.sort(key=_place)
    paired = {id(log) for pair in found for side in pair for log in side.logs.values()}
    lonely = [side for side in sides if not {id(log) for log in side.logs.values()} & paired]
    without += [(side, "it has no mate") for side in lonely]
    return Comparison(places, tuple(free), metric, rows, refused, list(map(_title, lonely)), without)


def _place(row: Compared) -> tuple[object, ...]:
    """Sorts the rows by what both have; a gradient that is an attack's own is no reason to stand elsewhere."""
    names = [name for name in mates.NAMES if name != "gradient"]
    return *(mates.rank(name, row.common(name) or "") for name in names), row.attack


def _title(side: Side) -> str:
    return " ".join(log.id for log in side.logs.values())


# ---- one pair ------------------------------------------------------------------------------------


def compared(a: Side, b: Side, free: Sequence[str], metric: str) -> Compared | str:
    """The numbers of one pair, on the images that all logs of both have; or why there are none."""
    seeds = mates.seeds(a, b, free)
    sides = [[side.logs[seed] for seed in of] for side, of in zip((a, b), seeds, strict=True)]
    name = " and ".join(_title(side) for side in (a, b))
    if "dataset" not in free and _other_data(a, b):
        return f"{name}: their datasets of one name hold other images"
    lines = [[_by_image(log) for log in logs] for logs in sides]
    images = sorted(set.intersection(*(set(of) for logs in lines for of in logs)))
    if not images:
        return f"{name}: no image was judged in both"
    if wrong := [image for image in images if len({of[image]["label"] for logs in lines for of in logs}) > 1]:
        return f"{name}: image {wrong[0][0]} is of another class in each: these are not the same images"
    answers = [[_answers(of, images, metric) for of in logs] for logs in lines]
    if any(of is None for logs in answers for of in logs):
        return f"{name}: their records have no `{metric}`"
    known = [[of for of in logs if of is not None] for logs in answers]
    # A single run, whose draw was fixed before anything was seen, and is the same on both sides: see docs/compare.md.
    first = [[of[0] for of in logs[0]] for logs in known]
    shares = [[fmean(map(fmean, of)) for of in zip(*logs, strict=True)] for logs in known]
    blind = [METRICS[metric].attacked and metrics.all_masked({"": logs}) is not None for logs in sides]
    return Compared(
        a,
        b,
        mates.labels(a, b, free),
        seeds,
        (min(len(of[0]) for of in known[0]), min(len(of[0]) for of in known[1])),
        (min(map(len, lines[0])), min(map(len, lines[1]))),
        (blind[0], blind[1]),
        # Without anything that is free, all that differs is what is compared, and stands in the labels.
        tuple(mates.also(a, b, free)) if free else (),
        pairs.pair(shares[0], shares[1], first[0], first[1]),
    )


def _other_data(a: Side, b: Side) -> bool:
    """Whether the hashes of two datasets are known, and differ."""
    hashes = [side.made.get(("dataset", "hash")) for side in (a, b)]
    return all(hashes) and hashes[0] != hashes[1]


def _by_image(log: Log) -> dict[Key, Record]:
    """The judged lines of a cell by image, not by position: another subset has the same image elsewhere."""
    seen: Counter[int] = Counter()
    found = {}
    for line in sorted(judged(log), key=lambda line: line["position"]):
        found[line["index"], seen[line["index"]]] = line
        seen[line["index"]] += 1
    return found


def _answers(lines: Mapping[Key, Record], images: Sequence[Key], metric: str) -> list[list[bool]] | None:
    """Which draws of each image were right, of as many draws as all of these images have."""
    answers = [METRICS[metric].answers(lines[image]) for image in images]
    known = [of for of in answers if of is not None]
    k = min(map(len, known), default=0)
    return [of[:k] for of in known] if len(known) == len(images) else None


def measured(found: Comparison) -> list[expect.Measured]:
    """What an expectation may be about: A, B and their difference, on the images that both have."""
    numbers = []
    for row in found.rows:
        logs = [row.logs(side) for side in (0, 1)]
        short = ["; ".join(filter(None, map(metrics.short, of))) for of in logs]
        cells = [tuple(log.cell for log in of) for of in logs]
        for side, value in enumerate((row.pair.a, row.pair.b)):
            of = {found.metric: value}
            numbers.append(
                expect.Measured(cells[side], of, row.pair.images, masked=row.masked[side], short=short[side])
            )
        numbers.append(
            expect.Measured(
                cells[1] + cells[0],
                {expect.DIFFERENCE: row.pair.difference},
                row.pair.images,
                masked=any(row.masked),
                short="; ".join(filter(None, short)),
                label=row.name(),
            )
        )
    # What was not compared may be what an expectation is about: then it is not met by what is left.
    for lonely, why in found.without:
        of_side = tuple(log.cell for log in lonely.logs.values())
        for numbers_of in ({found.metric: nan}, {expect.DIFFERENCE: nan}):
            numbers.append(expect.Measured(of_side, numbers_of, 0, why=f"not compared: {why}"))
    return numbers


# ---- words ---------------------------------------------------------------------------------------


def render(found: Comparison, format: str = "md") -> str:
    """The comparison as text that ends in a newline; `format` is one of FORMATS."""
    if format == "md":
        return _markdown(found)
    rows = [_row(found, row) for row in found.rows]
    if format == "json":
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    return DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def _row(found: Comparison, row: Compared) -> dict[str, Any]:
    """A pair for programs: names that both have (None where they differ), and numbers in [-1, 1]."""
    names = {name: row.common(name) for name in mates.NAMES}
    pair = row.pair
    return {
        **names,
        "seed": ", ".join(map(str, row.seeds[0])) if row.seeds[0] == row.seeds[1] else None,
        "a": row.labels[0], "b": row.labels[1], "also_differ": "; ".join(row.unequal), "metric": found.metric,
        "images": pair.images, "evals_a": row.evals[0], "evals_b": row.evals[1],
        "value_a": round(pair.a, 6), "value_b": round(pair.b, 6), "difference": round(pair.difference, 6),
        "low": round(pair.low, 6), "high": round(pair.high, 6), "n10": pair.n10, "n01": pair.n01,
        "p": pair.p, "p_holm": row.corrected, "pairs": len(found.rows), "masked_a": row.masked[0], "masked_b": row.masked[1],
        "cells_a": " ".join(log.id for log in row.logs(0)), "cells_b": " ".join(log.id for log in row.logs(1)),
    }  # fmt: skip


def _markdown(found: Comparison) -> str:
    rows = found.rows
    # A gradient that is the attack's own is in its name already.
    words = [{name: row.common(name) or "-" for name in mates.NAMES} | {"attack": row.attack} for row in rows]
    names = [name for name in mates.NAMES if name not in (*found.free, "gradient")]
    values = {name: sorted({of[name] for of in words} - {"-"}) for name in names}
    varying = [name for name in names if len(values[name]) > 1]
    header = [*varying, "A", "B", "images", "A %", "B %", "B - A", "95 %", "only A", "only B", "p"]
    lines = []
    for row, of in zip(rows, words, strict=True):
        line = [of[name] for name in varying] + _numbers(row) + ([_p(row.corrected)] if len(rows) > 1 else [])
        lines.append(list(map(markdown.escape, line)))
    header += ["p (Holm)"] if len(rows) > 1 else []
    shared = ", ".join(f"{name} `{values[name][0]}`" for name in names if len(values[name]) == 1)
    text = [f"### {_heading(found)}", "", *([f"{shared[0].upper()}{shared[1:]}.", ""] if shared else [])]
    text += [*markdown.table(list(map(markdown.escape, header)), lines, left=len(varying) + 2), ""]
    return "\n".join([*text, *(f"- {markdown.prose(note)}" for note in _notes(found))]) + "\n"


def _numbers(row: Compared) -> list[str]:
    """The words of a pair from its labels to p."""
    pair = row.pair
    means = [
        f"{100 * value:.1f}" + f" {MASKED}" * blind for value, blind in zip((pair.a, pair.b), row.masked, strict=True)
    ]
    mark = f" {UNEQUAL}" if row.unequal else ""
    return [
        row.labels[0] + mark, row.labels[1], str(pair.images), *means, f"{100 * pair.difference:+.1f}",
        f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}", str(pair.n10), str(pair.n01), _p(pair.p),
    ]  # fmt: skip


def _heading(found: Comparison) -> str:
    what = f"{found.metric} accuracy"
    if found.metric in measures.VERDICTS:
        what = (
            "accuracy by AutoAttack's own verdict"
            if found.metric == "aa"
            else f"accuracy by the attack's own verdict ({found.metric})"
        )
    by = f", by {' and '.join(found.free)}" if found.free else ""
    if len(found.places) == 1:
        return f"{what}{by}: `{found.places[0]}`"
    return f"{what}{by}: A `{found.places[0]}`, B `{found.places[1]}`"


def _p(p: float) -> str:
    return f"{p:.2g}" if p < 0.01 else f"{p:.3f}"


def _notes(found: Comparison) -> list[str]:
    """What a reader must know to believe the numbers, then what makes them weaker than they look."""
    rows = found.rows
    notes = [
        "Paired: the images that both have, by their index in the dataset. A, B: mean of single runs on these, in %; "
        f"B - A in points, with the 95 % interval of {pairs.RESAMPLES:,} bootstrap resamples of the images.",
        "only A, only B: images that one of both had right, in the first evaluation alone (a single run, whose draw was fixed before); "
        "p: McNemar's exact test on these, two-sided.",
    ]
    notes.append(
        f"p (Holm): corrected for the {len(rows)} pairs of this table; the intervals are of each pair alone."
        if len(rows) > 1
        else "One pair: nothing to correct p for. Of several such commands it would have to be."
    )
    seeds = {tuple(row.seeds[side]) for row in rows for side in (0, 1)}
    notes.append(
        f"Seeds: {'; '.join(', '.join(map(str, of)) for of in sorted(seeds))}. Evaluations of an image: {_evals(rows)}."
    )
    if found.alone:
        notes.append(f"Without a mate: {_some(found.alone)}.")
    if runs := _runs(rows):
        notes.append(f"Runs differ in {'; '.join(runs)}.")
    return notes + [f"**Warning:** {warning}" for warning in _warnings(found)]


def _runs(rows: Sequence[Compared]) -> list[str]:
    """On what machines and with what code A and B were made, where that is not the same."""
    said = []
    for fact in ("git", "torch", "device", "hardware", "rows"):
        a, b = (
            sorted(
                {str(log.runs[-1][fact]) for row in rows for log in row.logs(side) if log.runs and fact in log.runs[-1]}
            )
            for side in (0, 1)
        )
        if a and b and a != b:
            said.append(f"{fact}: {_some(a)} / {_some(b)}")
    return said


def _evals(rows: Sequence[Compared]) -> str:
    counts = sorted({k for row in rows for k in row.evals})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _warnings(found: Comparison) -> list[str]:
    rows = found.rows
    said = [f"{UNEQUAL} {row.name()} also differ: {_some(row.unequal, '; ')}." for row in rows if row.unequal]
    if cut := [row for row in rows if max(row.of) > row.pair.images]:
        texts = [f"{row.name()}: {row.pair.images} of {' and '.join(map(str, row.of))}" for row in cut]
        said.append(f"on fewer images than were judged, those that both have: {_some(texts, '; ')}.")
    if any(any(row.masked) for row in rows):
        said.append(
            f"{MASKED} its attack was masked: that accuracy is no evidence of robustness, and no more is the difference."
        )
    used = {log.id: log for row in rows for side in (0, 1) for log in row.logs(side)}
    if unfinished := sorted(filter(None, map(metrics.short, used.values()))):
        said.append(f"unfinished, and the images at hand may be the easy ones: {_some(unfinished)}.")
    if (least := min(row.pair.images for row in rows)) < FEW:
        said.append(f"{least} images: of so few a bootstrap's interval is too narrow.")
    if found.refused:
        said.append(f"not compared: {_some(found.refused, '; ')}.")
    return said + tables.doubts(used.values(), paired=True)


def _some(names: Sequence[str], separator: str = ", ", limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
