"""Figures: a `[figure]` is refused by its key, and what stands on the axes is what the table prints, with its intervals, or is said to be
missing."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purebench import cli, datasets
from purebench.errors import UserError
from purebench.plan import figures as plan
from purebench.plan import grid, layouts, places, sheet
from purebench.records import store as records
from purebench.records.store import Log
from purebench.report import costs, drawing, figures, imagery, maps, metrics, papers, propositions
from purebench.report.asked import command
from purebench.report.replay import Replay, first_right
from purebench.running import evaluate

torch.set_num_threads(1)

FIGURES = grid.figures()
EMBEDDED = Path(__file__).parents[1] / "results" / "embedded"
MADE = ("digits-reverse-sde-pgd-eot-exact-*", "digits-coup-transfer-d*")
SHOWN = ("digits-coup-pgd-eot-detached-367a2040f9", "digits-none-pgd-eot-exact-10c45d50c0")
BASE = """
title = "Guidance"
[figure]
kind = "sweep"
x = "guidance"
xlabel = "weight"
[cells]
dataset = "cifar10"
images = 100
classifier = "robustbench:id=Standard"
score = "score-sde"
attack = "apgd-ce"
threat = "Linf:8/255"
[[column]]
title = "Defense"
text = "method"
[[column]]
metric = "robust"
group = "robust"
number = "robust"
each = { guidance = [0, 1, 4] }
[[column]]
metric = "clean"
group = "clean"
each = { guidance = [0, 1, 4] }
[[row]]
method = "COUP"
cells = { defense = "coup:guidance={guidance}" }
robust = [60, 70.5, 65]
[[row]]
method = "clamped"
cells = { defense = "coup:clamp=true,guidance={guidance}" }
"""


def made(text=BASE, **options):
    return sheet.of(layouts.of(tomllib.loads(text), "mine"), options)


def recorded(one, right, *, clean=90, n=100, blind=False, seed=None):
    """A log of a wanted cell whose first `right` images withstood the attack."""
    key = json.loads(one.key)
    cell = {k: v for k, v in key.items() if k != "values"}
    cell["parts"] = {"score": {"version": 1}, "classifier": {"hash": "a"}}
    cell["parts"] |= {k: {"version": 1, "values": v} for k, v in key["values"].items() if k != "classifier"}
    lines = [
        {
            "position": p, "index": p, "label": 1, "undefended": 1, "clean": [int(p < clean)] * 2,
            "adversarial": [int(p < right)] * 2, "verdict": None, "nfe": [30, 20],
            "gradients": {"iterates": 2, "zero": 2, "not_finite": 0, "right": 2, "blind": 2 * blind},
        }
        for p in range(n)
    ]  # fmt: skip
    return Log(f"{one.key}", cell, [{"started": "2026", "wanted": n}], lines, 1.0, None)


def at(table, i, j):
    """The only cell of a place."""
    return table.places[i][j].wanted[0][0][0]


def drawn(picture):
    """The axes of a picture: {label of a line: its points}, without its gaps, and the vertices of its bands."""
    with drawing.style():
        axes = figures.draw(picture).axes
    lines = {
        line.get_label(): [(float(x), round(float(y), 9)) for x, y in zip(*line.get_data(), strict=True) if y == y]
        for a in axes
        for line in a.lines
    }
    bands = [{tuple(v) for v in path.vertices} for a in axes for c in a.collections for path in c.get_paths()]
    return axes, lines, bands


# ----------------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("old", "new", "said", "hint"),
    [
        ('kind = "sweep"', 'kind = "sweeps"', "unknown `kind` of `[figure]`", "sweep"),
        ('kind = "sweep"', "", "has no `kind`", "one of sweep"),
        ('x = "guidance"', 'x = "lambda"', "unknown `x` of `[figure]`", "guidance"),
        ('x = "guidance"', "", "has no `x`", "`each`"),
        (
            'xlabel = "weight"',
            'xlable = "weight"',
            "unknown key of `[figure]` of the table `mine` `xlable`",
            "`xlabel`",
        ),
        ('xlabel = "weight"', "xlabel = 3", "has the wrong type", "docs/figures.md"),
        ('xlabel = "weight"', 'y = "robsut"', "unknown `y` of `[figure]`", "`robust`"),
        ('xlabel = "weight"', 'y = ["robust", 3]', "unknown `y` of `[figure]`", "known"),
        ('xlabel = "weight"', 'lines = "methd"', "unknown `lines` of `[figure]`", "`method`"),
        ('xlabel = "weight"', 'xscale = "logarithmic"', "unknown `xscale` of `[figure]`", "log"),
        ('xlabel = "weight"', 'xscale = "log"', "its points are 0, 1, 4", "numbers above 0"),
        ('xlabel = "weight"', "ylim = [100, 0]", "is no pair of numbers", "[0, 100]"),
        ('xlabel = "weight"', "ylim = [true, 100]", "is no pair of numbers", "[0, 100]"),
        ('kind = "sweep"\nx = "guidance"', 'kind = "scatter"\nx = "guidance"', "unknown key of `[figure]`", "xlabel"),
        ('text = "method"', 'number = "other"', "", ""),
    ],
)
def test_a_mistake_in_a_figure_is_told_by_its_key(old, new, said, hint):
    assert old in BASE
    with pytest.raises(UserError) as error:
        made(BASE.replace(old, new, 1))
    assert said in error.value.message
    assert hint in error.value.hint


def test_a_figure_without_columns_is_no_grid_but_a_table_that_lacks_them():
    data = tomllib.loads('title = "t"\n[figure]\nkind = "sweep"\n')
    assert layouts.is_layout(data)
    with pytest.raises(UserError, match="has no `column`"):
        layouts.of(data, "mine")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_read_planned_and_drawn_as_far_as_it_can_be(name):
    layout = layouts.read(FIGURES[name], name)
    assert layout.figure
    assert layout.summary.startswith(layout.cite.partition(",")[0] if "adp" in name else "") or layout.summary
    assert layout.cite
    assert layout.notes  # where the text has no setting, the file says so
    scaled = sheet.of(layout, {"dataset": "digits", "images": 8})
    assert scaled.scaled
    wanted = [
        one
        for line in sheet.of(layout, {}).places
        for place in line
        for worst in place.wanted
        for s in worst
        for one in s
    ]
    runs = [row for row in layout.rows if not places.lacking(row.needs)]
    measured = [c for c in layout.columns if c.metric and not places.lacking(c.needs)]
    assert bool(wanted) == bool(runs and measured)
    logs = {one.key: recorded(one, 50) for one in wanted}.values()
    if layout.figure.kind in plan.OF_IMAGES:
        return
    found = figures.picture(sheet.of(layout, {}), logs)
    assert drawn(found)[1]
    if wanted:
        assert not [line for line in found.missing if "not run yet" in line]


def test_the_figures_are_not_among_the_tables_and_each_has_its_own():
    assert not set(grid.tables()) & set(FIGURES)
    assert {
        name for name, path in grid.presets().items() if "/" in name and "figure" in tomllib.loads(path.read_text())
    } == {*FIGURES}


# ---------------------------------------------------------------------------------------------------------------- the points


def test_points_bands_and_labels_are_the_tables():
    table = made()
    rights = {0: 60, 1: 70, 2: 55}
    logs = [recorded(at(table, 0, 1 + k), right, clean=95) for k, right in rights.items()]
    found = figures.picture(table, logs, fill="purebench run mine.toml")
    axes, lines, bands = drawn(found)
    assert lines["COUP, robust"] == [(0, 60), (1, 70), (4, 55)]
    assert lines["COUP, clean"] == [(0, 95), (1, 95), (4, 95)]
    # The paper's own numbers, as dashes of the line that they belong to.
    assert lines["COUP, robust, reported"] == [(0, 60), (1, 70.5), (4, 65)]
    low, high = metrics.wilson(0.7, 100)
    assert any({(1.0, 100 * low), (1.0, 100 * high)} <= band for band in bands)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("weight", "accuracy (%)")
    assert axes[0].get_ylim()[0] == 0
    # The table says the same.
    entries = papers.filled(table, logs).entries
    assert [round(100 * e.value, 9) for e in entries[0] if e.column.metric == "robust"] == [60, 70, 55]
    assert not any(line.label.startswith("clamped") for line in found.lines)


def test_what_is_missing_is_not_drawn_and_named_with_the_command_that_fills_it():
    table = made()
    found = figures.picture(table, [recorded(at(table, 0, 1), 60)], fill="purebench run mine.toml")
    lines = drawn(found)[1]
    assert lines["COUP, robust"] == [(0, 60)]
    [why, command] = found.missing
    assert why.startswith("not drawn, not run yet: COUP at 1, COUP at 4, clamped at 0")
    assert command == "fill it with: `purebench run mine.toml`"
    # Its place on the axis is kept: an axis that ends where the records do would look complete.
    assert [tick.get_text() for tick in drawn(found)[0][0].get_xticklabels()] == ["0", "1", "4"]


def test_a_run_that_was_cut_off_is_no_point():
    table = made()
    log = recorded(at(table, 0, 1), 40, n=50)
    log.runs[0]["wanted"] = 100
    found = figures.picture(table, [log])
    assert "unfinished: 50 of 100 images: COUP at 0" in found.missing[0]
    assert not [point for line in found.lines for point in line.points if point.value is not None]


def test_nothing_to_draw_is_an_error_with_the_command():
    with pytest.raises(UserError, match="there is nothing to draw for `mine`") as error:
        figures.picture(made(BASE.replace("robust = [60, 70.5, 65]", "")), [], fill="purebench run mine.toml")
    assert "purebench run mine.toml" in error.value.hint


def test_a_scaled_figure_says_so_and_holds_nothing_against_the_paper():
    table = made(dataset="digits", images=100)
    found = figures.picture(table, [recorded(at(table, 0, 1), 60)])
    assert found.under == ["Scaled: digits, digits-cnn, digits-vp, Linf:0.2; nothing here compares with the paper."]
    axes, lines, _ = drawn(found)
    assert not [label for label in lines if label.endswith("reported")]
    assert "the paper's numbers are not drawn: they are of other cells" in found.missing
    texts = " ".join(text.get_text() for text in axes[0].figure.texts)
    assert "nothing here compares with the paper." in texts
    assert "100 images" in texts


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "sweep"', 'kind = "sweep"\ny = "masked"', "unknown `y`"),
        ('kind = "sweep"', 'kind = "sweep"\nylim = [0, inf]', "is no pair of numbers"),
        ('method = "clamped"', 'method = "COUP"', "two rows are called `COUP`"),
        ("each = { guidance = [0, 1, 4] }", "each = { guidance = [0, 4, 4] }", "two points stand at `4`"),
        ("each = { guidance = [0, 1, 4] }", 'each = { guidance = [0, 1, 4] }\ntitles = ["1", "1.0", "4"]', "two points stand at"),
    ],
)  # fmt: skip
def test_what_a_picture_cannot_tell_apart_is_refused(old, new, said):
    with pytest.raises(UserError, match=said):
        made(
            BASE.replace(old, new).replace(
                'metric = "robust"', 'metric = "masked"' if "masked" in new else 'metric = "robust"'
            )
        )


def test_one_word_makes_words_of_all_points():
    """`half` between 0 and 1 has no distance to either; nor have `nan` and `inf`, which no axis can have."""
    for titles in ('["0", "half", "1"]', '["nan", "1", "inf"]'):
        table = made(
            BASE.replace("each = { guidance = [0, 1, 4] }", f"each = {{ guidance = [0, 1, 4] }}\ntitles = {titles}")
        )
        found = figures.picture(table, [recorded(at(table, 0, k), 60) for k in (1, 2, 3)])
        assert found.words
        assert list(found.ticks) == [0.0, 1.0, 2.0]
        drawn(found)


def test_a_line_has_a_gap_where_nothing_was_measured():
    table = made()
    found = figures.picture(table, [recorded(at(table, 0, 1), 60), recorded(at(table, 0, 3), 50)])
    [line] = [line for line in found.lines if line.metric == 0 and line.row == 0]
    assert [point.value for point in line.points] == [60.0, None, 50.0]
    axes, _, _ = drawn(found)
    [shown] = [line for line in axes[0].lines if line.get_label() == "COUP, robust"]
    assert [math.isnan(y) for y in shown.get_ydata()] == [False, True, False]


def test_points_outside_of_the_files_own_axis_are_said():
    table = made(BASE.replace('kind = "sweep"', 'kind = "sweep"\nylim = [55, 100]'))
    found = figures.picture(table, [recorded(at(table, 0, 1), 60), recorded(at(table, 0, 3), 50)])
    assert "not drawn, outside of `ylim`: 1 points" in found.missing


def test_an_option_that_repeats_the_file_changes_nothing():
    assert made(threat=["Linf:8/255"]).changed == ""
    assert made(threat=["Linf:4/255"]).changed == "threat = Linf:4/255"


def test_an_option_is_said_under_the_title_and_hides_the_papers_numbers():
    found = figures.picture(made(grad=["bpda"]), [recorded(at(made(grad=["bpda"]), 0, 1), 60)])
    assert found.under == ["Other than in the file: grad = bpda."]
    assert all(point.reported is None for line in found.lines for point in line.points)


def test_a_masked_point_is_crossed_out_and_a_stand_in_is_named():
    text = BASE.replace("images = 100", 'images = 100\nstand_in = { classifier = "another" }')
    table = made(text)
    found = figures.picture(table, [recorded(at(table, 0, 2), 90, blind=True), recorded(at(table, 0, 1), 60)])
    axes, _, _ = drawn(found)
    crosses = [line.get_data() for line in axes[0].lines if line.get_marker() == "x"]
    assert [(list(x), list(y)) for x, y in crosses] == [([1.0], [90.0])]
    assert "no evidence of robustness" in found.foot[0]
    assert "Not paper-comparable, for what stands in: classifier: another." in found.foot


def test_over_seeds_the_band_is_the_deviation():
    table = made(BASE.replace("images = 100", "images = 100\nseeds = [0, 1]"))
    seeds = table.places[0][1].wanted[0][0]
    logs = [recorded(seeds[0], 60), recorded(seeds[1], 70)]
    [point] = [
        point
        for line in figures.picture(table, logs).lines
        for point in line.points
        if point.value and line.metric == 0
    ]
    assert point.value == pytest.approx(65)
    assert point.high - point.value == pytest.approx(50**0.5)
    assert "one standard deviation over 2 seeds" in figures.picture(table, logs).foot[0]


def test_words_on_x_stand_beside_each_other_without_a_line():
    text = BASE.replace(
        "each = { guidance = [0, 1, 4] }", 'each = { guidance = [0, 1, 4] }\ntitles = ["none", "one", "four"]'
    )
    table = made(text)
    logs = [recorded(at(table, i, 1), right) for i, right in ((0, 60), (1, 50))]
    axes, lines, _ = drawn(figures.picture(table, logs))
    assert axes[0].lines[0].get_linestyle() == "None"
    (left, _), (right, _) = lines["COUP, robust"][0], lines["clamped, robust"][0]
    assert left < right
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["none", "one", "four"]


def test_lines_differ_in_grey():
    """Without colours: a marker for each row, a dash for each metric."""
    table = made()
    logs = [recorded(at(table, i, 1), 50) for i in (0, 1)]
    axes, _, _ = drawn(figures.picture(table, logs))
    looks = {
        line.get_label(): (line.get_marker(), line._dash_pattern)
        for line in axes[0].lines
        if line.get_marker() not in "_x"
    }
    assert len(looks) == 4
    assert len({repr(look) for look in looks.values()}) == 4


def test_a_radius_on_x_is_the_digits_own_where_the_table_is_scaled():
    text = BASE.replace(
        "each = { guidance = [0, 1, 4] }", 'each = { eps = ["4/255", "8/255"] }\ncells = { threat = "Linf:{eps}" }'
    )
    text = (
        text.replace('x = "guidance"', 'x = "eps"').replace("={guidance}", "=1").replace("[60, 70.5, 65]", "[70.5, 65]")
    )
    table = made(text, dataset="digits")
    found = figures.picture(table, [recorded(at(table, 0, j), 60) for j in (1, 2)])
    assert [point.x for point in found.lines[0].points] == [0.1, 0.2]


def test_panels_are_axes_side_by_side():
    text = BASE.replace("[cells]", '[[panel]]\nkey = "a"\ntitle = "A"\n[[panel]]\nkey = "b"\ntitle = "B"\n[cells]', 1)
    text = text.replace('method = "COUP"', 'method = "COUP"\npanel = "a"').replace(
        'method = "clamped"', 'method = "clamped"\npanel = "b"'
    )
    table = made(text)
    axes, _, _ = drawn(figures.picture(table, [recorded(at(table, i, 1), 50) for i in (0, 1)]))
    assert [a.get_title(loc="left") for a in axes] == ["A", "B"]
    assert [{line.get_label().partition(",")[0] for line in a.lines if line.get_marker() != "_"} for a in axes] == [
        {"COUP"},
        {"clamped"},
    ]


# ------------------------------------------------------------------------------------------------------------ cost, and bytes


def test_a_scatter_has_the_cost_of_each_row_on_x():
    text = BASE.replace('kind = "sweep"\nx = "guidance"\n', 'kind = "scatter"\ny = "robust"\n').replace(
        "each = { guidance = [0, 1, 4] }", ""
    )
    text = text.replace("={guidance}", "=1").replace("robust = [60, 70.5, 65]", "robust = 60")
    table = made(text)
    logs = [recorded(at(table, 0, 1), 60), recorded(at(table, 1, 1), 50)]
    price = {log.cell["defense"]: cost for log, cost in zip(logs, (11.0, None), strict=True)}
    found = figures.picture(table, logs, cost=lambda log: price[log.cell["defense"]])
    axes, lines, _ = drawn(found)
    assert lines["COUP"] == [(11, 60)]
    assert axes[0].get_xscale() == "log"
    assert "not drawn, its network calls cannot be counted: clamped" in found.missing


def test_cost_draws_a_point_per_defense_at_its_network_calls_and_strongest_attack():
    with drawing.style():
        figure, _ = costs.draw(records.load_all([EMBEDDED / name for name in SHOWN]))
    [axes] = figure.axes
    points = {line.get_label(): line.get_data() for line in axes.lines}
    # One call of each network at every step, one more of the classifier for the guidance's gradient, and its answer.
    assert {name: list(x) for name, (x, _) in points.items()} == {"coup": [31], "none": [1]}
    assert list(points["coup"][1]) == [pytest.approx(46.3, abs=0.1)]
    assert axes.get_xscale() == "log"
    with pytest.raises(UserError, match="there is nothing to draw for `cost`"):
        costs.draw([])
    of_a_file = records.load_all([EMBEDDED.parent / "jpeg-cifar10"])
    with drawing.style(), pytest.raises(UserError, match="its network calls cannot be counted"):
        costs.draw(of_a_file)


def test_a_word_has_one_place_on_x_whichever_line_has_a_point_there():
    text = BASE.replace('x = "guidance"', 'x = "threat"').replace("guidance={guidance}", "guidance=1")
    text = text.replace(
        'number = "robust"\neach = { guidance = [0, 1, 4] }',
        'cells = { threat = "{threat}" }\neach = { threat = ["Linf:4/255", "Linf:8/255"] }',
    )
    text = text.replace(
        "each = { guidance = [0, 1, 4] }", 'cells = { threat = "{threat}" }\neach = { threat = ["Linf:8/255"] }'
    ).replace("robust = [60, 70.5, 65]", "")
    table = made(text)
    found = figures.picture(table, [recorded(at(table, 0, 1), 60), recorded(at(table, 0, 2), 50)])
    places = {(line.metric, point.word): point.x for line in found.lines for point in line.points}
    assert places == {(0, "Linf:4/255"): 0.0, (0, "Linf:8/255"): 1.0, (1, "Linf:8/255"): 1.0}


@pytest.mark.parametrize("suffix", plan.SUFFIXES)
def test_the_same_records_give_the_same_bytes_and_no_date(suffix, tmp_path):
    table = made()
    logs = [recorded(at(table, 0, 1 + k), 60 + k) for k in range(3)]
    written = []
    for name in ("a", "b"):
        with drawing.style():
            drawing.save(figures.draw(figures.picture(table, logs)), tmp_path / f"{name}{suffix}", suffix)
        written.append((tmp_path / f"{name}{suffix}").read_bytes())
    assert written[0] == written[1]
    assert not any(word in written[0] for word in (b"CreationDate", b"<dc:date>", b"Software"))


def test_the_users_own_settings_of_matplotlib_change_nothing_and_are_left_alone():
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    with matplotlib.rc_context({"font.size": 31, "axes.grid": False}):
        with drawing.style():
            assert matplotlib.rcParams["font.size"] == drawing.STYLE["font.size"]
        assert matplotlib.rcParams["font.size"] == 31
    assert matplotlib.rcParams["font.size"] == before


# ---------------------------------------------------------------------------------------------------------------- of images

IMAGES = """
title = "Purified"
[figure]
kind = "strip"
[cells]
dataset = "digits"
images = 100
threat = "Linf:0.2"
attack = "transfer:from=(reverse-sde)"
[[column]]
title = "Defense"
text = "method"
[[column]]
metric = "robust"
[[row]]
method = "unguided"
cells = { defense = "reverse-sde" }
[[row]]
method = "guided"
cells = { defense = "coup" }
"""


@pytest.fixture(scope="module")
def attacked():
    """The records of one attack's images under two defenses."""
    return [records.load(folder) for name in MADE for folder in EMBEDDED.glob(name)]


