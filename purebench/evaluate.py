"""One batch of one cell: attack the images, then judge what came back. The attack computes; the judge is ours.

The judge verifies the threat model, then purifies the frozen images K times with draws that no attacker saw. Its draws belong to
(seed, image, draw) alone, common to the clean image, the null control and every attack, so differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from purebench import components, datasets, purifiers, registry
from purebench.datasets.images import Images
from purebench.defense import Defense
from purebench.noise import Noise
from purebench.purifiers.none import Identity
from purebench.purifiers.resized import Resized, resize
from purebench.spec import Cell, Part, norms, parse
from purebench.tasks import Done, Task

# Where the clean prediction is another cell's, which alone knows the step:
NOT_FINITE = "the purification of the clean image gave values that are not finite"


@cache
def _images(dataset: str, where: tuple) -> Images:
    part = parse(dataset, "dataset")
    return components.of("dataset", Part(part.name, (*part.parameters, *where))).images


@cache
def _order(size: int, subset: str) -> list[int]:
    return datasets.order(size, subset)


def dataset(cell: Cell) -> Images:
    """The cell's images; shared between the cells of a process."""
    return _images(cell.dataset, tuple(cell.where.get("dataset", {}).items()))


def shape(cell: Cell) -> list[int]:
    """[C,H,W] of the cell's images."""
    return components.of("dataset", cell.component("dataset")).shape


@cache
def _network(kind: str, part: Part, device: torch.device) -> Any:
    made = components.load(kind, part.name, components.of(kind, part).values)
    if kind == "classifier":
        from purebench.nfe import watch

        return watch(made.to(device))
    return made.to(device)


def forget() -> None:
    """Drops the networks of this process."""
    _network.cache_clear()


