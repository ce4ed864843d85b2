"""Reading pickles without running them: the standard library's unpickler with everything replaced that calls, imports or alters.

What a file names stays a name: every permitted one has a rule here that makes plain data of its arguments, and any other name is
refused. Source code embedded in a file (the "persistence" pickles of EDM) is text that nobody looks at.

`pickle._Unpickler` is the library's own unpickler in Python. Its `dispatch` has one method per opcode, so that SETITEM, BUILD and
REDUCE can be replaced, which the C class does not allow. `OPERATIONS` names every permitted opcode, ours or the library's:
what a later Python adds is refused.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from purebench import assets
from purebench.errors import DOWNLOAD, UserError

# of the numpy scalars that may be there
NUMPY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
BYTE_ORDERS = [(order, None, None, None) for order in "<|="]  # of a numpy type; what follows it is for arrays
FETCH_AGAIN = "delete it and fetch it again"
SAVE = "save the weights alone: `torch.save(model.state_dict(), FILE)`"
MAX_STEPS = 500_000  # of one pickle: a step costs some hundred bytes of memory
MAX_KEY = 8  # values of a tuple that is a key
MAX_BITS = 128  # of an integer: torch's magic number has 80
MAX_DEPTH, MAX_PARTS, MAX_TEXT = 16, 20_000, 200  # of a network or its configuration: levels, parts in all, characters
STORAGES = {  # torch's storage types -> numpy's codes; bfloat16 is kept as the upper halves of float32
    f"torch.{place}{kind}Storage": code
    for place in ("", "cuda.")
    for kind, code in {
        "Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "<u2", "Long": "<i8",
        "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?", "ComplexFloat": "<c8", "ComplexDouble": "<c16",
    }.items()
}  # fmt: skip


UNTYPED = "torch.storage.UntypedStorage"  # bytes; the type stands with the tensor


class Refused(Exception):
    """What the file tried, as the end of a sentence that begins with "refused:"."""


class Broken(Exception):
    """No pickle, or the beginning of one."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a file names, never the thing itself."""

    text: str


