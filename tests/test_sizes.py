"""`--rows auto`: measured once, kept, the fastest that fits; and a cell that was begun goes on as it was."""

import json
import math

import pytest
import torch

from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan.grid import Request
from purebench.records import store
from purebench.running import preflight, runner, sizes, speed, tasks
from purebench.running.progress import Reporter
from purebench.running.speed import Speed

DIGITS = Request(
    defenses=("reverse-sde:steps=2",), attacks=("pgd-eot:steps=1,eot=2",), dataset="digits", images=3, evals=2
)
AUTO = preflight.Resources("cpu", rows="auto", workers=1)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """The sizes that were measured; `asked.took`: size -> seconds of a row."""

    class Asked(list):
        def __init__(self):
            self.took = {16: 4.0e-3, 32: 3.0e-3, 64: 2.0e-3, 128: 1.99e-3, 256: 1e-3}

    found = Asked()

    def of(part, shape, device, rows):
        found.append(rows)
        took = found.took[rows]
        if took == math.inf:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Speed(took / 3, 2 * took / 3, 1.0)

    monkeypatch.setattr(speed, "of", of)
    return found


def prepared(out, resources=AUTO, request=DIGITS):
    notes = []
    plan, settings = preflight.prepare(request, resources, out, note=notes.append)
    return [settings.rows_of(job.cell) for job in plan.jobs], notes, plan, settings


def test_larger_sizes_are_tried_while_they_are_worth_it(asked, tmp_path):
    rows, notes, *_ = prepared(tmp_path)
    assert asked == [16, 32, 64, 128]  # half a percent is no reason to try twice as many
    assert rows == [128]
    assert "`--rows auto`: `digits-vp`: 128 rows" in notes


def test_what_does_not_fit_or_takes_too_long_ends_the_search(asked, tmp_path):
    asked.took = {16: 1e-3, 32: math.inf}
    assert prepared(tmp_path)[0] == [16]
    assert asked == [16, 32]
    asked.took, asked[:] = {16: 1.0}, []
    assert prepared(tmp_path, request=Request(**vars(DIGITS) | {"precision": "bf16"}))[0] == [16]
    assert asked == [
        16
    ]  # of another precision it is another network; and a call of 5 seconds is no reason to try a longer one


def test_a_network_is_measured_once_on_a_device(asked, tmp_path):
    prepared(tmp_path)
    first = list(asked)
    assert prepared(tmp_path)[0] == [128]
    assert asked == first
    [file] = (tmp_path / "cache").glob("rows.json")
    [[key, kept]] = json.loads(file.read_text()).items()
    assert "digits-vp" in key
    assert kept["64"] == pytest.approx(2.0e-3)
    file.write_text("{")  # what was kept is no truth
    assert prepared(tmp_path)[0] == [128]
    assert asked == first * 2


def test_the_fastest_whose_gradient_fits_is_taken(asked, tmp_path, monkeypatch):
    fits = []

    def only_small(cell, shape, memory, rows):
        fits.append((memory, rows))
        return rows <= 32

    monkeypatch.setattr(sizes.rehearsal, "fits", only_small)
    tight = preflight.Resources("cpu", rows="auto", workers=1, memory="64M")
    assert prepared(tmp_path, tight)[0] == [32]
    assert fits == [(64 << 20, 128), (64 << 20, 64), (64 << 20, 32)]
    monkeypatch.setattr(sizes.rehearsal, "fits", lambda *_: False)
    assert prepared(tmp_path, tight)[0] == [16]


def test_what_fits_is_known_without_values():
    [job] = grid.build(DIGITS).jobs
    need = [
        memory for memory in (1 << k for k in range(12, 32)) if sizes.rehearsal.fits(job.cell, job.shape, memory, 64)
    ]
    assert 1 << 16 < need[0] < 1 << 28
    assert not sizes.rehearsal.fits(job.cell, job.shape, need[0] // 2, 64)
    assert sizes.rehearsal.fits(job.cell, job.shape, need[0], 16)
    [null] = grid.build(Request(defenses=("reverse-sde",), attacks=("null",), dataset="digits", images=3)).jobs
    assert sizes.rehearsal.fits(null.cell, null.shape, 1, 64)


def test_a_batch_that_never_fills_the_rows_has_fewer(asked, tmp_path):
    request = Request(defenses=("reverse-sde",), attacks=("autoattack-rand:batch=2,eot=8",), dataset="digits", images=3)
    rows, _, plan, _ = prepared(tmp_path, request=request)
    assert rows == [tasks.default_rows(plan.jobs[0].cell, 128)] == [16]


def test_a_cell_that_has_records_keeps_its_rows(asked, tmp_path):
    *_, plan, settings = prepared(tmp_path, preflight.Resources("cpu", rows=16, workers=1))
    runner.run(plan, settings, Reporter())
    assert prepared(tmp_path)[0] == [16]
    assert asked == []
    fresh, _ = preflight.prepare(DIGITS, AUTO, tmp_path, fresh=True)
    assert fresh.jobs
    assert asked  # what is started over has no rows to keep


def test_a_run_with_measured_rows_records_them(monkeypatch, tmp_path):
    monkeypatch.setattr(sizes, "SIZES", (16, 32))
    rows, _, plan, settings = prepared(tmp_path)
    runner.run(plan, settings, Reporter())
    assert rows[0] in (16, 32)
    assert store.load(tmp_path / plan.jobs[0].cell.id).runs[-1]["rows"] == rows[0]


def test_of_a_network_that_is_not_ours_nothing_is_measured(asked, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\n\ndef bright():\n    return lambda x: x.flatten(1)[:, :10]\n")
    request = Request(
        defenses=("none",), attacks=("pgd-eot:steps=1",), dataset="digits", classifier=f"{file}:bright", images=3
    )
    rows, notes, plan, _ = prepared(tmp_path, request=request)
    assert rows == [tasks.default_rows(plan.jobs[0].cell)]
    assert asked == []
    assert any("not measured, since it is not ours" in note for note in notes)


@pytest.mark.parametrize(("given", "read"), [("64", 64), (64, 64), (" 8 ", 8), ("auto", "auto"), (None, None)])
def test_rows_are_a_number_or_auto(given, read):
    assert preflight.rows_of(given) == read


@pytest.mark.parametrize("given", ["many", "1.5", "", "Auto"])
def test_other_rows_are_refused(given):
    with pytest.raises(UserError, match="is no number of rows") as error:
        preflight.rows_of(given)
    assert "`auto`" in error.value.hint


@pytest.mark.parametrize("given", ["0", "-4", 0])
def test_fewer_rows_than_one_are_refused(given):
    with pytest.raises(UserError, match="at least one row"):
        preflight.check_counts(preflight.Resources(rows=given))
