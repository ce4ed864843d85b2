"""Runs a plan: a queue of cells and batches, worked off by a pool (this process or workers); this process alone writes.

A batch's numbers depend on nothing but its cell and positions, so workers, order, kills and restarts leave the records unchanged.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from purebench import datasets, registry
from purebench.errors import Mistake, UserError
from purebench.plan.grid import Job, Plan
from purebench.records import store as records
from purebench.records.store import Record
from purebench.running import brought, cost, pools, tasks
from purebench.running.progress import Reporter
from purebench.running.tasks import Done, Task
from purebench.spec import Cell


@dataclass
class Settings:
    """How to run; nothing here changes a number (`rows` may, in the last bits)."""

    out: Path
    device: str = "auto"
    rows: int | None = None
    workers: int = 1
    memory: int | None = None
    fresh: bool = False
    log: tuple[str, ...] = ()  # of `tasks.LOGS`: keys that lines of new images have besides
    sizes: Mapping[str, int] = field(default_factory=dict)  # rows by cell id, where they were measured
    reverse: bool = False  # the images in another order: only tests ask for it

    def rows_of(self, cell: Cell) -> int:
        """Rows of every network call of a cell."""
        return self.rows or self.sizes.get(cell.id) or tasks.default_rows(cell)


@dataclass
class Outcome:
    """What became of the cells, by id: finished, another process's, failed and why; and how many images are new."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    images: int = 0


def gpu_is_here() -> bool:
    """Whether the system shows an NVIDIA GPU. Without a device file there is none, and torch, which takes seconds to import, need not be
    asked."""
    return Path("/dev/dxg").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def cores() -> int:
    """Of those that a container or `taskset` leaves us; macOS cannot say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One per GPU; on CPU one per core this process may use, at most 8."""
    if device.startswith("cuda:"):
        return 1
    if device == "cuda" or (device == "auto" and gpu_is_here()):
        import torch

        # Asked for and not there, it is the device's to refuse, with a hint.
        if torch.cuda.device_count() or device == "cuda":
            return max(1, torch.cuda.device_count())
    return min(8, cores())


def run(plan: Plan, settings: Settings, report: Reporter, outcome: Outcome | None = None) -> Outcome:
    """Works the plan off. A failing cell does not stop the others; KeyboardInterrupt leaves everything written as it is.

    `outcome` is filled while the run goes on, so that who holds it knows what was done even after an exception. Raises UserError for
    damaged records, a device that cannot be used, or a disk that is full.
    """
    outcome = outcome or Outcome()
    # Before the workers are started, which takes seconds.
    check(plan, settings)
    for job in plan.jobs:
        records.announce(place(settings.out, job.cell), job.cell.id, job.cell.data(), job.shape, job.images)
    report.start(sum(cost.work(job) * job.images for job in plan.jobs))
    pool = pools.start(settings.workers, settings.device, settings.memory, report)
    queue = _Queue(plan, settings, report, outcome, pool)
    try:
        queue.work_off()
    finally:
        pool.stop()
        queue.abandon()
    return outcome


def check(plan: Plan, settings: Settings) -> None:
    """Reads what is there of every cell, so that a damaged or newer record is refused before anything is computed."""
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(
            f"`--out {settings.out}` is a file, and results are a folder", "name another folder, or leave it out"
        )
    for job in plan.jobs:
        recorded(settings, job.cell)


def recorded(settings: Settings, cell: Cell) -> records.Log | None:
    """What a run will go on from; None where nothing is recorded, or is to be set aside. Raises UserError for damaged records."""
    folder = place(settings.out, cell)
    if settings.fresh or not (folder / records.CELL).exists():
        return None
    return records.load(folder)


def place(out: Path, cell: Cell) -> Path:
    """The cell's folder: under its id, or under one that it had before, where its records lie there."""
    for name in (cell.id, *cell.aliases):
        if (out / name / records.CELL).exists():
            return out / name
    return out / cell.id


