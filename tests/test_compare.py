"""Two cells on the same images: the statistics by hand and against scipy, which cells are mates, and what is refused."""

import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from purebench.errors import UserError
from purebench.records.store import Log
from purebench.report import compare, expect, mates, pairs

# --------------------------------------------------------------------------------------------------------------- statistics


def test_mcnemar_is_a_fair_coin_on_the_images_that_differ():
    assert pairs.mcnemar(0, 0) == 1
    assert pairs.mcnemar(5, 5) == 1
    # Nine of eleven: twice the chance of 9, 10 or 11 heads of 11.
    assert pairs.mcnemar(2, 9) == pytest.approx(2 * (math.comb(11, 9) + 11 + 1) / 2**11)
    assert pairs.mcnemar(9, 2) == pairs.mcnemar(2, 9)
    assert pairs.mcnemar(0, 6) == pytest.approx(2 / 2**6)


def test_holm_by_hand():
    assert pairs.holm([0.01, 0.04, 0.03]) == pytest.approx(
        [0.03, 0.06, 0.06]
    )  # 3 x 0.01, 2 x 0.03, and 0.04 not below it
    assert pairs.holm([0.5, 0.9]) == [1.0, 1.0]
    assert pairs.holm([0.2]) == [0.2]
    assert pairs.holm([]) == []


