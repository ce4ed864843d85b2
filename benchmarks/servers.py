"""What `purebench fetch` does, says and keeps where servers, networks, disks and settings misbehave: one case after the other.

    python benchmarks/servers.py                    # all, in half a minute
    python benchmarks/servers.py portal "no length"  # those with one of these words in their name

Every case is the real `fetch` against a real server on this machine, with a cache and a registry of its own. Time is virtual: what
would be slept is added to a clock that, in the cases of servers that crawl, goes 1000 times as fast; `seconds` is that clock's. `sent`
counts what the servers handed to their sockets, as a multiple of the file. Exit code 1 if a file under the good name is not the
expected one, or if what must be said is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest import mock

import requests  # noqa: F401  (its import takes a second, which is no case's)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from misbehaving import Quick, Server, payload

from purebench import assets
from purebench.assets import bars, disk, request, sources
from purebench.assets import fetch as fetching
from purebench.errors import UserError

SIZE = 2_000_000
SECRETS = ("s3cret", "hf_abc")  # what no line may show


@dataclasses.dataclass(frozen=True)
class Case:
    """kinds: what the sources do (`tests/misbehaving.py`; `closed`: nothing listens), or Drive's and the hub's in short.

    hash: `publisher`, `third-party` (another file's) or none. file: what must lie under the name: `good`, `other`, `none`.
    says: words that must be on the screen. env: `{root}` is the server. prepare: what was before, or is patched."""

    name: str
    kinds: tuple[str, ...]
    says: tuple[str, ...] = ()
    hash: str = "publisher"
    size: bool = False
    file: str = "good"
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Server, assets.Part], contextlib.AbstractContextManager | None] | None = None


def part_left(server: Server, part: assets.Part) -> None:
    """A process died at half of the file; the clock was wrong then."""
    part.file.parent.mkdir(parents=True)
    part.beside(".part").write_bytes(server.data[: SIZE // 2])
    about = {"url": server.url("fine"), "validator": '"1"', "size": SIZE}
    part.beside(".part.json").write_text(json.dumps(about))
    for file in part.file.parent.iterdir():
        os.utime(file, (4e9, 4e9))


def fills_up(server: Server, part: assets.Part) -> contextlib.AbstractContextManager:
    """The disk takes 99 % of the file."""
    real, took = disk.write, [0]

    def write(file, piece):
        room = SIZE * 99 // 100 - took[0]
        real(file, piece[:room])
        took[0] += len(piece[:room])
        if len(piece) > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    return mock.patch.object(disk, "write", write)


def small_disk(server: Server, part: assets.Part) -> contextlib.AbstractContextManager:
    usage = namedtuple("usage", "free")(SIZE // 2)
    return mock.patch.object(disk.shutil, "disk_usage", return_value=usage)


def impatient(server: Server, part: assets.Part) -> contextlib.AbstractContextManager:
    """The 60 seconds without a byte are 0.3 here."""
    server.stall = 1.0
    return mock.patch.object(request, "TIMEOUT", (1, 0.3))


def day_ahead(server: Server, part: assets.Part) -> None:
    server.ahead = timedelta(days=1)


@contextlib.contextmanager
def another(server: Server, part: assets.Part):
    """Another process holds the file for a second, and brings it."""
    import filelock

    part.file.parent.mkdir(parents=True)
    held = threading.Event()

    def bring():
        with filelock.FileLock(str(part.beside(".lock"))):
            held.set()
            part.beside(".part").write_bytes(server.data[:1000])
            time.sleep(0.7)
            part.beside(".part").rename(part.file)
            part.file.write_bytes(server.data)

    thread = threading.Thread(target=bring)
    thread.start()
    held.wait()
    yield
    thread.join()


def tunnel(status: int) -> Callable[[Server, assets.Part], None]:
    def prepare(server: Server, part: assets.Part) -> None:
        server.connect = status

    return prepare


PROXY = {"HTTPS_PROXY": "http://me:s3cret@{host}", "NO_PROXY": ""}
PROXY_OFF = PROXY | {"HTTPS_PROXY": "http://me:s3cret@127.0.0.1:9"}


def hub(behaviour: str, token: str = "") -> dict[str, str]:
    return {"HF_ENDPOINT": "{root}/" + behaviour, "HF_TOKEN": token}


CASES = [
    Case("well behaved", ("fine",)),
    Case("cut twice", ("cut",), ("connection broke", "asking again")),
    Case("cut ten times", ("often",), ("connection broke",)),
    Case("away for 28 seconds", ("hangup",), ("no connection", "try 2 of 5")),
    Case("away in the middle", ("hangup-middle",), ("no connection", "try 2 of 5", "from 1 MB on")),
    Case("nothing listens", ("closed",), ("Connection refused", "asked 5 times"), file="none"),
    Case("nothing listens, a mirror does", ("closed", "fine"), ("Connection refused", "asking `127.0.0.1`")),
    Case("never answers", ("hangup-dead",), ("it hung up", "asked 5 times"), file="none"),
    Case("stalls in the middle", ("stall",), ("Read timed out",), prepare=impatient),
    Case("busy, says how long", ("busy",), ("HTTP 503", "in 3 s")),
    Case("busy, says until when, a day ahead", ("busy-date",), ("HTTP 503", "in 7 s"), prepare=day_ahead),
    Case("busy for an hour, a mirror", ("busy-hour", "fine"), ("HTTP 503",)),
    Case("busy for ever", ("dead-busy",), ("HTTP 503 (asked 5 times)",), file="none"),
    Case("busy for ever, says nothing", ("busy-unsaid",), ("HTTP 503 (asked 5 times)", "in 60 s"), file="none"),
    Case("rate limit t=280", ("limited",), ("HTTP 429", "5 minutes")),
    Case("crawls, a mirror", ("slow", "fine"), ("it sends", "/s", "asking `127.0.0.1`")),
    Case("crawls, the only source", ("slow",), ("nobody else has the file", "left")),
    Case("both crawl", ("slow", "slow?2"), ("no other source is quicker",)),
    Case("crawls, a mirror without ranges", ("slow", "norange-whole"), ("sends nothing but all of the file",)),
    Case("404, then a mirror", ("missing", "fine"), ("HTTP 404",)),
    Case("403", ("forbidden",), ("HTTP 403",), file="none"),
    Case("a page in place of the file", ("html",), ("HTML page (`Sign in`)",), file="none"),
    Case("portal: leads to a login page", ("portal",), ("leads to `localhost`", "login"), file="none"),
    Case("portal: right length, in the middle", ("portal-middle",), ("HTML page", "1 MB of it came and are kept"), file="none"),
    Case("portal: HTTP 511", ("login",), ("wants a login first",), file="none"),
    Case("proxy cannot be reached", ("https",), ("no connection to the proxy",), "", env=PROXY_OFF, file="none"),
    Case("proxy wants a password", ("https",), ("wants a name and a password",), "", env=PROXY, file="none"),
    Case("proxy refuses the host", ("https",), ("does not let through",), "", env=PROXY, file="none", prepare=tunnel(403)),
    Case("proxy cuts", ("proxied",), ("connection broke",), env={"HTTP_PROXY": "{root}", "NO_PROXY": ""}),
    Case("right length, wrong bytes", ("wrong",), ("sha256",), file="none"),
    Case("right length, wrong bytes, a mirror", ("wrong", "fine"), ("sha256",)),
    Case("unlike a third party's hash", ("fine",), ("warning", "third party"), "third-party"),
    Case("unlike a third party's hash, a mirror", ("wrong", "fine"), ("sha256",), "third-party-right"),
    Case("no length, whole", ("no-length",), (), ""),
    Case("no length, cut, ranges", ("no-length-cut",), ("does not say how long",), ""),
    Case("no length, cut, no ranges", ("no-length-dead",), ("does not say how long",), "", file="none"),
    Case("no length, no end to be seen", ("no-length-bad",), ("does not say how long",), "", file="none"),
    Case("chunks, cut", ("chunked-cut",), ("connection broke",), "", file="none"),
    Case("says half its length", ("short",), ("1,000,000 bytes",), size=True, file="none"),
    Case("sends more than the file", ("endless",), ("bytes, not",), size=True, file="none"),
    Case("empty", ("empty",), ("empty",), "", file="none"),
    Case("compressed though asked not to", ("compressed",), ("compressed",), file="none"),
    Case("cut, Range ignored", ("norange",), ("connection broke",)),
    Case("another file after a cut", ("changed",), ("connection broke",), ""),
    Case("another file every time", ("changing",), ("different files",), "", file="none"),
    Case("Drive: scan page", ("drive-scan",)),
    Case("Drive: quota page in German", ("drive-quota-de",), ("quota is used up", "natural.pt.tar", "--from FILE"), file="none"),
    Case("Drive: only for browsers", ("drive-browser",), ("Unsupported browser",)),
    Case("Drive: only by its old address", ("drive-page",), ("Unsupported browser",)),
    Case("hub: a token, and another host after it", ("hf:hub",), (), env=hub("hub", "hf_abc")),
    Case("hub: a mirror's address", ("hf:hub",), (), env=hub("hub/")),
    Case("hub: HF_ENDPOINT is no URL", ("hf:hub",), ("HF_ENDPOINT is no URL",), env={"HF_ENDPOINT": "hf-mirror.com"}, file="none"),
    Case("hub: token refused, file public", ("hf:hub-401",), ("HF_TOKEN is refused",), env=hub("hub-401", "hf_abc")),
    Case("hub: licence not accepted", ("hf:hub-gated",), ("licence has to be accepted",), env=hub("hub-gated", "hf_abc"), file="none"),
    Case("hub: token with a line break", ("hf:hub",), ("HF_TOKEN holds",), env=hub("hub", "hf_abc\nx"), file="none"),
    Case("a source that is no URL", ("nonsense",), ("is no URL",), file="none"),
    Case("disk full at 99 %", ("fine",), ("no space", "1.98 MB", "kept"), file="none", prepare=fills_up),
    Case("disk too small", ("fine",), ("no space",), size=True, file="none", prepare=small_disk),
    Case("another process brings it", ("fine",), ("another process", "waiting"), prepare=another),
    Case("killed at half, the clock was wrong", ("fine",), ("going on, from 1 MB on",), prepare=part_left),
]  # fmt: skip


class Heard(bars.Show):
    """Keeps what would be on the screen."""

    def __init__(self, clock: Quick):
        super().__init__(clock)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(f"warning: {line}")


def main() -> int:
    wanted = sys.argv[1:]
    cases = [case for case in CASES if not wanted or any(word in case.name for word in wanted)]
    print(f"{'case':40} {'file':6} {'kept':>8} {'sent':>6} {'asked':>5} {'seconds':>8}")
    wrong = [case.name for case in cases if not run(case)]
    print(f"wrong: {', '.join(wrong)}" if wrong else f"{len(cases)} cases, as they must be")
    return bool(wrong)


def run(case: Case) -> bool:
    """One case, printed; whether it went as it must."""
    data = payload(SIZE)
    with tempfile.TemporaryDirectory() as work, Server(data, pause=0.01) as server:
        env = {
            "PUREBENCH_CACHE": work,
            "PUREBENCH_CHECKPOINTS": f"{work}/checkpoints.toml",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        given = {k: v.format(root=server.root, host=server.root.removeprefix("http://")) for k, v in case.env.items()}
        drive = f"{server.url(case.kinds[0])}?id={{}}"
        before = server.url("fine" if case.kinds[0] == "drive-page" else case.kinds[0]) + "?id={}"
        with (
            mock.patch.dict(os.environ, env | given),
            mock.patch.object(sources, "DRIVE", drive),
            mock.patch.object(sources, "DRIVE_BEFORE", before),
        ):
            Path(env["PUREBENCH_CHECKPOINTS"]).write_text(registry(case, server, data))
            part = assets.parts("net")[0]
            clock = Quick(1000 if "crawl" in case.name else 1)
            show, began = Heard(clock), clock.monotonic()
            with (case.prepare and case.prepare(server, part)) or contextlib.nullcontext():
                try:
                    _, errors = fetching.fetch(["net"], show=show, clock=clock)
                except UserError as error:
                    errors = [error]
            seconds = clock.monotonic() - began
            kept = disk.size_of(part.beside(".part"))
            content = part.file.read_bytes() if part.file.exists() else None
            file = "none" if content is None else "good" if content == data else "other"
            pinned = bool(part.lock()) == (file != "none")
        said = [
            line.replace(work, "~").replace(server.root, "http://HOST")
            for line in show.lines + [f"error: {e.message}" for e in errors]
        ]
        said += [f"hint: {e.hint}".replace(work, "~").replace(server.root, "http://HOST") for e in errors]
        total = sum(server.sent.values()) / SIZE
        print(f"{case.name:40} {file:6} {kept:8} x{total:5.2f} {sum(server.gets.values()):5} {seconds:8.1f}")
        for line in said:
            print("    " + line.replace("\n", "\n    "))
        text = "\n".join(said)
        missing = [word for word in case.says if word not in text]
        leaked = [word for word in SECRETS if word in text]
        # A token is for the hub, and not for where that leads to.
        leaked += [path for _, path, sent in server.asked if "Authorization" in sent and "localhost" in sent["Host"]]
        if missing or leaked or file != case.file or not pinned:
            print(
                f"    WRONG: expected {case.file}; not said: {missing}; leaked: {leaked}; pin without a file: {not pinned}"
            )
            return False
        return True


def registry(case: Case, server: Server, data: bytes) -> str:
    """checkpoints.toml of the case."""
    right = hashlib.sha256(data).hexdigest()
    trust = case.hash.removesuffix("-right") or "first-use"
    digest = {"": "", "third-party": "0" * 64}.get(case.hash, right)
    rows = []
    for kind in case.kinds:
        name, _, detail = kind.partition(":")
        if name == "hf":
            rows.append(f'{{ hf = "me/repo", file = "file.pt", note = "{detail}" }}')
        elif kind.startswith("drive"):
            rows.append('{ gdrive = "KEY" }')
        else:
            rows.append(f'{{ http = "{address(kind, server)}" }}')
    lines = [f'sha256 = "{digest}"'] if digest else []
    lines += [f"size = {SIZE}"] if case.size else []
    return (
        '[assets.net]\nkind = "score"\nsummary = "a net"\nfile = "file.pt"\nlicence = "MIT"\n'
        f'trust = "{trust}"\nsources = [{", ".join(rows)}]\n' + "\n".join(lines) + "\n"
    )


def address(kind: str, server: Server) -> str:
    match kind:
        case "closed":
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                return f"http://127.0.0.1:{closed.getsockname()[1]}/file.pt"
        case "https":
            return "https://example.invalid/file.pt"
        case "proxied":
            return "http://example.invalid/cut/file.pt"
        case "nonsense":
            return "files.example/net"
    name, _, query = kind.partition("?")
    return server.url(name) + (f"?{query}" if query else "")


if __name__ == "__main__":
    raise SystemExit(main())
