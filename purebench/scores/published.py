"""The published score models: a checkpoint of `checkpoints.toml`, its network, and the adapter of its family."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from purebench import embedded
from purebench.assets import architecture, checkpoint
from purebench.errors import UserError
from purebench.scores import vp
from purebench.scores.conditioned import OfClass
from purebench.scores.denoisers import DenoiserScore, NCSNScore
from purebench.scores.views import discrete
from purebench.scores.vp import IndexScore, ScheduleScore, VPScore

WEIGHTS = ["ema", "raw"]

_SIZE = ["path == '' or config != ''", "it is of a file of yours where neither that nor a configuration tells it"]
_CONFIG = ["path == ''", "it is of a file of yours"]
_OWN = {"size": _SIZE, "config": _CONFIG}
_CLASSES = {"size": _SIZE, "config": _CONFIG, "label": _CONFIG}

INFO = {
    "score-sde": {
        "summary": "Score SDE's DDPM++ deep, VP, CIFAR-10, 106.6 M parameters: DiffPure, COUP, Lee and Kim",
        "asset": "score-sde-cifar10-vp",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "moot": _OWN,
        "size": [3, 32, 32],
        "version": 1,
        "cite": "song2021score",
    },
    "edm": {
        "summary": "EDM, CIFAR-10, unconditional, DDPM++ form, 55.7 M parameters: ScoreOpt (non-commercial licence)",
        "asset": "edm-cifar10-uncond-{precond}",
        "trained_on": "cifar10",
        "choices": {"precond": ["vp", "ve"], "weights": WEIGHTS},
        "moot": {
            "precond": ["path != ''", "an EDM pickle says itself which network it holds, and a configuration does"],
            "config": _CONFIG,
            "label": _CONFIG,
        },
        "size": [3, 32, 32],
        "version": 1,
        "cite": "karras2022elucidating",
    },
    "guided-diffusion": {
        "summary": "guided diffusion, ImageNet 256x256, unconditional, 552.8 M parameters: DiffPure, ScoreOpt, GDMP",
        "asset": "guided-diffusion-imagenet256-uncond",
        "trained_on": "imagenet",
        "choices": {"weights": WEIGHTS},
        "moot": _CLASSES,
        "size": [3, 256, 256],
        "version": 1,
        "cite": "dhariwal2021diffusion",
    },
    "improved-diffusion": {
        "summary": "improved diffusion, CIFAR-10, unconditional, cosine schedule, 52.5 M parameters: no paper's here",
        "asset": "improved-diffusion-cifar10-uncond",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "moot": _CLASSES,
        "size": [3, 32, 32],
        "version": 1,
        "cite": "nichol2021improved",
    },
    "ddpm": {
        "summary": "DDPM, CIFAR-10, moving average, 35.7 M parameters: GDMP",
        "asset": "ddpm-cifar10-ema",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "moot": _OWN,
        "size": [3, 32, 32],
        "version": 1,
        "cite": "ho2020denoising",
    },
    "celebahq-ddpm": {
        "summary": "DDPM, CelebA-HQ 256x256, 113.7 M parameters: DiffPure's CelebA-HQ table",
        "asset": "ddpm-celebahq-sdedit",
        "trained_on": "celebahq",
        "choices": {"weights": WEIGHTS},
        "moot": _OWN,
        "size": [3, 256, 256],
        "version": 1,
        "cite": "ho2020denoising",
    },
    "ncsnv2": {
        "summary": "NCSNv2, CIFAR-10, 29.7 M parameters: stands in for ADP's own, which was never released",
        "asset": "ncsnv2-cifar10",
        "trained_on": "cifar10",
        "choices": {"weights": WEIGHTS},
        "moot": _OWN,
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
CIFAR = (3, 32, 32)


def _network(asset: str, weights: str, path: str, **asked: Any) -> tuple[nn.Module, architecture.Network]:
    """A published network, or that of a user's file, and what is known of it before it is built."""
    if not path:
        return checkpoint.load(asset, weights=weights), architecture.published(asset)
    known = architecture.of(asset, path, weights=weights, **asked)
    network = checkpoint.load(asset, weights=weights, path=path, network=known)
    label = asked.get("label", -1)
    return OfClass(network, label, known.classes, asset.startswith("edm")) if label >= 0 else network, known


