"""How robust is this purification defense, really? The folders are the way of a number: what is said (`cli`, `spec`,
`registry`) becomes cells (`plan`), is run (`running`) on the parts and the `engine`, recorded (`records`) and shown
(`report`). docs/design.md is the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from purebench.engine.draws import step as step
    from purebench.records.frame import load as load

# Name of the Python API -> its module, imported when the name is first used.
_LATER = {"load": "purebench.records.frame", "step": "purebench.engine.draws"}


def __getattr__(name: str) -> object:
    """`import purebench` costs nothing: pandas and torch are imported with the first name that needs them."""
    if name not in _LATER:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
