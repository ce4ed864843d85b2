"""Several attacks one after the other, from cheap to strong, each on the images that withstood those before.

AutoAttack's idea with a judge for random defenses: an image counts as broken once all of `select` purifications answer wrongly, by draws
that no attack saw and that do not judge it afterwards (role `select`); and of all that was tried on an image, the one with the fewest right
answers on these draws is returned, of equals that of the largest mean margin, and never the clean image in place of
an attacked one. One lucky miss breaks nothing, and no image comes back clean because one forward was unlucky.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.attacks.selection import closer, selecting, standing
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.spec import Part, ThreatModel

INFO = {
    "cascade": {
        "summary": "attacks one after the other, each on what withstood those before: cascade:attacks=[(ATTACK),(ATTACK)]",
        # Of these, what all of its attacks can use that have a choice.
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "parts": "attacks",
        "threats": ["Linf", "L2", "L1", "StAdv"],
        "verdict": "cascade",
        # Beside the attacks' own: the clean image and each attack's.
        "gradient_calls": "0",
        "forward_calls": "(len(attacks) + 1) * select",
        "version": 1,
        "requires": ["len(attacks) >= 1"],
        "differences": "no paper's: the order and the selection are ours",
    }
}


def cascade(
    made: Sequence[tuple[str, Attack]],
    *,
    attacks: Sequence[Part | str] = ("transfer-pgd", "bpda-eot", "pgd-eot", "apgd-ce"),
    select: int = 5,
) -> Attack:
    """`made`: (name, attack) of each of them, from the harness; attacks: as parts, from cheap to strong; select: purifications that decide
    whether an image is broken, and which of the attacked images is kept. verdict: whether one of them still answers rightly.

    Random: attack i draws from (.., "attack", i); the selection from the same path in a role of its own."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        chosen = _Chosen(defense, x, y, noise, select)
        for i, (name, one) in enumerate(made):
            at = chosen.left()
            if not len(at):
                break
            here = at.to(x.device)
            # Of the survivors of the whole batch at once, so that they fill the rows of a network call.
            rows = noise.rows(noise.ids[at], noise.samples[at]).fork("attack", i)
            found = one(defense, x[here].clone(), y[here].clone(), threat, rows)
            chosen.add(name, at, found)
        return Attacked(chosen.x_adv, chosen.right > 0, chosen.log(), chosen.flow)

    return attack


class _Chosen:
    """Of each image the attacked one with the fewest right answers so far, of equals that of the largest mean margin."""

    def __init__(self, defense: Defense, x: Tensor, y: Tensor, noise: Noise, draws: int):
        self.defense, self.x, self.y, self.draws = defense, x, y, draws
        self.noise = selecting(noise)
        self.nfe = torch.zeros(len(x), 2, dtype=torch.int64)
        self.seen = defense.spent.total()
        self.x_adv = x.clone()
        self.flow: Tensor | None = None
        everyone = torch.arange(len(x))
        self.right, margins = self.standing(x, everyone)
        # The clean image is not kept where an attacked one is no worse for the defense: five draws may tell too little.
        self.margin = torch.full_like(margins, -torch.inf)
        self.broken_by = ["clean" if not right else None for right in self.right.tolist()]
        self.stopped: list[int | None] = [None] * len(x)
        self.not_finite: list[str | None] = [None] * len(x)
        self.charge(everyone)

    def left(self) -> Tensor:
        """The images that a purification still answers rightly, by their place in the batch."""
        return (self.right > 0).nonzero()[:, 0].cpu()

    def standing(self, x_adv: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) how many of the selection's purifications of x_adv (n,C,H,W), images `at` of the batch, are classified rightly, and their
        mean margin."""
        rows = self.noise.rows(self.noise.ids[at], self.noise.samples[at])
        return standing(self.defense, x_adv, self.y[at.to(self.y.device)], rows, self.draws)

    def add(self, name: str, at: Tensor, found: Attacked) -> None:
        """What an attack made of the images `at`."""
        here = at.to(self.x.device)
        x_adv = found.x_adv.detach().to(self.x)
        # An image that is not finite is none: the one before stays.
        finite = x_adv.isfinite().flatten(1).all(1)
        x_adv = x_adv.where(finite.view(-1, 1, 1, 1), self.x[here])
        right, margins = self.standing(x_adv, at)
        better = closer((right, margins), (self.right[here], self.margin[here])) & finite
        taken = here[better]
        self.x_adv[taken], self.right[taken], self.margin[taken] = x_adv[better], right[better], margins[better]
        if found.flow is not None:
            flow = self.x.new_zeros(len(self.x), 2, *self.x.shape[2:]) if self.flow is None else self.flow
            flow[taken] = found.flow.detach().to(self.x)[better]
            self.flow = flow
        nothing = [None] * len(at)
        stopped, not_finite = (found.log.get(word) or nothing for word in ("stopped", "not_finite"))
        for place, i in enumerate(at.tolist()):
            self.not_finite[i] = self.not_finite[i] or not_finite[place]
            if better[place]:
                self.stopped[i] = stopped[place]
                self.broken_by[i] = None if right[place] else name
        self.charge(at, found.log.get("nfe"))

    def charge(self, at: Tensor, own: Sequence[tuple[int, int]] | None = None) -> None:
        """Network calls since the last charge, to the images `at`: what an attack counted for itself, and the rest in equal parts."""
        now = self.defense.spent.total()
        counted = torch.tensor([list(calls) for calls in own]) if own is not None else torch.zeros(len(at), 2).long()
        for kind in range(2):
            rest = now[kind] - self.seen[kind] - int(counted[:, kind].sum())
            counted[:, kind] += rest // len(at)
            counted[: rest % len(at), kind] += 1
        self.nfe[at] += counted
        self.seen = now

    def log(self) -> dict[str, Any]:
        told = self.defense.not_finite
        seen = [why or told.get(i) for why, i in zip(self.not_finite, self.noise.ids.tolist(), strict=True)]
        nfe = [tuple(calls) for calls in self.nfe.tolist()]
        return {"nfe": nfe, "broken_by": self.broken_by, "stopped": self.stopped, "not_finite": seen}
