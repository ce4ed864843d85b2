"""Attacks that ask for no gradient, and those on flows and pixels: held to published arrays, to upstream's object, and to what each must
not do (a lucky draw accepted, an image moved by its batch mates, a number below the exact gradient's on a smooth defense)."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import nn

import purebench
from purebench import embedded, registry
from purebench.attacks import square, stadv
from purebench.attacks.nattack import nattack
from purebench.attacks.pixels import salt_and_pepper
from purebench.attacks.queries import Queries
from purebench.attacks.selection import selecting
from purebench.attacks.spsa import _cross_entropy as cross_entropy
from purebench.attacks.spsa import estimate
from purebench.datasets import digits as dataset
from purebench.engine import flows
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid
from purebench.purifiers.gaussian import Gaussian
from purebench.report.metrics import wilson
from purebench.spec import ThreatModel, parse

torch.set_num_threads(1)
EPS = 8 / 255


def noise(ids=range(4)):
    return Noise(0, "attack", ("it",), list(ids), [0] * len(list(ids)))


class Linear(nn.Module):
    """W flatten((x - mean) / std) + b, in float64 where it is asked so."""

    def __init__(self, w, b, mean=0.0, std=1.0):
        super().__init__()
        self.w, self.b, self.mean, self.std = w, b, mean, std

    def forward(self, x):
        return ((x - self.mean) / self.std).flatten(1) @ self.w.T.to(x) + self.b.to(x)


# ---------------------------------------------------------------------------------------------------------------------- SPSA


def test_cross_entropy_does_not_vanish_where_the_classifier_is_sure():
    logits, y = torch.tensor([[0.0, 60.0, 1.0], [3.0, 1.0, 2.0]]), torch.tensor([1, 2])
    found = cross_entropy(logits, y)
    assert found[0].item() == pytest.approx(3.2562e-26, rel=1e-3)
    assert found[1].item() == pytest.approx(nn.functional.cross_entropy(logits[1:], y[1:]).item(), rel=1e-6)


def test_spsa_of_a_linear_defense_is_its_gradient_on_the_span_of_its_signs():
    """E[v v'] = 1: with as many signs as there are, the estimate's cosine with the gradient is near sqrt(n / (n + d))."""
    w = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    defense = Defense(Identity(), Linear(w, torch.zeros(2)))
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    found = estimate(
        Queries(defense, 2), x, y, noise(range(2)), noise(range(2)).fork("s"), lambda z, y: z[:, 1] - z[:, 0], 512, 0.01
    )
    cosine = nn.functional.cosine_similarity(found.flatten(1), (w[1] - w[0])[None])
    assert (cosine > 0.95).all()
    # Signs are the image's own.
    assert not torch.equal(found[0], found[1])


# -------------------------------------------------------------------------------------------------------------------- Square


class Upstream(SquareAttack):
    """Upstream's, on one image, with our draws in the place of its own: every choice and every bit of its loop is still its own."""

    def __init__(self, drawn, model, **settings):
        super().__init__(model, **settings)
        self.drawn, self.at = drawn, []

    def random_choice(self, shape):
        return self.next("sign").view(shape)

    def random_int(self, low=0, high=1, shape=(1,)):
        return self.next("place", high).view(1)

    def eta(self, s):
        # Upstream turns a bump by transposing what we build upright.
        bump = square._bumps(s, torch.tensor([False]), torch.zeros(1))[0, 0]
        return bump.T if self.next("turn") else bump

    def next(self, what, room=0):
        return self.drawn(what, room)


def ours_for_upstream(x, norm, p_init):
    """What our attack draws for one image, in the order in which upstream asks for it."""
    stream, c = noise(range(1)), x.shape[1]
    start = stream.fork("start")
    if norm == "Linf":
        yield start.sign(0, x[:, :, :1])
    else:
        s = min(x.shape[2:]) // 5
        count = (x.shape[2] // s) * (x.shape[3] // s)
        turned, sign = start.uniform(0, x.new_empty(1, count)) > 0.5, start.sign(1, x.new_empty(1, count, c, 1, 1))
        for k in range(count):
            yield turned[0, k]
            yield sign[:, k]
    i = 0
    while True:
        drawn = stream.fork("square", i)
        sign = drawn.sign(1, x.new_empty(1, c, 1, 1))
        u = drawn.uniform(0, x.new_empty(1, 2 if norm == "Linf" else 5))[0]
        yield from u[:2]
        if norm == "Linf":
            yield sign
        else:
            yield from u[2:4]
            yield u[4] > 0.5
            yield sign
        i += 1


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 1.0)])
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_on_a_deterministic_defense_square_is_upstreams(norm, eps, loss):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 10, 10, generator=generator)
    classifier = Linear(torch.randn(5, 300, generator=generator) / 8, torch.zeros(5))
    y = classifier(x).argmax(1)
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        source = ours_for_upstream(image, norm, 0.8)

        def drawn(what, room, source=source):
            value = next(source)
            return (value * (room + 1)).long() if what == "place" else value

        theirs = Upstream(
            drawn, classifier, norm=norm, n_queries=120, eps=eps, p_init=0.8, loss=loss, resc_schedule=False
        )
        theirs.init_hyperparam(image)
        _, expected = theirs.attack_single_run(image, label)
        attack = square.square_eot(queries=120, eot=1, loss=loss)
        found = attack(
            Defense(Identity(), classifier, rows=1), image, label, ThreatModel(norm, eps), noise(range(1))
        ).x_adv
        if norm == "Linf":
            assert torch.equal(found, expected)
        else:  # sums over windows, and ours ends with a projection
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert not torch.equal(found, image)


