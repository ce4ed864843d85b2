"""A user's own code by the name of its file: found, told what is wrong with it, and never another code's numbers."""

import random
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from purebench import foreign, registry
from purebench.errors import Mistake, UserError
from purebench.plan import catalogue, hashed
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.records import store
from purebench.report import recipe, tables
from purebench.running import pools, preflight, progress, rehearsal, runner
from purebench.spec import Part, parse, parts

MINE = """
    import torch
    from helper import half

    INFO = {"summary": "a box filter"}

    class Box:
        n = 1

        def __init__(self, *, size: int = 3):
            self.size = size

        def start(self, x, noise):
            return x

        def step(self, k, x, noise):
            return torch.nn.functional.avg_pool2d(x, self.size, 1, half(self.size))

        def finish(self, x):
            return x

    def my_attack(defense, x, y, threat, noise, *, far=1.0):
        '''A random corner of the ball.'''
        print("attacking")
        return threat.project(x + far * threat.eps * noise.normal(0, x).sign(), x)
"""
HELPER = "def half(size):\n    return size // 2\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


@pytest.fixture
def mine(folder):
    write("mine.py", MINE)
    write("helper.py", HELPER)
    return folder


def cells(defense="./mine.py:Box", attack="null", **given):
    request = Request(defenses=(defense,), attacks=(attack,), **{"dataset": "digits", "images": 2, "evals": 1} | given)
    return [job.cell for job in plan.build(request).jobs]


def run(out, defense="./mine.py:Box", attack="null", workers=1, **given):
    request = Request(defenses=(defense,), attacks=(attack,), **{"dataset": "digits", "images": 2, "evals": 1} | given)
    made = plan.build(request)
    rehearsal.check(made)
    settings = runner.Settings(Path(out), "cpu", workers=workers)
    return runner.run(made, settings, progress.reporter(True))


# ----------------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("./mine.py:Median", "./mine.py:Median", {}),
        ("./mine.py:Median:size=5,t=1/10", "./mine.py:Median", {"size": 5, "t": 0.1}),
        ("'my dir/mine.py':Median:size=5", "my dir/mine.py:Median", {"size": 5}),
        ('"it\'s=a,b [1].py":f', "it's=a,b [1].py:f", {}),
        ("'it''s \"x\".py':f", 'it\'s "x".py:f', {}),
        ("file:path='my dir/w.pt'", "file", {"path": "my dir/w.pt"}),
        ("~/ü.py:f", "~/ü.py:f", {}),
        ("object:median:1:size=5", "object:median:1", {"size": 5}),
        ("./mine.py:size=5", "./mine.py", {"size": 5}),
        ("transfer:from=(./a.py:F:k=1)", "transfer", {"from": Part("./a.py:F", (("k", 1),))}),
        ("x:words=['a b',c]", "x", {"words": ("a b", "c")}),
    ],
)
def test_a_file_is_a_name_and_is_written_as_it_is_read(text, name, parameters):
    part = parse(text)
    assert (part.name, dict(part.parameters)) == (name, parameters)
    assert parse(str(part)) == part


def test_files_stand_in_lists():
    assert parts("[./a.py:F,(./b.py:G:k=1),edm]") == [Part("./a.py:F"), Part("./b.py:G", (("k", 1),)), Part("edm")]


@pytest.mark.parametrize("text", ["my dir/mine.py:Median", "'mine.py:Median", "./mine.py:Median:", "./a b.py:f"])
def test_what_has_to_be_quoted_is_told(text):
    with pytest.raises(UserError, match="cannot read") as error:
        parse(text)
    assert "'my dir/FILE.py':NAME" in error.value.hint


@pytest.mark.parametrize(
    ("word", "name"), [("MyDefense", "my-defense"), ("my_attack", "my-attack"), ("UNet", "u-net"), ("PGD2", "pgd2")]
)
def test_a_cell_has_the_fields_spelling(word, name):
    assert foreign.label(f"/x/mine.py:{word}") == name


# ---------------------------------------------------------------------------------------------------------------- identity


