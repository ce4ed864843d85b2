"""`purebench fetch`: brings files of `checkpoints.toml` into the cache, resumed where they stopped and verified before they count.

    <file>.part, .part.json   what has come so far, and from where; deleted when the whole file turns out to be wrong
    <file>.lock.json          sha256, size, source and time of the verified file: the pin where nobody published a hash
    <file>.lock               held by the one process that works on the file

Nothing has the file's own name, or its folder's if it is an archive, before it is verified.
"""

from __future__ import annotations

import contextlib
import gzip
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
from purebench.assets import Entry, Part, bytes_text
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

# `confirm=t` passes over the page that says that a file is too large to be scanned; where Drive shows it still, `download` answers it.
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
TORCH = (b"PK\x03\x04", b"\x80")  # how torch's files and pickles begin


# ------------------------------------------------------------------------------------------------ what, and from where


def wanted(names: Iterable[str]) -> list[str]:
    """The assets that the names of assets, datasets and papers mean; UserError for a name that is none."""
    sets, table = assets.sets(), assets.table()
    # A dictionary and no set: the assets come in the order in which they were asked for.
    found: dict[str, None] = {}
    for name in names:
        if name not in table and name not in sets:
            raise unknown("asset, dataset or paper", name, [*sets, *table], "purebench fetch --list")
        found |= dict.fromkeys([name] if name in table else sets[name])
    return list(found)


def plan(names: Iterable[str]) -> list[dict[str, str]]:
    """One row per asset: what it costs in bytes and obligations, whether it is there, where it comes from and goes to."""
    rows = []
    for name in wanted(names):
        facts, found = assets.entry(name), assets.parts(name)
        usable = [source for part in found for source in sources(part)]
        origin = min(usable, key=lambda source: not automatic(source), default={})
        rows.append(
            {
                "asset": name,
                "size": assets.size_text(found[0].facts if len(found) == 1 else facts),
                "licence": facts["licence"],
                "trust": facts["trust"],
                "state": _state(name, found, usable),
                "from": urlsplit(browser(origin, found[0].file.name)).hostname or "" if origin else "",
                "to": str(assets.path(name)) if found else "",
            }
        )
    return rows


def _state(name: str, found: list[Part], usable: list[dict[str, str]]) -> str:
    """What `plan` says of an asset: in what way it is there, or how it could come."""
    if assets.ships(name):
        return "ships with purebench"
    if not found:
        return "never released"
    if assets.present(name):
        return "present"
    return "to fetch" if any(map(automatic, usable)) else "by hand"


def download_text(names: Iterable[str]) -> str:
    """`to download: 1.71 GB and 2 files of unknown size; 69 GB are free`."""
    sizes = [_expected_size(part) for part in _to_download(_pieces(wanted(names)))]
    unknown_ones = f" and {sizes.count(0)} files of unknown size" if 0 in sizes else ""
    free = bytes_text(free_bytes(assets.cache_folder()))
    return f"to download: {bytes_text(sum(sizes))}{unknown_ones}; {free} are free"


def _pieces(names: list[str]) -> list[Part]:
    """The files of the assets, without those that the user keeps elsewhere."""
    return [part for name in names if not assets.override(name) for part in assets.parts(name)]


def _to_download(pieces: list[Part]) -> list[Part]:
    """Those that are not there and that a program can bring."""
    return [part for part in pieces if not part.whole() and any(map(automatic, sources(part)))]


def _expected_size(part: Part) -> int:
    """Bytes, as far as the registry knows; 0 where it does not."""
    return part.facts.get("size") or part.facts.get("about") or 0


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
            # Where a quota is used up for programs, a browser that is logged in may still get the file.
            return f"https://drive.google.com/file/d/{key}/view"
        case {"gdrive-folder": key}:
            return f"https://drive.google.com/drive/folders/{key}"
        case {"manual": url}:
            return url
    return address(source, file)


