"""Runs on a tiny grid: whatever the order, the workers, the growth and the failures on the way, the records are the same bytes."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from purebench.attacks import Attacked
from purebench.datasets import digits
from purebench.engine.identity import Identity
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.records import frame
from purebench.records import store as records
from purebench.report import metrics, tables
from purebench.running import evaluate, progress, runner

DEFENSES = ("none", "coup:steps=2", "one-shot")
ATTACKS = (
    "null",
    "noise",
    "pgd-eot:steps=2,eot=2",
    "transfer:from=(reverse-sde:steps=2),attack=(pgd-eot:steps=2,eot=2)",
)


class Told(progress.Reporter):
    """A reporter that remembers."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def run(out, defenses=DEFENSES, attacks=ATTACKS, *, images=7, evals=2, threats=("Linf:0.2",), **settings):
    request = plan.Request(
        defenses=tuple(defenses), attacks=tuple(attacks), threats=threats, images=images, evals=evals, dataset="digits"
    )
    told = Told()
    settings = {"workers": 1, "device": "cpu", "rows": 16} | settings
    outcome = runner.run(plan.build(request), runner.Settings(out, **settings), told)
    outcome.said = told.lines
    return outcome


def files(out):
    paths = [p for name in (records.IMAGES, records.ADVERSARIAL) for p in sorted(out.glob(f"*/{name}"))]
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in paths}


def logs(out):
    return {(log.cell["defense"], log.cell["attack"].partition(":")[0]): log for log in records.load_all([out])}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tiny grid, run once, in order, without interruption."""
    out = tmp_path_factory.mktemp("reference")
    outcome = run(out)
    assert (len(outcome.done), outcome.failed, outcome.skipped) == (13, {}, [])
    return out


def test_the_same_command_again_does_nothing(reference):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in reference.glob("*/*.*")}
    assert run(reference).images == 0
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in reference.glob("*/*.*")} == before


def test_another_order_of_the_images_gives_the_same_bytes(reference, tmp_path):
    run(tmp_path, reverse=True)
    assert files(tmp_path) == files(reference)


def test_another_cut_into_batches_gives_the_same_bytes(reference, tmp_path):
    """One image, then all but some, then all; rows of the padded shape as before."""
    for images in (1, 5, 7):
        run(tmp_path, images=images)
    for path in tmp_path.glob(f"*/{records.IMAGES}"):  # and with holes
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1::2]))
    run(tmp_path)
    assert files(tmp_path) == files(reference)


def test_l2_and_a_grid_cut_otherwise_give_the_same_bytes(tmp_path):
    grid = {
        "defenses": ("none", "diffpure:steps=2"),
        "attacks": ("noise", "pgd-eot:steps=2,eot=2"),
        "threats": ("L2:1",),
        "evals": 1,
    }
    run(tmp_path / "a", **grid)
    for images in (2, 3, 7):
        run(tmp_path / "b", **grid, images=images, reverse=images == 7)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_more_draws_only_judge_again_and_keep_the_earlier_ones(reference, tmp_path):
    run(tmp_path, evals=1)
    adversarial = {k: v for k, v in files(tmp_path).items() if k.endswith(records.ADVERSARIAL)}
    first = {log.id: log.images for log in records.load_all([tmp_path])}
    outcome = run(tmp_path, evals=2)
    assert outcome.images == 13 * 7
    for log in records.load_all([tmp_path]):
        for old, new in zip(first[log.id], log.images, strict=True):
            assert new["adversarial"][:1] == old["adversarial"]
            assert new["clean"][:1] == old["clean"]
    assert {k: v for k, v in files(tmp_path).items() if k.endswith(records.ADVERSARIAL)} == adversarial
    assert files(tmp_path) == files(reference)


def test_null_is_clean_and_clean_is_common_to_all_attacks(reference):
    of = logs(reference)
    for (defense, attack), log in of.items():
        if attack == "null":
            assert all(r["adversarial"] == r["clean"] and r["linf"] == 0 for r in log.images)
        if defense.partition(":")[0] != "reverse-sde":
            null = of[(defense, "null")]
            assert [r["clean"] for r in log.images] == [r["clean"] for r in null.images]
            assert [r["undefended"] for r in log.images] == [r["undefended"] for r in null.images]


def test_records_hold_what_the_metrics_need(reference):
    for log in records.load_all([reference]):
        assert [r["position"] for r in log.images] == list(range(7))
        assert all(
            0 <= r["linf"] <= 0.2 * (1 + 1e-6) + 2e-7 and len(r["clean"]) == len(r["adversarial"]) == 2
            for r in log.images
        )
        assert all(len(r["nfe"]) == 2 for r in log.images)
        entry = log.runs[-1]
        assert entry["images"] == entry["wanted"] == 7
        assert entry["versions"] if "versions" in entry else entry["torch"]


def test_a_transfer_reads_its_sources_images(reference):
    rows = {p.parent.name: p.read_bytes() for p in reference.glob(f"*/{records.ADVERSARIAL}")}
    for log in records.load_all([reference]):
        if log.cell["attack"].startswith("transfer"):
            assert rows[log.id] == rows[log.cell["source"]]


def test_a_transfer_follows_a_source_that_was_made_anew(reference, tmp_path):
    """An image of the source that changed (a partial batch that grew) is judged again on the target."""
    grid = {"defenses": ("one-shot",), "attacks": (ATTACKS[3],)}
    run(tmp_path, **grid)
    target = next(log for log in records.load_all([tmp_path]) if log.cell["source"])
    for name in (records.IMAGES, records.ADVERSARIAL):
        assert (target.folder / name).read_bytes() == (reference / target.id / name).read_bytes()
    shape = [1, 8, 8]
    store = records.Store(target.folder, target.id, target.cell, shape, {})
    store.append([store.done[3]], [bytes(256)], {"seconds": 0.0})  # as if the source had been another one
    store.close()
    assert run(tmp_path, **grid).images == 1
    for name in (records.IMAGES, records.ADVERSARIAL):
        assert (target.folder / name).read_bytes() == (reference / target.id / name).read_bytes()


def test_a_run_that_is_killed_at_once_leaves_a_trace_of_every_cell(tmp_path, monkeypatch):
    """Of a defense's attacks the one that was never begun may be the strongest: a table must know of it."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner._Queue, "work_off", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ("one-shot",), ("null", "pgd-eot:steps=1"), images=3)
    found = records.load_all([tmp_path])
    assert [(len(log.images), log.wanted) for log in found] == [(0, 3)] * 2
    assert "not judged yet" in tables.render(found)
    monkeypatch.undo()
    assert run(tmp_path, ("one-shot",), ("null", "pgd-eot:steps=1"), images=3).images == 6
    assert all(len(log.runs) == 1 for log in records.load_all([tmp_path]))


