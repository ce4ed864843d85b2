"""AutoAttack (Croce and Hein 2020), versions `rand`, `standard` and `plus`: pyautoattack's attack objects in our own loop.

The semantics are upstream's, since the number is only worth something if it is the number everybody else reports: one forward
decides; each attack runs on the survivors of the one before; an image that withstands all of them comes back clean. On a
deterministic defense every bit is upstream's (for images <= batch). None of its checks and none of its state are used.

What upstream leaves to chance is decided against the defense. Logits that are not finite are a wrong answer. A gradient
whose L2 norm is below 1e-11 has its direction (upstream divides by norm + 1e-12, so that a saturated classifier looks
robust), and so has a derivative of cross-entropy that float32 loses; one that is not finite counts as zero. Upstream's
warning about zero gradients is silent: `Defense.observed` counts them, and the table warns.

Randomness. The unit is a batch, and `noise` is the batch's: its path is (attack, first position). The global generators (torch,
CUDA, numpy, random) are seeded with `seed_of(noise)`, as upstream would be with that `seed`, and restored afterwards.
Purifications do not touch them: call c of the model within one of the attacks draws from `noise.fork(that attack, c)`, row by row.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor

from purebench.attacks import Attack, Attacked
from purebench.attacks.apgd import inside
from purebench.engine.defense import Defense
from purebench.engine.nfe import Account
from purebench.engine.noise import Noise
from purebench.engine.objective import Gradient, Loss, cross_entropy
from purebench.errors import UserError
from purebench.spec import NORMS, USUAL, ThreatModel, representable

# Under L2 and L1, Square begins with tiles of a fifth of the height: those of a column, and those of a row, which it counts by the height
# too, have to end inside the image. With tiles of one pixel, and with none at all, nothing can stand out.
_TILES = (
    "norm == 'Linf' or height >= 5 and (height < 10 or width < height // 5 or "
    "(height - height // 5 * 5) // 2 + height // (height // 5) * (height // 5) <= height and "
    "(height - height // 5 * 5) // 2 + width // (height // 5) * (height // 5) <= width)"
)
_MISFIT = "its last attack, Square, begins with tiles of a fifth of the height, which do not fit into these"

INFO = {
    "autoattack-rand": {
        "summary": "AutoAttack for random defenses: APGD on cross-entropy, then on DLR, `eot` purifications per gradient",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "unit": "batch",
        "draws": "eot",
        "classes": "3",
        "gradient_calls": "2 * (n_iter + 1) * eot",
        "forward_calls": "5",
        "version": 1,
        "paper": {"Croce and Hein 2020": "n_iter=100,eot=20", "DiffPure, COUP": "the same"},
        "differences": "none in the result, but that logits that are not finite are wrong, and that gradients too small for float32 keep "
        "their direction: the `eot` purifications of a gradient run as rows of one batch instead of one after another. "
        "As upstream: loss and success are the last draw's, one lucky miss breaks an image, and a robust image comes back clean",
        "cite": "croce2020reliable",
    },
    "autoattack-standard": {
        "summary": "AutoAttack for deterministic defenses: APGD, targeted APGD, targeted FAB, Square",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "unit": "batch",
        "classes": "max(4, n_target_classes + 1)",
        "limits": {
            _TILES: [_MISFIT, "use Linf, images of another size, or `-a autoattack-rand`, `-a apgd-ce`: APGD takes any"]
        },
        "gradient_calls": "(norm == 'L1' and (5 + min(5, n_target_classes)) * (n_iter + 3) or (n_target_classes + 1) * (n_iter + 1)) "
        "+ n_target_classes * n_iter",
        "forward_calls": "n_queries + 11 + n_target_classes * (n_iter + 4)",
        "threats": ["Linf", "L2", "L1"],
        "version": 1,
        "paper": {"Croce and Hein 2020": "n_iter=100,n_queries=5000,n_target_classes=9"},
        "differences": "none in the result, but for values that are not finite and gradients too small for float32, as for rand. "
        "As upstream: one forward decides, and a robust image comes back clean. Under L1, as upstream: five restarts of APGD, each "
        "beginning in balls of three and two times the radius, and of targeted APGD at most five targets; an image that rounding left "
        "outside the ball is put back into it",
        "cite": "croce2020reliable",
    },
    "autoattack-plus": {
        "summary": "AutoAttack's longest version: APGD on two losses and FAB, five restarts each, Square, targeted APGD, targeted FAB",
        "gradients": ["exact", "adjoint", "surrogate", "bpda", "detached"],
        "unit": "batch",
        "classes": "max(4, n_target_classes + 1)",
        "limits": {
            _TILES: [_MISFIT, "use Linf, images of another size, or `-a autoattack-rand`, `-a apgd-ce`: APGD takes any"]
        },
        "gradient_calls": "(2 * n_restarts + n_target_classes) * (n_iter + 1) + n_target_classes * n_iter "
        "+ n_restarts * n_iter * (n_target_classes + 1)",
        "forward_calls": "n_queries + 15 + n_target_classes * (n_iter + 4) + n_restarts * (n_iter + 2) "
        "- n_restarts * n_iter * n_target_classes",
        "version": 1,
        "paper": {"Croce and Hein 2020": "n_iter=100,n_restarts=5,n_queries=5000,n_target_classes=9"},
        "differences": "as for standard. FAB without a target differentiates every logit: its calls are counted for n_target_classes + 1 "
        "classes, and a data set of more needs more",
        "cite": "croce2020reliable",
    },
}

# What `standard` sets otherwise under L1 (Croce and Hein 2021, Sec. 4).
UNDER_L1: dict[str, dict[str, Any]] = {
    "apgd-ce": {"n_restarts": 5, "use_largereps": True},
    "apgd-t": {"use_largereps": True, "n_target_classes": 5},
}

_SILENT = logging.Logger(
    "purebench.autoattack", logging.CRITICAL + 1
)  # upstream's lines about progress and zero gradients


def autoattack_rand(*, batch: int = 64, n_iter: int = 100, eot: int = 20) -> Attack:
    """Version `rand`. batch: images that are attacked together, part of what is random; n_iter: APGD's iterations per loss;
    eot: purifications per gradient. Attacked: x_adv, the clean image where it withstood; verdict: it withstood."""
    _at_least_one(batch=batch, n_iter=n_iter, eot=eot)
    objects = _objects("apgd-ce", "apgd-dlr", n_iter=n_iter, eot=eot)
    return _autoattack(objects, batch=batch, classes=3, so_many="the DLR loss needs 3")


def autoattack_standard(
    *, batch: int = 64, n_iter: int = 100, n_queries: int = 5000, n_target_classes: int = 9
) -> Attack:
    """Version `standard`. batch: images that are attacked together; n_iter: iterations of APGD and FAB; n_queries: of Square;
    n_target_classes: the likeliest wrong classes that the targeted attacks try. Attacked: as for `rand`."""
    _at_least_one(batch=batch, n_iter=n_iter, n_queries=n_queries, n_target_classes=n_target_classes)
    objects = _objects(
        "apgd-ce", "apgd-t", "fab-t", "square", n_iter=n_iter, n_queries=n_queries, n_target_classes=n_target_classes
    )
    so_many = f"the targeted DLR loss needs 4, {n_target_classes} target classes need {n_target_classes + 1}"
    return _autoattack(objects, batch=batch, classes=max(4, n_target_classes + 1), so_many=so_many, norms=NORMS)


def autoattack_plus(
    *, batch: int = 64, n_iter: int = 100, n_restarts: int = 5, n_queries: int = 5000, n_target_classes: int = 9
) -> Attack:
    """Version `plus`. n_restarts: of APGD on cross-entropy, of APGD on DLR, and of FAB without a target; others as for `standard`."""
    _at_least_one(
        batch=batch, n_iter=n_iter, n_restarts=n_restarts, n_queries=n_queries, n_target_classes=n_target_classes
    )
    objects = _objects(
        "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t",
        n_iter=n_iter, n_restarts=n_restarts, n_queries=n_queries, n_target_classes=n_target_classes,
    )  # fmt: skip
    so_many = f"the targeted DLR loss needs 4, {n_target_classes} target classes need {n_target_classes + 1}"
    return _autoattack(objects, batch=batch, classes=max(4, n_target_classes + 1), so_many=so_many)


def _objects(
    *names: str, n_iter: int, eot: int = 1, n_restarts: int = 1, n_queries: int = 1, n_target_classes: int = 1
) -> dict[str, Any]:
    """name -> constructor of upstream's object, with upstream's settings, in the order in which they run."""
    table = {
        "apgd-ce": partial(_APGD, n_iter=n_iter, n_restarts=n_restarts, loss="ce", eot=eot),
        "apgd-dlr": partial(_APGD, n_iter=n_iter, n_restarts=n_restarts, loss="dlr", eot=eot),
        "fab": partial(_FAB, n_iter=n_iter, n_restarts=n_restarts, targeted=False),
        "apgd-t": partial(_TargetedAPGD, n_iter=n_iter, n_target_classes=n_target_classes),
        "fab-t": partial(_FAB, n_iter=n_iter, targeted=True, n_target_classes=n_target_classes),
        "square": partial(_Square, n_queries=n_queries, p_init=0.8, resc_schedule=False),
    }
    return {name: table[name] for name in names}


def _autoattack(
    objects: dict[str, Any], *, batch: int, classes: int, so_many: str, norms: Sequence[str] = USUAL
) -> Attack:
    """Upstream's `run_standard_evaluation` for one batch."""

    def attack(defense: Defense, x: Tensor, y: Tensor, threat: ThreatModel, noise: Noise) -> Attacked:
        if threat.norm not in norms:
            raise UserError(
                f"this AutoAttack knows no threat model `{threat}`",
                f"use {' or '.join(norms)}, such as `-t Linf:8/255`",
            )
        if len(x) > batch:
            raise ValueError(f"AutoAttack's unit is a batch of at most {batch} images, got {len(x)}")
        with torch.no_grad(), private_generators(seed_of(noise)):
            bill = _Bill(defense.spent, x)
            images = _Batch(x, y, noise.ids, threat)
            model = _Model(defense, noise.fork("clean"), images)
            logits = model(x)
            if logits.shape[1] < classes:
                fewer = f"n_target_classes={logits.shape[1] - 1}, or " if logits.shape[1] > 3 else ""
                raise UserError(
                    f"AutoAttack needs at least {classes} classes here, got {logits.shape[1]}: {so_many}",
                    f"use {fewer}`-a apgd-ce`, which knows no such bound",
                )
            robust = logits.max(1)[1] == y
            bill.charge(torch.arange(len(x)))
            x_adv, broken_by = x.clone(), [None if r else "clean" for r in robust.tolist()]
            for name, construct in objects.items():
                survivors = robust.nonzero()[:, 0]
                if not len(survivors):
                    break
                model = _Model(defense, noise.fork(name), images)
                settings = UNDER_L1.get(name, {}) if threat.norm == "L1" else {}
                if "n_target_classes" in settings:
                    settings = settings | {"n_target_classes": min(5, construct.keywords["n_target_classes"])}
                run = construct(
                    model, eps=threat.eps, norm=threat.norm, seed=seed_of(noise), device=x.device, **settings
                )
                run.bill = bill.of(survivors.cpu())
                labels = y[survivors]
                found = run.perturb(x[survivors], labels)
                fooled = model(found).max(1)[1] != labels
                bill.charge(survivors.cpu())
                robust[survivors[fooled]] = False
                x_adv[survivors[fooled]] = found[fooled]
                for i in survivors[fooled].tolist():
                    broken_by[i] = name
        log = {"nfe": [tuple(c) for c in bill.calls.tolist()], "broken_by": broken_by}
        return Attacked(
            inside(x_adv, x, threat), robust, log | {"not_finite": [images.not_finite.get(i) for i in range(len(x))]}
        )

    return attack


