"""`purebench purify`: any image files in, purified files and one side-by-side picture out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from purebench import device as device_module
from purebench import evaluate, plan
from purebench.errors import UserError
from purebench.noise import Noise


def purify(
    paths: list[Path], defense: str, out: Path, dataset: str, seed: int, device_name: str
) -> list[dict[str, Any]]:
    """Purifies image files with a defense of `dataset`'s networks; the image's place in the list is its id in the noise.

    Writes `out/<name>.png` for each and `out/side-by-side.png`; returns one row per file with the classifier's answers."""
    the_plan = plan.build(plan.Request(defenses=(defense,), attacks=("null",), dataset=dataset, images=1))
    cell = the_plan.jobs[0].cell
    device = device_module.setup(device_name)
    x = torch.stack([read(path, the_plan.shape) for path in paths]).to(device)
    made = evaluate.build_defense(cell, device, rows=max(16, len(paths)))
    noise = Noise(seed, "purify", (), range(len(paths)), [0] * len(paths))
    clean = made.purify(x, noise)
    if not clean.isfinite().all():
        raise UserError(
            f"`{defense}` gave values that are not finite", "try milder parameters; `purebench show` names the paper's"
        )
    bare = made.undefended()
    before, after = (torch.softmax(bare.logits(images, noise), dim=1) for images in (x, clean))
    out.mkdir(parents=True, exist_ok=True)
    rows, taken = [], {"side-by-side.png"}
    for i, path in enumerate(paths):
        name = f"{path.stem}.png"
        while name in taken:
            name = f"{Path(name).stem}-{i}.png"
        taken.add(name)
        picture(clean[i]).save(out / name)
        row: dict[str, Any] = {"image": str(path), "purified": str(out / name)}
        for when, answer in (("before", before[i]), ("after", after[i])):
            row |= {f"class {when}": int(answer.argmax()), f"confidence {when}": round(float(answer.max()), 3)}
        rows.append(row | {"largest change": round(float((clean[i] - x[i]).abs().max()), 3)})
    side_by_side(x, clean, rows, str(cell.defense)).save(out / "side-by-side.png")
    return rows


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


def side_by_side(x: Tensor, clean: Tensor, rows: list[dict[str, Any]], title: str) -> Image.Image:
    """One line per image: input, purified, and four times their difference around grey, with the answers beneath."""
    side, gap, text = max(96, 96 // x.shape[-1] * x.shape[-1]), 12, 30
    sheet = Image.new("RGB", (3 * side + 4 * gap, 24 + len(x) * (side + text + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(("input", f"purified by {title}"[:40], "difference x 4")):
        draw.text((gap + column * (side + gap), 6), head[: side // 6], fill="black")
    for i, row in enumerate(rows):
        top = 24 + i * (side + text + gap)
        for column, image in enumerate((x[i], clean[i], 0.5 + 4 * (clean[i] - x[i]))):
            big = picture(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(big, (gap + column * (side + gap), top))
        answers = (
            f"{row['class before']} ({row['confidence before']:.0%})",
            f"{row['class after']} ({row['confidence after']:.0%})",
            f"max {row['largest change']}",
        )
        for column, answer in enumerate(answers):
            draw.text((gap + column * (side + gap), top + side + 4), answer, fill="black")
    return sheet
