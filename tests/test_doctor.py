"""`purebench doctor`: each thing that would not work is found and told, also where torch itself is broken, and never by a traceback."""

import json
import os
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import here, purebench_

import purebench
from purebench import assets, registry
from purebench.running import doctor, probe, storage

ROOT = Path(purebench.__file__).parents[1]
CPU = {"devices": [{"name": "cpu", "error": ""}]}
GPU = {"name": "cuda:0", "hardware": "H", "error": "", "free": 1e9, "total": 2e9}
NO_GPU = {"devices": [], "build": "13.2", "why": "RuntimeError: no driver"}


def said(findings, state="wrong"):
    return [finding.said for finding in findings if finding.state == state]


@pytest.fixture
def healthy(monkeypatch, tmp_path):
    """An environment in which nothing is wrong, whose libraries are not really imported; the answers can be changed."""
    answers = {"device:cpu": CPU, "device:cuda": NO_GPU}
    monkeypatch.setattr(probe, "run", lambda steps: {step: answers.get(step, {}) for step in steps})
    for name in list(os.environ):
        if name.startswith("PUREBENCH_") or name.upper() in (*doctor.PROXIES, *doctor.CERTIFICATES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "LITTLE", 0)
    monkeypatch.setattr("purebench.running.runner.gpu_is_here", lambda: False)
    return answers


# ------------------------------------------------------------------------------------------------------------ the command


def test_nothing_is_wrong(healthy, monkeypatch, capsys, tmp_path):
    code, out, err = here(monkeypatch, capsys, "doctor", "--out", tmp_path / "results")
    assert code == 0, out
    assert err == "nothing is wrong\n"
    assert {line.split()[1] for line in out.splitlines()} >= set(doctor._checks()) - {"plug-ins"}
    assert list(tmp_path.iterdir()) == []  # neither folder was made, and no file was left


def test_json_says_the_same_and_what_is_wrong_is_exit_code_1(healthy, monkeypatch, capsys, tmp_path):
    healthy["import:torchsde"] = {"error": "ImportError: no"}
    code, out, err = here(monkeypatch, capsys, "doctor", "--json", "--out", tmp_path)
    assert code == 1
    assert err == "1 of these would not work\n"
    [wrong] = [row for row in json.loads(out) if row["state"] == "wrong"]
    assert wrong == {
        "topic": "libraries",
        "state": "wrong",
        "said": "torchsde cannot be imported: ImportError: no",
        "hint": "`pip install --force-reinstall torchsde`",
    }
    code, out, _ = here(monkeypatch, capsys, "doctor", "--out", tmp_path)
    assert "wrong  libraries    torchsde cannot be imported" in out
    assert "\n                    hint: `pip install" in out


