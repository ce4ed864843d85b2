"""Which files a component's code is: its own, and those of the modules that it imports and nobody installed. Read with ast, so that
importing them is not needed, and what a function imports when it is called is known, too."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")  # folders of what changes with a version, and not with an edit
ITSELF = ""  # the name under which a file stands among the modules that it imports


def find(module: str, folder: str = "") -> ModuleSpec | None:
    """Where a module lies, in `folder` or else where Python looks; without importing the packages around it. None if nowhere."""
    top, *rest = module.split(".")
    try:
        spec = (PathFinder.find_spec(top, [folder]) if folder else None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand has no spec
        return None
    # Folder by folder, since find_spec("a.b") imports a to find b, and its package may import torch.
    for depth, _ in enumerate(rest, 1):
        path = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(".".join([top, *rest[:depth]]), path) if path else None
    return spec


def local(path: Path, name: str = ITSELF) -> dict[str, Path]:
    """Import name -> file of what the file imports, and of what that imports, where nobody installed it; the file itself is ITSELF, or
    `name` where it is a module of a package."""
    importlib.invalidate_caches()  # a file that was just written is not yet in Python's listing of its folder
    found, pending = {name: path}, [(name, path)]
    while pending:
        for module in _imported(*pending.pop()):
            words = module.split(".")
            for depth in range(1, len(words) + 1):
                inner = ".".join(words[:depth])
                if inner not in found and (place := _own(inner, str(path.parent) if name == ITSELF else "")):
                    found[inner] = place
                    pending.append((inner, place))
    return found


def package(module: str) -> dict[str, Path]:
    """The same of an installed module, with those of its own package alone. {} where it is not installed as source."""
    spec = find(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return {}
    top = module.partition(".")[0]
    found, pending = {module: Path(spec.origin)}, [(module, Path(spec.origin))]
    while pending:
        for name in _imported(*pending.pop()):
            spec = find(name) if name.partition(".")[0] == top and name not in found else None
            if spec and spec.origin and spec.origin.endswith(".py"):
                found[name] = Path(spec.origin)
                pending.append((name, found[name]))
    return found


def digest(files: dict[str, Path], *words: str) -> str:
    """sha256 of the files under their names, and of these words; "" without a file."""
    if not files:
        return ""
    known = hashlib.sha256()
    for word in words:
        known.update(f"{word}\0".encode())
    # By name: a place is no part of what a file says.
    for name, path in sorted(files.items()):
        known.update(f"{name}\0{hashlib.sha256(_read(path)).hexdigest()}\0".encode())
    return known.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _imported(name: str, path: Path) -> Iterator[str]:
    """The modules that a file names in its imports, whole names, also in its functions."""
    try:
        tree = ast.parse(_read(path))
    except (SyntaxError, ValueError):  # told when it is imported
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                words = package.split(".")
                base = ".".join([*words[: len(words) - node.level + 1], *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _own(module: str, folder: str) -> Path | None:
    """The file of a module that nobody installed; None of others, and of folders without an `__init__.py`."""
    if module.partition(".")[0] in ("purebench", *sys.stdlib_module_names, *sys.builtin_module_names):
        return None
    spec = find(module, folder)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return None if is_installed(Path(spec.origin), module) else Path(spec.origin)


def is_installed(path: Path, module: str = "") -> bool:
    """Whether a file is of Python, of a package that somebody installed, or of purebench."""
    if module.partition(".")[0] == "purebench":
        return True
    return any(part in INSTALLED for part in path.parts) or any(path.is_relative_to(p) for p in _libraries())


@cache
def _libraries() -> list[Path]:
    return [Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib")]
