"""Every parameter of every defense and attack, as a number: what is computed where nothing is given, and that nothing hides it.

A case is a component as a user writes it, the number that it gives, and for each parameter that the case is there for another value,
which gives another number: no clip, ball or other parameter stands between. So a default that changes is noticed
(`benchmarks/parameters.py` changes each), and a parameter that is added wants a case.
"""

from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from purebench import embedded, registry
from purebench.attacks import autoattack, square
from purebench.attacks.queries import Queries
from purebench.engine import chain
from purebench.engine.defense import Defense
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, Observed
from purebench.plan import grid as plan
from purebench.purifiers import make
from purebench.purifiers.gaussian import Gaussian
from purebench.running import evaluate
from purebench.scores.vp import IndexScore, VPScore
from purebench.spec import ThreatModel, parse

torch.set_num_threads(1)
TOLERANCE = (
    1e-8  # absolute, of numbers around 1; another value of a parameter makes a difference of ten times that or more
)


def generated(seed, *shape, kind=torch.randn):
    return kind(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPE = (4, 1, 3, 4)
X, WEIGHTS = generated(0, *SHAPE, kind=torch.rand), generated(1, *SHAPE)
X[0] = 0.55 + X[0] / 10  # one image where the score is small: adp's detection tells it from the others
NOISE = Noise(3, "judge", (), range(4), [0] * 4)


class Bent(nn.Module):
    """Noise of Gaussian data, bent by a sine so that no two solvers agree, and the weight of a learned log variance: (B,2C,H,W)."""

    def forward(self, x, i):
        t = ((i + 1) / 1000)[:, None, None, None]
        abar = torch.exp(-0.1 * t - 9.95 * t**2)
        eps = (1 - abar).sqrt() * (x - 0.3 * abar.sqrt() + 0.2 * torch.sin(3 * x)) / (0.25 * abar + 1 - abar)
        return torch.cat([eps, torch.tanh(x)], dim=1)


class Classifier(nn.Module):
    """Ten logits that are not linear in the image; in float64 inside, since AutoAttack hands over float32."""

    first, last = generated(2, 12, 8), generated(5, 8, 10)

    def forward(self, u):
        return (torch.tanh((2 * u.double() - 1).flatten(1) @ self.first / 2) @ self.last).to(u.dtype)


SCORE, CLASSIFIER = IndexScore(Bent(), SHAPE[1:], variances=True), watch(Classifier())


# ------------------------------------------------------------------------------------------------------------------- defenses

DEFENSES = {  # case: (the purified images in one weighted sum, {parameter: another value})
    "diffpure": (0.13352716596799308, {"t": 0.101, "steps": 101}),
    "reverse-sde": (0.6248003257999762, {"t": 0.101, "steps": 101, "clamp": True}),
    "coup": (0.6306891585343888, {"t": 0.101, "steps": 101, "guidance": 1.1, "clamp": True}),
    "one-shot": (0.4237305770411599, {"sigma": 0.51}),
    "diffpure-ode": (-0.4326669669270724, {"t": 0.101, "steps": 101}),
    "diffpure-ld": (-0.11832546664074961, {"t": 0.101, "steps": 11, "sigma2": 0.0011, "lambda_ld": 0.011, "eta": 5.1}),
    "diffpure-ddpm": (0.06384725865068797, {"t": 0.101, "variance": "fixedlarge", "clip": False}),
    "adp": (
        0.4654400685835105,
        {
            "sigma": 0.26,
            "rand": "binary",
            "steps": 11,
            "variant": "code",
            "update": "langevin",
            "lam": 0.051,
            "delta": 0.001,
            "level": 0.51,
            "threshold": 1.0,
        },
    ),
    "adp:lam=0.3": (1.961058305529062, {"alpha_max": 0.11}),
    "adp:alpha_max=1,lam=0.2,steps=100": (2.0732501114984805, {"tau": 0.0011}),
    "adp:update=schedule": (0.24499158622995942, {"first": 0.081, "last": 0.00081}),
    "adp:threshold=1": (0.29580261760046955, {"beta": 0.21}),
    "scoreopt-o": (
        0.3309743523840907,
        {"sigma": 0.51, "width": 0.11, "lr": 0.11, "steps": 6, "objective": "mse", "variant": "code"},
    ),
    "scoreopt-o:objective=mse": (0.4499091143794598, {"weight": 1.1}),
    "scoreopt-o:objective=sr": (0.9250680720534439, {"weight": 1.1}),
    "scoreopt-o:variant=code": (0.43283124731035505, {"batch": 121}),
    "scoreopt-n": (
        0.07546433689223875,
        {"sigma": 0.51, "width": 0.01, "lr": 0.11, "steps": 6, "outer": 2, "objective": "sr", "variant": "code"},
    ),
    "scoreopt-n:objective=sr": (0.30795101345289755, {"weight": 1.1}),
    "scoreopt-n:variant=code": (0.29277932876853763, {"batch": 121}),
    "gdmp": (
        -0.6293565966061956,
        {"t": 37, "passes": 5, "guidance": "ssim", "scale": 601.0, "ptb": 8.1, "form": "imagenet"},
    ),
    "gdmp:passes=1,scale=100,t=5": (-0.1271253384839981, {"variant": "code"}),
    "gdmp:passes=1,t=5,variant=code": (-0.1337052118968043, {"batch": 101}),
    "lm": (-0.07291255447228884, {"eta": 0.032, "variant": "code"}),
    "lm:eta=1": (0.3428557038838149, {"steps": 6, "lr": 0.11, "low": 0.41, "high": 0.61, "guidance": 0.1}),
    "lm-coup": (-0.10631774707714392, {"eta": 0.032, "variant": "code"}),
    "lm-coup:eta=1": (1.402582378429428, {"steps": 6, "lr": 0.11, "low": 0.41, "high": 0.61, "guidance": 1.1}),
    "gns": (
        0.7358352710963482,
        {"stages": (30, 30, 30, 30, 50, 50, 125, 126), "steps": (30, 30, 30, 30, 50, 50, 125, 62), "eta": 0.9},
    ),
    "edm": (-0.2213781060031721, {"sigma": 0.51, "steps": 21, "start": 1, "order": 2}),
    "ebm": (-0.37666592638365337, {"steps": 1501}),
    "ebm:steps=20": (-0.33163264007518367, {"step": 1.1, "eps": 0.011, "level": 0.02}),
    "gaussian": (-1.4488885580398017, {"sigma": 0.51}),
}


def purified(case, **other):
    part = parse(case, "defense")
    p = make(part.name, score=SCORE, classifier=CLASSIFIER, **dict(part.parameters) | other)
    return (chain.run(p, X, NOISE) * WEIGHTS).sum().item()


# -------------------------------------------------------------------------------------------------------------------- attacks

ATTACKS = {  # case: (the attacked images in one weighted sum, {parameter: another value})
    "pgd-eot": (
        -1.4941014864405633,
        {
            "steps": 41,
            "eot": 21,
            "rel_step": 0.26,
            "loss": "dlr",
            "random_start": False,
            "average": "logits",
            "ascent": "sign",
            "targeted": True,
            "verify": 1,
            "schedule": "cosine",
        },
    ),
    "pgd-eot:steps=4,schedule=linear": (-1.2003233926257508, {"last": 0.03}),
    "pgd-eot:steps=3,targeted=true": (-1.5308931794313603, {"targets": 1}),
    "bpda-eot": (
        -1.4936307489631813,
        {
            "steps": 51,
            "eot": 16,
            "rel_step": 0.26,
            "loss": "dlr",
            "random_start": True,
            "average": "softmax",
            "verify": 1,
            "schedule": "linear",
        },
    ),
    "bpda-eot:steps=4,schedule=cosine": (-1.3984258263032343, {"last": 0.03}),
    "joint-score": (
        -1.4014308086460256,
        {"steps": 41, "eot": 16, "rel_step": 0.26, "w": 0.4, "loss": "dlr", "variant": "paper", "level": 1.0},
    ),
    "joint-full": (-1.5337593423829072, {"steps": 41, "eot": 16, "rel_step": 0.26, "w": 0.4, "loss": "dlr"}),
    "joint-full:eot=1": (-1.4052041685000713, {"variant": "paper"}),
    "approximate-input": (-1.2230634980387538, {"steps": 41, "rel_step": 0.26, "loss": "dlr"}),
    "transfer-pgd": (
        -1.4974468495850928,
        {"steps": 41, "rel_step": 0.26, "loss": "dlr", "random_start": False, "schedule": "linear"},
    ),
    "transfer-pgd:steps=5,schedule=linear": (-1.492882077232501, {"last": 0.03}),
    "hammer:steps=20": (
        -1.4154153481425003,
        {
            "eot": 11,
            "rho": 0.3,
            "loss": "dlr",
            "graft": True,
            "toward": "robust",
            "lam": 0.5,
            "rounds": 1,
            "alpha": 0.6,
        },
    ),
    "hammer:eot=2": (-1.360828350655896, {"steps": 30}),
    "diffattack:steps=20,eot=2": (-1.496325893605714, {"rho": 0.7, "loss": "dlr", "weight": 1.1, "points": 2}),
    "diffattack:steps=5": (-1.3690487354144167, {"eot": 21}),
    "diffattack:eot=2": (-1.5318131446455616, {"steps": 60}),
    "spsa:samples=2": (-1.460011419127237, {"variant": "adam", "delta": 0.3, "steps": 41, "rel_step": 0.26}),
    "spsa:steps=1": (-1.3415610719392566, {"samples": 641}),
    "square-eot:queries=12": (-1.6167254816070333, {"eot": 4, "loss": "ce"}),
    "square-eot:queries=11": (-1.3828141242356788, {"p_init": 0.1}),
    "nattack:steps=3,population=8": (-1.3715196364073536, {"sigma": 0.11, "lr": 0.021}),
    "stadv:steps=4": (-1.3027985552379442, {"eot": 21, "rel_step": 0.21, "smoothness": 0.06, "keep": "last"}),
    "stadv:eot=2": (-1.5841060042874853, {"steps": 40}),
    "salt-and-pepper": (-1.6141604374905474, {"amount": 0.3}),
    "apgd-ce:steps=20": (-1.4963045996546702, {"eot": 21, "rho": 0.7, "select": "fresh"}),
    "apgd-dlr:steps=20": (-1.482263664540897, {"eot": 21, "rho": 0.7, "select": "fresh"}),
    "apgd-margin:steps=20": (-1.5231202228249, {"eot": 21, "rho": 0.4, "select": "fresh"}),
    "apgd-targeted:n_target_classes=1,steps=20": (-1.3710635404406337, {"eot": 21, "rho": 0.7, "select": "fresh"}),
    "autoattack-rand-fix:n_iter=20": (-1.4984124144492972, {"eot": 21}),
}


ELSEWHERE_THAN_L2 = {
    "stadv": ThreatModel("StAdv", 0.05),
    "salt-and-pepper": ThreatModel("box", 1.0),
    # The smallest squares of an L2 ball are as large as these images.
    "square-eot:queries=11": ThreatModel("Linf", 0.1),
}


def attacked(case, **other):
    """On two images behind noise, in an L2 ball: in an Linf ball most values would be the ball's."""
    part = parse(case, "attack")
    x = 0.3 + 0.4 * X[:2]
    noise = Noise(0, "attack", (part.name,), range(2), [0] * 2)
    attack = registry.factory("attack", part.name)(**dict(part.parameters) | other)
    threat = ELSEWHERE_THAN_L2.get(case, ELSEWHERE_THAN_L2.get(part.name, ThreatModel("L2", 0.1)))
    # Of bare noise the gradient is the classifier's, and there is nothing to deviate from.
    whole = make("diffpure", score=SCORE, classifier=CLASSIFIER, steps=4)
    purifier = whole if part.name in ("hammer", "diffattack") else Gaussian(0.1)
    defense = Defense(purifier, CLASSIFIER)
    defense.score = SCORE
    found = attack(defense, x, CLASSIFIER(x).argmax(1), threat, noise)
    return (found.x_adv * WEIGHTS[:2]).sum().item()


CALLS = {  # case: (purifications of an image that withstands: without a gradient, with one; {parameter: another value})
    "apgd-ce": ((0, 2020), {"steps": 101}),
    "apgd-dlr": ((0, 2020), {"steps": 101}),
    "spsa:samples=2": ((160, 0), {"steps": 41}),
    "square-eot:queries=2": ((80, 0), {"eot": 21}),
    "nattack:steps=1": ((340, 0), {"population": 301, "eot": 21}),
    "nattack:population=2": ((2020, 0), {"steps": 501}),
    "apgd-margin": ((0, 2020), {"steps": 101}),
    "apgd-targeted:eot=2": ((2, 1818), {"steps": 101, "n_target_classes": 8}),
    "autoattack-rand": ((5, 4040), {"n_iter": 101, "eot": 21}),
    "autoattack-rand-fix": ((80, 4040), {"n_iter": 101, "evals": 21}),
    "autoattack-plus:n_queries=1,n_restarts=1,n_target_classes=1": ((322, 403), {"n_iter": 101}),
    "autoattack-plus:n_iter=1,n_queries=1": ((81, 47), {"n_target_classes": 10, "n_restarts": 6}),
    "autoattack-standard:n_queries=1,n_target_classes=1": ((116, 302), {"n_iter": 101}),
    "autoattack-standard:n_iter=1,n_queries=1": ((57, 29), {"n_target_classes": 10}),
}


class Sure:
    """A defense of twelve classes that nothing breaks, and that counts the images that it is asked for. Its gradients are all ones."""

    def __init__(self):
        self.forwards, self.gradients = 0, 0
        self.spent = SimpleNamespace(total=lambda: (self.forwards, self.gradients, 0))
        self.not_finite, self.observed = {}, Observed()

    def logits(self, x, noise):
        self.forwards += len(x)
        # Of the value nothing but the certain class, and a derivative for FAB, which takes it of each logit.
        return torch.eye(12)[0] + (x - x.detach()).flatten(1).sum(1, keepdim=True) * torch.arange(12)

    def draws(self, x, noise, first, last):
        return torch.stack([self.logits(x, noise) for _ in range(first, last)], 1)

    def loss_grad(self, x, y, loss, noise, *, eot=1, average="loss", observe=True):
        self.gradients += eot * len(x)
        logits, all_of_them = torch.eye(12)[0].expand(eot, len(x), 12), torch.ones(len(x), dtype=torch.bool)
        return Gradient(torch.zeros(len(x)), torch.ones_like(x), logits, all_of_them)


def calls(case, **other):
    part, defense = parse(case, "attack"), Sure()
    noise = Noise(0, "attack", (part.name, 0), range(1), [0])
    attack = registry.factory("attack", part.name)(**dict(part.parameters) | other)
    attack(defense, torch.full((1, 1, 3, 4), 0.5), torch.tensor([0]), ThreatModel("Linf", 0.01), noise)
    return defense.forwards, defense.gradients


# ---------------------------------------------------------------------------------------------------------------------- tests

TABLES = ((purified, DEFENSES), (attacked, ATTACKS), (calls, CALLS))
NUMBERS = [pytest.param(f, case, value, id=case) for f, table in TABLES for case, (value, _) in table.items()]
VISIBLE = [
    pytest.param(f, case, value, {key: other}, id=f"{case} - {key}")
    for f, table in TABLES
    for case, (value, others) in table.items()
    for key, other in others.items()
]


@pytest.mark.parametrize(("number", "case", "value"), NUMBERS)
def test_numbers(number, case, value):
    """If this fails, records made before differ: raise the component's `version`."""
    assert number(case) == pytest.approx(value, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize(("number", "case", "value", "other"), VISIBLE)
def test_another_value_is_another_number(number, case, value, other):
    assert number(case, **other) != pytest.approx(value, rel=0, abs=10 * TOLERANCE)


ELSEWHERE = {  # what no number of a purification or an attack alone can show
    "autoattack-rand": {"batch"},  # below
    "autoattack-standard": {"batch", "n_queries"},
    "pgd-eot": {"log", "log_draws"},  # they change no image: tests/test_pgd.py
    "bpda-eot": {"log", "log_draws"},
    "autoattack-plus": {"batch", "n_queries"},
    "autoattack-rand-fix": {"drop"},  # tests/test_autoattack.py
    **{
        f"apgd-{loss}": {"log", "log_draws"} for loss in ("ce", "dlr", "margin", "targeted")
    },  # they change no image: there, too
    "transfer": {"from", "attack"},  # the plan reads them: tests/test_plan.py
    "cascade": {"attacks", "select"},  # tests/test_cascade.py
    "square-eot": {"queries"},  # below
    "given": {"path", "name", "project"},  # tests/test_given.py
}


@pytest.mark.parametrize(("kind", "tables"), [("defense", (DEFENSES,)), ("attack", (ATTACKS, CALLS))])
def test_every_parameter_has_a_case_that_leaves_it_alone(kind, tables):
    covered = {name: set(ELSEWHERE.get(name, ())) for name in registry.NAMES[kind]}
    for case, (_, others) in ((c, v) for table in tables for c, v in table.items()):
        part = parse(case, kind)
        assert not set(others) & dict(part.parameters).keys(), case
        covered[part.name] |= set(others)
    known = {name: registry.parameters(kind, name).keys() for name in covered}
    assert covered == {name: keys - registry.COMMON.get(kind, {}).keys() for name, keys in known.items()}


def test_no_two_cases_have_one_number():
    values = [value for table in (DEFENSES, ATTACKS) for value, _ in table.values()]
    assert len(values) == len(set(values))


@pytest.mark.parametrize("name", ["autoattack-rand", "autoattack-standard", "autoattack-plus"])
def test_autoattack_takes_64_images_together(name):
    """Which images share a batch is part of what is random."""
    attack = registry.factory("attack", name)()

    def takes(count):
        x, y = (
            torch.zeros(count, 1, 3, 4),
            torch.ones(count, dtype=torch.int64),
        )  # all of them misclassified: none to attack
        try:
            attack(Sure(), x, y, ThreatModel("Linf", 0.01), Noise(0, "attack", (name, 0), range(count), [0] * count))
        except ValueError:
            return False
        return True

    assert [count for count in (1, 63, 64, 65, 66) if takes(count)] == [1, 63, 64]


def test_square_makes_5000_queries(monkeypatch):
    """Seen at the door of upstream's loop, which takes two seconds; tests/test_autoattack.py counts what it then asks for."""
    asked = []

    def loop(self, x, y):
        asked.append(self.n_queries)
        return torch.ones(len(x)), x.clone()

    monkeypatch.setattr(autoattack.SquareAttack, "attack_single_run", loop)
    calls("autoattack-standard:n_iter=1,n_target_classes=1")
    calls("autoattack-plus:n_iter=1,n_target_classes=1")
    assert asked == [5000, 5000]


def test_square_eot_makes_5000_queries(monkeypatch):
    """Counted where it makes a candidate, with answers that cost nothing."""
    made = []
    monkeypatch.setattr(square, "_square", lambda x, best, threat, p, noise: made.append(p) or best)
    monkeypatch.setattr(Queries, "draws", lambda self, x, noise, of, count: torch.eye(12)[0].expand(len(x), count, 12))
    calls("square-eot:eot=1")
    assert len(made) == 5000


# ------------------------------------------------------------------------------------------------ what every defense has


def cells(*defenses, **given):
    request = plan.Request(dataset="digits", defenses=defenses, attacks=("null",), images=2, **given)
    return [evaluate.build_defense(job.cell, torch.device("cpu"), rows=8) for job in plan.build(request).jobs]


U = generated(6, 2, 1, 8, 8, kind=torch.rand).float()
DRAWS = Noise(0, "judge", (), [4, 7], [0, 0])


def answers(classifier, votes=1, sigma=0.4):
    """(2,votes,K): the logits of every purification by bare noise, without the defense."""
    rows = [DRAWS.rows([4, 7], [i, i]) for i in range(votes)]
    return torch.stack([classifier(U + sigma / 2 * noise.normal(-1, U)) for noise in rows], dim=1)


def test_a_cell_that_says_nothing_else_purifies_once_with_all_of_the_noise():
    [single] = cells("gaussian:sigma=0.4")
    torch.testing.assert_close(single.logits(U, DRAWS), answers(single.classifier)[:, 0], rtol=0, atol=1e-4)


def test_a_cells_votes_are_combined_by_their_mean_logits():
    [several] = cells("gaussian:sigma=0.4,votes=3")
    torch.testing.assert_close(several.logits(U, DRAWS), answers(several.classifier, 3).mean(1), rtol=0, atol=1e-4)


def test_a_cell_has_the_runs_score_model(tmp_path):
    file = tmp_path / "mine.safetensors"
    with safetensors.safe_open(embedded.verified("digits-score"), "pt") as stored:
        about = stored.metadata()
    network = embedded.load("digits-score")
    safetensors.torch.save_file({k: v * 1.01 for k, v in network.state_dict().items()}, file, about)
    mine, ours = (cells("one-shot:sigma=0.3", **given)[0] for given in ({"score": f"digits-vp:path={file}"}, {}))
    state = 2 * U - 1 + 0.3 * DRAWS.normal(-1, U)
    for made, size in ((mine, 1.01), (ours, 1.0)):
        network.load_state_dict({k: v * size for k, v in embedded.load("digits-score").state_dict().items()})
        expected = (VPScore(network, (1, 8, 8)).denoise(state, 0.3) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(made.purify(U, DRAWS), expected, rtol=0, atol=1e-4)


def test_a_defense_made_by_hand_has_the_same_defaults():
    network = watch(embedded.load("digits-classifier"))
    once, thrice = Defense(Gaussian(0.4), network), Defense(Gaussian(0.4), network, votes=3)
    torch.testing.assert_close(once.logits(U, DRAWS), answers(network)[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(thrice.logits(U, DRAWS), answers(network, 3).mean(1), rtol=0, atol=1e-4)
