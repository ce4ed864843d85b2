"""Runs a plan: a queue of cells and batches, worked off in this process or by workers; this process alone writes.

A batch's numbers depend on nothing but its cell and positions, so workers, order, kills and restarts leave the records unchanged.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from purebench import datasets
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.running import cost, tasks
from purebench.running.tasks import Done, Task


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


class Reporter(Protocol):
    def start(self, total: float, done: float) -> None: ...
    def work(self, amount: float) -> None: ...
    def skip(self, amount: float) -> None: ...
    def batch(self, cell: str, robust: float, images: int, wanted: int) -> None: ...
    def say(self, line: str) -> None: ...


@dataclass
class Outcome:
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    images: int = 0


class _Open:
    """A cell that is being worked on: its store, the tasks not yet given out, and how many are under way."""

    def __init__(self, job: plan.Job, settings: Settings, shape: list[int], size: int):
        self.job, self.cell = job, job.cell
        self.rows = settings.rows or tasks.default_rows(job.cell)
        self.folder = settings.out / job.cell.id
        if settings.fresh and (self.folder / records.CELL).exists():
            records.set_aside(self.folder)
        run: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"), "git": git(), "rows": self.rows, "wanted": job.images,
            "evals": job.evals, "images": 0,
            "indices": datasets.index_hash(datasets.order(size, job.cell.subset)[: job.images]),  # of the images wanted, in order
        } | ({"stand_in": list(job.stand_in)} if job.stand_in else {})  # fmt: skip
        self.store = records.Store(self.folder, job.cell.id, job.cell.data(), shape, run)
        self.source: set[int] = set()  # positions of the images that the source of a transfer has
        if job.cell.source:
            for position, record in records.latest(settings.out / job.cell.source).items():
                old = self.store.done.get(position, record)
                if records.lost(record) or old.get("adv_crc") != record.get(
                    "adv_crc"
                ):  # made anew since then, or not at all
                    self.store.done.pop(position, None)
                if not records.lost(record):
                    self.source.add(position)
        self.tasks = tasks.missing(job, self.store.done, self.rows)
        if settings.reverse:
            self.tasks = self.tasks[::-1] if tasks.unit_of(job.cell) else [_reversed(t) for t in self.tasks[::-1]]
        self.under_way = 0
        self.failed: str | None = None

    def robust(self) -> float:
        """Running robust accuracy of the images done."""
        lines = [r for r in self.store.done.values() if not records.lost(r)]
        per = [sum(p == r["label"] for p in r["adversarial"]) / len(r["adversarial"]) for r in lines]
        return sum(per) / max(len(per), 1)

    def lost(self) -> str | None:
        """Why a finished cell has no number: the attack made no image at all. None if it made one."""
        lines = list(self.store.done.values())
        if not all(records.lost(r) for r in lines):
            return None
        return f"`{self.cell.attack}` made none of its {len(lines)} images; {_reasons(lines[:1])}"


def _reasons(lines: list[dict[str, Any]], most: int = 6) -> str:
    """`images 3, 8 and 20 more: step 1 of 3 gave ..; image 5: ..`: the first few of those records in which something was not finite, or
    the attack made no image, and why; empty if there is none."""
    reasons: dict[str, list[int]] = {}
    for line in lines:
        said = [f"{records.WHERE[where]}: {why}" for where, why in line.get("not_finite", {}).items()]
        said += [f"not judged: {line['failed']}"] if records.lost(line) else []
        for why in said:
            reasons.setdefault(why, []).append(line["index"])
    said = []
    for reason, of in list(reasons.items())[:most]:
        more = f" and {len(of) - most} more" if len(of) > most else ""
        said.append(f"image{'s' * (len(of) > 1)} {', '.join(map(str, of[:most]))}{more}: {reason}")
    return "; ".join(said + ["and others"] * (len(reasons) > most))


def _reversed(task: Task) -> Task:
    return Task(task.cell, task.positions[::-1], task.evals, task.judge, batch=task.batch)


def default_workers(device: str) -> int:
    """One per GPU; on CPU one per core this process may use, at most 8."""
    if device.startswith("cuda:"):
        return 1
    gpu = Path("/dev/dxg").exists() or any(Path("/dev").glob("nvidia[0-9]*"))
    if device == "cuda" or (device == "auto" and gpu):
        import torch

        if device == "cuda" or torch.cuda.device_count():
            return max(1, torch.cuda.device_count())
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def run(the_plan: plan.Plan, settings: Settings, report: Reporter, outcome: Outcome | None = None) -> Outcome:
    """Works the plan off. A failing cell does not stop the others; KeyboardInterrupt leaves everything written as it is."""
    outcome = outcome or Outcome()
    check(the_plan, settings)
    jobs = {j.cell.id: j for j in the_plan.jobs}
    total = sum(cost.work(j, the_plan.shape) * j.images for j in the_plan.jobs)
    report.start(total, 0)
    backlog = list(the_plan.jobs)
    active: list[_Open] = []
    clean: dict[tuple, dict[int, list[int]]] = {}

    def close(cell: _Open) -> None:
        active.remove(cell)
        try:
            if not cell.failed:
                cell.store.finish()
                cell.failed = cell.lost()
            if cell.failed:
                outcome.failed[cell.cell.id] = cell.failed
                report.say(f"failed: {cell.cell}: {cell.failed}")
                cell.store.note(failed=cell.failed)
            else:
                outcome.done.append(cell.cell.id)
        finally:
            cell.store.close()

    def open_next() -> bool:
        """Opens the next cell, a transfer only when its source is closed; False if there is none."""
        busy = {cell.cell.id for cell in active}
        job = next((j for j in backlog if j.cell.source not in busy), None)
        if job is None:
            return False
        backlog.remove(job)
        source = job.cell.source
        try:
            if source in outcome.skipped:
                raise records.Locked(source)
            cell = _Open(job, settings, the_plan.shape, the_plan.size)
        except records.Locked:
            outcome.skipped.append(job.cell.id)
            what = f"its source {source}" if source in outcome.skipped else "it"
            report.say(f"skipped: {job.cell}: another process is computing {what}")
            report.skip(cost.work(job, the_plan.shape) * job.images)
            return True
        active.append(cell)
        left = sum(len(t.positions) for t in cell.tasks)
        report.skip(cost.work(job, the_plan.shape) * max(job.images - left, 0))  # already there
        if source in outcome.failed and cell.tasks:
            cell.failed, cell.tasks = f"its source {source} failed", []
        if not cell.tasks:
            close(cell)
        return True

    def ready() -> tuple[_Open, Task] | None:
        """The next batch, with all that it reads."""
        while True:
            for cell in active:
                if cell.tasks:
                    return cell, _complete(cell.tasks.pop(0), cell, settings.out, clean)
            if not open_next():
                return None

    def finished(cell: _Open, task: Task, result: Done | str) -> None:
        cell.under_way -= 1
        if isinstance(result, Done):
            for fact, value in pool.facts.items():
                cell.store.data["runs"][-1].setdefault(fact, value)
            cell.store.append(result.records, result.rows, result.cost)
            outcome.images += len(result.records)
            if bad := _reasons(result.records):
                report.say(f"warning: {cell.cell}: {bad}")
            known = clean.setdefault(_judged(cell), {})
            known.update({r["position"]: r["clean"] for r in result.records})
            report.batch(str(cell.cell), cell.robust(), len(cell.store.done), jobs[cell.cell.id].images)
        else:  # batches of the cell that are under way are still recorded
            cell.failed, cell.tasks = cell.failed or result, []
        if not cell.tasks and not cell.under_way:
            close(cell)

    pool: _Pool = _Workers(settings, report) if settings.workers > 1 else _Here(settings, report)
    try:
        while True:
            while pool.free():
                found = ready()
                if found is None:
                    break
                cell, task = found
                cell.under_way += 1
                pool.give(cell, task)
            if not pool.busy():
                break
            for cell, task, result in pool.results():
                with no_interrupt():  # between the image on disk and its count lies nothing
                    finished(cell, task, result)
        return outcome
    finally:
        pool.stop()
        for cell in active:
            with contextlib.suppress(UserError):
                if cell.store.news and cell.store.done:
                    cell.store.note()
            cell.store.close()


def check(the_plan: plan.Plan, settings: Settings) -> None:
    """Reads what is there of every cell, so that a damaged or newer record is refused before anything is computed."""
    if settings.out.exists() and not settings.out.is_dir():
        raise UserError(
            f"`--out {settings.out}` is a file, and results are a folder", "name another folder, or leave it out"
        )
    for job in the_plan.jobs:
        if not settings.fresh and (settings.out / job.cell.id / records.CELL).exists():
            records.load(settings.out / job.cell.id)


def _judged(cell: _Open) -> tuple:
    """What the judge's predictions on clean images depend on."""
    of = cell.cell
    judge = (str(of.defense), repr(of.parameters["defense"]), of.seed, cell.rows)
    content = tuple(sorted(of.hashes.items())), tuple(sorted(of.versions.items()))
    return (of.dataset, of.subset, of.classifier, of.score, *judge, *content)


