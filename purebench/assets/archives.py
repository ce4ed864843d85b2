"""What an archive holds, under its own name in one step or not at all."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from purebench import assets
from purebench.assets import Part
from purebench.assets.disk import disk_errors
from purebench.assets.troubles import SourceFailed
from purebench.errors import DOWNLOAD, UserError

CHUNK = 1 << 20  # bytes


def unpack(part: Part) -> None:
    """The archive's contents under their name in one rename; then the archive goes. SourceFailed if it cannot be unpacked."""
    work = part.beside(".unpacking")
    # What a killed process left is half an archive.
    shutil.rmtree(work, ignore_errors=True)
    try:
        with disk_errors(part.file):
            work.mkdir()
            _extract(part, work)
            name = part.result.name
            # Some archives hold the folder, some hold it one level down, and some are its contents.
            found = next((p for p in (work / name, *sorted(work.glob(f"*/{name}"))) if p.exists()), None)
            if found is None:
                # Of what nobody knows size, hash or contents, the name is all that tells it from another archive.
                if not any(part.facts.get(known) for known in ("size", "inside", *assets.HASHES)):
                    raise SourceFailed(f"there is no `{name}` in it")
                found = work
            if not any(p.is_file() and p.stat().st_size for p in (found, *found.rglob("*"))):
                raise SourceFailed("there is nothing in it")
            if wrong := _wrong_inside(part, found):
                raise SourceFailed(f"`{wrong}` in it is missing or another file")
            os.replace(found, part.result)
        part.file.unlink()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceFailed(f"it cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(part: Part, folder: Path) -> None:
    """Into the folder: a tar (compressed or not), a zip, or one gzipped file, by what it is and not by what it is called."""
    if tarfile.is_tarfile(part.file):
        with tarfile.open(part.file) as tar:
            # Nothing outside the folder, no devices, no links that leave it: archives come from the network.
            tar.extractall(folder, filter="data")
    elif zipfile.is_zipfile(part.file):
        with zipfile.ZipFile(part.file) as archive:
            archive.extractall(folder)
    else:
        with gzip.open(part.file) as packed, (folder / part.result.name).open("wb") as file:
            shutil.copyfileobj(packed, file, CHUNK)


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
