"""The Python API: the command's records, arguments and images that people get wrong, and objects that come back as they were."""

import gc
import inspect
import itertools
import json
import logging
import operator
import subprocess
import sys
import threading
import types
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import purebench
from purebench import cli
from purebench.api import given, own
from purebench.api.result import Result
from purebench.datasets.images import of_tensors
from purebench.engine.nfe import watch
from purebench.foreign import texts
from purebench.plan.grid import Request
from purebench.running import progress

torch.set_num_threads(1)
TINY = {"attack": ["null", "pgd-eot:steps=1,eot=1"], "evals": 1, "workers": 1, "quiet": True}
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3])


class Blur(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self._size = size

    def forward(self, x):
        return nn.functional.avg_pool2d(x, self._size, 1, self._size // 2)


def network(classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes))


# ----------------------------------------------------------------------------------------------------------- as the command


def test_run_takes_what_the_command_takes():
    command = {p.name: p.default for p in inspect.signature(cli.run.run).parameters.values()}
    ours = {p.name: p.default for p in inspect.signature(purebench.run).parameters.values()}
    assert command.pop("out") == Path(ours.pop("out"))
    del command["as_json"], ours["plural"]  # Result.table("json"); the names of a grid
    assert ours == command


def test_run_makes_the_records_of_the_command(tmp_path, monkeypatch, capsys):
    words = [
        "-d",
        "one-shot",
        "-a",
        "null",
        "-a",
        "pgd-eot:steps=1,eot=1",
        "--dataset",
        "digits",
        "--images",
        "2",
        "--evals",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["purebench", "run", *words, "--workers", "1", "--out", str(tmp_path / "command")])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = capsys.readouterr().out
    result = purebench.run(defenses=["one-shot"], dataset="digits", images=np.int64(2), out=tmp_path / "api", **TINY)
    files = sorted((tmp_path / "command").glob("*/images.jsonl"))
    assert len(files) == 2
    assert [(tmp_path / "api" / file.parent.name / file.name).read_bytes() for file in files] == [
        file.read_bytes() for file in files
    ]
    # But for the seconds.
    assert str(result).splitlines()[:3] == printed.splitlines()[:3]
    assert list(result.cells.cell) == [folder.name for folder in map(Path, result.cells.folder)]
    assert set(result.cells.columns) >= {"robust", "robust_low", "clean", "nfe_forward", "runs"}
    assert len(result.images) == 4
    assert result.images.columns.equals(purebench.load(tmp_path / "api").columns)
    assert {row["metric"] for row in json.loads(result.table("json"))} >= {"robust", "clean"}
    assert result.robust == result.headlines.robust.iloc[0] <= 1
    again = purebench.run(defense="one-shot", dataset="digits", images=2, out=tmp_path / "api", **TINY)
    assert len(again.cells.runs[0]) == 1


def test_a_papers_table_is_one(tmp_path):
    asked = Request("coup/1", dataset="digits", images=2, grads=("exact",), only=("DiffPure",))
    result = Result([], asked, tmp_path, failed={})
    assert "| DiffPure" in str(result)
    assert "<h3>" in result._repr_html_()
    assert "tabular" in result.table("tex")
    assert str(Result([], Request(), tmp_path, failed={})) == "nothing is recorded of these cells yet"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"defens": "none"}, "unknown argument `defens`.*did you mean `defense`"),
        ({"defense": "none", "defenses": ["none"]}, "the same argument"),
        ({"defense": "difpure"}, "did you mean `diffpure`"),
        ({"defense": 3}, "is no PART"),
        ({"defense": Blur}, r"is a class\nhint: give an object of it: Blur\(\.\.\)"),
        ({"defense": X}, "is an array of shape"),
        ({"grad": len}, "is no PART"),
        ({"threat": 8 / 255}, "Linf:8/255"),
        ({"images": 8.5}, "no whole number"),
        ({"images": True}, "no whole number"),
        ({"seed": "0"}, "no whole number"),
        ({"quiet": "no"}, "neither True nor False"),
        ({"out": None}, "is no folder"),
        ({"preset": Blur()}, "a preset is a name"),
        ({"memory": "much"}, "cannot read the memory size"),
        ({"defense": Blur(), "workers": 2, "dataset": "digits"}, "an object of this process"),
    ],
)
def test_wrong_arguments_are_refused_with_a_hint(arguments, says, tmp_path):
    with pytest.raises(purebench.UserError, match=f"(?s){says}") as found:
        purebench.run(**{"attack": "null", "out": tmp_path} | arguments)
    assert found.value.hint


