"""The weights that were meant, of the layouts that people save them in; and what stands beside them."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from purebench import networks
from purebench.assets import architecture, checkpoint, contents, readers
from purebench.assets.unpickle import Broken, Refused
from purebench.classifiers import published, wrapped, zoo
from purebench.errors import UserError
from purebench.plan import grid, resolved
from purebench.running import preflight

spec = importlib.util.spec_from_file_location("odd", Path(__file__).parents[1] / "benchmarks" / "odd_checkpoints.py")
odd = importlib.util.module_from_spec(spec)
spec.loader.exec_module(odd)


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CHECKPOINTS", str(odd.tiny_registry(tmp_path)))


OF_NCSNV2 = [
    "state dict",
    "[model, optimizer, epoch, step]",
    "{model, ema}",
    "AveragedModel",
]  # whose own default is the average


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *(("file", layout) for layout in odd.LAYOUTS),
        *(("ncsnv2", layout) for layout in OF_NCSNV2),
        # Buffers stand in its networks, and the files' keys begin with `model.`, as wrappers' do.
        *(("edm", layout) for layout in odd.LAYOUTS),
        ("ebm", "{model, ema}"),
    ],
)
def test_the_weights_that_were_meant(tmp_path, family, layout):
    """Bit for bit, and by name where the file has both: with nothing said, and with the raw weights asked for."""
    got, right = odd.check(family, layout, tmp_path, ("", "raw"))
    assert got == right


@pytest.mark.parametrize("family", ["ddpm", "guided-diffusion", "score-sde", "digits-vp", "ebm"])
def test_an_average_without_names_is_each_family_s(tmp_path, family):
    got, right = odd.check(family, "{model, ema: {shadow_params}}", tmp_path, ("", "ema"))
    assert got == right


@pytest.mark.parametrize("layout", list(odd.LAYOUTS)[7::3])
def test_the_plan_and_the_reader_see_the_same(tmp_path, layout):
    path, raw, _ = odd.write("file", layout, tmp_path)
    if odd.LAYOUTS[layout][0] == "refused":
        with pytest.raises(UserError, match=r"several averages.*`ema_0.999`, `ema_0.9999`"):
            contents.of(path, "state-dict")
        return
    held = contents.of(path, "state-dict")
    order = checkpoint.parameters(odd.built("file"))
    for kind, shapes in held.sets.items():
        state = readers.state(path, "state-dict", weights=kind if held.labelled else "", order=order)
        assert {tuple(v.shape) for v in state.values()} >= set(shapes.values())
        if kind not in held.nameless:
            assert set(shapes) <= set(state) <= set(raw)


def test_what_an_average_of_another_network_says(tmp_path):
    raw, ema = odd.two("file")
    shadow = odd.shadow(ema)
    path = tmp_path / "f.pt"
    for values, told in (
        (shadow[:-1], "holds 24 tensors, expected the network's 25 parameters"),
        ([shadow[0].flatten(), *shadow[1:]], "in the place of `conv1.weight`"),
    ):
        torch.save({"model": raw.state_dict(), "ema": {"shadow_params": values}}, path)
        with pytest.raises(UserError, match=told):
            published.file(path=str(path), network="wideresnet", depth=10, widen=1)


def test_an_average_in_no_known_layout_is_never_the_raw_weights(tmp_path):
    raw, ema = odd.two("file")
    for average in ({"a": [[t] for t in odd.shadow(ema)]}, [odd.shadow(ema)[:3], 5, [ema.state_dict()] * 2]):
        torch.save({"model": raw.state_dict(), "ema": average}, tmp_path / "f.pt")
        with pytest.raises(UserError, match="average"):
            contents.of(tmp_path / "f.pt", "state-dict")


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"model": {"a": 1}, "net": {"a": 1}}, "several networks, and which is meant is not certain: `model`, `net`"),
        ({"generator": {"a": 1}, "discriminator": {"a": 1}}, "`generator`, `discriminator`"),
        ({"head": {"a": 1}, "conv": 1}, "`head`, and tensors beside it"),
        ({"ema_model.a": 1, "model_ema.a": 1, "a": 1}, "several averages"),
    ],
)
def test_two_networks_are_refused_by_name(tree, told):
    def held(node):
        return {k: held(v) for k, v in node.items()} if isinstance(node, dict) else contents.Held((2, 3))

    with pytest.raises(Broken, match=told):
        contents.find(held(tree))


@pytest.mark.parametrize("name", ["averages", "polyak", "model_polyak", "moving_average", "ewma"])
def test_more_names_of_an_average_are_known(tmp_path, name):
    raw, ema = odd.two("digits-vp")
    torch.save({"model": raw.state_dict(), name: ema.state_dict()}, tmp_path / "f.pt")
    part = resolved.find("score", f"digits-vp:path={tmp_path / 'f.pt'}")
    assert part.text == "digits-vp:name=f,weights=ema"
    assert all(torch.equal(value, ema.state_dict()[key]) for key, value in odd.loaded(part).items())


@pytest.mark.parametrize(
    ("first", "second", "put"),
    [
        ("model", "best_model", lambda net: net.state_dict()),
        ("model", "model_momentum", lambda net: odd.under("module.", net.state_dict())),
        ("state_dict", "best_state_dict", odd.parameters),
        ("net", "teacher", lambda net: {"step": 3, "weights": net.state_dict()}),
        ("model", "slow", odd.shadow),
        ("model", "callbacks", lambda net: {"Best": {"kept": net.state_dict()}}),
        # Another network of the same layers.
        ("model", "wide", lambda net: {k: torch.cat([v, v]) if v.dim() else v for k, v in net.state_dict().items()}),
    ],
)
def test_weights_by_a_name_that_is_not_known_are_never_passed_over(tmp_path, first, second, put):
    raw, other = odd.two("digits-vp")
    torch.save({first: raw.state_dict(), second: put(other), "optimizer": odd.OPTIMIZER}, tmp_path / "f.pt")
    with pytest.raises(
        UserError, match=f"several networks, and which is meant is not certain: `{first}`, `{second}"
    ) as told:
        resolved.find("score", f"digits-vp:path={tmp_path / 'f.pt'}")
    assert "torch.save(" in told.value.hint


def test_what_is_no_second_network_is_passed_over(tmp_path):
    """Of the weights' shapes is an optimizer's state, too, by whatever name; another network is not."""
    raw, other = odd.two("digits-vp")
    moments = {i: {"exp_avg": value, "exp_avg_sq": value} for i, value in enumerate(odd.shadow(other))}
    beside = {
        "opt_state": {"momentum": other.state_dict()}, "adam": {"state": moments, "param_groups": []}, "gradients": odd.shadow(other),
        "trainer": {"state": moments, "param_groups": []}, "discriminator": {"conv.weight": torch.zeros(3, 3)},
    }  # fmt: skip
    torch.save({"model": raw.state_dict(), **beside}, tmp_path / "f.pt")
    part = resolved.find("score", f"digits-vp:path={tmp_path / 'f.pt'}")
    assert all(torch.equal(value, raw.state_dict()[key]) for key, value in odd.loaded(part).items())


def test_a_network_beside_something_else_is_told_where_it_is(tmp_path):
    raw, _ = odd.two("digits-vp")
    torch.save(
        {"state_dict": {**odd.under("model.", raw.state_dict()), "loss.weight": torch.ones(3)}}, tmp_path / "f.pt"
    )
    with pytest.raises(UserError, match=r"holds its network under `model\.`, and besides it `loss\.weight`"):
        odd.loaded(resolved.find("score", f"digits-vp:path={tmp_path / 'f.pt'}"))


def test_the_way_to_save_a_network_alone_is_one_that_runs(tmp_path, monkeypatch):
    """And nobody is told which weights are used before they are known to fit."""
    raw, _ = odd.two("digits-vp")
    tree = {"state_dict": {**odd.under("model.", raw.state_dict()), "loss.weight": torch.ones(3)}, "epoch": 3}
    path, lines = tmp_path / "f.ckpt", []
    torch.save(tree, path)
    request = {"dataset": "digits", "defenses": ("coup",), "attacks": ("null",), "images": 2}
    request = grid.Request(**request, score=f"digits-vp:path={path}")
    with pytest.raises(UserError, match="holds its network under") as told:
        preflight.prepare(request, preflight.Resources(), tmp_path / "out", note=lines.append)
    assert not [line for line in lines if "weights are used" in line]
    load, save = re.findall(r"`(torch\.load\(FILE\)\['state_dict'\]|torch\.save\(.*, OTHER\))`", told.value.hint)
    known = {"torch": torch, "FILE": path, "OTHER": tmp_path / "g.pt"}
    exec(save, known | {"state": eval(load, known)})
    part = resolved.find("score", f"digits-vp:path={tmp_path / 'g.pt'}")
    assert all(torch.equal(value, raw.state_dict()[key]) for key, value in odd.loaded(part).items())


@pytest.mark.parametrize("kind", ["", "raw"])
def test_a_file_in_place_of_a_published_one_names_which_of_its_weights_are_used(tmp_path, monkeypatch, kind):
    raw, ema = odd.two("ddpm")
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict()}, tmp_path / "f.pt")
    monkeypatch.setenv("PUREBENCH_DDPM_CIFAR10_EMA", str(tmp_path / "f.pt"))
    part = resolved.find("score", "ddpm:weights=raw" if kind else "ddpm")
    assert part.text == f"ddpm:weights={kind or 'ema'}"
    right = (raw if kind else ema).state_dict()
    assert all(torch.equal(value, right[key]) for key, value in odd.loaded(part).items())
    torch.save(raw.state_dict(), tmp_path / "f.pt")
    assert resolved.find("score", "ddpm").text == "ddpm"


def test_a_classifier_in_place_of_a_published_one_has_one_set_of_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("PUREBENCH_CHECKPOINTS")
    raw, ema = odd.two("file")
    monkeypatch.setenv("PUREBENCH_DIFFPURE_CIFAR10_RESNET50", str(tmp_path / "f.pt"))
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict()}, tmp_path / "f.pt")
    with pytest.raises(
        UserError, match="PUREBENCH_DIFFPURE_CIFAR10_RESNET50 gives for `cifar-resnet50`, holds ema and raw weights"
    ):
        resolved.find("classifier", "cifar-resnet50")


def test_a_layer_that_is_called_like_an_average_is_a_layer():
    tensors = {
        "conv.weight": contents.Held((3, 3)),
        "ema.weight": contents.Held((2, 2)),
        "ema.bias": contents.Held((2,)),
    }
    found = contents.find(tensors)
    assert list(found.sets) == ["raw"]
    assert list(found.sets["raw"].values) == list(tensors)


def test_a_tree_that_contains_itself_ends():
    tree = {"model": {}}
    tree["model"]["model"] = tree
    with pytest.raises(Refused, match="contain each other"):
        contents.find(tree)
    tree = {}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    with pytest.raises(Refused, match="contain each other"):
        contents.find(tree)


def test_never_do_two_keys_become_one():
    tensors = {"module.n_averaged": contents.Held(()), "module.module.a": contents.Held((2,)), "a": contents.Held((3,))}
    assert len(contents.find(tensors).sets["raw"].values) == 3
    assert contents.fitted(["m.a", "m.b"], ["model.a", "model.b"]) == {"m.a": "model.a", "m.b": "model.b"}
    assert contents.fitted(["m.a", "b"], ["a", "b"]) == {"m.a": "m.a", "b": "b"}


def test_the_plan_says_what_was_passed_over(tmp_path):
    raw, ema = odd.two("digits-vp")
    profiled = odd.LAYOUTS["thop's totals"][1](raw, ema)
    torch.save({"model": profiled, "ema": ema.state_dict(), "epoch": 3}, tmp_path / "f.pt")
    request = {"dataset": "digits", "defenses": ("coup",), "attacks": ("null",), "images": 2}
    plan = grid.build(grid.Request(**request, score=f"digits-vp:path={tmp_path / 'f.pt'}"))
    (note,) = [line for line in plan.notes if "passed over" in line]
    assert note.startswith(
        "`digits-vp:name=f,weights=ema`: its averaged weights are used; passed over: model.total_ops"
    )
    assert plan.jobs[0].cell.score == "digits-vp:name=f,weights=ema"


def test_torch_s_own_average_is_named_where_the_raw_weights_are_there_too(tmp_path):
    raw, ema = odd.two("ncsnv2")
    average = AveragedModel(nn.DataParallel(ema))
    torch.save({"state_dict": raw.state_dict(), "swa_state_dict": average.state_dict()}, tmp_path / "f.pt")
    text = f"ncsnv2:path={tmp_path / 'f.pt'}"
    assert resolved.find("score", f"{text},weights=raw").text == "ncsnv2:name=f,weights=raw"
    torch.save(average.state_dict(), tmp_path / "f.pt")
    assert resolved.find("score", text).contents.sets.keys() == {"ema"}


@pytest.mark.parametrize(
    "ids", [("cifar10", "corruptions", "Hendrycks2020AugMix_WRN"), ("imagenet", "Linf", "Salman2020Do_R18")]
)
def test_robustbench_s_files_as_its_own_loader_reads_them(tmp_path, monkeypatch, ids):
    """Without the constants of its normalisation, which the loader does not ask for, in whatever wrapping."""
    dataset, threat, name = ids
    monkeypatch.delenv("PUREBENCH_CHECKPOINTS")
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    with zoo.shim():
        from robustbench import utils
    network = zoo.architecture(dataset, threat, name)
    constants = {key for key in network.state_dict() if key.rpartition(".")[2] in wrapped.CONSTANTS}
    assert constants
    for key, value in network.state_dict().items():
        if value.is_floating_point() and key not in constants:
            value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(len(key))) * 0.1 + 0.01)
    lean = {
        f"module.{key.removeprefix('model.')}": v for key, v in network.state_dict().items() if key not in constants
    }
    path = tmp_path / "models" / dataset / threat / f"{name}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": lean, "epoch": 3}, path)
    x = torch.rand(2, 3, 32, 32)
    theirs = utils.load_model(name, tmp_path / "models", dataset, threat)(x)
    assert torch.equal(published.robustbench(id=name, dataset=dataset, threat=threat)(x), theirs)


@pytest.mark.parametrize("wrap", ["robustness", "sequential"])
def test_a_normaliser_in_the_file_is_applied(tmp_path, wrap):
    """Of the library `robustness`, with its attacker's copy of the network, and as the first layer of a sequence."""
    network, _ = odd.two("file")
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    state = dict(network.state_dict())
    if wrap == "robustness":
        kept = odd.under("module.model.", state) | odd.under("module.attacker.model.", state)
        for place in ("normalizer", "attacker.normalize"):
            kept |= {f"module.{place}.new_mean": mean.view(3, 1, 1), f"module.{place}.new_std": std.view(3, 1, 1)}
        path = tmp_path / "f.pt"
        torch.save({"model": kept, "optimizer": {}, "epoch": 3}, path)
    else:
        path = tmp_path / "f.pt"
        torch.save({"0.mean": mean, "0.std": std} | odd.under("1.", state), path)
    asked = {"path": str(path), "network": "wideresnet", "depth": 10, "widen": 1}
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(published.file(**asked)(x), published.Normalised(network, mean.tolist(), std.tolist())(x))
    with pytest.raises(UserError, match="holds a normaliser of its own"):
        published.file(**asked, mean=(0.1, 0.1, 0.1), std=(0.2, 0.25, 0.3))
    if wrap == "robustness":
        kept["module.attacker.model.conv1.weight"] = kept["module.attacker.model.conv1.weight"] + 1
        torch.save({"model": kept}, path)
        with pytest.raises(UserError, match="holds the network twice"):
            published.file(**asked)


