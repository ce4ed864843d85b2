"""What `purebench gradcheck` has found, in words: tables, and the line that a table of cells quotes below a gradient that is not exact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from purebench.records import gradchecks
from purebench.records.gradchecks import Check
from purebench.records.store import Log, judged
from purebench.report import markdown, metrics


def success(logs: Sequence[Log]) -> dict[str, Any]:
    """Of cells that differ in their gradient alone: by gradient the share of draws that are wrong (`success`), of all images and of those
    whose clean purifications are mostly right (`of_right`), and its difference from the exact one's, paired by image, with a 95 % interval
    (`difference`, `low`, `high`; None on fewer than two images). {} without the exact one."""
    by_mode = {log.cell["gradient"]: {line["position"]: line for line in judged(log)} for log in logs}
    if not by_mode.get("exact"):
        return {}
    common = sorted(set.intersection(*(set(lines) for lines in by_mode.values())))
    if not common:
        return {}
    k = min(metrics.draws([lines[place] for place in common]) for lines in by_mode.values())
    wrong = {
        mode: [1 - hit / k for hit in metrics.hits([lines[place] for place in common], k=k)]
        for mode, lines in by_mode.items()
    }
    clean = [by_mode["exact"][place] for place in common]
    right = [2 * hit > len(line["clean"]) for hit, line in zip(metrics.hits(clean, "clean"), clean, strict=True)]
    found = {}
    for mode, shares in wrong.items():
        gap = [a - b for a, b in zip(shares, wrong["exact"], strict=True)]
        low, high = metrics.paired(gap) if len(gap) > 1 else (None, None)
        of_right = [share for share, was in zip(shares, right, strict=True) if was]
        found[mode] = {
            "success": fmean(shares), "of_right": fmean(of_right) if of_right else None, "difference": fmean(gap), "low": low, "high": high,
        }  # fmt: skip
    attack = {name: logs[0].cell[name] for name in ("attack", "threat")}
    return {**attack, "images": len(common), "evals": k, "modes": found}


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def text(check: Check) -> str:
    """One check as Markdown that ends in a newline."""
    of = check["of"]
    lines = [f"### {markdown.escape(of['defense'])}, {markdown.escape(of['dataset'])}", ""]
    what = f"Cross-entropy, {check['images']} images, single draws"
    lines += [f"{what}; each gradient against the exact one of the same draw.", ""]
    if check["blind"]:
        lines += [f"The exact gradient is zero or not finite on {100 * check['blind']:.1f} % of the draws.", ""]
    means = f"cosine of means of {check['draws']}"
    header = ["gradient", "relative error", "cosine", "same sign", means, "same sign", "blind"]
    rows = [
        [mode, *(_number(found[key]) for key in ("relative_error", "cosine", "sign", "mean_cosine", "mean_sign", "blind"))]
        for mode, found in check["modes"].items() if found
    ]  # fmt: skip
    lines += [*markdown.table(header, rows), ""] if rows else []
    lines += [f"- {mode} is {other} on this defense." for mode, other in check["same"].items()]
    lines += [f"- {mode}: {markdown.prose(why)}." for mode, why in check["left_out"].items()]
    lines += [""] if check["same"] or check["left_out"] else []
    if check["eot"]:
        header = ["EOT size", "variance / squared length", "cosine of two means", "same sign"]
        rows = [
            [size, *(_number(of[key]) for key in ("variance", "cosine", "sign"))] for size, of in check["eot"].items()
        ]
        lines += [*markdown.table(header, rows), ""]
    if check["differences"]:
        header = ["step", "finite difference: error along the gradient's sign", "along random signs"]
        rows = [[step, _number(of["along"], ".1e"), _number(of["across"], ".1e")] for step, of in check["differences"].items()]  # fmt: skip
        lines += [*markdown.table(header, rows), ""]
    if found := check.get("success"):
        what = f"Success of {markdown.escape(found['attack'])}, {found['threat']}, in %"
        lines += [f"{what}: {found['images']} images, {found['evals']} fresh draws each.", ""]
        header = ["gradient", "all images", "right without attack", "minus exact", "95 %"]
        rows = [[mode, *_success(of)] for mode, of in found["modes"].items()]
        lines += [*markdown.table(header, rows), ""]
    return "\n".join(lines)


def _success(of: Mapping[str, Any]) -> list[str]:
    interval = "–" if of["low"] is None else f"{100 * of['low']:+.1f} to {100 * of['high']:+.1f}"
    right = "–" if of["of_right"] is None else f"{100 * of['of_right']:.1f}"
    return [f"{100 * of['success']:.1f}", right, f"{100 * of['difference']:+.1f}", interval]


def render(checks: Sequence[Check], as_json: bool) -> str:
    return json.dumps(checks, indent=1) if as_json else "\n".join(map(text, checks))


def quoted(logs: Iterable[Log]) -> list[str]:
    """A line for each gradient of these cells that is not exact and was checked: how far it is from the exact one."""
    found: dict[str, None] = {}
    checks: dict[Path, list[Check]] = {}
    for log in logs:
        mode = log.cell["gradient"]
        if mode in ("-", "exact") or log.cell["defense"] == "none" or log.folder is None:
            continue
        beside = log.folder.absolute().parent
        if beside not in checks:
            checks[beside] = gradchecks.read(beside)
        about = gradchecks.about(log.cell) if checks[beside] else None
        of = next((check for check in checks[beside] if check["of"] == about), None)
        if of is None or not of["modes"].get(mode):
            continue
        numbers = of["modes"][mode]
        found[
            f"gradcheck: {mode} on {log.cell['defense']} against exact ({of['images']} images): relative error "
            f"{numbers['relative_error']:.2f}, cosine {numbers['cosine']:.2f}, {100 * numbers['sign']:.0f} % of the signs."
        ] = None
    return list(found)
