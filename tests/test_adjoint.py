"""torchsde's adjoint on the chain's own Brownian path: the forward pass, the bridges, and the gradient it is and is not."""

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde
from torch import nn

from purebench import embedded
from purebench.engine import adjoint, chain
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.networks.small import SmallUNet
from purebench.purifiers import make
from purebench.scores.vp import VPScore

torch.set_num_threads(1)
ROWS = 3
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)


class Gaussian(nn.Module):
    """Exact noise predictor of data ~ N(0.2, 1): a linear drift."""

    def forward(self, x, labels):
        t = (labels.double() / 999)[:, None, None, None]
        abar = torch.exp(-0.1 * t - 9.95 * t**2)
        return ((1 - abar).sqrt() * (x - abar.sqrt() * 0.2)).to(x.dtype)


def unet():
    torch.manual_seed(0)
    network = SmallUNet(channels=1, base=4, mult=(1, 2)).eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network.requires_grad_(False)


def classifier():
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5))
    for p in layers.parameters():
        nn.init.normal_(p, std=0.8)
    return layers.requires_grad_(False)


UNET, LINEAR, CLASSIFIER = VPScore(unet(), (1, 4, 4)), VPScore(Gaussian(), (1, 4, 4)), classifier()
X = torch.rand(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(2))
V = torch.randn(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(3))
NAMES = ["diffpure", "reverse-sde", "coup"]


def build(name, score=UNET, **parameters):
    return make(name, score=score, classifier=CLASSIFIER, **parameters)


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(1), b.flatten(1))


# --------------------------------------------------------------------------------------------------------------- forward


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("t", "steps"), [(0.1, 10), (0.1, 1), (0.15, 30), (0.05, 389)], ids=str)
def test_forward_is_that_of_the_chain(name, t, steps):
    """389 steps: torchsde's float32 times need one step more, which the bridge has to serve."""
    p = build(name, score=LINEAR if steps > 100 else UNET, t=t, steps=steps)
    out, grad = adjoint.vjp(p, X, NOISE, V)
    assert (out - chain.run(p, X, NOISE)).abs().max() < (1e-6 if steps < 100 else 1e-4)
    assert out.shape == grad.shape == X.shape
    assert not out.requires_grad
    assert not grad.requires_grad
    assert grad.isfinite().all()


@pytest.mark.parametrize(("t", "steps"), [(0.1, 100), (0.1, 7), (0.15, 150), (0.3, 20), (1.0, 50)], ids=str)
def test_the_chains_times_are_torchsdes(t, steps):
    """Seen by a torchsde forward solve of its own."""
    times = []

    class Clock(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, s, x):
            times.append(float(s))
            return torch.zeros_like(x)

        g = f

    p = build("reverse-sde", score=LINEAR, t=t, steps=steps)
    ends = torch.tensor([1 - t, 1 - 1e-5], dtype=torch.float32)
    with torch.no_grad():
        torchsde.sdeint(Clock(), torch.zeros(1, 1), ends, method="euler", dt=t / steps)
    seen = sorted(set(times))
    assert seen == p.times[:-1]


# --------------------------------------------------------------------------------------------------------------- the path


def brownian(steps=10, ids=range(ROWS), shape=(1, 4, 4), dtype=torch.float32, t=0.1):
    p = build("reverse-sde", score=LINEAR, t=t, steps=steps)
    like = torch.zeros(len(ids), *shape, dtype=dtype)
    noise = Noise(5, "attack", (), ids, [0] * len(ids))
    return p.times, adjoint.ChainBrownian(p.times, like, noise), noise, like


def test_increments_over_the_grid_are_the_chains_draws_exactly():
    times, bm, noise, like = brownian(100)
    assert (bm.shape, bm.dtype, bm.device) == ((ROWS, 16), like.dtype, like.device)  # torchsde's Brownian interface
    bm(times[3] + 1e-4, times[7] + 2e-4)  # bridges drawn before change nothing
    for k, (a, b) in enumerate(pairwise(times)):
        assert torch.equal(bm(torch.tensor(a), torch.tensor(b)), (math.sqrt(b - a) * noise.normal(k, like)).flatten(1))
        assert not bm(a, a).any()


