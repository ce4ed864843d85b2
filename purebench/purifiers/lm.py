"""Likelihood maximisation (Chen et al. 2024, ICML, "Robust Classification via a Single Diffusion Model", section 3.4), and guided by the
classifier's confidence, as COUP (Zhang et al. 2024) ran it on CIFAR-100.

    min_x  E_{sigma, eps} ||D(x + sigma eps; sigma) - x||^2 / N   subject to  max |x - input| <= eta,

N the number of values of an image, by Adam with one (sigma, eps) per step, sigma uniform in [low, high]. It is the
diffusion loss: ||D - x||^2 = sigma^2 ||eps_theta - eps||^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.purifiers import adam
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Level, Score

INFO = {
    "lm": {
        "summary": "likelihood maximisation: Adam on the diffusion loss, near the input",
        "formula": "x <- project(x - lr Adam(grad_x ||D(x + sigma eps; sigma) - x||^2 / N)), sigma ~ U[low, high], `steps` times; clip",
        "calls": "steps (twice that with guidance), and as many backward inside",
        "random": True,
        "output": "unit",
        "version": 2,
        "own_score": "EDM",
        "needs": {"score": "", "classifier": "guidance > 0"},
        "guided": True,
        "choices": {"variant": ["paper", "code"]},
        "requires": ["steps >= 1", "lr > 0", "0 < low <= high", "eta > 0", "guidance >= 0"],
        "paper": {
            "steps": "5 (official code)",
            "lr": "0.1 (official code)",
            "low": "0.4 (official code)",
            "high": "0.6 (official code)",
            "eta": "8/255",
        },
        "differences": "variant=paper has the paper's objective and its ball, and the official code's Adam, lr, steps and noise levels "
        "(the paper's own update rule could not be checked). variant=code has no ball: the code's is L2 of radius 100, never reached on "
        "CIFAR-10. The code resets its generator to seed 1 at every call, so that its defense is deterministic; here sigma and eps are "
        "drawn afresh at every purification. Its gradient is BPDA",
        "cite": "chen2024robust",
    },
    "lm-coup": {
        "summary": "likelihood maximisation guided by the classifier's confidence",
        "formula": "as lm, the loss less guidance (2 sigma^2 / N) log max_y p(y | (x+1)/2)",
        "calls": "2 steps (steps without guidance), and as many backward inside",
        "random": True,
        "output": "unit",
        "version": 2,
        "own_score": "EDM, as for lm",
        "needs": {"score": "", "classifier": "guidance > 0"},
        "guided": True,
        "choices": {"variant": ["paper", "code"]},
        "requires": ["steps >= 1", "lr > 0", "0 < low <= high", "eta > 0", "guidance >= 0"],
        "paper": {"guidance": "not reported for CIFAR-100; 1 elsewhere"},
        "differences": "as for lm. COUP's CIFAR-100 code is not public: the factor 2 sigma^2 / N is ours, with which guidance=1 lets "
        "||eps_theta - eps||^2 / 2 and -log p(y | x) count alike, as COUP's lambda = 1 does",
        "cite": "zhang2024coup",
    },
}
_REFUSED = {"refused": {"energy": "takes one noise level for all images"}}
CASES: Cases = {  # run by every contract test, on every family of score models
    "lm:steps=2": _REFUSED,
    "lm:steps=2,variant=code": _REFUSED,
    "lm-coup:steps=2": _REFUSED,
    "lm-coup:steps=2,variant=code": _REFUSED,
}


class LikelihoodMaximisation:
    """State: (x, m, v, input), each (B,C,H,W): the image on the [-1,1] scale, Adam's two moments, and where it came from.

    Randomness: a standard normal per step, and a uniform for its noise level where low < high."""

    def __init__(
        self,
        score: Score,
        classifier: Classifier | None,
        steps: int,
        lr: float,
        low: float,
        high: float,
        eta: float,
        guidance: float,
        variant: str,
    ):
        self.score_model, self.classifier, self.n = score, classifier, steps
        self.lr, self.guidance = lr, guidance
        self.low, self.high = low, high
        # Doubled: eta is of the [0,1] scale, the state on [-1,1]. The code projects nothing.
        self.radius = 2 * eta if variant == "paper" else None

    def start(self, x: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        x = 2 * x - 1
        return x, torch.zeros_like(x), torch.zeros_like(x), x

    def step(self, k: int, state: tuple[Tensor, ...], noise: Noise) -> tuple[Tensor, ...]:
        x, m, v, first = state
        sigma, eps = self.level(k, x, noise), noise.normal(k, x)
        g = chain.inner_grad(lambda x: self.loss(x, eps, sigma), x)
        x, m, v = adam.update(k, g, x, m, v, self.lr)
        if self.radius is not None:
            x = torch.minimum(torch.maximum(x, first - self.radius), first + self.radius)
        return x, m, v, first

    def level(self, k: int, x: Tensor, noise: Noise) -> Level:
        """sigma (B,1,1,1), uniform in [low, high); a number where they are equal."""
        if self.low == self.high:
            return self.low
        return self.low + (self.high - self.low) * noise.uniform(k, x[:, :1, :1, :1], draw=1)

    def loss(self, x: Tensor, eps: Tensor, sigma: Level) -> Tensor:
        """(B,), to be minimised in x."""
        loss = (self.score_model.denoise(x + sigma * eps, sigma) - x).square().flatten(1).mean(1)
        if self.guidance:
            assert self.classifier is not None  # INFO's `needs` asks for one where guidance > 0
            confidence = self.classifier((x + 1) / 2).log_softmax(dim=1).amax(dim=1)
            square = sigma.flatten() ** 2 if isinstance(sigma, Tensor) else sigma**2
            loss = loss - self.guidance * 2 * square / x[0].numel() * confidence
        return loss

    def finish(self, state: tuple[Tensor, ...]) -> Tensor:
        return ((state[0] + 1) / 2).clamp(0, 1)


def lm(
    score: Score,
    classifier: Classifier | None = None,
    *,
    steps: int = 5,
    lr: float = 0.1,
    low: float = 0.4,
    high: float = 0.6,
    eta: float = 0.03137254901960784,
    guidance: float = 0.0,
    variant: str = "paper",
) -> LikelihoodMaximisation:
    """steps: of Adam, at learning rate lr on the [-1,1] scale; low, high: sigma is uniform between them, on that scale; eta: radius of the
    Linf ball on the [0,1] scale (variant=paper; none in variant=code); guidance: weight of log max_y p(y | x), for which a classifier
    is needed. Output (B,C,H,W) clipped to [0,1]. Random: per step and image one normal, and one uniform unless low = high.
    Source: LikelihoodMaximization/EDMLM.py of the authors' code."""
    return LikelihoodMaximisation(score, classifier, steps, lr, low, high, eta, guidance, variant)


def lm_coup(
    score: Score,
    classifier: Classifier | None,
    *,
    steps: int = 5,
    lr: float = 0.1,
    low: float = 0.4,
    high: float = 0.6,
    eta: float = 0.03137254901960784,
    guidance: float = 1.0,
    variant: str = "paper",
) -> LikelihoodMaximisation:
    """`lm` with guidance, as COUP ran it on CIFAR-100: parameters as for `lm`, guidance=1. Output (B,C,H,W) clipped to [0,1].
    Random: per step and image one normal, and one uniform unless low = high."""
    return LikelihoodMaximisation(score, classifier, steps, lr, low, high, eta, guidance, variant)
