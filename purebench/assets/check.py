"""`purebench fetch --check`: asks every source of an asset for one byte, and says what the registry does not know of it.

Sources that the registry calls dead are asked too, since some come back; a folder or page for a browser is asked whether it is there.
One byte tells nothing of a server's speed: `seconds` is how long it took to come.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from purebench.assets import Entry, Part, bytes_text, parts, request, sources
from purebench.assets.answers import QUOTA, check_status, whole_number
from purebench.assets.bars import time_text
from purebench.assets.clock import Clock
from purebench.assets.download import far_off, vouched
from purebench.assets.fetch import wanted
from purebench.assets.sources import Way
from purebench.assets.troubles import Confirmation, OtherWay, Retry, SourceFailed, Unreached

if TYPE_CHECKING:
    import requests

TIMEOUT = (10, 20)  # seconds to connect, and to the first byte
PAUSE = 0.5  # seconds between two questions to one host: Drive takes many at once for an attack
BUTTONS = 4  # pages of Drive's that are confirmed
AGAIN = 3  # seconds after which a connection that failed is tried once more
GIVEN_UP = 2  # questions in a row that a host leaves without any answer, after which it is asked no more
ROUGHLY = 0.05  # how far a size may be from an `about`

Question = tuple[Part, Entry, str]  # a file, one of its sources, and the address to ask


@dataclass
class Answer:
    """What one source said. `state`: `answers`, `page` (for a browser), `differs` (`fetch` would refuse it), `busy`, `dead`.

    known: what the registry says of the source: nothing, `unverified`, `dead` or `other`. http: the status, 0 for none.
    seconds: until its first byte. size: bytes of the file. validator: the server's mark of this version.
    ranges: whether a broken download can go on there. notes: why it is refused, and what else the registry does not say."""

    asset: str
    url: str
    known: str
    state: str = "dead"
    http: int = 0
    seconds: float | None = None
    size: int | None = None
    validator: str = ""
    ranges: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether `fetch`, or a person in a browser, gets the file there: one that the registry calls dead is never tried."""
        return self.state in ("answers", "page") and self.known not in ("dead", "other")


def questions(names: Iterable[str]) -> list[Question]:
    """(file, source, address) of every source of the assets, none twice. UserError: an unknown name, kind of source,
    or a proxy variable that is no URL."""
    found = {}
    for name in wanted(names):
        for part in parts(name):
            for source in part.facts.get("sources", []):
                url = source.get("manual") or (sources.address if sources.automatic(source) else sources.browser)(
                    source, part.file.name
                )
                # By file and address: two assets may be one file (`same_as`).
                request.check_proxy(url)
                found[part.file, url] = (part, source, url)
    return list(found.values())


def answers(asked: list[Question], clock: Clock | None = None) -> Iterator[Answer]:
    """What each source says, in the order of the questions; hosts are asked side by side, each one question at a time."""
    clock = clock or Clock()
    by_host = defaultdict(list)
    coming: list[Future[Answer]] = [Future() for _ in asked]
    for question, future in zip(asked, coming, strict=True):
        by_host[urlsplit(question[2]).hostname].append((question, future))
    stop = threading.Event()

    def in_turn(of: list[tuple[Question, Future[Answer]]]) -> None:
        unanswered = 0  # in a row
        for number, (question, future) in enumerate(of):
            if stop.is_set():
                return
            if number and unanswered < GIVEN_UP:
                clock.sleep(PAUSE)
            try:
                # Where nothing answers, each of Drive's files would take a minute to say so.
                answer = ask(*question, clock=clock) if unanswered < GIVEN_UP else _not_asked(question)
                unanswered = 0 if answer.http else unanswered + 1
                future.set_result(answer)
            # Else whoever waits for the answer would wait for ever: it is raised there.
            except BaseException as error:
                future.set_exception(error)

    for of in by_host.values():
        # Daemons: Ctrl-C need not wait for servers that do not answer.
        threading.Thread(target=in_turn, args=(of,), daemon=True).start()
    try:
        for future in coming:
            yield future.result()
    finally:
        stop.set()


