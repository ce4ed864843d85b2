"""What COUP says without images (Zhang et al. 2024), on the toy of `toy`: the paths of its Figures 1 and 3a, and its two propositions,
that guidance makes label flips no likelier and that the distance to the clean image grows with the purification time; and, after its
appendix B, how much the vote of one purification varies where images are rare.

Each figure is a function that computes, whose numbers a test reads, and one that draws. Images start where they are put, on the [-1,1]
scale; the classifier is Bayes-optimal. With and without guidance the same noise is drawn: differences are paired. The vote's variance draws
nothing: a purification of one pixel is a Markov chain with normal steps, whose end is integrated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from purebench.engine import chain
from purebench.engine.noise import Noise
from purebench.purifiers import make
from purebench.purifiers.coup import coup
from purebench.report import drawing
from purebench.report.drawing import COLOURS, DASHES, MARKERS, Words
from purebench.report.toy import MEAN, PUSH, STD, STEPS, Logistic, TwoGaussians

WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)  # of guidance
TIME = 0.1  # t* where it is not varied: COUP's
STARTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)  # distances of an image from the boundary
TIMES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
PATHS, RUNS = 30, 2000
EDGE, NODES = 2.0, 600  # the line that is integrated over, and its pieces: the boundary lies between two; right to 4e-4
TOY = "Toy data: two Gaussians on a line, exact score, Bayes-optimal classifier."


def purified(x: Tensor, guidance: float, t: float, seed: int, *, states: list[Tensor] | None = None) -> Tensor:
    """COUP of images x (B,1,1,1) on the [-1,1] scale; `states` takes the state before every step, and the last."""
    purifier = make("coup", score=TwoGaussians(), classifier=Logistic(0.0), t=t, steps=STEPS, guidance=guidance)
    rows = Noise(seed, "toy", (), range(len(x)), [0] * len(x))

    def keep(_: int, state: Tensor) -> None:
        if states is not None:
            states.append(state.clone())

    return 2 * chain.run(purifier, (x + 1) / 2, rows.fork("purify", 0), on_state=keep) - 1


def paths(guidance: float, start: float, n: int, seed: int) -> Tensor:
    """(n, STEPS + 1): the states of n purifications of one image of the upper class, `start` above the boundary."""
    states: list[Tensor] = []
    last = purified(torch.full((n, 1, 1, 1), start, dtype=torch.float64), guidance, TIME, seed, states=states)
    found = torch.stack([state.flatten() for state in states], dim=1)[:, :STEPS]
    return torch.cat([found, last.flatten()[:, None]], dim=1)


def flips(guidance: float, start: float, n: int, seed: int) -> float:
    """Share of n purifications of an image `start` above the boundary that end below it."""
    return (paths(guidance, start, n, seed)[:, -1] < 0).double().mean().item()


def distance(guidance: float, t: float, n: int, seed: int) -> float:
    """Mean distance, on the [-1,1] scale, between n purified images and what they were before they were pushed towards the boundary."""
    rows = Noise(seed, "toy", (), range(n), [0] * n)
    side = (2.0 * (torch.arange(n) % 2) - 1)[:, None, None, None].double()
    clean = side * MEAN + STD * rows.normal(0, side)
    return (purified(clean - side * PUSH, guidance, t, seed) - clean).abs().mean().item()


def flip_chance(guidance: float) -> tuple[Tensor, Tensor]:
    """(NODES,) each: images x on the [-1,1] scale, and the probability that a purification of x ends below the boundary. Not drawn but
    integrated, backwards from the end: P_k(x) = int N(y; m_k(x), s_k^2) P_k+1(y) dy, by the midpoint rule. Nothing is random."""
    purifier = coup(TwoGaussians(), Logistic(0.0), t=TIME, steps=STEPS, guidance=guidance)
    # Midpoints: P jumps at the boundary, where the guidance turns round.
    x = EDGE * ((2 * torch.arange(NODES, dtype=torch.float64) + 1) / NODES - 1)
    images = x[:, None, None, None]
    silent = Noise(0, "toy", (), range(NODES), [0] * NODES).scaled(0.0)
    chance = (x < 0).double()
    for k in reversed(range(STEPS)):
        mean = purifier.step(k, images, silent).flatten()
        std = math.sqrt(purifier.times[k + 1] - purifier.times[k]) * purifier.diffusion(purifier.times[k])
        if k == STEPS - 1:
            # The vote jumps at the boundary: its integral is known.
            chance = torch.special.ndtr(-mean / std)
        else:
            weight = torch.exp(-(((x - mean[:, None]) / std) ** 2) / 2)
            # What leaves the line is as good as none, and would else be missing.
            chance = (weight @ chance) / weight.sum(1)
    return x, chance


def density(x: Tensor) -> Tensor:
    """p(x) of the toy's images, on the [-1,1] scale."""
    bells = [torch.exp(-(((x - mean) / STD) ** 2) / 2) for mean in (-MEAN, MEAN)]
    return (bells[0] + bells[1]) / (2 * STD * math.sqrt(2 * math.pi))


# ---- drawing -------------------------------------------------------------------------------------