def test_the_schedule_of_squares_and_their_bumps_are_upstreams():
    upstream = SquareAttack(None, p_init=0.8, norm="L2", resc_schedule=False, device="cpu")
    for i in range(0, 10_000):
        assert square.share(i, 0.8) == upstream.p_selection(i), i
    torch.manual_seed(0)
    for s in (1, 2, 3, 4, 5, 8, 9):
        ours = square._bumps(s, torch.tensor([False, True]), torch.zeros(1))[:, 0]
        seen = [upstream.eta(s) for _ in range(20)]
        assert all(any(torch.allclose(a, b, atol=1e-6) for b in ours) for a in seen), s
        assert all(any(torch.allclose(a, b, atol=1e-6) for a in seen) for b in ours), s


def test_where_the_image_makes_no_difference_nothing_is_accepted():
    """Logits that are noise alone: the rule that takes what looks better on other draws would move at every other candidate."""

    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 1e4

    class Forgetful(Gaussian):
        def start(self, x, noise):
            return noise.normal(-1, x)

    x, y = torch.full((3, 1, 4, 4), 0.5), torch.tensor([0, 1, 2])
    for threat in (ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)):
        begin = square._stripes if threat.norm == "Linf" else square._tiles
        found = square.square_eot(queries=30, eot=3)(Defense(Forgetful(0.1), Noisy()), x, y, threat, noise(range(3)))
        assert torch.equal(found.x_adv, threat.project(begin(x, threat, noise(range(3)).fork("start")), x))


def test_what_accepts_a_candidate_is_drawn_from_no_stream_of_the_attack():
    ours, its = selecting(noise(), 3), noise().fork(3)
    assert (ours.role, ours.path, its.role) == ("select", ("it", 3), "attack")
    assert not torch.equal(ours.normal(0, torch.zeros(4, 5)), its.normal(0, torch.zeros(4, 5)))


# ----------------------------------------------------------------------------------------------------------------- N-attack


