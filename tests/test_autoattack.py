"""AutoAttack in our loop is upstream's to the bit; our own APGD is its APGD to the bit, and knows no batch."""

import random

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack, autopgd_base, checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import nn

from purebench import embedded, registry
from purebench.attacks import apgd, autoattack, pgd, rand_fix, selection
from purebench.datasets import digits
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES
from purebench.errors import UserError
from purebench.spec import ThreatModel

ROWS = 32
BALLS = [
    ThreatModel("Linf", 0.085),
    ThreatModel("L2", 0.45),
]  # small enough that images survive, large enough that some do not


class Noisy:
    """A purifier that adds noise, so that predictions near the boundary are random."""

    n = 1

    def start(self, x, noise):
        return x

    def step(self, k, x, noise):
        return x + 0.2 * noise.normal(k, x)

    def finish(self, x):
        return x


@pytest.fixture(scope="module")
def classifier():
    return watch(embedded.load("digits-classifier"))


@pytest.fixture(scope="module")
def images():
    """The 10 of the first 40 digits on which the classifier is least sure."""
    x, y = (t[:40] for t in digits.test())
    logits = embedded.load("digits-classifier")(x)
    unsure = LOSSES["margin"](logits, y).argsort(descending=True)[:10]
    return x[unsure].clone(), y[unsure].clone()


def batch_noise(count, seed=0, name="autoattack", first=0):
    return Noise(seed, "attack", (name, first), torch.arange(count), torch.zeros(count, dtype=torch.int64))


@pytest.fixture
def no_checks(monkeypatch):
    monkeypatch.setattr(checks, "check_randomized", lambda *a, **k: None)
    monkeypatch.setattr(checks, "check_range_output", lambda *a, **k: 10)
    monkeypatch.setattr(checks, "check_dynamic", lambda *a, **k: None)
    monkeypatch.setattr(checks, "check_square_sr", lambda *a, **k: None)
    monkeypatch.setattr(autopgd_base, "check_zero_gradients", lambda *a, **k: None)


def upstream(attacks, defense, x, y, threat, seed, *, n_iter, eot=1, n_queries=0, n_target_classes=9, n_restarts=1):
    """(x_adv, robust) of pyautoattack's own loop on the same fixed rows. `attacks`: a version, or a list of attacks."""

    def model(at):
        return defense.logits(at, batch_noise(len(at)))

    which = {"version": attacks} if isinstance(attacks, str) else {"version": "custom", "attacks": attacks}
    theirs = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, device="cpu", **which)
    common = {"n_iter": n_iter, "eps": threat.eps, "norm": threat.norm, "seed": seed, "device": "cpu"}
    largest = {"use_largereps": threat.norm == "L1"}
    # What upstream sets by its version stays as it is: restarts of `plus`, and all that is different under L1.
    restarts = theirs.apgd.n_restarts if threat.norm == "L1" else n_restarts
    theirs.apgd = APGDAttack(model, n_restarts=restarts, eot_iter=eot, **common, **largest)
    assert theirs.apgd_targeted.use_largereps == (threat.norm == "L1")
    of_t = min(n_target_classes, theirs.apgd_targeted.n_target_classes)
    theirs.apgd_targeted = APGDAttack_targeted(model, n_target_classes=of_t, **common, **largest)
    if attacks == "plus":
        assert theirs.fab.n_restarts == 5
        theirs.fab.n_restarts = n_restarts
    theirs.fab.n_iter, theirs.fab.n_target_classes, theirs.square.n_queries = n_iter, n_target_classes, n_queries
    with torch.random.fork_rng(devices=()):
        x_adv, y_adv = theirs.run_standard_evaluation(x, y, batch_size=64)
    return x_adv, y_adv == y


STANDARD = {"n_iter": 10, "n_queries": 40, "n_target_classes": 3}
RAND = {"n_iter": 10, "eot": 2}
PLUS = {"n_iter": 3, "n_queries": 10, "n_target_classes": 3, "n_restarts": 2}


# ------------------------------------------------------------------------------------------------------ upstream's numbers


