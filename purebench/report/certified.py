"""Randomised smoothing: which radius the clean answers of a defense that begins with Gaussian noise prove. Pure functions of records.

For a classifier that sees nothing of the image but x + N(0, sigma^2 I), whatever it does with that, at random too, the class it answers
most often cannot change within the radius, in L2 on images in [0, 1] (Cohen, Rosenfeld and Kolter 2019, ICML, theorem 1). Of an image's K
clean draws the first n0 choose that class, and the other n prove it, with probability 1 - alpha; no network is asked anew. What is proved
is about the vote of infinitely many purifications, and not about the single run that `robust` is the accuracy of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any

from purebench import registry, spec
from purebench.errors import UserError
from purebench.plan import resolved
from purebench.records.store import Log, Record, judged, parts, values_of
from purebench.report import metrics
from purebench.report.metrics import Value

quantile = NormalDist().inv_cdf
MOST_CHOOSE = 100  # Cohen et al.'s n0


def clopper_pearson(count: int, n: int, alpha: float) -> tuple[float, float]:
    """(lower, upper): each end alone holds with probability 1 - alpha for a binomial probability of which n draws gave `count` (Clopper and
    Pearson, Biometrika 26, 1934): the alpha quantile of Beta(count, n - count + 1), the 1 - alpha one of Beta(count + 1, n - count)."""
    # Imported here: it takes longer than all else that a table needs.
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, alpha)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - alpha)) if count < n else 1.0
    return low, high


def cohen(a: float, b: float) -> float:
    """Phi^-1(pA), in units of sigma: Cohen et al.'s algorithm, which takes pB for 1 - pA (section 3.2.2). 0: it abstains."""
    return max(0.0, quantile(a)) if 0 < a < 1 else 0.0


def two_sided(a: float, b: float) -> float:
    """(Phi^-1(pA) - Phi^-1(pB)) / 2: Cohen et al.'s theorem 1, which ADP prints (Yoon et al. 2021, eq. 19)."""
    return max(0.0, (quantile(a) - quantile(b)) / 2) if 0 < b < a < 1 else 0.0


def li(a: float, b: float) -> float:
    """Li, Chen, Wang and Carin (2019, NeurIPS, "Certified Adversarial Robustness with Additive Noise", theorem 2): the root of the largest
    over order > 1 of -2/order log(1 - pA - pB + 2 (mean of pA^(1-order), pB^(1-order))^(1/(1-order))). Any order proves its own radius: the
    best of a grid is a bound, at most a thousandth too small."""
    if not 0 < b < a < 1:
        return 0.0

    def square(order: float) -> float:
        # pB^(1-order) is the larger, taken out so that a large order does not overflow.
        ratio = (b / a) ** (order - 1)
        mean = b * ((1 + ratio) / 2) ** (1 / (1 - order))
        inside = 1 - a - b + 2 * mean
        return -2 / order * math.log(inside) if 0 < inside < 1 else 0.0

    return math.sqrt(max(square(1 + 10 ** (k / 100)) for k in range(-300, 301)))


BOUNDS: dict[str, Callable[[float, float], float]] = {"cohen": cohen, "two-sided": two_sided, "li": li}


def certificate(predictions: Sequence[int], n0: int, alpha: float, bound: str = "cohen") -> tuple[int, float]:
    """(class, radius in units of sigma) that the draws of one image prove with probability 1 - alpha; (-1, 0) where it abstains.

    `cohen` spends alpha on pA; the others half of it on pA and half on pB, the largest of the other classes: its upper end is that of the
    commonest among them, which lies above that of the true runner-up whichever it is, so that no correction for many classes is needed."""
    # Of equals the lowest class: the choice may be anything that does not look at the draws that prove.
    counts = Counter(predictions[:n0])
    chosen = min(counts, key=lambda answer: (-counts[answer], answer))
    rest = Counter(predictions[n0:])
    n = len(predictions) - n0
    if chosen < 0:  # what is not finite is no class
        return -1, 0.0
    if bound == "cohen":
        radius = cohen(clopper_pearson(rest[chosen], n, alpha)[0], 0.0)
    else:
        low = clopper_pearson(rest[chosen], n, alpha / 2)[0]
        second = max((count for answer, count in rest.items() if answer != chosen), default=0)
        high = min(clopper_pearson(second, n, alpha / 2)[1], 1 - low)
        radius = BOUNDS[bound](low, high)
    return (chosen, radius) if radius > 0 else (-1, 0.0)


