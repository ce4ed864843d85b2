"""Adapter of energy networks (Hill, Mitchell & Zhu 2021): the energy itself, and its negative gradient as a score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from purebench.assets import architecture, checkpoint
from purebench.engine.nfe import watch
from purebench.errors import UserError
from purebench.scores.views import Level, Score

INFO = {
    "ebm": {
        "summary": "energy model of Hill et al., CIFAR-10, 0.7 M parameters",
        "asset": "ebm-hill-cifar10",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "energy": True,
        "choices": {"weights": ["ema", "raw"]},
        "moot": {
            "size": [
                "path == '' or config != ''",
                "it is of a file of yours where neither that nor a configuration tells it",
            ],
            "config": ["path == ''", "it is of a file of yours"],
        },
        "version": 1,
        "cite": "hill2021stochastic",
    }
}


class EnergyScore(Score):
    """A network f(x), (B,) of images in [-1,1], as p(x) ~ exp(-U(x)), U = 2 f / eps^2: then x - grad f + eps n is a Langevin step.

    The network knows one noise level, that of its training images: `noise`, on the [-1,1] scale; `direction` multiplies the same
    score by any sigma. Its backward inside counts as one of the network's, as guidance does, and so does a gradient through it.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int, int], eps: float = 0.01, noise: float = 0.02):
        self.network = watch(network)
        self.size, self.noise_of_langevin = size, eps
        self.sigma_min = self.sigma_max = noise

    def energy(self, x: Tensor) -> Tensor:
        """f(x), (B,)."""
        return self.network(x)

    def gradient(self, x: Tensor) -> Tensor:
        """grad f, like x: without a graph under `no_grad`, with one where a gradient through it is asked for."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            inside = x if keep else x.detach().requires_grad_()
            grad = torch.autograd.grad(self.energy(inside).sum(), inside, create_graph=True)[0]  # as `chain.inner_grad`
            return grad if keep else grad.detach()

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        """sigma times the score - grad U = - 2 grad f / eps^2. UserError for a level of each row's own: it knows one."""
        if isinstance(sigma, Tensor):
            raise UserError("an energy takes one noise level for all images", "a score model that sees noise levels")
        return -2 * sigma / self.noise_of_langevin**2 * self.gradient(x)


def ebm_hill(*, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = "") -> EnergyScore:
    """Trained with Langevin noise 0.01 on images with noise 0.02. path: your own file, of any width and channels; weights: `ema` or `raw`
    of one that has both; name: what tables call it; size: of its images, 32; config: a JSON, TOML or YAML file of its
    `n_f`, `n_c`, `leak`."""
    asset = "ebm-hill-cifar10"
    if not path:
        return EnergyScore(checkpoint.load(asset, weights=weights), (3, 32, 32))
    known = architecture.of(asset, path, weights=weights, size=size, config=config)
    channels, height, width = known.size
    return EnergyScore(checkpoint.load(asset, weights=weights, path=path, network=known), (channels, height, width))
