"""Gradual noise scheduling, EDM's sampler and Gaussian smoothing: the published code's recorded runs, closed forms on Gaussian
data, schedules, exact gradients, refusals."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from helpers import asked, close, filled, label, maker, published, recorded, relative, slope_error
from torch import nn

from purebench.engine import chain
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.networks import build
from purebench.purifiers.edm import levels
from purebench.purifiers.gns import indices
from purebench.scores.denoisers import DenoiserScore
from purebench.scores.views import Score, discrete
from purebench.scores.vp import IndexScore, VPScore
from purebench.spec import parse, show

torch.set_num_threads(1)
edm = maker("edm")
gaussian = maker("gaussian")
gns = maker("gns")
one_shot = maker("one-shot")
DATA_MEAN, DATA_STD = 0.3, 0.5  # of Gaussian data, on the [-1,1] scale
SHAPE = (4, 3, 8, 8)
NOISE = Noise(3, "judge", (), range(4), [0] * 4)
X = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Predictor(nn.Module):
    """E[eps | u] of Gaussian data at index i of the discrete schedule."""

    def forward(self, u, i):
        a = torch.as_tensor(ABAR[i.long().numpy()])[:, None, None, None]
        return ((1 - a).sqrt() * (u - a.sqrt() * DATA_MEAN) / (a * DATA_STD**2 + 1 - a)).to(u.dtype)


class Denoiser(nn.Module):
    """E[clean | clean + sigma eps] of Gaussian data."""

    def forward(self, u, sigma):
        s = sigma[:, None, None, None]
        return (DATA_STD**2 * u + s**2 * DATA_MEAN) / (DATA_STD**2 + s**2)


class Recorded(nn.Module):
    """The noise predictor of the recorded runs; smooth and not linear."""

    def forward(self, u, i):
        return 0.6 * torch.tanh(u) + 0.1 * torch.sin(3 * u) + 0.2 * (i[:, None, None, None] / 1000) * u


DISCRETE, DENOISER = IndexScore(Predictor(), SHAPE[1:]), DenoiserScore(Denoiser(), SHAPE[1:])
CURVED = IndexScore(Recorded(), SHAPE[1:])
CASES = {
    "gns": (gns, CURVED, {"stages": (6, 6, 15), "steps": (2, 6, 5)}),
    "gns ddim": (gns, CURVED, {"stages": (10, 40), "steps": (3, 4), "eta": 0.0}),
    "gns half": (gns, CURVED, {"stages": (8,), "eta": 0.5}),
    "edm": (edm, CURVED, {"steps": 7}),
    "edm heun": (edm, CURVED, {"steps": 7, "start": 2, "order": 2}),
    "gaussian": (gaussian, None, {}),
}


def make(case):
    factory, score, parameters = CASES[case]
    return factory(score, **parameters)


# ------------------------------------------------------------------------------------------ the published code's own numbers


def words(text):
    return tuple(map(int, text.split(",")))


PUBLISHED = [  # stages, steps, deepest index of each stage's noise, and its indices, from the published code
    ((30, 50, 125), (1, 1, 5), [29, 49, 124], [[29], [49], [24, 49, 74, 99, 124]]),
    ((200,), (5,), [199], [[39, 79, 119, 159, 199]]),
    ((30, 50, 200), (1, 1, 5), [29, 49, 199], [[29], [49], [39, 79, 119, 159, 199]]),
    ((100,), (20,), [99], [list(range(4, 100, 5))]),
    ((100,), (3,), [99], [[32, 65, 98]]),
    ((30, 125), (30, 125), [29, 124], [list(range(30)), list(range(125))]),
]


@pytest.mark.parametrize(("stages", "steps", "noised", "visited"), PUBLISHED, ids=str)
def test_indices_are_those_of_the_published_code(stages, steps, noised, visited):
    assert [indices(depth, n)[::-1] for depth, n in zip(stages, steps, strict=True)] == visited
    p = gns(DISCRETE, stages=stages, steps=steps)
    down = [i for stage in visited for i in stage[::-1]]
    assert [i for i, _, _ in p.steps] == down
    assert [depth - 1 for _, _, depth in p.steps if depth] == noised
    assert [j for _, j, _ in p.steps] == [j for stage in visited for j in [*stage[::-1][1:], -1]]


@pytest.mark.parametrize("case", ["def_gns", "att_gns", "def_single", "att_imagenet", "t100_s20", "t100_s3"])
def test_published_schedules(case):
    file = recorded("edm/leekim_schedules.json")[case]
    p = gns(DISCRETE, stages=words(file["max_timesteps_arg"]), steps=words(file["num_steps_arg"]))
    starts = [k for k, (_, _, depth) in enumerate(p.steps) if depth] + [p.n]
    assert [p.steps[k][2] - 1 for k in starts[:-1]] == file["forward_index"]
    assert list(np.diff(starts)) == file["n_denoise"]
    for (a, b), theirs in zip(itertools.pairwise(starts), file["seqs"], strict=True):
        ours = [i for i, _, _ in p.steps[a:b]][::-1]
        assert ours == theirs or [*ours[:2], "...", ours[-1]] == theirs


@pytest.mark.parametrize("eta", [1.0, 0.0], ids=["ddpm", "ddim"])
@pytest.mark.parametrize("case", ["def_gns", "att_gns", "def_single", "att_imagenet", "t100_s20", "t100_s3"])
def test_published_process(case, eta, deviation):
    key = f"{case}/{'ddpm' if eta else 'ddim'}"
    file, schedule = recorded("edm/leekim_process.npz"), recorded("edm/leekim_schedules.json")[case]
    if key == "def_gns/ddim":
        pytest.skip("not recorded")
    deviation("gns: abar", relative(file["alpha_bar"], discrete()), 1e-6)
    p = gns(CURVED, stages=words(schedule["max_timesteps_arg"]), steps=words(schedule["num_steps_arg"]), eta=eta)
    draws, stored = iter(file[f"{key}/noise"]), {}
    for k, (_, _, depth) in enumerate(p.steps):
        if depth:
            stored[(k, 1) if k else (-1, 0)] = next(draws)
        stored[k, 0] = next(draws)
    assert next(draws, None) is None
    seen = {}

    def cotangent(purified):
        out = purified.clone().requires_grad_()
        with torch.enable_grad():
            seen["logits"] = out.flatten(1) @ file["W"].T + file["b"]
            seen["ce"] = nn.functional.cross_entropy(seen["logits"], file["y"], reduction="sum")
            return torch.autograd.grad(seen["ce"], out)[0]

    _, grad = chain.vjp(p, file["x"], Replay(stored), cotangent)
    deviation(f"gns {key}: logits", relative(seen["logits"].detach(), file[f"{key}/logits"]), 2e-5)
    deviation(f"gns {key}: cross-entropy", relative(seen["ce"].detach().double(), file[f"{key}/ce_sum"]), 2e-5)
    deviation(f"gns {key}: gradient", relative(grad, file[f"{key}/grad_x"]), 1e-4)


def test_published_edm_multistep(deviation):
    network, _ = published("edm", "edm/tiny_ddpmpp.npz")
    file = recorded("edm/edm_multistep_18_start13.npz")
    p = edm(DenoiserScore(network, (3, 32, 32)), sigma=80.0, steps=18, start=int(file["start"]))
    assert p.n == 5
    deviation("edm multi-step: levels", relative(np.array(p.sigmas), file["t_steps"][13:]), 1e-12)
    out = chain.run(p, file["x_in01"], Replay({(-1, 0): file["eps"][0]}))
    deviation("edm multi-step: result", relative(out, file["out01"]), 1e-5)


# ------------------------------------------------------------------------------------------- gns: closed forms on Gaussian data


def gns_recursion(x, stages, steps, eta, noise):
    """(purified, slope): DDIM's update, and, at eta = 1, DDPM's posterior (Ho et al. 2020, eq. 7), with E[x_0 | u] in closed form."""
    u, slope, k = 2 * x - 1, 1.0, 0
    for number, (depth, n) in enumerate(zip(stages, steps, strict=True)):
        a = ABAR[depth - 1]
        eps = noise.normal(k, u, draw=1) if number else noise.normal(-1, u)
        u, slope = math.sqrt(a) * u + math.sqrt(1 - a) * eps, slope * math.sqrt(a)
        grid = list(range(depth // n, depth + 1, depth // n))[::-1]  # numbers of steps, from 1
        for now, after in zip(grid, [*grid[1:], 0], strict=True):
            a, b = ABAR[now - 1], ABAR[after - 1] if after else 1.0
            gain = math.sqrt(a) * DATA_STD**2 / (a * DATA_STD**2 + 1 - a)
            x0 = DATA_MEAN + gain * (u - math.sqrt(a) * DATA_MEAN)
            if eta == 1:
                beta = 1 - a / b
                of_x0, of_u = math.sqrt(b) * beta / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
                deviation = math.sqrt(beta * (1 - b) / (1 - a))
            else:
                of_u = math.sqrt((1 - b) / (1 - a))
                of_x0, deviation = math.sqrt(b) - of_u * math.sqrt(a), 0.0
            u = of_x0 * x0 + of_u * u + deviation * noise.normal(k, u)
            slope *= of_x0 * gain + of_u
            k += 1
    return (u + 1) / 2, slope


@pytest.mark.parametrize("eta", [1.0, 0.0], ids=["ddpm", "ddim"])
@pytest.mark.parametrize(
    ("stages", "steps"),
    [((30, 50, 125), (1, 1, 5)), ((100,), (3,)), ((1,), (1,)), ((30, 30, 50), (30, 30, 50)), ((1000,), (1000,))],
    ids=str,
)
def test_gns_is_its_recursion(stages, steps, eta):
    p = gns(DISCRETE, stages=stages, steps=steps, eta=eta)
    expected, slope = gns_recursion(X, stages, steps, eta, NOISE)
    out, grad = chain.vjp(p, X, NOISE, V)
    close(out, expected)
    close(grad, slope * V)
    assert p.n == sum(steps)


def test_steps_left_out_are_all_steps():
    full = gns(DISCRETE, stages=(7, 9))
    assert full.steps == gns(DISCRETE, stages=(7, 9), steps=(7, 9)).steps
    assert full.n == 16
    assert gns(DISCRETE).n == 470  # the paper's defense on CIFAR-10


def test_gns_brings_images_to_the_data_in_distribution():
    """Data go over into data: mean and deviation are kept; images from elsewhere move to them, the further the deeper the stage."""
    rows = range(500)
    zero = torch.zeros(500, 1, 6, 6, dtype=torch.float64)
    data = (DATA_MEAN + DATA_STD * Noise(0, "data", (), rows, [0] * 500).normal(0, zero) + 1) / 2
    noise = Noise(2, "judge", (), rows, [0] * 500)
    out = 2 * chain.run(gns(DISCRETE, stages=(50, 100)), data, noise) - 1
    assert abs(out.mean() - DATA_MEAN) < 0.015
    assert abs(out.std() - DATA_STD) < 0.015
    distance = [
        abs((2 * chain.run(gns(DISCRETE, stages=(d,), steps=(10,)), zero - 1, noise) - 1).mean() - DATA_MEAN)
        for d in (50, 200, 500)
    ]
    assert distance[0] > distance[1] > distance[2]


def test_gns_runs_on_score_models_of_every_view():
    """A denoiser that is right for the same data gives the same images: its noise level at index i is sqrt(1/abar_i - 1)."""
    out = chain.run(gns(DISCRETE, stages=(30, 50), steps=(3, 5)), X, NOISE)
    close(chain.run(gns(DENOISER, stages=(30, 50), steps=(3, 5)), X, NOISE), out, 1e-8)


# ------------------------------------------------------------------------------------------------ edm: closed forms, schedule

EDM_GRID = [  # Karras et al.'s 18 levels
    80.0, 57.5859847, 40.7855738, 28.3745846, 19.3524530, 12.9100824, 8.40093531, 5.31519452, 3.25682152,
    1.92333984, 1.08817064, 0.585348123, 0.296442284, 0.139516469, 0.0599473112, 0.0229345184, 0.00752801996, 0.002, 0.0,
]  # fmt: skip


def test_levels_are_those_of_the_published_grid():
    assert levels(80.0, 18) == pytest.approx(EDM_GRID, rel=1e-8)
    assert levels(0.5, 1) == pytest.approx([0.5, 0.0], rel=1e-15)
    assert levels(0.5, 2) == pytest.approx([0.5, 0.002, 0.0])
    assert edm(DENOISER, sigma=80.0, steps=18, start=13).sigmas == pytest.approx(EDM_GRID[13:], rel=1e-8)


def edm_recursion(x, sigmas, order, noise):
    """(purified before the clip, slope) of Karras et al.'s Algorithm 1, on Gaussian data; `order` 1 leaves the correction out."""
    u = 2 * x - 1 + sigmas[0] * noise.normal(-1, x)
    slope = 1.0
    rate = lambda s: s / (DATA_STD**2 + s**2)  # noqa: E731  du/dsigma = rate (u - mean)
    for now, after in itertools.pairwise(sigmas):
        h = after - now
        factor = 1 + h * rate(now)
        if order == 2 and after > 0:
            factor = 1 + h / 2 * (rate(now) + rate(after) * factor)
        u, slope = DATA_MEAN + factor * (u - DATA_MEAN), slope * factor
    return (u + 1) / 2, slope


