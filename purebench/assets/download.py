"""One URL into one `.part` file: ranges, retries, pages that pretend to be files, and disks that fill up. Used by `fetch.py`."""

from __future__ import annotations

import contextlib
import errno
import gzip
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict
from urllib.parse import urlencode, urljoin

from purebench import assets, atomic
from purebench.assets import Part, bytes_text
from purebench.assets.bars import Show
from purebench.errors import DOWNLOAD, UserError

if TYPE_CHECKING:
    import io

    import requests

CHUNK = 1 << 20  # bytes
TRIES = 5  # in a row without progress
MAX_WAIT = 120  # seconds that a server may ask for
TIMEOUT = (10, 60)  # seconds to connect, and between two reads
BUSY = {408, 425, 429, 500, 502, 503, 504}


class SourceFailed(Exception):
    """This source cannot give the file: why."""


class Retry(Exception):
    """It may if asked again: why, after how many seconds (None: the usual back-off), how often at most."""

    def __init__(self, why: str, wait: float | None = None, tries: int = TRIES):
        super().__init__(why)
        self.wait, self.tries = wait, tries


class Confirmation(Exception):
    """Drive asks to press a button; the text is the URL that it leads to."""


class Saved(TypedDict, total=False):
    """`.part.json`: which URL the bytes in `.part` came from, the server's mark of that version, and the file's size if known."""

    url: str
    validator: str
    size: int | None


def download(part: Part, url: str, *, drive: bool, sleep: Callable[[float], None], show: Show) -> None:
    """All bytes of the URL in `.part`, asking again after what may pass. SourceFailed if it does not pass."""
    current_url, confirmed = url, False
    failures, furthest = 0, resumable(part, url)[0]
    while True:
        try:
            attempt(part, url, current_url, drive and not confirmed, show)
            return
        except Confirmation as page:
            # Once: a page that follows its own button would lead round in a circle.
            current_url, confirmed = str(page), True
        except Retry as problem:
            have = size_of(part.beside(".part"))
            # Counted in a row without progress: a connection that keeps breaking may still bring it all.
            failures = 1 if have > furthest + CHUNK else failures + 1
            furthest = max(furthest, have)
            if failures >= problem.tries:
                raise SourceFailed(f"{problem} (asked {failures} times)") from None
            # What the server asks for (Retry-After) counts; else 1, 2, 4, .. seconds.
            wait = 2.0 ** (failures - 1) if problem.wait is None else problem.wait
            if wait > MAX_WAIT:
                raise SourceFailed(f"{problem}; it asks to wait {wait:.0f} seconds") from None
            show.say(f"`{part.label}`: {problem}; asking again in {wait:.3g} s")
            sleep(wait)


def attempt(part: Part, url: str, current_url: str, drive: bool, show: Show) -> None:
    """One request, from where `.part` ends. `url`: the source, as remembered; `current_url`: what is asked now."""
    have, saved = resumable(part, url)
    expected: int | None = part.facts.get("size")
    # A process died between the last byte and its verification: a request for what follows would be answered by 416.
    if have and have == (expected or saved.get("size")):
        return
    # A mark means something to the server that made it: to another one it would always be another version.
    validator = saved.get("validator", "") if saved.get("url") == url else ""
    with request(current_url, have, validator) as reply:
        check_status(part, reply, current_url, drive)
        first, total = _range(reply.headers.get("Content-Range", ""))
        if reply.status_code == 416:
            if have and total == have:
                return
            discard(part)
            raise Retry("HTTP 416: it has no such range")
        # 200 is the whole file: Range was not sent, or is ignored, or the file is another one now.
        if reply.status_code == 200:
            length = reply.headers.get("Content-Length", "")
            have, total = 0, int(length) if length.isdigit() else None
        # A part that does not continue ours would make a file of the right size and with a hole or a seam in it.
        elif first != have or _is_another(saved, validator, reply.headers, total):
            discard(part)
            raise Retry("it sends another part than asked for, or of another file")
        if expected and total and total != expected:
            raise SourceFailed(f"it says that the file has {total:,} bytes, not {expected:,}")
        begin(part, url, reply.headers, have, total)
        show.size(have, total or expected)
        have = receive(part, reply, have, expected, show)
        # The end of a stream and a broken connection look alike: only the size tells them apart.
        if total and have < total:
            raise Retry(f"the connection broke after {bytes_text(have)}")


