"""Certified accuracy against the radius, of ADP and DiffPure on the digits; the records are kept, and gone on with.

    uv run python benchmarks/certified.py             about a quarter of an hour on one core
    uv run python benchmarks/certified.py --images 8 --evals 100

Shares of images proved right within r (L2 on [0,1]), by three bounds, alpha 0.001; beside them the average certified radius, and the clean
accuracy of single runs. The largest r that so many draws can prove is sigma Phi^-1(alpha^(1/n)).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import purebench
from purebench.plan import measures
from purebench.records import store
from purebench.report import certified, metrics

DEFENSES = ("adp:sigma=0.25", "diffpure", "gaussian:sigma=0.5")
RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--evals", type=int, default=500, help="n0 + n: a tenth, at most 100, chooses the class")
    parser.add_argument("--out", default="results/certified")
    options = parser.parse_args()
    purebench.run(
        defense=list(DEFENSES),
        attack="null",
        dataset="digits",
        images=options.images,
        evals=options.evals,
        out=options.out,
        quiet=True,
    )
    print("| defense | sigma | bound | clean | radius | " + " | ".join(f"r = {r:g}" for r in RADII) + " |")
    print("|---" * (5 + len(RADII)) + "|")
    for log in store.load_all([Path(options.out)]):
        sigma, clean = certified.sigma(log.cell), metrics.accuracy(store.judged(log), "clean").value
        for bound in certified.BOUNDS:
            found, k = certified.of_log(log, 0, measures.ALPHA, bound)
            shares = [f"{100 * certified.certified(found, r, k).value:.0f}" for r in RADII]
            start = [
                log.cell["defense"],
                f"{sigma:.3f}",
                bound,
                f"{100 * clean:.1f}",
                f"{certified.average(found, k).value:.3f}",
            ]
            print("| " + " | ".join(start + shares) + " |")


if __name__ == "__main__":
    main()
