"""What an image folder holds: its class folders, the images in them, and what is left out. Torch-free.

Classes are in sorted order as torchvision's ImageFolder has them, but for names that are all digits: these are in the order of their
numbers. Hidden and system entries are passed over at every level; a folder is read once, however many links lead to it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from purebench.errors import UserError

# Of one still picture, as Pillow reads them. Not asked of Pillow: which images a folder has would depend on its version and its plug-ins.
STILLS = (
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".ftc", ".ftu", ".gif", ".icb",
    ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd",
    ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff",
    ".vda", ".vst", ".webp", ".xbm", ".xpm",
)  # fmt: skip
SYSTEM = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "@eadir", "@recycle", "#recycle", "#snapshot",
     "$recycle.bin", "recycler", "system volume information", "network trash folder", "temporary items", "found.000", "lost+found",
     "__pycache__", "cvs", "icon\r")
)  # fmt: skip
PARTS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
HINT = "expected one sub-folder per class with its images (jpg, png, ..)"
HIDDEN, OTHER, AGAIN, BESIDE, EMPTY = (
    "hidden or system", "no picture's ending", "links to a folder that is read already", "beside the class folders", "without an image",
)  # fmt: skip


@dataclass
class Tree:
    """`classes`: names of the class folders in their order; none where the images lie in the folder itself. `files`: images relative to
    the root, in torchvision's order, and `folders` the class folder of each. `left_out`: why -> what, relative to the root."""

    root: Path
    classes: list[str]
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, name: str) -> None:
        self.left_out.setdefault(why, []).append(name)

    def described(self) -> str:
        """What was left out, in a few words; "" where that is nothing."""
        found = [f"{len(names)} {why} ({_some(names)})" for why, names in self.left_out.items()]
        return f"left out: {', '.join(found)}" if found else ""


def shown(name: str) -> str:
    """A file's name as text that can be printed and stored: bytes that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Whether an entry is a system's and no user's: `.ipynb_checkpoints`, `._1.png`, `__MACOSX`, `Thumbs.db`."""
    return name.startswith(".") or name.casefold() in SYSTEM


def is_picture(name: str) -> bool:
    """Whether a name ends as that of a still picture."""
    return os.path.splitext(name)[1].lower() in STILLS


def read(root: Path) -> Tree:
    """The folder's images by their class folders; where it has no class folder, those in it. Raises UserError for a folder without an
    image, one folder under two names, a link to nothing, and what cannot be read."""
    entries = _entries(root)
    above = {os.path.realpath(root), *map(str, Path(os.path.realpath(root)).parents)}
    tree, beside, seen = Tree(root, []), [], {}
    for entry in entries:
        if is_hidden(entry.name):
            tree.leave_out(HIDDEN, entry.name)
        elif not entry.is_dir():
            beside.append(entry)
        # A link to the folder itself, or to one above it: all classes once more, in one.
        elif (real := os.path.realpath(entry.path)) in above:
            tree.leave_out(AGAIN, entry.name)
        else:
            seen[entry.name] = real
    _check_apart(root, seen)
    tree.classes = sorted(seen)
    for entry in beside:
        _take(tree, entry, "", entry.name, beside=bool(seen))
    walked = above | set(seen.values())
    links: deque[tuple[str, str]] = deque()
    # Folders before links: a link inside a class to a folder of another class takes no image from that.
    for name in tree.classes:
        _walk(tree, name, name, walked, links)
    while links:
        of, place = links.popleft()
        if (real := os.path.realpath(root / place)) in walked:
            tree.leave_out(AGAIN, place)
        else:
            walked.add(real)
            _walk(tree, of, place, walked, links)
    order = sorted(range(len(tree.files)), key=lambda i: (tree.folders[i], *os.path.split(tree.files[i])))
    # Images of no class folder as class folders are.
    if not tree.classes and all(_is_number(_stem(file)) for file in tree.files):
        order.sort(key=lambda i: int(_stem(tree.files[i])))
    tree.files, tree.folders = [tree.files[i] for i in order], [tree.folders[i] for i in order]
    if not tree.files:
        what = f"no valid file in {_some(tree.classes)}" if tree.classes else "it has no image and no sub-folder"
        raise UserError(f"`{shown(str(root))}` is not an image folder: {what}", HINT)
    return tree


