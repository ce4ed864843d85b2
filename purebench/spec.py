"""Names with parameters, threat models and cells: frozen, hashable, torch-free data that says what is to be run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

from purebench.errors import UserError

if TYPE_CHECKING:  # planning reads this file, and needs no torch
    from torch import Tensor

# Not with `|`, which cannot take the name of a class that is yet to come. A tuple holds values again.
Value = Union[int, float, str, bool, None, tuple, "Part"]
Json = int | float | str | bool | None | list
OBJECT = "object"  # of `object:median:1`, which this process was given
PLACES = ("path", "folder", "config")  # parameters that say where content lies, not what it is: no part of a cell
# Parameters whose value is text, as it is written: a file may be called `007`, `true` or `a=b (1).pt`. Of classes, a file or their number.
TEXT = (*PLACES, "name", "classes")


@dataclass(frozen=True)
class Part:
    """`name[:k=v,..]`: a component and the parameters that differ from its defaults. Parameters are kept sorted by key. The name of what
    a user's file defines is `FILE.py:NAME`."""

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        # Sorted, so that two ways to write the same are equal, with one hash; the class is frozen to everybody else.
        given = sorted((key, _as_written(key, value)) for key, value in self.parameters)
        object.__setattr__(self, "parameters", tuple(given))

    def get(self, key: str, default: Value = None) -> Value:
        return dict(self.parameters).get(key, default)

    def __str__(self) -> str:
        file, colon, attribute = self.name.rpartition(":") if ".py:" in self.name else ("", "", self.name)
        name = quoted(file) + colon + attribute
        # An empty word is written as one, or it could not be read again.
        values = ",".join(f"{k}={show(v) or chr(39) * 2}" for k, v in self.parameters)
        return f"{name}:{values}" if values else name


def _as_written(key: str, value: Value | os.PathLike[str]) -> Value:
    """A parameter's value as a part keeps it: a path is its text; what is text stays it, but for a number of classes."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if key not in TEXT:
        return value
    text = value if isinstance(value, str) else show(value)
    if key == "name":
        # A name is shown on one line, and written to files: what no text can hold, or would end the line, is spelt out.
        text = _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return int(text) if key == "classes" and _WHOLE.fullmatch(text) else text


def place(value: Value) -> Path:
    """The path that a text names, `~` and `~user` expanded; a `~` of nobody's home stays."""
    # Not `Path.expanduser`, which raises where there is no such user.
    return Path(os.path.expanduser(str(value)))


def located(values: Mapping[str, Value]) -> dict[str, Value]:
    """Parameters as a factory gets them: with `~` expanded in those that name a file."""
    files = set(TEXT) - {"name"}
    return {k: str(place(v)) if k in files and isinstance(v, str) and v else v for k, v in values.items()}


def show(value: Value) -> str:
    """The canonical spelling of a value: `8/255` for multiples of 1/255, the shortest number otherwise."""
    if isinstance(value, Part):
        return f"({value})"
    if isinstance(value, tuple):
        return "[" + ",".join(map(show, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        over = round(value * 255)
        # Of short decimals the decimal stays: 0.2 is 51/255 too.
        if 0 < over < 255 and over / 255 == value and len(repr(value)) > 5:
            return f"{over}/255"
        return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)
    return quoted(value) if isinstance(value, str) else str(value)


_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WHOLE = re.compile(r"0|-?[1-9]\d*")  # as Python writes it
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z0-9_.+\-/#]+")
# A file may be called almost anything; what has a meaning here is quoted, as is a blank.
_FREE = r"[^\s=,:()\[\]'\"]"
_FILE = re.compile(rf"{_FREE}+\.py(?!{_FREE})")
_DEFINED = re.compile(rf":({_FREE}+)(?!{_FREE}|=)")  # behind a file; what `=` follows is a parameter
# Where a text ends. With a blank too, which is then refused: `name=a, size=8` would be a name, and the size nowhere.
_NEXT = re.compile(r",\s*[A-Za-z_][A-Za-z0-9_]*=")
QUOTED = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"")


