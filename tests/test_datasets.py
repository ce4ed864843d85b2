"""Datasets and their subsets: tiny files in the real layouts, the papers' index lists, and one message for every wrong layout."""

import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import recorded
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from purebench import datasets, registry
from purebench.datasets import celebahq, cifar, corruptions, folder, imagenet, mnist, parquet
from purebench.datasets.images import of_files
from purebench.errors import DOWNLOAD, USAGE, UserError
from purebench.plan import resolved
from purebench.spec import parse

OWN = {  # module -> its datasets
    cifar: ["cifar10", "cifar100"],
    mnist: ["mnist", "fashionmnist"],
    corruptions: ["cifar10-c", "cifar100-c"],
    imagenet: ["imagenet"],
    celebahq: ["celebahq"],
    folder: ["folder"],
    parquet: ["parquet"],
}
OVERRIDES = [name for name in os.environ if name.startswith("PUREBENCH_DATA_")]
NAMES = [name for names in OWN.values() for name in names]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no folders of the user's."""
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    for variable in ("PUREBENCH_IMAGENET", "PUREBENCH_CELEBAHQ", "PUREBENCH_CHECKPOINTS", *OVERRIDES):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache" / "data"


def pixels(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def encoded(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def refused(call, *words, code=USAGE):
    with pytest.raises(UserError) as caught:
        call()
    said = f"{caught.value.message} | {caught.value.hint}"
    assert caught.value.code == code, said
    assert caught.value.hint
    for word in words:
        assert word in said, said


def same_in_any_order(images):
    """The contract of `Images`: shapes, ranges and types, and that an image depends on its index alone."""
    n = len(images)
    x, y = images.take(range(n))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.shape == (n, *images.shape)
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(y, images.labels)
    assert 0 <= y.min() <= y.max() < images.classes
    assert images.digest.partition(":")[0] in ("sha256", "md5")
    some = [n - 1, 0, n - 1]
    again, labels = images.take(some)
    assert torch.equal(again, x[some])
    assert torch.equal(labels, y[some])
    return x, y


# Subsets


def test_the_subset_of_scoreopt_lee_and_kim_and_coup():
    order = datasets.order(10000, "choice:0")
    assert order[:5] == [9394, 898, 2398, 5906, 2343]
    assert sum(order[:512]) == 2536570
    assert order[:512] == np.random.RandomState(0).choice(10000, 512, replace=False).tolist()
    assert sorted(order) == list(range(10000))
    for name in ("scoreopt", "lee-kim", "coup"):
        assert datasets.order(10000, name) == order


def test_the_subset_is_the_published_one():
    golden = recorded("edm/subset_cifar10_512_seed0.npy")
    assert datasets.order(10000, "choice:0")[:512] == golden.tolist()


@pytest.mark.parametrize(
    ("name", "rule", "size", "groups", "each"),
    [
        ("diffpure-autoattack", "groups:8x64", 10000, 8, 64),
        ("diffpure-bpda", "groups:5x200", 10000, 5, 200),
        ("diffpure-imagenet", "groups:32x16", 50000, 32, 16),
    ],
)
def test_the_groups_of_diffpure(name, rule, size, groups, each):
    assert datasets.valid(name) == rule
    wanted = [np.random.RandomState(seed).choice(size, each, replace=False) for seed in range(groups)]
    assert datasets.order(size, name) == np.concatenate(wanted).tolist()
    assert datasets.capacity(size, name) == groups * each


def test_the_groups_of_diffpure_on_celebahq():
    """The first 8 of 2 % of the validation part."""
    part = np.arange(2993)
    wanted = [np.random.RandomState(seed).choice(part, int(0.02 * len(part)), replace=False)[:8] for seed in range(64)]
    assert datasets.order(2993, "diffpure-celebahq") == np.concatenate(wanted).tolist()


def test_groups_may_repeat_an_image():
    order = datasets.order(100, "groups:8x64")
    assert len(order) == 512
    assert len(set(order)) == 100


def test_the_first_images():
    assert datasets.order(5, "robustbench") == [0, 1, 2, 3, 4]
    assert datasets.capacity(5, "first") == 5


@pytest.mark.parametrize(("rule", "canonical"), [("choice:007", "choice:7"), ("groups:08x064", "groups:8x64")])
def test_a_rule_has_one_spelling(rule, canonical):
    assert datasets.valid(rule) == canonical
    assert datasets.valid(canonical) == canonical


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("frist", "first"),
        ("diffpure", "diffpure-bpda"),
        ("choice:", "choice:SEED"),
        ("choice:-1", "choice:SEED"),
        ("choice:4294967296", "4294967295"),
        ("groups:8", "groups:GxM"),
        ("groups:0x8", "at least 1"),
    ],
)
def test_a_subset_that_does_not_exist(rule, word):
    refused(lambda: datasets.valid(rule), rule, word)


