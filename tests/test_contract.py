"""What every defense promises on every family of score models: shape, type, range, determinism, rows that do not know of each other,
network calls as the rehearsal counts them, exact gradients; and a refusal in words where a pair makes no sense. The networks are small
and random."""

import itertools
from functools import cache

import pytest
import torch
from helpers import autograd, filled
from torch import nn

from purebench import registry
from purebench.engine import chain
from purebench.engine.chain import Plan, Tape
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.networks import build
from purebench.networks.small import SmallCNN, SmallUNet
from purebench.purifiers import make
from purebench.running import rehearsal
from purebench.scores.denoisers import DenoiserScore, NCSNScore
from purebench.scores.energy import EnergyScore
from purebench.scores.vp import IndexScore, VPScore
from purebench.spec import parse

torch.set_num_threads(1)
SIZE = (3, 8, 8)
NAMES = [name for name, target in registry.names("defense").items() if target.startswith("purebench.")]
NOISY = torch.randn(16, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
X = torch.rand(16, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------- families of score models


class WithVariance(nn.Module):
    """eps, and behind it the weight of the log variance, as guided diffusion's networks answer: (B, 2C, H, W)."""

    def __init__(self):
        super().__init__()
        self.eps, self.weight = SmallUNet(3, base=8), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, labels):
        eps = self.eps(x, labels)
        return torch.cat([eps, self.weight(x).tanh()], dim=1)


class Energy(nn.Module):
    """(B,), twice differentiable."""

    def __init__(self):
        super().__init__()
        convolutions = (nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 4, 2, 1), nn.SiLU())
        self.f = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 1, bias=False))

    def forward(self, x):
        return self.f(x)[:, 0]


