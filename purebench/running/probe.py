"""What `doctor` tries out in a process of its own: a broken library may end the process, or never come back.

    python -m purebench.running.probe import:torch device:cuda plugin:defense:mine

prints one JSON line per step, in order; where it dies, the next step is the one that killed it. `run` starts it, and goes on behind that.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from purebench.running.finding import in_a_line

SECONDS = 120  # for all steps of one process: torchvision alone takes 15 on a slow disk
Answer = dict[str, Any]  # of a step: `error`, why it failed, or what it found


def run(steps: Sequence[str], seconds: float = SECONDS) -> dict[str, Answer]:
    """The answer of every step."""
    found: dict[str, Answer] = {}
    left = list(steps)
    while left:
        answers, why = _process(left, seconds)
        found |= dict(zip(left, answers, strict=False))
        left = left[len(answers) :]
        if left:
            found[left.pop(0)] = {"error": why}
    return found


def _process(steps: list[str], seconds: float) -> tuple[list[Answer], str]:
    """The answers of one process until it ended, and how it ended."""
    # As this process: without the working folder, in which a file may be called as a library is, unless it is on our path too.
    safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safe, "-m", "purebench.running.probe", *steps]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
        out, code = done.stdout, done.returncode
        last = (done.stderr.strip().splitlines() or [""])[-1]
        why = f"it ended the process (signal {-code})" if code < 0 else f"it ended the process: {last}"
    except subprocess.TimeoutExpired as stopped:
        # Bytes, whatever was asked for: Python leaves them undecoded here.
        out = stopped.stdout.decode(errors="replace") if isinstance(stopped.stdout, bytes) else stopped.stdout or ""
        why = f"no answer within {seconds:g} s"
    # Only whole lines: the last may have been cut off.
    lines = out[: out.rfind("\n") + 1].splitlines()
    return [json.loads(line) for line in lines][: len(steps)], why


def main(steps: Sequence[str]) -> None:
    """Does the steps; each answer is written at once."""
    # Libraries print what they like: ours is the true stdout, and theirs goes elsewhere.
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for step in steps:
        kind, _, what = step.partition(":")
        try:
            answer = STEPS[kind](what)
        # Whatever it is: that something fails is what is asked here.
        except (Exception, SystemExit) as error:
            answer = {"error": in_a_line(error)}
        print(json.dumps(answer), file=ours, flush=True)


def _import(name: str) -> Answer:
    importlib.import_module(name)
    return {}


def _plugin(what: str) -> Answer:
    from purebench import registry

    kind, _, name = what.partition(":")
    registry.factory(kind, name)
    return {}


def _device(name: str) -> Answer:
    """Torch's devices of this kind, each tried with a convolution and a product whose results are known from float64."""
    import torch

    if name == "cpu":
        return {"devices": [{"name": "cpu", "error": _tried(torch, "cpu")}]}
    build = torch.version.cuda or torch.version.hip
    answer: Answer = {"build": build, "devices": [], "why": ""}
    if build:
        # `is_available` says no without a reason; whoever uses it is told.
        try:
            torch.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as error:
            answer["why"] = in_a_line(error)
    for i in range(torch.cuda.device_count()):
        facts: Answer = {"name": f"cuda:{i}", "error": ""}
        try:
            facts["hardware"] = torch.cuda.get_device_name(i)
            facts["free"], facts["total"] = torch.cuda.mem_get_info(i)
            facts["error"] = _tried(torch, f"cuda:{i}")
        except (RuntimeError, AssertionError) as error:
            facts["error"] = in_a_line(error)
        answer["devices"].append(facts)
    return answer


def _tried(torch: Any, device: str) -> str:
    """Why a device computes wrongly; empty if it does not."""
    x = torch.linspace(-1, 1, 3 * 8 * 8, dtype=torch.float64).reshape(1, 3, 8, 8)
    weight = torch.linspace(-1, 1, 4 * 3 * 9, dtype=torch.float64).reshape(4, 3, 3, 3)

    def value(at: str, dtype: Any) -> Any:
        out = torch.nn.functional.conv2d(x.to(at, dtype), weight.to(at, dtype), padding=1).flatten(1)
        return (out @ out.T).double().cpu()

    with contextlib.suppress(AttributeError):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    exact, got = value("cpu", torch.float64), value(device, torch.float32)
    return (
        ""
        if torch.allclose(exact, got, rtol=1e-4)
        else f"it computes {got.item():.6g} where {exact.item():.6g} is right"
    )


STEPS = {"import": _import, "plugin": _plugin, "device": _device}

if __name__ == "__main__":
    main(sys.argv[1:])