VERSIONS = {
    "standard": (autoattack.autoattack_standard, STANDARD),
    "rand": (autoattack.autoattack_rand, RAND),
    "plus": (autoattack.autoattack_plus, PLUS),
}


@pytest.mark.parametrize(
    ("version", "threat"),
    [*((version, threat) for version in VERSIONS for threat in BALLS), ("standard", ThreatModel("L1", 0.6))],
    ids=str,
)
def test_every_bit_is_upstreams_on_a_deterministic_defense(no_checks, classifier, images, version, threat):
    x, y = images[0], images[1].clone()
    y[3] = (y[3] + 1) % 10  # wrong from the start
    factory, options = VERSIONS[version]
    defense, noise = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x), seed=5)
    ours = factory(**options)(defense, x, y, threat, noise)
    x_adv, robust = upstream(version, defense, x, y, threat, autoattack.seed_of(noise), **options)
    assert torch.equal(ours.x_adv, x_adv)
    assert torch.equal(ours.verdict, robust)
    assert robust.any()
    assert not robust.all()
    assert torch.equal(ours.x_adv[robust], x[robust])  # upstream's semantics: what withstood comes back clean
    assert ours.log["broken_by"][3] == "clean"
    assert [b is None for b in ours.log["broken_by"]] == robust.tolist()


@pytest.mark.parametrize("threat", BALLS, ids=str)
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"])
def test_each_attack_alone_is_upstreams(no_checks, classifier, images, name, threat):
    """In the ensemble, the first attacks leave little to the others: here each gets all images, and breaks some of them."""
    x, y = images
    if name == "square":  # the weakest by far at so few queries
        threat = ThreatModel(threat.norm, 2.5 * threat.eps)
    defense, noise = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x))
    objects = autoattack._objects(name, **STANDARD)
    ours = autoattack._autoattack(objects, batch=64, classes=4, so_many="")(defense, x, y, threat, noise)
    x_adv, robust = upstream([name], defense, x, y, threat, autoattack.seed_of(noise), **STANDARD)
    assert torch.equal(ours.x_adv, x_adv)
    assert torch.equal(ours.verdict, robust)
    assert not robust.all()
    assert ours.log["broken_by"].count(name) == int((~robust).sum())


def test_one_survivor_and_none(no_checks, classifier, images):
    """Upstream squeezes index tensors: a single image, and a batch that is broken at once, are its corner cases."""
    x, y = images
    defense = Defense(Identity(), classifier, rows=ROWS)
    for first, threat in ((1, BALLS[0]), (10, ThreatModel("Linf", 0.9))):
        noise = batch_noise(first)
        ours = autoattack.autoattack_standard(**STANDARD)(defense, x[:first], y[:first], threat, noise)
        seed = autoattack.seed_of(noise)
        x_adv, robust = upstream("standard", defense, x[:first], y[:first], threat, seed, **STANDARD)
        assert torch.equal(ours.x_adv, x_adv)
        assert torch.equal(ours.verdict, robust)


# --------------------------------------------------------------------------------------------------------- a random defense


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def test_the_generators_start_from_seed_role_and_batch_alone():
    """Literals: a change of them changes every recorded number, and wants a new version in INFO."""
    seeds = [
        autoattack.seed_of(batch_noise(2, **k)) for k in ({}, {"seed": 1}, {"first": 64}, {"name": "autoattack-rand"})
    ]
    assert seeds == [1717688305, 1637505913, 870020310, 3137192068]
    assert autoattack.seed_of(batch_noise(5)) == seeds[0]