def _complete(task: Task, cell: _Open, out: Path, clean: dict[tuple, dict[int, list[int]]]) -> Task:
    """The task with the stored images and predictions that it reads."""
    stored: dict[int, bytes] = {}
    known: dict[int, dict[str, Any]] = {}
    if task.judge:
        stored = {p: cell.store.adversarial(p) for p in task.positions}
        known = {p: cell.store.done[p] for p in task.positions}
    elif task.cell.source:
        with (out / task.cell.source / records.ADVERSARIAL).open("rb") as file:
            for p in cell.source.intersection(task.positions):
                file.seek(p * cell.store.row)
                stored[p] = file.read(cell.store.row)
    have = clean.get(_judged(cell), {})
    ready = {p: known[p]["clean"] if p in known else have[p] for p in task.positions if p in known or p in have}
    return Task(task.cell, task.positions, task.evals, task.judge, stored, known, ready, task.batch)


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


# ---------------------------------------------------------------------------------------------------------------- workers


class _Pool(Protocol):
    facts: dict[str, Any]

    def free(self) -> bool: ...
    def busy(self) -> bool: ...
    def give(self, cell: _Open, task: Task) -> None: ...
    def results(self) -> Iterator[tuple[_Open, Task, Done | str]]: ...
    def stop(self) -> None: ...


