"""A classifier's weights out of what other people wrapped around it: RobustBench's constants, an attacker's copy, a normaliser.

Everything here is certain or refused: what is passed over is the network a second time, bit for bit, or a constant with which the
network is built anyway, or a normalisation, which is then applied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from purebench.assets import contents
from purebench.errors import UserError

# Buffers with which RobustBench's architectures are built, and which its own loader (`_safe_load_state_dict`) does not ask of a file.
CONSTANTS = ("mu", "sigma", "mean", "std")
# What it passes over besides: scores that pruning leaves, and a head of Pang et al.'s that is not used.
LEFT = ("scores",)
HEADS = ("model_preact_hl1.",)
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")

State = dict[str, Tensor]
Values = tuple[float, ...]


def of_zoo(network: nn.Module, state: State) -> State:
    """The weights of one of RobustBench's networks, without what its own loader passes over."""
    own = network.state_dict()
    left = [k for k in state if k not in own and (k.rpartition(".")[2] in LEFT or k.startswith(HEADS))]
    return {key: value for key, value in state.items() if key not in left}


def taken_out(network: nn.Module, state: State, what: str) -> tuple[State, Values, Values]:
    """(the network's own weights, mean, std): of a file that holds more, such as a normaliser as its first layer or, of the library
    `robustness`, its attacker's copy of the network. mean and std are empty where there is no normaliser. Where it is not certain, all
    is left as it is, for whoever loads it to refuse. UserError for copies that differ, and a normaliser that is not in [0,1]."""
    wanted = [name for name, _ in network.named_parameters()]
    known = network.state_dict()
    names = contents.fitted(state, list(known))
    if all(names[key] in known for key in state):
        return state, (), ()
    ends = {key[: -len(wanted[0])] for key in state if f".{key}".endswith(f".{wanted[0]}")}
    places = [
        place for place in sorted(ends, key=lambda p: (len(p), p)) if all(place + name in state for name in wanted)
    ]
    if not places:
        return state, (), ()
    inside = {key.removeprefix(places[0]): value for key, value in state.items() if key.startswith(places[0])}
    rest = {key: value for key, value in state.items() if not key.startswith(places[0])} if places[0] else {}
    if not places[0]:
        rest = {key: value for key, value in state.items() if key not in known}
        inside = {key: value for key, value in state.items() if key in known}
    means: list[Values] = []
    stds: list[Values] = []
    for key, value in rest.items():
        copy = next((p for p in places[1:] if key.startswith(p) and key.removeprefix(p) in inside), None)
        last = key.rpartition(".")[2]
        if copy is not None:
            if not torch.equal(value, inside[key.removeprefix(copy)]):
                raise UserError(
                    f"`{what}` holds the network twice, under `{places[0]}` and `{copy}`, and they differ",
                    "save the weights of the one that is meant",
                )
        elif last in MEANS + STDS and value.numel() in (1, 3):
            (means if last in MEANS else stds).append(tuple(map(float, value.flatten())))
        else:
            return state, (), ()
    if bool(means) != bool(stds):
        return state, (), ()
    return inside, _one(means, what), _one(stds, what)


def _one(found: Sequence[Values], what: str) -> Values:
    if len(set(found)) > 1 or any(not 0 <= v <= 1 for values in found for v in values):
        raise UserError(
            f"`{what}` holds a normaliser that is not certain: {'; '.join(str(list(values)) for values in found[:3])}",
            "save the network without it, and say `mean` and `std` of images in [0,1]",
        )
    return found[0] if found else ()
