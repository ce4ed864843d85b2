"""What there is, and what is known of each thing; read from sources and data files without importing any of it."""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from purebench import assets, datasets, registry
from purebench.errors import unknown
from purebench.plan import grid as plan
from purebench.plan import layouts
from purebench.spec import Part, Value, show

GENERAL = {
    "grid": "defenses x attacks, a table per threat model",
    "tidy": "one row per cell and metric",
}  # layouts of any records
KINDS = {
    "defenses": "defense",
    "attacks": "attack",
    "gradients": "gradient",
    "datasets": "dataset",
    "classifiers": "classifier",
    "scores": "score",
}
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
# what the text does not say as `key: value`
SEPARATE = {"kind", "name", "summary", "formula", "about", "parameters", "assets", "cite", "grid", "rows", "also"}


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
    if kind in ("layout", "layouts"):
        tables = {n: summary for n, summary in _presets().items() if n in plan.tables()}
        return [{"kind": "layout", "name": n, "summary": summary} for n, summary in (GENERAL | tables).items()]
    plurals = [*KINDS, "presets"]
    if kind is not None and kind not in plurals:
        kind = next((p for p in plurals if p.rstrip("s") == kind.rstrip("s")), kind)
        if kind not in plurals:
            raise unknown("kind", kind, [*plurals, "layouts"])
    rows = []
    for plural in plurals if kind is None else [kind]:
        if plural == "presets":
            found = _presets()
        else:
            found = {n: registry.info(KINDS[plural], n).get("summary", "") for n in registry.names(KINDS[plural])}
        rows += [{"kind": plural.rstrip("s"), "name": name, "summary": summary} for name, summary in found.items()]
    return rows


def _presets() -> dict[str, str]:
    """The summaries of grids and tables."""
    return {n: tomllib.loads(p.read_text(encoding="utf-8")).get("summary", "") for n, p in plan.presets().items()}


def listing_text(rows: list[dict[str, str]]) -> str:
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

    Where kinds share the name, as the defense and the score model `edm` do, the first has the others under `also`."""
    part = name.partition(":")[0]
    found = [_component(kind, part) for kind in KINDS.values() if part in registry.names(kind)]
    if part in plan.presets():
        path = plan.presets()[part]
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
        about = {"kind": "preset", "name": part, "summary": grid.get("summary", ""), "file": str(path)}
        found.append(about | (_paper(grid, part) if layouts.is_layout(grid) else {"grid": grid}))
    if not found:
        everything = [n for kind in KINDS.values() for n in registry.names(kind)] + list(plan.presets())
        raise unknown("name", part, everything, see="purebench list")
    return found[0] | ({"also": found[1:]} if found[1:] else {})


def _paper(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What is known of a paper's table: what its cells share, its columns, and what its rows run or wait for."""
    layout = layouts.of(data, name)
    rows = []
    for row in layout.rows:
        lacks = layouts.lacking(row.needs)
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
        "notes": list(layout.notes),
        "rows": rows,
    }


def _component(kind: str, name: str) -> dict[str, Any]:
    info = registry.info(kind, name)
    module, _, factory = registry.names(kind)[name].partition(":")
    about = _docstring(module, factory)
    found: dict[str, Any] = {"kind": kind, "name": name, "summary": info.get("summary", "")}
    found |= {"formula": info["formula"]} if "formula" in info else {}
    found |= {"about": about} if about else {}
    found["parameters"] = _parameters(kind, name, info)
    found |= {
        "defense": _defense, "attack": _attack, "dataset": _dataset, "classifier": _network, "score": _network,
        "gradient": lambda *_: {},
    }[kind](kind, name, info, about)  # fmt: skip
    if info.get("differences"):
        found["differences"] = info["differences"]
    found |= {"documentation": PAGES[kind].format(name=name)} if name in registry.NAMES[kind] else {}
    found |= {"version": info.get("version", 1), "defined in": f"{module}:{factory}"}
    found |= {"version where": info["versions"]} if "versions" in info else {}
    return found | ({"cite": _bibtex(info["cite"])} if info.get("cite") else {})


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
    tables = {n: datasets.defaults(n) for n in registry.names("dataset") if kind in ("defense", "attack")}
    others = {n: table.get(kind, {}).get(name, {}) for n, table in tables.items()}
    rows = []
    for key, default in registry.parameters(kind, name).items():
        row: Parameter = {"name": key, "default": show(_tuple(default))}
        if key in words:
            row["choices"] = list(words[key])
        row["datasets"] = {n: show(_tuple(values[key])) for n, values in others.items() if key in values}
        row["paper"] = paper.get(key, "") if isinstance(paper, dict) else ""
        row["common"] = key in registry.COMMON.get(kind, {})
        rows.append(row)
    return rows


