"""An attack says its own unit of work; a parameter that happens to be called `batch` or `eot` is read as nothing."""

import pytest

from purebench import registry
from purebench.attacks import Attacked
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.records import store as records
from purebench.running import progress, runner, tasks

INFO = {  # of the plug-ins below
    "schedule": {"summary": "`batch` is a share, `eot` an end of training", "gradients": [], "version": 1},
    "together": {"summary": "five at once", "gradients": [], "version": 1, "unit": "group", "draws": "samples"},
    "misspelt": {"summary": "names what it has not", "gradients": [], "version": 1, "unit": "bacth"},
    "a-share": {"summary": "names what does not count", "gradients": [], "version": 1, "draws": "batch"},
}
SEEN = []


def schedule(*, batch: float = 0.25, eot: int = 3):
    def attack(defense, x, y, threat, noise):
        SEEN.append(len(x))
        return Attacked(x.clone())

    return attack


def together(*, group: int = 5, samples: int = 4):
    return schedule()


def misspelt(*, batch: int = 5):
    return schedule()


def a_share(*, batch: float = 0.25):
    return schedule()


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    for name in INFO:
        monkeypatch.setitem(registry.NAMES["attack"], name, f"test_units:{name.replace('-', '_')}")
    registry.names.cache_clear()
    SEEN.clear()
    yield
    monkeypatch.undo()
    registry.names.cache_clear()


def planned(attack, defense="one-shot", images=12):
    return plan.build(Request(defenses=(defense,), attacks=(attack,), dataset="digits", images=images, evals=1))


def sizes(attack, defense="one-shot"):
    """(rows of the padded shape, images that must be together, images per task of as many rows)"""
    [job] = planned(attack, defense).jobs
    rows = tasks.default_rows(job.cell)
    return rows, tasks.unit(job.cell).images, tasks.task_size(job.cell, rows)


@pytest.mark.parametrize(
    ("attack", "defense", "expected"),
    [
        ("null", "one-shot", (160, None, 32)),
        ("transfer-pgd", "one-shot", (160, None, 32)),
        ("pgd-eot", "one-shot", (160, None, 32)),
        ("pgd-eot:eot=20", "one-shot", (160, None, 8)),
        ("pgd-eot:eot=20", "one-shot:votes=4", (160, None, 2)),
        ("bpda-eot:eot=100", "one-shot", (160, None, 1)),
        ("apgd-ce:eot=20", "one-shot", (160, None, 8)),
        ("autoattack-rand:eot=20", "one-shot", (160, 16, 8)),
        ("autoattack-rand:eot=3,batch=8", "one-shot", (32, 8, 10)),
        ("autoattack-rand:eot=1,batch=8", "one-shot", (16, 8, 3)),
        ("autoattack-standard:batch=128", "none", (64, 128, 12)),
        ("autoattack-standard:batch=128", "none:votes=2", (128, 128, 64)),
        ("schedule", "one-shot", (160, None, 32)),
        ("schedule:batch=0.5,eot=100", "one-shot", (160, None, 32)),
        ("together", "one-shot", (32, 5, 8)),
        ("together:group=16,samples=2", "one-shot", (32, 16, 16)),
    ],
)
def test_rows_and_batches_follow_what_the_attack_says(attack, defense, expected):
    assert sizes(attack, defense) == expected


@pytest.mark.parametrize(("attack", "batches"), [("schedule", [12]), ("together", [5, 5, 2])])
def test_an_attack_is_given_its_unit(attack, batches, tmp_path):
    settings = runner.Settings(tmp_path, device="cpu", rows=64)
    outcome = runner.run(planned(attack), settings, progress.Reporter())
    [log] = records.load_all([tmp_path])
    assert (len(outcome.done), outcome.failed) == (1, {})
    assert batches == SEEN
    assert [r.get("batch") for r in log.images[:1]] == [[0, 5] if attack == "together" else None]


@pytest.mark.parametrize("attack", ["misspelt", "a-share"])
def test_a_unit_that_is_no_count_is_refused_before_anything_runs(attack):
    with pytest.raises(UserError, match="that is no parameter that counts") as caught:
        planned(attack)
    assert caught.value.hint
    assert caught.value.code == 2


def test_every_attack_of_ours_that_draws_or_batches_says_so():
    for name, target in registry.NAMES["attack"].items():
        if target.startswith("purebench."):
            known, info = registry.parameters("attack", name), registry.info("attack", name)
            # Candidates fill the rows of those that ask for no gradient; Square has one, and images that drop out of its batch.
            of_search = {"spsa": "samples", "nattack": "population", "square-eot": None}
            assert info.get("draws") == of_search.get(name, "eot" if "eot" in known else None), name
            assert info.get("unit") == ("batch" if "batch" in known else None), name
