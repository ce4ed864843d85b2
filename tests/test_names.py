"""The name that was written: a path, a folder or a name is text, whatever characters it has, and what is printed can be given back."""

import dataclasses
import io
import json
import random
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purebench import registry
from purebench.api import given as call
from purebench.errors import UserError
from purebench.plan import catalogue, resolved
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.records import store
from purebench.report import asked, drawing, expect, markdown, metrics, recipe, selection, tables
from purebench.spec import TEXT, Part, parse, parts

NASTY = "日本 |*<b>$a_b$\"'&é, c (1) [x] %#@:=~\\"


def folder(place: Path, shade: int) -> Path:
    """An image folder of the classes 0 and 1, 8x8, all pixels alike."""
    for name in "01":
        (place / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), shade, np.uint8)).save(place / name / "0.png")
    return place


def dataset(text: str) -> resolved.Component:
    return resolved.find("dataset", text)


# ---------------------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize(
    "text",
    [
        "my data/w.pt", "größe.pt", "~/w.pt", "a=b.pt", "a,b.pt", "a(1).pt", "a(b,c=d).pt", "u@h", "50%", "x#1", "C:\\data\\w.pt", "[v2]",
        "it's.pt", "epoch=12-step=345.ckpt", "007", "1e3", "true", "none", "-0", "8/255", "a(b", "a)b", "mine.py", "a ,b",
    ],
)  # fmt: skip
def test_a_path_is_text_as_it_stands_and_in_quotes(text):
    """Alone, before and after another parameter, and by what it is written as; on the left of a bracket only what closes."""
    part = parse(f"file:path={text}")
    assert part.get("path") == text
    assert parse(f"file:classes=3,path={text},name=x") == Part("file", (("path", text), ("classes", 3), ("name", "x")))
    assert parse(str(part)) == part
    if text.count("(") == text.count(")"):
        inner = parse(f"transfer:from=(adp:score=(edm:path={text}),steps=2),project=true").get("from")
        assert inner.get("score") == Part("edm", (("path", text),))


def test_blanks_and_quotes_of_a_name_are_its_own():
    """At the end of a text, in a message, and in a table's heading."""
    assert parse("file:path=a.pt ").get("path") == parse("x:of=(file:path=a.pt )").get("of").get("path") == "a.pt "
    assert parse("coup ").name == "coup"
    with pytest.raises(UserError, match="a name that begins with one is written in the other"):
        parse("file:path='q'.pt")
    assert parse("file:path=\"'q'.pt\"").get("path") == "'q'.pt"
    for name in ("a`b", "  x", "``", "`a", "a  b"):
        text = str(Part("file", (("name", name),)))
        shown = tables._code(text)
        fence = shown[: len(shown) - len(shown.lstrip("`"))]
        inside = shown[len(fence) : -len(fence)]
        assert fence not in inside
        assert inside in (text, f" {text} ")


def test_what_quotes_say_is_text_too():
    assert parse("file:path='a,name=b (1',name=\"it's\"") == Part("file", (("path", "a,name=b (1"), ("name", "it's")))
    assert parse("file:path='it''s'").get("path") == "it's"


def test_other_parameters_are_what_they_were():
    part = parse("x:a=007,b=true,c=1e3,d=[1,2],e=(y:path=007),f=8/255,classes=10")
    assert [part.get(key) for key in "abcdf"] == [7, True, 1000.0, (1, 2), 8 / 255]
    assert (part.get("e").get("path"), part.get("classes")) == ("007", 10)
    assert parse("folder:classes=map of classes.csv").get("classes") == "map of classes.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "file:path=a.pt, classes=3",
            "path='a,b=c'",
        ),  # with a blank it would be the path's end, and three classes nowhere
        ("transfer:from=(file:path=a(1)", "path='a,b=c'"),
        ("file:path=", "path='a,b=c'"),
        ("file:path='a'b.pt", "path='a,b=c'"),
        ("file:path=a.pt,path=b.pt", "path='a,b=c'"),
    ],
)
def test_what_could_be_meant_otherwise_is_refused(text, words):
    with pytest.raises(UserError) as error:
        parse(text)
    assert words in error.value.hint


def test_a_comma_in_a_path_that_reads_as_a_parameter_is_told_to_be_quoted():
    with pytest.raises(UserError, match="unknown parameter of `file` `step`") as error:
        resolved.find("classifier", "file:path=epoch=12,step=345.ckpt")
    assert "path='..'" in error.value.hint


def random_text(dice: random.Random) -> str:
    return "".join(dice.choices("ab7.,=()[]'\"@%#:~|/\\ -+é日\n", k=dice.randint(0, 9)))


def random_part(dice: random.Random, depth: int) -> Part:
    values = {key: random_text(dice) for key in dice.sample(TEXT, dice.randint(0, 3))}
    others = {"steps": lambda: dice.randint(0, 9), "t": lambda: dice.random(), "word": lambda: "w" + random_text(dice)}
    if depth:
        others |= {"score": lambda: random_part(dice, depth - 1)}
        others |= {"models": lambda: tuple(random_part(dice, depth - 1) for _ in range(2))}
    values |= {key: others[key]() for key in dice.sample(sorted(others), dice.randint(0, 2))}
    return Part(dice.choice(["edm", "my dir/a(1).py:F"]), tuple(values.items()))


