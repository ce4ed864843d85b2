"""GDMP and likelihood maximisation: closed forms, exact gradients with states beyond the image, and GDMP's own published numbers."""

import math

import numpy as np
import pytest
import torch
from helpers import maker, path, recorded, relative, slope_error, smooth_classifier, smooth_unet
from torch import nn

from purebench.engine import chain
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.purifiers.ssim import ssim
from purebench.scores.denoisers import DenoiserScore
from purebench.scores.vp import IndexScore, VPScore

torch.set_num_threads(1)
gdmp = maker("gdmp")
lm, lm_coup = maker("lm"), maker("lm-coup")
BETA = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETA)
ROWS = 4
SHAPE = (ROWS, 1, 4, 4)
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)
X = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
V = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Recorded(nn.Module):
    """The noise model of the recorded runs: linear in the image and in the index."""

    def forward(self, x, i):
        return 0.3 * x + 0.0005 * i[:, None, None, None]


LINEAR = IndexScore(Recorded(), SHAPE[1:])


SCORE, CLASSIFIER = VPScore(smooth_unet(), SHAPE[1:]), smooth_classifier()


# --------------------------------------------------------------------------------------------------- GDMP, written again


def recursion(x, t, passes, strength, clip, noise=NOISE):
    """GDMP of the linear noise model in numpy. `strength`: what multiplies -(x - noisy anchor) / (pixels of one image)."""
    anchor, states = x, [x]
    for k in range(t * passes):
        z, around, fresh = (noise.normal(k, X, draw=d).numpy() for d in range(3))
        i = t - 1 - k % t
        if i == t - 1:
            x = math.sqrt(ABAR[t]) * x + math.sqrt(1 - ABAR[t]) * fresh
        x_0 = (x - math.sqrt(1 - ABAR[i]) * (0.3 * x + 0.0005 * i)) / math.sqrt(ABAR[i])
        x_0 = x_0.clip(-1, 1) if clip else x_0
        before = ABAR[i - 1] if i else 1.0
        mean = (math.sqrt(before) * BETA[i] * x_0 + math.sqrt(1 - BETA[i]) * (1 - before) * x) / (1 - ABAR[i])
        small = BETA[1] * (1 - ABAR[0]) / (1 - ABAR[1])
        variance = BETA[i] if i else small
        noisy = math.sqrt(ABAR[i]) * anchor + math.sqrt(1 - ABAR[i]) * around
        pull = -2 * (x - noisy) / x[0].size * math.sqrt(1 - ABAR[i]) / math.sqrt(ABAR[i])
        x = mean + variance * strength * pull + math.sqrt(variance) * z * (i > 0)
        states.append(x)
    return states


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("guidance", ["mse", "none"])
def test_gdmp_is_its_recursion(variant, guidance):
    p = gdmp(LINEAR, t=7, passes=3, guidance=guidance, scale=900, ptb=4, variant=variant, batch=5)
    strength = 900 * 3 * 255 / (2 * 4) / (5 if variant == "code" else 1) * (guidance == "mse")
    expected = recursion(2 * X.numpy() - 1, 7, 3, strength, clip=True)
    states, out = path(p, X, NOISE)
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(out, ((expected[-1] + 1) / 2).clip(0, 1), rtol=0, atol=1e-10)


