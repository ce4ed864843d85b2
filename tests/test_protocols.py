"""Every protocol against its closed form on logs whose truth is known; certificates against an exact radius; what `--log` records."""

import json
import math
import random
from statistics import NormalDist, fmean

import pytest
import torch
from helpers import recorded
from test_metrics import line, log
from test_tables import log as cell
from test_tables import words

from purebench import registry
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import measures
from purebench.purifiers.gaussian import Gaussian
from purebench.records import store
from purebench.records.store import Log
from purebench.report import certified, expect, logged, metrics, protocols, tables
from purebench.running import watched
from purebench.scores.views import discrete

PHI = NormalDist()


def looped(iterates, eot, attack="pgd-eot"):
    """A log of images with these `iterates`, of an attack with so many draws."""
    made = log([line(i, [1, 1]) | {"iterates": counts} for i, counts in enumerate(iterates)], attack)
    made.cell["parts"] = {"attack": {"values": {"log_draws": eot}}}
    return made


# ------------------------------------------------------------------------------------------------- closed forms on Bernoulli logs


def bernoulli(rng, images, steps, eot, k, right):
    """Images each right with probability `right`, whatever the attack does (the null control): in the loop, and judged freshly."""
    lines = []
    for i in range(images):
        counts = [sum(rng.random() < right for _ in range(eot)) for _ in range(steps)]
        broken = next((at for at, count in enumerate(counts) if count < eot), -1)
        fresh = [int(rng.random() < right) for _ in range(k)]
        lines.append(
            line(i, fresh, clean=fresh, verdict=broken < 0, verdict_is="sticky")
            | {"broken_at": broken, "iterates": counts}
        )
    made = log(lines)
    made.cell["parts"] = {"attack": {"values": {"log_draws": eot}}}
    return made


def test_luck_alone_breaks_the_null_control_as_the_closed_forms_say():
    """p = 0.05 wrong a draw, nothing attacked: worst of n (1-p)^n, n verifications at T evaluations (1-p)^nT, fresh 1-p."""
    p, n, steps, images = 0.05, 4, 5, 4000
    made = bernoulli(random.Random(0), images, steps, n, 8, 1 - p)
    found = metrics.summary(made, n=n)
    assert found["robust"].value == pytest.approx(1 - p, abs=0.01)
    assert found[f"worst{n}"].value == pytest.approx((1 - p) ** n, abs=0.02)
    sticky = found["sticky"]
    assert sticky.low < (1 - p) ** (n * steps) < sticky.high
    curve = logged.curve(made.images)
    assert [c.value for c in curve] == pytest.approx([(1 - p) ** (n * (i + 1)) for i in range(steps)], abs=0.025)
    assert curve[-1].value == sticky.value
    assert "aa" not in found
    # In-loop any-iterate is the same count: its bias against judging freshly is (1-p) - (1-p)^nT, a full 59 points here.
    any_ = logged.any_iterate(made, n)
    assert any_.value == sticky.value
    assert found["robust"].value - any_.value == pytest.approx((1 - p) - (1 - p) ** (n * steps), abs=0.025)


def test_any_of_fewer_draws_than_were_made_is_unbiased():
    rng, p = random.Random(1), 0.1
    made = bernoulli(rng, 6000, 3, 5, 2, 1 - p)
    assert logged.any_iterate(made, 2).value == pytest.approx((1 - p) ** 6, abs=0.02)
    exact = looped([[4, 5], [5, 5]], 5)
    # C(4,2)/C(5,2) = 6/10 of the choices miss the wrong draw.
    assert logged.any_iterate(exact, 2).value == pytest.approx((0.6 + 1) / 2)
    assert logged.any_iterate(exact, 5).value == 0.5
    assert logged.any_iterate(exact, 6) is None
    # At its default the parameter is no part of a cell.
    usual = looped([[9, 10], [10, 10]], 10)
    usual.cell["parts"] = {"attack": {"values": {}}}
    assert logged.any_iterate(usual, 10).value == 0.5


