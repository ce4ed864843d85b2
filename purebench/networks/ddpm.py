"""The U-Net of DDPM (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B) with the keys of its PyTorch ports.

Two published sets of weights have this form: CIFAR-10 (pesser's conversion of Ho et al.'s own, the network of GDMP) and
CelebA-HQ (SDEdit's, the network of DiffPure's CelebA-HQ rows).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.networks import Config
from purebench.networks.blocks import attend, embed_ddpm, named

# What diffusers' form of this network may say of it besides; as published.
OPTIONS = {"groups": 32, "eps": 1e-6, "head_channels": 0, "padding": 0, "cosines_first": False, "shift": 1}
Norm = Callable[[int], nn.GroupNorm]


class Block(nn.Module):
    """shortcut(x) + conv(SiLU(GN(conv(SiLU(GN(x))) + e)))"""

    def __init__(self, channels: int, out: int, embedding: int, norm: Norm):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, out)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(e))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    """x + proj(softmax(q k / sqrt C) v) over all positions; C: the channels of a head, of which the published networks have one."""

    def __init__(self, channels: int, norm: Norm, head_channels: int = 0):
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).unflatten(1, (self.heads, -1)).mT for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v).mT.reshape(x.shape))


def downsampling(channels: int, with_conv: bool, padding: int = 0) -> nn.Module:
    """Half the size: a convolution of stride 2, or the mean of 2 x 2."""
    if not with_conv:
        return nn.AvgPool2d(2)
    if padding:
        return named(conv=nn.Conv2d(channels, channels, 3, stride=2, padding=padding))
    # Padded on the right and below alone, as TensorFlow's "same", with which the weights were trained.
    return named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2))


def upsampling(channels: int, with_conv: bool) -> nn.Module:
    """Twice the size: the nearest pixel, then a convolution if it has one."""
    nearest = nn.Upsample(scale_factor=2)
    return named(nearest=nearest, conv=nn.Conv2d(channels, channels, 3, padding=1)) if with_conv else nearest


MakeBlock = Callable[[int, int], Block]
MakeAttention = Callable[[int], Attention]


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where that is asked for."""

    def __init__(self, ins: list[int], out: int, block: MakeBlock, attention: MakeAttention | None):
        super().__init__()
        self.block = nn.ModuleList(block(c, out) for c in ins)
        self.attn = nn.ModuleList(attention(out) for _ in ins if attention)

    def step(self, i: int, h: Tensor, e: Tensor) -> Tensor:
        h = self.block[i](h, e)
        return self.attn[i](h) if self.attn else h


class Down(Level):
    """Adds its outputs to `kept`; all levels but the lowest end with `downsample`."""

    def __init__(
        self, ins: list[int], out: int, block: MakeBlock, attention: MakeAttention | None, downsample: nn.Module | None
    ):
        super().__init__(ins, out, block, attention)
        self.downsample = downsample

    def forward(self, h: Tensor, e: Tensor, kept: list[Tensor]) -> Tensor:
        for i in range(len(self.block)):
            h = self.step(i, h, e)
            kept.append(h)
        if self.downsample:
            h = self.downsample(h)
            kept.append(h)
        return h


class Up(Level):
    """Takes from `kept`; all levels but the highest end with `upsample`."""

    def __init__(
        self, ins: list[int], out: int, block: MakeBlock, attention: MakeAttention | None, upsample: nn.Module | None
    ):
        super().__init__(ins, out, block, attention)
        self.upsample = upsample

    def forward(self, h: Tensor, e: Tensor, kept: list[Tensor]) -> Tensor:
        for i in range(len(self.block)):
            h = self.step(i, torch.cat([h, kept.pop()], dim=1), e)
        return self.upsample(h) if self.upsample else h


class Mid(nn.Module):
    def __init__(self, channels: int, block: MakeBlock, attention: MakeAttention):
        super().__init__()
        self.block_1, self.attn_1 = block(channels, channels), attention(channels)
        self.block_2 = block(channels, channels)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h, e)), e)


class Embedding(nn.Module):
    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, embedding), nn.Linear(embedding, embedding)])

    def forward(self, waves: Tensor) -> Tensor:
        first, second = self.dense
        return second(F.silu(first(waves)))


class DDPM(nn.Module):
    """eps network. x: (B, in_channels, size, size) in [-1,1] plus noise; t: (B,) = 0 .. 999 -> eps like x.

    `config`: the published one, either nested (`model.ch`, `out_ch`, `ch_mult`, `num_res_blocks`, `attn_resolutions`,
    `in_channels`, `resamp_with_conv`; `data.image_size`) or flat with `resolution`; and `OPTIONS`. Dropout is left out, being off in
    every published use. Smooth: derivatives of any order in x.
    """

    def __init__(self, config: Config):
        super().__init__()
        # SDEdit's files say it nested, pesser's flat.
        nested = "model" in config
        model = config["model"] if nested else config
        size = config["data"]["image_size"] if nested else config["resolution"]
        blocks, with_conv = model["num_res_blocks"], model.get("resamp_with_conv", True)
        options = {key: model.get(key, usual) for key, usual in OPTIONS.items()}
        self.cosines_first, self.shift = options["cosines_first"], options["shift"]
        self.width, e = model["ch"], 4 * model["ch"]
        norm = partial(nn.GroupNorm, options["groups"], eps=options["eps"])
        block = partial(Block, embedding=e, norm=norm)
        attention = partial(Attention, norm=norm, head_channels=options["head_channels"])
        down = partial(downsampling, with_conv=with_conv, padding=options["padding"])
        widths = [self.width * m for m in model["ch_mult"]]
        attended = [size >> level in model["attn_resolutions"] for level in range(len(widths))]

        self.temb = Embedding(self.width, e)
        self.conv_in = nn.Conv2d(model["in_channels"], self.width, 3, padding=1)
        downs, ups = [], []
        c, kept = self.width, [self.width]
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            ins = [c, *[width] * (blocks - 1)]
            c = width
            downs.append(Down(ins, c, block, attention if attended[i] else None, None if last else down(c)))
            kept += [c] * (blocks if last else blocks + 1)
        for i, width in reversed(list(enumerate(widths))):
            # One block more than on the way down, which takes along what the level began with.
            ins = [h + kept.pop() for h in (c, *[width] * blocks)]
            c = width
            up = upsampling(c, with_conv) if i else None
            ups.append(Up(ins, c, block, attention if attended[i] else None, up))
        self.down, self.mid = nn.ModuleList(downs), Mid(widths[-1], block, attention)
        # Built from the lowest resolution, and numbered in the files from the highest.
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, model["out_ch"], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = embed_ddpm(t, self.width, self.shift)
        if self.cosines_first:
            waves = waves.roll(self.width // 2, dims=1)
        e = self.temb(waves.to(x.dtype))
        h = self.conv_in(x)
        kept = [h]
        for down in self.down:
            h = down(h, e, kept)
        h = self.mid(h, e)
        for up in reversed(self.up):
            h = up(h, e, kept)
        return self.conv_out(F.silu(self.norm_out(h)))
