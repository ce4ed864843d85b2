"""What is left to do of a cell, cut into batches; torch-free, so that the process that hands them out stays light."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from purebench import datasets, registry
from purebench.plan.grid import Job
from purebench.records import store as records
from purebench.records.store import Json, Record
from purebench.spec import Cell

LOGS = ("score_norm", "moved")  # what `run --log` adds to lines (`watched`)
LARGEST = 64  # images per task: a kill loses at most so many, and progress is told as often


@dataclass(frozen=True)
class Task:
    """Positions of one cell that are done together. `evals`: draws per image; `stored`: position -> bytes of images that exist
    (a user's, those that a transfer's source has, or our own where only more draws are wanted: `judge`); `known`: position -> its record so
    far; `batch`: (first position, size) where an attack's unit is a batch; `clean`: position -> predictions already made on the
    clean image; `log`: what is watched beside (`--log`)."""

    cell: Cell
    positions: tuple[int, ...]
    evals: int
    judge: bool = False
    stored: Mapping[int, bytes] = field(default_factory=dict)
    known: Mapping[int, Record] = field(default_factory=dict)
    clean: Mapping[int, list[int]] = field(default_factory=dict)
    batch: tuple[int, int] | None = None
    log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """Records and adversarial rows in the order of the task's positions, what the batch cost, and what the user is to be told."""

    records: list[Record]
    rows: list[bytes]
    cost: Json
    warnings: tuple[str, ...] = ()
    gate: Mapping[str, Json] = field(default_factory=dict)  # what a precision's gate found, by role


def votes(cell: Cell) -> int:
    """The purifications that the cell's defense decides by."""
    return int(registry.options(cell.defense.options)["votes"])


def unit(cell: Cell) -> registry.Unit:
    """What the cell's attack is given at once (AutoAttack's objects draw per batch)."""
    inner = [registry.unit(one.key, one.values).draws or 1 for one in cell.attack.inner]
    # Of attacks one after the other, the rows are filled by the one that has most.
    return registry.Unit(None, max(inner)) if inner else registry.unit(cell.attack.key, cell.attack.values)


def default_rows(cell: Cell, rows: int | None = None) -> int:
    """Rows of the padded shape: `rows`, else the dataset's, or fewer (a multiple of 16) where a batch of the attack never fills them. An
    attack in batches with one draw per image spends its time on the survivors: half a batch."""
    rows = rows or datasets.defaults(datasets.base(cell.dataset.name, cell.dataset.values))["rows"]
    images, draws = unit(cell).images, unit(cell).draws
    if images is None:
        return rows
    largest = images * votes(cell) * (draws or 1 / 2)
    # Not below 16: there the bits of a row depend on how many stand beside it.
    return min(rows, math.ceil(largest / 16) * 16)


def task_size(cell: Cell, rows: int) -> int:
    """Images per task for attacks that do not care: as many as fill the rows, 1 to LARGEST."""
    copies = (unit(cell).draws or 1) * votes(cell)
    if cell.attack.inner or cell.attack.values.get(cell.attack.info.get("drops", "")):
        # What is left after some images have gone, or the first attacks, is to fill the rows, too.
        return max(1, min(LARGEST, 8 * max(1, rows // copies)))
    # Where an image is one row of the attack, it is several of the judge, who folds its draws into rows: a few images fill them.
    return max(1, min(LARGEST, rows // copies if copies > 1 else rows // 5))


def missing(job: Job, done: Mapping[int, Record], rows: int) -> list[Task]:
    """The batches that are still to be computed, given the records that exist. Images that an attack failed to make are tried again."""
    done = {position: record for position, record in done.items() if not records.lost(record)}
    size = unit(job.cell).images
    attack = _whole_batches(job, done, size) if size else _single_images(job, done, rows)
    attacked = {position for task in attack for position in task.positions}
    return attack + _more_draws(
        job, {position: done[position] for position in range(job.images) if position not in attacked}
    )


def _whole_batches(job: Job, done: Mapping[int, Record], size: int) -> list[Task]:
    """Of an attack whose draws belong to a batch: those of which an image is missing, or which were shorter when they were run."""
    tasks = []
    for first in range(0, job.images, size):
        batch = range(first, min(first + size, job.images))
        if all(p in done and done[p]["batch"][1] >= len(batch) for p in batch):
            continue
        # Draws are never given up: an image that was judged more often is so again.
        evals = max([job.evals, *(len(done[p]["adversarial"]) for p in batch if p in done)])
        tasks.append(Task(job.cell, tuple(batch), evals, batch=(first, len(batch))))
    return tasks


def _single_images(job: Job, done: Mapping[int, Record], rows: int) -> list[Task]:
    """Of an attack that takes each image for itself: the missing ones."""
    missing = [position for position in range(job.images) if position not in done]
    return [Task(job.cell, positions, job.evals) for positions in _cut(missing, task_size(job.cell, rows))]


def _more_draws(job: Job, done: Mapping[int, Record]) -> list[Task]:
    """Of images that are attacked, but judged less often than is wanted now: the draws that they lack."""
    # Together those that have as many: a batch is judged from one draw on.
    by_count: dict[int, list[int]] = defaultdict(list)
    for position, record in done.items():
        if len(record["adversarial"]) < job.evals:
            by_count[len(record["adversarial"])].append(position)
    batches = (batch for positions in by_count.values() for batch in _cut(positions, LARGEST))
    return [Task(job.cell, batch, job.evals, judge=True) for batch in batches]


def _cut(positions: list[int], size: int) -> list[tuple[int, ...]]:
    """The positions in tuples of this size, the last one perhaps shorter."""
    return [tuple(positions[i : i + size]) for i in range(0, len(positions), size)]
