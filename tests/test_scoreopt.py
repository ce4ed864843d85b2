"""ScoreOpt: the published code's recorded runs, an independent loop around torch.optim.Adam, closed forms on Gaussian data, and
the exact gradient through every update of Adam."""

import math
from functools import cache

import pytest
import torch
from helpers import apart, asked, filled, maker, published, recorded, relative, slope_error, states
from torch import nn

from purebench import registry
from purebench.engine import chain
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.networks import build
from purebench.purifiers.adam import root
from purebench.purifiers.scoreopt import ScoreOptN
from purebench.scores.denoisers import DenoiserScore, NCSNScore
from purebench.scores.vp import IndexScore, VPScore

torch.set_num_threads(1)
one_shot = maker("one-shot")
scoreopt_n, scoreopt_o = maker("scoreopt-n"), maker("scoreopt-o")
SONG = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
ROWS = 3
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)
X = torch.rand(ROWS, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
V = torch.randn(ROWS, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
CASES = {  # id -> (factory, parameters)
    "o": (scoreopt_o, {}),
    "o fixed level": (scoreopt_o, {"width": 0.0}),
    "o mse": (scoreopt_o, {"objective": "mse", "weight": 0.5}),
    "o sr": (scoreopt_o, {"objective": "sr"}),
    "o code": (scoreopt_o, {"variant": "code", "batch": ROWS}),
    "o sr code": (scoreopt_o, {"objective": "sr", "variant": "code", "batch": ROWS}),
    "n": (scoreopt_n, {}),
    "n sr": (scoreopt_n, {"objective": "sr", "weight": 0.7}),
    "n outer": (scoreopt_n, {"outer": 3, "width": 0.2}),
    "n sr outer": (scoreopt_n, {"objective": "sr", "weight": 0.7, "outer": 3, "width": 0.2}),
    "n code": (scoreopt_n, {"variant": "code", "batch": ROWS}),
}


@cache
def unet(dtype=torch.float64):
    return DenoiserScore(filled(build("edm", {**SONG, "attn_resolutions": [4]})).to(dtype), (3, 8, 8))


def make(case, steps=3, score=None, **changes):
    factory, parameters = CASES[case]
    return factory(score or unet(), **{"steps": steps, **parameters, **changes})


# ------------------------------------------------------------------------------------------ the published code's own numbers


@pytest.fixture(scope="module")
def tiny():
    return DenoiserScore(published("edm", "edm/tiny_ddpmpp.npz")[0], (3, 32, 32))


def compare(what, p, file, stored, deviation):
    """Against the recorded run: the first gradient, every iterate, the result. m after the first update is (1 - 0.9) g."""
    seen, out = states(p, file["x_in01"], Replay(stored))
    deviation(f"{what}: first gradient", apart(seen[1][1] / 0.1, file["grad"][0]), 1e-6)
    deviation(f"{what}: first gradient, relative", relative(seen[1][1] / 0.1, file["grad"][0]), 1e-4)
    for k, u in enumerate(file["x_traj"]):
        deviation(f"{what}: image after every update", apart(seen[k + 1][0], u), 2e-3)
    deviation(f"{what}: result", apart(out, file["out01"]), 1e-3)


@pytest.mark.parametrize("objective", ["diff", "mse", "sr"])
def test_published_scoreopt_o_runs(tiny, objective, deviation):
    file = recorded(f"edm/traj_O_{objective}_s0.5_n5_lr0.1.npz")
    eps = file["eps"].unflatten(0, (5, -1))  # per step: the noise, and the second one of sr
    stored = {(k, i): eps[k, i] for k in range(5) for i in range(eps.shape[1])}
    stored |= {(k, 2): (file["sigma"][k] - 0.4) / 0.2 for k in range(5)}
    weight = float(file.get("loss_lambda", 1.0))
    p = scoreopt_o(tiny, objective=objective, weight=weight, variant="code", batch=len(file["x_in01"]))
    compare(f"scoreopt-o {objective}", p, file, stored, deviation)


def test_published_scoreopt_n_runs(tiny, deviation):
    file = recorded("edm/traj_N_s0.5_n5_lr0.1.npz")
    p = scoreopt_n(tiny, variant="code", batch=len(file["x_in01"]))
    compare("scoreopt-n", p, file, {(-1, 0): file["eps"][0]}, deviation)


def test_published_one_shot_surrogate(tiny, deviation):
    file = recorded("edm/oneshot_surrogate_s0.25.npz")
    logits = []

    def cotangent(purified):
        out = purified.clone().requires_grad_()
        with torch.enable_grad():
            logits.append(out.flatten(1) @ file["W"].T + file["b"])
            return torch.autograd.grad(nn.functional.cross_entropy(logits[0], file["y"]), out)[0]

    out, grad = chain.vjp(one_shot(tiny, sigma=0.25), file["x_in01"], Replay({(-1, 0): file["eps"][0]}), cotangent)
    deviation("one-shot surrogate: result", apart(out, file["out01"]), 1e-5)
    deviation("one-shot surrogate: logits", apart(logits[0].detach(), file["logits"]), 1e-4)
    deviation("one-shot surrogate: gradient", relative(grad, file["grad_x"]), 1e-4)


# ----------------------------------------------------------------------------------------------- the papers' loops, written again


def spread(noise, k, x, sigma, width, shared=False):
    return sigma + width * (2 * noise.uniform(k, x[:, :1, :1, :1], draw=2, shared=shared).flatten() - 1)


def loop_o(x, noise, steps, objective="diff", weight=1.0, variant="paper", batch=0, width=0.1):
    """Algorithm 1 with torch.optim.Adam: image by image, or, variant=code, on the mean over the batch."""
    network, code = unet().network, variant == "code"
    assert not code or batch == len(x)

    def purify(rows):
        mine = noise.rows(noise.ids[rows], noise.samples[rows])
        start = 2 * x[rows] - 1
        u = start.clone().requires_grad_()
        adam = torch.optim.Adam([u], lr=0.1)
        for k in range(steps):
            sigma = spread(mine, k, u, 0.5, width, shared=code)
            s = sigma[:, None, None, None]
            D = network(u + s * mine.normal(k, u.detach()), sigma)
            loss = nn.functional.mse_loss(D, u)
            if objective == "mse":
                loss = loss + weight * nn.functional.mse_loss(u, start)
            if objective == "sr":
                with torch.no_grad():
                    other = network(start + s * mine.normal(k, start, draw=1), sigma)
                loss = loss + weight * nn.functional.mse_loss(D, other)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return u.detach()

    groups = [list(range(len(x)))] if code else [[i] for i in range(len(x))]
    return ((torch.cat([purify(g) for g in groups]) + 1) / 2).clamp(0, 1)


def loop_n(x, noise, steps, objective="diff", weight=1.0, variant="paper", batch=0, width=0.0, outer=1):
    """Algorithm 2 with torch.optim.Adam; variant=code: ((u - D) / sigma - eps)^2, the mean over the batch."""
    network, code = unet().network, variant == "code"

    def purify(rows):
        mine = noise.rows(noise.ids[rows], noise.samples[rows])
        given, image, key = 2 * x[rows] - 1, 2 * x[rows] - 1, -1
        for _ in range(outer):
            sigma = spread(mine, key, image, 0.5, width)
            s = sigma[:, None, None, None]
            eps = mine.normal(key, image)
            u = (image + s * eps).requires_grad_()
            adam = torch.optim.Adam([u], lr=0.1)
            for j in range(key + 1, key + 1 + steps):
                D = network(u, sigma)
                loss = nn.functional.mse_loss((u - D) / s, eps) if code else nn.functional.mse_loss(D, image)
                if objective == "sr":
                    with torch.no_grad():
                        other = network(
                            given + s * mine.normal(j, given, draw=1), sigma
                        )  # of the input, in every round
                    loss = loss + weight * nn.functional.mse_loss(D, other)
                adam.zero_grad()
                loss.backward()
                adam.step()
            image, key = network(u.detach(), sigma), key + 1 + steps
        return image

    groups = [list(range(len(x)))] if code else [[i] for i in range(len(x))]
    return ((torch.cat([purify(g) for g in groups]) + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 4])
def test_it_is_a_plain_loop_around_torchs_adam(case, steps):
    factory, parameters = CASES[case]
    loop = loop_o if factory is scoreopt_o else loop_n
    out = chain.run(make(case, steps), X, NOISE)
    assert relative(out, loop(X, NOISE, steps, **parameters)) < 1e-9
    assert (out - X).abs().max() > 0.02


class HeldAtTheRound(ScoreOptN):
    """N as its version 1 was: SR held the image of the round."""

    def start(self, x, noise):
        return self.begin(-1, 2 * x - 1, noise)

    def step(self, k, state, noise):
        u, m, v, x = state
        i, j = divmod(k, self.steps + 1)
        begun = i * (self.steps + 1) - 1
        sigma = self.level(begun, u, noise)
        if j == self.steps:
            x = self.score.denoise(u, sigma)
            return self.begin(k, x, noise) if i + 1 < self.outer else (x, m, v, x)

        def loss(u):
            D = self.score.denoise(u, sigma)
            return (D - x) ** 2 + self.regulariser(k, D, x, sigma, noise)

        return *self.adam(j, u, m, v, loss), x


@pytest.mark.parametrize(
    ("parameters", "version"),
    [({"objective": "sr"}, 1), ({"outer": 3}, 1), ({"outer": 2, "objective": "sr"}, 2)],
    ids=["one round of sr", "rounds of diff", "rounds of sr"],
)
def test_the_version_is_raised_where_the_numbers_are_others_and_nowhere_else(parameters, version):
    p = scoreopt_n(unet(), steps=3, width=0.1, **parameters)
    before = HeldAtTheRound.__new__(HeldAtTheRound)
    before.__dict__ |= p.__dict__
    now, then = chain.vjp(p, X, NOISE, V), chain.vjp(before, X, NOISE, V)
    assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True)) == (version == 1)
    values = registry.parameters("defense", "scoreopt-n") | parameters
    assert registry.version("defense", "scoreopt-n", values) == version
    if version == 2:
        assert (now[0] - then[0]).abs().max() > 1e-3