def test_reading_what_was_written_gives_it_back():
    """Texts of every character that means something, alone, nested and in lists; the same from a list of score models."""
    dice = random.Random(0)
    for _ in range(1500):
        part = random_part(dice, 2)
        assert parse(str(part)) == part, str(part)
        if part.parameters:
            assert parts(f"[({part}),edm]") == [part, Part("edm")], str(part)


# ---------------------------------------------------------------------------------------------------------------- found


def test_digits_are_no_number(tmp_path, monkeypatch):
    """`007` beside `7`, `1e3` and `true`: each is the folder of that name."""
    monkeypatch.chdir(tmp_path)
    for shade, name in enumerate(("7", "007", "1e3", "true", "8")):
        folder(tmp_path / name, shade)
    found = {name: dataset(f"folder:path={name},channels=1") for name in ("7", "007", "1e3", "true")}
    for shade, (name, component) in enumerate(found.items()):
        assert round(255 * float(component.images.take([0])[0].max())) == shade
        assert component.text == f"folder:channels=1,name={name}"
    assert len({component.digest for component in found.values()}) == 4


def test_a_name_with_every_character_is_planned_and_its_cell_says_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / NASTY.replace("/", ""), 3)
    [job] = plan.build(
        Request(
            defenses=("none",),
            attacks=("null",),
            dataset=f"folder:path={NASTY},channels=1,classes=10",
            classifier="digits-cnn",
        )
    ).jobs
    assert job.cell.dataset.part.get("name") == NASTY
    assert parse(json.loads(json.dumps(job.cell.data()))["dataset"]) == job.cell.dataset.part
    assert Path(job.cell.id).name == job.cell.id


def test_a_home_is_found_wherever_a_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "my data", 5)
    found = dataset("folder:path=~/my data,channels=1")
    assert (found.where["path"], found.text) == (str(tmp_path / "my data"), "folder:channels=1,name='my data'")
    assert len(found.images) == 2
    np.save(tmp_path / "x.npy", np.full((2, 1, 8, 8), 0.5, np.float32))
    jobs = plan.build(Request(None, ("none",), ("given:path=~/x.npy",), ("Linf:1",), dataset="digits", images=2)).jobs
    assert jobs[0].cell.attack.arguments["path"] == str(tmp_path / "x.npy")
    (tmp_path / "g.toml").write_text('defenses = ["none"]\nattacks = ["null"]\ndataset = "digits"\n')
    assert plan.build(Request("~/g.toml")).jobs
    # `Path.expanduser` raises where there is no such user.
    with pytest.raises(UserError, match="there is no `~nobody-of-that-name"):
        plan.build(Request(None, ("none",), ("given:path='~nobody-of-that-name/x.npy'",), dataset="digits"))
    with pytest.raises(UserError, match="there is no file"):
        registry.key("defense", "~nobody-of-that-name/mine.py:D")


