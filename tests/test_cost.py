"""What a cell costs, said before it runs: as many network calls as the real networks are then asked for."""

import json

import pytest
import torch

from purebench import registry
from purebench.engine.identity import Identity
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.records import store as records
from purebench.running import cost, estimate, evaluate, preflight, progress, rehearsal, runner, speed

CPU = torch.device("cpu")
ATTACK = "pgd-eot:steps=1,eot=1"


def jobs(*defenses, attacks=(ATTACK,), dataset="digits", **given):
    """(jobs of a plan, shape of its images)"""
    the_plan = plan.build(Request(defenses=defenses, attacks=attacks, dataset=dataset, images=1, **given))
    return the_plan.jobs, the_plan.jobs[0].shape


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
    x = torch.full((1, *shape), 0.5)
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
    assert cost.work(job) == 40 + 2 * 3 * 2 + 1


# ----------------------------------------------------------------------------------------- plans that nobody rehearsed, plug-ins

INFO = {
    "their-purifier": {
        "summary": "a plug-in that reads its network",
        "needs": ["score"],
        "output": "unit",
        "random": False,
    },
    "their-score": {"summary": "a plug-in", "size": [1, 8, 8], "digest": "d", "needs": []},
    "their-energy": {"summary": "a plug-in", "size": [1, 8, 8], "digest": "e", "energy": True},
}


class Particular(Identity):
    def __init__(self, score):
        self.weights = next(score.network.parameters())  # which a stand-in has not


def their_purifier(score, classifier=None):
    return Particular(score)


def their_score():
    raise AssertionError("not made before the run")


def their_energy():
    raise AssertionError("not made before the run")


@pytest.fixture
def plugins(monkeypatch):
    for kind, name in (("defense", "their-purifier"), ("score", "their-score"), ("score", "their-energy")):
        monkeypatch.setitem(registry.NAMES[kind], name, f"test_cost:{name.replace('-', '_')}")
    registry.names.cache_clear()
    yield
    monkeypatch.undo()
    registry.names.cache_clear()


@pytest.mark.parametrize(("score", "calls"), [("their-score", (11, 0)), ("their-energy", (11, 10))])
def test_on_a_plug_ins_score_model_calls_are_counted_without_it(plugins, score, calls):
    [[job], shape] = jobs("ebm:steps=10", score=score)
    assert cost.purification(job.cell, shape) == calls
    [[job], shape] = jobs(
        "edm:sigma=1000,steps=4", score=score
    )  # whether it knows such noise, only its network can tell
    assert cost.purification(job.cell, shape) == (5, 4 if score == "their-energy" else 0)


def test_what_cannot_be_counted_is_a_question_mark_and_no_number(plugins, tmp_path):
    the_plan = plan.build(
        Request(defenses=("their-purifier",), attacks=("pgd-eot", "null"), dataset="digits", images=2)
    )
    settings = runner.Settings(tmp_path)
    attacked, control = json.loads(estimate.describe(the_plan, settings, True))
    assert (attacked["nfe_forward"], attacked["nfe_backward"], attacked["seconds"]) == (None, None, None)
    assert (control["nfe_forward"], control["seconds"]) == (0, None)  # the attack is free, the judging is not
    text = estimate.describe(the_plan, settings, False)
    assert text.count("?  ") >= 2
    assert "without the cells that say `?`" in text
    assert all(cost.work(job) > 0 for job in the_plan.jobs)


def test_a_plan_that_nobody_rehearsed_runs_and_its_progress_is_the_work_done(tmp_path):
    """The bar ends where it was said to end."""

    class Counted(progress.Reporter):
        def start(self, total):
            super().start(total)
            self.counted = 0.0

        def work(self, amount):
            self.counted += amount

    rehearsal._walk.cache_clear()
    the_plan = plan.build(
        Request(defenses=("coup:steps=2",), attacks=("pgd-eot:steps=2,eot=2",), dataset="digits", images=3, evals=2)
    )
    report = Counted()
    outcome = runner.run(the_plan, runner.Settings(tmp_path, device="cpu", rows=16), report)
    assert (len(outcome.done), outcome.failed) == (1, {})
    assert report.counted <= report.total <= report.counted + 3 * 10
    [log] = records.load_all([tmp_path])
    assert {tuple(line["nfe"]) for line in log.images} == {cost.attack(the_plan.jobs[0].cell, the_plan.jobs[0].shape)}


