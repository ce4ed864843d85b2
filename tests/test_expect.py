"""Expectations: what they say, what they are about, and that nothing missing, unfinished or blind meets one."""

from pathlib import Path

import pytest
from test_cli import advises, here
from test_compare import one
from test_tables import log

import purebench
from purebench.errors import UNMET, UserError
from purebench.report import compare, expect, metrics, tables

EMBEDDED = Path(purebench.__file__).parents[1] / "results" / "embedded"
MASKED = {"iterates": 3, "zero": 3, "not_finite": 0, "right": 3, "blind": 3}


def judge(text, logs):
    reading = expect.read(text)
    expect.check_known([reading], logs)
    return expect.judged(reading, expect.of_grid(logs))


def holds(text, logs):
    return judge(text, logs).met


def blind(*arguments, **options):
    made = log(*arguments, **options)
    made.images = [line | {"gradients": MASKED} for line in made.images]
    return made


def test_what_was_cut_off_is_unfinished_however_many_later_images_another_run_left():
    """Three images are wanted, and three are there: of a longer run that was cut off, too."""
    found = log("coup", "pgd-eot", 3, n=3)
    found.runs = [{"wanted": 3}]
    assert metrics.short(found) == ""
    for position, line in zip((2, 3, 5), found.images, strict=True):
        line["position"] = position
    assert "1 of 3 images" in metrics.short(found)
    assert not holds("coup/pgd-eot>=0.1", [found])
    assert any("unfinished" in said for said in tables.render([found]).splitlines())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("coup/autoattack-rand>=0.40", ("coup", "autoattack-rand", "", "", "robust", ">=", 0.4)),
        (" coup / strongest".replace(" ", "") + " > 40% ", ("coup", "strongest", "", "", "robust", ">", 0.4)),
        (
            "coup/pgd-eot@adjoint/linf:8/255(worst10)<=.5",
            ("coup", "pgd-eot", "adjoint", "Linf:8/255", "worst10", "<=", 0.5),
        ),
        ("coup:t=1/10/pgd-eot<1.0", ("coup:t=0.1", "pgd-eot", "", "", "robust", "<", 1.0)),
        ("none/transfer:from=(coup:t=1/10)(aa)>=0", ("none", "transfer:from=(coup:t=0.1)", "", "", "aa", ">=", 0.0)),
        ("coup/clean>=99.5%", ("coup", "", "", "", "clean", ">=", 0.995)),
        ("coup/null(clean)>=0.5", ("coup", "null", "", "", "clean", ">=", 0.5)),
    ],
)
def test_what_an_expectation_says(text, parts):
    found = expect.read(text)
    assert (found.defense, found.attack, found.gradient, found.threat, found.metric, found.op) == parts[:-1]
    assert found.bound == pytest.approx(parts[-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coup/pgd-eot>=40", "may be a share or percent"),
        ("coup/pgd-eot<=1", "may be a share or percent"),  # 1 for 1 % would always hold
        ("coup/pgd-eot>=140%", "more than all images"),
        ("coup/pgd-eot>=-0.1", "no share of the images"),
        ("coup/pgd-eot>=nan", "no share of the images"),
        ("coup/pgd-eot>=", "no share of the images"),
        ("coup/pgd-eot", "it has no `>=`"),
        ("coup/pgd-eot==0.4", "never exactly another"),
        ("coup/pgd-eot=>0.4", "no comparison"),
        ("coup>=0.4", "names no defense and attack"),
        ("coup/pgd-eot(acc)>=0.4", "unknown metric `acc`"),
        ("coup/pgd-eot(difference)>=0.0", "unknown metric"),
        ("coup/strongest@exact>=0.4", "over all gradients"),
        ("coup/strongest(aa)>=0.4", "chosen by robust accuracy"),
        ("coup:step=3/pgd-eot>=0.4", "unknown parameter of `coup`"),
        ("coup/pgd-eot/Linf:x>=0.4", "cannot read the radius"),
    ],
)
def test_what_is_no_expectation(text, message):
    with pytest.raises(UserError, match=message) as error:
        expect.read(text)
    assert error.value.hint


def test_a_typing_error_is_told_and_a_name_without_a_record_is_unmet():
    logs = [log("coup", "pgd-eot", 50), log("mine", "pgd-eot", 50)]
    for text in ("cop/pgd-eot>=0.4", "coup/pgd-eott>=0.4", "coup/pgd-eot@exat>=0.4"):
        with pytest.raises(UserError, match="unknown") as error:
            judge(text, logs)
        assert "did you mean" in error.value.hint
    for text in ("diffpure/pgd-eot>=0.4", "coup/apgd-ce<=1.0", "coup/pgd-eot@bpda>=0.0", "coup/pgd-eot/L2:1>=0.0"):
        assert judge(text, logs) == expect.Verdict(False, f"unmet: {text}: no record is of that")
    # A plug-in that is not installed here has records all the same.
    assert holds("mine/pgd-eot>=0.5", logs)