def pictured(text, logs, **options):
    with drawing.style():
        return imagery.draw(made(text, **options), logs)


def test_an_image_is_purified_as_it_was_judged(attacked):
    for log in attacked:
        replay = Replay(log, log.images[:40])
        answers = replay.defense.classifier(replay.purified()).argmax(1).tolist()
        assert answers == [line["adversarial"][0] for line in replay.lines]
        far = (replay.attacked() - replay.clean()).abs().flatten(1).amax(1)
        assert far.tolist() == pytest.approx([line["linf"] for line in replay.lines], abs=1e-6)


def test_a_strip_shows_the_chosen_images_and_their_classes(attacked):
    figure, _ = pictured(IMAGES.replace('kind = "strip"', 'kind = "strip"\nimages = 3\nwrong = "unguided"'), attacked)
    wrong = [line for line in attacked[0].images[:100] if not first_right(line)]
    images = [axes for axes in figure.axes if axes.images]
    assert [axes.get_label() for axes in images] == [
        f"{row} {i}" for row in ("clean", "attacked", "unguided", "guided") for i in range(3)
    ]
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if text.endswith("×")][:3] == [f"{line['adversarial'][0]} ×" for line in wrong[:3]]
    clean = Replay(attacked[0], wrong[:3]).clean()
    assert images[1].images[0].get_array().data.tolist() == pytest.approx(clean[1, 0].numpy())
    assert f"The first 3 of the {len(wrong)} of 100 images that unguided got wrong" in " ".join(texts).replace(
        "\n", " "
    )


