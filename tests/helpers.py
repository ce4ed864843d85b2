"""What several test files need: the recorded arrays, networks with known weights, a chain taken apart, and distances."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purebench import registry
from purebench.engine import chain
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.networks import build
from purebench.networks.attribute import AttributeNet
from purebench.networks.small import SmallUNet
from purebench.purifiers import make
from purebench.spec import parse

# ------------------------------------------------------------------------------------------------- what published code gave

GOLDEN = os.environ.get("PUREBENCH_GOLDEN", "")
SMALL = Path(__file__).parent / "golden"


class Small(dict):
    """A small copy: a test that asks for an array which it leaves out is skipped."""

    def __init__(self, name: str, arrays: dict):
        super().__init__(arrays)
        self.name = name

    def __missing__(self, key: str):
        pytest.skip(f"`{key}` of {self.name} is not in tests/golden: PUREBENCH_GOLDEN names the folder that has it")


def recorded(name: str):
    """The file `name` of the folder that PUREBENCH_GOLDEN names; without one, its small copy in tests/golden, or the test is skipped.

    JSON as what it says, an .npy as its array, an .npz as a dictionary: numbers as tensors, at least float32; text as text;
    `config_json` as what it says.
    """
    if GOLDEN:
        return _load(Path(GOLDEN) / name)
    for path in (SMALL / name, SMALL / f"{name}.gz"):
        if path.is_file():
            found = _load(path)
            return Small(name, found) if path.suffix == ".npz" else found
    pytest.skip(f"{name} is not in tests/golden: PUREBENCH_GOLDEN names the folder that has it")


def _load(path: Path):
    if path.suffix == ".gz":
        return json.loads(gzip.decompress(path.read_bytes()))
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".npy":
        return np.load(path)
    with np.load(path) as arrays:
        return {key: _read(key, array) for key, array in arrays.items()}


def _read(key: str, array: np.ndarray):
    if key == "config_json":
        return json.loads(array.tobytes() if array.dtype == np.uint8 else str(array))
    if array.dtype.kind == "U":
        return array.tolist()
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)


def published(family: str, name: str, **config) -> tuple[nn.Module, dict]:
    """(network of the recorded configuration and weights, the file); weights by rule where none are recorded.

    A small copy says in `weights` and `weights_prefix` how the recorded ones were rounded, and what came before their keys in the rule.
    """
    file = recorded(name)
    network = build(family, {**file.get("config_json", {}), **config})
    weights = {k.partition("/")[2]: v for k, v in file.items() if k.startswith(("param/", "sd/"))}
    names = [k for k, _ in network.named_parameters()]
    assert names == file.get("key_order", names)
    if weights:
        keys = network.load_state_dict(weights, strict=False)
        assert not keys.unexpected_keys
        assert not set(keys.missing_keys) & set(names)
    else:
        filled(network, file.get("weights_prefix", ""))
        if file.get("weights") == "float16":
            with torch.no_grad():
                for p in network.parameters():
                    p.copy_(p.half())
    return network, file


# --------------------------------------------------------------------------------------------------- networks of known weights


def generated(name: str, shape: Sequence[int], kind: str = "standard_normal") -> Tensor:
    """Random numbers of their name, which any other implementation can repeat (float64); the recorded runs began with such."""
    return torch.from_numpy(getattr(np.random.default_rng(zlib.crc32(name.encode())), kind)(tuple(shape)))


def filled(network: nn.Module, prefix: str = "") -> nn.Module:
    """The network with weights by a rule of their key: over sqrt(fan-in), unless the network scales by it; around 1 for the scales of
    norms, around 0 for biases. Fresh networks have zeros, with which a layer says nothing."""
    frequencies = [(key, b) for key, b in network.named_buffers() if key.endswith("freqs")]
    with torch.no_grad():
        for key, weight in [*network.named_parameters(), *frequencies]:
            z = generated(prefix + key, weight.shape)
            if weight.dim() > 1:
                z = z if isinstance(network, AttributeNet) else z / math.sqrt(weight[0].numel())
            elif not key.endswith("freqs"):
                z = 0.1 * z + key.endswith(("weight", "alpha", "gamma"))
            weight.copy_(z)
    return network


def smooth_unet(seed: int = 0) -> nn.Module:
    """A random U-Net for images (1,4,4) in float64, differentiable as often as asked."""
    torch.manual_seed(seed)
    network = SmallUNet(channels=1, base=4, mult=(1, 2)).double().eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network.requires_grad_(False)


def smooth_classifier() -> nn.Module:
    """A random classifier of five classes for images (1,4,4) in float64, counted."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    for p in layers.parameters():
        nn.init.normal_(p, std=0.6)
    return watch(layers.requires_grad_(False))


