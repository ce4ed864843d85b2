"""What an archive holds, under its own name in one step or not at all."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from purebench import assets
from purebench.assets import Part
from purebench.assets.disk import disk_errors
from purebench.assets.ends import opens
from purebench.assets.troubles import SourceFailed
from purebench.errors import DOWNLOAD, UserError

CHUNK = 1 << 20  # bytes
# What the libraries raise for an archive that is damaged, encrypted (RuntimeError) or of a kind that they do not know.
UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error,
    RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError,
)  # fmt: skip
# What the system says of names that an archive holds and that no folder can.
NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.ENOENT}


def unpack(part: Part, proven: bool, pinned: Callable[[], None]) -> None:
    """The archive's contents under their name in one rename; then the archive goes. SourceFailed if it cannot be unpacked.

    proven: its hash is that which its publisher printed; else it has to be whole by all that its own format says. pinned: called once
    everything in it was read, and before it has its name."""
    work = part.beside(".unpacking")
    # What a killed process left is half an archive.
    shutil.rmtree(work, ignore_errors=True)
    try:
        with disk_errors(part.file):
            work.mkdir()
            _extract(part, work, proven)
            found = _wanted(part, work)
            if not assets.holds(found):
                raise SourceFailed("there is nothing in it")
            if wrong := _wrong_inside(part, found):
                raise SourceFailed(f"`{wrong}` in it is missing or another file")
            _bring_linked(found, work)
        pinned()
        with disk_errors(part.file):
            os.replace(found, part.result)
            part.file.unlink()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _wanted(part: Part, work: Path) -> Path:
    """What of the unpacked archive is asked for."""
    name = part.result.name
    # Some archives hold the folder, some hold it one level down, and some are its contents.
    found = next((p for p in (work / name, *sorted(work.glob(f"*/{name}"))) if p.exists()), None)
    if found is None:
        # Of what nobody knows size, hash or contents, the name is all that tells it from another archive.
        if not any(part.facts.get(known) for known in ("size", "inside", *assets.HASHES)):
            raise SourceFailed(f"there is no `{name}` in it")
        found = work
    if not found.is_symlink():
        return found
    # The link alone would lead to nothing once the rest is gone.
    target = found.resolve()
    if not target.is_relative_to(work.resolve()):
        raise SourceFailed(f"`{name}` in it is a link that leaves it")
    return target


def _bring_linked(found: Path, work: Path) -> None:
    """What links in the folder lead to beside it, in their place: the rest of the archive is not kept."""
    inside, top = work.resolve(), found.resolve()
    for link in [path for path in found.rglob("*") if path.is_symlink()]:
        target = link.resolve()
        # A link that leads nowhere does so in the archive too.
        if target.is_relative_to(top) or not target.exists():
            continue
        if not target.is_relative_to(inside) or top.is_relative_to(target):
            raise SourceFailed(f"`{link.relative_to(found)}` in it is a link that leaves it")
        link.unlink()
        if target.is_dir():
            shutil.copytree(target, link, copy_function=os.link)
        else:
            os.link(target, link)


class _Strict(tarfile.TarInfo):
    """The library takes a header that is damaged, or missing, for the end of the archive: only two empty blocks are one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Strict:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError:
            raise tarfile.ReadError("it breaks off between two of its files") from None


def _extract(part: Part, folder: Path, proven: bool) -> None:
    """Into the folder: a tar (compressed or not), a zip, or one compressed file, by what it is and not by what it is called."""
    try:
        if _is_tar(part.file):
            _untar(part.file, folder, proven)
        elif zipfile.is_zipfile(part.file):
            _unzip(part.file, folder, proven)
        else:
            _decompress(part.file, folder / part.result.name, proven)
    except UNREADABLE as error:
        raise SourceFailed(f"it cannot be unpacked: {error or type(error).__name__}") from None
    except OSError as error:
        if error.errno is not None and error.errno not in NAMES:
            raise
        what = f"{error.strerror}: `{Path(str(error.filename)).name[:60]}`" if error.errno else str(error)
        raise SourceFailed(f"it cannot be unpacked: {what}") from None


def _is_tar(path: Path) -> bool:
    """Whether it is one with anything in it: the library takes every file that begins with zeros for an empty one."""
    try:
        with tarfile.open(path) as tar:
            return tar.next() is not None
    # Broken later on, it is still one.
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError):
        return False


def _untar(path: Path, folder: Path, proven: bool) -> None:
    with tarfile.open(path, tarinfo=tarfile.TarInfo if proven else _Strict) as tar:
        # Nothing outside the folder, no devices, no links that leave it: archives come from the network.
        tar.extractall(folder, filter="data")
        if proven:
            return
        _check_names(member.name for member in tar.getmembers() if not member.isdir())
        # What its compression says of its bytes stands behind the tar's own end, where the library does not read.
        _drain(tar.fileobj)


def _unzip(path: Path, folder: Path, proven: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not proven:
            _check_names(member.filename for member in members if not member.is_dir())
        links = []
        for member in members:
            written = Path(archive.extract(member, folder))
            if stat.S_ISLNK(member.external_attr >> 16):
                links.append(written)
    # The library writes a link as a file that holds its target's name.
    for link in links:
        target = link.read_text(encoding="utf-8")
        if not (link.parent / target).resolve().is_relative_to(folder.resolve()):
            raise SourceFailed(f"`{link.relative_to(folder)}` in it is a link that leaves it")
        link.unlink()
        link.symlink_to(target)


def _decompress(path: Path, result: Path, proven: bool) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    opener = opens(head)
    if opener is None:
        raise SourceFailed("it is no archive that can be unpacked here, or a damaged one")
    with opener(path) as packed, result.open("wb") as file:
        shutil.copyfileobj(packed, file, CHUNK)
    if not proven and still_compressed(result):
        raise SourceFailed("what is in it is compressed once more")


def still_compressed(path: Path) -> bool:
    """Whether a file that was unpacked, or is named like one, begins as a compressed one does: servers compress what is compressed."""
    with path.open("rb") as file:
        return opens(file.read(8)) is not None


def twice_compressed(path: Path) -> bool:
    """The same of what a compressed file holds."""
    with path.open("rb") as file:
        opener = opens(file.read(8))
    if opener is None:
        return False
    try:
        with opener(path) as packed:
            return opens(packed.read(8)) is not None
    except (EOFError, zlib.error, lzma.LZMAError, OSError):
        return False


def _drain(file: IO[bytes] | Any) -> None:
    while file.read(CHUNK):
        pass


def _check_names(names: Iterable[str]) -> None:
    """SourceFailed if two files of an archive have one name once it is unpacked: the last would win, unsaid."""
    seen: set[PurePosixPath] = set()
    for name in names:
        # As the libraries write them: below the folder, whatever they begin with.
        place = PurePosixPath(*[piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".", "..")])
        if place in seen:
            raise SourceFailed(f"`{place}` is in it twice")
        seen.add(place)


def check_contents(part: Part, folder: Path) -> None:
    """UserError unless the files that the registry knows inside an archive are there, byte for byte."""
    if name := _wrong_inside(part, folder):
        raise UserError(
            f"`{part.result}` is not `{part.label}`: `{name}` in it is missing or another file",
            f"move `{part.result}` away, then `purebench fetch {part.asset}`",
            DOWNLOAD,
        )


def _wrong_inside(part: Part, folder: Path) -> str:
    """The first file that is missing or another one than the registry knows inside the archive; ""."""
    for name, expected in part.facts.get("inside", {}).items():
        file = folder / name
        if not file.is_file() or assets.md5(file) != expected:
            return str(name)
    return ""
