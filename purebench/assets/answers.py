"""What an answer means that is not the file: a status, a busy server, a page of Drive's or of a network that wants a login."""

from __future__ import annotations

import contextlib
import html
import os
import re
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlencode, urljoin, urlsplit

from purebench.assets import HTML, Part
from purebench.assets.request import limited, through_proxy
from purebench.assets.sources import host, is_hub, shown
from purebench.assets.troubles import Busy, Confirmation, OtherWay, SourceFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import requests

BUSY = {408, 425, 429, 500, 502, 503, 504}
# Content-Encoding -> endings of files that are compressed in this way themselves.
CODINGS = {
    "gzip": (".gz", ".tgz"),
    "compress": (".z", ".taz"),
    "deflate": (),
    "br": (".br",),
    "zstd": (".zst", ".tzst"),
}
PAGE, PAGE_TIME = 1 << 20, 20  # bytes of a page that are read, and seconds
NEVER = 1e9  # seconds, and more than anybody waits
QUOTA = "its download quota is used up, for up to 24 hours; a browser that is logged in may still get the file"


def check_status(part: Part, reply: requests.Response, url: str, drive: bool) -> None:
    """Lets through what may be the file, a part of it, or 416. url: what was asked for; drive: whether Google Drive was.

    Confirmation, Busy, OtherWay or SourceFailed for all else."""
    status = reply.status_code
    # Pages come with status 200 in the place of the file, and from Drive with an error's status too, where they say more than it.
    is_page = "text/html" in reply.headers.get("Content-Type", "").lower()
    # What has a hash is looked at: some servers call every file a page.
    known = status in (200, 206) and not drive and has_full_hash(part)
    if is_page and (status < 400 or drive) and status not in BUSY and not known:
        explain_page(reply, url, drive)
    if status in BUSY:
        raise Busy(f"HTTP {status}", wait_asked(reply.headers))
    if status == 407:
        raise through_proxy(407, url)
    if status == 511:
        raise SourceFailed("this network wants a login first (HTTP 511): open any page in a browser")
    # Not the stores that it leads to.
    if status in (401, 403, 404) and is_hub(url) and host(reply.url) == host(url):
        explain_hub(reply, url)
    if drive and status in (401, 403):
        raise OtherWay(f"HTTP {status} {_plain(reply.reason or '')}".strip())
    if status not in (200, 206, 416):
        raise SourceFailed(f"HTTP {status} {_plain(reply.reason or '')}".strip())
    if status != 416 and _compressed(part.file.name, reply.headers.get("Content-Encoding", "")):
        raise SourceFailed("it sends the file compressed though asked not to")


def _compressed(name: str, text: str) -> bool:
    """Whether the Content-Encoding makes other bytes of the file: not a word that is no compression, and not that which the file's
    own name says (a .gz that is served as compressed is sent as it is: that is the file which is wanted)."""
    for word in re.split(r"[,\s]+", text.lower()):
        endings = CODINGS.get(word.removeprefix("x-"))
        if endings is not None and not name.lower().endswith(endings):
            return True
    return False


