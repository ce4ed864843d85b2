"""The PGD family by identities: Hill's rule, targets, logs, joint attacks, approximate input; and what each is refused."""

import json

import pytest
import torch
from test_parameters import CLASSIFIER, SCORE, X
from torch import nn

from purebench import registry
from purebench.attacks.schedule import sizes
from purebench.engine.defense import LEVEL, Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.purifiers import make
from purebench.purifiers.gaussian import Gaussian
from purebench.purifiers.resized import Resized
from purebench.records import store as records
from purebench.running import cost, evaluate, progress, runner
from purebench.scores.views import Score
from purebench.spec import ThreatModel

torch.set_num_threads(1)
CPU, BALL = torch.device("cpu"), ThreatModel("Linf", 0.02)
IMAGES = 0.3 + 0.4 * X.repeat(2, 1, 1, 1).clamp(0, 1)
LABELS = CLASSIFIER(IMAGES).argmax(1)


def noise(ids):
    return Noise(0, "attack", ("it",), ids, [0] * len(ids))


def attacked(attack, defense, of=range(8), threat=BALL, **values):
    index = torch.tensor(list(of))
    made = registry.factory("attack", attack)(**values)
    return made(defense, IMAGES[index], LABELS[index], threat, noise(index.tolist()))


def noisy(sigma=0.3):
    return Defense(Gaussian(sigma), CLASSIFIER, rows=16)


# -------------------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 0.5), ("linear", 0.3), ("cosine", 0.3)])
def test_steps_go_from_the_first_to_the_last(schedule, middle):
    """Of a constant gradient the way is the sum of the steps, as long as neither ball nor [0,1] is reached."""

    class Slope(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], 1)

    steps = sizes(schedule, 5, 0.5, 0.1)
    assert steps[:1] == [0.5]
    assert len(steps) == 5
    assert middle == pytest.approx(steps[2])
    assert steps[4] == (0.5 if schedule == "constant" else 0.1)
    ball, x = ThreatModel("Linf", 0.1), torch.full((1, 1, 3, 4), 0.5)
    attack = registry.factory("attack", "pgd-eot")(
        steps=5, eot=1, rel_step=0.05, random_start=False, schedule=schedule, last=0.05 if schedule == "constant" else 0.01
    )  # fmt: skip
    moved = attack(Defense(Identity(), Slope(), rows=16), x, torch.tensor([0]), ball, noise([0])).x_adv
    assert (x - moved).allclose(torch.full_like(x, 0.1 * sum(steps) / 10), atol=1e-6)


def test_a_single_step_is_the_first_one_and_the_cosine_is_slower_at_its_ends():
    assert sizes("linear", 1, 0.5, 0.02) == sizes("cosine", 1, 0.5, 0.02) == [0.5]
    straight, curved = sizes("linear", 5, 1, 0.2), sizes("cosine", 5, 1, 0.2)
    assert curved[1] > straight[1]
    assert curved[3] < straight[3]


@pytest.mark.parametrize(
    "asked", ["schedule=linear,last=0", "schedule=cosine,last=0.3", "last=0.1", "schedule=linear,rel_step=0.01", "schedule=steps"]
)  # fmt: skip
def test_a_last_step_that_is_none_grows_or_has_no_say_is_refused(asked):
    for attack in ("pgd-eot", "bpda-eot", "transfer-pgd"):
        with pytest.raises(UserError, match=r"last|schedule"):
            plan.build(Request(defenses=("gaussian",), attacks=(f"{attack}:{asked}",), dataset="digits"))


def test_the_constant_schedule_is_no_part_of_a_cell():
    ids = [
        plan.build(Request(defenses=("gaussian",), attacks=(text,), dataset="digits")).jobs[0].cell.id
        for text in ("pgd-eot", "pgd-eot:schedule=constant,last=0.02", "pgd-eot:schedule=linear")
    ]
    assert ids[0] == ids[1] != ids[2]


# ----------------------------------------------------------------------------------------------------------------- Hill's rule


@pytest.mark.parametrize(("attack", "start"), [("pgd-eot", True), ("bpda-eot", False)])
def test_an_image_that_is_never_broken_is_that_of_the_attack_without_the_rule(attack, start):
    given = {"steps": 6, "eot": 3, "random_start": start}
    plain, verified = (attacked(attack, noisy(), verify=n, **given) for n in (0, 5))
    broken = torch.tensor(verified.log["broken_at"]) >= 0
    assert 0 < broken.sum() < len(broken)
    assert verified.verdict.tolist() == (~broken).tolist()
    assert verified.x_adv[~broken].equal(plain.x_adv[~broken])
    lost = torch.tensor(verified.log["broken_at"]) == 0
    assert verified.x_adv[lost].equal(IMAGES[lost])  # of the clean image: evaluation 0


