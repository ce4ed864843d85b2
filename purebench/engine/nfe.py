"""Counting network evaluations. A network root is watched once; whoever wants to know opens a `counting()` context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class NFE:
    """Calls of networks (each serves all rows of its batch): `forward`, `backward` (vector-Jacobian products), and
    `recomputed`: forwards and inner backwards done again to save memory, which are not part of the method's cost. `only`: the one
    network whose calls count; None: all."""

    forward: int = 0
    backward: int = 0
    recomputed: int = 0
    recomputing: bool = False
    only: nn.Module | None = None

    def _add(self, kind: str) -> None:
        kind = "recomputed" if self.recomputing else kind
        setattr(self, kind, getattr(self, kind) + 1)


_active: ContextVar[tuple[NFE, ...]] = ContextVar("nfe", default=())


@contextmanager
def counting(only: nn.Module | None = None) -> Iterator[NFE]:
    """Counts the network calls inside the block, all or those of one network; blocks may nest."""
    counter = NFE(only=only)
    token = _active.set((*_active.get(), counter))
    try:
        yield counter
    finally:
        _active.reset(token)


def active() -> tuple[NFE, ...]:
    """The counters that count here."""
    return _active.get()


@contextmanager
def recomputing(counters: tuple[NFE, ...] | None = None) -> Iterator[None]:
    """Within: calls repeat earlier ones, and are counted as such. `counters`: those of the earlier calls, where a backward pass runs on
    a thread of autograd's own, which knows none."""
    counters = _active.get() if counters is None else counters
    token = _active.set(counters)
    before = [(c, c.recomputing) for c in counters]
    for counter, _ in before:
        counter.recomputing = True
    try:
        yield
    finally:
        _active.reset(token)
        for counter, was in before:
            counter.recomputing = was


def watch(network: nn.Module) -> nn.Module:
    """Makes every later call of `network` count: its forward, and each time a gradient has come back to its input: plain backwards,
    and second-order ones, which need not pass its output."""
    network.register_forward_pre_hook(_count)
    return network


def _count(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    own = args[0].view_as(args[0])  # of this call alone: x may serve others
    for counter in _active.get():
        if counter.only not in (None, module):
            continue
        counter._add("forward")
        if own.requires_grad:
            own.register_hook(lambda _grad, counter=counter: counter._add("backward"))
    return own, *args[1:]


class Account:
    """Network calls times the rows that needed them."""

    def __init__(self) -> None:
        # Counters, not numbers: a backward may come after its forward's block was left, and is counted then.
        self._open: list[tuple[NFE, int]] = []

    def add(self, calls: NFE, rows: int) -> None:
        self._open.append((calls, rows))

    def total(self) -> tuple[int, int, int]:
        """(forward, backward, recomputed) since the last close."""
        forward = sum(calls.forward * rows for calls, rows in self._open)
        backward = sum(calls.backward * rows for calls, rows in self._open)
        return forward, backward, sum(calls.recomputed * rows for calls, rows in self._open)

    def close(self) -> tuple[int, int, int]:
        """The total; the next one starts from zero."""
        total = self.total()
        self._open = []
        return total