def _not_asked(question: Question) -> Answer:
    part, source, url = question
    why = f"not asked: `{urlsplit(url).hostname}` did not answer {GIVEN_UP} times"
    return Answer(part.label, sources.shown(url), source.get("status", ""), notes=[why])


def without_source(names: Iterable[str], found: Iterable[Answer]) -> list[str]:
    """The files (as messages call them) that no source has today; not those that ship with purebench or were never released."""
    live = {answer.asset for answer in found if answer.usable}
    labels = dict.fromkeys(part.label for name in wanted(names) for part in parts(name))
    return [label for label in labels if label not in live]


def ask(part: Part, source: Entry, url: str, *, clock: Clock | None = None) -> Answer:
    """One byte of one source, asked in every way that `fetch` has for it."""
    clock = clock or Clock()
    automatic = sources.automatic(source)
    ways = sources.ways(source, part.file.name) if automatic else [Way(url)]
    answer = Answer(part.label, sources.shown(url), source.get("status", ""))
    broken, pressed = False, 0
    while True:
        try:
            _first_byte(part, ways[0], answer, source if automatic else None, clock)
        except Confirmation as button:
            pressed += 1
            if pressed <= BUTTONS:
                ways[0] = replace(ways[0], url=str(button))
                continue
            _refused(answer, "its page leads round in a circle")
        except Unreached as why:
            answer.state, answer.http, answer.seconds, answer.notes = "dead", 0, None, [str(why)]
            # A break of a few seconds makes no server dead.
            if not broken:
                broken = True
                clock.sleep(AGAIN)
                continue
        except Retry as why:
            wait = "" if why.wait is None else f"; it asks to wait {time_text(why.wait)}"
            answer.state, answer.notes = "busy", [f"{why}{wait}"]
        except OtherWay as why:
            _refused(answer, str(why))
            if len(ways) > 1:
                ways.pop(0)
                continue
        except SourceFailed as why:
            _refused(answer, str(why))
        break
    if answer.state == "answers" and ways[0].how:
        answer.notes.append(f"only {ways[0].how}")
    if answer.known:
        answer.notes.append(f"the registry calls it {answer.known}")
    return answer


def _refused(answer: Answer, why: str) -> None:
    """What answers and is not the file is another thing than an address that leads nowhere."""
    error = answer.http >= 400
    text = f"HTTP {answer.http}: {why}" if error and "HTTP" not in why else why
    # Each reason once: another way may end with the same.
    answer.notes = list(dict.fromkeys([*answer.notes, text]))
    quota = any(QUOTA in note for note in answer.notes)
    answer.state = "busy" if quota else "dead" if error or not answer.http else "differs"


def _first_byte(part: Part, way: Way, answer: Answer, source: Entry | None, clock: Clock) -> None:
    """Fills in the answer; source: None for a page. Confirmation, Retry, OtherWay or SourceFailed: why there is none."""
    began = clock.monotonic()
    with request.ask(way, timeout=TIMEOUT, one=True) as reply:
        answer.http, answer.seconds = reply.status_code, round(clock.monotonic() - began, 3)
        if source is None:
            return _page(reply, answer)
        check_status(part, reply, way.url, "gdrive" in source)
        first = _read_one(reply)
        answer.seconds = round(clock.monotonic() - began, 3)
        _compare(part, reply, first, answer)


def _page(reply: requests.Response, answer: Answer) -> None:
    """A page for people: only whether it is there."""
    if not reply.ok:
        raise SourceFailed(f"HTTP {reply.status_code} {reply.reason}".strip())
    host = sources.host(reply.url)
    # Drive answers like this for a folder that is no longer shared.
    if host.startswith("accounts."):
        raise SourceFailed(f"`{host}` asks to log in")
    answer.state, answer.notes = "page", []


