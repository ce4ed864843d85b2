"""Gaussian smoothing alone (Cohen, Rosenfeld and Kolter 2019, ICML): the classifier decides on the noisy image."""

from __future__ import annotations

from torch import Tensor

from purebench.engine.identity import Identity
from purebench.engine.noise import Noise
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

INFO = {
    "gaussian": {
        "summary": "add Gaussian noise, nothing else",
        "formula": "x + sigma / 2 eps",
        "calls": "none",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": [],
        "requires": ["sigma > 0"],
        "smoothing": "sigma / 2",
        "paper": {"sigma": "0.24, 0.5, 1 and 2 (0.12, 0.25, 0.5 and 1 on the [0,1] scale)", "votes": "100 to 100000"},
        "differences": "Cohen et al. train the classifier on noisy images; take one that was, or expect little",
        "cite": "cohen2019certified",
    }
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "gaussian": {},
}


class Gaussian(Identity):
    """n = 0: the noise is the whole of it. State: x (B,C,H,W) in [0,1] plus noise."""

    def __init__(self, sigma: float):
        self.sigma = sigma

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        # Halved: sigma is of the [-1,1] scale, and x in [0,1].
        return x + self.sigma / 2 * noise.normal(-1, x)


def gaussian(score: Score | None = None, classifier: Classifier | None = None, *, sigma: float = 0.5) -> Gaussian:
    """sigma: standard deviation of the noise on the [-1,1] scale, > 0, as for `one-shot`. Output not clipped. Random: one normal."""
    return Gaussian(sigma)
