"""From the log of K fresh evaluations per image to metrics and intervals: pure functions, no torch.

`images` below is a list of log lines: {"index", "label", "undefended", "clean": [K predictions], "adversarial": [K],
"verdict"}. Lines may hold different K; every metric uses the first K draws, K the smallest number that all its lines
have. The sample size of every interval is the number of images: draws of one image are not independent evidence about
other images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import comb, sqrt
from operator import eq
from typing import NamedTuple

from purebench.records import store as records
from purebench.records.store import Log, Record

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
CONTROLS = ("null", "noise")  # rows that show what the protocol itself costs; never the strongest attack
MASKED = 0.1  # share of masked images from which on an attack is masked
NOTES = {  # of a line: what makes every number of its cell doubtful
    "random": "the same draw, asked twice, got two answers, or it calls itself deterministic and is not (a dropout, a batch norm in "
    "training mode, a generator of its own): its numbers cannot be repeated",
    "probabilities": "its outputs are probabilities, not logits: cross-entropy is flat on them; take the softmax off",
}


class Value(NamedTuple):
    """A metric in [0, 1] (a difference: [-1, 1]) and its 95 % interval; `low` is None where there is no interval."""

    value: float
    low: float | None
    high: float | None
    images: int
    evals: int | None  # draws per image; None where the attack itself decided (`aa`)


def _place(line: Record) -> int:
    """What pairs the lines of two cells: the position in the subset, since an index may come twice."""
    return line["position"] if "position" in line else line["index"]


def name(part: str) -> str:
    """`pgd-eot:eot=20` -> `pgd-eot`."""
    return part.partition(":")[0]


def control(attack: str) -> bool:
    """Whether an attack is none: a control, or a transfer of the images that one made."""
    made = re.search(r"\battack=\(?([\w-]+)", attack) if name(attack) == "transfer" else None
    return (made[1] if made else name(attack)) in CONTROLS


def judged(log: Log) -> list[Record]:
    """The lines that were judged: those that have an image."""
    return [line for line in log.images if not records.lost(line)]


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a fraction p in [0, 1] of n > 0 images (JASA 22, 1927). For a mean of numbers in
    [0, 1], such as an image's fraction of correct draws, it is conservative: their variance is at most p (1 - p)."""
    centre, half, scale = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)), 1 + Z * Z / n
    return max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale))


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Normal 95 % interval of the mean of n per-image differences in [-1, 1]; all of [-1, 1] for n = 1."""
    n, mean = len(differences), sum(differences) / len(differences)
    if n == 1:
        return -1.0, 1.0
    half = Z * sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def draws(images: Iterable[Record], field: str = "adversarial") -> int:
    """K: the number of evaluations that every image has."""
    return min((len(line[field]) for line in images), default=0)


def hits(images: Sequence[Record], field: str = "adversarial", k: int | None = None) -> list[int]:
    """Correct predictions among the first `k` (default: all common) draws, per image."""
    k = draws(images, field) if k is None else k
    return [line[field][:k].count(line["label"]) for line in images]


def _fraction(value: float, images: int, evals: int | None) -> Value:
    return Value(value, *wilson(value, images), images, evals)


def runs(images: Sequence[Record], field: str = "adversarial") -> list[float]:
    """Accuracy over the images of each of the K runs: run k takes draw k of every image."""
    labels, k = [line["label"] for line in images], draws(images, field)
    return [
        sum(map(eq, run, labels)) / len(labels)
        for run in list(zip(*(line[field] for line in images), strict=False))[:k]
    ]


def accuracy(images: Sequence[Record], field: str = "adversarial") -> Value:
    """Mean of single runs: over images and draws. `robust` with field adversarial, `clean` with field clean."""
    k = draws(images, field)
    return _fraction(sum(hits(images, field)) / (k * len(images)), len(images), k)


def spread(images: Sequence[Record], field: str = "adversarial") -> Value:
    """Standard deviation (ddof 1, K >= 2) of the accuracy over the K runs: what reporting one run leaves to chance."""
    values = runs(images, field)
    mean = sum(values) / len(values)
    deviation = sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return Value(deviation, None, None, len(images), len(values))


def worst(images: Sequence[Record], n: int, field: str = "adversarial") -> Value:
    """Probability that all of n <= K fresh draws are correct, without bias: mean of C(K - m, n) / C(K, n), m failures
    of K (DiffHammer, NeurIPS 2024, eq. 15)."""
    k = draws(images, field)
    return _fraction(sum(comb(h, n) for h in hits(images, field)) / (comb(k, n) * len(images)), len(images), k)


def vote(images: Sequence[Record], n: int, field: str = "adversarial") -> Value:
    """Accuracy of the plurality of n <= K draws, averaged over the floor(K / n) disjoint groups.
    A tie is broken by a fair coin: credited 1 / (number of tied classes) when the label is one of them."""
    # Groups of n, not all n-subsets: a vote is one run of a defense that purifies n times.
    k, total = draws(images, field), 0.0
    groups = range(0, k - k % n, n)
    for line in images:
        for start in groups:
            group = line[field][start : start + n]
            count = group.count(line["label"])
            # The common case: a majority needs no count of the others.
            if 2 * count > n:
                total += 1
            elif count:
                counts = list(Counter(group).values())
                total += (count == max(counts)) / counts.count(count)
    return _fraction(total / (len(images) * len(groups)), len(images), k)


def aa(images: Sequence[Record]) -> Value | None:
    """The attack's own verdict, as AutoAttack reports it (one lucky miss counts as broken); None unless given for every
    image."""
    verdicts = [line.get("verdict") for line in images]
    return None if None in verdicts else _fraction(sum(map(bool, verdicts)) / len(verdicts), len(verdicts), None)


def aa_all(logs: Sequence[Log]) -> Value | None:
    """The images that withstood every one of these attacks by the attacks' own verdicts, of those that all have; None without verdicts."""
    tables = [{_place(line): line.get("verdict") for line in judged(log)} for log in logs]
    common = [place for place in tables[0] if all(place in table for table in tables)] if tables else []
    if not common or any(table[place] is None for table in tables for place in common):
        return None
    return _fraction(sum(all(table[place] for table in tables) for place in common) / len(common), len(common), None)


