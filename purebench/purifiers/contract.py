"""What every purifier's factory is given beside its parameters, and what its file says for the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

# A function rather than a module: where images are resized for the score model, a purifier is given one that resizes them back.
Classifier = Callable[[Tensor], Tensor]  # (B,C,H,W) in [0,1] -> logits
# The parts in a module's literal `CASES`, and what is known of each: see `registry.cases`.
Cases = Mapping[str, Mapping[str, object]]
