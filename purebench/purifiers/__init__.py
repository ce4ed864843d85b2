"""Purifiers by name: `make(name, score=..., classifier=..., **parameters)`; one family, one file. It may import `engine`,
`scores`, `registry` and `errors`. Begin reading at `one_shot`, the shortest, then at `coup`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from purebench import registry
from purebench.errors import UserError

if TYPE_CHECKING:  # a name is all that is needed before a purifier is made
    from purebench.engine.chain import Purifier
    from purebench.purifiers.contract import Classifier
    from purebench.scores.views import Score


def make(
    name: str,
    *,
    score: Score | Sequence[Score] | None = None,
    classifier: Classifier | None = None,
    **parameters: object,
) -> Purifier:
    """The purifier `name`, bound to its score model and classifier.

    Every parameter is checked here, against the types of the factory's defaults and INFO's `choices`, `requires` and `needs`, and
    nowhere else; a constructor checks what INFO cannot say. UserError for what is unknown, impossible or missing."""
    common = [key for key in parameters if key in registry.COMMON["defense"]]
    if common:
        raise UserError(
            f"`{common[0]}` belongs to a defense, not to a purifier", "give it to `purebench.engine.defense.Defense`"
        )
    values = registry.validated("defense", name, parameters)
    for need in registry.needs(name, values):
        if {"score": score, "classifier": classifier}[need] is None:
            raise UserError(
                f"`{name}` needs a {need}, and was given none", f"`purebench.purifiers.make(.., {need}=..)`"
            )
    own = {key: value for key, value in values.items() if key not in registry.COMMON["defense"]}
    made = registry.factory("defense", name)(score, classifier, **own)
    # Imported here: a name is all that is needed before a purifier is made.
    from purebench.purifiers.plain import as_purifier

    return as_purifier(made, registry.label("defense", name))
