"""`purebench fetch`: brings files of `checkpoints.toml` into the cache, resumed where they stopped and verified before they count.

    <file>.part, .part.json   what has come so far, and from where; deleted when the whole file turns out to be wrong
    <file>.lock.json          sha256, size, source and time of the verified file: the pin where nobody published a hash
    <file>.lock               held by the one process that works on the file

Nothing has the file's own name, or its folder's if it is an archive, before it is verified.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from purebench import assets
from purebench.assets import Part, bytes_text, mirrors
from purebench.assets import sources as places
from purebench.assets.archives import check_contents as check_contents
from purebench.assets.bars import Show
from purebench.assets.clock import Clock
from purebench.assets.disk import disk_errors, free_bytes, reading, require_space, size_of
from purebench.assets.ends import at_end
from purebench.assets.request import check_proxy
from purebench.assets.sources import address as address
from purebench.assets.sources import automatic, browser, by_hand, sources
from purebench.assets.troubles import SourceFailed
from purebench.assets.verified import accept, copy_given, pin, published, unpack_pinned, verify
from purebench.assets.verified import check_head as check_head
from purebench.errors import DOWNLOAD, UserError, unknown

Bring = Callable[[Part], None]
LOCK_LOOK = 1  # seconds between two looks at a file that another process brings


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
    with disk_errors(assets.cache_folder() / "file"):
        return _plan(names)


def _plan(names: Iterable[str]) -> list[dict[str, str]]:
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
    with disk_errors(assets.cache_folder() / "file"):
        return [part for part in pieces if not part.whole() and any(map(automatic, sources(part)))]


def check_setup(names: Iterable[str]) -> None:
    """UserError for an address or a proxy that is no URL, of what is to be downloaded: before anything is asked for."""
    for part in _to_download(_pieces(wanted(names))):
        for source in filter(automatic, sources(part)):
            for way in places.ways(source, part.file.name):
                check_proxy(way.url)


def _expected_size(part: Part) -> int:
    """Bytes, as far as the registry knows; 0 where it does not."""
    return part.facts.get("size") or part.facts.get("about") or 0


# ----------------------------------------------------------------------------------------------------------- the whole


def fetch(
    names: Iterable[str],
    *,
    offline: bool = False,
    given: Path | None = None,
    show: Show | None = None,
    clock: Clock | None = None,
) -> tuple[list[dict[str, str]], list[UserError]]:
    """Brings the assets: a row (asset, state, size, sha256, path) each, and what went wrong; one failure does not stop the others.

    offline: opens no connection. given: a file to take instead of downloading. clock: what it waits by. UserError: unknown names,
    an address that is none (HF_ENDPOINT), no space at all."""
    clock, rows, errors = clock or Clock(), [], []
    show, network = show or Show(clock), mirrors.Network()
    names = wanted(names)
    pieces = _pieces(names)
    if given:
        pieces = [part_given(pieces, given)]
        names = [pieces[0].asset]
    elif not offline:
        # The sum over all files: each alone may find the space that the next one needs, and hours would pass before that is known.
        check_setup(names)
        missing = _to_download(pieces)
        # Of an unknown size nothing is needed, and what came of it makes no room for the others.
        needed = [max(0, _disk_needed(part) - size_of(part.beside(".part"))) for part in missing]
        require_space(assets.cache_folder(), sum(needed))

    def bring(part: Part) -> None:
        def accepted(source: str, doubted: bool) -> str:
            # Nobody vouches for it, neither by a hash nor by having brought it: at least it has to be whole.
            if doubted and at_end(part.beside(".part")) is not True:
                raise SourceFailed("it is not the file that a third party knows, and cannot be seen to be whole")
            return accept(part, part.beside(".part"), places.shown(source), doubted)

        mirrors.bring(part, accepted, network, clock, show)

    for name in names:
        own = [part for part in pieces if part.asset == assets.entry(name).get("same_as", name)]
        try:
            with disk_errors(assets.path(name)):
                state = "fetched" if _fetch_asset(name, own, offline, given, bring, show) else "present"
        except UserError as error:
            errors.append(error)
            state = "failed"
        finally:
            show.stop()
        # A failed asset may have no path: one that was never released.
        where = assets.path(name) if state != "failed" else None
        size = bytes_text(where.stat().st_size) if where and where.is_file() else ""
        rows.append(
            {
                "asset": name,
                "state": state,
                "size": size,
                # Of what is not here there is none to tell.
                "sha256": assets.digest(name) if where else "",
                "path": str(where or ""),
            }
        )
    return rows, errors


def _fetch_asset(name: str, pieces: list[Part], offline: bool, given: Path | None, bring: Bring, show: Show) -> bool:
    """Whether any file of the asset was brought. UserError if one cannot be, or if nobody can get the asset."""
    if assets.ships(name) or assets.override(name):
        assets.need(name)
        return False
    if not assets.parts(name):
        raise assets.unreleased(name)
    brought, errors = False, []
    # All of them: one that cannot be had keeps nobody from the others.
    for part in pieces:
        try:
            brought |= fetch_part(part, offline=offline, given=given, bring=bring, show=show)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else _together(errors)
    if given and (missing := [f"`{part.file.name}`" for part in assets.parts(name) if not part.whole()]):
        show.warn(
            f"`{name}` still lacks {', '.join(missing)}: `purebench fetch {shlex.quote(name)}` brings what it can"
        )
    return brought


def _together(errors: list[UserError]) -> UserError:
    """What went wrong with several files of an asset, as one."""
    hints = "; ".join(dict.fromkeys(error.hint for error in errors if error.hint))
    return UserError("\n".join(error.message for error in errors), hints, errors[0].code)


def check_given(names: Iterable[str], given: Path) -> None:
    """UserError unless `--from` is one of the files of these assets."""
    part_given(_pieces(wanted(names)), given)


def part_given(pieces: list[Part], given: Path) -> Part:
    """The one file that `--from` brings."""
    if not given.is_file():
        what = "is a folder" if given.is_dir() else "is no file" if given.exists() else "does not exist"
        if re.match(r"https?:/", str(given)):
            raise UserError("`--from` takes a file, not a URL", "download it in a browser, and name the file")
        raise UserError(f"`--from {given}` {what}", "it takes the downloaded file, archives as they are")
    # Of several files the name decides; of one it does not matter, since browsers rename what they download.
    if len(named := pieces) > 1:
        named = [part for part in pieces if given.name in (part.file.name, part.beside(".part").name)]
    if len(named) != 1 or "by_hand" in named[0].facts:
        names = " or ".join(f"`{part.file.name}`" for part in pieces if "by_hand" not in part.facts)
        raise UserError(
            f"`--from {given}` brings one file, and it is not clear which",
            f"name one asset; rename the file to what it is: {names}" if names else "name one asset",
        )
    return named[0]


def fetch_part(part: Part, *, offline: bool, given: Path | None, bring: Bring, show: Show) -> bool:
    """True if the file was brought (by `bring`, from a source), False if it was there. UserError (exit 3) with every reason."""
    # Without the lock on the file: what was verified once, and lies there as it did, is not looked at again.
    if not given and part.sound():
        if part.changed():
            was = part.lock()
            # Where it cannot be written down, it is hashed again the next time.
            with contextlib.suppress(UserError):
                pin(part, was["sha256"], part.file, was.get("source", ""), was.get("doubt", ""))
        return False
    if part.pin_lost() and not published(part):
        lock = part.beside(".lock.json")
        raise UserError(
            f"the pin of `{part.label}` is damaged: `{lock}` does not say any more which file first came, and nobody else knows",
            "restore it from a copy; or delete it, and what comes next is pinned",
            DOWNLOAD,
        )
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
        if given and part.result != part.file and part.whole():
            _check_unpacked_from(part, given)
            return False
        if given:
            require_space(part.file.parent, _disk_needed(part, given.stat().st_size), part)
            copy_given(part, given, show)
            return True
        # Asked again under the lock: the process that held it may have brought the file meanwhile.
        if already_there(part, show):
            return False
        if offline:
            raise absent
        bring(part)
        return True


def already_there(part: Part, show: Show) -> bool:
    """Whether the file is there and good. One without a lock file is verified here; a bad one is renamed to `.bad`."""
    if part.file.is_file():
        try:
            # Size and time are enough for a file that was verified: hashing 2 GB at every `fetch` would take seconds.
            was, source = part.lock(), "found in the cache"
            sha256, doubt = was.get("sha256", ""), was.get("doubt", "")
            if not was or part.changed() or part.outdated():
                # In doubt, since somebody has put it there: what a third party printed of it is told, and stops nothing.
                sha256, doubt = verify(part, part.file, doubted=True)
                if was and was["sha256"] != sha256 and not part.outdated():
                    raise SourceFailed("its bytes are others than those that were verified")
                if doubt:
                    show.warn(
                        f"`{part.file}` is not the `{part.label}` that a third party knows: {doubt}. It is taken as it is"
                    )
                if part.result == part.file or part.whole():
                    pin(part, sha256, part.file, source, doubt)
            if part.result != part.file and not part.whole():
                _unpack_there(part, sha256, source, doubt)
            return True
        except SourceFailed as why:
            # Renamed and not deleted: a user may have put it there, and it took hours to get.
            show.say(f"`{part.file}` is not `{part.label}`: {why}; it is now `{part.file.name}.bad`")
            with disk_errors(part.file):
                os.replace(part.file, part.beside(".bad"))
    # An archive is deleted once it is unpacked: what it unpacked to may be there without it.
    if part.result == part.file or not part.whole():
        return False
    if part.outdated():
        raise UserError(
            f"`{part.result}` was unpacked from another file than the one that the registry names "
            f"({part.lock()['sha256'][:12]}.., not {(part.facts.get('sha256') or part.facts['sha256-prefix'])[:12]}..)",
            f"move `{part.result}` away, then `purebench fetch {part.asset}`",
            DOWNLOAD,
        )
    if not part.lock():
        check_contents(part, part.result)
    return True


def _check_unpacked_from(part: Part, given: Path) -> None:
    """UserError unless what lies there was unpacked from this very file."""
    with reading(given):
        same = assets.sha256(given) == part.lock().get("sha256")
    if not same:
        raise UserError(
            f"`{given}` is not taken: `{part.result}` is there, and not known to have been unpacked from it",
            f"move `{part.result}` away, then the same command",
            DOWNLOAD,
        )


def _unpack_there(part: Part, sha256: str, source: str, doubt: str) -> None:
    """An archive that lies there, verified, unpacked. SourceFailed if it cannot be, and then nothing is pinned by it any more."""
    try:
        unpack_pinned(part, sha256, source, doubt)
    except SourceFailed:
        if part.lock().get("sha256") == sha256:
            part.beside(".lock.json").unlink()
        raise


@contextlib.contextmanager
def locked(part: Part, show: Show) -> Iterator[None]:
    """Holds the lock of one file; waits while another process has it."""
    import filelock

    lock = filelock.FileLock(str(part.beside(".lock")))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        have, done = size_of(part.beside(".part")), False
        came = f" ({bytes_text(have)} came so far)" if have else ""
        show.say(f"another process works on `{part.label}`{came}: waiting for it")
        show.start(part.label)
        show.size(have, part.facts.get("size"))
        while not done:
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=LOCK_LOOK)
                done = True
            show.at(size_of(part.beside(".part")))
        show.stop()
    try:
        yield
    finally:
        lock.release()


def _disk_needed(part: Part, size: int = 0) -> int:
    """Bytes on disk while it is fetched: archives are there twice for a moment."""
    return (size or _expected_size(part)) * (1 if part.result == part.file else 2)
