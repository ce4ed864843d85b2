"""A recorded cell as the grid that makes it: what `purebench run FILE.toml` takes. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from purebench import datasets
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Log, judged
from purebench.report import metrics
from purebench.spec import TEXT, Part, Value, parse
from purebench.spec import parts as parts_of
from purebench.spec import value as value_of

Grid = dict[str, Any]
NONE: Mapping[str, str] = {}


def of(log: Log) -> Grid:
    """The grid of a recorded cell, with the files in which its last run found what is not ours."""
    targets = [run["targets"] for run in log.runs if run.get("targets")]
    found = grid(log.cell, targets[-1] if targets else {})
    attack = parse(found["attacks"][0], "attack")
    # Of images that somebody brought the cell has a copy, and their file may be gone.
    if attack.name == "given":
        found["attacks"] = [str(Part(attack.name, (*attack.parameters, ("path", str(log.folder)))))]
    return found


def command(log: Log, *, attack: Mapping[str, Value] = NONE, limit: str = "") -> str:
    """The `purebench run` that adds a cell beside a recorded one, on the same images: with other parameters of its attack, or under another
    threat model. What a dataset has as its default is left out, as a user would."""
    targets = [run["targets"] for run in log.runs if run.get("targets")]
    found = grid(log.cell, targets[-1] if targets else {}, full=False)
    [text] = found["attacks"]
    part = parse(text, "attack")
    changed = Part(part.name, tuple((dict(part.parameters) | dict(attack)).items()))
    usual = datasets.defaults(parse(log.cell["dataset"], "dataset").name)
    options = [("-d", found["defenses"][0]), ("-a", str(changed))]
    options += [("-t", limit or found["threats"][0])] if "threats" in found else []
    own = metrics.natural(log.cell["defense"], log.cell["attack"], log.cell["gradient"])
    options += [] if own else [("--grad", found["grads"][0])]
    options += [("--dataset", found["dataset"])]
    named = {key: found[key] for key in ("classifier", "score", "subset") if key in found}
    options += [(f"--{key}", value) for key, value in named.items() if value != usual.get(key)]
    options += [("--seed", seed) for seed in found["seeds"] if seed]
    # By position: a run takes the first so many.
    lines = judged(log)
    evals = min((len(line["adversarial"]) for line in lines), default=0)
    options += [("--images", max((line["position"] for line in lines), default=0) + 1)]
    options += [("--evals", evals)] if evals and evals != usual.get("evals") else []
    out = str(log.folder.parent)
    options += [("--out", out)] if log.folder.name and out != "results" else []
    return "purebench run " + " ".join(f"{option} {shlex.quote(str(value))}" for option, value in options)


def grid(cell: Mapping[str, Any], targets: Mapping[str, str] = NONE, *, full: bool = True) -> Grid:
    """The keys of a grid of one cell. Every parameter is written out where `full`: what a dataset's defaults are now is not what they were
    then. targets: `spec.Cell.targets`."""
    parts = store.parts(cell)

    def part(kind: str) -> Part:
        return _full(kind, cell) if full else parse(cell[kind], kind)

    defense = _found("defense", part("defense"), targets)
    if "score" in parts and cell["score"].startswith("["):
        # Several in rotation are a parameter of the defense: a run has one score model.
        models = [
            _found("score" if i == 0 else f"score.{i}", model, targets)
            for i, model in enumerate(parts_of(cell["score"], "score"))
        ]
        score = tuple(model if model.parameters else model.name for model in models)
        defense = Part(defense.name, (*defense.parameters, ("score", score)))
    attack = part("attack")
    inner = {"from": "source.defense", "attack": "source.attack"}
    named = {k: _found(inner[k], v, targets) if k in inner and isinstance(v, Part) else v for k, v in attack.parameters}
    found: Grid = {
        "dataset": _text("dataset", cell["dataset"], targets),
        "subset": cell["subset"],
        "classifier": _text("classifier", cell["classifier"], targets),
        "score": _text("score", cell["score"], targets),
        "defenses": [str(defense)],
        "attacks": [str(_found("attack", Part(attack.name, tuple(named.items())), targets))],
        "threats": [cell["threat"]],
        "grads": [targets.get("gradient", cell["gradient"])],
        "seeds": [cell["seed"]],
    }
    # What a cell does not use has no value to be given.
    unused = [key for key, value in found.items() if value in ("-", ["-"])]
    rotates = ["score"] if str(found["score"]).startswith("[") else []
    return {key: value for key, value in found.items() if key not in (*unused, *rotates)}


def toml(found: Grid) -> str:
    """The grid as a file."""
    # JSON's strings, numbers and flat lists are TOML's, too.
    return "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in found.items())


def located(dataset: Component) -> str:
    """A dataset of the user's own with the place where it lies."""
    part = parse(dataset.text, "dataset")
    return str(Part(dataset.key, (*part.parameters, *dataset.where.items())))


def _found(kind: str, part: Part, targets: Mapping[str, str]) -> Part:
    """The part under the name by which the registry finds it."""
    return Part(targets.get(kind, part.name), part.parameters)


def _text(kind: str, text: str, targets: Mapping[str, str]) -> str:
    return str(_found(kind, parse(text, kind), targets)) if kind in targets and not text.startswith("[") else text


def _full(kind: str, cell: Mapping[str, Any]) -> Part:
    """A part with every parameter that was recorded. Those that its name has are taken from there, where components are written out."""
    part = parse(cell[kind], kind)
    named = dict(part.parameters)
    recorded = {key: value for key, value in store.values_of(cell, kind).items() if value != ""}
    values = {key: value if key in TEXT else _value(value) for key, value in recorded.items()}
    return Part(part.name, tuple((values | named).items()))


def _value(value: Any) -> Value:
    """A JSON value as that of a parameter; text with parameters is a component."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    if isinstance(value, str) and (":" in value or value.startswith(("(", "["))):
        written = value if value.startswith(("(", "[")) else f"({value})"
        found = value_of(written)
        # A word of somebody's own may have a colon.
        return value if found == written else found
    return value