def test_a_group_larger_than_the_dataset():
    refused(lambda: datasets.order(10, "groups:2x11"), "10 images")


def test_every_subset_is_described_in_one_line():
    for name in [*datasets.ALIASES, "first", "choice:3", "groups:2x3"]:
        assert len(datasets.describe(name).splitlines()) == 1


def test_the_hash_of_an_index_list():
    order = datasets.order(10000, "choice:0")[:512]
    assert datasets.index_hash(order) == hashlib.sha256(np.array(order, "<i8").tobytes()).hexdigest()
    assert datasets.index_hash(order) != datasets.index_hash(order[::-1])


# What is said of every dataset


@pytest.mark.parametrize("name", NAMES)
def test_info_is_complete_and_literal(name, monkeypatch):
    module = next(module for module, names in OWN.items() if name in names)
    target = module.__name__, name.replace("-", "_")
    monkeypatch.setattr(registry, "_target", lambda kind, name: target)  # whether the table has it or not
    info = registry._info.__wrapped__("dataset", name)
    keys = {"summary", "shape", "classes", "size", "version", "source", "licence", "assets", "cite"}
    assert keys <= info.keys()
    assert registry._parameters.__wrapped__("dataset", name)
    assert callable(registry.factory("dataset", name))


@pytest.mark.parametrize("name", ["digits", *NAMES])
def test_defaults_name_parameters_that_exist(name):
    defaults = datasets.defaults(name)
    assert datasets.valid(defaults["subset"])
    assert {"images", "evals", "threat", "rows", "defenses", "attacks"} <= defaults.keys()
    for kind in ("defense", "attack"):
        for part, values in defaults[kind].items():
            registry.check_parameters(kind, part, {k: v for k, v in values.items() if k != "from"})
        for text in defaults[f"{kind}s"]:
            assert parse(text).name in registry.names(kind)


def test_a_dataset_takes_the_values_of_its_base_and_overrides_them(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "HERE", tmp_path)
    monkeypatch.setattr(datasets, "defaults", functools.cache(datasets.defaults.__wrapped__))
    tables = '[defense.one]\nscore = "t"\nsteps = 3\n[defense.two]\nscore = "u"\n[attack.x]\nn = 1\n'
    (tmp_path / "a.toml").write_text('images = 5\nscore = "s"\nattacks = ["x", "y"]\n' + tables)
    (tmp_path / "b.toml").write_text('base = "a"\nattacks = ["x"]\n[defense.one]\nsteps = 4\n[defense.three]\nt = 1\n')
    (tmp_path / "c.toml").write_text('base = "b"\nwithout = ["score"]\n[defense.two]\nscore = "v"\n')
    a, b, c = (datasets.defaults(name) for name in "abc")
    assert b["defense"] == {"one": {"score": "t", "steps": 4}, "two": {"score": "u"}, "three": {"t": 1}}
    assert (b["images"], b["score"], b["attacks"], b["attack"]) == (5, "s", ["x"], {"x": {"n": 1}})
    assert c == {
        "images": 5,
        "attacks": ["x"],
        "attack": {"x": {"n": 1}},
        "defense": {"one": {"steps": 4}, "two": {"score": "v"}, "three": {"t": 1}},
    }
    assert a["defense"]["one"] == {"score": "t", "steps": 3}  # as it was


def test_cifar10_c_is_cifar10_but_for_the_attacks():
    assert datasets.defaults("cifar10-c") == datasets.defaults("cifar10") | {"attacks": ["null"]}
    assert datasets.defaults("cifar100-c") == datasets.defaults("cifar100") | {"attacks": ["null"]}
    assert datasets.defaults("parquet") == datasets.defaults("folder")


