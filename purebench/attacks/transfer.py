"""Adversarial images that were made on another defense. The harness runs that cell first and hands over its stored images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import Part, ThreatModel

INFO = {
    "transfer": {
        "summary": "the images that an attack made on another defense: transfer:from=(DEFENSE),attack=(ATTACK)",
        "gradients": [],
        "threats": ["Linf", "L2", "L1", "box"],
        "gradient_calls": "0",
        "version": 1,
    }
}


def transfer(
    stored: Callable[[Tensor], Tensor], *, from_: Part | None = None, attack: Part | str = "pgd-eot"
) -> Attack:
    """`stored(ids)`: the images, from the harness; from: the defense that they were made on; attack: how, by its first gradient."""

    def run(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        return Attacked(stored(noise.ids).to(x))

    return run
