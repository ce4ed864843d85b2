"""One self-contained HTML page of records: tables, cost against robustness, every image with its answers, provenance. No torch.

Nothing is asked of a network: style and script are in the page, and its policy permits these two by their hashes and nothing else. Words
from records are escaped wherever they stand; the page of the same records has the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from purebench.errors import UserError
from purebench.plan.resolved import Component
from purebench.records import store
from purebench.records.store import Json, Log
from purebench.report import chart, html, images, metrics, packed, papers, purified, recipe, tables
from purebench.report.packed import Block, Packed
from purebench.report.purified import Purified

WEB = Path(__file__).parent / "web"
FEW = 16  # notes, above which they are folded away; warnings never are
RUN = (
    "started",
    "device",
    "hardware",
    "torch",
    "versions",
    "python",
    "git",
    "threads",
    "rows",
    "tf32",
    "workers",
    "wanted",
    "evals",
)
MACHINE = ("device", "hardware", "torch", "python", "git")  # what tells one run's machine from another's


def render(
    logs: Iterable[Log],
    layouts: Sequence[papers.Printed] = (),
    *,
    title: str = "",
    pictures: int | None = None,
    given: Sequence[Component] = (),
    why_not: Mapping[str, str] | None = None,
) -> str:
    """The page. Raises UserError without records.

    layouts: papers' tables of the same records; title: in place of one made of the datasets; pictures: of how many images of each cell at
    most; given: datasets of the user's own; why_not: by cell id why it was not purified, where that was asked."""
    logs = list(logs)
    if not logs:
        raise UserError(
            "there are no results to show", "make some with `purebench run`, or name the folder that `--out` wrote"
        )
    named = tables.named(logs)
    of_logs = [log for log, _, _ in named]
    made = {log.id: purified.read(log) for log in of_logs}
    held = packed.pack(of_logs, images.sets(of_logs, given), lambda log, _: made[log.id].pictures, pictures=pictures)
    grids = tables.printed(of_logs)
    data, blocks = _data(named, held, made, _start(grids, named))
    style, script = (_text(name) for name in ("page.css", "page.js"))
    parts = {
        "title": escape(title or _title(of_logs)),
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
        "css": style,
        "js": script,
        "lead": _lead(of_logs),
        "nav": _nav(grids, layouts),
        "tables": "".join(_grid(table, i) for i, table in enumerate(grids)),
        "papers": _papers(layouts),
        "limits": html.items([*held.notes, *_not_purified(why_not or {})]),
        "provenance": _provenance(named),
        "data": _json(data),
        "blocks": "\n".join(f'<script type="text/plain" id="{name}">{packed.base64_of(of)}</script>' for name, of in blocks),
    }  # fmt: skip
    # In one pass: what is put in is never looked at again, whatever it says.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("page.html"))


def purify(
    logs: Iterable[Log],
    *,
    pictures: int | None = None,
    given: Sequence[Component] = (),
    device: str = "auto",
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, str]:
    """Purifies the images of which `render` will show pictures, and keeps what comes of it beside the records. Returns by cell id why there
    is none."""
    of_logs = [log for log, _, _ in tables.named(logs)]
    # What will come takes about the place of what goes in: else more would be purified than the page can hold.
    forecast = packed.pack(
        of_logs,
        images.sets(of_logs, given),
        lambda log, found: {} if log.cell["defense"] == "none" else found,
        pictures=pictures,
    )
    return purified.make(of_logs, forecast.pictures, given=given, device=device, note=note)


