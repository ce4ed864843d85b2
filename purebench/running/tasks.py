"""What is left to do of a cell, cut into batches; torch-free, so that the process that hands them out stays light."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from purebench import datasets, registry
from purebench.plan.grid import Job
from purebench.records import store as records
from purebench.records.store import Json, Record
from purebench.spec import Cell


@dataclass(frozen=True)
class Task:
    """Positions of one cell that are done together. `evals`: draws per image; `stored`: position -> bytes of images that exist
    (those that a transfer's source has, or our own where only more draws are wanted: `judge`); `known`: position -> its record so
    far; `batch`: (first position, size) where an attack's unit is a batch; `clean`: position -> predictions already made on the
    clean image."""

    cell: Cell
    positions: tuple[int, ...]
    evals: int
    judge: bool = False
    stored: Mapping[int, bytes] = field(default_factory=dict)
    known: Mapping[int, Record] = field(default_factory=dict)
    clean: Mapping[int, list[int]] = field(default_factory=dict)
    batch: tuple[int, int] | None = None


@dataclass(frozen=True)
class Done:
    """Records and adversarial rows in the order of the task's positions, and what the batch cost."""

    records: list[Record]
    rows: list[bytes]
    cost: Json


def default_rows(cell: Cell) -> int:
    """Rows of the padded shape: the dataset's, or fewer (a multiple of 16) where a batch of the attack never fills them. An attack
    in batches with one draw per image spends its time on the survivors: half a batch."""
    rows = datasets.defaults(cell.dataset.name)["rows"]
    unit = registry.unit(cell.attack.name, cell.attack.values)
    if unit.images is None:
        return rows
    most = unit.images * _votes(cell) * (unit.draws or 1 / 2)
    return min(rows, math.ceil(most / 16) * 16)


def unit_of(cell: Cell) -> int | None:
    """The number of images that an attack must be given together, if any (AutoAttack's objects draw per batch)."""
    return registry.unit(cell.attack.name, cell.attack.values).images


def task_size(cell: Cell, rows: int) -> int:
    """Images per task for attacks that do not care: as many as fill the rows, 1 to 64."""
    copies = (registry.unit(cell.attack.name, cell.attack.values).draws or 1) * _votes(cell)
    return max(1, min(64, rows // copies if copies > 1 else rows // 5))


def _votes(cell: Cell) -> int:
    return int(registry.options(cell.defense.options)["votes"])


def missing(job: Job, done: dict[int, Record], rows: int) -> list[Task]:
    """The batches that are still to be computed, given the records that exist. Images that an attack failed to make are tried again."""
    cell, unit = job.cell, unit_of(job.cell)
    done = {p: record for p, record in done.items() if not records.lost(record)}

    def had(positions: range) -> list[int]:
        return [0, *(len(done[p]["adversarial"]) for p in positions if p in done)]  # draws are never given up

    if unit:
        starts = range(0, job.images, unit)
        batches = [(a, min(unit, job.images - a)) for a in starts]
        attack = [
            Task(cell, tuple(range(a, a + size)), max(job.evals, *had(range(a, a + size))), batch=(a, size))
            for a, size in batches
            if any(p not in done or done[p]["batch"][1] < size for p in range(a, a + size))
        ]
    else:
        todo, size = [p for p in range(job.images) if p not in done], task_size(cell, rows)
        attack = [Task(cell, tuple(todo[i : i + size]), job.evals) for i in range(0, len(todo), size)]
    covered = {p for t in attack for p in t.positions}
    short = [p for p in range(job.images) if p not in covered and len(done[p]["adversarial"]) < job.evals]
    by_count: dict[int, list[int]] = {}
    for p in short:
        by_count.setdefault(len(done[p]["adversarial"]), []).append(p)
    judge = [
        Task(cell, tuple(ps[i : i + 64]), job.evals, judge=True)
        for ps in by_count.values()
        for i in range(0, len(ps), 64)
    ]
    return attack + judge
