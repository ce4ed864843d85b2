"""Somebody else's defenses in a run: the DiffPure clone of docs/examples is our DiffPure, and what is wrong with one is told."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from purebench import registry
from purebench.engine import chain
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.purifiers import make
from purebench.purifiers.plain import as_purifier
from purebench.records import store as records
from purebench.report import tables
from purebench.running import progress, proof, rehearsal, runner
from purebench.scores.digits import digits_vp

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
INFO = {"summary": "of this test", "needs": []}
PLUGINS = {
    "clone": "diffpure_clone:diffpure_clone",
    "numpys": f"{__name__}:numpys",
    "stopped": f"{__name__}:stopped",
    "wide": f"{__name__}:wide",
}


def numpys(score=None, classifier=None):
    return lambda x: x + torch.from_numpy(0.1 * np.random.randn(*x.shape)).float().clamp(-x, 1 - x)


def stopped(score=None, classifier=None):
    def smooth(x):
        with torch.no_grad():
            return nn.functional.avg_pool2d(x, 3, 1, 1)

    return smooth


def wide(score=None, classifier=None):
    return lambda x: x[:, :, :4]


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name, target in PLUGINS.items():
        monkeypatch.setitem(registry.NAMES["defense"], name, target)
    registry.names.cache_clear()
    yield
    sys.modules.pop("diffpure_clone", None)
    for cached in (registry.names, registry._parameters, registry._info, registry._source):
        cached.cache_clear()


def noise_of(n):
    return Noise(0, "test", (), range(n), [0] * n)


def images(n=3):
    return torch.linspace(0.1, 0.9, n * 64).view(n, 1, 8, 8).sin().square()


def test_the_clones_gradient_is_autograds_with_the_same_draws(monkeypatch):
    from diffpure_clone import RevVPSDE

    score, x, v, noise = digits_vp(), images(), images().flip(0), noise_of(3)
    clone = make("clone", score=score, steps=6)
    purified, grad = chain.vjp(clone, x, noise, v)

    draws = iter(range(-1, 6))
    monkeypatch.setattr(torch, "randn_like", lambda x: noise.normal(next(draws), x))
    leaf = x.clone().requires_grad_()
    native = RevVPSDE(score.network, 100, 6)(leaf)
    expected = torch.autograd.grad(native, leaf, v)[0]
    monkeypatch.undo()
    assert (purified - native).abs().max() < 1e-6
    assert (grad - expected).abs().max() < 1e-5 * expected.abs().max()
    # Its draws are our chain's: the first is that of the start, then one for each step.
    ours, other = chain.vjp(make("diffpure", score=score, steps=6), x, noise, v)
    assert (purified - ours).abs().max() < 1e-4
    assert (grad - other).abs().max() < 1e-3 * other.abs().max()


def ran(tmp_path, *defenses, **given):
    request = {"defenses": defenses, "attacks": ("pgd-eot:steps=2,eot=2",), "images": 6, "evals": 2, **given}
    the_plan = plan.build(plan.Request(**request))
    said = []
    report = progress.reporter(quiet=True)
    report.say = said.append
    outcome = runner.run(the_plan, runner.Settings(tmp_path), report)
    assert not outcome.failed
    return {log.cell["defense"].partition(":")[0]: log for log in records.load_all([tmp_path])}, said


def test_the_clones_records_are_those_of_our_diffpure(tmp_path):
    logs, said = ran(tmp_path, "clone:steps=4", "diffpure:steps=4")
    ours, clones = logs["diffpure"].images, logs["clone"].images
    assert not said
    assert not any("notes" in line for line in clones)
    assert [line["clean"] for line in clones] == [line["clean"] for line in ours]
    answers = [[answer for line in lines for answer in line["adversarial"]] for lines in (clones, ours)]
    assert sum(a != b for a, b in zip(*answers, strict=True)) <= 1
    assert [line["nfe"] for line in clones] == [line["nfe"] for line in ours]


def test_what_is_wrong_is_told_once_and_in_the_table(tmp_path):
    logs, said = ran(tmp_path, "numpys", "stopped", attacks=("pgd-eot:steps=1,eot=1",), images=4)
    assert {"batch", "gradient"} == {note for log in logs.values() for line in log.images for note in line["notes"]}
    assert len(said) == 2
    of_numpy = next(line for line in said if "numpys" in line)
    assert "numpy's global generator" in of_numpy
    of_stopped = next(line for line in said if "stopped" in line)
    assert "is zero" in of_stopped
    assert "test_foreign_defenses.py" in of_stopped
    assert "with torch.no_grad():" in of_stopped
    table = tables.render(records.load_all([tmp_path]))
    assert "flatter" in table


def test_another_shape_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"\(2, 1, 4, 8\)"):
        rehearsal.check(plan.build(plan.Request(defenses=("wide",), attacks=("null",))))


@dataclasses.dataclass
class Chain:
    """A chain of somebody else's: a dataclass, which has no hash, whose draws are its own."""

    scale: float = 0.1
    n: int = 2

    def start(self, x, noise):
        return x

    def step(self, k, x, noise):
        return (x + self.scale * torch.randn_like(x)).clamp(0, 1)

    def finish(self, x):
        return x


