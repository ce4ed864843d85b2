"""CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019, section 3): the test images under 19 corruptions of 5 severities.

One array per corruption, (50000,32,32,3) uint8: rows (s-1)*10000 .. s*10000 are severity s; labels.npy repeats the labels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

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
}
TEST = 10000


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