def test_a_cell_has_a_name_a_hash_and_no_place(mine):
    [cell] = cells("./mine.py:Box:size=5", "./mine.py:my_attack")
    assert (str(cell.defense), str(cell.attack), str(cell.gradient)) == ("box:size=5", "my-attack", "exact")
    assert cell.defense.target == f"{mine}/mine.py:Box"
    assert len(cell.data()["parts"]["defense"]["hash"]) == 64
    assert str(mine) not in str(cell.data())
    [other] = cells(f"{mine}/mine.py:Box:size=5", f"{mine}/mine.py:my_attack:far=1")
    assert other.id == cell.id
    write("elsewhere/mine.py", MINE)
    write("elsewhere/helper.py", HELPER)
    assert cells("elsewhere/mine.py:Box:size=5", "elsewhere/mine.py:my_attack")[0].id == cell.id


@pytest.mark.parametrize("file", ["mine.py", "helper.py", "lazy.py"])
def test_an_edit_of_the_file_or_of_what_it_imports_is_another_cell(mine, file):
    write("mine.py", MINE + "\n    def lazily():\n        import lazy\n")
    write("lazy.py", "x = 1\n")
    write("other.py", "x = 1\n")
    before = cells()[0]
    write("other.py", "x = 2\n")
    assert cells()[0].id == before.id
    text = Path(file).read_text()
    Path(file).write_text(text.replace("1", "7") if file != "helper.py" else text.replace("// 2", "// 1"))
    after = cells()[0]
    assert after.id != before.id
    assert not {before.id, *before.aliases} & {after.id, *after.aliases}
    if file == "helper.py":  # it is the new one that runs, though it was imported before
        assert foreign._file(mine / "mine.py").own["helper"].half(8) == 8


def test_ours_has_no_hash_and_so_keeps_its_id():
    [cell] = cells("coup", "pgd-eot")
    assert "hash" not in cell.data()["parts"]["defense"]
    assert "hash" not in cell.data()["parts"]["attack"]


def test_a_component_in_the_table_keeps_its_name_to_itself(folder):
    write("mine.py", "def none(x):\n    return x\n")
    assert str(cells("./mine.py:none")[0].defense) == "mine.none"


def test_two_files_of_one_name_do_not_mix(folder):
    for place, size in (("a", 3), ("b", 5)):
        write(
            f"{place}/mine.py", "from helper import SIZE\nfrom nets import net\ndef f(x, *, size=SIZE):\n    return x\n"
        )
        write(f"{place}/helper.py", f"SIZE = {size}\n")
        write(f"{place}/nets/__init__.py", "from nets.net import NET\n")
        write(f"{place}/nets/net.py", f"NET = {size}\n")
    for _ in range(2):
        assert [cells(f"{place}/mine.py:f")[0].defense.values["size"] for place in "ab"] == [3, 5]
    write("a/nets/net.py", "NET = 4\n")
    assert registry.code("defense", "a/mine.py:f") != registry.code("defense", "b/mine.py:f")


def test_weights_and_files_that_values_name_are_part_of_the_hash(folder):
    write(
        "mine.py",
        """
        import torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self, path: str = ""):
                super().__init__()
                self.conv = nn.Conv2d(1, 1, 3, padding=1)
                self.conv.load_state_dict(torch.load("always.pt"))
            def forward(self, x):
                return self.conv(x)
        """,
    )

    def save(path, value):
        conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        for p in conv.parameters():
            torch.nn.init.constant_(p, value)
        torch.save(conv.state_dict(), path)

    save("always.pt", 0.0)
    Path("w.pt").write_bytes(b"a")
    hashes = [cells("./mine.py:Net")[0].defense.digest, cells("./mine.py:Net:path=w.pt")[0].defense.digest]
    Path("w.pt").write_bytes(b"b")
    hashes.append(cells("./mine.py:Net:path=w.pt")[0].defense.digest)
    assert len(set(hashes)) == 3


