"""`--sanity`: which cells check an attack, what is said of them, and that a planted masked gradient is caught in words."""

import dataclasses
import json
import shlex
import sys

import pytest

from purebench import cli
from purebench.errors import UserError
from purebench.plan import checks
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.records.store import Log
from purebench.report import sanity
from purebench.spec import threat

# ------------------------------------------------------------------------------------------------------------------ planned


def planned(*defenses, attacks=("pgd-eot:steps=40,eot=20",), images=100, **given):
    request = Request(
        defenses=defenses or ("diffpure",), attacks=tuple(attacks), dataset="digits", images=images, sanity=True, checks=True, **given
    )  # fmt: skip
    return plan.build(request)


def test_the_checks_are_scaled_down_from_what_was_asked_for():
    jobs = planned().jobs
    assert [job.cell.attack.name for job in jobs[:3]] == ["null", "noise", "pgd-eot"]
    extra = jobs[3:]
    assert {job.images for job in extra} == {25}
    assert all(job.images == 100 for job in jobs[:3])
    values = [job.cell.attack.values for job in extra if job.cell.attack.name == "pgd-eot"]
    assert {v["steps"] for v in values if v["eot"] == 5} == {1, 10, 20, 40, 80}
    assert {v["eot"] for v in values if v["steps"] == 10} == {5, 10, 20, 40}
    assert {str(job.cell.threat) for job in extra} == {"Linf:0.2", "Linf:0.4", "Linf:0.8", "Linf:1"}
    assert [str(job.cell.defense) for job in extra if job.cell.defense.options] == ["diffpure:noise=0"]
    assert {job.cell.attack.name for job in extra} == {"pgd-eot", "transfer-pgd", "bpda-eot", "square-eot"}


def test_without_checks_sanity_adds_the_controls_alone():
    request = Request(defenses=("diffpure",), attacks=("pgd-eot",), dataset="digits", images=4, sanity=True)
    assert [job.cell.attack.name for job in plan.build(request).jobs] == ["null", "noise", "pgd-eot"]


def test_the_checks_go_through_the_purifier_whatever_was_asked_for():
    for grads, own in ((("bpda",), "exact"), (("bpda", "adjoint"), "adjoint")):
        extra = [job.cell for job in planned(grads=grads).jobs if job.images == 25]
        assert {str(cell.gradient) for cell in extra if cell.attack.name == "pgd-eot"} == {own}


def test_what_cannot_be_checked_is_left_out():
    assert [str(job.cell.defense) for job in planned("none").jobs] == ["none"] * 3
    assert all(str(job.cell.threat) == "-" for job in planned(attacks=("null",), threats=("StAdv:0.05",)).jobs)
    assert any("has no checks under StAdv:0.05" in note for note in planned(attacks=("null",), threats=("StAdv:0.05",)).notes)  # fmt: skip
    # A deterministic defense has no draws to switch off.
    assert {str(job.cell.defense) for job in planned("diffpure:noise=0", images=16).jobs} == {"diffpure:noise=0"}
    notes = plan.build(Request("coup/1", dataset="digits", images=2, sanity=True, checks=True)).notes
    assert any("of a paper's table `--sanity` adds the controls alone" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "wider"),
    [
        ("Linf:0.1", ["Linf:0.2", "Linf:0.4", "Linf:1"]),
        ("Linf:0.3", ["Linf:0.6", "Linf:1"]),
        ("Linf:1", []),
        ("L2:0.5", ["L2:1", "L2:2", "L2:8"]),
        ("L1:12", ["L1:24", "L1:48", "L1:64"]),
        ("StAdv:0.05", []),
        ("box", []),
    ],
)
def test_balls_grow_until_one_holds_every_image(given, wider):
    assert [str(limit) for limit in checks.wider(threat(given), [1, 8, 8])] == wider


@pytest.mark.parametrize(("wanted", "some"), [(4, 4), (16, 16), (64, 16), (100, 25), (512, 32)])
def test_a_check_takes_few_images(wanted, some):
    assert checks.images(wanted) == some


# ------------------------------------------------------------------------------------------------------------------- judged