def _arguments(parameters: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Parameters as the factory's keywords, without those that every component of the kind has."""
    own = {k: v for k, v in parameters.items() if k not in registry.COMMON.get(kind, {})}
    return {f"{k}_" if k == "from" else k: v for k, v in own.items()}


def build_defense(
    cell: Cell,
    device: torch.device,
    *,
    rows: int,
    memory: int | None = None,
    on_work: Callable[[int], None] | None = None,
) -> Defense:
    """The cell's defense with its gradient, on a device; networks are shared between the cells of a process."""
    classifier = _network("classifier", cell.component("classifier"), device)
    needs = registry.info("defense", cell.defense.name).get("needs", ["score"])
    stand_in = dict(cell.parameters.get("surrogate", {}))
    other = str(stand_in.pop("defense", "none"))
    needs = [*needs, *registry.info("defense", other).get("needs", ["score"])]
    scores = [_network("score", part, device) for part in cell.components("score")] if "score" in needs else [None]
    score = scores[0] if len(scores) == 1 else scores
    height, width = shape(cell)[1:]
    outer = (height, width)
    inner: tuple[int, int] = tuple(scores[0].size[1:]) if scores[0] is not None else outer

    def guide(x: Tensor) -> Tensor:
        return classifier(resize(x, outer))

    def make(name: str, parameters: Mapping[str, Any]) -> Any:
        seen = classifier if inner == outer else guide
        made = purifiers.make(name, score=score, classifier=seen, **_arguments(parameters, "defense", name))
        return made if inner == outer or isinstance(made, Identity) else Resized(made, outer, inner)

    common: dict[str, Any] = {k: cell.parameters["defense"].get(k, v) for k, v in registry.COMMON["defense"].items()}
    del common["score"]  # in the cell itself
    made = Defense(
        make(cell.defense.name, cell.parameters["defense"]), classifier, **common,
        gradient=Part("exact") if cell.gradient.name == "-" else cell.gradient,
        surrogate=make(other, stand_in) if "surrogate" in cell.parameters else None, rows=rows, memory=memory, on_work=on_work,
    )  # fmt: skip
    made.score = scores[0]
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
    cell = task.cell
    images = dataset(cell)
    order = _order(len(images), cell.subset)
    index = torch.tensor([order[p] for p in task.positions])
    x, y = (part.to(device) for part in images.take(index.tolist()))
    defense = build_defense(cell, device, rows=rows, memory=memory, on_work=on_work)
    began = time.perf_counter()

    stored = {
        p: torch.frombuffer(bytearray(row), dtype=torch.float32).view(x.shape[1:]) for p, row in task.stored.items()
    }
    if task.judge:
        x_adv = torch.stack([stored[p] for p in task.positions]).to(device)
        verdict, log = None, {}
    else:
        source = [lambda _ids: torch.stack([stored[p] for p in task.positions])] if cell.source else []
        attack = registry.factory("attack", cell.attack.name)(
            *source, **_arguments(cell.parameters["attack"], "attack", cell.attack.name)
        )
        path = (cell.attack.name, task.positions[0]) if task.batch else (cell.attack.name,)
        noise = Noise(cell.seed, "attack", path, index, torch.zeros_like(index))
        attacked = attack(defense, x, y, cell.threat, noise)
        x_adv, verdict, log = attacked.x_adv.detach(), attacked.verdict, attacked.log
    attack_seconds = time.perf_counter() - began
    spent = defense.spent.close()
    noted = {} if task.batch else {int(i): f"attack: {why}" for i, why in defense.failed.items()}
    told = [why and f"attack: {why}" for why in log.pop("failed", [None] * len(x))]
    failed = [why or noted.get(int(i)) for i, why in zip(index, told, strict=True)]
    defense.failed.clear()
    finite = x_adv.isfinite().flatten(1).all(1).tolist()
    if not all(why or ok for why, ok in zip(failed, finite, strict=True)):
        raise RuntimeError(f"`{cell.attack}` returned values that are not finite")
    x_adv = torch.stack([x[i] if failed[i] else x_adv[i] for i in range(len(x))])
    broken = ~cell.threat.holds(x_adv, x)
    if broken.any():
        place = task.positions[int(broken.nonzero()[0])]
        raise RuntimeError(
            f"{int(broken.sum())} images of `{cell.attack}` are outside {cell.threat} or [0,1], first position {place}"
        )

    judge = Noise(cell.seed, "judge", (), index, torch.zeros_like(index))
    before = min((len(task.known[p]["clean"]) if task.judge else 0) for p in task.positions)
    have_clean = [task.clean.get(p, [])[: task.evals] for p in task.positions]
    start = min([len(c) for c in have_clean]) if have_clean else 0
    clean_new = (
        defense.draws(x, judge, start, task.evals).tolist() if start < task.evals else [[] for _ in task.positions]
    )
    clean = [known[:start] + new for known, new in zip(have_clean, clean_new, strict=True)]
    adversarial = defense.draws(x_adv, judge, before, task.evals).tolist()
    undefended = defense.undefended().predict(x, judge).tolist()
    for i, image in enumerate(index.tolist()):
        failed[i] = failed[i] or defense.failed.get(image) or (NOT_FINITE if -1 in clean[i] else None)
    seconds = time.perf_counter() - began
    judged = defense.spent.close()

    distance = {name: values.tolist() for name, values in norms(x_adv, x).items()}
    records, raw = [], []
    for i, position in enumerate(task.positions):
        if task.judge:
            old = {k: v for k, v in task.known[position].items() if k != "crc"}
            record = old | {"clean": clean[i], "adversarial": old["adversarial"][:before] + adversarial[i]}
        else:
            record = {
                "position": position, "index": int(index[i]), "label": int(y[i]), "undefended": undefended[i], "clean": clean[i],
                "adversarial": adversarial[i], "verdict": None if verdict is None else bool(verdict[i]),
                "linf": distance["Linf"][i], "l2": distance["L2"][i],
                "nfe": list(log["nfe"][i]) if "nfe" in log else [spent[0] // len(x), spent[1] // len(x)],
            }  # fmt: skip
            if task.batch:
                record["batch"] = list(task.batch)
            record |= {k: v[i] for k, v in log.items() if k != "nfe"}
        record |= {"failed": failed[i]} if failed[i] else {}
        records.append(record)
        raw.append(x_adv[i].cpu().numpy().astype("<f4").tobytes())
    cost = {
        "positions": list(task.positions), "seconds": round(seconds, 4), "attack_seconds": round(attack_seconds, 4),
        "forward": spent[0], "backward": spent[1], "recomputed": spent[2], "judge_forward": judged[0], "rows": rows,
    }  # fmt: skip
    return Done(records, raw, cost)


def probe(shape: list[int], rows: int, device: torch.device) -> Tensor:
    """Grey images: (rows,C,H,W)."""
    return torch.full((rows, *shape), 0.5, device=device)
