"""Median filtering (Xu et al. 2018, NDSS, "Feature Squeezing"): every pixel becomes the median of its neighbourhood."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purebench.engine.noise import Noise
from purebench.errors import UserError

INFO = {
    "median": {
        "summary": "median filter, one pass per step",
        "formula": "x_ij <- median of the size x size pixels around x_ij, `steps` times",
        "calls": "none",
        "random": False,
        "output": "unit",
        "version": 1,
        "needs": [],
        "requires": ["size >= 1", "steps >= 1"],
        "paper": {"size": "2 (MNIST, CIFAR-10, ImageNet) and 3 (MNIST); here odd sizes alone"},
        "cite": """@inproceedings{xu2018feature,
  title={Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks},
  author={Xu, Weilin and Evans, David and Qi, Yanjun},
  booktitle={Network and Distributed System Security Symposium},
  year={2018}
}""",
    }
}
CASES: dict[str, dict[str, Any]] = {  # run by every contract test, on every family of score models
    "median:steps=2": {"gives": [0.9207476841219603, 0.2882358921361502, 0.5237520594022435]},
    "median:size=5": {},
}


class Median:
    """State: x (B,C,H,W) in [0,1]. Nothing is random."""

    def __init__(self, size: int, steps: int):
        if size % 2 == 0:  # `requires` has no remainder
            raise UserError(f"`size={size}` of `median` is even: a neighbourhood has a centre", f"try size={size + 1}")
        self.size, self.n = size, steps

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return x

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        edge = self.size // 2
        padded = F.pad(x, (edge, edge, edge, edge), mode="replicate")
        patches = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return torch.median(patches.flatten(-2), dim=-1).values

    def finish(self, x: Tensor) -> Tensor:
        return x


def median(score: Any = None, classifier: Any = None, *, size: int = 3, steps: int = 1) -> Median:
    """size: side of the neighbourhood in pixels, odd; steps: passes. Input and output (B,C,H,W) in [0,1]. Nothing is random."""
    return Median(size, steps)
