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

from purebench import assets, cli, embedded, errors, networks, purifiers, registry
from purebench.assets import checkpoint
from purebench.classifiers import published as classifiers
from purebench.classifiers import zoo
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan import resolved as components
from purebench.plan.grid import Request
from purebench.purifiers.resized import Resized, resize
from purebench.running import evaluate, rehearsal
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
    assert str(cells[0].dataset) == "parquet:name=few"
    assert str(tmp_path) not in json.dumps(cells[0].data())
    assert cells[0].dataset.where == {"path": str(one)}
    assert cells[0].dataset.digest.startswith("sha256:")


def test_what_stands_in_is_said(tmp_path):
    job = plan.build(request(parquet_file(tmp_path / "few.parquet", quality=75), defenses=("coup",))).jobs[0]
    assert len(job.stand_in) == 3
    assert "JPEG" in job.stand_in[0]
    assert plan.build(Request(defenses=("coup",), dataset="digits")).jobs[0].stand_in == ()


def job_of(dataset, defense="coup", attack="null", **given):
    """The last job of a plan, which is the one asked for."""
    return plan.build(
        Request(dataset=dataset, defenses=(defense,), attacks=(attack,), images=1, subset=0, **given)
    ).jobs[-1]


CIFAR100 = {"classifier": "robustbench:dataset=cifar100,id=Wang2023Better_WRN-28-10"}


@pytest.mark.parametrize(
    ("dataset", "defense", "given", "said"),
    [
        ("cifar10", "coup", {}, []),
        ("cifar10", "edm", {}, []),
        ("cifar10-c", "coup", {}, []),  # CIFAR-10's images: the papers run their CIFAR-10 networks on them
        ("cifar10-c:corruption=fog", "scoreopt-o", {}, []),
        ("cifar100", "edm", {"score": "edm", **CIFAR100}, ["`edm`, trained on cifar10, not on cifar100"]),
        ("cifar100-c", "edm", {"score": "edm", **CIFAR100}, ["`edm`, trained on cifar10, not on cifar100"]),
        ("cifar100", "none", {"score": "edm", **CIFAR100}, []),  # it is not used
        ("cifar10", "coup", {"score": "guided-diffusion"}, ["`guided-diffusion`, trained on imagenet, not on cifar10"]),
        (
            "fashionmnist",
            "one-shot",
            {"classifier": "mnist-cnn", "score": "digits-vp"},
            [
                "our training of ADP's MNIST CNN (its weights were never released), trained on mnist, not on fashionmnist",
                "`digits-vp`, trained on digits, not on fashionmnist",
            ],
        ),
        ("digits", "coup", {}, []),
    ],
)
def test_a_network_of_other_images_stands_in(dataset, defense, given, said):
    job = job_of(dataset, defense, **given)
    assert list(job.stand_in) == said
    asked = Request(dataset=dataset, defenses=(defense,), attacks=("null",), images=1, **given)
    notes = [note for note in plan.build(asked).notes if "stands in" in note]
    assert notes == ([f"warning: not paper-comparable, for what stands in: {'; '.join(said)}"] if said else [])


def test_networks_on_images_of_ones_own_say_what_they_were_trained_on(tmp_path):
    """Whether it is what these images are of, nobody here can know."""
    job = plan.build(request(parquet_file(tmp_path / "few.parquet"), defenses=("coup",))).jobs[0]
    assert list(job.stand_in[1:]) == [
        "pyautoattack's example ResNet-18, trained on cifar10",
        "small VP network of `purebench train cifar10-score`, trained on cifar10",
    ]


