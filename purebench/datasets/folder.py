"""Any image folder: one sub-folder per class, classes numbered in sorted order (torchvision's ImageFolder), or as a list of yours says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from purebench.datasets import imagenet, numbering, tree
from purebench.datasets.images import Images, check_channels, of_files
from purebench.datasets.tree import EMPTY, Tree, shown
from purebench.errors import UserError

INFO = {
    "folder": {
        "summary": "your images: one sub-folder per class; `size` scales and crops them to one size, `classes` numbers them",
        "shape": [3, 0, 0],  # 0: known when read
        "classes": 0,
        "size": 0,
        "places": ["classes"],  # it says where labels are from, and these are in the content's hash
        "version": 1,
        "source": "your own",
        "licence": "your own",
        "assets": [],
        "training_set": "",  # yours to know
        "cite": "",
    }
}
SORTED, IMAGENET = "sorted", "imagenet"  # words for `classes`
HINT = "write classes=FILE with lines of `name,number`, a number of classes, `sorted` or `imagenet`"


def folder(
    *, path: str = "", name: str = "", size: int = 0, channels: int = 3, crop: int = 0, classes: str = ""
) -> Images:
    """name: what tables call it; the folder's name if empty. size: scale the shorter side to it and cut out the centre; 0: the images
    have one size already. channels: 3, or 1 for grey. crop: the side of the centre that is cut out, if not `size`.

    classes: empty, a folder's place among the sorted ones, digits by number (and none missing); sorted: the same, numbers may be missing;
    a number: of so many classes, and a folder's name is its class's number; imagenet: the folders are wnids of ImageNet's 1,000 classes;
    or a file: JSON or lines of `name,number`, of class folders or of images (`docs/checkpoints.md`)."""
    check_channels(channels)
    # Through str: on the command line a name of digits alone is read as a number.
    root, said = Path(str(path)), str(classes)
    if path == "" or not root.is_dir():
        wrong = f"`{path}` is a file, and no folder" if path != "" and root.exists() else f"there is no folder `{path}`"
        raise UserError(
            wrong if path != "" else "the dataset `folder` needs a path",
            "write `folder:path=PATH`; it holds one sub-folder per class",
        )
    found = tree.read(root)
    found, labels, count = _numbered(found, said)
    top = count or max(labels) + 1
    note = "your own image folder"
    return of_files(
        root, found.files, labels, top, channels=channels, resize=size, crop=crop or size, note=note,
        declared=bool(count), said=_said(found, labels, top, said),
        renumber=lambda count: _renumbered(found.classes, count),
    )  # fmt: skip


def _numbered(found: Tree, classes: str) -> tuple[Tree, list[int], int]:
    """The tree with only what has a class, each image's class, and how many classes there are; 0: not known."""
    if classes in ("", SORTED):
        found = tree.in_order(found, gaps=classes == SORTED)
        place = {name: i for i, name in enumerate(found.classes)}
        return found, [place[of] for of in found.folders], len(place)
    count = int(classes) if classes.isascii() and classes.isdigit() and not Path(classes).is_file() else 0
    if count or classes == IMAGENET:
        if not found.classes:
            raise UserError(f"`{shown(str(found.root))}` has no sub-folder per class", HINT)
        known = {wnid: i for i, wnid in enumerate(imagenet.wnids())} if not count else {}
        of = {name: _number(name, count) if count else known.get(name) for name in found.classes}
        what = f"a number from 0 to {count - 1}" if count else "a wnid of ImageNet's 1,000 classes"
        count = count or len(known)
    else:
        numbers = numbering.read(Path(classes).expanduser())
        if not found.classes:
            if numbers.bare:
                tree.check_order(found)
            return found, numbers.images(found.files), 0
        of, what = dict(numbers.folders(found.classes)), ""
        # Names with numbers say which class each is, and not how many a network has.
        count = len(numbers.of) if numbers.named else 0
    if strange := [name for name in found.classes if of[name] is None]:
        message = f"the class folder `{shown(strange[0])}` of `{shown(str(found.root))}` is not {what}"
        raise UserError(message, HINT)
    for name in set(found.classes) - set(found.folders):
        found.leave_out(EMPTY, name)
    return found, [number for name in found.folders if (number := of[name]) is not None], count


def _number(name: str, count: int) -> int | None:
    """The class that a folder's name is; None where it is none of so many."""
    return int(name) if name.isascii() and name.isdigit() and int(name) < count else None


def _renumbered(classes: list[str], count: int) -> str:
    """What to write, so that the labels are numbers of a classifier's `count` classes."""
    if classes and all(_number(name, count) is not None for name in classes):
        return f"`classes={count}`: a folder's name is its class's number"
    known = imagenet.wnids()
    if classes and count == len(known) and set(classes) <= set(known):
        return "`classes=imagenet`: a folder's name is its class's wnid"
    what = "a line `name,number` for each class" if classes else "a line `image,number` for each image"
    return f"`classes=FILE` with {what}, numbers from 0 to {count - 1}"


def _said(found: Tree, labels: list[int], count: int, classes: str) -> str:
    """One line for the plan: how many classes, which is the first and the last, in which order, and what was left out."""
    seen = Counter(labels)
    named = dict(zip(labels, found.folders, strict=True))
    parts = [f"`{shown(found.root.name or str(found.root))}`: {len(labels)} images of {len(seen)} classes"]
    if found.classes:
        first, last = min(named), max(named)
        ends = f"`{shown(named[first])}` is class {first}"
        parts.append(ends if first == last else f"{ends}, `{shown(named[last])}` is class {last}")
        if classes in ("", SORTED) and (why := tree.surprising(found.classes)):
            parts.append(why)
        # ImageNet's own numbers would be others.
        if classes == "" and len(found.classes) < len(known := imagenet.wnids()) and set(found.classes) <= set(known):
            parts.append("for a classifier of ImageNet's 1,000 classes write `classes=imagenet`")
    else:
        images = [f"`{shown(found.files[i])}` is of class {labels[i]}" for i in sorted({0, len(labels) - 1})]
        parts += [f"classes {numbering.ordered(labels)}", ", ".join(images)]
        if why := tree.surprising([Path(file).stem for file in found.files]):
            parts.append(why)
    if len(seen) < count:
        parts.append(f"{count - len(seen)} of {count} classes have no image")
    if left := found.described():
        parts.append(left)
    return "; ".join(parts)
