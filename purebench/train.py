"""Training of the embedded benchmark's two networks: all of it can be made again, in two minutes on one CPU core.

Deterministic: the same seed, torch version and kind of CPU give the same bytes. The score network learns
E || eps_net(a x + s e, 999 t) - e ||^2 with a = exp(-B/2), s = sqrt(1 - a^2) and
B = beta_min t + (beta_max - beta_min) t^2 / 2 (VP-SDE, beta 0.1..20: Song et al. 2021, "Score-Based Generative
Modeling through Stochastic Differential Equations", equation 7 and appendix C).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purebench.datasets import digits
from purebench.errors import unknown
from purebench.networks.small import NETWORKS

Progress = Callable[[float, str], None]  # fraction done in [0,1], a line to show

BETA_MIN, BETA_MAX, T_MIN = 0.1, 20.0, 1e-3


def train(name: str, out: Path, seed: int, on_progress: Progress) -> dict[str, dict[str, Any]]:
    """Trains `digits-classifier`, `digits-score`, or both (`digits`); writes `out/<name>.safetensors`.

    Returns facts per file name: sha256, parameters, seconds, and what was measured on the 500 test images
    (`accuracy` in [0,1], or `eps_loss`: mean squared error of eps per t). Raises UserError for an unknown name.
    """
    if name not in (known := {"digits": list(RECIPES), **{n: [n] for n in RECIPES}}):
        raise unknown("training", name, known)
    facts: dict[str, dict[str, Any]] = {}
    out.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(RECIPES[one].cost for one in known[name])
    for one in known[name]:
        recipe, began = RECIPES[one], time.monotonic()

        def tell(fraction: float, line: str, done: int = done, cost: int = recipe.cost) -> None:
            on_progress((done + fraction * cost) / total, line)

        with _reproducible(seed):
            network = NETWORKS[recipe.network](**recipe.config)
            recipe.fit(network, seed, tell)
            measured = recipe.measure(network.eval())
        path = out / f"{one}.safetensors"
        about = {"command": f"purebench train {one} --seed {seed}", "seed": str(seed), "torch": torch.__version__}
        digest = _save(network, path, {**about, "network": recipe.network, "config": json.dumps(recipe.config)})
        parameters = sum(p.numel() for p in network.parameters())
        facts[path.name] = {"sha256": digest, "parameters": parameters, "seconds": time.monotonic() - began, **measured}
        done += recipe.cost
    return facts


def fit_classifier(network: nn.Module, seed: int, on_progress: Progress, epochs: int = 25) -> None:
    """Cross-entropy, AdamW with OneCycle up to 3e-3, batch 64, no augmentation."""
    images, labels = digits.train()
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


def fit_score(network: nn.Module, seed: int, on_progress: Progress, steps: int = 2000) -> None:
    """eps-prediction at t ~ U(1e-3, 1), AdamW 2e-3 (200 steps up, then a cosine), batch 128, gradient norm <= 1.

    `network` ends as the moving average of its weights: decay 0.998, as Score SDE less while it is young.
    """
    images, _ = digits.train()
    generator = torch.Generator().manual_seed(seed)
    live = deepcopy(network)
    average: list[Tensor] = list(network.parameters())
    weights: list[Tensor] = list(live.parameters())
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-4)
    warmup = min(200, steps // 2)

    def factor(k: int) -> float:
        return (k + 1) / warmup if k < warmup else (1 + math.cos(math.pi * (k - warmup) / (steps - warmup))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    recent = 1.0
    for k in range(steps):
        x = images[torch.randint(len(images), (128,), generator=generator)] * 2 - 1
        t = T_MIN + (1 - T_MIN) * torch.rand(128, generator=generator)
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
    B = BETA_MIN * t + (BETA_MAX - BETA_MIN) * t**2 / 2
    a, s = torch.exp(-B / 2)[:, None, None, None], torch.sqrt(-torch.expm1(-B))[:, None, None, None]
    eps = torch.randn(x.shape, generator=generator)
    return F.mse_loss(network(a * x + s * eps, 999 * t), eps)


@torch.no_grad()
def accuracy(network: nn.Module) -> dict[str, float]:
    """The share of the 500 test images that are classified correctly."""
    images, labels = digits.test()
    return {"accuracy": (network(images).argmax(1) == labels).float().mean().item()}


@torch.no_grad()
def eps_loss(network: nn.Module) -> dict[str, dict[str, float]]:
    """The loss on the test images at single times, noise from a fixed seed; at t = 0, 1 it would tell nothing."""
    x = digits.test()[0] * 2 - 1
    generator = torch.Generator().manual_seed(0)
    times = (0.05, 0.1, 0.3, 0.5)
    return {"eps_loss": {str(t): _eps_loss(network, x, torch.full((len(x),), t), generator).item() for t in times}}


@dataclass(frozen=True)
class Recipe:
    """What to build, `fit(network, seed, on_progress)`, `measure(network)` -> facts, and the rough cost in seconds."""

    network: str
    config: dict[str, Any]
    fit: Callable[..., None]
    measure: Callable[[nn.Module], dict[str, Any]]
    cost: int


CNN = {"channels": 1, "classes": 10, "width": 16, "size": 8, "dropout": 0.2}
UNET = {"channels": 1, "base": 16, "mult": [1, 2], "blocks": 1}
RECIPES = {
    "digits-classifier": Recipe("small-cnn", CNN, fit_classifier, accuracy, cost=9),
    "digits-score": Recipe("small-unet", UNET, fit_score, eps_loss, cost=91),
}


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return hashlib.sha256(data).hexdigest()
