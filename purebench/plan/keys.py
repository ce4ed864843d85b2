"""What every table of a TOML file is held against: its keys, and the types of their values. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purebench.errors import UserError, unknown

HINT = "`purebench show coup/1` says where a table's file is; docs/tables.md has every key"


def check(data: Mapping[str, Any], known: Mapping[str, Any], where: str, hint: str = HINT) -> None:
    """Refuses keys that are not known, and values of another type."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is no table", hint)
    for key, value in data.items():
        if key not in known:
            raise unknown(f"key of {where}", key, known)
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        # True is an int to Python, and no number of images.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"`{key} = {value!r}` of {where} has the wrong type", hint)


def check_items(values: Any, kind: type, where: str, hint: str = HINT) -> None:
    """Refuses what is no list of texts, numbers or tables."""
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise UserError(f"{where} is no list of {'texts' if kind is str else 'tables'}", hint)
