"""From the log of K fresh evaluations per image to metrics and intervals: pure functions, no torch.

`images` below is a list of log lines: {"position", "label", "undefended", "clean": [K predictions], "adversarial": [K],
"verdict", "verdict_is"}. Lines may hold different K; every metric uses the first K draws, K the smallest number that all its lines
have. The sample size of every interval is the number of images: draws of one image are not independent evidence about
other images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import comb, sqrt
from operator import eq
from statistics import fmean, multimode, stdev
from typing import NamedTuple

from purebench import spec
from purebench.records.store import Log, Record, judged, lost
from purebench.spec import CONTROLS

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
MASKED = 0.1  # share of masked images from which on an attack is masked
ENOUGH = 10  # images, below which guessing cannot be told from a bad network
NOTES = {  # of a line: what makes every number of its cell doubtful
    "random": "the same draw, asked twice, got two answers, or it calls itself deterministic and is not (a dropout, a batch norm in "
    "training mode, a generator of its own): its numbers cannot be repeated",
    "batch": "some of its draws belong to a batch and not to an image (numpy's, a generator's of its own, one number for all), or its "
    "images depend on each other: with other `--rows`, or other images beside them, the numbers differ",
    "gradient": "its exact gradient is not that of what it computes, by a finite difference: something in it is detached or has none, "
    "attacks are weaker than they seem, and the numbers flatter it (if that is meant, a straight-through estimate, its INFO says "
    '`"gradient": "own"`)',
    "classifier": "the gradient of its classifier is not that of what it computes, by a finite difference: attacks are weaker than they "
    "seem, and the numbers flatter it",
    "drawn": "its attack draws for a batch and not for an image: with other `--workers` or `--rows` the numbers differ",
    "range": 'its output leaves [0,1]; if that is meant, its INFO says `"output": "unbounded"`',
    "probabilities": "its outputs are probabilities, not logits: cross-entropy is flat on them; take the softmax off",
}


class Value(NamedTuple):
    """A metric in [0, 1] (a difference: [-1, 1]) and its 95 % interval; `low` is None where there is no interval."""

    value: float
    low: float | None
    high: float | None
    images: int
    evals: int | None  # draws per image; None where the attack itself decided (`aa`, `sticky`)


def name(part: str) -> str:
    """`pgd-eot:eot=20` -> `pgd-eot`."""
    return part.partition(":")[0]


def control(attack: str) -> bool:
    """Whether an attack is none: a control, or a transfer of the images that one made."""
    # Images of a control stay without an attack wherever they are carried to: else `noise` made elsewhere would be a headline.
    made = spec.parse(attack).get("attack") if name(attack) == "transfer" else None
    return (str(made).partition(":")[0] if made else name(attack)) in CONTROLS


def natural(defense: str, attack: str, gradient: str) -> bool:
    """Whether an attack has the gradient that its name already says: its own, or none."""
    # Without a defense there is nothing to approximate: exact and BPDA are one gradient.
    if gradient == "-" or (defense == "none" and gradient in ("exact", "bpda")):
        return True
    return gradient == ("bpda" if name(attack) == "bpda-eot" else "exact")


def extent(log: Log, images: int | None = None) -> tuple[int, int, int]:
    """(judged, needed, lost) of the first images, as many as the last run wanted, or of these `images`; where older records do not say,
    as far as there are any. By position: of another, longer run that was cut off there may be later ones."""
    positions = {line["position"] for line in judged(log)}
    every = positions | {line["position"] for line in log.images}
    needed = log.wanted or max(every, default=-1) + 1
    needed = needed if images is None else min(images, needed)
    have = sum(position < needed for position in positions)
    return have, needed, sum(position < needed for position in every) - have


def short(log: Log) -> str:
    """What a cell lacks of what its last run wanted, behind its name; empty where nothing is missing."""
    have, needed, count = extent(log)
    if have == needed > 0:
        return ""
    lost = f", {count} that the attack did not make" if count else ""
    return f"{log.id} ({have} of {needed} images{lost})"


def wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a fraction p in [0, 1] of n > 0 images (JASA 22, 1927). For a mean of numbers in
    [0, 1], such as an image's fraction of correct draws, it is conservative: their variance is at most p (1 - p)."""
    centre = p + Z * Z / (2 * n)
    half = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # At p = 0 and 1 an end is p itself, which rounding would miss: the interval must contain what it is about.
    return max(0.0, min(p, (centre - half) / scale)), min(1.0, max(p, (centre + half) / scale))


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Normal 95 % interval of the mean of n per-image differences in [-1, 1]; all of [-1, 1] for n = 1."""
    # One difference has no spread to be estimated from: it may not depose an attack, however large it is.
    if len(differences) == 1:
        return -1.0, 1.0
    mean, half = fmean(differences), Z * stdev(differences) / sqrt(len(differences))
    return max(-1.0, mean - half), min(1.0, mean + half)


def draws(images: Iterable[Record], field: str = "adversarial") -> int:
    """K: the number of evaluations that every image has; 0 without an image."""
    # Not each line's own K: `worst` and `vote` fall with K, so that images with more draws would weigh differently.
    return min((len(line[field]) for line in images), default=0)


def hits(images: Sequence[Record], field: str = "adversarial", k: int | None = None) -> list[int]:
    """Correct predictions among the first `k` (default: all common) draws, per image."""
    k = draws(images, field) if k is None else k
    return [line[field][:k].count(line["label"]) for line in images]


def share(value: float, images: int, evals: int | None) -> Value:
    """A share in [0, 1] of this many images with Wilson's interval."""
    return Value(value, *wilson(value, images), images, evals)


