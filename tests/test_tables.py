"""Tables are pure functions of the logs: rows, names, order, numbers and footnotes."""

import csv
import io
import json

import pytest

from purebench.errors import UserError
from purebench.records.store import Log
from purebench.report import tables


def log(defense, attack, correct, *, n=100, k=2, clean=None, gradient="exact", seed=0, **other):
    """A cell whose first `correct` of n images are always classified right after the attack, and `clean` before it."""
    clean = n if clean is None else clean
    cell = {
        "dataset": "digits", "subset": "first", "classifier": "cnn", "score": "vp", "threat": "Linf:0.2", "seed": seed,
        "defense": defense, "attack": attack, "gradient": gradient,
        "parameters": {"defense": {"steps": 10} if defense != "none" else {}, "attack": {"eps": 8 / 255}},
        "hashes": {},
    }  # fmt: skip
    verdict, failed, seconds = (other.pop(key, None) for key in ("verdict", "failed", "seconds"))
    cell |= other
    parts = {kind: {"version": 1, "values": values} for kind, values in cell.pop("parameters").items()}
    hashes = cell.pop("hashes")
    for kind, digest in hashes.items():
        parts.setdefault(kind, {})["hash"] = digest
    cell["parts"] = parts | ({"score": {"version": 1}} if cell["score"] != "-" else {})
    images = [
        {
            "position": i, "index": i, "label": 1, "undefended": 1, "clean": [int(i < clean)] * k,
            "adversarial": [int(i < correct)] * k, "verdict": None if verdict is None else i < verdict, "nfe": [30, 20],
        }
        for i in range(n)
    ]  # fmt: skip
    name = "-".join(str(cell[key]) for key in ("defense", "attack", "gradient", "seed", "threat", "score", "parts"))
    return Log(id=name, cell=cell, runs=[], images=images, seconds=seconds or 10.0, failed=failed)


def benchmark():
    return [
        log("none", "null", 100, k=1),
        log("none", "pgd-eot", 0, k=1),
        log("coup", "null", 98, clean=98, gradient="-"),
        log("coup", "pgd-eot", 50, clean=98),
        log("coup", "bpda-eot", 70, clean=98, gradient="bpda"),
        log("coup", "pgd-eot", 60, clean=98, gradient="adjoint"),
        log("diffpure", "pgd-eot", 60, clean=98),
        log("diffpure", "transfer:from=(coup)", 55, clean=98),
        log("diffpure", "autoattack-rand", 57, verdict=20, clean=98),
    ]


SNAPSHOT = """\
### digits, Linf:0.2

Classifier `cnn`, score model `vp`.

| defense  |      clean |       null |     from coup |  bpda-eot | pgd-eot @adjoint |       pgd-eot | autoattack-rand | autoattack-rand (aa) | strongest | per image | NFE/image | time |
|----------|-----------:|-----------:|--------------:|----------:|-----------------:|--------------:|----------------:|---------------------:|----------:|----------:|----------:|-----:|
| none     | 100.0 ±3.7 | 100.0 ±3.7 |             – |         – |                – |  **0.0 ±3.7** |               – |                    – |  0.0 ±3.7 |  0.0 ±3.7 |     30+20 | 20 s |
| diffpure |  98.0 ±5.0 |          – | **55.0 ±9.8** |         – |                – |     60.0 ±9.8 |       57.0 ±9.8 |            20.0 ±8.9 | 55.0 ±9.8 | 55.0 ±9.8 |     30+20 | 30 s |
| coup     |  98.0 ±5.0 |  98.0 ±5.0 |             – | 70.0 ±9.6 |        60.0 ±9.8 | **50.0 ±9.6** |               – |                    – | 50.0 ±9.6 | 50.0 ±9.6 |     30+20 | 40 s |
"""  # noqa: E501


def words(text):
    """The words of a Markdown table, whatever its padding."""
    return [[w.strip() for w in row.strip("|").split(" | ")] for row in text.splitlines() if row.startswith("| ")]