def _defense(kind: str, name: str, info: dict[str, Any], about: str) -> dict[str, object]:
    draws = re.search(r"Random: (.+?)(?:\. Source:|\.$)", about)
    random = ("yes: " + draws[1] if draws else "yes") if info.get("random", True) else "no"
    usable = [
        g
        for g in registry.names("gradient")
        if (g != "adjoint" or info.get("sde")) and (g != "detached" or info.get("guided"))
    ]
    return {
        "calls": info.get("calls", "?"),
        "random": random,
        "output": {"unit": "in [0,1]", "unbounded": "may leave [0,1]"}.get(info.get("output", ""), "?"),
        "needs": registry.needs(name, registry.parameters(kind, name)),
        **({"score model of the paper": info["own_score"]} if "own_score" in info else {}),
        "gradients": usable if name != "none" else ["exact"],
        "requires": [*info.get("requires", []), *registry.REQUIRES[kind]],
    }


def _attack(kind: str, name: str, info: dict[str, Any], about: str) -> dict[str, object]:
    cost = f"{info.get('gradient_calls', '0')} gradients, {info.get('forward_calls', '0')} forwards per image"
    found: dict[str, object] = {"gradients": info.get("gradients", []) or ["none"], "cost": cost}
    return found | ({"paper": info["paper"]} if isinstance(info.get("paper"), dict) else {})


def _dataset(kind: str, name: str, info: dict[str, Any], about: str) -> dict[str, object]:
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
    for part in ("defense", "attack"):
        found[f"{part} defaults"] = [
            str(Part(n, tuple((k, _tuple(v)) for k, v in values.items())))
            for n, values in defaults.get(part, {}).items()
        ]
    if "stand_in" in info:
        found["stand-in"] = f"{info['stand_in']}; tables say so"
    if "training_set" in info:
        found["training set"] = info["training_set"] or "yours to know: tables name what the networks were trained on"
    found |= {key: info[key] for key in ("source", "licence") if key in info}
    return found | {"assets": [_asset(n) for n in info.get("assets", [])]}


def _network(kind: str, name: str, info: dict[str, Any], about: str) -> dict[str, object]:
    """Of a classifier or score model."""
    found: dict[str, object] = {}
    if "size" in info:
        takes = info["size"]
        found["takes"] = (
            ", ".join(f"{d} {_size(s)}" for d, s in takes.items()) if isinstance(takes, dict) else _size(takes)
        )
    if "classes" in info:
        known = info["classes"]
        found["classes"] = ", ".join(f"{d} {n}" for d, n in known.items()) if isinstance(known, dict) else known
    if "trained_on" in info:
        trained = info["trained_on"]
        found["trained on"] = f"what `{trained.strip('{}')}` says" if "{" in trained else trained
    if "t_max" in info:
        found["trained for"] = f"t up to {info['t_max']}"
    template = info.get("asset", "")
    if template:
        first = template.format(**registry.parameters(kind, name))
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)))
        alike = [n for n in assets.table() if n != first and pattern.fullmatch(n)] if "{" in template else []
        found["assets"] = [_asset(n) for n in (first, *alike)]
        gone = {n: e for n, e in assets.table().items() if e.get("stand_in") == first}
        if gone:
            found["stands in for"] = [f"{n}: {e['summary']}, never released" for n, e in gone.items()]
    if "trained" in info:
        path = assets.cache_folder() / "trained" / f"{info['trained']}.safetensors"
        state = f"trained: `{path}`" if path.is_file() else "not trained yet"
        found["weights"] = f"{state}; `purebench train {info['trained']} --out {path.parent}` makes them"
    if "stand_in" in info:
        found["stand-in"] = f"{info['stand_in']}; tables say so"
    return found


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
    found = {
        "asset": name,
        "summary": entry["summary"],
        "size": assets.size_text(entry).removeprefix("size "),
        "licence": entry["licence"],
    }
    found |= {"trust": f"{entry['trust']} ({TRUST[entry['trust']]})" if entry["trust"] in TRUST else entry["trust"]}
    found |= {"state": state, "used by": ", ".join(entry.get("papers", []))}
    return found | ({"note": entry["note"]} if "note" in entry else {})


