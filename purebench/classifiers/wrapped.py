"""A classifier's weights out of what other people wrapped around it: RobustBench's constants, an attacker's copy, a normaliser.

Everything here is certain or refused: what is passed over is the network a second time, bit for bit, or a constant with which the
network is built anyway, or a normalisation, which is then applied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from purebench.assets import architecture, contents
from purebench.classifiers import normalisation
from purebench.errors import UserError

# Buffers with which RobustBench's architectures are built, and which its own loader (`_safe_load_state_dict`) does not ask of a file.
CONSTANTS = ("mu", "sigma", "mean", "std")
# What it passes over besides: scores that pruning leaves, and a head of Pang et al.'s that is not used.
LEFT = ("scores",)
HEADS = ("model_preact_hl1.",)
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm in a normaliser's place
EPS = 1e-5  # of a batch norm, where nobody says another; no file has it

State = dict[str, Tensor]
Values = tuple[float, ...]


def of_zoo(network: nn.Module, state: State) -> State:
    """The weights of one of RobustBench's networks, without what its own loader passes over."""
    own = network.state_dict()
    left = [k for k in state if k not in own and (k.rpartition(".")[2] in LEFT or k.startswith(HEADS))]
    return {key: value for key, value in state.items() if key not in left}


def head(network: nn.Module, state: State, name: str) -> State:
    """The weights with the last layer under the key of a network called so, where it was saved in a sequence (`fc.1.weight`)."""
    inside, plain = architecture.head_in_sequence(state, name)
    own = network.state_dict()
    layer = plain.rstrip(".").rpartition(".")[2]
    if not inside or f"{layer}.weight" not in own or own[f"{layer}.weight"].shape != state[f"{inside}weight"].shape:
        return state
    return {plain + key.removeprefix(inside) if key.startswith(inside) else key: v for key, v in state.items()}


def taken_out(network: nn.Module, state: State, what: str, given: bool = False) -> tuple[State, Values, Values]:
    """(the network's own weights, mean, std): of a file that holds more, such as a normaliser as its first layer or, of the library
    `robustness`, its attacker's copy of the network. mean and std are empty where there is no normaliser. Where it is not certain, all
    is left as it is, for whoever loads it to refuse. given: whether the user says the normalisation, which then holds where the file's is
    not certain. UserError for copies that differ, and a normaliser that is not certain, with its numbers."""
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
    others: State = {}
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
            others[key] = value
    # Of what has no mean nobody knows what it is.
    if (others or bool(means) != bool(stds)) and not (means or any(_last(key) in RUNNING[:1] for key in others)):
        return state, (), ()
    if any(value.numel() not in (1, 3) for value in others.values()):
        return state, (), ()
    try:
        if others or len(set(means)) > 1 or len(set(stds)) > 1 or bool(means) != bool(stds):
            raise UserError("it is none of a mean and a deviation alone")
        normalisation.check(means[0] if means else (), stds[0] if stds else ())
    except UserError as error:
        if given:
            return inside, (), ()
        copies = {key for key in rest if any(key.startswith(p) for p in places[1:])}
        raise _uncertain({k: v for k, v in rest.items() if k not in copies}, what, error) from None
    return inside, means[0] if means else (), stds[0] if stds else ()


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _uncertain(held: State, what: str, why: UserError) -> UserError:
    """The error for a normaliser that is not certain, with what it would be as a mean and a deviation."""
    by = {_last(key): value.flatten().double() for key, value in held.items()}
    mean = next((by[name] for name in (*MEANS, "running_mean") if name in by), torch.zeros(1).double())
    var = next((by[name] for name in ("running_var", "var") if name in by), None)
    std = next((by[name] for name in STDS if name in by), None)
    how = "(x - mean) / std"
    if std is None and var is not None:
        eps = EPS if "running_var" in by else 0.0
        std = (var + eps).sqrt()
        how = "a batch norm with an eps of 1e-05" if eps else "(x - mean) / sqrt(var)"
    numbers = [f"`{key}` {[round(float(v), 4) for v in value.flatten()]}" for key, value in list(held.items())[:4]]
    message = f"`{what}` holds a normaliser that is not certain: {', '.join(numbers)}; {why.message}"
    hint = "give the network with its normaliser as code of your own: FILE.py:NAME"
    if std is not None:
        if "weight" in by:
            std = std / by["weight"]
        if "bias" in by:
            mean = mean - by["bias"] * std
        # Of pixels up to 255.
        if float(mean.max()) > 1:
            mean, std, how = mean / 255, std / 255, f"{how} of pixels up to 255"
        values = (tuple(mean.tolist()), tuple(std.tolist()))
        try:
            normalisation.check(*values)
            hint = f"if it is {how}, write {normalisation.written(*values)}, which then holds; else {hint}"
        except UserError:
            pass
    return UserError(message, hint)
