"""Metrics by name, as `--metric` and a table's file ask for them: what may be asked. No torch, and reads no records.

What each is of a record is said in `report.protocols`; docs/protocol.md has them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from purebench import spec
from purebench.errors import UserError, unknown

VERDICTS = (
    "aa",
    "sticky",
    "cascade",
)  # rules by which our attacks give verdicts; a plug-in's may have a name of its own
BOUNDS = ("cohen", "two-sided", "li")  # of certificates
ALPHA = 0.001  # Cohen et al.'s; ADP does not state its own
DISTANCES = (
    "clean",
    "input",
    "adversarial",
)  # purified clean to clean; purified attacked to what was attacked, and to clean
NUMBERED = re.compile(r"(clean_)?(worst|vote)([1-9]\d*)")
ANY = re.compile(r"any([1-9]\d*)")
AT = re.compile(r"(sticky|certified|detected|clean_detected)@(\d+(?:\.\d+)?|\.\d+)")
BESIDE = re.compile(r"null_difference@(.+)")
MOVED = tuple(f"moved_{what}_{norm}" for what in DISTANCES for norm in ("l2", "linf"))
GROUPS = {"moved": MOVED}  # a word -> the metrics that it stands for
PLAIN = (
    "success", "success_right", "null_difference", "detection", "detection_purified", "ball_used", "seconds", "radius", "sticky_curve",
    *MOVED,
)  # fmt: skip
EXAMPLES = ("worst20", "vote20", "clean_worst20", "any20", "sticky@5", "certified@0.5", "detected@25")
OPTIONS: dict[str, Any] = {"bound": "cohen", "n0": 0, "alpha": ALPHA}  # of `certified@<r>` and `radius`
USUAL = (  # what a table has unasked
    "robust", "robust_std", "clean", "undefended", "masked", "stopped", "not_finite", "clean_not_finite", "lost",
)  # fmt: skip
OF_DEFENSE = ("clean", "undefended", "radius", "seconds")  # whatever attacked: one column of a table
OF_CONTROL = ("certified", "radius")  # proved by the clean answers of null controls
RAW = ("radius", "seconds", *MOVED)  # printed as they are and not in percent


@dataclass(frozen=True)
class Asked:
    """A metric as it was asked for: `text`, its name in tables; `word`, what comes before an @; `number`, what comes behind."""

    text: str
    word: str
    number: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_defense(self) -> bool:
        """Whether it is one number for a defense, whatever attacked it."""
        return self.word in (*OF_DEFENSE, "certified") or bool(re.fullmatch(r"clean_(worst|vote)\d+", self.text))


# ---- reading -------------------------------------------------------------------------------------


def read(texts: Iterable[str]) -> list[Asked]:
    """What is asked, each once. Raises UserError for what is no metric."""
    found: dict[str, Asked] = {}
    for text in texts:
        for one in GROUPS.get(text.strip(), (text.strip(),)):
            asked = _read(one)
            found[asked.text] = asked
    return list(found.values())


def _read(text: str) -> Asked:
    name, _, options = text.partition(":")
    given = _options(name, options) if options else {}
    if at := AT.fullmatch(name):
        if at[1] == "sticky" and "." in at[2]:
            raise UserError(f"`{name}`: evaluations are counted", "write `sticky@5`")
        return Asked(text, at[1], float(at[2]), given)
    if beside := BESIDE.fullmatch(name):
        inner = _read(beside[1])
        if not (NUMBERED.fullmatch(inner.text) or inner.text in ("robust", *VERDICTS)):
            raise UserError(
                f"`{name}`: that has no counterpart in a null control, image by image",
                "write `null_difference@` before robust, worst<n>, vote<n> or a verdict",
            )
        return Asked(text, "null_difference", 0.0)
    image = name.removesuffix("_image")
    plain = (*PLAIN, *USUAL, *VERDICTS)
    if name in plain or image in VERDICTS or NUMBERED.fullmatch(name) or ANY.fullmatch(name):
        return Asked(text, name, 0.0, given)
    raise unknown("metric", name, (*EXAMPLES, "aa_image", "moved", *plain))


def _options(name: str, text: str) -> dict[str, Any]:
    """The options behind a metric's name. Raises UserError for those that it does not have."""
    given = dict(spec.parse(f"metric:{text}", "metric").parameters)
    if name.partition("@")[0] not in ("certified", "radius"):
        raise UserError(
            f"`{name}` takes no options (got `{text}`)", "only `certified@<r>` and `radius` do: bound, n0, alpha"
        )
    for key, value in given.items():
        if key not in OPTIONS:
            raise unknown(f"option of `{name}`", key, OPTIONS)
        if key == "bound" and value not in BOUNDS:
            raise unknown("bound", str(value), BOUNDS)
        if key == "n0" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"`n0={spec.show(value)}` chooses no class", "a whole number from 1 on")
        if key == "alpha" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 0.5):
            raise UserError(
                f"`alpha={spec.show(value)}` is no chance of being wrong", "between 0 and 0.5, such as 0.001"
            )
    return given


def of_wilson(name: str) -> bool:
    """Whether the interval of a metric is Wilson's, so that one over several seeds has it, too."""
    word = name.partition(":")[0]
    return not (word.startswith("null_difference") or word in RAW or word in ("detection", "detection_purified"))


def share_of_right(name: str) -> bool:
    """Whether a metric is a share of the images that are right, so that an expectation may be about it."""
    if NUMBERED.fullmatch(name) or ANY.fullmatch(name) or name in (*VERDICTS, "robust", "clean", "undefended"):
        return True
    at = AT.fullmatch(name)
    return bool(at and at[1] in ("sticky", "certified"))
