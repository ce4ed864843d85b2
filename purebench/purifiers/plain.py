"""A plain `x -> x` as a purifier: an `nn.Module`, a function, anything that is called, written as the repositories of this field are,
with draws from global generators.

It is a chain of one step. Its draws are `engine.draws`'; its exact gradient is autograd's through the whole call, whose steps
`purebench.step` recomputes where the code says where they are, and by parts of the rows where that still does not fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from purebench.engine import chain, held, nfe
from purebench.engine.chain import Purifier
from purebench.engine.draws import Draws, measuring, recording
from purebench.engine.noise import Noise
from purebench.engine.rows import finite_rows
from purebench.errors import UserError

CHAIN = ("start", "step", "finish")


def as_purifier(made: Any, name: str) -> Purifier:
    """What a defense's factory made, as a purifier: a chain (`n`, `start`, `step`, `finish`) as it is, a callable as a `Plain`. UserError
    for anything else, and for a chain that lacks a part."""
    missing = [part for part in CHAIN if not callable(getattr(made, part, None))]
    if not missing:
        n = getattr(made, "n", None)
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise UserError(
                f"`{name}` is a chain whose number of steps `n` is {n!r}",
                "a whole number from 0 on; stopping is a mask",
            )
        return cast(Purifier, made)
    if callable(made):
        return Plain(made, name)
    has = f" without {', '.join(missing)}" if len(missing) < len(CHAIN) else ""
    raise UserError(
        f"`{name}` gave an object of type `{type(made).__name__}`{has}: nothing that purifies",
        "return a function `x -> x`, an `nn.Module`, or a chain with `n`, `start`, `step` and `finish`",
    )


class Plain:
    """`call(x) -> x` on images x (B,C,H,W) in [0,1]. `batch`: what it was seen to draw for the batch instead of for an image;
    `changes_input`: whether it was seen to write into what it is given (a copy, so that nothing is lost)."""

    n = 1

    def __init__(self, call: Callable[[Tensor], Tensor], name: str):
        self.call, self.name = call, name
        self.batch: set[str] = set()
        self.changes_input = False
        self._held = held.generators(call)
        self._bytes: dict[tuple[Any, ...], int | None] = {}

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        return x

    def step(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        """The whole call. Raises UserError where no images like x come back."""
        y = self.called(x, self.draws(noise))
        # Whatever the code asked to be differentiable within: nobody asked outside.
        return y if x.requires_grad else y.detach()

    def finish(self, x: Tensor) -> Tensor:
        return x

    def draws(self, noise: Noise) -> Draws:
        return Draws(noise, self._held)

    def called(self, x: Tensor, draws: Draws) -> Tensor:
        # With gradients, as the code is used to: one that takes them inside would find none.
        with draws, torch.enable_grad():
            given = x.clone()
            y = self.call(given)
        self.batch |= draws.batch
        self.changes_input |= not given.is_inference() and given._version > 0
        if draws.batch and draws.noise.scale != 1:
            raise UserError(
                f"`noise={draws.noise.scale:g}` has no hold on `{self.name}`: it draws from {_listed(draws.batch)}",
                "draw with `torch.randn_like(x)`, or leave `noise` out",
            )
        return self._checked(x, y)

    def _checked(self, x: Tensor, y: Any) -> Tensor:
        hint = "it is given images (B,C,H,W) in [0,1], and returns such images: the same shape, type and device"
        if not isinstance(y, Tensor):
            raise UserError(f"`{self.name}` returned {_described(y)}, and no tensor", hint)
        for what, came, wanted in (
            ("the shape", tuple(y.shape), tuple(x.shape)),
            ("the type", y.dtype, x.dtype),
            ("the device", y.device, x.device),
        ):
            if came != wanted:
                raise UserError(f"`{self.name}` returned {what} {came} for images of {wanted}", hint)
        # Of `torch.inference_mode`: such a tensor may go into no graph, not even the classifier's.
        return y.clone() if y.is_inference() else y

    def record_itself(self, x: Tensor, noise: Noise, *, memory: int | None = None) -> chain.Tape:
        """As `chain.record`, which asks this: a single step is cut by rows."""
        return Recorded(self, x, noise, memory)

    def graph(self, x: Tensor, noise: Noise) -> tuple[chain.Graph, Draws]:
        """The graph of one call, and its draws, which hold while it is pulled back too: code that recomputes draws there."""
        leaf, draws = x.detach().requires_grad_(), self.draws(noise)
        with recording():
            return ((leaf,), (self.called(leaf, draws),)), draws

    def rows_at_once(self, x: Tensor, noise: Noise, memory: int | None) -> int:
        """How many of the rows of x have a graph that fits, all of them if possible. UserError where not one does."""
        if memory is None:
            return len(x)
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._bytes:
            self._bytes[key] = self._row_bytes(x[:1], noise.rows(noise.ids[:1], noise.samples[:1]))
        bytes_ = self._bytes[key]
        # One that cannot be called with a single image is kept whole: what is not measured cannot be cut either.
        if bytes_ is None or bytes_ * len(x) <= memory:
            return len(x)
        if bytes_ > memory:
            raise UserError(
                f"a memory budget of {memory:,} bytes is too small: the graph of `{self.name}` for one image needs {bytes_:,}",
                "say where its steps are (`x = purebench.step(f, x)`), raise `--memory`, or use `--grad bpda`",
            )
        return memory // bytes_

    def _row_bytes(self, x: Tensor, noise: Noise) -> int | None:
        """Bytes of one row's graph: what autograd saves, an eighth for its nodes, and half as working room, as `chain.step_bytes`."""
        try:
            with nfe.recomputing(), measuring() as found:
                self.called(x.detach().requires_grad_(), self.draws(noise))
        except UserError:
            raise
        except Exception:
            return None
        return sum(found) * 9 // 8 * 3 // 2


