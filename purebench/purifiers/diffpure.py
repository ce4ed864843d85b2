"""DiffPure (Nie et al. 2022, ICML): diffuse the image to t*, then integrate the reverse VP-SDE back (section 3.2, `diffpure`); and its
two relatives in the published code, the probability-flow ODE (`diffpure-ode`) and Langevin dynamics around the image (`diffpure-ld`).

The forms that sample by the 1000 discrete steps are in `ancestral.py`.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from purebench.engine.noise import Noise
from purebench.purifiers.ancestral import forward_steps
from purebench.purifiers.contract import Cases, Classifier
from purebench.purifiers.vpsde import END, ReverseVP, solver_times
from purebench.scores.views import Score, beta, discrete

INFO = {
    "diffpure": {
        "summary": "diffuse to t*, then reverse VP-SDE",
        "formula": "x_t* = sqrt(abar) x + sqrt(1 - abar) eps;  dx = [beta x / 2 + beta score(x, t)] ds + sqrt(beta) dw, from t* to 1e-5",
        "calls": "steps",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "sde": True,
        "diffuses": True,
        "requires": ["0.001 <= t <= 1", "steps >= 1", "t / steps > 0.00002"],
        "smoothing": "sqrt(1 / abar(1000 * t) - 1) / 2",
        "paper": {
            "t": "0.1 for Linf 8/255, 0.075 for L2 0.5, 0.125 for ResNet-50 and L2 1, 0.15 on ImageNet",
            "steps": "1000 t",
        },
        "differences": "ours is the official code, whose forward noise has the discrete abar at index 1000 t* - 1 where the paper has the "
        "continuous one (0.89702 for 0.89628 at t* = 0.1), and whose times are added up in float32 (last call of 100 at t = 0.0010013, "
        "1e-5 of the result). The code makes one network call more, a check of torchsde's. The official gradient is torchsde's "
        "adjoint (--grad adjoint), not that of the sampled path (exact)",
        "cite": "nie2022diffpure",
    },
    "diffpure-ode": {
        "summary": "diffuse to t*, then the probability-flow ODE",
        "formula": "x_t* = sqrt(abar) x + sqrt(1 - abar) eps;  dx = [beta x / 2 + beta score(x, t) / 2] ds, from t* to 1e-5",
        "calls": "steps",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "sde": True,
        "diffuses": True,
        "requires": ["0.001 <= t <= 1", "steps >= 1", "t / steps > 0.00002"],
        "smoothing": "sqrt(1 / abar(1000 * t) - 1) / 2",
        "paper": {"t": "0.1 for Linf 8/255", "steps": "1000 t"},
        "differences": "ours is the official code, whose forward noise has the discrete abar at index 1000 t* - 1 where the paper has the "
        "continuous one, and whose times are torchdiffeq's float32 grid; its runner reads an option that no parser defines, and cannot "
        "have run as published. The official gradient is torchdiffeq's adjoint (--grad adjoint is torchsde's, with a diffusion of zero)",
        "cite": "nie2022diffpure",
    },
    "diffpure-ld": {
        "summary": "Langevin dynamics around the image, score at one small time",
        "formula": "dx = lambda/2 [score(x, 0.01) - (x - x_0) / sigma2] ds + eta sqrt(lambda) dw, for s from 1 - t to 1 - 1e-5",
        "calls": "steps",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "requires": ["0 < t <= 1", "steps >= 1", "t / steps > 0.00002", "sigma2 > 0", "lambda_ld > 0", "eta >= 0"],
        "paper": {"t": "0.1", "steps": "100 t", "sigma2": "1e-3", "lambda_ld": "1e-2", "eta": "5"},
        "differences": "ours is the official code, whose times are added up in float32 and which makes one network call more, a check of "
        "torchsde's. The official gradient is torchsde's adjoint, which also leaves out what flows through the anchor x_0: there is none "
        "here",
        "cite": "nie2022diffpure",
    },
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "diffpure:steps=2": {},
    "diffpure-ode:steps=2": {},
    "diffpure-ld:steps=2": {},
}


class DiffPure(ReverseVP):
    def __init__(self, score: Score, t: float, steps: int):
        super().__init__(score, t, steps)
        # As the official runner: forward by the discrete schedule, though the way back is the continuous SDE.
        self.abar = float(discrete()[forward_steps(t) - 1])

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        x = super().start(x, noise)
        return math.sqrt(self.abar) * x + math.sqrt(1 - self.abar) * noise.normal(-1, x)


def diffpure(score: Score, classifier: Classifier | None = None, *, t: float = 0.1, steps: int = 100) -> DiffPure:
    """DiffPure's `sde` runner. t: diffusion time t* in (0,1], a multiple of 0.001; steps: Euler steps of t/steps each.

    Output (B,C,H,W), not clipped. Random: the forward noise and one normal per step. Source: runners/diffpure_sde.py."""
    return DiffPure(score, t, steps)


class DiffPureODE(DiffPure):
    """Randomness: the forward noise alone. `times`: solver times s = 1 - t, exact; the t are torchdiffeq's fixed grid in float32,
    t - k (t / steps), whose last network call is at 0.001 for t = 0.1 in 100 steps, where the SDE's accumulated one is at 0.0010013."""

    def __init__(self, score: Score, t: float, steps: int):
        super().__init__(score, t, steps)
        down = np.arange(steps, dtype=np.float32) * np.float32(t / steps) - np.float32(t)  # minus t, ascending
        self.times = [*(1 + down.astype(float)).tolist(), END]

    def drift(self, s: float, x: Tensor) -> Tensor:
        t = 1 - s
        return beta(t) / 2 * (x + self.score(x, t))

    def diffusion(self, s: float) -> float:
        return 0.0

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        s, h = self.times[k], self.times[k + 1] - self.times[k]
        return x + h * self.drift(s, x)


