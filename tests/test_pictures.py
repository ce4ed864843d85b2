"""Pictures are read as they are seen, by data sets and `purify`, or refused by name; `purify` overwrites nothing of the user's."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from purebench.datasets import pictures
from purebench.errors import USAGE, UserError
from purebench.plan import grid
from purebench.records import store
from purebench.report import inputs, outputs
from purebench.report import pictures as purified
from purebench.running import preflight

FILE = Path(__file__).parents[1] / "benchmarks" / "odd_pictures.py"
RANDOM = np.random.default_rng(1)


def load_odd():
    spec = importlib.util.spec_from_file_location("odd_pictures", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


ODD = load_odd()


@pytest.fixture(scope="module")
def odd_results(tmp_path_factory):
    return {name: found for name, *found in ODD.results(tmp_path_factory.mktemp("odd"))}


@pytest.mark.parametrize("name", ODD.odd())
def test_an_odd_picture_is_read_rightly_or_refused_by_name(name, odd_results):
    right, data, shown = odd_results[name]
    assert right, f"a data set: {data}; purify: {shown}"


def saved(path, width, height, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    image = Image.fromarray(RANDOM.integers(0, 256, shape).astype(np.uint8))
    image.save(path)
    return image


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_are_scaled_and_cropped_as_torchvision_does(tmp_path, interpolation):
    image = saved(tmp_path / "a.png", 50, 37)
    ways = [transforms.Resize(20, transforms.InterpolationMode(interpolation)), transforms.CenterCrop(16)]
    right = transforms.Compose([*ways, transforms.PILToTensor()])(image)
    x = pictures.decode(tmp_path / "a.png", resize=20, crop=16, interpolation=interpolation)
    assert x.dtype == torch.uint8
    assert torch.equal(x, right)
    # Of 16 bits the same but for what 8 bits round, once per direction.
    deep = np.asarray(image).astype(np.uint16) * 257
    fine = pictures.decode(ODD.png(deep, 16), resize=20, crop=16, interpolation=interpolation)
    assert (fine - right / 255).abs().max() < 2 / 255
    assert torch.equal(pictures.stack([x, fine], ["a", "b"]), torch.stack([right / 255, fine]))


@pytest.mark.parametrize("interpolation", pictures.INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_way_to_prepare_a_picture_gives_torchvision_s_bits(interpolation, channels):
    """Sizes up and down, odd rests, a frame around one side or both, 8 bits and floats."""
    for size, resize, crop in (
        ((37, 50), 20, 16), ((50, 37), 21, 16), ((37, 37), 0, 16), ((37, 50), 64, (33, 40)), ((9, 20), 0, (12, 15)),
        ((20, 9), 7, (8, 31)), ((20, 9), 0, (9, 20)), ((5, 6), 0, (8, 9)), ((13, 101), 13, 0), ((3, 1000), 7, 5),
    ):  # fmt: skip
        eight = Image.fromarray(RANDOM.integers(0, 256, (*size[::-1], 3)).astype(np.uint8))
        eight = eight if channels == 3 else eight.convert("L")
        fine = Image.fromarray(RANDOM.random(size[::-1]).astype(np.float32))
        way = transforms.InterpolationMode(interpolation)
        ways = [transforms.Resize(resize, way)] * bool(resize) + [transforms.CenterCrop(crop)] * bool(crop)
        for image in (eight, fine):
            x = pictures._prepared(image, 1, resize, crop, interpolation, "a picture", True)
            right = np.asarray(transforms.Compose(ways)(image))
            right = right if image is eight else right.clip(0, 1)
            assert np.array_equal(x.permute(1, 2, 0).squeeze(2).numpy(), right), (size, resize, crop, image.mode)


def test_purify_does_without_torchvision(tmp_path, monkeypatch):
    """Its import may take longer than all the rest."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it is an error
    saved("a.png", 20, 30)
    run("a.png")
    assert Path("out/a.png").is_file()
    assert pictures.decode(Path("a.png"), resize=10, crop=12, frame=True).shape == (3, 12, 12)


def test_a_tiff_file_that_pillow_turns_is_said_to_be_turned(tmp_path):
    image = saved(tmp_path / "a.png", 12, 8)
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[pictures.ORIENTATION] = orientation
        image.save(tmp_path / "a.tif", exif=exif)
        size = [3, 12, 8] if orientation == 6 else [3, 8, 12]
        found = inputs.read(tmp_path / "a.tif", size, {})
        assert list(found.notes) == ["turned, as its EXIF data says"] * (orientation > 1)
        turned = {1: image, 3: image.rotate(180), 6: image.transpose(Image.Transpose.ROTATE_270)}[orientation]
        assert np.array_equal((found.images[0] * 255).round().permute(1, 2, 0).numpy(), np.asarray(turned))