def test_networks_are_built_frozen_and_have_names_for_all_parameters():
    assert list(checkpoint.parameters(networks.build("ebm", {"n_f": 4})))


# What no shape of a file shows, of torchvision's networks and of wrappers.


def torchvision_s(name, **given):
    """One of torchvision's networks whose answers differ between images, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None, **given)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    return network.eval().requires_grad_(False)


def made(text):
    """The classifier of a cell's text, as a plan resolves it."""
    part = resolved.find("classifier", text)
    return resolved.load("classifier", part.key, {**part.values, **part.where})


def images(side):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("aux", "transform"), [(True, "true"), (False, "false")])
def test_googlenet_is_asked_whether_it_transforms_its_input(tmp_path, aux, transform):
    """With its auxiliary heads and without, which play no part in an answer."""
    network = torchvision_s(
        "googlenet", num_classes=4, aux_logits=aux, init_weights=False, transform_input=transform == "true"
    )
    torch.save(network.state_dict(), tmp_path / "f.pt")
    text = f"file:path={tmp_path / 'f.pt'},network=torchvision/googlenet"
    with pytest.raises(UserError, match="does not say `transform_input`") as told:
        resolved.find("classifier", text)
    assert "transform_input=true for torchvision's own weights" in told.value.hint
    assert "transform_input=false" in told.value.hint
    found, x = made(f"{text},transform_input={transform}"), images(32)
    assert torch.equal(found(x), network(x))
    network.transform_input = transform != "true"
    assert not torch.allclose(found(x), network(x), rtol=0.01)


