"""Steps of the bare classifier at purified images, as ADP's adaptive attacks sum them (Yoon, Hwang & Lee 2021; its published code)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, combine
from purebench.engine.rows import per_row

ROUNDING = 1e-6


@dataclass(frozen=True)
class Steps:
    """Of one batch: `found`, the classifier's gradients at the purified images as one, whose `grad` (like x) is the sum of their sign
    steps; `moved` (like x, float64): the sum of what purification did to x."""

    found: Gradient
    moved: Tensor


def sign_steps(
    defense: Defense, x: Tensor, y: Tensor, loss: str, noise: Noise, *, eot: int, step: float, observe: bool = True
) -> Steps:
    """Purifies x (B,C,H,W) `eot` times (times votes), makes one sign step of size `step` on the bare classifier's `loss` at each purified
    image, clipped to [0,1], and sums the steps.

    In float64, where equal steps cancel exactly; in float32, as published, what is left of them is rounding, whose sign then moves a
    pixel by a whole step. Random: the purifications that `Defense.loss_grad` has under the same `noise`."""
    copies = eot * defense.votes
    samples = (noise.samples[:, None] * copies + torch.arange(copies)).flatten()
    rows = noise.rows(noise.ids.repeat_interleave(copies), samples)
    purified = defense.purify(x.repeat_interleave(copies, 0), rows)
    each = defense.undefended().loss_grad(purified, y.repeat_interleave(copies), loss, rows, observe=False)
    # Of 24 bits, as in the published code: then sums of a few are exact.
    size = torch.tensor(step, dtype=torch.float32).double().item()
    inside = purified.double().clamp(0, 1)
    up, down = _felt(1 - inside).clamp(max=size), _felt(inside).clamp(max=size)
    steps = torch.where(each.grad > 0, up, torch.where(each.grad < 0, -down, 0.0))
    found = _together(each, len(x), copies, steps.unflatten(0, (len(x), copies)).sum(1), defense)
    if observe:
        defense.observed.add(noise.ids, y, found)
    moved = _felt(purified.double() - x.double().repeat_interleave(copies, 0))
    return Steps(found, moved.unflatten(0, (len(x), copies)).sum(1))


def _felt(change: Tensor) -> Tensor:
    """0 for what is less than the rounding of a purified image: at the edge of [0,1] its sign would be chance."""
    return change.where(change.abs() > ROUNDING, 0)


def _together(each: Gradient, images: int, copies: int, steps: Tensor, defense: Defense) -> Gradient:
    """The gradients of an image's purifications, which are rows of `each`, as one of the image, with `grad` the summed `steps`."""
    logits = each.logits[0].unflatten(0, (images, copies // defense.votes, defense.votes))
    how = "softmax" if defense.combine == "vote" else defense.combine
    draws = combine(logits, how, 2) if defense.votes > 1 else logits[:, :, 0]
    finite = each.finite.unflatten(0, (images, copies)).any(1)
    grad = steps.where(per_row(finite, steps), 0).to(each.grad.dtype)
    return replace(
        each, loss=each.loss.unflatten(0, (images, copies)).mean(1), grad=grad, logits=draws.transpose(0, 1), finite=finite
    )  # fmt: skip