def test_a_module_from_elsewhere_and_values_from_a_file_are_part_of_the_hash(folder):
    write(folder / "lib" / "far.py", "G = 1")
    write(
        folder / "mine.py",
        """
        import json, sys
        sys.path.insert(0, "lib")
        import far

        class Faint:
            n = 0
            def __init__(self): self.by = json.load(open("by.json"))
            def start(self, x, noise): return x
            def step(self, k, x, noise): return x
            def finish(self, x): return x * far.G * self.by
        """,
    )
    write(folder / "by.json", "1.0")

    def made():
        hashed._kept.cache_clear()  # as in another process
        return cells("./mine.py:Faint")[0].id

    first = made()
    assert made() == first
    write(folder / "by.json", "0.5")
    second = made()
    write(folder / "lib" / "far.py", "G = 0")
    assert len({first, second, made()}) == 3


def test_every_process_makes_the_same_network_and_leaves_the_generators_alone(folder):
    write(
        "mine.py",
        """
        import random, numpy as np, torch
        from torch import nn
        OF_IMPORT = torch.rand(1).item()
        def net(*, k: int = 1):
            made = nn.Conv2d(1, 1, 3, padding=1)
            made.register_buffer("drawn", torch.tensor([OF_IMPORT, random.random(), np.random.rand()]))
            return made
        """,
    )
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = registry.factory("classifier", "./mine.py:net")()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    with foreign.seeded():
        torch.rand(3)
    again = registry.factory("classifier", "./mine.py:net")()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    random.setstate(states[0]), torch.set_rng_state(states[1])
    registry.factory("classifier", "./mine.py:net")()
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_an_edit_during_a_run_cannot_mix_two_codes(mine):
    """A worker that finds another code refuses; one that has imported the planned one goes on with it."""
    made = plan.build(Request(defenses=("./mine.py:Box",), attacks=("null",), dataset="digits", images=2, evals=1))
    write("helper.py", "def half(size):\n    return size // 2 + 0\n")
    foreign._files.clear()  # as in a worker that starts now
    outcome = runner.run(made, runner.Settings(mine / "out", "cpu"), progress.reporter(True))
    assert "was changed after this run began" in next(iter(outcome.failed.values()))
    assert not store.load(mine / "out" / made.jobs[0].cell.id).images
    assert run("out").done
    with foreign.as_imported():
        before = registry.code("defense", "./mine.py:Box")
        write("helper.py", HELPER)
        assert registry.code("defense", "./mine.py:Box") == before
    assert registry.code("defense", "./mine.py:Box") != before


def test_two_codes_of_one_name_are_two_rows(mine):
    run("out")
    run("out", attack="noise")
    write("helper.py", "def half(size):\n    return size // 2 + 0\n")
    run("out")
    logs = store.load_all([mine / "out"])
    digests = sorted({log.cell["parts"]["defense"]["hash"] for log in logs})
    rows = tables.grid(logs)
    assert sorted({row["defense"] for row in rows}) == sorted(f"box#{digest[:6]}" for digest in digests)
    text = tables.render(logs)
    assert all(f"box#{digest[:6]}" in text for digest in digests)
    alone = [log for log in logs if log.cell["parts"]["defense"]["hash"] == digests[0]]
    assert {row["defense"] for row in tables.grid(alone)} == {"box"}