def _attempt(task: Task, device: Any, rows: int, memory: int | None, on_work: Callable[[int], None]) -> Done | str:
    from purebench.running import evaluate

    try:
        return evaluate.execute(task, device, rows=rows, memory=memory, on_work=on_work)
    except UserError as error:
        return f"{error.message} (hint: {error.hint})" if error.hint else error.message
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} ({Path(where.filename).name}:{where.lineno})"


class _Here:
    """No workers: batches run in this process."""

    def __init__(self, settings: Settings, report: Reporter):
        from purebench.engine import device

        self.device = device.setup(settings.device)
        self.memory = settings.memory or device.free_memory(self.device, 1)
        self.facts = device.facts(self.device) | {"workers": 1}
        self.report = report
        self.next: tuple[_Open, Task] | None = None

    def free(self) -> bool:
        return self.next is None

    def busy(self) -> bool:
        return self.next is not None

    def give(self, cell: _Open, task: Task) -> None:
        self.next = (cell, task)

    def results(self) -> Iterator[tuple[_Open, Task, Done | str]]:
        assert self.next is not None
        cell, task = self.next
        self.next = None
        yield cell, task, _attempt(task, self.device, cell.rows, self.memory, self.report.work)

    def stop(self) -> None:
        pass


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the end. A process started here never sees it, though the terminal sends it to all: the parent alone decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers:
    """Single-threaded processes on a queue. One that dies fails its cell and is replaced."""

    def __init__(self, settings: Settings, report: Reporter):
        self.settings, self.report = settings, report
        self.context = multiprocessing.get_context("spawn")
        self.facts: dict[str, Any] = {}
        self.members = [self._start(i) for i in range(settings.workers)]

    def _start(self, number: int) -> dict[str, Any]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_worker,
            args=(theirs, number, self.settings.workers, self.settings.device, self.settings.memory),
            daemon=True,
        )
        with no_interrupt():
            process.start()
        theirs.close()
        return {"number": number, "process": process, "pipe": ours, "at": None}

    def free(self) -> bool:
        return any(m["at"] is None for m in self.members)

    def busy(self) -> bool:
        return any(m["at"] is not None for m in self.members)

    def give(self, cell: _Open, task: Task) -> None:
        place = next(i for i, m in enumerate(self.members) if m["at"] is None)
        try:
            self.members[place]["pipe"].send((task, cell.rows))
        except OSError:  # it died while it had nothing to do
            self.members[place] = self._start(self.members[place]["number"])
            self.members[place]["pipe"].send((task, cell.rows))
        self.members[place]["at"] = (cell, task)

    def results(self) -> Iterator[tuple[_Open, Task, Done | str]]:
        busy = [m for m in self.members if m["at"] is not None]
        waited = wait([m["pipe"] for m in busy], timeout=1.0)
        for member in busy:
            if member["pipe"] not in waited:
                continue
            cell, task = member["at"]
            try:
                kind, value = member["pipe"].recv()
            except (EOFError, OSError):
                member["process"].join(5)
                code = member["process"].exitcode
                reason = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
                self.members[self.members.index(member)] = self._start(member["number"])
                yield (
                    cell,
                    task,
                    f"its worker process died ({reason}); out of memory? try fewer `--rows` or `--workers`",
                )
                continue
            if kind == "work":
                self.report.work(value)
            elif kind == "facts":
                self.facts = value | {"workers": self.settings.workers}
            elif kind == "unusable":
                raise value
            else:
                member["at"] = None
                yield cell, task, value

    def stop(self) -> None:
        for member in self.members:
            member["pipe"].close()
            member["process"].terminate()
        for member in self.members:
            member["process"].join(5)


def _worker(pipe: Connection, number: int, workers: int, device_name: str, memory: int | None) -> None:
    """A worker's life: set up, then a task at a time until the pipe closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()  # returns at once when the parent is gone, however it went
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from purebench.engine import device as device_module

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            device = device_module.setup(device_name, number)
        except UserError as error:
            pipe.send(("unusable", error))
            return
        budget = memory or device_module.free_memory(device, workers)
        pipe.send(("facts", device_module.facts(device)))
        pending, last = 0, time.monotonic()

        def on_work(amount: int) -> None:
            nonlocal pending, last
            pending += amount
            if time.monotonic() - last > 0.5:
                pipe.send(("work", pending))
                pending, last = 0, time.monotonic()

        while True:
            task, rows = pipe.recv()
            result = _attempt(task, device, rows, budget, on_work)
            if pending:
                pipe.send(("work", pending))
                pending = 0
            pipe.send(("done", result))