def by_hand(part: Part) -> str:
    """What a person can do: where to click and where to put it."""
    urls = [browser(source, part.file.name) for source in sources(part)]
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
    pieces = _pieces(names)
    if given:
        pieces = [part_given(pieces, given)]
        names = [pieces[0].asset]
    elif not offline:
        # The sum over all files: each alone may find the space that the next one needs, and hours would pass before that is known.
        missing = _to_download(pieces)
        require_space(assets.cache_folder(), sum(_disk_needed(p) - size_of(p.beside(".part")) for p in missing))
    for name in names:
        own = [part for part in pieces if part.asset == assets.entry(name).get("same_as", name)]
        try:
            state = "fetched" if _fetch_asset(name, own, offline, given, sleep, show) else "present"
        except UserError as error:
            errors.append(error)
            state = "failed"
        finally:
            show.stop()
        # A failed asset may have no path: one that was never released.
        where = assets.path(name) if state != "failed" else None
        size = bytes_text(where.stat().st_size) if where and where.is_file() else ""
        rows.append(
            {"asset": name, "state": state, "size": size, "sha256": assets.digest(name), "path": str(where or "")}
        )
    return rows, errors


def _fetch_asset(
    name: str, pieces: list[Part], offline: bool, given: Path | None, sleep: Callable[[float], None], show: Show
) -> bool:
    """Whether any file of the asset was brought. UserError if one cannot be, or if nobody can get the asset."""
    if assets.ships(name) or assets.override(name):
        assets.need(name)
        return False
    if not assets.parts(name):
        raise assets.unreleased(name)
    # All of them before any is looked at: `any` over a generator would end with the first file that was brought.
    brought = [fetch_part(part, offline=offline, given=given, sleep=sleep, show=show) for part in pieces]
    return any(brought)


def part_given(pieces: list[Part], given: Path) -> Part:
    """The one file that `--from` brings."""
    if not given.is_file():
        what = "is a folder" if given.is_dir() else "does not exist"
        raise UserError(f"`--from {given}` {what}", "it takes the downloaded file, archives as they are")
    # Of several files the name decides; of one it does not matter, since browsers rename what they download.
    if len(pieces) > 1:
        pieces = [part for part in pieces if part.file.name == given.name]
    if len(pieces) != 1 or "by_hand" in pieces[0].facts:
        raise UserError(
            f"`--from {given}` brings one file, and it is not clear which", "name one asset; keep its files' own names"
        )
    return pieces[0]


def fetch_part(part: Part, *, offline: bool, given: Path | None, sleep: Callable[[float], None], show: Show) -> bool:
    """True if the file was brought, False if it was there. UserError (exit 3) with every source and why it failed."""
    # Without the lock on the file: what was verified once is not looked at again.
    if not given and part.lock() and part.whole():
        return False
    absent = UserError(
        f"`{part.label}` is not in the cache, and `--offline` opens no connection", by_hand(part), DOWNLOAD
    )
    # Before the folder and the lock are made: `--offline` then needs no cache that can be written.
    if offline and not given and not part.whole() and not part.file.exists():
        raise absent
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
        # Asked again under the lock: the process that held it may have brought the file meanwhile.
        if already_there(part, show):
            return False
        if offline:
            raise absent
        _from_a_source(part, sleep, show)
        return True


def _from_a_source(part: Part, sleep: Callable[[float], None], show: Show) -> None:
    """The file from the first source that has it. UserError (exit 3) with every source and why it failed."""
    failures = []
    for source in filter(automatic, sources(part)):
        url = address(source, part.file.name)
        try:
            return download_verified(part, url, drive="gdrive" in source, sleep=sleep, show=show)
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
            # The size is enough for a file that was verified: hashing 2 GB at every `fetch` would take seconds.
            if not (part.lock() and size_of(part.file) == part.lock()["size"]):
                pin(part, verify(part, part.file), part.file, "found in the cache")
            if part.result != part.file and not part.whole():
                unpack(part)
            return True
        except SourceFailed as why:
            # Renamed and not deleted: a user may have put it there, and it took hours to get.
            show.say(f"`{part.file}` is not `{part.label}`: {why}; it is now `{part.file.name}.bad`")
            with disk_errors(part.file):
                os.replace(part.file, part.beside(".bad"))
    # An archive is deleted once it is unpacked: what it unpacked to may be there without it.
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
    show.start(part.label)
    while True:
        resumed = resumable(part, url)[0] > 0
        download(part, url, drive=drive, sleep=sleep, show=show)
        try:
            return accept(part, part.beside(".part"), url)
        except SourceFailed as why:
            discard(part)
            # What came before may have been wrong, and this source good; from the beginning, it is the source that is wrong.
            if not resumed:
                raise
            show.say(f"`{part.label}`: {why}; once more from the beginning")


# ------------------------------------------------------------------------------------------------------------ the file


