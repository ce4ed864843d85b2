"""Attacks one after the other, and those that choose among draws: what they return, what they count, and that no image knows its mates."""

import dataclasses

import pytest
import torch
from helpers import relative, smooth_classifier, smooth_unet
from torch import nn

from purebench import registry
from purebench.attacks import Attacked, cascade, diffattack, hammer
from purebench.engine.defense import BPDA, Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.purifiers import make
from purebench.records import store as records
from purebench.running import progress, runner, tasks
from purebench.scores.vp import VPScore
from purebench.spec import ThreatModel

torch.set_num_threads(1)
LINF = ThreatModel("Linf", 0.1)


def noise(images, role="attack"):
    return Noise(7, role, ("cascade",), range(images), [0] * images)


class Coin:
    """A defense that answers class 0 where the draw is above the image's first pixel: of pixel p the share 1 - p is right."""

    n = 0

    def start(self, x, noise):
        return x + 2 * (noise.uniform(0, x[:, :, :1, :1]) < x[:, :, :1, :1]).to(x.dtype)

    def step(self, k, state, noise):
        raise AssertionError

    def finish(self, state):
        return state


class Reads(nn.Module):
    def forward(self, x):
        return torch.stack([1.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 1.5], 1)


def sets(share):
    """An attack that makes of every image one that is right with this share; it counts the images that it is given."""

    def attack(defense, x, y, threat, noise):
        attack.given.append(noise.ids.tolist())
        return Attacked(x.new_full(x.shape, 1 - share))

    attack.given = []
    return attack


def coin(images, attacks, select=5, share=1.0):
    x = torch.full((images, 1, 2, 2), 1 - share)
    made = [(str(i), attack) for i, attack in enumerate(attacks)]
    run = cascade.cascade(made, select=select)
    return run(Defense(Coin(), Reads(), rows=512), x, torch.zeros(images).long(), LINF, noise(images))


# ------------------------------------------------------------------------------------------------------------- the selection


def test_each_attack_is_given_what_withstood_those_before_and_the_fewest_right_answers_are_kept():
    half, none, most = sets(0.5), sets(0.0), sets(0.9)
    found = coin(200, [half, none, most])
    left = half.given[0]
    assert left == list(range(200))  # a clean image is always right
    # All five of an image wrong: one in 32.
    assert 180 < len(none.given[0]) < 200
    assert most.given == []  # nothing is left
    broken = [i for i in range(200) if i not in none.given[0]]
    assert [i for i, name in enumerate(found.log["broken_by"]) if name == "0"] == broken
    assert set(found.log["broken_by"]) == {"0", "1"}
    assert not found.verdict.any()
    assert (found.x_adv[none.given[0]] == 1).all()
    # An attack that makes it worse is not taken.
    kept = coin(50, [sets(0.2), sets(1.0)], select=20)
    assert ((kept.x_adv - 0.8).abs() < 1e-6).all()


def test_of_equals_the_larger_margin_is_kept_and_never_the_clean_image():
    """One draw tells little apart: a cascade is as strong as the attack inside all the same."""
    assert ((coin(300, [sets(0.8)], select=1).x_adv - 0.2).abs() < 1e-6).all()
    weak, strong = sets(0.8), sets(0.5)
    found = coin(300, [weak, strong], select=1)
    assert ((found.x_adv[strong.given[0]] - 0.5).abs() < 1e-6).all()
    # Once it was the better one, a weaker one in a later place changes nothing.
    first, then = sets(0.5), sets(0.8)
    found = coin(300, [first, then], select=1)
    assert ((found.x_adv[found.verdict] - 0.5).abs() < 1e-6).all()


