"""Purifiers by name: `make(name, score=..., classifier=..., **parameters)`; one family, one file. It may import the
engine, `scores` and the names. Begin reading at `one_shot`, the shortest, then at `coup`."""

from __future__ import annotations

from typing import Any

from purebench import registry
from purebench.errors import UserError


def make(name: str, *, score: Any = None, classifier: Any = None, **parameters: Any) -> Any:
    """The purifier `name`, bound to its score model and classifier. Unknown names and parameters raise UserError."""
    registry.check_parameters("defense", name, parameters)
    common = [key for key in parameters if key in registry.COMMON["defense"]]
    if common:
        raise UserError(
            f"`{common[0]}` belongs to a defense, not to a purifier", "give it to `purebench.engine.defense.Defense`"
        )
    for need, given in (("score", score), ("classifier", classifier)):
        if given is None and need in registry.info("defense", name).get("needs", []):
            raise UserError(
                f"`{name}` needs a {need}, and was given none", f"`purebench.purifiers.make(.., {need}=..)`"
            )
    known = registry.parameters("defense", name)
    words = {
        k: "none" for k, v in parameters.items() if v is None and isinstance(known[k], str)
    }  # `none` is read as None
    return registry.factory("defense", name)(score, classifier, **parameters | words)
