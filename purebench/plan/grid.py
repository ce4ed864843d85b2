"""From what the user asked for to an ordered list of validated cells, before anything runs. Torch-free.

A value comes from the command line, else the grid or preset, else the dataset's defaults, else the factory.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import tomllib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purebench import assets, datasets, registry, spec
from purebench.engine import gradients
from purebench.errors import UserError, unknown
from purebench.plan import aliases, checks, given, layouts, limits, places
from purebench.plan import resolved as components
from purebench.plan.resolved import Component
from purebench.spec import (
    CONTROLS,
    NONE,
    Cell,
    Part,
    Resolved,
    ThreatModel,
    Value,
    parse,
    parts,
    place,
    rotation,
    show,
    threat,
)

NOISE_VERSION = 1  # of noise.py: raised when a draw changes
NO_GRADIENT = Part("-")
PRESETS = Path(__file__).parent / "presets"
KEYS: dict[str, type | tuple[type, ...]] = {
    "summary": str, "dataset": str, "classifier": str, "score": str, "defenses": list, "attacks": list, "threats": list,
    "grads": list, "seeds": list, "images": int, "evals": int, "subset": (str, int), "grid": list,
    "precision": str, "judge_precision": str,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The options of `purebench run` that say what to run; None or empty: not given."""

    preset: str | None = None
    defenses: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    threats: tuple[str, ...] = ()
    grads: tuple[str, ...] = ()
    dataset: str | None = None
    classifier: str | None = None
    score: str | None = None
    images: int | None = None
    subset: int | None = None
    seeds: tuple[int, ...] = ()
    evals: int | None = None
    precision: str | None = None  # of score networks, where the attack calls them
    judge_precision: str | None = None  # and where the judge does
    sanity: bool = False  # add the controls
    honest: bool = False  # of a paper's table: our columns beside its own
    baselines: bool = False  # of a paper's table: the quoted rows whose classifier can be had, too
    only: tuple[str, ...] = ()  # of a paper's table: rows with one of these words
    checks: bool = False  # add the cells of `checks` too, but to a paper's table


@dataclass(frozen=True)
class Job:
    """A cell and how much of it is wanted. `shape`: [C,H,W] of the dataset's images, `size`: how many it has; `origin`: parameter ->
    where its value came from."""

    cell: Cell
    images: int
    evals: int
    shape: list[int] = field(default_factory=list, compare=False)
    size: int = 0
    origin: dict[str, str] = field(default_factory=dict, compare=False)
    stand_in: tuple[str, ...] = ()  # what takes the place of a paper's own network or data


class OfDataset(str):
    """A note: which dataset was taken, and how it was read."""


class OfWeights(str):
    """A note: which weights of a user's file are used. Said once it is known that they fit."""


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]
    notes: list[str]  # one line each, for stderr
    missing: list[str] = field(default_factory=list)  # assets that are not in the cache


def build(request: Request, notes: list[str] | None = None) -> Plan:
    """Validates everything that can be known without running; raises UserError for the first thing that is wrong. notes: a list that gets
    the plan's, also where it is refused."""
    grids, first, request = _grids(request)
    notes = [] if notes is None else notes
    notes += first
    jobs: dict[str, Job] = {}
    missing: dict[str, None] = {}
    known: dict[str, Component] = {}
    for grid in grids:
        name = _dataset(request, grid, notes)
        # Found once: of a user's own, which is read for its size, 75 slices are 75 files.
        if name not in known:
            known[name] = components.find("dataset", name)
            if said := known[name].described:
                notes.append(OfDataset(f"dataset: {said}"))
        for job, absent in _jobs(request, grid, known[name], notes, known):
            old = jobs.get(job.cell.id)
            jobs[job.cell.id] = _merged(old, job) if old else job
            missing |= dict.fromkeys(absent)
    notes += _not_lowered(request, [job.cell for job in jobs.values()])
    stand_ins = dict.fromkeys(name for job in jobs.values() for name in job.stand_in)
    if stand_ins:
        notes.append(f"warning: not paper-comparable, for what stands in: {'; '.join(stand_ins)}")
    return Plan(list(jobs.values()), list(dict.fromkeys(notes)), list(missing))


def jobs(one: dict[str, Any]) -> list[Job]:
    """The jobs of a grid of one cell, one per seed, without the cells that a transfer reads."""
    dataset = components.find("dataset", _dataset(Request(), one, []))
    found = [job for job, _ in _jobs(Request(), one, dataset, [], {})]
    sources = {job.cell.source for job in found}
    # Once each: a transfer onto the defense that made its images is that cell, and the source of nothing.
    return list({job.cell.id: job for job in found if job.cell not in sources}.values())


