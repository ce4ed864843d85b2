"""Which images a network sees: prepared as it was evaluated, normalised as it was trained, of its own size, channels and classes."""

import json
import math
import pickle
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from purebench import assets, networks
from purebench.assets import architecture, diffusers
from purebench.datasets import images
from purebench.errors import UserError
from purebench.networks import small
from purebench.plan import grid
from purebench.plan import resolved as components
from purebench.plan.grid import Request
from purebench.running import rehearsal
from purebench.scores import vp

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
    torch.save({"linear.weight": torch.zeros(10, 4)}, tmp_path / "mine.pth")
    with pytest.raises(UserError) as caught:
        planned("cifar10", f"file:path={tmp_path / 'mine.pth'},network=wideresnet_hill,{given}")
    for word in words:
        assert word in f"{caught.value.message}; {caught.value.hint}"


# ------------------------------------------------------------------------------------------------ which network, which classes

DDPM = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [16],
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 32,
}
EDM = {
    "img_resolution": 16, "img_channels": 1, "label_dim": 0, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [8],
}  # fmt: skip
ADM = {
    "image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "16",
    "num_heads": 2, "learn_sigma": True, "diffusion_steps": 50, "noise_schedule": "cosine",
}  # fmt: skip
NCSN = {"ngf": 8, "image_size": 64, "channels": 3, "sigma_begin": 90, "sigma_end": 0.01, "num_classes": 50}


def sde(size):
    found = assets.entry("score-sde-cifar10-vp")["config"]
    model = {**found["model"], "nf": 16, "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]}
    return {"data": {**found["data"], "image_size": size}, "model": model}


def saved(path, family, config):
    torch.manual_seed(0)
    network = networks.build(family, config)
    torch.save(network.state_dict(), path)
    return network


def written(path, config):
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("score", "family", "config", "given", "size"),
    [
        ("ddpm", "ddpm", DDPM, "size=32", [3, 32, 32]),
        ("ddpm", "ddpm", DDPM | {"in_channels": 1, "out_ch": 1, "resolution": 64, "ch_mult": [1, 1, 2]}, "size=64", [1, 64, 64]),
        ("ddpm", "ddpm", DDPM | {"attn_resolutions": []}, "size=48", [3, 48, 48]),
        ("celebahq-ddpm", "ddpm", DDPM | {"out_ch": 6}, "size=32", [3, 32, 32]),
        ("score-sde", "ddpmpp", sde(64), "size=64", [3, 64, 64]),
        ("edm", "edm", EDM | {"precond": "edm"}, "config", [1, 16, 16]),
        ("guided-diffusion", "adm", ADM, "config", [3, 32, 32]),
        ("ncsnv2", "ncsnv2", NCSN, "size=64", [3, 64, 64]),
    ],
)  # fmt: skip
def test_a_file_says_which_network_it_is_of(score, family, config, given, size, tmp_path):
    """The right value: the network that the file was saved of answers the same."""
    network = saved(tmp_path / "mine.pt", family, config)
    if family == "ncsnv2":
        torch.save([network.state_dict(), {}, 1, 2, network.state_dict()], tmp_path / "mine.pt")
    given = f"config={written(tmp_path / 'c.json', config)}" if given == "config" else given
    found = components.find("score", ",".join(filter(None, [f"{score}:path={tmp_path / 'mine.pt'}", given])))
    assert found.takes == size
    made = components.load("score", found.key, found.values)
    assert list(made.size) == size
    inner, x = made.network, torch.rand(2, *size)
    if family == "ncsnv2":
        assert made.sigma_max == pytest.approx(180)
        assert torch.equal(made.direction(2 * x - 1, 1.0), network.raw(x))
    else:
        assert torch.equal(inner(x, torch.full((2,), 3.0)), network(x, torch.full((2,), 3.0)))


