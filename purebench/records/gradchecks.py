"""`gradcheck.json` beside the cells of a folder: how good each gradient of a defense was found to be. Torch-free.

One entry per defense with its networks and data set; measured again, it is replaced. `running.gradcheck` says what its numbers are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purebench import atomic
from purebench.errors import UserError

FILE = "gradcheck.json"
Check = dict[str, Any]  # an entry
_NAMES = ("dataset", "classifier", "score", "defense")


def about(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell, as `cell.json` has it, shares with every check of its defense: names, versions, weights, parameters."""
    parts = {kind: of for kind, of in cell["parts"].items() if kind.partition(".")[0] in _NAMES}
    return {name: cell[name] for name in _NAMES} | {"parts": parts}


def read(folder: Path) -> list[Check]:
    """The checks of a folder of cells, none where there is no file. Raises UserError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["checks"]
        if not all(isinstance(check["of"]["parts"], dict) and isinstance(check["modes"], dict) for check in found):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"`{path}` is damaged", "remove it: `purebench gradcheck` writes it again, and no cell needs it"
        ) from None
    return found


def find(folder: Path, cell: Mapping[str, Any]) -> Check | None:
    """The check of a cell's defense."""
    return next((check for check in read(folder) if check["of"] == about(cell)), None)


def save(folder: Path, check: Check) -> Path:
    """Writes an entry, in the place of an older one of the same defense. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    checks = [other for other in read(folder) if other["of"] != check["of"]] + [check]
    checks.sort(key=lambda one: json.dumps(one["of"], sort_keys=True))
    atomic.replace(folder / FILE, json.dumps({"checks": checks}, indent=1) + "\n")
    return folder / FILE
