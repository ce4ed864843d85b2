"""Published checkpoints as tensors: every container layout is read as data, and nothing in a file is run.

Files of torch are first checked with `unpickle.Reader` (what they ask for, and how much memory), then read with
`torch.load(weights_only=True)`. EDM's pickles are read by `unpickle.read` alone and converted once to safetensors and JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from torch import Tensor, nn

from purebench import assets, atomic
from purebench.assets import unpickle
from purebench.assets.unpickle import FETCH_AGAIN, Broken, Refused
from purebench.errors import DOWNLOAD, UserError, unknown

MAX_BYTES = 8 << 30  # of a checkpoint file
# What DataParallel around a normalisation and the network puts before a key; DataParallel; a wrapper. The longest comes first.
PREFIXES = ("module.0.", "module.", "model.")
DERIVED = ("sigmas", "num_batches_tracked")  # buffers that networks work out themselves; files may lack them
PRECONDITIONERS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
TORCH: dict[str, unpickle.Rule] = {  # in any torch file, besides
    **unpickle.PLAIN,
    "torch.Size": lambda items=(): tuple(items),
    "argparse.Namespace": unpickle.node("argparse.Namespace"),
}
# The same for torch.load: what people save beside the weights, such as an accuracy as a numpy scalar or their options.
SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in unpickle.NUMPY_CODES},
    *((multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

Order = Sequence[str] | Mapping[str, Sequence[int]] | None  # a network's parameters, by name or name -> shape


def state(
    path: Path | str,
    format: str,
    *,
    order: Order = None,
    weights: str = "ema",
) -> dict[str, Tensor]:
    """The weights of a checkpoint by key, on CPU; floating ones as float32, whole numbers as they are.

    format: a name of `FORMATS`. order: the network's parameters, as `score-sde` needs them.
    weights: `ema` or `raw`, for the formats that hold both.
    UserError: an unknown format; exit 3 for a file that is missing, damaged, hostile or of another layout."""
    path = Path(path)
    if format not in FORMATS:
        raise unknown("checkpoint format", format, FORMATS)
    if weights not in ("ema", "raw"):
        raise unknown("kind of weights", weights, ("ema", "raw"))
    with _as_user_errors(path, format):
        # A value takes a byte or more in the file and four here.
        return _float32(FORMATS[format](path, order, weights), 4 * path.stat().st_size)


@contextlib.contextmanager
def _as_user_errors(path: Path, format: str) -> Iterator[None]:
    """Whatever goes wrong with a file, as one UserError (exit 3)."""
    try:
        yield
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}", "fetch it first", DOWNLOAD) from None
    except Refused as error:
        raise UserError(f"refused `{path.name}`: {error}", f"nothing of it was run; {FETCH_AGAIN}", DOWNLOAD) from None
    except Broken as error:
        raise UserError(
            f"`{path.name}` is not a checkpoint of format `{format}`: {error}",
            f"{FETCH_AGAIN}, or look at its format",
            DOWNLOAD,
        ) from None


def edm(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, weights) of an EDM pickle: its init_kwargs with `precond` (edm, vp or ve) by its class. UserError as `state`."""
    path = Path(path)
    with _as_user_errors(path, "edm-pickle"):
        tensors, class_name, config = _edm(path)
        if class_name not in PRECONDITIONERS:
            got = unpickle.quoted(class_name)
            raise Broken(f"its network is of class {got}, expected one of {', '.join(PRECONDITIONERS)}")
        return {**config, "precond": PRECONDITIONERS[class_name]}, _float32(tensors, MAX_BYTES)


