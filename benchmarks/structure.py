"""The house in numbers: how large the package is, how it is written, and which room imports which; of one checkout or of several.

    python benchmarks/structure.py                  of this checkout
    python benchmarks/structure.py OLD . --json     two checkouts side by side, for a program
    python benchmarks/structure.py --tests          with the seconds that `pytest` takes there

Nothing is imported: the source is read. A room is a file or folder directly in the package, an arrow A -> B says that a module of A
imports one of B anywhere (in functions and for types too), and a floor is the longest way down: the ground floor imports no other room.
Rooms that import each other in a circle have no such order; theirs is one with the fewest upward arrows, and these are named.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "purebench"
LONG = 60  # lines; a function above it is named
EXACT = 14  # rooms of a circle whose best order is found by trying all subsets; of a larger one, greedily

Graph = dict[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# -------------------------------------------------------------------------------------------------------------------- source

LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
# What speaks to a tool, or rules a line across the page, tells a reader nothing.
NO_WORDS = re.compile(r"#\s*(noqa|type:|fmt:|mypy:|ruff:|pragma|!|[-=]{3,})")


def docstrings(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False) is not None:
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def read(source: str, tree: ast.Module) -> tuple[set[int], int, int]:
    """(numbers of the lines of code: no blanks, comments or docstrings; comments in words; uses of `Any`)."""
    code: set[int] = set()
    comments = anys = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not NO_WORDS.match(token.string)
        elif token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
            anys += token.type == tokenize.NAME and token.string == "Any"
    return code - docstrings(tree), comments, anys


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function) of every function below `node`, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | Function):
            name = f"{inside}.{child.name}" if inside else child.name
            if isinstance(child, Function):
                yield name, child
            yield from functions(child, name)
        else:
            yield from functions(child, inside)


# --------------------------------------------------------------------------------------------------------------------- rooms


def modules(package: Path) -> dict[str, Path]:
    """Name without the package's -> file; the package itself is `__init__`."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return names


