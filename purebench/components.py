"""Datasets, classifiers and score models before they are loaded: canonical name, content hash, what is missing. Torch-free."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from purebench import assets, registry
from purebench.errors import DOWNLOAD, UserError, unknown
from purebench.spec import Part, Value, parse, show

PLACES = ("path", "folder")  # parameters that say where content lies, not what it is: no part of a cell


@dataclass(frozen=True)
class Component:
    """One dataset, classifier or score model as asked for. `text`: its canonical name, without defaults and places."""

    kind: str
    name: str
    values: dict[str, Value]  # every parameter, defaults filled in
    text: str
    where: dict[str, Value]
    info: dict[str, Any]

    @property
    def version(self) -> int:
        return registry.version(self.kind, self.name)

    @cached_property
    def assets(self) -> list[str]:
        """Names in `checkpoints.toml`."""
        if self.where:
            return []
        if "asset" not in self.info:
            return list(self.info.get("assets", []))
        asset = self.info["asset"].format(**self.values)
        if asset not in assets.table():
            family, *rest = re.split(r"\{\w+\}", self.info["asset"])
            if not rest:
                raise UserError(
                    f"`{self.name}` needs the asset `{asset}`, which no registry names", "see `purebench fetch --list`"
                )
            key = self.info["asset"].rpartition("{")[2].partition("}")[0]
            raise unknown(
                f"{key} of `{self.name}`",
                str(self.values.get(key, asset)),
                {
                    a.removeprefix(family).rpartition("/")[2].removesuffix("-v1")
                    for a in assets.table()
                    if a.startswith(family)
                },
                see="purebench fetch --list",
            )
        return [asset]

    @cached_property
    def missing(self) -> list[str]:
        """Assets that are not in the cache."""
        return [name for name in self.assets if not assets.present(name)]

    @cached_property
    def digest(self) -> str:
        """The content hash for the record; empty where the file is not here and nobody published its hash."""
        if "digest" in self.info or "sha256" in self.info:
            return str(self.info.get("digest") or self.info["sha256"])
        if self.kind == "dataset":
            return self.images.digest
        if "trained" in self.info:
            path = assets.cache_folder() / "trained" / f"{self.info['trained']}.safetensors"
            return _sha256(path) if path.is_file() else ""
        if self.where:
            return _sha256(Path(str(self.where["path"])))
        if not self.assets:
            raise UserError(
                f"`{self.name}` needs a file", f"write {self.name}:path=FILE; see `purebench show {self.name}`"
            )
        return assets.digest(self.assets[0])

    @cached_property
    def images(self) -> Any:
        """The dataset itself: read now, since only reading tells how large a user's own is."""
        return load(self.kind, self.name, self.values)

    @property
    def shape(self) -> list[int]:
        """[C,H,W] of a dataset."""
        known = list(self.info["shape"])
        return known if all(known) else self.images.shape

    @property
    def size(self) -> int:
        """Test images of a dataset."""
        return self.info["size"] or len(self.images)

    @property
    def classes(self) -> int:
        """Classes, 0 where it is not known."""
        found = self._known("classes") or 0
        return found if found or self.kind != "dataset" else self.images.classes

    @property
    def takes(self) -> list[int] | None:
        """[C,H,W] of the images that a classifier or score model was trained on; None where it is not known."""
        return self._known("size")

    @property
    def stand_in(self) -> str:
        """What it stands in for, where it is no paper's; empty otherwise."""
        note = self.info.get("stand_in", "")
        return note or (getattr(self.images, "note", "") if self.kind == "dataset" and not self.info["size"] else "")

    def _known(self, key: str) -> Any:
        found = self.info.get(key)
        return found.get(self.values.get("dataset")) if isinstance(found, dict) else found


def find(kind: str, text: str) -> Component:
    """Raises UserError for an unknown name or parameter, or for weights that ship with purebench and are damaged."""
    part = parse(text, kind)
    given = dict(part.parameters)
    known = registry.parameters(kind, part.name)
    registry.check_parameters(kind, part.name, given)
    values = {k: _value(v) for k, v in (known | given).items()}
    where: dict[str, Value] = {k: v for k, v in values.items() if k in PLACES and v}
    if "path" in where and known.get("name") == "" and not values["name"]:
        given["name"] = values["name"] = Path(str(where["path"])).stem
    kept = tuple((k, v) for k, v in values.items() if k not in PLACES and k in given and v != _value(known[k]))
    found = Component(kind, part.name, values, str(Part(part.name, kept)), where, registry.info(kind, part.name))
    for asset in found.assets:
        if "package" in assets.entry(asset)["sources"]:
            from purebench import embedded

            embedded.verified(asset)
    return found


def load(kind: str, name: str, values: dict[str, Any]) -> Any:
    """The dataset, network or score model itself."""
    return registry.factory(kind, name)(**{f"{k}_" if k == "from" else k: v for k, v in values.items()})


def check_fit(dataset: Component, classifier: Component, score: Component) -> None:
    """Raises UserError where a network cannot see the dataset's images; a score model of another size is resized to."""
    shape = dataset.shape
    if classifier.takes and classifier.takes != shape:
        raise UserError(
            f"`{classifier.text}` takes images of {_size(classifier.takes)}, and {dataset.name} has {_size(shape)}",
            "choose another `--classifier`; `purebench list classifiers` names them",
        )
    if score.takes and score.takes[0] != shape[0]:
        raise UserError(
            f"`{score.text}` takes images of {_size(score.takes)}, and {dataset.name} has {_size(shape)}",
            "choose another `--score`; `purebench list scores` names them",
        )
    if classifier.classes and dataset.classes and classifier.classes != dataset.classes:
        raise UserError(
            f"`{classifier.text}` knows {classifier.classes} classes, and {dataset.name} has {dataset.classes}",
            "choose another `--classifier`",
        )


def check_range(score: Component, defense: Part, values: dict[str, Value]) -> None:
    """Raises UserError where a purifier asks a score model for noise that it was not trained on."""
    for key, limit in (("t", "t_max"), ("sigma", "sigma_max")):
        most, asked = score.info.get(limit), values.get(key)
        if most is not None and isinstance(asked, int | float) and asked > most:
            raise UserError(
                f"`{defense.name}` with {key}={show(asked)} asks `{score.text}` for more noise than it was trained on ({limit} {most})",
                f"choose {key} up to {most}, or another `--score`",
            )


def _value(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value


def _size(shape: list[int]) -> str:
    return "x".join(map(str, shape))


@cache
def _sha256(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"there is no file `{path}`", "give the path of a weights file", DOWNLOAD)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
