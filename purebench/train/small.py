"""Training of the small networks: those of the embedded benchmark in two minutes on one CPU core, a score network for 32x32 colour
images in most of an hour, and ADP's classifiers of MNIST and FashionMNIST, whose weights were never released.

Deterministic: the same seed, torch version and kind of CPU give the same bytes. The score network learns
E || eps_net(a x + s e, 999 t) - e ||^2 with a = exp(-B/2), s = sqrt(1 - a^2) and
B = beta_min t + (beta_max - beta_min) t^2 / 2 (VP-SDE, beta 0.1..20: Song et al. 2021, "Score-Based Generative
Modeling through Stochastic Differential Equations", equation 7 and appendix C).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench import atomic
from purebench.datasets import cifar, digits, mnist
from purebench.datasets.images import Images
from purebench.errors import UserError, unknown
from purebench.networks.small import NETWORKS
from purebench.plan import resolved as components
from purebench.scores.views import integral

Progress = Callable[[float, str], None]  # fraction done in [0,1], a line to show

T_MIN = 1e-3
HELD = 1000  # images of a training set that are kept from training


def train(
    name: str, out: Path, seed: int, on_progress: Progress, dataset: str | None = None
) -> dict[str, dict[str, Any]]:
    """Trains a network of RECIPES, or both of the digits' (`digits`); writes `out/<name>.safetensors`.

    `dataset`: a PART whose images to train on, instead of the recipe's training set; its last 1000 are held out for the facts.
    Returns facts per file name: sha256, parameters, seconds, and what was measured on images that were not trained on
    (`accuracy` in [0,1], or `eps_loss`: mean squared error of eps per t). Raises UserError for an unknown name.
    """
    if name not in (known := {"digits": ["digits-classifier", "digits-score"], **{n: [n] for n in RECIPES}}):
        raise unknown("training", name, known)
    if not 0 <= seed < 2**63:
        raise UserError(f"`--seed {seed}` is out of range", "a seed is a whole number from 0 to 2^63 - 1")
    facts: dict[str, dict[str, Any]] = {}
    out.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(RECIPES[one].cost for one in known[name])
    for one in known[name]:
        recipe, began = RECIPES[one], time.monotonic()

        def tell(fraction: float, line: str, done: int = done, cost: int = recipe.cost) -> None:
            on_progress((done + fraction * cost) / total, line)

        training, held = _images(dataset or recipe.data, recipe.shape)
        with _reproducible(seed):
            network = NETWORKS[recipe.network](**recipe.config)
            recipe.fit(network, *training, seed, tell, **recipe.options)
            measured = recipe.measure(network.eval(), *held)
        path = out / f"{one}.safetensors"
        about = {"command": f"purebench train {one} --seed {seed}", "seed": str(seed), "torch": torch.__version__}
        if dataset:
            images = components.find("dataset", dataset)
            about["data"] = f"{images.text} {images.digest}"
        digest = _save(network, path, {**about, "network": recipe.network, "config": json.dumps(recipe.config)})
        parameters = sum(p.numel() for p in network.parameters())
        facts[path.name] = {"sha256": digest, "parameters": parameters, "seconds": time.monotonic() - began, **measured}
        done += recipe.cost
    return facts


def fit_classifier(
    network: nn.Module, images: Tensor, labels: Tensor, seed: int, on_progress: Progress, epochs: int = 25
) -> None:
    """Cross-entropy, AdamW with OneCycle up to 3e-3, batch 64, no augmentation."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters())
    steps = epochs * math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        on_progress((epoch + 1) / epochs, f"classifier: epoch {epoch + 1}/{epochs}, loss {loss.item():.4f}")


