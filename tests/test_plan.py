"""What the user asks for becomes the cells that are meant: canonical, merged, validated before anything runs."""

import dataclasses
import random

import pytest

from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.spec import Part, parse, show, threat


def cells(*defenses, attacks=("pgd-eot",), **given):
    """The cells of a request on the digits, in order."""
    request = Request(defenses=defenses or ("coup",), attacks=tuple(attacks), dataset="digits", **given)
    return [job.cell for job in plan.build(request).jobs]


def refused(request, *words):
    """The UserError of a request: it has a hint, exit code 2, and these words."""
    with pytest.raises(UserError) as caught:
        plan.build(request)
    text = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == 2
    assert caught.value.hint
    assert all(word in text for word in words), text
    return caught.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("coup:t=0.1,steps=10", "coup"),  # the defaults of the digits
        ("coup:steps=10,t=0.1", "coup:t=0.1"),
        ("coup:guidance=2", "coup:guidance=2.0"),
        ("coup:guidance=2,steps=5", "coup:steps=5.0,guidance=2"),
        ("coup:votes=1,combine=logits", "coup"),
        ("one-shot:sigma=0.3", "one-shot"),
        (" coup ", "coup"),
    ],
)
def test_one_meaning_is_one_cell(one, other):
    assert len(cells(one, other)) == 1
    assert cells(one)[0].id == cells(other)[0].id


@pytest.mark.parametrize("other", ["coup:t=0.2", "coup:steps=11", "coup:votes=3", "coup:clamp=true", "reverse-sde"])
def test_another_meaning_is_another_cell(other):
    assert cells("coup")[0].id != cells(other)[0].id


def test_the_identity_of_a_cell_is_stable():
    """Any change of this literal orphans every record that users have: it needs a reason, and a line in the CHANGELOG."""
    [cell] = cells("coup:steps=5", attacks=["pgd-eot:steps=2"])
    fixed = dataclasses.replace(
        cell,
        noise=1,
        dataset=dataclasses.replace(cell.dataset, digest="d", version=1),
        classifier=dataclasses.replace(cell.classifier, digest="c", version=1),
        scores=tuple(dataclasses.replace(model, digest="s", version=1) for model in cell.scores),
    )
    assert fixed.id == "digits-coup-pgd-eot-exact-c047e0da8a"


def test_a_cell_has_what_it_uses_and_nothing_else():
    """One control for all threat models; no score model where no purifier has one, but a transfer names its source's."""
    threats = ("Linf:0.2", "L2:1")
    [control] = cells(attacks=["null"], threats=threats)
    assert (str(control.threat), control.score) == ("-", "digits-vp")
    assert len(control.aliases) == 2  # under schema 1 there was one for each
    for name in ("none", "gaussian"):
        assert {c.score for c in cells(name, attacks=["null", "pgd-eot"])} == {"-"}
        assert cells(name, attacks=["transfer:from=(coup)"])[-1].score == "digits-vp"
        assert "score" not in cells(name, attacks=["transfer:from=(coup)"])[-1].data()["parts"]
    surrogate = cells("gaussian", grads=("surrogate:defense=(one-shot)",))[0]
    assert (surrogate.score, surrogate.surrogate.name) == ("digits-vp", "one-shot")


def test_the_number_of_images_and_of_evaluations_is_not_part_of_a_cell():
    assert cells(images=3, evals=1) == cells(images=9, evals=7)


def test_a_value_comes_from_the_command_line_then_the_grid_then_the_dataset_then_the_factory(tmp_path):
    grid = tmp_path / "g.toml"
    grid.write_text(
        'dataset = "digits"\ndefenses = ["coup:steps=7"]\nattacks = ["pgd-eot:eot=3"]\nimages = 5\nthreats = ["L2:1"]\n'
    )
    job = plan.build(Request(str(grid))).jobs[0]
    assert (job.images, job.evals, str(job.cell.threat)) == (5, 10, "L2:1")
    assert job.cell.defense.values == {"t": 0.1, "steps": 7, "guidance": 1.0, "clamp": False}
    assert job.cell.attack.values["steps"] == 15  # the dataset's; the factory's is 40
    assert (job.origin["defense.steps"], job.origin["defense.t"], job.origin["defense.guidance"]) == (
        "given",
        "digits",
        "default",
    )
    job = plan.build(Request(str(grid), defenses=("one-shot",), images=6, threats=("Linf:0.1",), evals=2)).jobs[0]
    assert (job.cell.defense.name, job.images, job.evals, str(job.cell.threat)) == ("one-shot", 6, 2, "Linf:0.1")


def test_defaults_of_the_dataset_fill_a_bare_request():
    jobs = plan.build(Request(defenses=("coup",))).jobs
    assert {str(j.cell.threat) for j in jobs} == {"Linf:0.2", "-"}
    assert "pgd-eot" in {j.cell.attack.name for j in jobs}