@pytest.mark.parametrize(
    ("name", "score", "classifier"),
    [
        ("cifar100", None, None),
        ("cifar100-c", None, None),
        ("folder", None, None),
        ("parquet", None, None),
        ("mnist", None, "mnist-cnn"),
        ("fashionmnist", None, "fashionmnist-cnn"),
        ("imagenet", "guided-diffusion", "torchvision:id=resnet50"),
        ("celebahq", "celebahq-ddpm", "celebahq-attribute"),
    ],
)
def test_no_other_dataset_inherits_the_networks_of_cifar10(name, score, classifier):
    defaults = datasets.defaults(name)
    assert (defaults.get("score"), defaults.get("classifier")) == (score, classifier)
    assert {values["score"] for values in defaults["defense"].values() if "score" in values} <= {score}


@pytest.mark.parametrize("name", NAMES)
def test_every_default_says_where_it_is_from(name):
    """A comment on each value, or on the one above it in its table."""
    text = (datasets.HERE / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    tomllib.loads(text)
    for block in text.split("\n\n")[1:]:
        assert " # " in block or "autoattack-standard" in block or "apgd-dlr" in block, block


# CIFAR


def fake_cifar(root, monkeypatch, kind, label):
    """The real layout with 6 images per file, and torchvision's md5s of it. Returns (images, labels) of the test file."""
    base = root / kind.base_folder
    md5s = {}
    for i, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        data, labels = pixels(6, 3072, seed=i), [0, 9, 3, 3, 1, 2]
        md5s[file] = write(base / file, pickle.dumps({"data": data, label: labels}))
    meta = dict(kind.meta)
    meta["md5"] = write(base / meta["filename"], pickle.dumps({meta["key"]: list(map(str, range(10)))}))
    monkeypatch.setattr(kind, "train_list", [[f, md5s[f]] for f, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[f, md5s[f]] for f, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", meta)
    return data, labels


@pytest.mark.parametrize(
    ("name", "make", "kind", "label"),
    [("cifar10", cifar.cifar10, CIFAR10, "labels"), ("cifar100", cifar.cifar100, CIFAR100, "fine_labels")],
)
def test_cifar(name, make, kind, label, cache, monkeypatch):
    data, labels = fake_cifar(cache, monkeypatch, kind, label)
    images = make()
    x, y = same_in_any_order(images)
    assert y.tolist() == labels
    assert torch.equal(x, torch.from_numpy(data.reshape(6, 3, 32, 32)).float() / 255)
    assert images.digest == f"md5:{kind.test_list[0][1]}"
    for place in (cache, cache / kind.base_folder):
        monkeypatch.setenv(f"PUREBENCH_DATA_{name.upper()}", str(place))
        assert len(make()) == 6
        monkeypatch.delenv(f"PUREBENCH_DATA_{name.upper()}")
        assert torch.equal(make(folder=str(place)).take([2])[0], x[2:3])
    (cache / kind.base_folder).rename(cache / "elsewhere")
    assert len(make(folder=str(cache / "elsewhere"))) == 6
    refused(make, name, f"purebench fetch data-{name}", code=DOWNLOAD)


def test_the_digests_that_are_known_beforehand():
    """INFO's, so that a record names the images of a dataset that is not here yet."""
    assert cifar.INFO["cifar10"]["digest"] == f"md5:{CIFAR10.test_list[0][1]}"
    assert cifar.INFO["cifar100"]["digest"] == f"md5:{CIFAR100.test_list[0][1]}"
    for name, md5s in mnist.MD5.items():
        assert mnist.INFO[name]["digest"] == f"md5:{md5s[0]}"


def test_a_damaged_cifar_file_is_not_unpickled(cache, monkeypatch):
    fake_cifar(cache, monkeypatch, CIFAR10, "labels")
    (cache / "cifar-10-batches-py" / "test_batch").write_bytes(b"not a pickle")
    (cache / "cifar-10-batches-py" / "data_batch_2").unlink()
    refused(cifar.cifar10, "data_batch_2, test_batch", "purebench fetch data-cifar10", code=DOWNLOAD)
    refused(lambda: cifar.cifar10(folder=str(cache)), "test_batch")


def test_cifar_in_another_layout(tmp_path):
    refused(lambda: cifar.cifar10(folder=str(tmp_path)), "batches.meta", str(tmp_path), "purebench fetch data-cifar10")


# MNIST


def fake_mnist(base, monkeypatch, name, packed):
    images, labels = pixels(7, 28, 28), np.arange(7, dtype=np.uint8)
    content = [
        np.array([2051, 7, 28, 28], ">i4").tobytes() + images.tobytes(),
        np.array([2049, 7], ">i4").tobytes() + labels.tobytes(),
    ]
    md5s = tuple(hashlib.md5(c).hexdigest() for c in content)
    monkeypatch.setitem(mnist.MD5, name, md5s)
    for file, c in zip(mnist.FILES, content, strict=True):
        write(base / (f"{file}.gz" if packed else file), gzip.compress(c) if packed else c)
    return images


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "make", "base"), [("mnist", mnist.mnist, "MNIST"), ("fashionmnist", mnist.fashionmnist, "FashionMNIST")]
)
def test_mnist(name, make, base, packed, cache, monkeypatch):
    stored = fake_mnist(cache / base / "raw", monkeypatch, name, packed)
    x, y = same_in_any_order(make())
    assert y.tolist() == list(range(7))
    assert torch.equal(x[:, 0], torch.from_numpy(stored).float() / 255)
    for place in (cache, cache / base, cache / base / "raw"):
        assert len(make(folder=str(place))) == 7
    refused(lambda: make(folder=str(cache.parent)), mnist.FILES[0], f"purebench fetch data-{name}")
    for path in (cache / base / "raw").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    refused(make, "damaged", f"purebench fetch data-{name}", code=DOWNLOAD)


# Corruptions


@pytest.fixture
def fake_corruptions(cache, monkeypatch):
    monkeypatch.setattr(corruptions, "TEST", 4)
    place = cache / "CIFAR-10-C"
    place.mkdir(parents=True)
    for i, name in enumerate(("gaussian_noise", "fog")):
        np.save(place / f"{name}.npy", pixels(20, 32, 32, 3, seed=i))
    np.save(place / "labels.npy", np.tile(np.array([3, 8, 8, 0], np.uint8), 5))
    return place


def test_corruptions(fake_corruptions):
    images = corruptions.cifar10_c(corruption="fog", severity=2)
    x, y = same_in_any_order(images)
    assert y.tolist() == [3, 8, 8, 0]
    assert torch.equal(x, torch.from_numpy(pixels(20, 32, 32, 3, seed=1)[4:8]).permute(0, 3, 1, 2).float() / 255)
    assert images.digest != corruptions.cifar10_c(corruption="fog", severity=3).digest
    assert images.digest != corruptions.cifar10_c(severity=2).digest


def test_wrong_corruptions(fake_corruptions):
    make = corruptions.cifar10_c
    refused(lambda: resolved.find("dataset", "cifar10-c:corruption=gausian_noise"), "did you mean `gaussian_noise`")
    refused(lambda: resolved.find("dataset", "cifar10-c:severity=6"), "severity=6", "1 <= severity <= 5")
    refused(lambda: make(corruption="snow"), "snow.npy", "purebench fetch data-cifar10-c", code=DOWNLOAD)
    refused(lambda: make(folder=str(fake_corruptions), corruption="snow"), "snow.npy")
    np.save(fake_corruptions / "snow.npy", np.zeros((3, 32, 32, 3), np.uint8))
    refused(lambda: make(corruption="snow"), "(3, 32, 32, 3)", "(20, 32, 32, 3)", code=DOWNLOAD)
    np.save(fake_corruptions / "frost.npy", np.array([{}] * 20), allow_pickle=True)
    refused(lambda: make(corruption="frost"), "frost.npy", code=DOWNLOAD)
    refused(corruptions.cifar100_c, "purebench fetch data-cifar100-c", code=DOWNLOAD)


def test_there_are_nineteen_corruptions():
    assert len(set(corruptions.CORRUPTIONS)) == 19


# Image folders


def image_tree(root, classes, each, size=(40, 30), kind="JPEG", name="{c}_{i}.JPEG"):
    for k, c in enumerate(classes):
        for i in range(each):
            write(root / c / name.format(c=c, i=i), encoded(pixels(*size, 3, seed=10 * k + i), kind))


def test_a_folder(tmp_path):
    image_tree(tmp_path, ["owl", "ant", "bee"], 2, kind="PNG", name="{i}.png")
    images = folder.folder(path=str(tmp_path))
    x, y = same_in_any_order(images)
    assert images.classes == 3
    assert y.tolist() == [0, 0, 1, 1, 2, 2]  # ant, bee, owl
    assert torch.equal(x[5], torch.from_numpy(pixels(40, 30, 3, seed=1)).permute(2, 0, 1).float() / 255)
    assert folder.folder(path=str(tmp_path), size=16).shape == [3, 16, 16]
    assert folder.folder(path=str(tmp_path), channels=1).shape == [1, 40, 30]
    before = images.digest
    write(tmp_path / "bee" / "3.png", encoded(pixels(40, 30, 3)))
    assert folder.folder(path=str(tmp_path)).digest != before


def test_wrong_folders(tmp_path):
    def make(path=tmp_path, **more):
        return folder.folder(path=str(path), **more)

    refused(lambda: folder.folder(), "path=PATH")
    refused(lambda: make(tmp_path / "no"), "no folder")
    refused(make, "sub-folder per class")
    write(tmp_path / "picture.png", encoded(pixels(8, 8, 3)))
    refused(make, "sub-folder per class")
    write(tmp_path / "a" / "notes.txt", b"notes")
    refused(make, "no valid file", "sub-folder per class")
    write(tmp_path / "a" / "1.png", encoded(pixels(8, 8, 3)))
    write(tmp_path / "a" / "2.png", encoded(pixels(9, 8, 3)))
    refused(make, "8x8", "8x9", "size=N")
    assert make(size=8).take([0, 1])[0].shape == (2, 3, 8, 8)
    (tmp_path / "a" / "2.png").unlink()
    write(tmp_path / "a" / "3.png", b"<html>not found</html>")
    refused(make, "3.png", "not an image")
    (tmp_path / "a" / "3.png").unlink()
    write(tmp_path / "a" / "4.png", encoded(pixels(64, 64, 3))[:500])
    refused(lambda: make(size=8).take([1]), "4.png", "damaged")
    (tmp_path / "a" / "4.png").unlink()
    write(tmp_path / "a" / "5.png", encoded(pixels(8, 8).astype(np.uint16) * 256))
    assert torch.allclose(make().take([1])[0][0, 0], torch.from_numpy(pixels(8, 8) * (256 / 65535)).float())
    refused(lambda: make(channels=2), "channels=2")


# ImageNet


@pytest.fixture
def fake_imagenet(tmp_path, monkeypatch):
    wnids = ["n01440764", "n01443537", "n01484850"]
    monkeypatch.setattr(imagenet, "wnids", lambda: wnids)
    monkeypatch.setattr(imagenet, "IMAGES", 6)
    image_tree(tmp_path / "val", wnids, 2, size=(300, 400), name="ILSVRC2012_val_{i}.JPEG")
    return tmp_path


def test_imagenet(fake_imagenet, monkeypatch):
    images = imagenet.imagenet(folder=str(fake_imagenet))
    x, y = same_in_any_order(images)
    assert images.classes == 1000
    assert y.tolist() == [0, 0, 1, 1, 2, 2]
    from torchvision import transforms

    published = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    with Image.open(fake_imagenet / "val" / "n01443537" / "ILSVRC2012_val_1.JPEG") as image:
        assert torch.equal(x[3], published(image.convert("RGB")))
    with monkeypatch.context() as patch:
        patch.setenv("PUREBENCH_CACHE", str(fake_imagenet / "cache"))
        (fake_imagenet / "cache" / "data").mkdir(parents=True)
        (fake_imagenet / "cache" / "data" / "imagenet").symlink_to(fake_imagenet)
        assert imagenet.imagenet().digest == images.digest
    monkeypatch.setenv("PUREBENCH_IMAGENET", str(fake_imagenet / "val"))
    assert imagenet.imagenet().digest == images.digest
    assert imagenet.imagenet(resize=40, crop=32).shape == [3, 32, 32]


def test_the_list_of_robustbench(fake_imagenet, monkeypatch):
    files = ["n01484850/ILSVRC2012_val_1.JPEG", "n01440764/ILSVRC2012_val_0.JPEG"]
    monkeypatch.setattr(imagenet, "_robustbench_list", lambda: files)
    _, y = same_in_any_order(imagenet.imagenet(folder=str(fake_imagenet), ids="robustbench"))
    assert y.tolist() == [2, 0]  # in the list's order
    (fake_imagenet / "val" / files[1]).unlink()
    refused(lambda: imagenet.imagenet(folder=str(fake_imagenet), ids="robustbench"), "lacks 1 of", files[1])


def test_the_real_list_of_robustbench():
    files = imagenet._robustbench_list()
    assert len(set(files)) == len(files) == 5000
    wnids = imagenet.wnids()
    assert len(wnids) == 1000
    assert {file.partition("/")[0] for file in files} < set(wnids)
    assert json.loads(imagenet._helper(imagenet.NUMBERS)) == {wnid: i for i, wnid in enumerate(wnids)}


def test_another_list_of_robustbench_is_refused(monkeypatch):
    monkeypatch.setattr(imagenet, "IDS", (imagenet.IDS[0], "0" * 64))
    refused(imagenet._robustbench_list, "reinstall robustbench", code=DOWNLOAD)


def test_wrong_imagenet_folders(fake_imagenet, tmp_path):
    make = imagenet.imagenet
    refused(make, "PUREBENCH_IMAGENET", "val/<wnid>")
    refused(lambda: make(folder=str(tmp_path / "no")), "no folder")
    refused(lambda: make(folder=str(tmp_path / "val" / "n01440764")), "n01440764", "val/<wnid>")
    refused(lambda: resolved.find("dataset", "imagenet:ids=robustbnch"), "robustbench")
    (fake_imagenet / "val" / "n01484850" / "ILSVRC2012_val_0.JPEG").unlink()
    refused(lambda: make(folder=str(fake_imagenet)), "5 images in 3 folders", "expected 6")


# CelebA-HQ


@pytest.fixture
def fake_celebahq(tmp_path):
    names = ["000004", "000008", "000015", "000023"]
    for i, (name, kind) in enumerate(zip(names, ("png", "png", "jpg", "png"), strict=True)):
        write(
            tmp_path / "images" / f"{name}.{kind}",
            encoded(pixels(64, 64, 3, seed=i), "PNG" if kind == "png" else "JPEG"),
        )
    rows = ["000001.jpg 1 1 1", "000004.jpg -1 1 -1", "000008.jpg 1 -1 1", "000015.jpg 1 -1 -1", "000023.jpg 1 1 1"]
    (tmp_path / "list_attr_celeba.txt").write_text("5\nEyeglasses Smiling Young\n" + "\n".join(rows) + "\n")
    parts = ["000001.jpg 1", "000004.jpg 1", "000008.jpg 0", "000015.jpg 1", "000023.jpg 1"]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return tmp_path


def test_celebahq(fake_celebahq, monkeypatch):
    images = celebahq.celebahq(folder=str(fake_celebahq))
    _, y = same_in_any_order(images)
    assert images.shape == [3, 256, 256]
    assert y.tolist() == [1, 0, 1]  # 000004, 000015 and 000023 are of the validation part
    monkeypatch.setenv("PUREBENCH_CELEBAHQ", str(fake_celebahq))
    assert celebahq.celebahq(attribute="Eyeglasses").labels.tolist() == [0, 1, 1]
    assert celebahq.celebahq(attribute="Eyeglasses").digest != images.digest


def test_wrong_celebahq_folders(fake_celebahq):
    def make(**more):
        return celebahq.celebahq(folder=str(fake_celebahq), **more)

    refused(lambda: celebahq.celebahq(), "PUREBENCH_CELEBAHQ", "list_attr_celeba.txt")
    refused(lambda: make(attribute="Smilling"), "did you mean `Smiling`")
    write(fake_celebahq / "images" / "0.png", encoded(pixels(8, 8, 3)))
    refused(make, "0.png", "named as in CelebA")
    (fake_celebahq / "list_attr_celeba.txt").write_text("5\nSmiling\n000001.jpg yes\n")
    refused(make, "000001.jpg yes")
    (fake_celebahq / "list_attr_celeba.txt").write_text("")
    refused(make, "Smiling")
    (fake_celebahq / "list_eval_partition.txt").unlink()
    refused(make, "list_eval_partition.txt")


# Parquet


def hub_file(path, labels, *, image="img", label="label", bare=False, names=None, kind="JPEG"):
    content = [encoded(pixels(32, 32, 3, seed=i), kind) for i in range(len(labels))]
    stored = content if bare else [{"bytes": c, "path": f"{i}.jpg"} for i, c in enumerate(content)]
    table = pa.table({image: stored, label: labels})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ([3, 0, 9], {}, [3, 0, 9]),
        ([3, 0, 9], {"image": "image", "label": "fine_label", "bare": True}, [3, 0, 9]),
        (["ship", "airplane", "truck"], {}, [8, 0, 9]),
        (["yes", "no", "yes"], {"names": ["no", "yes"], "classes": 2}, [1, 0, 1]),
    ],
)
def test_parquet(labels, options, expected, tmp_path):
    classes = {key: options[key] for key in options if key == "classes"}
    path = hub_file(
        tmp_path / "test.parquet", labels, kind="PNG", **{k: v for k, v in options.items() if k not in classes}
    )
    images = parquet.parquet(path=path, **classes)
    x, y = same_in_any_order(images)
    assert y.tolist() == expected
    assert torch.equal(x[2], torch.from_numpy(pixels(32, 32, 3, seed=2)).permute(2, 0, 1).float() / 255)
    assert images.digest == "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert images.note.startswith("your own Parquet file:")
    assert "JPEG" in parquet.parquet(path=hub_file(tmp_path / "2.parquet", [1])).note
    assert parquet.parquet(path=path, channels=1, **classes).shape == [1, 32, 32]


