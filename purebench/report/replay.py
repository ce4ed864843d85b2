"""Recorded images on their way through their defense once more: the attacked image of a record, or the clean one, and the judge's own first
purification of it, whose answer the record holds. Needs the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from purebench.engine import chain
from purebench.engine import device as device_module
from purebench.engine.defense import Defense, predicted
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan.resolved import Component
from purebench.records import store as records
from purebench.records.store import Log, Record
from purebench.report import images, recorded
from purebench.running import evaluate
from purebench.running.tasks import default_rows


def first_right(line: Record, judged: str = "adversarial") -> bool:
    """Whether the judge's first purification was classified rightly; judged: of the `adversarial` image, or of the `clean` one."""
    return bool(line[judged][0] == line["label"])


@dataclass
class Replay:
    """The records of one cell with its networks. `lines`: those of the images that are asked for; `given`: datasets of the user's own;
    `unattacked`: the clean images are purified, whatever attacked them. Raises UserError where the defense of now is not the one that was
    judged."""

    log: Log
    lines: Sequence[Record]
    device: torch.device = field(default_factory=lambda: device_module.setup("auto"))
    given: Sequence[Component] = ()
    unattacked: bool = False

    def __post_init__(self) -> None:
        self.cell = recorded.defended(self.log, self.given)
        # As recorded: of how many rows a network call is, its last digits depend on.
        rows = (self.log.runs[-1].get("rows") if self.log.runs else None) or default_rows(self.cell)
        self.defense: Defense = evaluate.build_defense(self.cell, self.device, rows=int(rows), judging=True)

    @property
    def noise(self) -> Noise:
        """The draws of the judge's first purification."""
        index = torch.tensor([line["index"] for line in self.lines])
        return Noise(self.cell.seed, "judge", (), index, torch.zeros_like(index))

    @property
    def labels(self) -> Tensor:
        return torch.tensor([line["label"] for line in self.lines], device=self.device)

    @property
    def judged(self) -> str:
        """The key of a line that holds the answers to what is purified here."""
        return "clean" if self.unattacked else "adversarial"

    def clean(self) -> Tensor:
        """(B,C,H,W): the images of the dataset."""
        return self._clean

    @cached_property
    def _clean(self) -> Tensor:
        # Once: of many datasets a process keeps few open.
        return evaluate.dataset(self.cell.dataset).take([line["index"] for line in self.lines])[0].to(self.device)

    def start(self) -> Tensor:
        """(B,C,H,W): what is purified."""
        return self.clean() if self.unattacked else self.attacked()

    def attacked(self) -> Tensor:
        """(B,C,H,W): what the attack made of them, as stored. Raises UserError where the images were not kept."""
        found = images.adversarial(self.log, self.lines)
        if len(found) < len(self.lines):
            raise UserError(
                f"`{self.log.folder}` has no images (`{records.ADVERSARIAL}`), or not those of its lines",
                "run it again, or draw another figure",
            )
        stack = np.stack([found[line["position"]] for line in self.lines])
        return torch.from_numpy(stack).to(self.device)

    def purified(self) -> Tensor:
        """(B,C,H,W): the judge's first purification of them."""
        return self.defense.purify(self.start(), self.noise)

    def answers(self, purified: Tensor) -> list[int]:
        """The classes of purified images (B,C,H,W); -1 for what is not finite."""
        return predicted(self.defense.undefended().logits(purified, self.noise)).tolist()

    def walk(self, see: Callable[[int, Tensor], None], noise: float | None = None) -> int:
        """Shows every state of that purification as images (B,C,H,W) in [0,1], from those of `start` (0) to the purified; noise: a factor
        on its normal draws, the defense's own for None. Returns how many steps it has."""
        purifier, scale = self.defense.purifier, self.defense.noise if noise is None else noise
        x = self.start()

        def keep(k: int, state: chain.State) -> None:
            # Before its first step a chain may have added noise: the image itself comes first.
            see(k, purifier.finish(state) if k else x)

        chain.run(purifier, x, self.noise.scaled(scale), on_state=keep)
        return purifier.n

    def score_norms(self, x: Tensor) -> list[float]:
        """||s(x)|| of images (B,C,H,W) in [0,1]: sigma times the score, at ADP's level; of other defenses at the model's smallest."""
        score = self.defense.score
        level = getattr(self.defense.purifier, "levels", [score.sigma_min])[0]
        with torch.no_grad():
            return score.direction(2 * x - 1, level).flatten(1).norm(dim=1).tolist()