def judged_clean(table, positions):
    """Logs of the null control of a bare classifier, one for each row of a table: all that a strip of clean images asks for."""
    found = []
    for line in places.places(table.layout, {}):
        [[cells]] = line[1].cells
        [job] = grid.jobs(places.as_grid(cells))
        order = datasets.order(job.size, job.cell.subset)
        indices = [order[p] for p in positions]
        labels = evaluate.dataset(job.cell.dataset).take(indices)[1].tolist()
        lines = [
            {
                "position": p, "index": i, "label": label, "undefended": label, "clean": [(label + p) % 10], "adversarial": [label],
                "verdict": None, "nfe": [0, 0], "linf": 0.0, "l2": 0.0,
            }
            for p, i, label in zip(positions, indices, labels, strict=True)
        ]  # fmt: skip
        found.append(Log(job.cell.id, job.cell.data(), [{"started": "2026", "wanted": len(lines)}], lines, 1.0, None))
    return found


@pytest.mark.parametrize("transpose", [False, True])
def test_rows_of_different_images_show_their_own(transpose):
    """As of corrupted datasets, and of faces by attribute."""
    text = IMAGES.replace('attack = "transfer:from=(reverse-sde)"', 'attack = "null"').replace('"robust"', '"clean"')
    text = text.replace('"reverse-sde"', '"none"').replace('defense = "coup"', 'defense = "none", subset = "choice:1"')
    text = text.replace("images = 100", "images = 3").replace(
        "[figure]", f"transpose = {str(transpose).lower()}\n[figure]"
    )
    table = made(text)
    logs = judged_clean(table, range(3))
    with drawing.style():
        figure, _ = imagery.draw(table, logs)
    images = {axes.get_label(): axes.images[0].get_array().data for axes in figure.axes if axes.images}
    # Nothing attacked them, and a bare classifier purifies nothing.
    assert len(images) == 12
    for name, log in zip(("unguided", "guided"), logs, strict=True):
        clean = Replay(log, log.images, unattacked=True).clean()
        for i in range(3):
            for shown in (
                (f"{name} given {i}", f"{name} purified {i}")
                if transpose
                else (f"{name} clean {i}", f"{name} purified {i}")
            ):
                assert images[shown].tolist() == clean[i, 0].tolist()
    # The judge's answers to the clean images, of which it got those of position 1 and 2 wrong.
    assert sum(word.get_text().endswith("×") for word in figure.texts) == 4
    with pytest.raises(UserError, match="cannot choose the images of all rows"):
        imagery.draw(made(text.replace('"strip"', '"strip"\nwrong = "guided"')), logs)


