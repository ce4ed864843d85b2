"""Published checkpoints as tensors: every container layout is read as data, and nothing in a file is run.

Files of torch are first checked with `unpickle.Reader` (what they ask for, and how much memory), then read with
`torch.load(weights_only=True)`. EDM's pickles are read by `unpickle.read` alone and converted once to safetensors and JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from torch import Tensor, nn

from purebench import assets, atomic
from purebench.assets import contents, unpickle
from purebench.assets.contents import described as _described
from purebench.assets.unpickle import Broken, Refused
from purebench.errors import DOWNLOAD, UserError, unknown

MAX_BYTES = contents.MAX_BYTES
DERIVED = ("sigmas", "num_batches_tracked")  # buffers that networks work out themselves; files may lack them
PRECONDITIONERS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
# Of torch.load, besides: what people save beside the weights, such as an accuracy as a numpy scalar or their options.
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
    weights: str = "",
) -> dict[str, Tensor]:
    """The weights of a checkpoint by key, on CPU; floating ones as float32, whole numbers as they are.

    format: a name of `FORMATS`; what the file's own first bytes say comes first. order: the parameters that the network trains, by
    which averages without names are told. weights: `ema`, `raw`, or "" for the average where the file has one.
    UserError: an unknown format; exit 3 for a file that is missing, damaged, hostile, of another layout or without these weights."""
    path = Path(path)
    if format not in FORMATS:
        raise unknown("checkpoint format", format, FORMATS)
    if weights not in ("", *contents.KINDS):
        raise unknown("kind of weights", weights, contents.KINDS)
    format = contents.format_of(path, format)
    with contents.as_user_errors(path, format):
        # A value takes a byte or more in the file and four here.
        return _float32(FORMATS[format](path, order, weights), 4 * path.stat().st_size)


def edm(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, weights) of an EDM pickle: its init_kwargs with `precond` (edm, vp or ve) by its class. UserError as `state`."""
    path = Path(path)
    with contents.as_user_errors(path, "edm-pickle"):
        tensors, class_name, config = _edm(path)
        if class_name not in PRECONDITIONERS:
            got = unpickle.quoted(class_name)
            raise Broken(f"its network is of class {got}, expected one of {', '.join(PRECONDITIONERS)}")
        return {**config, "precond": PRECONDITIONERS[class_name]}, _float32(tensors, MAX_BYTES)


def schedule(path: Path, weights: str = "") -> dict[str, Tensor]:
    """What a torch or safetensors file says of its diffusion's schedule, by the names of `contents.SCHEDULE`: float64; {} of most files.
    UserError as `state`."""
    with contents.as_user_errors(path, "state-dict"):
        tree = safetensors.torch.load_file(path) if contents.is_safetensors(path) else read(path)
        found = contents.find(tree)
        kind = contents.choose(found.sets, weights if found.labelled else "", path.name)
        return {key: value.double() for key, value in found.sets[kind].schedule.items() if isinstance(value, Tensor)}


def load(
    network: nn.Module, state: Mapping[str, Tensor], what: str, derived: Sequence[str] = DERIVED, hint: str = ""
) -> nn.Module:
    """The network, filled in place with copies of the tensors.

    derived: last parts of the buffers' keys that may be absent. UserError (exit 3), with the network untouched, if keys are missing or
    unexpected, if shapes differ, or if a tensor holds NaN or infinity."""
    own = network.state_dict()
    # Under a wrapper, on either side, all keys begin alike.
    names = contents.fitted(state, list(own))
    state = {names[key]: value for key, value in state.items()}
    spare = {key for key, _ in network.named_buffers() if key.rpartition(".")[2] in derived}
    missing = [f"`{key}`" for key in own if key not in state and key not in spare]
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
    in_parts, kind, way = contents.parametrised(key for key in state if key not in own)
    if wrong and in_parts and not contents.parametrised(own)[0]:
        raise UserError(
            f"`{what}` has the weights of {kind} in parts (`{in_parts[:80]}`), and its network has them as one",
            f"before the state dict is saved, for each such layer: `{way}`",
            DOWNLOAD,
        )
    if wrong and (inside := _all_inside(state, own)):
        others = [f"`{key[:80]}`" for key in state if not key.startswith(inside)]
        raise UserError(
            f"`{what}` holds its network under `{inside}`, and besides it {', '.join(others[:3])}{', ..' if len(others) > 3 else ''}",
            "if none of that changes an answer (a loss does not, a normaliser does), save the network alone: `state = torch.load(FILE)`, "
            "of Lightning `torch.load(FILE)['state_dict']`, then "
            f"`torch.save({{k.removeprefix('{inside}'): v for k, v in state.items() if k.startswith('{inside}')}}, OTHER)`",
            DOWNLOAD,
        )
    if wrong:
        raise UserError(
            f"`{what}` does not fit its network: of {len(own)} keys {'; '.join(wrong)}",
            hint or "is it the checkpoint of this architecture?",
            DOWNLOAD,
        )
    for key, tensor in state.items():
        # Looked at here: later a NaN would seem to come from the defense, and count as a wrong answer.
        bad = int((~tensor.isfinite()).sum())
        if bad:
            message = f"`{what}` holds NaN or infinity: {bad:,} of {tensor.numel():,} values of `{key}`"
            raise UserError(message, "a training that diverged saves such; give another file", DOWNLOAD)
    # `strict` is asked above, with words for what does not fit, and but for what networks derive.
    given: Any = OrderedDict(state)
    # The versions of its modules: of what fits key by key, these are the network's own, also where a file has none.
    given._metadata = getattr(own, "_metadata", {})
    network.load_state_dict(given, strict=False)
    return network


