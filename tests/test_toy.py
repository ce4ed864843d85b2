"""The toy of COUP's Figure 3b: guidance by a good classifier prevents label flips, by a bad one it makes more."""

import pytest
import torch
from PIL import Image

from purebench.purifiers import make
from purebench.report import toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def flips():
    """{(guidance, classifier noise): probability}: all on the same images and the same noise, so that differences are paired."""
    return {(g, c): toy.flip_probability(g, c, n=400, seed=1) for c in (0.0, 0.3) for g in (0.0, 2.0, 8.0)}


def test_guidance_helps_where_the_classifier_is_good(flips):
    assert flips[8.0, 0.0] < flips[2.0, 0.0] - 0.01
    assert flips[2.0, 0.0] < flips[0.0, 0.0] - 0.01
    assert flips[8.0, 0.0] < 0.7 * flips[0.0, 0.0]


def test_guidance_hurts_where_the_classifier_is_bad(flips):
    assert flips[8.0, 0.3] > flips[2.0, 0.3] > flips[0.0, 0.3]
    assert flips[8.0, 0.3] > flips[0.0, 0.3] + 0.01


def test_without_guidance_the_classifier_is_of_no_importance(flips):
    assert flips[0.0, 0.0] == flips[0.0, 0.3]
    assert 0.05 < flips[0.0, 0.0] < 0.25
    assert toy.flip_probability(2.0, 0.3, n=400, seed=1) == flips[2.0, 0.3]  # a function of its arguments
    assert toy.flip_probability(0.0, 0.0, n=400, seed=2) != flips[0.0, 0.0]


def test_the_score_is_the_gradient_of_the_mixtures_log_density():
    score, t = toy.TwoGaussians(), 0.07
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[:, None, None, None].requires_grad_()
    abar = 1 - score.std(t) ** 2
    spread = (abar * toy.STD**2 + 1 - abar) ** 0.5
    means = torch.tensor([-toy.MEAN, toy.MEAN], dtype=torch.float64) * abar**0.5
    density = torch.distributions.Normal(means, spread).log_prob(x.flatten()[:, None]).logsumexp(1)
    (gradient,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(score.score(x.detach(), t), gradient, rtol=1e-9, atol=1e-9)


def test_the_undisplaced_classifier_is_bayes():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None, None, None]
    margin = toy.Logistic(0.0)(u)
    means = torch.tensor([-toy.MEAN, toy.MEAN], dtype=torch.float64)
    joint = torch.distributions.Normal(means, toy.STD).log_prob(2 * u.flatten()[:, None] - 1)
    torch.testing.assert_close(margin[:, 1] - margin[:, 0], joint[:, 1] - joint[:, 0])
    assert make("coup", score=toy.TwoGaussians(), classifier=toy.Logistic(0.1)).n == 100


def test_the_figure_is_drawn(tmp_path):
    curves = {noise: [0.1 + noise * w / 20 for w in toy.WEIGHTS] for noise in toy.NOISES}
    toy.draw(curves).save(tmp_path / "toy.png")
    with Image.open(tmp_path / "toy.png") as image:
        assert image.size == (900, 600)
        seen = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= seen