def test_fresh_starts_over_and_keeps_the_old(reference, tmp_path):
    for _ in range(2):
        run(tmp_path, ("one-shot",), ("null",), fresh=True)
    [cell] = records.cells([tmp_path])
    assert sorted(p.name for p in tmp_path.iterdir()) == [cell.name, f"{cell.name}.old1"]
    for name in (records.IMAGES, records.ADVERSARIAL):
        assert (cell / name).read_bytes() == (reference / cell.name / name).read_bytes()


# ------------------------------------------------------------------------------------------------------- what goes wrong


def shifts(by):
    def attack(defense, x, y, threat, noise):
        return Attacked(x + by)

    return lambda: attack


def raises():
    def attack(defense, x, y, threat, noise):
        raise ZeroDivisionError("of all things")

    return attack


BROKEN = {
    "outside the ball": (shifts(0.3), "outside Linf:0.2"),
    "outside [0,1]": (shifts(-0.01), "[0,1]"),
    "not finite": (shifts(torch.nan), "not finite"),
    "raises": (raises, "ZeroDivisionError: of all things (test_runner.py:"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_failing_attack_stops_no_other_cell(case, tmp_path, monkeypatch):
    attack, reason = BROKEN[case]
    with monkeypatch.context() as patch:
        patch.setattr("purebench.attacks.null.noise", attack)
        outcome = run(tmp_path, ("none",), ("noise", "null"), images=3)
        assert run(tmp_path, ("none",), ("noise", "null"), images=3).failed == outcome.failed  # it is tried again
    assert len(outcome.done) == len(outcome.failed) == 1
    assert reason in "".join(outcome.failed.values())
    assert reason in "".join(outcome.said)
    assert reason in logs(tmp_path)["none", "noise"].failed
    assert logs(tmp_path)["none", "null"].failed is None
    assert run(tmp_path, ("none",), ("noise", "null"), images=3).failed == {}
    assert logs(tmp_path)["none", "noise"].failed is None


def logging(log):
    def attack(defense, x, y, threat, noise):
        return Attacked(x, log=log(len(x)))

    return lambda: attack


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (lambda n: {"seed": [7] * n}, "logs seed, which the harness records itself"),
        (lambda n: {"margin": [0.5] * (n - 1)}, "logs 2 values of `margin` for 3 images"),
        (lambda n: {"how": [object()] * n}, "logs `how`, which a record cannot hold"),
    ],
)
def test_an_attack_that_logs_what_no_record_can_hold_fails_alone(log, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("purebench.attacks.null.noise", logging(log))
    outcome = run(tmp_path, ("none",), ("noise", "null"), images=3)
    assert [reason in why for why in outcome.failed.values()] == [True]
    assert logs(tmp_path)["none", "null"].failed is None


def test_tensors_that_an_attack_logs_are_recorded_as_numbers(tmp_path, monkeypatch):
    log = lambda n: {"margin": torch.arange(n) / 2, "path": [torch.tensor([1, i]) for i in range(n)]}  # noqa: E731
    monkeypatch.setattr("purebench.attacks.null.noise", logging(log))
    assert run(tmp_path, ("none",), ("noise",), images=3).failed == {}
    found = [(line["margin"], line["path"]) for line in logs(tmp_path)["none", "noise"].images]
    assert found == [(0.0, [1, 0]), (0.5, [1, 1]), (1.0, [1, 2])]


def test_no_word_of_an_attack_can_be_a_column_of_load():
    assert frame.DTYPES.keys() - {"stopped"} <= evaluate.RESERVED


class Diverges(Identity):
    """Step 1 of 3 turns images that are darker than `dark` into NaN, and their gradient with them."""

    n, dark = 3, 0.0

    def step(self, k, state, noise):
        if k == 1:
            dark = state.flatten(1).sum(1).view(-1, 1, 1, 1) < self.dark
            state = state + torch.zeros_like(state).masked_fill(dark, torch.nan)
        return state


def test_a_defense_that_diverges_is_wrong_and_no_mate_of_its_batch_is(tmp_path, monkeypatch):
    """The image is judged, -1 is its class, the record says which step did it; its mates are what they would have been without it."""
    x = digits.test()[0][:6].flatten(1).sum(1)
    monkeypatch.setattr(Diverges, "dark", float(x.min()) + 1e-3)
    monkeypatch.setattr("purebench.purifiers.one_shot.one_shot", lambda *a, **k: Diverges())
    outcome = run(tmp_path, ("one-shot", "none"), ("null", "pgd-eot:steps=2,eot=1"), images=6, evals=2)
    assert outcome.failed == {}
    found, dark = logs(tmp_path), (x < Diverges.dark).tolist()
    for attack in ("null", "pgd-eot"):
        lines = found["one-shot", attack].images
        assert [line["clean"] == [-1, -1] for line in lines] == dark
        assert not any("failed" in line for line in lines)
        where = lines[dark.index(True)]["not_finite"]
        assert "values that are not finite" in where["clean"]
        assert where.get("adversarial", "step 1 of 3 gave values that are not finite").startswith("step 1 of 3")
    same = {line["position"]: line["adversarial"] for line in found["none", "null"].images}
    assert all(
        line["adversarial"] == ([-1, -1] if bad else same[line["position"]])
        for line, bad in zip(found["one-shot", "null"].images, dark, strict=True)
    )
    bad = found["one-shot", "null"].images[dark.index(True)]["index"]
    assert any(
        f"image {bad}: clean image: step 1 of 3 gave values that are not finite" in line for line in outcome.said
    )
    text = tables.render(records.load_all([tmp_path]))
    assert "purifications of clean images that are not finite count as wrong: null on one-shot: 1 of 6 images" in text


def test_the_first_few_images_that_something_befell_are_named_with_their_step():
    lines = [{"index": i, "not_finite": {"clean": f"step {i % 2}"} if i % 4 < 2 else {}} for i in range(40)]
    said = "images 0, 4, 8 and 7 more: clean image: step 0; images 1, 5, 9 and 7 more: clean image: step 1"
    assert runner._reasons(lines, limit=3) == said
    assert runner._reasons(lines[:2], limit=1) == "image 0: clean image: step 0; and others"
    assert runner._reasons(lines[2:4]) == ""
    assert runner._reasons([{"index": 7, "failed": "attack: it broke"}]) == "image 7: not judged: attack: it broke"


def test_a_defense_that_is_never_finite_has_no_accuracy_left_and_its_cell_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Diverges, "dark", 1e9)
    monkeypatch.setattr("purebench.purifiers.one_shot.one_shot", lambda *a, **k: Diverges())
    for computed in (9, 0):
        outcome = run(
            tmp_path, ("one-shot",), ("null", "pgd-eot:steps=2,eot=1", "autoattack-rand:n_iter=2,eot=1"), images=3
        )
        assert (outcome.images, outcome.failed, len(outcome.done)) == (computed, {}, 3)
    for log in logs(tmp_path).values():
        values = metrics.summary(log)
        assert [values[m].value for m in ("robust", "clean", "not_finite")] == [0, 0, 1]
    assert metrics.summary(logs(tmp_path)["one-shot", "autoattack-rand"])["aa"].value == 0


