"""A plain `x -> x` as a purifier: its draws belong to images, repeat, and are put back; its gradient is that of what it computes."""

import functools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import purebench
from purebench.engine import chain, draws
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.plain import Plain, as_purifier

ROWS = 6


def noise_of(ids, scale=1.0):
    return Noise(0, "test", (), ids, [0] * len(ids), scale)


@pytest.fixture
def x():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.rand(ROWS, 1, 4, 4)


def everything(x):
    """All draws that are known, each of which moves the result."""
    b = len(x)
    y = x + 0.1 * torch.randn_like(x) + 0.1 * torch.rand(b, 1, 1, 1) + 0.1 * torch.rand_like(x)
    y = y + 0.1 * torch.randn(x.shape) * torch.bernoulli(torch.full_like(x, 0.5))
    y = y + 0.01 * torch.randint(0, 9, (b, 1, 1, 1)) + 0.1 * torch.normal(torch.zeros_like(x), 2.0)
    y = F.dropout(y, 0.3) + F.dropout2d(y, 0.3) + 0.1 * torch.empty_like(x).uniform_(-1, 1)
    y = y + 0.1 * F.gumbel_softmax(x.flatten(1)).view_as(x) + 0.1 * torch.empty_like(x).bernoulli_(0.3)
    return (
        y
        + 0.1 * torch.zeros_like(x).normal_(1, 2)
        + 0.01 * torch.randint_like(x, 5)
        + x.new_empty(x.shape).random_(0, 3)
    )


def test_draws_belong_to_images(x):
    plain = as_purifier(everything, "everything")
    out = chain.run(plain, x, noise_of(range(ROWS)))
    assert plain.batch == set()
    assert torch.equal(chain.run(plain, x, noise_of(range(ROWS))), out)
    turned = torch.arange(ROWS).flip(0)
    assert torch.equal(chain.run(plain, x[turned], noise_of(turned)), out[turned])
    others = chain.run(plain, x, noise_of([0, 11, 12, 13, 14, 15]))
    assert torch.equal(others[0], out[0])
    # Equal images, unequal draws; and rows fewer or more.
    assert (others[1:] - out[1:]).abs().flatten(1).amax(1).min() > 0.1
    assert torch.allclose(chain.run(plain, x[:2], noise_of(range(2))), out[:2])


def test_draws_have_the_distributions_that_were_asked_for():
    n = 4000

    def f(x):
        sample = lambda t: t.flatten(1)[:, 0]  # noqa: E731
        f.seen = {
            "randn": sample(torch.randn(n, 1)), "normal_": sample(torch.empty(n, 1).normal_(3, 2)), "rand": sample(torch.rand(n, 1)),
            "uniform_": sample(torch.empty(n, 1).uniform_(2, 4)), "bernoulli": sample(torch.bernoulli(torch.full((n, 1), 0.2))),
            "exponential_": sample(torch.empty(n, 1).exponential_(2)), "randint": sample(torch.randint(3, 6, (n, 1))).float(),
            "dropout": sample(F.dropout(torch.ones(n, 1), 0.25)),
        }  # fmt: skip
        return x

    chain.run(Plain(f, "f"), torch.zeros(n, 1, 1, 1), noise_of(range(n)))
    expected = {
        "randn": (0, 1), "normal_": (3, 2), "rand": (0.5, 12**-0.5), "uniform_": (3, 2 * 12**-0.5), "bernoulli": (0.2, 0.4),
        "exponential_": (0.5, 0.5), "randint": (4, (2 / 3) ** 0.5), "dropout": (1, (1 / 3) ** 0.5),
    }  # fmt: skip
    for name, (mean, std) in expected.items():
        found = f.seen[name]
        assert abs(float(found.mean()) - mean) < 5 * std / n**0.5, name
        assert abs(float(found.std()) / std - 1) < 0.1, name
    assert set(f.seen["randint"].tolist()) == {3, 4, 5}