def test_the_four_comparisons_at_the_number_itself():
    logs = [log("coup", "pgd-eot", 40)]
    assert [holds(f"coup/pgd-eot{op}{number}", logs) for number in ("0.40", "40%") for op in (">=", "<=", ">", "<")] == [
        True, True, False, False,
    ] * 2  # fmt: skip
    assert judge("coup/pgd-eot>=0.41", logs).line == (
        "unmet: coup/pgd-eot>=0.41: 0.4 (40 %) on 100 images (coup/pgd-eot@exact/Linf:0.2)"
    )
    thirds = [log("coup", "pgd-eot", n, seed=seed) for seed, n in enumerate((10, 20, 30))]
    assert holds("coup/pgd-eot>=0.2", thirds)  # the mean of seeds, whatever its last digit


def test_it_must_hold_for_all_that_it_is_about():
    five = {"parameters": {"defense": {"steps": 5}, "attack": {}}}
    logs = [
        log("coup", "pgd-eot", 60),
        log("coup", "pgd-eot", 40, gradient="adjoint"),
        log("coup:steps=5", "pgd-eot", 20, **five),
    ]
    assert not holds("coup/pgd-eot>=0.3", logs)
    assert "0.2 (20 %)" in judge("coup/pgd-eot>=0.3", logs).line
    assert holds("coup/pgd-eot>=0.2", logs)
    assert holds("coup/pgd-eot@exact<=0.6", logs)
    assert holds("coup:steps=10/pgd-eot>=0.4", logs)  # found by its value: its name is `coup`
    assert holds("coup:steps=10/pgd-eot@exact>=0.6", logs)
    other = [*logs[:1], log("coup", "pgd-eot", 5, threat="Linf:0.3")]
    assert not holds("coup/pgd-eot>=0.5", other)
    assert holds("coup/pgd-eot/Linf:0.2>=0.5", other)


def test_metrics_other_than_robust():
    logs = [log("coup", "autoattack-rand", 57, verdict=20, clean=98)]
    assert holds("coup/autoattack-rand(aa)<=0.2", logs)
    assert holds("coup/clean>=0.98", logs)
    assert not holds("coup/autoattack-rand(worst10)>=0.0", logs)
    assert "it has no `worst10`" in judge("coup/autoattack-rand(worst10)>=0.0", logs).line


def test_what_was_not_run_to_its_end_meets_nothing():
    cut, whole = log("coup", "pgd-eot", 100), log("coup", "apgd-ce", 50)
    cut.runs = [{"wanted": 500}]
    assert "unfinished" in judge("coup/pgd-eot>=0.1", [cut, whole]).line
    assert not holds("coup/pgd-eot<=1.0", [cut, whole])
    # The one that is unfinished may be the strongest.
    assert not holds("coup/strongest>=0.5", [cut, whole])
    assert holds("coup/strongest>=0.5", [log("coup", "pgd-eot", 100), whole])
    assert not holds("coup/pgd-eot>=0.0", [log("coup", "pgd-eot", 0, n=0, failed="out of memory")])
    # A seed that was cut off does not count for the mean, and is still not there.
    partial = log("coup", "apgd-ce", 9, n=10, seed=1)
    partial.runs = [{"wanted": 100}]
    assert not holds("coup/apgd-ce>=0.5", [whole, partial])


def test_a_blind_attack_proves_nothing():
    logs = [blind("coup", "pgd-eot", 90), log("coup", "null", 100, gradient="-")]
    assert judge("coup/pgd-eot>=0.5", logs).line.endswith(
        "masked: no evidence of robustness (coup/pgd-eot@exact/Linf:0.2)"
    )
    assert not holds("coup/strongest>=0.5", logs)
    assert holds("coup/pgd-eot<=0.95", logs)  # what it did break is broken
    assert holds("coup/clean>=0.99", logs)  # and clean images were not attacked
    seeing = [*logs, log("coup", "apgd-ce", 95)]
    assert not holds(
        "coup/strongest>=0.5", seeing
    )  # an older record, which says nothing of its gradients, does not speak for it
    seeing[-1].images = [line | {"gradients": MASKED | {"zero": 0, "blind": 0}} for line in seeing[-1].images]
    assert holds("coup/strongest>=0.5", seeing)
    assert not holds("coup/pgd-eot>=0.5", seeing)


def test_a_control_is_no_strongest_attack():
    assert not holds("coup/strongest>=0.1", [log("coup", "null", 100, gradient="-")])