def seed_of(noise: Noise) -> int:
    """32 bits that depend on the seed, role and path of `noise` only: what the global generators start from."""
    text = repr((noise.seed, noise.role, *noise.path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@contextmanager
def private_generators(seed: int) -> Iterator[None]:
    """Inside, the global generators of torch, CUDA (where in use), numpy and random start from `seed`; outside nothing happened."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"`{name}={value}` of AutoAttack is out of range", f"{name} is a whole number from 1 on")


# ------------------------------------------------------------------------------------------------- what the objects attack


class _Batch:
    """The images (B,C,H,W) that are attacked together, their labels and ids. `not_finite`: position -> where its purification or its
    gradient ceased to be finite."""

    def __init__(self, x: Tensor, y: Tensor, ids: Tensor, threat: ThreatModel):
        self.x, self.y, self.ids, self.p = x, y, ids, {"Linf": math.inf, "L2": 2.0, "L1": 1.0}[threat.norm]
        self.not_finite: dict[int, str] = {}

    def positions(self, x: Tensor) -> Tensor:
        """(N,) which image each row of x (N,C,H,W) is of: the nearest, since upstream's objects pass rows without saying which."""
        return torch.cdist(x.flatten(1), self.x.flatten(1), p=self.p).argmin(1)

    def find(self, x: Tensor) -> Tensor:
        """(N,) the same of clean images, some of ours in our order."""
        found, at = [], 0
        for row in x:
            while not torch.equal(self.x[at], row):
                at += 1
            found.append(at)
            at += 1
        return torch.tensor(found, device=x.device)


class _Model:
    """The defense as pyautoattack sees it: `model(x)` -> logits (B,K). Call c draws from `noise.fork(c)`, row i as image i.

    Logits that are not finite are a wrong answer: they are given as zeros, the right class lower. Where, the batch notes."""

    def __init__(self, defense: Defense, noise: Noise, batch: _Batch):
        self.defense, self.noise, self.batch, self.calls = defense, noise, batch, 0
        self.of: Tensor | None = None  # which images the rows of a call are of, where that is known

    def positions(self, x: Tensor) -> Tensor:
        return self.of if self.of is not None and len(self.of) == len(x) else self.batch.positions(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self._checked(self.defense.logits(x, self._draws(x)), x, 1)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss, eot: int) -> Gradient:
        """Of the mean `loss` of `eot` purifications, as one call; y: labels, or pairs of label and target."""
        found = self.defense.loss_grad(x, y, loss, self._draws(x), eot=eot, observe=False)
        self.defense.observed.add(self.batch.ids[self.positions(x).cpu()], y % _PAIR, found, stops=False)
        logits = self._checked(found.logits.flatten(0, 1), x, eot).unflatten(0, (eot, len(x)))
        return replace(found, loss=found.loss.nan_to_num(), logits=logits)

    def _draws(self, x: Tensor) -> Noise:
        rows = torch.arange(len(x))
        self.calls += 1
        return self.noise.fork(self.calls - 1).rows(rows, torch.zeros_like(rows))

    def _checked(self, logits: Tensor, x: Tensor, copies: int) -> Tensor:
        where = f"in call {self.calls - 1} of `{self.noise.path[-1]}`"
        rows = copies * len(x)
        if logits.dim() != 2 or len(logits) != rows:
            raise RuntimeError(f"AutoAttack needs logits of shape ({rows}, classes), got {tuple(logits.shape)} {where}")
        finite = logits.isfinite().all(1)
        why = self.defense.not_finite  # by row of this call
        if finite.all() and not why:
            return logits
        position = self.positions(x)
        for row in {row % len(x) for row in (~finite).nonzero()[:, 0].tolist()} | {row for row in why if row < len(x)}:
            said = why.get(row, "the defense gave values that are not finite")
            self.batch.not_finite.setdefault(int(position[row]), f"{said} ({where})")
        why.clear()
        wrong = torch.zeros_like(logits).scatter(1, self.batch.y[position].repeat(copies)[:, None], -1)
        return logits.where(finite[:, None], wrong)


class _LastDraw(torch.autograd.Function):
    """The logits of the last of several purifications, with the gradient that is averaged over all of them: what is left in
    upstream's variables after its loop over `eot_iter`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Callable[[Tensor], Gradient]) -> Tensor:
        found = gradient(x.detach())
        ctx.grad = representable(found.grad)  # APGD looks at its direction alone, and divides by norm + 1e-12
        return found.logits[-1].clone()

    @staticmethod
    def backward(ctx: Any, *_cotangent: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


# -------------------------------------------------------------------------------------------------------- upstream's objects


class _Billed:
    """Each run of an attack is charged to the images that it runs on; what lies between two runs, to all survivors."""

    bill: _Share

    def attack_single_run(self, x: Tensor, y: Tensor, *rest: object, **options: object) -> Any:
        self.bill.charge()
        result = super().attack_single_run(x, y, *rest, **options)  # type: ignore[misc]
        self.bill.charge(x, self.shares(result))
        return result

    def shares(self, result: Sequence[Tensor]) -> Tensor | None:
        """The images' shares of a run's calls; None: all the same."""
        return None


class _APGD(_Billed, APGDAttack):
    """APGD whose loop over `eot_iter` is folded into rows."""

    model: Any

    def __init__(self, model: _Model, *, eot: int = 1, **settings: object):
        super().__init__(model, logger=_SILENT, **settings)
        self.eot = eot

    def objective(self, y: Tensor) -> tuple[Loss, Tensor]:
        return (cross_entropy if self.loss == "ce" else self.dlr_loss), y

    def attack_single_run(self, x: Tensor, y: Tensor, *rest: object, **options: object) -> Any:
        model, (loss, labels) = self.model, self.objective(y)
        model.of = model.batch.find(x)  # APGD keeps its rows in order
        # Upstream reaches the defense through `self.model` alone. Its own `eot_iter` stays 1: the draws are the rows of one call.
        self.model = lambda x_adv: _LastDraw.apply(x_adv, lambda at: model.gradient(at, labels, loss, self.eot))
        try:
            return super().attack_single_run(x, y, *rest, **options)
        finally:
            self.model, model.of = model, None


class _TargetedAPGD(_APGD, APGDAttack_targeted):
    def objective(self, y: Tensor) -> tuple[Loss, Tensor]:
        def loss(logits: Tensor, pairs: Tensor) -> Tensor:
            this = SimpleNamespace(y_target=pairs // _PAIR)  # the only attribute that upstream's function reads
            return APGDAttack_targeted.dlr_loss_targeted(this, logits, pairs % _PAIR)

        return loss, y + _PAIR * self.y_target


class _FAB(_Billed, FABAttack_PT):
    def get_diff_logits_grads_batch_targeted(
        self, imgs: Tensor, la: Tensor, la_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        def difference(logits: Tensor, pairs: Tensor) -> Tensor:
            u = torch.arange(len(logits))
            return -(logits[u, pairs % _PAIR] - logits[u, pairs // _PAIR])

        found = self.predict.gradient(imgs, la + _PAIR * la_target, difference, 1)
        return found.loss.unsqueeze(1), found.grad.unsqueeze(1)


class _Square(_Billed, SquareAttack):
    def shares(self, result: Sequence[Tensor]) -> Tensor | None:
        return result[0]  # queries per image

    # Where no survivor's margin is above zero, and some are exactly zero, Square asks for a step of no images. Under Linf that works;
    # under L2 upstream fails, since a view of no rows cannot tell their length.

    def lp_norm(self, x: Tensor) -> Tensor:
        return super().lp_norm(x) if len(x) else x.new_zeros(0, *[1] * (x.dim() - 1))

    def normalize(self, x: Tensor) -> Tensor:
        return super().normalize(x) if len(x) else x

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margin, loss = super().margin_and_loss(x, y)
        # Under L1 its projection fails there, too: a margin of zero, which counts as broken, is given as one below.
        return (margin.where(margin != 0, -1e-30) if self.norm == "L1" else margin), loss


_PAIR = 1 << 32  # label and target class as one integer, so that the pair travels with its row


# ------------------------------------------------------------------------------------------------------------------- cost


class _Bill:
    """Network (forward, backward) calls per image of a batch: what an account grew by since the last charge."""

    def __init__(self, account: Account, images: Tensor):
        self.account, self.images, self.seen = account, images, account.total()
        self.calls = torch.zeros(len(images), 2, dtype=torch.int64)

    def charge(self, ids: Tensor, shares: Tensor | None = None) -> None:
        """Divides it among `ids` (N,) in proportion to `shares` (N,); what is left of the division goes to the first ones."""
        now = self.account.total()
        parts = torch.ones(len(ids), dtype=torch.int64) if shares is None else shares.long().cpu()
        for kind in range(2):
            spent = now[kind] - self.seen[kind]
            each = spent * parts // parts.sum()
            each[: spent - int(each.sum())] += 1
            self.calls[ids, kind] += each
        self.seen = now

    def of(self, ids: Tensor) -> _Share:
        return _Share(self, ids)


class _Share:
    """The bill of one attack on the images `ids`."""

    def __init__(self, bill: _Bill, ids: Tensor):
        self.bill, self.ids = bill, ids

    def charge(self, x: Tensor | None = None, shares: Tensor | None = None) -> None:
        """To all, or to the clean images x, some of ours in our order: upstream's objects pass rows without saying which."""
        ids, found, at = self.ids, [], 0
        if x is not None:
            for row in x:
                while not torch.equal(self.bill.images[ids[at]], row):
                    at += 1
                found.append(at)
                at += 1
            ids = ids[found]
        self.bill.charge(ids, shares)
