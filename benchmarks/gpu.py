"""What a GPU does with the three networks of a CIFAR-10 evaluation, and what the engine adds to them.

    uv run python benchmarks/gpu.py --out results/gpu.md      under 8 minutes on one H100 or H200
    uv run python benchmarks/gpu.py --tiny --device cpu       the same on small networks, in seconds

DDPM++ deep (Score SDE), EDM (DDPM++ form) and WRN-28-10, with generated weights: nothing is downloaded.

- `parity`: the largest difference from the CPU in float32, as a part of the CPU's largest number; of the other modes from fp32 on the
  device.
- `purification / (steps x F)`, `stored / (F+B)`, `recomputed / (2F+B)`: the engine's reverse VP-SDE against the bare network, called as
  often with as many rows.
- `idle`: the share of a purification's time in which the device computes nothing, from torch's profiler, whose own cost makes it an upper
  bound.
- `rows/s`: of a forward call. `roofline`: its operations per second over those of a large matrix product in the same precision, measured
  here.

What does not fit into `--budget`, into memory, or does not work here is a dash, and the end of the report says why.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_networks import Network, all_networks
from torch import Tensor, nn

from purebench.engine import chain, precision
from purebench.engine import device as devices
from purebench.engine.noise import Noise
from purebench.purifiers.vpsde import ReverseVP

MODES = ("fp32", "fp32 channels_last", "tf32", "bf16")  # eager; then what is tried in bf16:
FASTER = ("bf16 compiled", "bf16 graph")
TARGETS = {  # figure -> at most
    "purification / (steps x F)": 1.03,
    "idle": 0.02,
    "parity": 1e-4,
}
COMPILING = 100  # seconds that a compilation may take
Call = Callable[[], object]


@dataclass
class Setting:
    """What is measured on, and for how long: `least`: seconds of one timing; `ends`: when nothing more is begun."""

    device: torch.device
    tiny: bool
    least: float
    ends: float
    rows: int
    steps: int
    ladder: Sequence[int]
    skipped: list[str] = field(default_factory=list)

    def late(self, what: str, need: float = 0) -> bool:
        """Whether there is no time left for what needs so many seconds; then it is said."""
        if time.monotonic() + need < self.ends:
            return False
        self.skipped.append(f"{what}: out of time")
        return True

    def has(self, mode: str) -> bool:
        return self.device.type == "cuda" or mode not in ("tf32", "bf16 graph")


# ------------------------------------------------------------------------------------------------------------------ measuring


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Call, setting: Setting) -> float:
    """Of one call: twice to warm up, then as many as last `least` seconds."""
    call()
    call()
    count = 1
    while True:
        began = now(setting.device)
        for _ in range(count):
            call()
        took = now(setting.device) - began
        if took >= setting.least:
            return took / count
        count = max(count + 1, math.ceil(1.2 * count * setting.least / max(took, 1e-6)))


def tried(call: Callable[[], float], what: str, setting: Setting, need: float = 0) -> float:
    """What is measured, or NaN where there is no time, no memory, or it does not work here; then it is said."""
    if setting.late(what, need):
        return math.nan
    try:
        return call()
    except Exception as error:  # a compiler's or a driver's own: the other numbers stand
        why = "out of memory" if devices.out_of_memory(error) else f"{type(error).__name__}: {error}".splitlines()[0]
        setting.skipped.append(f"{what}: {why[:140]}")
        return math.nan
    finally:
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def operations(network: Network) -> float:
    """Floating-point operations of a forward call per row; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.module(*network.inputs(1, torch.device("cpu")))
    return float(counter.get_total_flops())


def matmul(mode: str, setting: Setting) -> float:
    """Operations per second of a large square product in a mode's precision."""
    size = 256 if setting.tiny else 8192
    word = mode.partition(" ")[0]
    a = torch.ones(size, size, device=setting.device, dtype=torch.bfloat16 if word == "bf16" else torch.float32)
    precision.allow(word == "tf32")
    try:
        return 2 * size**3 / seconds(lambda: a @ a, setting)
    finally:
        precision.allow(False)


def graphed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """The replay of a forward call that was captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        module(*inputs)
    return graph.replay


def forward(module: nn.Module, inputs: tuple[Tensor, ...], mode: str, setting: Setting) -> float:
    """Rows per second of a forward call of a network that is in this mode."""
    rows = len(inputs[0])
    if mode == "bf16 graph":
        return rows / seconds(graphed(module, inputs), setting)
    called: Callable[..., Any] = module
    if mode == "bf16 compiled":
        # Small networks are there to try the way, and not the compiler, which takes a minute.
        called = torch.compile(module, backend="aot_eager" if setting.tiny else "inductor", dynamic=False)
    with torch.no_grad():
        return rows / seconds(lambda: called(*inputs), setting)


def forwards(network: Network, mode: str, setting: Setting) -> dict[tuple[str, int], float]:
    """(mode, rows) -> rows per second, for every number of rows in eager modes, else for the engine's."""
    module, found = network.on(mode, setting.device), {}
    need = COMPILING if mode == "bf16 compiled" and not setting.tiny else 0
    for rows in setting.ladder if mode in MODES else [setting.rows]:
        inputs = network.inputs(rows, setting.device)
        what = f"{network.name}, {mode}, {rows} rows"
        found[mode, rows] = tried(lambda i=inputs: forward(module, i, mode, setting), what, setting, need)
    return found


