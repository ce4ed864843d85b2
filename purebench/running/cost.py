"""What a cell costs in network calls, known before it runs: those of a purification are counted by the rehearsal's walk on stand-ins,
those of an attack's own loop are what its INFO says of its parameters. For the plan that `--dry-run` prints, and for progress."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from purebench import registry
from purebench.plan.grid import Job
from purebench.running import tasks
from purebench.spec import Cell, Part, Resolved

if TYPE_CHECKING:
    from purebench.running.rehearsal import Walked

Calls = tuple[float, float]  # (forward, backward) of the networks, per image


def attack(cell: Cell, shape: list[int], *, classifier: bool = False) -> Calls | None:
    """The calls that the attack needs at most, of all networks or of the classifier alone; shape: [C,H,W] of the images. None where a
    plug-in's cannot be counted on stand-ins."""
    info, values = cell.attack.info, {**cell.attack.values, "norm": cell.threat.norm}
    if cell.attack.inner:
        # An image that withstands all of them meets each, by its own gradient.
        each = [attack(_alone(cell, one), shape, classifier=classifier) for one in cell.attack.inner]
        alone = attack(_alone(cell, replace(cell.attack, inner=())), shape, classifier=classifier)
        known = [calls for calls in (*each, alone) if calls is not None]
        return (sum(f for f, _ in known), sum(b for _, b in known)) if len(known) > len(each) else None
    gradients = registry.of_info(cell.attack.name, info.get("gradient_calls", "0"), values)
    forwards = registry.of_info(cell.attack.name, info.get("forward_calls", "0"), values)
    # Of the score network alone, which an attack may follow beside the purifier; an energy is differentiated for it.
    follows = 0 if classifier else registry.of_info(cell.attack.name, info.get("score_calls", "0"), values)
    inside = follows if cell.scores and cell.scores[0].info.get("energy") else 0
    # An attack on the bare classifier passes no purifier.
    if info.get("bare"):
        return gradients + forwards, gradients
    once, gradient = purification(cell, shape, classifier=classifier), _gradient(cell, shape, classifier)
    if once is None or gradient is None:
        return None if gradients or forwards else (0, 0)
    return (
        gradients * gradient[0] + forwards * once[0] + follows,
        gradients * gradient[1] + forwards * once[1] + inside,
    )


def _alone(cell: Cell, inner: Resolved) -> Cell:
    """The cell of an attack inside the cell's, by that one's gradient where it has but one."""
    only = inner.info.get("gradients", [])
    gradient = replace(cell.gradient, part=Part(only[0])) if len(only) == 1 else cell.gradient
    return replace(cell, attack=inner, gradient=gradient, surrogate=cell.surrogate if len(only) != 1 else None)


def purification(cell: Cell, shape: list[int], *, classifier: bool = False) -> Calls | None:
    """The calls of one purification and classification, with all its votes; None where they cannot be counted on stand-ins."""
    walked = _walk(cell, shape)
    if walked is None:
        return None
    forward, backward = _counted(walked, classifier)
    return tasks.votes(cell) * (forward + 1), tasks.votes(cell) * backward


def calls(job: Job, *, classifier: bool = False) -> Calls:
    """Network calls per image, attack and judging together. A purification that cannot be counted is taken for one call of a network."""
    judging, attacking = (count(job.cell, job.shape, classifier=classifier) for count in (purification, attack))
    (forward, backward), attacking = judging or (2 - classifier, 0), attacking or (0, 0)
    # Twice: the clean image is judged beside the attacked one. And once more, bare.
    return attacking[0] + 2 * job.evals * forward + 1, attacking[1] + 2 * job.evals * backward


def work(job: Job) -> float:
    """The sum of the calls: what progress counts. Where they cannot be counted, it runs ahead."""
    return sum(calls(job))


def _counted(walked: Walked, classifier: bool) -> tuple[int, int]:
    """What a purification asks of all networks, or of the classifier inside it."""
    return walked.guidance if classifier else (walked.forward, walked.backward)


def _gradient(cell: Cell, shape: list[int], classifier: bool) -> Calls | None:
    """Of one gradient: every network that was called forwards is passed once more, backwards; by `bpda`, the classifier alone; by
    `adjoint`, after the chain has been solved a second time, from its end, in one step more."""
    walked = _walk(cell, shape, surrogate=cell.surrogate is not None)
    if walked is None:
        return None
    once, inside = _counted(walked, classifier)
    forward, backward = once + 1, inside
    backward += 1 if cell.gradient.name == "bpda" else forward
    if cell.gradient.name == "adjoint" and walked.steps:
        again = (walked.steps + 1) / walked.steps
        forward, backward = forward + round(again * once), backward + round(again * inside)
    return tasks.votes(cell) * forward, tasks.votes(cell) * backward


def _walk(cell: Cell, shape: list[int], *, surrogate: bool = False) -> Walked | None:
    # Imported here: with it comes torch, which whoever only plans has no need of.
    from purebench.running import rehearsal

    try:
        return rehearsal.walks(cell, shape)[surrogate]
    except Exception:
        # Of a plan that nobody rehearsed. The cell will fail with it, and say so.
        return None
