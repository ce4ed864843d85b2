"""What there is, and what is known of each thing; read from sources and data files without importing any of it."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import textwrap
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from purebench import assets, datasets, foreign, registry
from purebench.errors import UserError, unknown
from purebench.plan import figures, layouts, places
from purebench.plan import grid as plan
from purebench.spec import Part, Value, parse, show

# Layouts of any records; the papers' tables are presets.
GENERAL = {"grid": "defenses x attacks, a table per threat model", "tidy": "one row per cell and metric"}
COMMON = {
    "defense": "as every defense: purifications that are combined, how; a factor on the normal draws; a score model of its own",
    "score": "as every score model: what its network computes in, for the attack and for the judge (`--precision`, `--judge-precision`)",
}
# In the order of a listing; the command line writes them with an s.
KINDS = ("defense", "attack", "gradient", "dataset", "classifier", "score")
PAGES = {  # kind -> its documentation; a defense has a page of its own, found by its name
    "attack": "docs/attacks.md",
    "gradient": "docs/attacks.md",
    "dataset": "docs/checkpoints.md",
    "classifier": "docs/checkpoints.md",
    "score": "docs/checkpoints.md",
    "defense": "docs/defenses/{name}.md",
}
TRUST = {  # how far an asset's hashes can be relied on, as in the head of checkpoints.toml
    "publisher": "hash printed by whoever hosts the file",
    "code": "hash in the published code",
    "crowd": "independent public files agree on the hash",
    "third-party": "hash from one other public project",
    "ours": "we made the file",
    "first-use": "no published hash: that of the first download is kept",
}
WIDTH = 128  # of the text
# Facts that the text writes in a form of their own, and not as `key: value`.
SEPARATE = {
    "kind",
    "name",
    "summary",
    "formula",
    "about",
    "parameters",
    "calls",
    "assets",
    "cite",
    "grid",
    "rows",
    "also",
}
# Gradient -> the key of a defense's INFO without which it does not exist, or is the exact one.
GRADIENT_NEEDS = {"adjoint": "sde", "detached": "guided"}


class Parameter(TypedDict, total=False):
    """A parameter as `_parameters` tells of it; `choices` only of those that are words."""

    name: str
    default: str
    choices: list[str]
    datasets: dict[str, str]  # those that have a default of their own
    paper: str
    common: bool


def listing(kind: str | None) -> list[dict[str, str]]:
    """kind, name and summary of everything, or of one kind (`defenses` or `defense`)."""
    kinds = [*KINDS, "preset"]
    if kind in ("layout", "layouts"):
        tables = {name: summary for name, summary in _summaries("preset").items() if name in plan.tables()}
        return [{"kind": "layout", "name": n, "summary": summary} for n, summary in (GENERAL | tables).items()]
    if kind in ("figure", "figures"):
        drawn = {name: summary for name, summary in _summaries("preset").items() if name in plan.figures()}
        return [
            {"kind": "figure", "name": n, "summary": summary} for n, summary in (figures.WITHOUT_PRESET | drawn).items()
        ]
    if kind is not None:
        if kind.rstrip("s") not in kinds:
            raise unknown("kind", kind, [f"{known}s" for known in (*kinds, "layout", "figure")])
        kinds = [kind.rstrip("s")]
    return [{"kind": k, "name": name, "summary": summary} for k in kinds for name, summary in _summaries(k).items()]


def _summaries(kind: str) -> dict[str, str]:
    """name -> one line of each component of a kind, or of each preset."""
    if kind == "preset":
        return {name: _preset(path).get("summary", "") for name, path in plan.presets().items()}
    return {name: _summary(kind, name) for name in registry.names(kind)}


def _summary(kind: str, name: str) -> str:
    """One line of a component. Of a plug-in that cannot be read, why: the others are listed all the same."""
    try:
        return str(registry.info(kind, name).get("summary", ""))
    except UserError as error:
        return f"cannot be read: {error.message}"


def _preset(path: Path) -> dict[str, Any]:
    """What a preset says of itself: its keys before the first table, since to read sixty files whole takes a quarter of a second."""
    return tomllib.loads(re.split(r"^\[", path.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[0])


def listing_text(rows: list[dict[str, str]]) -> str:
    """The same for people: a heading for each kind, a line for each name."""
    width = max(len(r["name"]) for r in rows)
    lines: list[str] = []
    kind = ""
    for row in rows:
        if row["kind"] != kind:
            kind = row["kind"]
            lines += ["", f"{kind}s"]
        lines.append(f"  {row['name'].ljust(width)}  {row['summary']}")
    return "\n".join(lines).strip("\n")


# ---------------------------------------------------------------------------------------------------------------- facts


def facts(name: str) -> dict[str, Any]:
    """All that is known of one name, whatever its kind; UserError with a did-you-mean if there is none.

    Where kinds share the name, as the defense and the score model `edm` do, the first has the others under `also`. Of what a user's file
    defines its kind is taken from its form."""
    asked = parse(name, "name").name if ".py" in name else name
    if foreign.is_target(asked):
        target = registry.key("defense", asked)
        return _component(foreign.kind(target), target)
    part = name if name.endswith(".toml") else name.partition(":")[0]
    found = [_component(kind, part) for kind in KINDS if part in registry.names(kind)]
    if part in plan.presets() or part.endswith(".toml"):
        path = plan.presets().get(part, Path(part))
        grid = plan.read(part)[1]
        about = {"kind": "preset", "name": part, "summary": grid.get("summary", ""), "file": str(path)}
        # A table of the user's own has no page of ours.
        page = {"documentation": f"docs/papers/{part.partition('/')[0]}.md"} if part in plan.tables() else {}
        page = {"documentation": "docs/figures.md"} if part in plan.figures() else page
        found.append(about | (_paper(grid, part) if layouts.is_layout(grid) else {"grid": grid}) | page)
    if part in figures.WITHOUT_PRESET:
        about = {"kind": "figure", "name": part, "summary": figures.WITHOUT_PRESET[part]}
        found.append(about | {"documentation": "docs/figures.md"})
    if not found:
        everything = [n for kind in KINDS for n in registry.names(kind)] + list(plan.presets())
        everything += figures.WITHOUT_PRESET
        raise unknown("name", part, everything, see="purebench list")
    first, *others = found
    return first | {"also": others} if others else first


def _paper(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What is known of a paper's table: what its cells share, its columns, and what its rows run or wait for."""
    layout = layouts.of(data, name)
    rows = []
    for row in layout.rows:
        # Where every column waits for something, so does the row.
        measured = [column for column in layout.columns if column.metric and not column.honest]
        of_columns = [places.lacking(column.needs) for column in measured]
        lacks = [*places.lacking(row.needs), *(dict.fromkeys(itertools.chain(*of_columns)) if all(of_columns) else ())]
        runs = (
            f"runs {row.cells.get('defense', layout.cells.get('defense', ''))}" if row.cells is not None else "quoted"
        )
        rows.append(
            {
                "row": " | ".join(filter(None, [row.group, *row.texts.values()])),
                "is": f"needs {', '.join(lacks)}" if lacks else runs,
            }
        )
    columns = [column.title + (" (--honest)" if column.honest else "") for column in layout.columns]
    return {
        "title": layout.title,
        "paper": layout.cite,
        "cells": layout.cells,
        "columns": columns,
        **({"figure": _figure(layout.figure)} if layout.figure else {}),
        "notes": list(layout.notes),
        "rows": rows,
    }


