"""Every component by name: the one explicit table. Defaults and INFO are read from the source with ast, so that nothing heavy is
imported before it runs. A plug-in adds names through the entry-point groups `purebench.defense`, `purebench.attack`, ..

Where a name is wanted, `./mine.py:Median` is one, too: what is asked of it, `foreign` answers, which imports the file."""

from __future__ import annotations

import ast
import importlib
import itertools
import math
import operator
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from purebench import foreign
from purebench.errors import UserError, unknown
from purebench.foreign import sources
from purebench.spec import OBJECT, TEXT, Part, Value, show
from purebench.spec import value as value_of

NAMES: dict[str, dict[str, str]] = {
    "dataset": {
        "digits": "purebench.datasets.digits:test",
        "cifar10": "purebench.datasets.cifar:cifar10",
        "cifar100": "purebench.datasets.cifar:cifar100",
        "cifar10-c": "purebench.datasets.corruptions:cifar10_c",
        "cifar100-c": "purebench.datasets.corruptions:cifar100_c",
        "corrupted": "purebench.datasets.corruptions:corrupted",
        "mnist": "purebench.datasets.mnist:mnist",
        "fashionmnist": "purebench.datasets.mnist:fashionmnist",
        "imagenet": "purebench.datasets.imagenet:imagenet",
        "celebahq": "purebench.datasets.celebahq:celebahq",
        "folder": "purebench.datasets.folder:folder",
        "parquet": "purebench.datasets.parquet:parquet",
    },
    "classifier": {
        "digits-cnn": "purebench.classifiers.published:digits_cnn",
        "robustbench": "purebench.classifiers.published:robustbench",
        "torchvision": "purebench.classifiers.published:torchvision",
        "timm": "purebench.classifiers.published:timm",
        "wrn-70-16-dropout": "purebench.classifiers.published:wrn_70_16_dropout",
        "wideresnet-70-16": "purebench.classifiers.published:wideresnet_70_16",
        "cifar-resnet50": "purebench.classifiers.published:cifar_resnet50",
        "hill-wrn-28-10": "purebench.classifiers.published:hill_wrn_28_10",
        "celebahq-attribute": "purebench.classifiers.published:celebahq_attribute",
        "autoattack-resnet18": "purebench.classifiers.published:autoattack_resnet18",
        "mnist-cnn": "purebench.classifiers.published:mnist_cnn",
        "fashionmnist-cnn": "purebench.classifiers.published:fashionmnist_cnn",
        "file": "purebench.classifiers.published:file",
    },
    "score": {
        "digits-vp": "purebench.scores.digits:digits_vp",
        "cifar10-small": "purebench.scores.published:cifar10_small",
        "score-sde": "purebench.scores.published:score_sde",
        "edm": "purebench.scores.published:edm",
        "guided-diffusion": "purebench.scores.published:guided_diffusion",
        "improved-diffusion": "purebench.scores.published:improved_diffusion",
        "ddpm": "purebench.scores.published:ddpm",
        "celebahq-ddpm": "purebench.scores.published:celebahq_ddpm",
        "ncsnv2": "purebench.scores.published:ncsnv2",
        "ebm": "purebench.scores.energy:ebm_hill",
    },
    "defense": {
        "none": "purebench.purifiers.none:none",
        "diffpure": "purebench.purifiers.diffpure:diffpure",
        "reverse-sde": "purebench.purifiers.coup:reverse_sde",
        "coup": "purebench.purifiers.coup:coup",
        "one-shot": "purebench.purifiers.one_shot:one_shot",
        "diffpure-ode": "purebench.purifiers.diffpure:diffpure_ode",
        "diffpure-ld": "purebench.purifiers.diffpure:diffpure_ld",
        "diffpure-ddpm": "purebench.purifiers.ancestral:diffpure_ddpm",
        "adp": "purebench.purifiers.adp:adp",
        "scoreopt-o": "purebench.purifiers.scoreopt:scoreopt_o",
        "scoreopt-n": "purebench.purifiers.scoreopt:scoreopt_n",
        "gdmp": "purebench.purifiers.gdmp:gdmp",
        "lm": "purebench.purifiers.lm:lm",
        "lm-coup": "purebench.purifiers.lm:lm_coup",
        "gns": "purebench.purifiers.gns:gns",
        "edm": "purebench.purifiers.edm:edm",
        "ebm": "purebench.purifiers.ebm:ebm",
        "gaussian": "purebench.purifiers.gaussian:gaussian",
    },
    "gradient": {
        "exact": "purebench.engine.gradients:exact",
        "adjoint": "purebench.engine.gradients:adjoint",
        "surrogate": "purebench.engine.gradients:surrogate",
        "bpda": "purebench.engine.gradients:bpda",
        "detached": "purebench.engine.gradients:detached",
    },
    "attack": {
        "null": "purebench.attacks.null:null",
        "noise": "purebench.attacks.null:noise",
        "transfer-pgd": "purebench.attacks.pgd:transfer_pgd",
        "bpda-eot": "purebench.attacks.pgd:bpda_eot",
        "pgd-eot": "purebench.attacks.pgd:pgd_eot",
        "joint-score": "purebench.attacks.joint:joint_score",
        "joint-full": "purebench.attacks.joint:joint_full",
        "approximate-input": "purebench.attacks.approximate:approximate_input",
        "transfer": "purebench.attacks.transfer:transfer",
        "given": "purebench.attacks.given:given",
        "apgd-ce": "purebench.attacks.apgd:apgd_ce",
        "apgd-dlr": "purebench.attacks.apgd:apgd_dlr",
        "apgd-margin": "purebench.attacks.apgd:apgd_margin",
        "apgd-targeted": "purebench.attacks.apgd:apgd_targeted",
        "autoattack-rand": "purebench.attacks.autoattack:autoattack_rand",
        "autoattack-standard": "purebench.attacks.autoattack:autoattack_standard",
        "spsa": "purebench.attacks.spsa:spsa",
        "square-eot": "purebench.attacks.square:square_eot",
        "nattack": "purebench.attacks.nattack:nattack",
        "stadv": "purebench.attacks.stadv:stadv",
        "salt-and-pepper": "purebench.attacks.pixels:salt_and_pepper",
        "hammer": "purebench.attacks.hammer:hammer",
        "diffattack": "purebench.attacks.diffattack:diffattack",
        "cascade": "purebench.attacks.cascade:cascade",
        "autoattack-plus": "purebench.attacks.autoattack:autoattack_plus",
        "autoattack-rand-fix": "purebench.attacks.rand_fix:autoattack_rand_fix",
    },
}
MOST = 100_000  # of whatever a whole number counts
# Parameters that every component of a kind has: n purifications, how they are combined, a factor on the normal draws, and a score
# model other than the run's, or several: [a,b].
COMMON: dict[str, dict[str, Value]] = {
    "defense": {"votes": 1, "combine": "logits", "noise": 1.0, "score": ""},
    # What its network computes in, for the attack and for the judge.
    "score": {"precision": "fp32", "judge": "fp32"},
}
# Of these parameters, what INFO's `requires` and `choices` say of a component's own.
REQUIRES = {"defense": ["noise >= 0"]}
PRECISIONS = ["fp32", "tf32", "bf16"]
CHOICES = {
    "defense": {"combine": ["logits", "softmax", "logsoftmax", "vote"]},
    "score": {"precision": PRECISIONS, "judge": PRECISIONS},
}


