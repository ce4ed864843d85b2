"""From records to tables: pure functions of the logs of cells, no torch.

`tidy` and `grid` give rows (dicts of COLUMNS); `render` writes them as Markdown, CSV or JSON. A layout is an entry of
LAYOUTS. What is grouped, ordered and counted is a DataFrame with one row per cell (`_cells`); numbers are `metrics`'.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas
from pandas import DataFrame

from purebench.errors import UserError, unknown
from purebench.records import frame
from purebench.records import store as records
from purebench.records.store import Log, Record
from purebench.report import metrics
from purebench.report.metrics import Value
from purebench.spec import show

COLUMNS = (
    "dataset", "classifier", "score", "defense", "attack", "threat", "grad", "metric", "value", "low", "high",
    "images", "evals", "seed", "nfe_forward", "nfe_backward", "seconds", "cell",
)  # fmt: skip
ROUNDED = ["value", "low", "high", "nfe_forward", "nfe_backward", "seconds"]  # to six digits
FORMATS = ("md", "csv", "json")
MISSING = "–"
LEADS = " of those on the most images, or one on fewer that is lower beyond chance on the images that both have"
MARK = "†"  # behind the headline of a defense whose every gradient attack was masked
STRONGEST = "strongest"
SCOPE = ["dataset", "subset", "classifier", "score", "threat"]  # one table each
FIRST = ("null", "noise", "transfer-pgd", "transfer", "bpda-eot")  # the order of attack columns: controls, weak, ..
LAST = ("apgd-ce", "apgd-dlr", "autoattack-standard", "autoattack-rand")  # .. own attacks by name, then these
RANK = [
    "place",
    "name",
    "length",
    "attack",
    "natural",
    "grad",
]  # sorts attack columns; another gradient is before exact
ORDER = ["defended", "defense", *RANK, "seed", "cell"]  # sorts the cells of a table

Row = dict[str, Any]  # of COLUMNS: text, number or None


# ---- cells, and where they go --------------------------------------------------------------------


def _cells(logs: Iterable[Log]) -> DataFrame:
    """One row per cell, ordered: the columns of `frame.described`, SCOPE, RANK and ORDER, and

    `log`, `numbers`: the records, and their metrics by name ({} where no image was judged);
    `robust`, `clean`: two of these as numbers (missing where there is none);
    `defense`, `attack`: the names to be shown, `coup [steps=5]` where `coup` alone would mean several;
    `column`: the attack, with its gradient where that is not the attack's natural one;
    `bare`: whether nothing defends; `control`: whether the attack is none.
    """
    logs = frame.settled(logs)
    cells = frame.described(logs)
    cells["log"] = logs
    cells["numbers"] = _numbers(logs)
    for metric in ("robust", "clean"):
        cells[metric] = [numbers[metric].value if metric in numbers else None for numbers in cells.numbers]
    cells[["robust", "clean"]] = cells[["robust", "clean"]].astype("float64")
    cells["name"] = cells.attack.map(metrics.name)
    cells["bare"] = cells.defense == "none"
    cells["control"] = cells.attack.map(metrics.control)
    # A gradient is named in the header only where it is not the one that the attack always has.
    usual = cells.name.map(lambda name: "bpda" if name == "bpda-eot" else "exact")
    cells["natural"] = cells.grad.isin(["-"]) | (cells.grad == usual) | cells.bare & cells.grad.isin(["exact", "bpda"])
    gradient = (" @" + cells.grad).where(~cells.natural, "")
    _tell_apart(cells, gradient)
    cells["column"] = cells.attack + gradient
    cells["place"] = cells.name.map(_place)
    cells["length"] = cells.attack.str.len()
    cells["defended"] = cells.defense != "none"
    return cells.sort_values(SCOPE + ORDER, ignore_index=True)


def _numbers(logs: Sequence[Log]) -> list[dict[str, Value]]:
    """The metrics of each log, against its null control."""
    # One null control serves every attack on a defense: the judge's draws are common to all.
    nulls = {_control(log): log for log in logs if metrics.name(log.cell["attack"]) == "null"}
    return [metrics.summary(log, nulls.get(_control(log))) for log in logs]


def _control(log: Log) -> tuple[str, ...]:
    """What a cell shares with its null control."""
    names = [str(log.cell[key]) for key in ("dataset", "subset", "classifier", "defense", "seed")]
    score = (
        log.cell["score"] if "score" in log.cell["parts"] else "-"
    )  # a transfer onto a bare classifier names its source's
    return *names, score, json.dumps(records.values_of(log.cell, "defense"), sort_keys=True)


def _place(name: str) -> int:
    """The place of an attack's name among the columns."""
    if name in FIRST:
        return FIRST.index(name)
    return len(FIRST) + (1 + LAST.index(name) if name in LAST else 0)