def loaded_after_its_size(part):
    found = components.find("score", part)
    assert found.takes
    return components.load("score", found.key, found.values)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("ddpm:path={two}", "of which images `two.pt` is, its shapes do not tell"),
        ("ddpm:path={two},size=33", "33x33 cannot be"),
        ("score-sde:path={two}", "holds no network of the family `ddpmpp`"),
        ("edm:path={two}", "write config=FILE"),
        ("guided-diffusion:path={adm}", "its heads stand in no shape"),
        ("ddpm:path={two},config={bad}", "the configuration of `two.pt` has no `ch`, `in_channels`"),
        ("edm:path={cond},config={condition}", "is class-conditional: it knows 3 classes"),
        ("edm:path={cond},config={condition},label=3", "`label=3`: `cond.pt` knows 3 classes"),
        ("ddpm:size=64", "`size=64` of `ddpm` has no say here"),
        ("edm:path={edm},config={wrong}", "unknown option of EDM's networks `foo`"),
        ("edm:path={edm},config={text}", "`model_channels` of an EDM network is '16', and no number"),
        ("edm:path={edm},config={nan}", "has no number as `sigma_data`, but NaN"),
        ("ddpm:path={two},config={unscaled}", "`data.rescaled=False`"),
        ("ddpm:path={sixteen}", "of which images `sixteen.pt` is, its shapes do not tell"),
        ("ddpm:path={two},config={bad},size=16", "nor a configuration tells it"),
        ("ddpm:path={two}.gone", "two.pt.gone` is no file"),
        ("ddpm:path={diffusers}", "put the `config.json` of its folder beside it"),
    ],
)  # fmt: skip
def test_a_network_that_nothing_tells_is_asked_for(part, words, tmp_path):
    places = {name: tmp_path / f"{name}.pt" for name in ("two", "adm", "cond", "diffusers", "edm", "sixteen")}
    saved(places["two"], "ddpm", DDPM | {"resolution": 16, "attn_resolutions": [16, 8]})
    saved(places["adm"], "adm", ADM)
    saved(places["cond"], "edm", EDM | {"label_dim": 3})
    torch.save({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, places["diffusers"])
    places["bad"] = written(tmp_path / "bad.json", {"data": 3})
    saved(places["edm"], "edm", EDM)
    saved(places["sixteen"], "ddpm", DDPM)
    whole = EDM | {"class_name": "EDMPrecond"}
    for name, config in (
        ("wrong", whole | {"foo": 1}), ("text", whole | {"model_channels": "16"}), ("nan", whole | {"sigma_data": math.nan}),
        ("unscaled", {"model": DDPM, "data": {"image_size": 16, "rescaled": False}}),
    ):  # fmt: skip
        places[name] = written(tmp_path / f"{name}.json", config)
    places["condition"] = written(
        tmp_path / "condition.json", {"class_name": "EDMPrecond", "init_kwargs": EDM | {"label_dim": 3}}
    )
    with pytest.raises(UserError) as caught:
        loaded_after_its_size(part.format(**places))
    assert words in f"{caught.value.message}; {caught.value.hint}"
    assert caught.value.code == (3 if "no file" in words else 2)


def test_a_class_conditional_network_is_asked_for_one_class_which_the_cell_names(tmp_path):
    network = saved(tmp_path / "mine.pt", "edm", EDM | {"label_dim": 3})
    place = written(tmp_path / "c.json", {"class_name": "EDMPrecond", "init_kwargs": EDM | {"label_dim": 3}})
    found = components.find("score", f"edm:path={tmp_path / 'mine.pt'},config={place},label=2")
    assert found.text == "edm:label=2,name=mine"
    made, x = components.load("score", "edm", found.values), torch.rand(2, 1, 16, 16)
    right = network(x, torch.tensor([0.5, 0.5]), class_labels=torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(made.denoise(x, 0.5), right)
    # Another configuration is another network: the cell is another.
    digest = found.digest
    written(place, {"class_name": "VPPrecond", "init_kwargs": EDM | {"label_dim": 3}})
    other = components.find("score", f"edm:path={tmp_path / 'mine.pt'},config={place},label=2")
    assert other.digest != digest


def test_edm_s_own_training_options_are_understood(tmp_path):
    """What the training took from its images, their size, channels and classes, the weights tell."""
    network = saved(tmp_path / "mine.pt", "edm", EDM | {"label_dim": 3, "sigma_data": 0.7})
    kept = {k: v for k, v in EDM.items() if k not in ("img_resolution", "img_channels", "label_dim")}
    options = {
        "class_name": "training.networks.EDMPrecond",
        "model_type": "SongUNet",
        "use_fp16": True,
        "sigma_data": 0.7,
    }
    place = written(
        tmp_path / "training_options.json", {"network_kwargs": {**options, **kept}, "dataset_kwargs": {"path": "x"}}
    )
    found = components.find("score", f"edm:path={tmp_path / 'mine.pt'},config={place},label=1")
    assert found.takes == [1, 16, 16]
    x = torch.rand(2, 1, 16, 16)
    right = network(x, torch.tensor([0.5, 0.5]), class_labels=torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(components.load("score", "edm", found.values).denoise(x, 0.5), right)


class Node:
    """What an EDM pickle has of a module."""

    def __init__(self, name, module, config):
        self.name = name
        inner = {k: Node(type(v).__name__, v, config) for k, v in module._modules.items()}
        parts = {"_parameters": module._parameters, "_buffers": module._buffers, "_modules": inner}
        self.state = {**parts, "_init_args": (), "_init_kwargs": config}

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": self.name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def edm_pickle(path, monkeypatch, **networks_by_name):
    """A pickle as EDM's training writes it, of networks and their configurations."""
    module = types.ModuleType("torch_utils.persistence")
    exec("def _reconstruct_persistent_obj(meta): raise RuntimeError", module.__dict__)
    module._reconstruct_persistent_obj.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    path.write_bytes(pickle.dumps({name: Node("EDMPrecond", *held) for name, held in networks_by_name.items()}))


def test_what_an_edm_pickle_holds_is_the_whole_word(tmp_path, monkeypatch):
    """Its raw weights where it has them, and no configuration beside its own."""
    config, made = EDM | {"sigma_min": 0.5}, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.append(networks.build("edm", EDM))
    edm_pickle(tmp_path / "both.pkl", monkeypatch, net=(made[0], config), ema=(made[1], config))
    for weights, right in (("raw", made[0]), ("ema", made[1])):
        found = components.find("score", f"edm:path={tmp_path / 'both.pkl'},weights={weights}")
        state = components.load("score", "edm", found.values).network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in right.state_dict().items())
        assert f"weights={weights}" in found.text
    other = written(tmp_path / "other.json", config | {"class_name": "EDMPrecond", "sigma_data": 0.9})
    with pytest.raises(UserError, match=r"has no say here: `both\.pkl` says itself"):
        components.find("score", f"edm:path={tmp_path / 'both.pkl'},config={other}").takes  # noqa: B018 (raises)
    # Its least noise is more than the defense asks for.
    plan = planned(
        "digits", "digits-cnn", defenses=("one-shot:sigma=0.3",), score=f"edm:path={tmp_path / 'both.pkl'}", images=2
    )
    with pytest.raises(UserError, match=r"less noise than it was trained on: 0.3 .* at least 0.5"):
        rehearsal.check(plan)


def test_edm_s_raw_and_averaged_weights_as_state_dicts(tmp_path):
    raw, ema = saved(tmp_path / "raw.pt", "edm", EDM), networks.build("edm", EDM)
    torch.save({"net": raw.state_dict(), "ema": ema.state_dict()}, tmp_path / "mine.pt")
    place = written(tmp_path / "c.json", EDM | {"class_name": "EDMPrecond"})
    for weights, right in (("", ema), (",weights=raw", raw)):
        found = components.find("score", f"edm:path={tmp_path / 'mine.pt'},config={place}{weights}")
        state = components.load("score", "edm", found.values).network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in right.state_dict().items())


def linear(end):
    return torch.linspace(1e-4, end, 1000, dtype=torch.float64)


SIGMOID = vp.kept(architecture.Schedule("cosine", 1000, 0, 0)) ** 2  # any that is neither


@pytest.mark.parametrize("wrap", ["beside", "lucidrains", "outside"])
@pytest.mark.parametrize("kind", ["DDPM's", "cosine", "another"])
def test_the_noise_schedule_in_a_file_is_its_network_s(wrap, kind, tmp_path):
    """The right value: at index 300 of the schedule that the file says, the network is told 300, and its noise is scaled as there."""
    abar = {
        "DDPM's": np.cumprod(1 - linear(0.02).numpy()),
        "cosine": vp.kept(architecture.Schedule("cosine", 1000, 0, 0)),
    }
    abar = abar.get(kind, SIGMOID)
    betas = torch.from_numpy(1 - abar / np.concatenate([[1.0], abar[:-1]])).float()
    network = saved(tmp_path / "mine.pt", "ddpm", DDPM)
    inside = {f"model.{key}": value for key, value in network.state_dict().items()}
    tree = {
        "beside": {"state_dict": {**inside, "betas": betas, "alphas_cumprod": betas}},
        "lucidrains": {"model": {"betas": betas, "loss_weight": torch.ones(1000), **inside}, "step": 3},
        "outside": {"model": inside, "diffusion": {"betas": betas}},
    }[wrap]
    torch.save(tree, tmp_path / "mine.pt")
    made = components.load("score", "ddpm", {"path": str(tmp_path / "mine.pt"), "size": 32})
    assert isinstance(made, vp.IndexScore if kind == "DDPM's" else vp.ScheduleScore)
    x, sigma = torch.randn(2, 3, 32, 32), math.sqrt(1 / abar[300] - 1)
    right = -network(x * math.sqrt(abar[300]), torch.tensor([300.0, 300.0]))
    torch.testing.assert_close(made.direction(x, sigma), right, rtol=1e-3, atol=1e-3)


def test_a_noise_schedule_that_a_family_has_not_is_refused(tmp_path):
    abar = np.cumprod(1 - linear(0.02).numpy())
    score = components.load("score", "digits-vp", {}).network.state_dict()
    edm, ddpm = (networks.build(*of).state_dict() for of in (("edm", EDM), ("ddpm", DDPM)))
    place = written(tmp_path / "c.json", EDM | {"class_name": "EDMPrecond"})
    config = written(tmp_path / "d.json", {**DDPM, "beta_schedule": "linear"})
    v = torch.from_numpy(abar)  # snr / (snr + 1)
    for part, state, noise, words in (
        ("digits-vp", score, {"betas": linear(0.03)}, "which is not that of this score model"),
        ("digits-vp", score, {"betas": linear(0.02), "loss_weight": v}, "predicts v, by its loss_weight"),
        ("digits-vp", score, {"betas": linear(0.02)}, ""),
        ("edm", edm, {"betas": linear(0.02)}, "which this family has not"),
        ("ddpm", ddpm, {"alphas_cumprod": v + 1}, "does not fall from 1"),
        ("ddpm", ddpm, {"betas": linear(0.03)}, "and its configuration another"),
    ):
        torch.save({"model": state, **noise}, tmp_path / "mine.pt")
        given = {"edm": {"config": str(place)}, "ddpm": {"config": str(config)}}.get(part, {})
        try:
            components.load("score", part, {"path": str(tmp_path / "mine.pt"), **given})
            told = ""
        except UserError as error:
            told = error.message
        assert words in told
        assert bool(words) == bool(told)


def test_a_scheduler_beside_the_weights_is_in_the_cell_s_hash(tmp_path):
    saved(tmp_path / "mine.pt", "ddpm", DDPM)
    part = f"ddpm:path={tmp_path / 'mine.pt'},size=32"
    digests = [components.find("score", part).digest]
    for end in (0.02, 0.03):
        written(tmp_path / "scheduler_config.json", {"beta_schedule": "linear", "beta_end": end})
        digests.append(components.find("score", part).digest)
    assert len({*digests}) == 3
    written(tmp_path / "scheduler_config.json", {"rescale_betas_zero_snr": True})
    with pytest.raises(UserError, match="rescale_betas_zero_snr"):
        components.load("score", "ddpm", {"path": str(tmp_path / "mine.pt"), "size": 32})


def test_another_noise_schedule_is_asked_at_its_own_indices(tmp_path):
    """The right value: at a level of its own table, the network is told that very index, and its noise is scaled as there."""
    network = saved(tmp_path / "mine.pt", "adm", ADM)
    place = written(tmp_path / "c.json", ADM)
    made = components.load("score", "guided-diffusion", {"path": str(tmp_path / "mine.pt"), "config": str(place)})
    kept = vp.kept(architecture.Schedule("cosine", 50, 0, 0))
    f = [math.cos((i / 50 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(51)]
    assert kept[20] == pytest.approx(f[21] / f[0], rel=1e-12)
    x, sigma = torch.randn(2, 3, 32, 32), math.sqrt(1 / kept[20] - 1)
    right = -network(x * math.sqrt(kept[20]), torch.tensor([20.0, 20.0]))[:, :3]
    torch.testing.assert_close(made.direction(x, sigma), right, rtol=1e-5, atol=1e-5)


def unet_keys():
    """Those of diffusers' `UNet2DModel` of two levels, of which the first attends, sorted."""
    resnet = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
    attention = [f"attentions.{{}}.{layer}" for layer in ("group_norm", "to_q", "to_k", "to_v", "to_out.0")]
    blocks = {
        "down_blocks.0": (1, False, attention), "down_blocks.1": (1, True, []), "mid_block": (2, False, attention),
        "up_blocks.0": (2, True, []), "up_blocks.1": (2, True, attention),
    }  # fmt: skip
    layers = ["conv_in", "conv_norm_out", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    layers += ["down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"]
    for block, (n, shortcut, attend) in blocks.items():
        for i in range(n):
            layers += [f"{block}.resnets.{i}.{layer}" for layer in (*resnet, *["conv_shortcut"] * shortcut)]
            layers += [f"{block}.{layer.format(i)}" for layer in attend if i == 0 or block != "mid_block"]
    return sorted(f"{layer}.{end}" for layer in layers for end in ("weight", "bias"))


def test_diffusers_keys_and_options_are_read(tmp_path):
    """The right values: diffusers 0.42.1's own `UNet2DModel` with these weights."""
    config = {
        "_class_name": "UNet2DModel", "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": [32, 64], "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"], "attention_head_dim": 8, "norm_num_groups": 16,
    }  # fmt: skip
    ours = networks.build("ddpm", diffusers.configuration(config, "it")).state_dict()
    state, names = {}, diffusers.renamed(unet_keys())
    assert set(names.values()) == set(ours)
    for i, name in enumerate(unet_keys()):
        shape = ours[names[name]].shape
        wave = torch.sin(torch.arange(math.prod(shape)) * 0.7 + i).reshape(shape)
        wave = wave / math.sqrt(max(math.prod(shape[1:]), 1)) + (1 if "norm" in name and name.endswith("weight") else 0)
        state[name] = wave.flatten(1) if ".to_" in name and wave.dim() > 1 else wave
    (tmp_path / "unet").mkdir()
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in state.items()}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    )
    written(tmp_path / "unet" / "config.json", config)
    found = components.find("score", f"ddpm:path={tmp_path / 'unet' / 'diffusion_pytorch_model.safetensors'}")
    assert found.takes == [1, 16, 16]
    made = components.load("score", "ddpm", found.values)
    x = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    y = made.network(x, torch.tensor([300.0])).flatten()
    torch.testing.assert_close(
        y[[0, 77, 128, 200, 255]],
        torch.tensor([-0.912514, -0.754962, -0.764298, -0.768942, -0.341813]),
        rtol=1e-4,
        atol=1e-4,
    )
    # Its scheduler beside it says another noise than DDPM's.
    (tmp_path / "scheduler").mkdir()
    written(
        tmp_path / "scheduler" / "scheduler_config.json",
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
    )
    assert isinstance(components.load("score", "ddpm", found.values), vp.ScheduleScore)
    written(tmp_path / "scheduler" / "scheduler_config.json", {"prediction_type": "v_prediction"})
    with pytest.raises(UserError, match="v_prediction"):
        components.load("score", "ddpm", found.values)


def test_a_classifiers_file_says_how_many_classes_it_has(tmp_path):
    hill = {"depth": 10, "widen": 1, "classes": 7}
    saved(tmp_path / "mine.pt", "wideresnet_hill", hill)
    part = f"file:path={tmp_path / 'mine.pt'},network=wideresnet_hill,depth=10,widen=1"
    found = components.find("classifier", part)
    assert (found.classes, "classes=7" in found.text) == (7, True)
    with pytest.raises(UserError, match=r"`linear\.weight`, has 7"):
        components.find("classifier", f"{part},classes=100")
    # A file of `purebench train` has it in its own configuration.
    network = small.SmallCNN(channels=3, classes=2, size=32)
    about = {"network": "small-cnn", "config": json.dumps({"channels": 3, "classes": 2, "size": 32})}
    safetensors.torch.save_file(network.state_dict(), tmp_path / "trained.safetensors", about)
    assert components.find("classifier", f"file:path={tmp_path / 'trained.safetensors'}").classes == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("linear.bias"), "1 missing"),
        (lambda state: state["linear.bias"].fill_(math.nan), "NaN"),
        (lambda state: state.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}), "conv1.weight"),
    ],
    ids=["missing", "nan", "channels"],
)  # fmt: skip
def test_a_classifiers_file_is_opened_before_anything_runs(change, words, tmp_path):
    state = networks.build("wideresnet_hill", {"depth": 10, "widen": 1}).state_dict()
    change(state)
    torch.save(state, tmp_path / "mine.pt")
    part = f"file:path={tmp_path / 'mine.pt'},network=wideresnet_hill,depth=10,widen=1"
    with pytest.raises(UserError, match=words):
        rehearsal.check(planned("cifar10", part))


