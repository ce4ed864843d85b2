"""From records to tables: pure functions of the logs of cells, no torch.

`tidy` and `grid` give rows (dicts of COLUMNS); `render` writes them as Markdown, CSV or JSON. A layout is an entry of
LAYOUTS. What is grouped, ordered and counted is a DataFrame with one row per cell (`_cells`); numbers are `metrics`'.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from pandas import DataFrame

from purebench.errors import UserError, unknown
from purebench.plan import given, measures
from purebench.plan.measures import Asked
from purebench.records import frame
from purebench.records import store as records
from purebench.records.store import Log, Record, judged
from purebench.report import coded, gradchecks, logged, markdown, metrics, protocols
from purebench.report.metrics import Value
from purebench.spec import show, threat

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
LISTED = 6  # names of a footnote, behind which it says how many more there are
SCOPE = ["dataset", "subset", "classifier", "score", "threat"]  # one table each
# The order of attack columns: controls and weak attacks, then a paper's own attacks by name, then AutoAttack.
FIRST = ("null", "noise", "transfer-pgd", "transfer", "bpda-eot")
LAST = (
    "apgd-ce", "apgd-dlr", "apgd-margin", "apgd-targeted",
    "autoattack-standard", "autoattack-plus", "autoattack-rand", "autoattack-rand-fix",
)  # fmt: skip
# Sorts attack columns. By length first, so that a plain name stands before the ones with parameters; another gradient before exact.
RANK = ["place", "name", "length", "attack", "natural", "grad"]
ORDER = ["defended", "defense", *RANK, "seed", "cell"]  # sorts the cells of a table

Row = dict[str, Any]  # of COLUMNS: text, number or None


# ---- cells, and where they go --------------------------------------------------------------------


def _cells(logs: Iterable[Log], asked: Sequence[Asked] = ()) -> DataFrame:
    """One row per cell, ordered: the columns of `frame.described`, SCOPE, RANK and ORDER, and

    `log`, `numbers`: the records, and their metrics by name ({} where no image was judged), with those that are `asked`;
    `robust`, `clean`: two of these as numbers (missing where there is none);
    `defense`, `attack`: the names to be shown, `coup [steps=5]` where `coup` alone would mean several, and `median#3fa2c1` of one code or
    weights of several;
    `column`: the attack, with its gradient where that is not the attack's natural one;
    `bare`: whether nothing defends; `control`: whether the attack is none.
    """
    logs = frame.settled(logs)
    cells = frame.described(logs)
    shown = coded.names(logs)
    cells["log"] = logs
    cells["numbers"] = _numbers(logs, asked)
    for metric in ("robust", "clean"):
        values = [numbers[metric].value if metric in numbers else None for numbers in cells.numbers]
        cells[metric] = pandas.Series(values, dtype="float64")
    cells["name"] = cells.attack.map(metrics.name)
    cells["bare"] = cells.defense == "none"
    cells["defended"] = ~cells.bare
    cells["control"] = cells.attack.map(metrics.control)
    cells["natural"] = list(map(metrics.natural, cells.defense, cells.attack, cells.grad))
    gradient = (" @" + cells.grad).where(~cells.natural, "")
    for kind in coded.KINDS:
        cells[kind] = [names[kind] for names in shown]
    _tell_apart(cells, gradient)
    cells["column"] = cells.attack + gradient
    cells["place"] = cells.name.map(_place)
    cells["length"] = cells.attack.str.len()
    return cells.sort_values(SCOPE + ORDER, ignore_index=True)


def _numbers(logs: Sequence[Log], asked: Sequence[Asked]) -> list[dict[str, Value]]:
    """The metrics of each log, against its null control."""
    nulls = {_control(log): log for log in logs if metrics.name(log.cell["attack"]) == "null"}
    found = []
    for log in logs:
        null = nulls.get(_control(log))
        numbers = metrics.summary(log, null) | protocols.always(log)
        for one in asked:
            numbers |= protocols.values(one, log, null)
        found.append(numbers)
    return found


def _control(log: Log) -> tuple[str, ...]:
    """What a cell shares with its null control."""
    names = [str(log.cell[key]) for key in ("dataset", "subset", "classifier", "defense", "seed")]
    # A transfer onto a bare classifier names its source's score model, which its own null control does not have.
    score = log.cell["score"] if "score" in log.cell["parts"] else "-"
    # Of other code or weights a control says nothing.
    made = [coded.of(log.cell, kind) for kind in ("dataset", "classifier", "defense")]
    return *names, *made, score, json.dumps(records.values_of(log.cell, "defense"), sort_keys=True)


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
            # Parameters first, which a reader can choose; versions and weights only where no parameter differs.
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
    """`coup` becomes `coup [steps=5]`."""
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
        # Not sorted: rows come in the order in which `metrics.summary` names the metrics.
        self.groups = _by_metric(cells).groupby(["defense", "column", "metric"], sort=False)
        self.values: dict[tuple[str, str, str], Value] = {
            place: metrics.pool(list(values), difference=not measures.of_wilson(place[2]))
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

    def of_defense(self, defense: str, metric: str) -> Value | None:
        """A metric that is one number for a defense: of the attack whose cell has it on the most images; of equals the first."""
        values = [value for column in self.attacks[defense] if (value := self.value(defense, column, metric))]
        return max(values, key=lambda v: v.images, default=None)

    def verdict_image(self, defense: str, rule: str) -> tuple[Value, DataFrame] | None:
        """The image-wise AND over the attacks that have verdicts of this rule, per seed, then pooled; and their cells. None without two."""
        mine = self.whole[self.whole.defense == defense]
        cells = mine[[rule in metrics.rules(judged(log)) for log in mine.log]]
        if cells["column"].nunique() < 2:
            return None
        # A seed that not all of the attacks have would be an AND of fewer.
        whole = [mates for _, mates in cells.groupby("seed") if mates["column"].nunique() == cells["column"].nunique()]
        values = [metrics.verdict_image(list(mates["log"]), rule) for mates in whole]
        known = [value for value in values if value is not None]
        return (metrics.pool(known), pandas.concat(whole)) if known else None

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
    # Cells that fit several tables come last, when the scopes of the others are there to hold them: those that fit the most at the end.
    left = cells.assign(open=(cells[["score", "threat"]] == "-").sum(axis=1)).sort_values("open", kind="stable")
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
    """A single seed as a number, several as `0, 1, 2`."""
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
    """Value's fields as columns, one row per value."""
    # Not as numbers: pandas would make floats of the integers beside what is missing.
    return DataFrame(list(values), index=index, columns=Value._fields, dtype=object)


