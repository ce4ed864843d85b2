"""What lies on disk, and whether it works: `purebench where`, `doctor`, `fetch`, `train`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from purebench import errors
from purebench.cli.options import (
    AsJson,
)
from purebench.cli.terminal import app, columns, complain, examples, print_data, say
from purebench.errors import UserError
from purebench.spec import place

if TYPE_CHECKING:
    from purebench.assets.check import Answer


REPORT = "report it with the output of `purebench fetch --check NAME --json`; meanwhile `--from FILE` takes the file from elsewhere"


@app.command(epilog=examples("purebench where", "purebench where --json"))
def where(as_json: AsJson = False) -> None:
    """Where purebench keeps its files."""
    from purebench import assets

    def aligned(places: dict[str, str]) -> str:
        return columns([{"what": what, "path": path} for what, path in places.items()])

    print_data(assets.places(), as_json, aligned)


@app.command(epilog=examples("purebench doctor", "purebench doctor --json", "purebench doctor --out /scratch/results"))
def doctor(
    out: Annotated[
        Path, Option(metavar="DIR", help="the folder of records that a run would write", parser=place)
    ] = Path("results"),
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
        say(f"{wrong} of these would not work")
        raise typer.Exit(errors.FAILED)
    say("nothing is wrong")


@app.command(
    epilog=examples(
        "purebench fetch cifar10",
        "purebench fetch coup --dry-run",
        "purebench fetch robustbench/cifar10/Linf/Carmon2019Unlabeled edm-cifar10-uncond-vp",
        "purebench fetch data-cifar10 --from Downloads/cifar-10-python.tar.gz",
        "purebench fetch --check cifar10",
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
        Path | None, Option("--from", metavar="FILE", help="take this file instead of downloading it", parser=place)
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="print the plan, and stop")] = False,
    check: Annotated[bool, Option("--check", help="ask every source for one byte, say what came, and stop")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, Option("--quiet", help="no plan, no progress")] = False,
) -> None:
    """Bring checkpoints and datasets into the cache, verified. The same command again goes on where it stopped."""
    from purebench import assets
    from purebench.assets import bars
    from purebench.assets import fetch as fetching

    if check:
        for option, given_too in {"--list": list_, "--offline": offline, "--from": given, "--dry-run": dry_run}.items():
            if given_too:
                raise UserError(
                    f"`--check` asks servers and fetches nothing: `{option}` has no part in it", "give one of them"
                )
        return _check(what or [], as_json, quiet)
    if not what and not list_:
        raise UserError("nothing to fetch", "name assets, datasets or papers; `purebench fetch --list` lists them")
    # Made first, since it names a typing error before anything is downloaded.
    plan = fetching.plan(what or assets.table())
    if list_:
        sets = assets.sets()
        listing = "\n".join([columns(plan), "", *[f"{name}: {' '.join(names)}" for name, names in sets.items()]])
        print_data({"sets": sets, "assets": plan}, as_json, lambda _: listing)
        return
    if given:
        fetching.check_given(what or [], given)
    elif not (offline or dry_run):
        fetching.check_setup(what or [])
    if dry_run:
        print_data(plan, as_json)
    elif not quiet:
        # On stderr: on stdout are the rows of what was brought.
        say(columns(plan))
        say(fetching.download_text(what or []))
    for row in plan:
        # Said with every plan, not once: whoever reads a log sees under what terms the weights came.
        if assets.entry(row["asset"]).get("non_commercial") and not quiet:
            say(f"note: `{row['asset']}` is for non-commercial use only ({row['licence']})")
    if dry_run:
        return
    rows, failures = fetching.fetch(what or [], offline=offline, given=given, show=bars.reporter(quiet))
    print_data(rows, as_json, lambda rows: columns([row | {"sha256": row["sha256"][:12]} for row in rows]))
    for failure in failures:
        complain(failure)
    if failures:
        raise typer.Exit(errors.DOWNLOAD)
    if not quiet:
        say("next: purebench run")


def _check(what: list[str], as_json: bool, quiet: bool) -> None:
    """`fetch --check`: one line per source on stdout, with what the registry does not know of it below; exit code 3 for a file that
    no source has."""
    from purebench import assets
    from purebench.assets import check

    names = what or list(assets.table())
    asked = check.questions(names)
    if not quiet:
        say(f"asking {len(asked)} sources for one byte each; nothing is downloaded")
    width = max((len(part.label) for part, _, _ in asked), default=0)
    found = []
    for answer in check.answers(asked):
        found.append(answer)
        if not as_json:
            # At once: a server that does not answer takes its time.
            print(_answer(answer, width), flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(answer) | {"usable": answer.usable} for answer in found], indent=1))
    missing = check.without_source(names, found)
    for label in missing:
        complain(UserError(f"`{label}`: no source of it has it today", REPORT))
    if missing:
        raise typer.Exit(errors.DOWNLOAD)
    if not quiet:
        say(f"{sum(answer.usable for answer in found)} of {len(found)} sources have it")


def _answer(answer: Answer, width: int) -> str:
    """`answers    0.12 s  170 MB    data-cifar10  https://..  "etag"`, and a line per note."""
    from purebench.assets import bytes_text

    seconds = "" if answer.seconds is None else f"{answer.seconds:.2f} s"
    size = "" if answer.size is None else bytes_text(answer.size)
    line = f"{answer.state:<8} {seconds:>8}  {size:<8} {answer.asset:<{width}}  {answer.url}"
    if answer.validator:
        line += f"  {answer.validator}"
    return "\n".join([line, *(f"{'':<28}{note}" for note in answer.notes)])


@app.command(
    epilog=examples(
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
    out: Annotated[Path, Option(metavar="DIR", help="where the weights go", parser=place)] = Path("trained"),
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
    print_data(facts, as_json, _training_columns)


def _training_columns(facts: dict[str, dict[str, object]]) -> str:
    def short(value: object) -> object:
        return f"{value:.4g}" if isinstance(value, float) else value

    return columns([{"file": file} | {key: short(value) for key, value in of.items()} for file, of in facts.items()])
