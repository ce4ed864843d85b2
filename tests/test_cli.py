"""The command line, mostly through a real process: exit codes, streams, lightness, and what a rude user gets to see."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path

import pytest

import purebench
from purebench import assets, cli, datasets, errors, registry
from purebench.plan import catalogue, grid
from purebench.records import store as records
from purebench.running import progress

PACKAGE = Path(purebench.__file__).parent
PUREBENCH = [sys.executable, "-c", "from purebench.cli import main; main()"]
COMMANDS = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
TINY = [
    "-d",
    "one-shot",
    "-a",
    "null",
    "-a",
    "pgd-eot:steps=2,eot=2",
    "--images",
    "4",
    "--evals",
    "2",
    "--workers",
    "1",
    "--device",
    "cpu",
]


def purebench_(*arguments, cwd=None, **environment):
    """A finished process: returncode, stdout, stderr."""
    env = os.environ | {"COLUMNS": "120"} | environment
    return subprocess.run(
        [*PUREBENCH, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=env, timeout=120
    )


def here(monkeypatch, capsys, *arguments):
    """The same in this process, where torch is already there: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["purebench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def advises(process, code, *words):
    """An error message with a hint, on stderr alone, and no traceback."""
    got, out, err = process if isinstance(process, tuple) else (process.returncode, process.stdout, process.stderr)
    assert got == code, err
    assert "Traceback" not in err
    assert out == ""
    assert "error: " in err.lower()
    assert all(word in err for word in words), err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run through a real process, and what it said."""
    out = tmp_path_factory.mktemp("run") / "results"
    return out, purebench_("run", *TINY, "--json", "--out", out)


# ------------------------------------------------------------------------------------------------------------ lightness


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(monkeypatch, capsys, command):
    code, out, _ = here(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"purebench {command}" in out.partition("Examples:")[2]


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "coup"], ["show", "robustbench"], ["where"]])
def test_what_only_names_things_imports_nothing_that_takes_time(arguments):
    code = (
        "import sys\nfrom purebench.cli import app\ntry: app()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'numpy', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


# ----------------------------------------------------------------------------------------------------------------- a run


def test_a_run_prints_data_on_stdout_and_the_rest_on_stderr(finished):
    _, process = finished
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)
    assert {"one-shot"} == {row["defense"] for row in rows}
    assert "embedded digits" in process.stderr
    assert "next: purebench table" in process.stderr
    assert "\r" not in process.stderr
    assert "\033" not in process.stderr
    assert "Traceback" not in process.stderr


def test_a_quiet_run_says_nothing(finished, monkeypatch, capsys):
    assert here(monkeypatch, capsys, "run", *TINY, "--quiet", "--out", finished[0]) == (0, "", "")


JSON = {
    "status RESULTS --json": 2,
    "table RESULTS --format json": 4,
    "list --json": 20,
    "list attacks --json": 5,
    "show coup --json": 5,
    "where --json": 3,
}


@pytest.mark.parametrize(("arguments", "count"), JSON.items())
def test_json_is_json(finished, arguments, count):
    process = purebench_(*[finished[0] if a == "RESULTS" else a for a in arguments.split()])
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)) >= count


def test_status_says_how_far_each_cell_is(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "r"
    shutil.copytree(finished[0], out)
    done, short, failed = [*records.cells([out]), None]
    path = short / records.IMAGES
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    shutil.copytree(done, failed := out / "failed")
    data = records.read_cell(failed)
    data["runs"][-1]["failed"] = "it broke"
    (failed / records.CELL).write_text(json.dumps(data))
    rows = json.loads(here(monkeypatch, capsys, "status", out, "--json")[1])
    assert sorted(row["state"] for row in rows) == ["failed: it broke", "ok", "unfinished: 3 of 4"]
    assert "it broke" in here(monkeypatch, capsys, "status", out)[1]


@pytest.mark.parametrize("wanted", [4, None, "four"])
def test_status_tells_images_that_an_attack_did_not_make(finished, tmp_path, monkeypatch, capsys, wanted):
    shutil.copytree(records.cells([finished[0]])[0], cell := tmp_path / "r" / "cell")
    lines = [json.loads(text) for text in (cell / records.IMAGES).read_text().splitlines()]
    lines[1] = {key: value for key, value in lines[1].items() if key != "crc"} | {"failed": "attack: it broke"}
    (cell / records.IMAGES).write_text("".join(records.line({k: v for k, v in x.items() if k != "crc"}) for x in lines))
    data = records.read_cell(cell)
    data["runs"][-1]["wanted"] = wanted
    (cell / records.CELL).write_text(json.dumps(data))
    (row,) = json.loads(here(monkeypatch, capsys, "status", tmp_path / "r", "--json")[1])
    assert row["state"] == "unfinished: 3 of 4; the attack made no image: 1"
    assert "missing, since the attack made no image" in here(monkeypatch, capsys, "table", tmp_path / "r")[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59s"), (90, "1m30s"), (7260, "2h01m"), (3 * 86400, "3 days"), (9e9, "285.2 years")],
)
def test_durations_read_well(seconds, text):
    assert progress.duration(seconds) == text


def test_where_names_places_that_exist(monkeypatch, capsys):
    places = json.loads(here(monkeypatch, capsys, "where", "--json")[1])
    assert all(Path(places[key]).exists() for key in ("embedded weights", "checkpoint registry", "presets"))
    monkeypatch.setenv("PUREBENCH_CACHE", "/somewhere/else")
    assert "/somewhere/else" in here(monkeypatch, capsys, "where")[1]


def test_a_dry_run_plans_and_writes_nothing(finished, tmp_path, monkeypatch, capsys):
    more = [*TINY, "-a", "transfer:from=(coup)", "--dry-run", "--out"]
    code, out, _ = here(monkeypatch, capsys, "run", *more, tmp_path / "none")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert all(
        word in out
        for word in ("done", "left", "NFE", "at most", "one-shot x transfer", "coup x pgd-eot", "(digits)", "(given)")
    )
    rows = json.loads(here(monkeypatch, capsys, "run", *more, finished[0], "--json")[1])
    assert {(r["cell"].partition(" @")[0].partition(" (")[0], r["done"], r["left"]) for r in rows} == {
        ("one-shot x null", 4, 0), ("one-shot x pgd-eot:eot=2,steps=2", 4, 0),
        ("coup x pgd-eot", 0, 4), ("one-shot x transfer:from=(coup)", 0, 4),
    }  # fmt: skip
    assert all((r["seconds"] > 0) == (r["left"] > 0) and r["nfe_forward"] >= 0 and r["id"] for r in rows)
    assert len(list(finished[0].iterdir())) == 2


def listening(command):
    """A process that Ctrl-C reaches, even where the tests themselves were started with SIGINT ignored, as in the background."""
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)


def test_ctrl_c_keeps_what_was_computed(tmp_path):
    arguments = ["run", "-d", "coup:steps=5", "-a", "pgd-eot:steps=5", "-a", "null", "--images", "400", "--evals", "1"]
    arguments += ["--rows", "16", "--workers", "1", "--device", "cpu", "--out", str(tmp_path)]
    process = listening([*PUREBENCH, *arguments])
    end = time.monotonic() + 120
    while not list(tmp_path.glob(f"*/{records.IMAGES}")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert "same command" in err
    assert "Traceback" not in err
    # The cell that no run has come to is there, too: it is missing from the table, and that is to be known.
    [log, later] = sorted(records.load_all([tmp_path]), key=lambda log: -len(log.images))
    assert (later.images, later.wanted) == ([], 400)
    kept = len(log.images)
    assert f"{kept} new images are kept" in err
    assert 0 < kept < 400
    assert log.runs[-1]["images"] == kept


def test_ctrl_c_before_the_run_has_begun_is_quiet_too(tmp_path):
    process = listening([*PUREBENCH, "run", "-d", "coup", "-a", "null", "--out", str(tmp_path)])
    process.stderr.readline()  # the planner has spoken: torch is being imported
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err


def test_a_cell_that_another_process_computes_is_skipped(finished, monkeypatch, capsys):
    with (records.cells([finished[0]])[0] / records.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = here(monkeypatch, capsys, "run", *TINY, "--out", finished[0])
    assert code == 0
    assert "skipped" in err


def test_a_failed_cell_is_exit_1_with_its_reason(tmp_path, monkeypatch, capsys):
    def broken():
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("purebench.attacks.null.null", broken)
    code, out, err = here(monkeypatch, capsys, "run", *TINY, "--out", tmp_path)
    assert code == 1
    assert "of all things" in err
    assert "hint: " in err
    assert "pgd-eot" in out  # the others' table
    assert "of all things" in here(monkeypatch, capsys, "status", tmp_path)[1]


def test_a_defense_whose_every_purification_is_not_finite_has_zero_and_says_where(tmp_path, monkeypatch, capsys):
    command = ["run", "-d", "diffpure-ld:sigma2=1e-30", "-a", "null", "--images", "9", "--evals", "1"]
    command += ["--dataset", "digits", "--workers", "1", "--device", "cpu", "--out", tmp_path]
    said = "clean image: step 2 of 10 gave values that are not finite"
    for warned in (True, False):  # the second time nothing is computed, and the table still says it
        code, out, err = here(monkeypatch, capsys, *command)
        assert (code, said in err) == (0, warned)
        assert "| 0.0 " in out
        assert "purifications of clean images that are not finite count as wrong: null on" in out
        assert "(step 2 of 10 gave values that are not finite)" in out
    assert "  ok" in here(monkeypatch, capsys, "status", tmp_path)[1]


def test_an_edited_line_is_refused_by_table_status_and_run(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0], tmp_path / "r")
    path = records.cells([tmp_path / "r"])[1] / records.IMAGES
    path.write_text(path.read_text().replace('"clean":[', '"clean":[5,', 1))
    for arguments in (
        ["table", tmp_path / "r"],
        ["status", tmp_path / "r"],
        ["run", *TINY, "--quiet", "--out", tmp_path / "r"],
    ):
        advises(here(monkeypatch, capsys, *arguments), 2, f"line 1 of `{path}`", "sed -i 1d")
    subprocess.run(["sed", "-i", "1d", path], check=True)  # as the hint says
    assert here(monkeypatch, capsys, "run", *TINY, "--quiet", "--out", tmp_path / "r") == (0, "", "")
    assert path.read_bytes() == (finished[0] / path.relative_to(tmp_path / "r")).read_bytes()


# ----------------------------------------------------------------------------------------------------------------- show

ESSENTIALS = {
    "defense": "formula parameters calls random output gradients requires",
    "attack": "parameters gradients cost",
    "gradient": "parameters",
    "dataset": "images shape classes subset defaults source licence parameters",
    "classifier": "parameters",
    "score": "takes assets parameters",
}


def shown(monkeypatch, capsys, kind, name):
    """What `show` says of one name: as data, and as text."""
    found = json.loads(here(monkeypatch, capsys, "show", name, "--json")[1])
    [own] = [f for f in (found, *found.get("also", [])) if f["kind"] == kind]
    code, out, err = here(monkeypatch, capsys, "show", name)
    assert (code, err) == (0, "")
    return own, " ".join(out.split())


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in registry.NAMES.items() for n in names])
def test_everything_is_shown_with_its_essentials(kind, name, monkeypatch, capsys):
    found, text = shown(monkeypatch, capsys, kind, name)
    info = registry.info(kind, name)
    needed = {*ESSENTIALS[kind].split(), "summary", "documentation", "version", "defined in"}
    needed |= {"differences"} & set(info) | ({"cite"} if info.get("cite") else set())
    assert needed <= set(found)
    assert {p["name"]: p["default"] for p in found["parameters"]}.keys() == registry.parameters(kind, name).keys()
    assert (PACKAGE.parent / found["documentation"]).is_file()
    said = [found["summary"], found["documentation"], found.get("formula", ""), found.get("differences", "")]
    said += found.get("gradients", []) + [found.get("cite", ""), str(found.get("subset", "")), found.get("licence", "")]
    said += [part for p in found["parameters"] for part in (p["name"], p["default"], p["paper"])]
    said += [a[key] for a in found.get("assets", [])[:1] for key in ("asset", "size", "licence", "trust", "state")]
    said += [info.get("stand_in", "")]
    assert all(" ".join(part.split()) in text for part in said), [p for p in said if " ".join(p.split()) not in text]
    if kind == "defense":
        assert [p["name"] for p in found["parameters"] if p["common"]] == ["votes", "combine", "noise", "score"]
        assert found["documentation"] == f"docs/defenses/{name}.md"


@pytest.mark.parametrize("name", registry.NAMES["defense"])
def test_show_has_every_value_of_every_dataset_and_no_other(name, monkeypatch, capsys):
    found, text = shown(monkeypatch, capsys, "defense", name)
    told = {(n, p["name"]) for p in found["parameters"] for n in p["datasets"]}
    tables = {n: datasets.defaults(n).get("defense", {}).get(name, {}) for n in registry.NAMES["dataset"]}
    assert told == {(n, key) for n, table in tables.items() for key in table}
    assert all(n in text for n, _ in told)


def test_show_says_what_a_table_waits_for_by_row_or_in_all_of_its_columns(tmp_path, monkeypatch, capsys):
    assert "needs asset:adp-ncsnv2-mnist" in here(monkeypatch, capsys, "show", "adp/9")[1]
    own = tmp_path / "own.toml"
    published = grid.presets()["coup/4"].read_text()
    own.write_text(published.replace('metric = "seconds"', 'metric = "seconds"\nneeds = "asset:adp-ncsnv2-dct"'))
    assert here(monkeypatch, capsys, "show", str(own))[1].count("needs asset:adp-ncsnv2-dct") == 3


def test_show_tells_values_paper_and_calls(monkeypatch, capsys):
    found, text = shown(monkeypatch, capsys, "defense", "diffpure")
    assert "imagenet 0.15; celebahq 0.5 paper: 0.1 for Linf 8/255" in text
    assert found["calls"] == "steps"
    assert "network calls per image: steps; then 1 to classify" in text
    assert set(found["gradients"]) == {"exact", "adjoint", "bpda", "surrogate"}
    assert found["random"] == "yes: the forward noise and one normal per step"
    assert shown(monkeypatch, capsys, "defense", "none")[0]["random"] == "no"


def test_one_name_of_two_kinds_is_shown_twice(monkeypatch, capsys):
    assert shown(monkeypatch, capsys, "score", "edm")[0]["assets"][0]["licence"] == "CC BY-NC-SA 4.0"
    assert shown(monkeypatch, capsys, "defense", "edm")[0]["documentation"] == "docs/defenses/edm.md"
    assert shown(monkeypatch, capsys, "preset", "digits")[0]["grid"]["dataset"] == "digits"


def test_show_says_whether_a_checkpoint_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    asset = "ebm-hill-cifar10"
    assert "not in the cache: `purebench fetch ebm-hill-cifar10`" in shown(monkeypatch, capsys, "score", "ebm")[1]
    [part] = assets.parts(asset)
    part.file.parent.mkdir(parents=True)
    part.file.write_bytes(b"weights")
    assert shown(monkeypatch, capsys, "score", "ebm")[0]["assets"][0]["state"] == "in the cache"
    assert "ships with purebench" in shown(monkeypatch, capsys, "score", "digits-vp")[1]
    assert "not trained yet" in shown(monkeypatch, capsys, "classifier", "mnist-cnn")[1]
    assert "ADP's own NCSNv2 and WRN-28-10, never released" in shown(monkeypatch, capsys, "score", "ncsnv2")[1]


def test_show_of_a_plug_in_names_no_page_of_ours(monkeypatch):
    entry = EntryPoint("another", registry.NAMES["defense"]["gaussian"], "purebench.defense")
    monkeypatch.setattr(registry, "_plugins", lambda: [entry])
    registry.names.cache_clear()
    try:
        assert "documentation" not in catalogue.facts("another")
        assert catalogue.text(catalogue.facts("another"))
    finally:
        registry.names.cache_clear()


OF_A_PLUGIN = {  # what a plug-in's file says -> words of the refusal
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': make()}": "is no literal",
    "def their(score, classifier, *, size=3): ...\nINFO = ['summary']": "is no dictionary",
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': 'x', 'requires': ['sise >= 1']}": "there is no 'sise'",
    "def their(score, classifier, *, mode='a'): ...\nINFO = {'summary': 'x', 'requires': ['mode >= 1']}": "which has no value",
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': 'x', 'requires': ['size >>']}": "which has no value",
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': 'x', 'versions': {'depth > 1': 2}}": "there is no 'depth'",
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': 'x', 'choices': {'size': [1, 3]}}": "choices of `size`",
    "def their(score, classifier, *, size=3): ...\nINFO = {'summary': 'x', 'choices': {'way': ['a']}}": "choices of `way`",
    "def their(score, classifier, *, size=make()): ...\nINFO = {'summary': 'x'}": "is no literal",
    "def their(score, classifier, *, size=3): ..\n..": "cannot be read",
}


@pytest.mark.parametrize("text", OF_A_PLUGIN)
def test_a_plug_in_that_says_nonsense_of_itself_is_told_and_hides_no_other(text, tmp_path, monkeypatch, capsys):
    name = f"their_module_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("their", f"{name}:their", "purebench.defense")
    monkeypatch.setattr(registry, "_plugins", lambda: [entry])
    cached = [registry.names, registry._info, registry._parameters, registry._source]
    for each in cached:
        each.cache_clear()
    try:
        code, _, err = here(monkeypatch, capsys, "run", "--dataset", "digits", "-d", "their", "--dry-run")
        assert (code, OF_A_PLUGIN[text] in err, "hint: " in err) == (2, True, True), err
        assert {"coup", "their"} <= set(here(monkeypatch, capsys, "list", "defenses")[1].split())
    finally:
        for each in cached:
            each.cache_clear()


# ------------------------------------------------------------------------------------------------------------ bad input

WRONG = {
    "no such command": (["rnu"], "rnu"),
    "no such option": (["run", "--defence", "coup"], "--defence"),
    "no such defense": (["run", "-d", "cop"], "did you mean `coup`"),
    "no such attack": (["run", "-a", "pgd_eot"], "did you mean `pgd-eot`"),
    "no such name": (["show", "cuop"], "did you mean `coup`"),
    "no such kind": (["list", "atacks"], "did you mean `attacks`"),
    "no such preset": (["run", "quik"], "did you mean `quick`"),
    "no such grid": (["run", "my.toml"], "my.toml"),
    "no such results": (["table", "nowhere"], "nowhere"),
    "no status either": (["status", "nowhere"], "nowhere"),
    "no such layout": (["table", "RESULTS", "--layout", "gird"], "grid"),
    "no such format": (["table", "RESULTS", "--format", "pdf"], "md"),
    "no such training": (["train", "digit"], "digits"),
    "no perturbation": (["run", "-a", "pgd-eot", "-t", "Linf:0"], "-a null"),
    "too much": (["run", "-a", "pgd-eot", "-t", "Linf:8"], "Linf:8/255"),
    "no images": (["run", "-a", "null", "--images", "0"], "1 to 500"),
    "too many images": (["run", "-a", "null", "--images", "501"], "500 test images"),
    "images a word": (["run", "--images", "all"], "--images"),
    "no draws": (["run", "-a", "null", "--evals", "0"], "at least once"),
    "no rows": (["run", "-a", "null", "--rows", "0"], "--rows"),
    "no workers": (["run", "-a", "null", "--workers", "0"], "--workers"),
    "memory a word": (["run", "-a", "null", "--memory", "lots"], "4G"),
    "subset below zero": (["run", "-a", "null", "--subset", "-1"], "subset"),
    "nothing to purify": (["purify", "-d", "coup"], "IMAGE"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_message_and_exit_2(case, finished, monkeypatch, capsys, tmp_path):
    arguments, *words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    advises(here(monkeypatch, capsys, *[finished[0] if a == "RESULTS" else a for a in arguments]), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_with_one_bad_cell_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "g.toml").write_text(
        'attacks = ["null"]\n[[grid]]\ndefenses = ["none", "coup"]\n[[grid]]\ndefenses = ["diffpure:sptes=3"]\n'
    )
    advises(purebench_("run", "g.toml", cwd=tmp_path), 2, "steps", "hint: ")
    assert [p.name for p in tmp_path.iterdir()] == ["g.toml"]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_results_cannot_be_a_file(tmp_path, monkeypatch, capsys, out):
    (tmp_path / "file").write_text("")
    code, _, err = here(monkeypatch, capsys, "run", *TINY, "--out", tmp_path / out)
    assert code in (1, 2)
    assert "error: " in err
    assert "hint: " in err


def test_a_device_that_is_not_there(monkeypatch, capsys, tmp_path):
    for device in ("cuda:99", "tpu", "cpu:x"):
        code, _, err = here(monkeypatch, capsys, "run", *TINY[:-1], device, "--out", tmp_path)
        assert (code, "--device cpu" in err) == (2, True)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package, to be damaged; imported by PYTHONPATH."""
    top = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, top / "purebench", ignore=shutil.ignore_patterns("__pycache__"))
    if not (PACKAGE / "checkpoints.toml").exists():
        shutil.copy(PACKAGE.parent / "checkpoints.toml", top)
    return top