def test_a_grids_names_mean_the_same():
    plain = dict.fromkeys(("defense", "attack", "threat", "grad", "seed", "images"))
    merged = given.merged(plain, {"defenses": ["none"], "seeds": range(2)})
    assert given.request(None, merged) == Request(defenses=("none",), seeds=(0, 1))


def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from purebench.running import pools, progress\nprint('begins', flush=True)\n"
        "pool = pools.start(2, 'cpu', None, progress.Reporter())\nprint(pool.members[0].pipe.recv()[0])\npool.stop()"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["begins", "facts"]


@pytest.mark.parametrize("module", ["purebench", "purebench.cli"])
def test_python_m_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"purebench {purebench.__version__}\n"


def test_the_names_are_listed_typed_and_light():
    assert (Path(purebench.__file__).parent / "py.typed").exists()
    names = {"run", "evaluate", "load", "Result", "UserError", "__version__"}
    code = f"import sys, purebench; assert {names!r} <= set(dir(purebench)); print(*{{'torch', 'pandas'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_a_notebook_shows_progress_and_no_traceback(monkeypatch, capsys):
    shown = []
    display = types.SimpleNamespace(
        HTML=lambda text: text,
        display=lambda text, display_id: shown.append(text) or types.SimpleNamespace(update=shown.append),
    )
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    reporter = progress.reporter(False)
    reporter.start(4)
    reporter.work(2)
    reporter.batch("<none>", 0.5, 2, 4)
    reporter.close()
    assert 'value="0.5000"' in shown[-2]
    assert "&lt;none&gt;: 50.0% robust after 2 of 4 images" in shown[-1]
    assert "<progress" not in shown[-1]
    error = purebench.UserError("wrong", "do it so")
    assert error._render_traceback_() == ["UserError: wrong\nhint: do it so"]


# ----------------------------------------------------------------------------------------------------------- images of one's own

WRONG = {
    "255": (X * 255, Y, r"x is in \[.*, 25\d.*\].*x / 255"),
    "uint8": ((X * 255).byte(), Y, "uint8.*x / 255"),
    "int": ((X * 255).long().numpy(), Y, "int64.*x / 255"),
    "channels last": (X.permute(0, 2, 3, 1).numpy(), Y, "channels last.*transpose"),
    "[-1,1]": (2 * X - 1, Y, r"\(x \+ 1\) / 2"),
    "normalised": ((X - 0.5) / 0.2, Y, "undo the normalisation"),
    "twice": (X / 255, Y, "divided by 255 twice"),
    "nan": (X.where(X < 0.99, torch.nan), Y, "not finite, first in image"),
    "one image": (X[0], Y[:1], r"x\[None\]"),
    "none": (X[:0], Y[:0], "nothing in it"),
    "list": (X.tolist(), Y, "x is a list"),
    "missing": (None, Y, "x is missing"),
    "no labels": (X, None, "y is missing"),
    "one-hot": (X, nn.functional.one_hot(Y), r"one-hot.*argmax"),
    "column": (X, Y[:, None], "flatten"),
    "float": (X, Y.float(), "float32.*long"),
    "bool": (X, Y > 1, "bool"),
    "strings": (X, np.array(["cat"] * 4), "an array of <U3"),
    "shorter": (X, Y[:3], "4 images and y 3 labels"),
    "negative": (X, Y - 1, "label -1"),
    "from one": (X, Y + 1, "knows 4 classes.*y - 1"),
    "of others": (X, Y * 30, "knows 4 classes.*the classifier of these"),
}


