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
from purebench.errors import UserError, unknown
from purebench.plan import resolved as components
from purebench.plan.resolved import Component
from purebench.spec import Cell, Part, ThreatModel, Value, parse, parts, show, threat

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


@dataclass(frozen=True)
class Job:
    """A cell and how much of it is wanted. `origin`: parameter -> where its value came from."""

    cell: Cell
    images: int
    evals: int
    origin: dict[str, str] = field(default_factory=dict, compare=False)
    stand_in: tuple[str, ...] = ()  # what takes the place of a paper's own network or data


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]
    dataset: str
    notes: list[str]  # one line each, for stderr
    shape: list[int]
    size: int = 0  # images of the dataset
    missing: list[str] = field(default_factory=list)  # assets that are not in the cache


def build(request: Request) -> Plan:
    """Validates everything that can be known without running; raises UserError for the first thing that is wrong."""
    grids, notes = _grids(request)
    jobs: dict[str, Job] = {}
    missing: dict[str, None] = {}
    for grid in grids:
        dataset = components.find("dataset", _dataset(request, grid, notes))
        for job, absent in _cells(request, grid, dataset, notes):
            old = jobs.get(job.cell.id)
            if old:  # cells that would be equal are one; the larger demand counts
                job = dataclasses.replace(old, images=max(old.images, job.images), evals=max(old.evals, job.evals))
            jobs[job.cell.id] = job
            missing |= dict.fromkeys(absent)
    stand_ins = dict.fromkeys(name for job in jobs.values() for name in job.stand_in)
    if stand_ins:
        notes.append(f"warning: not paper-comparable, for what stands in: {'; '.join(stand_ins)}")
    if any((job.cell.dataset, job.cell.hashes["dataset"]) != (dataset.text, dataset.digest) for job in jobs.values()):
        raise UserError("a plan has one dataset, and this grid names several", "make a grid file for each")
    return Plan(
        list(jobs.values()), dataset.text, list(dict.fromkeys(notes)), dataset.shape, dataset.size, list(missing)
    )


def presets() -> dict[str, Path]:
    return {p.stem: p for p in sorted(PRESETS.glob("*.toml"))}


def _grids(request: Request) -> tuple[list[dict[str, Any]], list[str]]:
    """The grids of the preset or file, each completed by its top level; one empty grid when only options were given."""
    name = request.preset
    if name is None:
        if request.defenses or request.attacks:
            return [{}], []
        name = "quick"
    path = Path(name) if name.endswith(".toml") else presets().get(name)
    if path is None:
        raise unknown("preset", name, presets(), see="purebench list presets")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no grid file `{path}`", "a grid is a TOML file; see `purebench show quick` for one"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"cannot read the grid `{path}`: {error}", "a grid is a TOML file; see `purebench show quick` for one"
        ) from None
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
    return grids, [f"preset `{name}`: {top['summary']}"] if "summary" in top else []


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
    defaults = datasets.defaults(dataset.name)

    def pick(option: Any, key: str) -> Any:
        value = option if option not in (None, ()) else grid.get(key, defaults.get(key))
        if value is None:
            raise UserError(f"the dataset `{dataset.name}` has no default {key}", f"give `--{key}`")
        return value

    images, evals = pick(request.images, "images"), pick(request.evals, "evals")
    subset = pick(request.subset, "subset")
    subset = datasets.valid(subset if isinstance(subset, str) else f"choice:{subset}")
    size = datasets.capacity(dataset.size, subset)
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
    chosen = request.score is not None or "score" in grid
    maker = _Maker(dataset, subset, classifier, score, chosen, defaults, notes)
    for limit in threats:
        for seed in seeds:
            for defense in asked["defense"]:
                for attack in asked["attack"]:
                    for gradient in maker.gradients(attack, grads):
                        cell, origin, source = maker.cell(defense, gradient, attack, limit, seed)
                        if source and source[0].id != cell.id:
                            yield (
                                Job(source[0], images, evals, source[1], maker.stand_in_for(source[0])),
                                maker.missing(source[0]),
                            )
                        yield Job(cell, images, evals, origin, maker.stand_in_for(cell)), maker.missing(cell)


