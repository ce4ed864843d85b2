"""Everything that is checked before the first batch: a request becomes a plan that can run, or one message that says why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from purebench import assets, registry
from purebench.errors import DOWNLOAD, UserError, unknown
from purebench.plan import grid
from purebench.plan import resolved as components
from purebench.records import store
from purebench.running import runner, tasks
from purebench.spec import Part

AUTO = "auto"  # rows by measurement


@dataclass(frozen=True)
class Resources:
    """What a run may use, as a user says it; None: what suits the machine. Nothing here changes a number (`rows` may, in the last bits)."""

    device: str = "auto"
    rows: int | str | None = None  # a number, or text such as 64 or auto
    workers: int | None = None
    memory: int | str | None = None  # per worker: bytes, or text such as 4G
    log: tuple[str, ...] = ()  # keys that lines of new images have besides: `tasks.LOGS`


def prepare(
    request: grid.Request,
    resources: Resources,
    out: Path,
    *,
    fresh: bool = False,
    note: Callable[[str], None] | None = None,
) -> tuple[grid.Plan, runner.Settings]:
    """The validated plan, every defense of it walked once on stand-ins, and the settings that `runner.run` takes.

    out: the folder of records; `fresh`: start over there; `note` is given each line that the plan has for the user. Raises UserError for
    the first thing that is wrong. What is missing in the cache is no error here: see `require_files`.
    """
    notes: list[str] = []
    try:
        plan = grid.build(request, notes)
    except UserError as error:
        # Which dataset was found, and how it was read: the refusal may be about that.
        for one in dict.fromkeys(notes):
            is_new = isinstance(one, grid.OfDataset) and one.removeprefix("dataset: ") not in error.message
            if is_new and note is not None:
                note(one)
        raise
    check_counts(resources)
    if (out / store.CELL).exists():
        raise UserError(
            f"`--out {out}` is the folder of one cell", f"name the one above it: `--out {shlex.quote(str(out.parent))}`"
        )
    # Before the rehearsal may refuse the plan: a note says which dataset was taken, and so what the refusal is about.
    # Not so what it says of a file's weights: whether they fit is not known yet.
    of_weights = [line for line in plan.notes if isinstance(line, grid.OfWeights)]
    if note is not None:
        for line in [*plan.notes, *_of_other_content(plan, out)]:
            if line not in of_weights:
                note(line)
    # Imported here: it loads torch, and a mistake found above is then told at once.
    from purebench.running import brought, rehearsal

    check_precision(plan, resources.device)
    _check_datasets(plan)
    rehearsal.check(plan)
    if note is not None:
        for line in of_weights:
            note(line)
    # Clean images that are not here cannot be compared with; no run goes beyond `require_files` without them.
    if not plan.missing:
        brought.check(plan, note or (lambda line: None))
    workers = _workers(plan, resources)
    log = logs(resources.log, plan, note)
    rows = rows_of(resources.rows)
    fixed = None if isinstance(rows, str) else rows
    settings = runner.Settings(out, resources.device, fixed, workers, in_bytes(resources.memory), fresh, log)
    if rows == AUTO:
        from purebench.running import sizes

        settings.sizes = sizes.choose(plan, settings, note)
    rehearsal.check_memory(plan, settings.memory, settings.rows_of)
    return plan, settings


def _check_datasets(plan: grid.Plan) -> None:
    """Reads the datasets that a plan knows by their names alone, where they are here: a file that is cut or missing is told now, and not by
    a worker."""
    from purebench.running import evaluate

    for part in dict.fromkeys(job.cell.dataset for job in plan.jobs):
        whole = components.of("dataset", Part(part.key, tuple({**part.values, **part.where}.items())))
        while whole.inner:
            whole = whole.inner
        # The others were read for their hash.
        if not part.code and "digest" in whole.info and not whole.missing:
            evaluate.dataset(part)


def _of_other_content(plan: grid.Plan, out: Path) -> list[str]:
    """A line for each file or folder of the user's that recorded cells know under its name with another content: it was changed since."""
    used = {(kind, str(part)): part for job in plan.jobs for kind, part in job.cell.parts().items() if part.where}
    if not used:
        return []
    found: dict[tuple[str, str], int] = {}
    for folder in store.cells([out]) if out.is_dir() else []:
        try:
            cell = store.read_cell(folder)["cell"]
        except UserError:
            continue  # told by whoever needs it
        for (kind, name), part in used.items():
            theirs = store.parts(cell).get(kind, {}).get("hash", part.digest)
            if cell.get(kind) == name and theirs != part.digest:
                found[kind, name] = found.get((kind, name), 0) + 1
    return [
        f"warning: {count} cell{'s' * (count > 1)} in `{out}` had another content of the {kind} `{name}`, which was changed since: kept, "
        "and in every table apart from what is computed now"
        for (kind, name), count in found.items()
    ]


