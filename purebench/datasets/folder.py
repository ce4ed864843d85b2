"""Any image folder: one sub-folder per class, classes numbered in sorted order (torchvision's ImageFolder)."""

from __future__ import annotations

from pathlib import Path

from purebench.datasets.images import Images, check_channels, image_folder, of_files
from purebench.errors import UserError

INFO = {
    "folder": {
        "summary": "your images: one sub-folder per class; `size` scales and crops them to one size",
        "shape": [3, 0, 0],  # 0: known when read
        "classes": 0,
        "size": 0,
        "version": 1,
        "source": "your own",
        "licence": "your own",
        "assets": [],
        "training_set": "",  # yours to know
        "cite": "",
    }
}


def folder(*, path: str = "", name: str = "", size: int = 0, channels: int = 3) -> Images:
    """name: what tables call it; the folder's name if empty. size: scale the shorter side to it and cut out the centre; 0: the images
    have one size already. channels: 3, or 1 for grey."""
    check_channels(channels)
    # Through str: on the command line a name of digits alone is read as a number.
    root = Path(str(path))
    if path == "" or not root.is_dir():
        raise UserError(
            f"there is no folder `{path}`" if path != "" else "the dataset `folder` needs a path",
            "write `folder:path=PATH`; it holds one sub-folder per class",
        )
    classes, files, labels = image_folder(root)
    note = "your own image folder"
    return of_files(root, files, labels, len(classes), channels=channels, resize=size, crop=size, note=note)
