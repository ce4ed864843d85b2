"""`cascade` against `autoattack-rand` on COUP, embedded digits: robust accuracy by fresh purifications, and network calls.

    uv run python benchmarks/cascade.py                     100 images, about 25 minutes on one core (most of them AutoAttack's)
    uv run python benchmarks/cascade.py --images 16         a first look
    uv run python benchmarks/cascade.py --recorded results/embedded      AutoAttack's images as they are recorded there

The target: the same or lower robust accuracy on the same images, at a fifth of the calls or fewer. Calls are forwards and backwards of
both networks for an image, mean over images, as `nfe` in the records; ± is a 95 % normal interval over images, of the difference a
paired one. Exits with 1 where the target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from purebench.plan import grid
from purebench.records import store
from purebench.running import progress, runner

ATTACKS = ("cascade", "autoattack-rand")
SHARE = 1 / 5


def measured(out: Path, attacks: tuple[str, ...], images: int, workers: int) -> None:
    request = grid.Request(
        dataset="digits", defenses=("coup",), attacks=attacks, threats=("Linf:0.2",), images=images, evals=10
    )
    outcome = runner.run(grid.build(request), runner.Settings(out, device="cpu", workers=workers), progress.Reporter())
    if outcome.failed:
        sys.exit(f"error: {outcome.failed}")


def lines(out: Path, attack: str, images: int) -> dict[int, dict]:
    found = (log for log in store.load_all([out]) if (log.cell["defense"], log.cell["attack"]) == ("coup", attack))
    log = next((log for log in found if log.cell["threat"] == "Linf:0.2" and log.cell["gradient"] == "exact"), None)
    if log is None:
        sys.exit(f"error: no {attack} on coup in {out}")
    return {line["position"]: line for line in log.images if line["position"] < images}


def right(line: dict) -> float:
    return sum(answer == line["label"] for answer in line["adversarial"]) / len(line["adversarial"])


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % normal interval over images, in per cent."""
    return 100 * mean(values), 196 * stdev(values) / len(values) ** 0.5


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--images", type=int, default=100)
    ask.add_argument("--workers", type=int, default=1)
    ask.add_argument("--recorded", type=Path, help="results that have autoattack-rand on coup already")
    ask.add_argument("--out", type=Path, help="keep the records here, and go on with those that there are")
    given = ask.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        measured(out, ATTACKS[: 1 if given.recorded else 2], given.images, given.workers)
        found = {attack: lines(out, attack, given.images) for attack in ATTACKS[:1]}
        found[ATTACKS[1]] = lines(given.recorded or out, ATTACKS[1], given.images)
    shared = sorted(set(found[ATTACKS[0]]) & set(found[ATTACKS[1]]))
    calls = {}
    for attack in ATTACKS:
        robust, half = interval([right(found[attack][p]) for p in shared])
        spent = [found[attack][p]["nfe"] for p in shared]
        calls[attack] = mean(map(sum, spent))
        forward, backward = (mean(of) for of in zip(*spent, strict=True))
        print(
            f"{attack:16} {robust:5.1f} ±{half:4.1f} % robust   {forward:9,.0f} + {backward:9,.0f} calls for an image"
        )
    gap, half = interval([right(found["cascade"][p]) - right(found["autoattack-rand"][p]) for p in shared])
    share = calls["cascade"] / calls["autoattack-rand"]
    print(
        f"cascade less AutoAttack: {gap:+.1f} ±{half:.1f} points on {len(shared)} images, at 1/{1 / share:.1f} of the calls"
    )
    met = gap <= 0 and share <= SHARE
    print(
        json.dumps(
            {
                "images": len(shared),
                "difference": round(gap, 2),
                "half": round(half, 2),
                "share": round(share, 4),
                "met": met,
            }
        )
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
