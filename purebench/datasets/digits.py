"""The embedded benchmark's images: the 1,797 real 8x8 grey digits that ship inside scikit-learn.

They are the test set of UCI's "Optical Recognition of Handwritten Digits" (10.24432/C50P49): counts 0..16 of set pixels
in 4x4 blocks of a 32x32 bitmap. The split is ours: shuffled with `RandomState(0)`, the last 500 are the test set.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from purebench import assets
from purebench.errors import DOWNLOAD, UserError

TEST = 500

INFO = {
    "summary": "handwritten digits, 8x8, inside scikit-learn: nothing to download",
    "shape": [1, 8, 8],
    "classes": 10,
    "size": 500,
    "sha256": "8ea07ed48e0db06d53a057d28f98952fe9461062d839b821f9290cc62bd295c7",  # of the test images and labels, as bytes
    "version": 1,
    "source": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    "licence": "CC BY 4.0",
    "cite": "alpaydin1998optical",
}


def train() -> tuple[Tensor, Tensor]:
    """The 1,297 training images: (1297,1,8,8) float32 in [0,1], labels (1297,) int64."""
    images, labels = _shuffled()
    return images[:-TEST], labels[:-TEST]


def test() -> tuple[Tensor, Tensor]:
    """The 500 test images: (500,1,8,8) float32 in [0,1], labels (500,) int64."""
    images, labels = (part[-TEST:] for part in _shuffled())
    # Every number of the embedded benchmark hangs on these bytes, and another scikit-learn may bring others.
    found = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    if found != INFO["sha256"]:
        raise UserError(
            f"scikit-learn's digits are not the ones we know: sha256 {found[:12]}..", "reinstall scikit-learn", DOWNLOAD
        )
    return images, labels


def _shuffled() -> tuple[Tensor, Tensor]:
    """All 1,797 images and labels in the order of the split."""
    path = assets.installed("sklearn", "datasets", "data", "digits.csv.gz")
    if not path.is_file():
        raise UserError("scikit-learn's digits are not where it keeps them", "reinstall scikit-learn", DOWNLOAD)
    numbers = np.loadtxt(path, delimiter=",")  # a line an image: 64 counts and the class
    # Shuffled, since neighbours in the file are of one writer: a split by place would part the writers too.
    numbers = numbers[np.random.RandomState(0).permutation(len(numbers))]
    images = torch.from_numpy(numbers[:, :-1] / 16).float().view(-1, 1, 8, 8)
    return images, torch.from_numpy(numbers[:, -1]).long()
