"""What a defense made of adversarial images, as pictures: made with the draw that was judged, kept beside the records. Torch to make them.

`purified.npz` in a cell's folder is a cache, not a record: no number is made of it, and it may be deleted at any time.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from purebench.atomic import replacing
from purebench.errors import UserError
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Log
from purebench.report import images
from purebench.report.images import Pixels

if TYPE_CHECKING:
    import torch

FILE = "purified.npz"
ARRAYS = ("position", "adv_crc", "answer", "picture")


@dataclass(frozen=True)
class Purified:
    """By position: pictures in [0,1], and the class that each was given when it was made; -1 where it is not finite or was not asked."""

    pictures: dict[int, Pixels]
    answers: dict[int, int]


NOTHING = Purified({}, {})


def read(log: Log) -> Purified:
    """The purified pictures beside a record, of the images that it is still about; nothing where the file is missing or damaged."""
    try:
        with np.load(log.folder / FILE, allow_pickle=False) as file:
            positions, crcs, answers, pictures = (file[name] for name in ARRAYS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return NOTHING
    shape = store.read_cell(log.folder).get("shape")
    whole = {len(of) for of in (positions, crcs, answers, pictures)} == {len(positions)}
    if not whole or list(pictures.shape[1:]) != shape or pictures.dtype != np.uint8:
        return NOTHING
    crc_of = {line["position"]: line.get("adv_crc") for line in store.judged(log)}
    kept = [
        i
        for i, (position, crc) in enumerate(zip(positions.tolist(), crcs.tolist(), strict=True))
        # Only of the very image: another run may have made another one since.
        if crc_of.get(position) == crc
    ]
    return Purified(
        {int(positions[i]): pictures[i].astype(np.float32) / 255 for i in kept},
        {int(positions[i]): int(answers[i]) for i in kept},
    )


def make(
    logs: Sequence[Log],
    below: int,
    *,
    given: Sequence[Component] = (),
    device: str = "auto",
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Purifies the adversarial images of positions under `below`, where no picture is there yet, with the first draw of the judge, and
    writes FILE beside the records. given: datasets of the user's own. Returns by cell id why a cell has none."""
    from purebench.engine import device as devices

    place, why = devices.setup(device), {}
    for i, log in enumerate(logs, 1):
        if log.cell["defense"] == "none":
            continue
        known = read(log)
        lines = [
            line for line in store.judged(log) if line["position"] < below and line["position"] not in known.pictures
        ]
        found = images.adversarial(log, lines)
        if not found:
            continue
        note(f"purifies {len(found)} images of {log.id} ({i} of {len(logs)})")
        # Before the work: records may lie where nothing can be written.
        with store.full_disk_is_an_error(log.folder):
            tempfile.TemporaryFile(dir=log.folder).close()
        try:
            made = _purified(log, list(found), given, place)
        except UserError as error:
            why[log.id] = error.message
            continue
        if not known.pictures and not made.pictures:
            why[log.id] = "none of its purifications is finite"
            continue
        _write(log, Purified(known.pictures | made.pictures, known.answers | made.answers))
    return why


def _purified(log: Log, positions: Sequence[int], given: Sequence[Component], device: torch.device) -> Purified:
    """Purifies the images at these positions. Raises UserError where the defense of now is not the one that was judged."""
    from purebench.report.replay import Replay

    replay = Replay(log, [line for line in store.judged(log) if line["position"] in positions], device, given)
    pictures = replay.purified()
    at = [line["position"] for line in replay.lines]
    # Of several votes the pictures show the first, whose answer is not the defense's.
    said = replay.answers(pictures) if replay.defense.votes == 1 else [-1] * len(at)
    finite = pictures.isfinite().flatten(1).all(1).tolist()
    shown = [p for p, ok in zip(at, finite, strict=True) if ok]
    stack = [picture.cpu().numpy() for picture, ok in zip(pictures, finite, strict=True) if ok]
    return Purified(dict(zip(shown, stack, strict=True)), dict(zip(at, said, strict=True)))


def _write(log: Log, made: Purified) -> None:
    crc_of = {line["position"]: line.get("adv_crc", "") for line in log.images}
    positions = sorted(made.pictures)
    with (
        store.full_disk_is_an_error(log.folder),
        replacing(log.folder / FILE) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez_compressed(
            file,
            position=np.array(positions),
            adv_crc=np.array([crc_of[position] for position in positions]),
            answer=np.array([made.answers[position] for position in positions]),
            picture=np.stack([np.round(255 * np.clip(made.pictures[p], 0, 1)).astype(np.uint8) for p in positions]),
        )
