"""Which class a folder or an image has, where its user says so: a list in a file (`classes=FILE`). Torch-free.

A file of names and numbers: JSON (`{"cat": 3}`, `{"3": "cat"}`, `["cat", ..]`), or lines (csv, tsv, txt) of `name,number`, of
`number,name`, of names alone (the first is class 0), or of numbers alone, which are of the images in the order of their names."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from purebench.datasets.tree import shown
from purebench.errors import UserError

HINT = 'a list of classes is JSON such as {"cat": 3}, or lines of `name,number`; classes are numbered from 0'
VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}")


@dataclass(frozen=True)
class Numbers:
    """`of`: name -> class, or `bare`: classes alone, in the order of the images' names; `path`: the list itself; `named`: it is of names
    alone, one for every class."""

    path: Path
    of: dict[str, int]
    bare: list[int]
    named: bool = False

    def folders(self, classes: Sequence[str]) -> dict[str, int]:
        """The class of each class folder; UserError for one that the list does not name."""
        if self.bare:
            raise UserError(
                f"`{shown(str(self.path))}` has numbers and no names, of images that lie in class folders", HINT
            )
        return {name: self._number(name, "the class folder") for name in classes}

    def images(self, files: Sequence[str]) -> list[int]:
        """The class of each image, by its name with or without its ending; UserError for one that the list does not name."""
        if self.bare:
            return self._in_order(files)
        return [self._number(file, "the image", os.path.splitext(file)[0]) for file in files]

    def _number(self, name: str, what: str, other: str = "") -> int:
        # A name with an accent has two spellings: a Mac's archive has another one than a keyboard.
        for spelled in (name, other):
            found = self.of.get(_spelled(spelled))
            if found is not None:
                return found
        raise UserError(f"`{shown(str(self.path))}` does not name {what} `{shown(name)}`", HINT)

    def _in_order(self, files: Sequence[str]) -> list[int]:
        place = shown(str(self.path))
        if len(files) != len(self.bare):
            message = f"`{place}` has {len(self.bare)} numbers, and there are {len(files)} images"
            raise UserError(message, "one line per image, in the order of their names; or lines of `image,number`")
        # The devkit's own numbers, 1 to 1000, are not the ranks of the sorted wnids that classifiers answer with.
        if all(VALIDATION.fullmatch(os.path.splitext(file)[0]) for file in files) and 0 not in self.bare:
            rank = _devkit(self.path)
            if strange := sorted(set(self.bare) - set(rank)):
                raise UserError(f"`{place}` has a class {strange[0]}, which the devkit's `meta.mat` does not", HINT)
            return [rank[number] for number in self.bare]
        if 0 not in self.bare:
            message = f"`{place}` has classes {min(self.bare)} to {max(self.bare)}, and none is 0"
            raise UserError(
                message,
                "classes are numbered from 0: subtract 1, or write lines of `image,number`",
            )
        return self.bare


def read(path: Path) -> Numbers:
    """The list at `path`. Raises UserError for one that cannot be read with certainty."""
    try:
        # Not UTF-8: names of files may not be either, and are the same bytes.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read the list of classes `{shown(str(path))}`: {error.strerror}", HINT) from None
    if "\0" in text:
        raise UserError(f"the list of classes `{shown(str(path))}` is no text in UTF-8", HINT)
    rows, named = _of_json(path, text) if path.suffix.lower() == ".json" else _of_lines(path, text)
    if not rows:
        raise UserError(f"the list of classes `{shown(str(path))}` is empty", HINT)
    if all(name is None for name, _ in rows):
        return Numbers(path, {}, [_whole(path, number) for _, number in rows])
    found: dict[str, int] = {}
    for name, number in rows:
        key, value = _spelled(str(name)), _whole(path, number)
        if found.setdefault(key, value) != value:
            raise UserError(f"`{shown(str(path))}` has `{shown(key)}` as class {found[key]} and as class {value}", HINT)
    return Numbers(path, found, [], named)


Row = tuple[str | None, Any]  # a name, or none, and its number as it stands there


def _of_json(path: Path, text: str) -> tuple[list[Row], bool]:
    """The rows, and whether they are names alone."""
    try:
        data = json.loads(text, object_pairs_hook=partial(_once, path))
    except ValueError as error:
        raise UserError(f"cannot read the list of classes `{shown(str(path))}` as JSON: {error}", HINT) from None
    if isinstance(data, list):
        names = all(isinstance(item, str) for item in data)
        return [(item, i) if names else (None, item) for i, item in enumerate(data)], names
    if isinstance(data, dict):
        if all(_is_whole(value) for value in data.values()):
            return list(data.items()), False
        if all(_is_whole(key) for key in data):
            # A list of names for one number, as Keras has it: ["n01440764", "tench"].
            names_of = [(value if isinstance(value, list) else [value], key) for key, value in data.items()]
            return [(str(name), key) for names, key in names_of for name in names], False
    raise UserError(f"`{shown(str(path))}` is no list of classes", HINT)


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of these. Of a name that is there twice, with two values, Python's own would keep the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if found.setdefault(key, value) != value:
            raise UserError(f"`{shown(str(path))}` has `{shown(key)}` as {found[key]} and as {value}", HINT)
    return found


def _plain(word: str) -> str:
    """`3` of `3.0` and `3.000e+00`; another word as it is."""
    try:
        value = float(word)
    except ValueError:
        return word
    return str(int(value)) if math.isfinite(value) and value == int(value) else word


def _of_lines(path: Path, text: str) -> tuple[list[Row], bool]:
    """As `_of_json`."""
    lines = [line for line in text.splitlines() if line.strip()]
    mark = next((mark for mark in ",\t;" if lines and mark in lines[0]), "")
    if mark:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    else:
        # A name may have blanks; a number has none.
        split = [line.split() for line in lines]
        numbered = all(len(words) > 1 and _is_whole(words[-1]) for words in split)
        rows = [line.rsplit(None, 1) if numbered else [line.strip()] for line in lines]
    if strange := next((row for row in rows if len(row) != len(rows[0]) or len(row) > 2), None):
        message = (
            f"cannot read the line `{shown(mark.join(strange))[:60]}` of `{shown(str(path))}`: {len(strange)} columns"
        )
        raise UserError(message, HINT)
    if rows and len(rows[0]) == 1:
        # Numbers as numpy.savetxt writes them are numbers, and no names.
        words = [row[0] for row in rows]
        if all(_is_whole(_plain(word)) for word in words):
            return [(None, _plain(word)) for word in words], False
        return [(word, i) for i, word in enumerate(words)], True
    # `name,number` above the columns is no class.
    if len(rows) > 1 and not any(map(_is_whole, rows[0])):
        rows = rows[1:]
    for name, number in ((0, 1), (1, 0)):
        if all(_is_whole(row[number]) for row in rows):
            return [(row[name], row[number]) for row in rows], False
    wrong = next(row for row in rows if not _is_whole(row[1]))
    raise UserError(f"`{shown(wrong[1])}` in `{shown(str(path))}` is no class number", HINT)


def _devkit(path: Path) -> dict[int, int]:
    """The devkit's number of a class -> the rank of its wnid, from the `meta.mat` that lies beside its list of the validation images."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise UserError(
            f"the numbers in `{shown(str(path))}` are the devkit's own, and not the ranks of the wnids: there is no `{shown(str(meta))}`",
            "put the devkit's `data/meta.mat` beside the list, or write lines of `image,number`",
        )
    # Imported here: it takes a while, and only whoever has a flat `val` needs it.
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True, struct_as_record=True)["synsets"]
        # A synset with children is a group of classes, and no class.
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
    # scipy raises whatever its reading of damaged bytes comes to.
    except Exception as error:
        raise UserError(
            f"cannot read `{shown(str(meta))}`: {error or type(error).__name__}", "unpack the devkit again"
        ) from None
    rank = {wnid: i for i, wnid in enumerate(sorted(wnids.values()))}
    return {number: rank[wnid] for number, wnid in wnids.items()}


def _is_whole(value: object) -> bool:
    return not isinstance(value, bool) and bool(re.fullmatch(r"[+-]?\d{1,9}", str(value).strip(), re.ASCII))


def _whole(path: Path, value: object) -> int:
    if not _is_whole(value) or int(str(value)) < 0:
        raise UserError(f"`{shown(str(value))}` in `{shown(str(path))}` is no class number", HINT)
    return int(str(value))


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def ordered(numbers: Iterable[int]) -> str:
    """0 to 9, for a message."""
    found = sorted(set(numbers))
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"