def test_a_purifier_that_cannot_be_made_fails_its_own_cell_alone(tmp_path):
    the_plan = plan.build(
        Request(defenses=("gns:stages=[2000]", "one-shot"), attacks=("null",), dataset="digits", images=2, evals=1)
    )
    outcome = runner.run(the_plan, runner.Settings(tmp_path, device="cpu", rows=16), progress.Reporter())
    assert (len(outcome.done), len(outcome.failed)) == (1, 1)
    assert "stages" in next(iter(outcome.failed.values()))


# ------------------------------------------------------------------------------------------------- plans of what is not here


def test_what_only_its_user_can_supply_is_planned_without_it(tmp_path, monkeypatch):
    """And a folder that was named is read, since it may be a part."""
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    for variable in ("PUREBENCH_IMAGENET", "PUREBENCH_CELEBAHQ"):
        monkeypatch.delenv(variable, raising=False)
    for preset, shape, size in (
        ("diffpure/imagenet", [3, 224, 224], 50000),
        ("diffpure/bpda-celebahq", [3, 256, 256], 2993),
        ("scoreopt/13", [3, 224, 224], 50000),
    ):
        the_plan = plan.build(Request(preset=preset))
        assert {(*job.shape, job.size) for job in the_plan.jobs} == {(*shape, size)}
        assert "data-" in " ".join(the_plan.missing)
        with pytest.raises(UserError, match="not in the cache") as error:
            preflight.require_files(the_plan)
        assert "folder=PATH" in error.value.hint
    [own] = plan.build(Request(dataset="imagenet:ids=robustbench", defenses=("none",), attacks=("null",))).jobs
    assert own.size == 5000
    monkeypatch.setenv("PUREBENCH_IMAGENET", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="there is no folder"):
        plan.build(Request(preset="diffpure/imagenet"))


def test_a_slow_network_is_timed_once_for_all_its_cells(tmp_path, monkeypatch):
    """Seconds are calls times what a call takes; a chain's graphs are made twice; GPU-hours are counted operations at a stated rate."""
    timed = []

    def of(part, shape, device, rows):
        timed.append(part.kind)
        return speed.Speed(1.0, 2.0, 1e12) if part.kind == "classifier" else speed.Speed(10.0, 20.0, 5e12)

    monkeypatch.setattr(speed, "of", of)
    monkeypatch.setattr(speed.Clock, "_beginning", lambda *_: pytest.fail("no slow defense is begun"))
    the_plan = plan.build(
        Request(defenses=("one-shot",), attacks=("pgd-eot:steps=1,eot=1",), dataset="digits", images=2, evals=1)
    )
    [row] = json.loads(estimate.describe(the_plan, runner.Settings(tmp_path, device="cpu", workers=1), True))
    # The attack: a call of each forwards and backwards, the score model's forward twice. Judging: two of each, and one bare.
    score, classifier = (10 + 20 + 10) + 2 * 10, (1 + 2 + 1) + 2 * 1 + 1
    assert row["seconds"] == 2 * (score + classifier)
    flop = 2 * ((2 + 2) * 5e12 + (2 + 3) * 1e12)
    assert row["gpu_hours"] == pytest.approx(flop / (67e12 * 0.4) / 3600)
    assert row["score"] == "digits-vp"


def test_a_networks_operations_are_those_of_its_convolutions():
    [[job], shape] = jobs("one-shot")
    found = speed.of(job.cell.classifier, tuple(shape), CPU)
    network = evaluate._network(job.cell.classifier, CPU)
    products = []

    def note(module, args, out):
        kernel = module.weight[0].numel()  # of a linear layer: its inputs
        products.append(out[0].numel() * kernel)

    hooks = [
        m.register_forward_hook(note) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    network(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    assert found.flop == 2 * sum(products)


@pytest.mark.parametrize(("defense", "inside"), [("coup:steps=3", (3, 3)), ("reverse-sde:steps=3", (0, 0))])
def test_the_classifiers_share_of_the_calls_is_the_guidance(defense, inside):
    [[job], shape] = jobs(defense)
    assert cost.purification(job.cell, shape, classifier=True) == (inside[0] + 1, inside[1])
    assert cost.purification(job.cell, shape)[0] == inside[0] + 3 + 1


def test_the_dry_run_says_what_is_missing_and_how_large(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(speed, "of", lambda *_: speed.Speed(1.0, 2.0, 1e12))
    the_plan = plan.build(Request(preset="coup/1"))
    text = estimate.describe(the_plan, runner.Settings(tmp_path, device="cpu", workers=2), False)
    assert "  score-sde-cifar10-vp: 1.71 GB" in text
    assert "  data-cifar10: 170 MB" in text
    assert "GPU-hours on one H100 (counted operations, 67 TFLOP/s of float32 at 40%)" in text
