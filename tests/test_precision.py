"""`--precision`: score networks in less than float32, named wherever a number is, checked before the first batch, and nowhere else."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from purebench.cli import main
from purebench.engine import precision
from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan.grid import Request
from purebench.records import store
from purebench.report import recipe
from purebench.running import evaluate, gate, preflight, runner
from purebench.running.progress import Reporter

CPU = torch.device("cpu")
SMALL = {
    "defenses": ("reverse-sde",),
    "attacks": ("pgd-eot:steps=2,eot=2",),
    "dataset": "digits",
    "images": 4,
    "evals": 2,
}


def planned(**options):
    return grid.build(Request(**SMALL | options))


def only(**options):
    [job] = planned(**options).jobs
    return job.cell


# ------------------------------------------------------------------------------------------------------------------ the cell


def test_at_float32_a_cell_is_what_it_always_was():
    cell = only()
    assert only(precision="fp32", judge_precision="fp32") == cell
    assert only(precision="fp32").id == cell.id
    assert "precision" not in json.dumps(cell.data())


def test_another_precision_is_another_cell_whose_score_model_says_so():
    cell = only(precision="bf16")
    assert cell.score == "digits-vp:precision=bf16"
    assert only(precision="bf16", judge_precision="bf16").score == "digits-vp:judge=bf16,precision=bf16"
    ids = {only(**o).id for o in ({}, {"precision": "bf16"}, {"precision": "tf32"}, {"judge_precision": "bf16"})}
    assert len(ids) == 4
    assert only(score="digits-vp:precision=bf16") == cell  # the option is the parameter
    assert only(defenses=("reverse-sde:score=digits-vp",), precision="bf16") == cell  # also of a defense's own model
    # What says it itself is left alone, and weights and version are the same.
    assert only(score="digits-vp:precision=tf32", precision="bf16").score == "digits-vp:precision=tf32"
    assert cell.data()["parts"]["score"] == only().data()["parts"]["score"]


def test_a_grid_and_a_recorded_cell_say_it(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('dataset = "digits"\ndefenses = ["coup"]\nattacks = ["null"]\nprecision = "bf16"\n')
    [job] = grid.build(Request(preset=str(file))).jobs
    assert job.cell.score == "digits-vp:precision=bf16"
    [again] = grid.jobs(recipe.grid(job.cell.data()) | {"images": 1, "evals": 1})
    assert again.cell.id == job.cell.id


def test_what_has_no_score_model_is_named_or_refused():
    plan = planned(defenses=("none", "reverse-sde"), precision="bf16")
    assert {job.cell.score for job in plan.jobs} == {"-", "digits-vp:precision=bf16"}
    assert any("not of none" in note for note in plan.notes)
    assert not any("not of" in note for note in planned(defenses=("none", "coup"), precision="fp32").notes)
    with pytest.raises(UserError, match="has no score model, whose network it is for"):
        planned(defenses=("none",), precision="bf16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16"}, "unknown word for `--precision` `fp16`"),
        ({"judge_precision": "bf"}, "unknown word for `--judge-precision` `bf`"),
        ({"score": "digits-vp:precision=half"}, "unknown precision of `digits-vp` `half`"),
        ({"preset": "coup/1", "defenses": (), "attacks": (), "precision": "bf16"}, "the table `coup/1` are in fp32"),
    ],
)
def test_what_is_no_precision_is_refused_in_words(options, words):
    with pytest.raises(UserError, match=words) as error:
        planned(**options)
    assert error.value.hint


def test_tf32_on_a_cpu_is_refused_by_name_before_anything_runs(tmp_path, capsys, monkeypatch):
    words = "purebench run -d reverse-sde -a null --dataset digits --images 2 --device cpu --precision tf32 --out"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "only a GPU has TF32, and nothing would differ from fp32" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["tf32", "bf16"])
def test_a_gpu_without_it_is_refused(monkeypatch, word):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(UserError, match=f"`T4` has no {word}"):
        precision.check(word, torch.device("cuda:0"))
    precision.check("fp32", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    precision.check(word, torch.device("cuda:0"))


# --------------------------------------------------------------------------------------------------------------- the network


class Spy(nn.Module):
    """A convolution that notes what it is computed in, forward and backward."""

    def __init__(self):
        super().__init__()
        self.f = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
        self.forwards, self.backwards = [], []

    def forward(self, x, labels=None):
        self.forwards.append(state(made := self.f(x)))
        if made.requires_grad:
            made.register_hook(lambda grad: self.backwards.append(state(grad)))
        return made


def state(x):
    return x.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def _as_in_a_run():
    before = torch.backends.cudnn.allow_tf32
    precision.allow(False)
    yield
    torch.backends.cudnn.allow_tf32 = before


X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_bf16_is_inside_the_network_alone():
    network = Spy()
    whole = network(X)
    precision.lower(network, "bf16", CPU)
    x = X.clone().requires_grad_()
    out = network(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.dtype == grad.dtype == torch.float32
    assert [dtype for dtype, *_ in network.forwards[1:] + network.backwards] == [torch.bfloat16] * 2
    assert network.f.weight.dtype == torch.float32
    assert network.f.weight.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous()
    assert 0 < (out - whole).abs().max() < 0.02 * whole.abs().max()


def test_tf32_is_on_inside_the_network_forward_and_backward_and_off_outside(monkeypatch):
    network, after = Spy(), []
    # A CPU refuses it; here it is the switch that is looked at.
    monkeypatch.setattr(precision, "check", lambda *_: None)
    precision.lower(network, "tf32", CPU)
    leaf = X.clone().requires_grad_()
    x = leaf * 1.0
    x.register_hook(lambda grad: None)
    before = leaf * 2.0
    out = network(before + x)
    assert state(out)[1:] == (False, False)
    leaf.register_hook(lambda grad: after.append(state(grad)))
    torch.autograd.grad(out.square().sum(), leaf)
    on, off = (torch.float32, True, True), (torch.float32, False, False)
    assert (network.forwards, network.backwards, after) == ([on], [on], [off])
    with torch.no_grad():
        network(X)
    assert state(X) == off


def test_fp32_changes_nothing_of_a_network():
    network = nn.Conv2d(3, 3, 3)
    precision.lower(network, "fp32", CPU)
    assert type(network) is nn.Conv2d
    assert not network.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_computes_with_its_own_weights():
    network = nn.Sequential(nn.Conv2d(3, 3, 3).requires_grad_(False))
    precision.lower(network, "bf16", CPU)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[0].weight.zero_(), other[0].bias.zero_()
        assert other(X).abs().max() == 0 < network(X).abs().max()


def test_a_network_whose_forward_was_replaced_is_refused():
    network = nn.Conv2d(3, 3, 3)
    network.forward = lambda x: x
    with pytest.raises(UserError, match="`forward` of this `Conv2d` was replaced"):
        precision.lower(network, "bf16", CPU)


def test_the_judge_is_in_float32_unless_asked_otherwise():
    x = X[:, :1]
    from purebench.engine.noise import Noise

    noise = Noise(0, "judge", (), [0, 1], [0, 0])

    def purified(cell, judging):
        return evaluate.build_defense(cell, CPU, rows=2, judging=judging).purify(x, noise)

    whole, attacks, both = only(), only(precision="bf16"), only(precision="bf16", judge_precision="bf16")
    exact = purified(whole, False)
    assert torch.equal(purified(attacks, True), exact)
    assert not torch.equal(purified(attacks, False), exact)
    assert torch.equal(purified(both, True), purified(attacks, False))
    judge_only = only(judge_precision="bf16")
    assert torch.equal(purified(judge_only, False), exact)
    assert torch.equal(purified(judge_only, True), purified(attacks, False))


# ------------------------------------------------------------------------------------------------------------------- the gate


def test_the_gate_passes_what_is_near_and_says_how_near():
    cell = only(precision="bf16")
    [(role, found)] = gate.check(cell, CPU, 8).items()
    assert (role, found["precision"], found["images"]) == ("attack", "bf16", 8)
    assert 0.999 < found["image_cosine"] < 1
    assert 0 < found["image_error"] < 0.05
    assert 0.99 < found["gradient_cosine"] < 1
    assert found["flips"] <= gate.LIMITS["flips"][0]
    assert gate.check(only(), CPU, 8) == {}
    # A judge has no gradient, and an attack without one neither.
    both = gate.check(only(precision="bf16", judge_precision="bf16"), CPU, 8)
    assert "gradient_cosine" in both["attack"]
    assert "gradient_cosine" not in gate.check(only(precision="bf16", attacks=("null",)), CPU, 8)["attack"]
    assert both["judge"]["precision"] == "bf16"


def test_the_gate_refuses_what_is_another_defense_with_its_figures():
    """ADP's curvature is a difference of two scores 1e-5 apart: bfloat16 has lost all of it."""
    with pytest.raises(UserError, match=r"bf16 is too coarse for the attack of adp .*image_cosine=0\.[0-9]+") as error:
        gate.check(only(defenses=("adp",), precision="bf16"), CPU, 8)
    assert "--precision fp32" in error.value.hint


