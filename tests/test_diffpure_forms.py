"""DiffPure's other forms (ODE, Langevin, ancestral): closed forms on Gaussian data, exact gradients, and the published code's own runs."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import apart, filled, maker, path, published, recorded, slope_error, smooth_unet, states
from torch import nn

from purebench.engine import adjoint, chain
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.networks import build
from purebench.scores.vp import IndexScore, VPScore

torch.set_num_threads(1)
diffpure_ddpm = maker("diffpure-ddpm")
diffpure, diffpure_ld, diffpure_ode = maker("diffpure"), maker("diffpure-ld"), maker("diffpure-ode")
DATA_MEAN, DATA_STD = 0.3, 0.5  # of Gaussian data, on the [-1,1] scale
BETA = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETA)
SHAPE = (4, 1, 2, 3)
NOISE = Noise(3, "judge", (), range(4), [0] * 4)
X = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def abar(t):
    return np.exp(-0.1 * t - (20 - 0.1) * t**2 / 2)


class Gaussian(nn.Module):
    """E[eps | x] of Gaussian data at network times `labels`, whose abar is `schedule(labels)`; then, if `learned`, v = cos(label)."""

    def __init__(self, schedule, learned=False):
        super().__init__()
        self.schedule, self.learned = schedule, learned

    def forward(self, x, labels):
        a = torch.as_tensor(self.schedule(labels.double().numpy()))[:, None, None, None]
        eps = (1 - a).sqrt() * (x - a.sqrt() * DATA_MEAN) / (a * DATA_STD**2 + 1 - a)
        v = torch.cos(labels.double())[:, None, None, None].expand_as(x)
        return torch.cat([eps, v], 1) if self.learned else eps


SCORE = VPScore(Gaussian(lambda labels: abar(labels / 999)), SHAPE[1:])
LEARNED = IndexScore(Gaussian(lambda labels: ABAR[labels.astype(int)], learned=True), SHAPE[1:])


def score_of_data(x, t):
    return -(x - math.sqrt(abar(t)) * DATA_MEAN) / (abar(t) * DATA_STD**2 + 1 - abar(t))


# ---------------------------------------------------------------- the recursions, written again: states, and what is linear


def ode(x, z, t=0.1, steps=100):
    """Explicit Euler of the probability flow from t to 1e-5 after the discrete forward noise."""
    a = ABAR[round(1000 * t) - 1]
    x = math.sqrt(a) * x + math.sqrt(1 - a) * z[-1]
    times = [*(t - np.arange(steps) * t / steps), 1e-5]
    states = [x]
    for now, after in pairwise(times):
        beta = 0.1 + 19.9 * now
        x = x + (after - now) * (-beta * x / 2 - beta * score_of_data(x, now) / 2)
        states.append(x)
    return states


def langevin(x, z, t=0.1, steps=10, sigma2=1e-3, lambda_ld=1e-2, eta=5.0):
    times, states, first = [*(1 - t + np.arange(steps) * t / steps), 1 - 1e-5], [x], x
    for k, (now, after) in enumerate(pairwise(times)):
        drift = -0.5 * lambda_ld * (-score_of_data(x, 0.01) + (x - first) / sigma2)
        x = x + (after - now) * drift + eta * math.sqrt(lambda_ld) * math.sqrt(after - now) * z[k]
        states.append(x)
    return states


def ancestral(x, z, t=0.1, variance="fixedsmall", clip=False):
    """q(x_{i-1} | x_i, x_0) by the precisions of its two factors, N(sqrt(abar') x_0, 1 - abar') and the step from x_{i-1} to x_i."""
    top = round(1000 * t) - 1
    x = math.sqrt(ABAR[top]) * x + math.sqrt(1 - ABAR[top]) * z[-1]
    states = [x]
    for k, i in enumerate(range(top, -1, -1)):
        a, b = ABAR[i], BETA[i]
        eps = math.sqrt(1 - a) * (x - math.sqrt(a) * DATA_MEAN) / (a * DATA_STD**2 + 1 - a)
        x_0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        x_0 = x_0.clip(-1, 1) if clip else x_0
        if i == 0:
            x = x_0
        else:
            before = ABAR[i - 1]
            small = 1 / (1 / (1 - before) + (1 - b) / b)
            mean = small * (math.sqrt(before) * x_0 / (1 - before) + math.sqrt(1 - b) * x / b)
            share = {"fixedsmall": 0, "fixedlarge": 1, "learned": (math.cos(i) + 1) / 2}[variance]
            x = mean + np.exp((share * np.log(b) + (1 - share) * np.log(small)) / 2) * z[k]
        states.append(x)
    return states


CASES = {  # id -> (purifier, the recursion on the [-1,1] scale)
    "ode": (diffpure_ode(SCORE), lambda x, z: ode(x, z)),
    "ode 7 steps": (diffpure_ode(SCORE, t=0.15, steps=7), lambda x, z: ode(x, z, 0.15, 7)),
    "ld": (diffpure_ld(SCORE), lambda x, z: langevin(x, z)),
    "ld other": (
        diffpure_ld(SCORE, t=0.2, steps=5, sigma2=0.02, lambda_ld=0.3, eta=1.5),
        lambda x, z: langevin(x, z, 0.2, 5, 0.02, 0.3, 1.5),
    ),
    "ddpm small": (
        diffpure_ddpm(LEARNED, t=0.05, variance="fixedsmall", clip=False),
        lambda x, z: ancestral(x, z, 0.05, "fixedsmall"),
    ),
    "ddpm large": (
        diffpure_ddpm(LEARNED, t=0.05, variance="fixedlarge", clip=False),
        lambda x, z: ancestral(x, z, 0.05, "fixedlarge"),
    ),
    "ddpm learned": (
        diffpure_ddpm(LEARNED, t=0.06, variance="learned", clip=False),
        lambda x, z: ancestral(x, z, 0.06, "learned"),
    ),
}


def draws(n, like=X, noise=NOISE):
    return {k: noise.normal(k, like).numpy() for k in range(-1, n)}


@pytest.mark.parametrize("case", CASES)
def test_every_state_is_the_recursions(case):
    p, recursion = CASES[case]
    expected = recursion(2 * X.numpy() - 1, draws(p.n))
    seen, out = path(p, X, NOISE)
    tolerance = 3e-6 if case.startswith(("ode", "ld")) else 1e-10  # their times are the solvers' float32 ones
    np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(out, (expected[-1] + 1) / 2, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_mean_variance_and_jacobian_are_those_of_the_affine_map(case):
    """On Gaussian data a purifier is out = A x + b + sum_k c_k z_k: each coefficient is read off both, and so are the output's
    mean A m + b, its variance A^2 s^2 + sum c^2, and the Jacobian A, which the engine's gradient must be."""
    p, recursion = CASES[case]
    one, none = np.ones(1), {k: np.zeros(1) for k in range(-1, p.n)}
    b = recursion(0 * one, none)[-1]
    A = recursion(one, none)[-1] - b
    c = np.array([recursion(0 * one, none | {k: one})[-1] - b for k in none])[:, 0]

    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    silent = {(k, 0): torch.zeros_like(x) for k in none}

    def run(x, stored):
        return (2 * chain.run(p, x, Replay(stored)) - 1).item()

    offset = run(x, silent)
    slope = run(x + 0.5, silent) - offset
    reach = np.array([run(x, silent | {(k, 0): torch.ones_like(x)}) - offset for k in none])
    assert offset == pytest.approx(b[0], abs=3e-6)
    assert slope == pytest.approx(A[0], abs=3e-6)
    np.testing.assert_allclose(reach, c, rtol=0, atol=3e-6)
    assert slope * DATA_MEAN + offset == pytest.approx(A[0] * DATA_MEAN + b[0], abs=3e-6)
    assert (slope * DATA_STD) ** 2 + (reach**2).sum() == pytest.approx((A[0] * DATA_STD) ** 2 + (c**2).sum(), abs=1e-5)
    gradient = chain.vjp(p, X, NOISE, torch.ones_like(X))[1]
    np.testing.assert_allclose(gradient, np.full(SHAPE, slope), rtol=1e-9)


@pytest.mark.parametrize("case", ["ode", "ddpm small", "ddpm large", "ddpm learned"])
def test_gaussian_data_stay_what_they_are(case):
    """Diffusing and coming back maps the data distribution to itself, up to the size of the steps."""
    rows = Noise(0, "data", (), range(200), [0] * 200)
    x = 0.5 + (DATA_MEAN + DATA_STD * rows.normal(0, torch.zeros(200, 1, 8, 8, dtype=torch.float64))) / 2
    out = 2 * chain.run(CASES[case][0], x, Noise(2, "judge", (), range(200), [0] * 200)) - 1
    assert abs(out.mean() - DATA_MEAN) < 0.015
    assert abs(out.std() - DATA_STD) < 0.015


def test_clipping_is_of_the_predicted_clean_image():
    p = diffpure_ddpm(LEARNED, t=0.02, variance="learned", clip=True)
    wide = 3 * X - 1
    expected = ancestral(2 * wide.numpy() - 1, draws(20), 0.02, "learned", clip=True)
    seen, out = path(p, wide, NOISE)
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-10)
    assert (out.min().item(), out.max().item()) == pytest.approx((0, 1), abs=1e-12)
    assert np.abs(seen[-2]).max() > 1  # a state before the last is not clipped
    free = chain.run(diffpure_ddpm(LEARNED, t=0.02, variance="learned", clip=False), wide, NOISE)
    assert free.max() > 1


