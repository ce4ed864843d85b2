"""`purebench fetch`: brings files of `checkpoints.toml` into the cache, resumed where they stopped and verified before they count.

    <file>.part, .part.json   what has come so far, and from where; deleted when the whole file turns out to be wrong
    <file>.lock.json          sha256, size, source and time of the verified file: the pin where nobody published a hash
    <file>.lock               held by the one process that works on the file

Nothing has the file's own name, or its folder's if it is an archive, before it is verified.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from purebench import assets, atomic
from purebench.assets import Part, bytes_text
from purebench.assets.bars import Show
from purebench.assets.download import (
    CHUNK,
    SourceFailed,
    discard,
    disk_errors,
    download,
    free_bytes,
    require_space,
    resumable,
    size_of,
)
from purebench.errors import DOWNLOAD, UserError, unknown

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
TORCH = (b"PK\x03\x04", b"\x80")  # how torch's files and pickles begin


# ------------------------------------------------------------------------------------------------ what, and from where


def wanted(names: Iterable[str]) -> list[str]:
    """The assets that the names of assets, datasets and papers mean; UserError for a name that is none."""
    sets, table = assets.sets(), assets.table()
    found: dict[str, None] = {}
    for name in names:
        if name not in table and name not in sets:
            raise unknown("asset, dataset or paper", name, [*sets, *table], "purebench fetch --list")
        found |= dict.fromkeys(sets.get(name, [name]) if name not in table else [name])
    return list(found)


def plan(names: Iterable[str]) -> list[dict[str, str]]:
    """One row per asset: what it costs in bytes and obligations, whether it is there, where it comes from and goes to."""
    rows = []
    for name in wanted(names):
        facts, found = assets.entry(name), assets.parts(name)
        usable = [s for part in found for s in sources(part)]
        states = {"ships with purebench": "package" in facts.get("sources", ()), "never released": not found}
        states |= {"present": assets.present(name), "by hand": not any(map(automatic, usable)), "to fetch": True}
        origin = sorted(usable, key=lambda s: not automatic(s))[0] if usable else {}
        rows.append(
            {
                "asset": name, "size": assets.size_text(found[0].facts if len(found) == 1 else facts),
                "licence": facts["licence"], "trust": facts["trust"],
                "state": next(s for s, holds in states.items() if holds),
                "from": urlsplit(browser(origin, found[0].file.name)).hostname or "" if origin else "",
                "to": str(assets.path(name)) if found else "",
            }
        )  # fmt: skip
    return rows


def download_text(names: Iterable[str]) -> str:
    """`to download: 1.71 GB and 2 files of unknown size; 69 GB are free`."""
    found = [p for name in wanted(names) if not assets.override(name) for p in assets.parts(name) if not p.whole()]
    sizes = [p.facts.get("size") or p.facts.get("about") or 0 for p in found if any(map(automatic, sources(p)))]
    unknown_ones = f" and {sizes.count(0)} files of unknown size" if 0 in sizes else ""
    return (
        f"to download: {bytes_text(sum(sizes))}{unknown_ones}; {bytes_text(free_bytes(assets.cache_folder()))} are free"
    )


def sources(part: Part) -> list[dict[str, str]]:
    """Where it may come from, in order, without what is known to be dead or another file."""
    return [s for s in part.facts.get("sources", []) if s.get("status") not in ("dead", "other")]


def automatic(source: dict[str, str]) -> bool:
    """Whether a program can download from it; the others are for a person in a browser."""
    return not {"gdrive-folder", "manual"} & set(source)


def address(source: dict[str, str], file: str) -> str:
    """The URL that a source's file is downloaded from."""
    match source:
        case {"http": url}:
            return url + file if url.endswith("/") else url
        case {"gdrive": key}:
            return DRIVE.format(key)
        case {"hf": repo}:
            return f"https://huggingface.co/{repo}/resolve/{source.get('revision', 'main')}/{source.get('file', file)}"
        case {"zenodo": record}:
            return f"https://zenodo.org/records/{record}/files/{source.get('file', file)}?download=1"
        case {"github": repo, "tag": tag}:
            return f"https://github.com/{repo}/releases/download/{tag}/{source.get('file', file)}"
    raise UserError(f"no known kind of source: {source}", f"mend `{assets.registry_file()}`")