@pytest.mark.parametrize("factory", [autoattack.autoattack_rand, autoattack.autoattack_standard])
def test_a_random_defense_depends_on_the_seed_alone_and_leaves_the_generators_alone(classifier, images, factory):
    x, y = images
    options = {"n_iter": 3} | (
        {"eot": 3} if factory is autoattack.autoattack_rand else {"n_queries": 5, "n_target_classes": 2}
    )
    before = states()

    def attacked(**noise):
        defense = Defense(Noisy(), classifier, rows=ROWS)
        return factory(**options)(defense, x, y, BALLS[0], batch_noise(len(x), **noise))

    one = attacked()
    after = states()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    torch.manual_seed(99)  # the caller's generators do not matter
    again = attacked()
    assert torch.equal(one.x_adv, again.x_adv)
    assert torch.equal(one.verdict, again.verdict)
    assert one.log == again.log
    assert not torch.equal(one.x_adv, attacked(seed=1).x_adv)
    assert not torch.equal(one.x_adv, attacked(first=64).x_adv)
    assert BALLS[0].holds(one.x_adv, x).all()


def test_the_verdict_is_what_a_replay_of_the_deciding_forwards_says(classifier, images):
    x, y = images
    n_iter, ids = 4, torch.arange(len(images[0]))
    defense, noise = Defense(Noisy(), classifier, rows=ROWS), batch_noise(len(x))
    found = autoattack.autoattack_rand(n_iter=n_iter, eot=3)(defense, x, y, BALLS[0], noise)

    def right(x, stream, rows):
        fresh = Defense(Noisy(), classifier, rows=ROWS)
        return fresh.predict(x, stream.rows(rows, torch.zeros_like(rows))) == y[remaining]

    remaining, broken_by = ids, found.log["broken_by"]
    clean = right(x, noise.fork("clean", 0), ids)
    assert [b == "clean" for b in broken_by] == (~clean).tolist()
    remaining = ids[clean]
    for name in ("apgd-ce", "apgd-dlr"):
        rows = torch.arange(len(remaining))
        stream = noise.fork(name)
        # call 0 looks at the clean images, 1 .. n_iter + 1 are gradients, the next decides; none to fool: no gradients
        skipped = not right(x[remaining], stream.fork(0), rows).any()
        withstood = right(found.x_adv[remaining], stream.fork(1 if skipped else n_iter + 2), rows)
        fooled = torch.tensor([broken_by[i] == name for i in remaining])
        assert fooled.any()
        assert not (withstood & fooled).any()
        remaining = remaining[~fooled]
    assert remaining.tolist() == found.verdict.nonzero()[:, 0].tolist()


def test_the_folded_gradient_is_the_mean_and_the_loss_is_the_last_draws(classifier, images):
    """Upstream's loop over eot_iter, taken literally on the same draws, gives the same attack to the bit."""
    x, y = images
    threat, eot, n_iter = BALLS[1], 3, 5
    noise = batch_noise(len(x))
    ours = autoattack.autoattack_rand(n_iter=n_iter, eot=eot)(
        Defense(Noisy(), classifier, rows=ROWS), x, y, threat, noise
    )
    defense = Defense(Noisy(), classifier, rows=ROWS)
    robust, x_adv = torch.tensor([b != "clean" for b in ours.log["broken_by"]]), x.clone()

    class Sequential:
        """Hands out draw i of call c in the order in which upstream's loop asks for it."""

        def __init__(self, name):
            self.noise, self.call, self.draw = noise.fork(name), 0, 0

        def __call__(self, at):
            rows = torch.arange(len(at))
            logits = defense.logits(at, self.noise.fork(self.call).rows(rows, torch.full_like(rows, self.draw)))
            self.draw = self.draw + 1 if torch.is_grad_enabled() and at.requires_grad else eot
            if self.draw == eot:
                self.call, self.draw = self.call + 1, 0
            return logits

    for name in ("apgd-ce", "apgd-dlr"):
        model, left = Sequential(name), robust.nonzero()[:, 0]
        theirs = APGDAttack(
            model, n_iter=n_iter, eps=threat.eps, norm=threat.norm, seed=autoattack.seed_of(noise), eot_iter=eot,
            loss=name[5:], device="cpu", logger=autoattack._SILENT,
        )  # fmt: skip
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            found = theirs.perturb(x[left].clone(), y[left].clone())
            fooled = model(found).max(1)[1] != y[left]
        robust[left[fooled]] = False
        x_adv[left[fooled]] = found[fooled]
    assert torch.equal(ours.verdict, robust)
    assert torch.equal(ours.x_adv, x_adv)
    assert not robust.all()


