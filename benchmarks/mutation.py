"""Do the tests notice when a line of the maths is wrong? Changes one thing at a time, and runs the tests until one fails.

    python benchmarks/mutation.py [--operators] [--only FILE] [--workers 1]

A mutant is the package with one statement of a function replaced by `pass`; with `--operators` also one operator, number or
comparison exchanged. Each is tested in a process of its own (forked, so that torch is imported once), on a copy of the package.
Tests that fail without any mutation are left out and named. Exit code 1: some mutant survived that is not in EQUIVALENT.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["test_purifiers.py", "test_noise.py", "test_chain.py", "test_adjoint.py"]
FIRST = {"noise.py": "test_noise.py", "adjoint.py": "test_adjoint.py"}  # the most telling test file of a source file
TIMEOUT = 120  # seconds; a mutant that loops for ever is noticed, too

# (file, "what -> what") -> why nobody could tell the difference
EQUIVALENT = {
    (
        "purebench/engine/adjoint.py",
        "super().__init__() -> pass",
    ): "the module has no parameters; torchsde only asks for the type",
    (
        "purebench/purifiers/vpsde.py",
        "t / steps <= 2 * (1 - END) -> (t / steps < 2 * (1 - END))",
    ): "no t and steps meet it exactly",
}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before} -> {self.after}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def replaced(source: str, node: ast.AST, text: str) -> str:
    """The source with the node's text replaced; columns of ast are bytes."""
    lines = source.encode().splitlines(keepends=True)
    head = lines[node.lineno - 1][: node.col_offset]  # type: ignore[attr-defined]
    tail = lines[node.end_lineno - 1][node.end_col_offset :]  # type: ignore[attr-defined]
    return b"".join([*lines[: node.lineno - 1], head, text.encode(), tail, *lines[node.end_lineno :]]).decode()  # type: ignore[attr-defined]


def deletions(source: str) -> Iterator[tuple[ast.AST, str]]:
    for function in functions(ast.parse(source)):
        for node in ast.walk(function):
            for name in ("body", "orelse", "finalbody"):
                for statement in getattr(node, name, []) if isinstance(getattr(node, name, None), list) else []:
                    docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                    if not docstring and not isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
                        yield statement, "pass"


SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitXor: ast.BitOr, ast.BitAnd: ast.BitOr, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def exchanges(source: str) -> Iterator[tuple[ast.AST, str]]:
    for function in functions(ast.parse(source)):
        skip = {id(n) for m in ast.walk(function) if isinstance(m, ast.JoinedStr | ast.Raise) for n in ast.walk(m)}
        skip |= {id(n) for a in ast.walk(function) for n in ast.walk(getattr(a, "annotation", None) or ast.Pass())}
        skip |= {id(n) for n in ast.walk(function.returns or ast.Pass())}
        for node in ast.walk(function):
            if id(node) in skip:
                continue
            new = copy.deepcopy(node)
            if isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in SWAPS:
                new.op = SWAPS[type(new.op)]()
            elif isinstance(new, ast.Compare) and type(new.ops[0]) in SWAPS:
                new.ops[0] = SWAPS[type(new.ops[0])]()
            elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.USub | ast.Not):
                new = new.operand
            elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
                new.value = not new.value
            elif isinstance(new, ast.Constant) and isinstance(new.value, int | float):
                new.value = new.value + 1 if isinstance(new.value, int) else new.value * 1.5
            else:
                continue
            yield node, f"({ast.unparse(new)})"


def mutants(file: Path, operators: bool) -> Iterator[Mutant]:
    source, seen = file.read_text(), set()
    for kind in (deletions, exchanges) if operators else (deletions,):
        for node, text in kind(source):
            changed = replaced(source, node, text)
            if changed not in seen:
                seen.add(changed)
                before = " ".join((ast.get_source_segment(source, node) or "").split())
                yield Mutant(str(file.relative_to(ROOT)), node.lineno, before, text, changed)  # type: ignore[attr-defined]


