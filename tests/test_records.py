"""What a user could lose: lines, images, and the trust in them. The store alone, without torch; the runs are in test_runner."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from purebench.errors import UserError
from purebench.records import store as records
from purebench.running import tasks

SHAPE = [1, 2, 2]


def row(position, salt=0):
    return bytes([position + 1, salt] * 8)


def record(position, evals=2, **more):
    return {"position": position, "label": 1, "clean": [1] * evals, "adversarial": [0] * evals} | more


def opened(folder):
    return records.Store(folder, "the-id", {"defense": "coup", "parts": {}}, SHAPE, {"started": "now"})


def append(store, positions, salt=0, **more):
    store.append(
        [record(p, **more) for p in positions],
        [row(p, salt) for p in positions],
        {"seconds": 1.0, "positions": list(positions)},
    )


@pytest.fixture
def folder(tmp_path):
    """A cell with positions 0..4, closed but not finished."""
    store = opened(tmp_path / "cell")
    append(store, [2, 3])
    append(store, [0, 1, 4])
    store.close()
    return tmp_path / "cell"


def done(folder):
    store = opened(folder)
    store.close()
    return sorted(store.done)


def test_what_was_appended_is_there_and_sorted_when_finished(folder):
    store = opened(folder)
    store.finish()
    store.close()
    log = records.load(folder)
    assert [r["position"] for r in log.images] == [0, 1, 2, 3, 4]
    assert [json.loads(t)["position"] for t in (folder / records.IMAGES).read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert (folder / records.ADVERSARIAL).read_bytes() == b"".join(row(p) for p in range(5))
    assert log.seconds == 2.0
    assert log.failed is None


def test_finishing_again_changes_no_byte(folder):
    for _ in range(3):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        store = opened(folder)
        store.finish()
        store.close()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", [records.IMAGES, records.COST])
@pytest.mark.parametrize("torn", [b'{"position":5', b'{"position":5,"crc":"00000000"}', b"\xff\x00"])
def test_a_torn_last_line_is_passed_over_by_readers_and_cut_by_writers(folder, name, torn):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole + torn)
    assert len(records.load(folder).images) == 5
    assert (folder / name).read_bytes() == whole + torn  # reading changes nothing
    assert done(folder) == [0, 1, 2, 3, 4]
    assert (folder / name).read_bytes() == whole


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_anywhere_loses_that_image_alone(folder, cut):
    path = folder / records.IMAGES
    path.write_bytes(path.read_bytes()[:-cut])
    assert done(folder) == [0, 1, 2, 3]


EDITS = {
    "another prediction": (b'"adversarial":[0', b'"adversarial":[1'),
    "another position": (b'"position":3', b'"position":9'),
    "another checksum": (b'"crc":"', b'"crc":"0'),
    "no text": (b'{"pos', b'\xff"pos'),
    "two lines": (b',"label"', b'\n,"label"'),
}


@pytest.mark.parametrize(("old", "new"), EDITS.values(), ids=EDITS)
def test_an_edited_line_is_refused_with_its_number(folder, old, new):
    path = folder / records.IMAGES
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(old, new)
    path.write_bytes(b"".join(lines))
    for use in (records.load, opened):
        with pytest.raises(UserError) as caught:
            use(folder)
        assert (caught.value.code, "line 2 of" in caught.value.message, f"sed -i 2d {path}" in caught.value.hint) == (
            2,
            True,
            True,
        )
    path.write_bytes(lines[0] + b"".join(lines[2:]))  # as the hint says: and the lock was given back
    assert done(folder) == [0, 1, 2, 4]


def test_an_image_that_is_not_on_disk_is_to_be_made_again(folder):
    path = folder / records.ADVERSARIAL
    path.write_bytes(path.read_bytes()[:-5])
    assert done(folder) == [0, 1, 2, 3]
    path.unlink()
    assert done(folder) == []


def test_an_image_that_is_not_its_records_is_to_be_made_again(folder):
    """As when a process dies between the rows and the lines of a batch that it runs again."""
    path = folder / records.ADVERSARIAL
    path.write_bytes(row(0) + row(1, salt=1) + path.read_bytes()[32:])
    assert done(folder) == [0, 2, 3, 4]


def test_a_hole_does_not_pass_for_an_image(folder):
    path = folder / records.ADVERSARIAL
    path.write_bytes(path.read_bytes()[:32])  # 2, 3 and 4 are lost
    store = opened(folder)
    append(store, [4])  # 2 and 3 are zeros now
    store.close()
    assert done(folder) == [0, 1, 4]


def test_the_last_line_of_a_position_counts(folder):
    store = opened(folder)
    append(store, [1, 2], evals=5)
    assert len(store.done[1]["adversarial"]) == 5
    store.close()
    assert [len(r["adversarial"]) for r in records.load(folder).images] == [2, 5, 5, 2, 2]


def test_one_writer_per_cell(folder):
    store = opened(folder)
    with pytest.raises(records.Locked):
        opened(folder)
    code = (
        f"from purebench.records import store; store.Store(store.Path({str(folder)!r}), 'the-id', {{}}, {SHAPE}, {{}})"
    )
    assert "Locked" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    with pytest.raises(records.Locked):
        records.set_aside(folder)
    assert len(records.load(folder).images) == 5  # reading needs no lock
    store.close()
    opened(folder).close()


def test_fresh_renames_and_deletes_nothing(folder):
    records.set_aside(folder)
    opened(folder).close()
    records.set_aside(folder)
    assert [p.name for p in sorted(folder.parent.iterdir())] == ["cell.old1", "cell.old2"]
    assert records.cells([folder.parent]) == []
    assert len(records.load_all([folder.parent / "cell.old1"])[0].images) == 5  # named, it is read


NO_CELLS = [
    "",
    "{",
    "[]",
    "{}",
    "\0",
    '{"schema": "1"}',
    '{"schema": 1}',
    '{"schema": 1, "id": 3, "cell": {}, "runs": []}',
    '{"schema": 2, "id": "x", "cell": {"defense": "coup"}, "runs": []}',
]


@pytest.mark.parametrize("text", NO_CELLS)
def test_a_cell_that_cannot_be_read_is_refused(folder, text):
    (folder / records.CELL).write_text(text)
    for use in (records.load, opened):
        with pytest.raises(UserError, match="cannot be read") as caught:
            use(folder)
        assert caught.value.hint
    assert (folder / records.CELL).read_text() == text


def test_a_newer_schema_is_refused(folder):
    (folder / records.CELL).write_text(json.dumps({"schema": records.SCHEMA + 1, "unheard": "of"}))
    for use in (records.load, opened):
        with pytest.raises(UserError, match="newer purebench") as caught:
            use(folder)
        assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_loses_nothing(folder, monkeypatch, after):
    """No space from the (after + 1)-th sync on: rows, cost, lines, cell.json."""
    store, sync, calls = opened(folder), os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left") as caught:  # noqa: PT012
        append(store, [5, 6])
        store.finish()
    assert caught.value.code == 1
    assert "same command" in caught.value.hint
    monkeypatch.undo()
    store.close()
    log = records.load(folder)
    assert [r["position"] for r in log.images][:5] == [0, 1, 2, 3, 4]
    assert not list(folder.glob("*.tmp"))
    store = opened(folder)
    append(store, [5, 6])
    store.finish()
    store.close()
    assert done(folder) == [0, 1, 2, 3, 4, 5, 6]


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        opened(tmp_path / "file" / "cell")


def test_a_failure_is_noted_and_cleared_by_the_next_run(folder):
    store = opened(folder)
    store.note(failed="it broke")
    store.close()
    assert records.load(folder).failed == "it broke"
    store = opened(folder)
    store.finish()
    store.close()
    assert records.load(folder).failed is None


# ------------------------------------------------------------------------------------------------ what is left to do


def job(images, evals=2, **attack):
    cell = SimpleNamespace(
        attack=SimpleNamespace(
            key="autoattack-rand" if attack else "null",
            values=attack | {"eot": 20} if attack else {},
            inner=(),
            info={},
        ),
        defense=SimpleNamespace(options={}),
        dataset=SimpleNamespace(name="digits", key="digits"),
    )
    return SimpleNamespace(cell=cell, images=images, evals=evals)


def kinds(found):
    return [(t.positions, t.judge, t.batch) for t in found]


def test_more_images_are_attacked_and_more_draws_only_judged():
    there = {p: record(p) for p in range(3)}
    assert tasks.missing(job(3), there, rows=160) == []
    assert kinds(tasks.missing(job(5), there, rows=160)) == [((3, 4), False, None)]
    assert kinds(tasks.missing(job(3, evals=4), there, rows=160)) == [((0, 1, 2), True, None)]
    assert kinds(tasks.missing(job(4, evals=4), there, rows=160)) == [((3,), False, None), ((0, 1, 2), True, None)]


def test_positions_with_the_same_number_of_draws_are_judged_together():
    there = {0: record(0), 1: record(1, evals=3), 2: record(2), 3: record(3, evals=5)}
    assert kinds(tasks.missing(job(4, evals=5), there, rows=160)) == [((0, 2), True, None), ((1,), True, None)]


def test_a_partial_batch_is_run_again_whole_when_there_are_more_images():
    there = {p: record(p, batch=[p // 4 * 4, 4 if p < 4 else 2]) for p in range(6)}
    assert tasks.missing(job(6, batch=4), there, rows=160) == []
    assert kinds(tasks.missing(job(7, batch=4), there, rows=160)) == [((4, 5, 6), False, (4, 3))]
    assert kinds(tasks.missing(job(9, batch=4), there, rows=160)) == [
        ((4, 5, 6, 7), False, (4, 4)),
        ((8,), False, (8, 1)),
    ]
    del there[1]  # a batch is one unit: with an image lost, all of it is made again
    assert kinds(tasks.missing(job(6, batch=4), there, rows=160)) == [((0, 1, 2, 3), False, (0, 4))]


def test_fewer_images_than_there_are_is_nothing_to_do():
    there = {p: record(p, batch=[p // 4 * 4, 4]) for p in range(8)}
    assert tasks.missing(job(5, batch=4), there, rows=160) == []


# ---------------------------------------------------------------------------------------------------------- schema 1


def old_cell(root, attack="null", threat="Linf:0.2", source="", defense="none", **parameters):
    """A cell as schema 1 had it: names, and three tables beside them."""
    cell = {
        "dataset": "digits", "subset": "first", "classifier": "cnn", "score": "vp", "defense": defense, "gradient": "-",
        "attack": attack, "threat": threat, "seed": 0, "source": source,
        "parameters": {"defense": {}, "attack": {}} | parameters,
        "versions": dict.fromkeys(["noise", "dataset", "classifier", "score", "defense", "attack"], 1),
        "hashes": {"dataset": "d", "classifier": "c", "score": "s"},
    }  # fmt: skip
    name = f"digits-{defense}-{attack.partition(':')[0]}-{threat[:2]}{len(source)}"
    folder = root / name
    folder.mkdir(parents=True)
    data = {"schema": 1, "id": name, "shape": [1, 2, 2], "cell": cell, "runs": [{"wanted": 1}]}
    (folder / records.CELL).write_text(json.dumps(data))
    (folder / records.IMAGES).write_text(records.line(record(0)))
    (folder / records.ADVERSARIAL).write_bytes(bytes(16))
    return folder


def test_schema_1_is_read_as_what_it_used(tmp_path):
    log = records.load(old_cell(tmp_path))
    assert (log.cell["threat"], log.cell["score"]) == ("-", "-")  # a control on a bare classifier
    assert log.cell["parts"]["classifier"] == {"version": 1, "hash": "c"}
    assert "score" not in log.cell["parts"]
    other = records.load(old_cell(tmp_path, "pgd-eot", defense="coup"))
    assert (other.cell["threat"], other.cell["score"]) == ("Linf:0.2", "vp")
    assert other.cell["parts"]["score"] == {"version": 1, "hash": "s"}
    surrogate = {"surrogate": {"defense": "one-shot", "sigma": 0.3}}
    third = records._read(folder := old_cell(tmp_path, "apgd-ce", defense="gaussian", **surrogate))
    third["cell"]["versions"]["surrogate"] = 1
    (folder / records.CELL).write_text(json.dumps(third))
    cell = records.load(folder).cell
    assert cell["parts"]["surrogate"] == {"version": 1, "name": "one-shot", "values": {"sigma": 0.3}}
    assert cell["score"] == "vp"  # the surrogate's


def test_two_controls_of_schema_1_are_one_cell(tmp_path):
    one, two = old_cell(tmp_path), old_cell(tmp_path, threat="L2:1")
    assert records.load(one).id == records.load(two).id


def test_converted_cells_keep_their_bytes_and_are_found_by_transfers(tmp_path):
    source = old_cell(tmp_path, "pgd-eot", defense="coup")
    transfer = old_cell(tmp_path, "transfer:from=(coup)", source=source.name)
    old_cell(tmp_path), old_cell(tmp_path, threat="L2:1")
    before = {log.id: (log.images, log.cell) for log in records.load_all([tmp_path])}
    bytes_before = sorted(p.read_bytes() for p in tmp_path.glob("*/*") if p.name != records.CELL)
    found = records.load(transfer)
    assert found.cell["source"] == records.load(source).id
    assert found.cell["score"] == "vp"  # of its images
    rows = records.convert(tmp_path)
    assert [bool(row["note"]) for row in rows].count(True) == 1  # the second control, of which there is one now
    assert {log.id: (log.images, log.cell) for log in records.load_all([tmp_path])} == before
    assert (
        sorted(p.read_bytes() for p in tmp_path.glob("*/*") if p.name not in (records.CELL, records.LOCK))
        == bytes_before
    )
    assert [row["note"] != "" for row in records.convert(tmp_path)] == [True]  # nothing else is left to do
    assert (tmp_path / found.id / records.CELL).exists()


def test_a_transfer_beside_a_converted_source_still_finds_it(tmp_path):
    """Interrupted in the middle: the source has its new name, the transfer not yet."""
    source = old_cell(tmp_path, "pgd-eot", defense="coup")
    transfer = old_cell(tmp_path, "transfer:from=(coup)", source=source.name)
    whole = records.load(transfer)
    data = records.read_cell(source)
    (source / records.CELL).write_text(json.dumps(data))
    source.rename(tmp_path / data["id"])
    assert records.load(transfer).id == whole.id


def test_a_source_that_is_not_there_keeps_its_old_name(tmp_path):
    assert records.load(old_cell(tmp_path, "transfer:from=(coup)", source="gone")).cell["source"] == "gone"


def test_a_transfer_onto_a_bare_defense_has_the_score_model_of_its_images_or_none(tmp_path):
    """Of those made on `none`, none: schema 1 wrote one all the same, and the plan of now knows no such cell."""
    for defense, score in (("none", "-"), ("coup", "vp")):
        source = old_cell(tmp_path, "pgd-eot", defense=defense)
        transfer = old_cell(tmp_path / defense, f"transfer:from=({defense})", source=source.name, defense="gaussian")
        transfer.rename(moved := tmp_path / f"transfer-{defense}")
        assert records.load(moved).cell["score"] == score


def test_a_cell_of_a_plug_in_and_transfers_from_it_keep_their_names(tmp_path):
    """Schema 1 does not say whether a plug-in used a score model: a guess would be a name that no plan has, and a run would start over."""
    source = old_cell(tmp_path, "pgd-eot", defense="median")
    transfer = old_cell(tmp_path, "transfer:from=(median)", source=source.name)
    orphan = old_cell(tmp_path / "other", "transfer:from=(coup)", source="gone")
    was = [(folder / records.CELL).read_bytes() for folder in (source, transfer, orphan)]
    notes = [row["note"] for root in (tmp_path, tmp_path / "other") for row in records.convert(root)]
    assert len(notes) == 3
    assert all("left as it is" in note for note in notes)
    assert [(folder / records.CELL).read_bytes() for folder in (source, transfer, orphan)] == was
    # A run goes on in them, and says what schema 1 did not: then they are renamed.
    data = records.read_cell(source)
    store = records.Store(source, "its-id", data["cell"] | {"score": "-"}, [1, 2, 2], {})
    store.note()
    store.close()
    assert {row["note"] for row in records.convert(tmp_path)} == {""}
    assert records.load(tmp_path / "its-id").cell["score"] == "-"
    assert [log.cell["source"] for log in records.load_all([tmp_path]) if log.cell["source"]] == ["its-id"]


def test_what_a_run_is_writing_is_not_converted(tmp_path):
    folder = old_cell(tmp_path, "pgd-eot", defense="coup")
    with records.lock(folder):
        assert "a run is writing it" in records.convert(tmp_path)[0]["note"]
    assert records.convert(tmp_path)[0]["note"] == ""


def test_a_cell_is_the_same_from_inside_its_folder(tmp_path, monkeypatch):
    source = old_cell(tmp_path, "pgd-eot", defense="coup")
    transfer = old_cell(tmp_path, "transfer:from=(coup)", source=source.name)
    known = records.load(transfer).id
    monkeypatch.chdir(transfer)
    assert records.load_all([Path(".")])[0].id == known
    assert [row["note"] for row in records.convert(Path("."))] == [
        "its source is not here, or keeps its old name: left as it is, and a run goes on there"
    ]
    monkeypatch.chdir(source)
    assert [row["note"] for row in records.convert(Path("."))] == [""]


def test_what_a_killed_process_was_writing_is_cleared(tmp_path):
    folder = old_cell(tmp_path, "pgd-eot", defense="coup")
    (folder / "cell.json.123.tmp").write_text("{")
    records.convert(tmp_path)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_records_of_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (records.convert, lambda path: records.load_all([path])):
        with pytest.raises(UserError, match="is no folder"):
            use(tmp_path / "file")


def test_a_run_keeps_the_old_name_of_its_cell(tmp_path):
    folder = old_cell(tmp_path, "pgd-eot", defense="coup")
    new = records.read_cell(folder)
    store = records.Store(folder, new["id"], new["cell"], [1, 2, 2], {})
    store.note()
    store.close()
    data = json.loads((folder / records.CELL).read_text())
    assert (data["schema"], data["id"], data["was"]) == (2, new["id"], [folder.name])