def test_markdown_grid():
    text = tables.render(benchmark())
    head, _, notes = text.partition("\n- ")
    assert head == SNAPSHOT
    assert ("- " + notes).splitlines() == [
        "- Accuracy in %: mean of single runs, ± the farther end of the 95 % Wilson interval (sample size: images).",
        "- Fresh evaluations per image: 2 (1: none).",
        "- Images: 100; subset `first`.",
        "- Seed: 0; 9 cells.",
        "- strongest: the attack with the lowest mean (bold). per image: the worst of them for each image, "
        "chosen on even draws, scored on odd.",
        "- Gradient: exact: from coup, pgd-eot, autoattack-rand; bpda: bpda-eot; adjoint: pgd-eot @adjoint.",
        "- (aa): AutoAttack's verdict, where one lucky miss breaks an image; beside it, its images judged afresh, "
        "where those that it did not break are clean: an upper bound.",
        "- NFE/image: network forwards + backwards of the costliest attack; time: all attacks of the row.",
        "- coup, diffpure: `steps=10`",
        "- null, from coup, bpda-eot, pgd-eot, autoattack-rand: `eps=8/255`",
    ]


def test_the_order_of_the_logs_does_not_matter():
    logs = benchmark()
    for layout in tables.LAYOUTS:
        assert tables.render(iter(logs[::-1]), layout) == tables.render(logs, layout)


def test_tidy_rows():
    rows = tables.tidy([log("coup", "pgd-eot", 50, k=10, seed=3), log("coup", "null", 100, k=10, seed=3, gradient="-")])
    assert all(tuple(row) == tables.COLUMNS for row in rows)
    assert " ".join(tables.COLUMNS) == (
        "dataset classifier score defense attack threat grad metric value low high images evals seed "
        "nfe_forward nfe_backward seconds cell"
    )
    found = {row["metric"]: row for row in rows if row["attack"] == "pgd-eot"}
    assert set(found) == {"robust", "robust_std", "worst10", "vote10", "clean", "clean_worst10", "clean_vote10"} | {
        "undefended", "null_difference",
    }  # fmt: skip
    robust = found["robust"]
    assert (robust["value"], robust["images"], robust["evals"], robust["seed"], robust["grad"]) == (
        0.5,
        100,
        10,
        3,
        "exact",
    )
    assert (robust["low"], robust["high"]) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert (robust["nfe_forward"], robust["nfe_backward"], robust["seconds"]) == (30, 20, 10)
    assert found["null_difference"]["value"] == -0.5
    assert found["robust_std"]["low"] is None


def test_the_null_control_must_be_the_same_but_for_the_attack():
    others = [
        {"seed": 1},
        {"subset": "last"},
        {"score": "other"},
        {"parameters": {"defense": {"steps": 5}, "attack": {}}},
    ]
    for other in others:
        rows = tables.tidy([log("coup", "pgd-eot", 50), log("coup", "null", 100, gradient="-", **other)])
        assert "null_difference" not in {row["metric"] for row in rows if row["attack"] == "pgd-eot"}, other


def test_json_and_csv_say_what_the_rows_say():
    logs = benchmark()
    for layout, rows in (("tidy", tables.tidy(logs)), ("grid", tables.grid(logs))):
        assert json.loads(tables.render(logs, layout, "json")) == rows
        read = list(csv.DictReader(io.StringIO(tables.render(logs, layout, "csv"))))
        assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_grid_rows_name_the_strongest_attack():
    rows = [row for row in tables.grid(benchmark()) if row["attack"] == "strongest"]
    found = {(row["defense"], row["metric"]): row for row in rows}
    assert {key: row["value"] for key, row in found.items()} == {
        ("none", "robust"): 0.0, ("none", "robust_image"): 0.0, ("coup", "robust"): 0.5, ("coup", "robust_image"): 0.5,
        ("diffpure", "robust"): 0.55, ("diffpure", "robust_image"): 0.55,
    }  # fmt: skip
    assert found["coup", "robust"]["grad"] == "exact"
    assert found["coup", "robust"]["cell"] == log("coup", "pgd-eot", 50).id
    assert found["coup", "robust_image"]["evals"] == 1
    used = [
        log("coup", "bpda-eot", 0, gradient="bpda"),
        *(log("coup", "pgd-eot", 0, gradient=g) for g in ("adjoint", "exact")),
    ]
    assert found["coup", "robust_image"]["cell"] == " ".join(cell.id for cell in used)  # without the null control


