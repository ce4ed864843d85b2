"""What `purebench purify` is given: picture files as a viewer shows them and as the dataset prepares its own, arrays as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from purebench.datasets import pictures
from purebench.errors import UserError
from purebench.plan import given

ARRAYS = (".npy", ".npz", ".pt", ".pth")
EXPECTED = "an array is float32 in [0,1], one image (C,H,W) or a batch (N,C,H,W) of the networks' size; a grey one may be (H,W)"


@dataclass(frozen=True, eq=False)
class Input:
    """A file's images, (n,C,H,W) float32 in [0,1]."""

    path: Path
    images: Tensor
    array: tuple[int, ...] = ()  # the shape of its array; of a picture file empty
    notes: tuple[str, ...] = ()  # what was done to it that one does not see in the file
    failed: str = ""  # why it cannot be read; then it has no images

    @property
    def names(self) -> list[str]:
        """What each image is called."""
        several = len(self.array) == 4
        return [f"{self.path}[{i}]" if several else str(self.path) for i in range(len(self.images))]

    @property
    def end(self) -> str:
        """The suffix of what is made of it."""
        if not self.array:
            return ".png"
        return ".pt" if self.path.suffix.lower() in (".pt", ".pth") else ".npy"


def read(path: Path, shape: list[int], prepared: Mapping[str, object], background: str = "white") -> Input:
    """shape: [C,H,W] of the networks. prepared: the dataset's parameters, of which `resize`, `size` and `interpolation` are looked at.
    background: as in `pictures.decode`. Raises UserError for a file that has no image, or one that would have to be guessed at."""
    if path.suffix.lower() in ARRAYS:
        return _array(path, shape)
    facts = pictures.look(path, whole=True)
    height, width = shape[1:]
    size = (facts.height, facts.width) if facts.orientation > 4 else (facts.width, facts.height)
    fits = size == (width, height)
    resize = 0 if fits else int(str(prepared["resize"])) if "resize" in prepared else _covering(size, (width, height))
    x = pictures.decode(
        path, shape[0], resize, (height, width), background=background, turn=True,
        interpolation=str(prepared.get("interpolation", "bilinear")),
    )  # fmt: skip
    notes = [f"the first of its {facts.frames} pictures"] if facts.frames > 1 else []
    notes += ["turned, as its EXIF data says"] if facts.orientation > 1 else []
    notes += [f"what is transparent is {background}"] if facts.transparent else []
    if not fits:
        notes.append(f"{'enlarged' if min(size) < min(width, height) else 'scaled'} from {size[0]}x{size[1]}")
        notes[-1] += ", its middle cut out" if size[0] * height != size[1] * width else ""
    return Input(path, pictures.unit(x)[None], notes=tuple(notes))


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The least shorter side with which an image of this (width, height) covers the wanted one, when its sides keep their ratio."""
    shorter, longer = min(size), max(size)
    side = max(-(-want * shorter // has) for want, has in zip(wanted, size, strict=True))
    # As torchvision rounds the longer side: down, of a float.
    return side if int(side * longer / shorter) >= wanted[size.index(longer)] else side + 1


def _array(path: Path, shape: list[int]) -> Input:
    found = given.array(path)
    if not np.issubdtype(found.dtype, np.floating) or found.dtype.itemsize < 4:
        more = "; divide by 255" if found.dtype == np.uint8 else ""
        raise UserError(f"`{path}` is {found.dtype}, expected float32", EXPECTED + more)
    # A grey image need not have an axis of channels, nor one image an axis of images.
    x = found[None] if found.ndim == 2 else found
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or list(x.shape[1:]) != shape or not len(x):
        last = "; the channels come first" if list(found.shape[-3:]) == [*shape[1:], shape[0]] else ""
        raise UserError(f"`{path}` has the shape {list(found.shape)}, and the networks take {shape}{last}", EXPECTED)
    # Written so that NaN is refused too.
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise UserError(f"`{path}` has values in [{x.min():g}, {x.max():g}], expected [0,1]", EXPECTED)
    return Input(path, torch.from_numpy(x.astype(np.float32, copy=True)), tuple(found.shape))
