"""From what the user asked for to an ordered list of validated cells, before anything runs. Torch-free.

A value comes from the command line, else the grid or preset, else the dataset's defaults, else the factory.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purebench import assets, datasets, registry
from purebench.engine import gradients
from purebench.errors import UserError, unknown
from purebench.plan import aliases, layouts
from purebench.plan import resolved as components
from purebench.plan.resolved import Component
from purebench.spec import NONE, Cell, Part, Resolved, ThreatModel, Value, parse, parts, rotation, show, threat

NOISE_VERSION = 1  # of noise.py: raised when a draw changes
NO_GRADIENT = Part("-")
PRESETS = Path(__file__).parent / "presets"
KEYS = {
    "summary": str, "dataset": str, "classifier": str, "score": str, "defenses": list, "attacks": list, "threats": list,
    "grads": list, "seeds": list, "images": int, "evals": int, "subset": (str, int), "grid": list,
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
    sanity: bool = False  # add the controls
    honest: bool = False  # of a paper's table: our columns beside its own
    baselines: bool = False  # of a paper's table: the quoted rows whose classifier can be had, too
    only: tuple[str, ...] = ()  # of a paper's table: rows with one of these words


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


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]
    notes: list[str]  # one line each, for stderr
    missing: list[str] = field(default_factory=list)  # assets that are not in the cache


def build(request: Request) -> Plan:
    """Validates everything that can be known without running; raises UserError for the first thing that is wrong."""
    grids, notes, request = _grids(request)
    jobs: dict[str, Job] = {}
    missing: dict[str, None] = {}
    known: dict[str, Component] = {}
    for grid in grids:
        name = _dataset(request, grid, notes)
        if name not in known:
            known[name] = components.find("dataset", name)
        dataset = known[name]
        for job, absent in _cells(request, grid, dataset, notes):
            old = jobs.get(job.cell.id)
            if old:  # cells that would be equal are one; the larger demand counts
                # Both had records under other ids before; whichever lies on disk is gone on with.
                names = tuple(dict.fromkeys([*old.cell.aliases, *job.cell.aliases]))
                cell = dataclasses.replace(old.cell, aliases=names)
                job = dataclasses.replace(
                    old, cell=cell, images=max(old.images, job.images), evals=max(old.evals, job.evals)
                )
            jobs[job.cell.id] = job
            missing |= dict.fromkeys(absent)
    stand_ins = dict.fromkeys(name for job in jobs.values() for name in job.stand_in)
    if stand_ins:
        notes.append(f"warning: not paper-comparable, for what stands in: {'; '.join(stand_ins)}")
    return Plan(list(jobs.values()), list(dict.fromkeys(notes)), list(missing))


def jobs(one: dict[str, Any]) -> list[Job]:
    """The jobs of a grid of one cell, one per seed, without the cells that a transfer reads."""
    dataset = components.find("dataset", _dataset(Request(), one, []))
    found = [job for job, _ in _cells(Request(), one, dataset, [])]
    sources = {job.cell.source for job in found}
    return [job for job in found if job.cell not in sources] or found


def presets() -> dict[str, Path]:
    """Grids by name, and the papers' tables as `coup/1`."""
    grids = {p.stem: p for p in sorted(PRESETS.glob("*.toml"))}
    return grids | {f"{p.parent.name}/{p.stem}": p for p in sorted(PRESETS.glob("*/*.toml"), key=_by_number)}


def tables() -> dict[str, Path]:
    """The papers' tables among the presets."""
    return {name: path for name, path in presets().items() if "/" in name}


def _by_number(path: Path) -> tuple[str, int, str]:
    """`coup/2` before `coup/10`."""
    return path.parent.name, int(path.stem) if path.stem.isdigit() else 1000, path.stem


def read(name: str) -> tuple[str, dict[str, Any]]:
    """A preset by its name, or a file: the name that it is shown by, and its TOML. Raises UserError if there is none, or it is no TOML."""
    path = Path(name) if name.endswith(".toml") else presets().get(name)
    if path is None:
        raise unknown("preset", name, presets(), see="purebench list presets")
    try:
        return path.stem if name.endswith(".toml") else name, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no grid file `{path}`", "a grid is a TOML file; see `purebench show quick` for one"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"cannot read the grid `{path}`: {error}", "a grid is a TOML file; see `purebench show quick` for one"
        ) from None


