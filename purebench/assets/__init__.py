"""What is known of every checkpoint and dataset, and where its files lie: `checkpoints.toml` (`entries`: what it must say) and the cache.

`fetch` fills it: `sources`, addresses; `mirrors`, whom it asks; `request` and `download`, one answer (`answers`, `troubles`: what one means
that is not the file); `verified`, `ends`, `archives`, what is taken; `disk`, `bars`, `clock`. `check` asks without a download. Of a file of
weights `readers` and `unpickle` read the tensors and execute nothing; `contents` says which sets of them it holds, `architecture`,
`options` and `diffusers` of which network, and `checkpoint` fills one. It may import `networks`, `atomic` and `errors`. Begin reading at
`entry` and `fetch.fetch`, or at `contents.of`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from purebench import atomic
from purebench.assets import entries
from purebench.errors import DOWNLOAD, UserError, unknown

Entry = dict[str, Any]  # what `checkpoints.toml` says of an asset
PACKAGE = Path(__file__).parents[1]
HASHES = ("sha256", "md5", "sha256-prefix")
LEFT_BEHIND = ("Thumbs.db", "desktop.ini")
# How web pages begin, and no file of ours: a failed download often is one, with status 200 and the file's name.
HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body)", re.IGNORECASE)


def registry_file() -> Path:
    """PUREBENCH_CHECKPOINTS, else the file in the wheel, else that at the top of the repository."""
    given = os.environ.get("PUREBENCH_CHECKPOINTS")
    return Path(os.path.expanduser(given)) if given else _own_registry()


def _own_registry() -> Path:
    # In a repository the file stands at the top, where people look for it; the build moves it into the wheel's package.
    installed = PACKAGE / "checkpoints.toml"
    return installed if installed.is_file() else PACKAGE.parent / "checkpoints.toml"


def table() -> dict[str, Entry]:
    """asset name -> its entry; those of PUREBENCH_CHECKPOINTS win over ours. UserError if a registry cannot be read."""
    return _registry("assets")


def sets() -> dict[str, list[str]]:
    """What `purebench fetch` takes for a name that is no asset: dataset or paper -> assets."""
    return _registry("sets")


def _registry(part: str) -> dict[str, Any]:
    # Ours first and then the user's, which wins but does not replace it: else the embedded networks would be unknown.
    paths = dict.fromkeys([_own_registry(), registry_file()])
    found: dict[str, dict[str, Any]] = {"assets": {}, "sets": {}}
    try:
        stamps = tuple((path, path.stat().st_mtime_ns) for path in paths)
        for path, changed_ns in stamps:
            for kind, members in _parsed(path, changed_ns).items():
                found[kind] |= members
        if why := _clash(stamps):
            raise ValueError(why)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "see PUREBENCH_CHECKPOINTS"
        raise UserError(f"cannot read the checkpoint registry `{path}`: {error}", hint) from None
    return found[part]


@cache
def _clash(stamps: tuple[tuple[Path, int], ...]) -> str:
    """What `entries.clash` says of these registries together."""
    together: dict[str, Any] = {}
    for path, changed_ns in stamps:
        together |= _parsed(path, changed_ns)["assets"]
    return entries.clash(together)


@cache
def _parsed(path: Path, changed_ns: int) -> dict[str, dict[str, Any]]:
    """A registry's assets and sets; `changed_ns`: its time stamp, so that a file that was edited meanwhile is read again."""
    # A pipe that nobody writes into would be waited for without end.
    if not path.is_file():
        raise ValueError("it is no file")
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found.get("assets"), dict):
        raise ValueError("it has no table `assets`")
    for name, members in dict(found.get("sets", {})).items():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise ValueError(f"`{name}` in its `sets` is no list of names")
    for facts in found["assets"].values():
        files = facts.get("files", []) if isinstance(facts, dict) else []
        for one in [facts, *(files if isinstance(files, list) else [])]:
            if not isinstance(one, dict):
                continue  # `entry` says what is wrong
            # Windows' own tools print them in capitals.
            one.update({kind: one[kind].lower() for kind in HASHES if isinstance(one.get(kind), str)})
            inside = one.get("inside")
            if isinstance(inside, dict):
                inside.update({name: str(md5).lower() for name, md5 in inside.items()})
    return {"assets": dict(found["assets"]), "sets": dict(found.get("sets", {}))}


