"""One batch of one cell: attack the images, then judge what came back. The attack computes; the judge is ours.

The judge verifies the threat model, then purifies the frozen images K times with draws that no attacker saw. Its draws belong to
(seed, image, draw) alone, common to the clean image, the null control and every attack, so differences are paired.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from purebench import datasets, purifiers, registry
from purebench.attacks import Attack, Attacked
from purebench.classifiers.foreign import Foreign, as_classifier
from purebench.datasets.images import Images
from purebench.engine import flows, held
from purebench.engine import precision as lowering
from purebench.engine.chain import Purifier
from purebench.engine.defense import Defense, predicted
from purebench.engine.draws import Draws
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.engine.sizes import resize
from purebench.errors import UserError
from purebench.plan import resolved as components
from purebench.purifiers.plain import Plain
from purebench.purifiers.resized import Resized
from purebench.records import store as records
from purebench.records.store import Record
from purebench.running import watched
from purebench.running.proof import ROWS, Proof, prove, prove_classifier
from purebench.running.tasks import Done, Task
from purebench.scores.views import Score
from purebench.spec import STADV, Cell, Part, Resolved, norms


class Broken(RuntimeError):
    """An attack broke a rule: what it gave has no number."""


# Said where the clean prediction is taken from another cell, which alone knows the step.
NOT_FINITE = "the purification of the clean image gave values that are not finite"


@lru_cache(maxsize=2)  # 75 slices of CIFAR-10-C are 2.3 GB: a table of all goes through them one after the other
def dataset(part: Resolved) -> Images:
    """The images of a cell's dataset; shared between the cells of a process."""
    unchanged(part)
    return components.load(part.kind, part.key, part.arguments)


@cache
def _order(size: int, subset: str) -> list[int]:
    return datasets.order(size, subset)


def shape(cell: Cell) -> list[int]:
    """[C,H,W] of the cell's images; of a dataset that is known by its name without reading one."""
    part = cell.dataset
    # A factory may take long, and a folder has thousands of files: these are asked once.
    if part.code or not all(part.info["shape"]):
        return dataset(part).shape
    return components.of("dataset", Part(part.key, tuple({**part.values, **part.where}.items()))).shape


@cache
def _network(part: Resolved, device: torch.device, precision: str = "fp32") -> Any:
    unchanged(part)
    network = components.load(part.kind, part.key, part.arguments).to(device)
    if not registry.is_ours(part.kind, part.key):
        held.settle(network, device, keeps_its_mode(part))
    if precision != "fp32":
        if not isinstance(getattr(network, "network", None), torch.nn.Module):
            raise UserError(f"`{part}` has no network whose precision could be lowered", "use `--precision fp32`")
        lowering.lower(network.network, precision, device)
    # A score model watches its network itself: twice watched would be counted twice.
    return watch(network) if part.kind == "classifier" else network


def unchanged(part: Resolved) -> None:
    """Raises UserError where a foreign component's code is no longer that which was planned: one cell has one code."""
    if part.code and registry.code(part.kind, part.key) != part.code:
        raise UserError(
            f"the code of `{part}` was changed after this run began",
            "the same command again makes cells of what it is now; what was computed is kept",
        )


def classifier(cell: Cell, device: torch.device) -> Any:
    """The cell's classifier on a device. Raises UserError where a foreign one gives no logits of the data set's classes."""
    if registry.is_ours("classifier", cell.classifier.key):
        return _network(cell.classifier, device)
    return _foreign(cell.classifier, cell.dataset, device)


@cache
def _foreign(part: Resolved, of: Resolved, device: torch.device) -> Any:
    unchanged(part)
    asked = components.of("dataset", Part(of.key, tuple({**of.values, **of.where}.items())))
    # A foreign one was read before: its factory may take long, and is asked once.
    size = dataset(of).shape if of.code else asked.shape
    classes = int(of.info.get("classes") or 0) if of.code else asked.classes
    made = components.load("classifier", part.key, part.arguments)
    return watch(as_classifier(made, classes, size, name=str(part), own_mode=keeps_its_mode(part), device=device))


