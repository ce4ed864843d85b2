"""A defense as a network for other people's attacks: its gradient, its draws, what it refuses; and the judge of what they made."""

import copy
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import purebench
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.running import evaluate
from purebench.spec import ThreatModel, threat

SIX = ["none", "diffpure:steps=3", "coup:steps=3", "one-shot:votes=2", "adp:steps=2", "gaussian"]
LINF = threat("Linf:0.2")


@pytest.fixture(scope="module")
def net():
    return purebench.module("one-shot", dataset="digits", device="cpu", seed=1)


@pytest.fixture(scope="module")
def batch(net):
    return net.images(3)


def one_step(net, x, y):
    """FGSM as anybody writes it."""
    x = x.clone().requires_grad_()
    F.cross_entropy(net(x), y).backward()
    return (x + 0.2 * x.grad.sign()).clamp(0, 1).detach()


# ---------------------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("defense", SIX)
def test_its_gradient_is_the_engines_and_may_be_asked_for_again(defense):
    net = purebench.module(defense, dataset="digits", device="cpu", seed=3)
    x, y = net.images(3)
    x.requires_grad_()
    loss = F.cross_entropy(net(x), y, reduction="sum")
    first, again = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    ids = torch.zeros(3, dtype=torch.int64)
    engine = evaluate.build_defense(net.cell, net.device, rows=16)
    expected = engine.loss_grad(x.detach(), y, "ce", Noise(3, "attack", ("module",), ids, ids)).grad
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-7)
    assert first.abs().max() > 0
    assert torch.equal(first, again)


def test_a_jacobian_is_its_rows_and_what_is_walked_again_is_no_new_call(net, batch):
    x = batch[0][:1]
    rows = torch.autograd.functional.jacobian(lambda z: net(z)[0, :3], x)
    for k, row in enumerate(rows):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(net(leaf)[0, k], leaf)[0], row)
    fresh = purebench.module("one-shot", dataset="digits", device="cpu", seed=1)
    leaf = x.clone().requires_grad_()
    out = fresh(leaf)[0, 0]
    out.backward(retain_graph=True)
    assert fresh.calls == (2, 2)  # the score network's and the classifier's
    out.backward()
    assert fresh.calls == (2, 4)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: torch.autograd.functional.hessian(lambda z: net(z).sum(), x),
        lambda net, x: torch.autograd.functional.jvp(net, x, x),
        lambda net, x: _penalty(net, x),
    ],
    ids=["hessian", "jvp", "penalty"],
)
@pytest.mark.parametrize("defense", ["none", "one-shot"])
def test_a_second_derivative_is_an_error_and_no_missing_term(ask, defense):
    net = purebench.module(defense, dataset="digits", device="cpu")
    with pytest.raises(UserError, match="first derivatives"):
        ask(net, net.images(1)[0])


def _penalty(net, x):
    """A sum whose other term has a second derivative: torch would drop ours without a word."""
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(net(leaf).sum(), leaf, create_graph=True)[0]
    return torch.autograd.grad((grad**2).sum() + (leaf**2).sum(), leaf)


def test_several_outputs_at_once_are_refused_in_our_words(net, batch):
    with pytest.raises(UserError, match="one output after the other") as caught:
        torch.autograd.functional.jacobian(net, batch[0][:1], vectorize=True)
    assert "vectorize" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------------- draws


def test_draws_are_fresh_unless_a_seed_is_given_and_nobody_can_freeze_them(net, batch):
    x = batch[0]
    assert torch.equal(net(x), net(x))
    # Of a seed: the same whatever stands beside it, since libraries pass subsets without saying which.
    torch.testing.assert_close(net(x[2:]), net(x)[2:])
    torch.manual_seed(5)
    fresh = purebench.module("one-shot", dataset="digits", device="cpu")
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)  # as FAB and Square do
        outputs.append(fresh(x))
    assert not torch.equal(*outputs)
    repeated = fresh(x[:1].repeat(4, 1, 1, 1))
    assert len({tuple(row.tolist()) for row in repeated}) == 4
    torch.manual_seed(5)
    assert torch.equal(purebench.module("one-shot", dataset="digits", device="cpu")(x), outputs[0])


def test_a_library_finds_what_it_asks_a_network_for(net, batch):
    x, y = batch
    assert next(net.parameters()).device == x.device
    assert not any(p.requires_grad for p in net.parameters())
    net.train()
    assert not any(m.training for m in net.modules())
    copied = copy.deepcopy(net).to(x.device)
    assert torch.equal(copied(x), net(x))
    assert net(x.double()).dtype == torch.float32
    assert net(x[:0]).shape == (0, 10)
    assert y.dtype == torch.int64
    assert "one-shot" in repr(net)


