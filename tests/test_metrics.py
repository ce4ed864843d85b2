"""Closed forms: what each metric must be on logs whose truth is known."""

from itertools import product
from math import comb
from types import SimpleNamespace

import pytest

from purebench import metrics


def line(index, adversarial, label=1, clean=None, **other):
    """One log line; predictions are classes."""
    clean = adversarial if clean is None else clean
    return {"index": index, "label": label, "undefended": label, "clean": clean, "adversarial": adversarial} | other


def log(images, attack="pgd-eot", defense="coup"):
    cell = {"attack": attack, "defense": defense}
    return SimpleNamespace(id=attack, cell=cell, runs=[], images=images, seconds=0.0, failed=None)


def bernoulli(k, p):
    """Every outcome of k draws that are each correct (class 1) with probability p, with its probability."""
    for draws in product((0, 1), repeat=k):
        yield list(draws), p ** sum(draws) * (1 - p) ** (k - sum(draws))


def expectation(metric, k, p):
    return sum(chance * metric([line(0, draws)]).value for draws, chance in bernoulli(k, p))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_worst_of_n_is_unbiased(n, p):
    """A null attack on a dummy that is correct with probability p leaves p^n, whatever K >= n."""
    assert expectation(lambda images: metrics.worst(images, n), 6, p) == pytest.approx(p**n, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_vote_of_n_is_unbiased_and_a_tie_is_a_coin(n):
    """Two classes: P(more than half correct) + P(half correct) / 2."""
    p = 0.7
    exact = sum(
        comb(n, h) * p**h * (1 - p) ** (n - h) * (1.0 if 2 * h > n else 0.5 * (2 * h == n)) for h in range(n + 1)
    )
    assert expectation(lambda images: metrics.vote(images, n), 5, p) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("draws", "n", "credit"),
    [
        ([1, 1, 0, 0], 4, 1 / 2),  # tied with one other class
        ([1, 0, 2, 3], 4, 1 / 4),  # with three
        ([1, 0, 0, 2], 4, 0.0),  # in, but not at the top
        ([1, 0, 0, 2, 2], 5, 0.0),  # others tied above the label
        ([1, 1, 0, 2, 3], 5, 1.0),  # a plurality without majority
        ([1, 1, 0, 0, 0], 2, 1 / 2),  # two groups; the fifth draw is left over
    ],
)
def test_vote_ties(draws, n, credit):
    assert metrics.vote([line(0, draws)], n).value == pytest.approx(credit)


@pytest.mark.parametrize(
    ("p", "n", "low", "high"),
    [
        (0.0, 10, 0.0, 0.2775328),
        (1.0, 10, 0.7224672, 1.0),
        (0.5, 10, 0.2365931, 0.7634069),
        (15 / 148, 148, 0.0624, 0.1605),  # Newcombe, Statistics in Medicine 17 (1998), table I: 15/148, method 3
        (81 / 263, 263, 0.2553, 0.3662),  # and 81/263
    ],
)
def test_wilson(p, n, low, high):
    assert metrics.wilson(p, n) == pytest.approx((low, high), abs=5e-5)


def test_mean_of_single_runs_and_its_spread():
    images = [line(0, [1, 1, 0, 1]), line(1, [1, 0, 0, 1]), line(2, [1, 0, 0, 0])]
    assert metrics.runs(images) == pytest.approx([1, 1 / 3, 0, 2 / 3])
    assert metrics.accuracy(images).value == pytest.approx(0.5)
    assert metrics.accuracy(images)[3:] == (3, 4)
    assert metrics.spread(images).value == pytest.approx((5 / 27) ** 0.5)  # ddof 1
    assert metrics.accuracy(images)[1:3] == metrics.wilson(0.5, 3)  # images, not 12 draws, are the sample


def test_lines_of_different_length_use_the_common_draws():
    images = [line(0, [1, 1, 1, 0, 0]), line(1, [0, 1])]
    assert metrics.accuracy(images) == metrics.accuracy([line(0, [1, 1]), line(1, [0, 1])])
    assert metrics.runs(images) == [0.5, 1.0]
    assert metrics.worst(images, 2).value == 0.5
    assert metrics.vote(images, 2).value == 0.75


def test_clean_metrics_read_the_clean_draws():
    found = metrics.summary(log([line(0, [0] * 10, clean=[1] * 9 + [0]), line(1, [1] * 10, clean=[1] * 10)]))
    assert {k: v.value for k, v in found.items()} == pytest.approx(
        {"robust": 0.5, "robust_std": 0.0, "worst10": 0.5, "vote10": 0.5, "clean_worst10": 0.5, "clean_vote10": 1.0}
        | {"clean": 0.95, "undefended": 1.0}
    )


def test_summary_gives_only_what_the_log_allows():
    assert set(metrics.summary(log([line(0, [1])]))) == {"robust", "clean", "undefended"}
    assert metrics.summary(log([])) == {}
    assert metrics.summary(log([line(0, [1], failed="not finite")])) == {}
    both = metrics.summary(log([line(0, [0], failed="not finite"), line(1, [1])]))
    assert both["robust"][::3] == (1, 1)


def test_aa_needs_every_verdict():
    assert metrics.aa([line(0, [1], verdict=True), line(1, [1], verdict=False)]).value == 0.5
    assert metrics.aa([line(0, [1], verdict=True), line(1, [1], verdict=None)]) is None