def test_noise_zero_switches_normal_draws_off(x):
    plain = as_purifier(lambda x: x + torch.randn_like(x) + torch.empty_like(x).normal_(0, 3), "f")
    assert torch.equal(chain.run(plain, x, noise_of(range(ROWS), 0.0)), x)
    once = chain.run(plain, x, noise_of(range(ROWS)))
    assert torch.allclose(chain.run(plain, x, noise_of(range(ROWS), 0.5)) - x, (once - x) / 2, atol=1e-6)
    with pytest.raises(UserError, match="numpy"):
        chain.run(Plain(lambda x: x + np.random.randn(), "f"), x, noise_of(range(ROWS), 0.0))


HELD = torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda x: torch.from_numpy(np.random.randn(*x.shape)).float(), "numpy"),
        (lambda x: random.random(), "random"),
        (lambda x: torch.randn(1), "randn"),
        (lambda x: x.flatten()[torch.randperm(x.numel())].view_as(x), "randperm"),
        (lambda x: torch.randn(x.shape, generator=HELD), "Generator"),
    ],
)  # fmt: skip
def test_what_is_drawn_for_the_batch_repeats_and_is_told(x, draw, told):
    plain = Plain(lambda x: x + draw(x), "f")
    before = (torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate(), HELD.get_state())
    out = chain.run(plain, x, noise_of(range(ROWS)))
    after = (torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate(), HELD.get_state())
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True))
    assert any(told in source for source in plain.batch)
    assert torch.equal(chain.run(plain, x, noise_of(range(ROWS))), out)
    # Another sample of the same images is another draw.
    assert not torch.equal(chain.run(plain, x, Noise(0, "test", (), range(ROWS), [1] * ROWS)), out)


def test_a_seed_of_its_own_is_what_it_wants(x):
    def f(x):
        torch.manual_seed(7)
        return x + torch.randn_like(x)

    torch.manual_seed(7)
    expected = x + torch.randn_like(x)
    assert torch.equal(chain.run(Plain(f, "f"), x, noise_of(range(ROWS))), expected)


class Steps(nn.Module):
    """Networks, noise, a dropout and numpy, with steps said in a way of choice."""

    def __init__(self, around, numpys=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1)
            )
        self.around, self.numpys, self.calls = around, numpys, 0

    def one(self, x, scale):
        self.calls += 1
        shift = np.random.rand() + random.random() if self.numpys else 0
        return x + scale * self.net(x) + 0.1 * torch.randn_like(x) * (1 + x) + shift * x

    def forward(self, x):
        for _ in range(3):
            x = self.around(self.one, x, 0.5)
        return x


AROUND = {
    "whole": lambda f, *a: f(*a),
    "step": purebench.step,
    "decorated": lambda f, *a: purebench.step(f)(*a),
    "checkpoint": functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False),
}


@pytest.mark.parametrize("numpys", [False, True])
@pytest.mark.parametrize("around", AROUND)
def test_the_exact_gradient_however_steps_are_said(x, around, numpys):
    if numpys and around == "checkpoint":
        pytest.skip("torch's own checkpoint repeats no draw of numpy's")
    f = Steps(AROUND[around], numpys).double()
    plain, x, noise = Plain(f, "f"), x.double(), noise_of(range(ROWS))
    v = torch.cos(torch.arange(x.numel()).double()).view_as(x)
    purified, grad = chain.vjp(plain, x, noise, v)
    assert torch.equal(purified, chain.run(plain, x, noise))
    h = 1e-6 * torch.sin(torch.arange(x.numel()).double() ** 2).view_as(x)
    difference = ((chain.run(plain, x + h, noise) - chain.run(plain, x - h, noise)) * v).sum() / 2
    assert float((grad * h).sum() / difference) == pytest.approx(1, abs=1e-6)