def test_unguided_gdmp_of_small_images_is_affine_and_its_jacobian_known():
    """Where no x_0 is clipped: the Jacobian is the product of the steps' slopes, and the closed form of the mean is met."""
    x = 0.5 + (X - 0.5) * 0.1
    t, passes = 3, 2
    p = gdmp(LINEAR, t=t, passes=passes, guidance="none")
    slope = 1.0
    for i in list(range(t - 1, -1, -1)) * passes:
        slope *= math.sqrt(ABAR[t]) if i == t - 1 else 1
        before = ABAR[i - 1] if i else 1.0
        of_x0 = math.sqrt(before) * BETA[i] / (1 - ABAR[i]) * (1 - 0.3 * math.sqrt(1 - ABAR[i])) / math.sqrt(ABAR[i])
        slope *= of_x0 + math.sqrt(1 - BETA[i]) * (1 - before) / (1 - ABAR[i])
    with chain.nfe() as calls:
        states, out = path(p, x, NOISE)
    assert (calls.forward, calls.backward) == (t * passes, 0)
    np.testing.assert_allclose(states, recursion(2 * x.numpy() - 1, t, passes, 0, clip=False), rtol=0, atol=1e-10)
    np.testing.assert_allclose(chain.vjp(p, x, NOISE, V)[1], slope * V.numpy(), rtol=1e-10)
    far = path(p, x + 0.01, NOISE)[1] - out
    np.testing.assert_allclose(far, np.full(SHAPE, slope * 0.01), rtol=1e-9)


def test_the_codes_guidance_is_the_papers_with_a_weaker_scale():
    code = gdmp(SCORE, t=4, passes=2, scale=6000, variant="code", batch=100)
    paper = gdmp(SCORE, t=4, passes=2, scale=60, variant="paper")
    assert torch.allclose(chain.run(code, X, NOISE), chain.run(paper, X, NOISE), rtol=1e-13)


def test_the_anchor_stays_the_original_input():
    p = gdmp(SCORE, t=3, passes=3)
    anchors = []
    chain.run(p, X, NOISE, on_state=lambda _, state: anchors.append(state[1]))
    assert len(anchors) == 10
    assert all(torch.equal(a, 2 * X - 1) for a in anchors)


def test_guidance_keeps_images_near_their_input():
    near = [
        chain.run(gdmp(SCORE, t=40, passes=1, guidance=g, scale=s), X, NOISE)
        for g, s in (("none", 1), ("mse", 100), ("ssim", 100))
    ]
    distance = [(out - X).square().mean().item() for out in near]
    assert distance[1] < distance[0]
    alike = [ssim(2 * out - 1, 2 * X - 1).mean().item() for out in near]
    assert alike[2] > alike[0]


# --------------------------------------------------------------------------------------------------------------- SSIM


