"""Noise: a draw depends on its key alone, keys are independent, and the numbers are normal, uniform and the same for ever."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from purebench.engine import noise as module
from purebench.engine.noise import Noise, Replay
from purebench.errors import UserError

KINDS = ("normal", "uniform", "sign")
BASE = {"seed": 7, "role": "judge", "path": ("pgd", 1), "ids": [3, 5, 8], "samples": [0, 2, 0]}
SHAPE = (3, 2, 3, 3)


def like(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B,) whether the rows are equal in every position."""
    return (a == b).flatten(1).all(1)


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a == b).double().mean().item()


# ------------------------------------------------------------------------------------------------------- what a draw is of


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_gives_the_same_draw_again(kind):
    first, second = Noise(**BASE), Noise(**BASE)
    expected = getattr(first, kind)(4, like(*SHAPE))
    first.normal(5, like(*SHAPE), shared=True)  # other draws in between
    assert torch.equal(getattr(first, kind)(4, like(*SHAPE)), expected)
    assert torch.equal(getattr(second, kind)(4, like(*SHAPE)), expected)


ALL_ROWS = {
    "seed": {"seed": 8},
    "role": {"role": "attack"},
    "path": {"path": ("pgd", 2)},
    "longer path": {"path": ("pgd", 1, 0)},
    "shorter path": {"path": ("pgd",)},
    "no path": {"path": ()},
    "path of a word, not a number": {"path": ("pgd", "1")},
    "path split elsewhere": {"path": ("pgd1",)},
    "role taken from the path": {"role": "judge', 'pgd", "path": (1,)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ALL_ROWS.values(), ids=ALL_ROWS.keys())
def test_another_stream_changes_every_row(kind, change):
    a, b = (getattr(Noise(**key), kind)(4, like(3, 64)) for key in (BASE, BASE | change))
    assert not same(a, b).any()
    assert agreement(a, b) < (0.7 if kind == "sign" else 0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [{"ids": [3, 6, 8]}, {"samples": [0, 3, 0]}, {"ids": [3, 2, 8], "samples": [0, 5, 0]}], ids=str
)
def test_another_image_or_sample_changes_its_own_row_only(kind, change):
    a, b = (getattr(Noise(**key), kind)(4, like(3, 64)) for key in (BASE, BASE | change))
    assert same(a, b).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_and_draw_is_another(kind):
    """k from -1 (start) to n (finish) and several draws per step never repeat each other."""
    noise = Noise(0, "judge", (), [0], [0])
    rows = [getattr(noise, kind)(k, like(1, 128), draw=d).flatten() for k in range(-1, 130) for d in range(3)]
    assert len(torch.stack(rows).unique(dim=0)) == len(rows)


def test_image_and_sample_are_not_mixed_up():
    pairs = list(itertools.product(range(-2, 60), range(40)))
    draws = Noise(0, "judge", (), [i for i, _ in pairs], [s for _, s in pairs]).normal(0, like(len(pairs), 1))
    assert len(draws.unique()) == len(pairs)


def test_positions_differ_within_a_row():
    for kind in ("normal", "uniform"):
        draws = getattr(Noise(0, "judge", (), [0], [0]), kind)(0, like(1, 2000))
        assert len(draws.unique()) > 1990, kind  # 24-bit uniforms may meet


def test_fork_names_a_stream_by_its_whole_path():
    noise = Noise(7, "judge", (), [3], [0])
    x = like(1, 16)
    assert torch.equal(noise.fork("a").fork("b", 1).normal(0, x), noise.fork("a", "b", 1).normal(0, x))
    assert torch.equal(noise.fork("a").normal(0, x), Noise(7, "judge", ("a",), [3], [0]).normal(0, x))
    names = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("ab",), (1,), (1, 1), (11,)]
    assert len({noise.fork(*path).normal(0, x).numpy().tobytes() for path in names}) == len(names)


def test_rows_keeps_the_stream_and_takes_other_rows():
    noise = Noise(**BASE)
    x = like(2, 16)
    rows = noise.rows([5, 9], [2, 1])
    assert torch.equal(rows.normal(1, x), Noise(**BASE | {"ids": [5, 9], "samples": [2, 1]}).normal(1, x))
    assert torch.equal(rows.normal(1, x)[0], noise.normal(1, like(3, 16))[1])