def load(network: nn.Module, state: Mapping[str, Tensor], what: str, derived: Sequence[str] = DERIVED) -> nn.Module:
    """The network, filled in place with copies of the tensors.

    derived: last parts of the keys that may be absent. UserError (exit 3), with the network untouched, if keys are missing or
    unexpected, if shapes differ, or if a tensor holds NaN or infinity."""
    own = network.state_dict()
    missing = [f"`{key}`" for key in own if key not in state and key.rpartition(".")[2] not in derived]
    unexpected = [f"`{key[:80]}`" for key in state if key not in own]
    shapes = [
        f"`{key}` {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    wrong = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ..' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if wrong:
        raise UserError(
            f"`{what}` does not fit its network: of {len(own)} keys {'; '.join(wrong)}",
            "is it the checkpoint of this architecture?",
            DOWNLOAD,
        )
    for key, tensor in state.items():
        # Looked at here: later a NaN would seem to come from the defense, and count as a wrong answer.
        bad = int((~tensor.isfinite()).sum())
        if bad:
            message = f"`{what}` holds NaN or infinity: {bad:,} of {tensor.numel():,} values of `{key}`"
            raise UserError(message, FETCH_AGAIN, DOWNLOAD)
    # `strict` is asked above, with words for what does not fit, and but for what networks derive.
    network.load_state_dict(dict(state), strict=False)
    return network


def read(path: Path) -> object:
    """What a torch file holds (zip, or the older format); tensors on CPU. Raises Refused, Broken and UserError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise Refused(f"it has {size:,} bytes, expected at most {MAX_BYTES:,}")
    with path.open("rb") as file:
        head = file.read(512)
        unpickle.check_head(head, path.name)
        zipped = head.startswith(b"PK\x03\x04")
        # torch refuses these too, with words that do not say what the file is.
        if not zipped and head[257:262] == b"ustar":
            raise Broken("it is a tar file, as torch wrote them before 2017; such files cannot be read safely")
        try:
            if zipped:
                _check_zip(path, size)
            else:
                _check_legacy(file, size)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise Broken(f"it is cut short, or damaged ({str(error)[:120]})") from None
    try:
        # Mapped: what is not used, such as an optimizer's state, is then never read.
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # on damaged files torch raises whatever it happens upon
        raise Broken(f"torch cannot read it: {str(error).strip().partition(chr(10))[0][:200]}") from None


def _check_zip(path: Path, size: int) -> None:
    """What `read` is about to load: names, and sizes that the file really has."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        total = sum(entry.file_size for entry in entries.values())
        # Two readers might each find another one of them: what was checked would not be what is loaded.
        if len(entries) < len(archive.infolist()):
            raise Refused("it holds two members of one name")
        programs = [name for name in entries if name.endswith("data.pkl")]
        # constants.pkl is TorchScript's, which holds a program to be run.
        if len(programs) != 1 or any(name.endswith("constants.pkl") for name in entries):
            raise Broken("it is a zip file, but none of torch's checkpoints")
        # torch stores without compression: what unpacks to more than it is was made to fill the memory.
        if total > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Refused(f"it unpacks to {total:,} bytes, more than its {size:,}, or is compressed")
        content = archive.read(programs[0])
    folder = programs[0].removesuffix("data.pkl") + "data/"

    # torch would make room for what is announced before it finds that it is not there.
    def storage(pid: object) -> unpickle.Storage:
        found = unpickle.storage_id(pid)
        held = entries[folder + found.key].file_size if folder + found.key in entries else 0
        if found.nbytes > held:
            raise Refused(f"it announces a storage of {unpickle.count_text(found.nbytes)} bytes and holds {held:,}")
        return found

    unpickle.Reader(BytesIO(content), TORCH, storage, allowance=4 * len(content) + (1 << 20)).load()


def _check_legacy(file: BinaryIO, size: int) -> None:
    """The same of a file in the format before zip files."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        storages: dict[str, int] = {}

        def storage(pid: object) -> unpickle.Storage:
            found = unpickle.storage_id(pid)
            # One storage may be announced by several tensors; it is stored once.
            storages[found.key] = max(storages.get(found.key, 0), found.nbytes)
            return found

        _, keys = unpickle.legacy(stream, TORCH, storage)
        # Before the values of each storage stands their number, in eight bytes.
        needed, held = sum(storages.values()) + 8 * len(keys), size - stream.tell()
    if set(keys) != set(storages):
        raise Broken("it does not list its storages")
    if needed > held:
        raise Broken(f"it is cut short: it announces {unpickle.count_text(needed)} bytes of tensors and holds {held:,}")


# The layouts: (path, order, weights) -> key -> tensor.


def _state_dict(path: Path, order: Order, weights: str) -> object:
    """A state dict, or a dictionary that holds one; its keys without the prefixes of wrappers."""
    found = read(path)
    # What people call the weights where they save other things beside them.
    for name in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    return _strip(found)


def _score_sde(path: Path, order: Order, weights: str) -> object:
    """{optimizer, model, ema: {decay, num_updates, shadow_params: list in the order of the parameters}, step}."""
    found = read(path)
    if not isinstance(found, dict) or not {"model", "ema"} <= set(found):
        raise Broken(f"it holds {_described(found)}, expected optimizer, model, ema, step")
    if weights == "raw":
        return _strip(found["model"])
    shadow = found["ema"].get("shadow_params") if isinstance(found["ema"], dict) else None
    if not isinstance(shadow, list) or not all(isinstance(value, Tensor) for value in shadow):
        raise Broken("its `ema` holds no list `shadow_params` of tensors")
    if order is None:
        raise UserError("the averaged weights of `score-sde` come without names, expected the network's `order`")
    if len(shadow) != len(order):
        raise Broken(f"its `ema` holds {len(shadow)} tensors, expected the network's {len(order)} parameters")
    # The averaged weights have no names, only an order: where two neighbours are exchanged, only a shape can tell.
    for name, value in zip(order, shadow, strict=True):
        if isinstance(order, Mapping) and tuple(value.shape) != tuple(order[name]):
            raise Broken(f"its `ema` has {list(value.shape)} in the place of `{name}`, expected {list(order[name])}")
    return dict(zip(order, shadow, strict=True))


def _ncsnv2(path: Path, order: Order, weights: str) -> object:
    """[model, optimizer, epoch, step, ema], the last only where training averaged."""
    found = read(path)
    if not isinstance(found, list) or len(found) not in (4, 5):
        raise Broken(f"it holds {_described(found)}, expected a list of model, optimizer, epoch, step, ema")
    # Never the raw weights instead: they give other numbers under the same name.
    if weights == "ema" and len(found) < 5:
        raise Broken("it holds no averaged weights, only raw ones")
    return _strip(found[4 if weights == "ema" else 0])


def _robustbench(path: Path, order: Order, weights: str) -> object:
    """A state dict, or {state_dict}, or {last, best, ..}; `module.`, then `model.` go from whichever keys carry them."""
    # As RobustBench's own `rm_substr_from_state_dict` does it: key by key, not only where all have the prefix.
    found = read(path)
    if isinstance(found, dict):
        found = found.get("state_dict", found.get("last", found))
    if isinstance(found, dict):
        found = {str(key).removeprefix("module.").removeprefix("model."): value for key, value in found.items()}
    return found


def _safetensors(path: Path, order: Order, weights: str) -> object:
    """Tensors by key and nothing else, in a format that cannot hold a program."""
    with path.open("rb") as file:
        unpickle.check_head(file.read(512), path.name)
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise Broken(f"it is cut short, or of another kind ({str(error)[:120]})") from None


def _edm_state(path: Path, order: Order, weights: str) -> object:
    """The weights of an EDM pickle, whose averaged network is the only one used."""
    return _edm(path)[0]


FORMATS: dict[str, Callable[[Path, Order, str], object]] = {
    "state-dict": _state_dict,
    "score-sde": _score_sde,
    "ncsnv2-list": _ncsnv2,
    "edm-pickle": _edm_state,
    "safetensors": _safetensors,
    "robustbench": _robustbench,
}


def _edm(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """(tensors, class name, init_kwargs) of an EDM pickle, from the converted files beside it if they are of it."""
    # Converted once: safetensors can hold no program, and a pickle is walked no oftener than it must be.
    weights, facts_file = path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")
    stat = path.stat()
    source = {"sha256": assets.sha256(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    # Whatever is wrong with the converted files, the pickle is there: they are made again.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        with safetensors.safe_open(weights, "pt") as file:
            if facts["source"] == source and file.metadata()["source"] == source["sha256"]:
                tensors = {key: file.get_tensor(key) for key in facts["keys"]}
                return tensors, facts["class_name"], facts["init_kwargs"]
    found = unpickle.read(path)
    tensors = {key: torch.from_numpy(value) for key, value in found.state.items()}
    facts = {"class_name": found.class_name, "init_kwargs": found.init_kwargs, "source": source, "keys": list(tensors)}
    # Where nothing can be written, it is converted again the next time.
    with contextlib.suppress(OSError):
        with atomic.replacing(weights) as temporary:
            safetensors.torch.save_file(tensors, temporary, {"source": str(source["sha256"])})
        # Last: a kill in between leaves weights that no facts belong to.
        atomic.replace(facts_file, json.dumps(facts, indent=1))
    return tensors, found.class_name, found.init_kwargs


def _strip(state: object) -> object:
    """The keys without each prefix that all of them carry."""
    for prefix in PREFIXES:
        if isinstance(state, dict) and state and all(str(key).startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _described(value: object) -> str:
    """What a file holds instead of what it should."""
    if isinstance(value, dict):
        return f"the keys {', '.join(unpickle.quoted(key) for key in list(value)[:5])}"
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"


def _float32(state: object, max_bytes: int) -> dict[str, Tensor]:
    """Copies that own their memory, of `max_bytes` at most. They are counted as float32: views of one storage could be many."""
    if not isinstance(state, Mapping) or not state:
        raise Broken(f"it holds {_described(state)}, expected weights by key")
    result = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise Broken(f"it holds {_described(value)} as {unpickle.quoted(key)}, expected a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise Broken(f"its {unpickle.quoted(key)} is a tensor of type {value.dtype}, {value.layout}")
        # Before the copy is made: a view of one byte may claim any number of values.
        max_bytes -= value.numel() * 4
        if max_bytes < 0:
            raise Refused("its tensors hold more than the file")
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        result[key] = value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    return result
