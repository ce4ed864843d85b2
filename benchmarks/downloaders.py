"""Three downloaders in the same cases: `purebench fetch` as `servers.py` runs it, pooch and huggingface_hub, as a table.

    uv venv others && uv pip install --python others/bin/python pooch huggingface_hub
    python benchmarks/downloaders.py --python others/bin/python          # all, ten minutes on two busy cores
    python benchmarks/downloaders.py --python others/bin/python Drive    # those with this word in their name

A cell says what lies under the file's name at the end, how much the servers sent (in files), and how long it took by a clock that is set
forward instead of waiting (in cases of servers that crawl it goes 1000 times as fast; what is below a second is left out).
pooch and huggingface_hub run each in a process of its own, with an empty cache. Both get what they can make use of. Neither knows
mirrors: the sources are asked one after the other by a loop here. pooch tries once unless told: five times here. huggingface_hub speaks
to a hub alone: what is asked for is there as on a hub, whose HEAD (size, sha256, revision) is always right, and what is behind it
misbehaves; of Drive it knows nothing. Its xet is off, since nobody here speaks it. Their file has 40 MB, for one of them takes pieces of
10 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import servers
from misbehaving import Handler, Server, payload
from servers import Case

SIZE = 40_000_000
END = 150  # seconds of this machine's, after which a case is given up
# Before the library is imported, since it may bind what is replaced. Printed last, whatever happens.
START = """
import atexit, json, os, sys, time
asked = json.loads(os.environ["CASE"])
waited = [0.0]
def sleep(seconds):
    waited[0] += seconds
# Processes that wait for each other wait by it, too.
if not asked["real"]:
    time.sleep = sleep
atexit.register(lambda: print("TOOK", waited[0], file=sys.stderr, flush=True))
"""
TRY_ALL = """
for url in asked["urls"]:
    try:
        bring(url)
        break
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
else:
    sys.exit(3)
"""
POOCH = """
import pooch
def bring(url):
    known = asked["sha256"] and f"sha256:{asked['sha256']}"
    one = pooch.create(asked["folder"], "", registry={"file.pt": known}, urls={"file.pt": url}, retry_if_failed=4)
    one.fetch("file.pt", downloader=pooch.HTTPDownloader(timeout=asked["timeout"]))
"""
HUB = """
from huggingface_hub import hf_hub_download
def bring(url):
    hf_hub_download("me/repo", "file.pt", cache_dir=asked["folder"], endpoint=url)