def test_an_edited_plug_in_is_another_cell(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    write("plugged/__init__.py", "")
    write("plugged/parts.py", "SIZE = 3\n")
    write(
        "plugged/own.py", "from plugged import parts\nINFO = {'summary': 'x'}\ndef f(score, classifier, *, k=1): ...\n"
    )
    monkeypatch.setitem(registry.NAMES["defense"], "plugged", "plugged.own:f")
    ids = []
    for text in ("SIZE = 3\n", "SIZE = 5\n"):
        write("plugged/parts.py", text)
        for cached in (registry.names, registry._code):
            cached.cache_clear()
        ids.append(cells("plugged")[0].id)
    registry.names.cache_clear()
    assert ids[0] != ids[1]


def test_it_runs_in_workers_and_what_it_prints_is_no_data(mine, capfd, monkeypatch):
    monkeypatch.setattr(pools, "start", lambda workers, *rest: pools.Workers(1, *rest))
    outcome = run("out", attack="./mine.py:my_attack", workers=2)
    assert len(outcome.done) == 1
    assert "attacking" not in capfd.readouterr().out
    [log] = store.load_all([mine / "out"])
    assert log.images[0]["linf"] > 0


def test_surrogate_and_transfer_take_files(mine):
    [cell] = cells("./mine.py:Box:size=5", "pgd-eot", grads=("surrogate:size=3",))
    assert (str(cell.gradient), str(cell.surrogate)) == ("surrogate:size=3", "box")
    [cell] = cells("gaussian", "pgd-eot", grads=("surrogate:defense=(./mine.py:Box:size=5)",))
    assert str(cell.gradient) == "surrogate:defense=(box:size=5)"
    assert cell.surrogate.target == f"{mine}/mine.py:Box"
    assert cell.data()["parts"]["surrogate"]["hash"]
    source, cell = cells("none", "transfer:from=(./mine.py:Box)")
    assert (str(source.defense), str(cell.attack)) == ("box", "transfer:from=(box)")


# --------------------------------------------------------------------------------------------------------------- bad input

WRONG = {  # what the file says -> (name that is asked for, words of the message, words of the hint)
    "def box(x): return x": ("bax", "defines no `bax`", "did you mean `box`"),
    "def f(x:\n    return x": ("f", "mine.py:1: def f(x:", "mend that line"),
    "import sys\nsys.exit(3)": ("f", "it called sys.exit(3)\n  mine.py:2: sys.exit(3)", ""),
    "import no_such_package": ("f", "there is no package `no_such_package`\n  mine.py:1", "pip install no_such_package"),
    "from . import helper": ("f", "cannot be imported", "import NAME"),
    "x = 1 / 0": ("f", "ZeroDivisionError: division by zero\n  mine.py:1: x = 1 / 0", ""),
    "class F:\n    def __init__(self, size, /): ...": ("F", "`size` of `MINE:F` is positional-only", ""),
    "class F:\n    def __init__(self, size): ...": ("F", "`MINE:F` needs `size`, which has no default", "MINE:F:size=VALUE"),
    "def f(x, sigma): return x": ("f", "needs `sigma`", "MINE:f:sigma=VALUE"),
    "def f(x, noise=0.1): return x": ("f", "`noise` of `MINE:f` is a parameter that every defense has", "own_noise"),
    "SIZE = 3": ("SIZE", "is a int, and no defense", "name a class"),
    "import torch": ("torch", "is a module, and no defense", ""),
    "class F:\n    def __init__(self):\n        1 / 0": ("F", "ZeroDivisionError: division by zero\n  mine.py:3 in __init__: 1 / 0", ""),
    "class F:\n    def __init__(self):\n        exit(1)": ("F", "cannot be made: it called sys.exit(1)", ""),
    "def make(): return 'x'\nINFO = {'summary': make()}\ndef f(x): return x": ("f", "is no literal (line 2)", "numbers, words, lists"),
    "def f(x): return x\nINFO = {'f': 3}": ("f", "is no dictionary", ""),
    "def f(x): return x\nINFO = {'f': {'choices': {'way': ['a']}}}": ("f", "choices of `way`", ""),
    "def f(x, size=3): return x": ("f:sise=3", "unknown parameter of", "did you mean `size`"),
    "def f(x, size=3): return x ": ("f:size=big", "is not a number", ""),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_file_is_one_message(folder, text):
    Path("mine.py").write_text(text)
    name, message, hint = WRONG[text]
    with pytest.raises(UserError) as error:
        cells(f"./mine.py:{name}")
    assert message.replace("MINE", "./mine.py") in error.value.message.replace(f"{folder}/mine.py", "./mine.py")
    assert hint.replace("MINE", "./mine.py") in error.value.hint.replace(f"{folder}/mine.py", "./mine.py")
    assert error.value.hint
    assert error.value.code == 2
    assert "purebench/" not in error.value.message


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("./mien.py:f", "there is no file `./mien.py`", "did you mean `mine.py`"),
        ("./no/mine.py:f", "there is no file", "working directory"),
        ("./mine.py", "does not say which of its parts", "it defines f, Net"),
        ("./mine.py:size=3", "does not say which of its parts", "./mine.py:NAME"),
        ("./folder.py:f", "is a folder", "FILE.py:NAME"),
        ("object:f:1", "this process knows no", "FILE.py:NAME"),
    ],
)
def test_what_is_not_there_is_told(folder, name, message, hint):
    Path("mine.py").write_text("def f(x): return x\nclass Net: ...\n_hidden = 1\n")
    Path("folder.py").mkdir()
    with pytest.raises(UserError) as error:
        cells(name)
    assert message in error.value.message
    assert hint in error.value.hint


