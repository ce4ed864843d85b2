"""EDM's denoisers (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1 and appendix C).

`SongUNet` is their form of the two networks of Song et al. 2021: DDPM++ (positional embedding, plain encoder) and NCSN++
(Fourier embedding, residual encoder, wider resampling filter). `EDM` wraps it as a denoiser D(x; sigma), preconditioned as EDM,
VP or VE. Keys as published: `model.enc.<res>x<res>_<layer>`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.errors import UserError, unknown
from purebench.networks import Config
from purebench.networks.blocks import attend, embed, norm


class Positional(nn.Module):
    """Cosines, then sines, of labels (B,) at width/2 frequencies from 1 to 1/10000; (B, width), float32 as published."""

    def __init__(self, width: int):
        super().__init__()
        self.frequencies = width // 2

    def forward(self, labels: Tensor) -> Tensor:
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=labels.device)
        sin, cos = embed(labels, (1 / 10000) ** (steps / (self.frequencies - 1)))
        return torch.cat([cos, sin], dim=1)


class Fourier(nn.Module):
    """Cosines, then sines, of labels (B,) at width/2 random frequencies of deviation 16; (B, width), float32 as published."""

    freqs: Tensor

    def __init__(self, width: int):
        super().__init__()
        # Random, but part of the weights: a file brings its own.
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, labels: Tensor) -> Tensor:
        sin, cos = embed(labels, 2 * math.pi * self.freqs.float())
        return torch.cat([cos, sin], dim=1)


def kernel(taps: Sequence[float]) -> Tensor:
    """The separable resampling filter of sum 1, (1, 1, taps, taps)."""
    f = torch.tensor(taps, dtype=torch.float32)
    return (f[:, None] * f / f.sum() ** 2)[None, None]


def down(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """Every channel filtered and halved in size."""
    return F.conv2d(x, f.expand(x.shape[1], 1, -1, -1), stride=2, padding=padding, groups=x.shape[1])


def up(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """Every channel doubled in size and filtered."""
    # Times 4, since of every four filtered pixels three are new, and zero.
    return F.conv_transpose2d(x, 4 * f.expand(x.shape[1], 1, -1, -1), stride=2, padding=padding, groups=x.shape[1])


class Resample(nn.Module):
    """Only the resampling, `down` or `up`."""

    resample_filter: Tensor

    def __init__(self, way: str, taps: Sequence[float]):
        super().__init__()
        self.resample = {"down": down, "up": up}[way]
        self.padding = (len(taps) - 1) // 2
        self.register_buffer("resample_filter", kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x, self.resample_filter, self.padding)


class Conv(Resample):
    """A resampling, then a convolution that keeps the size; `fused`: the other way round, the edge padded once for both."""

    def __init__(self, channels: int, out: int, size: int, way: str, taps: Sequence[float], fused: bool = False):
        super().__init__(way, taps)
        convolution = nn.Conv2d(channels, out, size)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        # Padding twice would filter the zeros of the first edge into the image.
        edge = self.weight.shape[-1] // 2
        if self.fused:
            return self.resample(
                F.conv2d(x, self.weight, self.bias, padding=edge + self.padding), self.resample_filter, 0
            )
        return F.conv2d(super().forward(x), self.weight, self.bias, padding=edge)


class Block(nn.Module):
    """y = (skip(x) + conv1(SiLU(GN(conv0(SiLU(GN(x))) + e)))) / sqrt 2, then perhaps attention: (y + proj(attention(GN(y)))) / sqrt 2.

    `way`: `down` or `up`, the resampling that conv0 and skip begin with. Channels of qkv: (channel, q | k | v).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        taps: Sequence[float],
        way: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.norm0 = norm(channels)
        self.conv0 = Conv(channels, out, 3, way, taps) if way else nn.Conv2d(channels, out, 3, padding=1)
        self.affine = nn.Linear(embedding, out)
        self.norm1, self.conv1 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.skip: nn.Module | None = None
        if way:
            self.skip = Conv(channels, out, 1, way, taps)
        elif channels != out:
            self.skip = nn.Conv2d(channels, out, 1)
        self.attention = attention
        if attention:
            self.norm2, self.qkv, self.proj = norm(out), nn.Conv2d(out, 3 * out, 1), nn.Conv2d(out, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(e)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        x = ((self.skip(x) if self.skip else x) + h) / math.sqrt(2)
        if self.attention:
            q, k, v = (a.mT for a in self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).unbind(2))
            x = (x + self.proj(attend(q, k, v).mT.reshape(x.shape))) / math.sqrt(2)
        return x


