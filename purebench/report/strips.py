"""A strip: recorded images as they were given, attacked and purified, beside each other. Needs the networks.

Rows that were given the same images share them; of several datasets, or subsets, each row has its own. With `transpose` rows are columns:
many of them, of few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from purebench.report import drawing
from purebench.report.drawing import COLOURS, Words
from purebench.report.replay import Replay

NAME, GAP, WORD = 0.78, 0.03, 0.11  # in inches: room for names, between images, and for a class below an image
SIDE = 0.6  # of an image at most


@dataclass(frozen=True)
class Line:
    """Images (B,C,H,W) of one kind: what a reader sees beside them, and a class below each; `""`: none."""

    name: str
    images: Tensor
    words: list[str]


def draw(words: Words, replays: Mapping[str, Replay], *, transpose: bool) -> Figure:
    """The strip of these rows, each of as many images."""
    return _columns(words, replays) if transpose else _lines(words, replays)


def _lines(words: Words, replays: Mapping[str, Replay]) -> Figure:
    """A line of images for each row; those that all rows were given are shown once."""
    first = next(iter(replays.values()))
    lines: list[Line] = []
    shared = _same([replay.clean() for replay in replays.values()])
    if shared:
        lines.append(Line("clean", first.clean(), _labels(first)))
    attacks = [replay for replay in replays.values() if not replay.unattacked]
    attacked = bool(attacks) and _same([replay.attacked() for replay in replays.values()])
    if attacked:
        lines.append(Line("attacked", first.attacked(), [""] * len(first.lines)))
    for name, replay in replays.items():
        if not shared:
            lines.append(Line(f"{name} clean", replay.clean(), _labels(replay)))
        if not attacked and not replay.unattacked:
            more = f"attacked ({name})" if shared else f"{name} attacked"
            lines.append(Line(more, replay.attacked(), [""] * len(replay.lines)))
        lines.append(Line(name if shared else f"{name} purified", replay.purified(), _classes(replay)))
    side = min(SIDE, (drawing.COLUMN - NAME - 0.06) / len(first.lines) - GAP)
    height = sum(side + GAP + (WORD if any(line.words) else 0) for line in lines)
    canvas = drawing.canvas(words, axes=1, height=height, below=0.0, left=NAME)
    top = _top(canvas)
    for line in lines:
        _name(canvas.figure, line.name, top - side / 2)
        for i, (image, word) in enumerate(zip(line.images, line.words, strict=True)):
            _image(canvas.figure, (NAME + i * (side + GAP), top), side, image, word, f"{line.name} {i}")
        top -= side + GAP + (WORD if any(line.words) else 0)
    return canvas.figure


def _columns(words: Words, replays: Mapping[str, Replay]) -> Figure:
    """A column for each row; for each image a line as it was given, attacked, and purified."""
    count = len(next(iter(replays.values())).lines)
    wide = len(replays) > 5
    width = drawing.PAGE if wide else drawing.COLUMN
    side = min(SIDE, (width - NAME - 0.06) / len(replays) - GAP)
    corrupted = any("corruption" in replay.cell.dataset.values for replay in replays.values())
    # Names that are wider than their image stand on end.
    turned = any(0.05 * len(name) > side for name in replays)
    above = max(0.047 * len(name) for name in replays) + 0.06 if turned else WORD + 0.03
    shown = ["given", *([] if all(replay.unattacked for replay in replays.values()) else ["attacked"]), "purified"]
    height = above + count * (len(shown) * (side + GAP) + 2 * WORD + GAP)
    canvas = drawing.canvas(words, axes=1, height=height, below=0.0, left=NAME, page=wide)
    top = _top(canvas)
    total_width, total = canvas.figure.get_size_inches()
    stacks = {
        name: [replay.clean(), *([replay.attacked()] if "attacked" in shown else []), replay.purified()]
        for name, replay in replays.items()
    }
    for column, name in enumerate(replays):
        x = NAME + column * (side + GAP) + side / 2
        canvas.figure.text(
            x / total_width, (top - above + 0.04) / total, name, size=drawing.SMALL, ha="center", va="bottom",
            rotation=90 if turned else 0,
        )  # fmt: skip
    top -= above
    for i in range(count):
        for k, what in enumerate(shown):
            _name(canvas.figure, ("corrupted" if corrupted else "clean") if what == "given" else what, top - side / 2)
            for column, (name, replay) in enumerate(replays.items()):
                said = {"given": _labels, "purified": _classes}.get(what)
                word = said(replay)[i] if said else ""
                corner = (NAME + column * (side + GAP), top)
                _image(canvas.figure, corner, side, stacks[name][k][i], word, f"{name} {what} {i}")
            top -= side + GAP + (0 if what == "attacked" else WORD)
        top -= GAP
    return canvas.figure


def _same(stacks: list[Tensor]) -> bool:
    return all(stack.shape == stacks[0].shape and torch.equal(stack, stacks[0]) for stack in stacks)


def _labels(replay: Replay) -> list[str]:
    return [str(line["label"]) for line in replay.lines]


def _classes(replay: Replay) -> list[str]:
    """What the judge's first purification was classified as, and a cross where that is wrong."""
    answers = [(line[replay.judged][0], line["label"]) for line in replay.lines]
    return [f"{'none' if answer < 0 else answer}{'' if answer == label else ' ×'}" for answer, label in answers]


def _top(canvas: drawing.Canvas) -> float:
    """Where the images begin, in inches from below."""
    [area] = canvas.axes
    area.set_axis_off()
    return float(canvas.figure.get_size_inches()[1] * area.get_position().y1)


def _name(figure: Figure, name: str, middle: float) -> None:
    """The name of a line of images, at their left."""
    width, height = figure.get_size_inches()
    head, _, tail = name.rpartition(" ")
    name = f"{head}\n{tail}" if len(name) > 14 and head else name
    figure.text((NAME - 0.05) / width, middle / height, name, size=drawing.SMALL, ha="right", va="center")


def _image(figure: Figure, corner: tuple[float, float], side: float, image: Tensor, word: str, label: str) -> None:
    """One image with its upper left corner there (inches), and a word below it."""
    width, height = figure.get_size_inches()
    left, top = corner
    axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height), label=label)
    array = image.detach().clamp(0, 1).cpu().permute(1, 2, 0).numpy()
    axes.imshow(array if array.shape[2] == 3 else array[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    figure.text(
        (left + side / 2) / width, (top - side - 0.02) / height, word, size=drawing.SMALL, ha="center", va="top",
        color=COLOURS[1] if "×" in word else drawing.INK,
    )  # fmt: skip
