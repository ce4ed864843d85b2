"""The append-only store: one folder per cell, one JSON line per image, one raw row per adversarial image. Torch-free.

    cell.json          schema, the resolved cell, and a list of the runs that wrote to it
    images.jsonl       one line per image with a checksum; appended and flushed; sorted by position once the cell is complete
    adversarial.f32    little-endian float32, row k (C*H*W values) of position k at k rows' offset; written before line k
    cost.jsonl         one line per batch: seconds, network calls
    lock               held by the one process that writes

A line that was being written when the process died is cut when the cell is opened again, and a line whose image on disk is not
the one it was made for (`adv_crc`: the process died between the two) is forgotten. Where a position has several lines (more
evaluations were asked for, or a partial batch was run again), the last one counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from purebench.atomic import replace
from purebench.errors import FAILED, UserError
from purebench.records import schema1
from purebench.spec import identity

Json = dict[str, Any]  # an object of a JSON file: what its values are is known by whoever reads the key
Record = Json  # a line of `images.jsonl`; its keys are in docs/design.md
CellData = Json  # a cell as `cell.json` holds it

SCHEMA = 2
_ASIDE = re.compile(r"\.old\d+$")
CELL, IMAGES, ADVERSARIAL, COST, LOCK = "cell.json", "images.jsonl", "adversarial.f32", "cost.jsonl", "lock"


LOST = "attack: "  # how `failed` begins where an attack made no image: such a line holds the clean one, and is never judged
NO_SOURCE = f"{LOST}its source has no image"
WHERE = {  # keys of a line's `not_finite`
    "clean": "clean image",
    "adversarial": "attacked image",
    "attack": "while attacked",
}


def lost(record: Mapping[str, object]) -> bool:
    """Whether the attack made no image: its line is missing from every metric, and a run tries it again. Not so where the *defense*
    failed: a prediction of -1, a purification that is not finite, is a wrong answer."""
    failed = record.get("failed")
    # Asked a million times by a table: most lines have no `failed`.
    return (failed is not None and str(failed).startswith(LOST)) or record.get("adversarial") == []


def parts(cell: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a cell was made of, by kind (`defense`, `attack`, `score`, ...): `version` and `hash`, None where it has none, and `values`, its
    resolved parameters; of a surrogate also its `name`."""
    return {kind: {"version": None, "hash": None, "values": {}} | part for kind, part in sorted(cell["parts"].items())}