def keeps_its_mode(part: Resolved) -> bool:
    """Whether a foreign component's networks stay in the mode that they were made in: a dropout may be the defense."""
    return part.info.get("mode") == "own"


def _fingerprint(cell: Cell, device: torch.device) -> list[Any]:
    """What an attack must leave alone of the cell's networks: how often each weight was written to, and every module's hooks and mode."""
    networks = [classifier(cell, device), *_scores(cell, device, False), *_scores(cell, device, True)]
    roots = [getattr(network, "network", network) for network in networks]
    modules = [root for root in roots if isinstance(root, torch.nn.Module)]
    # Autograd's own counter of writes, not the values: to hash a large network after every batch would cost too much.
    weights = [(id(p), p._version, p.requires_grad) for module in modules for p in module.parameters()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    states = [(m.training, *(len(getattr(m, hook)) for hook in hooks)) for module in modules for m in module.modules()]
    return weights + states


def forget() -> None:
    """Drops the networks of this process."""
    _network.cache_clear()
    _foreign.cache_clear()
    _proofs.clear()


def score_argument(models: Sequence[Score]) -> Score | Sequence[Score] | None:
    """What a purifier takes as its `score`: none, one model, or several in rotation."""
    return models if len(models) > 1 else next(iter(models), None)


def _scores(cell: Cell, device: torch.device, judging: bool) -> list[Any]:
    """The cell's score models, in the precision of the judge or of the attack."""
    key = "judge" if judging else "precision"
    # At the default the call of always, so that one network serves all cells that share it.
    found = [(model, str(model.options.get(key, "fp32"))) for model in cell.scores]
    return [_network(model, device, *([] if word == "fp32" else [word])) for model, word in found]


def build_defense(
    cell: Cell,
    device: torch.device,
    *,
    rows: int,
    memory: int | None = None,
    on_work: Callable[[int], None] | None = None,
    judging: bool = False,
) -> Defense:
    """The cell's defense with its gradient, on a device; networks are shared between the cells of a process. judging: with the score
    models in the judge's precision, not in the attack's."""
    if device.type == "cuda":
        # A backward that was broken off, for want of memory, may have left it on.
        lowering.allow(False)
    scores = _scores(cell, device, judging)
    return assembled(cell, classifier(cell, device), scores, device, rows=rows, memory=memory, on_work=on_work)


def assembled(
    cell: Cell,
    answering: Any,
    scores: Sequence[Any],
    device: torch.device,
    *,
    rows: int,
    memory: int | None = None,
    on_work: Callable[[int], None] | None = None,
) -> Defense:
    """The same of networks that are given: the classifier `answering`, and the score models."""
    height, width = shape(cell)[1:]
    outer = (height, width)
    inner = scores[0].size[1:] if scores else outer

    def guide(x: Tensor) -> Tensor:
        return answering(resize(x, outer))

    def make(part: Resolved) -> Purifier:
        # Guidance sees the images of the chain, at the score model's size, and the classifier knows its own size alone.
        inside = answering if inner == outer else guide
        unchanged(part)
        purifier = purifiers.make(part.key, score=score_argument(scores), classifier=inside, **part.arguments)
        if not registry.is_ours("defense", part.key):
            held.settle(getattr(purifier, "call", purifier), device, keeps_its_mode(part), but=[*scores, answering])
        # A bare classifier is not resized there and back: that would be a defense. A plain function sees the images as they are.
        as_it_is = inner == outer or isinstance(purifier, Identity | Plain)
        return purifier if as_it_is else Resized(purifier, outer, inner)

    defense = Defense(
        make(cell.defense), answering, **registry.options(cell.defense.options), gradient=cell.gradient.part,
        surrogate=make(cell.surrogate) if cell.surrogate else None, rows=rows, memory=memory, on_work=on_work,
    )  # fmt: skip
    defense.score = next(iter(scores), None)
    return defense


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
    build = partial(build_defense, task.cell, device, rows=rows, memory=memory, on_work=on_work)
    began = time.perf_counter()
    attacked = None if task.judge else _attack(task, build(), x, y, index)
    attack_seconds = time.perf_counter() - began
    forward, backward, recomputed = attacked.spent if attacked else (0, 0, 0)
    frozen = attacked.rows if attacked else [task.stored[p] for p in task.positions]
    # Made anew: whatever an attack did to the defense that it was given, the judge asks the cell's own.
    judge = build(judging=True)
    tried = _proof(task.cell, device, judge)
    judged = _judge(task, judge, x, frozen, index, tried)
    judge_forward = judge.spent.close()[0]
    seen = [{}] * len(x) if task.judge else _watched(task, judge, x, frozen, index)
    cost = {
        "positions": list(task.positions), "seconds": round(time.perf_counter() - began, 4), "attack_seconds": round(attack_seconds, 4),
        "forward": forward, "backward": backward, "recomputed": recomputed, "judge_forward": judge_forward, "rows": rows,
        "judge_seconds": round(judged.seconds, 4), "purifications": judged.purifications,
    }  # fmt: skip
    warnings = list(tried.warnings)
    if attacked and attacked.drawn:
        sources = ", ".join(sorted(attacked.drawn))
        warnings.append(
            f"`{task.cell.attack}` draws from {sources}: its draws belong to the batch, and change with `--workers`"
        )
    if attacked:
        lines = [_record(task, attacked, judged, i, int(index[i]), int(y[i]), seen[i]) for i in range(len(x))]
    else:
        lines = [_with_more_draws(task, judged, i) for i in range(len(x))]
    return Done(lines, frozen, cost, tuple(warnings))


# ------------------------------------------------------------------------------------------------------------------ attack

# What no attack may write: keys of a line, and columns that `purebench.load` makes of them and of the cell. `nfe`, `stopped`, `not_finite`
# and words of its own it may.
RESERVED = {
    "position", "index", "label", "undefended", "clean", "adversarial", "verdict", "verdict_is", "linf", "l2", "l1", "flow", "batch",
    "gradients", "notes", "failed", "rows", "moved", "score_norm",
    "cell", "dataset", "subset", "classifier", "score", "defense", "attack", "threat", "grad", "seed", "clean_evals", "evals",
    "clean_right", "right", "nfe_forward", "nfe_backward", "gradients_iterates", "gradients_zero", "gradients_not_finite",
    "gradients_right", "gradients_blind", "not_finite_clean", "not_finite_adversarial", "not_finite_attack", "lost", "crc", "adv_crc",
}  # fmt: skip


@dataclass(frozen=True)
class _Attacked:
    """Adversarial images as they are stored, and what is known of each: lists in the order of the task's positions."""

    rows: list[bytes]
    verdict: list[bool | None]
    distances: dict[
        str, list[float]
    ]  # `linf`, `l2`, and what else the threat model bounds: `l1`, or the largest component of a `flow`
    lost: list[str | None]  # why the attack made no image
    gradients: list[dict[str, int] | None]
    stopped: list[int | None]
    not_finite: list[str | None]
    nfe: list[list[int]]  # (forward, backward)
    words: dict[str, list[Any]]  # of the attack's own
    drawn: set[str]  # what it drew for the batch
    spent: tuple[int, int, int]  # (forward, backward, recomputed) network calls of the batch


def _freeze(images: Tensor) -> list[bytes]:
    return [image.cpu().numpy().astype("<f4").tobytes() for image in images]


def _thaw(rows: list[bytes], like: Tensor) -> Tensor:
    """The stored images as they will be read, like the images `like` (B,C,H,W)."""
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32).view(-1, *like.shape[1:]).to(like)


