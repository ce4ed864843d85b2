"""The views of a score model against each other, on a Gaussian mixture whose score is known in closed form."""

import math

import pytest
import torch
from torch import nn

from purebench.scores.denoisers import DenoiserScore, NCSNScore
from purebench.scores.views import Score, discrete
from purebench.scores.vp import IndexScore, VPScore

MEANS = torch.tensor([[-0.6, 0.2], [0.4, -0.3], [0.1, 0.7]], dtype=torch.float64).view(3, 2, 1, 1)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.15
SIZE = (2, 1, 1)
X = torch.randn(8, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.5


def log_p(x, sigma):
    """log of the mixture smoothed by sigma noise, up to a constant of x: (B,)."""
    width = SPREAD**2 + sigma.view(-1, 1) ** 2
    square = (x[:, None] - MEANS).square().flatten(2).sum(2)
    return torch.logsumexp(WEIGHTS.log() - square / (2 * width) - math.prod(SIZE) / 2 * width.log(), dim=1)


def direction(x, sigma):
    """sigma grad log p(x; sigma); sigma (B,)."""
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_p(leaf, sigma).sum(), leaf, create_graph=torch.is_grad_enabled())
    return sigma.view(-1, 1, 1, 1) * score


class VP(nn.Module):
    """eps at labels 999 t."""

    def forward(self, x, labels):
        t = (labels / 999).tolist()[0]
        sigma = Score.sigma(t)
        return -direction(x * math.sqrt(1 + sigma**2), torch.full((len(x),), sigma, dtype=x.dtype))


class Index(nn.Module):
    """eps at (fractional) indices of the discrete schedule, and a learned variance behind it."""

    def forward(self, x, index):
        log_sigma = torch.from_numpy((1 / discrete() - 1) ** 0.5).log()
        i = float(index[0])
        low = min(int(i), 998)
        sigma = math.exp(log_sigma[low] + (i - low) * (log_sigma[low + 1] - log_sigma[low]))
        eps = -direction(x * math.sqrt(1 + sigma**2), torch.full((len(x),), sigma, dtype=x.dtype))
        return torch.cat([eps, torch.ones_like(eps)], dim=1)


class Denoiser(nn.Module):
    def forward(self, x, sigma):
        return x + sigma.view(-1, 1, 1, 1) * direction(x, sigma)


class Raw(nn.Module):
    """NCSNv2 sees no sigma: exact at the one where it is asked."""

    sigma = 0.3

    def raw(self, x01):
        return direction(2 * x01 - 1, torch.full((len(x01),), self.sigma, dtype=x01.dtype))


MODELS = {
    "vp": VPScore(VP(), SIZE),
    "index": IndexScore(Index(), SIZE),
    "denoiser": DenoiserScore(Denoiser(), SIZE),
}


def exact(x, sigma):
    return direction(x, torch.full((len(x),), sigma, dtype=x.dtype))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sigma", [0.02, 0.25, 0.5, 3.0])
def test_the_denoiser_view_is_the_mixture(name, sigma):
    model = MODELS[name]
    torch.testing.assert_close(model.direction(X, sigma), exact(X, sigma), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.denoise(X, sigma), X + sigma * exact(X, sigma), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "denoiser"])
@pytest.mark.parametrize("t", [0.001, 0.0123, 0.1, 0.5, 1.0])
def test_the_vp_view_is_the_mixture(name, t):
    model, abar = MODELS[name], math.exp(-(0.1 * t + 19.9 / 2 * t * t))
    state = X * math.sqrt(abar) + 0.1
    leaf = state.clone().requires_grad_()
    sigma = torch.full((len(X),), math.sqrt(1 / abar - 1), dtype=X.dtype)
    (score,) = torch.autograd.grad(log_p(leaf / math.sqrt(abar), sigma).sum(), leaf)
    torch.testing.assert_close(model.score(state, t), score, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.eps(state, t), -math.sqrt(1 - abar) * score, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["index", "denoiser"])
@pytest.mark.parametrize("i", [0, 7, 99, 999])
def test_the_view_at_an_index_is_the_mixture(name, i):
    sigma = math.sqrt(1 / discrete()[i] - 1)
    state = X * math.sqrt(discrete()[i])
    torch.testing.assert_close(MODELS[name].eps_index(state, i), -exact(X, sigma), rtol=1e-8, atol=1e-9)


def test_times_become_indices_in_float32_as_published():
    asked = []
    model = IndexScore(nn.Identity(), SIZE)
    model.output = lambda x, i: asked.append(i) or x  # type: ignore[method-assign]
    for t in (0.00499999, 0.005, 0.1, 0.9999, 1.0):
        model.eps(X, t)
    assert asked == [4, 5, 100, 999, 999]


def test_discrete_and_continuous_times_differ_little():
    for i in (74, 99, 124, 149):
        assert abs(Score.sigma_index(i) / Score.sigma((i + 1) / 1000) - 1) < 0.006
    assert [round(Score.sigma_index(i), 3) for i in (29, 49, 99, 124, 199)] == [0.108, 0.173, 0.339, 0.426, 0.719]


def test_ncsnv2_is_exact_at_the_noise_level_that_it_stands_for():
    model = NCSNScore(Raw(), SIZE, 0.02, 100.0)
    torch.testing.assert_close(model.direction(X, 0.3), exact(X, 0.3))
    t = Score.time(0.3)
    state = X * math.sqrt(1 - Score.std(t) ** 2)
    torch.testing.assert_close(model.eps(state, t), -exact(X, 0.3), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_every_view_can_be_differentiated_twice(name):
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(MODELS[name].denoise(x, 0.4).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_sigma_and_time_are_inverse():
    for t in (1e-3, 0.1, 0.7, 1.0):
        assert Score.time(Score.sigma(t)) == pytest.approx(t, rel=1e-12)
