"""A file that is replaced is whole at every moment: the old content, or the new."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from purebench import atomic
from purebench.records import store as records


def test_the_content_is_replaced_and_nothing_else_stays(tmp_path):
    path = tmp_path / "facts.json"
    for text in ("first", "äöü\n", ""):
        atomic.replace(path, text)
        assert path.read_bytes() == text.encode()
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(b"\xff\x00")
        assert path.read_bytes() == b""  # until it is finished
    assert path.read_bytes() == b"\xff\x00"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_whatever_fails_leaves_the_old_content(tmp_path, monkeypatch, fails):
    def fail(path, *_, **__):
        if fails == "write":
            path.write_bytes(b"half of i")
        raise OSError("no")

    path = tmp_path / "facts.json"
    atomic.replace(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(*(Path, "write_text") if fails == "write" else (os, fails), fail)
        with pytest.raises(OSError, match="no"):
            atomic.replace(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("fsync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    records.replace(tmp_path / "cell.json", "{}")
    assert order == ["fsync", "replace"]


def test_processes_that_replace_one_file_at_once_do_not_write_into_each_others(tmp_path):
    path = tmp_path / "shared"
    code = (
        "import sys; from pathlib import Path; from purebench import atomic\n"
        "for n in range(100): atomic.replace(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), letter], env=env) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in running):
        if path.exists():
            seen.add(path.read_text())
    assert [process.returncode for process in running] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "facts.json"
    code = (
        "import sys; from pathlib import Path; from purebench import atomic\n"
        "n = 0\nwhile True:\n    n += 1; atomic.replace(Path(sys.argv[1]), str(n % 10) * 1_000_000)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for delay in (0.0, 0.003, 0.01):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], env=env)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 1_000_000
        assert len(set(text)) == 1
