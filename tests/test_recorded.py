"""The tracked records: every cell keeps the id that it was recorded under, and loads. `recorded_ids.txt` is only ever added to: an id
that changes there is a cell that no run goes on with. Whether a repetition has the same bytes, which is a matter of the processor, too,
`benchmarks/rerun.py` says."""

from pathlib import Path

import pytest

from purebench.plan import grid
from purebench.records import store
from purebench.report import recipe
from purebench.spec import identity

RESULTS = Path(__file__).parents[1] / "results"
IDS = (Path(__file__).parent / "recorded_ids.txt").read_text().split()
FOLDERS = sorted({name.partition("/")[0] for name in IDS})
ELSEWHERE = ("jpeg-cifar10",)  # its data set is a file that is not tracked


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recorded_cell_is_found_under_its_id(folder):
    logs = {f"{folder}/{log.folder.name}": log for log in store.load_all([RESULTS / folder])}
    ids = [name for name in IDS if name.startswith(f"{folder}/")]
    assert set(ids) <= set(logs)
    for name in ids:
        log = logs[name]
        assert f"{folder}/{log.id}" == f"{folder}/{identity(log.cell)}" == name
        if folder in ELSEWHERE:
            continue
        assert log.images
        assert not log.failed
        # What this version makes of the recorded description.
        [job] = grid.jobs(recipe.of(log) | {"images": 1, "evals": 1})
        assert f"{folder}/{job.cell.id}" == name