def copy_given(part: Part, given: Path) -> None:
    """`--from FILE`: a copy of it, verified, in its place; UserError if it is another file."""
    # A name of its own: `.part` may hold what a download has brought so far.
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
        # On disk before it has its name: a loss of power must not leave the name on an empty file.
        atomic.sync(temporary)
        pin(part, found, temporary, source)
        os.replace(temporary, part.file)
        discard(part)
    if part.result != part.file:
        unpack(part)


def verify(part: Part, path: Path) -> str:
    """The sha256 of a file that has the size, the hashes and the first bytes that it must have; SourceFailed if it has not."""
    facts = part.facts
    # First what costs nothing and says most: a web page has a wrong hash too, but the hash does not say that it is a page.
    if why := assets.wrong_bytes(path):
        raise SourceFailed(why)
    if facts.get("size") and size_of(path) != facts["size"]:
        raise SourceFailed(f"it has {size_of(path):,} bytes, not {facts['size']:,}")
    sha256 = assets.sha256(path)
    for kind in assets.HASHES:
        expected = facts.get(kind, "")
        got = assets.md5(path) if expected and kind == "md5" else sha256
        # A prefix of eight digits is what torchvision's and timm's file names publish.
        if expected and not (got.startswith(expected) if kind == "sha256-prefix" else got == expected):
            raise SourceFailed(f"its {kind} is {got[:12]}.., not {expected[:12]}.. (trust: {facts['trust']})")
    # A prefix alone is too short to be trusted: such a file is held to its pin as well.
    if not facts.get("sha256") and not facts.get("md5"):
        _check_first_use(part, path, sha256)
    return sha256


def _check_first_use(part: Part, path: Path, sha256: str) -> None:
    """SourceFailed if a file without a published hash differs from what first came under its name, or is no file of torch's."""
    lock = part.lock()
    if lock and lock["sha256"] != sha256:
        raise SourceFailed(
            f"its sha256 is {sha256[:12]}.., but {lock['sha256'][:12]}.. was pinned when it first came ({lock.get('when', '?')}, "
            f"{lock.get('source', '?')}); if the publisher has replaced it, delete `{part.beside('.lock.json')}`"
        )
    check_head(part, path)


def check_head(part: Part, path: Path) -> None:
    """Raises SourceFailed for a network's file that does not begin as one of torch's."""
    network = part.facts.get("kind") in ("score", "classifier") and part.result == part.file
    if network and part.facts.get("format") != "safetensors" and not _head(path).startswith(TORCH):
        raise SourceFailed("it is no file of torch's: neither a zip nor a pickle")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def pin(part: Part, sha256: str, path: Path, source: str) -> None:
    """Writes `.lock.json`, before the file has its name: a kill in between leaves a pin and no file."""
    published = any(part.facts.get(kind) for kind in assets.HASHES)
    facts: Entry = {
        "sha256": sha256,
        "size": size_of(path),
        "source": source,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "trust": part.facts["trust"] if published else "first-use",
    }
    with disk_errors(part.file):
        atomic.replace(part.beside(".lock.json"), json.dumps(facts, indent=1) + "\n")


def unpack(part: Part) -> None:
    """The archive's contents under their name in one rename; then the archive goes. UserError if it cannot be unpacked."""
    work = part.beside(".unpacking")
    # What a killed process left is half an archive.
    shutil.rmtree(work, ignore_errors=True)
    try:
        with disk_errors(part.file):
            work.mkdir()
            _extract(part, work)
            name = part.result.name
            # Some archives hold the folder, some hold it one level down, and some are its contents.
            found = next((p for p in (work / name, *sorted(work.glob(f"*/{name}"))) if p.exists()), work)
            check_contents(part, found)
            os.replace(found, part.result)
        part.file.unlink()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error) as error:
        part.file.unlink()
        raise UserError(f"`{part.label}` cannot be unpacked: {error}", by_hand(part), DOWNLOAD) from None
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
    for name, expected in part.facts.get("inside", {}).items():
        file = folder / name
        if not file.is_file() or assets.md5(file) != expected:
            raise UserError(
                f"`{part.result}` is not `{part.label}`: `{name}` in it is missing or another file",
                f"move `{part.result}` away, then `purebench fetch {part.asset}`",
                DOWNLOAD,
            )


def _disk_needed(part: Part, size: int = 0) -> int:
    """Bytes on disk while it is fetched: archives are there twice for a moment."""
    return (size or _expected_size(part)) * (1 if part.result == part.file else 2)