def log(attack, robust, *, n=20, gradient="exact", limit="Linf:0.2", noise=1.0, blind=None, defense="d", **values):
    """A cell of which the first `robust` of n images are always right after the attack."""
    options = {} if noise == 1 else {"noise": noise}
    lines = [
        {"position": i, "label": 1, "clean": [1, 1], "adversarial": [int(i < robust)] * 2, "undefended": 1, "verdict": None}
        for i in range(n)
    ]  # fmt: skip
    if blind is not None:
        for line in lines:
            line["gradients"] = {
                "iterates": 4,
                "zero": 4,
                "not_finite": 0,
                "right": 4,
                "blind": 4 if line["position"] < blind else 0,
            }
    text = attack + (":" + ",".join(f"{k}={v}" for k, v in values.items()) if values else "")
    cell = {
        "dataset": "digits", "subset": "first", "classifier": "c", "score": "s", "seed": 0, "threat": limit, "attack": text,
        "defense": defense + (":noise=0" if noise == 0 else ""), "gradient": gradient,
        "parts": {"defense": {"values": options}, "attack": {"values": values}},
    }  # fmt: skip
    return Log(json.dumps(cell), cell, [], lines, 0.0, None)


def pgd(robust, steps=10, eot=5, **more):
    return log("pgd-eot", robust, steps=steps, eot=eot, **more)


def verdicts(*logs):
    [found] = sanity.judge(logs)
    return {one.check: one.verdict for one in found.verdicts}, found.said


SOUND = [
    log("null", 20, gradient="-", limit="-"), log("noise", 20, gradient="-"), pgd(18, steps=1), pgd(6), pgd(5, steps=20), pgd(5, steps=40),
    pgd(5, eot=10), pgd(0, limit="Linf:0.4"), pgd(0, limit="Linf:1"), log("transfer-pgd", 12, gradient="-"),
    log("bpda-eot", 9, gradient="bpda"), log("square-eot", 10, gradient="-"), pgd(4, noise=0),
]  # fmt: skip


def test_a_sound_attack_passes_every_check():
    found, said = verdicts(*SOUND, pgd(7, steps=5, blind=0))
    assert set(found.values()) == {"passed"}
    assert said == "No check speaks against the attack on `d`."


@pytest.mark.parametrize(
    ("check", "verdict", "others"),
    [
        ("noise", "doubtful", [log("noise", 2, gradient="-")]),
        ("one step", "doubtful", [pgd(1, steps=1)]),
        ("steps", "doubtful", [pgd(5, steps=40), pgd(14, steps=80)]),
        ("steps", "doubtful", [pgd(0, steps=40, eot=5)]),
        ("draws", "doubtful", [pgd(0, eot=10)]),
        ("radius", "doubtful", [pgd(15, limit="Linf:0.4")]),
        ("radius", "doubtful", [pgd(5, limit="Linf:1")]),
        ("transfer", "doubtful", [log("transfer-pgd", 0, gradient="-")]),
        ("transfer", "doubtful", [log("bpda-eot", 0, gradient="bpda")]),
        ("gradient-free", "doubtful", [log("square-eot", 0, gradient="-")]),
        ("gradients", "doubtful", [pgd(7, steps=5, blind=5)]),
        ("fixed noise", "open", [pgd(18, noise=0)]),
    ],
)
def test_each_check_catches_what_it_is_for(check, verdict, others):
    replaced = {(one.cell["attack"], one.cell["threat"], one.cell["defense"]) for one in others}
    rest = [one for one in SOUND if (one.cell["attack"], one.cell["threat"], one.cell["defense"]) not in replaced]
    found, said = verdicts(*rest, *others)
    assert found[check] == verdict
    assert (check in sanity.MASKS) == ("is masked" in said)
    assert check in sanity.MASKS or verdict == "open" or "is weaker than it could be" in said


