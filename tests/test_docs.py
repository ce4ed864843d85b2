"""The pages of the defenses, and the worked example of docs/adding-a-purifier.md: one file, one registry line, one page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import purebench
from purebench import registry
from purebench.plan import catalogue, layouts
from purebench.plan import grid as plan
from purebench.records import store as records
from purebench.report import tables
from purebench.running import progress, runner
from purebench.spec import parse

DOCS = Path(__file__).parents[1] / "docs"


# ------------------------------------------------------------------------------------------------------- pages of defenses

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "defenses").glob("*.md")}


def test_every_registered_defense_has_its_page_and_every_page_its_defense():
    assert PAGES.keys() == registry.NAMES["defense"].keys()


@pytest.mark.parametrize("name", registry.NAMES["defense"])
def test_a_page_names_its_parameters_and_no_others(name):
    """`key=value` on a page is a parameter of its defense, `other:key=value` of the other, with values that these may have."""
    known = registry.parameters("defense", name)
    own = known.keys() - registry.COMMON["defense"]
    assert own == {key for key in own if re.search(rf"`{key}\b|\b{key}=", PAGES[name])}
    for said in re.findall(r"`([^`\n]+)`", PAGES[name]):
        of, colon, parameters = said.rpartition(":")
        if not re.match(r"[\w-]+=", parameters) or (colon and of not in registry.names("defense")):
            continue
        part = parse(f"{of or name}:{parameters}")
        given = {k: v for k, v in part.parameters if not re.fullmatch("[A-Za-z]", str(v))}  # `steps=k`: any number
        registry.check_parameters("defense", part.name, given)
        assert {k for k, _ in part.parameters} <= registry.parameters("defense", part.name).keys(), said


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# --------------------------------------------------------------------------------------------------------- pages of papers


@pytest.mark.parametrize("paper", sorted({name.partition("/")[0] for name in plan.tables()}))
def test_a_papers_page_names_each_of_its_tables_and_what_that_waits_for(paper):
    page = (DOCS / "papers" / f"{paper}.md").read_text(encoding="utf-8")
    lines = {
        name: line for line in page.splitlines() for name in re.findall(rf"`({paper}/[\w-]+)`", line) if line[0] == "|"
    }
    tables = [name for name in plan.tables() if name.startswith(f"{paper}/")]
    assert lines.keys() == set(tables)
    for name in tables:
        layout = layouts.read(plan.tables()[name], name)
        assert catalogue.facts(name)["documentation"] == f"docs/papers/{paper}.md"
        needs = {need for of in (*layout.rows, *layout.columns) for need in of.needs}
        assert needs == set(re.findall(r"`((?:asset|attack|metric):[\w-]+)`", lines[name])), name


# ----------------------------------------------------------------------------------------------------- a purifier of your own


@pytest.fixture
def median(monkeypatch):
    line = re.search(r'"median": "purebench\.purifiers\.(median:median)"', (DOCS / "adding-a-purifier.md").read_text())
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    monkeypatch.setitem(registry.NAMES["defense"], "median", line[1])
    registry.names.cache_clear()
    yield
    for cached in (registry.names, registry._parameters, registry._info, registry._source):
        cached.cache_clear()


def test_the_median_filter_runs_and_is_shown(median, tmp_path):
    the_plan = plan.build(
        plan.Request(defenses=("median", "none"), attacks=("null", "pgd-eot:steps=4,eot=1"), images=8, evals=2)
    )
    outcome = runner.run(the_plan, runner.Settings(tmp_path), progress.reporter(quiet=True))
    assert not outcome.failed
    table = tables.render(records.load_all([tmp_path]))
    assert re.search(r"^\| median +\| +\d", table, re.MULTILINE)


def test_the_median_filter_filters(median):
    from purebench import purifiers
    from purebench.engine import chain
    from purebench.engine.noise import Noise

    x = torch.full((1, 1, 8, 8), 0.25)
    x[0, 0, 3, 3] = 1.0  # one broken pixel
    purified = chain.run(purifiers.make("median"), x, Noise(0, "test", (), [0], [0]))
    assert torch.equal(purified, torch.full_like(x, 0.25))


CONTRACT = {  # in whose ids a new purifier has to appear by itself: every test over registered names
    "test_contract.py": "every_purifier_names_quick_cases shape_dtype_range_and_finiteness a_function_of_image_seed "
    "neither_on_its_mates not_on_the_number_of_rows network_calls_are_those_counted_on_stand_ins "
    "autograd_through_the_unrolled",
    "test_fake_cuda.py": "stays_on_the_device_in_float32 asks_for_no_value classifies_and_is_attacked_there",
    "test_chain.py": "under_every_plan central_difference budgets_from_the_least",
    "test_purifiers.py": "draws_noise_of_its_own golden_literals",
    "test_registry.py": "compares_is_one hold_its_default conditional_version",
    "test_cli.py": "shown_with_its_essentials every_value_of_every_dataset",
    "test_docs.py": "names_its_parameters_and_no_others",
}


def test_a_purifier_that_belongs_is_one_file_one_line_and_one_page(tmp_path):
    """The example moved into a copy of the package: nothing else changes, and every contract test runs on it."""
    root = Path(purebench.__file__).parents[1]
    for name in ("purebench", "tests", "docs"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "checkpoints.toml"):
        shutil.copy(root / name, tmp_path)
    line = re.search(r'"median": ".*",', (DOCS / "adding-a-purifier.md").read_text())[0]
    registered = tmp_path / "purebench" / "registry.py"
    table = '    "defense": {\n'
    before = registered.read_text()
    registered.write_text(before.replace(table, f"{table}        {line}\n", 1))
    assert len(registered.read_text().splitlines()) == len(before.splitlines()) + 1
    shutil.copy(DOCS / "examples" / "median.py", tmp_path / "purebench" / "purifiers")
    shutil.copy(DOCS / "examples" / "median.md", tmp_path / "docs" / "defenses")

    asked = [str(tmp_path / "tests" / name) for name in CONTRACT]
    chosen = "(median and not filter and not one_file) or every_registered_defense_has_its_page"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-k", chosen, *asked],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name, tests in CONTRACT.items():
        for test in tests.split():
            assert re.search(rf"{name}::\w*{test}\w*\[.*median", done.stdout), f"{name}: {test}"


# --------------------------------------------------------------------------------------------------------- an attack of your own


def test_the_example_attack_runs_as_a_file_and_as_a_plug_in(monkeypatch, tmp_path):
    """The same images either way and in either order, inside either ball, and stronger than none."""
    page = (DOCS / "adding-an-attack.md").read_text()
    written = re.search(r"-a (\./momentum\.py:mi_fgsm):steps", page)[1]
    line = re.search(r'"mi-fgsm": "purebench\.attacks\.(momentum:mi_fgsm)"', page)[1]
    options = {"defenses": ("one-shot",), "threats": ("Linf:0.2", "L2:1"), "dataset": "digits", "images": 5, "evals": 2}

    def run(name, out, reverse):
        request = plan.Request(attacks=(f"{name}:steps=3,eot=2",), **options)
        settings = runner.Settings(tmp_path / out, rows=6, reverse=reverse)
        assert not runner.run(plan.build(request), settings, progress.reporter(quiet=True)).failed
        logs = {log.cell["threat"]: log for log in records.load_all([tmp_path / out])}
        assert [log.cell["attack"] for log in logs.values()] == ["mi-fgsm:eot=2,steps=3"] * 2
        return logs, {threat: (log.folder / records.ADVERSARIAL).read_bytes() for threat, log in logs.items()}

    monkeypatch.chdir(DOCS / "examples")
    logs, images = run(written, "file", reverse=False)
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    monkeypatch.setitem(registry.NAMES["attack"], "mi-fgsm", line)
    registry.names.cache_clear()
    try:
        assert run("mi-fgsm", "plug-in", reverse=True)[1] == images
    finally:
        for cached in (registry.names, registry._parameters, registry._info, registry._source):
            cached.cache_clear()
    for threat, norm, eps in (("Linf:0.2", "linf", 0.2), ("L2:1", "l2", 1)):
        lines = logs[threat].images
        assert 0.9 * eps < max(image[norm] for image in lines) <= eps * (1 + 1e-6)
        assert sum(image["adversarial"].count(image["label"]) for image in lines) < 10
        assert all(image["nfe"] == [12, 12] for image in lines)


def test_the_example_classifier_and_images_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(DOCS / "examples")
    options = {"defenses": ("none",), "attacks": ("null", "transfer-pgd:steps=3"), "evals": 1, "threats": ("Linf:0.2",)}
    hub = {"classifier": "./hub_classifier.py:HubClassifier:width=8", "dataset": "digits", "images": 40}
    own = {"classifier": "digits-cnn", "dataset": "./own_images.py:negatives:count=20", "images": 20}
    right = {}
    for word, given in (("hub", hub), ("own", own)):
        settings = runner.Settings(tmp_path / word)
        the_plan = plan.build(plan.Request(**options, **given))
        assert not runner.run(the_plan, settings, progress.reporter(quiet=True)).failed
        for log in records.load_all([tmp_path / word]):
            # Neither left in training mode, nor detached, nor probabilities: nothing is to be told.
            assert not any("notes" in line for line in log.images)
            answers = [line["adversarial"][0] == line["label"] for line in log.images]
            right[word, log.cell["attack"].partition(":")[0]] = sum(answers) / len(answers)
    assert right["hub", "null"] > 0.8
    assert right["hub", "transfer-pgd"] < 0.5
    # Of digits in negative the network knows next to nothing.
    assert right["own", "null"] < 0.5


# ------------------------------------------------------------------------------------------------- what people have


@pytest.mark.parametrize(("page", "least"), [("real-files", 100), ("real-servers", 50)])
def test_every_row_of_what_people_have_names_a_test_that_is_there(page, least):
    rows = [line for line in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| fault |")]
    file = ""
    for row in rows:
        last = re.split(r"(?<!\\)\|", row)[-2]
        for path, name in re.findall(r"(tests/\w+\.py)?::(\w+)", last):
            file = path or file
            assert f"def {name}" in (DOCS.parent / file).read_text(encoding="utf-8"), row
        # The test of the row above, where it is the same.
        assert "::" in last or "same" in last, row
    assert len(rows) > least
