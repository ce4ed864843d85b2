"""What there is, and what is known of each thing; read from the registry without importing any of it."""

from __future__ import annotations

import tomllib
from typing import Any

from purebench import datasets, plan, registry
from purebench.errors import unknown
from purebench.spec import Part, show

KINDS = {
    "defenses": "defense",
    "attacks": "attack",
    "gradients": "gradient",
    "datasets": "dataset",
    "classifiers": "classifier",
    "scores": "score",
}


def listing(kind: str | None) -> list[dict[str, str]]:
    """kind, name and summary of everything, or of one kind (`defenses` or `defense`)."""
    plurals = [*KINDS, "presets"]
    if kind is not None and kind not in plurals:
        kind = next((p for p in plurals if p.rstrip("s") == kind.rstrip("s")), kind)
        if kind not in plurals:
            raise unknown("kind", kind, plurals)
    rows = []
    for plural in plurals if kind is None else [kind]:
        if plural == "presets":
            found = {
                n: tomllib.loads(p.read_text(encoding="utf-8")).get("summary", "") for n, p in plan.presets().items()
            }
        else:
            found = {n: registry.info(KINDS[plural], n).get("summary", "") for n in registry.names(KINDS[plural])}
        rows += [{"kind": plural.rstrip("s"), "name": name, "summary": summary} for name, summary in found.items()]
    return rows


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


def facts(name: str) -> dict[str, Any]:
    """All that is known of one name, whatever its kind; UserError with a did-you-mean if there is none."""
    part = name.partition(":")[0]
    for kind in KINDS.values():
        if part in registry.names(kind):
            found = _component(kind, part)
            if part in plan.presets():  # `digits` is a dataset and a preset
                found["grid"] = tomllib.loads(plan.presets()[part].read_text(encoding="utf-8"))
            return found
    if part in plan.presets():
        path = plan.presets()[part]
        return {
            "kind": "preset",
            "name": part,
            "file": str(path),
            "grid": tomllib.loads(path.read_text(encoding="utf-8")),
        }
    everything = [n for kind in KINDS.values() for n in registry.names(kind)] + list(plan.presets())
    raise unknown("name", part, everything, see="purebench list")


def _component(kind: str, name: str) -> dict[str, Any]:
    info = registry.info(kind, name)
    module, _, factory = registry.names(kind)[name].partition(":")
    here = datasets.defaults("digits").get(kind, {}).get(name, {}) if kind in ("defense", "attack") else {}
    parameters = []
    for key, default in registry.parameters(kind, name).items() if kind != "dataset" else []:
        entry = {
            "name": key,
            "default": show(_tuple(default)),
            "digits": show(_tuple(here[key])) if key in here else "",
        }
        paper = info.get("paper", {})
        entry["paper"] = paper.get(key, "") if isinstance(paper, dict) else ""
        parameters.append(entry)
    found = {"kind": kind, "name": name, "summary": info.get("summary", ""), "parameters": parameters}
    for key in (
        "formula",
        "random",
        "output",
        "gradients",
        "differences",
        "shape",
        "size",
        "classes",
        "source",
        "licence",
        "version",
        "cite",
    ):
        if key in info:
            found[key] = info[key]
    if kind == "attack" and isinstance(info.get("paper"), dict):
        found["paper"] = info["paper"]
    if kind == "defense":
        found["nfe"] = f"{info.get('nfe', '?')} + 1 (classifier) forward" + (
            f", {info['nfe_inner']} backward" if "nfe_inner" in info else ""
        )
        usable = [
            g
            for g in registry.names("gradient")
            if (g != "adjoint" or info.get("sde")) and (g != "detached" or info.get("guided"))
        ]
        found["gradients"] = usable
    if kind == "attack":
        found["gradients"] = info.get("gradients", []) or ["none"]
        found["cost"] = (
            f"{info.get('gradient_calls', '0')} gradients, {info.get('forward_calls', '0')} forwards per image"
        )
    found["defined in"] = f"{module}:{factory}"
    return found


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['name']} ({found['kind']}): {found.get('summary') or found.get('grid', {}).get('summary', '')}"]
    if "formula" in found:
        lines += ["", f"  {found['formula']}"]
    if found.get("parameters"):
        lines += ["", "parameters (default; on the embedded digits; in the paper)"]
        width = max(len(p["name"]) for p in found["parameters"])
        for p in found["parameters"]:
            rest = "; ".join(
                x
                for x in (p["default"], p["digits"] and f"digits {p['digits']}", p["paper"] and f"paper {p['paper']}")
                if x
            )
            lines.append(f"  {p['name'].ljust(width)}  {rest}")
    lines.append("")
    for key, value in found.items():
        if key in ("kind", "name", "summary", "formula", "parameters", "cite", "grid"):
            continue
        if isinstance(value, dict):
            value = "; ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        lines.append(f"{key}: {str(value).lower() if isinstance(value, bool) else value}")
    if "grid" in found:
        lines += [
            "",
            f"preset {found['name']}: {found['grid'].get('summary', '')}",
            *(f"  {k} = {v}" for k, v in found["grid"].items() if k not in ("summary", "grid")),
        ]
        for grid in found["grid"].get("grid", []):
            lines += ["", "  [[grid]]", *(f"  {k} = {v}" for k, v in grid.items())]
    if "cite" in found:
        lines += ["", found["cite"]]
    example = {"defense": "-d", "attack": "-a", "gradient": "--grad"}.get(found["kind"])
    if example:
        lines += ["", f"try: purebench run {example} {Part(found['name'])} --dry-run"]
    elif found["kind"] == "preset":
        lines += ["", f"try: purebench run {found['name']} --dry-run"]
    return "\n".join(lines)