def test_a_map_is_of_the_plane_through_its_three_images(attacked):
    replay = Replay(attacked[0], attacked[0].images[:2])
    clean, broken, purified = (x[0] for x in (replay.clean(), replay.attacked(), replay.purified()))
    plane = maps.plane(clean, broken, purified)
    three = torch.stack([clean, broken, purified])
    at = plane.at(three)
    assert plane.images(at).flatten().tolist() == pytest.approx(three.flatten().tolist(), abs=1e-6)
    assert at[0].tolist() == [0, 0]
    assert at[1].tolist() == pytest.approx([(broken - clean).norm().item(), 0], abs=1e-5)
    assert maps.plane(clean, clean, purified) is None
    assert maps.plane(clean, broken, broken) is None
    # Each image lies in the region of its class.
    ends = (-0.1, 2.0, -0.1, 2.0)
    classes = maps.decisions(replay, plane, ends, tuple(clean.shape))
    n = len(classes)
    for image, (x, y) in zip(three, at, strict=True):
        row, column = (round((place + 0.1) / 2.1 * (n - 1)) for place in (y, x))
        assert classes[row, column] == replay.answers(torch.stack([image, image]))[0]


def test_maps_and_embeddings_are_drawn_of_attacked_images(attacked, monkeypatch):
    monkeypatch.setattr(maps, "GRID", 12)
    figure, _ = pictured(IMAGES.replace('"strip"', '"map"\nimages = 2'), attacked, images=20)
    drawn = [axes for axes in figure.axes if axes.get_label().endswith((" 0", " 1"))]
    assert len(drawn) == 4
    for axes, log in zip(drawn[::2], attacked, strict=True):
        line = log.images[0]
        assert axes.get_title(loc="left").endswith(
            f"a {line['label']}: attacked {_bare(log, 0)}, purified {line['adversarial'][0]}"
        )
        path = next(shown.get_xydata() for shown in axes.lines if shown.get_label() == "path")
        ends = [
            next(s.get_xydata()[0] for s in axes.lines if s.get_label() == name) for name in ("attacked", "purified")
        ]
        for end, point in zip(ends, path[[0, -1]], strict=True):
            assert point.tolist() == pytest.approx(end.tolist(), abs=1e-4)
    one = IMAGES[: IMAGES.rindex("[[row]]")].replace('"strip"', '"tsne"')
    figure, _ = pictured(one, attacked, images=5)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["images", "logits"]
    replay = Replay(attacked[0], attacked[0].images[:5])
    again = maps.embedded(torch.cat([replay.clean(), replay.attacked(), replay.purified()]))
    marked = [line.get_xydata() for line in figure.axes[0].lines if line.get_label() in maps.MARKS]
    assert [place for points in marked for place in points.tolist()] == again.tolist()