def test_weights_of_ones_own_stand_in_wherever_they_are(tmp_path):
    score = own_weights(tmp_path / "mine.safetensors")
    (tmp_path / "net.safetensors").write_bytes(embedded.verified("digits-classifier").read_bytes())
    given = {"score": f"digits-vp:path={score}", "classifier": f"file:path={tmp_path / 'net.safetensors'}"}
    assert job_of("digits", **given).stand_in == (
        "your own weights `file:name=net`",
        "your own weights `digits-vp:name=mine`",
    )
    # And run: what `path` names is walked, and timed, as what ships is.
    of_its_own = f"coup:steps=2,score=(digits-vp:path={score})"
    asked = Request(dataset="digits", defenses=("reverse-sde:steps=2", of_its_own), attacks=("null",), **given)
    rehearsal.check(plan.build(asked))


def test_a_transfer_names_what_its_images_were_made_on():
    job = job_of("cifar10", "none", "transfer:from=(one-shot:score=guided-diffusion)")
    assert job.cell.attack.name == "transfer"
    assert job.stand_in == ("`guided-diffusion`, trained on imagenet, not on cifar10",)


def test_a_plug_in_that_does_not_say_what_it_was_trained_on_is_told(monkeypatch):
    entry = {"summary": "a plug-in", "size": [1, 8, 8], "digest": "d"}
    monkeypatch.setitem(registry.NAMES["score"], "my-score", "purebench.scores.digits:digits_vp")
    registry.names.cache_clear()
    real = registry.info
    monkeypatch.setattr(registry, "info", lambda kind, name: entry if name == "my-score" else real(kind, name))
    try:
        assert job_of("digits", score="my-score").stand_in == ("`my-score`, which does not say what it was trained on",)
        entry["trained_on"] = "digits"
        assert job_of("digits", score="my-score").stand_in == ()
    finally:
        monkeypatch.undo()
        registry.names.cache_clear()


@pytest.mark.parametrize(
    ("defense", "own"),
    [("adp", "ncsnv2"), ("scoreopt-o", "edm"), ("scoreopt-n", "edm"), ("lm", "edm"), ("lm-coup", "edm"), ("edm", "edm"),
     ("gdmp", "ddpm"), ("ebm", "ebm"), ("diffpure", "score-sde"), ("coup", "score-sde")],
)  # fmt: skip
def test_cifar10_c_has_the_score_models_of_cifar10(defense, own):
    jobs = [job_of(name, defense, attack="bpda-eot") for name in ("cifar10", "cifar10-c")]
    assert [job.cell.score for job in jobs] == [own, own]
    assert jobs[0].cell.defense == jobs[1].cell.defense
    assert jobs[0].cell.attack == jobs[1].cell.attack
    assert job_of("cifar10-c", defense, score="cifar10-small").cell.score == "cifar10-small"


def celeba_folder(root):
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (256, 256)).save(root / "images" / "000001.png")
    (root / "list_attr_celeba.txt").write_text("1\nSmiling\n000001.jpg 1\n")
    (root / "list_eval_partition.txt").write_text("000001.jpg 1\n")
    return f"celebahq:folder={root}"


@pytest.mark.parametrize("defense", ["adp", "scoreopt-n", "gdmp", "lm", "lm-coup", "edm", "ebm"])
def test_a_datasets_default_does_not_take_the_place_of_a_papers_own_score_model(defense, tmp_path):
    """Not unsaid: who asks for it gets it."""
    dataset = celeba_folder(tmp_path / "faces")
    assert job_of(dataset, "diffpure").cell.score == "celebahq-ddpm"
    for asked in ({"defense": defense}, {"defense": "diffpure", "attack": f"transfer:from=({defense})"}):
        with pytest.raises(UserError, match=f"`{defense}` has a score model of its own") as caught:
            job_of(dataset, **asked)
        assert "`--score celebahq-ddpm`" in caught.value.hint
        assert caught.value.code == 2
    assert job_of(dataset, defense, score="celebahq-ddpm").cell.score == "celebahq-ddpm"
    part = "1 of CelebA-HQ's 2993 validation images"
    assert job_of(dataset, f"{defense}:score=celebahq-ddpm").stand_in == (part,)
    [said] = set(job_of(dataset, defense, score="edm").stand_in) - {part}
    assert said == "`edm`, trained on cifar10, not on celebahq"