def test_a_torch_that_breaks_at_import_is_told_by_a_real_process(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = purebench_("doctor", "--json", "--out", tmp_path / "results", PYTHONPATH=path)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    wrong = said(SimpleNamespace(**row) for row in json.loads(process.stdout))
    assert "torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file" in wrong
    assert "none, without torch" in wrong


def test_a_check_that_fails_is_told_and_the_others_go_on(healthy, monkeypatch, tmp_path):
    def broken():
        raise ZeroDivisionError("never foreseen")

    monkeypatch.setattr(assets, "cache_folder", broken)
    found = list(doctor.findings(tmp_path))
    assert "could not be looked at: ZeroDivisionError: never foreseen" in said(found)
    assert found[-1].topic == "results"


# ---------------------------------------------------------------------------------------------------- in a process of its own


def test_the_probe_outlives_what_dies_hangs_or_prints(monkeypatch, tmp_path):
    for name, source in {
        "fine": "",
        "noisy": "print('hello')\nimport os\nos.write(1, b'{}\\n')",
        "dies": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "leaves": "import os\nos._exit(3)",
        "exits": "raise SystemExit(2)",
        "hangs": "import time\ntime.sleep(60)",
        "wrong": "raise ImportError('first line\\nsecond')",
    }.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    steps = [f"import:{name}" for name in ("fine", "noisy", "dies", "exits", "leaves", "wrong", "hangs", "fine")]
    found = probe.run(steps, seconds=3)
    assert found.pop("import:leaves")["error"].startswith("it ended the process")
    assert found == {
        "import:fine": {},
        "import:noisy": {},
        "import:dies": {"error": "it ended the process (signal 11)"},
        "import:exits": {"error": "SystemExit: 2"},
        "import:wrong": {"error": "ImportError: first line"},
        "import:hangs": {"error": "no answer within 3 s"},
    }


def test_a_file_in_the_working_folder_is_not_taken_for_a_library(monkeypatch, tmp_path):
    (tmp_path / "json5x.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path not in ("", str(tmp_path))])
    assert probe.run(["import:json5x"])["import:json5x"]["error"].startswith("ModuleNotFoundError")


def test_the_cpu_is_tried_with_a_known_result():
    assert probe._device("cpu") == CPU
    cuda = probe._device("cuda")
    assert all(gpu["error"] == "" for gpu in cuda["devices"])
    assert cuda["devices"] or cuda["why"] or not cuda["build"]


# ----------------------------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize(
    ("cuda", "present", "visible", "state", "words"),
    [
        (NO_GPU, False, None, "ok", "no GPU is here"),
        (NO_GPU, True, None, "wrong", "torch cannot use it: RuntimeError: no driver"),
        (NO_GPU | {"build": None}, True, None, "wrong", "built without CUDA"),
        (NO_GPU, True, "", "note", "hides it"),
        ({"error": "it ended the process (signal 6)"}, True, None, "wrong", "cuda: it ended the process"),
        ({"devices": [{"name": "cuda:0", "error": "no kernel image"}]}, True, None, "wrong", "cuda:0: no kernel image"),
        ({"devices": [GPU]}, True, None, "ok", "cuda:0 H, 1 GB of 2 GB free"),
    ],
)  # fmt: skip
def test_gpus(monkeypatch, cuda, present, visible, state, words):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    [found] = doctor._gpus(cuda, present)
    assert found.state == state
    assert words in found.said
    assert found.hint or state == "ok"


def test_packages_are_held_against_their_ranges(monkeypatch):
    project = (
        ">=99",
        [("torch>=99", ""), ("nothing-like-it>=1", ""), ("numpy>=2.0", ""), ("nothing-else>=1,<2", "corruptions")],
    )
    monkeypatch.setattr(doctor, "_project", lambda: project)
    found = list(doctor._packages(Path()))
    assert [(f.state, f.said.partition(" ")[0]) for f in found] == [
        ("wrong", "torch"), ("wrong", "nothing-like-it"), ("note", "nothing-else"), ("ok", "numpy"),
    ]  # fmt: skip
    assert "the dataset `corrupted` does not work" in found[2].said
    assert [f.state for f in doctor._python(Path())] == ["wrong"]
    # A pre-release of a wanted version is one.
    assert doctor._holds("2.12.0.dev20260101", ">=2.11")


def test_the_packages_are_those_of_the_checkout_and_of_the_installed_one(monkeypatch, tmp_path):
    requires, listed = doctor._project()
    assert requires == ">=3.11"
    assert ("scipy>=1.11", "") in listed
    assert "corruptions" in {extra for _, extra in listed}
    monkeypatch.setattr(assets, "PACKAGE", tmp_path / "purebench")
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    lines = ["torch>=2.11", "imaug<2,>=1.1.5; extra == 'corruptions'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor._project() == (">=3.11", [("torch>=2.11", ""), ("imaug<2,>=1.1.5", "corruptions")])


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    [found] = storage.results(tmp_path / "file" / "results")
    assert (found.state, found.said) == (
        "wrong",
        f"`{tmp_path / 'file' / 'results'}` cannot be a folder: `{tmp_path / 'file'}` is a file",
    )
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    sealed.chmod(0o500)
    [found] = storage.results(sealed / "deep" / "results")
    # Root may write everywhere.
    assert os.geteuid() == 0 or (found.state == "wrong" and "cannot be written and locked" in found.said)


def test_a_full_disk_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 10**8)
    [found] = storage.results(tmp_path)
    assert (found.state, found.hint) == ("note", "free some space")


@pytest.fixture
def shelf(healthy, monkeypatch, tmp_path):
    """A registry of the user's with one small asset, and the place for its file."""
    registry_file = tmp_path / "mine.toml"

    def write(**facts):
        facts = {
            "kind": "score",
            "licence": "MIT",
            "trust": "ours",
            "summary": "mine",
            "file": "net.safetensors",
            "format": "safetensors",
        } | facts
        lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items() if value is not None]
        registry_file.write_text("[assets.mine]\n" + "\n".join(lines) + "\n")

    write()
    monkeypatch.setenv("PUREBENCH_CHECKPOINTS", str(registry_file))
    file = tmp_path / "cache" / "checkpoints" / "mine" / "net.safetensors"
    file.parent.mkdir(parents=True)
    return SimpleNamespace(write=write, file=file, registry=registry_file)


def wrong():
    return said(storage.checkpoints(Path()))


def test_damaged_files(shelf, monkeypatch):
    assert wrong() == []  # what is not here is no fault
    shelf.file.write_bytes(b"weights")
    assert wrong() == []
    shelf.write(sha256=assets.sha256(shelf.file))
    assert wrong() == []
    shelf.write(sha256="0" * 64)
    assert "its sha256 is" in wrong()[0]
    shelf.write(size=9)
    assert "it has 7 bytes, not 9" in wrong()[0]
    shelf.file.write_bytes(b"<html>not found</html>")
    shelf.write()
    assert "HTML page" in wrong()[0]
    # Of a large file the hash is not made; what `fetch` found is known.
    monkeypatch.setattr(storage, "SMALL", 3)
    shelf.file.write_bytes(b"weights")
    shelf.write(sha256="0" * 64)
    assert wrong() == []
    lock = shelf.file.with_name(f"{shelf.file.name}.lock.json")
    lock.write_text(json.dumps({"sha256": "1" * 64, "size": 7}))
    assert "`fetch` found the sha256 111111111111.." in wrong()[0]
    shelf.write(size=9)
    assert "it has 7 bytes" in wrong()[0]