def test_transform_input_is_asked_of_what_has_it_alone(tmp_path):
    raw, _ = odd.two("file")
    torch.save(raw.state_dict(), tmp_path / "f.pt")
    text = f"file:path={tmp_path / 'f.pt'},depth=10,widen=1,network=wideresnet"
    with pytest.raises(UserError, match=r"`transform_input=true` of `file` has no say here"):
        resolved.find("classifier", f"{text},transform_input=true")
    with pytest.raises(UserError, match="does not say `transform_input`"):
        resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network=torchvision/inception_v3")
    with pytest.raises(UserError, match=r"unknown transform_input of `file` `1`"):
        resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network=torchvision/inception_v3,transform_input=1")
    assert "transform_input" not in resolved.find("classifier", text).text
    # As `weights=` of torchvision has it; in evaluation nothing else of it differs without a shape.
    assert published._arguments("inception_v3", "true", ["fc.weight"]) == {
        "transform_input": True, "aux_logits": False, "init_weights": False,
    }  # fmt: skip


SMALL = "shufflenet_v2_x0_5"


@pytest.mark.parametrize("kind", ["mean and variance", "batch norm", "pixels", "half"])
def test_a_normaliser_that_is_not_certain_is_told_with_its_numbers(tmp_path, kind):
    """The hint, followed to the letter, gives the whole network's own answers."""
    network, x, path = torchvision_s(SMALL, num_classes=4), images(32), tmp_path / "f.pt"
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    right = published.Normalised(network, mean.tolist(), std.tolist())(x)
    beside = {
        "mean and variance": {"normalize.mean": mean, "normalize.var": std**2},
        "pixels": {"normalize.mean": 255 * mean, "normalize.std": 255 * std},
        "half": {"normalize.mean": mean},
    }.get(kind)
    if kind == "batch norm":
        norm = nn.BatchNorm2d(3).eval()
        state = {"running_mean": torch.tensor([0.4, 0.5, 0.6]), "running_var": torch.tensor([0.05, 0.06, 0.07])}
        norm.load_state_dict(state | {"weight": torch.full((3,), 1.1), "bias": torch.full((3,), 0.1)})
        right, beside = network(norm(x)), odd.under("normalize.", norm.state_dict())
    torch.save(odd.under("model.", network.state_dict()) | beside, path)
    text = f"file:path={path},network=torchvision/{SMALL}"
    with pytest.raises(UserError, match=r"a normaliser that is not certain: `normalize\.") as told:
        made(text)
    assert "save the network" not in told.value.hint
    if kind == "half":
        assert "FILE.py:NAME" in told.value.hint
        return
    written = re.search(r"mean=\[\S+\],std=\[\S+\](?=, which)", told.value.hint)[0]
    assert torch.allclose(made(f"{text},{written}")(x), right, rtol=1e-3, atol=1e-4 * float(right.detach().std()))