def _rows(table: DataFrame) -> list[Row]:
    """The COLUMNS of a frame as dicts of plain numbers, texts and None."""
    table = table[list(COLUMNS)]
    table[ROUNDED] = table[ROUNDED].map(lambda value: round(value, 6), na_action="ignore")
    return table.astype(object).where(table.notna(), None).to_dict("records")


def tidy(logs: Iterable[Log], asked: Sequence[Asked] = ()) -> list[Row]:
    """One row per cell and metric, with exactly COLUMNS; `asked`: metrics beside the usual ones.
    Values in [0, 1], `null_difference` in [-1, 1]; None where
    there is none. `nfe_*`: network calls per image, mean; `seconds`: of the whole cell. A cell without a judged image
    has no row."""
    cells = _cells(logs, asked)
    rows = _by_metric(cells)
    # The names that were recorded: `coup [steps=5]` is there for a grid, where others stand beside it.
    names = {part: [log.cell[part] for log in rows.log] for part in ("defense", "attack")}
    rows = rows.assign(**names).drop(columns=["images", "evals"])
    images = [row for table in _tables(cells) for row in _image_rows(table, asked)] if _image_rules(asked) else []
    return _rows(rows.join(_values(rows.of, rows.index))) + images


def _image_rules(asked: Iterable[Asked]) -> list[str]:
    """The rules of whose verdicts an image-wise AND is asked: `aa` of `aa_image`."""
    return [one.text.removesuffix("_image") for one in asked if one.text.endswith("_image")]


def _image_rows(table: _Table, asked: Sequence[Asked]) -> list[Row]:
    """A row of each defense for `aa_image`: its attack and its cell are those that the AND is over, joined by ` + `."""
    parts = []
    for rule in _image_rules(asked):
        for defense in table.attacks:
            if found := table.verdict_image(defense, rule):
                value, cells = found
                row = cells.groupby("defense").agg(**OVER_SEEDS).reset_index()
                free = {
                    "grad": "-",
                    "nfe_forward": None,
                    "nfe_backward": None,
                    "seconds": None,
                    "metric": f"{rule}_image",
                }
                parts.append(row.assign(attack=" + ".join(cells["column"].unique()), **free, **value._asdict()))
    names = {key: table.scope[key] for key in ("dataset", "classifier", "score", "threat")}
    return _rows(pandas.concat(parts).assign(**names)) if parts else []


def grid(logs: Iterable[Log], asked: Sequence[Asked] = ()) -> list[Row]:
    """The rows of `tidy` aggregated over seeds (`seed`: "0, 1, 2", `cell`: ids), and for each defense under an attack
    that is no control `attack` = strongest: metric `robust` of the strongest attack (`grad`, cost, images and `cell` are
    that attack's), `robust_image`, and, where every gradient attack was masked, the smallest share of `masked` images. `asked`: metrics
    beside the usual ones."""
    return [row for table in _tables(_cells(logs, asked)) for row in _grid_rows(table) + _image_rows(table, asked)]


