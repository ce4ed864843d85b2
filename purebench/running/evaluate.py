"""One batch of one cell: attack the images, then judge what came back. The attack computes; the judge is ours.

The judge verifies the threat model, then purifies the frozen images K times with draws that no attacker saw. Its draws belong to
(seed, image, draw) alone, common to the clean image, the null control and every attack, so differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from purebench import datasets, purifiers, registry
from purebench.datasets.images import Images
from purebench.engine.chain import Purifier
from purebench.engine.defense import Defense, predicted
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.plan import resolved as components
from purebench.purifiers.resized import Resized, resize
from purebench.records import store as records
from purebench.running.tasks import Done, Task
from purebench.spec import Cell, Part, Resolved, norms

# Where the clean prediction is another cell's, which alone knows the step:
NOT_FINITE = "the purification of the clean image gave values that are not finite"


@cache
def dataset(of: Resolved) -> Images:
    """The images of a cell's dataset; shared between the cells of a process."""
    return components.of("dataset", Part(of.name, tuple({**of.values, **of.where}.items()))).images


@cache
def _order(size: int, subset: str) -> list[int]:
    return datasets.order(size, subset)


def shape(cell: Cell) -> list[int]:
    """[C,H,W] of the cell's images."""
    return dataset(cell.dataset).shape


@cache
def _network(of: Resolved, device: torch.device) -> Any:
    made = components.load(of.kind, of.name, of.arguments).to(device)
    return watch(made) if of.kind == "classifier" else made


