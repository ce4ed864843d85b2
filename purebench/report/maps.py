"""Where images lie. `regions`: the plane through the clean, the attacked and the purified image, in the classes of the bare classifier, and
the purification's path on it; `tsne`: clean, attacked and purified images embedded by t-SNE (van der Maaten & Hinton 2008). Both after
ADP's Figure 10. Needs the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from scipy import ndimage
from torch import Tensor

from purebench.errors import UserError
from purebench.plan import figures as plan
from purebench.report import drawing
from purebench.report.drawing import COLOURS, INK, Words
from purebench.report.replay import Replay

GRID, FINE = 64, 6  # points of the plane a side that the classifier is asked at; how many are interpolated for each
LEAST = 0.004  # of the plane: a smaller region has no room for its number
BESIDE = 4  # maps beside each other
SAME = 1e-4  # L2: images nearer than that are one, and make no plane
EMBEDDINGS, FEWEST = 2, 4  # rows of a t-SNE, and images
SEED = 0
Ends = tuple[float, float, float, float]  # left, right, bottom, top
MARKS: dict[str, dict[str, Any]] = {
    "clean": {"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 5},
    "attacked": {"marker": "X", "markerfacecolor": INK, "markeredgecolor": "white", "markersize": 6.5},
    "purified": {"marker": "^", "markerfacecolor": INK, "markeredgecolor": "white", "markersize": 6.5},
}
FOOT = (
    " Numbers and shades: the class that the bare classifier gives to the plane through the three images, also where it leaves [0,1];"
    " the path is projected on it. Axes: L2 distance from the clean image."
)
TSNE = (
    " Numbers: labels. Lines: dotted to the attacked image, from there to the purified one."
    " The axes of a t-SNE have no unit, and distances between groups no meaning."
)


@dataclass(frozen=True)
class Plane:
    """The plane through three images: `origin` (D,), the clean one, and two unit vectors `along` the attack and `across` it (D,)."""

    origin: Tensor
    along: Tensor
    across: Tensor

    def at(self, images: Tensor) -> np.ndarray:
        """(B,2): the projections of images (B,...), in L2 distance from the clean one."""
        away = images.flatten(1).double() - self.origin
        return torch.stack([away @ self.along, away @ self.across], dim=1).cpu().numpy()

    def images(self, places: np.ndarray) -> Tensor:
        """(B,D) float32: the points of the plane at these places (B,2)."""
        u, v = torch.from_numpy(places).to(self.origin.device).T
        return (self.origin + u[:, None] * self.along + v[:, None] * self.across).float()


def plane(clean: Tensor, attacked: Tensor, purified: Tensor) -> Plane | None:
    """The plane through three images (C,H,W); None where they lie on a line."""
    origin = clean.flatten().double()
    attack, way = (x.flatten().double() - origin for x in (attacked, purified))
    if attack.norm() < SAME:
        return None
    along = attack / attack.norm()
    rest = way - (way @ along) * along
    return Plane(origin, along, rest / rest.norm()) if rest.norm() >= SAME else None


def regions(words: Words, replays: Mapping[str, Replay], figure: plan.Figure) -> Figure:
    """Maps of the first images, a line of them for each row."""
    count = len(next(iter(replays.values())).lines)
    if count > BESIDE:
        raise UserError(f"a map has room for {BESIDE} images, and these are {count}", f"`images` of 1 to {BESIDE}")
    left, below, above, gap = 0.36, 0.22, 0.17 + 0.12 * (len(replays) > 1), 0.05
    wide = count > 1
    span = ((drawing.PAGE if wide else drawing.COLUMN) - 0.06) / count
    side = span - left - 0.06
    line = above + side + below + gap
    canvas = drawing.canvas(words, height=len(replays) * line, below=0.0, legend=1, page=wide)
    [area] = canvas.axes
    area.set_axis_off()
    width, total = canvas.figure.get_size_inches()
    top = total * area.get_position().y1
    for name, replay in replays.items():
        for i, found in enumerate(_ways(replay)):
            box = ((i * span + left) / width, (top - above - side) / total, side / width, side / total)
            axes = canvas.figure.add_axes(box, label=f"{name} {i}")
            axes.set_title(f"{name}\n{found.title}" if len(replays) > 1 else found.title, size=6.5, loc="left", pad=3)
            _map(axes, replay, found)
        top -= line
    path = Line2D([], [], color=INK, linewidth=0.8, marker=".", markersize=2.5, label="purification, projected")
    dots = [Line2D([], [], linestyle="none", label=name, **look) for name, look in MARKS.items()]
    canvas.legend([*dots, path], 4 if wide else 2)
    return canvas.figure


@dataclass(frozen=True)
class Way:
    """One image: its plane, if there is one, the `states` (n+1,C,H,W) of its purification, and its own three."""

    title: str
    plane: Plane | None
    states: Tensor
    three: Tensor


def _ways(replay: Replay) -> list[Way]:
    at: dict[int, Tensor] = {}
    replay.walk(lambda k, images: at.update({k: images.detach().clone()}))
    states = torch.stack([at[k] for k in sorted(at)], dim=1)
    clean, attacked, purified = replay.clean(), replay.attacked(), replay.purified()
    answers = [replay.answers(attacked), replay.answers(purified)]
    return [
        Way(
            f"a {line['label']}: attacked {answers[0][i]}, purified {answers[1][i]}",
            plane(clean[i], attacked[i], purified[i]) if bool(purified[i].isfinite().all()) else None,
            states[i],
            torch.stack([clean[i], attacked[i], purified[i]]),
        )
        for i, line in enumerate(replay.lines)
    ]


def _map(axes: Axes, replay: Replay, way: Way) -> None:
    """The classes of one plane, and the three images and the path on it."""
    axes.grid(visible=False)
    if way.plane is None:
        axes.set_axis_off()
        axes.text(
            0.5, 0.5, "no plane: the images\nlie on a line", size=drawing.SMALL, ha="center", transform=axes.transAxes
        )
        return
    points, path = way.plane.at(way.three), way.plane.at(way.states)
    everything = np.concatenate([points, path])
    low, high = everything.min(0), everything.max(0)
    centre, half = (low + high) / 2, 0.62 * float((high - low).max())
    ends = (centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half)
    classes = decisions(replay, way.plane, ends, tuple(way.three.shape[1:]))
    _shades(axes, classes, ends, points)
    halo = [Stroke(linewidth=2.2, foreground="white"), Normal()]
    axes.plot(*path.T, color=INK, linewidth=0.8, marker=".", markersize=2.5, path_effects=halo, label="path", zorder=3)
    for (x, y), (name, look) in zip(points, MARKS.items(), strict=True):
        axes.plot([x], [y], linestyle="none", label=name, zorder=4, **look)
    axes.set_xlim(*ends[:2])
    axes.set_ylim(*ends[2:])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))


def decisions(replay: Replay, of: Plane, ends: Ends, shape: tuple[int, ...]) -> np.ndarray:
    """(GRID FINE, GRID FINE): the bare classifier's class at the places of a plane between `ends` (left, right, bottom, top), from below;
    between the points that it was asked at, that of the interpolated logits."""
    u, v = np.meshgrid(np.linspace(ends[0], ends[1], GRID), np.linspace(ends[2], ends[3], GRID))
    images = of.images(np.stack([u.ravel(), v.ravel()], axis=1)).reshape(-1, *shape)
    with torch.no_grad():
        logits = torch.cat([replay.defense.classifier(some) for some in images.split(replay.defense.rows)])
    field = logits.T.reshape(1, -1, GRID, GRID)
    fine = torch.nn.functional.interpolate(field, size=GRID * FINE, mode="bilinear", align_corners=True)
    return fine[0].argmax(0).cpu().numpy()


def _shades(axes: Axes, classes: np.ndarray, ends: Ends, points: np.ndarray) -> None:
    """The regions in light colours with their outlines, and in each the number of its class, away from the images."""
    picture = np.ones((*classes.shape, 3))
    n = classes.shape[0]
    x, y = np.linspace(ends[0], ends[1], n), np.linspace(ends[2], ends[3], n)
    far = np.full(classes.shape, np.inf)
    for px, py in points:
        far = np.minimum(far, np.hypot(x[None, :] - px, y[:, None] - py) * n / (ends[1] - ends[0]))
    for found in np.unique(classes):
        mask = classes == found
        picture[mask] = _light(COLOURS[int(found) % len(COLOURS)])
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=drawing.GREY, linewidths=0.6)
        if mask.mean() < LEAST:
            continue
        # The edge of the picture is an outline, too.
        inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(np.minimum(inside, far / 2).argmax(), mask.shape)
        axes.text(
            float(x[column]),
            float(y[row]),
            str(found),
            size=7,
            weight="bold",
            color=INK,
            ha="center",
            va="center",
            zorder=2,
        )
    axes.imshow(picture, extent=ends, origin="lower", interpolation="nearest", aspect="auto", zorder=0)


def _light(colour: str) -> np.ndarray:
    """A colour of which there is a quarter in white."""
    return 1 - 0.25 * (1 - np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]))


# ---- t-SNE ---------------------------------------------------------------------------------------


def embedded(points: Tensor) -> np.ndarray:
    """(N,2): the t-SNE of points (N,...), exact, from their principal components. The same points give the same places on one machine; the
    last bits of another's may lead elsewhere."""
    # Imported here: it takes a second.
    from sklearn.manifold import TSNE as Embedding
    from threadpoolctl import threadpool_limits

    flat = points.flatten(1).double().cpu().numpy()
    perplexity = min(30.0, (len(flat) - 1) / 3)
    with threadpool_limits(1):
        found = Embedding(perplexity=perplexity, init="pca", method="exact", random_state=SEED, max_iter=500)
        return np.asarray(found.fit_transform(flat))


