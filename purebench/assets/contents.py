"""Which sets of weights a file holds, and under which keys: without torch, and without reading a tensor.

People save the raw weights, an average of them, or both, in as many layouts as there are training scripts. `find` is the one place
that says which set is where: the plan asks it of what `unpickle.Reader` walked, the reader of what torch loaded, and so they cannot
disagree. Nothing is guessed: two averages, or two networks, are refused by name."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from purebench.assets import unpickle
from purebench.assets.unpickle import Broken, Refused, quoted
from purebench.errors import DOWNLOAD, UserError

MAX_BYTES = 8 << 30  # of a checkpoint file
MAX_HEADER = 100 << 20  # of a safetensors file, as its own library has it
KINDS = ("ema", "raw")
# What people call a network where they save other things beside it.
NETWORKS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "net_state_dict", "network_state_dict",
    "params", "weights", "unet", "classifier",
)  # fmt: skip
# Beside these the weights of the usual name are the average: names of whoever trains with averaging as the rule.
UNAVERAGED = ("unaveraged_model_state_dict", "current_model_state")
AVERAGE = re.compile(r"(^|[^a-z])(emas?|ewma|shadow|average[ds]?|avgs?|swa|polyak)([^a-z]|$)")
NO_NETWORK = re.compile(
    r"(^|[^a-z])(optim\w*|opts?|sched\w*|lr|scaler|amp|callbacks?|loops?|rng|args|config|hparams|hyper\w*|gns)([^a-z]|$)"
)
# Things of an optimizer's are of the weights' shapes, and no weights; so are gradients.
OPTIMIZERS = re.compile(r"(^|[^a-z])(optim\w*|opts?|adamw?|sgd|sched\w*|scaler|grads?|gradients?|exp_avg\w*)([^a-z]|$)")
# What wrappers put before every key of the network that they hold. The longest of those with one beginning come first.
WRAPPERS = (
    "module.0.", "module.", "_orig_mod.", "_forward_module.", "ema_model.", "online_model.", "model_ema.", "model.", "net.",
    "network.", "diffusion_model.", "denoise_fn.", "unet.", "ema.",
)  # fmt: skip
# What is counted or set beside weights: of one value each.
COUNTS = frozenset({
    "decay", "num_updates", "n_averaged", "step", "steps", "initted", "optimization_step", "min_decay", "power", "inv_gamma",
    "update_after_step", "use_ema_warmup", "epoch", "global_step", "iteration", "collected_params", "temp_stored_params",
})  # fmt: skip
MAX_PREFIX = 80  # characters of a wrapper's prefix
PROFILED = ("total_ops", "total_params")  # what thop leaves in every module
# What diffusions keep of their schedule beside their network: not of it.
SCHEDULE = frozenset({
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "p2_loss_weight", "loss_weight",
    "lvlb_weights", "logvar",
})  # fmt: skip
NOISE = ("betas", "alphas_cumprod")  # of these the one that says the noise of each index
# Under these names people keep the mean and the deviation that images are normalised with.
MEAN = re.compile(r"(?:(?:norm|normali[sz]\w*|images?|img|pixels?|data|dataset|inputs?|channels?|rgb)_)?means?")
NORMALISES = re.compile(r"norm|pre_?proc|transform|pixel|image|stats|data")
# Layers whose weights are saved in other parts: what its keys end with -> what it is, and what makes one weight of them.
PARAMETRISED = (
    (r"\.parametrizations\.\w+\.original\d*", "a parametrization", "torch.nn.utils.parametrize.remove_parametrizations(LAYER, 'weight')"),
    (r"\.(weight|bias)_mask", "pruning", "torch.nn.utils.prune.remove(LAYER, 'weight')"),
    (r"\.weight_g", "weight normalisation", "torch.nn.utils.remove_weight_norm(LAYER)"),
    (r"\.weight_u", "spectral normalisation", "torch.nn.utils.remove_spectral_norm(LAYER)"),
)  # fmt: skip
DISCRIMINATORS = re.compile(r"(^|[^a-z])(net_?)?(d|dis|disc|discriminator|critic)([^a-z]|$)")
DEPTH, PARTS = (
    8,
    1_000_000,
)  # levels of a file that are looked through, and what may stand in them: some contain themselves

TORCH: dict[str, unpickle.Rule] = {  # in any torch file, besides
    **unpickle.PLAIN,
    **unpickle.BESIDE,
    "torch.Size": lambda items=(): tuple(items),
    "argparse.Namespace": unpickle.node("argparse.Namespace"),
}


class Uncertain(Broken):
    """A file is whole, and which of its weights are meant is not certain; `hint`: how to say it."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Held:
    """A tensor of a file that is known by its shape alone."""

    shape: tuple[int, ...]
    stride: tuple[int, ...] = ()