def test_a_number_of_fewer_images_than_its_neighbours_says_so():
    """A conjunction over the images that both attacks have may be above either's own verdict."""
    attacks = [
        cell("coup", "autoattack-rand", 6, n=10, verdict=3),
        cell("coup", "autoattack-standard", 6, n=10, verdict=3),
    ]
    attacks[1].images[:] = attacks[1].images[:2]
    header, row = words(tables.render(attacks, asked=measures.read(["aa_image"])))[:2]
    assert row[header.index("aa_image")].endswith("(n = 2)")


def test_selection_on_disjoint_draws_is_unbiased_and_on_its_own_is_not():
    """Thirty attacks that all do nothing: the one that is chosen by even draws has the same accuracy on odd ones."""
    rng, right = random.Random(2), 0.8
    attacks = [
        log([line(i, [int(rng.random() < right) for _ in range(4)]) for i in range(600)], f"a{a}") for a in range(30)
    ]
    unbiased = metrics.robust_image(attacks).value
    lowest = fmean(min(sum(a.images[i]["adversarial"]) / 4 for a in attacks) for i in range(600))
    assert unbiased == pytest.approx(right, abs=0.04)
    assert lowest < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_the_and_of_verdicts_is_at_most_the_least(seed):
    rng = random.Random(seed)
    attacks = [cell("coup", f"autoattack-{name}", 50, n=40, verdict=0) for name in ("rand", "standard")]
    for attack in attacks:
        for one in attack.images:
            one["verdict"] = rng.random() < 0.6
    both = metrics.verdict_image(attacks).value
    assert both <= min(metrics.verdict(attack.images).value for attack in attacks)
    assert both == fmean(
        a["verdict"] and b["verdict"] for a, b in zip(*(attack.images for attack in attacks), strict=True)
    )
    [row] = [row for row in tables.tidy(attacks, measures.read(["aa_image"])) if row["metric"] == "aa_image"]
    assert (row["value"], row["attack"]) == (pytest.approx(both), "autoattack-standard + autoattack-rand")
    header = words(tables.render(attacks, asked=measures.read(["aa_image"])))[0]
    assert "aa_image" in header


def test_success_over_all_and_over_what_was_right_by_the_same_draw():
    images = [line(0, [0, 1], clean=[1, 1]), line(1, [0, 0], clean=[0, 1])]
    assert metrics.success(images).value == 1 - metrics.accuracy(images).value == 0.75
    assert metrics.success_right(images).value == pytest.approx(2 / 3)
    assert metrics.success_right([line(0, [0], clean=[0])]) is None


def test_a_null_difference_stands_beside_each_protocol():
    null = cell("coup", "null", 100, n=20, k=4, gradient="-")
    attacked = cell("coup", "pgd-eot", 5, n=20, k=4, verdict=4)
    for one in attacked.images:
        one["verdict_is"] = "sticky"
    rows = {
        row["metric"]: row
        for row in tables.tidy([null, attacked], measures.read(["worst3", "sticky"]))
        if row["attack"] == "pgd-eot"
    }
    assert rows["worst3"]["value"] == 0.25
    assert rows["null_difference@worst3"]["value"] == -0.75
    assert rows["null_difference@sticky"]["value"] == -0.8  # 4 of 20 by the verdict, against the control's mean of 1


# ------------------------------------------------------------------------------------------------------------- names and refusals


def test_a_verdict_is_a_column_of_its_rules_name():
    made = [cell("coup", "null", 10, n=10, gradient="-"), cell("coup", "pgd-eot", 6, n=10, verdict=3)]
    for one in made[1].images:
        one["verdict_is"] = "cascade"
    text = tables.render(made)
    assert "pgd-eot (cascade)" in words(text)[0]
    assert "(aa)" not in text
    assert expect.judged(expect.read("coup/pgd-eot(cascade)>=30%"), expect.of_grid(made)).met
    assert not expect.judged(expect.read("coup/pgd-eot(aa)>=0"), expect.of_grid(made)).met


def test_an_expectation_may_be_of_any_number_of_draws():
    made = [cell("coup", "pgd-eot", 6, n=10, k=4)]
    reading = expect.read("coup/pgd-eot(worst3)>=60%")
    assert expect.judged(reading, expect.of_grid(made, [reading])).met
    reading = expect.read("coup/pgd-eot(worst5)>=10%")
    assert "it has no `worst5`" in expect.judged(reading, expect.of_grid(made, [reading])).line


