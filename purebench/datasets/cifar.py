"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the 10,000 test images, 32x32, in the authors' "python version".

Every file's md5 is checked by torchvision before anything is unpickled."""

from __future__ import annotations

from typing import Any

from purebench.datasets.images import Images, find, missing, of_array

INFO = {
    "cifar10": {
        "summary": "CIFAR-10, 10,000 test images of 10 classes, 32x32",
        "shape": [3, 32, 32],
        "classes": 10,
        "size": 10000,
        "digest": "md5:40351d587109b95175f43aff81a1287e",  # of test_batch
        "version": 1,
        "source": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "licence": "not stated by its authors",
        "assets": ["data-cifar10"],
        "cite": "krizhevsky2009learning",
    },
    "cifar100": {
        "summary": "CIFAR-100, 10,000 test images of 100 classes, 32x32",
        "shape": [3, 32, 32],
        "classes": 100,
        "size": 10000,
        "digest": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",  # of test
        "version": 1,
        "source": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "licence": "not stated by its authors",
        "assets": ["data-cifar100"],
        "cite": "krizhevsky2009learning",
    },
}


def cifar10(*, folder: str = "") -> Images:
    """folder: `cifar-10-batches-py` or the folder that holds it; the cache if empty. Labels: airplane 0 .. truck 9."""
    from torchvision.datasets import CIFAR10

    return _verified("cifar10", CIFAR10, folder)


def cifar100(*, folder: str = "") -> Images:
    """folder: `cifar-100-python` or the folder that holds it; the cache if empty. Labels are the fine ones."""
    from torchvision.datasets import CIFAR100

    return _verified("cifar100", CIFAR100, folder)


def train(folder: str = "") -> Images:
    """The 50,000 training images of CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return _verified("cifar10", CIFAR10, folder, train=True)


def _verified(name: str, kind: Any, folder: str, train: bool = False) -> Images:
    """The images of `kind`, a dataset class of torchvision's; UserError for files that are missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    # Resolved: of `.` the last part, which torchvision wants apart from what is before it, is empty.
    place = find(name, folder, kind.base_folder, kind.meta["filename"]).resolve()

    # torchvision looks in a folder of a fixed name only; the user's may have another.
    class Found(kind):
        base_folder = place.name

    try:
        data = Found(place.parent, train=train, download=False)
    # "Not found or corrupted", says torchvision of all files together: which of them is asked here.
    except RuntimeError:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        bad = [file for file, md5 in files if not check_integrity(str(place / file), md5)]
        message = f"{name} in `{place}` is not complete: {', '.join(bad)} missing or damaged"
        raise missing(name, folder, message) from None
    # torchvision has checked the md5 of every file: that of the test images names them in a record.
    return of_array(data.data, data.targets, classes=INFO[name]["classes"], digest=f"md5:{kind.test_list[0][1]}")  # type: ignore[arg-type]
