"""What an object of this process is, as text: the compiled code of its class and functions with what these name and close over, and its
plain attributes. Compiled, and not its source: of a module that was edited after it was imported, the file says what does not run.
Tensors are not in it: whoever asks hashes them as numbers."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import inspect
import numbers
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from purebench.errors import UserError
from purebench.foreign import sources

MOST = 200_000  # objects that are looked at
BOOKKEEPING = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_is_full_backward_hook")
PLAIN = (numbers.Number, str, bytes, type(None), datetime.date, datetime.time, datetime.timedelta, PurePath)
SIMPLE = {bool, int, float, complex, str, bytes, type(None)}
# Packages whose objects change while they are used, and say nothing of what is computed: loggers, locks, generators.
BUSY = re.compile(
    r"(logging|threading|_thread|random|numpy\.random|torch\._C|concurrent|asyncio|multiprocessing)(\.|$)"
)


def code(thing: object) -> str:
    """The code alone: what changes when it is edited, and not when it is called."""
    return "\n".join(_texts(thing, False, ()))


def whole(thing: object, but: Iterable[object] = ()) -> str:
    """The code and the plain attributes; nothing is looked for inside `but`."""
    return "\n".join(_texts(thing, True, but))


def _texts(thing: object, attributes: bool, but: Iterable[object]) -> Iterator[str]:
    seen: dict[int, object] = {id(part): part for part in but}
    pending: deque[tuple[str, object]] = deque([("", thing)])
    while pending:
        if len(seen) > MOST:
            raise UserError(
                f"an object holds more than {MOST:,} others, and its hash would take minutes",
                "keep its data in arrays or tensors",
            )
        name, at = pending.popleft()
        if isinstance(at, PLAIN):
            if attributes:
                yield f"{name}={at!r}"
        elif id(at) not in seen:
            seen[id(at)] = at  # kept, or its id would be given again
            own, inner = _of(at, attributes)
            yield f"{name}: {own}"
            pending += [(f"{name}.{key}", value) for key, value in inner]


def _of(at: Any, attributes: bool) -> tuple[str, list[tuple[str, object]]]:
    """What one object says, and what it consists of."""
    if isinstance(at, Mapping):
        # Of other keys the text may be an address.
        return "mapping", [(str(k) if isinstance(k, PLAIN) else type(k).__name__, value) for k, value in at.items()]
    if isinstance(at, list | tuple | deque) and len(at) > 100 and all(type(item) in SIMPLE for item in at):
        return f"{type(at).__name__} {hashlib.sha256(repr(list(at)).encode()).hexdigest()}", []
    if isinstance(at, list | tuple | deque):
        return "list", [(str(i), value) for i, value in enumerate(at)]
    if isinstance(at, set | frozenset):
        return "set", [(str(i), value) for i, value in enumerate(sorted(at, key=repr))]
    if isinstance(at, partial):
        return "partial", [("func", at.func), ("args", at.args), ("keywords", at.keywords)]
    if isinstance(at, MethodType):
        return "method", [("self", at.__self__), ("func", at.__func__)]
    if isinstance(at, staticmethod | classmethod):
        return "method", [("func", at.__func__)]
    if isinstance(at, property):
        return "property", [("get", at.fget), ("set", at.fset)]
    if isinstance(at, bytearray):
        return at.hex(), []
    # Compiled by torch: what was compiled.
    if original := getattr(at, "_torchdynamo_orig_callable", None):
        return "compiled", [("original", original)]
    if type(at).__name__ == "OptimizedModule" and "_orig_mod" in getattr(at, "_modules", {}):
        return "compiled", [("original", at._modules["_orig_mod"])]
    if BUSY.match(type(at).__module__):
        return f"object of {type(at).__qualname__}", []
    # Of numbers they are hashed as such.
    if getattr(getattr(at, "dtype", None), "kind", "") in tuple("OSUM") and hasattr(at, "tolist"):
        return "array", [("items", at.tolist())]
    # pandas' frames and series.
    if type(at).__module__.partition(".")[0] == "pandas" and hasattr(at, "to_dict"):
        return f"object of {type(at).__qualname__}", [("items", at.to_dict())]
    if isinstance(at, BuiltinFunctionType):
        return f"{at.__module__}.{at.__qualname__}", []
    if isinstance(at, ModuleType):
        file = getattr(at, "__file__", None) or ""
        own = file.endswith(".py") and not sources.is_installed(Path(file), at.__name__)
        # As it is in memory: with what was put into it, and without what was edited since.
        parts = [(key, value) for key, value in sorted(vars(at).items()) if not key.startswith("__")]
        return f"module {at.__name__}", parts if own else []
    if isinstance(at, FunctionType):
        # Of a library's decorator only what it was given: `torch.no_grad()` above a function of the user's.
        return _of_function(at) if _is_users(at) else (f"{at.__module__}.{at.__qualname__}", _closed(at))
    if isinstance(at, type):
        if not _is_users(at):
            return f"{at.__module__}.{at.__qualname__}", []
        skipped = ("__dict__", "__weakref__", "__module__", "__doc__")
        parts = [(key, value) for key, value in vars(at).items() if key not in skipped]
        return f"class {at.__qualname__}", [*parts, *[(base.__name__, base) for base in at.__bases__]]
    kind = type(at)
    inner: list[tuple[str, object]] = [("class", kind)]
    # A network's own bookkeeping, hooks and its mode, is changed by whoever runs it; its tensors are hashed as numbers.
    network = hasattr(at, "_modules") and hasattr(at, "_parameters")
    for key, value in sorted(getattr(at, "__dict__", {}).items()) if attributes or network else ():
        if network and key in BOOKKEEPING:
            continue
        inner.append((key, _hooks(value) if network and "_hooks" in key and isinstance(value, Mapping) else value))
    slots = [key for base in kind.__mro__ if _is_users(base) for key in _slots(base) if hasattr(at, key)]
    # A range, a device, an `itemgetter`: what they are is what they write, unless that is a place in memory.
    if len(inner) == 1 and not slots and not hasattr(at, "shape") and not network and " at 0x" not in repr(at):
        return repr(at), inner
    return f"object of {kind.__qualname__}", [*inner, *[(key, getattr(at, key)) for key in slots if attributes]]


def _hooks(found: Mapping[Any, Any]) -> list[object]:
    """A network's hooks but for those by which its calls are counted; without their keys, which are numbers that go on counting."""
    return [hook for hook in found.values() if not str(getattr(hook, "__module__", "")).startswith("purebench.")]


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    return [found] if isinstance(found, str) else list(found)


