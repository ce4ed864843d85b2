"""Before anything runs: every defense of a plan is walked once, on one small image, with stand-ins for its networks. What a purifier
refuses (parameters that do not go together, a score model that cannot serve it) is then known before the first forward pass."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from purebench import assets, purifiers, registry
from purebench.assets import checkpoint
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import resolved as components
from purebench.plan.grid import Plan
from purebench.scores.vp import VPScore
from purebench.spec import Resolved

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


def check(the_plan: Plan) -> None:
    """Raises UserError for the first defense that could not run."""
    seen = set()
    for cell in (job.cell for job in the_plan.jobs):
        for purifier in (cell.defense, cell.surrogate):
            key = purifier and (purifier.name, repr(sorted(purifier.values.items())), cell.scores)
            if purifier and key not in seen:
                seen.add(key)
                _walk(purifier, cell.scores, the_plan.shape)


def _walk(purifier: Resolved, scores: tuple[Resolved, ...], shape: list[int]) -> None:
    name = purifier.name
    known = scores if "score" in purifier.info.get("needs", ["score"]) else ()
    models = [_model(model) for model in known]
    if None in models:
        return  # a plug-in's: only its networks can tell
    asked: list[list[float]] = [[] for _ in models]
    listening = [_listening(model, levels) for model, levels in zip(models, asked, strict=True)]
    ours = registry.names("defense")[name].startswith("purebench.")
    try:
        score = listening if listening[1:] else next(iter(listening), None)
        made = purifiers.make(name, score=score, classifier=_logits, **purifier.values)
    except Exception as error:
        if ours or isinstance(error, UserError):
            raise
        raise UserError(
            f"`{name}` cannot be made: {type(error).__name__}: {error}", f"see `purebench show {name}`"
        ) from None
    channels, height, width = models[0].size if models else shape
    most = SIZE if ours else max(height, width)
    image = torch.full((1, channels, min(height, most), min(width, most)), 0.5)
    noise = Noise(0, "rehearsal", (), [0], [0])
    try:
        with torch.no_grad():
            state = made.start(image, noise)
            for k in range(made.n):
                state = made.step(k, state, noise)
            made.finish(state)
    except Exception as error:
        if ours or isinstance(error, UserError):
            raise
        return  # a plug-in that wants the real networks: the run will tell
    for part, model, levels in zip(known, models, asked, strict=True):
        _check_levels(name, part, model, levels)


def _check_levels(name: str, part: Resolved, model: Any, levels: list[float]) -> None:
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


def _logits(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :10]


@cache
def _model(part: Resolved) -> Any:
    """The score model as its factory makes it, a `Stub` in its network's place; a file of the user's is read, and so verified. None
    for a plug-in's."""
    if not registry.names("score")[part.name].startswith("purebench."):
        return None
    ships = any("package" in assets.entry(asset)["sources"] for asset in components.of("score", part.part).assets)
    with contextlib.nullcontext() if part.where or ships else checkpoint.hollow():
        made = components.load("score", part.name, part.arguments)
    kind = "variances" if getattr(made, "variances", False) else ""
    made.network = Stub("energy" if hasattr(made, "energy") else kind)
    return made


def _listening(model: Any, asked: list[float]) -> Any:
    """The model, remembering the noise levels that it is asked for."""

    class Listening(type(model)):  # type: ignore[misc]
        def eps(self, x: Tensor, t: float) -> Tensor:
            asked.append(self.sigma(t))
            return super().eps(x, t)

        def eps_index(self, x: Tensor, i: int) -> Tensor:
            seen = self.sigma(i / 999) if isinstance(self, VPScore) else self.sigma_index(i)  # by its network
            asked.append(seen)
            return super().eps_index(x, i)

        def direction(self, x: Tensor, sigma: Any) -> Tensor:
            asked.append(float(sigma))  # of the one image
            return super().direction(x, sigma)

        def denoise(self, x: Tensor, sigma: Any) -> Tensor:
            asked.append(float(sigma))
            return super().denoise(x, sigma)

    twin = object.__new__(Listening)
    twin.__dict__ |= model.__dict__
    return twin