def test_nattack_on_a_linear_defense_follows_its_gradient():
    w = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    classifier = Linear(w, -w.sum(1) / 2)
    x = 0.5 + 0.1 * (torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5)
    y = classifier(x).argmax(1)
    eps = 0.1
    # What no point of the ball can turn stays; what six tenths of the ball turn must fall.
    ahead = (classifier(x).gather(1, y[:, None]) - classifier(x).gather(1, 1 - y[:, None]))[:, 0]
    falls = ahead < 0.6 * eps * (w[0] - w[1]).abs().sum()
    found = nattack(steps=60, population=50, eot=1)(
        Defense(Identity(), classifier), x, y, ThreatModel("Linf", eps), noise()
    )
    assert falls.any()
    assert (classifier(found.x_adv).argmax(1) != y)[falls].all()
    cosine = nn.functional.cosine_similarity((found.x_adv - x).flatten(1), ((w[1] - w[0]) * (1 - 2 * y)[:, None]))
    assert (cosine > 0.4).all()


# ------------------------------------------------------------------------------------------------------------------- StAdv


def test_the_roughness_of_a_flow():
    flat, slope = torch.full((1, 2, 5, 7), 0.3), torch.zeros(1, 2, 5, 7)
    slope[0, 0] = 0.01 * torch.arange(7)
    assert stadv.roughness(flat).item() < 2e-3
    # 5 rows of 6 pairs that differ by 0.01, from both ends.
    assert stadv.roughness(slope).item() == pytest.approx(2 * 30 * 0.01, abs=2e-3)


def digits(count):
    return tuple(part[:count] for part in dataset.test()), watch(embedded.load("digits-classifier"))


def right(defense, x_adv, y, draws=10):
    found = defense.draws(x_adv, Noise(0, "judge", (), range(len(y)), [0] * len(y)), 0, draws)
    return (found.argmax(2) == y[:, None]).float().mean().item()


def test_stadv_keeps_to_its_bound_and_more_room_is_more_success():
    (x, y), classifier = digits(12)
    defense, accuracy = Defense(Identity(), classifier), []
    for bound in (0.01, 0.03, 0.1):
        found = stadv.stadv(steps=15, eot=1)(defense, x, y, ThreatModel("StAdv", bound), noise(range(12)))
        assert flows.holds(found.x_adv, x, found.flow, bound).all()
        accuracy.append(right(defense, found.x_adv, y, 1))
    print("StAdv at 0.01, 0.03, 0.1:", accuracy)
    assert accuracy[0] > accuracy[-1]
    assert accuracy == sorted(accuracy, reverse=True)


