"""From records to tables: pure functions of the logs of cells, no torch.

`tidy` and `grid` give rows (dicts of COLUMNS); `render` writes them as Markdown, CSV or JSON. A layout is an entry of
LAYOUTS.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from purebench.errors import UserError, unknown
from purebench.records import store as records
from purebench.report import metrics
from purebench.report.metrics import Log, Value
from purebench.spec import show

COLUMNS = (
    "dataset", "classifier", "score", "defense", "attack", "threat", "grad", "metric", "value", "low", "high",
    "images", "evals", "seed", "nfe_forward", "nfe_backward", "seconds", "cell",
)  # fmt: skip
FORMATS = ("md", "csv", "json")
MISSING = "–"
LEADS = " of those on the most images, or one on fewer that is lower beyond chance on the images that both have"
MARK = "†"  # behind the headline of a defense whose every gradient attack was masked
STRONGEST = "strongest"
SCOPE = ("dataset", "subset", "classifier", "score", "threat")  # one table each
FIRST = ("null", "noise", "transfer-pgd", "transfer", "bpda-eot")  # the order of attack columns: controls, weak, ..
LAST = ("apgd-ce", "apgd-dlr", "autoattack-standard", "autoattack-rand")  # .. own attacks by name, then these


@dataclass
class _Cell:
    """A log with what every table needs of it: metrics by name, and the names of its row and column."""

    log: Log
    values: dict[str, Value]
    nfe: tuple[float | None, float | None]  # forward and backward, mean per image
    defense: str
    attack: str

    def __getitem__(self, key: str) -> Any:
        return self.log.cell[key]

    @property
    def grad(self) -> str:
        return self.log.cell["gradient"]

    @property
    def column(self) -> str:
        """The attack, with its gradient where that is not the attack's natural one."""
        bpda = metrics.name(self["attack"]) == "bpda-eot"
        natural = ("-", "exact", "bpda") if self["defense"] == "none" else ("-", "bpda" if bpda else "exact")
        return self.attack if self.grad in natural else f"{self.attack} @{self.grad}"

    @property
    def scope(self) -> tuple[str, ...]:
        return tuple(self[key] for key in SCOPE)

    def fits(self, scope: tuple[str, ...]) -> bool:
        """Whether it belongs in the table of this scope. What uses no threat model, or no score model, is in all: `-`."""
        *rest, score, threat = self.scope
        return rest == [*scope[:3]] and score in ("-", scope[3]) and threat in ("-", scope[4])


Table = dict[str, dict[str, list[_Cell]]]  # defense -> column -> the seeds' cells


# ---- cells, and where they go --------------------------------------------------------------------


def _cells(logs: Iterable[Log]) -> list[_Cell]:
    """One entry per cell id (of copies the one with most evaluations), ordered; metrics computed."""
    logs = list(logs)
    sources = {log.id: {line["position"] for line in log.images if records.lost(line)} for log in logs}
    logs = [_without(log, sources.get(log.cell.get("source", ""), set())) for log in logs]
    unique: dict[str, Log] = {}
    for log in logs:
        size = [sum(len(line["adversarial"]) for line in metrics.judged(x)) for x in (log, unique.get(log.id, log))]
        if log.id not in unique or size[0] > size[1]:
            unique[log.id] = log
    nulls = {_control(log): log for log in unique.values() if metrics.name(log.cell["attack"]) == "null"}
    cells = []
    for log in unique.values():
        null = nulls.get(_control(log))
        counts = [line["nfe"] for line in metrics.judged(log) if line.get("nfe")]
        forward, backward = (_mean([c[i] for c in counts]) for i in (0, 1))
        summary = metrics.summary(log, null)
        cells.append(_Cell(log, summary, (forward, backward), log.cell["defense"], log.cell["attack"]))
    _tell_apart(cells)
    cells.sort(key=lambda c: (*c.scope, *_order(c)))
    return cells


def _without(log: Log, positions: set[int]) -> Log:
    """The log of a transfer without the images that its source never made: older versions judged clean ones in their place."""
    if not positions:
        return log
    log = copy.copy(log)
    log.images = [line for line in log.images if line["position"] not in positions]
    return log


def _order(cell: _Cell) -> tuple[Any, ...]:
    return cell.defense != "none", cell.defense, _rank(cell), cell["seed"], cell.log.id


