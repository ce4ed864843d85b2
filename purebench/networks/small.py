"""Small networks that train in minutes on one CPU core: a classifier and a score network for the embedded digits.

`SmallUNet` is a cut-down DDPM++ (Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H, after
Ho et al. 2020): residual blocks of GroupNorm, SiLU and 3x3 convolutions, without attention and dropout.
Files written by `purebench train` hold their configuration: `load` rebuilds the network from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.errors import UserError


class SmallCNN(nn.Sequential):
    """Three convolutions and a linear layer. x: (B, channels, size, size) in [0,1] -> logits (B, classes)."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 16, size: int = 8, dropout: float = 0.2):
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(size // 4),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 16, classes),
        )  # fmt: skip


class ADPCNN(nn.Sequential):
    """ADP's network for MNIST and FashionMNIST (Yoon et al. 2021): 5x5 convolutions of 32 and 64 channels, each pooled, and 1024
    hidden units. x: (B,1,28,28) in [0,1] -> logits (B, classes)."""

    def __init__(self, classes: int = 10):
        super().__init__(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, 1024), nn.ReLU(), nn.Linear(1024, classes),
        )  # fmt: skip


def embed(labels: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of labels (B,) at width/2 frequencies from 1 to 1/10000; (B, width), float64."""
    frequencies = torch.logspace(0, -4, width // 2, dtype=torch.float64, device=labels.device)
    angles = labels.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over groups of 4 channels."""
    return nn.GroupNorm(channels // 4, channels, eps=1e-6)


class Block(nn.Module):
    """Residual block: x + conv(SiLU(GN(conv(SiLU(GN(x))) + e))), e: (B, out, 1, 1) the projected embedding."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1, bias=False)  # e is its bias
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        for p in self.conv2.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + e
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SmallUNet(nn.Module):
    """eps network. x: (B, channels, H, W) in [-1,1] plus noise; labels: (B,) = 999 t, t in [0,1] -> eps like x.

    `base` * `mult[i]` channels at resolution H / (patch 2^i), `blocks` residual blocks per resolution; patches of patch x patch
    pixels are its input channels. H and W must be divisible by patch 2^(len(mult) - 1). Smooth: derivatives of any order in x;
    float32 and float64.
    """

    def __init__(
        self, channels: int = 1, base: int = 16, mult: Sequence[int] = (1, 2), blocks: int = 1, patch: int = 1
    ):
        super().__init__()
        self.base, self.patch, channels, widths = base, patch, channels * patch**2, [base * m for m in mult]
        self.embedding = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base), nn.SiLU())
        self.first = nn.Conv2d(channels, base, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, kept = base, [base]
        for level, width in enumerate(widths):
            if level:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                kept.append(c)
            for _ in range(blocks):
                self.down.append(Block(c, width))
                c = width
                kept.append(c)
        self.middle = nn.ModuleList([Block(c, c), Block(c, c)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(c + kept.pop(), width))
                c = width
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))
        self.last = nn.Sequential(norm(c), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1))
        layers = [*self.down, *self.middle, *self.up]
        self.sizes = [layer.conv1.out_channels for layer in layers if isinstance(layer, Block)]
        self.project = nn.Linear(4 * base, sum(self.sizes))  # the embedding for all blocks in one product

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        embedding = self.embedding(embed(labels, self.base).to(x.dtype))
        e = iter(self.project(embedding)[:, :, None, None].split(self.sizes, dim=1))
        h = self.first(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        kept = [h]
        for layer in self.down:
            h = layer(h, next(e)) if isinstance(layer, Block) else layer(h)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, next(e))
        for layer in self.up:
            h = layer(torch.cat([h, kept.pop()], dim=1), next(e)) if isinstance(layer, Block) else layer(h)
        return F.pixel_shuffle(self.last(h), self.patch) if self.patch > 1 else self.last(h)


NETWORKS: dict[str, type[nn.Module]] = {"small-cnn": SmallCNN, "small-unet": SmallUNet, "adp-cnn": ADPCNN}


def load(path: Path) -> nn.Module:
    """The network in a file of `purebench train`, built from its metadata: eval mode, frozen, float32, on CPU."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        network = NETWORKS[about["network"]](**json.loads(about["config"]))
        network.load_state_dict(state)
        bad = next((key for key, value in state.items() if not bool(value.isfinite().all())), "")
        if bad:
            raise ValueError(f"`{bad}` holds NaN or infinity")
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"`{path}` is no file of `purebench train`: {str(error).splitlines()[0] or type(error).__name__}",
            "`purebench train` makes one; for a classifier's other weights, `--classifier file:path=FILE,network=NAME`",
        ) from None
    return network.eval().requires_grad_(False)