def browser(source: dict[str, str], file: str) -> str:
    """The URL for a person's browser."""
    match source:
        case {"gdrive": key}:
            return f"https://drive.google.com/file/d/{key}/view"
        case {"gdrive-folder": key}:
            return f"https://drive.google.com/drive/folders/{key}"
        case {"manual": url}:
            return url
    return address(source, file)


def by_hand(part: Part) -> str:
    """What a person can do: where to click and where to put it."""
    urls = [browser(s, part.file.name) for s in sources(part)]
    where = f"open {' or '.join(urls)} in a browser" if urls else "find the file"
    if "by_hand" in part.facts:
        return f"{where}, {part.facts['by_hand']}, below `{part.file}` or wherever {assets.variable(part.asset)} says"
    return f"{where}, then `purebench fetch {part.asset} --from FILE`; it goes to `{part.file}`"


# ----------------------------------------------------------------------------------------------------------- the whole


def fetch(
    names: Iterable[str],
    *,
    offline: bool = False,
    given: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    show: Show | None = None,
) -> tuple[list[dict[str, str]], list[UserError]]:
    """Brings the assets: a row (asset, state, size, sha256, path) each, and what went wrong; one failure does not stop the others.

    offline: opens no connection. given: a file to take instead of downloading. UserError: unknown names; no space at all."""
    show, rows, errors = show or Show(), [], []
    names = wanted(names)
    pieces = [part for name in names if not assets.override(name) for part in assets.parts(name)]
    if given:
        pieces = [part_given(pieces, given)]
        names = [pieces[0].asset]
    elif not offline:
        missing = [p for p in pieces if not p.whole() and any(map(automatic, sources(p)))]
        require_space(assets.cache_folder(), sum(_disk_needed(p) - size_of(p.beside(".part")) for p in missing))
    for name in names:
        state = "present"
        try:
            if "package" in assets.entry(name).get("sources", ()) or assets.override(name):
                assets.need(name)
            elif not assets.parts(name):
                raise assets.unreleased(name)
            for part in [p for p in pieces if p.asset == assets.entry(name).get("same_as", name)]:
                if fetch_part(part, offline=offline, given=given, sleep=sleep, show=show):
                    state = "fetched"
        except UserError as error:
            errors.append(error)
            state = "failed"
        finally:
            show.stop()
        where = assets.path(name) if state != "failed" else None
        size = bytes_text(where.stat().st_size) if where and where.is_file() else ""
        rows.append(
            {"asset": name, "state": state, "size": size, "sha256": assets.digest(name), "path": str(where or "")}
        )
    return rows, errors


def part_given(pieces: list[Part], given: Path) -> Part:
    """The one file that `--from` brings."""
    if not given.is_file():
        what = "is a folder" if given.is_dir() else "does not exist"
        raise UserError(f"`--from {given}` {what}", "it takes the downloaded file, archives as they are")
    if len(pieces) > 1:
        pieces = [p for p in pieces if p.file.name == given.name]
    if len(pieces) != 1 or "by_hand" in pieces[0].facts:
        raise UserError(
            f"`--from {given}` brings one file, and it is not clear which", "name one asset; keep its files' own names"
        )
    return pieces[0]