# ------------------------------------------------------------------------------------------------------------- the engine


def engine(network: Network, mode: str, setting: Setting) -> dict[str, float]:
    """Seconds of the chain and of the bare network at the same rows, and how long the device idles."""
    assert network.score is not None
    rows, steps, device = setting.rows, setting.steps, setting.device
    module = network.on(mode, device)
    purifier = ReverseVP(network.score(module), t=0.1, steps=steps)
    x, *rest = network.inputs(rows, device)
    noise, v = draws(rows), torch.ones_like(x)

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(steps):
                module(x, *rest)

    def both() -> None:
        for _ in range(steps):
            inside = x.detach().requires_grad_()
            torch.autograd.grad(module(inside, *rest), inside, v)

    def recomputed() -> None:
        chain.Tape(purifier, x, noise, chain.Plan(tail=1)).vjp(v)

    calls: dict[str, Call] = {
        "F": forwards,
        "F+B": both,
        "purification": lambda: chain.run(purifier, x, noise),
        "stored": lambda: chain.vjp(purifier, x, noise, v),
        "recomputed": recomputed,
    }
    where = f"{network.name}, {mode}"
    took = {}
    for name, call in calls.items():
        took[name] = tried(lambda call=call: seconds(call, setting), f"{name} of {where}", setting)
    return {
        "purification / (steps x F)": took["purification"] / took["F"],
        "stored / (F+B)": took["stored"] / took["F+B"],
        # All steps but the last are computed once more.
        "recomputed / (2F+B)": took["recomputed"] / (took["F"] * (1 - 1 / steps) + took["F+B"]),
        "gradients/s": rows / took["recomputed"],
        "idle": tried(lambda: idle(calls["purification"], device), f"idle of {where}", setting),
    }


def idle(call: Call, device: torch.device) -> float:
    """The share of a call's time in which the device (of the CPU: its operators) computes nothing."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        call()
        now(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    # To wait for the device is no work of its own, and stands among its events.
    events = [e for e in seen.events() if e.device_type == wanted and "sync" not in e.name.lower()]
    return gaps((e.time_range.start, e.time_range.end) for e in events)


def gaps(spans: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first beginning to the last end that no span covers."""
    ordered = sorted(spans)
    if not ordered:
        return math.nan
    begin, reached, busy = ordered[0][0], ordered[0][0], 0.0
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - begin) if reached > begin else 0.0


# ----------------------------------------------------------------------------------------------------------------- parity


def draws(rows: int) -> Noise:
    return Noise(0, "benchmark", (), range(rows), [0] * rows)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a part of the largest number; infinite where something is not finite."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return math.inf
    return float((found - wanted).abs().max() / wanted.abs().max())


def computed(network: Network, device: torch.device, mode: str = "fp32") -> dict[str, Tensor]:
    """What is compared: of a score network a draw, three steps' purified image and its gradient; of a classifier logits and theirs."""
    module = network.on(mode, device)
    x, *_ = network.inputs(2, device)
    if network.score is None:
        inside = x.requires_grad_()
        logits = module(inside)
        return {"logits": logits, "gradient": torch.autograd.grad(logits[:, 0].sum(), inside)[0]}
    purifier = ReverseVP(network.score(module), t=0.1, steps=3)
    purified, gradient = chain.vjp(purifier, x, draws(2), torch.ones_like(x))
    return {"noise": draws(2).normal(0, x), "purified": purified, "gradient": gradient}


def parity(network: Network, setting: Setting) -> list[list[str]]:
    """Lines: the network, the mode, what it is held against, what, and how far they are apart."""
    cpu, device = torch.device("cpu"), setting.device
    here = computed(network, device)
    pairs = [("fp32", "fp32, CPU", here, computed(network, cpu))]
    pairs += [(mode, "fp32", computed(network, device, mode), here) for mode in ("tf32", "bf16") if setting.has(mode)]
    lines = []
    for mode, other, found, wanted in pairs:
        # Less precision is another thing: how far is told, and no aim.
        key = "parity" if mode == "fp32" else ""
        lines += [[network.name, mode, other, what, verdict(apart(found[what], wanted[what]), key)] for what in found]
    return lines


