"""What INFO may say: arithmetic and conditions over parameters, versions that hold for some of them, and names that exist."""

import ast
from pathlib import Path

import pytest

from purebench import datasets, registry
from purebench.errors import UserError
from purebench.plan import catalogue
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.spec import NORMS

EVERYTHING = [(kind, name) for kind, names in registry.NAMES.items() for name in names]


def conditions(kind, name):
    """Every entry of INFO that is evaluated."""
    info = registry.info(kind, name)
    found = [info[key] for key in ("gradient_calls", "forward_calls", "score_calls") if key in info]
    return [
        *found,
        *info.get("requires", []),
        *info.get("versions", {}),
        *(c for c in (info.get("verdict") if isinstance(info.get("verdict"), dict) else {}).values() if c),
        *(c for c, _ in info.get("moot", {}).values()),
    ]


# ------------------------------------------------------------------------------------------------------------ expressions


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("word == 'b'", True),
        ("word == 'a'", False),
        ("word != 'a'", True),
        ("n == 3", True),
        ("n * (1 + (word == 'b'))", 6),
        ("1 < n <= 3 == n", True),
        ("n > 1 and word == 'b'", True),
        ("n > 5 and word / 2", False),  # the second is not looked at
        ("n or word / 2", 3),
        ("zero or n", 3),
        ("zero and n", 0),
        ("zero or n > 5 or word == 'c'", False),
        ("sum(zero or stages)", 5),
        ("suffix(path) == '.pth'", True),
    ],
)
def test_what_an_entry_may_say(text, result):
    values = {"n": 3, "word": "b", "zero": 0, "stages": (2, 3), "path": "a/b.pth"}
    assert registry.expression(text, values) == result


@pytest.mark.parametrize(
    "text",
    [
        "word >= 'b'",
        "word < 3",
        "n <= 'deterministic'",
        "word in 'abc'",
        "n is n",
        "not n",
        "2 ** n",
        "n if n else 0",
        "print(n)",
    ],
)
def test_words_have_no_order_and_nothing_else_is_evaluated(text):
    with pytest.raises(ValueError, match="comparison"):
        registry.expression(text, {"n": 3, "word": "b"})


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_a_word_that_an_entry_compares_is_one_that_the_parameter_may_have(kind, name):
    """A misspelt one would be another word, and so never true."""
    # What an attack costs may depend on the threat model's norm, too.
    known = {**registry.parameters(kind, name), **({"norm": "Linf"} if kind == "attack" else {})}
    for text in conditions(kind, name):
        for node in ast.walk(ast.parse(text, mode="eval")):
            words = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            for word in words:
                assert isinstance(node, ast.Compare)
                assert isinstance(node.ops[0], ast.Eq | ast.NotEq)
                if isinstance(node.left, ast.Call):
                    assert word.value.startswith(".")  # suffix(path)
                    continue
                free = known[node.left.id] == ""  # `path`, `network`
                words = NORMS if node.left.id == "norm" else registry.choices(kind, name).get(node.left.id, ())
                assert free or word.value in words, text
            if isinstance(node, ast.Name) and node.id not in ("sum", "len", "max", "min", "round", "suffix"):
                assert node.id in known, text


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_the_words_that_a_parameter_may_be_hold_its_default(kind, name):
    known = registry.parameters(kind, name)
    for key, words in registry.choices(kind, name).items():
        # Nothing: what a file says, or the dataset.
        assert known[key] in (*words, ""), key
        registry.check_parameters(kind, name, {key: words[-1]})
        with pytest.raises(UserError, match=f"unknown {key} of `{name}` `{words[0]}x`") as error:
            registry.check_parameters(kind, name, {key: f"{words[0]}x"})
        assert words[0] in error.value.hint  # did you mean


def test_parameters_of_one_name_have_words_of_their_own():
    """Of the component alone: `guidance` is a word of gdmp, a number of coup, another word of the adjoint."""
    assert "mse" in registry.choices("defense", "scoreopt-o")["objective"]
    assert "mse" not in registry.choices("defense", "scoreopt-n")["objective"]
    assert registry.choices("defense", "gdmp")["guidance"] != registry.choices("gradient", "adjoint")["guidance"]
    assert "guidance" not in registry.choices("defense", "coup")