"""
SCRIPTS = {"pooch": START + POOCH + TRY_ALL, "huggingface_hub": START + HUB + TRY_ALL}
# What `prepare` of these does is done to our own code: the others are killed, limited or doubled from outside.
INSIDE = (servers.part_left, servers.fills_up, servers.small_disk, servers.impatient, servers.another)


class Hub(Handler):
    """The same servers, and before them the HEAD of a hub: it refuses what its GET refuses, and knows all of every other file."""

    def do_HEAD(self) -> None:
        kind, data = self.path.removeprefix("http://example.invalid").split("/")[1], self.server_.data
        self.close_connection = True
        status = {"missing": 404, "forbidden": 403, "login": 511, "hub-gated": 401}.get(kind, 200)
        if kind == "hub-401" and "Authorization" in self.headers:
            status = 401
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        elif kind == "hub-gated":
            self.send_header("X-Error-Code", "GatedRepo")
        elif kind in ("html", "sneaky-html", "portal"):
            # A network that wants a login answers for everybody.
            self.send_header("Content-Type", "text/html")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(data) if status == 200 else 0))
        self.end_headers()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment that has pooch and huggingface_hub")
    parser.add_argument("words", nargs="*", help="only cases with one of these in their name")
    given = parser.parse_args()
    cases = [case for case in servers.CASES if not given.words or any(word in case.name for word in given.words)]
    data = payload(SIZE)
    print("| case | must be | purebench | pooch | huggingface_hub |\n|---|---|---|---|---|")
    wrong = 0
    for case in cases:
        text, right = ours(case)
        wrong += not right
        found = [theirs(which, given.python, case, data) for which in SCRIPTS]
        print(f"| {case.name} | {case.file} | {text} | {' | '.join(found)} |", flush=True)
    return bool(wrong)


def ours(case: Case) -> tuple[str, bool]:
    """(what came of it, whether all is as it must be), from what `servers.py` prints."""
    runs, right = [], True
    # Where the clock goes 1000 times as fast, this machine's load counts: the quickest of three.
    for _ in range(3 if "crawl" in case.name else 1):
        with contextlib.redirect_stdout(io.StringIO()) as screen:
            right &= servers.run(case)
        found = re.search(r"(good|none|other) +\d+ x *([\d.]+) +\d+ +([\d.]+)$", screen.getvalue().splitlines()[0])
        assert found, screen.getvalue()
        runs.append((float(found[3]), float(found[2]), found[1]))
    seconds, sent, file = min(runs)
    return _cell(case, file, sent, seconds), right


def theirs(which: str, python: str, case: Case, data: bytes) -> str:
    """What came of it."""
    kind = case.kinds[0]
    if which == "huggingface_hub" and (kind.startswith("drive") or kind in ("https", "proxied", "nonsense")):
        return "-"
    inside = case.prepare if case.prepare in INSIDE else None
    killed, doubled = inside is servers.part_left, inside is servers.another
    limit = {servers.fills_up: SIZE * 99 // 100, servers.small_disk: SIZE // 2}.get(inside)
    with tempfile.TemporaryDirectory() as work, Server(data, pause=0.01) as server:
        server.http.RequestHandlerClass = type("Bound", (Hub,), {"server_": server})
        if case.prepare and not inside:
            case.prepare(server, None)
        server.stall = 3.0
        slow = killed or doubled
        asked = {
            "urls": [_address(which, "slow" if slow else kind, server, case) for kind in case.kinds],
            "sha256": {"": None, "third-party": "0" * 64}.get(case.hash, hashlib.sha256(data).hexdigest()),
            "folder": work,
            "timeout": 1 if inside is servers.impatient else 30,
            "real": doubled,
        }
        where = {"root": server.root, "host": server.root.removeprefix("http://")}
        env = os.environ | {"CASE": json.dumps(asked), "NO_PROXY": "127.0.0.1,localhost", "HF_HOME": f"{work}/home"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1"} if inside is servers.impatient else {}
        env |= {name: value.format(**where) for name, value in case.env.items()}
        command = [python, "-c", SCRIPTS[which]]
        if killed:
            _kill_half_way(command, env, server)
        seconds, ended = _run(command, env, 2 if doubled else 1, limit)
        content = [path.read_bytes() for path in Path(work).rglob("file.pt") if path.is_file()]
        file = "none" if not content else "good" if content[0] == data else "other"
        # Not this machine's seconds, which are those of its load: what was waited, and the pauses of servers that crawl.
        crawled = 1000 * server.pieces * server.pause * server.sent["slow"] / SIZE if "crawl" in case.name else 0
        took = max(seconds, default=0) + crawled
        return _cell(case, file, sum(server.sent.values()) / SIZE, took) + ("" if ended else ", no end")


def _cell(case: Case, file: str, sent: float, seconds: float) -> str:
    """`good, x1.00, 28 s`; in bold what a user would not want."""
    wrong = file == "other" != case.file or (file == "none" and case.file == "good")
    shown = f"**{file}**" if wrong else file
    return f"{shown}, x{sent:.2f}" + (f", {seconds:.0f} s" if seconds >= 1 else "")


def _address(which: str, kind: str, server: Server, case: Case) -> str:
    """Where the source is: of huggingface_hub the hub's address."""
    if which == "huggingface_hub":
        if kind.startswith("hf:"):
            return case.env["HF_ENDPOINT"].format(root=server.root)
        address = servers.address(kind, server)
        return address.partition("/file.pt")[0]
    if kind.startswith("hf:"):
        return f"{case.env['HF_ENDPOINT'].format(root=server.root).rstrip('/')}/me/repo/resolve/main/file.pt"
    return servers.address(kind, server) + ("?id=KEY" if kind.startswith("drive") else "")


def _kill_half_way(command: list[str], env: dict[str, str], server: Server) -> None:
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(server.sent.values()) < len(server.data) // 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _run(command: list[str], env: dict[str, str], processes: int, limit: int | None) -> tuple[list[float], bool]:
    """(seconds that would have been waited, per process; whether all came to an end). limit: bytes of a file."""

    def small() -> None:
        # Stands for a disk that fills up: a write beyond it fails.
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "preexec_fn": small}
    running = [subprocess.Popen(command, env=env, **pipes) for _ in range(processes)]
    found: list[float] = []
    ended = True
    for process in running:
        try:
            said = process.communicate(timeout=END)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said, ended = process.communicate()[1], False
        if "TOOK " in said:
            found.append(float(said.rpartition("TOOK ")[2].split()[0]))
        if os.environ.get("SAID"):
            print(said, file=sys.stderr)
    return found, ended


if __name__ == "__main__":
    raise SystemExit(main())
