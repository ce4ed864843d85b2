"""`purebench.judge`: what somebody else's attack came to, judged and recorded as the attack `given`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from purebench.api import given
from purebench.api.evaluate import evaluate
from purebench.api.module import WHICH, Module
from purebench.api.result import Result
from purebench.errors import UserError
from purebench.plan.given import numbers
from purebench.spec import Part, Value

if TYPE_CHECKING:
    Array = torch.Tensor | np.ndarray


def judge(
    x_adv: Array,
    defense: object,
    classifier: object = None,
    x: Array | None = None,
    y: Array | list[int] | None = None,
    *,
    threat: object = None,
    name: str = "",
    project: bool = False,
    dataset: object = None,
    score: object = None,
    subset: int | None = None,
    seed: object = None,
    evals: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    rows: int | None = None,
    memory: int | str | None = None,
    quiet: bool = False,
    **misspelt: object,
) -> Result:
    """Judges images that any attack has made: the records of `purebench run -a given:path=FILE`, byte for byte, and their table.

    `x_adv`: (N,C,H,W) float32 in [0,1]; image k is that of position k of the run, as `Module.images` gives them, or of x[k]. `defense`,
    `classifier`, `x`, `y`, `dataset`, `score`, `subset`: as of `purebench.evaluate`; or the defense is a `Module`, which has all of these.
    `threat`: "Linf:8/255", "L2:0.5", the dataset's if not said; `name`: of the attack, for the table; `project`: put images outside the
    threat model onto its edge. `evals`: fresh purifications of each image; `seed`: of the judge's draws, which no module sees. `out`: as of
    `evaluate`. Raises UserError for the first image that is outside the threat model, and as `evaluate`."""
    given.check_words(judge, misspelt)
    of: dict[str, Any] = {
        "defense": defense, "classifier": classifier, "dataset": dataset, "score": score, "subset": subset
    }  # fmt: skip
    if isinstance(defense, Module):
        if any(value is not None for value in (x, y, *(of[key] for key in WHICH if key != "defense"))):
            raise UserError(
                "a module has its images, networks and subset", "leave them out, or name the defense as text"
            )
        of, device = dict(defense.asked), str(defense.device) if device == "auto" else device
    found = numbers(x_adv, "x_adv")
    if found.dtype == object or found.ndim == 0:
        raise UserError(f"x_adv is a {type(x_adv).__name__}, expected images", "give a tensor or an array (N,C,H,W)")
    if x is not None and hasattr(x, "__len__") and len(x) != len(found):
        raise UserError(
            f"x_adv has {len(found)} images, and x {len(x)}", "give the x that they were made of, in its order"
        )
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="purebench-") as folder:
        # By way of a file, so that there is one reader, one check and one identity.
        file = Path(folder, "x_adv.npy")
        try:
            np.save(file, found, allow_pickle=False)
            parameters: dict[str, Value] = {"path": str(file), "project": project, **({"name": name} if name else {})}
            return evaluate(
                **of, x=x, y=y, attack=Part("given", tuple(parameters.items())), threat=threat, images=len(found), seed=seed,
                evals=evals, out=out, device=device, rows=rows, workers=1, memory=memory, quiet=quiet,
            )  # fmt: skip
        except UserError as error:
            raise UserError(error.message.replace(str(file), "x_adv"), error.hint, error.code) from None
        finally:
            # A run takes one; in this process they are the user's.
            torch.set_num_threads(threads)