def _figure(figure: figures.Figure) -> dict[str, Any]:
    """How a table is drawn, without what its file does not say."""
    return {
        key: list(v) if isinstance(v, tuple) else v
        for key, v in dataclasses.asdict(figure).items()
        if v not in ("", None, ())
    }


def _component(kind: str, name: str) -> dict[str, Any]:
    """What INFO, the factory's signature and its docstring say, in the order in which the text has it."""
    info = registry.info(kind, name)
    found: dict[str, Any] = {"kind": kind, "name": str(Part(name)), "summary": info.get("summary", "")}
    found |= _taken(info, formula="formula")
    if about := _about(kind, name):
        found["about"] = about
    found["parameters"] = _parameters(kind, name, info)
    match kind:
        case "defense":
            found |= _defense(name, info)
        case "attack":
            found |= _attack(info)
        case "dataset":
            found |= _dataset(name, info)
        case "classifier" | "score":
            found |= _network(kind, name, info)
    if info.get("differences"):
        found["differences"] = info["differences"]
    # A plug-in has no page of ours.
    if name in registry.NAMES[kind]:
        found["documentation"] = PAGES[kind].format(name=name)
    found["version"] = info.get("version", 1)
    if foreign.is_target(name):
        found["shown as"], found["hash"] = registry.label(kind, name), registry.code(kind, name)
        found["files"] = foreign.files(name)
    else:
        found["defined in"] = registry.names(kind)[name]
    found |= _taken(info, versions="version where")
    if info.get("cite"):
        found["cite"] = _bibtex(info["cite"])
    return found