@dataclass(frozen=True)
class Set:
    """One set of weights. `values`: tensors by key without wrappers' prefixes, or in the order of the parameters where the file has no
    names; `place`: where it was found, in words; `schedule`: what the file says of the diffusion's schedule beside it."""

    values: dict[str, Any] | list[Any]
    place: str
    schedule: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Normaliser:
    """What a file says, beside its weights, that images are normalised with. `places`: the keys of the mean and of the deviation; `values`:
    these two, of one number for each channel; empty where they are tensors, whose values a plan does not read; `plain`: whether they
    are lists of numbers, and not one number that may be anything's."""

    places: tuple[str, str]
    values: tuple[tuple[float, ...], tuple[float, ...]] | tuple[()] = ()
    plain: bool = True


@dataclass(frozen=True)
class Found:
    """The sets of a file by kind, `ema` or `raw`; `passed`: what of the file is in none; `normalisers`: what of that normalises images."""

    sets: dict[str, Set]
    passed: tuple[str, ...] = ()
    normalisers: tuple[Normaliser, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether it says which its weights are. A state dict alone does not: it may be the raw weights, or an average."""
        return len(self.sets) > 1 or "ema" in self.sets or bool(self.sets["raw"].place)


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Contents:
    """What a file holds. `sets`: `ema` or `raw` -> shapes by key, without wrappers' prefixes; of one of `nameless` (an average that is
    saved as a list) the keys are the places 0, 1, .. in the order of the network's trained parameters. `passed`: what was passed over;
    `normalisers`: what of that normalises images.
    `labelled`: whether the file says which its weights are. `noise`: whether it says the noise of a diffusion at its indices. `config`,
    `class_name`: of an EDM pickle."""

    sets: dict[str, Shapes]
    nameless: frozenset[str] = frozenset()
    passed: tuple[str, ...] = ()
    labelled: bool = True
    noise: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""
    normalisers: tuple[Normaliser, ...] = ()

    def choose(self, weights: str, what: str) -> str:
        """Which set is meant: `weights`, or where that is empty the average if there is one. UserError if it is not there."""
        return choose(self.sets, weights if self.labelled else "", what)


def of(path: Path | str, format: str) -> Contents:
    """The contents of a file, which is walked once for as long as it stays the same. format: as the registry says it, of a file of that
    kind; what the file's own first bytes say comes first (`format_of`).

    UserError (exit 3): it is missing, damaged, hostile, or holds no weights, or several sets of one kind."""
    path = Path(path)
    format = format_of(path, format)
    with as_user_errors(path, format):
        facts = path.stat()
        return _of(path, format, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _of(path: Path, format: str, size: int, changed_ns: int) -> Contents:
    if format == "edm-pickle":
        pickled = unpickle.read(path)
        held = {"ema": pickled} | ({"raw": unpickle.read(path, key="net")} if pickled.raw else {})
        shapes = {kind: {key: value.shape for key, value in one.state.items()} for kind, one in held.items()}
        return Contents(shapes, config=pickled.init_kwargs, class_name=pickled.class_name)
    found = find(header(path) if format == "safetensors" else walk(path))
    sets: dict[str, Shapes] = {}
    for kind, one in found.sets.items():
        items = one.values.items() if isinstance(one.values, dict) else enumerate(one.values)
        sets[kind] = {str(key): tuple(value.shape) for key, value in items}
    nameless = frozenset(kind for kind, one in found.sets.items() if isinstance(one.values, list))
    noise = any(key in one.schedule for one in found.sets.values() for key in NOISE)
    return Contents(sets, nameless, found.passed, found.labelled, noise, normalisers=found.normalisers)


def format_of(path: Path, format: str) -> str:
    """The format that a file has where one of `format` was asked for: a user may have converted or renamed it."""
    if is_safetensors(path):
        return "safetensors"
    named = "safetensors" if path.suffix == ".safetensors" else format
    if named not in ("edm-pickle", "safetensors"):
        return named
    with contextlib.suppress(OSError), path.open("rb") as file:
        # torch's own, of either age; EDM's pickles are none.
        head = file.read(32)
        if head.startswith(b"PK\x03\x04") or struct.pack("<Q", 0x1950A86A20F9469C)[1:7] in head:
            return "state-dict"
    return named


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with the length of a header, and this. Its name says nothing: caches rename files."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] <= MAX_HEADER


def choose(sets: Mapping[str, object], weights: str, what: str) -> str:
    """`weights`, or where that is empty `ema` if it is there, else `raw`. UserError for a set that the file does not hold."""
    if not weights:
        return "ema" if "ema" in sets else "raw"
    if weights in sets:
        return weights
    if weights == "ema":
        raise UserError(f"`{what}` holds no averaged weights, only raw ones", "ask for them: `weights=raw`")
    raise UserError(f"`{what}` holds no raw weights, only averaged ones", "ask for them: `weights=ema`")


# From a file to a tree of plain values, in which tensors are known by their shapes.


@contextlib.contextmanager
def as_user_errors(path: Path, format: str) -> Iterator[None]:
    """Whatever goes wrong with a file, as one UserError (exit 3)."""
    again = unpickle.remedy(path)
    try:
        yield
    except OSError as error:
        hint = "fetch it first" if again == unpickle.FETCH_AGAIN else "give the path of a weights file"
        raise UserError(f"`{path}` cannot be read: {error.strerror}", hint, DOWNLOAD) from None
    except Refused as error:
        hint = f"nothing of it was run; {again}"
        raise UserError(f"refused `{path.name}`: {error}", hint, DOWNLOAD) from None
    except Uncertain as error:
        raise UserError(f"`{path.name}`: {error}", error.hint, DOWNLOAD) from None
    except Broken as error:
        hint = f"{again}, or look at its format" if again == unpickle.FETCH_AGAIN else f"is it whole? else {again}"
        message = f"`{path.name}` is not a checkpoint of format `{format}`: {error}"
        raise UserError(message, hint, DOWNLOAD) from None


def walk(path: Path) -> object:
    """What a torch file (zip, or the older format) holds, with `unpickle.Tensor` for its tensors, whose values are not read. What it
    asks for and the sizes that it announces are checked. Raises Refused, Broken and UserError."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise Refused(f"it has {size:,} bytes, expected at most {MAX_BYTES:,}")
    with path.open("rb") as file:
        head = file.read(512)
        unpickle.check_head(head, path)
        # torch refuses these too, with words that do not say what the file is.
        if head[257:262] == b"ustar":
            raise Broken("it is a tar file, as torch wrote them before 2017; such files cannot be read safely")
        try:
            return _walk_zip(path, size) if is_zip(head) else _walk_legacy(file, size)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise Broken(f"it is cut short, or damaged ({str(error)[:120]})") from None


