"""Datasets, classifiers and score models by name: identity, what is missing, what fits together, and that they load."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

from purebench import assets, classifiers, cli, components, embedded, errors, evaluate, networks, plan, purifiers, zoo
from purebench.assets import checkpoint
from purebench.errors import UserError
from purebench.noise import Noise
from purebench.plan import Request
from purebench.purifiers.resized import Resized, resize
from purebench.scores import published
from purebench.scores.views import Score


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PUREBENCH_CHECKPOINTS", raising=False)
    return tmp_path / "cache"


def parquet_file(path, n=20, size=32, quality=None):
    rows = []
    for i in range(n):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG" if quality else "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{i}"})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": rows, "label": [i % 10 for i in range(n)]}), path)
    return path


REAL = ("--classifier", "autoattack-resnet18", "--score", "cifar10-small")


def request(path, **more):
    given = {"defenses": ("none",), "attacks": ("null",), "images": 4} | more
    return Request(dataset=f"parquet:path={path}", classifier="autoattack-resnet18", score="cifar10-small", **given)


# ------------------------------------------------------------------------------------------------------------- identity


def test_a_cell_knows_content_and_not_places(tmp_path):
    one, two = parquet_file(tmp_path / "a" / "few.parquet"), parquet_file(tmp_path / "b" / "few.parquet")
    other = parquet_file(tmp_path / "c" / "few.parquet", n=21)
    cells = [plan.build(request(path)).jobs[0].cell for path in (one, two, other)]
    assert cells[0].id == cells[1].id != cells[2].id
    assert cells[0].dataset == "parquet:name=few"
    assert str(tmp_path) not in json.dumps(cells[0].data())
    assert cells[0].component("dataset").get("path") == str(one)
    assert plan.build(request(one)).jobs[0].cell.hashes["dataset"].startswith("sha256:")


def test_what_stands_in_is_said(tmp_path):
    job = plan.build(request(parquet_file(tmp_path / "few.parquet", quality=75), defenses=("coup",))).jobs[0]
    assert len(job.stand_in) == 3
    assert "JPEG" in job.stand_in[0]
    assert plan.build(Request(defenses=("coup",), dataset="digits")).jobs[0].stand_in == ()


def test_the_default_dataset_is_cifar10_once_it_is_fetched(empty_cache, monkeypatch):
    def dataset():
        made = plan.build(Request(defenses=("none",), attacks=("null",)))
        return made.dataset, made.notes[0]

    assert dataset()[0] == "digits"
    assert "purebench fetch cifar10" in dataset()[1]
    have = {"data-cifar10", "score-sde-cifar10-vp"}
    monkeypatch.setattr(assets, "present", lambda name: name in have or "digits" in name)
    name, note = dataset()
    assert name == "digits"
    assert "robustbench/cifar10/Linf/Standard missing" in note
    have.add("robustbench/cifar10/Linf/Standard")
    name, note = dataset()
    assert name == "cifar10"
    assert "in the cache" in note


def test_what_is_missing_is_said_with_the_command_that_brings_it(tmp_path):
    made = plan.build(Request(dataset="cifar10", defenses=("none",), attacks=("null",)))
    assert made.missing == ["data-cifar10", "robustbench/cifar10/Linf/Standard"]  # `none` needs no score model
    made = plan.build(Request(dataset="cifar10", defenses=("coup",), attacks=("null",)))
    assert made.missing == ["data-cifar10", "robustbench/cifar10/Linf/Standard", "score-sde-cifar10-vp"]
    arguments = ["run", "--dataset", "cifar10", "-d", "coup", "-a", "null", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, UserError)
    assert result.exception.code == errors.DOWNLOAD
    assert "purebench fetch data-cifar10" in result.exception.hint
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": "cifar10", "classifier": "digits-cnn"}, "takes images of 1x8x8, and cifar10 has 3x32x32"),
        ({"dataset": "cifar10", "score": "digits-vp"}, "takes images of 1x8x8"),
        ({"dataset": "cifar100", "classifier": "robustbench:id=Standard", "score": "score-sde"}, "knows 10 classes"),
        ({"dataset": "cifar10", "classifier": "robustbench:id=Standart"}, "unknown id of `robustbench`"),
        ({"dataset": "cifar10", "classifier": "torchvision:id=resnet51"}, "unknown id of `torchvision`"),
        ({"dataset": "cifar10", "classifier": "file"}, "needs a file"),
        ({"dataset": "cifar10", "classifier": "robustbench:dataset=cifar12"}, "unknown dataset of `robustbench` `cifar12`"),
        ({"dataset": "cifar10", "classifier": "robustbench:threat=Foo"}, "unknown threat of `robustbench` `Foo`"),
        ({"dataset": "cifar10", "score": "ncsnv2:weights=xx"}, "unknown weights of `ncsnv2`"),
        ({"dataset": "cifar100", "score": "score-sde"}, "has no default classifier"),
        ({"dataset": "imagenet"}, "no folder is given"),
        ({"dataset": "cifar10", "images": 600, "subset": None}, None),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_refused(given, words):
    asked = Request(**({"defenses": ("coup",), "attacks": ("null",)} | given))
    if words is None:
        assert plan.build(asked).jobs[0].images == 600
        return
    with pytest.raises(UserError, match=words) as caught:
        plan.build(asked)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not weights", b"<html>"], ids=["empty", "text", "page"])
def test_a_local_file_that_is_none_is_a_user_error(content, tmp_path):
    (tmp_path / "mine.pth").write_bytes(content)
    for network in ("", "wideresnet_hill"):
        with pytest.raises(UserError):
            classifiers.file(path=str(tmp_path / "mine.pth"), network=network)


@pytest.mark.parametrize(
    "given",
    [{"mean": (0.5,)}, {"mean": ("foo",), "std": (1,)}, {"mean": (0.5,), "std": (0,)}, {"network": "torchvision/nope"}, {"network": "adm"}],
    ids=str,
)  # fmt: skip
def test_a_local_file_with_impossible_options_is_a_user_error(given, tmp_path):
    with pytest.raises(UserError) as caught:
        classifiers.file(path=str(tmp_path / "mine.pth"), **given)
    assert caught.value.hint


def test_everything_can_be_shown():
    from purebench import catalogue, registry

    for kind in registry.NAMES:
        for name in registry.names(kind):
            assert catalogue.text(catalogue.facts(name))


def test_a_control_without_a_score_model_is_the_same_cell_before_and_after_the_model_is_fetched(monkeypatch):
    def cell():
        return plan.build(Request(dataset="cifar10", defenses=("none",), attacks=("null",))).jobs[0].cell.id

    before = cell()
    monkeypatch.setattr(assets, "digest", lambda name: "ab" * 32 if name == "score-sde-cifar10-vp" else "")
    assert cell() == before


def test_a_file_that_came_another_way_is_hashed_once(empty_cache, tmp_path, monkeypatch):
    import hashlib

    path = assets.path("ddpm-cifar10-ema")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert assets.digest("ddpm-cifar10-ema") == hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setenv("PUREBENCH_DDPM_CIFAR10_EMA", str(tmp_path / "other"))
    (tmp_path / "other").write_bytes(b"others")
    assert assets.digest("ddpm-cifar10-ema") == hashlib.sha256(b"others").hexdigest()


# ---------------------------------------------------------------------------------------------------------------- networks


def test_robustbench_is_built_offline_and_filled_from_its_own_place(empty_cache):
    network = zoo.architecture("cifar10", "Linf", "Standard")
    assert sum(p.numel() for p in network.parameters()) == 36_479_194
    path = assets.path("robustbench/cifar10/Linf/Standard")
    assert path == empty_cache / "models" / "cifar10" / "Linf" / "Standard.pt"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    state = {
        f"module.{k}": v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }
    torch.save({"state_dict": state, "epoch": 7}, path)
    loaded = classifiers.robustbench(id="Standard")
    network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network.eval()(x))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_pyautoattacks_resnet18_is_what_it_was():
    network = classifiers.autoattack_resnet18()
    x = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    assert network(x).argmax(1).tolist() == [0, 0]
    torch.testing.assert_close(network(x)[0, :3], torch.tensor([4.5444, -2.0867, 3.6920]), atol=1e-3, rtol=1e-4)


def test_imagenet_classifiers_normalise_inside():
    with checkpoint.untrained():
        network = classifiers.torchvision(id="resnet18")
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in classifiers.IMAGENET)
    torch.testing.assert_close(network(x), network.network((x - mean) / std))


def test_two_logits_say_present_below_zero():
    network = classifiers.TwoLogits(torch.nn.Flatten())
    assert network(torch.tensor([[[[2.0]]], [[[-3.0]]]])).tolist() == [[2.0, -2.0], [-3.0, 3.0]]


@pytest.mark.parametrize("name", ["score_sde", "edm", "ddpm", "ncsnv2"])
def test_score_models_of_the_registry_serve_both_views(name):
    with checkpoint.untrained():
        model = getattr(published, name)()
    assert isinstance(model, Score)
    x = torch.randn(1, *model.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for out in (model.eps(x, 0.1), model.denoise(x, 0.3), model.eps_index(x, 99)):
            assert out.shape == x.shape
            assert out.isfinite().all()


def test_an_unfetched_network_is_a_download_error():
    with pytest.raises(UserError, match="score-sde-cifar10-vp") as caught:
        published.score_sde()
    assert caught.value.code == errors.DOWNLOAD
    assert "purebench fetch" in caught.value.hint


def test_a_local_file_with_a_named_architecture(tmp_path):
    from purebench import networks

    torch.manual_seed(0)
    network = networks.build("wideresnet_hill", {"depth": 10, "widen": 1, "classes": 100})
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "mine.pth")
    part = f"file:path={tmp_path / 'mine.pth'},network=wideresnet_hill,depth=10,widen=1,classes=100,mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5]"
    found = components.find("classifier", part)
    assert found.text.startswith("file:classes=100,depth=10,mean=")
    assert "name=mine" in found.text
    assert str(tmp_path) not in found.text
    assert len(found.digest) == 64
    loaded = components.load("classifier", found.name, found.values)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), network(2 * x - 1))


# ------------------------------------------------------------------------------------------------------------------ resizing


def test_a_score_model_of_another_size_is_resized_to():
    class Model(Score):
        size = (3, 16, 16)

        def eps(self, x, t):
            assert x.shape[1:] == self.size
            return 0.3 * x

    inner = purifiers.make("diffpure", score=Model(), t=0.05, steps=5)
    outer = Resized(inner, (12, 12), (16, 16))
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    noise = Noise(0, "test", (), range(2), [0, 0])

    def run(purifier, x):
        state = purifier.start(x, noise)
        for k in range(purifier.n):
            state = purifier.step(k, state, noise)
        return purifier.finish(state)

    torch.testing.assert_close(run(outer, x), resize(run(inner, resize(x, (16, 16))), (12, 12)))
    assert outer.times == inner.times  # what the adjoint gradient asks for


def test_a_run_on_a_parquet_file(tmp_path):
    path = parquet_file(tmp_path / "few.parquet", quality=75)
    arguments = [
        "run",
        "--dataset",
        f"parquet:path={path}",
        *REAL,
        "-d",
        "none",
        "-a",
        "pgd-eot:steps=2,eot=1",
        "-t",
        "Linf:8/255",
    ]
    arguments += [
        "--images",
        "3",
        "--evals",
        "1",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--rows",
        "16",
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "out").iterdir()
    run = json.loads((folder / "cell.json").read_text())["runs"][0]
    assert any("JPEG" in s for s in run["stand_in"])
    order = np.random.RandomState(0).choice(20, 3, replace=False)
    assert [json.loads(line)["index"] for line in (folder / "images.jsonl").read_text().splitlines()] == order.tolist()
    import hashlib

    assert run["indices"] == hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert "not paper-comparable" in result.output


def test_a_dataset_is_read_in_any_order(tmp_path):
    part = components.find("dataset", f"parquet:path={parquet_file(tmp_path / 'few.parquet')}")
    x, y = part.images.take([7, 3])
    torch.testing.assert_close(x[1:], part.images.take([3])[0])
    assert y.tolist() == [7, 3]
    assert (part.shape, part.size, part.classes) == ([3, 32, 32], 20, 10)
    cell = plan.build(request(tmp_path / "few.parquet")).jobs[0].cell
    assert evaluate.shape(cell) == [3, 32, 32]


# ------------------------------------------------------------------------------------------------------- weights of one's own


def own_weights(path):
    """The digits' score network with other numbers, as `purebench train` would write it."""
    network = embedded.load("digits-score")
    with safetensors.safe_open(embedded.verified("digits-score"), "pt") as file:
        about = file.metadata()
    safetensors.torch.save_file({k: v * 1.01 for k, v in network.state_dict().items()}, path, about)
    return path


