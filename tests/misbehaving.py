"""A web server that misbehaves in the ways that downloads meet. The first part of a path is the behaviour; it counts what it sends.

fine  cut  busy  busy-date  dead-busy  html  sneaky-html  wrong  short  long  endless  empty  missing  norange  changed  slow  chunked
drive-scan  drive-quota  weak (no validator)
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCAN = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="a&amp;b"><input type="hidden" name="confirm" value="t"></form></body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><p>Sorry, you can't view or
download this file at this time. Too many users have viewed or downloaded this file recently.</p></body></html>"""


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes that begin like a pickle."""
    return b"\x80\x02" + random.Random(seed).randbytes(size - 2)


class Server:
    """`with Server(data) as server:` -> server.url("cut"); server.sent[behaviour] bytes of file, server.gets[behaviour] requests."""

    def __init__(self, data: bytes, pause: float = 0.02, pieces: int = 50):
        self.data, self.pause, self.pieces = data, pause, pieces
        self.sent, self.gets, self.asked = Counter(), Counter(), []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_": self}))
        self.http.daemon_threads = True

    def url(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{behaviour}/file.pt"

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

    def do_GET(self) -> None:
        me, data = self.server_, self.server_.data
        kind = self.path.split("/")[1]
        me.gets[kind] += 1
        me.asked.append((kind, self.path, dict(self.headers)))
        turn, half = me.gets[kind], len(data) // 2
        self.close_connection = True
        if kind in ("busy", "busy-date", "dead-busy") and (turn <= 2 or kind == "dead-busy"):
            later = format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True)
            self.answer(503, b"", {"Retry-After": later if kind == "busy-date" else "3"})
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
        elif kind == "chunked":
            pieces = [data[i : i + 70_000] for i in range(0, len(data), 70_000)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
            self.answer(200, body, {"Transfer-Encoding": "chunked"}, length=None)
        elif kind == "norange":
            self.file(data, kind, ranges=False, stop=half if turn == 1 else None)
        elif kind in ("cut", "weak"):
            self.file(data, kind, stop=len(data) // 3 if turn <= 2 else None, etag=None if kind == "weak" else '"1"')
        elif kind == "changed":
            other = data if turn > 1 else payload(len(data), 9)
            self.file(other, kind, stop=half if turn == 1 else None, etag=f'"{turn}"')
        else:
            self.file(data, kind, slow=kind == "slow")

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = -1) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.put(body, self.path.split("/")[1])

    def file(self, data, kind, *, ranges=True, stop=None, claim=None, etag='"1"', slow=False) -> None:
        """`stop`: bytes after which the connection is cut; `claim`: the length that is said."""
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
        body = data[first:][:stop]
        step = max(len(body) // self.server_.pieces, 1) if slow else max(len(body), 1)
        for start in range(0, len(body), step):
            self.put(body[start : start + step], kind)
            if slow:
                time.sleep(self.server_.pause)

    def put(self, body: bytes, kind: str) -> None:
        try:
            for start in range(0, len(body), 1 << 16):
                self.wfile.write(body[start : start + (1 << 16)])
                self.server_.sent[kind] += len(body[start : start + (1 << 16)])
        except OSError:
            pass
