"""Draws by which an attack chooses among its own images: a role of their own, so that nothing is judged on the draws that chose it."""

from __future__ import annotations

from torch import Tensor

from purebench.engine.defense import Defense, predicted
from purebench.engine.noise import Noise


def selecting(noise: Noise, *path: str | int) -> Noise:
    """The stream `path` of the role "select", for the rows of an attack's `noise`: disjoint from the attack's draws and the judge's."""
    return type(noise)(noise.seed, "select", noise.path + path, noise.ids, noise.samples, noise.scale)


def correct(defense: Defense, x: Tensor, y: Tensor, noise: Noise, draws: int) -> Tensor:
    """(B,) int64: how many of so many purifications of x (B,C,H,W), by `noise`, are still classified as y (B,)."""
    return (predicted(defense.draws(x, noise, 0, draws)) == y[:, None]).sum(1)