def test_words_are_no_stronger_than_the_gap():
    """COUP's under images made on its unguided version: 54.7 against 46.0 is no masked gradient; half of it would be."""
    found, said = verdicts(pgd(110, n=200), log("transfer", 92, n=200, gradient="-"))
    assert found["transfer"] == "doubtful"
    assert "The gradient of `d` misleads (transfer)" in said
    found, said = verdicts(pgd(110, n=200), log("transfer", 54, n=200, gradient="-"))
    assert "The gradient of `d` is masked (transfer)" in said
    # A few points, however sure, are the difference between two attacks and not between two gradients.
    assert verdicts(pgd(110, n=200), log("bpda-eot", 102, n=200, gradient="bpda"))[0]["transfer"] == "open"


def test_chance_condemns_nobody():
    found, _ = verdicts(pgd(10), log("square-eot", 9, gradient="-"))
    assert found["gradient-free"] == "passed"  # one image of twenty
    found, _ = verdicts(pgd(10), pgd(10, eot=7), log("square-eot", 8, gradient="-"))
    assert found["gradient-free"] == "open"  # two of them are beyond five points, and not beyond chance


def test_what_was_not_run_is_said():
    found, said = verdicts(pgd(10))
    assert set(found.values()) == {"not run"}
    assert "Nothing was checked" in said


def test_of_one_image_nothing_is_passed():
    def first(one):
        return dataclasses.replace(one, images=one.images[:1])

    found, said = verdicts(*(first(one) for one in SOUND))
    assert set(found.values()) == {"not run"}
    assert "Nothing was checked" in said


def test_pairs_are_of_the_images_that_both_have():
    """On all of its 20 images the transfer looks weaker; on the ten that the attack has it is stronger."""
    found, _ = verdicts(pgd(5, n=10), log("transfer-pgd", 0, n=10, gradient="-"))
    assert found["transfer"] == "doubtful"


def _next(*logs):
    [found] = sanity.judge(logs)
    return {one.check: one.next for one in found.verdicts if one.next}


