"""Components that are not ours, by the text that finds them: `./mine.py:Median`, what a user's file defines, or `object:median:1`, what
this process was given by `register`. They are found, imported, described and made here; the registry asks. It may import `errors` and
`spec`; torch is imported when a component is. Begin reading at `describe`, then `make`."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import itertools
import os
import random
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from purebench.errors import UserError, unknown
from purebench.foreign import sources, texts
from purebench.spec import OBJECT, Part, Value, place

SECONDS = 60.0  # that importing a file may take
# What the thing itself is called with; the thing itself is a function with required parameters, a factory one without.
CALLED_WITH = {"defense": ("x",), "classifier": ("x",), "attack": ("defense", "x", "y", "threat", "noise")}
LIBRARIES = ("torchattacks", "foolbox", "art", "secmlt")  # whose attacks take a network and images
BOUND = ("score", "classifier")  # parameters of these names are given the run's networks
GRADIENTS = ["exact", "adjoint", "surrogate", "bpda", "detached"]
HINT = "docs/your-own-code.md shows what a file may define"


# ------------------------------------------------------------------------------------------------------------------- found


def is_target(name: str) -> bool:
    """Whether a name is that of a file's content or of an object, and not one of a table."""
    return name.endswith(".py") or ".py:" in name or name.startswith(f"{OBJECT}:")


def target(name: str) -> str:
    """The name with its file's whole path. Raises UserError where there is no such file or object, or none of its contents is named."""
    if name.startswith(f"{OBJECT}:"):
        if name not in _objects:
            raise UserError(
                f"this process knows no `{name}`", "an object lives in one process: put it into a file, FILE.py:NAME"
            )
        return name
    file, _, attribute = name.rpartition(":") if ".py:" in name else (name, "", "")
    path = Path(os.path.abspath(place(file)))
    if path.is_dir():
        raise UserError(f"`{file}` is a folder, and no file", "write `FILE.py:NAME`")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = unknown("file", path.name, near).hint if near else "a path is relative to the working directory"
        raise UserError(f"there is no file `{file}`", hint)
    if not attribute:
        raise UserError(
            f"`{Part(name)}` does not say which of its parts is meant",
            f"write `{Part(f'{name}:NAME')}`; {_defines(path)}",
        )
    return f"{path}:{attribute}"


def label(name: str) -> str:
    """The name that a table shows: `my-defense` of `MyDefense` or `my_defense`."""
    words = name.split(":")
    attribute = words[1] if words[0] == OBJECT else words[-1]
    return _kebab(attribute)


def stem(name: str) -> str:
    """The name of its file, or `object`."""
    return OBJECT if name.startswith(f"{OBJECT}:") else _kebab(Path(name.rpartition(":")[0]).stem)


