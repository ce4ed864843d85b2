"""The published score models: a checkpoint of `checkpoints.toml`, its network, and the adapter of its family."""

from __future__ import annotations

from purebench import assets, embedded
from purebench.assets import checkpoint
from purebench.scores.denoisers import DenoiserScore, NCSNScore
from purebench.scores.vp import IndexScore, VPScore

WEIGHTS = ["ema", "raw"]

INFO = {
    "score-sde": {
        "summary": "Score SDE's DDPM++ deep, VP, CIFAR-10, 106.6 M parameters: DiffPure, COUP, Lee and Kim",
        "asset": "score-sde-cifar10-vp",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "size": [3, 32, 32],
        "version": 1,
        "cite": "song2021score",
    },
    "edm": {
        "summary": "EDM, CIFAR-10, unconditional, DDPM++ form, 55.7 M parameters: ScoreOpt (non-commercial licence)",
        "asset": "edm-cifar10-uncond-{precond}",
        "trained_on": "cifar10",
        "choices": {"precond": ["vp", "ve"], "weights": WEIGHTS},
        "moot": {"precond": ["path != ''", "an EDM pickle says itself which network it holds"]},
        "size": [3, 32, 32],
        "version": 1,
        "cite": "karras2022elucidating",
    },
    "guided-diffusion": {
        "summary": "guided diffusion, ImageNet 256x256, unconditional, 552.8 M parameters: DiffPure, ScoreOpt, GDMP",
        "asset": "guided-diffusion-imagenet256-uncond",
        "trained_on": "imagenet",
        "choices": {"weights": WEIGHTS},
        "size": [3, 256, 256],
        "version": 1,
        "cite": "dhariwal2021diffusion",
    },
    "ddpm": {
        "summary": "DDPM, CIFAR-10, moving average, 35.7 M parameters: GDMP",
        "asset": "ddpm-cifar10-ema",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "size": [3, 32, 32],
        "version": 1,
        "cite": "ho2020denoising",
    },
    "celebahq-ddpm": {
        "summary": "DDPM, CelebA-HQ 256x256, 113.7 M parameters: DiffPure's CelebA-HQ table",
        "asset": "ddpm-celebahq-sdedit",
        "trained_on": "celebahq",
        "choices": {"weights": WEIGHTS},
        "size": [3, 256, 256],
        "version": 1,
        "cite": "ho2020denoising",
    },
    "ncsnv2": {
        "summary": "NCSNv2, CIFAR-10, 29.7 M parameters: stands in for ADP's own, which was never released",
        "asset": "ncsnv2-cifar10",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "size": [3, 32, 32],
        "version": 1,
        "stand_in": "official NCSNv2 in place of ADP's own training",
        "cite": "song2020improved",
    },
    "cifar10-small": {
        "summary": "small VP noise predictor for 32x32, 1.4 M parameters, trained by us on JPEG CIFAR-10: no paper's network",
        "asset": "cifar10-score",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "size": [3, 32, 32],
        "t_max": 0.3,
        "version": 1,
        "stand_in": "small VP network of `purebench train cifar10-score`",
    },
}
CIFAR, LARGE = (3, 32, 32), (3, 256, 256)


# path: your own file of the same network in place of the published one; weights: `ema` or `raw` where a file has both, the average where
# nothing is said; name: what tables call it.


def score_sde(*, weights: str = "", path: str = "", name: str = "") -> VPScore:
    """Trained with t in [1e-5, 1]; network time 999 t."""
    return VPScore(checkpoint.load("score-sde-cifar10-vp", weights=weights, path=path), CIFAR, t_min=1e-5)


def edm(*, precond: str = "vp", weights: str = "", path: str = "", name: str = "") -> DenoiserScore:
    """precond: `vp` (the file of ScoreOpt, DDPM++ form) or `ve` (NCSN++ form); both are EDM-preconditioned denoisers."""
    return DenoiserScore(checkpoint.load(f"edm-cifar10-uncond-{precond}", weights=weights, path=path), CIFAR)


def guided_diffusion(*, weights: str = "", path: str = "", name: str = "") -> IndexScore:
    """Learned variances; integer times."""
    return IndexScore(
        checkpoint.load("guided-diffusion-imagenet256-uncond", weights=weights, path=path), LARGE, variances=True
    )


def ddpm(*, weights: str = "", path: str = "", name: str = "") -> IndexScore:
    return IndexScore(checkpoint.load("ddpm-cifar10-ema", weights=weights, path=path), CIFAR)


def celebahq_ddpm(*, weights: str = "", path: str = "", name: str = "") -> IndexScore:
    return IndexScore(checkpoint.load("ddpm-celebahq-sdedit", weights=weights, path=path), LARGE)


def ncsnv2(*, weights: str = "ema", path: str = "", name: str = "") -> NCSNScore:
    """weights: `ema`, as its authors sample, or `raw`, as ADP loads it."""
    config = assets.entry("ncsnv2-cifar10")["config"]
    network = checkpoint.load("ncsnv2-cifar10", weights=weights, path=path)
    return NCSNScore(network, CIFAR, 2 * config["sigma_end"], 2 * config["sigma_begin"])


def cifar10_small(*, weights: str = "", path: str = "", name: str = "") -> VPScore:
    """Trained with t in [1e-3, 0.3]."""
    return VPScore(embedded.load("cifar10-score", path, weights), CIFAR, t_max=0.3)
