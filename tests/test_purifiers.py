"""Purifiers against their papers: closed forms on Gaussian data, the published schedules, and the published code's own runs."""

import math

import numpy as np
import pytest
import torch
from helpers import apart, asked, close, first_case, path, per_number, per_row, published, recorded
from torch import nn

from purebench import registry
from purebench.engine import chain
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.purifiers import make
from purebench.scores.vp import VPScore
from purebench.spec import parse

torch.set_num_threads(1)
DATA_MEAN, DATA_STD = 0.3, 0.5  # of Gaussian data, on the [-1,1] scale
SHAPE = (4, 1, 2, 3)
NOISE = Noise(3, "judge", (), range(4), [0] * 4)
X = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NAMES = [name for name, target in registry.names("defense").items() if target.startswith("purebench.")]


def abar(t):
    return np.exp(-0.1 * t - (20 - 0.1) * t**2 / 2)


class GaussianNoisePredictor(nn.Module):
    """E[eps | x] for x = sqrt(abar) data + sqrt(1 - abar) eps, labels = 999 t."""

    def forward(self, x, labels):
        a = torch.as_tensor(abar(labels.double().numpy() / 999))[:, None, None, None]
        return ((1 - a).sqrt() * (x - a.sqrt() * DATA_MEAN) / (a * DATA_STD**2 + 1 - a)).to(x.dtype)


class TwoClasses(nn.Module):
    """Logits (w.u + 0.2, -w.u) of images u in [0,1]."""

    w = torch.tensor([[3.0, -2.0, 1.0, 0.5, -4.0, 2.0]], dtype=torch.float64)

    def forward(self, u):
        d = (u.flatten(1).double() * self.w).sum(1, keepdim=True)
        return torch.cat([d + 0.2, -d], dim=1).to(u.dtype)


SCORE, CLASSIFIER = VPScore(GaussianNoisePredictor(), SHAPE[1:]), TwoClasses()


def build(name, **parameters):
    return make(name, score=SCORE, classifier=CLASSIFIER, **parameters)


# --------------------------------------------------------------------------------- the papers' recursions, written again


def published_times(t, dt, end=1 - 1e-5):
    """(s, next s) of torchsde's fixed-step solver: float32, s <- min(s + dt, end), until the end."""
    s, dt, end, grid = np.float32(1 - t), np.float32(dt), np.float32(end), []
    while s < end:
        after = min(s + dt, end)
        grid.append((s, after))
        s = after
    return grid


def guidance(x, weight):
    """weight * grad_x log max_y p(y | (x+1)/2) for TwoClasses, by hand; and which class it was."""
    w = TwoClasses.w.numpy()
    margin = 2 * ((x.reshape(len(x), -1) + 1) / 2 * w).sum(1) + 0.2  # logit 0 - logit 1
    side = np.where(margin >= 0, 1.0, -1.0)
    slope = side / (1 + np.exp(np.abs(margin)))  # d log p_max / d margin
    return weight * (slope[:, None] * w).reshape(x.shape), side  # d margin / dx = w


def euler(x, t, steps, noises, weight=0.0):
    """DiffPure's and COUP's solver on the [-1,1] scale. Returns the states, the slope of the affine part, and the classes seen."""
    states, slope, sides = [x], 1.0, []
    for (s, after), z in zip(published_times(t, t / steps), noises, strict=True):
        time, h = float(np.float32(1) - s), float(after) - float(s)
        beta = 0.1 + 19.9 * time
        variance = abar(time) * DATA_STD**2 + 1 - abar(time)
        score = -(x - np.sqrt(abar(time)) * DATA_MEAN) / variance
        g, side = guidance(x, weight)
        x = x + h * (beta * x / 2 + beta * (score + g)) + math.sqrt(beta * h) * z
        slope *= 1 + h * (beta / 2 - beta / variance)
        states.append(x)
        sides.append(side)
    return states, slope, np.array(sides)


def draws(steps):
    return [NOISE.normal(k, X).numpy() for k in range(steps)]


GRIDS = [(0.1, 100), (0.1, 1), (0.1, 7), (0.075, 75), (0.15, 30), (1.0, 50)]


