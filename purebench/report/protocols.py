"""Metrics that are asked for by name, `--metric worst20` or in a table's file (`plan.measures` reads them): what each is of a record.
No torch.

    worst<n> vote<n> clean_worst<n> clean_vote<n> any<n>             n draws of K
    aa sticky cascade, aa_image .., sticky@<i>, sticky_curve         attacks' own verdicts
    success success_right null_difference[@<metric>]
    certified@<r> radius        [:bound=cohen|two-sided|li,n0=..,alpha=..]     of null controls
    detection detection_purified detected@<t> clean_detected@<t> moved ball_used seconds

docs/protocol.md says what each is; the formulas are in `metrics`, `logged` and `certified`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from purebench import registry
from purebench.errors import UserError
from purebench.plan import measures
from purebench.plan.measures import ANY, MOVED, NUMBERED, OPTIONS, USUAL, Asked
from purebench.records.store import Log, judged, values_of
from purebench.report import certified, logged, metrics
from purebench.report.metrics import Value

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
    if null is not None and null is not log and (NUMBERED.fullmatch(asked.text) or asked.word in measures.VERDICTS):
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
