"""Reading pickles without running them: a small machine of our own on which nothing can be called, imported or altered.

`pickle` is not used at all. `pickletools` splits the file into opcodes, and `run` knows only those that data needs. What a file
names stays a name: every permitted one has a rule here that makes plain data of its arguments, and any other name is refused.
Source code embedded in a file (the "persistence" pickles of EDM) is hashed, never executed.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from purebench.errors import DOWNLOAD, UserError

# of the numpy scalars that may be there
CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
AGAIN = "delete it and fetch it again"
OPCODES = 500_000  # steps of one pickle at most: a step costs some hundred bytes of memory
DEPTH, PARTS, LONGEST = 16, 20_000, 200  # of a network or its configuration: levels, parts in all, characters of a name
STORAGES = {  # torch's storage types -> numpy's codes; bfloat16 is kept as the upper halves of float32
    f"torch.{place}{kind}Storage": code
    for place in ("", "cuda.")
    for kind, code in {
        "Float": "<f4",
        "Double": "<f8",
        "Half": "<f2",
        "BFloat16": "<u2",
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}


class Refused(Exception):
    """What the file tried, as the end of a sentence that begins with "refused:"."""


class Broken(Exception):
    """No pickle, or the beginning of one."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a file names, never the thing itself."""

    text: str


class Dict(dict[Any, Any]):
    """An OrderedDict or EasyDict of the file."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Node:
    """An object of a class of the file: its name, its state, the sha256 of the source that came with it."""

    name: str
    state: Any = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class DType:
    code: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """numel values of torch's storage type `name`; `data`: the values, or their key in the file where only sizes are looked at."""

    name: str
    numel: int
    data: memoryview | str

    @property
    def nbytes(self) -> int:
        return self.numel * np.dtype(STORAGES[self.name]).itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage that was found to lie inside it, and to be no larger than it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy; bfloat16 as float32."""
        assert isinstance(self.storage.data, memoryview)
        code = np.dtype(STORAGES[self.storage.name])
        flat = np.frombuffer(self.storage.data, code, self.storage.numel)
        steps = [step * code.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps)
        if self.storage.name.endswith("BFloat16Storage"):
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(view).reshape(self.shape).copy()


@dataclass(frozen=True)
class Pickled:
    """state: key -> array, in the order of the network's state dict; init_kwargs: its configuration; class_name: its class."""

    state: dict[str, np.ndarray]
    init_kwargs: dict[str, Any]
    class_name: str


Rule = Callable[..., Any]


def shown(value: object) -> str:
    """Something of the file, short and printable."""
    if isinstance(value, Name | Node):
        value = value.text if isinstance(value, Name) else value.name
    text = value if isinstance(value, str) else type(value).__name__
    return f"`{''.join(c if c.isprintable() else '?' for c in text[:80])}{'..' if len(text) > 80 else ''}`"