class Dict(dict[object, object]):
    """An OrderedDict or EasyDict of the file."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Node:
    """An object of a class of the file: its name and its state. The source code that came with it is passed over."""

    name: str
    state: object = None


@dataclass(frozen=True, slots=True)
class DType:
    code: str


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """numel values of torch's storage type `name`, kept in its file under `key`; none of them where only sizes are checked."""

    name: str
    numel: int
    key: str
    values: memoryview | bytes = b""

    @property
    def nbytes(self) -> int:
        return self.numel * (1 if self.name == UNTYPED else np.dtype(STORAGES[self.name]).itemsize)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage that was found to lie inside it, and to be no larger than it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy; bfloat16 as float32."""
        code = np.dtype(STORAGES[self.storage.name])
        flat = np.frombuffer(self.storage.values, code, self.storage.numel)
        steps = [step * code.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps)
        if self.storage.name.endswith("BFloat16Storage"):
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(view).reshape(self.shape).copy()


@dataclass(frozen=True)
class Pickled:
    """state: key -> array, in the order of the network's state dict; init_kwargs: its configuration; class_name: its class; raw:
    whether the file holds the network `net` besides, which is not averaged."""

    state: dict[str, np.ndarray]
    init_kwargs: dict[str, object]
    class_name: str
    raw: bool = False


Rule = Callable[..., object]
Stream = BytesIO | mmap.mmap  # both give fewer bytes than asked for at their end, without making room for more


def quoted(value: object) -> str:
    """Something of the file, short and printable."""
    if isinstance(value, Name | Node):
        value = value.text if isinstance(value, Name) else value.name
    text = value if isinstance(value, str) else type(value).__name__
    return f"`{''.join(c if c.isprintable() else '?' for c in text[:80])}{'..' if len(text) > 80 else ''}`"


class Reader(pickle._Unpickler):
    """Reads the pickle that begins at the stream's position, and leaves the stream behind its end.

    names: the permitted names, each with the rule that makes a value of its arguments. persistent: the same for persistent ids,
    which are refused without it. steps: opcodes at most. allowance: what all rules may be given together, in bytes and items, so
    that handing them the same thing over and over ends. `load` raises Refused and Broken."""

    # The library's own, which its type stubs leave out: the values above the last mark, and those below each mark.
    stack: list[object]
    metastack: list[list[object]]
    append: Callable[[object], None]

    def __init__(
        self,
        stream: Stream,
        names: dict[str, Rule],
        persistent: Rule | None = None,
        steps: int = MAX_STEPS,
        allowance: int = 1 << 20,
    ):
        super().__init__(stream, encoding="latin1")
        self.stream, self.names, self.persistent = stream, names, persistent
        self.steps, self.allowance = steps, allowance

    def load(self) -> object:
        self.stack, self.metastack = [], []
        self.append = self.stack.append
        try:
            for _ in range(self.steps):
                self.opcode = self.read(1)
                if self.opcode == pickle.STOP:
                    value = self.stack.pop()
                    if self.stack or self.metastack:
                        raise Refused("it leaves something behind on the stack")
                    return value
                OPERATIONS.get(self.opcode, Reader.refuse_opcode)(self)
        except IndexError:
            raise Broken("it takes more off the stack than it put there") from None
        except (ValueError, OverflowError, struct.error, pickle.UnpicklingError) as error:
            raise Broken(str(error)[:120]) from None
        raise Refused(f"it is a program of more than {self.steps:,} steps")

    def as_the_library(self) -> None:
        """The opcode as `pickle` does it."""
        pickle._Unpickler.dispatch[self.opcode[0]](self)  # type: ignore[arg-type]

    # The stream. The library takes what a short read gives, and copies frames. Here a short read is an error, and frames, which
    # only help to read ahead, are passed over.

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) < size:
            raise Broken(f"it should go on for {size} bytes, but only {len(data)} remain")
        return data

    def readline(self) -> bytes:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise Broken("it ends within a line")
        return line

    def load_frame(self) -> None:
        self.read(8)

    # Names, and what is done with them: a file never gets at the thing that it names.

    def find_class(self, module: str, name: str) -> Name:
        text = f"{module}.{name}"
        if text not in self.names:
            raise Refused(f"it asks for {quoted(text)}")
        return Name(text)

    def load_stack_global(self) -> None:
        module, name = self.stack[-2:]
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused(f"it asks for a name made of {quoted(module)} and {quoted(name)}")
        self.as_the_library()

    def persistent_load(self, pid: object) -> object:
        if self.persistent is None or isinstance(pid, str):
            raise Refused(f"it asks for a persistent id {quoted(pid)}")
        try:
            return self.persistent(pid)
        except (TypeError, ValueError, KeyError):
            raise Refused("it asks for a persistent id that is no storage") from None

    def load_reduce(self) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise Refused(f"it calls {quoted(called)} with {quoted(args)}")
        self.allowance -= sum(len(a) for a in args if isinstance(a, str | bytes | list | tuple | dict | set))
        if self.allowance < 0:
            raise Refused(f"it calls {quoted(called)} with more than the file can hold")
        try:
            self.append(self.names[called.text](*args))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, struct.error):
            raise Refused(f"it calls {quoted(called)} with arguments that do not belong to it") from None

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Node) and target.state is None:
            target.state = state
        elif isinstance(target, Dict) and isinstance(state, dict):
            pass  # the `_metadata` of a state dict
        elif isinstance(target, DType) and isinstance(state, tuple) and state[1:5] in BYTE_ORDERS:
            pass  # version, byte order, and nothing more
        else:
            raise Refused(f"it alters {quoted(target)}")

    # Values that the library makes or changes, looked at after or before it does.

    def load_integer(self) -> None:
        self.as_the_library()
        value = self.stack[-1]
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise Refused(f"it holds an integer of {value.bit_length():,} bits")

    def load_items(self) -> None:
        if self.opcode in TARGETS:
            kind, verb, above = TARGETS[self.opcode]
            target = self.stack[-1 - above] if above else self.metastack[-1][-1]
            if not isinstance(target, kind):
                raise Refused(f"it {verb} {quoted(target)}")
        for key in self.stack[HASHED.get(self.opcode, slice(0))]:
            check_key(key)
        self.as_the_library()

    # What is refused with more than its opcode's name.

    def load_inst(self) -> None:
        self.find_class(self.readline()[:-1].decode(), self.readline()[:-1].decode())
        raise Refused("it makes an object in the way of protocol 0")

    def load_newobj_ex(self) -> None:
        raise Refused("it makes an object with keyword arguments")

    def load_extension(self) -> None:
        size = {pickle.EXT1: 1, pickle.EXT2: 2, pickle.EXT4: 4}[self.opcode]
        raise Refused(f"it asks for the extension with code {int.from_bytes(self.read(size), 'little')}")

    def refuse_opcode(self) -> None:
        names = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
        if self.opcode not in names:
            raise Broken(f"it holds the byte {self.opcode.hex()}, which is no opcode")
        raise Refused(f"it uses the opcode {names[self.opcode]}")


def check_key(value: object) -> object:
    """Keys and members of sets are plain values, or a few of them: nothing whose hash or comparison costs more than its bytes."""
    if isinstance(value, tuple) and len(value) <= MAX_KEY and not any(isinstance(item, tuple) for item in value):
        for item in value:
            check_key(item)
        return value
    if not isinstance(value, str | int | float | bytes | None) or (isinstance(value, int) and value.bit_length() > 63):
        raise Refused(f"it uses {quoted(value)} as a key")
    return value


TARGETS = {  # opcode -> the kind of what it changes; in words; how many values lie above that (0: all since the mark)
    pickle.APPEND: (list, "appends to", 1),
    pickle.APPENDS: (list, "appends to", 0),
    pickle.SETITEM: (dict, "sets an item of", 2),
    pickle.SETITEMS: (dict, "sets items of", 0),
    pickle.ADDITEMS: (set, "adds to", 0),
}
HASHED = {  # opcode -> which values of the stack it makes keys or members
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(0, None),
    pickle.FROZENSET: slice(0, None),
}
LIBRARY = """
    PROTO MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL PERSID BINPERSID NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT EMPTY_SET
