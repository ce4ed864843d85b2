"""The engine: runs a purifier's chain of steps, and takes exact vector-Jacobian products through it within a memory budget.

A purifier is `start(x, noise) -> state`, `step(k, state, noise) -> state` for k = 0..n-1 and `finish(state) -> x`; a state is
a tensor or a tuple of tensors. `run` walks the chain. `record` walks it and keeps what the gradient needs: every graph when
the budget allows, else the states and the graphs of the last steps, the others being recomputed segment by segment; and, where
not even all states fit, recomputed in two levels (Griewank and Walther 2000, "Revolve", with two levels instead of many).
Draws of noise are functions of (k, draw), so recomputation repeats the forward pass bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from purebench.engine import nfe as _nfe
from purebench.engine.noise import Noise
from purebench.errors import UserError

# A tensor or a tuple of tensors, rows first. Each purifier knows which, and says so; a union would make all of them ask.
State = Any
Cotangent = Tensor | Callable[[Tensor], Tensor]  # like the purified x, or a function that makes it of that
Graph = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # what it begins with, and what it ends in
# (k, the state before step k, x) -> a number for each row (B,), to be differentiated beside what the cotangent says; None: nothing of k.
# k = 0 is what `start` made, k = n the last state, before `finish`. A pure function: a state may be made twice, and is asked about once.
Terms = Callable[[int, State, Tensor], Tensor | None]
nfe = _nfe.counting


class Purifier(Protocol):
    """x is (B,C,H,W) in [0,1]; the object holds parameters and networks, never a state. `n` is fixed: stopping is a mask."""

    n: int

    def start(self, x: Tensor, noise: Noise) -> State: ...
    def step(self, k: int, state: State, noise: Noise) -> State: ...
    def finish(self, state: State) -> Tensor: ...


def run(purifier: Purifier, x: Tensor, noise: Noise, *, on_state: Callable[[int, State], None] | None = None) -> Tensor:
    """Purifies x (B,C,H,W) in [0,1] without a graph. `on_state(k, state)` sees the state before step k, and the last with k = n."""
    with torch.no_grad():
        state = purifier.start(x, noise)
        for k in range(purifier.n):
            if on_state:
                on_state(k, state)
            state = purifier.step(k, state, noise)
        if on_state:
            on_state(purifier.n, state)
        return purifier.finish(state)


def vjp(
    purifier: Purifier,
    x: Tensor,
    noise: Noise,
    cotangent: Cotangent,
    *,
    memory: int | None = None,
    terms: Terms | None = None,
) -> tuple[Tensor, Tensor]:
    """(purified x, cotangent . d purified / d x), exact for the sampled path, second-order terms included.

    `cotangent`: like x, or a function that makes it of the purified x; `memory`: bytes for states and graphs, None = no bound.
    `terms`: of states on the way, whose derivative by x is added: of the state, and of x itself where a term looks at it.
    Raises UserError when the budget holds not even one step's graph and 2 sqrt(n) states, or where there are no states to look at.
    """
    tape = record(purifier, x, noise, memory=memory, terms=terms)
    return tape.purified, tape.vjp(cotangent(tape.purified) if callable(cotangent) else cotangent)


# ---------------------------------------------------------------------------------------------- gradients inside a step

_constant_guidance: ContextVar[bool] = ContextVar("constant_guidance", default=False)


@contextmanager
def detached() -> Iterator[None]:
    """Within: `inner_grad` is a constant to the outer gradient, as in COUP's published code."""
    token = _constant_guidance.set(True)
    try:
        yield
    finally:
        _constant_guidance.reset(token)


