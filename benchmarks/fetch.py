"""Downloads from a server that misbehaves: the outcome, what was sent more than once, and what lies under the file's name.

    python benchmarks/fetch.py              # 64 MiB, about two minutes: without a network it waits for one
    python benchmarks/fetch.py --mib 200

Every case is a real `purebench fetch` in a process of its own, with a cache and a registry of its own. `sent` counts what the server
handed to its sockets: after a kill a few MB of it may never have been read. Exit code 1 if a bad file ever has the good file's name,
or if a case that can succeed does not.
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from misbehaving import Server, payload

COMMAND = [sys.executable, "-c", "from purebench.cli import main; main()", "fetch", "net", "--json"]
DRIVE = [
    "-c",
    "import sys; from purebench.assets import sources; sources.DRIVE = sources.DRIVE_BEFORE = sys.argv.pop(1); "
    "from purebench.cli import main; main()",
]
CASES = {  # name -> (sources, whether a hash is known, whether it can succeed)
    "well behaved": (["fine"], True, True),
    "cut twice": (["cut"], True, True),
    "cut twice, no hash, no validator": (["weak"], False, True),
    "503 twice, Retry-After": (["busy"], True, True),
    "HTML page": (["html"], True, False),
    "HTML page said to be a file": (["sneaky-html"], False, False),
    "HTML page, then a mirror": (["html", "fine"], True, True),
    "wrong content, then a mirror": (["wrong", "fine"], True, True),
    "wrong content": (["wrong"], True, False),
    "says half its length": (["short"], True, False),
    "says twice its length": (["long"], True, False),
    "sends more, says no length": (["endless"], True, False),
    "empty": (["empty"], False, False),
    "cut, Range ignored": (["norange"], True, True),
    "another file after a cut": (["changed"], False, True),
    "Drive: scan warning": (["drive-scan"], False, True),
    "Drive: quota page": (["drive-quota"], False, False),
    "killed, run again": (["slow"], True, True),
    "three processes": (["slow"], True, True),
    "no network": ([""], True, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of the file")
    data = payload(parser.parse_args().mib << 20)
    print(f"{'case':34} {'outcome':10} {'file':6} {'sent':>7} {'GETs':>5} {'seconds':>8}")
    wrong = [case for case, what in CASES.items() if not run(case, data, *what)]
    print(f"wrong: {', '.join(wrong)}" if wrong else "as it must be")
    return bool(wrong)


def run(case: str, data: bytes, kinds: list[str], hashed: bool, possible: bool) -> bool:
    with tempfile.TemporaryDirectory() as work, Server(data) as server:
        drive = kinds[0].startswith("drive")
        urls = [{"gdrive": "KEY"} if drive else {"http": server.url(kind)} for kind in kinds]
        if not kinds[0]:
            urls = [{"http": "http://127.0.0.1:9/file.pt"}]
        registry = Path(work) / "checkpoints.toml"
        hash_line = f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n' if hashed else ""
        rows = ", ".join("{ " + ", ".join(f'{k} = "{v}"' for k, v in url.items()) + " }" for url in urls)
        registry.write_text(
            '[assets.net]\nkind = "score"\nsummary = "a net"\nfile = "file.pt"\nlicence = "MIT"\ntrust = "code"\n'
            f"{hash_line}sources = [{rows}]\n"
        )
        env = os.environ | {"PUREBENCH_CACHE": work, "PUREBENCH_CHECKPOINTS": str(registry), "NO_PROXY": "127.0.0.1"}
        command = COMMAND
        if drive:
            command = [sys.executable, *DRIVE, server.url(kinds[0]) + "?id={}", *COMMAND[3:]]
        began = time.monotonic()
        target = Path(work) / "checkpoints" / "net" / "file.pt"
        if case.startswith("killed"):
            first = start(command, env)
            part = target.with_name("file.pt.part")
            while not (part.exists() and part.stat().st_size > len(data) // 2):
                time.sleep(0.005)
            first.send_signal(signal.SIGKILL)
            first.wait()
        processes = [start(command, env) for _ in range(3 if case.startswith("three") else 1)]
        outcomes = [(json.loads(p.communicate()[0])[0]["state"], p.returncode) for p in processes]
        took = time.monotonic() - began
        file = "none" if not target.exists() else "good" if target.read_bytes() == data else "BAD"
        states = "+".join(sorted({state for state, _ in outcomes}))
        sent = sum(server.sent.values()) / len(data)
        print(f"{case:34} {states:14.14} {file:6} x{sent:6.2f} {sum(server.gets.values()):5} {took:8.1f}", flush=True)
        return file == ("good" if possible else "none") and all(code == (0 if possible else 3) for _, code in outcomes)


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    raise SystemExit(main())