@pytest.mark.parametrize("case", WRONG)
def test_images_that_people_get_wrong(case):
    x, y, says = WRONG[case]
    with pytest.raises(purebench.UserError, match=f"(?s){says}"):
        purebench.evaluate("none", network(), x, y, threat="Linf:0.1", **TINY)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (X.to_sparse(), r"sparse tensor \(sparse_coo\)"),
        (X.to("meta"), "without values"),
        (torch.nested.nested_tensor([X[0], X[1]]), "nested"),
        (torch.quantize_per_tensor(X, 1 / 255, 0, torch.quint8), "quantised"),
        (X.to(torch.float8_e5m2), "float8_e5m2"),
        (X * 0 + 1.00001, r"\[1\.00001, 1\.00001\]"),
    ],
)
def test_tensors_of_any_layout_are_images_or_refused(x, says):
    with pytest.raises(purebench.UserError, match=says):
        own.checked(x, Y)
    with pytest.raises(purebench.UserError, match=says):
        of_tensors(x, Y)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_images_of_any_float_are_the_same_images(dtype):
    grid = (X * 8).round() / 8
    x, y = own.checked(grid.numpy().astype(dtype)[::-1][::-1], Y.tolist())
    assert torch.equal(x, grid)
    assert x.dtype == torch.float32
    assert own.dataset(x, y, 4).digest == own.dataset(*own.checked(grid, Y.int()), 4).digest
    assert own.dataset(x, y, 4).digest != own.dataset(x, y.flip(0), 4).digest


@pytest.mark.parametrize(
    ("classifier", "says"),
    [
        (lambda x: x.flatten(1)[:, :4].argmax(1), r"\(2,\) int64"),
        (lambda x: x[:, :, :1], r"answers 2 images with \(2, 3, 1, 8\)"),
        (lambda x: [x], "answers 2 images with"),
        (lambda x: x.flatten(1)[:, :4] / 0 - 1 / 0, "ZeroDivisionError"),
        (lambda x: x.flatten(1)[:, :4] * torch.inf, "not finite"),
        (nn.Linear(7, 7), r"fails on \(2, 3, 8, 8\) float32 images.*normalisation"),
        (nn.Linear(8, 4, device="meta"), "`meta`.*one device"),
        (None, "nobody knows the classifier"),
        (3, "is no PART"),
        ("digits-cnn", "takes images of 1x8x8, and"),
    ],
)
def test_classifiers_that_are_none(classifier, says):
    with pytest.raises(purebench.UserError, match=f"(?s){says}"):
        purebench.evaluate("none", classifier, X, Y, threat="Linf:0.1", **TINY)


@pytest.mark.parametrize("form", ["tensor", "logits", "dict", "tuple", "one"])
def test_the_classes_of_a_classifier_are_asked(form):
    logits = X.flatten(1)[:2, :4]
    answers = {
        "tensor": logits,
        "logits": types.SimpleNamespace(logits=logits),
        "dict": {"logits": logits},
        "tuple": (logits, 1),
    }
    assert own.classes(lambda x: answers.get(form, logits[:, :1]), X) == (2 if form == "one" else 4)