def test_the_file_behind_a_home_is_in_the_hash_of_a_component(tmp_path, monkeypatch):
    """A defense of the user's is known by the files that its values name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def plain(x, *, path='', name=3, classes=(1, 2)):\n    return x\n")

    def cell():
        text = "./mine.py:plain:path=~/w (1).pt,name=4,classes=[3,4]"
        return plan.build(Request(defenses=(text,), attacks=("null",), dataset="digits")).jobs[0].cell

    hashes = []
    for content in (b"1", b"2"):
        (tmp_path / "w (1).pt").write_bytes(content)
        hashes.append(cell().defense.digest)
    assert hashes[0] != hashes[1]
    # What the user's own code calls `name` may be a number, and `classes` a list.
    values = cell().defense.arguments
    assert values["name"] == 4
    assert values["classes"] == (3, 4)
    assert values["path"] == str(tmp_path / "w (1).pt")


def test_python_gives_paths_and_texts(tmp_path):
    place = folder(tmp_path / "a, b=c", 1)
    part = Part("folder", (("path", place), ("channels", 1)))
    assert dataset(call.part("dataset", part)).where == {"path": str(place)}
    assert Part("given", (("name", 7), ("path", tmp_path))) == Part("given", (("name", "7"), ("path", str(tmp_path))))
    (tmp_path / "g.toml").touch()
    arguments = dict.fromkeys(("sanity", "honest", "baselines"), False)
    assert call.request(tmp_path / "g.toml", arguments).preset == str(tmp_path / "g.toml")


# ------------------------------------------------------------------------------------------------------------- recorded


def given(tmp_path, name: str):
    """The cell of images that were brought, under a name, with hashes that no file changes."""
    np.save(tmp_path / "x.npy", np.full((2, 1, 8, 8), 0.5, np.float32))
    attack = str(Part("given", (("path", tmp_path / "x.npy"), ("name", name))))
    [job] = plan.build(Request(None, ("none",), (attack,), ("Linf:1",), dataset="digits", images=2)).jobs
    fixed = {
        kind: dataclasses.replace(getattr(job.cell, kind), digest=kind, version=1) for kind in ("dataset", "classifier")
    }
    attack = dataclasses.replace(job.cell.attack, digest="a")
    return dataclasses.replace(job.cell, **fixed, attack=attack, noise=1)


@pytest.mark.parametrize(
    ("name", "recorded", "id"),
    [
        ("7", 7, "digits-none-given-2f35d97e86"),
        ("0.5", 0.5, "digits-none-given-9739b9482c"),
        ("true", True, "digits-none-given-fae80cd802"),
        ("v1.2", "v1.2", "digits-none-given-f7d6ccfa15"),
    ],
)
def test_names_that_were_numbers_keep_their_ids(tmp_path, name, recorded, id):
    cell = given(tmp_path, name)
    value = cell.data()["parts"]["attack"]["values"]["name"]
    assert (value, type(value)) == (recorded, type(recorded))
    assert (str(cell.attack), cell.id) == (f"given:name={name}", id)


@pytest.mark.parametrize("name", ["7", "007", "a:b(c", "[x]", "true", NASTY])
def test_a_record_is_found_and_made_again_by_its_name(tmp_path, name):
    cell = given(tmp_path, name).data()
    text = str(Part("given", (("name", name),)))
    assert selection.fits(cell, "attack", selection.read("attack", text))
    assert not selection.fits(cell, "attack", selection.read("attack", "given:name=another"))
    [again] = recipe.grid(cell)["attacks"]
    assert parse(again).get("name") == name


def test_a_selection_on_the_left_of_a_comparison_may_have_any_character():
    text = str(Part("given", (("name", "a/pgd @x (1)>=b's"),)))
    found = expect.read(f"coup/{text}@exact/Linf:0.1(worst10)>=0.40")
    assert (found.defense, parse(found.attack)) == ("coup", parse(text))
    assert (found.gradient, found.threat, found.metric, found.bound) == ("exact", "Linf:0.1", "worst10", 0.4)


def test_a_name_makes_no_control():
    """`attack=null` in a name hid the cell from the strongest attack."""
    assert not metrics.control("transfer:from=(adp:score=(edm:name='attack=null'))")
    assert metrics.control("transfer:attack=(noise),from=(coup)")
    assert metrics.control("transfer:attack=null,from=(coup)")


# -------------------------------------------------------------------------------------------------------------- printed


def test_a_command_can_be_pasted_back():
    request = Request(
        "coup/1", attacks=("given:path=a b.npy,name=it's",), dataset=f"folder:path={NASTY}", only=("x y",)
    )
    words = shlex.split(asked.command(request, "run", Path("my results")))
    assert words[words.index("-a") + 1] == request.attacks[0]
    assert words[words.index("--dataset") + 1] == request.dataset
    assert words[words.index("--out") + 1] == "my results"


def test_hints_are_commands_too():
    with pytest.raises(UserError) as error:
        registry.check_parameters("classifier", "file", {"widen": "x"})
    assert "purebench show file" in error.value.hint
    assert catalogue.facts("folder:path=my/mine.py")["name"] == "folder"


def test_names_format_nothing():
    assert markdown.prose("a <b>x</b> `<b>` <- 3 < 4") == r"a \<b>x\</b> `<b>` <- 3 < 4"
    assert drawing.STYLE["text.parse_math"] is False


def test_a_name_that_is_no_text_is_spelt_out(tmp_path, monkeypatch):
    """Bytes that are no UTF-8, on a command line whose output is strict: the plan is printed, and the record can be written."""
    from purebench import cli

    monkeypatch.chdir(tmp_path)
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    folder(tmp_path / "made", 1).rename(tmp_path / name)
    given = [
        "-d",
        "none",
        "-a",
        "null",
        "--classifier",
        "digits-cnn",
        "--dataset",
        f"folder:channels=1,classes=10,path={name}",
    ]
    monkeypatch.setattr(sys, "argv", ["purebench", "run", *given, f"--out={name}", "--dry-run"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    print(name, "größe")
    assert Part("folder", (("name", f"{name}\n"),)).get("name") == r"caf\udce9\n"
    store.replace(tmp_path / "t.md", name)
    assert (tmp_path / "t.md").read_text() == r"caf\udce9"


def test_a_home_in_an_option_is_no_folder_of_that_name(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from purebench.cli import app

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = ["-d", "none", "-a", "null", "--dataset", "digits", "--images", "2", "--evals", "1", "--workers", "1"]
    ran = CliRunner().invoke(app, ["run", *given, "--out=~/my records"])
    assert ran.exit_code == 0, ran.output
    assert not Path("~").exists()
    assert list(tmp_path.glob("my records/*/cell.json"))
    assert "purebench table '" in ran.stderr