def request(url: str, have: int, validator: str) -> requests.Response:
    """The server's answer to a request for the bytes from `have` on: of the version `validator` if there is such a mark."""
    import requests

    # Uncompressed: of a file compressed on the way, neither the size nor a byte range is that of the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": "purebench"}
    if have:
        headers["Range"] = f"bytes={have}-"
        # If the file has changed meanwhile, the server then sends all of it and not a part.
        if validator:
            headers["If-Range"] = validator
    try:
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    # Before RequestException, of which these are: asking again changes none of them.
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
        raise SourceFailed(f"{type(error).__name__}: {error}") from None
    except requests.Timeout:
        raise Retry("no answer in time", tries=2) from None
    except requests.RequestException as error:
        raise Retry(f"no connection ({_reason(error)})", tries=2) from None


def check_status(part: Part, reply: requests.Response, url: str, drive: bool) -> None:
    """Lets through what may be the file, a part of it, or 416. Confirmation, Retry or SourceFailed for all else."""
    headers, status = reply.headers, reply.status_code
    # Pages come with status 200 in the place of the file, and from Drive with an error's status too, where they say more than it.
    is_page = "text/html" in headers.get("Content-Type", "").lower()
    if is_page and (status < 400 or drive) and status not in BUSY:
        explain_page(reply, url, drive)
    if status in BUSY:
        raise Retry(f"HTTP {status}", _retry_after(headers.get("Retry-After", "")))
    if status not in (200, 206, 416):
        raise SourceFailed(f"HTTP {status} {reply.reason}")
    # A .gz that is served as compressed is sent as it is: that is the file which is wanted.
    compressed = headers.get("Content-Encoding", "identity") != "identity"
    if compressed and status != 416 and not part.file.name.endswith(".gz"):
        raise SourceFailed("it sends the file compressed though asked not to")


def begin(part: Part, url: str, headers: Mapping[str, str], have: int, total: int | None) -> None:
    """Cuts `.part` to the `have` bytes that the answer continues, and notes in `.part.json` what it continues."""
    require_space(part.file.parent, (total or part.facts.get("size") or 0) - have, part)
    validator = headers.get("ETag", "")
    # A weak one does not promise the same bytes.
    if not validator or validator.startswith("W/"):
        validator = headers.get("Last-Modified", "")
    saved: Saved = {"url": url, "validator": validator, "size": total}
    with disk_errors(part.file):
        # Cut before the note is written: the other way round, a kill in between would leave old bytes under a new note.
        with part.beside(".part").open("r+b" if have else "wb") as file:
            file.truncate(have)
        atomic.replace(part.beside(".part.json"), json.dumps(saved, indent=1) + "\n")


def receive(part: Part, reply: requests.Response, have: int, expected: int | None, show: Show) -> int:
    """Appends the answer's bytes to `.part` as they come (more than `expected` are too many); how many are there then."""
    from urllib3.exceptions import HTTPError

    # Unbuffered: a killed process then loses nothing that has come, and a full disk shows at the write and not when it is closed.
    with part.beside(".part").open("ab", buffering=0) as file:
        while not (expected and have > expected):
            # read1 gives what has come, read would wait for a whole megabyte and lose it if the connection breaks.
            try:
                piece = reply.raw.read1(CHUNK, decode_content=False)
            except (HTTPError, OSError) as error:
                raise Retry(f"the connection broke after {bytes_text(have)} ({_reason(error)})") from None
            if not piece:
                break
            # Some servers call their pages a file: the bytes do not.
            if have == 0 and assets.wrong_head(piece):
                raise SourceFailed("it sends an HTML page instead of the file")
            with disk_errors(part.file):
                _write(file, piece)
            have += len(piece)
            show.at(have)
    return have


def resumable(part: Part, url: str) -> tuple[int, Saved]:
    """(bytes already there that may be kept, what `.part.json` says of them); across URLs only if a full hash is known."""
    have, size = size_of(part.beside(".part")), part.facts.get("size")
    # Two mirrors may hold different versions: only a hash of the whole tells whether what they gave belongs together.
    try:
        saved = json.loads(part.beside(".part.json").read_text(encoding="utf-8"))
        usable = saved["url"] == url or has_full_hash(part)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, {}
    return (have, saved) if usable and have and not (size and have > size) else (0, {})


def has_full_hash(part: Part) -> bool:
    """Whether a hash of the whole file is known, published or pinned."""
    return any(part.facts.get(kind) for kind in ("sha256", "md5")) or bool(part.lock())


