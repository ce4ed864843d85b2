"""What `run --log` adds to the lines of images that are new: how far the defense moves them (`moved`), and the norm of the score that
detection goes by (`score_norm`). Opt-in, so that records that are there keep their bytes; no part of a cell, and no number of accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.records.store import Json
from purebench.spec import norms


def _number(value: float) -> float | None:
    """As JSON has it: none of what is not finite."""
    return value if math.isfinite(value) else None


def score_norms(defense: Defense, x: Tensor) -> list[float | None]:
    """The L2 norm of sigma times the score of each of x (B,C,H,W) in [0,1], by which ADP detects (Yoon et al. 2021, section 3.4); None
    where it is not finite. Deterministic."""
    # Images outside of [0,1], as purified ones may be, are none that a defense is given.
    return [_number(value) for value in defense.direction(x.clamp(0, 1)).flatten(1).norm(dim=1).tolist()]


def watched(
    log: tuple[str, ...], defense: Defense, x: Tensor, x_adv: Tensor, noise: Noise, evals: int
) -> list[dict[str, Json]]:
    """Of each image what `log` (`moved`, `score_norm`) adds to its line. x, x_adv (B,C,H,W) in [0,1]; noise: the judge's, so that what is
    measured are purifications that were judged (of `votes` the first), made once more: judging pays for nothing that is not asked.

    `moved`: by `clean`, `input` and `adversarial` [L2, Linf] in [0,1], means over `evals` draws; `score_norm`: by `input` and `purified`
    [clean, attacked], after draw 0. None in place of what is not finite."""
    found: list[dict[str, Json]] = [{} for _ in range(len(x))]
    if "score_norm" in log and defense.score is None:
        log = tuple(word for word in log if word != "score_norm")
    if not log:
        return found
    times = evals if "moved" in log else 1
    clean, attacked = (_purified(defense, images, noise, times) for images in (x, x_adv))
    if "moved" in log:
        of = {"clean": (clean, x), "input": (attacked, x_adv), "adversarial": (attacked, x)}
        distances = {what: _distances(made, images) for what, (made, images) in of.items()}
        for i, line in enumerate(found):
            line["moved"] = {what: values[i] for what, values in distances.items()}
    if "score_norm" in log:
        pairs = {"input": (x, x_adv), "purified": (clean[0], attacked[0])}
        values = {where: [score_norms(defense, side) for side in pair] for where, pair in pairs.items()}
        for i, line in enumerate(found):
            line["score_norm"] = {where: [side[i] for side in sides] for where, sides in values.items()}
    defense.not_finite.clear()
    return found


def _purified(defense: Defense, x: Tensor, noise: Noise, times: int) -> list[Tensor]:
    """x purified by draws 0 .. times - 1 of the judge."""
    made: Callable[[int], Noise] = lambda k: noise.rows(noise.ids, torch.full_like(noise.ids, k * defense.votes))  # noqa: E731
    return [defense.purify(x, made(k)) for k in range(times)]


def _distances(made: list[Tensor], x: Tensor) -> list[list[float | None]]:
    """[L2, Linf] of each image, the mean over what was made of it."""
    per_draw = [norms(purified, x) for purified in made]
    means = [torch.stack([draw[norm] for draw in per_draw]).mean(0).tolist() for norm in ("L2", "Linf")]
    return [[_number(value) for value in pair] for pair in zip(*means, strict=True)]
