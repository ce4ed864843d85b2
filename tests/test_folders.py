"""Image folders as people have them, incomplete data sets, and the store: nothing is read as something else in silence."""

import hashlib
import importlib.util
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from purebench.datasets import celebahq, folder, imagenet, mnist, parquet, tree
from purebench.errors import UserError
from purebench.plan import grid, resolved
from purebench.records import store
from purebench.running import evaluate, preflight
from purebench.spec import Part, parse

FILE = Path(__file__).parents[1] / "benchmarks" / "odd_folders.py"
spec = importlib.util.spec_from_file_location("odd_folders", FILE)
odd = sys.modules["odd_folders"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(odd)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def request(dataset, **more):
    given = {"defenses": ("none",), "attacks": ("null",), "images": 1, "classifier": "digits-cnn", "subset": 0}
    return grid.Request(dataset=dataset, **given | more)


def grey(root, shades, each=2):
    """An 8x8 grey folder, as `digits-cnn` takes it."""
    for name, shade in shades.items():
        for i in range(each):
            odd.put(root / name / f"{i}.png", png(np.full((8, 8), 20 * shade, np.uint8)))


@pytest.mark.parametrize("name", odd.LAYOUTS)
def test_every_odd_layout_is_read_rightly_or_refused_by_name(name, tmp_path):
    said, right = odd.outcome(odd.LAYOUTS[name], tmp_path)
    assert right, said


def test_the_plan_says_which_class_is_which(tmp_path):
    grey(tmp_path / "x", {str(i + 1): i for i in range(10)})
    odd.put(tmp_path / "x" / "1" / "._0.png", b"Mac OS X")
    plan = grid.build(request(f"folder:path={tmp_path / 'x'},channels=1"))
    line = "20 images of 10 classes; `1` is class 0, `10` is class 9"
    assert any(line in note and "left out: 1 hidden or system (`1/._0.png`)" in note for note in plan.notes)


def test_digits_of_powers_and_of_other_scripts_are_said_to_be_in_the_order_of_text():
    assert "`²` before `¹`" in tree.surprising(sorted("¹²³"))
    assert "`x¹⁰` before `x²`" in tree.surprising(["x¹⁰", "x²"])
    assert "`١٠` before `٢`" in tree.surprising(["١٠", "٢"])
    for usual in (["10a", "a"], ["a1", "a2"], ["cat", "dog"], ["²", "³"], ["1", "2"], ["1st", "2nd", "bird"]):
        assert tree.surprising(usual) == ""


def test_a_list_of_classes_is_a_place_and_its_labels_are_the_contents(tmp_path):
    grey(tmp_path / "x", {str(i): i for i in range(10)})
    path = f"folder:path={tmp_path / 'x'},channels=1"
    lists = {"a.csv": "{0},{0}\n", "b.txt": "{0} {0}\n", "turned.csv": "{0},{1}\n"}
    for file, line in lists.items():
        (tmp_path / file).write_text("".join(line.format(i, 9 - i) for i in range(10)))
    plain, *others = (
        grid.build(request(path + given)).jobs[0].cell
        for given in ("", *(f",classes={tmp_path / file}" for file in lists))
    )
    # The same labels are the same cell, wherever they are written; other labels are another.
    assert [other.id == plain.id for other in others] == [True, True, False]
    assert str(others[2].dataset) == str(plain.dataset)
    assert others[2].dataset.arguments["classes"] == str(tmp_path / "turned.csv")
    labels = evaluate.dataset(others[2].dataset).labels.tolist()
    assert labels == [9 - i for i in range(10) for _ in range(2)]


def test_folders_that_were_read_rightly_keep_their_hash_and_others_do_not(tmp_path):
    """Names, sizes, labels, then content: so it was before. What is transparent or has more than 8 bits was read otherwise."""
    grey(tmp_path / "x", {"a": 0, "b": 1}, each=1)
    names = ("a/0.png", "b/0.png")
    content = [(tmp_path / "x" / name).read_bytes() for name in names]
    head = "".join(f"{name}\0{len(data)}\0{i}\n" for i, (name, data) in enumerate(zip(names, content, strict=True)))
    known = "sha256:" + hashlib.sha256(head.encode() + b"".join(content)).hexdigest()
    assert folder.folder(path=str(tmp_path / "x")).digest == known
    for i, odd_one in enumerate((np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint16))):
        path = tmp_path / f"y{i}"
        odd.put(path / "a" / "0.png", png(odd_one))
        data = (path / "a" / "0.png").read_bytes()
        was = hashlib.sha256(f"a/0.png\0{len(data)}\0000\n".encode() + data).hexdigest()
        assert was not in folder.folder(path=str(path)).digest
        table = pa.table({"img": [data], "label": [0]})
        pq.write_table(table, tmp_path / "x.parquet")
        assert (
            hashlib.sha256((tmp_path / "x.parquet").read_bytes()).hexdigest()
            not in parquet.parquet(path=str(tmp_path / "x.parquet")).digest
        )


