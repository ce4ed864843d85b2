"""`purebench purify`: any image files in, purified files and one side-by-side picture out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from purebench import assets
from purebench.engine import chain
from purebench.engine import device as device_module
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.errors import DOWNLOAD, FAILED, UserError
from purebench.plan import grid as plan
from purebench.purifiers.resized import resize
from purebench.running import evaluate, rehearsal
from purebench.running.tasks import default_rows

Row = dict[str, object]  # what there is to say of one image file: column -> text or number, None where there is none

FRAMES = 9  # of a trajectory
SIGMA = 0.1  # noise level, in [-1,1] units, at which a trajectory's score norms are taken


def purify(
    paths: list[Path], defense: str, out: Path, dataset: str, seed: int, device_name: str, trajectory: bool = False,
    classifier: str | None = None, score: str | None = None,
) -> list[Row]:  # fmt: skip
    """Purifies image files with a defense of `dataset`'s networks; the image's place in the list is its id in the noise.

    Writes `out/<name>.png` for each, `out/side-by-side.png`, and with `trajectory` a strip `out/<name>-trajectory.png`; returns one row
    per file with the answers of the bare classifier (`before`) and of the defense (`after`). With `votes=n` the defense decides by n
    purifications, of which the pictures show the first. A file with one that is not finite has only a row, which says `failed`: why."""
    request = plan.Request(
        defenses=(defense,), attacks=("null",), dataset=dataset, images=1, classifier=classifier, score=score
    )
    the_plan = plan.build(request)
    rehearsal.check(the_plan)
    cell = the_plan.jobs[0].cell
    images = [name for name, facts in assets.table().items() if facts["kind"] == "dataset"]
    absent = [name for name in the_plan.missing if name not in images]  # the dataset's own are not needed
    if absent:
        raise UserError(f"not in the cache: {', '.join(absent)}", assets.bring(absent), DOWNLOAD)
    device = device_module.setup(device_name)
    x = torch.stack([read(path, the_plan.jobs[0].shape) for path in paths]).to(device)
    made = evaluate.build_defense(cell, device, rows=min(len(paths), default_rows(cell)))
    noise = Noise(seed, "purify", (), range(len(paths)), [0] * len(paths))
    clean = made.purify(x, noise)
    bare = made.undefended()
    bad = (~clean.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()
    undecided = bad or made.votes > 1  # then all is purified again: to vote, and to see which step it was
    logits = bare.logits(x, noise), made.logits(x, noise) if undecided else bare.logits(clean, noise)
    before, after = (torch.softmax(answer, dim=1) for answer in logits)
    failed = dict.fromkeys(bad, "the purification gave values that are not finite") | made.not_finite
    out.mkdir(parents=True, exist_ok=True)
    rows, taken = [], {"side-by-side.png"}
    for i, path in enumerate(paths):
        name = f"{path.stem}.png"
        # Two files of one name from different folders must not overwrite each other.
        while name in taken:
            name = f"{Path(name).stem}-{i}.png"
        taken.add(name)
        if i not in failed:
            picture(clean[i]).save(out / name)
        row: Row = {"image": str(path), "purified": str(out / name)}
        for when, answer in (("before", before[i]), ("after", after[i])):
            row |= {f"class {when}": int(answer.argmax()), f"confidence {when}": round(float(answer.max()), 3)}
        if trajectory:
            strip = out / f"{Path(name).stem}-trajectory.png"
            row["trajectory"] = str(strip)
            if i not in failed:
                title = f"{path.name} under {cell.defense}"
                draw_trajectory(made, x[i : i + 1], noise.rows([i], [0]), title).save(strip)
        row["largest change"] = round(float((clean[i] - x[i]).abs().max()), 3)
        if i in failed:
            row |= {key: None for key in row if key not in ("image", "class before", "confidence before")}
        rows.append(row | ({"failed": failed.get(i)} if failed else {}))
    side_by_side(x, clean, rows, str(cell.defense)).save(out / "side-by-side.png")
    return rows


def check(rows: list[Row]) -> None:
    """Raises UserError if a row of `purify` says `failed`."""
    bad = [f"`{row['image']}`: {row['failed']}" for row in rows if row.get("failed")]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} images failed: {'; '.join(bad[:6])}{'; ..' * (len(bad) > 6)}",
            "try milder parameters; `purebench show` names the paper's",
            FAILED,
        )


def read(path: Path, shape: list[int]) -> Tensor:
    """An image file as (C,H,W) float32 in [0,1], converted to the channels and resized (bilinear) to the size that is wanted."""
    try:
        image = Image.open(path).convert("L" if shape[0] == 1 else "RGB")
    except FileNotFoundError:
        raise UserError(f"there is no image `{path}`", "give one or more image files") from None
    except (UnidentifiedImageError, OSError, ValueError):
        raise UserError(f"`{path}` is not an image that can be read", "PNG, JPEG, BMP and the like") from None
    image = (
        image.resize((shape[2], shape[1]), Image.Resampling.BILINEAR) if image.size != (shape[2], shape[1]) else image
    )
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array[None] if shape[0] == 1 else array.transpose(2, 0, 1).copy())


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
