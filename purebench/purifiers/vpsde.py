"""The reverse VP-SDE of Song et al. 2021 (ICLR, eq. 6 and section 3.4) by Euler-Maruyama, on the grid of DiffPure's runs.

DiffPure (Nie et al. 2022) and COUP (Zhang et al. 2024) integrate, in the solver time s = 1 - t from 1 - t* to 1 - 1e-5,

    dx = [beta(t) x / 2 + beta(t) score(x, t)] ds + sqrt(beta(t)) dw,     beta(t) = 0.1 + 19.9 t,

with torchsde's `euler`. Times are accumulated as torchsde does it, s <- min(s + dt, end) in float32: the last network
call of 100 steps happens at t = 0.0010013, not at 0.001, and that matters at 1e-5.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.scores.views import Score, beta, integral

END = 1 - 1e-5  # solver time at which the published runs stop


def solver_times(t: float, steps: int) -> list[float]:
    """s_0 .. s_steps: from 1 - t in steps of t / steps, accumulated in float32, the last one cut at 1 - 1e-5. UserError for so many
    steps that their float32 sum passes the end."""
    s, dt = np.float32(1 - t), np.float32(t / steps)
    times = [s]
    for _ in range(steps - 1):
        times.append(times[-1] + dt)
    if times[-1] >= np.float32(END):  # rounding has piled up over thousands of steps
        raise UserError(
            f"`steps={steps}` is too many for t={t}: float32 times pass the end", "the papers use steps of 0.001"
        )
    return [float(s) for s in (*times, np.float32(END))]


class ReverseVP:
    """Euler-Maruyama on the reverse VP-SDE, started at the image itself. State: x (B,C,H,W) on the [-1,1] scale, unclipped.

    Randomness: one standard normal per step. `score`: any ScoreModel with a VP view.
    """

    def __init__(self, score: Score, t: float, steps: int):
        self.score_model, self.t, self.n = score, t, steps
        self.times = solver_times(t, steps)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return 2 * x - 1

    def drift(self, s: float, x: Tensor) -> Tensor:
        t = float(np.float32(1) - np.float32(s))
        return beta(t) / 2 * x + beta(t) * self.score(x, t)

    def diffusion(self, s: float) -> float:
        return math.sqrt(beta(float(np.float32(1) - np.float32(s))))

    def score(self, x: Tensor, t: float) -> Tensor:
        return self.score_model.score(x, t)

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        s, h = self.times[k], self.times[k + 1] - self.times[k]
        return x + h * self.drift(s, x) + math.sqrt(h) * self.diffusion(s) * noise.normal(k, x)

    def finish(self, x: Tensor) -> Tensor:
        return (x + 1) / 2

    def diffused(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        """What the forward diffusion makes of x (B,C,H,W) in [0,1] by the time before step k (k = n: after the last), on the [-1,1] scale.
        Random: one draw for all times, that of the forward noise where `start` draws it."""
        b = integral(1 - self.times[k])
        return math.exp(-b / 2) * (2 * x - 1) + math.sqrt(-math.expm1(-b)) * noise.normal(-1, x)