def _tell_apart(cells: DataFrame, gradient: pandas.Series) -> None:
    """Cells that would share a place in a table although they differ (other resolved parameters, versions, weights) get
    what differs added to their names: `coup [steps=5]`. Nothing is averaged but seeds."""
    made_of = [_made_of(log) for log in cells.log]
    places = [*(cells[key] for key in SCOPE), cells.defense, cells.attack + gradient, cells.seed]
    differ: dict[str, dict[str, set[str]]] = {"defense": {}, "attack": {}}
    for mates in cells.groupby(places).groups.values():
        if len(mates) > 1:
            distinct = DataFrame([made_of[i] for i in mates]).drop(columns="id").nunique(dropna=False)
            keys = list(distinct.index[distinct > 1])
            named = [key for key in keys if key.startswith(("defense.", "attack."))]
            # Parameters tell a reader more than versions; the id is the last resort, and never equal.
            for key in named or keys or ["id"]:
                owner = "attack" if key.startswith("attack.") or key in ("gradient", "source") else "defense"
                differ[owner].setdefault(cells.at[mates[0], owner], set()).add(key)
    for owner, names in differ.items():
        cells[owner] = [_with(name, names.get(name, ()), of) for name, of in zip(cells[owner], made_of, strict=True)]


def _made_of(log: Log) -> dict[str, str]:
    """Everything that a cell's numbers depend on beside its names, as text."""
    texts = {"gradient": log.cell["gradient"], "source": log.cell.get("source", ""), "id": log.id}
    for kind, part in records.parts(log.cell).items():
        texts |= {f"{kind}.{key}": _show(value) for key, value in part["values"].items()}
        texts |= {f"{key}.{kind}": str(part[key]) for key in ("version", "hash", "name") if part.get(key) is not None}
    return texts


def _with(name: str, keys: Iterable[str], made_of: Mapping[str, str]) -> str:
    """`coup` -> `coup [steps=5]`"""
    extra = [f"{key.partition('.')[2] or key}={made_of[key][:12]}" for key in sorted(keys) if key in made_of]
    return f"{name} [{', '.join(extra)}]" if extra else name


class _Table:
    """One table: its `scope`; its `cells` in order; by defense the logs of its `attacks` by column, and the strongest of
    these (`best`); and the metrics over the seeds (`value`). Of seeds that differ in their images, those on the most are
    the `whole` ones, and count; the others are `partial`."""

    def __init__(self, scope: Mapping[str, str], cells: DataFrame):
        self.scope, self.cells = scope, cells
        # A seed on fewer images than another of the same attack would weigh its few images as much as all of the other's.
        whole = cells.images == cells.groupby(["defense", "column"]).images.transform("max")
        self.whole, self.partial = cells[whole], cells[~whole & (cells.images > 0)]
        cells = self.whole
        self.attacks: dict[str, dict[str, list[Log]]] = {
            defense: {column: list(logs) for column, logs in mates.groupby("column", sort=False)["log"]}
            for defense, mates in cells.groupby("defense", sort=False)
        }
        self.best = {defense: metrics.headline(attacks) for defense, attacks in self.attacks.items()}
        self.groups = _by_metric(cells).groupby(["defense", "column", "metric"], sort=False)
        self.values: dict[tuple[str, str, str], Value] = {
            place: metrics.pool(list(values), difference=place[2] == "null_difference")
            for place, values in self.groups["of"]
        }

    def value(self, defense: str, column: str, metric: str) -> Value | None:
        """A metric of a defense under an attack, over the seeds."""
        return self.values.get((defense, column, metric))

    def strongest(self, defense: str) -> Value | None:
        """`robust` of the strongest attack."""
        best = self.best[defense]
        return self.value(defense, best.attack, "robust") if best else None

    def clean(self, defense: str) -> Value | None:
        """All cells of a defense judge the same clean images with the same draws: the one with most of them speaks."""
        values = [value for column in self.attacks[defense] if (value := self.value(defense, column, "clean"))]
        return max(values, key=lambda v: v.images, default=None)

    def per_image(self, defense: str) -> Value | None:
        """`robust_image`, per seed over all attacks, then pooled."""
        seeds: dict[int, list[Log]] = defaultdict(list)
        for logs in metrics.contenders(self.attacks[defense]).values():
            for log in logs:
                seeds[log.cell["seed"]].append(log)
        values = [value for logs in seeds.values() if (value := metrics.robust_image(logs))]
        return metrics.pool(values) if values else None