@cache
def _plugins() -> list[EntryPoint]:
    """Of every kind. Read once: to look through all that is installed takes twenty milliseconds."""
    found = entry_points()
    return [entry for kind in NAMES for entry in found.select(group=f"purebench.{kind}")]


@cache
def names(kind: str) -> dict[str, str]:
    """name -> "module:factory" of one kind, plug-ins included; ours win over a plug-in of the same name."""
    # Ours win, or installing a package could change what a published table's name means.
    return {e.name: e.value for e in _plugins() if e.group == f"purebench.{kind}"} | NAMES[kind]


def is_file(name: str) -> bool:
    """Whether it is what a user's file defines."""
    return foreign.is_target(name) and not is_object(name)


def is_object(name: str) -> bool:
    """Whether it is an object of this process."""
    return name.startswith(f"{OBJECT}:")


def is_ours(kind: str, name: str) -> bool:
    """Whether a component is no plug-in's, and of no user's file. Raises UserError for an unknown one."""
    return not foreign.is_target(name) and _target(kind, name)[0].startswith("purebench.")


def key(kind: str, name: str) -> str:
    """The name itself; of a file's content with its whole path. Raises UserError for an unknown one."""
    if foreign.is_target(name):
        return foreign.target(name)
    _target(kind, name)
    return name


