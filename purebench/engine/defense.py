"""A defense: purifier, classifier, votes, and the gradient that the attacker uses. What attacks and the judge talk to.

Work is cut into one fixed, padded number of rows: at a fixed shape and one thread, a row's bits depend neither on its mates
nor on its place, so that order, workers and restarts leave every result unchanged.
"""

from __future__ import annotations

import contextvars
import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purebench.engine import chain, gradients
from purebench.engine.draws import about
from purebench.engine.identity import Identity
from purebench.engine.nfe import Account, recomputing
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, Gradient, Loss, Objective, Observed, combine, gathered, predicted
from purebench.engine.rows import finite_rows, per_row
from purebench.engine.sizes import resize
from purebench.errors import UserError
from purebench.spec import Part

EXACT, BPDA = Part("exact"), Part("bpda")
# The image id of padding rows; -1 is that of draws that all images share.
PADDING = -2
LEVEL = 0.5  # on the [-1,1] scale, at which a score is asked for: twice ADP's sigma of 0.25, which is on [0,1]
Along = Callable[[Noise], chain.Terms]  # of the draws of some rows, the terms of their states
MARGIN = 0.5  # beyond [0,1], from which on images are taken for those of another scale


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
        self.purifier, self.classifier, self.votes, self.combine = purifier, classifier, votes, combine
        self.surrogate, self.rows, self.memory = surrogate, rows, memory
        self.noise, self.on_work = noise, on_work
        self.gradient = self._gradient(gradient)
        self.spent = Account()
        self.not_finite: dict[int, str] = {}
        self.observed = Observed()
        self.score: Any = None  # the score model, the first of several in rotation; None of a defense without one
        self.bounded = True  # whether images on another scale than [0,1] are refused

    def undefended(self) -> Defense:
        """The classifier alone, counted on the same account; also of purified images, which may leave [0,1]."""
        bare = Defense(Identity(), self.classifier, rows=self.rows, on_work=self.on_work)
        bare.bounded = False
        bare.spent, bare.not_finite, bare.observed = self.spent, self.not_finite, self.observed
        return bare

    def using(self, gradient: Part) -> Defense:
        """The same defense under another gradient, counted on the same account."""
        other = copy.copy(self)
        other.gradient = self._gradient(gradient)
        return other

    def _gradient(self, part: Part) -> gradients.Exact:
        # Asked of the object: a plan checks by INFO, and a purifier that is given by hand has none.
        if part.name == "adjoint" and not hasattr(self.purifier, "drift") and self.purifier.n:
            raise UserError("the adjoint gradient needs a purifier that is an SDE", "use `--grad exact`")
        return gradients.of(part)

    # ------------------------------------------------------------------------------------------------------------ forward

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """One purification of each row of x (B,C,H,W) in [0,1]; no gradient."""
        parts = []
        for chunk in self._chunks(x, noise, 1):
            with self._counting(chunk.real):
                parts.append(chain.run(self.purifier, chunk.x, chunk.noise)[: chunk.real])
        return torch.cat(parts)

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        """(B,K) logits of x (B,C,H,W); differentiable in x by the defense's gradient. Random unless the purifier is not."""
        parts = []
        for chunk in self._chunks(x, noise, self.votes):
            with self._counting(chunk.real):
                if torch.is_grad_enabled() and chunk.x.requires_grad:
                    purified = _Purified.apply(chunk.x, self, chunk.noise)
                else:
                    purified = chain.run(self.purifier, chunk.x, chunk.noise)
                parts.append(self._answers(purified, chunk.noise)[: chunk.real])
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

    def direction(self, x: Tensor, level: float = 0.0) -> Tensor:
        """sigma times the score of x (B,C,H,W) in [0,1], like x: what joint attacks follow, and detection measures. Deterministic.

        Of the score model, the first of several, which sees x at its own size (bilinear there, and its answer back). `level`: the noise
        level sigma on the [-1,1] scale; 0: the purifier's own, if it takes the score at one (`adp`), else LEVEL, within what the model was
        trained on. A network that sees no level, as ADP ran NCSNv2, gives the same at any. The product is the same on the [0,1] and
        the [-1,1] scale. Raises UserError for a defense without a score model."""
        if self.score is None:
            raise UserError("this defense has no score model, and so no direction", "take one that purifies by a score")
        own = getattr(self.purifier, "levels", None)
        usual = own[0] if own else min(max(LEVEL, self.score.sigma_min), self.score.sigma_max)
        inner, outer = (self.score.size[1], self.score.size[2]), (x.shape[2], x.shape[3])
        parts = []
        # Of no draws: that of an image is the same whoever asks.
        for chunk in self._chunks(x, Noise(0, "direction", (), range(len(x)), [0] * len(x)), 1):
            with torch.no_grad(), self._counting(chunk.real):
                found = self.score.direction(2 * resize(chunk.x, inner) - 1, level or usual)
            parts.append(resize(found, outer)[: chunk.real])
        return torch.cat(parts)

    # ----------------------------------------------------------------------------------------------------------- gradient

    def loss_grad(
        self, x: Tensor, y: Tensor, loss: str | Loss, noise: Noise, *, eot: int = 1, average: str = "loss", observe: bool = True,
        terms: Along | None = None,
    ) -> Gradient:  # fmt: skip
        """The expectation over `eot` purifications (times votes), folded into rows, and its gradient by the defense's gradient.

        x (B,C,H,W) in [0,1], y (B,); `loss`: a name in LOSSES or a function. `average`: the mean of the draws' `loss`, or the
        loss of their mean `logits`, `softmax` or `logsoftmax`. `observe`: count what the gradient was like in `observed`, under the
        image ids of `noise`. `terms`: of states on a purification's way, ascended beside the loss: summed over an image's
        purifications, divided as the loss is, and no part of `loss`. Random: the purifications numbered sample * eot * votes + i.
        """
        if not len(x):  # what is asked of no image
            none = x.new_zeros(0)
            logits = self.logits(x.detach(), noise)
            return Gradient(none, torch.zeros_like(x), logits.expand(eot, *logits.shape), none.bool())
        objective = Objective(
            LOSSES[loss] if isinstance(loss, str) else loss,
            eot=eot, votes=self.votes, combined=self.combine, average=average,
        )  # fmt: skip
        copies = eot * self.votes
        if copies <= self.rows:
            # Chunks of whole images: the objective is known as soon as a chunk's logits are, and nothing is computed twice.
            rows = []
            for chunk in self._chunks(x, noise, copies, aligned=True):
                labels = y[chunk.first // copies : chunk.last // copies]
                rows.append(self._pull(chunk, partial(objective.derivative, y=labels), terms))
        else:
            # An image's draws span several chunks: all logits first, then the gradients.
            with torch.no_grad():
                logits = torch.cat([self._classify(chunk) for chunk in self._chunks(x, noise, copies)])
            derivative = objective.derivative(logits, y)
            rows = [self._pull(c, derivative[c.first : c.last], terms) for c in self._chunks(x, noise, copies)]
        found = gathered(torch.cat(rows).unflatten(0, (len(x), copies)), objective)
        if observe:
            self.observed.add(noise.ids, y, found)
        return found

    def _pull(
        self, chunk: _Chunk, derivative: Tensor | Callable[[Tensor], Tensor], terms: Along | None = None
    ) -> Tensor:
        """The chunk's gradient rows, from the derivative of the objective by its logits, or a function that makes it of them; `terms`: what
        is added, of the states."""

        def cotangent(purified: Tensor) -> Tensor:
            with torch.enable_grad():
                purified = purified.detach().requires_grad_()
                logits = self._answers(purified, chunk.noise)
                d = derivative(logits[: chunk.real]) if callable(derivative) else derivative
                if not logits.requires_grad:  # an answer that does not depend on the image
                    return torch.zeros_like(purified)
                return torch.autograd.grad((logits[: chunk.real] * d).sum(), purified)[0]

        return self._pulled(chunk, cotangent, terms)

    def pull(self, x: Tensor, noise: Noise, cotangent: Tensor) -> Tensor:
        """(d purified / d x)^T cotangent of one purification of each row of x (B,C,H,W) in [0,1], by the defense's gradient;
        cotangent: like x. The classifier is not asked. Random: the purifications that the rows of `noise` name."""
        rows = []
        for chunk in self._chunks(x, noise, 1):
            rest = cotangent.new_zeros(self.rows - chunk.real, *cotangent.shape[1:])
            given = torch.cat([cotangent[chunk.first : chunk.last], rest])
            rows.append(self._pulled(chunk, partial(_whatever, given)))
        return torch.cat(rows)

    def _pulled(self, chunk: _Chunk, cotangent: Callable[[Tensor], Tensor], terms: Along | None = None) -> Tensor:
        """The gradient rows (real,..) of a chunk, from the cotangent of what is purified."""
        found = terms(chunk.noise) if terms else None
        with self._counting(chunk.real):
            grad = self.gradient.vjp(self, chunk.x.detach(), chunk.noise, cotangent, found)[1][: chunk.real]
        self._check(chunk, grad, "the gradient")
        return grad

    def _check(self, chunk: _Chunk, values: Tensor, last: str) -> None:
        """Notes in `not_finite` where the rows of values (rows, ...) that are not finite ceased to be: the chunk's chain is walked
        again for that. `last`: where, if no state of the chain is to blame."""
        finite = finite_rows(values)
        if finite.all():
            return
        blamed: dict[int, int] = {}  # row -> the k of its first state that is not finite

        def blame(k: int, state: chain.State) -> None:
            for tensor in chain.tensors(state):
                # A scalar in a state is of no row.
                for row in (~finite_rows(tensor)).nonzero()[:, 0].tolist() if tensor.dim() else []:
                    blamed.setdefault(row, k)

        purifier = self.gradient.walked(self) if last == "the gradient" else self.purifier
        chain.run(purifier, chunk.x.detach(), chunk.noise, on_state=blame)
        for row in (~finite).nonzero()[:, 0].tolist():
            k = blamed.get(row)
            place = last if k is None else f"step {k - 1} of {purifier.n}" if k else "the start"
            self.not_finite.setdefault(int(chunk.noise.ids[row]), f"{place} gave values that are not finite")

    # --------------------------------------------------------------------------------------------------------------- rows

    def _chunks(self, x: Tensor, noise: Noise, copies: int, aligned: bool = False) -> Iterator[_Chunk]:
        """Rows (image 0, copy 0), (image 0, copy 1), .. in chunks of `self.rows`, the last padded; `aligned`: whole images only."""
        _check_input(x, noise, self.bounded)
        total = len(x) * copies
        size = self.rows // copies * copies if aligned else self.rows
        # Of no images one chunk of padding: its answers have a shape, and a graph, as any others.
        for first in range(0, max(total, 1), size):
            rows = torch.arange(first, min(first + size, total))
            image = rows // copies
            pad = self.rows - len(rows)
            ids = torch.cat([noise.ids[image], torch.full((pad,), PADDING)])
            samples = torch.cat([noise.samples[image] * copies + rows % copies, torch.zeros(pad, dtype=torch.int64)])
            part = x[image.to(x.device)]
            part = torch.cat([part, part.new_full((pad, *x.shape[1:]), 0.5)]) if pad else part
            yield _Chunk(part, noise.rows(ids, samples).scaled(self.noise), first, len(rows))

    def _classify(self, chunk: _Chunk) -> Tensor:
        # Counted as recomputed: the pass that takes the gradient does it again, with a graph.
        with self._counting(chunk.real), recomputing():
            purified = chain.run(self.gradient.walked(self), chunk.x, chunk.noise)
            return self._answers(purified, chunk.noise)[: chunk.real]

    def _answers(self, purified: Tensor, noise: Noise) -> Tensor:
        """Logits of purified images; none that are finite of an image that is not, whatever a classifier makes of it."""
        with about(noise):
            logits = self.classifier(purified)
        return logits.where(per_row(finite_rows(purified), logits), torch.nan)

    @contextmanager
    def _counting(self, rows: int) -> Iterator[None]:
        """Adds the network calls inside to what was spent, once for each of the `rows` that are no padding."""
        with chain.nfe() as calls:
            yield
        self.spent.add(calls, rows)
        if self.on_work:
            self.on_work((calls.forward + calls.backward) * rows)


@dataclass(frozen=True)
class _Chunk:
    """One call of the networks: its first `real` rows are the rows `first`.. of the batch, the others padding."""

    x: Tensor
    noise: Noise
    first: int
    real: int

    @property
    def last(self) -> int:
        return self.first + self.real


class _Purified(torch.autograd.Function):
    """The purifier as one differentiable operation whose backward is the defense's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, defense: Defense, noise: Noise) -> Tensor:
        # Backward may run on autograd's own thread, which has an empty one.
        ctx.context = contextvars.copy_context()
        ctx.save_for_backward(x)
        purified, ctx.pull = defense.gradient.record(defense, x, noise)
        return purified

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        # Of torch's private ones, since there are no others: without the question, the message would be about a view of ours.
        if torch._C._functorch.is_legacy_batchedtensor(cotangents[0]):
            raise UserError(
                "the gradient of a purifier is taken for one output after the other",
                "leave out `vectorize=True` and `is_grads_batched=True`",
            )
        grad = ctx.context.run(ctx.pull, *(c.detach() for c in cotangents))
        # As in `Gradient`: what is not finite is given as zeros.
        grad = grad.where(per_row(finite_rows(grad), grad), 0)
        if torch.is_grad_enabled():
            # Not torch's `once_differentiable`: where the cotangent has no graph, it lets the second derivative be silently zero.
            grad = _Once.apply(grad, *ctx.saved_tensors, *cotangents)
        return grad, None, None


class _Once(torch.autograd.Function):
    """A gradient that depends on these tensors, and has no derivative by them."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *of: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        raise UserError(
            "the gradient of a purified image cannot be differentiated again: the engine gives first derivatives",
            "take an attack or a penalty that needs no second derivative, or leave out `create_graph=True`",
        )


def _whatever(cotangent: Tensor, purified: Tensor) -> Tensor:
    """The cotangent, whatever was purified."""
    return cotangent


def _check_input(x: Tensor, noise: Noise, bounded: bool) -> None:
    """Raises UserError for draws of other rows than x has, and, where they are `bounded`, for images on another scale than [0,1]."""
    if len(noise.ids) != len(x):
        raise UserError(
            f"the noise has {len(noise.ids)} image ids, and there are {len(x)} images",
            "one id and one sample number for each: Noise(seed, role, (), ids=range(len(x)), samples=[0] * len(x))",
        )
    if not x.is_floating_point():
        raise UserError(f"the images are {x.dtype}, expected floating point in [0,1]", "of 8 bits: x.float() / 255")
    if not bounded:
        return
    low, high = (float(end) for end in x.detach().aminmax()) if x.numel() else (0.0, 1.0)
    # With a margin, since attacks look beyond the edge; what is not finite is the defense's to answer for.
    if math.isfinite(low) and math.isfinite(high) and (low < -MARGIN or high > 1 + MARGIN):
        raise UserError(
            f"the images are in [{low:.3g}, {high:.3g}], expected [0,1]",
            "divide pixels by 255, and take off a normalisation: the classifier has its own inside",
        )