def _by_metric(cells: DataFrame) -> DataFrame:
    """One row per cell and metric: `metric`, its name, and `of`, its Value."""
    cells = cells.assign(metric=cells.numbers.map(list)).explode("metric", ignore_index=True).dropna(subset="metric")
    return cells.assign(of=[numbers[metric] for numbers, metric in zip(cells.numbers, cells.metric, strict=True)])


def _tables(cells: DataFrame) -> list[_Table]:
    """A cell that fits several tables is in all of them; only what fits none makes one."""
    scopes: list[dict[str, str]] = []
    # Those that name everything first: a control without a threat model then finds a table to go to.
    left = cells.assign(open=(cells[["score", "threat"]] == "-").any(axis=1)).sort_values("open", kind="stable")
    while len(left):
        scopes.append(dict(left.iloc[0][SCOPE]))
        left = left[~_fits(left, scopes[-1])]
    return [
        _Table(scope, cells[_fits(cells, scope)].sort_values(ORDER, ignore_index=True))
        for scope in sorted(scopes, key=lambda scope: tuple(scope.values()))
    ]


def _fits(cells: DataFrame, scope: Mapping[str, str]) -> pandas.Series:
    """Which cells belong in the table of this scope. What uses no threat model, or no score model, is in all: `-`."""
    same = cells[["dataset", "subset", "classifier"]].eq([scope[key] for key in SCOPE[:3]]).all(axis=1)
    return same & cells.score.isin(["-", scope["score"]]) & cells.threat.isin(["-", scope["threat"]])


# ---- rows ----------------------------------------------------------------------------------------


def _seeds(seeds: Iterable[int]) -> int | str:
    found = sorted(set(seeds))
    return found[0] if len(found) == 1 else _commas(found)


OVER_SEEDS = {  # column of a row -> of which column of the cells, and how, over its cells
    "attack": ("attack", "first"),
    "grad": ("grad", "first"),
    "seed": ("seed", _seeds),
    "nfe_forward": ("nfe_forward", "mean"),
    "nfe_backward": ("nfe_backward", "mean"),
    "seconds": ("seconds", "sum"),
    "cell": ("cell", " ".join),
}


def _values(values: Iterable[Value], index: pandas.Index) -> DataFrame:
    """Value's fields as columns; integers beside what is missing stay integers."""
    return DataFrame(list(values), index=index, columns=Value._fields, dtype=object)


def _rows(table: DataFrame) -> list[Row]:
    """The COLUMNS of a frame as dicts of plain numbers, texts and None."""
    table = table[list(COLUMNS)]
    table[ROUNDED] = table[ROUNDED].map(lambda value: round(value, 6), na_action="ignore")
    return table.astype(object).where(table.notna(), None).to_dict("records")