def test_selection_draws_are_those_of_no_attack_and_no_judge_and_what_is_judged_afresh_is_unbiased():
    """Of ten candidates that are right half the time the best of five draws looks broken; by the judge's draws it is right
    half the time."""
    seen = set()
    real = Noise.uniform

    def spy(self, *given, **named):
        seen.add((self.role, self.path))
        return real(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "uniform", spy)
        found = coin(1000, [sets(0.5)] * 10)
    assert seen == {("select", ("cascade",))}
    assert (~found.verdict).float().mean() < 0.05  # common draws: the same candidate again is not luckier
    judge = Defense(Coin(), Reads(), rows=512)
    right = (judge.draws(found.x_adv, noise(1000, "judge"), 0, 4).argmax(-1) == 0).float()
    assert right.mean().item() == pytest.approx(0.5, abs=0.03)
    # By their own draws they are not: those of the images that look broken are all wrong.
    own = (judge.draws(found.x_adv, noise(1000, "select"), 0, 5).argmax(-1) == 0).float().mean(1)
    assert torch.equal(own > 0, found.verdict)


def test_more_selection_draws_break_fewer():
    counts = [(~coin(400, [sets(0.5)], select=n).verdict).sum().item() for n in (1, 2, 5)]
    assert counts == pytest.approx([200, 100, 12.5], abs=30)
    assert counts == sorted(counts, reverse=True)


def test_images_that_no_purification_answers_rightly_are_not_attacked_and_lost_ones_stay_what_they_were():
    asked = sets(0.5)
    found = coin(3, [asked], share=0.0)
    assert (asked.given, found.log["broken_by"]) == ([], ["clean"] * 3)
    lost = coin(3, [sets(0.5), lambda d, x, y, t, n: Attacked(x * torch.nan)], select=64)
    assert torch.equal(lost.x_adv, coin(3, [sets(0.5)], select=64).x_adv)


# ------------------------------------------------------------------------------------------------------------------ the engine

SCORE = VPScore(smooth_unet().float(), (1, 4, 4))
CLASSIFIER = smooth_classifier().float()
X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1


def defense(rows=32, **other):
    return Defense(make("diffpure", score=SCORE, classifier=CLASSIFIER, t=0.1, steps=3), CLASSIFIER, rows=rows, **other)


def attacks():
    pgd = registry.factory("attack", "pgd-eot")
    inner = [("a", pgd(steps=2, eot=2)), ("b", registry.factory("attack", "apgd-ce")(steps=3, eot=2))]
    return {
        "cascade": cascade.cascade(inner, select=3),
        "hammer": hammer.hammer(steps=3, eot=4),
        "grafted": hammer.hammer(steps=3, eot=4, graft=True),
        "diffattack": diffattack.diffattack(steps=3, eot=2, points=2),
    }


@pytest.mark.parametrize("name", list(attacks()))
def test_no_image_knows_its_mates_and_dropping_and_refilling_changes_no_bit(name):
    """All five together, or each alone: the same image, verdict, log and calls, though the survivors of a batch fill other rows."""
    y = CLASSIFIER(X).argmax(1)
    whole = attacks()[name](defense(), X, y, LINF, noise(5))
    for i in range(5):
        alone = attacks()[name](defense(), X[i : i + 1], y[i : i + 1], LINF, noise(5).rows([i], [0]))
        assert torch.equal(alone.x_adv[0], whole.x_adv[i])
        assert alone.verdict is None or alone.verdict[0] == whole.verdict[i]
        assert {k: v[0] for k, v in alone.log.items()} == {k: v[i] for k, v in whole.log.items()}


@pytest.mark.parametrize("votes", [1, 2])
def test_one_draw_without_a_past_is_the_plain_gradient_grafted_or_not(votes):
    y = CLASSIFIER(X).argmax(1)
    settings = {"toward": "shared", "lam": 5.0, "rounds": 3, "alpha": 0.5}
    plain = defense(votes=votes).loss_grad(X, y, "margin", noise(5))
    selective = hammer.Selective(defense(votes=votes), LINF, graft=False, **settings)
    found = selective.loss_grad(X, y, "margin", noise(5))
    for key in ("loss", "grad", "logits"):
        torch.testing.assert_close(getattr(found, key), getattr(plain, key), rtol=1e-5, atol=1e-9)
    if votes == 1:  # of several, each has a cotangent of its own, and a graft their mean
        grafted = hammer.Selective(defense(), LINF, graft=True, **settings).loss_grad(X, y, "margin", noise(5))
        torch.testing.assert_close(grafted.grad, plain.grad, rtol=1e-5, atol=1e-9)