def _bare(log, i):
    replay = Replay(log, log.images[i : i + 1])
    return replay.answers(replay.attacked())[0]


def test_what_has_no_map_is_refused(attacked):
    for text, images, said in (
        (IMAGES.replace('"strip"', '"map"\nimages = 5'), 20, "has room for 4 images"),
        (IMAGES.replace('"strip"', '"tsne"'), 3, "too few for a t-SNE"),
        (IMAGES.replace('"strip"', '"map"').replace('"robust"', '"clean"'), 20, "is of clean images"),
    ):
        with pytest.raises(UserError, match=said):
            pictured(text, attacked, images=images)


@pytest.mark.parametrize(("kind", "said"), [("curve", "purifies in no steps"), ("histogram", "has no score model")])
def test_a_row_that_has_nothing_to_show_is_told(kind, said):
    logs = [records.load(folder) for folder in EMBEDDED.glob("digits-none-pgd-eot-*")]
    text = IMAGES.replace('kind = "strip"', f'kind = "{kind}"').replace("transfer:from=(reverse-sde)", "pgd-eot")
    text = text[: text.rindex("[[row]]")].replace('"reverse-sde"', '"none"')
    with pytest.raises(UserError, match=said):
        pictured(text, logs)


def test_every_row_of_a_curve_is_drawn(attacked, monkeypatch):
    """Also beyond the looks that there are."""
    replay = Replay(attacked[0], attacked[0].images[:2])
    many = {f"row {i}": replay for i in range(9)}
    monkeypatch.setattr(imagery, "ways", lambda replays, noise: [imagery.Way(name, [[0.0, 1.0]]) for name in replays])
    with drawing.style():
        figure = imagery._curve(drawing.Words("T", [], []), many, made(IMAGES).layout.figure)
    assert {line.get_label() for line in figure.axes[0].lines} == many.keys()


