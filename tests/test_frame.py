"""The records as DataFrames: every image once, nothing left out, and the same numbers as the tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import purebench
from purebench.errors import UserError
from purebench.records import frame, store
from purebench.report import metrics, tables

RESULTS = Path(__file__).parent.parent / "results"
SHAPE = [1, 2, 2]
CELL = {
    "dataset": "digits", "subset": "first", "classifier": "cnn", "score": "vp", "threat": "Linf:0.2", "seed": 3,
    "defense": "coup", "attack": "pgd-eot", "gradient": "exact", "source": "",
    "parts": {
        "defense": {"version": 2, "values": {"steps": 10}}, "attack": {"version": 1, "values": {"eot": 5}},
        "noise": {"version": 1}, "score": {"hash": "abc"},
    },
}  # fmt: skip


def line(position, adversarial, **more):
    return {
        "position": position, "index": 10 + position, "label": 1, "undefended": 1, "clean": [1, 1, 0], "adversarial": adversarial,
        "verdict": None, "linf": 0.2, "l2": 1.5, "nfe": [30, 20],
    } | more  # fmt: skip


def write(folder, lines, cell=CELL, **run):
    made = store.Store(folder, folder.name, cell, SHAPE, {"started": "now", "wanted": 5} | run)
    made.append(lines, [bytes(16) for _ in lines], {"seconds": 2.5, "positions": []})
    made.finish()
    made.close()


LINES = [
    line(0, [1, 0, 1]),
    line(1, [-1, 1], not_finite={"adversarial": "step 3 of 10"}, notes=["random"], stopped=4, batch=[0, 2], margin=0.5),
    line(2, [], failed="attack: it returned values that are not finite"),
    line(3, [1, 1, 1], failed="attack: of an older version, which judged the clean image"),
    line(4, [0, 0, 0], gradients={"iterates": 5, "zero": 4, "not_finite": 1, "right": 3, "blind": 2}, verdict=False),
]


@pytest.fixture
def results(tmp_path):
    write(tmp_path / "one", LINES)
    return tmp_path


def test_one_row_per_image_with_typed_columns(results):
    found = purebench.load(results)
    assert list(found.columns) == [*frame.DTYPES, "adv_crc", "batch", "margin"]
    assert {name: str(found[name].dtype) for name in frame.DTYPES} == frame.DTYPES
    assert found.position.tolist() == [0, 1, 2, 3, 4]
    assert found["index"].tolist() == [10, 11, 12, 13, 14]
    row = found.iloc[1]
    assert [row[name] for name in frame.NAMES] == [
        "one", "digits", "first", "cnn", "vp", "coup", "pgd-eot", "Linf:0.2", "exact", 3,
    ]  # fmt: skip
    assert (row.clean, row.adversarial) == ([1, 1, 0], [-1, 1])
    assert (row.clean_evals, row.clean_right, row.evals, row.right) == (3, 2, 2, 1)
    assert (row.nfe_forward, row.nfe_backward, row.l2, row.stopped) == (30, 20, 1.5, 4)
    assert (row.not_finite_adversarial, row.notes, row.batch, row.margin) == ("step 3 of 10", ["random"], [0, 2], 0.5)
    assert pd.isna(row.verdict)
    assert pd.isna(row.not_finite_clean)
    counts = found.filter(like="gradients_").iloc[4]
    assert counts.to_dict() == {f"gradients_{name}": n for name, n in LINES[4]["gradients"].items()}
    assert not found.verdict[4]


def test_an_image_that_was_never_made_is_there_and_marked(results):
    """Whatever its line says: an older version judged the clean image in its place."""
    found = purebench.load(results)
    assert found.lost.tolist() == [False, False, True, True, False]
    lost = found[found.lost]
    assert lost.adversarial.tolist() == [[], []]
    assert lost.evals.tolist() == [0, 0]
    assert lost.right.isna().all()
    assert lost.failed.str.startswith("attack: ").all()
    assert found.right.sum() == 3


def test_a_transfer_of_an_image_that_was_never_made_is_marked(results):
    write(
        results / "two", [line(p, [1, 1]) for p in range(5)], CELL | {"source": "one", "attack": "transfer:from=(coup)"}
    )
    found = purebench.load(results)
    two = found[found.cell == "two"]
    assert two.position[two.lost].tolist() == [2, 3]
    assert set(two.failed[two.lost]) == {"attack: its source has no image"}
    assert not purebench.load(results / "two").lost.any()  # what its source made cannot be known from here


def test_one_row_per_cell(results):
    write(results / "two", [], CELL | {"defense": "none", "source": "one"}, failed="out of memory")
    one, two = (row for _, row in frame.cells(results).iterrows())
    assert (one.cell, one.defense, one.seed, one.wanted, one.images, one.lost, one.evals) == (
        "one",
        "coup",
        3,
        5,
        3,
        2,
        2,
    )
    assert (one.nfe_forward, one.seconds, one.folder) == (30, 2.5, results / "one")
    assert one.parts["defense"] == {"version": 2, "hash": None, "values": {"steps": 10}}
    assert one.parts["score"] == {"version": None, "hash": "abc", "values": {}}
    assert one.runs[0]["started"] == "now"
    assert pd.isna(one.failed)
    assert (two.images, two.evals, two.failed, two.source) == (0, 0, "out of memory", "one")
    assert pd.isna(two.nfe_forward)


def test_a_cell_found_twice_counts_once(results):
    write(results / "more" / "one", [line(p, [1] * 9) for p in range(4)])
    for paths in ((results, results / "more"), (results / "more", results), (results, results, results / "more")):
        found = purebench.load(*paths)
        assert found.evals.tolist() == [9, 9, 9, 9]
    assert len(frame.cells(results, results / "more")) == 1


def test_a_copy_under_a_name_of_before_counts_once(results):
    """What stood apart from its source when it was read was given another id than beside it."""
    write(results / "other" / "two", [line(p, [1] * 9) for p in range(4)], CELL | {"score": "another"})
    path = results / "other" / "two" / store.CELL
    path.write_text(json.dumps(json.loads(path.read_text()) | {"was": ["one"]}))
    assert purebench.load(results, results / "other").evals.tolist() == [9, 9, 9, 9]


def test_which_of_two_copies_counts_does_not_depend_on_their_order_and_a_difference_is_told(results, tmp_path):
    """Equally many images: the newer one; and a table says that the other answers otherwise."""
    write(results / "later" / "one", [line(p, [0, 0, 0]) for p in range(5)], started="zzz")
    write(results / "sooner" / "one", [line(p, [1, 1, 1]) for p in range(5)], started="aaa")
    folders = [results / "later", results / "sooner"]
    for paths in (folders, folders[::-1]):
        assert purebench.load(*paths).right.tolist() == [0] * 5
        [log] = frame.settled(store.load_all(paths))
        assert log.rivals == (results / "sooner" / "one",)
        assert any("copies of one cell answer otherwise" in said for said in tables.doubts([log]))
    # A copy that has fewer draws, or fewer images, and says the same is no rival.
    write(results / "part" / "one", [line(p, [0, 0]) for p in range(3)])
    assert frame.settled(store.load_all([results / "later", results / "part"]))[0].rivals == ()


def test_a_word_of_an_attack_does_not_rename_its_cell(results):
    write(results / "three", [line(0, [1, 1], seed=7, score="another", margin=0.5)], CELL | {"seed": 3})
    found = purebench.load(results / "three")
    assert (found.seed[0], found.score[0], found.margin[0]) == (3, CELL["score"], 0.5)


def test_a_cell_without_images_has_no_row_and_every_column(tmp_path):
    write(tmp_path / "one", [])
    found = purebench.load(tmp_path)
    assert len(found) == 0
    assert {name: str(dtype) for name, dtype in found.dtypes.items()} == frame.DTYPES


def test_bad_paths(tmp_path, results, monkeypatch):
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "none", "there is no"), (tmp_path / "empty", "there are no records in")):
        with pytest.raises(UserError, match=said) as caught:
            purebench.load(path)
        assert "purebench run" in caught.value.hint
    images = results / "one" / store.IMAGES
    images.write_bytes(images.read_bytes().replace(b'"label":1', b'"label":2', 1))
    with pytest.raises(UserError, match="line 1 of"):
        purebench.load(results)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no `results`"):
        purebench.load()


def test_the_tracked_records_give_the_numbers_of_their_table():
    paths = [RESULTS / "jpeg-cifar10", RESULTS / "digits-all"]
    found = purebench.load(*map(str, paths))
    logs = {log.id: log for log in store.load_all(paths)}
    assert len(found) == sum(len(log.images) for log in logs.values())
    totals = found.groupby("cell")[["right", "evals", "clean_right", "clean_evals"]].sum()
    for cell, log in logs.items():
        right, evals, clean_right, clean_evals = totals.loc[cell]
        assert right / evals == pytest.approx(metrics.accuracy(log.images).value)
        assert clean_right / clean_evals == pytest.approx(metrics.accuracy(log.images, "clean").value)
    coup = found[(found.defense == "coup:steps=10") & (found.attack == "null")]
    assert np.stack(coup.adversarial).shape == (50, 10)
    assert len(coup.explode("adversarial")) == 500
    assert "adv_crc" in found


def test_importing_purebench_imports_neither_pandas_nor_torch():
    code = (
        "import sys, purebench; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules); "
        f"print(len(purebench.load({str(RESULTS / 'jpeg-cifar10')!r})), 'torch' in sys.modules, 'load' in dir(purebench))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["582", "False", "True"]
    with pytest.raises(AttributeError, match="lode"):
        purebench.lode  # noqa: B018


def test_no_folder_or_file_bears_a_name_of_the_python_api():
    """Importing it would replace the function."""
    names = {path.stem for path in Path(purebench.__file__).parent.iterdir()}
    assert not names & {"run", "load", "evaluate", "module", "judge", "step", *purebench._LATER}
