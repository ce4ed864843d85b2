"""Adversarial images that a user brings: read, checked against the dataset's shape, and hashed. Torch-free, but for a file of torch's.

Which ball they lie in is checked where the clean images are read (`running.brought`)."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purebench import datasets
from purebench.errors import UserError, decimal
from purebench.records import store
from purebench.spec import Resolved, Value, place

if TYPE_CHECKING:
    import numpy as np

NAMED = (
    "x_adv",
    "adv_inputs",
)  # entries that are the images, whatever lies beside them; the second is torchattacks' word
SHORT = 0.95  # of a radius: images that all stay below it look like those of a smaller one
SUFFIXES = (".npy", ".npz", ".pt", ".pth")
READS = "a file is .npy, .npz, .pt or .pth, with floats in [0,1] of shape [N,C,H,W]; or the folder of a recorded cell"


@dataclass(frozen=True)
class Given:
    """Images by position of a subset. `images`: (n,C,H,W) little-endian float32 in [0,1]; `digest`: of these, whatever held them."""

    images: np.ndarray
    digest: str
    place: str

    def __len__(self) -> int:
        return len(self.images)


def read(where: Value, dataset: Resolved, shape: list[int], size: int, subset: str) -> Given:
    """The images of a file or a cell's folder. dataset, shape [C,H,W], size and subset: of the run, whose position k has image k.

    Raises UserError for a place that has none, and for images of another shape, type or range, or more than the subset has."""
    path = place(where)
    if not path.exists():
        raise UserError(f"there is no `{where}`", READS)
    inside = path / store.IMAGES if path.is_dir() else path
    if not inside.is_file():
        raise UserError(
            f"`{where}` is no cell of a run", f"name one of the folders that `purebench status` lists; {READS}"
        )
    facts = inside.stat()
    return _read(str(path), (facts.st_size, facts.st_mtime_ns), dataset, tuple(shape), size, subset)


# A grid asks for each of its cells, and so does a run: read once, a file that is edited meanwhile cannot mix two attacks in one cell.
@lru_cache(maxsize=64)
def _read(
    text: str, _stamp: tuple[int, int], dataset: Resolved, shape: tuple[int, ...], size: int, subset: str
) -> Given:
    import numpy as np

    path = Path(text)
    order = datasets.order(size, subset)
    found = _of_cell(path, dataset, shape, order) if path.is_dir() else _shaped(path, array(path)[0], shape)
    if len(found) > len(order):
        raise UserError(
            f"`{path}` has {len(found)} images, and `{subset}` of {dataset} {len(order)}: they cannot be the same ones",
            "image k is that of position k of the run: save those of `purebench.module(..).images(n)`, in their order",
        )
    inside = (np.isfinite(found) & (found >= 0) & (found <= 1)).reshape(len(found), -1).all(1)
    if not inside.all():
        raise _outside(path, int(np.flatnonzero(~inside)[0]), found, len(found) - int(inside.sum()))
    images = np.ascontiguousarray(found, dtype="<f4")
    # Of shape and values alone: the same images as .npy, as .pt and from Python are one cell.
    digest = hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest()
    return Given(images, f"sha256:{digest}", text)


def _outside(path: Path, first: int, found: np.ndarray, count: int) -> UserError:
    low, high = float(found[first].min()), float(found[first].max())
    message = (
        f"{count} of the {len(found)} images of `{path}` are not in [0,1]; the first is image {first}, in "
        f"[{decimal(low)}, {decimal(high)}]"
    )
    if low != low:
        return UserError(
            message.replace("in [nan, nan]", "with NaN"), "an attack that failed on an image returns the clean one"
        )
    return UserError(
        message, "divide pixels by 255, take off a normalisation, and clip the last digits: x_adv.clip(0, 1)"
    )


def array(path: Path) -> tuple[np.ndarray, str]:
    """What the file holds as its images, of any type and shape, and which of its entries that is: "" where there is no other.

    Its kind is that of its first bytes, whatever its name says. Nothing in it is run. Raises UserError for a file that is none."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"`{path}` is of no kind that is read", READS)
    hint = READS
    try:
        match _kind(path):
            case "npy":
                return _single(path), ""
            case "npz":
                return _chosen(path, _members(path))
            case _:
                hint = "save the tensor itself: torch.save(x_adv.cpu(), FILE)"
                found = _saved(path)
                return _chosen(path, found if isinstance(found, Mapping) else _numbered(found))
    except UserError:
        raise
    except Exception as error:  # on damaged files numpy, torch and zipfile raise whatever they happen upon
        raise UserError(f"`{path}` cannot be read as images: {_said(error)}", hint) from None