def entry(name: str) -> Entry:
    """The asset's entry in the registry; UserError for a name that is not there, or if it is none."""
    if name not in table():
        raise unknown("asset", name, table(), "purebench fetch --list")
    found = table()[name]
    if why := entries.wrong(found):
        raise UserError(f"`{name}` in the registry {why}", f"mend `{registry_file()}`")
    return found


def ships(name: str) -> bool:
    """Whether the asset's file is part of the package."""
    return "package" in entry(name).get("sources", ())


def cache_folder() -> Path:
    """PUREBENCH_CACHE, else XDG_CACHE_HOME/purebench, else ~/.cache/purebench."""
    # A quoted `~` reaches us as it is, and would be a folder of that name.
    if given := os.environ.get("PUREBENCH_CACHE"):
        return Path(os.path.expanduser(given))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purebench"


@dataclass(frozen=True)
class Part:
    """One file of an asset: `file` as downloaded, `result` as used (the same, or what it unpacks to), `facts`: its entry."""

    asset: str
    file: Path
    result: Path
    facts: Entry

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.asset}/{self.file.name}" if "files" in entry(self.asset) else self.asset

    def beside(self, ending: str) -> Path:
        """The file's name with something appended."""
        return self.file.with_name(self.file.name + ending)

    def lock(self) -> dict[str, Any]:
        """What `fetch` wrote when it verified the file: sha256, size, mtime_ns, source, when, trust, `doubt` where it is not the file
        that a third party knows; empty if it did not, or if that is damaged (`pin_lost`)."""
        try:
            found = json.loads(self.beside(".lock.json").read_text(encoding="utf-8"))
            sound = re.fullmatch("[0-9a-f]{64}", found["sha256"]) and type(found["size"]) is int
            return found if sound else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def pin_lost(self) -> bool:
        """Whether there is a lock file that cannot be read: what first came is then no longer known."""
        return self.beside(".lock.json").exists() and not self.lock()

    def changed(self) -> bool:
        """Whether the file has another size or time than when it was verified: its bytes may be others."""
        lock = self.lock()
        if not lock or not self.file.is_file():
            return False
        facts = self.file.stat()
        # Of files that were fetched before the time was written down, the size is all that is known.
        return (facts.st_size, facts.st_mtime_ns) != (lock["size"], lock.get("mtime_ns"))

    def sound(self) -> bool:
        """Whether what was verified lies there as it did."""
        lock = self.lock()
        if not lock or not self.whole() or self.outdated():
            return False
        # Copied without its time, it is still the same file; nothing need be written to know that.
        return not self.changed() or hashed(self.file) == lock["sha256"]

    def outdated(self) -> bool:
        """Whether what was verified has another sha256 than the one that the registry names (by now), and not a third party."""
        lock, named = self.lock(), self.facts.get("sha256", "")
        prefix = self.facts.get("sha256-prefix", "")
        vouched = self.facts.get("trust") != "third-party" and not self.facts.get("by_hand")
        other = lock and ((named and named != lock["sha256"]) or not lock["sha256"].startswith(prefix))
        return bool(other and vouched)

    def hash(self) -> str:
        """The sha256 of the file as downloaded: that which `fetch` found, else its own; of what is not here the registry's, or ""."""
        lock = self.lock()
        # Somebody put it there, or wrote into it since: a record must not name what nobody has looked at.
        if self.file.is_file() and (not lock or self.changed()):
            return hashed(self.file)
        # The registry may name another file by now than when this one came.
        if lock and self.result.exists():
            return str(lock["sha256"])
        # The archive's says nothing of what somebody put there, unless its files have hashes of their own.
        if not lock and self.result != self.file and self.result.exists() and not self.facts.get("inside"):
            return hashed(self.result)
        # A third party's may be another file's.
        known = "" if self.facts.get("trust") == "third-party" else self.facts.get("sha256", "")
        return known or lock.get("sha256", "") or hashed(self.file)

    def whole(self) -> bool:
        """Whether what is used is there and looks right: size and first bytes; hashes were `fetch`'s business."""
        # The size that is known is the archive's, which is gone once it is unpacked.
        if self.result != self.file or ("by_hand" in self.facts and self.result.is_dir()):
            return holds(self.result)
        lock = self.lock()
        size = (None if lock.get("doubt") else self.facts.get("size")) or lock.get("size")
        return self.file.is_file() and size in (None, self.file.stat().st_size) and not wrong_bytes(self.file)