def fetch_part(part: Part, *, offline: bool, given: Path | None, sleep: Callable[[float], None], show: Show) -> bool:
    """True if the file was brought, False if it was there. UserError (exit 3) with every source and why it failed."""
    if not given and part.lock() and part.whole():
        return False
    missing = f"`{part.label}` is not in the cache, and `--offline` opens no connection"
    if offline and not given and not part.whole() and not part.file.exists():
        raise UserError(missing, by_hand(part), DOWNLOAD)
    if "by_hand" in part.facts:
        if part.whole():
            return False
        raise UserError(f"`{part.label}` cannot be fetched: {part.facts['summary']}", by_hand(part), DOWNLOAD)
    with disk_errors(part.file):
        part.file.parent.mkdir(parents=True, exist_ok=True)
    with locked(part, show):
        if given and (part.result == part.file or not part.whole()):
            copy_given(part, given)
            return True
        if already_there(part, show):
            return False
        if offline:
            raise UserError(missing, by_hand(part), DOWNLOAD)
        failures = []
        for source in filter(automatic, sources(part)):
            url = address(source, part.file.name)
            try:
                download_verified(part, url, drive="gdrive" in source, sleep=sleep, show=show)
                return True
            except SourceFailed as why:
                failures.append(f"\n  {browser(source, part.file.name)}: {why}")
                show.say(f"`{part.label}`: {urlsplit(url).hostname}: {why}")
            except KeyboardInterrupt:
                kept = size_of(part.beside(".part"))
                show.say(f"kept {bytes_text(kept)} of `{part.label}`; the same command goes on from there")
                raise
    reasons = "".join(failures) or " no source of it can be downloaded from by a program"
    raise UserError(f"could not fetch `{part.label}`:{reasons}", by_hand(part), DOWNLOAD)


def already_there(part: Part, show: Show) -> bool:
    """Whether the file is there and good. One without a lock file is verified here; a bad one is renamed to `.bad`."""
    if part.file.is_file():
        try:
            if not (part.lock() and size_of(part.file) == part.lock()["size"]):
                pin(part, verify(part, part.file), part.file, "found in the cache")
            if part.result != part.file and not part.whole():
                unpack(part)
            return True
        except SourceFailed as why:
            show.say(f"`{part.file}` is not `{part.label}`: {why}; it is now `{part.file.name}.bad`")
            with disk_errors(part.file):
                os.replace(part.file, part.beside(".bad"))
    if part.result == part.file or not part.whole():
        return False
    if not part.lock():
        check_contents(part, part.result)
    return True


