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
from purebench.engine.rows import finite_rows, per_row
from purebench.purifiers.plain import Plain

ROWS = 8  # enough that a gradient which is detached for half of the images by chance is found
# Of the finite difference, by which the gradient may miss it. What is exact misses it by a thousandth, and by a hundredth where its
# networks have kinks; one detached step of four by half, a detached guidance by a tenth.
TOLERANCE = 0.05
GROSS = 0.25  # the same of a single image, whose kinks do not average out
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

    def __add__(self, other: Proof) -> Proof:
        return Proof(self.notes + other.notes, self.warnings + other.warnings)


def prove(defense: Defense, x: Tensor, name: str, *, gradient: bool = True, unbounded: bool = False) -> Proof:
    """Tries the defense's purifier on x (B,C,H,W) in [0,1], the first of whose images are taken; about a dozen purifications of eight rows,
    and one gradient if that is asked for. `unbounded`: its output is meant to leave [0,1]."""
    purifier, x = defense.purifier, x[:ROWS]
    noise = Noise(0, "proof", (), range(len(x)), [0] * len(x))
    x = _smooth(x, noise)
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
    drawn = isinstance(purifier, Plain) and purifier.batch
    independent = "random" not in notes and _alone(purifier, x, noise, found)
    if not independent and not drawn and "random" not in notes:
        warnings.append(
            f"the images of `{name}` depend on those beside them: its numbers change with `--rows` and with what a run resumes"
        )
        notes.append("batch")
    if "random" not in notes and gradient and (why := _wrong_gradient(defense, x, noise, purify, independent)):
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


def _alone(purifier: chain.Purifier, x: Tensor, noise: Noise, found: Tensor) -> bool:
    """Whether the first image is purified alone as it is beside the others."""
    try:
        alone = chain.run(purifier, x[:1], noise.rows(noise.ids[:1], noise.samples[:1]))
    except Exception:  # foreign code, which may ask for as many images as it was given before
        return False
    return _apart(found[:1], alone) < 1e-3


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the size of the values."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def prove_classifier(classifier: Any, x: Tensor, name: str, *, independent: bool) -> Proof:
    """The same of a foreign classifier's gradient, at x (B,C,H,W) in [0,1]. `independent`: no answer depends on the images beside it."""
    x = _smooth(x[:ROWS], Noise(0, "proof", (), range(len(x[:ROWS])), [0] * len(x[:ROWS])))

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier(x)

    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        answer = classifier(leaf)
        if not answer.isfinite().all():
            return Proof()
        u = _pattern(answer)
        grad = torch.autograd.grad((answer * u).sum(), leaf)[0] if answer.requires_grad else torch.zeros_like(x)
    why = _disagrees(logits, x, grad, u, independent, others=4)
    if not why:
        return Proof()
    at = _at(getattr(classifier, "made", classifier), SUSPECTS)
    return Proof(("classifier",), (f"the gradient of the classifier `{name}` {why}{at}",))


def _smooth(x: Tensor, noise: Noise) -> Tensor:
    """Inside: at the edge a clamp has two derivatives. And uneven: among the equal pixels of a background a median has many."""
    return 0.2 + 0.5 * x.detach() + 0.1 * noise.fork("image").uniform(0, x)


def _pattern(like: Tensor, rate: float = 1.7) -> Tensor:
    """A cotangent without a pattern of its own, the same for everybody."""
    return torch.cos(rate * torch.arange(like.numel(), device=like.device, dtype=like.dtype) ** 2 % 6.283).view_as(like)


def _wrong_gradient(defense: Defense, x: Tensor, noise: Noise, purify: Any, independent: bool) -> str:
    """What is wrong with the exact gradient at x; empty where it agrees with a finite difference."""
    u = _pattern(x)
    _, grad = chain.vjp(defense.purifier, x, noise, u, memory=defense.memory)
    return _disagrees(purify, x, grad, u, independent)


def _disagrees(value: Any, x: Tensor, grad: Tensor, u: Tensor, independent: bool, others: int = 0) -> str:
    """What is wrong with `grad` (like x), which claims to be the derivative of u . value(x); empty where it agrees with a finite
    difference. `independent`: each image is also held against its own; `others`: so many directions more."""
    if not grad.isfinite().all():
        return "is not finite where the defense is"
    pixels = x[0].numel() ** 0.5

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b.double()).flatten(1).sum(1)

    def slopes(along: Tensor) -> list[Tensor]:
        """(B,) for each step: d (u . value) / ds along unit directions, by central differences."""
        hs = [step * pixels * along for step in STEPS]
        return [rows(value(x + h) - value(x - h), u) / (2 * s * pixels) for h, s in zip(hs, STEPS, strict=True)]

    least = 1e-4 * float(u.double().norm())
    sizes = grad.double().flatten(1).norm(dim=1)
    if not sizes.any():
        moved = max(float(found.abs().sum()) for found in slopes(_unit(_pattern(x)))) > least
        return "is zero, though its output depends on the image: it is detached, or has no derivative" if moved else ""
    # Along itself, where a wrong length shows; and along another direction, where what is missing does.
    for along in (_unit(grad), _unit(_pattern(x))):
        claimed, found = rows(grad, along), slopes(along)
        of_each = torch.stack([s.abs() for s in found] + [sizes]).amax(0)
        missed = torch.stack([(s - claimed).abs() for s in found]).amin(0)
        total = max(float(sizes.norm()), *[abs(float(s.sum())) for s in found])
        gross = independent and bool((missed > GROSS * of_each.clamp(min=least)).any())
        if gross or min(abs(float((s - claimed).sum())) for s in found) > TOLERANCE * total:
            row = int((missed / of_each.clamp(min=least)).argmax()) if gross else slice(None)
            return (
                f"is not that of what it computes: {float(claimed[row].sum()):.3g} where a finite difference gives "
                f"{float(found[0][row].sum()):.3g}; something in it is detached, or jumps"
            )
    # Where value(x) is no image, nothing along these is large; what is missing is the same share of it along any.
    misses, all_ = 0.0, 0.0
    for i in range(1, 1 + others):
        along = _unit(_pattern(x, 1.7 + 0.4 * i))
        claimed, found = rows(grad, along), slopes(along)
        # Where images depend on each other, only all together are what was claimed.
        if not independent:
            claimed, found = claimed.sum(0, keepdim=True), [s.sum(0, keepdim=True) for s in found]
        misses += float(torch.stack([(s - claimed).abs() for s in found]).amin(0).square().sum())
        all_ += float(found[0].square().sum())
    if misses > GROSS**2 * all_:
        return (
            f"misses {100 * (misses / all_) ** 0.5:.0f} % of a finite difference; something in it is detached, or jumps"
        )
    return ""


def _unit(rows: Tensor) -> Tensor:
    """Each row divided by its length; zeros stay zero."""
    return rows / per_row(rows.flatten(1).norm(dim=1).clamp(min=1e-12), rows)


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