@pytest.mark.parametrize(
    "beside",
    [
        {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
        {"normalize": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}},
        {"config": {"data": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}}},
    ],
)
def test_a_normalisation_beside_the_weights_is_applied_and_in_the_name(tmp_path, beside):
    network, x, path = torchvision_s(SMALL, num_classes=4), images(32), tmp_path / "f.pt"
    torch.save({"state_dict": network.state_dict(), "epoch": 3, **beside}, path)
    text = f"file:path={path},network=torchvision/{SMALL}"
    part = resolved.find("classifier", text)
    assert "mean=[0.5,0.4,0.3]" in part.text
    assert "normalised as it says" in part.passed_over
    assert resolved.find("classifier", f"{text},mean=[0.5,0.4,0.3],std=[0.2,0.25,0.3]").text == part.text
    right = published.Normalised(network, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))(x)
    assert torch.equal(made(text)(x), right)
    # What the user says holds, and that the file says another is said.
    other = resolved.find("classifier", f"{text},mean=[0],std=[1]")
    assert "passed over" in other.passed_over
    assert "normalised as" not in other.passed_over
    assert torch.equal(made(f"{text},mean=[0],std=[1]")(x), network(x))


@pytest.mark.parametrize(
    ("network", "beside", "told"),
    [
        (f"torchvision/{SMALL}", {"normalize": {"mean": torch.ones(3) / 2, "std": torch.ones(3) / 4}}, "as tensors"),
        (f"torchvision/{SMALL}", {"mean": [125, 124, 113], "std": [63, 62, 66]}, "`mean` has 125"),
        (f"torchvision/{SMALL}", {"mean": 0.93, "std": 0.01}, "which of its numbers are meant is not certain"),
        (f"torchvision/{SMALL}", {"mean": [0.5], "std": [0.5], "norm": {"mean": [0.4], "std": [0.5]}}, "several"),
        ("wideresnet", {"mean": [0.5] * 3, "std": [0.5] * 3}, "its network may normalise by itself"),
    ],
)
def test_a_normalisation_beside_the_weights_that_is_not_certain_is_refused(tmp_path, network, beside, told):
    torch.save({"state_dict": {"conv.weight": torch.ones(4, 3, 3, 3)}, **beside}, tmp_path / "f.pt")
    with pytest.raises(UserError, match=told) as error:
        resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network={network}")
    assert "mean=" in error.value.hint
    if told == "as tensors":
        assert "`torch.load(FILE)['normalize']['mean'].flatten().tolist()`" in error.value.hint
    given = resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network={network},mean=[0.1],std=[0.5]")
    assert given.values["mean"] == (0.1,)


