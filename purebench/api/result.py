"""What `run` and `evaluate` return: the records of one call, as table, DataFrames and numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas

from purebench.errors import UserError
from purebench.plan.grid import Request
from purebench.records import frame
from purebench.records.store import Log
from purebench.report import asked, html, tables

if TYPE_CHECKING:
    from purebench.plan.layouts import Layout

NOTHING = "nothing is recorded of these cells yet"


class Result:
    """The cells of one call; printed, it is their table, and in a notebook the same as HTML.

    `out`: the folder of the records, which `purebench table` and `report` read, too; of an `evaluate` without `out` a temporary one, which
    is removed with this object. `failed`: cell id -> why it has no number."""

    def __init__(
        self,
        logs: Sequence[Log],
        request: Request,
        out: Path,
        *,
        failed: dict[str, str],
    ):
        self._logs, self._request, self.out, self.failed = frame.settled(logs), request, out, failed

    @property
    def images(self) -> pandas.DataFrame:
        """One row per image and cell: what `purebench.load` gives of these cells."""
        return frame.images(self._logs)

    @property
    def cells(self) -> pandas.DataFrame:
        """One row per cell: the columns of `purebench.records.frame.cells`, then a column for each metric in [0, 1] (`clean`, `robust`, ..)
        with the ends of its 95 % interval (`robust_low`, `robust_high`)."""
        found = frame.described(self._logs).assign(folder=[log.folder for log in self._logs])
        rows = pandas.DataFrame(tables.tidy(self._logs) if self._logs else [], columns=list(tables.COLUMNS))
        for metric, of in rows.groupby("metric", sort=False):
            of = of.set_index("cell")
            for column, field in ((metric, "value"), (f"{metric}_low", "low"), (f"{metric}_high", "high")):
                found[column] = found.cell.map(of[field].astype("float64"))
        return found

    @property
    def headlines(self) -> pandas.DataFrame:
        """One row per defense of each table: `clean` and `robust`, the accuracy that its strongest attack leaves, in [0, 1]; that `attack`;
        the ends of the interval; how many `images`; and whether every gradient attack was `masked`, so that it is no evidence."""
        rows = [
            {
                "table": table.title,
                "defense": headline.defense,
                "clean": headline.clean.value if headline.clean else None,
                "robust": headline.strongest.value if headline.strongest else None,
                "robust_low": headline.strongest.low if headline.strongest else None,
                "robust_high": headline.strongest.high if headline.strongest else None,
                "images": headline.strongest.images if headline.strongest else 0,
                "attack": headline.attack,
                "masked": headline.masked,
            }
            for table in self._tables
            for headline in table.headlines
        ]
        columns = ("table", "defense", "clean", "robust", "robust_low", "robust_high", "images", "attack", "masked")
        return pandas.DataFrame(rows, columns=list(columns)).set_index("defense")

    @property
    def robust(self) -> float:
        """The accuracy in [0, 1] that the strongest attack leaves of the one defense. Raises UserError where there are several, and where
        no attack was run; warns where it is weaker than it looks."""
        headline = self._one("robust")
        if headline.masked:
            warnings.warn("every gradient attack was masked: this number is no evidence of robustness", stacklevel=2)
        if self.failed:
            warnings.warn(f"{len(self.failed)} cells failed: a stronger attack may be among them", stacklevel=2)
        return float(headline.robust)

    @property
    def clean(self) -> float:
        """The accuracy in [0, 1] of the one defense on clean images. Raises UserError where there are several."""
        return float(self._one("clean").clean)

    def table(self, format: str = "md") -> str:
        """The table as text: md, csv or json; of a paper's table also tex."""
        if not self._logs and self._layout is None:
            return NOTHING
        return asked.rendered(self._layout, self._request, self._logs, format, self.out)

    @cached_property
    def _layout(self) -> Layout | None:
        """The paper's table that was asked for."""
        return asked.layout_of(self._request.preset) if self._request.preset else None

    @cached_property
    def _tables(self) -> list[tables.Printed]:
        return tables.printed(self._logs) if self._logs else []

    def _one(self, number: str) -> pandas.Series:
        found = self.headlines
        if len(found) != 1:
            raise UserError(
                f"this result is of {len(found)} defenses, and `.{number}` is the number of one", "`.headlines` has all"
            )
        if pandas.isna(found[number].iloc[0]):
            raise UserError(f"there is no `{number}` number: no image was judged for it", "give an attack, or images")
        return found.iloc[0]

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        if self._layout is not None:
            return html.paper(asked.printed(self._layout, self._request, self._logs, self.out))
        return "".join(map(html.grid, self._tables)) or f"<p>{NOTHING}</p>"