def in_order(tree: Tree, *, gaps: bool = False) -> Tree:
    """The tree with its classes numbered by their place: digits by number, else as text. gaps: whether numbers may be missing.

    Raises UserError where the place would not be the number that was meant: parts of a data set in place of classes, numbers with a gap,
    a class without an image, no class folders at all."""
    root, has = shown(str(tree.root)), set(tree.folders)
    if not tree.classes:
        message = f"`{root}` has {len(tree.files)} images, and no sub-folder per class"
        raise UserError(
            message, "sort them into one sub-folder per class, or give a list of `image,number`: classes=FILE"
        )
    # Images in the class folder itself: then `train` may be a vehicle.
    nested = not any(os.path.dirname(file) == folder for file, folder in zip(tree.files, tree.folders, strict=True))
    if nested and (len(tree.classes) == 1 or {name.casefold() for name in tree.classes} <= PARTS):
        inner = [f"`{root}/{shown(name)}`" for name in tree.classes if name in has]
        raise UserError(
            f"`{root}` is not an image folder: its images lie in sub-folders of {_some(tree.classes)}, which are no classes",
            f"name the folder above the classes: {' or '.join(inner)}",
        )
    if empty := [name for name in tree.classes if name not in has]:
        message = f"`{root}` is not an image folder: no valid file in the class {_some(empty)}"
        way = "`classes=FILE` with lines of `name,number`"
        if all(map(_is_number, tree.classes)):
            way = f"`classes={max(map(int, tree.classes)) + 1}`, where a folder's name is its class's number"
        raise UserError(message, f"{HINT}; a class may be without one by {way}; remove what is no class")
    if not all(map(_is_number, tree.classes)):
        return tree
    numbers = {name: int(name) for name in tree.classes}
    by_number = sorted(tree.classes, key=lambda name: numbers[name])
    for one, two in pairwise(by_number):
        if numbers[one] == numbers[two]:
            raise UserError(f"`{root}` has two folders of one number: `{one}` and `{two}`", "merge them, or rename one")
    first, last = numbers[by_number[0]], numbers[by_number[-1]]
    if not gaps and first == last > 1:
        raise UserError(
            f"`{root}` has one class folder, `{by_number[0]}`: is it class {last}, or class 0, the only one?",
            f"`classes={last + 1}`: a folder's name is its class's number; `classes=sorted`: its place is",
        )
    if not gaps and (first > 1 or last - first + 1 != len(by_number)):
        gap = next(n for n in range(min(first, 1), last) if n not in numbers.values())
        raise UserError(
            f"the class folders of `{root}` are numbers from {first} to {last}, and {gap} is not among them: is `{by_number[-1]}` "
            f"class {last}, or class {len(by_number) - 1}, the last of {len(by_number)}?",
            f"`classes={last + 1}`: a folder's name is its class's number; `classes=sorted`: its place is",
        )
    place = {name: i for i, name in enumerate(by_number)}
    order = sorted(range(len(tree.files)), key=lambda i: place[tree.folders[i]])
    files, folders = [tree.files[i] for i in order], [tree.folders[i] for i in order]
    return Tree(tree.root, by_number, files, folders, tree.left_out)


def surprising(classes: Sequence[str]) -> str:
    """What a reader of the names would not expect of their order: `class_10` is before `class_2`; "" where there is nothing."""
    if all(map(_is_number, classes)):
        return (
            ""
            if list(classes) == sorted(classes)
            else "by number, where torchvision's ImageFolder has the order of text"
        )
    for have, would in zip(classes, sorted(classes, key=_natural), strict=True):
        if have != would:
            return f"in the order of text, as torchvision's ImageFolder: `{shown(have)}` before `{shown(would)}`"
    return ""