def test_the_odes_network_is_called_at_torchdiffeqs_times():
    """A fixed grid, not an accumulated one: the last call is at 0.001 exactly enough, where the SDE's is at 0.0010013."""
    asked = []

    class Clock(VPScore):
        def __init__(self):
            pass

        def score(self, x, t):
            asked.append(t)
            return torch.zeros_like(x)

    p = diffpure_ode(Clock())
    chain.run(p, X, NOISE)
    np.testing.assert_allclose(asked, 0.1 - np.arange(100) / 1000, rtol=0, atol=1e-8)
    assert p.times[-1] == 1 - 1e-5
    assert min(np.diff(p.times)) > 0


def test_langevin_starts_at_the_image_and_asks_at_one_time():
    asked = []

    class Clock(VPScore):
        def __init__(self):
            pass

        def score(self, x, t):
            asked.append(t)
            return torch.zeros_like(x)

    p = diffpure_ld(Clock())
    assert torch.equal(p.start(X, Replay({}))[0], 2 * X - 1)  # no forward noise
    chain.run(p, X, NOISE)
    assert asked == [0.01] * 10
    assert not hasattr(p, "drift")  # torchsde's adjoint would lose the anchor


# ------------------------------------------------------------------------------------------------------------- gradients

ROWS = 4
SMALL = (ROWS, 1, 4, 4)
LITTLE = torch.rand(SMALL, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
V = torch.randn(SMALL, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Doubled(nn.Module):
    """A U-Net's output, and a function of it as the learned variance."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        eps = self.network(x, labels)
        return torch.cat([eps, torch.tanh(eps.flip(-1) + x)], 1)


VP, INDEX = VPScore(smooth_unet(), SMALL[1:]), IndexScore(Doubled(smooth_unet()), SMALL[1:])
NONLINEAR = {
    "ode": diffpure_ode(VP, t=0.12, steps=6),
    "ld": diffpure_ld(VP, t=0.12, steps=6),
    "ddpm learned": diffpure_ddpm(INDEX, t=0.008, variance="learned", clip=False),
    "ddpm clipped": diffpure_ddpm(INDEX, t=0.008, variance="learned", clip=True),
    "ddpm large": diffpure_ddpm(VP, t=0.008, variance="fixedlarge", clip=False),
}


@pytest.mark.parametrize("case", NONLINEAR)
def test_gradient_is_the_central_difference(case):
    assert slope_error(NONLINEAR[case], LITTLE, V, NOISE) < 1e-6


def test_the_ode_has_an_adjoint():
    p = CASES["ode"][0]
    out, grad = adjoint.vjp(p, X, NOISE, torch.ones_like(X))
    exact, slope = chain.vjp(p, X, NOISE, torch.ones_like(X))
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(grad, slope, rtol=0.1, atol=0)


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: diffpure_ode(SCORE, t=0), "it needs 0.001 <= t <= 1"),
        (lambda: diffpure_ode(SCORE, t=1.01), "it needs 0.001 <= t <= 1"),
        (lambda: diffpure_ode(SCORE, steps=0), "`steps=0` is not possible"),
        (lambda: diffpure_ode(SCORE, t=0.0004, steps=1), "it needs 0.001 <= t"),
        (lambda: diffpure_ode(SCORE, t=0.1004), "`t=0.1004` is not a multiple of 0.001"),
        (lambda: diffpure_ld(SCORE, t=0), "it needs 0 < t <= 1"),
        (lambda: diffpure_ld(SCORE, t=math.nan), "outside its range"),
        (lambda: diffpure_ld(SCORE, steps=0), "`steps=0` is not possible"),
        (lambda: diffpure_ld(SCORE, sigma2=0), "it needs sigma2 > 0"),
        (lambda: diffpure_ld(SCORE, lambda_ld=-1), "it needs lambda_ld > 0"),
        (lambda: diffpure_ld(SCORE, eta=-1), "eta=-1 is not possible: it needs eta >= 0"),
        (lambda: diffpure_ddpm(SCORE, t=0), "it needs 0.001 <= t <= 1"),
        (lambda: diffpure_ddpm(SCORE, t=1.5), "it needs 0.001 <= t <= 1"),
        (lambda: diffpure_ddpm(SCORE, t=0.0014), "not a multiple of 0.001"),
        (lambda: diffpure_ddpm(SCORE, t=0.1 + 2e-9), "not a multiple of 0.001"),
        (lambda: diffpure_ddpm(SCORE, variance="fixedsmal"), "unknown variance of `diffpure-ddpm` `fixedsmal`"),
        (lambda: diffpure_ddpm(SCORE, variance="learned"), "needs a score model that learned its variances"),
    ],
)
def test_impossible_parameters_are_refused(made, message):
    with pytest.raises(UserError, match=message) as error:
        made()
    assert error.value.hint


# -------------------------------------------------------------------------------------------------- literals of a fresh clone

ADM = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "4"}
ADM |= {"resblock_updown": True, "num_head_channels": 16, "learn_sigma": True}
LITERALS = {
    "ode": [0.1088374409, 0.5431263554, 0.6361857667],
    "ld": [-0.02660639473, 0.3561720767, 0.7920249057],
    "ddpm learned": [0.01167046033, 0.3103289282, 0.7668999038],
    "ddpm small": [0.01213319497, 0.3092173074, 0.766618226],
}


@pytest.mark.parametrize("case", LITERALS)
def test_golden_literals(case):
    """If this fails, results recorded before differ from new ones: raise the component's `version`."""
    score = IndexScore(filled(build("adm", ADM)).double(), (3, 8, 8))
    p = {
        "ode": lambda: diffpure_ode(score, t=0.1, steps=5),
        "ld": lambda: diffpure_ld(score, steps=5),
        "ddpm learned": lambda: diffpure_ddpm(score, t=0.006, variance="learned", clip=True),
        "ddpm small": lambda: diffpure_ddpm(score, t=0.006, variance="fixedsmall", clip=False),
    }[case]()
    x = torch.linspace(0, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8)
    out = chain.run(p, x, Noise(3, "judge", (), [0, 1], [0, 0]))
    assert out.flatten()[[0, 100, 300]].tolist() == pytest.approx(LITERALS[case], rel=1e-6)


# ----------------------------------------------------------------------------------------- the published code's own numbers


def replay(file):
    return Replay({(k, 0): z for k, z in enumerate(file.get("noise", ()))} | {(-1, 0): file["eps_forward"]})


@pytest.mark.parametrize("steps", [5, 100])
def test_published_ode_runs(steps, deviation):
    file = recorded("score_sde/traj_ode.npz")
    score = VPScore(published("ddpmpp", "score_sde/ddpmpp_tinyB.npz")[0], (3, 32, 32))
    p = diffpure_ode(score, t=steps / 1000, steps=steps)
    out = 2 * chain.run(p, file["x01"], replay(file)) - 1
    deviation(f"diffpure ode t{steps}: result", apart(out, file[f"x_final_t{steps}"]), 1e-5)


def test_published_guided_diffusion_runs(deviation):
    file = recorded("score_sde/traj_adm_tiny.npz")
    score = IndexScore(published("adm", "score_sde/adm_tiny.npz")[0], (3, 32, 32))
    p = diffpure_ddpm(score, t=0.005, variance="learned", clip=True)
    seen, out = states(p, file["x01"], replay(file))
    for k, state in enumerate(file["ddpm_x_at_step"]):
        deviation("diffpure ddpm, ADM: states", apart(seen[k], state), 1e-5)
    deviation("diffpure ddpm, ADM: result", apart(2 * out - 1, file["ddpm_x_final"]), 1e-5)

    sde = diffpure(score, t=0.005, steps=5)
    assert sde.times == [*map(float, file["sde_s_grid"][:, 0]), float(file["sde_s_grid"][-1, 1])]
    out = 2 * chain.run(sde, file["x01"], replay(file)) - 1
    deviation("diffpure sde, ADM: result", apart(out, file["sde_x_final"]), 1e-5)


def test_published_celebahq_ddpm_run(deviation):
    file = recorded("score_sde/traj_celeba_ddpm_tiny.npz")
    score = IndexScore(published("ddpm", "score_sde/ddpm_celeba_tiny.npz")[0], (3, 16, 16))
    p = diffpure_ddpm(score, t=0.005, variance="fixedsmall", clip=False)
    out = 2 * chain.run(p, file["x01"], replay(file)) - 1
    deviation("diffpure ddpm, CelebA-HQ: result", apart(out, file["x_final"]), 1e-5)