"""  # what only makes or moves plain values, and what comes to `find_class` and `persistent_load`
OPERATIONS: dict[bytes, Callable[..., None]] = {
    **{getattr(pickle, name): pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in LIBRARY.split()},
    **dict.fromkeys((pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4), Reader.load_integer),
    **dict.fromkeys(TARGETS | HASHED, Reader.load_items),
    **dict.fromkeys((pickle.REDUCE, pickle.NEWOBJ), Reader.load_reduce),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4), Reader.load_extension),
    pickle.FRAME: Reader.load_frame,
    pickle.STACK_GLOBAL: Reader.load_stack_global,
    pickle.BUILD: Reader.load_build,
    pickle.INST: Reader.load_inst,
    pickle.NEWOBJ_EX: Reader.load_newobj_ex,
}


# The rules: each takes the arguments that belong to its name, and raises TypeError, ValueError or Refused for others.


def node(name: str) -> Rule:
    """A class that we never build: no arguments; its state comes with BUILD."""

    def make() -> Node:
        return Node(name)

    return make


def _ordered(pairs: Iterable[tuple[object, object]] = ()) -> Dict:
    return Dict((check_key(key), value) for key, value in pairs)


def _set(items: list[object]) -> set[object]:
    return set(map(check_key, items))


def _bytes() -> bytes:
    return b""


def _encode(text: str, codec: str) -> bytes:
    """How protocol 2 writes bytes."""
    if codec != "latin1":
        raise ValueError
    return text.encode("latin1")


def _dtype(code: str, align: object = False, copy: object = True) -> DType:
    if code not in NUMPY_CODES:
        raise Refused(f"it asks for the numpy type {quoted(code)}")
    return DType(code)


def _scalar(dtype: DType, data: bytes) -> object:
    if len(data) != int(dtype.code[1]):
        raise ValueError
    return np.frombuffer(data, "<" + dtype.code)[0].item()


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError
    return value


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *ignored: object) -> Tensor:
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise ValueError
    shape, stride = tuple(map(_size, shape)), tuple(map(_size, stride))
    numel, _ = math.prod(shape), _size(offset)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if numel > storage.numel or (numel and last >= storage.numel) or offset > storage.numel:
        held = f"{storage.numel:,} values"
        raise Refused(f"it cuts a tensor of {count_text(numel)} values, up to number {count_text(last)}, out of {held}")
    return Tensor(storage, offset, shape, stride)


def count_text(n: int) -> str:
    return f"{n:,}" if n < 10**18 else "over 10^18"


def untyped(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    grad: object,
    hooks: object,
    dtype: Name,
    *ignored: object,
) -> Tensor:
    """A tensor of a storage that is known as bytes: its type stands beside it, and its places are counted in it."""
    size = SIZES[dtype.text]
    values = Storage(storage.name, storage.numel // size, storage.key)
    return _tensor(values, offset, shape, stride)


def from_type(call: Name, kind: Name, args: tuple[object, ...], state: object) -> object:
    """A tensor with attributes of its own, which are passed over."""
    if call.text not in TENSORS or kind.text not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise ValueError
    return TENSORS[call.text](*args)


def device(kind: str, index: int = 0) -> str:
    if not isinstance(kind, str) or type(index) is not int:
        raise TypeError
    return f"{kind}:{index}"


def layout(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError
    return name


def complex_number(real: float, imaginary: float) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError
    return complex(real, imaginary)


def byte_array(text: str | bytes = b"", codec: str = "latin-1") -> bytes:
    """Its values, and never its length alone, which would be taken for that many zeros."""
    if codec != "latin-1" or not isinstance(text, str | bytes):
        raise ValueError
    return text.encode("latin-1") if isinstance(text, str) else text


def counter(counts: dict[object, object]) -> Dict:
    if not isinstance(counts, dict):
        raise TypeError
    return Dict(counts)


def _parameter(tensor: Tensor, *ignored: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError
    return tensor


def _blob(data: bytes) -> Storage:
    """A storage in torch's format before zip files: five small pickles, the number of values, the values."""
    stream = BytesIO(data)
    try:
        storage, (key,) = legacy(stream, dict.fromkeys(STORAGES, _mention), steps=200)
    except Broken as error:
        raise Refused(f"it holds a storage that is no torch file ({error})") from None
    start = stream.tell() + 8
    if not isinstance(storage, Storage):
        raise ValueError
    size = storage.nbytes
    if key != storage.key or len(data) != start + size or data[start - 8 : start] != struct.pack("<q", storage.numel):
        raise Refused(f"it announces a storage of {count_text(size)} bytes and holds {max(0, len(data) - start):,}")
    return Storage(storage.name, storage.numel, key, memoryview(data)[start:])


