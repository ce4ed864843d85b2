"""How far our attacks are from recorded arrays of the published ones: one line per array, against the tolerance of its description.

    python benchmarks/golden_attacks.py             prints the table; exit code 1 where something is outside its tolerance

The arrays are those of `PUREBENCH_GOLDEN`, or their copies in tests/golden. Every entry of CHECKS takes a function that loads a file of
them by its name, and yields (what, deviation, tolerance); `tests/test_golden_attacks.py` runs each.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purebench import registry
from purebench.attacks import Attacked, spsa
from purebench.attacks.pgd import Ascent
from purebench.attacks.queries import Queries
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.engine.objective import LOSSES, Objective, combine
from purebench.networks import build
from purebench.purifiers import make
from purebench.scores.energy import EnergyScore
from purebench.scores.views import Level, Score
from purebench.spec import ThreatModel

SMALL = Path(__file__).parents[1] / "tests" / "golden"
Arrays = Mapping[str, np.ndarray]
Row = tuple[str, float, float]  # what, how far apart, how far it may be
EXACT, ATTACKS, REDUCTION = 0.0, 1e-6, 1e-6
WORDS = {"loss": "loss", "grad": "gradient", "pred": "answers"}


def load(name: str) -> Arrays:
    """The arrays of `adp/c_spsa.npz`, say. Raises FileNotFoundError where nothing has them."""
    folder = Path(os.environ.get("PUREBENCH_GOLDEN") or SMALL)
    with np.load(folder / name) as file:
        return dict(file)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference."""
    return float((torch.as_tensor(ours).double() - torch.as_tensor(np.asarray(theirs)).double()).abs().max())


class Linear(nn.Module):
    """W flatten(prepared x) + b."""

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None = None, prepared: Callable[[Tensor], Tensor] = lambda x: x
    ):
        super().__init__()
        self.weight, self.bias, self.prepared = tensor(weight), 0 if bias is None else tensor(bias), prepared

    def forward(self, x: Tensor) -> Tensor:
        return self.prepared(x).flatten(1) @ self.weight.T + self.bias


class Recorded(Noise):
    """Draws that `table` has by (path, k, image, sample); zeros for padding."""

    table: Callable[[tuple, int, int, int], np.ndarray]

    def normal(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        rows = zip(self.ids.tolist(), self.samples.tolist(), strict=True)
        found = [np.zeros(like.shape[1:]) if i < 0 else type(self).table(self.path, k, i, s) for i, s in rows]
        return torch.from_numpy(np.stack(found)).to(like)

    uniform = normal


def recorded(table: Callable[[tuple, int, int, int], np.ndarray], images: int) -> Noise:
    stream = type("Stream", (Recorded,), {"table": staticmethod(table)})
    return stream(0, "attack", (), range(images), [0] * images)


def run(
    attack: str, defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise, **values: Any
) -> Attacked:
    return registry.factory("attack", attack)(**values)(defense, x, y, threat, noise)


# ------------------------------------------------------------------------------------------------------------------------ ADP


class Sine(Score):
    """s(x) = sin(2 pi x + 0.3) of x in [0,1], at any noise level."""

    size, sigma_min, sigma_max = (3, 8, 8), 0.01, 50.0

    def direction(self, x: Tensor, sigma: Level) -> Tensor:
        return torch.sin(torch.pi * (x + 1) + 0.3)


def _normalised(x: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]])[..., None, None]
    return (x - mean) / std


ADP = {  # the published name -> ours
    "bpda_strong": ("bpda-eot", {"average": "signs"}),
    "bpda_score": ("joint-score", {"variant": "code"}),
    "bpda_total": ("joint-full", {"variant": "code"}),
}


