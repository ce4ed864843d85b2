"""What a defense made of adversarial images, as pictures: made with the draw that was judged, kept beside the records. Torch to make them.

`purified.npz` in a cell's folder is a cache, not a record: no number is made of it, and it may be deleted at any time.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from purebench.atomic import replacing
from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Log
from purebench.report import images, recipe
from purebench.report.images import Pixels
from purebench.spec import Cell

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
    crc_of = {line["position"]: line.get("adv_crc") for line in store.judged(log)}
    kept = [
        i
        for i, (position, crc) in enumerate(zip(positions.tolist(), crcs.tolist(), strict=False))
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
            made = _purified(log, found, given, place)
        except UserError as error:
            why[log.id] = error.message
            continue
        _write(log, Purified(known.pictures | made.pictures, known.answers | made.answers))
    return why


def _purified(log: Log, found: Mapping[int, Pixels], given: Sequence[Component], device: object) -> Purified:
    """Purifies images by position. Raises UserError where the defense of now is not the one that was judged."""
    import torch

    from purebench.engine.noise import Noise
    from purebench.engine.objective import predicted
    from purebench.running import evaluate
    from purebench.running.tasks import default_rows

    cell = _cell(log, given)
    index_of = {line["position"]: line["index"] for line in log.images}
    rows = int(log.runs[-1].get("rows") or default_rows(cell)) if log.runs else default_rows(cell)
    defense = evaluate.build_defense(cell, torch.device(str(device)), rows=rows)
    x = torch.from_numpy(np.stack(list(found.values()))).to(str(device))
    index = torch.tensor([index_of[position] for position in found])
    noise = Noise(log.cell["seed"], "judge", (), index, torch.zeros_like(index))
    pictures = defense.purify(x, noise)
    # Of several votes the pictures show the first, whose answer is not the defense's.
    said = predicted(defense.undefended().logits(pictures, noise)).tolist() if defense.votes == 1 else [-1] * len(x)
    finite = pictures.isfinite().flatten(1).all(1).tolist()
    shown = [p for p, ok in zip(found, finite, strict=True) if ok]
    stack = [picture.cpu().numpy() for picture, ok in zip(pictures, finite, strict=True) if ok]
    return Purified(dict(zip(shown, stack, strict=True)), dict(zip(found, said, strict=True)))


def _cell(log: Log, given: Sequence[Component]) -> Cell:
    """The recorded cell as the parts of now make it; UserError where a part of its defense is another one now."""
    wanted = recipe.grid(log.cell)
    wanted |= {"attacks": ["null"], "images": 1, "evals": 1}
    wanted["dataset"] = recipe.located(images.dataset(log, given))
    [job] = grid.jobs({key: value for key, value in wanted.items() if key not in ("grads", "threats")})
    now, then = job.cell.data()["parts"], store.parts(log.cell)
    for kind in (kind for kind in now if kind not in ("attack", "gradient", "dataset")):
        differ = [key for key in now[kind] if key != "values" and now[kind][key] != then.get(kind, {}).get(key)]
        if differ or now[kind].get("values", {}) != then.get(kind, {}).get("values", {}):
            raise UserError(f"the {kind} that was judged is another one now")
    for key, value in job.cell.defense.info.get("couples", {}).items():
        if job.cell.defense.values.get(key) == value:
            raise UserError(
                f"`{log.cell['defense']}` couples the images of a batch: alone an image is purified otherwise"
            )
    return job.cell


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
