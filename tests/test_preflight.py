"""What is checked before the first batch, as a Python program calls it: what it gives, and what it refuses first."""

from pathlib import Path

import pytest

from purebench.errors import DOWNLOAD, UserError
from purebench.plan.grid import Plan, Request
from purebench.running import preflight

OUT = Path("nowhere")
DIGITS = Request(defenses=("none",), attacks=("null",), dataset="digits", images=3)
MISFIT = Request(defenses=("edm:sigma=1e9",), attacks=("null",), dataset="digits")  # only its walk can tell


def test_a_request_becomes_a_plan_and_settings_that_the_runner_takes():
    notes = []
    resources = preflight.Resources(device="cpu", rows=5, workers=2, memory="1.5G")
    request = Request(defenses=("none",), attacks=("null",), images=3)
    plan, settings = preflight.prepare(request, resources, OUT, fresh=True, note=notes.append)
    assert [job.images for job in plan.jobs] == [3]
    assert notes == plan.notes != []
    assert (settings.out, settings.device, settings.fresh) == (OUT, "cpu", True)
    assert (settings.rows, settings.workers, settings.memory) == (5, 2, 3 << 29)
    assert not OUT.exists()


def test_workers_are_as_many_as_the_machine_suits_unless_they_are_given(monkeypatch):
    monkeypatch.setattr("purebench.running.runner.default_workers", lambda device: {"cuda:1": 7}[device])
    _, settings = preflight.prepare(DIGITS, preflight.Resources(device="cuda:1"), OUT)
    assert (settings.workers, settings.memory, settings.rows) == (7, None, None)


@pytest.mark.parametrize(
    ("request_", "resources", "message"),
    [
        (Request(defenses=("cop",), attacks=("null",)), preflight.Resources(rows=0, workers=0), "cop"),
        (MISFIT, preflight.Resources(rows=0, workers=0, memory="lots"), "--rows 0"),
        (MISFIT, preflight.Resources(workers=0, memory="lots"), "--workers 0"),
        (MISFIT, preflight.Resources(memory="lots"), "score model.s largest"),
        (DIGITS, preflight.Resources(memory="lots"), "lots"),
    ],
)
def test_of_several_mistakes_the_first_is_told(request_, resources, message):
    with pytest.raises(UserError, match=message):
        preflight.prepare(request_, resources, OUT)


@pytest.mark.parametrize(
    ("memory", "size"),
    [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2 kb", 2048), ("4T", 4 << 40), ("100", 100), (100, 100), (None, None)],
)
def test_sizes_are_read(memory, size):
    assert preflight.in_bytes(memory) == size


@pytest.mark.parametrize("memory", ["", "0", "0G", "-1", "4 gigs", "G", -1, 0])
def test_what_is_no_size_is_refused(memory):
    with pytest.raises(UserError, match="memory size"):
        preflight.in_bytes(memory)


def test_missing_files_are_named_with_the_command_that_brings_them():
    def plan(*missing):
        return Plan([], [], missing=list(missing))

    preflight.require_files(plan())
    with pytest.raises(UserError, match="data-cifar10") as caught:
        preflight.require_files(plan("data-cifar10"))
    assert caught.value.code == DOWNLOAD
    assert "purebench fetch" in caught.value.hint
