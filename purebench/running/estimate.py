"""`--dry-run`: the plan, cell by cell, with its cost: network calls, the time here, and GPU-hours."""

from __future__ import annotations

import json
from typing import Any

from purebench import assets
from purebench.plan.grid import Job, Plan, show
from purebench.running import cost, runner, tasks
from purebench.running.progress import duration

Row = dict[str, Any]  # one cell of the plan; the keys are those of `--dry-run --json`

# float32, as purebench computes, at a share of the peak that large convolutions reach.
CARD, PEAK, SHARE = "H100", 67e12, 0.4
LEAST = 0.1  # GPU-hours of a plan from which they are printed


def describe(plan: Plan, settings: runner.Settings, as_json: bool) -> str:
    """Cells, images done and left, network calls per image, estimated seconds and GPU-hours, what is missing and how large it is, and
    where each parameter came from. `?` (in JSON, null) for calls that cannot be counted on stand-ins, and so for their time."""
    rows = _rows(plan, settings)
    if as_json:
        return json.dumps(rows, indent=1)
    lines = [*_table(rows), "", _total(rows, settings.workers)]
    if plan.missing:
        lines += ["not here yet:", *_absent(plan.missing), f"bring them with: {assets.bring(plan.missing)}"]
    return "\n".join([*lines, "", "parameters and where they come from:", *_parameters(plan)])


def _rows(plan: Plan, settings: runner.Settings) -> list[Row]:
    """What is known of each cell before it runs. Raises UserError for records that cannot be read."""
    rows: list[Row] = []
    clock = None
    for job in plan.jobs:
        cell, size = job.cell, settings.rows_of(job.cell)
        log = runner.recorded(settings, cell)
        done = {record["position"]: record for record in log.images} if log else {}
        left = sum(len(task.positions) for task in tasks.missing(job, done, size))
        calls = cost.attack(cell, job.shape)
        # Not a guess where the calls are unknown: a plug-in's own networks may be called any number of times.
        known = calls is not None and cost.purification(cell, job.shape) is not None
        seconds, hours = (0.0, 0.0) if known else (None, None)
        if known and left:
            # Imported here: torch takes seconds, and a plan with nothing left to do needs none of it.
            from purebench.running import speed

            clock = clock or speed.Clock(settings, untrained=bool(plan.missing))
            seconds = left * clock.seconds(job, size) / settings.workers
            flop = clock.flop(job)
            hours = None if flop is None else left * flop / (PEAK * SHARE) / 3600
        forward, backward = calls or (None, None)
        where = {"dataset": str(cell.dataset), "classifier": str(cell.classifier), "score": cell.score}
        parts = {kind: part.data() for kind, part in cell.parts().items()}
        parameters = {kind: part["values"] for kind, part in parts.items() if "values" in part}
        rows.append(
            {
                "cell": str(cell), **where, "done": job.images - left, "left": left, "evals": job.evals, "nfe_forward": forward,
                "nfe_backward": backward, "seconds": seconds, "gpu_hours": hours, "id": cell.id,
                "parameters": parameters, "origin": job.origin, "stand_in": list(job.stand_in),
            }
        )  # fmt: skip
    return rows


def _table(rows: list[Row]) -> list[str]:
    """The rows as aligned text, under a header."""
    # What all cells share is said in the header of a table; what differs tells them apart here.
    unlike = [key for key in ("dataset", "classifier", "score") if len({row[key] for row in rows}) > 1]
    names = [" ".join([row["cell"], *(f"{key}={row[key]}" for key in unlike)]) for row in rows]
    width = max(map(len, names))
    # The digits' networks are too small for a GPU's hours.
    hours = _hours(rows) >= LEAST
    lines = [f"{'cell'.ljust(width)}  done  left  NFE forward  backward    at most{'  GPU-hours' * hours}"]
    for name, row in zip(names, rows, strict=True):
        forward, backward = ("?" if n is None else f"{n:,.0f}" for n in (row["nfe_forward"], row["nfe_backward"]))
        seconds = "-" if not row["left"] else "?" if row["seconds"] is None else duration(row["seconds"])
        progress = f"{row['done']:4d}  {row['left']:4d}"
        lines.append(
            f"{name.ljust(width)}  {progress}  {forward:>11}  {backward:>9}  {seconds:>9}{_hours_text(row) * hours}"
        )
    return lines


def _hours(rows: list[Row]) -> float:
    return sum(row["gpu_hours"] or 0 for row in rows)


def _hours_text(row: Row) -> str:
    hours = "-" if not row["left"] else "?" if row["gpu_hours"] is None else f"{row['gpu_hours']:,.1f}"
    return f"  {hours:>9}"


def _total(rows: list[Row], workers: int) -> str:
    """One line: the cells, and the time of all here and on a reference card."""
    seconds = duration(sum(row["seconds"] or 0 for row in rows))
    processes = f"{workers} worker{'s' * (workers > 1)}"
    uncounted = any(row["seconds"] is None or row["gpu_hours"] is None for row in rows)
    without = ", without the cells that say `?`" if uncounted else ""
    line = f"{len(rows)} cells, at most {seconds} with {processes} (from what a network call takes here){without}"
    if _hours(rows) < LEAST:
        return line
    rate = f"{PEAK / 1e12:.0f} TFLOP/s of float32 at {SHARE:.0%}"
    return f"{line};\nabout {_hours(rows):,.1f} GPU-hours on one {CARD} (counted operations, {rate})"


def _absent(names: list[str]) -> list[str]:
    """What is missing, with its size; of a network that is yet to be trained there is none."""
    known = assets.table()
    return [f"  {name}: {assets.size_text(known[name]) if name in known else 'to be trained'}" for name in names]


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