class Stateful:
    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x / self.calls


def test_what_a_proof_finds():
    def found(f, **given):
        return proof.prove(Defense(as_purifier(f, "mine"), nn.Flatten()), images(8), "mine", **given)

    pool = nn.functional.max_pool2d
    assert found(lambda x: pool(x, 3, 1, 1) * torch.sigmoid(9 * x) + 0.1 * torch.rand_like(x)).warnings == ()
    assert found(Stateful()).notes == ("random",)
    assert "noise.normal(k, x)" in found(Chain()).warnings[0]
    assert found(Chain(0.0)).notes == ()
    assert found(lambda x: x + float(np.random.default_rng().normal())).notes[0] == "random"
    half = found(lambda x: x + 0.5 * (torch.roll(x, 1, 3) - x).detach())
    assert half.notes == ("gradient",)
    assert ".detach()" in half.warnings[0]
    assert found(lambda x: (255 * x).round() / 255, gradient=False).notes == ()
    assert found(lambda x: (255 * x).round() / 255).notes == ("gradient",)
    assert found(lambda x: 2 * x - 1).notes == ("range",)
    assert found(lambda x: 2 * x - 1, unbounded=True).notes == ()
    assert "writes into" in found(lambda x: x.mul_(0.5)).warnings[0]
    assert found(lambda x: x.detach() * 0 + 0.5).notes == ()
    # Detached for some images, by chance or by what they are; and a mean over the batch, which is no draw.
    by_chance = lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, pool(x, 3, 1, 1).detach(), pool(x, 3, 1, 1))  # noqa: E731
    assert "gradient" in found(by_chance).notes
    assert (
        "gradient" in found(lambda x: torch.where(x.mean((1, 2, 3), True) < 0.49, pool(x, 3, 1, 1).detach(), x)).notes
    )
    coupled = found(lambda x: (x + x.mean(0, keepdim=True)) / 2)
    assert coupled.notes == ("batch",)
    assert "depend on those beside them" in coupled.warnings[0]


def test_what_a_proof_of_a_classifier_finds():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()

    def notes(f):
        return proof.prove_classifier(f, images(), "mine", independent=True).notes

    assert notes(net) == notes(lambda x: net(x).softmax(1)) == notes(lambda x: net(x) * 1e-6) == ()
    assert notes(lambda x: net(2 * x.detach() - x)) == ("classifier",)
    assert notes(lambda x: net(x).detach()) == ("classifier",)
    assert notes(lambda x: net((255 * x).round() / 255)) == ("classifier",)
    assert notes(lambda x: net(torch.cat([x[..., :4].detach(), x[..., 4:]], 3))) == ("classifier",)
    assert notes(lambda x: (x * 0).flatten(1)[:, :10]) == ()
    coupled = lambda x: net(x - 0.5 * x.mean(0, keepdim=True))  # noqa: E731
    assert proof.prove_classifier(coupled, images(8), "mine", independent=False).notes == ()
