"""The stopping rule of Hill, Mitchell and Zhu (2021, "Stochastic Security", section 4), which DiffPure and ScoreOpt took over.

At every evaluation the combined logits of the attack's own `eot` purifications say which images seem broken; `verify` fresh ones of each of
those decide together. Broken is final, and the image is kept as it was then; the others are attacked on. The verdict `sticky`, never
broken, belongs to a defense that answers by so many purifications at once, and to an attacker who looks often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from purebench.attacks import Attacked, Running
from purebench.attacks.selection import selecting
from purebench.engine.defense import Defense, predicted
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, combine

Climbed = Callable[[int, Tensor, Tensor, Noise], Gradient]  # (iterate, images, labels, its draws) -> their gradient
Step = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (iterate, images, gradient, clean images) -> the next iterate


def attack(
    defense: Defense, x: Tensor, y: Tensor, noise: Noise, *, start: Tensor, natural: bool, gradient: Climbed, step: Step,
    steps: int, eot: int, combined: str, verify: int,
) -> Attacked:  # fmt: skip
    """`steps` steps from `start` (like x), with an evaluation before each and after the last; with `natural`, where `start` is not x, of x
    before all of them. `combined`: how several purifications' logits are one answer. An image that is broken costs no more.

    Verdict: never broken. Log: `broken_at`, the evaluation at which it broke (0: the clean image did), -1 for never; `stopped`; `nfe`.
    Random: iterate i's draws, (.., "iterate", i), also of the last; (.., "natural"); evaluation e's verifications, (.., "verify", e) of
    the role "select"."""
    x_adv, kept, broken_at = start, x.clone(), [-1] * len(x)
    running, alive = Running(len(x)), torch.arange(len(x))
    spent = [[0, 0] for _ in range(len(x))]

    def charge(places: Tensor, before: tuple[int, int, int]) -> None:
        for place in places.tolist():
            for kind in (0, 1):
                spent[place][kind] += (defense.spent.total()[kind] - before[kind]) // len(places)

    for evaluation in range(steps + 1 + natural):
        iterate = evaluation - natural
        here, draws = alive.to(x.device), noise.rows(noise.ids[alive], noise.samples[alive])
        own = draws.fork("iterate", iterate) if iterate >= 0 else draws.fork("natural")
        at, before = (x_adv if iterate >= 0 else x)[here], defense.spent.total()
        found = gradient(iterate, at, y[here], own) if 0 <= iterate < steps else None
        logits = found.logits if found else defense.draws(at, own, 0, eot).transpose(0, 1)
        charge(alive, before)

        broken = (predicted(combine(logits, combined, 0)) != y[here]).cpu()
        if broken.any():
            doubted, before = broken.nonzero()[:, 0], defense.spent.total()
            fresh = selecting(draws, "verify", evaluation).rows(draws.ids[doubted], draws.samples[doubted])
            answers = defense.draws(at[doubted.to(x.device)], fresh, 0, verify)
            charge(alive[doubted], before)
            broken[doubted] = (predicted(combine(answers, combined, 1)) != y[here[doubted.to(x.device)]]).cpu()
        for i in broken.nonzero()[:, 0].tolist():
            kept[alive[i]], broken_at[int(alive[i])] = at[i], evaluation

        if found:
            finite = torch.ones(len(x), dtype=torch.bool, device=x.device).index_put((here,), found.finite)
            moved = x_adv.index_put((here,), step(iterate, at, found.grad, x[here]))
            x_adv = running.step(iterate, replace(found, finite=finite), moved, x_adv)
        alive = alive[~broken]
        if not len(alive):
            break
    withstood = torch.tensor([at < 0 for at in broken_at], device=x.device)
    images = torch.where(withstood.view(-1, *[1] * (x.dim() - 1)), x_adv, kept)
    return Attacked(images, withstood, log={"broken_at": broken_at, "stopped": running.stopped, "nfe": spent})