def _of_function(at: FunctionType) -> tuple[str, list[tuple[str, object]]]:
    inner: list[tuple[str, object]] = [("defaults", at.__defaults__), ("keywords", at.__kwdefaults__)]
    inner += _closed(at)
    # What it imports when it is called stands among the modules.
    inner += [(key, (at.__globals__ if key in at.__globals__ else sys.modules).get(key)) for key in _names(at.__code__)]
    inner += sorted(vars(at).items())
    return " ".join(_compiled(at.__code__)), inner


def _closed(at: FunctionType) -> list[tuple[str, object]]:
    """What a function closes over."""
    found: list[tuple[str, object]] = []
    for key, cell in zip(at.__code__.co_freevars, at.__closure__ or (), strict=True):
        # One may not be filled yet.
        with contextlib.suppress(ValueError):
            found.append((key, cell.cell_contents))
    return found


def _compiled(code: CodeType) -> Iterator[str]:
    # Without places; and of a set in another process the order is another.
    consts = [
        sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts if not isinstance(c, CodeType)
    ]
    yield f"{code.co_code.hex()} {code.co_names} {consts!r}"
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _compiled(const)


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return sorted({*code.co_names, *inner})


def _is_users(at: Any) -> bool:
    """Whether a class or function is nobody's package's."""
    try:
        file = inspect.getfile(at)
    except (OSError, TypeError):
        # A class whose module was never registered: made by `exec`, or read by a loader of its own.
        return at.__module__ == "__main__" or at.__module__ not in sys.modules
    return not sources.is_installed(Path(file), at.__module__ or "")
