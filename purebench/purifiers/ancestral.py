"""Ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 3.2) as a purifier: DiffPure's `ddpm` and
`celebahq-ddpm` runs. With beta_i from 1e-4 to 0.02, abar_i = prod(1 - beta) and i = T-1 .. 0,

    x_0 = (x_i - sqrt(1 - abar_i) eps) / sqrt(abar_i),   x_{i-1} = N(mean of q(x_{i-1} | x_i, x_0), variance_i),  no noise at i = 0.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score, betas, discrete

INFO = {
    "diffpure-ddpm": {
        "summary": "diffuse to t*, then ancestral sampling back",
        "formula": "x_t* = sqrt(abar) x + sqrt(1 - abar) eps;  x_{i-1} = mean q(x_{i-1} | x_i, x_0) + sd_i z, i = 1000 t* - 1 .. 0",
        "calls": "1000 t",
        "random": True,
        "diffuses": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "choices": {"variance": ["learned", "fixedsmall", "fixedlarge"]},
        "requires": ["0.001 <= t <= 1"],
        "smoothing": "sqrt(1 / abar(1000 * t) - 1) / 2",
        "paper": {
            "t": "0.4 and 0.5 on CelebA-HQ (its scripts: 0.5); no script runs it on ImageNet",
            "variance": "fixedsmall on CelebA-HQ; learned by the runner for guided diffusion",
            "clip": "false on CelebA-HQ; true by the runner for guided diffusion",
        },
        "differences": "ours is the official runners, discrete both ways, where the paper describes the continuous SDE; they have no "
        "gradient at all (no_grad: BPDA only), ours is exact, and 0 where x_0 is clipped",
        "cite": "nie2022diffpure",
    }
}
_FIXED = "needs a score model that learned its variances"
CASES: Cases = {  # run by every contract test, on every family of score models
    "diffpure-ddpm:t=0.002": {},
    "diffpure-ddpm:t=0.002,variance=fixedlarge,clip=false": {},
    "diffpure-ddpm:t=0.002,variance=learned": {
        "refused": {"vp": _FIXED, "denoiser": _FIXED, "ncsn": _FIXED, "energy": _FIXED}
    },
}


class Schedule:
    """The discrete diffusion's constants, float64 arrays over i = 0..999; or over `kept` of these steps, evenly spaced (Nichol and
    Dhariwal 2021, section 4). index: the step of the 1000 that i is."""

    def __init__(self, kept: int = 1000) -> None:
        self.index = np.round(np.arange(kept) * (999 / max(kept - 1, 1))).astype(int)
        abar = discrete()[self.index]
        before = np.append(1.0, abar[:-1])
        beta = betas() if kept == 1000 else 1 - abar / before
        self.abar = abar
        # q(x_{i-1} | x_i, x_0) = N(of_x0 x_0 + of_x x_i, small)
        self.of_x0 = beta * np.sqrt(before) / (1 - abar)
        self.of_x = (1 - before) * np.sqrt(1 - beta) / (1 - abar)
        small = beta * (1 - before) / (1 - abar)
        small[0] = small[1]  # it would be zero; the logarithm is wanted, the noise at i = 0 is not
        self.log_small, self.log_beta = np.log(small), np.log(beta)
        self.log_large = np.append(self.log_small[0], self.log_beta[1:])

    def diffuse(self, x: Tensor, noise: Tensor, i: int) -> Tensor:
        """x_i of a clean x."""
        return math.sqrt(self.abar[i]) * x + math.sqrt(1 - self.abar[i]) * noise

    def mean(self, x: Tensor, eps: Tensor, i: int, clip: bool) -> Tensor:
        """Of q(x_{i-1} | x_i = x, x_0), with x_0 as eps has it, in [-1,1] if `clip`."""
        x_0 = (x - math.sqrt(1 - self.abar[i]) * eps) / math.sqrt(self.abar[i])
        return float(self.of_x0[i]) * (x_0.clamp(-1, 1) if clip else x_0) + float(self.of_x[i]) * x

    def predict(self, score: Score, x: Tensor, i: int, variance: str) -> tuple[Tensor, Tensor | float]:
        """(eps, log variance of the step's noise: a number, or like x where it is learned) at step i. variance: as
        `diffpure_ddpm` says."""
        small, large, beta = (float(a[i]) for a in (self.log_small, self.log_large, self.log_beta))
        if variance != "learned":
            return score.eps_index(x, int(self.index[i])), small if variance == "fixedsmall" else large
        # Not of the class `Score`: only networks trained at indices have it. The constructors turn away every other with a UserError.
        assert hasattr(score, "output")
        output = score.output(x, int(self.index[i]))
        if output.shape[1] != 2 * x.shape[1]:
            raise no_variance()
        eps, v = output.chunk(2, dim=1)  # v in [-1,1] interpolates log variances (Nichol and Dhariwal 2021, eq. 15)
        return eps, ((1 + v) * beta + (1 - v) * small) / 2


def no_variance() -> UserError:
    return UserError(
        "this needs a score model that learned its variances, and got one that did not",
        "the score model `guided-diffusion`; or `diffpure-ddpm:variance=fixedsmall`, `gdmp:form=cifar10`",
    )


def exp(value: Tensor | float) -> Tensor | float:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


@cache
def schedule(kept: int = 1000) -> Schedule:
    return Schedule(kept)


def forward_steps(t: float) -> int:
    """1000 t. UserError unless t is one of the forward diffusion's 1000 times."""
    steps = max(1, round(1000 * t))
    if abs(t - steps / 1000) > 1e-9:
        raise UserError(
            f"`t={t}` is not a multiple of 0.001: the forward diffusion has 1000 steps",
            f"the nearest is t={steps / 1000}",
        )
    return steps


class Ancestral:
    """State: x (B,C,H,W) on the [-1,1] scale. Randomness: the forward noise and a standard normal per step but the last."""

    def __init__(self, score: Score, t: float, variance: str, clip: bool):
        self.n = forward_steps(t)
        if variance == "learned" and not hasattr(score, "output"):
            raise no_variance()
        self.score_model, self.variance, self.clip = score, variance, clip

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        x = 2 * x - 1
        return schedule().diffuse(x, noise.normal(-1, x), self.n - 1)

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        i = self.n - 1 - k
        eps, log_variance = schedule().predict(self.score_model, x, i, self.variance)
        mean = schedule().mean(x, eps, i, self.clip)
        return mean + exp(log_variance / 2) * noise.normal(k, x) if i else mean

    def finish(self, x: Tensor) -> Tensor:
        return (x + 1) / 2

    def diffused(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        """What the forward diffusion makes of x (B,C,H,W) in [0,1] by the index before step k (k = n: x itself), on the [-1,1] scale.
        Random: the forward noise, one draw for all indices."""
        x, i = 2 * x - 1, self.n - 1 - k
        return schedule().diffuse(x, noise.normal(-1, x), i) if i >= 0 else x


def diffpure_ddpm(
    score: Score,
    classifier: Classifier | None = None,
    *,
    t: float = 0.1,
    variance: str = "fixedsmall",
    clip: bool = True,
) -> Ancestral:
    """DiffPure by ancestral sampling. t: diffusion time t* in (0,1], a multiple of 0.001: round(1000 t) steps; variance: `learned`
    (guided diffusion's range, networks with 2C channels only), `fixedsmall` (of the posterior) or `fixedlarge` (beta); clip: x_0 to
    [-1,1] at every step. Output (B,C,H,W), within [0,1] only if `clip`. Random: the forward noise and a normal per step.
    Source: runners/diffpure_guided.py and diffpure_ddpm.py."""
    return Ancestral(score, t, variance, clip)
