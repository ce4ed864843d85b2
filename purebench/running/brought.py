"""Images that a user brings (the attack `given`), held against the clean ones before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from purebench import datasets
from purebench.errors import UserError
from purebench.plan import given
from purebench.plan.given import Given
from purebench.plan.grid import Job, Plan
from purebench.spec import show

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 256  # clean images read at once


def of(job: Job) -> Given | None:
    """The images that the job's attack was given; None for an attack that makes its own. Raises UserError if they are others by now."""
    cell = job.cell
    key = cell.attack.info.get("images", "")
    if not key or key not in cell.attack.where:
        return None
    found = given.read(cell.attack.where[key], cell.dataset, job.shape, job.size, cell.subset)
    if found.digest != cell.attack.digest:
        raise UserError(
            f"`{found.place}` was changed during the run", "give the same command again, for the images of now"
        )
    return found


def check(plan: Plan, note: Callable[[str], None]) -> None:
    """Raises UserError for the first image that leaves its threat model. `note` is told of images that would flatter a defense although
    they are within it: of a smaller radius, rounded to 8 bits, or not attacked at all."""
    known = set()
    for job in plan.jobs:
        found = of(job)
        key = (job.cell.attack, job.cell.threat, job.cell.dataset, job.cell.subset)
        # The defenses and seeds of a grid share its images.
        if found is not None and key not in known:
            known.add(key)
            _check(job, found, note)


def _check(job: Job, found: Given, note: Callable[[str], None]) -> None:
    # Imported here: planning and the process that hands out work do without torch.
    import torch

    from purebench.running import evaluate

    cell, project = job.cell, job.cell.attack.values["project"]
    clean, order = evaluate.dataset(cell.dataset), datasets.order(job.size, cell.subset)
    farthest, same, outside, pixels = 0.0, 0, 0, True
    for first in range(0, len(found), BATCH):
        x = clean.take(order[first : min(first + BATCH, len(found))])[0]
        x_adv = torch.from_numpy(found.images[first : first + BATCH].copy())
        distance, inside = cell.threat.distance(x_adv, x), cell.threat.holds(x_adv, x)
        if not inside.all() and not project:
            at = int((~inside).nonzero()[0])
            raise UserError(
                f"image {first + at} of `{found.place}` is outside {cell.threat}: {float(distance[at]):.6g} away from the clean one",
                _advice(float(distance[at]), cell.threat.eps),
            )
        outside += int((~inside).sum())
        same += int((distance == 0).sum())
        farthest = max(farthest, float(distance.max()))
        pixels = pixels and _on_a_grid(x_adv)
    what, n = f"warning: `{found.place}`", len(found)
    if outside:
        note(f"{what}: {outside} of {n} images were outside {cell.threat}, and are put onto its edge")
    if same:
        note(f"{what}: {same} of {n} images are the clean ones: on these, nothing is attacked")
    if 0 < farthest < given.SHORT * cell.threat.eps:
        note(
            f"{what}: no image is farther than {farthest:.4g} from its clean one, and {cell.threat} allows {show(cell.threat.eps)}"
        )
    if pixels and same < n:
        note(
            f"{what}: every value is a multiple of 1/255: if the images were saved in 8 bits, they are not those that were found"
        )


def _on_a_grid(images: Tensor) -> bool:
    """Whether all values are whole pixels of 8 bits."""
    scaled = images * 255
    return bool(((scaled - scaled.round()).abs() < 1e-3).all())


def _advice(distance: float, eps: float) -> str:
    if distance <= 1.01 * eps:
        return "by rounding: compute in float32 and project last, or add `project=true`, which puts such images onto the edge"
    return (
        "another order of images, another radius or another norm? Image k is that of position k of the run, as "
        "`purebench.module(..).images(n)` gives them; `project=true` puts images of a minimal-norm attack onto the edge"
    )