def _indexed(asset: str, weights: str, path: str, **asked: Any) -> IndexScore | ScheduleScore:
    """The same of a family of indices, with its noise schedule."""
    network, known = _network(asset, weights, path, **asked)
    said = vp.of_file(checkpoint.noise(path, weights), path)
    if said is not None and not vp.alike(said, vp.kept(known.schedule) if known.schedule else discrete()):
        # The file's own word, where no configuration has another.
        if architecture.config_files(Path(path), asked.get("config", "")):
            raise UserError(
                f"`{path}` says a noise schedule of {len(said)} indices, and its configuration another",
                "which is its training's? take the other out",
            )
        return ScheduleScore(network, _size(known), said)
    if known.schedule:
        return ScheduleScore(network, _size(known), known.schedule)
    return IndexScore(network, _size(known), variances=known.variances)


def _without_indices(path: str, weights: str, format: str = "state-dict") -> None:
    """Raises UserError where a file says the noise of a diffusion's indices, and its family has none."""
    if vp.of_file(checkpoint.noise(path, weights, format), path) is not None:
        raise UserError(
            f"`{path}` says a noise schedule of indices, which this family has not", "choose another `--score`"
        )


def _size(known: architecture.Network) -> tuple[int, int, int]:
    channels, height, width = known.size
    return channels, height, width


# path: your own file in place of the published one, of any network of its family; weights: `ema` or `raw` where a file has both, the
# average where nothing is said; name: what tables call it; size: of images of size x size, where the file does not tell it; config: a
# JSON, TOML or YAML file with the network's configuration; label: the class of a class-conditional network.


def score_sde(*, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = "") -> VPScore:
    """Trained with t in [1e-5, 1]; network time 999 t."""
    network, known = _network("score-sde-cifar10-vp", weights, path, size=size, config=config)
    vp.check_noise(checkpoint.noise(path, weights), path)
    return VPScore(network, _size(known), t_min=1e-5)


def edm(
    *, precond: str = "vp", weights: str = "", path: str = "", name: str = "", config: str = "", label: int = -1
) -> DenoiserScore:
    """precond: `vp` (the file of ScoreOpt, DDPM++ form) or `ve` (NCSN++ form); both are EDM-preconditioned denoisers. An EDM pickle says
    itself which network it holds; a state dict or safetensors wants config=FILE: its `init_kwargs` and `class_name`."""
    network, known = _network(f"edm-cifar10-uncond-{precond}", weights, path, config=config, label=label)
    _without_indices(path, weights, "edm-pickle")
    return DenoiserScore(network, _size(known), *known.sigmas)


def guided_diffusion(
    *, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = "", label: int = -1
) -> IndexScore | ScheduleScore:
    """Learned variances; integer times."""
    asset = "guided-diffusion-imagenet256-uncond"
    return _indexed(asset, weights, path, size=size, config=config, label=label)


def improved_diffusion(
    *, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = "", label: int = -1
) -> IndexScore | ScheduleScore:
    """The cosine schedule of 4000 indices; learned variances."""
    asset = "improved-diffusion-cifar10-uncond"
    return _indexed(asset, weights, path, size=size, config=config, label=label)


def ddpm(
    *, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = ""
) -> IndexScore | ScheduleScore:
    """Keys of DDPM's PyTorch ports or of diffusers, whose `config.json` is read where it lies beside the weights."""
    return _indexed("ddpm-cifar10-ema", weights, path, size=size, config=config)


def celebahq_ddpm(
    *, weights: str = "", path: str = "", name: str = "", size: int = 0, config: str = ""
) -> IndexScore | ScheduleScore:
    return _indexed("ddpm-celebahq-sdedit", weights, path, size=size, config=config)


def ncsnv2(*, weights: str = "ema", path: str = "", name: str = "", size: int = 0, config: str = "") -> NCSNScore:
    """weights: `ema`, as its authors sample, or `raw`, as ADP loads it."""
    network, known = _network("ncsnv2-cifar10", weights, path, size=size, config=config)
    _without_indices(path, weights)
    ends = known.config["sigma_end"], known.config["sigma_begin"]
    # A file brings its own levels, the largest first.
    if path and isinstance(own := getattr(network, "sigmas", None), Tensor):
        ends = _said(float(own[-1]), ends[0]), _said(float(own[0]), ends[1])
    return NCSNScore(network, _size(known), 2 * ends[0], 2 * ends[1])


def _said(found: float, usual: float) -> float:
    """A level of a file, or the published one where it is that in float32."""
    return usual if math.isclose(found, usual, rel_tol=1e-5) else found


def cifar10_small(*, weights: str = "", path: str = "", name: str = "") -> VPScore:
    """Trained with t in [1e-3, 0.3]."""
    vp.check_noise(checkpoint.noise(path, weights), path)
    return VPScore(embedded.load("cifar10-score", path, weights), CIFAR, t_max=0.3)