def test_a_curve_ends_where_the_purification_does(attacked):
    replays = {"unguided": Replay(attacked[0], attacked[0].images[:8])}
    [way] = imagery.ways(replays, None)
    chances = torch.softmax(replays["unguided"].defense.classifier(replays["unguided"].purified()), dim=1)
    labels = replays["unguided"].labels
    assert [steps[-1] for steps in way.confidences] == pytest.approx(
        chances.gather(1, labels[:, None])[:, 0].tolist(), abs=1e-5
    )
    assert {len(steps) for steps in way.confidences} == {11}
    [silent] = imagery.ways(replays, 0.0)
    assert silent.confidences != way.confidences
    assert [steps[0] for steps in silent.confidences] == [steps[0] for steps in way.confidences]
    figure, _ = pictured(IMAGES.replace('"strip"', '"curve"\nnoise = 0'), attacked, images=20)
    assert [line.get_label() for line in figure.axes[0].lines] == ["unguided", "guided"]
    assert "without noise" in figure.texts[-1].get_text() + figure.texts[-2].get_text()


def test_a_histogram_counts_every_image_three_times(attacked):
    figure, _ = pictured(IMAGES.replace('"strip"', '"histogram"'), attacked, images=20)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["unguided", "guided"]
    for axes in figure.axes:
        # A step's outline goes there and back at each bin's height: its corners hold the counts.
        heights = [sum(patch.get_xy()[1:-1:2, 1]) for patch in axes.patches]
        assert heights == [20, 20, 20]


