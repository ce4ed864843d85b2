"""The draws of code that takes them from global generators, as `torch.randn_like(x)` does: given to each image from our `Noise`.

`Draws` is a dispatch mode: whatever asks for as many rows of random numbers as there are images, in the code, inside a module, or in the
middle of a dropout, gets one row for each image, a function of (image, sample, number of the draw) alone. What asks for anything else
(numpy, a shuffle, one number for the whole batch) gets it from the global generators, seeded for these rows and put back afterwards: it
is repeated by the same rows, and belongs to the batch.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from purebench.engine import nfe
from purebench.engine.noise import Noise

# Ops that are given a shape; that are like their first argument; that fill it.
FACTORIES = {"randn", "rand", "randint"}
LIKE = {"randn_like", "rand_like", "randint_like", "bernoulli", "normal"}
FILLING = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_"}


class Draws(TorchDispatchMode):
    """Within: draws belong to the rows of `noise`. May be entered again (in a backward pass): the same draws come again.

    `held`: generators of the code's own, seeded with the global ones. `batch`: what was drawn for the batch rather than for an image;
    `number`: how many draws were given to images."""

    def __init__(self, noise: Noise, held: Sequence[Any] = ()):
        super().__init__()
        self.noise, self.held, self.rows = noise, list(held), len(noise.ids)
        self.batch: set[str] = set()
        self._seed = noise.seed_of_rows()
        # State of the global generator -> number of the draw made there. Not a counter: who saves that state and puts it back to
        # compute something again, as torch's checkpoint does, is to get the same draws again.
        self._numbers: dict[bytes, int] = {}
        self._before: list[tuple[list[Any], list[Any]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler at the first call, which takes ten seconds of every process.
        return False

    @property
    def number(self) -> int:
        return len(self._numbers)

    def __enter__(self) -> Draws:
        before = states(self.held)
        _seed_all(self._seed, self.held)
        self._before.append((before, _aside(self.held)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        before, seeded = self._before.pop()
        names = ("numpy's global generator", "Python's `random`", *["a generator of its own"] * len(self.held))
        self.batch |= {name for name, a, b in zip(names, seeded, _aside(self.held), strict=True) if a != b}
        restore(before, self.held)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        given = _named(func, args, kwargs)
        word = func._schema.name.removeprefix("aten::")
        # A seed of the code's own choosing is what it wants: fixed noise is part of such a defense.
        ours = torch.default_generator.initial_seed() == self._seed
        if given.get("generator") is None and given.get("out") is None and ours:
            found = self._drawn(word, given)
            if found is not None:
                return found
        before = _torch_states()
        result = func(*args, **kwargs)
        # By the states: an attention without dropout calls itself random too.
        if given.get("generator") is not None:
            self.batch.add("a `torch.Generator`")
        elif not all(map(torch.equal, before, _torch_states())):
            self.batch.add(f"`torch.{word}`" if ours else "`torch.manual_seed`")
        return result

    def _drawn(self, word: str, given: Mapping[str, Any]) -> Any:
        """What the op gives, from our noise; None where it is not of so many rows, or not one that we know."""
        like = _like(word, given)
        if like is None or not like.dim() or like.shape[0] != self.rows or not like.numel() or like.is_complex():
            return None
        values = _values(word, given, like, self)
        if values is None:
            return None
        if word == "native_dropout":
            kept = values >= given["p"]
            return given["input"] * kept * (1 / (1 - given["p"]) if given["p"] < 1 else 0.0), kept
        return given["self"].copy_(values) if word in FILLING else values.to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        return self.noise.normal(self._next(), _real(like))

    def uniform(self, like: Tensor) -> Tensor:
        """In [0, 1)."""
        return self.noise.uniform(self._next(), _real(like))

    def _next(self) -> int:
        """The number of this draw, from -1 on: a chain's first draw is its start's, -1, and the next that of step 0."""
        state = torch.default_generator.get_state().numpy().tobytes()
        torch.empty((), dtype=torch.int64).random_()  # moves on, so that the next draw has another state
        return self._numbers.setdefault(state, len(self._numbers) - 1)


def _named(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The op's arguments by name, with their defaults."""
    known = func._schema.arguments
    defaults = {a.name: a.default_value for a in known if a.has_default_value()}
    return {**defaults, **dict(zip([a.name for a in known], args, strict=False)), **kwargs}


