"""Progress on stderr: a live line with ETA and running accuracy on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape


def reporter(quiet: bool) -> Reporter:
    """The reporter for where stderr goes."""
    if quiet:
        return Reporter()
    if _notebook():
        return Notebook()
    return Live() if sys.stderr.isatty() else Lines()


def _notebook() -> bool:
    """Whether a notebook's kernel runs us. Not imported for the question: where there is one, it is there already."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def duration(seconds: float) -> str:
    """90 -> `1m30s`; from two days on in days, from two years on in years."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    days = seconds // 86400
    return f"{days} days" if days < 730 else f"{days / 365.25:,.1f} years"


class Reporter:
    """What a run tells of itself while it runs. This one says only what went wrong; the others show how far it is, too.

    Amounts of work are network calls, those of every image counted."""

    def start(self, total: float) -> None:
        """The run begins: its whole amount of work, with what an earlier run has done of it."""
        self.total, self.done, self.began = total, 0.0, time.monotonic()
        # What was computed since `clock`: work of an earlier run, or of another process, says nothing of the speed of this one.
        self.computed, self.clock = 0.0, 0.0
        self.line = ""

    def work(self, amount: float) -> None:
        """So much was computed."""
        self.done += amount
        if self.clock:
            self.computed += amount
        else:
            # The first was under way before the clock was started, for a time that nobody measured: it counts for nothing.
            self.clock = time.monotonic()
        self.show()

    def skip(self, amount: float) -> None:
        """So much need not be computed, being there already or another process's."""
        self.done += amount
        self.show()

    def batch(self, cell: str, robust: float, images: int, wanted: int) -> None:
        """A batch of a cell is on disk: the share of its images that are robust so far, how many there are, how many are wanted."""
        self.line = f"{cell}: {robust:.1%} robust after {images} of {wanted} images"
        self.show()

    def show(self) -> None:
        """Shows how far the run is; called whenever that has changed."""

    def say(self, line: str) -> None:
        """A line for the user, such as a warning."""
        print(f"purebench: {line}", file=sys.stderr, flush=True)

    def eta(self) -> str:
        """The time that is left, at the speed so far. At most: attacks stop on images that they broke, and do less than was announced."""
        seconds = time.monotonic() - self.clock
        # The first seconds are warm-up, and would say far too long.
        if not self.computed or seconds < 5:
            return "ETA in a moment"
        left = max(self.total - self.done, 0) * seconds / self.computed
        return f"at most {duration(left)} left"

    def close(self) -> None:
        """Leaves the terminal as it was."""


class Lines(Reporter):
    """One line a minute, since a log keeps every line; the first after 20 seconds, so that nobody takes the run for dead."""

    def start(self, total: float) -> None:
        super().start(total)
        self.next = self.began + 20

    def work(self, amount: float) -> None:
        super().work(amount)
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + 60
        # What cannot be counted on stand-ins is taken for too little (`cost.work`), and the run then goes beyond its whole.
        share = min(self.done / self.total, 1) if self.total else 1
        cell = f"; {self.line}" if self.line else ""
        self.say(f"{share:.0%}, {duration(now - self.began)} gone, {self.eta()}{cell}")


class Live(Reporter):
    """A rich progress bar."""

    def start(self, total: float) -> None:
        # Imported here: rich takes its time, and a log has no use for it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().start(total)
        columns = (
            TextColumn("{task.percentage:>3.0f}%"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[eta]}  {task.fields[line]}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("run", total=total, eta="", line="")
        self.bar.start()

    def show(self) -> None:
        self.bar.update(self.task, completed=min(self.done, self.total), eta=self.eta(), line=self.line)

    def say(self, line: str) -> None:
        # By the bar's own console, which lifts the bar above the line; a `[..]` in the line is no markup.
        self.bar.console.print(f"purebench: {line}", markup=False, highlight=False)

    def close(self) -> None:
        # A run that was refused before it began has no bar.
        if hasattr(self, "bar"):
            self.bar.stop()


class Notebook(Reporter):
    """One display under the cell, written anew: HTML's own bar, which needs no widgets, and a line, which stays at the end."""

    def start(self, total: float) -> None:
        from IPython.display import display

        super().start(total)
        self.shown = time.monotonic()
        self.handle = display(self._as("starting"), display_id=True)

    def show(self) -> None:
        # Twice a second at most: each is a message to the browser, and is kept in the notebook's file until the next.
        if time.monotonic() - self.shown < 0.5:
            return
        self.shown = time.monotonic()
        share = min(self.done / self.total, 1) if self.total else 1
        self.handle.update(self._as(f"{share:.0%}  {self.eta()}  {self.line}", share))

    def _as(self, line: str, share: float | None = None) -> object:
        """What a notebook takes as something to display: HTML, and text for where there is none."""
        from IPython.display import HTML

        value = "" if share is None else f' value="{share:.4f}"'
        return HTML(f'<progress{value}></progress> <code style="white-space: pre">{escape(line)}</code>')

    def close(self) -> None:
        # A run that was refused before it began has no display.
        if hasattr(self, "handle"):
            from IPython.display import HTML

            line = f"{self.line}; {duration(time.monotonic() - self.began)}" if self.line else "nothing was left to do"
            self.handle.update(HTML(f"<code>{escape(line)}</code>"))


@contextmanager
def training() -> Iterator[Callable[[float, str], None]]:
    """A function (fraction, line) that shows how far a training is."""
    terminal, next_line = sys.stderr.isatty(), 0.0

    def show(fraction: float, line: str) -> None:
        nonlocal next_line
        if terminal:
            # Back to the first column, and what was written there erased.
            print(f"\r\033[K{fraction:4.0%}  {line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= next_line or fraction >= 1:
            next_line = time.monotonic() + 60
            print(f"{fraction:4.0%}  {line}", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
