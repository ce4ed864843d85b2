"""Where batches are computed: in this process, or by worker processes. A pool computes and hands back; it never writes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

from purebench import foreign
from purebench.errors import Mistake, UserError
from purebench.running.progress import Reporter
from purebench.running.tasks import Done, Task

Facts = dict[str, object]  # what a record says of the machine: device, versions, number of workers
Result = Done | str  # of a batch: what came out of it, or one line that says why nothing did


class Pool(Protocol):
    """What the queue asks of a place that computes batches. Another one (Ray, Slurm) is one more class that promises this:

    - Every task that was given comes back from `results` exactly once: as a `Done`, or as one line that says why it failed. A task that
      raises, and a process or machine that dies, fails this task alone; the pool goes on, and replaces what died if it can.
    - A task is a whole: its numbers depend on nothing but the task and its rows, so the order of the results and the place of the
      computation are free. `Task` and `Done` can be pickled.
    - A pool writes no record and reports no result. It reports network calls while they are made (`Reporter.work`).
    - `facts` are complete before the first `Done` comes back.
    - What makes the whole pool unusable (a device that is not there) is raised as a UserError, by the constructor or by `results`.
    - Ctrl-C is the queue's alone to hear; whatever the pool started ignores it, and ends with `stop` or with this process.
    """

    facts: Facts

    def free(self) -> bool:
        """Whether `give` may be called now."""

    def busy(self) -> bool:
        """Whether a task that was given has not come back yet."""

    def give(self, task: Task, rows: int) -> None:
        """Begins a task in network calls of this many rows. Only called while `free`; returns without waiting for the result."""

    def results(self) -> Iterator[tuple[Task, Result]]:
        """The tasks that came back, with what came of them. Only called while `busy`; it may wait about a second for news, and
        yield nothing."""

    def stop(self) -> None:
        """Ends everything that the pool started, without waiting for results; called once, also after an error."""


def start(workers: int, device: str, memory: int | None, report: Reporter) -> Pool:
    """The pool of this many processes, one being this one. `memory`: bytes for states and graphs in each; None: what is free.
    Raises UserError if the device cannot be used."""
    return Workers(workers, device, memory, report) if workers > 1 else Here(device, memory, report)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C within the block is raised at its end. A mask would not do: the signal may reach any thread, torch's too."""
    # In other threads Ctrl-C is never raised, and a handler cannot be set.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """A process started here never sees Ctrl-C, which the terminal sends to all: the parent alone decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A process spawned within does not import this process's main file, of which it needs nothing: a script that calls
    `purebench.run` at its top level would otherwise be run again by each of its workers."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _OutOfMemory(str):
    """Why a task came to nothing, where fewer rows may come to something."""


def _with_fewer(done: Done, fewer: int, rows: int) -> Done:
    """A batch whose records say that its network calls had fewer rows than the run's."""
    said = (
        f"out of memory with {rows} rows: a batch was computed with {fewer}; `--rows {fewer}` computes all of them so"
    )
    records = [record | {"rows": fewer} for record in done.records]
    return replace(done, records=records, warnings=(*done.warnings, said))


