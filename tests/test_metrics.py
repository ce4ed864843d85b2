"""Closed forms: what each metric must be on logs whose truth is known."""

from itertools import product
from math import comb

import pytest

from purebench.records.store import Log
from purebench.report import metrics


def line(index, adversarial, label=1, clean=None, **other):
    """One log line; predictions are classes."""
    clean = adversarial if clean is None else clean
    return {
        "position": index,
        "index": index,
        "label": label,
        "undefended": label,
        "clean": clean,
        "adversarial": adversarial,
    } | other


def log(images, attack="pgd-eot", defense="coup"):
    cell = {"attack": attack, "defense": defense}
    return Log(id=attack, cell=cell, runs=[], images=images, seconds=0.0, failed=None)


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
    assert metrics.summary(log([line(0, [], failed="attack: it returned values that are not finite")])) == {}
    both = metrics.summary(log([line(0, [], failed="attack: its source has no image"), line(1, [1])]))
    assert both["robust"][::3] == (1, 1)


def test_what_is_not_finite_is_wrong_in_every_metric():
    """-1 is an answer, and never the right one; so it was in records that said `failed` of it, and left it out."""
    images = [line(0, [1] * 5 + [-1] * 5, clean=[-1] * 10), line(1, [1] * 10, undefended=-1)]
    found = metrics.summary(log(images))
    assert {k: v.value for k, v in found.items()} == pytest.approx(
        {"robust": 0.75, "robust_std": found["robust_std"].value, "worst10": 0.5, "vote10": 0.75, "clean": 0.5}
        | {"clean_worst10": 0.5, "clean_vote10": 0.5, "undefended": 0.5, "not_finite": 0.25, "clean_not_finite": 0.5}
    )
    old = [line(0, [-1, -1], failed="step 1 of 3 gave values that are not finite"), line(1, [1, 1])]
    assert metrics.accuracy(metrics.judged(log(old)))[::3] == (0.5, 2)
    assert metrics.robust_image([log(old)]).value == 0.5
    assert metrics.null_difference(old, [line(0, [1, 1]), line(1, [1, 1])]).value == -0.5


def counted(right, blind, iterates=10):
    return {"iterates": iterates, "zero": blind, "not_finite": 0, "right": right, "blind": blind}


def test_an_image_is_masked_where_its_gradient_vanished_as_long_as_it_mattered():
    images = [
        line(0, [1], gradients=counted(right=10, blind=10)),
        line(1, [1], gradients=counted(right=3, blind=3)),  # broken afterwards: still blind when it counted
        line(2, [1], gradients=counted(right=10, blind=9)),  # one step was one
        line(3, [0], gradients=counted(right=0, blind=0)),  # never right: nothing was left to do
        line(4, [0]),  # of before this was counted
    ]
    assert metrics.masked(images)[::3] == (0.5, 4)  # of those that were counted
    assert metrics.masked([line(0, [1])]) is None
    assert metrics.summary(log(images))["masked"].value == 0.5


def graded(right, blind, gradient="exact", **cell):
    made = log([line(i, [1], gradients=counted(right, blind)) for i in range(10)])
    made.cell |= {"gradient": gradient} | cell
    return made


def test_a_headline_is_marked_where_every_attack_by_gradient_was_masked():
    blind, seeing, bare = graded(5, 5), graded(5, 4), graded(5, 0, "-", attack="transfer-pgd")
    assert metrics.all_masked({"pgd-eot": [blind], "transfer-pgd": [bare]}).value == 1
    assert metrics.all_masked({"pgd-eot": [blind], "bpda-eot": [seeing]}) is None
    assert metrics.all_masked({"transfer-pgd": [bare]}) is None  # none that asked the defense
    assert metrics.all_masked({"pgd-eot": [blind, seeing]}) is None  # two seeds
    old = log([line(i, [1]) for i in range(10)])  # of before gradients were counted
    old.cell["gradient"] = "exact"
    assert metrics.all_masked({"pgd-eot": [blind], "apgd-ce": [old]}).value == 1  # it does not speak for the defense
    assert metrics.all_masked({"apgd-ce": [old], "pgd-eot": [blind]}) is None  # unless the headline is its own


def test_an_attack_on_a_few_images_takes_no_mark_away():
    blind, toy = graded(5, 5), log([line(0, [1], gradients=counted(5, 0))], attack="bpda-eot")
    toy.cell["gradient"] = "bpda"
    assert metrics.all_masked({"pgd-eot": [blind], "bpda-eot": [toy]}).value == 1


@pytest.mark.parametrize(
    ("attack", "control"),
    [
        ("null", True), ("noise", True), ("pgd-eot:eot=2", False), ("transfer:from=(coup)", False),
        ("transfer:attack=(null),from=(coup)", True), ("transfer:attack=(noise),from=(coup)", True),
        ("transfer:attack=(pgd-eot:steps=2),from=(coup)", False),
    ],
)  # fmt: skip
def test_a_transfer_of_what_no_attack_made_is_a_control(attack, control):
    assert metrics.control(attack) == control