def tidy(logs: Iterable[Log]) -> list[Row]:
    """One row per cell and metric, with exactly COLUMNS. Values in [0, 1], `null_difference` in [-1, 1]; None where
    there is none. `nfe_*`: network calls per image, mean; `seconds`: of the whole cell. A cell without a judged image
    has no row."""
    rows = _by_metric(_cells(logs))
    names = {part: [log.cell[part] for log in rows.log] for part in ("defense", "attack")}
    rows = rows.assign(**names).drop(columns=["images", "evals"])
    return _rows(rows.join(_values(rows.of, rows.index)))


def grid(logs: Iterable[Log]) -> list[Row]:
    """The rows of `tidy` aggregated over seeds (`seed`: "0, 1, 2", `cell`: ids), and for each defense under an attack
    that is no control `attack` = strongest: metric `robust` of the strongest attack (`grad`, cost, images and `cell` are
    that attack's), `robust_image`, and, where every gradient attack was masked, the smallest share of `masked` images."""
    return [row for table in _tables(_cells(logs)) for row in _grid_rows(table)]


def _grid_rows(table: _Table) -> list[Row]:
    found = table.groups.agg(**OVER_SEEDS)
    found = found.join(_values(table.values.values(), found.index)).reset_index()
    parts = []
    for defense, rows in found.groupby("defense", sort=False):
        parts.append(rows)
        if best := table.best[defense]:
            strongest = rows[(rows.column == best.attack) & (rows.metric == "robust")].assign(attack=STRONGEST)
            parts.append(strongest)
            if share := metrics.all_masked(table.attacks[defense]):
                parts.append(strongest.assign(metric="masked", **share._asdict()))
        if value := table.per_image(defense):
            # Only attacks on the same images: a minimum over different ones is of nothing.
            columns = metrics.contenders(table.attacks[defense])
            mates = table.whole[
                (table.whole.defense == defense) & table.whole.column.isin(columns) & (table.whole.evals > 0)
            ]
            row = mates.groupby("defense").agg(**OVER_SEEDS).reset_index()
            free = {"grad": "-", "nfe_forward": None, "nfe_backward": None, "seconds": None}
            parts.append(row.assign(attack=STRONGEST, metric="robust_image", **free, **value._asdict()))
    names = {key: table.scope[key] for key in ("dataset", "classifier", "score", "threat")}
    return _rows(pandas.concat(parts).assign(**names)) if parts else []


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


def _grid_table(table: _Table) -> list[str]:
    """One Markdown table and its footnotes."""
    cells = table.cells
    attacks = list(cells.sort_values(RANK)["column"].unique())
    own = {column for _, column, metric in table.values if metric == "aa"}
    header = ["defense", "clean"]
    for column in attacks:
        title = _escape(_header(column))
        header += [title, f"{title} (aa)"] if column in own else [title]
    header += [STRONGEST, "per image", "NFE/image", "time"]

    strong = {defense: table.strongest(defense) for defense in table.attacks}
    rows = []
    for defense in sorted(strong, key=lambda d: (d != "none", -(v.value if (v := strong[d]) else -1.0), d)):
        best, mine = table.best[defense], cells[cells.defense == defense]
        row = [_escape(defense), _percent(table.clean(defense))]
        for column in attacks:
            text = _percent(table.value(defense, column, "robust"))
            row += [f"**{text}**" if best and column == best.attack else text]
            row += [_percent(table.value(defense, column, "aa"))] if column in own else []
        row += [_percent(strong[defense]) + _marks(table, defense), _percent(table.per_image(defense))]
        calls = mine[["nfe_forward", "nfe_backward"]].dropna()
        row += ["+".join(map(_count, calls.loc[calls.sum(axis=1).idxmax()])) if len(calls) else MISSING]
        row += [_time(mine.seconds.sum())]
        rows.append(row)

    dataset, _, classifier, score, threat = table.scope.values()
    title = f"### {dataset}, {threat}" if threat != "-" else f"### {dataset}"
    models = f"Classifier {_code(classifier)}" + (f", score model {_code(score)}." if score != "-" else ".")
    notes = _notes(table) + [f"**Warning:** {text}" for text in _warnings(table)]
    return [title, "", models, "", *_lines(header, rows), "", *(f"- {note}" for note in notes), ""]


