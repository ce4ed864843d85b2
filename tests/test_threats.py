"""Kinds of threat models: balls, flows and the box; and which attack has which."""

from __future__ import annotations

import pytest
import torch

from purebench import registry
from purebench.engine import flows
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid
from purebench.spec import ThreatModel, threat


def images(n: int = 4, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def noise(n: int = 4) -> Noise:
    return Noise(0, "attack", (), range(n), [0] * n)


def test_what_is_written_is_what_is_shown():
    for text in ("Linf:8/255", "L2:0.5", "L1:12", "StAdv:0.05", "box"):
        assert str(threat(text)) == text
    for wrong in ("box:1", "StAdv:3", "StAdv:0", "L1:-1", "L1", "L3:1", "stadv"):
        with pytest.raises(UserError):
            threat(wrong)


@pytest.mark.parametrize("eps", [0.5, 3.0, 12.0, 1000.0])
def test_the_nearest_point_of_the_l1_ball_in_the_box(eps):
    x, z = images(), 3 * images(seed=1) - 1
    x[0, :, 0] = 0
    x[1, :, 0] = 1
    limit = ThreatModel("L1", eps)
    found = limit.project(z, x)
    assert limit.holds(found, x).all()
    # Of a convex set the nearest point p is the one with (z - p)(q - p) <= 0 for every q of it.
    for seed in range(20):
        q = limit.project(x + (images(seed=seed) - 0.5) * 10, x)
        assert ((z - found) * (q - found)).double().flatten(1).sum(1).max() < 1e-4
    # What is inside stays.
    assert torch.equal(limit.project(found, x), found) or (limit.project(found, x) - found).abs().max() < 1e-6


def test_random_points_and_steps_under_l1():
    x = images() * 0 + 0.5
    limit = ThreatModel("L1", 5.0)
    point = limit.random(noise(), x)
    # Uniform in a ball of so many dimensions lies near its edge.
    assert limit.holds(point, x).all()
    assert limit.distance(point, x).min() > 4
    step = limit.ascend(images() - 0.5)
    assert torch.allclose(step.abs().flatten(1).sum(1), torch.ones(4))
    assert not limit.ascend(torch.zeros_like(x)).any()


def test_a_flow_of_nothing_and_of_one_pixel():
    x = images()
    assert (flows.render(x, torch.zeros(4, 2, 8, 8)) - x).abs().max() < 1e-6
    across = torch.zeros(4, 2, 8, 8)
    across[:, 0] = 2 / 8  # read one pixel further to the right
    moved = flows.render(x, across)
    assert (moved[..., :-1] - x[..., 1:]).abs().max() < 1e-5
    assert moved[..., -1].abs().max() < 1e-5


def test_a_flow_is_judged_and_not_believed():
    x, flow = images(), 0.04 * (images(shape=(2, 8, 8), seed=3) * 2 - 1)
    honest = flows.render(x, flow)
    assert flows.holds(honest, x, flow, 0.05).all()
    assert not flows.holds(honest, x, flow, 0.03).any()
    liar = honest.clone()
    liar[1, 0, 0, 0] = (liar[1, 0, 0, 0] + 0.5) % 1
    assert flows.holds(liar, x, flow, 0.05).tolist() == [True, False, True, True]
    flow[2] = torch.nan
    assert flows.holds(honest, x, flow, 0.05).tolist() == [True, True, False, True]


ATTACK = """
import torch
from purebench.attacks import Attacked
from purebench.engine import flows
INFO = {"summary": "a flow", "threats": ["StAdv"], "gradients": []}
def flowing(*, size: float = 1.0, lie: float = 0.0, silent: bool = False):
    def attack(defense, x, y, threat, noise):
        flow = size * threat.eps * noise.sign(0, x[:, :1].expand(-1, 2, -1, -1))
        return Attacked(flows.render(x, flow) * (1 - lie), flow=None if silent else flow)
    return attack
"""


def test_the_harness_checks_a_flow_and_records_its_largest_component(tmp_path, monkeypatch):
    import purebench

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ATTACK)

    def run(attack: str) -> None:
        purebench.run(
            dataset="digits",
            defense="none",
            attack=attack,
            threat="StAdv:0.05",
            images=4,
            evals=1,
            out=tmp_path / "out",
        )

    run("./mine.py:flowing")
    assert (purebench.load(tmp_path / "out").flow - 0.05).abs().max() < 1e-6
    for liar, why in (
        ("size=1.01", "outside StAdv:0.05"),
        ("lie=0.1", "outside StAdv:0.05"),
        ("silent=true", "gave no flow"),
    ):
        with pytest.raises(Exception, match=why):
            run(f"./mine.py:flowing:{liar}")


def plan(*attacks: str, threats: tuple[str, ...], sanity: bool = False) -> list[str]:
    request = grid.Request(
        defenses=("none",), attacks=attacks, threats=threats, dataset="digits", images=2, sanity=sanity
    )
    return [f"{job.cell.attack} {job.cell.threat}" for job in grid.build(request).jobs]


def test_which_attack_has_which_threat_model():
    assert plan("pgd-eot", threats=("L1:3",)) == ["pgd-eot L1:3"]
    assert plan("noise", threats=("box",)) == ["noise box"]
    # A control that nobody asked for refuses nothing.
    assert plan("null", threats=("StAdv:0.05",), sanity=True) == ["null -"]
    for attack, kind in (("autoattack-rand", "StAdv:0.05"), ("apgd-ce", "box"), ("noise", "StAdv:0.05")):
        with pytest.raises(UserError, match=f"`{attack}` knows no threat model `{kind}`"):
            plan(attack, threats=(kind,))
    with pytest.raises(UserError, match="no two images"):
        plan("pgd-eot", threats=("L1:65",))


def test_a_parameter_that_came_later_changes_no_cell(monkeypatch):
    def cell(text: str) -> tuple[str, dict]:
        request = grid.Request(defenses=("none",), attacks=(text,), dataset="digits", images=2)
        found = grid.build(request).jobs[0].cell
        return found.id, found.data()["parts"]["attack"]["values"]

    before = cell("pgd-eot")
    info = registry.info
    monkeypatch.setattr(
        registry, "info", lambda kind, name: info(kind, name) | ({"added": ["loss"]} if name == "pgd-eot" else {})
    )
    assert "loss" in before[1]
    assert "loss" not in cell("pgd-eot")[1]
    assert cell("pgd-eot:loss=ce")[0] == cell("pgd-eot")[0] != cell("pgd-eot:loss=margin")[0]
    assert cell("pgd-eot:loss=margin")[1]["loss"] == "margin"
