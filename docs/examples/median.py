"""Median filtering (Xu et al. 2018, NDSS, "Feature Squeezing"): every pixel becomes the median of its neighbourhood."""

import torch
import torch.nn.functional as F

INFO = {
    "median": {
        "summary": "median filter, one pass per step",
        "formula": "x_ij <- median of the size x size pixels around x_ij, `steps` times",
        "calls": "none",
        "random": False,
        "output": "unit",
        "version": 1,
        "needs": [],
    }
}


class Median:
    def __init__(self, size: int, steps: int):
        self.size, self.n = size, steps

    def start(self, x, noise):
        return x

    def step(self, k, x, noise):
        edge = self.size // 2
        padded = F.pad(x, (edge, edge, edge, edge), mode="replicate")
        patches = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return torch.median(patches.flatten(-2), dim=-1).values

    def finish(self, x):
        return x


def median(score=None, classifier=None, *, size: int = 3, steps: int = 1):
    """size: side of the neighbourhood in pixels, odd; steps: passes. Input and output (B,C,H,W) in [0,1]. Nothing is random."""
    return Median(size, steps)