@pytest.mark.parametrize(("t", "steps"), GRIDS, ids=str)
def test_reverse_sde_is_its_euler_recursion(t, steps):
    p = build("reverse-sde", t=t, steps=steps)
    expected, slope, _ = euler(2 * X.numpy() - 1, t, steps, draws(steps))
    states, out = path(p, X, NOISE)
    close(states, expected)
    close(out, (expected[-1] + 1) / 2)
    close(chain.vjp(p, X, NOISE, V)[1], slope * V)  # 2 in, 1/2 out
    assert p.n == steps


@pytest.mark.parametrize(("t", "steps"), GRIDS[:5], ids=str)
def test_diffpure_diffuses_by_the_discrete_schedule_and_comes_back(t, steps):
    p = build("diffpure", t=t, steps=steps)
    a = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: round(1000 * t)])
    diffused = math.sqrt(a) * (2 * X.numpy() - 1) + math.sqrt(1 - a) * NOISE.normal(-1, X).numpy()
    expected, slope, _ = euler(diffused, t, steps, draws(steps))
    states, out = path(p, X, NOISE)
    close(states, expected)
    close(out, (expected[-1] + 1) / 2)
    close(chain.vjp(p, X, NOISE, V)[1], math.sqrt(a) * slope * V)


@pytest.mark.parametrize(("t", "published"), [(0.075, 0.93912), (0.1, 0.89702), (0.125, 0.84618), (0.15, 0.78832)])
def test_forward_noise_is_that_of_the_published_discrete_schedule(t, published):
    """Not the continuous .93850, .89628, .84538, .78751; seen from outside, through the state before the first step."""
    p = build("diffpure", t=t, steps=10)
    ones, zeros = torch.ones(SHAPE, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    signal = p.start(ones, Replay({(-1, 0): zeros}))
    noise = p.start(ones / 2, Replay({(-1, 0): ones}))
    close(signal**2, published * ones.numpy(), 5e-6)
    close(noise**2, (1 - published) * ones.numpy(), 5e-5)
    close(signal**2 + noise**2, ones.numpy(), 1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.0, 8.0])
@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamp"])
def test_coup_adds_the_gradient_of_the_confidence(weight, clamp):
    p = build("coup", t=0.3, steps=15, guidance=weight, clamp=clamp)
    wide = 3 * X - 1  # images far outside [0,1], so that the clamp has something to do
    begin = 2 * wide.numpy() - 1
    expected, _, sides = euler(begin.clip(-1, 1) if clamp else begin, 0.3, 15, draws(15), weight)
    states, out = path(p, wide, NOISE)
    close(states, expected)
    close(out, (expected[-1].clip(-1, 1) + 1) / 2 if clamp else (expected[-1] + 1) / 2)
    assert (np.abs(expected[-1]) > 1).any()
    assert (sides.min(0) < sides.max(0)).any()  # the confident class changes on the way, and the guidance follows


def test_coup_guidance_by_default_has_the_papers_weight_one():
    assert registry.parameters("defense", "coup")["guidance"] == 1
    close(path(build("coup", steps=5), X, NOISE)[1], (euler(2 * X.numpy() - 1, 0.1, 5, draws(5), 1.0)[0][-1] + 1) / 2)


@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamp"])
def test_reverse_sde_is_coup_without_guidance_and_needs_no_classifier(clamp):
    parameters = {"t": 0.3, "steps": 9, "clamp": clamp}
    alone = make("reverse-sde", score=SCORE, **parameters)
    out = path(alone, 3 * X - 1, NOISE)[1]
    assert np.array_equal(out, path(build("coup", guidance=0.0, **parameters), 3 * X - 1, NOISE)[1])
    assert np.array_equal(out.clip(0, 1), out) == clamp


@pytest.mark.parametrize("sigma", [0.25, 0.5, 2.0])
def test_one_shot_is_the_posterior_mean(sigma):
    p = build("one-shot", sigma=sigma)
    wide = 3 * X - 1
    noisy = 2 * wide.numpy() - 1 + sigma * NOISE.normal(-1, X).numpy()
    mean = (DATA_STD**2 * noisy + sigma**2 * DATA_MEAN) / (DATA_STD**2 + sigma**2)
    states, out = path(p, wide, NOISE)
    close(states, [noisy, mean])
    close(out, ((mean + 1) / 2).clip(0, 1))
    inside = (np.abs(mean) < 1) * DATA_STD**2 / (DATA_STD**2 + sigma**2)
    close(chain.vjp(p, wide, NOISE, V)[1], inside * V.numpy())
    assert sigma != 0.25 or (inside == 0).any()  # some pixels are clipped