MAGIC = 0x1950A86A20F9469CFC6C


def legacy(
    stream: Stream, names: dict[str, Rule], persistent: Rule | None = None, steps: int = MAX_STEPS
) -> tuple[object, list[str]]:
    """The object and the storages' keys of a torch file of the format before zip files; the values follow in the stream.

    Raises Refused, and Broken for another kind of file."""
    if Reader(stream, {}, steps=9).load() != MAGIC or Reader(stream, {}, steps=9).load() != 1001:
        raise Broken("it does not begin as torch's files do")
    system = Reader(stream, {}, steps=99).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("it was written on a big-endian machine")
    value = Reader(stream, names, persistent or storage_id, steps).load()
    keys = Reader(stream, {}, steps=steps).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Broken("it does not list its storages")
    return value, keys


def storage_id(pid: object) -> Storage:
    """("storage", type, key, device, numel[, view]) -> Storage without its values; a view is (its key, offset, numel)."""
    if not isinstance(pid, tuple):
        raise TypeError
    kind, name, key, _, numel = pid[:5]
    if (
        kind != "storage"
        or not isinstance(name, Name)
        or name.text not in (*STORAGES, UNTYPED)
        or not isinstance(key, str)
    ):
        raise Refused(f"it asks for a persistent id {quoted(kind)}")
    if len(pid) > 5 and pid[5] is not None:
        _, offset, view = pid[5]
        if _size(offset) + _size(view) > _size(numel):
            raise ValueError
    return Storage(name.text, _size(numel), key)


