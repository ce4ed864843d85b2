"""Classifiers by name. Each takes (B,C,H,W) in [0,1], normalises inside, and gives logits (B,K); frozen, in evaluation mode.

`asset` in INFO names the checkpoint in `checkpoints.toml`, {..} standing for a parameter; `size` and `classes` are those of the
images it was trained on (a table where they depend on the parameter `dataset`), and `trained_on` names these.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from purebench import assets, embedded, networks
from purebench.assets import architecture, checkpoint, contents
from purebench.classifiers import normalisation, wrapped
from purebench.errors import DOWNLOAD, UserError, unknown

# Their forward depends on an argument that no file shows, `transform_input`: torchvision sets it for its own weights, and files that
# were trained from these need it.
TRANSFORMED = ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3")
_OF_TRANSFORMED = (
    "network == 'torchvision/googlenet' or network == 'torchvision/inception_v3' or "
    "network == 'torchvision/quantized_googlenet' or network == 'torchvision/quantized_inception_v3'"
)
_WIDE = ["network != 'wideresnet' and network != 'wideresnet_hill'", "only a WideResNet has one"]

INFO = {
    "digits-cnn": {
        "summary": "three convolutions, 19,338 parameters, trained on the embedded digits",
        "asset": "digits-classifier",
        "trained_on": "digits",
        "size": [1, 8, 8],
        "classes": 10,
        "version": 1,
    },
    "robustbench": {
        "summary": "a model of RobustBench by its id: robustbench:id=Standard is the WRN-28-10 of DiffPure and COUP",
        "asset": "robustbench/{dataset}/{threat}/{id}",
        "trained_on": "{dataset}",
        "size": {"cifar10": [3, 32, 32], "cifar100": [3, 32, 32], "imagenet": [3, 224, 224]},
        "classes": {"cifar10": 10, "cifar100": 100, "imagenet": 1000},
        "version": 1,
        "cite": "croce2021robustbench",
    },
    "torchvision": {
        "summary": "an ImageNet classifier of torchvision, weights IMAGENET1K_V1 (never DEFAULT): torchvision:id=resnet50",
        "asset": "torchvision-{id}-v1",
        "trained_on": "imagenet",
        "size": [3, 224, 224],
        "classes": 1000,
        "version": 1,
    },
    "timm": {
        "summary": "DeiT-S of DiffPure's ImageNet table, through timm",
        "asset": "deit-s",
        "trained_on": "imagenet",
        "size": [3, 224, 224],
        "classes": 1000,
        "version": 1,
    },
    "wrn-70-16-dropout": {
        "summary": "DiffPure's own WRN-70-16 with dropout, CIFAR-10",
        "asset": "diffpure-wrn-70-16-dropout",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "classes": 10,
        "version": 1,
        "cite": "nie2022diffpure",
    },
    "wideresnet-70-16": {
        "summary": "DiffPure's WRN-70-16 with Swish (RobustBench's DMWideResNet), CIFAR-10",
        "asset": "diffpure-wideresnet-70-16",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "classes": 10,
        "version": 1,
        "cite": "nie2022diffpure",
    },
    "cifar-resnet50": {
        "summary": "DiffPure's CIFAR-10 ResNet-50 (unseen threats)",
        "asset": "diffpure-cifar10-resnet50",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "classes": 10,
        "version": 1,
        "cite": "nie2022diffpure",
    },
    "hill-wrn-28-10": {
        "summary": "Hill et al.'s WRN-28-10, CIFAR-10",
        "asset": "ebm-hill-clf-cifar10",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "classes": 10,
        "version": 1,
    },
    "celebahq-attribute": {
        "summary": "CelebA-HQ attribute classifier of DiffPure's table: logits [z, -z], class 1 = the attribute is present",
        "asset": "gan-ensembling-celebahq-attr",
        "trained_on": "celebahq",
        "size": [3, 256, 256],
        "classes": 2,
        "version": 1,
        "cite": "nie2022diffpure",
    },
    "autoattack-resnet18": {
        "summary": "the ResNet-18 that pyautoattack ships as its example: CIFAR-10, not robust, no paper's classifier",
        "sha256": "399f52da9f914c323fa5a6096d60f460a3449a59b64a6405200c1e629f8425a7",
        "trained_on": "cifar10",
        "size": [3, 32, 32],
        "classes": 10,
        "version": 1,
        "stand_in": "pyautoattack's example ResNet-18",
    },
    "mnist-cnn": {
        "summary": "ADP's small CNN for MNIST, trained by `purebench train mnist-classifier`",
        "trained": "mnist-classifier",
        "trained_on": "mnist",
        "size": [1, 28, 28],
        "classes": 10,
        "version": 1,
        "stand_in": "our training of ADP's MNIST CNN (its weights were never released)",
    },
    "fashionmnist-cnn": {
        "summary": "ADP's small CNN for FashionMNIST, trained by `purebench train fashionmnist-classifier`",
        "trained": "fashionmnist-classifier",
        "trained_on": "fashionmnist",
        "size": [1, 28, 28],
        "classes": 10,
        "version": 1,
        "stand_in": "our training of ADP's FashionMNIST CNN (its weights were never released)",
    },
    "file": {
        "summary": "your own weights: file:path=FILE,network=NAME; the natural CIFAR-100 classifiers of ADP, ScoreOpt and COUP were "
        "never released: robustbench:dataset=cifar100,id=.. are adversarially trained stand-ins",
        "version": 1,
        "choices": {"weights": ["ema", "raw"], "transform_input": ["true", "false"]},
        "counts_classes": True,
        "normalises": "torchvision/",
        "moot": {"depth": _WIDE, "widen": _WIDE},
        "asked": {
            "transform_input": [
                _OF_TRANSFORMED,
                "transform_input=true for torchvision's own weights (`weights=`) and what was trained from them, "
                "transform_input=false for a network that was made by `weights=None`",
                "only torchvision's GoogLeNet and Inception v3 have it",
            ]
        },
    },
}

LOCAL = ("wideresnet_hill", "wideresnet", "cifar_resnet50")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalised(nn.Module):
    """network((x - mean) / std), per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean.to(x.dtype)) / self.std.to(x.dtype))