@pytest.mark.parametrize(
    ("defense", "attack", "grads", "merged"),
    [
        ("none", "pgd-eot", ("exact", "bpda", "detached"), ["exact"]),  # nothing to differentiate through
        ("diffpure", "pgd-eot", ("exact", "detached"), ["exact"]),  # no guidance to detach
        ("diffpure", "pgd-eot", ("adjoint", "adjoint:guidance=exact"), ["adjoint"]),
        ("coup", "pgd-eot", ("adjoint", "adjoint:guidance=detached"), ["adjoint"]),
        ("coup", "pgd-eot", ("adjoint", "adjoint:guidance=exact"), ["adjoint", "adjoint:guidance=exact"]),
        ("coup", "pgd-eot", ("exact", "detached"), ["exact", "detached"]),
        ("coup", "bpda-eot", ("exact", "adjoint"), ["bpda"]),
        ("coup", "transfer-pgd", ("exact", "bpda"), ["-"]),
        ("coup", "null", ("exact", "bpda"), ["-"]),
    ],
)
def test_gradients_that_make_no_difference_are_one_cell(defense, attack, grads, merged):
    assert [str(c.gradient) for c in cells(defense, attacks=[attack], grads=grads)] == merged


@pytest.mark.parametrize(
    "grad", ["surrogate:steps=5", "surrogate:defense=(one-shot)", "surrogate:defense=(diffpure:steps=3)"]
)
def test_surrogates(grad):
    assert str(cells(grads=(grad,))[0].gradient) == grad


@pytest.mark.parametrize(
    "grad", ["surrogate", "surrogate:stesp=5", "surrogate:defense=(one-shto)", "surrogate:defense=(one-shot),steps=5"]
)
def test_surrogates_that_are_none(grad):
    refused(Request(defenses=("coup",), attacks=("pgd-eot",), grads=(grad,)))


def test_a_transfer_brings_its_source_which_runs_first():
    source, transfer = cells(attacks=["transfer:from=(reverse-sde)"])
    assert (source.defense.name, source.attack.name, transfer.source) == ("reverse-sde", "pgd-eot", source)
    assert len(cells("coup", "diffpure", "reverse-sde", attacks=["pgd-eot", "transfer:from=(reverse-sde)"])) == 5
    assert [c.attack.name for c in cells("reverse-sde", attacks=["transfer:from=(reverse-sde)"])] == [
        "pgd-eot"
    ]  # onto its own source


def test_the_attack_of_a_transfer_takes_parameters():
    source, transfer = cells(attacks=["transfer:from=(one-shot),attack=(pgd-eot:steps=2)"])
    assert source.attack.values["steps"] == 2
    assert str(transfer.attack) == "transfer:attack=(pgd-eot:steps=2),from=(one-shot)"


def test_another_source_is_another_transfer():
    ids = [cells(attacks=[f"transfer:from=({d})"])[1].id for d in ("reverse-sde", "one-shot", "reverse-sde:steps=3")]
    assert len(set(ids)) == 3


def test_sanity_adds_the_controls_once():
    assert [c.attack.name for c in cells(attacks=["pgd-eot", "null"], sanity=True)] == ["null", "noise", "pgd-eot"]


def test_seeds_and_threats_multiply():
    assert len({c.id for c in cells(seeds=(0, 1), threats=("Linf:0.1", "L2:1", "linf:0.1"))}) == 4


