"""A prepared plan worked off from beginning to end: what `purebench run` and the Python API have in common behind `preflight.prepare`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from purebench.errors import UserError
from purebench.plan.grid import Plan
from purebench.records import store
from purebench.running import preflight, progress, runner


def work_off(plan: Plan, settings: runner.Settings, outcome: runner.Outcome, *, quiet: bool) -> None:
    """Runs the plan with progress where the user looks; `outcome` is filled meanwhile, and can be read after Ctrl-C. Raises UserError
    for files that are missing, and as `runner.run`."""
    preflight.require_files(plan)
    _check_memory(plan, settings)
    with contextlib.closing(progress.reporter(quiet)) as reporter:
        runner.run(plan, settings, reporter, outcome)


def _check_memory(plan: Plan, settings: runner.Settings) -> None:
    """As `rehearsal.check_memory` of cells with somebody else's code, which no tensors without values measure: their gradients are tried
    as `--dry-run` tries them. Raises UserError for a given budget that is too small."""
    if settings.memory is None:
        return
    # Imported here: they load torch, which a process that hands out work does without.
    from purebench.engine import device as devices
    from purebench.running import evaluate, rehearsal, speed

    # With several workers each has the GPU's memory that it was promised, and this process none.
    if settings.workers > 1 and devices.setup(settings.device).type != "cpu":
        return
    clock = speed.Clock(settings, untrained=False)
    for job in plan.jobs:
        if job.cell.attack.info.get("gradients") and not rehearsal.all_ours(job.cell):
            try:
                clock.seconds(job, settings.rows_of(job.cell))
            except UserError:
                raise
            except Exception:  # whatever their code raises: the cell tells, and the others run
                continue
    if settings.workers > 1:
        evaluate.forget()


def folders(plan: Plan, settings: runner.Settings) -> list[Path]:
    """Where the plan's cells have records, in its order."""
    places = [runner.place(settings.out, job.cell) for job in plan.jobs]
    # A cell has no folder where another process holds its source: it was skipped before it was opened.
    return [folder for folder in places if (folder / store.CELL).exists()]
