"""Before anything runs: every defense of a plan is walked once, on one small image, with stand-ins for its networks. What a purifier
refuses (parameters that do not go together, a score model that cannot serve it) is then known before the first forward pass, and so is
how many network calls a purification makes (`cost`)."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from purebench import assets, purifiers, registry
from purebench import foreign as foreign_code
from purebench.assets import checkpoint
from purebench.engine import chain
from purebench.engine.nfe import NFE, watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import limits
from purebench.plan import resolved as components
from purebench.plan.grid import Plan
from purebench.purifiers.plain import Plain
from purebench.running import evaluate
from purebench.running.evaluate import score_argument
from purebench.scores.energy import EnergyScore
from purebench.scores.views import Level, Score
from purebench.scores.vp import VPScore
from purebench.spec import Cell, Resolved

SIZE = 16  # pixels of the image, at most: calls depend on no size, and a walk is to cost nothing


class Stub(nn.Module):
    """Answers as a network of this kind does: like x; with the weights of a variance behind it (`variances`); one number per image
    (`energy`); or (B,10) `logits`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, *_level: Tensor) -> Tensor:
        if self.kind == "logits":
            return x.flatten(1)[:, :10]
        # Small and smooth: a chain that amplifies its own answers stays finite, and every gradient exists.
        y = 0.1 * x.tanh()
        if self.kind == "energy":
            return y.square().flatten(1).sum(1)
        return torch.cat([y, y], dim=1) if self.kind == "variances" else y


CLASSIFIER = watch(Stub("logits"))


@dataclass(frozen=True)
class Walked:
    """What one purification of one image asked of the networks: `forward` and `backward` calls of the score models and the classifier
    inside it, those of the classifier alone (`guidance`), in so many `steps`, and the noise `levels` (sigma on the [-1,1] scale) of each
    score model, in their order."""

    forward: int
    backward: int
    guidance: tuple[int, int]
    steps: int
    levels: tuple[tuple[float, ...], ...]


def check(plan: Plan) -> None:
    """Raises UserError for the first defense that could not run."""
    for job in plan.jobs:
        cell = job.cell
        if not registry.is_ours("classifier", cell.classifier.key):
            # For its refusals, too: what are no logits is known before anything is computed.
            answers = evaluate.classifier(cell, torch.device("cpu")).answers
            limits.check(cell.attack, cell.threat, job.shape, answers, f"`{cell.classifier}`")
            _check_labels(cell, answers, f"`{cell.classifier}`")
        else:
            if cell.classifier.where:
                _check_own(cell.classifier, tuple(job.shape), classes_of(cell.dataset))
            if cell.dataset.code:
                _check_labels(cell, classes_of(cell.dataset), f"the INFO of `{cell.dataset}`")
        for purifier, walked in zip(_purifiers(cell), walks(cell, job.shape), strict=True):
            # Fewer levels than score models where a purifier uses none, beside a surrogate that does.
            for part, levels in zip(cell.scores, walked.levels if walked else (), strict=False):
                _check_levels(purifier.name, part, levels)


def check_memory(plan: Plan, memory: int | None, rows: Callable[[Cell], int]) -> None:
    """Raises UserError for the first gradient of which `memory` bytes (None: what is free) do not hold one step; rows: of a cell's network
    calls. A step is measured on tensors without values, and networks without weights: it takes no memory, and needs no file."""
    if memory is None:
        return
    known = set()
    for job in plan.jobs:
        cell, size = job.cell, rows(job.cell)
        key = (cell.dataset, cell.classifier, cell.scores, cell.defense, cell.gradient, cell.surrogate, size)
        if cell.attack.info.get("gradients") and key not in known:
            known.add(key)
            _check_memory(cell, job.shape, memory, size)


def fits(cell: Cell, shape: list[int], memory: int, rows: int) -> bool:
    """Whether `memory` bytes hold one step of a cell's gradient in so many rows; True where it takes none, or nobody can know."""
    try:
        if cell.attack.info.get("gradients"):
            _check_memory(cell, shape, memory, rows)
    except UserError:
        return False
    return True


def _check_memory(cell: Cell, shape: list[int], memory: int, rows: int) -> None:
    # Imported here: it takes a second, which nobody else is to wait for.
    from torch._subclasses import fake_tensor

    # Of somebody else's code nobody knows what it does with tensors without values: `whole` tries it.
    if not all_ours(cell):
        return
    logger = logging.getLogger(fake_tensor.__name__)
    before, logger.disabled = logger.disabled, True  # it prints what is caught here
    try:
        networks = [_weightless(part) for part in (cell.classifier, *cell.scores)]
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            defense = evaluate.assembled(
                cell, networks[0], networks[1:], torch.device("cpu"), rows=rows, memory=memory
            )  # fmt: skip
            x, noise = torch.empty(rows, *shape), Noise(0, "rehearsal", (), range(rows), [0] * rows)
            defense.gradient.fits(defense, x, noise)
    except UserError:
        raise
    except Exception:
        # A library's network that asks for a value cannot be measured without any. The run tells.
        return
    finally:
        logger.disabled = before


def all_ours(cell: Cell) -> bool:
    """Whether nobody else's code computes its gradients."""
    parts = [cell.classifier, *cell.scores, *_purifiers(cell)]
    return all(registry.is_ours(part.kind if part.kind != "surrogate" else "defense", part.key) for part in parts)


def _weightless(part: Resolved) -> Any:
    """The network of a classifier or score model, built in no time and of no size; a file of the user's own, or one that ships, is read."""
    from torch._subclasses import fake_tensor

    with contextlib.ExitStack() as stack:
        if not part.where and not _ships(part):
            stack.enter_context(fake_tensor.FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(checkpoint.untrained())
        made = components.load(part.kind, part.key, part.arguments)
    return watch(made) if part.kind == "classifier" else made


def _check_labels(cell: Cell, classes: int, whose: str) -> None:
    """Raises UserError for a dataset of the user's own with a label beyond the `classes` (0: not known) that there are."""
    if not classes or not (cell.dataset.code or cell.dataset.where):
        return
    images = evaluate.dataset(cell.dataset)
    largest = int(images.labels.max())
    if largest >= classes:
        found = f" ({images.said})" if images.said else ""
        raise UserError(
            f"`{cell.dataset}` has labels up to {largest}{found}, and {whose} knows {classes} classes, 0 to {classes - 1}",
            f"{images.renumber(classes) or 'count classes from 0'}; or choose another `--classifier`",
        )


def classes_of(dataset: Resolved) -> int:
    """How many classes a dataset has; 0 where it does not say."""
    return int(dataset.info.get("classes") or 0)


@cache
def _check_own(part: Resolved, shape: tuple[int, ...], classes: int) -> None:
    """Raises UserError where a user's own weights are not the classifier that they are said to be, or one of other images."""
    made = components.load("classifier", part.key, part.arguments)
    size = "x".join(map(str, shape))
    try:
        with torch.inference_mode():
            logits = made(torch.full((2, *shape), 0.5))
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"`{part}` cannot see images of {size}: {why}", "is it a network of such images?") from None
    if logits.dim() != 2 or (classes and logits.shape[1] != classes):
        got = f"{logits.shape[1]} classes" if logits.dim() == 2 else f"{tuple(logits.shape)} for two images"
        raise UserError(f"`{part}` answers with {got}, and the data set has {classes}", "choose another `--classifier`")


def walks(cell: Cell, shape: list[int]) -> list[Walked | None]:
    """Of a cell's purifier, and of the one that a surrogate gradient differentiates; shape: [C,H,W] of the images. None where a plug-in
    does not work on stand-ins. Raises what making or walking the purifier raises."""
    return [_walk(purifier, cell.scores, tuple(shape)) for purifier in _purifiers(cell)]


def _purifiers(cell: Cell) -> list[Resolved]:
    return [cell.defense, *([cell.surrogate] if cell.surrogate else [])]