def adp(load: Callable[[str], Arrays], name: str) -> Iterator[Row]:
    """Iteration by iteration, each from where the published one stood: one element that rounding decided would move all that follow."""
    file = load("adp/c_adp_attacks.npz")
    x, y, ball = tensor(file["x"]), tensor(file["y"]), ThreatModel("Linf", 8 / 255)
    defense = Defense(PURIFIERS[name](), Linear(file["W"], file["b"], _normalised), rows=16)
    defense.score = Sine()
    noise = tensor(file["noise"]).numpy()
    for theirs, (ours, values) in ADP.items():
        after, reliable = (tensor(file[f"{name}/{theirs}/{key}"]) for key in ("x_after_iter", "reliable"))
        worst = 0.0
        for i in range(len(after)):
            draws = recorded(lambda path, k, image, sample, i=i: noise[i, sample, image], len(x))
            made = run(ours, defense, after[i - 1] if i else x, y, ball, draws, steps=1, eot=3, **values).x_adv
            # They stay in the ball of the clean image, at whose edge the fourth step ends.
            worst = max(worst, apart(ball.project(made, x)[reliable[i]], after[i][reliable[i]]))
        settled = f"{int(reliable.sum())} of {reliable.numel()} elements, those reliable"
        yield f"adp {theirs} = {ours}, {name}, {settled}", worst, ATTACKS


PURIFIERS: dict[str, Callable[[], Any]] = {
    "identity": Identity,
    "adp": lambda: make("adp", score=Sine(), sigma=0.25, steps=3, tau=1e-3, variant="code"),
}


def classifier_pgd(load: Callable[[str], Arrays]) -> Iterator[Row]:
    file = load("adp/c_adp_attacks.npz")
    x, y, ball = tensor(file["x"]), tensor(file["y"]), ThreatModel("Linf", 8 / 256)
    draws = (tensor(file["clf_pgd/start_delta"]) / ball.eps + 1) / 2
    noise = recorded(lambda path, k, image, sample: draws[image].numpy(), len(x))
    defense = Defense(Identity(), Linear(file["W"], file["b"], _normalised), rows=4)
    made = run("transfer-pgd", defense, x, y, ball, noise, steps=40).x_adv
    yield "adp clf_pgd = transfer-pgd", apart(made, file["clf_pgd/x_adv"]), ATTACKS
    yield "adp clf_pgd: which are adversarial", apart(defense.predict(made, noise) != y, file["clf_pgd/is_adv"]), EXACT


# ----------------------------------------------------------------------------------------------------------------------- Hill


def hill_update(load: Callable[[str], Arrays]) -> Iterator[Row]:
    file = load("adp/d_hill_attack.npz")
    clean, at, grad = ((tensor(file[f"pgd_{key}"]) + 1) / 2 for key in ("X", "Xadv", "grad"))
    grad = 2 * grad - 1
    for norm, eps, eta in (("linf", 16 / 255, 4 / 255), ("l2", 0.5, 0.1)):
        # Theirs are images in [-1,1], where every radius is twice as large.
        made = 2 * _step(norm, at, grad, clean, eps / 2, eta / eps) - 1
        yield f"hill one update, {norm}", apart(made, file[f"pgd_{norm}_next"]), ATTACKS


def hill_loop(load: Callable[[str], Arrays]) -> Iterator[Row]:
    """The whole attack: 8 steps on 5 images, 3 replicas, 7 verifications, Langevin dynamics of 3 steps on the tiny energy. Its radius is
    4/255 of images in [-1,1]."""
    file = load("adp/d_hill_attack.npz")
    x, y = (tensor(file["loop_X"]) + 1) / 2, tensor(file["loop_y"])
    network = build("ebm", {"n_f": 4})
    network.load_state_dict(_weights(network))
    purifier = make("ebm", score=EnergyScore(network.eval(), (3, 32, 32)), steps=3, eps=0.5)
    defense = Defense(purifier, watch(Linear(file["loop_W"], prepared=lambda u: 2 * u - 1)), rows=48)
    drawn: dict[tuple, np.ndarray] = {}
    generator = np.random.default_rng(11)

    def block(key: tuple, rows: int) -> np.ndarray:
        """(3, rows,..): of one call of the purifier, drawn when it is first asked for."""
        if key not in drawn:
            drawn[key] = np.stack([generator.standard_normal((rows, 3, 32, 32)).astype(np.float32) for _ in range(3)])
        return drawn[key]

    def table(path: tuple, k: int, image: int, sample: int) -> np.ndarray:
        if path[0] == "start":
            return np.asarray(file["loop_u"])[image]
        if path[0] == "verify":  # one image after the other
            return block((*path, image), 7)[k, sample]
        return block(path, 15)[k, sample * 5 + image]

    made = run(
        "bpda-eot", defense, x, y, ThreatModel("Linf", 2 / 255), recorded(table, 5),
        steps=8, eot=3, rel_step=0.25, random_start=True, verify=7,
    )  # fmt: skip
    broken_at = made.log["broken_at"]
    survived = [[at < 0 or at > row for at in broken_at] for row in range(10)]
    yield (
        f"hill loop: who is left after each evaluation, broken at {broken_at}",
        apart(survived, file["loop_class_path"]),
        EXACT,
    )
    sizes = [rows.shape[1] for rows in drawn.values() for _ in range(3)]
    # Theirs goes on to the end when nobody is left.
    theirs = np.asarray(file["loop_noise_batch_sizes"]).tolist()
    sizes += [15] * (len(theirs) - len(sizes))
    yield "hill loop: calls of the purifier, one after the other", float(sizes != theirs), EXACT
    yield "hill loop: final images", apart(2 * made.x_adv - 1, file["loop_final"]), ATTACKS


