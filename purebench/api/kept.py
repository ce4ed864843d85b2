"""The caller's networks are set to evaluation mode, frozen, moved and counted while they are evaluated; then they are as they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from purebench.engine import held
from purebench.running import evaluate

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")


@contextmanager
def as_they_came(objects: Iterable[object]) -> Iterator[None]:
    """Within it, whatever becomes of the networks that these objects hold is undone at its end: their mode, their device, whether their
    parameters want gradients, and hooks. Their weights are nobody's to change."""
    networks = [network for thing in objects for network in held.networks(thing)]
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    hooks = [[dict(getattr(module, name)) for name in HOOKS] for module in modules]
    parameters = [parameter for network in networks for parameter in network.parameters()]
    wanted = [parameter.requires_grad for parameter in parameters]
    devices = [next((p.device for p in (*network.parameters(), *network.buffers())), None) for network in networks]
    try:
        yield
    finally:
        for module, mode, before in zip(modules, modes, hooks, strict=True):
            # Not `train()`, which would set its children, too.
            module.training = mode
            for name, known in zip(HOOKS, before, strict=True):
                added = getattr(module, name)
                for key in set(added) - set(known):
                    del added[key]
        for parameter, want in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(want)
        for network, device in zip(networks, devices, strict=True):
            if device is not None:
                network.to(device)
        if networks:
            # The process keeps networks by name, and these are no longer counted.
            evaluate.forget()