# --------------------------------------------------------------------------------------------------------------- the costs


@pytest.mark.parametrize(
    "threat", [ThreatModel("Linf", 0.001), ThreatModel("Linf", 0.6)], ids=["all withstand", "all break"]
)
def test_network_calls_are_counted_per_image(classifier, images, threat):
    x, y = images[0], images[1].clone()
    y[7] = (y[7] + 1) % 10
    defense = Defense(Identity(), classifier, rows=ROWS)
    found = autoattack.autoattack_rand(n_iter=4, eot=3)(defense, x, y, threat, batch_noise(len(x)))
    runs = 2 if threat.eps < 0.1 else 1  # CE leaves all to DLR, or nothing
    gradients = 5 * 3  # n_iter + 1, eot
    expected = [(1 + runs * (2 + gradients), runs * gradients)] * len(x)
    expected[7] = (1, 0)
    assert found.log["nfe"] == expected
    assert defense.spent.close()[:2] == tuple(map(sum, zip(*expected, strict=True)))


def test_calls_of_the_standard_version_are_as_info_says_and_add_up(classifier, images):
    x, y = images
    defense = Defense(Identity(), classifier, rows=ROWS)
    attack, info = autoattack.autoattack_standard(**STANDARD), autoattack.INFO["autoattack-standard"]
    most = attack(defense, x, y, ThreatModel("Linf", 0.001), batch_noise(len(x))).log["nfe"]
    known = STANDARD | {"norm": "Linf"}
    gradients, forwards = (registry.expression(info[k], known) for k in ("gradient_calls", "forward_calls"))
    assert most == [(gradients + forwards, gradients)] * len(x)  # nothing breaks: the bound is met
    some = attack(defense, x, y, BALLS[0], batch_noise(len(x)))
    assert len(set(some.log["nfe"])) > 1  # images that break early cost less
    assert all(f <= gradients + forwards and b <= gradients for f, b in some.log["nfe"])
    assert defense.spent.close()[:2] == tuple(map(sum, zip(*most, *some.log["nfe"], strict=True)))


def test_square_charges_each_image_for_its_own_queries(classifier, images):
    x, y = images
    defense, objects = Defense(Identity(), classifier, rows=ROWS), autoattack._objects("square", n_iter=1, n_queries=40)
    attack = autoattack._autoattack(objects, batch=64, classes=4, so_many="")
    found = attack(defense, x, y, ThreatModel("Linf", 0.2), batch_noise(len(x)))
    forwards = torch.tensor(found.log["nfe"])[:, 0]
    assert (forwards[found.verdict] == 40 + 1 + 4).all()  # queries, the first point; two before, two after
    assert (forwards[~found.verdict] <= 40 + 1 + 4).all()
    assert len(forwards.unique()) > 3
    assert defense.spent.close()[0] == forwards.sum()
    assert defense.spent.total() == (0, 0, 0)


# -------------------------------------------------------------------------------------------------------------- the guards


class Head(nn.Module):
    """Logits of the first `classes` pixels, or whatever `spoil` makes of them."""

    def __init__(self, classes, spoil=lambda logits: logits):
        super().__init__()
        self.classes, self.spoil = classes, spoil

    def forward(self, x):
        return self.spoil(x.flatten(1)[:, 20 : 20 + self.classes] * 10)


def attack_head(head, attack, threat=BALLS[0], count=4):
    x = digits.test()[0][:count]
    y = (x.flatten(1)[:, 20 : 20 + head.classes]).argmax(1)
    return attack(Defense(Identity(), head, rows=16), x, y, threat, batch_noise(count))


@pytest.mark.parametrize(
    ("attack", "classes", "hint"),
    [
        (autoattack.autoattack_rand(n_iter=2, eot=1), 2, "apgd-ce"),
        (autoattack.autoattack_standard(n_iter=2, n_queries=2, n_target_classes=2), 3, "apgd-ce"),
        (autoattack.autoattack_standard(n_iter=2, n_queries=2), 5, "n_target_classes=4"),
        (apgd.apgd_dlr(steps=2, eot=1), 2, "apgd-ce"),
    ],
)
def test_too_few_classes_is_the_users_error(attack, classes, hint):
    with pytest.raises(UserError, match="classes") as told:
        attack_head(Head(classes), attack)
    assert hint in told.value.hint
    attack_head(Head(10), attack)


