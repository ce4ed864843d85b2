"""The ways an attack may differentiate a purifier: an axis of the grid, printed in every table.

Each is one small object: whether it `applies` to a defense, which `canonical` form equal cells share, and its `vjp`. A
factory's keyword arguments are the command line's parameters. Planning reads this file, so torch is imported where it
differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from purebench.errors import UserError, unknown
from purebench.spec import Part, Value, show

if TYPE_CHECKING:
    from torch import Tensor

    from purebench.engine.chain import Purifier, Terms
    from purebench.engine.defense import Defense
    from purebench.engine.noise import Noise

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

Info = Mapping[str, Any]  # a defense's
Cotangent = Callable[["Tensor"], "Tensor"]  # of the purified image
Resolve = Callable[[Part], tuple[Part, Mapping[str, Value]]]  # a defense as written -> canonical, every parameter


def _no_terms(gradient: Exact, terms: Terms | None) -> None:
    if terms:
        name = type(gradient).__name__.lower()
        raise UserError(f"the gradient `{name}` walks no states whose terms it could take", "use `--grad exact`")


class Exact:
    """Of the sampled path, step by step."""

    def applies(self, defense: Part, info: Info) -> None:
        """Raises UserError where this gradient does not exist for a defense of this INFO."""

    def canonical(self, defense: Part, info: Info, resolve: Resolve) -> Part:
        """The gradient that this one is on a defense: what makes no difference there is left out."""
        return Part("exact")

    def walked(self, defense: Defense) -> Purifier:
        """The purifier that is differentiated."""
        return defense.purifier

    def within(self) -> AbstractContextManager[None]:
        """What holds while the graph is built and pulled back."""
        return nullcontext()

    def fits(self, defense: Defense, x: Tensor, noise: Noise) -> None:
        """Raises UserError where the defense's memory does not hold one step's graph of x (B,C,H,W)."""
        from purebench.engine import chain

        with self.within():
            chain.planned(self.walked(defense), x, noise, defense.memory)

    def vjp(
        self, defense: Defense, x: Tensor, noise: Noise, cotangent: Cotangent, terms: Terms | None = None
    ) -> tuple[Tensor, Tensor]:
        """(purified, gradient), both like x (B,C,H,W) in [0,1]. terms: of states on the way (`chain.Terms`); a gradient that walks no
        states refuses them."""
        from purebench.engine import chain

        with self.within():
            return chain.vjp(self.walked(defense), x, noise, cotangent, memory=defense.memory, terms=terms)

    def record(self, defense: Defense, x: Tensor, noise: Noise) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(purified, its pull-back of a cotangent): the same in two halves, for autograd, which may pull any number of times."""
        from purebench.engine import chain, nfe

        x = x.detach()

        def taped() -> chain.Tape:
            with self.within():
                return chain.record(self.walked(defense), x, noise, memory=defense.memory)

        # A tape is gone once it was pulled: kept, it would hold the graphs of every row of a Jacobian that nobody asks for.
        tapes = [taped()]
        purified = tapes[0].purified

        def pull(cotangent: Tensor) -> Tensor:
            if not tapes:
                with nfe.recomputing():
                    tapes.append(taped())
            with self.within():
                return tapes.pop().vjp(cotangent)

        return purified, pull


class Detached(Exact):
    """As exact, the guidance a constant."""

    def canonical(self, defense: Part, info: Info, resolve: Resolve) -> Part:
        return Part("detached" if info.get("guided") else "exact")

    def within(self) -> AbstractContextManager[None]:
        from purebench.engine import chain

        return chain.detached()


class Bpda(Exact):
    """The identity, at the purified image."""

    def canonical(self, defense: Part, info: Info, resolve: Resolve) -> Part:
        return Part("bpda")

    def fits(self, defense: Defense, x: Tensor, noise: Noise) -> None:
        """Always: nothing is recorded."""

    def vjp(
        self, defense: Defense, x: Tensor, noise: Noise, cotangent: Cotangent, terms: Terms | None = None
    ) -> tuple[Tensor, Tensor]:
        from purebench.engine import chain

        _no_terms(self, terms)
        purified = chain.run(defense.purifier, x, noise)
        return purified, cotangent(purified)

    def record(self, defense: Defense, x: Tensor, noise: Noise) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        from purebench.engine import chain

        x = x.detach()
        return chain.run(defense.purifier, x, noise), lambda pulled: self.vjp(defense, x, noise, lambda _: pulled)[1]