@pytest.mark.parametrize("damage", ["missing", "empty", "one byte"])
@pytest.mark.parametrize("which", ["digits-score", "digits-classifier"])
def test_weights_that_are_missing_or_corrupt_are_exit_3(copy, tmp_path, damage, which):
    path = copy / "purebench" / "embedded" / f"{which}.safetensors"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        process = purebench_("run", *TINY, "--out", tmp_path / "r", PYTHONPATH=str(copy), cwd=tmp_path)
    finally:
        path.write_bytes(whole)
    advises(process, 3, str(path), "hint: ", "purebench train", "missing" if damage == "missing" else "corrupt")
    assert not (tmp_path / "r").exists()


# --------------------------------------------------------------------------------------------------------------- purify


def test_purify_writes_a_picture_of_each_and_one_of_all(tmp_path):
    from PIL import Image

    for name, size, mode in (("one.png", (8, 8), "L"), ("two.jpg", (50, 31), "RGB")):
        Image.new(mode, size, 90 if mode == "L" else (10, 200, 30)).save(tmp_path / name)
    process = purebench_("purify", "one.png", "two.jpg", "-d", "coup:steps=2", "--out", "clean", "--json", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)
    assert [row["image"] for row in rows] == ["one.png", "two.jpg"]
    assert sorted(p.name for p in (tmp_path / "clean").iterdir()) == ["one.png", "side-by-side.png", "two.png"]
    assert Image.open(tmp_path / "clean" / "one.png").size == (8, 8)
    assert Image.open(tmp_path / "clean" / "side-by-side.png").size[0] > 200
    assert "side-by-side.png" in process.stderr


