"""Draws by which an attack chooses among its own images: a role of their own, so that nothing is judged on the draws that chose it."""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.engine.defense import Defense, predicted
from purebench.engine.noise import Noise
from purebench.engine.objective import margin


def selecting(noise: Noise, *path: str | int) -> Noise:
    """The stream `path` of the role "select", for the rows of an attack's `noise`: disjoint from the attack's draws and the judge's."""
    return type(noise)(noise.seed, "select", noise.path + path, noise.ids, noise.samples, noise.scale)


def standing(defense: Defense, x: Tensor, y: Tensor, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
    """(B,) int64 as `correct`, and (B,) the mean margin of the same purifications, infinite where a logit is not finite."""
    logits = defense.draws(x, noise, 0, draws)
    flat, labels = logits.flatten(0, 1), y.repeat_interleave(draws)
    ahead = margin(flat, labels).where(flat.isfinite().all(1), torch.inf).unflatten(0, logits.shape[:2]).mean(1)
    return (predicted(logits) == y[:, None]).sum(1), ahead


def closer(ours: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor]) -> Tensor:
    """(B,) bool: where `ours`, by `standing`, is nearer to being broken than `best`: fewer answers right, or as many by a larger margin."""
    return (ours[0] < best[0]) | ((ours[0] == best[0]) & (ours[1] > best[1]))


def correct(defense: Defense, x: Tensor, y: Tensor, noise: Noise, draws: int) -> Tensor:
    """(B,) int64: how many of so many purifications of x (B,C,H,W), by `noise`, are still classified as y (B,)."""
    return (predicted(defense.draws(x, noise, 0, draws)) == y[:, None]).sum(1)
