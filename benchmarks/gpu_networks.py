"""The three networks of `gpu.py`, with generated weights: on the CPU, and as copies in the modes that are compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purebench import assets, networks
from purebench.engine import precision
from purebench.scores.denoisers import DenoiserScore
from purebench.scores.vp import VPScore

TINY = {
    "DDPM++ deep": {
        "data": {"image_size": 8, "num_channels": 3},
        "model": {"nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
        | {"sigma_max": 50, "sigma_min": 0.01, "num_scales": 1000},
    },
    "EDM": {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1},
    "WRN-28-10": {"depth": 10, "widen": 1},
}
WRN = {"depth": 28, "widen": 10}


@dataclass
class Network:
    """A network on the CPU; `level`: what it is told of the noise, None of a classifier; `score`: its adapter."""

    name: str
    module: nn.Module
    size: int
    level: float | None
    score: Callable[[nn.Module], Any] | None

    def inputs(self, rows: int, device: torch.device) -> tuple[Tensor, ...]:
        """Images (rows,3,H,W), and levels (rows,) where it takes them; the same at every call."""
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(rows, 3, self.size, self.size, generator=generator).to(device)
        return (x,) if self.level is None else (x, torch.full((rows,), self.level, device=device))

    def on(self, mode: str, device: torch.device) -> nn.Module:
        """A copy on the device, in a mode."""
        module = copy.deepcopy(self.module).to(device)
        if mode == "fp32 channels_last":
            return module.to(memory_format=torch.channels_last)
        precision.lower(module, mode.partition(" ")[0], device)
        return module


def generated(module: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that depend on the seed alone, and keep numbers of size one: where training begins at zero there is nothing to see."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = draw / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.1 * draw + (1 if name.endswith("weight") else 0)
    return module


def all_networks(tiny: bool) -> list[Network]:
    """The three, on the CPU."""
    size = 8 if tiny else 32
    shape = (3, size, size)
    configs = (
        TINY
        if tiny
        else {
            "DDPM++ deep": assets.entry("score-sde-cifar10-vp")["config"],
            "EDM": assets.entry("edm-cifar10-uncond-vp")["config"],
            "WRN-28-10": WRN,
        }
    )
    families = {"DDPM++ deep": "ddpmpp", "EDM": "edm", "WRN-28-10": "wideresnet"}
    made = {name: generated(networks.build(families[name], dict(config))) for name, config in configs.items()}
    return [
        Network("DDPM++ deep", made["DDPM++ deep"], size, 50.0, lambda module: VPScore(module, shape)),
        Network("EDM", made["EDM"], size, 0.5, lambda module: DenoiserScore(module, shape)),
        # Its head is of 8x8 pixels, pooled: smaller images have none.
        Network("WRN-28-10", made["WRN-28-10"], 32, None, None),
    ]
