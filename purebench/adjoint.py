"""torchsde's stochastic adjoint (Li et al. 2020), as DiffPure and COUP evaluate: the gradient that the papers report.

It is not the gradient of the sampled path. It integrates an adjoint SDE backwards from the end, on a grid that starts at the
end and so lies beside the forward one; the Brownian path is the chain's own, continued between its grid points by one
counter-based bridge draw per interior time.
"""

from __future__ import annotations

import bisect
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from purebench import chain
from purebench.noise import Noise


class ChainBrownian:
    """The Brownian path whose increments over the chain's grid are the chain's own draws. Called by torchsde as bm(a, b)."""

    def __init__(self, times: list[float], like: Tensor, noise: Noise):
        self.times, self.noise, self.like = times, noise, like
        self.dtype, self.device = like.dtype, like.device
        self.shape = torch.Size((len(like), like[0].numel()))
        self.levy_area_approximation = "none"
        self._grid = [torch.zeros_like(like)]  # W at the grid times
        for k, (a, b) in enumerate(zip(times, times[1:], strict=False)):
            self._grid.append(self._grid[-1] + math.sqrt(b - a) * noise.normal(k, like))
        self._between: dict[int, tuple[float, Tensor]] = {}  # interval -> its one interior time, and W there

    def at(self, s: float) -> Tensor:
        """W(s), (B,C,H,W)."""
        k = min(max(bisect.bisect_right(self.times, s) - 1, 0), len(self.times) - 2)
        a, b = self.times[k], self.times[k + 1]
        if s <= a or s >= b:
            return self._grid[k if s <= a else k + 1]
        if k in self._between and self._between[k][0] != s:
            raise ValueError(f"the backward grid meets the step at s={a} twice; the bridge has one draw per step")
        if k not in self._between:
            mean = ((b - s) * self._grid[k] + (s - a) * self._grid[k + 1]) / (b - a)
            self._between[k] = (
                s,
                mean + math.sqrt((s - a) * (b - s) / (b - a)) * self.noise.normal(k, self.like, draw=1),
            )
        return self._between[k][1]

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        return (self.at(float(tb)) - self.at(float(ta))).flatten(1)


class _SDE(nn.Module):
    """A Diffusion purifier as torchsde wants it: flat states, drift f and diffusion g of the solver time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, purifier: Any, shape: torch.Size):
        super().__init__()
        self.purifier, self.shape = purifier, shape

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        return self.purifier.drift(float(s), x.view(-1, *self.shape)).flatten(1)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, self.purifier.diffusion(float(s)))


def vjp(purifier: Any, x: Tensor, noise: Noise, cotangent: Any, *, guidance: str = "detached") -> tuple[Tensor, Tensor]:
    """(purified x, the adjoint's gradient) of a Diffusion purifier; `cotangent` as for `chain.vjp`.

    guidance: `detached`, as in COUP's code, or `exact`: whether the drift's own guidance is differentiated."""
    import torchsde

    inside = x.detach().requires_grad_()
    with torch.enable_grad(), chain.detached() if guidance == "detached" else nullcontext():
        state = purifier.start(inside, noise)
        bm = ChainBrownian(purifier.times, state.detach(), noise)
        times = torch.tensor([purifier.times[0], purifier.times[-1]], dtype=torch.float32, device=x.device)
        end = torchsde.sdeint_adjoint(
            _SDE(purifier, x.shape[1:]),
            state.flatten(1),
            times,
            bm=bm,
            method="euler",
            dt=purifier.t / purifier.n,
            adjoint_params=(),
        )[-1]
        out = purifier.finish(end.view(-1, *x.shape[1:]))
        purified = out.detach()
        grad = torch.autograd.grad(out, inside, cotangent(purified) if callable(cotangent) else cotangent)[0]
    return purified, grad
