"""Two measurements of the same images, held against each other: pure functions of per-image numbers. No torch.

The image is the unit of evidence, as everywhere: K purifications of one image are K draws about that image, and say nothing of another.
docs/compare.md says why it is these two, and what each answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
SEED = 0  # of the bootstrap: the same records give the same interval
LEVEL = 0.95


class Pair(NamedTuple):
    """A and B on n images: mean shares `a` and `b` in [0, 1]; `difference`, b - a, with its 95 % interval `low` to `high`; of one single
    run, the images that only A (`n10`) and only B (`n01`) had right; `p`: McNemar's exact test on these, two-sided."""

    images: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    n10: int
    n01: int
    p: float


def pair(a: Sequence[float], b: Sequence[float], right_a: Sequence[bool], right_b: Sequence[bool]) -> Pair:
    """Both in the same order of n > 0 images. a, b: each image's share of correct draws; right_a, right_b: whether one draw was correct."""
    differences = np.asarray(b, float) - np.asarray(a, float)
    n10 = sum(one and not other for one, other in zip(right_a, right_b, strict=True))
    n01 = sum(other and not one for one, other in zip(right_a, right_b, strict=True))
    low, high = interval(differences)
    means = float(np.mean(a)), float(np.mean(b))
    return Pair(len(differences), *means, float(differences.mean()), low, high, n10, n01, mcnemar(n10, n01))


def interval(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of per-image differences in [-1, 1]: images are drawn with replacement.

    Where all n are equal, no resample differs either, and a bootstrap would be sure of what n images cannot tell. Then at most a share of
    u = 1 - 0.05^(1/n) of all images differs from them (95 %; the rule of three), and the interval is what these could do at most."""
    # A resample is how often each value was drawn, and K draws leave few values: 10,000 images cost what 100 do. Rounded, or 0.3 - 0.2 and
    # 0.9 - 0.8 would be two; sorted, so that the order of the images does not matter.
    values, counts = np.unique(np.round(differences, 12), return_counts=True)
    n = int(counts.sum())
    if len(values) == 1:
        other = 1 - (1 - LEVEL) ** (1 / n)
        only = float(values[0])
        return only - other * (1 + only), only + other * (1 - only)
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / n, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(n10: int, n01: int) -> float:
    """Two-sided p of McNemar's exact test: whether, of the images on which A and B differ, each had the same chance to be right (McNemar,
    Psychometrika 12, 1947). 1 where they differ on none."""
    return float(binomtest(n01, n10 + n01).pvalue) if n10 + n01 else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order: the chance of even one false alarm among all stays below what is read off
    (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    corrected, largest = [1.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        # Never below that of a smaller p, or the order of the evidence would turn round.
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected
