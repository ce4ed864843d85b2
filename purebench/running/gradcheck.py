"""How good each gradient of a defense is, on real images: `purebench gradcheck`.

One cross-entropy, its own draws, and for every image: each gradient against the exact one of the same draw; how the mean over m draws
varies (EOT, Athalye et al. 2018); the exact one against central differences of the loss at the same draw. An image is looked at alone,
so that what is held is a few draws of one image."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from purebench import datasets
from purebench.engine import device as devices
from purebench.engine import gradients
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import cross_entropy
from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan.grid import Request
from purebench.records import gradchecks
from purebench.records.gradchecks import Check
from purebench.running import evaluate, preflight, runner
from purebench.spec import Cell, parse

MODES = ("exact", "detached", "adjoint", "bpda")
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of EOT
DRAWS = 2 * SIZES[-1]  # of the exact gradient: two independent means of the largest size
COMPARED = 16  # draws on which the other gradients are held against it
MOVED = 4  # draws at which the loss is differenced
STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)  # of every pixel
EDGE = 0.05  # differences are taken of images pressed this far inside [0,1], where no clamp's edge is
ATTACK = "pgd-eot:steps=20,eot=8"  # of `--success`
IMAGES = 8


@dataclass(frozen=True)
class Asked:
    """A defense to be checked. `jobs`: by gradient as cells name it, exact first; `same`: gradients that are another one on this defense;
    `left_out`: gradients that do not exist for it, and why."""

    jobs: Mapping[str, grid.Job]
    same: Mapping[str, str]
    left_out: Mapping[str, str]


def prepare(
    request: Request, resources: preflight.Resources, out: Path, *, note: Callable[[str], None] | None
) -> tuple[list[Asked], grid.Plan, runner.Settings]:
    """What is to be checked of each defense of the request; a plan of all their cells, validated as a run's; and its settings.

    Without `grads` in the request all MODES that apply. Raises UserError for what a run would refuse, a gradient that was asked for and
    does not apply included."""
    if not request.defenses:
        raise UserError("no defense was named", "purebench gradcheck -d diffpure")
    request = dataclasses.replace(
        request, attacks=request.attacks or (ATTACK,), images=IMAGES if request.images is None else request.images
    )
    wanted = tuple(dict.fromkeys(["exact", *request.grads])) if request.grads else MODES
    asked: list[Asked] = []
    jobs: dict[str, grid.Job] = {}
    settings: runner.Settings | None = None
    for defense in request.defenses:
        one = dataclasses.replace(request, defenses=(defense,), grads=("exact",))
        cell = grid.build(one).jobs[-1].cell
        left_out = {}
        for text in wanted if not request.grads else ():
            try:
                gradients.of(parse(text, "gradient")).applies(cell.defense.part, cell.defense.info)
            except UserError as why:
                left_out[text] = why.message
        modes = [text for text in wanted if text not in left_out]
        plan, settings = preflight.prepare(
            dataclasses.replace(one, grads=tuple(modes)), resources, out, note=note if not asked else None
        )
        # One gradient after the other, since a plan has each cell once: what two of them share says which are the same.
        by_text = {text: grid.build(dataclasses.replace(one, grads=(text,))).jobs[-1] for text in modes}
        found = {str(job.cell.gradient): job for job in by_text.values()}
        same = {text: str(job.cell.gradient) for text, job in by_text.items() if str(job.cell.gradient) == "exact"}
        same.pop("exact", None)
        if "-" in found:
            raise UserError(f"`{request.attacks[0]}` asks for no gradient", f"use one that does: `-a {ATTACK}`")
        asked.append(Asked(found, same, left_out))
        jobs |= {job.cell.id: job for job in plan.jobs}
    assert settings is not None
    return asked, grid.Plan(list(jobs.values()), [], list(plan.missing)), settings


def check(asked: Asked, settings: runner.Settings) -> Check:
    """Measures one defense: the entry of `gradcheck.json`. Random: the draws of the role `gradcheck` under the cell's seed.

    `modes`: by gradient the median `relative_error` of single draws, their mean `cosine` and `sign` agreement (of pixels where either
    gradient is not zero), the same two of the mean over COMPARED draws (`mean_cosine`, `mean_sign`), and `blind`, the share of draws
    on which it was zero or not finite where the exact one was not. `eot`: by size the `variance` of the mean gradient over its squared
    length (median over the images), and `cosine` and `sign` of two independent means. `differences`: by step the median error of a
    central difference along the sign of the gradient (`along`, relative) and along random signs (`across`, over the gradient's length).
    `blind`: share of draws whose exact gradient is zero or not finite; these are in none of the means."""
    device = devices.setup(settings.device)
    exact = asked.jobs["exact"]
    images = evaluate.dataset(exact.cell.dataset)
    index = datasets.order(len(images), exact.cell.subset)[: exact.images]
    x, y = (part.to(device) for part in images.take(index))
    defenses = {mode: _defense(job.cell, device, settings) for mode, job in asked.jobs.items()}
    seen = _Seen()
    for i, image in enumerate(index):
        noise = Noise(exact.cell.seed, "gradcheck", (), [image], [0])
        _look(seen, defenses, x[i : i + 1], y[i : i + 1], noise)
    return {
        "of": gradchecks.about(exact.cell.data()),
        "subset": exact.cell.subset,
        "seed": exact.cell.seed,
        "images": len(index),
        "draws": COMPARED,
        "loss": "ce",
        "blind": fmean(seen.blind),
        "modes": {mode: _compared(found) for mode, found in seen.modes.items()},
        "same": dict(asked.same),
        "left_out": dict(asked.left_out),
        "eot": {str(size): _varied(found) for size, found in seen.eot.items()},
        "differences": {f"{step:g}": _differenced(found) for step, found in seen.differences.items()},
    }


class _Seen:
    """What was found, draw by draw or image by image."""

    def __init__(self) -> None:
        self.blind: list[float] = []
        self.modes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.eot: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.differences: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))


def _defense(cell: Cell, device: torch.device, settings: runner.Settings) -> Defense:
    memory = settings.memory or devices.free_memory(device, 1)
    return evaluate.build_defense(cell, device, rows=settings.rows_of(cell), memory=memory)


def _look(seen: _Seen, defenses: Mapping[str, Defense], x: Tensor, y: Tensor, noise: Noise) -> None:
    """One image x (1,C,H,W) of class y (1,)."""
    exact = _gradients(defenses["exact"], x, y, noise, DRAWS)
    useful = _useful(exact)
    seen.blind.append(1 - float(useful.double().mean()))
    for mode, defense in defenses.items():
        if mode != "exact":
            _compare(seen.modes[mode], _gradients(defense, x, y, noise, COMPARED), exact[:COMPARED], useful[:COMPARED])
    if useful.all():
        for size in SIZES:
            _vary(seen.eot[size], exact, size)
    _difference(seen.differences, defenses["exact"], x, y, noise)


def _gradients(defense: Defense, x: Tensor, y: Tensor, noise: Noise, count: int) -> Tensor:
    """(count, C*H*W) in float64: the gradients of the cross-entropy of so many draws at one image x (1,C,H,W)."""
    found = defense.loss_grad(
        x.repeat(count, 1, 1, 1), y.repeat(count), "ce", _rows(noise, count), eot=1, observe=False
    )  # fmt: skip
    grad = found.grad.flatten(1).double().cpu()
    # What was not finite is given as zeros, which count as blind.
    return grad * found.finite.cpu()[:, None]


def _rows(noise: Noise, count: int) -> Noise:
    return noise.rows(noise.ids.repeat(count), torch.arange(count))


def _useful(gradient: Tensor) -> Tensor:
    """Which rows are finite and not zero."""
    return gradient.isfinite().all(1) & (gradient.abs().amax(1) > 0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """By row; scaled first, since squares of small gradients do not exist."""
    a, b = (v / v.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny) for v in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-300)


def _agreement(a: Tensor, b: Tensor) -> Tensor:
    """By row, the share of entries of one sign, of those where either is not zero: where both are, no step goes anywhere."""
    counted = (a != 0) | (b != 0)
    return ((a.sign() == b.sign()) & counted).double().sum(-1) / counted.double().sum(-1).clamp(min=1)


def _compare(found: dict[str, list[float]], other: Tensor, exact: Tensor, useful: Tensor) -> None:
    if not useful.any():
        return
    other, exact = other[useful], exact[useful]
    sees = _useful(other)
    found["blind"] += (~sees).double().tolist()
    error = (other - exact).norm(dim=1) / exact.norm(dim=1)
    found["relative_error"] += error.tolist()
    # A zero gradient points nowhere: cosine 0, and no sign of it agrees.
    found["cosine"] += _cosine(other, exact).tolist()
    found["sign"] += _agreement(other, exact).tolist()
    found["mean_cosine"].append(float(_cosine(other.mean(0), exact.mean(0))))
    found["mean_sign"].append(float(_agreement(other.mean(0), exact.mean(0))))


def _compared(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    if not found:
        return {}
    means = {key: fmean(found[key]) for key in ("cosine", "sign", "mean_cosine", "mean_sign", "blind")}
    return {"relative_error": median(found["relative_error"]), **means}


def _vary(found: dict[str, list[float]], exact: Tensor, size: int) -> None:
    """exact (DRAWS,P). The variance of a mean of `size` draws over the squared length of the expectation, both without bias."""
    means = exact.unflatten(0, (len(exact) // size, size)).mean(1)
    square = float((exact.mean(0) ** 2).sum()) - float(exact.var(0).sum()) / len(exact)
    variance = float(means.var(0).sum())
    # So noisy that its expectation cannot be told from zero.
    found["variance"].append(variance / square if square > 0 else math.inf if variance else 0.0)
    found["cosine"].append(float(_cosine(means[::2], means[1::2]).mean()))
    found["sign"].append(float(_agreement(means[::2], means[1::2]).mean()))


def _varied(found: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    middle = median(found["variance"])
    return {
        "variance": middle if math.isfinite(middle) else None,
        "cosine": fmean(found["cosine"]),
        "sign": fmean(found["sign"]),
    }


def _difference(found: dict[float, dict[str, list[float]]], exact: Defense, x: Tensor, y: Tensor, noise: Noise) -> None:
    inside = EDGE + (1 - 2 * EDGE) * x
    gradient = _gradients(exact, inside, y, noise, MOVED)
    rows = _rows(noise, MOVED)
    points = inside.repeat(MOVED, 1, 1, 1)
    useful = _useful(gradient)
    if not useful.any():
        return
    random = rows.fork("direction").sign(0, points)
    ways = {"along": gradient.sign().view_as(points).to(points), "across": random}
    # All ends of all steps together: rows of one call, which is padded to a fixed number of them.
    moves = [sign * step * way for way in ways.values() for step in STEPS for sign in (1, -1)]
    everywhere = torch.cat([points + move for move in moves])
    same = noise.rows(rows.ids.repeat(len(moves)), rows.samples.repeat(len(moves)))
    losses = _loss(exact, everywhere, y, same).view(len(ways), len(STEPS), 2, MOVED)
    for (way, direction), ends in zip(ways.items(), losses, strict=True):
        slope = (gradient * direction.flatten(1).double().cpu()).sum(1)
        scale = slope.abs() if way == "along" else gradient.norm(dim=1)
        for step, (ahead, behind) in zip(STEPS, ends, strict=True):
            error = ((ahead - behind) / (2 * step) - slope).abs() / scale
            found[step][way] += error[useful].tolist()


def _loss(defense: Defense, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """(B,) in float64, of one draw for each row."""
    with torch.no_grad():
        return cross_entropy(defense.logits(x, noise).double(), y.repeat(len(x))).cpu()


def _differenced(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {way: median(errors) for way, errors in found.items()}