@pytest.mark.parametrize("average", ["logits", "softmax", "logsoftmax", "loss", "signs"])
def test_the_rule_is_an_images_own(average):
    """Broken images leave the batch: those that stay must not notice, in their images, logs and cost."""
    given = {"steps": 4, "eot": 3, "verify": 5, "average": average, "random_start": True}
    whole = attacked("bpda-eot", noisy(), **given)
    for part in ([0, 3], [5], [7, 1, 2]):
        alone = attacked("bpda-eot", noisy(), part, **given)
        assert alone.x_adv.equal(whole.x_adv[part])
        assert alone.log == {word: [values[i] for i in part] for word, values in whole.log.items()}


@pytest.mark.parametrize("start", [False, True])
def test_the_rule_costs_what_its_info_says_at_most(start):
    """On labels that the flag always doubts and the verification never: one of two classes, by a majority of few and of many."""
    given = {"steps": 3, "eot": 2, "verify": 7, "random_start": start}
    doubting = Defense(Identity(), watch(Doubtful()), rows=16)
    found = registry.factory("attack", "bpda-eot")(**given)(
        doubting, IMAGES.float(), torch.zeros(8).long(), BALL, noise(range(8))
    )
    values = registry.validated("attack", "bpda-eot", given)
    most = [
        registry.expression(registry.info("attack", "bpda-eot")[k], values) for k in ("gradient_calls", "forward_calls")
    ]
    assert found.log["broken_at"] == [-1] * 8
    assert found.log["nfe"] == [[sum(most), most[0]]] * 8
    assert doubting.spent.close()[:2] == (8 * sum(most), 8 * most[0])


class Doubtful(nn.Module):
    """Wrong in calls whose rows are those of 8 images and two draws each, or of one gradient; right where 7 draws are asked for."""

    calls = 0

    def forward(self, x):
        # 8 images x 2 draws are one call of 16 rows, 8 x 7 are four: every evaluation is one and four.
        wrong = Doubtful.calls % 5 == 0
        Doubtful.calls += 1
        return x.flatten(1)[:, :2] * 0 + torch.tensor([0.0, 1.0] if wrong else [1.0, 0.0])


def test_one_lucky_draw_does_not_break_an_image():
    """The verification decides: what few draws doubt, many put right."""
    few, many = (
        sum(at >= 0 for at in attacked("bpda-eot", noisy(0.5), steps=8, eot=1, verify=n).log["broken_at"])
        for n in (1, 101)
    )
    assert many < few


# ------------------------------------------------------------------------------------------------------- targets, signs, logs


def test_the_log_of_iterates_changes_no_image_and_counts_right_draws():
    given = {"steps": 3, "eot": 2}
    plain, logged = (
        attacked("pgd-eot", noisy(), **given),
        attacked("pgd-eot", noisy(), log="iterates", log_draws=7, **given),
    )
    assert logged.x_adv.equal(plain.x_adv)
    assert "iterates" not in plain.log
    assert logged.log["iterates"].shape == (8, 4)
    last = Noise(0, "select", ("it", "iterates", 3), range(8), [0] * 8)
    right = (noisy().draws(plain.x_adv, last, 0, 7).argmax(2) == LABELS[:, None]).sum(1)
    assert logged.log["iterates"][:, -1].tolist() == right.tolist()
    assert (
        attacked("pgd-eot", noisy(), [6, 1], log="iterates", log_draws=7, **given)
        .log["iterates"]
        .equal(logged.log["iterates"][[6, 1]])
    )


class Linear(nn.Module):
    weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def forward(self, x):
        return x.flatten(1) @ self.weight


def test_a_target_is_reached_along_its_own_gradient_and_the_classes_go_by_likelihood():
    """Of a linear classifier and the margin, one target is x + eps sign(w_target - w_largest other), for small steps."""
    defense, x = Defense(Identity(), Linear(), rows=16), IMAGES
    logits = Linear()(x)
    y, second = logits.sort(1)[1].flip(1)[:, :2].T
    attack = registry.factory("attack", "pgd-eot")
    given = {"steps": 1, "eot": 1, "rel_step": 1.0, "loss": "margin", "random_start": False, "targeted": True}
    found = attack(targets=1, **given)(defense, x, y, BALL, noise(range(8)))
    w = Linear.weight.T
    towards = BALL.eps * (w[second] - w[y]).sign().view_as(x)
    torch.testing.assert_close(found.x_adv, x + towards, rtol=0, atol=1e-12)
    # The right class is no target, wherever it stands.
    wrong = attack(targets=1, **given)(defense, x, second, BALL, noise(range(8)))
    torch.testing.assert_close(wrong.x_adv, x - towards, rtol=0, atol=1e-12)


