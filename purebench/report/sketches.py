"""`purebench figure`: which function draws which figure, and writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from purebench.plan.figures import OF_IMAGES
from purebench.plan.sheet import Sheet
from purebench.records.store import Log, load_all
from purebench.report import costs, drawing, figures


def of_table(table: Sheet, logs: Sequence[Log], path: Path, suffix: str, *, honest: bool, fill: str) -> list[str]:
    """Draws a table that has a `[figure]` to `path`; returns what a reader of the figure must know, line by line."""
    if table.layout.figure and table.layout.figure.kind in OF_IMAGES:
        # Imported here: with the networks comes torch.
        from purebench.report import imagery

        with drawing.style():
            figure, said = imagery.draw(table, logs, honest=honest, fill=fill)
            drawing.save(figure, path, suffix)
        return said
    found = figures.picture(table, logs, honest=honest, fill=fill, cost=costs.purification)
    with drawing.style():
        drawing.save(figures.draw(found), path, suffix)
    return [*found.missing, *found.notes]


def built_in(name: str, folders: Sequence[Path], path: Path, suffix: str) -> list[str]:
    """The same of a figure that no file says; folders: of records, where it is of any."""
    if name == "cost":
        with drawing.style():
            figure, said = costs.draw(load_all(folders))
            drawing.save(figure, path, suffix)
        return said
    # Imported here: with the toy comes torch.
    from purebench.engine import device
    from purebench.report import propositions, toy

    # As in training: the same seed draws the same picture.
    device.setup("cpu")
    if name == "coup-toy":
        path.parent.mkdir(parents=True, exist_ok=True)
        toy.figure(path)
        return []
    with drawing.style():
        drawing.save(propositions.FIGURES[name](), path, suffix)
    return []
