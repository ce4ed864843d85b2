"""Datasets, classifiers and score models before they are loaded: canonical name, content hash, what is missing. Torch-free."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from purebench import assets, datasets, embedded, registry
from purebench.classifiers import normalisation
from purebench.errors import DOWNLOAD, UserError, unknown
from purebench.plan import hashed, prepared
from purebench.spec import PLACES, Part, Resolved, Value, located, parse, place, quoted, show

if TYPE_CHECKING:
    from purebench.assets.architecture import Network
    from purebench.assets.contents import Contents, Normaliser
    from purebench.datasets.images import Images


@dataclass(frozen=True)
class Component:
    """One dataset, classifier or score model as asked for. `text`: its canonical name, without defaults and places; `key`: what the
    registry finds it by, where that is not its name."""

    kind: str
    name: str
    values: dict[str, Value]  # every parameter, defaults filled in
    text: str
    where: dict[str, Value]
    info: dict[str, Any]
    key: str
    given: frozenset[str] = frozenset()  # parameters that were said, at their defaults or not

    @property
    def version(self) -> int:
        return registry.version(self.kind, self.key, self.values)

    @cached_property
    def resolved(self) -> Resolved:
        """What a cell keeps of it; reads or looks up the content hash."""
        values = {k: v for k, v in self.values.items() if k not in self.where}
        values |= {self.info["of"]: self.inner.resolved.part} if self.inner else {}
        part = parse(self.text)
        # What every score model has is no argument of its factory, and of a cell only where it is not at its default.
        common = registry.COMMON.get(self.kind, {})
        options = {k: values.pop(k) for k in common}
        options = {k: v for k, v in options.items() if v != common[k]}
        return Resolved(
            self.kind, part, self.version, values, options, digest=self.digest, where=self.where, info=self.info,
            target=self.key if self.key != part.name else "", code=self.code,
        )  # fmt: skip

    @cached_property
    def code(self) -> str:
        """The hash of a foreign component's source; "" of ours."""
        return registry.code(self.kind, self.key)

    @cached_property
    def inner(self) -> Component | None:
        """The dataset that this one is made of, if it is made of another."""
        if "of" not in self.info:
            return None
        of = self.where.get(self.info["of"], self.values[self.info["of"]])
        if not of:
            raise UserError(f"`{self.name}` does not say of which dataset", f"write `{self.name}:of=(digits)`")
        return _inner(of)

    @property
    def base(self) -> str:
        """The dataset whose defaults hold."""
        return datasets.base(self.name, self.values)

    @cached_property
    def assets(self) -> list[str]:
        """Names in `checkpoints.toml`."""
        if self.inner:
            return self.inner.assets
        if self.where:
            return []
        if "asset" not in self.info:
            return list(self.info.get("assets", []))
        asset = self.info["asset"].format(**self.values)
        if asset not in assets.table():
            raise self._unknown(self.info["asset"])
        return [asset]

    def _unknown(self, template: str) -> UserError:
        """The error for an asset that no registry names: the first parameter in its name that fits none is to blame."""
        # What is known of a name that fits the template up to here, parameter by parameter.
        start, end = "", template.rpartition("}")[2]
        for literal, key in re.findall(r"([^{]+)\{(\w+)\}", template):
            start += literal
            known = {a.removeprefix(start).partition("/")[0] for a in assets.table() if a.startswith(start)}
            got = str(self.values[key])
            if got not in known and got + end not in known:
                # Of the last parameter the suffix is the template's, and none of what a user writes.
                return unknown(
                    f"{key} of `{self.name}`",
                    got,
                    {word.removesuffix(end) for word in known},
                    see="purebench fetch --list",
                )
            start += got
        return UserError(f"`{self.name}` needs `{template}`, which no registry names", "see `purebench fetch --list`")

    @cached_property
    def missing(self) -> list[str]:
        """Assets that are not in the cache, and networks that are not trained yet."""
        if self.inner:
            return self.inner.missing
        trained = self.info.get("trained")
        untrained = [trained] if trained and not self._trained_file.is_file() else []
        unsupplied = [self.info["own"]["asset"]] if self.unsupplied else []
        return [name for name in self.assets if not assets.present(name)] + untrained + unsupplied

    @property
    def unsupplied(self) -> bool:
        """Whether it is a dataset that only its user can supply, nothing is said of where it is, and it is not in the cache either. What
        a folder that was named has, or that it is not there, is told when it is read."""
        if self.inner:
            return self.inner.unsupplied
        if "own" not in self.info:
            return False
        folder, given = datasets.supplied(self.info["own"], self.values["folder"])
        return not given and not folder.is_dir()

    @property
    def _expected(self) -> int:
        """How many images a dataset has that is not here; INFO's `expected`, a number or one for each value of a parameter."""
        expected = self.info["expected"]
        if isinstance(expected, int):
            return expected
        return next(
            n for text, n in expected.items() if str(self.values[text.partition("=")[0]]) == text.partition("=")[2]
        )

    @property
    def _trained_file(self) -> Path:
        """The weights of a network that nobody published, and that the user trains."""
        return assets.cache_folder() / "trained" / f"{self.info['trained']}.safetensors"

    @cached_property
    def digest(self) -> str:
        """The content hash for the record; empty where the file is not here and nobody published its hash."""
        if self.inner:
            return self._made_of(self.inner)
        if self.code:
            said = str(self.info.get("digest") or self.info.get("sha256") or "")
            said = said or (self.images.digest if self.kind == "dataset" else "")
            return hashed.of(self.kind, self.key, self.code, {**self.values, **self.where}, said=said)
        if "digest" in self.info or "sha256" in self.info:
            return str(self.info.get("digest") or self.info["sha256"])
        if self.kind == "dataset":
            # A plan is made, and its cells named, before the files are fetched.
            return self.published if self.missing else self.images.digest
        if "trained" in self.info:
            return assets.hashed(self._trained_file)
        if self.where:
            path = self._check_there()
            return _with(assets.hashed(path), path, str(self.where.get("config", "")), self.network is not None)
        if not self.assets:
            raise UserError(
                f"`{self.name}` needs a file", f"write {self.name}:path=FILE; see `purebench show {self.name}`"
            )
        return assets.digest(self.assets[0])

    def _check_there(self) -> Path:
        """The place of a user's own weights. UserError (exit 3) if no file is there."""
        path = Path(str(self.where["path"]))
        if not path.is_file():
            raise UserError(f"`{path}` is no file", "give the path of a weights file", DOWNLOAD)
        return path

    def _made_of(self, inner: Component) -> str:
        """Images that are made are known by what they are made of, and by what makes them."""
        package = self.info["package"]
        try:
            made = f"{inner.digest} {package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"`{self.name}` needs the package `{package}`", f"`pip install {package}`", DOWNLOAD
            ) from None
        return f"sha256:{hashlib.sha256(made.encode()).hexdigest()}"

    @property
    def published(self) -> str:
        """The content hash as far as it is known without the file."""
        return next((str(assets.entry(name).get("sha256", "")) for name in self.assets), "")

    @cached_property
    def images(self) -> Images:
        """The dataset itself: read now, since only reading tells how large a user's own is."""
        return load(self.kind, self.key, self.values)

    @property
    def shape(self) -> list[int]:
        """[C,H,W] of a dataset."""
        if self.inner:
            return self.inner.shape
        channels, *sides = self.info["shape"]
        # Of a user's own the number of channels is a parameter, too: they say it themselves.
        if all(sides) and self.values.get("crop"):
            sides = 2 * [int(str(self.values["crop"]))]
        known = [channels, *sides]
        # A user's own images say it themselves; INFO then has zeros.
        return known if all(known) else self.images.shape

    @property
    def size(self) -> int:
        """Test images of a dataset."""
        if self.inner:
            return self.inner.size
        return self.info["size"] or (self._expected if self.unsupplied else len(self.images))

    @property
    def classes(self) -> int:
        """Classes, 0 where it is not known."""
        if self.inner:
            return self.inner.classes
        given = self.values.get("classes") or 0
        # Of an image folder it may be a list in a file; the images then say it.
        found = int(self._of_its_dataset("classes") or (given if isinstance(given, int) else 0))
        if found or self.kind != "dataset":
            return found
        return self.images.classes if self.images.declared else 0

    @property
    def labelled(self) -> int:
        """One more than the largest label of a dataset that does not say how many classes it has; else 0."""
        return 0 if self.inner or self.classes else self.images.classes

    @cached_property
    def contents(self) -> Contents | None:
        """What a user's own file of weights holds; None of anything else."""
        return held(self.info, {**self.values, **self.where})

    @property
    def described(self) -> str:
        """What was found in a dataset of the user's own, and what was left out; empty for those that are known by name."""
        if self.inner:
            return self.inner.described
        return "" if self.info["size"] or self.unsupplied else getattr(self.images, "said", "")

    def renumber(self, count: int) -> str:
        """What to write, so that a user's own labels are numbers of a classifier's `count` classes; empty where nothing is."""
        return self.images.renumber(count) if self.described and not self.inner else ""

    @property
    def passed_over(self) -> str:
        """In one line: what of a user's own file of weights is used, and what is not; "" where nothing is passed over."""
        held = self.contents
        layer = self._head_in_sequence
        if held is None or not (held.passed or layer):
            return ""
        kind = held.choose(str(self.values["weights"]), self.text)
        named = f"its {'averaged' if kind == 'ema' else 'raw'} weights" if held.labelled else "its weights"
        used = [place for one in held.normalisers for place in one.places if self._normalised_as(one)]
        passed = [key for key in held.passed if not any(f"{place}.".startswith(f"{key}.") for place in used)]
        said = [f"`{self.text}`: {named} are used"]
        said += [f"normalised as it says: {', '.join(used)}"] if used else []
        said += (
            [f"its layer {layer} is the network's last, without what stands before it in a sequence"] if layer else []
        )
        said += [f"passed over: {', '.join(passed[:5])}{', ..' if len(passed) > 5 else ''}"] if passed else []
        return "; ".join(said)

    @property
    def _head_in_sequence(self) -> str:
        """`fc.1` of a classifier's file whose last layer was saved in a sequence; "" of others."""
        if self.contents is None or not self.values.get("network"):
            return ""
        # Imported here, as in `held`.
        from purebench.assets import architecture

        keys = self.contents.sets[self.contents.choose(str(self.values["weights"]), self.text)]
        return architecture.head_in_sequence(keys, str(self.values["network"]))[0].rstrip(".")

    def _normalised_as(self, said: Normaliser) -> bool:
        return bool(said.values) and said.values == (self.values.get("mean"), self.values.get("std"))

    @property
    def takes(self) -> list[int] | None:
        """[C,H,W] of the images that a classifier or score model was trained on; None where it is not known."""
        # Its size is the published network's only where that is what it is of.
        if self.kind == "score" and self.where:
            self._check_there()
        if self.network:
            return self.network.size
        found = self._of_its_dataset("size")
        return [found[0], *2 * [self.preparation["crop"]]] if found and self.preparation else found

    @cached_property
    def network(self) -> Network | None:
        """Which network a score model's own file is of; None of anything else. UserError for a file of none."""
        if self.kind != "score" or not self.contents or "network" not in assets.entry(self._asset):
            return None
        # Imported here, as above.
        from purebench.assets import architecture

        asked = {key: self.values[key] for key in ("weights", "size", "config", "label") if key in self.values}
        return architecture.of(self._asset, str(self.where["path"]), **cast(dict[str, Any], asked))

    @property
    def _asset(self) -> str:
        """The published file in whose place a user's is."""
        return str(self.info["asset"]).format(**self.values)

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """How the images of a published classifier's own number were scaled and cut (`prepared.KEYS`); {} where nobody says."""
        return prepared.read(self.preprocess)

    @property
    def preprocess(self) -> str:
        """The same in the registry's word; "" where nobody says."""
        return str(self._entry.get("preprocess", ""))

    @property
    def any_size(self) -> bool:
        """Whether a classifier takes images of other sizes than those that it was evaluated on."""
        return str(self._entry.get("architecture", "")).lower().startswith(prepared.ANY_SIZE)

    @property
    def _entry(self) -> dict[str, Any]:
        """What `checkpoints.toml` says of a classifier; of a file of the user's, of the network that it was trained as."""
        if self.kind != "classifier" or not registry.is_ours(self.kind, self.key):
            return {}
        named = [str(self.values.get("network", ""))] if self.where else self.assets
        return next((assets.entry(name) for name in named if name in assets.table()), {})

    @property
    def training_set(self) -> str:
        """The name, as networks have it in `trained_on`, of the training set that a dataset's images belong to; empty for images of the
        user's own, of which nobody here can know."""
        return self.inner.training_set if self.inner else self.info.get("training_set", self.name)

    def stand_in(self, dataset: Component) -> str:
        """What this stands in for on a dataset (itself, for one): it is no paper's, your own, trained on other images, or shown them
        otherwise prepared; else empty."""
        # An interpolation alone is told by the plan's notes: papers differ in it.
        unlike = mismatch(dataset, self, ("resize", "crop")) if self.kind == "classifier" else ""
        return "; ".join(filter(None, [self._stands_in(dataset), unlike]))

    def _stands_in(self, dataset: Component) -> str:
        note = self.info.get("stand_in", "")
        if self.key != self.name:
            return note or f"your own {self.kind} `{self.text}`"
        if self.kind == "dataset":
            # What only its user has says of itself what it is, and is not read where it is not here.
            return note or ("" if self.info["size"] or self.unsupplied else getattr(self.images, "note", ""))
        if self.where:
            return f"your own weights `{self.text}`"
        trained_on = self.info.get("trained_on", "").format(**self.values)
        if trained_on and trained_on == dataset.training_set:
            return note
        network = note or f"`{self.text}`"
        if not trained_on:
            return f"{network}, which does not say what it was trained on"
        other = f", not on {dataset.training_set}" if dataset.training_set else ""
        return f"{network}, trained on {trained_on}{other}"

    def _of_its_dataset(self, key: str) -> Any:
        """An entry of INFO; of a network that there is for several datasets, that of the one it was asked for."""
        found = self.info.get(key)
        return found.get(self.values.get("dataset")) if isinstance(found, dict) else found


