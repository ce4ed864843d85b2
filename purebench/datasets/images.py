"""What a dataset gives: labelled images in [0,1], read when they are asked for, and a hash of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from purebench import assets
from purebench.datasets import supplied, tree
from purebench.datasets.pictures import Facts, check_whole, decode, look, stack
from purebench.datasets.tree import Tree, shown
from purebench.errors import DOWNLOAD, USAGE, UserError, decimal

WHOLE = 512 << 20  # bytes: the content of a folder of images up to this size is read for its digest


@dataclass(frozen=True)
class Images:
    """n images with labels. What `take` returns for an index depends on that index alone."""

    labels: Tensor  # (n,) int64 in 0 .. classes-1
    classes: int
    digest: str  # "sha256:.." or "md5:.." of the content, found without reading gigabytes
    read: Callable[[Sequence[int]], Tensor]  # indices -> (B,C,H,W) float32 in [0,1]
    note: str = ""  # why numbers on these images are not a paper's; empty for the papers' own images
    declared: bool = True  # whether `classes` is their number, and not that of the labels seen
    said: str = ""  # of the user's own: what was found, and what was left out; a line of the plan
    # For so many classes: what to write, so that labels are numbers of these.
    renumber: Callable[[int], str] = lambda _: ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> list[int]:
        """[C,H,W], from the first image."""
        return list(self.read([0]).shape[1:])

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x (B,C,H,W) float32 in [0,1], y (B,) int64. Raises UserError for a file that cannot be read as an image."""
        return self.read(indices), self.labels[list(indices)]


def of_array(pixels: np.ndarray, labels: Sequence[int] | np.ndarray, *, classes: int, digest: str) -> Images:
    """Images held in memory. pixels: uint8, (n,H,W,C) or (n,H,W) for grey."""
    stored = torch.from_numpy(np.ascontiguousarray(pixels))
    stored = stored[:, None] if stored.dim() == 3 else stored.permute(0, 3, 1, 2)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    # Divided when they are taken: as float32 the stored ones would need four times the memory.
    return Images(y, classes, digest, lambda indices: stored[list(indices)].contiguous().float() / 255)


def dense(x: Tensor, what: str) -> Tensor:
    """The tensor on the CPU, without its graph. Raises UserError where it is none of the ordinary kind: sparse, nested, quantised, without
    values, or of floats of 8 bits. what: it is, for the message."""
    # Asked in this order: a nested tensor has no shape to show, and a meta tensor may be all of the others.
    kind = (
        "a nested tensor" if x.is_nested
        else "a tensor without values (meta)" if x.is_meta
        else f"quantised ({_dtype(x)})" if x.is_quantized
        else f"a sparse tensor ({str(x.layout).removeprefix('torch.')})" if x.layout != torch.strided
        else f"{_dtype(x)}, expected float32" if x.is_floating_point() and x.element_size() == 1
        else ""
    )  # fmt: skip
    if kind:
        raise UserError(
            f"{what} are {kind}", "give floats in [0,1] as an ordinary tensor; of a sparse one x.to_dense()"
        )
    return x.detach().cpu()


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def of_tensors(x: Any, y: Any, what: str = "the images") -> Images:
    """x (n,C,H,W) in [0,1], y (n,) whole numbers from 0 on; tensors or arrays of any type that says so. Raises UserError for others."""
    hint = "x is (n,C,H,W) in [0,1], y is (n,) with the numbers of the classes from 0 on"
    try:
        x, y = dense(torch.as_tensor(x), what), dense(torch.as_tensor(y), f"the labels of {what}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} are no tensors: {error}", hint) from None
    if x.dim() != 4 or y.shape != x.shape[:1] or not len(x):
        raise UserError(f"{what} are {tuple(x.shape)} with labels {tuple(y.shape)}", hint)
    low, high = (float(v) for v in x.float().aminmax())
    # Not scaled here: a guess would be silently another data set.
    if not (x.is_floating_point() and low >= 0 and high <= 1):
        more = "; divide by 255" if high > 1 and low >= 0 else ""
        raise UserError(f"{what} are {_dtype(x)} in [{decimal(low)}, {decimal(high)}]", f"{hint}{more}")
    if (y.is_floating_point() and not bool((y == y.long()).all())) or int(y.min()) < 0:
        raise UserError(f"the labels of {what} are {y.dtype} from {y.min():g} to {y.max():g}", hint)
    x, y = x.float().contiguous(), y.long()
    digest = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    # Of a few images not all classes need be among them.
    return Images(y, int(y.max()) + 1, f"sha256:{digest}", lambda indices: x[list(indices)], declared=False)


def of_files(
    root: Path, files: Sequence[str], labels: Sequence[int], classes: int, *, channels: int = 3, resize: int = 0, crop: int = 0,
    interpolation: str = "bilinear", frame: bool = False, note: str = "", declared: bool = True, said: str = "",
    renumber: Callable[[int], str] = lambda _: "",
) -> Images:  # fmt: skip
    """Image files, decoded at `take`. files: names relative to root; the digest is of names, sizes, labels and, up to 512 MB in all,
    of the content, in this order. interpolation, frame: see `pictures.decode`. Raises UserError for files that are missing, empty or no
    images, and for images of several sizes."""
    # Sizes tell most copies apart at once; ImageNet's 6 GB would take longer to read than many a run.
    hashed, total = hashlib.sha256(), 0
    for name, label in zip(files, labels, strict=True):
        try:
            size = (root / name).stat().st_size
        except OSError as error:
            raise UserError(
                f"cannot read `{shown(str(root / name))}`: {error.strerror}", "the dataset's list names it"
            ) from None
        if not size:
            raise UserError(f"`{shown(str(root / name))}` is empty", "copy or download it again, or remove it")
        total += size
        # A name that is not UTF-8 has surrogates.
        hashed.update(f"{name}\0{size}\0{label}\n".encode("utf-8", "surrogateescape"))
    for name in files if total <= WHOLE else ():
        hashed.update(_content(root / name))
    # JPEG is plain: where all come out of one size, 50,000 heads are not read either.
    jpeg = total > WHOLE and 0 < crop <= resize and all(name.lower().endswith((".jpg", ".jpeg")) for name in files)
    paths = [root / name for name in files]
    plain = jpeg or heads(paths, list(map(str, paths)), resize, crop, frame=frame, whole=total <= WHOLE)

    def read(indices: Sequence[int]) -> Tensor:
        some = [paths[i] for i in indices]
        images = [decode(path, channels, resize, crop, interpolation=interpolation, frame=frame) for path in some]
        return stack(images, list(map(str, some)))

    y = torch.tensor(labels, dtype=torch.int64)
    return Images(y, classes, f"sha256:{read_anew(hashed.hexdigest(), plain)}", read, note, declared, said, renumber)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read `{shown(str(path))}`: {error.strerror}", "let your user read it") from None


