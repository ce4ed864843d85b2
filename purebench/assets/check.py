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
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from purebench import assets
from purebench.assets import Part, bytes_text, download, fetch
from purebench.assets.download import Confirmation, Retry, SourceFailed

if TYPE_CHECKING:
    import requests

TIMEOUT = (10, 20)  # seconds to connect, and to the first byte
PAUSE = 0.5  # seconds between two questions to one host: Drive takes many at once for an attack
AGAIN = 3  # seconds after which a connection that failed is tried once more
GIVEN_UP = 2  # questions in a row that a host leaves without any answer, after which it is asked no more
ROUGHLY = 0.05  # how far a size may be from an `about`

Question = tuple[Part, dict[str, str], str]  # a file, one of its sources, and the address to ask


class NoAnswer(Exception):
    """Nothing came from there: why. A second try may bring it."""


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
    """(file, source, address) of every source of the assets, none twice. UserError: an unknown name, or kind of source."""
    found = {}
    for name in fetch.wanted(names):
        for part in assets.parts(name):
            for source in part.facts.get("sources", []):
                by_hand = not fetch.automatic(source)
                url = (fetch.browser if by_hand else fetch.address)(source, part.file.name)
                # By file and address: two assets may be one file (`same_as`).
                found[part.file, url] = (part, source, url)
    return list(found.values())


def answers(asked: list[Question], *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Answer]:
    """What each source says, in the order of the questions; hosts are asked side by side, each one question at a time."""
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
                sleep(PAUSE)
            try:
                # Where nothing answers, each of Drive's files would take a minute to say so.
                answer = ask(*question, sleep=sleep) if unanswered < GIVEN_UP else _not_asked(question)
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
    return Answer(part.label, url, source.get("status", ""), notes=[why])


def without_source(names: Iterable[str], found: Iterable[Answer]) -> list[str]:
    """The files (as messages call them) that no source has today; not those that ship with purebench or were never released."""
    live = {answer.asset for answer in found if answer.usable}
    labels = dict.fromkeys(part.label for name in fetch.wanted(names) for part in assets.parts(name))
    return [label for label in labels if label not in live]


def ask(part: Part, source: dict[str, str], url: str, *, sleep: Callable[[float], None] = time.sleep) -> Answer:
    """One byte of one source."""
    for last in (False, True):
        answer = Answer(part.label, url, source.get("status", ""))
        try:
            _first_byte(part, source, url, answer)
        except NoAnswer as why:
            answer.notes = [str(why)]
            # A break of a few seconds makes no server dead.
            if not last:
                sleep(AGAIN)
                continue
        except Retry as problem:
            wait = "" if problem.wait is None else f"; it asks to wait {problem.wait:.0f} seconds"
            answer.state, answer.notes = "busy", [f"{problem}{wait}"]
        except SourceFailed as why:
            # What answers and is not the file is another thing than an address that leads nowhere.
            answer.state = (
                "busy" if "quota" in str(why) else "dead" if answer.http >= 400 or not answer.http else "differs"
            )
            answer.notes = [
                str(why) if str(why).startswith("HTTP") or answer.http < 400 else f"HTTP {answer.http}: {why}"
            ]
        break
    if answer.known:
        answer.notes.append(f"the registry calls it {answer.known}")
    return answer


def _first_byte(part: Part, source: dict[str, str], url: str, answer: Answer) -> None:
    """Fills in the answer. Retry, SourceFailed, NoAnswer: why there is none."""
    drive, page = "gdrive" in source, not fetch.automatic(source)
    for confirmed in (False, True):
        began = time.monotonic()
        with _request(url) as reply:
            answer.http, answer.seconds = reply.status_code, round(time.monotonic() - began, 3)
            try:
                if page:
                    return _page(reply, answer)
                download.check_status(part, reply, url, drive and not confirmed)
            except Confirmation as button:
                url = str(button)
                continue
            first = _read_one(reply)
            answer.seconds = round(time.monotonic() - began, 3)
            return _compare(part, source, reply, first, answer)


