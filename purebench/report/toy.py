"""When does guidance help? A toy after Figure 3b of COUP (Zhang et al. 2024): label flips against guidance weight, for classifiers that
are ever more wrong.

One-dimensional data from two Gaussians, N(-m, s^2) for class 0 and N(m, s^2) for class 1, as images of one pixel on the [-1,1] scale; their
score is known in closed form. The images have been pushed towards the other class by `PUSH`; COUP purifies them from t* = 0.1. The
classifier is the Bayes-optimal logistic one with its boundary displaced by `classifier_noise` times a standard normal.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.purifiers import make
from purebench.scores.views import Level, Score

MEAN, STD, PUSH = 0.4, 0.1, 0.1  # m, s, and how far the images have been pushed
STEPS, QUANTILES = 50, 9  # of COUP; boundaries that stand for the normal displacement


class TwoGaussians(Score):
    """The mixture's score, exact at any noise."""

    size = (1, 1, 1)

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        """sigma * grad log of N(-m, s^2 + sigma^2) / 2 + N(m, s^2 + sigma^2) / 2."""
        variance = STD**2 + sigma**2
        return sigma * (MEAN * torch.tanh(x * MEAN / variance) - x) / variance


class Logistic(nn.Module):
    """log p(1 | x) - log p(0 | x) = 2 m (x - boundary) / s^2, of images u = (x + 1) / 2."""

    def __init__(self, boundary: float):
        super().__init__()
        self.boundary = boundary

    def forward(self, u: Tensor) -> Tensor:
        margin = (2 * u.flatten(1) - 1 - self.boundary) * 2 * MEAN / STD**2
        return torch.cat([-margin / 2, margin / 2], dim=1)


def flip_probability(guidance: float, classifier_noise: float, n: int, seed: int) -> float:
    """Share of pushed images whose purification lies on the wrong side of the Bayes boundary, 0. guidance: COUP's lambda >= 0;
    classifier_noise: standard deviation of the classifier's boundary, on the [-1,1] scale; n: images per boundary."""
    ids = range(n)
    rows = Noise(seed, "toy", (), ids, [0] * n)
    label = torch.arange(n) % 2
    side = (2.0 * label - 1)[:, None, None, None].double()
    x = side * (MEAN - PUSH) + STD * rows.normal(0, side)
    flips = 0.0
    for q in range(QUANTILES):
        boundary = classifier_noise * NormalDist().inv_cdf((q + 0.5) / QUANTILES)
        coup = make("coup", score=TwoGaussians(), classifier=Logistic(boundary), steps=STEPS, guidance=guidance)
        purified = chain.run(coup, (x + 1) / 2, rows.fork("purify", q))
        flips += ((2 * purified - 1) * side < 0).double().mean().item() / QUANTILES
    return flips


# -------------------------------------------------------------------------------------------------------------- the figure

WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
NOISES = {
    0.0: "#0072b2",
    0.1: "#009e73",
    0.2: "#e69f00",
    0.3: "#d55e00",
}  # colours that the colour-blind can tell apart
WIDTH, HEIGHT, SCALE = 900, 600, 3  # drawn SCALE times as large, then reduced
LEFT, RIGHT, TOP, BOTTOM = 90, 870, 84, 510  # the axes, in pixels
GREY, LIGHT, BLACK = "#555555", "#e4e4e4", "#111111"


def figure(path: str | Path, n: int = 2000, seed: int = 0) -> dict[float, list[float]]:
    """Draws flip probability against guidance weight, one curve per classifier noise, as a PNG of 900 x 600; returns the curves."""
    curves = {noise: [flip_probability(w, noise, n, seed) for w in WEIGHTS] for noise in NOISES}
    draw(curves).save(path)
    return curves


def draw(curves: dict[float, list[float]]) -> Image.Image:
    """The curves of `figure`, {classifier noise: flip probability at each of WEIGHTS}, with axes and a legend."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    pen = ImageDraw.Draw(image)
    highest = max(max(c) for c in curves.values())
    tick = next(t for t in (0.01, 0.02, 0.05, 0.1, 0.2) if highest <= 5.5 * t)
    top = tick * math.ceil(highest / tick + 0.3)

    def at(weight: float, flips: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * weight / WEIGHTS[-1]
        return x * SCALE, (BOTTOM - (BOTTOM - TOP) * flips / top) * SCALE

    def text(x: float, y: float, words: str, size: int = 16, anchor: str = "la", fill: str = GREY) -> None:
        pen.text((x, y), words, font=ImageFont.load_default(size * SCALE), anchor=anchor, fill=fill)

    for i in range(round(top / tick) + 1):
        x, y = at(0, i * tick)
        pen.line([(x, y), at(WEIGHTS[-1], i * tick)], fill=GREY if i == 0 else LIGHT, width=SCALE)
        text(x - 10 * SCALE, y, f"{i * tick:.2f}", anchor="rm")
    for weight in range(round(WEIGHTS[-1]) + 1):
        x, y = at(weight, 0)
        pen.line([(x, y), (x, y + 6 * SCALE)], fill=GREY, width=SCALE)
        text(x, y + 12 * SCALE, str(weight), anchor="ma")

    for noise, flips in curves.items():
        points = [at(*p) for p in zip(WEIGHTS, flips, strict=True)]
        pen.line(points, fill=NOISES[noise], width=3 * SCALE, joint="curve")
        for x, y in points:
            r = 4.5 * SCALE
            pen.ellipse((x - r, y - r, x + r, y + r), fill=NOISES[noise], outline="white", width=SCALE)
    x, y = at(WEIGHTS[-1], curves[next(iter(curves))][0])
    for start in range(LEFT * SCALE, round(x), 12 * SCALE):  # where guidance changes nothing
        pen.line([(start, y), (start + 6 * SCALE, y)], fill=GREY, width=SCALE)

    text(LEFT * SCALE, 18 * SCALE, "Guidance helps as far as the classifier can be trusted", 22, fill=BLACK)
    text(LEFT * SCALE, 49 * SCALE, "Probability that purification flips the label; dashed: without guidance")
    text((LEFT + RIGHT) / 2 * SCALE, (BOTTOM + 48) * SCALE, "guidance weight lambda", 18, "ma", BLACK)
    left = (LEFT + 22) * SCALE
    pen.rectangle((left - 8 * SCALE, (BOTTOM - 148) * SCALE, left + 240 * SCALE, (BOTTOM - 20) * SCALE), fill="white")
    text(left, (BOTTOM - 132) * SCALE, "error of the classifier's boundary", anchor="lm", fill=BLACK)
    for row, noise in enumerate(reversed(curves)):
        y = (BOTTOM - 106 + 24 * row) * SCALE
        pen.line([(left, y), (left + 34 * SCALE, y)], fill=NOISES[noise], width=3 * SCALE)
        text(left + 44 * SCALE, y, f"{noise:.1f}" + ("  (the Bayes classifier)" if noise == 0 else ""), anchor="lm")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