def find(kind: str, text: str) -> Component:
    """Raises UserError for an unknown name or parameter, or for weights that ship with purebench and are damaged."""
    part = parse(text, kind)
    _check_quoted(text, part)
    return of(kind, part)


def _check_quoted(text: str, part: Part) -> None:
    """Raises UserError where a file's name goes on, with `,key=` in it, behind what was read as its end."""
    for key in PLACES:
        value = part.get(key)
        begin = text.find(f"{key}={value}") + len(key) + 1
        if not isinstance(value, str) or begin <= len(key) or place(value).exists():
            continue
        ends = [begin + found.start() for found in re.finditer(",", text[begin:])]
        for end in [len(text), *reversed(ends)]:
            name = text[begin:end]
            if len(name) > len(value) and place(name).is_file():
                raise UserError(
                    f"`{value}` is no file, and `{name}` is one: a name with `,key=` in it stands in quotes",
                    f"write {key}={quoted(name)}",
                )


def of(kind: str, part: Part) -> Component:
    """The same for a part that is already read."""
    given = dict(part.parameters)
    part = Part(registry.key(kind, part.name), part.parameters)
    known = registry.parameters(kind, part.name)
    values = registry.validated(kind, part.name, given)
    info = registry.info(kind, part.name)
    # A list that says which labels images have is a place, too: the content's hash has the labels.
    places = (*PLACES, *info.get("places", ()))
    where: dict[str, Value] = {k: v for k, v in located(values).items() if k in places and v}
    # A user's file is known to cells by a name: that of the file, unless another is given.
    if "path" in where and known.get("name") == "" and not values["name"]:
        given["name"] = values["name"] = Path(str(where["path"])).stem
    if "path" in known and "path" not in where and given.get("name"):
        raise UserError(f"`name={show(given['name'])}` of `{part.name}` names a file", "give it: path=FILE")
    if "of" in info and values[info["of"]]:
        # The dataset inside is named as it would be alone: where its files lie is no part of a cell.
        inner = _inner(values[info["of"]])
        if inner.where or inner.key != inner.name:
            where |= {info["of"]: Part(inner.key, (*parse(inner.text).parameters, *inner.where.items()))}
        given[info["of"]] = values[info["of"]] = parse(inner.text, "dataset")
    _which_weights(part.name, given, values, known, info)
    _check_override(part.name, info, values, known)
    if info.get("counts_classes"):
        _which_classes(part.name, given, values, known)
    if "normalises" in info:
        _which_normalisation(given, values, info)
    moot = {
        key: why
        for key, (condition, why) in info.get("moot", {}).items()
        if registry.of_info(part.name, condition, values)
    }
    # What no file shows, and no default would be right for.
    for key, (condition, hint, why) in info.get("asked", {}).items():
        if not registry.of_info(part.name, condition, values):
            moot[key] = why
        elif key not in given:
            raise UserError(
                f"`{part.name}` with network={values['network']} does not say `{key}`, and no file shows it", hint
            )
        if key in given:
            # As text has it, `true` is no word.
            given[key] = values[key] = show(values[key])
            if values[key] not in (words := registry.choices(kind, part.name)[key]):
                raise unknown(f"{key} of `{part.name}`", str(values[key]), words)
    # It would be recorded, and do nothing: two cells of one network.
    if without := next((key for key in moot if key in given), ""):
        raise UserError(
            f"`{without}={show(given[without])}` of `{part.name}` has no say here: {moot[without]}",
            f"leave `{without}` out",
        )
    # The default in its own type too: a list in a factory's signature is a tuple here.
    differs = {k for k in given if k not in places and values[k] != registry.as_type(known[k], known[k])}
    canonical = Part(registry.label(kind, part.name), tuple((k, v) for k, v in values.items() if k in differs))
    found = Component(kind, canonical.name, located(values), str(canonical), where, info, part.name, frozenset(given))
    for asset in found.assets:
        if "package" in assets.entry(asset)["sources"]:
            embedded.verified(asset)
    return found


