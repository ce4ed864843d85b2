"""One request's answer into a `.part` file: byte ranges, breaks, pages that pretend to be files, and servers that crawl.

<file>.part         what has come so far
<file>.part.json    from which URL, the server's mark of that version, and the size if it said one
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, TypedDict

from purebench import atomic
from purebench.assets import Part, bytes_text, disk
from purebench.assets.answers import called, explain_page, has_full_hash, is_page, whole_number
from purebench.assets.answers import check_status as check_status
from purebench.assets.bars import Show, time_text
from purebench.assets.clock import Clock
from purebench.assets.disk import came_from, discard, disk_errors, free_bytes, require_space, set_aside, size_of
from purebench.assets.ends import at_end
from purebench.assets.request import ask, cut
from purebench.assets.request import reason as _reason
from purebench.assets.sources import Way, host
from purebench.assets.troubles import Changed, Crawls, Doubtful, Endless, OtherWay, Retry, SourceFailed
from purebench.assets.troubles import Confirmation as Confirmation

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 20  # bytes
OVERLAP = 1 << 14  # bytes that are sent again where no mark says that what follows is of the same file
PATIENCE = (
    600  # seconds that a source which crawls may still need, before what it sent is given up for one without ranges
)
ROUGHLY = 2.5  # how far a size may be from an `about`: another source's edition may be half of it (two zips of one folder are)
HEAD = 64  # bytes by which a page is known
STUCK, LOOK = 120, 1  # seconds that one read may take, and between two looks at it
SLOW, WATCHED = 200_000, 60  # bytes per second below which a server crawls, and the seconds over which that is measured


class Saved(TypedDict, total=False):
    """`.part.json`."""

    url: str
    validator: str  # what is sent as If-Range
    size: int | None
    etag: str
    modified: str  # Last-Modified


@dataclass
class Job:
    """A file on its way.

    sole: the URL from which all of `.part` came, in this process; "" if that is not so. may_leave: whether a source that crawls is left;
    alone: why it is not. quickest: bytes per second of the quickest that was left. doubting: the registry's size is not asked of
    the file. answered: whether any server answered. versions: how often one had another file than before. seconds, bytes: how fast the URL
    `pace_of` has been since it was last judged, up to the clock's time `last`. joined: how much another source had given when this one
    went on with it, and what was noted of it. unmarked: URLs whose marks change while the file does not. others: whether there are other
    sources still. apart: URLs whose file is another one than what came before. told: URLs said to crawl."""

    part: Part
    show: Show
    clock: Clock
    sole: str = ""
    may_leave: bool = False
    alone: str = ""
    quickest: float = 0
    doubting: bool = False
    answered: bool = False
    versions: int = 0
    pace_of: str = ""
    seconds: float = 0
    bytes: int = 0
    last: float = 0
    joined: tuple[int, Saved] | None = None
    unmarked: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)
    others: bool = False
    told: set[str] = field(default_factory=set)

    def size(self) -> int | None:
        """Bytes that the file must have, as far as the registry knows."""
        return None if self.doubting else self.part.facts.get("size")

    def watch(self, url: str) -> None:
        """From now on the pace is this source's."""
        if self.pace_of != url:
            self.pace_of, self.seconds, self.bytes = url, 0, 0
        self.last = self.clock.monotonic()

    def count(self, size: int) -> None:
        """As many bytes have come since."""
        now = self.clock.monotonic()
        self.seconds, self.bytes, self.last = self.seconds + now - self.last, self.bytes + size, now