def _attack(task: Task, defense: Defense, x: Tensor, y: Tensor, index: Tensor) -> _Attacked:
    """What the cell's attack makes of x (B,C,H,W) with labels y; index: the images' ids. Where it made nothing, the clean image is stored
    and never judged. Raises Broken for an attack that breaks the rules: one that goes outside the threat model has no number."""
    cell, ids = task.cell, index.tolist()
    made, log, drawn = _attack_itself(task, defense, x, y, index)
    x_adv, verdict = made.x_adv.detach().to(x), made.verdict
    finite = x_adv.isfinite().flatten(1).all(1)
    # Before the threat model is checked: a NaN is inside no ball, and would condemn the images beside it.
    x_adv = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), x_adv, x)
    distances = norms(x_adv, x)
    kept = {norm.lower(): distances[norm].tolist() for norm in ("Linf", "L2")}
    broken = ~cell.threat.holds(x_adv, x)
    if cell.threat.norm == "L1":
        kept["l1"] = distances["L1"].tolist()
    if cell.threat.norm == STADV:
        # A flow is rendered again here: of images alone nobody could say what moved them.
        flow = _flow(str(cell.attack), made.flow, x)
        flow = torch.where(finite.view(-1, 1, 1, 1), flow, 0)
        broken |= ~flows.holds(x_adv, x, flow, cell.threat.eps)
        kept["flow"] = flows.largest(flow).tolist()
    if broken.any():
        place = task.positions[int(broken.nonzero()[0])]
        raise Broken(
            f"{int(broken.sum())} images of `{cell.attack}` are outside {cell.threat} or [0,1], first position {place}; "
            + (
                "its images are `flows.render(x, flow)` of a flow within the bound"
                if cell.threat.norm == STADV
                else "an attack ends with `threat.project(x_adv, x)`"
            )
        )
    why = records.NO_SOURCE if cell.source else f"{records.LOST}it returned values that are not finite"
    spent = defense.spent.close()
    # An attack that does not count for itself treats all images of the batch alike.
    share = (spent[0] // len(x), spent[1] // len(x))
    return _Attacked(
        rows=_freeze(x_adv),
        verdict=[None] * len(x) if verdict is None else verdict.bool().tolist(),
        distances=kept,
        lost=[None if ok else why for ok in finite.tolist()],
        gradients=defense.observed.close(ids),
        stopped=log.pop("stopped", [None] * len(x)),
        not_finite=log.pop("not_finite", [defense.not_finite.get(i) for i in ids]),
        nfe=[list(calls) for calls in log.pop("nfe", None) or [share] * len(x)],
        words=log,
        drawn=drawn,
        spent=spent,
    )


def _attack_itself(
    task: Task, defense: Defense, x: Tensor, y: Tensor, index: Tensor
) -> tuple[Attacked, dict[str, list[Any]], set[str]]:
    """What the attack returns; its log as lists; and what it drew for the batch and not for an image. Raises Broken where it altered a
    network, or logs what is not its to say."""
    cell = task.cell

    def stored(_ids: Tensor) -> Tensor:
        """The images that exist already: a user's, or those of a transfer's source; NaN where it made none, which is then no image of
        the transfer either."""
        nothing = _freeze(torch.full_like(x[:1], torch.nan))[0]
        return _thaw([task.stored.get(p, nothing) for p in task.positions], x)

    source: list[Any] = [stored] if cell.source or cell.attack.info.get("images") else []
    if cell.attack.inner:
        source = [[(str(one), _inside(one)) for one in cell.attack.inner]]
    unchanged(cell.attack)
    attack = registry.factory("attack", cell.attack.key)(*source, **cell.attack.arguments)
    # The draws of an attack on batches belong to the batch, those of the others to the image alone.
    path = (cell.attack.name, task.positions[0]) if task.batch else (cell.attack.name,)
    noise = Noise(cell.seed, "attack", path, index, torch.zeros_like(index))
    before = _fingerprint(cell, x.device)
    # What a foreign attack draws from global generators belongs to the images, too.
    ours = registry.is_ours("attack", cell.attack.key)
    draws = None if ours else Draws(noise.fork("own"), held.generators(attack))
    with draws or contextlib.nullcontext():
        # Of copies: an attack that writes into what it is given must not move its ball, the centre of it, or the labels.
        attacked = attack(defense, x.clone(), y.clone(), replace(cell.threat), noise)
    # Of foreign code the images alone will do.
    attacked = Attacked(attacked) if isinstance(attacked, Tensor) else attacked
    _check_attacked(str(cell.attack), attacked, x)
    if _fingerprint(cell, x.device) != before:
        # Else the cells to come, which share the networks, would be judged by what it left of them.
        forget()
        raise Broken(f"`{cell.attack}` changed a network: its weights, its hooks or its mode")
    log = _logged(str(cell.attack), attacked.log, len(x))
    return attacked, log, draws.batch if draws else set()


def _inside(part: Resolved) -> Attack:
    """An attack that another one is made of; one that has a gradient of its own takes that."""
    attack, own = registry.factory("attack", part.key)(**part.arguments), part.info.get("gradients", [])
    if len(own) != 1:
        return attack
    return lambda defense, x, y, threat, noise: attack(defense.using(Part(own[0])), x, y, threat, noise)


def _flow(attack: str, flow: Tensor | None, x: Tensor) -> Tensor:
    """The flow that an attack says it moved x by, (B,2,H,W). Raises Broken where it gave none."""
    shape = (len(x), 2, *x.shape[2:])
    if not isinstance(flow, Tensor) or flow.shape != shape:
        got = f"of {tuple(flow.shape)}" if isinstance(flow, Tensor) else "none"
        raise Broken(
            f"`{attack}` moves images and gave no flow of {shape} to check ({got}): `Attacked(x_adv, flow=flow)`"
        )
    return flow.detach().to(x)


def _check_attacked(attack: str, attacked: Any, x: Tensor) -> None:
    """Raises Broken where an attack returned something else than images like x."""
    made = getattr(attacked, "x_adv", None)
    if not isinstance(made, Tensor):
        raise Broken(f"`{attack}` returned a {type(attacked).__name__}: images like x are wanted, or `Attacked(x_adv)`")
    if made.shape != x.shape or not made.is_floating_point():
        got = f"{tuple(made.shape)} {made.dtype}"
        raise Broken(f"`{attack}` returned images of {got}: like x they are {tuple(x.shape)} {x.dtype}")


def _logged(attack: str, log: Mapping[str, Any], images: int) -> dict[str, list[Any]]:
    """An attack's words as lists of an entry per image, of types that JSON has. Raises Broken for what no record can hold."""
    if taken := RESERVED & log.keys():
        raise Broken(
            f"`{attack}` logs {', '.join(sorted(taken))}, which the harness records itself: choose other words"
        )
    found = {}
    for word, values in log.items():
        # Tensors and arrays, which both have it.
        values = list(values.tolist() if hasattr(values, "tolist") else values)
        values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        if len(values) != images:
            raise Broken(
                f"`{attack}` logs {len(values)} values of `{word}` for {images} images: one for each is needed"
            )
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise Broken(f"`{attack}` logs `{word}`, which a record cannot hold: {error}") from None
        found[word] = values
    return found


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
    seconds: float  # for the `purifications` made now, and their classification: not those taken from another cell
    purifications: int


# Of a cell's defense and gradient, tried once in a process.
_proofs: dict[tuple[Any, ...], Proof] = {}


def _proof(cell: Cell, device: torch.device, defense: Defense) -> Proof:
    """What is wrong with a foreign defense or classifier, tried on the data set's first images, so that every worker finds the same."""
    ours = {
        kind: registry.is_ours(kind, part.key)
        for kind, part in cell.parts().items()
        if kind in ("defense", "classifier")
    }
    if all(ours.values()):
        return Proof()
    key = (cell.dataset, cell.classifier, cell.scores, cell.defense, cell.gradient, cell.noise, device)
    if key not in _proofs:
        images = dataset(cell.dataset)
        x = images.take(list(range(min(len(images), ROWS))))[0].to(device)
        found = Proof()
        if not ours["classifier"] and cell.classifier.info.get("gradient") != "own":
            judged = defense.classifier
            found += prove_classifier(
                judged, x, cell.classifier.name, independent=not getattr(judged, "coupled", False)
            )
        if not ours["defense"]:
            found += prove(
                defense, x, cell.defense.name, gradient=cell.gradient.name == "exact" and cell.defense.info.get("gradient") != "own",
                unbounded=cell.defense.info.get("output") == "unbounded",
            )  # fmt: skip
        _proofs[key] = found
        # Its calls are nobody's.
        defense.not_finite.clear()
    return _proofs[key]


def _judge(task: Task, defense: Defense, x: Tensor, rows: list[bytes], index: Tensor, tried: Proof) -> _Judged:
    """Purifies and classifies the clean images x and the stored ones. Clean predictions that another attack's cell has made are taken from
    it; the stored images are read back and judged draw by draw, also those of the null control, which therefore controls both."""
    ids = index.tolist()
    # No path, and so the same draws for the clean image, the null control and every attack: differences are paired.
    noise = Noise(task.cell.seed, "judge", (), index, torch.zeros_like(index))
    not_finite: list[dict[str, str]] = [{} for _ in ids]

    def note_not_finite(what: str) -> None:
        """Moves what the defense has noted since the last call to the images' entries."""
        for entry, i in zip(not_finite, ids, strict=True):
            if i in defense.not_finite:
                entry[what] = defense.not_finite[i]
        defense.not_finite.clear()

    known = [task.clean.get(p, [])[: task.evals] for p in task.positions]
    # From the draw on that some image lacks: the images of a batch are purified together.
    start = min(map(len, known))
    clean = [predictions[:start] for predictions in known]
    began = _now(x)
    if start < task.evals:
        new = predicted(defense.draws(x, noise, start, task.evals)).tolist()
        clean = [old + more for old, more in zip(clean, new, strict=True)]
        note_not_finite("clean")
    for entry, predictions in zip(not_finite, clean, strict=True):
        if -1 in predictions:
            entry.setdefault("clean", NOT_FINITE)

    first = min(len(task.known[p]["adversarial"]) for p in task.positions) if task.judge else 0
    x_adv = _thaw(rows, x)
    logits = defense.draws(x_adv, noise, first, task.evals)
    seconds = _now(x) - began
    purifications = len(ids) * defense.votes * (max(0, task.evals - start) + task.evals - first)
    note_not_finite("adversarial")
    undefended = defense.undefended().draws(x, noise, 0, 1)[:, 0]
    # Where the bare classifier fails, its prediction, -1, says so; and the second asking is no news.
    defense.not_finite.clear()
    # No part of the work that was announced: progress would run ahead.
    defense.on_work = None
    batched = _of_batches(defense) or "batch" in tried.notes
    # What belongs to a batch answers another one otherwise: whether it is repeatable, its proof has tried.
    again = partial(defense.draws, x_adv, noise, first, first + 1)
    random = [False] * len(ids) if batched else _answers_differ(task, logits, again)
    flags = {"random": random, "probabilities": _probabilities(undefended), "batch": [batched] * len(ids)}
    flags |= {note: [True] * len(ids) for note in tried.notes}
    notes = [[note for note, found in flags.items() if found[i]] for i in range(len(ids))]
    answers = predicted(logits).tolist(), predicted(undefended).tolist()
    return _Judged(clean, *answers, not_finite, notes, seconds, purifications)


def _now(x: Tensor) -> float:
    """The clock, when what was asked of the device of x is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def _watched(task: Task, defense: Defense, x: Tensor, rows: list[bytes], index: Tensor) -> list[dict[str, Any]]:
    """What `--log` adds to the lines."""
    if not task.log:
        return [{} for _ in rows]
    noise = Noise(task.cell.seed, "judge", (), index, torch.zeros_like(index))
    return watched.watched(task.log, defense, x, _thaw(rows, x), noise, task.evals)


def _answers_differ(task: Task, logits: Tensor, ask_again: Callable[[], Tensor]) -> list[bool]:
    """Whether a draw of an image, asked again, is answered differently; or, of a defense that calls itself deterministic, any two draws.

    logits (B,K,classes): the answers so far; `ask_again` gives (B,1,classes), the first draw's."""
    random = _random(task.cell)
    # Of a random defense in the first batch alone, since it costs a purification. Of one that couples a batch never: its answers
    # depend on the mates, so that a second asking proves nothing.
    if _coupled(task.cell) or (random and 0 not in task.positions):
        return [False] * len(logits)
    return _differ(torch.cat([logits[:, :1] if random else logits, ask_again()], 1))


def _random(cell: Cell) -> bool:
    """Whether two purifications of an image may differ, as the defense says."""
    return bool(cell.defense.info.get("random", True) and registry.options(cell.defense.options)["noise"])


def _coupled(cell: Cell) -> bool:
    """Whether an image depends on its batch mates, as the defense says."""
    return any(cell.defense.values.get(key) == value for key, value in cell.defense.info.get("couples", {}).items())


def _of_batches(defense: Defense) -> bool:
    """Whether a foreign defense or classifier was seen to draw for a batch, or a classifier to let its images depend on each other."""
    drawn = [part.batch for part in (defense.purifier, defense.classifier) if isinstance(part, Plain | Foreign)]
    return any(drawn) or getattr(defense.classifier, "coupled", False)


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
    task: Task, attacked: _Attacked, judged: _Judged, i: int, index: int, label: int, seen: Mapping[str, Any]
) -> Record:
    """The line of the i-th image, with what was `seen` of it; its keys, and what they mean, are listed in docs/design.md."""
    why, attack = attacked.not_finite[i], task.cell.attack
    rule = registry.verdict(attack.name, attack.info, attack.values)
    # Left out where there is nothing to say: files are long.
    optional = {
        "gradients": attacked.gradients[i],
        "stopped": attacked.stopped[i],
        "not_finite": judged.not_finite[i] | ({"attack": why} if why else {}),
        "notes": judged.notes[i] + (["drawn"] if attacked.drawn else []),
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
            **{kind: values[i] for kind, values in attacked.distances.items()},
            "nfe": attacked.nfe[i],
        }
        # `aa`, the oldest, goes without saying.
        | ({"verdict_is": rule} if rule != "aa" and attacked.verdict[i] is not None else {})
        | ({"batch": list(task.batch)} if task.batch else {})
        | {word: values[i] for word, values in attacked.words.items()}
        | ({} if attacked.lost[i] else dict(seen))
        # Not by truth: an attack that `stopped` at iterate 0 has something to say.
        | {key: value for key, value in optional.items() if value not in (None, {}, [])}
    )


def _with_more_draws(task: Task, judged: _Judged, i: int) -> Record:
    """The line of the i-th image with the draws that it lacked."""
    old = dict(task.known[task.positions[i]])
    # Lines of an older version, which left images out of all means where the *defense* failed: they are wrong answers.
    if why := old.pop("failed", None):
        old["not_finite"] = {"adversarial": why}
    first = task.evals - len(judged.adversarial[i])
    record = old | {"clean": judged.clean[i], "adversarial": old["adversarial"][:first] + judged.adversarial[i]}
    not_finite = judged.not_finite[i] | old.get("not_finite", {})
    notes = sorted({*judged.notes[i], *old.get("notes", [])})
    return record | ({"not_finite": not_finite} if not_finite else {}) | ({"notes": notes} if notes else {})