def is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def _walk_zip(path: Path, size: int) -> object:
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

    return unpickle.Reader(BytesIO(content), TORCH, storage, allowance=4 * len(content) + (1 << 20)).load()


def _walk_legacy(file: BinaryIO, size: int) -> object:
    """The same of a file in the format before zip files."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        storages: dict[str, int] = {}

        def storage(pid: object) -> unpickle.Storage:
            found = unpickle.storage_id(pid)
            # One storage may be announced by several tensors; it is stored once.
            storages[found.key] = max(storages.get(found.key, 0), found.nbytes)
            return found

        value, keys = unpickle.legacy(stream, TORCH, storage)
        # Before the values of each storage stands their number, in eight bytes.
        needed, held = sum(storages.values()) + 8 * len(keys), size - stream.tell()
    if set(keys) != set(storages):
        raise Broken("it does not list its storages")
    if needed > held:
        raise Broken(f"it is cut short: it announces {unpickle.count_text(needed)} bytes of tensors and holds {held:,}")
    return value


def header(path: Path) -> dict[str, Held]:
    """The tensors of a safetensors file, by its header. Raises Broken."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        unpickle.check_head(head, path)
        length = struct.unpack("<Q", head[:8])[0] if len(head) > 8 else 0
        if not 0 < length <= min(size - 8, MAX_HEADER):
            raise Broken("it is cut short, or of another kind (its header is longer than it)")
        file.seek(8)
        try:
            found = json.loads(file.read(length))
            entries = {key: value for key, value in found.items() if key != "__metadata__"}
            ends = [int(value["data_offsets"][1]) for value in entries.values()]
            held = {key: Held(tuple(map(int, value["shape"]))) for key, value in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise Broken(f"it is cut short, or of another kind ({str(error)[:120]})") from None
    if max(ends, default=0) + 8 + length != size:
        raise Broken("it is cut short, or of another kind (its tensors end elsewhere)")
    return held


# From the tree to its sets.


def is_tensor(value: Any) -> bool:
    """Of torch's, or of what `walk` and `header` give for it; numpy's scalars have a shape, and are none."""
    return hasattr(value, "shape") and hasattr(value, "stride")


def find(tree: object) -> Found:
    """The sets of weights of a file's tree. Raises Broken: it holds none, or several of which none is certain; Refused: it has no end."""
    _check_end(tree)
    # A list of model, optimizer, epoch, step and, where training averaged, the average: NCSN's and DDIM's.
    if isinstance(tree, list | tuple) and len(tree) in (4, 5) and _holds_weights(tree[0]):
        tree = dict(zip(("model", "optimizer", "epoch", "step", "ema"), tree, strict=False))
    if not isinstance(tree, Mapping):
        raise Broken(f"it holds {described(tree)}, expected weights by key")
    search = _Search()
    search.node(tree, "", "raw")
    # What an average keeps of the network that it follows is that network's own, where this is not in the file itself.
    followed = search.found.pop("followed")
    search.found["raw"] = search.found["raw"] or followed
    for kind, sets in search.found.items():
        if len(sets) > 1:
            places = [one.place or "its own keys" for one in sets[:4]]
            raise _several("averages" if kind == "ema" else "networks", places)
    found = {kind: sets[0] for kind, sets in search.found.items() if sets}
    if not found:
        raise Broken(f"it holds {described(tree)}, expected weights by key")
    search.look_for_others(list(found.values()))
    found = {
        kind: one if one.schedule else replace(one, schedule=search.schedule)
        for kind, one in _named_alike(found).items()
    }
    passed = tuple(dict.fromkeys(search.passed))
    return Found(found, passed, tuple(_normalisers(tree, "", frozenset(passed))))


class _Search:
    """Walks a file's tree. `found`: the sets by kind, `followed` those that an average keeps beside itself; `passed`: what is in none."""

    def __init__(self) -> None:
        self.found: dict[str, list[Set]] = {"raw": [], "ema": [], "followed": []}
        self.passed: list[str] = []
        self.left: list[tuple[object, str]] = []  # what is in no set, and where
        self.schedule: dict[str, Any] = {}  # of a diffusion, where it stands beside its network and not in it

    def node(self, node: object, place: str, kind: str, depth: int = 0) -> None:
        """Adds the sets below a node. kind: what its weights are unless a name says otherwise."""
        if depth > DEPTH:
            return
        if isinstance(node, list | tuple):
            # Lists that are no average hold anything: statistics, states of generators.
            if kind == "ema" and _is_list(node):
                self.found["ema"].append(Set(list(node), place))
            for i, item in enumerate(node if kind == "ema" and not _is_list(node) else ()):
                self.node(item, _under(place, str(i)), kind, depth + 1)
        if not isinstance(node, Mapping):
            return
        tensors = {str(key): value for key, value in node.items() if is_tensor(value)}
        inner = {str(k): v for k, v in node.items() if isinstance(v, Mapping | list | tuple) and str(k) not in COUNTS}
        averages = [name for name in inner if _says_average(name) and not _no_network(name)]
        networks = [k for k, v in inner.items() if k not in averages and not _no_network(k) and _holds_weights(v)]
        for name in averages:
            self.average(inner[name], _under(place, name), depth + 1)
        chosen = _the_network(networks, place, _flat(tensors), averages)
        unaveraged = [name for name in UNAVERAGED if name in networks]
        for name in chosen:
            averaged = kind == "ema" or (bool(unaveraged) and name not in unaveraged)
            self.node(inner[name], _under(place, name), "ema" if averaged else kind, depth + 1)
        for name, value in inner.items():
            if name not in averages and name not in chosen:
                self.left.append((value, _under(place, name)))
                self.deeper(value, _under(place, name), depth + 1)
        own = not chosen and bool(tensors) and (_flat(tensors) or not averages)
        if not own:
            self.schedule |= {key: value for key, value in tensors.items() if key in SCHEDULE}
        used = [*averages, *chosen, *(tensors if own else ()), *self.schedule]
        self.passed.extend(_under(place, str(key))[1:-1] for key in node if str(key) not in used)
        if own:
            self.state(tensors, place, kind)

    def average(self, node: object, place: str, depth: int) -> None:
        """Adds what a name says is an average. Raises Broken where it is laid out in no way that is known: never the raw weights for it."""
        before = len(self.found["ema"])
        self.node(node, place, "ema", depth)
        if len(self.found["ema"]) == before and _any_weights(node):
            raise Broken(f"its {place} is an average that is laid out in no way that is known")

    def deeper(self, node: object, place: str, depth: int) -> None:
        """Adds averages that are named as such in what is no network: a callback's, an optimizer's."""
        if depth > DEPTH or not isinstance(node, Mapping | list | tuple):
            return
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node[:8]):
            name = _under(place, str(key))
            if is_tensor(value) and key in SCHEDULE:
                self.schedule[str(key)] = value
            if not isinstance(value, Mapping | list | tuple):
                continue
            # Adam's own averages, `exp_avg`, are those of gradients.
            if isinstance(key, str) and _says_average(key) and "exp_avg" not in key:
                self.average(value, name, depth + 1)
            elif isinstance(key, str) or not isinstance(node, Mapping):
                self.deeper(value, name, depth + 1)

    def state(self, tensors: dict[str, Any], place: str, kind: str) -> None:
        """Adds the sets of one state dict: an average may stand in it beside the network, told by how its keys begin."""
        tensors, before = _common(tensors)
        weights, schedule, left = _without_counts(tensors)
        weights, after = _common(weights)
        self.pass_over(left, place)
        averaged = kind == "ema" or "n_averaged" in tensors or any(_says_average(part) for part in before + after)
        groups: dict[str, dict[str, Any]] = {"": {}}
        for key, value in weights.items():
            first, dot, _ = key.partition(".")
            groups.setdefault(first if dot and _says_average(first) else "", {})[key] = value
        names = [name for name in groups if name and _is_average_of(groups[name], weights, name)]
        if len(names) > 1:
            raise _several("averages", list(map(quoted, names)))
        if not names:
            if weights:
                self.found["ema" if averaged else "raw"].append(Set(weights, place, schedule))
            return
        name = names[0]
        raw = {key: value for key, value in weights.items() if key not in groups[name]}
        average, its_schedule, left = _without_counts(_inside(groups[name], name))
        self.pass_over(left, _under(place, name))
        average, raw, extra = _alike(_common(average)[0], raw)
        self.pass_over(extra, place)
        self.found["ema"].append(Set(average, _under(place, name), its_schedule or schedule))
        if raw:
            self.found["followed" if kind == "ema" else "raw"].append(Set(raw, place, schedule))

    def look_for_others(self, sets: Sequence[Set]) -> None:
        """Raises Uncertain for weights like those of the sets that stand elsewhere, under a name which does not say what they are: an
        average by another name, the best so far, a teacher."""
        known = [(_shapes(one.values), set(one.values) if isinstance(one.values, dict) else set()) for one in sets]
        for node, place in self.left:
            other = _like(node, place, known)
            if other:
                meant = next((one.place for one in sets if one.place), "its own keys")
                raise _several("networks", [meant, other])

    def pass_over(self, keys: Iterable[str], place: str) -> None:
        self.passed.extend(_under(place, key)[1:-1] for key in keys)


