"""The exact gradient on Score SDE's full network (106.6 M parameters) against torchsde's adjoint as DiffPure's runner calls it.

    uv run python benchmarks/fullsize.py            about 6 minutes on one core, 4 GB
    uv run python benchmarks/fullsize.py --repetitions 1

5 steps of 1e-3, 2 images, fresh weights, one thread. `trainable`: the network's parameters require gradients, as published: the
adjoint then integrates those of all 106.6 M too. `frozen`: they do not. Time is CPU time; extra memory is the peak of the
resident set over its value before the call, with the heap trimmed between calls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchsde
from engine import status, trimmed
from torch import Tensor, nn

from purebench import assets, networks
from purebench.engine import chain, device
from purebench.engine.noise import Noise
from purebench.purifiers.vpsde import ReverseVP
from purebench.scores.vp import VPScore

TARGETS = {"trainable": (0.35, 0.14), "frozen": (0.95, 1.1)}  # exact / adjoint: time, extra memory
STEPS, SHAPE = 5, (2, 3, 32, 32)


class ReverseSDE(nn.Module):
    """The reverse VP-SDE with the network as a submodule, so that torchsde finds its parameters."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, purifier: ReverseVP, network: nn.Module):
        super().__init__()
        self.purifier, self.network = [purifier], network  # in a list: no second submodule

    def f(self, s: Tensor, x: Tensor) -> Tensor:
        return self.purifier[0].drift(float(s), x.view(-1, *SHAPE[1:])).flatten(1)

    def g(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.full_like(x, self.purifier[0].diffusion(float(s)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    device.setup("cpu")
    torch.manual_seed(0)
    network = networks.build("ddpmpp", assets.entry("score-sde-cifar10-vp")["config"])
    purifier = ReverseVP(VPScore(network, SHAPE[1:]), t=STEPS / 1000, steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.rand(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    noise = Noise(0, "benchmark", (), range(len(x)), [0] * len(x))
    sde, ends = ReverseSDE(purifier, network), torch.tensor([purifier.times[0], purifier.times[-1]])

    def adjoint() -> None:
        inside = x.clone().requires_grad_()
        out = torchsde.sdeint_adjoint(sde, purifier.start(inside, noise).flatten(1), ends, method="euler")[-1]
        ((out.view_as(x) + 1) / 2 * v).sum().backward()
        network.zero_grad(set_to_none=True)

    def exact() -> None:
        smallest = chain.step_bytes(purifier, x, noise)
        chain.vjp(purifier, x, noise, v, memory=2 * STEPS * smallest[0] + 2 * smallest[1])

    def measured(call: Callable[[], None]) -> tuple[float, float]:
        before, began = trimmed(), time.process_time()
        call()
        return time.process_time() - began, (status("VmHWM") - before) / 2**20

    took: dict[str, list[tuple[float, float]]] = {"exact": [], "adjoint, frozen": [], "adjoint, trainable": []}
    for repetition in range(options.repetitions + 1):  # the first to warm up
        for name in took:
            network.requires_grad_(name.endswith("trainable"))
            cost = measured(exact if name == "exact" else adjoint)
            if repetition:
                took[name].append(cost)
    network.requires_grad_(False)
    rows: dict[str, Any] = {
        name: {"CPU s": median(c for c, _ in costs), "extra MB": median(m for _, m in costs)}
        for name, costs in took.items()
    }
    for name, row in rows.items():
        print(f"{name:20s} {row['CPU s']:6.2f} CPU s   +{row['extra MB']:5.0f} MB")
    for kind, (time_target, memory_target) in TARGETS.items():
        ratios = [rows["exact"][k] / rows[f"adjoint, {kind}"][k] for k in ("CPU s", "extra MB")]
        rows[f"exact / {kind}"] = ratios
        print(
            f"exact / adjoint, {kind}: time {ratios[0]:.3f} (<= {time_target}), extra memory {ratios[1]:.3f} (<= {memory_target})"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