def _share(answers: Sequence[bool], evals: int | None = None) -> Value:
    """How many of the images, one answer each, it holds for."""
    return share(sum(answers) / len(answers), len(answers), evals)


def runs(images: Sequence[Record], field: str = "adversarial") -> list[float]:
    """Accuracy over the images of each of the K runs: run k takes draw k of every image."""
    labels = [line["label"] for line in images]
    # Not strict: it ends with the shortest line, after K draws.
    return [fmean(map(eq, run, labels)) for run in zip(*(line[field] for line in images), strict=False)]


def accuracy(images: Sequence[Record], field: str = "adversarial") -> Value:
    """Mean of single runs: over images and draws. `robust` with field adversarial, `clean` with field clean."""
    k = draws(images, field)
    return share(sum(hits(images, field)) / (k * len(images)), len(images), k)


def spread(images: Sequence[Record], field: str = "adversarial") -> Value:
    """Standard deviation (ddof 1, K >= 2) of the accuracy over the K runs: what reporting one run leaves to chance."""
    values = runs(images, field)
    return Value(stdev(values), None, None, len(images), len(values))


def worst(images: Sequence[Record], n: int, field: str = "adversarial") -> Value:
    """Probability that all of n <= K fresh draws are correct, without bias: mean of C(K - m, n) / C(K, n), m failures
    of K (DiffHammer, NeurIPS 2024, eq. 15)."""
    k = draws(images, field)
    # Not (hits / K)^n: by Jensen's inequality that is too high, and it would flatter the defense.
    certain = sum(comb(right, n) for right in hits(images, field))
    return share(certain / (comb(k, n) * len(images)), len(images), k)


def vote(images: Sequence[Record], n: int, field: str = "adversarial") -> Value:
    """Accuracy of the plurality of n <= K draws, averaged over the floor(K / n) disjoint groups.
    A tie is broken by a fair coin: credited 1 / (number of tied classes) when the label is one of them."""
    k, total = draws(images, field), 0.0
    groups = range(0, k - k % n, n)
    for line in images:
        for start in groups:
            winners = multimode(line[field][start : start + n])
            total += (line["label"] in winners) / len(winners)
    return share(total / (len(images) * len(groups)), len(images), k)


def verdict(images: Sequence[Record], rule: str = "aa") -> Value | None:
    """Share of images that by the attack itself withstood it, by this rule (`verdict_is` of the lines; AutoAttack's, under which one lucky
    miss counts as broken, goes without saying); None unless every image has such a verdict."""
    verdicts = [line.get("verdict") if line.get("verdict_is", "aa") == rule else None for line in images]
    return None if None in verdicts else _share([bool(verdict) for verdict in verdicts])


def rules(images: Sequence[Record]) -> list[str]:
    """The rules by which these images have verdicts, in order."""
    return sorted({line.get("verdict_is", "aa") for line in images if line.get("verdict") is not None})


