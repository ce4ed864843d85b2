"""CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019, section 3): the test images under 19 corruptions of 5 severities.

One array per corruption, (50000,32,32,3) uint8: rows (s-1)*10000 .. s*10000 are severity s; labels.npy repeats the labels.

`corrupted` makes the same corruptions of any other dataset, image by image, by the package `imagecorruptions-imaug`: drawn anew, so that
they are not the images of CIFAR-10-C or ImageNet-C, and tables say so."""

from __future__ import annotations

import contextlib
import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from purebench.datasets.images import Images, find, missing, of_array

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",  # the 15 of the tables, in their order
    "speckle_noise", "gaussian_blur", "spatter", "saturate",  # the 4 meant for validation
)  # fmt: skip
INFO = {
    "cifar10-c": {
        "summary": "CIFAR-10-C: the 10,000 test images under one of 19 corruptions, severity 1 to 5",
        "shape": [3, 32, 32],
        "classes": 10,
        "size": 10000,
        "version": 1,
        "source": "https://zenodo.org/records/2535967",
        "licence": "CC BY 4.0",
        "assets": ["data-cifar10-c"],
        "training_set": "cifar10",
        "choices": {"corruption": CORRUPTIONS},
        "requires": ["1 <= severity <= 5"],
        "cite": "hendrycks2019benchmarking",
    },
    "cifar100-c": {
        "summary": "CIFAR-100-C: the 10,000 test images under one of 19 corruptions, severity 1 to 5",
        "shape": [3, 32, 32],
        "classes": 100,
        "size": 10000,
        "version": 1,
        "source": "https://zenodo.org/records/3555552",
        "licence": "CC BY 4.0",
        "assets": ["data-cifar100-c"],
        "training_set": "cifar100",
        "choices": {"corruption": CORRUPTIONS},
        "requires": ["1 <= severity <= 5"],
        "cite": "hendrycks2019benchmarking",
    },
    "corrupted": {
        "summary": "any dataset under one of 19 corruptions made here: corrupted:of=(digits),corruption=fog,severity=3",
        "shape": [0, 0, 0],  # the dataset's
        "classes": 0,
        "size": 0,
        "version": 1,
        "of": "of",  # the parameter that names the dataset
        "package": "imagecorruptions-imaug",
        "stand_in": "corruptions generated here",
        "choices": {"corruption": CORRUPTIONS},
        "requires": ["1 <= severity <= 5"],
        "source": "https://github.com/imaug/imagecorruptions",
        "licence": "the dataset's; the corruptions' code: Apache 2.0",
        "cite": "hendrycks2019benchmarking",
    },
}
TEST = 10000
SMALLEST = 32  # pixels a side: the corruptions have no strength for less


def cifar10_c(*, corruption: str = "gaussian_noise", severity: int = 5, folder: str = "") -> Images:
    """folder: `CIFAR-10-C` or the folder that holds it; the cache if empty. severity: 1 (least) to 5."""
    return _slice("cifar10-c", "CIFAR-10-C", 10, corruption, severity, folder)


def cifar100_c(*, corruption: str = "gaussian_noise", severity: int = 5, folder: str = "") -> Images:
    """folder: `CIFAR-100-C` or the folder that holds it; the cache if empty. severity: 1 (least) to 5."""
    return _slice("cifar100-c", "CIFAR-100-C", 100, corruption, severity, folder)


def _slice(name: str, base: str, classes: int, corruption: str, severity: int, folder: str) -> Images:
    """One corruption at one severity; UserError for files that are missing, damaged or of another kind."""
    place = find(name, folder, base, "labels.npy")
    rows = slice((severity - 1) * TEST, severity * TEST)
    pixels = np.array(_array(name, folder, place / f"{corruption}.npy", (5 * TEST, 32, 32, 3))[rows])
    # The labels are the same five times over.
    labels = np.array(_array(name, folder, place / "labels.npy", (5 * TEST,))[:TEST], dtype=np.int64)
    if pixels.dtype != np.uint8 or not 0 <= labels.min() <= labels.max() < classes:
        raise missing(name, folder, f"`{place}` is not {base}: expected uint8 images and labels 0 to {classes - 1}")
    # Of these images alone (31 MB): of the whole file, every severity would have one and the same.
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    return of_array(pixels, labels, classes=classes, digest=f"sha256:{digest}")


def _array(name: str, folder: str, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array of this shape in a file, mapped; UserError for any other."""
    # Mapped: one severity of one corruption is a fifth of its 154 MB.
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise missing(name, folder, f"`{path}` is missing or not a complete NumPy array") from None
    if array.shape != shape:
        raise missing(name, folder, f"`{path}` has the shape {array.shape}, expected {shape}")
    return array


def corrupted(*, of: Any = None, corruption: str = "gaussian_noise", severity: int = 5) -> Images:
    """of: the dataset, its `Images`. An image's corruption is drawn from its index, the corruption and the severity alone."""
    from imagecorruptions import corrupt  # slow to import: with numba and OpenCV

    grey = of.shape[0] == 1
    factor = math.ceil(SMALLEST / min(of.shape[1:]))

    def one(image: Tensor, index: int) -> Tensor:
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        pixels = np.repeat(pixels, 3, axis=2) if grey else pixels
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        with _seeded(zlib.crc32(f"{corruption}/{severity}/{index}".encode())):
            made = corrupt(pixels, corruption_name=corruption, severity=severity)
        found = torch.from_numpy(np.array(made)).permute(2, 0, 1).float() / 255
        found = torch.nn.functional.avg_pool2d(found, factor) if factor > 1 else found
        return found.mean(0, keepdim=True) if grey else found

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([one(image, index) for image, index in zip(of.read(indices), indices, strict=True)])

    return Images(of.labels, of.classes, of.digest, read, str(INFO["corrupted"]["stand_in"]))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every generator that the package draws from, for one image: numpy's global one (put back afterwards), new ones without a seed
    (scikit-image makes one for impulse noise), and numba's own (glass blur)."""
    _seed_numba(seed)
    before, new = np.random.get_state(), np.random.default_rng
    np.random.seed(seed)
    try:
        with mock.patch("numpy.random.default_rng", lambda given=None: new(seed if given is None else given)):
            yield
    finally:
        np.random.set_state(before)


def _seed_numba(seed: int) -> None:
    """numba's generator is another than numpy's, and only compiled code can seed it."""
    global _compiled
    if _compiled is None:
        import numba

        _compiled = numba.njit(lambda number: np.random.seed(number))
    _compiled(seed)


_compiled: Any = None
