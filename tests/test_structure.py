"""`benchmarks/structure.py` on a package of four rooms whose measures are known."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "structure.py"
SOURCES = {
    "__init__.py": '"""The package."""\n',
    "errors.py": '"""Errors."""\n\n# because\nX = 1  # noqa: E501\n',
    "plan/__init__.py": "from purebench.errors import X\nfrom typing import Any\n\ndef f(a: Any) -> Any:\n"
    '    """Says\n    what."""\n    from .cells import g\n    return g(a, """\n\n""")\n',
    "plan/cells.py": "from .. import errors\nfrom purebench import records\n\ndef g(*a):\n    return errors, records\n",
    "records.py": "import purebench.errors\n\ndef h():\n    import purebench.plan.cells\n    import purebench.plan\n" + "    x = 1\n" * 60,
    "cli.py": "from purebench import plan, records\nimport typing\nif typing.TYPE_CHECKING:\n    from purebench.errors import X\n",
}  # fmt: skip


@pytest.fixture
def structure():
    spec = importlib.util.spec_from_file_location("structure", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measures_of_a_small_house(structure, tmp_path):
    for name, source in SOURCES.items():
        path = tmp_path / "purebench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    found = structure.measure(tmp_path)
    assert structure.measure(tmp_path / "purebench") == found
    assert (found["files of code"], found["files at the top"], found["folders at the top"]) == (6, 4, 1)
    assert found["lines of code"] == 0 + 1 + 7 + 4 + 64 + 4
    assert (found["uses of Any"], found["comments per 100 lines of code"]) == (3, 1.2)
    assert found["long"] == [["records.py:h", 63]]
    assert {room: (of["floor"], of["imports"]) for room, of in found["imports"].items()} == {
        "cli": (3, ["errors", "plan", "records"]), "plan": (1, ["errors", "records"]),
        "records": (2, ["errors", "plan"]), "__init__": (0, []), "errors": (0, []),
    }  # fmt: skip
    assert found["up"] == [["plan", "records", 1]]  # one import to undo; the other way there are two
    assert (found["rooms"], found["floors"], found["arrows"], found["rooms in circles"]) == (5, 4, 7, 2)


def test_a_circle_is_broken_where_it_costs_least(structure):
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}
    arrows = {("a", "b"): 5, ("b", "c"): 5, ("c", "a"): 1, ("a", "d"): 1, ("d", "e"): 3, ("e", "d"): 2}
    level, up = structure.floors(graph, arrows)
    assert up == [("c", "a"), ("e", "d")]
    assert level == {"a": 2, "b": 1, "c": 0, "d": 1, "e": 0}


def test_this_package_is_measured(structure):
    found = structure.measure(FILE.parents[1])
    assert found["files of code"] > 50
    assert found["rooms"] == len(found["imports"])
    with pytest.raises(SystemExit, match="error: no package"):
        structure.measure(FILE.parent)
