"""What there is: `purebench list`, `show`, and one part at work, `purify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from purebench.cli.options import (
    AsJson,
)
from purebench.cli.terminal import app, examples, note, print_data, say


@app.command("list", epilog=examples("purebench list", "purebench list attacks", "purebench list defenses --json"))
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

    print_data(catalogue.listing(kind), as_json, catalogue.listing_text)


@app.command(epilog=examples("purebench show coup", "purebench show pgd-eot --json", "purebench show quick"))
def show(name: Annotated[str, Argument(metavar="NAME")], as_json: AsJson = False) -> None:
    """Explain one thing: formula, parameters, where their defaults come from, cost, gradients, differences from the paper, BibTeX."""
    from purebench.plan import catalogue

    facts = catalogue.facts(name)
    # Authors and formulas as they are written: this JSON is read by people, too.
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else catalogue.text(facts))


@app.command(
    epilog=examples(
        "purebench purify digit.png -d coup --out purified", "purebench purify *.png -d diffpure:t=0.2 --seed 1"
    )
)
def purify(
    images: Annotated[
        list[Path],
        Argument(
            metavar="IMAGE..",
            help="image files, scaled and cropped as the dataset does; arrays (.npy, .pt) of floats in [0,1]",
        ),
    ],
    defense: Annotated[str, Option("-d", "--defense", metavar="PART")],
    out: Annotated[Path, Option(metavar="DIR")] = Path("purified"),
    dataset: Annotated[str, Option(metavar="PART", help="whose classifier and score model")] = "digits",
    classifier: Annotated[str | None, Option(metavar="PART", help="another classifier")] = None,
    score: Annotated[str | None, Option(metavar="PART", help="another score model")] = None,
    trajectory: Annotated[
        bool, Option("--trajectory", help="also the way there: a strip of states with score norms and confidences")
    ] = False,
    background: Annotated[
        str, Option(metavar="COLOUR", help="behind transparent pixels: a colour's name or #rrggbb")
    ] = "white",
    seed: Annotated[int, Option()] = 0,
    device: Annotated[str, Option()] = "auto",
    as_json: AsJson = False,
) -> None:
    """Purify image files and arrays: a purified PNG or array each, and a side-by-side picture of all with the classifier's answers."""
    from purebench.report import pictures

    rows = pictures.purify(images, defense, out, dataset, seed, device, trajectory, classifier, score, background, note)
    print_data(rows, as_json)
    # Only now, when the rows of the images that worked are printed, an error for those that did not.
    say(f"next: look at {out / 'side-by-side.png'}")
    pictures.check(rows)
