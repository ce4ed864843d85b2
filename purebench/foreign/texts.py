"""What an object of this process is, as text: the source of its class and functions with what these name and close over, and its plain
attributes. Tensors are not in it: whoever asks hashes them as numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from purebench.foreign import sources

MOST = 20_000  # objects that are looked at
BOOKKEEPING = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_is_full_backward_hook")
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def code(thing: object) -> str:
    """The source alone: what changes when it is edited, and not when it is called."""
    return "\n".join(_texts(thing, attributes=False))


def whole(thing: object) -> str:
    """The source and the plain attributes."""
    return "\n".join(_texts(thing, attributes=True))


def _texts(thing: object, attributes: bool) -> Iterator[str]:
    seen: dict[int, object] = {}
    pending: list[tuple[str, object]] = [("", thing)]
    while pending and len(seen) < MOST:
        name, at = pending.pop(0)
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
        return "mapping", [(str(key), value) for key, value in at.items()]
    if isinstance(at, list | tuple):
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
    if isinstance(at, ModuleType):
        file = getattr(at, "__file__", None) or ""
        own = file.endswith(".py") and not sources.is_installed(Path(file), at.__name__)
        return f"module {at.__name__} {sources.digest(sources.local(Path(file))) if own else ''}", []
    if isinstance(at, FunctionType):
        return _of_function(at) if _is_users(at) else (f"{at.__module__}.{at.__qualname__}", [])
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
        if network and (key in BOOKKEEPING or "_hooks" in key):
            continue
        inner.append((key, value))
    return f"object of {kind.__qualname__}", inner


def _of_function(at: FunctionType) -> tuple[str, list[tuple[str, object]]]:
    try:
        text = inspect.getsource(at)
    except (OSError, TypeError):
        # Of what was typed into a prompt no source is kept: the compiled code, without the places of it.
        text = " ".join(_compiled(at.__code__))
    inner: list[tuple[str, object]] = [("defaults", at.__defaults__), ("keywords", at.__kwdefaults__)]
    for key, cell in zip(at.__code__.co_freevars, at.__closure__ or (), strict=True):
        try:
            inner.append((key, cell.cell_contents))
        except ValueError:  # a cell that is not filled yet
            continue
    inner += [(key, at.__globals__[key]) for key in _names(at.__code__) if key in at.__globals__]
    return text, inner


def _compiled(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names} {[c for c in code.co_consts if not isinstance(c, CodeType)]!r}"
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
        return at.__module__ == "__main__"
    return not sources.is_installed(Path(file), at.__module__ or "")
