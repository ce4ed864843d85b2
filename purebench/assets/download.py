"""One URL into one `.part` file: ranges, retries, pages that pretend to be files, and disks that fill up. Used by `fetch.py`."""

from __future__ import annotations

import contextlib
import errno
import gzip
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from purebench.assets import Part, bytes_text
from purebench.assets.bars import Show
from purebench.errors import DOWNLOAD, UserError

CHUNK = 1 << 20
TRIES = 5  # in a row without progress
LONGEST = 120  # seconds that a server may ask to wait
TIMEOUT = (10, 60)  # seconds to connect, and between two reads
BUSY = {408, 425, 429, 500, 502, 503, 504}


class Refused(Exception):
    """This source cannot give the file: why."""


class Again(Exception):
    """It may if asked again: why, after how many seconds (None: the usual back-off), how often at most."""

    def __init__(self, why: str, wait: float | None = None, tries: int = TRIES):
        super().__init__(why)
        self.wait, self.tries = wait, tries


class Form(Exception):
    """Drive asks to press a button that leads to this URL."""


def download(part: Part, url: str, *, drive: bool, sleep: Callable[[float], None], show: Show) -> None:
    """All bytes of the URL in `.part`, asking again after what may pass. Refused if it does not pass."""
    failures, asked, hopped, most = 0, url, False, resumable(part, url)[0]
    while True:
        try:
            attempt(part, url, asked, drive and not hopped, show)
            return
        except Form as form:
            asked, hopped = str(form), True
        except Again as again:
            have = size_of(part.beside(".part"))
            failures = 1 if have > most + CHUNK else failures + 1
            most = max(most, have)
            if failures >= again.tries:
                raise Refused(f"{again} (asked {failures} times)") from None
            wait = 2.0 ** (failures - 1) if again.wait is None else again.wait
            if wait > LONGEST:
                raise Refused(f"{again}; it asks to wait {wait:.0f} seconds") from None
            show.say(f"`{part.label}`: {again}; asking again in {wait:.3g} s")
            sleep(wait)


