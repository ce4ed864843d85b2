"""ImageNet (ILSVRC 2012) validation: the user's folder, one sub-folder per class, `val/<wnid>/ILSVRC2012_val_*.JPEG`.

Scaled and cropped as the classifier was evaluated, else as everywhere: shorter side to 256 (bilinear), centre 224x224. Labels are the
ranks of the sorted wnids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from purebench import assets
from purebench.datasets.images import Images, image_folder, of_files, own_folder
from purebench.errors import DOWNLOAD, UserError

IMAGES = 50000
CLASSES = 1000
INFO = {
    "imagenet": {
        "summary": "ImageNet validation, your folder: 50,000 images of 1,000 classes, or RobustBench's 5,000 (ids=robustbench)",
        "shape": [3, 224, 224],
        "classes": CLASSES,
        "size": 0,  # known when read: it depends on `ids`
        "own": {"asset": "data-imagenet-val", "variable": "PUREBENCH_IMAGENET"},
        "expected": {"ids=all": 50000, "ids=robustbench": 5000},
        "version": 1,
        "source": "https://image-net.org/download.php",
        "licence": "ImageNet terms of access: non-commercial research",
        "assets": [],
        "choices": {"ids": ["all", "robustbench"], "interpolation": ["bilinear", "bicubic"]},
        "none": ["resize"],
        "requires": ["resize == 0 or resize >= crop"],
        "moot": {"interpolation": ["resize == 0", "nothing is scaled"]},
        "cite": "russakovsky2015imagenet",
    }
}
LAYOUT = "`val/<wnid>/ILSVRC2012_val_*.JPEG` (or the 1,000 wnid folders themselves)"
IDS = "imagenet_test_image_ids.txt", "d4121626d07722a0126c35b1563042e46a546f1a05ce705f2cdc635896d58574"
NUMBERS = "imagenet_class_to_id_map.json"


def imagenet(
    *, folder: str = "", resize: int = 256, crop: int = 224, ids: str = "all", interpolation: str = "bilinear"
) -> Images:
    """folder: see LAYOUT; PUREBENCH_IMAGENET if empty. ids: all, or robustbench for its list of 5,000, in its order. resize: of the
    shorter side, 0 for none; crop: of the centre. Of resize, crop and interpolation what nobody says is the classifier's, as it was
    evaluated (`preprocess` in `checkpoints.toml`)."""
    root = own_folder("imagenet", folder, INFO["imagenet"], LAYOUT)
    root = root / "val" if (root / "val").is_dir() else root
    taken = f"size={resize},crop={crop}" if resize else f"crop={crop}"
    # A class's number is its wnid's rank, for every classifier of ImageNet; asked of RobustBench's table, not of the folder, which may
    # hold a part of the classes.
    number = {wnid: i for i, wnid in enumerate(wnids())}
    if not any((root / wnid).is_dir() for wnid in number):
        flat = next(root.glob("ILSVRC2012_val_*"), None)
        listed = (
            f"; of images that lie flat: `folder:path={root},{taken},classes=ILSVRC2012_validation_ground_truth.txt`"
        )
        raise UserError(
            f"`{root}` is not the ImageNet validation set: it has no folder such as `n01440764`",
            f"it should hold {LAYOUT}{listed if flat else ''}",
        )
    if ids == "robustbench":
        files = _robustbench_list()
        absent = [file for file in files if not (root / file).is_file()]
        if absent:
            raise UserError(
                f"`{root}` lacks {len(absent)} of RobustBench's {len(files)} images, first `{absent[0]}`",
                f"it should hold {LAYOUT}",
            )
        return _images(root, files, [number[file.partition("/")[0]] for file in files], resize, crop, interpolation)
    # A part of it, or folders of another kind, would shift the numbers of the classes, unnoticed but for the accuracy.
    found = image_folder(root)
    if found.classes != list(number) or len(found.files) != IMAGES:
        raise UserError(
            f"`{root}` is not the whole ImageNet validation set: {len(found.files)} images in {len(found.classes)} folders, "
            f"expected {IMAGES} in the {len(number)} classes",
            f"it should hold {LAYOUT}; `folder:path={root},classes=imagenet,{taken}` takes a part of it",
        )
    return _images(root, found.files, [number[wnid] for wnid in found.folders], resize, crop, interpolation)


def _images(root: Path, files: list[str], labels: list[int], resize: int, crop: int, interpolation: str) -> Images:
    return of_files(root, files, labels, CLASSES, resize=resize, crop=crop, interpolation=interpolation, frame=True)


def wnids() -> list[str]:
    """The names of the 1,000 classes, sorted."""
    return sorted(json.loads(_helper(NUMBERS)))


def _robustbench_list() -> list[str]:
    """`<wnid>/ILSVRC2012_val_*.JPEG`, 5,000 lines."""
    name, sha256 = IDS
    text = _helper(name)
    # Another release may list other images under the same name, and a number would silently be of them.
    found = hashlib.sha256(text).hexdigest()
    if found != sha256:
        raise UserError(
            f"RobustBench's list of ImageNet images is not the one we know: sha256 {found[:12]}..",
            "reinstall robustbench",
            DOWNLOAD,
        )
    return text.decode().split()


def _helper(name: str) -> bytes:
    """The content of a file inside the installed robustbench."""
    path = assets.installed("robustbench", "helper_files", name)
    if not path.is_file():
        raise UserError(f"robustbench has no `{name}`", "reinstall robustbench", DOWNLOAD)
    return path.read_bytes()