def values_of(cell: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The resolved parameters of a cell's part of this kind; {} where it has none."""
    return parts(cell).get(kind, {}).get("values", {})


class Locked(Exception):
    """Another process is writing this cell."""


def line(record: Json) -> str:
    """A record as one line that ends with the CRC-32 of the rest."""
    body = json.dumps(record, separators=(",", ":"))
    return f'{body[:-1]},"crc":"{crc(body.encode())}"}}\n'


def crc(data: bytes) -> str:
    """CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def read_lines(path: Path, *, cut: bool = False) -> Iterator[Json]:
    """The records of a file of lines. A torn last line is passed over (`cut`: and removed); an edited one is a UserError."""
    if not path.exists():
        return
    data = path.read_bytes()
    # A line is written in one piece, its end last: what has no end was being written when the process died.
    whole = data.rfind(b"\n") + 1
    if cut and whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    bodies = []
    for number, text in enumerate(data[:whole].split(b"\n")[:-1], 1):
        body, _, end = text.rpartition(b',"crc":"')
        if end != (crc(body + b"}") + '"}').encode():
            again = ": the same `purebench run` computes its image again" if path.name == IMAGES else ""
            raise UserError(
                f"line {number} of `{path}` does not match its checksum: it was edited or damaged",
                f"delete that line (`sed -i {number}d {path}`){again}",
            )
        bodies.append(body)
    yield from json.loads(b"[" + b"},".join(bodies) + b"}]" if bodies else b"[]")  # in one go: files are long


@dataclass
class Log:
    """One cell as read: `id` (of now), `cell` (the resolved cell), `runs`, `images` (records by position), `seconds` spent, `failed`:
    why not; `was`: its ids of before; `rivals`: folders of copies that answer otherwise (`frame.settled`)."""

    id: str
    cell: Json
    runs: list[Json]
    images: list[Record]
    seconds: float
    failed: str | None
    folder: Path = field(default_factory=Path)
    was: tuple[str, ...] = ()
    rivals: tuple[Path, ...] = ()
    announced: int | None = None  # images wanted of a cell that no run has come to

    @property
    def started(self) -> str:
        """When the last run that wrote to it began, as ISO 8601; empty where none did."""
        return max((str(run.get("started", "")) for run in self.runs), default="")

    @property
    def wanted(self) -> int | None:
        """How many images the last run asked for; None where it did not say, as older versions did."""
        number = self.runs[-1].get("wanted") if self.runs and isinstance(self.runs[-1], dict) else self.announced
        return number if isinstance(number, int) else None


def judged(log: Log) -> list[Record]:
    """The lines that were judged: those that have an image."""
    return [line for line in log.images if not lost(line)]


def read_cell(folder: Path) -> Json:
    """`cell.json`, one of schema 1 as schema 2, with its old id under `was`; UserError if it is unreadable or of a newer schema."""
    data = _read(folder)
    if data["schema"] == SCHEMA:
        return data
    source = _source(folder, data["cell"].get("source", ""))
    known = {"id": source["id"], "score": source["cell"]["score"]} if source else None
    cell = schema1.upgraded(data["cell"], known)
    return data | {"schema": SCHEMA, "id": identity(cell), "cell": cell, "was": [data["id"]]}


def _read(folder: Path) -> Json:
    """`cell.json` as it stands there."""
    path = folder / CELL
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
        kinds = {"schema": int} if schema > SCHEMA else {"id": str, "cell": dict, "runs": list}
        parts = {"parts": dict} if schema == SCHEMA else {}
        whole = all(isinstance(data[key], kind) for key, kind in kinds.items())
        if not whole or not all(isinstance(data["cell"].get(key), kind) for key, kind in parts.items()) or schema < 1:
            raise TypeError("not a cell")
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"`{path}` cannot be read as a purebench cell", "move that folder away, or restore the file"
        ) from None
    if schema > SCHEMA:
        raise UserError(
            f"`{folder}` was written by a newer purebench (schema {schema}, this one reads {SCHEMA})",
            "upgrade: `uv pip install -U purebench`",
        )
    return data


def _source(folder: Path, name: str) -> Json | None:
    """`cell.json` of a transfer's source, named by its id of schema 1; None where it is not beside the transfer."""
    # Absolute: the parent of `.` is `.` to a path.
    beside = folder.absolute().parent
    if name and (beside / name / CELL).is_file():
        return read_cell(beside / name)
    for other in sorted(beside.iterdir()) if name else ():  # it may be converted already
        if (other / CELL).is_file() and name in _read(other).get("was", ()):
            return _read(other)
    return None


def convert(root: Path) -> list[dict[str, str]]:
    """Rewrites the cells of schema 1 in a results folder as schema 2, and renames their folders by their new ids; lines and images stay
    as they are, byte for byte. Returns one row per cell: `was`, `is`, and in `note` why it was left as it is.

    What was two cells and is one now (the null control under several threat models) stays under its old name but for the one with the most
    images; so does what a run is writing, and a plug-in's cell with what was transferred from it: the next run finds these under their
    old names, and goes on there. It may be interrupted, and called again."""
    rows = []
    # Sources first: a transfer asks its source for the new name.
    for folder in sorted(cells([root.absolute()]), key=lambda f: (bool(_read(f)["cell"].get("source")), -_length(f))):
        data = read_cell(folder)
        target = folder.with_name(data["id"])
        if folder == target:
            continue
        note = "another cell has this name now: left as it is" if target.exists() else _unknown(folder)
        try:
            if not note:
                with full_disk_is_an_error(folder), lock(folder):
                    replace(folder / CELL, json.dumps(data, indent=1) + "\n")
                    folder.rename(target)
        except Locked:
            note = "a run is writing it: left as it is"
        rows.append({"was": folder.name, "is": folder.name if note else data["id"], "note": note})
    return rows


def _length(folder: Path) -> int:
    """Of its lines, in bytes."""
    path = folder / IMAGES
    return path.stat().st_size if path.exists() else 0


def _unknown(folder: Path) -> str:
    """Why a cell of schema 1 cannot be told apart from others of now; empty if it can."""
    data = _read(folder)
    if data["schema"] == SCHEMA:
        return ""
    if not schema1.certain(data["cell"]):
        return "schema 1 does not say whether a plug-in uses a score model: left as it is, and a run goes on there"
    name = data["cell"].get("source", "")
    source = _source(folder, name)
    if name and (source is None or _is_old(folder, name)):
        return "its source is not here, or keeps its old name: left as it is, and a run goes on there"
    return ""


def _is_old(folder: Path, source: str) -> bool:
    """Whether a transfer's source is still of schema 1."""
    beside = folder.absolute().parent / source
    return (beside / CELL).is_file() and _read(beside)["schema"] != SCHEMA


def latest(folder: Path) -> dict[int, Record]:
    """A cell's records by position, in order; of several for one position the last."""
    found = {r["position"]: r for r in read_lines(folder / IMAGES)}
    return {p: found[p] for p in sorted(found)}


def load(folder: Path) -> Log:
    """One cell's log, without taking its lock."""
    data = read_cell(folder)
    seconds = sum(c["seconds"] for c in read_lines(folder / COST))
    failed = data["runs"][-1].get("failed") if data["runs"] else None
    images = list(latest(folder).values())
    was, announced = tuple(data.get("was", ())), data.get("wanted")
    return Log(data["id"], data["cell"], data["runs"], images, seconds, failed, folder, was, announced=announced)


def cells(paths: Iterable[Path]) -> list[Path]:
    """The cell folders among `paths` and directly below them, by name; without what `--fresh` set aside, unless it is named."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UserError(
                f"there is no `{path}`", "`purebench run` writes to `results/` unless `--out` says otherwise"
            )
        if not path.is_dir():
            raise UserError(
                f"`{path}` is no folder", "name the folder that `purebench run --out` wrote, or a cell in it"
            )
        for folder in [path, *sorted(p for p in path.iterdir() if p.is_dir())]:
            if (folder / CELL).is_file() and (folder == path or not _ASIDE.search(folder.name)):
                found[folder] = None
    return list(found)


def load_all(paths: Iterable[Path]) -> list[Log]:
    """The logs of every cell that `cells` finds, in its order. Raises UserError for a damaged or newer one."""
    return [load(folder) for folder in cells(paths)]


def lock(folder: Path) -> IO[str]:
    """The folder's lock, made and held until the file is closed. Raises Locked while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    held = (folder / LOCK).open("w")
    # The system lets go of it with the process, however that ends: no stale lock is ever left to be cleared by hand.
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise Locked(folder.name) from None
    # What a process that was killed was writing: nobody else writes here now.
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink()
    return held


def set_aside(folder: Path) -> None:
    """Renames a cell's folder to `<cell>.old<n>`; deletes nothing. Raises Locked while another process writes there."""
    n = 1
    while (old := folder.with_name(f"{folder.name}.old{n}")).exists():
        n += 1
    with full_disk_is_an_error(folder), lock(folder):
        folder.rename(old)


def announce(folder: Path, cell_id: str, cell: Json, shape: list[int], wanted: int) -> None:
    """Writes `cell.json` of a cell that nobody has begun, so that a run which is killed before it comes there leaves a trace: of a
    defense's attacks the one that is missing may be the strongest. Of a cell that is there already, or is being written, nothing."""
    if (folder / CELL).exists():
        return
    data = {"schema": SCHEMA, "id": cell_id, "shape": shape, "cell": cell, "runs": [], "wanted": wanted}
    with contextlib.suppress(Locked), full_disk_is_an_error(folder), lock(folder):
        if not (folder / CELL).exists():
            replace(folder / CELL, json.dumps(data, indent=1) + "\n")


def begun(folder: Path) -> bool:
    """Whether a run has come to the cell, or only announced it."""
    return (folder / CELL).exists() and bool(_read(folder)["runs"])


class Store:
    """One cell, opened for writing. `done`: position -> record. Raises Locked while another process holds it."""

    def __init__(self, folder: Path, cell_id: str, cell: Json, shape: list[int], run: Json):
        self.folder, self.row = folder, 4 * shape[0] * shape[1] * shape[2]
        with full_disk_is_an_error(folder):
            self._lock = lock(folder)
        try:
            old = read_cell(folder) if (folder / CELL).exists() else {"runs": []}
            if old.get("shape", shape) != shape:
                raise UserError(
                    f"the images of `{folder}` are {_size(old['shape'])}, and this run's are {_size(shape)}",
                    "name another `--out`: rows of two sizes would lie over each other",
                )
            self.data: Json = {
                "schema": SCHEMA,
                "id": cell_id,
                "shape": shape,
                "cell": cell,
                "runs": [*old["runs"], run],
            } | ({"was": old["was"]} if "was" in old else {})
            self.noted = False
            # Whether this run has something to say in cell.json; one that finds all done leaves it as it is.
            self.news = not old["runs"] or "failed" in old["runs"][-1]
            with full_disk_is_an_error(folder):
                self.done = {r["position"]: r for r in read_lines(folder / IMAGES, cut=True)}
                # Read for its torn end alone: what is appended would become part of that line.
                for _ in read_lines(folder / COST, cut=True):
                    pass
                self._fit()
        except BaseException:
            self.close()
            raise

    def _fit(self) -> None:
        """Forgets records whose adversarial image is not on disk, or is not the one that they are about."""
        path = self.folder / ADVERSARIAL
        if not path.exists():
            self.done = {}
            return
        with path.open("rb") as file:
            for position in sorted(self.done):
                file.seek(position * self.row)
                row = file.read(self.row)
                if len(row) < self.row or self.done[position].get("adv_crc", crc(row)) != crc(row):
                    del self.done[position]

    def note(self, **facts: object) -> None:
        """Adds facts to this run's entry and writes `cell.json`."""
        self.data["runs"][-1].update(facts)
        with full_disk_is_an_error(self.folder):
            replace(self.folder / CELL, json.dumps(self.data, indent=1) + "\n")

    def append(self, records: list[Record], rows: list[bytes], cost: Json) -> None:
        """Adversarial rows first, then the lines, each synced to disk. A full disk is a UserError; what was written stays."""
        # A longer one would reach into the next image's place, and take its bytes.
        if wrong := [(r["position"], len(row)) for r, row in zip(records, rows, strict=True) if len(row) != self.row]:
            position, length = wrong[0]
            raise UserError(
                f"the image at position {position} has {length} bytes, and one of {_size(self.data['shape'])} has {self.row}",
                "all images of a data set are of one size: `size=` or `crop=` makes them so",
            )
        records = [record | {"adv_crc": crc(row)} for record, row in zip(records, rows, strict=True)]
        self.news = True
        with full_disk_is_an_error(self.folder):
            if not self.noted:  # whoever wrote an image is named, even if it is killed before the end
                self.note()
                self.noted = True
            path = self.folder / ADVERSARIAL
            # Not "a": rows have their own places, and come in any order.
            with path.open("r+b" if path.exists() else "w+b") as file:
                for record, row in zip(records, rows, strict=True):
                    file.seek(record["position"] * self.row)
                    file.write(row)
                _sync(file)
            # The cost first: work whose lines are lost was spent all the same.
            self._extend(COST, [cost])
            self._extend(IMAGES, records)
        self.done.update({r["position"]: r for r in records})
        self.data["runs"][-1]["images"] = self.data["runs"][-1].get("images", 0) + len(records)

    def _extend(self, name: str, records: list[Json]) -> None:
        """Appends lines to a file and syncs it; where that fails, the file ends where it did before."""
        path = self.folder / name
        end = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write("".join(map(line, records)).encode())
                _sync(file)
        except OSError:
            # Half a line on a full disk is cut at once, so that the file is whole for whoever reads it now.
            with contextlib.suppress(OSError), path.open("r+b") as file:
                file.truncate(end)
            raise

    def adversarial(self, position: int) -> bytes:
        """The stored row of a position."""
        with (self.folder / ADVERSARIAL).open("rb") as file:
            file.seek(position * self.row)
            return file.read(self.row)

    def finish(self) -> None:
        """Sorts the lines by position, one per image, and writes the run's entry if it did anything."""
        with full_disk_is_an_error(self.folder):
            text = "".join(line(self.done[p]) for p in sorted(self.done))
            path = self.folder / IMAGES
            # A cell that was finished before is not touched: its files keep their bytes and their times.
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                replace(path, text)
            if self.news:
                self.note()

    def close(self) -> None:
        """Gives the lock back. Nothing is written: what was appended is on disk already."""
        self._lock.close()


def _size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def full_disk_is_an_error(folder: Path) -> Iterator[None]:
    """Makes an OSError inside (a full disk, a folder that may not be written) a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to `{folder}`: {error.strerror or error}",
            "free some space or mend the folder; the same command goes on where it stopped",
            FAILED,
        ) from None
