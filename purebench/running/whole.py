"""A prepared plan worked off from beginning to end: what `purebench run` and the Python API have in common behind `preflight.prepare`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from purebench.plan.grid import Plan
from purebench.records import store
from purebench.running import preflight, progress, runner


def work_off(plan: Plan, settings: runner.Settings, outcome: runner.Outcome, *, quiet: bool) -> None:
    """Runs the plan with progress where the user looks; `outcome` is filled meanwhile, and can be read after Ctrl-C. Raises UserError
    for files that are missing, and as `runner.run`."""
    preflight.require_files(plan)
    with contextlib.closing(progress.reporter(quiet)) as reporter:
        runner.run(plan, settings, reporter, outcome)


def folders(plan: Plan, settings: runner.Settings) -> list[Path]:
    """Where the plan's cells have records, in its order."""
    places = [runner.place(settings.out, job.cell) for job in plan.jobs]
    # A cell has no folder where another process holds its source: it was skipped before it was opened.
    return [folder for folder in places if (folder / store.CELL).exists()]