def attempt(job: Job, url: str, way: Way, *, drive: bool) -> None:
    """One request, from where `.part` ends; returns when all of the file is there. `url`: the source, as remembered.

    Raises any of `troubles`, and UserError for a disk that is full."""
    part, expected = job.part, job.size()
    have, saved = resumable(part, url, expected)
    # A process died between the last byte and its verification: a request for what follows would be answered by 416.
    if have and have == (expected or saved.get("size")):
        return
    # A mark means something to the server that made it: to another one it would always be another version.
    same, hashed = saved.get("url") == url, has_full_hash(part)
    validator = saved.get("validator", "") if same and url not in job.unmarked else ""
    # Of two sources, of one without marks, or where no hash of the whole finds out whether the marks were true: it shows at once.
    tail = b""
    if not (validator.startswith('"') and hashed):
        # So little is sooner asked for again than compared.
        have = have if have > OVERLAP else 0
        tail = _tail(part, have) if have else b""
    with ask(way, have - len(tail), validator) as reply, _watched(job, reply, url):
        job.answered = True
        check_status(part, reply, way.url, drive)
        another, piece = False, b""
        first, last, total = _range(reply.headers.get("Content-Range", ""))
        if reply.status_code == 416:
            if have and total == have:
                return
            if not have:
                raise SourceFailed("HTTP 416: it says that it has no such range, though all of the file was asked for")
            _start_over(job, url, "HTTP 416: it has no such range", same)
        # 200 is the whole file: Range was not sent, or is ignored, or the file is another one now.
        if reply.status_code == 200:
            last = None
            # It is called one, and the hash of what is wanted is known: its first bytes tell.
            if "text/html" in reply.headers.get("Content-Type", "").lower():
                piece = _continued(job, reply, url, b"", 0, same)
                if is_page(piece) or not piece:
                    explain_page(reply, url, drive, piece)
            total = whole_number(reply.headers.get("Content-Length", ""))
            another = have > 0 and same and _differs(saved, reply.headers, total, url in job.unmarked)
            # What came would be lost: not if the one that was left needs only minutes more.
            if have and not same and ((total or expected or have) - have) < job.quickest * PATIENCE:
                raise Crawls("it sends nothing but all of the file", 0)
            if another and hashed and validator and total == saved.get("size"):
                piece = _check_marks(job, reply, url, piece, have)
            have, tail = 0, b""
        # A part that does not continue ours would make a file of the right size and with a hole or a seam in it.
        elif first != have - len(tail) or _differs(saved, reply.headers, total, bool(tail) and hashed):
            _start_over(job, url, "it sends another part than asked for, or of another file", same)
        # What the first answer said of the whole holds for one of a part that does not.
        total = total or (saved.get("size") if have and same else None)
        if far := far_off(part, total):
            raise SourceFailed(far)
        check_size(part, total, expected)
        _check_room(job, (total or 0) - have)
        # Before what came is given up for it: in the place of the file, a network's login page may come at any time.
        piece = piece or _continued(job, reply, url, tail, have, same)
        if have == 0 and is_page(piece):
            raise (OtherWay if drive else SourceFailed)(f"it sends {called(piece)} instead of the file")
        if another:
            job.versions += 1
            job.show.say(f"`{part.label}`: `{host(url)}` has another file now: from the beginning")
        if have and not same:
            job.joined = have, saved
        begin(part, url, reply.headers, have, total)
        job.sole = url if have == 0 or job.sole == url else ""
        job.show.size(have, total or expected)
        have = receive(job, reply, url, piece, have, total or expected, last)
    # The end of a stream and a broken connection look alike: the size tells them apart, or the end of the range.
    goal = total or expected or 0
    if have < max(goal, (last or -1) + 1):
        why = f"it sends no more than {bytes_text(have)} of it at once" if have == (last or -1) + 1 else ""
        raise Retry(why or f"the connection broke after {bytes_text(have)}")
    if not goal and not _ended(part, reply):
        raise Endless


def _check_marks(job: Job, reply: requests.Response, url: str, piece: bytes, have: int) -> bytes:
    """The first bytes of a whole file whose mark is another one than before. Retry if they are those of `.part`: of several machines
    behind one address each may have its own mark of the same file, and the hash will tell."""
    count = min(have, OVERLAP)
    piece = _first(job, reply, url, piece, count, 0)
    with job.part.beside(".part").open("rb") as file:
        began = file.read(count)
    if piece[:count] != began or len(piece) < count:
        return piece
    job.unmarked.add(url)
    raise Retry("its mark of the file is another one than before, and the file is not")


