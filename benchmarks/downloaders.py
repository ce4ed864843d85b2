"""Three downloaders and one server that misbehaves: `purebench fetch`, pooch and huggingface_hub in the same cases.

    uv venv others && uv pip install --python others/bin/python pooch huggingface_hub
    python benchmarks/downloaders.py --python others/bin/python               # a table, a few minutes
    python benchmarks/downloaders.py --python others/bin/python --case cut    # the cases whose names have `cut`

Every case is a process of its own with an empty cache. Waiting is by a clock that is set forward, in all three alike: `waited` is how long
it would have taken besides. `sent` is what the server handed to its sockets, in files. Neither library knows mirrors: theirs are asked one
after the other by three lines here. pooch has no size and no retries unless asked for: it gets the hash, and five tries. huggingface_hub
speaks to a hub alone: the server answers its HEAD as the hub does (size, sha256 and revision), and everything behind it misbehaves; xet is
off, since no server of xet's stands here. Exit code 1 if `purebench fetch` does not do what the case asks for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from misbehaving import Handler, Server, payload

ROOT = Path(__file__).parents[1]

# Before anything else is imported: most bind `time.sleep` when they are. Printed last, whatever happens.
CLOCK = """
import atexit, json, os, sys, time
waited = [0.0]
def sleep(seconds):
    waited[0] += seconds
# Processes that wait for each other wait by it, too.
if not os.environ.get("REAL"):
    time.sleep = sleep
atexit.register(lambda: print("WAITED", round(waited[0], 1), file=sys.stderr, flush=True))
urls, sha256, folder = json.loads(os.environ["CASE"])
"""
OURS = CLOCK + "sys.argv = ['purebench', 'fetch', 'net', '--json']\nfrom purebench.cli import main\nmain()\n"
POOCH = (
    CLOCK
    + """
import pooch
for url in urls:
    try:
        one = pooch.create(folder, "", registry={"file.pt": sha256 and f"sha256:{sha256}"}, urls={"file.pt": url}, retry_if_failed=4)
        one.fetch("file.pt")
        break
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
else:
    sys.exit(3)
"""
)
HUB = (
    CLOCK
    + """
from huggingface_hub import hf_hub_download
for url in urls:
    try:
        hf_hub_download("me/net", "file.pt", local_dir=folder, endpoint=url.removesuffix("/file.pt"), token=False)
        break
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
else:
    sys.exit(3)
