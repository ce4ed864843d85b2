"""The records as pandas DataFrames: `load` has one row per image and cell, `cells` one row per cell. Torch-free.

import purebench
images = purebench.load("results")
judged = images[~images.lost]
cells = judged.groupby("cell", observed=True)
cells[["right", "evals"]].sum().eval("right / evals")   # accuracy of single runs
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas

from purebench.errors import UserError
from purebench.records import store
from purebench.records.store import Log, Record
from purebench.spec import place

NAMES = ("cell", "dataset", "subset", "classifier", "score", "defense", "attack", "threat", "grad", "seed")
GRADIENTS = ("iterates", "zero", "not_finite", "right", "blind")  # the counts of a line's `gradients`
DTYPES = {  # column of `load` -> dtype, in order
    **dict.fromkeys(NAMES, "category"),
    **dict.fromkeys(("position", "index", "label", "undefended"), "Int64"),
    **dict.fromkeys(("clean", "adversarial"), "object"),
    **dict.fromkeys(("clean_evals", "evals"), "int64"),
    **dict.fromkeys(("clean_right", "right"), "Int64"),
    "verdict": "boolean",
    **dict.fromkeys(("linf", "l2", "nfe_forward", "nfe_backward"), "float64"),
    **{f"gradients_{count}": "Int64" for count in GRADIENTS},
    "stopped": "Int64",
    **{f"not_finite_{where}": "str" for where in store.WHERE},
    "notes": "object",
    "lost": "bool",
    "failed": "str",
}
_TAKEN_APART = {"gradients", "nfe", "not_finite", "crc"}  # keys of a line that are no column, or several


def load(*paths: str | Path) -> pandas.DataFrame:
    """One row per image and cell of the records in `paths`: cell folders, or folders of them (default: `results`).

    The rows are ordered by path, cell folder and position, under a plain index 0, 1, ... A cell that is found several
    times counts once: the copy with the most images, then evaluations. Nothing is left out: an image that the attack failed to
    make has a row, marked `lost`, that is in no mean of a table. Images that a run has not come to have no row;
    `cells` says how many were `wanted`.

    Columns, always all of them and in this order:

    | column | dtype | meaning |
    |---|---|---|
    | `cell` | category | the cell's id, the name of its folder |
    | `dataset`, `subset`, `classifier`, `score`, `defense`, `attack`, `threat`, `grad` | category | the cell, as its table names it |
    | `seed` | category of int | the seed of attack and judge |
    | `position`, `index` | Int64 | place in the subset, index in the dataset (`frame["index"]`: `frame.index` are the rows' numbers) |
    | `label`, `undefended` | Int64 | true class; the bare classifier's on the clean image |
    | `clean`, `adversarial` | list of int | the K classes of K fresh purifications of the clean and of the attacked image |
    | `clean_evals`, `evals` | int64 | K of either list |
    | `clean_right`, `right` | Int64 | how many of the K are the label; missing where K = 0 |
    | `verdict` | boolean | AutoAttack's own claim that the image withstood it; missing for other attacks |
    | `linf`, `l2` | float64 | norms of the perturbation, on images in [0, 1] |
    | `nfe_forward`, `nfe_backward` | float64 | network calls of the attack on this image |
    | `gradients_iterates`, `_zero`, `_not_finite`, `_right`, `_blind` | Int64 | at how many iterates a gradient was asked for; how many of these were exactly zero, or not finite; how many iterates were still classified rightly, and had such a gradient |
    | `stopped` | Int64 | the iterate at which a gradient that was not finite ended the attack; missing where none did |
    | `not_finite_clean`, `_adversarial`, `_attack` | str | which step gave values that are not finite: purifying the clean image, the attacked one, or during the attack; missing where all were |
    | `notes` | list of str | what makes the cell doubtful: `random`, `probabilities` |
    | `lost` | bool | the attack made no image: nothing was judged, and `adversarial` is empty |
    | `failed` | str | why |

    Behind them stands, as it was recorded, whatever else the lines say: `adv_crc`, AutoAttack's `batch` and
    `broken_by`, `rows` where a batch ran out of memory, and what a plug-in's attack logs. Class -1 is an answer that is not finite: it is wrong.

    The K predictions are lists, not K columns: K differs between cells (one for a classifier without a defense), so
    that columns would be as many as the longest list and padded in every other cell, and which columns there are would
    depend on the folder. `frame.explode("adversarial")` has one row per draw; `numpy.stack(frame.adversarial)` is the
    matrix (images, K) where K is the same.

    Raises UserError for a path that is not there, for records that are damaged or of a newer purebench, and where there
    are no records at all.
    """  # noqa: E501
    return images(_read(paths))


def cells(*paths: str | Path) -> pandas.DataFrame:
    """One row per cell of the records in `paths`, in the order of `load`, and with its first ten columns. Then:

    | column | dtype | meaning |
    |---|---|---|
    | `source` | str | the id of the cell whose images a transfer takes, or empty |
    | `parts` | dict | by kind (`defense`, `attack`, `score`, ...): `version`, `hash`, and `values`, the resolved parameters |
    | `runs` | list of dict | the runs that wrote to it: when, which versions, device, rows; `stand_in`: what no paper used |
    | `wanted` | Int64 | how many images the last run asked for |
    | `images`, `lost` | int64 | how many images were judged; how many the attack failed to make |
    | `evals` | int64 | evaluations that every judged image has; 0 without one |
    | `nfe_forward`, `nfe_backward` | float64 | network calls of the attack per judged image, mean |
    | `seconds` | float64 | spent on it, of all runs |
    | `failed` | str | why the last run could not finish it; missing where it did |
    | `folder` | Path | where it lies |

    Raises UserError as `load` does.
    """
    logs = _read(paths)
    frame = described(logs).astype(dict.fromkeys(NAMES, "category"))
    return frame.assign(folder=[log.folder for log in logs])


def images(logs: Iterable[Log]) -> pandas.DataFrame:
    """The frame of `load`, of logs that were read before."""
    rows = [_flat(line) | _names(log) for log in logs for line in log.images]
    frame = pandas.DataFrame(rows)
    others = [column for column in frame.columns if column not in DTYPES]
    return frame.reindex(columns=[*DTYPES, *others]).astype(DTYPES)


def described(logs: Iterable[Log]) -> pandas.DataFrame:
    """The frame of `cells`, of logs that were read before: without the folders, and with names as texts."""
    dtypes = {"wanted": "Int64", "failed": "str"} | dict.fromkeys(("nfe_forward", "nfe_backward", "seconds"), "float64")
    return pandas.DataFrame([_names(log) | _facts(log) for log in logs]).astype(dtypes)


def settled(logs: Iterable[Log]) -> list[Log]:
    """Each cell once, of copies the one with the most images, then evaluations, then the newest, and in what others answer otherwise, its
    `rivals`; and an image that a transfer took over although its source never made it is marked as lost (older versions judged the clean
    one in its place)."""
    logs, best, ids = list(logs), dict[str, Log](), dict[str, str]()
    rivals: dict[str, list[Path]] = {}
    # By folder at last: which of equals counts must not depend on the order in which they are named.
    for log in sorted(logs, key=lambda log: (*_extent(log), log.started, str(log.folder)), reverse=True):
        # A name of before tells copies of one cell, too: what is not beside its source, or of a plug-in, may have another id.
        first = next((ids[name] for name in (log.id, *log.was) if name in ids), log.id)
        ids |= dict.fromkeys((log.id, *log.was), first)
        if _answer_otherwise(best.setdefault(first, log), log):
            rivals.setdefault(first, []).append(log.folder)
    for first, folders in rivals.items():
        best[first].rivals = tuple(folders)
    kept = {id(log) for log in best.values()}
    lost = {
        name: {line["position"] for line in log.images if store.lost(line)}
        for log in best.values()
        for name in (log.id, *log.was)
    }
    return [_marked(log, lost.get(log.cell.get("source", ""), set())) for log in logs if id(log) in kept]


def _read(paths: Sequence[str | Path]) -> list[Log]:
    folders = [place(str(path)) for path in paths or ("results",)]
    logs = settled(store.load_all(folders))
    if not logs:
        raise UserError(
            f"there are no records in {', '.join(f'`{folder}`' for folder in folders)}",
            "name the folder that `purebench run --out` wrote, or a cell in it",
        )
    return logs


def _extent(log: Log) -> tuple[int, int]:
    judged = store.judged(log)
    return len(judged), sum(len(line["adversarial"]) for line in judged)


def _answer_otherwise(log: Log, other: Log) -> bool:
    """Whether two copies of a cell have different answers for an image: one of them was not made as the other was."""
    if log is other:
        return False
    answers = {line["position"]: line for line in store.judged(log)}
    return any(
        any(a != b for a, b in zip(mine[key], line[key], strict=False))
        for line in store.judged(other)
        if (mine := answers.get(line["position"]))
        for key in ("clean", "adversarial")
    )


def _marked(log: Log, positions: set[int]) -> Log:
    if not positions:
        return log
    log, why = copy.copy(log), {"failed": store.NO_SOURCE}
    log.images = [line if store.lost(line) or line["position"] not in positions else line | why for line in log.images]
    return log


def _names(log: Log) -> dict[str, str | int]:
    """The columns that every frame begins with."""
    cell = log.cell | {"cell": log.id, "grad": log.cell["gradient"]}
    return {name: cell[name] for name in NAMES}


def _flat(line: Record) -> dict[str, Any]:
    """A line of `images.jsonl` as a row."""
    lost = store.lost(line)
    drawn = {"clean": line.get("clean", []), "adversarial": [] if lost else line["adversarial"]}
    row = {key: value for key, value in line.items() if key not in _TAKEN_APART} | drawn
    for prefix, predictions in (("clean_", drawn["clean"]), ("", drawn["adversarial"])):
        right = predictions.count(line["label"]) if predictions else None
        row |= {f"{prefix}evals": len(predictions), f"{prefix}right": right}
    row["nfe_forward"], row["nfe_backward"] = line.get("nfe") or (None, None)
    for group in ("gradients", "not_finite"):
        row |= {f"{group}_{key}": value for key, value in (line.get(group) or {}).items()}
    return row | {"notes": line.get("notes", []), "lost": lost}


def _facts(log: Log) -> dict[str, Any]:
    """What `cells` says of a cell beside its names."""
    judged = store.judged(log)
    calls = [line["nfe"] for line in judged if line.get("nfe")]
    forward, backward = (sum(counts) / len(calls) for counts in zip(*calls, strict=True)) if calls else (None, None)
    return {
        "source": log.cell.get("source", ""),
        "parts": store.parts(log.cell),
        "runs": log.runs,
        "wanted": log.wanted,
        "images": len(judged),
        "lost": len(log.images) - len(judged),
        "evals": min((len(line["adversarial"]) for line in judged), default=0),
        "nfe_forward": forward,
        "nfe_backward": backward,
        "seconds": log.seconds,
        "failed": log.failed,
    }
