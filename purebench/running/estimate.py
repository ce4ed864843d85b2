"""`--dry-run`: the plan, cell by cell, with its cost; the time comes from one batch that is measured here and now."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from purebench import assets
from purebench.plan.grid import Job, Plan, show
from purebench.running import cost, runner, tasks
from purebench.running.progress import duration

if TYPE_CHECKING:
    from purebench.engine.chain import Purifier

Row = dict[str, Any]  # one cell of the plan; the keys are those of `--dry-run --json`

SLOW = 0.25  # seconds per network call and row from which one row is measured instead of all


def describe(plan: Plan, settings: runner.Settings, as_json: bool) -> str:
    """Cells, images done and left, network calls per image, estimated seconds, and where each parameter came from. `?` (in JSON, null) for
    calls that cannot be counted on stand-ins, and so for their time."""
    rows = _rows(plan, settings)
    if as_json:
        return json.dumps(rows, indent=1)
    lines = [*_table(rows), "", _total(rows, settings.workers)]
    if plan.missing:
        lines += [f"not here yet: {', '.join(plan.missing)}", f"bring them with: {assets.bring(plan.missing)}"]
    return "\n".join([*lines, "", "parameters and where they come from:", *_parameters(plan)])


def _rows(plan: Plan, settings: runner.Settings) -> list[Row]:
    """What is known of each cell before it runs. Raises UserError for records that cannot be read."""
    rows: list[Row] = []
    speeds: dict[tuple[object, ...], float] = {}
    for job in plan.jobs:
        cell, size = job.cell, settings.rows_of(job.cell)
        log = runner.recorded(settings, cell)
        done = {record["position"]: record for record in log.images} if log else {}
        left = sum(len(task.positions) for task in tasks.missing(job, done, size))
        # Measured once for all attacks on a defense: what a network call takes does not depend on who asks for it.
        key = (cell.dataset.name, cell.classifier, cell.defense, cell.gradient, cell.scores, size)
        if left and key not in speeds:
            speeds[key] = measure(job, settings, size, bool(plan.missing))
        calls = cost.attack(cell, job.shape)
        # Not a guess where the calls are unknown: a plug-in's own networks may be called any number of times.
        known = calls is not None and cost.purification(cell, job.shape) is not None
        seconds = left * cost.work(job) * speeds.get(key, 0.0) / settings.workers if known else None
        forward, backward = calls or (None, None)
        parts = {kind: part.data() for kind, part in cell.parts().items()}
        parameters = {kind: part["values"] for kind, part in parts.items() if "values" in part}
        rows.append(
            {
                "cell": str(cell), "done": job.images - left, "left": left, "evals": job.evals, "nfe_forward": forward,
                "nfe_backward": backward, "seconds": seconds, "id": cell.id,
                "parameters": parameters, "origin": job.origin, "stand_in": list(job.stand_in),
            }
        )  # fmt: skip
    return rows


def _table(rows: list[Row]) -> list[str]:
    """The rows as aligned text, under a header."""
    width = max(len(row["cell"]) for row in rows)
    lines = [f"{'cell'.ljust(width)}  done  left  NFE forward  backward  at most"]
    for row in rows:
        forward, backward = ("?" if n is None else f"{n:,.0f}" for n in (row["nfe_forward"], row["nfe_backward"]))
        seconds = "-" if not row["left"] else "?" if row["seconds"] is None else duration(row["seconds"])
        progress = f"{row['done']:4d}  {row['left']:4d}"
        lines.append(f"{row['cell'].ljust(width)}  {progress}  {forward:>11}  {backward:>8}  {seconds:>7}")
    return lines


def _total(rows: list[Row], workers: int) -> str:
    """One line: the cells and the time of all."""
    seconds = duration(sum(row["seconds"] or 0 for row in rows))
    processes = f"{workers} worker{'s' * (workers > 1)}"
    uncounted = any(row["seconds"] is None for row in rows)
    without = ", without the cells that say `?`" if uncounted else ""
    return (
        f"{len(rows)} cells, at most {seconds} with {processes}"
        f" (from a measured beginning of each defense and gradient){without}"
    )


def _parameters(plan: Plan) -> list[str]:
    """One line per defense and attack of the plan: its parameters, and where those came from that are not at the factory's defaults."""

    def told(kind: str, job: Job, name: str, value: Any) -> str:
        origin = job.origin.get(f"{kind}.{name}", "default")
        return f"{name}={show(value)}" + (f" ({origin})" if origin != "default" else "")

    lines: dict[str, None] = {}
    for job in plan.jobs:
        for kind, part in (("defense", job.cell.defense), ("attack", job.cell.attack)):
            values = {**part.values, **part.options}
            words = ", ".join(told(kind, job, name, value) for name, value in values.items())
            # A dictionary for its order: a part of many cells is told once, where it comes first.
            lines[f"  {part}: {words or 'none'}"] = None
    return list(lines)


class Beginning:
    """The first `n` steps of a purifier: what a step costs is soon known."""

    def __init__(self, purifier: Purifier, n: int):
        self.purifier, self.n = purifier, min(n, purifier.n)
        if hasattr(purifier, "times"):
            self.times = purifier.times[: self.n + 1]  # n steps lie between n + 1 times

    def __getattr__(self, name: str) -> Any:
        # Not `self.purifier`: on an object that has none yet, such as a copy in the making, that would come here again, for ever.
        return getattr(self.__dict__["purifier"], name)


def measure(job: Job, settings: runner.Settings, rows: int, untrained: bool) -> float:
    """Seconds per network call and row of this defense and gradient: the gradient through two steps, of one row, and where that is
    quick of a full batch; after a warm-up. `untrained`: with fresh weights, since files are missing; the time is the same."""
    # Imported here: torch takes seconds, and a plan with nothing left to do needs none of it.
    import torch

    from purebench.assets import checkpoint
    from purebench.engine import device as devices
    from purebench.engine.noise import Noise
    from purebench.running import evaluate

    device = devices.setup(settings.device)
    memory = settings.memory or devices.free_memory(device, settings.workers)

    def seconds_per_call(rows: int) -> float:
        defense = evaluate.build_defense(job.cell, device, rows=rows, memory=memory)
        defense.purifier = Beginning(defense.purifier, 2)
        if defense.surrogate is not None:
            defense.surrogate = Beginning(defense.surrogate, 2)
        x = torch.full((rows, *evaluate.shape(job.cell)), 0.5, device=device)
        best = float("inf")
        # Twice, and the quicker counts: the first pass also pays for what is set up once.
        for _ in range(2):
            defense.spent.close()
            began = time.perf_counter()
            defense.loss_grad(x, x.new_zeros(rows).long(), "ce", Noise(0, "estimate", (), range(rows), [0] * rows))
            if device.type == "cuda":
                # A GPU's calls return before they are done.
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
            forward, backward, _ = defense.spent.close()
            best = min(best, seconds / (forward + backward))
            # So slow that the warm-up is a small part of it, and nobody should wait for a second pass.
            if best > 4 * SLOW:
                break
        return best

    with checkpoint.untrained() if untrained else contextlib.nullcontext():
        try:
            one_row = seconds_per_call(1)
            # One row of a slow network keeps a CPU busy, and says as much as many; a GPU it leaves idle.
            return one_row if one_row > SLOW and device.type == "cpu" else seconds_per_call(rows)
        finally:
            if untrained:
                # Else a run in this process would attack networks that know nothing.
                evaluate.forget()
