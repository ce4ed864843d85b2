"""Energy network (Hill, Mitchell & Zhu 2021, "Stochastic Security: Adversarial Defense Using Long-Run Dynamics of Energy-Based
Models", appendix on architectures): five convolutions, each but the first halving the image, the last leaving one number."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from purebench.networks import Config


class EBM(nn.Module):
    """x: (B, n_c, 32, 32) in [-1,1] -> energy (B,), low where images are likely; Langevin steps of noise eps follow energy / (eps^2/2).

    `config`: `n_f` (the width), `n_c` (image channels, 3), `leak` (of the leaky ReLU, 0.05). Piecewise linear in x."""

    def __init__(self, config: Config):
        super().__init__()
        widths = [config["n_f"] * m for m in (1, 2, 4, 8)]
        layers: list[nn.Module] = [nn.Conv2d(config.get("n_c", 3), widths[0], 3, padding=1)]
        for c, out in itertools.pairwise(widths):
            layers += [nn.LeakyReLU(config.get("leak", 0.05)), nn.Conv2d(c, out, 4, stride=2, padding=1)]
        self.f = nn.Sequential(*layers, nn.LeakyReLU(config.get("leak", 0.05)), nn.Conv2d(widths[-1], 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x).reshape(len(x))
