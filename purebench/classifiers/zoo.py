"""RobustBench's architectures, without its downloads.

robustbench 1.1.1 does not import as installed: it wants the modules `autoattack` (the package index has `pyautoattack`) and
`pkg_resources` (gone from setuptools 81). Stand-ins in memory cure both; nothing on disk is changed, and `gdown` never runs.
"""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from purebench.errors import UserError, unknown


def architecture(dataset: str, threat: str, name: str) -> nn.Module:
    """The network of a zoo entry with fresh weights: (B,3,H,W) in [0,1] -> logits. UserError for an id that the zoo has not."""
    zoo = models(dataset, threat)
    if name not in zoo:
        raise unknown(f"RobustBench id for {dataset} {threat}", name, zoo, see="purebench list classifiers")
    if dataset == "imagenet" and name.startswith("Standard"):
        raise UserError(
            f"`{name}` of RobustBench is torchvision's network", "write torchvision:id=resnet50, the same weights"
        )
    return zoo[name]["model"]()


def models(dataset: str, threat: str) -> dict[str, Any]:
    """id -> entry of `robustbench.model_zoo`."""
    with shim(), warnings.catch_warnings():  # of torch.jit and timm, by way of dependencies
        warnings.simplefilter("ignore")
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    datasets, threats = {d.value: d for d in BenchmarkDataset}, {t.value: t for t in ThreatModel}
    if dataset not in datasets:
        raise unknown("RobustBench dataset", dataset, datasets)
    if threat not in threats:
        raise unknown("RobustBench threat model", threat, threats)
    return model_dicts[datasets[dataset]].get(threats[threat], {})


@contextmanager
def shim() -> Iterator[None]:
    """Within, `import robustbench` succeeds. Where the real modules exist they are left alone; the stand-ins are gone afterwards."""
    stand_ins: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("autoattack") is None:
        stand_ins["autoattack"] = importlib.import_module("pyautoattack")
        for part in ("autopgd_base", "fab_pt", "square", "checks", "other_utils"):
            if importlib.util.find_spec(f"pyautoattack.{part}"):
                stand_ins[f"autoattack.{part}"] = importlib.import_module(f"pyautoattack.{part}")
    if importlib.util.find_spec("pkg_resources") is None:
        stub = types.ModuleType("pkg_resources")
        stub.resource_filename = lambda package, name: str(importlib.resources.files(package) / name)  # type: ignore[attr-defined]
        stand_ins["pkg_resources"] = stub
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
