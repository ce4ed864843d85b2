"""DiffPure written as the repositories of this field are: an `nn.Module` whose `forward(x)` draws with `torch.randn_like` and loops over
the steps. The last ten lines are all that purebench wants.

    purebench run -d ./diffpure_clone.py:DiffPureClone:steps=20 -d diffpure:steps=20 -a pgd-eot
"""

import math

import torch
from torch import nn

INFO = {
    "summary": "DiffPure as a plain forward(x)",
    "output": "unbounded",  # the last step's image is not clipped
    "random": True,
    "needs": ["score"],
}


class RevVPSDE(nn.Module):
    """The reverse VP-SDE: `net(x, 999 t)` predicts the noise of images in [-1,1]."""

    def __init__(self, net: nn.Module, t: int = 100, steps: int = 100):
        super().__init__()
        self.net, self.t, self.steps = net, t, steps
        betas = torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64)
        self.abar = float(torch.cumprod(1 - betas, 0)[t - 1])

    def one(self, x: torch.Tensor, t: float, dt: float) -> torch.Tensor:
        """One Euler-Maruyama step from time t to t - dt."""
        beta = 0.1 + 19.9 * t
        std = math.sqrt(-math.expm1(-(0.1 * t + 19.9 * t**2 / 2)))
        score = -self.net(x, torch.full((len(x),), 999 * t, device=x.device)) / std
        return x + dt * (beta * x / 2 + beta * score) + math.sqrt(beta * dt) * torch.randn_like(x)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        x = 2 * img - 1
        x = math.sqrt(self.abar) * x + math.sqrt(1 - self.abar) * torch.randn_like(x)
        times = torch.linspace(self.t / 1000, 1e-5, self.steps + 1).tolist()
        for i in range(self.steps):
            x = self.one(x, times[i], times[i] - times[i + 1])
        return (x + 1) / 2


# What purebench is given: its own score network of the digits in the place of a checkpoint. Each step is recomputed in the backward
# pass, so that a hundred of them need the memory of one.


class DiffPureClone(RevVPSDE):
    def __init__(self, score, *, t: int = 100, steps: int = 100):
        super().__init__(score.network, t, steps)

    def one(self, x, t, dt):
        import purebench

        return purebench.step(super().one, x, t, dt)


def diffpure_clone(score, classifier=None, *, t: int = 100, steps: int = 100):
    """As a plug-in's factory: `purebench.defense` of entry points."""
    return DiffPureClone(score, t=t, steps=steps)
