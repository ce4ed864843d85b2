"""A paper's table: its file is read or refused by row, its cells are rows x columns, and its numbers are the records'."""

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from purebench import cli
from purebench.errors import UserError
from purebench.plan import grid, layouts, measures, places, sheet
from purebench.plan.grid import Request
from purebench.records.store import Log
from purebench.report import metrics, papers

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
        ('over = "min"', 'over = "mean"', "has several attacks: min or image"),
        ('over = "min"', 'over = "min"\nfor = { c = [1, 2] }', "`{c}` of column `Robust` stands in no cell of row 2"),
        (
            '[[column]]\ntitle = "Clean"',
            '[[column]]\nmetric = "robust"\nover = "min"\neach = { e = [1, 2] }\n[[column]]\ntitle = "Clean"',
            "`{e}` of column `1` stands in no cell",
        ),
        ('over = "min"', 'over = "min"\neach = { e = [] }', "is no list of values"),
        ('over = "min"', 'over = "min"\neach = { e = 5 }', "is no list of values"),
        (
            'attack = ["pgd-eot:steps=7", "apgd-ce"]',
            "",
            'row 2 of the table `mine` ("COUP") has cells without `attack`',
        ),
        ('cells = { defense = "coup:t=0.1,steps=100" }', "cells = {}", "has cells without `defense`"),
        ('dataset = "cifar10"', "", "has cells without `dataset`"),
        ('metric = "robust"', 'metric = "robsut"', "unknown `metric` of column 3"),
        ('metric = "robust"', 'metric = "moved"', "`moved` is not one number"),
        (
            'metric = "robust"',
            'metric = "success"',
            "`over = 'min'` of column 3 of the table `mine` cannot be of `success`",
        ),
        ('method = "COUP"', 'method = "COUP"\nmetrics = { robst = "sticky" }', "unknown `metrics` of row 2"),
        ('method = "COUP"', 'method = "COUP"\nmetrics = { robust = "stiky" }', "unknown `metrics.robust` of row 2"),
        ("images = 100", "images = 100\nseeds = [0, 0]", "names one twice"),
        ("images = 100", "images = 100\nstand_in = { foo = 'x' }", "unknown key of `stand_in`"),
        ("images = 100", "images = 100\nstand_in = { score = 3 }", "has the wrong type"),
        ("standard = 89.02", "standard = nan", "is no number"),
        ("standard = 89.02", "standard = ['a', 'b']", "is no list of numbers"),
        ('method = "COUP"', 'method = "COUP"\nneeds = [3]', "is no list of texts"),
        ('title = "A table"', 'title = "A table"\nnotes = [3]', "is no list of texts"),
        ('title = "A table"', 'title = "A table"\n[[panel]]\nkey = "a"\n[[panel]]\nkey = "a"', "have one `key`"),
        ('text = "method"', 'text = "value"', "is a word that every table has"),
        ('metric = "clean"', 'mean = ["standart", "robust"]', "unknown `mean` of column 2"),
        (
            'attack = ["pgd-eot:steps=7", "apgd-ce"]',
            'attack = "apgd-ce"',
            "`over = 'min'` of column 3 of the table `mine` has no list",
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
        places.places(made(BASE.replace(old, new)))
    assert said in error.value.message


def test_a_row_that_stands_twice_is_refused():
    row = BASE[BASE.index('[[row]]\nmethod = "COUP"') : BASE.index('[[row]]\nmethod = "DiffPure"')]
    with pytest.raises(UserError, match="rows 2 and 4 of the table `mine` are the same"):
        made(BASE + row)


def test_the_cells_are_rows_times_columns_and_the_command_line_wins():
    cells = [place.cells for place in places.places(made(), {"grad": ["exact"], "images": 8})[1]]
    assert cells[0] == ()
    [worst] = cells[2]
    assert [one["attack"] for one in worst] == ["pgd-eot:steps=7", "apgd-ce"]
    assert {(one["defense"], one["grad"], one["images"]) for one in worst} == {("coup:t=0.1,steps=100", "exact", 8)}


def test_scaled_to_the_digits_only_what_the_table_varies_stays():
    [worst] = places.places(made(), {"dataset": "digits"})[2][2].cells
    assert worst[0]["defense"] == "diffpure"  # the only row of its name: its t is no axis
    assert (worst[0]["dataset"], worst[0]["threat"], worst[1]["attack"]) == ("digits", "Linf:0.2", "apgd-ce")
    assert "classifier" not in worst[0]
    both = made(BASE.replace("diffpure:t=0.05,steps=100", "coup:t=0.05,steps=100"))
    assert places.places(both, {"dataset": "digits"})[2][2].cells[0][0]["defense"] == "coup:t=0.05"


def test_another_dataset_than_the_tables_is_refused():
    with pytest.raises(UserError, match="is a table of cifar10, and `--dataset imagenet` is another dataset"):
        places.places(made(), {"dataset": "imagenet"})


def test_run_makes_every_cell_and_the_null_control_of_every_defense():
    grids = places.grids(made(), Request(dataset="digits"))
    found = {(g["defenses"][0], g["attacks"][0]) for g in grids}
    assert found == {(d, a) for d in ("coup", "diffpure") for a in ("pgd-eot", "apgd-ce", "null")}
    assert {g["defenses"][0] for g in places.grids(made(), Request(only=("coup",)))} == {"coup:t=0.1,steps=100"}
    with_models = places.grids(made(), Request(baselines=True))
    assert ("none", "robustbench:id=Carmon2019Unlabeled") in {(g["defenses"][0], g["classifier"]) for g in with_models}
    with pytest.raises(UserError, match="`-d` has no say in a table"):
        places.grids(made(), Request(defenses=("coup",)))
    with pytest.raises(UserError, match="unknown row"):
        places.grids(made(), Request(only=("ScoreOpt",)))


def recorded(table, i, right, *, name, n=100, clean=100, started="2026", wanted=None, **other):
    """A log of the i-th row whose first `right` images withstood the attack: found by nothing but what the plan says of it. name: which
    attack of the last column, or the key of a cell; wanted: how many images its run asked for; `weights`: their hash; `blind`: whether
    its gradients were all zero."""
    key = json.loads(table.places[i][2].wanted[0][name][0].key if isinstance(name, int) else name)
    cell = {k: v for k, v in key.items() if k != "values"}
    cell["parts"] = {"score": {"version": 1}, "classifier": {"hash": other.get("weights", "a")}}
    cell["parts"] |= {k: {"version": 1, "values": v} for k, v in key["values"].items() if k != "classifier"}
    lines = [
        {
            "position": p, "index": p, "label": 1, "undefended": 1, "clean": [int(p < clean)] * 2,
            "adversarial": [int(p < right)] * 2, "verdict": None, "nfe": [30, 20],
            "gradients": {"iterates": 2, "zero": 2, "not_finite": 0, "right": 2, "blind": 2 * other.get("blind", False)},
        }
        for p in range(n)
    ]  # fmt: skip
    return Log(
        f"{cell['defense']}-{cell['attack']}-{started}",
        cell,
        [{"started": started, "wanted": wanted or n}],
        lines,
        1.0,
        None,
    )


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
    assert entries(text)["Quoted"] == ["89.67 †", "63.10 †"]


def test_numbers_are_of_the_tables_images_alone():
    table = sheet.of(made(), {"images": 50})
    logs = [recorded(table, 1, 40, name=k, clean=45) for k in (0, 1)]
    text = papers.render(table, logs)
    assert entries(text)["COUP"] == ["90.0 ±11.4", "80.0 ±13.0"]
    assert "Warning: 50 images: a difference under about 20 points is chance" in text


def test_of_two_versions_the_newest_counts_and_the_other_is_named():
    table = sheet.of(made(), {})
    logs = [
        recorded(table, 1, 40, name=0),
        recorded(table, 1, 40, name=1),
        recorded(table, 1, 90, name=0, started="2027"),
    ]
    text = papers.render(table, logs)
    assert entries(text)["COUP"][1] == "40.0 ±9.8"
    assert "coup-pgd-eot:steps=7-2027 is the newest and counts" in text


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
    runnable = [row for row in layout.rows if row.cells is not None and not places.lacking(row.needs, scaled=True)]
    measured = {c.title for c in layout.columns if c.metric and not places.lacking(c.needs, scaled=True)}
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


@pytest.mark.parametrize("name", TABLES)
def test_a_row_runs_the_same_cells_whoever_else_is_chosen(name):
    layout = layouts.read(TABLES[name], name)
    for options in ({}, {"dataset": "digits"}):
        whole = places.places(layout, options)
        for i, row in enumerate(layout.rows):
            assert places.places(replace(layout, rows=(row,)), options) == [whole[i]], row.name


def test_what_was_cut_off_is_no_number_and_fewer_images_are_named():
    table = sheet.of(made(), {})
    whole = recorded(table, 1, 70, name=0)
    text = papers.render(table, [whole, recorded(table, 1, 1, name=1, n=1, wanted=100)], fill="again")
    assert entries(text)["COUP"][1] == "–"
    assert "unfinished: 1 of 100 images: COUP" in text
    assert "`again`" in text
    # A run that asked for 40 is done with them; the other attack counts on the same 40.
    text = papers.render(table, [whole, recorded(table, 1, 30, name=1, n=40)])
    assert entries(text)["COUP"][1] == "75.0 ±15.2"
    assert "(40: Robust of COUP)" in text
    lost = recorded(table, 1, 50, name=1)
    lost.images[3] |= {"failed": "no image", "adversarial": []}
    assert "the attack made no image: 1 of 100" in papers.render(table, [whole, lost])


def test_a_seed_that_was_cut_off_is_no_number():
    table = sheet.of(made(BASE.replace("images = 100", "images = 100\nseeds = [0, 1]")), {})
    logs = [
        recorded(table, 1, n, name=table.places[1][2].wanted[0][k][seed].key, started=str(seed), n=n, wanted=100)
        for k in (0, 1)
        for seed, n in ((0, 100), (1, 1))
    ]
    assert entries(papers.render(table, logs))["COUP"][1] == "–"


def test_weights_that_differ_inside_a_place_are_no_number_and_in_a_table_are_told():
    table = sheet.of(made(), {})
    logs = [recorded(table, 1, 40, name=0), recorded(table, 1, 30, name=1, weights="b")]
    text = papers.render(table, logs)
    assert entries(text)["COUP"][1] == "–"
    assert "different versions or weights (classifier robustbench)" in text
    text = papers.render(table, [recorded(table, i, 40, name=k, weights=str(i)) for i in (1, 2) for k in (0, 1)])
    assert "Not all numbers are of the same versions or weights of classifier robustbench" in text


def test_a_masked_attack_is_marked_and_never_the_best():
    table = sheet.of(made(), {})
    blind = [recorded(table, 1, 100, name=k, blind=True) for k in (0, 1)]
    text = papers.render(table, [*blind, *[recorded(table, 2, 65, name=k) for k in (0, 1)]])
    assert entries(text)["COUP"][1] == "100.0 ±3.7 §"
    assert entries(text)["DiffPure"][1] == "**65.0 ±9.7**"
    assert "§ every gradient attack was masked" in text
    assert "Warning: masked, zero gradients" in text
    one = papers.render(table, [blind[0], recorded(table, 1, 60, name=1)])
    assert entries(one)["COUP"][1] == "60.0 ±9.8"


def test_the_papers_average_is_of_the_papers_columns():
    text = BASE.replace(
        "[[row]]",
        """[[column]]
title = "Avg."
mean = ["standard", "robust"]
[[column]]
title = "ours"
number = "robust"
metric = "robust"
over = "min"
cells = { grad = "bpda", attack = ["bpda-eot", "pgd-eot"] }
honest = true
[[row]]""",
        1,
    )
    table = sheet.of(made(text), {})
    logs = [recorded(table, 1, 40, name=one.key, clean=80) for one in (w[0] for w in table.places[1][2].wanted[0])]
    logs += [recorded(table, 1, 10, name=one.key, clean=80) for one in (w[0] for w in table.places[1][4].wanted[0])]
    assert entries(papers.render(table, logs))["COUP"][2] == "60.0"
    assert entries(papers.render(table, logs, honest=True))["COUP"][2:] == ["60.0", "10.0 ±7.4"]


def test_a_stand_in_is_not_held_against_a_quoted_number():
    table = sheet.of(made(BASE.replace("images = 100", "images = 100\nstand_in = { classifier = 'another' }")), {})
    text = papers.render(table, [recorded(table, 1, 90, name=k) for k in (0, 1)])
    assert entries(text)["COUP"][1] == "90.0 ±7.4 ‡"
    assert "another" in text


def test_an_option_may_not_contradict_a_heading_and_what_it_changes_is_said():
    text = BASE.replace('over = "min"', 'over = "min"\ncells = { threat = "L2:0.5" }')
    with pytest.raises(UserError, match="`--threat` would undo what column `Robust` of `mine` says itself"):
        places.grids(made(text), Request(threats=("Linf:8/255",)))
    with pytest.raises(UserError, match="`--threat` would undo"):
        places.check_headings(made(text), {"dataset": "digits", "threat": ["Linf:0.2"]}, honest=False)
    with pytest.raises(UserError, match="would undo what row `COUP`"):
        places.check_headings(
            made(BASE.replace('steps=100"', 'steps=100", grad = "bpda"', 1)), {"grad": ["exact"]}, honest=False
        )
    other = sheet.of(made(), {"threat": ["L2:0.5"]})
    assert "Other than in the file: threat = L2:0.5." in papers.render(other, [])
    with pytest.raises(UserError, match=r"with threat = L2:0\.5: the paper's numbers are of other cells"):
        papers.render(other, [], compare=True)


def test_a_copy_with_fewer_images_does_not_take_the_place_of_the_whole():
    table = sheet.of(made(), {})
    logs = [recorded(table, 1, 70, name=0), recorded(table, 1, 60, name=1), recorded(table, 1, 2, name=1, n=2)]
    logs[2].runs[0]["started"] = "2027"
    assert entries(papers.render(table, logs))["COUP"][1] == "60.0 ±9.8"


def test_every_metric_that_a_table_may_ask_for_is_measured():
    lines = [
        {
            "position": p, "index": p, "label": 1, "undefended": 1, "clean": [-1] * 10, "adversarial": [-1] * 10, "verdict": False,
            "nfe": [1, 1], "stopped": 1, "gradients": {"iterates": 1, "zero": 1, "not_finite": 1, "right": 1, "blind": 1},
        }
        for p in range(3)
    ]  # fmt: skip
    found = metrics.summary(Log("x", {}, [], lines, 1.0, None))
    for rule in measures.VERDICTS[1:]:
        found |= metrics.summary(Log("x", {}, [], [line | {"verdict_is": rule} for line in lines], 1.0, None))
    assert set(found) == set(layouts.METRICS)


@pytest.mark.parametrize(
    ("asked", "printed"),
    [
        ("success", "60.0"),
        ("worst5", "0.0"),
        ("moved_clean_l2", "0.125"),
        ("ball_used", "50.0"),
        ("sticky@0", papers.MISSING),
    ],
)
def test_a_table_prints_what_metric_by_name_says(asked, printed):
    """The number is that of `table --metric`: shares in percent, distances as they are; what the records lack is a dash with its reason."""
    text = BASE.replace('metric = "robust"\nover = "min"', f'metric = "{asked}"').replace(
        '["pgd-eot:steps=7", "apgd-ce"]', '"apgd-ce"'
    )
    table = sheet.of(made(text), {})
    log = recorded(table, 1, 100, name=0)
    # Four of ten draws are right, half of the ball is used.
    more = {"adversarial": [1] * 4 + [0] * 6, "clean": [1] * 10, "linf": 4 / 255, "moved": {"clean": [0.125, 0.5]}}
    log = replace(log, images=[line | more for line in log.images])
    assert entries(papers.render(table, [log]))["COUP"][1].startswith(printed)
    if printed == papers.MISSING:
        assert "its records have no `sticky@0`" in papers.render(table, [log])


def test_a_row_may_measure_another_metric_than_its_column():
    text = BASE.replace('over = "min"\n', "").replace('["pgd-eot:steps=7", "apgd-ce"]', '"apgd-ce"')
    layout = made(text.replace('method = "COUP"', 'method = "COUP"\nmetrics = { robust = "sticky" }'))
    rows = json.loads(papers.render(sheet.of(layout, {}), [], "json"))
    assert [row["metric"] for row in rows if row["column"] == "Robust" and row["method"] != "Quoted"] == [
        "sticky",
        "robust",
    ]


def test_a_certificate_is_of_the_null_control_whatever_the_table_attacks_with():
    layout = made(BASE.replace('metric = "robust"\nover = "min"', 'metric = "certified@0.1"'))
    [[one]] = places.places(layout, {})[1][2].cells
    assert one["attack"] == "null"


def test_the_command_that_fills_a_table_names_its_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "my.toml").write_text(BASE)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["purebench", "table", "out", "--layout", "my.toml", "--only", "coup"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "Fill it with: `purebench run my.toml --only coup --out out`" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- what was found in use, and its kind


def test_nothing_is_the_best_while_a_place_waits_for_its_run():
    """Half filled, the best would be whatever happens to be there."""
    table = sheet.of(made(), {})
    logs = [recorded(table, row, 70, name=k) for row in (1, 2) for k in (0, 1)]
    assert "**" not in papers.render(table, logs[:-1])
    assert "**" in papers.render(table, logs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d | {"transpose": True, "panel": [{"key": "a"}, {"key": "b"}]}, "transpose"),
        (lambda d: _with(d, standard=-85.0), "no accuracy in percent"),
        (lambda d: _with(d, robust=850.0), "no accuracy in percent"),
        (lambda d: _with(d, robust=[63.1, -0.4]), "not negative"),
        (lambda d: d | {"column": [*d["column"], d["column"][1] | {"title": "again"}, MEAN]}, "number of 2 columns"),
    ],
)
def test_what_no_paper_prints_is_refused_when_the_file_is_read(change, said):
    data = tomllib.loads(PATH.read_text())
    with pytest.raises(UserError, match=said):
        layouts.of(change(data), "mine")