@pytest.mark.parametrize(
    ("metric", "says", "advises"),
    [
        ("worst20", "takes 20 draws of an image, and", "--evals 20"),
        ("clean_vote3", "takes 3 draws", "--evals 3"),
        ("worst0", "unknown metric", ""),
        ("sticky", "no record has `sticky`", "verify=20"),
        ("any5", "no record has `any5`", "log=iterates"),
        ("detection", "no record has `detection`", "--log score_norm"),
        ("moved", "no record has `moved_clean_l2`", "--log moved"),
        ("certified@0.5", "nothing is proved of `coup`", "gaussian"),
        ("certified@0.5:n0=2", "nothing is proved of `coup`", "gaussian"),
        ("certified@0.5:alpha=2", "no chance of being wrong", "0.001"),
        ("certified@0.5:bound=best", "unknown bound", "cohen"),
        ("worst2:n0=3", "takes no options", "certified"),
        ("null_difference@radius", "no counterpart", "worst<n>"),
        ("sticky@0.5", "evaluations are counted", "sticky@5"),
    ],
)
def test_what_cannot_be_printed_is_refused_with_a_hint(metric, says, advises):
    logs = [cell("coup", "null", 5, n=5, gradient="-"), cell("coup", "pgd-eot", 5, n=5)]
    with pytest.raises(UserError) as error:
        protocols.check(measures.read([metric]), logs)
    assert says in error.value.message
    assert advises in error.value.hint


# ---------------------------------------------------------------------------------------------------------------- certificates


def test_clopper_pearson_is_the_binomials_own_tail():
    for count, n, alpha in ((0, 9, 0.05), (3, 9, 0.01), (9, 9, 0.001), (88, 100, 0.001)):
        low, high = certified.clopper_pearson(count, n, alpha)
        at_least = sum(math.comb(n, i) * low**i * (1 - low) ** (n - i) for i in range(count, n + 1))
        at_most = sum(math.comb(n, i) * high**i * (1 - high) ** (n - i) for i in range(count + 1))
        assert count == 0 or at_least == pytest.approx(alpha, rel=1e-6)
        assert count == n or at_most == pytest.approx(alpha, rel=1e-6)


def test_bounds_order_as_theory_has_it():
    """Cohen's is tight; of two classes the two-sided one is the same; Li's is smaller."""
    for a in (0.6, 0.9, 0.999):
        assert certified.two_sided(a, 1 - a) == pytest.approx(certified.cohen(a, 0)) == pytest.approx(PHI.inv_cdf(a))
        assert 0 < certified.li(a, 1 - a) < certified.two_sided(a, 1 - a)
    assert certified.li(0.5, 0.1) < certified.two_sided(0.5, 0.1)
    # 100 of 100 at alpha 0.001: Cohen et al.'s largest radius of so few draws, 1.50 sigma.
    assert certified.certificate([1] * 110, 10, 0.001)[1] == pytest.approx(1.50, abs=0.005)
    assert certified.certificate([1] * 10 + [0] * 100, 10, 0.001) == (-1, 0.0)
    assert certified.certificate([-1] * 110, 10, 0.001) == (-1, 0.0)


@pytest.mark.parametrize("bound", certified.BOUNDS)
def test_no_more_than_alpha_of_the_radii_exceed_the_exact_one(bound):
    """A linear model behind `gaussian`: its smoothed class changes exactly at the distance to the plane. 200 repetitions of 100 + 10 draws
    by our noise; at alpha = 0.1 at most 10 % (and chance: 3 deviations) may claim more."""
    repetitions, sigma, distance, alpha = 200, 0.5, 0.1, 0.1
    w = torch.tensor([0.6, 0.8])
    x = torch.full((1, 1, 1, 2), 0.5).expand(repetitions, 1, 1, 2)
    b = distance - (w * x[0, 0, 0]).sum()

    class Linear(torch.nn.Module):
        def forward(self, x):
            margin = (x.flatten(1) * w).sum(1) + b
            return torch.stack([-margin, margin], 1)

    defense = Defense(Gaussian(2 * sigma), Linear(), rows=1000)
    ids = list(range(repetitions))
    answers = defense.draws(x, Noise(3, "judge", (), ids, [0] * repetitions), 0, 110).argmax(-1)
    lines = [line(i, drawn, label=1) for i, drawn in enumerate(answers.tolist())]
    found = certified.radii(lines, sigma, 10, alpha, bound)
    too_far = fmean(radius is not None and radius > distance for radius in found)
    assert too_far <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / repetitions)
    # And it proves something: of 100 draws about 0.4 of the exact radius at half of the images.
    assert sum(radius is not None for radius in found) > repetitions / 5