def test_an_attack_that_makes_no_image_of_some_is_missing_there_and_tried_again(tmp_path, monkeypatch):
    """A cell is not lost by it; what transfers from it has none of these images either, rather than the clean ones."""

    def lame():
        def attack(defense, x, y, threat, noise):
            return Attacked(x.masked_fill((noise.ids % 2 == 0).view(-1, 1, 1, 1), torch.nan))

        return attack

    grid = {"defenses": ("none",), "attacks": ("noise", "transfer:from=(one-shot),attack=(noise)"), "images": 6}
    with monkeypatch.context() as patch:
        patch.setattr("purebench.attacks.null.noise", lame)
        outcome = run(tmp_path, **grid)
        assert outcome.failed == {}
        even = [line["index"] % 2 == 0 for line in logs(tmp_path)["none", "noise"].images]
        assert any(even)
        assert not all(even)
        for attack in ("noise", "transfer"):
            log = logs(tmp_path)["none", attack]
            assert [line.get("failed") for line in log.images] == [
                f"attack: {'its source has no image' if attack == 'transfer' else 'it returned values that are not finite'}" if e else None
                for e in even
            ]  # fmt: skip
            assert len(metrics.judged(log)) == even.count(False)
        assert run(tmp_path, **grid).images == 3 * even.count(True)  # deterministic as it is, it fails there again
    assert run(tmp_path, **grid).images == 3 * even.count(True)
    assert not any("failed" in line for log in logs(tmp_path).values() for line in log.images)


