"""The engine against its own limits and against torchsde's adjoint: ratios of paired medians, one thread, in one run.

    uv run python benchmarks/engine.py            about 8 minutes on one core
    uv run python benchmarks/engine.py --quick    one repetition fewer and fewer steps

Purification is the reverse VP-SDE. F and F+B are the bare frozen network, called as often as the chain calls it. The adjoint is
torchsde's sdeint_adjoint on the same frozen network with torchsde's own Brownian interval, as the published runners call it. Extra
memory is the peak of the resident set over its value before the call, with the heap trimmed between calls.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchsde

from purebench import embedded
from purebench.engine import adjoint, chain, device
from purebench.engine.noise import Noise
from purebench.networks.small import SmallUNet
from purebench.purifiers.vpsde import ReverseVP
from purebench.scores.vp import VPScore

TARGETS = {
    "purification / (steps x F)": (1.10, 1.05),
    "stored / adjoint": (0.70, 0.70),
    "stored / (F+B)": (1.10, 1.10),
    "recomputed / adjoint": (1.00, 1.00),
    "recomputed / (2F+B)": (1.05, 1.05),
}


def trimmed() -> int:
    """Bytes resident after giving everything free back, with the peak counter reset."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def extra_memory(call: Callable[[], object]) -> int:
    call()
    before = trimmed()
    call()
    return status("VmHWM") - before


def seconds(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Every call once to warm up, then all of them in turn, `repetitions` times."""
    for call in calls.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - began)
    return took


def case(name: str, network: torch.nn.Module, shape: tuple[int, ...], steps: int, repetitions: int) -> dict[str, float]:
    rows = shape[0]
    score = VPScore(network, shape[1:])  # type: ignore[arg-type]
    purifier = ReverseVP(score, t=0.1, steps=steps)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    noise = Noise(0, "benchmark", (), range(rows), [0] * rows)
    state, label = 2 * x - 1, torch.full((rows,), 50.0)
    s_bytes, g_bytes = chain.step_bytes(purifier, x, noise)
    smallest = 2 * math.ceil(math.sqrt(steps)) * s_bytes + g_bytes + g_bytes // 2

    def bare_forward() -> None:
        with torch.no_grad():
            for _ in range(steps):
                network(state, label)

    def bare_both() -> None:
        for _ in range(steps):
            inside = state.detach().requires_grad_()
            torch.autograd.grad(network(inside, label), inside, v)

    def bare_recomputed() -> None:
        bare_forward()
        bare_both()

    def recomputed() -> tuple[torch.Tensor, torch.Tensor]:
        tape = chain.Tape(purifier, x, noise, chain.Plan(tail=1))
        return tape.purified, tape.vjp(v)

    sde = adjoint._SDE(purifier, torch.Size(shape[1:]))
    ends = torch.tensor([purifier.times[0], purifier.times[-1]])

    def published() -> torch.Tensor:
        inside = x.detach().requires_grad_()
        start = purifier.start(inside, noise).flatten(1)
        out = torchsde.sdeint_adjoint(sde, start, ends, method="euler", dt=purifier.t / steps, adjoint_params=())[-1]
        return torch.autograd.grad((out.view_as(x) + 1) / 2, inside, v)[0]

    calls: dict[str, Callable[[], object]] = {
        "F": bare_forward,
        "F+B": bare_both,
        "2F+B": bare_recomputed,
        "purification": lambda: chain.run(purifier, x, noise),
        "stored": lambda: chain.vjp(purifier, x, noise, v),
        "recomputed": recomputed,
        "adjoint": published,
    }
    took = seconds(calls, repetitions)

    def ratio(a: str, b: str) -> float:
        return median(p / q for p, q in zip(took[a], took[b], strict=True))

    memory = {n: extra_memory(calls[n]) for n in ("stored", "recomputed", "adjoint")}
    budgets = {}
    for part in (0.0, 0.1, 0.3, 0.6, 1.0):
        budget = int(max(part * steps * g_bytes, smallest))
        budgets[budget] = extra_memory(lambda budget=budget: chain.vjp(purifier, x, noise, v, memory=budget))
    exact = chain.vjp(purifier, x, noise, v)[1].flatten(1)
    theirs = adjoint.vjp(purifier, x, noise, v)[1].flatten(1)
    return {
        "case": name,
        "steps": steps,
        "rows": rows,
        "purification / (steps x F)": ratio("purification", "F"),
        "stored / adjoint": ratio("stored", "adjoint"),
        "stored / (F+B)": ratio("stored", "F+B"),
        "recomputed / adjoint": ratio("recomputed", "adjoint"),
        "recomputed / (2F+B)": ratio("recomputed", "2F+B"),
        "memory recomputed / adjoint, states aside": (memory["recomputed"] - steps * s_bytes) / memory["adjoint"],
        "memory stored MB": memory["stored"] / 2**20,
        "memory recomputed MB": memory["recomputed"] / 2**20,
        "memory adjoint MB": memory["adjoint"] / 2**20,
        "largest peak / budget": max(peak / budget for budget, peak in budgets.items()),
        "cosine adjoint, exact": float(torch.cosine_similarity(exact, theirs).mean()),
        "ms F": median(took["F"]) / steps * 1e3,
        "ms F+B": median(took["F+B"]) / steps * 1e3,
    }  # type: ignore[dict-item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--case", choices=["digits", "colour"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    device.setup("cpu")
    digits = embedded.load("digits-score")
    torch.manual_seed(0)
    colour = SmallUNet(channels=3, base=32, mult=(1, 2, 2), blocks=1).eval().requires_grad_(False)
    rows = []
    for steps in (20,) if options.quick else (20, 50, 100):
        if options.case != "colour":
            rows.append(case("digits", digits, (64, 1, 8, 8), steps, options.repetitions))
    if options.case != "digits":
        rows.append(case("32x32, 1 M", colour, (16, 3, 32, 32), 20, options.repetitions))
    print(f"{'':42s}" + "".join(f"{r['case']}, {r['steps']} steps".rjust(22) for r in rows))
    for key in rows[0]:
        if key in ("case", "steps"):
            continue
        line = f"{key:42s}"
        for r in rows:
            target = TARGETS.get(key, (None, None))[r["case"] != "digits"]
            mark = "" if target is None else f" (<= {target:.2f})"
            line += f"{r[key]:.3g}{mark}".rjust(22)
        print(line)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