# --------------------------------------------------------------------------------------------------- rows know no neighbours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1,), (7,), (2, 3, 3), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_alone_is_the_row_in_any_batch(kind, size, dtype):
    ids, samples = torch.arange(20) * 7 % 11, torch.arange(20) // 4
    whole = getattr(Noise(1, "judge", (), ids, samples), kind)(2, like(20, *size, dtype=dtype), draw=1)
    assert whole.shape == (20, *size)
    assert whole.dtype == dtype
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for pick in ([13], [4, 3], order.tolist(), range(0, 20, 2)):
        pick = torch.tensor(list(pick))
        part = Noise(1, "judge", (), ids[pick], samples[pick])
        assert torch.equal(getattr(part, kind)(2, like(len(pick), *size, dtype=dtype), draw=1), whole[pick])


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_layout_of_like_is_of_no_importance(kind):
    noise = Noise(**BASE)
    x = like(3, 4, 2, 5)
    expected = getattr(noise, kind)(0, x)
    for other in (x.to(memory_format=torch.channels_last), like(5, 2, 4, 3).permute(3, 2, 1, 0), like(6, 4, 2, 5)[::2]):
        assert torch.equal(getattr(noise, kind)(0, other), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_rounded_float64(kind):
    noise = Noise(**BASE)
    exact, rounded = (getattr(noise, kind)(0, like(3, 501, dtype=d)) for d in (torch.float64, torch.float32))
    assert torch.equal(exact.float(), rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_draw_is_common_to_images_but_not_to_samples(kind):
    noise = Noise(1, "judge", (), [0, 1, 2, 0], [0, 0, 1, 1])
    draws = getattr(noise, kind)(3, like(4, 64), shared=True)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3])
    assert agreement(draws[0], draws[2]) < 0.8
    own = getattr(noise, kind)(3, like(4, 64))
    assert not same(own, draws).any()
    assert torch.equal(getattr(noise, kind)(3, like(4, 64), shared=True), draws)  # and the cached keys are not mixed up


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_the_wrong_length_is_refused(kind):
    for rows in (1, 2, 4):
        with pytest.raises(UserError, match=f"noise for 3 rows was asked for {rows}"):
            getattr(Noise(**BASE), kind)(0, like(rows, 4))
    with pytest.raises(UserError, match="one sample number per image id: got 2 for 3"):
        Noise(0, "judge", (), [1, 2, 3], [0, 0])


# -------------------------------------------------------------------------------------------------------------- statistics

N = 200_000


def stream(k=0, draw=0, seed=0, ids=0, samples=0, kind="normal", size=N, shared=False):
    """(1, size) draws of one image."""
    return getattr(Noise(seed, "judge", (), [ids], [samples]), kind)(k, like(1, size), draw, shared)


NORMALS = {
    "positions of one image": lambda: stream(),
    "images": lambda: Noise(0, "judge", (), range(N), [0] * N).normal(0, like(N, 1)),
    "samples": lambda: Noise(0, "judge", (), [0] * N, range(N)).normal(0, like(N, 1)),
    "steps": lambda: torch.cat([stream(k=k, size=100) for k in range(-1, 999)]),
    "seeds": lambda: torch.cat([stream(seed=s, size=100) for s in range(1000)]),
}


@pytest.mark.parametrize("draws", NORMALS.values(), ids=NORMALS.keys())
def test_normals_are_normal_along_every_coordinate(draws):
    z = draws().flatten().numpy()
    n = len(z)
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_the_tails_of_the_normals_have_their_weight():
    z = torch.cat([stream(seed=s, size=500_000) for s in range(4)]).flatten()
    n = len(z)
    for edge in (2.0, 3.0, 4.0, 4.5):
        for tail in (z > edge, z < -edge):
            expected = n * stats.norm.sf(edge)
            assert abs(tail.sum().item() - expected) < 4 * expected**0.5, edge
    assert z.isfinite().all()
    assert 4.5 < z.abs().max() < 6.7  # sqrt(2 ln 2^33): the largest that 32 bits can give


