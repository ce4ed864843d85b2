"""A recorded cell planned anew, for whoever draws more than its lines say: what its purification costs, and its images on their way."""

from __future__ import annotations

from typing import Any

from purebench.errors import UserError
from purebench.plan import grid
from purebench.records import store as records
from purebench.records.store import Log
from purebench.spec import Part, parse


def planned(log: Log, *, attack: bool) -> grid.Job:
    """The job of a record, by its names and values; without its attack that of its null control. Raises UserError for what is not here
    (a file of the user's), and with the attack where today's cell is another one, by versions or weights."""
    cell = log.cell
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in records.values_of(cell, "defense").items()}
    asked: dict[str, Any] = {
        "dataset": cell["dataset"], "subset": cell["subset"], "classifier": cell["classifier"], "images": 1, "seeds": [cell["seed"]],
        "defenses": [str(Part(parse(cell["defense"]).name, tuple(values.items())))], "attacks": ["null"],
    }  # fmt: skip
    # `-` stands for what a cell does not use.
    given = {"score": cell["score"]}
    if attack:
        given |= {"attacks": [cell["attack"]], "grads": [cell["gradient"]], "threats": [cell["threat"]]}
    asked |= {key: value for key, value in given.items() if value not in ("-", ["-"])}
    [job] = grid.jobs(asked)
    if attack and job.cell.id != log.id:
        raise UserError(
            f"`{log.id}` was made by other versions, weights or defaults than those at hand (now `{job.cell.id}`)",
            "run it again: its images would be purified by another defense than the one that was judged",
        )
    return job
