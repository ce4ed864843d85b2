"""`purebench.run`: the command `purebench run` as a function."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from purebench import foreign
from purebench.api import given
from purebench.api.result import Result
from purebench.errors import FAILED, UserError
from purebench.plan.grid import Request
from purebench.records import store
from purebench.running import preflight, runner, whole
from purebench.spec import place


def run(
    preset: str | None = None,
    *,
    defense: object = None,
    attack: object = None,
    threat: object = None,
    grad: object = None,
    dataset: object = None,
    classifier: object = None,
    score: object = None,
    precision: str | None = None,
    judge_precision: str | None = None,
    images: int | None = None,
    subset: int | None = None,
    seed: object = None,
    evals: int | None = None,
    out: str | Path = "results",
    device: str = "auto",
    rows: int | str | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    log: object = None,
    sanity: bool = False,
    honest: bool = False,
    baselines: bool = False,
    only: object = None,
    fresh: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    **plural: object,
) -> Result:
    """Runs a grid of defenses x attacks x threat models, as `purebench run` does: the same arguments, the same records in `out`, gone on
    with by the same call.

    A `defense`, `attack`, `threat`, `grad` or `seed` is one or a list; `defenses`, .. mean the same. A defense, attack, classifier, score
    model or dataset is a PART such as "coup:t=0.1", or an object: with one, all runs in this process. `images`: how many test images;
    `evals`: fresh purifications that judge each; `precision`, `judge_precision`: of score networks, "fp32", "tf32" or "bf16"; `log`:
    "score_norm", "moved" or both, more in the lines of new images; what is not given is the preset's or the dataset's. `dry_run` prints the
    plan and its estimated time, and runs nothing. `quiet`: no notes and no progress.

    Returns the cells of this call, also those that were recorded before. Raises UserError for the first thing that is wrong, and where no
    cell has a number. After Ctrl-C what was computed is kept.
    """
    arguments = {
        "defense": defense, "attack": attack, "threat": threat, "grad": grad, "dataset": dataset, "classifier": classifier,
        "score": score, "images": images, "subset": subset, "seed": seed, "evals": evals, "sanity": sanity, "honest": honest,
        "baselines": baselines, "only": only, "precision": precision, "judge_precision": judge_precision,
    }  # fmt: skip
    arguments = given.merged(arguments, plural)
    objects = given.objects(arguments)
    resources = _resources(device, rows, workers, memory, log)
    settings = {"fresh": fresh, "dry_run": dry_run, "quiet": quiet}
    settings = {name: given.truth(name, value) for name, value in settings.items()}
    with foreign.lent():
        request = given.request(preset, arguments)
        request = dataclasses.replace(request, checks=request.sanity)
        with _as_they_came(objects):
            return _work_off(request, resources, _folder(out), **settings)


def _as_they_came(objects: list[object]) -> AbstractContextManager[None]:
    if not objects:
        return nullcontext()
    # Imported here: it loads torch, which a process that hands out work to others does without.
    from purebench.api import kept

    return kept.as_they_came(objects)


def _work_off(
    request: Request, resources: preflight.Resources, out: Path, *, fresh: bool, dry_run: bool, quiet: bool
) -> Result:
    plan, settings = preflight.prepare(request, resources, out, fresh=fresh, note=None if quiet else _note)
    outcome = runner.Outcome()
    if dry_run:
        from purebench.running import estimate

        print(estimate.describe(plan, settings, False))
    else:
        try:
            whole.work_off(plan, settings, outcome, quiet=quiet)
        except KeyboardInterrupt:
            _note(f"{outcome.images} new images are kept in {out}; the same call goes on from there")
            raise
    logs = store.load_all(whole.folders(plan, settings))
    _tell_failures(outcome, any(store.judged(log) for log in logs), quiet)
    return Result(logs, request, out, failed=dict(outcome.failed))


def _tell_failures(outcome: runner.Outcome, some: bool, quiet: bool) -> None:
    """Raises UserError where cells failed and there is no number at all; else says which, as there is something to return."""
    reasons = [f"cell {cell} failed: {why}" for cell, why in outcome.failed.items()]
    if reasons and not some:
        raise UserError(reasons[0], f"{len(reasons)} cells failed" if len(reasons) > 1 else "", FAILED)
    for reason in reasons if not quiet else ():
        _note(f"error: {reason}")


def _resources(
    device: object, rows: object, workers: object, memory: int | str | None, log: object = None
) -> preflight.Resources:
    # str: a torch.device is one as text, too.
    words = (log,) if isinstance(log, str) else log or ()
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise UserError(f"`log={given.shown(log)}` is no key, nor a list of them", 'write log=["score_norm", "moved"]')
    return preflight.Resources(
        str(device),
        rows if isinstance(rows, str) else given.count("rows", rows),
        given.count("workers", workers),
        memory,
        tuple(words),
    )


def _folder(out: object) -> Path:
    if not isinstance(out, str | Path) or not str(out):
        raise UserError(f"`out={given.shown(out)}` is no folder", 'write out="results"')
    return place(str(out))


def _note(line: str) -> None:
    print(f"purebench: {line}", file=sys.stderr, flush=True)