def test_evaluate_of_objects_leaves_them_as_they_came(tmp_path):
    classifier, defense = network().train(), Blur()
    classifier[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    call = partial(purebench.evaluate, defense, classifier, X, Y, threat="Linf:0.1", **TINY)
    result = call(out=tmp_path)
    assert classifier.training
    assert classifier[1].training
    assert [p.requires_grad for p in classifier.parameters()] == [False, *[True] * 5]
    assert not classifier._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert list(result.cells.images) == [4, 4]
    assert set(result.cells.defense) == {"blur"}
    assert str(result).count("###") == 1
    assert "images of your own" in str(result)
    assert result._repr_html_().count("<table") == 1
    # The same again goes on there; other weights or another parameter are another cell.
    assert set(call(out=tmp_path).cells.cell) == set(result.cells.cell)
    defense._size = 5
    assert not set(call(out=tmp_path).cells.cell) & set(result.cells.cell)


def test_records_without_a_folder_live_as_long_as_the_result():
    result = purebench.evaluate("none", network(), X, Y, threat="Linf:0.1", **TINY)
    folder = result.out
    assert len(list(folder.glob("*/images.jsonl"))) == 2
    del result
    gc.collect()
    assert not folder.exists()


def test_a_defense_that_fails_is_an_error_with_its_reason():
    def broken(x):
        raise ValueError("not today")

    with pytest.raises(purebench.UserError, match="not today"):
        purebench.evaluate(broken, network(), X, Y, threat="Linf:0.1", **TINY)


def test_a_score_model_is_asked_for_only_where_it_is_needed():
    with pytest.raises(purebench.UserError, match=r"runs on a score model, and .* has no default one"):
        purebench.evaluate("diffpure", network(), X, Y, threat="Linf:0.1", **TINY)


# ----------------------------------------------------------------------------------------------------------- what an object is


def test_an_object_is_its_code_and_its_values():
    def scaled(factor):
        return lambda x: helper(x) * factor

    def helper(x):
        return x + 1

    same = [scaled(2), partial(scaled, 2), Blur(3), types.SimpleNamespace(a=[1, {"b": 2}])]
    others = [scaled(3), partial(scaled, 3), Blur(5), types.SimpleNamespace(a=[1, {"b": 3}])]
    known = [texts.whole(thing) for thing in same]
    assert known[:3] == [texts.whole(thing) for thing in (scaled(2), partial(scaled, 2), Blur(3))]
    assert all(texts.whole(other) != text for other, text in zip(others, known, strict=True))
    # What an evaluation does to a network is no change of it; a hook of its owner's is.
    blur = watch(same[2].eval().requires_grad_(False))
    assert texts.whole(blur) == known[2]
    blur.register_forward_pre_hook(lambda module, args: None)
    assert texts.whole(blur) != known[2]


def test_two_functions_on_one_line_are_two():
    one, other = (lambda x: x), (lambda x: x * 0.02 + 0.5)
    assert texts.whole(one) != texts.whole(other)
    assert texts.code(lambda x: x in {"a", "b"}) == texts.code(lambda x: x in {"b", "a"})


def test_what_stands_above_or_around_the_code_hides_none_of_it():
    @torch.no_grad()
    def one(x):
        return x

    @torch.no_grad()
    def other(x):
        return 1 - x

    made = {}
    for word in ("x", "1 - x"):
        space = {"__name__": "nobody_imported_it"}
        exec(f"class Q:\n    def __call__(self, x): return {word}\n", space)
        made[word] = space["Q"]()
    frames = [types.SimpleNamespace(table=pandas.DataFrame({"a": [k]})) for k in (1, 2)]
    numbers = [types.SimpleNamespace(table=[float(k)] * 100_000, k=Fraction(1, k)) for k in (1, 2)]
    for a, b in ((one, other), made.values(), frames, numbers):
        assert texts.whole(a) != texts.whole(b)
        assert texts.whole(a) == texts.whole(a)
    kinds = [
        np.float32(1),
        np.float32(2),
        range(2),
        range(3),
        torch.device("cpu"),
        torch.float16,
        torch.relu,
        torch.zeros_like,
        operator.pos,
    ]
    kinds += [
        operator.itemgetter(1),
        operator.itemgetter(2),
        Path("a"),
        np.array(["a"]),
        np.array(["b"]),
        slice(1),
        slice(2),
    ]
    known = [texts.whole(types.SimpleNamespace(kind=kind)) for kind in kinds]
    assert len(set(known)) == len(kinds)
    assert "0x" not in "".join(known)


def test_what_an_object_keeps_to_work_with_is_no_part_of_it():
    log, lock = logging.getLogger("test"), threading.Lock()

    def defense(x):
        with lock:
            log.debug("asked")
            return x

    before = texts.whole(defense)
    log.isEnabledFor(logging.DEBUG)
    defense(X)
    assert texts.whole(defense) == before


def test_a_module_that_is_named_as_a_librarys_begins_is_the_users(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("randomized", "logging_net", "threading_"):
        (tmp_path / f"{name}.py").write_text(
            "class F:\n    def __init__(self, k): self.k = k\n    def __call__(self, x): return x * self.k\n"
        )
        made = __import__(name).F
        assert texts.whole(made(1.0)) != texts.whole(made(2.0))


def test_an_object_is_what_runs_and_not_what_its_file_says_by_now(tmp_path, monkeypatch):
    file = tmp_path / "halved.py"
    file.write_text("SIZE = 2\nclass Kept:\n    __slots__ = ('k',)\ndef half(x):\n    return x / SIZE\n")
    monkeypatch.syspath_prepend(tmp_path)
    halved = __import__("halved")
    through = lambda x: halved.half(x)  # noqa: E731
    known = [texts.whole(halved.half), texts.whole(through)]
    # Edited, and not imported again.
    file.write_text("SIZE = 2\ndef half(x):\n    return 1 - x\n")
    assert [texts.whole(halved.half), texts.whole(through)] == known
    # Altered in memory, which runs.
    monkeypatch.setattr(halved, "SIZE", 3)
    assert all(texts.whole(f) != text for f, text in zip((halved.half, through), known, strict=True))
    kept = halved.Kept()
    kept.k = 1
    before = texts.whole(kept)
    kept.k = 2
    assert texts.whole(kept) != before
    assert "0x" not in "".join(known)