def _grid_rows(table: _Table) -> list[Row]:
    """The rows of `grid` of one table."""
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
            cells = table.whole[(table.whole.defense == defense) & (table.whole.evals > 0)]
            mates = cells[cells.column.isin(metrics.contenders(table.attacks[defense]))]
            row = mates.groupby("defense").agg(**OVER_SEEDS).reset_index()
            # Made of several attacks: it has no gradient and no cost of its own.
            free = {"grad": "-", "nfe_forward": None, "nfe_backward": None, "seconds": None}
            parts.append(row.assign(attack=STRONGEST, metric="robust_image", **free, **value._asdict()))
    names = {key: table.scope[key] for key in ("dataset", "classifier", "score", "threat")}
    return _rows(pandas.concat(parts).assign(**names)) if parts else []


# ---- Markdown ------------------------------------------------------------------------------------


def _code(text: str, width: int = 100) -> str:
    """Inside backticks, on one line: more of them than there are in it, as CommonMark has it."""
    # Blanks within a line are a name's own.
    text = " ".join(line.strip() for line in text.splitlines())
    text = text if len(text) <= width else text[: width - 1] + "…"
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _show(value: Any) -> str:
    """As on the command line: `8/255`, `[0.4,0.6]`."""
    return "[" + ",".join(map(_show, value)) + "]" if isinstance(value, list) else show(value)


def _count(number: float) -> str:
    """`9999`, `10k`, `10M`: short, since calls are compared by their order of magnitude."""
    if number < 10_000:
        return f"{number:.0f}"
    if number < 10_000_000:
        return f"{number / 1000:.0f}k"
    return f"{number / 1e6:.0f}M"


def _percent(value: Value | None) -> str:
    """`48.8 ±4.3`: percent, and the distance to the farther end of the interval (it is not symmetric near 0 and 100)."""
    if value is None:
        return MISSING
    percent = f"{100 * value.value:.1f}"
    if value.low is None or value.high is None:
        return percent
    return f"{percent} ±{100 * max(value.high - value.value, value.value - value.low):.1f}"


def _word(value: Value | None, metric: str) -> str:
    """As `_percent`; of what is no share in its own unit, to three digits."""
    if value is None or metric.partition(":")[0] not in measures.RAW:
        return _percent(value)
    half = (
        ""
        if value.low is None or value.high is None
        else f" ±{max(value.high - value.value, value.value - value.low):.2g}"
    )
    return f"{value.value:.3g}{half}"


def _time(seconds: float) -> str:
    """`99 s`, `99 min`, `1.7 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _header(column: str) -> str:
    """`transfer:from=(reverse-sde)` is short as `from reverse-sde`."""
    # Only where the source is all that it says: with another parameter, or one within another, the short form would be ambiguous.
    source = re.fullmatch(r"transfer:from=\(([^(,]*)\)", column)
    return f"from {source[1]}" if source else column


@dataclass(frozen=True)
class Headline:
    """A defense in one table: its accuracy on `clean` images and under the `strongest` attack, by its column in `attack`;
    `calls`: network forwards and backwards per image of its costliest attack, by its column in `costliest`; `masked`: every gradient attack
    was, so that the strongest is no evidence; `log`: one of its cells. None, or empty, where nothing was measured."""

    defense: str
    clean: Value | None
    strongest: Value | None
    attack: str
    calls: tuple[float, float] | None
    costliest: str
    masked: bool
    log: Log


@dataclass(frozen=True)
class Printed:
    """One table of the grid as words that no format has touched yet: what each writes is the same. `bold`: places (row, column);
    `notes`, `warnings`: one line each, with code in backticks; `headlines`: what the rows are about, in their order."""

    title: str
    models: str
    header: list[str]
    rows: list[list[str]]
    bold: set[tuple[int, int]]
    notes: list[str]
    warnings: list[str]
    headlines: list[Headline]


def printed(logs: Iterable[Log], asked: Sequence[Asked] = ()) -> list[Printed]:
    """The tables of the grid, one for each scope; `asked`: metrics that get a column of their own."""
    return [_printed(table, asked) for table in _tables(_cells(logs, asked))]


def named(logs: Iterable[Log]) -> list[tuple[Log, str, str]]:
    """Each cell once, in the tables' order: its log, and its defense and attack under the names that the tables print."""
    cells = _cells(logs)
    return [(of.log, of.defense, _header(of.column)) for of in cells.itertuples()]