def _marks(table: _Table, defense: str) -> str:
    """Behind a headline: how many images it stands on, where others stand on more, and the mark of a defense whose every
    gradient attack was masked."""
    best, value = table.best[defense], table.strongest(defense)
    images = f" (n = {value.images})" if best and best.instead_of and value else ""
    return images + (f" {MARK}" if metrics.all_masked(table.attacks[defense]) else "")


def _gaps(table: _Table) -> list[str]:
    """A line for each headline that stands on fewer images than other attacks, and for each that may not be the
    strongest."""
    notes = []
    for defense, best in table.best.items():
        if best is None:
            continue
        strongest = table.strongest(defense)
        if best.instead_of and best.difference and strongest:
            change, low, high = (100 * (v or 0.0) for v in best.difference[:3])
            notes.append(
                f"{defense}: strongest is {_header(best.attack)}, on {strongest.images} images: on the "
                f"{best.difference.images} that it shares with {_header(best.instead_of)} it is {-change:.1f} points lower "
                f"(95 %: {-high:.1f} to {-low:.1f})."
            )
        for attack in best.unsure:
            notes.append(
                f"{defense}: {_header(attack)} is stronger than {_header(best.instead_of or best.attack)} on the images "
                "that both have, which are easier than the others; run it on all."
            )
    return notes


def _except(cells: DataFrame, facts: Iterable[Any], spell: Callable[[Any], str] = str) -> str:
    """`500 (100: autoattack-rand; 37: coup under pgd-eot)`: the commonest fact about these cells, and for the others the
    columns, defenses or single cells that they hold for."""
    told = list(zip(cells.column.map(_header), cells.defense, facts, strict=True))
    counts = Counter(fact for *_, fact in told)
    usual = max(counts, key=lambda fact: (counts[fact], fact))
    others = []
    for fact in sorted(set(counts) - {usual}):
        left = {(column, defense) for column, defense, other in told if other == fact}
        rest = {(column, defense) for column, defense, other in told if other != fact}
        names = []
        for i in (0, 1):
            whole = {place[i] for place in left} - {place[i] for place in rest}
            names += sorted(whole)
            left = {place for place in left if place[i] not in whole}
        others.append(f"{spell(fact)}: {_list(names + [f'{d} under {c}' for c, d in sorted(left)])}")
    return spell(usual) + (f" ({'; '.join(others)})" if others else "")