class _Maker:
    """Makes cells of one dataset, classifier and score model."""

    def __init__(
        self, dataset: Component, subset: str, classifier: Component, score: Component, chosen: bool, defaults: dict[str, Any],
        notes: list[str],
    ):  # fmt: skip
        self.dataset, self.subset, self.classifier, self.score = dataset, subset, classifier, score
        self.chosen = chosen  # `score` was asked for, and is not the dataset's default
        self.defaults, self.notes = defaults, notes
        self.models: dict[str, list[Component]] = {}  # of every cell made: its score models
        self.loaded: dict[str, list[Component]] = {}  # the same, without those that no purifier of the cell uses
        self.known = {score.text: score}  # by name

    def resolve(self, kind: str, part: Part) -> tuple[Part, dict[str, Value], dict[str, str]]:
        """(canonical part, every parameter, where each came from)."""
        given = dict(part.parameters)
        known = registry.parameters(kind, part.name)
        registry.check_parameters(kind, part.name, given)
        of_dataset = self.defaults.get(kind, {}).get(part.name, {})
        if self.chosen:
            of_dataset = {k: v for k, v in of_dataset.items() if k != "score"}
        defaults = known | of_dataset
        typed = {k: registry.as_type(v, known[k]) for k, v in (defaults | given).items()}
        base = {k: registry.as_type(v, known[k]) for k, v in defaults.items()}
        registry.check_ranges(kind, part.name, typed)
        origin = {k: "given" if k in given else self.dataset.name if k in of_dataset else "default" for k in typed}
        canonical = Part(part.name, tuple((k, v) for k, v in typed.items() if v != base[k]))
        common = registry.COMMON.get(kind, {})  # left out at their defaults, so that a new one changes no cell
        return canonical, {k: v for k, v in typed.items() if k not in common or v != common[k]}, origin

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

    def cell(
        self, defense: Part, gradient: Part, attack: Part, limit: ThreatModel, seed: int
    ) -> tuple[Cell, dict[str, str], tuple[Cell, dict[str, str]] | None]:
        """The cell, where its parameters came from, and for a transfer the same of the cell that makes its images."""
        given = defense.get("score", "")
        defense, of_defense, d_origin = self.resolve("defense", defense)
        info = registry.info("defense", defense.name)
        scores = self.scores(defense.name, of_defense.get("score", ""))
        score = scores[0].text if len(scores) == 1 else show(_value(scores))
        defense = Part(defense.name, tuple((k, v) for k, v in defense.parameters if k != "score"))
        of_defense.pop("score", None)
        gradient = self.gradient(defense, info, gradient)
        source = self.source(attack, limit, seed, given)
        if (
            source
            and (source[0].defense, source[0].score) == (defense, score)
            and source[0].parameters["defense"] == of_defense
        ):
            return *source, source  # images made on this very defense: the same cell
        if any(of_defense.get(key) == value for key, value in info.get("couples", {}).items()):
            self.notes.append(
                f"warning: `{defense}` couples the images of a batch, as published: its numbers depend on --rows and on the batch mates"
            )
        attack, of_attack, a_origin = self.resolve("attack", attack)
        if source:
            other = source[0].defense
            if source[0].score != score:
                other = Part(other.name, (*other.parameters, ("score", _value(self.models[source[0].id]))))
            of_attack = of_attack | {"from": other, "attack": source[0].attack}
            default = self.resolve("attack", Part("pgd-eot"))[0]
            named = [("from", other)] + ([("attack", source[0].attack)] if source[0].attack != default else [])
            attack = Part(attack.name, tuple(named))
        versions = {
            "noise": NOISE_VERSION,
            "dataset": self.dataset.version,
            "classifier": self.classifier.version,
            **{key: model.version for key, model in _keyed(scores)},
            "defense": registry.version("defense", defense.name, of_defense),
            "attack": registry.version("attack", attack.name, of_attack),
        }
        if gradient != NO_GRADIENT:
            values = registry.parameters("gradient", gradient.name) | dict(gradient.parameters)
            versions["gradient"] = registry.version("gradient", gradient.name, values)
        parameters: dict[str, dict[str, Value]] = {"defense": of_defense, "attack": of_attack}
        if gradient.name == "surrogate":
            stand_in = self.stand_in(defense, gradient)
            of_stand_in = self.resolve("defense", stand_in)[1]
            of_stand_in.pop("score", None)  # it runs on the defense's
            versions["surrogate"] = registry.version("defense", stand_in.name, of_stand_in)
            parameters["surrogate"] = {"defense": stand_in.name, **of_stand_in}
            components.check_rotation(scores, stand_in.name)
        found = {"dataset": self.dataset, "classifier": self.classifier, **dict(_keyed(scores))}
        hashes = {kind: c.digest for kind, c in found.items()}
        scored = self.scored(defense.name, parameters)
        if not scored:  # a model that is not used: only what is known without fetching it
            hashes |= {key: model.published for key, model in _keyed(scores)}
        cell = Cell(
            self.dataset.text, self.subset, self.classifier.text, score, defense, gradient, attack, limit, seed,
            parameters, versions, hashes, source[0].id if source else "",
            {kind: c.where for kind, c in found.items() if c.where},
        )  # fmt: skip
        self.models[cell.id], self.loaded[cell.id] = scores, scores if scored else []
        origin = {f"defense.{k}": o for k, o in d_origin.items()} | {f"attack.{k}": o for k, o in a_origin.items()}
        return cell, origin, source

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

    @staticmethod
    def scored(defense: str, parameters: Mapping[str, Mapping[str, Value]]) -> bool:
        """Whether a purifier of the cell uses the score model."""
        names = [defense, str(parameters.get("surrogate", {}).get("defense", "none"))]
        return any("score" in registry.info("defense", name).get("needs", ["score"]) for name in names)

    def used(self, cell: Cell) -> list[Component]:
        """What this cell loads."""
        return [self.dataset, self.classifier, *self.loaded[cell.id]]

    def missing(self, cell: Cell) -> list[str]:
        """Assets that this cell needs and the cache has not."""
        return [name for c in self.used(cell) for name in c.missing]

    def stand_in_for(self, cell: Cell) -> tuple[str, ...]:
        """What its numbers are of in place of a paper's own: with a transfer, also what its images were made on."""
        of = [*self.used(cell), *self.loaded.get(cell.source, [])]
        return tuple(dict.fromkeys(name for c in of if (name := c.stand_in(self.dataset))))

    def gradient(self, defense: Part, info: dict[str, Any], gradient: Part) -> Part:
        """The gradient in the form that equal cells share: what makes no difference for this defense is left out."""
        if gradient == NO_GRADIENT:
            return gradient
        known = registry.parameters("gradient", gradient.name)
        given = dict(gradient.parameters)
        if gradient.name == "surrogate":
            other, values, _ = self.resolve("defense", self.stand_in(defense, gradient))
            if other.name != defense.name:
                return Part("surrogate", (("defense", other),))
            own = self.resolve("defense", defense)[1]
            changed = tuple((k, v) for k, v in values.items() if v != own[k])
            return Part("surrogate", changed) if changed else Part("exact")
        registry.check_parameters("gradient", gradient.name, given)
        if not info.get("random", True) and defense.name == "none":
            return Part("exact")
        if gradient.name == "adjoint" and not info.get("sde"):
            raise UserError(
                f"`{defense.name}` is no SDE: the adjoint gradient does not exist for it",
                "use `--grad exact`, or leave the defense out",
            )
        if gradient.name == "detached" and not info.get("guided"):
            return Part("exact")
        if gradient.name == "adjoint" and not info.get("guided"):
            return Part("adjoint")
        return Part(gradient.name, tuple((k, v) for k, v in given.items() if v != known[k]))

    @staticmethod
    def stand_in(defense: Part, gradient: Part) -> Part:
        """The purifier that a `surrogate` gradient differentiates: this one with other parameters, or another."""
        given = dict(gradient.parameters)
        other = given.pop("defense", gradient)  # `gradient` itself: none was named
        if other is not gradient and given:
            raise UserError(
                f"`{gradient}` names a defense and parameters", "put them inside: surrogate:defense=(NAME:k=v)"
            )
        if other is gradient and not given:
            raise UserError(
                "`surrogate` does not say by what", "write surrogate:steps=5, or surrogate:defense=(one-shot)"
            )
        if given:
            own = {k: v for k, v in defense.parameters if k not in registry.COMMON["defense"]}
            other = Part(defense.name, tuple((own | given).items()))
        other = other if isinstance(other, Part) else Part(show(other))
        common = [k for k, _ in other.parameters if k in registry.COMMON["defense"]]
        if common:
            raise UserError(f"`{common[0]}` of `{gradient}` belongs to the defense, not to a purifier", "leave it out")
        return other

    def source(self, attack: Part, limit: ThreatModel, seed: int, score: Value) -> tuple[Cell, dict[str, str]] | None:
        """The cell whose images a transfer attack reads. score: what the attacked defense was given as its own, which holds for the
        source, too, unless that has its own, or cannot rotate; an energy, on which few purifiers run, is not handed on."""
        if "from" not in registry.parameters("attack", attack.name):
            return None
        given = self.defaults.get("attack", {}).get(attack.name, {}) | dict(attack.parameters)
        registry.check_parameters("attack", attack.name, dict(attack.parameters))
        defense, other = (given.get("from"), given.get("attack", "pgd-eot"))
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
        return self.cell(defense, self.gradients(other, [Part("exact")])[0], other, limit, seed)[:2]


