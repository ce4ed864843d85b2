"""What has been run, to look at: `purebench report` and `figure`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from purebench import errors
from purebench.cli.layouts import home, known_layout
from purebench.cli.options import (
    Attacks,
    Baselines,
    Classifier,
    Dataset,
    Gradients,
    Honest,
    Images,
    Only,
    Results,
    Score,
    Seeds,
    Subset,
    Threats,
    request_of,
)
from purebench.cli.terminal import app, check_writable, examples, note, say
from purebench.errors import UserError
from purebench.spec import place

if TYPE_CHECKING:
    from purebench.plan.grid import Request
    from purebench.plan.layouts import Layout
    from purebench.records.store import Log
    from purebench.report.papers import Printed


@app.command(
    epilog=examples(
        "purebench report results",
        "purebench report results --out coup.html --title 'COUP on CIFAR-10' --layout coup/1",
        "purebench report results/embedded --layout coup/1 --layout coup/3 --dataset digits --grad exact",
        "purebench report results --pictures 100 --purify",
    )
)
def report(
    results: Results = None,
    out: Annotated[Path, Option(metavar="FILE", help="the page to write", parser=place)] = Path("report.html"),
    title: Annotated[str | None, Option(metavar="TEXT", help="its heading")] = None,
    layout: Annotated[
        list[str] | None, Option(metavar="NAME", help="also a paper's table (coup/1), or its file; repeat for several")
    ] = None,
    pictures: Annotated[
        int | None, Option(metavar="N", help="pictures of the first N images of each cell [default: as many as fit]")
    ] = None,
    purify: Annotated[
        bool, Option("--purify", help="also what the defense made of them: purified now, kept beside the records")
    ] = False,
    data: Annotated[
        list[str] | None, Option(metavar="PART", help="where a dataset of your own lies: parquet:path=FILE")
    ] = None,
    device: Annotated[str, Option(help="to purify on: auto, cpu, cuda")] = "auto",
    attack: Attacks = None,
    threat: Threats = None,
    grad: Gradients = None,
    dataset: Dataset = None,
    classifier: Classifier = None,
    score: Score = None,
    images: Images = None,
    subset: Subset = None,
    seed: Seeds = None,
    honest: Honest = False,
    baselines: Baselines = False,
    only: Only = None,
) -> None:
    """Write one HTML page of what has been run: tables, cost, every image with its answers, provenance. It needs no server and no network.
    The options from -a on are those of the papers' tables, as `table` takes them."""
    from purebench.plan import resolved
    from purebench.records import store as records
    from purebench.report import images as images_of
    from purebench.report import page

    options: dict[str, Any] = {
        "attacks": attack, "threats": threat, "grads": grad, "dataset": dataset, "classifier": classifier, "score": score,
        "images": images, "subset": subset, "seeds": seed, "honest": honest, "baselines": baselines, "only": only,
    }  # fmt: skip
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"`--out {out}` is no page", f"name it so: --out {shlex.quote(str(out.with_suffix('.html')))}")
    check_writable(out, "report.html")
    _check_page(pictures, layout or (), request_of(None, **options))
    given = [resolved.find("dataset", text) for text in data or ()]
    logs = records.load_all(results or [Path("results")])
    if not logs:
        folders = ", ".join(f"`{folder}`" for folder in results or [Path("results")])
        raise UserError(f"there are no records in {folders}", "name the folder that `purebench run --out` wrote")
    images_of.check_given(given, logs)
    made = [_printed(request_of(name, **options), logs, home(results)) for name in layout or ()]
    why_not = page.purify(logs, pictures=pictures, given=given, device=device, note=note) if purify else {}
    text = page.render(logs, made, title=title or "", pictures=pictures, given=given, why_not=why_not)
    with records.full_disk_is_an_error(out.parent):
        records.replace(out, text)
    say(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser")


def _check_page(pictures: int | None, layouts: Sequence[str], request: Request) -> None:
    """Raises UserError for a number of pictures that is none, and for options of a paper's table where none is asked for."""
    from purebench.plan import grid

    if pictures is not None and pictures < 0:
        raise UserError(
            f"`--pictures {pictures}`: a number of images, or 0 for none", "leave it out for as many as fit"
        )
    if not layouts and request != grid.Request():
        raise UserError(
            "these options choose the cells of a paper's table, and none is asked for", "add --layout coup/1"
        )


def _printed(request: Request, logs: list[Log], results: Path) -> Printed:
    """The paper's table that a request names, in words."""
    from purebench.report import asked

    return asked.printed(known_layout(str(request.preset)), request, logs, results)


@app.command(
    epilog=examples(
        "purebench figure coup/fig4a results --out fig4a.svg",
        "purebench figure coup/fig4a results/fig --dataset digits --images 8",
        "purebench figure cost results/embedded --out cost.pdf",
        "purebench figure my-figure.toml results",
        "purebench figure coup-toy",
    )
)
def figure(
    name: Annotated[
        str, Argument(metavar="ID", help="a figure (`purebench list figures`), or a table's file with `[figure]`")
    ],
    results: Results = None,
    out: Annotated[
        Path | None,
        Option("--out", metavar="FILE", help="the .png, .svg or .pdf to write [default: ID.png]", parser=place),
    ] = None,
    attack: Attacks = None,
    threat: Threats = None,
    grad: Gradients = None,
    dataset: Dataset = None,
    classifier: Classifier = None,
    score: Score = None,
    images: Images = None,
    subset: Subset = None,
    seed: Seeds = None,
    honest: Honest = False,
    baselines: Baselines = False,
    only: Only = None,
) -> None:
    """Draw a figure from records, or of the toy. A paper's figure takes the options that it was run with; it prints as a table, too."""
    from purebench.plan import figures

    request = request_of(
        name, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score, images=images,
        subset=subset, seeds=seed, honest=honest, baselines=baselines, only=only,
    )  # fmt: skip
    layout = _drawn(name, request, bool(results))
    path = out or Path(f"{Path(name).stem if name.endswith('.toml') else name.replace('/', '-')}.png")
    # Before anything is read or computed: nobody wants to learn of it afterwards.
    suffix = figures.suffix(path, (".png",) if name == "coup-toy" else figures.SUFFIXES)
    check_writable(path, "figure.png")
    from purebench.report import sketches

    folders = results or [Path("results")]
    if layout is None:
        said = sketches.built_in(name, folders, path, suffix)
    else:
        said = _paper_figure(layout, request, folders, path, suffix)
    for line in said:
        note(line)
    say(f"wrote {path}")


def _drawn(name: str, request: Request, results: bool) -> Layout | None:
    """The table that a figure of this name is of; None for one that no file says. Raises UserError for what is no figure, and for options
    or results that it does not take."""
    from purebench.plan import figures, grid
    from purebench.report import asked

    if name in figures.WITHOUT_PRESET:
        if request != grid.Request(preset=name):
            raise UserError(f"the figure `{name}` takes no options but `--out`", "name a paper's figure: coup/fig4a")
        if name in figures.OF_THE_TOY and results:
            raise UserError(f"the figure `{name}` is of a toy, and of no records", f"purebench figure {name}")
        return None
    layout = asked.layout_of(name)
    if layout is None and (name.endswith(".toml") or name in grid.presets()):
        raise UserError(f"`{name}` is a grid and no figure", "docs/figures.md has an example")
    if layout is None:
        known = [*figures.WITHOUT_PRESET, *grid.figures()]
        raise errors.unknown("figure", name, known, see="purebench list figures")
    if layout.figure is None:
        raise UserError(
            f"`{name}` is a table and no figure: it has no `[figure]`", "`purebench list figures` names them"
        )
    return layout


def _paper_figure(layout: Layout, request: Request, folders: list[Path], path: Path, suffix: str) -> list[str]:
    """Draws a table that has a `[figure]`; returns what is to be said of it."""
    from purebench.records import store as records
    from purebench.report import asked, sketches

    table = asked.sheet_of(layout, request)
    return sketches.of_table(
        table,
        records.load_all(folders),
        path,
        suffix,
        honest=request.honest,
        fill=asked.command(request, "run", home(folders)),
    )
