"""Metrics that are asked for by name, `--metric worst20`: what may be asked, and what it is of a record. No torch.

    worst<n> vote<n> clean_worst<n> clean_vote<n> any<n>             n draws of K
    aa sticky cascade, aa_image .., sticky@<i>, sticky_curve         attacks' own verdicts
    success success_right null_difference[@<metric>]
    certified@<r> radius        [:bound=cohen|two-sided|li,n0=..,alpha=..]     of null controls
    detection detection_purified detected@<t> clean_detected@<t> moved ball_used seconds

docs/protocol.md says what each is; the formulas are in `metrics`, `logged` and `certified`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from purebench import registry, spec
from purebench.errors import UserError, unknown
from purebench.records.store import Log, judged, values_of
from purebench.report import certified, logged, metrics
from purebench.report.metrics import Value

NUMBERED = re.compile(r"(clean_)?(worst|vote)([1-9]\d*)")
ANY = re.compile(r"any([1-9]\d*)")
AT = re.compile(r"(sticky|certified|detected|clean_detected)@(\d+(?:\.\d+)?|\.\d+)")
BESIDE = re.compile(r"null_difference@(.+)")
MOVED = tuple(f"moved_{what}_{norm}" for what in logged.MOVED for norm in ("l2", "linf"))
GROUPS = {"moved": MOVED}  # a word -> the metrics that it stands for
PLAIN = (
    "success", "success_right", "null_difference", "detection", "detection_purified", "ball_used", "seconds", "radius", "sticky_curve",
    *MOVED,
)  # fmt: skip
OPTIONS: dict[str, Any] = {"bound": "cohen", "n0": 0, "alpha": certified.ALPHA}  # of `certified@<r>` and `radius`
USUAL = (  # what a table has unasked
    "robust", "robust_std", "clean", "undefended", "masked", "stopped", "not_finite", "clean_not_finite", "lost",
)  # fmt: skip
OF_DEFENSE = ("clean", "undefended", "radius", "seconds")  # whatever attacked: one column of a table
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
        if not (NUMBERED.fullmatch(inner.text) or inner.text in ("robust", *metrics.VERDICTS)):
            raise UserError(
                f"`{name}`: that has no counterpart in a null control, image by image",
                "write `null_difference@` before robust, worst<n>, vote<n> or a verdict",
            )
        return Asked(text, "null_difference", 0.0)
    image = name.removesuffix("_image")
    plain = (*PLAIN, *USUAL, *metrics.VERDICTS)
    if name in plain or image in metrics.VERDICTS or NUMBERED.fullmatch(name) or ANY.fullmatch(name):
        return Asked(text, name, 0.0, given)
    shown = (
        "worst20",
        "vote20",
        "clean_worst20",
        "any20",
        "sticky@5",
        "certified@0.5",
        "detected@25",
        "aa_image",
        "moved",
        *plain,
    )
    raise unknown("metric", name, shown)


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
        if key == "bound" and value not in certified.BOUNDS:
            raise unknown("bound", str(value), certified.BOUNDS)
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
    if NUMBERED.fullmatch(name) or ANY.fullmatch(name) or name in (*metrics.VERDICTS, "robust", "clean", "undefended"):
        return True
    at = AT.fullmatch(name)
    return bool(at and at[1] in ("sticky", "certified"))


# ---- what it is of a record ----------------------------------------------------------------------


def always(log: Log) -> dict[str, Value]:
    """What a table shows unasked of what an attack logged: an in-loop count stands beside the same images judged freshly."""
    n = logged.drawn(log)
    found = logged.any_iterate(log, n) if any("iterates" in line for line in log.images) else None
    return {f"any{n}": found} if found else {}


def values(asked: Asked, log: Log, null: Log | None) -> dict[str, Value]:
    """The metric of one cell, by name; {} where its records do not say it, or too few of their draws were made."""
    images = judged(log)
    if not metrics.draws(images):
        return {}
    found = _one(asked, log, null)
    if asked.word == "sticky_curve":
        return {f"sticky@{i}": value for i, value in enumerate(logged.curve(images))}
    if found is None:
        return {}
    known = {asked.text: found}
    # What the protocol does without an attack stands beside what it says under one.
    if null is not None and null is not log and (NUMBERED.fullmatch(asked.text) or asked.word in metrics.VERDICTS):
        difference = metrics.null_difference(images, judged(null), asked.text)
        if difference and not asked.text.startswith("clean_"):
            known[f"null_difference@{asked.text}"] = difference
    return known


def _one(asked: Asked, log: Log, null: Log | None) -> Value | None:
    images, word, number = judged(log), asked.word, asked.number
    if numbered := NUMBERED.fullmatch(word):
        field_, n = "clean" if numbered[1] else "adversarial", int(numbered[3])
        of = metrics.worst if numbered[2] == "worst" else metrics.vote
        return of(images, n, field_) if metrics.draws(images, field_) >= n else None
    if any_ := ANY.fullmatch(word):
        return logged.any_iterate(log, int(any_[1]))
    if word in ("certified", "radius"):
        return _certified(asked, log)
    if word in MOVED:
        what, norm = word.removeprefix("moved_").rsplit("_", 1)
        return logged.moved(images, what, norm)
    if word == "null_difference":
        of_metric = asked.text.partition("@")[2] or "robust"
        return metrics.null_difference(images, judged(null), of_metric) if null is not None else None
    match word:
        case "sticky" if "@" in asked.text:
            return logged.until(images, int(number))
        case "success":
            return metrics.success(images)
        case "success_right":
            return metrics.success_right(images)
        case "detection":
            return logged.detection(images)
        case "detection_purified":
            return logged.detection(images, "purified")
        case "detected":
            return logged.detected(images, number)
        case "clean_detected":
            return logged.detected(images, number, side=0)
        case "ball_used":
            return logged.used(log)
        case "seconds":
            return logged.seconds(log)
    # The others are those of every table.
    return metrics.summary(log, null).get(word)


def _null(log: Log) -> bool:
    return metrics.name(log.cell["attack"]) == "null"


def _certified(asked: Asked, log: Log) -> Value | None:
    if not _null(log):
        return None
    try:
        found, k = certified.of_log(log, **_settings(asked))
    except UserError:
        return None  # told by `check`
    return certified.average(found, k) if asked.word == "radius" else certified.certified(found, asked.number, k)


def _settings(asked: Asked) -> dict[str, Any]:
    return {**OPTIONS, **asked.options}


# ---- refusals ------------------------------------------------------------------------------------


def check(asked: Sequence[Asked], logs: Sequence[Log]) -> list[str]:
    """Raises UserError for a metric that none of the records can have, and for more draws than some of them have. Returns lines about the
    cells that have no such number, though others do."""
    said: dict[str, None] = {}
    for one in asked:
        _check_draws(one, logs)
        if one.word in ("certified", "radius"):
            said |= dict.fromkeys(_check_certified(one, logs))
            continue
        image = one.word.removesuffix("_image")
        having = [log for log in logs if _has(image if image != one.word else "", one, log)]
        if any(map(judged, logs)) and not having and one.word not in USUAL:
            raise UserError(f"no record has `{one.text}`", _where(one))
    return list(said)


def _has(rule: str, one: Asked, log: Log) -> bool:
    if rule:
        return metrics.verdict(judged(log), rule) is not None if judged(log) else False
    # Whether there is a null control is not asked here: without one the difference is a dash.
    return one.word == "null_difference" or bool(values(one, log, None))


def _where(one: Asked) -> str:
    """What makes records that have it."""
    key = {
        "detection": "score_norm",
        "detection_purified": "score_norm",
        "detected": "score_norm",
        "clean_detected": "score_norm",
    }
    word = key.get(one.word) or ("moved" if one.word in MOVED else "")
    if word:
        return f"`purebench run .. --log {word}` records what it needs, of images that are new"
    if ANY.fullmatch(one.word):
        return "attacks with `log=iterates` record it, of `log_draws` draws (10) at each iterate"
    if one.word == "seconds":
        return "it needs records of this version with two batches at the least, of which the first is left out"
    if one.word == "sticky" or one.word == "sticky_curve":
        return "attacks with `verify=n` give that verdict: `purebench run .. -a pgd-eot:verify=20`"
    return "`purebench list attacks` names the attacks that give verdicts"


def deterministic(log: Log) -> bool:
    """Whether one draw is all that a defense has to say: it draws nothing."""
    name, given = log.cell["defense"].partition(":")[0], values_of(log.cell, "defense")
    known = registry.info("defense", name) if name in registry.names("defense") else {}
    return name == "none" or known.get("random") is False or given.get("noise", 1.0) == 0


def _check_draws(one: Asked, logs: Sequence[Log]) -> None:
    numbered = NUMBERED.fullmatch(one.text.partition("@")[2] or one.text)
    if not numbered:
        return
    n, kind = int(numbered[3]), "clean" if numbered[1] else "adversarial"
    for log in logs:
        images = judged(log)
        if images and metrics.draws(images, kind) < n and not deterministic(log):
            raise UserError(
                f"`{one.text}` takes {n} draws of an image, and `{log.id}` has {metrics.draws(images, kind)}",
                _more(log, n),
            )


def _more(log: Log, n: int) -> str:
    """The command that adds draws to a cell's records."""
    cell = log.cell
    options = [("-d", cell["defense"]), ("-a", cell["attack"]), ("-t", cell["threat"]), ("--dataset", cell["dataset"])]
    options += [("--seed", cell["seed"])] if cell["seed"] else []
    words = [f"{option} {shlex.quote(str(value))}" for option, value in options if value != "-"]
    out = f" --out {shlex.quote(str(log.folder.parent))}" if log.folder.name else ""
    return (
        f"the command that made it adds draws and keeps the rest: `purebench run {' '.join(words)} .. --evals {n}{out}`"
    )


def _check_certified(one: Asked, logs: Sequence[Log]) -> list[str]:
    """Raises UserError where no null control certifies; else a line for each defense that does not."""
    nulls = [log for log in logs if _null(log) and judged(log)]
    if not nulls:
        raise UserError(
            f"`{one.text}` is proved by the clean answers of a null control, and there is none",
            "`purebench run -d gaussian -a null --evals 1000` makes one",
        )
    refused: list[UserError] = []
    for log in nulls:
        try:
            certified.sigma(log.cell)
            certified.choosing(metrics.draws(judged(log), "clean"), _settings(one)["n0"])
        except UserError as error:
            refused.append(error)
    if len(refused) == len(nulls):
        raise refused[0]
    return [error.message for error in refused]
