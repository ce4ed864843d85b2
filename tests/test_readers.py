"""Every published container layout loads to what was written into it; every bad file is told in one message."""

import argparse
import json
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections import Counter, OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import filled
from safetensors.torch import save_file
from torch import nn

from purebench.assets import readers, unpickle
from purebench.errors import DOWNLOAD, UserError
from purebench.networks import build

SONG = {"img_resolution": 8, "img_channels": 3, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
SONG |= {"attn_resolutions": [4], "use_fp16": False, "model_type": "SongUNet"}
CLASSES = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}
DDPMPP = {
    "data": {"image_size": 8, "num_channels": 3},
    "model": {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
    | {"sigma_min": 0.01, "sigma_max": 50, "num_scales": 10},
}
NCSN = {"channels": 3, "ngf": 4, "sigma_begin": 50, "sigma_end": 0.01, "num_classes": 5}
X = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
SOURCE = "class EDMPrecond:\n    pass\n"


def network(family, config, seed):
    return filled(build(family, config), f"{seed}:")


def flat():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3)).requires_grad_(False)


def reconstruct(meta):
    raise AssertionError("the reader called what the file names")


class EasyDict(dict):
    pass


class Persistent:
    """An object as EDM's files hold it: its class's source text goes with it."""

    def __init__(self, name, state, source=SOURCE):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self):
        return reconstruct, (self.meta,), None


def persist(module, kwargs, source=SOURCE):
    modules = OrderedDict((name, persist(child, {}, source)) for name, child in module._modules.items() if child)
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = modules
        return container
    state = {key: value for key, value in module.__dict__.items() if key in nn.Module().__dict__}
    state |= {"_modules": modules, "_init_args": (), "_init_kwargs": kwargs, "skip_scale": np.sqrt(0.5)}
    return Persistent(type(module).__name__, state, source)


@contextmanager
def published_names():
    """Under which `pickle` writes the names that EDM's files have."""
    names = (
        ("torch_utils.persistence", "_reconstruct_persistent_obj", reconstruct),
        ("dnnlib.util", "EasyDict", EasyDict),
    )
    for module, name, thing in names:
        for part in (module.partition(".")[0], module):
            sys.modules[part] = types.ModuleType(part)
        setattr(sys.modules[module], name, thing)
        thing.__module__, thing.__qualname__ = module, name
    try:
        yield
    finally:
        for module, *_ in names:
            del sys.modules[module], sys.modules[module.partition(".")[0]]


def edm_pickle(net, precond="edm", protocol=4, source=SOURCE, config=SONG):
    ema = persist(net, EasyDict(config, **{"dropout": np.float64(0.13)}), source)
    ema.meta["class_name"] = CLASSES[precond]
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "sigma_data": 0.5})
    with published_names():
        return pickle.dumps(
            {"ema": ema, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": EasyDict(n=1)}, protocol
        )


def same(a, b):
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == torch.float32 or not a[key].is_floating_point()
        assert torch.equal(a[key], b[key].to(a[key].dtype)), key


@pytest.fixture(autouse=True)
def fetched(tmp_path, monkeypatch):
    """Files lie where `purebench fetch` puts them, unless a test says otherwise."""
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def save(value, name="checkpoint.pth"):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return save


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("precond", CLASSES)
def test_an_edm_pickle_gives_the_outputs_of_its_source(tmp_path, precond, protocol):
    source = network("edm", SONG | {"precond": precond}, protocol)
    path = tmp_path / "edm.pkl"
    content = edm_pickle(source, precond, protocol)
    path.write_bytes(content.replace(b"numpy._core.", b"numpy.core.") if protocol == 2 else content)
    for _ in ("the pickle", "the converted files"):
        config, state = readers.edm(path)
        assert config == SONG | {"precond": precond, "dropout": 0.13}
        same(state, source.state_dict())
        loaded = readers.load(build("edm", config), state, "edm")
        assert torch.equal(loaded(X, torch.tensor([0.3, 7.0])), source(X, torch.tensor([0.3, 7.0])))
    read = unpickle.read(path)
    assert list(read.state) == list(source.state_dict())
    assert {type(v) for v in read.state.values()} == {np.ndarray}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_an_edm_pickle_is_converted_once(tmp_path, monkeypatch):
    path, weights, told = (tmp_path / name for name in ("edm.pkl", "edm.pkl.safetensors", "edm.pkl.json"))
    first, second = network("edm", SONG, 1), network("edm", SONG, 2)
    path.write_bytes(edm_pickle(first))
    same(readers.state(path, "edm-pickle"), first.state_dict())
    assert json.loads(told.read_text())["source"]["size"] == path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, told.name, weights.name]

    read = unpickle.read
    monkeypatch.setattr(unpickle, "read", None)
    same(readers.state(path, "edm-pickle"), first.state_dict())
    monkeypatch.setattr(unpickle, "read", read)
    weights.write_bytes(weights.read_bytes()[:-9])  # a broken conversion is made again
    same(readers.state(path, "edm-pickle"), first.state_dict())
    times = path.stat()
    path.write_bytes(edm_pickle(second))  # and that of another file, even of the same size and time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    same(readers.state(path, "edm-pickle"), second.state_dict())


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_of_an_edm_pickle(tmp_path, dtype):
    source = network("edm", SONG, 0).to(dtype)
    (tmp_path / "edm.pkl").write_bytes(edm_pickle(source))
    same(readers.state(tmp_path / "edm.pkl", "edm-pickle"), source.state_dict())