@pytest.mark.parametrize("order", [1, 2], ids=["euler", "heun"])
@pytest.mark.parametrize(
    ("sigma", "steps", "start"), [(0.5, 1, 0), (0.25, 5, 0), (0.5, 20, 0), (80.0, 18, 13), (80.0, 18, 0), (0.5, 80, 3)]
)
def test_edm_is_its_recursion(sigma, steps, start, order):
    p = edm(DENOISER, sigma=sigma, steps=steps, start=start, order=order)
    expected, slope = edm_recursion(X, levels(sigma, steps)[start:], order, NOISE)
    out, grad = chain.vjp(p, X, NOISE, V)
    close(out, expected.clamp(0, 1))
    close(grad, slope * V * ((expected > 0) & (expected < 1)))


@pytest.mark.parametrize(("order", "error"), [(1, 0.02), (2, 0.0004)], ids=["euler", "heun"])
def test_edm_comes_near_the_exact_flow(order, error):
    """On Gaussian data the flow contracts by std / sqrt(std^2 + sigma^2)."""
    p = edm(DENOISER, steps=40, order=order)
    noisy = 2 * X - 1 + 0.5 * NOISE.normal(-1, X)
    exact = DATA_MEAN + (noisy - DATA_MEAN) * DATA_STD / math.sqrt(DATA_STD**2 + 0.5**2)
    assert relative(chain.run(p, X, NOISE), ((exact + 1) / 2).clamp(0, 1)) < error


