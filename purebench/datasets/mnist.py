"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): the 10,000 test images, 28x28, grey, as idx files.

Read as stored or gzipped, from the folders that torchvision also uses; the md5 of the unpacked content is checked."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from purebench.datasets.images import Images, find, missing, of_array

INFO = {
    "mnist": {
        "summary": "MNIST, 10,000 handwritten test digits, 28x28 grey",
        "shape": [1, 28, 28],
        "classes": 10,
        "size": 10000,
        "digest": "md5:2646ac647ad5339dbf082846283269ea",  # of the unpacked t10k-images
        "version": 1,
        "source": "http://yann.lecun.com/exdb/mnist/",
        "licence": "CC BY-SA 3.0",
        "assets": ["data-mnist"],
        "cite": "lecun1998gradient",
    },
    "fashionmnist": {
        "summary": "Fashion-MNIST, 10,000 test pictures of clothes, 28x28 grey",
        "shape": [1, 28, 28],
        "classes": 10,
        "size": 10000,
        "digest": "md5:8181f5470baa50b63fa0f6fddb340f0a",  # of the unpacked t10k-images
        "version": 1,
        "source": "https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT",
        "assets": ["data-fashionmnist"],
        "cite": "xiao2017fashion",
    },
}
FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MD5 = {  # of the unpacked files above
    "mnist": ("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "fashionmnist": ("8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}


def mnist(*, folder: str = "") -> Images:
    """folder: `MNIST/raw` or a folder above it; the cache if empty."""
    return _verified("mnist", "MNIST", folder)


def fashionmnist(*, folder: str = "") -> Images:
    """folder: `FashionMNIST/raw` or a folder above it; the cache if empty. Labels: T-shirt 0 .. ankle boot 9."""
    return _verified("fashionmnist", "FashionMNIST", folder)


def _verified(name: str, base: str, folder: str) -> Images:
    """The test images; UserError for files that are missing or are not the published ones."""
    place = find(name, folder, f"{base}/raw", FILES[0], f"{FILES[0]}.gz")
    images, labels = (_content(place, file) for file in FILES)
    for file, data, md5 in zip(FILES, (images, labels), MD5[name], strict=True):
        # Of what is inside: a .gz also holds a name and a time, and differs from one that was packed elsewhere.
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise missing(name, folder, f"`{file}` in `{place}` is missing or damaged")
    return _images(images, labels, f"md5:{MD5[name][0]}")


def train(name: str, folder: str = "") -> Images:
    """The 60,000 training images of `mnist` or `fashionmnist`; `purebench fetch` has verified those in the cache."""
    base = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}[name]
    place = find(name, folder, f"{base}/raw", TRAIN[0], f"{TRAIN[0]}.gz")
    images, labels = (_content(place, file) for file in TRAIN)
    # 16 and 8 bytes stand before the values.
    if len(images) != 16 + 60000 * 28 * 28 or len(labels) != 8 + 60000:
        raise missing(name, folder, f"the training images in `{place}` are missing or damaged")
    # No digest: no record names images that a network was trained on.
    return _images(images, labels, "")


def _images(packed: bytes, numbers: bytes, digest: str) -> Images:
    """Images and labels from the content of two idx files."""
    images, labels = np.frombuffer(packed, np.uint8), np.frombuffer(numbers, np.uint8)
    count, height, width = images[4:16].view(">i4").tolist()  # idx: magic, sizes, then the values
    pixels = images[16:].reshape(count, height, width)
    # A copy, since torch warns of arrays that it could not write to, as those of bytes are.
    return of_array(pixels.copy(), labels[8:].astype(np.int64), classes=10, digest=digest)


def _content(place: Path, file: str) -> bytes:
    """The unpacked file; nothing if it is missing or cannot be unpacked."""
    # gzip.BadGzipFile is an OSError.
    try:
        stored = place / file
        return stored.read_bytes() if stored.is_file() else gzip.decompress((place / f"{file}.gz").read_bytes())
    except (OSError, EOFError, zlib.error):
        return b""
