"""Which point should an attack on a random defense return? Robust accuracy of pgd-eot, APGD and APGD with `select=fresh`, at equal calls.

    python benchmarks/selection.py [--images 64] [--steps 40] [--eot 10] [--evals 20] [--defenses diffpure,coup] [--out FOLDER]

APGD takes the point of the highest mean loss among a hundred, each measured by the draws that moved it there: the luckiest. `select=fresh`
lets draws that chose nothing decide between the best of them and the last. pgd-eot returns its last point, and chooses nothing.

Equal calls: pgd-eot and APGD take so many gradients (APGD one more, at its start); the SELECT draws of `select=fresh` are forwards only,
and pgd-eot is given steps for them, three forwards being taken for one gradient with its forward pass. Judged are all on the same images
and draws, so the differences are paired; their interval is 1.96 standard errors over images. On the embedded digits.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import purebench
from purebench.attacks.apgd import KEPT, SELECT
from purebench.spec import parse


def attacks(steps: int, eot: int) -> dict[str, str]:
    more = round(2 * KEPT * SELECT / 3 / eot)
    return {
        "pgd-eot": f"pgd-eot:steps={steps + 1},eot={eot}",
        "pgd-eot, calls of select=fresh": f"pgd-eot:steps={steps + 1 + more},eot={eot}",
        "apgd-ce": f"apgd-ce:steps={steps},eot={eot}",
        "apgd-ce:select=fresh": f"apgd-ce:steps={steps},eot={eot},select=fresh",
    }


def recorded(text: str, names: set[str]) -> str:
    """How a cell names this attack: without what is at its default."""
    part = parse(text)
    fitting = [
        name for name in names if parse(name).name == part.name and set(parse(name).parameters) <= set(part.parameters)
    ]
    return max(fitting, key=lambda name: len(parse(name).parameters))


def interval(differences: list[float]) -> str:
    """Mean and 1.96 standard errors, in points."""
    mean = statistics.mean(differences)
    return f"{100 * mean:+.1f} +-{196 * statistics.stdev(differences) / math.sqrt(len(differences)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--eot", type=int, default=10)
    parser.add_argument("--evals", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--defenses", default="diffpure,coup")
    parser.add_argument("--out", type=Path, help="where records are kept, so that a second call goes on")
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp())
    named = attacks(asked.steps, asked.eot)
    for defense in asked.defenses.split(","):
        purebench.run(
            dataset="digits", defense=defense, attack=list(named.values()), images=asked.images, evals=asked.evals, out=out,
            workers=asked.workers,
        )  # fmt: skip
        frame = purebench.load(out)
        print(f"\n{defense}, {asked.images} digits, {asked.evals} fresh evaluations each")
        print(f"{'attack':32} {'robust':>7}  {'above pgd-eot':>18}  {'above it, equal calls':>22}")
        right = {}
        for name, text in named.items():
            rows = frame[(frame.defense == defense) & (frame.attack == recorded(text, set(frame.attack)))].sort_values(
                "position"
            )
            rows = rows[rows.position < asked.images]  # an older call may have made more
            right[name] = [
                sum(c == label for c in classes) / len(classes)
                for classes, label in zip(rows.adversarial, rows.label, strict=True)
            ]
        plain, equal = right["pgd-eot"], right["pgd-eot, calls of select=fresh"]
        for name, shares in right.items():
            pairs = [
                interval([a - b for a, b in zip(shares, other, strict=True)]) if shares is not other else ""
                for other in (plain, equal)
            ]
            print(f"{name:32} {100 * statistics.mean(shares):7.1f}  {pairs[0]:>18}  {pairs[1]:>22}")


if __name__ == "__main__":
    main()