# ----------------------------------------------------------------------------------------------------------------------- SPSA


class Signs(Noise):
    """The recorded signs of an iteration, whatever image."""

    v: Tensor

    def sign(self, k: int, like: Tensor, draw: int = 0, shared: bool = False) -> Tensor:
        return self.v[self.path[-1], k].expand_as(like).to(like)


def finite_differences(load: Callable[[str], Arrays]) -> Iterator[Row]:
    """spsa: advertorch's loop, as GDMP ran it, and one step of ADP's formula in float64."""
    file = load("adp/c_spsa.npz")
    x, y = tensor(file["x"]), tensor(file["y"]).long()
    stream = type("Stream", (Signs,), {"v": tensor(file["v"])})(0, "attack", (), range(len(x)), [0] * len(x))
    threat = ThreatModel("Linf", 8 / 255)

    def classifier(dtype: torch.dtype) -> nn.Module:
        return watch(Linear(tensor(file["W"]).to(dtype).numpy(), tensor(file["b"]).to(dtype).numpy(), _normalised))

    for i, expected in enumerate(file["advertorch/x_after_iter"]):
        asked = {"variant": "adam", "samples": 16, "delta": 0.01, "steps": i + 1, "rel_step": 0.01 / threat.eps}
        made = run("spsa", Defense(Identity(), classifier(x.dtype)), x, y, threat, stream, **asked)
        yield f"advertorch spsa, after iteration {i + 1}", apart(made.x_adv, expected), ATTACKS
    defense, exact = Defense(Identity(), classifier(torch.float64)), x.double()
    grad = spsa.estimate(
        Queries(defense, len(x)),
        exact,
        y,
        stream.fork("iterate", 0),
        stream.fork("signs", 0),
        spsa._cross_entropy,
        16,
        0.01,
    )
    yield "adp spsa formula: gradient", apart(grad, file["paper_formula/grad"]), ATTACKS
    made = run("spsa", defense, exact, y, threat, stream, samples=16, delta=0.01, steps=1, rel_step=2 / 8)
    yield "adp spsa formula: next image", apart(made.x_adv, file["paper_formula/x_next"]), ATTACKS


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """By the rule of the recorded arrays: normal, of the key's CRC, over the root of the fan-in; biases a tenth."""
    found = {}
    for key, value in network.state_dict().items():
        z = np.random.default_rng(zlib.crc32(f"ebm_tiny:{key}".encode())).standard_normal(tuple(value.shape))
        scaled = z / np.sqrt(np.prod(value.shape[1:])) if value.dim() == 4 else 0.1 * z
        found[key] = torch.from_numpy(scaled.astype(np.float32))
    return found


# --------------------------------------------------------------------------------------------------- ScoreOpt, Lee and Kim


def _reduced(logits: Tensor, y: Tensor, how: str) -> tuple[Tensor, Tensor, Tensor]:
    """(mean loss, answers (B,), derivative like logits (eot,B,K)) of one way of averaging."""
    objective = Objective(LOSSES["ce"], eot=len(logits), votes=1, combined="logits", average=how)
    rows = logits.transpose(0, 1).flatten(0, 1)
    grad = objective.derivative(rows, y).unflatten(0, (len(y), len(logits))).transpose(0, 1)
    loss = objective.losses[0] / objective.scale
    answers = combine(logits, "logits" if how == "loss" else how, 0).argmax(1)
    return loss.mean(), answers, grad / (len(y) * objective.scale)