@cache
def _walk(purifier: Resolved, scores: tuple[Resolved, ...], shape: tuple[int, ...]) -> Walked | None:
    name, ours = purifier.name, registry.is_ours("defense", purifier.key)
    parts = scores if registry.uses_score(purifier.info) else ()
    known = [_model(part) for part in parts]
    # What a plug-in's score model refuses only its own networks can tell.
    foreign = None in known
    levels: list[list[float]] = [[] for _ in known]
    models = [
        _ordinary(part, shape) if model is None else _listening(model, asked)
        for part, model, asked in zip(parts, known, levels, strict=True)
    ]
    try:
        made = purifiers.make(purifier.key, score=score_argument(models), classifier=CLASSIFIER, **purifier.values)
    except Exception as error:
        if foreign:
            return None
        # What ours raises is meant for the user, or a bug of ours that is to be seen whole.
        if ours or isinstance(error, UserError):
            raise
        raise UserError(
            f"`{name}` cannot be made: {type(error).__name__}: {error}", f"see `purebench show {name}`"
        ) from None
    channels, height, width = models[0].size if models else shape
    # A plug-in may be written for one size of images.
    largest = SIZE if ours else max(height, width)
    # Of somebody else's code two: it may return one for all.
    x = torch.full((1 if ours else 2, channels, min(height, largest), min(width, largest)), 0.5)
    try:
        with chain.nfe(CLASSIFIER) as guidance, foreign_code.quiet():
            calls = count(made, x)
            if not ours:
                _check_writes(name, made, x)
    except (Exception, SystemExit) as error:
        if not foreign and (ours or isinstance(error, UserError)):
            raise
        # What works on no network of ours fails in the run as it does here.
        if purifier.target and not purifier.info.get("needs"):
            lines = "".join(f"\n  {line}" for line in foreign_code.lines(error)[-5:])
            what = f"`{name}` cannot purify an image of {channels}x{height}x{width}: {foreign_code.words(error)}{lines}"
            raise UserError(what, "mend that line") from None
        # A plug-in that wants the real networks: the run will tell.
        return None
    levels_of = () if foreign else tuple(map(tuple, levels))
    return Walked(calls.forward, calls.backward, (guidance.forward, guidance.backward), made.n, levels_of)


def count(purifier: chain.Purifier, x: Tensor) -> NFE:
    """The network calls of one purification of x (B,C,H,W) in [0,1]. They depend on no value: a purifier has a fixed number of steps."""
    with chain.nfe() as calls:
        purified = chain.run(purifier, x, Noise(0, "rehearsal", (), range(len(x)), [0] * len(x)))
    if not isinstance(purified, Tensor) or purified.shape != x.shape or not purified.is_floating_point():
        got = f"{tuple(purified.shape)} {purified.dtype}" if isinstance(purified, Tensor) else type(purified).__name__
        raise UserError(
            f"a purifier gave {got} for images of {tuple(x.shape)} {x.dtype}", "`finish` returns images like x"
        )
    return calls


def _check_writes(name: str, purifier: chain.Purifier, x: Tensor) -> None:
    """Raises UserError where a step writes into the state that it is given: it is kept, and walked from again for the gradient."""
    if isinstance(purifier, Plain):
        return
    before: list[tuple[Tensor, int]] = [(x, x._version)]

    def see(k: int, state: chain.State) -> None:
        if any(tensor._version != version for tensor, version in before):
            place = f"step {k - 1}" if k else "`start`"
            raise UserError(
                f"{place} of `{name}` writes into what it is given, which is kept for the gradient",
                "work on a copy: `x = x.clone()`, or `x = x + ..` in place of `x += ..`",
            )
        before[:] = [(tensor, tensor._version) for tensor in chain.tensors(state)]

    chain.run(purifier, x, Noise(0, "rehearsal", (), range(len(x)), [0] * len(x)), on_state=see)


