"""A purifier at the size of its score model: images are resized (bilinear) before it and back after it, as DiffPure does on ImageNet
(224 to 256 to 224, align_corners=False)."""

from __future__ import annotations

from torch import Tensor

from purebench.engine.chain import Purifier, State
from purebench.engine.noise import Noise
from purebench.engine.sizes import resize


class Resized:
    """`purifier` on images of `inner` pixels, seen from outside as one on images of `outer` pixels."""

    def __init__(self, purifier: Purifier, outer: tuple[int, int], inner: tuple[int, int]):
        self.purifier, self.outer, self.inner, self.n = purifier, outer, inner, purifier.n

    def __getattr__(self, name: str) -> object:  # times, drift, diffusion: what the adjoint gradient needs
        # Not `self.purifier`: on an object that has none yet, such as a copy in the making, that would come here again, for ever.
        return getattr(self.__dict__["purifier"], name)

    def start(self, x: Tensor, noise: Noise) -> State:
        return self.purifier.start(resize(x, self.inner), noise)

    def step(self, k: int, state: State, noise: Noise) -> State:
        return self.purifier.step(k, state, noise)

    def diffused(self, k: int, x: Tensor, noise: Noise) -> Tensor:
        return self.purifier.diffused(k, resize(x, self.inner), noise)  # type: ignore[attr-defined]

    def finish(self, state: State) -> Tensor:
        return resize(self.purifier.finish(state), self.outer)