def _like(word: str, given: Mapping[str, Any]) -> Tensor | None:
    """A tensor of the shape, type and device of what the op gives."""
    # A schema's default of a type is a number, which `torch.empty` does not take.
    kind = {key: given[key] for key in ("dtype", "device") if isinstance(given.get(key), torch.dtype | torch.device)}
    if word in FACTORIES:
        integers = {"dtype": torch.int64} if word == "randint" else {}
        return torch.empty(given["size"], **{**integers, **kind})
    if word == "native_dropout":
        return given["input"] if given["train"] is not False else None
    if word == "normal":
        # Of a mean and a deviation, either of which may be a number; of two numbers with a size it is a factory.
        tensors = [given[key] for key in ("mean", "std") if isinstance(given.get(key), Tensor)]
        if not tensors:
            return torch.empty(given["size"], **kind) if "size" in given else None
        return torch.empty_like(sum(tensors[1:], tensors[0]))
    return torch.empty_like(given["self"], **kind) if word in LIKE else given["self"] if word in FILLING else None


def _values(word: str, given: Mapping[str, Any], like: Tensor, draws: Draws) -> Tensor | None:
    """What the op draws, like `like`."""
    match word:
        case "randn" | "randn_like":
            return draws.normal(like)
        case "normal" | "normal_":
            return given["mean"] + given["std"] * draws.normal(like)
        case "rand" | "rand_like" | "native_dropout":
            return draws.uniform(like)
        case "uniform_":
            return given["from"] + (given["to"] - given["from"]) * draws.uniform(like)
        case "bernoulli" | "bernoulli_":
            # Half a step above 0: a probability of 0 is never.
            return draws.uniform(like) < given.get("p", given["self"])
        case "exponential_":
            # Above 0, since its logarithm makes Gumbel's.
            return -torch.log1p(-(draws.uniform(like) + 2.0**-25)) / given["lambd"]
        case "randint" | "randint_like" | "random_":
            low, high = given.get("low", given.get("from")) or 0, given.get("high", given.get("to"))
            # Our uniforms have 24 bits.
            if high is None or not 0 < high - low <= 1 << 24:
                return None
            return (draws.uniform(like.double()) * (high - low)).floor() + low
    return None


def _real(like: Tensor) -> Tensor:
    """What noise is made like: whole numbers and half precision by way of float32."""
    wide = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
    return torch.empty(like.shape, dtype=wide, device=like.device)


# Of the rows that a network is asked about now: see `about`.
_rows: ContextVar[Noise | None] = ContextVar("rows", default=None)


@contextmanager
def about(noise: Noise) -> Iterator[None]:
    """Within: a network of somebody else's that draws finds whose rows it is asked about."""
    token = _rows.set(noise)
    try:
        yield
    finally:
        _rows.reset(token)


def rows_here(count: int) -> Noise | None:
    """The noise of so many rows that a network is asked about now; None where nobody said, or said others."""
    noise = _rows.get()
    return noise if noise is not None and len(noise.ids) == count else None


# -------------------------------------------------------------------------------------------------------------- generators


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _torch_states() -> list[Tensor]:
    return [torch.default_generator.get_state(), *[torch.cuda.get_rng_state(i) for i in _devices()]]


def _aside(held: Sequence[Any]) -> list[Any]:
    """The states, comparable, of all generators but torch's global ones: those whose draws no dispatch mode sees."""
    _, keys, *where = np.random.get_state()
    return [(np.asarray(keys).tobytes(), *where), random.getstate(), *[repr(_state(g)) for g in held]]


def _state(generator: Any) -> Any:
    match generator:
        case torch.Generator():
            return generator.get_state()
        case np.random.Generator():
            return generator.bit_generator.state
        case np.random.RandomState():
            return generator.get_state()
    return generator.getstate()


def states(held: Sequence[Any] = ()) -> list[Any]:
    """Of all global generators, and of those that code holds: see `restore`."""
    return [_torch_states(), np.random.get_state(), random.getstate(), *map(_state, held)]


def restore(before: Sequence[Any], held: Sequence[Any] = ()) -> None:
    """Puts the generators back where `states` found them."""
    (cpu, *cuda), numpys, pythons, *own = before
    torch.default_generator.set_state(cpu)
    for i, state in enumerate(cuda):
        torch.cuda.set_rng_state(state, i)
    np.random.set_state(numpys)
    random.setstate(pythons)
    for generator, state in zip(held, own, strict=True):
        match generator:
            case torch.Generator() | np.random.RandomState():
                generator.set_state(state)
            case np.random.Generator():
                generator.bit_generator.state = state
            case _:
                generator.setstate(state)


