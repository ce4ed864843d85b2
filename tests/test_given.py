"""The attack `given`: which files and cells hold images, what is refused, and what is told of images that would flatter a defense."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import purebench
from purebench import datasets
from purebench.errors import UserError
from purebench.plan import given, grid
from purebench.records import store
from purebench.report import inputs, metrics, recipe, tables
from purebench.running import evaluate, preflight, progress, runner, tasks


def request(path, attack="", **words):
    words = {"dataset": "digits", "images": 4, "evals": 1, "defenses": ("none",), "threats": ("Linf:0.2",)} | words
    return grid.Request(attacks=(f"given:path={path}{attack}",), **words)


def prepared(asked, out="nowhere", notes=None):
    resources = preflight.Resources(device="cpu", workers=1)
    return preflight.prepare(asked, resources, Path(out), note=None if notes is None else notes.append)


def run(asked, out):
    plan, settings = prepared(asked, out)
    outcome = runner.run(plan, settings, progress.Reporter())
    assert not outcome.failed
    return {job.cell.id: store.load(runner.place(out, job.cell)) for job in plan.jobs}


@pytest.fixture(scope="module")
def clean():
    """(6,1,8,8): the first images of the digits."""
    job = grid.build(grid.Request(defenses=("none",), attacks=("null",), dataset="digits", images=6)).jobs[0]
    return evaluate.dataset(job.cell.dataset).take(datasets.order(job.size, job.cell.subset)[:6])[0].numpy()


@pytest.fixture(scope="module")
def moved(clean):
    """The same, each 0.2 away."""
    return np.where(clean > 0.5, clean - np.float32(0.2), clean + np.float32(0.2)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- identity


def test_a_cell_has_the_hash_of_the_images_and_not_their_place(tmp_path, moved):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", moved)
    one, same = (grid.build(request(tmp_path / f"{name}.npy")).jobs[0].cell for name in ("a", "b"))
    assert one.id == same.id
    assert str(tmp_path) not in json.dumps(one.data())
    named = grid.build(request(tmp_path / "a.npy", ",name=fab")).jobs[0].cell
    assert (str(one.attack), str(named.attack)) == ("given", "given:name=fab")
    moved = moved.copy()
    moved[5, 0, 0, 0] += 0.01
    np.save(tmp_path / "b.npy", moved)
    assert grid.build(request(tmp_path / "b.npy")).jobs[0].cell.id not in (one.id, named.id)


def test_a_file_that_is_edited_during_a_run_mixes_nothing(tmp_path, moved, clean):
    np.save(tmp_path / "a.npy", moved)
    plan, settings = prepared(request(tmp_path / "a.npy", images=4), tmp_path / "out")
    np.save(tmp_path / "a.npy", np.concatenate([clean, clean[:1]]))
    with pytest.raises(UserError, match="was changed during the run"):
        runner.run(plan, settings, progress.Reporter())
    assert not list((tmp_path / "out").glob(f"*/{store.IMAGES}"))


def test_more_images_and_draws_go_on_with_the_cell(tmp_path, moved):
    np.save(tmp_path / "a.npy", moved)
    [first] = run(request(tmp_path / "a.npy", images=2), tmp_path / "out").values()
    [more] = run(request(tmp_path / "a.npy", images=6, evals=2), tmp_path / "out").values()
    assert [len(first.images), len(more.images)] == [2, 6]
    assert first.id == more.id
    assert {len(line["adversarial"]) for line in more.images} == {2}
    rows = (more.folder / store.ADVERSARIAL).read_bytes()
    assert rows == moved.tobytes()


def test_no_control_and_maybe_the_strongest(tmp_path, moved):
    assert not metrics.control("given:name=x")
    np.save(tmp_path / "a.npy", moved)
    logs = list(run(request(tmp_path / "a.npy"), tmp_path / "out").values())
    assert metrics.headline({"given": logs}).attack == "given"


# ------------------------------------------------------------------------------------------------------ another run's cell


def test_images_of_another_run_are_found_by_their_index(tmp_path):
    asked = grid.Request(
        attacks=("noise",), defenses=("none",), dataset="digits", images=6, evals=1, subset=0, threats=("Linf:0.2",)
    )
    [source] = run(asked, tmp_path / "out").values()
    [log] = run(request(source.folder, subset=0, defenses=("one-shot",)), tmp_path / "out").values()
    for name in ("position", "index", "linf", "adv_crc"):
        assert [line[name] for line in log.images] == [line[name] for line in source.images[:4]]
    with pytest.raises(UserError, match="no image of the run's first position"):
        grid.build(request(source.folder, subset=None))
    torn = shutil.copytree(source.folder, tmp_path / "torn")
    with (torn / store.ADVERSARIAL).open("r+b") as file:
        file.seek(3 * 4 * 64)
        file.write(b"\0" * 8)
    with pytest.raises(UserError, match="has 3 images, and 4 are wanted"):
        grid.build(request(torn, subset=0))
    with pytest.raises(UserError, match="and the run is on"):
        grid.build(request(source.folder, dataset="corrupted:of=(digits)", subset=0))


# --------------------------------------------------------------------------------------------------------------- bad input


def saved(tmp_path, name, value):
    path = tmp_path / name
    if name.endswith((".pt", ".pth")):
        torch.save(value, path)
    elif name.endswith(".npz"):
        np.savez(path, **value)
    elif name.endswith(".npy"):
        np.save(path, value, allow_pickle=True)
    else:
        path.write_bytes(value)
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.npy", lambda x: x[:3], "has 3 images, and 4 are wanted"),
        ("a.npy", lambda x: x[:, 0], r"shape \[6, 8, 8\]"),
        ("a.npy", lambda x: x[:0], r"shape \[0, 1, 8, 8\]"),
        ("a.npy", lambda x: (255 * x).astype(np.uint8), "uint8"),
        ("a.npy", lambda x: x.astype(np.float16), "float16"),
        ("a.npy", lambda x: x * 0 + np.float32(1.0000001), r"image 0, in \[1.0000001, 1.0000001\]"),
        ("a.npy", lambda x: 255 * x, r"not in \[0,1\]; the first is image 0"),
        ("a.npy", lambda x: np.where(np.arange(6).reshape(6, 1, 1, 1) == 2, np.nan, x), "first is image 2, with NaN"),
        ("a.npy", lambda x: np.repeat(x, 300, 0), "has 1800 images"),
        ("a.npy", lambda x: np.array([object()]), "cannot be read"),
        ("a.npz", lambda x: {"before": x, "after": x}, "which entry"),
        ("a.npz", lambda x: {"y": np.zeros(6)}, "which entry"),
        ("a.pt", lambda x: torch.tensor(x).bfloat16(), "bfloat16"),
        ("a.pt", lambda x: torch.nn.Linear(1, 1), "cannot be read"),
        ("a.pt", lambda x: {"model": "resnet"}, "which entry"),
        ("a.npy", None, "cannot be read"),
        ("a.npz", None, "cannot be read"),
        ("a.pth", None, "cannot be read"),
        ("a.png", None, "no kind that is read"),
    ],
)
def test_what_holds_no_images_of_the_run_is_refused(tmp_path, moved, name, make, message):
    path = saved(tmp_path, name, make(moved)) if make else tmp_path / name
    if not make:
        path.write_bytes(b"PK\3\4 nonsense")
    with pytest.raises(UserError, match=message) as caught:
        grid.build(request(path))
    assert caught.value.hint
    assert caught.value.code == 2


DENSE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ODD = {
    "sparse": (DENSE.to_sparse(), r"sparse tensor \(sparse_coo\)"),
    "csr": (DENSE[0, 0].to_sparse_csr(), r"sparse tensor \(sparse_csr\)"),
    "csc": (DENSE[0, 0].to_sparse_csc(), "sparse_csc"),
    "bsr": (DENSE[0, 0].to_sparse_bsr((2, 2)), "sparse_bsr"),
    "bsc": (DENSE[0, 0].to_sparse_bsc((2, 2)), "sparse_bsc"),
    "nested": (torch.nested.nested_tensor([DENSE[0], DENSE[1]]), "nested"),
    "jagged": (torch.nested.nested_tensor([DENSE[0], DENSE[1]], layout=torch.jagged), "cannot be read|nested"),
    "meta": (DENSE.to("meta"), "a tensor without values"),
    "quint8": (torch.quantize_per_tensor(DENSE, 1 / 255, 0, torch.quint8), r"quantised \(quint8\)"),
    "qint8": (torch.quantize_per_channel(DENSE, torch.ones(1), torch.zeros(1), 1, torch.qint8), r"quantised \(qint8\)"),
    "bfloat16": (DENSE.bfloat16(), "are bfloat16, expected float32|is bfloat16"),
    "float8_e4m3fn": (DENSE.to(torch.float8_e4m3fn), "float8_e4m3fn, expected float32"),
    "float8_e5m2": (DENSE.to(torch.float8_e5m2), "float8_e5m2, expected float32"),
    "complex": (DENSE.to(torch.complex64).conj(), "complex64, expected float32"),
    "bool": (DENSE > 0.5, "bool, expected float32"),
    "uint16": (DENSE.to(torch.uint16), "uint16, expected float32"),
    "module": (torch.nn.Linear(1, 1), "it holds a `torch.nn.modules.linear.Linear`, and no ordinary tensor$"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_every_tensor_that_torch_saves_is_read_or_refused(kind, tmp_path):
    """By the attack, by `purify`, and by `judge`, in one line without what a terminal would obey."""
    value, words = ODD[kind]
    torch.save(value, tmp_path / "x.pt")
    calls = [lambda: grid.build(request(tmp_path / "x.pt")), lambda: inputs.read(tmp_path / "x.pt", [1, 8, 8], {})]
    if isinstance(value, torch.Tensor):
        calls.append(lambda: purebench.judge(value, "none", dataset="digits", threat="Linf:0.2", quiet=True))
    for call in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert re.search(words, caught.value.message)
        assert caught.value.message.isprintable()
        assert caught.value.hint


def test_views_and_parameters_are_their_values(tmp_path):
    negative = torch.complex(DENSE, -DENSE).conj().imag  # a view with a bit of its own
    views = [
        torch.nn.Parameter(DENSE),
        DENSE.clone(memory_format=torch.channels_last),
        negative,
        DENSE[:1].expand(3, -1, -1, -1),
    ]
    for value in views:
        torch.save(value, tmp_path / "x.pt")
        assert torch.equal(inputs.read(tmp_path / "x.pt", [1, 8, 8], {}).images, value.detach())


def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path):
    x = DENSE.numpy()
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x_adv=x)
    torch.save(DENSE, tmp_path / "a.pt")
    torch.save(DENSE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for held in ("a.npy", "a.npz", "a.pt", "old.pt"):
        for name in ("b.npy", "b.npz", "b.pt", "b.PTH"):
            shutil.copy(tmp_path / held, tmp_path / name)
            assert np.array_equal(given.array(tmp_path / name)[0], x)
    Image.new("L", (8, 8)).save(tmp_path / "c.png")
    for name in ("c.npy", "c.npz", "c.pt"):
        shutil.copy(tmp_path / "c.png", tmp_path / name)
        with pytest.raises(UserError, match=r"of another kind|no file of torch's"):
            given.array(tmp_path / name)


def test_what_was_saved_second_into_a_file_is_not_dropped(tmp_path):
    def put(name, write, times=2):
        with (tmp_path / name).open("wb") as file:
            for _ in range(times):
                write(file)
        return tmp_path / name

    ways = {
        "a.npy": lambda file: np.save(file, DENSE.numpy()),
        "old.pt": lambda file: torch.save(DENSE, file, _use_new_zipfile_serialization=False),
    }
    # Zip files are not written one behind the other, but copied so.
    for name, made in (
        ("a.npz", lambda to: np.savez(to, x_adv=DENSE.numpy())),
        ("a.pt", lambda to: torch.save(DENSE, to)),
    ):
        made(tmp_path / f"one-{name}")
        content = (tmp_path / f"one-{name}").read_bytes()
        ways[name] = lambda file, content=content: file.write(content)
    for name, write in ways.items():
        with pytest.raises(UserError, match="several"):
            given.array(put(name, write))
        assert np.array_equal(given.array(put(name, write, 1))[0], DENSE.numpy())


def test_damage_to_an_array_s_file_is_one_message(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", DENSE.numpy())
    np.savez_compressed(tmp_path / "a.npz", x_adv=DENSE.numpy())
    torch.save(DENSE, tmp_path / "a.pt")
    torch.save(DENSE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    messages = []
    for path in list(tmp_path.iterdir()):
        for k in range(40):
            content = bytearray(path.read_bytes())
            for at in random.integers(0, len(content), 4):
                content[at] = random.integers(0, 256)
            place = tmp_path / f"b{path.suffix}"
            place.write_bytes(content[: random.integers(len(content))] if k % 4 == 0 else content)
            try:
                given.array(place)
            except UserError as error:
                messages.append(error.message)
    assert len(messages) > 40
    assert all(message.isprintable() and "b." in message for message in messages)


def test_a_place_that_is_none_is_refused(tmp_path):
    for place, message in ((tmp_path / "no.npy", "there is no"), (tmp_path, "is no cell")):
        with pytest.raises(UserError, match=message):
            grid.build(request(place))
    with pytest.raises(UserError, match="does not say where"):
        grid.build(grid.Request(attacks=("given",), defenses=("none",), dataset="digits"))
    asked = request("x.npy", defenses=("one-shot",))
    with pytest.raises(UserError, match="images that are here already"):
        grid.build(
            grid.Request(
                attacks=("transfer:from=(none),attack=(given:path=x.npy)",), defenses=asked.defenses, dataset="digits"
            )
        )


def test_the_first_image_outside_the_ball_is_named_before_anything_runs(tmp_path, moved, clean):
    wrong = moved.copy()
    wrong[3] = np.roll(wrong, 1, 0)[3]  # another order
    np.save(tmp_path / "a.npy", wrong)
    with pytest.raises(UserError, match=r"image 3 of .* is outside Linf:0\.2") as caught:
        prepared(request(tmp_path / "a.npy"))
    assert "images(n)" in caught.value.hint
    by_rounding = clean + (moved - clean) * np.float32(1.0001)
    np.save(tmp_path / "b.npy", by_rounding.astype(np.float32))
    with pytest.raises(UserError, match="outside") as caught:
        prepared(request(tmp_path / "b.npy"))
    assert caught.value.hint.startswith("by rounding")
    [log] = run(request(tmp_path / "b.npy", ",project=true"), tmp_path / "out").values()
    assert max(line["linf"] for line in log.images) <= 0.2 + 2e-7


# ---------------------------------------------------------------------------------------------------------- what flatters


@pytest.mark.parametrize(
    ("change", "told", "printed"),
    [
        (lambda x, clean: x, None, None),
        (lambda x, clean: clean, "6 of 6 images are the clean ones", "no image is farther than 0"),
        (lambda x, clean: np.where(np.arange(6).reshape(6, 1, 1, 1) == 2, clean, x), "1 of 6 images", "1 of 4 images"),
        (lambda x, clean: clean + (x - clean) / 2, r"farther than 0\.1", r"farther than 0\.1 from"),
        (lambda x, clean: np.round((clean + 0.98 * (x - clean)) * 255) / 255, "multiple of 1/255", None),
    ],
    ids=["sound", "clean", "one clean", "half the radius", "8 bits"],
)
def test_what_would_flatter_is_told_by_the_run_and_by_the_table(tmp_path, moved, clean, change, told, printed):
    np.save(tmp_path / "a.npy", change(moved, clean).astype(np.float32))
    notes = []
    prepared(request(tmp_path / "a.npy"), notes=notes)
    assert bool(notes) == bool(told)
    assert not told or any(re.search(told, note) for note in notes)
    table = tables.render(list(run(request(tmp_path / "a.npy"), tmp_path / "out").values()))
    assert ("clean one" in table) == bool(printed)
    assert not printed or re.search(printed, table)


def test_workers_need_no_file(tmp_path, moved):
    """The process that hands out work reads it, and sends the images of a batch with it."""
    np.save(tmp_path / "a.npy", moved)
    plan, _ = prepared(request(tmp_path / "a.npy"))
    [job] = plan.jobs
    settings = runner.Settings(tmp_path / "out", device="cpu")
    cell = runner._OpenCell(job, settings)
    [task] = tasks.missing(job, {}, 160)
    filled = cell.with_inputs(task, {})
    cell.store.close()
    assert filled.stored == {p: moved[p].tobytes() for p in range(4)}


def test_the_grid_of_its_cell_runs_again_on_the_cells_own_images(tmp_path, moved):
    np.save(tmp_path / "a.npy", moved)
    [log] = run(request(tmp_path / "a.npy", ",name=fab"), tmp_path / "out").values()
    again = recipe.of(log) | {"images": 4, "evals": 1}
    (tmp_path / "again.toml").write_text(recipe.toml(again))
    cell = grid.build(grid.Request(str(tmp_path / "again.toml"))).jobs[0].cell
    assert str(cell.attack) == log.cell["attack"] == "given:name=fab"
    assert [
        row["adv_crc"] for row in run(grid.Request(str(tmp_path / "again.toml")), tmp_path / "b")[cell.id].images
    ] == [row["adv_crc"] for row in log.images]
