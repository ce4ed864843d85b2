"""How far a download is, on stderr: a rich bar on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from purebench.assets import bytes_text

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY, FIRST_LINE = 60, 10  # seconds between two lines, and until the first: short downloads need none


class Show:
    """Progress on stderr: one line after ten seconds, then one a minute."""

    def say(self, line: str) -> None:
        """Shows a line of text."""
        print(f"purebench: {line}", file=sys.stderr, flush=True)

    def start(self, label: str) -> None:
        """A download of this name begins."""
        self.label, self.total = label, 0
        # As if the last line were so long ago that the first comes after ten seconds.
        self.last_line = time.monotonic() - LINE_EVERY + FIRST_LINE

    def size(self, have: int, total: int | None) -> None:
        """An answer begins: `have` bytes are there already, of `total` if that is known."""
        self.total = total or 0
        self.at(have)

    def at(self, have: int) -> None:
        """`have` bytes are there."""
        if time.monotonic() - self.last_line >= LINE_EVERY:
            self.last_line = time.monotonic()
            self.say(f"`{self.label}`: {bytes_text(have)}{f' of {bytes_text(self.total)}' if self.total else ''}")

    def stop(self) -> None:
        """The download is over, in whatever way."""


class Quiet(Show):
    """Shows nothing."""

    def say(self, line: str) -> None:
        pass


class Bars(Show):
    """A rich bar with speed and time left."""

    bar: Progress | None = None

    def say(self, line: str) -> None:
        # Past the bar's console, a line would be written into the middle of the bar. Without markup: `[..]` in a URL is none.
        if self.bar:
            self.bar.console.print(f"purebench: {line}", markup=False, highlight=False)
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
