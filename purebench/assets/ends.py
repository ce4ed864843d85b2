"""Whether a file is whole by what its own format says: of a cut one without hash and length nothing else tells."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import mmap
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 1 << 20  # bytes
# How a compressed file begins, and what opens it.
OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def at_end(path: Path) -> bool | None:
    """True: the file's format says that it ends here. False: it is cut short or damaged. None: the format does not say.

    zip (torch's files), pickle, torch's files before zip, gzip, bzip2, xz, tar, safetensors, Parquet. Reads all of it, but of a zip."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head.startswith(b"\x80"):
        return _pickle(path, size)
    if opener := opens(head):
        return _stream(path, opener)
    if head.startswith(b"PAR1"):
        return _tail(path, 4) == b"PAR1" and size > 12
    if head[257:262] == b"ustar":
        # Behind the two empty blocks that end it most fill up a record: of what is cut there nothing is missing but that.
        ended = size % 512 == 0 and _tail(path, 1024) == bytes(1024)
        return (True if size % 10240 == 0 else None) if ended else False
    if head[8:10] == b'{"':
        return _safetensors(path, size)
    return None


def opens(head: bytes) -> Callable[..., Any] | None:
    """What opens a compressed file that begins so; None of others."""
    return next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(count, path.stat().st_size), os.SEEK_END)
        return file.read()


def _zip(path: Path) -> bool | None:
    """Its directory is its end; what stands before the first entry belongs to another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return min((entry.header_offset for entry in archive.infolist()), default=0) == 0
    # Of a version that is not known here.
    except NotImplementedError:
        return None
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, LookupError, OverflowError):
        return False


def _pickle(path: Path, size: int) -> bool | None:
    """Its opcodes up to STOP. Only looked at: nothing is made of them."""
    with path.open("rb") as file:
        try:
            for _ in pickletools.genops(file):
                pass
        # pickletools raises ValueError; a length that no memory holds is one that no file has.
        except (ValueError, MemoryError, OverflowError, struct.error, UnicodeError):
            return False
        if file.tell() == size:
            return True
    return _legacy(path, size)


def _legacy(path: Path, size: int) -> bool | None:
    """Torch's files before zip: pickles, and behind them each storage as its length and its values."""
    from purebench.assets import unpickle

    storages: dict[str, unpickle.Storage] = {}

    def noted(pid: object) -> unpickle.Storage:
        found = unpickle.storage_id(pid)
        storages[found.key] = found
        return found

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        try:
            _, keys = unpickle.legacy(stream, unpickle.PLAIN, noted)
            end = stream.tell() + sum(8 + storages[key].nbytes for key in keys)
        # Another kind of file, or one that asks for more than data: of its end nothing is known.
        except (unpickle.Refused, unpickle.Broken, KeyError, TypeError, ValueError):
            return None
    return end == size


def _stream(path: Path, opener: Callable[..., Any]) -> bool:
    """Its end is the check sum of what it holds."""
    try:
        with opener(path) as packed:
            while packed.read(CHUNK):
                pass
        return True
    except (EOFError, zlib.error, lzma.LZMAError, OSError):
        return False


def _safetensors(path: Path, size: int) -> bool | None:
    """Its header says where the last tensor ends."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, 100 * CHUNK):
            return None
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0) == size
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