def _taken(info: Mapping[str, Any], **labels: str) -> dict[str, Any]:
    """Entries of INFO as they are, under the label that people read; those that it does not have are left out."""
    return {label: info[key] for key, label in labels.items() if key in info}


def _about(kind: str, name: str) -> str:
    """The factory's docstring as one paragraph."""
    return " ".join(registry.docstring(kind, name).split())


@cache
def references() -> dict[str, str]:
    """key -> BibTeX entry, of `references.bib`."""
    text = (Path(registry.__file__).parent / "references.bib").read_text(encoding="utf-8")
    return {entry[1]: entry[0] for entry in re.finditer(r"^@\w+\{([^,]+),\n.*?^\}", text, re.MULTILINE | re.DOTALL)}


def _bibtex(cite: str) -> str:
    """The entries of INFO's `cite`: keys of `references.bib`, or, of a file that brings its own, an entry as it stands."""
    return cite if cite.startswith("@") else "\n".join(references().get(key, key) for key in cite.split())


def _parameters(kind: str, name: str, info: dict[str, Any]) -> list[Parameter]:
    """name and default of each; the words it may be, the datasets that have another, the paper's; whether all of the kind have it."""
    paper, words = info.get("paper", {}), registry.choices(kind, name)
    # Of an attack, `paper` may be the reference itself, in words.
    papers_values = paper if isinstance(paper, dict) else {}
    of_datasets: dict[str, dict[str, Any]] = {}
    if kind in ("defense", "attack"):
        of_datasets = {n: datasets.defaults(n).get(kind, {}).get(name, {}) for n in registry.names("dataset")}
    rows = []
    for key, default in registry.parameters(kind, name).items():
        row: Parameter = {"name": key, "default": show(_tuple(default))}
        if key in words:
            row["choices"] = list(words[key])
        row["datasets"] = {n: show(_tuple(values[key])) for n, values in of_datasets.items() if key in values}
        row["paper"] = papers_values.get(key, "")
        row["common"] = key in registry.COMMON.get(kind, {})
        rows.append(row)
    return rows


def _defense(name: str, info: Mapping[str, Any]) -> dict[str, object]:
    draws = re.search(r"Random: (.+?)(?:\. Source:|\.$)", _about("defense", name))
    random = f"yes: {draws[1]}" if draws else "yes"
    usable = [g for g in registry.names("gradient") if g not in GRADIENT_NEEDS or info.get(GRADIENT_NEEDS[g])]
    return {
        "calls": info.get("calls", "?"),
        "random": random if info.get("random", True) else "no",
        "output": {"unit": "in [0,1]", "unbounded": "may leave [0,1]"}.get(info.get("output", ""), "?"),
        "needs": registry.needs(name, registry.parameters("defense", name)),
        **_taken(info, own_score="score model of the paper"),
        "gradients": usable if name != "none" else ["exact"],
        "requires": [*info.get("requires", []), *registry.REQUIRES["defense"]],
    }