def git() -> str:
    """Commit and `-dirty` of the checkout that this package runs from; empty outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    # No git, or one that hangs on a broken checkout, is no reason to compute nothing.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    return ""


# --------------------------------------------------------------------------------------------------------------- the queue


class _Queue:
    """The cells of a plan on their way: not begun (`backlog`), open (`active`, by id), and closed (in `outcome`)."""

    def __init__(self, plan: Plan, settings: Settings, report: Reporter, outcome: Outcome, pool: pools.Pool):
        self.plan, self.settings, self.report, self.outcome, self.pool = plan, settings, report, outcome, pool
        self.backlog = list(plan.jobs)
        self.active: dict[str, _OpenCell] = {}
        self.warned: set[str] = set()
        # Predictions on clean images, by position: the attacks on one defense share them instead of making them again.
        self.clean: dict[tuple, dict[int, list[int]]] = defaultdict(dict)

    def work_off(self) -> None:
        """Gives out batches and records what comes back, until nothing is left."""
        while True:
            self.give_out()
            # Nobody is at work, though all are free: there was nothing to give.
            if not self.pool.busy():
                return
            for task, result in self.pool.results():
                self.finished(task, result)

    def give_out(self) -> None:
        """Batches for everyone who is free, as far as there are any."""
        while self.pool.free():
            found = self.ready()
            if found is None:
                return
            cell, task = found
            cell.under_way += 1
            self.pool.give(task, cell.rows)

    def ready(self) -> tuple[_OpenCell, Task] | None:
        """The next batch, with all that it reads; None if there is none now."""
        while True:
            # Cells are finished before others are begun: a run that is cut short leaves whole cells, not pieces of all.
            for cell in self.active.values():
                if cell.tasks:
                    return cell, cell.with_inputs(cell.tasks.pop(0), self.clean[cell.clean_key])
            if not self.open_next():
                return None

    def open_next(self) -> bool:
        """Opens the next cell, a transfer only when its source is closed; False if there is none."""
        # The plan has sources first: one that is not active is closed, and not merely still to come.
        job = next((job for job in self.backlog if _source(job) not in self.active), None)
        if job is None:
            return False
        self.backlog.remove(job)
        source = _source(job)
        if source in self.outcome.skipped:
            self.skip(job, f"its source {source}")
            return True
        try:
            cell = _OpenCell(job, self.settings)
        except records.Locked:
            self.skip(job, "it")
            return True
        self.active[cell.id] = cell
        left = sum(len(task.positions) for task in cell.tasks)
        self.report.skip(cost.work(job) * (job.images - left))
        # Only where it has something to do: images that an earlier run transferred are as good as they were.
        if source in self.outcome.failed and cell.tasks:
            cell.failed, cell.tasks = f"its source {source} failed", []
        if not cell.tasks:
            self.close(cell)
        return True

    def skip(self, job: Job, locked: str) -> None:
        """Leaves a cell to the process that is writing it, or its source: `locked`."""
        self.outcome.skipped.append(job.cell.id)
        self.report.say(f"skipped: {job.cell}: another process is computing {locked}")
        self.report.skip(cost.work(job) * job.images)

    def finished(self, task: Task, result: pools.Result) -> None:
        """Records a batch that came back, and closes its cell if it was the last one."""
        cell = self.active[task.cell.id]
        cell.under_way -= 1
        if isinstance(result, Done):
            self.record(cell, result)
        else:
            # The first failure is the reason; batches of the cell that are under way are still recorded.
            cell.failed, cell.tasks = cell.failed or result, []
        if not cell.tasks and not cell.under_way:
            self.close(cell)

    def record(self, cell: _OpenCell, done: Done) -> None:
        """Writes a batch, and tells of it."""
        # So that what is said to be kept is what was written.
        with pools.ctrl_c_waits():
            cell.append(done, self.pool.facts)
            self.outcome.images += len(done.records)
        for warning in done.warnings:
            # Every worker finds it.
            if warning not in self.warned:
                self.report.say(f"warning: {warning}")
                self.warned.add(warning)
        if reasons := _reasons(done.records):
            self.report.say(f"warning: {cell.cell}: {reasons}")
        # Of a batch that was computed with fewer rows the last bits are others.
        whole = (record for record in done.records if "rows" not in record)
        self.clean[cell.clean_key].update({record["position"]: record["clean"] for record in whole})
        self.report.batch(str(cell.cell), cell.robust(), len(cell.store.done), cell.job.images)

    def close(self, cell: _OpenCell) -> None:
        """Ends a cell whose batches are all back: in order on disk, or with the reason why it failed."""
        del self.active[cell.id]
        try:
            if not cell.failed:
                cell.store.finish()
                cell.failed = cell.lost()
                if cell.failed and not registry.is_ours("attack", cell.cell.attack.key):
                    cell.failed = Mistake(cell.failed)
            if cell.failed:
                self.outcome.failed[cell.id] = cell.failed
                self.report.say(f"failed: {cell.cell}: {cell.failed}")
                # On disk too, so that `status` and the table know it after this process.
                cell.store.note(failed=cell.failed)
            else:
                self.outcome.done.append(cell.id)
        finally:
            cell.store.close()

    def abandon(self) -> None:
        """Lets go of the cells that an error or Ctrl-C left open: their records stay, to be gone on with."""
        for cell in self.active.values():
            # What ended the run is on its way up already; a disk that is still full must not take its place.
            with contextlib.suppress(UserError):
                if cell.store.news and cell.store.done:
                    cell.store.note()
            cell.store.close()


class _OpenCell:
    """A cell that is being worked on: its store, the tasks not yet given out, and how many are under way."""

    def __init__(self, job: Job, settings: Settings):
        """Raises records.Locked while another process writes the cell."""
        self.job, self.cell, self.id = job, job.cell, job.cell.id
        self.rows, self.out, self.log = settings.rows_of(job.cell), settings.out, settings.log
        folder = place(settings.out, job.cell)
        # What was only announced is nothing to be kept.
        if settings.fresh and records.begun(folder):
            records.set_aside(folder)
        self.store = records.Store(folder, self.id, job.cell.data(), job.shape, self._entry())
        # Positions of the images that the source of a transfer has.
        self.source: set[int] = set()
        if job.cell.source:
            self._follow(job.cell.source)
        self.tasks = tasks.missing(job, self.store.done, self.rows)
        if settings.reverse:
            self.tasks.reverse()
            # A batch that is an attack's unit stays as it is: its draws belong to its order.
            if tasks.unit(job.cell).images is None:
                self.tasks = [replace(task, positions=task.positions[::-1]) for task in self.tasks]
        self.under_way = 0
        self.failed: str | None = None
        # What the judge's predictions on clean images depend on: cells that agree in it share them. Not on the attack, the gradient
        # or the threat model; but on the rows, in the last bits.
        cell = self.cell
        self.clean_key = (
            cell.dataset, cell.subset, cell.classifier, cell.scores, cell.defense, cell.seed, cell.noise, self.rows,
        )  # fmt: skip

    def _entry(self) -> records.Json:
        """This run's entry in `cell.json`."""
        job = self.job
        entry: records.Json = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": git(),
            "rows": self.rows,
            "wanted": job.images,
            "evals": job.evals,
            "images": 0,
            # Of the images wanted, in order: whoever reads the records can tell whether two runs took the same ones.
            "indices": datasets.index_hash(datasets.order(job.size, job.cell.subset)[: job.images]),
        }
        optional = {"stand_in": list(job.stand_in), "targets": job.cell.targets()}
        return entry | {key: value for key, value in optional.items() if value}

    def _follow(self, source: Cell) -> None:
        """Notes which images a transfer's source has, and forgets our records of those that it made anew since then or not at all."""
        for position, theirs in records.latest(place(self.out, source)).items():
            ours = self.store.done.get(position, theirs)
            # By the images' checksums: ours is of the image as it was when it was transferred.
            if records.lost(theirs) or ours.get("adv_crc") != theirs.get("adv_crc"):
                self.store.done.pop(position, None)
            if not records.lost(theirs):
                self.source.add(position)

    def append(self, done: Done, facts: pools.Facts) -> None:
        """Writes a batch. facts: of the machine; those of the run's first batch stay."""
        for fact, value in facts.items():
            self.store.data["runs"][-1].setdefault(fact, value)
        if done.gate:
            self.store.data["runs"][-1].setdefault("gate", dict(done.gate))
        self.store.append(done.records, done.rows, done.cost)

    def robust(self) -> float:
        """Running robust accuracy of the images done."""
        lines = [record for record in self.store.done.values() if not records.lost(record)]
        per_image = [sum(p == line["label"] for p in line["adversarial"]) / len(line["adversarial"]) for line in lines]
        return sum(per_image) / max(len(per_image), 1)

    def lost(self) -> str | None:
        """Why a finished cell has no number: the attack made no image at all. None if it made one."""
        lines = list(self.store.done.values())
        if not all(records.lost(line) for line in lines):
            return None
        return f"`{self.cell.attack}` made none of its {len(lines)} images; {_reasons(lines[:1])}"

    def with_inputs(self, task: Task, clean: dict[int, list[int]]) -> Task:
        """The task with the stored images and predictions that it reads. clean: position -> predictions already made."""
        stored: dict[int, bytes] = {}
        known: dict[int, Record] = {}
        if task.judge:
            stored = _rows_of(self.store.folder, task.positions, self.store.row)
            known = {p: self.store.done[p] for p in task.positions}
        elif task.cell.source:
            # Read only now, when the source is closed and its images are final.
            folder = place(self.out, task.cell.source)
            stored = _rows_of(folder, self.source.intersection(task.positions), self.store.row)
        elif found := brought.of(self.job):
            stored = {p: found.images[p].tobytes() for p in task.positions}
        predictions = {p: clean[p] for p in task.positions if p in clean}
        # Our own record wins: what it says of the clean image stays as it is, and is only added to.
        predictions |= {p: record["clean"] for p, record in known.items()}
        return replace(task, stored=stored, known=known, clean=predictions, log=self.log)