def _grids(request: Request) -> tuple[list[dict[str, Any]], list[str], Request]:
    """The grids of the preset or file, each completed by its top level, what to say of them, and what of the request is left to win over
    them. One empty grid when only options were given; of a paper's table one for each of its cells, which have the options already."""
    name = request.preset
    if name is None:
        # `purebench run` alone means `quick`; one option, and the user has something else in mind.
        if request.defenses or request.attacks:
            _no_table_options(request)
            return [{}], [], request
        name = "quick"
    path = name
    name, data = read(path)
    if layouts.is_layout(data):
        layout = layouts.of(data, name)
        return layouts.grids(layout, request), [f"table `{name}`: {layout.summary}"], Request(sanity=request.sanity)
    _no_table_options(request)
    top = {k: v for k, v in data.items() if k != "grid"}
    tables = data.get("grid", [{}])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise UserError(f"`grid` in `{path}` is not a list of tables", "write `[[grid]]`")
    grids = [top | t for t in tables]
    for grid in grids:
        for key, value in grid.items():
            if key not in KEYS:
                raise unknown(f"key in `{path}`", key, KEYS)
            kind = int if key == "seeds" else str
            items = value if isinstance(value, list) else []
            if not all(isinstance(v, kind) and not isinstance(v, bool) for v in items) or value == []:
                what = "whole numbers" if kind is int else "names"
                raise UserError(
                    f"`{key} = {value!r}` in `{path}` is no list of {what}", "see `purebench show quick` for a grid"
                )
            if not isinstance(value, KEYS[key]) or isinstance(value, bool):  # type: ignore[arg-type]
                raise UserError(
                    f"`{key} = {value!r}` in `{path}` has the wrong type", "see `purebench show quick` for a grid"
                )
    return grids, [f"preset `{name}`: {top['summary']}"] if "summary" in top else [], request


def _no_table_options(request: Request) -> None:
    for option, given in (("--honest", request.honest), ("--baselines", request.baselines), ("--only", request.only)):
        if given:
            raise UserError(
                f"`{option}` chooses of a paper's table, and this is none", "name one: `purebench list presets`"
            )


def _dataset(request: Request, grid: dict[str, Any], notes: list[str]) -> str:
    given = request.dataset or grid.get("dataset")
    if given is not None:
        return given
    needed = assets.sets().get("cifar10", [])
    absent = [name for name in needed if not assets.present(name)]
    if needed and not absent:
        notes.append("dataset: CIFAR-10 (`--dataset` was not given, and its files are in the cache)")
        return "cifar10"
    some = f"; {', '.join(absent)} missing" if len(absent) < len(needed) else ""
    notes.append(
        f"dataset: the embedded digits (`--dataset` was not given, and CIFAR-10 is not in the cache{some}: `purebench fetch cifar10`)"
    )
    return "digits"


def _cells(
    request: Request, grid: dict[str, Any], dataset: Component, notes: list[str]
) -> Iterable[tuple[Job, list[str]]]:
    """Jobs, each with the assets that it needs and the cache has not."""
    defaults = datasets.defaults(dataset.base)

    def pick(option: Any, key: str) -> Any:
        value = option if option not in (None, ()) else grid.get(key, defaults.get(key))
        if value is None:
            raise UserError(f"the dataset `{dataset.name}` has no default {key}", f"give `--{key}`")
        return value

    images, evals = pick(request.images, "images"), pick(request.evals, "evals")
    subset = pick(request.subset, "subset")
    subset = datasets.valid(subset if isinstance(subset, str) else f"choice:{subset}")
    size = datasets.capacity(dataset.size, subset)
    # A default may be more than there is; what somebody asked for is refused below.
    if request.images is None and "images" not in grid:
        images = min(images, size)
    if not 1 <= images <= size:
        what = dataset.name if size == dataset.size else f"the subset `{subset}` of {dataset.name}"
        raise UserError(f"`--images {images}` is not possible: {what} has {size} test images", f"choose 1 to {size}")
    if evals < 1:
        raise UserError(f"`--evals {evals}`: every image is judged at least once", "the default is 10")
    classifier = components.find("classifier", pick(request.classifier, "classifier"))
    score = components.find("score", pick(request.score, "score"))
    components.check_fit(dataset, classifier, score)
    threats = [threat(t) for t in request.threats or grid.get("threats") or [pick(None, "threat")]]
    asked = {
        kind: [parse(text, kind) for text in pick(given, f"{kind}s")]
        for kind, given in (("defense", request.defenses), ("attack", request.attacks))
    }
    if request.sanity:
        asked["attack"] = list(dict.fromkeys([Part("null"), Part("noise"), *asked["attack"]]))
    grads = [parse(text, "gradient") for text in (request.grads or grid.get("grads") or ["exact"])]
    seeds = request.seeds or grid.get("seeds") or [0]
    # A score model that was asked for wins over the dataset's choice for single defenses; a default does not.
    chosen = request.score is not None or "score" in grid
    maker = _Maker(dataset, subset, classifier, score, chosen, defaults, notes)
    for limit in threats:
        for seed in seeds:
            for defense in asked["defense"]:
                for attack in asked["attack"]:
                    for gradient in maker.gradients(attack, grads):
                        made = maker.cell(defense, gradient, attack, limit, seed)
                        for one in (made.source, made) if made.source else (made,):
                            stand_in, missing = maker.stand_in_for(one.cell), maker.missing(one.cell)
                            yield (
                                Job(one.cell, images, evals, dataset.shape, dataset.size, one.origin, stand_in),
                                missing,
                            )