def _fingerprint(cell: Cell, device: torch.device) -> list[Any]:
    """What an attack must leave alone of the cell's networks: how often each weight was written to, and every module's hooks and mode."""
    made = [_network(of, device) for of in (cell.classifier, *cell.scores)]
    modules = [m for m in (getattr(one, "network", one) for one in made) if isinstance(m, torch.nn.Module)]
    weights = [(id(p), p._version, p.requires_grad) for m in modules for p in m.parameters()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return weights + [(part.training, *(len(getattr(part, h)) for h in hooks)) for m in modules for part in m.modules()]


def forget() -> None:
    """Drops the networks of this process."""
    _network.cache_clear()


def build_defense(
    cell: Cell,
    device: torch.device,
    *,
    rows: int,
    memory: int | None = None,
    on_work: Callable[[int], None] | None = None,
) -> Defense:
    """The cell's defense with its gradient, on a device; networks are shared between the cells of a process."""
    classifier = _network(cell.classifier, device)
    scores = [_network(model, device) for model in cell.scores]
    score = scores if scores[1:] else next(iter(scores), None)
    height, width = shape(cell)[1:]
    outer = (height, width)
    inner: tuple[int, int] = tuple(scores[0].size[1:]) if scores else outer

    def guide(x: Tensor) -> Tensor:
        return classifier(resize(x, outer))

    def make(purifier: Resolved) -> Purifier:
        seen = classifier if inner == outer else guide
        made = purifiers.make(purifier.name, score=score, classifier=seen, **purifier.arguments)
        return made if inner == outer or isinstance(made, Identity) else Resized(made, outer, inner)

    made = Defense(
        make(cell.defense), classifier, **registry.options(cell.defense.options), gradient=cell.gradient.part,
        surrogate=make(cell.surrogate) if cell.surrogate else None, rows=rows, memory=memory, on_work=on_work,
    )  # fmt: skip
    made.score = next(iter(scores), None)
    return made


def execute(
    task: Task,
    device: torch.device,
    *,
    rows: int,
    memory: int | None = None,
    on_work: Callable[[int], None] | None = None,
) -> Done:
    """Attacks and judges one batch. Raises what the attack raises; an image outside the threat model is an error of the attack."""
    images = dataset(task.cell.dataset)
    order = _order(len(images), task.cell.subset)
    index = torch.tensor([order[p] for p in task.positions])
    x, y = (part.to(device) for part in images.take(index.tolist()))

    def build() -> Defense:
        return build_defense(task.cell, device, rows=rows, memory=memory, on_work=on_work)

    began, attacked, spent = time.perf_counter(), None, (0, 0, 0)
    if not task.judge:
        attacker = build()
        attacked = _attack(task, attacker, x, y, index)
        spent = attacker.spent.close()
    attack_seconds = time.perf_counter() - began
    frozen = attacked.rows if attacked else [task.stored[p] for p in task.positions]
    # Made anew: whatever an attack did to the defense that it was given, the judge asks the cell's own.
    judge = build()
    judged = _judge(task, judge, x, frozen, index)
    cost = {
        "positions": list(task.positions), "seconds": round(time.perf_counter() - began, 4), "attack_seconds": round(attack_seconds, 4),
        "forward": spent[0], "backward": spent[1], "recomputed": spent[2], "judge_forward": judge.spent.close()[0], "rows": rows,
    }  # fmt: skip
    share = [spent[0] // len(x), spent[1] // len(x)]
    lines = [
        _record(task, attacked, judged, i, int(index[i]), int(y[i]), share)
        if attacked
        else _with_more_draws(task, judged, i)
        for i in range(len(x))
    ]
    return Done(lines, frozen, cost)


# ------------------------------------------------------------------------------------------------------------------ attack

# Keys of a line that no attack may write; `nfe`, `stopped`, `not_finite` and its own words it may.
RESERVED = {
    "position", "index", "label", "undefended", "clean", "adversarial", "verdict", "linf", "l2", "batch", "gradients", "notes", "failed",
}  # fmt: skip


@dataclass(frozen=True)
class _Attacked:
    """Adversarial images as they are stored, and what is known of each: lists in the order of the task's positions."""

    rows: list[bytes]
    verdict: list[bool | None]
    linf: list[float]
    l2: list[float]
    lost: list[str | None]  # why the attack made no image
    gradients: list[dict[str, int] | None]
    stopped: list[int | None]
    not_finite: list[str | None]
    nfe: list[Any] | None  # (forward, backward); None where all images cost the same
    words: dict[str, list[Any]]  # of the attack's own


def _freeze(images: Tensor) -> list[bytes]:
    return [image.cpu().numpy().astype("<f4").tobytes() for image in images]


def _thaw(rows: list[bytes], like: Tensor) -> Tensor:
    """The stored images as they will be read, like the images `like` (B,C,H,W)."""
    images = [torch.frombuffer(bytearray(row), dtype=torch.float32).view(like.shape[1:]) for row in rows]
    return torch.stack(images).to(like)


def _attack(task: Task, defense: Defense, x: Tensor, y: Tensor, index: Tensor) -> _Attacked:
    """What the cell's attack makes of x (B,C,H,W) with labels y; index: the images' ids. Where it made nothing, the clean image is stored
    and never judged."""
    cell, ids, n = task.cell, index.tolist(), len(x)

    def stored(_ids: Tensor) -> Tensor:
        nothing = np.full(tuple(x.shape[1:]), np.nan, dtype="<f4").tobytes()  # where the source made no image
        return _thaw([task.stored.get(p, nothing) for p in task.positions], x)

    source = [stored] if cell.source else []
    attack = registry.factory("attack", cell.attack.name)(*source, **cell.attack.arguments)
    path = (cell.attack.name, task.positions[0]) if task.batch else (cell.attack.name,)
    noise = Noise(cell.seed, "attack", path, index, torch.zeros_like(index))
    before = _fingerprint(cell, x.device)
    # Of copies: an attack that writes into what it is given must not move its ball, the centre of it, or the labels.
    attacked = attack(defense, x.clone(), y.clone(), replace(cell.threat), noise)
    if _fingerprint(cell, x.device) != before:
        forget()  # the networks are shared with the cells to come
        raise RuntimeError(f"`{cell.attack}` changed a network: its weights, its hooks or its mode")
    x_adv, log = attacked.x_adv.detach(), dict(attacked.log)
    if taken := RESERVED & log.keys():
        raise RuntimeError(f"`{cell.attack}` logs {', '.join(sorted(taken))}, which the harness records itself")

    finite = x_adv.isfinite().flatten(1).all(1)
    x_adv = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
    broken = ~cell.threat.holds(x_adv, x)
    if broken.any():
        place = task.positions[int(broken.nonzero()[0])]
        raise RuntimeError(
            f"{int(broken.sum())} images of `{cell.attack}` are outside {cell.threat} or [0,1], first position {place}"
        )
    why = records.NO_SOURCE if cell.source else f"{records.LOST}it returned values that are not finite"
    distance = norms(x_adv, x)
    return _Attacked(
        rows=_freeze(x_adv),
        verdict=[None] * n if attacked.verdict is None else [bool(v) for v in attacked.verdict.tolist()],
        linf=distance["Linf"].tolist(),
        l2=distance["L2"].tolist(),
        lost=[None if ok else why for ok in finite.tolist()],
        gradients=defense.observed.close(ids),
        stopped=log.pop("stopped", [None] * n),
        not_finite=log.pop("not_finite", [defense.not_finite.get(i) for i in ids]),
        nfe=log.pop("nfe", None),
        words=log,
    )


# ------------------------------------------------------------------------------------------------------------------- judge


@dataclass(frozen=True)
class _Judged:
    """Per image: classes given to the clean image from draw 0 on, to the attacked one from the first new draw on, and to the clean one
    by the bare classifier; where a purification was not finite; and what a table must warn of (`metrics.NOTES`)."""

    clean: list[list[int]]
    adversarial: list[list[int]]
    undefended: list[int]
    not_finite: list[dict[str, str]]
    notes: list[list[str]]


def _judge(task: Task, defense: Defense, x: Tensor, rows: list[bytes], index: Tensor) -> _Judged:
    """Purifies and classifies the clean images x and the stored ones. Clean predictions that another attack's cell has made are taken from
    it; the stored images are read back and judged draw by draw, also those of the null control, which therefore controls both."""
    cell, ids = task.cell, index.tolist()
    judge = Noise(cell.seed, "judge", (), index, torch.zeros_like(index))
    where: list[dict[str, str]] = [{} for _ in ids]

    def blamed(what: str) -> None:
        for place, i in zip(where, ids, strict=True):
            if i in defense.not_finite:
                place[what] = defense.not_finite[i]
        defense.not_finite.clear()

    known = [task.clean.get(p, [])[: task.evals] for p in task.positions]
    start = min(len(c) for c in known)
    clean = [c[:start] for c in known]
    if start < task.evals:
        new = predicted(defense.draws(x, judge, start, task.evals)).tolist()
        clean = [c + n for c, n in zip(clean, new, strict=True)]
        blamed("clean")
    for place, predictions in zip(where, clean, strict=True):
        if -1 in predictions:  # where these are another cell's, it alone knows the step
            place.setdefault("clean", NOT_FINITE)

    before = min(len(task.known[p]["adversarial"]) for p in task.positions) if task.judge else 0
    x_adv = _thaw(rows, x)
    logits = defense.draws(x_adv, judge, before, task.evals)
    blamed("adversarial")
    bare = defense.undefended().draws(x, judge, 0, 1)[:, 0]
    defense.not_finite.clear()  # a bare classifier that fails is told by its prediction, -1
    notes: list[list[str]] = [[] for _ in ids]
    # Of a random defense once, since it costs a purification; of one that couples a batch never, since it depends on the mates.
    if not _coupled(cell) and (not _random(cell) or 0 in task.positions):
        defense.on_work = None  # no part of the work that was announced
        again = defense.draws(x_adv, judge, before, before + 1)
        same = torch.cat([logits[:, :1] if _random(cell) else logits, again], 1)
        for note, differs in zip(notes, _differ(same), strict=True):
            note += ["random"] * differs
    for note, sums in zip(notes, _probabilities(bare), strict=True):
        note += ["probabilities"] * sums
    return _Judged(clean, predicted(logits).tolist(), predicted(bare).tolist(), where, notes)


def _random(cell: Cell) -> bool:
    """Whether two purifications of an image may differ, as the defense says."""
    return bool(cell.defense.info.get("random", True) and registry.options(cell.defense.options)["noise"])


def _coupled(cell: Cell) -> bool:
    """Whether an image depends on its batch mates, as the defense says."""
    return any(cell.defense.values.get(key) == value for key, value in cell.defense.info.get("couples", {}).items())


def _differ(logits: Tensor) -> list[bool]:
    """Whether the draws (B,K,classes) of an image differ by more than rounding: a thousandth of its largest logit."""
    spread = (logits.amax(1) - logits.amin(1)).amax(1)
    return (spread > 1e-3 * logits.abs().amax((1, 2))).tolist()


def _probabilities(logits: Tensor) -> list[bool]:
    """Whether the outputs (B,classes) for an image are none of them negative and sum to 1: a softmax too many, under which cross-entropy
    has next to no gradient."""
    return ((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)).tolist()


# ------------------------------------------------------------------------------------------------------------------ records


def _record(
    task: Task, attacked: _Attacked, judged: _Judged, i: int, index: int, label: int, share: list[int]
) -> dict[str, Any]:
    """The line of the i-th image; its keys are listed in docs/design.md. share: network calls of the attack per image."""
    why = attacked.not_finite[i]
    optional = {
        "gradients": attacked.gradients[i],
        "stopped": attacked.stopped[i],
        "not_finite": judged.not_finite[i] | ({"attack": why} if why else {}),
        "notes": judged.notes[i],
        "failed": attacked.lost[i],
    }
    return (
        {
            "position": task.positions[i],
            "index": index,
            "label": label,
            "undefended": judged.undefended[i],
            "clean": judged.clean[i],
            "adversarial": [] if attacked.lost[i] else judged.adversarial[i],
            "verdict": attacked.verdict[i],
            "linf": attacked.linf[i],
            "l2": attacked.l2[i],
            "nfe": list(attacked.nfe[i]) if attacked.nfe else share,
        }
        | ({"batch": list(task.batch)} if task.batch else {})
        | {word: values[i] for word, values in attacked.words.items()}
        | {key: value for key, value in optional.items() if value not in (None, {}, [])}
    )


def _with_more_draws(task: Task, judged: _Judged, i: int) -> dict[str, Any]:
    """The line of the i-th image with the draws that it lacked."""
    old = {k: v for k, v in task.known[task.positions[i]].items() if k != "crc"}
    if why := old.pop("failed", None):  # of an older version, which left such images out of all means
        old["not_finite"] = {"adversarial": why}
    before = task.evals - len(judged.adversarial[i])
    record = old | {"clean": judged.clean[i], "adversarial": old["adversarial"][:before] + judged.adversarial[i]}
    not_finite = judged.not_finite[i] | old.get("not_finite", {})
    notes = sorted({*judged.notes[i], *old.get("notes", [])})
    return record | ({"not_finite": not_finite} if not_finite else {}) | ({"notes": notes} if notes else {})


def probe(shape: list[int], rows: int, device: torch.device) -> Tensor:
    """Grey images: (rows,C,H,W)."""
    return torch.full((rows, *shape), 0.5, device=device)