def test_seeds_are_averaged_and_nothing_else():
    logs = [log("coup", "pgd-eot", c, seed=s) for s, c in enumerate((40, 50, 60))]
    logs += [log("coup", "bpda-eot", 48, gradient="bpda", seed=0)]
    (row,) = [r for r in tables.grid(logs) if r["attack"] == "pgd-eot" and r["metric"] == "robust"]
    assert (row["value"], row["seed"], row["images"], row["seconds"]) == (0.5, "0, 1, 2", 100, 30)
    assert row["high"] - row["low"] == pytest.approx(0.1923, abs=1e-4)  # of 100 images, not of 300
    assert row["cell"].split(" ")[0] != row["cell"]
    strongest = [r for r in tables.grid(logs) if r["attack"] == "strongest" and r["metric"] == "robust"]
    assert [(r["value"], r["grad"]) for r in strongest] == [(0.48, "bpda")]  # not the luckiest single seed
    assert "Mean over seeds: 0, 1, 2 (0: bpda-eot); 4 cells." in tables.render(logs)


def test_an_unfinished_seed_is_left_out_of_the_mean_and_said():
    logs = [log("coup", "pgd-eot", 30), log("coup", "pgd-eot", 1, n=1, seed=1)]
    text = tables.render(logs)
    assert words(text)[1][2] == "**30.0 ±9.6**"
    assert "left out of the mean over seeds, which have more images: pgd-eot on coup, seed 1" in text
    [row] = [r for r in tables.grid(logs) if (r["attack"], r["metric"]) == ("pgd-eot", "robust")]
    assert (row["value"], row["images"], row["seed"]) == (0.3, 100, 0)


def test_a_run_that_was_killed_is_told():
    short = log("coup", "pgd-eot", 30)
    short.runs = [{"wanted": 500}]
    assert any("unfinished: pgd-eot on coup: 100 of 500 images" in line for line in warnings([short]))
    short.runs = [{"wanted": 100}]
    assert not warnings([short])


def test_cells_that_differ_in_a_parameter_keep_apart():
    """Same canonical names, other resolved parameters, versions or weights: never one number."""
    five = {"parameters": {"defense": {"steps": 5}, "attack": {"eps": 8 / 255}}}
    text = tables.render([log("coup", "pgd-eot", 50), log("coup", "pgd-eot", 30, **five)])
    assert [row[0] for row in words(text)[1:]] == ["coup [steps=10]", "coup [steps=5]"]
    more = {"parameters": {"defense": {"steps": 10}, "attack": {"eps": 0.5}}}
    text = tables.render([log("coup", "pgd-eot", 50), log("coup", "pgd-eot", 30, **more)])
    assert words(text)[0][2:4] == ["pgd-eot [eps=0.5]", "pgd-eot [eps=8/255]"]
    assert words(text)[1][2:4] == ["**30.0 ±9.6**", "50.0 ±9.6"]
    old, new = log("coup", "pgd-eot", 50), log("coup", "pgd-eot", 30, hashes={"classifier": "abc"})
    new.id += "-new"
    assert [row[0] for row in words(tables.render([old, new]))[1:]] == ["coup", "coup [classifier=abc]"]


def test_a_cell_given_twice_counts_once():
    short, full = log("coup", "pgd-eot", 50, n=60), log("coup", "pgd-eot", 50)
    for logs in ([short, full], [full, short]):
        assert [r["images"] for r in tables.tidy(logs) if r["metric"] == "robust"] == [100]