def imported(tree: ast.Module, module: str, is_folder: bool, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that this one imports, a name for every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [PACKAGE, *(module.split(".") if module != "__init__" else [])]
                up = node.level - (is_folder or module == "__init__")
                base = ".".join([*here[: len(here) - up], *([base] if base else [])])
            # `from a import b` means the module a.b if there is one, else a name in a.
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == PACKAGE:
                while rest and ".".join(rest) not in known:
                    rest.pop()
                yield ".".join(rest) or "__init__"


def circles(graph: Graph) -> list[set[str]]:
    """The largest sets of rooms in which every room reaches every other, those of one room included."""
    reached: Graph = {}
    for room in graph:
        seen, pending = {room}, [room]
        while pending:
            for other in graph[pending.pop()] - seen:
                seen.add(other)
                pending.append(other)
        reached[room] = seen
    found: list[set[str]] = []
    for room in graph:
        if not any(room in circle for circle in found):
            found.append({other for other in reached[room] if room in reached[other]})
    return found


def order(rooms: set[str], arrows: dict[tuple[str, str], int]) -> list[str]:
    """The rooms of a circle from the lowest up, so that as few arrows as possible lead up, and of these such that few imports make."""
    names = sorted(rooms)
    inside = {(a, b): n for (a, b), n in arrows.items() if a in rooms and b in rooms}

    def upward(room: str, below: frozenset[str]) -> tuple[int, int]:
        counts = [n for (a, b), n in inside.items() if a == room and b not in below]
        return len(counts), sum(counts)

    if len(names) > EXACT:
        placed: list[str] = []
        while len(placed) < len(names):
            placed.append(min((r for r in names if r not in placed), key=lambda r: (upward(r, frozenset(placed)), r)))
        return placed
    best: dict[frozenset[str], tuple[tuple[int, int], list[str]]] = {frozenset(): ((0, 0), [])}
    for _ in names:  # all sets of k rooms that may lie at the bottom, from those of k - 1
        larger: dict[frozenset[str], tuple[tuple[int, int], list[str]]] = {}
        for below, (cost, placed) in best.items():
            for room in names:
                if room not in below:
                    more = upward(room, below)
                    candidate = ((cost[0] + more[0], cost[1] + more[1]), [*placed, room])
                    key = below | {room}
                    larger[key] = min(larger.get(key, candidate), candidate)
        best = larger
    return best[frozenset(names)][1]


def floors(graph: Graph, arrows: dict[tuple[str, str], int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(room -> floor, from 0; the arrows that lead up, without which the rooms have an order)."""
    up = []
    for circle in circles(graph):
        place = {room: i for i, room in enumerate(order(circle, arrows))} if len(circle) > 1 else {}
        up += [(a, b) for a in place for b in graph[a] if b in place and place[b] > place[a]]
    below = {room: {b for b in graph[room] if (room, b) not in up} for room in graph}
    level: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in level:
            level[room] = 1 + max((floor(b) for b in below[room]), default=-1)
        return level[room]

    return {room: floor(room) for room in graph}, sorted(up)


# ------------------------------------------------------------------------------------------------------------------ measures


def measure(checkout: Path) -> dict:
    """All measures of one checkout, or of the package's own folder, as JSON data."""
    package = checkout if (checkout / "__init__.py").is_file() else checkout / PACKAGE
    if not (package / "__init__.py").is_file():
        sys.exit(f"error: no package at `{package}`\nhint: name a checkout, which has a folder `{PACKAGE}`")
    known = modules(package)
    code = comments = anys = 0
    long, lengths = [], []
    rooms: dict[str, int] = {}
    arrows: dict[tuple[str, str], int] = {}
    for module, path in known.items():
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines, words, uses = read(source, tree)
        code, comments, anys = code + len(lines), comments + words, anys + uses
        room = module.partition(".")[0]
        rooms[room] = rooms.get(room, 0) + len(lines)
        for name, function in functions(tree):
            length = (function.end_lineno or 0) - function.lineno + 1
            lengths.append(length)
            if length > LONG:
                long.append([f"{path.relative_to(package)}:{name}", length])
        for other in imported(tree, module, path.name == "__init__.py", known):
            if (to := other.partition(".")[0]) != room:
                arrows[room, to] = arrows.get((room, to), 0) + 1
    graph: Graph = {room: {b for a, b in arrows if a == room} for room in rooms}
    level, up = floors(graph, arrows)
    entries = [p for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")]
    return {
        "files of code": len(known),
        "files at the top": sum(p.is_file() for p in entries),
        "folders at the top": sum(p.is_dir() for p in entries),
        "lines of code": code,
        "longest function, lines": max(lengths, default=0),
        f"functions above {LONG} lines": len(long),
        "uses of Any": anys,
        "comments per 100 lines of code": round(100 * comments / code, 1) if code else 0.0,
        "rooms": len(rooms),
        "floors": 1 + max(level.values(), default=-1),
        "arrows": len(arrows),
        "upward arrows": len(up),
        "rooms in circles": sum(len(c) for c in circles(graph) if len(c) > 1),
        "largest room, lines": max(rooms.values(), default=0),
        "long": sorted(long, key=lambda item: (-item[1], item[0])),
        "imports": {
            room: {"floor": level[room], "lines": rooms[room], "imports": sorted(graph[room])}
            for room in sorted(rooms, key=lambda r: (-level[r], r))
        },
        "up": [[a, b, arrows[a, b]] for a, b in up],
    }


def seconds(checkout: Path) -> float:
    """Of the checkout's whole suite, by the clock; exits if a test fails, for then the number says nothing."""
    began = time.monotonic()
    # The checkout's own package is the one to be tested, not the one that is installed here.
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    code = subprocess.run([sys.executable, "-m", "pytest"], cwd=checkout, env=environment, stdout=sys.stderr).returncode
    if code:
        sys.exit(f"error: the tests of `{checkout}` end with code {code}")
    return round(time.monotonic() - began, 1)


def show(found: dict[str, dict]) -> None:
    """The measures as a table, a column a checkout; below it, checkout by checkout, what has names."""
    measures = [name for name, value in next(iter(found.values())).items() if isinstance(value, int | float)]
    width = max(map(len, measures))
    columns = {checkout: max(len(checkout), 8) for checkout in found}
    print(" " * width, *(f"{checkout:>{n}}" for checkout, n in columns.items()), sep="  ")
    for name in measures:
        print(f"{name:<{width}}", *(f"{found[c][name]:>{n}}" for c, n in columns.items()), sep="  ")
    for checkout, of in found.items():
        print(f"\n{checkout}: rooms, from the top floor down")
        wide = max(map(len, of["imports"]))
        for room, what in of["imports"].items():
            print(f"  {what['floor']:2d}  {room:<{wide}}  {what['lines']:5d} lines  -> {' '.join(what['imports'])}")
        for a, b, imports in of["up"]:
            print(f"  UP  {a} -> {b}  ({imports} import{'s' * (imports > 1)})")
        for name, length in of["long"]:
            print(f"  {length} lines: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="default: this one")
    parser.add_argument("--tests", action="store_true", help="run the suite of each, and measure its seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {str(c): measure(c) for c in options.checkouts or [Path(__file__).resolve().parent.parent]}
    if options.tests:
        for checkout in found:
            found[checkout]["seconds of the tests"] = seconds(Path(checkout))
    print(json.dumps(found, indent=2)) if options.json else show(found)


if __name__ == "__main__":
    main()
