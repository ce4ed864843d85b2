"""The command line. Light: torch, pandas and rich are imported where a command needs them.

A command reads its options, calls one function of a room, and prints what it returns: data on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from purebench import errors
from purebench.errors import UserError

if TYPE_CHECKING:
    from purebench.plan.grid import Plan, Request
    from purebench.plan.layouts import Layout
    from purebench.plan.sheet import Sheet
    from purebench.records.store import Log
    from purebench.report.expect import Verdict
    from purebench.running.runner import Outcome, Settings

app = typer.Typer(
    name="purebench",
    no_args_is_help=True,
    # Without rich, whose help costs half a second; and what no command expected is a bug of ours, shown as Python shows it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="How robust is this purification defense, really, and how does that compare with the paper?",
    epilog="Start with:  purebench run   then:  purebench table results",
)


def main() -> None:
    """The console script: a UserError becomes one message and its exit code."""
    try:
        app()
    except UserError as error:
        _complain(error)
        raise SystemExit(error.code) from None
    except SystemExit as stop:
        # Typer makes this of Ctrl-C, and says nothing.
        if stop.code == errors.INTERRUPTED:
            _note("interrupted")
        # Click makes 1 of a closed pipe.
        if isinstance(stop.__context__, BrokenPipeError):
            raise SystemExit(errors.OK) from None
        raise
    except BrokenPipeError:
        # `| head` closed the pipe. Python flushes stdout once more at its end, and that must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(errors.OK) from None
    except OSError as error:
        # No space, no permission, a folder where a file should be. Without file and number it is no such thing, but our bug.
        if error.filename is None and error.errno is None:
            raise
        where = f"`{error.filename}`: " if error.filename else ""
        hint = "free some space or mend the path, and give the command again"
        _complain(UserError(f"{where}{error.strerror or error}", hint))
        raise SystemExit(errors.FAILED) from None


def _complain(error: UserError) -> None:
    _say(f"error: {error.message}")
    if error.hint:
        _say(f"hint: {error.hint}")


def _say(line: str) -> None:
    """A line for people, on stderr: stdout has the data alone, so that it can be piped."""
    print(line, file=sys.stderr, flush=True)


def _note(line: str) -> None:
    _say(f"purebench: {line}")


def _print(data: Any, as_json: bool, text: Callable[[Any], str] | None = None) -> None:
    """Data on stdout, as JSON or as text; without a `text` of its own, rows in aligned columns."""
    print(json.dumps(data, indent=1) if as_json else (text or _columns)(data))


def _columns(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned plain text."""
    if not rows:
        return "nothing yet"
    lines = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Nothing behind the last word of a line: whoever compares or pastes the text stumbles over blanks that nobody sees.
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _examples(*lines: str) -> str:
    # \b is Click's word for a paragraph that is not to be wrapped.
    return "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)


Results = Annotated[
    list[Path] | None, Argument(metavar="RESULTS..", help="folders of records", show_default="results/")
]
Expected = Annotated[
    list[str] | None,
    Option(
        "--expect",
        metavar="CELL>=NUMBER",
        help="such as 'coup/strongest>=0.40'; exit code 4 where it does not hold; repeat for several",
    ),
]
AsJson = Annotated[bool, Option("--json", help="JSON on stdout")]


# -------------------------------------------------------------------------------------------------------------------- run


