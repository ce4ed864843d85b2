"""N-attack (Li et al. 2019, Alg. 1): a Gaussian of adversarial images, whose mean follows the z-scored rewards of a population.

The settings are those of the authors' code (Cold-Winter/Nattack) for a random defense, `robustnet/re_li_attack.py`: the image as tanh of
a latent, to which the Gaussian is added, so that it stays in [0,1]; then the projection onto the ball. On pixels that are quite black
or white the tanh is flat, and the attack is slow there, as theirs is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.attacks.queries import Queries
from purebench.attacks.selection import selecting
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import margin
from purebench.engine.rows import per_row
from purebench.spec import ThreatModel

INFO = {
    "nattack": {
        "summary": "no gradient: the mean of a Gaussian follows the rewards of `population` candidates",
        "gradients": [],
        "draws": "population",
        "threats": ["Linf", "L2", "L1"],
        "gradient_calls": "0",
        "forward_calls": "steps * population + ((steps + 9) // 10 + 1) * eot",
        "version": 1,
        "requires": ["sigma > 0", "lr > 0", "population >= 2"],
        "paper": {
            "Li et al. 2019, code": "population=300,sigma=0.1,lr=0.02,steps=500 (RSE, a random defense)",
            "its other CIFAR-10 attacks": "population=300,sigma=0.1,lr=0.008,steps=400 (SAP, LID), steps=1000 (THERM-ADV)",
        },
        "differences": "every tenth iteration `eot` fresh purifications decide (theirs: one): an image is done when all of them are "
        "wrong, and of one that never is the best mean so checked is returned. The reward's log-probabilities are logits, of which "
        "they are differences. As theirs, draws are upsampled from 32x32 where images are larger",
        "cite": "li2019nattack",
    }
}

EVERY = 10  # iterations between two checks
SMALL = 32  # the largest side of what is drawn


def nattack(
    *, population: int = 300, sigma: float = 0.1, lr: float = 0.02, steps: int = 500, eot: int = 20
) -> Attack:  # fmt: skip
    """population: candidates per iteration, each purified once; sigma: standard deviation of the Gaussian, of latents whose tanh is the
    image; lr: its mean's learning rate; steps: iterations; eot: purifications that decide whether an image is broken. Attacked: the mean's
    image. Random: the start, the candidates, their purifications, and, of role `select`, those that decide."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        queries = Queries(defense, len(x))
        latent = ((2 * x.double() - 1) * (1 - 1e-6)).atanh()
        mean = 0.001 * noise.fork("start").normal(0, _small(latent))
        best, reward = x.clone(), x.new_full((len(x),), -torch.inf, dtype=torch.float64)

        def images(shift: Tensor, which: Tensor) -> Tensor:
            moved = torch.tanh(latent[which] + _upsampled(shift, latent)) / 2 + 0.5
            return threat.project(moved.to(x.dtype), x[which])

        def running() -> Tensor:
            return (reward < 0).nonzero()[:, 0].cpu()

        def check(which: Tensor, i: int) -> None:
            if not len(which):
                return
            shown = images(mean[which], which)
            decide = selecting(noise.rows(noise.ids[which], noise.samples[which]), i)
            logits = queries.draws(shown, decide, which, eot)
            found = (
                _reward(logits.flatten(0, 1), y[which].repeat_interleave(eot)).unflatten(0, (len(which), eot)).mean(1)
            )
            better = found > reward[which]
            best[which] = torch.where(per_row(better, shown), shown, best[which])
            reward[which] = torch.where(better, found, reward[which])

        for i in range(steps):
            if i % EVERY == 0:
                check(running(), i)
            for image in running().tolist():
                # One image after the other: of one shape whatever the batch, so that its bits are its own.
                one = noise.rows(noise.ids[[image]], noise.samples[[image]])
                z = one.fork("population", i).normal(0, mean.new_empty(1, population, *mean.shape[1:]))[0]
                which = torch.full((population,), image)
                rows = one.fork("iterate", i).rows(one.ids.repeat(population), torch.arange(population))
                rewards = _reward(queries.logits(images(mean[image] + sigma * z, which), rows, which), y[which])
                a = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-7)
                mean[image] += lr / (population * sigma) * (a @ z.flatten(1)).view_as(mean[image])
        check(running(), steps)
        return Attacked(best, log={"nfe": queries.nfe()})

    return attack


def _reward(logits: Tensor, y: Tensor) -> Tensor:
    """(N,) half of the margin by which the right class is still ahead, negative; 0 where it is not, or the logits are not finite."""
    ahead = margin(logits.double(), y).clamp(min=-1000, max=0) / 2
    return ahead.where(logits.isfinite().all(1), 0)


def _small(latent: Tensor) -> Tensor:
    """A tensor (B,C,h,w) like what is drawn: no side above SMALL."""
    height, width = (min(side, SMALL) for side in latent.shape[2:])
    return latent.new_empty(*latent.shape[:2], height, width)


def _upsampled(shift: Tensor, latent: Tensor) -> Tensor:
    """shift (N,C,h,w) at the latent's size, bilinearly."""
    size = latent.shape[2:]
    return shift if shift.shape[2:] == size else F.interpolate(shift, size=size, mode="bilinear", align_corners=False)
