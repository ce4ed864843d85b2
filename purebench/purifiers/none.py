"""No purification: the bare classifier, as the row that every table starts with."""

from __future__ import annotations

from purebench.engine.identity import Identity
from purebench.purifiers.contract import Cases, Classifier
from purebench.scores.views import Score

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
CASES: Cases = {  # run by every contract test, on every family of score models
    "none": {},
}


def none(score: Score | None = None, classifier: Classifier | None = None) -> Identity:
    """The input, unchanged: (B,C,H,W) in [0,1]."""
    return Identity()