class Adjoint(Bpda):
    """torchsde's; without steps there is nothing to integrate, and it is exact."""

    def __init__(self, guidance: str):
        if guidance not in ("detached", "exact"):
            raise unknown("guidance", show(guidance), ["detached", "exact"])
        self.guidance = guidance

    def applies(self, defense: Part, info: Info) -> None:
        if not info.get("sde"):
            raise UserError(
                f"`{defense.name}` is no SDE: the adjoint gradient does not exist for it",
                "use `--grad exact`, or leave the defense out",
            )

    def canonical(self, defense: Part, info: Info, resolve: Resolve) -> Part:
        own = info.get("guided") and self.guidance != "detached"
        return Part("adjoint", (("guidance", self.guidance),) if own else ())

    def vjp(
        self, defense: Defense, x: Tensor, noise: Noise, cotangent: Cotangent, terms: Terms | None = None
    ) -> tuple[Tensor, Tensor]:
        from purebench.engine import adjoint

        _no_terms(self, terms)
        if not defense.purifier.n:
            return Exact().vjp(defense, x, noise, cotangent)
        sde = cast(adjoint.SDE, defense.purifier)  # `Defense` refuses the gradient for a purifier that is none
        return adjoint.vjp(sde, x, noise, cotangent, guidance=self.guidance)


class Surrogate(Exact):
    """The exact gradient of another purifier; the judge sees the true one."""

    def __init__(self, given: Mapping[str, Value]):
        self.given = given

    def purifier(self, defense: Part) -> Part:
        """The purifier that stands in for the defense's: the same one with other parameters, or another. Raises UserError for both,
        for neither, and for parameters that belong to a defense."""
        own = {k: v for k, v in self.given.items() if k != "defense"}
        if "defense" in self.given and own:
            raise UserError(f"`{self}` names a defense and parameters", "put them inside: surrogate:defense=(NAME:k=v)")
        if not self.given:
            raise UserError(
                "`surrogate` does not say by what", "write surrogate:steps=5, or surrogate:defense=(one-shot)"
            )
        if own:
            return Part(defense.name, tuple((dict(defense.parameters) | own).items()))
        other = self.given["defense"]
        return other if isinstance(other, Part) else Part(show(other))

    def __str__(self) -> str:
        return str(Part("surrogate", tuple(self.given.items())))

    def canonical(self, defense: Part, info: Info, resolve: Resolve) -> Part:
        other, values = resolve(self.purifier(defense))
        if other.name != defense.name:
            return Part("surrogate", (("defense", other),))
        own = resolve(defense)[1]
        changed = tuple((k, v) for k, v in values.items() if v != own[k])
        return Part("surrogate", changed) if changed else Part("exact")

    def walked(self, defense: Defense) -> Purifier:
        assert defense.surrogate is not None  # where a cell names this gradient, its defense is built with one
        return defense.surrogate


def exact() -> Exact:
    return Exact()


def detached() -> Detached:
    return Detached()


def bpda() -> Bpda:
    return Bpda()


def adjoint(*, guidance: str = "detached") -> Adjoint:
    """guidance: `detached` (as the published code) or `exact`."""
    return Adjoint(guidance)


def surrogate(*, defense: str | None = None, **parameters: Value) -> Surrogate:
    """Any parameter of the attacked defense, such as steps=5; or defense=(PART)."""
    return Surrogate(parameters if defense is None else {"defense": defense, **parameters})


def of(part: Part) -> Exact:
    """The gradient that a part names; `-`, of attacks that use none, is exact."""
    factories: dict[str, Callable[..., Exact]] = {
        "-": exact, "exact": exact, "detached": detached, "bpda": bpda, "adjoint": adjoint, "surrogate": surrogate
    }  # fmt: skip
    return factories[part.name](**dict(part.parameters))
