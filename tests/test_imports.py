"""Who may import whom: the directions of docs/design.md, read from the source of every module."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

import purebench

ROOT = Path(purebench.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__").replace("__init__", "."): path
    for path in sorted(ROOT.rglob("*.py"))
}
LIGHT = [
    "cli",
    "registry",
    "spec",
    "plan",
    "records",
    "metrics",
    "tables",
    "errors",
    "atomic",
    "tasks",
    "runner",
    "progress",
    "catalogue",
    "estimate",
    "components",
    "datasets",
    "assets",
    "gradients",
]
HEAVY = {
    "torch",
    "torchvision",
    "pandas",
    "numpy",
    "sklearn",
    "scipy",
    "rich",
    "pyautoattack",
    "autoattack",
    "torchsde",
    "torchdiffeq",
    "robustbench",
    "timm",
    "pyarrow",
    "requests",
    "filelock",
    "PIL",
}

MAY = {  # module (the first pattern that fits) -> the modules of ours that it may import anywhere, in functions too
    "errors": "",
    "atomic": "",
    "noise": "",
    "nfe": "",
    "metrics": "",
    "progress": "",
    "gradients": "",
    "spec": "errors",
    "records": "errors atomic",
    "registry": "errors spec",
    "chain": "errors noise nfe",
    "adjoint": "errors noise nfe chain",
    "device": "errors",
    "defense": "errors noise nfe spec chain adjoint purifiers.none",
    "tables": "errors spec metrics records registry",
    "assets": "errors atomic",
    "assets.*": "errors atomic assets assets.* networks networks.* progress",
    "zoo": "errors",
    "components": "errors spec registry assets embedded datasets.images",
    "embedded": "errors assets networks.small",
    "datasets": "errors",
    "datasets.*": "errors datasets datasets.* assets assets.*",
    "networks": "errors networks.*",
    "networks.*": "errors nfe networks.*",
    "scores": "",
    "scores.*": "errors nfe noise scores.* networks.* embedded assets assets.*",
    "classifiers": "errors networks networks.* embedded assets assets.* zoo",
    "purifiers": "errors registry",
    "purifiers.*": "errors noise spec chain purifiers.* scores.*",
    "attacks": "defense noise spec",
    "attacks.*": "errors spec noise nfe defense attacks attacks.*",
    "plan": "errors spec registry components datasets assets",
    "tasks": "errors spec plan datasets",
    "evaluate": "errors spec registry components tasks noise nfe defense purifiers purifiers.* datasets datasets.images",
    "runner": "errors spec plan datasets tasks records evaluate device",
    "estimate": "errors spec assets plan tasks records runner progress evaluate device noise assets.checkpoint",
    "rehearsal": "errors spec registry components purifiers noise plan scores.vp assets assets.checkpoint",
    "catalogue": "errors spec registry plan datasets assets",
    "pictures": "errors spec plan rehearsal noise chain defense purifiers.resized assets tasks evaluate device",
    "train": "errors atomic noise nfe networks.* scores.* components datasets datasets.* assets chain device",
    "toy": "noise chain purifiers scores.views",
    "cli": "*",
    ".": "*",
}  # fmt: skip


@cache
def imports(module, everywhere):
    """(modules of ours, top-level packages of others) that a module imports: at module level, or `everywhere`."""
    ours, others = set(), set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else _at_import(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if n.removeprefix("purebench.") in MODULES else node.module for n in inside]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "purebench":
                ours.add(name.removeprefix("purebench").strip(".") or ".")
            else:
                others.add(name.partition(".")[0])
    return ours, others


def _at_import(tree):
    """The nodes that run when the module is imported: not those in functions, nor under TYPE_CHECKING."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def rule(module):
    return next((MAY[pattern] for pattern in MAY if fnmatch(module, pattern)), None)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module):
    allowed = rule(module)
    if allowed is None:
        pytest.fail(f"`{module}` has no line in MAY: say what it may import")
    wrong = [
        name for name in imports(module, True)[0] if not any(fnmatch(name, pattern) for pattern in allowed.split())
    ]
    assert not wrong, f"`{module}` may not import {wrong}"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "cli"])
def test_nothing_imports_the_command_line(module):
    assert "cli" not in imports(module, True)[0]


@pytest.mark.parametrize("module", LIGHT)
def test_what_plans_and_records_imports_nothing_heavy(module):
    seen, pending = set(), [module]
    while pending:
        name = pending.pop()
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        if name not in seen and name in MODULES:
            seen.add(name)
            ours, others = imports(name, False)
            assert not others & HEAVY, f"`{module}` imports {others & HEAVY} by way of `{name}`"
            pending += [*ours, *parents]


def test_what_plans_and_records_really_imports_nothing_heavy():
    code = f"import sys, {', '.join('purebench.' + m for m in LIGHT)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
