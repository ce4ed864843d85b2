"""What every defense promises of a GPU, without one: all tensors on one device, no step that waits for a value or copies anything, and
float32. Each fault that is looked for is planted once, to show that it would be seen."""

from collections import Counter

import pytest
import torch
from fake_devices import draws, moved, simulated
from test_contract import CASES, FAMILIES, IMPOSSIBLE, SIZE, frozen
from test_networks_classifiers import TINY as OTHERS
from test_networks_unet import LEVELS
from test_networks_unet import TINY as UNETS
from torch import nn

from purebench import registry
from purebench.assets.architecture import DDPM
from purebench.engine import chain
from purebench.engine.chain import Plan, Tape
from purebench.engine.defense import Defense
from purebench.engine.nfe import watch
from purebench.networks import build
from purebench.networks.small import SmallUNet
from purebench.purifiers import make
from purebench.scores.vp import IndexScore, ScheduleScore, VPScore, _log_levels
from purebench.spec import Part, parse

torch.set_num_threads(1)
ROWS = 4
IMAGES = ROWS * SIZE[0] * SIZE[1] * SIZE[2]  # numbers in a batch
# Of the rows that a draw is for: once for each stream and device, not once a step.
ALLOWED = {("copied", "engine/noise.py:on")}


class Layer(nn.Module):
    """The least network: what is looked at are the steps, and tensors without values are slow. `channels`: of its answer."""

    def __init__(self, channels=3):
        super().__init__()
        self.f = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x, labels):
        return self.f(x) * labels.cos().view(-1, 1, 1, 1)


LEAST = {
    "vp": lambda: VPScore(Layer(), SIZE),
    "index": lambda: IndexScore(Layer(6), SIZE, variances=True),
}
SCORES = FAMILIES | {"schedule": lambda: ScheduleScore(frozen(SmallUNet(3, base=8)), SIZE, DDPM)}
EACH = [
    (case, "index" if (case, "vp") in IMPOSSIBLE else "vp") for case in CASES
]  # what needs learned variances has them
every_case = pytest.mark.parametrize(("case", "family"), EACH)