def _which_classes(name: str, given: dict[str, Value], values: dict[str, Value], known: Mapping[str, Value]) -> None:
    """Says in `given` and `values` how many classes a classifier's own file has, where its last layer tells. UserError where another
    number was asked for."""
    path = Path(str(values.get("path") or ""))
    if not path.is_file():
        return
    # Imported here, as in `held`.
    from purebench.assets import architecture

    layer, classes = architecture.last_layer(path, str(values.get("weights", "")))
    if not classes:
        return
    if classes == 1:
        raise UserError(
            f"the last layer of `{path.name}`, `{layer}`, has one output: one logit of two classes, and two are needed",
            "give the network as code of your own, FILE.py:NAME, whose one logit z is read as (0, z)",
        )
    if "classes" in given and values["classes"] != classes:
        raise UserError(
            f"`classes={show(values['classes'])}` of `{name}`: the last layer of `{path.name}`, `{layer}`, has {classes}",
            f"write classes={classes}, or leave it out",
        )
    values["classes"] = classes
    if classes != known["classes"]:
        given["classes"] = classes


def _which_normalisation(given: dict[str, Value], values: dict[str, Value], info: Mapping[str, Any]) -> None:
    """Says in `given` and `values` the normalisation that a classifier's own file says beside its weights, where the user says none.
    UserError where it is not certain."""
    found = held(info, values)
    if found is None or "mean" in given or "std" in given:
        return
    # Networks of other libraries may normalise by themselves.
    certain = str(values["network"]).startswith(info["normalises"])
    for key, numbers in zip(
        ("mean", "std"), normalisation.said(found.normalisers, Path(str(values["path"])).name, certain), strict=False
    ):
        given[key] = values[key] = numbers