def run(
    stream: IO[bytes] | mmap.mmap,
    names: dict[str, Rule],
    persistent: Callable[[Any], Any] | None = None,
    steps: int = OPCODES,
    passing: int = 1 << 20,
) -> Any:
    """The value of the pickle that begins at the stream's position, which is left behind its end.

    names: the permitted names, each with the rule that makes a value of its arguments. persistent: the same for persistent ids,
    which are refused without it. steps: opcodes at most. passing: what all the rules may be given at most, in bytes and items, so
    that handing them the same thing over and over ends. Raises Refused and Broken."""
    stack: list[Any] = []
    marks: list[int] = []  # heights of the stack
    memo: dict[int, Any] = {}
    count = 0

    def pop() -> Any:
        if len(stack) <= (marks[-1] if marks else 0):
            raise Broken("it takes more off the stack than it put there")
        return stack.pop()

    def above() -> list[Any]:
        if not marks:
            raise Broken("it looks for a mark that it never set")
        height = marks.pop()
        items = stack[height:]
        del stack[height:]
        return items

    def top(kind: type, verb: str) -> Any:
        value = pop()
        if not isinstance(value, kind):
            raise Refused(f"it {verb} {shown(value)}")
        stack.append(value)
        return value

    def named(text: object) -> Name:
        if not isinstance(text, str) or text not in names:
            raise Refused(f"it asks for {shown(text)}")
        return Name(text)

    def store(target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise Refused("it sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    operations = pickletools.genops(stream)  # type: ignore[arg-type]
    while True:
        arg: Any
        try:
            opcode, arg, _ = next(operations)
        except (ValueError, StopIteration, struct.error, OverflowError) as error:
            raise Broken(str(error)[:120]) from None
        count += 1
        if count > steps:
            raise Refused(f"it is a program of more than {steps:,} steps")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MEMOIZE":
                memo[len(memo)] = top(object, "remembers")
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = top(object, "remembers")
            case "GET" | "BINGET" | "LONG_BINGET":
                if arg not in memo:
                    raise Broken("it recalls what it never remembered")
                stack.append(memo[arg])
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8" | "SHORT_BINSTRING" | "BINSTRING":
                stack.append(arg)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BINFLOAT":
                stack.append(arg)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "INT" | "LONG":
                if arg.bit_length() > 128:
                    raise Refused(f"it holds an integer of {arg.bit_length():,} bits")
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "MARK":
                marks.append(len(stack))
            case "POP":
                if marks and marks[-1] == len(stack):
                    marks.pop()
                else:
                    pop()
            case "POP_MARK":
                above()
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack.append(tuple(above()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(above())
            case "APPEND":
                value = pop()
                top(list, "appends to").append(value)
            case "APPENDS":
                items = above()
                top(list, "appends to").extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = above()
                target: dict[Any, Any] = {}
                store(target, items)
                stack.append(target)
            case "SETITEM":
                value, key = pop(), pop()
                store(top(dict, "sets an item of"), [key, value])
            case "SETITEMS":
                items = above()
                store(top(dict, "sets items of"), items)
            case "EMPTY_SET":
                stack.append(set())
            case "ADDITEMS":
                items = above()
                top(set, "adds to").update(map(_key, items))
            case "FROZENSET":
                stack.append(frozenset(map(_key, above())))
            case "GLOBAL":
                stack.append(named(arg.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise Refused(f"it asks for a name made of {shown(module)} and {shown(name)}")
                stack.append(named(f"{module}.{name}"))
            case "REDUCE" | "NEWOBJ":
                args, called = pop(), pop()
                if not isinstance(called, Name) or not isinstance(args, tuple):
                    raise Refused(f"it calls {shown(called)} with {shown(args)}")
                passing -= sum(len(a) for a in args if isinstance(a, str | bytes | list | tuple | dict | set))
                if passing < 0:
                    raise Refused(f"it calls {shown(called)} with more than the file can hold")
                try:
                    stack.append(names[called.text](*args))
                except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, struct.error):
                    raise Refused(f"it calls {shown(called)} with arguments that do not belong to it") from None
            case "BUILD":
                _build(state=pop(), target=top(object, "alters"))
            case "BINPERSID" if persistent:
                try:
                    stack.append(persistent(pop()))
                except (TypeError, ValueError, KeyError):
                    raise Refused("it asks for a persistent id that is no storage") from None
            case "STOP":
                value = pop()
                if stack or marks:
                    raise Refused("it leaves something behind on the stack")
                return value
            case "INST":
                raise Refused(f"it asks for {shown(arg.replace(' ', '.'))}")
            case "EXT1" | "EXT2" | "EXT4":
                raise Refused(f"it asks for the extension with code {arg}")
            case "PERSID" | "BINPERSID":
                raise Refused(f"it asks for a persistent id{f' {shown(arg)}' if arg else ''}")
            case "NEWOBJ_EX":
                raise Refused("it makes an object with keyword arguments")
            case other:
                raise Refused(f"it uses the opcode {other}")


def _key(value: Any) -> Any:
    """Keys and members of sets are plain values: nothing whose hash or comparison costs more than its bytes."""
    if not isinstance(value, str | int | float | bytes | None) or (isinstance(value, int) and value.bit_length() > 63):
        raise Refused(f"it uses {shown(value)} as a key")
    return value


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Node) and target.state is None:
        target.state = state
    elif isinstance(target, Dict) and isinstance(state, dict):
        pass  # the `_metadata` of a state dict
    elif (
        isinstance(target, DType) and isinstance(state, tuple) and state[1:5] in [(o, None, None, None) for o in "<|="]
    ):
        pass  # version, byte order, and nothing more
    else:
        raise Refused(f"it alters {shown(target)}")


# The rules: each takes the arguments that belong to its name, and raises TypeError, ValueError or Refused for others.


def node(name: str) -> Rule:
    """A class that we never build: no arguments; its state comes with BUILD."""

    def make() -> Node:
        return Node(name)

    return make


def _ordered(pairs: Any = ()) -> Dict:
    result = Dict()
    for key, value in pairs:
        result[_key(key)] = value
    return result


def _easy() -> Dict:
    return Dict()


def _set(items: list[Any]) -> set[Any]:
    return set(map(_key, items))


def _bytes() -> bytes:
    return b""


def _encode(text: str, codec: str) -> bytes:
    """How protocol 2 writes bytes."""
    if codec != "latin1":
        raise ValueError
    return text.encode("latin1")


def _dtype(code: str, align: Any = False, copy: Any = True) -> DType:
    if code not in CODES:
        raise Refused(f"it asks for the numpy type {shown(code)}")
    return DType(code)


def _scalar(dtype: DType, data: bytes) -> Any:
    if len(data) != int(dtype.code[1]):
        raise ValueError
    return np.frombuffer(data, "<" + dtype.code)[0].item()


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError
    return value


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *ignored: Any) -> Tensor:
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise ValueError
    shape, stride = tuple(map(_whole, shape)), tuple(map(_whole, stride))
    numel, _ = math.prod(shape), _whole(offset)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if numel > storage.numel or (numel and last >= storage.numel) or offset > storage.numel:
        held = f"{storage.numel:,} values"
        raise Refused(f"it cuts a tensor of {count(numel)} values, up to number {count(last)}, out of {held}")
    return Tensor(storage, offset, shape, stride)


def count(n: int) -> str:
    return f"{n:,}" if n < 10**18 else "over 10^18"


def _parameter(tensor: Tensor, *ignored: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError
    return tensor


def _blob(data: bytes) -> Storage:
    """A storage in torch's format before zip files: five small pickles, the number of values, the values."""
    stream = BytesIO(data)
    try:
        storage, (key,) = legacy(stream, dict.fromkeys(STORAGES, _named), steps=200)
    except Broken as error:
        raise Refused(f"it holds a storage that is no torch file ({error})") from None
    at = stream.tell() + 8
    if not isinstance(storage, Storage):
        raise ValueError
    size = storage.nbytes
    if key != storage.data or len(data) != at + size or data[at - 8 : at] != struct.pack("<q", storage.numel):
        raise Refused(f"it announces a storage of {count(size)} bytes and holds {max(0, len(data) - at):,}")
    return Storage(storage.name, storage.numel, memoryview(data)[at:])


MAGIC = 0x1950A86A20F9469CFC6C


def legacy(
    stream: Any, names: dict[str, Rule], persistent: Callable[[Any], Any] | None = None, steps: int = OPCODES
) -> tuple[Any, list[str]]:
    """The object and the storages' keys of a torch file of the format before zip files; the values follow in the stream.

    Here the `data` of a storage is its key. Raises Refused, and Broken for another kind of file."""
    if run(stream, {}, steps=9) != MAGIC or run(stream, {}, steps=9) != 1001:
        raise Broken("it does not begin as torch's files do")
    system = run(stream, {}, steps=99)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("it was written on a big-endian machine")
    value, keys = run(stream, names, persistent or storage_id, steps), run(stream, {}, steps=steps)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Broken("it does not list its storages")
    return value, keys


def storage_id(pid: Any) -> Any:
    """("storage", type, key, device, numel[, view]) -> Storage whose data is the key; a view is (its key, offset, numel)."""
    kind, name, key, _, numel = pid[:5]
    if kind != "storage" or not isinstance(name, Name) or name.text not in STORAGES or not isinstance(key, str):
        raise Refused(f"it asks for a persistent id {shown(kind)}")
    if len(pid) > 5 and pid[5] is not None:
        _, offset, view = pid[5]
        if _whole(offset) + _whole(view) > _whole(numel):
            raise ValueError
    return Storage(name.text, _whole(numel), key)


def _named() -> None:
    raise ValueError  # a name that is only ever mentioned


def _persistent(meta: dict[str, Any]) -> Node:
    """torch_utils.persistence: {type, version, module_src, class_name, state}."""
    if meta["type"] != "class" or not isinstance(meta["state"], dict):
        raise ValueError
    if not isinstance(meta["module_src"], str) or not isinstance(meta["class_name"], str):
        raise TypeError
    return Node(meta["class_name"], meta["state"], _hash(meta["module_src"]))


@lru_cache(1024)
def _hash(source: str) -> str:
    if len(source) > 1 << 20:
        raise Refused(f"it brings {len(source):,} characters of source code")
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


PLAIN: dict[str, Rule] = {  # in any torch file
    **dict.fromkeys(STORAGES, _named),
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
EDM: dict[str, Rule] = {  # in the pickles of EDM
    **PLAIN,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.storage._load_from_bytes": _blob,
    "dnnlib.util.EasyDict": _easy,
    "dnnlib.EasyDict": _easy,
    **{
        f"torch.nn.modules.{name}": node(f"torch.nn.modules.{name}")
        for name in (
            "container.ModuleDict",
            "container.ModuleList",
            "container.Sequential",
            "linear.Identity",
            "linear.Linear",
            "conv.Conv2d",
            "normalization.GroupNorm",
            "activation.SiLU",
            "dropout.Dropout",
        )
    },
}


def begins(head: bytes, size: int, name: str) -> None:
    """UserError for what a failed download leaves behind: nothing, or a web page."""
    if not size:
        raise UserError(f"`{name}` is not a checkpoint: it is empty", AGAIN, DOWNLOAD)
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise UserError(f"`{name}` is not a checkpoint: it begins with an HTML page", AGAIN, DOWNLOAD)


def read(source: Path | str | bytes, max_bytes: int = 2 << 30) -> Pickled:
    """The network `ema` of an EDM pickle (protocols 2 to 5), given as a path or as bytes; its arrays are copies.

    UserError (exit 3) if it is larger than max_bytes, damaged, of another kind, or asks for anything but data."""
    name = "the pickle" if isinstance(source, bytes) else Path(source).name
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > max_bytes:
        raise UserError(f"refused `{name}`: it has {size:,} bytes, expected at most {max_bytes:,}", AGAIN, DOWNLOAD)
    try:
        if isinstance(source, bytes):
            begins(source, size, name)
            return _network(BytesIO(source), size)
        with open(source, "rb") as file:
            begins(file.read(512), size, name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                return _network(stream, size)
    except Refused as error:
        raise UserError(f"refused `{name}`: {error}", f"nothing of it was run; {AGAIN}", DOWNLOAD) from None
    except Broken as error:
        raise UserError(f"`{name}` is no EDM checkpoint, or is cut short: {error}", AGAIN, DOWNLOAD) from None


def _network(stream: Any, size: int) -> Pickled:
    value = run(stream, EDM, passing=4 * size + (1 << 20))
    network = value.get("ema") if isinstance(value, dict) else None
    if not isinstance(network, Node) or not isinstance(network.state, dict):
        raise Broken("it holds no network `ema`")
    kwargs = network.state.get("_init_kwargs")
    if not isinstance(kwargs, dict):
        raise Broken("its network does not tell its configuration")
    state: dict[str, np.ndarray] = {}
    _collect(network, "", state, [4 * size], [0], 0)
    return Pickled(state, _plain(kwargs, [0], 0), network.name)


def _collect(
    module: Node, prefix: str, state: dict[str, np.ndarray], left: list[int], seen: list[int], depth: int
) -> None:
    """Into `state`: the module's parameters, buffers and modules, as torch's state_dict has them. left: bytes still
    allowed, at 8 a value."""
    own = module.state if isinstance(module.state, dict) else {}
    parts = [own.get(name) or {} for name in ("_parameters", "_buffers", "_modules")]
    passing = own.get("_non_persistent_buffers_set") or set()
    if not all(isinstance(part, dict) for part in parts) or not isinstance(passing, set):
        raise Refused(f"its module {shown(module.name)} is not built as one")
    seen[0] += 1 + sum(map(len, parts))
    if depth > DEPTH or seen[0] > PARTS:
        raise Refused("its modules contain each other, or are too many")
    parameters, buffers, modules = parts
    for name in [*parameters, *buffers, *modules]:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST or "." in name:
            raise Refused(f"its module {shown(module.name)} has a part named {shown(name)}")
    for name, value in [*parameters.items(), *((n, b) for n, b in buffers.items() if n not in passing)]:
        if isinstance(value, Tensor):
            left[0] -= 8 * math.prod(value.shape)
            if left[0] < 0:
                raise Refused("its tensors hold more than the file")
            state[prefix + name] = value.array()
        elif value is not None:
            raise Refused(f"its module {shown(module.name)} has a part {shown(name)} that is no tensor")
    for name, value in modules.items():
        if isinstance(value, Node):
            _collect(value, f"{prefix}{name}.", state, left, seen, depth + 1)
        elif value is not None:
            raise Refused(f"its module {shown(module.name)} has a part {shown(name)} that is no module")


def _plain(value: Any, seen: list[int], depth: int) -> Any:
    """A configuration as JSON has it."""
    seen[0] += 1
    if depth > DEPTH or seen[0] > PARTS:
        raise Refused("its configuration has no end")
    if isinstance(value, dict) and all(isinstance(key, str) and len(key) <= LONGEST for key in value):
        return {key: _plain(item, seen, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, seen, depth + 1) for item in value]
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > LONGEST):
        raise Refused(f"its configuration holds {shown(value)}")
    return value