def _text(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names a style or script that it permits."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(data: Json) -> str:
    """JSON that cannot end the element that it stands in, nor begin a comment there."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


# ---- data ----------------------------------------------------------------------------------------


def _start(grids: Sequence[tables.Printed], named: Sequence[tuple[Log, str, str]]) -> str:
    """The cell that the browser opens with: the strongest attack on the best defense, of the first table that has one."""
    headlines = [headline for table in grids for headline in table.headlines if headline.attack]
    defended = [headline for headline in headlines if headline.defense != "none"] or headlines
    for headline in defended:
        for log, defense, attack in named:
            if (defense, attack) == (headline.defense, headline.attack):
                return log.id
    return named[0][0].id


def _data(
    named: Sequence[tuple[Log, str, str]], held: Packed, made: Mapping[str, Purified], start: str
) -> tuple[Json, list[tuple[str, bytes]]]:
    """What the script reads, and the blocks that it names."""
    blocks = [("answers", held.answers)]

    def place(block: Block | None) -> Json | None:
        if block is None:
            return None
        blocks.append((f"pictures-{len(blocks)}", block.data))
        dense = block.positions == list(range(len(block.positions)))
        found: Json = {"id": blocks[-1][0], "positions": len(block.positions) if dense else block.positions}
        return found | ({"step": block.step, "magnified": block.magnified} if block.step else {})

    keys = list(dict.fromkeys(images.key(log) for log, _, _ in named))
    sets = [
        {"shape": held.shapes[key][0] if key in held.shapes else None, "clean": place(held.clean.get(key))}
        for key in keys
    ]
    cells = []
    for log, defense, attack in named:
        shown = place(held.purified.get(log.id))
        if shown:
            answers = made[log.id].answers
            shown["answers"] = [answers[position] for position in held.purified[log.id].positions]
        cells.append(
            {
                "id": log.id, "set": keys.index(images.key(log)), "defense": defense, "attack": attack,
                **{name: str(log.cell[name]) for name in ("dataset", "classifier", "score", "gradient", "threat", "seed")},
                "control": metrics.control(log.cell["attack"]), "source": log.cell.get("source", ""),
                "metrics": {name: list(value) for name, value in metrics.summary(log).items()}, **held.columns[log.id],
                "attacked": place(held.attacked.get(log.id)), "purified": shown,
            }
        )  # fmt: skip
    return {"start": start, "sets": sets, "cells": cells}, blocks


# ---- words ---------------------------------------------------------------------------------------


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"


def _title(logs: Sequence[Log]) -> str:
    datasets = list(dict.fromkeys(str(log.cell["dataset"]) for log in logs))
    return f"Robustness on {', '.join(datasets) if len(datasets) <= 3 else f'{len(datasets)} datasets'}"


def _lead(logs: Sequence[Log]) -> str:
    most = max((len(store.judged(log)) for log in logs), default=0)
    defenses = len({log.cell["defense"] for log in logs} - {"none"})
    said = f"{_plural(defenses, 'defense')} in {_plural(len(logs), 'cell')} of up to {_plural(most, 'image')}"
    return escape(f"{said}. Accuracy in %, judged by fresh purifications that no attacker saw.")


def _nav(grids: Sequence[tables.Printed], layouts: Sequence[papers.Printed]) -> str:
    links = [(f"table-{i}", table.title) for i, table in enumerate(grids)]
    links += [("papers", "The papers’ tables")] if layouts else []
    links += [("images", "Image by image"), ("provenance", "Provenance")]
    return "".join(f'<a href="#{at}">{escape(text)}</a>' for at, text in links)


def _not_purified(why_not: Mapping[str, str]) -> list[str]:
    found = Counter(why_not.values())
    return [f"Not purified: {_plural(count, 'cell')}: {why}." for why, count in found.items()]


# ---- tables --------------------------------------------------------------------------------------


def _grid(table: tables.Printed, i: int) -> str:
    """A section: the verdict with its drawing and warnings, then every attack, and how all of it was made."""
    warnings = "".join(f"<li><b>Warning:</b> {html.words(text)}</li>" for text in table.warnings)
    rows = [
        [
            f"<strong>{html.number(word)}</strong>" if (row, j) in table.bold else html.number(word)
            for j, word in enumerate(words)
        ]
        for row, words in enumerate(table.rows)
    ]
    left = [j == 0 for j in range(len(table.header))]
    return (
        f'<section id="table-{i}" aria-labelledby="title-{i}"><h2 id="title-{i}">{escape(table.title)}</h2>'
        f'<p class="models">{html.words(table.models)}</p>'
        f'<div class="summary"><div>{_verdict(table)}</div>{_cost(table)}</div>'
        + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
        + "<h3>Every attack</h3>"
        + html.table(list(map(html.name, table.header)), rows, left, f"Every attack, {table.title}")
        + f"<details{' open' * (len(table.notes) <= FEW)}><summary>How these numbers were made</summary>"
        f'<ul class="notes">{html.items(table.notes)}</ul></details></section>'
    )


def _verdict(table: tables.Printed) -> str:
    """One line a defense: what the strongest attack leaves."""
    at = table.header.index(tables.STRONGEST)
    lines = []
    for headline, row in zip(table.headlines, table.rows, strict=True):
        lines.append(
            f'<tr><th scope="row">{html.name(headline.defense)}</th><td class="number">{html.number(row[at])}</td>'
            f'<td class="drawn">{chart.bar(headline.clean, headline.strongest)}</td>'
            f'<td class="by">{html.name(headline.attack) or "no attack was run"}</td><td class="clean">{html.number(row[1])}</td></tr>'
        )
    head = (
        '<tr><th scope="col">defense</th><th scope="col" class="number">under the strongest attack</th>'
        '<th scope="col" class="drawn">0 to 100 %</th><th scope="col" class="by">which is</th><th scope="col" class="clean">clean</th></tr>'
    )
    return (
        f'<table class="verdict"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
        '<p class="legend">Strong: what the strongest attack leaves, with its 95 % interval. Faint: what it took of the clean accuracy.</p>'
    )


def _cost(table: tables.Printed) -> str:
    found = chart.points(table.headlines)
    if not found:
        return ""
    left_out = [
        headline.defense for headline in table.headlines if headline.defense not in {point.name for point in found}
    ]
    said = f" Without a place, for want of an attack or of counted calls: {', '.join(left_out)}." if left_out else ""
    hollow = " Hollow: every gradient attack was masked." if any(point.masked for point in found) else ""
    return (
        "<figure><figcaption>Accuracy in % under the strongest attack, against what the costliest attack cost."
        f"{escape(hollow + said)}</figcaption>{chart.cost(found, 440)}</figure>"
    )


def _papers(layouts: Sequence[papers.Printed]) -> str:
    if not layouts:
        return ""
    return (
        '<section id="papers" aria-labelledby="papers-title"><h2 id="papers-title">The papers’ tables</h2>'
        f"{''.join(map(html.paper, layouts))}</section>"
    )


# ---- provenance ----------------------------------------------------------------------------------


def _provenance(named: Sequence[tuple[Log, str, str]]) -> str:
    """Which machines and versions, then cell by cell everything that its numbers depend on, with the grid that makes it again."""
    machines = Counter(tuple(_show(run.get(key)) for key in MACHINE) for log, _, _ in named for run in log.runs)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(word)}</td>' for word in machine)}<td>{count}</td></tr>"
        for machine, count in sorted(machines.items())
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in (*MACHINE, "runs"))
    cells = "".join(_cell(log, f"{defense} under {attack}") for log, defense, attack in named)
    return (
        '<section id="provenance" aria-labelledby="provenance-title"><h2 id="provenance-title">Provenance</h2>'
        '<div class="wide" tabindex="0" role="region" aria-label="Machines"><table class="facts-table">'
        f'<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div><details class="all"><summary>'
        f"{_plural(len(named), 'cell')}: parameters, versions, hashes, seeds, and how to make each again</summary>"
        f"{cells}</details></section>"
    )


def _cell(log: Log, name: str) -> str:
    cell = log.cell
    parts = []
    for kind, part in store.parts(cell).items():
        said = [f"version {part['version']}"] if part["version"] is not None else []
        said += [" ".join(f"{key}={_show(value)}" for key, value in part["values"].items())]
        said += [f"hash {part['hash']}"] if part["hash"] else []
        named = str(part.get("name") or cell.get(kind, ""))
        parts.append((kind, " · ".join(filter(None, [named, *said]))))
    facts = [("seed", str(cell["seed"])), ("subset", str(cell["subset"])), ("threat", str(cell["threat"])), *parts]
    facts += [("images from", str(cell["source"]))] if cell.get("source") else []
    facts += [(f"run {i}", _run(run)) for i, run in enumerate(log.runs, 1)]
    rows = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in facts)
    return (
        f'<details class="cell" id="cell-{escape(log.id)}"><summary>{escape(name)} '
        f'<span class="soft">{escape(log.id)}</span></summary><div>'
        f'<table class="facts-table">{rows}</table>{_again(log)}</div></details>'
    )


def _again(log: Log) -> str:
    """The grid of one cell, as a file."""
    try:
        text = recipe.toml(recipe.of(log) | _extent(log))
    except UserError:
        # A name that no command line can say: whoever wrote the record knows how.
        return '<p class="legend">Its names cannot be written as a grid.</p>'
    return f'<p class="legend">To make it again, as a file: <code>purebench run FILE.toml</code></p><pre>{escape(text)}</pre>'


def _extent(log: Log) -> dict[str, int]:
    """How many images and evaluations a run is to make: as many as the last one wanted, or as there are."""
    last = log.runs[-1] if log.runs else {}
    evals = max((len(line.get("adversarial", [])) for line in log.images), default=1)
    return {"images": log.wanted or len(log.images), "evals": last.get("evals") or evals}


def _run(run: Mapping[str, Any]) -> str:
    said = [f"{key} {_show(run[key])}" for key in RUN if run.get(key) not in (None, "")]
    said += [f"stands in: {'; '.join(run['stand_in'])}"] if run.get("stand_in") else []
    return " · ".join(said + ([f"failed: {run['failed']}"] if run.get("failed") else []))


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {of}" for key, of in value.items())
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
