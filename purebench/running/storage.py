"""What `doctor` looks for on disk: folders that can be written, the registry of checkpoints, and files that are not what it says.

Of large files size, first bytes and end are looked at, as before every run; the hash of what is small, so that it takes no minutes."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from purebench import assets, registry
from purebench.assets import bytes_text, entries, fetch
from purebench.assets.disk import free_bytes
from purebench.assets.troubles import SourceFailed
from purebench.errors import UserError, unknown
from purebench.running.finding import Finding

SMALL = 64_000_000  # bytes of a file up to which its hash is made
INSIDE = 256_000_000  # bytes of the files of an unpacked archive up to which theirs are
LITTLE = 2_000_000_000  # bytes of free disk, below which it is said
VARIABLES = ("PUREBENCH_CACHE", "PUREBENCH_CHECKPOINTS", "PUREBENCH_GOLDEN")


def cache(_: Path) -> Iterator[Finding]:
    """The cache folder."""
    yield from _writable("cache", assets.cache_folder(), "set PUREBENCH_CACHE to a folder of yours")


def results(out: Path) -> Iterator[Finding]:
    """The folder of records."""
    yield from _writable("results", out, "name another: `--out DIR`", locks=True)


def _writable(topic: str, folder: Path, hint: str, *, locks: bool = False) -> Iterator[Finding]:
    """Whether files can be made in a folder, or where it will be made. locks: and locked, as records are."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield Finding(topic, "wrong", f"`{folder}` cannot be a folder: `{place}` is a file", hint)
        return
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".purebench-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            if locks:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = "be written and locked" if locks else "be written"
        yield Finding(topic, "wrong", f"`{folder}` cannot {what}: {error.strerror or error}", hint)
        return
    free = free_bytes(place)
    said = f"`{folder}`{'' if folder.exists() else ' (not made yet)'}, {bytes_text(free)} free"
    yield Finding(topic, "note", said, "free some space") if free < LITTLE else Finding(topic, "ok", said)


def variables(_: Path) -> Iterator[Finding]:
    """PUREBENCH_.. in the environment that nobody reads: a typing error, which would pass for a setting."""
    infos = [registry.info("dataset", name) for name in registry.NAMES["dataset"]]
    own = {info["own"]["variable"] for info in infos if "own" in info}
    known = {*VARIABLES, *own, *map(assets.variable, assets.table())}
    given = sorted(name for name in os.environ if name.startswith("PUREBENCH_"))
    for name in given:
        if name not in known:
            close = unknown("variable", name, known).hint
            hint = close if close.startswith("did you mean") else "unset it"
            yield Finding("variables", "note", f"nothing reads {name}", hint)
    if read := [f"{name}={os.environ[name]}" for name in given if name in known]:
        yield Finding("variables", "ok", ", ".join(read))


# ---- checkpoints and datasets --------------------------------------------------------------------


def checkpoints(_: Path) -> Iterator[Finding]:
    """Every file of the registry that is here. What is not here is no fault: `fetch` brings it when it is wanted."""
    here, size, sound = 0, 0, True
    for name, entry in assets.table().items():
        missing = f"has no {missing}" if isinstance(entry, dict) and (missing := _incomplete(entry)) else ""
        if why := missing or entries.wrong(entry):
            hint = f"mend `{assets.registry_file()}`"
            yield Finding("checkpoints", "wrong", f"`{name}` in the registry {why}", hint)
            sound = False
        elif "same_as" not in entry:
            found = list(_asset(name))
            yield from found
            sound &= all(finding.state != "wrong" for finding in found)
            there = [part.result for part in assets.parts(name) if part.result.exists()]
            here += bool(there) or assets.present(name)
            size += sum(map(_size, there))
    if sound:
        said = f"{here} of {len(assets.table())} are here ({bytes_text(size)} in the cache), and none is damaged"
        yield Finding("checkpoints", "ok", said)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _incomplete(entry: assets.Entry) -> str:
    """What an entry of a registry has to say and does not; empty if nothing."""
    if "same_as" in entry:
        return ""
    missing = [f"`{key}`" for key in ("kind", "licence", "trust", "summary") if key not in entry]
    somewhere = "file" in entry or "files" in entry or "package" in entry.get("sources", ())
    if not somewhere and entry.get("released") is not False:
        missing.append("`file`")
    return " and no ".join(missing)


def _asset(name: str) -> Iterator[Finding]:
    """What is wrong with the files of an asset that are here, or that the environment says are elsewhere."""
    if given := assets.override(name):
        if not given.exists():
            hint = f"mend or unset {assets.variable(name)}"
            yield Finding("checkpoints", "wrong", f"`{name}` is not at `{given}`", hint)
    elif assets.ships(name):
        path = assets.path(name)
        if not path.is_file() or assets.sha256(path) != assets.entry(name)["sha256"]:
            yield Finding("checkpoints", "wrong", f"`{path}` is missing or damaged", "reinstall purebench")
    else:
        for part in assets.parts(name):
            yield from _part(part)


def _part(part: assets.Part) -> Iterator[Finding]:
    if why := _damaged(part):
        hint = f"move `{part.result}` away, then `purebench fetch {part.asset}`"
        yield Finding("checkpoints", "wrong", f"`{part.label}` is damaged: {why}", hint)
    elif (half := part.beside(".part")).exists() and not part.result.exists():
        said = f"`{part.label}` is half fetched ({bytes_text(half.stat().st_size)})"
        yield Finding("checkpoints", "note", said, f"`purebench fetch {part.asset}` goes on with it")


def _damaged(part: assets.Part) -> str:
    """Why what is here is not what the registry says; empty if nothing is known against it."""
    if part.pin_lost():
        return f"`{part.beside('.lock.json')}`, which says what first came, cannot be read"
    if not part.result.exists():
        return ""
    try:
        if part.result != part.file:
            files = [part.result / name for name in part.facts.get("inside", {})]
            if sum(_size(file) for file in files if file.exists()) <= INSIDE:
                fetch.check_contents(part, part.result)
            return "" if part.whole() else "it is empty"
        if part.file.stat().st_size <= SMALL:
            fetch.verify(part, part.file, doubted=True)
        else:
            fetch.check_head(part, part.file)
        published, pinned = part.facts.get("sha256"), part.lock().get("sha256")
        # What `fetch` took in doubt is another file than the registry's, and known to be.
        if published and pinned and published != pinned and not part.lock().get("doubt"):
            return f"`fetch` found the sha256 {pinned[:12]}.., and the registry has {published[:12]}.."
        return "" if part.whole() else assets.wrong_bytes(part.file) or f"it has {part.file.stat().st_size:,} bytes"
    except SourceFailed as why:
        return str(why)
    except UserError as error:
        return error.message
    except OSError as error:
        return error.strerror or str(error)