def _mention() -> None:
    raise ValueError  # a name that is only ever mentioned, never called


def _persistent(meta: dict[str, object]) -> Node:
    """torch_utils.persistence: {type, version, module_src, class_name, state}."""
    class_name, state = meta["class_name"], meta["state"]
    if meta["type"] != "class" or not isinstance(state, dict):
        raise ValueError
    if not isinstance(class_name, str) or not isinstance(meta["module_src"], str):
        raise TypeError
    return Node(class_name, state)


TENSORS: dict[str, Rule] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
SIZES = {  # torch's types -> bytes
    f"torch.{name}": size
    for size, names in {
        1: "uint8 int8 bool float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz float8_e8m0fnu",
        2: "int16 uint16 float16 bfloat16",
        4: "int32 uint32 float32 complex32",
        8: "int64 uint64 float64 complex64",
        16: "complex128",
    }.items()
    for name in names.split()
}
PLAIN: dict[str, Rule] = {  # in any torch file
    **dict.fromkeys(STORAGES, _mention),
    "collections.OrderedDict": _ordered,
    **TENSORS,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
# What else torch's own reader of weights permits: what scripts save of schedulers, devices and types beside them.
BESIDE: dict[str, Rule] = {
    **dict.fromkeys([*SIZES, "torch.Tensor", "torch.nn.parameter.Parameter", UNTYPED], _mention),
    "collections.Counter": counter,
    "torch.device": device,
    "torch.serialization._get_layout": layout,
    "torch._utils._rebuild_tensor_v3": untyped,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": from_type,
    **{f"{module}.complex": complex_number for module in ("builtins", "__builtin__")},
    **{f"{module}.bytearray": byte_array for module in ("builtins", "__builtin__")},
}
MODULES = """
    container.ModuleDict container.ModuleList container.Sequential linear.Identity linear.Linear
    conv.Conv2d normalization.GroupNorm activation.SiLU dropout.Dropout
"""
EDM: dict[str, Rule] = {  # in the pickles of EDM
    **PLAIN,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.storage._load_from_bytes": _blob,
    "dnnlib.util.EasyDict": _ordered,
    "dnnlib.EasyDict": _ordered,
    **{f"torch.nn.modules.{name}": node(f"torch.nn.modules.{name}") for name in MODULES.split()},
}


def remedy(path: Path) -> str:
    """What to do about a file that cannot be read. One that was fetched can be fetched again; of the user's own there may be no other."""
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(assets.cache_folder().resolve()):
            return FETCH_AGAIN
    return SAVE


def check_head(head: bytes, path: Path) -> None:
    """UserError for what a failed download leaves behind, by the file's first bytes: nothing, or a web page."""
    if why := assets.wrong_head(head):
        hint = (
            FETCH_AGAIN if remedy(path) == FETCH_AGAIN else "it was not saved, or not downloaded, whole: get it again"
        )
        raise UserError(f"`{path.name}` is not a checkpoint: {why}", hint, DOWNLOAD)


def read(path: Path, max_bytes: int = 2 << 30, key: str = "ema") -> Pickled:
    """The network `ema` of an EDM pickle (protocols 2 to 5), or `net`; its arrays are copies.

    UserError (exit 3) if it is larger than max_bytes, damaged, of another kind, or asks for anything but data."""
    name, size, again = path.name, path.stat().st_size, remedy(path)
    if size > max_bytes:
        raise UserError(f"refused `{name}`: it has {size:,} bytes, expected at most {max_bytes:,}", again, DOWNLOAD)
    try:
        with path.open("rb") as file:
            check_head(file.read(512), path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                return _network(stream, size, key)
    except Refused as error:
        raise UserError(f"refused `{name}`: {error}", f"nothing of it was run; {again}", DOWNLOAD) from None
    except Broken as error:
        raise UserError(f"`{name}` is no EDM checkpoint, or is cut short: {error}", again, DOWNLOAD) from None


def _network(stream: Stream, size: int, which: str) -> Pickled:
    value = Reader(stream, EDM, allowance=4 * size + (1 << 20)).load()
    held = value if isinstance(value, dict) else {}
    network = held.get(which)
    if not isinstance(network, Node) or not isinstance(network.state, dict):
        raise Broken(f"it holds no network `{which}`")
    kwargs = network.state.get("_init_kwargs")
    if not isinstance(kwargs, dict):
        raise Broken("its network does not tell its configuration")
    state: dict[str, np.ndarray] = {}
    _collect(network, "", state, Budget(values=size // 2), 0)
    return Pickled(state, _plain(kwargs, Budget(), 0), network.name, isinstance(held.get("net"), Node))


@dataclass
class Budget:
    """What may still be walked of a network or a configuration: those of a hostile file contain themselves."""

    parts: int = MAX_PARTS
    values: int = 0  # of tensors: none is stored in less than two bytes

    def enter(self, parts: int, depth: int) -> bool:
        """Whether so many parts at this depth are still allowed."""
        self.parts -= parts
        return self.parts >= 0 and depth <= MAX_DEPTH


def _collect(module: Node, prefix: str, state: dict[str, np.ndarray], budget: Budget, depth: int) -> None:
    """Into `state`: the module's parameters, buffers and modules, as torch's state_dict has them."""
    own = module.state if isinstance(module.state, dict) else {}
    parts = [own.get(name) or {} for name in ("_parameters", "_buffers", "_modules")]
    transient = own.get("_non_persistent_buffers_set") or set()
    if not all(isinstance(part, dict) for part in parts) or not isinstance(transient, set):
        raise Refused(f"its module {quoted(module.name)} is not built as one")
    if not budget.enter(1 + sum(map(len, parts)), depth):
        raise Refused("its modules contain each other, or are too many")
    parameters, buffers, modules = parts
    for name in [*parameters, *buffers, *modules]:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT or "." in name:
            raise Refused(f"its module {quoted(module.name)} has a part named {quoted(name)}")
    for name, value in [*parameters.items(), *((n, b) for n, b in buffers.items() if n not in transient)]:
        if isinstance(value, Tensor):
            budget.values -= math.prod(value.shape)
            if budget.values < 0:
                raise Refused("its tensors hold more than the file")
            state[prefix + name] = value.array()
        elif value is not None:
            raise Refused(f"its module {quoted(module.name)} has a part {quoted(name)} that is no tensor")
    for name, value in modules.items():
        if isinstance(value, Node):
            _collect(value, f"{prefix}{name}.", state, budget, depth + 1)
        elif value is not None:
            raise Refused(f"its module {quoted(module.name)} has a part {quoted(name)} that is no module")


def _plain(value: object, budget: Budget, depth: int) -> Any:
    """A configuration as JSON has it."""
    if not budget.enter(1, depth):
        raise Refused("its configuration has no end")
    if isinstance(value, dict) and all(isinstance(key, str) and len(key) <= MAX_TEXT for key in value):
        return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, budget, depth + 1) for item in value]
    if not isinstance(value, str | int | float | None) or (isinstance(value, str) and len(value) > MAX_TEXT):
        raise Refused(f"its configuration holds {quoted(value)}")
    return value