def test_null_difference_is_paired_by_image():
    null = [line(7, [1, 1]), line(8, [1, 0]), line(9, [0, 0])]
    assert metrics.null_difference(null, null)[:3] == (0.0, 0.0, 0.0)
    attacked = [line(9, [0, 0]), line(8, [0, 0]), line(5, [1, 1])]  # another order, one image that null lacks
    value = metrics.null_difference(attacked, null)
    assert (value.value, value.images, value.evals) == (-0.25, 2, 2)
    half = metrics.Z * 0.25  # differences 0 and -1/2: sd = 0.25 sqrt 2, over sqrt 2 images
    assert value[1:3] == pytest.approx((-0.25 - half, -0.25 + half))
    assert metrics.null_difference([line(1, [1])], null) is None
    assert metrics.null_difference([line(7, [0])], null)[1:3] == (-1, 1)  # one image says nothing


def test_the_interval_of_differences_covers():
    """Half of the images lose their one correct draw: mean -1/2, sd 1/2 sqrt(n / (n - 1))."""
    null = [line(i, [1]) for i in range(100)]
    value = metrics.null_difference([line(i, [i % 2]) for i in range(100)], null)
    assert value[:3] == pytest.approx((-0.5, -0.5 - 0.0985, -0.5 + 0.0985), abs=1e-4)


def test_robust_image_is_unbiased_where_the_in_sample_minimum_is_not():
    """Two attacks that leave every draw correct with probability p: no choice between them can be worth anything."""
    p, k, chosen, in_sample = 0.6, 4, 0.0, 0.0
    for (a, chance_a), (b, chance_b) in product(bernoulli(k, p), repeat=2):
        value = metrics.robust_image([log([line(0, a)]), log([line(0, b)], "bpda-eot")]).value
        chosen += chance_a * chance_b * value
        in_sample += chance_a * chance_b * min(sum(a), sum(b)) / k
    assert chosen == pytest.approx(p, abs=1e-12)
    assert in_sample < p - 0.1


def test_robust_image_takes_the_worst_attack_of_each_image_that_all_share():
    one = log([line(0, [0, 0, 0, 0]), line(1, [1, 1, 1, 1]), line(2, [0, 0, 0, 0])])
    two = log([line(1, [0, 1, 0, 0]), line(0, [1, 1, 1, 1])], "bpda-eot")  # even draws wrong, odd: one of two
    assert metrics.robust_image([one, two])[::3] == (0.25, 2)
    assert metrics.robust_image([one, log([line(5, [0, 0])])]) is None
    assert metrics.robust_image([log([line(0, [1])])]) is None
    certain = metrics.robust_image([log([line(0, [1])], defense="none"), log([line(0, [0])], defense="none")])
    assert certain.value == 0  # without a defense there are no draws to separate


def test_robust_image_breaks_ties_by_the_attack_that_is_lower_overall():
    strong = log([line(0, [1, 0]), line(1, [0, 0]), line(2, [0, 0])])
    weak = log([line(0, [1, 1]), line(1, [1, 1]), line(2, [1, 1])], "bpda-eot")
    assert metrics.robust_image([weak, strong]).value == metrics.robust_image([strong, weak]).value == 0


def test_strongest_is_lowest_on_average_and_no_control():
    good, bad = [line(0, [1, 1])], [line(0, [1, 0])]
    logs = {"null": [log([line(0, [0, 0])], "null")], "noise": [log([line(0, [0, 0])], "noise:draws=5")]}
    assert metrics.strongest(logs) == "null"  # nothing else is there
    assert metrics.strongest(logs | {"a": [log(good)], "b": [log(bad)]}) == "b"
    seeds = {"a": [log([line(0, [0, 0])]), log(good)], "b": [log([line(0, [0, 0, 1, 1, 1])]), log([line(0, [0])])]}
    assert metrics.strongest(seeds) == "b"  # 0.3 < 0.5, though the first seed alone says a
    assert metrics.strongest({"a": [log([])]}) is None
    assert metrics.strongest({"a": [log([])], "b": [log(good)]}) == "b"


def test_seeds_are_averaged_and_do_not_narrow_the_choice_of_images():
    seeds = [metrics.accuracy([line(i, [int(i < h)]) for i in range(10)]) for h in (4, 6)]
    assert metrics.pool(seeds) == (0.5, *metrics.wilson(0.5, 10), 10, 1)
    difference = metrics.pool([metrics.Value(-0.2, -0.3, -0.1, 9, 2), metrics.Value(-0.4, -0.7, -0.1, 9, 3)], True)
    assert difference == pytest.approx((-0.3, -0.5, -0.1, 9, 2))
    assert metrics.pool([metrics.Value(0.1, None, None, 9, 2)] * 2)[1:3] == (None, None)


def test_strongest_is_chosen_among_the_attacks_on_the_most_images():
    many = log([line(i, [i % 2] * 2) for i in range(10)])
    few = log([line(i, [0, 0]) for i in range(3)], attack="apgd-ce")
    assert metrics.strongest({"apgd-ce": [few], "pgd-eot": [many]}) == "pgd-eot"
    assert metrics.strongest({"apgd-ce": [few]}) == "apgd-ce"