PAIRS = {
    "neighbouring positions": lambda: (stream()[:, :-1], stream()[:, 1:]),
    "the two normals of one hash": lambda: (stream()[:, : N // 2], stream()[:, N // 2 :]),
    "neighbouring images": lambda: (stream(ids=3), stream(ids=4)),
    "neighbouring samples": lambda: (stream(samples=3), stream(samples=4)),
    "image and sample exchanged": lambda: (stream(ids=3, samples=4), stream(ids=4, samples=3)),
    "neighbouring steps": lambda: (stream(k=3), stream(k=4)),
    "start and the first step": lambda: (stream(k=-1), stream(k=0)),
    "neighbouring draws": lambda: (stream(draw=0), stream(draw=1)),
    "neighbouring seeds": lambda: (stream(seed=3), stream(seed=4)),
    "own and shared": lambda: (stream(), stream(shared=True)),
    "a position shifted, a step later": lambda: (stream(k=0)[:, 1:], stream(k=1)[:, :-1]),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_draws_of_neighbouring_keys_are_uncorrelated(pair):
    a, b = (v.flatten() for v in pair())
    limit = 4.5 / len(a) ** 0.5
    for f in (lambda v: v, torch.square, torch.sign):
        assert abs(torch.corrcoef(torch.stack([f(a), f(b)]))[0, 1]) < limit
    assert abs(torch.corrcoef(torch.stack([a, b.square()]))[0, 1]) < limit


def test_uniforms_are_uniform_in_the_half_open_interval():
    u = stream(kind="uniform").flatten().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount((u * 256).astype(int), minlength=256)).pvalue > 1e-3
    low = (u * 2**24 % 256).astype(int)  # the lowest of the 24 bits, too
    assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-3
    assert (u * 2**24 == np.floor(u * 2**24)).all()
    serial = (u[:-1:2] * 16).astype(int) * 16 + (u[1::2] * 16).astype(int)
    assert stats.chisquare(np.bincount(serial, minlength=256)).pvalue > 1e-3


def test_float32_uniforms_never_reach_one():
    u = Noise(0, "judge", (), [0], [0]).uniform(0, like(1, 4_000_000, dtype=torch.float32))
    assert u.max() == 1 - 2**-24 or u.max() < 1
    assert u.max() > 1 - 1e-6


def test_signs_are_plus_and_minus_one_equally_often():
    s = stream(kind="sign").flatten()
    assert sorted(s.unique().tolist()) == [-1, 1]
    assert abs(s.mean()) < 4 / N**0.5
    assert abs((s[1:] * s[:-1]).mean()) < 4 / N**0.5


# ---------------------------------------------------------------------------------------------------------- for ever the same


def test_the_mixer_is_splitmix64():
    """First outputs of the published generator (Vigna's splitmix64.c) for seeds 0 and 1234567."""
    for seed, published in (
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
    ):
        counters = seed + torch.arange(1, len(published) + 1) * module.GOLDEN
        assert [v % 2**64 for v in module._mix(counters).tolist()] == published


NORMAL = [
    [-1.5778529637853118, -0.6931783305585875, -0.010825670496779242],
    [-0.9420876072316083, -1.862797807443029, -0.3255073554412331],
    [-0.17413737274008848, -0.21999170338344046, -0.4543887208929005],
]
UNIFORM = [[4831481, 10796540, 9192911], [10209102, 550056, 4276616], [14903935, 3726975, 5912254]]
SIGN = [[1, -1, -1, -1, -1, 1, 1, 1], [-1, 1, 1, 1, 1, -1, 1, -1], [-1, 1, 1, 1, 1, 1, 1, 1]]
SHARED = [1.157871381846539, -0.26191966820711343, 1.157871381846539]


def test_golden_literals():
    """Changing any constant changes every recorded result: raise the versions of all components if you must."""
    noise = Noise(**BASE)
    assert noise.normal(4, like(3, 3), draw=1).tolist() == [pytest.approx(row, rel=1e-13) for row in NORMAL]
    assert (noise.uniform(4, like(3, 3), draw=1) * 2**24).tolist() == UNIFORM
    assert noise.sign(4, like(3, 8), draw=1).tolist() == SIGN
    assert noise.normal(-1, like(3, 1), shared=True).flatten().tolist() == pytest.approx(SHARED, rel=1e-13)


# -------------------------------------------------------------------------------------------------------------------- replay


def test_replay_hands_out_what_is_stored():
    stored = {(-1, 0): torch.ones(2, 3), (4, 1): np.arange(3.0)}
    replay = Replay(stored)
    assert (replay.role, len(replay.ids)) == ("replay", 0)
    assert torch.equal(replay.normal(-1, like(2, 3)), torch.ones(2, 3, dtype=torch.float64))
    out = replay.fork("x", 1).rows([7, 8], [0, 0]).normal(4, like(2, 3, dtype=torch.float32), draw=1)
    assert out.tolist() == [[0, 1, 2], [0, 1, 2]]  # one row for all
    assert out.dtype == torch.float32
    assert torch.equal(replay.uniform(-1, like(2, 3)), replay.sign(-1, like(2, 3)))
    with pytest.raises(KeyError, match="no stored draw 0 for step 4"):
        replay.normal(4, like(2, 3))
