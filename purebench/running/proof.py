"""A foreign defense, tried before its numbers are believed: two calls with the same draws agree, and its exact gradient agrees with a
finite difference. The most common mistake of the field is a gradient that stops somewhere without a word."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from purebench.engine import chain, held
from purebench.engine.defense import Defense
from purebench.engine.noise import Noise
from purebench.engine.rows import finite_rows
from purebench.purifiers.plain import Plain

ROWS = 4
# Of the finite difference, by which the gradient may miss it. What is exact misses it by a thousandth, and by a hundredth where its
# networks have kinks; one detached step of four by half, a detached guidance by a tenth.
TOLERANCE = 0.05
STEPS = (1e-3, 2.5e-4)  # of the finite differences, root mean square over pixels: it is enough that one of them agrees
SUSPECTS = {  # an attribute or a name in the source -> what it does
    "no_grad": "nothing inside has a gradient",
    "inference_mode": "nothing inside has a gradient",
    "detach": "the gradient stops there",
    "data": "the gradient stops there",
    "numpy": "numpy knows no gradient",
    "item": "a number knows no gradient",
    "round": "its gradient is zero",
    "set_grad_enabled": "nothing inside has a gradient",
}
OWN_DRAWS = {"default_rng", "Generator", "seed", "urandom", "SystemRandom", "time"}


@dataclass(frozen=True)
class Proof:
    """What a table must warn of (`metrics.NOTES`), and what the user is told at once."""

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def prove(defense: Defense, x: Tensor, name: str, *, gradient: bool = True, unbounded: bool = False) -> Proof:
    """Tries the defense's purifier on x (B,C,H,W) in [0,1], the first of whose images are taken; about a dozen purifications of four rows,
    and one gradient if that is asked for. `unbounded`: its output is meant to leave [0,1]."""
    purifier, x = defense.purifier, x[:ROWS]
    noise = Noise(0, "proof", (), range(len(x)), [0] * len(x))
    # Inside: at the edge a clamp has two derivatives. And uneven: among the equal pixels of a background a median has many.
    x = 0.2 + 0.5 * x.detach() + 0.1 * noise.fork("image").uniform(0, x)
    if defense.noise != 1:
        noise = noise.scaled(defense.noise)
    purify = partial(chain.run, purifier, noise=noise)
    found = purify(x)
    finite = finite_rows(found)
    # What is not finite is counted by the judge, and proves nothing here.
    if not finite.any():
        return Proof()
    x, noise = x[finite], noise.rows(noise.ids[finite.cpu()], noise.samples[finite.cpu()])
    purify = partial(chain.run, purifier, noise=noise)
    found = purify(x)
    notes, warnings = [], []
    if _apart(found, purify(x)) > 1e-4:
        draw = "torch.randn_like(x)" if isinstance(purifier, Plain) else "noise.normal(k, x)"
        warnings.append(
            f"`{name}` is not repeatable: the same draws gave two answers{_at(purifier, OWN_DRAWS)}; draw with `{draw}`, and keep no "
            "state between calls"
        )
        notes.append("random")
    elif gradient and (why := _wrong_gradient(defense, x, noise, purify)):
        warnings.append(f"the exact gradient of `{name}` {why}{_at(purifier, SUSPECTS)}")
        notes.append("gradient")
    low, high = float(found.min()), float(found.max())
    if not unbounded and (low < -1e-3 or high > 1 + 1e-3):
        warnings.append(
            f"the output of `{name}` is in [{low:.2f}, {high:.2f}], and the classifier expects [0,1]; if that is meant, its INFO says "
            '`"output": "unbounded"`'
        )
        notes.append("range")
    if isinstance(purifier, Plain):
        if purifier.batch:
            warnings.append(
                f"`{name}` draws from {', '.join(sorted(purifier.batch))}: its draws belong to the batch, and change with `--rows`"
            )
            notes.append("batch")
        if purifier.changes_input:
            warnings.append(f"`{name}` writes into the images that it is given: it gets a copy")
    return Proof(tuple(notes), tuple(warnings))


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the size of the values."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def _wrong_gradient(defense: Defense, x: Tensor, noise: Noise, purify: Any) -> str:
    """What is wrong with the exact gradient at x; empty where it agrees with a finite difference."""
    u = torch.cos(1.7 * torch.arange(x.numel(), device=x.device, dtype=x.dtype) ** 2 % 6.283).view_as(x)
    _, grad = chain.vjp(defense.purifier, x, noise, u, memory=defense.memory)
    if not grad.isfinite().all():
        return "is not finite where the defense is"
    scale = x.numel() ** 0.5

    def slope(along: Tensor, step: float) -> float:
        """d (u . purified) / ds along a unit direction, by a central difference."""
        h = step * scale * along
        difference = (purify(x + h).double() - purify(x - h).double()) * u.double()
        return float(difference.sum()) / (2 * step * scale)

    size = float(grad.double().norm())
    if not size:
        moved = max(abs(slope(u / u.norm(), step)) for step in STEPS) > 1e-4 * float(u.norm())
        return "is zero, though its output depends on the image: it is detached, or has no derivative" if moved else ""
    # Along itself, where a wrong length shows; and along the cotangent, where most of what is missing lies.
    for along in (grad / grad.norm(), u / u.norm()):
        claimed = float((grad.double() * along.double()).sum())
        slopes = [slope(along, step) for step in STEPS]
        if min(abs(s - claimed) for s in slopes) > TOLERANCE * max(size, *map(abs, slopes)):
            return (
                f"is not that of what it computes: {claimed:.3g} where a finite difference gives {slopes[0]:.3g}; "
                "something in it is detached"
            )
    return ""


def _at(purifier: Any, words: Any, most: int = 3) -> str:
    """` (mine.py:12: `with torch.no_grad():`)`: where the source of a purifier has one of the words; empty where it has none, or none is to
    be had."""
    found: list[str] = []
    for function in held.code(getattr(purifier, "call", purifier)):
        try:
            lines, first = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            file = Path(inspect.getsourcefile(function) or "?").name
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if word in words and hasattr(node, "lineno"):
                found.append(f"{file}:{first + node.lineno - 1}: `{lines[node.lineno - 1].strip()}`")
    return f" ({'; '.join(list(dict.fromkeys(found))[:most])})" if found else ""