def quoted(word: str) -> str:
    """The word as a reader takes it: in quotes where it has a character that means something else, or none at all."""
    # Of nothing nothing: it is shown as a default, and never written into a part.
    if not word or _WORD.fullmatch(word) or _FILE.fullmatch(word):
        return word
    # Doubled inside, as in SQL: a name may have both kinds of quotes.
    return f'"{word}"' if "'" in word and '"' not in word else "'" + word.replace("'", "''") + "'"


class _Reader:
    """Recursive descent over `name[:k=v,..]`, where a name may be `FILE.py:NAME`; a value is a number, a/b, a word, a 'quoted word', [v,..]
    or (PART). The value of one of TEXT is whatever stands up to the next parameter, or to the bracket that closes its part."""

    def __init__(self, text: str, what: str):
        self.text, self.what, self.at = text, what, 0
        self.inside = 0  # brackets around what is being read

    def fail(self, why: str) -> UserError:
        hint = "write `name` or `name:key=value,key=value`; a value is a number, a/b, a word, [v,v] or (PART)"
        if ".py" in self.text:
            hint = "write `FILE.py:NAME:key=value`; with blanks, `=`, `,` or brackets in it, `'my dir/FILE.py':NAME`, all in quotes"
        elif any(f"{key}=" in self.text for key in TEXT):
            hint += "; a path or a name stands as it is, and in quotes if `,` and `=` or a single bracket are in it: path='a,b=c'"
        return UserError(f"cannot read the {self.what} `{self.text}`: {why} at character {self.at + 1}", hint)

    def take(self, char: str) -> bool:
        if self.text.startswith(char, self.at):
            self.at += 1
            return True
        return False

    def word(self, why: str) -> str:
        found = _WORD.match(self.text, self.at)
        if not found:
            raise self.fail(why)
        self.at = found.end()
        return found.group()

    def in_quotes(self) -> str | None:
        """A word in quotes; None where there is none."""
        if not self.text.startswith(("'", '"'), self.at):
            return None
        found = QUOTED.match(self.text, self.at)
        if not found:
            raise self.fail("the quote is not closed that begins")
        self.at = found.end()
        mark = found.group()[0]
        return found.group()[1:-1].replace(mark + mark, mark)

    def name(self) -> str:
        """`coup`, `./mine.py:Median` or `object:median:1`."""
        file = _FILE.match(self.text, self.at)
        if file:
            self.at = file.end()
        name = file.group() if file else (self.in_quotes() or self.word("expected a name"))
        # Of a file what it defines. Where it does not say so, whoever knows the file tells what there is.
        defined = _DEFINED.match(self.text, self.at) if name.endswith(".py") else None
        if defined:
            self.at = defined.end()
            return name + defined.group()
        if name == OBJECT and self.take(":"):
            name += ":" + self.word("expected a name")
            if not self.take(":"):
                raise self.fail("expected `:`")
            return f"{name}:{self.word('expected a number')}"
        return name

    def part(self) -> Part:
        name = self.name()
        parameters: dict[str, Value] = {}
        if self.take(":"):
            while True:
                key = self.word("expected a parameter")
                if not self.take("="):
                    raise self.fail(f"expected `=` after `{key}`")
                if key in parameters:
                    raise self.fail(f"`{key}` is given twice")
                parameters[key] = self.written() if key in TEXT else self.value()
                if not self.take(","):
                    break
        return Part(name, tuple(parameters.items()))

    def written(self) -> str:
        """A text as it stands, or in quotes."""
        word = self.in_quotes()
        if word is not None:
            if self.text[self.at : self.at + 1] not in ("", ",", ")"):
                raise self.fail(
                    "the quotes are closed; a name that begins with one is written in the other (\"'q'.pt\"): expected `,`"
                )
            return word
        begin = self.at
        while self.at < len(self.text) and not _NEXT.match(self.text, self.at):
            if self.inside and self.text.startswith(")", self.at):
                break
            self.at = self._closed() or self.at + 1
        if self.at == begin:
            raise self.fail("expected a value")
        return self.text[begin : self.at]

    def _closed(self) -> int:
        """Behind the bracket that closes the one that opens here; 0 where none opens, or it is never closed."""
        depth = 0
        for at in range(self.at, len(self.text)):
            depth += {"(": 1, ")": -1}.get(self.text[at], 0)
            if depth == 0:
                return at + 1 if at > self.at else 0
        return 0

    def value(self) -> Value:
        if self.take("("):
            self.inside += 1
            part = self.part()
            self.inside -= 1
            if not self.take(")"):
                raise self.fail("expected `)`")
            return part
        if self.take("["):
            values = []
            while not self.take("]"):
                values.append(self.value())
                if not self.take(",") and not self.text.startswith("]", self.at):
                    raise self.fail("expected `,` or `]`")
            return tuple(values)
        word = self.in_quotes()
        if word is not None:
            return word
        # In a list of components a file stands as it is; elsewhere `:` cannot follow a word.
        begin = self.at
        name = self.name() if _FILE.match(self.text, begin) else ""
        if ":" in name:
            return Part(name)
        return name or scalar(self.word("expected a value"))


