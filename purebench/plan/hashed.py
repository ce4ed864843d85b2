"""The content hash of a component that is not ours: its code, the weights that it holds once it is made, and the files that its values
name. Torch is imported for what a user's file or object defines, which is made to be looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from purebench import assets, foreign, registry
from purebench.errors import UserError
from purebench.spec import Value, located


def of(kind: str, name: str, code: str, values: Mapping[str, Value], shape: Sequence[int] = (), said: str = "") -> str:
    """sha256 in hexadecimal digits. name: by which the registry finds it; code: the hash of its source; shape: [C,H,W] of the images;
    said: what else is known of its content. Raises UserError for what cannot be made."""
    own = {key: value for key, value in located(values).items() if key not in registry.COMMON.get(kind, {})}
    files = [
        assets.hashed(Path(value)) for _, value in sorted(own.items()) if isinstance(value, str) and _is_file(value)
    ]
    state = ""
    if registry.is_object(name):
        state = f"{foreign.attributes(foreign.given(name))} {_state(kind, name, own, tuple(shape))}"
    elif registry.is_file(name) and kind != "dataset":
        state = _kept(kind, name, code, tuple(files), tuple(sorted(own.items())), tuple(shape))
    words = [word for word in (code, *files, state, said) if word]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _is_file(value: str) -> bool:
    # Longer than any path: asking the system would be an error.
    return 0 < len(value) < 1024 and Path(value).is_file()


@cache
def _kept(
    kind: str, name: str, code: str, files: tuple[str, ...], own: tuple[tuple[str, Value], ...], shape: tuple[int, ...]
) -> str:
    """The same for the same code, files and values; an object, whose weights its owner may change at any time, is asked again."""
    return _state(kind, name, dict(own), shape)


def _state(kind: str, name: str, own: Mapping[str, Value], shape: tuple[int, ...]) -> str:
    """The hashes of the values and the weights that it holds once it is made."""
    from purebench.engine import held

    given = _stand_ins(shape) if kind == "defense" else ()
    try:
        made = registry.factory(kind, name)(*given, **{f"{k}_" if k == "from" else k: v for k, v in own.items()})
    except UserError:
        # A stand-in is no network: what only the real one can tell, the rehearsal and the run will.
        if kind == "defense" and registry.info(kind, name).get("needs"):
            return ""
        raise
    if kind == "score":
        as_score(made, registry.label(kind, name))
    return f"{foreign.attributes(made, given)} {held.digest(made, given)}"


def as_score(made: Any, name: str) -> Any:
    """The score model that a factory made. Raises UserError for what is none."""
    from purebench.scores.views import Score

    if not isinstance(made, Score):
        hint = "wrap the network, such as `purebench.scores.vp.VPScore(network, (3, 32, 32))`"
        raise UserError(f"`{name}` gave a {type(made).__name__}, and no score model", hint)
    return made


def _stand_ins(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """(score model, classifier) without weights."""
    import torch

    from purebench.scores.vp import VPScore

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, *_level: torch.Tensor) -> torch.Tensor:
            return 0.1 * x.tanh()

    channels, height, width = shape or (3, 32, 32)
    return VPScore(Nothing(), (channels, height, width)), lambda x: x.flatten(1)[:, :10]