def _list(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _commas(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _places(cells: DataFrame) -> str:
    """`pgd-eot on coup, diffpure; bpda-eot on coup`."""
    defenses = cells.groupby("column", sort=False).defense.unique()
    return "; ".join(f"{_header(column)} on {_list(names)}" for column, names in defenses.items())


def _parameters(cells: DataFrame, kind: str) -> list[str]:
    """The resolved parameters of the defenses or attacks, one note for all that share theirs; without those that are
    none."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, mates in cells.groupby(kind, sort=False):
        values = [records.values_of(log.cell, kind) for log in mates.log]
        texts = [" ".join(f"{key}={_show(v)}" for key, v in of.items() if v is not None) for of in values]
        if any(texts):
            names[_except(mates, texts, lambda text: _code(text, 160))].append(_header(name))
    return [f"{', '.join(shared)}: {text}" for text, shared in names.items()]


def _notes(table: _Table) -> list[str]:
    """The protocol, short: what a reader needs to believe or repeat the numbers."""
    cells = table.cells.sort_values(RANK)
    done, notes = cells[cells.evals > 0], []
    whole = table.whole.groupby(["defense", "column"]).seed.unique()
    seeds = {place: tuple(sorted(of)) for place, of in whole.items()}
    if len(done):
        several = max(map(len, seeds.values())) > 1
        each = _except(cells, [seeds[place] for place in zip(cells.defense, cells.column, strict=True)], _commas)
        fewer = (done.images < done.groupby("defense").images.transform("max")).any()
        notes += [
            "Accuracy in %: mean of single runs, ± the farther end of the 95 % Wilson interval (sample size: images).",
            f"Fresh evaluations per image: {_except(done, done.evals)}.",
            f"Images: {_except(done, done.images)}; subset {_code(table.scope['subset'])}.",
            f"{'Mean over seeds' if several else 'Seed'}: {each}; {len(cells)} cells.",
            f"strongest: the attack with the lowest mean (bold){LEADS if fewer else ''}. "
            "per image: the worst of them for each image, chosen on even draws, scored on odd.",
            *_gaps(table),
        ]
    grads = []
    for grad, mates in cells[cells.grad != "-"].groupby("grad", sort=False):
        if len(columns := mates[~mates.bare].column.map(_header).unique()):
            grads.append(f"{grad}: {_list(columns)}")
    if grads:
        notes.append(f"Gradient: {'; '.join(grads)}.")
    if any(metric == "aa" for *_, metric in table.values):
        notes.append(
            "(aa): AutoAttack's verdict, where one lucky miss breaks an image; beside it, its images judged afresh, where those "
            "that it did not break are clean: an upper bound."
        )
    notes.append("NFE/image: network forwards + backwards of the costliest attack; time: all attacks of the row.")
    return notes + _parameters(cells.sort_values("defense", kind="stable"), "defense") + _parameters(cells, "attack")


def _warnings(table: _Table) -> list[str]:
    """What makes a number of this table weaker than it looks: what happened, and what to do."""
    cells = table.cells
    done = cells[cells.evals > 0]
    found = []
    counted = table.whole[table.whole.evals > 0]
    if len(counted) and (few := counted.images.min()) < 100:
        gap = 100 * metrics.Z * (0.5 / few) ** 0.5
        found.append(
            f"{few} images: a difference under about {gap:.0f} points is chance; take 500 for a claim (`--images 500`)."
        )
    lucky = done[~done.control & (done.robust > done.clean)]
    if len(lucky):
        found.append(f"robust above clean: {_places(lucky)}; the attack is broken or its gradients are masked.")
    odd = done[(done.name == "null") & done.clean.notna() & (done.clean != done.robust)]
    if len(odd):
        found.append(
            f"the null control differs from clean: {_places(odd)}; the records are damaged or the judge is not paired."
        )
    once = done[(done.evals == 1) & ~done.bare]
    if len(once):
        found.append(
            f"one evaluation of each image, so luck counts if the defense is random: {_places(once)} (`--evals 10`)."
        )
    attacked = done[~done.control & done.defended]
    follows = (attacked.grad == "exact") & (attacked.name != "transfer")
    if len(inexact := set(attacked.defense) - set(attacked.defense[follows])):
        names = (defense for defense in table.attacks if defense in inexact)
        found.append(f"no attack with the exact gradient on {_list(names)}: robustness may be overstated.")
    said = (name for log in cells.log for record in (log.cell, *log.runs) for name in record.get("stand_in") or ())
    if stand_ins := sorted(set(said)):
        found.append(f"not paper-comparable, for what stands in: {'; '.join(stand_ins)}.")
    found += _not_finite(cells) + _masked(table)
    if len(table.partial):
        short = [f"{_places(table.partial.loc[[i]])}, seed {seed}" for i, seed in table.partial.seed.items()]
        found.append(
            f"left out of the mean over seeds, which have more images: {_list(short)}; the same run goes on with it."
        )
    if missing := _tally(cells, cells.lost):
        found.append(f"missing, since the attack made no image: {missing}; the same run tries them again.")
    unfinished = cells[(cells.images > 0) & (cells.images + cells.lost < cells.wanted.fillna(0))]
    if len(unfinished):
        counts = _tally(unfinished, unfinished.images, unfinished.wanted)
        found.append(f"unfinished: {counts}; the same run goes on with it.")
    chance = done.defense[[metrics.at_chance(metrics.judged(log)) for log in done.log]].unique()
    if len(chance):
        found.append(
            f"clean accuracy cannot be told from guessing: {_list(chance)}; do network, labels and preprocessing belong together?"
        )
    for note, why in metrics.NOTES.items():
        noted = [any(note in line.get("notes", ()) for line in log.images) for log in cells.log]
        if any(noted):
            found.append(f"{_list(cells.defense[noted].unique())}: {why}.")
    for i, why in cells.failed.dropna().items():
        found.append(f"failed: {_places(cells.loc[[i]])}: {_code(why)}")
    empty = cells[(cells.images + cells.lost == 0) & cells.failed.isna()]
    if len(empty):
        found.append(f"not judged yet: {_places(empty)}.")
    return found


def _tally(cells: DataFrame, counts: Iterable[int], totals: Iterable[int] | None = None) -> str:
    """`pgd-eot on coup: 3 of 16 images; bpda-eot on coup: 1 of 16`: of the cells that have any; empty if none has. `totals`: of how many;
    left out: of the images that there are."""
    totals = cells.images + cells.lost if totals is None else totals
    some = [(cell, n, total) for cell, n, total in zip(cells.itertuples(), counts, totals, strict=True) if n]
    said = [f"{_header(cell.column)} on {cell.defense}: {n} of {total}" for cell, n, total in some]
    said[:1] = [f"{first} images" for first in said[:1]]
    return "; ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")


def _not_finite(cells: DataFrame) -> list[str]:
    """What of a defense was not finite, and where: purifications, which count as wrong, and gradients, which stop an
    attack."""
    found = []
    for field, what in (("adversarial", "attacked"), ("clean", "clean")):
        counts = [sum(-1 in line[field] for line in metrics.judged(log)) for log in cells.log]
        reasons = Counter(
            where
            for log, n in zip(cells.log, counts, strict=True)
            for line in (metrics.judged(log) if n else ())
            if (where := (line.get("not_finite") or {}).get(field) or line.get("failed"))
        )
        if any(counts):
            why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
            found.append(
                f"purifications of {what} images that are not finite count as wrong: {_tally(cells, counts)}{why}."
            )
    counts = [sum(map(_stopped_too_early, metrics.judged(log))) for log in cells.log]
    if any(counts):
        found.append(
            f"gradients that were not finite stopped the attack (AutoAttack takes them for zero) on images that it had not "
            f"broken: {_tally(cells, counts)}; robustness may be overstated."
        )
    return found


def _stopped_too_early(line: Record) -> bool:
    """Whether a gradient was not finite, and some draw of the image is still right."""
    return (line.get("gradients") or {}).get("not_finite", 0) > 0 and line["label"] in line["adversarial"]


def _masked(table: _Table) -> list[str]:
    """Attacks whose gradient vanished, and defenses on which all of them did."""
    found = []
    shares = (numbers.get("masked") for numbers in table.cells.numbers)
    counts = [round(s.value * s.images) if s and s.value >= metrics.MASKED else 0 for s in shares]
    if any(counts):
        found.append(
            "masked, zero gradients (or not finite) wherever an image was still classified rightly: "
            f"{_tally(table.cells, counts)}; such an attack proves little: try another gradient (`bpda-eot`), "
            "another loss (`loss=margin`) or a transfer."
        )
    if blind := [defense for defense, attacks in table.attacks.items() if metrics.all_masked(attacks)]:
        found.append(
            f"{MARK} every gradient attack on {_list(blind)} was masked: the headline is no evidence of robustness."
        )
    return found


# ---- layouts and formats -------------------------------------------------------------------------


def _tidy_markdown(logs: Sequence[Log]) -> str:
    def word(value: Any) -> str:
        return MISSING if value is None else f"{value:g}" if isinstance(value, float) else _escape(str(value))

    return "\n".join(_lines(COLUMNS, [[word(row[key]) for key in COLUMNS] for row in tidy(logs)], left=8)) + "\n"


def _grid_markdown(logs: Sequence[Log]) -> str:
    return "\n".join(line for table in _tables(_cells(logs)) for line in _grid_table(table))


LAYOUTS: dict[str, tuple[Callable[[Sequence[Log]], list[Row]], Callable[[Sequence[Log]], str]]] = {
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
    return DataFrame(rows(logs), columns=list(COLUMNS), dtype=object).to_csv(index=False, lineterminator="\n")