def test_the_interval_is_the_percentile_bootstrap_of_images():
    """The same as scipy's, which draws images one by one; the two differ by what 10,000 resamples leave to chance."""
    draw = np.random.default_rng(5)
    a = draw.integers(0, 11, 120) / 10
    b = np.clip(a + draw.integers(-3, 6, 120) / 10, 0, 1)
    theirs = stats.bootstrap(
        (b - a,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert pairs.interval(b - a) == pytest.approx(tuple(theirs), abs=0.004)
    # Paired: on its own each side is far less sure.
    width = np.subtract(*pairs.interval(b - a)[::-1])
    assert width < 0.8 * np.subtract(*pairs.interval(b)[::-1])


def test_the_interval_is_the_same_each_time_and_in_any_order():
    values = [0.1, -0.2, 0.3, 0.3, 0.0, 0.9 - 0.8]
    assert pairs.interval(values) == pairs.interval(values) == pairs.interval(values[::-1])


def test_it_covers_what_it_should():
    """Of 100 made-up comparisons of 100 images, whose true difference is known, 95 % have it in their interval."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        chances = draw.uniform(size=100)
        a = draw.binomial(10, chances) / 10
        b = draw.binomial(10, chances**2) / 10  # on average 1/3 where a has 1/2
        low, high = pairs.interval(b - a)
        covered += low <= 1 / 3 - 1 / 2 <= high
    assert 90 <= covered < 100


@pytest.mark.parametrize(("n", "value"), [(1, 0.0), (1, -1.0), (59, 0.0), (500, 0.0), (10, 1.0)])
def test_images_that_are_all_alike_do_not_make_sure(n, value):
    """A bootstrap of equal values has no width; that none of n differs says that at most 1 - 0.05^(1/n) of all do."""
    low, high = pairs.interval([value] * n)
    assert -1 <= low <= value <= high <= 1
    assert high - low == pytest.approx(2 * (1 - 0.05 ** (1 / n)))


def test_a_pair_by_hand():
    found = pairs.pair(
        [1.0, 0.5, 0.0, 0.0], [1.0, 1.0, 0.5, 0.0], [True, True, False, False], [True, False, True, False]
    )
    assert (found.images, found.a, found.b, found.difference) == (4, 0.375, 0.625, 0.25)
    assert (found.n10, found.n01, found.p) == (1, 1, 1.0)
    assert 0 <= found.low <= 0.25 <= found.high <= 0.5


# ------------------------------------------------------------------------------------------------------------------ records


def log(defense="coup", attack="pgd-eot", right=(0,), *, gradient="exact", seed=0, k=2, started="2026-01-01", **other):
    """A cell of ten images, of which those at the `right` positions are always right."""
    cell = {
        "dataset": "digits", "subset": "first", "classifier": "cnn", "score": "vp", "threat": "Linf:0.2", "seed": seed,
        "defense": defense, "attack": attack, "gradient": gradient,
    }  # fmt: skip
    wanted, labels, verdict, n = (other.pop(key, None) for key in ("wanted", "labels", "verdict", "n"))
    indices = other.pop("indices", None) or range(n or 10)
    blind = other.pop("blind", False)
    parts = {
        "defense": {"version": 1, "values": {"steps": other.pop("steps", 10)}},
        "attack": {"version": 1, "values": {}},
    }
    parts |= {
        "dataset": {"version": 1, "hash": other.pop("data", "d")},
        "classifier": {"version": 1, "hash": other.pop("weights", "w")},
    }
    cell |= other
    cell["parts"] = parts | ({"score": {"version": 1}} if cell["score"] != "-" else {})
    images = [
        {
            "position": i, "index": index, "label": (labels or [1] * 99)[i], "undefended": 1, "clean": [1] * k,
            "adversarial": [(labels or [1] * 99)[i] if i in right else 7] * k,
            "verdict": None if verdict is None else i in verdict, "nfe": [3, 2],
            **({"gradients": {"iterates": 3, "zero": 3, "not_finite": 0, "right": 3, "blind": 3}} if blind else {}),
        }
        for i, index in enumerate(indices)
    ]  # fmt: skip
    name = "-".join(map(str, (*cell.values(), started)))
    return Log(name, cell, [{"started": started, "wanted": wanted or len(images)}], images, 1.0, None)


def one(logs, by, wanted=(), metric="robust"):
    return compare.of_one(logs, "results", by, {by: list(wanted)} if by and wanted else {}, metric)


def two(a, b, by=None, metric="robust"):
    return compare.of_two([a, b], ("a", "b"), by, metric)


def said(found):
    return [(row.labels, row.common("attack") or "-", round(row.pair.difference, 3)) for row in found.rows]


def test_what_was_not_compared_meets_no_expectation():
    """Of two cells of one name, one has no mate: an expectation about both is not met by the other alone."""
    numbers = compare.measured(two([log(), log(gradient="bpda", right=range(8))], [log()]))
    for text, met in (
        ("coup/pgd-eot(difference)>=-2%", False),
        ("coup/pgd-eot@exact(difference)>=-2%", True),
        ("coup/pgd-eot@bpda(difference)>=-2%", False),
        ("coup/pgd-eot@bpda>=0.1", False),
    ):
        verdict = expect.judged(expect.read(text, compared=True), numbers)
        assert (verdict.met, "it has no mate" in verdict.line) == (met, not met), verdict.line


def test_gradients_of_one_folder():
    logs = [
        log(right=range(5)),
        log(gradient="adjoint", right=range(8)),
        log("diffpure", right=range(3)),
        log("diffpure", gradient="bpda"),
    ]
    found = one(logs, "gradient")
    assert said(found) == [(("exact", "bpda"), "pgd-eot", -0.2), (("exact", "adjoint"), "pgd-eot", 0.3)]
    row = found.rows[1]
    assert (row.pair.images, row.pair.a, row.pair.b, row.pair.n10, row.pair.n01) == (10, 0.5, 0.8, 0, 3)
    assert row.pair.p == pytest.approx(0.25)
    assert [row.corrected for row in found.rows] == pairs.holm([row.pair.p for row in found.rows])


def test_the_first_of_several_names_is_held_against_each_of_the_others():
    logs = [log(name, right=range(n)) for n, name in enumerate(("coup", "diffpure", "one-shot"))]
    assert [row.labels for row in one(logs, "defense", ["diffpure", "coup", "one-shot"]).rows] == [
        ("diffpure", "coup"),
        ("diffpure", "one-shot"),
    ]
    assert len(one(logs, "defense").rows) == 3  # each against each


def test_a_name_chooses_by_resolved_values():
    logs = [log(right=range(5)), log("coup:steps=20", right=range(9), steps=20)]
    found = compare.of_one(logs, "results", "defense", {"defense": ["coup:steps=10", "coup:steps=20"]}, "robust")
    assert said(found) == [(("coup", "coup:steps=20"), "pgd-eot", 0.4)]


def test_what_uses_no_score_model_and_what_has_its_own_gradient_are_mates():
    """A bare classifier beside any score model; BPDA is exact on it; null keeps to no threat model."""
    bare = [
        log("none", "bpda-eot", gradient="exact", score="-"),
        log("none", "null", gradient="-", score="-", threat="-"),
    ]
    logs = [*bare, log("coup", "bpda-eot", gradient="bpda"), log("coup", "null", gradient="-", threat="-")]
    found = one(logs, "defense")
    assert {(row.labels, row.attack, row.unequal) for row in found.rows} == {
        (("none", "coup"), "bpda-eot", ()),
        (("none", "coup"), "null", ()),
    }
    assert {row.labels for row in one(logs, "attack").rows} == {("null", "bpda-eot")}
    three = one([*logs, log("diffpure", "bpda-eot", gradient="bpda")], "defense").rows
    assert [row.labels for row in three if row.attack == "bpda-eot"] == [
        ("none", "diffpure"),
        ("none", "coup"),
        ("diffpure", "coup"),
    ]
    other = [*logs, log("coup", "bpda-eot", gradient="adjoint", right=range(9))]
    assert len(one(other, "defense").rows) == 2  # the adjoint has no mate on the bare classifier
    assert len(one(other, "defense").alone) == 1


def test_two_folders_by_version_weights_and_defense():
    old, new = log(right=range(5)), log(right=range(4), weights="x", started="2026-02-01")
    found = two([old], [new])
    assert said(found) == [(("classifier hash=w", "classifier hash=x"), "pgd-eot", -0.1)]
    assert found.free == ()
    assert said(one([new, old], "version")) == said(found)  # the older is A
    found = two([old, log(attack="apgd-ce")], [log("diffpure"), log("diffpure", "apgd-ce", weights="x")])
    assert found.free == ("defense",)
    assert [(row.labels, row.unequal) for row in found.rows] == [
        (("coup", "diffpure"), ()),
        (("coup", "diffpure"), ("classifier hash w / x",)),
    ]
    assert "+ coup and diffpure (apgd-ce Linf:0.2) also differ: classifier hash w / x." in compare.render(found)
    assert two([log("coup")], [log("diffpure", "apgd-ce")]).free == ("defense", "attack")


def test_of_several_versions_the_one_that_is_most_alike_then_the_newest():
    a = log("diffpure")
    versions = [log(weights="x", started="2026-03-01"), log(started="2026-01-01", right=range(4))]
    found = one([a, *versions], "defense")
    assert {row.b.made["classifier", "hash"]: row.unequal for row in found.rows} == {
        "w": (),
        "x": ("classifier hash w / x",),  # not left out, and said
    }
    other = mates.sides([log(weights=w, started=f"2026-0{month}-01") for w, month in (("y", 3), ("x", 2))])
    met = mates.between(mates.sides([a, log("diffpure", weights="x")]), other, ["defense"])
    assert [(x.made["classifier", "hash"], y.made["classifier", "hash"]) for x, y in met] == [("w", "y"), ("x", "x")]


def test_seeds_of_one_cell_are_one_row_on_the_seeds_that_both_have():
    a = [log(right=range(n), seed=seed) for seed, n in enumerate((4, 6, 0))]
    b = [log("one-shot", right=range(n), seed=seed) for seed, n in enumerate((6, 8))]
    row = one(a + b, "defense").rows[0]
    assert row.seeds == ([0, 1], [0, 1])
    assert (row.pair.images, row.pair.a, row.pair.b) == (10, 0.5, 0.7)  # of ten images, not of twenty
    assert (row.pair.n10, row.pair.n01) == (0, 2)  # the first seed's first draw
    assert [row.labels for row in one(a, "seed").rows] == [
        ("seed 0", "seed 1"),
        ("seed 0", "seed 2"),
        ("seed 1", "seed 2"),
    ]
    assert two([a[0]], [b[1]]).free == ("defense", "seed")


def test_draws_are_shares_and_the_verdict_is_the_first_draw():
    a, b = log(k=4), log("one-shot", k=2)
    a.images[3]["adversarial"] = [7, 1, 1, 1]
    b.images[4]["adversarial"] = [1, 7]
    row = one([a, b], "defense").rows[0]
    assert row.evals == (4, 2)
    assert (row.pair.a, row.pair.b) == (pytest.approx(0.175), pytest.approx(0.15))  # (1 + 3/4) / 10, (1 + 1/2) / 10
    assert (row.pair.n10, row.pair.n01) == (0, 1)  # image 3 was wrong at first, image 4 right


# ----------------------------------------------------------------------------------------------- the same images, or none


def test_images_are_known_by_their_index_not_their_place():
    a = log(right=(0, 1), indices=[5, 6, 7, 8])
    b = log("diffpure", right=(3,), indices=[9, 8, 7, 6], subset="choice:3")
    row = two([a], [b]).rows[0]
    assert row.pair.images == 3  # 6, 7, 8
    assert (row.pair.a, row.pair.b, row.pair.difference) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 0)
    assert row.of == (4, 4)
    assert "diffpure (pgd-eot Linf:0.2): 3 of 4 and 4" in compare.render(two([a], [b]))


def test_an_index_that_a_subset_holds_twice_is_two_images():
    a, b = log(right=(0,), indices=[5, 5, 6]), log("diffpure", right=(1,), indices=[5, 5])
    row = two([a], [b]).rows[0]
    assert (row.pair.images, row.pair.n10, row.pair.n01) == (2, 1, 1)


def test_what_cannot_be_the_same_images_is_refused():
    other = log("diffpure", labels=[1, 1, 2, *[1] * 7])
    for wrong, why in (
        (other, "image 2 is of another class"),
        (log("diffpure", data="e"), "hold other images"),
        (log("diffpure", indices=[20, 21]), "no image was judged in both"),
    ):
        with pytest.raises(UserError, match=why):
            one([log(), wrong], "defense")
        # Beside a pair that is one, it is named.
        found = one([log(), wrong, log(attack="apgd-ce"), log("diffpure", "apgd-ce")], "defense")
        assert [row.attack for row in found.rows] == ["apgd-ce"]
        assert why in compare.render(found)
    # Corruptions are another dataset, and yet the same images: whoever asks for that gets it.
    assert len(two([log(dataset="digits:x=1")], [log(dataset="digits:x=2", data="e")]).rows) == 1


def test_a_lost_image_is_in_no_pair():
    a = log(right=range(10))
    a.images[3] |= {"failed": "attack: not finite", "adversarial": []}
    assert one([a, log("diffpure")], "defense").rows[0].pair.images == 9


@pytest.mark.parametrize(
    ("logs", "by", "message"),
    [
        ([log()], "defense", "no two cells of `results` differ in their defense alone"),
        ([log(), log("diffpure", "apgd-ce")], "attack", "differ in their attack alone"),
        ([log(), log("diffpure")], None, "nothing says what of `results` is compared"),
    ],
)
def test_nothing_to_compare(logs, by, message):
    with pytest.raises(UserError, match=message) as error:
        one(logs, by)
    assert "defense" in error.value.hint if by is None else error.value.hint


def test_nothing_alike_in_two_folders():
    with pytest.raises(UserError, match="no cell of `a` is like one of `b` in all of its names"):
        two([log(), log("diffpure", "apgd-ce")], [log("diffpure"), log("coup", "apgd-ce")], "version")


# ------------------------------------------------------------------------------------------------------------- what is printed


def test_markdown_names_what_differs_once_and_says_how_it_was_made():
    logs = [
        log(right=range(5), n=60),
        log("diffpure", right=range(20), n=60),
        log(attack="apgd-ce", n=60),
        log("diffpure", "apgd-ce", n=60),
    ]
    text = compare.render(one(logs, "defense"))
    head, table, notes = text.split("\n\n")[1:]
    assert head == "Dataset `digits`, subset `first`, classifier `cnn`, score `vp`, threat `Linf:0.2`."
    assert [word.strip() for word in table.splitlines()[2].strip("|").split("|")] == [
        "pgd-eot", "diffpure", "coup", "60", "33.3", "8.3", "-25.0", "-36.7 to -15.0", "15", "0", "6.1e-05", "0.00012",
    ]  # fmt: skip
    assert "corrected for the 2 pairs" in notes
    assert "Warning" not in notes
    single = compare.render(one(logs[:2], "defense"))
    assert "p (Holm)" not in single
    assert "One pair" in single


def test_csv_and_json_say_the_same():
    found = one([log(right=range(5)), log("diffpure", right=range(2))], "defense")
    [row] = json.loads(compare.render(found, "json"))
    assert (row["a"], row["b"], row["defense"], row["attack"], row["n10"], row["n01"]) == (
        "diffpure",
        "coup",
        None,
        "pgd-eot",
        0,
        3,
    )
    [read] = csv.DictReader(io.StringIO(compare.render(found, "csv")))
    assert read == {key: "" if value is None else str(value) for key, value in row.items()}


def test_aa_compares_verdicts_and_is_missing_where_an_attack_gives_none():
    logs = [log(attack="autoattack-rand", verdict=range(4)), log("diffpure", "autoattack-rand", verdict=range(6))]
    assert one(logs, "defense", metric="aa").rows[0].pair[1:4] == (0.6, 0.4, pytest.approx(-0.2))
    with pytest.raises(UserError, match="have no `aa`"):
        one([log(), log("diffpure")], "defense", metric="aa")
    assert one([log(), log("diffpure")], "defense", metric="clean").rows[0].pair.difference == 0


def test_doubts_are_said():
    masked, cut = log(right=range(9), blind=True), log("diffpure", right=range(5), wanted=500)
    text = compare.render(one([masked, cut], "defense"))
    assert "| 90.0 § |" in text
    assert "§ its attack was masked" in text
    assert "(10 of 500 images)" in text
    assert "10 images: of so few a bootstrap's interval is too narrow." in text
    assert "§" not in compare.render(one([masked, cut], "defense", metric="clean"))