def test_one_table_for_each_threat_and_shared_cells_in_each():
    logs = [
        log("coup", "pgd-eot", 50),
        log("coup", "pgd-eot", 40, threat="Linf:0.3"),
        log("none", "pgd-eot", 0, score="-"),
    ]
    text = tables.render([*logs, log("coup", "null", 100, threat="-", gradient="-")])
    assert [row for row in text.splitlines() if "#" in row] == ["### digits, Linf:0.2", "### digits, Linf:0.3"]
    assert text.count("| coup ") == 2
    assert [row[0] for row in words(text.partition("Linf:0.3")[0])] == ["defense", "none", "coup"]
    assert len([row for row in words(text) if row[2] == "100.0 ±3.7"]) == 2  # null
    assert "### digits\n" in tables.render([log("none", "null", 100, threat="-", score="-")])


def titles(text):
    return [line for line in text.splitlines() if line.startswith("Classifier ")]


def test_what_uses_no_score_model_is_in_the_table_of_each():
    """Beside whichever score model; a transfer made elsewhere is not."""
    free = [log(d, a, 40, score="-") for d in ("none", "gaussian:sigma=0.5") for a in ("null", "pgd-eot")]
    logs = [*free, log("coup", "pgd-eot", 50, score="b"), log("one-shot", "pgd-eot", 60, score="c")]
    text = tables.render(logs)
    assert titles(text) == [f"Classifier `cnn`, score model `{score}`." for score in "bc"]
    assert text.count("| none ") == text.count("| gaussian:sigma=0.5 ") == 2
    assert {row["score"] for row in tables.grid(logs) if row["defense"] == "none"} == {"b", "c"}
    assert {row["score"] for row in tables.tidy(logs) if row["defense"] == "none"} == {"-"}
    made_on_a = log("none", "transfer:from=(coup)", 30, score="a", gradient="-", source="digits-coup")
    assert titles(tables.render([*logs, made_on_a]))[0] == "Classifier `cnn`, score model `a`."


def test_without_any_score_model_there_is_one_table():
    logs = [log(d, a, 40, score="-") for d in ("none", "gaussian") for a in ("null", "pgd-eot")]
    text = tables.render(logs)
    assert titles(text) == ["Classifier `cnn`."]
    assert [row[0] for row in words(text)[1:]] == ["none", "gaussian"]
    assert "Gradient:" not in tables.render([log("none", "pgd-eot", 40)])


def test_a_title_or_a_name_cannot_break_the_table():
    text = tables.render([log("a|b*<i>", "pgd-eot:x=[1,2]", 50, classifier="file:`w|1`\nx")])
    row = next(row for row in text.splitlines() if row.startswith("| a"))
    assert row.startswith(r"| a\|b\*\<i> |")
    assert row.replace(r"\|", "").count("|") == next(r for r in text.splitlines() if r.startswith("|-")).count("|")
    assert "Classifier ``file:`w|1` x``" in text
    assert r"| a\|b\*\<i> |" in tables.render([log("a|b*<i>", "pgd-eot", 50)], "tidy")


@pytest.mark.parametrize(
    ("logs", "warning"),
    [
        ([log("coup", "pgd-eot", 30, n=64)], "64 images: a difference under about 17 points is chance"),
        ([log("coup", "pgd-eot", 99, clean=98)], "robust above clean: pgd-eot on coup"),
        ([log("coup", "null", 97, clean=98, gradient="-")], "the null control differs from clean: null on coup"),
        ([log("coup", "pgd-eot", 50, k=1)], "one evaluation of each image"),
        ([log("coup", "pgd-eot", 50, gradient="adjoint")], "no attack with the exact gradient on coup"),
        ([log("coup", "transfer:from=(x)", 50)], "no attack with the exact gradient on coup"),
        ([log("coup", "pgd-eot", 50, stand_in=["tiny vp"])], "not paper-comparable, for what stands in: tiny vp"),
        ([log("coup", "pgd-eot", 50, failed="out of\nmemory")], "failed: pgd-eot on coup: `out of memory`"),
        ([log("coup", "pgd-eot", 0, n=0)], "not judged yet: pgd-eot on coup"),
    ],
)
def test_warnings(logs, warning):
    lines = [line for line in tables.render(logs).splitlines() if line.startswith("- **Warning:**")]
    assert len(lines) == 1
    assert warning in lines[0]


def warnings(logs):
    return [line for line in tables.render(logs).splitlines() if line.startswith("- **Warning:**")]


