"""Records in few bytes for a page: every line's answers and distances, and as many pictures as fit. No torch.

Pictures are 8-bit and for looking; numbers are the records' own. A perturbation is kept in steps of its own, finer than a pixel's, so
that it can be magnified; the page adds it to the clean picture. Everything is deflated without loss, in base64.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from purebench.records import store
from purebench.records.store import Log, Record
from purebench.report import images
from purebench.report.images import Clean, Key, Pixels

LIMIT = 14_000_000  # bytes of pictures and answers in a page, which leaves a megabyte for its words
ANSWERS = 6_000_000  # of these, at most, for answers: beyond it the first positions of every cell are kept
SIDE = 128  # pixels; larger pictures are shown smaller, as means of square blocks
LEVELS = 127  # steps of a perturbation to either side
FINEST = 0.25 / 255  # of a step: below a quarter of an 8-bit one nobody sees anything
SAMPLE = 16  # pictures of a cell, from which the size of all is foretold
# Noise repeats nothing: the search for repetitions takes seventy times as long, and what it finds by chance costs a seventh. In pictures
# that are all alike, as a control's perturbations, the quickest search finds all.
PICTURES = ((6, zlib.Z_HUFFMAN_ONLY), (1, zlib.Z_DEFAULT_STRATEGY))
LINES = ((9, zlib.Z_DEFAULT_STRATEGY),)
NO_DRAW = -2  # in the place of an answer that a line does not have; -1 is one that is not finite


@dataclass(frozen=True)
class Block:
    """Pictures of one kind: of which positions; (n,C,H,W) uint8, deflated.

    Of perturbations `step`: what one level is worth; `magnified`: by how much they are shown, the largest as black or white as can be."""

    positions: list[int]
    data: bytes
    step: float = 0.0
    magnified: float = 1.0


@dataclass(frozen=True)
class Packed:
    """What a page embeds. `clean` by Key; `attacked`, `purified` by cell id: blocks of pictures; `shapes`: [C,H,W] of a Key's pictures,
    and by how much they were shrunk; `answers`: one block for all cells; `columns`: how a cell's part of it is laid out."""

    answers: bytes
    columns: dict[str, dict[str, Any]]
    clean: dict[Key, Block] = field(default_factory=dict)
    attacked: dict[str, Block] = field(default_factory=dict)
    purified: dict[str, Block] = field(default_factory=dict)
    shapes: dict[Key, tuple[list[int], int]] = field(default_factory=dict)
    lines: int = 0  # positions below it have answers
    pictures: int = 0  # positions below it have pictures
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        blocks = [*self.clean.values(), *self.attacked.values(), *self.purified.values()]
        return sum(_encoded(len(data)) for data in [self.answers, *(block.data for block in blocks)])


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _encoded(size: int) -> int:
    return (size + 2) // 3 * 4


def _deflated(data: bytes, strategies: Sequence[tuple[int, int]]) -> bytes:
    """The shortest that these (level, strategy) make of it; whichever it is, one inflater reads it."""

    def one(level: int, strategy: int) -> bytes:
        packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        return packer.compress(data) + packer.flush()

    return min((one(*strategy) for strategy in strategies), key=len)


# ---- answers -------------------------------------------------------------------------------------


COLUMNS = 8  # of int32: those of `_numbers`, and said


def answers(logs: Sequence[Log], below: int) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Lines of positions under `below`, cell after cell, deflated; and how each cell's part is laid out: `n` lines, `draws`, `said`.

    A part is int32 columns: position, index, label, undefended, state, forward, backward, said; linf and l2 as float32; the clean and the
    attacked draws of each line as int16, filled up to whole words. state: 0 judged; the attack's own verdict, 1 broken, 2 withstood;
    3 lost. said: a number of the layout's texts, from 1; 0 for none."""
    parts, columns = [], {}
    for log in logs:
        lines = [line for line in log.images if line["position"] < below]
        said: dict[str, int] = {}
        numbers = [
            [*_numbers(line), said.setdefault(text, len(said)) if (text := _said(line)) else -1] for line in lines
        ]
        table = np.array(numbers, "<i4").reshape(len(lines), COLUMNS)
        table[:, -1] += 1
        draws = {name: _draws([_list(line, name) for line in lines]) for name in ("clean", "adversarial")}
        distances = np.array([[_distance(line, norm) for norm in ("linf", "l2")] for line in lines], "<f4")
        distances = distances.reshape(len(lines), 2)
        data = table.T.tobytes() + distances.T.tobytes() + b"".join(of.tobytes() for of in draws.values())
        parts.append(data + b"\0" * (-len(data) % 4))
        columns[log.id] = {"n": len(lines), "draws": [of.shape[1] for of in draws.values()], "said": list(said)}
    return _deflated(b"".join(parts), LINES), columns