def _with(digest: str, path: Path, config: str, network: bool) -> str:
    """The hash of a weights file; with those of the files which say of which network they are, where some do."""
    if not network:
        return digest
    # Imported here, as in `held`.
    from purebench.assets import architecture

    beside = [assets.sha256(file) for file in architecture.config_files(path, config)]
    return hashlib.sha256(" ".join([digest, *beside]).encode()).hexdigest() if beside else digest


def held(info: Mapping[str, Any], values: Mapping[str, Value]) -> Contents | None:
    """What a user's own file of weights holds; None where there is none, or it is not there. UserError for a file that is none."""
    path = Path(str(values.get("path") or ""))
    if "weights" not in values or not path.is_file():
        return None
    # Imported here, for it loads numpy.
    from purebench.assets import contents

    asset = info.get("asset", "").format(**values)
    return contents.of(path, str(assets.entry(asset)["format"]) if asset in assets.table() else "state-dict")


def _which_weights(
    name: str, given: dict[str, Value], values: dict[str, Value], known: Mapping[str, Value], info: Mapping[str, Any]
) -> None:
    """Says in `given` and `values` which weights of a file are meant where it has both, and nothing where it has but one set. UserError
    for a set that it does not have, and where a file has one and does not say which."""
    if "weights" not in known:
        return
    path = str(values.get("path") or "")
    found = held(info, values) or _overriding(info, values)
    one = not found.labelled if found else path.endswith(".safetensors") or (not path and _holds_one(info, values))
    if one and "weights" in given:
        raise UserError(
            f"`weights={show(given['weights'])}` of `{name}` has no say here: such a file holds one set of weights, averaged or raw",
            "leave `weights` out",
        )
    if found and not one:
        chosen = found.choose(str(values["weights"]), Path(path).name or name)
        if known["weights"] != "":
            return
        given.pop("weights", None)
        values["weights"] = chosen if len(found.sets) > 1 else ""
        if values["weights"]:
            given["weights"] = chosen
    elif not path and known["weights"] == "" and values["weights"] == "ema":
        # What the published file gives anyway: one cell, not two.
        values["weights"] = ""