def _page(reply: requests.Response, answer: Answer) -> None:
    """A page for people: only whether it is there."""
    if not reply.ok:
        raise SourceFailed(f"HTTP {reply.status_code} {reply.reason}")
    host = urlsplit(reply.url).hostname or ""
    # Drive answers like this for a folder that is no longer shared.
    if host.startswith("accounts."):
        raise SourceFailed(f"`{host}` asks to log in")
    answer.state = "page"


def _request(url: str) -> requests.Response:
    """The server's answer to a request for one byte. NoAnswer, SourceFailed: there is none."""
    import requests

    headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0", "User-Agent": "purebench"}
    try:
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    # Before RequestException, of which these are: another try changes none of them.
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
        raise SourceFailed(f"{type(error).__name__}: {error}") from None
    except requests.Timeout:
        raise NoAnswer("no answer in time") from None
    except requests.RequestException as error:
        raise NoAnswer(f"no connection ({download._reason(error)})") from None


def _read_one(reply: requests.Response) -> bytes:
    """The first byte; of a server that ignores Range nothing more is read either."""
    from urllib3.exceptions import HTTPError

    try:
        return bytes(reply.raw.read(1, decode_content=False))
    except (HTTPError, OSError) as error:
        raise NoAnswer(f"the connection broke before the first byte ({download._reason(error)})") from None


def _compare(part: Part, source: dict[str, str], reply: requests.Response, first: bytes, answer: Answer) -> None:
    """Holds the answer against the registry: what `fetch` would refuse makes it `differs`, all else is a note."""
    facts, headers = part.facts, reply.headers
    answer.state = "answers"
    answer.ranges = reply.status_code == 206
    answer.size = _size(reply)
    answer.validator = headers.get("ETag", "") or headers.get("Last-Modified", "")
    refused = []
    if not first:
        refused.append("it is empty")
    elif first == b"<":
        refused.append("it sends an HTML page instead of the file")
    if answer.size and facts.get("size") and answer.size != facts["size"]:
        refused.append(f"it says that the file has {answer.size:,} bytes, not {facts['size']:,}")
    about = facts.get("about")
    if answer.size and about and not facts.get("size") and abs(answer.size - about) > ROUGHLY * about:
        answer.notes.append(f"the registry says about {bytes_text(about)}")
    for kind, stated in _hashes(reply).items():
        expected = facts.get(kind) or (part.lock().get("sha256", "") if kind == "sha256" else "")
        if expected and stated != expected:
            why = f"it says that its {kind} is {stated[:12]}.., not {expected[:12]}.. (trust: {facts['trust']})"
            refused.append(why)
    # What moved for good today is dead one day.
    moved = [step for step in reply.history if step.status_code in (301, 308)]
    if moved:
        answer.notes.append(f"moved for good to {moved[-1].headers.get('Location', '?')}")
    if not answer.ranges:
        answer.notes.append("it ignores Range: a broken download starts over")
    if refused:
        answer.state, answer.notes = "differs", refused + answer.notes


def _size(reply: requests.Response) -> int | None:
    """Bytes of the whole file, as the server says; None if it does not."""
    total = download._range(reply.headers.get("Content-Range", ""))[1]
    length = reply.headers.get("Content-Length", "")
    if total is None and reply.status_code == 200 and length.isdigit():
        return int(length)
    return total


def _hashes(reply: requests.Response) -> dict[str, str]:
    """Hashes of the whole file that a server states without being asked: kind -> hexadecimal digits."""
    found = {}
    for step in [*reply.history, reply]:
        headers = step.headers
        # Hugging Face, where it sends on to its stores.
        if linked := re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", "")):
            found["sha256"] = linked[1]
        # An S3 upload in one part that is not encrypted by a key of its own; elsewhere 32 digits may be anything.
        plain = "S3" in headers.get("Server", "") and "kms" not in headers.get("x-amz-server-side-encryption", "")
        if plain and (etag := re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", ""))):
            found["md5"] = etag[1]
        google = re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
        # Azure's of the whole file; its Content-MD5 is that of the part.
        if text := google[1] if google else headers.get("x-ms-blob-content-md5", ""):
            with contextlib.suppress(binascii.Error, ValueError):
                found["md5"] = base64.b64decode(text, validate=True).hex()
    return found