def test_images_that_an_attack_did_not_make_are_missing_and_said():
    bad = log("coup", "pgd-eot", 50)
    bad.images[0] |= {"failed": "attack: it returned values that are not finite", "adversarial": []}
    said = warnings([bad])[-1]
    assert (
        "missing, since the attack made no image: pgd-eot on coup: 1 of 100 images; the same run tries them again"
        in said
    )
    assert tables.tidy([bad])[0]["images"] == 99


def test_no_attack_that_made_an_image_is_a_dash_and_not_the_control():
    bad = log("coup", "pgd-eot", 50)
    for line in bad.images:
        line |= {"failed": "attack: it returned values that are not finite", "adversarial": []}
    logs = [bad, log("coup", "null", 100, gradient="-")]
    [row] = words(tables.render(logs))[1:]
    assert row == ["coup", "100.0 ±3.7", "100.0 ±3.7", "–", "–", "–", "30+20", "20 s"]
    assert not [row for row in tables.grid(logs) if row["attack"] == "strongest"]


def test_purifications_that_are_not_finite_count_as_wrong_and_are_said():
    """Also in records of before, which left them out: 17 of 24 images that went to NaN were printed as 100 % robust."""
    for new in (True, False):
        bad = log("nanny", "pgd-eot", 24, n=24)
        for line in bad.images[:17]:
            line["adversarial"] = [-1, -1]
            why = "step 1 of 3 gave values that are not finite"
            line |= {"not_finite": {"adversarial": why}} if new else {"failed": why}
        text = tables.render([bad])
        assert words(text)[1][2] == "**29.2 ±20.0**"
        assert (
            "purifications of attacked images that are not finite count as wrong: pgd-eot on nanny: 17 of 24 images "
            "(step 1 of 3 gave values that are not finite)" in text
        )
        assert {r["metric"]: r["value"] for r in tables.tidy([bad])}["not_finite"] == pytest.approx(17 / 24, abs=1e-6)


def test_a_transfer_of_images_that_were_never_made_is_not_judged():
    """Older versions handed on the clean image in their place."""
    source = log("coup", "pgd-eot", 50)
    source.images[3] |= {"failed": "attack: the gradient gave values that are not finite"}
    transfer = log("diffpure", "transfer:from=(coup)", 60, gradient="-", source=source.id)
    found = {r["defense"]: r for r in tables.tidy([source, transfer]) if r["metric"] == "robust"}
    assert [found[d]["images"] for d in ("coup", "diffpure")] == [99, 99]
    assert found["diffpure"]["value"] == pytest.approx(59 / 99, abs=1e-6)
    [said] = [text for text in warnings([source, transfer]) if "missing" in text]
    assert "from coup on diffpure: 1 of 100" in said


def test_the_strongest_row_names_the_seeds_that_it_is_the_mean_of():
    logs = [log("coup", "pgd-eot", 50), log("coup", "pgd-eot", 0, n=0, seed=1, failed="out of memory")]
    found = {row["attack"]: row for row in tables.grid(logs) if row["metric"] == "robust"}
    assert found["strongest"] == found["pgd-eot"] | {"attack": "strongest"}
    assert (found["strongest"]["seed"], found["strongest"]["cell"]) == (0, logs[0].id)


def test_without_a_judged_image_there_is_no_row():
    logs = [log("coup", "pgd-eot", 0, n=0), log("coup", "null", 0, n=0)]
    assert tables.tidy(logs) == tables.grid(logs) == []
    assert tables.render(logs, format="csv").splitlines() == [",".join(tables.COLUMNS)]
    assert tables.render(logs, format="json") == "[\n\n]\n"


def counted(cell, blind, right=10, not_finite=0):
    """The cell with a log of gradients: of `blind` images they vanished."""
    for i, line in enumerate(cell.images):
        gone = right if i < blind else 0
        line["gradients"] = {"iterates": 10, "zero": gone, "not_finite": not_finite, "right": right, "blind": gone}
    return cell