class TwoLogits(nn.Module):
    """[z, -z] of a network with one logit z, as DiffPure reads the attribute network (class 1: z < 0)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x).reshape(len(x), 1)
        return torch.cat([z, -z], dim=1)


def digits_cnn() -> nn.Module:
    """The classifier that ships with purebench: (B,1,8,8) in [0,1] -> logits (B,10)."""
    return embedded.load("digits-classifier")


def robustbench(*, id: str = "Standard", dataset: str = "cifar10", threat: str = "Linf") -> nn.Module:
    """RobustBench's model `id` for `dataset` (cifar10, cifar100, imagenet) and `threat` (Linf, L2, corruptions). Its file lies where
    RobustBench itself would look for it; UserError (exit 3) where it is not fetched, unknown ids get a suggestion."""
    from purebench.classifiers import zoo

    network = zoo.architecture(dataset, threat, id)
    state = checkpoint.state(f"robustbench/{dataset}/{threat}/{id}")
    inner = [key for key in network.state_dict() if key.startswith("model.")]
    if inner and state and not any(key in state for key in inner):  # ImageNet: the network inside a normalisation layer
        state = {f"model.{key}": value for key, value in state.items()}
    return checkpoint.fill(network, wrapped.of_zoo(network, state), f"robustbench:id={id}", constants=wrapped.CONSTANTS)


def torchvision(*, id: str = "resnet50") -> nn.Module:
    """torchvision's `id` with the weights IMAGENET1K_V1: (B,3,224,224) in [0,1] -> logits (B,1000)."""
    from torchvision import models

    state = checkpoint.state(f"torchvision-{id}-v1")
    network = models.get_model(id, weights=None, **_arguments(id, "true", state))
    return Normalised(checkpoint.fill(network, state, id), *IMAGENET).eval()


def _arguments(id: str, transform_input: str, keys: Iterable[str]) -> dict[str, bool]:
    """What of torchvision's network is no matter of shapes; of `keys` only whether they have heads that training alone asks."""
    if id not in TRANSFORMED:
        return {}
    aux = any(architecture.AUX.search(key) for key in keys)
    return {"transform_input": transform_input == "true", "aux_logits": aux, "init_weights": False}


def timm() -> nn.Module:
    """DeiT-S, built by timm: (B,3,224,224) in [0,1] -> logits (B,1000)."""
    import timm as library

    network = library.create_model("deit_small_patch16_224", pretrained=False)
    return Normalised(checkpoint.fill(network, checkpoint.state("deit-s"), "deit-s"), *IMAGENET).eval()


def wrn_70_16_dropout() -> nn.Module:
    """(B,3,32,32) in [0,1] -> logits (B,10)."""
    return checkpoint.load("diffpure-wrn-70-16-dropout")


def wideresnet_70_16() -> nn.Module:
    """(B,3,32,32) in [0,1] -> logits (B,10)."""
    from purebench.classifiers import zoo

    network = zoo.architecture(
        "cifar10", "Linf", "Gowal2020Uncovering_70_16"
    )  # DMWideResNet 70-16, Swish, normalises inside
    return checkpoint.fill(network, checkpoint.state("diffpure-wideresnet-70-16"), "wideresnet-70-16")


def cifar_resnet50() -> nn.Module:
    """(B,3,32,32) in [0,1] -> logits (B,10)."""
    return checkpoint.load("diffpure-cifar10-resnet50")


def hill_wrn_28_10() -> nn.Module:
    """(B,3,32,32) in [0,1], given to the network on [-1,1] -> logits (B,10)."""
    return Normalised(checkpoint.load("ebm-hill-clf-cifar10"), [0.5] * 3, [0.5] * 3).eval()


