"""The VP score network that ships with purebench."""

from __future__ import annotations

from purebench import embedded
from purebench.assets import checkpoint
from purebench.scores import vp
from purebench.scores.vp import VPScore

INFO = {
    "digits-vp": {
        "summary": "VP noise predictor, about 160 thousand parameters, trained on the embedded digits",
        "asset": "digits-score",
        "trained_on": "digits",
        "choices": {"weights": ["ema", "raw"]},
        "size": [1, 8, 8],
        "version": 1,
    }
}


def digits_vp(*, weights: str = "", path: str = "", name: str = "") -> VPScore:
    """Trained on (1,8,8) images with t in [1e-3, 1]. path: your own, of `purebench train digits-score`; weights: `ema` or
    `raw` of a file that has both; name: what tables call it."""
    vp.check_noise(checkpoint.noise(path, weights), path)
    return VPScore(embedded.load("digits-score", path, weights), (1, 8, 8))