def _rows_of(folder: Path, positions: Iterable[int], size: int) -> dict[int, bytes]:
    """The stored images of a cell, rows of `size` bytes, by position."""
    stored = {}
    with (folder / records.ADVERSARIAL).open("rb") as file:
        for position in positions:
            file.seek(position * size)
            stored[position] = file.read(size)
    return stored


def _source(job: Job) -> str:
    """The id of the cell whose images a transfer reads; empty for other attacks."""
    return job.cell.source.id if job.cell.source else ""


def _reasons(lines: list[Record], limit: int = 6) -> str:
    """`images 3, 8 and 20 more: step 1 of 3 gave ..; image 5: ..`: the first few of those records in which something was not finite, or
    the attack made no image, and why; empty if there is none."""
    # By reason, not by image: a defense that overflows does so on hundreds of images, and for one reason.
    images: dict[str, list[int]] = defaultdict(list)
    for line in lines:
        reasons = [f"{records.WHERE[where]}: {why}" for where, why in line.get("not_finite", {}).items()]
        if records.lost(line):
            reasons.append(f"not judged: {line['failed']}")
        for reason in reasons:
            images[reason].append(line["index"])
    parts = []
    for reason, indices in list(images.items())[:limit]:
        more = f" and {len(indices) - limit} more" if len(indices) > limit else ""
        parts.append(f"image{'s' * (len(indices) > 1)} {', '.join(map(str, indices[:limit]))}{more}: {reason}")
    if len(images) > limit:
        parts.append("and others")
    return "; ".join(parts)
