"""GDMP's ImageNet form: 250 of the 1000 steps, learned variances, an anchor without noise."""

import math

import numpy as np
import pytest
import torch
from helpers import maker

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers.ancestral import schedule
from purebench.scores.views import discrete
from purebench.scores.vp import IndexScore, VPScore

torch.set_num_threads(1)
gdmp = maker("gdmp")
X = torch.rand(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = Noise(3, "judge", (), range(3), [0] * 3)


class Network(torch.nn.Module):
    """(eps, v), smooth in x and in the step; remembers the steps that it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x, i):
        self.asked.append(int(i[0]))
        return torch.cat([torch.tanh(x * (1 + i.view(-1, 1, 1, 1) / 1000)), torch.sin(3 * x)], dim=1)


def model():
    return IndexScore(Network(), (3, 16, 16))


def test_the_steps_kept_are_those_of_guided_diffusion():
    """Its rule: strides of 999 / 249, each position rounded; and variances that make the shorter chain the same diffusion."""
    kept, position = [], 0.0
    for _ in range(250):
        kept.append(round(position))
        position += 999 / 249
    s = schedule(250)
    assert s.index.tolist() == kept
    assert s.index[:4].tolist() == [0, 4, 8, 12]
    np.testing.assert_array_equal(s.abar, discrete()[kept])
    np.testing.assert_allclose(np.cumprod(1 - np.exp(s.log_beta)), s.abar, rtol=1e-12)
    np.testing.assert_array_equal(schedule().index, np.arange(1000))


def by_hand(x, t, guidance, scale, ptb, batch):
    """The official loop, written out with q's coefficients by Bayes' rule for Gaussians."""
    network, s = Network(), schedule(250)
    anchor = u = 2 * x - 1
    first = s.abar[t - 1]
    u = math.sqrt(first) * u + math.sqrt(1 - first) * NOISE.normal(0, x, draw=2)
    for k, i in enumerate(range(t - 1, -1, -1)):
        abar, before = s.abar[i], s.abar[i - 1] if i else 1.0
        beta = 1 - abar / before
        eps, v = network(u, torch.full((len(x),), float(s.index[i]), dtype=x.dtype)).chunk(2, dim=1)
        x_0 = ((u - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
        precision = (1 / (1 - before) if i else math.inf) + (1 - beta) / beta
        mean = x_0 if not i else (math.sqrt(before) / (1 - before) * x_0 + math.sqrt(1 - beta) / beta * u) / precision
        small = (
            math.log(1 / precision)
            if i
            else math.log(s.abar[1] and (1 - s.abar[1] / s.abar[0]) * (1 - s.abar[0]) / (1 - s.abar[1]))
        )
        log_variance = (v + 1) / 2 * math.log(beta) + (1 - (v + 1) / 2) * small
        if guidance:
            strength = math.sqrt(1 - abar) / (2 * ptb / 255 / 3 / scale * math.sqrt(abar)) / batch
            mean = mean + log_variance.exp() * strength * -2 * (u - anchor) / u[0].numel()
        u = mean + (log_variance / 2).exp() * NOISE.normal(k, x) * (i > 0)
    return ((u + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("guidance", ["none", "mse"])
def test_a_pass_is_the_official_loop(guidance):
    p = gdmp(
        model(), t=5, passes=1, guidance=guidance, scale=1000.0, ptb=4.0, variant="code", batch=60, form="imagenet"
    )
    expected = by_hand(X, 5, guidance == "mse", 1000.0, 4.0, 60)
    torch.testing.assert_close(chain.run(p, X, NOISE), expected, rtol=1e-11, atol=1e-11)
    assert p.score_model.network.asked == [16, 12, 8, 4, 0]


@pytest.mark.parametrize("guidance", ["none", "mse", "ssim"])
def test_the_gradient_is_autograd_and_the_central_difference(guidance):
    p = gdmp(model(), t=4, passes=2, guidance=guidance, scale=10.0, ptb=4.0, form="imagenet")
    v = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = X.clone().requires_grad_()
    state = p.start(x, NOISE)
    for k in range(p.n):
        state = p.step(k, state, NOISE)
    (expected,) = torch.autograd.grad(p.finish(state), x, v)
    _, found = chain.vjp(p, X, NOISE, v)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    h = 1e-7  # far from the clips' kinks
    there, back = (chain.run(p, X + s * h * direction, NOISE) for s in (1, -1))
    difference = ((there - back) * v).sum() / (2 * h)
    assert abs(difference - (found * direction).sum()) <= 1e-5 * abs(difference)


def test_what_it_cannot_run_on_is_refused():
    with pytest.raises(UserError, match="learned its variances"):
        gdmp(VPScore(Network(), (3, 16, 16)), form="imagenet")
    with pytest.raises(UserError, match="t=251, form=imagenet is not possible: it needs t <= 250"):
        gdmp(model(), t=251, form="imagenet")


def test_golden_literal():
    """Raise INFO's version when this changes."""
    p = gdmp(model(), t=4, passes=2, guidance="mse", scale=10.0, ptb=4.0, form="imagenet")
    assert chain.run(p, X, NOISE).sum().item() == pytest.approx(1148.8143510170687, abs=1e-9)


@pytest.mark.parametrize("guidance", ["mse", "ssim"])
@pytest.mark.parametrize("form", ["cifar10", "imagenet"])
def test_without_a_scale_both_variants_have_the_published_strength(form, guidance):
    code, paper = (
        gdmp(model(), guidance=guidance, variant=v, form=form, batch=b).scale for v, b in (("code", 100), ("paper", 1))
    )
    published = {"cifar10": {"mse": 600, "ssim": 10}, "imagenet": {"mse": 1000 / 60, "ssim": 1000 / 60}}[form][guidance]
    assert paper == pytest.approx(published * 3 * 255 / 16)
    assert code == pytest.approx(paper * (1 if form == "cifar10" else 0.6))  # batches of 60 there
