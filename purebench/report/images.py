"""The images behind records: what an attack made, and what it was made of. No torch, but for a dataset that must be read.

Adversarial images lie beside their lines. Clean ones are those that a null control stored; only where none did, they are read from the
dataset, if it is here and is the one that was recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from purebench.errors import UserError
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Log, Record
from purebench.report import recorded

Pixels = np.ndarray  # (C,H,W) float32 in [0,1]
Key = tuple[str, str, str]  # dataset, its hash, subset: what positions are positions of


def key(log: Log) -> Key:
    """What a cell's images are images of."""
    return str(log.cell["dataset"]), str(store.parts(log.cell)["dataset"]["hash"]), str(log.cell["subset"])


def adversarial(log: Log, lines: Sequence[Record]) -> dict[int, Pixels]:
    """By position the stored images of these lines that are there and are the ones that the lines are about. Of an image that the attack
    failed to make none: what is stored is the clean one."""
    path = log.folder / store.ADVERSARIAL
    shape = store.read_cell(log.folder).get("shape") if path.is_file() else None
    if not shape:
        return {}
    size, found = 4 * int(np.prod(shape)), {}
    with path.open("rb") as file:
        for line in lines:
            file.seek(line["position"] * size)
            row = file.read(size)
            whole = len(row) == size and line.get("adv_crc", store.crc(row)) == store.crc(row)
            if whole and not store.lost(line):
                found[line["position"]] = np.frombuffer(row, "<f4").reshape(shape)
    return found


def others(log: Log) -> int:
    """How many judged lines have an image on disk that is not the one they are about, or is cut off."""
    lines = store.judged(log)
    return len(lines) - len(adversarial(log, lines)) if (log.folder / store.ADVERSARIAL).is_file() else 0


@dataclass
class Clean:
    """The clean images of one Key. `logs`: the cells that judged them; `given`: datasets of the user's own; `why`: what is missing and why,
    once `take` was asked."""

    logs: list[Log]
    given: Sequence[Component] = ()
    why: str = ""
    _known: dict[int, Pixels] = field(default_factory=dict)
    _read: Callable[[Sequence[int]], Sequence[Pixels]] | None = None

    def take(self, lines: Mapping[int, Record]) -> dict[int, Pixels]:
        """By position the clean images of these lines, as far as they are to be had."""
        wanted = {position: line for position, line in lines.items() if position not in self._known}
        for log in self.logs:
            if log.cell["attack"] == "null" and wanted:
                # To the bit: a control that moved a pixel is no clean image.
                still = [line for line in store.judged(log) if line["position"] in wanted and line["linf"] == 0]
                self._known |= adversarial(log, still)
                wanted = {position: line for position, line in wanted.items() if position not in self._known}
        if wanted and not self.why:
            self._known |= self._of_the_dataset(wanted)
        return {position: self._known[position] for position in lines if position in self._known}

    def _of_the_dataset(self, lines: Mapping[int, Record]) -> dict[int, Pixels]:
        try:
            self._read = self._read or _reader(self.logs[0], self.given)
            images = self._read([line["index"] for line in lines.values()])
        except UserError as error:
            self.why = error.message
            return {}
        return dict(zip(lines, images, strict=True))


def _reader(log: Log, given: Sequence[Component]) -> Callable[[Sequence[int]], Sequence[Pixels]]:
    """Indices of the log's dataset -> images. Raises UserError where it is not here, or not the one that was recorded."""
    found = recorded.dataset(log, given)
    name, digest, _ = key(log)
    if found.missing:
        raise UserError(f"the dataset `{name}` is not here")
    if found.digest != digest:
        raise UserError(f"the dataset `{name}` here is not the one that was recorded")
    images = found.images

    def read(indices: Sequence[int]) -> Sequence[Pixels]:
        return [image.numpy() for image in images.read(indices)]

    return read


def check_given(given: Sequence[Component], logs: Sequence[Log]) -> None:
    """Raises UserError for a dataset of the user's own that no record is of: it would be read for nothing."""
    recorded = list(dict.fromkeys(str(log.cell["dataset"]) for log in logs))
    for component in given:
        if component.text not in recorded:
            raise UserError(
                f"no record is of `{component.text}`: they are of {', '.join(f'`{name}`' for name in recorded)}",
                "the name must be the recorded one: parquet:path=FILE,name=NAME",
            )


def sets(logs: Iterable[Log], given: Sequence[Component] = ()) -> dict[Key, Clean]:
    """The clean images of all logs, by what they are images of."""
    found: dict[Key, list[Log]] = defaultdict(list)
    for log in logs:
        found[key(log)].append(log)
    return {name: Clean(mates, given) for name, mates in found.items()}
