"""SPSA (Uesato et al. 2018, Sec. 4.2): the gradient by two-sided finite differences along random signs, for defenses whose own gradient is
none. ADP (Yoon et al. 2021, Table 1) takes the sign of the estimate; GDMP (Wang et al. 2022) ran advertorch's, which is Adam on the margin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.attacks.adam import Adam
from purebench.attacks.queries import Queries
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import Loss, margin
from purebench.spec import ThreatModel

INFO = {
    "spsa": {
        "summary": "no gradient: finite differences along `samples` random signs; steps of the sign, or of Adam",
        "gradients": [],
        "draws": "samples",
        "threats": ["Linf", "L2", "L1"],
        "gradient_calls": "0",
        "forward_calls": "2 * samples * steps",
        "version": 1,
        "choices": {"variant": ["paper", "adam"]},
        "requires": ["0 < delta", "delta <= 0.5", "rel_step > 0"],
        "paper": {
            "ADP, ScoreOpt": "variant=paper,samples=640 (1,280 queries a step),rel_step=0.25 (2/255 at 8/255); steps and delta unstated",
            "GDMP": "variant=adam,samples=128,steps=100,rel_step=0.31875 (Adam's lr 0.01 at 8/255)",
        },
        "differences": "signs belong to an image, not to the batch. Both sides of a difference have the same draws, which makes "
        "the attack stronger on random defenses. Cross-entropy (ADP names no loss) in a form that does not vanish where the classifier is "
        "sure. ADP's code has no SPSA",
        "cite": "uesato2018adversarial",
    }
}

PAIRS = 64  # pairs of probes at once, so that large images fit into memory


def spsa(
    *, variant: str = "paper", samples: int = 640, delta: float = 0.01, steps: int = 40, rel_step: float = 0.25
) -> Attack:
    """variant: paper, steps along the sign of the estimate (under L2 along its direction) on cross-entropy; adam, Adam on the margin;
    samples: random signs per step, two queries each; delta: how far a probe is from the image, of its range [0,1]; steps: iterations;
    rel_step: step size, or Adam's learning rate, as a share of eps. Attacked: the last iterate."""
    loss = margin if variant == "adam" else _cross_entropy

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        queries = Queries(defense, len(x))
        x_adv, adam = x.clone(), Adam(x)
        for i in range(steps):
            grad = estimate(queries, x_adv, y, noise.fork("iterate", i), noise.fork("signs", i), loss, samples, delta)
            direction = adam.step(-grad) if variant == "adam" else threat.ascend(grad)
            x_adv = threat.project(x_adv + rel_step * threat.eps * direction, x)
        return Attacked(x_adv, log={"nfe": queries.nfe()})

    return attack


def estimate(
    queries: Queries, x: Tensor, y: Tensor, noise: Noise, signs: Noise, loss: Loss, samples: int, delta: float
) -> Tensor:  # fmt: skip
    """The gradient's estimate like x: the mean over signs v of (L(x + delta v) - L(x - delta v)) v / (2 delta).

    Random: sign k from draw k of `signs`, the purification of both its sides from sample k of `noise`."""
    grad = torch.zeros_like(x)
    of = torch.arange(len(x))
    for first in range(0, samples, PAIRS):
        numbers = torch.arange(first, min(first + PAIRS, samples))
        v = torch.stack([signs.sign(k, x) for k in numbers.tolist()], 1)  # (B,S,C,H,W)
        rows = noise.rows(noise.ids.repeat_interleave(len(numbers)), numbers.repeat(len(x)))
        many, labels = of.repeat_interleave(len(numbers)), y.repeat_interleave(len(numbers))
        probes = [(x[:, None] + side * delta * v).flatten(0, 1) for side in (1, -1)]
        up, down = (
            _finite(loss(queries.logits(probe, rows, many), labels).unflatten(0, v.shape[:2])) for probe in probes
        )
        slope = (up - down) / (2 * delta)
        for i in range(len(x)):  # of one shape whatever the batch, so that an image's bits are its own
            grad[i] += (slope[i].to(x.dtype) @ v[i].flatten(1)).view_as(x[i])
    return grad / samples


def _finite(losses: Tensor) -> Tensor:
    """(B,S) losses; of what is not finite the image's largest, since purifying to NaN is the worst that can happen to a defense."""
    finite = losses.isfinite()
    worst = losses.where(finite, -torch.inf).amax(1, keepdim=True)
    return losses.where(finite, worst.where(finite.any(1, keepdim=True), 0))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """(N,) log(1 + sum of exp(z_k - z_y)) over the wrong k, in float64: differences of it survive where float32's would be zero."""
    z = logits.double()
    wrong = z.scatter(1, y[:, None], -torch.inf).logsumexp(1) - z.gather(1, y[:, None])[:, 0]
    return torch.logaddexp(wrong, torch.zeros_like(wrong))
