"""Two controls: no perturbation at all, and a random one."""

from __future__ import annotations

from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "null": {
        "summary": "no perturbation: what the protocol alone does to clean images",
        "threat": False,
        "gradients": [],
        "gradient_calls": "0",
        "version": 1,
    },
    "noise": {
        "summary": "one random point of the ball (uniform), no gradient",
        "threats": ["Linf", "L2", "L1", "box"],
        "gradients": [],
        "gradient_calls": "0",
        "version": 1,
    },
}


def null() -> Attack:
    """Returns x itself."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        return Attacked(x.clone())

    return attack


def noise() -> Attack:
    """Uniform in the ball, clipped to [0,1]."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        return Attacked(threat.random(noise.fork("ball"), x))

    return attack
