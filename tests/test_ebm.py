"""Langevin dynamics of energy models: the published code's states, closed forms, gradients within a budget, calls, refusals."""

import math

import numpy as np
import pytest
import torch
from helpers import autograd, filled, generated, label, maker, recorded, relative, slope_error, states
from torch import nn

from purebench.assets import checkpoint
from purebench.engine import chain
from purebench.engine.chain import Plan, Tape
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.networks import build
from purebench.scores import energy
from purebench.scores.energy import EnergyScore

torch.set_num_threads(1)
ebm = maker("ebm")
ROWS = 3
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)
X = torch.rand(ROWS, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
V = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# ------------------------------------------------------------------------------------------------- the published code's states


def published():
    """(the recorded run's energy model, its images in [-1,1], its noise)."""
    network = filled(build("ebm", {"n_f": 4}), "ebm_tiny:")
    x = 2 * generated("ebm:X", (3, 3, 32, 32), "random").float() - 1
    return EnergyScore(network, (3, 32, 32)), x, [generated(f"ebm:z{k}", x.shape).float() for k in range(6)]


def walk(score, x, noise):
    replay = Replay({(k, 0): z for k, z in enumerate(noise)})
    seen, out = states(ebm(score, steps=len(noise)), (x + 1) / 2, replay)
    assert torch.equal(out, (seen[-1] + 1) / 2)
    return seen


def test_the_recorded_inputs_and_weights_are_the_generated_ones():
    file = recorded("adp/d_ebm_tiny.npz")
    score, x, noise = published()
    assert torch.equal(x, file["X"])
    assert torch.equal(torch.stack(noise), file["noise"])
    weights = {k.removeprefix("param/"): v for k, v in file.items() if k.startswith("param/")}
    for key, p in score.network.named_parameters():
        torch.testing.assert_close(p, weights[key], rtol=1e-6, atol=1e-7)


def test_published_langevin_states(deviation):
    file = recorded("adp/d_ebm_tiny.npz")
    score, x, noise = published()
    torch.testing.assert_close(score.energy(x), file["energy"], rtol=1e-5, atol=1e-6)
    deviation("ebm: gradient of the energy", relative(score.gradient(x), file["grad_energy"]), 1e-4)
    seen = walk(score, x, noise)[1:]
    assert len(file["states"]) in (2, len(seen))  # the small copy holds two
    for ours, theirs in zip(seen, file["states"], strict=False):
        deviation("ebm: six states", relative(ours, theirs), 1e-4)


ENERGIES = [0.070456, -0.013551, 0.022393]
PIXELS = [
    -0.467033,
    0.203143,
    -0.536053,
    -0.879234,
    0.189565,
    0.058999,
    -0.784603,
    0.741894,
    0.368549,
    0.602309,
    0.21108,
    0.7311,
]


def test_published_literals():
    """The same run in a fresh clone: published energies, and pixels of the last state."""
    score, x, noise = published()
    assert score.energy(x).tolist() == pytest.approx(ENERGIES, rel=1e-4)
    assert walk(score, x, noise)[-1].flatten(1)[:, [0, 1000, 2000, 3000]].flatten().tolist() == pytest.approx(
        PIXELS, abs=1e-4
    )


# --------------------------------------------------------------------------------------------------------------- closed forms


class Quadratic(nn.Module):
    """f = c/2 |x - m|^2: a Gaussian of variance eps^2 / (2 c)."""

    def __init__(self, c=0.02, m=0.3):
        super().__init__()
        self.c, self.m = c, m

    def forward(self, x):
        return self.c / 2 * (x - self.m).square().flatten(1).sum(1)


class Gaussian:
    """sigma * score of Gaussian data smoothed by sigma."""

    sigma_min, sigma_max = 0.02, 10.0
    mean, variance = 0.2, 0.0009

    def direction(self, x, sigma):
        return -sigma * (x - self.mean) / (self.variance + sigma**2)


QUADRATIC = EnergyScore(Quadratic(), (1, 4, 4))


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize(("step", "eps"), [(1.0, 0.01), (0.5, 0.05), (3.0, 0.0)])
def test_langevin_on_a_quadratic_energy_is_an_autoregression(steps, step, eps):
    p = ebm(QUADRATIC, steps=steps, step=step, eps=eps)
    x, q = 2 * X - 1, 1 - step * 0.02
    for k in range(steps):
        x = 0.3 + q * (x - 0.3) + eps * NOISE.normal(k, X)
    out, grad = chain.vjp(p, X, NOISE, V)
    np.testing.assert_allclose(out, (x + 1) / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, q**steps * V, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize(("level", "eps", "step"), [(0.0, 0.01, 1.0), (0.05, 0.03, 1.0), (0.0, 0.05, 2.0)])
def test_langevin_on_a_score_model_is_the_same_recursion(steps, level, eps, step):
    p = ebm(Gaussian(), steps=steps, level=level, eps=eps, step=step)
    level = level or max(0.02, eps * math.sqrt(step))
    q, x = 1 - step * eps**2 / 2 / (0.0009 + level**2), 2 * X - 1
    for k in range(steps):
        x = 0.2 + q * (x - 0.2) + eps * NOISE.normal(k, X)
    out, grad = chain.vjp(p, X, NOISE, V)
    np.testing.assert_allclose(out, (x + 1) / 2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, q**steps * V, rtol=0, atol=1e-12)


def test_an_energy_and_the_score_of_the_same_gaussian_agree():
    """f = eps^2/2 U: Langevin on the energy is Langevin on its score, with the steps of its own eps."""
    level, noise = 0.05, 0.01
    energy_of = EnergyScore(Quadratic(noise**2 / 2 / (Gaussian.variance + level**2), Gaussian.mean), (1, 4, 4))
    torch.testing.assert_close(energy_of.direction(2 * X - 1, level), Gaussian().direction(2 * X - 1, level))
    a, b = (chain.run(ebm(s, steps=20, level=level), X, NOISE) for s in (energy_of, Gaussian()))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_long_run_forgets_the_image_and_finds_the_gaussian():
    """1500 steps at c = 0.02: variance eps^2 / (1 - 0.98^2), mean m, whatever the image."""
    rows = 60
    x = torch.rand(rows, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = 2 * chain.run(ebm(QUADRATIC), x, Noise(0, "test", (), range(rows), [0] * rows)) - 1
    assert abs(out.mean() - 0.3) < 5 * 0.01 / math.sqrt(0.04 * rows * 16)
    assert out.std() == pytest.approx(0.01 / math.sqrt(1 - 0.98**2), rel=0.08)


# ------------------------------------------------------------------------------------------------------------------- gradients


class Bumpy(nn.Module):
    """A smooth energy that is not quadratic."""

    def forward(self, x):
        h = x.flatten(1)
        return 0.05 * (3 * h + h.roll(1, 1)).cos().sum(1) + 0.02 * (h * h.roll(5, 1)).square().sum(1)


BUMPY = EnergyScore(Bumpy(), (1, 4, 4))


@pytest.mark.parametrize("plan", [Plan(7), Plan(1), Plan(3), Plan(2, 2), Plan(1, 3, 2)], ids=str)
def test_gradient_is_autograd_and_recomputation_repeats_every_bit(plan):
    p = ebm(BUMPY, steps=7)
    expected, grad = autograd(p, X, V, NOISE)
    tape = Tape(p, X, NOISE, plan)
    assert torch.equal(tape.purified, expected)
    assert torch.equal(chain.run(p, X, NOISE), expected)
    assert relative(tape.vjp(V), grad) < 1e-12
    assert relative(grad, V) > 0.1  # second-order terms matter


def test_gradient_is_the_central_difference():
    assert slope_error(ebm(BUMPY, steps=7), X, V, NOISE) < 1e-6


def test_1500_steps_fit_a_budget_of_a_twentieth():
    p = ebm(BUMPY)
    assert p.n == 1500
    _, graph = chain.step_bytes(p, X, NOISE)
    out, grad = chain.vjp(p, X, NOISE, V)
    for memory in (1500 * graph // 20,):
        again, other = chain.vjp(p, X, NOISE, V, memory=memory)
        assert torch.equal(again, out)
        assert relative(other, grad) < 1e-10


def test_the_published_networks_exact_gradient_is_bpdas():
    """Leaky ReLUs make the energy piecewise linear: its gradient is constant almost everywhere, and the chain's Jacobian is 1."""
    score, x, _ = published()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    _, grad = chain.vjp(ebm(score, steps=5), (x + 1) / 2, NOISE, v)
    torch.testing.assert_close(grad, v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("recording", [True, False], ids=["enable_grad", "no_grad"])
def test_the_scores_own_gradient_is_that_of_the_engine(recording):
    with torch.set_grad_enabled(recording):
        x = (2 * X - 1).requires_grad_()
        ours, engine = BUMPY.gradient(x), chain.inner_grad(BUMPY.energy, x)
        assert torch.equal(ours, engine)
        assert ours.requires_grad == recording
        assert not BUMPY.gradient(x.detach()).requires_grad
        if recording:
            assert torch.equal(*(torch.autograd.grad(g, x, V, retain_graph=True)[0] for g in (ours, engine)))


def test_the_direction_is_the_score_of_the_energy():
    """U = f / (eps^2 / 2), eps = 0.01."""
    x = 2 * X - 1
    torch.testing.assert_close(QUADRATIC.direction(x, 0.02), -0.02 * 0.02 * (x - 0.3) * 2 / 1e-4)
    assert (QUADRATIC.sigma_min, QUADRATIC.sigma_max, QUADRATIC.size) == (0.02, 0.02, (1, 4, 4))


# --------------------------------------------------------------------------------------------------- rows, calls, checkpoint, errors


def test_batch_mates_and_places_change_no_bit():
    score = published()[0]
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    p, order = ebm(score, steps=4), torch.randperm(16, generator=torch.Generator().manual_seed(7))
    out = chain.run(p, x, NOISE.rows(range(16), [0] * 16))
    assert torch.equal(chain.run(p, x[order], NOISE.rows(order, [0] * 16)), out[order])
    y = x.clone()
    y[8:] = 0.5
    assert torch.equal(chain.run(p, y, NOISE.rows(range(16), [0] * 16))[:8], out[:8])


def test_nothing_is_clipped():
    out = chain.run(ebm(QUADRATIC, steps=1), torch.full_like(X, 3.0), NOISE)
    assert out.min() > 2.5


def test_network_calls_are_one_forward_and_one_inner_backward_a_step():
    with chain.nfe() as calls:
        chain.run(ebm(BUMPY, steps=6), X, NOISE)
    assert (calls.forward, calls.backward) == (6, 6)
    with chain.nfe() as calls:
        chain.vjp(ebm(BUMPY, steps=6), X, NOISE, V)
    assert (calls.forward, calls.backward) == (
        6,
        12,
    )  # and one of second order, though it does not pass the energy's output


def test_hills_checkpoint_is_named_and_built():
    with checkpoint.untrained():
        score = energy.ebm_hill()
    assert sum(p.numel() for p in score.network.parameters()) == 693_569
    assert score.size == tuple(energy.INFO["ebm"]["size"])
    assert score.energy(torch.zeros(2, 3, 32, 32)).shape == (2,)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": 0}, "`steps=0` is not possible for `ebm`"),
        ({"step": 0.0}, "it needs step > 0"),
        ({"step": math.nan}, "outside its range"),
        ({"eps": -0.01}, "it needs eps >= 0"),
        ({"level": -1.0}, "it needs level >= 0"),
        ({"score": None}, "needs a score, and was given none"),
        ({"score": object()}, "neither"),
        ({"score": Gaussian(), "level": 0.0049}, "overshoot and diverge"),
    ],
    ids=label,
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(UserError, match=message) as error:
        ebm(**({"score": QUADRATIC} | parameters))
    assert error.value.hint


def test_golden_literals():
    """If this fails, results recorded before differ from new ones: raise `version`."""
    out = [chain.run(ebm(s, steps=20), X, NOISE).flatten()[[0, 20, 40]].tolist() for s in (BUMPY, Gaussian())]
    assert out == [pytest.approx(values, rel=1e-9) for values in NUMBERS]


NUMBERS = [
    [0.8271207409410172, 1.2089360811275567, 0.20725591229683815],
    [0.7548787421881562, 0.6710941057949289, 0.5406902572407403],
]
