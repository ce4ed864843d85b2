"""What an object of this process is, as text: the source of the functions and classes that it is made of, and the plain values in it.

Weights are not in it, nor other arrays (`engine.held` hashes them). Two objects of one text do the same; an address, which differs
from process to process, is never part of it."""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
import textwrap
import types
from pathlib import Path
from typing import Any

MOST = 10_000  # objects that are looked at: what holds more is held by its source alone from there on
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def text(thing: Any) -> str:
    """One line for each thing that it reaches: attributes, closures, defaults, bound arguments, and globals that its functions name."""
    lines: list[str] = []
    seen: dict[int, int] = {}
    alive: list[Any] = []  # a freed object's id would be given again
    queue: list[tuple[str, Any]] = [("", thing)]
    while queue and len(seen) < MOST:
        name, at = queue.pop(0)
        if isinstance(at, PLAIN) or (isinstance(at, tuple) and all(isinstance(part, PLAIN) for part in at)):
            lines.append(f"{name}={at!r}")
        elif id(at) in seen:
            lines.append(f"{name} is {seen[id(at)]}")
        else:
            seen[id(at)] = len(seen)
            alive.append(at)
            said, parts = _look(at)
            lines.append(f"{name}: {said}")
            queue += [(f"{name}.{key}", part) for key, part in parts]
    return "\n".join(lines)


def _look(at: Any) -> tuple[str, list[tuple[Any, Any]]]:
    """(what it is, what it is made of, by name)."""
    match at:
        case types.ModuleType():
            return at.__name__, []
        case dict():
            return "dict", [(repr(key) if isinstance(key, PLAIN) else "", part) for key, part in at.items()]
        case list() | tuple():
            return type(at).__name__, list(enumerate(at))
        case set() | frozenset():
            return "set", list(enumerate(sorted(at, key=repr))) if all(isinstance(x, PLAIN) for x in at) else []
        case types.SimpleNamespace():
            return "namespace", list(vars(at).items())
        case functools.partial():
            return "partial", [("func", at.func), ("args", at.args), ("keywords", at.keywords)]
        case types.MethodType():
            return f"method {at.__name__}", [("self", at.__self__), ("func", at.__func__)]
        case staticmethod() | classmethod():
            return type(at).__name__, [("func", at.__func__)]
        case property():
            return "property", [("get", at.fget)]
        case types.FunctionType():
            return (_source(at), _of_function(at)) if _is_users(at) else (f"{at.__module__}.{at.__qualname__}", [])
        case type():
            return (
                (_source(at), [("base", base) for base in at.__bases__] + _of_class(at))
                if _is_users(at)
                else (f"{at.__module__}.{at.__qualname__}", [])
            )
    kind = type(at)
    # Arrays and generators; and a library's object may hold anything: its kind is all that is known of it.
    if not _is_users(kind) and not hasattr(at, "_modules"):
        return f"{kind.__module__}.{kind.__qualname__}", []
    return "object", [("type", kind), *_attributes(at)]


def _attributes(at: Any) -> list[tuple[str, Any]]:
    """Of a network all but torch's own bookkeeping, and the modes, which change while it is evaluated."""
    found = dict(vars(at)) if hasattr(at, "__dict__") else {}
    found |= {key: getattr(at, key) for key in getattr(type(at), "__slots__", ()) if hasattr(at, key)}
    if hasattr(at, "_modules"):
        own = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_is_full_backward_hook")
        found = {key: part for key, part in found.items() if key not in own and not key.endswith("hooks")}
        found = {key: part for key, part in found.items() if "_hooks_" not in key}
    return list(found.items())


def _of_class(kind: type) -> list[tuple[str, Any]]:
    """What a class holds beside what its source says: what its methods name, and attributes that were set later."""
    return [(key, part) for key, part in vars(kind).items() if not key.startswith("__") or key == "__init__"]


def _of_function(at: types.FunctionType) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, cell in zip(at.__code__.co_freevars, at.__closure__ or (), strict=True):
        try:
            found.append((key, cell.cell_contents))
        except ValueError:  # a cell that is not filled yet
            continue
    found += [("defaults", at.__defaults__), ("kwdefaults", at.__kwdefaults__), *vars(at).items()]
    return found + [(key, at.__globals__[key]) for key in _words(at.__code__) if key in at.__globals__]


def _words(code: types.CodeType) -> list[str]:
    inner = [word for const in code.co_consts if isinstance(const, types.CodeType) for word in _words(const)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _source(at: Any) -> str:
    """Its source; without one, as of what was typed into Python's own prompt, its code."""
    try:
        return textwrap.dedent(inspect.getsource(at))
    except (OSError, TypeError):
        return _bytes(at.__code__) if isinstance(at, types.FunctionType) else at.__qualname__


def _bytes(code: types.CodeType) -> str:
    constants = [_bytes(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _is_users(at: Any) -> bool:
    """Whether a function or class is from no library, and not of ours."""
    module = sys.modules.get(at.__module__ or "")
    if module is None or at.__module__ == "__main__":
        return at.__module__ != "builtins"
    top = at.__module__.partition(".")[0]
    file = getattr(module, "__file__", None)
    if top in ("purebench", *sys.stdlib_module_names) or file is None:
        return False
    return not any(Path(file).is_relative_to(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib"))