def test_score_sde_names_its_averages_by_the_order_of_the_parameters(save):
    raw, ema = network("ddpmpp", DDPMPP, 1), network("ddpmpp", DDPMPP, 2)
    shadow = [p.clone() for p in ema.parameters()]
    path = save(
        {
            "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 2e-4}]},
            "model": nn.DataParallel(raw).state_dict(),
            "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow},
            "step": 400005,
        }
    )
    shapes = {name: tuple(p.shape) for name, p in ema.named_parameters()}
    for weights, source, order in (("ema", ema, shapes), ("ema", ema, list(shapes)), ("raw", raw, None)):
        state = readers.state(path, "score-sde", order=order, weights=weights)
        loaded = readers.load(build("ddpmpp", DDPMPP), state, "score-sde")
        assert torch.equal(loaded(X, torch.tensor([75.0, 0.5])), source(X, torch.tensor([75.0, 0.5])))
    with pytest.raises(UserError, match=f"holds {len(shadow)} tensors, expected the network's {len(shadow) - 1} param"):
        readers.state(path, "score-sde", order=list(shapes)[1:])
    with pytest.raises(UserError, match=r"in the place of `all_modules.0.weight`, expected \[7\]"):
        readers.state(path, "score-sde", order=shapes | {"all_modules.0.weight": (7,)})
    with pytest.raises(UserError, match="expected the network's `order`"):
        readers.state(path, "score-sde")


def test_ncsnv2_holds_raw_and_averaged_weights(save):
    raw, ema = network("ncsnv2", NCSN, 1), network("ncsnv2", NCSN, 2)
    parts = [nn.DataParallel(raw).state_dict(), {"state": {}}, 3, 300000, dict(ema.named_parameters())]
    path = save(parts)
    index = torch.tensor([0, 4])
    for weights, source in (("raw", raw), ("ema", ema)):
        loaded = readers.load(build("ncsnv2", NCSN), readers.state(path, "ncsnv2-list", weights=weights), "ncsnv2")
        assert torch.equal(loaded(X, index), source(X, index))
    path = save(parts[:4])
    with pytest.raises(UserError, match="no averaged weights") as error:
        readers.state(path, "ncsnv2-list", weights="ema")
    assert "`weights=raw`" in error.value.hint
    same(readers.state(path, "ncsnv2-list"), raw.state_dict())
    same(readers.state(path, "ncsnv2-list", weights="raw"), raw.state_dict())


WRAPPED = [
    "",
    "module.",
    "model.",
    "module.model.",
    "module.0.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "net.model.",
    "_orig_mod.net.",
]


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("unwrap", [None, "state_dict", "model_state_dict", "model", "net"])
def test_state_dicts_in_every_wrapping(save, prefix, unwrap):
    source = flat()
    found = OrderedDict((prefix + key, value) for key, value in source.state_dict().items())
    path = save(
        {unwrap: found, "epoch": 3, "valacc": np.float64(0.9), "args": argparse.Namespace(lr=0.1)} if unwrap else found
    )
    same(readers.state(path, "state-dict"), source.state_dict())


HARMLESS = {
    "a scheduler's milestones": Counter([30, 30, 60]), "device": torch.device("cuda:1"), "type": torch.bfloat16,
    "bytes": bytearray(b"a\xff"), "complex": 1 - 2j, "keys": {(1, "a"): 2}, "set": {(1, 2)}, "layout": torch.strided,
    "size": torch.Size([1]), "generator": torch.get_rng_state(), "complex values": torch.ones(2, dtype=torch.complex64),
    "parameter": nn.Parameter(torch.ones(2)),
}  # fmt: skip