def test_one_shot_clips_to_the_unit_interval():
    out = path(build("one-shot", sigma=0.1), 20 * X - 10, NOISE)[1]
    assert (out.min(), out.max()) == (0, 1)


def test_none_gives_the_image_back():
    p = build("none")
    assert torch.equal(chain.run(p, X, NOISE), X)
    with pytest.raises(AssertionError):
        p.step(0, X, NOISE)


@pytest.mark.parametrize(("name", "t"), [("reverse-sde", 0.2), ("diffpure", 0.2), ("coup", 0.2)])
def test_purification_brings_images_nearer_to_the_data(name, t):
    """In distribution: mean and variance after many fine steps are those of the marginal at the final time."""
    x = torch.full((400, 1, 8, 8), 0.5 + DATA_MEAN / 2, dtype=torch.float64)
    x = x + DATA_STD / 2 * Noise(0, "data", (), range(400), [0] * 400).normal(0, x)
    if name != "diffpure":  # these two start in the middle of the diffusion
        x = (2 * x - 1) * math.sqrt(abar(t)) + math.sqrt(1 - abar(t)) * Noise(
            1, "data", (), range(400), [0] * 400
        ).normal(0, x)
        x = (x + 1) / 2
    p = make(
        name,
        score=SCORE,
        classifier=nn.Sequential(nn.Flatten(), nn.Linear(64, 2).double()),
        t=t,
        steps=60,
        **({"guidance": 0} if name == "coup" else {}),
    )
    out = 2 * chain.run(p, x, Noise(2, "judge", (), range(400), [0] * 400)) - 1
    assert abs(out.mean() - DATA_MEAN) < 0.01
    assert abs(out.std() - DATA_STD) < 0.01


# ----------------------------------------------------------------------------------------------------------- time grids


class Clock(VPScore):
    """Notes the times at which the score is asked for."""

    def __init__(self):
        self.times: list[float] = []

    def score(self, x, t):
        self.times.append(t)
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", ["reverse-sde", "diffpure", "coup"])
def test_networks_are_called_at_torchsdes_float32_times(name):
    clock = Clock()
    chain.run(make(name, score=clock, classifier=CLASSIFIER), X, NOISE)
    assert len(clock.times) == 100
    assert clock.times[0] == pytest.approx(0.1, abs=3e-8)
    assert clock.times[-1] == 0.0010012984275817871  # not 0.001: the solver's time is accumulated in float32
    assert clock.times == [float(np.float32(1) - s) for s, _ in published_times(0.1, 1e-3)]


@pytest.mark.parametrize(("t", "steps"), [*GRIDS, (0.125, 125), (0.15, 150), (0.005, 5), (0.5, 500)], ids=str)
def test_the_grid_is_the_solvers(t, steps):
    times = build("reverse-sde", t=t, steps=steps).times
    assert times == [float(s) for s, _ in published_times(t, t / steps)] + [float(np.float32(1 - 1e-5))]


@pytest.mark.parametrize("name", ["reverse-sde", "diffpure", "coup"])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"t": 0}, "t=0 is not possible: it needs"),
        ({"t": -0.1}, "t <= 1"),
        ({"t": 1.001}, "t <= 1"),
        ({"t": math.nan}, "outside its range"),
        ({"steps": 0}, "`steps=0` is not possible"),
        ({"steps": -3}, "not possible"),
        ({"t": 0.001, "steps": 60}, "it needs t / steps > 0.00002"),
        ({"t": 0.1, "steps": 1754}, "float32 times pass the end"),
        ({"t": 0.02, "steps": 817}, "float32 times pass the end"),  # the last step would have no length
        ({"stepz": 5}, "unknown parameter"),
        ({"steps": 5.5}, "not a whole number"),
    ],
    ids=str,
)
def test_impossible_grids_are_refused(name, parameters, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **parameters)
    assert error.value.hint


def test_every_grid_that_is_accepted_moves_forward():
    for t in (0.01, 0.05, 0.1, 1.0):
        for steps in (1, 10, 100, *range(440, 3000, 7)):
            try:
                times = build("reverse-sde", t=t, steps=steps).times
            except UserError:
                continue
            assert len(times) == steps + 1
            assert min(np.diff(times)) > 0, (t, steps)


def test_the_finest_grids_are_accepted():
    assert build("reverse-sde", t=0.001, steps=40).n == 40  # steps of 2.5e-5


