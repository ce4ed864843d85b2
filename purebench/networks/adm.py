"""ADM (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3), the U-Net of guided-diffusion.

DiffPure and GDMP use its unconditional ImageNet weights at 256 x 256. Keys as published: `input_blocks.<i>.<j>` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from purebench.errors import UserError
from purebench.networks import Config
from purebench.networks.blocks import attend, downsample, embed, named, upsample

DEFAULTS = {  # of guided-diffusion, for what a configuration leaves out
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,  # -1: num_heads
    "num_head_channels": -1,  # -1: num_heads counts instead
    "attention_resolutions": "16,8",
    "channel_mult": "",  # "": by image size
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "in_channels": 3,
    "num_classes": 1000,  # of ImageNet, on which the class-conditional networks were trained
}
MULTIPLIERS = {  # image size -> width of each level over num_channels
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),  # of improved-diffusion
}


def numbers(value: Any) -> list[float]:
    """The numbers of `"32,16,8"`, or of a list."""
    return [float(v) for v in (value.split(",") if isinstance(value, str) else value)]


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class Block(nn.Module):
    """skip(r(x)) + conv(SiLU(GN(conv(r(SiLU(GN(x))))) (1 + scale) + shift)), r: the resampling, or nothing.

    Without scale-shift norm, the embedding of t is added before the second group norm instead.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        scale_shift: bool,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out if scale_shift else out))
        # The published files count the dropout, which is off in every published use.
        dropout = nn.Identity()
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), dropout, nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        first_norm, silu, conv = self.in_layers
        h = silu(first_norm(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        e = self.emb_layers(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """x + proj(attention) over all positions. Channels of qkv: (head, q|k|v, channel); in the new order (q|k|v, head, channel)."""

    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2)
        qkv = self.qkv(self.norm(h)).unflatten(1, (3, self.heads, -1) if self.new_order else (self.heads, 3, -1))
        q, k, v = (a.mT for a in qkv.unbind(1 if self.new_order else 2))  # (B, heads, positions, channels of a head)
        return (h + self.proj_out(attend(q, k, v).mT.flatten(1, 2))).reshape(x.shape)


class Stage(nn.ModuleList):
    """Layers in a row; the blocks among them are told the embedding of t."""

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, e) if isinstance(layer, Block) else layer(h)
        return h


def _widths(options: Config) -> list[int]:
    """Channels of each level. Raises UserError for a size of which nobody published them."""
    size = options["image_size"]
    if not options["channel_mult"] and size not in MULTIPLIERS:
        raise UserError(
            f"no published `channel_mult` for image_size {size} (got ``, expected a list such as `1,2,2`)",
            f"sizes with a default: {', '.join(map(str, sorted(MULTIPLIERS)))}",
        )
    return [int(m * options["num_channels"]) for m in numbers(options["channel_mult"] or MULTIPLIERS[size])]


class ADM(nn.Module):
    """eps network. x: (B, 3, size, size) in [-1,1] plus noise; t: (B,) = 0 .. 999, integer or not -> eps like x.

    With `learn_sigma` (B, 6, size, size): eps, then v, the log variance being (v + 1)/2 log beta + (1 - v)/2 log beta~
    (Nichol & Dhariwal 2021, equation 15, whose v is (v + 1)/2 here).

    `config`: the published configuration (`image_size`, `num_channels`, and `DEFAULTS` for what is left out). y: (B,) labels,
    int64, of a class-conditional network. Weights and activations keep the network's precision (float16 files are widened);
    dropout and checkpointing are left out. Smooth: derivatives of any order in x.
    """

    def __init__(self, config: Config):
        super().__init__()
        options = {**DEFAULTS, **config}
        size, self.width = options["image_size"], options["num_channels"]
        widths = _widths(options)
        # The configuration names sides in pixels, the levels are counted in halvings.
        attended = {size // int(r) for r in numbers(options["attention_resolutions"])}
        heads, heads_up = options["num_heads"], options["num_heads_upsample"]
        embedding = 4 * self.width

        def block(ins: int, out: int, resample: Callable[[Tensor], Tensor] | None = None) -> Block:
            return Block(ins, out, embedding, options["use_scale_shift_norm"], resample)

        def downsampling(channels: int) -> nn.Module:
            if options["resblock_updown"]:
                return block(channels, channels, downsample)
            return named(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1))

        def upsampling(channels: int) -> nn.Module:
            if options["resblock_updown"]:
                return block(channels, channels, upsample)
            return named(resample=nn.Upsample(scale_factor=2), conv=nn.Conv2d(channels, channels, 3, padding=1))

        def attention(channels: int, heads: int) -> Attention:
            per_head = options["num_head_channels"]
            count = heads if per_head == -1 else channels // per_head
            return Attention(channels, count, options["use_new_attention_order"])

        self.time_embed = nn.Sequential(nn.Linear(self.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if options["class_cond"]:
            self.label_emb = nn.Embedding(options["num_classes"], embedding)
        channels = widths[0]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(options["in_channels"], channels, 3, padding=1)])])
        skipped = [channels]
        for level, width in enumerate(widths):
            for _ in range(options["num_res_blocks"]):
                layers: list[nn.Module] = [block(channels, width)]
                channels = width
                if 2**level in attended:
                    layers.append(attention(channels, heads))
                self.input_blocks.append(Stage(layers))
                skipped.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([downsampling(channels)]))
                skipped.append(channels)
        self.middle_block = Stage([block(channels, channels), attention(channels, heads), block(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            # One more than on the way down: the level's downsampling, or the first convolution, was handed across, too.
            for i in range(options["num_res_blocks"] + 1):
                layers = [block(channels + skipped.pop(), width)]
                channels = width
                if 2**level in attended:
                    layers.append(attention(channels, heads if heads_up == -1 else heads_up))
                if level and i == options["num_res_blocks"]:
                    layers.append(upsampling(channels))
                self.output_blocks.append(Stage(layers))
        ends = options["in_channels"] * (2 if options["learn_sigma"] else 1)
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, ends, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        # Unlike DDPM's, the last frequency falls short of 1/10000, and the cosines come first.
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        sin, cos = embed(t, torch.exp(-math.log(10000) * steps / half))
        e = self.time_embed(torch.cat([cos, sin], dim=1).to(x.dtype))
        if hasattr(self, "label_emb"):
            if y is None:
                raise UserError(
                    "a class-conditional ADM needs labels (got none)", "pass `y`, or take an unconditional one"
                )
            e = e + self.label_emb(y)
        h, skipped = x, []
        for stage in self.input_blocks:
            h = stage(h, e)
            skipped.append(h)
        h = self.middle_block(h, e)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skipped.pop()], dim=1), e)
        return self.out(h)