# ---------------------------------------------------------------------------------------------------------------- the report


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown whose columns are aligned, to be read as it stands."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *texts[1:]])


def number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def verdict(value: float, key: str) -> str:
    """The number, and whether it is what was aimed at."""
    if math.isnan(value) or key not in TARGETS:
        return number(value)
    return f"{number(value)} ({'<=' if value <= TARGETS[key] else 'MISSES'} {TARGETS[key]:g})"


def speeds(network: Network, found: dict[tuple[str, int], float], peaks: dict[str, float], setting: Setting) -> str:
    """The tables of one network's forward call; found: rows per second by mode and rows."""
    flop, modes = operations(network), (*MODES, *FASTER)
    lines = []
    for rows in sorted({*setting.ladder, setting.rows}):
        lines.append([str(rows), *(number(found.get((mode, rows), math.nan)) for mode in modes)])
    best = []
    for mode in modes:
        reached = [(rate, rows) for (m, rows), rate in found.items() if m == mode and not math.isnan(rate)]
        if reached:
            rate, rows = max(reached)
            peak = peaks[mode.partition(" ")[0]]
            best.append([mode, number(rate), str(rows), number(rate * flop / 1e12), number(rate * flop / peak)])
    parts = [f"### {network.name}: {number(flop / 1e9)} GFLOP a row, forward", "rows/s by rows:"]
    parts += [table(["rows", *modes], lines), table(["best of", "rows/s", "at rows", "TFLOP/s", "roofline"], best)]
    return "\n\n".join(parts)


def report(setting: Setting, out: Callable[[str], None]) -> None:
    """Section after section, the most wanted first: what is over the time is at the end."""
    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, 1 thread"
    small = ", **small networks: to try the script, not the machine**" if setting.tiny else ""
    out(f"# {name}, torch {torch.__version__}{small}")
    made = all_networks(setting.tiny)
    itself = "" if device.type == "cuda" else ": this device is the CPU, and held against itself"
    out(f"## Parity{itself}")
    lines = [
        line for network in made if not setting.late(f"parity of {network.name}") for line in parity(network, setting)
    ]
    out(table(["network", "mode", "against", "what", "largest relative difference"], lines))
    out(f"## The engine against the bare network, {setting.rows} rows, {setting.steps} steps of the reverse VP-SDE")
    lines, keys = [], []
    for network in made[:2]:
        for mode in ("fp32", "tf32", "bf16"):
            if setting.has(mode) and not setting.late(f"the engine on {network.name}, {mode}"):
                found = engine(network, mode, setting)
                keys = list(found)
                lines.append([network.name, mode, *(verdict(value, key) for key, value in found.items())])
    out(table(["network", "mode", *keys], lines))
    out("## Networks alone")
    peaks = {}
    for mode in ("fp32", "tf32", "bf16"):
        if setting.has(mode):
            peaks[mode] = tried(lambda m=mode: matmul(m, setting), f"matmul in {mode}", setting)
    said = (f"{mode} {number(peak / 1e12)}" for mode, peak in peaks.items())
    out(f"Matrix product, TFLOP/s: {', '.join(said)}")
    rates: dict[str, dict[tuple[str, int], float]] = {network.name: {} for network in made}
    # Of all networks, before the compiler takes what time is left.
    for mode in (*MODES, "bf16 graph", "bf16 compiled"):
        for network in made:
            if setting.has(mode):
                rates[network.name] |= forwards(network, mode, setting)
    for network in made:
        out(speeds(network, rates[network.name], peaks, setting))
    if setting.skipped:
        out("Left out:\n\n" + "\n".join(f"- {line}" for line in setting.skipped))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="small networks, short timings")
    parser.add_argument("--rows", type=int, help="of the engine's part [default: 64]")
    parser.add_argument("--steps", type=int, help="of the engine's part [default: 5]")
    parser.add_argument(
        "--ladder", type=int, nargs="+", metavar="R", help="rows of the networks alone [default: 1 to 512]"
    )
    parser.add_argument("--budget", type=float, default=450, metavar="S", help="seconds after which nothing is begun")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the same as Markdown")
    options = parser.parse_args(words)
    began = time.monotonic()
    tiny = options.tiny
    setting = Setting(
        devices.setup(options.device), tiny, 0.001 if tiny else 0.2, began + options.budget, options.rows or (4 if tiny else 64),
        options.steps or (2 if tiny else 5), options.ladder or ((1, 4) if tiny else (1, 8, 32, 64, 128, 256, 512)),
    )  # fmt: skip
    written: list[str] = []

    def out(text: str) -> None:
        print(text + "\n", flush=True)
        written.append(text)
        if options.out:  # at once: a run that is cut short keeps what it has
            options.out.write_text("\n\n".join(written) + "\n")

    report(setting, out)
    out(f"{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