def test_one_step_of_edm_is_one_shot():
    for steps in (edm(DENOISER, sigma=0.4, steps=1), edm(DENOISER, sigma=0.4, steps=1, order=2)):
        close(chain.run(steps, X, NOISE), chain.run(one_shot(DENOISER, sigma=0.4), X, NOISE), 1e-13)


def test_edm_stays_within_the_score_models_levels():
    class Narrow(Score):
        sigma_min, sigma_max = 0.02, 1.0

        def direction(self, x, sigma):
            return -x

    assert edm(Narrow(), steps=5).sigmas[-2:] == pytest.approx([0.02, 0.0])
    assert edm(Narrow(), sigma=80.0, steps=18, start=13).n == 5
    with pytest.raises(UserError, match=r"the first level, 80, is above the score model's largest, 1") as error:
        edm(Narrow(), sigma=80.0, steps=18)
    assert "`start`" in error.value.hint


# ------------------------------------------------------------------------------------------------------------------ gaussian


def test_gaussian_adds_noise_on_the_same_scale_as_one_shot():
    out, grad = chain.vjp(gaussian(sigma=0.5), X, NOISE, V)
    close(out, X + 0.25 * NOISE.normal(-1, X))
    assert torch.equal(grad, V)
    assert (out < 0).any()
    assert (out > 1).any()