def test_the_input_is_held_within_a_memory_budget_too():
    p = make("n sr outer")
    state, graph = chain.step_bytes(p, X, NOISE)
    assert state == 5 * X.nbytes
    out, grad = chain.vjp(p, X, NOISE, V)
    again = chain.vjp(p, X, NOISE, V, memory=3 * graph + 12 * state)
    assert torch.equal(out, again[0])
    assert relative(again[1], grad) < 1e-9


DATA_MEAN, DATA_STD = 0.3, 0.5  # of Gaussian data, on the [-1,1] scale


class Gaussian(nn.Module):
    """E[clean | x = clean + sigma noise]."""

    def forward(self, x, sigma):
        s = sigma[:, None, None, None]
        return (DATA_STD**2 * x + s**2 * DATA_MEAN) / (DATA_STD**2 + s**2)


@pytest.mark.parametrize("width", [0.0, 0.1])
def test_one_update_on_gaussian_data_in_closed_form(width):
    """D - u = (c - 1)(u - mean) + c sigma eps with c = std^2 / (std^2 + sigma^2): g follows, and Adam's first step is g / |g|."""
    p = scoreopt_o(DenoiserScore(Gaussian(), (3, 8, 8)), width=width, steps=1, lr=0.05)
    u, eps, n = 2 * X - 1, NOISE.normal(0, X), X[0].numel()
    sigma = 0.5 + width * (2 * NOISE.uniform(0, X[:, :1, :1, :1], draw=2) - 1)
    c = DATA_STD**2 / (DATA_STD**2 + sigma**2)
    g = 2 / n * (c - 1) * ((c - 1) * (u - DATA_MEAN) + c * sigma * eps)
    out, grad = chain.vjp(p, X, NOISE, V)
    after = u - 0.05 * g / (g.abs() + 1e-8)
    torch.testing.assert_close(out, ((after + 1) / 2).clamp(0, 1), rtol=1e-12, atol=1e-12)
    slope = 1 - 0.05 * 1e-8 / (g.abs() + 1e-8) ** 2 * 2 / n * (c - 1) ** 2
    torch.testing.assert_close(grad, slope * V * (after.abs() < 1), rtol=1e-9, atol=1e-12)