def _step(norm: str, at: Tensor, grad: Tensor, x: Tensor, eps: float, share: float) -> Tensor:
    """One step of pgd-eot from `at` in the ball around x, along a gradient that is given."""
    norm = "Linf" if "inf" in norm else "L2"
    return Ascent(1, 1, share, "ce", "loss", False).step(0, at, grad, x, ThreatModel(norm, eps))


def averages(load: Callable[[str], Arrays], name: str, file: str, labels: str, mark: str) -> Iterator[Row]:
    """The four ways to make one loss of several purifications, with the gradient and the answers where they were recorded."""
    arrays = load(file)
    reps, y = int(arrays["reps"]), tensor(arrays[labels])
    logits = tensor(arrays["logits"]).unflatten(0, (reps, len(y)))
    for how in ("logits", "softmax", "logsoftmax", "loss"):
        loss, answers, grad = _reduced(logits, y, how)
        recorded = {"loss": (loss, REDUCTION), "grad": (grad.flatten(0, 1), REDUCTION), "pred": (answers, EXACT)}
        for key, (ours, allowed) in recorded.items():
            if f"{key}{mark}{how}" in arrays:
                yield f"{name} {WORDS[key]} of {how}", apart(ours, arrays[f"{key}{mark}{how}"]), allowed


def update(load: Callable[[str], Arrays]) -> Iterator[Row]:
    file = load("edm/pgd_update.npz")
    for norm in ("l_inf", "l_2"):
        at, grad, out = (file[f"{norm}/{key}"] for key in ("x_adv", "grad", "out"))
        eps, eta = float(file[f"{norm}/eps"]), float(file[f"{norm}/eta"])
        made = _step(norm, tensor(at), tensor(grad), tensor(file["x"]), eps, eta / eps)
        yield f"scoreopt one update, {norm}", apart(made, out), ATTACKS


def lee_kim(load: Callable[[str], Arrays]) -> Iterator[Row]:
    file = load("edm/leekim_process.npz")
    x, y = tensor(file["x"]), tensor(file["y"])
    defense = Defense(Identity(), Linear(file["W"], file["b"], lambda z: torch.tanh(2 * z)), rows=4)
    for key, ball in (
        ("linf_out", ThreatModel("Linf", 8 / 255)),
        ("l2_out", ThreatModel("L2", 0.5)),
        ("l2_out_eps0.1", ThreatModel("L2", 0.1)),
    ):
        noise = Noise(0, "attack", (), range(len(x)), [0] * len(x))
        step = 0.007 / ball.eps
        made = run(
            "pgd-eot", defense, x, y, ball, noise, steps=5, eot=1, rel_step=step, random_start=False, ascent="sign"
        )
        yield f"lee and kim {key}", apart(made.x_adv, file[f"pgd/{key}"]), ATTACKS


CHECKS: dict[str, Callable[[Callable[[str], Arrays]], Iterator[Row]]] = {
    "adp, identity": partial(adp, name="identity"),
    "adp, adp": partial(adp, name="adp"),
    "adp, classifier": classifier_pgd,
    "hill, averages": partial(averages, name="hill", file="adp/d_hill_attack.npz", labels="labels", mark="/"),
    "hill, update": hill_update,
    "hill, whole loop": hill_loop,
    "scoreopt, averages": partial(averages, name="scoreopt", file="edm/eot_reduction.npz", labels="y", mark="_"),
    "scoreopt, update": update,
    "lee and kim": lee_kim,
    "spsa": finite_differences,
}


def main() -> int:
    torch.set_num_threads(1)
    rows: list[Row] = []
    absent = []
    for name, check in CHECKS.items():
        try:
            rows += check(load)
        except (KeyError, FileNotFoundError) as error:
            absent.append(f"{name}: no {error}; set PUREBENCH_GOLDEN")
    width = max(len(what) for what, _, _ in rows)
    print(f"{'array':{width}}  deviation  tolerance")
    for what, found, allowed in rows:
        print(f"{what:{width}}  {found:9.1e}  {allowed:9.1e}{'' if found <= allowed else '  OUTSIDE'}")
    print(*absent, sep="\n", end="\n" * bool(absent))
    return int(any(not found <= allowed for _, found, allowed in rows))


if __name__ == "__main__":
    sys.exit(main())