def test_numbers_beside_the_weights_that_normalise_nothing_are_passed_over(tmp_path):
    beside = {"metrics": {"acc": {"mean": 0.9, "std": 0.1}}, "optimizer": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    torch.save({"state_dict": {"conv.weight": torch.ones(4, 3, 3, 3)}, **beside}, tmp_path / "f.pt")
    part = resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network=torchvision/{SMALL}")
    assert part.values["mean"] == ()


@pytest.mark.parametrize("saved", [torch.save, save_file])
def test_networks_that_ask_for_their_version_are_filled(tmp_path, saved):
    network, x = torchvision_s("mnasnet0_5", num_classes=4), images(32)
    saved(network.state_dict(), tmp_path / "f.pt")
    found = published.file(path=str(tmp_path / "f.pt"), network="torchvision/mnasnet0_5", classes=4)
    assert torch.equal(found(x), network(x))


def test_a_last_layer_behind_a_dropout_is_the_network_s_and_said(tmp_path):
    network, x, path = torchvision_s(SMALL, num_classes=4), images(32), tmp_path / "f.pt"
    right, last = network(x), network.fc
    network.fc = nn.Sequential(nn.Dropout(0.2), last).eval()
    text = f"file:path={path},network=torchvision/{SMALL}"
    for state in (network.state_dict(), odd.under("backbone.", network.state_dict())):
        torch.save(state, path)
        assert torch.equal(made(text)(x), right)
        assert "fc.1 is the network's last" in resolved.find("classifier", text).passed_over
    # Of two layers it is another network.
    network.fc = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), last)
    torch.save(network.state_dict(), path)
    with pytest.raises(UserError, match="does not fit its network"):
        made(text)
    # Where features may be negative, a ReLU may have stood before it.
    assert architecture.head_in_sequence(["head.1.weight", "head.1.bias"], "torchvision/swin_t") == ("", "")


