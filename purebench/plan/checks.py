"""What `run --sanity` adds to a grid beside the controls: the checks of Carlini et al. 2019 ("On Evaluating Adversarial
Robustness", section 5) and Athalye et al. 2018 (section 3.1), as more cells of the same defense on a few images. Torch-free.

All are scaled down from one attack that was asked for, the `base`: a quarter of its steps and of its EOT, and from there doubled
to twice what was asked for. What they say is judged by `report.sanity`, of whatever cells there are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from purebench import registry
from purebench.plan import limits
from purebench.spec import LARGEST, Part, Resolved, ThreatModel

FEWEST, MOST = 16, 32  # images of a check, where the run has so many: a quarter of the run's in between
USUAL = Part("pgd-eot")  # the base where no attack that was asked for counts steps and draws
THROUGH = ("exact", "detached", "adjoint")  # gradients that go through the purifier itself
WIDER = (2, 4)  # radii, as multiples of the one asked for
CROSSING = 10  # steps, where the base has so many, that cross a ball that holds every image
QUERIES = 5  # of square-eot, for each step of the base: each asks three times, and so costs about what the base does


@dataclass(frozen=True)
class Extra:
    """One more cell of a defense: the attack under a threat model, without the defense's normal draws where `fixed`."""

    attack: Part
    threat: ThreatModel
    fixed: bool = False


def images(wanted: int) -> int:
    """How many images a check takes of so many."""
    return min(wanted, max(FEWEST, min(MOST, wanted // 4)))


def base(attacks: Sequence[Part]) -> Part:
    """The first attack that follows a gradient and counts `steps` and `eot`."""
    for attack in attacks:
        known = registry.parameters("attack", attack.name)
        if registry.info("attack", attack.name).get("gradients") and {"steps", "eot"} <= known.keys():
            return attack
    return USUAL


def planned(attack: Resolved, key: str, threat: ThreatModel, shape: Sequence[int]) -> Iterator[Extra]:
    """The checks of one defense. attack: the base, resolved; key: by which the registry finds it; shape: [C,H,W] of the images."""
    steps, eot = (_count(attack.values[name]) for name in ("steps", "eot"))
    few, draws = max(1, math.ceil(steps / 4)), max(1, math.ceil(eot / 4))

    def at(steps: int, eot: int) -> Part:
        return Part(key, tuple((dict(attack.part.parameters) | {"steps": steps, "eot": eot}).items()))

    # One step against many, and from there to a plateau.
    for count in dict.fromkeys([1, few, 2 * few, max(4 * few, steps), 2 * max(4 * few, steps)]):
        yield Extra(at(count, draws), threat)
    for count in dict.fromkeys([2 * draws, max(4 * draws, eot), 2 * max(4 * draws, eot)]):
        yield Extra(at(few, count), threat)
    crossing = max(few, min(steps, CROSSING))
    for radius in [threat, *wide] if (wide := wider(threat, shape)) else []:
        yield Extra(at(crossing, draws), radius)
    # Without a gradient of the purifier: where one of them is stronger, that gradient is masked.
    if limits.knows("transfer-pgd", threat):
        yield Extra(Part("transfer-pgd", (("steps", steps),)), threat)
    if attack.name != "bpda-eot" and limits.knows("bpda-eot", threat):
        yield Extra(Part("bpda-eot", (("steps", steps), ("eot", draws))), threat)
    if limits.knows("square-eot", threat):
        # Cut to what the base costs: the default is thousands of queries.
        yield Extra(Part("square-eot", (("queries", QUERIES * steps), ("eot", draws))), threat)
    yield Extra(at(crossing, draws), threat)
    yield Extra(at(crossing, draws), threat, fixed=True)


def wider(threat: ThreatModel, shape: Sequence[int]) -> list[ThreatModel]:
    """The radii times WIDER, and the ball that holds every image; none of what has no ball. shape: [C,H,W]."""
    if not threat.is_ball:
        return []
    all_of_it = whole(threat.norm, shape)
    radii = [threat.eps * factor for factor in WIDER if threat.eps * factor < all_of_it] + [all_of_it]
    return [replace(threat, eps=radius) for radius in dict.fromkeys(radii) if radius > threat.eps]


def whole(norm: str, shape: Sequence[int]) -> float:
    """The radius of the ball that holds every image, whichever it is around. shape: [C,H,W] of the images."""
    assert LARGEST["Linf"] == 1.0
    size = math.prod(shape)
    return {"Linf": 1.0, "L2": math.sqrt(size), "L1": float(size)}[norm]


def _count(value: object) -> int:
    assert isinstance(value, int)
    return value