def test_masked_gradients_are_told_and_a_headline_without_others_is_marked():
    masked = counted(log("round", "pgd-eot", 100), 90)
    text = tables.render([masked])
    assert words(text)[1][3] == "100.0 ±3.7 †"
    first, second = warnings([masked])
    assert "wherever an image was still classified rightly: pgd-eot on round: 90 of 100 images" in first
    assert "`loss=margin`" in first
    assert "† every gradient attack on round was masked" in second
    [row] = [r for r in tables.grid([masked]) if (r["attack"], r["metric"]) == ("strongest", "masked")]
    assert row["value"] == 0.9

    seeing = counted(log("round", "bpda-eot", 3, gradient="bpda"), 0)
    text = tables.render([masked, seeing])
    assert words(text)[1][4] == "3.0 ±5.5"
    assert len(warnings([masked, seeing])) == 1
    assert not warnings([counted(log("round", "pgd-eot", 50), 9)])


def test_gradients_that_are_not_finite_are_told():
    [said] = warnings([counted(log("coup", "pgd-eot", 50), 0, not_finite=1)])
    assert (
        "stopped the attack (AutoAttack takes them for zero) on images that it had not broken: pgd-eot on coup: 50 of 100 images"
        in said
    )


@pytest.mark.parametrize(
    ("note", "said"), [("random", "asked twice, got two answers"), ("probabilities", "not logits")]
)
def test_what_makes_every_number_doubtful_is_told(note, said):
    odd = log("coup", "pgd-eot", 50)
    odd.images[7]["notes"] = [note]
    assert said in warnings([odd])[0]


def test_clean_accuracy_at_chance_is_told():
    odd = log("coup", "pgd-eot", 3, clean=12)
    for i, line in enumerate(odd.images):
        line |= {"label": i % 10, "clean": [i % 10 if i < 12 else 99] * 2, "adversarial": [99] * 2}
    assert "clean accuracy cannot be told from guessing: coup" in warnings([odd])[0]


def test_a_headline_on_fewer_images_says_so():
    logs = [
        log("coup", "bpda-eot", 50, gradient="bpda"),
        log("coup", "pgd-eot", 5, n=40),
        log("coup", "null", 99, gradient="-"),
    ]
    text = tables.render(logs)
    assert words(text)[1][5] == "12.5 ±13.6 (n = 40)"
    assert (
        "- coup: strongest is pgd-eot, on 40 images: on the 40 that it shares with bpda-eot it is 87.5 points lower "
        "(95 %: 77.1 to 97.9)." in text
    )
    [row] = [r for r in tables.grid(logs) if (r["attack"], r["metric"]) == ("strongest", "robust")]
    assert (row["value"], row["images"], row["grad"]) == (0.125, 40, "exact")


def test_footnotes_say_where_images_differ():
    logs = [
        log("coup", "pgd-eot", 50, n=500),
        log("coup", "autoattack-rand", 50, verdict=9),
        log("x", "pgd-eot", 9, n=300),
    ]
    logs += [log("x", "bpda-eot", 9, n=500, gradient="bpda"), log("coup", "bpda-eot", 9, n=500, gradient="bpda")]
    text = tables.render(logs)
    assert "- Images: 500 (100: autoattack-rand; 300: x under pgd-eot); subset `first`." in text
    assert "the lowest mean (bold) of those on the most images, or one on fewer that is lower beyond chance" in text


def test_bad_requests():
    logs = benchmark()
    for layout, format, hint in (
        ("gird", "md", "did you mean `grid`"),
        ("grid", "cvs", "did you mean `csv`?"),
        ("grid", "tex", "md"),
    ):
        with pytest.raises(UserError) as caught:
            tables.render(logs, layout, format)
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="no results") as caught:
        tables.render([])
    assert "purebench run" in caught.value.hint


def test_a_large_benchmark():
    """400 cells x 50 images, every cell in its place."""
    logs = [log(f"d{i % 10}", f"pgd-eot:eot={i // 10 + 2}", i % 50, n=50, k=10) for i in range(400)]
    rows = [row for row in tables.grid(logs) if row["metric"] == "robust" and row["attack"] != "strongest"]
    assert len(rows) == 400
    assert len(words(tables.render(logs))) == 11