def radii(images: Sequence[Record], sigma: float, n0: int, alpha: float, bound: str = "cohen") -> list[float | None]:
    """Of each image the radius within which its class is proved to be right, in L2 on [0, 1]; None for one that is wrong, or on which
    it abstains: without a radius, it is in no ball of 0 either."""
    k = metrics.draws(images, "clean")
    found = [certificate(line["clean"][:k], n0, alpha, bound) for line in images]
    return [
        sigma * radius if answer == line["label"] else None
        for line, (answer, radius) in zip(images, found, strict=True)
    ]


def certified(found: Sequence[float | None], r: float, evals: int) -> Value:
    """`certified@<r>`: the share of images that are proved right within r; abstention is wrong."""
    # Strictly at 0 too: a radius of 0 is an abstention.
    return metrics.share(fmean(radius is not None and radius >= r for radius in found), len(found), evals)


def average(found: Sequence[float | None], evals: int) -> Value:
    """`radius`: the average certified radius (Zhai et al. 2020, ICLR, "MACER", section 2): an image that is wrong has 0."""
    return Value(fmean(radius or 0.0 for radius in found), None, None, len(found), evals)


def choosing(k: int, n0: int) -> int:
    """How many of K draws choose the class: n0, or, where that is 0, a tenth of them, at most 100. UserError where none would be left."""
    n0 = n0 or max(1, min(MOST_CHOOSE, k // 10))
    if k <= n0:
        raise UserError(
            f"{n0} of {k} draws would choose the class, and none would be left to prove it",
            f"`purebench run .. -a null --evals {max(100, 10 * n0)}` adds draws to the same records",
        )
    return n0


def sigma(cell: Mapping[str, Any]) -> float:
    """The standard deviation, on [0, 1], of the Gaussian noise through which all that follows sees the image: INFO's `smoothing` of the
    defense at the cell's parameters. Raises UserError for a defense that is none of that kind, by name and reason."""
    name = cell["defense"].partition(":")[0]
    able = "`gaussian`, `one-shot`, `edm`, `diffpure`, `diffpure-ode`, `diffpure-ddpm`, and `adp` without detection"
    # The code that made a record may be gone: then its INFO says nothing.
    known = registry.info("defense", name) if name in registry.names("defense") else {}
    if "smoothing" not in known:
        raise UserError(
            f"nothing is proved of `{name}`: something in it may see the image as it is, without Gaussian noise",
            f"certify {able}",
        )
    values = {**registry.COMMON["defense"], **values_of(cell, "defense")}
    for condition in known.get("smooth_if", []):
        if not registry.of_info(name, condition, values):
            raise UserError(f"nothing is proved of `{cell['defense']}`: that needs {condition}", f"certify {able}")
    if values["votes"] != 1:
        raise UserError(
            f"nothing is proved of `{cell['defense']}`: its {values['votes']} votes see the image through as many draws of noise",
            "leave `votes` out: what is proved is the vote of the draws",
        )
    if parts(cell)["defense"]["version"] != registry.version("defense", name, values_of(cell, "defense")):
        raise UserError(
            f"`{cell['defense']}` was recorded by another version of it, whose noise is not known here",
            "run it again: `--fresh`",
        )
    _check_size(cell)
    found = float(registry.of_info(name, known["smoothing"], values)) * values["noise"]
    if not found > 0:
        raise UserError(f"nothing is proved of `{cell['defense']}`: it adds no noise", f"certify {able}")
    return found


def _check_size(cell: Mapping[str, Any]) -> None:
    """Raises UserError where images are resized before the noise is added: that stretches distances."""
    models = [] if cell["score"] == "-" or "score" not in cell["parts"] else [cell["score"]]
    try:
        images = resolved.find("dataset", cell["dataset"]).shape
        sizes = [resolved.of("score", part).takes for text in models for part in spec.parts(text)]
    except (UserError, OSError):
        sizes, images = [None], []
    if not all(size and size[1:] == list(images)[1:] for size in sizes):
        raise UserError(
            f"nothing is proved of `{cell['defense']}` with `{cell['score']}` on `{cell['dataset']}`: images are resized before the "
            "noise, or "
            "their sizes are not known here, and resizing changes distances",
            "certify with a score model of the images' own size",
        )


def of_log(log: Log, n0: int, alpha: float, bound: str) -> tuple[list[float | None], int]:
    """(`radii`, K) of a null control. Raises UserError as `sigma` and `choosing`, and for a cell of another attack."""
    images = judged(log)
    k = metrics.draws(images, "clean")
    return radii(images, sigma(log.cell), choosing(k, n0), alpha, bound), k
