"""A file that came is verified, pinned and put into its place: in this order, so that nothing wrong has its name or a pin. An archive
is pinned once it is unpacked.

A hash or size that its publisher, its code or several people print refuses another file. One that a third party printed may be of another
edition: such a file is held to be in doubt, and taken only if its caller knows of no better one."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from purebench import assets, atomic
from purebench.assets import Entry, Part
from purebench.assets.archives import twice_compressed, unpack
from purebench.assets.bars import Show
from purebench.assets.disk import disk_errors, forget, reading, size_of
from purebench.assets.download import far_off, vouched
from purebench.assets.ends import at_end
from purebench.assets.sources import by_hand, shown
from purebench.assets.troubles import Doubtful, SourceFailed, Unpinned
from purebench.errors import DOWNLOAD, UserError

CHUNK = 1 << 20  # bytes
TORCH = (b"PK\x03\x04", b"\x80")  # how torch's files and pickles begin


def copy_given(part: Part, given: Path, show: Show) -> None:
    """`--from FILE`: a copy of it, verified, in its place; UserError if it is another file."""
    # A name of its own: `.part` may hold what a download has brought so far.
    temporary = part.beside(".from")
    try:
        _copy(given, temporary)
        # Whoever brings a file has looked for it: what a third party printed of it is told, and stops nothing.
        if doubt := accept(part, temporary, str(given.absolute()), doubted=True):
            show.warn(
                f"`{given}` is not the `{part.label}` that a third party knows: {doubt}. It is taken, and its sha256 kept"
            )
    except SourceFailed as why:
        hint = f"delete `{part.beside('.lock.json')}` first" if isinstance(why, Unpinned) else by_hand(part)
        raise UserError(f"`{given}` is not `{part.label}`: {why}", hint, DOWNLOAD) from None
    finally:
        temporary.unlink(missing_ok=True)


def _copy(given: Path, to: Path) -> None:
    """What cannot be read is the user's file's fault, what cannot be written the cache's."""
    with disk_errors(to), to.open("wb") as copied, reading(given), given.open("rb") as file:
        while piece := file.read(CHUNK):
            with disk_errors(to):
                copied.write(piece)


def accept(part: Part, temporary: Path, source: str, doubted: bool = False) -> str:
    """Verifies the file, pins its hash, renames it to its name, unpacks it. What is unlike a third party's hash, or "".

    SourceFailed if it is a wrong one; Doubtful if it is only unlike what a third party printed, unless it is taken in doubt."""
    sha256, doubt = verify(part, temporary, doubted)
    with disk_errors(part.file, part):
        # On disk before it has its name: a loss of power must not leave the name on an empty file.
        atomic.sync(temporary)
    if part.result == part.file:
        pin(part, sha256, temporary, source, doubt)
    with disk_errors(part.file, part):
        os.replace(temporary, part.file)
        forget(part)
    if part.result != part.file:
        try:
            unpack_pinned(part, sha256, source, doubt)
        except SourceFailed:
            part.file.unlink(missing_ok=True)
            raise
    return doubt


def unpack_pinned(part: Part, sha256: str, source: str, doubt: str) -> None:
    """The archive, verified, unpacked; pinned only once all of it was read: a damaged one would refuse the good one ever after.

    SourceFailed if it cannot be unpacked; UserError if it is what was published, which no other source has better."""
    proven = published(part) and not doubt
    try:
        unpack(part, proven, lambda: pin(part, sha256, part.file, source, doubt))
    except SourceFailed as why:
        if not proven:
            raise
        where = f"it is kept as `{part.file}`: unpacked by hand, its `{part.result.name}` belongs beside it"
        raise UserError(f"`{part.label}` is what was published, but {why}", where, DOWNLOAD) from None


def published(part: Part) -> bool:
    """Whether anybody published a hash of the file."""
    return any(part.facts.get(kind) for kind in assets.HASHES)