@dataclass(frozen=True)
class _Layout:
    """What both halves of a `SongUNet` are built from. levels: (pixels of a side, channels), the finest first."""

    img_channels: int
    model_channels: int
    embedding: int
    levels: Sequence[tuple[int, int]]
    num_blocks: int
    attn_resolutions: Sequence[int]
    taps: Sequence[float]


def _encoder(of: _Layout, kind: str) -> tuple[nn.ModuleDict, list[int]]:
    """The layers on the way down, and the channels of what each hands across to the way up, in order."""
    enc = nn.ModuleDict()
    c, aux, kept = of.model_channels, of.img_channels, [of.model_channels]
    for level, (size, width) in enumerate(of.levels):
        at = f"{size}x{size}"
        if level == 0:
            enc[f"{at}_conv"] = nn.Conv2d(of.img_channels, c, 3, padding=1)
        else:
            enc[f"{at}_down"] = Block(c, c, of.embedding, of.taps, way="down")
            kept.append(c)
            if kind == "skip":
                enc[f"{at}_aux_down"] = Resample("down", of.taps)
                enc[f"{at}_aux_skip"] = nn.Conv2d(aux, c, 1)
            elif kind == "residual":
                enc[f"{at}_aux_residual"] = Conv(aux, c, 3, "down", of.taps, fused=True)
                aux = c
        for i in range(of.num_blocks):
            enc[f"{at}_block{i}"] = Block(c, width, of.embedding, of.taps, attention=size in of.attn_resolutions)
            c = width
            kept.append(c)
    return enc, kept


def _decoder(of: _Layout, kind: str, kept: list[int]) -> nn.ModuleDict:
    """The layers on the way up; kept: channels of what the way down hands across, which is used up from its end."""
    dec = nn.ModuleDict()
    kept = list(kept)
    c, lowest = kept[-1], len(of.levels) - 1
    for level in reversed(range(len(of.levels))):
        size, width = of.levels[level]
        at = f"{size}x{size}"
        if level == lowest:
            dec[f"{at}_in0"] = Block(c, c, of.embedding, of.taps, attention=True)
            dec[f"{at}_in1"] = Block(c, c, of.embedding, of.taps)
        else:
            dec[f"{at}_up"] = Block(c, c, of.embedding, of.taps, way="up")
        for i in range(of.num_blocks + 1):
            # As published: on the way up only a level's last block attends.
            attention = i == of.num_blocks and size in of.attn_resolutions
            dec[f"{at}_block{i}"] = Block(c + kept.pop(), width, of.embedding, of.taps, attention=attention)
            c = width
        if kind == "skip" or level == 0:
            if kind == "skip" and level < lowest:
                dec[f"{at}_aux_up"] = Resample("up", of.taps)
            dec[f"{at}_aux_norm"] = norm(c)
            dec[f"{at}_aux_conv"] = nn.Conv2d(c, of.img_channels, 3, padding=1)
    return dec