# ------------------------------------------------------------------------------------------- gradients, draws, parameters


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_central_difference(case):
    assert slope_error(make(case), 0.4 + 0.2 * X, V, NOISE) < 1e-6  # away from the clip


@pytest.mark.parametrize("case", CASES)
def test_every_draw_is_asked_for_once(case):
    found = asked(make(case), X)
    assert len(found) == len(set(found))
    assert len(found) == {"gns": 13, "gns ddim": 2, "gns half": 8}.get(case, 1)


def test_lists_are_written_on_the_command_line_as_they_are_meant():
    part = parse("gns:stages=[30,50,125],steps=[1,1,5]")
    assert str(part) == "gns:stages=[30,50,125],steps=[1,1,5]"
    assert gns(DISCRETE, **dict(part.parameters)).n == 7
    assert show(()) == "[]"
    assert dict(parse("gns:steps=[]").parameters)["steps"] == ()


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        (gns, {"stages": ()}, "not possible"),
        (gns, {"stages": 200}, "is no list"),
        (gns, {"stages": (0, 30)}, "expected a list of whole numbers from 1"),
        (gns, {"stages": (30, -5)}, "from 1"),
        (gns, {"stages": (30, 2.5)}, "whole numbers"),
        (gns, {"stages": (30, 1001)}, "not possible"),
        (gns, {"steps": 5}, "is no list"),
        (gns, {"stages": (30, 50), "steps": (1, 0)}, "from 1"),
        (gns, {"stages": (30, 50), "steps": (1, 1, 5)}, "`steps` is for 3 stages, `stages` names 2"),
        (gns, {"stages": (30, 50), "steps": (31, 5)}, "31 steps are too many for a stage of 30"),
        (gns, {"stages": (100,), "steps": (40,)}, "40 steps do not fit a stage of 100: one index in 2 makes 50"),
        (gns, {"eta": 1.5}, "it needs 0 <= eta <= 1"),
        (gns, {"eta": -0.1}, "it needs 0 <= eta <= 1"),
        (gns, {"eta": math.nan}, "outside"),
        (edm, {"steps": 0}, "not possible"),
        (edm, {"start": -1}, "not possible"),
        (edm, {"steps": 5, "start": 5}, "not possible"),
        (edm, {"sigma": 0.0}, "it needs sigma > 0.002"),
        (edm, {"sigma": 0.0, "steps": 1}, "it needs sigma > 0.002"),
        (edm, {"sigma": 0.001}, "it needs sigma > 0.002"),
        (edm, {"sigma": math.nan}, "outside its range"),
        (edm, {"order": 3}, "order=3 is not possible: it needs 1 <= order <= 2"),
        (edm, {"sigma": 200.0}, "above the score model's largest"),
        (gaussian, {"sigma": 0.0}, "it needs sigma > 0"),
        (gaussian, {"sigma": -1.0}, "it needs sigma > 0"),
        (gaussian, {"sigma": math.nan}, "outside its range"),
    ],
    ids=label,
)
def test_impossible_parameters_are_refused(factory, parameters, message):
    with pytest.raises(UserError, match=message) as error:
        factory(DENOISER, **parameters)
    assert error.value.hint