def test_what_torch_reads_beside_weights_is_read(save):
    """As Lightning saves a MultiStepLR, which counts its milestones, among others."""
    source = flat()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1), [1, 2])
    path = save({"state_dict": source.state_dict(), "lr_schedulers": [scheduler.state_dict()], **HARMLESS})
    assert torch.load(path, weights_only=True)["keys"] == {(1, "a"): 2}
    same(readers.state(path, "state-dict"), source.state_dict())


def test_a_file_of_the_users_own_is_not_to_be_deleted(save, tmp_path, monkeypatch):
    path, empty = save({"net": nn.Linear(1, 1)}), tmp_path / "empty.pt"
    empty.write_bytes(b"")
    for asked, format in ((path, "state-dict"), (empty, "state-dict"), (empty, "edm-pickle")):
        with pytest.raises(UserError) as fetched:
            readers.state(asked, format)
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("PUREBENCH_CACHE", str(tmp_path / "elsewhere"))
            with pytest.raises(UserError) as own:
                readers.state(asked, format)
        assert DELETE in fetched.value.hint
        assert "delete" not in own.value.hint
        assert "fetch" not in own.value.hint
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError) as own:
        readers.state(path, "state-dict")
    assert "torch.save(model.state_dict(), FILE)" in own.value.hint