def test_ssim_is_the_formula_at_a_pixel():
    a, b = (torch.rand(2, 3, 16, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    bell = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    A, B = (np.pad(v.numpy(), ((0, 0), (0, 0), (5, 5), (5, 5))) for v in (a, b))
    values = np.empty(a.shape)
    for n, c, i, j in np.ndindex(*a.shape):
        u, v = A[n, c, i : i + 11, j : j + 11], B[n, c, i : i + 11, j : j + 11]
        mu, nu = (window * u).sum(), (window * v).sum()
        uu, vv, uv = (window * u * u).sum() - mu**2, (window * v * v).sum() - nu**2, (window * u * v).sum() - mu * nu
        values[n, c, i, j] = (2 * mu * nu + 1e-4) * (2 * uv + 9e-4) / ((mu**2 + nu**2 + 1e-4) * (uu + vv + 9e-4))
    np.testing.assert_allclose(ssim(a, b), values.mean((1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-12)


# -------------------------------------------------------------------------------------------- likelihood maximisation


def test_lm_is_adam_on_the_diffusion_loss():
    """Against torch's own optimiser, plain autograd, and the ball and box by hand."""
    for variant, guidance, high in (("code", 0.0, 0.6), ("paper", 0.0, 0.4), ("paper", 2.0, 0.6), ("paper", 2.0, 0.4)):
        p = lm(SCORE, CLASSIFIER, steps=6, lr=0.1, high=high, eta=0.05, guidance=guidance, variant=variant)
        first = 2 * X - 1
        x = first.clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.1)
        for k in range(6):
            sigma = 0.4 + (high - 0.4) * NOISE.uniform(k, X[:, :1, :1, :1], draw=1)
            eps = NOISE.normal(k, X)
            loss = (SCORE.denoise(x + sigma * eps, sigma) - x).square().mean((1, 2, 3))
            confidence = CLASSIFIER((x + 1) / 2).softmax(1).max(1).values.log()
            optimiser.zero_grad()
            (loss - guidance * 2 * sigma.flatten() ** 2 / 16 * confidence).sum().backward()
            optimiser.step()
            if variant == "paper":
                with torch.no_grad():
                    x.copy_(x.clamp(first - 0.1, first + 0.1))
        out = chain.run(p, X, NOISE)
        assert torch.allclose(out, ((x.detach() + 1) / 2).clamp(0, 1), rtol=0, atol=1e-9)
        assert ((out - X).abs().max() < 0.05 + 1e-12) == (variant == "paper")


class GaussianDenoiser(nn.Module):
    """E[clean | x] of data N(mean, std^2)."""

    mean, std = 0.1, 0.2

    def forward(self, x, sigma):
        s = sigma[:, None, None, None] ** 2
        return (self.std**2 * x + s * self.mean) / (self.std**2 + s)


def test_lm_draws_its_noise_levels_uniformly_and_so_has_the_expected_loss_of_gaussian_data():
    """E ||D - x||^2 = (sigma^2 / (std^2 + sigma^2))^2 |x - mean|^2 + (std^2 sigma / (std^2 + sigma^2))^2 N, over the range of sigma."""
    p, rows = lm(DenoiserScore(GaussianDenoiser(), SHAPE[1:])), 2000
    x, noise = torch.full((rows, 1, 4, 4), 0.5, dtype=torch.float64), Noise(0, "judge", (), range(rows), [0] * rows)
    sigma = torch.stack([p.level(k, x, noise) for k in range(p.n)])
    assert sigma.shape == (5, rows, 1, 1, 1)
    assert sigma.unique().numel() > 0.99 * 5 * rows  # every image and step has its own
    found = np.quantile(sigma, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found, [0.4, 0.45, 0.5, 0.55, 0.6], rtol=0, atol=4e-3)
    loss = torch.stack([p.loss(x, noise.normal(k, x), sigma[k]) for k in range(p.n)])
    s, square = np.linspace(0.4, 0.6, 10001), 0.2**2
    expected = ((s**2 / (square + s**2)) ** 2 * (0.5 - 0.1) ** 2 + (square * s / (square + s**2)) ** 2).mean()
    assert loss.mean().item() == pytest.approx(expected, rel=5e-3)
    assert lm(SCORE, low=0.5, high=0.5).level(0, x, noise) == 0.5  # a number, which every score model takes


def test_lm_descends_the_loss_of_gaussian_data_to_the_mean():
    """E ||D - x||^2 = (sigma^2 / (std^2 + sigma^2))^2 |x - mean|^2 + const: the minimiser is the mean; Adam's first step is lr sign."""
    score = DenoiserScore(GaussianDenoiser(), SHAPE[1:])
    silent = Replay({(k, draw): torch.zeros(()) for k in range(200) for draw in (0, 1)})
    states, out = path(lm(score, steps=200, lr=0.02, variant="code"), X, silent)
    sign = np.sign(0.1 - states[0])
    np.testing.assert_allclose(states[1] - states[0], 0.02 * sign, rtol=1e-4)
    np.testing.assert_allclose(2 * out - 1, np.full(SHAPE, 0.1), atol=5e-3)


def test_guidance_raises_the_confidence():
    confidence = [
        CLASSIFIER(chain.run(lm(SCORE, CLASSIFIER, guidance=g), X, NOISE)).log_softmax(1).amax(1).mean()
        for g in (0.0, 3.0, 100.0)
    ]
    assert confidence[0] < confidence[1] < confidence[2]
    assert torch.equal(
        chain.run(lm_coup(SCORE, CLASSIFIER), X, NOISE), chain.run(lm(SCORE, CLASSIFIER, guidance=1.0), X, NOISE)
    )


def test_a_zero_gradient_gives_a_finite_gradient():
    """A denoiser that gives its input back makes no loss at all where the noise is zero."""

    class Same(nn.Module):
        def forward(self, x, sigma):
            return x + 0.0 * x**2

    p = lm(DenoiserScore(Same(), SHAPE[1:]), steps=3)
    silent = Replay({(k, draw): torch.zeros(()) for k in range(3) for draw in (0, 1)})
    out, grad = chain.vjp(p, X, silent, V)
    torch.testing.assert_close(out, X)
    assert grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- gradients

MADE = {
    "gdmp mse": lambda: gdmp(SCORE, t=3, passes=2, scale=3000),
    "gdmp ssim": lambda: gdmp(SCORE, t=3, passes=2, guidance="ssim", scale=100),
    "gdmp code": lambda: gdmp(SCORE, t=3, passes=2, scale=60000, variant="code"),
    "gdmp none": lambda: gdmp(SCORE, t=3, passes=2, guidance="none"),
    "lm": lambda: lm(SCORE),
    "lm code": lambda: lm(SCORE, variant="code", lr=0.02),
    "lm-coup": lambda: lm_coup(SCORE, CLASSIFIER, eta=0.1, lr=0.03),
}


@pytest.mark.parametrize("case", MADE)
def test_gradient_is_the_central_difference(case):
    assert slope_error(MADE[case](), X, V, NOISE) < 1e-6


@pytest.mark.parametrize("case", ["gdmp mse", "gdmp ssim", "lm", "lm-coup"])
def test_detached_holds_the_inner_gradient_constant(case):
    p = MADE[case]()
    exact = chain.vjp(p, X, NOISE, V)[1]
    with chain.detached():
        constant = chain.vjp(p, X, NOISE, V)[1]
    assert relative(constant, exact) > 1e-5
    if case == "lm":  # all that is left is the identity: a value on the ball's boundary moves with the input, too
        assert torch.allclose(constant, V)


# ------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: gdmp(SCORE, t=0), "`t=0` is not possible for `gdmp`"),
        (lambda: gdmp(SCORE, t=1000), "it needs 1 <= t <= 999"),
        (lambda: gdmp(SCORE, passes=0), "`passes=0` is not possible"),
        (lambda: gdmp(SCORE, guidance="msx"), "unknown guidance"),
        (lambda: gdmp(SCORE, guidance="constant"), "unknown guidance of `gdmp` `constant`"),
        (lambda: gdmp(SCORE, variant="codes"), "unknown variant"),
        (lambda: gdmp(SCORE, scale=-1), "it needs scale >= 0"),
        (lambda: gdmp(SCORE, ptb=-8), "it needs ptb > 0"),
        (lambda: gdmp(SCORE, batch=0), "`batch=0` is not possible for `gdmp`"),
        (lambda: lm(SCORE, steps=0), "`steps=0` is not possible"),
        (lambda: lm(SCORE, lr=0), "it needs lr > 0"),
        (lambda: lm(SCORE, eta=math.nan), "`eta=nan` of `lm` is outside its range"),
        (lambda: lm(SCORE, low=0), "it needs 0 < low <= high"),
        (lambda: lm(SCORE, low=0.7), "low=0.7, high=0.6 is not possible"),
        (lambda: lm(SCORE, guidance=1.0), "needs a classifier"),
        (lambda: lm(SCORE, CLASSIFIER, guidance=-1.0), "it needs guidance >= 0"),
        (lambda: lm(SCORE, variant="adam"), "unknown variant"),
        (lambda: lm_coup(SCORE, None), "needs a classifier"),
    ],
)
def test_impossible_parameters_are_refused(made, message):
    with pytest.raises(UserError, match=message) as error:
        made()
    assert error.value.hint


# -------------------------------------------------------------------------------------------------- literals of a fresh clone

LITERALS = {
    "gdmp mse": [0.042366315426, 0.286975333456, 0.942803707447],
    "gdmp ssim": [0.0410461147098, 0.284513603212, 0.941319530999],
    "gdmp code": [0.042366315426, 0.286975333456, 0.942803707447],
    "gdmp none": [0.0409979375263, 0.284328301149, 0.941230103233],
    "lm": [0.0645317761483, 0.118027621067, 0.863712012058],
    "lm-coup": [0.0334716241775, 0.277176668607, 0.967491390191],
}


def literal(case):
    """On the linear noise model, whose numbers any other implementation can repeat."""
    made = {
        "gdmp mse": lambda: gdmp(LINEAR, t=6, passes=2, scale=600),
        "gdmp ssim": lambda: gdmp(LINEAR, t=6, passes=2, guidance="ssim", scale=10),
        "gdmp code": lambda: gdmp(LINEAR, t=6, passes=2, scale=60000, variant="code"),
        "gdmp none": lambda: gdmp(LINEAR, t=6, passes=2, guidance="none"),
        "lm": lambda: lm(LINEAR, variant="code"),
        "lm-coup": lambda: lm_coup(LINEAR, lambda u: u[:, 0].mean(2) * 4, eta=1.0, lr=0.02),
    }
    x = torch.linspace(0, 1, 32, dtype=torch.float64).view(2, 1, 4, 4)
    return chain.run(made[case](), x, NOISE.rows([0, 1], [0, 0])).flatten()[[1, 10, 29]].tolist()


@pytest.mark.parametrize("case", LITERALS)
def test_golden_literals(case):
    """If this fails, results recorded before differ from new ones: raise the component's `version`."""
    assert literal(case) == pytest.approx(LITERALS[case], rel=1e-8)


# ----------------------------------------------------------------------------------------- the published code's own numbers


@pytest.fixture(scope="module")
def file():
    return recorded("adp/e_gdmp.npz")


@pytest.mark.parametrize(
    ("case", "parameters"),
    [
        ("noguide", {"guidance": "none"}),
        ("mse60000", {"guidance": "mse", "scale": 60000}),
        ("ssim1000", {"guidance": "ssim", "scale": 1000}),
    ],
)
@pytest.mark.parametrize("passes", [1, 2])
def test_published_gdmp_runs(file, case, parameters, passes, deviation):
    p = gdmp(LINEAR, t=6, passes=passes, variant="code", batch=len(file["x"]), **parameters)
    stored, order = {}, iter(file["noise"])
    for k in range(p.n):  # in the published order: a pass's noise; the anchor's, if any; the step's, drawn at i = 0 too
        for draw in [2] * (k % 6 == 0) + [1] * (case != "noguide") + [0]:
            stored[k, draw] = next(order)
    out = chain.run(p, file["x"], Replay(stored))
    deviation(f"gdmp {case}, pass {passes}: images", relative(out, file[f"{case}/images"][passes - 1]), 2e-6)


def test_published_gdmp_constants(file, deviation):
    from purebench.purifiers.ancestral import schedule

    s = schedule()
    deviation("gdmp constants: abar", relative(s.abar, file["alphas_cumprod"]), 1e-12)
    deviation("gdmp constants: log variance", relative(s.log_large, file["logvar_fixedlarge"]), 1e-12)
    deviation("gdmp constants: posterior mean, of x_0", relative(s.of_x0, file["posterior_mean_coef1"]), 1e-12)
    deviation("gdmp constants: posterior mean, of x", relative(s.of_x, file["posterior_mean_coef2"]), 1e-12)
    for name, scale in (("mse60000", 60000), ("ssim1000", 1000)):
        p = gdmp(LINEAR, scale=scale)
        found = relative(p.scale * np.sqrt(1 / s.abar[:100] - 1), file[f"scale_{name}"])
        deviation(f"gdmp constants: scale {name}", found, 1e-12)


def test_published_ssim(file, deviation):
    deviation(
        "gdmp ssim: mean of two images", relative(ssim(file["ssim_a"], file["ssim_b"]).mean(), file["ssim_value"]), 1e-6
    )