def _merged(old: Job, new: Job) -> Job:
    """Two demands for one cell as one, the larger."""
    names = tuple(dict.fromkeys([*old.cell.aliases, *new.cell.aliases]))
    return dataclasses.replace(
        old,
        cell=dataclasses.replace(old.cell, aliases=names),
        images=max(old.images, new.images),
        evals=max(old.evals, new.evals),
    )


def presets() -> dict[str, Path]:
    """Grids by name, and the papers' tables as `coup/1`."""
    grids = {p.stem: p for p in sorted(PRESETS.glob("*.toml"))}
    return grids | {f"{p.parent.name}/{p.stem}": p for p in sorted(PRESETS.glob("*/*.toml"), key=_by_number)}


def tables() -> dict[str, Path]:
    """The papers' tables among the presets."""
    return {name: path for name, path in presets().items() if "/" in name and name not in figures()}


def figures() -> dict[str, Path]:
    """The papers' figures among the presets, which are tables with a `[figure]`: `coup/fig4a`."""
    # By name: `list` and did-you-mean need not read fifty files.
    return {name: path for name, path in presets().items() if name.partition("/")[2].startswith("fig")}


def _by_number(path: Path) -> tuple[str, int, str]:
    """`coup/2` before `coup/10`."""
    return path.parent.name, int(path.stem) if path.stem.isdigit() else 1000, path.stem


def read(name: str) -> tuple[str, dict[str, Any]]:
    """A preset by its name, or a file: the name that it is shown by, and its TOML. Raises UserError if there is none, or it is no TOML."""
    path = place(name) if name.endswith(".toml") else presets().get(name)
    if path is None:
        raise unknown("preset", name, presets(), see="purebench list presets")
    return path.stem if name.endswith(".toml") else name, _toml(path)


def _grids(request: Request) -> tuple[list[dict[str, Any]], list[str], Request]:
    """The grids of the preset or file, each completed by its top level, what to say of them, and what of the request is left to win over
    them. One empty grid when only options were given; of a paper's table one for each of its cells, which have the options already."""
    path = request.preset
    if path is None:
        # `purebench run` alone means `quick`; one option, and the user has something else in mind.
        if request.defenses or request.attacks:
            _no_table_options(request)
            return [{}], [], request
        path = "quick"
    name, data = read(path)
    if layouts.is_layout(data):
        layout = layouts.of(data, name)
        _no_precision(request, name)
        notes = [f"table `{name}`: {layout.summary}"]
        if request.checks:
            notes.append("note: of a paper's table `--sanity` adds the controls alone; its checks are those of a grid")
        return places.grids(layout, request), notes, Request(sanity=request.sanity)
    _no_table_options(request)
    top = {k: v for k, v in data.items() if k != "grid"}
    tables = data.get("grid", [{}])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError(f"`grid` in `{path}` is not a list of tables", "write `[[grid]]`")
    grids = [top | t for t in tables]
    for grid in grids:
        _check_keys(grid, path)
    return grids, [f"preset `{path}`: {top['summary']}"] if "summary" in top else [], request


def _no_table_options(request: Request) -> None:
    """Raises UserError for options that choose of a table where there is none."""
    for option, chosen in (("--honest", request.honest), ("--baselines", request.baselines), ("--only", request.only)):
        if chosen:
            hint = "name one: `purebench list presets`"
            raise UserError(f"`{option}` chooses of a paper's table, and this is none", hint)


def _no_precision(request: Request, name: str) -> None:
    """Raises UserError for a precision of a paper's table: its places are cells in float32, and would stay empty."""
    for option, chosen in (("--precision", request.precision), ("--judge-precision", request.judge_precision)):
        if chosen is not None:
            raise UserError(
                f"`{option} {chosen}`: the cells of the table `{name}` are in fp32",
                "leave it out; or run its defense and attack by name: `purebench run -d .. -a .. --precision ..`",
            )


def _toml(path: Path) -> dict[str, Any]:
    hint = "a grid is a TOML file; see `purebench show quick` for one"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no grid file `{path}`", hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the grid `{path}`: {error}", hint) from None


