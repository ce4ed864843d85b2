"""Score networks in less than float32: TF32's products (10 bits), or bfloat16 (7 bits) by autocast, in their forward and backward alone.

States, noise, the classifier and whatever a purifier computes around its network stay float32; so does what the network answers. Networks
are then in channels_last, as tensor cores want them. In float32 nothing at all is changed: its bytes are recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from purebench.errors import UserError

AMPERE = (8, 0)  # the first compute capability with TF32 and bfloat16


def check(precision: str, device: torch.device) -> None:
    """Raises UserError where a device has no such precision, or it would change nothing there."""
    if precision == "fp32":
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < AMPERE:
            raise UserError(f"`{torch.cuda.get_device_name(device)}` has no {precision}", "use `--precision fp32`")
    elif precision == "tf32":
        raise no_tf32(device.type)


def no_tf32(device: str) -> UserError:
    return UserError(
        f"`precision=tf32` on `{device}`: only a GPU has TF32, and nothing would differ from fp32",
        "use `--precision fp32`, or `bf16`, which there is everywhere",
    )


def lower(network: nn.Module, precision: str, device: torch.device) -> None:
    """Makes every later call of the network compute in a precision (`tf32`, `bf16`; `fp32` changes nothing): its first argument and its
    answer stay in their own type. Raises UserError where the device has none."""
    check(precision, device)
    if precision == "fp32":
        return
    if "forward" in vars(network):
        raise UserError(
            f"the `forward` of this `{type(network).__name__}` was replaced, and its precision cannot be lowered",
            "use `--precision fp32`",
        )
    network.to(memory_format=torch.channels_last)
    # By its class, not by a function on the object, which a copy would share: the copy would compute with the first one's weights.
    kind = type(network)
    network.__class__ = type(kind.__name__, (LOWERED[precision], kind), {"__module__": kind.__module__})


class _Bf16(nn.Module):
    def forward(self, x: Tensor, *rest: Any, **words: Any) -> Tensor:
        # The backward of what is autocast runs in the types of the forward, wherever it is asked for.
        with torch.autocast(x.device.type, torch.bfloat16):
            answer = super().forward(_last(x), *rest, **words)
        return answer.to(x.dtype).contiguous()


class _Tf32(nn.Module):
    def forward(self, x: Tensor, *rest: Any, **words: Any) -> Tensor:
        with _allowed():
            answer = super().forward(_last(x), *rest, **words).contiguous()
        # Whether products are TF32 is asked when a backward runs, not when its forward did: on from the answer's gradient to the input's.
        if answer.requires_grad and x.requires_grad:
            answer.register_hook(lambda _: allow(True))
            x.register_hook(lambda _: allow(False))
        return answer


LOWERED: dict[str, type[nn.Module]] = {"bf16": _Bf16, "tf32": _Tf32}


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def allow(tf32: bool) -> None:
    """Switches TF32 for all of this process. Off is what holds outside of networks (`device.setup`)."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def _allowed() -> Iterator[None]:
    allow(True)
    try:
        yield
    finally:
        allow(False)