def _kind(path: Path) -> str:
    """npy, npz or pt. Raises ValueError for what begins as none of them."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK\3\4"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        # Of two that were written one after the other a reader sees the last.
        if min(member.header_offset for member in members):
            raise ValueError("it has something before its beginning: several files in one?")
        return "pt" if any(member.filename.endswith("/data.pkl") for member in members) else "npz"
    # Torch's older files are pickles.
    if head.startswith(b"\x80") or path.suffix.lower() in (".pt", ".pth"):
        return "pt"
    raise ValueError("it is empty" if not head else "its content is of another kind")


def _single(path: Path) -> np.ndarray:
    import numpy as np

    with path.open("rb") as file:
        found: np.ndarray = np.load(file, allow_pickle=False)
        more = file.read(1)
    if more:
        raise UserError(
            f"`{path}` goes on behind its first array: several `np.save` into one file?", "save one array of all images"
        )
    return found


def _members(path: Path) -> Mapping[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        if len(set(arrays.files)) < len(arrays.files):
            raise ValueError("it holds two arrays of one name")
        return {key: arrays[key] for key in arrays.files}


def _saved(path: Path) -> Any:
    # The only reader of torch's files is torch.
    import torch

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse and quantised tensors, which are refused
        found = torch.load(file, map_location="cpu", weights_only=True)
        # Of the older kind, which is read from its beginning on.
        more = not zipfile.is_zipfile(path) and file.read(1)
    if more:
        raise ValueError("it goes on behind what was saved first: several `torch.save` into one file?")
    return found


def _said(error: Exception) -> str:
    """Why a file cannot be read, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    # Torch's own words are advice on how to run it all the same.
    if "weights_only" in text or isinstance(error, pickle.UnpicklingError | EOFError):
        asked = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it holds a `{asked[1]}`, and no ordinary tensor" if asked else "it is damaged, or no file of torch's"
    return "".join(c for c in text if c.isprintable())[:200] or type(error).__name__


def _numbered(found: Any) -> Mapping[str, Any]:
    return {str(i): item for i, item in enumerate(found)} if isinstance(found, list | tuple) else {"x_adv": found}


def _chosen(path: Path, entries: Mapping[Any, Any]) -> tuple[np.ndarray, str]:
    """The entry that is the images: by its name, else the only one with four dimensions; and its name where there are others."""
    arrays = {str(key): value for key, value in entries.items() if hasattr(value, "ndim")}
    named = [key for key in NAMED if key in arrays] or [key for key, value in arrays.items() if value.ndim == 4]
    if len(named) != 1:
        shapes = ", ".join(f"`{key}` {list(value.shape)}" for key, value in arrays.items()) or "nothing of the kind"
        raise UserError(
            f"which entry of `{path}` are the images? It has {shapes}",
            "call them x_adv; of a list of images save `torch.stack(images)`",
        )
    return numbers(arrays[named[0]], f"`{path}`"), named[0] if len(arrays) > 1 else ""


def numbers(value: Any, what: str) -> np.ndarray:
    """An array, or a tensor of torch's on any device, as a plain array. Raises UserError for a tensor without such numbers: sparse,
    nested, meta, or of a type that numpy has not. what: holds it, for the message."""
    import numpy as np

    if not hasattr(value, "detach"):
        return np.asarray(value)
    from purebench.datasets import images

    value = images.dense(value, f"the images of {what}")
    try:
        found: np.ndarray = value.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError):  # bfloat16, the floats of 8 bits, ..
        raise _rounded(what, str(value.dtype).removeprefix("torch.")) from None
    return found


def _rounded(what: str, dtype: object) -> UserError:
    return UserError(
        f"the images of {what} are {dtype}, expected float32",
        "save what the attack returned, in float32: rounded, to 8 bits above all, images are no longer those that it found",
    )


def _shaped(path: Path, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array as (n,C,H,W)."""
    if str(found.dtype.newbyteorder("=")) not in ("float32", "float64"):
        raise _rounded(f"`{path}`", found.dtype)
    channels, height, width = shape
    first, last = shape, (height, width, channels)
    if found.ndim == 4 and found.shape[1:] in (first, last) and len(found):
        if first == last:
            raise UserError(
                f"the images of `{path}` are {list(found.shape)}: which of these is the channel cannot be told",
                "give them as the folder of a cell",
            )
        return found if found.shape[1:] == first else found.transpose(0, 3, 1, 2)
    raise UserError(
        f"the images of `{path}` have the shape {list(found.shape)}, expected [N,{channels},{height},{width}]",
        "they are images of the run's dataset, as `purebench.module(..).images(n)` gives them",
    )


def _of_cell(folder: Path, dataset: Resolved, shape: tuple[int, ...], order: list[int]) -> np.ndarray:
    """The images of another run, found by their index in the dataset: those of our positions 0, 1, .. as far as it has them."""
    import numpy as np

    data = store.read_cell(folder)
    theirs = (data["cell"]["dataset"], store.parts(data["cell"])["dataset"]["hash"])
    if theirs != (str(dataset), dataset.digest):
        raise UserError(
            f"`{folder}` has images of `{theirs[0]}`, and the run is on `{dataset}`"
            + (" (another content)" if theirs[0] == str(dataset) else ""),
            "images are found by their index, so both have to be of the same dataset",
        )
    raw = (folder / store.ADVERSARIAL).read_bytes() if (folder / store.ADVERSARIAL).is_file() else b""
    row = 4 * math.prod(shape)
    lines = [line for line in store.latest(folder).values() if not store.lost(line)]
    # As the store asks when it is opened: an image that is not the one of its line was being written when its process died.
    rows = {
        line["position"]: line["index"]
        for line in lines
        if line.get("adv_crc", "") in ("", store.crc(raw[line["position"] * row : (line["position"] + 1) * row]))
        and len(raw) >= (line["position"] + 1) * row
    }
    elsewhere = {index: position for position, index in rows.items()}
    found: list[bytes] = []
    for k, index in enumerate(order):
        # An index may stand at several positions (`groups`), with another image at each.
        position = k if rows.get(k) == index else elsewhere.get(index)
        if position is None:
            break
        found.append(raw[position * row : (position + 1) * row])
    if not found:
        raise UserError(
            f"`{folder}` has no image of the run's first position (index {order[0]} of {dataset})",
            "run the same `--subset`, and an attack that made an image of it",
        )
    return np.frombuffer(b"".join(found), dtype="<f4").reshape(-1, *shape)
