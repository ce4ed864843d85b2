"""Runs a plan: a queue of cells and batches, worked off by a pool (this process or workers); this process alone writes.

A batch's numbers depend on nothing but its cell and positions, so workers, order, kills and restarts leave the records unchanged.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from purebench import datasets
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.records.store import Record
from purebench.running import cost, pools, tasks
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
    reverse: bool = False  # the images in another order: only tests ask for it

    def rows_of(self, cell: Cell) -> int:
        """Rows of every network call of a cell."""
        return self.rows or tasks.default_rows(cell)


@dataclass
class Outcome:
    """What became of the cells, by id: finished, another process's, failed and why; and how many images are new."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    images: int = 0


def default_workers(device: str) -> int:
    """One per GPU; on CPU one per core this process may use, at most 8."""
    if device.startswith("cuda:"):
        return 1
    # Without a GPU's device file there is none, and torch, which takes seconds to import, need not be asked.
    gpu = Path("/dev/dxg").exists() or any(Path("/dev").glob("nvidia[0-9]*"))
    if device == "cuda" or (device == "auto" and gpu):
        import torch

        if device == "cuda" or torch.cuda.device_count():
            return max(1, torch.cuda.device_count())
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def run(the_plan: plan.Plan, settings: Settings, report: Reporter, outcome: Outcome | None = None) -> Outcome:
    """Works the plan off. A failing cell does not stop the others; KeyboardInterrupt leaves everything written as it is.

    `outcome` is filled while the run goes on, so that who holds it knows what was done even after an exception. Raises UserError for
    damaged records, a device that cannot be used, or a disk that is full.
    """
    outcome = outcome or Outcome()
    check(the_plan, settings)
    report.start(sum(cost.work(job, the_plan.shape) * job.images for job in the_plan.jobs), 0)
    pool = pools.start(settings.workers, settings.device, settings.memory, report)
    queue = _Queue(the_plan, settings, report, outcome, pool)
    try:
        queue.work_off()
    finally:
        pool.stop()
        queue.abandon()
    return outcome


def check(the_plan: plan.Plan, settings: Settings) -> None:
    """Reads what is there of every cell, so that a damaged or newer record is refused before anything is computed."""
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(
            f"`--out {settings.out}` is a file, and results are a folder", "name another folder, or leave it out"
        )
    for job in the_plan.jobs:
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
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# --------------------------------------------------------------------------------------------------------------- the queue


