"""COUP (Zhang et al. 2024): the reverse VP-SDE from the image itself, guided by the confidence of the protected classifier."""

from __future__ import annotations

from torch import Tensor

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.purifiers.contract import Cases, Classifier
from purebench.purifiers.vpsde import ReverseVP
from purebench.scores.views import Score

INFO = {
    "coup": {
        "summary": "reverse VP-SDE from the image, guided by the classifier's confidence",
        "formula": "dx = [beta x / 2 + beta (score(x, t) + guidance grad_x log max_y p(y | (x+1)/2))] ds + sqrt(beta) dw, from t* to 1e-5",
        "calls": "2 steps (steps without guidance), and steps backward inside for the guidance",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": {"score": "", "classifier": "guidance > 0"},
        "sde": True,
        "diffuses": True,
        "requires": ["0 < t <= 1", "steps >= 1", "t / steps > 0.00002", "guidance >= 0"],
        "guided": True,
        "paper": {"t": "0.1 for Linf 8/255, 0.075 for L2 0.5", "steps": "1000 t", "guidance": "1"},
        "differences": "the official code clamps input and result to [-1,1] (clamp=true) and detaches the state before the guidance, "
        "so that no attack gradient flows through it (grad detached, or adjoint, which is the published evaluation)",
        "cite": "zhang2024coup",
    },
    "reverse-sde": {
        "summary": "reverse VP-SDE from the image itself (COUP without guidance)",
        "formula": "dx = [beta x / 2 + beta score(x, t)] ds + sqrt(beta) dw, from t* to 1e-5",
        "calls": "steps",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "sde": True,
        "diffuses": True,
        "requires": ["0 < t <= 1", "steps >= 1", "t / steps > 0.00002"],
        "paper": {"t": "0.1 for Linf 8/255, 0.075 for L2 0.5", "steps": "1000 t"},
        "differences": "as for coup: the official code clamps (clamp=true)",
        "cite": "zhang2024coup",
    },
}
CASES: Cases = {  # run by every contract test, on every family of score models
    "coup:steps=2": {},
    "coup:steps=2,clamp=true": {},
    "reverse-sde:steps=2": {},
}


class Coup(ReverseVP):
    def __init__(self, score: Score, classifier: Classifier | None, t: float, steps: int, guidance: float, clamp: bool):
        super().__init__(score, t, steps)
        self.classifier, self.guidance, self.clamp = classifier, guidance, clamp

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        x = super().start(x, noise)
        return x.clamp(-1, 1) if self.clamp else x

    def score(self, x: Tensor, t: float) -> Tensor:
        score = super().score(x, t)
        if self.guidance == 0:
            return score
        return score + self.guidance * chain.inner_grad(self.log_confidence, x)

    def log_confidence(self, x: Tensor) -> Tensor:
        """(B,): log max_y p(y | (x+1)/2) of states on the [-1,1] scale; the class is taken anew at every step."""
        assert self.classifier is not None  # not asked with guidance 0, and `reverse_sde` has none
        return self.classifier((x + 1) / 2).log_softmax(dim=1).amax(dim=1)

    def finish(self, x: Tensor) -> Tensor:
        return super().finish(x.clamp(-1, 1) if self.clamp else x)


def coup(
    score: Score,
    classifier: Classifier | None,
    *,
    t: float = 0.1,
    steps: int = 100,
    guidance: float = 1.0,
    clamp: bool = False,
) -> Coup:
    """COUP, Algorithm 1. t: starting time t* in (0,1]; steps: Euler steps of t/steps; guidance: lambda, of the gradient with
    respect to the [-1,1] state; clamp: input and result to [-1,1] as in the official code. Random: one normal per step."""
    return Coup(score, classifier, t, steps, guidance, clamp)


def reverse_sde(
    score: Score, classifier: Classifier | None = None, *, t: float = 0.1, steps: int = 100, clamp: bool = False
) -> Coup:
    """COUP's "w/o guidance" row: `coup` with lambda = 0, no classifier called; t, steps, clamp as there. Random: one normal per
    step."""
    return Coup(score, None, t, steps, 0.0, clamp)
