"""StAdv (Xiao et al. 2018) as DiffPure ran it (Nie et al. 2022; its code after Laidlaw and Feizi 2019): no pixel changes its value, but
where it is read from. Adam on a flow (B,2,H,W) whose components are bounded; the loss is the margin less the flow's roughness."""

from __future__ import annotations

import torch
from torch import Tensor

from purebench.attacks import Attack, Attacked, Running
from purebench.attacks.adam import Adam
from purebench.engine import flows
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.rows import per_row
from purebench.spec import ThreatModel

INFO = {
    "stadv": {
        "summary": "a bounded flow by Adam on the mean margin of `eot` purifications, less the flow's roughness",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "draws": "eot",
        "threats": ["StAdv"],
        "gradient_calls": "steps * eot",
        "version": 1,
        "choices": {"keep": ["best", "last"]},
        "requires": ["rel_step > 0", "smoothness >= 0"],
        "paper": {
            "DiffPure": "steps=100,eot=20,rel_step=0.2 (Adam's lr 0.01),smoothness=0.05 at StAdv:0.05; as coded keep=last"
        },
        "differences": "keep=best: the iterate of the highest mean loss, as DiffPure's code computes and then does not return; keep=last: "
        "what it returns. At other bounds the learning rate is the same share of the bound (theirs stays 0.01)",
        "cite": "xiao2018spatially nie2022diffpure",
    }
}


def stadv(
    *, steps: int = 100, eot: int = 20, rel_step: float = 0.2, smoothness: float = 0.05, keep: str = "best"
) -> Attack:
    """steps: iterations; eot: purifications per gradient; rel_step: Adam's learning rate as a share of the bound; smoothness: weight of the
    flow's roughness at a bound of 0.05, at bound b times 0.05 / b; keep: the `best` iterate by its own mean loss, or the `last`.
    Attacked: with the flow. Random: the purifications of iterate i from the stream (.., "iterate", i)."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        bound = threat.eps
        weight = smoothness * 0.05 / bound
        flow = x.new_zeros(len(x), 2, *x.shape[2:])
        best, highest = flow, x.new_full((len(x),), -torch.inf)
        adam, running = Adam(flow), Running(len(x))
        for i in range(steps):
            with torch.enable_grad():
                leaf = flow.requires_grad_()
                moved, rough = flows.render(x, leaf), roughness(leaf)
                found = defense.loss_grad(moved.detach(), y, "margin", noise.fork("iterate", i), eot=eot)
                # The chain rule by hand: the defense's gradient at the moved image, pulled back through the rendering.
                grad = torch.autograd.grad((moved * found.grad).sum() - weight * rough.sum(), leaf)[0]
            flow = flow.detach()
            loss = found.loss - weight * rough.detach()
            loss = loss.where(loss.isfinite(), torch.inf)
            better = loss > highest
            best, highest = torch.where(per_row(better, flow), flow, best), torch.where(better, loss, highest)
            stepped = (flow + rel_step * bound * adam.step(-grad)).clamp(-bound, bound)
            flow = running.step(i, found, stepped, flow)
        flow = best if keep == "best" else flow
        return Attacked(flows.render(x, flow), log={"stopped": running.stopped}, flow=flow)

    return attack


def roughness(flow: Tensor) -> Tensor:
    """(B,) the sum over pixels and their four neighbours of the distance between the two flows (Xiao et al. 2018, eq. 4)."""
    down, across = flow[:, :, 1:] - flow[:, :, :-1], flow[..., 1:] - flow[..., :-1]
    # As published, the root is kept differentiable at zero; each pair is counted from both ends.
    return 2 * sum((d.square().sum(1) + 1e-10).sqrt().flatten(1).sum(1) for d in (down, across))  # type: ignore[return-value]