def _normalisers(
    node: Mapping[Any, Any], place: str, passed: frozenset[str], inside: bool = False, depth: int = 0
) -> Iterator[Normaliser]:
    """What normalises images among that which is in no set. inside: whether all of the node is."""
    names = {_words(key): key for key in node if isinstance(key, str)}
    for word, key in names.items():
        other = names.get(re.sub(r"mean(s?)$", r"std\1", word)) if MEAN.fullmatch(word) else None
        where = _under(place, key)[1:-1]
        if other is None or not (inside or where in passed):
            continue
        places = (where, _under(place, other)[1:-1])
        pair = (node[key], node[other])
        if all(isinstance(value, list | tuple) and len(value) in (1, 3) for value in pair):
            if all(map(_is_number, [*pair[0], *pair[1]])):
                yield Normaliser(places, (tuple(map(float, pair[0])), tuple(map(float, pair[1]))))
        elif all(is_tensor(value) and prod(value.shape) in (1, 3) for value in pair):
            yield Normaliser(places)
        # Of one number: the mean of something else, unless it stands where a normalisation is said.
        elif all(map(_is_number, pair)) and (not place or NORMALISES.search(_words(place))):
            yield Normaliser(places, ((float(pair[0]),), (float(pair[1]),)), plain=False)
    for key, value in node.items():
        where = _under(place, str(key))
        if isinstance(value, Mapping) and depth < 3 and not OPTIMIZERS.search(_words(str(key))):
            yield from _normalisers(value, where, passed, inside or where[1:-1] in passed, depth + 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parametrised(keys: Iterable[str]) -> tuple[str, str, str]:
    """(a key, what it is of, what makes one weight of it) of a layer whose weights are saved in parts; empty of others."""
    keys = list(keys)
    return next(
        ((key, what, way) for ending, what, way in PARAMETRISED for key in keys if re.search(f"{ending}$", key)),
        ("", "", ""),
    )


def _several(what: str, places: Sequence[str], averages: Sequence[str] = ()) -> Uncertain:
    """The error for sets of which none is certain; places: where they are, quoted; averages: what is beside them, which is then meant
    oftener."""
    # Of an adversarial training's two networks a discriminator is the one that nobody wants.
    meant = [place for place in places if not DISCRIMINATORS.search(_words(place.strip("`")))] or places
    last = (averages or meant)[-1].strip("`")
    # Of `ema_0.999` nobody can tell whether it is one key or two.
    key = f"torch.load(FILE)['{last}']" if last.isidentifier() else "WEIGHTS"
    return Uncertain(
        f"it holds several {what}, and which is meant is not certain: {', '.join(places)}",
        f"save the one that is meant alone, such as `torch.save({key}, OTHER)`",
    )


def _shapes(values: Any) -> Counter[tuple[int, ...]]:
    return Counter(tuple(value.shape) for value in (values.values() if isinstance(values, dict) else values))


def _like(node: object, place: str, known: Sequence[tuple[Counter[tuple[int, ...]], set[Any]]], depth: int = 0) -> str:
    """Where below a node there are weights of the shapes or under the keys of a set that is known; "" where there are none."""
    name = place[1:-1].rpartition(".")[2]
    if depth > DEPTH or not isinstance(node, Mapping | list | tuple):
        return ""
    # Averages that are named as such are among the sets.
    if name in COUNTS or OPTIMIZERS.search(_words(name)) or _says_average(name):
        return ""
    # An optimizer's state by another name.
    if isinstance(node, Mapping) and "param_groups" in node:
        return ""
    items = {str(k): v for k, v in (node.items() if isinstance(node, Mapping) else enumerate(node))}
    tensors, _ = _common({key: value for key, value in items.items() if is_tensor(value)})
    shapes = _shapes(tensors)
    values = sum(prod(shape) * n for shape, n in shapes.items())
    for of_it, keys in known:
        # Without what is not averaged: buffers, and what is not trained.
        all_alike = not shapes - of_it and 2 * values >= sum(prod(shape) * n for shape, n in of_it.items())
        if tensors and (all_alike or 2 * len(keys & set(tensors)) > max(len(keys), len(tensors))):
            return place
    return next(filter(None, (_like(v, _under(place, k), known, depth + 1) for k, v in items.items())), "")


def _check_end(tree: object) -> None:
    """Raises Refused for a tree of more parts than any file has: one that contains itself."""
    parts, level = 0, [tree]
    for _ in range(4 * DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, Mapping | list | tuple)
            for item in (node.values() if isinstance(node, Mapping) else node)
            if isinstance(item, Mapping | list | tuple)
        ]
        parts += sum(map(len, level))  # type: ignore[arg-type]
        if parts > PARTS:
            break
        if not level:
            return
    raise Refused("its parts contain each other, or are too many")


