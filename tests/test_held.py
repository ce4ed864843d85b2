"""What an object of somebody else's holds: networks, weights and generators, wherever it keeps them."""

import functools
import random

import torch
from torch import nn

from purebench.engine import held

GLOBAL = nn.Linear(2, 2)


def by_global(x):
    return (lambda y: GLOBAL(y))(x)


def closing_over(network):
    return lambda x: network(x)


class Attributes:
    shared = nn.Linear(5, 5)

    def __init__(self, network):
        self.nets, self.again = {"a": [network]}, self

    def __call__(self, x):
        return GLOBAL(x)


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen, self.hidden = nn.Linear(3, 3), [nn.Linear(4, 4)]

    def forward(self, x):
        return x


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net


def test_networks_are_found_wherever_they_are_kept():
    net, hiding, mine = nn.Linear(1, 1), Hiding(), Attributes(nn.Linear(1, 1))
    assert held.networks(net) == [net]
    assert held.networks(by_global) == [GLOBAL]
    assert held.networks(closing_over(net)) == [net]
    assert held.networks(functools.partial(lambda n, x: n(x), net)) == [net]
    assert held.networks(hiding) == [hiding, hiding.hidden[0]]
    for callable_ in (mine, mine.__call__):
        assert set(held.networks(callable_)) == {mine.nets["a"][0], Attributes.shared, GLOBAL}
    assert held.networks(Slotted(net)) == [net]
    assert held.networks(Slotted(net), but=[net]) == []
    assert held.networks(torch.relu) == held.networks(len) == held.networks("text") == []


def test_digest_is_that_of_the_weights():
    def made(seed=0):
        torch.manual_seed(seed)
        return closing_over(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))

    with torch.random.fork_rng():
        one, same, other = made(), made(), made(1)
    assert held.digest(one) == held.digest(same) != held.digest(other)
    changed = made()
    held.networks(changed)[0][1].running_mean.add_(1)
    assert held.digest(changed) != held.digest(one)
    assert held.digest(lambda x: x) == ""
    assert held.digest({"mean": torch.zeros(2)}) != held.digest({"mean": torch.zeros(3)}) != ""


def test_settled_networks_are_in_evaluation_mode_and_frozen():
    net = nn.Dropout()
    hiding = Hiding()
    held.settle([net], "cpu", own_mode=True)
    assert net.training
    held.settle([net, hiding], "cpu")
    assert not net.training
    assert not any(p.requires_grad for n in held.networks(hiding) for p in n.parameters())


def test_generators_are_found():
    g, r = torch.Generator(), random.Random(0)
    assert held.generators({"g": g, "r": [r]}) == [g, r]