@dataclass(frozen=True)
class _Made:
    """A cell, where its parameters came from, and for a transfer the same of the cell that makes its images."""

    cell: Cell
    origin: dict[str, str]
    source: _Made | None = None


@dataclass(frozen=True)
class _Defended:
    """A defense as asked for: resolved, with its score models, and which of them a purifier of the cell uses."""

    defense: Resolved
    origin: dict[str, str]
    models: list[Component]
    own: Value  # the score models that it was given as its own


class _Maker:
    """Makes cells of one dataset, classifier and score model."""

    def __init__(
        self, dataset: Component, subset: str, classifier: Component, score: Component, chosen: bool, defaults: dict[str, Any],
        notes: list[str],
    ):  # fmt: skip
        self.dataset, self.subset, self.classifier, self.score = dataset, subset, classifier, score
        self.chosen = chosen  # `score` was asked for, and is not the dataset's default
        self.defaults, self.notes = defaults, notes
        self.loaded: dict[str, list[Component]] = {}  # of every cell made: the score models that its purifiers use
        self.models: dict[str, list[Component]] = {}  # the same, with those that are at hand and not used
        self.known = {score.text: score}  # by name

    def resolve(self, kind: str, part: Part) -> tuple[Resolved, dict[str, str]]:
        """The component with every parameter, and where each came from."""
        given = dict(part.parameters)
        known = registry.parameters(kind, part.name)
        registry.check_parameters(kind, part.name, given)
        of_dataset = self.defaults.get(kind, {}).get(part.name, {})
        # Else `--score X` would be run on everything but the defenses that the dataset knows.
        if self.chosen:
            of_dataset = {k: v for k, v in of_dataset.items() if k != "score"}
        defaults = known | of_dataset
        typed = {k: registry.as_type(v, known[k]) for k, v in (defaults | given).items()}
        base = {k: registry.as_type(v, known[k]) for k, v in defaults.items()}
        registry.check_ranges(kind, part.name, typed)
        origin = {k: "given" if k in given else self.dataset.name if k in of_dataset else "default" for k in typed}
        # Short, and equal for all ways to say it: only what differs from this dataset's defaults.
        canonical = Part(part.name, tuple((k, v) for k, v in typed.items() if v != base[k]))
        common = registry.COMMON.get(kind, {})  # left out at their defaults, so that a new one changes no cell
        own = {k: v for k, v in typed.items() if k not in common}
        options = {k: v for k, v in typed.items() if k in common and v != common[k]}
        version = registry.version(kind, part.name, own | options)
        return Resolved(kind, canonical, version, own, options, info=registry.info(kind, part.name)), origin

    def gradients(self, attack: Part, asked: list[Part]) -> list[Part]:
        """The gradients of `asked` that this attack can use; its only one, or none, whatever was asked."""
        registry.parameters("attack", attack.name)  # an unknown attack is told as one
        can = registry.info("attack", attack.name).get("gradients", [])
        if len(can) <= 1:
            return [Part(can[0]) if can else NO_GRADIENT]
        for gradient in asked:
            registry.parameters("gradient", gradient.name)
            if gradient.name not in can:
                raise UserError(
                    f"`{attack.name}` cannot use the gradient `{gradient.name}`", f"it can use {', '.join(can)}"
                )
        return asked

    def cell(self, defense: Part, gradient: Part, attack: Part, limit: ThreatModel, seed: int) -> _Made:
        """One entry of the grid. A transfer onto the defense that made the images is the attack that made them."""
        defended = self.defended(defense)
        taken = self.gradient(defended.defense, gradient)
        source = self.source(attack, limit, seed, defended.own)
        if source and _same(source.cell, defended.defense, self.models[source.cell.id], defended.models):
            return dataclasses.replace(source, source=source)
        for key, value in defended.defense.info.get("couples", {}).items():
            if defended.defense.values.get(key) == value:
                self.notes.append(
                    f"warning: `{defended.defense}` couples the images of a batch, as published: its numbers depend on --rows and on "
                    "the batch mates"
                )
        made, origin = self.resolve("attack", attack)
        if source:
            made = self.transfer(made, source.cell, defended.models)
        surrogate = self.surrogate(defended.defense, taken) if taken.name == "surrogate" else None
        if surrogate:
            components.check_rotation(defended.models, surrogate.name)
        used = [p for p in (defended.defense, surrogate) if p and registry.uses_score(p.info)]
        cell = Cell(
            self.dataset.resolved, self.subset, self.classifier.resolved,
            tuple(model.resolved for model in defended.models) if used else (), defended.defense, taken, surrogate, made,
            limit if made.info.get("threat", True) else NONE, seed, NOISE_VERSION, source.cell if source else None,
        )  # fmt: skip
        cell = dataclasses.replace(cell, aliases=(aliases.of(cell, limit, defended.models),))
        self.models[cell.id], self.loaded[cell.id] = defended.models, defended.models if used else []
        origins = {f"defense.{k}": o for k, o in defended.origin.items()} | {
            f"attack.{k}": o for k, o in origin.items()
        }
        return _Made(cell, origins, source)

    def defended(self, part: Part) -> _Defended:
        """The defense with the score models that it runs on: its own, else the run's."""
        found, origin = self.resolve("defense", part)
        models = self.scores(found.name, found.options.get("score", ""))
        options = {k: v for k, v in found.options.items() if k != "score"}  # the cell has the models themselves
        canonical = Part(found.name, tuple((k, v) for k, v in found.part.parameters if k != "score"))
        found = dataclasses.replace(found, part=canonical, options=options)
        return _Defended(found, origin, models, part.get("score", ""))

    def transfer(self, attack: Resolved, source: Cell, models: list[Component]) -> Resolved:
        """A transfer under the name of what made its images, with their score models where these are not the defense's."""
        other = source.defense.part
        theirs = self.models[source.id]
        if [m.text for m in theirs] != [m.text for m in models]:
            other = Part(other.name, (*other.parameters, ("score", rotation([m.resolved for m in theirs]))))
        usual = self.resolve("attack", parse(_usual(attack.name), "attack"))[0].part
        named: list[tuple[str, Value]] = [("from", other)]
        named += [("attack", source.attack.part)] if source.attack.part != usual else []
        values = {**attack.values, "from": other, "attack": source.attack.part}
        return dataclasses.replace(attack, part=Part(attack.name, tuple(named)), values=values)

    def scores(self, defense: str, own: Value) -> list[Component]:
        """The score models of a defense: its own, else the run's. UserError where the dataset's default would take the place of its
        paper's, and for two files of one name: their cells would look alike."""
        if own == "":
            papers = registry.info("defense", defense).get("own_score")
            if papers and not self.chosen:
                raise UserError(
                    f"`{defense}` has a score model of its own ({papers}), and none is known for {self.dataset.name}",
                    f"say on which to run it: `--score {self.score.text}`, the dataset's default, or another",
                )
            return [self.score]
        found = [components.of("score", part) for part in parts(show(own), "score")]
        components.check_rotation(found, defense)
        for model in found:
            components.check_fit(self.dataset, self.classifier, model)
            if self.known.setdefault(model.text, model).digest != model.digest:
                raise UserError(
                    f"two different files are called `{model.text}`", "give them names: path=FILE,name=NAME"
                )
        return found

    def used(self, cell: Cell) -> list[Component]:
        """What this cell loads."""
        return [self.dataset, self.classifier, *self.loaded[cell.id]]

    def missing(self, cell: Cell) -> list[str]:
        """Assets that this cell needs and the cache has not."""
        return [name for c in self.used(cell) for name in c.missing]

    def stand_in_for(self, cell: Cell) -> tuple[str, ...]:
        """What its numbers are of in place of a paper's own: with a transfer, also what its images were made on."""
        of = [*self.used(cell), *(self.loaded[cell.source.id] if cell.source else [])]
        return tuple(dict.fromkeys(name for c in of if (name := c.stand_in(self.dataset))))

    def gradient(self, defense: Resolved, gradient: Part) -> Resolved:
        """The gradient in the form that equal cells share: what makes no difference for this defense is left out."""
        if gradient == NO_GRADIENT:
            return Resolved("gradient", gradient, 0)
        if gradient.name != "surrogate":  # whose parameters are the defense's
            registry.check_parameters("gradient", gradient.name, dict(gradient.parameters))
        if defense.info.get("identity"):  # every gradient of the identity is exact
            return self.gradient_of(Part("exact"))
        way = gradients.of(gradient)
        way.applies(defense.part, defense.info)
        return self.gradient_of(way.canonical(_purifier(defense.part), defense.info, self.purifier))

    @staticmethod
    def gradient_of(part: Part) -> Resolved:
        values = registry.parameters("gradient", part.name) | dict(part.parameters)
        return Resolved("gradient", part, registry.version("gradient", part.name, values))

    def purifier(self, part: Part) -> tuple[Part, Mapping[str, Value]]:
        """A purifier that a gradient walks: canonical, and every parameter. UserError for parameters that belong to a defense."""
        for key, _ in part.parameters:
            if key in registry.COMMON["defense"]:
                raise UserError(f"`{key}` of `surrogate` belongs to the defense, not to a purifier", "leave it out")
        found = self.resolve("defense", part)[0]
        return _purifier(found.part), found.values

    def surrogate(self, defense: Resolved, gradient: Resolved) -> Resolved:
        """The purifier that a canonical surrogate gradient differentiates; it runs on the defense's score models."""
        other = gradients.Surrogate(dict(gradient.part.parameters)).purifier(_purifier(defense.part))
        found = self.resolve("defense", other)[0]
        return dataclasses.replace(found, kind="surrogate", part=_purifier(found.part), options={})

    def source(self, attack: Part, limit: ThreatModel, seed: int, score: Value) -> _Made | None:
        """The cell whose images a transfer attack reads. score: what the attacked defense was given as its own, which holds for the
        source, too, unless that has its own, or cannot rotate; an energy, on which few purifiers run, is not handed on."""
        if "from" not in registry.parameters("attack", attack.name):
            return None
        given = self.defaults.get("attack", {}).get(attack.name, {}) | dict(attack.parameters)
        registry.check_parameters("attack", attack.name, dict(attack.parameters))
        defense, other = given.get("from"), given.get("attack", _usual(attack.name))
        if "from" not in given:
            raise UserError(
                f"`{attack}` does not say from where",
                "write transfer:from=(DEFENSE), such as transfer:from=(reverse-sde)",
            )
        defense = defense if isinstance(defense, Part) else parse(show(defense), "defense")
        other = other if isinstance(other, Part) else parse(str(other), "attack")
        energy = score != "" and any(registry.info("score", p.name).get("energy") for p in parts(show(score), "score"))
        can = not energy and (not isinstance(score, tuple) or registry.info("defense", defense.name).get("rotates"))
        if score != "" and can and defense.get("score", "") == "":
            defense = Part(defense.name, (*defense.parameters, ("score", score)))
        if "from" in registry.parameters("attack", other.name):
            raise UserError(
                f"`{attack}` transfers a transfer", "name the attack that makes the images, such as attack=(pgd-eot)"
            )
        return self.cell(defense, self.gradients(other, [Part("exact")])[0], other, limit, seed)


def _usual(transfer: str) -> str:
    """The attack that makes a transfer's images unless it says which."""
    return str(registry.parameters("attack", transfer)["attack"])


def _same(source: Cell, defense: Resolved, theirs: list[Component], ours: list[Component]) -> bool:
    """Whether a transfer's images were made on the very defense that it attacks."""
    return source.defense == defense and [m.text for m in theirs] == [m.text for m in ours]


def _purifier(defense: Part) -> Part:
    """A defense without what belongs to every defense."""
    return Part(defense.name, tuple((k, v) for k, v in defense.parameters if k not in registry.COMMON["defense"]))
