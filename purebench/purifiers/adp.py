"""ADP (Yoon, Hwang & Lee 2021, ICML, section 3 and Algorithm 1): inject noise, then follow the score with a step size of its own
for every image, read off the curvature along the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

INFO = {
    "adp": {
        "summary": "noise, then gradient steps along the score with adaptive step sizes",
        "formula": "x <- clip(x + sigma eps);  x <- x + alpha s(x), alpha = lam delta / (1 - <s, s'> / <s, s>), s' = s(x + delta s)",
        "calls": "2 steps (steps without adaptive step sizes, and one more for detection)",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "own_score": "NCSNv2, of ADP's training",
        "rotates": True,
        "couples": {"variant": "code"},
        "choices": {
            "rand": ["gaussian", "binary"],
            "variant": ["paper", "code"],
            "update": ["deterministic", "schedule", "langevin"],
        },
        "lists": ["update"],
        "requires": [
            "sigma >= 0",
            "steps >= 1",
            "lam > 0",
            "delta >= 0",
            "tau >= 0",
            "alpha_max > 0",
            "first > 0",
            "last > 0",
            "threshold >= 0",
            "beta >= 0",
            "level >= 0",
            "update == 'deterministic' or variant == 'paper'",  # the published code has adaptive steps only
            "update != 'schedule' or last <= first",  # of a list, the constructor's
        ],
        "smoothing": "sigma",
        "smooth_if": ["rand == 'gaussian'", "threshold == 0", "variant == 'paper'"],
        "paper": {
            "sigma": "0.25, in Table 2 also 0.1; 0 in Tables 3 and 9 and on CIFAR-10-C (with 0.1 and 0.25); sweep 0.05 to 0.4",
            "steps": "not stated; 10 in the code",
            "lam": "0.05",
            "delta": "1e-5; 1e-3 in the code",
            "tau": "0.001",
            "first": "0.08",
            "last": "8e-4",
            "threshold": "25 for the detection rows, 35 in the code",
            "beta": "0.2",
            "votes": "10, combine=softmax",
        },
        "differences": "variant=code is the published code: delta 1e-3, stops where alpha <= tau (Algorithm 1: norm of s < tau, which "
        "hardly ever happens), alpha at least 1e-5, and after every step clip((x - 0.5) 256/255 + 0.5), stopped images included, until "
        "the whole batch has stopped: a contrast stretch of 4 % in 10 steps, and images depend on their batch mates. The bound "
        "alpha_max, and the stop where the curvature is negative, are the code's; the paper states neither",
        "cite": "yoon2021adversarial",
    }
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "adp:steps=2": {},
    "adp:steps=2,rand=binary,update=schedule": {},
    "adp:steps=2,update=langevin,threshold=10": {},
    "adp:steps=2,variant=code": {},
}
DELTA = {"paper": 1e-5, "code": 1e-3}
ALPHA_MIN = 1e-5  # of the code


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,1,1,1): the inner product of every row."""
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def mates(alive: Tensor, noise: Noise) -> Tensor:
    """(B,1,1,1): whether any image of a row's batch is alive. A batch is what one call of the published code purifies: the rows of one
    sample number, without padding."""
    if not len(noise.ids):
        return alive.any().view(1, 1, 1, 1)
    ids, samples = noise.on(alive.device)
    together = (samples[:, None] == samples) & (ids >= 0)
    return (together & alive.flatten()).any(1).view(-1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class ADP:
    """State: x (B,C,H,W) on the [0,1] scale, and alive (B,1,1,1), False once an image has stopped. Fields as `adp` says."""

    scores: Sequence[Score]
    sigma: float
    rand: str
    n: int
    variant: str
    updates: Sequence[str]  # one for each score model
    lam: float
    delta: float
    tau: float
    alpha_max: float
    alphas: Sequence[float]  # of the updates that do not adapt
    threshold: float
    beta: float
    levels: Sequence[float]  # one for each score model

    @property
    def couples_batch(self) -> bool:
        """Whether an image's result depends on its batch mates: the published code stops all images together."""
        return self.variant == "code"

    def score(self, k: int, x: Tensor) -> Tensor:
        """s at step k: sigma times the score, which is the same on the [0,1] and the [-1,1] scale."""
        i = k % len(self.scores)
        return self.scores[i].direction(2 * x - 1, self.levels[i])

    def start(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        alive = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
        if self.sigma > 0:
            unit = noise.normal(-1, x) if self.rand == "gaussian" else math.sqrt(2 / math.pi) * noise.sign(-1, x)
            x = (x + self.strength(x) * unit).clamp(0, 1)
        return (x * 255 / 256 + 1 / 512 if self.variant == "code" else x), alive

    def strength(self, x: Tensor) -> Tensor | float:
        """sigma; with detection, beta sigma for images whose score is small: they look natural."""
        if self.threshold == 0:
            return self.sigma
        s = self.score(0, x)
        square = dot(s, s)
        return torch.where(square > self.threshold**2, torch.full_like(square, self.sigma), self.beta * self.sigma)

    def alpha(self, k: int, x: Tensor, s: Tensor) -> Tensor:
        """(B,1,1,1): lam delta / (1 - z), z = <s, s'> / <s, s>; at most alpha_max, also at z = 1; 0 where z > 1 or s = 0."""
        square = dot(s, s)
        drop = dot(s, s - self.score(k, x + self.delta * s))  # (1 - z) <s, s>, before it cancels
        inside = drop * self.alpha_max > self.lam * self.delta * square
        alpha = self.lam * self.delta * square / torch.where(inside, drop, 1)
        return torch.where(inside, alpha, self.alpha_max * ((drop >= 0) & (square > 0)).to(x.dtype))

    def step(self, k: int, state: tuple[Tensor, Tensor], noise: Noise) -> tuple[Tensor, Tensor]:
        x, alive = state
        s = self.score(k, x)
        update = self.updates[k % len(self.updates)]
        if update != "deterministic":
            # An image that a step of another model has stopped is stopped for all; alone, these updates stop none.
            moved = x + self.alphas[k] * s
            if update == "langevin":  # x + eta s / sigma + sqrt(2 eta) n, eta = alpha sigma, sigma = level / 2 in [0,1]
                moved = moved + math.sqrt(self.alphas[k] * self.levels[k % len(self.levels)]) * noise.normal(k, x)
            return torch.where(alive, moved, x), alive
        alpha = self.alpha(k, x, s)
        if self.variant == "paper":
            alive = alive & (alpha > 0) & (dot(s, s) >= self.tau**2)
            return x + torch.where(alive, alpha, 0) * s, alive
        alpha = torch.where(dot(s, s) > 0, alpha.clamp(min=ALPHA_MIN), 0)
        alive = alive & (alpha > self.tau)
        moved = ((x + torch.where(alive, alpha, 0) * s) * 256 / 255 - 1 / 510).clamp(0, 1)
        return torch.where(mates(alive, noise), moved, x), alive  # the whole batch stops together

    def finish(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]


def adp(
    score: Score | list[Score] | tuple[Score, ...], classifier: Classifier | None = None, *,
    sigma: float = 0.25, rand: str = "gaussian", steps: int = 10, variant: str = "paper",
    update: str | list[str] | tuple[str, ...] = "deterministic", lam: float = 0.05, delta: float = 0.0, tau: float = 0.001,
    alpha_max: float = 0.1, first: float = 0.08, last: float = 8e-4, threshold: float = 0.0, beta: float = 0.2, level: float = 0.0,
) -> ADP:  # fmt: skip
    """ADP, Algorithm 1. Images in [0,1], noise and steps on that scale; the output is clipped by variant=code alone.

    score: a score model, or a list of m, model k mod m at step k. sigma: of the injected noise; rand: `gaussian`, or `binary`,
    signs of the same mean size. update: `deterministic`, with adaptive steps; `schedule`, steps from `first` to `last` in geometric
    sequence; `langevin`, the same with the noise of Langevin dynamics; of several models, a list has one for each. delta: length of
    the probe, 0: the variant's. threshold: norm of s above which an image gets all of sigma, others beta sigma; 0: no detection.
    level: noise level on the [-1,1] scale at which s is taken, 0: 2 sigma, within what the model was trained on (NCSNv2 sees none).
    Random: one draw; `langevin`, another per step.
    """
    scores = list(score) if isinstance(score, list | tuple) else [score]
    if not scores or not all(hasattr(s, "direction") for s in scores):
        raise UserError("`adp` follows a score, and was given none", "give a score model: `direction(x, sigma)`")
    updates = [update] * len(scores) if isinstance(update, str) else list(update)
    if len(updates) != len(scores):
        raise UserError(
            f"`update` of `adp` has {len(updates)} words, and there {'is' if len(scores) == 1 else 'are'} {len(scores)} score "
            f"model{'s' * (len(scores) > 1)}",
            "write one word for all, or one for each: update=[deterministic,schedule],score=[A,B]",
        )
    if "schedule" in updates and last > first:
        raise UserError(f"`adp` with first={first}, last={last}: a schedule falls", "it needs last <= first")
    levels = [level or min(max(2 * sigma, s.sigma_min), s.sigma_max) for s in scores]
    alphas = np.geomspace(first, last, steps).tolist()
    return ADP(
        scores, sigma, rand, steps, variant, updates, lam, delta or DELTA[variant], tau, alpha_max, alphas, threshold, beta, levels
    )  # fmt: skip


def sigma_from_data(images: Tensor) -> float:
    """The paper's choice of sigma: the median L2 distance of two of the images (N,...), over sqrt(D). 0.25 on CIFAR-10."""
    if len(images) < 2:
        raise UserError(f"{len(images)} images have no distances", "give two or more")
    flat = images.flatten(1).double()
    return float(torch.pdist(flat).median()) / math.sqrt(flat.shape[1])