def test_increments_add_up_whatever_lies_between():
    times, bm, *_ = brownian(10, dtype=torch.float64)
    points = [times[0], times[0] + 0.003, times[1], times[1] + 0.001, times[4] + 0.007, times[4] + 0.0071, times[-1]]
    for a, b, c in zip(points, points[1:], points[2:], strict=False):
        assert torch.allclose(bm(a, b) + bm(b, c), bm(a, c), rtol=0, atol=1e-14)
    whole = sum(bm(a, b) for a, b in pairwise(times))
    assert torch.allclose(bm(times[0], times[-1]), whole, rtol=0, atol=1e-14)
    assert torch.equal(bm(times[0] - 1, times[-1] + 1), bm(times[0], times[-1]))  # constant beyond the ends


def test_the_path_is_a_function_of_image_and_key():
    asked = [(0.9004, 0.9101), (0.9306, 0.9404), (0.9302, 0.9306)]
    _, first, *_ = brownian()
    _, second, *_ = brownian()
    _, alone, *_ = brownian(ids=[2])
    for a, b in asked:
        assert torch.equal(first(a, b), second(a, b))
        assert torch.equal(first(a, b), first(a, b))
        assert torch.equal(first(a, b)[2:], alone(a, b))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_interior_values_are_a_brownian_bridge(share):
    """Given the ends: mean by linear interpolation, variance (s-a)(b-s)/(b-a), normal, independent from step to step."""
    times, bm, *_ = brownian(10, ids=range(2000), dtype=torch.float64)
    residues = []
    for k in (0, 4):
        a, b = times[k], times[k + 1]
        s = a + share * (b - a)
        variance = (s - a) * (b - s) / (b - a)
        z = ((bm(a, s) - share * bm(a, b)) / math.sqrt(variance)).flatten()
        assert abs(z.mean()) < 4 / len(z) ** 0.5
        assert abs(z.var() - 1) < 4 * (2 / len(z)) ** 0.5
        assert abs((z**4).mean() - 3) < 4 * (96 / len(z)) ** 0.5
        assert abs(torch.corrcoef(torch.stack([z, bm(a, b).flatten()]))[0, 1]) < 4 / len(z) ** 0.5
        residues.append(z)
    assert abs(torch.corrcoef(torch.stack(residues))[0, 1]) < 4 / len(z) ** 0.5


def test_several_times_within_one_step_are_one_path():
    """Increments between them are independent, with the variance of their length, in whatever order they were asked for."""
    times, bm, *_ = brownian(10, ids=range(2000), dtype=torch.float64)
    a, b = times[2], times[3]
    points = [a + share * (b - a) for share in (0.0, 0.3, 0.35, 0.7, 1.0)]
    for i in (3, 1, 2):
        bm(a, points[i])
    steps = torch.stack([bm(s, t).flatten() / math.sqrt(t - s) for s, t in pairwise(points)])
    assert torch.allclose(torch.cov(steps), torch.eye(4, dtype=torch.float64), atol=4.5 * (2 / steps.shape[1]) ** 0.5)


# ------------------------------------------------------------------------------------------------------------ the gradient