def label(kind: str, name: str) -> str:
    """The name that a cell has of it: `median` of `./mine.py:Median`, `mine.median` where a component of that name is in the table."""
    if not foreign.is_target(name):
        return name
    short = foreign.label(name)
    return f"{foreign.stem(name)}.{short}" if short in names(kind) else short


def code(kind: str, name: str) -> str:
    """The sha256 of a foreign component's source, with the modules that it imports and nobody installed (of a plug-in: those of its own
    package); "" for ours, whose `version` says it."""
    if foreign.is_target(name):
        return foreign.code(name)
    return "" if is_ours(kind, name) else _code(*_target(kind, name))


@cache
def _code(module: str, factory: str) -> str:
    # Once: what was imported since stays what it was.
    return sources.digest(sources.package(module), factory)


def _target(kind: str, name: str) -> tuple[str, str]:
    """(module, factory) of a name. Raises UserError for an unknown one."""
    if kind not in NAMES:
        raise unknown("kind", kind, NAMES)
    if name not in names(kind):
        raise unknown(kind, name, names(kind), see=f"purebench list {kind}s")
    module, _, factory = names(kind)[name].partition(":")
    return module, factory


@cache
def _source(module: str) -> ast.Module:
    """The module's syntax tree, read without importing it. Raises UserError where it is not installed."""
    spec = sources.find(module)
    if spec is None or spec.origin is None:
        raise UserError(f"the module `{module}` is not installed", "`purebench list` names what is")
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"), spec.origin)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"`{spec.origin}` cannot be read: {error}", "mend it, or uninstall its package") from None