@pytest.mark.parametrize("image", ["nowhere.png", "text.png", "folder", "torn.png"])
def test_an_image_that_cannot_be_read_is_exit_2(tmp_path, monkeypatch, capsys, image):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("I am no picture")
    Path("folder").mkdir()
    Image.effect_noise((64, 64), 50).save("whole.png")
    Path("torn.png").write_bytes(Path("whole.png").read_bytes()[:600])
    advises(here(monkeypatch, capsys, "purify", image, "-d", "coup:steps=2"), 2, image, "hint: ")
    assert not Path("purified").exists()


@pytest.fixture
def pictures_of_digits(tmp_path, monkeypatch):
    """The first eight test images as files, in the folder that is now the current one."""
    from purebench.datasets import digits
    from purebench.report import pictures

    monkeypatch.chdir(tmp_path)
    names = [Path(f"{i}.png") for i in range(8)]
    for name, x in zip(names, digits.test()[0], strict=False):
        pictures.picture(x).save(name)
    return names


@pytest.fixture
def one_shot_fails_on_the_darkest(monkeypatch, pictures_of_digits):
    """`one-shot` does nothing in three steps, but for the darkest image, which is NaN from step 1 on. Returns its file."""
    import torch

    from purebench.engine.identity import Identity
    from purebench.report import inputs

    sums = [float(inputs.read(path, [1, 8, 8], {}).images.sum()) for path in pictures_of_digits]

    class Diverges(Identity):
        n = 3

        def step(self, k, x, noise):
            dark = x.flatten(1).sum(1).view(-1, 1, 1, 1) < min(sums) + 1e-3
            return x.masked_fill(dark, torch.nan) if k == 1 else x

    monkeypatch.setattr("purebench.purifiers.one_shot.one_shot", lambda *a, **k: Diverges())
    return pictures_of_digits[sums.index(min(sums))]