def _check_keys(grid: dict[str, Any], path: str) -> None:
    """Raises UserError for a key that a grid does not have, or of another type."""
    hint = "see `purebench show quick` for a grid"
    for key, value in grid.items():
        if key not in KEYS:
            raise unknown(f"key in `{path}`", key, KEYS)
        item = int if key == "seeds" else str
        # A bool is an int to Python, and `seeds = [true]` a mistake.
        fits = isinstance(value, list) and all(isinstance(v, item) and not isinstance(v, bool) for v in value)
        if isinstance(value, list) and not (value and fits):
            items = "whole numbers" if item is int else "names"
            raise UserError(f"`{key} = {value!r}` in `{path}` is no list of {items}", hint)
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise UserError(f"`{key} = {value!r}` in `{path}` has the wrong type", hint)


def _dataset(request: Request, grid: dict[str, Any], notes: list[str]) -> str:
    """The dataset as asked for; else CIFAR-10 where its files are in the cache, and the embedded digits where not."""
    given = request.dataset or grid.get("dataset")
    if given is not None:
        return given
    needed = assets.sets().get("cifar10", [])
    absent = [name for name in needed if not assets.present(name)]
    if needed and not absent:
        notes.append(OfDataset("dataset: CIFAR-10 (`--dataset` was not given, and its files are in the cache)"))
        return "cifar10"
    # A cache with half of the files looks to its owner as if CIFAR-10 were there.
    some = f"; {', '.join(absent)} missing" if len(absent) < len(needed) else ""
    notes.append(
        OfDataset(
            "dataset: the embedded digits (`--dataset` was not given, and CIFAR-10 is not in the cache"
            f"{some}: `purebench fetch cifar10`)"
        )
    )
    return "digits"


def _jobs(
    request: Request, grid: dict[str, Any], dataset: Component, notes: list[str], known: dict[str, Component]
) -> Iterable[tuple[Job, list[str]]]:
    """The jobs of one grid, sources before the transfers that read them; each with the assets that it needs and the cache has not.
    known: datasets found before."""
    defaults = datasets.defaults(dataset.base)

    def pick(option: Any, key: str) -> Any:
        value = option if option not in (None, ()) else grid.get(key, defaults.get(key))
        if value is None:
            raise UserError(f"the dataset `{dataset.name}` has no default {key}", f"give `--{key}`")
        return value

    classifier = components.find("classifier", pick(request.classifier, "classifier"))
    prepared = components.as_evaluated(dataset, classifier)
    # Found once, as above: a grid for each cell of a table would read a user's own as often.
    dataset = known.setdefault(f"{prepared.where} {prepared.text}", prepared) if prepared is not dataset else dataset
    images, evals = pick(request.images, "images"), pick(request.evals, "evals")
    subset = pick(request.subset, "subset")
    subset = datasets.valid(subset if isinstance(subset, str) else f"choice:{subset}")
    size = datasets.capacity(dataset.size, subset)
    # Only a dataset's default is cut to what there is: a number that somebody gave is refused instead.
    if request.images is None and "images" not in grid:
        images = min(images, size)
    if not 1 <= images <= size:
        what = dataset.name if size == dataset.size else f"the subset `{subset}` of {dataset.name}"
        raise UserError(f"`--images {images}` is not possible: {what} has {size} test images", f"choose 1 to {size}")
    if evals < 1:
        raise UserError(f"`--evals {evals}`: every image is judged at least once", "the default is 10")
    # Images of the user's own have no default, and a defense without a score model wants none.
    asked = request.score or grid.get("score", defaults.get("score"))
    score = None if asked is None else components.find("score", asked)
    notes += [OfWeights(network.passed_over) for network in (classifier, score) if network and network.passed_over]
    components.check_fit(dataset, classifier, score)
    if unlike := components.mismatch(dataset, classifier):
        notes.append(f"note: {unlike}")
    threats = [threat(t) for t in request.threats or grid.get("threats") or [pick(None, "threat")]]
    for limit in threats:
        if warning := limits.check_radius(limit, dataset.shape, dataset.name):
            notes.append(warning)
    defenses = [parse(text, "defense") for text in pick(request.defenses, "defenses")]
    attacks = [parse(text, "attack") for text in pick(request.attacks, "attacks")]
    controls = [Part("null"), Part("noise")] if request.sanity else []
    added = [control for control in controls if control not in attacks]
    attacks = list(dict.fromkeys([*controls, *attacks]))
    grads = [parse(text, "gradient") for text in (request.grads or grid.get("grads") or ["exact"])]
    seeds = request.seeds or grid.get("seeds") or [0]
    score_given = request.score is not None or "score" in grid
    lowered = _lowered(request, grid)
    if score:
        score = components.lowered(score, lowered)
    maker = _Maker(dataset, subset, classifier, score, score_given, images, defaults, notes, lowered)
    for limit, seed, defense, attack in itertools.product(threats, seeds, defenses, attacks):
        # A control that nobody asked for is no reason to refuse a threat model.
        if attack in added and not limits.knows(attack.name, limit):
            continue
        for gradient in maker.gradients(attack, grads):
            made = maker.cell(defense, gradient, attack, limit, seed)
            for one in (made.source, made) if made.source else (made,):
                stand_ins = maker.stand_ins(one.cell)
                job = Job(one.cell, images, evals, dataset.shape, dataset.size, one.origin, stand_ins)
                yield job, maker.missing(one.cell)
    if request.checks:
        asked = [attack for attack in attacks if attack not in controls]
        through = [gradient for gradient in grads if gradient.name in checks.THROUGH] or [Part("exact")]
        for limit, seed, defense in itertools.product(threats, seeds, defenses):
            for cell, origin in maker.checks(defense, asked, through[:1], limit, seed):
                some = checks.images(images)
                job = Job(cell, some, evals, dataset.shape, dataset.size, origin, maker.stand_ins(cell))
                yield job, maker.missing(cell)