def _numbers(line: Record) -> list[int]:
    verdict = line.get("verdict")
    state = 3 if store.lost(line) else 0 if verdict is None else 1 + bool(verdict)
    # Records of before counted no calls.
    forward, backward = line.get("nfe") or (-1, -1)
    return [line["position"], line["index"], line["label"], line["undefended"], state, forward, backward]


def _list(line: Record, name: str) -> list[int]:
    return [] if name == "adversarial" and store.lost(line) else line.get(name, [])


def _distance(line: Record, norm: str) -> float:
    value = line.get(norm)
    return np.nan if value is None else value


def _draws(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """(n,K) int16; K draws, the most that a line has."""
    most = max(map(len, lists), default=0)
    return np.array([[*of, *[NO_DRAW] * (most - len(of))] for of in lists], "<i2").reshape(len(lists), most)


def _said(line: Record) -> str:
    """What a line says beside numbers."""
    words = [f"broken by {line['broken_by']}"] if line.get("broken_by") else []
    words += [f"gradient not finite at iterate {line['stopped']}"] if "stopped" in line else []
    words += [f"{store.WHERE.get(where, where)}: {why}" for where, why in (line.get("not_finite") or {}).items()]
    words += [str(line["failed"])] if line.get("failed") else []
    counts = line.get("gradients") or {}
    if 0 < counts.get("right", 0) == counts.get("blind", 0):
        words.append("gradient masked: zero or not finite wherever it was still right")
    return "; ".join(words)


# ---- pictures ------------------------------------------------------------------------------------


def shrunk(x: Pixels) -> Pixels:
    """An image as means of square blocks, so that no side is above SIDE; itself if none is."""
    by = factor(x.shape)
    if by == 1:
        return x
    channels, height, width = x.shape
    # To whole blocks, by its own edge: a 299 px side has no other divisor than 13 and 23.
    x = np.pad(x, ((0, 0), (0, -height % by), (0, -width % by)), mode="edge")
    return x.reshape(channels, x.shape[1] // by, by, x.shape[2] // by, by).mean((2, 4))


def factor(shape: Sequence[int]) -> int:
    """Pixels of an image to one of its picture, along a side."""
    return max(1, -(-max(shape[1:]) // SIDE))


def eight_bits(x: Pixels) -> np.ndarray:
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _block(pictures: Mapping[int, np.ndarray], step: float = 0.0, magnified: float = 1.0) -> Block | None:
    if not pictures:
        return None
    return Block(list(pictures), _deflated(np.stack(list(pictures.values())).tobytes(), PICTURES), step, magnified)


def _attacked(found: Mapping[int, Pixels], clean: Mapping[int, Pixels]) -> Block | None:
    """Perturbations, 128 for none; of a cell without all clean images, the adversarial pictures themselves, with `step` 0."""
    if not found.keys() <= clean.keys():
        return _block({position: eight_bits(shrunk(x)) for position, x in found.items()})
    deltas = {position: shrunk(x - clean[position]) for position, x in found.items()}
    largest = max((float(np.abs(delta).max()) for delta in deltas.values()), default=0.0)
    step = max(largest / LEVELS, FINEST)
    # A control that moves nothing has nothing to be magnified.
    magnified = LEVELS / 255 / largest if largest > FINEST else 1.0
    return _block({p: (np.round(delta / step) + 128).astype(np.uint8) for p, delta in deltas.items()}, step, magnified)


# A cell and its adversarial images by position -> what its defense made of them, (C,H,W) float32 in [0,1]; {} where that is not known
Purified = Callable[[Log, Mapping[int, Pixels]], Mapping[int, Pixels]]


def _pictures(
    packed: Packed, logs: Sequence[Log], clean: Mapping[Key, Clean], purified: Purified, count: int
) -> Packed:
    """The same with pictures of the first `count` positions of every cell."""
    packed = replace(packed, clean={}, attacked={}, purified={}, shapes={}, pictures=count)
    for name, of in clean.items():
        mates = [log for log in logs if images.key(log) == name]
        lines = {line["position"]: line for log in mates for line in log.images if line["position"] < count}
        known = of.take(dict(sorted(lines.items())))
        if block := _block({position: eight_bits(shrunk(x)) for position, x in known.items()}):
            packed.clean[name] = block
        for log in mates:
            found = images.adversarial(log, [line for line in log.images if line["position"] < count])
            made = purified(log, found) if found else {}
            taken = {position: eight_bits(shrunk(made[position])) for position in found if position in made}
            if block := _attacked(found, known):
                packed.attacked[log.id] = block
            if block := _block(taken):
                packed.purified[log.id] = block
            for x in [*found.values(), *known.values()][:1]:
                packed.shapes[name] = list(shrunk(x).shape), factor(x.shape)
    return packed


def pack(
    logs: Sequence[Log],
    clean: Mapping[Key, Clean],
    purified: Purified,
    *,
    pictures: int | None = None,
    limit: int = LIMIT,
) -> Packed:
    """All of it within `limit` bytes. pictures: of how many positions at most; as many as fit, unless it is said. Where not everything
    fits, the first positions of every cell are kept, and `notes` say so."""
    most = 1 + max((line["position"] for log in logs for line in log.images), default=-1)
    below, (data, columns) = most, answers(logs, most)
    # All answers are to be there, or no filter tells the whole truth: only beyond reason are they cut.
    while _encoded(len(data)) > min(ANSWERS, limit) and below > 1:
        below = max(1, int(0.95 * below * min(ANSWERS, limit) / _encoded(len(data))))
        data, columns = answers(logs, below)
    bare = Packed(data, columns, lines=below)
    packed = _as_many(
        lambda count: _pictures(bare, logs, clean, purified, count),
        bare,
        below if pictures is None else min(below, pictures),
        limit,
    )
    return replace(packed, notes=list(_notes(packed, logs, clean, most, pictures)))


def _as_many(made: Callable[[int], Packed], bare: Packed, wanted: int, limit: int) -> Packed:
    """Pictures of as many positions as fit, at most `wanted`. How many do is foretold from few, and seen."""
    best, count = bare, min(wanted, SAMPLE)
    while count > best.pictures:
        tried = made(count)
        if tried.size > limit:
            # The next guess is below this one: each round ends nearer, and all of them end.
            wanted = min(count - 1, int(0.99 * count * (limit - bare.size) / max(1, tried.size - bare.size)))
        else:
            best = tried
        each = (best.size - bare.size) / best.pictures if best.pictures else 0
        # Not more than four times as many at once: how well a few compress says little of hundreds.
        fits = int((limit - bare.size) / each) if each else wanted
        count = min(wanted, max(4 * best.pictures, SAMPLE), fits)
    return best


def _notes(
    packed: Packed, logs: Sequence[Log], clean: Mapping[Key, Clean], most: int, asked: int | None
) -> Iterator[str]:
    """What is not here, and why; and what a picture is."""
    below = packed.lines
    if below < most:
        yield f"Answers of the first {below} of {most} images alone are in this page, to keep it small; the tables are of all."
    stored = any((log.folder / store.ADVERSARIAL).is_file() for log in logs)
    if asked == 0:
        yield "Pictures were left out, as asked (`--pictures 0`)."
        return
    if not stored:
        yield "The records are without their adversarial images (`adversarial.f32`): no picture of them, and no perturbation."
    elif without := [log.id for log in logs if not (log.folder / store.ADVERSARIAL).is_file()]:
        yield f"{len(without)} of {len(logs)} cells are without their adversarial images (`adversarial.f32`)."
    if others := {log.id: count for log in logs if (count := images.others(log))}:
        yield f"{sum(others.values())} stored images are not those of their lines (checksum) and are left out: {', '.join(others)}."
    if stored and packed.pictures < below:
        why = "as asked" if asked is not None and packed.pictures == asked else "to keep the page small"
        yield f"Pictures of the first {packed.pictures} of {most} images of each cell, {why}; answers and numbers of the others are here."
    for why in _missing(clean.values()):
        yield f"Clean pictures are left out: {why}."
    if stored or packed.clean:
        yield "Pictures have 8 bits a channel and are for looking, compressed without loss; numbers are the records'."
    for by in sorted({by for _, by in packed.shapes.values() if by > 1}):
        yield f"Pictures above {SIDE} px a side are shown at 1/{by} of their size (means of {by}x{by} pixels)."


def _missing(sets: Iterable[Clean]) -> list[str]:
    return list(dict.fromkeys(of.why for of in sets if of.why))
