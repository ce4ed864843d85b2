"""Square (Andriushchenko et al. 2020, Alg. 1 to 3) for random defenses: a random search over squares that asks for no gradient.

A candidate is compared with the best point by the mean loss of `eot` purifications, the same ones for all candidates; it is accepted only
if it is better on fresh ones, too, on which both are asked again. So no lucky draw makes a point. On a deterministic defense, with
one draw, it is pyautoattack's SquareAttack of one image bit for bit, given the same squares (tested); here each image has its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.attacks.queries import Queries
from purebench.attacks.selection import selecting
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, predicted
from purebench.spec import ThreatModel

INFO = {
    "square-eot": {
        "summary": "no gradient: Square on the mean loss of `eot` purifications; better on fresh ones too, or not accepted",
        "gradients": [],
        "gradient_calls": "0",
        "forward_calls": "(3 * queries + 2) * eot",
        "version": 1,
        "choices": {"loss": ["margin", "ce"]},
        "requires": ["0 < p_init", "p_init <= 1"],
        "paper": {
            "Andriushchenko et al. 2020": "queries=10000,eot=1,p_init=0.05 (Linf), p_init=0.1 (L2)",
            "AutoAttack standard": "queries=5000,eot=1,p_init=0.8",
        },
        "differences": "every image has squares of its own, which may lie at the far edges, as in the paper (upstream's never do). "
        "An image is done when all fresh purifications of its point are wrong. The schedule of the squares is upstream's, and is "
        "not stretched to `queries`, as in AutoAttack",
        "cite": "andriushchenko2020square",
    }
}

# From which iteration on a square covers which part of p_init (Sec. 5, of 10,000 iterations).
# fmt: off
SCHEDULE = ((8000, 512), (6000, 256), (4000, 128), (2000, 64), (1000, 32), (500, 16), (200, 8), (50, 4), (10, 2), (-1, 1))
# fmt: on


def square_eot(*, queries: int = 5000, eot: int = 20, p_init: float = 0.8, loss: str = "margin") -> Attack:
    """queries: candidates; eot: purifications of each; p_init: the share of the image that the first squares cover; loss: margin or ce.
    Attacked: the best point. Random: the squares, and the purifications; those that accept are of role `select`."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        asks = Queries(defense, len(x))

        def answers(points: Tensor, which: Tensor, draws: Noise) -> tuple[Tensor, Tensor]:
            """(mean loss (N,), whether all draws are wrong (N,)) of points of the images `which`."""
            logits = asks.draws(points, draws.rows(draws.ids[which], draws.samples[which]), which, eot)
            found = LOSSES[loss](logits.flatten(0, 1), y[which].repeat_interleave(eot))
            # Purifying to NaN is the worst that can happen to a defense.
            found = found.where(logits.flatten(0, 1).isfinite().all(1), torch.inf).unflatten(0, (len(which), eot))
            return found.mean(1), (predicted(logits) != y[which][:, None]).all(1)

        begin, propose = (_stripes, _square) if threat.norm == "Linf" else (_tiles, _windows)
        everyone = torch.arange(len(x))
        search = noise.fork("draws")
        best = begin(x, threat, noise.fork("start"))
        highest, beaten = answers(best, everyone, search)
        _, done = answers(best, everyone, selecting(noise, "start"))

        for i in range(queries):
            alive = (~done).nonzero()[:, 0].cpu()
            if not len(alive):
                break
            drawn = noise.fork("square", i).rows(noise.ids[alive], noise.samples[alive])
            point = propose(x[alive], best[alive], threat, share(i, p_init), drawn)
            found, fooled = answers(point, alive, search)
            # As upstream, what is wrong is taken whatever its loss, which cross-entropy may have lower.
            rival = ((found > highest[alive]) | (fooled & ~beaten[alive])).nonzero()[:, 0].cpu()
            if not len(rival):
                continue
            where, fresh = alive[rival], selecting(noise, i)
            losses, wrong = answers(torch.cat([point[rival], best[where]]), torch.cat([where, where]), fresh)
            new, old = losses.chunk(2)
            now, before = wrong.chunk(2)
            accepted = ((new > old) | (now & ~before)).nonzero()[:, 0].cpu()
            at = where[accepted]
            best[at], done[at] = point[rival][accepted], now[accepted]
            highest[at], beaten[at] = found[rival][accepted], fooled[rival][accepted]
        return Attacked(threat.project(best, x), log={"nfe": asks.nfe()})

    return attack


def share(iteration: int, p_init: float) -> float:
    """Of the image, what the squares of an iteration cover."""
    return p_init / next(part for after, part in SCHEDULE if iteration > after)


def _places(u: Tensor, room: int) -> Tensor:
    """u (B,) in [0,1) as whole numbers from 0 to room."""
    return (u * (room + 1)).long()


# ---------------------------------------------------------------------------------------------------------------------- Linf