# The options of `purebench run`, in the order of its help. Named, so that the signature of `run` is a list of them on one screen; None
# is what nobody said: a grid, a preset or the dataset then has the word, which a default here would take from them.
Preset = Annotated[
    str | None,
    Argument(
        metavar="[PRESET|FILE.toml]", help="a grid or a paper's table (coup/1), or a file; `quick` if nothing is said"
    ),
]
_PARTS = "name[:k=v,..]; repeat for several"
Defenses = Annotated[list[str] | None, Option("-d", "--defense", metavar="PART", help=_PARTS)]
Attacks = Annotated[list[str] | None, Option("-a", "--attack", metavar="PART", help=_PARTS)]
Threats = Annotated[list[str] | None, Option("-t", "--threat", metavar="NORM:EPS", help="Linf:8/255, L2:0.5")]
Gradients = Annotated[
    list[str] | None, Option("--grad", metavar="PART", help="exact, detached, adjoint, bpda, surrogate:k=v")
]
Dataset = Annotated[
    str | None, Option(metavar="PART", help="the dataset [default: CIFAR-10 if it is in the cache, else digits]")
]
Classifier = Annotated[str | None, Option(metavar="PART", help="the protected classifier [default: the dataset's]")]
Score = Annotated[
    str | None,
    Option(metavar="PART", help="the score model of all defenses [default: the dataset's, or a defense's own]"),
]
Images = Annotated[int | None, Option(metavar="N", help="how many test images")]
Subset = Annotated[
    int | None, Option(metavar="SEED", help="RandomState(SEED).choice instead of the dataset's own order")
]
Seeds = Annotated[list[int] | None, Option(metavar="S", help="seed of all noise; repeat for several")]
Evals = Annotated[int | None, Option(metavar="K", help="fresh purifications that judge each image")]
Out = Annotated[Path, Option(metavar="DIR", help="where the records go")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1")]
Rows = Annotated[int | None, Option(metavar="R", help="rows of every network call [default: the dataset's]")]
WorkerCount = Annotated[int | None, Option(metavar="W", help="processes [default: one per GPU, or per core up to 8]")]
# Text, which `preflight.in_bytes` reads, as it does for whoever calls it from Python.
Memory = Annotated[
    str | None, Option(metavar="SIZE", help="bound on states and graphs per worker, such as 4G [default: what is free]")
]
Sanity = Annotated[bool, Option("--sanity", help="add the controls: attacks null and noise")]
Honest = Annotated[bool, Option("--honest", help="a paper's table: our columns beside its own")]
Baselines = Annotated[bool, Option("--baselines", help="a paper's table: also quoted rows whose classifier can be had")]
Only = Annotated[
    list[str] | None, Option("--only", metavar="WORD", help="a paper's table: rows with this word; repeat for several")
]
Fresh = Annotated[bool, Option("--fresh", help="start over; existing cells are renamed, not deleted")]
DryRun = Annotated[bool, Option("--dry-run", help="print the plan and its estimated time, and stop")]
Quiet = Annotated[bool, Option("--quiet", help="no progress, no table")]


@app.command(
    epilog=_examples(
        "purebench run",
        "purebench run --defense coup --attack autoattack-rand",
        "purebench run -d diffpure -d coup -a pgd-eot:eot=20 --grad exact --grad adjoint --images 100",
        "purebench run -d coup -a 'transfer:from=(reverse-sde)' -t Linf:0.1 -t L2:0.5",
        "purebench run coup/1 --dataset digits --images 8",
        "purebench run my-grid.toml --dry-run",
    )
)
def run(
    preset: Preset = None,
    defense: Defenses = None,
    attack: Attacks = None,
    threat: Threats = None,
    grad: Gradients = None,
    dataset: Dataset = None,
    classifier: Classifier = None,
    score: Score = None,
    images: Images = None,
    subset: Subset = None,
    seed: Seeds = None,
    evals: Evals = None,
    out: Out = Path("results"),
    device: Device = "auto",
    rows: Rows = None,
    workers: WorkerCount = None,
    memory: Memory = None,
    sanity: Sanity = False,
    honest: Honest = False,
    baselines: Baselines = False,
    only: Only = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a grid of defenses x attacks x threat models, and print its table. The same command again goes on where it stopped."""
    from purebench.running import preflight

    request = _request(
        preset, defenses=defense, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score,
        images=images, subset=subset, seeds=seed, evals=evals, sanity=sanity, honest=honest, baselines=baselines, only=only,
    )  # fmt: skip
    # What may run at all is decided there, for the Python API too; here are only options and messages.
    resources = preflight.Resources(device, rows, workers, memory)
    plan, settings = preflight.prepare(request, resources, out, fresh=fresh, note=None if quiet else _note)
    if dry_run:
        from purebench.running import estimate

        print(estimate.describe(plan, settings, as_json))
        return
    # After the dry run, which does without them: it is how one learns what is missing.
    preflight.require_files(plan)
    outcome = _work_off(plan, settings, quiet)
    _show_outcome(plan, settings, outcome, request, as_json, quiet)


def _request(preset: str | None, **options: Any) -> Request:
    """What a command line asks for. Typer's list of an option that may be repeated is None where it was not given."""
    from purebench.plan import grid

    repeated = ("defenses", "attacks", "threats", "grads", "seeds", "only")
    given: dict[str, Any] = {key: tuple(value or ()) if key in repeated else value for key, value in options.items()}
    return grid.Request(preset, **given)


def _work_off(plan: Plan, settings: Settings, quiet: bool) -> Outcome:
    """Runs the plan. Ctrl-C ends the command with its own exit code, after a line that says what is kept."""
    from purebench.running import progress, runner

    reporter = progress.reporter(quiet)
    # Made here, so that it can be read after Ctrl-C.
    outcome = runner.Outcome()
    try:
        with contextlib.closing(reporter):
            runner.run(plan, settings, reporter, outcome)
    except KeyboardInterrupt:
        # Not left to Typer, which would swallow it and know nothing of what is kept.
        _note(f"{outcome.images} new images are kept; the same command goes on from there")
        raise typer.Exit(errors.INTERRUPTED) from None
    return outcome


def _show_outcome(
    plan: Plan, settings: Settings, outcome: Outcome, request: Request, as_json: bool, quiet: bool
) -> None:
    """The table of the plan's cells on stdout, and on stderr which of them failed; if one did, that is the exit code."""
    from purebench.records import store as records
    from purebench.report import tables
    from purebench.running import runner

    # First, so that what is missing is known before the table without it is read.
    for cell, why in outcome.failed.items():
        _say(f"error: cell {cell} failed: {why}")
    places = [runner.place(settings.out, job.cell) for job in plan.jobs]
    # A cell has no folder where another process holds its source: it was skipped before it was opened.
    folders = [folder for folder in places if (folder / records.CELL).exists()]
    if folders and not quiet:
        layout = _layout(request.preset) if request.preset else None
        logs, format = records.load_all(folders), "json" if as_json else "md"
        print(_paper(layout, request, logs, format, settings.out) if layout else tables.render(logs, format=format))
        verb = "figure" if layout and layout.figure else "table"
        _say(f"next: {_command(request, verb, settings.out) if layout else f'purebench table {settings.out}'}")
    if outcome.failed:
        _say(f"hint: `purebench status {settings.out}` shows what is missing; the same command goes on with it")
        raise typer.Exit(errors.FAILED)


# ----------------------------------------------------------------------------------------------------------------- tables


@app.command(
    epilog=_examples(
        "purebench table results",
        "purebench table results --layout tidy --format csv --out results.csv",
        "purebench table results/digits-coup-* --format json",
        "purebench table results --layout coup/1 --compare",
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
    expect: Expected = None,
    out: Annotated[Path | None, Option(metavar="FILE", help="write there instead of stdout")] = None,
) -> None:
    """Print the table of what has been run; a pure function of the records. A paper's table takes the options that it was run with."""
    from purebench.records import store as records
    from purebench.report import expect as expecting
    from purebench.report import tables

    _check_writable(out)
    request = _request(
        layout, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score, images=images,
        subset=subset, seeds=seed, honest=honest, baselines=baselines, only=only,
    )  # fmt: skip
    found = _table_layout(layout, request, compare=compare, expect=bool(expect))
    expected = [expecting.read(text) for text in expect or ()]
    logs = records.load_all(results or [Path("results")])
    expecting.check_known(expected, logs)
    # Rendered before the file is touched: a mistake in an option leaves the old table there.
    if found:
        text = _paper(found, request, logs, format, _out_of(results), compare)
    else:
        text = tables.render(logs, layout=layout, format=format)
    _deliver(text, out)
    if expected:
        numbers = expecting.of_grid(logs)
        _judge([expecting.judged(one, numbers) for one in expected])


def _table_layout(layout: str, request: Request, *, compare: bool, expect: bool) -> Layout | None:
    """The paper's table of this name; None for one of the grid's layouts. Raises UserError for options that do not belong to it."""
    from purebench.plan import grid
    from purebench.report import tables

    found = None if layout in tables.LAYOUTS else _known_layout(layout, tables.LAYOUTS)
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
        _say(verdict.line)
    if not all(verdict.met for verdict in verdicts):
        raise typer.Exit(errors.UNMET)


def _deliver(text: str, out: Path | None) -> None:
    """A table on stdout, or into its file."""
    from purebench.records import store as records

    if out is None:
        print(text)
        return
    # Replaced whole, since a paper may include the file while it is written.
    with records.full_disk_is_an_error(out.parent):
        records.replace(out, text.rstrip("\n") + "\n")
    _say(f"wrote {out}")


def _out_of(results: list[Path] | None) -> Path:
    """The folder that a run which adds to these records writes to."""
    from purebench.records import store as records

    folder = results[0] if results else Path("results")
    # Of a record's own folder it lies above.
    return folder.parent if (folder / records.CELL).exists() else folder


def _layout(name: str) -> Layout | None:
    """The table of this name or file; None for a grid, and for no preset at all."""
    from purebench.plan import grid, layouts

    if not name.endswith(".toml") and name not in grid.presets():
        return None
    name, data = grid.read(name)
    return layouts.of(data, name) if layouts.is_layout(data) else None


def _paper(layout: Layout, request: Request, logs: list[Log], format: str, results: Path, compare: bool = False) -> str:
    """Records in a paper's layout. results: the folder that they are in."""
    from purebench.report import papers

    if not logs:
        _say_where(results)
    fill = _command(request, "run", results)
    return papers.render(_sheet(layout, request), logs, format, honest=request.honest, compare=compare, fill=fill)


def _say_where(results: Path) -> None:
    """Of a folder without records: where there are some."""
    from purebench.records import store as records

    if inside := sorted({path.parent.parent.name for path in results.glob(f"*/*/{records.CELL}")}):
        names = ", ".join(f"`{results / name}`" for name in inside)
        _say(f"hint: no record is in `{results}` itself; there are some in {names}")


def _sheet(layout: Layout, request: Request) -> Sheet:
    """A table with what the command line says."""
    from purebench.plan import places, sheet

    chosen, given = places.chosen(layout, request.only), places.overrides(request)
    places.check_headings(chosen, given, honest=request.honest)
    return sheet.of(chosen, given, baselines=request.baselines)


def _command(request: Request, verb: str, results: Path) -> str:
    """The `purebench run` that makes the cells of a table, the `table` that prints them, or the `figure` that draws them."""
    preset, folder = shlex.quote(str(request.preset)), shlex.quote(str(results))
    given = [
        {
            "run": f"purebench run {preset}",
            "table": f"purebench table {folder} --layout {preset}",
            "figure": f"purebench figure {preset} {folder}",
        }[verb]
    ]
    listed = (("-a", request.attacks), ("-t", request.threats), ("--grad", request.grads), ("--only", request.only))
    for option, values in listed:
        given += [f"{option} {shlex.quote(value)}" for value in values]
    for name in ("dataset", "classifier", "score", "images", "subset"):
        value = getattr(request, name)
        given += [f"--{name} {shlex.quote(str(value))}"] if value is not None else []
    given += [f"--seed {seed}" for seed in request.seeds]
    given += [f"--{name}" for name in ("honest", "baselines") if getattr(request, name)]
    return " ".join(given + ([f"--out {folder}"] if verb == "run" and folder != "results" else []))


@app.command(
    epilog=_examples(
        "purebench compare before after",
        "purebench compare results --by gradient -a pgd-eot",
        "purebench compare results -d coup -d diffpure -a pgd-eot --format csv",
        "purebench compare results --grad exact --grad adjoint --metric aa",
        "purebench compare before after --expect 'coup/pgd-eot(difference)>=-2%'",
    )
)
def compare(
    places: Annotated[
        list[Path] | None, Argument(metavar="A [B]", help="folders of records, or cells", show_default="results/")
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
    dataset: Annotated[list[str] | None, Option(metavar="PART", help=_PARTS)] = None,
    classifier: Annotated[list[str] | None, Option(metavar="PART", help=_PARTS)] = None,
    score: Annotated[list[str] | None, Option(metavar="PART", help=_PARTS)] = None,
    seed: Seeds = None,
    metric: Annotated[str, Option(help="robust, clean, aa or undefended")] = "robust",
    format: Annotated[str, Option(help="md, csv or json")] = "md",
    expect: Expected = None,
    out: Annotated[Path | None, Option(metavar="FILE", help="write there instead of stdout")] = None,
) -> None:
    """Compare cells on the images that both have: difference, paired interval, McNemar's test.

    An option that is given once chooses cells; of one folder, one that is given several times says what is compared: the first against each
    of the others."""
    from purebench.report import compare as comparing
    from purebench.report import expect as expecting

    if format not in comparing.FORMATS:
        raise errors.unknown("format", format, comparing.FORMATS)
    _check_writable(out)
    given = {
        "dataset": dataset, "classifier": classifier, "score": score, "threat": threat, "defense": defense, "attack": attack,
        "gradient": grad, "seed": [str(one) for one in seed or ()],
    }  # fmt: skip
    wanted = {kind: texts for kind, texts in given.items() if texts}
    expected = [expecting.read(text, compared=True) for text in expect or ()]
    found = comparing.of(places or [Path("results")], by, wanted, metric)
    expecting.check_known(expected, [log for row in found.rows for side in (0, 1) for log in row.logs(side)])
    _deliver(comparing.render(found, format), out)
    numbers = comparing.measured(found)
    _judge([expecting.judged(one, numbers, nothing="nothing of that was compared") for one in expected])


@app.command(
    epilog=_examples(
        "purebench report results",
        "purebench report results --out coup.html --title 'COUP on CIFAR-10' --layout coup/1",
        "purebench report results/embedded --layout coup/1 --layout coup/3 --dataset digits --grad exact",
        "purebench report results --pictures 100 --purify",
    )
)
def report(
    results: Results = None,
    out: Annotated[Path, Option(metavar="FILE", help="the page to write")] = Path("report.html"),
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
    from purebench.plan import grid, resolved
    from purebench.records import store as records
    from purebench.report import images as images_of
    from purebench.report import page, papers

    options: dict[str, Any] = {
        "attacks": attack, "threats": threat, "grads": grad, "dataset": dataset, "classifier": classifier, "score": score,
        "images": images, "subset": subset, "seeds": seed, "honest": honest, "baselines": baselines, "only": only,
    }  # fmt: skip
    _check_writable(out, "report.html")
    if pictures is not None and pictures < 0:
        raise UserError(
            f"`--pictures {pictures}`: a number of images, or 0 for none", "leave it out for as many as fit"
        )
    if not layout and _request(None, **options) != grid.Request():
        raise UserError(
            "these options choose the cells of a paper's table, and none is asked for", "add --layout coup/1"
        )
    given = [resolved.find("dataset", text) for text in data or ()]
    logs = records.load_all(results or [Path("results")])
    if not logs:
        folders = ", ".join(f"`{folder}`" for folder in results or [Path("results")])
        raise UserError(f"there are no records in {folders}", "name the folder that `purebench run --out` wrote")
    images_of.check_given(given, logs)
    made = []
    for name in layout or ():
        request = _request(name, **options)
        fill = _command(request, "run", _out_of(results))
        made.append(papers.printed(_sheet(_known_layout(name), request), logs, honest=honest, fill=fill))
    why_not = page.purify(logs, pictures=pictures, given=given, device=device, note=_note) if purify else {}
    text = page.render(logs, made, title=title or "", pictures=pictures, given=given, why_not=why_not)
    with records.full_disk_is_an_error(out.parent):
        records.replace(out, text)
    _say(f"wrote {out} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser")


def _known_layout(name: str, others: Iterable[str] = ()) -> Layout:
    """A paper's table. Raises UserError where there is none of this name; others: names that might have been meant, too."""
    from purebench.plan import grid

    if found := _layout(name):
        return found
    if name.endswith(".toml"):
        raise UserError(
            f"`{name}` is no table: it has no `[[column]]` and no `[[row]]`", "docs/tables.md has an example"
        )
    raise errors.unknown("layout", name, [*others, *grid.tables(), *grid.figures()], see="purebench list layouts")


def _check_writable(path: Path | None, name: str = "table.md") -> None:
    """Raises UserError where no file of this name can be written: known before the work, not after it. name: of the file in the hint."""
    import tempfile

    if path is None:
        return
    if path.is_dir():
        raise UserError(f"`--out {path}` is a folder", f"name a file in it: --out {path / name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # By writing there: permissions alone do not know a read-only disk.
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"`--out {path}` cannot be written: {error.strerror or error}", "name another place, or free some space"
        ) from None


@app.command(epilog=_examples("purebench status results", "purebench status results --json"))
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
    _print(rows, as_json)


@app.command(epilog=_examples("purebench convert results"))
def convert(
    results: Annotated[Path, Argument(metavar="RESULTS", help="a folder that an older purebench wrote")],
    as_json: AsJson = False,
) -> None:
    """Give the cells of an older purebench their names of now; lines and images stay byte for byte. `run` and `table` do without it."""
    from purebench.records import store

    rows = store.convert(results)
    if rows or as_json:
        _print(rows, as_json)
    else:
        print("nothing to convert")


# ------------------------------------------------------------------------------------------------------------- list, show


@app.command("list", epilog=_examples("purebench list", "purebench list attacks", "purebench list defenses --json"))
def list_(
    kind: Annotated[
        str | None,
        Argument(
            metavar="KIND",
            help="defenses, attacks, gradients, datasets, classifiers, scores, presets, layouts, figures",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name what there is."""
    from purebench.plan import catalogue

    _print(catalogue.listing(kind), as_json, catalogue.listing_text)


@app.command(epilog=_examples("purebench show coup", "purebench show pgd-eot --json", "purebench show quick"))
def show(name: Annotated[str, Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """Explain one thing: formula, parameters, where their defaults come from, cost, gradients, differences from the paper, BibTeX."""
    from purebench.plan import catalogue

    facts = catalogue.facts(name)
    # Authors and formulas as they are written: this JSON is read by people, too.
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else catalogue.text(facts))


@app.command(epilog=_examples("purebench where", "purebench where --json"))
def where(as_json: AsJson = False) -> None:
    """Where purebench keeps its files."""
    from purebench import assets

    def columns(places: dict[str, str]) -> str:
        return _columns([{"what": what, "path": path} for what, path in places.items()])

    _print(assets.places(), as_json, columns)


@app.command(epilog=_examples("purebench doctor", "purebench doctor --json", "purebench doctor --out /scratch/results"))
def doctor(
    out: Annotated[Path, Option(metavar="DIR", help="the folder of records that a run would write")] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Look for what would not work here, and say why: packages, devices, cache, plug-ins, proxies, folders. Nothing is changed."""
    from purebench.running import doctor as examining

    found = []
    for finding in examining.findings(out):
        found.append(finding)
        if not as_json:
            # At once: the imports take seconds.
            print(f"{finding.state:<6} {finding.topic:<12} {finding.said}", flush=True)
            if finding.hint:
                print(f"{'':<20}hint: {finding.hint}", flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    wrong = sum(finding.state == "wrong" for finding in found)
    if wrong:
        _say(f"{wrong} of these would not work")
        raise typer.Exit(errors.FAILED)
    _say("nothing is wrong")


# ------------------------------------------------------------------------------------------------------------------ fetch


@app.command(
    epilog=_examples(
        "purebench fetch cifar10",
        "purebench fetch coup --dry-run",
        "purebench fetch robustbench/cifar10/Linf/Carmon2019Unlabeled edm-cifar10-uncond-vp",
        "purebench fetch data-cifar10 --from Downloads/cifar-10-python.tar.gz",
        "purebench fetch --list",
    )
)
def fetch(
    what: Annotated[
        list[str] | None, Argument(metavar="WHAT..", help="assets, datasets or papers", show_default=False)
    ] = None,
    list_: Annotated[bool, Option("--list", help="name every asset, dataset and paper, and stop")] = False,
    offline: Annotated[bool, Option("--offline", help="open no connection; say what is missing")] = False,
    given: Annotated[
        Path | None, Option("--from", metavar="FILE", help="take this file instead of downloading it")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the plan, and stop")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, Option("--quiet", help="no plan, no progress")] = False,
) -> None:
    """Bring checkpoints and datasets into the cache, verified. The same command again goes on where it stopped."""
    from purebench import assets
    from purebench.assets import bars
    from purebench.assets import fetch as fetching

    if not what and not list_:
        raise UserError("nothing to fetch", "name assets, datasets or papers; `purebench fetch --list` lists them")
    # Made first, since it names a typing error before anything is downloaded.
    plan = fetching.plan(what or assets.table())
    if list_:
        sets = assets.sets()
        listing = "\n".join([_columns(plan), "", *[f"{name}: {' '.join(names)}" for name, names in sets.items()]])
        _print({"sets": sets, "assets": plan}, as_json, lambda _: listing)
        return
    if dry_run:
        _print(plan, as_json)
    elif not quiet:
        # On stderr: on stdout are the rows of what was brought.
        _say(_columns(plan))
        _say(fetching.download_text(what or []))
    for row in plan:
        # Said with every plan, not once: whoever reads a log sees under what terms the weights came.
        if assets.entry(row["asset"]).get("non_commercial") and not quiet:
            _say(f"note: `{row['asset']}` is for non-commercial use only ({row['licence']})")
    if dry_run:
        return
    rows, failures = fetching.fetch(what or [], offline=offline, given=given, show=bars.reporter(quiet))
    _print(rows, as_json, lambda rows: _columns([row | {"sha256": row["sha256"][:12]} for row in rows]))
    for failure in failures:
        _complain(failure)
    if failures:
        raise typer.Exit(errors.DOWNLOAD)
    if not quiet:
        _say("next: purebench run")


# ---------------------------------------------------------------------------------------------------------- train, purify


@app.command(
    epilog=_examples(
        "purebench train digits",
        "purebench train digits-score --seed 1 --out my-networks",
        "purebench train cifar10-score --dataset parquet:path=train.parquet",
    )
)
def train(
    name: Annotated[
        str,
        Argument(
            metavar="NAME",
            help="digits, digits-classifier, digits-score, cifar10-score, mnist-classifier, fashionmnist-classifier",
        ),
    ],
    dataset: Annotated[
        str | None, Option(metavar="PART", help="the images to train on [default: the recipe's training set]")
    ] = None,
    out: Annotated[Path, Option(metavar="DIR", help="where the weights go")] = Path("trained"),
    seed: Annotated[int, Option(help="seed of everything random")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train the small networks; prints their hashes and what they are good for. About 1 minute (digits) to 40 (cifar10-score)."""
    from purebench.engine import device
    from purebench.running import progress
    from purebench.train import small as training

    # On one thread of the CPU, where a seed gives the same weights each time.
    device.setup("cpu")
    with progress.training() as show_progress:
        facts = training.train(name, out, seed, show_progress, dataset)
    _print(facts, as_json, _training_columns)


def _training_columns(facts: dict[str, dict[str, object]]) -> str:
    def short(value: object) -> object:
        return f"{value:.4g}" if isinstance(value, float) else value

    return _columns([{"file": file} | {key: short(value) for key, value in of.items()} for file, of in facts.items()])


@app.command(
    epilog=_examples(
        "purebench purify digit.png -d coup --out purified", "purebench purify *.png -d diffpure:t=0.2 --seed 1"
    )
)
def purify(
    images: Annotated[
        list[Path], Argument(metavar="IMAGE..", help="image files; resized and converted to what the score model takes")
    ],
    defense: Annotated[str, Option("-d", "--defense", metavar="PART")],
    out: Annotated[Path, Option(metavar="DIR")] = Path("purified"),
    dataset: Annotated[str, Option(metavar="PART", help="whose classifier and score model")] = "digits",
    classifier: Annotated[str | None, Option(metavar="PART", help="another classifier")] = None,
    score: Annotated[str | None, Option(metavar="PART", help="another score model")] = None,
    trajectory: Annotated[
        bool, Option("--trajectory", help="also the way there: a strip of states with score norms and confidences")
    ] = False,
    seed: Annotated[int, Option()] = 0,
    device: Annotated[str, Option()] = "auto",
    as_json: AsJson = False,
) -> None:
    """Purify image files: one purified PNG each, and a side-by-side picture of all with the classifier's answers."""
    from purebench.report import pictures

    rows = pictures.purify(images, defense, out, dataset, seed, device, trajectory, classifier, score)
    _print(rows, as_json)
    # Only now, when the rows of the images that worked are printed, an error for those that did not.
    _say(f"next: look at {out / 'side-by-side.png'}")
    pictures.check(rows)


@app.command(
    epilog=_examples(
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
        Path | None, Option("--out", metavar="FILE", help="the .png, .svg or .pdf to write [default: ID.png]")
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

    request = _request(
        name, attacks=attack, threats=threat, grads=grad, dataset=dataset, classifier=classifier, score=score, images=images,
        subset=subset, seeds=seed, honest=honest, baselines=baselines, only=only,
    )  # fmt: skip
    layout = _drawn(name, request, bool(results))
    path = out or Path(f"{Path(name).stem if name.endswith('.toml') else name.replace('/', '-')}.png")
    # Before anything is read or computed: nobody wants to learn of it afterwards.
    suffix = figures.suffix(path, (".png",) if name == "coup-toy" else figures.SUFFIXES)
    _check_writable(path, "figure.png")
    from purebench.report import sketches

    folders = results or [Path("results")]
    if layout is None:
        said = sketches.built_in(name, folders, path, suffix)
    else:
        said = _paper_figure(layout, request, folders, path, suffix)
    for line in said:
        _note(line)
    _say(f"wrote {path}")


def _drawn(name: str, request: Request, results: bool) -> Layout | None:
    """The table that a figure of this name is of; None for one that no file says. Raises UserError for what is no figure, and for options
    or results that it does not take."""
    from purebench.plan import figures, grid

    if name in figures.WITHOUT_PRESET:
        if request != grid.Request(preset=name):
            raise UserError(f"the figure `{name}` takes no options but `--out`", "name a paper's figure: coup/fig4a")
        if name in figures.OF_THE_TOY and results:
            raise UserError(f"the figure `{name}` is of a toy, and of no records", f"purebench figure {name}")
        return None
    layout = _layout(name)
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
    from purebench.report import sketches

    table = _sheet(layout, request)
    return sketches.of_table(
        table,
        records.load_all(folders),
        path,
        suffix,
        honest=request.honest,
        fill=_command(request, "run", _out_of(folders)),
    )
