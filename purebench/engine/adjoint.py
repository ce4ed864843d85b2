"""torchsde's stochastic adjoint (Li et al. 2020), as DiffPure and COUP evaluate: the gradient that the papers report.

It is not the gradient of the sampled path. It integrates an adjoint SDE backwards from the end, on a grid that starts at the
end and so lies beside the forward one; the Brownian path is the chain's own, continued between its grid points by one
counter-based bridge draw per interior time.
"""

from __future__ import annotations

import bisect
import contextvars
import math
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.errors import unknown


class SDE(chain.Purifier, Protocol):
    """A purifier whose steps are those of a solver: drift and diffusion of the solver time s, which runs through `times`, t in all."""

    t: float
    times: list[float]

    def drift(self, s: float, x: Tensor) -> Tensor: ...
    def diffusion(self, s: float) -> float: ...


class ChainBrownian:
    """The Brownian path whose increments over the chain's grid are the chain's own draws. Called by torchsde as bm(a, b).

    Between grid points the path is a Brownian bridge: each new interior time takes one draw of its step, in order of asking."""

    def __init__(self, times: list[float], like: Tensor, noise: Noise):
        self.times, self.noise, self.like = times, noise, like
        self.dtype, self.device = like.dtype, like.device
        self.shape = torch.Size((len(like), like[0].numel()))
        self.levy_area_approximation = "none"
        # step k -> times s within it, in order, and W(s) - W(times[k])
        self._known: dict[int, list[tuple[float, Tensor]]] = {}

    def _points(self, k: int) -> list[tuple[float, Tensor]]:
        if k not in self._known:
            a, b = self.times[k], self.times[k + 1]
            whole = math.sqrt(b - a) * self.noise.normal(k, self.like)
            self._known[k] = [(a, torch.zeros_like(whole)), (b, whole)]
        return self._known[k]

    def _locate(self, s: float) -> tuple[int, Tensor]:
        """(k, W(s) - W(times[k])) for the step k that s lies in; times beyond the grid's ends count as the ends."""
        k = min(max(bisect.bisect_right(self.times, s) - 1, 0), len(self.times) - 2)
        points = self._points(k)
        i = bisect.bisect_left(points, s, key=lambda p: p[0])
        if i == 0 or i == len(points) or points[i][0] == s:
            return k, points[min(i, len(points) - 1)][1]
        (a, left), (b, right) = points[i - 1], points[i]
        mean = ((b - s) * left + (s - a) * right) / (b - a)
        draw = self.noise.normal(k, self.like, draw=len(points) - 1)
        points.insert(i, (s, mean + math.sqrt((s - a) * (b - s) / (b - a)) * draw))
        return k, points[i][1]

    def __call__(
        self, ta: float | Tensor, tb: float | Tensor, return_U: bool = False, return_A: bool = False
    ) -> Tensor:
        """W(tb) - W(ta), (B, C*H*W)."""
        (first, before), (last, after) = self._locate(float(ta)), self._locate(float(tb))
        for k in range(first, last):
            after = after + self._points(k)[-1][1]
        return (after - before).flatten(1)


class _SDE(nn.Module):
    """A Diffusion purifier as torchsde wants it: flat states, drift f and diffusion g of the solver time."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, purifier: SDE, shape: torch.Size):
        super().__init__()
        self.purifier, self.shape = purifier, shape
        # torchsde calls f on autograd's own thread for a GPU, which has an empty one
        self.context = contextvars.copy_context()

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        return self.context.run(self.purifier.drift, float(s), x.view(-1, *self.shape)).flatten(1)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, self.purifier.diffusion(float(s)))


def vjp(
    purifier: SDE, x: Tensor, noise: Noise, cotangent: chain.Cotangent, *, guidance: str = "detached"
) -> tuple[Tensor, Tensor]:
    """(purified x, the adjoint's gradient) of a Diffusion purifier; `cotangent` as for `chain.vjp`.

    guidance: `detached`, as in COUP's code, or `exact`: whether the drift's own guidance is differentiated."""
    import torchsde

    if guidance not in ("detached", "exact"):
        raise unknown("guidance", guidance, ["detached", "exact"])
    inside = x.detach().requires_grad_()
    with torch.enable_grad(), chain.detached() if guidance == "detached" else nullcontext():
        state = purifier.start(inside, noise)
        bm = ChainBrownian(purifier.times, state.detach(), noise)
        times = torch.tensor([purifier.times[0], purifier.times[-1]], dtype=torch.float32, device=x.device)
        end = torchsde.sdeint_adjoint(
            _SDE(purifier, state.shape[1:]),
            state.flatten(1),
            times,
            bm=bm,
            method="euler",
            dt=purifier.t / purifier.n,
            adjoint_params=(),
        )[-1]
        out = purifier.finish(end.view(-1, *state.shape[1:]))
        purified = out.detach()
        grad = torch.autograd.grad(out, inside, cotangent(purified) if callable(cotangent) else cotangent)[0]
    return purified, grad