def definition(kind: str, name: str) -> ast.FunctionDef:
    """The factory's syntax tree, read without importing it. Raises UserError where the module does not define it."""
    module, factory = _target(kind, name)
    for node in _source(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == factory:
            return node
    raise UserError(f"`{module}` defines no function `{factory}`", f"it is registered as the {kind} `{name}`")


def docstring(kind: str, name: str) -> str:
    """The factory's."""
    return foreign.docstring(name) if foreign.is_target(name) else ast.get_docstring(definition(kind, name)) or ""


def parameters(kind: str, name: str) -> dict[str, Value]:
    """The factory's keyword-only parameters and defaults, read without importing it. A trailing `_` in a name is dropped."""
    if foreign.is_target(name):
        own = foreign.describe(kind, name).parameters
        return dict(own) | COMMON.get(kind, {})
    return _parameters(kind, name)


@cache
def _parameters(kind: str, name: str) -> dict[str, Value]:
    signature = definition(kind, name).args
    try:
        own = {
            # Python reserves some of the field's words, such as `from`.
            argument.arg.rstrip("_"): None if default is None else ast.literal_eval(default)
            for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        }
    except (ValueError, TypeError):
        raise UserError(
            f"a default of `{name}` ({names(kind)[name]}) is no literal",
            "it is read without importing: write numbers, words, lists",
        ) from None
    return own | COMMON.get(kind, {})


def info(kind: str, name: str) -> dict[str, Any]:
    """The component's entry in its module's literal `INFO`, read without importing it."""
    return foreign.info(kind, name, _literal) if foreign.is_target(name) else _info(kind, name)


@cache
def _info(kind: str, name: str) -> dict[str, Any]:
    module = _target(kind, name)[0]
    table = _literal(_source(module), module, "INFO")
    found = table.get(name, table if "summary" in table else {})
    if not isinstance(found, dict):
        raise UserError(
            f"the INFO of `{name}` ({names(kind)[name]}) is no dictionary", "docs/adding-a-purifier.md has one"
        )
    return found


@cache
def cases(name: str) -> dict[str, dict[str, object]]:
    """PART -> what is known of it, of the defense's quick cases in its module's literal `CASES`, read without importing it.

    The contract tests run each of them. `refused`: family of score models -> words of the refusal; `gives`: numbers of its output."""
    module = _target("defense", name)[0]
    table = _literal(_source(module), module, "CASES")
    return {part: known for part, known in table.items() if part.partition(":")[0] == name}


def _literal(tree: ast.Module, place: str, word: str) -> dict[str, Any]:
    """The module-level dictionary of that name, {} if there is none; ast.literal_eval that also follows names of literals in the
    same module. place: the module's name or file."""
    values: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            values |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}

    class Follow(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return self.visit(values[name.id]) if name.id in values else name

    try:
        found = ast.literal_eval(Follow().visit(values[word])) if word in values else {}
    except (ValueError, TypeError, RecursionError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise UserError(
            f"{word} of `{place}` is no literal (line {line[1] if line else values[word].lineno})",
            "it is read without importing: write numbers, words, lists",
        ) from None
    if not isinstance(found, dict):
        raise UserError(
            f"{word} of `{place}` (line {values[word].lineno}) is no dictionary", "docs/adding-a-purifier.md has one"
        )
    return found


def added(kind: str, name: str) -> list[str]:
    """Parameters that came to a component after there were records of it. Raises UserError where INFO's `added` names none of its own."""
    found = info(kind, name).get("added", [])
    own = parameters(kind, name).keys() - COMMON.get(kind, {}).keys()
    if strange := [key for key in found if key not in own]:
        raise UserError(
            f"the INFO of `{name}` has `added = {strange}`, which are no parameters of its own", "leave them out"
        )
    return found


def choices(kind: str, name: str) -> dict[str, list[str]]:
    """parameter -> the words that it may be; a parameter that is not named here takes any word, or none. One that INFO's `lists` names
    may be a list of them. Raises UserError for choices of what is no parameter, or no word."""
    found, known = info(kind, name).get("choices", {}), parameters(kind, name)
    for key, words in found.items():
        # A number would pass unchecked, since only words are chosen among.
        if not isinstance(known.get(key), str) or not all(isinstance(word, str) for word in words):
            raise UserError(
                f"the INFO of `{name}` has choices of `{key}`, which is no parameter that is a word",
                "leave them out; ranges of numbers are said by `requires`",
            )
    return {**CHOICES.get(kind, {}), **found}


def options(given: Mapping[str, Value]) -> dict[str, Any]:
    """What every defense has (votes, combine, noise), of which a cell keeps only what is not at its default."""
    return {k: given.get(k, default) for k, default in COMMON["defense"].items() if k != "score"}


def uses_score(known: Mapping[str, Any]) -> bool:
    """Whether a defense of this INFO may use a score model; one that does not say may."""
    return "score" in known.get("needs", ["score"])


def needs(name: str, values: Mapping[str, object]) -> list[str]:
    """Which of `score` and `classifier` a defense cannot be made without at these parameters. INFO's `needs` is a list, or says the
    condition under which each is needed: {"score": "", "classifier": "guidance > 0"}, "" for always."""
    needed = info("defense", name).get("needs", [])
    conditions = needed if isinstance(needed, dict) else dict.fromkeys(needed, "")
    return [need for need, condition in conditions.items() if not condition or of_info(name, condition, values)]


def version(kind: str, name: str, values: Mapping[str, object]) -> int:
    """The component's version at these parameters: raised whenever its numbers change. INFO's `versions`, condition -> version, raises it
    where they changed for some parameters only, so that records of the others stay good."""
    known = info(kind, name)
    # A condition may read a parameter that every defense has, and a cell's values leave these out.
    values = {**COMMON.get(kind, {}), **values}
    raised = [number for condition, number in known.get("versions", {}).items() if of_info(name, condition, values)]
    return max([known.get("version", 1), *raised])


def verdict(attack: str, known: Mapping[str, Any], values: Mapping[str, object]) -> str:
    """By which rule an attack of the INFO `known` says at these values which images withstood it: INFO's `verdict`, `aa` where it says
    nothing. It is a word, or {word: condition}, of which the first that holds ("": always)."""
    said = known.get("verdict", "aa")
    conditions = said if isinstance(said, dict) else {said: ""}
    held = [word for word, condition in conditions.items() if not condition or of_info(attack, condition, values)]
    return next(iter(held), "aa")


@dataclass(frozen=True)
class Unit:
    """What an attack is given at once: `images` that must be together, None where each is attacked for itself; `draws`, the
    purifications of an image that it asks for in one gradient, None where it knows but one."""

    images: int | None
    draws: int | None


def unit(attack: str, values: Mapping[str, object]) -> Unit:
    """An attack's unit of work at these values, from the parameters that its INFO names as `unit` and `draws`. Raises UserError where it
    names one that is no whole number from 1 on."""
    known = info("attack", attack)
    found: dict[str, int] = {}
    for key in [key for key in ("unit", "draws") if key in known]:
        value = values.get(known[key])
        # `True` is a whole number to Python, and none to whoever reads a grid.
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                f"the INFO of `{attack}` has `{key} = {known[key]!r}`, and that is no parameter that counts (got {value!r})",
                "name a parameter whose value is a whole number from 1 on, or leave it out",
            )
        found[key] = value
    return Unit(found.get("unit"), found.get("draws"))


def check_parameters(kind: str, name: str, given: Mapping[str, Any]) -> None:
    """Raises UserError for parameters that the component does not have, or of another type than its default."""
    known, words = parameters(kind, name), choices(kind, name)
    may_be_none, lists = info(kind, name).get("none", []), info(kind, name).get("lists", [])
    for key, value in given.items():
        if key not in known:
            raise _unknown(name, key, known, given)
        default, value = known[key], read(value, known[key])
        match default:
            # Before the numbers: to Python, `true` is the number 1.
            case bool():
                if not isinstance(value, bool):
                    raise UserError(
                        f"`{key}={show(value)}` of `{name}` is neither true nor false",
                        f"the default is {str(default).lower()}",
                    )
            case int() | float():
                _check_number(name, key, value, default, 0 if key in may_be_none else 1)
            case list() | tuple():
                if not isinstance(value, list | tuple):
                    # Of numbers a word is none in brackets either.
                    inside = (
                        show(value)
                        if not isinstance(value, str) or any(isinstance(v, str) for v in default)
                        else "0.5,.."
                    )
                    raise UserError(f"`{key}={show(value)}` of `{name}` is no list", f"write {key}=[{inside}]")
            case str():
                several = key in lists and isinstance(value, list | tuple)
                for word in value if several else [value]:
                    _check_word(name, key, as_type(word, default), default, words.get(key))


def _page(name: str) -> str:
    """The command that shows all of a component; its file may have blanks in its name."""
    return f"purebench show {shlex.quote(str(Part(name)))}"


def _unknown(name: str, key: str, known: Mapping[str, Value], given: Mapping[str, Any]) -> UserError:
    """The error for a parameter that a component does not have. Behind a path, it may be the rest of that."""
    error = unknown(f"parameter of `{name}`", key, known, see=_page(name))
    before = [text for text in TEXT if text != key and isinstance(given.get(text), str)]
    if before:
        error.hint += f"; if `,{key}=` belongs to the {before[0]}, write that in quotes: {before[0]}='..'"
    return error


def _check_number(name: str, key: str, value: Any, default: float, least: int) -> None:
    # Whoever writes steps=true made a mistake, though `true` is a number to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            f"`{key}={show(value)}` of `{name}` is not a number",
            f"the default is {default}; see `{_page(name)}`",
        )
    if not math.isfinite(value):
        raise UserError(f"`{key}={show(value)}` of `{name}` is outside its range", f"the default is {default}")
    if isinstance(default, float):
        return
    if value != int(value):
        raise UserError(f"`{key}={show(value)}` of `{name}` is not a whole number", f"the default is {default}")
    # Whole numbers count something: steps, eot, votes. A default of 0 says that none is possible, too.
    if value < min(default, least):
        raise UserError(
            f"`{key}={show(value)}` is not possible for `{name}`", f"at least {least}; the default is {default}"
        )
    # No paper counts to it, and walking a chain of so many steps would seem to hang.
    if value > MOST:
        raise UserError(
            f"`{key}={show(value)}` is not possible for `{name}`", f"at most {MOST}; the default is {default}"
        )


