"""DiffHammer (Wang et al. 2024, NeurIPS): Auto-PGD along the gradients of those draws that one step can break together.

A mean over all draws is torn between purifications that share a weakness and those that do not (the paper's gradient dilemma). At each
iterate, n draws give losses l_j and gradients g_j. Along a direction r, of the size of the ball, l_j becomes l_j + <r, g_j>:

    E    w_j = sigmoid(lam (l_j + <r, g_j>)): the draws that r breaks; a margin is above 0 where its draw is broken
    M    r = sum_j w_j g_j / sum_j w_j, from which the next r is a step of the ball's size

beginning at the g_i along which most is gained, sum_j elu(l_j + <r, g_j>). With `graft`, g_j are the classifier's gradients at the purified
images, which cost next to nothing, and r is pulled through one purification, that of draw i: one gradient of the purifier, not n.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running, apgd
from purebench.engine.defense import BPDA, Defense
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, Gradient, Loss
from purebench.spec import ThreatModel

INFO = {
    "hammer": {
        "summary": "Auto-PGD along the gradients of those of `eot` purifications that one step breaks together",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "gradient_calls": "graft and steps + 1 or (steps + 1) * eot",
        # Of a graft also the classifier's own gradients, one backward each: less than a forward of the whole.
        "forward_calls": "graft and 2 * (steps + 1) * eot or 0",
        "version": 1,
        "choices": {"loss": ["margin", "dlr"], "toward": ["shared", "robust"]},
        "classes": "loss == 'dlr' and 3 or 2",
        "requires": ["0 < rho", "rho <= 1", "lam > 0", "alpha >= 0"],
        "paper": {
            "Wang et al. 2024 (code)": "graft=true,eot=10,lam=5,rounds=5,alpha=0.5,steps=50, restarted with three losses"
        },
        "differences": "E's steps have the ball's size (the authors' code: 1), and M's direction goes back into E (their code computes "
        "it and drops it); no restarts; the point of the highest mean loss over the draws (theirs: of most broken evaluations, chosen "
        "on the draws that report them)",
        "cite": "wang2024diffhammer",
    }
}


def hammer(
    *,
    steps: int = 50,
    eot: int = 10,
    rho: float = 0.75,
    loss: str = "margin",
    graft: bool = False,
    toward: str = "shared",
    lam: float = 5.0,
    rounds: int = 5,
    alpha: float = 0.5,
) -> Attack:
    """steps, rho: as for apgd-ce; eot: purifications per iterate; loss: margin or dlr, above 0 where an answer is wrong; graft: one
    gradient through the purifier for all draws; toward: `shared`, the paper's draws that break together, or `robust`, those that are
    still right, w_j = sigmoid(-lam l_j); lam: sharpness of the weights; rounds: of E and M; alpha: iterate i's gradient enters with
    (i + 1)^-alpha, the rest is that of the iterate before. Attacked: the point of the highest mean loss."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        running = Running(len(x))
        selective = Selective(defense, threat, graft=graft, toward=toward, lam=lam, rounds=rounds, alpha=alpha)
        best, _ = apgd.ascend(
            selective, x, y, threat, noise, loss=LOSSES[loss], steps=steps, eot=eot, rho=rho, running=running
        )
        return Attacked(best, log={"stopped": running.stopped})

    return attack


class Selective(Defense):
    """A defense whose gradients are those of chosen draws, and of the gradients before. For one attack on one batch."""

    def __init__(
        self, defense: Defense, threat: ThreatModel, *, graft: bool, toward: str, lam: float, rounds: int, alpha: float
    ):
        # A view of the same defense, with its accounts.
        vars(self).update(vars(defense))
        self.whole, self.threat = defense, threat
        self.graft, self.toward, self.lam, self.rounds, self.alpha = graft, toward, lam, rounds, alpha
        self.asked, self.past = 0, torch.zeros(())

    def loss_grad(
        self, x: Tensor, y: Tensor, loss: str | Loss, noise: Noise, *, eot: int = 1, **options: Any
    ) -> Gradient:
        numbers = (noise.samples[:, None] * eot + torch.arange(eot)).flatten()
        draws = noise.rows(noise.ids.repeat_interleave(eot), numbers)
        of = self.whole.using(BPDA) if self.graft else self.whole
        each = of.loss_grad(x.repeat_interleave(eot, 0), y.repeat_interleave(eot), loss, draws, observe=False)
        losses = _worst_for_bad(each.loss.unflatten(0, (len(x), eot)))
        grads = each.grad.unflatten(0, (len(x), eot))
        # Image by image: of a product over all, the last bits would depend on how many there are.
        selected = [self.select(*image) for image in zip(losses, grads, strict=True)]
        grad, finite = torch.stack([r for _, r in selected]), each.finite.unflatten(0, (len(x), eot)).any(1)
        if self.graft:
            grad = self.through(x, torch.tensor([chosen for chosen, _ in selected]), grad, noise, eot)
            finite = finite & grad.isfinite().flatten(1).all(1)
            grad = grad.where(finite.view(-1, 1, 1, 1), 0)
        logits = each.logits[0].unflatten(0, (len(x), eot)).transpose(0, 1)
        found = Gradient(losses.mean(1), grad, logits, finite)
        self.observed.add(noise.ids, y, found)
        return Gradient(found.loss, self.with_past(grad), logits, finite)

    def select(self, losses: Tensor, grads: Tensor) -> tuple[int, Tensor]:
        """(the draw along whose gradient most is gained, E and M's direction) of one image's losses (n,) and gradients (n,C,H,W)."""
        flat = grads.flatten(1)

        def gain(r: Tensor) -> Tensor:
            """(m,n): what a step of the ball's size along each r (m,C,H,W) adds to each draw's loss."""
            return self.threat.eps * self.threat.ascend(r).flatten(1) @ flat.T

        chosen = int(F.elu(losses + gain(grads)).sum(1).argmax())
        r = grads[chosen]
        for _ in range(self.rounds):
            reached = losses + gain(r[None])[0] if self.toward == "shared" else -losses
            w = torch.sigmoid(self.lam * reached)
            # Where all weights vanish, they are alike.
            w = w / w.sum() if w.sum() > 0 else torch.full_like(w, 1 / len(w))
            r = (w.view(-1, 1, 1, 1) * grads).sum(0)
        return chosen, r

    def through(self, x: Tensor, chosen: Tensor, cotangent: Tensor, noise: Noise, eot: int) -> Tensor:
        """The cotangent at the purified image, like x, pulled through the purification of each image's chosen draw; of one with
        several votes, through all of them in equal parts."""
        votes = self.votes
        numbers = ((noise.samples * eot + chosen)[:, None] * votes + torch.arange(votes)).flatten()
        rows = noise.rows(noise.ids.repeat_interleave(votes), numbers)
        each = self.whole.pull(x.repeat_interleave(votes, 0), rows, cotangent.repeat_interleave(votes, 0) / votes)
        return each.unflatten(0, (len(x), votes)).sum(1)

    def with_past(self, grad: Tensor) -> Tensor:
        """The gradient with its share of the one before."""
        self.asked += 1
        share = self.asked**-self.alpha
        self.past = grad if self.asked == 1 else share * grad + (1 - share) * self.past
        return self.past


def _worst_for_bad(losses: Tensor) -> Tensor:
    """(B,n) losses; those that are not finite are the image's largest among the others, and infinite where there is none."""
    finite = losses.isfinite()
    worst = losses.where(finite, -torch.inf).amax(1, keepdim=True)
    return losses.where(finite, worst.where(finite.any(1, keepdim=True), torch.inf))