@pytest.mark.parametrize(("t", "nearest"), [(0.0014, "t=0.001"), (0.0999, "t=0.1"), (0.1234, "t=0.123")])
@pytest.mark.parametrize("name", ["diffpure", "diffpure-ode", "diffpure-ddpm"])
def test_times_between_the_discrete_forward_steps_are_refused(name, t, nearest):
    steps = {} if name == "diffpure-ddpm" else {"steps": 1}
    with pytest.raises(UserError, match="not a multiple of") as error:
        build(name, t=t, **steps)
    assert error.value.hint.endswith(nearest)


def test_every_discrete_time_is_accepted_and_any_time_where_there_is_no_forward_noise():
    for i in range(1, 1001):
        p = build("diffpure-ddpm", t=i / 1000)
        values = registry.parameters("defense", "diffpure-ddpm") | {"t": i / 1000}
        registry.check_ranges("defense", "diffpure-ddpm", values)
        assert p.n == i
    build("diffpure", t=0.3 - 0.1, steps=1)  # 0.19999999999999998
    for name in ("reverse-sde", "coup", "diffpure-ld"):
        build(name, t=0.12345, steps=3)


@pytest.mark.parametrize(
    ("classifier", "guidance", "message"),
    [
        (None, 1.0, "`coup` needs a classifier"),
        (CLASSIFIER, math.nan, "`guidance=nan` of `coup` is outside its range"),
        (CLASSIFIER, -1.0, "it needs guidance >= 0"),
    ],
)
def test_coup_refuses_guidance_that_cannot_be(classifier, guidance, message):
    with pytest.raises(UserError, match=message) as error:
        make("coup", score=SCORE, classifier=classifier, guidance=guidance)
    assert error.value.hint


@pytest.mark.parametrize("name", ["coup", "lm"])
def test_without_guidance_no_classifier_is_called_and_none_is_needed(name):
    p = make(name, score=SCORE, guidance=0.0, steps=2)
    with chain.nfe() as calls:
        chain.run(p, X, NOISE)
    assert (calls.forward, calls.backward) == (2, 0 if name == "coup" else 2)


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.nan])
def test_one_shot_refuses_noise_that_is_none(sigma):
    with pytest.raises(UserError, match=f"sigma={sigma:g}"):
        build("one-shot", sigma=sigma)


# ---------------------------------------------------------------------------------------------------- every registered name


FEW = {  # parameters of the literals below, where `steps` and `t` have another meaning; and a ball that no image reaches
    "diffpure-ddpm": {"t": 0.004},
    "gdmp": {"t": 3, "passes": 2, "scale": 600.0},
    "gns": {"stages": (6, 15), "steps": (2, 5)},
    "lm": {"steps": 4, "eta": 1.0},
    "lm-coup": {"steps": 4, "eta": 1.0},
}


