"""Gradual noise scheduling (Lee and Kim 2023, ICCV): diffusion to a small depth and back, several times over, ever deeper.

A stage of depth T adds the noise of index T - 1 of the discrete schedule, and takes it off by DDPM's or DDIM's update, all T steps or
every (T // n)-th. One stage alone is the discrete form of DiffPure that the same paper evaluates.
"""

from __future__ import annotations

import math

from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score, discrete

INFO = {
    "gns": {
        "summary": "diffuse and denoise in stages of growing depth (DDPM or DDIM)",
        "formula": "per stage: u <- sqrt(abar_T) u + sqrt(1 - abar_T) eps;  u <- sqrt(abar_j) u_0 + c eps' + sqrt(1 - abar_j - c^2) "
        "eps(u, i), u_0 = (u - sqrt(1 - abar_i) eps(u, i)) / sqrt(abar_i), c = eta sqrt((1 - abar_i / abar_j) (1 - abar_j) / (1 - abar_i))",
        "calls": "the sum of steps, or of stages where no steps are given",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "requires": ["0 <= eta <= 1"],
        "paper": {
            "stages": "CIFAR-10 [30,30,30,30,50,50,125,125]; ImageNet ends in 200,200, SVHN in 80,80; its DiffPure [200]",
            "steps": "the defense takes all; its surrogate is stages=[30,50,125],steps=[1,1,5]",
            "votes": "10, combine=vote",
        },
        "differences": "none known; its tables are votes=10,combine=vote, its attack --grad surrogate:stages=[30,50,125],steps=[1,1,5]",
        "cite": "lee2023robust",
    }
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "gns:stages=[6,15],steps=[1,3]": {},
    "gns:stages=[6],steps=[2],eta=0.5": {},
    "gns:stages=[2],eta=0": {},
}


def indices(depth: int, steps: int) -> list[int]:
    """The indices of a stage, deepest first: every (depth // steps)-th, minus one. Where steps does not divide depth, the first
    is not depth - 1, at which the noise was added: so it is published."""
    every = depth // steps
    return [k - 1 for k in range(every, depth + 1, every)][::-1]


class GNS:
    """State: u (B,C,H,W) on the [-1,1] scale, unclipped. A step is one update; the first of a stage adds the stage's noise before."""

    def __init__(self, score: Score, stages: list[tuple[int, int]], eta: float):
        self.score, self.eta = score, eta
        self.steps: list[tuple[int, int, int]] = []  # (index, next index or -1 for the end, the stage's depth or 0)
        for depth, steps in stages:
            i = indices(depth, steps)
            self.steps += zip(i, [*i[1:], -1], [depth] + [0] * (len(i) - 1), strict=True)
        self.n = len(self.steps)

    @staticmethod
    def abar(i: int) -> float:
        return float(discrete()[i]) if i >= 0 else 1.0

    def diffuse(self, depth: int, u: Tensor, eps: Tensor) -> Tensor:
        a = self.abar(depth - 1)
        return math.sqrt(a) * u + math.sqrt(1 - a) * eps

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        u = 2 * x - 1
        return self.diffuse(self.steps[0][2], u, noise.normal(-1, u))

    def step(self, k: int, u: Tensor, noise: Noise) -> Tensor:
        i, j, depth = self.steps[k]
        # The first stage's noise was added by `start`.
        if depth and k:
            u = self.diffuse(depth, u, noise.normal(k, u, draw=1))
        a, b = self.abar(i), self.abar(j)
        eps = self.score.eps_index(u, i)
        u0 = (u - math.sqrt(1 - a) * eps) / math.sqrt(a)
        c = self.eta * math.sqrt((1 - a / b) * (1 - b) / (1 - a))
        u = math.sqrt(b) * u0 + math.sqrt(1 - b - c**2) * eps
        return u + c * noise.normal(k, u) if c else u

    def finish(self, u: Tensor) -> Tensor:
        return (u + 1) / 2


def gns(
    score: Score,
    classifier: Classifier | None = None,
    *,
    stages: tuple[int, ...] = (30, 30, 30, 30, 50, 50, 125, 125),
    steps: tuple[int, ...] = (),
    eta: float = 1.0,
) -> GNS:
    """stages: the depth T of each, 1 to 1000 steps of the discrete schedule; steps: updates of each stage, left out for all T;
    eta: 1 DDPM, 0 DDIM. Output (B,C,H,W), not clipped. Random: one normal per stage, and, unless eta is 0, per update but the last."""
    for name, values in (("stages", stages), ("steps", steps)):
        if not isinstance(values, tuple | list) or not all(isinstance(v, int) and v >= 1 for v in values):
            raise UserError(
                f"`{name}={values}` is not possible: expected a list of whole numbers from 1",
                f"one per stage, such as {name}=[30,50,125]" if name == "stages" else "such as steps=[1,1,5]",
            )
    if not stages or max(stages) > 1000:
        raise UserError(f"`stages={stages}` is not possible", "depths from 1 to 1000, such as stages=[30,50,125]")
    if steps and len(steps) != len(stages):
        raise UserError(
            f"`steps` is for {len(steps)} stages, `stages` names {len(stages)}",
            "give as many, or leave steps out to take them all",
        )
    for depth, n in zip(stages, steps or stages, strict=True):
        if n > depth:
            raise UserError(f"{n} steps are too many for a stage of {depth}", f"at most {depth}")
        if len(indices(depth, n)) != n:
            fewer, more = (depth // every for every in (depth // n + 1, depth // n))
            raise UserError(
                f"{n} steps do not fit a stage of {depth}: one index in {depth // n} makes {more}",
                f"ask for {fewer} or {more}",
            )
    return GNS(score, list(zip(stages, steps or stages, strict=True)), eta)
