"""Who may import whom: the directions of docs/design.md, read from the source of every module."""

import ast
import re
import subprocess
import sys
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
    ".", "cli", "foreign", "registry", "spec", "errors", "atomic",
    "plan.grid", "plan.resolved", "plan.catalogue", "records.store", "report.metrics",
    "running.tasks", "running.cost", "running.pools", "running.runner", "running.progress", "running.estimate", "running.preflight",
    "running.probe", "running.storage", "running.doctor",
    "datasets", "assets", "engine.gradients",
]  # fmt: skip
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
    "matplotlib",
}

ROOMS = {  # room, from the ground up -> the rooms that it may import anywhere, in functions too; each stands above all of them
    "errors": "",
    "atomic": "",
    "spec": "errors",
    "foreign": "errors spec",
    "registry": "errors spec foreign",
    "records": "errors atomic spec",
    "engine": "errors spec",
    "networks": "errors",
    "assets": "errors atomic networks",
    "embedded": "errors assets networks",
    "datasets": "errors assets",
    "scores": "errors engine assets embedded",
    "classifiers": "errors engine networks assets embedded",
    "purifiers": "errors registry engine scores",
    "attacks": "errors spec engine",
    "plan": "errors spec foreign registry records scores classifiers engine assets embedded datasets",
    "train": "errors atomic networks datasets scores plan",
    "running": "errors atomic spec foreign registry records engine assets datasets scores classifiers purifiers attacks plan",
    "report": "errors atomic spec registry records engine assets datasets scores purifiers plan running",
    "api": "errors spec foreign records engine classifiers datasets plan running report",
    "cli": "*",
    "__main__": "cli",
}
DRAW = ("drawing", "figures", "costs", "strips", "maps", "imagery", "propositions")  # of report
INSIDE = {  # room -> its modules, each importing those before it alone
    "engine": "held noise nfe draws identity rows sizes flows objective chain adjoint gradients device precision defense",
    "plan": "hashed prepared resolved limits checks given aliases keys measures figures layouts scaled places grid sheet catalogue",
    "running": "finding probe progress tasks proof watched evaluate gate brought rehearsal cost pools runner speed sizes "
    "estimate preflight whole gradcheck storage doctor",
    "records": "schema1 store gradchecks frame",
    "api": "given kept own result run evaluate module judge",
    "cli": "terminal options layouts run results gradients pages parts files __main__",
    "report": "coded markdown metrics gradchecks logged certified protocols recipe sanity "
    "tables papers asked html pairs selection mates expect compare chart recorded images "
    "replay purified packed page toy drawing figures costs strips maps imagery propositions sketches inputs outputs pictures",
}


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


