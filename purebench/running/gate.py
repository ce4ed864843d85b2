"""Before a cell's first batch: whether a score network in less than float32 still makes the images and gradients of float32's.

On the dataset's first images, with one draw of the role `gate` each: what the purifier moves an image by, the cell's gradient, and the
classes that the judge would give. What is beyond LIMITS is refused, and what was found is in the record either way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.running import evaluate
from purebench.spec import Cell, Resolved

IMAGES, DRAWS = 8, 4  # of a gate; flips are counted on all draws of all images
LIMITS = {  # key -> (the least or the most, its words); a mean over images, `flips` a share of all answers
    "image_cosine": (0.99, "the cosine of what the purifier moves images by"),
    "image_error": (0.10, "the relative error of what the purifier moves images by"),
    "gradient_cosine": (0.90, "the cosine of the gradients"),
    "gradient_error": (0.50, "the relative error of the gradients"),
    "flips": (0.05, "the share of classes that differ"),
}
LEAST = ("image_cosine", "gradient_cosine")
Figures = dict[str, Any]

# Of a cell's networks at a precision, tried once in a process.
_passed: dict[tuple[Any, ...], Figures] = {}


def words(cell: Cell) -> dict[str, tuple[str, ...]]:
    """role (`attack`, `judge`) -> the precision of each score model there, of those roles that are not wholly in float32."""
    found = {
        "attack": tuple(str(model.options.get("precision", "fp32")) for model in cell.scores),
        "judge": tuple(str(model.options.get("judge", "fp32")) for model in cell.scores),
    }
    return {role: words for role, words in found.items() if set(words) - {"fp32"}}


def check(cell: Cell, device: torch.device, rows: int, memory: int | None = None) -> dict[str, Figures]:
    """What was found, by role; {} where everything is in float32. Raises UserError beyond LIMITS, with the figures.

    rows: at most so many share a network call. Costs two gradients and two times DRAWS purifications of IMAGES images."""
    return {role: _found(cell, role, words, device, rows, memory) for role, words in words(cell).items()}


def _found(
    cell: Cell, role: str, asked: tuple[str, ...], device: torch.device, rows: int, memory: int | None
) -> Figures:
    # Of the role's precision alone: one network is not tried twice where attack and judge share it.
    key = (cell.dataset, cell.classifier, cell.scores, cell.defense, cell.gradient, asked, device)
    if key not in _passed:
        images = evaluate.dataset(cell.dataset)
        x, y = (part.to(device) for part in images.take(list(range(min(len(images), IMAGES)))))
        judging = role == "judge"
        low = evaluate.build_defense(cell, device, rows=min(rows, IMAGES), memory=memory, judging=judging)
        exact = evaluate.build_defense(_in_float32(cell), device, rows=min(rows, IMAGES), memory=memory)
        gradient = cell.gradient.name != "-" and not judging
        _passed[key] = {"precision": ",".join(asked), **compare(low, exact, x, y, gradient=gradient)}
    _refuse(str(cell), role, _passed[key])
    return _passed[key]


def compare(low: Defense, exact: Defense, x: Tensor, y: Tensor, *, gradient: bool) -> Figures:
    """Of the defense in less precision, held against the same in float32 on images x (B,C,H,W) with labels y: cosine and relative error of
    what it moves images by and, if asked for, of its gradient of the cross-entropy, means over images; and the share of `flips` among
    the answers to DRAWS draws of each."""
    noise = Noise(0, "gate", (), range(len(x)), [0] * len(x))
    moved, wanted = (each.purify(x, noise) - x for each in (low, exact))
    found = {"images": len(x), "draws": DRAWS} | _distance("image", moved, wanted)
    if gradient:
        grads = (each.loss_grad(x, y, "ce", noise, observe=False).grad for each in (low, exact))
        found |= _distance("gradient", *grads)
    classes = (each.draws(x, noise, 0, DRAWS).argmax(-1) for each in (low, exact))
    first, second = classes
    return found | {"flips": round(float((first != second).double().mean()), 4)}


def _distance(what: str, found: Tensor, wanted: Tensor) -> Figures:
    a, b = found.flatten(1).double(), wanted.flatten(1).double()
    size = b.norm(dim=1)
    # Of an image that is not moved, or has no gradient, there is nothing to be near to.
    some = size > 0
    if not some.any():
        return {f"{what}_cosine": 1.0, f"{what}_error": 0.0 if torch.equal(a, b) else float("inf")}
    a, b, size = a[some], b[some], size[some]
    cosine = (a * b).sum(1) / (a.norm(dim=1).clamp(min=1e-300) * size)
    error = (a - b).norm(dim=1) / size
    return {f"{what}_cosine": round(float(cosine.mean()), 6), f"{what}_error": round(float(error.mean()), 6)}


def _refuse(cell: str, role: str, found: Figures) -> None:
    """Raises UserError for a figure beyond its limit; one that is no number is."""
    for key, (limit, what) in LIMITS.items():
        if key not in found:
            continue
        value = found[key]
        if not (value >= limit if key in LEAST else value <= limit):
            side = "least" if key in LEAST else "most"
            figures = ", ".join(f"{name}={value}" for name, value in found.items())
            raise UserError(
                f"{found['precision']} is too coarse for the {role} of {cell}: {what} is {value:.4g}, at {side} {limit:g} ({figures})",
                f"`{'--precision' if role == 'attack' else '--judge-precision'} fp32`, or tf32 on a GPU",
            )


def _in_float32(cell: Cell) -> Cell:
    return replace(cell, scores=tuple(_whole(model) for model in cell.scores))


def _whole(model: Resolved) -> Resolved:
    return replace(model, options={})