def test_old_lines_of_attacks_that_failed_are_never_judged_and_attacked_again(tmp_path):
    """Before, an image was recorded as `failed: attack: ..` with the clean one in its place."""
    grid = {"defenses": ("none",), "attacks": ("pgd-eot:steps=2,eot=1",), "images": 3}
    run(tmp_path, **grid)
    log = logs(tmp_path)["none", "pgd-eot"]
    before = {name: (log.folder / name).read_bytes() for name in (records.IMAGES, records.ADVERSARIAL)}
    store = records.Store(log.folder, log.id, log.cell, [1, 8, 8], {})
    clean = digits.test()[0][log.images[1]["index"]].numpy().astype("<f4").tobytes()
    store.append(
        [log.images[1] | {"failed": "attack: step 1 of 3 gave values that are not finite"}], [clean], {"seconds": 0.0}
    )
    store.close()
    assert len(metrics.judged(logs(tmp_path)["none", "pgd-eot"])) == 2
    assert run(tmp_path, **grid).images == 1
    assert {name: (log.folder / name).read_bytes() for name in before} == before


def test_a_transfer_whose_source_failed_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("purebench.attacks.null.noise", raises)
    outcome = run(tmp_path, ("none",), ("null", "transfer:from=(one-shot),attack=(noise)"), images=3)
    assert len(outcome.failed) == 2
    assert "source" in logs(tmp_path)["none", "transfer"].failed
    assert len(outcome.done) == 1


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(reference, tmp_path, monkeypatch):
    grid = {"defenses": ("one-shot",), "attacks": ATTACKS[:3]}
    sync, calls = os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left") as caught:
            run(tmp_path, **grid)
    assert caught.value.code == 1
    kept = sum(len(log.images) for log in records.load_all([tmp_path]))
    assert 7 <= kept < 21
    assert run(tmp_path, **grid).images == 21 - kept
    assert files(tmp_path).items() <= files(reference).items()


@pytest.mark.parametrize("name", [records.ADVERSARIAL, records.COST, records.IMAGES])
def test_ctrl_c_while_a_batch_is_written_loses_and_miscounts_nothing(tmp_path, monkeypatch, name):
    """The signal comes as each of the batch's files is synced: the batch is written whole, counted, and then the run ends."""
    sync = os.fsync

    def interrupted(descriptor):
        sync(descriptor)
        if any(os.path.samestat(os.fstat(descriptor), path.stat()) for path in tmp_path.glob(f"*/{name}")):
            signal.raise_signal(signal.SIGINT)

    outcome = runner.Outcome()
    the_plan = plan.build(plan.Request(defenses=("one-shot",), attacks=("null",), images=40, evals=2, dataset="digits"))
    settings = runner.Settings(tmp_path, device="cpu", rows=8)
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests begun in the background ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                runner.run(the_plan, settings, progress.Reporter(), outcome)
    finally:
        signal.signal(signal.SIGINT, heeded)
    [log] = records.load_all([tmp_path])
    assert 0 < len(log.images) < 40
    assert len(log.images) == outcome.images == log.runs[-1]["images"]
    assert runner.run(the_plan, settings, progress.Reporter()).images == 40 - outcome.images