def values_of(cell: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The parameters of a cell's defense, attack or surrogate."""
    return cell["parts"].get(kind, {}).get("values", {})


def _control(log: Log) -> tuple[Any, ...]:
    """What a cell shares with its null control."""
    cell = log.cell
    score = cell["score"] if "score" in cell["parts"] else "-"  # a transfer names its source's
    parameters = json.dumps(values_of(cell, "defense"), sort_keys=True)
    return *(cell[k] for k in ("dataset", "subset", "classifier", "defense", "seed")), score, parameters


def _rank(cell: _Cell) -> tuple[Any, ...]:
    """Sort key of attack columns; another gradient than exact comes before it."""
    name = metrics.name(cell["attack"])
    place = FIRST.index(name) if name in FIRST else len(FIRST) + (1 + LAST.index(name) if name in LAST else 0)
    return place, name, len(cell.attack), cell.attack, cell.column == cell.attack, cell.grad


def _flat(cell: _Cell) -> dict[str, str]:
    parts = cell["parts"]
    groups = {f"{kind}.": values_of(cell.log.cell, kind) for kind in parts}
    for fact, group in (("version", "versions."), ("hash", "hashes."), ("name", "names.")):
        groups[group] = {kind: part[fact] for kind, part in parts.items() if fact in part}
    flat = {"gradient": cell.grad, "source": str(cell.log.cell.get("source", ""))}
    return flat | {f"{kind}{key}": _show(value) for kind, values in groups.items() for key, value in values.items()}


def _tell_apart(cells: list[_Cell]) -> None:
    """Cells that would share a place in a table although they differ (other resolved parameters, versions, weights) get
    what differs added to their names: `coup [steps=5]`. Nothing is averaged but seeds."""
    places: dict[tuple[Any, ...], list[_Cell]] = defaultdict(list)
    for cell in cells:
        places[(*cell.scope, cell.defense, cell.column, cell["seed"])].append(cell)
    differ: dict[tuple[str, str], set[str]] = defaultdict(set)
    for mates in places.values():
        flats = [_flat(cell) for cell in mates]
        keys = {k for flat in flats for k in flat if len({f.get(k) for f in flats}) > 1}
        named = {k for k in keys if k.startswith(("defense.", "attack."))}
        for key in named or keys or ({"id"} if len(mates) > 1 else ()):
            owner = "attack" if key.startswith("attack.") or key in ("gradient", "source") else "defense"
            differ[owner, mates[0][owner]].add(key)
    for cell in cells if differ else ():
        flat = _flat(cell) | {"id": cell.log.id}
        for owner in ("defense", "attack"):
            extra = [
                f"{k.partition('.')[2] or k}={flat[k][:12]}" for k in sorted(differ[owner, cell[owner]]) if k in flat
            ]
            setattr(cell, owner, cell[owner] + (f" [{', '.join(extra)}]" if extra else ""))


def _tables(cells: Sequence[_Cell]) -> dict[tuple[str, ...], Table]:
    """The cells of each table by scope, defense and column. A cell that fits several tables is in all of them; only what
    fits none makes one."""
    scopes: list[tuple[str, ...]] = []
    for cell in sorted(cells, key=lambda c: "-" in c.scope[3:]):
        if not any(cell.fits(scope) for scope in scopes):
            scopes.append(cell.scope)
    tables: dict[tuple[str, ...], Table] = {}
    for scope in sorted(scopes):
        table = tables.setdefault(scope, {})
        for cell in sorted((c for c in cells if c.fits(scope)), key=_order):
            table.setdefault(cell.defense, {}).setdefault(cell.column, []).append(cell)
    return tables


def _pool(cells: Sequence[_Cell], metric: str) -> Value | None:
    values = [cell.values[metric] for cell in cells if metric in cell.values]
    return metrics.pool(values, difference=metric == "null_difference") if values else None


def _logs(columns: dict[str, list[_Cell]]) -> dict[str, list[Log]]:
    return {column: [cell.log for cell in cells] for column, cells in columns.items()}


def _headline(columns: dict[str, list[_Cell]]) -> metrics.Headline | None:
    """The strongest attack on one defense, by its column."""
    return metrics.headline(_logs(columns))


def _per_image(columns: dict[str, list[_Cell]]) -> Value | None:
    """`robust_image`, per seed over all attacks, then pooled."""
    seeds: dict[int, list[Log]] = defaultdict(list)
    for logs in metrics.contenders(_logs(columns)).values():
        for log in logs:
            seeds[log.cell["seed"]].append(log)
    values = [value for logs in seeds.values() if (value := metrics.robust_image(logs))]
    return metrics.pool(values) if values else None


def _clean(columns: dict[str, list[_Cell]], metric: str = "clean") -> Value | None:
    """All cells of a defense judge the same clean images with the same draws: the one that has most of them speaks."""
    values = [value for cells in columns.values() if (value := _pool(cells, metric))]
    return max(values, key=lambda v: v.images, default=None)


# ---- rows ----------------------------------------------------------------------------------------


def _row(cells: Sequence[_Cell], metric: str, value: Value, **other: Any) -> dict[str, Any]:
    first, seeds = cells[0], sorted({cell["seed"] for cell in cells})
    nfe = [[c.nfe[i] for c in cells if c.nfe[i] is not None] for i in (0, 1)]
    row = {key: first[key] for key in ("dataset", "classifier", "score", "threat")} | {
        "defense": first.defense, "attack": first.attack, "grad": first.grad, "metric": metric,
        "value": _round(value.value), "low": _round(value.low), "high": _round(value.high),
        "images": value.images, "evals": value.evals, "seed": seeds[0] if len(seeds) == 1 else _commas(seeds),
        "nfe_forward": _round(_mean(nfe[0])), "nfe_backward": _round(_mean(nfe[1])),
        "seconds": _round(sum(cell.log.seconds for cell in cells)), "cell": " ".join(cell.log.id for cell in cells),
    } | other  # fmt: skip
    return {key: row[key] for key in COLUMNS}


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def tidy(logs: Iterable[Log]) -> list[dict[str, Any]]:
    """One row per cell and metric, with exactly COLUMNS. Values in [0, 1], `null_difference` in [-1, 1]; None where
    there is none. `nfe_*`: network calls per image, mean; `seconds`: of the whole cell. A cell without a judged image
    has no row."""
    return [
        _row([cell], metric, value, defense=cell["defense"], attack=cell["attack"])
        for cell in _cells(logs)
        for metric, value in cell.values.items()
    ]


def grid(logs: Iterable[Log]) -> list[dict[str, Any]]:
    """The rows of `tidy` aggregated over seeds (`seed`: "0, 1, 2", `cell`: ids), and for each defense under an attack that is no
    control `attack` = strongest: metric `robust` of the strongest attack (`grad`, cost, images and `cell` are that attack's),
    `robust_image`, and, where every gradient attack was masked, the smallest share of `masked` images."""
    return _grid_rows(_cells(logs))


def _grid_rows(cells: Sequence[_Cell]) -> list[dict[str, Any]]:
    rows = []
    for scope, table in _tables(cells).items():
        where = dict(zip(SCOPE, scope, strict=True))
        for columns in table.values():
            for mates in columns.values():
                names = dict.fromkeys(metric for cell in mates for metric in cell.values)
                rows += [
                    _row([c for c in mates if m in c.values], m, v, **where) for m in names if (v := _pool(mates, m))
                ]
            lowest = _headline(columns)
            if lowest and (value := _pool(columns[lowest.attack], "robust")):
                rows.append(_row(columns[lowest.attack], "robust", value, attack=STRONGEST, **where))
                if share := metrics.all_masked(_logs(columns)):
                    rows.append(_row(columns[lowest.attack], "masked", share, attack=STRONGEST, **where))
            if value := _per_image(columns):
                mates = [c for column in metrics.contenders(_logs(columns)) for c in columns[column] if c.values]
                free = {"grad": "-", "nfe_forward": None, "nfe_backward": None, "seconds": None}
                rows.append(_row(mates, "robust_image", value, attack=STRONGEST, **free, **where))
    return rows


# ---- Markdown ------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    """A word of a Markdown table: `|` would end it, `*`, `<` and a backtick would format it."""
    for char in "\\|*<`":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())


