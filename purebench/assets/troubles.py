"""Why an answer is not the file, as exceptions: their class says whether asking again may help, and whom."""

from __future__ import annotations

TRIES = 5  # in a row without progress


class SourceFailed(Exception):
    """This source cannot give the file: why."""


class OtherWay(SourceFailed):
    """It does not give the file when it is asked like this; asked in another way, it may."""


class Unpinned(SourceFailed):
    """It sends another file than the one that first came and was pinned."""


class Doubtful(SourceFailed):
    """It sends a whole file, and not the one of which somebody who is not its publisher printed the hash or the size."""


class Retry(Exception):
    """It may if asked again: why, after how many seconds (None: the usual back-off), how often at most."""

    def __init__(self, why: str, wait: float | None = None, tries: int = TRIES):
        super().__init__(why)
        self.wait, self.tries = wait, tries


class Busy(Retry):
    """A server that answers, and has no time for the file."""


class Unreached(Retry):
    """No connection came about, or no answer over it."""


class Endless(Retry):
    """All of an answer came, and neither its length nor the file's own format says that this is the end."""

    def __init__(self) -> None:
        super().__init__("it does not say how long the file is, and its end is not to be seen", tries=2)


class Changed(Retry):
    """What came before is of another version of the file than what the server sends now."""


class Crawls(Exception):
    """It is the last resort: why. `speed`: bytes per second that it sends; 0 where what came before would be lost with it."""

    def __init__(self, why: str, speed: float):
        super().__init__(why)
        self.speed = speed


class Confirmation(Exception):
    """Drive asks to press a button; the text is the URL that it leads to."""