def test_a_file_that_takes_long_to_import_is_told(folder, monkeypatch):
    monkeypatch.setattr(foreign, "SECONDS", 0.2)
    write("mine.py", "import time\ntry:\n    time.sleep(30)\nexcept Exception:\n    pass\n")
    with pytest.raises(UserError, match=r"takes over 0\.2 s to import\n  mine\.py:3"):
        cells("./mine.py:f")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (
            "def f(model, x, y): return x",
            "takes (model, x, y), and an attack is called with (defense, x, y, threat, noise)",
        ),
    ],
)
def test_an_attack_of_another_form_is_told(folder, attack, words):
    Path("mine.py").write_text(attack)
    with pytest.raises(UserError) as error:
        cells("none", "./mine.py:f")
    assert words in error.value.message


REHEARSED = {  # what a purifier does -> what is said before anything runs
    "return x[..., 1:]": "(2, 1, 8, 7) torch.float32",
    "return x.tolist()": "list",
    "return x + no_such_name": "name 'no_such_name' is not defined\n  mine.py:4 in step: def step(self, k, x, noise): return x + no_such",
    "return x[:1]": "(1, 1, 8, 8) torch.float32",
    "return x.mul_(0.5)": "step 0 of `f` writes into what it is given",
    "raise SystemExit(2)": "it called sys.exit(2)\n  mine.py:4 in step",
}


@pytest.mark.parametrize("body", REHEARSED)
def test_what_a_purifier_does_wrong_is_told_before_anything_runs(folder, body):
    start = "class F:\n    n = 1\n    def start(self, x, noise): return x\n"
    Path("mine.py").write_text(f"{start}    def step(self, k, x, noise): {body}\n    def finish(self, x): return x\n")
    with pytest.raises(UserError) as error:
        run("out", "./mine.py:F")
    assert REHEARSED[body] in error.value.message
    assert not Path("out").exists()


FAILS = {  # of an attack's body -> what the cell says
    "return x[:1]": "`f` returned images of (1, 1, 8, 8) torch.float32",
    "return None": "`f` returned a NoneType: images like x are wanted",
    "return x.long()": "`f` returned images of (2, 1, 8, 8) torch.int64",
    "return x + 1": "2 images of `f` are outside",
    "exit(1)": "it called sys.exit(1) (mine.py:3 in f: exit(1))",
    "return helper(x)": "for input of size 128 (mine.py:5 in helper: return x.reshape(7) <- mine.py:3 in f: return helper(x))",
}  # fmt: skip


@pytest.mark.parametrize("body", FAILS)
def test_what_an_attack_does_wrong_fails_its_cell_with_its_own_lines(folder, body):
    Path("mine.py").write_text(
        f"import torch\ndef f(defense, x, y, threat, noise):\n    {body}\ndef helper(x):\n    return x.reshape(7)\n"
    )
    outcome = run("out", "none", "./mine.py:f")
    why = next(iter(outcome.failed.values()))
    assert FAILS[body] in why
    # What the harness finds is a mistake, and exit code 2; what is raised in it may be anything.
    assert isinstance(why, Mistake) == ("helper" not in body)


