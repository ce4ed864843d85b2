"""Networks by family: `build(family, config)` gives the published architecture with its published state-dict keys, frozen."""

from __future__ import annotations

from typing import Any

from torch import nn

from purebench.errors import unknown


def build(family: str, config: dict[str, Any]) -> nn.Module:
    """A network with fresh weights, in evaluation mode, its parameters frozen; usable with input gradients of any order.

    family: `ddpmpp` (Score SDE's DDPM++; config: the published one), or the small ones that ship here, `small-cnn` and
    `small-unet` (config: their keyword arguments). UserError for another name."""
    from purebench.networks.ddpmpp import DDPMpp
    from purebench.networks.small import NETWORKS

    if family == "ddpmpp":
        network: nn.Module = DDPMpp(config)
    elif family in NETWORKS:
        network = NETWORKS[family](**config)
    else:
        raise unknown("network family", family, ["ddpmpp", *NETWORKS])
    return network.eval().requires_grad_(False)