def check_precision(plan: grid.Plan, device: str) -> None:
    """Raises UserError for a precision that the device has not, or that would change nothing there."""
    words = {str(word) for job in plan.jobs for model in job.cell.scores for word in model.options.values()}
    if not words:
        return
    # Imported here: only who asks for a precision waits for torch to look.
    import torch

    from purebench.engine import precision

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if "tf32" in words and kind != "cuda":
        raise precision.no_tf32(kind)
    # A device that is not there is refused by whoever sets it up.
    if kind == "cuda" and torch.cuda.is_available():
        for word in sorted(words):
            precision.check(word, torch.device(device))


def _workers(plan: grid.Plan, resources: Resources) -> int:
    """How many processes compute. Raises UserError for several where a component is an object of this one."""
    targets = [target for job in plan.jobs for target in job.cell.targets().values()]
    objects = [target for target in targets if registry.is_object(target)]
    if not objects:
        return resources.workers or runner.default_workers(resources.device)
    if resources.workers not in (None, 1):
        raise UserError(
            f"{resources.workers} workers: `{objects[0]}` is an object of this process, which no worker has",
            "leave workers out, or put it into a file and name it: FILE.py:NAME",
        )
    return 1


def require_files(plan: grid.Plan) -> None:
    """Raises UserError with the command that brings them if checkpoints or data are missing."""
    if plan.missing:
        # All at once: whoever fetches one by one would come back as often.
        hint = f"{assets.bring(plan.missing)}; `--dry-run` works without"
        raise UserError(f"not in the cache: {', '.join(plan.missing)}", hint, DOWNLOAD)


def check_counts(resources: Resources) -> None:
    """Raises UserError for fewer rows or workers than one."""
    rows, workers = rows_of(resources.rows), resources.workers
    if isinstance(rows, int) and rows < 1:
        raise UserError(
            f"`--rows {rows}`: a network call has at least one row", "leave it out for the dataset's default"
        )
    if workers is not None and workers < 1:
        raise UserError(f"`--workers {workers}`: at least one process is needed", "leave it out for one per core")


def rows_of(rows: int | str | None) -> int | str | None:
    """`--rows` as asked for: a number, AUTO, or None. Raises UserError for other text."""
    if rows is None or isinstance(rows, int) or rows == AUTO:
        return rows
    if not re.fullmatch(r"\s*[+-]?\d{1,9}\s*", rows):
        raise UserError(f"`--rows {rows}` is no number of rows", f"write a whole number, or `{AUTO}`")
    return int(rows)


def logs(asked: Sequence[str], plan: grid.Plan, note: Callable[[str], None] | None = None) -> tuple[str, ...]:
    """The words of `--log`, each may be several with commas between. Raises UserError for an unknown one, and for `score_norm` where
    no defense has a score model; `note` is told of those that have none beside others that do."""
    words = tuple(dict.fromkeys(word.strip() for text in asked for word in text.split(",") if word.strip()))
    for word in words:
        if word not in tasks.LOGS:
            raise unknown("log", word, tasks.LOGS)
    without = sorted({str(job.cell.defense) for job in plan.jobs if not job.cell.scores})
    if "score_norm" in words and without:
        if all(not job.cell.scores for job in plan.jobs):
            raise UserError(
                f"`--log score_norm`: {', '.join(without)} has no score model",
                "`purebench list defenses` says which use one",
            )
        if note is not None:
            note(f"--log score_norm: not of {', '.join(without)}, which has no score model")
    return words


def in_bytes(memory: int | str | None) -> int | None:
    """4G, 512M, 1.5GiB or a plain number of bytes, as text or not; None stays None. Raises UserError for anything else."""
    if memory is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(memory), re.IGNORECASE)
    # No memory at all holds not one state: that would be told much later, and by a worker.
    if not found or float(found[1]) == 0:
        raise UserError(f"cannot read the memory size `{memory}`", "write it as 512M or 4G")
    # The blank stands for no unit, at power 0.
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
