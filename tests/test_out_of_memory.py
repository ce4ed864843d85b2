"""A batch that runs out of memory is tried again with half the rows; the records say so, and nothing else of the run changes."""

import json

import pytest
import torch
from test_runner import Told

from purebench.plan import grid as plan
from purebench.records import frame
from purebench.records import store as records
from purebench.report import tables
from purebench.running import evaluate, pools, runner

torch.set_num_threads(1)
MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 79.15 GiB"


def run(out, rows, attacks=("null", "pgd-eot:steps=2,eot=2")):
    request = plan.Request(
        dataset="digits", defenses=("one-shot",), attacks=attacks, threats=("Linf:0.2",), images=12, evals=2
    )
    told = Told()
    outcome = runner.run(plan.build(request), runner.Settings(out, device="cpu", rows=rows), told)
    outcome.said = told.lines
    return outcome


def lines(out, attack="pgd-eot"):
    [log] = [log for log in records.load_all([out]) if log.cell["attack"].startswith(attack)]
    return {line["position"]: line for line in log.images}


GPU = torch.OutOfMemoryError(MESSAGE)


def scarce(monkeypatch, enough, when, error=GPU):
    """Tasks for which `when(task)` holds find no memory for more than `enough` rows; returns the rows that were tried."""
    real, tried = evaluate.execute, []

    def execute(task, device, *, rows, **settings):
        if when(task):
            tried.append((rows, settings["memory"]))
            if rows > enough:
                raise error
        return real(task, device, rows=rows, **settings)

    monkeypatch.setattr(evaluate, "execute", execute)
    return tried


def late(task):
    """The second batch of the attack."""
    return task.cell.attack.name == "pgd-eot" and 0 not in task.positions


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The same with memory for all rows, and with few rows for all."""
    out = tmp_path_factory.mktemp("references")
    assert not run(out / "whole", 16).failed
    assert not run(out / "small", 4).failed
    return out


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(MESSAGE), MemoryError(), RuntimeError("[..] DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "python", "cpu"],
)
def test_half_the_rows_until_it_fits_and_the_lines_say_so(references, tmp_path, monkeypatch, error):
    tried = scarce(monkeypatch, 4, late, error)
    outcome = run(tmp_path / "out", 16)
    assert not outcome.failed
    assert [rows for rows, _ in tried] == [16, 8, 4]
    # The budget for states and graphs falls with the rows.
    assert tried[2][1] == pytest.approx(tried[0][1] / 4, rel=1e-6)
    found, whole, small = lines(tmp_path / "out"), lines(references / "whole"), lines(references / "small")
    mixed = [p for p, line in found.items() if "rows" in line]
    assert mixed == [8, 9, 10, 11]
    strip = lambda line: {k: v for k, v in line.items() if k not in ("rows", "crc")}  # noqa: E731
    for p in range(12):
        # What was computed stays, and what was computed again is what those rows give.
        assert strip(found[p]) == strip(small[p] if p in mixed else whole[p])
        assert found[p].get("rows") == (4 if p in mixed else None)
    assert lines(tmp_path / "out", "null") == lines(references / "whole", "null")
    assert any("out of memory with 16 rows" in line and "`--rows 4`" in line for line in outcome.said)
    printed = tables.render(records.load_all([tmp_path / "out"]))
    assert "mixed rows: pgd-eot" in printed
    assert "4 of 12 images were computed with 4 rows" in printed
    assert "mixed rows" not in tables.render(records.load_all([references / "whole"]))
    assert sorted(frame.load(tmp_path / "out").rows.dropna().unique()) == [4]
    # A finished cell is left as it is, rows and all.
    assert run(tmp_path / "out", 16).images == 0


def test_one_row_is_the_end_and_fails_that_cell_alone(tmp_path, monkeypatch):
    tried = scarce(monkeypatch, 0, late)
    outcome = run(tmp_path, 16)
    assert [rows for rows, _ in tried] == [16, 8, 4, 2, 1]
    [why] = outcome.failed.values()
    assert why == "out of memory with one row: CUDA out of memory. Tried to allocate 20.00 GiB."
    # What was computed before stays, and a run with more memory goes on from there.
    assert len(lines(tmp_path)) == 8
    monkeypatch.undo()
    assert run(tmp_path, 16).images == 4


def test_other_errors_are_no_reason_to_try_again(tmp_path, monkeypatch):
    tried = scarce(monkeypatch, 4, late, RuntimeError("shapes do not fit"))
    assert "shapes do not fit" in next(iter(run(tmp_path, 16).failed.values()))
    assert [rows for rows, _ in tried] == [16]


def test_predictions_of_fewer_rows_are_not_shared_with_other_attacks(tmp_path, monkeypatch):
    scarce(monkeypatch, 4, lambda task: task.cell.attack.name == "null")
    given = []
    real = pools.Here.give
    monkeypatch.setattr(pools.Here, "give", lambda self, task, rows: (given.append(task), real(self, task, rows))[1])
    run(tmp_path, 16)
    assert not any(task.clean for task in given)
    assert {json.dumps(line.get("rows")) for line in lines(tmp_path, "null").values()} == {"4"}