def test_what_an_attack_does_to_its_network_reaches_no_judge(batch):
    x, _ = batch
    spoilt = purebench.module("none", dataset="digits", device="cpu")
    right = spoilt(x).argmax(1)
    with torch.no_grad():
        for parameter in spoilt.parameters():
            parameter.zero_()
    assert purebench.judge(x, spoilt, evals=1, quiet=True).clean == float((right == batch[1]).float().mean())


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda x: x * 255, r"are in \[0, 255\]", "divide"),
        (lambda x: x * 2 - 1, r"are in \[-1, 1\]", "normalisation"),
        (lambda x: x[0], "shape", r"x\[None\]"),
        (lambda x: x.permute(0, 2, 3, 1), "shape", "permute"),
        (lambda x: x[..., :7], "shape", "digits"),
        (lambda x: x.numpy(), "ndarray", "tensor"),
        (lambda x: x.to("meta"), "on meta", "cpu"),
    ],
)
def test_what_is_no_image_is_refused(net, batch, change, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        net(change(batch[0]))
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("ids", [[], [0, 1], [0, 1, 2, 3]])
def test_draws_of_other_rows_than_there_are_images_are_refused(net, batch, ids):
    noise = Noise(0, "attack", (), ids, [0] * len(ids))
    defense = evaluate.build_defense(net.cell, net.device, rows=16)
    for call in (defense.logits, defense.purify, defense.predict, lambda x, n: defense.loss_grad(x, batch[1], "ce", n)):
        with pytest.raises(UserError, match=f"{len(ids)} image ids, and there are 3") as caught:
            call(batch[0], noise)
        assert "ids=range" in caught.value.hint


@pytest.mark.parametrize(
    ("norm", "eps", "hint"), [("linf", 0.2, "Linf"), ("L0", 1.0, "L2"), ("Linf", 8, "8/255"), ("L2", -1.0, "0,1")]
)
def test_a_threat_model_that_is_none_is_refused(norm, eps, hint):
    with pytest.raises(UserError) as caught:
        ThreatModel(norm, eps)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defense": "one-shoot"}, "one-shot"),
        ({"grad": "exakt"}, "exact"),
        ({"rows": 0}, "rows"),
        ({"seed": "a"}, "seed"),
    ],
)
def test_a_module_is_refused_as_a_run_is(arguments, message):
    with pytest.raises(UserError, match=message):
        purebench.module(**{"defense": "none", "dataset": "digits", "device": "cpu", **arguments})


# ------------------------------------------------------------------------------------------------------------------- judge


def test_given_and_judge_make_equal_records_whatever_held_the_images(tmp_path, batch):
    net = purebench.module("one-shot", dataset="digits", device="cpu")
    x_adv = one_step(net, *batch)
    result = purebench.judge(x_adv, net, threat=LINF, evals=2, out=tmp_path / "judge", quiet=True)
    assert 0 <= result.robust <= result.clean <= 1
    [cell] = (tmp_path / "judge").iterdir()
    np.save(tmp_path / "a.npy", x_adv.numpy())
    np.savez(tmp_path / "a.npz", x_adv=x_adv.numpy().transpose(0, 2, 3, 1).astype(np.float64), y=batch[1].numpy())
    torch.save({"adv_inputs": x_adv, "clean_inputs": batch[0]}, tmp_path / "a.pt")
    for i, place in enumerate([tmp_path / "a.npy", tmp_path / "a.npz", tmp_path / "a.pt", cell]):
        run = purebench.run(
            defense="one-shot", dataset="digits", attack=f"given:path={place}", threat="Linf:0.2", images=3, evals=2,
            out=tmp_path / str(i), device="cpu", workers=1, quiet=True,
        )  # fmt: skip
        for name in ("images.jsonl", "adversarial.f32"):
            assert (run.out / cell.name / name).read_bytes() == (cell / name).read_bytes()


def test_a_judge_leaves_nothing_and_the_threads_as_they_were(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = purebench.judge(batch[0].numpy(), "none", dataset="digits", evals=1, device="cpu", quiet=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert result.images.linf.tolist() == [0, 0, 0]
    assert not list(tmp_path.rglob("x_adv.npy"))
    del result
    assert not list(tmp_path.iterdir())


def test_judging_outside_the_ball_is_refused_and_names_the_image(batch):
    x_adv = batch[0].clone()
    x_adv[1] = (x_adv[1] + 0.3).clamp(0, 1)
    with pytest.raises(UserError, match=r"image 1 of `x_adv` is outside Linf:0\.2") as caught:
        purebench.judge(x_adv, "none", dataset="digits", threat="Linf:0.2", device="cpu", quiet=True)
    assert "project=true" in caught.value.hint
    projected = purebench.judge(
        x_adv, "none", dataset="digits", threat="Linf:0.2", project=True, evals=1, device="cpu", quiet=True
    )
    assert projected.images.linf.round(6).tolist() == [0, 0.2, 0]


# -------------------------------------------------------------------------------------------------------- other libraries


def test_torchattacks_and_foolbox(batch):
    """Their PGD and FAB, which asks for a gradient per class of one forward; judged like any attack."""
    torchattacks, foolbox = pytest.importorskip("torchattacks"), pytest.importorskip("foolbox")
    net = purebench.module("one-shot", dataset="digits", device="cpu")
    x, y = batch
    made = {
        "pgd": torchattacks.PGD(net, eps=0.2, alpha=0.1, steps=2)(x, y),
        "fab": torchattacks.FAB(net, eps=0.2, steps=1, n_restarts=1, n_classes=10)(x, y),
        "foolbox": foolbox.attacks.LinfPGD(steps=2)(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=0.2)[1],
    }
    for name, x_adv in made.items():
        assert purebench.judge(x_adv, net, threat=LINF, name=name, evals=1, quiet=True).images.linf.max() <= 0.2001


def test_the_page_of_other_attacks_runs(tmp_path, monkeypatch):
    class PGD:
        def __init__(self, net, **words):
            assert words == {"eps": 0.2, "alpha": 0.02, "steps": 40}

        def __call__(self, x, y):
            return (x + 0.2).clamp(0, 1)

    page = (Path(__file__).parents[1] / "docs" / "other-attacks.md").read_text(encoding="utf-8")
    code = (
        page.split("```python\n")[1]
        .split("```")[0]
        .replace("images(100)", "images(2)")
        .replace("diffpure:t=0.1", "none")
    )
    monkeypatch.setitem(sys.modules, "torchattacks", types.SimpleNamespace(PGD=PGD))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(list((tmp_path / "results").iterdir())) == 1