def test_half_a_download_and_files_elsewhere(shelf, monkeypatch, tmp_path):
    shelf.file.with_name(f"{shelf.file.name}.part").write_bytes(b"half")
    notes = said(storage.checkpoints(Path()), "note")
    assert notes == ["`mine` is half fetched (4 B)"]
    monkeypatch.setenv("PUREBENCH_MINE", str(tmp_path / "nowhere"))
    assert wrong() == [f"`mine` is not at `{tmp_path / 'nowhere'}`"]


def test_registries(shelf, tmp_path):
    shelf.write(licence=None, file=None)
    assert wrong() == ["`mine` in the registry has no `licence` and no `file`"]
    shelf.registry.write_text("[assets.mine\n")
    assert any("cannot read the checkpoint registry" in text for text in said(doctor.findings(tmp_path)))


def test_embedded_weights(healthy, monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "PACKAGE", tmp_path)
    (tmp_path / "checkpoints.toml").write_text((ROOT / "checkpoints.toml").read_text())
    assert [text for text in wrong() if "digits-score" in text] == [
        f"`{tmp_path / 'embedded' / 'digits-score.safetensors'}` is missing or damaged"
    ]


def test_variables(healthy, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CHECKPOINT", "x.toml")
    monkeypatch.setenv("PUREBENCH_IMAGENET", "/data")
    found = list(storage.variables(Path()))
    assert (found[0].state, found[0].said) == ("note", "nothing reads PUREBENCH_CHECKPOINT")
    assert "PUREBENCH_CHECKPOINTS" in found[0].hint
    assert "PUREBENCH_IMAGENET=/data" in found[1].said


def test_proxies_and_certificates(healthy, monkeypatch, tmp_path):
    assert [f.state for f in doctor._network(Path())] == ["ok"]
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.example:3128")
    [found] = doctor._network(Path())
    assert "https_proxy http://proxy.example:3128" in found.said
    assert "secret" not in found.said
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example:99999")
    [text] = said(doctor._network(Path()))
    assert text.startswith("http_proxy is no address")
    assert "secret" not in text
    for value in ("http://", "foo bar"):
        monkeypatch.setenv("http_proxy", value)
        assert said(doctor._network(Path())) == ["http_proxy is no URL of a proxy"]
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:1")
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    texts = said(doctor._network(Path()))
    assert ["PySocks" in texts[0], "there is no such file" in texts[1]] == [True, True]


def test_a_large_file_that_is_no_checkpoint(healthy, monkeypatch, tmp_path):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    [part] = assets.parts("score-sde-cifar10-vp")
    part.file.parent.mkdir(parents=True)
    size = max(part.facts.get("size", 0), storage.SMALL + 1)
    for head, damaged in ((b"PK", True), (b"garbage", True), (b"\x80\x02", False)):
        part.file.write_bytes(head)
        os.truncate(part.file, size)
        assert bool(storage._damaged(part)) == damaged, head


def test_plugins(healthy, monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text(
        '"""Mine."""\nINFO = {"summary": "mine"}\n\n\ndef mine(*, steps: int = 3):\n    return steps\n'
    )
    (tmp_path / "typo.py").write_text("def typo(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = [
        ("mine", "good:mine", "defense"), ("typo", "typo:typo", "attack"), ("gone", "not_there:f", "attack"),
        ("coup", "good:mine", "defense"), ("other", "good:mine", "defence"), ("late", "good:mine", "attack"),
    ]  # fmt: skip
    entries = EntryPoints(EntryPoint(name, value, f"purebench.{kind}") for name, value, kind in wanted)
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda **given: entries.select(**given) if given else entries)
    monkeypatch.setattr(registry, "_plugins", lambda: list(entries))
    registry.names.cache_clear()
    healthy["plugin:attack:late"] = {"error": "ImportError: no such library"}
    try:
        found = list(doctor._plugins(Path()))
    finally:
        for cached in (registry.names, registry._parameters, registry._info, registry._source):
            cached.cache_clear()
    assert sorted(said(found)) == [
        "good:mine adds to `purebench.defence`, which is no group",
        "the attack `gone` of not_there:f cannot be read: the module `not_there` is not installed",
        "the attack `late` of good:mine does not load: ImportError: no such library",
        f"the attack `typo` of typo:typo cannot be read: `{tmp_path / 'typo.py'}` cannot be read: invalid syntax (typo.py, line 1)",
    ]
    assert said(found, "ok") == ["the defense `mine` of good:mine"]
    assert [f.said for f in found if f.state == "note"] == [
        "good:mine has the defense `coup`, and so has purebench, which wins"
    ]
