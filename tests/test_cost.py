"""What a cell costs, said before it runs: as many network calls as the real networks are then asked for."""

import pytest
import torch

from purebench.engine.noise import Noise
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.running import cost, evaluate

CPU = torch.device("cpu")
ATTACK = "pgd-eot:steps=1,eot=1"


def jobs(*defenses, attacks=(ATTACK,), dataset="digits", **given):
    """(jobs of a plan, shape of its images)"""
    the_plan = plan.build(Request(defenses=defenses, attacks=attacks, dataset=dataset, images=1, **given))
    return the_plan.jobs, the_plan.shape


@pytest.mark.parametrize(
    ("defense", "gradient"),
    [
        ("coup:steps=3", "exact"),
        ("coup:steps=3", "bpda"),
        ("coup:steps=3", "adjoint:guidance=exact"),
        ("diffpure:steps=4,votes=2", "adjoint"),
        ("coup:steps=3", "surrogate:steps=2"),
        ("coup:steps=3", "surrogate:defense=(one-shot)"),
        ("scoreopt-n:steps=2,votes=3", "exact"),
        ("scoreopt-n:steps=2,votes=3", "bpda"),
        ("gns:votes=2", "surrogate:stages=[20],steps=[3]"),
        ("none", "exact"),
        ("gaussian", "exact"),
    ],
)
def test_a_gradient_and_a_judgement_cost_what_was_said(defense, gradient):
    job, shape, spent, judged = measured(defense, gradient)
    assert spent == cost.attack(job.cell, shape)
    assert judged == cost.purification(job.cell, shape)


def measured(defense, gradient):
    """(job, shape of its images, calls of one gradient, calls of one judgement), counted on the real networks."""
    [[job], shape] = jobs(defense, grads=(gradient,))
    made = evaluate.build_defense(job.cell, CPU, rows=4)
    x = evaluate.probe(shape, 1, CPU)
    made.loss_grad(x, torch.zeros(1).long(), "ce", Noise(0, "attack", (), [0], [0]))
    spent = made.spent.close()[:2]
    made.predict(x, Noise(0, "judge", (), [0], [0]))
    return job, shape, spent, made.spent.close()[:2]


@pytest.mark.parametrize(
    ("defense", "gradient"),
    [
        ("coup:steps=3", "detached"),
        ("coup:steps=3", "adjoint"),
        ("scoreopt-o:steps=2", "detached"),
        ("adp:threshold=25,steps=2", "exact"),
    ],
)
def test_a_gradient_that_leaves_a_network_out_costs_at_most_what_was_said(defense, gradient):
    job, shape, (forward, backward), _ = measured(defense, gradient)
    most = cost.attack(job.cell, shape)
    assert forward == most[0]
    assert backward < most[1]


def test_an_attack_on_the_bare_classifier_costs_no_purification():
    [[bare, null], shape] = jobs("coup", attacks=("transfer-pgd:steps=7", "null"))
    assert cost.attack(bare.cell, shape) == (7, 7)
    assert cost.attack(null.cell, shape) == (0, 0)


@pytest.mark.parametrize(
    ("defense", "score", "calls"),
    [
        ("ebm:steps=10", "edm", (11, 0)),
        ("ebm:steps=10", "ebm", (11, 10)),  # an energy's score is itself a gradient
        (
            "lm:steps=3,guidance=1,low=0.02,high=0.02",
            "ebm",
            (7, 9),
        ),  # of the loss, the energy inside it, the confidence
        ("adp:steps=4,score=[ebm,ncsnv2]", None, (9, 4)),  # the first asked by every other step
        ("adp:update=langevin", "ncsnv2", (11, 0)),
        ("adp:threshold=25", "ncsnv2", (22, 0)),
        ("adp:threshold=25,sigma=0", "ncsnv2", (21, 0)),
        ("scoreopt-o:steps=5,objective=sr", "edm", (11, 5)),
        ("scoreopt-o:steps=5,objective=mse", "edm", (6, 5)),
        ("scoreopt-n:steps=5,outer=2,objective=sr", "edm", (23, 10)),
        ("edm:steps=6,start=2", "edm", (5, 0)),
        ("edm:steps=6,start=2,order=2", "edm", (8, 0)),
        ("gns:stages=[30,50],steps=[3,5]", "edm", (9, 0)),
        ("gns:stages=[30,50]", "edm", (81, 0)),
        ("one-shot:votes=4", "edm", (8, 0)),
    ],
)
def test_what_a_purification_costs_depends_on_its_words_and_on_its_score_model(defense, score, calls):
    [[job], shape] = jobs(defense, dataset="cifar10", score=score)
    assert cost.purification(job.cell, shape) == calls


def test_work_is_the_attack_and_the_judging_of_both_images():
    [[job], shape] = jobs("one-shot", evals=3, attacks=("pgd-eot:steps=2,eot=5",))
    assert cost.attack(job.cell, shape) == (20, 20)
    assert cost.work(job, shape) == 40 + 2 * 3 * 2 + 1