def verify(part: Part, path: Path, doubted: bool = False) -> tuple[str, str]:
    """(sha256, what is unlike a third party's hash or size) of a file that is what it must be.

    SourceFailed if it is not. Doubtful if only a third party says so: unless it is `doubted` and taken, or its sha256 is pinned."""
    # First what costs nothing and says most: a web page has a wrong hash too, but the hash does not say that it is a page.
    if why := assets.wrong_bytes(path):
        raise SourceFailed(why)
    if why := far_off(part, size_of(path)):
        raise SourceFailed(why)
    wrong = _wrong_size(part, path)
    if wrong and vouched(part):
        raise SourceFailed(wrong)
    sha256 = assets.sha256(path)
    wrong = wrong or _wrong_hash(part, path, sha256)
    if wrong and vouched(part):
        raise SourceFailed(wrong)
    if wrong and not doubted and not part.lock():
        raise Doubtful(wrong)
    # A prefix alone is too short to be trusted: such a file is held to its pin as well.
    if wrong or not (part.facts.get("sha256") or part.facts.get("md5")):
        _check_first_use(part, path, sha256)
    return sha256, wrong


def _wrong_size(part: Part, path: Path) -> str:
    size = part.facts.get("size")
    return f"it has {size_of(path):,} bytes, not {size:,}" if size and size_of(path) != size else ""


def _wrong_hash(part: Part, path: Path, sha256: str) -> str:
    for kind in assets.HASHES:
        expected = part.facts.get(kind, "")
        got = assets.md5(path) if expected and kind == "md5" else sha256
        # A prefix of eight digits is what torchvision's and timm's file names publish.
        if expected and not (got.startswith(expected) if kind == "sha256-prefix" else got == expected):
            return f"its {kind.removesuffix('-prefix')} is {got[:12]}.., not {expected[:12]}.. (trust: {part.facts['trust']})"
    return ""


def _check_first_use(part: Part, path: Path, sha256: str) -> None:
    """SourceFailed if a file without a published hash differs from what first came under its name, or cannot be a whole one."""
    lock = part.lock()
    # What its publisher has said since outranks what came first.
    if lock and lock["sha256"] != sha256 and not part.outdated():
        raise Unpinned(
            f"its sha256 is {sha256[:12]}.., but {lock['sha256'][:12]}.. was pinned when it first came ({lock.get('when', '?')}, "
            f"{shown(str(lock.get('source', '?')))}); if the publisher has replaced it, delete `{part.beside('.lock.json')}` first"
        )
    check_head(part, path)
    # An archive shows it by being unpacked to its very end.
    if lock or part.result != part.file:
        return
    if at_end(path) is False:
        raise SourceFailed("it is cut short or damaged: it does not end as its format does")
    if twice_compressed(path):
        raise SourceFailed("what is in it is compressed once more")


def check_head(part: Part, path: Path) -> None:
    """Raises SourceFailed for a network's file that does not begin as one of torch's."""
    network = part.facts.get("kind") in ("score", "classifier") and part.result == part.file
    if network and part.facts.get("format") != "safetensors" and not _head(path).startswith(TORCH):
        raise SourceFailed("it is no file of torch's: neither a zip nor a pickle")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def pin(part: Part, sha256: str, path: Path, source: str, doubt: str = "") -> None:
    """Writes `.lock.json`, before the file has its name: a kill in between leaves a pin and no file."""
    before = part.lock()
    if before.get("sha256") != sha256:
        before = {}
    facts: Entry = {
        "sha256": sha256,
        "size": size_of(path),
        "mtime_ns": path.stat().st_mtime_ns,
        # Of the first time: a message about another file names it.
        "source": before.get("source", source),
        "when": before.get("when") or datetime.now(UTC).isoformat(timespec="seconds"),
        "trust": part.facts["trust"] if published(part) and not doubt else "first-use",
    }
    if doubt:
        facts["doubt"] = doubt
    with disk_errors(part.file, part):
        atomic.replace(part.beside(".lock.json"), json.dumps(facts, indent=1) + "\n")