def explain_page(reply: requests.Response, url: str, drive: bool) -> NoReturn:
    """An HTML page came: Drive's `scan warning` (Confirmation), its quota page, or another (SourceFailed)."""
    from urllib3.exceptions import HTTPError

    # A page is for people and a megabyte of it is enough, whatever the server still sends.
    try:
        text = reply.raw.read(CHUNK, decode_content=True).decode("utf-8", "replace")
    except (HTTPError, OSError):
        text = ""
    form = re.search(r"<form\b[^>]*\bid=[\"']download-form[\"'][^>]*>", text)
    if drive and form:
        tags = re.findall(r"<input\b[^>]*>", text[form.end() :].partition("</form")[0])
        fields = {name: _attribute(tag, "value") for tag in tags if (name := _attribute(tag, "name"))}
        target = urljoin(url, _attribute(form[0], "action"))
        raise Confirmation(f"{target}{'&' if '?' in target else '?'}{urlencode(fields)}" if fields else target)
    if re.search(r"quota exceeded|too many users have viewed or downloaded", text, re.IGNORECASE):
        raise SourceFailed("its download quota is used up for now; a browser that is logged in may still get the file")
    title = re.search(r"<title>\s*([^<]{1,80}?)\s*</title>", text, re.IGNORECASE)
    name = f" (`{html.unescape(title[1])}`)" if title else ""
    raise SourceFailed(f"it sends an HTML page{name} instead of the file")


def _range(text: str) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` -> (5, 10); `bytes */10` -> (None, 10)."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", text.strip())
    if not found:
        return None, None
    return int(found[1]) if found[1] else None, int(found[2]) if found[2].isdigit() else None


def _is_another(saved: Saved, validator: str, headers: Mapping[str, str], total: int | None) -> bool:
    """Whether what a 206 continues is another file than what `.part` began with."""
    size = saved.get("size")
    if size and total and size != total:
        return True
    # Some servers ignore If-Range, and send a part of the new version: its mark is another one then.
    marks = headers.get("ETag"), headers.get("Last-Modified")
    return bool(validator and marks[0] and validator not in marks)


def _retry_after(text: str) -> float | None:
    """Seconds, from seconds or an HTTP date; None for what is neither."""
    from urllib3 import Retry as Header
    from urllib3.exceptions import InvalidHeader

    try:
        return Header().parse_retry_after(text)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _attribute(tag: str, name: str) -> str:
    """The value of an attribute in an HTML tag; "" if it has none."""
    found = re.search(rf"\b{name}=[\"']([^\"']*)", tag)
    return html.unescape(found[1]) if found else ""


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: `Connection refused`."""
    found = re.findall(r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out|IncompleteRead)", str(error))
    return next((a or b for a, b in found[::-1]), "") or type(error).__name__


# ------------------------------------------------------------------------------------------------------------------ the disk


def discard(part: Part) -> None:
    """Forgets what has come so far."""
    part.beside(".part").unlink(missing_ok=True)
    part.beside(".part.json").unlink(missing_ok=True)


def require_space(folder: Path, needed: int, part: Part | None = None) -> None:
    """UserError (exit 3) unless the disk has the bytes and 5 % more."""
    # A disk that is filled to its last byte stops whatever else writes on it.
    if needed * 1.05 > free_bytes(folder):
        why = f"{bytes_text(needed * 1.05)} are needed below `{folder}`, {bytes_text(free_bytes(folder))} are free"
        raise no_space(why, part)


def free_bytes(folder: Path) -> int:
    """Bytes free where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def no_space(why: str, part: Part | None) -> UserError:
    """The error of a disk without space; what has come of `part` is named as kept."""
    kept = f"; what came of `{part.label}` is kept" if part and size_of(part.beside(".part")) else ""
    return UserError(
        f"no space: {why}{kept}", "free some, or set PUREBENCH_CACHE to a folder on a larger disk", DOWNLOAD
    )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full or read-only disk is a UserError; `.part` is kept."""
    try:
        yield
    except OSError as error:
        # An OSError too, but of the file that is read.
        if isinstance(error, gzip.BadGzipFile):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(f"`{path.parent}` is full; what came is kept", None) from None
        raise UserError(
            f"cannot write to `{path.parent}`: {error.strerror or error}", "mend it, or set PUREBENCH_CACHE", DOWNLOAD
        ) from None


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _write(file: io.FileIO, piece: bytes) -> None:
    """All of the piece: an unbuffered write may take less than it is given."""
    while piece:
        piece = piece[file.write(piece) :]
