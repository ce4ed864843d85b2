"""What a cell costs in network calls, known before it runs: those of a purification are counted by the rehearsal's walk on stand-ins,
those of an attack's own loop are what its INFO says of its parameters. For the plan that `--dry-run` prints, and for progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from purebench import registry
from purebench.plan.grid import Job
from purebench.running import tasks
from purebench.spec import Cell

if TYPE_CHECKING:
    from purebench.running.rehearsal import Walked

Calls = tuple[float, float]  # (forward, backward) of the networks, per image


def attack(cell: Cell, shape: list[int]) -> Calls | None:
    """The calls that the attack needs at most, classifier included; shape: [C,H,W] of the images. None where a plug-in's cannot be counted
    on stand-ins."""
    info, values = cell.attack.info, cell.attack.values
    gradients = registry.expression(info.get("gradient_calls", "0"), values)
    forwards = registry.expression(info.get("forward_calls", "0"), values)
    # An attack on the bare classifier passes no purifier.
    if info.get("bare"):
        return gradients + forwards, gradients
    once, gradient = purification(cell, shape), _gradient(cell, shape)
    if once is None or gradient is None:
        return None if gradients or forwards else (0, 0)
    return gradients * gradient[0] + forwards * once[0], gradients * gradient[1] + forwards * once[1]


def purification(cell: Cell, shape: list[int]) -> Calls | None:
    """The calls of one purification and classification, with all its votes; None where they cannot be counted on stand-ins."""
    walked = _walk(cell, shape)
    return (tasks.votes(cell) * (walked.forward + 1), tasks.votes(cell) * walked.backward) if walked else None


def work(job: Job) -> float:
    """Network calls per image, attack and judging together: what progress counts. A purification that cannot be counted is taken for one
    call of a network: progress then runs ahead."""
    calls = sum(purification(job.cell, job.shape) or (2, 0))
    # Twice: the clean image is judged beside the attacked one. And once more, bare.
    return sum(attack(job.cell, job.shape) or (0, 0)) + 2 * job.evals * calls + 1


def _gradient(cell: Cell, shape: list[int]) -> Calls | None:
    """Of one gradient: every network that was called forwards is passed once more, backwards; by `bpda`, the classifier alone; by
    `adjoint`, after the chain has been solved a second time, from its end, in one step more."""
    walked = _walk(cell, shape, surrogate=cell.surrogate is not None)
    if walked is None:
        return None
    forward, backward = walked.forward + 1, walked.backward
    backward += 1 if cell.gradient.name == "bpda" else forward
    if cell.gradient.name == "adjoint" and walked.steps:
        again = (walked.steps + 1) / walked.steps
        forward, backward = forward + round(again * walked.forward), backward + round(again * walked.backward)
    return tasks.votes(cell) * forward, tasks.votes(cell) * backward


def _walk(cell: Cell, shape: list[int], *, surrogate: bool = False) -> Walked | None:
    # Imported here: with it comes torch, which whoever only plans has no need of.
    from purebench.running import rehearsal

    try:
        return rehearsal.walks(cell, shape)[surrogate]
    except Exception:
        # Of a plan that nobody rehearsed. The cell will fail with it, and say so.
        return None
