"""Do the tests notice when a default changes? Changes one parameter of one component at a time, and runs the tests until one fails.

    python benchmarks/parameters.py [--kind defense|attack] [--only NAME] [--workers 1]

A mutant is the package with one default in a factory's signature (or among those that every defense has) replaced by another value
that the component accepts: each other word that it may be, the other of true and false, the next whole number, half as much again,
another element of a list. Each is tested in a process of its own, on a copy of the package, as in `mutation.py`.

What counts as noticed is a number that came out different: an assertion that failed, in a test of TESTS, whose text does not read
the registry. A value that a check refuses, a table of defaults, or documentation that names them proves nothing about the numbers.
Printed is the first such test of every mutant. Exit code 1: some mutant survived that is not in EQUIVALENT.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mutation import ROOT, copy_package, outcome, replaced

TESTS = {  # of numbers, the most telling first
    "defense": [
        "test_parameters.py", "test_purifiers.py", "test_scoreopt.py", "test_gdmp.py", "test_gdmp_imagenet.py", "test_adp.py",
        "test_gns.py", "test_diffpure_forms.py", "test_ebm.py",
    ],
    "attack": ["test_parameters.py", "test_autoattack.py", "test_runner.py"],
}  # fmt: skip
EVERY = "(every defense)"  # the parameters in registry.COMMON
BY_HAND = "(Defense)"  # the same, of a defense that is made without a plan

# (component, parameter) -> why nobody could tell the difference
EQUIVALENT = {
    (EVERY, "score"): "a cell leaves it out at its default, and whoever reads it takes none as the run's",
    ("transfer", "from"): "has no default: the plan refuses to go without",
    ("transfer", "attack"): "the plan reads it, and hands the factory stored images: tests/test_plan.py",
}


@dataclass(frozen=True)
class Mutant:
    name: str
    key: str
    before: str
    after: str
    file: str = ""  # no file: there is no other value to try
    source: str = ""


def others(default: Any, words: tuple[str, ...]) -> Iterator[list[Any]]:
    """Groups of values to try in place of a default; of a group, the first that is accepted is enough. words: that it may be."""
    if isinstance(default, bool):
        yield [not default]
    elif isinstance(default, str):
        yield from ([word] for word in words if word != default)
    elif isinstance(default, int):
        yield [default + 1, default - 1]
    elif isinstance(default, float):
        yield [float(f"{default * factor:.6g}") for factor in (1.5, 0.7)] if default else [1.0, 0.25]
    elif default:
        yield [(*default[:-1], default[-1] + 1)]
    elif default is not None:
        yield [(1,) * n for n in range(1, 20)]


def mutants(kind: str, only: str) -> list[Mutant]:
    """In a process of its own: the tests' must not have imported this package."""
    sys.path.insert(0, str(ROOT))
    import torch

    from purebench import registry
    from purebench.errors import UserError
    from purebench.scores.vp import IndexScore

    score = IndexScore(torch.nn.Identity(), (1, 8, 8), variances=True)  # it has everything that a constructor looks at
    found = []

    def accepts(name: str, values: dict[str, Any]) -> bool:
        try:
            registry.check_parameters(kind, name, values)
            registry.check_ranges(kind, name, registry.parameters(kind, name) | values)
            own = {k: v for k, v in values.items() if k not in registry.COMMON.get(kind, {})}
            parts = (score, torch.nn.Identity()) if kind == "defense" else (torch.zeros_like,) * (name == "transfer")
            registry.factory(kind, name)(*parts, **own)
        except UserError:
            return False
        return True

    def change(shown: str, name: str, file: Path, key: str, node: ast.expr) -> None:
        source, default = file.read_text(), ast.literal_eval(node)
        names = [n for n in registry.NAMES.get(key, ()) if n != default][:1]
        words = tuple(registry.choices(kind, name).get(key, names))
        count = len(found)
        for group in others(default, words):
            for value in group:
                if accepts(name, {key: value}):
                    text = replaced(source, node, repr(value))
                    found.append(Mutant(shown, key, repr(default), repr(value), str(file.relative_to(ROOT)), text))
                    break
        if len(found) == count:
            found.append(Mutant(shown, key, repr(default), "-"))

    def keywords(file: Path, function: str, owner: str = "") -> dict[str, ast.expr]:
        body: Any = ast.parse(file.read_text()).body
        if owner:
            body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == owner).body
        args = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function).args
        return {a.arg.rstrip("_"): d for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is not None}

    for name, target in registry.NAMES[kind].items():
        module, _, factory = target.partition(":")
        file = Path(str(importlib.util.find_spec(module).origin))  # type: ignore[union-attr]
        for key, node in keywords(file, factory).items() if only in name else ():
            change(name, name, file, key, node)
    if kind == "defense" and only in EVERY:
        file = ROOT / "purebench/registry.py"
        table = next(
            n.value for n in ast.parse(file.read_text()).body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "COMMON"
        )  # fmt: skip
        common = table.values[0]  # type: ignore[attr-defined]
        for key, node in zip(common.keys, common.values, strict=True):
            change(EVERY, "gaussian", file, key.value, node)
        file = ROOT / "purebench/engine/defense.py"
        for key, node in keywords(file, "__init__", owner="Defense").items():
            if key in registry.COMMON[kind]:
                change(BY_HAND, "gaussian", file, key, node)
    return found