@contextlib.contextmanager
def locked(part: Part, show: Show) -> Iterator[None]:
    """Holds the lock of one file; waits while another process has it."""
    import filelock

    lock = filelock.FileLock(str(part.beside(".lock")))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        show.say(f"another process works on `{part.label}`: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def download_verified(part: Part, url: str, *, drive: bool, sleep: Callable[[float], None], show: Show) -> None:
    """The file from one URL, verified and in its place. SourceFailed if that cannot be; a wrong file is gone then."""
    temporary = part.beside(".part")
    show.start(part.label)
    while True:
        resumed = resumable(part, url)[0] > 0
        download(part, url, drive=drive, sleep=sleep, show=show)
        try:
            accept(part, temporary, url)
            return
        except SourceFailed as why:
            discard(part)
            if not resumed:  # else what came before may have been wrong, and this source is good
                raise
            show.say(f"`{part.label}`: {why}; once more from the beginning")


# ------------------------------------------------------------------------------------------------------------ the file


def copy_given(part: Part, given: Path) -> None:
    """`--from FILE`: a copy of it, verified, in its place; UserError if it is another file."""
    temporary = part.beside(".from")
    require_space(part.file.parent, _disk_needed(part, given.stat().st_size), part)
    try:
        with disk_errors(part.file):
            shutil.copyfile(given, temporary)
        accept(part, temporary, str(given.absolute()))
    except SourceFailed as why:
        raise UserError(f"`{given}` is not `{part.label}`: {why}", by_hand(part), DOWNLOAD) from None
    finally:
        temporary.unlink(missing_ok=True)


def accept(part: Part, temporary: Path, source: str) -> None:
    """Verifies the file, pins its hash, renames it to its name, unpacks it. SourceFailed if it is a wrong one."""
    found = verify(part, temporary)
    with disk_errors(part.file):
        atomic.sync(temporary)
    pin(part, found, temporary, source)
    with disk_errors(part.file):
        os.replace(temporary, part.file)
        discard(part)
    if part.result != part.file:
        unpack(part)


def verify(part: Part, path: Path) -> str:
    """The sha256 of a file that has the size, the hashes and the first bytes that it must have; SourceFailed if it has not."""
    facts, lock = part.facts, part.lock()
    if why := assets.wrong_bytes(path):
        raise SourceFailed(why)
    if facts.get("size") and size_of(path) != facts["size"]:
        raise SourceFailed(f"it has {size_of(path):,} bytes, not {facts['size']:,}")
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        while piece := file.read(CHUNK):
            for digest in hashes.values():
                digest.update(piece)
    for kind in assets.HASHES:
        expected = facts.get(kind, "")
        got = hashes[kind.removesuffix("-prefix")].hexdigest()
        if expected and not (got.startswith(expected) if kind == "sha256-prefix" else got == expected):
            raise SourceFailed(f"its {kind} is {got[:12]}.., not {expected[:12]}.. (trust: {facts['trust']})")
    got = hashes["sha256"].hexdigest()
    if not facts.get("sha256") and not facts.get("md5"):
        if lock and lock["sha256"] != got:
            raise SourceFailed(
                f"its sha256 is {got[:12]}.., but {lock['sha256'][:12]}.. was pinned when it first came ({lock.get('when', '?')}, "
                f"{lock.get('source', '?')}); if the publisher has replaced it, delete `{part.beside('.lock.json')}`"
            )
        network = facts.get("kind") in ("score", "classifier") and part.result == part.file
        if network and facts.get("format") != "safetensors" and not head.startswith(TORCH):
            raise SourceFailed("it is no file of torch's: neither a zip nor a pickle")
    return got


def pin(part: Part, sha256: str, path: Path, source: str) -> None:
    """Writes `.lock.json`, before the file has its name: a kill in between leaves a pin and no file."""
    published = any(part.facts.get(kind) for kind in assets.HASHES)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"sha256": sha256, "size": size_of(path), "source": source, "when": now}
    facts["trust"] = part.facts["trust"] if published else "first-use"
    with disk_errors(part.file):
        atomic.replace(part.beside(".lock.json"), json.dumps(facts, indent=1) + "\n")


def unpack(part: Part) -> None:
    """The archive's contents under their name in one rename; then the archive goes. UserError if it cannot be unpacked."""
    work = part.beside(".unpacking")
    shutil.rmtree(work, ignore_errors=True)
    try:
        with disk_errors(part.file):
            work.mkdir()
            if tarfile.is_tarfile(part.file):
                with tarfile.open(part.file) as tar:
                    tar.extractall(work, filter="data")
            elif zipfile.is_zipfile(part.file):
                with zipfile.ZipFile(part.file) as archive:
                    archive.extractall(work)
            else:
                with gzip.open(part.file) as packed, (work / part.result.name).open("wb") as file:
                    shutil.copyfileobj(packed, file, CHUNK)
            name = part.result.name
            found = next((p for p in (work / name, *sorted(work.glob(f"*/{name}"))) if p.exists()), work)
            check_contents(part, found)
            os.replace(found, part.result)
        part.file.unlink()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error) as error:
        part.file.unlink()
        raise UserError(f"`{part.label}` cannot be unpacked: {error}", by_hand(part), DOWNLOAD) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_contents(part: Part, folder: Path) -> None:
    """UserError unless the files that the registry knows inside an archive are there, byte for byte."""
    for name, expected in part.facts.get("inside", {}).items():
        file = folder / name
        if not file.is_file() or hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != expected:
            raise UserError(
                f"`{part.result}` is not `{part.label}`: `{name}` in it is missing or another file",
                f"move `{part.result}` away, then `purebench fetch {part.asset}`",
                DOWNLOAD,
            )


def _disk_needed(part: Part, size: int = 0) -> int:
    """Bytes on disk while it is fetched: archives are there twice for a moment."""
    size = size or part.facts.get("size") or part.facts.get("about") or 0
    return size * (1 if part.result == part.file else 2)
