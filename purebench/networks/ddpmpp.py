"""DDPM++ (Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H), as DiffPure and COUP use it.

The network of Score SDE's `cifar10_ddpmpp_deep_continuous`: BigGAN residual blocks that resample inside, single-head attention
at the listed resolutions, every residual sum divided by sqrt 2. Keys as published: `all_modules.<i>` in the order of the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.networks import Config
from purebench.networks.blocks import attend, downsample, embed_ddpm, norm, upsample


class Block(nn.Module):
    """(skip(r(x)) + conv(SiLU(GN(conv(r(SiLU(GN(x)))) + e)))) / sqrt 2, r: the resampling, or nothing."""

    def __init__(self, channels: int, out: int, embedding: int, resample: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.resample = resample
        self.GroupNorm_0, self.Conv_0 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, out)
        self.GroupNorm_1, self.Conv_1 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out or resample:
            self.Conv_2 = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(F.silu(e))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class NIN(nn.Module):
    """A 1x1 convolution, of (B, positions, channels)."""

    def __init__(self, channels: int):
        super().__init__()
        # Stored in x out, as TensorFlow does, so that an `nn.Linear` would hold it transposed.
        self.W = nn.Parameter(torch.randn(channels, channels) / math.sqrt(channels))
        self.b = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W + self.b


class Attention(nn.Module):
    """(x + NIN(softmax(q k / sqrt C) v)) / sqrt 2 over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.GroupNorm_0 = norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        h = self.NIN_3(attend(q, k, v))
        return (x + h.transpose(1, 2).reshape(x.shape)) / math.sqrt(2)


class DDPMpp(nn.Module):
    """eps network. x: (B, channels, size, size) in [-1,1] plus noise; labels: (B,) = 999 t -> eps like x.

    `config`: the published configuration (`data.image_size`, `data.num_channels`, `model.nf`, `ch_mult`, `num_res_blocks`,
    `attn_resolutions`). Dropout is left out, being off in every published use. Smooth: derivatives of any order in x.
    """

    def __init__(self, config: Config):
        super().__init__()
        data, model = config["data"], config["model"]
        self.width, size, image_channels = model["nf"], data["image_size"], data["num_channels"]
        e = 4 * self.width
        widths = [self.width * m for m in model["ch_mult"]]
        layers: list[nn.Module] = [
            nn.Linear(self.width, e),
            nn.Linear(e, e),
            nn.Conv2d(image_channels, self.width, 3, padding=1),
        ]
        attended = [size >> level in model["attn_resolutions"] for level in range(len(widths))]
        c, kept = self.width, [self.width]
        for level, width in enumerate(widths):
            for _ in range(model["num_res_blocks"]):
                layers.append(Block(c, width, e))
                layers += [Attention(width)] * attended[level]
                c = width
                kept.append(c)
            if level < len(widths) - 1:
                layers.append(Block(c, c, e, downsample))
                kept.append(c)
        # The files number all layers in one row; where the way up begins, and which blocks on it take an output of the way down
        # along, is known only while the row is made.
        self.down = len(layers)
        self.joined = set()
        layers += [Block(c, c, e), Attention(c), Block(c, c, e)]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(model["num_res_blocks"] + 1):
                self.joined.add(len(layers))
                layers.append(Block(c + kept.pop(), width, e))
                c = width
            layers += [Attention(c)] * attended[level]
            if level:
                layers.append(Block(c, c, e, upsample))
        self.all_modules = nn.ModuleList([*layers, norm(c), nn.Conv2d(c, image_channels, 3, padding=1)])
        # In the published files, without effect on the output: the noise levels, from the largest to the smallest.
        ends = math.log(model["sigma_max"]), math.log(model["sigma_min"])
        self.register_buffer("sigmas", torch.linspace(*ends, model["num_scales"], dtype=torch.float64).exp())

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        first, second, conv, *layers, last_norm, last = self.all_modules
        e = second(F.silu(first(embed_ddpm(labels, self.width).to(x.dtype))))
        h = conv(x)
        kept = [h]
        for i, layer in enumerate(layers, 3):
            if isinstance(layer, Attention):
                h = layer(h)
                # What is handed across is the block's output with its attention.
                if i < self.down:
                    kept[-1] = h
            elif i < self.down:
                h = layer(h, e)
                kept.append(h)
            else:
                h = layer(torch.cat([h, kept.pop()], dim=1) if i in self.joined else h, e)
        return last(F.silu(last_norm(h)))