@dataclass(frozen=True)
class Measured:
    """What stands in one place of the grid: its `logs`, one per seed, those too that do not count since others have more images; the
    `numbers` over the seeds. `headline`: of the strongest attack, whose log is the first; behind it those of all that it was chosen
    from. `masked`: every gradient attack of the place was."""

    logs: tuple[Log, ...]
    numbers: Mapping[str, Value]
    headline: bool
    masked: bool


def measured(logs: Iterable[Log], asked: Sequence[Asked] = ()) -> Iterator[Measured]:
    """The places of the grid's tables, and the headline of each defense that was attacked; `asked`: metrics beside the usual ones."""
    for table in _tables(_cells(logs, asked)):
        numbers: dict[tuple[str, str], dict[str, Value]] = defaultdict(dict)
        for (defense, column, metric), value in table.values.items():
            numbers[defense, column][metric] = value
        for (defense, column), mates in table.cells.groupby(["defense", "column"], sort=False):
            whole = {column: table.attacks[defense][column]}
            blind = metrics.all_masked(whole) is not None
            yield Measured(tuple(mates["log"]), numbers[defense, column], False, blind)
        for defense, best in table.best.items():
            headline = table.strongest(defense)
            if best and headline:
                real = table.cells[(table.cells.defense == defense) & ~table.cells.control]
                chosen_from = (*table.attacks[defense][best.attack], *real["log"])
                blind = metrics.all_masked(table.attacks[defense]) is not None
                yield Measured(chosen_from, {"robust": headline}, True, blind)


def _own(table: _Table, asked: Sequence[Asked]) -> dict[str, list[str]]:
    """By attack column the metrics that stand beside its `robust`: verdicts, in-loop counts, and what is asked; only where it has any."""
    found: dict[str, list[str]] = {}
    texts = [one.text for one in asked if not one.of_defense]
    for _, column, metric in table.values:
        mine = found.setdefault(column, [])
        if metric not in mine and (metric in _rules(table) or measures.ANY.fullmatch(metric) or metric in texts):
            mine.append(metric)
    return found


def _rules(table: _Table) -> set[str]:
    return {rule for log in table.cells.log for rule in metrics.rules(judged(log))}


def _printed(table: _Table, asked: Sequence[Asked]) -> Printed:
    """One table and its footnotes in words."""
    cells = table.cells
    attacks = list(cells.sort_values(RANK)["column"].unique())
    own = _own(table, asked)
    of_defense = [one.text for one in asked if one.of_defense and one.text != "clean"]
    images = _image_rules(asked)
    header = ["defense", "clean", *of_defense]
    for column in attacks:
        header += [_header(column), *(f"{_header(column)} ({metric})" for metric in own.get(column, ()))]
    header += [STRONGEST, "per image", *(f"{rule}_image" for rule in images), "NFE/image", "time"]

    rows, bold = [], set()
    headlines = _headlines(table)
    for i, headline in enumerate(headlines):
        defense = headline.defense
        best, mine = table.best[defense], cells[cells.defense == defense]
        row = [defense, _percent(headline.clean)]
        all_of = headline.clean.images if headline.clean else 0
        row += [_word(of := table.of_defense(defense, metric), metric) + _fewer(of, all_of) for metric in of_defense]
        for column in attacks:
            if best and column == best.attack:
                bold.add((i, len(row)))
            robust = table.value(defense, column, "robust")
            row += [_percent(robust)]
            for metric in own.get(column, ()):
                value = table.value(defense, column, metric)
                row += [_word(value, metric) + _fewer(value, robust.images if robust else 0)]
        each = table.per_image(defense)
        row += [_percent(headline.strongest) + _marks(table, defense), _percent(each) + _fewer(each, all_of)]
        for rule in images:
            value, among = table.verdict_image(defense, rule) or (None, mine)
            row += [_percent(value) + _fewer(value, among.images.max())]
        row += ["+".join(map(_count, headline.calls)) if headline.calls else MISSING, _time(mine.seconds.sum())]
        rows.append(row)

    dataset, _, classifier, score, threat = table.scope.values()
    title = f"{dataset}, {threat}" if threat != "-" else dataset
    models = f"Classifier {_code(classifier)}" + (f", score model {_code(score)}." if score != "-" else ".")
    notes = _notes(table) + list(_about(table, asked))
    return Printed(title, models, header, rows, bold, notes, list(_warnings(table)), headlines)


def _headlines(table: _Table) -> list[Headline]:
    """One for each defense. The bare classifier leads, as what the others are to be measured by; a defense without an attack
    comes last."""
    found = []
    for defense, attacks in table.attacks.items():
        best, mine = table.best[defense], table.cells[table.cells.defense == defense]
        calls = mine[["nfe_forward", "nfe_backward"]].dropna()
        most = calls.sum(axis=1).idxmax() if len(calls) else None
        found.append(
            Headline(
                defense,
                table.clean(defense),
                table.strongest(defense),
                _header(best.attack) if best else "",
                tuple(calls.loc[most]) if len(calls) else None,
                _header(mine.column[most]) if len(calls) else "",
                metrics.all_masked(attacks) is not None,
                mine.log.iloc[0],
            )
        )
    return sorted(found, key=lambda h: (h.defense != "none", -(h.strongest.value if h.strongest else -1.0), h.defense))