def _read_one(reply: requests.Response) -> bytes:
    """The first byte; of a server that ignores Range nothing more is read either."""
    from urllib3.exceptions import HTTPError

    try:
        with request.limited(reply, sum(TIMEOUT)):
            return bytes(reply.raw.read(1, decode_content=False))
    except (HTTPError, OSError) as error:
        raise Unreached(f"the connection broke before the first byte ({request.reason(error)})") from None


def _compare(part: Part, reply: requests.Response, first: bytes, answer: Answer) -> None:
    """Holds the answer against the registry: what `fetch` would refuse makes it `differs`, all else is a note."""
    facts, headers = part.facts, reply.headers
    answer.state, answer.notes = "answers", []
    answer.ranges = reply.status_code == 206
    answer.size = _size(reply)
    answer.validator = headers.get("ETag", "") or headers.get("Last-Modified", "")
    refused, wrong = [], []
    if not first:
        refused.append("it is empty")
    elif first == b"<" or ("text/html" in headers.get("Content-Type", "").lower() and first in b" \t\r\n\xef"):
        refused.append("it sends an HTML page instead of the file")
    if answer.size and facts.get("size") and answer.size != facts["size"]:
        wrong.append(f"it says that the file has {answer.size:,} bytes, not {facts['size']:,}")
    if far := far_off(part, answer.size):
        refused.append(far)
    about = facts.get("about")
    if answer.size and about and not (facts.get("size") or far) and abs(answer.size - about) > ROUGHLY * about:
        answer.notes.append(f"the registry says about {bytes_text(about)}")
    for kind, stated in _hashes(reply).items():
        expected = facts.get(kind) or (part.lock().get("sha256", "") if kind == "sha256" else "")
        if expected and stated != expected:
            wrong.append(f"it says that its {kind} is {stated[:12]}.., not {expected[:12]}.. (trust: {facts['trust']})")
    if vouched(part):
        refused += wrong
    else:
        answer.notes += [f"{why}; `fetch` would warn, and take it if nobody has the other" for why in wrong]
    # What moved for good today is dead one day.
    moved = [step for step in reply.history if step.status_code in (301, 308)]
    if moved:
        answer.notes.append(f"moved for good to {sources.shown(moved[-1].headers.get('Location', '?'))}")
    if not answer.ranges:
        answer.notes.append("it ignores Range: a broken download starts over")
    if refused:
        answer.state, answer.notes = "differs", refused + answer.notes


def _size(reply: requests.Response) -> int | None:
    """Bytes of the whole file, as the server says (`bytes 0-0/10`, or the length of all of it); None if it does not."""
    whole = reply.headers.get("Content-Length", "") if reply.status_code == 200 else ""
    return whole_number(reply.headers.get("Content-Range", "").rpartition("/")[2] or whole)


def _hashes(reply: requests.Response) -> dict[str, str]:
    """Hashes of the whole file that a server states without being asked: kind -> hexadecimal digits."""
    found = {}
    for step in [*reply.history, reply]:
        headers = step.headers
        # Hugging Face, where it sends on to its stores.
        if linked := re.fullmatch(r'"?([0-9a-fA-F]{64})"?', headers.get("X-Linked-ETag", "")):
            found["sha256"] = linked[1].lower()
        # An S3 upload in one part that is not encrypted by a key of its own; elsewhere 32 digits may be anything.
        plain = "S3" in headers.get("Server", "") and "kms" not in headers.get("x-amz-server-side-encryption", "")
        if plain and (etag := re.fullmatch(r'"([0-9a-fA-F]{32})"', headers.get("ETag", ""))):
            found["md5"] = etag[1].lower()
        google = re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
        # Azure's of the whole file; its Content-MD5 is that of the part.
        if text := google[1] if google else headers.get("x-ms-blob-content-md5", ""):
            with contextlib.suppress(binascii.Error, ValueError):
                found["md5"] = base64.b64decode(text, validate=True).hex()
    return found