def tsne(words: Words, replays: Mapping[str, Replay], figure: plan.Figure) -> Figure:
    """Clean, attacked and purified images, embedded by their pixels and by the classifier's logits, for each row."""
    count = len(next(iter(replays.values())).lines)
    if len(replays) > EMBEDDINGS:
        raise UserError(
            f"a t-SNE has room for {EMBEDDINGS} rows, and these are {len(replays)}", "choose some: `--only WORD`"
        )
    if count < FEWEST:
        raise UserError(f"{count} images are too few for a t-SNE: {FEWEST} at least", "run it on more (`--images`)")
    canvas = drawing.canvas(
        words, axes=2 * len(replays), left=0.08, below=0.06, legend=1, titled=True, height=2.6 / len(replays)
    )
    looks = [
        {"color": COLOURS[k], "marker": look["marker"], "markersize": 4, "linestyle": "none", "label": name}
        for k, (name, look) in enumerate(MARKS.items())
    ]
    for i, (name, replay) in enumerate(replays.items()):
        images = torch.cat([replay.clean(), replay.attacked(), replay.purified()])
        if not bool(images.isfinite().all()):
            raise UserError(
                f"a purification of `{name}` is not finite: it has no place", "choose other rows: `--only WORD`"
            )
        with torch.no_grad():
            logits = torch.cat([replay.defense.classifier(some) for some in images.split(replay.defense.rows)])
        for axes, what, points in zip(canvas.axes[2 * i :], ("images", "logits"), (images, logits), strict=False):
            axes.set_title(f"{name}: {what}" if len(replays) > 1 else what, size=7, loc="left")
            _cloud(axes, embedded(points).reshape(3, count, 2), looks, [line["label"] for line in replay.lines])
    canvas.legend([Line2D([], [], **look) for look in looks], 3)
    return canvas.figure


def _cloud(axes: Axes, places: np.ndarray, looks: list[dict[str, Any]], labels: list[int]) -> None:
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for k, dash in enumerate((":", "-")):
        for start, end in zip(places[k], places[k + 1], strict=True):
            axes.plot(*zip(start, end, strict=True), dash, color=drawing.GREY, linewidth=0.5, zorder=1)
    for points, look in zip(places, looks, strict=True):
        axes.plot(*points.T, zorder=3, **drawing.EDGE, **look)
    for (x, y), label in zip(places[0], labels, strict=True):
        axes.annotate(str(label), (x, y), (3, 1), textcoords="offset points", size=drawing.SMALL, color=INK)