def whole_number(text: str) -> int | None:
    """What a header says in digits; None for what is none, or more than any file has."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text.strip()) else None


def has_full_hash(part: Part) -> bool:
    """Whether a hash of the whole file is known, published or pinned."""
    return any(part.facts.get(kind) for kind in ("sha256", "md5")) or bool(part.lock())


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that a busy server asks to wait: `Retry-After: 3`, a date there, or `RateLimit: ..;t=3`. None if it does not say."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return min(float(text), NEVER)
    # By the server's own clock: this machine's may be wrong.
    later, now = _date(text), _date(headers.get("Date", ""))
    if later and now:
        return max(0.0, (later - now).total_seconds())
    found = re.search(r";\s*t=(\d+)\b", headers.get("RateLimit", ""))
    return min(float(found[1]), NEVER) if found else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # `-0000` says that the zone is not known, and is not comparable with one that is.
    return found if found.tzinfo else None


def explain_hub(reply: requests.Response, url: str) -> NoReturn:
    """Hugging Face refuses: OtherWay if it was the token that it refused, else SourceFailed."""
    status, code = reply.status_code, reply.headers.get("X-Error-Code", "")
    page = shown(url.partition("/resolve/")[0])
    # By what was sent to the hub itself: a redirect may have taken it away.
    first = reply.history[0] if reply.history else reply
    with_token = "Authorization" in first.request.headers
    if code == "GatedRepo":
        todo = "by the account that HF_TOKEN is of" if with_token else "then set HF_TOKEN"
        raise SourceFailed(f"HTTP {status}: its licence has to be accepted at {page}, {todo}")
    if status == 404:
        text = f"HTTP 404: {page} has no such {'revision' if code == 'RevisionNotFound' else 'file'}"
    elif not with_token and urlsplit(url).scheme == "http" and os.environ.get("HF_TOKEN"):
        text = f"HTTP {status}: {page} is private or is none, and HF_TOKEN is not sent there: not over https, everybody could read it"
    elif with_token:
        text = f"HTTP {status}: HF_TOKEN is refused (wrong, expired, or without the right to read {page})"
    else:
        text = f"HTTP {status}: {page} is private or is none; if it is yours, set HF_TOKEN"
    raise (OtherWay if with_token and status != 404 else SourceFailed)(text)


def explain_page(reply: requests.Response, url: str, drive: bool, begun: bytes = b"") -> NoReturn:
    """An HTML page came: Drive's `scan warning` (Confirmation), its quota page, or another. begun: what was read of it.

    OtherWay from Drive, else SourceFailed."""
    from urllib3.exceptions import HTTPError

    # A page is for people and a megabyte of it is enough, whatever the server still sends and however slowly.
    until = time.monotonic() + PAGE_TIME
    with contextlib.suppress(HTTPError, OSError), limited(reply, PAGE_TIME):
        while len(begun) < PAGE and time.monotonic() < until and (piece := reply.raw.read1(PAGE, decode_content=True)):
            begun += piece
    text = begun.decode("utf-8", "replace")
    form = re.search(r"<form\b[^>]*\bid=[\"']download-form[\"'][^>]*>", text)
    if drive and form:
        tags = re.findall(r"<input\b[^>]*>", text[form.end() :].partition("</form")[0])
        fields = {name: _attribute(tag, "value") for tag in tags if (name := _attribute(tag, "name"))}
        target = urljoin(url, _attribute(form[0], "action"))
        raise Confirmation(f"{target}{'&' if '?' in target else '?'}{urlencode(fields)}" if fields else target)
    if drive:
        raise OtherWay(_drive_says(text))
    raise SourceFailed(f"{_where(reply, url)}sends an HTML page{_title(text)} instead of the file{_login(reply, url)}")


def _drive_says(text: str) -> str:
    """Why Drive sent a page without a button, in a few words, and under which name it has the file if the page says so."""
    name = re.search(r"uc-name-size[^>]*>\s*<a\b[^>]*>([^<]{1,80})</a>", text)
    called = f"; Drive calls it `{_plain(html.unescape(name[1]).strip())}`" if name else ""
    # The sentences come in many languages, the names of their places in the page do not.
    told = re.search(r"uc-error-subcaption[^>]*>\s*([^<]{1,300})", text)
    if re.search(r"quota exceeded|too many users have viewed or downloaded", text, re.IGNORECASE):
        return QUOTA + called
    # In the same place Drive says that somebody has to let one in.
    if told and re.search(r"permission|sign in", told[1], re.IGNORECASE):
        return f"Drive says: {_plain(' '.join(html.unescape(told[1]).split()))[:160]}{called}"
    if told:
        return QUOTA + called
    return f"it sends an HTML page{_title(text)} instead of the file{called}"


def _where(reply: requests.Response, url: str) -> str:
    return "it " if host(reply.url) == host(url) else f"it leads to `{host(reply.url)}`, which "


def _login(reply: requests.Response, url: str) -> str:
    return "" if host(reply.url) == host(url) else "; does this network want a login? open any page in a browser"


def is_page(piece: bytes) -> bool:
    """Whether a file that begins like this is a page, whatever the server calls it."""
    return bool(HTML.match(piece))


def called(piece: bytes) -> str:
    """What a page is that begins like this: stores such as S3 say in XML why they refuse."""
    is_xml = b"<?xml" in piece[:16] and b"<html" not in piece.lower()
    return "an XML text" if is_xml else "an HTML page"


def _title(text: str) -> str:
    title = re.search(r"<title>\s*([^<]{1,80}?)\s*</title>", text, re.IGNORECASE)
    return f" (`{_plain(html.unescape(title[1]))}`)" if title else ""


def _plain(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(letter for letter in text if letter.isprintable())


def _attribute(tag: str, name: str) -> str:
    """The value of an attribute in an HTML tag; "" if it has none."""
    found = re.search(rf"\b{name}=[\"']([^\"']*)", tag)
    return html.unescape(found[1]) if found else ""
