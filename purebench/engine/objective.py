"""What an attack maximises: a loss of the logits of several draws, its derivative by them, and what its gradients were like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from purebench.engine.rows import finite_rows, per_row
from purebench.errors import UserError, unknown

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N,K), labels (N,) -> (N,), to be maximised


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): scale-free. Raises UserError for fewer than 3 classes."""
    if logits.shape[1] < 3:
        raise UserError(
            f"the DLR loss needs at least 3 classes, got {logits.shape[1]}", "use `-a apgd-ce`, or `loss=margin`"
        )
    ordered, place = logits.sort(dim=1)
    right = (place[:, -1] == y).to(logits.dtype)
    other = ordered[:, -2] * right + ordered[:, -1] * (1 - right)
    return -(logits.gather(1, y[:, None])[:, 0] - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the right one (Carlini and Wagner 2017, f6)."""
    right = logits.gather(1, y[:, None])
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right[:, 0]


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "margin": margin}


def combine(logits: Tensor, how: str, dim: int) -> Tensor:
    """Several purifications' logits as one: the mean of `logits`, of `logsoftmax`, the log of the mean `softmax`; or, by `vote`,
    the log of the share of votes with the gradient of the mean softmax."""
    if how == "logits":
        return logits.mean(dim)
    if how == "logsoftmax":
        return logits.log_softmax(-1).mean(dim)
    soft = logits.log_softmax(-1).logsumexp(dim) - math.log(logits.shape[dim])
    if how == "softmax":
        return soft
    if how == "vote":
        share = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype).mean(dim)
        # A count has no gradient. `soft` less itself adds zero to the value, and its own gradient.
        return (share + 1e-6).log() + (soft - soft.detach())
    raise unknown("way to combine", how, ["logits", "softmax", "logsoftmax", "vote"])


def predicted(logits: Tensor) -> Tensor:
    """(..,K) logits -> (..) classes, -1 where the logits are not finite: an answer that is always wrong."""
    return logits.argmax(-1).where(logits.isfinite().all(-1), -1)


class Objective:
    """The mean over `eot` draws of `loss`, or the loss of their mean `average` (`logits`, `softmax` or `logsoftmax`); a draw is `votes`
    purifications put together by `combined`. Remembers, of each batch in turn, `losses` (b,) and the draws' logits `draws` (b,eot,K)."""

    def __init__(self, loss: Loss, *, eot: int, votes: int, combined: str, average: str):
        self.loss, self.eot, self.votes, self.average = loss, eot, votes, average
        # A count of votes is flat almost everywhere; what an attack can climb is the mean of their probabilities.
        self.combined = "softmax" if combined == "vote" else combined
        self.losses: list[Tensor] = []
        self.draws: list[Tensor] = []

    @property
    def scale(self) -> int:
        """What losses and gradients are still to be divided by: a sum, divided at the end, has the bits of AutoAttack's own loop."""
        return self.eot if self.average == "loss" else 1

    def __call__(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss per image (b,), times `scale`; the draws' logits (b,eot,K)) of logits (b*eot*votes,K) and labels (b,)."""
        purified = logits.unflatten(0, (-1, self.eot, self.votes))
        draws = combine(purified, self.combined, 2) if self.votes > 1 else purified[:, :, 0]
        finite = draws.isfinite().all(2)
        if self.average != "loss":
            return self.loss(combine(_mean_for_bad(draws, finite), self.average, 1), y), draws
        losses = self.loss(draws.flatten(0, 1), y.repeat_interleave(self.eot)).unflatten(0, (-1, self.eot))
        return _worst_for_bad(losses, finite).sum(1), draws

    def derivative(self, logits: Tensor, y: Tensor) -> Tensor:
        """The objective's derivative by the logits (b*eot*votes,K), like them."""
        found, loss, draws = self._derive(logits, y)
        self.losses.append(loss)
        self.draws.append(draws)
        # Only cross-entropy fades where a classifier is sure. Of other losses a derivative near zero is rounding.
        if self.loss is not cross_entropy:
            return found
        return _lifted(found, lambda: self._derive(logits.double(), y)[0], len(loss))

    def _derive(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss, draws = self(leaf, y)
            return torch.autograd.grad(loss.sum(), leaf)[0], loss.detach(), draws.detach()


def _worst_for_bad(losses: Tensor, finite: Tensor) -> Tensor:
    """(B,eot) losses; those of draws that are not finite are the image's largest among the others, and infinite where there is none."""
    if finite.all():
        return losses
    worst = losses.detach().where(finite, -torch.inf).amax(1, keepdim=True)
    return losses.where(finite, worst.where(finite.any(1, keepdim=True), torch.inf))


def _mean_for_bad(draws: Tensor, finite: Tensor) -> Tensor:
    """(B,eot,K) logits; those of draws that are not finite are the mean of the image's others, where there are any."""
    if finite.all():
        return draws
    # Zeroed first: one NaN would be the whole mean.
    zeroed = draws.where(finite[..., None], 0)
    mean = zeroed.sum(1, keepdim=True) / finite.sum(1)[:, None, None]
    return draws.where(finite[..., None] | ~finite.any(1)[:, None, None], mean)


FAINT = 1e-20  # a derivative by the logits below this would be lost on its way through the networks, in float32


def _lifted(derivative: Tensor, exact: Callable[[], Tensor], images: int) -> Tensor:
    """The derivative (rows,K) of a loss by the logits, where an image's (its rows follow each other) is everywhere below FAINT scaled
    up: cross-entropy is flat where a classifier is sure, and its float32 derivative soon zero, but its direction is the attack's.

    Scaled by a power of two, under which every bit of a gradient stays; of `exact()`, the same in float64, which reaches down to
    e^-745. What is zero even there stays zero."""
    faint = derivative.unflatten(0, (images, -1)).flatten(1).nan_to_num().abs().amax(1) < FAINT
    if not faint.any():
        return derivative
    precise = exact().unflatten(0, (images, -1))
    largest = precise.flatten(1).nan_to_num().abs().amax(1)
    # Float64 ends at 2^1024: a factor of infinity would make NaN of the entries that are zero.
    scale = torch.exp2((-largest.log2().floor()).clamp(max=1000)).where(faint & (largest > 0) & largest.isfinite(), 1)
    lifted = (precise * per_row(scale, precise)).to(derivative.dtype).flatten(0, 1)
    return lifted.where(faint.repeat_interleave(len(derivative) // images)[:, None], derivative)


# ------------------------------------------------------------------------------------------------------- what comes of it


@dataclass(frozen=True)
class Gradient:
    """Of one batch: `loss` (B,), averaged over the draws; `grad` like x; `logits` (eot,B,K), in sample order; `finite` (B,) bool:
    whether some draw's gradient was finite. A draw whose logits or gradient are not takes no part in `grad`, and in `loss` counts as
    the worst that is finite: a few bad draws shall not hide an image from an attack. Where all are bad, `grad` is zero, and `loss`
    infinite if the logits are. Where it would be too small for float32, an image's `grad` is times a power of two."""

    loss: Tensor
    grad: Tensor
    logits: Tensor
    finite: Tensor


def gathered(rows: Tensor, objective: Objective) -> Gradient:
    """The batch's gradient of the objective, of `rows` (B,copies,..): those of each image's purifications."""
    draws = torch.cat(objective.draws)  # (B,eot,K)
    copies = rows.shape[1]
    good = rows.isfinite().flatten(2).all(2)
    good &= draws.isfinite().all(2).repeat_interleave(copies // objective.eot, 1)
    rows = rows.where(good.view(*good.shape, *[1] * (rows.dim() - 2)), 0)
    # One after the other: `sum` adds in an order that depends on the shape, and with it the last bits.
    total = rows[:, 0]
    for i in range(1, copies):
        total = total + rows[:, i]
    total = total / objective.scale
    # Asked once more: a sum of huge ones may overflow.
    finite = good.any(1) & finite_rows(total)
    total = total.where(per_row(finite, total), 0)
    return Gradient(torch.cat(objective.losses) / objective.scale, total, draws.transpose(0, 1), finite)


class Observed:
    """What the gradients of an attack were like, image by image: a defense whose gradient vanishes looks robust to whoever follows it.

    Per image: `iterates` at which a gradient was asked for; how many of these gradients were exactly `zero` and how many `not_finite`;
    `right`: iterates that were still classified rightly, by half of the draws or more; `blind`: those of them whose gradient was zero
    or not finite. An attack that was blind wherever it still had something to do was no attack (`metrics.masked`)."""

    FIELDS = ("iterates", "zero", "not_finite", "right", "blind")

    def __init__(self) -> None:
        self._counts: dict[int, list[int]] = {}

    def add(self, ids: Tensor, y: Tensor, found: Gradient, *, stops: bool = True) -> None:
        """One gradient of the images `ids` (B,) with labels y (B,). `stops`: whether one that is not finite ends the attack on its image;
        what is asked for afterwards is then no iterate."""
        # A gradient that is not finite is given as zeros, and is not one that vanished.
        zero = (found.grad == 0).flatten(1).all(1) & found.finite
        right = (predicted(found.logits) == y).to(torch.float32).mean(0) >= 0.5
        blind = right & (zero | ~found.finite)
        counts = torch.stack([torch.ones_like(zero), zero, ~found.finite, right, blind]).long().T.tolist()
        for image, new in zip(ids.tolist(), counts, strict=True):
            known = self._counts.setdefault(image, [0] * len(self.FIELDS))
            if not (stops and known[self.FIELDS.index("not_finite")]):
                self._counts[image] = [a + b for a, b in zip(known, new, strict=True)]

    def close(self, ids: list[int]) -> list[dict[str, int] | None]:
        """The counts of each image of a batch since the last close; None where no gradient was asked for."""
        found, self._counts = self._counts, {}
        # An image that the batch holds n times was counted n times over.
        return [
            {key: n // ids.count(image) for key, n in zip(self.FIELDS, found[image], strict=True)}
            if image in found
            else None
            for image in ids
        ]