def _rung(command):
    """The cell that a printed command makes."""
    words = shlex.split(command)
    assert words[:2] == ["purebench", "run"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    request = Request(
        defenses=("diffpure",), attacks=(options["-a"],), threats=(options["-t"],), dataset=options["--dataset"],
        images=int(options["--images"]),
    )  # fmt: skip
    [job] = plan.build(request).jobs
    return job


@pytest.mark.parametrize(
    ("check", "others", "wanted"),
    [
        ("steps", [pgd(0, steps=40)], {"steps": 80, "eot": 5}),
        ("draws", [pgd(0, eot=10)], {"steps": 10, "eot": 20}),
        ("radius", [pgd(5, limit="Linf:1"), pgd(5, limit="Linf:0.4")], {"steps": 20, "eot": 5}),
    ],
)
def test_where_a_ladder_ends_too_early_the_command_of_its_next_rung_is_given(check, others, wanted):
    replaced = {(one.cell["attack"], one.cell["threat"], one.cell["defense"]) for one in others}
    rest = [one for one in SOUND if (one.cell["attack"], one.cell["threat"], one.cell["defense"]) not in replaced]
    given = _next(*rest, *others)
    assert set(given) == {check}
    job = _rung(given[check])
    assert {key: job.cell.attack.values[key] for key in wanted} == wanted
    assert str(job.cell.threat) == others[0].cell["threat"]
    assert job.images == 20
    # The cell that it makes decides the check: the ladder goes on, and has its plateau.
    added = pgd(0, limit=str(job.cell.threat), **wanted)
    assert verdicts(*rest, *others, added)[0][check] == "passed"
    assert check not in _next(*rest, *others, added)


def test_a_ladder_goes_on_while_the_last_doubling_takes_points():
    ladder = [pgd(20 - 3 * k, steps=2**k) for k in range(4)]
    for k in range(4, 6):
        job = _rung(_next(*ladder)["steps"])
        assert job.cell.attack.values["steps"] == 2**k
        ladder.append(pgd(20 - 3 * k, steps=2**k))
        assert verdicts(*ladder)[0]["steps"] != "passed"
    # A line across: it ends.
    assert "steps" not in _next(*ladder, pgd(5, steps=64))


def test_a_ball_that_breaks_nothing_is_widened():
    narrow = [pgd(12, limit="L2:1"), pgd(9, limit="L2:2"), log("noise", 20, gradient="-", limit="L2:1")]
    assert str(_rung(_next(*narrow)["radius"]).cell.threat) == "L2:4"
    # sqrt(64) holds every image of 8x8: there is no wider one, and more steps are next.
    whole = [*narrow, pgd(9, limit="L2:8")]
    job = _rung(_next(*whole)["radius"])
    assert (str(job.cell.threat), job.cell.attack.values["steps"]) == ("L2:8", 20)
    near = [pgd(12, limit="L2:6"), pgd(9, limit="L2:8"), log("noise", 20, gradient="-", limit="L2:6")]
    assert verdicts(*near)[0]["radius"] == "doubtful"


def test_a_ball_too_small_for_any_attack_is_no_masked_gradient():
    """Noise is as strong as a gradient where neither takes anything; what does not follow the gradient tells the two apart."""
    none = [log("noise", 20, gradient="-"), pgd(20, steps=1), pgd(20), pgd(20, eot=10)]
    found, said = verdicts(*none, log("bpda-eot", 20, gradient="bpda"), log("square-eot", 20, gradient="-"))
    assert {found[check] for check in ("noise", "one step", "steps", "draws")} == {"open"}
    assert "masked" not in said
    assert "Open: noise, one step, steps, draws." in said
    assert "is masked (noise, transfer" in verdicts(*none, log("bpda-eot", 10, gradient="bpda"))[1]
    # As long as nothing else was tried, it may be masked.
    assert verdicts(*none)[0]["noise"] == "doubtful"


def test_of_a_masked_gradient_no_next_rung_is_sold():
    assert not _next(pgd(20, steps=20), pgd(10, steps=40), log("transfer-pgd", 0, gradient="-"))


def test_nothing_to_judge_is_refused():
    with pytest.raises(UserError, match="no defense was attacked") as error:
        sanity.render([log("null", 20, gradient="-", limit="-", defense="none")])
    assert error.value.hint
    with pytest.raises(UserError, match="have no csv"):
        sanity.render(SOUND, "csv")


# ----------------------------------------------------------------------------------------------------------------- end to end

PLANTED = """
import torch

INFO = {
    "quantised": {"summary": "rounds pixels: its gradient is zero", "needs": [], "random": False},
    "detached": {"summary": "hides its gradient behind another one", "needs": [], "random": False},
}


def quantised(score=None, classifier=None):
    return lambda x: (4 * x).round() / 4 + 0 * x


def detached(score=None, classifier=None):
    return lambda x: x.detach() + 1e-3 * torch.sin(40 * x)
"""


def said(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["purebench", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    return out


@pytest.mark.parametrize(
    ("defense", "caught"),
    [
        ("quantised", ("gradients", "noise", "transfer")),
        ("detached", ("noise", "transfer")),
        ("gaussian:sigma=0.2", ()),
    ],
)
def test_a_planted_masked_gradient_is_caught_and_a_sound_defense_is_not(tmp_path, monkeypatch, capsys, defense, caught):
    (tmp_path / "planted.py").write_text(PLANTED)
    part = f"{tmp_path / 'planted.py'}:{defense}" if caught else defense
    run = [
        "run",
        "--sanity",
        "-d",
        part,
        "-a",
        "pgd-eot:steps=8,eot=2",
        "--dataset",
        "digits",
        "--images",
        6,
        "--evals",
        2,
    ]
    run += ["--workers", 1, "--device", "cpu", "--quiet", "--out", tmp_path / "out"]
    said(monkeypatch, capsys, *run)
    text = said(monkeypatch, capsys, "table", tmp_path / "out", "--sanity")
    assert ("The gradient of `" in text and "is masked" in text) == bool(caught), text
    [found] = json.loads(said(monkeypatch, capsys, "table", tmp_path / "out", "--sanity", "--format", "json"))
    doubtful = {one["check"] for one in found["verdicts"] if one["verdict"] == "doubtful"}
    assert set(caught) <= doubtful
    assert caught or not doubtful & set(sanity.MASKS)
    # Resumed: normal cells with normal records.
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("images.jsonl")}
    said(monkeypatch, capsys, *run)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("images.jsonl")} == before