def verdict_image(logs: Sequence[Log], rule: str = "aa") -> Value | None:
    """The images that withstood every one of these attacks by the attacks' own verdicts of this rule, of those that all have; None without
    verdicts. Not above the least of the attacks' own on these images; of an attack on more images it may be."""
    tables = [{line["position"]: line for line in judged(log)} for log in logs]
    common = [place for place in tables[0] if all(place in table for table in tables)] if tables else []
    if not common or None in [verdict([table[place] for place in common], rule) for table in tables]:
        return None
    return _share([all(table[place]["verdict"] for table in tables) for place in common])


def undefended(images: Sequence[Record]) -> Value:
    """Clean accuracy of the bare classifier on these images."""
    return _share([line["undefended"] == line["label"] for line in images], evals=1)


def not_finite(images: Sequence[Record], field: str = "adversarial") -> Value | None:
    """Share of the predictions that are none, since the purification was not finite; they count as wrong. None where there is none."""
    k = draws(images, field)
    found = sum(line[field][:k].count(-1) for line in images)
    return share(found / (k * len(images)), len(images), k) if found else None


def masked(images: Sequence[Record]) -> Value | None:
    """Share of images whose gradient was exactly zero or not finite at every iterate that was still classified rightly (and there was
    one): the attack could not move, which says nothing about the defense. Of the images whose gradients were recorded; None without."""
    # Lines without counts are of older versions, or of attacks that ask for no gradient: they speak neither for nor against.
    counts = [line["gradients"] for line in images if line.get("gradients")]
    # Iterates that are broken already do not count: there a zero gradient hinders nobody.
    return _share([0 < c["right"] == c["blind"] for c in counts]) if counts else None


def stopped(images: Sequence[Record]) -> Value | None:
    """Share of images on which a gradient that was not finite stopped the attack. None where it stopped on none."""
    found = ["stopped" in line for line in images]
    return _share(found) if any(found) else None


def at_chance(images: Sequence[Record]) -> bool:
    """Whether clean accuracy cannot be told from guessing among the classes that these images have; from ENOUGH images on."""
    if len(images) < ENOUGH or not draws(images, "clean"):
        return False
    low, _ = wilson(accuracy(images, "clean").value, len(images))
    # Images of one class alone: whoever guesses has two at the least, or every network would look like guessing.
    classes = max(2, len({line["label"] for line in images}))
    return low <= 1 / classes


def withstood(images: Sequence[Record], metric: str) -> list[float] | None:
    """Each image's share of a metric whose mean over the images it is: `robust`, `worst<n>`, `vote<n>` (and, of the clean image, `clean`,
    `clean_worst<n>`, `clean_vote<n>`), or a rule's verdict; None where the lines do not say it."""
    found = re.fullmatch(r"(clean_)?(worst|vote)([1-9]\d*)", metric)
    if found:
        field, n = "clean" if found[1] else "adversarial", int(found[3])
        of = {"worst": worst, "vote": vote}[found[2]]
        k = draws(images, field)
        if k < n:
            return None
        # As many draws of each image as all have: `vote` and `worst` fall with K.
        return [of([line | {field: line[field][:k]}], n, field).value for line in images]
    if metric in ("robust", "clean"):
        field = "clean" if metric == "clean" else "adversarial"
        k = draws(images, field)
        return [right / k for right in hits(images, field)] if k else None
    if verdict(images, metric) is None:
        return None
    return [float(line["verdict"]) for line in images]


def null_difference(images: Sequence[Record], null: Sequence[Record], metric: str = "robust") -> Value | None:
    """The metric minus that of the null control, paired by image and by draw (the judge's draws are common to both); None without a common
    image. Never above 0 by more than chance: what the attack did, freed of what the protocol does. A verdict, which the null control does
    not give, is held against the control's `robust`: the difference then has in it what the verdict's rule does by itself."""
    # By position: a subset may hold an index twice.
    controls = {line["position"]: line for line in null}
    pairs = [(line, controls[line["position"]]) for line in images if line["position"] in controls]
    sides = [list(side) for side in zip(*pairs, strict=True)]
    if not sides:
        return None
    k = min(map(draws, sides))
    # The same draws of both: those that one has more of are no pairs.
    cut = [[line | {"adversarial": line["adversarial"][:k]} for line in side] for side in sides]
    attacked = withstood(cut[0], metric)
    ruled = attacked is not None and metric in rules(cut[0])
    base = withstood(cut[1], "robust" if ruled else metric)
    if attacked is None or base is None or not k:
        return None
    differences = [a - b for a, b in zip(attacked, base, strict=True)]
    return Value(fmean(differences), *paired(differences), len(pairs), k)