def _all_inside(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The beginning of keys under which a file holds all of a network, of its shapes, beside something else; "" where it does not."""
    first = next(iter(own))
    for start in (key.removesuffix(first) for key in state if key.endswith(f".{first}")):
        if all(
            (found := state.get(start + key)) is not None and found.shape == value.shape for key, value in own.items()
        ):
            return start
    return ""


def read(path: Path) -> object:
    """What a torch file holds (zip, or the older format); tensors on CPU. Raises Refused, Broken and UserError."""
    contents.walk(path)
    with path.open("rb") as file:
        zipped = contents.is_zip(file.read(4))
    try:
        # Mapped: what is not used, such as an optimizer's state, is then never read.
        with torch.serialization.safe_globals(SAFE):
            if path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
            # Of a file by this name torch does not ask what it is.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises whatever it happens upon
        raise Broken(f"torch cannot read it: {str(error).strip().partition(chr(10))[0][:200]}") from None


# The layouts: (path, order, weights) -> key -> tensor.


def _torch(path: Path, order: Order, weights: str) -> object:
    """Any layout that people save weights in: `contents.find` says which set is where."""
    return _chosen(path, read(path), order, weights)


def _chosen(path: Path, tree: object, order: Order, weights: str) -> object:
    """One set of a file's, completed from the raw weights by what is not averaged: buffers, and parameters that are not trained."""
    whole = contents.find(tree)
    sets = whole.sets
    kind = contents.choose(sets, weights if whole.labelled else "", path.name)
    found, raw = sets[kind].values, sets["raw"].values if "raw" in sets else {}
    if isinstance(found, list):
        found = _named(found, order, sets[kind].place)
    if kind == "raw" or not isinstance(raw, dict):
        return found
    # Where the network is not known, what it trains is not either.
    names, own = (contents.fitted(keys, list(order or found)) for keys in (raw, found))
    found = {own[key]: value for key, value in found.items()}
    rest = {
        names[key]: value for key, value in raw.items() if names[key] not in found and not _trains(order, names[key])
    }
    return {**rest, **found}


def _trains(order: Order, key: str) -> bool:
    """Whether an average ought to have this: it is trained. Without a network to ask, only what batch norms count is surely not."""
    return key in order if order else key.rpartition(".")[2] not in ("running_mean", "running_var", *DERIVED)


def _named(values: list[Any], order: Order, place: str) -> dict[str, Tensor]:
    """An average that is saved as a list, in the order of the network's trained parameters: torch_ema's, score_sde's and diffusers'."""
    if order is None:
        raise UserError(f"the averaged weights in {place} come without names, expected the network's `order`")
    if len(values) != len(order):
        raise Broken(f"its {place} holds {len(values)} tensors, expected the network's {len(order)} parameters")
    # Where two neighbours are exchanged, only a shape can tell.
    for name, value in zip(order, values, strict=True):
        if isinstance(order, Mapping) and tuple(value.shape) != tuple(order[name]):
            raise Broken(f"its {place} has {list(value.shape)} in the place of `{name}`, expected {list(order[name])}")
    return dict(zip(order, values, strict=True))


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
        unpickle.check_head(file.read(512), path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise Broken(f"it is cut short, or of another kind ({str(error)[:120]})") from None
    return _chosen(path, tensors, order, weights)


def _edm_state(path: Path, order: Order, weights: str) -> object:
    """The weights of an EDM pickle: its average, which is converted once, or the raw ones."""
    if weights == "raw":
        return {key: torch.from_numpy(value) for key, value in unpickle.read(path, key="net").state.items()}
    return _edm(path)[0]


FORMATS: dict[str, Callable[[Path, Order, str], object]] = {
    "state-dict": _torch,
    "score-sde": _torch,
    "ncsnv2-list": _torch,
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