def attempt(part: Part, url: str, asked: str, drive: bool, show: Show) -> None:
    """One request, from where `.part` ends. `url`: the source, as remembered; `asked`: what is asked now."""
    import requests

    have, side = resumable(part, url)
    if have and have == (part.facts.get("size") or side.get("size")):
        return  # a process died between the last byte and its verification
    headers = {"Accept-Encoding": "identity", "User-Agent": "purebench"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if side["url"] == url and side.get("validator"):
            headers["If-Range"] = side["validator"]
    try:
        reply = requests.get(asked, headers=headers, stream=True, timeout=TIMEOUT)
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    except requests.Timeout:
        raise Again("no answer in time", tries=2) from None
    except requests.RequestException as error:
        raise Again(f"no connection ({_reason(error)})", tries=2) from None
    with reply:
        told, code = reply.headers, reply.status_code
        if "text/html" in told.get("Content-Type", "").lower() and (code < 400 or drive) and code not in BUSY:
            page(reply, asked, drive)
        if code in BUSY:
            raise Again(f"HTTP {code}", _retry_after(told.get("Retry-After")))
        first, total = _range(told.get("Content-Range", ""))
        if code == 416:
            if have and total == have:
                return
            forget(part)
            raise Again("HTTP 416: it has no such range")
        if code not in (200, 206):
            raise Refused(f"HTTP {code} {reply.reason}")
        if told.get("Content-Encoding", "identity") != "identity" and not part.file.name.endswith(".gz"):
            raise Refused("it sends the file compressed though asked not to")
        if code == 200:  # the whole file: nothing was asked for, or Range is ignored, or the file is another one now
            first, total = 0, int(length) if (length := told.get("Content-Length", "")).isdigit() else None
            have = 0
        elif first != have or _other(side, url, told, total):
            forget(part)
            raise Again("it sends another part than asked for, or of another file")
        size = part.facts.get("size")
        if size and total and total != size:
            raise Refused(f"it says that the file has {total:,} bytes, not {size:,}")
        room(part.file.parent, (total or size or 0) - have, part)
        validator = told.get("ETag", "")
        if not validator or validator.startswith("W/"):
            validator = told.get("Last-Modified", "")
        with disk(part.file):
            with part.beside(".part").open("r+b" if have else "wb") as file:
                file.truncate(have)
            replace(part.beside(".part.json"), {"url": url, "validator": validator, "size": total})
        show.size(have, total or size)
        have = receive(part, reply, have, size, show)
        if total and have < total:
            raise Again(f"the connection broke after {bytes_text(have)}")


def receive(part: Part, reply: Any, have: int, size: int | None, show: Show) -> int:
    """Appends the answer's bytes to `.part` as they come (more than `size` are too many); how many are there then."""
    from urllib3.exceptions import HTTPError

    with part.beside(".part").open("ab", buffering=0) as file:
        while not (size and have > size):
            try:
                piece = reply.raw.read1(CHUNK, decode_content=False)
            except (HTTPError, OSError) as error:
                raise Again(f"the connection broke after {bytes_text(have)} ({_reason(error)})") from None
            if not piece:
                break
            if have == 0 and re.match(rb"\s*<(!doctype|html)", piece, re.IGNORECASE):
                raise Refused("it sends an HTML page instead of the file")
            with disk(part.file):
                _write(file, piece)
            have += len(piece)
            show.at(have)
    return have


def resumable(part: Part, url: str) -> tuple[int, dict[str, Any]]:
    """(bytes already there that may be kept, what `.part.json` says of them); across URLs only if a full hash is known."""
    have = size_of(part.beside(".part"))
    try:
        side = json.loads(part.beside(".part.json").read_text(encoding="utf-8"))
        good = side["url"] == url or sure(part)
    except (OSError, ValueError, KeyError, TypeError):
        good = False
    size = part.facts.get("size")
    return (have, side) if good and have and not (size and have > size) else (0, {})


def sure(part: Part) -> bool:
    """Whether a full hash is known, published or pinned."""
    return any(part.facts.get(kind) for kind in ("sha256", "md5")) or bool(part.lock())


def page(reply: Any, url: str, drive: bool) -> None:
    """An HTML page came: Drive's `scan warning` (Form with the URL behind its button), its quota page, or another (Refused)."""
    from urllib3.exceptions import HTTPError

    try:
        text = reply.raw.read(CHUNK, decode_content=True).decode("utf-8", "replace")
    except (HTTPError, OSError):
        text = ""
    form = re.search(r"<form\b[^>]*\bid=[\"']download-form[\"'][^>]*>", text)
    if drive and form:
        action = re.search(r"\baction=[\"']([^\"']*)", form[0])
        tags = re.findall(r"<input\b[^>]*>", text[form.end() :].partition("</form")[0])
        fields = {n[1]: _attribute(tag, "value") for tag in tags if (n := re.search(r"\bname=[\"']([^\"']*)", tag))}
        target = urljoin(url, html.unescape(action[1]) if action else "")
        raise Form(f"{target}{'&' if '?' in target else '?'}{urlencode(fields)}" if fields else target)
    if re.search(r"quota exceeded|too many users have viewed or downloaded", text, re.IGNORECASE):
        raise Refused("its download quota is used up for now; a browser that is logged in may still get the file")
    title = re.search(r"<title>\s*([^<]{1,80}?)\s*</title>", text, re.IGNORECASE)
    raise Refused(f"it sends an HTML page{f' (`{html.unescape(title[1])}`)' if title else ''} instead of the file")


def _range(text: str) -> tuple[int | None, int | None]:
    """`bytes 5-9/10` -> (5, 10); `bytes */10` -> (None, 10)."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", text.strip())
    if not found:
        return None, None
    return int(found[1]) if found[1] else None, int(found[2]) if found[2].isdigit() else None


def _other(side: dict[str, Any], url: str, told: Any, total: int | None) -> bool:
    """Whether what a 206 continues is another file than what `.part` began with."""
    if side.get("size") and total and side["size"] != total:
        return True
    known = side.get("validator") if side.get("url") == url else None
    return bool(known and known not in (told.get("ETag"), told.get("Last-Modified")) and told.get("ETag"))


def _retry_after(text: str | None) -> float | None:
    """Seconds, from seconds or an HTTP date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf"\b{name}=[\"']([^\"']*)", tag)
    return html.unescape(found[1]) if found else ""


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: `Connection refused`."""
    found = re.findall(r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out|IncompleteRead)", str(error))
    return next((a or b for a, b in found[::-1]), "") or type(error).__name__


# ------------------------------------------------------------------------------------------------------------------ the disk


def forget(part: Part) -> None:
    part.beside(".part").unlink(missing_ok=True)
    part.beside(".part.json").unlink(missing_ok=True)


def room(folder: Path, needed: int, part: Part | None = None) -> None:
    """UserError (exit 3) unless the disk has the bytes and 5 % more."""
    if needed * 1.05 > free(folder):
        why = f"{bytes_text(needed * 1.05)} are needed below `{folder}`, {bytes_text(free(folder))} are free"
        raise no_space(why, part)


def free(folder: Path) -> int:
    """Bytes free where the folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def no_space(why: str, part: Part | None) -> UserError:
    kept = f"; what came of `{part.label}` is kept" if part and size_of(part.beside(".part")) else ""
    return UserError(
        f"no space: {why}{kept}", "free some, or set PUREBENCH_CACHE to a folder on a larger disk", DOWNLOAD
    )


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """A full or read-only disk is a UserError; `.part` is kept."""
    try:
        yield
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(f"`{path.parent}` is full; what came is kept", None) from None
        raise UserError(
            f"cannot write to `{path.parent}`: {error.strerror or error}", "mend it, or set PUREBENCH_CACHE", DOWNLOAD
        ) from None


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write(file: Any, piece: bytes) -> None:
    while piece:
        piece = piece[file.write(piece) :]


def replace(path: Path, facts: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
