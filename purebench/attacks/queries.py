"""What attacks without a gradient share: they ask the defense for answers, and know for each image how often they did."""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.engine.defense import Defense
from purebench.engine.noise import Noise


class Queries:
    """A defense that is asked for logits alone, of candidates of `images` images. An image that is broken is asked no more, so that images
    cost differently."""

    def __init__(self, defense: Defense, images: int):
        self.defense, self.before = defense, defense.spent.total()
        self.asked = torch.zeros(images, dtype=torch.int64)

    def logits(self, x: Tensor, noise: Noise, of: Tensor) -> Tensor:
        """(N,K) logits of one purification of each row of x (N,C,H,W); `of` (N,): which of the images a row is a candidate of."""
        self.asked += torch.bincount(of, minlength=len(self.asked))
        with torch.no_grad():
            return self.defense.logits(x, noise)

    def draws(self, x: Tensor, noise: Noise, of: Tensor, count: int) -> Tensor:
        """(N,count,K) logits of `count` purifications of each row, those numbered 0.. of `noise`."""
        rows = noise.rows(noise.ids.repeat_interleave(count), torch.arange(count).repeat(len(x)))
        found = self.logits(x.repeat_interleave(count, 0), rows, of.repeat_interleave(count))
        return found.unflatten(0, (len(x), count))

    def nfe(self) -> list[tuple[int, int]]:
        """(forward, backward) network calls of each image: a row costs what any other row does."""
        spent = [now - before for now, before in zip(self.defense.spent.total(), self.before, strict=True)]
        rows = max(1, int(self.asked.sum()))
        return [(spent[0] * asked // rows, spent[1] * asked // rows) for asked in self.asked.tolist()]
