"""A large download on a bad evening: ten breaks, a phase at 50 kB/s, and in the middle the server's file becomes another one.

    python benchmarks/breaking.py              # 300 MB, about half a minute
    python benchmarks/breaking.py --mb 30

Once with that server alone, and once with a mirror beside it. The clock is virtual: waits are added to it, and it goes 60 times as
fast as this machine's, so that 50 kB/s are 3 MB/s here. `asked twice` is what the servers sent beyond one file: what came of
the file that is no longer there has to be asked for again, and nothing else should be. Exit code 1 if the file is not the right one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from misbehaving import Quick, Server, payload

from purebench import assets
from purebench.assets import bars
from purebench.assets import fetch as fetching

FACTOR, PIECE, SLOWLY, MINUTES = 60, 1 << 14, 50_000, 3


class Lines(bars.Show):
    """On stdout, below the case."""

    def say(self, line: str) -> None:
        print(f"    {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=300, help="size of the file")
    size = parser.parse_args().mb * 1_000_000
    data, before = payload(size), payload(size, 1)
    digest = hashlib.sha256(data).hexdigest()
    right = [evening(data, before, digest, mirror) for mirror in (False, True)]
    return not all(right)


def evening(data: bytes, before: bytes, digest: str, mirror: bool) -> bool:
    """One download, printed; whether the right file came."""
    slow = SLOWLY * 60 * MINUTES
    with (
        tempfile.TemporaryDirectory() as work,
        Server(data, pause=PIECE / SLOWLY / FACTOR, pieces=slow // PIECE) as server,
    ):
        server.before, server.slow = before, slow
        kinds = ["evening", "fine"] if mirror else ["evening"]
        rows = ", ".join(f'{{ http = "{server.url(kind)}" }}' for kind in kinds)
        registry = Path(work) / "checkpoints.toml"
        registry.write_text(
            '[assets.net]\nkind = "score"\nsummary = "a net"\nfile = "file.pt"\nlicence = "MIT"\ntrust = "publisher"\n'
            f'sha256 = "{digest}"\nsources = [{rows}]\n'
        )
        env = {"PUREBENCH_CACHE": work, "PUREBENCH_CHECKPOINTS": str(registry), "NO_PROXY": "127.0.0.1"}
        with mock.patch.dict(os.environ, env):
            print("with a mirror:" if mirror else "one server:")
            clock = Quick(FACTOR)
            began = clock.monotonic()
            _, errors = fetching.fetch(["net"], show=Lines(clock), clock=clock)
            file = assets.parts("net")[0].file
            right = file.is_file() and assets.sha256(file) == digest
        twice = sum(server.sent.values()) - len(data)
        for error in errors:
            print(f"    {error.message}")
        print(
            f"    {'right' if right else 'WRONG'}; {server.gets['evening']} + {server.gets['fine']} requests, "
            f"{sum(server.sent.values()) / 1e6:.1f} MB sent, {twice / 1e6:.1f} MB of them asked twice, "
            f"{clock.monotonic() - began:.0f} s, {sum(clock.slept):.0f} s of them waited"
        )
    return right


if __name__ == "__main__":
    raise SystemExit(main())