def _overriding(info: Mapping[str, Any], values: Mapping[str, Value]) -> Contents | None:
    """What the file holds that PUREBENCH_<ASSET> names in place of a published one of one set of weights; None where it has but one."""
    asset = info.get("asset", "").format(**values)
    if values.get("path") or asset not in assets.table() or not _holds_one(info, values):
        return None
    format, other = str(assets.entry(asset)["format"]), assets.override(asset)
    # RobustBench's files are read as its own loader reads them, whatever else is in them.
    if other is None or not other.is_file() or format == "robustbench":
        return None
    # Imported here, as in `held`.
    from purebench.assets import contents

    found = contents.of(other, format)
    return found if len(found.sets) > 1 else None


def _check_override(
    name: str, info: Mapping[str, Any], values: Mapping[str, Value], known: Mapping[str, Value]
) -> None:
    """Raises UserError for a classifier's file in place of the published one that holds two sets: no parameter says which."""
    if "weights" in known or "asset" not in info or not (found := _overriding(info, values)):
        return
    asset = str(info["asset"]).format(**values)
    raise UserError(
        f"`{assets.override(asset)}`, which {assets.variable(asset)} gives for `{name}`, holds {' and '.join(sorted(found.sets))} weights",
        "save the weights that are meant alone, or give them as `file:path=FILE,network=NAME,weights=ema`",
    )


