"""A classifier as the model hubs have them: logits in `.logits`, mean and standard deviation inside, left in training mode.

    purebench run -d none -d diffpure -a pgd-eot --classifier ./hub_classifier.py:HubClassifier --dataset digits --images 64

In the place of a download it is trained when it is made, on 1,297 digits that nobody is judged on: a second, the same weights each time.
"""

import functools
from dataclasses import dataclass

import torch
from torch import nn

from purebench.datasets import digits


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Network(nn.Module):
    """Takes normalised images, and returns what the hubs' models do."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(16 * width, 10)

    def forward(self, pixel_values: torch.Tensor) -> Output:
        hidden = self.body(pixel_values)
        return Output(self.head(hidden), hidden)


@functools.cache
def pretrained(width: int) -> Network:
    net, (x, y) = Network(width), digits.train()
    weights = list(net.parameters())
    for epoch in range(6):
        for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(16):
            loss = nn.functional.cross_entropy(net((x[part] - 0.3) / 0.38).logits, y[part])
            # Plain gradient descent: it needs none of torch's optimisers, whose import takes longer than all this.
            for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data -= 0.03 * grad
    return net


class HubClassifier(nn.Module):
    """What purebench wants of it: images in [0,1] alone, so its normalisation belongs here."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.net = pretrained(width)
        self.register_buffer("mean", torch.tensor(0.3))
        self.register_buffer("std", torch.tensor(0.38))

    def forward(self, x: torch.Tensor) -> Output:
        return self.net((x - self.mean) / self.std)
