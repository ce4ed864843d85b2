"""The weights that were meant, of the layouts that people save them in; and what stands beside them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from purebench import networks
from purebench.assets import checkpoint, contents, readers
from purebench.assets.unpickle import Broken, Refused
from purebench.classifiers import published, wrapped, zoo
from purebench.errors import UserError
from purebench.plan import grid, resolved

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