def outcome(
    folder: Path,
    tests: list[str],
    without: list[str],
    collect: bool = False,
    counts: Callable[[Any], bool] | None = None,
) -> tuple[int, list[str]]:
    """(exit code of the first test file that fails, or 0; ids of failed tests), of the package in `folder`, in a fork.

    It ends with the first failure, or goes through all of them to `collect` them. `counts`: which failures are any, by what pytest
    knows of the exception; the others are passed over."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 9
        try:
            signal.alarm(TIMEOUT * (10 if collect else 1))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.path.insert(0, str(folder))
            sys.dont_write_bytecode = True
            import pytest

            failed: list[str] = []

            class Listen:
                def pytest_runtest_logreport(self, report):
                    if report.failed and counts is None:
                        failed.append(report.nodeid)

                def pytest_exception_interact(self, node, call):
                    if counts is not None and counts(call.excinfo):
                        failed.append(node.nodeid)
                        node.session.shouldstop = "noticed"

            options = [
                "-q",
                "-n0",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                str(ROOT),
                *(f"--deselect={t}" for t in without),
            ]
            options += [] if collect or counts else ["-x"]
            for test in tests:
                code = int(pytest.main([*options, str(ROOT / "tests" / test)], plugins=[Listen()]))
                if (failed if counts else code) and not collect:
                    break
            if "purebench" in sys.modules and not str(sys.modules["purebench"].__file__).startswith(str(folder)):
                code = 8
            os.write(write, "\n".join(failed).encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        failed = pipe.read().split("\n")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 8:
        raise RuntimeError("the tests imported another purebench than the mutated one")
    return code, [f for f in failed if f]


def copy_package(folder: Path) -> None:
    """What the tests import, into `folder`; checkpoints.toml lies beside it."""
    shutil.copytree(ROOT / "purebench", folder / "purebench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "checkpoints.toml", folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", action="store_true", help="also exchange operators, numbers and comparisons")
    parser.add_argument("--only", default="", help="source files whose name contains this")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PUREBENCH_GOLDEN", None)  # a fresh clone has to notice by itself
    import scipy.stats  # noqa: F401  (imported here, so that the forks need not)
    import torch
    import torch.fx.experimental.symbolic_shapes  # what the first torch.autograd.grad imports: two seconds
    import torchsde  # noqa: F401

    torch.set_num_threads(1)
    files = [
        *sorted((ROOT / "purebench" / "purifiers").glob("*.py")),
        ROOT / "purebench/engine/noise.py",
        ROOT / "purebench/engine/adjoint.py",
    ]
    todo = [m for f in files if args.only in f.name for m in mutants(f, args.operators)]

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folders: SimpleQueue[Path] = SimpleQueue()
        for i in range(args.workers):
            folder = Path(temporary) / str(i)
            copy_package(folder)
            folders.put(folder)
        folder = folders.get()
        _, broken = outcome(folder, TESTS, [], collect=True)
        folders.put(folder)
        for name in broken:
            print(f"left out, fails without mutation: {name}")

        def survives(mutant: Mutant) -> bool:
            folder = folders.get()
            target = folder / mutant.file
            original = target.read_text()
            try:
                target.write_text(mutant.source)
                first = FIRST.get(target.name, TESTS[0])
                return outcome(folder, [first, *(t for t in TESTS if t != first)], broken)[0] == 0
            finally:
                target.write_text(original)
                folders.put(folder)

        pool = stack.enter_context(ThreadPoolExecutor(args.workers))
        alive = []
        for mutant, survived in zip(todo, pool.map(survives, todo), strict=True):
            if survived:
                alive.append(mutant)
                reason = EQUIVALENT.get((mutant.file, f"{mutant.before} -> {mutant.after}"))
                print(f"survived  {mutant}" + (f"  [equivalent: {reason}]" if reason else ""), flush=True)

    print(f"\n{'file':34} mutants  killed  survived")
    for file in sorted({m.file for m in todo}):
        count, left = (sum(m.file == file for m in group) for group in (todo, alive))
        print(f"{file:34} {count:7} {count - left:7} {left:9}")
    unexplained = [m for m in alive if (m.file, f"{m.before} -> {m.after}") not in EQUIVALENT]
    print(f"{'all':34} {len(todo):7} {len(todo) - len(alive):7} {len(alive):9}")
    print(
        f"{len(alive) - len(unexplained)} survivors are equivalent, {len(unexplained)} are not; {time.monotonic() - began:.0f} s"
    )
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