def test_what_cannot_be_cropped_or_scaled_is_refused(tmp_path):
    saved(tmp_path / "a.png", 20, 30)
    for arguments, words in (
        ({"crop": 24}, "too small to cut 24x24 out of it"),
        ({"crop": (31, 20)}, "too small"),
        ({"interpolation": "cubic"}, "unknown interpolation"),
        ({"background": "whiet"}, "`whiet` is no colour"),
        ({"background": "#ffffff80"}, "is no colour"),
    ):
        with pytest.raises(UserError, match=words):
            pictures.decode(tmp_path / "a.png", **arguments)


def test_the_background_is_what_is_seen_behind():
    hidden = ODD.png(np.dstack([ODD.RGB, ODD.ALPHA]), 8)
    assert pictures.decode(hidden, background="#0a141e")[:, 3, 1].tolist() == [10, 20, 30]
    assert pictures.decode(hidden, 1, background="black")[:, 3, 1].tolist() == [0]
    assert pictures.look(hidden).transparent
    assert not pictures.look(hidden).plain


def test_no_damage_to_a_picture_is_a_traceback(tmp_path):
    """Whatever class of error Pillow raises. Damaged files may be read too: not all formats have checksums."""
    image, read, refused = saved(tmp_path / "a.png", 16, 16), 0, []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "TGA", "PPM", "ICO"):
        file = io.BytesIO()
        image.save(file, kind)
        for _ in range(25):
            content = bytearray(file.getvalue())
            for at in RANDOM.integers(0, min(len(content), 200), 3):
                content[at] = RANDOM.integers(0, 256)
            content = (
                bytes(content[: RANDOM.integers(1, len(content) + 1)]) if RANDOM.random() < 0.3 else bytes(content)
            )
            try:
                read += pictures.decode(content, name="row 7").dtype == torch.uint8
            except UserError as error:
                refused.append(error)
    assert 0 < read < 250
    assert all("`row 7`" in error.message and error.hint for error in refused)


def test_purify_prepares_a_picture_as_its_dataset_does(tmp_path):
    image = saved(tmp_path / "a.png", 300, 400)
    ways = [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
    imagenet = inputs.read(tmp_path / "a.png", [3, 224, 224], {"resize": 256, "crop": 224})
    assert torch.equal(imagenet.images[0], transforms.Compose(ways)(image) / 255)
    assert "its middle cut out" in imagenet.notes[0]
    # Never squashed, also where the networks' images are not square: the sides keep their ratio and one of them fits.
    for size in ((40, 32), (32, 40), (7, 31), (8, 8)):
        assert inputs.read(tmp_path / "a.png", [3, *size], {}).images.shape == (1, 3, *size)
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, 40:80] = 255
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    assert inputs.read(tmp_path / "wide.png", [3, 20, 20], {}).images[..., 2:-2].min() == 1


def run(*paths, out="out", **more):
    return purified.purify([Path(p) for p in paths], "gaussian:sigma=0.1", Path(out), "digits", 0, "cpu", **more)


def test_one_file_that_cannot_be_read_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        saved(name, 8, 8, "L")
    Path("torn.png").write_bytes(Path("a.png").read_bytes()[:50])
    np.save("half.npy", np.full((8, 8), 0.5, np.float16))
    rows = run("a.png", "torn.png", "nowhere.png", "half.npy", "b.png")
    assert [bool(row["failed"]) for row in rows] == [False, True, True, True, False]
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", outputs.SHEET]
    with pytest.raises(
        UserError, match=r"3 of 5 images failed: cannot read `torn.png`: .*`nowhere.png`.*`half.npy`"
    ) as caught:
        purified.check(rows)
    assert caught.value.code == USAGE
    # Its draws are those that it has among pictures that can all be read.
    right = Path("out/b.png").read_bytes()
    for name in ("torn.png", "nowhere.png", "c.png"):
        saved(name, 8, 8, "L")
    run("a.png", "torn.png", "nowhere.png", "c.png", "b.png", out="all")
    assert Path("all/b.png").read_bytes() == right


