"""Adversarial images that somebody else's attack has made: the harness reads them, hands them over, and judges them as any other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import ThreatModel

INFO = {
    "given": {
        "summary": "images from a file or from another run's cell, made by any attack: given:path=FILE",
        "images": "path",
        "gradients": [],
        "threats": ["Linf", "L2", "L1"],
        "gradient_calls": "0",
        "version": 1,
    }
}


def given(stored: Callable[[Tensor], Tensor], *, path: str = "", name: str = "", project: bool = False) -> Attack:
    """path: .npy, .npz or .pt with x_adv [N,C,H,W] in [0,1], in the order of the run's images, or a cell's folder; name: of the attack
    that made them, for the table; project: put images that lie outside the threat model onto its edge, instead of refusing them."""

    def run(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        x_adv = stored(noise.ids).to(x)
        return Attacked(threat.project(x_adv, x) if project else x_adv)

    return run