def test_logits_that_are_none_stop_the_attack():
    attack = autoattack.autoattack_rand(n_iter=2, eot=1)
    with pytest.raises(RuntimeError, match=r"shape \(4, classes\), got \(4, 10, 1\) in call 0 of `clean`"):
        attack_head(Head(10, lambda logits: logits[..., None]), attack)
    calls = []

    def later(logits):
        calls.append(1)
        return logits / (len(calls) < 4)

    found = attack_head(Head(10, later), attack)  # from its fourth call on, nothing is finite
    assert all("not finite" in why and "in call 2 of `apgd-ce`" in why for why in found.log["not_finite"])
    assert found.x_adv.isfinite().all()
    assert not found.verdict.any()  # NaN is a wrong answer, also where zeros in its place would have been right


def test_what_autoattack_does_not_do():
    with pytest.raises(UserError, match="StAdv"):
        attack_head(Head(10), autoattack.autoattack_rand(), ThreatModel("StAdv", 0.1))
    with pytest.raises(ValueError, match="at most 3"):
        attack_head(Head(10), autoattack.autoattack_rand(batch=3))
    for options in ({"batch": 0}, {"n_iter": 0}, {"eot": -1}):
        with pytest.raises(UserError, match="out of range"):
            autoattack.autoattack_rand(**options)


# ----------------------------------------------------------------------------------------------------------------- our APGD


L1 = ThreatModel("L1", 3.0)


@pytest.mark.parametrize("threat", [*BALLS, L1], ids=str)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [3, 40])
def test_our_apgd_is_pyautoattacks_on_a_deterministic_defense(classifier, images, threat, loss, steps):
    x, y = images
    defense, noise = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x))
    start = apgd.surface(x, threat, noise)
    ours, loss_best = apgd.ascend(defense, x, y, threat, noise, loss=LOSSES[loss], steps=steps, start=start)
    theirs = APGDAttack(
        lambda at: defense.logits(at, noise), n_iter=steps, eps=threat.eps, norm=threat.norm, loss=loss, device="cpu",
        logger=autoattack._SILENT,
    )  # fmt: skip
    theirs.init_hyperparam(x)
    x_best, _, their_loss, _ = theirs.attack_single_run(x, y, x_init=start)
    assert torch.equal(loss_best, their_loss)
    assert torch.equal(ours, x_best)
    assert threat.holds(apgd.inside(ours, x, threat), x).all()


@pytest.mark.parametrize("steps", [4, 40])
def test_our_apgd_under_l1_is_pyautoattacks_from_its_random_start(classifier, images, monkeypatch, steps):
    """Of a random start it takes a fifth of the gradient first; of a given one, as above, what that start's sparsity says."""
    x, y = images
    defense, noise = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x))
    ours, loss_best = apgd.ascend(defense, x, y, L1, noise, loss=LOSSES["ce"], steps=steps)
    theirs = APGDAttack(
        lambda at: defense.logits(at, noise),
        n_iter=steps,
        eps=L1.eps,
        norm="L1",
        device="cpu",
        logger=autoattack._SILENT,
    )
    theirs.init_hyperparam(x)
    monkeypatch.setattr(torch, "randn", lambda shape: noise.fork("start").normal(0, x))
    x_best, _, their_loss, _ = theirs.attack_single_run(x, y)
    assert torch.equal(loss_best, their_loss)
    assert torch.equal(ours, x_best)
    assert ((ours - x).abs().flatten(1).sum(1) > 0.99 * L1.eps).all()
    assert (ours != x).flatten(1).float().mean() < 0.7  # sparse