def _kebab(word: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", word)
    # Of the characters that a PART may have: it is read again from records.
    return re.sub(r"[^a-z0-9.]+", "-", spaced.lower()).strip("-") or "x"


def _defines(path: Path) -> str:
    """What a file defines at its top, in words."""
    found = [name for name in _top(_tree(path)) if not name.startswith("_") and not name.isupper()]
    return f"it defines {', '.join(found)}" if found else "it defines nothing"


def _top(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [found.id for found in node.targets if isinstance(found, ast.Name)]
    return list(dict.fromkeys(names))


def _tree(path: Path) -> ast.Module:
    """Its syntax tree. Raises UserError where it has none."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        line = f"\n  {path.name}:{error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        raise UserError(f"`{path}` is no Python: {error.msg}{line}", "mend that line") from None
    except (OSError, ValueError) as error:
        raise UserError(f"`{path}` cannot be read: {error}", "mend the file") from None


# ---------------------------------------------------------------------------------------------------------------- imported


@dataclass(frozen=True)
class _File:
    """A file as it was imported: its `module`, those that are `own` to it, by import name, the `files` that it is made of, and what
    these said (`stamp`, `texts`)."""

    path: Path
    module: ModuleType
    own: Mapping[str, ModuleType]
    files: Mapping[str, Path]
    stamp: tuple[object, ...]
    text: str  # sha256 of all


_files: dict[Path, _File] = {}
_fixed = 0  # while it is not zero, what was imported is not looked at again


@contextlib.contextmanager
def as_imported() -> Iterator[None]:
    """Within it a file that was imported stays what it is, whatever is written to it: a run has one code."""
    global _fixed
    _fixed += 1
    try:
        yield
    finally:
        _fixed -= 1


def _stamp(files: Mapping[str, Path]) -> tuple[object, ...]:
    found: list[object] = []
    for name, path in sorted(files.items()):
        facts = path.stat() if path.exists() else None
        found.append((name, str(path), facts and (facts.st_mtime_ns, facts.st_size)))
    return tuple(found)


def _file(path: Path) -> _File:
    """The file as it is now, imported; an edited one is imported anew."""
    known = _files.get(path)
    if known is None or (not _fixed and known.stamp != _stamp(known.files)):
        _files[path] = known = _import(path)
    return known


def _import(path: Path) -> _File:
    """Imports a file under a name of its own. Raises UserError for whatever goes wrong in it."""
    _tree(path)  # for its refusal
    files = sources.local(path)
    stamp, text = _stamp(files), path.read_bytes()
    # Of its content too: an edited file is another module, and what was made of the old one stays whole.
    name = f"purebench_file_{hashlib.sha256(str(path).encode() + text).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    _frames.update(map(str, files.values()))
    with _inside(path.parent, files, {}), _guarded(f"`{path}` cannot be imported", path), _in_time(path):
        # Found there by dataclasses, by inspect and by pickle.
        sys.modules[name] = module
        before = set(sys.modules)
        # These bytes, and not what the file may say by now.
        exec(compile(text, str(path), "exec"), module.__dict__)
        under = {n: m for n, m in sys.modules.items() if n not in before and n != name and _is_own(m)}
        own = {n: sys.modules[n] for n in files if n in sys.modules} | under
    # What it imports in a way that no reader of its text can see.
    files |= {n: Path(str(m.__file__)) for n, m in under.items() if n not in files}
    _frames.update(map(str, files.values()))
    return _File(path, module, own, files, stamp if len(files) == len(stamp) else _stamp(files), sources.digest(files))


def _is_own(module: ModuleType) -> bool:
    """Whether a module that a file brought, from wherever, is one that nobody installed."""
    file = getattr(module, "__file__", None) or ""
    return file.endswith(".py") and not sources.is_installed(Path(file), module.__name__)


@contextlib.contextmanager
def _inside(folder: Path, files: Mapping[str, Path], own: Mapping[str, ModuleType]) -> Iterator[None]:
    """Within it, the modules of this file's folder are found first, and none that another file or this process has under their names."""
    names = (set(files) | set(own)) - {sources.ITSELF}
    others = {name for file in _files.values() for name in file.own}
    hidden = {name: sys.modules.pop(name) for name in names | others if name in sys.modules}
    sys.modules.update(own)
    bytecode, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        True,
    )  # it is told apart by whole seconds: an edit may be quicker
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        # Behind all others, for what a function imports when it is called.
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        sys.dont_write_bytecode = bytecode
        for name, module in hidden.items():
            if name not in names or name not in others:
                sys.modules[name] = module


class _TooSlow(BaseException):
    """Past every `except Exception` of the file's own."""


@contextlib.contextmanager
def _in_time(path: Path) -> Iterator[None]:
    """Raises UserError after SECONDS. In other threads than the main one no clock rings."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except _TooSlow as slow:
        raise UserError(
            f"`{path}` takes over {SECONDS:g} s to import{_where(slow)}",
            "what takes long belongs into a function or a class, which is called when it is needed",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What foreign code prints goes to stderr: stdout has the data alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Within it, every global generator begins at seed 0, so that each process makes the same network; afterwards it is as before."""
    import numpy as np
    import torch

    state, theirs = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(theirs)


@contextlib.contextmanager
def _guarded(what: str, path: Path | None) -> Iterator[None]:
    """Whatever foreign code raises within it, and whatever it ends the process with, becomes a UserError that begins with `what`."""
    try:
        with seeded(), quiet():
            yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        own = path and error.name and (path.parent / error.name.replace(".", "/")).exists()
        hint = f"`pip install {(error.name or '').partition('.')[0]}`; a module of your own lies beside the file"
        if "no known parent package" in str(error) or own:
            hint = "write `import NAME`: the file's folder is on Python's path"
        raise UserError(f"{what}: there is no package `{error.name}`{_where(error)}", hint) from None
    except (Exception, SystemExit) as error:
        hint = "mend that line"
        if "no known parent package" in str(error):
            hint = "write `import NAME` in place of `from . import NAME`: the file's folder is on Python's path"
        raise UserError(f"{what}: {words(error)}{_where(error)}", hint) from None


# ------------------------------------------------------------------------------------------------------------------ errors

_frames: set[str] = set()  # files of foreign code, as frames name them


def words(error: BaseException) -> str:
    """An exception in a line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else error.code!r})"
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def lines(error: BaseException) -> list[str]:
    """The lines of its traceback that are foreign code's, outermost first, as `mine.py:12 in step: x.reshape(3)`."""
    found = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in _frames:
            inside = f" in {frame.name}" if frame.name != "<module>" else ""
            found.append(f"{Path(frame.filename).name}:{frame.lineno}{inside}: {frame.line or ''}".rstrip(": "))
    return found


def _where(error: BaseException) -> str:
    return "".join(f"\n  {line}" for line in lines(error)[-5:])


# --------------------------------------------------------------------------------------------------------------- described


@dataclass(frozen=True)
class Described:
    """What a target is. `thing`: the object itself; `form`: `factory` (called with its parameters), `itself` (called with what its kind
    is called with, its parameters bound) or `instance`; `parameters`: name -> default, None where there is none; `required`: those without
    a default; `bound`: which of BOUND it takes; `arguments`: parameter -> its name in the signature."""

    thing: Any
    form: str
    parameters: Mapping[str, Value]
    required: tuple[str, ...]
    bound: tuple[str, ...]
    arguments: Mapping[str, str]


def describe(kind: str, name: str) -> Described:
    """Raises UserError for what is not there, cannot be imported, or cannot be a component of this kind."""
    thing = _thing(target(name))
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, partial)):
        _check_instance(kind, name, thing)
        return Described(thing, "instance", {}, (), (), {})
    try:
        signature = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):
        # Of what is called with images alone nothing more has to be known.
        if not inspect.isclass(thing) and len(CALLED_WITH.get(kind, ())) == 1:
            return Described(thing, "instance", {}, (), (), {})
        raise UserError(
            f"`{Part(name)}` does not say which parameters it takes", "wrap it into a function of your own"
        ) from None
    positional = [p for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    free = [p for p in positional if p.name not in BOUND and p.default is p.empty]
    called = CALLED_WITH.get(kind, ())
    itself = bool(free and called) and not inspect.isclass(thing)
    slots = [p for p in positional if p.name not in BOUND][: len(called)] if itself else []
    if itself and len(slots) < len(called):
        got = ", ".join(p.name for p in positional)
        raise UserError(
            f"`{Part(name)}` takes ({got}), and an {kind} is called with ({', '.join(called)})",
            f"write `def {getattr(thing, '__name__', 'f')}({', '.join(called)}, *, steps=10)`, or a factory of such",
        )
    own = [
        p
        for p in signature
        if p not in slots and p.name not in BOUND and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    for p in own:
        if p.kind is p.POSITIONAL_ONLY:
            raise UserError(
                f"`{p.name}` of `{Part(name)}` is positional-only, and parameters are given by name",
                "take the `/` out of its signature",
            )
    offered = [p for p in own if p.default is p.empty or _is_value(p.default)]
    return Described(
        thing,
        "itself" if itself else "factory",
        {p.name.rstrip("_"): None if p.default is p.empty else _hashable(p.default) for p in offered},
        tuple(p.name.rstrip("_") for p in offered if p.default is p.empty),
        tuple(p.name for p in signature if p.name in BOUND and p not in slots),
        {p.name.rstrip("_"): p.name for p in offered},
    )


def _thing(name: str) -> Any:
    """What a whole name names."""
    if name in _objects:
        return _objects[name]
    file, _, attribute = name.rpartition(":")
    module = _file(Path(file)).module
    if not hasattr(module, attribute):
        near = [n for n in _top(_tree(Path(file))) if not n.startswith("_")]
        raise UserError(f"`{file}` defines no `{attribute}`", unknown("name", attribute, near).hint if near else HINT)
    return getattr(module, attribute)


def _check_instance(kind: str, name: str, thing: Any) -> None:
    library = type(thing).__module__.partition(".")[0]
    if kind == "attack" and library in LIBRARIES:
        raise UserError(
            f"`{Part(name)}` is an attack of {library}, which knows networks and no defenses",
            "give it `purebench.module(defense)`, and its images to `purebench.judge`: docs/other-attacks.md",
        )
    chain = all(hasattr(thing, word) for word in ("n", "start", "step", "finish"))
    fits = {"defense": chain or callable(thing), "dataset": isinstance(thing, tuple | list) or hasattr(thing, "take")}
    if isinstance(thing, ModuleType) or not fits.get(kind, callable(thing) or kind == "score"):
        hint = f"name a class, a function or {'an' if kind == 'attack' else 'a'} {kind}; {HINT}"
        raise UserError(f"`{Part(name)}` is a {type(thing).__name__}, and no {kind}", hint)


def kind(name: str) -> str:
    """What a target most likely is, by its form: an attack is called with five arguments, a score model knows noise levels."""
    thing = _thing(target(name))
    if isinstance(thing, tuple | list):
        return "dataset"
    if inspect.isroutine(thing):
        positional = [
            p
            for p in inspect.signature(thing).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if sum(p.default is p.empty for p in positional) >= len(CALLED_WITH["attack"]):
            return "attack"
    return "score" if hasattr(thing, "sigma_max") else "defense"


def files(name: str) -> list[str]:
    """The files that a target's code is."""
    name = target(name)
    return [] if name in _objects else [str(path) for path in _file(Path(name.rpartition(":")[0])).files.values()]


def _is_value(default: object) -> bool:
    """Whether a command line can say such a value."""
    if isinstance(default, list | tuple):
        return all(map(_is_value, default))
    return default is None or type(default) in (bool, int, float, str)


def _hashable(default: Any) -> Value:
    return tuple(map(_hashable, default)) if isinstance(default, list | tuple) else default


def docstring(name: str) -> str:
    """Of the thing itself, not of its type."""
    thing = _thing(target(name))
    plain = inspect.isclass(thing) or inspect.isroutine(thing)
    # A class without one has that of what it is derived from: torch.nn.Module's says nothing of it.
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    return inspect.cleandoc(own or "") if plain else ""


def info(kind: str, name: str, literal: Callable[[ast.Module, str, str], dict[str, Any]]) -> dict[str, Any]:
    """INFO of the file, by NAME or by label, or flat; completed by what the signature and the docstring say. literal(tree, place, word)
    reads a module-level dictionary, and refuses what is none."""
    name = target(name)
    thing, described = _thing(name), describe(kind, name)
    if name in _objects:
        found = getattr(thing, "INFO", {})
    else:
        file, _, attribute = name.rpartition(":")
        tree = _tree(Path(file))
        table = literal(tree, file, "INFO")
        # By the names of the file's contents, or flat where it has none of them.
        keyed = {key for word in _top(tree) for key in (word, _kebab(word))} & set(table)
        found = table.get(attribute, table.get(label(name), {})) if keyed else table
    if not isinstance(found, dict):
        raise UserError(f"the INFO of `{Part(name)}` is no dictionary", HINT)
    usual: dict[str, Any] = {"summary": docstring(name).partition("\n")[0]}
    if kind == "defense":
        usual["needs"] = list(described.bound)
    elif kind == "attack":
        usual["gradients"] = GRADIENTS
    elif kind == "dataset":
        usual |= {"shape": [0, 0, 0], "size": 0, "classes": 0, "training_set": ""}
    return usual | found


def check_given(kind: str, name: str, given: Mapping[str, object], common: Mapping[str, object]) -> None:
    """Raises UserError where a required parameter was not given, or one has a name that every component of the kind has. given: by name."""
    described = describe(kind, name)
    for key in described.required:
        if key not in given:
            raise UserError(
                f"`{Part(name)}` needs `{key}`, which has no default", f"write `{Part(name, ((key, 'VALUE'),))}`"
            )
    for key in set(described.parameters) & set(common):
        raise UserError(
            f"`{key}` of `{Part(name)}` is a parameter that every {kind} has",
            f"call yours something else, such as `own_{key}`",
        )


# -------------------------------------------------------------------------------------------------------------------- made


def make(kind: str, name: str, values: Mapping[str, Any], bound: Mapping[str, Any]) -> Any:
    """The component: what the factory gives, the thing itself with its parameters bound, or the instance. values: by parameter; bound:
    `score` and `classifier`, of which each gets what it asks for. Raises UserError for what the factory raises."""
    name = target(name)
    described = describe(kind, name)
    keywords = {described.arguments[key]: value for key, value in values.items() if key in described.arguments}
    keywords |= {key: bound.get(key) for key in described.bound}
    if described.form == "instance":
        return described.thing
    if described.form == "itself":
        return partial(described.thing, **keywords)
    with inside(name), _guarded(f"`{Part(name)}` cannot be made", None):
        return described.thing(**keywords)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Within it, foreign code imports what lies beside it. name: a whole one."""
    if name in _objects:
        yield
        return
    file = _file(Path(name.rpartition(":")[0]))
    with _inside(file.path.parent, file.files, file.own):
        yield


def code(name: str) -> str:
    """The sha256 of its source: the file and what it imports that nobody installed, or an object's own text."""
    name = target(name)
    if name in _objects:
        # Asked for before every batch: to look through a large object takes seconds.
        if name not in _codes:
            _codes[name] = hashlib.sha256(texts.code(_objects[name]).encode()).hexdigest()
        return _codes[name]
    file = _file(Path(name.rpartition(":")[0]))
    return hashlib.sha256(f"{file.text} {name.rpartition(':')[2]}".encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------- objects

_objects: dict[str, Any] = {}
_codes: dict[str, str] = {}
_numbers = itertools.count(1)


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """What is registered within it is forgotten at its end: nobody's images and networks are kept for as long as the process lives."""
    before = set(_objects)
    try:
        yield
    finally:
        for name in set(_objects) - before:
            del _objects[name]
            _codes.pop(name, None)


def register(kind: str, thing: Any, name: str | None = None) -> str:
    """The target by which this process finds an object; the same one for the same object. Raises UserError for what is no such
    component."""
    for known, other in _objects.items():
        if other is thing and (name is None or label(known) == _kebab(name)):
            return known
    named = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    found = f"{OBJECT}:{_kebab(name or str(getattr(named, '__name__', kind)))}:{next(_numbers)}"
    _objects[found] = thing
    try:
        describe(kind, found)
        with contextlib.suppress(TypeError, OSError):
            _frames.add(inspect.getfile(named))
    except UserError:
        del _objects[found]
        raise
    return found


def attributes(thing: object, but: Iterable[object] = ()) -> str:
    """The sha256 of the code and the plain attributes of an object, that somebody gave or a file's code made. Nothing is looked for
    inside `but`."""
    return hashlib.sha256(texts.whole(thing, but).encode()).hexdigest()


def given(name: str) -> object:
    """The object that this process was given under this name."""
    return _objects[target(name)]
