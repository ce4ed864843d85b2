"""The time that downloads go by: they wait, and measure how fast a server is. Tests give another clock, and wait for nothing."""

from __future__ import annotations

import time


class Clock:
    """This machine's. Neither number can be set back: a wrong date changes nothing here."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)