@pytest.mark.parametrize("threat", [*BALLS, L1], ids=str)
def test_targeted_apgd_is_pyautoattacks_towards_its_targets(classifier, images, threat):
    """Its k likeliest wrong classes in its order, one run towards each from the same start, and the highest of the losses."""
    x, y = images
    defense, noise, k = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x)), 3
    ours = apgd.apgd_targeted(steps=20, eot=1, n_target_classes=k)(defense, x, y, threat, noise).x_adv
    logits = defense.logits(x, noise)
    best, highest = x.clone(), torch.full((len(x),), -torch.inf)
    for number in range(k):
        theirs = APGDAttack_targeted(
            lambda at: defense.logits(at, noise), n_iter=20, eps=threat.eps, norm=threat.norm, device="cpu",
            logger=autoattack._SILENT,
        )  # fmt: skip
        theirs.init_hyperparam(x)
        theirs.y_target = logits.sort(dim=1)[1][:, -(number + 2)]
        assert (logits.argmax(1) == y).all()  # else its targets would hold the label
        start = apgd.surface(x, threat, noise.fork("target", number, "start"))
        patched = torch.randn
        if threat.norm == "L1":
            torch.randn = lambda shape, n=number: noise.fork("target", n, "start").normal(0, x)
            start = None
        try:
            x_best, _, loss, _ = theirs.attack_single_run(x, y, x_init=start)
        finally:
            torch.randn = patched
        best = torch.where((loss > highest).view(-1, 1, 1, 1), x_best, best)
        highest = highest.maximum(loss)
    assert torch.equal(ours, apgd.inside(best, x, threat))
    assert threat.holds(ours, x).all()
    assert (highest > 0).any()


def test_an_image_that_is_wrong_without_an_attack_is_no_target_of_itself(classifier, images):
    x, y = images
    defense, wrong = Defense(Identity(), classifier, rows=ROWS), (y + 1) % 10
    found = apgd.targets(defense, x, wrong, batch_noise(len(x)), eot=2)
    assert found.shape == (len(x), 9)
    assert not (found == wrong[:, None]).any()
    assert torch.equal(found[:, 0], defense.logits(x, batch_noise(len(x))).argmax(1))


def test_every_checkpoint_of_our_apgd_matters_to_the_equality(classifier, images):
    """The trajectories that the test above compares do halve their step: with rho = 0 fewer do, and the result differs."""
    x, y = images
    noise = batch_noise(len(x))

    def best(rho):
        defense = Defense(Identity(), classifier, rows=ROWS)
        return apgd.ascend(defense, x, y, BALLS[1], noise, loss=LOSSES["ce"], steps=40, rho=rho)[0]

    differ = (best(0.75) != best(0.0)).flatten(1).any(1)
    assert differ.all()


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_our_apgd_does_not_see_its_batch(classifier, images, threat):
    x, y = images
    noise = Noise(0, "attack", ("apgd-ce",), torch.arange(100, 110), torch.zeros(10, dtype=torch.int64))

    def attacked(order):
        defense = Defense(Noisy(), classifier, rows=ROWS)
        rows = noise.rows(noise.ids[order], noise.samples[order])
        return apgd.apgd_ce(steps=12, eot=3)(defense, x[order], y[order], threat, rows).x_adv

    together, reverse = attacked(torch.arange(10)), torch.arange(9, -1, -1)
    assert torch.equal(attacked(reverse), together[reverse])
    for i in (0, 4, 9):
        assert torch.equal(attacked(torch.tensor([i])), together[i : i + 1])
    assert threat.holds(together, x).all()


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_our_apgd_is_stronger_than_pgd_and_returns_its_best_point(classifier, images, threat):
    x, y = images
    noise = batch_noise(len(x))
    defense = Defense(Identity(), classifier, rows=ROWS)
    best, loss_best = apgd.ascend(defense, x, y, threat, noise, loss=LOSSES["ce"], steps=30)
    other = pgd.pgd_eot(steps=30, eot=1)(defense, x, y, threat, noise).x_adv

    def loss(at):
        return LOSSES["ce"](defense.logits(at, noise), y)

    assert torch.equal(loss(best), loss_best)
    assert (loss_best > loss(x) + 0.1).all()
    assert loss_best.mean() >= loss(other).mean()