def scalar(word: str) -> Value:
    """A number, a fraction a/b, true, false, none, or the word itself."""
    if word in ("true", "false"):
        return word == "true"
    if word == "none":
        return None
    top, slash, bottom = word.partition("/")
    if slash and _NUMBER.fullmatch(top) and _NUMBER.fullmatch(bottom) and float(bottom) != 0:
        return float(top) / float(bottom)
    if _NUMBER.fullmatch(word):
        # Of more digits than a float can tell apart: what is too large for its place is then said there.
        # Plus zero, since -0 is 0, and would be another cell.
        return int(word) if re.fullmatch(r"[+-]?\d{1,15}", word) else float(word) + 0.0
    return word


def parse(text: str, what: str = "part") -> Part:
    """Reads a PART, such as `coup:guidance=2` or `transfer:from=(reverse-sde)`. Raises UserError with the place of a mistake."""
    # Not at its end: a file's name may end with a blank.
    reader = _Reader(text.lstrip().rstrip("\r\n"), what)
    part = reader.part()
    if reader.text[reader.at :].strip():
        raise reader.fail("expected the end")
    return part


def value(text: str) -> Value:
    """A value as `key=` would have it; the text itself where it is none."""
    reader = _Reader(text, "value")
    try:
        found = reader.value()
    except UserError:
        return text
    return found if reader.at == len(text) else text


def parts(text: str, what: str = "part") -> list[Part]:
    """Reads a PART, a (PART), or several as `[a,b]`, `[a,(b:k=v)]`."""
    if not text.startswith(("[", "(")):
        return [parse(text, what)]
    reader = _Reader(text, what)
    value = reader.value()
    if value == () or reader.at != len(text):
        raise reader.fail("expected a name" if value == () else "expected the end")
    values = value if isinstance(value, tuple) else (value,)
    # A name without parameters was read as a word, and one such as `none` or `1` as what these mean.
    return [v if isinstance(v, Part) else parse(show(v), what) for v in values]


class Draws(Protocol):
    """What `engine.noise.Noise` is to this file, which lies below the engine and may not import it."""

    def normal(self, k: int, like: Tensor, draw: int = 0) -> Tensor: ...
    def uniform(self, k: int, like: Tensor, draw: int = 0) -> Tensor: ...


NORMS = ("Linf", "L2", "L1")
# Kinds of threat: balls of a norm; a flow of bounded components (Xiao et al. 2018); and none but [0,1].
STADV, BOX = "StAdv", "box"
KINDS = (*NORMS, STADV, BOX)
CONTROLS = ("null", "noise")  # attacks that show what the protocol itself costs, and are never the strongest
USUAL = ("Linf", "L2")  # of an attack that does not say which it keeps to


@dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do to x (B,C,H,W) in [0,1]. In a ball: stay within eps of it, and in [0,1]. `StAdv`: move its pixels by a
    flow whose components, in the coordinates of `grid_sample`, where an image reaches from -1 to 1, are at most eps. `box`: anything
    in [0,1], and eps says nothing (it is 1)."""

    norm: str  # one of KINDS, or - for no perturbation at all
    eps: float

    def __post_init__(self) -> None:
        # `threat` reads text with more care; here it is Python code that may say `linf`, which would run as L2.
        if self.norm not in (*KINDS, "-"):
            raise UserError(f"unknown norm `{self.norm}` of a threat model", f"one of {', '.join(KINDS)}")
        if not (math.isfinite(self.eps) and self.eps >= 0) or (self.norm in LARGEST and self.eps > LARGEST[self.norm]):
            more = f"; did you mean {show(self.eps)}/255?" if self.norm == "Linf" and 2 <= self.eps <= 255 else ""
            raise UserError(f"the radius {self.eps} of a threat model is out of range", f"images are in [0,1]{more}")

    def __str__(self) -> str:
        return self.norm if self.norm in ("-", BOX) else f"{self.norm}:{show(float(self.eps))}"

    @property
    def is_ball(self) -> bool:
        """Whether it bounds a norm of the perturbation."""
        return self.norm in NORMS

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) distance in this norm; of what is no ball in Linf."""
        return norms(x_adv, x)[self.norm if self.is_ball else "Linf"]

    def holds(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) bool: finite, in [0,1] and within eps up to rounding (1e-6 relative, 2e-7 absolute). Of a flow the images do not tell:
        `flows.holds` knows whether they are those of one."""
        # An attack's own x + eps is rounded in float32, whose last digit near 1 is 6e-8.
        delta = (x_adv - x).flatten(1)
        inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1) & delta.isfinite().all(1)
        if self.norm in (STADV, BOX):
            return inside
        return inside & (self.distance(x_adv, x) <= self.eps * (1 + 1e-6) + 2e-7)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the Linf ball, the radial projection onto the L2 ball, then clipped to [0,1]; the nearest point of the L1
        ball that is in [0,1] (Croce and Hein 2021, Prop. 2.3). Of a box the clip alone. Raises UserError for a flow, which images have
        no projection onto."""
        if self.norm == "Linf":
            return x_adv.clamp(x - self.eps, x + self.eps).clamp(0, 1)
        if self.norm == "L1":
            return _nearest_l1(x_adv, x, self.eps)
        if self.norm == BOX:
            return x_adv.clamp(0, 1)
        self._need_ball("projection")
        # The clip cannot leave the ball: x is in [0,1], so whatever it moves, it moves towards x.
        delta = x_adv - x
        return (x + delta * (self.eps / _rows(delta.flatten(1).norm(dim=1), x).clamp(min=self.eps))).clamp(0, 1)

    def ascend(self, grad: Tensor) -> Tensor:
        """The steepest ascent direction of unit size: sign, or grad / ||grad||_2, however small; exact zeros stay zero. Under L1 that
        would be one value: of the L1_SHARE largest entries the signs, all of one size (SLIDE, Tramer and Boneh 2019, Sec. 4.1)."""
        if self.norm == "Linf":
            return grad.sign()
        if self.norm == "L1":
            return _sparse(grad)
        self._need_ball("steepest direction")
        grad = representable(grad)
        return grad / _rows(grad.flatten(1).norm(dim=1), grad).clamp(min=1e-12)

    def random(self, noise: Draws, x: Tensor) -> Tensor:
        """A random point of the ball around x, clipped to [0,1], uniform in it; of a box uniform."""
        if self.norm == "Linf":
            return (x + self.eps * (2 * noise.uniform(0, x) - 1)).clamp(0, 1)
        if self.norm == BOX:
            return noise.uniform(0, x)
        self._need_ball("random point")
        if self.norm == "L1":
            # Exponential sizes and one more of no pixel, by their sum: uniform in the simplex (Devroye 1986, XI.4).
            sizes = -(1 - noise.uniform(0, x)).log()
            rest = -(1 - noise.uniform(0, x.flatten(1)[:, :1], draw=1)).log()
            sign = (noise.uniform(0, x, draw=2) < 0.5).to(x.dtype) * 2 - 1
            return (x + self.eps * sign * sizes / _rows(sizes.flatten(1).sum(1) + rest.flatten(), x)).clamp(0, 1)
        direction = noise.normal(0, x)
        # The root, since the volume within a radius r grows as r to the number of pixels.
        radius = noise.uniform(0, x.flatten(1)[:, :1], draw=1) ** (1 / x[0].numel())
        return (x + self.eps * _rows(radius.flatten(), x) * self.ascend(direction)).clamp(0, 1)

    def _need_ball(self, what: str) -> None:
        if not self.is_ball:
            raise UserError(f"the threat model `{self}` is no ball: it has no {what}", "its attack moves images itself")