BAD = {
    "unknown defense": (Request(defenses=("cop",)), "did you mean", "coup"),
    "unknown attack": (Request(attacks=("pgd_eot",)), "did you mean", "pgd-eot"),
    "unknown gradient": (Request(attacks=("pgd-eot",), grads=("exct",)), "exact"),
    "unknown dataset": (Request(dataset="digit"), "digits"),
    "unknown classifier": (Request(attacks=("null",), classifier="digits-cn"), "digits-cnn"),
    "unknown score": (Request(attacks=("null",), score="digit-vp"), "digits-vp"),
    "unknown preset": (Request("quik"), "quick"),
    "no such grid": (Request("nowhere.toml"), "nowhere.toml"),
    "unknown parameter": (Request(defenses=("coup:stps=3",)), "steps"),
    "word for number": (Request(defenses=("coup:steps=many",)), "many", "number"),
    "bool for number": (Request(defenses=("coup:steps=true",)), "number"),
    "part of a step": (Request(defenses=("coup:steps=2.5",)), "whole"),
    "no steps": (Request(defenses=("coup:steps=0",)), "at least 1"),
    "no purification": (Request(defenses=("coup:votes=0",)), "at least 1"),
    "no draws of an attack": (Request(attacks=("pgd-eot:eot=-1",)), "at least 1"),
    "no batch": (Request(attacks=("autoattack-rand:batch=0",)), "at least 1"),
    "infinite": (Request(defenses=("coup:steps=1e999",)), "range"),
    "infinite float": (Request(defenses=("coup:guidance=-1e999",)), "range"),
    "unknown loss": (Request(attacks=("pgd-eot:loss=dlrr",)), "dlr"),
    "unknown way to combine": (Request(defenses=("coup:votes=3,combine=votes",)), "vote"),
    "number for bool": (Request(defenses=("coup:clamp=1",)), "true"),
    "number for word": (Request(attacks=("pgd-eot:loss=3",)), "word"),
    "list for number": (Request(defenses=("coup:steps=[1,2]",)), "number"),
    "torn part": (Request(defenses=("coup:steps",)), "="),
    "torn bracket": (Request(attacks=("transfer:from=(coup",)), ")"),
    "twice": (Request(defenses=("coup:t=0.1,t=0.2",)), "twice"),
    "empty part": (Request(defenses=("",)), "name"),
    "subset": (Request(attacks=("null",), subset=-1), "first"),
    "no images": (Request(attacks=("null",), images=0), "1 to 500"),
    "too many images": (Request(attacks=("null",), images=501), "500"),
    "negative images": (Request(attacks=("null",), images=-3), "500"),
    "no evaluation": (Request(attacks=("null",), evals=0), "10"),
    "adjoint of one-shot": (Request(defenses=("one-shot",), attacks=("pgd-eot",), grads=("adjoint",)), "SDE", "--grad exact"),
    "gradient of another attack": (Request(defenses=("coup",), attacks=("pgd-eot",), grads=("exact:a=1",)), "exact"),
    "guidance": (Request(defenses=("coup",), attacks=("pgd-eot",), grads=("adjoint:guidance=exactly",)), "exact"),
    "transfer of a transfer": (Request(defenses=("coup",), attacks=("transfer:attack=(transfer)",)), "transfer"),
    "transfer from nowhere": (Request(defenses=("coup",), attacks=("transfer:from=(cop)",)), "coup"),
    "the sign of a sign": (Request(attacks=("pgd-eot:ascent=sign",), threats=("Linf:0.2",)), "leave out"),
    "eps 0": (Request(attacks=("pgd-eot",), threats=("Linf:0",)), "-a null"),
    "eps negative": (Request(attacks=("pgd-eot",), threats=("Linf:-0.1",)), "range"),
    "eps > 1": (Request(attacks=("pgd-eot",), threats=("Linf:8",)), "Linf:8/255"),
    "eps a word": (Request(attacks=("pgd-eot",), threats=("Linf:x",)), "Linf:8/255"),
    "eps nan": (Request(attacks=("pgd-eot",), threats=("L2:nan",)), "L2:0.5"),
    "eps huge": (Request(attacks=("pgd-eot",), threats=("L2:1e999",)), "L2:0.5"),
    "no eps": (Request(attacks=("pgd-eot",), threats=("Linf",)), "Linf:8/255"),
    "no norm": (Request(attacks=("pgd-eot",), threats=("8",)), "Linf:8/255"),
    "other norm": (Request(attacks=("pgd-eot",), threats=("L0:3",)), "Linf:8/255"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_with_advice(case):
    request, *words = BAD[case]
    refused(request, *words)


GRIDS = {
    "unknown key": ('defences = ["coup"]', "defenses"),
    "wrong type": ('defenses = "coup"', "wrong type"),
    "wrong type inside": ("defenses = [3]", "defenses"),
    "images a float": ("images = 3.5", "wrong type"),
    "images a bool": ("images = true", "wrong type"),
    "grid no list": ("grid = 3", "[[grid]]"),
    "grid of no tables": ("grid = [3]", "[[grid]]"),
    "not TOML": ("defenses = [", "TOML"),
    "one bad cell": ('defenses = ["coup", "one-shot:sigm=0.3"]\nattacks = ["null"]', "sigma"),
    "one bad grid": ('attacks = ["null"]\n[[grid]]\ndefenses = ["coup"]\n[[grid]]\ndefenses = ["cop"]', "coup"),
    "no defenses": ("defenses = []", "defenses"),
    "seed a word": ('seeds = ["x"]', "seeds"),
    "subset a word": ('subset = "last"', "first"),
    "two datasets": ('attacks = ["null"]\n[[grid]]\ndataset = "digits"\n[[grid]]\ndataset = "digitz"', "digits"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRIDS)
def test_a_grid_that_is_wrong_is_refused_with_advice(case, tmp_path):
    text, word = GRIDS[case]
    (tmp_path / "g.toml").write_text(text)
    refused(Request(str(tmp_path / "g.toml")), word)


def test_a_grid_file_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "g.toml").write_bytes(b"\xff\xfe\x00")
    refused(Request(str(tmp_path / "g.toml")), "TOML")


def random_value(dice, depth):
    kinds = [
        lambda: dice.randint(-(10**6), 10**6),
        lambda: dice.uniform(-1, 1) * 10 ** dice.randint(-12, 12),
        lambda: dice.randint(1, 254) / 255,
        lambda: dice.choice([True, False, None]),
        lambda: dice.choice("abc") + "".join(dice.choices("abcz09_.-", k=dice.randint(0, 6))),
    ]
    if depth:
        kinds += [
            lambda: tuple(random_value(dice, depth - 1) for _ in range(dice.randint(0, 3))),
            lambda: random_part(dice, depth - 1),
        ]
    return dice.choice(kinds)()


def random_part(dice, depth=2):
    keys = {"k" + "".join(dice.choices("abz_9", k=3)) for _ in range(dice.randint(0, 4))}
    return Part(dice.choice(["coup", "one-shot", "a.b_c"]), tuple((key, random_value(dice, depth)) for key in keys))


def test_reading_what_was_written_gives_it_back():
    dice = random.Random(0)
    for _ in range(2000):
        part = random_part(dice)
        again = parse(str(part))
        assert str(again) == str(part)
        assert again == part


def test_reading_rubbish_is_a_message_and_nothing_else():
    dice = random.Random(1)
    for _ in range(3000):
        text = "".join(dice.choices("abc:=,()[]/ .-1eE\u00e9\0", k=dice.randint(0, 12)))
        try:
            parse(text)
        except UserError as error:
            assert error.hint  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Linf:8/255", "Linf:8/255"),
        ("linf:0.20", "Linf:0.2"),
        ("L2:1", "L2:1"),
        ("L2:.5", "L2:0.5"),
        ("Linf:1", "Linf:1"),
    ],
)
def test_threats(text, shown):
    assert str(threat(text)) == shown
    assert threat(shown) == threat(text)