@pytest.mark.parametrize("defense", ["one-shot", "one-shot:votes=2"])
def test_an_image_whose_purification_is_not_finite_fails_alone(
    defense, pictures_of_digits, one_shot_fails_on_the_darkest
):
    from PIL import Image

    from purebench.report import pictures

    bad = one_shot_fails_on_the_darkest
    rows = pictures.purify(pictures_of_digits, defense, Path("out"), "digits", 0, "cpu", trajectory=True)
    assert {row["image"]: row["failed"] for row in rows if row["failed"]} == {
        str(bad): "step 1 of 3 gave values that are not finite"
    }
    assert all(list(row) == list(rows[0]) for row in rows)
    for row in rows:
        given = (row[key] is None for key in ("purified", "trajectory", "class after", "largest change"))
        assert set(given) == {row["image"] == str(bad)}
    written = {f"{path.stem}{end}.png" for path in pictures_of_digits if path != bad for end in ("", "-trajectory")}
    assert {path.name for path in Path("out").iterdir()} == written | {"side-by-side.png"}
    for path in pictures_of_digits:
        assert path == bad or Image.open(path).tobytes() == Image.open("out" / path).tobytes()
    with pytest.raises(errors.UserError, match=rf"1 of 8 images failed: `{bad}`: step 1 of 3") as caught:
        pictures.check(rows)
    assert (caught.value.code, "purebench show" in caught.value.hint) == (errors.FAILED, True)