@pytest.mark.parametrize("depth", [1, 2, 7, 30, 100, 125, 1000])
def test_numbers_of_steps_that_are_proposed_are_accepted(depth):
    for n in range(1, depth + 1):
        try:
            p = gns(DISCRETE, stages=(depth,), steps=(n,))
        except UserError as error:
            for proposed in map(int, re.findall(r"\d+", error.hint)):
                assert gns(DISCRETE, stages=(depth,), steps=(proposed,)).n == proposed
        else:
            assert p.n == n


# -------------------------------------------------------------------------------------------------- literals of a fresh clone

SONG = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}


LITERALS = {  # three values of the result, three of the gradient
    "gns": [0.9668130206, 0.1574413659, 0.6875821658, -0.3323437572, 1.986443396, -0.2685658331],
    "gns ddim": [0.9685162615, 0.2421318736, 0.7643507486, -0.3324660223, 1.922709656, -0.1735456347],
    "gns half": [0.9798723126, 0.1875971237, 0.6762159473, -0.3187689658, 2.436723098, -0.458267683],
    "edm": [0.8518636108, 0.4477188247, 0.8633799598, -0.1916588578, 1.044269499, 0.1755057703],
    "edm heun": [0.9838382242, 0.2129440216, 0.7253182308, -0.3611827003, 2.135242364, -0.3605965184],
    "gaussian": [1.081369772, 0.3745879277, 0.8940807518, -0.3112895542, 2.536894086, -0.5599395838],
}


@pytest.mark.parametrize("case", CASES)
def test_golden_literals(case):
    """If this fails, results recorded before differ from new ones: raise the component's `version`."""
    factory, _, parameters = CASES[case]
    score = DenoiserScore(filled(build("edm", {**SONG, "attn_resolutions": [4]})).double(), SHAPE[1:])
    out, grad = chain.vjp(factory(score, **parameters), X, NOISE, V)
    values = [float(v) for a in (out, grad) for v in a.flatten()[[0, 100, 500]]]
    assert values == pytest.approx(LITERALS[case], rel=1e-6)


def test_vp_networks_serve_too():
    class Any(nn.Module):
        def forward(self, x, label):
            return torch.sin(x + label[:, None, None, None] / 100)

    for p in (gns(VPScore(Any(), SHAPE[1:]), stages=(5,)), edm(VPScore(Any(), SHAPE[1:]), steps=4)):
        assert chain.run(p, X, NOISE).isfinite().all()