def test_certified_accuracy_of_a_linear_model_meets_its_exact_curve():
    """With 20,000 draws, a point between two exact radii is proved for the farther image alone."""
    rng, sigma = random.Random(0), 0.25
    lines = []
    for i, distance in enumerate((0.05, 0.15, 0.30)):
        right = PHI.cdf(distance / sigma)
        lines.append(line(i, [int(rng.random() < right) for _ in range(20_000)]))
    found = certified.radii(lines, sigma, 1000, 0.001)
    for radius, exact in zip(found, (0.05, 0.15, 0.30), strict=True):
        assert exact - 0.02 < radius <= exact
    assert [certified.certified(found, r, 1).value for r in (0.0, 0.1, 0.2, 0.4)] == [1, 2 / 3, 1 / 3, 0]
    assert certified.average(found, 1).value == fmean(found)


def recorded_cell(defense, **values):
    known = {
        key: value
        for key, value in registry.validated("defense", defense, values).items()
        if key not in registry.COMMON["defense"]
    }
    given = {key: value for key, value in values.items() if key in registry.COMMON["defense"]}
    score = "digits-vp" if "score" in registry.info("defense", defense)["needs"] else "-"
    parts = {"defense": {"version": registry.version("defense", defense, known), "values": known | given}}
    parts |= {"score": {"version": 1}} if score != "-" else {}
    return {"dataset": "digits", "score": score, "defense": defense, "attack": "null", "parts": parts}


def test_sigma_is_that_of_the_noise_on_the_unit_scale():
    abar = float(discrete()[99])
    assert registry.expression("abar(1000 * t)", {"t": 0.1}) == pytest.approx(abar, rel=1e-12)
    for defense in ("diffpure", "diffpure-ode", "diffpure-ddpm"):
        expected = math.sqrt((1 - abar) / abar) / 2
        assert certified.sigma(recorded_cell(defense, t=0.1)) == pytest.approx(expected, rel=1e-12)
    assert certified.sigma(recorded_cell("adp", sigma=0.25)) == 0.25
    assert certified.sigma(recorded_cell("gaussian", sigma=0.5)) == 0.25
    assert certified.sigma(recorded_cell("one-shot", sigma=0.5, noise=0.5)) == 0.125
    assert certified.sigma(recorded_cell("edm", sigma=0.5)) == 0.25


@pytest.mark.parametrize(
    ("defense", "values"),
    [
        ("none", {}), ("coup", {}), ("diffpure-ld", {}), ("gdmp", {}), ("adp", {"threshold": 25.0}), ("adp", {"rand": "binary"}),
        ("adp", {"variant": "code"}), ("adp", {"sigma": 0.0}), ("gaussian", {"votes": 10}), ("gaussian", {"noise": 0.0}),
        ("edm", {"sigma": 80.0, "steps": 18, "start": 13}),
    ],
)  # fmt: skip
def test_what_sees_the_image_without_noise_is_refused_by_name(defense, values):
    with pytest.raises(UserError, match=f"nothing is proved of `{defense}") as error:
        certified.sigma(recorded_cell(defense, **values))
    assert error.value.hint


def test_images_that_are_resized_before_the_noise_prove_nothing():
    cell_ = recorded_cell("diffpure") | {"dataset": "cifar10"}
    with pytest.raises(UserError, match="resized"):
        certified.sigma(cell_)


# ------------------------------------------------------------------------------------------------------------ detection, distances


def test_the_area_is_the_share_of_pairs_and_the_threshold_counts():
    images = [{"score_norm": {"input": pair, "purified": [1.0, 1.0]}} for pair in ([1.0, 3.0], [2.0, 2.0], [3.0, None])]
    # Pairs attacked above clean: 3 > 1, 3 > 2, 3 = 3; 2 > 1, 2 = 2; inf above all three.
    assert logged.detection(images).value == pytest.approx((2.5 + 1.5 + 3) / 9)
    assert logged.detection(images, "purified").value == 0.5
    assert logged.detected(images, 2.0).value == pytest.approx(2 / 3)
    assert logged.detected(images, 2.0, side=0).value == pytest.approx(1 / 3)
    assert logged.detection([]) is None