def test_a_purification_that_is_not_finite_is_exit_1(
    pictures_of_digits, one_shot_fails_on_the_darkest, monkeypatch, capsys
):
    bad = one_shot_fails_on_the_darkest
    code, out, err = here(monkeypatch, capsys, "purify", *pictures_of_digits, "-d", "one-shot", "--json")
    assert [bool(row["failed"]) for row in json.loads(out)] == [path == bad for path in pictures_of_digits]
    assert f"error: 1 of 8 images failed: `{bad}`: step 1 of 3" in err
    assert "hint: " in err
    assert code == 1
    fine = [path for path in pictures_of_digits if path != bad]
    code, out, _ = here(monkeypatch, capsys, "purify", *fine, "-d", "one-shot", "--json")
    assert (code, "failed" in out) == (0, False)


@pytest.mark.parametrize("votes", [1, 10])
def test_purify_gives_the_decision_of_the_defense_with_its_votes(votes, pictures_of_digits):
    import torch

    from purebench.engine.noise import Noise
    from purebench.plan import grid as plan
    from purebench.report import inputs, pictures
    from purebench.running import evaluate

    part = f"gaussian:sigma=2,votes={votes},combine=vote"
    rows = pictures.purify(pictures_of_digits, part, Path("out"), "digits", 3, "cpu")
    cell = plan.build(plan.Request(defenses=(part,), attacks=("null",), dataset="digits", images=1)).jobs[0].cell
    defense = evaluate.build_defense(cell, torch.device("cpu"), rows=8)
    x = torch.cat([inputs.read(path, [1, 8, 8], {}).images for path in pictures_of_digits])
    noise = Noise(3, "purify", (), range(8), [0] * 8)
    first = defense.undefended().predict(defense.purify(x, noise), noise)
    after = torch.tensor([row["class after"] for row in rows])
    assert torch.equal(after, defense.predict(x, noise))
    assert torch.equal(after, first) == (votes == 1)
    shares = [10 * row["confidence after"] for row in rows]
    assert all(abs(share - round(share)) < 0.011 for share in shares) == (votes == 10)
    for row, image in zip(rows, defense.purify(x, noise), strict=True):  # the picture is of the first purification
        assert torch.equal(
            inputs.read(Path(row["purified"]), [1, 8, 8], {}).images[0], (image.clamp(0, 1) * 255).round() / 255
        )


