"""Class-conditional networks asked for one class: then they are networks of images alone, as every adapter wants them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OfClass(nn.Module):
    """network(x, level) of class `label`: told as a number, as ADM is, or `one_hot` among `classes`, as EDM's networks are."""

    def __init__(self, network: Any, label: int, classes: int, one_hot: bool):
        super().__init__()
        self.network, self.label, self.classes, self.one_hot = network, label, classes, one_hot

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        label = torch.full((len(x),), self.label, dtype=torch.int64, device=x.device)
        if self.one_hot:
            return self.network(x, level, class_labels=F.one_hot(label, self.classes).to(x.dtype))
        return self.network(x, level, label)