def _attack(info: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {
        "gradients": info.get("gradients", []) or ["none"],
        "cost": f"{info.get('gradient_calls', '0')} gradients, {info.get('forward_calls', '0')} forwards per image",
    }
    if isinstance(info.get("paper"), dict):
        found["paper"] = info["paper"]
    return found


def _dataset(name: str, info: Mapping[str, Any]) -> dict[str, object]:
    defaults = datasets.defaults(name)
    shape = info.get("shape", [])
    unknown_yet = "as the dataset has" if "of" in info else "known when read"
    found: dict[str, object] = {
        "images": info.get("size") or unknown_yet,
        "shape": _size(shape) if shape and all(shape) else unknown_yet,
        "classes": info.get("classes") or unknown_yet,
        "subset": f"{defaults['subset']}: {datasets.describe(defaults['subset'])}",
        "defaults": {
            k: v if isinstance(v, int) else ", ".join(v) if isinstance(v, list) else str(v)
            for k, v in defaults.items()
            if k not in ("subset", "defense", "attack")
        },
    }
    for kind in ("defense", "attack"):
        found[f"{kind} defaults"] = [
            str(Part(n, tuple((k, _tuple(v)) for k, v in values.items())))
            for n, values in defaults.get(kind, {}).items()
        ]
    if "stand_in" in info:
        found["stand-in"] = f"{info['stand_in']}; tables say so"
    if "training_set" in info:
        found["training set"] = info["training_set"] or "yours to know: tables name what the networks were trained on"
    found |= _taken(info, source="source", licence="licence")
    return found | {"assets": [_asset(n) for n in info.get("assets", [])]}


def _network(kind: str, name: str, info: Mapping[str, Any]) -> dict[str, object]:
    """Of a classifier or score model. One that is for several datasets has a value for each."""
    found: dict[str, object] = {}
    if "size" in info:
        sizes = info["size"]
        found["takes"] = _listed({d: _size(s) for d, s in sizes.items()}) if isinstance(sizes, dict) else _size(sizes)
    if "classes" in info:
        classes = info["classes"]
        found["classes"] = _listed(classes) if isinstance(classes, dict) else classes
    if "trained_on" in info:
        trained_on = info["trained_on"]
        # A template such as `{dataset}` names the parameter that says it.
        found["trained on"] = f"what `{trained_on.strip('{}')}` says" if "{" in trained_on else trained_on
    if "t_max" in info:
        found["trained for"] = f"t up to {info['t_max']}"
    if "asset" in info:
        first, *others = _assets_of(kind, name, info["asset"])
        found["assets"] = [_asset(n) for n in (first, *others)]
        replaced = [
            f"{n}: {e['summary']}, never released" for n, e in assets.table().items() if e.get("stand_in") == first
        ]
        if replaced:
            found["stands in for"] = replaced
    if "trained" in info:
        path = assets.cache_folder() / "trained" / f"{info['trained']}.safetensors"
        state = f"trained: `{path}`" if path.is_file() else "not trained yet"
        found["weights"] = (
            f"{state}; `purebench train {info['trained']} --out {shlex.quote(str(path.parent))}` makes them"
        )
    if "stand_in" in info:
        found["stand-in"] = f"{info['stand_in']}; tables say so"
    return found


def _assets_of(kind: str, name: str, template: str) -> list[str]:
    """The asset at the defaults, then those that other parameters name in its place."""
    first = template.format(**registry.parameters(kind, name))
    if "{" not in template:
        return [first]
    pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)))
    return [first, *(asset for asset in assets.table() if asset != first and pattern.fullmatch(asset))]


def _listed(by_dataset: Mapping[str, object]) -> str:
    return ", ".join(f"{dataset} {value}" for dataset, value in by_dataset.items())


def _asset(name: str) -> dict[str, str]:
    """One entry of checkpoints.toml: what, how large, under which licence, how sure, and whether it is here."""
    entry = assets.entry(name)
    if "package" in entry.get("sources", ()):
        state = "ships with purebench"
    elif entry.get("released") is False:
        state = "never released"
    else:
        missing = f"not in the cache: `purebench fetch {name}` brings it, or says how"
        state = "in the cache" if assets.present(name) else missing
    trust = entry["trust"]
    return {
        "asset": name,
        "summary": entry["summary"],
        "size": assets.size_text(entry).removeprefix("size "),
        "licence": entry["licence"],
        "trust": f"{trust} ({TRUST[trust]})" if trust in TRUST else trust,
        "state": state,
        "used by": ", ".join(entry.get("papers", [])),
        **_taken(entry, note="note"),
    }


# TOML and INFO write lists, and values are hashable.
def _tuple(value: Value | list[Value]) -> Value:
    return tuple(value) if isinstance(value, list) else value


def _size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


