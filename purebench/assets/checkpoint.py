"""From a name in `checkpoints.toml` to a network: built from the registry's configuration, filled from the file, frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from purebench import assets, networks
from purebench.assets import architecture, contents, readers
from purebench.errors import DOWNLOAD, UserError

# Registry's words for where a state dict comes from; the reader knows it by its layout.
STATE_DICTS = ("archive", "torchvision", "timm")
# Of a context and not arguments: `--dry-run` and the rehearsal load networks by way of factories, which know nothing of either.
_untrained: ContextVar[bool] = ContextVar("untrained", default=False)
_hollow: ContextVar[bool] = ContextVar("hollow", default=False)


@contextmanager
def _within(mode: ContextVar[bool]) -> Iterator[None]:
    """Within: the mode is on; afterwards it is as it was before, also where one such block is in another."""
    token = mode.set(True)
    try:
        yield
    finally:
        mode.reset(token)


def untrained() -> AbstractContextManager[None]:
    """Within: networks keep their fresh weights, and no file is read. What `--dry-run` measures does not depend on them."""
    return _within(_untrained)


def hollow() -> AbstractContextManager[None]:
    """Within: `load` builds and reads nothing, and its networks are empty modules. For what only adapters know."""
    return _within(_hollow)


def load(
    asset: str, *, weights: str = "", member: str = "", path: str = "", network: architecture.Network | None = None
) -> nn.Module:
    """The asset's network with its weights: evaluation mode, frozen, float32, on CPU. weights: `ema` or `raw` where the file has both, ""
    for the average where there is one; member: the file in an unpacked archive; path: your own file, of the same network, or of this
    `network`. UserError (exit 3) for a missing, broken, hostile or unfitting file."""
    if _hollow.get():
        return nn.Module()
    if not path:
        return _load(asset, None, weights, member)
    return _own(asset, Path(path), weights, network) if network else _load(asset, Path(path), weights, "")


def _own(asset: str, path: Path, weights: str, known: architecture.Network) -> nn.Module:
    """The network that a user's file is of, filled from it."""
    entry = assets.entry(asset)
    network = networks.build(entry["network"], known.config)
    found = read(path, format_of(entry), weights=weights, order=parameters(network))
    if known.keys:
        own = network.state_dict()
        found = {known.keys.get(key, key): value for key, value in found.items()}
        # A linear layer of every position is a convolution of one pixel.
        found = {
            key: value[..., None, None] if _of_pixels(value, own.get(key)) else value for key, value in found.items()
        }
    return fill(network, found, str(path), f"a file like `{asset}` is wanted, or a configuration of its own")


def _of_pixels(value: Tensor, own: Tensor | None) -> bool:
    return own is not None and value.dim() == 2 and own.shape == (*value.shape, 1, 1)


def _load(asset: str, own: Path | None, weights: str, member: str) -> nn.Module:
    """The asset's network, filled from its file or from the user's `own`."""
    entry, what = assets.entry(asset), str(own or asset)
    # An EDM pickle holds its configuration; the registry's is for when no file is read.
    if entry["format"] == "edm-pickle" and not _untrained.get():
        config, found = readers.edm(own or assets.need(asset))
        found = read(own or assets.need(asset), "edm-pickle", weights=weights) if weights == "raw" else found
        return fill(networks.build(entry["network"], config), found, what)
    network = networks.build(entry["network"], entry.get("config", {}))
    order = parameters(network)
    if own is None:
        # Never the raw weights instead of a paper's average: they give other numbers under the same name.
        weights = weights or ("ema" if entry["format"] in ("score-sde", "ncsnv2-list") else "")
        return fill(network, state(asset, weights=weights, member=member, order=order), what)
    found = read(own, format_of(entry), weights=weights, order=order)
    # The registry's advice is about its own file, which the user does not want: fetching it again would not help.
    return fill(network, found, what, f"a file like `{asset}` is wanted: the same network")


def parameters(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in their order: of averages that are saved without names, these are the names."""
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def state(
    asset: str, *, weights: str = "", member: str = "", order: dict[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """The tensors of the asset's file by key; nothing within `untrained()`."""
    if _untrained.get():
        return {}
    path, entry = assets.need(asset), assets.entry(asset)
    return read(path / member if member else path, format_of(entry), weights=weights, order=order)


def format_of(entry: assets.Entry) -> str:
    """The reader's word for how the asset's file is laid out."""
    return "state-dict" if entry["format"] in STATE_DICTS else entry["format"]


def read(
    path: Path, format: str, *, weights: str = "", order: dict[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file by key: float32, on CPU; nothing within `untrained()`."""
    return {} if _untrained.get() else readers.state(path, format, order=order, weights=weights)


def noise(path: str, weights: str = "", format: str = "state-dict") -> dict[str, Tensor]:
    """What a user's own file says of its diffusion's noise schedule, as `readers.schedule`; {} where it says nothing of it."""
    # Nearly no file does, and its contents are known: it is not read twice.
    if not path or _untrained.get() or _hollow.get() or not contents.of(path, format).noise:
        return {}
    return readers.schedule(Path(path), weights)


def fill(
    network: nn.Module, found: dict[str, Tensor], what: str, hint: str = "", constants: tuple[str, ...] = ()
) -> nn.Module:
    """The network with these tensors, in evaluation mode, frozen. constants: last parts of the names of buffers that a file may lack,
    since the network is built with them. UserError for keys or shapes that do not fit, with this hint."""
    if not _untrained.get():
        network = readers.load(network, found, what, derived=(*readers.DERIVED, *constants), hint=hint)
    return network.eval().requires_grad_(False)


def trained(name: str, family: str, config: dict[str, Any]) -> nn.Module:
    """A network that the user trains: `<cache>/trained/<name>.safetensors`, of this family and configuration."""
    path = assets.cache_folder() / "trained" / f"{name}.safetensors"
    if not path.is_file() and not _untrained.get():
        raise UserError(f"`{path}` is not there: nobody published these weights", assets.bring([name]), DOWNLOAD)
    return fill(networks.build(family, config), read(path, "safetensors"), name)
