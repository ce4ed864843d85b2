"""Which source is asked next, and when: until one of them has given the file.

With a known hash it does not matter who sends a byte: while one source cannot be reached, is busy or crawls, the others are asked,
from where it stopped. Without one the sources are asked to the end in the registry's order, since two may hold different files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from purebench.assets import Entry, Part, bytes_text
from purebench.assets.bars import Show, time_text
from purebench.assets.clock import Clock
from purebench.assets.disk import discard, disk_errors, size_of, take_back, take_own
from purebench.assets.download import Job, attempt, disjoin, has_full_hash, resumable
from purebench.assets.sources import Way, automatic, browser, by_hand, host, sources, ways
from purebench.assets.troubles import (
    Busy,
    Confirmation,
    Crawls,
    Doubtful,
    Endless,
    OtherWay,
    Retry,
    SourceFailed,
    Unpinned,
    Unreached,
)
from purebench.errors import DOWNLOAD, UserError

PAUSES = (2.0, 6.0, 20.0, 60.0)  # seconds between five tries to reach a source, or one that is busy
STAY = 10  # seconds that are waited for a source that has sent something, before another one is asked
LONGEST = 900  # seconds that a busy server may ask for
PROGRESS = 1 << 16  # bytes that make a break no failure
BUTTONS = 4  # pages of Drive's that are confirmed
CHANGES = 3  # versions of the file that a server may show during one download

Accept = Callable[[str, bool], str]  # (source, whether a third party's hash is doubted) -> what is unlike that hash


@dataclass
class Candidate:
    """One source, and how it went so far. `speed`: bytes per second at which it was left; `doubt`: what is unlike the registry."""

    source: Entry
    number: int
    ways: list[Way]
    ready: float = 0  # the clock's time from which it is asked again
    unreached: int = 0  # in a row
    breaks: int = 0  # in a row without progress
    changes: int = 0
    furthest: int = 0
    gave: bool = False
    again: bool = False
    speed: float | None = None
    doubt: str = ""
    holds: bool = False  # what is in `.doubted`
    over: bool = False
    last: Exception | None = None  # by which it was given up, where that says what to do
    whys: list[str] = field(default_factory=list)
    pressed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.url = self.ways[0].url

    @property
    def host(self) -> str:
        """What messages call it."""
        return host(self.url)

    def give_up(self, why: str) -> None:
        """It is not asked any more."""
        self.over = True
        self.whys.append(why)


class Network:
    """Whether any server was reached: where none was, the next file does not wait again as long as the last one did."""

    silent = False


def bring(part: Part, accept: Accept, network: Network, clock: Clock, show: Show) -> None:
    """The file from its sources, accepted. UserError (exit 3) with every source and why it failed."""
    found = [s for s in sources(part) if automatic(s)]
    candidates = [Candidate(source, number, ways(source, part.file.name)) for number, source in enumerate(found)]
    job = Job(part, show, clock)
    current, problem = None, ""
    # Of a process that was killed.
    part.beside(".doubted").unlink(missing_ok=True)
    try:
        while pending := [c for c in candidates if not (c.over or (c.doubt and part.beside(".doubted").exists()))]:
            candidate = _next(part, pending, current, clock.monotonic())
            with disk_errors(part.file, part):
                take_own(part, candidate.url, candidate.url in job.apart)
            _say_next(job, current, candidate, problem)
            if candidate is not current:
                show.start(part.label)
            current = candidate
            _may_leave(job, candidate, [other for other in pending if other is not candidate])
            # Nobody has the file that a third party's hash and size are of: another one is better than none.
            job.doubting = bool(candidate.doubt)
            try:
                if (wait := candidate.ready - clock.monotonic()) > 0:
                    clock.sleep(wait)
                problem = _once(job, candidate, accept, network)
            except KeyboardInterrupt:
                kept = size_of(part.beside(".part"))
                show.say(f"kept {bytes_text(kept)} of `{part.label}`; the same command goes on from there")
                raise
            if not problem:
                return
            if candidate.over:
                problem = candidate.whys[-1]
        if _doubted(job, candidates, accept):
            return
    finally:
        part.beside(".doubted").unlink(missing_ok=True)
    take_back(part)
    network.silent = not job.answered and bool(candidates)
    raise _failed(part, candidates)


def _next(part: Part, pending: list[Candidate], current: Candidate | None, now: float) -> Candidate:
    """The source to ask next; it may have to be waited for."""
    if not has_full_hash(part):
        return pending[0]
    if current in pending and current.gave and current.ready - now <= STAY and not (current.speed or current.doubt):
        return current
    # Those that crawl are the last resort, the quickest first; and behind them what may be another file.
    return min(
        pending, key=lambda c: (bool(c.doubt), c.speed is not None, -(c.speed or 0), max(c.ready, now), c.number)
    )


def _may_leave(job: Job, candidate: Candidate, others: list[Candidate]) -> None:
    """Whether a source that crawls is left for another one, or what is said if it is not."""
    known = has_full_hash(job.part)
    job.others = bool(others)
    job.may_leave = known and candidate.speed is None and any(o.speed is None and not o.doubt for o in others)
    job.alone = "nobody else has the file"
    if others:
        job.alone = "no other source is quicker" if known else "without a hash no other source can go on with it"
    job.quickest = max((other.speed or 0 for other in others), default=0) if candidate.speed is None else 0


def _say_next(job: Job, last: Candidate | None, candidate: Candidate, problem: str) -> None:
    """One line for what went wrong and what is done now."""
    part, wait = job.part, candidate.ready - job.clock.monotonic()
    have = resumable(part, candidate.url, None)[0]
    on = f", from {bytes_text(have)} on" if have else ""
    if size_of(part.beside(".part")) and not have:
        on = ", from the beginning, since without a hash two sources may have different files"
    if last is None:
        if have:
            job.show.say(f"`{part.label}`: going on{on}")
        return
    # What is left of a wait that is over rounds to 0 s.
    when = f" in {time_text(wait)}" if wait >= 0.5 else ""
    tries = f" (try {candidate.unreached + 1} of {len(PAUSES) + 1})" if candidate.unreached else ""
    if last.over:
        problem += "; given up"
    todo = f"asking again {candidate.ways[0].how}".strip() if last is candidate else f"asking `{candidate.host}`"
    job.show.say(f"`{part.label}`: `{last.host}`: {problem}; {todo}{when}{on}{tries}")


def _once(job: Job, candidate: Candidate, accept: Accept, network: Network) -> str:
    """One request to one source, and what follows of it for the source: "" if the file is there now, else what went wrong."""
    part, clock = job.part, job.clock
    before = size_of(part.beside(".part"))
    try:
        attempt(job, candidate.url, candidate.ways[0], drive="gdrive" in candidate.source)
    except Confirmation as button:
        if str(button) in candidate.pressed or len(candidate.pressed) == BUTTONS:
            return _other_way(candidate, "its page leads round in a circle")
        candidate.pressed.add(str(button))
        candidate.ways[0] = replace(candidate.ways[0], url=str(button))
        return "it asks to confirm the download"
    except OtherWay as why:
        return _other_way(candidate, str(why))
    except Doubtful as why:
        candidate.doubt = str(why)
        return candidate.doubt
    except SourceFailed as why:
        candidate.give_up(str(why))
        return str(why)
    except Crawls as why:
        candidate.speed = why.speed
        return str(why)
    except Unreached as why:
        candidate.unreached += 1
        # One that has said already why it does not give the file is not waited for to say it in another way.
        limit = 1 if network.silent or candidate.whys else len(PAUSES) + 1
        if candidate.unreached >= limit:
            candidate.give_up(f"{why}{f' (asked {limit} times)' if limit > 1 else ''}")
        else:
            candidate.ready = clock.monotonic() + PAUSES[candidate.unreached - 1]
        return str(why)
    except Retry as why:
        network.silent = False
        return _retry(job, candidate, why, before)
    network.silent = False
    return _accepted(job, candidate, accept)


def _other_way(candidate: Candidate, why: str) -> str:
    """The source is asked in its next way, if it has one."""
    candidate.whys.append(why)
    candidate.ways.pop(0)
    candidate.over = not candidate.ways
    return why


def _retry(job: Job, candidate: Candidate, why: Retry, before: int) -> str:
    """When the source is asked again, unless it has been often enough."""
    have = size_of(job.part.beside(".part"))
    candidate.unreached = 0
    candidate.gave = candidate.gave or have > before
    if job.versions:
        # What came of another file is no measure of this one.
        candidate.changes, candidate.furthest, candidate.breaks = candidate.changes + job.versions, 0, 0
        job.versions = 0
        if candidate.changes > CHANGES:
            candidate.give_up(f"it has had {candidate.changes + 1} different files by now")
            return str(why)
    # Counted in a row without progress: a connection that keeps breaking may still bring it all.
    if have >= candidate.furthest + PROGRESS:
        candidate.breaks = 0
    candidate.furthest = max(candidate.furthest, have)
    candidate.breaks += 1
    # What the server asks for (Retry-After) counts, and 1, 2, 4, .. seconds at least; who is busy and does not say is left alone longer.
    wait = max(why.wait or 0.0, 2.0 ** (candidate.breaks - 1))
    if isinstance(why, Busy) and why.wait is None:
        wait = PAUSES[min(candidate.breaks, len(PAUSES)) - 1]
    if candidate.breaks >= why.tries:
        candidate.last = why
        candidate.give_up(f"{why} (asked {candidate.breaks} times)")
    elif wait > LONGEST:
        candidate.give_up(f"{why}; it asks to wait {time_text(wait)}")
    candidate.ready = job.clock.monotonic() + wait
    return str(why)


def _accepted(job: Job, candidate: Candidate, accept: Accept) -> str:
    """The whole file came: "" if it is the right one. A wrong one goes, and the source with it if all of it came from there."""
    part, sole = job.part, job.sole == candidate.url
    try:
        if doubt := accept(candidate.url, job.doubting and sole):
            _warn(job, candidate, doubt)
        return ""
    except Doubtful as why:
        problem = str(why)
        if sole:
            # Kept until nobody is found to have the other file.
            if not part.beside(".doubted").exists():
                with disk_errors(part.file):
                    os.replace(part.beside(".part"), part.beside(".doubted"))
                candidate.doubt, candidate.holds = problem, True
            discard(part)
            candidate.give_up(problem)
            return problem
    except SourceFailed as why:
        problem, candidate.last = str(why), why
    disjoin(job)
    discard(part)
    # What came before may have been wrong, and this source good; from the beginning, it is the source that is wrong.
    if sole or candidate.again:
        problem += "; what came is thrown away"
        take_back(part)
        candidate.give_up(problem)
        return problem
    candidate.again, candidate.furthest = True, 0
    return f"{problem}; once more from the beginning"


def _doubted(job: Job, candidates: list[Candidate], accept: Accept) -> bool:
    """Whether the file is there now, since a source had one that is whole and only unlike a third party's hash."""
    part = job.part
    if not part.beside(".doubted").exists():
        return False
    candidate = next(c for c in candidates if c.holds)
    with disk_errors(part.file):
        os.replace(part.beside(".doubted"), part.beside(".part"))
    try:
        _warn(job, candidate, accept(candidate.url, True))
        return True
    except SourceFailed as why:
        candidate.give_up(str(why))
        discard(part)
        return False