def test_a_seed_on_fewer_images_neither_lifts_nor_deposes():
    """Of seeds those on the most images count: one easy image of a second seed weighed as much as 32 of the first."""
    first = log([line(i, [int(i < 10)]) for i in range(32)])
    easy = log([line(0, [1])])
    found = metrics.headline(
        {"pgd-eot": [first, easy], "transfer-pgd": [log([line(i, [int(i < 20)]) for i in range(32)])]}
    )
    assert found == metrics.Headline("pgd-eot")


def test_clean_accuracy_at_chance():
    def guesses(right, n=40, classes=10):
        return [line(i, [0], label=i % classes, clean=[i % classes if i < right else 99]) for i in range(n)]

    assert metrics.at_chance(guesses(4))
    assert metrics.at_chance(guesses(0))
    assert metrics.at_chance(guesses(7))  # 17.5 %: its interval reaches down to 8.7
    assert not metrics.at_chance(guesses(10))
    assert not metrics.at_chance(guesses(0, n=9))  # too few to say
    assert metrics.at_chance(guesses(20, classes=2))


def test_aa_needs_every_verdict():
    assert metrics.verdict([line(0, [1], verdict=True), line(1, [1], verdict=False)]).value == 0.5
    assert metrics.verdict([line(0, [1], verdict=True), line(1, [1], verdict=None)]) is None


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
    assert metrics.strongest(logs) is None  # no attack was made: a dash, not the control's number
    assert metrics.contenders(logs) == {}
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


def test_a_gap_does_not_depose_the_strongest_attack():
    """The lowest of those on the most images leads, unless one on fewer is lower beyond chance where both were judged."""
    many = log([line(i, [i % 2] * 2) for i in range(40)])  # 50 %
    few = log([line(i, [0, 0]) for i in range(20)], attack="apgd-ce")  # 0 %, where the other has 50 %
    found = metrics.headline(
        {"pgd-eot": [many], "apgd-ce": [few], "null": [log([line(i, [1]) for i in range(90)], "null")]}
    )
    assert (found.attack, found.instead_of) == ("apgd-ce", "pgd-eot")
    assert found.difference[::3] == (-0.5, 20)
    assert found.difference.high < 0
    assert metrics.headline({"apgd-ce": [few]}) == metrics.Headline("apgd-ce")

    handful = log([line(i, [0, 0]) for i in range(1, 10, 2)], attack="apgd-ce")  # five that the other left whole
    assert metrics.strongest({"pgd-eot": [many], "apgd-ce": [handful]}) == "apgd-ce"  # with its own n
    one = log([line(1, [0, 0])], attack="apgd-ce")
    assert metrics.strongest({"pgd-eot": [many], "apgd-ce": [one]}) == "pgd-eot"  # one image has no interval
    like = log([line(i, [i % 2] * 2) for i in range(20)], attack="apgd-ce")
    assert metrics.strongest({"pgd-eot": [many], "apgd-ce": [like]}) == "pgd-eot"  # no lower where both were


def test_of_several_on_fewer_images_the_lowest_leads():
    many = log([line(i, [1]) for i in range(40)])
    half = log([line(i, [i % 2]) for i in range(30)], attack="apgd-ce")
    none = log([line(i, [0]) for i in range(10)], attack="apgd-dlr")
    found = metrics.headline({"pgd-eot": [many], "apgd-ce": [half], "apgd-dlr": [none]})
    assert (found.attack, found.instead_of, found.difference.images) == ("apgd-dlr", "pgd-eot", 10)


def test_an_attack_on_easier_images_does_not_raise_the_headline():
    """Lower than the other on the images that both have, and yet higher on its own: the lower number stays, and a line says so."""
    many = log([line(i, [int(i < 30)]) for i in range(100)])  # 30 %, and 100 % of the first thirty
    few = log([line(i, [int(i >= 10)]) for i in range(30)], attack="apgd-ce")  # 67 % of those
    found = metrics.headline({"pgd-eot": [many], "apgd-ce": [few]})
    assert (found.attack, found.unsure) == ("pgd-eot", ("apgd-ce",))


def test_per_image_is_looked_for_where_the_strongest_was():
    many = log([line(i, [1, 1]) for i in range(40)])
    few = log([line(i, [0, 0]) for i in range(20)], attack="apgd-ce")
    assert list(metrics.contenders({"pgd-eot": [many], "apgd-ce": [few]})) == ["pgd-eot", "apgd-ce"]
    other = log([line(i, [1, 1]) for i in range(20)], attack="apgd-ce")
    assert list(metrics.contenders({"pgd-eot": [many], "apgd-ce": [other]})) == ["pgd-eot"]