def _docstring(module: str, factory: str) -> str:
    """The factory's, as one paragraph; read without importing it."""
    for node in registry._source(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == factory:
            return " ".join((ast.get_docstring(node) or "").split())
    return ""


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
    own = [p for p in found.get("parameters", []) if not p["common"]]
    common = [p for p in found.get("parameters", []) if p["common"]]
    if own:
        told = ": default; a dataset's; the paper's" if found["kind"] == "defense" else " and their defaults"
        lines += ["", f"parameters{told}", *_table(own)]
    if common:
        lines += [
            "",
            "as every defense: purifications that are combined, how; a factor on the normal draws; a score model of its own",
        ]
        lines += _table(common)
    lines.append("")
    for key, value in found.items():
        if key in SEPARATE:
            continue
        if key == "calls":
            lines += _wrap(
                f"network calls per image: {value}; then 1 to classify; all times votes (`--dry-run` counts them)"
            )
            continue
        if isinstance(value, dict):
            value = "; ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ("; " if any("," in str(v) for v in value) else ", ").join(map(str, value))
        lines += _wrap(f"{key}: {value}") if value else []
    lines += _assets(found.get("assets", []))
    if "grid" in found:
        lines += [f"{k} = {v}" for k, v in found["grid"].items() if k not in ("summary", "grid")]
        for grid in found["grid"].get("grid", []):
            lines += ["", "  [[grid]]", *(f"  {k} = {v}" for k, v in grid.items())]
    if "rows" in found:
        width = max(len(row["row"]) for row in found["rows"])
        lines += ["", "rows", *(f"  {row['row'].ljust(width)}  {row['is']}" for row in found["rows"])]
    if "cite" in found:
        lines += ["", found["cite"]]
    lines += ["", f"try: purebench run {_option(found)} --dry-run"]
    for other in found.get("also", []):
        lines += ["", "-" * 40, "", text(other)]
    return "\n".join(lines)


def _option(found: dict[str, Any]) -> str:
    """What a command line says to ask for it."""
    kind, part = found["kind"], Part(found["name"])
    option = {"defense": "-d", "attack": "-a", "gradient": "--grad", "preset": ""}.get(kind, f"--{kind}")
    needs = ":path=PATH" if any(p["name"] == "path" for p in found.get("parameters", [])) else ""
    needs = ":of=(digits)" if any(p["name"] == "of" for p in found.get("parameters", [])) else needs
    return f"{option} {part}{':steps=5' if found['name'] == 'surrogate' else needs}".strip()


def _table(parameters: list[Parameter]) -> list[str]:
    """A line each, or several where they are long."""
    width = max(len(p["name"]) for p in parameters)
    lines = []
    for p in parameters:
        words = f" ({', '.join(p['choices'])})" if "choices" in p else ""
        places = "; ".join(f"{', '.join(names)} {value}" for value, names in _alike(p["datasets"]).items())
        rest = [p["default"] + words, places, p["paper"] and f"paper: {p['paper']}"]
        first, *more = [x for x in rest if x] or ["-"]
        whole = f"  {p['name'].ljust(width)}  {'; '.join((first, *more))}"
        if len(whole) <= WIDTH:
            lines.append(whole)
        else:
            lines.append(f"  {p['name'].ljust(width)}  {first}")
            lines += [line for x in more for line in _wrap(x, *2 * [" " * (width + 4)])]
    return lines


def _alike(values: dict[str, str]) -> dict[str, list[str]]:
    """value -> the names that have it."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _assets(rows: list[dict[str, str]]) -> list[str]:
    """The first in full, a line for each other."""
    lines: list[str] = []
    for row in rows[:1]:
        lines += _wrap(f"asset: {row['asset']}: {row['summary']}")
        lines += [f"  {key}: {row[key]}" for key in ("size", "licence", "trust", "state", "used by") if row[key]]
        lines += _wrap(f"note: {row['note']}", "  ", "    ") if "note" in row else []
    if rows[1:]:
        lines += ["", "others:"]
        lines += [f"  {r['asset']}: size {r['size']}, {r['licence']}, {r['state'].partition(':')[0]}" for r in rows[1:]]
    return lines


def _wrap(line: str, first: str = "", rest: str = "  ") -> list[str]:
    return textwrap.wrap(
        line, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