def few(name):
    """With the parameters of `LITERALS`, or of the first case that the purifier's own file names."""
    usual = {k: v for k, v in {"steps": 4, "t": 0.2}.items() if k in registry.parameters("defense", name)}
    return build(name, **(FEW.get(name, usual) if name in LITERALS else first_case(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_step_draws_noise_of_its_own(name):
    """All draws of a run are asked for under different (k, draw): no noise is used twice."""
    found = asked(few(name), X)
    assert len(found) == len(set(found))
    assert bool(found) == registry.info("defense", name)["random"]


def test_unknown_defenses_get_a_suggestion():
    with pytest.raises(UserError, match="unknown defense `difpure`") as error:
        make("difpure", score=SCORE)
    assert "`diffpure`" in error.value.hint


# -------------------------------------------------------------------------------------------------- literals of a fresh clone

LITERALS = {
    "none": [0.9700530018065531, 0.2882358921361502, 0.5237520594022435],
    "diffpure": [0.9885824680946962, 0.49241009321567386, 0.5587888194121045],
    "reverse-sde": [0.9762595758452743, 0.5231704142371358, 0.5553259003731194],
    "coup": [0.9830734218713001, 0.5144937525124846, 0.5770802955927725],
    "one-shot": [0.8656848861532941, 0.4076593895621259, 0.5937878035902084],
    "adp": [0.9350771875000791, 0.255224116339353, 0.5584296293959882],
    "ebm": [0.9795309401177268, 0.2873207564335201, 0.5223011200009232],
    "scoreopt-o": [0.7972162666182648, 0.47254883854680924, 0.6432463254685482],
    "scoreopt-n": [0.9610550397397066, 0.31118879527618337, 0.5048096248776037],
    "edm": [0.9158031824318286, 0.351347152154754, 0.5807258799460512],
    "gaussian": [1.0813697723065883, 0.16531877912425175, 0.537575607180417],
    "gns": [0.9663260358809103, 0.2663213897141621, 0.5433075033571174],
    "diffpure-ode": [0.9134219317754347, 0.365724396137731, 0.5980903167952203],
    "diffpure-ld": [1.0549822613242505, 0.24829121843717977, 0.48256215310210226],
    "diffpure-ddpm": [0.9787808460012279, 0.28821317745641, 0.5273130909725108],
    "gdmp": [0.9617890315001736, 0.3072197255624845, 0.5168676796450138],
    "lm": [0.7953822845418292, 0.47109294731426826, 0.6344309255011743],
    "lm-coup": [0.8168561952468991, 0.46833506066225067, 0.6483129970445171],
}


@pytest.mark.parametrize("name", NAMES)
def test_golden_literals(name):
    """If this fails, results recorded before differ from new ones: raise the component's `version`.

    Three numbers of the output: of `few(name)` above, and of every case of the purifier's own file that says what it `gives`."""

    def gives(p):
        return chain.run(p, X, NOISE).flatten()[[0, 9, 23]].tolist()

    said = {case: known["gives"] for case, known in registry.cases(name).items() if "gives" in known}
    for case, numbers in said.items():
        assert gives(build(name, **dict(parse(case).parameters))) == pytest.approx(numbers, rel=1e-9), case
    if name in LITERALS:
        assert gives(few(name)) == pytest.approx(LITERALS[name], rel=1e-9)
    elif not said:
        case = next(iter(registry.cases(name)), name)
        pytest.fail(f'no numbers of `{name}` are known; CASES of its file: "{case}": {{"gives": {gives(few(name))}}}')


def test_no_two_defenses_have_one_literal():
    """A ball or a clip that is reached says nothing of what is inside."""
    assert len({tuple(values) for values in LITERALS.values()}) == len(LITERALS)


# ----------------------------------------------------------------------------------------- the published code's own numbers


@pytest.fixture(scope="module")
def tiny():
    """(network with the recorded weights, the file's other arrays)"""
    return published("ddpmpp", "score_sde/ddpmpp_tinyB.npz")


@pytest.mark.parametrize("bits", [32, 64])
def test_published_ddpmpp_outputs_and_gradients(tiny, bits, deviation):
    network, file = tiny
    dtype = torch.float32 if bits == 32 else torch.float64
    network.to(dtype)
    x, labels, fixed = (file[k].to(dtype) for k in ("x", "labels", "fixed"))
    x.requires_grad_()
    out = network(x, labels)
    (grad,) = torch.autograd.grad((out * fixed).sum(), x)
    case = f"network ddpm++, float{bits}"
    deviation(f"{case}: output", per_row(out, file[f"output_f{bits}"]), 2e-5 if bits == 32 else 1e-12)
    deviation(f"{case}: gradient", per_row(grad, file[f"grad_x_f{bits}"]), 1e-4 if bits == 32 else 1e-12)
    network.float()
    deviation("network ddpm++: sigmas", per_number(network.sigmas, file["sigmas_buffer"]), 1e-6)
    score = VPScore(network, (3, 32, 32))
    for row, tolerance in enumerate((2e-5, 5e-4)):  # their 1 - abar(5e-4) cancels in float32
        t = float(file["t"][row])
        ours = score.score(file["x"][row : row + 1], t)
        deviation(f"network ddpm++: score at t={t:.1g}", per_row(ours, file["score_f32"][row : row + 1]), tolerance)


class RecordedClassifier(nn.Module):
    def __init__(self, file):
        super().__init__()
        self.w, self.b = file["clf_W"], file["clf_b"]

    def forward(self, u):
        return u.flatten(1) @ self.w.T + self.b


def replay(file):
    stored = {(k, 0): z for k, z in enumerate(file["noise"])}
    return Replay(stored | ({(-1, 0): file["eps_forward"]} if "eps_forward" in file else {}))


def follow(p, file, check=None):
    """The result (on the [-1,1] scale) of p on the recorded noise; compares times, and states by `check(largest difference)`."""
    assert len(file["s_grid"]) == p.n
    assert p.times == [*map(float, file["s_grid"][:, 0]), float(file["s_grid"][-1, 1])]
    seen = {}
    out = chain.run(p, file["x01"], replay(file), on_state=lambda k, x: seen.setdefault(k, x))
    if check:
        for k, state in zip(file["steps_saved"], file["x_at_step"], strict=True):
            check(apart(seen[int(k)], state))
    return 2 * out - 1


@pytest.mark.parametrize("run", ["short", "t100_dt02", pytest.param("t100", id="t100, the published setting")])
def test_published_diffpure_runs(tiny, run, deviation):
    file = recorded(f"score_sde/traj_diffpure_{run}.npz")
    t = int(file["t_int"]) / 1000
    p = make("diffpure", score=VPScore(tiny[0], (3, 32, 32)), t=t, steps=round(t / float(file["dt"])))
    final = follow(p, file, lambda found: deviation(f"diffpure sde {run}: states", found, 1e-5))
    deviation(f"diffpure sde {run}: result", apart(final, file["x_final"]), 1e-5)
    for memory in (None, 400_000_000) if p.n < 100 else (400_000_000,):  # all of 100 graphs would take 1.5 GB
        grad = chain.vjp(p, file["x01"], replay(file), file["fixed"], memory=memory)[1]
        deviation(f"diffpure sde {run}: gradient", per_row(2 * grad, file["grad_x01"]), 1e-4)


@pytest.mark.parametrize("run", ["short", "t100_dt02"])
def test_published_coup_runs(tiny, run, deviation):
    file = recorded(f"score_sde/traj_coup_{run}.npz")
    t = int(file["t_int"]) / 1000
    parts = {"score": VPScore(tiny[0], (3, 32, 32)), "classifier": RecordedClassifier(file)}
    grid = {"t": t, "steps": round(t / float(file["dt"]))}
    p = make("coup", **parts, **grid)
    said = lambda what, found, tolerance: deviation(f"coup {run}, {what}", found, tolerance)  # noqa: E731
    final = follow(p, file, lambda found: said("lambda 1: states", found, 1e-5))
    said("lambda 1: result", apart(final, file["x_final"]), 1e-5)

    start = 2 * file["x01"] - 1
    guidance = chain.inner_grad(p.log_confidence, start)
    said("guidance at the start", per_row(guidance, file["guidance_at_step0"]), 2e-5)
    said("confidence at the start", per_number(p.log_confidence(start).exp(), file["maxprob_at_step0"]), 1e-5)

    exact = 2 * chain.vjp(p, file["x01"], replay(file), file["fixed"])[1]
    said("lambda 1: exact gradient", per_row(exact, file["grad_x01_exact"]), 1e-4)
    with chain.detached():
        detached = 2 * chain.vjp(p, file["x01"], replay(file), file["fixed"])[1]
    said("lambda 1: detached gradient", per_row(detached, file["grad_x01_guidance_detached"]), 1e-4)

    five = follow(make("coup", **parts, **grid, guidance=5), file)
    said("lambda 5: result", apart(five, file["x_final_lambda5"]), 1e-5)
    none = make("reverse-sde", **parts, **grid)
    said("lambda 0: result", apart(follow(none, file), file["x_final_lambda0"]), 1e-5)
    grad = 2 * chain.vjp(none, file["x01"], replay(file), file["fixed"])[1]
    said("lambda 0: gradient", per_row(grad, file["grad_x01_lambda0"]), 1e-4)
    clamped = follow(make("coup", **parts, **grid, clamp=True), file)
    said("lambda 1, clamped: result", apart(clamped, file["x_final"].clip(-1, 1)), 1e-5)  # x01 lies in [0,1] already


@pytest.mark.parametrize("name", ["diffpure", "reverse-sde", "coup", "one-shot"])
def test_noise_zero_switches_every_draw_off(name):
    """A defense-level parameter: with noise=0 all purifications of an image are one; between, the draws are scaled."""
    noise = [Noise(0, role, (), range(4), [0] * 4) for role in ("judge", "attack")]
    still, whole = (Defense(few(name), CLASSIFIER, rows=16, noise=factor) for factor in (0.0, 1.0))
    assert torch.equal(*(still.purify(X, n) for n in noise))
    assert not torch.equal(*(whole.purify(X, n) for n in noise))
    torch.testing.assert_close(noise[0].scaled(0.5).normal(3, X), 0.5 * noise[0].normal(3, X))
    assert noise[0].scaled(0.5).fork("a").rows([1], [0]).scale == 0.5