def test_our_apgd_counts_what_info_says(classifier, images):
    x, y = images
    defense, options = Defense(Noisy(), classifier, rows=ROWS), {"steps": 5, "eot": 3}
    apgd.apgd_dlr(**options)(defense, x, y, BALLS[0], batch_noise(len(x)))
    calls = registry.expression(apgd.INFO["apgd-dlr"]["gradient_calls"], options) * len(x)
    assert defense.spent.close()[:2] == (calls, calls)


# ------------------------------------------------------------------------------------------------------- choosing by fresh draws


def test_fresh_draws_choose_among_the_best_points_and_the_last(classifier, images):
    """What `select=fresh` returns is the best of its ten points by draws that a replay makes again; at the defaults no bit changes."""
    x, y = images
    noise, options = batch_noise(len(x), name="apgd-ce"), {"steps": 12, "eot": 2}
    kept, points = apgd.Kept(x), []

    def look(i, x_adv, found):
        points.append(x_adv)
        kept.add(i, x_adv, found.loss)

    fresh = lambda: Defense(Noisy(), classifier, rows=ROWS)  # noqa: E731
    best, _ = apgd.ascend(fresh(), x, y, BALLS[0], noise, loss=LOSSES["ce"], **options, look=look)
    assert torch.equal(apgd.apgd_ce(**options)(fresh(), x, y, BALLS[0], noise).x_adv, best)
    found = apgd.apgd_ce(**options, select="fresh")(fresh(), x, y, BALLS[0], noise)

    def loss(at):
        logits = fresh().draws(at, selection.selecting(noise, "point"), 0, apgd.SELECT)
        return LOSSES["ce"](logits.flatten(0, 1), y.repeat_interleave(apgd.SELECT)).unflatten(0, (len(x), -1)).mean(1)

    losses = torch.stack([loss(at) for at in points])  # (iterates, images)
    iterates = torch.cat([kept.best[2].long().T, torch.arange(8, 13)[:, None].expand(-1, len(x))])
    assert (iterates[: apgd.KEPT].sort(0)[0].diff(dim=0) > 0).all()  # no point twice
    highest = losses.gather(0, iterates).amax(0)
    torch.testing.assert_close(loss(found.x_adv), highest)
    for image, iterate in enumerate(found.log["selected"]):
        assert torch.equal(found.x_adv[image], points[iterate][image])
    assert (found.x_adv != best).any()