def _holds_one(info: Mapping[str, Any], values: Mapping[str, Value]) -> bool:
    """Whether a published file has one set of weights, which is so but for those of two formats."""
    asset = info.get("asset", "").format(**values)
    return asset in assets.table() and assets.entry(asset)["format"] not in ("score-sde", "ncsnv2-list")


def _inner(given: Any) -> Component:
    """The dataset that another is made of, as a part or as text."""
    return of("dataset", given if isinstance(given, Part) else parse(str(given), "dataset"))


def foreign(found: Resolved, name: str, shape: Sequence[int]) -> Resolved:
    """A defense or attack with what its code says, where it is not ours. name: as it was asked for; shape: [C,H,W] of the images."""
    name = registry.key(found.kind, name)
    code = registry.code(found.kind, name)
    if not code:
        return found
    digest = hashed.of(found.kind, name, code, found.values, shape)
    return dataclasses.replace(found, target=name if name != found.name else "", code=code, digest=digest)


def load(kind: str, name: str, values: Mapping[str, object]) -> Any:
    """The dataset, network or score model itself. A plug-in's dataset may be two tensors: images in [0,1], labels."""
    if "of" in (info := registry.info(kind, name)):
        values = {**values, info["of"]: _inner(values[info["of"]]).images}
    # What every score model has is applied to what its factory made (`engine.precision`).
    made = registry.factory(kind, name)(**{k: v for k, v in values.items() if k not in registry.COMMON.get(kind, {})})
    named = f"`{registry.label(kind, name)}`"
    if kind == "dataset":
        # Imported here, for it loads torch.
        from purebench.datasets import images

        if isinstance(made, images.Images):
            return made
        if not isinstance(made, tuple | list) or len(made) != 2:
            hint = "a data set is two tensors, (images, labels), or a function that returns them"
            raise UserError(f"{named} gave a {type(made).__name__}, and no images", hint)
        return images.of_tensors(made[0], made[1], named)
    if kind == "score" and not registry.is_ours(kind, name):
        return hashed.as_score(made, registry.label(kind, name))
    return made


