"""How fast the networks of a plan are here, timed, and how many floating-point operations they do, counted: for `estimate`.

A slow network (CIFAR-10's and larger, on a CPU) is timed alone, once, and its cells are calls times seconds. With a quick one the steps
around it count as much: then the beginning of each defense is timed, with its gradient.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from purebench import registry
from purebench.assets import checkpoint
from purebench.engine import device as devices
from purebench.engine import precision
from purebench.engine.chain import Purifier
from purebench.engine.noise import Noise
from purebench.plan import resolved as components
from purebench.plan.grid import Job
from purebench.running import cost, evaluate
from purebench.running.runner import Settings
from purebench.spec import Cell, Resolved

SLOW = 0.05  # seconds of a forward call and row from which a network is timed alone
PATIENCE = (
    4.0  # seconds of a forward call from which the backward call is taken for twice as long, and neither is timed again
)


@dataclass(frozen=True)
class Speed:
    """Of one row: seconds of a forward and of a backward call, and the operations of a forward call (a multiplication and an addition are
    two; a backward call to the input has as many, and what the weights would need is not computed)."""

    forward: float
    backward: float
    flop: float


@cache
def of(part: Resolved, shape: tuple[int, ...], device: torch.device, rows: int = 1) -> Speed | None:
    """The speed of a classifier or score model; None of a plug-in's, which may want other inputs than ours.

    shape: (C,H,W) of the dataset's images, which a classifier sees; a score model knows its own size. rows: how many share a call. Files
    that are missing are done without inside `checkpoint.untrained()`: the time is the same.
    """
    if not registry.is_ours(part.kind, part.key):
        return None
    network = components.load(part.kind, part.key, part.arguments).to(device)
    if word := str(part.options.get("precision", "")):
        precision.lower(network.network, word, device)
    if part.kind == "classifier":
        call: Callable[[Tensor], Tensor] = network
    else:
        shape = network.size
        # A level in the middle, of which every network knows: at the ends some answer without a call.
        level = math.sqrt(network.sigma_min * network.sigma_max)

        def call(x: Tensor) -> Tensor:
            return network.denoise(x, level)

    return _timed(call, torch.full((rows, *shape), 0.5, device=device))


def _timed(call: Callable[[Tensor], Tensor], x: Tensor) -> Speed:
    """The quicker of two passes: the first also pays for what is set up once."""
    flop, forward, backward = _operations(call, x), math.inf, math.inf
    for _ in range(2):
        began = _now(x.device)
        with torch.no_grad():
            call(x)
        forward = min(forward, _now(x.device) - began)
        if forward > PATIENCE:
            return Speed(forward / len(x), 2 * forward / len(x), flop)
        inside = x.clone().requires_grad_()
        with torch.enable_grad():
            made = call(inside)
            began = _now(x.device)
            torch.autograd.grad(made.sum(), inside)
        backward = min(backward, _now(x.device) - began)
    return Speed(forward / len(x), backward / len(x), flop)


def _operations(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Floating-point operations of a call, per row: of convolutions and matrix products, as torch counts them."""
    # Imported here: it takes half a second, and who measures nothing needs none of it; torch then warns of its own old parts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(x[:1])
    return float(counter.get_total_flops())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        # A GPU's calls return before they are done.
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Seconds and operations of a plan's jobs; each network, and each beginning of a defense, is measured once. untrained: with fresh
    weights, since files are missing; the time is the same."""

    def __init__(self, settings: Settings, *, untrained: bool):
        self.settings, self.untrained = settings, untrained
        self.device = devices.setup(settings.device)
        self.memory = settings.memory or devices.free_memory(self.device, settings.workers)
        self._beginnings: dict[tuple[object, ...], float] = {}

    def seconds(self, job: Job, rows: int) -> float:
        """Of one image, attack and judging together, where `rows` share a network call: at most."""
        networks = self._networks(job, rows)
        if networks and max(speed.forward for speed in networks) > SLOW:
            return _by_calls(job, *networks)
        cell = job.cell
        # What a call takes depends on neither the attack nor its threat model.
        key = (cell.dataset.name, cell.classifier, cell.defense, cell.gradient, cell.scores, rows)
        if key not in self._beginnings:
            with self._weights():
                self._beginnings[key] = self._beginning(cell, rows)
        return cost.work(job) * self._beginnings[key]

    def flop(self, job: Job) -> float | None:
        """Floating-point operations of one image's network calls; None with a plug-in's network."""
        networks = self._networks(job, 1)
        if networks is None:
            return None
        classifier, score = networks
        return sum(_classifier_calls(job)) * classifier.flop + sum(_score_calls(job)) * score.flop

    def _networks(self, job: Job, rows: int) -> tuple[Speed, Speed] | None:
        """Of the classifier and of the score model (the mean of several in rotation; none: nothing)."""
        # One row of a slow network keeps a CPU busy, and says as much as many; a GPU it leaves idle.
        rows = rows if self.device.type == "cuda" else 1
        with self._weights():
            found = [of(part, tuple(job.shape), self.device, rows) for part in (job.cell.classifier, *job.cell.scores)]
        speeds = [speed for speed in found if speed is not None]
        if len(speeds) < len(found):
            return None
        classifier, *scores = speeds
        return classifier, _mean(scores) if scores else Speed(0, 0, 0)

    @contextlib.contextmanager
    def _weights(self) -> Any:
        if not self.untrained:
            yield
            return
        with checkpoint.untrained():
            try:
                yield
            finally:
                # Else a run in this process would attack networks that know nothing.
                evaluate.forget()

    def _beginning(self, cell: Cell, rows: int) -> float:
        """Seconds per network call and row of this defense and gradient: the gradient through two steps of a full batch, after a
        warm-up."""
        defense = evaluate.build_defense(cell, self.device, rows=rows, memory=self.memory)
        defense.purifier = Beginning(defense.purifier, 2)
        if defense.surrogate is not None:
            defense.surrogate = Beginning(defense.surrogate, 2)
        x = torch.full((rows, *evaluate.shape(cell)), 0.5, device=self.device)
        best = math.inf
        # Twice, and the quicker counts: the first pass also pays for what is set up once.
        for _ in range(2):
            defense.spent.close()
            began = _now(self.device)
            defense.loss_grad(x, x.new_zeros(rows).long(), "ce", Noise(0, "estimate", (), range(rows), [0] * rows))
            seconds = _now(self.device) - began
            forward, backward, _ = defense.spent.close()
            best = min(best, seconds / (forward + backward))
        return best


def _mean(speeds: list[Speed]) -> Speed:
    return Speed(*(fmean(getattr(speed, key) for speed in speeds) for key in ("forward", "backward", "flop")))


def _classifier_calls(job: Job) -> cost.Calls:
    return cost.calls(job, classifier=True)


def _score_calls(job: Job) -> cost.Calls:
    forward, backward = cost.calls(job)
    inside = _classifier_calls(job)
    return forward - inside[0], backward - inside[1]


def _by_calls(job: Job, classifier: Speed, score: Speed) -> float:
    """Seconds of one image: its calls, and one more forward call for each backward one where a chain's graphs are made twice, since they
    do not fit into memory together."""
    again = 0 if job.cell.gradient.name in ("bpda", "adjoint") or not job.cell.scores else 1
    return sum(
        forward * speed.forward + backward * (speed.backward + again * speed.forward)
        for (forward, backward), speed in ((_classifier_calls(job), classifier), (_score_calls(job), score))
    )


class Beginning:
    """The first `n` steps of a purifier: what a step costs is soon known."""

    def __init__(self, purifier: Purifier, n: int):
        self.purifier, self.n = purifier, min(n, purifier.n)
        if hasattr(purifier, "times"):
            self.times = purifier.times[: self.n + 1]  # n steps lie between n + 1 times

    def __getattr__(self, name: str) -> Any:
        # Not `self.purifier`: on an object that has none yet, such as a copy in the making, that would come here again, for ever.
        return getattr(self.__dict__["purifier"], name)
