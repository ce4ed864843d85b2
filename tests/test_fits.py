"""Which images a network sees: prepared as it was evaluated, normalised as it was trained, of its own size, channels and classes."""

import pytest
import torch
from PIL import Image

from purebench.datasets import images
from purebench.errors import UserError
from purebench.plan import grid
from purebench.plan.grid import Request

WONG = "robustbench:dataset=imagenet,id=Wong2020Fast"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    for variable in ("PUREBENCH_CHECKPOINTS", "PUREBENCH_IMAGENET"):
        monkeypatch.delenv(variable, raising=False)


def planned(dataset, classifier, **more):
    return grid.build(
        Request(**{"dataset": dataset, "classifier": classifier, "defenses": ("none",), "attacks": ("null",)} | more)
    )


# ----------------------------------------------------------------------------------------------------------- preparation


@pytest.mark.parametrize(
    ("dataset", "classifier", "named", "side"),
    [
        ("imagenet", WONG, "imagenet:crop=288,resize=0", 288),
        ("imagenet:ids=robustbench", WONG, "imagenet:crop=288,ids=robustbench,resize=0", 288),
        ("imagenet", "timm", "imagenet:interpolation=bicubic", 224),
        # A cell keeps its name, and so its id, where the preparation is the usual one.
        ("imagenet", "torchvision:id=resnet50", "imagenet", 224),
        ("imagenet", "robustbench:dataset=imagenet,id=Salman2020Do_R18", "imagenet", 224),
        ("corrupted:corruption=fog,of=(imagenet)", WONG, "corrupted:corruption=fog,of=(imagenet:crop=288,resize=0)", 288),
        # Whatever is said wins.
        ("imagenet:resize=256,crop=224", WONG, "imagenet", 224),
        ("imagenet:resize=256,crop=224", "timm", "imagenet", 224),
        ("imagenet:resize=0,crop=288", "torchvision:id=resnet50", "imagenet:crop=288,resize=0", 288),
    ],
)  # fmt: skip
def test_the_classifiers_preparation_is_the_datasets_where_nobody_said_another(
    dataset, classifier, named, side, monkeypatch
):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1")
    [job] = planned(dataset, classifier).jobs
    assert (str(job.cell.dataset), job.shape) == (named, [3, side, side])


def test_another_preparation_than_the_classifiers_is_said():
    plan = planned("imagenet:resize=256,crop=224", WONG)
    words = "on images scaled to 256 (bilinear) and cut to 224x224: its published number is of images cut to 288x288"
    assert any(words in note and note.startswith("note: ") for note in plan.notes)
    assert [words in stand_in for stand_in in plan.jobs[0].stand_in] == [True]
    # DiffPure's own table of DeiT-S is of bilinear images: a note, and no stand-in.
    plan = planned("imagenet:resize=256,crop=224", "timm")
    assert any("scaled to 256 (bicubic)" in note for note in plan.notes)
    assert plan.jobs[0].stand_in == ()


@pytest.mark.parametrize(
    ("dataset", "classifier", "words"),
    [
        ("imagenet:resize=0,crop=288", "timm", "takes images of 3x224x224"),
        ("imagenet:resize=200", "torchvision:id=resnet50", "resize == 0 or resize >= crop"),
        ("imagenet:resize=0,interpolation=bicubic", "torchvision:id=resnet50", "nothing is scaled"),
        ("cifar10", WONG, "takes images of 3x288x288"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(dataset, classifier, words):
    with pytest.raises(UserError) as caught:
        planned(dataset, classifier)
    assert words in caught.value.message


def test_images_are_prepared_as_torchvision_does_it(tmp_path):
    """The right values: RobustBench's own transforms, `Crop288` and `BicubicRes256Crop224`."""
    from torchvision import transforms

    (tmp_path / "a").mkdir()
    picture = Image.effect_mandelbrot((400, 320), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    picture.save(tmp_path / "a" / "1.png")
    bicubic = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)
    for given, right in (
        ({"crop": 288}, [transforms.CenterCrop(288)]),
        ({"crop": 360, "frame": True}, [transforms.CenterCrop(360)]),
        ({"resize": 256, "crop": 224, "interpolation": "bicubic"}, [bicubic, transforms.CenterCrop(224)]),
    ):
        x, _ = images.of_files(tmp_path, ["a/1.png"], [0], 1, **given).take([0])
        assert torch.equal(x[0], transforms.Compose([*right, transforms.ToTensor()])(picture))


# --------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mean=[123.7,116.3,103.5],std=[58.4,57.1,57.4]", ["`mean` has 123.7", "`std` has 58.4", "divide by 255: mean=[0.4851,"]),
        ("mean=[0.5,0.5,0.5]", ["no `std`"]),
        ("std=[0.5,0.5,0.5]", ["no `mean`"]),
        ("mean=[0.5,0.5],std=[0.5,0.5,0.5]", ["`mean` has 2 numbers, and the images have 3 channels"]),
        ("mean=[0.5,0.5,0.5],std=[0.5,0.5,0]", ["`std` has 0, and is divided by"]),
        ("mean=[-1,0,0],std=[1,1,1]", ["`mean` has -1"]),
        ("mean=[124,116],std=[58]", ["2 numbers", "`mean` has 124", "`std` has 58"]),
    ],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_meant_is_one_message_of_the_plan(given, words, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"not read before")
    with pytest.raises(UserError) as caught:
        planned("cifar10", f"file:path={tmp_path / 'mine.pth'},network=wideresnet_hill,{given}")
    for word in words:
        assert word in f"{caught.value.message}; {caught.value.hint}"