EDM = {"img_resolution": 8, "img_channels": 3, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
NCSNV2 = {"ngf": 4, "image_size": 8, "channels": 3, "sigma_begin": 1, "sigma_end": 0.01, "num_classes": 10}
FAMILIES = {
    "vp": lambda: VPScore(frozen(SmallUNet(3, base=8)), SIZE),
    "index": lambda: IndexScore(frozen(WithVariance()), SIZE, variances=True),
    "denoiser": lambda: DenoiserScore(frozen(build("edm", {**EDM, "attn_resolutions": [4]})), SIZE),
    "ncsn": lambda: NCSNScore(frozen(build("ncsnv2", NCSNV2)), SIZE, 0.02, 2.0),
    "energy": lambda: EnergyScore(frozen(Energy()), SIZE, eps=1.0),
}


def frozen(network):
    return filled(network).eval().requires_grad_(False)


@cache
def parts(family, dtype):
    """(score model, classifier), both counted."""
    score = FAMILIES[family]()
    score.network.to(dtype)
    return score, watch(frozen(SmallCNN(3, width=8)).to(dtype))


# ----------------------------------------------------------------------------------------------------------- cases and pairs

CASES = {case: known for name in NAMES for case, known in registry.cases(name).items()}  # of each purifier's own file
IMPOSSIBLE = {  # (case, family): what the refusal says
    (case, family): words for case, known in CASES.items() for family, words in known.get("refused", {}).items()
}
TWO = ("vp", "denoiser")
PAIRS = [pair for pair in itertools.product(CASES, FAMILIES) if pair not in IMPOSSIBLE]
every_pair = pytest.mark.parametrize(("case", "family"), PAIRS)


def rotated(pairs):
    """Of each case the first family and one other, in rotation: every case on two, and every family on a share of the cases. For what costs
    most, and of which a family knows nothing of its own."""
    of = {case: [family for mate, family in pairs if mate == case] for case in CASES}
    kept = {}
    for i, (case, (first, *others)) in enumerate((case, families) for case, families in of.items() if families):
        kept[case] = {first, others[i % len(others)]} if others else {first}
    return [(case, family) for case, family in pairs if family in kept[case]]


some_pairs = pytest.mark.parametrize(("case", "family"), rotated(PAIRS))


def couples(case):
    """Whether INFO says that images depend on their batch mates, as published."""
    part = parse(case, "defense")
    return any(part.get(k) == v for k, v in registry.info("defense", part.name).get("couples", {}).items())


def purifier(case, family, dtype):
    part = parse(case, "defense")
    score, classifier = parts(family, dtype)
    return make(part.name, score=score, classifier=classifier, **dict(part.parameters))


def noise(ids, seed=3, samples=None):
    return Noise(seed, "judge", (), ids, samples or [0] * len(ids))


def about(case):
    """(INFO, resolved parameters)"""
    part = parse(case, "defense")
    return registry.info("defense", part.name), registry.parameters("defense", part.name) | dict(part.parameters)


@cache
def rehearsed(case, family):
    """(forward, backward) network calls of a purification, as the rehearsal counts them: one image, stand-ins for the networks."""
    part = parse(case, "defense")
    score = rehearsal.hollowed(parts(family, torch.float32)[0])
    made = make(part.name, score=score, classifier=rehearsal.CLASSIFIER, **dict(part.parameters))
    calls = rehearsal.count(made, torch.full((1, *SIZE), 0.5))
    assert calls.recomputed == 0
    return calls.forward, calls.backward


# -------------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_every_purifier_names_quick_cases_with_all_its_words(name):
    """Without cases no test below would look at it."""
    if not registry.cases(name):
        module = registry.names("defense")[name].partition(":")[0]
        pytest.fail(f'`{module}` names no case of `{name}`: beside INFO, write CASES = {{"{name}:steps=2": {{}}}}')
    used = [about(case)[1] for case in registry.cases(name)]
    for key, words in registry.info("defense", name).get("choices", {}).items():
        assert {"none" if values[key] is None else values[key] for values in used} == set(words), key


def test_cases_say_what_the_tests_read():
    for case, known in CASES.items():
        assert known.keys() <= {"refused", "gives"}, case
        assert known.get("refused", {}).keys() < FAMILIES.keys(), case


@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_shape_dtype_range_and_finiteness(case, family, dtype):
    x = X[:2].to(dtype)
    out = chain.run(purifier(case, family, dtype), x, noise([0, 1]))
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert not out.requires_grad
    if about(case)[0]["output"] == "unit":
        assert out.min() >= 0
        assert out.max() <= 1


@some_pairs
def test_purification_is_a_function_of_image_seed_and_image_id(case, family):
    p, x = purifier(case, family, torch.float32), X[:1].float()
    before = x.clone()
    first = chain.run(p, x, noise([5]))
    assert torch.equal(chain.run(p, x, noise([5])), first)  # the object keeps nothing
    assert torch.equal(x, before)  # and the input is not touched
    random = about(case)[0]["random"]
    for other in (noise([5], seed=4), noise([6]), noise([5], samples=[1]), noise([5]).fork("attack")):
        assert torch.equal(chain.run(p, x, other), first) != random


ALONE = [pair for pair in PAIRS if not couples(pair[0])]  # every row for itself


@pytest.mark.parametrize(("case", "family"), rotated(ALONE))
def test_a_row_depends_neither_on_its_mates_nor_on_its_place(case, family):
    """Bit for bit, purified image and gradient alike: half of sixteen rows move, among others."""
    p, x, v = purifier(case, family, torch.float32), X.float(), NOISY.float()
    out, grad = chain.vjp(p, x, noise(range(16)), v)
    kept, places = [0, 3, 6, 7, 8, 11, 14, 15], [13, 12, 1, 9, 0, 4, 7, 15]
    ids, moved, cotangent = list(range(100, 116)), (1 - x).flip(0), -v
    for row, place in zip(kept, places, strict=True):
        ids[place], moved[place], cotangent[place] = row, x[row], v[row]
    again, other = chain.vjp(p, moved, noise(ids), cotangent)
    assert torch.equal(again[places], out[kept])
    assert torch.equal(other[places], grad[kept])


@pytest.mark.parametrize(("case", "family"), [pair for pair in ALONE if pair[1] in TWO])
def test_a_row_depends_not_on_the_number_of_rows(case, family):
    p = purifier(case, family, torch.float64)
    alone, among = chain.run(p, X[1:2], noise([1])), chain.run(p, X[:3], noise(range(3)))
    torch.testing.assert_close(alone, among[1:2], rtol=1e-9, atol=1e-9)


def test_what_couples_a_batch_says_so():
    assert [case for case in CASES if couples(case)] == ["adp:steps=2,variant=code"]
    assert purifier("adp:steps=2,variant=code", "vp", torch.float32).couples_batch
    assert not purifier("adp:steps=2", "vp", torch.float32).couples_batch


@every_pair
def test_network_calls_are_those_counted_on_stand_ins(case, family):
    """Whatever the image and the networks are: what is counted before a run is what the run costs."""
    p, (forward, backward) = purifier(case, family, torch.float32), rehearsed(case, family)
    with chain.nfe() as calls:
        chain.run(p, X[:2].float(), noise([0, 1]))
    assert (calls.forward, calls.backward, calls.recomputed) == (forward, backward, 0)
    assert forward > 0 or not about(case)[0]["needs"]


@some_pairs
def test_the_gradient_is_autograd_through_the_unrolled_chain(case, family):
    p, x, v, draws = purifier(case, family, torch.float64), X[:2], NOISY[:2], noise([0, 1])
    out, expected = autograd(p, x, v, draws)
    forward, inner = rehearsed(case, family)
    backward = inner + forward - ("threshold" in case)  # a detection's comparison passes no gradient
    for plan in (Plan(tail=p.n), Plan(tail=1))[: 1 + (family in TWO)]:  # all graphs stored; all but the last made again
        with chain.nfe() as calls:
            tape = Tape(p, x, draws, plan)
            grad = tape.vjp(v)
        assert (calls.forward, calls.backward) == (forward, backward)
        assert torch.equal(tape.purified, out)
        assert grad.shape == x.shape
        assert grad.dtype == x.dtype
        assert grad.isfinite().all()
        assert grad.abs().max() > 0
        assert (grad - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert torch.equal(out, chain.run(p, x, draws))  # with a graph or without


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("case", "family"), IMPOSSIBLE)
def test_impossible_pairs_are_refused_in_words(case, family):
    with pytest.raises(UserError, match=IMPOSSIBLE[case, family]) as error:
        chain.run(purifier(case, family, torch.float32), X[:2].float(), noise([0, 1]))
    assert error.value.hint


def test_variances_that_a_network_of_indices_did_not_learn_are_refused():
    p = make("diffpure-ddpm", score=IndexScore(frozen(SmallUNet(3, base=8)), SIZE), t=0.002, variance="learned")
    with pytest.raises(UserError, match="needs a score model that learned its variances") as error:
        chain.run(p, X[:2].float(), noise([0, 1]))
    assert "variance=fixedsmall`" in error.value.hint


@pytest.mark.parametrize("name", ["lm", "lm-coup"])
def test_guidance_without_a_classifier_is_refused(name):
    with pytest.raises(UserError, match="needs a classifier") as error:
        make(name, score=parts("vp", torch.float32)[0], guidance=1.0)
    assert error.value.hint


@pytest.mark.parametrize("name", ["adp", "ebm"])
def test_what_follows_a_score_is_not_made_without_one(name):
    with pytest.raises(UserError, match="given n") as error:
        make(name)
    assert error.value.hint
