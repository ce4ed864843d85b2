"""`--expect 'coup/autoattack-rand>=0.40'`: what a number has to be, for a script that watches over one. No torch.

    DEFENSE/ATTACK[@GRADIENT][/THREAT][(METRIC)] OP NUMBER

What is not said may be anything, and the expectation must hold for all that fits: `coup/pgd-eot` is every cell of COUP under PGD,
whatever its parameters, gradient, threat model and dataset. Nothing that is missing, unfinished or blind meets an expectation.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from purebench import spec
from purebench.errors import UserError, unknown
from purebench.plan import measures
from purebench.records.store import CellData, Log
from purebench.report import coded, metrics, selection, tables

GRAMMAR = (
    "in quotes, since a shell takes `>` for itself: DEFENSE/ATTACK[@GRADIENT][/THREAT][(METRIC)]>=NUMBER, "
    "as 'coup/autoattack-rand>=0.40' or 'coup/strongest>=40%'"
)
OPS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
STRONGEST, CLEAN, DIFFERENCE = tables.STRONGEST, "clean", "difference"
# Whatever is a share of the images that are right.
METRICS = (
    "robust", *measures.VERDICTS, "worst10", "vote10", "clean", "clean_worst10", "clean_vote10", "undefended",
)  # fmt: skip
LISTED = 4


@dataclass(frozen=True)
class Expectation:
    """As read: the parts in the spelling of records, "" for what was not said."""

    text: str
    defense: str
    attack: str
    gradient: str
    threat: str
    metric: str
    op: str
    bound: float

    @property
    def floor(self) -> bool:
        return self.op.startswith(">")


@dataclass(frozen=True)
class Measured:
    """A number that was printed, with what it is of: `cells`, of a difference those of both sides; `headline`: of the strongest attack;
    `short`: what was not run to its end; `why`: there is no number; `masked`: its attack was blind; `label`: what it is called, if not by
    its cell."""

    cells: tuple[CellData, ...]
    numbers: Mapping[str, float]
    images: int
    headline: bool = False
    masked: bool = False
    short: str = ""
    why: str = ""
    label: str = ""
    shown: Mapping[str, str] = field(default_factory=dict)  # names that tell its first cell from others of its name

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        cell = self.cells[0]
        gradient = "" if cell["gradient"] == "-" else f"@{cell['gradient']}"
        threat = "" if cell["threat"] == "-" else f"/{cell['threat']}"
        chosen = "the strongest, " if self.headline else ""
        names = {**cell, **self.shown}
        return f"{chosen}{names['defense']}/{names['attack']}{gradient}{threat}"


@dataclass(frozen=True)
class Verdict:
    """Whether an expectation holds, and the line that says why."""

    met: bool
    line: str


# ---- reading -------------------------------------------------------------------------------------


def read(text: str, *, compared: bool = False) -> Expectation:
    """An expectation of a table, or of what is compared: that has a `(difference)` and no strongest attack. Raises UserError for what is
    none."""
    found = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|=>|=<|>|<)\s*([^<>=]*?)\s*", text)
    if not found:
        raise UserError(f"cannot read the expectation `{text}`: it has no `>=`, `<=`, `>` or `<`", GRAMMAR)
    place, op, number = found.groups()
    if op == "==":
        why = f"`==` in the expectation `{text}`: a measured number is never exactly another"
        raise UserError(why, "give both ends: one `>=` and one `<=`")
    if op not in OPS:
        raise UserError(f"`{op}` in the expectation `{text}` is no comparison", f"write `{op[::-1]}`")
    metric, place = _taken(r"(?<!=)\(([\w@.]+)\)$", place)
    threat, place = _taken(r"/((?:linf|l2):[^()]+)$", place)
    cuts = [i for i in _outside(place, "/") if place[i + 1 : i + 2].isalpha()]
    if not cuts:
        raise UserError(f"cannot read the expectation `{text}`: it names no defense and attack", GRAMMAR)
    # The last: a defense may have a path or a fraction in its parameters.
    defense, attack = place[: cuts[-1]], place[cuts[-1] + 1 :]
    ats = _outside(attack, "@")
    attack, gradient = (attack[: ats[0]], attack[ats[0] + 1 :]) if ats else (attack, "")
    if attack == CLEAN and metric in ("", CLEAN):
        attack, metric = "", CLEAN
    metric = metric or "robust"
    known = (*METRICS, DIFFERENCE) if compared else METRICS
    if metric not in known and not measures.share_of_right(metric):
        raise unknown("metric", metric, known)
    if attack == STRONGEST:
        _check_strongest(text, gradient, metric, compared)
    return Expectation(
        text.strip(),
        selection.read("defense", defense),
        attack if attack in ("", STRONGEST) else selection.read("attack", attack),
        selection.read("gradient", gradient) if gradient else "",
        selection.read("threat", threat) if threat else "",
        metric,
        op,
        _number(number, text, signed=metric == DIFFERENCE),
    )


def _check_strongest(text: str, gradient: str, metric: str, compared: bool) -> None:
    if compared:
        raise UserError(
            f"the expectation `{text}`: cells are compared, and no strongest attack is chosen",
            "`purebench table` has it",
        )
    if gradient or metric != "robust":
        why = f"the expectation `{text}`: the strongest attack is chosen by robust accuracy, over all gradients"
        raise UserError(why, "write `DEFENSE/strongest>=0.40`")


def _taken(pattern: str, text: str) -> tuple[str, str]:
    """(what the pattern's group has, the text without it): something at its end, or nothing."""
    found = re.search(pattern, text, re.IGNORECASE)
    return (found[1], text[: found.start()]) if found else ("", text)


def _outside(text: str, char: str) -> list[int]:
    """Where the character stands outside of brackets and of quotes: `transfer:from=(coup:t=1/10)` and `given:name='a/b'` have none."""
    depth, found = 0, []
    text = re.sub(rf"(?<==)(?:{spec.QUOTED.pattern})", lambda quoted: "'" * len(quoted[0]), text)
    for i, one in enumerate(text):
        depth += (one in "([") - (one in ")]")
        if one == char and not depth:
            found.append(i)
    return found


def _number(word: str, text: str, *, signed: bool) -> float:
    """`0.40` or `40%`; signed: of a difference. A whole number without % might be either, and 1 for 1 % would be a share of 1: refused."""
    found = re.fullmatch(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*(%?)", word)
    if not found or (found[1] and not signed):
        raise UserError(f"`{word}` in the expectation `{text}` is no share of the images", "write it as 0.40 or 40%")
    sign, digits, percent = found.groups()
    number = float(digits)
    if not percent and (number > 1 or ("." not in digits and number != 0)):
        why = f"`{word}` in the expectation `{text}` may be a share or percent"
        raise UserError(why, f"write `{word}%`, or a share such as 0.40")
    if percent and number > 100:
        raise UserError(f"`{word}` in the expectation `{text}` is more than all images", "write it as 0.40 or 40%")
    return (-1 if sign == "-" else 1) * (number / 100 if percent else number)


def check_known(expectations: Iterable[Expectation], logs: Sequence[Log]) -> None:
    """Raises UserError for a name that neither purebench nor a record has."""
    for one in expectations:
        named = {"defense": one.defense, "attack": one.attack, "gradient": one.gradient}
        for kind, text in named.items():
            if text and text != STRONGEST:
                selection.check_known(kind, text, logs)


# ---- judging -------------------------------------------------------------------------------------


def of_grid(logs: Sequence[Log], expected: Iterable[Expectation] = ()) -> list[Measured]:
    """The numbers of the grid, each once: a cell that keeps to no threat model stands in several tables; with those that are expected."""
    asked = measures.read(one.metric for one in expected if one.metric not in (*METRICS, DIFFERENCE))
    found = {}
    shown = {log.id: names for log, names in zip(logs, coded.names(logs), strict=True)}
    for place in tables.measured(logs, asked):
        numbers = {name: value.value for name, value in place.numbers.items()}
        images = max((value.images for value in place.numbers.values()), default=0)
        short = "; ".join(dict.fromkeys(filter(None, map(metrics.short, place.logs))))
        key = (place.headline, tuple(log.id for log in place.logs))
        cells = tuple(log.cell for log in (place.logs[:1] if place.headline else place.logs))
        told = shown.get(place.logs[0].id, {})
        found[key] = Measured(cells, numbers, images, place.headline, place.masked, short, shown=told)
    return list(found.values())


def judged(expectation: Expectation, measured: Iterable[Measured], *, nothing: str = "no record is of that") -> Verdict:
    """Whether the expectation holds for every number that it is about, of which there must be one; nothing: what is said where there is
    none."""
    about = [one for one in measured if _is_about(expectation, one)]
    if not about:
        return Verdict(False, f"unmet: {expectation.text}: {nothing}")
    # Once: the two sides of a comparison may be one cell.
    unmet = list(dict.fromkeys(f"{why} ({one.name})" for one in about if (why := _why_not(expectation, one))))
    if unmet:
        more = f" and {len(unmet) - LISTED} more" if len(unmet) > LISTED else ""
        return Verdict(False, f"unmet: {expectation.text}: {', '.join(unmet[:LISTED])}{more}")
    values = [one.numbers[expectation.metric] for one in about]
    nearest = (min if expectation.floor else max)(values)
    images = sorted({one.images for one in about})
    said = f"{_words(nearest, expectation)} on {images[0]}{f' to {images[-1]}' if len(images) > 1 else ''} images"
    said += f", of {len(about)} the nearest" if len(about) > 1 else f" ({about[0].name})"
    return Verdict(True, f"met: {expectation.text}: {said}")


def _is_about(expectation: Expectation, one: Measured) -> bool:
    if one.headline != (expectation.attack == STRONGEST) or (DIFFERENCE in one.numbers) != (
        expectation.metric == DIFFERENCE
    ):
        return False
    named = {"defense": expectation.defense, "gradient": expectation.gradient, "threat": expectation.threat}
    named |= {} if one.headline else {"attack": expectation.attack}
    return any(all(selection.fits(cell, kind, text) for kind, text in named.items() if text) for cell in one.cells)


def _why_not(expectation: Expectation, one: Measured) -> str:
    """Why a number does not meet an expectation; empty if it does."""
    value = one.numbers.get(expectation.metric)
    if one.why:
        return one.why
    # What was cut off may have the easy images, whatever its number is.
    if one.short:
        return f"unfinished: {one.short}"
    if value is None:
        return f"it has no `{expectation.metric}`"
    words = _words(value, expectation)
    # Rounded: a mean of seeds may miss the number that it is by its last digit.
    if not OPS[expectation.op](round(value, 9), expectation.bound):
        return f"{words} on {one.images} images"
    # A blind attack leaves an accuracy high: it proves that it broke what it broke, and nothing of what it did not.
    if one.masked and _attacked(expectation.metric) and (expectation.floor or expectation.metric == DIFFERENCE):
        return f"{words}, but its gradient attacks were masked: no evidence of robustness"
    return ""


def _attacked(metric: str) -> bool:
    """Whether a metric is one that a blind attack leaves high."""
    return not metric.startswith(("clean", "undefended", "certified"))


def _words(value: float, expectation: Expectation) -> str:
    """`0.367 (36.7 %)`: as precise as it takes to tell it from the bound."""
    if expectation.metric == DIFFERENCE:
        return f"{value:+.4g} ({100 * value:+.4g} points)"
    return f"{value:.4g} ({100 * value:.4g} %)"