def _grid_table(table: Printed) -> list[str]:
    """One Markdown table and its footnotes."""
    rows = [
        [f"**{word}**" if (i, j) in table.bold else markdown.escape(word) for j, word in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    notes = table.notes + [f"**Warning:** {text}" for text in table.warnings]
    words = markdown.table(list(map(markdown.escape, table.header)), rows)
    return [
        f"### {markdown.escape(table.title)}",
        "",
        table.models,
        "",
        *words,
        "",
        *(f"- {markdown.prose(note)}" for note in notes),
        "",
    ]


def _fewer(value: Value | None, images: int) -> str:
    """Behind a number that stands on fewer images than what is beside it: on how many."""
    return f" (n = {value.images})" if value is not None and value.images < images else ""


def _marks(table: _Table, defense: str) -> str:
    """Behind a headline: how many images it stands on, where others stand on more, and the mark of a defense whose every
    gradient attack was masked."""
    best, value = table.best[defense], table.strongest(defense)
    images = f" (n = {value.images})" if best and best.instead_of and value else ""
    return images + (f" {MARK}" if metrics.all_masked(table.attacks[defense]) else "")


def _gaps(table: _Table) -> Iterator[str]:
    """A line for each headline that stands on fewer images than other attacks, and for each that may not be the
    strongest."""
    for defense, best in table.best.items():
        if best is None:
            continue
        strongest = table.strongest(defense)
        if best.instead_of and best.difference and strongest:
            change, low, high = (100 * (v or 0.0) for v in best.difference[:3])
            yield (
                f"{defense}: strongest is {_header(best.attack)}, on {strongest.images} images: on the "
                f"{best.difference.images} that it shares with {_header(best.instead_of)} it is {-change:.1f} points lower "
                f"(95 %: {-high:.1f} to {-low:.1f})."
            )
        for attack in best.unsure:
            yield (
                f"{defense}: {_header(attack)} is stronger than {_header(best.instead_of or best.attack)} on the images "
                "that both have, which are easier than the others; run it on all."
            )


def _except(cells: DataFrame, facts: Iterable[Any], spell: Callable[[Any], str] = str) -> str:
    """`500 (100: autoattack-rand; 37: coup under pgd-eot)`: the commonest fact about these cells, and for the others the
    columns, defenses or single cells that they hold for."""
    places = list(zip(cells.column.map(_header), cells.defense, facts, strict=True))
    counts = Counter(fact for *_, fact in places)
    # Of equally common facts the larger, so that the text does not depend on the order of the cells.
    usual = max(counts, key=lambda fact: (counts[fact], fact))
    exceptions = []
    for fact in sorted(set(counts) - {usual}):
        here = {(column, defense) for column, defense, other in places if other == fact}
        elsewhere = {(column, defense) for column, defense, other in places if other != fact}
        names = []
        # Whole columns, then whole defenses: what remains must be named cell by cell.
        for axis in (0, 1):
            whole = {place[axis] for place in here} - {place[axis] for place in elsewhere}
            names += sorted(whole)
            here = {place for place in here if place[axis] not in whole}
        names += [f"{defense} under {column}" for column, defense in sorted(here)]
        exceptions.append(f"{spell(fact)}: {_list(names)}")
    return spell(usual) + (f" ({'; '.join(exceptions)})" if exceptions else "")


def _list(names: Iterable[str], separator: str = ", ") -> str:
    """The first LISTED names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return separator.join(names[:LISTED]) + more


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
        # A bare classifier has one gradient, which says nothing of how a purifier's was taken.
        columns = mates.column[mates.defended].map(_header).unique()
        if len(columns):
            grads.append(f"{grad}: {_list(columns)}")
    if grads:
        notes += [f"Gradient: {'; '.join(grads)}.", *gradchecks.quoted(cells.log)]
    if any(metric == "aa" for *_, metric in table.values):
        notes.append(
            "(aa): AutoAttack's verdict, where one lucky miss breaks an image; beside it, its images judged afresh, where those "
            "that it did not break are clean: an upper bound."
        )
    notes += _verdicts(table)
    notes.append("NFE/image: network forwards + backwards of the costliest attack; time: all attacks of the row.")
    return notes + _parameters(cells.sort_values("defense", kind="stable"), "defense") + _parameters(cells, "attack")


def _verdicts(table: _Table) -> Iterator[str]:
    """What the verdicts and in-loop counts of this table are, but for AutoAttack's, which is said before."""
    rules = sorted(_rules(table) - {"aa"})
    if "sticky" in rules:
        yield (
            "(sticky): the attack's verdict: an image is broken for good once the fresh purifications that it asks of an iterate say so; "
            "the luck of every evaluation counts. Beside it, its images judged afresh."
        )
    for rule in rules:
        if rule != "sticky":
            yield f"({rule}): the attack's own verdict; beside it, its images judged afresh."
    counts = sorted({metric for *_, metric in table.values if measures.ANY.fullmatch(metric)})
    if counts:
        yield (
            f"({', '.join(counts)}): right on all of so many draws at every iterate; beside it, "
            "its images judged afresh."
        )


def _about(table: _Table, asked: Sequence[Asked]) -> Iterator[str]:
    """What the metrics that were asked for are, where their names do not say it."""
    words = {one.word for one in asked}
    for one in asked:
        if one.word in ("certified", "radius"):
            of = {**measures.OPTIONS, **one.options}
            chosen = of["n0"] or "a tenth of the draws, at most 100"
            yield (
                f"{one.text}: proved of the vote of infinitely many purifications, in L2 on [0, 1], from the clean draws of the control: "
                f"bound {of['bound']}, n0 = {chosen}, alpha = {of['alpha']:g}; abstention is wrong."
            )
    if any(one.text.endswith("_image") for one in asked):
        yield "aa_image (or of another rule): right by the verdicts of all attacks of the row that have one, image by image."
    if "seconds" in words:
        paces = [
            (defense, pace)
            for defense, log in zip(table.cells.defense, table.cells.log, strict=True)
            if (pace := logged.pace(log))
        ]
        where = _list(dict.fromkeys(f"{defense}: {pace.device}, {pace.rows} rows" for defense, pace in paces), "; ")
        yield f"seconds: of one purification and classification, median over batches but the first; {where}."
    if words & {"detection", "detection_purified", "detected", "clean_detected"}:
        yield (
            "detection: AUROC of the norm of sigma times the score, attacked against clean images; detected: the share above the bound, "
            "clean_detected: its false alarms."
        )
    if words & set(measures.MOVED):
        yield (
            "moved: mean distance on [0, 1], over draws: of the purified clean image from the clean one (clean), of the purified attacked "
            "one from the attacked one (input) and from the clean one (adversarial)."
        )
    if "ball_used" in words:
        yield "ball_used: the perturbation's norm over the radius."
    if any(one.text.startswith("null_difference") for one in asked):
        yield "null_difference: minus the null control under the same metric, paired; a verdict minus the control's mean."


def _warnings(table: _Table) -> Iterator[str]:
    """What makes a number of this table weaker than it looks: what happened, and what to do."""
    yield from _few(table)
    yield from _suspicious(table)
    names = (
        name for log in table.cells.log for record in (log.cell, *log.runs) for name in record.get("stand_in") or ()
    )
    if stand_ins := sorted(set(names)):
        yield f"not paper-comparable, for what stands in: {'; '.join(stand_ins)}."
    yield from _not_finite(table.cells)
    yield from _masked(table)
    yield from _blind(table)
    yield from _weak_images(table.cells)
    yield from _incomplete(table)
    yield from _doubtful_networks(table.cells)
    yield from _of_rows(table.cells)
    yield from _without_images(table.cells)


def _few(table: _Table) -> Iterator[str]:
    """So few images that chance alone makes differences."""
    counted = table.whole.images[table.whole.evals > 0]
    if len(counted) and (few := counted.min()) < 100:
        # The difference of two shares near 1/2, where chance is largest: a warning that is too cautious flatters nobody.
        gap = 100 * metrics.Z * (0.5 / few) ** 0.5
        yield f"{few} images: a difference under about {gap:.0f} points is chance; take 500 for a claim (`--images 500`)."


def doubts(logs: Iterable[Log], *, paired: bool = False) -> list[str]:
    """What makes a number of these records weaker than it looks, in whatever layout it is printed; each said once. paired: whether what is
    printed is differences on the same images, whose chance is smaller than that of two numbers side by side, and printed with them."""
    logs, found = list(logs), dict[str, None]()
    for table in _tables(_cells(logs)) if logs else ():
        cells = table.cells
        for warnings in (
            () if paired else _few(table),
            _suspicious(table),
            _not_finite(cells),
            _masked(table),
            _weak_images(cells),
            _doubtful_networks(cells),
        ):
            found |= dict.fromkeys(warnings)
    return list(found)


def _suspicious(table: _Table) -> Iterator[str]:
    """Numbers that a sound evaluation would not give, and attacks that are missing from it."""
    done = table.cells[table.cells.evals > 0]
    attacked = done[~done.control]
    lucky = attacked[attacked.robust > attacked.clean]
    if len(lucky):
        yield f"robust above clean: {_places(lucky)}; the attack is broken or its gradients are masked."
    # To the bit: clean and control are judged on the same draws.
    odd = done[(done.name == "null") & done.clean.notna() & (done.clean != done.robust)]
    if len(odd):
        yield f"the null control differs from clean: {_places(odd)}; the records are damaged or the judge is not paired."
    once = done[(done.evals == 1) & done.defended]
    if len(once):
        yield f"one evaluation of each image, so luck counts if the defense is random: {_places(once)} (`--evals 10`)."
    attacked = attacked[attacked.defended]
    # A transfer has the gradient of its source: it says nothing of what follows the defense's own.
    exact = attacked.defense[(attacked.grad == "exact") & (attacked.name != "transfer")]
    inexact = set(attacked.defense) - set(exact)
    if inexact:
        names = (defense for defense in table.attacks if defense in inexact)
        yield f"no attack with the exact gradient on {_list(names)}: robustness may be overstated."


def _incomplete(table: _Table) -> Iterator[str]:
    """Seeds, images and cells of which the same run would make more."""
    cells = table.cells
    if len(table.partial):
        short = [f"{_places(table.partial.loc[[i]])}, seed {seed}" for i, seed in table.partial.seed.items()]
        yield f"left out of the mean over seeds, which have more images: {_list(short)}; the same run goes on with it."
    if missing := _tally(cells, cells.lost):
        yield f"missing, since the attack made no image: {missing}; the same run tries them again."
    counts = [metrics.extent(log) for log in cells.log]
    gaps = [
        len(log.images) > 0 and have + lost < needed
        for log, (have, needed, lost) in zip(cells.log, counts, strict=True)
    ]
    if any(gaps):
        have, needed = ([count[i] for count, gap in zip(counts, gaps, strict=True) if gap] for i in (0, 1))
        yield f"unfinished: {_tally(cells[gaps], have, needed)}; the same run goes on with it."


def _doubtful_networks(cells: DataFrame) -> Iterator[str]:
    """Defenses whose networks cannot be what a user means, whatever is measured on them; and copies of a cell that differ."""
    for i, log in cells.log.items():
        if log.rivals:
            yield (
                f"copies of one cell answer otherwise: {_places(cells.loc[[i]])} in {_list(f'`{path}`' for path in log.rivals)}; "
                f"`{log.folder}` counts, which has the most images, or of equals the newest."
            )
    chance = cells.defense[[metrics.at_chance(metrics.judged(log)) for log in cells.log]].unique()
    if len(chance):
        yield f"clean accuracy cannot be told from guessing: {_list(chance)}; do network, labels and preprocessing belong together?"
    for note, why in metrics.NOTES.items():
        noted = [any(note in line.get("notes", ()) for line in log.images) for log in cells.log]
        if any(noted):
            yield f"{_list(cells.defense[noted].unique())}: {why}."


def _of_rows(cells: DataFrame) -> Iterator[str]:
    """Cells that mix images of different numbers of rows."""
    for i, log in cells.log.items():
        fewer = [line["rows"] for line in log.images if "rows" in line]
        if fewer:
            yield (
                f"mixed rows: {_places(cells.loc[[i]])}: {len(fewer)} of {len(log.images)} images were computed with "
                f"{', '.join(map(str, sorted(set(fewer))))} rows in place of the run's, which ran out of memory; their last bits are "
                "those of another number of rows, and sign attacks amplify them."
            )


def _without_images(cells: DataFrame) -> Iterator[str]:
    """Cells that failed, and cells that no run has come to."""
    for i, why in cells.failed.dropna().items():
        yield f"failed: {_places(cells.loc[[i]])}: {_code(why)}"
    empty = cells[(cells.images + cells.lost == 0) & cells.failed.isna()]
    if len(empty):
        yield f"not judged yet: {_places(empty)}."


def _tally(cells: DataFrame, counts: Iterable[int], totals: Iterable[int] | None = None) -> str:
    """`pgd-eot on coup: 3 of 16 images; bpda-eot on coup: 1 of 16`: of the cells that have any; empty if none has. `totals`: of how many;
    left out: of the images that there are."""
    totals = cells.images + cells.lost if totals is None else totals
    counted = [(cell, n, total) for cell, n, total in zip(cells.itertuples(), counts, totals, strict=True) if n]
    texts = [f"{_header(cell.column)} on {cell.defense}: {n} of {total}" for cell, n, total in counted]
    texts[:1] = [f"{first} images" for first in texts[:1]]
    return _list(texts, "; ")


def _not_finite(cells: DataFrame) -> Iterator[str]:
    """What of a defense was not finite, and where: purifications, which count as wrong, and gradients, which stop an
    attack."""
    for field, what in (("adversarial", "attacked"), ("clean", "clean")):
        counts = [sum(-1 in line[field] for line in metrics.judged(log)) for log in cells.log]
        if not any(counts):
            continue
        # Only of cells that have such an answer: a line's `failed` may be about something else.
        lines = [line for log, n in zip(cells.log, counts, strict=True) if n for line in metrics.judged(log)]
        steps = ((line.get("not_finite") or {}).get(field) or line.get("failed") for line in lines)
        reasons = Counter(filter(None, steps))
        why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
        yield f"purifications of {what} images that are not finite count as wrong: {_tally(cells, counts)}{why}."
    counts = [sum(map(_stopped_too_early, metrics.judged(log))) for log in cells.log]
    if any(counts):
        yield (
            f"gradients that were not finite stopped the attack (AutoAttack takes them for zero) on images that it had not "
            f"broken: {_tally(cells, counts)}; robustness may be overstated."
        )


def _stopped_too_early(line: Record) -> bool:
    """Whether a gradient was not finite, and some draw of the image is still right."""
    return (line.get("gradients") or {}).get("not_finite", 0) > 0 and line["label"] in line["adversarial"]


def _masked(table: _Table) -> Iterator[str]:
    """Attacks whose gradient vanished."""
    shares = (numbers.get("masked") for numbers in table.cells.numbers)
    counts = [round(s.value * s.images) if s and s.value >= metrics.MASKED else 0 for s in shares]
    if any(counts):
        yield (
            "masked, zero gradients (or not finite) wherever an image was still classified rightly: "
            f"{_tally(table.cells, counts)}; such an attack proves little: try another gradient (`bpda-eot`), "
            "another loss (`loss=margin`) or a transfer."
        )


def _weak_images(cells: DataFrame) -> Iterator[str]:
    """Images that somebody brought, and that do not use what the threat model allows: whoever made them had another one in mind."""
    for i, log in cells.log.items():
        lines = metrics.judged(log)
        if cells.at[i, "name"] != "given" or not lines:
            continue
        limit, what = threat(log.cell["threat"]), _places(cells.loc[[i]])
        farthest = max(line[limit.norm.lower()] for line in lines)
        if farthest < given.SHORT * limit.eps:
            yield f"{what}: no image is farther than {farthest:.3g} from its clean one, and {limit} was allowed; a smaller radius?"
        elif same := sum(line["linf"] == 0 for line in lines):
            yield f"{what}: {same} of {len(lines)} images are the clean ones, on which nothing was attacked."


def _blind(table: _Table) -> Iterator[str]:
    """Defenses whose headline is marked."""
    if blind := [defense for defense, attacks in table.attacks.items() if metrics.all_masked(attacks)]:
        yield f"{MARK} every gradient attack on {_list(blind)} was masked: the headline is no evidence of robustness."


# ---- layouts and formats -------------------------------------------------------------------------


def _tidy_markdown(logs: Sequence[Log], asked: Sequence[Asked] = ()) -> str:
    """`tidy` as one Markdown table, without notes."""

    def word(value: str | float | None) -> str:
        if value is None:
            return MISSING
        return f"{value:g}" if isinstance(value, float) else markdown.escape(str(value))

    rows = [[word(row[key]) for key in COLUMNS] for row in tidy(logs, asked)]
    return "\n".join(markdown.table(COLUMNS, rows, left=8)) + "\n"


def _grid_markdown(logs: Sequence[Log], asked: Sequence[Asked] = ()) -> str:
    """A Markdown table with its notes for each scope."""
    if any(one.word == "sticky_curve" for one in asked):
        raise UserError(
            "a curve has a row for each evaluation, and a grid none",
            "`--layout tidy`, or one point: `--metric sticky@20`",
        )
    return "\n".join(line for table in printed(logs, asked) for line in _grid_table(table))


# Name -> (its rows, its Markdown).
LAYOUTS: dict[
    str, tuple[Callable[[Sequence[Log], Sequence[Asked]], list[Row]], Callable[[Sequence[Log], Sequence[Asked]], str]]
] = {
    "grid": (grid, _grid_markdown),
    "tidy": (tidy, _tidy_markdown),
}


def render(logs: Iterable[Log], layout: str = "grid", format: str = "md", asked: Sequence[Asked] = ()) -> str:
    """The table as text that ends in a newline. Raises UserError for no logs, an unknown layout or format;
    `asked`: metrics beside the usual ones (`measures.read`)."""
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
        return markdown(logs, asked)
    if format == "json":
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows(logs, asked)) + "\n]\n"
    return DataFrame(rows(logs, asked), columns=list(COLUMNS), dtype=object).to_csv(index=False, lineterminator="\n")
