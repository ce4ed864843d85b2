"""ADP against its paper and its code: the code's own trajectories, closed forms on Gaussian data, gradients, stopping."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import autograd, generated, label, maker, path, published, recorded, relative, slope_error, smooth_unet
from torch import nn

from purebench import registry
from purebench.engine import chain, objective
from purebench.engine.chain import Plan, Tape
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError
from purebench.networks.ebm import EBM
from purebench.purifiers.adp import INFO, sigma_from_data
from purebench.scores.energy import EnergyScore
from purebench.scores.vp import VPScore

torch.set_num_threads(1)
adp = maker("adp")
ROWS = 3
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)


class Field:
    """A score model whose direction is f of images in [0,1], at any noise level."""

    sigma_min, sigma_max = 0.01, 100.0

    def __init__(self, f):
        self.f = f

    def direction(self, x, sigma):
        return self.f((x + 1) / 2)


# ------------------------------------------------------------------------------------------- the published code's trajectories


def sine(scale):
    return lambda x: scale * torch.sin(2 * math.pi * x)


SINES = {  # case: (field, parameters)
    "sin_s025": (sine(1), {}),
    "sin_s010": (sine(1), {"sigma": 0.1}),
    "sin_s000": (sine(1), {"sigma": 0.0}),
    "sin_binary025": (sine(1), {"rand": "binary"}),
    "sin_r60": (sine(60), {}),
    "sin_tau1": (sine(1), {"tau": 1.0}),
    "sin_r4_mixstop": (sine(4), {"sigma": 0.1, "tau": 0.003}),
    "sin_nostop": (sine(4), {"sigma": 0.1, "tau": 0.0}),
    "dec25": (sine(3.4), {"threshold": 25.0}),
    "dec35": (sine(3.4), {"threshold": 35.0}),
}
NETS = {  # case: (weight of 4 (0.5 - x), weight of the network, parameters)
    "ncsn_mix0.02": (4, 0.02, {}),
    "ncsn_mix0.1": (4, 0.1, {}),
    "ncsn_mix0.3": (4, 0.3, {}),
    "ncsn_raw": (0, 1, {"tau": 0.0, "steps": 4}),
    "ncsn_neg0.2": (0, -0.2, {}),
}
NCSNV2 = {"ngf": 8, "image_size": 16, "channels": 3, "sigma_begin": 1, "sigma_end": 0.01, "num_classes": 10}


def published_x():
    """Four kinds of images: of little contrast, of half, of full, and two-valued."""
    u = generated("adp:x", (4, 3, 8, 8), "random").float().numpy()
    two = np.where(u[3] < 0.5, 0.04, 0.94) + 0.02 * u[3]
    return torch.from_numpy(np.stack([0.3 * u[0] + 0.35, 0.5 * u[1] + 0.25, u[2], two]).astype(np.float32))


def published_run(field, x, noise, parameters):
    """(chain of images until the batch has stopped, step sizes (steps, N), purifier's result) as the code records them."""
    p = adp(Field(field), variant="code", **parameters)
    states, images, alphas = [], [], []
    replay = Replay({(-1, 0): noise.sign() if p.rand == "binary" else noise})
    out = chain.run(p, x, replay, on_state=lambda _, state: states.append(state))
    images.append(states[0][0])
    for k, ((before, _), (after, alive)) in enumerate(itertools.pairwise(states)):
        if alive.any():
            images.append(after)
            alpha = p.alpha(k, before, p.score(k, before)).clamp(min=1e-5)
            alphas.append((alpha * alive).flatten())
        else:
            assert torch.equal(before, after)
    assert torch.equal(out, states[-1][0])
    return torch.stack(images), torch.stack(alphas) if alphas else torch.zeros(0, len(x)), out


@pytest.mark.parametrize("case", [*SINES, *NETS])
def test_published_trajectories(case, deviation):
    file = recorded("adp/b_adp_trajectories.npz")
    if case in SINES:
        (field, parameters), noise = SINES[case], file["noise"]
    else:
        pull, weight, parameters = NETS[case]
        net, _ = published("ncsnv2", "adp/a_ncsnv2_tiny.npz", **NCSNV2)
        field, noise = (lambda x: pull * (0.5 - x) + weight * net.raw(x)), file["noise16"]
    with torch.no_grad():
        images, alphas, _ = published_run(field, file[f"{case}/x_in"], noise, parameters)
    assert images.shape == file[f"{case}/images"].shape
    assert alphas.shape == file[f"{case}/alphas"].shape
    theirs = file[f"{case}/alphas"]
    of_alpha = ((alphas - theirs).abs() / theirs.clamp(min=1e-12)).amax().item() if theirs.numel() else 0.0
    of_image = (images - file[f"{case}/images"]).abs().amax().item()
    assert torch.equal(alphas == 0, theirs == 0)  # the same images stop, at the same steps
    deviation(f"adp {case}: step sizes", of_alpha, 5e-3)
    deviation(f"adp {case}: images", of_image, 5e-4)


def test_the_recorded_inputs_are_the_generated_ones():
    file = recorded("adp/b_adp_trajectories.npz")
    assert (published_x() - file["dec25/x_in"]).abs().max() < 1e-7
    assert torch.equal(generated("adp:noise", (4, 3, 8, 8)).float(), file["noise"])


# case: executed steps; step sizes of the last one; four pixels of the last images, one of each image. All as published.
LITERALS: dict = {
    "sin_s025": (10, [0.01750837, 0.01844258, 0.01957303, 0.0], [0.528325, 0.586722, 0.0, 0.934766]),
    "sin_s010": (10, [0.01181361, 0.01188912, 0.01649158, 0.0], [0.534786, 0.5541, 0.0, 0.955177]),
    "sin_s000": (10, [0.00880971, 0.01001505, 0.03471244, 0.0], [0.526031, 0.507876, 0.414033, 0.968785]),
    "sin_binary025": (10, [0.01085202, 0.0144696, 0.0258716, 0.0], [0.57812, 0.525429, 0.0, 0.762162]),
    "sin_r60": (1, [0.0, 0.0, 0.0, 0.0025667], [0.645518, 0.832745, 0.0, 0.843606]),
    "sin_tau1": (0, [], [0.644949, 0.831445, 0.001953, 0.918078]),
    "sin_r4_mixstop": (10, [0.0, 0.0, 0.00416407, 0.0], [0.537839, 0.558946, 0.0, 0.955177]),
    "sin_nostop": (10, [0.00294371, 0.00296579, 0.00416407, 1e-05], [0.535066, 0.554651, 0.0, 0.95504]),
    "dec25": (10, [0.00279853, 0.00537356, 0.00570828, 0.0], [0.534263, 0.589599, 0.0, 0.961981]),
    "dec35": (10, [0.00279853, 0.00310354, 0.00617854, 0.0], [0.534263, 0.534754, 0.274007, 0.961981]),
}


@pytest.mark.parametrize("case", SINES)
def test_published_literals(case):
    field, parameters = SINES[case]
    noise = generated("adp:noise", (4, 3, 8, 8)).float()
    _, alphas, out = published_run(field, published_x(), noise, parameters)
    steps, last, pixels = LITERALS[case]
    assert len(alphas) == steps
    assert (alphas[-1].tolist() if steps else []) == pytest.approx(last, rel=5e-3)
    assert out.flatten(1)[range(4), [0, 50, 100, 150]].tolist() == pytest.approx(pixels, abs=5e-4)


def test_detection_looks_at_the_published_score_norms(deviation):
    file = recorded("adp/b_adp_trajectories.npz")
    p = adp(Field(sine(3.4)), threshold=25.0)
    norms = p.score(0, file["dec25/x_in"]).flatten(1).norm(dim=1)
    assert norms.shape == file["dec/score_norm"].shape
    deviation("adp detection: score norms", (norms / file["dec/score_norm"] - 1).abs().max(), 1e-5)
    expected = torch.where(norms > 25, 0.25, 0.05)
    torch.testing.assert_close(p.strength(file["dec25/x_in"]).flatten(), expected)


def test_the_published_grid_map(deviation):
    file = recorded("adp/b_adp_trajectories.npz")
    started, _ = adp(Field(sine(1)), variant="code", sigma=0.0).start(file["tr/x"], NOISE)
    assert started.shape == file["tr/raw_to_ebm"].shape
    deviation("adp grid map: images", (started - file["tr/raw_to_ebm"]).abs().max(), 1e-7)


@pytest.mark.parametrize(("ours", "theirs"), [("logits", "logit"), ("softmax", "softmax"), ("vote", "onehot")])
def test_ensembles_of_runs_count_as_published(ours, theirs, deviation):
    file = recorded("adp/b_adp_ensembles.npz")
    last = torch.stack([run[n - 1] for run, n in zip(file["logits_padded"], file["chain_lengths"], strict=True)])
    correct = lambda runs: (objective.combine(runs, ours, 0).argmax(1) == file["labels"]).sum().item()  # noqa: E731
    counts = [correct(last), *(correct(last[:k]) for k in range(1, 11))]
    published = [int(file[f"final/{theirs}"]), *file[f"final_vs_runs/{theirs}"].tolist()]
    off = max(abs(a - b) for a, b in zip(counts, published, strict=True))
    deviation(f"adp ensembles, {ours}: counts of correct images", off, 0)


def test_tied_votes_go_to_the_lowest_class():
    runs = torch.randn(10, 500, 10, generator=torch.Generator().manual_seed(0))
    counts = nn.functional.one_hot(runs.argmax(2), 10).sum(0)
    ties = (counts == counts.amax(1, keepdim=True)).sum(1) > 1
    assert 100 < ties.sum() < 400
    assert torch.equal(objective.combine(runs, "vote", 0).argmax(1), counts.argmax(1))


# ----------------------------------------------------------------------------------------------------- Gaussian data, closed forms

MEAN, VARIANCE = 0.2, 0.25  # on the [-1,1] scale
IMAGES = torch.rand(ROWS, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
V = torch.randn(IMAGES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Gaussian:
    """sigma * score of Gaussian data smoothed by sigma."""

    sigma_min, sigma_max = 0.05, 10.0

    def __init__(self, mean=MEAN, variance=VARIANCE):
        self.mean, self.variance = mean, variance

    def direction(self, x, sigma):
        return -sigma * (x - self.mean) / (self.variance + sigma**2)


@pytest.mark.parametrize("sigma", [0.25, 0.1, 0.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_adaptive_steps_on_a_gaussian_shrink_by_lambda(sigma, delta):
    """1 - z = delta times the curvature, which is the same everywhere: every step goes the share lam of the way to the mean."""
    p = adp(Gaussian(), sigma=sigma, delta=delta, lam=0.08, steps=7, alpha_max=1.0)
    states, out = path(p, IMAGES, NOISE)
    start = (IMAGES + sigma * NOISE.normal(-1, IMAGES)).clamp(0, 1).numpy()
    centre = (MEAN + 1) / 2
    expected = np.stack([centre + 0.92**k * (start - centre) for k in range(8)])
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-9)
    assert np.array_equal(out, states[-1])
    inside = ((IMAGES + sigma * NOISE.normal(-1, IMAGES)) % 1 == torch.as_tensor(start)).double()
    gradient = chain.vjp(p, IMAGES, NOISE, V)[1]
    np.testing.assert_allclose(gradient, 0.92**7 * inside * V, rtol=0, atol=1e-8)
    level = max(2 * sigma, 0.05)
    alpha = p.alpha(0, IMAGES, p.score(0, IMAGES)).flatten()
    np.testing.assert_allclose(alpha, 0.08 * (VARIANCE + level**2) / (2 * level), rtol=1e-9)


def test_purified_gaussian_data_have_mean_and_variance_of_the_closed_form():
    """Data N(c, v/4) plus noise sigma, shrunk by q = 0.95^10: mean c, variance q^2 (v/4 + sigma^2). Hardly a pixel is clipped."""
    rows, q, sigma = 500, 0.95**10, 0.06
    ids = Noise(1, "data", (), range(rows), [0] * rows)
    x = 0.5 + 0.08 * ids.normal(0, torch.zeros(rows, 1, 8, 8, dtype=torch.float64))
    out = chain.run(adp(Gaussian(0.0, 4 * 0.08**2), sigma=sigma), x, ids.fork("purify"))
    assert abs(out.mean() - 0.5) < 3 * q * 0.1 / math.sqrt(rows * 64)
    assert out.std() == pytest.approx(q * 0.1, rel=0.02)


def test_adaptive_steps_on_an_uneven_gaussian_follow_the_rayleigh_quotient():
    curvature = torch.linspace(1, 9, 16, dtype=torch.float64).view(1, 4, 4)
    p = adp(Field(lambda x: -curvature * (x - 0.4)), sigma=0.0, steps=6)
    states, _ = path(p, IMAGES, NOISE)
    x, a = IMAGES.numpy(), curvature.numpy()
    for k in range(6):
        s = -a * (x - 0.4)
        alpha = 0.05 * (s * s).sum((1, 2, 3)) / (a * s * s).sum((1, 2, 3))
        x = x + alpha[:, None, None, None] * s
        np.testing.assert_allclose(states[k + 1], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("update", ["schedule", "langevin"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_schedule_and_langevin_on_a_gaussian_are_autoregressions(update, steps):
    p = adp(Gaussian(), sigma=0.1, update=update, steps=steps, level=0.4)
    alphas = [0.08 * 0.01 ** (k / max(steps - 1, 1)) for k in range(steps)]  # appendix C: 0.08 to 8e-4
    x = (IMAGES + 0.1 * NOISE.normal(-1, IMAGES)).clamp(0, 1)
    slope = ((IMAGES + 0.1 * NOISE.normal(-1, IMAGES)) % 1 == x).double()
    for k, a in enumerate(alphas):
        pull = a * 2 * 0.4 / (VARIANCE + 0.4**2)
        x = x - pull * (x - (MEAN + 1) / 2)
        if update == "langevin":  # eta = a * 0.2, along the score on the [0,1] scale, where the level is 0.2
            x = x + math.sqrt(2 * a * 0.2) * NOISE.normal(k, x)
        slope = slope * (1 - pull)
    np.testing.assert_allclose(path(p, IMAGES, NOISE)[1], x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(chain.vjp(p, IMAGES, NOISE, V)[1], slope * V, rtol=0, atol=1e-12)


def test_score_models_take_turns():
    seen = []

    def model(name, level):
        made = Gaussian()
        made.sigma_min = level
        made.direction = lambda x, sigma: seen.append((name, sigma)) or -(x - MEAN)
        return made

    chain.run(adp([model("a", 0.3), model("b", 0.6)], sigma=0.0, steps=3), IMAGES, NOISE)
    assert seen == [("a", 0.3)] * 2 + [("b", 0.6)] * 2 + [("a", 0.3)] * 2
    assert [m for m, _ in seen] == list("aabbaa")


def test_each_model_has_its_own_update():
    """Adaptive steps go the share lam of the way on a Gaussian, the others what the schedule has at their place in the rotation."""
    models = [Gaussian(), Gaussian()]
    p = adp(models, sigma=0.0, update=["deterministic", "schedule"], steps=4, level=0.4, alpha_max=10.0)
    alphas = [0.08 * 0.01 ** (k / 3) for k in range(4)]
    kept = math.prod(0.95 if k % 2 == 0 else 1 - a * 2 * 0.4 / (VARIANCE + 0.4**2) for k, a in enumerate(alphas))
    middle = (MEAN + 1) / 2
    np.testing.assert_allclose(path(p, IMAGES, NOISE)[1], middle + kept * (IMAGES - middle), rtol=0, atol=1e-6)
    # The order is the models': the other way round another path.
    other = adp(models, sigma=0.0, update=["schedule", "deterministic"], steps=4, level=0.4, alpha_max=10.0)
    assert not np.allclose(path(other, IMAGES, NOISE)[1], path(p, IMAGES, NOISE)[1], rtol=0, atol=1e-9)


def test_an_image_that_an_adaptive_step_has_stopped_is_stopped_for_the_other_model_too():
    still, pulling = Gaussian(), Gaussian()
    still.direction = lambda x, sigma: torch.zeros_like(x)
    p = adp([still, pulling], sigma=0.0, update=["deterministic", "schedule"], steps=4)
    np.testing.assert_array_equal(path(p, IMAGES, NOISE)[1], IMAGES)


def test_one_update_for_all_models_is_one_word():
    cell = functools.partial(registry.validated, "defense", "adp")
    assert cell({"update": ("schedule", "schedule")})["update"] == "schedule" == cell({"update": "schedule"})["update"]
    assert cell({"update": ["deterministic", "schedule"]})["update"] == ("deterministic", "schedule")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"update": ["deterministic", "sometimes"]}, "unknown update"),
        ({"update": ["deterministic", "schedule"]}, "has 2 words, and there is 1 score model"),
        ({"update": ["schedule", "deterministic"], "first": 1e-5}, "a schedule falls"),
        ({"update": ["deterministic", 3]}, "is not a word"),
        ({"update": ["deterministic", "schedule"], "variant": "code"}, "needs update == 'deterministic'"),
        ({"rand": ["gaussian", "binary"]}, "is not a word"),
    ],
)
def test_a_wrong_list_of_updates_is_refused(given, why):
    models = Gaussian() if "1 score" in why else [Gaussian(), Gaussian()]
    with pytest.raises(UserError, match=why) as error:
        adp(models, **given)
    assert error.value.hint


def test_the_level_is_the_injected_noise_within_the_models_range():
    assert adp(Gaussian(), sigma=0.25).levels == [0.5]
    assert adp(Gaussian(), sigma=0.0).levels == [0.05]
    assert adp(Gaussian(), sigma=9.0).levels == [10.0]
    assert adp(Gaussian(), sigma=0.25, level=0.7).levels == [0.7]


def test_binary_noise_has_two_values_of_the_same_mean_size():
    p = adp(Gaussian(), rand="binary", sigma=0.1)
    moved = (p.start(torch.full_like(IMAGES, 0.5), NOISE)[0] - 0.5).abs()
    np.testing.assert_allclose(moved, 0.1 * math.sqrt(2 / math.pi), rtol=1e-12)


def test_sigma_from_data_is_the_median_distance():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # distances 5, 1, sqrt(18)
    assert sigma_from_data(x) == pytest.approx(math.sqrt(18) / math.sqrt(2))
    many = 0.5 + 0.18 * torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert sigma_from_data(many) == pytest.approx(0.18 * math.sqrt(2), rel=0.01)
    with pytest.raises(UserError, match="1 images") as error:
        sigma_from_data(many[:1])
    assert error.value.hint


# ------------------------------------------------------------------------------------------------------------------- gradients


class Pulled:
    """A trained network's stand-in: mostly a pull to a mean image, so that curvature is positive and steps are taken."""

    sigma_min, sigma_max = 0.01, 100.0

    def __init__(self, seed):
        self.inner = VPScore(smooth_unet(seed), (1, 4, 4))

    def direction(self, x, sigma):
        uneven = torch.linspace(0.5, 2.5, 16, dtype=x.dtype).view(1, 4, 4)
        return -uneven * (x - 0.1) + 0.5 * self.inner.direction(x, sigma)


A, B = Pulled(0), Pulled(1)
CASES = {
    "paper": {},
    "paper-mixstop": {"tau": 3.3},
    "detection": {"threshold": 3.1},
    "rotating": {"score": [A, B]},
    "binary": {"rand": "binary", "sigma": 0.05},
    "code": {"variant": "code", "sigma": 0.05},
    "code-mixstop": {"variant": "code", "sigma": 0.05, "tau": 0.0135},
    "schedule": {"update": "schedule", "sigma": 0.0},
    "langevin": {"update": "langevin", "sigma": 0.1},
}


def case(name, steps=5, **changes):
    return adp(**({"score": A, "steps": steps} | CASES[name] | changes))


PLANS = [Plan(tail=5), *(Plan(tail=m) for m in (1, 2, 4)), Plan(2, 2), Plan(1, 3), Plan(1, 2, 2), Plan(1, 3, 2)]


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_autograd_and_recomputation_repeats_every_bit(name):
    p = case(name)
    expected, grad = autograd(p, IMAGES, V, NOISE)
    assert torch.equal(chain.run(p, IMAGES, NOISE), expected)
    for plan in PLANS:
        tape = Tape(p, IMAGES, NOISE, plan)
        assert torch.equal(tape.purified, expected), plan
        assert relative(tape.vjp(V), grad) < 1e-12, plan


@pytest.mark.parametrize("name", CASES)
def test_budgets_change_no_gradient(name):
    p = case(name, steps=9)
    out, grad = chain.vjp(p, IMAGES, NOISE, V)
    state, graph = chain.step_bytes(p, IMAGES, NOISE)
    assert state == IMAGES.nbytes + ROWS
    for memory in (3 * graph, 5 * graph, 10**12):
        again, other = chain.vjp(p, IMAGES, NOISE, V, memory=memory)
        assert torch.equal(again, out)
        assert relative(other, grad) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_central_difference(name):
    assert slope_error(case(name), IMAGES, V, NOISE) < 1e-6


def test_images_of_the_mixed_cases_stop_at_different_steps():
    alive: dict = {"paper-mixstop": [], "code-mixstop": []}
    for name, seen in alive.items():
        chain.run(case(name), IMAGES, NOISE, on_state=lambda _, s, seen=seen: seen.append(s[1].flatten().tolist()))
    assert [sum(a) for a in alive["paper-mixstop"]] == [3, 3, 2, 2, 2, 0]
    assert [sum(a) for a in alive["code-mixstop"]] == [3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize(
    "field",
    [
        torch.zeros_like,
        torch.ones_like,
        lambda x: x,
        lambda x: 0 * x,
        lambda x: (x - 0.5).abs(),
        lambda x: 1e-30 * (0.5 - x),
    ],
    ids=["zero", "z=1", "z>1", "zero-with-graph", "kink", "tiny"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tau", [0.0, 0.001])
def test_kinks_give_finite_images_and_gradients(variant, field, dtype, tau):
    x = torch.cat([IMAGES, torch.zeros_like(IMAGES), torch.ones_like(IMAGES), torch.full_like(IMAGES, 0.5)]).to(dtype)
    noise = Noise(0, "test", (), range(len(x)), [0] * len(x))
    for sigma in (0.0, 0.25):
        out, grad = chain.vjp(adp(Field(field), variant=variant, sigma=sigma, tau=tau), x, noise, torch.ones_like(x))
        assert out.dtype == grad.dtype == dtype
        assert out.isfinite().all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_images_stop_where_the_score_vanishes_or_curves_the_wrong_way(variant):
    for field in (torch.zeros_like, lambda x: x):
        p = adp(Field(field), variant=variant, sigma=0.0)
        states, _ = path(p, IMAGES, NOISE)
        assert all(np.array_equal(states[0], s) for s in states)


def test_the_paper_stops_small_scores_one_by_one():
    p = adp(Field(lambda x: 1e-4 * (0.5 - x)), sigma=0.0, tau=2e-4, alpha_max=1e9, steps=3)
    x = torch.cat([IMAGES[:1], 0.5 + 0.01 * (IMAGES[:1] - 0.5)])
    states, _ = path(p, x, NOISE.rows([0, 1], [0, 0]))
    norms = 1e-4 * (x - 0.5).flatten(1).norm(dim=1)
    assert norms[1] < 2e-4 / 20
    assert np.array_equal(states[0][1], states[-1][1])
    p = adp(Field(lambda x: 1e-4 * (0.5 - x)), sigma=0.0, tau=5e-6, alpha_max=1e9, steps=3)
    states, _ = path(p, x, NOISE.rows([0, 1], [0, 0]))
    assert not np.array_equal(states[0][0], states[-1][0])


def test_exact_gradients_go_through_the_step_size():
    """Holding alpha constant gives another gradient."""
    p = case("paper")
    alphas = []
    chain.run(p, IMAGES, NOISE, on_state=lambda k, s: alphas.append(p.alpha(k, s[0], p.score(k, s[0]))))
    with torch.enable_grad():
        x = IMAGES.clone().requires_grad_()
        u = p.start(x, NOISE)[0]
        for k in range(p.n):
            u = u + alphas[k] * p.score(k, u)
        constant = torch.autograd.grad(u, x, V)[0]
    assert relative(u.detach(), chain.run(p, IMAGES, NOISE)) < 1e-12
    assert relative(chain.vjp(p, IMAGES, NOISE, V)[1], constant) > 1e-3


def test_float32_step_sizes_are_good_to_a_percent():
    """1 - z is a small difference; at delta 1e-5 float32 leaves two digits or more, at 1e-3 four."""
    for delta, tolerance in ((1e-5, 1e-2), (1e-3, 1e-4)):
        p = adp(Field(sine(1)), delta=delta, alpha_max=1.0)
        x = published_x()[:2]  # away from the curvature's change of sign
        x, y = (0.5 + 0.5 * (x - 0.5)).float(), (0.5 + 0.5 * (x - 0.5)).double()
        ours, exact = p.alpha(0, x, p.score(0, x)), p.alpha(0, y, p.score(0, y))
        assert relative(ours.double(), exact) < tolerance


# ------------------------------------------------------------------------------------------------------------- rows, calls, errors


@pytest.mark.parametrize("name", ["paper-mixstop", "detection", "rotating"])
def test_batch_mates_and_places_change_no_bit(name):
    """Where images stop at different steps, are noised differently, or see two score models; the other forms: test_contract.py."""
    p, rows = case(name), 16
    x = torch.rand(rows, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    v = torch.randn(rows, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    out, grad = chain.vjp(p, x, NOISE.rows(range(rows), [0] * rows), v)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(7))
    again, other = chain.vjp(p, x[order], NOISE.rows(order, [0] * rows), v[order])
    assert torch.equal(again, out[order])
    assert torch.equal(other, grad[order])
    y = x.clone()
    y[8:] = 0.5
    mates, alone = chain.vjp(p, y, NOISE.rows(range(rows), [0] * rows), v)
    assert torch.equal(mates[:8], out[:8])
    assert torch.equal(alone[:8], grad[:8])


def test_the_published_code_couples_the_batch_and_says_so():
    field, x = sine(4), published_x()
    p = adp(Field(field), variant="code", sigma=0.1, tau=0.003)
    noise = Noise(0, "test", (), range(4), [0] * 4)
    whole = chain.run(p, x, noise)
    alone = torch.cat([chain.run(p, x[i : i + 1], noise.rows([i], [0])) for i in range(4)])
    assert p.couples_batch
    assert not torch.equal(whole, alone)  # a stopped image goes on being stretched while its mates are alive


def test_detection_without_noise_costs_no_call():
    with chain.nfe() as calls:
        chain.run(case("detection", sigma=0.0), IMAGES, NOISE)
    assert (calls.forward, calls.backward) == (10, 0)


def test_every_requirement_holds_for_the_defaults():
    defaults = registry.parameters("defense", "adp")
    assert all(registry.expression(condition, defaults) for condition in INFO["adp"]["requires"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigma": -0.1}, "`adp` with sigma=-0.1 is not possible: it needs sigma >= 0"),
        ({"sigma": math.nan}, "outside its range"),
        ({"steps": 0}, "`steps=0` is not possible for `adp`"),
        ({"lam": 0.0}, "it needs lam > 0"),
        ({"delta": -1e-5}, "it needs delta >= 0"),
        ({"last": 0.0}, "it needs last > 0"),
        ({"threshold": -1.0}, "it needs threshold >= 0"),
        ({"variant": "official"}, "unknown variant of `adp` `official`"),
        ({"rand": "uniform"}, "unknown rand"),
        ({"update": "adaptiv"}, "unknown update"),
        (
            {"variant": "code", "update": "langevin"},
            "update=langevin is not possible: it needs update == 'deterministic'",
        ),
        ({"score": None}, "was given none"),
        ({"score": []}, "was given none"),
        ({"score": [A, None]}, "was given none"),
    ],
    ids=label,
)
def test_impossible_parameters_are_refused(parameters, message):
    with pytest.raises(UserError, match=message) as error:
        adp(**({"score": A} | parameters))
    assert error.value.hint


def test_an_energy_models_score_can_be_followed():
    torch.manual_seed(0)
    score = EnergyScore(EBM({"n_f": 4}).requires_grad_(False), (3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    noise = Noise(0, "test", (), range(2), [0] * 2)
    for update in ("schedule", "langevin", "deterministic"):
        out, grad = chain.vjp(adp(score, update=update, steps=3), x, noise, torch.ones_like(x))
        assert out.isfinite().all()
        assert grad.isfinite().all()


def test_golden_literals():
    """If this fails, results recorded before differ from new ones: raise `version`."""
    got = {name: path(case(name), IMAGES, NOISE)[1].flatten()[[0, 20, 40]].tolist() for name in CASES}
    assert got == {name: pytest.approx(values, rel=1e-7) for name, values in NUMBERS.items()}


NUMBERS = {
    "paper": [0.7047466599942315, 0.7901442655982063, 0.35649102708180463],
    "paper-mixstop": [0.7041339904573114, 0.801260023454131, 0.34326967886355364],
    "detection": [0.8034691156406847, 0.7901442655982063, 0.44461980215324093],
    "rotating": [0.6931961797688094, 0.7753630218552559, 0.34525440559934806],
    "binary": [0.7912267646379525, 0.6601785906808386, 0.497909854603459],
    "code": [0.8085502154053088, 0.7178538508021469, 0.44433721343974353],
    "code-mixstop": [0.8085502154053088, 0.7204110605722631, 0.44433721343974353],
    "schedule": [0.8251176085961774, 0.6949211655002783, 0.4909314562159193],
    "langevin": [0.8278198126387101, 0.712267370392745, 0.636476145881087],
}