class _Processor:
    """What computes tasks in a process: its device, the bytes for states and graphs, and the facts that records keep of it."""

    def __init__(self, device: str, memory: int | None, number: int = 0, workers: int = 1):
        """The processor of worker `number` of so many. Raises UserError if the device cannot be used."""
        # Imported here, as in `attempt`: the process that only hands out work to workers never loads torch.
        from purebench.engine import device as devices

        self.device = devices.setup(device, number)
        self.memory = memory or devices.free_memory(self.device, workers)
        self.facts: Facts = devices.facts(self.device) | {"workers": workers}

    def attempt(self, task: Task, rows: int, on_work: Callable[[int], None]) -> Result:
        """The task's result. Where it runs out of memory it is tried again with half the rows, and again, down to one; its records then
        say with how many. Whatever else it raises becomes one line, since no cell may stop the others."""
        from purebench.engine import device as devices

        fewer = rows
        while True:
            # Of the budget the same share: else the states of half the rows would fill all of it again.
            result = self._once(task, fewer, self.memory * fewer // rows, on_work)
            if not isinstance(result, _OutOfMemory):
                return _with_fewer(result, fewer, rows) if fewer < rows and isinstance(result, Done) else result
            if fewer == 1:
                return Mistake(f"out of memory with one row: {result}")
            fewer //= 2
            # Without predictions on clean images that other cells made with all rows: of another number the last bits differ.
            task = replace(task, clean={p: record["clean"] for p, record in task.known.items()})
            devices.release()

    def _once(self, task: Task, rows: int, memory: int, on_work: Callable[[int], None]) -> Result:
        # Imported here, as in `attempt`: the process that only hands out work to workers never loads torch.
        from purebench.engine import device as devices
        from purebench.running import evaluate, gate

        try:
            with foreign.as_imported(), foreign.quiet():
                found = gate.check(task.cell, self.device, rows, memory)
                done = evaluate.execute(task, self.device, rows=rows, memory=memory, on_work=on_work)
                return replace(done, gate=found)
        except UserError as error:
            return Mistake(f"{error.message} (hint: {error.hint})" if error.hint else error.message)
        except evaluate.Broken as error:
            return Mistake(error)
        # Foreign code may call sys.exit, which is to end its cell alone.
        except (Exception, SystemExit) as error:
            if devices.out_of_memory(error):
                return _OutOfMemory(str(error).partition("\n")[0])
            # Where it was raised, not where we called: most of these are a plug-in's, and its author reads this line.
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = foreign.lines(error) or [f"{Path(place.filename).name}:{place.lineno}"]
            why = f"{foreign.words(error)} ({' <- '.join(reversed(told[-4:]))})"
            return Mistake(why) if isinstance(error, SystemExit) else why


# ------------------------------------------------------------------------------------------------------------ this process


class Here:
    """No workers: a task runs in this process, when its result is asked for."""

    def __init__(self, device: str, memory: int | None, report: Reporter):
        self.processor = _Processor(device, memory)
        self.facts = self.processor.facts
        self.report = report
        self.next: tuple[Task, int] | None = None

    def free(self) -> bool:
        return self.next is None

    def busy(self) -> bool:
        return self.next is not None

    def give(self, task: Task, rows: int) -> None:
        self.next = (task, rows)

    def results(self) -> Iterator[tuple[Task, Result]]:
        assert self.next is not None
        task, rows = self.next
        # Free before the result is out: whoever takes it may give the next task at once.
        self.next = None
        yield task, self.processor.attempt(task, rows, self.report.work)

    def stop(self) -> None:
        """Nothing was started."""


# ----------------------------------------------------------------------------------------------------------------- workers


@dataclass
class _Member:
    """One worker process, our end of its pipe, and the task that it has; None: it waits for one."""

    number: int
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None

    def death(self) -> str:
        """How the process ended, once its pipe is closed."""
        # The pipe closes a moment before the process has its exit code.
        self.process.join(5)
        code = self.process.exitcode
        return f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class Workers:
    """Single-threaded processes on a queue. One that dies fails its cell and is replaced."""

    # Not `concurrent.futures`: there a process that dies breaks the pool, and with it the tasks of all the others.

    def __init__(self, workers: int, device: str, memory: int | None, report: Reporter):
        self.settings, self.report = (device, memory, workers), report
        self.facts: Facts = {}
        self.members: dict[int, _Member] = {}
        for number in range(workers):
            self._start(number)

    def _start(self, number: int) -> _Member:
        """A new process in the place of this number."""
        # Not forked: neither torch's threads nor CUDA's state survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, number, *self.settings), daemon=True)
        with no_interrupt(), _without_main():
            process.start()
        # Only the worker may hold its end: else its death would not close the pipe, and nobody would notice.
        theirs.close()
        self.members[number] = _Member(number, process, ours)
        return self.members[number]

    def free(self) -> bool:
        return any(member.task is None for member in self.members.values())

    def busy(self) -> bool:
        return any(member.task is not None for member in self.members.values())

    def give(self, task: Task, rows: int) -> None:
        member = next(member for member in self.members.values() if member.task is None)
        try:
            member.pipe.send((task, rows))
        except OSError:
            # It died while it had nothing to do, which no task is to blame for.
            member = self._start(member.number)
            member.pipe.send((task, rows))
        member.task = task

    def results(self) -> Iterator[tuple[Task, Result]]:
        pipes = [member.pipe for member in self.members.values() if member.task is not None]
        ready = wait(pipes, timeout=1.0)
        for member in list(self.members.values()):
            if member.task is not None and member.pipe in ready:
                yield from self._read(member, member.task)

    def _read(self, member: _Member, task: Task) -> Iterator[tuple[Task, Result]]:
        """One message of a worker; its task with the result, if that is what it says or the worker is dead."""
        try:
            kind, value = member.pipe.recv()
        except (EOFError, OSError):
            # Its end of the pipe closes with the process, however that ends: no message can say so.
            reason = member.death()
            self._start(member.number)
            yield task, f"its worker process died ({reason}); out of memory? try fewer `--rows` or `--workers`"
            return
        if kind == "work":
            self.report.work(value)
        elif kind == "facts":
            self.facts = value
        elif kind == "unusable":
            # The next worker would find the same: no use in starting it.
            raise value
        else:
            member.task = None
            yield task, value

    def stop(self) -> None:
        # All are told to end before any is waited for: they end together.
        for member in self.members.values():
            member.pipe.close()
            member.process.terminate()
        for member in self.members.values():
            member.process.join(5)


class _Calls:
    """Network calls as they are made, sent to the parent at most twice a second: a message for each would cost more than the call."""

    def __init__(self, pipe: Connection):
        self.pipe, self.pending, self.sent = pipe, 0, time.monotonic()

    def add(self, amount: int) -> None:
        self.pending += amount
        if time.monotonic() - self.sent > 0.5:
            self.flush()
            self.sent = time.monotonic()

    def flush(self) -> None:
        if self.pending:
            self.pipe.send(("work", self.pending))
        self.pending = 0


def _worker(pipe: Connection, number: int, device: str, memory: int | None, workers: int) -> None:
    """A worker's life: set up, then a task at a time until the pipe closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # The parent closes the pipe when it wants no more, also in the middle of a message.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            processor = _Processor(device, memory, number, workers)
        except UserError as error:
            pipe.send(("unusable", error))
            return
        pipe.send(("facts", processor.facts))
        calls = _Calls(pipe)
        while True:
            task, rows = pipe.recv()
            result = processor.attempt(task, rows, calls.add)
            calls.flush()
            pipe.send(("done", result))


def _end_with_the_parent() -> None:
    """A parent that is killed closes nothing in an orderly way, and a worker in the middle of a task reads no pipe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Returns at once when the parent is gone, however it went.
        parent.join()
        # Not `sys.exit`, which would end this thread alone.
        os._exit(1)
