"""Wide residual networks for CIFAR (Zagoruyko & Komodakis 2016): DiffPure's WRN-70-16-dropout and Hill et al.'s WRN-28-10.

Both are pre-activation networks of three stages. They differ in their keys, in the convolutions' biases, in the layer that strides,
and in what the shortcut convolution sees: the activated input (DiffPure), or the input itself (Hill).
Dropout is left out, being off in every published use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.networks import Config

# Of all pixels. The 0.2023, 0.1994, 0.2010 that others use, as ADP's configuration does, average each image's own deviation.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class Normalize(nn.Module):
    """(x - mean) / std per channel; x: (B, C, H, W). Its buffers are in no state dict, as in the published files."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that, in evaluation, is written out as scale x + shift."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        # So no activation is kept for the gradient, which exists in any order.
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        scale = self.weight / (variance + self.eps).sqrt()
        shift = self.bias - scale * mean
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


class Block(nn.Module):
    """DiffPure: a = ReLU(BN(x)); shortcut + conv(ReLU(BN(conv(a)))), shortcut: x, or a convolution of a where the width changes."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = BatchNorm(channels), nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2, self.conv2 = BatchNorm(out), nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return h + (self.convShortcut(a) if self.convShortcut else x)


class HillBlock(nn.Module):
    """Hill: shortcut(x) + conv(ReLU(BN(conv(ReLU(BN(x)))))), all convolutions with biases, the second one striding."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = BatchNorm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.bn2, self.conv2 = BatchNorm(out), nn.Conv2d(out, out, 3, stride, padding=1)
        changes = channels != out or stride != 1
        self.shortcut = nn.Sequential(*[nn.Conv2d(channels, out, 1, stride)] * changes)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def stages(config: Config, block: type[nn.Module]) -> tuple[list[nn.Sequential], int]:
    """The three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen` wide, and the width of the last."""
    blocks, widths = (config["depth"] - 4) // 6, [16 * 2**i * config["widen"] for i in range(3)]
    made = []
    for c, out, stride in zip([16, *widths], widths, (1, 2, 2), strict=False):
        made.append(nn.Sequential(block(c, out, stride), *(block(out, out, 1) for _ in range(blocks - 1))))
    return made, widths[-1]


class WideResNet(nn.Module):
    """DiffPure's WRN-70-16-dropout. x: (B, 3, H, W) in [0,1], normalised inside -> logits (B, classes). Piecewise linear in x.

    `config`: `depth` (6 n + 4), `widen`, `classes` (10). Keys as published: `block<stage>.layer.<i>`, `fc`."""

    def __init__(self, config: Config):
        super().__init__()
        self.normalize = Normalize(CIFAR_MEAN, CIFAR_STD)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        made, width = stages(config, Block)
        self.block1, self.block2, self.block3 = (nn.ModuleDict({"layer": stage}) for stage in made)
        self.bn1, self.fc = BatchNorm(width), nn.Linear(width, config.get("classes", 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.normalize(x))
        for block in (self.block1, self.block2, self.block3):
            h = block["layer"](h)
        return self.fc(F.relu(self.bn1(h)).mean(dim=(2, 3)))


class HillWideResNet(nn.Module):
    """The classifier of Hill et al. 2021 (WRN-28-10), also ADP's. x: (B, 3, H, W) -> logits (B, classes). Piecewise linear in x.

    x is in [-1,1], as Hill et al. trained it; with `mean` and `std` (lists of one number per channel) in `config` it is in [0,1],
    and normalised with them inside, as ADP trained it.
    `config`: `depth` (6 n + 4), `widen`, `classes` (10). Keys as published: `layer<stage>.<i>`, `linear`."""

    def __init__(self, config: Config):
        super().__init__()
        self.normalize = Normalize(config["mean"], config["std"]) if "mean" in config else nn.Identity()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        (self.layer1, self.layer2, self.layer3), width = stages(config, HillBlock)
        self.bn1, self.linear = BatchNorm(width), nn.Linear(width, config.get("classes", 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.conv1(self.normalize(x)))))
        return self.linear(F.relu(self.bn1(h)).mean(dim=(2, 3)))