def test_damage_is_refused_before_anything_is_computed(tmp_path):
    run(tmp_path, ("one-shot",), ("null",), images=3)
    [path] = tmp_path.glob(f"*/{records.IMAGES}")
    path.write_text(path.read_text().replace('"label":', '"label":1', 1))
    with pytest.raises(UserError, match="line 1 of"):
        run(tmp_path, ("none", "one-shot"), ("null",), images=3)
    assert len(list(tmp_path.iterdir())) == 1  # the cell of `none`, which comes first, was not begun


def test_a_newer_cell_is_refused_before_anything_is_computed(tmp_path):
    run(tmp_path, ("one-shot",), ("null",), images=3)
    [path] = tmp_path.glob(f"*/{records.CELL}")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        run(tmp_path, ("none", "one-shot"), ("null",), images=3)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cell_that_another_process_computes_is_skipped(tmp_path):
    cells = [
        j.cell for j in plan.build(plan.Request(defenses=("one-shot",), attacks=ATTACKS[3:], dataset="digits")).jobs
    ]
    with records.lock(
        tmp_path / cells[0].id
    ):  # the source: then the transfer cannot go on either, and nobody is to blame
        outcome = run(tmp_path, ("one-shot",), ("null", ATTACKS[3]), images=3)
    assert (len(outcome.done), len(outcome.skipped), outcome.failed) == (1, 2, {})
    assert "another process" in outcome.said[0]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_results_that_are_a_file_are_refused(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        run(tmp_path / out, ("none",), ("null",))


# --------------------------------------------------------------------------------------------------------------- workers


def test_workers_give_the_same_bytes_and_one_that_is_killed_fails_its_cell_alone(reference, tmp_path):
    """One of two workers is killed as soon as something is written. The cell that it worked on fails; the rest is as ever."""
    killed = []

    def assassin():
        end = time.monotonic() + 60
        while time.monotonic() < end and not killed:
            if files(tmp_path):
                for child in multiprocessing.active_children()[:1]:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.001)

    thread = threading.Thread(target=assassin)
    thread.start()
    outcome = run(tmp_path, DEFENSES[1:2], ATTACKS[1:], workers=2)
    thread.join()
    assert killed
    assert len(outcome.done) + len(outcome.failed) == 4
    assert len(outcome.failed) <= 2  # the one, and the transfer from it; none if it had nothing to do
    if outcome.failed:
        assert any("killed by signal 9" in why for why in outcome.failed.values())
        run(tmp_path, DEFENSES[1:2], ATTACKS[1:])
    assert files(tmp_path).items() <= files(reference).items()


def test_two_networks_of_one_name_do_not_share_their_clean_predictions(tmp_path):
    """Files called alike in two folders: what was predicted with one is nothing for the other."""
    from purebench.train import small as training

    cells = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        torch.manual_seed(seed)
        network = training.NETWORKS["small-cnn"]()
        training._save(network, folder / "w.safetensors", {"network": "small-cnn", "config": "{}"})
        cells.append(f'[[grid]]\nclassifier = "file:path={folder}/w.safetensors"\n')
    top = 'dataset = "digits"\nimages = 20\nevals = 2\ndefenses = ["none"]\nattacks = ["null"]\n'
    (tmp_path / "two.toml").write_text(top + "".join(cells))
    the_plan = plan.build(plan.Request(preset=str(tmp_path / "two.toml")))
    runner.run(the_plan, runner.Settings(tmp_path / "out"), progress.reporter(quiet=True))
    found = records.load_all([tmp_path / "out"])
    assert len(found) == 2
    assert all(line["clean"] == [line["undefended"]] * 2 for log in found for line in log.images)


def test_score_models_in_rotation_are_run(tmp_path):
    """Two that are one: the records are those of the one, but for the cell's name."""
    attacks = ["pgd-eot:steps=1,eot=1"]
    run(tmp_path / "one", ["adp:steps=3"], attacks, images=2)
    run(tmp_path / "two", ["adp:steps=3,score=[digits-vp,digits-vp]"], attacks, images=2)
    one, two = (
        {name.partition("/")[2]: data for name, data in files(tmp_path / out).items()} for out in ("one", "two")
    )
    assert one == two
    assert "score model `[digits-vp,digits-vp]`" in tables.render(records.load_all([tmp_path / "two"]))