def _stripes(x: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    """Vertical stripes of -eps and eps."""
    return (x + threat.eps * noise.sign(0, x[:, :, :1])).clamp(0, 1)


def _square(x: Tensor, best: Tensor, threat: ThreatModel, p: float, noise: Noise) -> Tensor:
    """In one square per image, every channel moved to one side of its ball (Alg. 2)."""
    height, width = x.shape[2:]
    s = min(max(round(math.sqrt(p * height * width)), 1), height, width)
    u = noise.uniform(0, x.new_empty(len(x), 2))
    top, left = _places(u[:, 0], height - s)[:, None], _places(u[:, 1], width - s)[:, None]
    down, across = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    inside = ((down >= top) & (down < top + s))[:, None, :, None] & ((across >= left) & (across < left + s))[
        :, None, None
    ]
    sign = noise.sign(1, x.new_empty(*x.shape[:2], 1, 1))
    moved = best + torch.where(inside, 2.0 * threat.eps * sign, 0)
    return moved.clamp(x - threat.eps, x + threat.eps).clamp(0, 1)


# ------------------------------------------------------------------------------------------------------------------------ L2


def _tiles(x: Tensor, threat: ThreatModel, noise: Noise) -> Tensor:
    """A grid of bumps, five to the shorter side, scaled to the ball's surface."""
    height, width = x.shape[2:]
    s = max(min(height, width) // 5, 1)
    rows, columns = height // s, width // s
    turned = noise.uniform(0, x.new_empty(len(x), rows * columns)) > 0.5
    sign = noise.sign(1, x.new_empty(len(x), rows * columns, x.shape[1], 1, 1))
    delta = torch.zeros_like(x)
    for k in range(rows * columns):
        top, left = (height - s * rows) // 2 + k // columns * s, (width - s * columns) // 2 + k % columns * s
        delta[:, :, top : top + s, left : left + s] = _bumps(s, turned[:, k], x) * sign[:, k]
    return (x + _unit(delta) * threat.eps).clamp(0, 1)


def _windows(x: Tensor, best: Tensor, threat: ThreatModel, p: float, noise: Noise) -> Tensor:
    """The mass of one window moved into another, which gets a bump (Alg. 3)."""
    channels, height, width = x.shape[1:]
    s = max(round(math.sqrt(p * height * width)), 3)
    s = min(s + (s % 2 == 0), height, width)
    u = noise.uniform(0, x.new_empty(len(x), 5))
    sign = noise.sign(1, x.new_empty(len(x), channels, 1, 1))
    bumps = _bumps(s, u[:, 4] > 0.5, x) * sign
    tops, lefts = _places(u[:, (0, 2)], height - s).tolist(), _places(u[:, (1, 3)], width - s).tolist()
    delta = best - x
    size = _norm(delta, (1, 2, 3))
    for i in range(len(x)):
        own = delta[i]  # a view: what is written is the image's
        here, there = ((..., slice(a, a + s), slice(b, b + s)) for a, b in zip(tops[i], lefts[i], strict=True))
        both = torch.zeros_like(own)
        both[here], both[there] = 1, 1
        mass = _norm(own * both, (1, 2))
        bump = bumps[i] + own[here] / (1e-12 + _norm(own[here], (1, 2)))
        spare = (torch.full_like(size[i], threat.eps) ** 2 - size[i] ** 2).clamp(min=0) / channels
        bump = bump / (1e-12 + _norm(bump, (1, 2))) * (spare + mass**2).sqrt()
        own[there] = 0
        own[here] = bump
    return (x + _unit(delta) * threat.eps).clamp(0, 1)


def _bumps(s: int, turned: Tensor, like: Tensor) -> Tensor:
    """(B,1,s,s) of norm 1: a pyramid and its negative beside it, one above the other where `turned` (B,) is false."""
    bump = torch.cat([_pyramid(s // 2, s, like), -_pyramid(s - s // 2, s, like)])
    bump = bump / bump.square().sum().sqrt()
    return torch.where(turned[:, None, None], bump.T, bump)[:, None]


def _pyramid(height: int, width: int, like: Tensor) -> Tensor:
    """(height,width) of norm 1: rectangles around the middle, each one pixel larger and of less weight, 1 / k^2 (Sec. 3.4)."""
    found = like.new_zeros(height, width)
    top, left = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        rows, columns = (
            slice(max(top - k, 0), min(top + k + 1, height)),
            slice(max(left - k, 0), min(left + k + 1, width)),
        )
        found[rows, columns] += 1.0 / (k + 1) ** 2
    return found / found.square().sum().sqrt() if height else found


def _norm(v: Tensor, dim: tuple[int, ...]) -> Tensor:
    return (v**2).sum(dim=dim, keepdim=True).sqrt()


def _unit(v: Tensor) -> Tensor:
    return v / (_norm(v, (1, 2, 3)) + 1e-12)
