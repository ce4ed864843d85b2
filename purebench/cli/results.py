"""What has been run, as tables: `purebench table`, `compare`, `status`, `convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from purebench import errors
from purebench.cli.layouts import home, in_layout, known_layout
from purebench.cli.options import (
    PARTS,
    AsJson,
    Attacks,
    Baselines,
    Classifier,
    Dataset,
    Defenses,
    Expected,
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
from purebench.cli.terminal import app, check_writable, deliver, examples, print_data, say
from purebench.errors import UserError
from purebench.spec import place

if TYPE_CHECKING:
    from purebench.plan.grid import Request
    from purebench.plan.layouts import Layout
    from purebench.report.expect import Verdict


@app.command(
    epilog=examples(
        "purebench table results",
        "purebench table results --layout tidy --format csv --out results.csv",
        "purebench table results/digits-coup-* --format json",
        "purebench table results --metric worst5 --metric success",
        "purebench table results --layout coup/1 --compare",
        "purebench table results --sanity",
        "purebench table results --expect 'coup/strongest>=0.40' --expect 'coup/clean>=95%'",
        "purebench table results/embedded --layout coup/1 --dataset digits --grad exact",
    )
)
def table(
    results: Results = None,
    layout: Annotated[
        str,
        Option(metavar="NAME", help="grid, tidy (a row per cell and metric), a paper's table (coup/1), or its file"),
    ] = "grid",
    format: Annotated[str, Option(help="md, csv or json; of a paper's table also tex")] = "md",
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
    compare: Annotated[
        bool, Option("--compare", help="a paper's table: beside the reported values, and whether they are covered")
    ] = False,
    sanity: Annotated[
        bool, Option("--sanity", help="instead, the checks of the attacks: verdicts, and the numbers behind each")
    ] = False,
    expect: Expected = None,
    metric: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="one more: worst20, any15, certified@0.5, success; repeat for several"),
    ] = None,
    out: Annotated[Path | None, Option(metavar="FILE", help="write there instead of stdout", parser=place)] = None,
) -> None:
    """Print the table of what has been run; a pure function of the records. A paper's table takes the options that it was run with."""
    from purebench.plan import measures
    from purebench.records import store as records
    from purebench.report import expect as expecting
    from purebench.report import protocols, tables
    from purebench.report import sanity as checks

    check_writable(out)
    request = request_of(
        layout, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score, images=images,
        subset=subset, seeds=seed, honest=honest, baselines=baselines, only=only,
    )  # fmt: skip
    found = _table_layout(layout, request, compare=compare, expect=bool(expect))
    expected = [expecting.read(text) for text in expect or ()]
    logs = records.load_all(results or [Path("results")])
    if sanity:
        if found or layout != "grid" or expected or metric:
            raise UserError(
                "`--sanity` prints no table of a layout", "leave out `--layout`, `--compare`, `--metric` and `--expect`"
            )
        deliver(checks.render(logs, format), out)
        return
    expecting.check_known(expected, logs)
    asked = measures.read(metric or ())
    if asked and found:
        raise UserError(
            f"`--metric` adds to the grid, and `{layout}` says itself what it prints", "leave out `--layout`"
        )
    for line in protocols.check(asked, logs):
        say(f"note: {line}")
    # Rendered before the file is touched: a mistake in an option leaves the old table there.
    if found:
        text = in_layout(found, request, logs, format, home(results), compare)
    else:
        text = tables.render(logs, layout=layout, format=format, asked=asked)
    deliver(text, out)
    if expected:
        numbers = expecting.of_grid(logs, expected)
        _judge([expecting.judged(one, numbers) for one in expected])


def _table_layout(layout: str, request: Request, *, compare: bool, expect: bool) -> Layout | None:
    """The paper's table of this name; None for one of the grid's layouts. Raises UserError for options that do not belong to it."""
    from purebench.plan import grid
    from purebench.report import tables

    found = None if layout in tables.LAYOUTS else known_layout(layout, tables.LAYOUTS)
    if found and expect:
        raise UserError(
            f"`--expect` is about cells of the grid, and `{layout}` prints them on the paper's images alone",
            "leave out `--layout`, or `--expect`",
        )
    if found is None and (compare or request != grid.Request(preset=layout)):
        raise UserError(
            f"the layout `{layout}` prints all records, and takes no such options",
            "name a paper's table: --layout coup/1",
        )
    return found


def _judge(verdicts: Sequence[Verdict]) -> None:
    """What became of the expectations, on stderr; if one is unmet, that is the exit code."""
    for verdict in verdicts:
        say(verdict.line)
    if not all(verdict.met for verdict in verdicts):
        raise typer.Exit(errors.UNMET)