def _check_word(name: str, key: str, value: Any, default: str, words: list[str] | None) -> None:
    if isinstance(value, str):
        if words and value not in words:
            raise unknown(f"{key} of `{name}`", value, words, see=_page(name))
        return
    # A parameter called as a kind holds components of it: attack=(pgd-eot:steps=5), score=[a,b].
    is_component = key in NAMES and (isinstance(value, Part) or (default == "" and isinstance(value, tuple)))
    # A free word, such as the name of a file, may be read as a number.
    is_free = default == "" and not isinstance(value, Part | tuple)
    if not is_component and not is_free:
        raise UserError(
            f"`{key}={show(value)}` of `{name}` is not a word", f"the default is {default}; see `{_page(name)}`"
        )


def read(value: Any, default: Value) -> Any:
    """A value as it was given, but for text in the place of what is none: a user's own `name` may be a number, or a list."""
    is_text = default is None or isinstance(default, str) or not isinstance(value, str)
    return value if is_text else value_of(value)


def as_type(value: Any, default: Value) -> Value:
    """A number in the type of its default, so that `1` and `1.0` are one cell; a list as a tuple."""
    # Of a parameter that is a word, `none` was meant as one; it is read as no value.
    if isinstance(default, str) and default and value is None:
        return "none"
    # `type`, since to isinstance a bool is an int.
    if type(default) is float and type(value) is int:
        return float(value)
    if type(default) is int and type(value) is float:
        return int(value)
    return tuple(value) if isinstance(value, list) else value