def _the_network(networks: Sequence[str], place: str, flat: bool, averages: Sequence[str] = ()) -> list[str]:
    """Which of several named things is the network, with its unaveraged form where that is there. flat: tensors stand beside them;
    averages: so do these."""
    if not networks:
        return []
    known = [name for name in NETWORKS if name in networks]
    beside = [name for name in UNAVERAGED if name in networks]
    if len(known) == 1:
        return [*known, *beside]
    if not known and len(networks) == 1 and not flat:
        return list(networks)
    names = [_under(place, name) for name in known or networks[:5]]
    raise _several(
        "networks",
        [", ".join(names) + ", and tensors beside it"] if flat and not known else names,
        [_under(place, name) for name in averages],
    )


def _inside(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items()}


def _is_average_of(group: dict[str, Any], weights: dict[str, Any], name: str) -> bool:
    """Whether keys that begin alike are an average of the others, or all that there is: a layer may be called so as well."""
    own, _, _ = _without_counts(_inside(group, name))
    others = {key: value for key, value in weights.items() if key not in group}
    return bool(own) and (not others or _prefix_of(_common(own)[0], others) is not None)


def _alike(average: dict[str, Any], raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Both under the average's keys, or the raw ones' where the average has its names without dots; what of `raw` has no part in it."""
    prefix = _prefix_of(average, raw)
    if not raw or prefix is None:
        return average, raw, []
    inside = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    extra = [key for key in raw if not key.startswith(prefix)]
    if not set(average) <= set(inside):
        names = {key.replace(".", ""): key for key in inside}
        average = {names[key]: value for key, value in average.items()}
    short, parts = _common(inside)
    cut = "".join(parts)
    if cut and all(key.startswith(cut) for key in average):
        average, inside = {key.removeprefix(cut): value for key, value in average.items()}, short
    return average, inside, extra


def _prefix_of(average: dict[str, Any], raw: dict[str, Any]) -> str | None:
    """The beginning under which every key of the average is one of the raw ones' too, its dots or none; None if there is none."""
    shapes = {key: tuple(value.shape) for key, value in raw.items()}
    counted = Counter(key[: at + 1] for key in raw for at, c in enumerate(key[:MAX_PREFIX]) if c == ".")
    starts = ["", *(start for start, n in counted.most_common(20) if n >= len(average))]
    for start in sorted(starts, key=len):
        inside = {key.removeprefix(start): shape for key, shape in shapes.items() if key.startswith(start)}
        if all(inside.get(key) == tuple(value.shape) for key, value in average.items()):
            return start
        flat = {key.replace(".", ""): shape for key, shape in inside.items()}
        # Without dots, two keys may become one: then nothing is certain.
        if len(flat) == len(inside) and all(flat.get(k) == tuple(v.shape) for k, v in average.items()):
            return start
    return None


def _named_alike(found: dict[str, Set]) -> dict[str, Set]:
    """Of an average that stands elsewhere in the file: under the keys that the raw weights have."""
    if len(found) == 2 and all(isinstance(one.values, dict) for one in found.values()):
        ema, raw = found["ema"], found["raw"]
        if not set(ema.values) & set(raw.values):
            average, inside, _ = _alike(dict(ema.values), dict(raw.values))
            if set(average) <= set(inside):
                return {"ema": Set(average, ema.place, ema.schedule), "raw": Set(inside, raw.place, raw.schedule)}
    return found


def _without_counts(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(the weights, a diffusion's schedule, the names of what else is no weight: counters, and what a profiler left)."""
    # Beside the network it may stand in a module of its own.
    of_it = {key: key.rpartition(".")[2] for key, value in tensors.items() if len(value.shape) == 1}
    schedule = {last: tensors[key] for key, last in of_it.items() if last in SCHEDULE}
    left = [
        key
        for key, value in tensors.items()
        if key.rpartition(".")[2] in PROFILED or (key in COUNTS and prod(value.shape) == 1)
    ]
    out = {*left, *(key for key, last in of_it.items() if last in SCHEDULE)}
    return {key: value for key, value in tensors.items() if key not in out}, schedule, left


def _common(tensors: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors without each wrapper's prefix that all of them carry, in whatever order and number; and these prefixes."""
    taken: list[str] = []
    while tensors:
        # What a profiler or a wrapper counts stands beside the network and not in it.
        counted = [key for key in tensors if key in COUNTS or key.rpartition(".")[2] in PROFILED]
        keys = [key for key in tensors if key not in counted]
        prefix = next((p for p in WRAPPERS if keys and all(key.startswith(p) and key != p for key in keys)), None)
        if prefix is None:
            break
        shorter = {key.removeprefix(prefix): value for key, value in tensors.items()}
        # Never such that two keys become one.
        if len(shorter) < len(tensors):
            break
        tensors = shorter
        taken.append(prefix)
    return tensors, taken


def fitted(keys: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """key of a set -> key of a network: the same, but for a beginning that all keys have on either side. What has no like keeps its own."""
    keys, known = list(keys), set(wanted)
    best, most = ("", ""), sum(key in known for key in keys)
    for cut in _beginnings(keys):
        for put in _beginnings(wanted):
            hits = sum(put + key.removeprefix(cut) in known for key in keys)
            if hits > most:
                best, most = (cut, put), hits
    return {key: best[1] + key.removeprefix(best[0]) for key in keys}


def _beginnings(keys: Sequence[str]) -> list[str]:
    """ "", and every beginning with a dot at its end that all keys have."""
    found = [""]
    if keys:
        low, high = min(keys), max(keys)
        same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        found += [low[: i + 1] for i, c in enumerate(low[:same]) if c == "."]
    return found


def _words(name: str) -> str:
    """netEMA -> net_ema"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _says_average(name: str) -> bool:
    return bool(AVERAGE.search(_words(name)))


def _no_network(name: str) -> bool:
    return bool(NO_NETWORK.search(_words(name)))


def _is_list(value: object) -> bool:
    """Whether it is a list of tensors and nothing else."""
    return isinstance(value, list | tuple) and bool(value) and all(map(is_tensor, value))


def _flat(tensors: Mapping[str, Any]) -> bool:
    """Whether there are weights among them, and not counters alone."""
    return any(key not in COUNTS and key not in SCHEDULE and value.shape != () for key, value in tensors.items())


def _holds_weights(value: object, depth: int = 0) -> bool:
    """Whether there are tensors by key in it, or in what it holds."""
    if not isinstance(value, Mapping) or depth > DEPTH:
        return False
    return any(is_tensor(item) or _holds_weights(item, depth + 1) for item in value.values())


def _any_weights(value: Any, depth: int = 0) -> bool:
    """Whether there are tensors of more than one value anywhere in it."""
    if depth > DEPTH or not isinstance(value, Mapping | list | tuple):
        return is_tensor(value) and prod(value.shape) > 1
    return any(_any_weights(item, depth + 1) for item in (value.values() if isinstance(value, Mapping) else value))


def _under(place: str, name: str) -> str:
    """`place.name`"""
    return quoted(f"{place[1:-1]}.{name}" if place else name)


def described(value: object) -> str:
    """What a file holds instead of what it should."""
    if isinstance(value, Mapping):
        return f"the keys {', '.join(quoted(key) for key in list(value)[:5])}"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
