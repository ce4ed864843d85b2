"""Classifiers by name. Each takes (B,C,H,W) in [0,1], normalises inside, and gives logits (B,K); frozen, in evaluation mode."""

from __future__ import annotations

from torch import nn

from purebench import embedded

INFO = {
    "digits-cnn": {
        "summary": "three convolutions, 19,338 parameters, trained on the embedded digits",
        "asset": "digits-classifier",
        "size": [1, 8, 8],
        "version": 1,
    }
}


def digits_cnn() -> nn.Module:
    """The classifier that ships with purebench: (B,1,8,8) in [0,1] -> logits (B,10)."""
    return embedded.load("digits-classifier")