def test_what_cannot_be_purified_again_is_refused(attacked, tmp_path):
    other = json.loads(json.dumps(attacked[0].cell))
    other["parts"]["score"]["hash"] = "0" * 64
    with pytest.raises(UserError, match="the score that was judged is another one now"):
        Replay(replace(attacked[0], id="digits-reverse-sde-0", cell=other), attacked[0].images[:1])
    with pytest.raises(UserError, match="has no images"):
        Replay(replace(attacked[0], folder=tmp_path), attacked[0].images[:1]).attacked()
    with pytest.raises(UserError, match="there is nothing to draw for `mine`: not drawn, not run yet: unguided"):
        pictured(IMAGES, [])
    with pytest.raises(UserError, match="chosen by the row `guided`, which has no records yet"):
        pictured(IMAGES.replace('"strip"', '"strip"\nright = "guided"'), attacked[:1])
    with pytest.raises(UserError, match=r"unknown `right` of `\[figure\]`"):
        made(IMAGES.replace('"strip"', '"strip"\nright = "guidde"'))


def test_a_transfer_onto_what_made_its_images_is_one_cell_of_a_place():
    place = made(IMAGES).places[0][1]
    assert [len(seeds) for worst in place.wanted for seeds in worst] == [1]


# ------------------------------------------------------------------------------------------------------------------ the toy