@app.command(
    epilog=examples(
        "purebench compare before after",
        "purebench compare results --by gradient -a pgd-eot",
        "purebench compare results -d coup -d diffpure -a pgd-eot --format csv",
        "purebench compare results --grad exact --grad adjoint --metric aa",
        "purebench compare before after --expect 'coup/pgd-eot(difference)>=-2%'",
    )
)
def compare(
    places: Annotated[
        list[Path] | None,
        Argument(metavar="A [B]", help="folders of records, or cells", show_default="results/", parser=place),
    ] = None,
    by: Annotated[
        str | None,
        Option(
            metavar="WHAT", help="defense, attack, gradient, classifier, score, threat, dataset, subset, seed, version"
        ),
    ] = None,
    defense: Defenses = None,
    attack: Attacks = None,
    threat: Threats = None,
    grad: Gradients = None,
    dataset: Annotated[list[str] | None, Option(metavar="PART", help=PARTS)] = None,
    classifier: Annotated[list[str] | None, Option(metavar="PART", help=PARTS)] = None,
    score: Annotated[list[str] | None, Option(metavar="PART", help=PARTS)] = None,
    seed: Seeds = None,
    metric: Annotated[str, Option(help="robust, clean, undefended, or a verdict: aa, sticky, cascade")] = "robust",
    format: Annotated[str, Option(help="md, csv or json")] = "md",
    expect: Expected = None,
    out: Annotated[Path | None, Option(metavar="FILE", help="write there instead of stdout", parser=place)] = None,
) -> None:
    """Compare cells on the images that both have: difference, paired interval, McNemar's test.

    An option that is given once chooses cells; of one folder, one that is given several times says what is compared: the first against each
    of the others."""
    from purebench.report import compare as comparing
    from purebench.report import expect as expecting

    if format not in comparing.FORMATS:
        raise errors.unknown("format", format, comparing.FORMATS)
    check_writable(out)
    given = {
        "dataset": dataset, "classifier": classifier, "score": score, "threat": threat, "defense": defense, "attack": attack,
        "gradient": grad, "seed": [str(one) for one in seed or ()],
    }  # fmt: skip
    wanted = {kind: texts for kind, texts in given.items() if texts}
    expected = [expecting.read(text, compared=True) for text in expect or ()]
    found = comparing.of(places or [Path("results")], by, wanted, metric)
    expecting.check_known(expected, [log for row in found.rows for side in (0, 1) for log in row.logs(side)])
    deliver(comparing.render(found, format), out)
    numbers = comparing.measured(found)
    _judge([expecting.judged(one, numbers, nothing="nothing of that was compared") for one in expected])


@app.command(epilog=examples("purebench status results", "purebench status results --json"))
def status(results: Results = None, as_json: AsJson = False) -> None:
    """What has been computed, cell by cell: images, evaluations, time, and why a cell failed."""
    from purebench.records import store as records
    from purebench.report import metrics

    # From the logs, not from `frame.cells`: pandas costs a second, and this is asked again and again while a run goes on.
    rows = []
    for log in records.load_all(results or [Path("results")]):
        judged = metrics.judged(log)
        # The fewest: an image that lacks draws is what the next run would add.
        evals = min((len(record["adversarial"]) for record in judged), default=0)
        lost = len(log.images) - len(judged)
        # Older records do not say how many images were wanted.
        wanted = log.wanted or len(log.images)
        state = "ok" if judged and len(judged) >= wanted else f"unfinished: {len(judged)} of {wanted}"
        state += f"; the attack made no image: {lost}" if lost else ""
        rows.append(
            {
                "cell": log.id, "defense": log.cell["defense"], "attack": log.cell["attack"], "grad": log.cell["gradient"],
                "threat": log.cell["threat"], "seed": log.cell["seed"], "images": len(judged), "evals": evals,
                "seconds": round(log.seconds, 1), "state": f"failed: {log.failed}" if log.failed else state,
            }
        )  # fmt: skip
    print_data(rows, as_json)


@app.command(epilog=examples("purebench convert results"))
def convert(
    results: Annotated[Path, Argument(metavar="RESULTS", help="a folder that an older purebench wrote")],
    as_json: AsJson = False,
) -> None:
    """Give the cells of an older purebench their names of now; lines and images stay byte for byte. `run` and `table` do without it."""
    from purebench.records import store

    rows = store.convert(results)
    if rows or as_json:
        print_data(rows, as_json)
    else:
        print("nothing to convert")
