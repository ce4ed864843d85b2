"""The files of `purebench purify`: none takes the place of one that it did not make.

What it made is written in a text chunk of the side-by-side picture: the names, each with the hash of its content. So a file that was
edited since, or put there under such a name, is the user's."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from purebench import atomic
from purebench.errors import UserError

SHEET = "side-by-side.png"
KEY = "purebench purify"  # of the text chunk


class Names:
    """Names that were not taken: on many disks `A.png` and `a.png` are one file."""

    def __init__(self) -> None:
        self.taken = {SHEET}

    def free(self, stem: str, ends: Sequence[str], number: int) -> list[str]:
        """One name for each of the ends, from one stem: the file's, or with its number where there was one of this name."""
        names = [stem + end for end in ends]
        while self.taken & {name.lower() for name in names}:
            stem = f"{stem}-{number}"
            names = [stem + end for end in ends]
        self.taken |= {name.lower() for name in names}
        return names


def check(out: Path, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raises UserError where a file stands under one of the names that is an input or was not made here, and where nothing can be
    written."""
    above = next(place for place in (out, *out.absolute().parents) if os.path.lexists(place))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"nothing can be written to `{out}`", "name another folder: `--out purified`")
    made, read = _made(out), {path.resolve() for path in inputs}
    for name in names:
        place = out / name
        if os.path.lexists(place) and (place.resolve() in read or _hash(place) not in made.get(name, ())):
            whose = "is one of the inputs" if place.resolve() in read else "is there, and was not made by `purify`"
            raise UserError(f"`{place}` {whose}: it would be overwritten", "name another folder: `--out purified-2`")


def write(out: Path, sheet: Image.Image, files: Mapping[str, bytes]) -> None:
    """The files, each whole or not at all, and the sheet with their hashes, and of those of before."""
    out.mkdir(parents=True, exist_ok=True)
    made = _made(out)
    for name, content in files.items():
        # The one of before too: should the process die between here and there, it is still ours.
        made[name] = [hashlib.sha256(content).hexdigest(), *([_hash(out / name)] if name in made else [])]
    told = PngInfo()
    told.add_text(KEY, json.dumps(made | {SHEET: [_pixels(sheet)]}))
    for name, content in {SHEET: png(sheet, told), **files}.items():
        with atomic.replacing(out / name) as temporary:
            temporary.write_bytes(content)


def png(image: Image.Image, told: PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=told)
    return file.getvalue()


def array(x: Tensor, end: str) -> bytes:
    """A float32 tensor as the content of a file `.npy` or `.pt`."""
    file = io.BytesIO()
    if end == ".pt":
        torch.save(x.cpu().contiguous().clone(), file)
    else:
        np.save(file, x.cpu().numpy())
    return file.getvalue()


def _made(out: Path) -> dict[str, list[str]]:
    """name -> hashes of what was made in the folder under it; empty where its sheet is not one of ours, or not as it was made."""
    try:
        with Image.open(out / SHEET) as sheet:
            made = json.loads(sheet.text[KEY])  # type: ignore[attr-defined]
            # It cannot hold its own hash: it is known by its pixels.
            return made | {SHEET: [_hash(out / SHEET)]} if made[SHEET] == [_pixels(sheet)] else {}
    # What Pillow says of a file that is not there or no picture, and what a PNG of others has not.
    except (OSError, SyntaxError, ValueError, AttributeError, KeyError, TypeError, Image.DecompressionBombError):
        return {}


def _hash(place: Path) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() and not place.is_symlink() else ""


def _pixels(sheet: Image.Image) -> str:
    return hashlib.sha256(repr(sheet.size).encode() + sheet.tobytes()).hexdigest()
