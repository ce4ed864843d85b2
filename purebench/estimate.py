"""`--dry-run`: the plan, cell by cell, with its cost; the time comes from one batch that is measured here and now."""

from __future__ import annotations

import json
import time
from typing import Any

from purebench import plan, records, runner, tasks
from purebench.progress import duration


def describe(the_plan: plan.Plan, settings: runner.Settings, as_json: bool) -> str:
    """Cells, images done and left, network calls per image, estimated seconds, and where each parameter came from."""
    rows: list[dict[str, Any]] = []
    speeds: dict[Any, float] = {}
    for job in the_plan.jobs:
        folder = settings.out / job.cell.id
        done = (
            {r["position"]: r for r in records.load(folder).images}
            if (folder / records.CELL).exists() and not settings.fresh
            else {}
        )
        size = settings.rows or tasks.default_rows(job.cell)
        left = sum(len(t.positions) for t in tasks.missing(job, done, size))
        key = (job.cell.defense, job.cell.gradient, size)
        if left and key not in speeds:
            speeds[key] = measure(job, settings, size)
        forward, backward = plan.nfe(job.cell)
        seconds = left * plan.work(job) * speeds.get(key, 0.0) / settings.workers
        rows.append(
            {
                "cell": str(job.cell), "done": job.images - min(left, job.images), "left": left, "evals": job.evals, "nfe_forward": forward,
                "nfe_backward": backward, "seconds": seconds, "id": job.cell.id,
                "parameters": job.cell.data()["parameters"], "origin": job.origin,
            }
        )  # fmt: skip
    if as_json:
        return json.dumps(rows, indent=1)
    width = max(len(r["cell"]) for r in rows)
    lines = [f"{'cell'.ljust(width)}  done  left  NFE forward  backward  at most"]
    for r in rows:
        took = duration(r["seconds"]) if r["left"] else "-"
        lines.append(
            f"{r['cell'].ljust(width)}  {r['done']:4d}  {r['left']:4d}  {r['nfe_forward']:11,.0f}  {r['nfe_backward']:8,.0f}  {took:>7}"
        )
    total = sum(r["seconds"] for r in rows)
    workers = f"{settings.workers} worker{'s' * (settings.workers > 1)}"
    how = "from one measured batch per defense and gradient"
    lines += ["", f"{len(rows)} cells, at most {duration(total)} with {workers} ({how})"]
    lines += ["", "parameters and where they come from:"]
    seen: dict[str, None] = {}
    for job in the_plan.jobs:
        for kind, part in (("defense", job.cell.defense), ("attack", job.cell.attack)):
            values = job.cell.parameters[kind]
            words = [
                f"{k}={plan.show(v)}"
                + (f" ({job.origin[f'{kind}.{k}']})" if job.origin.get(f"{kind}.{k}", "default") != "default" else "")
                for k, v in values.items()
            ]
            seen[f"  {part}: {', '.join(words) or 'none'}"] = None
    return "\n".join(lines + list(seen))


def measure(job: plan.Job, settings: runner.Settings, rows: int) -> float:
    """Seconds per network call and row of this defense and gradient: one gradient of a full batch of rows, after a warm-up."""
    import torch

    from purebench import device as device_module
    from purebench import evaluate
    from purebench.noise import Noise

    device = device_module.setup(settings.device)
    defense = evaluate.build_defense(
        job.cell, device, rows=rows, memory=settings.memory or device_module.free_memory(device, settings.workers)
    )
    shape = evaluate.probe(job.cell, rows, device)
    noise = Noise(0, "estimate", (), range(rows), [0] * rows)
    labels = shape.new_zeros(rows).long()
    best = float("inf")
    for _ in range(2):
        defense.spent.close()
        began = time.perf_counter()
        defense.loss_grad(shape, labels, "ce", noise)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - began
        forward, backward, _ = defense.spent.close()
        best = min(best, took / (forward + backward))
    return best