def test_arrays_go_in_and_come_out_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(x, "batch.pt")
    np.save("grey.npy", x[0, 0].numpy())
    np.save("double.npy", x[1].double().numpy())
    rows = purified.purify(
        [Path("batch.pt"), Path("grey.npy"), Path("double.npy")], "none", Path("out"), "digits", 0, "cpu"
    )
    assert [row["image"] for row in rows] == ["batch.pt[0]", "batch.pt[1]", "batch.pt[2]", "grey.npy", "double.npy"]
    assert torch.equal(torch.load("out/batch.pt", weights_only=True), x)
    assert np.array_equal(np.load("out/grey.npy"), x[0, 0].numpy())
    assert np.array_equal(np.load("out/double.npy"), x[1].numpy())
    assert np.load("out/double.npy").dtype == np.float32


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8), np.uint8), "divide by 255"),
        (np.full((1, 8, 8), 1.5, np.float32), r"values in \[1.5, 1.5\]"),
        (np.full((1, 8, 8), np.float32(1.0000001)), r"values in \[1.0000001, 1.0000001\]"),
        (np.full((1, 8, 8), np.float32(-1e-12)), r"values in \[-1e-12, -1e-12\]"),
        (np.full((1, 8, 8), np.nan, np.float32), "nan"),
        (np.zeros((8, 8, 1), np.float32), "the channels come first"),
        (np.zeros((1, 9, 8), np.float32), r"the networks take \[1, 8, 8\]"),
        (np.zeros((0, 1, 8, 8), np.float32), "the shape"),
    ],
)
def test_an_array_is_not_guessed_at(array, words, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=words) as caught:
        inputs.read(tmp_path / "x.npy", [1, 8, 8], {})
    assert "x.npy" in caught.value.message or "x.npy" in caught.value.hint


def test_which_of_a_file_s_arrays_was_taken_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"x": 1 - x, "x_adv": x, "eps": 0.1}, "both.pt")
    np.savez("one.npz", x_adv=x.numpy(), y=np.zeros(2))
    torch.save({"x_adv": x, "eps": 0.1}, "alone.pt")
    rows = purified.purify(
        [Path(name) for name in ("both.pt", "one.npz", "alone.pt")], "none", Path("out"), "digits", 0, "cpu"
    )
    assert [row["note"] for row in rows[::2]] == ["its entry `x_adv`, one of several"] * 2 + [""]
    assert torch.equal(torch.load("out/both.pt", weights_only=True), x)
    assert np.array_equal(np.load("out/one.npy"), x.numpy())


def test_purify_overwrites_only_what_it_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("a.png", 8, 8, "L")
    saved("side-by-side.png", 8, 8, "L")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    for out in (".", tmp_path):
        with pytest.raises(UserError, match="would be overwritten"):
            run("a.png", out=out)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    run("a.png")
    saved("b.png", 8, 8, "L")
    run("b.png")
    run("a.png", "b.png")  # what three runs made in one folder, a fourth makes again
    with pytest.raises(UserError, match=r"`out/a.png` is one of the inputs"):
        run("out/a.png")
    kept = saved("out/a.png", 8, 8, "L")  # edited
    with pytest.raises(UserError, match="was not made by `purify`"):
        run("a.png")
    assert np.array_equal(np.asarray(Image.open("out/a.png")), np.asarray(kept))
    Path("out/a.png").unlink()
    Path("out/a.png").symlink_to(tmp_path / "side-by-side.png")
    with pytest.raises(UserError, match="was not made by `purify`"):
        run("a.png")
    assert Path("side-by-side.png").read_bytes() == before["side-by-side.png"]


def test_every_file_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("two").mkdir()
    names = ["a.png", "two/A.png", "a-trajectory.png", "side-by-side.png"]
    for name in names:
        saved(name, 8, 8, "L")
    rows = run(*names, trajectory=True)
    written = [Path(row[key]).name.lower() for row in rows for key in ("purified", "trajectory")]
    assert len(set(written)) == 8
    assert {path.name.lower() for path in Path("out").iterdir()} == {*written, outputs.SHEET}


def test_cells_of_a_file_that_was_replaced_are_said_to_be_of_another_content(tmp_path):
    for name in ("0/a.png", "1/b.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        saved(tmp_path / "f" / name, 8, 8, "L")

    def planned():
        data = f"folder:path={tmp_path / 'f'},channels=1,classes=10"
        request = grid.Request(defenses=("none",), attacks=("null",), dataset=data, classifier="digits-cnn", images=2)
        return grid.build(request)

    old = planned().jobs[0].cell
    (tmp_path / "r").mkdir()
    store.announce(tmp_path / "r" / old.id, old.id, old.data(), [1, 8, 8], 2)
    assert preflight._of_other_content(planned(), tmp_path / "r") == []
    saved(tmp_path / "f/0/a.png", 8, 8, "L")
    new = planned()
    assert new.jobs[0].cell.id != old.id
    (line,) = preflight._of_other_content(new, tmp_path / "r")
    assert "1 cell in" in line
    assert "another content of the dataset `folder:channels=1,name=f`" in line
