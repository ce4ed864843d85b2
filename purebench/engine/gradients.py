"""The ways an attack may differentiate a purifier: an axis of the grid, printed in every table. `Defense` carries them out.

The factories only name the modes and their parameters; what each means is in INFO."""

from __future__ import annotations

INFO = {
    "exact": {"summary": "the gradient of the sampled path, second-order terms included", "version": 1},
    "detached": {
        "summary": "as exact, with the guidance inside a step held constant (COUP's published code)",
        "version": 1,
    },
    "adjoint": {
        "summary": "torchsde's sdeint_adjoint on the chain's own Brownian path, as DiffPure and COUP used it; "
        "not the gradient of the sampled path",
        "version": 1,
        "choices": {"guidance": ["detached", "exact"]},
    },
    "bpda": {
        "summary": "identity through the purifier, evaluated at the purified image (Athalye et al. 2018)",
        "version": 1,
    },
    "surrogate": {
        "summary": "the exact gradient of a cheaper purifier: the same one with other parameters, or another",
        "version": 1,
    },
}


def exact() -> None: ...


def detached() -> None: ...


def bpda() -> None: ...


def adjoint(*, guidance: str = "detached") -> None:
    """guidance: `detached` (as the published code) or `exact`."""


def surrogate(*, defense: str | None = None) -> None:
    """Any parameter of the attacked defense, such as steps=5; or defense=(PART)."""
