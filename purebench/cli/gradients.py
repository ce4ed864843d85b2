"""What an attacker's gradients are worth: `purebench gradcheck`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from purebench.cli.options import (
    PARTS,
    AsJson,
    Classifier,
    Dataset,
    Device,
    Evals,
    Gradients,
    Memory,
    Out,
    Quiet,
    Rows,
    Score,
    Subset,
    Threats,
    WorkerCount,
    request_of,
)
from purebench.cli.terminal import app, examples, note, say

if TYPE_CHECKING:
    from purebench.plan.grid import Plan
    from purebench.running.runner import Settings


@app.command(
    epilog=examples(
        "purebench gradcheck -d diffpure -d coup",
        "purebench gradcheck -d scoreopt-n --grad bpda --grad 'surrogate:defense=(one-shot:sigma=0.25)' --images 16",
        "purebench gradcheck -d scoreopt-n:steps=1 -d scoreopt-n:steps=5 -d scoreopt-n:steps=20 --success",
        "purebench gradcheck -d coup --success -a pgd-eot:steps=40,eot=20 --images 64",
    )
)
def gradcheck(
    defense: Annotated[list[str] | None, Option("-d", "--defense", metavar="PART", help=PARTS)] = None,
    grad: Gradients = None,
    images: Annotated[int | None, Option(metavar="N", help="how many test images [default: 8]")] = None,
    success: Annotated[
        bool, Option("--success", help="also attack the images by each gradient: cells beside the others")
    ] = False,
    attack: Annotated[
        str | None, Option("-a", "--attack", metavar="PART", help="by what [default: pgd-eot:steps=20,eot=8]")
    ] = None,
    threat: Threats = None,
    dataset: Dataset = None,
    classifier: Classifier = None,
    score: Score = None,
    subset: Subset = None,
    seed: Annotated[int | None, Option(metavar="S", help="seed of all noise")] = None,
    evals: Evals = None,
    out: Out = Path("results"),
    device: Device = "auto",
    rows: Rows = None,
    workers: WorkerCount = None,
    memory: Memory = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Hold each gradient of a defense against the exact one on real images: relative error, cosine, signs; how the mean over EOT draws
    varies; the exact one against finite differences. Written to gradcheck.json beside the records; tables quote it."""
    from purebench.records import gradchecks
    from purebench.records import store as records
    from purebench.report import gradchecks as words
    from purebench.running import gradcheck as checking
    from purebench.running import preflight

    request = request_of(
        None, defenses=defense, attacks=(attack,) if attack else (), threats=threat, grads=grad, dataset=dataset, classifier=classifier,
        score=score, images=images, subset=subset, seeds=None if seed is None else (seed,), evals=evals,
    )  # fmt: skip
    resources = preflight.Resources(device, rows, workers, memory)
    asked, plan, settings = checking.prepare(request, resources, out, note=None if quiet else note)
    preflight.require_files(plan)
    if success:
        _attack(plan, settings, quiet)
    found = []
    for one in asked:
        check = checking.check(one, settings)
        if success:
            places = [settings.out / job.cell.id for job in one.jobs.values()]
            logs = records.load_all([place for place in places if (place / records.CELL).exists()])
            check["success"] = words.success(logs)
        # At once: what the next defense may fail at costs nothing of this one.
        path = gradchecks.save(out, check)
        found.append(check)
    print(words.render(found, as_json))
    say(f"wrote {path}")


def _attack(plan: Plan, settings: Settings, quiet: bool) -> None:
    """Runs the cells; what failed is told, and missing from the numbers."""
    import typer

    from purebench import errors
    from purebench.running import runner, whole

    outcome = runner.Outcome()
    try:
        whole.work_off(plan, settings, outcome, quiet=quiet)
    except KeyboardInterrupt:
        note(f"{outcome.images} new images are kept; the same command goes on from there")
        raise typer.Exit(errors.INTERRUPTED) from None
    for cell, why in outcome.failed.items():
        say(f"error: cell {cell} failed: {why}")
