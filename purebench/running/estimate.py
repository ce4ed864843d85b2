"""`--dry-run`: the plan, cell by cell, with its cost; the time comes from one batch that is measured here and now."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from purebench import assets
from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.running import cost, runner, tasks
from purebench.running.progress import duration
from purebench.spec import Cell

if TYPE_CHECKING:
    from purebench.engine.chain import Purifier


def describe(the_plan: plan.Plan, settings: runner.Settings, as_json: bool) -> str:
    """Cells, images done and left, network calls per image, estimated seconds, and where each parameter came from. `?` (in JSON, null) for
    calls that cannot be counted on stand-ins, and so for their time."""
    rows: list[dict[str, Any]] = []
    speeds: dict[tuple[object, ...], float] = {}
    for job in the_plan.jobs:
        folder = runner.place(settings.out, job.cell)
        done = (
            {r["position"]: r for r in records.load(folder).images}
            if (folder / records.CELL).exists() and not settings.fresh
            else {}
        )
        size = settings.rows or tasks.default_rows(job.cell)
        left = sum(len(t.positions) for t in tasks.missing(job, done, size))
        key = (job.cell.defense, job.cell.gradient, job.cell.scores, size)
        if left and key not in speeds:
            speeds[key] = measure(job, settings, size, bool(the_plan.missing))
        calls, once = (count(job.cell, the_plan.shape) for count in (cost.attack, cost.purification))
        forward, backward = calls or (None, None)
        known = calls is not None and once is not None  # else a plug-in's, which works on its own networks alone
        seconds = left * cost.work(job, the_plan.shape) * speeds.get(key, 0.0) / settings.workers if known else None
        rows.append(
            {
                "cell": str(job.cell), "done": job.images - min(left, job.images), "left": left, "evals": job.evals, "nfe_forward": forward,
                "nfe_backward": backward, "seconds": seconds, "id": job.cell.id,
                "parameters": _parameters(job.cell), "origin": job.origin, "stand_in": list(job.stand_in),
            }
        )  # fmt: skip
    if as_json:
        return json.dumps(rows, indent=1)
    width = max(len(r["cell"]) for r in rows)
    lines = [f"{'cell'.ljust(width)}  done  left  NFE forward  backward  at most"]
    for r in rows:
        f, b = ("?" if r[key] is None else f"{r[key]:,.0f}" for key in ("nfe_forward", "nfe_backward"))
        took = "-" if not r["left"] else "?" if r["seconds"] is None else duration(r["seconds"])
        lines.append(f"{r['cell'].ljust(width)}  {r['done']:4d}  {r['left']:4d}  {f:>11}  {b:>8}  {took:>7}")
    total = sum(r["seconds"] or 0 for r in rows)
    workers = f"{settings.workers} worker{'s' * (settings.workers > 1)}"
    how = "from a measured beginning of each defense and gradient"
    without = "" if all(r["seconds"] is not None for r in rows) else ", without the cells that say `?`"
    lines += ["", f"{len(rows)} cells, at most {duration(total)} with {workers} ({how}){without}"]
    if the_plan.missing:
        lines += [
            "not here yet: " + ", ".join(the_plan.missing),
            f"bring them with: {assets.bring(the_plan.missing)}",
        ]
    lines += ["", "parameters and where they come from:"]
    seen: dict[str, None] = {}
    for job in the_plan.jobs:
        for kind, part in (("defense", job.cell.defense), ("attack", job.cell.attack)):
            values = {**part.values, **part.options}
            words = [
                f"{k}={plan.show(v)}"
                + (f" ({job.origin[f'{kind}.{k}']})" if job.origin.get(f"{kind}.{k}", "default") != "default" else "")
                for k, v in values.items()
            ]
            seen[f"  {part}: {', '.join(words) or 'none'}"] = None
    return "\n".join(lines + list(seen))


def _parameters(cell: Cell) -> dict[str, object]:
    """Every parameter of defense, attack and surrogate, as JSON types."""
    data = {kind: part.data() for kind, part in cell.parts().items()}
    return {kind: part["values"] for kind, part in data.items() if "values" in part}


SLOW = 0.25  # seconds per network call and row from which one row is measured instead of all


class Beginning:
    """The first `n` steps of a purifier: what a step costs is soon known."""

    def __init__(self, purifier: Purifier, n: int):
        self.purifier, self.n = purifier, min(n, purifier.n)
        if hasattr(purifier, "times"):
            self.times = purifier.times[: self.n + 1]  # n steps lie between n + 1 times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["purifier"], name)


def measure(job: plan.Job, settings: runner.Settings, rows: int, untrained: bool) -> float:
    """Seconds per network call and row of this defense and gradient: the gradient through two steps, of one row, and where that is
    quick of a full batch; after a warm-up. `untrained`: with fresh weights, since files are missing; the time is the same."""
    import contextlib

    import torch

    from purebench.assets import checkpoint
    from purebench.engine import device as device_module
    from purebench.engine.noise import Noise
    from purebench.running import evaluate

    device = device_module.setup(settings.device)
    memory = settings.memory or device_module.free_memory(device, settings.workers)

    def once(rows: int) -> float:
        defense = evaluate.build_defense(job.cell, device, rows=rows, memory=memory)
        defense.purifier = Beginning(defense.purifier, 2)
        if defense.surrogate is not None:
            defense.surrogate = Beginning(defense.surrogate, 2)
        x = evaluate.probe(evaluate.shape(job.cell), rows, device)
        best = float("inf")
        for _ in range(2):
            defense.spent.close()
            began = time.perf_counter()
            defense.loss_grad(x, x.new_zeros(rows).long(), "ce", Noise(0, "estimate", (), range(rows), [0] * rows))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = time.perf_counter() - began
            forward, backward, _ = defense.spent.close()
            best = min(best, took / (forward + backward))
            if best > 4 * SLOW:
                break
        return best

    with checkpoint.untrained() if untrained else contextlib.nullcontext():
        try:
            single = once(1)
            return single if single > SLOW and device.type == "cpu" else once(rows)
        finally:
            if untrained:
                evaluate.forget()