L1_SHARE = 0.05  # of an image's values, that a step under L1 moves


def _sparse(grad: Tensor) -> Tensor:
    """The signs of the largest L1_SHARE of an image's entries over their number; exact zeros stay zero."""
    flat = grad.flatten(1)
    count = max(1, round(L1_SHARE * flat.shape[1]))
    chosen = flat.abs().topk(count, dim=1).indices
    signs = flat.new_zeros(flat.shape).scatter(1, chosen, flat.gather(1, chosen).sign())
    moved = signs.abs().sum(1, keepdim=True).clamp(min=1)
    return (signs / moved).view_as(grad)


def _nearest_l1(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point to z (B,..) in [0,1] whose L1 distance from x is at most eps."""
    # Of each value the sign of its move is known, and how far [0,1] lets it go: |move| = min(room, max(0, |wish| - t)), one t per image.
    wish = (z - x).flatten(1)
    base = x.flatten(1)
    room = (wish > 0).to(wish.dtype) * (1 - base) + (wish < 0).to(wish.dtype) * base
    size = wish.abs()

    def moved(t: Tensor) -> Tensor:
        return (size - t).clamp(min=0).minimum(room)

    zero = size.new_zeros(len(size), 1)
    low, high = zero, size.amax(1, keepdim=True)
    within = moved(low).sum(1, keepdim=True) <= eps
    # The sum falls with t, so t is found by halving: 60 halvings are beyond float32, and the end that is taken keeps to the ball.
    for _ in range(60):
        middle = (low + high) / 2
        over = moved(middle).sum(1, keepdim=True) > eps
        low, high = middle.where(over, low), high.where(over, middle)
    t = high.where(~within, zero)
    return (base + wish.sign() * moved(t)).view_as(z).clamp(0, 1)


LARGEST = {"Linf": 1.0, STADV: 2.0}  # radii beyond which nothing more is allowed

NONE = ThreatModel("-", 0.0)  # of attacks that change nothing: one cell for all threat models

# Below it, the 1e-12 that guards a division by a norm shortens a unit vector by more than a tenth.
SMALLEST_NORM = 1e-11


def representable(v: Tensor) -> Tensor:
    """v (B,..), rows divided by their largest entry where the L2 norm is below SMALLEST_NORM or overflows: squares of float32
    numbers below 1e-19 or above 1e19 do not exist, and a saturated classifier's gradients are smaller. All others keep their bits;
    exact zeros stay zero."""
    flat = v.flatten(1)
    norm, largest = flat.norm(dim=1), flat.abs().amax(1)
    lost = ((norm < SMALLEST_NORM) | norm.isinf()) & (largest > 0) & largest.isfinite()
    return v / _rows(largest.where(lost, 1), v)


def norms(x_adv: Tensor, x: Tensor) -> dict[str, Tensor]:
    """(B,) Linf, L2 and L1 norms of x_adv - x."""
    delta = (x_adv - x).flatten(1)
    return {"Linf": delta.abs().amax(1), "L2": delta.norm(dim=1), "L1": delta.abs().sum(1)}


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B,1,..), one number for each row of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def threat(text: str) -> ThreatModel:
    """Reads `Linf:8/255`, `L2:0.5`, `L1:12`, `StAdv:0.05` or `box`. Raises UserError for anything that is no radius in (0, 1] (Linf),
    in (0, 2] (StAdv) or > 0 (L2, L1)."""
    norm, colon, radius = text.strip().partition(":")
    hint = "write `Linf:8/255`, `Linf:0.2`, `L2:0.5`, `L1:12`, `StAdv:0.05` or `box`"
    norm = {n.lower(): n for n in KINDS}.get(norm.lower(), norm)
    if norm not in KINDS:
        raise UserError(f"unknown threat model `{text}`", hint)
    if norm == BOX:
        if colon:
            raise UserError(f"`{text}`: a box has no radius", "write `box`: all images in [0,1]")
        return ThreatModel(BOX, 1.0)
    eps = scalar(radius) if radius else None
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not math.isfinite(eps):
        raise UserError(f"cannot read the radius of `{text}`", hint)
    if eps == 0:
        raise UserError(f"`{text}` allows no perturbation", "for the control without one, use `-a null`")
    # An L2 ball may well be wider than 1: its pixels add up.
    if eps < 0 or eps > LARGEST.get(norm, math.inf):
        more = f"; did you mean `Linf:{show(eps)}/255`?" if norm == "Linf" and eps >= 2 else ""
        if norm == STADV:
            raise UserError(
                f"the radius of `{text}` is out of range: an image is 2 wide", f"{hint}; the papers' is 0.05"
            )
        raise UserError(f"the radius of `{text}` is out of range: images are in [0, 1]", hint + more)
    return ThreatModel(norm, float(eps))


@dataclass(frozen=True)
class Resolved:
    """One component of a cell, resolved once: the plan makes it, everybody else only reads it.

    `part`: how it is written, canonical: what differs from the defaults, no place on this machine. `values`: every parameter of its
    factory, defaults filled in. `options`: what every one of its kind has (of a defense `votes`, `combine`, `noise`; of a score model
    `precision` and `judge`), where it is not at its default. `version`: of its numbers; 0 for what has none. `digest`: content hash of
    weights or data, and of the code of a foreign component, empty where there is none. `where`: files of the user's, and so no part of
    what it is; `info`: its INFO.
    `target`: by which the registry finds a component of a user's file, empty where its name does; of a gradient, itself with such names.
    `code`: the hash of a foreign component's source alone. `unsaid`: parameters that came to a component later (`added` of its INFO) and
    are at their defaults: no part of a cell, so that those of before keep their ids. `inner`: of an attack that is made of others, these.
    """

    kind: str
    part: Part
    version: int
    values: Mapping[str, Value] = field(default_factory=dict, hash=False)
    options: Mapping[str, Value] = field(default_factory=dict, hash=False)
    digest: str = ""
    where: Mapping[str, Value] = field(default_factory=dict, hash=False, compare=False)
    info: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    target: str = field(default="", compare=False)
    code: str = field(default="", compare=False)
    unsaid: tuple[str, ...] = field(default=(), compare=False)
    inner: tuple[Resolved, ...] = ()

    def __str__(self) -> str:
        return str(self.part)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def key(self) -> str:
        """What the registry finds it by."""
        return self.target or self.name

    @property
    def arguments(self) -> dict[str, Value]:
        """The keyword arguments of its factory, which writes `from_` for `from`."""
        return {f"{k}_" if k == "from" else k: v for k, v in located({**self.values, **self.where}).items()}

    def data(self) -> dict[str, Any]:
        """As JSON types, for `cell.json`: what its numbers depend on, beside its name."""
        if self.kind in ("dataset", "classifier", "score"):
            return {"version": self.version, "hash": self.digest}
        # Its name has all of its parameters: a canonical gradient leaves out what makes no difference.
        if self.kind == "gradient":
            return {"version": self.version}
        # Of the others, the values that the name leaves out may be a dataset's, which may change with its TOML.
        values = {k: v for k, v in {**self.values, **self.options}.items() if k not in self.unsaid}
        # Of ours the version says which code it is, and ids stay what they are.
        code: dict[str, Any] = {"hash": self.digest} if self.digest else {}
        if self.inner:
            code["inner"] = [{"name": str(one), **one.data()} for one in self.inner]
        return {"version": self.version, **code, "values": {k: recorded(k, v) for k, v in sorted(values.items())}}


@dataclass(frozen=True)
class Cell:
    """One entry of a grid: everything that its numbers depend on, and nothing else.

    Not in it, since they may grow or change without changing a number: the number of images and of evaluations, rows, device,
    workers, memory. `scores`: those that a purifier of the cell uses, several in rotation; none where none does. `threat`: NONE for
    an attack that keeps to no ball. `surrogate`: the purifier that the gradient differentiates in place of the defense's.
    `source`: the cell whose images a transfer attack reads. `aliases`: its ids of before, under which records may lie.
    """

    dataset: Resolved
    subset: str
    classifier: Resolved
    scores: tuple[Resolved, ...]
    defense: Resolved
    gradient: Resolved
    surrogate: Resolved | None
    attack: Resolved
    threat: ThreatModel
    seed: int
    noise: int  # version of the draws
    source: Cell | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)

    @property
    def score(self) -> str:
        """The score models as a PART, `[a,b]` in rotation; of a transfer onto a defense that uses none those that its images were made
        on; `-` for none."""
        if self.scores:
            names = [str(model) for model in self.scores]
            return names[0] if len(names) == 1 else show(rotation(self.scores))
        return self.source.score if self.source else "-"

    def parts(self) -> dict[str, Resolved]:
        """Its components by kind: the second score model is `score.1`."""
        found = {"dataset": self.dataset, "classifier": self.classifier, "defense": self.defense, "attack": self.attack}
        found |= {"score" if i == 0 else f"score.{i}": model for i, model in enumerate(self.scores)}
        if self.surrogate:
            found["surrogate"] = self.surrogate
        # Version 0 is `-`: the attack asks for no gradient.
        if self.gradient.version:
            found["gradient"] = self.gradient
        return found

    def targets(self) -> dict[str, str]:
        """By kind, and `source.` kind of a transfer's source, where the registry finds what a name alone does not say: no part of the
        cell, but of a command that makes it."""
        own = {kind: part.target for kind, part in self.parts().items() if part.target}
        theirs = self.source.targets() if self.source else {}
        return own | {f"source.{kind}": target for kind, target in theirs.items()}

    def data(self) -> dict[str, Any]:
        """As JSON types, for `cell.json`."""
        parts = {kind: part.data() for kind, part in self.parts().items()}
        # The other names stand at the top level, where a table shows them.
        if self.surrogate:
            parts["surrogate"]["name"] = self.surrogate.name
        return {
            "dataset": str(self.dataset),
            "subset": self.subset,
            "classifier": str(self.classifier),
            "score": self.score,
            "defense": str(self.defense),
            "gradient": str(self.gradient),
            "attack": str(self.attack),
            "threat": str(self.threat),
            "seed": self.seed,
            "source": self.source.id if self.source else "",
            "parts": {"noise": {"version": self.noise}, **parts},
        }

    @property
    def id(self) -> str:
        return identity(self.data())

    def __str__(self) -> str:
        grad = "" if self.gradient.name == "-" else f" @{self.gradient}"
        return f"{self.defense} x {self.attack}{grad} ({self.threat}, seed {self.seed})"


def identity(data: Mapping[str, object]) -> str:
    """A readable, unique folder name of a cell's data: the names, and 10 hex digits of the hash of everything."""
    # Sorted: the order in which a cell was put together is no part of it.
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    # Without parameters: a list of them may be longer than a file system's names, and has characters that these may not.
    words = [str(data[kind]).partition(":")[0] for kind in ("dataset", "defense", "attack", "gradient")]
    return "-".join([w for w in words if w.strip("-")] + [digest])


def rotation(models: Iterable[Resolved]) -> Value:
    """Score models as the value of a parameter: a name, a (PART), or a list of them."""
    values: tuple[Value, ...] = tuple(m.part if m.part.parameters else m.name for m in models)
    return values if len(values) > 1 else values[0]


def plain(value: Value) -> Json:
    """A value as a JSON type."""
    if isinstance(value, Part):
        return str(value)
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def recorded(key: str, value: Value) -> Json:
    """A parameter's value as a JSON type. Text that is written as a number, true, false or none is recorded as that, which it was once read
    as: ids stay what they are."""
    if key in TEXT and isinstance(value, str) and show(meant := scalar(value)) == value:
        return plain(meant)
    return plain(value)
