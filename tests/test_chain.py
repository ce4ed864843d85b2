"""The engine: exact gradients for every purifier and every memory budget, and honest counts of network calls."""

import math
import re
import weakref
from contextlib import nullcontext

import pytest
import torch
from helpers import autograd, first_case, relative, slope_error, smooth_classifier, smooth_unet
from torch import nn

from purebench import embedded, registry
from purebench.engine import chain
from purebench.engine.chain import Plan, Tape
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.purifiers import make
from purebench.scores.vp import VPScore

torch.set_num_threads(1)
ROWS = 3
NOISE = Noise(5, "attack", (), range(ROWS), [0] * ROWS)
NAMES = [name for name, target in registry.names("defense").items() if target.startswith("purebench.")]
CASES = [*NAMES, "coup:clamp"]


SCORE, CLASSIFIER = VPScore(smooth_unet(), (1, 4, 4)), smooth_classifier()
X = torch.rand(ROWS, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
V = torch.randn(ROWS, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def purifier(case: str, steps: int = 6):
    """The registered purifier with few steps; `coup` strongly guided."""
    name, _, flag = case.partition(":")
    given = few(name, steps) | ({flag: True} if flag else {})
    return make(name, score=SCORE, classifier=CLASSIFIER, **given)


def few(name: str, steps: int = 6) -> dict:
    """Parameters with which `name` has that many steps."""
    other = {
        "diffpure-ddpm": {"t": steps / 1000},
        "gdmp": {"t": steps, "passes": 1, "scale": 600.0},
        "gns": {"stages": (3 * steps,), "steps": (steps,)},
    }
    known = registry.parameters("defense", name)
    usual = {k: v for k, v in {"steps": steps, "t": 0.12, "guidance": 3.0}.items() if k in known}
    return other[name] if name in other else usual if "steps" in known else first_case(name)


class Toy:
    """A state of image, alive mask, counter and a moving average: rows stop at different steps."""

    def __init__(self, n: int):
        self.n = n

    def start(self, x, noise):
        x = 2 * x - 1 + 0.1 * noise.normal(-1, x)
        return x, torch.ones(len(x), dtype=torch.bool), torch.zeros((), dtype=torch.int64), torch.zeros_like(x)

    def step(self, k, state, noise):
        x, alive, count, mean = state
        mean = 0.9 * mean + 0.1 * torch.tanh(x + 0.2 * noise.normal(k, x, draw=1)) * (1 + count)
        new = x - 0.3 * mean * x.square().mean((1, 2, 3), keepdim=True) + 0.1 * noise.normal(k, x)
        alive = alive & (torch.arange(len(x)) + 1 > count - 1)
        return torch.where(alive[:, None, None, None], new, x), alive, count + 1, mean

    def finish(self, state):
        x, alive, count, mean = state
        return (x + 1) / 2 + 0.01 * count * mean + alive[:, None, None, None].to(x.dtype)


def plans(n: int) -> list[Plan]:
    """Everything stored, every tail, every length of segment, two levels."""
    some = [Plan(tail=n), *(Plan(tail=m) for m in range(1, n)), *(Plan(tail=s, segment=s) for s in range(2, n))]
    return some + [Plan(tail=1, segment=s, level=2) for s in range(1, n + 1)] + [Plan(tail=2, segment=3)] * (n > 3)


# ------------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_autograd_outputs_are_run_and_calls_are_counted_once_under_every_plan(case):
    name = case.partition(":")[0]
    p = purifier(case, steps=4)  # of longer chains, plan by plan: the toy below
    expected, grad = autograd(p, X, V, NOISE)
    with chain.nfe() as calls:
        out = chain.run(p, X, NOISE)
    assert torch.equal(out, expected)
    assert not out.requires_grad
    assert calls.recomputed == 0
    forward, inner = calls.forward, calls.backward
    for plan in plans(p.n):
        with chain.nfe() as calls:
            tape = Tape(p, X, NOISE, plan)
            found = tape.vjp(V)
        assert torch.equal(tape.purified, out), plan
        assert not tape.purified.requires_grad
        assert relative(found, grad) < 1e-12, plan
        assert (calls.forward, calls.backward) == (forward, forward + inner), plan
        if name != "scoreopt-n":  # its last step is of another kind
            assert calls.recomputed == recomputed(plan, p.n) * (forward + inner) / max(p.n, 1), plan


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_states_of_mask_counter_and_moments(n):
    p = Toy(n)
    expected, grad = autograd(p, X, V, NOISE)
    assert torch.equal(chain.run(p, X, NOISE), expected)
    for plan in plans(n):
        tape = Tape(p, X, NOISE, plan)
        assert torch.equal(tape.purified, expected), plan
        assert relative(tape.vjp(V), grad) < 1e-12, plan


@pytest.mark.parametrize("case", [c for c in CASES if hasattr(purifier(c), "times")])
@pytest.mark.parametrize("n", [1, 2])
def test_chains_of_one_and_two_steps(case, n):
    p = purifier(case, steps=n)
    assert p.n == n
    for plan in plans(n):
        assert relative(Tape(p, X, NOISE, plan).vjp(V), autograd(p, X, V, NOISE)[1]) < 1e-12, plan


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_central_difference(case):
    assert slope_error(purifier(case), X, V, NOISE) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_budgets_from_the_least_up_change_no_gradient(case):
    p = purifier(case, steps=9)
    out, grad = chain.vjp(p, X, NOISE, V)
    assert relative(grad, autograd(p, X, V, NOISE)[1]) < 1e-12
    if not p.n:
        return
    state, graph = chain.step_bytes(p, X, NOISE)
    assert state >= X.nbytes
    with pytest.raises(UserError, match="too small") as error:
        chain.vjp(p, X, NOISE, V, memory=1)
    assert "--rows" in error.value.hint
    least = int(re.findall(r"need ([\d,]+)", error.value.message)[0].replace(",", ""))
    held = graph + 2 * math.ceil(math.sqrt(p.n)) * state  # what comes and goes beside it is measured
    assert held < least < 2 * held
    with pytest.raises(UserError, match="too small"):
        chain.vjp(p, X, NOISE, V, memory=least - (1 if p.n > 1 else 2 * state + 1))
    for memory in (least, least + state, 3 * graph, p.n * graph, 10**12):
        if memory >= least:
            again, other = chain.vjp(p, X, NOISE, V, memory=memory)
            assert torch.equal(again, out)
            assert relative(other, grad) < 1e-12, memory


def test_the_cotangent_may_be_a_function_of_the_purified_images():
    p = purifier("coup")
    out, grad = chain.vjp(p, X, NOISE, lambda purified: V * purified.square())
    assert torch.equal(out, chain.run(p, X, NOISE))
    assert torch.equal(grad, chain.vjp(p, X, NOISE, V * out.square())[1])


def test_the_identity_passes_the_cotangent_on():
    out, grad = chain.vjp(make("none"), X, NOISE, V, memory=1)
    assert torch.equal(out, X)
    assert torch.equal(grad, V)


class Constant(Toy):
    """Purifies everything into the same image, step by step: no gradient at all."""

    def step(self, k, state, noise):
        return (torch.zeros_like(state[0]), *state[1:3], torch.ones_like(state[3]))


@pytest.mark.parametrize("plan", plans(3), ids=str)
def test_a_chain_without_dependence_has_gradient_zero(plan):
    assert torch.equal(Tape(Constant(3), X, NOISE, plan).vjp(V), torch.zeros_like(X))


def test_gradients_are_the_same_inside_no_grad_and_enable_grad():
    p = purifier("coup")
    expected = chain.vjp(p, X, NOISE, V)[1]
    for context in (torch.no_grad, torch.enable_grad):
        for plan in (Plan(tail=6), Plan(tail=1), Plan(tail=1, segment=3, level=2)):
            with context():
                assert torch.equal(Tape(p, X, NOISE, plan).vjp(V), expected)
                assert not chain.run(p, X.clone().requires_grad_(), NOISE).requires_grad


def test_x_that_already_requires_grad_is_left_alone():
    x = X.clone().requires_grad_()
    out, grad = chain.vjp(purifier("coup"), x, NOISE, V)
    assert x.grad is None
    assert not out.requires_grad
    assert not grad.requires_grad


def test_run_shows_every_state_once():
    p, seen = purifier("diffpure"), []
    out = chain.run(p, X, NOISE, on_state=lambda k, state: seen.append((k, state.clone())))
    assert [k for k, _ in seen] == list(range(p.n + 1))
    assert torch.equal(seen[0][1], p.start(X, NOISE))
    for k in range(p.n):
        assert torch.equal(p.step(k, seen[k][1], NOISE), seen[k + 1][1])
    assert torch.equal(p.finish(seen[-1][1]), out)


# ------------------------------------------------------------------------------------------------------- inner gradients


def cubic(x):
    return (x**3).flatten(1).sum(1)


@pytest.mark.parametrize("recording", [True, False], ids=["enable_grad", "no_grad"])
def test_inner_grad_has_a_graph_exactly_when_the_engine_records(recording):
    with torch.set_grad_enabled(recording):
        x = X.clone().requires_grad_()
        g = chain.inner_grad(cubic, x)
        assert torch.allclose(g, 3 * X**2, rtol=1e-14)
        assert g.requires_grad == recording
        assert not chain.inner_grad(cubic, X).requires_grad
        if recording:
            assert torch.allclose(torch.autograd.grad(g, x, V)[0], 6 * X * V, rtol=1e-14)
        with chain.detached():
            assert not chain.inner_grad(cubic, x).requires_grad
        assert torch.is_grad_enabled() == recording


@pytest.mark.parametrize("plan", plans(5), ids=str)
def test_detached_is_autograd_with_constant_guidance(plan):
    p = purifier("coup", steps=5)
    guidance = []
    chain.run(p, X, NOISE, on_state=lambda k, x: guidance.append(3.0 * chain.inner_grad(p.log_confidence, x)))
    frozen = purifier("reverse-sde", steps=5)
    plain = frozen.score
    times = [1 - s for s in frozen.times]
    frozen.score = lambda x, t: plain(x, t) + guidance[min(range(5), key=lambda k: abs(times[k] - t))]
    out, grad = autograd(frozen, X, V, NOISE)
    with chain.detached():
        tape = Tape(p, X, NOISE, plan)
        assert relative(tape.vjp(V), grad) < 1e-12
    assert relative(tape.purified, out) < 1e-14
    assert relative(chain.vjp(p, X, NOISE, V)[1], grad) > 1e-3  # and the two do differ


def test_detached_ends_with_its_block_even_after_an_error():
    with pytest.raises(ZeroDivisionError), chain.detached():
        _ = 1 / 0
    assert chain.inner_grad(cubic, X.clone().requires_grad_()).requires_grad


# ------------------------------------------------------------------------------------------------------------ the budget


def peak(p, memory: int | None, detached: bool = False) -> int:
    """Bytes of states and saved tensors that a vjp holds at most, seen from outside."""
    live: dict[int, list[int]] = {}
    now = top = 0

    class Saved:
        def __init__(self, t):
            self.tensor = t

    def enter(key, nbytes):
        nonlocal now, top
        entry = live.setdefault(key, [0, nbytes])
        if entry[0] == 0:
            now += nbytes
            top = max(top, now)
        entry[0] += 1

    def leave(key):
        nonlocal now
        live[key][0] -= 1
        if live[key][0] == 0:
            now -= live.pop(key)[1]

    def pack(t):
        saved = Saved(t)
        if not isinstance(t, nn.Parameter) and t.untyped_storage().data_ptr() not in parameters:
            key = t.untyped_storage().data_ptr()
            enter(key, t.untyped_storage().nbytes())
            weakref.finalize(saved, leave, key)
        return saved

    parameters = {q.untyped_storage().data_ptr() for m in (SCORE.network, CLASSIFIER) for q in m.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s.tensor),
        chain.detached() if detached else nullcontext(),
    ):
        chain.vjp(p, X, NOISE, V, memory=memory)
    return top


@pytest.mark.parametrize("case", ["diffpure", "coup"])
def test_saved_tensors_stay_within_the_budget(case):
    p = purifier(case, steps=12)
    _, graph = chain.step_bytes(p, X, NOISE)
    whole = peak(p, None)
    assert 0.8 * 12 * graph < whole < 1.05 * 12 * graph
    for memory in (2 * graph, 4 * graph, 8 * graph):
        assert 0.4 * memory < peak(p, memory) <= memory


def memory_of(plan: Plan, n: int, state: int, graph: int) -> int:
    """The most that a tape holds: kept states and the tail's graphs, then fewer states and a segment's."""
    cut = n - plan.tail
    if cut <= 0:
        return n * graph
    kept = math.ceil(cut / plan.segment)
    if plan.level == 1:
        return max(kept * state + plan.tail * graph, kept * state + min(plan.segment, cut) * graph)
    return max(kept * state + plan.tail * graph, (kept - 1 + plan.segment) * state + graph)


def recomputed(plan: Plan, n: int) -> int:
    """Forward steps done again."""
    cut = max(n - plan.tail, 0)
    if plan.level == 1:
        return cut
    return cut + sum(min(plan.segment, cut - k) - 1 for k in range(0, cut, plan.segment))


@pytest.mark.parametrize(("state", "graph"), [(1, 1), (1, 3), (1, 50), (10, 13), (10, 3), (7, 100), (1, 1000)])
def test_plans_keep_their_budget_and_more_memory_never_recomputes_more(state, graph):
    for n in (1, 2, 3, 4, 5, 9, 10, 16, 17, 50, 100):
        least, most = graph + 2 * math.ceil(n**0.5) * state, n * graph
        before = math.inf
        for memory in sorted(
            {graph - 1, least - 1, least, most - 1, most, *range(least, most, max(1, (most - least) // 150))}
        ):
            if memory < min(least, most):  # not even two levels fit; one may still
                try:
                    plan = chain.plan(n, state, graph, memory)
                except UserError:
                    assert before == math.inf
                    continue
            plan = chain.plan(n, state, graph, memory)
            assert memory_of(plan, n, state, graph) <= memory, (n, memory, plan)
            assert plan.tail >= 1
            assert recomputed(plan, n) <= before, (n, memory, plan)
            before = recomputed(plan, n)
        assert before == 0
        assert chain.plan(n, state, graph, None) == Plan(tail=n)
        with pytest.raises(UserError, match="too small"):
            chain.plan(n, state, graph, graph - 1)


def test_bytes_that_come_and_go_are_kept_free():
    for memory in range(40, 400, 7):
        assert chain.plan(20, 1, 10, memory + 5, work=5) == chain.plan(20, 1, 10, memory)
    with pytest.raises(UserError, match="need 25"):
        chain.plan(20, 1, 10, 24, work=5)


# ---------------------------------------------------------------------------------------------------------- network calls


def test_measuring_a_step_is_not_the_methods_cost():
    p = purifier("diffpure")
    with chain.nfe() as calls:
        chain.vjp(p, X, NOISE, V, memory=10**12)
    assert (calls.forward, calls.backward) == (6, 6)
    with chain.nfe() as second:
        chain.vjp(p, X, NOISE, V, memory=10**12)
    assert second.recomputed == 0  # measured once


def test_counters_nest_and_end_with_their_block():
    p = purifier("diffpure")
    with chain.nfe() as outer:
        chain.run(p, X, NOISE)
        with chain.nfe() as inner:
            chain.run(p, X, NOISE)
    chain.run(p, X, NOISE)
    assert (outer.forward, inner.forward) == (12, 6)


def test_measuring_a_step_leaves_nothing_behind():
    """A node that saves its own output makes a cycle that no collector sees, if whoever measures it holds on to the tensor."""
    seen = []

    class Toy:
        n = 1

        def start(self, x, noise):
            return x

        def step(self, k, x, noise):
            h = x.exp()
            seen.append(weakref.ref(h))
            return h * h

        def finish(self, x):
            return x

    state, graph = chain.step_bytes(Toy(), torch.rand(4, 1, 2, 2), Noise(0, "test", (), range(4), [0] * 4))
    assert (state, graph) == (64, 64 * 9 // 8)
    assert seen[0]() is None


def test_a_purification_has_the_same_bits_recorded_or_not():
    """With group norm and SiLU in what is differentiated inside a step, in float32."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
    classifier = nn.Sequential(*layers).requires_grad_(False)
    score = VPScore(embedded.load("digits-score"), (1, 8, 8))
    purifier = make("coup", score=score, classifier=classifier, t=0.1, steps=4, guidance=5.0)
    x, noise = torch.rand(16, 1, 8, 8), Noise(0, "judge", (), range(16), [0] * 16)
    plain = chain.run(purifier, x, noise)
    for plan in (chain.Plan(4), chain.Plan(1), chain.Plan(1, 2, 2)):
        assert torch.equal(chain.Tape(purifier, x, noise, plan).purified, plain)
    with chain.detached():
        assert torch.equal(chain.vjp(purifier, x, noise, torch.ones_like(x))[0], plain)


# ------------------------------------------------------------------------------------------------- terms of states on the way


def bends(k: int, state, x):
    """A term of some states that looks at x, too; of a tuple at its floating tensors."""
    if k % 2:
        return None
    at = state[0] if isinstance(state, tuple) else state
    return (at.sin() * (1 + k) * (1 + x)).flatten(1).sum(1) + x.square().flatten(1).sum(1)


def bent_by_autograd(p, terms):
    """The gradient of <purified, V> and of all terms by plain autograd through everything."""
    with torch.enable_grad():
        x = X.clone().requires_grad_()
        state = p.start(x, NOISE)
        total = terms(0, state, x).sum()
        for k in range(p.n):
            state = p.step(k, state, NOISE)
            value = terms(k + 1, state, x)
            total = total + (0 if value is None else value.sum())
        return torch.autograd.grad(total + (p.finish(state) * V).sum(), x)[0]


@pytest.mark.parametrize("case", ["diffpure", "coup", "diffpure-ddpm", "gdmp", "toy"])
def test_terms_of_states_are_differentiated_exactly_under_every_plan(case):
    """A cotangent at a state is a term too: its product with the state."""
    p = Toy(5) if case == "toy" else purifier(case, steps=5)
    expected = bent_by_autograd(p, bends)
    assert relative(autograd(p, X, V, NOISE)[1], expected) > 0.01
    for plan in plans(p.n):
        asked = []
        tape = Tape(p, X, NOISE, plan, lambda k, s, x, asked=asked: (asked.append(k), bends(k, s, x))[1])
        assert relative(tape.vjp(V), expected) < 1e-12, plan
        assert sorted(asked) == list(range(p.n + 1)), plan


@pytest.mark.parametrize("budget", [None, 4])
def test_terms_that_say_nothing_change_no_bit(budget):
    p = purifier("diffpure", steps=5)
    memory = budget and budget * chain.step_bytes(p, X, NOISE)[1]
    plain, bare = (chain.vjp(p, X, NOISE, V, memory=memory, terms=t)[1] for t in (lambda k, s, x: None, None))
    assert torch.equal(plain, bare)
