"""GDMP (Wang et al. 2022, "Guided Diffusion Model for Adversarial Purification", section 3): diffuse a little, sample back under the
pull of the input, and again. For each of `passes`: x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps, then for i = t-1 .. 0

    x_{i-1} = mean q(x_{i-1} | x_i, x_0) + beta_i s_i grad_x D(x_i, a_i) + sqrt(beta_i) z,     a_i = sqrt(abar_i) a + sqrt(1 - abar_i) eps',
    s_i = scale 3 (255 / (2 ptb)) sqrt(1 - abar_i) / sqrt(abar_i),

where the anchor a is the original input in every pass, and D = -MSE or SSIM. On ImageNet i are 250 of the 1000 steps, the variances are
learned, in place of beta_i, and a_i = a.
"""

from __future__ import annotations

import math

from torch import Tensor

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.purifiers.ancestral import exp, no_variance, schedule
from purebench.purifiers.contract import Cases, Classifier
from purebench.purifiers.ssim import ssim
from purebench.scores.views import Score

INFO = {
    "gdmp": {
        "summary": "a little diffusion and ancestral sampling, several times, guided by nearness to the input",
        "formula": "x_{i-1} = mean q(x_{i-1} | x_i, x_0) + beta_i s_i grad_x D(x_i, noisy input) + sqrt(beta_i) z, i = t-1 .. 0",
        "calls": "t * passes",
        "random": True,
        "output": "unit",
        "version": 1,
        "needs": ["score"],
        "own_score": "DDPM; on ImageNet, guided diffusion",
        "guided": True,
        "choices": {
            "guidance": ["mse", "ssim", "none"],
            "variant": ["paper", "code"],
            "form": ["cifar10", "imagenet"],
        },
        "requires": [
            "1 <= t <= 999",
            "t <= 250 or form == 'cifar10'",
            "passes >= 1",
            "scale >= 0",
            "ptb > 0",
            "batch >= 1",
        ],
        "paper": {
            "t": "36 (PGD), 60 (BPDA+EOT), 50 (SPSA), of 1000, on CIFAR-10; 45 of 250 on ImageNet",
            "passes": "4 (PGD), 2 (BPDA+EOT, SPSA); 1 on ImageNet",
            "guidance": "mse or none (PGD); ssim (BPDA+EOT); none (SPSA); on ImageNet ssim (BPDA, targeted PGD), mse (ResNet-50) or none",
            "scale": "60000 for mse, 1000 for ssim, 1000 on ImageNet; all for batches of `batch`, per image a hundredth (sixtieth)",
            "ptb": "8; on ImageNet 4, targeted 16",
            "votes": "10 for PGD, 1 for SPSA; 1 or 5 on ImageNet",
            "batch": "100; 60 on ImageNet",
        },
        "differences": "D is a mean over one image; the official code takes it over the whole batch, so that its guidance is weaker by the "
        "number of images, 100 in its runs (variant=code, batch=100; the same as variant=paper with scale / 100). Kept from the code "
        "in both variants: diffusion to index t but sampling from t - 1, on CIFAR-10 only",
        "cite": "wang2022guided",
    }
}
_FIXED = "needs a score model that learned its variances"
CASES: Cases = {  # run by every contract test, on every family of score models
    "gdmp:t=2,passes=2,scale=600": {},
    "gdmp:t=2,passes=1,guidance=ssim,scale=10": {},
    "gdmp:t=2,passes=1,guidance=none": {},
    "gdmp:t=2,passes=1,scale=60000,variant=code": {},
    "gdmp:t=2,passes=2,form=imagenet,scale=10": {
        "refused": {"vp": _FIXED, "denoiser": _FIXED, "ncsn": _FIXED, "energy": _FIXED}
    },
}


def minus_mse(x: Tensor, anchor: Tensor) -> Tensor:
    return -(x - anchor).square().flatten(1).mean(1)


# Of the official configurations:
SCALES = {"cifar10": {"mse": 60000, "ssim": 1000}, "imagenet": {"mse": 1000, "ssim": 1000}}
BATCHES = {"cifar10": 100, "imagenet": 60}
GUIDANCES = {"mse": minus_mse, "ssim": ssim, "none": None}


class GDMP:
    """State: (x, anchor), both (B,C,H,W) on the [-1,1] scale. Randomness: a standard normal at the start of every pass, one per step
    but a pass's last, and (form=cifar10, guided) one per step for the anchor."""

    def __init__(
        self,
        score: Score,
        t: int,
        passes: int,
        guidance: str,
        scale: float,
        ptb: float,
        variant: str,
        batch: int,
        form: str,
    ):
        self.imagenet = form == "imagenet"
        if self.imagenet and not hasattr(score, "output"):
            raise no_variance()
        self.score_model, self.t, self.n = score, t, t * passes
        self.distance = GUIDANCES[guidance]
        if scale == 0 and guidance != "none":  # published for batches of that size
            scale = SCALES[form][guidance] / (1 if variant == "code" else BATCHES[form])
        self.scale = scale * 3 * 255 / (2 * ptb) / (batch if variant == "code" else 1)

    def start(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        anchor = 2 * x - 1
        return anchor, anchor

    def step(self, k: int, state: tuple[Tensor, Tensor], noise: Noise) -> tuple[Tensor, Tensor]:
        x, anchor = state
        s = schedule(250 if self.imagenet else 1000)
        i = self.t - 1 - k % self.t
        if i == self.t - 1:  # a pass begins
            x = s.diffuse(x, noise.normal(k, x, draw=2), i if self.imagenet else self.t)
        eps, log_variance = s.predict(self.score_model, x, i, "learned" if self.imagenet else "fixedlarge")
        mean = s.mean(x, eps, i, clip=True)
        if self.distance is not None:
            nearby = anchor if self.imagenet else s.diffuse(anchor, noise.normal(k, x, draw=1), i)
            strength = self.scale * math.sqrt(1 - s.abar[i]) / math.sqrt(s.abar[i])
            mean = mean + exp(log_variance) * strength * self.pull(x, nearby)
        return (mean + exp(log_variance / 2) * noise.normal(k, x) if i else mean), anchor

    def pull(self, x: Tensor, noisy: Tensor) -> Tensor:
        """grad_x D(x, noisy), differentiable in both."""
        assert self.distance is not None
        distance = self.distance
        return chain.inner_grad(lambda inside: distance(inside, noisy), x)

    def finish(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return ((state[0] + 1) / 2).clamp(0, 1)


def gdmp(
    score: Score,
    classifier: Classifier | None = None,
    *,
    t: int = 36,
    passes: int = 4,
    guidance: str = "mse",
    scale: float = 0.0,
    ptb: float = 8.0,
    variant: str = "paper",
    batch: int = 100,
    form: str = "cifar10",
) -> GDMP:
    """GDMP. t: index of 1..999 to which every pass diffuses; passes: of t steps each, all anchored at the original input; guidance:
    `mse`, `ssim` or `none`; scale, ptb (of 255): s_i above, scale=0: the published strength; variant: `paper` guides every image by
    its own D, `code` divides that by `batch`, as a mean over the official code's batch does: its 60000 (`ssim`: 1000) is 600 (10) per
    image. form: `imagenet` is t of 250 steps, learned variances, an anchor without noise. Output (B,C,H,W) clipped to [0,1]. Random:
    a normal per pass, one per step but a pass's last, and with form=cifar10 and guidance one more per step. Source:
    purification/diff_purify.py and pytorch_diffusion/diffusion.py; purification/purify_imagenet.py."""
    return GDMP(score, t, passes, guidance, scale, ptb, variant, batch, form)