def validated(kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Value]:
    """Every parameter of the component, the given ones in the types of their defaults. UserError for what INFO does not allow."""
    if foreign.is_target(name):
        foreign.check_given(kind, name, given, COMMON.get(kind, {}))
    check_parameters(kind, name, given)
    known = parameters(kind, name)
    values = {key: as_type(read(value, known[key]), known[key]) for key, value in {**known, **given}.items()}
    for key in info(kind, name).get("lists", []):
        # A word for each of several, and all the same: that word.
        if isinstance(several := values[key], tuple) and len(set(several)) == 1:
            values[key] = several[0]
    check_ranges(kind, name, values)
    return values


def factory(kind: str, name: str) -> Callable[..., Any]:
    """The factory itself; this imports its module. Of a file one that takes what ours takes."""
    if foreign.is_target(name):

        def made(*given: Any, **values: Any) -> Any:
            bound = dict(zip(foreign.BOUND, given, strict=True)) if kind == "defense" else {}
            return foreign.make(kind, name, values, bound)

        return made
    module, attribute = _target(kind, name)
    return getattr(importlib.import_module(module), attribute)


def check_ranges(kind: str, name: str, values: Mapping[str, Value]) -> None:
    """Raises UserError where resolved values break a condition of INFO's `requires`, such as "0 < t <= 1"."""
    for condition in [*info(kind, name).get("requires", []), *REQUIRES.get(kind, [])]:
        if not of_info(name, condition, values):
            named = {node.id for node in ast.walk(ast.parse(condition, mode="eval")) if isinstance(node, ast.Name)}
            broken = ", ".join(f"{k}={show(as_type(v, v))}" for k, v in values.items() if k in named)
            raise UserError(f"`{name}` with {broken} is not possible: it needs {condition}", f"see `{_page(name)}`")
    if kind == "attack":
        # For its refusal alone: a plug-in's wrong INFO is known before anything runs, and not in a worker.
        unit(name, values)


ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
EQUALITY: dict[type, Callable[..., bool]] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
ORDER: dict[type, Callable[..., bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _abar(steps: float) -> float:
    """abar after so many steps of the discrete diffusion (Ho et al. 2020, section 4: beta from 1e-4 to 0.02 in 1000 steps)."""
    # As `scores.views.discrete` has it, which a plan cannot ask: it imports torch.
    return math.prod(1 - (1e-4 + i / 999 * (0.02 - 1e-4)) for i in range(round(steps)))


FUNCTIONS: dict[str, Callable[..., object]] = {
    **{function.__name__: function for function in (sum, len, max, min, round)},
    "suffix": lambda path: Path(str(path)).suffix,
    "sqrt": math.sqrt,
    "abar": _abar,
}


def of_info(name: str, text: str, values: Mapping[str, object]) -> Any:
    """The value of an entry in the INFO of `name`, as `expression` has it. Raises UserError where it has none."""
    try:
        return expression(text, values)
    except (KeyError, ValueError, TypeError, SyntaxError, ArithmeticError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the INFO of `{name}` says `{text}`, which has no value: {why}", "its author has to mend it"
        ) from None


def expression(text: str, values: Mapping[str, object]) -> Any:
    """Evaluates an INFO entry over the parameters: arithmetic such as "2 * steps" or "sum(stages)", comparisons such as "0 < t <= 1" or
    "update == 'schedule'", and `and` and `or` of them; suffix(path) is the ending of a file's name, abar(n) what n
    steps of the discrete diffusion leave. Raises ValueError for anything
    else, and for a word that is ordered: words are equal or not."""

    def holds(op: ast.cmpop, a: object, b: object) -> bool:
        if type(op) in EQUALITY:
            return EQUALITY[type(op)](a, b)
        # That "langevin" > "deterministic" means nothing.
        if isinstance(a, str) or isinstance(b, str) or type(op) not in ORDER:
            raise ValueError(f"no comparison of these: {text}")
        return ORDER[type(op)](a, b)

    # Not `eval`: a misspelt or clever entry is to be refused, and not to run.
    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return values[node.id]
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                return ARITHMETIC[type(node.op)](value(node.left), value(node.right))
            case ast.BoolOp():
                found = value(node.values[0])
                for side in node.values[1:]:
                    # As in Python: what stands after the deciding side may have no value.
                    if bool(found) == isinstance(node.op, ast.Or):
                        break
                    found = value(side)
                return found
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(value, node.args))
            case ast.Compare():
                sides = [value(side) for side in (node.left, *node.comparators)]
                return all(holds(op, a, b) for op, (a, b) in zip(node.ops, itertools.pairwise(sides), strict=True))
        raise ValueError(f"neither arithmetic nor a comparison: {text}")

    return value(ast.parse(text, mode="eval").body)