def _code(text: str, width: int = 100) -> str:
    """Inside backticks, on one line."""
    text = " ".join(text.split()).replace("`", "'")
    return f"`{text if len(text) <= width else text[: width - 1] + '…'}`"


def _show(value: Any) -> str:
    """As on the command line: `8/255`, `[0.4,0.6]`."""
    return "[" + ",".join(map(_show, value)) + "]" if isinstance(value, list) else show(value)


def _count(number: float) -> str:
    return (
        f"{number:.0f}"
        if number < 10_000
        else f"{number / 1000:.0f}k"
        if number < 10_000_000
        else f"{number / 1e6:.0f}M"
    )


def _percent(value: Value | None) -> str:
    """`48.8 ±4.3`: percent, and the distance to the farther end of the interval (it is not symmetric near 0 and 100)."""
    if value is None:
        return MISSING
    half = (
        ""
        if value.low is None or value.high is None
        else f" ±{100 * max(value.high - value.value, value.value - value.low):.1f}"
    )
    return f"{100 * value.value:.1f}{half}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """An aligned Markdown table; the first `left` columns are flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    pads = [str.ljust if i < left else str.rjust for i in range(len(header))]

    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(pad(word, width) for pad, word, width in zip(pads, words, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [line(header), rule, *map(line, rows)]


def _header(column: str) -> str:
    """`transfer:from=(reverse-sde)` is short as `from reverse-sde`."""
    inner = column.removeprefix("transfer:from=(").removesuffix(")")
    return f"from {inner}" if len(column) - len(inner) == 16 and not set(inner) & set("(,") else column


def _grid_table(scope: tuple[str, ...], table: Table) -> list[str]:
    """One Markdown table and its footnotes."""
    by_column: dict[str, list[_Cell]] = defaultdict(list)
    for columns in table.values():
        for column, cells in columns.items():
            by_column[column] += cells
    attacks = sorted(by_column, key=lambda column: _rank(by_column[column][0]))
    own = {column for column in attacks if any("aa" in cell.values for cell in by_column[column])}
    header = ["defense", "clean"]
    for column in attacks:
        title = _escape(_header(column))
        header += [title, f"{title} (aa)"] if column in own else [title]
    header += [STRONGEST, "per image", "NFE/image", "time"]

    best = {defense: _headline(columns) for defense, columns in table.items()}
    strong = {d: _pool(table[d][h.attack], "robust") if h else None for d, h in best.items()}
    per_image = {defense: _per_image(columns) for defense, columns in table.items()}
    rows = []
    for defense in sorted(table, key=lambda d: (d != "none", -(v.value if (v := strong[d]) else -1.0), d)):
        columns, lowest = table[defense], best[defense]
        row = [_escape(defense), _percent(_clean(columns))]
        for column in attacks:
            text = _percent(_pool(columns.get(column, ()), "robust"))
            row += [f"**{text}**" if lowest and column == lowest.attack else text]
            row += [_percent(_pool(columns.get(column, ()), "aa"))] if column in own else []
        row += [_percent(strong[defense]) + _marks(columns, lowest, strong[defense]), _percent(per_image[defense])]
        cells = [cell for cells in columns.values() for cell in cells]
        costs = [(f or 0, b or 0) for f, b in (cell.nfe for cell in cells) if f is not None]
        row += ["+".join(map(_count, max(costs, key=sum))) if costs else MISSING]
        row += [_time(sum(cell.log.seconds for cell in cells))]
        rows.append(row)

    dataset, _, classifier, score, threat = scope
    title = f"### {dataset}, {threat}" if threat != "-" else f"### {dataset}"
    models = f"Classifier {_code(classifier)}" + (f", score model {_code(score)}." if score != "-" else ".")
    notes = _notes(scope, table, best) + [f"**Warning:** {text}" for text in _warnings(table)]
    return [title, "", models, "", *_lines(header, rows), "", *(f"- {note}" for note in notes), ""]


def _marks(columns: dict[str, list[_Cell]], lowest: metrics.Headline | None, value: Value | None) -> str:
    """Behind a headline: how many images it stands on, where others stand on more, and the mark of a defense whose every gradient attack
    was masked."""
    images = f" (n = {value.images})" if lowest and lowest.instead_of and value else ""
    return images + (f" {MARK}" if metrics.all_masked(_logs(columns)) else "")


def _gaps(best: dict[str, metrics.Headline | None], table: Table) -> list[str]:
    """A line for each headline that stands on fewer images than other attacks, and for each that may not be the strongest."""
    notes = []
    for defense, found in best.items():
        if found and found.instead_of and found.difference:
            n = _pool(table[defense][found.attack], "robust")
            change, low, high = (100 * (v or 0.0) for v in found.difference[:3])
            notes.append(
                f"{defense}: strongest is {_header(found.attack)}, on {n.images if n else 0} images: on the {found.difference.images} that "
                f"it shares with {_header(found.instead_of)} it is {-change:.1f} points lower (95 %: {-high:.1f} to {-low:.1f})."
            )
        for attack in found.unsure if found else ():
            notes.append(
                f"{defense}: {_header(attack)} is stronger than {_header(found.instead_of or found.attack)} on the images that both have, "  # type: ignore[union-attr]
                "which are easier than the others; run it on all."
            )
    return notes


def _except(facts: Sequence[tuple[_Cell, Any]], spell: Callable[[Any], str] = str) -> str:
    """`500 (100: autoattack-rand; 37: coup under pgd-eot)`: the commonest fact, and for the others the columns,
    defenses or single cells that they hold for."""
    counts = Counter(fact for _, fact in facts)
    usual = max(counts, key=lambda fact: (counts[fact], fact))
    others = []
    for fact in sorted(set(counts) - {usual}):
        left = {(_header(cell.column), cell.defense) for cell, value in facts if value == fact}
        rest = {(_header(cell.column), cell.defense) for cell, value in facts if value != fact}
        names = []
        for i in (0, 1):
            whole = {place[i] for place in left} - {place[i] for place in rest}
            names += sorted(whole)
            left = {place for place in left if place[i] not in whole}
        others.append(f"{spell(fact)}: {_list(names + [f'{d} under {c}' for c, d in sorted(left)])}")
    return spell(usual) + (f" ({'; '.join(others)})" if others else "")


def _list(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _commas(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _places(cells: Iterable[_Cell]) -> str:
    """`pgd-eot on coup, diffpure; bpda-eot on coup`."""
    by_column: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.defense not in by_column[cell.column]:
            by_column[cell.column].append(cell.defense)
    return "; ".join(f"{_header(column)} on {_list(defenses)}" for column, defenses in by_column.items())


def _parameters(cells: Sequence[_Cell], kind: str) -> list[str]:
    """The resolved parameters of the defenses or attacks, one note for all that share theirs; without those that are
    none."""
    facts: dict[str, list[tuple[_Cell, str]]] = defaultdict(list)
    for cell in cells:
        values = values_of(cell.log.cell, kind)
        text = " ".join(f"{key}={_show(value)}" for key, value in values.items() if value is not None)
        facts[getattr(cell, kind)].append((cell, text))
    names: dict[str, list[str]] = defaultdict(list)
    for name, found in facts.items():
        if any(text for _, text in found):
            names[_except(found, lambda text: _code(text, 160))].append(_header(name))
    return [f"{', '.join(shared)}: {text}" for text, shared in names.items()]


def _notes(scope: tuple[str, ...], table: Table, best: dict[str, metrics.Headline | None]) -> list[str]:
    """The protocol, short: what a reader needs to believe or repeat the numbers."""
    cells = sorted((cell for columns in table.values() for group in columns.values() for cell in group), key=_rank)
    done = [(cell, cell.values["robust"]) for cell in cells if cell.values]
    notes, seeds = [], defaultdict(set)
    for cell in cells:
        seeds[cell.defense, cell.column].add(cell["seed"])
    if done:
        most = {
            row: max((c.values["robust"].images for g in columns.values() for c in g if c.values), default=0)
            for row, columns in table.items()
        }
        fewer = any(v.images < most[cell.defense] for cell, v in done)
        evals = _except([(cell, v.evals) for cell, v in done])
        notes += [
            "Accuracy in %: mean of single runs, ± the farther end of the 95 % Wilson interval (sample size: images).",
            f"Fresh evaluations per image: {evals}.",
            f"Images: {_except([(cell, v.images) for cell, v in done])}; subset {_code(scope[1])}.",
            f"{'Seed' if max(map(len, seeds.values())) == 1 else 'Mean over seeds'}: "
            f"{_except([(cell, tuple(sorted(seeds[cell.defense, cell.column]))) for cell in cells], _commas)}; "
            f"{len({c.log.id for c in cells})} cells.",
            f"strongest: the attack with the lowest mean (bold){LEADS if fewer else ''}. "
            "per image: the worst of them for each image, chosen on even draws, scored on odd.",
            *_gaps(best, table),
        ]
    grads: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        if cell.grad != "-" and _header(cell.column) not in grads[cell.grad] and cell["defense"] != "none":
            grads[cell.grad].append(_header(cell.column))
    if said := [f"{grad}: {_list(columns)}" for grad, columns in grads.items() if columns]:
        notes.append(f"Gradient: {'; '.join(said)}.")
    if any("aa" in cell.values for cell in cells):
        notes.append(
            "(aa): AutoAttack's verdict, where one lucky miss breaks an image; beside it, its images judged afresh, where those "
            "that it did not break are clean: an upper bound."
        )
    notes.append("NFE/image: network forwards + backwards of the costliest attack; time: all attacks of the row.")
    return notes + _parameters(sorted(cells, key=lambda c: c.defense), "defense") + _parameters(cells, "attack")


def _warnings(table: Table) -> list[str]:
    """What makes a number of this table weaker than it looks: what happened, and what to do."""
    cells = [cell for columns in table.values() for group in columns.values() for cell in group]
    done = [cell for cell in cells if cell.values]
    found = []
    few = min((cell.values["robust"].images for cell in done), default=100)
    if few < 100:
        gap = 100 * metrics.Z * (0.5 / few) ** 0.5
        found.append(
            f"{few} images: a difference under about {gap:.0f} points is chance; take 500 for a claim (`--images 500`)."
        )
    lucky = [c for c in done if metrics.name(c["attack"]) not in metrics.CONTROLS and _exceeds(c)]
    if lucky:
        found.append(f"robust above clean: {_places(lucky)}; the attack is broken or its gradients are masked.")
    nulls = [c for c in done if metrics.name(c["attack"]) == "null"]
    odd = [c for c in nulls if "clean" in c.values and c.values["clean"][0] != c.values["robust"][0]]
    if odd:
        found.append(
            f"the null control differs from clean: {_places(odd)}; the records are damaged or the judge is not paired."
        )
    once = [c for c in done if c.values["robust"].evals == 1 and c["defense"] != "none"]
    if once:
        found.append(
            f"one evaluation of each image, so luck counts if the defense is random: {_places(once)} (`--evals 10`)."
        )
    inexact = []
    for defense, columns in table.items():
        attacks = {(metrics.name(c["attack"]), c.grad) for group in columns.values() for c in group if c.values}
        attacks = {(name, grad) for name, grad in attacks if name not in metrics.CONTROLS}
        if defense != "none" and attacks and not any(g == "exact" and name != "transfer" for name, g in attacks):
            inexact.append(defense)
    if inexact:
        found.append(f"no attack with the exact gradient on {_list(inexact)}: robustness may be overstated.")
    stand_ins = sorted(
        {name for cell in cells for record in (cell.log.cell, *cell.log.runs) for name in record.get("stand_in") or ()}
    )
    if stand_ins:
        found.append(f"not paper-comparable, for what stands in: {'; '.join(stand_ins)}.")
    found += _not_finite(cells) + _masked(cells, table)
    if missing := [(cell, n) for cell in cells if (n := sum(map(records.lost, cell.log.images)))]:
        found.append(f"missing, since the attack made no image: {_tally(missing)}; the same run tries them again.")
    chance = {c.defense: c for c in done if metrics.at_chance(metrics.judged(c.log))}
    if chance:
        found.append(
            f"clean accuracy cannot be told from guessing: {_list(list(chance))}; do network, labels and preprocessing belong together?"
        )
    for note, why in metrics.NOTES.items():
        if noted := {c.defense: c for c in cells if any(note in line.get("notes", ()) for line in c.log.images)}:
            found.append(f"{_list(list(noted))}: {why}.")
    found += [f"failed: {_places([cell])}: {_code(cell.log.failed)}" for cell in cells if cell.log.failed]
    empty = [cell for cell in cells if not cell.log.images and not cell.log.failed]
    if empty:
        found.append(f"not judged yet: {_places(empty)}.")
    return found


def _tally(cells: Sequence[tuple[_Cell, int]]) -> str:
    """`pgd-eot on coup: 3 of 16 images; bpda-eot on coup: 1 of 16`."""
    said = [
        f"{_header(cell.column)} on {cell.defense}: {n} of {len(cell.log.images)}{' images' * (i == 0)}"
        for i, (cell, n) in enumerate(cells)
    ]
    return "; ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")


def _not_finite(cells: Sequence[_Cell]) -> list[str]:
    """What of a defense was not finite, and where: purifications, which count as wrong, and gradients, which stop an attack."""
    found = []
    for field, what in (("adversarial", "attacked"), ("clean", "clean")):
        bad = [(cell, sum(-1 in line[field] for line in metrics.judged(cell.log))) for cell in cells]
        if bad := [(cell, n) for cell, n in bad if n]:
            reasons = Counter(
                where
                for cell, _ in bad
                for line in cell.log.images
                if (where := (line.get("not_finite") or {}).get(field) or line.get("failed"))
            )
            why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
            found.append(f"purifications of {what} images that are not finite count as wrong: {_tally(bad)}{why}.")
    stopped = [(cell, sum(map(_stopped_too_early, metrics.judged(cell.log)))) for cell in cells]
    if stopped := [(cell, n) for cell, n in stopped if n]:
        found.append(
            f"gradients that were not finite ended the attack on images that it had not broken: {_tally(stopped)}; robustness may be "
            "overstated."
        )
    return found


def _stopped_too_early(line: Mapping[str, Any]) -> bool:
    """Whether a gradient was not finite, and some draw of the image is still right."""
    return (line.get("gradients") or {}).get("not_finite", 0) > 0 and line["label"] in line["adversarial"]


def _masked(cells: Sequence[_Cell], table: Table) -> list[str]:
    """Attacks whose gradient vanished, and defenses on which all of them did."""
    found = []
    masked = [(cell, cell.values["masked"]) for cell in cells if "masked" in cell.values]
    masked = [(cell, share) for cell, share in masked if share.value >= metrics.MASKED]
    if masked:
        counts = [(cell, round(share.value * share.images)) for cell, share in masked]
        found.append(
            f"masked, zero gradients (or not finite) wherever an image was still classified rightly: {_tally(counts)}; such an attack "
            "proves little: try `bpda-eot`, `loss=margin` or a transfer."
        )
    blind = [defense for defense, columns in table.items() if metrics.all_masked(_logs(columns))]
    if blind:
        found.append(
            f"{MARK} every gradient attack on {_list(blind)} was masked: the headline is no evidence of robustness."
        )
    return found


def _exceeds(cell: _Cell) -> bool:
    return "clean" in cell.values and cell.values["robust"].value > cell.values["clean"].value


# ---- layouts and formats -------------------------------------------------------------------------


def _tidy_markdown(logs: Sequence[Log]) -> str:
    def word(value: Any) -> str:
        return MISSING if value is None else f"{value:g}" if isinstance(value, float) else _escape(str(value))

    return "\n".join(_lines(COLUMNS, [[word(row[key]) for key in COLUMNS] for row in tidy(logs)], left=8)) + "\n"


def _grid_markdown(logs: Sequence[Log]) -> str:
    return "\n".join(line for scope, table in _tables(_cells(logs)).items() for line in _grid_table(scope, table))


LAYOUTS: dict[str, tuple[Callable[[Sequence[Log]], list[dict[str, Any]]], Callable[[Sequence[Log]], str]]] = {
    "grid": (grid, _grid_markdown),  # layout: (rows, Markdown)
    "tidy": (tidy, _tidy_markdown),
}


def render(logs: Iterable[Log], layout: str = "grid", format: str = "md") -> str:
    """The table as text that ends in a newline. Raises UserError for no logs, an unknown layout or format."""
    logs = list(logs)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if not logs:
        raise UserError(
            "there are no results to show", "make some with `purebench run`, or name the folder that `--out` wrote"
        )
    rows, markdown = LAYOUTS[layout]
    if format == "md":
        return markdown(logs)
    if format == "json":
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows(logs)) + "\n]\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(logs))
    return text.getvalue()
