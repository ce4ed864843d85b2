"""Every purifier against the bare network, and the memory budget at 15 and at 1,500 steps; one thread, one run.

    uv run python benchmarks/purifiers.py             about 4 minutes on one core
    uv run python benchmarks/purifiers.py --overhead
    uv run python benchmarks/purifiers.py --memory

Overhead: time of a purification over that of its network calls made bare, at 64 rows of 32x32 (1 M parameters); median of five pairs.
Memory: Hill et al.'s chain (`ebm`, on the digits' score network), exact gradient, largest peak of the resident set over the budget given.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median

import torch
from engine import extra_memory, seconds

from purebench import chain, device, embedded
from purebench.networks.small import SmallUNet
from purebench.noise import Noise
from purebench.purifiers import make
from purebench.scores.vp import VPScore

ROWS = 64
CASES = {  # name -> parameters of few steps
    "reverse-sde": {"steps": 10},
    "diffpure": {"steps": 10},
    "diffpure-ode": {"steps": 10},
    "diffpure-ld": {"steps": 10},
    "diffpure-ddpm": {"t": 0.01},
    "adp": {"steps": 5},
    "gdmp": {"t": 5, "passes": 2},
    "gns": {"stages": (20, 40), "steps": (5, 5)},
    "edm": {"steps": 10},
    "ebm": {"steps": 10},
}


def overhead() -> None:
    torch.manual_seed(0)
    network = SmallUNet(channels=3, base=32, mult=(1, 2, 2), blocks=1).eval().requires_grad_(False)
    score = VPScore(network, (3, 32, 32))
    x, noise = torch.rand(ROWS, 3, 32, 32), Noise(0, "benchmark", (), range(ROWS), [0] * ROWS)
    state, label = 2 * x - 1, torch.full((ROWS,), 50.0)
    print(f"{'purifier':16s} calls  purification / bare calls (<= 1.03)")
    for name, parameters in CASES.items():
        purifier = make(name, score=score, **parameters)
        with chain.nfe() as counted:
            chain.run(purifier, x, noise)
        calls = counted.forward

        def bare(calls: int = calls) -> None:
            with torch.no_grad():
                for _ in range(calls):
                    network(state, label)

        run: Callable[[], object] = lambda purifier=purifier: chain.run(purifier, x, noise)  # noqa: E731
        took = seconds({"purification": run, "bare": bare}, 5)
        ratio = median(p / b for p, b in zip(took["purification"], took["bare"], strict=True))
        print(f"{name:16s} {calls:5d}  {ratio:.3f}", flush=True)


def memory() -> None:
    score = VPScore(embedded.load("digits-score"), (1, 8, 8))
    x, noise = torch.rand(ROWS, 1, 8, 8), Noise(0, "benchmark", (), range(ROWS), [0] * ROWS)
    v = torch.randn_like(x)
    print("steps  budget MB  extra MB  extra / budget")
    for steps in (15, 1500):
        purifier = make("ebm", score=score, steps=steps)
        states, graph = chain.step_bytes(purifier, x, noise)
        least = 2 * math.ceil(math.sqrt(steps)) * states + graph + graph // 2
        for part in (0.0, 0.02, 0.1, 0.5) if steps > 100 else (0.0, 0.2, 0.5, 1.0):
            budget = int(max(least, part * steps * graph))
            used = extra_memory(
                lambda purifier=purifier, budget=budget: chain.vjp(purifier, x, noise, v, memory=budget)
            )
            print(f"{steps:5d}  {budget / 2**20:9.1f}  {used / 2**20:8.1f}  {used / budget:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    device.setup("cpu")
    if options.memory or not options.overhead:
        memory()
    if options.overhead or not options.memory:
        overhead()


if __name__ == "__main__":
    main()