def test_n_of_one_tiny_update_is_one_shot_denoising():
    p = scoreopt_n(unet(), sigma=0.4, lr=1e-12, steps=1)
    out, grad = chain.vjp(p, X, NOISE, V)
    other, expected = chain.vjp(one_shot(unet(), sigma=0.4), X, NOISE, V)
    assert relative(out, other) < 1e-9
    assert relative(grad, expected) < 1e-4


def test_images_move_towards_the_data():
    score = DenoiserScore(Gaussian(), (3, 8, 8))
    before = (2 * X - 1 - DATA_MEAN).abs().mean()
    for p, share in ((scoreopt_o(score, steps=20, lr=0.05), 0.7), (scoreopt_n(score), 0.9)):
        assert (2 * chain.run(p, X, NOISE) - 1 - DATA_MEAN).abs().mean() < share * before


# ------------------------------------------------------------------------------------------------------------ noise levels


class Levels(DenoiserScore):
    """Notes the levels that its network is asked for."""

    def __init__(self):
        super().__init__(Gaussian(), (3, 8, 8))
        self.seen = []
        self.network.register_forward_pre_hook(lambda _, args: self.seen.append(args[1].clone()))


def test_levels_fill_the_range_one_per_image_and_step():
    score = Levels()
    x = torch.zeros(50, 3, 8, 8)
    chain.run(scoreopt_o(score, sigma=0.5, width=0.1, steps=20), x, Noise(0, "judge", (), range(50), [0] * 50))
    seen = torch.stack(score.seen)
    assert seen.shape == (20, 50)
    assert 0.4 <= seen.min() < 0.402
    assert 0.598 < seen.max() <= 0.6
    assert len(seen.unique()) > 990
    assert abs(seen.mean() - 0.5) < 0.006