def _check_levels(name: str, part: Resolved, levels: tuple[float, ...]) -> None:
    """Raises UserError for noise that the score model was not trained on: above its largest level, all below its least, or another than
    its only one."""
    model = _model(part)
    assert model is not None  # a walk on a plug-in's score model knows no levels
    largest, only = model.sigma_max, model.sigma_min == model.sigma_max
    # Within rounding: a level comes through float32 times, and back through the noise schedule.
    wrong = [sigma for sigma in levels if sigma > largest * (1 + 1e-4) or (only and sigma < largest * (1 - 1e-4))]
    if not wrong:
        # Samplers end below: at time 0, whose noise no network is trained on. One that never comes up to the least is another thing.
        if levels and max(levels) < model.sigma_min * (1 - 1e-4):
            raise UserError(
                f"`{name}` asks `{part.name}` for less noise than it was trained on: {max(levels):.4g} on the [-1,1] scale, at least "
                f"{model.sigma_min:.4g}",
                "more noise, or another `--score`",
            )
        return
    asks, asked = f"`{name}` asks `{part.name}` for", f"{max(wrong):.4g} on the [-1,1] scale"
    if only:
        raise UserError(
            f"{asks} noise of {asked}, and it knows one level, {largest:.4g}",
            "choose another `--score`; `ebm` and `adp` run on this one",
        )
    raise UserError(
        f"{asks} more noise than it was trained on: {asked}, at most {largest:.4g}",
        "less noise, or another `--score`",
    )


@cache
def _model(part: Resolved) -> Score | None:
    """The score model as its factory makes it, a `Stub` in its network's place; a file of the user's is read, and so verified. None
    for a plug-in's."""
    if not registry.is_ours("score", part.key):
        return None
    # Hollow: of a published checkpoint, which may not be here, the network is built without weights, and in no time.
    with contextlib.nullcontext() if part.where or _ships(part) else checkpoint.hollow():
        made = components.load("score", part.key, part.arguments)
    return hollowed(made)


def _ships(part: Resolved) -> bool:
    """Whether the weights of a score model or classifier, none of the user's own, are in the package."""
    assets_of = components.of(part.kind, part.part).assets
    return any("package" in assets.entry(asset)["sources"] for asset in assets_of)


def hollowed(model: Score) -> Score:
    """The same score model with a counted `Stub` in its network's place."""
    # A copy: whoever gave the model keeps it as it was.
    twin = copy.copy(model)
    kind = "variances" if getattr(model, "variances", False) else ""
    twin.network = watch(Stub("energy" if hasattr(model, "energy") else kind))
    return twin


def _ordinary(part: Resolved, shape: tuple[int, ...]) -> Score:
    """In the place of a plug-in's score model, to count calls: an energy where its INFO says so, else one that serves both views; of any
    noise, since only the plug-in knows its own levels."""
    channels, height, width = shape
    energy = part.info.get("energy")
    model: Score = (EnergyScore if energy else VPScore)(Stub("energy" if energy else ""), (channels, height, width))
    model.sigma_max = math.inf
    return model


def _listening(model: Score, asked: list[float]) -> Score:
    """The model, remembering the noise levels that it is asked for."""

    class Listening(type(model)):  # type: ignore[misc]
        def eps(self, x: Tensor, t: float) -> Tensor:
            asked.append(self.sigma(t))
            return super().eps(x, t)

        def eps_index(self, x: Tensor, i: int) -> Tensor:
            # A network of continuous time takes an index for the time i / 999, whose level is not the discrete schedule's.
            asked.append(self.sigma(i / 999) if isinstance(self, VPScore) else self.sigma_index(i))
            return super().eps_index(x, i)

        def direction(self, x: Tensor, sigma: Level) -> Tensor:
            asked.append(float(sigma))
            return super().direction(x, sigma)

        def denoise(self, x: Tensor, sigma: Level) -> Tensor:
            asked.append(float(sigma))
            return super().denoise(x, sigma)

    # Past the constructor, which would want a network to watch: this one is made already, and keeps counting.
    twin = copy.copy(model)
    twin.__class__ = Listening
    return twin