def success(images: Sequence[Record]) -> Value:
    """1 - `robust`: the share of single runs in which the attacked image is answered wrongly, also where the clean one was."""
    found = accuracy(images)
    return share(1 - found.value, found.images, found.evals)


def success_right(images: Sequence[Record]) -> Value | None:
    """The same of the runs whose clean image was answered rightly by the same draw: sum of (clean right, attacked wrong) over sum of (clean
    right), over images and draws. The interval's sample size: the images that have such a run. None where there is none."""
    k = min(draws(images, "clean"), draws(images))
    pairs = [
        [
            answer == line["label"]
            for clean, answer in zip(line["clean"][:k], line["adversarial"][:k], strict=True)
            if clean == line["label"]
        ]
        for line in images
    ]
    right = sum(map(len, pairs))
    if not right:
        return None
    return share(1 - sum(map(sum, pairs)) / right, sum(map(bool, pairs)), k)


def summary(log: Log, null: Log | None = None, n: int = 10) -> dict[str, Value]:
    """Every metric that the log allows, by its name in the tables; {} for a log without a judged image.
    `worst<n>` and `vote<n>` need n draws, `robust_std` two, `null_difference` the null control's log; a verdict has its rule's name."""
    images = judged(log)
    if not draws(images):
        return {}
    found: dict[str, Value | None] = {"robust": accuracy(images)}
    if draws(images) > 1:
        found["robust_std"] = spread(images)
    for prefix, field in (("", "adversarial"), ("clean_", "clean")):
        if draws(images, field) >= n:
            found |= {f"{prefix}worst{n}": worst(images, n, field), f"{prefix}vote{n}": vote(images, n, field)}
    found |= {rule: verdict(images, rule) for rule in rules(images)}
    if draws(images, "clean"):
        found["clean"] = accuracy(images, "clean")
    found["undefended"] = undefended(images)
    found |= {"masked": masked(images), "stopped": stopped(images), "not_finite": not_finite(images)}
    if len(images) < len(log.images):
        found["lost"] = _share([lost(line) for line in log.images])
    if draws(images, "clean"):
        found["clean_not_finite"] = not_finite(images, "clean")
    if null is not None:
        found["null_difference"] = null_difference(images, judged(null))
    return {metric: value for metric, value in found.items() if value is not None}


def pool(values: Sequence[Value], difference: bool = False) -> Value:
    """One metric over several seeds: the mean, with the interval of one seed's number of images. Seeds repeat the same
    images, so they narrow what chance in attack and defense adds, not what the choice of images adds."""
    mean, images = fmean(v.value for v in values), max(v.images for v in values)
    evals = min((v.evals for v in values if v.evals is not None), default=None)
    lows = [v.low for v in values if v.low is not None]
    highs = [v.high for v in values if v.high is not None]
    if len(lows) < len(values):
        return Value(mean, None, None, images, evals)
    # A difference may be negative, where Wilson's interval is not defined.
    low, high = (fmean(lows), fmean(highs)) if difference else wilson(mean, images)
    return Value(mean, low, high, images, evals)


class Headline(NamedTuple):
    """The strongest attack on a defense, by its key. Where it was judged on fewer images than others: `instead_of`, the lowest of those,
    and `difference`, robust minus theirs on the images that both have. `unsure`: attacks on fewer images that are stronger on the
    shared ones, though their own mean is not lower: their images are easier."""

    attack: str
    instead_of: str | None = None
    difference: Value | None = None
    unsure: tuple[str, ...] = ()