# ------------------------------------------------------------------------------------------------------------ chains taken apart


def first_case(name: str) -> dict:
    """The parameters of the first case that the purifier's file names: a few quick steps."""
    return dict(parse(next(iter(registry.cases(name)), name), "defense").parameters)


def maker(name: str):
    """`purifiers.make` of one name, called like the purifier's factory: what is impossible is refused as a user's is."""

    def made(score=None, classifier=None, **parameters):
        return make(name, score=score, classifier=classifier, **parameters)

    return made


def unrolled(p, x: Tensor, noise: Noise) -> Tensor:
    """The purified images, without the engine."""
    state = p.start(x, noise)
    for k in range(p.n):
        state = p.step(k, state, noise)
    return p.finish(state)


def autograd(p, x: Tensor, v: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """(purified, gradient) by plain autograd through everything."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        out = unrolled(p, x, noise)
        return out.detach(), torch.autograd.grad(out, x, v)[0]


def slope_error(p, x: Tensor, v: Tensor, noise: Noise, widths=(1e-4, 1e-5, 1e-6, 1e-7)) -> float:
    """How far the engine's gradient is from the central difference along a random direction, as a part of it; of the best width."""
    along = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    exact = (chain.vjp(p, x, noise, v)[1] * along).sum().item()
    f = lambda x: (chain.run(p, x, noise) * v).sum().item()  # noqa: E731
    return min(abs((f(x + h * along) - f(x - h * along)) / (2 * h) - exact) for h in widths) / abs(exact)


def states(p, x: Tensor, noise: Noise) -> tuple[list, Tensor]:
    """(the state before every step and after the last, purified)"""
    seen: list = []
    return seen, chain.run(p, x, noise, on_state=lambda _, state: seen.append(state))


def path(p, x: Tensor, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """(the image of every state, purified), to be laid beside a recursion."""
    seen, out = states(p, x, noise)
    return np.stack([(state[0] if isinstance(state, tuple) else state).numpy() for state in seen]), out.numpy()


def asked(p, x: Tensor) -> list[tuple[int, int]]:
    """The (k, draw) of everything random that a purification of x asks for, in order."""
    found: list[tuple[int, int]] = []

    class Spy(Noise):
        def _bits(self, k, draw, *rest):
            found.append((k, draw))
            return super()._bits(k, draw, *rest)

    chain.run(p, x, Spy(0, "judge", (), range(len(x)), [0] * len(x)))
    assert all(-1 <= k <= p.n for k, _ in found)
    return found


def label(value) -> str:
    """A parameter in the name of a test: as text, without addresses, for the workers have to agree on the names."""
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", re.sub(r" object at 0x[0-9a-f]+", "", str(value)))


# --------------------------------------------------------------------------------------------------------------------- distances


def _pair(ours, theirs) -> tuple[Tensor, Tensor]:
    ours, theirs = (torch.as_tensor(a).detach().double() for a in (ours, theirs))
    assert ours.shape == theirs.shape
    return ours, theirs


def apart(ours, theirs) -> float:
    """The largest difference."""
    ours, theirs = _pair(ours, theirs)
    return (ours - theirs).abs().max().item()


def relative(ours, theirs) -> float:
    """The largest difference, as a part of the largest number of theirs."""
    ours, theirs = _pair(ours, theirs)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def per_row(ours, theirs) -> float:
    """The largest difference, as a part of the largest number of their row."""
    ours, theirs = (a.flatten(1) for a in _pair(ours, theirs))
    return ((ours - theirs).abs() / theirs.abs().amax(1, keepdim=True)).max().item()


def per_number(ours, theirs) -> float:
    """The largest difference, as a part of their number."""
    ours, theirs = _pair(ours, theirs)
    return ((ours - theirs) / theirs).abs().max().item()


def close(ours, theirs, tolerance: float = 1e-10) -> None:
    """Asserts the same shape, and numbers that agree to a tolerance, relative and absolute."""
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