"""
)
ALONE = "purebench", "pooch", "huggingface_hub"


@dataclass(frozen=True)
class Case:
    """What the sources do; whether a hash is known; whether the file can be had; at how many processes at once; killed half way."""

    kinds: tuple[str, ...]
    hashed: bool = True
    possible: bool = True
    processes: int = 1
    killed: bool = False


CASES = {
    "well behaved": Case(("fine",)),
    "cut twice": Case(("cut",)),
    "cut twice, no hash, no validator": Case(("weak",), hashed=False),
    "503 twice, Retry-After": Case(("busy",)),
    "503 for ever, then a mirror": Case(("dead-busy", "fine")),
    "HTML page": Case(("html",), possible=False),
    "HTML page, no hash": Case(("html",), hashed=False, possible=False),
    "HTML page said to be a file, no hash": Case(("sneaky-html",), hashed=False, possible=False),
    "HTML page, then a mirror": Case(("html", "fine")),
    "wrong content": Case(("wrong",), possible=False),
    "wrong content, then a mirror": Case(("wrong", "fine")),
    "says half its length": Case(("short",), possible=False),
    "says twice its length": Case(("long",), possible=False),
    "sends more, says no length": Case(("endless",), possible=False),
    "in chunks, says no length": Case(("chunked",)),
    "empty, no hash": Case(("empty",), hashed=False, possible=False),
    "missing, then a mirror": Case(("missing", "fine")),
    "cut, Range ignored": Case(("norange",)),
    "another file after a cut, no hash": Case(("changed",), hashed=False),
    "killed half way, run again": Case(("slow",), killed=True),
    "three processes": Case(("slow",), processes=3),
    "no network": Case(("",), possible=False),
}


class Hub(Handler):
    """The same server, and the HEAD of a hub before it: of a file that it does not have, or of a page, it knows nothing."""

    def do_HEAD(self) -> None:
        kind, data = self.path.split("/")[1], self.server_.data
        self.close_connection = True
        missing = kind == "missing"
        self.send_response(404 if missing else 200)
        if missing:
            self.send_header("X-Error-Code", "EntryNotFound")
        elif "html" in kind:
            self.send_header("Content-Type", "text/html")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(0 if missing else len(data)))
        self.end_headers()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment that has pooch and huggingface_hub")
    parser.add_argument("--case", default="", help="only cases whose name has this")
    parser.add_argument("--mib", type=int, default=64, help="size of the file")
    given = parser.parse_args()
    data = payload(given.mib << 20)
    print(f"| case | {' | '.join(ALONE)} |\n|---|{'---|' * len(ALONE)}")
    wrong = []
    for name, case in CASES.items():
        if given.case in name:
            found = [run(which, given.python, data, case) for which in ALONE]
            print(f"| {name} | {' | '.join(text for text, _ in found)} |", flush=True)
            wrong += [] if found[0][1] else [name]
    print(f"wrong: {', '.join(wrong)}" if wrong else "", file=sys.stderr)
    return bool(wrong)


def run(which: str, python: str, data: bytes, case: Case) -> tuple[str, bool]:
    """(what came of it, whether that is what the case asks for)."""
    with tempfile.TemporaryDirectory() as work, Server(data) as server:
        server.http.RequestHandlerClass = type("Bound", (Hub,), {"server_": server})
        urls = [server.url(kind) if kind else "http://127.0.0.1:9/file.pt" for kind in case.kinds]
        sha256 = hashlib.sha256(data).hexdigest() if case.hashed else None
        target = Path(work) / ("checkpoints/net" if which == "purebench" else "") / "file.pt"
        env = os.environ | {
            "CASE": json.dumps([urls, sha256, work]),
            "NO_PROXY": "127.0.0.1",
            "REAL": "1" if case.processes > 1 else "",
        }
        env |= {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": work,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        if which == "purebench":
            env |= _registry(Path(work), urls, sha256)
        command = {"purebench": [sys.executable, "-c", OURS]}.get(
            which, [python, "-c", POOCH if which == "pooch" else HUB]
        )
        began = time.monotonic()
        if case.killed:
            _kill_half_way(
                subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL), server
            )
        running = [
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for _ in range(case.processes)
        ]
        said = [process.communicate(timeout=300)[1] for process in running]
        took = time.monotonic() - began
        waited = max(float(text.rpartition("WAITED ")[2].split()[0]) if "WAITED " in text else 0 for text in said)
        file = "none" if not target.exists() else "good" if target.read_bytes() == data else "**BAD**"
        codes = {process.returncode for process in running}
        text = f"{file}, x{sum(server.sent.values()) / len(data):.2f}"
        seconds = waited + (took if took > 10 else 0)
        right = file == ("good" if case.possible else "none") and codes == ({0} if case.possible else {3})
        return text + (f", {seconds:.0f} s" if seconds >= 1 else ""), right


def _registry(work: Path, urls: list[str], sha256: str | None) -> dict[str, str]:
    """A registry and a cache of its own, as variables."""
    rows = ", ".join(f'{{ http = "{url}" }}' for url in urls)
    (work / "checkpoints.toml").write_text(
        '[assets.net]\nkind = "score"\nsummary = "a net"\nfile = "file.pt"\nlicence = "MIT"\ntrust = "publisher"\n'
        + (f'sha256 = "{sha256}"\n' if sha256 else "")
        + f"sources = [{rows}]\n"
    )
    return {
        "PUREBENCH_CACHE": str(work),
        "PUREBENCH_CHECKPOINTS": str(work / "checkpoints.toml"),
        "PYTHONPATH": str(ROOT),
    }


def _kill_half_way(process: subprocess.Popen, server: Server) -> None:
    while sum(server.sent.values()) < len(server.data) // 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