def test_code_shares_its_levels_between_images_and_not_between_samples():
    score = Levels()
    noise = Noise(0, "judge", (), [7, 8, 7], [0, 0, 1])
    chain.run(scoreopt_o(score, steps=5, variant="code"), X, noise)
    seen = torch.stack(score.seen)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert (seen[:, 0] != seen[:, 2]).all()
    assert len(seen[:, 0].unique()) == 5


def test_n_keeps_its_level_during_a_round():
    score = Levels()
    chain.run(scoreopt_n(score, steps=2, outer=3, width=0.2), X, NOISE)
    seen = torch.stack(score.seen).unflatten(0, (3, 3))
    assert (seen == seen[:, :1]).all()
    assert len(seen.unique()) == 3 * ROWS


class Raw(nn.Module):
    def raw(self, x):
        return torch.tanh(3 * x) - x


class Predictor(nn.Module):
    """Any smooth function of image and label; twice the channels, as networks with learned variances have."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x, label):
        out = torch.sin(x * 2 + label[:, None, None, None] / 300)
        return torch.cat([out] * (self.channels // x.shape[1]), dim=1)


@pytest.mark.parametrize(
    "score",
    [
        unet(),
        NCSNScore(Raw(), (3, 8, 8), 0.02, 2.0),
        VPScore(Predictor(3), (3, 8, 8)),
        IndexScore(Predictor(6), (3, 8, 8)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_level_per_row_is_the_score_models_own_denoiser_row_by_row(score):
    sigma = torch.tensor([0.011, 0.37, 2.5], dtype=X.dtype)
    out = score.denoise(X, sigma[:, None, None, None])
    for i, s in enumerate(sigma.tolist()):
        torch.testing.assert_close(out[i : i + 1], score.denoise(X[i : i + 1], s), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_central_difference(case):
    assert slope_error(make(case), X, V, NOISE, (1e-5, 1e-6, 1e-7, 1e-8)) < 1e-6


def test_the_second_order_terms_are_there():
    """Without them the image would keep the gradient of its own identity: so says `detached`, and BPDA."""
    p = make("o")
    out, grad = chain.vjp(p, X, NOISE, V)
    inside = (out > 0) & (out < 1)
    with chain.detached():
        detached = chain.vjp(p, X, NOISE, V)[1]
    torch.testing.assert_close(detached, V * inside, rtol=1e-12, atol=0)
    assert relative(grad, detached) > 0.1


@pytest.mark.parametrize("objective", ["diff", "mse", "sr"])
def test_a_zero_gradient_moves_nothing_and_is_no_nan(objective):
    """A denoiser that returns what it is given has a constant Diff loss: g = m = v = 0."""

    class Nothing(nn.Module):
        def forward(self, x, sigma):
            return x

    score = DenoiserScore(Nothing(), (3, 8, 8))
    for dtype in (torch.float32, torch.float64):
        p = scoreopt_o(score, objective=objective, steps=3, weight=0.0)
        out, grad = chain.vjp(p, X.to(dtype), NOISE, V.to(dtype))
        assert torch.equal(out, ((2 * X.to(dtype) - 1) + 1) / 2)
        assert torch.equal(grad, V.to(dtype))


def test_root_at_zero_has_slope_zero():
    v = torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64, requires_grad=True)
    r = root(v)
    (slope,) = torch.autograd.grad(r.sum(), v, create_graph=True)
    assert r.tolist() == [0, 2, 0]
    assert slope.tolist() == [0, 0.25, 0]
    assert torch.autograd.grad(slope.sum(), v)[0].isfinite().all()


# ----------------------------------------------------------------------------------------------- draws and parameters


@pytest.mark.parametrize("case", CASES)
def test_every_draw_is_its_own(case):
    found = asked(make(case), X)
    if case[0] == "o":  # N asks again for the draws of its round
        assert len(found) == len(set(found))
    expected = {
        "o": 6,
        "o fixed level": 3,
        "o sr": 9,
        "o sr code": 9,
        "n": 1,
        "n sr": 4,
        "n outer": 6,
        "n sr outer": 15,
        "n code": 1,
    }
    assert len(set(found)) == expected.get(case, 6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigma": 0}, "it needs sigma > width"),
        ({"sigma": -0.5}, "it needs sigma > width"),
        ({"sigma": math.nan}, "outside its range"),
        ({"width": -0.1}, "it needs width >= 0"),
        ({"sigma": 0.1, "width": 0.1}, "it needs sigma > width"),
        ({"steps": 0}, "`steps=0` is not possible"),
        ({"lr": 0}, "it needs lr > 0"),
        ({"weight": -1.0}, "it needs weight >= 0"),
        ({"batch": 0}, "not possible"),
        ({"objective": "diffs"}, "unknown objective of `scoreopt-[on]` `diffs`"),
        ({"variant": "papper"}, "unknown variant of `scoreopt-[on]` `papper`"),
    ],
    ids=str,
)
@pytest.mark.parametrize("factory", [scoreopt_o, scoreopt_n])
def test_impossible_parameters_are_refused(factory, parameters, message):
    with pytest.raises(UserError, match=message) as error:
        factory(unet(), **parameters)
    assert error.value.hint


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"outer": 0}, "`outer=0`"),
        ({"objective": "mse"}, "unknown objective"),
        ({"objective": "sr", "variant": "code"}, "objective=sr, variant=code is not possible"),
    ],
    ids=str,
)
def test_n_refuses_what_its_algorithm_has_not(parameters, message):
    with pytest.raises(UserError, match=message) as error:
        scoreopt_n(unet(), **parameters)
    assert error.value.hint


LITERALS = {  # three values of the result, three of the gradient
    "o": [0.700410193, 0.5198215792, 0.7424283244, -0.03572584377, -0.7444608353, -1.121790929],
    "o fixed level": [0.7014076658, 0.5186939518, 0.7348378324, -2.84738848, -45.45953531, -1.196668928],
    "o mse": [0.7132082137, 0.5195908418, 0.7473103565, -0.07676365052, -0.9001458732, -1.184096887],
    "o sr": [0.687400511, 0.5384540662, 0.7935255606, -0.2945187814, -1.060292632, -2.125996762],
    "o code": [0.6972078484, 0.4172569849, 0.7366742359, -0.3515710633, -1.304061651, -1.228159661],
    "o sr code": [0.6911557786, 0.5370222803, 0.8028482619, -0.3981798277, -0.2885911557, -1.202275261],
    "n": [0.6200509644, 0.6470772039, 0.5053092876, -0.02652603092, 0.02223931852, 0.2542855178],
    "n sr": [0.6121872309, 0.6476699034, 0.4825785129, -0.1777674444, -0.1249094618, -0.905039155],
    "n outer": [0.4445359883, 0.6356014631, 0.255992808, 0.3221426214, -1.121584392, 25.7608361],
    "n sr outer": [0.4390996393, 0.6700034145, 0.2657662189, -0.1818515827, -0.6743802326, 0.1627782101],
    "n code": [0.4451646098, 0.7490839989, 0.3256730594, -0.3821087657, -0.188252432, -0.5677513852],
}


@pytest.mark.parametrize("case", CASES)
def test_golden_literals(case):
    """If this fails, results recorded before differ from new ones: raise the component's `version`."""
    out, grad = chain.vjp(make(case), X, NOISE, V)
    values = [float(v) for a in (out, grad) for v in a.flatten()[[0, 100, 500]]]
    assert values == pytest.approx(LITERALS[case], rel=1e-6)