def test_wrong_parquet_files(tmp_path):
    path = tmp_path / "x.parquet"
    refused(lambda: parquet.parquet(), "path=FILE")
    refused(lambda: parquet.parquet(path=str(path)), "no file")
    refused(lambda: parquet.parquet(path=str(tmp_path)), "no Parquet file", "shards")
    path.write_bytes(b"PAR1 no")
    refused(lambda: parquet.parquet(path=str(path)), "as Parquet")
    hub_file(path, [1, 2], image="picture")
    refused(lambda: parquet.parquet(path=str(path)), "`img` or `image`", "picture, label")
    hub_file(path, [1, 2], label="kind")
    refused(lambda: parquet.parquet(path=str(path)), "`label` or `fine_label`", "img, kind")
    hub_file(path, [1, 12])
    refused(lambda: parquet.parquet(path=str(path)), "label 12", "13 at least")
    assert parquet.parquet(path=str(path), classes=13).classes == 13
    hub_file(path, ["cat", "owl"])
    refused(lambda: parquet.parquet(path=str(path)), "`owl`", "airplane")
    hub_file(path, [1, None])
    refused(lambda: parquet.parquet(path=str(path)), "no labels in 1 of 2 rows")
    pq.write_table(pa.table({"img": ["a"], "label": [0]}), path)
    refused(lambda: parquet.parquet(path=str(path)), "string")
    pq.write_table(pa.table({"img": [{"bytes": b"<html>", "path": None}], "label": [0]}), path)
    refused(lambda: parquet.parquet(path=str(path)), "row 0", "not an image")
    pq.write_table(pa.table({"img": [{"bytes": b"", "path": "1.png"}, None], "label": [0, 0]}), path)
    refused(lambda: parquet.parquet(path=str(path)), "1 rows without an image")


def test_a_file_that_vanished(tmp_path):
    refused(lambda: of_files(tmp_path, ["gone.png"], [0], classes=1), "gone.png")


@pytest.mark.parametrize("corruption", ["impulse_noise", "glass_blur", "fog", "jpeg_compression"])
def test_a_generated_corruption_depends_on_the_image_alone(corruption):
    """Its draws are numpy's, scikit-image's and numba's: all seeded by the index, and numpy's put back."""
    pytest.importorskip("imagecorruptions", reason="the extra `corruptions` is not installed")
    found = resolved.find("dataset", f"corrupted:of=(digits),corruption={corruption},severity=5")
    assert (found.shape, found.size, found.classes) == ([1, 8, 8], 500, 10)
    clean, y = resolved.find("dataset", "digits").images.take([3, 1])
    np.random.seed(1)
    x, labels = found.images.take([3, 1])
    after = np.random.rand()
    np.random.seed(1)
    assert np.random.rand() == after
    assert torch.equal(x[[1]], found.images.take([1])[0])
    assert torch.equal(labels, y)
    assert x.shape == clean.shape
    assert 0.02 < (x - clean).abs().mean() < 0.7
    assert found.digest != resolved.find("dataset", "digits").digest