def _keyed(scores: list[Component]) -> list[tuple[str, Component]]:
    """Each under its key in a cell's versions, hashes and places: `score`, `score.1`, .."""
    return [("score" if i == 0 else f"score.{i}", model) for i, model in enumerate(scores)]


def _value(scores: list[Component]) -> Value:
    """As the value of a parameter: a name, a (PART), or a list of them."""
    values = tuple(part if part.parameters else part.name for part in (parse(model.text) for model in scores))
    return values if len(values) > 1 else values[0]


# ------------------------------------------------------------------------------------------------------------------- cost


def nfe(cell: Cell) -> tuple[float, float]:
    """Network (forward, backward) calls per image that the attack needs at most, classifier included; see docs/design.md."""
    info, values = registry.info("attack", cell.attack.name), dict(cell.parameters["attack"])
    gradients = registry.expression(info.get("gradient_calls", "0"), values)
    forwards = registry.expression(info.get("forward_calls", "0"), values)
    bare = info.get("bare", False)
    f, b = (1.0, 0.0) if bare else purification_nfe(cell)
    through = f if not (bare or cell.gradient.name == "bpda") else 1.0
    return (gradients + forwards) * f, gradients * (b + through) + forwards * b


def purification_nfe(cell: Cell) -> tuple[float, float]:
    """(forward, backward) calls of one purification and classification."""
    info, values = registry.info("defense", cell.defense.name), dict(cell.parameters["defense"])
    votes = int(values.get("votes", 1))  # type: ignore[arg-type]
    calls, inner = (
        registry.expression(info.get(key, other), values) for key, other in (("nfe", "1"), ("nfe_inner", "0"))
    )
    if any(registry.info("score", part.name).get("energy") for part in cell.components("score")):
        inner += calls  # the score is a gradient itself
    return votes * (calls + 1), votes * inner


def work(job: Job) -> float:
    """Network calls per image, attack and judging together: what progress counts."""
    f, b = purification_nfe(job.cell)
    return sum(nfe(job.cell)) + 2 * job.evals * (f + b) + 1