def celebahq_attribute(*, attribute: str = "Smiling") -> nn.Module:
    """(B,3,256,256) in [0,1] -> logits (B,2)."""
    network = checkpoint.load("gan-ensembling-celebahq-attr", member=f"{attribute}/net_best.pth")
    return TwoLogits(Normalised(network, [0.5] * 3, [0.5] * 3)).eval()


def autoattack_resnet18() -> nn.Module:
    """(B,3,32,32) in [0,1], not normalised -> logits (B,10). UserError (exit 3) if the installed file is another."""
    spec = importlib.util.find_spec("pyautoattack")
    assert spec
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "examples"
    path = folder / "model_test.pt"
    if not path.is_file() or assets.sha256(path) != INFO["autoattack-resnet18"]["sha256"]:
        raise UserError(f"`{path}` is missing or another file", "reinstall pyautoattack 0.2", DOWNLOAD)
    module = importlib.util.module_from_spec(
        source := importlib.util.spec_from_file_location("resnet", folder / "resnet.py")  # type: ignore[arg-type]
    )
    source.loader.exec_module(module)  # type: ignore[union-attr]
    return checkpoint.fill(module.ResNet18(), checkpoint.read(path, "state-dict"), "autoattack-resnet18")


def mnist_cnn() -> nn.Module:
    """(B,1,28,28) in [0,1] -> logits (B,10)."""
    return checkpoint.trained("mnist-classifier", "adp-cnn", {})


def fashionmnist_cnn() -> nn.Module:
    """(B,1,28,28) in [0,1] -> logits (B,10)."""
    return checkpoint.trained("fashionmnist-classifier", "adp-cnn", {})


def file(
    *, path: str = "", name: str = "", network: str = "", classes: int = 10, depth: int = 28, widen: int = 10,
    mean: tuple = (), std: tuple = (), weights: str = "", transform_input: str = "",
) -> nn.Module:  # fmt: skip
    """Weights in a local file. `network`: `wideresnet_hill` (the WRN of Hill et al., ADP and ScoreOpt; depth, widen), `wideresnet`
    (DiffPure's), `cifar_resnet50`, `robustbench/cifar10/Linf/ID`, `torchvision/ID`; not needed for a file of `purebench train`.
    `mean`, `std`: a normalisation that the network does not do itself, of images in [0,1]. `name`: what tables call it. `weights`:
    `ema` or `raw` of a file that has both, the average where nothing is said. `transform_input`: `true` or `false`,
    torchvision's argument of GoogLeNet and Inception v3, which no file shows: it is asked for."""
    normalisation.check(mean, std)
    if not network:
        if Path(path).is_file() and "network" not in embedded.metadata(Path(path)):
            raise UserError(
                f"`{path}` is no file of `purebench train`, which says itself which network it is of",
                f"say it: network=NAME, one of {', '.join(LOCAL)}, robustbench/cifar10/Linf/ID, torchvision/NAME",
            )
        made = embedded.read(Path(path))
    else:
        held = contents.of(Path(path), "state-dict").sets if Path(path).is_file() else {}
        keys = [key for shapes in held.values() for key in shapes]
        empty = _architecture(network, classes, depth, widen, str(transform_input).lower(), keys)
        order = checkpoint.parameters(empty)
        found = checkpoint.read(Path(path), "state-dict", weights=weights, order=order)
        found = wrapped.head(empty, wrapped.of_zoo(empty, found), network)
        found, *own = wrapped.taken_out(empty, found, path, bool(mean or std))
        if any(own) and (mean or std) and not np.allclose([*own[0], *own[1]], [*mean, *std], atol=1e-4):
            raise UserError(
                f"`{path}` holds a normaliser of its own, mean {list(own[0])} and std {list(own[1])}, and others were given",
                "leave `mean` and `std` out",
            )
        if any(own):
            mean, std = own
        constants = wrapped.CONSTANTS if network.startswith("robustbench/") else ()
        made = checkpoint.fill(empty, found, path, f"is it a file of `{network}`?", constants)
    return Normalised(made, mean, std).eval() if mean or std else made


def _architecture(
    network: str, classes: int, depth: int, widen: int, transform_input: str, keys: Iterable[str]
) -> nn.Module:
    source, _, rest = network.partition("/")
    if source == "robustbench" and rest.count("/") == 2:
        from purebench.classifiers import zoo

        return zoo.architecture(*rest.split("/"))
    if source == "torchvision" and rest:
        from torchvision import models

        if rest not in models.list_models():
            raise unknown("network of torchvision", rest, models.list_models())
        own = _arguments(rest, transform_input, keys)
        return models.get_model(rest, weights=None, num_classes=classes, **own)
    if network not in LOCAL:
        raise unknown("network of a file", network, [*LOCAL, "robustbench/cifar10/Linf/ID", "torchvision/NAME"])
    config = {"depth": depth, "widen": widen, "dropout": 0.0, "classes": classes}
    return networks.build(network, config)
