"""The worked example of docs/adding-a-purifier.md, run as a user would run it: one file, one registry line."""

import re
from pathlib import Path

import pytest
import torch

from purebench import registry
from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.report import tables
from purebench.running import progress, runner

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def median(monkeypatch):
    line = re.search(r'"median": "purebench\.purifiers\.(median:median)"', (DOCS / "adding-a-purifier.md").read_text())
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    monkeypatch.setitem(registry.NAMES["defense"], "median", line[1])
    registry.names.cache_clear()
    yield
    for cached in (registry.names, registry.parameters, registry.info, registry._source):
        cached.cache_clear()


def test_the_median_filter_runs_and_is_shown(median, tmp_path):
    the_plan = plan.build(
        plan.Request(defenses=("median", "none"), attacks=("null", "pgd-eot:steps=4,eot=1"), images=8, evals=2)
    )
    outcome = runner.run(the_plan, runner.Settings(tmp_path), progress.reporter(quiet=True))
    assert not outcome.failed
    table = tables.render(records.load_all([tmp_path]))
    assert re.search(r"^\| median +\| +\d", table, re.MULTILINE)


def test_the_median_filter_filters(median):
    from purebench import purifiers
    from purebench.engine import chain
    from purebench.engine.noise import Noise

    x = torch.full((1, 1, 8, 8), 0.25)
    x[0, 0, 3, 3] = 1.0  # one broken pixel
    purified = chain.run(purifiers.make("median"), x, Noise(0, "test", (), [0], [0]))
    assert torch.equal(purified, torch.full_like(x, 0.25))
    assert len((DOCS / "examples" / "median.py").read_text().splitlines()) < 80
