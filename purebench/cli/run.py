"""`purebench run`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from purebench import errors
from purebench.cli.options import (
    AsJson,
    Attacks,
    Baselines,
    Classifier,
    Dataset,
    Defenses,
    Device,
    DryRun,
    Evals,
    Fresh,
    Gradients,
    Honest,
    Images,
    JudgePrecision,
    Logged,
    Memory,
    Only,
    Out,
    Precision,
    Preset,
    Quiet,
    Rows,
    Sanity,
    Score,
    Seeds,
    Subset,
    Threats,
    WorkerCount,
    request_of,
)
from purebench.cli.terminal import app, examples, note, say

if TYPE_CHECKING:
    from purebench.plan.grid import Plan, Request
    from purebench.running.runner import Outcome, Settings


@app.command(
    epilog=examples(
        "purebench run",
        "purebench run --defense coup --attack autoattack-rand",
        "purebench run -d diffpure -d coup -a pgd-eot:eot=20 --grad exact --grad adjoint --images 100",
        "purebench run -d coup -a 'transfer:from=(reverse-sde)' -t Linf:0.1 -t L2:0.5",
        "purebench run coup/1 --dataset digits --images 8",
        "purebench run my-grid.toml --dry-run",
    )
)
def run(
    preset: Preset = None,
    defense: Defenses = None,
    attack: Attacks = None,
    threat: Threats = None,
    grad: Gradients = None,
    dataset: Dataset = None,
    classifier: Classifier = None,
    score: Score = None,
    precision: Precision = None,
    judge_precision: JudgePrecision = None,
    images: Images = None,
    subset: Subset = None,
    seed: Seeds = None,
    evals: Evals = None,
    out: Out = Path("results"),
    device: Device = "auto",
    rows: Rows = None,
    workers: WorkerCount = None,
    memory: Memory = None,
    log: Logged = None,
    sanity: Sanity = False,
    honest: Honest = False,
    baselines: Baselines = False,
    only: Only = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a grid of defenses x attacks x threat models, and print its table. The same command again goes on where it stopped."""
    from purebench.running import preflight

    request = request_of(
        preset, defenses=defense, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score,
        images=images, subset=subset, seeds=seed, evals=evals, sanity=sanity, checks=sanity,
        honest=honest, baselines=baselines, only=only, precision=precision, judge_precision=judge_precision,
    )  # fmt: skip
    # What may run at all is decided there, for the Python API too; here are only options and messages.
    resources = preflight.Resources(device, rows, workers, memory, tuple(log or ()))
    plan, settings = preflight.prepare(request, resources, out, fresh=fresh, note=None if quiet else note)
    if dry_run:
        from purebench.running import estimate

        print(estimate.describe(plan, settings, as_json))
        return
    outcome = _work_off(plan, settings, quiet)
    _show_outcome(plan, settings, outcome, request, as_json, quiet)


def _work_off(plan: Plan, settings: Settings, quiet: bool) -> Outcome:
    """Runs the plan. Ctrl-C ends the command with its own exit code, after a line that says what is kept."""
    from purebench.running import runner, whole

    # Made here, so that it can be read after Ctrl-C.
    outcome = runner.Outcome()
    try:
        whole.work_off(plan, settings, outcome, quiet=quiet)
    except KeyboardInterrupt:
        # Not left to Typer, which would swallow it and know nothing of what is kept.
        note(f"{outcome.images} new images are kept; the same command goes on from there")
        raise typer.Exit(errors.INTERRUPTED) from None
    return outcome


def _show_outcome(
    plan: Plan, settings: Settings, outcome: Outcome, request: Request, as_json: bool, quiet: bool
) -> None:
    """The table of the plan's cells on stdout, and on stderr which of them failed; if one did, that is the exit code:
    that of a mistake where all that failed are the user's to mend."""
    from purebench.records import store as records
    from purebench.report import asked, sanity
    from purebench.running import whole

    # First, so that what is missing is known before the table without it is read.
    for cell, why in outcome.failed.items():
        say(f"error: cell {cell} failed: {why}")
    folders, folder = whole.folders(plan, settings), shlex.quote(str(settings.out))
    if folders and not quiet:
        layout = asked.layout_of(request.preset) if request.preset else None
        print(asked.rendered(layout, request, records.load_all(folders), "json" if as_json else "md", settings.out))
        if request.checks and not layout and not as_json:
            # After a run that did all that was asked for, nothing to check is no mistake.
            checked = sanity.judge(records.load_all(folders))
            print(f"\n{sanity.text(checked)}") if checked else say(f"note: {sanity.NOTHING}")
        verb = "figure" if layout and layout.figure else "table"
        say(f"next: {asked.command(request, verb, settings.out) if layout else f'purebench table {folder}'}")
    if outcome.failed:
        mistakes = any(isinstance(why, errors.Mistake) for why in outcome.failed.values())
        # A cell is known by the content of what it uses: with a file put right it is another one, and the failed one stays.
        more = "; with a file that was replaced it begins a new cell" if mistakes else ""
        once = "once that is mended, " if mistakes else ""
        say(f"hint: `purebench status {folder}` shows what is missing; {once}the same command goes on with it{more}")
        mended = all(isinstance(why, errors.Mistake) for why in outcome.failed.values())
        raise typer.Exit(errors.USAGE if mended else errors.FAILED)
