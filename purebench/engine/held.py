"""What an object of somebody else's holds: its networks, their weights, its generators. Found by looking, since whoever wrote it promised
no interface: the object itself, its attributes, lists and dictionaries, what a function closes over and the globals that it names."""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOST = 100_000  # objects that are looked at: a data set held in a list of lists must not take minutes
# Libraries in whose functions nobody keeps a network of a user's; the standard library is another.
LIBRARIES = {"torch", "numpy", "purebench", "torchvision", "scipy", "pandas", "PIL", "matplotlib"}


def networks(obj: object, but: Iterable[object] = ()) -> list[nn.Module]:
    """The networks that an object holds, outermost ones only, in the order of finding them. Nothing is looked for inside `but`."""
    return [found for _, found in _walk(obj, but) if isinstance(found, nn.Module)]


def generators(obj: object, but: Iterable[object] = ()) -> list[Any]:
    """The random generators that an object holds: torch's, numpy's and the standard library's."""
    return [found for _, found in _walk(obj, but) if _is_generator(found)]


def code(obj: object, but: Iterable[object] = ()) -> list[types.FunctionType]:
    """The functions of a user's that an object is made of: its methods, itself, and those that they name."""
    return [found for _, found in _walk(obj, but) if isinstance(found, types.FunctionType)]


def digest(obj: object, but: Iterable[object] = ()) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers that an object holds, and of plain tensors and arrays
    among its attributes; "" where there are none. The same for equal weights, on whatever device they are."""
    total, some = hashlib.sha256(), False
    for name, tensor in _tensors(obj, but):
        some = True
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes: numpy does not know bfloat16, and a nan is equal to itself here.
        flat = (tensor if tensor.layout == torch.strided else tensor.to_dense()).detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest() if some else ""


def settle(obj: object, device: torch.device | str, own_mode: bool = False, but: Iterable[object] = ()) -> None:
    """Moves every network that an object holds to the device, in evaluation mode and frozen; `own_mode`: as it was made."""
    for network in networks(obj, but):
        network.to(device)
        if not own_mode:
            network.eval()
            # One by one: a scripted network has no `requires_grad_` of its own.
            for parameter in network.parameters():
                parameter.requires_grad_(False)


def _tensors(obj: object, but: Iterable[object]) -> Iterator[tuple[str, Tensor]]:
    for name, found in _walk(obj, but):
        if isinstance(found, nn.Module):
            # Buffers that are not saved make numbers too.
            own = [*found.named_parameters(), *found.named_buffers()]
            yield from ((f"{name}.{key}", tensor) for key, tensor in own if not tensor.is_meta)
        elif isinstance(found, Tensor):
            yield name, found
        elif _is_array(found):
            yield name, torch.tensor(found)


def _walk(obj: object, but: Iterable[object] = ()) -> Iterator[tuple[str, object]]:
    """(path, found) of everything worth knowing: networks, tensors, arrays, generators, functions."""
    # Kept alive while their ids are known: a freed object's id would be given again.
    alive: list[object] = [*but]
    seen = {id(o) for o in alive}
    queue: list[tuple[str, object]] = [("", obj)]
    while queue and len(seen) < MOST:
        name, at = queue.pop(0)
        if id(at) in seen or isinstance(at, str | bytes | int | float | complex | None):
            continue
        seen.add(id(at))
        alive.append(at)
        if isinstance(at, nn.Module):
            yield name, at
            # What it contains is it; what it merely keeps in a list is not.
            inside = [*at.modules(), *at.parameters(), *at.buffers()]
            alive += inside
            seen |= {id(part) for part in inside}
            queue += [item for module in at.modules() for item in _inside(name, module)]
        elif isinstance(at, Tensor) or _is_array(at) or _is_generator(at):
            yield name, at
        else:
            if isinstance(at, types.FunctionType) and _is_users(at.__module__):
                yield name, at
            queue += _inside(name, at)


def _inside(name: str, obj: Any) -> list[tuple[str, object]]:
    """(path, part) of what an object is made of."""

    def named(parts: dict[Any, Any]) -> list[tuple[str, object]]:
        return [(f"{name}.{key}", part) for key, part in list(parts.items())]

    match obj:
        case dict():
            return named(obj)
        case list() | tuple():
            return [(f"{name}.{i}", part) for i, part in enumerate(obj)]
        case functools.partial():
            return [(f"{name}()", obj.func), (f"{name}()", obj.args), (f"{name}()", obj.keywords)]
        case types.MethodType():
            return [(name, obj.__self__), (f"{name}()", obj.__func__)]
        case types.FunctionType():
            return _of_function(name, obj) if _is_users(obj.__module__) else []
        case staticmethod() | classmethod():
            return [(f"{name}()", obj.__func__)]
        case property():
            return [(f"{name}()", obj.fget)]
        case type():
            # Methods name globals, and a network may be an attribute of the class.
            return (
                named(dict(vars(obj))) + [(name, base) for base in obj.__bases__] if _is_users(obj.__module__) else []
            )
        case types.ModuleType() | types.BuiltinFunctionType():
            return []
    own = named(vars(obj)) if hasattr(obj, "__dict__") else []
    slots = [(f"{name}.{key}", getattr(obj, key)) for key in _slots(type(obj)) if hasattr(obj, key)]
    return [*own, *slots, (name, type(obj))]


def _slots(cls: type) -> list[str]:
    found = [vars(base).get("__slots__", ()) for base in cls.__mro__ if _is_users(base.__module__)]
    return [key for slots in found for key in ([slots] if isinstance(slots, str) else slots)]


def _of_function(name: str, function: types.FunctionType) -> list[tuple[str, object]]:
    """What a function closes over, its defaults, and the globals that it or a function within it names."""
    found: list[tuple[str, object]] = []
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((f"{name}.{key}", cell.cell_contents))
        except ValueError:  # a cell that is not filled yet
            continue
    found += [(f"{name}.default", part) for part in (function.__defaults__, function.__kwdefaults__) if part]
    found += [(f"{name}.{key}", part) for key, part in vars(function).items()]
    words = _words(function.__code__)
    for key in words:
        part = function.__globals__.get(key)
        if not isinstance(part, types.ModuleType):
            found.append((f"{name}.{key}", part))
        elif _is_users(part.__name__):
            # `nets.MODEL`: of a module of the user's, what the function names there.
            found += [(f"{name}.{key}.{word}", vars(part)[word]) for word in words if word in vars(part)]
    return found


def _words(code: types.CodeType) -> list[str]:
    inner = [word for const in code.co_consts if isinstance(const, types.CodeType) for word in _words(const)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _is_users(module: str | None) -> bool:
    """Whether a module may hold something of a user's."""
    top = (module or "").partition(".")[0]
    return top not in LIBRARIES and (top not in sys.stdlib_module_names or top == "__main__")


def _is_array(obj: object) -> bool:
    numpy = sys.modules.get("numpy")
    # Of objects or text there is nothing to hash as numbers.
    return numpy is not None and isinstance(obj, numpy.ndarray) and obj.dtype.kind in "biuf"


def _is_generator(obj: object) -> bool:
    numpy = sys.modules.get("numpy")
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    return isinstance(obj, (*kinds, numpy.random.Generator, numpy.random.RandomState) if numpy else kinds)