@pytest.mark.parametrize(
    ("alter", "what", "way"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "pruning", "prune.remove"),
        (nn.utils.weight_norm, "weight normalisation", "remove_weight_norm"),
        (nn.utils.spectral_norm, "spectral normalisation", "remove_spectral_norm"),
        (nn.utils.parametrizations.weight_norm, "a parametrization", "remove_parametrizations"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_in_parts_are_refused_by_what_they_are(tmp_path, alter, what, way):
    network, path = torchvision_s(SMALL, num_classes=4), tmp_path / "f.pt"
    network.requires_grad_(True)
    alter(network.fc)
    torch.save(network.state_dict(), path)
    with pytest.raises(UserError, match=f"has the weights of {what} in parts") as told:
        made(f"file:path={path},network=torchvision/{SMALL}")
    assert way in told.value.hint


def test_a_format_is_known_by_its_first_bytes_whatever_the_name(tmp_path):
    raw, _ = odd.two("file")
    save_file({key: value.contiguous() for key, value in raw.state_dict().items()}, tmp_path / "a1b2c3")
    torch.save(raw.state_dict(), tmp_path / "f.safetensors")
    for name, format in (("a1b2c3", "safetensors"), ("f.safetensors", "state-dict")):
        assert contents.format_of(tmp_path / name, "state-dict") == format
        part = resolved.find("classifier", f"file:path={tmp_path / name},network=wideresnet,depth=10,widen=1")
        assert all(torch.equal(value, raw.state_dict()[key]) for key, value in odd.loaded(part).items())


def test_a_hint_advises_the_average_and_never_the_discriminator():
    def held(*names):
        return {name: {"a": contents.Held((2, 3)), "b": contents.Held((4, 3))} for name in names}

    for names, meant in ((("g", "d", "g_ema"), "g_ema"), (("g", "d"), "g"), (("netD", "netG"), "netG")):
        with pytest.raises(contents.Uncertain, match="several networks") as told:
            contents.find(held(*names))
        assert f"['{meant}']" in told.value.hint


def test_one_logit_is_refused_by_name(tmp_path):
    torch.save({"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(1, 4)}, tmp_path / "f.pt")
    with pytest.raises(UserError, match=r"`fc\.weight`, has one output: one logit of two classes, and two are needed"):
        resolved.find("classifier", f"file:path={tmp_path / 'f.pt'},network=torchvision/{SMALL}")


@pytest.mark.parametrize("name", ["a,weights=ema.pt", "a,name=x.safetensors", "a,size=8.pt", "a,b=c,name=d.pt"])
def test_a_name_that_reads_as_parameters_is_told_in_the_quotes_that_it_needs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    raw, _ = odd.two("digits-vp")
    saved = save_file if name.endswith("safetensors") else torch.save
    saved(raw.state_dict(), Path(name))
    with pytest.raises(UserError, match="stands in quotes") as told:
        resolved.find("score", f"digits-vp:path={name}")
    written = told.value.hint.removeprefix("write ")
    assert written == f"path='{name}'"
    assert resolved.find("score", f"digits-vp:{written},name=mine").text == "digits-vp:name=mine"
