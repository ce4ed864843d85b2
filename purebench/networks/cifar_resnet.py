"""ResNet-50 for CIFAR (He et al. 2016, "Deep Residual Learning for Image Recognition"), as DiffPure's `cifar10-resnet-50`.

The bottleneck network of ImageNet with a 3x3 first convolution and no pool after it, so the stages run at 32, 16, 8 and 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from purebench.networks import Config
from purebench.networks.wideresnet import CIFAR_MEAN, CIFAR_STD, BatchNorm, Normalize


class Bottleneck(nn.Module):
    """ReLU(shortcut(x) + BN(1x1(ReLU(BN(3x3(ReLU(BN(1x1(x)))))))), the 3x3 striding; 4 `width` channels come out."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), BatchNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), BatchNorm(out)
        changes = channels != out or stride != 1
        shortcut = [nn.Conv2d(channels, out, 1, stride, bias=False), BatchNorm(out)] if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.shortcut(x) + self.bn3(self.conv3(h)))


def stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(channels, width, stride), *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1))
    )


class ResNet50(nn.Module):
    """x: (B, 3, H, W) in [0,1], normalised inside -> logits (B, classes). Piecewise linear in x. `config`: `classes` (10)."""

    def __init__(self, config: Config):
        super().__init__()
        self.normalize = Normalize(CIFAR_MEAN, CIFAR_STD)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), BatchNorm(64)
        self.layer1 = stage(64, 64, blocks=3, stride=1)
        self.layer2 = stage(256, 128, blocks=4, stride=2)
        self.layer3 = stage(512, 256, blocks=6, stride=2)
        self.layer4 = stage(1024, 512, blocks=3, stride=2)
        self.linear = nn.Linear(2048, config.get("classes", 10))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(self.normalize(x))))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.linear(h.mean(dim=(2, 3)))