def _warn(job: Job, candidate: Candidate, doubt: str) -> None:
    job.show.warn(
        f"`{job.part.label}` from `{candidate.host}` is not the file that a third party knows: {doubt}. No source had that one; "
        "this one is taken, and its own sha256 kept: later downloads must be the same"
    )


def _failed(part: Part, candidates: list[Candidate]) -> UserError:
    # Each reason once, in order: what a source said to the program, and then to a browser.
    lines = [
        f"\n  {browser(c.source, part.file.name)}: {'; then: '.join(dict.fromkeys(c.whys or [c.doubt]))}"
        for c in candidates
    ]
    reasons = "".join(lines) or " no source of it can be downloaded from by a program"
    have = size_of(part.beside(".part"))
    kept = f"\n  {bytes_text(have)} of it came and are kept: the same command goes on from there" if have else ""
    hint, lock = by_hand(part), part.beside(".lock.json")
    # To ask on there would end in the same way.
    if have and any(isinstance(c.last, Endless) for c in candidates):
        taken = f"`purebench fetch {part.asset} --from {shlex.quote(str(part.beside('.part')))}` takes it"
        kept = f"\n  {bytes_text(have)} of it came and are kept: if they are all of it, {taken}"
    # A browser would bring the same file, which would be refused again.
    if any(isinstance(c.last, Unpinned) for c in candidates):
        hint = f"if the publisher has replaced it, delete `{lock}`, and the same command takes the new one; else {hint}"
    return UserError(f"could not fetch `{part.label}`:{reasons}{kept}", hint, DOWNLOAD)