def for_types(module):
    """What a module imports under TYPE_CHECKING alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {n.module.removeprefix("purebench.") for node in guarded for n in node.body if isinstance(n, ast.ImportFrom)}


def room(module):
    return module.partition(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "."])
def test_a_module_imports_only_rooms_below_its_own(module):
    if room(module) not in ROOMS:
        pytest.fail(f"`{module}` is in no room of ROOMS: say what it may import")
    allowed = ROOMS[room(module)].split()
    wrong = {room(name) for name in imports(module, True)[0]} - {room(module), "", *allowed}
    assert "*" in allowed or not wrong, f"`{module}` may not import {sorted(wrong)}"


def test_no_room_may_import_what_it_does_not():
    for name, may in ROOMS.items():
        used = {room(other) for m in MODULES if room(m) == name for other in imports(m, True)[0]} - {name, ""}
        assert "*" in may or used == set(may.split()), name


def test_no_arrow_goes_up():
    floor = {name: i for i, name in enumerate(ROOMS)}
    assert [
        (name, other)
        for name, may in ROOMS.items()
        for other in may.replace("*", "").split()
        if floor[other] >= floor[name]
    ] == []
    assert {room(m) for m in MODULES} - {""} <= set(ROOMS)


@pytest.mark.parametrize("name", INSIDE)
def test_inside_a_room_a_module_imports_those_before_it(name):
    modules = INSIDE[name].split()
    assert {m for m in MODULES if m.startswith(f"{name}.")} == {f"{name}.{m}" for m in modules}
    for i, module in enumerate(modules):
        ours = imports(f"{name}.{module}", True)[0] - for_types(f"{name}.{module}")
        mates = {m.partition(".")[2] for m in ours if room(m) == name} - {""}
        assert mates <= set(modules[:i]), f"{name}.{module}"


def test_every_folder_says_what_it_is_what_it_may_import_and_where_to_begin():
    for path in ROOT.glob("*/__init__.py"):
        said = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
        sentence = re.search(r"It may import .*?[.;] ", said)
        assert sentence, path.parent.name
        named, allowed = set(re.findall(r"`(\w+)`", sentence[0])), ROOMS[path.parent.name].split()
        assert named & ROOMS.keys() == set(allowed) - {"*"}, path.parent.name
        assert ("every room" in sentence[0]) == ("*" in allowed), path.parent.name
        assert "Begin reading at" in said, path.parent.name


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("cli", "__main__")])
def test_nothing_imports_the_command_line(module):
    assert not {name for name in imports(module, True)[0] if room(name) == "cli"}


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
    code = f"import sys, {', '.join('purebench.' + m for m in LIGHT if m != '.')}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_pandas_costs_a_second_and_only_what_shows_records_takes_it():
    """Neither planning nor a worker may wait for it: they import no module that imports it, in functions either."""
    shows = {"report.tables", "report.papers", "report.compare", "api.result"}
    assert {m for m in MODULES if "pandas" in imports(m, True)[1]} == {
        "records.frame",
        "report.tables",
        "report.compare",
        "api.result",
    }
    assert {m for m in MODULES if "records.frame" in imports(m, True)[0]} == {".", *shows}
    assert {m for m in MODULES if "report.tables" in imports(m, True)[0]} == {
        "cli.results",
        "api.result",
        "report.asked",
        "report.html",
        "report.papers",
        "report.compare",
        "report.expect",
        "report.chart",
        "report.page",
        "report.costs",
    }
    assert {m for m in MODULES if imports(m, True)[0] & {"report.papers", "report.compare", "report.expect"}} == {
        "cli.results",
        "cli.pages",
        "report.asked",
        "report.html",
        "report.compare",
        "report.page",
        "report.figures",
        "report.imagery",
    }


def test_matplotlib_is_imported_to_draw_and_for_nothing_else():
    assert {m for m in MODULES if "matplotlib" in imports(m, True)[1]} == {f"report.{m}" for m in DRAW}
    for name in DRAW:
        assert {m for m in MODULES if f"report.{name}" in imports(m, True)[0]} <= {
            f"report.{m}" for m in (*DRAW, "sketches")
        }
    assert {m for m in MODULES if "report.sketches" in imports(m, True)[0]} == {"cli.pages"}
    # In the functions that draw.
    assert "report.sketches" not in imports("cli.pages", False)[0]


@pytest.mark.parametrize(
    "command", ["--help", "list", "list figures", "show coup", "show coup/fig4a", "status", "table", "compare"]
)
def test_what_a_command_really_imports(command):
    """Only what shows records takes pandas, and none of these takes torch or matplotlib."""
    words = command.split()
    words += [str(ROOT.parent / "results" / "jpeg-cifar10")] if command in ("status", "table", "compare") else []
    words += ["--by", "defense"] if command == "compare" else []
    code = (
        f"import atexit, sys; sys.argv[1:] = {words}; from purebench import cli\n"
        "atexit.register(lambda: print(*sorted({'pandas', 'torch', 'matplotlib'} & set(sys.modules)), file=sys.stderr))\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.split() == ["pandas"] * (command in ("table", "compare"))
