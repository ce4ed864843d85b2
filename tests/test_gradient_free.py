"""Attacks that ask for no gradient, and those on flows and pixels: held to published arrays, to upstream's object, and to what each must
not do (a lucky draw accepted, an image moved by its batch mates, a number below the exact gradient's on a smooth defense)."""

from __future__ import annotations

import pytest
import torch
from helpers import recorded
from pyautoattack.square import SquareAttack
from torch import nn

import purebench
from purebench import embedded, registry
from purebench.attacks import square, stadv
from purebench.attacks.nattack import nattack
from purebench.attacks.pixels import salt_and_pepper
from purebench.attacks.queries import Queries, selection
from purebench.attacks.spsa import estimate, spsa
from purebench.attacks.spsa import _cross_entropy as cross_entropy
from purebench.engine import flows
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid
from purebench.purifiers.gaussian import Gaussian
from purebench.spec import ThreatModel

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


class Recorded(Noise):
    """The signs of iteration i of the recorded run, whatever image."""

    v: torch.Tensor

    def sign(self, k, like, draw=0, shared=False):
        return self.v[self.path[-1], k].expand_as(like).to(like)


def published_spsa(monkeypatch=None):
    z = recorded("adp/c_spsa.npz")
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
    Recorded.v = z["v"]
    x, y = z["x"], z["y"].long()
    return z, x, y, Linear(z["W"], z["b"], mean, std), Recorded(0, "attack", (), range(4), [0] * 4)


def test_published_spsa_as_gdmp_ran_it():
    z, x, y, classifier, replay = published_spsa()
    defense = Defense(Identity(), classifier)
    for i, expected in enumerate(z["advertorch/x_after_iter"]):
        attack = spsa(variant="adam", samples=16, delta=0.01, steps=i + 1, rel_step=0.01 / EPS)
        found = attack(defense, x, y, ThreatModel("Linf", EPS), replay).x_adv
        print(f"spsa advertorch, iteration {i + 1}: {(found - expected).abs().max():.1e}")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_published_spsa_of_adps_formula():
    z, x, y, classifier, replay = published_spsa()
    defense = Defense(Identity(), classifier)
    doubled = x.double()
    grad = estimate(
        Queries(defense, 4), doubled, y, replay.fork("iterate", 0), replay.fork("signs", 0), cross_entropy, 16, 0.01
    )
    print(f"spsa formula: gradient {(grad - z['paper_formula/grad']).abs().max():.1e}")
    torch.testing.assert_close(grad, z["paper_formula/grad"], rtol=0, atol=1e-6)
    attack = spsa(samples=16, delta=0.01, steps=1, rel_step=2 / 8)
    found = attack(defense, doubled, y, ThreatModel("Linf", EPS), replay).x_adv
    torch.testing.assert_close(found, z["paper_formula/x_next"], rtol=0, atol=1e-6)


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
