"""How robust is this purification defense, really? The folders are the way of a number: what is said (`cli` or `api`, `spec`,
`registry`) becomes cells (`plan`), is run (`running`) on the parts and the `engine`, recorded (`records`) and shown
(`report`). docs/design.md is the map, docs/api.md what can be called from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from purebench.api.evaluate import evaluate as evaluate
    from purebench.api.judge import judge as judge
    from purebench.api.module import module as module
    from purebench.api.result import Result as Result
    from purebench.api.run import run as run
    from purebench.engine.draws import step as step
    from purebench.errors import UserError as UserError
    from purebench.records.frame import load as load

__version__ = "0.1.0"

# Name of the Python API -> its module, imported when the name is first used.
_LATER = {
    "run": "purebench.api.run",
    "evaluate": "purebench.api.evaluate",
    "load": "purebench.records.frame",
    "step": "purebench.engine.draws",
    "Result": "purebench.api.result",
    "UserError": "purebench.errors",
    "module": "purebench.api.module",
    "judge": "purebench.api.judge",
}


def __getattr__(name: str) -> object:
    """`import purebench` costs nothing: pandas and torch are imported with the first name that needs them."""
    if name not in _LATER:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