@pytest.mark.parametrize(
    ("key", "value"), [("image_cosine", 0.9), ("gradient_error", 0.6), ("flips", 0.2), ("image_error", float("nan"))]
)
def test_each_limit_holds(key, value):
    fine = {
        "precision": "bf16",
        "image_cosine": 1.0,
        "image_error": 0,
        "gradient_cosine": 1,
        "gradient_error": 0,
        "flips": 0,
    }
    gate._refuse("coup x pgd", "attack", fine)
    with pytest.raises(UserError, match="too coarse"):
        gate._refuse("coup x pgd", "attack", fine | {key: value})


# ------------------------------------------------------------------------------------------------------------------ a run


def run(out, images, **options):
    plan = planned(images=images, **options)
    outcome = runner.run(plan, runner.Settings(out, "cpu", rows=16), Reporter())
    return plan.jobs[0].cell.id, outcome


def test_a_run_records_the_gate_and_its_bytes_do_not_depend_on_how_often_it_was_begun(tmp_path):
    whole, _ = run(tmp_path / "a", 6, precision="bf16")
    run(tmp_path / "b", 3, precision="bf16")
    parts, _ = run(tmp_path / "b", 6, precision="bf16")
    assert whole == parts
    for name in ("images.jsonl", "adversarial.f32"):
        assert (tmp_path / "a" / whole / name).read_bytes() == (tmp_path / "b" / parts / name).read_bytes()
    log = store.load(tmp_path / "a" / whole)
    assert log.runs[-1]["gate"]["attack"]["precision"] == "bf16"
    assert log.runs[-1]["gate"]["attack"]["image_cosine"] > 0.99
    exact, _ = run(tmp_path / "a", 3)
    assert "gate" not in store.load(tmp_path / "a" / exact).runs[-1]


def test_a_cell_that_its_gate_refuses_has_no_number(tmp_path):
    name, outcome = run(tmp_path, 2, defenses=("adp:steps=3",), precision="bf16")
    assert "too coarse" in outcome.failed[name]
    assert not store.load(tmp_path / name).images


def test_resources_are_checked_with_the_plan(tmp_path):
    request = Request(**SMALL | {"precision": "tf32"})
    with pytest.raises(UserError, match="only a GPU has TF32"):
        preflight.prepare(request, preflight.Resources("cpu", workers=1), tmp_path)
    plan, _ = preflight.prepare(replace(request, precision="bf16"), preflight.Resources("cpu", workers=1), tmp_path)
    assert len(plan.jobs) == 1
