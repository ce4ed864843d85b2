"""No purification: the bare classifier, as the row that every table starts with."""

from __future__ import annotations

from typing import Any

from purebench.engine.identity import Identity

INFO = {
    "none": {
        "summary": "no purification: the bare classifier",
        "formula": "x",
        "calls": "none",
        "random": False,
        "identity": True,
        "output": "unit",
        "version": 1,
        "needs": [],
    }
}
CASES: dict[str, dict[str, Any]] = {  # run by every contract test, on every family of score models
    "none": {},
}


def none(score: Any = None, classifier: Any = None) -> Identity:
    """The input, unchanged: (B,C,H,W) in [0,1]."""
    return Identity()