def diffpure_ode(
    score: Score, classifier: Classifier | None = None, *, t: float = 0.1, steps: int = 100
) -> DiffPureODE:
    """DiffPure's `ode` runner: parameters as for `diffpure`. Output (B,C,H,W), not clipped. Random: the forward noise.
    Source: runners/diffpure_ode.py."""
    return DiffPureODE(score, t, steps)


class DiffPureLD:
    """State: (x, x_0), both (B,C,H,W) on the [-1,1] scale. Randomness: one standard normal per step."""

    TIME = 0.01  # at which the score is asked for, at every step

    def __init__(self, score: Score, t: float, steps: int, sigma2: float, lambda_ld: float, eta: float):
        self.score_model, self.n = score, steps
        self.times = solver_times(t, steps)
        self.sigma2, self.lambda_ld, self.eta = sigma2, lambda_ld, eta

    def start(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        x = 2 * x - 1
        return x, x

    def step(self, k: int, state: tuple[Tensor, Tensor], noise: Noise) -> tuple[Tensor, Tensor]:
        x, x_0 = state
        h = self.times[k + 1] - self.times[k]
        drift = self.lambda_ld / 2 * (self.score_model.score(x, self.TIME) - (x - x_0) / self.sigma2)
        return x + h * drift + self.eta * math.sqrt(self.lambda_ld * h) * noise.normal(k, x), x_0

    def finish(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return (state[0] + 1) / 2


def diffpure_ld(
    score: Score,
    classifier: Classifier | None = None,
    *,
    t: float = 0.1,
    steps: int = 10,
    sigma2: float = 1e-3,
    lambda_ld: float = 1e-2,
    eta: float = 5.0,
) -> DiffPureLD:
    """DiffPure's `ldsde` runner, with its own names: solver time runs from 1 - t, any t in (0,1], in `steps` steps; sigma2: variance
    of the Gaussian that ties the state to the image, on the [-1,1] scale; lambda_ld: speed; eta: strength of the noise (1 would be
    Langevin's own). Output (B,C,H,W), not clipped. Random: one normal per step. Source: runners/diffpure_ldsde.py."""
    return DiffPureLD(score, t, steps, sigma2, lambda_ld, eta)
