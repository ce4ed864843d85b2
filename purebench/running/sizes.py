"""`--rows auto`: in how many rows a plan's networks are fastest here, measured once for each network and device, and kept in the cache.

A network is asked for a forward and a backward call of 16, 32, .. rows, until more rows are no longer worth it, take too long, or do not
fit. Of these a cell gets the fastest whose gradient fits the memory. The last bits of a number depend on the rows, so that a cell that
has records keeps theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from purebench import assets, atomic, registry
from purebench.assets import checkpoint
from purebench.engine import device as devices
from purebench.plan.grid import Job, Plan
from purebench.records import store
from purebench.running import rehearsal, runner, speed, tasks
from purebench.running.runner import Settings
from purebench.spec import Cell, Resolved

SIZES = (16, 32, 64, 128, 256, 512)
WORTH = 0.95  # of the seconds per row of the best so far, below which a larger size is another step up
LONG = 4.0  # seconds of a forward call beyond which no larger one is tried
FILE = "rows.json"  # in the cache: network and device -> {rows: seconds of a row, forward and backward}

Timings = dict[int, float]
Note = Callable[[str], None]


def choose(plan: Plan, settings: Settings, note: Note | None = None) -> dict[str, int]:
    """Cell id -> rows of its network calls. `note` is told what was chosen for a network, and what was not measured."""
    device = devices.setup(settings.device)
    memory = settings.memory or devices.free_memory(device, settings.workers)
    measured: dict[Resolved, Timings] = {}
    found, said = {}, dict[str, None]()
    for job in plan.jobs:
        if known := _recorded(settings, job.cell):
            found[job.cell.id] = known
            continue
        network = _network(job.cell)
        if network not in measured:
            measured[network] = timings(network, tuple(job.shape), device, untrained=bool(plan.missing))
        fastest = _fitting(job, measured[network], memory)
        found[job.cell.id] = tasks.default_rows(job.cell, fastest)
        chosen = f"{fastest} rows" if fastest else "not measured, since it is not ours: the dataset's rows"
        said[f"`--rows auto`: `{network}`: {chosen}"] = None
    if note is not None:
        for line in said:
            note(line)
    return found


def timings(network: Resolved, shape: tuple[int, ...], device: torch.device, *, untrained: bool = False) -> Timings:
    """Rows -> seconds of a row of a classifier or score model, as kept or as measured now; {} of one that is not ours. shape: (C,H,W) of
    the images; untrained: with fresh weights, since files are missing; the time is the same."""
    if not registry.is_ours(network.kind, network.key):
        return {}
    path = assets.cache_folder() / FILE
    key = json.dumps([devices.facts(device)["hardware"], torch.__version__, str(network), network.digest, list(shape)])
    kept = _read(path)
    if key not in kept:
        with checkpoint.untrained() if untrained else nullcontext():
            kept[key] = _measured(network, shape, device)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, json.dumps(kept, indent=1) + "\n")
    return kept[key]


def _measured(network: Resolved, shape: tuple[int, ...], device: torch.device) -> Timings:
    found: Timings = {}
    for rows in SIZES:
        try:
            took = speed.of(network, shape, device, rows)
        except (RuntimeError, MemoryError) as error:
            if devices.out_of_memory(error):
                devices.release()
                break
            raise
        assert took is not None  # it is ours
        best = min(found.values(), default=float("inf"))
        found[rows] = took.forward + took.backward
        if found[rows] > WORTH * best or took.forward * rows > LONG:
            break
    return found


def _fitting(job: Job, timings: Timings, memory: int) -> int | None:
    """The fastest number of rows at which one step of the cell's gradient fits; the least where none does, since the run halves it."""
    for rows in sorted(timings, key=lambda rows: timings[rows]):
        if rehearsal.fits(job.cell, job.shape, memory, rows):
            return rows
    return min(timings, default=None)


def _network(cell: Cell) -> Resolved:
    """The one that is called most."""
    return cell.scores[0] if cell.scores else cell.classifier


def _recorded(settings: Settings, cell: Cell) -> int | None:
    """The rows of a cell's records, where it has some that are kept."""
    log: store.Log | None = runner.recorded(settings, cell)
    rows = log.runs[-1].get("rows") if log and log.images and log.runs else None
    return int(rows) if rows else None


def _read(path: Path) -> dict[str, Timings]:
    """What was kept; nothing where it cannot be read, as it can be measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: {int(rows): float(took) for rows, took in of.items()} for key, of in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
