"""Purifiers by name: `make(name, score=..., classifier=..., **parameters)`."""

from __future__ import annotations

from typing import Any

from purebench import registry


def make(name: str, *, score: Any = None, classifier: Any = None, **parameters: Any) -> Any:
    """The purifier `name`, bound to its score model and classifier. Unknown names and parameters raise UserError."""
    registry.check_parameters("defense", name, parameters)
    return registry.factory("defense", name)(score, classifier, **parameters)
