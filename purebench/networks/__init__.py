"""Networks by family: `build(family, config)` gives the published architecture with its published state-dict keys,
frozen. It may import `errors`. Begin reading at `build`, then at the family that you need."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from purebench.errors import UserError, unknown

Config = dict[str, Any]  # a published configuration: each family knows the types of the keys that it reads
FAMILIES = {  # family -> "module:class"; the class takes the published configuration
    "ddpmpp": "ddpmpp:DDPMpp",
    "edm": "songunet:EDM",
    "adm": "adm:ADM",
    "ddpm": "ddpm:DDPM",
    "ncsnv2": "ncsnv2:NCSNv2",
    "ebm": "ebm:EBM",
    "wideresnet": "wideresnet:WideResNet",
    "wideresnet_hill": "wideresnet:HillWideResNet",
    "cifar_resnet50": "cifar_resnet:ResNet50",
    "attribute": "attribute:AttributeNet",
    "small-cnn": "small:SmallCNN",
    "small-unet": "small:SmallUNet",
    "adp-cnn": "small:ADPCNN",
}


def build(family: str, config: Config) -> nn.Module:
    """A network with fresh weights, in evaluation mode, its parameters frozen; usable with input gradients of any order.

    family: a name of `FAMILIES`. config: the published configuration itself; what each family reads of it is said by its class
    (the small ones take their keyword arguments). UserError for another family, or a configuration that does not fit it."""
    if family not in FAMILIES:
        raise unknown("network family", family, FAMILIES)
    module, _, name = FAMILIES[family].partition(":")
    make = getattr(importlib.import_module(f"purebench.networks.{module}"), name)
    try:
        network: nn.Module = make(**config) if module == "small" else make(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"this configuration is none of the network family `{family}`: {type(error).__name__} {error}",
            f"it has the keys {', '.join(map(str, config)) or '(none)'}",
        ) from None
    return network.eval().requires_grad_(False)