class SongUNet(nn.Module):
    """The network F. x: (B, img_channels, res, res); noise_labels: (B,) or (1,) -> like x.

    augment_labels: (B, augment_dim), left out at inference; class_labels: (B, label_dim), one-hot, zero if left out.
    The arguments are those of the published files; dropout is left out, being off in every published use.
    Smooth: derivatives of any order in x.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ):
        super().__init__()
        embeddings = {"positional": Positional, "fourier": Fourier}
        for name, value, known in (
            ("embedding_type", embedding_type, embeddings),
            ("encoder_type", encoder_type, ("standard", "skip", "residual")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise unknown(name, value, known)
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = embeddings[embedding_type](noise)
        self.label_dim = label_dim
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)

        levels = [(img_resolution >> i, model_channels * m) for i, m in enumerate(channel_mult)]
        layout = _Layout(img_channels, model_channels, embedding, levels, num_blocks, attn_resolutions, resample_filter)
        self.enc, kept = _encoder(layout, encoder_type)
        self.dec = _decoder(layout, decoder_type, kept)

    def forward(
        self, x: Tensor, noise_labels: Tensor, augment_labels: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        # The halves change places, as published, so that the sines come first, as in Score SDE.
        cos, sin = self.map_noise(noise_labels).to(x.dtype).chunk(2, dim=1)
        e = torch.cat([sin, cos], dim=1)
        if self.label_dim:
            # No class is what the published networks were trained on where the label was dropped.
            if class_labels is None:
                class_labels = x.new_zeros(1, self.label_dim)
            e = e + self.map_label(class_labels.to(x.dtype) * math.sqrt(self.label_dim))
        if augment_labels is not None and hasattr(self, "map_augment"):
            e = e + self.map_augment(augment_labels.to(x.dtype))
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

        # aux: the image itself, carried down beside the features.
        h = aux = x
        kept: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                h = kept[-1] = h + layer(aux)
            elif name.endswith("aux_residual"):
                h = kept[-1] = aux = (h + layer(aux)) / math.sqrt(2)
            else:
                h = layer(h, e) if isinstance(layer, Block) else layer(h)
                kept.append(h)
        # out: the image, summed on the way up.
        out: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                to_image = F.silu(layer(h))
            elif name.endswith("aux_conv"):
                out = layer(to_image) if out is None else out + layer(to_image)
            else:
                h = layer(torch.cat([h, kept.pop()], dim=1) if "_block" in name else h, e)
        assert out is not None
        return out


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    x: (B, img_channels, res, res), a [-1,1] image plus noise of deviation sigma; sigma: a number, or (B,) -> D like x, the mean of
    the clean image given x. `class_labels`, `augment_labels`: see `SongUNet`, which is `model`. All in the weights' precision
    but the embedding of c_noise (float32). Smooth: derivatives of any order in x.
    """

    sigma_min: float  # the range of noise levels it is made for
    sigma_max: float

    def __init__(self, **config: Any):
        super().__init__()
        self.model = SongUNet(**config)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1, for sigma (B, 1, 1, 1)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        x = x.to(self.model.map_layer0.weight.dtype)
        if not isinstance(sigma, Tensor):
            sigma = x.new_full((), sigma)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma.to(x).reshape(-1, 1, 1, 1))
        return c_skip * x + c_out * self.model(c_in * x, c_noise.flatten(), augment_labels, class_labels)


class EDMPrecond(Denoiser):
    """EDM's own preconditioning (section 5): input and training target have unit variance at every sigma."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf, sigma_data: float = 0.5, **config: Any):
        super().__init__(**config)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        variance = sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / variance, sigma * self.sigma_data / variance.sqrt()
        return c_skip, c_out, 1 / variance.sqrt(), sigma.log() / 4


class VPPrecond(Denoiser):
    """The VP-SDE of Song et al. 2021: beta(t) = beta_min + beta_d t, labels (M - 1) t, and F predicts the noise."""

    def __init__(
        self, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000, epsilon_t: float = 1e-5, **config: Any
    ):
        super().__init__(**config)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        self.sigma_min, self.sigma_max = (float(self.sigma(torch.tensor(t, device="cpu"))) for t in (epsilon_t, 1.0))

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of a time in [epsilon_t, 1]."""
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time of a noise level."""
        return ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * self.sigma_inv(sigma)


class VEPrecond(Denoiser):
    """The VE-SDE of Song et al. 2021: F predicts the negative noise."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0, **config: Any):
        super().__init__(**config)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor, Tensor]:
        return 1.0, sigma, torch.ones_like(sigma), (sigma / 2).log()


PRECONDITIONINGS = {"edm": EDMPrecond, "vp": VPPrecond, "ve": VEPrecond}


def EDM(config: Config) -> Denoiser:
    """The denoiser of a published configuration (`init_kwargs`), and of its `precond`: `edm` (the default), `vp`, `ve` or a class name.

    Keys: the arguments of `SongUNet` and of the preconditioning; the defaults are the published ones."""
    # Half precision is how the files were trained on a GPU, not what the network is.
    config = {k: v for k, v in config.items() if k != "use_fp16"}
    precond, model_type = config.pop("precond", "edm"), config.pop("model_type", "SongUNet")
    if model_type != "SongUNet":
        raise UserError(
            f"no network `{model_type}` here (got model_type `{model_type}`, expected `SongUNet`)",
            "take a DDPM++ or NCSN++ network of EDM: the CIFAR-10, FFHQ and AFHQ ones, not the ImageNet-64 one",
        )
    classes = PRECONDITIONINGS | {c.__name__: c for c in PRECONDITIONINGS.values()}
    if precond not in classes:
        raise unknown("preconditioning", precond, classes)
    made = classes[precond]
    known = {
        name: p for c in (SongUNet, made) for name, p in inspect.signature(c).parameters.items() if name != "config"
    }
    for key, value in config.items():
        if key not in known:
            raise unknown("option of EDM's networks", str(key), known)
        if isinstance(known[key].default, int | float) and not isinstance(value, int | float):
            raise UserError(f"`{key}` of an EDM network is {value!r}, and no number", f"such as {known[key].default}")
    return made(**config)
