"""Recorded images on their way through their defense once more: the attacked image of a record, and the judge's own first purification of
it, whose answer the record holds. Needs the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from purebench.engine import chain
from purebench.engine import device as device_module
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.records import store as records
from purebench.records.store import Log, Record
from purebench.report.recorded import planned
from purebench.running import evaluate
from purebench.running.tasks import default_rows


def first_right(line: Record) -> bool:
    """Whether the judge's first purification of an attacked image was classified rightly."""
    return bool(line["adversarial"][0] == line["label"])


@dataclass
class Replay:
    """The records of one cell with its networks. `lines`: those of the images that are asked for."""

    log: Log
    lines: Sequence[Record]
    device: torch.device = field(default_factory=lambda: device_module.setup("auto"))

    def __post_init__(self) -> None:
        self.cell = planned(self.log, attack=True).cell
        self.defense: Defense = evaluate.build_defense(self.cell, self.device, rows=default_rows(self.cell))

    @property
    def noise(self) -> Noise:
        """The draws of the judge's first purification."""
        index = torch.tensor([line["index"] for line in self.lines])
        return Noise(self.cell.seed, "judge", (), index, torch.zeros_like(index))

    @property
    def labels(self) -> Tensor:
        return torch.tensor([line["label"] for line in self.lines], device=self.device)

    def clean(self) -> Tensor:
        """(B,C,H,W): the images of the dataset."""
        return evaluate.dataset(self.cell.dataset).take([line["index"] for line in self.lines])[0].to(self.device)

    def attacked(self) -> Tensor:
        """(B,C,H,W): what the attack made of them, as stored. Raises UserError where the images were not kept."""
        shape = evaluate.shape(self.cell)
        size = 4 * shape[0] * shape[1] * shape[2]
        path = self.log.folder / records.ADVERSARIAL
        if not path.is_file():
            raise UserError(
                f"`{self.log.folder}` has no images (`{path.name}`)", "run it again, or draw another figure"
            )
        rows = []
        with path.open("rb") as file:
            for line in self.lines:
                file.seek(line["position"] * size)
                rows.append(file.read(size))
        return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32).view(-1, *shape).to(self.device)

    def purified(self) -> Tensor:
        """(B,C,H,W): the judge's first purification of the attacked images."""
        return self.defense.purify(self.attacked(), self.noise)

    def walk(self, see: Callable[[int, Tensor], None], noise: float | None = None) -> int:
        """Shows every state of that purification as images (B,C,H,W) in [0,1], from the attacked ones (0) to the purified; noise: a factor
        on its normal draws, the defense's own for None. Returns how many steps it has."""
        purifier, scale = self.defense.purifier, self.defense.noise if noise is None else noise
        x = self.attacked()

        def keep(k: int, state: chain.State) -> None:
            # Before its first step a chain may have added noise: the attacked image comes first.
            see(k, purifier.finish(state) if k else x)

        chain.run(purifier, x, self.noise.scaled(scale), on_state=keep)
        return purifier.n

    def score_norms(self, x: Tensor) -> list[float]:
        """||s(x)|| of images (B,C,H,W) in [0,1]: sigma times the score, at ADP's level; of other defenses at the model's smallest."""
        score = self.defense.score
        level = getattr(self.defense.purifier, "levels", [score.sigma_min])[0]
        with torch.no_grad():
            return score.direction(2 * x - 1, level).flatten(1).norm(dim=1).tolist()