class _Queue:
    """The cells of a plan on their way: not begun (`backlog`), open (`active`, by id), and closed (in `outcome`)."""

    def __init__(self, the_plan: plan.Plan, settings: Settings, report: Reporter, outcome: Outcome, pool: pools.Pool):
        self.plan, self.settings, self.report, self.outcome, self.pool = the_plan, settings, report, outcome, pool
        self.backlog = list(the_plan.jobs)
        self.active: dict[str, _OpenCell] = {}
        # Predictions on clean images, by position: the attacks on one defense share them instead of making them again.
        self.clean: dict[tuple, dict[int, list[int]]] = {}

    def work_off(self) -> None:
        """Gives out batches and records what comes back, until nothing is left."""
        while True:
            self.give_out()
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
            for cell in self.active.values():
                if cell.tasks:
                    return cell, cell.with_inputs(cell.tasks.pop(0), self.clean.get(cell.clean_key(), {}))
            if not self.open_next():
                return None

    def open_next(self) -> bool:
        """Opens the next cell, a transfer only when its source is closed; False if there is none."""
        job = next((j for j in self.backlog if _source(j) not in self.active), None)
        if job is None:
            return False
        self.backlog.remove(job)
        source = _source(job)
        try:
            if source in self.outcome.skipped:
                raise records.Locked(source)
            cell = _OpenCell(job, self.settings, self.plan.shape, self.plan.size)
        except records.Locked:
            self.skip(job)
            return True
        self.active[cell.id] = cell
        left = sum(len(task.positions) for task in cell.tasks)
        self.report.skip(cost.work(job, self.plan.shape) * (job.images - left))  # already there
        if source in self.outcome.failed and cell.tasks:
            cell.failed, cell.tasks = f"its source {source} failed", []
        if not cell.tasks:
            self.close(cell)
        return True

    def skip(self, job: plan.Job) -> None:
        """Leaves a cell to the process that is writing it, or its source."""
        source = _source(job)
        self.outcome.skipped.append(job.cell.id)
        what = f"its source {source}" if source in self.outcome.skipped else "it"
        self.report.say(f"skipped: {job.cell}: another process is computing {what}")
        self.report.skip(cost.work(job, self.plan.shape) * job.images)

    def finished(self, task: Task, result: pools.Result) -> None:
        """Records a batch that came back, and closes its cell if it was the last one."""
        cell = self.active[task.cell.id]
        cell.under_way -= 1
        if isinstance(result, Done):
            self.record(cell, result)
        else:  # batches of the cell that are under way are still recorded
            cell.failed, cell.tasks = cell.failed or result, []
        if not cell.tasks and not cell.under_way:
            self.close(cell)

    def record(self, cell: _OpenCell, done: Done) -> None:
        """Writes a batch, and tells of it."""
        with pools.ctrl_c_waits():  # so that what is said to be kept is what was written
            cell.append(done, self.pool.facts)
            self.outcome.images += len(done.records)
        if reasons := _reasons(done.records):
            self.report.say(f"warning: {cell.cell}: {reasons}")
        known = self.clean.setdefault(cell.clean_key(), {})
        known.update({record["position"]: record["clean"] for record in done.records})
        self.report.batch(str(cell.cell), cell.robust(), len(cell.store.done), cell.job.images)

    def close(self, cell: _OpenCell) -> None:
        """Ends a cell whose batches are all back: in order on disk, or with the reason why it failed."""
        del self.active[cell.id]
        try:
            if not cell.failed:
                cell.store.finish()
                cell.failed = cell.lost()
            if cell.failed:
                self.outcome.failed[cell.id] = cell.failed
                self.report.say(f"failed: {cell.cell}: {cell.failed}")
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

    def __init__(self, job: plan.Job, settings: Settings, shape: list[int], size: int):
        self.job, self.cell, self.id = job, job.cell, job.cell.id
        self.rows = settings.rows_of(job.cell)
        self.out = settings.out
        folder = place(settings.out, job.cell)
        if settings.fresh and (folder / records.CELL).exists():
            records.set_aside(folder)
        self.store = records.Store(folder, self.id, job.cell.data(), shape, self._entry(size))
        self.source: set[int] = set()  # positions of the images that the source of a transfer has
        if job.cell.source:
            self._follow(job.cell.source)
        self.tasks = tasks.missing(job, self.store.done, self.rows)
        if settings.reverse:
            # A batch that is an attack's unit stays as it is: its draws belong to its order.
            self.tasks = self.tasks[::-1] if tasks.unit(job.cell).images else [_reversed(t) for t in self.tasks[::-1]]
        self.under_way = 0
        self.failed: str | None = None

    def _entry(self, size: int) -> records.Json:
        """This run's entry in `cell.json`. size: images of the dataset."""
        job = self.job
        # Of the images wanted, in order: whoever reads the records can tell whether two runs took the same ones.
        indices = datasets.index_hash(datasets.order(size, job.cell.subset)[: job.images])
        entry: records.Json = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": git(),
            "rows": self.rows,
            "wanted": job.images,
            "evals": job.evals,
            "images": 0,
            "indices": indices,
        }
        return entry | ({"stand_in": list(job.stand_in)} if job.stand_in else {})

    def _follow(self, source: Cell) -> None:
        """Notes which images a transfer's source has, and forgets our records of those that it made anew since then or not at all."""
        for position, theirs in records.latest(place(self.out, source)).items():
            ours = self.store.done.get(position, theirs)
            if records.lost(theirs) or ours.get("adv_crc") != theirs.get("adv_crc"):
                self.store.done.pop(position, None)
            if not records.lost(theirs):
                self.source.add(position)

    def append(self, done: Done, facts: pools.Facts) -> None:
        """Writes a batch. facts: of the machine; those of the run's first batch stay."""
        for fact, value in facts.items():
            self.store.data["runs"][-1].setdefault(fact, value)
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

    def clean_key(self) -> tuple:
        """What the judge's predictions on clean images depend on: cells that agree in it share them."""
        of = self.cell
        return of.dataset, of.subset, of.classifier, of.scores, of.defense, of.seed, of.noise, self.rows

    def with_inputs(self, task: Task, clean: dict[int, list[int]]) -> Task:
        """The task with the stored images and predictions that it reads. clean: position -> predictions already made."""
        stored: dict[int, bytes] = {}
        known: dict[int, Record] = {}
        if task.judge:
            stored = {p: self.store.adversarial(p) for p in task.positions}
            known = {p: self.store.done[p] for p in task.positions}
        elif task.cell.source:
            stored = self._images_of(task.cell.source, self.source.intersection(task.positions))
        predictions = {p: clean[p] for p in task.positions if p in clean}
        # Our own record wins: what it says of the clean image stays as it is, and is only added to.
        predictions |= {p: record["clean"] for p, record in known.items()}
        return replace(task, stored=stored, known=known, clean=predictions)

    def _images_of(self, source: Cell, positions: Iterable[int]) -> dict[int, bytes]:
        """The rows of a transfer's source."""
        stored = {}
        with (place(self.out, source) / records.ADVERSARIAL).open("rb") as file:
            for position in positions:
                file.seek(position * self.store.row)
                stored[position] = file.read(self.store.row)
        return stored


def _source(job: plan.Job) -> str:
    """The id of the cell whose images a transfer reads; empty for other attacks."""
    return job.cell.source.id if job.cell.source else ""


def _reversed(task: Task) -> Task:
    return replace(task, positions=task.positions[::-1])


def _reasons(lines: list[Record], limit: int = 6) -> str:
    """`images 3, 8 and 20 more: step 1 of 3 gave ..; image 5: ..`: the first few of those records in which something was not finite, or
    the attack made no image, and why; empty if there is none."""
    images: dict[str, list[int]] = {}  # reason -> those whom it befell
    for line in lines:
        reasons = [f"{records.WHERE[where]}: {why}" for where, why in line.get("not_finite", {}).items()]
        if records.lost(line):
            reasons.append(f"not judged: {line['failed']}")
        for reason in reasons:
            images.setdefault(reason, []).append(line["index"])
    parts = []
    for reason, indices in list(images.items())[:limit]:
        more = f" and {len(indices) - limit} more" if len(indices) > limit else ""
        parts.append(f"image{'s' * (len(indices) > 1)} {', '.join(map(str, indices[:limit]))}{more}: {reason}")
    if len(images) > limit:
        parts.append("and others")
    return "; ".join(parts)
