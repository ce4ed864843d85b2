"""One-shot denoising (Carlini et al. 2023, ICLR, "(Certified!!) Adversarial Robustness for Free!"): noise, denoise once."""

from __future__ import annotations

from torch import Tensor

from purebench.engine.noise import Noise
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

INFO = {
    "one-shot": {
        "summary": "add Gaussian noise, denoise once",
        "formula": "clip((D(2x - 1 + sigma eps; sigma) + 1) / 2)",
        "calls": "1",
        "random": True,
        "output": "unit",
        "version": 1,
        "needs": ["score"],
        "requires": ["sigma > 0"],
        "smoothing": "sigma / 2",
        "paper": {
            "sigma": "Carlini et al. 0.5, 1, 2 (their 0.25, 0.5, 1 are on the [0,1] scale); ScoreOpt's baseline 0.25 to 0.5"
        },
        "differences": "none known",
        "cite": "carlini2023certified",
    }
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "one-shot": {},
}


class OneShot:
    n = 1

    def __init__(self, score: Score, sigma: float):
        self.score, self.sigma = score, sigma

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        x = 2 * x - 1
        return x + self.sigma * noise.normal(-1, x)

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        return self.score.denoise(x, self.sigma)

    def finish(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).clamp(0, 1)


def one_shot(score: Score, classifier: Classifier | None = None, *, sigma: float = 0.5) -> OneShot:
    """sigma: standard deviation of the noise on the [-1,1] scale, > 0. Output clipped to [0,1]. Random: one normal."""
    return OneShot(score, sigma)
