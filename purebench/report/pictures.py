"""`purebench purify`: image files and arrays in, purified ones and one side-by-side picture out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from purebench import assets
from purebench.datasets.pictures import colour
from purebench.engine import chain
from purebench.engine import device as device_module
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.sizes import resize
from purebench.errors import DOWNLOAD, FAILED, USAGE, Mistake, UserError
from purebench.plan import grid as plan
from purebench.report import inputs, outputs
from purebench.report.inputs import Input
from purebench.running import evaluate, rehearsal
from purebench.running.tasks import default_rows
from purebench.spec import Cell

Row = dict[str, object]  # what there is to say of one image file: column -> text or number, None where there is none

HINT = "pictures that Pillow reads (PNG, JPEG, TIFF, ..), and arrays (.npy, .pt) of floats in [0,1], can be purified"
FRAMES = 9  # of a trajectory
SIGMA = 0.1  # noise level, in [-1,1] units, at which a trajectory's score norms are taken


@dataclass(frozen=True, eq=False)
class One:
    """An image among all that were given: the k-th of its file, and the names of what is made of it."""

    file: Input
    k: int
    name: str
    strip: str  # of its trajectory; empty where none is drawn


def purify(
    paths: list[Path], defense: str, out: Path, dataset: str, seed: int, device_name: str, trajectory: bool = False,
    classifier: str | None = None, score: str | None = None, background: str = "white", note: Callable[[str], object] = str,
) -> list[Row]:  # fmt: skip
    """Purifies image files and arrays with a defense of `dataset`'s networks; an image's place among all is its id in the noise.

    Writes for each picture `out/<name>.png`, for each array one of its shape, `out/side-by-side.png`, and with `trajectory` a strip
    `out/<name>-trajectory.png` per image; returns one row per image with the answers of the bare classifier (`before`) and of the
    defense (`after`). With `votes=n` the defense decides by n purifications, of which the pictures show the first. Of a file that
    cannot be read, and of an image with a purification that is not finite, there is only a row, which says `failed`: why. Raises
    UserError where no file can be read, and where one that was not made here would be overwritten. note: takes a line for each file of
    the user's own weights: which of them are used."""
    colour(background)  # told once, and not of each file
    cell, shape, notes = _planned(defense, dataset, classifier, score)
    for line in notes:
        note(line)
    images = _images(_read(paths, shape, cell.dataset.values, background), trajectory)
    outputs.check(out, [outputs.SHEET, *(name for one in images for name in (one.name, one.strip) if name)], paths)
    # A file that cannot be read has the place of one image all the same: the draws of the others do not depend on it.
    ids = [i for i, one in enumerate(images) if not one.file.failed]
    device = device_module.setup(device_name)
    x = torch.stack([images[i].file.images[images[i].k] for i in ids]).to(device)
    made = evaluate.build_defense(cell, device, rows=min(len(x), default_rows(cell)), judging=True)
    noise = Noise(seed, "purify", (), ids, [0] * len(x))
    clean = made.purify(x, noise)
    bare = made.undefended()
    bad = (~clean.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    undecided = bad or made.votes > 1  # then all is purified again: to vote, and to see which step it was
    logits = bare.logits(x, noise), made.logits(x, noise) if undecided else bare.logits(clean, noise)
    before, after = (torch.softmax(answer, dim=1) for answer in logits)
    failed = dict.fromkeys(bad, "the purification gave values that are not finite") | made.not_finite
    files: dict[str, bytes] = {}
    rows: dict[int, Row] = {}  # by the image's place among all
    for i, place in enumerate(ids):
        one = images[place]
        row: Row = {"image": one.file.names[one.k], "purified": str(out / one.name)}
        for when, answer in (("before", before[i]), ("after", after[i])):
            row |= {f"class {when}": int(answer.argmax()), f"confidence {when}": round(float(answer.max()), 3)}
        row |= {"trajectory": str(out / one.strip)} if trajectory else {}
        row["largest change"] = round(float((clean[i] - x[i]).abs().max()), 3)
        if i in failed:
            row |= {key: None for key in row if key not in ("image", "class before", "confidence before")}
        elif trajectory:
            title = f"{Path(one.file.names[one.k]).name} under {cell.defense}"
            strip = draw_trajectory(made, x[i : i + 1], noise.rows([i], [0]), title)
            files[one.strip] = outputs.png(strip)
        if i not in failed and not one.file.array:
            files[one.name] = outputs.png(picture(clean[i]))
        rows[place] = row | {"note": "; ".join(one.file.notes), "failed": failed.get(i)}
    files |= _arrays([images[i] for i in ids], clean, failed)
    outputs.write(out, side_by_side(x, clean, list(rows.values()), str(cell.defense)), files)
    return _alike(
        [rows.get(i) or {"image": str(one.file.path), "failed": one.file.failed} for i, one in enumerate(images)]
    )


def _planned(
    defense: str, dataset: str, classifier: str | None, score: str | None
) -> tuple[Cell, list[int], list[str]]:
    """The cell whose networks are used, [C,H,W] of the images that they take, and what to say of the user's own weights."""
    request = plan.Request(
        defenses=(defense,), attacks=("null",), dataset=dataset, images=1, classifier=classifier, score=score
    )
    the_plan = plan.build(request)
    rehearsal.check(the_plan)
    data = [name for name, facts in assets.table().items() if facts["kind"] == "dataset"]
    absent = [name for name in the_plan.missing if name not in data]  # the dataset's own are not needed
    if absent:
        raise UserError(f"not in the cache: {', '.join(absent)}", assets.bring(absent), DOWNLOAD)
    cell = the_plan.jobs[0].cell
    own = [f"your own weights: `{part}`" for part in (cell.classifier, *cell.scores) if part.where]
    return cell, the_plan.jobs[0].shape, [*own, *(line for line in the_plan.notes if isinstance(line, plan.OfWeights))]


def _read(paths: list[Path], shape: list[int], prepared: Mapping[str, object], background: str) -> list[Input]:
    """Every file, also those that cannot be read. Raises UserError if that is all of them."""
    given, errors = [], []
    for path in paths:
        try:
            given.append(inputs.read(path, shape, prepared, background))
        except UserError as error:
            errors.append(error)
            given.append(Input(path, torch.empty(0, *shape), failed=Mistake(error.message)))
    if errors and len(errors) == len(paths):
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        # Of one file, or of the first: what to do about it is known better than for all kinds together.
        raise UserError(errors[0].message + more, errors[0].hint or HINT)
    return given


def _images(given: list[Input], trajectory: bool) -> list[One]:
    """Every image of the files, one of a file that cannot be read, each with names of its own."""
    names, images = outputs.Names(), []
    for number, file in enumerate(given):
        several = len(file.array) == 4
        strips = [f"-{k}" * several + "-trajectory.png" for k in range(len(file.images))] if trajectory else []
        # Two files of one name from different folders must not overwrite each other.
        name, *strips = names.free(file.path.stem, [file.end, *strips], number)
        images += [One(file, k, name, strips[k] if strips else "") for k in range(len(file.images))]
        images += [One(file, 0, "", "")] if file.failed else []
    return images


def _arrays(images: list[One], clean: Tensor, failed: Mapping[int, str]) -> dict[str, bytes]:
    """The arrays to be written: each of the shape of the one that was given, unless all of it failed."""
    files = {}
    for file in {one.file: None for one in images if one.file.array}:
        of_file = [i for i, one in enumerate(images) if one.file is file]
        if not all(i in failed for i in of_file):
            x = clean[of_file].detach().reshape(file.array)
            files[images[of_file[0]].name] = outputs.array(x, file.end)
    return files


def _alike(rows: list[Row]) -> list[Row]:
    """The rows with the same keys each; without notes and failures where there are none."""
    keys = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    used = [key for key in keys if key not in ("note", "failed") or any(row.get(key) for row in rows)]
    return [{key: row.get(key) for key in used} for row in rows]


def check(rows: list[Row]) -> None:
    """Raises UserError if a row of `purify` says `failed`."""
    bad = [row for row in rows if row.get("failed")]
    if not bad:
        return
    # A file that cannot be read names itself.
    said = [str(why) if isinstance(why := row["failed"], Mistake) else f"`{row['image']}`: {why}" for row in bad]
    unread = any(isinstance(row["failed"], Mistake) for row in bad)
    raise UserError(
        f"{len(bad)} of {len(rows)} images failed: {'; '.join(said[:6])}{'; ..' * (len(bad) > 6)}",
        f"the others are written; {HINT}" if unread else "try milder parameters; `purebench show` names the paper's",
        USAGE if unread else FAILED,
    )


def picture(x: Tensor) -> Image.Image:
    """(C,H,W), clipped to [0,1], as an 8-bit image."""
    array = (x.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def draw_trajectory(defense: Defense, x: Tensor, noise: Noise, title: str) -> Image.Image:
    """One image's way through the chain, x (1,C,H,W): up to FRAMES states as images, and below each the root mean square of
    sigma * score at sigma = SIGMA (about 1 where the image is that noisy, less where it is clean) and the class with its confidence."""
    seen: list[tuple[int, Tensor]] = []
    purifier, score = defense.purifier, getattr(defense, "score", None)
    steps = {round(i * purifier.n / (FRAMES - 1)) for i in range(FRAMES)}

    def keep(k: int, state: chain.State) -> None:
        if k in steps:
            seen.append((k, purifier.finish(state)))

    last = chain.run(purifier, x, noise.scaled(defense.noise), on_state=keep)
    frames = [("input", x), *[(f"step {k}", image) for k, image in seen[:-1]], ("output", last)]
    side, gap, text = max(112, 112 // x.shape[-1] * x.shape[-1]), 10, 48
    sheet = Image.new("RGB", (gap + len(frames) * (side + gap), 26 + side + text + gap), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 7), title, fill="black")
    with torch.no_grad():
        for i, (name, image) in enumerate(frames):
            left = gap + i * (side + gap)
            big = picture(image[0]).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(big, (left, 26))
            probability = torch.softmax(defense.classifier(image), dim=1)[0]
            lines = [name, f"class {int(probability.argmax())} ({float(probability.max()):.0%})"]
            if score is not None:
                inside = resize(2 * image - 1, tuple(score.size[1:]))
                level = min(max(SIGMA, score.sigma_min), score.sigma_max)
                lines.append(f"score {float(score.direction(inside, level).square().mean().sqrt()):.2f}")
            for j, line in enumerate(lines):
                draw.text((left, 30 + side + 15 * j), line, fill="black")
    return sheet


def side_by_side(x: Tensor, clean: Tensor, rows: list[Row], title: str) -> Image.Image:
    """One line per image: input, purified, and four times their difference around grey, with the answers beneath; of one that failed
    the input."""
    side, gap, text = max(96, 96 // x.shape[-1] * x.shape[-1]), 12, 30
    sheet = Image.new("RGB", (3 * side + 4 * gap, 24 + len(x) * (side + text + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(("input", f"purified by {title}"[:40], "difference x 4")):
        draw.text((gap + column * (side + gap), 6), head[: side // 6], fill="black")
    for i, row in enumerate(rows):
        top, why = 24 + i * (side + text + gap), row.get("failed")
        for column, image in enumerate((x[i],) if why else (x[i], clean[i], 0.5 + 4 * (clean[i] - x[i]))):
            big = picture(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(big, (gap + column * (side + gap), top))
        answers = (
            f"{row['class before']} ({row['confidence before']:.0%})",
            f"failed: {why}"[: side // 3] if why else f"{row['class after']} ({row['confidence after']:.0%})",
            "" if why else f"max {row['largest change']}",
        )
        for column, answer in enumerate(answers):
            draw.text((gap + column * (side + gap), top + side + 4), answer, fill="black")
    return sheet
