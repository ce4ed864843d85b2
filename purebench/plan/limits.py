"""What an attack cannot do, known before it runs: classes that its loss needs, images that a library's code cannot take, a radius that no
two images can be apart. What holds of an attack is said by its INFO: `classes`, and `limits`: condition -> [why, what to do instead].

A condition is INFO's arithmetic over the attack's parameters and `norm`, `eps`, `channels`, `height`, `width`. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from purebench import registry
from purebench.errors import UserError
from purebench.spec import BOX, USUAL, Resolved, ThreatModel, Value, show

SUSPECT = 8.0  # an L2 radius: no paper's is half as large


def check(attack: Resolved, threat: ThreatModel, shape: Sequence[int], classes: int, whose: str) -> None:
    """Raises UserError for an attack that cannot run. shape: [C,H,W] of the images; classes: that there are, 0 where it is not known;
    whose: what has them, as the message names it."""
    if classes == 1:
        raise UserError(f"{whose} has one class: every answer is right, whatever an attack does", "two are the least")
    needed = registry.of_info(attack.name, attack.info.get("classes", "1"), attack.values)
    if 0 < classes < needed:
        targets = f"`n_target_classes={classes - 1}`, " if "n_target_classes" in attack.values and classes > 3 else ""
        raise UserError(
            f"`{attack}` needs at least {needed} classes, and {whose} has {classes}",
            f"use {targets}`-a apgd-ce` or `-a pgd-eot:loss=margin`, which know no such bound",
        )
    channels, height, width = shape
    known: dict[str, Value] = {**attack.values, "norm": threat.norm, "eps": threat.eps}
    known |= {"channels": channels, "height": height, "width": width}
    for condition, (why, instead) in attack.info.get("limits", {}).items():
        if not registry.of_info(attack.name, condition, known):
            size = "x".join(map(str, shape))
            raise UserError(f"`{attack}` cannot attack images of {size} under {threat}: {why}", instead)


def threat_of(attack: Resolved, asked: ThreatModel) -> ThreatModel:
    """The threat model that an attack has where `asked` was asked for: of one that keeps to no ball the box, whatever was asked. Raises
    UserError for one of a kind that INFO's `threats` does not name."""
    if not attack.info.get("threat", True):
        return asked
    kinds = _kinds(attack.key)
    if kinds == [BOX]:
        return ThreatModel(BOX, 1.0)
    if not knows(attack.key, asked):
        raise UserError(
            f"`{attack}` knows no threat model `{asked}`: it keeps to {' or '.join(kinds)}",
            f"`-t {EXAMPLES[kinds[0]]}`, or another attack: `purebench list attacks`",
        )
    return asked


def within(attack: Resolved, limit: ThreatModel, whole: str) -> None:
    """Raises UserError for an attack inside another one, `whole`, whose images would be under another threat model than that one's."""
    kinds = _kinds(attack.key)
    if attack.info.get("threat", True) and (limit.norm not in kinds or kinds == [BOX] != [limit.norm]):
        raise UserError(
            f"`{whole}` under {limit} cannot have `{attack}` inside, which keeps to {' or '.join(kinds)}",
            f"give it by itself: `-a {attack.name}`",
        )


HAS = {
    "diffuses": "no forward diffusion to be held against"
}  # what INFO of an attack asks of a defense -> what is missing


def check_defense(attack: Resolved, defense: Resolved) -> None:
    """Raises UserError for an attack on a defense that has not what INFO's `of` asks for."""
    needed = attack.info.get("of", "")
    if needed and not defense.info.get(needed):
        having = [name for name in registry.names("defense") if registry.info("defense", name).get(needed)]
        raise UserError(
            f"`{attack}` cannot attack `{defense}`, which has {HAS.get(needed, f'no `{needed}`')}",
            f"it can attack {', '.join(having)}",
        )


def knows(attack: str, threat: ThreatModel) -> bool:
    """Whether an attack, by the registry's name, keeps to threat models of this kind, or to none."""
    return not registry.info("attack", attack).get("threat", True) or threat.norm in _kinds(attack)


def _kinds(attack: str) -> list[str]:
    return list(registry.info("attack", attack).get("threats", USUAL))


EXAMPLES = {"Linf": "Linf:8/255", "L2": "L2:0.5", "L1": "L1:12", "StAdv": "StAdv:0.05", BOX: BOX}


def check_radius(threat: ThreatModel, shape: Sequence[int], dataset: str) -> str:
    """A warning of an L2 radius that was probably meant in 255ths, or nothing. Raises UserError for one beyond the distance of a black
    image and a white one of shape [C,H,W]; of Linf `spec.threat` knows it."""
    if threat.norm == "L1" and threat.eps > math.prod(shape):
        raise UserError(
            f"no two images of {dataset} are as far apart as `{threat}`: at {'x'.join(map(str, shape))} values in [0,1] at most "
            f"{math.prod(shape)}",
            "write `L1:12`",
        )
    if threat.norm != "L2":
        return ""
    largest, meant = math.sqrt(math.prod(shape)), f"`L2:{show(threat.eps)}/255`"
    if threat.eps > largest:
        more = f"; did you mean {meant}?" if threat.eps <= 255 * largest else ""
        raise UserError(
            f"no two images of {dataset} are as far apart as `{threat}`: at {'x'.join(map(str, shape))} values in [0,1] at most "
            f"{largest:.4g}",
            f"write `L2:0.5`, or a fraction such as `L2:128/255`{more}",
        )
    if threat.eps >= SUSPECT:
        share = f"{100 * threat.eps / largest:.0f} % of the distance between black and white"
        return f"warning: the radius of `{threat}` is {share} on {dataset}; did you mean {meant}?"
    return ""
