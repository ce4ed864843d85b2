"""Salt and pepper: a share of the pixels black or white, in one draw, without asking the defense. No ball bounds it: its threat model
is the box [0,1], whose numbers stand in a table of their own. COUP (Zhang et al. 2024) shows it; at which share is not legible."""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "salt-and-pepper": {
        "summary": "a share `amount` of the pixels, all channels together, black or white; no gradient",
        "gradients": [],
        "threats": ["box"],
        "gradient_calls": "0",
        "version": 1,
        "requires": ["0 < amount", "amount <= 1"],
        "paper": {
            "COUP": "its share is not legible; docs/attacks.md has the one at which the digits' bare classifier keeps 87.8 %"
        },
        "cite": "zhang2024coup",
    }
}


def salt_and_pepper(*, amount: float = 0.1) -> Attack:
    """amount: the share of the pixels, in (0,1]; at least one pixel. Random: which, and whether black or white (1/2 each)."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        place = noise.fork("pixels")
        plane = x[:, 0]
        rank = place.uniform(0, plane).flatten(1).argsort(dim=1, stable=True).argsort(1).view_as(plane)
        chosen = rank < max(1, round(amount * plane[0].numel()))
        white = (place.sign(1, plane) + 1) / 2
        return Attacked(torch.where(chosen[:, None], white[:, None], x))

    return attack
