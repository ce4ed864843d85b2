"""DiffPure (Nie et al. 2022, ICML, section 3.2): diffuse the image to t*, then integrate the reverse VP-SDE back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from purebench.errors import UserError
from purebench.noise import Noise
from purebench.purifiers.vpsde import BETA_MAX, BETA_MIN, ReverseVP

INFO = {
    "diffpure": {
        "summary": "diffuse to t*, then reverse VP-SDE",
        "formula": "x_t* = sqrt(abar) x + sqrt(1 - abar) eps;  dx = [beta x / 2 + beta score(x, t)] ds + sqrt(beta) dw, from t* to 1e-5",
        "nfe": "steps",
        "random": True,
        "output": "unbounded",
        "version": 1,
        "needs": ["score"],
        "sde": True,
        "requires": ["0 < t <= 1", "steps >= 1", "t / steps > 0.00002", "1000 * t >= 0.5"],
        "paper": {
            "t": "0.1 for Linf 8/255, 0.075 for L2 0.5, 0.125 for ResNet-50 and L2 1, 0.15 on ImageNet",
            "steps": "1000 t",
        },
        "differences": "none known: the code noises by the discrete schedule at index 1000 t* - 1 and solves the continuous SDE; so do we",
        "cite": """@inproceedings{nie2022diffpure,
  title={Diffusion Models for Adversarial Purification},
  author={Nie, Weili and Guo, Brandon and Huang, Yujia and Xiao, Chaowei and Vahdat, Arash and Anandkumar, Anima},
  booktitle={International Conference on Machine Learning},
  year={2022}
}""",
    }
}


class DiffPure(ReverseVP):
    def __init__(self, score: Any, t: float, steps: int):
        super().__init__(score, t, steps)
        index = round(1000 * t)
        if index < 1:
            raise UserError(f"`t={t}` rounds to step 0 of the 1000 forward steps", "t is a multiple of 0.001")
        betas = np.linspace(BETA_MIN / 1000, BETA_MAX / 1000, 1000)
        self.abar = float(np.cumprod(1 - betas)[index - 1])

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        x = super().start(x, noise)
        return math.sqrt(self.abar) * x + math.sqrt(1 - self.abar) * noise.normal(-1, x)


def diffpure(score: Any, classifier: Any = None, *, t: float = 0.1, steps: int = 100) -> DiffPure:
    """DiffPure's `sde` runner. t: diffusion time t* in (0,1], a multiple of 0.001; steps: Euler steps of t/steps each.

    Output (B,C,H,W), not clipped. Random: the forward noise and one normal per step. Source: runners/diffpure_sde.py."""
    return DiffPure(score, t, steps)