def draw_paths(seed: int = 0, weight: float = 4.0, start: float = 0.1) -> Figure:
    """Figures 1 and 3a: a sample near the boundary, purified without and with guidance; what crosses it is dashed."""
    note = f"{PATHS} purifications of one image of the upper class, from {start}, under the same noise; dashed: label flipped."
    share = {guidance: flips(guidance, start, RUNS, seed) for guidance in (0.0, weight)}
    note += f" Of {RUNS}, {share[0.0]:.1%} flip without guidance, {share[weight]:.1%} with it."
    title = "A sample near the boundary, purified without and with guidance"
    canvas = drawing.canvas(Words(title, [TOY], [note.replace("%", " %")]), axes=2, left=0.5, titled=True)
    times = torch.linspace(TIME, 0, STEPS + 1).tolist()
    for axes, guidance in zip(canvas.axes, share, strict=True):
        axes.set_title(f"guidance λ = {guidance:g}" if guidance else "without guidance", size=7, loc="left")
        axes.grid(visible=False)
        for mean in (-MEAN, MEAN):
            axes.axhspan(mean - STD, mean + STD, color=drawing.LIGHT, alpha=0.6, linewidth=0)
        axes.axhline(0, color=drawing.INK, linewidth=0.7)
        for way in paths(guidance, start, PATHS, seed).tolist():
            flipped = way[-1] < 0
            axes.plot(
                times, way, color=COLOURS[1] if flipped else COLOURS[0], linestyle=(0, (4, 1.5)) if flipped else "-", linewidth=0.7,
                alpha=0.9 if flipped else 0.6,
            )  # fmt: skip
        axes.set_xlim(TIME, 0)
        axes.set_ylim(-0.75, 0.75)
        axes.set_xlabel("time t, from t* to 0")
        axes.set_ylabel("image")
        axes.text(0.001, 0.02, "boundary", size=drawing.SMALL, color=drawing.GREY, ha="right", va="bottom")
    return canvas.figure


def draw_flips(seed: int = 0) -> Figure:
    """Proposition 1: the probability of a label flip against the distance from the boundary, a line for each guidance weight."""
    found = {weight: [100 * flips(weight, start, RUNS, seed) for start in STARTS] for weight in WEIGHTS}
    words = Words(
        "Label flips and guidance",
        [f"Proposition 1. {TOY}"],
        [f"{RUNS} purifications of each, the same noise for all."],
    )
    return _lines(
        words, STARTS, found, "distance of the image from the boundary", "label flips (%)", "guidance λ = {:g}"
    )


def draw_distance(seed: int = 0) -> Figure:
    """Proposition 2: the distance to the clean image against the purification time, without and with guidance."""
    found = {weight: [distance(weight, t, RUNS, seed) for t in TIMES] for weight in WEIGHTS[::2]}
    note = (
        f"{RUNS} images of both classes, pushed by {PUSH} towards the boundary; {STEPS} steps; the same noise for all."
    )
    words = Words("Distance to the clean image against t*", [f"Proposition 2. {TOY}"], [note])
    return _lines(words, TIMES, found, "purification time t*", "mean distance to the clean image", "guidance λ = {:g}")


def draw_variance() -> Figure:
    """Appendix B: the variance of the vote of one purification, p (1 - p), against the density of the image, from the boundary, where
    images are rarest, to the mean of a class."""
    images, _ = flip_chance(0.0)
    # Beyond the mean images are rare again, and far from any boundary.
    shown = (images > 0) & (images <= MEAN)
    chances = {weight: flip_chance(weight)[1][shown] for weight in WEIGHTS}
    found = {weight: (p * (1 - p)).tolist() for weight, p in chances.items()}
    x = density(images[shown]).tolist()
    note = "From the boundary, left, to the mean of a class; p: the chance of a label flip, integrated, not drawn. "
    note += f"Next to the boundary, where its gradient is largest, one of {STEPS} steps of guidance leaps away from it."
    words = Words("Variance of the vote where images are rare", [f"Appendix B. {TOY}"], [note])
    return _lines(
        words,
        x,
        found,
        "density p(x) of the image",
        "variance of the vote, p (1 − p)",
        "guidance λ = {:g}",
        xscale="log",
        every=12,
    )


def _lines(
    words: Words,
    x: Sequence[float],
    found: dict[float, list[float]],
    xlabel: str,
    ylabel: str,
    label: str,
    xscale: str = "linear",
    every: int = 1,
) -> Figure:
    """One line for each key of `found`, named by it, with a marker at every so many of its points."""
    looks = [
        {
            "color": colour,
            "marker": marker,
            "linestyle": dash,
            "label": label.format(key),
            "markevery": every,
            **drawing.EDGE,
        }
        for key, colour, marker, dash in zip(found, COLOURS, MARKERS, DASHES, strict=False)
    ]
    columns = drawing.legend_columns([str(look["label"]) for look in looks], drawing.COLUMN)
    canvas = drawing.canvas(words, left=0.5, legend=-(-len(looks) // columns))
    [axes] = canvas.axes
    for look, y in zip(looks, found.values(), strict=True):
        axes.plot(x, y, clip_on=False, zorder=3, **look)
    axes.set_ylim(bottom=0)
    axes.set_xscale(xscale)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    canvas.legend([Line2D([], [], **look) for look in looks], columns)
    return canvas.figure


FIGURES = {
    "coup-paths": draw_paths,
    "coup-flips": draw_flips,
    "coup-distance": draw_distance,
    "coup-variance": draw_variance,
}