class Recorded(chain.Tape):
    """One recorded call of a `Plain`: its graph; or, of a graph that is too large, nothing but the images, of which `vjp` makes it again
    for some rows at a time. A row's gradient then depends on its number of mates in the last bits."""

    def __init__(self, plain: Plain, x: Tensor, noise: Noise, memory: int | None):
        self.plain, self.x, self.noise = plain, x.detach(), noise
        self.rows = plain.rows_at_once(x, noise, memory)
        self._whole = plain.graph(x, noise) if self.rows >= len(x) else None
        self.purified = self._whole[0][1][0].detach() if self._whole else chain.run(plain, x, noise)
        if not self._whole and plain.batch:
            raise UserError(
                f"the graph of `{plain.name}` does not fit the memory, and cannot be cut: it draws from {_listed(plain.batch)}",
                "say where its steps are (`x = purebench.step(f, x)`), raise `--memory`, or lower `--rows`",
            )

    def vjp(self, cotangent: Tensor) -> Tensor:
        whole, self._whole = self._whole, None
        if whole:
            return self._pulled(*whole, cotangent)
        if self.rows >= len(self.x):
            with nfe.recomputing():
                again = self.plain.graph(self.x, self.noise)
            return self._pulled(*again, cotangent)
        return torch.cat([self._part(a, cotangent) for a in range(0, len(self.x), self.rows)])

    def _part(self, a: int, cotangent: Tensor) -> Tensor:
        """The gradient of the rows from a on."""
        part = slice(a, min(a + self.rows, len(self.x)))
        noise = self.noise.rows(self.noise.ids[part], self.noise.samples[part])
        with nfe.recomputing():
            graph, draws = self.plain.graph(self.x[part], noise)
        self._check(graph[1][0].detach(), self.purified[part])
        if a == 0:
            return self._pulled(graph, draws, cotangent[part])
        # All parts together are one call's backward.
        with nfe.recomputing():
            return self._pulled(graph, draws, cotangent[part])

    def _check(self, part: Tensor, whole: Tensor) -> None:
        """Raises UserError where rows come out differently beside fewer mates."""
        finite = finite_rows(part) & finite_rows(whole)
        if ((part - whole)[finite].abs() > 1e-2).any():
            raise UserError(
                f"the graph of `{self.plain.name}` does not fit the memory, and cannot be cut: its images depend on each other",
                "raise `--memory`, or lower `--rows`",
            )

    def _pulled(self, graph: chain.Graph, draws: Draws, cotangent: Tensor) -> Tensor:
        with draws:
            return self._through(graph, (cotangent,))[0]


def _listed(sources: set[str]) -> str:
    return ", ".join(sorted(sources))


def _described(came: Any) -> str:
    if isinstance(came, tuple | list):
        return f"a {type(came).__name__} of {', '.join(type(part).__name__ for part in came[:4])}"
    return "nothing" if came is None else f"an object of type `{type(came).__name__}`"
