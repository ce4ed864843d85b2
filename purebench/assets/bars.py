"""How far a download is, on stderr: a rich bar on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from purebench.assets import bytes_text
from purebench.assets.clock import Clock

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY, FIRST_LINE = 60, 10  # seconds between two lines, and until the first: short downloads need none


def time_text(seconds: float) -> str:
    """95 -> `2 minutes`"""
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Show:
    """Progress on stderr: one line after ten seconds, then one a minute, with the time left at the speed since the last."""

    def __init__(self, clock: Clock | None = None):
        self.clock = clock or Clock()

    def warn(self, line: str) -> None:
        """Shows what must be seen, whatever else is not."""
        print(f"purebench: warning: {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Shows a line of text."""
        print(f"purebench: {line}", file=sys.stderr, flush=True)

    def start(self, label: str) -> None:
        """A download of this name begins."""
        self.label, self.total = label, 0
        self.next_line = self.clock.monotonic() + FIRST_LINE
        self.since, self.then = self.clock.monotonic(), 0

    def size(self, have: int, total: int | None) -> None:
        """An answer begins: `have` bytes are there already, of `total` if that is known."""
        self.total = total or 0
        self.since, self.then = self.clock.monotonic(), have
        # Of its speed nothing is known yet.
        self.next_line = max(self.next_line, self.since + FIRST_LINE)

    def at(self, have: int) -> None:
        """`have` bytes are there."""
        now = self.clock.monotonic()
        if now < self.next_line:
            return
        speed = (have - self.then) / (now - self.since) if now > self.since else 0
        self.next_line, self.since, self.then = now + LINE_EVERY, now, have
        of = f" of {bytes_text(self.total)}" if self.total else ""
        left = f", about {time_text((self.total - have) / speed)} left" if self.total > have and speed > 0 else ""
        self.say(f"`{self.label}`: {bytes_text(have)}{of}, {bytes_text(max(speed, 0))}/s{left}")

    def stop(self) -> None:
        """The download is over, in whatever way."""


class Quiet(Show):
    """Shows nothing."""

    def say(self, line: str) -> None:
        pass


class Bars(Show):
    """A rich bar with speed and time left."""

    bar: Progress | None = None

    def warn(self, line: str) -> None:
        self.say(f"warning: {line}")

    def say(self, line: str) -> None:
        # Past the bar's console, a line would be written into the middle of the bar. Without markup: `[..]` in a URL is none.
        if self.bar:
            self.bar.console.print(f"purebench: {line}", markup=False, highlight=False, soft_wrap=True)
        else:
            super().say(line)

    def start(self, label: str) -> None:
        from rich import console, progress

        # The next source of a file begins a bar of its own, and only one can be on the screen.
        self.stop()
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        # stdout is for data: it may be a pipe.
        self.bar = progress.Progress(*columns, console=console.Console(stderr=True), transient=True)
        self.task = self.bar.add_task(label, total=None)
        self.bar.start()

    def size(self, have: int, total: int | None) -> None:
        if self.bar:
            self.bar.update(self.task, completed=have, total=total)

    def at(self, have: int) -> None:
        if self.bar:
            self.bar.update(self.task, completed=have)

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def reporter(quiet: bool = False) -> Show:
    """The Show for where stderr goes."""
    return Quiet() if quiet else Bars() if sys.stderr.isatty() else Show()