def undefended(images: Sequence[Record]) -> Value:
    """Clean accuracy of the bare classifier on these images."""
    return _fraction(sum(line["undefended"] == line["label"] for line in images) / len(images), len(images), 1)


def not_finite(images: Sequence[Record], field: str = "adversarial") -> Value | None:
    """Share of the predictions that are none, since the purification was not finite; they count as wrong. None where there is none."""
    k = draws(images, field)
    found = sum(line[field][:k].count(-1) for line in images)
    return _fraction(found / (k * len(images)), len(images), k) if found else None


def masked(images: Sequence[Record]) -> Value | None:
    """Share of images whose gradient was exactly zero or not finite at every iterate that was still classified rightly (and there was
    one): the attack could not move, which says nothing about the defense. Of the images whose gradients were recorded; None without."""
    counts = [line["gradients"] for line in images if line.get("gradients")]
    if not counts:
        return None
    return _fraction(sum(0 < c["right"] == c["blind"] for c in counts) / len(counts), len(counts), None)


def stopped(images: Sequence[Record]) -> Value | None:
    """Share of images on which a gradient that was not finite stopped the attack. None where it stopped on none."""
    found = sum("stopped" in line for line in images)
    return _fraction(found / len(images), len(images), None) if found else None


def at_chance(images: Sequence[Record]) -> bool:
    """Whether clean accuracy cannot be told from guessing among the classes that these images have; from ten images on."""
    if len(images) < 10 or not draws(images, "clean"):
        return False
    return accuracy(images, "clean").low <= 1 / max(2, len({line["label"] for line in images}))  # type: ignore[operator]


def null_difference(images: Sequence[Record], null: Sequence[Record]) -> Value | None:
    """Robust minus robust of the null control, paired by image index and by draw (the judge's draws are common to
    both); None without a common image. Never above 0 by more than chance: what the attack did, freed of what the
    protocol does."""
    control = {_place(line): line for line in null}
    pairs = [(line, control[_place(line)]) for line in images if _place(line) in control]
    k = min(draws(line for line, _ in pairs), draws(line for _, line in pairs))
    if not k:
        return None
    attacked, base = (hits(side, k=k) for side in zip(*pairs, strict=True))
    differences = [(a - b) / k for a, b in zip(attacked, base, strict=True)]
    return Value(sum(differences) / len(pairs), *paired(differences), len(pairs), k)


