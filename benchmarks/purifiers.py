"""Every purifier against the bare network, and the memory budget at 15 and at 1,500 steps; one thread, one run.

    uv run python benchmarks/purifiers.py             about 12 minutes on one core
    uv run python benchmarks/purifiers.py --overhead
    uv run python benchmarks/purifiers.py --memory

Overhead: time of a purification over that of its network calls made bare, at 64 rows of 32x32 (1 M parameters); median of five pairs.
Bare calls are forwards of the score network; for `coup`, a forward and a gradient of the classifier beside each; for `lm` and ScoreOpt
the gradient of a square of the network's output. Gradients are taken with `create_graph`, as `chain.inner_grad` does to have the same
bits recorded or not; "plain" is over gradients without it.
Memory: Hill et al.'s chain (`ebm`, on the digits' score network), exact gradient, largest peak of the resident set over the budget given.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median

import torch
from engine import extra_memory, seconds
from torch import nn

from purebench import embedded
from purebench.engine import chain, device
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.networks.small import SmallUNet
from purebench.purifiers import make
from purebench.scores.vp import VPScore

ROWS = 64
CASES = {  # name -> parameters of few steps; `none` and `gaussian` call no network
    "one-shot": {},
    "reverse-sde": {"steps": 10},
    "coup": {"steps": 10},
    "diffpure": {"steps": 10},
    "diffpure-ode": {"steps": 10},
    "diffpure-ld": {"steps": 10},
    "diffpure-ddpm": {"t": 0.01},
    "adp": {"steps": 5},
    "gdmp": {"t": 5, "passes": 2},
    "gns": {"stages": (20, 40), "steps": (5, 5)},
    "edm": {"steps": 10},
    "ebm": {"steps": 10},
    "lm": {"steps": 5},
    "scoreopt-o": {"steps": 5},
    "scoreopt-n": {"steps": 5},
}


def overhead() -> None:
    torch.manual_seed(0)
    network = SmallUNet(channels=3, base=32, mult=(1, 2, 2), blocks=1).eval().requires_grad_(False)
    layers = (
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.SiLU(),
        nn.AvgPool2d(8),
        nn.Flatten(),
    )
    classifier = watch(nn.Sequential(*layers, nn.Linear(64, 10)).eval().requires_grad_(False))
    score = VPScore(network, (3, 32, 32))
    x, noise = torch.rand(ROWS, 3, 32, 32), Noise(0, "benchmark", (), range(ROWS), [0] * ROWS)
    state, label = 2 * x - 1, torch.full((ROWS,), 50.0)

    def forwards(calls: int) -> None:
        with torch.no_grad():
            for _ in range(calls):
                network(state, label)

    def gradients(of: Callable[[torch.Tensor], torch.Tensor], calls: int, create_graph: bool) -> None:
        for _ in range(calls):
            leaf = state.clone().requires_grad_()
            torch.autograd.grad(of(leaf).square().sum(), leaf, create_graph=create_graph)

    print(f"{'purifier':16s} forwards gradients  purification / bare calls (<= 1.03)  plain")
    for name, parameters in CASES.items():
        purifier = make(name, score=score, classifier=classifier, **parameters)
        with chain.nfe() as counted:
            chain.run(purifier, x, noise)
        inner = classifier if name == "coup" else lambda u: network(u, label)

        def bare(create_graph: bool = True, calls: chain.NFE = counted, inner: Callable = inner) -> None:
            forwards(calls.forward - calls.backward)  # a gradient has a forward of its own
            gradients(inner, calls.backward, create_graph)

        todo = {"purification": lambda purifier=purifier: chain.run(purifier, x, noise), "bare": bare}
        if counted.backward:
            todo["plain"] = lambda bare=bare: bare(create_graph=False)
        took = seconds(todo, 5)
        over = {
            key: median(p / b for p, b in zip(took["purification"], took[key], strict=True)) for key in list(todo)[1:]
        }
        print(
            f"{name:16s} {counted.forward:8d} {counted.backward:9d}  {over['bare']:35.3f}"
            + (f"  {over['plain']:5.3f}" if "plain" in over else ""),
            flush=True,
        )


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
