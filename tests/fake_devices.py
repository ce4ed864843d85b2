"""A GPU without a GPU: chains walked on tensors that have a device and no values, and what of that would go wrong on a real one.

On `cuda:0` torch's fake tensors refuse operands of two devices, and whatever asks for a value. What works there and is slow is `Watch`'s
to see: copies between host and device, and float64 of the size of the images. Autograd's engine wants a real device, so that on
`cuda:0` gradients are zeros (`no_engine`); on `meta`, and on a fake CPU, it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import purebench
from purebench.engine.noise import Noise

HOME = f"{Path(purebench.__file__).parent}/"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
WAITS = (
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
)  # their result's shape, or the host, needs values
DRAWS = "engine/noise.py"  # Box-Muller is in float64 by design: a draw has the same bits on every device, up to the conversion


def place() -> str:
    """`FILE:FUNCTION` of the innermost code of purebench, or of a test, that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if path.startswith(HOME):
            return f"{path.removeprefix(HOME)}:{name}"
        if (file := path.rpartition("/")[2]).startswith("test_"):
            return f"{file}:{name}"
        frame = frame.f_back
    return "?"


class Watch(TorchDispatchMode):
    """`found`: (what, where) of everything that makes the host wait, or is float64 of at least `size` numbers outside the draws. A value
    that is asked for is made up, so that the walk goes on."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is aten._local_scalar_dense.default:
            self.found.append(("read", place()))
            return True if inputs[0].dtype == torch.bool else 0.5
        out = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        here, there = ({t.device.type for t in tensors} for tensors in (inputs, outputs))
        # A number in a tensor on the host goes along with a kernel's arguments; an array has to be copied first.
        arrays = any(t.device.type == "cpu" and t.dim() for t in inputs)
        up = "cpu" in here and there - {"cpu"} and (func in COPIES or arrays)
        if up or (here - {"cpu"} and "cpu" in there):
            self.found.append(("copied", place()))
        if func in WAITS:
            self.found.append(("waited", place()))
        if any(t.dtype == torch.float64 and t.numel() >= self.size for t in outputs):
            where = place()
            if not where.startswith(DRAWS):
                self.found.append(("float64", where))
        return out


def moved(module: nn.Module, device: str) -> nn.Module:
    """The module with its weights on a device without values. `Module.to` replaces the content of parameters, which fake ones refuse."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module


def _zeros(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(i) for i in ([inputs] if isinstance(inputs, Tensor) else inputs))


@contextmanager
def no_engine() -> Iterator[None]:
    """Within: the forward half of a gradient is computed, and the gradient is zero."""
    with mock.patch.object(torch.autograd, "grad", _zeros):
        yield


@contextmanager
def simulated(device: str, size: int) -> Iterator[Watch]:
    """Within: `device` is `cuda:0`, `cpu` or `meta`, without values."""
    with ExitStack() as stack:
        if device != "meta":
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if device.startswith("cuda"):
            stack.enter_context(no_engine())
        yield stack.enter_context(Watch(size))


def draws(rows: int) -> Noise:
    return Noise(3, "judge", (), range(rows), [0] * rows)
