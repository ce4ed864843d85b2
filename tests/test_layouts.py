"""A paper's table: its file is read or refused by row, its cells are rows x columns, and its numbers are the records'."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from purebench.errors import UserError
from purebench.plan import grid, layouts, sheet
from purebench.plan.grid import Request
from purebench.records.store import Log
from purebench.report import papers

TABLES = grid.tables()
GOLDEN = os.environ.get("PUREBENCH_GOLDEN", "")
PAPERS = Path(GOLDEN).parent / "papers"
NUMBERS = ("standard", "standard_std", "robust", "robust_std", "avg", "accuracy", "seconds", "success", "natural")

BASE = """
title = "A table"
[cells]
dataset = "cifar10"
images = 100
classifier = "robustbench:id=Standard"
score = "score-sde"
attack = ["pgd-eot:steps=7", "apgd-ce"]
threat = "Linf:8/255"
[[column]]
title = "Defense"
text = "method"
[[column]]
title = "Clean"
number = "standard"
metric = "clean"
[[column]]
title = "Robust"
number = "robust"
metric = "robust"
over = "min"
best = "max"
[[row]]
method = "Quoted"
model = "robustbench:id=Carmon2019Unlabeled"
standard = 89.67
robust = 63.1
[[row]]
method = "COUP"
cells = { defense = "coup:t=0.1,steps=100" }
standard = 90.04
robust = [73.05, 0.4]
[[row]]
method = "DiffPure"
cells = { defense = "diffpure:t=0.05,steps=100" }
standard = 89.02
robust = 70.64
"""


def made(text=BASE):
    return layouts.of(tomllib.loads(text), "mine")


def flat(value):
    return [x for v in value for x in flat(v)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "A table"', 'titel = "A table"', "unknown key of the table `mine` `titel`"),
        ('method = "COUP"', 'methd = "COUP"', "row 2 of the table `mine`"),
        ("standard = 89.02", "standrad = 89.02", 'row 3 of the table `mine` ("DiffPure")'),
        ("robust = [73.05, 0.4]", "robust = [73.05, 0.4, 1]", "a mean and its std"),
        ('over = "min"', "", "column 3 of the table `mine` does not say `over`"),
        ('over = "min"', 'over = "least"', "`over` of column 3"),
        (
            'attack = ["pgd-eot:steps=7", "apgd-ce"]',
            'attack = "apgd-ce"',
            "`over` of column 3 of the table `mine` has no list",
        ),
        ('metric = "clean"', "metric = 3", "`metric = 3` of column 2"),
        ('text = "method"', "", "column 1 of the table `mine` prints nothing"),
        ("images = 100", "images = true", "`images = True` of `[cells]`"),
        ('method = "COUP"', 'method = "COUP"\npanel = "left"', "unknown panel of row 2"),
        ('method = "COUP"', 'method = "COUP"\nneeds = "spsa"', "`needs = 'spsa'`"),
    ],
)
def test_a_mistake_is_told_by_its_row(old, new, said):
    assert old in BASE
    with pytest.raises(UserError) as error:
        layouts.places(made(BASE.replace(old, new)))
    assert said in error.value.message


def test_a_row_that_stands_twice_is_refused():
    row = BASE[BASE.index('[[row]]\nmethod = "COUP"') : BASE.index('[[row]]\nmethod = "DiffPure"')]
    with pytest.raises(UserError, match="rows 2 and 4 of the table `mine` are the same"):
        made(BASE + row)


def test_the_cells_are_rows_times_columns_and_the_command_line_wins():
    cells = [place.cells for place in layouts.places(made(), {"grad": ["exact"], "images": 8})[1]]
    assert cells[0] == ()
    [worst] = cells[2]
    assert [one["attack"] for one in worst] == ["pgd-eot:steps=7", "apgd-ce"]
    assert {(one["defense"], one["grad"], one["images"]) for one in worst} == {("coup:t=0.1,steps=100", "exact", 8)}


def test_scaled_to_the_digits_only_what_the_table_varies_stays():
    places = layouts.places(made(), {"dataset": "digits"})
    [worst] = places[2][2].cells
    assert worst[0]["defense"] == "diffpure"  # the only row of its name: its t is no axis
    assert (worst[0]["dataset"], worst[0]["threat"], worst[1]["attack"]) == ("digits", "Linf:0.2", "apgd-ce")
    assert "classifier" not in worst[0]
    both = made(BASE.replace("diffpure:t=0.05,steps=100", "coup:t=0.05,steps=100"))
    assert layouts.places(both, {"dataset": "digits"})[2][2].cells[0][0]["defense"] == "coup:t=0.05"


def test_another_dataset_than_the_tables_is_refused():
    with pytest.raises(UserError, match="is a table of cifar10, and `--dataset imagenet` is another dataset"):
        layouts.places(made(), {"dataset": "imagenet"})


def test_run_makes_every_cell_and_the_null_control_of_every_defense():
    grids = layouts.grids(made(), Request(dataset="digits"))
    found = {(g["defenses"][0], g["attacks"][0]) for g in grids}
    assert found == {(d, a) for d in ("coup", "diffpure") for a in ("pgd-eot", "apgd-ce", "null")}
    assert {g["defenses"][0] for g in layouts.grids(made(), Request(only=("coup",)))} == {"coup:t=0.1,steps=100"}
    with_models = layouts.grids(made(), Request(baselines=True))
    assert ("none", "robustbench:id=Carmon2019Unlabeled") in {(g["defenses"][0], g["classifier"]) for g in with_models}
    with pytest.raises(UserError, match="`-d` has no say in a table"):
        layouts.grids(made(), Request(defenses=("coup",)))
    with pytest.raises(UserError, match="unknown row"):
        layouts.grids(made(), Request(only=("ScoreOpt",)))


def recorded(table, i, right, *, name, n=100, clean=100, started="2026"):
    """A log of the i-th row whose first `right` images withstood the attack: found by nothing but what the plan says of it. name: which
    attack of the last column, or the key of a cell."""
    key = json.loads(table.places[i][2].wanted[0][name][0].key if isinstance(name, int) else name)
    cell = {k: v for k, v in key.items() if k != "values"}
    cell["parts"] = {"score": {"version": 1}} | {k: {"version": 1, "values": v} for k, v in key["values"].items()}
    lines = [
        {
            "position": p, "index": p, "label": 1, "undefended": 1, "clean": [int(p < clean)] * 2,
            "adversarial": [int(p < right)] * 2, "verdict": None, "nfe": [30, 20],
        }
        for p in range(n)
    ]  # fmt: skip
    return Log(f"{cell['attack']}-{started}", cell, [{"started": started}], lines, 1.0, None)


def entries(text):
    rows = [[w.strip() for w in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_worst_attack_counts_and_a_missing_one_is_a_dash():
    table = sheet.of(made(), {})
    one = [recorded(table, 1, 70, name=0, clean=90)]
    text = papers.render(table, one, fill="purebench run mine.toml")
    assert entries(text)["COUP"] == ["90.0 ±7.4", "–"]  # the clean images are the same under any attack
    assert "– not run yet: COUP, DiffPure." in text
    assert "Fill it with: `purebench run mine.toml`" in text
    text = papers.render(table, [*one, recorded(table, 1, 40, name=1, clean=90)])
    assert entries(text)["COUP"][1] == "40.0 ±9.8"
    assert entries(text)["Quoted"] == ["89.67 †", "**63.10 †**"]


def test_numbers_are_of_the_tables_images_alone():
    table = sheet.of(made(), {"images": 50})
    logs = [recorded(table, 1, 40, name=k, clean=45) for k in (0, 1)]
    assert entries(papers.render(table, logs))["COUP"] == ["90.0 ±11.4", "**80.0 ±13.0**"]


def test_of_two_versions_the_newest_counts_and_the_other_is_named():
    table = sheet.of(made(), {})
    logs = [
        recorded(table, 1, 40, name=0),
        recorded(table, 1, 40, name=1),
        recorded(table, 1, 90, name=0, started="2027"),
    ]
    text = papers.render(table, logs)
    assert entries(text)["COUP"][1] == "40.0 ±9.8"
    assert "pgd-eot:steps=7-2027 is the newest and counts" in text


def test_compare_says_what_is_covered_and_never_of_a_scaled_table():
    table = sheet.of(made(), {})
    logs = [recorded(table, 1, 70, name=k, clean=90) for k in (0, 1)] + [
        recorded(table, 2, 50, name=k, clean=90) for k in (0, 1)
    ]
    found = entries(papers.render(table, logs, compare=True))
    assert found["COUP"][3:] == ["70.0 ±9.6", "73.05 ±0.40", "-3.1 (covered)"] or found["COUP"][3:5] == [
        "**70.0 ±9.6**",
        "73.05 ±0.40",
    ]
    assert found["DiffPure"][5] == "-20.6 (not covered)"
    with pytest.raises(UserError, match="no number of a scaled table compares"):
        papers.render(sheet.of(made(), {"dataset": "digits"}), logs, compare=True)


def test_seeds_give_a_mean_and_a_standard_deviation():
    table = sheet.of(made(BASE.replace("images = 100", "images = 100\nseeds = [0, 1]")), {})
    logs = [
        recorded(table, 1, right, name=table.places[1][2].wanted[0][k][seed].key, started=str(seed))
        for k in (0, 1)
        for seed, right in ((0, 40), (1, 44))
    ]
    assert "42.0 ±2.8" in entries(papers.render(table, logs))["COUP"][1]


def test_a_mean_over_corruptions_is_that_of_its_cells():
    text = (
        BASE.replace('dataset = "cifar10"', 'dataset = "cifar10-c:corruption={c},severity={s}"')
        .replace('attack = ["pgd-eot:steps=7", "apgd-ce"]', 'attack = "null"')
        .replace('over = "min"\nbest = "max"', 'over = "mean"\nfor = { c = ["fog", "snow"], s = [1, 2] }')
        .replace('metric = "clean"', "")
    )
    table = sheet.of(made(text), {})
    wanted = table.places[1][2].wanted
    assert len(wanted) == 4
    logs = [
        recorded(table, 1, right, name=worst[0][0].key, started=str(right))
        for worst, right in zip(wanted, (10, 20, 30, 60), strict=True)
    ]
    assert entries(papers.render(table, logs))["COUP"][1] == "30.0"
    assert entries(papers.render(table, logs[:3]))["COUP"][1] == "–"


def test_formats_have_the_same_numbers():
    table = sheet.of(made(), {})
    logs = [recorded(table, 1, 40, name=k, clean=90) for k in (0, 1)]
    rows = {(r["method"], r["column"]): r for r in json.loads(papers.render(table, logs, "json"))}
    assert rows["COUP", "Robust"]["value"] == 0.4
    assert rows["COUP", "Robust"]["reported"] == [73.05, 0.4]
    assert rows["DiffPure", "Robust"]["missing"] == "not run yet"
    tex = papers.render(table, logs, "tex")
    assert "COUP & 90.0 $\\pm$7.4 & 40.0 $\\pm$9.8 \\\\" in tex
    assert tex.count("{") == tex.count("}")
    with pytest.raises(UserError, match="unknown format"):
        papers.render(table, logs, "xls")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_read_planned_and_printed_scaled(name):
    layout = layouts.read(TABLES[name], name)
    assert layout.summary
    assert layout.cite
    table = sheet.of(layout, {"dataset": "digits", "images": 8})
    runnable = [row for row in layout.rows if row.cells is not None and not layouts.lacking(row.needs, scaled=True)]
    measured = {c.title for c in layout.columns if c.metric and not layouts.lacking(c.needs, scaled=True)}
    for line, row in zip(table.places, layout.rows, strict=True):
        assert any(place.wanted for place in line) == (row in runnable and bool(measured)), row.name
    text = papers.render(table, [])
    for row in layout.rows:
        first = next(iter(row.texts.values()))
        assert first.split("*")[0].split("<")[0][:20] in text.replace("\\", "")
    body = len(layout.rows) // 2 if not layout.transpose else len(layout.columns) - 1
    assert papers.render(table, [], "tex").count("\\\\") >= body


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("leekim")])
def test_reported_numbers_are_the_papers(name):
    if not GOLDEN or not PAPERS.is_dir():
        pytest.skip("the papers' tables are not at hand: set PUREBENCH_GOLDEN")
    paper, _, place = name.partition("/")
    [table] = [t for t in tomllib.loads((PAPERS / f"{paper}.toml").read_text())["table"] if t["id"] == place]
    rows = table.get("rows") or [row for panel in table["panel"] for row in panel["rows"]]
    layout = layouts.read(TABLES[name], name)
    assert len(rows) == len(layout.rows)
    keys = dict.fromkeys(column.number for column in layout.columns if column.number)
    for theirs, ours in zip(rows, layout.rows, strict=True):
        reported = flat([value for key, value in theirs.items() if key in NUMBERS])
        printed = flat([ours.numbers[key] for key in keys if key in ours.numbers])
        # Where the papers' file lists all means and then all stds, ours has them side by side.
        assert (printed if "robust_std" not in theirs else sorted(printed)) == (
            reported if "robust_std" not in theirs else sorted(reported)
        ), ours.name


def test_every_table_of_the_papers_is_a_preset():
    if not GOLDEN or not PAPERS.is_dir():
        pytest.skip("the papers' tables are not at hand: set PUREBENCH_GOLDEN")
    theirs = {
        f"{file.stem}/{t['id']}" for file in PAPERS.glob("*.toml") for t in tomllib.loads(file.read_text())["table"]
    }
    assert theirs == {name for name in TABLES if not name.startswith("leekim")}
    assert len(theirs) == 37