def test_an_attacks_own_draws_belong_to_images(folder):
    write(
        "mine.py",
        """
        import numpy as np
        import torch
        def torchs(defense, x, y, threat, noise):
            return threat.project(x + threat.eps * torch.randn_like(x).sign(), x)
        def numpys(defense, x, y, threat, noise):
            return threat.project(x + threat.eps * torch.from_numpy(np.random.randn(*x.shape)).float().sign(), x)
        """,
    )
    torch.manual_seed(7)
    before = torch.get_rng_state()

    def made(out, attack, *images):
        for n in images:
            run(out, "none", f"./mine.py:{attack}", images=n)
        [log] = store.load_all([Path(out)])
        notes = {note for line in log.images for note in line.get("notes", [])}
        return (log.folder / store.ADVERSARIAL).read_bytes(), notes

    # At once, and in two runs: the same bytes, and nothing to say.
    assert made("once", "torchs", 6) == made("twice", "torchs", 4, 6)
    assert made("once", "torchs", 6)[1] == set()
    assert made("numpys", "numpys", 4)[1] == {"drawn"}
    assert torch.equal(before, torch.get_rng_state())


def test_a_plug_ins_info_is_told_with_its_file_and_line(folder, monkeypatch):
    write("their_info.py", "x = 1\nINFO = {\n  'summary': make(),\n}\ndef f(score, classifier): ...\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(registry.NAMES["defense"], "theirs", "their_info:f")
    registry.names.cache_clear()
    with pytest.raises(UserError, match=r"INFO of `their_info` is no literal \(line 3\)"):
        registry.info("defense", "theirs")
    registry.names.cache_clear()


# ----------------------------------------------------------------------------------------------------------------- objects


def test_an_object_has_a_target_of_this_process():
    def shrink(x, *, by=2.0):
        return x / by

    target = foreign.register("defense", shrink)
    assert foreign.register("defense", shrink) == target
    assert target.startswith("object:shrink:")
    [cell] = cells(f"{target}:by=4")
    assert (str(cell.defense), len(cell.defense.digest)) == ("shrink:by=4", 64)
    with pytest.raises(UserError, match="no defense"):
        foreign.register("defense", 3)


class Shifted:
    n = 1
    words = ("a",)

    def __init__(self, by, net=None):
        self.by, self.net = by, net

    def start(self, x, noise):
        return x

    def step(self, k, x, noise):
        return x + self.by

    def finish(self, x):
        return x


def test_an_object_is_known_by_its_attributes_its_closure_and_its_weights():
    def of(thing):
        return cells(foreign.register("defense", thing))[0].defense

    def scaled(by):
        return lambda x: x * by

    nets = [torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)]
    found = [
        of(Shifted(0.1)),
        of(Shifted(0.2)),
        of(Shifted(0.1, nets[0])),
        of(Shifted(0.1, nets[1])),
        of(scaled(1)),
        of(scaled(2)),
    ]
    found += [of(torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)) for mode in ("zeros", "circular")]
    assert len({part.digest for part in found}) == len(found)
    assert of(Shifted(0.1)).digest == found[0].digest
    net = nets[0]
    before = of(net)
    net.eval().requires_grad_(False)  # as a run does
    assert of(net).digest == before.digest
    with torch.no_grad():
        net.weight.add_(1)  # trained on
    assert (of(net).digest != before.digest, of(net).code) == (True, before.code)


# ------------------------------------------------------------------------------------- classifiers, score models, data sets

PARTS = """
    import numpy as np
    import torch
    from torch import nn
    from purebench.scores.vp import VPScore

    class Net(nn.Module):
        def __init__(self, *, width: int = 2):
            super().__init__()
            self.conv = nn.Conv2d(1, width, 3)
            self.head = nn.Linear(36 * width, 10)

        def forward(self, x):
            return self.head(self.conv(x).flatten(1))

    class Eps(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.1))

        def forward(self, x, labels):
            return self.scale * x.tanh()

    def score(*, t_max: float = 1.0):
        return VPScore(Eps(), (1, 8, 8), t_max=t_max)

    def images(*, n: int = 6):
        x = np.random.rand(n, 1, 8, 8)
        return x, np.arange(n) % 10

    KEPT = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 9]))
    """