PATH = grid.presets()["coup/1"]
MEAN = {"title": "Avg.", "mean": ["standard", "robust"]}


def _with(data, **values):
    return data | {"row": [data["row"][0] | values, *data["row"][1:]]}


def test_a_mean_is_a_row_of_csv_too():
    data = tomllib.loads(PATH.read_text())
    table = sheet.of(layouts.of(data | {"column": [*data["column"], MEAN]}, "mine"), {})
    rows = json.loads(papers.render(table, [], "json"))
    assert "Avg." in {row["column"] for row in rows}


def test_a_control_is_no_attack_of_a_robustness_and_every_word_finds_a_row():
    layout = layouts.of(tomllib.loads(PATH.read_text()), "coup/1")
    with pytest.raises(UserError, match="is a control and no attack"):
        places.check_headings(layout, {"attack": ["null"]}, honest=False)
    with pytest.raises(UserError, match="zzz"):
        places.chosen(layout, ["COUP", "zzz"])


def test_a_row_without_a_group_stands_under_nobody_elses():
    """Beside each other, panels share a line only where they share the group."""
    lines = papers._side_by_side([[("Old", [["a"]])], [("", [["b"]])]], [1, 1])
    assert lines == [["", "b"], "Old", ["a", ""]]


def test_a_word_that_is_the_whole_name_of_a_row_means_that_row():
    layout = layouts.read(grid.tables()["coup/3"], "coup/3")
    rows = [row.name for row in places.chosen(layout, ["-"]).rows]
    assert rows == ["-"]
    assert len(places.chosen(layout, ["DiffPure", "-"]).rows) == 2


def test_latex_of_a_scaled_table_says_so_in_print():
    """A comment is not printed: digits would stand under the caption of CIFAR-10."""
    layout = layouts.read(grid.tables()["coup/1"], "coup/1")
    for options, scaled in (({"dataset": "digits"}, True), ({}, False)):
        lines = papers.render(sheet.of(layout, options), [], "tex").splitlines()
        printed = [line for line in lines if not line.startswith("%")]
        assert any("nothing here compares with the paper" in line for line in printed) == scaled
        assert any("caption" in line and "(scaled)" in line for line in printed) == scaled