def check_order(tree: Tree) -> None:
    """Raises UserError where numbers alone cannot be given to images that lie flat: their names have more than one order."""
    stems = [_stem(file) for file in tree.files]
    hint = "write lines of `image,number`"
    if all(map(_is_number, stems)):
        for (one, first), (two, second) in pairwise(zip(tree.files, stems, strict=True)):
            if int(first) == int(second):
                message = f"`{shown(str(tree.root))}` has two images of one number: `{shown(one)}` and `{shown(two)}`"
                raise UserError(message, f"remove or rename one, or {hint}")
        return
    # A file manager's order has numbers as numbers, and does not regard capitals.
    for key in (_natural, str.casefold):
        for have, would in zip(tree.files, sorted(tree.files, key=key), strict=True):
            if have != would:
                raise UserError(
                    f"numbers alone do not say which image is the first: in `{shown(str(tree.root))}` as text `{shown(have)}` is before "
                    f"`{shown(would)}`, and for people after it",
                    f"{hint}, or name the images with digits of one length",
                )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which numbers in names are numbers, superscripts and other scripts' too."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFKC", name))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _is_number(name: str) -> bool:
    # Of other scripts' digits, such as ², int() makes no number.
    return name.isascii() and name.isdigit()


def _check_apart(root: Path, real: dict[str, str]) -> None:
    """Raises UserError where one class folder is, or lies in, another: images of two classes."""
    of: dict[str, str] = {}
    for name, path in real.items():
        if path in of:
            message = f"`{shown(of[path])}` and `{shown(name)}` in `{shown(str(root))}` are one folder"
            raise UserError(message, "remove one of the two links: an image has one class")
        of[path] = name
    for path, name in of.items():
        for parent in Path(path).parents:
            if (outer := of.get(str(parent))) is not None:
                message = f"the class `{shown(name)}` in `{shown(str(root))}` lies in the class `{shown(outer)}`"
                raise UserError(message, "move it, or remove the link: an image has one class")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """By name. UserError where it cannot be read: what is in it would be missing in silence."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder `{shown(str(folder))}`: {error.strerror}", HINT) from None


def _walk(tree: Tree, of: str, place: str, walked: set[str], links: deque[tuple[str, str]]) -> None:
    """Adds the images at and below `place` to the class `of`; links to folders are put aside, with their class."""
    for entry in _entries(tree.root / place):
        name = f"{place}/{entry.name}"
        if is_hidden(entry.name):
            tree.leave_out(HIDDEN, name)
        elif not entry.is_dir():
            _take(tree, entry, of, name)
        elif entry.is_symlink():
            links.append((of, name))
        # Behind a link there may be a folder that another link has led to.
        elif (real := os.path.realpath(entry.path)) in walked:
            tree.leave_out(AGAIN, name)
        else:
            walked.add(real)
            _walk(tree, of, name, walked, links)


def _take(tree: Tree, entry: os.DirEntry[str], of: str, name: str, *, beside: bool = False) -> None:
    """Adds one file, or says why not. UserError for an image that is a link to nothing."""
    if not is_picture(entry.name):
        tree.leave_out(OTHER, name)
    elif beside:
        tree.leave_out(BESIDE, name)
    elif entry.is_file():
        tree.files.append(name)
        tree.folders.append(of)
    elif entry.is_symlink():
        message = f"`{shown(entry.path)}` is a link to nothing, or to itself"
        raise UserError(message, "restore what it leads to, or remove it")
    else:
        # Opening a pipe would wait for ever.
        raise UserError(f"`{shown(entry.path)}` is no file", "remove it: it is a pipe, a socket or a device")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(f"`{shown(name)}`" for name in names[:most]) + (", .." if len(names) > most else "")
