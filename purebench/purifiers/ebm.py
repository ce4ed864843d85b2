"""Long-run Langevin dynamics of an energy model (Hill, Mitchell & Zhu 2021, ICLR, "Stochastic Security")."""

from __future__ import annotations

from torch import Tensor

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

INFO = {
    "ebm": {
        "summary": "long-run Langevin dynamics of an energy model, or of a score model",
        "formula": "x <- x - step grad f(x) + eps n;  on a score model x <- x + step eps^2/2 score(x; level) + eps n",
        "calls": "steps, and on an energy as many backward inside",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "own_score": "Hill et al.'s energy",
        "requires": ["steps >= 1", "step > 0", "eps >= 0", "level >= 0"],
        "paper": {"steps": "1500", "step": "1", "eps": "0.01"},
        "differences": "none known on an energy model. On a score model without an energy it is Langevin dynamics on that model at one "
        "small noise level, not Hill et al.'s defense",
        "cite": "hill2021stochastic",
    }
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "ebm:steps=2": {},
}


class Langevin:
    """State: x (B,C,H,W) on the [-1,1] scale, never clipped. Random: one standard normal per step."""

    def __init__(self, score: Score, steps: int, rate: float, eps: float, level: float):
        self.score, self.n, self.rate, self.eps, self.level = score, steps, rate, eps, level

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return 2 * x - 1

    def drift(self, x: Tensor) -> Tensor:
        """- grad f, or eps^2/2 times the score."""
        if hasattr(self.score, "energy"):
            return -chain.inner_grad(self.score.energy, x)
        # `direction` is the level times the score.
        return self.eps**2 / (2 * self.level) * self.score.direction(x, self.level)

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        return x + self.rate * self.drift(x) + self.eps * noise.normal(k, x)

    def finish(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


def ebm(
    score: Score,
    classifier: Classifier | None = None,
    *,
    steps: int = 1500,
    step: float = 1.0,
    eps: float = 0.01,
    level: float = 0.0,
) -> Langevin:
    """Hill et al.'s purification. Output not clipped; scales are those of [-1,1].

    step: factor of the energy's gradient; eps: standard deviation of the noise. Without `energy(x)`, Langevin dynamics on the
    score model at noise `level`; 0: its smallest, but at least eps sqrt(step), where they are stable. Random: one normal per step.
    """
    if hasattr(score, "energy"):
        return Langevin(score, steps, step, eps, level)
    if not hasattr(score, "direction"):
        raise UserError(
            "`ebm` needs an energy or a score, and was given neither", "give `energy(x)`, as score model `ebm` does"
        )
    level = level or max(score.sigma_min, eps * step**0.5)
    if level < eps * step**0.5 / 2:
        raise UserError(
            f"`level={level}` of `ebm` is too small for eps={eps}: steps of step eps^2/2 overshoot and diverge",
            f"give at least {eps * step**0.5 / 2}, or smaller steps",
        )
    return Langevin(score, steps, step, eps, level)