def test_guidance_makes_label_flips_no_likelier_on_the_toy():
    for start in (0.05, 0.2):
        rates = [propositions.flips(weight, start, n=400, seed=1) for weight in (0.0, 2.0, 8.0)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > rates[-1] + 0.05


def test_the_distance_to_the_clean_image_grows_with_the_purification_time_on_the_toy():
    assert propositions.distance(0.0, 0.05, n=400, seed=1) < propositions.distance(0.0, 0.1, n=400, seed=1)
    assert propositions.distance(0.0, 0.1, n=400, seed=1) < propositions.distance(0.0, 0.3, n=400, seed=1)
    assert propositions.distance(8.0, 0.1, n=400, seed=1) < propositions.distance(0.0, 0.1, n=400, seed=1)


def test_the_variance_of_the_vote_is_integrated_and_agrees_with_what_is_drawn():
    images, chance = propositions.flip_chance(4.0)
    for start in (0.05, 0.2):
        found = chance[(images - start).abs().argmin()].item()
        # 0.03: three deviations of so many draws.
        assert propositions.flips(4.0, start, 2000, seed=1) == pytest.approx(found, abs=0.03)
    # Neither side is favoured.
    assert (chance + chance.flip(0)).tolist() == pytest.approx([1.0] * len(images), abs=1e-6)
    with drawing.style():
        [axes] = propositions.draw_variance().axes
    unguided, *guided = [torch.tensor(line.get_ydata()) for line in axes.lines]
    assert len(guided) == len(propositions.WEIGHTS) - 1
    assert unguided[0].item() == pytest.approx(0.25, abs=1e-4)  # a coin at the boundary
    assert (unguided.diff() < 0).all()
    assert all((variances < unguided).all() for variances in guided)
    # The density integrates to 1.
    x = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    assert torch.trapezoid(propositions.density(x), x).item() == pytest.approx(1)


def test_a_path_begins_at_the_image_and_its_dashes_are_the_flips(monkeypatch):
    monkeypatch.setattr(propositions, "RUNS", 20)
    ways = propositions.paths(0.0, 0.1, 5, seed=0)
    assert ways.shape == (5, propositions.STEPS + 1)
    assert ways[:, 0].tolist() == pytest.approx([0.1] * 5)
    with drawing.style():
        figure = propositions.draw_paths()
    for axes, weight in zip(figure.axes, (0.0, 4.0), strict=True):
        ways = [line for line in axes.lines if len(line.get_xdata()) == propositions.STEPS + 1]
        assert len(ways) == propositions.PATHS
        assert [line.is_dashed() for line in ways] == [line.get_ydata()[-1] < 0 for line in ways]
        ends = propositions.paths(weight, 0.1, propositions.PATHS, seed=0)[:, -1].tolist()
        assert [line.get_ydata()[-1] for line in ways] == pytest.approx(ends)


# --------------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["coup/fig4"], "unknown figure `coup/fig4`", "`coup/fig4a`"),
        (["coup-toi"], "unknown figure `coup-toi`", "`coup-toy`"),
        (["coup/1"], "`coup/1` is a table and no figure", "list figures"),
        (["quick"], "`quick` is a grid and no figure", "docs/figures.md"),
        (["coup/fig4a", "--out", "F.jpg"], "ends in no format", ".png, .svg, .pdf"),
        (["coup/fig4a", "--out", "folder.png"], "is a folder", "name a file"),
        (["coup/fig4a", "--out", "file/F.png"], "cannot be written", "another place"),
        (["cost", "--dataset", "digits"], "takes no options", "coup/fig4a"),
        (["coup-toy", "results"], "is of a toy", "purebench figure coup-toy"),
        (["coup/fig4a", "nowhere"], "there is no `nowhere`", "purebench run"),
    ],
)
def test_what_cannot_be_drawn_is_one_message_before_any_work(arguments, said, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr("sys.argv", ["purebench", "figure", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error, advice = capsys.readouterr().err.splitlines()[-2:]
    assert stop.value.code == 2
    assert said in error
    assert hint in advice
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_figure_of_ones_own_is_drawn_from_records_and_printed_as_a_table(tmp_path, monkeypatch, capsys):
    """One TOML file, no code: drawn from the records of this repository."""
    text = BASE.replace('dataset = "cifar10"', 'dataset = "digits"').replace(
        'attack = "apgd-ce"', 'attack = "apgd-ce"\ngrad = "exact"'
    )
    text = text.replace('classifier = "robustbench:id=Standard"\nscore = "score-sde"\n', "").replace(
        "Linf:8/255", "Linf:0.2"
    )
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for arguments in (["figure", "mine.toml", str(EMBEDDED)], ["table", str(EMBEDDED), "--layout", "mine.toml"]):
        monkeypatch.setattr("sys.argv", ["purebench", *arguments])
        cli.app(standalone_mode=False)
    out, err = capsys.readouterr()
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert "purebench: not drawn, not run yet: COUP at 0, COUP at 4, clamped at 0" in err
    assert f"fill it with: `purebench run mine.toml --out {EMBEDDED}`" in err
    assert "wrote mine.png" in err
    # COUP's guidance is 1 unless it is said.
    assert next(line for line in out.splitlines() if line.startswith("| COUP")).split("|")[3].strip().startswith("52.8")


def test_figures_are_listed_and_shown(monkeypatch, capsys):
    for arguments in (["list", "figures"], ["show", "coup/fig4a"], ["show", "cost"]):
        monkeypatch.setattr("sys.argv", ["purebench", *arguments])
        cli.app(standalone_mode=False)
    out = capsys.readouterr().out
    for said in (
        *FIGURES,
        *plan.WITHOUT_PRESET,
        "kind: sweep",
        "try: purebench figure coup/fig4a",
        "try: purebench figure cost",
    ):
        assert said in out


def test_run_names_the_figure_as_the_next_step():
    request = replace(grid.Request(preset="coup/fig4b"), dataset="digits", images=8)
    assert command(request, "figure", Path("r")) == "purebench figure coup/fig4b r --dataset digits --images 8"
