"""Attacks on numbers of classes and shapes of images that papers do not have: each runs, or is refused before anything runs.

    uv run python benchmarks/odd_shapes.py            about ten minutes on one core
    uv run python benchmarks/odd_shapes.py --few      a class and a shape of each kind

Every entry is `purebench run`, and the same with `--dry-run`, on three random images and a random linear classifier behind `gaussian`:
`runs` where both end well, `refused` where both refuse with the same two lines, which are printed below the table. Anything else is
a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from purebench.cli import app
from purebench.errors import USAGE, UserError

ATTACKS = {  # as short as they can be: every loop is entered
    "AutoAttack": "autoattack-standard:n_iter=2,n_queries=3",
    "AutoAttack rand": "autoattack-rand:n_iter=2,eot=2",
    "PGD": "pgd-eot:steps=1,eot=2",
    "PGD DLR": "pgd-eot:steps=1,eot=2,loss=dlr",
    "APGD": "apgd-ce:steps=2,eot=2",
    "APGD DLR": "apgd-dlr:steps=2,eot=2",
    "BPDA": "bpda-eot:steps=1,eot=2",
    "BPDA DLR": "bpda-eot:steps=1,eot=2,loss=dlr",
}
THREATS = ("Linf:0.1", "L2:0.5")
CLASSES = (2, 3, 8, 10, 100)  # of images of 1x8x8
SHAPES = (  # C, H, W, of ten classes
    (1, 4, 16), (1, 16, 4), (3, 5, 5), (3, 12, 12), (1, 24, 24), (1, 28, 28), (3, 32, 32), (3, 32, 40), (3, 40, 32), (3, 44, 40),
)  # fmt: skip
PARTS = """
import torch
from torch import nn

def images(*, channels: int = 1, height: int = 8, width: int = 8, classes: int = 10):
    x = torch.rand(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, network(channels=channels, height=height, width=width, classes=classes)(x).argmax(1)

def network(*, channels: int = 1, height: int = 8, width: int = 8, classes: int = 10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
"""


@dataclass(frozen=True)
class Case:
    attack: str  # of ATTACKS
    threat: str
    classes: int
    shape: tuple[int, int, int]


def cases(few: bool = False) -> Iterator[Case]:
    """All of them; `few`: of the classes 2 and 8, of the shapes two that Square takes under L2 and one that it does not."""
    classes, shapes = ((2, 8), (SHAPES[1], SHAPES[3], SHAPES[7])) if few else (CLASSES, SHAPES)
    places = [(k, (1, 8, 8)) for k in classes] + [(10, shape) for shape in shapes]
    for attack, threat, (k, shape) in itertools.product(ATTACKS, THREATS, places):
        yield Case(attack, threat, k, shape)


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """(`runs`, ""), (`refused`, why), or (`FAULT`, what happened)."""
    file = folder / "odd.py"
    if not file.exists():
        file.write_text(PARTS)
    (c, h, w), k = case.shape, case.classes
    size = f"channels={c},height={h},width={w},classes={k}"
    command = ["run", "-d", "gaussian", "-a", ATTACKS[case.attack], "-t", case.threat, "--images", "3", "--evals", "1"]
    command += [
        "--dataset",
        f"{file}:images:{size}",
        "--classifier",
        f"{file}:network:{size}",
        "--workers",
        "1",
        "--rows",
        "8",
    ]
    command += ["--device", "cpu", "--out", str(folder / "out")]
    first, second = (_said(CliRunner().invoke(app, command + more)) for more in (["--dry-run"], []))
    if first == second == (0, ""):
        return "runs", ""
    # What is said of a cell was found while it ran.
    if first == second and first[0] == USAGE and not first[1].startswith("cell "):
        return "refused", first[1]
    return "FAULT", f"--dry-run {first}, run {second}"


def _said(result: Result) -> tuple[int, str]:
    """(exit code, the message and hint), as the command's own process has them."""
    error = result.exception
    if isinstance(error, UserError):
        return error.code, str(error)
    return result.exit_code, f"{type(error).__name__}: {error} {result.output[-300:]}" if error else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="attacks on odd numbers of classes and odd shapes")
    parser.add_argument("--few", action="store_true", help="a class and a shape of each kind")
    few = parser.parse_args().few
    reasons: dict[str, int] = {}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(few):
            what, why = outcome(case, Path(folder))
            number = reasons.setdefault(why, len(reasons) + 1) if why else 0
            found[case] = f"{what} [{number}]" if number else what
    places = list(dict.fromkeys((c.classes, c.shape) for c in found))
    print("| attack | norm |", " | ".join(f"{k} x {'x'.join(map(str, s))}" for k, s in places), "|")
    print("| --- " * (len(places) + 2) + "|")
    for attack, threat in itertools.product(ATTACKS, THREATS):
        row = [found[Case(attack, threat, k, shape)] for k, shape in places]
        print(f"| {attack} | {threat} |", " | ".join(row), "|")
    print(*(f"[{number}] {why}".replace("\n", "; ") for why, number in reasons.items()), sep="\n")
    return int(any(what.startswith("FAULT") for what in found.values()))


if __name__ == "__main__":
    sys.exit(main())