def _lowered(request: Request, grid: Mapping[str, Any]) -> dict[str, Value]:
    """What the options say of every score model: the precision of its network, for the attack and for the judge."""
    asked = {
        "precision": request.precision or grid.get("precision"),
        "judge": request.judge_precision or grid.get("judge_precision"),
    }
    for option, word in zip(("--precision", "--judge-precision"), asked.values(), strict=True):
        if word is not None and word not in registry.PRECISIONS:
            raise unknown(f"word for `{option}`", word, registry.PRECISIONS)
    return {key: word for key, word in asked.items() if word is not None}


def _not_lowered(request: Request, cells: Iterable[Cell]) -> list[str]:
    """A line for the defenses that a precision says nothing of, since they have no score model. Raises UserError where none has one."""
    asked = {"--precision": request.precision, "--judge-precision": request.judge_precision}
    given = [f"{option} {word}" for option, word in asked.items() if word not in (None, "fp32")]
    without = sorted({str(cell.defense) for cell in cells if not cell.scores})
    if not given or not without:
        return []
    if all(not cell.scores for cell in cells):
        raise UserError(
            f"`{given[0]}`: {', '.join(without)} has no score model, whose network it is for",
            "leave it out; `purebench list defenses` says which use one",
        )
    return [f"note: {', '.join(given)}: not of {', '.join(without)}, which has no score model"]


@dataclass(frozen=True)
class _Made:
    """A cell, where its parameters came from, and for a transfer the same of the cell that makes its images."""

    cell: Cell
    origin: dict[str, str]
    source: _Made | None = None


@dataclass(frozen=True)
class _Defended:
    """A defense as asked for: resolved, with the score models that are at hand, used or not."""

    defense: Resolved
    origin: dict[str, str]
    models: list[Component]
    own: Value  # the parameter `score` as given, "" where the models are the run's