def _real(attacks: Mapping[str, Sequence[Log]]) -> dict[str, list[Log]]:
    """The attacks that are none of the controls, each with those of its seeds that have the most images (at least one)."""
    real = {}
    for key, logs in attacks.items():
        most = max(map(_images, logs), default=0)
        # A seed on fewer images would weigh its few as much as all of another's.
        whole = [log for log in logs if draws(judged(log)) and _images(log) == most]
        if whole and not control(whole[0].cell["attack"]):
            real[key] = whole
    return real


def _images(log: Log) -> int:
    return len(judged(log))


def _on_most(real: Mapping[str, Sequence[Log]]) -> list[str]:
    """Those of the attacks of `_real`, whose seeds have equally many images, that were judged on the most."""
    counts = {key: _images(logs[0]) for key, logs in real.items()}
    return [key for key, count in counts.items() if count == max(counts.values())]


def _mean(logs: Sequence[Log]) -> float:
    """`robust`, the mean over the seeds, as the table shows it."""
    return fmean(accuracy(judged(log)).value for log in logs)


def _by_position(logs: Sequence[Log]) -> dict[int, float]:
    """Each image's share of correct draws, the mean over the seeds that have it."""
    found: dict[int, list[float]] = {}
    for log in logs:
        images = judged(log)
        k = draws(images)
        for line, right in zip(images, hits(images, k=k), strict=True):
            found.setdefault(line["position"], []).append(right / k)
    return {position: fmean(shares) for position, shares in found.items()}


def headline(attacks: Mapping[str, Sequence[Log]]) -> Headline | None:
    """Which of the attacks on one defense (one log per seed) is strongest; None without an attack that is no control.

    The lowest of those judged on the most images; of equals the first in order. A gap cannot depose an attack: one on fewer images
    takes the place, with its own number of images, if its mean is lower and the paired 95 % interval of the difference on the images
    that both have lies below 0; of several the lowest."""
    real = _real(attacks)
    if not real:
        return None
    means = {key: _mean(logs) for key, logs in real.items()}
    on_most = _on_most(real)
    leader = min(on_most, key=means.__getitem__)
    base = _by_position(real[leader])
    lower: dict[str, Value] = {}
    unsure = []
    for key, logs in real.items():
        shared = [share - base[position] for position, share in _by_position(logs).items() if position in base]
        if key in on_most or not shared:
            continue
        low, high = paired(shared)
        if high >= 0:
            continue
        # Stronger on the shared images and yet higher on its own: those are easier images, and the lower number stays.
        if means[key] < means[leader]:
            lower[key] = Value(fmean(shared), low, high, len(shared), None)
        else:
            unsure.append(key)
    if not lower:
        return Headline(leader, unsure=tuple(unsure))
    lowest = min(lower, key=means.__getitem__)
    return Headline(lowest, leader, lower[lowest], tuple(unsure))


def strongest(attacks: Mapping[str, Sequence[Log]]) -> str | None:
    """The key of the `headline`."""
    found = headline(attacks)
    return found.attack if found else None


def contenders(attacks: Mapping[str, Sequence[Log]]) -> dict[str, list[Log]]:
    """The attacks among which each image's worst is looked for: those judged on the most images, and the strongest."""
    real = _real(attacks)
    competing = {*_on_most(real), strongest(attacks)}
    return {key: logs for key, logs in real.items() if key in competing}


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
    tables = [{line["position"]: line for line in judged(log)} for log in logs]
    common = [position for position in tables[0] if all(position in table for table in tables[1:])] if tables else []
    k = min((draws(table[position] for position in common) for table in tables), default=0)
    certain = all(log.cell["defense"] == "none" for log in logs)
    if k < (1 if certain else 2):
        return None
    choose, score = (slice(k), slice(k)) if certain else (slice(0, k, 2), slice(1, k, 2))

    def right(half: slice) -> list[list[int]]:
        """Correct draws of this half, attacks x images."""
        return [
            [table[position]["adversarial"][half].count(table[position]["label"]) for position in common]
            for table in tables
        ]

    chosen_by, scored = right(choose), right(score)
    # Sorted first: `min` takes the first of equals, and ties shall go to the attack that is lowest on average.
    order = sorted(range(len(tables)), key=lambda attack: sum(chosen_by[attack]))
    total = sum(scored[min(order, key=lambda attack: chosen_by[attack][i])][i] for i in range(len(common)))
    evals = k if certain else k // 2
    return share(total / (evals * len(common)), len(common), evals)