def heads(
    sources: Iterable[Path | bytes],
    names: Sequence[str],
    resize: int = 0,
    crop: int = 0,
    *,
    frame: bool = False,
    whole: bool = True,
) -> bool:
    """Reads the heads of all images, so that what a run would meet after hours is found when it is planned; and, if `whole`, whether they
    are damaged behind them. Returns whether all are plain: of 8 bits and opaque. Raises UserError for the first that is no image, that
    comes out of another size than the first, or, without a `frame`, that `crop` is too large for."""
    plain, first = True, (0, 0)
    for i, (source, name) in enumerate(zip(sources, names, strict=True)):
        facts = look(source, shown(name))
        if whole:
            check_whole(source, shown(name))
        size = _scaled(facts, resize)
        plain = plain and facts.plain
        if not crop:
            first = first if i else size
            if size != first:
                raise _sizes(names[0], first, name, size)
        elif crop > min(size) and not frame:
            raise UserError(
                f"`{shown(name)}` is {size[0]}x{size[1]}{' once it is scaled' if resize else ''}, too small to cut {crop}x{crop} out of it",
                "cut out less, or scale more: black borders would be part of the image",
            )
    return plain


def _scaled(facts: Facts, resize: int) -> tuple[int, int]:
    """Width and height with the shorter side at `resize`, as torchvision has it."""
    width, height = facts.width, facts.height
    if not resize:
        return width, height
    long = int(resize * max(width, height) / min(width, height))
    return (resize, long) if width <= height else (long, resize)


def read_anew(digest: str, plain: bool) -> str:
    """The hash of content that is read otherwise than it once was: transparent images by what is seen, more than 8 bits by all of them."""
    return digest if plain else hashlib.sha256(f"{digest} as seen".encode()).hexdigest()


def _sizes(one: str, is_one: tuple[int, int], other: str, is_other: tuple[int, int]) -> UserError:
    """The error for two images of different sizes (width, height)."""
    has, got = ("x".join(map(str, size)) for size in (is_one, is_other))
    return UserError(
        f"images of different sizes: `{shown(one)}` is {has}, `{shown(other)}` is {got}",
        "`size=N` scales and crops them to one size, N x N: that of the networks",
    )


def check_channels(channels: int) -> None:
    """UserError for a number of channels that PIL's images of 8 bits, grey or RGB, do not have."""
    if channels not in (1, 3):
        raise UserError(f"`channels={channels}` is not possible", "write 3 for colour or 1 for grey")


def find(dataset: str, folder: str, base: str, *markers: str) -> Path:
    """The folder that holds one of `markers`: where `purebench fetch` puts it, else `folder`, or base's last parts under it."""
    asset = f"data-{dataset}"
    # Through str: on the command line a name of digits alone is read as a number.
    given = str(folder) or assets.override(asset)
    # The folder itself, the one above it, and so on: people name any of them.
    parts = Path(base).parts
    places = [Path(given, *parts[i:]) for i in range(len(parts), -1, -1)] if given else [assets.path(asset)]
    for place in places:
        if any((place / marker).exists() for marker in markers):
            return place
    looked = " nor in ".join(f"`{place}`" for place in places)
    raise missing(dataset, folder, f"{dataset} is not there: no `{markers[0]}` in {looked}")


def missing(dataset: str, folder: str, message: str) -> UserError:
    """The error for a dataset that can be fetched: the user's folder is wrong, or nothing was fetched yet."""
    hint = f"`purebench fetch data-{dataset}` downloads it"
    if folder:
        return UserError(message, f"{hint}; then leave `folder` out", USAGE)
    return UserError(message, f"{hint}; `{dataset}:folder=PATH` reads a copy of your own", DOWNLOAD)


def own_folder(dataset: str, folder: str, info: Mapping[str, Any], layout: str) -> Path:
    """The folder of a dataset that only its user can supply; UserError where there is none. info: the dataset's INFO; layout: what the
    folder holds."""
    place, given = supplied(info["own"], folder)
    if place.is_dir():
        return place
    if place.is_file():
        raise UserError(
            f"`{place}` for {dataset} is a file, and no folder", f"unpack it; the folder should hold {layout}"
        )
    if given:
        raise UserError(f"there is no folder `{given}` for {dataset}", f"it should hold {layout}")
    raise UserError(
        f"{dataset} is yours to supply: no folder is given, and there is no `{place}`",
        f"write `{dataset}:folder=PATH` or set {info['own']['variable']}; the folder holds {layout}",
    )


def image_folder(path: Path) -> Tree:
    """The images of a folder with one sub-folder per class, classes in torchvision's sorted order, digits by number."""
    return tree.in_order(tree.read(path))