def inner_grad(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d f(x).sum() / dx inside a step. Works under `no_grad`; has a graph of its own exactly when the engine records.

    That graph is always built, and dropped where it is not wanted: autograd has other formulas for SiLU and group norm under
    create_graph, and a purification must have the same bits recorded or not."""
    keep = torch.is_grad_enabled() and x.requires_grad and not _constant_guidance.get()
    with torch.enable_grad():
        inside = x if keep else x.detach().requires_grad_()
        grad = torch.autograd.grad(f(inside).sum(), inside, create_graph=True)[0]
        return grad if keep else grad.detach()


# ------------------------------------------------------------------------------------------------------------- the tape


@dataclass(frozen=True)
class Plan:
    """How a chain of n steps is kept: the graphs of the last `tail` steps; for the others a state every `segment` steps, whose
    graph is rebuilt at once (`level` 1) or, at level 2, step by step from states that are rebuilt first."""

    tail: int
    segment: int = 1
    level: int = 1


@cache
def plan(n: int, state: int, graph: int, memory: int | None, work: int = 0) -> Plan:
    """The fastest plan within `memory` bytes, for states of `state` bytes, step graphs of `graph` bytes, and `work` bytes that
    come and go while a step runs."""
    if memory is None or n * graph + work <= memory:
        return Plan(tail=n)
    memory -= work
    # Whatever the segment, all but the tail are computed once more: the longest tail wins, then the shortest segments.
    best: Plan | None = None
    for segment in range(1, n):
        for tail in range(n - 1, best.tail if best else 0, -1):
            states = math.ceil((n - tail) / segment) * state
            if states + max(tail, min(segment, n - tail)) * graph <= memory:
                best = Plan(tail, segment)
                break
    if best:
        return best
    # Segments of sqrt(n) steps: then their first states, and the states within one, are fewest together.
    root = math.ceil(math.sqrt(n))
    need = graph + 2 * root * state
    if memory < need:
        raise UserError(
            f"a memory budget of {memory + work:,} bytes is too small: one step's graph and {2 * root} states need {need + work:,}",
            "raise `--memory`, or lower `--rows`",
        )
    return Plan(tail=1, segment=root, level=2)


class Tape:
    """One recorded chain: `purified` (detached, like x), and `vjp(cotangent)`, which may be asked once."""

    def __init__(self, purifier: Purifier, x: Tensor, noise: Noise, plan: Plan, terms: Terms | None = None):
        self._purifier, self._noise, self._plan = purifier, noise, plan
        self._x, self._terms = x.detach(), terms
        # What the terms say of x itself, segment by segment.
        self._direct = torch.zeros_like(self._x) if terms else None
        # Steps before the cut are recomputed. A plan may name a longer tail than the chain has steps.
        self._cut = max(purifier.n - plan.tail, 0)
        # k -> what step k begins with. Of k = 0 it is the input: `start` belongs to the gradient too.
        self._kept: dict[int, State] = {}
        state: State = x.detach()
        with torch.no_grad():
            for k in range(0, self._cut, plan.segment):
                self._kept[k] = state
                state = self._walk(k, min(k + plan.segment, self._cut), state)
        self._tail = self._graph(self._cut, purifier.n, state)
        self.purified: Tensor = self._tail[1][0].detach()

    def vjp(self, cotangent: Tensor) -> Tensor:
        """(d purified / d x)^T cotangent; frees the tape as it goes."""
        grads = self._pull(self._tail, (cotangent,))
        # Before the next graph is built: the budget holds no second one beside it.
        del self._tail
        backward = self._again if self._plan.level == 1 else self._step_by_step
        end = self._cut
        for k in sorted(self._kept, reverse=True):
            # Popped: a list of all of them would keep alive what is done.
            grads = backward(k, end, self._kept.pop(k), grads)
            end = k
        return grads[0] if self._direct is None else grads[0] + self._direct

    def _step_by_step(self, a: int, b: int, state: State, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As `_again`, with one step's graph at a time."""
        states = [state]
        with torch.no_grad(), _nfe.recomputing():
            for k in range(a, b - 1):
                states.append(self._walk(k, k + 1, states[-1]))
        for k in range(b - 1, a - 1, -1):
            cotangents = self._again(k, k + 1, states.pop(), cotangents)
        return cotangents

    def _walk(self, a: int, b: int, state: State, seen: Callable[[int, State], None] | None = None) -> State:
        """Steps a..b-1; the first takes `start` along, the last `finish`. seen: told of each state that is made, under the k of the step
        that it is before."""
        state = self._purifier.start(state, self._noise) if a == 0 else state
        if seen and a == 0:
            seen(0, state)
        for k in range(a, b):
            state = self._purifier.step(k, state, self._noise)
            if seen:
                seen(k + 1, state)
        return self._purifier.finish(state) if b == self._purifier.n else state

    def _graph(self, a: int, b: int, state: State) -> Graph:
        inputs = _leaves(state)
        if self._terms is None:
            with torch.enable_grad():
                return tensors(inputs), tensors(self._walk(a, b, inputs))
        terms, x, found = self._terms, self._x.clone().requires_grad_(), []

        def seen(k: int, state: State) -> None:
            value = terms(k, state, x)
            if value is not None:
                found.append(value)

        with torch.enable_grad():
            outputs = tensors(self._walk(a, b, inputs, seen))
        # As one more input, x, and more outputs, whose cotangents are ones: `_pull` takes both off again.
        return (*tensors(inputs), x), (*outputs, *found)

    def _again(self, a: int, b: int, state: State, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The cotangents pulled back through steps a..b-1, whose graph is built again."""
        with _nfe.recomputing():
            graph = self._graph(a, b, state)
        return self._pull(graph, cotangents)

    def _pull(self, graph: Graph, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The cotangents of what a graph ends in, as those of what it begins with."""
        if self._direct is None:
            return self._through(graph, cotangents)
        ones = tuple(torch.ones_like(term) for term in graph[1][len(cotangents) :])
        *grads, direct = self._through(graph, (*cotangents, *ones))
        self._direct = self._direct + direct
        return tuple(grads)

    @staticmethod
    def _through(graph: Graph, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs, outputs = graph
        # The derivative of a sum: handing autograd the cotangents themselves makes it import sympy, two seconds of every process.
        with torch.enable_grad():
            total = sum((o * c.detach()).sum() for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad)
        # The sum of nothing is the number 0: no output depends on the input.
        if not isinstance(total, Tensor):
            return tuple(torch.zeros_like(i) for i in inputs)
        wanted = [i for i in inputs if i.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, materialize_grads=True, allow_unused=True))
        return tuple(next(found) if i.requires_grad else torch.zeros_like(i) for i in inputs)


def record(
    purifier: Purifier, x: Tensor, noise: Noise, *, memory: int | None = None, terms: Terms | None = None
) -> Tape:
    """Walks the chain and keeps what `Tape.vjp` needs within `memory` bytes (None: no bound). A purifier that is no chain inside
    (`purifiers.plain`) records itself, and has no states for `terms`."""
    if hasattr(purifier, "record_itself"):
        if terms:
            raise UserError("a plain function has no states on the way", "take another attack")
        return purifier.record_itself(x, noise, memory=memory)
    return Tape(purifier, x, noise, planned(purifier, x, noise, memory, terms=terms is not None), terms)


def planned(purifier: Purifier, x: Tensor, noise: Noise, memory: int | None, *, terms: bool = False) -> Plan:
    """How the chain of x is kept within `memory` bytes (None: no bound); `terms`: with terms of its states. Raises UserError where not
    even one step's graph fits."""
    if memory is None or purifier.n == 0:
        return Plan(tail=purifier.n)
    state, graph = step_bytes(purifier, x, noise)
    # A term of a state keeps about four more like it: the point that it is held against, their difference, its square.
    graph += 4 * state if terms else 0
    return plan(purifier.n, state, graph, memory, work=graph // 2)


def tensors(state: State) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _leaves(state: State) -> State:
    """The state as what a new graph begins with."""
    # A state may hold masks, which have no gradient.
    leaves = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in tensors(state))
    return leaves if isinstance(state, tuple) else leaves[0]


_measured: WeakKeyDictionary[Purifier, dict[tuple, tuple[int, int]]] = WeakKeyDictionary()


def step_bytes(purifier: Purifier, x: Tensor, noise: Noise) -> tuple[int, int]:
    """(bytes of a state, bytes that one step's graph keeps), measured once per purifier and shape: what autograd saves, and an
    eighth for its nodes and the allocator. While it runs, a step needs up to half of its graph besides (benchmarks/engine.py)."""
    # The guidance is part of the key: held constant, it leaves a far smaller graph.
    try:
        known = _measured.setdefault(purifier, {})
    except TypeError:  # a dataclass without a hash, or slots: measured each time
        known = {}
    key = (tuple(x.shape), x.dtype, x.device, _constant_guidance.get())
    if key not in known:
        saved: dict[int, int] = {}
        # Emptied below: a tensor that its own node saves would keep itself alive for ever.
        boxes: list[list[Tensor]] = []

        def pack(t: Tensor) -> list[Tensor]:
            # Weights are there anyway, and two nodes may save one storage.
            if not isinstance(t, torch.nn.Parameter):
                # By the storage itself: that of a tensor without values has no address.
                saved[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            boxes.append([t])
            return boxes[-1]

        with torch.no_grad(), _nfe.recomputing():
            state = purifier.start(x.detach(), noise)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box[0]):
                purifier.step(0, _leaves(state), noise)
        for box in boxes:
            box.clear()
        known[key] = (sum(t.nbytes for t in tensors(state)), sum(saved.values()) * 9 // 8)
    return known[key]