def test_a_prefix_goes_only_if_every_key_has_it(save):
    found = {"module.a": torch.ones(1), "b": torch.ones(2)}
    assert list(readers.state(save(found), "state-dict")) == ["module.a", "b"]
    assert list(readers.state(save(found), "robustbench")) == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(save, dtype):
    source = flat().to(dtype)
    state = readers.state(save(source.state_dict()), "state-dict")
    same(state, source.state_dict())
    assert state["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"best": {}, "last": s}])
def test_robustbench(save, wrap):
    found = {f"module.model.{key}": value for key, value in flat().state_dict().items()}
    same(readers.state(save(wrap(found)), "robustbench"), {k[13:]: v for k, v in found.items()})


def test_safetensors(tmp_path):
    source = {key: value.half() for key, value in flat().state_dict().items()}
    save_file(source, tmp_path / "a.safetensors")
    assert readers.state(tmp_path / "a.safetensors", "safetensors").keys() == source.keys()


def test_views_and_tied_weights(save):
    base = torch.arange(12.0)
    found = {"a": base.view(3, 4).T, "b": base[2:5], "c": base, "d": torch.tensor(3.0), "e": torch.empty(0, 3)}
    same(readers.state(save(found), "state-dict"), found)


HTML = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"
DELETE = "delete it and fetch it again"


def cut(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("format", readers.FORMATS)
@pytest.mark.parametrize(("content", "told"), [(b"", "it is empty"), (HTML, "it begins with an HTML page")])
def test_what_a_failed_download_leaves_behind(tmp_path, format, content, told):
    (tmp_path / "checkpoint.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"`checkpoint.pth` is not a checkpoint: ") as error:
        readers.state(tmp_path / "checkpoint.pth", format)
    assert told in error.value.message
    assert DELETE in error.value.hint
    assert error.value.code == DOWNLOAD


@pytest.mark.parametrize("keep", [0.0005, 0.01, 0.3, 0.9, 0.999])
def test_cut_short(save, tmp_path, keep):
    path = save({"a": torch.randn(5000), "b": torch.randn(7)})
    cut(path, keep)
    with pytest.raises(UserError, match="is not a checkpoint") as error:
        readers.state(path, "state-dict")
    assert (DELETE in error.value.hint, error.value.code) == (True, DOWNLOAD)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("protocol", [2, 5])
def test_an_edm_pickle_cut_short(tmp_path, keep, protocol):
    path = tmp_path / "edm.pkl"
    path.write_bytes(edm_pickle(network("edm", SONG, 0), protocol=protocol))
    cut(path, keep)
    with pytest.raises(UserError, match=r"`edm.pkl` .*cut short") as error:
        readers.edm(path)
    assert (DELETE in error.value.hint, error.value.code) == (True, DOWNLOAD)
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_cut_short(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(flat().state_dict(), path)
    cut(path, 0.9)
    with pytest.raises(UserError, match="it is cut short"):
        readers.state(path, "safetensors")


def _tar(path):
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "storages")


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"checkpoint/{name}", pickle.dumps({}))


@pytest.mark.parametrize(
    ("format", "write", "told"),
    [
        ("state-dict", lambda p: p.write_bytes(b"\x93NUMPY not ours"), "is not a checkpoint of format `state-dict`"),
        ("state-dict", lambda p: torch.save(flat(), p), "it asks for `torch.nn.modules.container.Sequential`"),
        ("state-dict", lambda p: torch.save({"net": nn.Linear(1, 1)}, p), "asks for `torch.nn.modules.linear.Linear`"),
        ("state-dict", lambda p: torch.save({"epoch": 3}, p), "it holds the keys `epoch`, expected weights by key"),
        ("state-dict", lambda p: torch.save([], p), "it holds a list of 0, expected weights by key"),
        ("state-dict", lambda p: _zip(p, "data.pkl", "constants.pkl"), "it is a zip file, but none of torch's"),
        ("state-dict", _tar, "it is a tar file"),
        ("state-dict", lambda p: _zip(p, "readme.txt"), "it is a zip file, but none of torch's checkpoints"),
        ("score-sde", lambda p: torch.save({"a": 1}, p), "it holds the keys `a`, expected weights by key"),
        ("ncsnv2-list", lambda p: torch.save([1, 2, 3, 4], p), "it holds a list of 4, expected weights by key"),
        ("edm-pickle", lambda p: p.write_bytes(pickle.dumps({"net": 1})), "it holds no network `ema`"),
        ("edm-pickle", lambda p: p.write_bytes(b"\x80\x02]."), "is no EDM checkpoint"),
        ("safetensors", lambda p: p.write_bytes(b"of no kind at all"), "it is cut short, or of another kind"),
    ],
)
def test_another_kind_of_file(tmp_path, format, write, told):
    path = tmp_path / "checkpoint.pth"
    write(path)
    with pytest.raises(UserError) as error:
        readers.state(path, format)
    assert told in error.value.message
    assert (DELETE in error.value.hint, error.value.code) == (True, DOWNLOAD)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_an_edm_class_that_is_not_known(tmp_path):
    ema = Persistent("iDDPMPrecond", {"_init_kwargs": {}, "_parameters": {"a": torch.ones(1)}})
    with published_names():
        (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": ema}))
    with pytest.raises(UserError, match="class `iDDPMPrecond`, expected one of EDMPrecond"):
        readers.edm(tmp_path / "edm.pkl")


def test_files_that_are_not_there_and_names_that_are_not_known(tmp_path):
    for read in (lambda: readers.state(tmp_path / "a.pth", "state-dict"), lambda: readers.edm(tmp_path / "a.pkl")):
        with pytest.raises(UserError, match="cannot be read: No such file") as error:
            read()
        assert error.value.code == DOWNLOAD
    with pytest.raises(UserError, match="unknown checkpoint format `pickle`"):
        readers.state(tmp_path / "a.pth", "pickle")
    with pytest.raises(UserError, match="unknown kind of weights `best`"):
        readers.state(tmp_path / "a.pth", "state-dict", weights="best")


def test_a_state_that_does_not_fit_is_told_in_one_message():
    net, state = flat(), flat().state_dict()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    del state["0.bias"], state["1.running_var"], state["1.num_batches_tracked"]
    state |= {f"extra{i}": torch.ones(1) for i in range(5)}
    state["3.weight"] = torch.ones(3, 4)
    with pytest.raises(UserError) as error:
        readers.load(net, state, "clf")
    assert error.value.message == (
        "`clf` does not fit its network: of 9 keys 2 missing (`0.bias`, `1.running_var`); "
        "5 unexpected (`extra0`, `extra1`, `extra2`, ..); 1 of another shape (`3.weight` [3, 4], expected [3, 2])"
    )
    assert error.value.code == DOWNLOAD
    same(net.state_dict(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_key(bad):
    net, state = flat(), flat().state_dict()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state["3.weight"] = torch.tensor([[1.0, bad], [1, 1], [1, bad]])
    with pytest.raises(UserError, match=r"`clf` holds NaN or infinity: 2 of 6 values of `3.weight`"):
        readers.load(net, state, "clf")
    same(net.state_dict(), before)


def test_buffers_that_a_network_derives_may_be_absent():
    net, state = flat(), flat().state_dict()
    del state["1.num_batches_tracked"]
    assert readers.load(net, state, "clf") is net
    with pytest.raises(UserError, match=r"1 missing \(`1.num_batches_tracked`\)"):
        readers.load(net, state, "clf", derived=())