@pytest.mark.parametrize("images", ["images:n=5", "KEPT"])
def test_classifier_score_model_and_data_set_of_a_file(folder, images):
    write("parts.py", PARTS)
    given = {"dataset": f"./parts.py:{images}", "classifier": "./parts.py:Net:width=3", "score": "./parts.py:score"}
    assert run("out", "one-shot", "noise", threats=("Linf:0.1",), **given).done
    [log] = store.load_all([folder / "out"])
    names = {kind: log.cell[kind] for kind in ("dataset", "classifier", "score")}
    name = {"images:n=5": "images:n=5", "KEPT": "kept"}[images]
    assert names == {"dataset": name, "classifier": "net:width=3", "score": "score"}
    assert all(len(log.cell["parts"][kind]["hash"]) == 64 for kind in names)
    assert log.runs[-1]["stand_in"]
    [again] = cells("one-shot", "noise", threats=("Linf:0.1",), **given)
    assert again.id == log.id


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("(torch.zeros(2, 8, 8), [0, 1])", "(2, 8, 8) with labels (2,)"),
        ("(torch.full((2, 1, 8, 8), 255.0), [0, 1])", "float32 in [255, 255]"),
        ("(torch.zeros(2, 1, 8, 8), [0, 1, 2])", "labels (3,)"),
        ("(torch.zeros(2, 1, 8, 8), [0, -1])", "the labels of"),
        ("(torch.full((2, 1, 8, 8), float('nan')), [0, 1])", "in [nan, nan]"),
        ("torch.zeros(2, 1, 8, 8)", "gave a Tensor, and no images"),
    ],
)
def test_images_that_are_none_are_told(folder, made, words):
    Path("mine.py").write_text(f"import torch\ndef f():\n    return {made}\n")
    with pytest.raises(UserError, match="`f`") as error:
        cells("none", dataset="./mine.py:f", classifier="digits-cnn", score="digits-vp", threats=("Linf:0.1",))
    assert words in error.value.message


def test_a_network_is_no_score_model(folder):
    write("mine.py", "from torch import nn\ndef f():\n    return nn.Identity()\n")
    with pytest.raises(UserError, match="`f` gave a Identity, and no score model") as error:
        cells("one-shot", score="./mine.py:f")
    assert "VPScore" in error.value.hint


# ------------------------------------------------------------------------------------------------------------ shown, made again


def test_a_record_is_made_again_from_its_page(mine):
    defense, attack = "./mine.py:Box:size=5", "transfer:from=(./mine.py:Box),attack=(./mine.py:my_attack:far=0.5)"
    run("out", defense, attack)
    for log in store.load_all([mine / "out"]):
        [job] = [job for job in plan.jobs(recipe.of(log) | {"images": 2, "evals": 1}) if job.cell.id == log.id]
        assert parse(str(job.cell.defense)) == job.cell.defense.part
    [log] = [log for log in store.load_all([mine / "out"]) if log.cell["source"]]
    assert set(log.runs[-1]["targets"]) == {"defense", "source.defense", "source.attack"}


def test_show_tells_what_a_file_defines(mine):
    found = catalogue.facts("./mine.py:Box")
    assert (found["kind"], found["summary"], found["shown as"]) == ("defense", "a box filter", "box")
    assert found["files"] == [str(mine / "mine.py"), str(mine / "helper.py")]
    assert [p["name"] for p in found["parameters"] if not p["common"]] == ["size"]
    assert f"purebench run -d {mine}/mine.py:Box" in catalogue.text(found)
    found = catalogue.facts("./mine.py:my_attack")
    assert (found["kind"], found["about"]) == ("attack", "A random corner of the ball.")
    write("my dir/mine.py", MINE.replace("from helper import half", "half = int"))
    assert f"purebench run -d \"'{mine}/my dir/mine.py':Box\"" in catalogue.text(
        catalogue.facts("'my dir/mine.py':Box")
    )


def test_an_object_needs_this_process():
    target = foreign.register("defense", lambda x: x, "mine")
    request = Request(defenses=(target,), attacks=("null",), dataset="digits", images=2)
    with pytest.raises(UserError, match="2 workers") as error:
        preflight.prepare(request, preflight.Resources("cpu", workers=2), Path("out"))
    assert "FILE.py:NAME" in error.value.hint
    assert preflight.prepare(request, preflight.Resources("cpu"), Path("out"))[1].workers == 1
