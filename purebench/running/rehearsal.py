"""Before anything runs: every defense of a plan is walked once, on one small image, with stand-ins for its networks. What a purifier
refuses (parameters that do not go together, a score model that cannot serve it) is then known before the first forward pass, and so is
how many network calls a purification makes (`cost`)."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from purebench import assets, purifiers, registry
from purebench.assets import checkpoint
from purebench.engine import chain
from purebench.engine.nfe import NFE, watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import resolved as components
from purebench.plan.grid import Plan
from purebench.scores.energy import EnergyScore
from purebench.scores.views import Level, Score
from purebench.scores.vp import VPScore
from purebench.spec import Cell, Resolved

SIZE = 16  # pixels of the image, at most


class Stub(nn.Module):
    """Answers as a score network does: like x, with the weights of a variance behind it, or one number per image."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, *_level: Tensor) -> Tensor:
        y = 0.1 * x.tanh()
        if self.kind == "energy":
            return y.square().flatten(1).sum(1)
        return torch.cat([y, y], dim=1) if self.kind == "variances" else y


class _Logits(nn.Module):
    """Answers as a classifier does: (B,10)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10]


CLASSIFIER = watch(_Logits())


@dataclass(frozen=True)
class Walked:
    """What one purification of one image asked of the networks: `forward` and `backward` calls of the score models and the classifier
    inside it, in so many `steps`, and the noise `levels` (sigma on the [-1,1] scale) of each score model, in their order."""

    forward: int
    backward: int
    steps: int
    levels: tuple[tuple[float, ...], ...]


def check(the_plan: Plan) -> None:
    """Raises UserError for the first defense that could not run."""
    seen = set()
    for cell in (job.cell for job in the_plan.jobs):
        for purifier, walked in zip(_purifiers(cell), walks(cell, the_plan.shape), strict=True):
            key = (purifier, repr(purifier.values), cell.scores)
            if walked is not None and key not in seen:
                seen.add(key)
                for part, levels in zip(cell.scores, walked.levels, strict=False):
                    model = _model(part)
                    assert model is not None  # a walk on a plug-in's score model knows no levels: none to check
                    _check_levels(purifier.name, part, model, levels)


def walks(cell: Cell, shape: list[int]) -> list[Walked | None]:
    """Of a cell's purifier, and of the one that a surrogate gradient differentiates; shape: [C,H,W] of the images. None where a plug-in
    does not work on stand-ins. Raises what making or walking the purifier raises."""
    return [_walk(purifier, cell.scores, tuple(shape)) for purifier in _purifiers(cell)]


def _purifiers(cell: Cell) -> list[Resolved]:
    return [cell.defense, *([cell.surrogate] if cell.surrogate else [])]


@cache
def _walk(purifier: Resolved, scores: tuple[Resolved, ...], shape: tuple[int, ...]) -> Walked | None:
    name = purifier.name
    known = [_model(part) for part in scores] if registry.uses_score(purifier.info) else []
    asked: list[list[float]] = [[] for _ in known]
    foreign = None in known  # a plug-in's score model: what it refuses only its networks can tell
    models = [
        _ordinary(part, shape) if model is None else _listening(model, levels)
        for part, model, levels in zip(scores, known, asked, strict=False)
    ]
    ours = registry.names("defense")[name].startswith("purebench.")
    try:
        score = models if models[1:] else next(iter(models), None)
        made = purifiers.make(name, score=score, classifier=CLASSIFIER, **purifier.values)
    except Exception as error:
        if foreign:
            return None
        if ours or isinstance(error, UserError):
            raise
        raise UserError(
            f"`{name}` cannot be made: {type(error).__name__}: {error}", f"see `purebench show {name}`"
        ) from None
    channels, height, width = models[0].size if models else shape
    most = SIZE if ours else max(height, width)
    try:
        calls = count(made, torch.full((1, channels, min(height, most), min(width, most)), 0.5))
    except Exception as error:
        if not foreign and (ours or isinstance(error, UserError)):
            raise
        return None  # a plug-in that wants the real networks: the run will tell
    return Walked(calls.forward, calls.backward, made.n, () if foreign else tuple(map(tuple, asked)))


def count(purifier: chain.Purifier, x: Tensor) -> NFE:
    """The network calls of one purification of x (B,C,H,W) in [0,1]. They depend on no value: a purifier has a fixed number of steps."""
    with chain.nfe() as calls:
        chain.run(purifier, x, Noise(0, "rehearsal", (), range(len(x)), [0] * len(x)))
    return calls


def _check_levels(name: str, part: Resolved, model: Score, levels: tuple[float, ...]) -> None:
    """Raises UserError for a noise level that the score model was not trained on: above its largest, or another than its only one."""
    most, only = model.sigma_max, model.sigma_min == model.sigma_max
    wrong = [s for s in levels if s > most * (1 + 1e-4) or (only and s < most * (1 - 1e-4))]
    if wrong and only:
        raise UserError(
            f"`{name}` asks `{part.name}` for noise of {max(wrong):.4g} on the [-1,1] scale, and it knows one level, {most:.4g}",
            "choose another `--score`; `ebm` and `adp` run on this one",
        )
    if wrong:
        raise UserError(
            f"`{name}` asks `{part.name}` for more noise than it was trained on: {max(wrong):.4g} on the [-1,1] scale, at most {most:.4g}",
            "less noise, or another `--score`",
        )


@cache
def _model(part: Resolved) -> Score | None:
    """The score model as its factory makes it, a `Stub` in its network's place; a file of the user's is read, and so verified. None
    for a plug-in's."""
    if not registry.names("score")[part.name].startswith("purebench."):
        return None
    ships = any("package" in assets.entry(asset)["sources"] for asset in components.of("score", part.part).assets)
    with contextlib.nullcontext() if part.where or ships else checkpoint.hollow():
        made = components.load("score", part.name, part.arguments)
    return hollowed(made)


def hollowed(model: Score) -> Score:
    """The same score model with a counted `Stub` in its network's place."""
    twin = copy.copy(model)
    kind = "variances" if getattr(model, "variances", False) else ""
    twin.network = watch(Stub("energy" if hasattr(model, "energy") else kind))
    return twin


def _ordinary(part: Resolved, shape: tuple[int, ...]) -> Score:
    """In the place of a plug-in's score model, to count calls: an energy where its INFO says so, else one that serves both views; of any
    noise, since only the plug-in knows its own levels."""
    channels, height, width = shape
    energy = part.info.get("energy")
    made: Score = (EnergyScore if energy else VPScore)(Stub("energy" if energy else ""), (channels, height, width))
    made.sigma_max = math.inf
    return made


def _listening(model: Score, asked: list[float]) -> Score:
    """The model, remembering the noise levels that it is asked for."""

    class Listening(type(model)):  # type: ignore[misc]
        def eps(self, x: Tensor, t: float) -> Tensor:
            asked.append(self.sigma(t))
            return super().eps(x, t)

        def eps_index(self, x: Tensor, i: int) -> Tensor:
            seen = self.sigma(i / 999) if isinstance(self, VPScore) else self.sigma_index(i)  # by its network
            asked.append(seen)
            return super().eps_index(x, i)

        def direction(self, x: Tensor, sigma: Level) -> Tensor:
            asked.append(float(sigma))  # of the one image
            return super().direction(x, sigma)

        def denoise(self, x: Tensor, sigma: Level) -> Tensor:
            asked.append(float(sigma))
            return super().denoise(x, sigma)

    # Past the constructor, which would want a network to watch: this one is made already, and keeps counting.
    twin = object.__new__(Listening)
    twin.__dict__ |= model.__dict__
    return twin