# ------------------------------------------------------------------------------------------------------------- progress


def test_elsewhere_than_on_a_terminal_progress_is_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines()
    lines.start(3600)
    spoken = []
    for second in range(1, 1801):
        now[0] = float(second)
        lines.work(1)
        spoken += [second] * bool(err := capsys.readouterr().err)
        assert "\r" not in err
        assert err.count("\n") <= 1
    assert spoken[0] <= 60  # an ETA from the first minute on
    assert all(b - a >= 60 for a, b in pairwise(spoken))
    assert len(spoken) >= 25


def test_the_eta_counts_only_what_was_done_now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = progress.Reporter()
    reporter.start(100)
    reporter.skip(50)
    now[0] = 100.0  # the start-up is not counted
    reporter.work(20)
    assert reporter.eta() == "ETA in a moment"
    now[0] = 110.0
    reporter.work(10)
    assert reporter.eta() == "at most 20s left"


def test_a_trajectory_is_drawn(tmp_path):
    from PIL import Image

    image = tmp_path / "digit.png"
    Image.new("L", (8, 8), 90).save(image)
    rows = json.loads(
        purebench_(
            "purify", str(image), "-d", "coup:steps=3", "--trajectory", "--out", str(tmp_path / "out"), "--json"
        ).stdout
    )
    with Image.open(rows[0]["trajectory"]) as strip:
        assert strip.width > 5 * 112  # input, steps 0 to 2, output
        assert len(strip.getcolors(100_000)) > 20


def test_a_figure_that_is_not_known_is_a_user_error(monkeypatch, capsys):
    advises(here(monkeypatch, capsys, "figure", "coup-toi"), 2, "unknown figure", "coup-toy")
