"""A paper's table on the embedded digits: what stays of its cells, and what `datasets/digits.toml` says in their place. Torch-free.

What a table varies stays, or its rows would be one: a parameter that is not the same wherever a defense's or an attack's name stands in
the file. Everything else is the digits'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from purebench import datasets
from purebench.errors import UserError
from purebench.plan.layouts import Cells, Column, Layout, Row, cells_of, listed
from purebench.spec import Part, ThreatModel, parse, threat


def fill(value: Any, words: Mapping[str, str]) -> Any:
    """A value with `{severity}` replaced; other braces stay."""
    if isinstance(value, str):
        for key, word in words.items():
            value = value.replace(f"{{{key}}}", word)
        return value
    return [fill(v, words) for v in value] if isinstance(value, list) else value


class Axes:
    """What a table varies, and so what stays when it is scaled to the digits."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.defaults = datasets.defaults("digits")
        requests = [
            # The first of the axis stands for all: what an axis fills in is a dataset, never a parameter of a defense.
            {**cells_of(layout, row, column), "words": {**column.words, **column.axis[0]}}
            for row in layout.whole
            if row.cells is not None
            for column in layout.columns
            # What does not exist yet cannot be read as a part or a threat model either.
            if column.metric and not _names_unknown(row, column)
        ]
        self.varied = {
            kind: _varied(
                [parse(fill(text, of["words"]), kind) for of in requests for text in listed(of.get(kind, ()))]
            )
            for kind in ("defense", "attack")
        }
        radii = [threat(fill(text, of["words"])) for of in requests for text in listed(of.get("threat", ()))]
        self.largest = {limit.norm: max(t.eps for t in radii if t.norm == limit.norm) for limit in radii}

    def scale(self, row: Row, column: Column) -> Cells:
        """The digits' cell of a row and a column; what is a list there is one here."""
        asked, own = cells_of(self.layout, row, column), {**(row.cells or {}), **column.cells}
        scaled: Cells = {key: asked[key] for key in ("evals",) if key in asked}
        for kind in ("defense", "attack"):
            scaled[kind] = [self._part(kind, fill(text, column.words)) for text in listed(asked.get(kind, ()))]
        scaled["defense"] = scaled["defense"][0] if scaled["defense"] else "none"
        scaled["grad"] = asked.get("grad", "exact")
        if "threat" in asked:
            radii = [threat(fill(text, column.words)) for text in listed(asked["threat"])]
            scaled["threat"] = [str(self._threat(limit)) for limit in radii]
        table = {key: value for key, value in self.layout.scaled.items() if key not in own or key == "images"}
        # What a column asks of every row, a row's own word for the digits does not undo.
        of_row = {key: value for key, value in row.scaled.items() if key not in column.cells}
        return {"dataset": self._dataset(asked), **scaled, **table, **of_row, **column.scaled}

    def _part(self, kind: str, text: str) -> str:
        part = parse(text, kind)
        return str(
            Part(part.name, tuple((k, v) for k, v in part.parameters if k in self.varied[kind].get(part.name, ())))
        )

    def _threat(self, limit: ThreatModel) -> ThreatModel:
        """The digits' radius for the table's largest of a norm, and others in proportion."""
        # Radii are the digits' own: those of 32x32 colour images mean nothing on 8x8 grey ones.
        radii = {t.norm: t.eps for t in map(threat, self.defaults["radii"])}
        if limit.norm == "StAdv":
            return limit  # a share of the image's width, whatever its size
        if limit.norm not in radii:
            raise UserError(f"the digits have no radius for {limit.norm}", "give `--threat`")
        eps = radii[limit.norm] * float(Fraction(limit.eps / self.largest[limit.norm]).limit_denominator(1000))
        return replace(limit, eps=round(eps, 4))

    def _dataset(self, asked: Cells) -> Any:
        """Of a corrupted dataset the same corruption of the digits."""
        names = [_corrupted(name) for name in listed(asked.get("dataset", ()))]
        return names if len(names) > 1 else (names or ["digits"])[0]


def _names_unknown(row: Row, column: Column) -> bool:
    return any(name.startswith("attack:") for name in (*row.needs, *column.needs))


def _corrupted(name: str) -> str:
    kind, _, parameters = name.partition(":")
    return f"corrupted:of=(digits),{parameters}" if kind.endswith("-c") else "digits"


def _varied(of: Sequence[Part]) -> dict[str, set[str]]:
    """By name the parameters that are not the same wherever the name stands."""
    found: dict[str, set[str]] = {}
    # By name: `steps` of one defense says nothing of another's.
    for name in {part.name for part in of}:
        mates = [dict(part.parameters) for part in of if part.name == name]
        keys = {key for values in mates for key in values}
        found[name] = {key for key in keys if len({str(values.get(key)) for values in mates}) > 1}
    return found
