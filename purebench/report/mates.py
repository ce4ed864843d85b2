"""Which cells are compared with which: those that are alike in everything but what is compared. No torch.

A side is a cell with all of its seeds. Two sides are mates if their names agree (dataset, subset, classifier, score model, defense, attack,
gradient, threat model) but for those that are `free`. Names, not versions or weights: these may differ, and are then said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from purebench import registry, spec
from purebench.errors import unknown
from purebench.records import store
from purebench.records.store import Log
from purebench.report import metrics, selection

NAMES = ("dataset", "subset", "classifier", "score", "threat", "defense", "attack", "gradient")
AXES = (*NAMES, "seed", "version")
ALIAS = {"grad": "gradient"}  # what tables and `--grad` call it
# Parts whose versions, weights and values differ for no other reason than that the name does.
FOLLOWS = {
    "defense": ("defense", "score", "score.1", "surrogate"),
    "gradient": ("gradient", "surrogate"),
    "score": ("score", "score.1"),
}


@dataclass(frozen=True)
class Side:
    """A cell under all of its seeds: `names`, `made` (of each part its values, version and hash, as text) and one log per seed."""

    names: Mapping[str, str]
    made: Mapping[tuple[str, str], str]
    logs: Mapping[int, Log]

    @property
    def started(self) -> str:
        return max((log.started for log in self.logs.values()), default="")

    @property
    def natural(self) -> bool:
        return metrics.natural(self.names["defense"], self.names["attack"], self.names["gradient"])


def sides(logs: Iterable[Log], *, by_seed: bool = False) -> list[Side]:
    """The cells, seeds of one together unless `by_seed`; in the order of the tables' names."""
    found: dict[object, Side] = {}
    for log in logs:
        names, made, seed = {name: str(log.cell[name]) for name in NAMES}, _made(log), int(log.cell["seed"])
        for copy in itertools.count():
            # A seed twice: transfers of one name whose sources were of other versions are other cells.
            key = (tuple(names.values()), tuple(made.items()), seed if by_seed else None, copy)
            if key not in found or seed not in found[key].logs:
                break
        before = found[key].logs if key in found else {}
        found[key] = Side(names, made, {**before, seed: log})
    return sorted(found.values(), key=lambda side: (*(rank(name, side.names[name]) for name in NAMES), side.started))


def rank(name: str, value: str) -> tuple[int, float, str]:
    """The place of a value in the house's order: as `purebench list` has it, radii and seeds by size."""
    known = list(registry.names(name)) if name in registry.NAMES else []
    first = value.partition(":")[0]
    size = 0.0
    if name == "threat" and value not in ("", "-"):
        size = spec.threat(value).eps
    elif name == "seed":
        size = int(value)
    return known.index(first) if first in known else len(known), size, value


def _made(log: Log) -> dict[tuple[str, str], str]:
    texts: dict[tuple[str, str], str] = {}
    for kind, part in store.parts(log.cell).items():
        texts |= {(kind, key): _text(value) for key, value in part["values"].items()}
        texts |= {(kind, key): str(part[key]) for key in ("version", "hash") if part[key] is not None}
    return texts


def _text(value: object) -> str:
    return "[" + ",".join(map(_text, value)) + "]" if isinstance(value, list) else spec.show(value)  # type: ignore[arg-type]


# ---- what differs --------------------------------------------------------------------------------


def axis(name: str) -> str:
    """One of AXES. Raises UserError for another word."""
    name = ALIAS.get(name, name)
    if name not in AXES:
        raise unknown("word for `--by`", name, AXES)
    return name


def seeds(a: Side, b: Side, free: Sequence[str]) -> tuple[list[int], list[int]]:
    """Which seeds of two mates are compared: those of both, or where seeds may differ all."""
    if "seed" in free:
        return sorted(a.logs), sorted(b.logs)
    both = sorted(a.logs.keys() & b.logs.keys())
    return both, both


def are(a: Side, b: Side, free: Sequence[str]) -> bool:
    """Whether two sides are mates."""
    for name in NAMES:
        # A defense has its paper's score model, which is then said.
        if name in free or (name == "score" and "defense" in free):
            continue
        x, y = a.names[name], b.names[name]
        # What uses no score model, or keeps to no threat model, stands beside any.
        if name in ("score", "threat") and "-" in (x, y):
            continue
        # The usual gradient of one attack is not that of another, and a bare classifier knows but one.
        if name == "gradient" and {"defense", "attack"} & set(free) and a.natural and b.natural:
            continue
        if x != y:
            return False
    return bool(seeds(a, b, free)[0])