def summary(log: Log, null: Log | None = None, n: int = 10) -> dict[str, Value]:
    """Every metric that the log allows, by its name in the tables; {} for a log without a judged image.
    `worst<n>` and `vote<n>` need n draws, `robust_std` two, `aa` verdicts, `null_difference` the null control's log."""
    images = judged(log)
    if not draws(images):
        return {}
    found: dict[str, Value | None] = {"robust": accuracy(images)}
    if draws(images) > 1:
        found["robust_std"] = spread(images)
    for prefix, field in (("", "adversarial"), ("clean_", "clean")):
        if draws(images, field) >= n:
            found |= {f"{prefix}worst{n}": worst(images, n, field), f"{prefix}vote{n}": vote(images, n, field)}
    found["aa"] = aa(images)
    if draws(images, "clean"):
        found["clean"] = accuracy(images, "clean")
    found["undefended"] = undefended(images)
    found |= {"masked": masked(images), "stopped": stopped(images), "not_finite": not_finite(images)}
    if missing := len(log.images) - len(images):
        found["lost"] = _fraction(missing / len(log.images), len(log.images), None)
    if draws(images, "clean"):
        found["clean_not_finite"] = not_finite(images, "clean")
    if null is not None:
        found["null_difference"] = null_difference(images, judged(null))
    return {metric: value for metric, value in found.items() if value is not None}


def pool(values: Sequence[Value], difference: bool = False) -> Value:
    """One metric over several seeds: the mean, with the interval of one seed's number of images. Seeds repeat the same
    images, so they narrow what chance in attack and defense adds, not what the choice of images adds."""
    mean, images = sum(v.value for v in values) / len(values), max(v.images for v in values)
    evals = [v.evals for v in values if v.evals is not None]
    low: float | None
    high: float | None
    if any(v.low is None for v in values):
        low = high = None
    elif difference:
        low, high = (sum(v[end] or 0.0 for v in values) / len(values) for end in (1, 2))
    else:
        low, high = wilson(mean, images)
    return Value(mean, low, high, images, min(evals) if evals else None)


class Headline(NamedTuple):
    """The strongest attack on a defense, by its key. Where it was judged on fewer images than others: `instead_of`, the lowest of those,
    and `difference`, robust minus theirs on the images that both have. `unsure`: attacks on fewer images that are stronger on the
    shared ones, though their own mean is not lower: their images are easier."""

    attack: str
    instead_of: str | None = None
    difference: Value | None = None
    unsure: tuple[str, ...] = ()


def _real(attacks: Mapping[str, Sequence[Log]]) -> dict[str, list[Log]]:
    """The attacks that are none of the controls, with the logs that have images, of several seeds those that have the most: one on fewer
    would weigh its few as much. Controls are never the strongest."""
    # A cell that failed has no images, and says nothing.
    real = {key: [log for log in logs if draws(judged(log))] for key, logs in attacks.items()}
    whole = {key: [log for log in logs if len(judged(log)) == max(map(_judged, logs))] for key, logs in real.items()}
    return {key: logs for key, logs in whole.items() if logs and not control(logs[0].cell["attack"])}


def _judged(log: Log) -> int:
    return len(judged(log))


def _size(logs: Sequence[Log]) -> int:
    """How many images every seed of an attack has."""
    return min(len(judged(log)) for log in logs)


def _mean(logs: Sequence[Log]) -> float:
    """`robust`, the mean over the seeds, as the table shows it."""
    return sum(accuracy(judged(log)).value for log in logs) / len(logs)


def _by_place(logs: Sequence[Log]) -> dict[int, float]:
    """Each image's share of correct draws, the mean over the seeds that have it."""
    found: dict[int, list[float]] = {}
    for log in logs:
        images = judged(log)
        k = draws(images)
        for line, right in zip(images, hits(images, k=k), strict=True):
            found.setdefault(_place(line), []).append(right / k)
    return {place: sum(values) / len(values) for place, values in found.items()}