def as_evaluated(dataset: Component, classifier: Component) -> Component:
    """The dataset with its images scaled and cut as those of the classifier's published number, where nobody said how."""
    if dataset.inner:
        key, inner = dataset.info["of"], as_evaluated(dataset.inner, classifier)
        if inner is dataset.inner:
            return dataset
        of_it = Part(inner.key, (*parse(inner.text).parameters, *inner.where.items()))
        return of("dataset", Part(dataset.key, tuple({**_said(dataset), key: of_it}.items())))
    able = set(prepared.KEYS) <= set(dataset.values)
    if not able or not classifier.preparation or prepared.asked(dataset.given):
        return dataset
    other = {key: value for key, value in classifier.preparation.items() if value != dataset.values[key]}
    return of("dataset", Part(dataset.key, tuple({**_said(dataset), **other}.items()))) if other else dataset


def _said(found: Component) -> dict[str, Value]:
    """What was said of a component, where its content lies too."""
    return {key: found.where.get(key, found.values[key]) for key in found.values if key in found.given}


def mismatch(dataset: Component, classifier: Component, keys: Sequence[str] = prepared.KEYS) -> str:
    """What to say where a dataset's images are not scaled and cut as those of the classifier's published number; else empty."""
    if dataset.inner:
        return mismatch(dataset.inner, classifier, keys)
    word, here, its_own = classifier.preprocess, prepared.done(dataset.values), classifier.preparation
    if not word or not here or all(here[key] == its_own.get(key) for key in keys):
        return ""
    there = prepared.words(its_own) if its_own else f"prepared as `{word}`"
    return f"`{classifier.text}` on images {prepared.words(here)}: its published number is of images {there}"


