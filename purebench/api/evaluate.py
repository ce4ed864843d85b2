"""`purebench.evaluate`: one call for a defense, a classifier and images of your own."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from purebench.api import given
from purebench.api.result import Result
from purebench.api.run import run
from purebench.errors import UserError
from purebench.plan import resolved
from purebench.records import store
from purebench.spec import Part

if TYPE_CHECKING:
    import numpy
    import torch

    Array = torch.Tensor | numpy.ndarray


def evaluate(
    defense: object,
    classifier: object = None,
    x: Array | None = None,
    y: Array | list[int] | None = None,
    *,
    attack: object = None,
    threat: object = None,
    grad: object = None,
    dataset: object = None,
    score: object = None,
    images: int | None = None,
    subset: int | None = None,
    seed: object = None,
    evals: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    rows: int | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    sanity: bool = False,
    fresh: bool = False,
    quiet: bool = False,
    **misspelt: object,
) -> Result:
    """Attacks a defense of a classifier on images, judges it, and returns the table.

    `defense`, `classifier`: a PART such as "diffpure:t=0.1" or "digits-cnn", or an object: a module, a callable, a chain of steps. `x`:
    images (N,C,H,W), floats in [0,1]; `y`: their classes (N,), whole numbers; torch or NumPy, on any device. Without them, the images of
    `dataset`. `attack`: a PART or several, such as ["transfer-pgd", "pgd-eot:steps=20"]; `threat`: "Linf:8/255", "L2:0.5". The other
    arguments are those of `purebench.run`; `images`: all of x, unless fewer are asked for.

    `out`: the folder of the records, which the same call goes on with; without one they are in a temporary folder, for as long as the
    result lives. What is random: draws by `seed`, and nothing else. The objects are left in the mode, on the device and with the
    gradients that they came with. Raises UserError for the first thing that is wrong.
    """
    given.check_words(evaluate, misspelt)
    if defense is None:
        raise UserError(
            "there is no defense to evaluate", 'give one: defense="diffpure"; "none" is the bare classifier'
        )
    if x is not None or y is not None:
        if dataset is not None:
            raise UserError("x and y, and a dataset: there are images twice", "give one of them")
        _check_said(classifier, attack, threat)
        from purebench.api import own

        pixels, labels = own.checked(x, y)
        if isinstance(classifier, str | Part):
            classes = resolved.find("classifier", given.part("classifier", classifier)).classes
        else:
            given.check_object("classifier", classifier)
            classes = own.classes(classifier, pixels)
        dataset = own.dataset(pixels, labels, classes)
        images = len(pixels) if images is None else images
    with _folder(out) as (folder, temporary):
        result = run(
            defense=defense, classifier=classifier, attack=attack, threat=threat, grad=grad, dataset=dataset, score=score, images=images,
            subset=subset, seed=seed, evals=evals, out=folder, device=device, rows=rows, workers=workers, memory=memory, sanity=sanity,
            fresh=fresh, quiet=quiet,
        )  # fmt: skip
    if temporary:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _check_said(classifier: object, attack: object, threat: object) -> None:
    """Raises UserError for what no dataset says of the user's own images."""
    examples = {"classifier": "model", "attack": '"pgd-eot"', "threat": '"Linf:8/255"'}
    given_ = {"classifier": classifier, "attack": attack, "threat": threat}
    absent = [name for name, value in given_.items() if value is None]
    if absent:
        example = ", ".join(f"{name}={examples[name]}" for name in absent)
        raise UserError(f"of images of your own nobody knows the {', '.join(absent)}", f"say so: {example}")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[tuple[str | Path, bool]]:
    """The folder of the records, and whether it is a temporary one; what was computed there before an error or Ctrl-C stays."""
    if out is not None:
        yield out, False
        return
    folder = Path(tempfile.mkdtemp(prefix="purebench-"))
    try:
        yield folder, True
    except BaseException:
        if any(path.stat().st_size for path in folder.glob(f"*/{store.IMAGES}")):
            print(f"purebench: what was computed is kept: out='{folder}' goes on with it", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