def test_transparency_is_seen_over_white_in_folders_and_parquet(tmp_path):
    hidden = np.full((8, 8, 4), (200, 0, 0, 0), np.uint8)
    odd.put(tmp_path / "x" / "a" / "0.png", png(hidden))
    pq.write_table(pa.table({"img": [png(hidden)], "label": [0]}), tmp_path / "x.parquet")
    for images in (folder.folder(path=str(tmp_path / "x")), parquet.parquet(path=str(tmp_path / "x.parquet"))):
        assert bool((images.take([0])[0] == 1).all())


def test_mixed_sizes_are_refused_by_the_plan(tmp_path):
    grey(tmp_path / "x", {"0": 0, "1": 1})
    odd.put(tmp_path / "x" / "1" / "9.png", png(np.zeros((10, 8), np.uint8)))
    with pytest.raises(UserError, match=r"8x8.*9.png` is 8x10"):
        grid.build(request(f"folder:path={tmp_path / 'x'},channels=1,classes=10"))
    plan = grid.build(request(f"folder:path={tmp_path / 'x'},channels=1,classes=10,size=8"))
    assert plan.jobs[0].shape == [1, 8, 8]


def test_crop_without_size_cuts_and_scales_nothing(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (12, 16, 3), dtype=np.uint8)
    odd.put(tmp_path / "x" / "a" / "0.png", png(pixels))
    pq.write_table(pa.table({"img": [png(pixels)], "label": [0]}), tmp_path / "x.parquet")
    wanted = torch.from_numpy(pixels[2:10, 4:12]).permute(2, 0, 1).float() / 255
    for text in (f"folder:path={tmp_path / 'x'},crop=8", f"parquet:path={tmp_path / 'x.parquet'},crop=8"):
        found = resolved.find("dataset", text)
        assert found.shape == [3, 8, 8]
        assert torch.equal(found.images.take([0])[0][0], wanted)
    # Not INFO's number of channels.
    assert resolved.find("dataset", f"folder:path={tmp_path / 'x'},crop=8,channels=1").shape == [1, 8, 8]


def test_shards_are_one_data_set_in_the_order_of_their_names(tmp_path):
    for i in (1, 0):
        odd.parquet(tmp_path, [i, 5 + i], f"test-{i:05}-of-00002.parquet")
    by_folder, by_glob = (parquet.parquet(path=str(path)) for path in (tmp_path, tmp_path / "test-*.parquet"))
    assert by_folder.labels.tolist() == [0, 5, 1, 6]
    assert by_folder.digest == by_glob.digest
    found = resolved.of("dataset", Part("parquet", (("path", f"{tmp_path}/test-*.parquet"),)))
    assert parse(found.text) == Part("parquet", (("name", "test-*"),))


def test_the_devkits_numbers_are_not_taken_for_ranks(tmp_path):
    """Its class 1 is a wnid of another rank: the labels are those of `meta.mat`."""
    options = odd.devkit(tmp_path / "x")
    assert folder.folder(path=str(tmp_path / "x"), **options).labels.tolist() == [2, 0, 1, 2]


def test_an_unreadable_folder_is_no_empty_one(tmp_path, monkeypatch):
    grey(tmp_path / "x", {"a": 0, "b": 1})

    def denied(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    scan = tree.os.scandir
    monkeypatch.setattr(tree.os, "scandir", denied)
    with pytest.raises(UserError, match="x/b`: Permission denied"):
        folder.folder(path=str(tmp_path / "x"))


# Incomplete data sets


def prepare(dataset, tmp_path, **more):
    return preflight.prepare(request(dataset, **more), preflight.Resources("cpu", workers=1), tmp_path / "out")


def test_cifar_with_a_file_cut_is_found_by_the_plan(tmp_path, monkeypatch):
    base, md5s = tmp_path / CIFAR10.base_folder, {}
    base.mkdir()
    files = [*CIFAR10.train_list, *CIFAR10.test_list]
    content = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    for file, _ in files:
        (base / file).write_bytes(content)
        md5s[file] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (base / "batches.meta").write_bytes(meta)
    for which in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, which, [[file, md5s[file]] for file, _ in getattr(CIFAR10, which)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()})
    (base / "test_batch").write_bytes(content[:-9])
    evaluate.dataset.cache_clear()
    classifier = "robustbench:id=Standard"
    with pytest.raises(UserError, match="not complete: test_batch missing or damaged"):
        prepare(f"cifar10:folder={base}", tmp_path, classifier=classifier)