def test_what_is_compared():
    logs = [
        log("diffpure", "pgd-eot", 50),
        log("coup", "pgd-eot", 45),
        blind("one-shot", "pgd-eot", 60),
    ]
    numbers = compare.measured(one(logs, "defense"))

    def of(text):
        return expect.judged(expect.read(text, compared=True), numbers, nothing="nothing").met

    assert of("coup/pgd-eot>=45%")
    assert not of("coup/pgd-eot>=46%")
    numbers = compare.measured(one(logs[:2], "defense"))
    assert of("coup/pgd-eot(difference)>=-0.05")
    assert not of("coup/pgd-eot(difference)>=-4.9%")
    assert of("diffpure/pgd-eot(difference)<0.0")
    assert not of("coup/apgd-ce(difference)<1.0")
    numbers = compare.measured(one(logs[1:], "defense"))
    assert not of("coup/pgd-eot(difference)>=0.0")  # a difference to a blind attack, either way
    assert not of("coup/pgd-eot(difference)<=1.0")
    with pytest.raises(UserError, match="no strongest attack"):
        expect.read("coup/strongest>=0.4", compared=True)


# -------------------------------------------------------------------------------------------------------- the command line


def test_unmet_is_an_exit_code_of_its_own_and_leaves_the_data_alone(monkeypatch, capsys, tmp_path):
    coup = [EMBEDDED / "digits-coup-pgd-eot-exact-80e391c010", EMBEDDED / "digits-coup-null-2bfe3328a5"]
    _, plain, _ = here(monkeypatch, capsys, "table", *coup, "--format", "csv")
    met = ("--expect", "coup/strongest>=0.40", "--expect", "coup/clean>=95%")
    code, out, err = here(monkeypatch, capsys, "table", *coup, "--format", "csv", *met)
    assert (code, out) == (0, plain)
    assert [line.partition(":")[0] for line in err.splitlines()] == ["met", "met"]
    code, out, err = here(monkeypatch, capsys, "table", *coup, "--format", "csv", *met, "--expect", "coup/pgd-eot>=60%")
    assert (code, out) == (UNMET, plain)
    assert "unmet: coup/pgd-eot>=60%: 0.5468 (54.68 %) on 500 images" in err
    code, _, err = here(monkeypatch, capsys, "table", *coup, "--out", tmp_path / "t.md", "--expect", "edm/pgd-eot>0.5")
    assert code == UNMET
    assert (tmp_path / "t.md").read_text().startswith("### digits")
    for wrong in (["--expect", "coop/null>0.5"], ["--layout", "coup/1", "--expect", "coup/null>0.5"]):
        advises(here(monkeypatch, capsys, "table", *coup, *wrong), 2)


def test_compare_by_the_command_line(monkeypatch, capsys, tmp_path):
    pgd = ("-d", "coup", "-a", "pgd-eot")
    code, out, _ = here(monkeypatch, capsys, "compare", EMBEDDED, *pgd, "--grad", "exact", "--grad", "adjoint")
    assert code == 0
    assert "| exact | adjoint |    200 | 53.3 | 85.2 | +31.9 | +27.5 to +36.3 |      0 |     59 |" in out
    options = (
        "--by",
        "gradient",
        "--format",
        "csv",
        "--out",
        tmp_path / "c.csv",
        "--expect",
        "coup/pgd-eot(difference)>=0.0",
    )
    code, out, err = here(monkeypatch, capsys, "compare", EMBEDDED, *pgd, *options)
    assert (code, out) == (UNMET, "")
    assert "-0.0834 (-8.34 points) on 500 images (exact and detached (coup pgd-eot Linf:0.2))" in err
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 4
    assert here(monkeypatch, capsys, "compare", EMBEDDED, EMBEDDED.parent / "digits-all", *pgd)[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([EMBEDDED], ["nothing says what", "--by gradient"]),
        ([EMBEDDED, EMBEDDED], ["one folder"]),
        ([EMBEDDED, EMBEDDED, EMBEDDED], ["3 folders"]),
        ([EMBEDDED, "nowhere"], ["there is no `nowhere`"]),
        ([EMBEDDED, "--by", "moon"], ["unknown word for `--by`"]),
        ([EMBEDDED, "-d", "cop", "-d", "diffpure"], ["did you mean `coup`"]),
        ([EMBEDDED, "-d", "coup", "-d", "adp"], ["no record is of the defense `adp`"]),
        ([EMBEDDED, "-d", "coup", "-d", "diffpure", "-a", "null", "-a", "noise"], ["by which of them"]),
        ([EMBEDDED, "--by", "defense", "--metric", "acc"], ["unknown metric"]),
        ([EMBEDDED, "--by", "defense", "--format", "pdf"], ["unknown format"]),
        ([EMBEDDED, "--by", "gradient", "--expect", "coup/pgd-eot"], ["it has no `>=`"]),
    ],
)
def test_compare_advises(monkeypatch, capsys, options, words):
    advises(here(monkeypatch, capsys, "compare", *options), 2, *words)