# ----------------------------------------------------------------------------------------------------------------- text


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['name']} ({found['kind']}): {found['summary']}"]
    if "formula" in found:
        lines += ["", *_wrap(found["formula"], "  ", "    ")]
    if "about" in found:
        lines += ["", *_wrap(found["about"], rest="")]
    lines += _parameter_lines(found["kind"], found.get("parameters", []))
    lines.append("")
    if "calls" in found:
        lines += _wrap(
            f"network calls per image: {found['calls']}; then 1 to classify; all times votes (`--dry-run` counts them)"
        )
    for key, value in found.items():
        if key in SEPARATE:
            continue
        if isinstance(value, dict):
            value = "; ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            # A comma between items that have commas themselves would tell nobody where one ends.
            value = ("; " if any("," in str(v) for v in value) else ", ").join(map(str, value))
        lines += _wrap(f"{key}: {value}") if value else []
    lines += _asset_lines(found.get("assets", []))
    if "grid" in found:
        lines += [f"{k} = {v}" for k, v in found["grid"].items() if k not in ("summary", "grid")]
        for grid in found["grid"].get("grid", []):
            lines += ["", "  [[grid]]", *(f"  {k} = {v}" for k, v in grid.items())]
    if "rows" in found:
        width = max(len(row["row"]) for row in found["rows"])
        lines += ["", "rows", *(f"  {row['row'].ljust(width)}  {row['is']}" for row in found["rows"])]
    if "cite" in found:
        lines += ["", found["cite"]]
    drawn = "figure" in found or found["kind"] == "figure"
    tried = f"figure {found['name']}" if drawn else f"run {_option(found)} --dry-run"
    lines += ["", f"try: purebench {tried}"]
    for other in found.get("also", []):
        lines += ["", "-" * 40, "", text(other)]
    return "\n".join(lines)


def _parameter_lines(kind: str, parameters: list[Parameter]) -> list[str]:
    """Those of its own, then those that every component of the kind has."""
    lines: list[str] = []
    own = [p for p in parameters if not p["common"]]
    common = [p for p in parameters if p["common"]]
    if own:
        columns = ": default; a dataset's; the paper's" if kind == "defense" else " and their defaults"
        lines += ["", f"parameters{columns}", *_table(own)]
    if common:
        lines += ["", COMMON[kind], *_table(common)]
    return lines


def _option(found: dict[str, Any]) -> str:
    """What a command line says to ask for it."""
    kind, part = found["kind"], found["name"]
    option = {"defense": "-d", "attack": "-a", "gradient": "--grad", "preset": ""}.get(kind, f"--{kind}")
    needs = ":path=PATH" if any(p["name"] == "path" for p in found.get("parameters", [])) else ""
    needs = ":of=(digits)" if any(p["name"] == "of" for p in found.get("parameters", [])) else needs
    part = f'"{part}"' if "'" in part else part  # for a shell
    return f"{option} {part}{':steps=5' if found['name'] == 'surrogate' else needs}".strip()


def _table(parameters: list[Parameter]) -> list[str]:
    """A line each, or several where they are long."""
    width = max(len(p["name"]) for p in parameters)
    lines = []
    for p in parameters:
        choices = f" ({', '.join(p['choices'])})" if "choices" in p else ""
        of_datasets = "; ".join(f"{', '.join(names)} {value}" for value, names in _alike(p["datasets"]).items())
        of_paper = f"paper: {p['paper']}" if p["paper"] else ""
        first, *more = [column for column in (p["default"] + choices, of_datasets, of_paper) if column] or ["-"]
        start = f"  {p['name'].ljust(width)}  "
        whole = start + "; ".join((first, *more))
        if len(whole) <= WIDTH:
            lines.append(whole)
            continue
        indent = " " * (width + 4)
        lines += [start + first, *(line for column in more for line in _wrap(column, indent, indent))]
    return lines


def _alike(values: dict[str, str]) -> dict[str, list[str]]:
    """value -> the names that have it."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _asset_lines(rows: list[dict[str, str]]) -> list[str]:
    """The first in full, a line for each other."""
    if not rows:
        return []
    first, *others = rows
    lines = _wrap(f"asset: {first['asset']}: {first['summary']}")
    lines += [f"  {key}: {first[key]}" for key in ("size", "licence", "trust", "state", "used by") if first[key]]
    if "note" in first:
        lines += _wrap(f"note: {first['note']}", "  ", "    ")
    if others:
        lines += ["", "others:"]
    return lines + [f"  {r['asset']}: size {r['size']}, {r['licence']}, {r['state'].partition(':')[0]}" for r in others]


def _wrap(line: str, first: str = "", rest: str = "  ") -> list[str]:
    return textwrap.wrap(
        line, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
