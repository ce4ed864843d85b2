"""A web server that misbehaves in the ways that downloads meet. The first part of a path is the behaviour; it counts what it sends.

of the file     fine  wrong  short  long  endless  empty  chunked  compressed  no-length  no-length-cut  no-length-dead  no-length-bad
of the line     cut  weak (no validator)  often (breaks ten times)  norange  norange-whole  changed  changing
                slow  stall  chunked-cut  evening
of the server   hangup  hangup-dead  hangup-middle  busy  busy-date  busy-hour  busy-unsaid  dead-busy  limited  missing  forbidden
of the network  html  sneaky-html  portal  portal-middle  login  proxy-password  proxy-refuses (also for CONNECT)
of Drive        drive-scan  drive-quota  drive-quota-de  drive-browser (only a browser gets it)  drive-page
of Hugging Face hub (leads to another host)  hub-401 (refuses tokens)  hub-gated
"""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from purebench.assets.clock import Clock

SCAN = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="a&amp;b"><input type="hidden" name="confirm" value="t"></form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p>Sorry, you can't view or
download this file at this time. Too many users have viewed or downloaded this file recently.</p></body></html>"""


QUOTA_DE = """<!DOCTYPE html><html><head><title>Google Drive</title></head><body><p id="uc-error-caption">Leider nicht verfügbar</p>
<p id="uc-error-subcaption">Zu viele Nutzer haben diese Datei in letzter Zeit angesehen.</p><span class="uc-name-size"><a href="/open?id=K">
natural.pt.tar</a> (278M)</span></body></html>"""


def payload(size: int, seed: int = 0) -> bytes:
    """A pickle of random bytes, whole: it ends with STOP."""
    draw, inside = random.Random(seed), size - 8
    # In pieces: a number of more bits than an int of C holds cannot be drawn.
    pieces = [draw.randbytes(min(1 << 24, inside - start)) for start in range(0, inside, 1 << 24)]
    return b"".join([b"\x80\x02T", inside.to_bytes(4, "little"), *pieces, b"."])


class Server:
    """`with Server(data) as server:` -> server.url("cut"); server.sent[behaviour] bytes of file, server.gets[behaviour] requests."""

    def __init__(self, data: bytes, pause: float = 0.02, pieces: int = 50):
        self.data, self.pause, self.pieces = data, pause, pieces
        self.stall = 1.0  # seconds without a byte
        self.before, self.slow = data, 0  # of `evening`: an older file, and how much of it comes slowly
        self.ahead = timedelta(0)  # of this server's clock
        self.connect = 407  # what a proxy answers that is asked for a tunnel
        self.sent, self.gets, self.asked = Counter(), Counter(), []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_": self}))
        self.http.daemon_threads = True

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def url(self, behaviour: str) -> str:
        return f"{self.root}/{behaviour}/file.pt"

    def elsewhere(self, behaviour: str) -> str:
        """The same by another host's name."""
        return self.url(behaviour).replace("127.0.0.1", "localhost")

    def __enter__(self) -> Server:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Server

    def log_message(self, *_) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(datetime.now(UTC) + self.server_.ahead, usegmt=True)

    def do_GET(self) -> None:
        me, data = self.server_, self.server_.data
        # Asked as a proxy, the path is a whole URL.
        self.kind = kind = self.path.removeprefix("http://example.invalid").split("/")[1]
        me.gets[kind] += 1
        me.asked.append((kind, self.path, dict(self.headers)))
        turn, half = me.gets[kind], len(data) // 2
        self.close_connection = True
        if kind in ("hangup", "hangup-dead", "hangup-middle") and self.hangs_up(turn):
            return
        elif kind in ("busy", "busy-date", "dead-busy") and (turn <= 2 or kind == "dead-busy"):
            later = format_datetime(datetime.now(UTC) + me.ahead + timedelta(seconds=7), usegmt=True)
            self.answer(503, b"", {"Retry-After": later if kind == "busy-date" else "3"})
        elif kind in ("busy-hour", "busy-unsaid"):
            self.answer(503, b"", {"Retry-After": "3600"} if kind == "busy-hour" else {})
        elif kind == "limited" and turn == 1:
            self.answer(429, b"", {"RateLimit": '"api";r=0;t=280'})
        elif kind == "forbidden":
            self.answer(403, b"<html>no</html>", {"Content-Type": "text/html"})
        elif kind == "login":
            self.answer(511, b"<html>log in</html>", {"Content-Type": "text/html"})
        elif kind == "proxy-password":
            self.answer(407, b"", {"Proxy-Authenticate": "Basic"})
        elif kind == "portal":
            self.answer(302, b"", {"Location": me.elsewhere("html")})
        elif kind == "portal-middle" and turn == 2:
            self.answer(200, b"<!DOCTYPE html><html>".ljust(len(data)), {"Content-Type": "application/octet-stream"})
        elif kind == "drive-quota-de":
            self.answer(200, QUOTA_DE.encode(), {"Content-Type": "text/html"})
        elif kind == "drive-page" or (kind == "drive-browser" and "Mozilla" not in self.headers["User-Agent"]):
            self.answer(200, b"<html><title>Unsupported browser</title></html>", {"Content-Type": "text/html"})
        elif kind == "hub":
            self.answer(302, b"", {"Location": me.elsewhere("fine")})
        elif kind == "hub-gated" or (kind == "hub-401" and "Authorization" in self.headers):
            code = 403 if "Authorization" in self.headers and kind == "hub-gated" else 401
            self.answer(code, b"", {"X-Error-Code": "GatedRepo"} if kind == "hub-gated" else {})
        elif kind == "compressed":
            self.answer(200, gzip.compress(data, 1), {"Content-Encoding": "gzip"})
        elif kind.startswith("no-length"):
            self.without_length(kind)
        elif kind == "missing":
            self.answer(404, b"<html>not here</html>", {"Content-Type": "text/html"})
        elif kind == "html":
            self.answer(200, b"<html><title>Sign in</title></html>", {"Content-Type": "text/html; charset=utf-8"})
        elif kind == "sneaky-html":
            self.answer(200, b"\n<!DOCTYPE html><html>" + b" " * 1000)
        elif kind == "drive-quota":
            self.answer(200, QUOTA.encode(), {"Content-Type": "text/html"})
        elif kind == "drive-scan":
            self.answer(200, SCAN.format(action=me.url("fine")).encode(), {"Content-Type": "text/html"})
        elif kind == "empty":
            self.answer(200, b"")
        elif kind == "wrong":
            self.file(data[:-1] + bytes([data[-1] ^ 1]), kind)
        elif kind == "short":
            self.answer(200, data[:half])
        elif kind == "long":
            self.file(data, kind, claim=2 * len(data))
        elif kind == "endless":
            self.answer(200, data + data, length=None)
        elif kind in ("chunked", "chunked-cut"):
            pieces = [data[i : i + 70_000] for i in range(0, len(data), 70_000)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
            if kind == "chunked-cut":
                body = body[: len(body) // 2]
            self.answer(200, body, {"Transfer-Encoding": "chunked"}, length=None)
        elif kind == "norange-whole":
            self.file(data, kind, ranges=False)
        elif kind == "norange":
            self.file(data, kind, ranges=False, stop=half if turn == 1 else None)
        elif kind in ("cut", "weak"):
            self.file(data, kind, stop=len(data) // 3 if turn <= 2 else None, etag=None if kind == "weak" else '"1"')
        elif kind in ("often", "portal-middle", "hangup-middle", "stall"):
            stop = {"often": len(data) // 11 if turn <= 10 else None}.get(kind, half if turn == 1 else None)
            self.file(data, kind, stop=stop)
            if kind == "stall" and turn == 1:
                time.sleep(me.stall)
        elif kind == "evening":
            # Ten breaks; slow in the fourth answer; from the seventh on it is another file.
            body = data if turn > 6 else me.before
            stop = len(data) // 12 if turn <= 10 else None
            self.file(body, kind, stop=stop, etag='"1"' if turn > 6 else '"before"', slow=me.slow if turn == 4 else 0)
        elif kind == "changing":
            self.file(payload(len(data), turn), kind, stop=half, etag=f'"version {turn}"')
        elif kind == "changed":
            other = data if turn > 1 else payload(len(data), 9)
            self.file(other, kind, stop=half if turn == 1 else None, etag='"1"' if turn > 1 else '"before"')
        else:
            self.file(data, kind, slow=len(data) if kind == "slow" else 0)

    def do_CONNECT(self) -> None:
        """A proxy that is asked for a tunnel."""
        me = self.server_
        me.gets["CONNECT"] += 1
        self.close_connection = True
        self.answer(me.connect, b"")

    def hangs_up(self, turn: int) -> bool:
        """Whether the connection ends without an answer."""
        ends = {"hangup": turn <= 3, "hangup-dead": True, "hangup-middle": 2 <= turn <= 5}[self.kind]
        if ends:
            self.connection.shutdown(socket.SHUT_RDWR)
        return ends

    def without_length(self, kind: str) -> None:
        """All of it, or only what is left of it if a range is asked for; the end is that of the connection."""
        data, asked = self.server_.data, self.headers.get("Range")
        if kind == "no-length-cut" and asked:
            return self.file(data, kind)
        # `-bad`: no byte of it says where it ends.
        body = {"no-length": data, "no-length-bad": b"\x93" + data}.get(kind, data[: len(data) // 2])
        self.answer(200, body, {"ETag": '"1"'}, length=None)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = -1) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.put(body, getattr(self, "kind", "CONNECT"))

    def file(self, data, kind, *, ranges=True, stop=None, claim=None, etag='"1"', slow=0) -> None:
        """`stop`: bytes after which the connection is cut; `claim`: the length that is said; `slow`: bytes that come slowly."""
        asked, first = self.headers.get("Range"), 0
        if ranges and asked and self.headers.get("If-Range", etag) == etag:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
        size = claim or len(data)
        if first >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        body = memoryview(data)[first:][:stop]
        slow = min(slow, len(body))
        step = max(slow // self.server_.pieces, 1)
        for start in range(0, slow, step):
            self.put(body[start : min(start + step, slow)], kind)
            time.sleep(self.server_.pause)
        self.put(body[slow:], kind)

    def put(self, body: bytes, kind: str) -> None:
        try:
            for start in range(0, len(body), 1 << 16):
                self.wfile.write(body[start : start + (1 << 16)])
                self.server_.sent[kind] += len(body[start : start + (1 << 16)])
        except OSError:
            pass


class Quick(Clock):
    """A clock that does not wait: what is slept is added to the time, which goes `factor` times as fast as the real one."""

    def __init__(self, factor: float = 1):
        self.factor, self.slept = factor, []

    def monotonic(self) -> float:
        return time.monotonic() * self.factor + sum(self.slept)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
