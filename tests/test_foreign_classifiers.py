"""Somebody else's classifier: what it may answer, what is refused with what came, and what was left in training mode."""

import types

import pytest
import torch
from torch import nn

from purebench.classifiers.foreign import as_classifier
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.noise import Noise
from purebench.errors import UserError

SHAPE = [1, 4, 4]
X = torch.linspace(0, 1, 5 * 16).view(5, *SHAPE)


def linear(k):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, k))


def made(f, k=3, **given):
    return as_classifier(f, k, SHAPE, name="mine", **given)


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: z,
        lambda z: (z, "features"),
        lambda z: [z],
        lambda z: {"logits": z, "loss": None},
        lambda z: types.SimpleNamespace(logits=z),
        lambda z: z.double(),
    ],
)
def test_logits_however_they_are_given(answer):
    net = linear(3)
    found = made(lambda x: answer(net(x)))(X)
    assert torch.equal(found, net(X))
    assert found.dtype == X.dtype


@pytest.mark.parametrize("answer", [lambda z: z, lambda z: z[:, 0]])
def test_one_logit_is_two_classes(answer):
    net = linear(1)
    logits = made(lambda x: answer(net(x)), 2)(X)
    assert torch.equal(logits[:, 0], torch.zeros(5))
    assert torch.equal(logits[:, 1:], net(X))
    assert torch.allclose(logits.softmax(1)[:, 1:], torch.sigmoid(net(X)))


@pytest.mark.parametrize(
    ("f", "k", "said"),
    [
        (linear(3), 4, r"\(2, 3\) for 2 images, expected \(2, 4\)"),
        (linear(1), 3, r"\(2, 1\)"),
        (lambda x: linear(3)(x).argmax(1), 3, "int64"),
        (lambda x: {"probs": x}, 3, "`probs`"),
        (lambda x: None, 3, "nothing"),
        (lambda x: linear(3)(x) / 0 * 0, 3, "not finite"),
        (lambda x: linear(3)(x)[:1], 3, r"\(1, 3\)"),
        (nn.Linear(7, 3), 3, "failed on two images"),
        ("text", 3, "cannot be called"),
    ],
)
def test_what_are_no_logits_is_refused_with_what_came(f, k, said):
    with pytest.raises(UserError, match=said) as error:
        made(f, k)
    assert error.value.hint


def test_what_was_left_in_training_mode_is_put_into_evaluation_mode():
    net = nn.Sequential(linear(8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    found = made(lambda x: net(x))
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert {id(p) for p in net.parameters()} == {
        id(p) for p in found.parameters()
    }  # moved, and watched for changes, with it
    assert (found.draws, found.coupled) == (False, False)
    own = nn.Sequential(linear(8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert made(own, own_mode=True).coupled


def test_a_dropout_that_is_the_defense_draws_for_each_image():
    net = nn.Sequential(linear(64), nn.Dropout(), nn.Linear(64, 3))
    found = made(net, own_mode=True)
    assert found.draws
    assert not found.coupled
    defense = Defense(Identity(), found, rows=8)
    noise = Noise(0, "judge", (), range(5), [0] * 5)
    once = defense.draws(X, noise, 0, 3)
    assert torch.equal(once, defense.draws(X, noise, 0, 3))
    assert (once[:, 0] - once[:, 1]).abs().min() > 1e-4
    alone = defense.draws(X[2:3], Noise(0, "judge", (), [2], [0]), 0, 3)
    assert torch.equal(alone, once[2:3])
    grad = defense.loss_grad(X, torch.zeros(5, dtype=torch.int64), "ce", noise).grad
    assert grad.isfinite().all()
    assert grad.abs().sum() > 0


def test_one_that_writes_into_its_images_changes_them_for_nobody():
    net, x = linear(3), X.clone()
    found = made(lambda x: net(x.sub_(0.5).div_(0.5)))
    leaf = x.clone().requires_grad_()
    assert torch.equal(found(x), found(leaf))
    assert torch.equal(x, X)
    assert torch.autograd.grad(found(leaf).sum(), leaf)[0].any()