def holds(path: Path) -> bool:
    """Whether it is a file with anything in it, or a folder with one: not those that a file manager leaves behind."""
    files = [path] if path.is_file() else path.rglob("*")
    own = (file for file in files if file == path or not (file.name.startswith(".") or file.name in LEFT_BEHIND))
    return any(file.is_file() and file.stat().st_size for file in own)


def wrong_head(head: bytes) -> str:
    """Why a file that begins with these bytes is no checkpoint and no dataset: it is empty, or an HTML page; or ""."""
    if not head:
        return "it is empty"
    return "it begins with an HTML page" if HTML.match(head) else ""


def wrong_bytes(path: Path) -> str:
    """The same of a file, and of a zip (so are torch's files) whether its end is there."""
    with path.open("rb") as file:
        head = file.read(1024)
    # A zip's table of contents is at its end: without it, a part of the file would be found out only when it is read.
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "it is cut short: its end is missing"
    return wrong_head(head)


def override(name: str) -> Path | None:
    """Where PUREBENCH_<ASSET> says that the asset (or that whose file it uses) lies."""
    if given := os.environ.get(variable(name)):
        return Path(os.path.expanduser(given))
    other = table().get(name, {}).get("same_as")
    return override(other) if other else None


def variable(name: str) -> str:
    """data-cifar10 -> PUREBENCH_DATA_CIFAR10"""
    return "PUREBENCH_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def parts(name: str) -> list[Part]:
    """The files of an asset; none for what was never released or ships with the package."""
    facts = entry(name)
    if "same_as" in facts:
        return parts(facts["same_as"])
    folder = cache_folder() / facts.get("folder", "data" if facts.get("kind") == "dataset" else f"checkpoints/{name}")
    files = facts.get("files") or ([facts] if "file" in facts else [])
    return [Part(name, folder / f["file"], folder / f.get("unpack", f["file"]), {**facts, **f}) for f in files]


def path(name: str) -> Path:
    """Where the asset lies or would lie: its file, what its archive unpacks to, or the folder of its files.

    PUREBENCH_<ASSET> (upper case, all else `_`) overrides it. UserError (exit 3) for what was never released."""
    if given := override(name):
        return given
    if ships(name):
        return PACKAGE / "embedded" / f"{name}.safetensors"
    found = parts(name)
    if not found:
        raise unreleased(name)
    return found[0].result if len(found) == 1 else found[0].result.parent


