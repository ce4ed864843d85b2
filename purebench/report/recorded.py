"""A recorded cell planned anew, for whoever draws more than its lines say: what its purification costs, and its images on their way."""

from __future__ import annotations

from collections.abc import Sequence

from purebench.errors import UserError
from purebench.plan import grid, resolved
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Log
from purebench.report import recipe
from purebench.spec import Cell


def control(log: Log, given: Sequence[Component] = ()) -> grid.Job:
    """The null control of a record's defense, with the parts of now; given: datasets of the user's own. Raises UserError for what is not
    here, such as a file of the user's."""
    wanted = recipe.of(log) | {"attacks": ["null"], "images": 1, "evals": 1}
    wanted["dataset"] = recipe.located(dataset(log, given))
    [job] = grid.jobs({key: value for key, value in wanted.items() if key not in ("grads", "threats")})
    return job


def dataset(log: Log, given: Sequence[Component] = ()) -> Component:
    """The log's dataset, whether its files are here or not. Raises UserError for one of the user's own that was not given."""
    name = str(log.cell["dataset"])
    try:
        found = next((own for own in given if own.text == name), None)
        return found or resolved.find("dataset", recipe.of(log)["dataset"])
    except UserError:
        # Of one of the user's own the records say everything but where it lies.
        raise UserError(
            f"the dataset `{name}` is not here (`--data` says where it lies)", "name it: parquet:path=FILE"
        ) from None


def defended(log: Log, given: Sequence[Component] = ()) -> Cell:
    """The cell of a record's defense as it was judged. Raises UserError where a part of it is another one now, by version, weights or
    parameters, and where an image depends on the batch that it was judged in."""
    cell = control(log, given).cell
    now, then = cell.data()["parts"], store.parts(log.cell)
    for kind in (kind for kind in now if kind not in ("attack", "gradient", "dataset")):
        differ = [key for key in now[kind] if key != "values" and now[kind][key] != then.get(kind, {}).get(key)]
        if differ or now[kind].get("values", {}) != then.get(kind, {}).get("values", {}):
            raise UserError(f"the {kind} that was judged is another one now", f"run `{log.id}` again")
    for key, value in cell.defense.info.get("couples", {}).items():
        if cell.defense.values.get(key) == value:
            raise UserError(
                f"`{log.cell['defense']}` couples the images of a batch: alone an image is purified otherwise",
                "choose another defense",
            )
    return cell
