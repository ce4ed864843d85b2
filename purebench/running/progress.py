"""Progress on stderr: a live line with ETA and running accuracy on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Reporter(Protocol):
    """What a run tells of itself while it runs. Amounts are network calls, those of every image counted."""

    def start(self, total: float, done: float) -> None:
        """The run begins: its whole amount of work, and how much of it is done."""

    def work(self, amount: float) -> None:
        """So much was computed."""

    def skip(self, amount: float) -> None:
        """So much need not be computed, being there already or another process's."""

    def batch(self, cell: str, robust: float, images: int, wanted: int) -> None:
        """A batch of a cell is on disk: the share of its images that are robust so far, how many there are, how many are wanted."""

    def say(self, line: str) -> None:
        """A line for the user, such as a warning."""


def reporter(quiet: bool) -> Silent:
    """The Reporter for where stderr goes."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()


def duration(seconds: float) -> str:
    """90 -> `1m30s`; from two days on in days."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400} days"


class Silent:
    """Says only what went wrong."""

    def start(self, total: float, done: float) -> None:
        self.total, self.done, self.began = total, done, time.monotonic()
        self.fresh, self.first = 0.0, 0.0  # work done now and since when, by which the speed is measured
        self.line = ""

    def work(self, amount: float) -> None:
        self.done += amount
        if self.first:
            self.fresh += amount
        else:  # the first was under way before the clock was started
            self.first = time.monotonic()

    def skip(self, amount: float) -> None:
        """Work that needs no doing."""
        self.done += amount

    def batch(self, cell: str, robust: float, images: int, wanted: int) -> None:
        self.line = f"{cell}: {robust:.1%} robust after {images} of {wanted} images"

    def say(self, line: str) -> None:
        print(f"purebench: {line}", file=sys.stderr, flush=True)

    def eta(self) -> str:
        took = time.monotonic() - self.first
        # The first seconds are warm-up, and would say far too long.
        if not self.fresh or took < 5:
            return "ETA in a moment"
        left = max(self.total - self.done, 0) * took / self.fresh
        return f"at most {duration(left)} left"

    def stop(self) -> None:
        pass


class Lines(Silent):
    """One line a minute."""

    def start(self, total: float, done: float) -> None:
        super().start(total, done)
        self.last = self.began

    def work(self, amount: float) -> None:
        super().work(amount)
        if time.monotonic() - self.last >= 60 or (self.last == self.began and time.monotonic() - self.last >= 20):
            self.last = time.monotonic()
            share = min(self.done / self.total, 1) if self.total else 1
            self.say(
                f"{share:.0%}, {duration(time.monotonic() - self.began)} gone, {self.eta()}{'; ' + self.line if self.line else ''}"
            )


class Live(Silent):
    """A rich progress bar."""

    def start(self, total: float, done: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().start(total, done)
        columns = (
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[eta]}  {task.fields[line]}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("run", total=total, completed=int(done), eta="", line="")
        self.bar.start()

    def work(self, amount: float) -> None:
        super().work(amount)
        self._update()

    def skip(self, amount: float) -> None:
        super().skip(amount)
        self._update()

    def batch(self, cell: str, robust: float, images: int, wanted: int) -> None:
        super().batch(cell, robust, images, wanted)
        self._update()

    def _update(self) -> None:
        self.bar.update(self.task, completed=min(self.done, self.total), eta=self.eta(), line=self.line)

    def say(self, line: str) -> None:
        self.bar.console.print(f"purebench: {line}", markup=False, highlight=False)

    def stop(self) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()


@contextmanager
def training() -> Iterator[Callable[[float, str], None]]:
    """A function (fraction, line) that shows how far a training is."""
    live, last = sys.stderr.isatty(), [0.0]

    def tell(fraction: float, line: str) -> None:
        if live:
            print(f"\r\033[K{fraction:4.0%}  {line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - last[0] >= 60 or fraction >= 1:
            last[0] = time.monotonic()
            print(f"{fraction:4.0%}  {line}", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