def _seed_all(seed: int, held: Sequence[Any]) -> None:
    torch.default_generator.manual_seed(seed)
    for i in _devices():
        torch.cuda.default_generators[i].manual_seed(seed)
    small = seed % (1 << 32)
    np.random.seed(small)
    random.seed(seed)
    for i, generator in enumerate(held, 1):
        match generator:
            case torch.Generator():
                generator.manual_seed(seed + i)
            case np.random.Generator():
                generator.bit_generator.state = type(generator.bit_generator)(seed + i).state
            case np.random.RandomState():
                generator.seed((small + i) % (1 << 32))
            case _:
                generator.seed(seed + i)


# -------------------------------------------------------------------------------------------------------------------- step

_recording: ContextVar[bool] = ContextVar("recording", default=False)
# Bytes of the graph of each step, where somebody wants to know: see `measuring`.
_measured: ContextVar[list[int] | None] = ContextVar("measured", default=None)


@contextmanager
def recording() -> Iterator[None]:
    """Within: `step` has an effect."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def measuring() -> Iterator[list[int]]:
    """Within: nothing is recomputed. Gives [bytes kept throughout, largest graph of a step] at the end."""
    found = [0, 0]
    token = _measured.set(found)
    try:
        with _saving(found, 0):
            yield found
    finally:
        _measured.reset(token)


@contextmanager
def _saving(found: list[int], place: int) -> Iterator[None]:
    """Adds what autograd saves within, weights apart, to the number at that place (the largest of several, for steps)."""
    saved: dict[int, int] = {}
    # Emptied below: a tensor that its own node saves would keep itself alive for ever.
    boxes: list[list[Tensor]] = []

    def pack(t: Tensor) -> list[Tensor]:
        if not isinstance(t, nn.Parameter):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        boxes.append([t])
        return boxes[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box[0]):
        yield
    total = sum(saved.values())
    found[place] = found[place] + total if place == 0 else max(found[place], total)
    if place == 0:
        for box in boxes:
            box.clear()


def step(f: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    """Says where a defense's steps are, so that its exact gradient fits the memory.

    `x = purebench.step(f, x, ...)` calls f(x, ...), whose graph is not kept but built again in the backward pass, with the same draws;
    `@purebench.step` makes a function so. Python cannot run a block again: `with purebench.step():` keeps on the host what the block
    saves on a GPU, and changes nothing on a CPU. Nothing happens where no gradient is being recorded."""
    if f is None:
        return _on_host()
    if not args and not kwargs:
        return functools.wraps(f)(lambda *a, **k: step(f, *a, **k) if a or k else f())
    found = _measured.get()
    if found is not None:
        found[0] += sum(a.nbytes for a in [*args, *kwargs.values()] if isinstance(a, Tensor))
        with _saving(found, 1):
            return f(*args, **kwargs)
    if not (_recording.get() and torch.is_grad_enabled()):
        return f(*args, **kwargs)
    return checkpoint(f, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_twice, **kwargs)


def _twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What holds in a step's first computation, and when it is computed again: there all generators stand where they stood here."""
    mode = _mode()
    held = mode.held if mode else []
    stood: list[Any] = []
    counters = nfe.active()

    @contextmanager
    def first() -> Iterator[None]:
        stood[:] = states(held)
        yield

    @contextmanager
    def again() -> Iterator[None]:
        now = states(held)
        restore(stood, held)
        try:
            with nfe.recomputing(counters):
                yield
        finally:
            restore(now, held)

    return first(), again()


def _mode() -> Draws | None:
    """The innermost `Draws` that holds here."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return next((mode for mode in reversed(_get_current_dispatch_mode_stack()) if isinstance(mode, Draws)), None)


def _on_host() -> AbstractContextManager[Any]:
    if not (_recording.get() and torch.is_grad_enabled()):
        return nullcontext()

    def pack(t: Tensor) -> tuple[torch.device, Tensor]:
        # Weights are there anyway.
        return t.device, t if isinstance(t, nn.Parameter) else t.cpu()

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[1].to(kept[0]))