def headline(attacks: Mapping[str, Sequence[Log]]) -> Headline | None:
    """Which of the attacks on one defense (one log per seed) is strongest; None without an attack that is no control.

    The lowest of those judged on the most images; of equals the first in order. A gap cannot depose an attack: one on fewer images
    takes the place, with its own number of images, if its mean is lower and the paired 95 % interval of the difference on the images
    that both have lies below 0; of several the lowest."""
    real = _real(attacks)
    if not real:
        return None
    most = max(map(_size, real.values()))
    first = min((key for key, logs in real.items() if _size(logs) == most), key=lambda key: _mean(real[key]))
    base, unsure, better = _by_place(real[first]), [], {}
    for key, logs in real.items():
        shared = [(value - base[place]) for place, value in _by_place(logs).items() if place in base]
        if _size(logs) == most or not shared:
            continue
        low, high = paired(shared)
        if high < 0 and _mean(logs) < _mean(real[first]):
            better[key] = Value(sum(shared) / len(shared), low, high, len(shared), None)
        elif high < 0:
            unsure.append(key)
    if not better:
        return Headline(first, unsure=tuple(unsure))
    lowest = min(better, key=lambda key: _mean(real[key]))
    return Headline(lowest, first, better[lowest], tuple(unsure))


def strongest(attacks: Mapping[str, Sequence[Log]]) -> str | None:
    """The key of the `headline`."""
    found = headline(attacks)
    return found.attack if found else None


def contenders(attacks: Mapping[str, Sequence[Log]]) -> dict[str, list[Log]]:
    """The attacks among which each image's worst is looked for: those judged on the most images, and the strongest."""
    real, best = _real(attacks), strongest(attacks)
    most = max(map(_size, real.values()), default=0)
    return {key: logs for key, logs in real.items() if _size(logs) == most or key == best}


def all_masked(attacks: Mapping[str, Sequence[Log]]) -> Value | None:
    """The smallest share of masked images over the contenders that follow the defense's gradient, if every one of them is masked. What an
    older version recorded says nothing of its gradients, and does not speak for a defense, unless it is the strongest."""
    found: list[Value] = []
    best = strongest(attacks)
    # Contenders alone: an attack on a few images proves no more about gradients than about robustness.
    for key, logs in contenders(attacks).items():
        if logs[0].cell["gradient"] == "-":
            continue
        shares = [masked(judged(log)) for log in logs]
        known = [share for share in shares if share is not None]
        if (len(known) < len(shares) and key == best) or any(share.value < MASKED for share in known):
            return None
        found += known
    return min(found, key=lambda share: share.value, default=None)


def robust_image(logs: Sequence[Log]) -> Value | None:
    """Accuracy under the attack that is worst for each image, over the attacks (one log each) on one defense with one
    seed.

    Chosen on draws 0, 2, .., scored on draws 1, 3, ..: the minimum over attacks of the same draws that are reported
    would be biased downwards. Ties go to the attack that is lowest on average over the even draws. Only images that all
    attacks share; None where they share none or K < 2. Without a defense nothing is random: every draw both chooses and
    scores.
    """
    tables = [{_place(line): line for line in judged(log)} for log in logs]
    common = [index for index in tables[0] if all(index in table for table in tables[1:])] if tables else []
    k = min((draws(table[index] for index in common) for table in tables), default=0)
    certain = all(log.cell["defense"] == "none" for log in logs)
    if not common or k < (1 if certain else 2):
        return None
    choose, score = (slice(k), slice(k)) if certain else (slice(0, k, 2), slice(1, k, 2))
    even, odd = [], []  # attacks x images: correct draws of each half
    for table in tables:
        rows = [(table[index]["adversarial"], table[index]["label"]) for index in common]
        even.append([row[choose].count(label) for row, label in rows])
        odd.append([row[score].count(label) for row, label in rows])
    # Stable: among equals the attack that is lowest overall is taken, not the first in the alphabet.
    order = sorted(range(len(tables)), key=lambda a: sum(even[a]))
    total = sum(odd[min(order, key=lambda a: even[a][i])][i] for i in range(len(common)))
    evals = k if certain else k // 2
    return _fraction(total / (evals * len(common)), len(common), evals)
