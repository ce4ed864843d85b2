"""Attribute classifier of CelebA-HQ (Karras et al. 2019, the StyleGAN paper's classifiers; weights of Chai et al. 2021, "Ensembling
with Deep Generative Views"), as DiffPure uses it: a StyleGAN discriminator with one logit, with equalised learning rates."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from purebench.errors import UserError
from purebench.networks import Config
from purebench.networks.blocks import named


class Layer(nn.Module):
    """gain / sqrt(fan-in) W x + b: a convolution or linear layer whose stored weights are standard normal at the start of training."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, gain: float = math.sqrt(2)):
        super().__init__()
        self.kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
        self.add_module(self.kind, layer)
        self.wscale = nn.ParameterDict({"b": torch.zeros(len(layer.weight))})
        # In the forward pass and not in the weights: the files hold the weights before it.
        self.scale = gain / math.sqrt(layer.weight[0].numel())
        nn.init.normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.get_submodule(self.kind)(x)
        return h * self.scale + self.wscale["b"].reshape(-1, *[1] * (h.ndim - 2))


def conv(channels: int, out: int, kernel: int = 3) -> Layer:
    return Layer(nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False))


class MinibatchStd(nn.Module):
    """x (B, C, H, W) with a channel more: the mean over C, H, W of the deviation within a group (Karras et al. 2018, section 3).

    Couples batch mates: image i is in the group of the images i modulo B / 4. B is below 4, or a multiple of it."""

    def forward(self, x: Tensor) -> Tensor:
        # As published: an image's group is strided through the batch, not four neighbours.
        group = min(4, len(x))
        deviation = (x.unflatten(0, (group, -1)).var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


class AttributeNet(nn.Sequential):
    """x: (B, 3, resolution, resolution) in [-1,1] -> one logit (B, 1), positive where the attribute is absent.

    `config`: `resolution`, `fmap_base`, `fmap_max` (the block at resolution 4, 8, 16 .. takes fmap_base / 2, / 4, / 8 .. channels, at
    most fmap_max), `use_mbstd` (False). UserError for `fixed_size` False, the growing form. Keys as published. Piecewise linear in x,
    without `use_mbstd`.
    """

    def __init__(self, config: Config):
        if not config.get("fixed_size", True):
            raise UserError("an attribute network of growing size is not built", "the published ones have `fixed_size`")
        levels = config["resolution"].bit_length() - 1
        widths = [min(config["fmap_base"] >> i, config["fmap_max"]) for i in range(levels)]
        act, mbstd = nn.LeakyReLU(0.2), config.get("use_mbstd", False)
        blocks = {"fromrgb_lod0": named(conv=conv(3, widths[-1], 1), act=act)}
        for i in range(levels - 1, 1, -1):
            conv0, conv1 = conv(widths[i], widths[i]), conv(widths[i], widths[i - 1])
            blocks[f"{2 << i}x{2 << i}"] = named(conv0=conv0, act0=act, conv1=conv1, mean=nn.AvgPool2d(2), act1=act)
        blocks["4x4"] = named(
            mbstd=MinibatchStd() if mbstd else nn.Identity(),
            conv=conv(widths[1] + mbstd, widths[1]),
            act0=act,
            flat=nn.Flatten(),
            dense0=Layer(nn.Linear(16 * widths[1], widths[0], bias=False)),
            act1=act,
            dense1=Layer(nn.Linear(widths[0], 1, bias=False), gain=1),
        )
        super().__init__(OrderedDict(blocks))
        # The level of detail while the network was growing; of a grown one it says nothing, but is in the files.
        self.register_buffer("lod_in", torch.zeros((), dtype=torch.float64))