def also(a: Side, b: Side, free: Sequence[str]) -> list[str]:
    """What else differs between two mates than what is free, in words: it may be the reason of what they show."""
    names = [name for name in NAMES if name not in free and a.names[name] != b.names[name]]
    said = [
        f"{name} {a.names[name]} / {b.names[name]}"
        for name in names
        if "-" not in (a.names[name], b.names[name]) and not (name == "gradient" and a.natural and b.natural)
    ]
    explained = _follow([*free, *names])
    keys = [key for key in _differing(a, b) if key[0] not in explained]
    return said + [f"{' '.join(key)} {_short(a, key)} / {_short(b, key)}" for key in keys]


def labels(a: Side, b: Side, free: Sequence[str]) -> tuple[str, str]:
    """The two by what tells them apart: the free names, else parameters, versions and weights."""
    differ = [name for name in free if name in NAMES and a.names[name] != b.names[name]]
    first, second = (" ".join(_words(side, differ)) for side in (a, b))
    if not differ and "seed" in free:
        first, second = (f"seed {', '.join(map(str, sorted(side.logs)))}" for side in (a, b))
    if first != second:
        return first, second
    keys = [key for key in _differing(a, b) if not free or key[0] in _follow(free)]
    if not keys:
        return "same cell", "same cell"
    first, second = (", ".join(f"{' '.join(key)}={_short(side, key)}" for key in keys) for side in (a, b))
    return first, second


def _words(side: Side, differ: Sequence[str]) -> Iterator[str]:
    for name in differ:
        if (value := side.names[name]) != "-":
            yield f"@{value}" if name == "gradient" and len(differ) > 1 else value


def _follow(names: Iterable[str]) -> set[str]:
    """The parts that differ for no other reason than that these names do."""
    return {kind for name in names for kind in FOLLOWS.get(name, (name,))}


def _differing(a: Side, b: Side) -> list[tuple[str, str]]:
    return [key for key in dict.fromkeys([*a.made, *b.made]) if a.made.get(key) != b.made.get(key)]


def _short(side: Side, key: tuple[str, str]) -> str:
    return side.made.get(key, "-")[:12]


# ---- pairs ---------------------------------------------------------------------------------------


def between(first: Sequence[Side], second: Sequence[Side], free: Sequence[str]) -> list[tuple[Side, Side]]:
    """Every side of either with its best mate in the other: the one that differs in the fewest other things, of these the newest."""
    meeting = [(a, b) for a in first for b in second if a is not b and are(a, b, free)]
    ordered = sorted(meeting, key=lambda pair: (pair[0].started, pair[1].started), reverse=True)
    ordered.sort(key=lambda pair: len(also(pair[0], pair[1], free)))
    best: dict[tuple[int, int], tuple[int, int]] = {}
    for a, b in ordered:
        best.setdefault((0, id(a)), (id(a), id(b)))
        best.setdefault((1, id(b)), (id(a), id(b)))
    kept = set(best.values())
    return [(a, b) for a, b in meeting if (id(a), id(b)) in kept]


def within(logs: Sequence[Log], name: str, wanted: Sequence[str]) -> Iterator[tuple[Side, Side]]:
    """The pairs of one set of records by what they are compared by. wanted: names as `selection.read` spells them, of which the first is
    held against each of the others; none for each against each."""
    every = sides(logs, by_seed=name == "seed")
    if name == "version":
        by_age = sorted(every, key=lambda side: side.started)
        yield from ((a, b) for a, b in itertools.combinations(by_age, 2) if are(a, b, []))
        return
    if wanted:
        levels = [[side for side in every if _is(side, name, text)] for text in wanted]
        chosen = [(levels[0], level) for level in levels[1:]]
    else:
        of: dict[str, list[Side]] = {}
        for side in every:
            of.setdefault(_value(side, name), []).append(side)
        ordered = [of[value] for value in sorted(of, key=lambda value: rank(name, value))]
        chosen = list(itertools.combinations(ordered, 2))
    for first, second in chosen:
        yield from between(first, second, [name])


def _value(side: Side, name: str) -> str:
    return str(next(iter(side.logs))) if name == "seed" else side.names[name]


def _is(side: Side, name: str, text: str) -> bool:
    return any(selection.fits(log.cell, name, text) for log in side.logs.values())


def free(first: Sequence[Log], second: Sequence[Log]) -> list[str]:
    """In what two sets of records differ as wholes: the names of which no value is in both."""
    found = []
    for name in (*NAMES, "seed"):
        of, other = ({str(log.cell[name]) for log in logs} for logs in (first, second))
        # What uses no score model, or keeps to no threat model, stands beside any: see `are`.
        if not of & other and not (name in ("score", "threat") and {"-"} in (of, other)):
            found.append(name)
    if "gradient" in found and {"defense", "attack"} & set(found) and all(map(_natural, [*first, *second])):
        found.remove("gradient")
    return found


def _natural(log: Log) -> bool:
    return metrics.natural(log.cell["defense"], log.cell["attack"], log.cell["gradient"])


def comparable(logs: Sequence[Log]) -> list[str]:
    """By what one set of records can be compared: whatever makes a pair."""
    return [name for name in AXES if next(within(logs, name, ()), None)]