def counts(failure: Any) -> bool:
    """Whether a failed test is about a number: an assertion, and none that reads defaults or expects to be refused."""
    if not failure.errisinstance(AssertionError):
        return False
    mine = [str(e.statement) for e in failure.traceback if Path(str(e.path)).parent == ROOT / "tests"]
    return not any(("registry." in text and "assert" in text) or "pytest.raises" in text for text in mine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(TESTS), default="defense")
    parser.add_argument("--only", default="", help="components whose name contains this")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PUREBENCH_GOLDEN", None)  # a fresh clone has to notice by itself
    import pyautoattack  # noqa: F401  (imported here, so that the forks need not)
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch.fx.experimental.symbolic_shapes  # what the first torch.autograd.grad imports: two seconds
    import torchsde  # noqa: F401

    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1) as process:
        todo = process.apply(mutants, (args.kind, args.only))
    tests, began = TESTS[args.kind], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folders: SimpleQueue[Path] = SimpleQueue()
        for i in range(args.workers):
            folder = Path(temporary) / str(i)
            copy_package(folder)
            folders.put(folder)
        folder = folders.get()
        _, broken = outcome(folder, tests, [], collect=True)
        folders.put(folder)
        for name in broken:
            print(f"left out, fails without mutation: {name}")

        def noticed(mutant: Mutant) -> str:
            """The id of the first test that notices; empty if none does."""
            if not mutant.file:
                return ""
            folder = folders.get()
            target = folder / mutant.file
            original = target.read_text()
            try:
                target.write_text(mutant.source)
                return next(iter(outcome(folder, tests, broken, counts=counts)[1]), "")
            finally:
                target.write_text(original)
                folders.put(folder)

        pool = stack.enter_context(ThreadPoolExecutor(args.workers))
        alive = []
        print(f"| {args.kind} | parameter | default -> changed | the test that notices it |\n|---|---|---|---|")
        for mutant, test in zip(todo, pool.map(noticed, todo), strict=True):
            if not test:
                alive.append(mutant)
            reason = EQUIVALENT.get((mutant.name, mutant.key))
            said = f"`{test.removeprefix('tests/')}`" if test else f"equivalent: {reason}" if reason else "NONE"
            print(f"| {mutant.name} | {mutant.key} | {mutant.before} -> {mutant.after} | {said} |", flush=True)

    unexplained = [m for m in alive if (m.name, m.key) not in EQUIVALENT]
    print(
        f"\n{len({(m.name, m.key) for m in todo})} parameters, {len(todo)} mutants, {len(todo) - len(alive)} noticed; ",
        end="",
    )
    print(
        f"{len(alive) - len(unexplained)} are equivalent, {len(unexplained)} are not; {time.monotonic() - began:.0f} s"
    )
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