def _check_room(job: Job, needed: int) -> None:
    """SourceFailed if only this source says that the file is so large: another one may have it, and there is room for that."""
    folder = job.part.file.parent
    if job.others and not job.part.facts.get("size") and needed * 1.05 > free_bytes(folder):
        raise SourceFailed(
            f"no space for what it says: {bytes_text(needed)}, and {bytes_text(free_bytes(folder))} are free"
        )


@contextlib.contextmanager
def _watched(job: Job, reply: requests.Response, url: str) -> Iterator[None]:
    """Breaks the answer off if one read of it does not come back: the library's limit is one between two bytes, and what frames the
    parts of a body may be many."""
    job.watch(url)
    over, stuck = threading.Event(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            if job.clock.monotonic() - job.last > STUCK:
                stuck.set()
                return cut(reply)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    except Retry as why:
        # It was not the server that broke it.
        if stuck.is_set() and type(why) is Retry:
            raise Retry(f"nothing of the file came for {time_text(STUCK)}") from None
        raise
    finally:
        over.set()


def _start_over(job: Job, url: str, why: str, same: bool) -> NoReturn:
    """What came is of no use here: thrown away, or set aside if it is another source's (not the `same`)."""
    kept = size_of(job.part.beside(".part"))
    if not same:
        job.apart.add(url)
    with disk_errors(job.part.file, job.part):
        (discard if same else set_aside)(job.part)
    raise Changed(why if same or not kept else f"{why}; {bytes_text(kept)} of the other source are kept")


def disjoin(job: Job) -> None:
    """Sets aside what another source had given before this one went on with it: one of them has a wrong file, and not both."""
    if job.joined:
        have, saved = job.joined
        job.joined = None
        with disk_errors(job.part.file, job.part):
            with job.part.beside(".part").open("r+b") as file:
                file.truncate(have)
            atomic.replace(job.part.beside(".part.json"), json.dumps(saved, indent=1) + "\n")
            set_aside(job.part)


def _tail(part: Part, have: int) -> bytes:
    """The last bytes of what came."""
    with part.beside(".part").open("rb") as file:
        file.seek(have - OVERLAP)
        return file.read(OVERLAP)


def _continued(job: Job, reply: requests.Response, url: str, tail: bytes, have: int, same: bool) -> bytes:
    """The first bytes of the answer behind `tail`, with which it must begin. Changed if it is of another file."""
    piece = _first(job, reply, url, b"", max(len(tail), HEAD), have)
    if len(piece) < len(tail):
        raise Retry(f"the connection broke after {bytes_text(have)}")
    if not piece.startswith(tail):
        job.versions += same
        _start_over(job, url, "its file is another one than what came before", same)
    return piece[len(tail) :] or _piece(job, reply, have) if tail else piece


def _first(job: Job, reply: requests.Response, url: str, piece: bytes, count: int, have: int) -> bytes:
    """So many bytes of the answer behind `piece`, or more; fewer if there are no more."""
    while len(piece) < count and (more := _piece(job, reply, have)):
        piece += more
        if job.seconds >= WATCHED:
            judge_pace(job, url, None)
    return piece


def check_size(part: Part, total: int | None, expected: int | None) -> None:
    """SourceFailed (or Doubtful) if the server says that the file has no bytes, or not as many as the registry knows."""
    if total == 0:
        raise SourceFailed("it is empty: it has 0 bytes")
    if expected and total and total != expected:
        text = f"it says that the file has {total:,} bytes, not {expected:,}"
        raise SourceFailed(text) if vouched(part) else Doubtful(text)


def begin(part: Part, url: str, headers: Mapping[str, str], have: int, total: int | None) -> None:
    """Cuts `.part` to the `have` bytes that the answer continues, and notes in `.part.json` what it continues."""
    with disk_errors(part.file, part):
        if not have and came_from(part.beside(".part.json")) not in ("", url):
            set_aside(part)
    needed = (total or part.facts.get("size") or 0) - have
    # What waits for its source is the first to go.
    if needed * 1.05 > free_bytes(part.file.parent):
        for _, aside in disk.PARTS:
            part.beside(aside).unlink(missing_ok=True)
    require_space(part.file.parent, needed, part)
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    # A weak one does not promise the same bytes.
    validator = modified if not etag or etag.startswith("W/") else etag
    saved: Saved = {"url": url, "validator": validator, "size": total, "etag": etag, "modified": modified}
    with disk_errors(part.file, part):
        # Cut before the note is written: the other way round, a kill in between would leave old bytes under a new note.
        with part.beside(".part").open("r+b" if have else "wb") as file:
            file.truncate(have)
        atomic.replace(part.beside(".part.json"), json.dumps(saved, indent=1) + "\n")


def receive(
    job: Job, reply: requests.Response, url: str, piece: bytes, have: int, goal: int | None, last: int | None = None
) -> int:
    """Appends the answer's bytes to `.part` as they come (more than `goal` are too many); how many are there then.

    piece: the first of them. last: where a range ends; what comes behind it is no part of it. Crawls: it is too slow, and another
    source may be quicker. SourceFailed: it goes on far beyond what is known of the file."""
    part = job.part
    # Where nobody says how long it is, a body need have no end.
    bound = None if goal else _longest(part)
    # Unbuffered: a killed process then loses nothing that has come, and a full disk shows at the write and not when it is closed.
    with part.beside(".part").open("ab", buffering=0) as file:
        while piece := piece[: None if last is None else max(last + 1 - have, 0)]:
            with disk_errors(part.file, part):
                disk.write(file, piece)
            have += len(piece)
            job.show.at(have)
            if bound and have > bound:
                break
            if goal and have > goal:
                break
            if job.seconds >= WATCHED:
                judge_pace(job, url, goal - have if goal else None)
            piece = _piece(job, reply, have)
    if bound and have > bound:
        discard(part)
        raise SourceFailed(
            f"it sends more than {bytes_text(bound)} without an end, and the file is known to have fewer"
        )
    return have


def _longest(part: Part) -> float | None:
    """Bytes that the file cannot be longer than, where neither the registry nor the server says how long it is."""
    known, about = None if part.outdated() else part.lock().get("size"), part.facts.get("about")
    return max(known or 0, (about or 0) * ROUGHLY) or None


def judge_pace(job: Job, url: str, left: int | None) -> None:
    """Crawls if the server sends too slowly and may be left; if it may not, that is said once, with the time left."""
    speed = job.bytes / job.seconds
    job.seconds, job.bytes = 0, 0
    # What comes within a minute is not worth another server's handshake.
    if speed >= SLOW or (left is not None and left < speed * WATCHED):
        return
    if job.may_leave:
        raise Crawls(f"it sends {bytes_text(speed)}/s", speed)
    if url not in job.told:
        job.told.add(url)
        rest = f": about {time_text(left / speed)} left" if left and speed else ""
        job.show.say(f"`{job.part.label}`: `{host(url)}` sends {bytes_text(speed)}/s, and {job.alone}{rest}")


def _piece(job: Job, reply: requests.Response, have: int) -> bytes:
    """What comes next; b"" at the end. Retry if the connection breaks."""
    from urllib3.exceptions import HTTPError

    # read1 gives what has come, read would wait for a whole megabyte and lose it if the connection breaks.
    try:
        piece = bytes(reply.raw.read1(CHUNK, decode_content=False))
        job.count(len(piece))
        return piece
    except (HTTPError, OSError) as error:
        # That it was incomplete is said already.
        why = "" if "IncompleteRead" in str(error) else f" ({_reason(error)})"
        raise Retry(f"the connection broke after {bytes_text(have)}{why}") from None


def _ended(part: Part, reply: requests.Response) -> bool:
    """Whether a body without a length came to its end: by the file's format, and where that says nothing by the last chunk."""
    end = at_end(part.beside(".part"))
    if end is None:
        # A hash finds out.
        return "chunked" in reply.headers.get("Transfer-Encoding", "").lower() or has_full_hash(part)
    return end


def resumable(part: Part, url: str, size: int | None) -> tuple[int, Saved]:
    """(bytes already there that may be kept, what `.part.json` says of them); across URLs only if a full hash is known."""
    have = size_of(part.beside(".part"))
    # Two mirrors may hold different versions: only a hash of the whole tells whether what they gave belongs together.
    try:
        saved = _understood(json.loads(part.beside(".part.json").read_text(encoding="utf-8")))
        usable = saved["url"] == url or has_full_hash(part)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0, {}
    return (have, saved) if usable and have and not (size and have > size) else (0, {})


def _understood(note: dict[str, object]) -> Saved:
    """What a `.part.json` says; another version's may say more, less, or in other types. KeyError if it does not say from where."""
    texts = {key: value for key, value in note.items() if isinstance(value, str) and value.isprintable()}
    size, validator = note.get("size"), texts.get("validator", "")
    strong = validator.startswith('"')
    return {
        "url": texts["url"],
        "validator": validator,
        "size": size if type(size) is int and size > 0 else None,
        "etag": texts.get("etag", validator if strong else ""),
        "modified": texts.get("modified", "" if strong else validator),
    }


def far_off(part: Part, size: int | None) -> str:
    """Why a file of this size cannot be one of which nobody knows hash or size, but roughly how large it is; or ""."""
    about = part.facts.get("about")
    known = part.facts.get("size") or part.facts.get("sha256") or part.facts.get("md5") or part.lock()
    if not (size and about) or known or about / ROUGHLY <= size <= about * ROUGHLY:
        return ""
    return f"it has {bytes_text(size)}, and the file is known to have about {bytes_text(about)}"


def vouched(part: Part) -> bool:
    """Whether the registry's hash and size are of the publisher, or of many: another file is then a wrong one."""
    # What one third party printed may be of another edition of the file.
    return bool(part.facts.get("trust") != "third-party")


def _range(text: str) -> tuple[int | None, int | None, int | None]:
    """`bytes 5-9/10` -> (5, 9, 10); `bytes */10` -> (None, None, 10); `bytes 5-9/*` -> (5, 9, None). What cannot be is all None."""
    found = re.fullmatch(r"bytes\s+(?:([0-9]+)-([0-9]+)|\*)/([0-9]+|\*)", text.strip(), re.IGNORECASE)
    if not found:
        return None, None, None
    first, last, total = (whole_number(one or "") for one in found.groups())
    if (found[1] and (first is None or last is None or last < first)) or (last and total and last >= total):
        return None, None, None
    return first, last, total


def _differs(saved: Saved, headers: Mapping[str, str], total: int | None, shown: bool) -> bool:
    """Whether what a 206 continues is another file than what `.part` began with. shown: by its bytes it will be seen, and a mark alone
    is no proof: of several machines behind one address each may have its own."""
    size = saved.get("size")
    return bool(size and total and size != total) if shown else _is_another(saved, headers, total)


def _is_another(saved: Saved, headers: Mapping[str, str], total: int | None) -> bool:
    """Whether the size, or a mark of this version, is another one than it was: some servers ignore If-Range, and send of a new one."""
    size = saved.get("size")
    if size and total and size != total:
        return True
    etags, dates = (saved.get("etag"), headers.get("ETag")), (saved.get("modified"), headers.get("Last-Modified"))
    if all(etags) and etags[0] != etags[1]:
        return True
    # A strong mark is of these very bytes, whenever they were copied there.
    if all(etags) and not str(etags[0]).startswith("W/"):
        return False
    return bool(all(dates) and dates[0] != dates[1])