@dataclass
class _Maker:
    """Makes cells of one dataset, classifier and score model."""

    dataset: Component
    subset: str
    classifier: Component
    score: Component | None  # None: nobody named one
    score_given: bool  # asked for, and not the dataset's default
    images: int  # wanted
    defaults: dict[str, Any]  # the dataset's
    notes: list[str]
    lowered: dict[str, Value]  # what the options say of every score model
    # Cell id -> the score models at hand. A cell keeps only those that it uses, and a transfer hands on the others, too.
    models: dict[str, list[Component]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.models_by_text = {self.score.text: self.score} if self.score else {}

    def resolve(self, kind: str, part: Part) -> tuple[Resolved, dict[str, str]]:
        """The component with every parameter, and where each came from."""
        given = dict(part.parameters)
        name = registry.label(kind, part.name)
        of_dataset = self.defaults.get(kind, {}).get(name, {})
        # `--score` says on what to run everything, and so is above what the dataset has for one defense.
        if self.score_given:
            of_dataset = {k: v for k, v in of_dataset.items() if k != "score"}
        values = registry.validated(kind, part.name, of_dataset | given)
        known = registry.parameters(kind, part.name)
        usual = {k: registry.as_type(v, known[k]) for k, v in (known | of_dataset).items()}
        inner: tuple[Resolved, ...] = ()
        if (parts_of := registry.info(kind, part.name).get("parts")) is not None:
            inner = self.inner(part, values[parts_of])
            values[parts_of] = _written(inner)
            usual[parts_of] = _written(self.inner(part, usual[parts_of]))
        origin = {k: "given" if k in given else self.dataset.name if k in of_dataset else "default" for k in values}
        # On its dataset a dataset's value goes without saying: `coup:t=0.1` on digits is `coup`.
        canonical = Part(name, tuple((k, v) for k, v in values.items() if v != usual[k]))
        # Left out at their defaults, so that a new common parameter changes no cell's id.
        common = registry.COMMON.get(kind, {})
        own = {k: v for k, v in values.items() if k not in common}
        options = {k: v for k, v in values.items() if k in common and v != common[k]}
        found = Resolved(
            kind,
            canonical,
            registry.version(kind, part.name, own | options),
            own,
            options,
            info=registry.info(kind, part.name),
            unsaid=tuple(k for k in registry.added(kind, part.name) if own[k] == registry.as_type(known[k], known[k])),
            inner=inner,
        )
        return components.foreign(found, part.name, self.dataset.shape), origin

    def inner(self, attack: Part, given: Value) -> tuple[Resolved, ...]:
        """The attacks that an attack is made of. Raises UserError for those that cannot run on some images of a batch alone."""
        found = []
        for one in given if isinstance(given, tuple | list) else (given,):
            asked = one if isinstance(one, Part) else parse(show(one), "attack")
            info = registry.info("attack", asked.name) if asked.name in registry.names("attack") else {}
            why = next((why for key, why in NOT_INSIDE.items() if key in info), "")
            if asked.name in CONTROLS:
                why = "is a control, which attacks nothing"
            elif "from" in registry.parameters("attack", asked.name):
                why = "has images of another defense"
            elif not registry.is_ours("attack", asked.name):
                why = "is foreign code, whose draws may belong to a batch"
            if why:
                raise UserError(
                    f"`{attack.name}` cannot have `{asked}` inside: it {why}",
                    f"give it beside it: `-a {attack.name} -a {shlex.quote(str(asked))}`",
                )
            found.append(self.resolve("attack", asked)[0])
        return tuple(found)

    def usable(self, attack: Part) -> list[str]:
        """The gradients that an attack can use. Of one that is made of others: what all of those can that have a choice; else of the first
        that has one, its own."""
        info = registry.info("attack", attack.name)
        if "parts" not in info:
            return list(info.get("gradients", []))
        inner = [self.usable(_found_by_name(one)) for one in self.resolve("attack", attack)[0].inner]
        choosing = [names for names in inner if len(names) > 1]
        if not choosing:
            return next((names for names in inner if names), [])
        return [name for name in info["gradients"] if all(name in names for names in choosing)]

    def gradients(self, attack: Part, asked: list[Part]) -> list[Part]:
        """The gradients of `asked` that this attack can use; its only one, or none, whatever was asked."""
        # Of an unknown attack `info` would know nothing, and the message would be about the gradient.
        registry.parameters("attack", attack.name)
        # Also where the attack has but one: a typing error is told wherever it stands.
        for gradient in asked:
            registry.parameters("gradient", gradient.name)
        usable = self.usable(attack)
        if len(usable) <= 1:
            return [Part(usable[0]) if usable else NO_GRADIENT]
        for gradient in asked:
            if gradient.name not in usable:
                raise UserError(
                    f"`{attack.name}` cannot use the gradient `{gradient.name}`", f"it can use {', '.join(usable)}"
                )
        return asked

    def cell(self, defense: Part, gradient: Part, attack: Part, limit: ThreatModel, seed: int) -> _Made:
        """One entry of the grid. A transfer onto the defense that made the images is the attack that made them."""
        defended = self.defended(defense)
        differentiated = self.gradient(defended.defense, gradient)
        attacking, origin = self.resolve("attack", attack)
        attacking = self.given(attacking)
        self.check_needs(attacking, defended)
        source = self.source(attack, limit, seed, defended.own)
        # Images that were made without a ball are in none of a defense that they are carried to.
        limit = limits.threat_of(
            attacking, source.cell.threat if source and source.cell.threat.norm == spec.BOX else limit
        )
        self.check_limits(attacking, limit)
        for one in (attacking, *attacking.inner):
            limits.check_defense(one, defended.defense)
        if source:
            theirs = self.models[source.cell.id]
            same_models = [m.text for m in theirs] == [m.text for m in defended.models]
            if same_models and source.cell.defense == defended.defense:
                return dataclasses.replace(source, source=source)
            attacking = self.transfer(attacking, source.cell, [] if same_models else theirs)
        self.warn_of_coupling(defended.defense)
        surrogate = self.surrogate(defended.defense, differentiated) if differentiated.name == "surrogate" else None
        if surrogate:
            components.check_rotation(defended.models, surrogate.key)
            if registry.uses_score(surrogate.info) and not defended.models:
                self.scores(surrogate.key, "")
        # A surrogate may use the score model of a defense that needs none.
        uses_score = any(registry.uses_score(p.info) for p in (defended.defense, surrogate) if p)
        cell = Cell(
            dataset=self.dataset.resolved,
            subset=self.subset,
            classifier=self.classifier.resolved,
            scores=tuple(model.resolved for model in defended.models) if uses_score else (),
            defense=defended.defense,
            gradient=differentiated,
            surrogate=surrogate,
            attack=attacking,
            threat=limit if attacking.info.get("threat", True) else NONE,
            seed=seed,
            noise=NOISE_VERSION,
            source=source.cell if source else None,
        )
        cell = dataclasses.replace(cell, aliases=(aliases.of(cell, limit, defended.models),))
        self.models[cell.id] = defended.models
        origins = {f"defense.{k}": v for k, v in defended.origin.items()}
        origins |= {f"attack.{k}": v for k, v in origin.items()}
        return _Made(cell, origins, source)

    def checks(
        self, defense: Part, attacks: list[Part], grads: list[Part], limit: ThreatModel, seed: int
    ) -> Iterable[tuple[Cell, dict[str, str]]]:
        """The cells of `checks` for a defense, and where their parameters came from; none where nothing defends."""
        defended = self.defended(defense).defense
        base = checks.base(attacks)
        if defended.info.get("identity"):
            return
        if not limits.knows(base.name, limit):
            self.notes.append(f"note: `--sanity` has no checks under {limit}, which `{base.name}` does not know")
            return
        drawn = defended.info.get("random", True) and defended.options.get("noise", 1.0) != 0
        for extra in checks.planned(self.resolve("attack", base)[0], base.name, limit, self.dataset.shape):
            if extra.fixed and not drawn:
                continue
            fixed = Part(defense.name, tuple((dict(defense.parameters) | {"noise": 0.0}).items()))
            try:
                [gradient] = self.gradients(extra.attack, grads)
                made = self.cell(fixed if extra.fixed else defense, gradient, extra.attack, extra.threat, seed)
            except UserError as why:
                # Nobody asked for it: no reason to refuse what was asked for.
                self.notes.append(f"note: `--sanity` does without `{extra.attack}` ({extra.threat}): {why.message}")
                continue
            yield made.cell, made.origin

    def check_limits(self, attack: Resolved, limit: ThreatModel) -> None:
        """Raises UserError for an attack that cannot run on these images, or with so few classes."""
        # The dataset's are the classifier's, where both are known.
        of = self.dataset if self.dataset.classes else self.classifier
        for one in attack.inner:
            limits.within(one, limit, attack.name)
        for one in (attack, *attack.inner):
            limits.check(one, limit, self.dataset.shape, of.classes, of.name)

    @staticmethod
    def check_needs(attack: Resolved, defended: _Defended) -> None:
        """Raises UserError for an attack that follows the score of a defense without a score model."""
        has_score = registry.uses_score(defended.defense.info) and defended.models
        if "score" in attack.info.get("needs", []) and not has_score:
            raise UserError(
                f"`{attack}` follows the score that a defense purifies by, and `{defended.defense}` has none",
                "attack it with `-a bpda-eot`, or leave the defense out",
            )

    def given(self, attack: Resolved) -> Resolved:
        """An attack whose images exist already, known by their content; the file that holds them is no part of the cell."""
        key = attack.info.get("images", "")
        if not key:
            return attack
        where = attack.values[key]
        if not where:
            raise UserError(f"`{attack}` does not say where its images are", f"write {attack.name}:{key}=FILE")
        found = given.read(where, self.dataset.resolved, self.dataset.shape, self.dataset.size, self.subset)
        if len(found) < self.images:
            raise UserError(
                f"`{where}` has {len(found)} images, and {self.images} are wanted: those that are missing would have no number",
                f"`--images {len(found)}`, or attack all of them",
            )
        return dataclasses.replace(
            attack,
            part=_without(attack.part, (key,)),
            values={k: v for k, v in attack.values.items() if k != key},
            digest=found.digest,
            where={key: where},
        )

    def warn_of_coupling(self, defense: Resolved) -> None:
        for key, value in defense.info.get("couples", {}).items():
            if defense.values.get(key) == value:
                self.notes.append(
                    f"warning: `{defense}` couples the images of a batch, as published: its numbers depend on --rows and on "
                    "the batch mates"
                )

    def defended(self, part: Part) -> _Defended:
        """The defense with the score models that it runs on: its own, else the run's."""
        found, origin = self.resolve("defense", part)
        models = self.scores(found.key, found.options.get("score", ""))
        # The cell has the models themselves, so that `coup:score=NAME` and `-d coup --score NAME` are one.
        options = {k: v for k, v in found.options.items() if k != "score"}
        found = dataclasses.replace(found, part=_without(found.part, ("score",)), options=options)
        return _Defended(found, origin, models, part.get("score", ""))

    def transfer(self, attack: Resolved, source: Cell, models: list[Component]) -> Resolved:
        """A transfer under the name of what made its images; models: their score models where these are not the defense's, else none."""
        other = source.defense.part
        if models:
            other = Part(other.name, (*other.parameters, ("score", rotation([m.resolved for m in models]))))
        usual = self.resolve("attack", parse(_usual(attack.name), "attack"))[0].part
        named: list[tuple[str, Value]] = [("from", other)]
        if source.attack.part != usual:
            named.append(("attack", source.attack.part))
        values = {**attack.values, "from": other, "attack": source.attack.part}
        return dataclasses.replace(attack, part=Part(attack.name, tuple(named)), values=values)

    def scores(self, defense: str, own: Value) -> list[Component]:
        """The score models of a defense: its own, else the run's. UserError where the dataset's default would take the place of its
        paper's, and for two files of one name: their cells would look alike."""
        if own == "":
            known = registry.info("defense", defense)
            if self.score is None:
                if registry.uses_score(known):
                    raise UserError(
                        f"`{defense}` runs on a score model, and {self.dataset.name} has no default one",
                        "give `--score`",
                    )
                return []
            papers = known.get("own_score")
            if papers and not self.score_given:
                raise UserError(
                    f"`{defense}` has a score model of its own ({papers}), and none is known for {self.dataset.name}",
                    f"say on which to run it: `--score {shlex.quote(self.score.text)}`, the dataset's default, or another",
                )
            return [self.score]
        asked = [components.of("score", part) for part in parts(show(own), "score")]
        found = [components.lowered(model, self.lowered) for model in asked]
        components.check_rotation(found, defense)
        for model in found:
            components.check_fit(self.dataset, self.classifier, model)
            self.notes += [OfWeights(model.passed_over)] if model.passed_over else []
            if self.models_by_text.setdefault(model.text, model).digest != model.digest:
                raise UserError(
                    f"two different files are called `{model.text}`", "give them names: path=FILE,name=NAME"
                )
        return found

    def loaded(self, cell: Cell) -> list[Component]:
        """What this cell loads."""
        return [self.dataset, self.classifier, *(self.models[cell.id] if cell.scores else [])]

    def missing(self, cell: Cell) -> list[str]:
        """Assets that this cell needs and the cache has not."""
        return [asset for component in self.loaded(cell) for asset in component.missing]

    def stand_ins(self, cell: Cell) -> tuple[str, ...]:
        """What its numbers are of in place of a paper's own: with a transfer, also what its images were made on."""
        used = self.loaded(cell) + (self.loaded(cell.source) if cell.source else [])
        return tuple(dict.fromkeys(name for component in used if (name := component.stand_in(self.dataset))))

    def gradient(self, defense: Resolved, gradient: Part) -> Resolved:
        """The gradient in the form that equal cells share: what makes no difference for this defense is left out."""
        if gradient == NO_GRADIENT:
            return Resolved("gradient", gradient, 0)
        # A surrogate's parameters are those of a defense, and checked as such.
        if gradient.name != "surrogate":
            registry.check_parameters("gradient", gradient.name, dict(gradient.parameters))
        # Every gradient of the identity is the exact one.
        if defense.info.get("identity"):
            return self.gradient_of(Part("exact"))
        method = gradients.of(gradient)
        method.applies(defense.part, defense.info)
        return self.gradient_of(method.canonical(_found_by(defense), defense.info, self.purifier))

    @staticmethod
    def gradient_of(part: Part) -> Resolved:
        """part: with the names by which a registry finds its components; a cell has those that it shows."""
        shown = {k: _shown("defense", v) if isinstance(v, Part) else v for k, v in part.parameters}
        named = Part(part.name, tuple(shown.items()))
        version = registry.version("gradient", part.name, registry.parameters("gradient", part.name) | shown)
        return Resolved("gradient", named, version, target=str(part) if named != part else "")

    def purifier(self, part: Part) -> tuple[Part, Mapping[str, Value]]:
        """A purifier that a gradient walks: canonical, and every parameter. UserError for parameters that belong to a defense."""
        for key, _ in part.parameters:
            if key in registry.COMMON["defense"]:
                raise UserError(f"`{key}` of `surrogate` belongs to the defense, not to a purifier", "leave it out")
        found = self.resolve("defense", part)[0]
        return _found_by(found), found.values

    def surrogate(self, defense: Resolved, gradient: Resolved) -> Resolved:
        """The purifier that a canonical surrogate gradient differentiates; it runs on the defense's score models."""
        asked = parse(gradient.target, "gradient") if gradient.target else gradient.part
        other = gradients.Surrogate(dict(asked.parameters)).purifier(_found_by(defense))
        found = self.resolve("defense", other)[0]
        return dataclasses.replace(found, kind="surrogate", part=_purifier(found.part), options={})

    def source(self, attack: Part, limit: ThreatModel, seed: int, score: Value) -> _Made | None:
        """The cell whose images a transfer attack reads. score: what the attacked defense was given as its own, which holds for the
        source, too, unless that has its own, or cannot rotate; an energy, on which few purifiers run, is not handed on."""
        if "from" not in registry.parameters("attack", attack.name):
            return None
        given = self.defaults.get("attack", {}).get(attack.name, {}) | dict(attack.parameters)
        if "from" not in given:
            raise UserError(
                f"`{attack}` does not say from where",
                "write transfer:from=(DEFENSE), such as transfer:from=(reverse-sde)",
            )
        # A name without parameters comes as a word, from=none even as no value, which `show` writes as the word again.
        defense, other = given["from"], given.get("attack", _usual(attack.name))
        defense = defense if isinstance(defense, Part) else parse(show(defense), "defense")
        other = other if isinstance(other, Part) else parse(show(other), "attack")
        if score != "" and defense.get("score", "") == "" and _hands_on(score, defense):
            defense = Part(defense.name, (*defense.parameters, ("score", score)))
        if "from" in registry.parameters("attack", other.name):
            raise UserError(
                f"`{attack}` transfers a transfer", "name the attack that makes the images, such as attack=(pgd-eot)"
            )
        if registry.info("attack", other.name).get("images"):
            raise UserError(
                f"`{attack}` transfers images that are here already",
                f"give them to the defense itself: `-a {shlex.quote(str(other))}`",
            )
        return self.cell(defense, self.gradients(other, [Part("exact")])[0], other, limit, seed)


# What INFO says of attacks that no other can be made of -> why not.
NOT_INSIDE = {
    "parts": "is made of attacks itself",
    "images": "has images that are here already",
    "unit": "draws for a batch, and the images that it would get are those that are left of one",
}


def _written(inner: tuple[Resolved, ...]) -> Value:
    """Attacks as the value of a parameter: names, and (PARTS)."""
    return tuple(one.part if one.part.parameters else one.name for one in inner)


def _found_by_name(attack: Resolved) -> Part:
    return Part(attack.key, attack.part.parameters)


def _usual(transfer: str) -> str:
    """The attack that makes a transfer's images unless it says which."""
    return str(registry.parameters("attack", transfer)["attack"])


def _hands_on(score: Value, defense: Part) -> bool:
    """Whether the score models of an attacked defense may be those of a transfer's source, too."""
    if any(registry.info("score", model.name).get("energy") for model in parts(show(score), "score")):
        return False
    return not isinstance(score, tuple) or bool(registry.info("defense", defense.name).get("rotates"))


def _without(part: Part, keys: Container[str]) -> Part:
    return Part(part.name, tuple((k, v) for k, v in part.parameters if k not in keys))


def _found_by(defense: Resolved) -> Part:
    """Its purifier under the name by which the registry finds it."""
    return Part(defense.key, _purifier(defense.part).parameters)


def _shown(kind: str, part: Part) -> Part:
    """A part under the name that a cell shows."""
    return Part(registry.label(kind, part.name), part.parameters)


def _purifier(defense: Part) -> Part:
    """A defense without what belongs to every defense."""
    return _without(defense, registry.COMMON["defense"])