def test_stadv_keeps_the_best_of_its_iterates():
    (x, y), classifier = digits(6)
    for keep in ("best", "last"):
        losses = []

        class Seen(Defense):
            def loss_grad(self, x, *rest, losses=losses, **options):
                found = super().loss_grad(x, *rest, **options)
                losses.append(found.loss)
                return found

        attack = stadv.stadv(steps=8, eot=2, smoothness=0, rel_step=1.5, keep=keep)
        found = attack(Seen(Identity(), classifier), x, y, ThreatModel("StAdv", 0.1), noise(range(6)))
        margin = Defense(Identity(), classifier).loss_grad(found.x_adv, y, "margin", noise(range(6))).loss
        if keep == "best":
            torch.testing.assert_close(margin, torch.stack(losses).amax(0), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------ pixels


def test_salt_and_pepper_takes_so_many_pixels_whole():
    x = 0.2 + 0.6 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for amount, count in ((0.25, 16), (1.0, 64), (0.001, 1)):
        found = salt_and_pepper(amount=amount)(None, x, None, ThreatModel("box", 1.0), noise(range(5))).x_adv
        hit = (found != x).all(1)
        assert hit.flatten(1).sum(1).tolist() == [count] * 5
        assert torch.equal((found != x).any(1), hit)
        values = found.movedim(1, -1)[hit]
        assert ((values == 0).all(1) | (values == 1).all(1)).all()
    assert 0.3 < values.mean() < 0.7 or count == 1


def test_what_is_refused_at_planning():
    def planned(attack, threat="Linf:8/255"):
        return grid.build(
            grid.Request(defenses=("none",), attacks=(attack,), threats=(threat,), dataset="digits", images=2)
        )

    assert [str(job.cell.threat) for job in planned("salt-and-pepper").jobs] == ["box"]
    for attack, threat, why in (
        ("salt-and-pepper:amount=2", "box", "amount"),
        ("salt-and-pepper:amount=0", "box", "amount"),
        ("stadv", "Linf:8/255", "StAdv"),
        ("spsa", "StAdv:0.05", "StAdv"),
        ("spsa:variant=code", "Linf:8/255", "variant"),
        ("spsa:delta=0", "Linf:8/255", "delta"),
        ("square-eot", "L1:12", "L1"),
        ("square-eot:p_init=0", "Linf:8/255", "p_init"),
        ("nattack:population=1", "Linf:8/255", "population"),
    ):
        with pytest.raises(UserError, match=why):
            planned(attack, threat)


# --------------------------------------------------------------------------------------------------------------------- all

ALL = {
    "spsa:samples=20,steps=3": ThreatModel("Linf", 0.15),
    "spsa:samples=20,steps=3,variant=adam": ThreatModel("L2", 1.0),
    "square-eot:queries=20,eot=3": ThreatModel("Linf", 0.15),
    "square-eot:queries=15,eot=4": ThreatModel("L2", 1.0),
    "nattack:population=20,steps=12,eot=3": ThreatModel("Linf", 0.15),
    "stadv:steps=3,eot=3": ThreatModel("StAdv", 0.05),
    "salt-and-pepper": ThreatModel("box", 1.0),
}


@pytest.mark.parametrize("text", ALL)
def test_an_image_depends_on_no_batch_mate_and_costs_what_it_asked(text):
    (x, y), classifier = digits(5)
    part, threat = parse(text, "attack"), ALL[text]

    def attacked(places):
        defense = Defense(Gaussian(0.3), classifier, rows=16)
        attack = registry.factory("attack", part.name)(**dict(part.parameters))
        return attack(defense, x[places], y[places], threat, noise(places)), defense.spent.total()

    together, spent = attacked([0, 1, 2, 3, 4])
    alone = [attacked([i])[0] for i in (1, 4)]
    swapped, _ = attacked([4, 1])
    assert threat.holds(together.x_adv, x).all()
    for i, one in zip((1, 4), alone, strict=True):
        assert torch.equal(one.x_adv[0], together.x_adv[i])
        assert torch.equal(one.x_adv[0], swapped.x_adv[(4, 1).index(i)])
        if "nfe" in one.log:
            assert one.log["nfe"][0] == together.log["nfe"][i]
    if "nfe" in together.log:
        assert (sum(f for f, _ in together.log["nfe"]), sum(b for _, b in together.log["nfe"])) == spent[:2]


def test_on_a_smooth_defense_no_search_beats_the_exact_gradient():
    """By more than a Wilson interval: else the gradient is a masked one. benchmarks/sanity_attacks.py shows it on 32 images."""
    (x, y), classifier = digits(10)
    threat, accuracy = ThreatModel("Linf", 0.15), {}
    for text in ("pgd-eot:steps=15,eot=4", "spsa:samples=48,steps=12", "square-eot:queries=150,eot=3"):
        part, defense = parse(text, "attack"), Defense(Gaussian(0.3), classifier)
        found = registry.factory("attack", part.name)(**dict(part.parameters))(defense, x, y, threat, noise(range(10)))
        accuracy[part.name] = right(defense, found.x_adv, y)
    print(accuracy)
    low = wilson(accuracy["pgd-eot"], 10)[0]
    assert min(accuracy["spsa"], accuracy["square-eot"]) >= low
    assert max(accuracy.values()) < right(Defense(Gaussian(0.3), classifier), x, y)


def test_a_run_records_what_each_image_cost(tmp_path):
    options = {"dataset": "digits", "defense": "none", "images": 2, "evals": 1, "out": tmp_path}
    purebench.run(attack=["spsa:samples=4,steps=2", "salt-and-pepper"], threat="Linf:0.1", **options)
    found = purebench.load(tmp_path)
    assert found.groupby("attack").nfe_forward.max().to_dict() == {"spsa:samples=4,steps=2": 16, "salt-and-pepper": 0}
    assert set(found.groupby("attack").threat.first()) == {"Linf:0.1", "box"}