def test_a_pulled_cotangent_is_the_product_with_the_jacobian():
    d = defense(rows=3)
    v = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    x = X.clone().requires_grad_()
    p = d.purifier
    state = p.start(x, noise(5))
    for k in range(p.n):
        state = p.step(k, state, noise(5))
    expected = torch.autograd.grad((p.finish(state) * v).sum(), x)[0]
    assert relative(d.pull(X, noise(5), v), expected) < 1e-5
    assert torch.equal(d.using(BPDA).pull(X, noise(5), v), v)


def test_draws_that_one_step_breaks_together_outweigh_one_that_pulls_the_other_way():
    """Three draws near the boundary along +e, one far behind it along -e: the mean of the gradients is the outlier's, E and M's is not."""
    losses = torch.tensor([-0.05, -0.05, -0.05, -9.0])
    e = torch.ones(1, 1, 2)
    grads = torch.stack([e, e, e, -20 * e])
    assert grads.mean(0).max() < 0
    selective = hammer.Selective(defense(), LINF, graft=False, toward="shared", lam=5.0, rounds=5, alpha=0.5)
    chosen, r = selective.select(losses, grads)
    assert chosen in (0, 1, 2)
    assert torch.allclose(r, e, atol=1e-6)
    # Those that are still right, in its place: the outlier is, and most of all.
    robust = hammer.Selective(defense(), LINF, graft=False, toward="robust", lam=5.0, rounds=1, alpha=0.5)
    assert robust.select(losses, grads)[1].max() < 0


def test_diffattacks_gradient_is_autograds_of_the_loss_and_the_deviation():
    d, y, eot = defense(), CLASSIFIER(X).argmax(1), 2
    found = diffattack.Deviated(d, 3.0, 2).loss_grad(X, y, "ce", noise(5), eot=eot)
    plain = d.loss_grad(X, y, "ce", noise(5), eot=eot)
    assert torch.equal(found.loss, plain.loss)
    x, p, total = X.clone().requires_grad_(), d.purifier, torch.zeros(5)
    for draw in range(eot):
        rows = noise(5).rows(range(5), [draw] * 5)
        state, apart = p.start(x, rows), torch.zeros(5)
        for k in range(p.n):
            state = p.step(k, state, rows)
            if k + 1 in (2, 3):
                t = 1 - p.times[k + 1]
                std = SCORE.std(t)
                way = (1 - std**2) ** 0.5 * (2 * x - 1) + std * rows.normal(-1, x)
                apart = apart + 3.0 * (state - way).square().flatten(1).mean(1) / 2
        total = total + (LOSSES["ce"](CLASSIFIER(p.finish(state)), y) + apart) / eot
    assert relative(found.grad, torch.autograd.grad(total.sum(), x)[0]) < 1e-4
    assert relative(found.grad, plain.grad) > 0.01


@pytest.mark.parametrize("name", ["diffpure", "diffpure-ode", "diffpure-ddpm"])
def test_a_purification_starts_where_the_forward_diffusion_arrives(name):
    p = make(name, score=SCORE, classifier=CLASSIFIER, t=0.1)
    torch.testing.assert_close(
        p.diffused(0, X, noise(5)), p.start(X, noise(5)), rtol=0, atol=1e-2
    )  # of the discrete schedule and the continuous one
    torch.testing.assert_close(p.diffused(p.n, X, noise(5)), 2 * X - 1, rtol=0, atol=1e-2)


# -------------------------------------------------------------------------------------------------------------------- the plan


def jobs(*attacks, defenses=("coup:steps=2",), **given):
    given = {"threats": ("Linf:0.2",)} | given
    return plan.build(
        plan.Request(dataset="digits", defenses=defenses, attacks=attacks, images=4, evals=1, **given)
    ).jobs


