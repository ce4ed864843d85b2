"""A defense: purifier, classifier, votes, and the gradient that the attacker uses. What attacks and the judge talk to.

Work is cut into one fixed, padded number of rows: at a fixed shape and one thread, a row's bits depend neither on its mates
nor on its place, so that order, workers and restarts leave every result unchanged.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.engine import chain, gradients
from purebench.engine.identity import Identity
from purebench.engine.nfe import NFE, recomputing
from purebench.engine.noise import Noise
from purebench.errors import UserError, unknown
from purebench.spec import Part

EXACT, BPDA = Part("exact"), Part("bpda")
PADDING = -2  # the image id of padding rows

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N,K), labels (N,) -> (N,), to be maximised


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): scale-free; K >= 3."""
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
        return (share + 1e-6).log() + (soft - soft.detach())
    raise unknown("way to combine", how, ["logits", "softmax", "logsoftmax", "vote"])


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
        zero = (found.grad == 0).flatten(1).all(1) & found.finite
        right = (predicted(found.logits) == y).to(torch.float32).mean(0) >= 0.5
        blind = right & (zero | ~found.finite)
        rows = torch.stack([torch.ones_like(zero), zero, ~found.finite, right, blind]).long().T.tolist()
        for image, row in zip(ids.tolist(), rows, strict=True):
            known = self._counts.setdefault(image, [0] * len(self.FIELDS))
            if not (stops and known[self.FIELDS.index("not_finite")]):
                self._counts[image] = [a + b for a, b in zip(known, row, strict=True)]

    def close(self, ids: list[int]) -> list[dict[str, int] | None]:
        """The counts of each image of a batch since the last close; None where no gradient was asked for. An image that the batch
        holds n times was counted n times over."""
        found, self._counts = self._counts, {}
        return [
            {key: n // ids.count(image) for key, n in zip(self.FIELDS, found[image], strict=True)}
            if image in found
            else None
            for image in ids
        ]


def predicted(logits: Tensor) -> Tensor:
    """(..,K) logits -> (..) classes, -1 where the logits are not finite: an answer that is always wrong."""
    return logits.argmax(-1).where(logits.isfinite().all(-1), -1)


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
    zeroed = draws.where(finite[..., None], 0)
    mean = zeroed.sum(1, keepdim=True) / finite.sum(1)[:, None, None]
    return draws.where(finite[..., None] | ~finite.any(1)[:, None, None], mean)


def _summed(grads: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """(B,..) the sum of the rows of grads (B,copies,..), and (B,) whether it is one: those that are not finite, or whose draw's logits are
    not (`finite` (B,eot)), take no part."""
    copies = grads.shape[1]
    good = grads.isfinite().flatten(2).all(2) & finite.repeat_interleave(copies // finite.shape[1], 1)
    grads = grads.where(good.view(*good.shape, *[1] * (grads.dim() - 2)), 0)
    # One after the other: `sum` adds in an order that depends on the shape, and with it the last bits.
    total = grads[:, 0]
    for i in range(1, copies):
        total = total + grads[:, i]
    return total, good.any(1)


FAINT = 1e-20  # a derivative by the logits below this would be lost on its way through the networks, in float32


def _lifted(d: Tensor, exact: Callable[[], Tensor], images: int) -> Tensor:
    """The derivative d (rows,K) of a loss by the logits, where an image's (its rows follow each other) is everywhere below FAINT scaled
    up: cross-entropy is flat where a classifier is sure, and its float32 derivative soon zero, but its direction is the attack's.

    Scaled by a power of two, under which every bit of a gradient stays; of `exact()`, the same in float64, which reaches down to
    e^-745. What is zero even there stays zero."""
    faint = d.unflatten(0, (images, -1)).flatten(1).nan_to_num().abs().amax(1) < FAINT
    if not faint.any():
        return d
    precise = exact().unflatten(0, (images, -1))
    largest = precise.flatten(1).nan_to_num().abs().amax(1)
    scale = torch.exp2((-largest.log2().floor()).clamp(max=1000)).where(faint & (largest > 0) & largest.isfinite(), 1)
    lifted = (precise * scale.view(-1, 1, 1)).to(d.dtype).flatten(0, 1)
    return lifted.where(faint.repeat_interleave(len(d) // images)[:, None], d)


class Account:
    """Network calls times the rows that needed them. A counter stays open, since a backward may come after its forward."""

    def __init__(self) -> None:
        self._open: list[tuple[NFE, int]] = []

    def add(self, calls: NFE, rows: int) -> None:
        self._open.append((calls, rows))

    def total(self) -> tuple[int, int, int]:
        """(forward, backward, recomputed) since the last close."""
        forward, backward, recomputed = (
            sum(getattr(c, kind) * rows for c, rows in self._open) for kind in ("forward", "backward", "recomputed")
        )
        return forward, backward, recomputed

    def close(self) -> tuple[int, int, int]:
        """The total; the next one starts from zero."""
        total = self.total()
        self._open = []
        return total


class Defense:
    """`votes` purifications combined by `combine` (logits, softmax or vote); `noise`: a factor on the purifier's normal draws, 0 to
    switch them off; `gradient`: a Part of `purebench list gradients`; `surrogate`: the purifier that stands in for ours under
    gradient `surrogate`; `rows`: the padded shape of every network call; `memory`: bytes for states and graphs, None for no
    bound; `on_work(rows x calls)` is told of progress. `not_finite`: image id -> where a purification or a gradient ceased to be;
    `observed`: what the gradients were like."""

    def __init__(
        self,
        purifier: chain.Purifier,
        classifier: nn.Module,
        *,
        votes: int = 1,
        combine: str = "logits",
        noise: float = 1.0,
        gradient: Part = EXACT,
        surrogate: chain.Purifier | None = None,
        rows: int = 64,
        memory: int | None = None,
        on_work: Callable[[int], None] | None = None,
    ):
        if votes < 1:
            raise UserError(f"`votes={votes}`: a defense purifies at least once", "votes=1 is the single purification")
        if gradient.name == "adjoint" and not hasattr(purifier, "drift") and purifier.n:
            raise UserError("the adjoint gradient needs a purifier that is an SDE", "use `--grad exact`")
        self.way = gradients.of(gradient)  # how it is carried out
        self.purifier, self.classifier, self.votes, self.combine = purifier, classifier, votes, combine
        self.gradient, self.surrogate, self.rows, self.memory = gradient, surrogate, rows, memory
        self.noise, self.on_work = noise, on_work
        self.spent = Account()
        self.not_finite: dict[int, str] = {}
        self.observed = Observed()
        self.score: Any = None  # the score model, for whoever wants to look at it

    def undefended(self) -> Defense:
        """The classifier alone, counted on the same account."""
        bare = Defense(Identity(), self.classifier, rows=self.rows, on_work=self.on_work)
        bare.spent, bare.not_finite, bare.observed = self.spent, self.not_finite, self.observed
        return bare

    def using(self, gradient: Part) -> Defense:
        """The same defense under another gradient, counted on the same account."""
        other = Defense(
            self.purifier, self.classifier, votes=self.votes, combine=self.combine, noise=self.noise, gradient=gradient,
            surrogate=self.surrogate, rows=self.rows, memory=self.memory, on_work=self.on_work,
        )  # fmt: skip
        other.spent, other.not_finite, other.observed = self.spent, self.not_finite, self.observed
        return other

    # ------------------------------------------------------------------------------------------------------------ forward

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """One purification of each row of x (B,C,H,W) in [0,1]; no gradient."""
        return torch.cat([self._run(chunk)[: chunk.real] for chunk in self._chunks(x, noise, 1)])

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        """(B,K) logits of x (B,C,H,W); differentiable in x by the defense's gradient. Random unless the purifier is not."""
        if not len(x):  # AutoAttack's Square asks for the logits of no image
            return self.classifier(x.new_full((self.rows, *x.shape[1:]), 0.5))[:0]
        parts = []
        for chunk in self._chunks(x, noise, self.votes):
            with chain.nfe() as calls:
                differentiate = torch.is_grad_enabled() and chunk.x.requires_grad
                purified = (
                    _Purified.apply(chunk.x, self, chunk.noise) if differentiate else self._run(chunk, count=False)
                )
                parts.append(self._answers(purified)[: chunk.real])
            self._count(calls, chunk.real)
            self._check(chunk, parts[-1], "the classifier")
        logits = torch.cat(parts)
        return combine(logits.unflatten(0, (len(x), self.votes)), self.combine, 1) if self.votes > 1 else logits

    def predict(self, x: Tensor, noise: Noise) -> Tensor:
        """(B,) predicted classes, -1 where the logits are not finite; no gradient."""
        with torch.no_grad():
            return predicted(self.logits(x, noise))

    def draws(self, x: Tensor, noise: Noise, first: int, last: int) -> Tensor:
        """(B, last - first, K) logits of the purifications numbered first..last-1, folded into rows; no gradient."""
        count = last - first
        rows = noise.rows(noise.ids.repeat_interleave(count), torch.arange(first, last).repeat(len(x)))
        with torch.no_grad():
            return self.logits(x.repeat_interleave(count, 0), rows).unflatten(0, (len(x), count))

    # ----------------------------------------------------------------------------------------------------------- gradient

    def loss_grad(
        self, x: Tensor, y: Tensor, loss: str | Loss, noise: Noise, *, eot: int = 1, average: str = "loss", observe: bool = True
    ) -> Gradient:  # fmt: skip
        """The expectation over `eot` purifications (times votes), folded into rows, and its gradient by the defense's gradient.

        x (B,C,H,W) in [0,1], y (B,); `loss`: a name in LOSSES or a function. `average`: the mean of the draws' `loss`, or the
        loss of their mean `logits`, `softmax` or `logsoftmax`. `observe`: count what the gradient was like in `observed`, under the
        image ids of `noise`. Random: the purifications numbered sample * eot * votes + i.
        """
        loss = LOSSES[loss] if isinstance(loss, str) else loss
        images, copies = len(x), eot * self.votes

        def objective(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            """Loss per image (b,), and the draws' logits (b,eot,K), of logits (b*eot*votes,K)."""
            logits = logits.unflatten(0, (-1, eot, self.votes))
            draws = (
                combine(logits, "softmax" if self.combine == "vote" else self.combine, 2)
                if self.votes > 1
                else logits[:, :, 0]
            )
            finite = draws.isfinite().all(2)
            if average == "loss":
                rows = loss(draws.flatten(0, 1), y.repeat_interleave(eot)).unflatten(0, (-1, eot))
                # The sum, divided by eot below: the order of AutoAttack's own loop.
                return _worst_for_bad(rows, finite).sum(1), draws
            return loss(combine(_mean_for_bad(draws, finite), average, 1), y), draws

        flat = loss is cross_entropy
        whole = copies <= self.rows  # chunks of whole images: the objective is known as soon as a chunk's logits are
        losses: list[Tensor] = []
        draws: list[Tensor] = []
        grads: list[Tensor] = []
        ahead: Tensor | None = None
        if not whole:  # an image's draws span several chunks: all logits first, then the gradients
            with torch.no_grad():
                all_logits = torch.cat([self._classify(c) for c in self._chunks(x, noise, copies)])
            ahead = self._derivative(lambda leaf: objective(leaf, y), all_logits, losses, draws, flat)
        for chunk in self._chunks(x, noise, copies, aligned=whole):

            def derivative(logits: Tensor, chunk: _Chunk = chunk) -> Tensor:
                if ahead is not None:
                    return ahead[chunk.first : chunk.first + chunk.real]
                labels = y[chunk.first // copies : (chunk.first + chunk.real) // copies]
                return self._derivative(lambda leaf: objective(leaf, labels), logits, losses, draws, flat)

            grads.append(self._pull(chunk, derivative))
        scale = eot if average == "loss" else 1
        seen = torch.cat(draws)  # (images,eot,K)
        total, some = _summed(torch.cat(grads).unflatten(0, (images, copies)), seen.isfinite().all(2))
        total = total / scale
        finite = some & total.isfinite().flatten(1).all(1)  # the sum of huge ones may not be
        total = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), total, 0)
        found = Gradient(torch.cat(losses) / scale, total, seen.transpose(0, 1), finite)
        if observe:
            self.observed.add(noise.ids, y, found)
        return found

    @staticmethod
    def _derivative(
        objective: Callable[[Tensor], tuple[Tensor, Tensor]],
        logits: Tensor,
        losses: list[Tensor],
        draws: list[Tensor],
        flat: bool,
    ) -> Tensor:
        """The objective's derivative by the logits; its losses and draws are appended. `flat`: whether it fades where a classifier is
        sure, as cross-entropy does. Of other losses a derivative near zero is rounding."""

        def derive(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                loss, seen = objective(leaf)
                return torch.autograd.grad(loss.sum(), leaf)[0], loss.detach(), seen.detach()

        d, loss, seen = derive(logits)
        losses.append(loss)
        draws.append(seen)
        return _lifted(d, lambda: derive(logits.double())[0], len(loss)) if flat else d

    def _pull(self, chunk: _Chunk, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        """The chunk's gradient rows, from the derivative of the objective by its logits."""

        def cotangent(purified: Tensor) -> Tensor:
            with torch.enable_grad():
                purified = purified.detach().requires_grad_()
                logits = self._answers(purified)
                d = derivative(logits[: chunk.real])
                if not logits.requires_grad:  # an answer that does not depend on the image
                    return torch.zeros_like(purified)
                return torch.autograd.grad((logits[: chunk.real] * d).sum(), purified)[0]

        with chain.nfe() as calls:
            grad = self.way.vjp(self, chunk.x.detach(), chunk.noise, cotangent)[1][: chunk.real]
        self._count(calls, chunk.real)
        self._check(chunk, grad, "the gradient")
        return grad

    def _check(self, chunk: _Chunk, values: Tensor, last: str) -> None:
        """Notes in `not_finite` where the rows of values (rows, ...) that are not finite ceased to be: the chunk's chain is walked
        again for that. `last`: where, if no state of the chain is to blame."""
        finite = values.detach().isfinite().flatten(1).all(1)
        if finite.all():
            return
        since: dict[int, int] = {}

        def blame(k: int, state: chain.State) -> None:
            for part in state if isinstance(state, tuple) else (state,):
                for row in (~part.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist() if part.dim() else []:
                    since.setdefault(row, k)

        purifier = self.way.walked(self) if last == "the gradient" else self.purifier
        chain.run(purifier, chunk.x.detach(), chunk.noise, on_state=blame)
        for row in (~finite).nonzero()[:, 0].tolist():
            k = since.get(row)
            place = last if k is None else f"step {k - 1} of {purifier.n}" if k else "the start"
            self.not_finite.setdefault(int(chunk.noise.ids[row]), f"{place} gave values that are not finite")

    # --------------------------------------------------------------------------------------------------------------- rows

    def _chunks(self, x: Tensor, noise: Noise, copies: int, aligned: bool = False) -> Iterator[_Chunk]:
        """Rows (image 0, copy 0), (image 0, copy 1), .. in chunks of `self.rows`, the last padded; `aligned`: whole images only."""
        total = len(x) * copies
        size = self.rows // copies * copies if aligned else self.rows
        for first in range(0, total, size):
            rows = torch.arange(first, min(first + size, total))
            image = rows // copies
            pad = self.rows - len(rows)
            ids = torch.cat([noise.ids[image], torch.full((pad,), PADDING)])
            samples = torch.cat([noise.samples[image] * copies + rows % copies, torch.zeros(pad, dtype=torch.int64)])
            part = x[image.to(x.device)]
            part = torch.cat([part, part.new_full((pad, *x.shape[1:]), 0.5)]) if pad else part
            yield _Chunk(part, noise.rows(ids, samples).scaled(self.noise), first, len(rows))

    def _run(self, chunk: _Chunk, count: bool = True) -> Tensor:
        with chain.nfe() as calls:
            purified = chain.run(self.purifier, chunk.x, chunk.noise)
        if count:
            self._count(calls, chunk.real)
        return purified

    def _classify(self, chunk: _Chunk) -> Tensor:
        with chain.nfe() as calls, recomputing():  # done again, with a graph, by the pass that takes the gradient
            logits = self._answers(chain.run(self.way.walked(self), chunk.x, chunk.noise))[: chunk.real]
        self._count(calls, chunk.real)
        return logits

    def _answers(self, purified: Tensor) -> Tensor:
        """Logits of purified images; none that are finite of an image that is not, whatever a classifier makes of it."""
        logits = self.classifier(purified)
        finite = purified.detach().isfinite().flatten(1).all(1)
        return logits.where(finite.view(-1, *[1] * (logits.dim() - 1)), torch.nan)

    def _count(self, calls: NFE, rows: int) -> None:
        self.spent.add(calls, rows)
        if self.on_work:
            self.on_work((calls.forward + calls.backward) * rows)


@dataclass(frozen=True)
class _Chunk:
    x: Tensor
    noise: Noise
    first: int
    real: int


class _Purified(torch.autograd.Function):
    """The purifier as one differentiable operation whose backward is the defense's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, defense: Defense, noise: Noise) -> Tensor:
        ctx.context = contextvars.copy_context()  # backward may run on autograd's own thread, which has an empty one
        purified, ctx.pull = defense.way.record(defense, x, noise)
        return purified

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        grad = ctx.context.run(ctx.pull, *cotangents)
        finite = grad.isfinite().flatten(1).all(1)
        return torch.where(finite.view(-1, *[1] * (grad.dim() - 1)), grad, 0), None, None  # as in `Gradient`