def test_score_norms_are_those_that_adps_code_measured():
    golden = recorded("adp/b_adp_trajectories.npz")
    x = golden["dec25/x_in"]
    defense = Defense(Identity(), torch.nn.Flatten(), rows=4)

    class Sine:
        size, sigma_min, sigma_max = tuple(x.shape[1:]), 0.01, 50.0

        def direction(self, x, sigma):  # s(x) = 3.4 sin(2 pi x) on [0,1]
            return 3.4 * torch.sin(math.pi * (x + 1))

    defense.score = Sine()
    assert watched.score_norms(defense, x) == pytest.approx(golden["dec/score_norm"].tolist(), rel=1e-4)


def test_distances_are_means_over_draws():
    defense = Defense(Gaussian(0.2), torch.nn.Flatten(), rows=8)
    x = torch.full((2, 1, 4, 4), 0.5)
    noise = Noise(0, "judge", (), [0, 1], [0, 0])
    found = watched.watched(("moved",), defense, x, x + 0.1, noise, 3)
    draws = [0.1 * noise.rows([0, 1], [k, k]).normal(-1, x) for k in range(3)]
    for i in range(2):
        moved = found[i]["moved"]
        assert moved["clean"][0] == pytest.approx(fmean(float(d[i].norm()) for d in draws), rel=1e-4)
        assert moved["input"][1] == pytest.approx(fmean(float(d[i].abs().max()) for d in draws), rel=1e-4)
        assert moved["adversarial"][0] == pytest.approx(fmean(float((d[i] + 0.1).norm()) for d in draws), rel=1e-4)


def test_seconds_leave_out_the_first_batch(tmp_path):
    costs = [{"judge_seconds": s, "purifications": 10, "rows": 16} for s in (9.0, 1.0, 2.0, 3.0)]
    (tmp_path / store.COST).write_text("".join(map(store.line, costs)))
    made = Log("x", {}, [{"device": "cpu", "hardware": "x86_64"}], [line(0, [1])], 0.0, None, tmp_path)
    assert logged.pace(made) == logged.Pace(0.2, 3, "x86_64", 16)


def test_a_run_logs_what_it_is_asked_and_nothing_else(tmp_path, monkeypatch, capsys):
    import sys

    from purebench import cli

    def run(out, *more):
        arguments = [
            "run",
            "-d",
            "adp:steps=2",
            "-a",
            "null",
            "-a",
            "noise",
            "--dataset",
            "digits",
            "--images",
            "4",
            "--evals",
            "2",
            "--workers",
            "1",
            "--quiet",
            "--device",
            "cpu",
        ]
        monkeypatch.setattr(sys, "argv", ["purebench", *arguments, "--out", str(tmp_path / out), *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert not run("plain")
    assert not run("more", "--log", "score_norm,moved")
    plain, more = ({log.cell["attack"]: log for log in store.load_all([tmp_path / out])} for out in ("plain", "more"))
    for attack, one in plain.items():
        for a, b in zip(one.images, more[attack].images, strict=True):
            assert {key: b[key] for key in a if key != "crc"} == {key: a[key] for key in a if key != "crc"}
            assert set(b) - set(a) == {"score_norm", "moved"}
    null, noise = more["null"].images[0], more["noise"].images[0]
    assert null["moved"]["clean"] == null["moved"]["input"] == null["moved"]["adversarial"]
    assert noise["moved"]["clean"] == null["moved"]["clean"]
    assert null["score_norm"]["input"][0] == null["score_norm"]["input"][1] == noise["score_norm"]["input"][0]
    # The second cell took its clean draws from the first: they are counted once.
    made = {
        attack: [json.loads(text) for text in (one.folder / store.COST).read_text().splitlines()]
        for attack, one in more.items()
    }
    counts = sorted(sum(cost["purifications"] for cost in costs) for costs in made.values())
    assert counts == [4 * 2, 2 * 4 * 2]
    assert run("other", "--log", "norms") == 2
    assert "unknown log `norms`" in capsys.readouterr().err