@pytest.mark.parametrize("cut", ["images", "labels", "gone"])
def test_mnist_cut_is_found_by_the_plan(cut, tmp_path):
    import gzip

    for file, kept in zip(mnist.FILES, (cut != "images", cut != "labels"), strict=True):
        packed = gzip.compress(bytes(100))
        if cut != "gone" or "images" in file:
            (tmp_path / f"{file}.gz").write_bytes(packed if kept else packed[:-5])
    evaluate.dataset.cache_clear()
    with pytest.raises(UserError, match=r"ubyte` in .* is missing or damaged"):
        prepare(f"mnist:folder={tmp_path}", tmp_path, classifier="mnist-cnn")


def test_training_images_of_mnist_that_are_cut_are_no_traceback(tmp_path):
    for file, size in zip(mnist.TRAIN, (5000, 60008), strict=True):
        (tmp_path / file).write_bytes(bytes(size))
    with pytest.raises(UserError, match="training images"):
        mnist.train("mnist", str(tmp_path))


def test_a_part_of_celebahq_says_so(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("000004.png", "000015.png"):
        odd.picture(tmp_path / "images" / name, 1)
    odd.put(tmp_path / "images" / "._000004.png", b"Mac OS X")
    (tmp_path / "list_attr_celeba.txt").write_text("2\nSmiling\n000004.jpg 1\n000015.jpg -1\n")
    (tmp_path / "list_eval_partition.txt").write_text("000004.jpg 1\n000015.jpg 1\n")
    images = celebahq.celebahq(folder=str(tmp_path))
    assert images.note == "2 of CelebA-HQ's 2993 validation images"
    assert images.labels.tolist() == [1, 0]
    odd.picture(tmp_path / "images" / "000015.jpg", 1, kind="JPEG")
    with pytest.raises(UserError, match="one face twice"):
        celebahq.celebahq(folder=str(tmp_path))


def test_imagenet_packed_or_flat_is_told_as_that(tmp_path):
    odd.put(tmp_path / "val.tar", b"packed")
    with pytest.raises(UserError, match="is a file, and no folder\nhint: unpack it"):
        imagenet.imagenet(folder=str(tmp_path / "val.tar"))
    odd.devkit(tmp_path / "val")
    with pytest.raises(UserError, match=f"folder:path={tmp_path}/val,size=256,crop=224,classes="):
        imagenet.imagenet(folder=str(tmp_path))


# The store


def test_the_store_takes_no_row_of_another_shape(tmp_path):
    def opened(shape):
        return store.Store(tmp_path / "cell", "the-id", {"defense": "none", "parts": {}}, shape, {"started": "now"})

    record, row = {"position": 0, "clean": [1], "adversarial": [1]}, bytes(16)
    cell = opened([1, 2, 2])
    for wrong in (bytes(20), bytes(12)):
        with pytest.raises(UserError, match="1x2x2"):
            cell.append([record], [wrong], {"seconds": 0})
    assert not (tmp_path / "cell" / store.ADVERSARIAL).exists()
    cell.append([record], [row], {"seconds": 0})
    cell.finish()
    cell.close()
    before = (tmp_path / "cell" / store.IMAGES).read_bytes()
    with pytest.raises(UserError, match="1x2x2, and this run's are 1x3x2"):
        opened([1, 3, 2])
    assert (tmp_path / "cell" / store.IMAGES).read_bytes() == before
    cell = opened([1, 2, 2])  # the lock was given back, and nothing is lost
    assert list(cell.done) == [0]
    cell.close()


# Classes


def test_a_refusal_about_classes_says_which_were_found_and_what_works(tmp_path):
    grey(tmp_path / "numbers", {"1": 0, "2": 1})
    grey(tmp_path / "names", {"ant": 0, "bee": 1})
    (tmp_path / "list.csv").write_text("ant,3\nbee,4\n")
    ways = {
        "numbers": "`classes=10`",
        "names": "`classes=FILE` with a line `name,number` for each class, numbers from 0 to 9",
    }
    for name, way in ways.items():
        path = f"folder:path={tmp_path / name},channels=1"
        with pytest.raises(UserError) as told:
            grid.build(request(path))
        for words in ("`digits-cnn` knows 10 classes", "4 images of 2 classes", "is class 0", "is class 1"):
            assert words in told.value.message
        assert way in told.value.hint
        more = "classes=10" if name == "numbers" else f"classes={tmp_path / 'list.csv'}"
        assert len(grid.build(request(f"{path},{more}")).jobs) == 1
    grey(tmp_path / "many", {f"c{i:02}": i for i in range(13)}, each=1)
    with pytest.raises(UserError, match="`c00` is class 0, `c12` is class 12"):
        grid.build(request(f"folder:path={tmp_path / 'many'},channels=1"))
    # A part of ImageNet, for a network of its 1,000 classes.
    grey(tmp_path / "wnids", dict.fromkeys(odd.WNIDS, 1))
    assert "`classes=imagenet`" in resolved.find("dataset", f"folder:path={tmp_path / 'wnids'}").renumber(1000)
    assert "`classes=10`" in resolved.find(
        "dataset", f"parquet:path={odd.parquet(tmp_path, [0, 1])},classes=2"
    ).renumber(10)


def test_a_list_of_numbers_says_which_class_and_not_how_many(tmp_path):
    """With a class between them or without: the labels are those that were written."""
    grey(tmp_path / "x", {"ant": 0, "bee": 1})
    path = f"folder:path={tmp_path / 'x'},channels=1,classes={tmp_path}"
    for name, text in {"a.csv": "ant,0\nbee,2\n", "b.csv": "ant,0\nbee,1\n", "c.json": '{"ant": 1, "bee": 0}'}.items():
        (tmp_path / name).write_text(text)
        assert len(grid.build(request(f"{path}/{name}")).jobs) == 1
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(UserError, match="knows 10 classes"):
        grid.build(request(f"{path}/names.txt"))


def test_the_plans_line_is_seen_where_the_plan_is_refused(tmp_path):
    grey(tmp_path / "x", {str(i): i for i in range(10)})
    lines = []
    asked = request(f"folder:path={tmp_path / 'x'},channels=1", attacks=("null:steps=2",))
    with pytest.raises(UserError, match="steps"):
        preflight.prepare(asked, preflight.Resources("cpu"), tmp_path / "out", note=lines.append)
    assert any("20 images of 10 classes; `0` is class 0, `9` is class 9" in line for line in lines)


def test_the_size_of_a_hint_is_the_networks(tmp_path):
    path = tmp_path / "x"
    for i in range(10):
        odd.put(path / str(i) / "0.png", png(np.full((12, 12, 3), 20 * i, np.uint8)))
    with pytest.raises(UserError) as told:
        grid.build(request(f"folder:path={path}"))
    assert "`channels=1,size=8`" in told.value.hint
    assert grid.build(request(f"folder:path={path},channels=1,size=8")).jobs[0].shape == [1, 8, 8]
    odd.put(path / "9" / "1.png", png(np.zeros((9, 8), np.uint8)))
    with pytest.raises(UserError, match="`size=N`"):
        grid.build(request(f"folder:path={path}"))


def test_the_hint_about_several_splits_names_what_can_be_read(tmp_path):
    for names in (
        ("test-00000-of-00001.parquet", "test-00000-of-00001 (1).parquet"),
        ("test.parquet", "train.parquet"),
        ("test-00000-of-00002.parquet", "test-00001-of-00002.parquet", "test-x-00000-of-00001.parquet"),
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for i, name in enumerate(names):
            odd.parquet(root, [i], name)
        with pytest.raises(UserError) as told:
            parquet.parquet(path=str(root))
        named = told.value.hint.partition("path=")[2]
        assert parquet.parquet(path=named).labels.tolist() == ([0, 1] if "-of-00002" in names[0] else [0])


def test_a_parquet_file_that_was_read_rightly_keeps_its_name_and_others_are_asked_for(tmp_path):
    file = odd.parquet(tmp_path, [3, 4])
    found = resolved.find("dataset", f"parquet:path={file},channels=1")
    assert str(found.text) == "parquet:channels=1,name=x"
    # Two columns that are equal are one.
    table = pq.read_table(file)
    pq.write_table(table.append_column("fine_label", table["label"]), file)
    assert parquet.parquet(path=file).labels.tolist() == [3, 4]
    pq.write_table(pq.read_table(file).append_column("img", table["image"].take([1, 0])), file)
    with pytest.raises(UserError, match="`image=img` or `image=image`"):
        parquet.parquet(path=file)


def test_shards_by_a_number_alone_are_in_its_order(tmp_path):
    """`part-10` comes behind `part-9`, where as text it is the third."""
    for i in range(11):
        odd.parquet(tmp_path, [i % 10, 3], f"part-{i}.parquet")
    assert parquet.parquet(path=str(tmp_path)).labels.tolist()[::2] == [*range(10), 0]
