"""The options of the commands, in the order of the help of `run`.

Named, so that the signature of a command is a list of them on one screen. None is what nobody said: a grid, a preset or the dataset
then has the word, which a default here would take from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from purebench.spec import place

if TYPE_CHECKING:
    from purebench.plan.grid import Request

Results = Annotated[
    list[Path] | None,
    Argument(metavar="RESULTS..", help="folders of records", show_default="results/", parser=place),
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
Preset = Annotated[
    str | None,
    Argument(
        metavar="[PRESET|FILE.toml]", help="a grid or a paper's table (coup/1), or a file; `quick` if nothing is said"
    ),
]
PARTS = "name[:k=v,..]; repeat for several"
Defenses = Annotated[list[str] | None, Option("-d", "--defense", metavar="PART", help=PARTS)]
Attacks = Annotated[list[str] | None, Option("-a", "--attack", metavar="PART", help=PARTS)]
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
Precision = Annotated[
    str | None,
    Option(metavar="WORD", help="of score networks in attacks: fp32, tf32 (GPU), bf16; checked first [default: fp32]"),
]
JudgePrecision = Annotated[str | None, Option(metavar="WORD", help="the same where images are judged [default: fp32]")]
Images = Annotated[int | None, Option(metavar="N", help="how many test images")]
Subset = Annotated[
    int | None, Option(metavar="SEED", help="RandomState(SEED).choice instead of the dataset's own order")
]
Seeds = Annotated[list[int] | None, Option(metavar="S", help="seed of all noise; repeat for several")]
Evals = Annotated[int | None, Option(metavar="K", help="fresh purifications that judge each image")]
# A shell leaves the `~` of `--out=~/results` as it is, which would be a folder of that name.
Out = Annotated[Path, Option(metavar="DIR", help="where the records go", parser=place)]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1")]
Rows = Annotated[
    str | None, Option(metavar="R|auto", help="rows of every network call; auto: measured [default: the dataset's]")
]
WorkerCount = Annotated[int | None, Option(metavar="W", help="processes [default: one per GPU, or per core up to 8]")]
# Text, which `preflight.in_bytes` reads, as it does for whoever calls it from Python.
Memory = Annotated[
    str | None, Option(metavar="SIZE", help="bound on states and graphs per worker, such as 4G [default: what is free]")
]
Logged = Annotated[
    list[str] | None,
    Option(
        "--log", metavar="KEYS", help="more in the lines of new images: score_norm,moved (for detection and distances)"
    ),
]
Sanity = Annotated[
    bool, Option("--sanity", help="add the controls (null, noise) and, on a few images, checks of the attack itself")
]
Honest = Annotated[bool, Option("--honest", help="a paper's table: our columns beside its own")]
Baselines = Annotated[bool, Option("--baselines", help="a paper's table: also quoted rows whose classifier can be had")]
Only = Annotated[
    list[str] | None, Option("--only", metavar="WORD", help="a paper's table: rows with this word; repeat for several")
]
Fresh = Annotated[bool, Option("--fresh", help="start over; existing cells are renamed, not deleted")]
DryRun = Annotated[bool, Option("--dry-run", help="print the plan and its estimated time, and stop")]
Quiet = Annotated[bool, Option("--quiet", help="no progress, no table")]


def request_of(preset: str | None, **options: Any) -> Request:
    """What a command line asks for. Typer's list of an option that may be repeated is None where it was not given."""
    from purebench.plan import grid

    repeated = ("defenses", "attacks", "threats", "grads", "seeds", "only")
    given: dict[str, Any] = {key: tuple(value or ()) if key in repeated else value for key, value in options.items()}
    return grid.Request(preset, **given)