def present(name: str) -> bool:
    """Whether the asset is there to be used; reads no more than a few bytes of it."""
    if ships(name) or override(name):
        return path(name).exists()
    found = parts(name)
    # `all` of no files is true: what was never released would seem to be here.
    return bool(found) and all(part.whole() for part in found)


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal digits. For what older publishers say of their files, not for safety."""
    with path.open("rb") as file:
        # Some systems refuse md5 unless told that nothing relies on its strength.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def hashed(path: Path) -> str:
    """The sha256 of a file, kept in the cache for as long as its size and time stay the same; "" if there is none."""
    if not path.is_file():
        return ""
    facts = path.stat()
    key = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    # On disk and not in memory: every plan needs the hash, and gigabytes take seconds.
    memory = cache_folder() / "hashes.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    except (OSError, ValueError, RecursionError):
        known = {}
    # Another program's, or what is left of ours.
    if not isinstance(known, dict):
        known = {}
    if not (isinstance(known.get(key), str) and re.fullmatch("[0-9a-f]{64}", known[key])):
        known[key] = sha256(path)
        # A cache that several share may be one that cannot be written: it is then hashed each time.
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace(memory, json.dumps(known, indent=1))
    return str(known[key])


def digest(name: str) -> str:
    """The content hash for a record: the registry's sha256, else that which `fetch` found; a file that came another way is hashed
    once. "" for what is not here. For several files: the sha256 of their sha256s."""
    if ships(name):
        return entry(name)["sha256"]
    given = override(name)
    # Of a file elsewhere the registry knows nothing: its hash is its own, whatever it should be.
    found = [part.hash() for part in ([Part(name, given, given, {})] if given else parts(name))]
    if len(found) == 1:
        return found[0]
    if not found or "" in found:
        return ""
    return hashlib.sha256("".join(found).encode()).hexdigest()


def installed(package: str, *parts: str) -> Path:
    """Where a file of an installed package lies, or would lie. UserError (exit 3) if the package is not installed."""
    # Not imported: scikit-learn costs every run and every worker more than a second, robustbench several.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"`{package}` is not installed", "reinstall purebench", DOWNLOAD)
    return Path(spec.origin).parent.joinpath(*parts)


def need(name: str) -> Path:
    """`path(name)` if the asset is there; else UserError (exit 3) that says what is missing and how to get it."""
    if present(name):
        return path(name)
    facts = entry(name)
    if facts.get("released") is False:
        raise unreleased(name)
    if override(name):
        message = f"there is no `{path(name)}`, where the environment says that `{name}` lies"
        raise UserError(message, "mend or unset it", DOWNLOAD)
    kind = f"{size_text(facts)}, licence: {facts['licence']}"
    raise UserError(f"`{name}` is not in the cache ({kind}): `{path(name)}`", f"`purebench fetch {name}`", DOWNLOAD)


def bring(names: list[str]) -> str:
    """How to get what is missing: fetched, trained where nobody published it, or supplied where nobody may hand it on."""
    known = table()
    yours = [known[name]["yours"] for name in names if "yours" in known.get(name, {})]
    fetched = [name for name in names if name in known and "yours" not in known[name]]
    ways = [f"`purebench fetch {' '.join(fetched)}`"] if fetched else []
    folder = cache_folder() / "trained"
    ways += [
        f"`purebench train {name} --out {shlex.quote(str(folder))}` (minutes)" for name in names if name not in known
    ]
    return " and ".join(ways + [f"your own images: {how}" for how in yours])


def unreleased(name: str) -> UserError:
    """The error of whoever needs an asset that nobody can get."""
    facts = entry(name)
    other = facts.get("stand_in")
    hint = f"the closest that was is `{other}`, which `purebench fetch {other}` brings" if other else ""
    return UserError(f"`{name}` was never released: {facts.get('note', facts['summary'])}", hint, DOWNLOAD)


def size_text(facts: Entry) -> str:
    """`1.71 GB`; `about` where the registry only knows roughly."""
    if facts.get("size"):
        return bytes_text(facts["size"])
    return f"about {bytes_text(facts['about'])}" if facts.get("about") else "size unknown"


def bytes_text(count: float) -> str:
    """1707310559 -> `1.71 GB`"""
    for unit in ("B", "kB", "MB"):
        # What three digits would round to 1000 is one of the next unit.
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def places() -> dict[str, str]:
    """What `purebench where` prints."""
    return {
        "cache": str(cache_folder()),
        "embedded weights": str(PACKAGE / "embedded"),
        "checkpoint registry": str(registry_file()),
        "presets": str(PACKAGE / "plan" / "presets"),
        "results": str(Path("results").absolute()),
    }