def check_fit(dataset: Component, classifier: Component, score: Component | None) -> None:
    """Raises UserError where a network cannot see the dataset's images; a score model of another size is resized to."""
    shape = dataset.shape
    if registry.is_ours("classifier", classifier.key) and {"mean", "std"} <= set(classifier.values):
        mean, std = (cast(tuple, classifier.values[key]) for key in ("mean", "std"))
        normalisation.check(mean, std, shape[0])
    # A network may take other sizes than its own, and is given them where somebody asks for them.
    other = prepared.asked(dataset.given) and classifier.any_size and shape[0] == (classifier.takes or shape)[0]
    if classifier.takes and classifier.takes != shape and not other:
        way = _scaled(dataset, classifier.takes)
        raise UserError(
            f"`{classifier.text}` takes images of {_size(classifier.takes)}, and {_called(dataset)} has {_size(shape)}",
            f"{way}choose another `--classifier`; `purebench list classifiers` names them",
        )
    if score and score.takes and score.takes[0] != shape[0]:
        raise UserError(
            f"`{score.text}` takes images of {_size(score.takes)}, and {_called(dataset)} has {_size(shape)}",
            "choose another `--score`; `purebench list scores` names them",
        )
    # CelebA-HQ has labels, and a classifier, for each of its attributes.
    wanted, has = dataset.values.get("attribute"), classifier.values.get("attribute")
    if wanted and has and wanted != has:
        raise UserError(
            f"`{dataset.text}` has labels of {wanted}, and `{classifier.text}` answers for {has}",
            f"give `--classifier {classifier.name}:attribute={wanted}`",
        )
    known = classifier.classes
    has = f"`{dataset.text}` has labels up to {dataset.labelled - 1}" if 0 < known < dataset.labelled else ""
    if known and dataset.classes and known != dataset.classes:
        has = f"{_called(dataset)} has {dataset.classes}"
    if has:
        found = f" ({dataset.described})" if dataset.described else ""
        raise UserError(
            f"`{classifier.text}` knows {known} classes, and {has}{found}",
            "; or ".join(filter(None, [dataset.renumber(known), "choose another `--classifier`"])),
        )


def _called(dataset: Component) -> str:
    """A dataset in a message: of the user's own, whose name may say nothing, all of it."""
    return f"`{dataset.text}`" if dataset.described else dataset.name


def _scaled(dataset: Component, wanted: list[int]) -> str:
    """The beginning of a hint: what makes the images of a user's own dataset those that a network takes; empty where nothing does."""
    channels, height, width = wanted
    able = {"size", "channels"} <= set(dataset.values) and height == width and registry.is_ours("dataset", dataset.key)
    if not able:
        return ""
    sides = [f"size={height}"] if dataset.shape[1:] != [height, width] else []
    colours = [f"channels={channels}"] if dataset.shape[0] != channels else []
    return f"write `{','.join(colours + sides)}` with the dataset, or "


def lowered(score: Component, options: Mapping[str, Value]) -> Component:
    """The score model with these of what every one has (`precision`, `judge`), where it does not say them itself."""
    own = {key: value for key, value in options.items() if key not in score.given}
    return of("score", Part(score.key, tuple({**_said(score), **own}.items()))) if own else score


def check_rotation(scores: list[Component], defense: str) -> None:
    """Raises UserError for several score models where a defense takes one, or for models of different sizes."""
    if len(scores) > 1 and not registry.info("defense", defense).get("rotates"):
        raise UserError(f"`{defense}` takes one score model, and was given {len(scores)}", "give one: score=NAME")
    if any(model.takes != scores[0].takes for model in scores):
        sizes = ", ".join(f"`{model.text}` {_size(model.takes or [])}" for model in scores)
        raise UserError(f"score models in rotation see images of one size: {sizes}", "choose models of one size")


def _size(shape: list[int]) -> str:
    return "x".join(map(str, shape))
