"""Counter-based noise: a draw is a pure function of who asks for it, never of when, where or beside whom.

Every draw depends on (seed, role, path, image id, sample, k, draw, position in the image) and on nothing else, so that it can
be made again alone, in any batch, on any worker, after any crash. The 64-bit counters go through splitmix64 (Steele, Lea and
Flood 2014, "Fast splittable pseudorandom number generators") in int64 tensor arithmetic; normals are Box-Muller in float64.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from purebench.errors import UserError

GOLDEN, MIX1, MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHARED = -1  # the image id of a draw that all images share


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 tensors; `>>` is arithmetic there, so the copied sign bits are masked off."""
    z = (z ^ ((z >> 30) & (1 << 34) - 1)) * MIX1
    z = (z ^ ((z >> 27) & (1 << 37) - 1)) * MIX2
    return z ^ ((z >> 31) & (1 << 33) - 1)


class Noise:
    """A stream of draws for rows of (image, sample).

    `seed`: an integer; `role`: who asks ("attack", "judge", ..: an attacker never sees the draws that it is judged on);
    `path`: independent streams within a role, see `fork`; `ids`, `samples`: one image id and sample number per row.
    """

    def __init__(
        self,
        seed: int,
        role: str,
        path: tuple = (),
        ids: Sequence[int] | Tensor = (),
        samples: Sequence[int] | Tensor = (),
        scale: float = 1.0,
    ):
        self.seed, self.role, self.path, self.scale = seed, role, path, scale
        self.ids = torch.as_tensor(ids, dtype=torch.int64)
        self.samples = torch.as_tensor(samples, dtype=torch.int64)
        if self.ids.shape != self.samples.shape:
            raise UserError(
                f"one sample number per image id: got {len(self.samples)} for {len(self.ids)}",
                "samples=[0] * len(ids) where each image comes once",
            )
        digest = hashlib.blake2b(repr((seed, role, *path)).encode(), digest_size=8).digest()
        self._stream = int.from_bytes(digest, "little", signed=True)
        self._keys: dict[tuple, Tensor] = {}
        self._rows: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def fork(self, *path: str | int) -> Noise:
        """The independent stream named `path` (attack, restart, iteration, ..) for the same rows."""
        return type(self)(self.seed, self.role, self.path + path, self.ids, self.samples, self.scale)

    def rows(self, ids: Sequence[int] | Tensor, samples: Sequence[int] | Tensor) -> Noise:
        """The same stream for other rows: one (image id, sample) per row."""
        return type(self)(self.seed, self.role, self.path, ids, samples, self.scale)

    def scaled(self, scale: float) -> Noise:
        """The same draws, the normal ones and the signs multiplied by `scale`; 0 switches them off."""
        return self if scale == 1 else type(self)(self.seed, self.role, self.path, self.ids, self.samples, scale)

    def seed_of_rows(self) -> int:
        """A seed that belongs to these rows together, in this order: for generators that know nothing of rows. 63 bits."""
        keys = self._row_keys(torch.device("cpu"), shared=False)
        return int.from_bytes(hashlib.blake2b(keys.numpy().tobytes(), digest_size=8).digest(), "little") >> 1

    def _row_keys(self, device: torch.device, shared: bool) -> Tensor:
        """(B,) int64: the stream, image and sample of each row, hashed; computed once per device."""
        if (device, shared) not in self._keys:
            ids, samples = self.on(device)
            ids = torch.full_like(ids, SHARED) if shared else ids
            self._keys[device, shared] = _mix(_mix(ids * GOLDEN + self._stream) + samples * GOLDEN)
        return self._keys[device, shared]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(ids, samples), (B,) int64, on a device: copied there once, since a copy makes the host wait."""
        if device not in self._rows:
            self._rows[device] = self.ids.to(device), self.samples.to(device)
        return self._rows[device]

    def _bits(self, k: int, draw: int, rows: int, positions: int, device: torch.device, shared: bool) -> Tensor:
        """(rows, positions) int64 of 64 random bits each."""
        if rows != len(self.ids):
            raise UserError(
                f"noise for {len(self.ids)} rows was asked for {rows}",
                "Noise(seed, role, path, ids, samples): one image id and one sample number per row",
            )
        key = _mix(self._row_keys(device, shared) + _mix(torch.full((1,), (k << 16) + draw, device=device) * GOLDEN))
        return _mix(key[:, None] + torch.arange(1, positions + 1, device=device) * GOLDEN)

    def normal(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        """Standard normal draws like `like` (B, ...), in its dtype. k: step of the chain, -1 in start, n in finish;
        draw: 0, 1, .. where a step needs several; shared: one draw for all images (of the same sample)."""
        rows, size = like.shape[0], like[0].numel()
        bits = self._bits(k, draw, rows, (size + 1) // 2, like.device, shared)
        # One hash gives two 32-bit uniforms, those give two normals. The half keeps the logarithm finite.
        radius = torch.log((((bits >> 32) & 0xFFFFFFFF).double() + 0.5) * 2.0**-32).mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFFFF).double() * (2 * math.pi * 2.0**-32)
        pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        found = pair[:, :size].reshape(like.shape).to(like.dtype)
        return found if self.scale == 1 else self.scale * found

    def uniform(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        """Uniform draws in [0, 1), multiples of 2^-24 (the same in float32 and float64)."""
        bits = self._bits(k, draw, like.shape[0], like[0].numel(), like.device, shared)
        return (((bits >> 40) & 0xFFFFFF).to(like.dtype) * 2.0**-24).reshape(like.shape)

    def sign(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        """-1 or +1 with equal probability."""
        bits = self._bits(k, draw, like.shape[0], like[0].numel(), like.device, shared)
        found = (1 - 2 * ((bits >> 63) & 1)).to(like.dtype).reshape(like.shape)
        return found if self.scale == 1 else self.scale * found


class Replay(Noise):
    """Hands out stored arrays by (k, draw), whatever is asked for: what comparisons with published runs need."""

    def __init__(self, stored: Mapping[tuple[int, int], Tensor]):
        super().__init__(0, "replay")
        self.stored = stored

    def fork(self, *path: str | int) -> Replay:
        return self

    def rows(self, ids: Sequence[int] | Tensor, samples: Sequence[int] | Tensor) -> Replay:
        return self

    def normal(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        if (k, draw) not in self.stored:
            raise KeyError(f"no stored draw {draw} for step {k}; stored: {sorted(self.stored)}")
        return torch.as_tensor(self.stored[k, draw], dtype=like.dtype, device=like.device).expand_as(like)

    uniform = sign = normal