def test_the_words_that_the_planner_takes_are_those_that_the_defense_knows():
    import torch

    from purebench import registry
    from purebench.engine import objective

    assert set(registry.choices("attack", "pgd-eot")["loss"]) == set(objective.LOSSES)
    for how in registry.choices("defense", "coup")["combine"]:
        assert objective.combine(torch.zeros(2, 3, 4), how, 1).shape == (2, 4)


def test_fractions_are_shown_as_fractions():
    assert [show(n / 255) for n in (1, 8, 254)] == ["1/255", "8/255", "254/255"]


# --------------------------------------------------------------------------------------------------- a score model of its own


def test_a_defense_may_name_its_own_score_model():
    [own] = cells("coup:score=digits-vp,steps=5")
    [same] = cells("coup:steps=5")
    assert own == same
    assert own.id == same.id


def test_score_models_in_rotation_are_all_in_the_cell():
    [cell] = cells("adp:score=[digits-vp,digits-vp]")
    [single] = cells("adp")
    assert (cell.score, str(cell.defense)) == ("[digits-vp,digits-vp]", "adp")
    assert [model.name for model in cell.scores] == ["digits-vp"] * 2
    parts = cell.data()["parts"]
    assert parts["score.1"] == parts["score"] == single.data()["parts"]["score"]
    assert cell.id != single.id
    assert cells("adp:score=[digits-vp]")[0].id == single.id


def test_a_transfer_from_other_score_models_is_another_cell_and_says_so():
    source, cell = cells("adp", attacks=["transfer:from=(adp:score=[digits-vp,digits-vp])"])
    assert source.score == "[digits-vp,digits-vp]"
    assert (cell.score, cell.source) == ("digits-vp", source)
    assert str(cell.attack) == "transfer:from=(adp:score=[digits-vp,digits-vp])"
    [again] = [c for c in cells("adp", attacks=[str(cell.attack)]) if c.attack.name == "transfer"]
    assert again.id == cell.id


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        ("coup:score=[digits-vp,digits-vp]", "takes one score model"),
        ("adp:score=[digits-vp,digits-vq]", "unknown score `digits-vq`"),
        ("adp:score=[digits-vp,cifar10-small]", "see images of one size"),
        ("adp:score=[]", "expected a name"),
    ],
)
def test_score_models_that_cannot_serve_are_refused(defense, words):
    refused(Request(defenses=(defense,), attacks=("null",), dataset="digits"), words)


def test_a_surrogate_of_one_score_model_cannot_stand_in_for_a_rotation():
    refused(
        Request(
            defenses=("adp:score=[digits-vp,digits-vp]",),
            attacks=("pgd-eot",),
            grads=("surrogate:defense=(one-shot)",),
            dataset="digits",
        ),
        "`one-shot` takes one score model",
    )