def fit_score(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    on_progress: Progress,
    *,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 2e-3,
    t_max: float = 1.0,
    flip: bool = False,
) -> None:
    """eps-prediction at t ~ U(1e-3, t_max), AdamW (200 steps up to `rate`, then a cosine), gradient norm <= 1; `flip`: every second
    image is mirrored.

    `network` ends as the moving average of its weights: decay 0.998, as Score SDE less while it is young.
    """  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    live = deepcopy(network)
    average: list[Tensor] = list(network.parameters())
    weights: list[Tensor] = list(live.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=1e-4)
    warmup = min(200, steps // 2)

    def factor(k: int) -> float:
        return (k + 1) / warmup if k < warmup else (1 + math.cos(math.pi * (k - warmup) / (steps - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    recent = 1.0
    for k in range(steps):
        x = images[torch.randint(len(images), (batch,), generator=generator)] * 2 - 1
        if flip:
            x = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        t = T_MIN + (t_max - T_MIN) * torch.rand(batch, generator=generator)
        loss = _eps_loss(live, x, t, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - min(0.998, (k + 1) / (k + 10)))
        recent += (loss.item() - recent) * max(0.01, 1 / (k + 1))
        if (k + 1) % 50 == 0 or k + 1 == steps:
            on_progress((k + 1) / steps, f"score network: step {k + 1}/{steps}, loss {recent:.4f}")


def _eps_loss(network: nn.Module, x: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of eps for x (B,C,H,W) in [-1,1] diffused to times t (B,)."""
    B = integral(t)
    a, s = torch.exp(-B / 2)[:, None, None, None], torch.sqrt(-torch.expm1(-B))[:, None, None, None]
    eps = torch.randn(x.shape, generator=generator)
    return F.mse_loss(network(a * x + s * eps, 999 * t), eps)


def _images(source: str, shape: list[int]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images in [0,1], labels) to train on, and those held out: the test set, or the last HELD of a training set."""
    found = components.find("dataset", source)
    if found.shape != shape:
        raise UserError(
            f"`{source}` has images of {'x'.join(map(str, found.shape))}, and this network takes {'x'.join(map(str, shape))}",
            "give another `--dataset`",
        )
    if found.name == "digits":
        return digits.train(), digits.test()
    if found.name in ("mnist", "fashionmnist"):
        return _all(mnist.train(found.name, str(found.values["folder"]))), _all(found.images)
    x, y = _all(cifar.train(str(found.values["folder"])) if found.name == "cifar10" else found.images)
    if len(x) <= HELD:
        raise UserError(f"`{source}` has {len(x)} images, and {HELD} are held out", "train on more")
    return (x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])


def _all(images: Images) -> tuple[Tensor, Tensor]:
    return images.take(range(len(images)))


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of these images that are classified correctly."""
    right = sum(
        (network(x).argmax(1) == y).sum().item() for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return {"accuracy": right / len(labels)}


@torch.no_grad()
def eps_loss(
    network: nn.Module, images: Tensor, labels: Tensor | None = None, times: tuple[float, ...] = (0.05, 0.1, 0.3, 0.5)
) -> dict[str, dict[str, float]]:
    """The loss on these images at single times, noise from a fixed seed; at t = 0, 1 it would tell nothing."""
    x = images * 2 - 1
    generator = torch.Generator().manual_seed(0)
    return {"eps_loss": {str(t): _eps_loss(network, x, torch.full((len(x),), t), generator).item() for t in times}}


@dataclass(frozen=True)
class Recipe:
    """What to build, `fit(network, images, labels, seed, on_progress, **options)`, `measure(network, images, labels)` -> facts, the
    rough cost in seconds, and the dataset to train on."""

    network: str
    config: dict[str, Any]
    fit: Callable[..., None]
    measure: Callable[..., dict[str, Any]]
    cost: int
    data: str = "digits"
    shape: list[int] = field(default_factory=lambda: [1, 8, 8])
    options: dict[str, Any] = field(default_factory=dict)


CNN = {"channels": 1, "classes": 10, "width": 16, "size": 8, "dropout": 0.2}
UNET = {"channels": 1, "base": 16, "mult": [1, 2], "blocks": 1}
RECIPES = {
    "digits-classifier": Recipe("small-cnn", CNN, fit_classifier, accuracy, cost=9),
    "digits-score": Recipe("small-unet", UNET, fit_score, eps_loss, cost=91),
    "cifar10-score": Recipe(
        "small-unet", {"channels": 3, "base": 48, "mult": [1, 2], "blocks": 1, "patch": 2}, fit_score,
        partial(eps_loss, times=(0.05, 0.1, 0.2, 0.3)), cost=2400, data="cifar10", shape=[3, 32, 32],
        options={"steps": 4000, "batch": 64, "rate": 1e-3, "t_max": 0.3, "flip": True},
    ),
    "mnist-classifier": Recipe("adp-cnn", {}, fit_classifier, accuracy, cost=240, data="mnist", shape=[1, 28, 28], options={"epochs": 4}),
    "fashionmnist-classifier": Recipe(
        "adp-cnn", {}, fit_classifier, accuracy, cost=240, data="fashionmnist", shape=[1, 28, 28], options={"epochs": 4}
    ),
}  # fmt: skip


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread, and a seeded global generator (initial weights and dropout use it), both put back afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _save(network: nn.Module, path: Path, about: dict[str, str]) -> str:
    """Writes weights and the metadata `about` by tmp + replace -> sha256. The header is sorted: safetensors' own order
    of metadata is random, and equal weights should be equal files."""
    from safetensors.torch import save

    data = save(network.state_dict(), about)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + data[start:]
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