def test_a_score_model_of_ones_own_weights_is_known_by_its_content(tmp_path):
    stored = own_weights(tmp_path / "stored").read_bytes()

    def cell(folder):
        folder.mkdir()
        path = folder / "mine.safetensors"
        path.write_bytes(stored)
        request = Request(
            dataset="digits", defenses=(f"adp:steps=2,score=[digits-vp,(digits-vp:path={path})]",), attacks=("null",)
        )
        return plan.build(request).jobs[0].cell

    one, other = cell(tmp_path / "a"), cell(tmp_path / "b")
    assert one.score == "[digits-vp,(digits-vp:name=mine)]"
    assert one.hashes["score"] != one.hashes["score.1"] == assets.sha256(tmp_path / "a" / "mine.safetensors")
    assert one.id == other.id
    made = evaluate.build_defense(one, torch.device("cpu"), rows=4)
    first, second = made.purifier.scores
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(first.denoise(x, 0.3), second.denoise(x, 0.3))
    assert second.network.state_dict().keys() == first.network.state_dict().keys()


def test_weights_of_another_network_are_refused(tmp_path):
    other = embedded.verified("cifar10-score")
    with pytest.raises(UserError, match="is no network like `digits-score`"):
        components.load("score", "digits-vp", {"path": str(other)})
    with pytest.raises(UserError, match="is no file"):
        plan.build(Request(dataset="digits", defenses=("coup",), attacks=("null",), score="digits-vp:path=/nowhere.pt"))


def test_published_score_models_take_weights_of_ones_own(tmp_path, monkeypatch):
    entry = assets.entry("ebm-hill-cifar10")
    network = networks.build(entry["network"], entry.get("config", {}))
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    made = components.load("score", "ebm", {"path": str(tmp_path / "mine.pth")})
    for key, value in network.state_dict().items():
        assert torch.equal(made.network.state_dict()[key], value)