def test_the_default_dataset_is_cifar10_once_it_is_fetched(empty_cache, monkeypatch):
    def dataset():
        made = plan.build(Request(defenses=("none",), attacks=("null",)))
        return made.jobs[0].cell.dataset.name, made.notes[0]

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
        ({"dataset": "imagenet:folder=nowhere"}, "nowhere"),
        ({"dataset": "digits", "attacks": ("autoattack-standard:n_target_classes=10",)}, "at least 11 classes, and digits has 10"),
        ({"dataset": "celebahq", "attacks": ("apgd-dlr",)}, "at least 3 classes, and celebahq has 2"),
        ({"dataset": "celebahq", "attacks": ("pgd-eot:loss=dlr",)}, "at least 3 classes, and celebahq has 2"),
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


@pytest.mark.parametrize(
    ("kind", "part", "words"),
    [
        (
            "score",
            "ncsnv2:weights=raw,path=X.safetensors",
            "`weights=raw` of `ncsnv2` has no say here: .*one set of weights",
        ),
        ("score", "ncsnv2:weights=ema,path=X.safetensors", "`weights=ema`"),
        ("score", "edm:precond=ve,path=X.pkl", "`precond=ve` of `edm` has no say here"),
        ("score", "edm:precond=vp,path=X.pkl", "`precond=vp`"),
        ("score", "edm:name=mine", "names a file"),
        ("classifier", "file:path=X.pth,network=torchvision/resnet18,depth=10", "`depth=10` of `file` has no say here"),
        ("classifier", "file:path=X.pth,network=cifar_resnet50,widen=2", "`widen=2`"),
        ("classifier", "file:path=X.safetensors,depth=28", "`depth=28`"),
    ],
)
def test_what_would_be_recorded_and_do_nothing_is_refused(kind, part, words):
    given = {kind: part} if kind == "classifier" else {"defenses": (f"adp:score=({part})",)}
    for asked in (given, {kind: part}):
        with pytest.raises(UserError, match=words) as caught:
            plan.build(Request(**{"dataset": "cifar10", "defenses": ("adp",), "attacks": ("null",), **asked}))
        assert caught.value.hint
        assert caught.value.code == 2


def test_which_weights_of_ncsnv2_are_taken_of_a_file_that_has_both(tmp_path):
    """And the words are kept where they do something."""
    entry = assets.entry("ncsnv2-cifar10")
    network = networks.build(entry["network"], entry["config"])
    state = network.state_dict()
    torch.save([{f"module.{k}": v + 1 for k, v in state.items()}, {}, 1, 2, state], tmp_path / "both.pth")
    torch.save(state, tmp_path / "one.pth")
    key = next(k for k in state if k.endswith("weight"))
    for weights, shift in (("ema", 0), ("raw", 1)):
        part = components.find("score", f"ncsnv2:weights={weights},path={tmp_path / 'both.pth'}")
        made = components.load("score", "ncsnv2", part.values).network.network.state_dict()
        torch.testing.assert_close(made[key], state[key] + shift)
        # A state dict alone does not say which it is: its cell may say neither.
        with pytest.raises(UserError, match=r"has no say here: .*one set of weights"):
            components.find("score", f"ncsnv2:weights={weights},path={tmp_path / 'one.pth'}")
    assert components.find("score", f"ncsnv2:path={tmp_path / 'one.pth'}").text == "ncsnv2:name=one"
    assert (
        components.find("score", f"ncsnv2:weights=raw,path={tmp_path / 'both.pth'}").text
        == "ncsnv2:name=both,weights=raw"
    )


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
    from purebench import registry
    from purebench.plan import catalogue

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
    assert (
        "pyautoattack's example ResNet-18, trained on cifar10" in result.output.rpartition("| none")[2]
    )  # in the table


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
    assert one.scores[0].digest != one.scores[1].digest == assets.sha256(tmp_path / "a" / "mine.safetensors")
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