@pytest.mark.parametrize(("guidance", "needs"), [(1.0, ["score", "classifier"]), (0.0, ["score"])])
@pytest.mark.parametrize("name", ["coup", "lm", "lm-coup"])
def test_what_is_needed_may_depend_on_the_parameters(name, guidance, needs):
    assert registry.needs(name, {"guidance": guidance}) == needs


# --------------------------------------------------------------------------------------------------------------- versions


def versions(defense, **given):
    request = Request(dataset="digits", defenses=(defense,), attacks=("pgd-eot",), **given)
    [job] = plan.build(request).jobs
    return {kind: part["version"] for kind, part in job.cell.data()["parts"].items()}


@pytest.mark.parametrize(
    ("defense", "version"),
    [
        ("scoreopt-n", 1),
        ("scoreopt-n:objective=sr", 1),
        ("scoreopt-n:outer=2", 1),
        ("scoreopt-n:outer=2,objective=sr", 2),
        ("scoreopt-n:outer=2,objective=sr,votes=3", 2),
        ("scoreopt-o:objective=sr", 1),
        ("lm", 2),
    ],
)
def test_a_version_is_that_of_the_parameters(defense, version):
    assert versions(defense)["defense"] == version


def test_a_surrogates_version_is_that_of_its_own_parameters():
    found = versions("scoreopt-n", grads=("surrogate:outer=2,objective=sr",))
    assert (found["defense"], found["surrogate"]) == (1, 2)


def test_the_largest_version_that_holds_counts(monkeypatch):
    entry = {"version": 2, "versions": {"steps > 5": 4, "steps > 1": 3, "votes > 1": 1}}
    monkeypatch.setattr(registry, "info", lambda kind, name: entry)
    assert [registry.version("defense", "x", {"steps": n}) for n in (1, 2, 9)] == [2, 3, 4]  # `votes` is known, too


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_a_conditional_version_raises(kind, name):
    info = registry.info(kind, name)
    assert all(number > info["version"] for number in info.get("versions", {}).values())


# ------------------------------------------------------------------------------------------------------- names that exist


def test_every_citation_is_one_entry_of_the_references():
    """Said once, by its key; none is there that nothing cites."""
    cited = [key for kind, name in EVERYTHING for key in registry.info(kind, name).get("cite", "").split()]
    assert set(cited) == set(catalogue.references())
    text = (Path(registry.__file__).parent / "references.bib").read_text()
    assert text.count("\n@") + 1 == len(catalogue.references())  # no key twice
    assert catalogue.facts("coup")["cite"].startswith("@inproceedings{zhang2024coup,\n")
    assert catalogue.facts("coup")["cite"].endswith("\n}")


def test_a_file_may_bring_an_entry_of_its_own(monkeypatch):
    own = "@misc{mine,\n  title={Mine}\n}"
    monkeypatch.setattr(registry, "info", lambda kind, name, known=registry.info: known(kind, name) | {"cite": own})
    assert catalogue.facts("gaussian")["cite"] == own


def test_every_network_says_what_it_was_trained_on():
    sets = {registry.info("dataset", name).get("training_set", name) for name in registry.NAMES["dataset"]} - {""}
    for kind in ("classifier", "score"):
        for name in registry.NAMES[kind]:
            said = registry.info(kind, name).get("trained_on")
            values = registry.parameters(kind, name)
            assert name == "file" or said.format(**values) in sets, name


def test_the_score_model_of_a_paper_is_named_where_it_is_known():
    """A defense says that it has its own; CIFAR-10, where the papers are at home, names it for each of them, and for no other."""
    own = {name for name in registry.NAMES["defense"] if registry.info("defense", name).get("own_score")}
    assert own == {name for name, values in datasets.defaults("cifar10")["defense"].items() if "score" in values}
    assert own == {name for name, values in datasets.defaults("digits")["defense"].items() if "score" in values}