def test_weights_that_do_not_say_of_which_network_they_are(tmp_path):
    torch.save(components.load("classifier", "digits-cnn", {}).state_dict(), tmp_path / "mine.pt")
    for part, message, hint in (
        (f"file:path={tmp_path / 'mine.pt'}", "which says itself which network it is of", "network=NAME"),
        (
            f"file:path={tmp_path / 'mine.pt'},mean=imagenet",
            "`mean=imagenet` of `file` is no list",
            "write mean=[0.5,..]",
        ),
        ("digits-cnn:path=mine.pt", "unknown parameter of `digits-cnn` `path`", "(see `purebench show digits-cnn`)"),
    ):
        with pytest.raises(UserError) as told:
            rehearsal.check(planned("digits", part))
        assert message in told.value.message
        assert hint in told.value.hint
        assert ",path=" not in told.value.hint


def test_grey_images_do_not_become_a_colour_networks(tmp_path):
    """Torch would make three channels of one by a normalisation of three numbers."""
    torch.save(networks.build("wideresnet_hill", {"depth": 10, "widen": 1}).state_dict(), tmp_path / "mine.pt")
    part = f"file:path={tmp_path / 'mine.pt'},network=wideresnet_hill,depth=10,widen=1"
    with pytest.raises(UserError, match="has 3 numbers, and the images have 1 channel"):
        planned("digits", f"{part},mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5]")
    with pytest.raises(UserError, match="cannot see images of 1x8x8"):
        rehearsal.check(planned("digits", part))
