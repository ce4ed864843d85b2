"""What an entry of `checkpoints.toml` must say, and in which types: the typing errors of a user's own registry are told by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

TRUST = ("publisher", "code", "crowd", "third-party", "first-use", "ours")
STATUS = ("unverified", "dead", "other")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _inside(value: Any) -> bool:
    """A place below the cache: nothing is written elsewhere."""
    return _text(value) and not PurePosixPath(value).is_absolute() and ".." not in PurePosixPath(value).parts


def _digits(shortest: int, longest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(re.fullmatch(f"[0-9a-fA-F]{{{shortest},{longest}}}", value))


# key -> (whether its value is one, what it has to be)
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: value in ("score", "classifier", "dataset"), "score, classifier or dataset"),
    "licence": (lambda value: isinstance(value, str), "text"),
    "trust": (lambda value: value in TRUST, f"one of {', '.join(TRUST)}"),
    "summary": (lambda value: isinstance(value, str), "text"),
    "file": (_inside, "a name below the cache"),
    "folder": (_inside, "a name below the cache"),
    "unpack": (_inside, "a name below the cache"),
    "size": (_count, "a whole number of bytes"),
    "about": (_count, "a whole number of bytes"),
    "sha256": (_digits(64, 64), "64 hexadecimal digits"),
    "md5": (_digits(32, 32), "32 hexadecimal digits"),
    "sha256-prefix": (_digits(8, 64), "8 hexadecimal digits or more"),
    "inside": (lambda value: isinstance(value, dict), "a table of names and md5s"),
    "same_as": (_text, "the name of an asset"),
    "by_hand": (_text, "text"),
}
KINDS = ("http", "gdrive", "gdrive-folder", "hf", "zenodo", "github", "manual")
NEEDED = ("kind", "licence", "trust", "summary")


def wrong(facts: Any) -> str:
    """What is wrong with an entry, to follow its name (`has no `licence``), the first thing of all; "" if nothing."""
    if not isinstance(facts, dict):
        return f"is no table but {facts!r}"
    for key in NEEDED if "same_as" not in facts else ("licence", "trust"):
        if key not in facts:
            return f"has no `{key}`"
    if why := _wrong_values(facts):
        return why
    files = facts.get("files", [])
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        return 'has `files` that are no list of tables: `files = [{ file = "NAME" }, ..]`'
    for one in files:
        if why := "has no `file` in one of its `files`" if "file" not in one else _wrong_values(one):
            return why
    return ""


def _wrong_values(facts: dict[str, Any]) -> str:
    for key, (is_one, what) in KEYS.items():
        if key in facts and not is_one(facts[key]):
            return f"has `{key}` = {facts[key]!r}, which is not {what}"
    sources = facts.get("sources", [])
    if not isinstance(sources, list):
        return f"has `sources` = {sources!r}, which is no list of tables"
    for source in sources:
        if source == "package":
            continue
        if not isinstance(source, dict):
            # It may hold a password.
            said = re.sub(r"//[^/\s]*@", "//", repr(source))
            return f'has `sources` with {said}, which is no table: `{{ http = "URL" }}`'
        # Not of one that has another type: a URL may hold a password.
        if odd := [key for key, value in source.items() if not isinstance(value, str)]:
            return f"has a source whose `{odd[0]}` is no text"
        if not set(KINDS) & set(source):
            return f"has a source with {' and '.join(source) or 'nothing'}, and none of {', '.join(KINDS)}"
        if "github" in source and "tag" not in source:
            return "has a source with `github` and no `tag`"
        if source.get("status", "unverified") not in STATUS:
            return f"has a source whose `status` is {source['status']!r}, which is not one of {', '.join(STATUS)}"
    return ""


def clash(table: dict[str, Any]) -> str:
    """What is wrong with entries together: two files in one place, of which the second would count as there with the first one's bytes,
    or a `same_as` that leads round in a circle; "" if nothing. What is wrong with one alone is told elsewhere (`wrong`)."""
    taken: dict[str, tuple[str, Any]] = {}
    for name, facts in table.items():
        if not isinstance(facts, dict):
            continue
        seen: list[str] = [name]
        other: Any = facts
        while isinstance(other, dict) and isinstance(other.get("same_as"), str):
            seen.append(other["same_as"])
            if seen[-1] in seen[:-1]:
                return f"`same_as` leads round in a circle: {' -> '.join(seen)}"
            other = table.get(seen[-1])
        for place, digest in [] if "same_as" in facts else _places(name, facts):
            owner, known = taken.setdefault(place, (name, digest))
            # By their hashes they are one file.
            if owner != name and not (digest and digest == known):
                return f"`{owner}` and `{name}` have one place, `{place}`: give one another `file` or `folder`"
    return ""


def _places(name: str, facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """(place below the cache, the hash that is known of the file) of each file and of what it unpacks to."""
    folder = facts.get("folder", "data" if facts.get("kind") == "dataset" else f"checkpoints/{name}")
    files = facts.get("files") or ([facts] if "file" in facts else [])
    if not isinstance(folder, str) or not isinstance(files, list):
        return []
    found = []
    for one in files:
        if isinstance(one, dict):
            names = {str(one[key]) for key in ("file", "unpack") if _text(one.get(key))}
            digest = one.get("sha256") or one.get("md5")
            found += [(str(PurePosixPath(folder, one_name)), digest) for one_name in names]
    return found
