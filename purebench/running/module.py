"""A defense for everybody else's attacks: `module` is an nn.Module with our gradient behind autograd, `judge` records what came of it."""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from purebench import datasets
from purebench.engine import device as devices
from purebench.engine.noise import Noise
from purebench.errors import FAILED, UserError
from purebench.plan import grid
from purebench.records import frame
from purebench.running import evaluate, preflight, progress, rehearsal, runner
from purebench.spec import Cell, Part, ThreatModel

STEP = 16  # network calls have a multiple of it as rows: below, a row's last bits depend on how many stand beside it
ANY = "pgd-eot"  # an attack that can use every gradient: a cell has one, and a module stands for its defense


class Module(nn.Module):
    """A defense as a network: x (B,C,H,W) floating point in [0,1] -> logits (B,K), once differentiable in x by the defense's gradient.

    `cell` says what it is, `device` where. Its networks are its own, frozen, and stay in evaluation mode. Random: every forward draws
    anew; made with a seed, every image has the same draws always, wherever it stands in a batch. Raises UserError for what is no
    image of its dataset."""

    def __init__(self, request: grid.Request, job: grid.Job, resources: preflight.Resources, seed: int | None):
        super().__init__()
        self.request, self.job, self.resources = request, job, resources
        # From torch's generator, so that `torch.manual_seed` before repeats it all; from here on by a counter of its own: an attack that
        # seeds the generator again, as FAB and Square do, would freeze the draws.
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.fixed, self._calls = seed is not None, 0
        self.device = _device(resources.device)
        memory = preflight.in_bytes(resources.memory) or devices.free_memory(self.device, 1)
        # Not the networks of this process's runs: whatever an attack does to those that it holds, the judge asks others.
        evaluate.forget()
        self._defense = evaluate.build_defense(self.cell, self.device, rows=STEP, memory=memory)
        self._networks = nn.ModuleList(evaluate.networks(self.cell, self.device))
        evaluate.forget()
        self.requires_grad_(False)
        super().train(False)
        dataset = datasets.base(self.cell.dataset.name, self.cell.dataset.values)
        self._most = resources.rows or datasets.defaults(dataset)["rows"]

    @property
    def cell(self) -> Cell:
        """Its defense, dataset, networks and gradient; of the attack in it nothing holds."""
        return self.job.cell

    @property
    def calls(self) -> tuple[int, int]:
        """(forward, backward) network calls so far, those of every image counted."""
        return self._defense.spent.total()[:2]

    def train(self, mode: bool = True) -> Module:
        """Nothing: a defense is evaluated, and what dropout and batch norm do in training is another one."""
        return self

    def extra_repr(self) -> str:
        cell = self.cell
        draws = "the same draws always" if self.fixed else "fresh draws at every forward"
        return f"{cell.defense} @{cell.gradient} of {cell.classifier} on {cell.dataset}, score {cell.score}; {draws}"

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        self._calls += 1
        # The fixed ones are of no image: which one a row is, nobody says here.
        ids = torch.zeros(len(x), dtype=torch.int64) if self.fixed else torch.arange(len(x))
        path = ("module",) if self.fixed else ("module", self._calls)
        return self.logits(x, Noise(self.seed, "attack", path, ids, torch.zeros_like(ids)))

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        """(B,K) logits with draws of one's own; differentiable as `forward`."""
        defense = copy.copy(self._defense)
        # No more rows than are needed: other people's attacks often ask for one image.
        defense.rows = min(self._most, math.ceil(len(x) * defense.votes / STEP) * STEP) or STEP
        return defense.logits(x.to(self._dtype), noise)

    def images(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """(x (N,C,H,W) float32 in [0,1], labels (N,)) of the run's first images, on its device: those that `judge` and `given` expect,
        in their order. count: the dataset's default where it is not said."""
        order = datasets.order(self.job.size, self.cell.subset)
        count = min(self.job.images, len(order)) if count is None else count
        if not 1 <= count <= len(order):
            raise UserError(f"{count} images are not possible: there are {len(order)}", f"choose 1 to {len(order)}")
        x, y = evaluate.dataset(self.cell.dataset).take(order[:count])
        return x.to(self.device), y.to(self.device)

    @property
    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise UserError(f"the images are a {type(x).__name__}, expected a tensor", "torch.as_tensor(x)")
        shape = self.job.shape
        if list(x.shape[1:]) != shape or x.dim() != 4:
            c, h, w = shape
            hint = f"images of {self.cell.dataset}"
            if list(x.shape) == shape:
                hint = "a batch of one: x[None]"
            elif list(x.shape[1:]) == [h, w, c]:
                hint = "channels first: x.permute(0, 3, 1, 2)"
            raise UserError(f"the images have the shape {list(x.shape)}, expected [B,{c},{h},{w}]", hint)
        if x.device != self.device:
            raise UserError(
                f"the images are on {x.device}, and the defense is on {self.device}", f'x.to("{self.device}")'
            )


def module(
    defense: str = "none",
    *,
    dataset: str | None = None,
    classifier: str | None = None,
    score: str | None = None,
    grad: str = "exact",
    seed: int | None = None,
    subset: int | None = None,
    device: str = "auto",
    rows: int | None = None,
    memory: int | str | None = None,
) -> Module:
    """A defense as an nn.Module, images in [0,1] to logits, for attacks of torchattacks, foolbox, ART, secml-torch or your own.

    The words are those of `purebench run`: `purebench.module("coup:votes=3", dataset="digits", grad="bpda")`. seed: the same draws at
    every forward, instead of fresh ones; subset, rows, memory as there. Raises UserError for what that command refuses."""
    request = grid.Request(
        defenses=(defense,), attacks=(ANY,), grads=(grad,), dataset=dataset, classifier=classifier, score=score, subset=subset
    )  # fmt: skip
    resources = preflight.Resources(device, rows, 1, memory)
    preflight.check_counts(resources)
    plan = grid.build(request)
    for line in plan.notes:
        progress.Reporter().say(line)
    rehearsal.check(plan)
    preflight.require_files(plan)
    if len(plan.jobs) != 1:
        raise UserError(f"a module is one defense, and `{defense}` of these makes {len(plan.jobs)}", "name one")
    return Module(request, plan.jobs[0], resources, seed)


def judge(
    x_adv: Tensor | np.ndarray,
    defense: str | Module,
    *,
    threat: str | ThreatModel | None = None,
    name: str = "",
    project: bool = False,
    dataset: str | None = None,
    classifier: str | None = None,
    score: str | None = None,
    subset: int | None = None,
    seed: int = 0,
    evals: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    rows: int | None = None,
    memory: int | str | None = None,
    quiet: bool = False,
) -> frame.pandas.DataFrame:
    """Judges images that any attack has made: one row per image, as `purebench.load` has them, and the same records as the attack `given`.

    x_adv: (N,C,H,W) float32 in [0,1], image k that of position k of the run (`Module.images`). defense: in the words of `purebench run`,
    with dataset, classifier, score and subset as there; or a `Module`, which has these. threat: `Linf:8/255`, the dataset's if not
    said; name, project: as of `given`; evals: fresh purifications of each image; seed: of the judge's draws, none of which a module has
    seen; out: the folder of records, kept nowhere if not said. Raises UserError for the first image that is outside the threat model."""
    if isinstance(defense, Module):
        given = (dataset, classifier, score, subset)
        if given != (None,) * len(given):
            raise UserError("a module has its dataset, networks and subset", "leave them out, or name the defense")
        asked, device = defense.request, str(defense.device)
    else:
        asked = grid.Request(
            defenses=(defense,), dataset=dataset, classifier=classifier, score=score, subset=subset
        )  # fmt: skip
    found = x_adv.detach().cpu().numpy() if isinstance(x_adv, Tensor) else np.asarray(x_adv)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="purebench-") as folder:
        # By way of a file, so that there is one reader, one check and one identity.
        file = Path(folder, "x_adv.npy")
        np.save(file, found, allow_pickle=False)
        attack = Part("given", (("path", str(file)), *((("name", name),) if name else ()), ("project", project)))
        request = replace(
            asked, attacks=(str(attack),), grads=(), threats=(str(threat),) if threat else (), seeds=(seed,), evals=evals,
            images=len(found),
        )  # fmt: skip
        place = Path(folder if out is None else out)
        try:
            plan, settings = preflight.prepare(
                request, preflight.Resources(device, rows, 1, memory), place, note=progress.Reporter().say
            )
            preflight.require_files(plan)
            with contextlib.closing(progress.reporter(quiet)) as report:
                outcome = runner.run(plan, settings, report)
        except UserError as error:
            raise UserError(error.message.replace(f"`{file}`", "`x_adv`"), error.hint, error.code) from None
        finally:
            torch.set_num_threads(threads)
        for cell, why in outcome.failed.items():
            raise UserError(f"cell {cell} failed: {why}", "the images and the defense are as they were", FAILED)
        if outcome.skipped:
            raise UserError(f"another process is computing {outcome.skipped[0]}", "wait for it", FAILED)
        return frame.load(*(runner.place(place, job.cell) for job in plan.jobs))


def _device(name: str) -> torch.device:
    """The device, set up as in a run; but for the threads, which are the user's own business in his process."""
    threads = torch.get_num_threads()
    try:
        return devices.setup(name)
    finally:
        torch.set_num_threads(threads)