def test_steps_are_recomputed_only_where_a_gradient_is_recorded(x):
    f = Steps(purebench.step)
    chain.run(Plain(f, "f"), x, noise_of(range(ROWS)))
    assert f.calls == 3
    assert f(x.requires_grad_()).requires_grad
    assert f.calls == 6
    watch(f.net)
    with chain.nfe() as calls:
        chain.vjp(Plain(f, "f"), x, noise_of(range(ROWS)), torch.ones_like(x))
    assert (f.calls, calls.forward, calls.backward, calls.recomputed) == (12, 3, 3, 3)
    with purebench.step():
        pass


def test_a_graph_that_does_not_fit_is_made_by_parts_of_the_rows(x):
    plain, noise = Plain(Steps(AROUND["whole"]), "f"), noise_of(range(ROWS))
    v = torch.ones_like(x)
    purified, grad = chain.vjp(plain, x, noise, v)
    one = plain._row_bytes(x[:1], noise_of([0]))
    watch(plain.call.net)
    with chain.nfe() as calls:
        tape = chain.record(plain, x, noise, memory=4 * one)
        assert torch.equal(tape.purified, purified)
        assert torch.allclose(tape.vjp(v), grad, atol=1e-5)
    assert (calls.forward, calls.backward) == (3, 3)
    assert torch.allclose(tape.vjp(v), grad, atol=1e-5)  # asked twice
    with pytest.raises(UserError, match="for one image needs") as error:
        chain.record(plain, x, noise, memory=one // 2)
    assert "purebench.step" in error.value.hint
    stepped = Plain(Steps(purebench.step), "f")
    assert stepped._row_bytes(x[:1], noise_of([0])) < one * 0.6
    coupled = Plain(lambda x: plain.call(x) - x.mean(0), "f")
    with pytest.raises(UserError, match="depend on each other"):
        chain.vjp(coupled, x, noise, v, memory=4 * one)
    with pytest.raises(UserError, match="numpy"):
        chain.vjp(Plain(Steps(AROUND["whole"], True), "f"), x, noise, v, memory=4 * one)


def test_code_that_takes_gradients_or_writes_in_place(x):
    def guided(x):
        x = x.detach().requires_grad_()
        return (x - 0.1 * torch.autograd.grad(x.square().sum(), x)[0]).detach()

    assert torch.allclose(chain.run(Plain(guided, "f"), x, noise_of(range(ROWS))), 0.8 * x)
    before = x.clone()
    plain = Plain(lambda x: x.mul_(2), "f")
    purified, grad = chain.vjp(plain, x, noise_of(range(ROWS)), torch.ones_like(x))
    assert torch.equal(x, before)
    assert torch.equal(purified, 2 * x)
    assert torch.equal(grad, torch.full_like(x, 2))
    assert plain.changes_input
    fixed = Plain(torch.inference_mode()(lambda x: 2 * x), "f")
    purified, grad = chain.vjp(fixed, x, noise_of(range(ROWS)), torch.ones_like(x))
    assert torch.equal(grad, torch.zeros_like(x))
    assert not purified.is_inference()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: (x, x), "a tuple of Tensor, Tensor"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: None, "nothing"),
        (lambda x: x[:, :, :2], r"\(6, 1, 2, 4\)"),
        (lambda x: x.double(), "float64"),
        (lambda x: x.to("meta"), "meta"),
        (3, "int"),
        (type("Half", (), {"start": len, "step": len})(), "finish"),
        (type("Chain", (), {"start": len, "step": len, "finish": len})(), "n"),
    ],
)
def test_what_is_no_purifier_is_refused_by_what_came(x, made, said):
    with pytest.raises(UserError, match=said):
        chain.run(as_purifier(made, "mine"), x, noise_of(range(ROWS)))


def test_the_global_generators_are_put_back_after_an_error(x):
    def bad(x):
        torch.randn(1)
        raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        chain.run(Plain(bad, "f"), x, noise_of(range(ROWS)))
    assert torch.equal(torch.get_rng_state(), before)
    assert draws._mode() is None
