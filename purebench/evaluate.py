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

from purebench import datasets, purifiers, registry
from purebench.defense import Defense
from purebench.noise import Noise
from purebench.spec import Cell, Part, norms, parse
from purebench.tasks import Done, Task


@cache
def _images(dataset: str) -> tuple[Tensor, Tensor]:
    return registry.factory("dataset", dataset)()


@cache
def _order(dataset: str, subset: str) -> list[int]:
    return datasets.order(registry.info("dataset", dataset)["size"], subset)


@cache
def _network(kind: str, text: str, device: torch.device) -> Any:
    part = parse(text, kind)
    made = registry.factory(kind, part.name)(**dict(part.parameters))
    if kind == "classifier":
        from purebench.nfe import watch

        return watch(made.to(device))
    return made.to(device)


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
    classifier = _network("classifier", cell.classifier, device)
    needs = registry.info("defense", cell.defense.name).get("needs", ["score"])
    stand_in = dict(cell.parameters.get("surrogate", {}))
    other = str(stand_in.pop("defense", "none"))
    needs = [*needs, *registry.info("defense", other).get("needs", ["score"])]
    score = _network("score", cell.score, device) if "score" in needs else None

    def make(name: str, parameters: Mapping[str, Any]) -> Any:
        return purifiers.make(name, score=score, classifier=classifier, **_arguments(parameters, "defense", name))

    common: dict[str, Any] = {k: cell.parameters["defense"].get(k, v) for k, v in registry.COMMON["defense"].items()}
    return Defense(
        make(cell.defense.name, cell.parameters["defense"]), classifier, **common,
        gradient=Part("exact") if cell.gradient.name == "-" else cell.gradient,
        surrogate=make(other, stand_in) if "surrogate" in cell.parameters else None, rows=rows, memory=memory, on_work=on_work,
    )  # fmt: skip


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
    images, labels = _images(cell.dataset)
    index = torch.tensor([_order(cell.dataset, cell.subset)[p] for p in task.positions])
    x, y = images[index].to(device), labels[index].to(device)
    defense = build_defense(cell, device, rows=rows, memory=memory, on_work=on_work)
    shape = x.shape[1:]
    began = time.perf_counter()

    stored = {p: torch.frombuffer(bytearray(row), dtype=torch.float32).view(shape) for p, row in task.stored.items()}
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
    if not x_adv.isfinite().all():
        raise RuntimeError(f"`{cell.attack}` returned values that are not finite")
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
        records.append(record)
        raw.append(x_adv[i].cpu().numpy().astype("<f4").tobytes())
    cost = {
        "positions": list(task.positions), "seconds": round(seconds, 4), "attack_seconds": round(attack_seconds, 4),
        "forward": spent[0], "backward": spent[1], "recomputed": spent[2], "judge_forward": judged[0], "rows": rows,
    }  # fmt: skip
    return Done(records, raw, cost)


def probe(cell: Cell, rows: int, device: torch.device) -> Tensor:
    """Grey images of the dataset's shape: (rows,C,H,W)."""
    return torch.full((rows, *registry.info("dataset", cell.dataset)["shape"]), 0.5, device=device)
