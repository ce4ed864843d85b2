"""Recorded cells run again, each by its own description: are the ids, the images and the lines the same bytes?

    python benchmarks/rerun.py results/digits-all [--images N] [--only WORD] [--workers N] [--out FOLDER]

Of each recorded cell the first N images are made again in a folder of its own (`--out`, else one that is thrown away), with the recorded
rows and number of evaluations. A line is compared key by key as it was recorded: what this version writes beside is named, and no
difference. For a difference the table says the first one, the largest distance of images, and on which machine and with which torch the
record was made. One process on one thread is the rule; so are the records of `results`.

A processor of another kind may round a product otherwise. An attack along signs makes of a gradient that is all but zero a whole step, so
that a last bit is seen: run the version that made the record on this machine, and compare with that, before you suspect the code.
Cells of an attack whose draws belong to a batch (AutoAttack) are run with whole batches. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import purebench
from purebench.errors import UserError
from purebench.plan import grid
from purebench.records import store
from purebench.records.store import Log
from purebench.report import recipe

MACHINE = ("hardware", "torch", "threads", "rows")
OF_FILE = ("crc",)  # of the whole line, which may have more keys now


@dataclass
class Compared:
    """A recorded cell beside its repetition; `why`: the first difference, or why there is none to see."""

    name: str
    ids: str = "-"
    images: str = "-"
    lines: str = "-"
    why: str = ""
    more: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return "no" in (self.ids, self.images, self.lines)


def asked(log: Log, images: int | None) -> recipe.Grid:
    """The grid of one cell with how much of it is run again."""
    lines = store.judged(log)
    n = min(images or len(lines), len(lines))
    # Its draws are those of the batch: with fewer images they are others.
    while n < len(lines) and "batch" in lines[n] and lines[n]["batch"][0] < n:
        n += 1
    return recipe.of(log) | {"images": n, "evals": len(lines[0]["adversarial"])}


def again(wanted: dict[str, recipe.Grid], rows: int, out: Path, workers: int) -> None:
    """Runs the cells in `out`. Those that fail are missing there."""
    text = "".join(f"[[grid]]\n{recipe.toml(one)}\n" for one in wanted.values())
    file = out / f"rows{rows}.toml"
    file.write_text(text, encoding="utf-8")
    purebench.run(str(file), rows=rows, workers=workers, device="cpu", out=out, quiet=True)


def compare(old: Log, folder: Path, wanted: recipe.Grid) -> Compared:
    """The recorded cell with what lies in `folder`."""
    [job] = grid.jobs(wanted)
    found = Compared(old.folder.name, ids="yes" if job.cell.id == old.id == old.folder.name else "no")
    if found.ids == "no":
        found.why = f"it is {job.cell.id} now"
        return found
    new = store.load(folder)
    lines, repeated = old.images[: wanted["images"]], new.images[: wanted["images"]]
    if len(repeated) < len(lines):
        found.lines, found.why = "no", f"{len(lines) - len(repeated)} images are missing"
        return found
    found.more = tuple(sorted(set().union(*repeated) - set().union(*lines)))
    first = next(((a, b, k) for a, b in zip(lines, repeated, strict=True) for k in a if differs(a, b, k)), None)
    found.lines = "no" if first else "yes"
    if first:
        line, other, key = first
        found.why = f"image {line['position']}: `{key}` {line[key]}, now {other.get(key)}"
    if (old.folder / store.ADVERSARIAL).exists():
        before, now = (pixels(log.folder, len(lines)) for log in (old, new))
        found.images = "yes" if before.tobytes() == now.tobytes() else "no"
        if found.images == "no":
            # A record whose file is shorter is told by its lines.
            rows = np.abs(before - now).max(1)
            found.why = f"{int((rows > 0).sum())} of {len(rows)} images, by {rows.max():.2g} at most; {found.why}"
    if found.differs:
        found.why += f"; recorded on {machine(old)}, now {machine(new)}"
    return found


def differs(line: store.Record, other: store.Record, key: str) -> bool:
    return key not in OF_FILE and json.dumps(line[key]) != json.dumps(other.get(key))


def pixels(folder: Path, images: int) -> np.ndarray:
    """(N, C*H*W): the first images of a cell."""
    size = int(np.prod(json.loads((folder / store.CELL).read_text(encoding="utf-8"))["shape"]))
    return np.fromfile(folder / store.ADVERSARIAL, "<f4", count=images * size).reshape(-1, size)


def machine(log: Log) -> str:
    run = log.runs[-1] if log.runs else {}
    return ", ".join(f"{key} {run.get(key, '?')}" for key in MACHINE)


def printed(found: list[Compared]) -> str:
    """The table, what lines have beside, and the sum."""
    rows = [f"| {c.name} | {c.ids} | {c.images} | {c.lines} | {c.why} |" for c in found]
    more = sorted({key for c in found for key in c.more})
    same = sum(not c.differs and c.lines == "yes" for c in found)
    head = ["| cell | id | images | lines | first difference |", "|---|---|---|---|---|"]
    beside = [f"lines have beside, which was not recorded: {', '.join(more)}"] if more else []
    return "\n".join([*head, *rows, "", *beside, f"{same} of {len(found)} cells are the same bytes"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Recorded cells run again.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--images", type=int, help="the first so many of each cell (default: all)")
    parser.add_argument("--only", default="", help="cells with this word in their name")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder that is kept, in which a second call goes on")
    options = parser.parse_args()
    logs = [log for log in store.load_all([options.results]) if options.only in log.folder.name]
    kept: dict[int, dict[str, recipe.Grid]] = defaultdict(dict)
    found: dict[str, Compared] = {}
    for log in logs:
        try:
            one = asked(log, options.images)
            grid.jobs(one)
            kept[int(log.runs[-1]["rows"])][log.id] = one
        except (UserError, IndexError) as error:
            found[log.id] = Compared(log.folder.name, why=f"cannot be run: {error}")
    with tempfile.TemporaryDirectory() as scratch:
        for rows, wanted in kept.items():
            # Apart: a transfer's source may be a cell of either number of rows.
            out = (options.out or Path(scratch)) / f"rows{rows}"
            out.mkdir(parents=True, exist_ok=True)
            again(wanted, rows, out, options.workers)
            for log in logs:
                if log.id in wanted:
                    found[log.id] = compare(log, out / log.id, wanted[log.id])
    print(printed([found[log.id] for log in logs]))
    return int(any(one.differs for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
