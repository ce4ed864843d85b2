"""Multi-step denoising with EDM's deterministic sampler (Karras et al. 2022, NeurIPS, Algorithm 1): noise, then integrate back.

ScoreOpt (Zhang et al. 2023) compares itself with it, at 1 to 100 steps, as "diffusion-based purification".
"""

from __future__ import annotations

from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

INFO = {
    "edm": {
        "summary": "add Gaussian noise, denoise in several steps (probability flow ODE)",
        "formula": "u = 2x - 1 + sigma_start eps;  u <- u + (sigma_i - sigma_i+1) (D(u; sigma_i) - u) / sigma_i, clipped at the end",
        "calls": "steps - start (order=2: twice that, less one)",
        "random": True,
        "output": "unit",
        "version": 1,
        "needs": ["score"],
        "own_score": "EDM",
        "smoothing": "sigma / 2",
        "smooth_if": ["start == 0"],  # else the level where it begins depends on the score model's least
        "requires": ["sigma > 0.002", "steps >= 1", "0 <= start", "start < steps", "1 <= order <= 2"],
        "paper": {
            "sigma": "ScoreOpt's baseline: not said; its code enters EDM's own grid, sigma=80,steps=18,start=13",
            "steps": "ScoreOpt's tables 2 and 6: 1 to 100",
        },
        "differences": "none known to EDM's sampler without churn; ScoreOpt's code is Euler (order=1), EDM's own default is Heun (order=2)",
        "cite": "karras2022elucidating",
    }
}
_REFUSED = {"refused": {"energy": "above the score model's largest"}}
CASES: Cases = {  # run by every contract test, on every family of score models
    "edm:steps=3": _REFUSED,
    "edm:steps=3,order=2": _REFUSED,
}
RHO, LOWEST = 7, 0.002


def levels(sigma: float, steps: int, lowest: float = LOWEST) -> list[float]:
    """sigma_0 = sigma > .. > sigma_steps-1 = lowest, then 0: evenly spaced in sigma^(1/7) (eq. 5)."""
    top, bottom = sigma ** (1 / RHO), lowest ** (1 / RHO)
    return [(top + i / max(steps - 1, 1) * (bottom - top)) ** RHO for i in range(steps)] + [0.0]


class EDMSampler:
    """State: u (B,C,H,W) on the [-1,1] scale, with noise of deviation sigma_i."""

    def __init__(self, score: Score, sigma: float, steps: int, start: int, order: int):
        lowest = max(LOWEST, score.sigma_min)
        if steps > 1 and not sigma > lowest:
            raise UserError(f"`sigma={sigma}` is not above the last level, {lowest:g}", "ScoreOpt uses 0.25 to 0.5")
        self.score, self.order, self.n = score, order, steps - start
        self.sigmas = levels(sigma, steps, lowest)[start:]
        # The seventh root and its power round, so that the first level can be a little above `sigma` itself.
        if self.sigmas[0] > score.sigma_max * (1 + 1e-6):
            raise UserError(
                f"the first level, {self.sigmas[0]:g}, is above the score model's largest, {score.sigma_max:g}",
                "lower `sigma`, or begin later: raise `start`",
            )

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        u = 2 * x - 1
        return u + self.sigmas[0] * noise.normal(-1, u)

    def step(self, k: int, u: Tensor, noise: Noise) -> Tensor:
        now, after = self.sigmas[k : k + 2]
        d = self.score.direction(u, now)  # -du/dsigma
        euler = u + (now - after) * d
        if self.order == 1 or after == 0:
            return euler
        return u + (now - after) * (d + self.score.direction(euler, after)) / 2

    def finish(self, u: Tensor) -> Tensor:
        return ((u + 1) / 2).clamp(0, 1)


def edm(
    score: Score,
    classifier: Classifier | None = None,
    *,
    sigma: float = 0.5,
    steps: int = 20,
    start: int = 0,
    order: int = 1,
) -> EDMSampler:
    """A grid of `steps` noise levels from sigma to 0.002 (or the score model's least) on the [-1,1] scale, entered at index `start`;
    order: 1 Euler, 2 Heun. `sigma=0.5,steps=k` is k steps from 0.5, `sigma=80,steps=18,start=13` EDM's own grid from its level 13.
    Output clipped to [0,1]. Random: one normal."""
    return EDMSampler(score, sigma, steps, start, order)