def parts(case, score, device):
    """(purifier, classifier) on a device."""
    part, classifier = parse(case, "defense"), watch(nn.Sequential(nn.Flatten(), nn.Linear(IMAGES // ROWS, 10)))
    moved(score.network, device), moved(classifier, device)
    return make(part.name, score=score, classifier=classifier, **dict(part.parameters)), classifier


def walk(case, score, device):
    """(purified, what was found) of a purification on a device."""
    with simulated(device, IMAGES) as seen, torch.no_grad():
        p, _ = parts(case, score, device)
        x = torch.empty(ROWS, *SIZE, device=device)
        seen.found.clear()
        return chain.run(p, x, draws(ROWS)), seen.found


def on(device, *tensors):
    return all(t.device == torch.device(device) and t.dtype == torch.float32 for t in tensors)


# ----------------------------------------------------------------------------------------------------------- purification


@every_case
def test_a_purification_stays_on_the_device_in_float32(case, family):
    purified, found = walk(case, LEAST[family](), "cuda:0")
    assert on("cuda:0", purified)
    assert purified.shape == (ROWS, *SIZE)
    assert set(found) <= ALLOWED


@pytest.mark.parametrize("family", SCORES)
@pytest.mark.parametrize("case", ["reverse-sde:steps=2", "scoreopt-n:steps=1,outer=2"])
def test_every_family_of_score_models_stays_there(case, family):
    if (case, family) in IMPOSSIBLE:
        pytest.skip("refused")
    purified, found = walk(case, SCORES[family](), "cuda:0")
    assert on("cuda:0", purified)
    # A schedule's constants, in float64, are copied where they are first asked for, and without values each time: `scores.vp.Resident`.
    assert set(found) <= ALLOWED | {("copied", "scores/vp.py:on"), ("float64", "scores/vp.py:on")}


def test_a_schedule_is_copied_to_a_device_once_and_never_without_values():
    """A plan's walk without values came first, and the run that followed in its process got what it had left."""
    _log_levels.cache_clear()
    score, sigma = IndexScore(Layer(6), SIZE), (2, 1, 1, 1)
    with simulated("cpu", IMAGES):
        assert type(score.index(torch.full(sigma, 0.5))) is not torch.Tensor
    assert type(score.index(torch.full(sigma, 0.5))) is torch.Tensor
    cpu = torch.device("cpu")
    assert _log_levels().on(cpu) is _log_levels().on(cpu)


@pytest.mark.parametrize("name", [*UNETS, *OTHERS])
def test_every_network_stays_there(name):
    if name in UNETS:
        family, config = UNETS[name]
        shape, level = (3, 8, 8), LEVELS[family][0]
    else:
        family, config, shape = OTHERS[name][:3]
        level = None
    network = build(family, config).eval()
    with simulated("cuda:0", 10**9) as seen, torch.no_grad():
        moved(network, "cuda:0")
        x = torch.empty(ROWS, *shape, device="cuda:0")
        kind = torch.int64 if family == "ncsnv2" else torch.float32
        level = torch.full((ROWS,), level or 1, dtype=kind, device="cuda:0")
        seen.found.clear()
        out = network(x, level) if name in UNETS or family == "ncsnv2" else network(x)
    assert on("cuda:0", out)
    assert seen.found == []


# --------------------------------------------------------------------------------------------------------------- gradients


@every_case
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_gradient_asks_for_no_value(case, family, device):
    """By autograd's own engine, all graphs stored (meta), or all but the last made again (CPU)."""
    with simulated(device, IMAGES) as seen:
        p, _ = parts(case, LEAST[family](), device)
        x = torch.empty(ROWS, *SIZE, device=device)
        seen.found.clear()
        tape = Tape(p, x, draws(ROWS), Plan(tail=p.n if device == "meta" else 1))
        grad = tape.vjp(torch.empty_like(x))
        assert on(device, tape.purified, grad)
    assert set(seen.found) <= ALLOWED


# ----------------------------------------------------------------------------------------------------- the whole defense

# What waits, and how often: on the way in, per call; per chunk of rows, when it is through; of a batch's gradient, once.
CALL = {("read", "engine/defense.py:<genexpr>"): 2}  # whether the images are in [0,1]
CHUNK = {
    ("copied", "engine/defense.py:_chunks"): 1,  # which images its rows are of
    ("copied", "engine/noise.py:on"): 2,  # and their draws
    ("read", "engine/defense.py:_check"): 1,  # whether it was finite
}


def asked(case, what, chunks=1):
    """How often the host waits where, in a defense of two rows to a chunk."""
    with simulated("cuda:0", IMAGES) as seen:
        p, classifier = parts(case, LEAST["vp"](), "cuda:0")
        defense = Defense(p, classifier, rows=2)
        x = torch.empty(2 * chunks, *SIZE, device="cuda:0")
        y = torch.zeros(2 * chunks, dtype=torch.int64, device="cuda:0")
        seen.found.clear()
        assert on("cuda:0", what(defense, x, y, draws(len(x))))
    return Counter(seen.found)


def logits(defense, x, y, noise):
    with torch.no_grad():
        return defense.logits(x, noise)


def gradient(defense, x, y, noise):
    return defense.loss_grad(x, y, "ce", noise, observe=False).grad


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize(
    "case", ["reverse-sde:steps=2", "reverse-sde:steps=5", "adp:steps=2", "adp:steps=5,variant=code"]
)
def test_a_defense_waits_once_a_chunk_however_many_steps_it_has(case, chunks):
    found = asked(case, logits, chunks)
    assert found == Counter(CALL) + Counter({key: n * chunks for key, n in CHUNK.items()})


GRADIENT = {  # of a batch, beside what a purification asks
    ("read", "engine/objective.py:_worst_for_bad"): 1,  # whether a draw's logits were not finite
    ("read", "engine/objective.py:_lifted"): 1,  # whether a derivative is too small for float32
}


@pytest.mark.parametrize("kind", ["exact", "detached", "bpda"])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_gradient_waits_once_a_chunk_however_many_steps_it_has(kind, steps):
    def what(defense, x, y, noise):
        return gradient(defense.using(Part(kind)), x, y, noise)

    found = asked(f"coup:steps={steps}", what)
    # Lifted derivatives are taken again, in float64: another look at the draws.
    assert found == Counter(CALL) + Counter(CHUNK) + Counter(GRADIENT) + Counter(
        {("read", "engine/objective.py:_worst_for_bad"): 1}
    )


@pytest.mark.parametrize("name", [name for name in registry.names("defense") if registry.cases(name)])
def test_every_defense_classifies_and_is_attacked_there(name):
    """Forward and with the graphs of a gradient, of every name in the registry; what it waits for is named above."""
    case = next(iter(registry.cases(name)))
    for what in (logits, gradient):
        known = {*CALL, *CHUNK, *GRADIENT}
        assert set(asked(case, what)) <= known


# ------------------------------------------------------------------------------------------------------------ the faults


class Toy:
    """A chain of one step, `fault(x)`."""

    n = 1

    def __init__(self, fault):
        self.fault = fault

    def start(self, x, noise):
        return x

    def step(self, k, x, noise):
        return self.fault(x)

    def finish(self, x):
        return x


class ReadsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * grad.sum().item()


FAULTS = {  # what goes wrong -> (a step that does it, what is found, or the words of what is raised)
    "item": (lambda x: x * x.sum().item(), "read"),
    "tolist": (lambda x: x * x[:, 0, 0, 0].tolist()[0], "read"),
    "bool": (lambda x: x if (x > 0).all() else -x, "read"),
    "float": (lambda x: x * float(x.mean()), "read"),
    "mask": (lambda x: x.index_put((x > 2,), x.new_ones(())) + x[x > 0].sum(), "dynamic|nonzero"),
    "equal": (lambda x: x * torch.equal(x, x), "equal|waited|data"),
    "cpu": (lambda x: x + x.cpu().to(x.device), "copied"),
    "numbers": (lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device).view(3, 1, 1), "copied"),
    "number": (lambda x: x * torch.as_tensor(0.5).to(x.device), "copied"),
    "index": (lambda x: x[:, torch.tensor([2, 1, 0])], "copied"),
    "wrong device": (lambda x: x + torch.ones(3, 8, 8), "device"),
    "weights left behind": (lambda x: nn.functional.conv2d(x, torch.ones(3, 3, 1, 1)), "device"),
    "float64": (lambda x: (x.double() * 2).float(), "float64"),
    "float64 result": (lambda x: x.double(), "float64"),
}


def faults(fault):
    """The words of what is found, or raised."""
    with torch.no_grad():
        try:
            with simulated("cuda:0", IMAGES) as seen:
                x = torch.empty(ROWS, *SIZE, device="cuda:0")
                chain.run(Toy(fault), x, draws(ROWS))
        except Exception as error:
            return f"{type(error).__name__} {error}".lower()
    return " ".join(kind for kind, _ in seen.found)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name):
    fault, words = FAULTS[name]
    found = faults(fault)
    assert any(word in found for word in words.split("|")), found


def test_what_is_no_fault_is_not_seen():
    assert faults(lambda x: torch.where(x > 0, x, 0) * torch.full((len(x), 1, 1, 1), 0.5, device=x.device)) == ""


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_value_that_a_backward_asks_for_is_seen(device):
    with simulated(device, IMAGES) as seen:
        x = torch.empty(ROWS, *SIZE, device=device)
        Tape(Toy(ReadsBackward.apply), x, draws(ROWS), Plan(tail=1)).vjp(x)
    assert [kind for kind, _ in seen.found] == ["read"]