@pytest.mark.parametrize(
    ("attack", "given", "says"),
    [
        ("cascade:attacks=[(cascade)]", {}, "made of attacks itself"),
        ("cascade:attacks=[(transfer:from=(none))]", {}, "images of another defense"),
        ("cascade:attacks=[given]", {}, "here already"),
        ("cascade:attacks=[(null)]", {}, "is a control"),
        ("cascade:attacks=[(pgd-eot),(noise)]", {}, "is a control"),
        ("cascade:attacks=[autoattack-rand]", {}, "draws for a batch"),
        ("cascade:attacks=[nonesuch]", {}, "unknown attack"),
        ("cascade:attacks=[(pgd-eot:stepz=2)]", {}, "unknown parameter"),
        ("cascade:attacks=[(pgd-eot:rel_step=0)]", {}, "rel_step"),
        ("cascade:attacks=pgd-eot", {}, "is no list"),
        ("cascade:attacks=[]", {}, "it needs len(attacks) >= 1"),
        ("cascade:select=0", {}, "not possible"),
        ("cascade", {"threats": ("StAdv:0.05",)}, "cannot have `transfer-pgd` inside"),
        ("cascade:attacks=[diffattack]", {"grads": ("bpda",)}, "cannot use the gradient `bpda`"),
        ("cascade:attacks=[diffattack]", {"defenses": ("gaussian",)}, "no forward diffusion"),
        ("diffattack", {"defenses": ("gaussian",)}, "no forward diffusion"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(attack, given, says):
    with pytest.raises(UserError) as error:
        jobs(attack, **given)
    assert says in error.value.message


def test_a_cell_says_of_what_it_is_made_and_is_one_however_it_is_written():
    [one] = jobs("cascade:attacks=[transfer-pgd,(pgd-eot:steps=15)],select=5")
    [two] = jobs("cascade:attacks=[(transfer-pgd),pgd-eot]")
    [other] = jobs("cascade:attacks=[(transfer-pgd),(pgd-eot:steps=16)]")
    assert one.cell.id == two.cell.id != other.cell.id
    assert str(two.cell.attack) == "cascade:attacks=[transfer-pgd,pgd-eot]"
    said = two.cell.data()["parts"]["attack"]
    assert said["values"]["attacks"] == ["transfer-pgd", "pgd-eot"]
    assert [inner["values"]["steps"] for inner in said["inner"]] == [15, 15]
    # A version that is raised inside is another cell.
    first, second = two.cell.attack.inner
    raised = dataclasses.replace(two.cell.attack, inner=(first, dataclasses.replace(second, version=9)))
    assert dataclasses.replace(two.cell, attack=raised).id != two.cell.id
    assert [str(job.cell.gradient) for job in jobs("cascade:attacks=[transfer-pgd]", "cascade:attacks=[bpda-eot]")] == [
        "-",
        "bpda",
    ]
    assert tasks.task_size(one.cell, 64) == 64


def test_records_are_the_same_whatever_the_rows_of_a_task_hold(tmp_path, monkeypatch):
    """And a cascade never costs more than its plan says."""
    from purebench.running import cost

    attack = "cascade:attacks=[(pgd-eot:steps=2,eot=2),(bpda-eot:steps=2,eot=2)],select=2"
    lines = {}
    for size in (1, 3, 7):
        monkeypatch.setattr(tasks, "task_size", lambda cell, rows, size=size: size)
        request = plan.Request(
            dataset="digits", defenses=("one-shot",), attacks=(attack,), threats=("Linf:0.2",), images=7, evals=2
        )
        made, out = plan.build(request), tmp_path / str(size)
        outcome = runner.run(made, runner.Settings(out, device="cpu", rows=16), progress.Reporter())
        assert not outcome.failed
        [folder] = [path.parent for path in out.glob("*/cell.json")]
        lines[size] = (folder / records.IMAGES).read_bytes() + (folder / records.ADVERSARIAL).read_bytes()
        log = records.load(folder)
    assert lines[1] == lines[3] == lines[7]
    assert {line["verdict_is"] for line in log.images} == {"cascade"}
    most = cost.attack(made.jobs[0].cell, made.jobs[0].shape)
    spent = [line["nfe"] for line in log.images]
    assert all(f <= most[0] and b <= most[1] for f, b in spent)
    assert most == (max(f for f, _ in spent), max(b for _, b in spent))