def test_more_targets_are_never_worse_on_their_own_draws():
    def left(targets):
        made = attacked("pgd-eot", noisy(0.1), steps=4, eot=9, targeted=True, targets=targets).x_adv
        draws = Noise(0, "select", ("it", "targets"), range(8), [0] * 8)
        return (noisy(0.1).draws(made, draws, 0, 9).argmax(2) == LABELS[:, None]).sum(1)

    one, all_of_them = left(1), left(9)
    assert (all_of_them <= one).all()
    assert (all_of_them < one).any()


# ------------------------------------------------------------------------------------------- joint attacks, approximate input


@pytest.mark.parametrize(
    ("attack", "other", "values"),
    [
        ("approximate-input", "transfer-pgd", {}),
        ("joint-full", "transfer-pgd", {"w": 0.0, "eot": 3}),
        ("joint-full", "transfer-pgd", {"w": 0.0, "variant": "paper"}),
        ("joint-score", "transfer-pgd", {"w": 0.0, "eot": 1, "variant": "paper"}),
        ("bpda-eot", "transfer-pgd", {"average": "signs", "eot": 4}),
    ],
)
def test_without_a_purifier_they_are_pgd(attack, other, values):
    defense = Defense(Identity(), CLASSIFIER, rows=16)
    defense.score = SCORE
    pgd = attacked(other, defense, steps=5, random_start=False)
    torch.testing.assert_close(attacked(attack, defense, steps=5, **values).x_adv, pgd.x_adv, rtol=0, atol=1e-15)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_all_of_the_weight_goes_along_the_score(variant):
    asked = []

    class Flat(Score):
        size, sigma_min, sigma_max = tuple(X.shape[1:]), 0.01, 50.0

        def direction(self, x, sigma):
            asked.append(sigma)
            return torch.where(x > 0, 1.0, -1.0).to(x)

    defense = noisy()
    defense.score = Flat()
    found = attacked("joint-score", defense, steps=1, eot=1, w=1.0, rel_step=1.0, variant=variant).x_adv
    expected = IMAGES + BALL.eps * Flat().direction(2 * IMAGES - 1, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert asked[0] == LEVEL
    attacked("joint-score", defense, steps=1, eot=1, level=0.125, variant=variant)
    assert 0.125 in asked


def test_purified_images_at_the_edge_take_no_step_by_rounding():
    """Two equal steps up and down are none, whatever float32 leaves of them; nor is one that [0,1] cuts off."""

    class Edge(nn.Module):
        def forward(self, x):
            up = x.flatten(1).sum(1)
            return torch.stack([-up, up], 1)

    x = torch.full((1, 1, 2, 2), 1 - 6e-8)
    made = registry.factory("attack", "bpda-eot")(steps=1, eot=2, average="signs")
    found = made(Defense(Identity(), Edge(), rows=4), x, torch.tensor([0]), ThreatModel("Linf", 8 / 255), noise([0]))
    assert found.x_adv.equal(x)


# ---------------------------------------------------------------------------------------------------------- Defense.direction


class Normal(Score):
    """Of data N(0, 1): sigma times the score at noise sigma is -sigma x / (1 + sigma^2)."""

    size, sigma_min, sigma_max = (1, 8, 8), 0.02, 3.0

    def direction(self, x, sigma):
        assert len(x) == 16
        return -sigma * x / (1 + sigma**2)


@pytest.mark.parametrize(("level", "sigma"), [(0.0, LEVEL), (2.0, 2.0)])
def test_a_direction_is_that_of_the_score_at_its_size(level, sigma):
    defense = noisy()
    defense.score = Normal()
    x = torch.rand(19, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    expected = -sigma * (2 * x - 1) / (1 + sigma**2)
    assert defense.direction(x, level).equal(expected)
    flat = torch.full((3, 1, 12, 12), 0.25)
    torch.testing.assert_close(defense.direction(flat, level), torch.full_like(flat, 0.5 * sigma / (1 + sigma**2)))


def test_adp_says_its_own_level_also_where_it_is_resized():
    adp = make("adp", score=Normal(), sigma=0.1)
    for purifier in (adp, Resized(adp, (12, 12), (8, 8))):
        defense = Defense(purifier, CLASSIFIER, rows=16)
        defense.score = Normal()
        torch.testing.assert_close(defense.direction(torch.ones(1, 1, 8, 8)), torch.full((1, 1, 8, 8), -0.2 / 1.04))


def test_a_defense_without_a_score_has_no_direction():
    with pytest.raises(UserError, match="has no score model"):
        noisy().direction(IMAGES)


# ------------------------------------------------------------------------------------------------------ the plan, and records


def asked(attack, defense="gaussian", threat="Linf:0.1", **given):
    request = Request(dataset="digits", defenses=(defense,), attacks=(attack,), threats=(threat,), images=3, **given)
    return plan.build(request)


def planned(*given):
    return asked(*given).jobs


@pytest.mark.parametrize(
    ("attack", "defense", "threat", "message"),
    [
        ("joint-score", "none", "Linf:0.1", "`none` has none"),
        ("joint-score", "gaussian", "Linf:0.1", "follows the score that a defense purifies by"),
        ("joint-score:variant=paper", "diffpure", "Linf:0.1", "variant == 'code' or eot == 1"),
        ("joint-full", "diffpure", "L2:0.5", "knows no threat model"),
        ("joint-full:w=1.5", "diffpure", "Linf:0.1", "it needs w <= 1"),
        ("bpda-eot:verify=-1", "gaussian", "Linf:0.1", "`verify=-1` is not possible"),
        ("pgd-eot:verify=0.5", "gaussian", "Linf:0.1", "not a whole number"),
        ("bpda-eot:average=signs", "gaussian", "L2:0.5", "sums steps along signs"),
        ("pgd-eot:average=signs", "gaussian", "Linf:0.1", "average"),
        ("pgd-eot:ascent=sign", "gaussian", "L1:5", "a few values"),
        ("pgd-eot:targeted=true,targets=10", "gaussian", "Linf:0.1", "at least 11 classes"),
        ("pgd-eot:targets=3", "gaussian", "Linf:0.1", "targeted == True or targets == 9"),
        ("pgd-eot:targeted=true,verify=5", "gaussian", "Linf:0.1", "verify == 0"),
        ("pgd-eot:log_draws=5", "gaussian", "Linf:0.1", "log == 'iterates'"),
        ("bpda-eot:log=iterates,verify=5", "gaussian", "Linf:0.1", "verify == 0"),
        ("pgd-eot:log=iterate", "gaussian", "Linf:0.1", "log"),
        ("approximate-input", "gaussian", "box", "knows no threat model"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_the_plan(attack, defense, threat, message):
    with pytest.raises(UserError) as refused:
        planned(attack, defense, threat)
    assert message in refused.value.message
    assert refused.value.hint


def test_what_came_later_is_no_part_of_a_cell_at_its_default():
    for attack, said in (
        ("pgd-eot", "average=loss,ascent=steepest,targeted=false,targets=9,verify=0,log=none,log_draws=10"),
        ("bpda-eot", "average=logits,verify=0,log=none,log_draws=10"),
    ):
        [old], [new] = planned(attack), planned(f"{attack}:{said}")
        assert old.cell.id == new.cell.id
        assert not {"verify", "log", "average"} & old.cell.data()["parts"]["attack"]["values"].keys()
        assert planned(f"{attack}:verify=3")[0].cell.id != old.cell.id


@pytest.mark.parametrize(
    ("attack", "word"), [("bpda-eot:steps=2,eot=2", None), ("bpda-eot:steps=2,eot=2,verify=3", "sticky")]
)
def test_a_record_names_the_rule_of_its_verdict(tmp_path, attack, word):
    the_plan = asked(attack, "gaussian:sigma=0.5", evals=2)
    outcome = runner.run(the_plan, runner.Settings(tmp_path, device="cpu", rows=16), progress.Reporter())
    assert outcome.failed == {}
    lines = records.load_all([tmp_path])[0].images
    assert [line.get("verdict_is") for line in lines] == [word] * 3
    assert all((line["verdict"] is None) == (word is None) for line in lines)
    assert all((line["broken_at"] < 0) == line["verdict"] for line in lines if word)
    json.dumps(lines)


def test_a_verdict_has_one_name_at_given_values():
    known = {"verdict": {"sticky": "verify > 0"}}
    assert [registry.verdict("it", known, {"verify": n}) for n in (0, 1)] == ["aa", "sticky"]
    assert registry.verdict("it", {"verdict": "mine"}, {}) == "mine"
    assert registry.verdict("it", {}, {}) == "aa"


@pytest.mark.parametrize(
    "attack", ["joint-score:steps=2,eot=3", "joint-full:steps=2,eot=3", "approximate-input:steps=2"]
)
def test_a_joint_attack_costs_what_was_said(attack):
    [job] = planned(attack, "adp:steps=2")
    defense = evaluate.build_defense(job.cell, CPU, rows=4)
    x = torch.full((1, *job.shape), 0.5)
    registry.factory("attack", job.cell.attack.key)(**job.cell.attack.arguments)(
        defense, x, torch.zeros(1).long(), job.cell.threat, noise([0])
    )
    assert defense.spent.close()[:2] == cost.attack(job.cell, job.shape)
