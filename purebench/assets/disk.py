"""The disk that files are downloaded to: is there room, and what is said when there is none."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from purebench.assets import Part, bytes_text
from purebench.errors import DOWNLOAD, UserError

PARTS = ((".part", ".part.aside"), (".part.json", ".part.json.aside"))  # what comes now, and what waits for its source


def discard(part: Part) -> None:
    """Forgets what has come so far, but for what was set aside."""
    for current, _ in PARTS:
        part.beside(current).unlink(missing_ok=True)


def forget(part: Part) -> None:
    """Forgets all of it."""
    discard(part)
    for _, aside in PARTS:
        part.beside(aside).unlink(missing_ok=True)


def set_aside(part: Part) -> None:
    """What came of one source is kept, while another one has another file; of two the longer."""
    if size_of(part.beside(".part")) > size_of(part.beside(".part.aside")):
        for current, aside in PARTS:
            os.replace(part.beside(current), part.beside(aside))
    discard(part)


def take_back(part: Part) -> None:
    """What was set aside, in the place of less."""
    if size_of(part.beside(".part.aside")) > size_of(part.beside(".part")):
        for current, aside in PARTS:
            os.replace(part.beside(aside), part.beside(current))


def take_own(part: Part, url: str, apart: bool) -> None:
    """What was set aside in the place of what came from elsewhere, if it is of this source. apart: else none."""
    now = came_from(part.beside(".part.json"))
    if came_from(part.beside(".part.json.aside")) != url or now == url:
        if apart and now not in ("", url):
            set_aside(part)
        return
    for current, aside in PARTS:
        between = part.beside(".part.swapped")
        if part.beside(current).exists():
            os.replace(part.beside(current), between)
        os.replace(part.beside(aside), part.beside(current))
        if between.exists():
            os.replace(between, part.beside(aside))


def came_from(note: Path) -> str:
    """The URL in a `.part.json`; "" if there is none."""
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def require_space(folder: Path, needed: int, part: Part | None = None) -> None:
    """UserError (exit 3) unless the disk has the bytes and 5 % more."""
    # A disk that is filled to its last byte stops whatever else writes on it.
    if needed * 1.05 > free_bytes(folder):
        why = f"{bytes_text(needed * 1.05)} are needed below `{folder}`, {bytes_text(free_bytes(folder))} are free"
        raise no_space(why, part)


def free_bytes(folder: Path) -> int:
    """Bytes free where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def no_space(why: str, part: Part | None) -> UserError:
    """The error of a disk without space; what has come of `part` is named as kept."""
    have = size_of(part.beside(".part")) if part else 0
    kept = f"; {bytes_text(have)} of `{part.label}` came and are kept" if part and have else ""
    return UserError(
        f"no space: {why}{kept}",
        "free some, and the same command goes on; or move the cache to a larger disk and set PUREBENCH_CACHE (an empty one starts over)",
        DOWNLOAD,
    )


@contextlib.contextmanager
def disk_errors(path: Path, part: Part | None = None) -> Iterator[None]:
    """A full or read-only disk is a UserError; `.part` is kept, and said to be if `part` is given."""
    try:
        yield
    except OSError as error:
        # An OSError too, but of what is read (a compressed file's), not of the disk.
        if error.errno is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(f"`{path.parent}` is full", part) from None
        where = error.filename2 or error.filename or path.parent
        raise UserError(
            f"cannot read or write `{where}`: {error.strerror}", "mend it, or set PUREBENCH_CACHE", DOWNLOAD
        ) from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """A file of the user's that cannot be read is a UserError, and not the cache's fault."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read `{path}`: {error.strerror or error}", "mend it, or copy it elsewhere", DOWNLOAD
        ) from None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def write(file: io.FileIO, piece: bytes) -> None:
    """All of the piece: an unbuffered write may take less than it is given."""
    while piece:
        piece = piece[file.write(piece) :]