def test_iterates_are_logged_as_fresh_draws_judge_them(classifier, images):
    x, y = images
    noise = batch_noise(len(x), name="apgd-ce")
    defense, points = Defense(Noisy(), classifier, rows=ROWS), []
    look = lambda i, x_adv, found: points.append(x_adv)  # noqa: E731
    options = {"steps": 4, "eot": 2}
    best, _ = apgd.ascend(defense, x, y, BALLS[0], noise, loss=LOSSES["ce"], **options, look=look)
    found = apgd.apgd_ce(**options, log="iterates", log_draws=3)(defense, x, y, BALLS[0], noise)
    assert torch.equal(found.x_adv, best)
    counts = [
        selection.correct(defense, at, y, selection.selecting(noise, "iterate", i), 3) for i, at in enumerate(points)
    ]
    assert torch.tensor(found.log["iterates"]).T.tolist() == [c.tolist() for c in counts]
    targeted = apgd.apgd_targeted(**options, n_target_classes=2, log="iterates", select="fresh")
    log = targeted(defense, x, y, BALLS[0], noise).log
    assert {len(row) for row in log["iterates"]} == {2 * 5}
    assert all(target != label for (target, _), label in zip(log["selected"], y.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------- rand, as it should be


@pytest.mark.parametrize("threat", BALLS, ids=str)
def test_on_a_deterministic_defense_the_fewest_right_is_upstreams_failing_iterate(classifier, images, threat):
    """With one draw and the same start: the image that AutoAttack would return, and its verdict."""
    x, y = images
    defense, noise = Defense(Identity(), classifier, rows=ROWS), batch_noise(len(x))
    start = apgd.surface(x, threat, noise.fork("start"))
    found = rand_fix._Found(defense, x, y, noise, 1, drop=False)
    found.begin("apgd-ce", 0)
    apgd.ascend(defense, x, y, threat, noise, loss=LOSSES["ce"], steps=15, look=found.look)
    theirs = APGDAttack(
        lambda at: defense.logits(at, noise), n_iter=15, eps=threat.eps, norm=threat.norm, device="cpu",
        logger=autoattack._SILENT,
    )  # fmt: skip
    theirs.init_hyperparam(x)
    _, acc, _, x_best_adv = theirs.attack_single_run(x, y, x_init=start)
    assert torch.equal(found.fewest_right.bool(), acc)
    assert torch.equal(found.fewest[~acc], x_best_adv[~acc])
    assert acc.any()
    assert not acc.all()


def fixed(classifier, x, y, noise, threat=BALLS[0], **options):
    defense = Defense(Noisy(), classifier, rows=ROWS)
    attack = rand_fix.autoattack_rand_fix(n_iter=8, eot=3, evals=6, **options)
    return attack(defense, x, y, threat, noise), defense


def test_rand_fix_attacks_every_image_and_keeps_what_fresh_draws_get_right_least(classifier, images):
    x, y = images
    noise = batch_noise(len(x), name="autoattack-rand-fix")
    found, defense = fixed(classifier, x, y, noise)
    assert (found.x_adv != x).flatten(1).any(1).all()
    assert BALLS[0].holds(found.x_adv, x).all()
    assert found.verdict is None
    seen = selection.correct(defense, found.x_adv, y, selection.selecting(noise, "point"), 6)
    assert seen.tolist() == found.log["select_right"]
    for name, loss in rand_fix.ATTACKS.items():
        best, _ = apgd.ascend(defense, x, y, BALLS[0], noise.fork(name), loss=loss, steps=8, eot=3)
        assert (seen <= selection.correct(defense, best, y, selection.selecting(noise, "point"), 6)).all()
        for i in [i for i, by in enumerate(found.log["selected"]) if by == name]:
            assert torch.equal(found.x_adv[i], best[i])
    assert {by.partition(":")[0] for by in found.log["selected"]} <= rand_fix.ATTACKS.keys()


def test_images_that_leave_change_no_bit_of_the_others_and_save_their_calls(classifier, images):
    x, y = images
    noise = Noise(0, "attack", ("autoattack-rand-fix",), torch.arange(100, 110), torch.zeros(10, dtype=torch.int64))
    ball = ThreatModel("Linf", 0.11)
    stay, all_of_them = fixed(classifier, x, y, noise, ball)
    found, defense = fixed(classifier, x, y, noise, ball, drop=True)
    left = torch.tensor(found.log["left_at"])
    assert (left >= 0).any()
    assert (left < 0).any()
    for i in (left < 0).nonzero()[:, 0].tolist():
        assert torch.equal(found.x_adv[i], stay.x_adv[i])
        assert found.log["selected"][i] == stay.log["selected"][i]
    assert all(n == 0 for n, at in zip(found.log["select_right"], left.tolist(), strict=True) if at >= 0)
    for i in (0, 4, 9):  # and of each the same alone
        alone, _ = fixed(classifier, x[[i]], y[[i]], noise.rows(noise.ids[[i]], noise.samples[[i]]), ball, drop=True)
        assert torch.equal(alone.x_adv[0], found.x_adv[i])
        assert alone.log == {word: [values[i]] for word, values in found.log.items()}
    spent, full = defense.spent.close(), all_of_them.spent.close()
    assert tuple(map(sum, zip(*found.log["nfe"], strict=True))) == spent[:2]
    assert spent[1] < full[1]
    gradients, forwards = (
        registry.expression(rand_fix.INFO["autoattack-rand-fix"][k], {"n_iter": 8, "eot": 3, "evals": 6, "drop": False})
        for k in ("gradient_calls", "forward_calls")
    )
    assert full[:2] == (len(x) * (gradients + forwards), len(x) * gradients)
