"""What is known of every checkpoint: `checkpoints.toml`, at the top of the repository and inside the wheel."""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from purebench.errors import unknown

PACKAGE = Path(__file__).parents[1]


@cache
def table() -> dict[str, dict[str, Any]]:
    """asset name -> its entry."""
    path = next(p for p in (PACKAGE / "checkpoints.toml", PACKAGE.parent / "checkpoints.toml") if p.is_file())
    return tomllib.loads(path.read_text(encoding="utf-8"))["assets"]


def entry(name: str) -> dict[str, Any]:
    if name not in table():
        raise unknown("asset", name, table())
    return table()[name]


def cache_folder() -> Path:
    """PUREBENCH_CACHE, else XDG_CACHE_HOME/purebench, else ~/.cache/purebench."""
    given = os.environ.get("PUREBENCH_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purebench"


def places() -> dict[str, str]:
    """What `purebench where` prints."""
    registry = next(p for p in (PACKAGE / "checkpoints.toml", PACKAGE.parent / "checkpoints.toml") if p.is_file())
    return {
        "cache": str(cache_folder()),
        "embedded weights": str(PACKAGE / "embedded"),
        "checkpoint registry": str(registry),
        "presets": str(PACKAGE / "presets"),
        "results": str(Path("results").absolute()),
    }
