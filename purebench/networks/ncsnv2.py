"""NCSNv2 (Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", appendix B), as ADP uses it.

A RefineNet (Lin et al. 2017) with InstanceNorm++ and ELU, in the form for 32x32 images: four residual stages, of which only the
second shrinks and the last two are dilated, then four refinement blocks on the way back. The noise level only divides the output.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.errors import UserError
from purebench.networks import Config
from purebench.networks.blocks import named

BUILT = {  # what a published configuration may say, and the one value that is built
    "normalization": "InstanceNorm++",
    "nonlinearity": "elu",
    "sigma_dist": "geometric",
    "logit_transform": False,
    "rescaled": False,
}


def conv(channels: int, out: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation, bias=bias)


class Norm(nn.Module):
    """InstanceNorm++ (Song & Ermon 2019, appendix A): gamma (IN(x) + alpha m) + beta.

    m: the spatial means, standardised over the channels of their image."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha, self.gamma = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
        scale = self.gamma / (variance + 1e-5).sqrt()
        # As published: this variance is the unbiased one, the one above is not.
        over_channels, centre = torch.var_mean(mean, dim=1, keepdim=True)
        m = (mean - centre) / (over_channels + 1e-5).sqrt()
        # All of it as one scale and shift of x, which keeps no activation but x for the gradient.
        shift = self.gamma * self.alpha * m + self.beta - scale * mean
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def halved(channels: int, out: int, kernel: int) -> nn.Sequential:
    """A convolution, then the mean of every 2x2 positions."""
    return named(conv=nn.Conv2d(channels, out, kernel, padding=kernel // 2), mean=nn.AvgPool2d(2))


class Block(nn.Module):
    """shortcut(x) + conv2(ELU(norm(conv1(ELU(norm(x)))))); the first one of a later stage halves the image, or is dilated."""

    def __init__(self, channels: int, out: int, dilation: int = 1, first: bool = False):
        super().__init__()
        self.conv1, self.normalize2 = conv(channels, channels, dilation), Norm(channels)
        self.conv2: nn.Module
        self.shortcut: nn.Module
        # Only the second stage shrinks: a dilation sees as far, and keeps the size.
        if first and dilation == 1:
            self.conv2, self.shortcut = halved(channels, out, 3), halved(channels, out, 1)
        else:
            self.conv2 = conv(channels, out, dilation)
            self.shortcut = conv(channels, out, dilation) if first else nn.Identity()
        self.normalize1 = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.elu(self.normalize1(x)))
        return self.shortcut(x) + self.conv2(F.elu(self.normalize2(h)))


def stage(channels: int, out: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(Block(channels, out, dilation, first=True), Block(out, out, dilation))


class RCU(nn.Module):
    """Residual convolution units: x <- x + conv(ELU(conv(ELU(x)))), `units` times."""

    def __init__(self, channels: int, units: int):
        super().__init__()
        # The published names begin with a digit, and so are no attributes of Python.
        for i in range(units):
            for j in range(2):
                self.add_module(f"{i + 1}_{j + 1}_conv", conv(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        convs = list(self.children())
        for first, second in zip(convs[::2], convs[1::2], strict=True):
            x = x + second(F.elu(first(F.elu(x))))
        return x


class MSF(nn.Module):
    """Multi-resolution fusion: the sum of a convolution of each input, brought to the size of the first."""

    def __init__(self, inputs: list[int], out: int):
        super().__init__()
        self.convs = nn.ModuleList([conv(channels, out) for channels in inputs])

    def forward(self, xs: list[Tensor]) -> Tensor:
        fine, coarse = (f(x) for f, x in zip(self.convs, xs, strict=True))
        return fine + F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True)


class CRP(nn.Module):
    """Chained residual pooling: ELU(x) and, added to it, two successive 5x5 max pools with a convolution each."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList([conv(channels, channels, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = h = F.elu(x)
        for f in self.convs:
            h = f(F.max_pool2d(h, 5, stride=1, padding=2))
            x = x + h
        return x


class Refine(nn.Module):
    """RefineNet block of one input, or of a fine and a coarse one: adapt each, fuse, pool, adapt."""

    def __init__(self, inputs: list[int], out: int, units: int = 1):
        super().__init__()
        self.adapt_convs = nn.ModuleList([RCU(channels, 2) for channels in inputs])
        self.output_convs = RCU(out, units)
        if len(inputs) > 1:
            self.msf = MSF(inputs, out)
        self.crp = CRP(out)

    def forward(self, *xs: Tensor) -> Tensor:
        hs = [adapt(x) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        return self.output_convs(self.crp(self.msf(hs) if len(hs) > 1 else hs[0]))


class NCSNv2(nn.Module):
    """Score network. x: (B, channels, H, W) in [0,1] plus noise, H and W even; index: (B,) int64 into `sigmas` -> score like x.

    `config`: `channels`, `ngf`, `sigma_begin`, `sigma_end`, `num_classes` (the number of sigmas), flat or in the published
    `data` and `model`. Keys as published, with the buffer `sigmas` (num_classes,) float32, geometric, the largest first.
    UserError for a normalisation, nonlinearity or scaling other than the published one. Derivatives of any order in x.
    """

    sigmas: Tensor

    def __init__(self, config: Config):
        super().__init__()
        config = {**config.get("data", {}), **config.get("model", config)}
        for key, value in BUILT.items():
            if config.get(key, value) != value:
                raise UserError(
                    f"NCSNv2 with `{key}` {config[key]!r} is not built (expected {value!r})",
                    "the networks for 28x28 to 64x64 images are, in their published configuration",
                )
        c, image_channels = config["ngf"], config["channels"]
        ends = math.log(config["sigma_begin"]), math.log(config["sigma_end"])
        sigmas = torch.linspace(*ends, config["num_classes"], dtype=torch.float64).exp()
        self.register_buffer("sigmas", sigmas.float())
        self.begin_conv = conv(image_channels, c)
        self.normalizer, self.end_conv = Norm(c), conv(c, image_channels)
        self.res1 = nn.Sequential(Block(c, c), Block(c, c))
        self.res2 = stage(c, 2 * c)
        self.res3 = stage(2 * c, 2 * c, dilation=2)
        self.res4 = stage(2 * c, 2 * c, dilation=4)
        self.refine1 = Refine([2 * c], 2 * c)
        self.refine2 = Refine([2 * c, 2 * c], 2 * c)
        self.refine3 = Refine([2 * c, 2 * c], c)
        self.refine4 = Refine([c, c], c, units=3)

    def raw(self, x: Tensor) -> Tensor:
        """The output before the division by sigma, like x: what ADP's fork calls the score (the score at sigma = 1)."""
        h1 = self.res1(self.begin_conv(2 * x - 1))
        h2 = self.res2(h1)
        h3 = self.res3(h2)
        h = self.refine1(self.res4(h3))
        h = self.refine4(h1, self.refine3(h2, self.refine2(h3, h)))
        return self.end_conv(F.elu(self.normalizer(h)))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.raw(x) / self.sigmas[index][:, None, None, None]
