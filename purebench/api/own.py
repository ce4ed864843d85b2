"""Images and labels of the user's own: checked for what people get wrong, then a dataset like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from purebench.api import kept
from purebench.classifiers.foreign import answered
from purebench.datasets.images import Images, of_tensors
from purebench.engine import held
from purebench.errors import UserError

NOTE = "images of your own"
CHANNELS = (1, 3)
EXPECTED = "images are floats in [0,1], (N,C,H,W)"
ROUNDING = 1e-6  # by so little arithmetic in float32 leaves [0,1]


class OwnImages(Images):
    """Images that say of themselves what a table's datasets have in their INFO."""

    @property
    def INFO(self) -> dict[str, Any]:
        summary = {"summary": NOTE, "stand_in": NOTE, "training_set": "", "digest": self.digest}
        return summary | {"shape": self.shape, "classes": self.classes, "size": len(self)}


def checked(x: object, y: object) -> tuple[Tensor, Tensor]:
    """x (N,C,H,W) floats in [0,1], torch or NumPy, on any device, as float32; y (N,) whole numbers, also a list, as int64. On the CPU.

    Raises UserError for anything else, with what came and what to write."""
    pixels = _pixels(_tensor("x", x))
    return pixels, _labels(_tensor("y", np.asarray(y) if isinstance(y, list | tuple) else y), len(pixels))


def dataset(x: Tensor, y: Tensor, classes: int) -> OwnImages:
    """The images of `checked`. classes: that the classifier knows; 0: not known, then as many as y has. The digest is of the bytes.
    Raises UserError for a label that the classifier does not know."""
    least, largest = int(y.min()), int(y.max())
    if classes and largest >= classes:
        raise UserError(
            f"y has the label {largest}, and the classifier knows {classes} classes: 0 to {classes - 1}",
            f"give y - {least}" if largest - least < classes else "give the classifier of these labels",
        )
    found = of_tensors(x, y)
    return OwnImages(y, classes or found.classes, found.digest, found.read, NOTE)


def classes(classifier: Any, x: Tensor) -> int:
    """How many classes a classifier of the caller's knows, asked on the first images of x. Raises UserError where it answers with
    something else than logits."""
    networks = held.networks(classifier)
    places = {tensor.device for network in networks for tensor in (*network.parameters(), *network.buffers())}
    if len(places) > 1 or any(place.type == "meta" for place in places):
        found = ", ".join(sorted(f"`{place}`" for place in places))
        raise UserError(f"the classifier's weights are on {found}", "move all of it to one device: model.to(device)")
    place = next(iter(places), x.device)
    some = x[:2].to(place, copy=True)
    with kept.as_they_came([classifier]), torch.no_grad(), torch.random.fork_rng():
        for network in networks:
            network.eval()
        try:
            came = classifier(some)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the classifier fails on {_size(some)} {_dtype(some)} images on `{place}`: {type(error).__name__}: {first}",
                "it is called with x (N,C,H,W) in [0,1] alone, and its normalisation belongs into it",
            ) from error
    answer = answered(came)
    if answer is None:
        raise UserError(f"the classifier returns a {type(came).__name__}", "logits (N, classes) are expected")
    if answer.dim() not in (1, 2) or len(answer) != len(some) or not answer.is_floating_point():
        raise UserError(
            f"the classifier answers {len(some)} images with {_size(answer)} {_dtype(answer)}",
            "logits (N, classes) are expected, floats",
        )
    if not answer.isfinite().all():
        raise UserError("the classifier answers with values that are not finite", "look at its weights, and at x")
    # One logit is that of the second class.
    return 2 if answer.dim() == 1 else max(answer.shape[1], 2)


def _tensor(name: str, value: object) -> Tensor:
    """A tensor or array on the CPU, without its graph."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise UserError(
                f"{name} is a {value.layout} tensor on `{value.device}`", "give a dense tensor that has values"
            )
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # A copy: torch takes neither another byte order nor negative strides, and warns of what cannot be written.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True))
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    what = "missing" if value is None else what
    raise UserError(f"{name} is {what}", "give a tensor or an array: x (N,C,H,W) in [0,1] and y (N,)")


def _pixels(x: Tensor) -> Tensor:
    """x as float32. Raises UserError where it is no batch of images in [0,1]."""
    size = _size(x)
    if x.dim() != 4:
        hints = {2: "x.view(len(x), C, H, W)", 3: "x[:, None] for grey images, x[None] for a single one"}
        raise UserError(f"x is {size}, and {EXPECTED}", f"give {hints.get(x.dim(), 'one batch of images')}")
    if 0 in x.shape:
        raise UserError(f"x is {size}: there is nothing in it", "give at least one image")
    if x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        raise UserError(
            f"x is {size}: channels last, and {EXPECTED}",
            "give x.permute(0, 3, 1, 2), of an array x.transpose(0, 3, 1, 2)",
        )
    if not x.is_floating_point():
        scale = "x / 255" if x.dtype == torch.uint8 or int(x.max()) > 1 else "x as floats"
        raise UserError(f"x is of {_dtype(x)}, and {EXPECTED}", f"give {scale}")
    bad = (~x.isfinite()).flatten(1).any(1)
    if bad.any():
        raise UserError(f"x has values that are not finite, first in image {int(bad.nonzero()[0])}", "leave it out")
    low, high = float(x.min()), float(x.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise UserError(f"x is in [{low:.4g}, {high:.4g}], and {EXPECTED}", _scale(low, high))
    if high <= 1 / 255:
        raise UserError(f"the largest value of x is {high:.4g}: all images are black", "was it divided by 255 twice?")
    return x.to(torch.float32).contiguous().clamp(0, 1)


def _scale(low: float, high: float) -> str:
    """How pixels of this range become those of [0,1], as a hint."""
    if low >= 0:
        return "give x / 255" if high > 2 else "give x.clamp(0, 1)"
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return "give (x + 1) / 2, and let the classifier begin with 2 * x - 1"
    return "undo the normalisation, and let the classifier begin with it: an attack's radius is one of images in [0,1]"


def _labels(y: Tensor, images: int) -> Tensor:
    """y as int64. Raises UserError where it is no label for each of so many images."""
    size = _size(y)
    if y.dim() == 2 and y.shape[1] > 1:
        raise UserError(f"y is {size}, one-hot or scores: one class for each image was expected", "give y.argmax(1)")
    if y.dim() != 1:
        raise UserError(f"y is {size}: one class for each image was expected, (N,)", "give y.flatten()")
    if len(y) != images:
        raise UserError(f"x has {images} images and y {len(y)} labels", "give as many of both")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise UserError(
            f"y is of {_dtype(y)}: whole numbers were expected, the classes 0, 1, ..",
            "give y.long(), of an array y.astype(int)",
        )
    if int(y.min()) < 0:
        raise UserError(f"y has the label {int(y.min())}: classes are counted from 0", "leave out what has no label")
    # A copy, as the images are one: whatever the caller does to theirs, these are what was hashed.
    return y.to(torch.int64, copy=True)


def _size(x: Tensor) -> str:
    return f"({', '.join(map(str, x.shape))}{',' * (x.dim() == 1)})"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