@pytest.mark.parametrize("name", ["diffpure", "reverse-sde"])
def test_on_a_linear_drift_the_adjoint_is_close_to_exact_and_converges(name):
    errors = []
    for steps in (10, 40, 160):
        p = build(name, score=LINEAR, steps=steps)
        exact = chain.vjp(p, X, NOISE, V)[1]
        grad = adjoint.vjp(p, X, NOISE, V)[1]
        assert cosine(grad, exact).min() > 0.99
        errors.append(((grad - exact).norm() / exact.norm()).item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0  # first order in the step


def test_the_adjoint_of_a_linear_drift_in_closed_form():
    """d a / d s = -beta (1/2 - 1/v) a backwards from the end, on a grid that starts there: products of right-end slopes."""
    p = build("reverse-sde", score=LINEAR, steps=20)
    s, dt, slope = np.float32(1 - 1e-5), np.float32(0.1 / 20), 1.0
    while s > np.float32(0.9):
        before = max(s - dt, np.float32(0.9))
        t = 1 - float(s)
        slope *= 1 + float(s - before) * (0.1 + 19.9 * t) * (0.5 - 1.0)  # the variance of data ~ N(0.2, 1) is always 1
        s = before
    assert torch.allclose(adjoint.vjp(p, X, NOISE, V)[1], slope * V, rtol=2e-5)


def test_coups_guidance_is_constant_by_default_and_differentiated_on_demand():
    p = build("coup", score=LINEAR, steps=40, guidance=4.0, t=0.3)
    published, exact = (adjoint.vjp(p, X, NOISE, V, guidance=g)[1] for g in ("detached", "exact"))
    assert torch.equal(adjoint.vjp(p, X, NOISE, V)[1], published)
    assert ((published - exact).norm() / exact.norm()) > 0.01
    assert cosine(exact, chain.vjp(p, X, NOISE, V)[1]).min() > 0.99
    with chain.detached():
        assert cosine(published, chain.vjp(p, X, NOISE, V)[1]).min() > 0.99
    right = (exact - chain.vjp(p, X, NOISE, V)[1]).norm()
    wrong = (published - chain.vjp(p, X, NOISE, V)[1]).norm()
    assert right < wrong
    with pytest.raises(UserError, match="unknown guidance `exakt`"):
        adjoint.vjp(p, X, NOISE, V, guidance="exakt")


def test_on_a_network_it_is_not_the_gradient_of_the_path():
    p = build("diffpure", steps=10)
    grad = adjoint.vjp(p, X, NOISE, V)[1]
    exact = chain.vjp(p, X, NOISE, V)[1]
    assert (grad - exact).norm() / exact.norm() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_it_is_deterministic_and_rows_are_independent(name):
    p = build(name, steps=8)
    out, grad = adjoint.vjp(p, X, NOISE, V)
    torch.manual_seed(99)  # no global generator takes part
    again, other = adjoint.vjp(p, X, NOISE, V)
    assert torch.equal(out, again)
    assert torch.equal(grad, other)
    part, some = adjoint.vjp(p, X[[2, 0]], NOISE.rows([2, 0], [0, 0]), V[[2, 0]])
    assert torch.allclose(part, out[[2, 0]], atol=1e-6)
    assert torch.allclose(some, grad[[2, 0]], atol=1e-5)
    assert not torch.equal(adjoint.vjp(p, X, NOISE.fork("other"), V)[1], grad)


def test_the_cotangent_may_be_a_function_of_the_purified_images():
    p = build("diffpure", steps=5)
    out, grad = adjoint.vjp(p, X, NOISE, lambda purified: V * purified)
    assert torch.equal(grad, adjoint.vjp(p, X, NOISE, V * out)[1])


def test_clamped_pixels_have_no_gradient():
    p = build("coup", score=LINEAR, steps=8, clamp=True)
    wide = 3 * X - 1
    grad = adjoint.vjp(p, wide, NOISE, V)[1]
    outside = (wide < 0) | (wide > 1)
    assert outside.any()
    assert not grad[outside].any()


def test_it_runs_inside_no_grad():
    p = build("coup", steps=5)
    with torch.no_grad():
        assert torch.equal(adjoint.vjp(p, X, NOISE, V)[1], adjoint.vjp(p, X, NOISE, V)[1])


LITERALS = [-0.06888814, 0.9401683, -0.2437685]


def test_golden_literals():
    p = build("diffpure", score=LINEAR, steps=20)
    grad = adjoint.vjp(p, X, NOISE, V)[1]
    assert grad.flatten()[[0, 20, 40]].tolist() == pytest.approx(LITERALS, rel=1e-4)


def test_the_guidance_stays_constant_on_autograds_own_thread():
    """For a GPU, autograd calls torchsde's backward, and so the drift, on a thread whose context variables are unset."""
    p = build("coup", guidance=5.0)
    start = p.start(X, NOISE).flatten(1)

    def pull(sde):
        x = start.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(sde.f(torch.tensor(p.times[0]), x).sum(), x)[0]

    with chain.detached(), chain.nfe() as calls:
        sde = adjoint._SDE(p, X.shape[1:])
        here = pull(sde)
        before, found = calls.forward, []
        thread = threading.Thread(target=lambda: found.append(pull(sde)))
        thread.start()
        thread.join()
    exact = pull(adjoint._SDE(p, X.shape[1:]))
    assert torch.equal(found[0], here)
    assert not torch.allclose(here, exact)
    assert calls.forward == 2 * before


def test_the_adjoint_sees_the_size_of_the_score_model():
    """Where images are resized around a purifier, the state has another size than they."""
    from purebench.purifiers.resized import Resized

    score = VPScore(embedded.load("digits-score"), (1, 8, 8))
    inner = make("diffpure", score=score, t=0.1, steps=4)
    x, noise = torch.rand(2, 1, 12, 12), Noise(0, "judge", (), range(2), [0, 0])
    purified, grad = adjoint.vjp(Resized(inner, (12, 12), (8, 8)), x, noise, torch.ones_like(x))
    assert purified.shape == grad.shape == x.shape
    torch.testing.assert_close(purified, chain.run(Resized(inner, (12, 12), (8, 8)), x, noise), atol=1e-5, rtol=0)
