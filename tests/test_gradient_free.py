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
