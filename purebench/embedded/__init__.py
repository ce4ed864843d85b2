"""The weights that ship inside the package, verified against `checkpoints.toml` whenever they are read. It may import
`assets`, `networks` and `errors`. Begin reading at `load`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purebench import errors

HERE = Path(__file__).parent


def verified(asset: str) -> Path:
    """The path of an embedded weights file whose size and sha256 are those of `checkpoints.toml`; UserError (exit 3) otherwise."""
    from purebench import assets

    entry = assets.entry(asset)
    path = HERE / f"{asset}.safetensors"
    hint = f"reinstall purebench, or make the file again: `{entry['command']}`"
    if not path.is_file():
        raise errors.UserError(f"the weights `{path}` are missing", hint, errors.DOWNLOAD)
    found = assets.sha256(path)
    if found != entry["sha256"]:
        raise errors.UserError(
            f"the weights `{path}` are corrupt: sha256 {found[:12]}.., expected {entry['sha256'][:12]}..",
            hint,
            errors.DOWNLOAD,
        )
    return path


def load(asset: str, path: str = "", weights: str = "") -> Any:
    """The network of an embedded file: built from the configuration in its metadata, in evaluation mode, parameters frozen.
    path: your own file in its place, of `purebench train` or any weights of the same network; weights: `ema` or `raw` where it has
    both, "" for the average where there is one. UserError if it is of another network."""
    ours = read(verified(asset))
    if not path:
        return ours
    if "network" in metadata(Path(path)):
        own = read(Path(path))
        shapes, expected = ({key: value.shape for key, value in net.state_dict().items()} for net in (own, ours))
        if shapes != expected:
            raise errors.UserError(f"`{path}` is no network like `{asset}`", f"make one with `purebench train {asset}`")
        return own
    from purebench.assets import checkpoint

    found = checkpoint.read(Path(path), "state-dict", weights=weights, order=checkpoint.parameters(ours))
    return checkpoint.fill(ours, found, path, f"make one with `purebench train {asset}`")


def metadata(path: Path) -> Mapping[str, str]:
    """What `purebench train` wrote into a file beside the weights; nothing of a file of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def read(path: Path) -> Any:
    """The same of any file that `purebench train` wrote."""
    from purebench.networks import small

    return small.load(path)
