"""`purebench.module`: a defense as an nn.Module, with our gradient behind autograd, for everybody else's attacks."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from purebench import datasets
from purebench.api import given
from purebench.engine import device as devices
from purebench.engine import held
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid
from purebench.running import evaluate, preflight, progress, rehearsal
from purebench.spec import Cell

STEP = 16  # network calls have a multiple of it as rows: below, a row's last bits depend on how many stand beside it
ANY = "pgd-eot"  # an attack that can use every gradient: a cell has one, and a module stands for its defense
WHICH = ("defense", "dataset", "classifier", "score", "subset")  # arguments that say what is evaluated


class Module(nn.Module):
    """A defense as a network: x (B,C,H,W) floating point in [0,1] -> logits (B,K), once differentiable in x by the defense's gradient.

    `cell` says what it is, `device` where. Its networks are its own, frozen, and stay in evaluation mode. Random: every forward draws
    anew; made with a seed, every image has the same draws always, wherever it stands in a batch. Raises UserError for what is no
    image of its dataset."""

    def __init__(self, asked: dict[str, object], job: grid.Job, resources: preflight.Resources, seed: int | None):
        """asked: the arguments of `module` that say which defense it is."""
        super().__init__()
        self.asked, self.job = asked, job
        # From torch's generator, so that `torch.manual_seed` before repeats it all; from here on by a counter of its own: an attack that
        # seeds the generator again, as FAB and Square do, would freeze the draws.
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.fixed, self._calls = seed is not None, 0
        self._home = _device(resources.device)
        memory = preflight.in_bytes(resources.memory) or devices.free_memory(self._home, 1)
        # Its own networks, not those of this process's runs: whatever an attack does to those that it holds, the judge asks others.
        evaluate.forget()
        self._defense = evaluate.build_defense(self.cell, self._home, rows=STEP, memory=memory)
        evaluate.forget()
        # Registered, so that libraries find parameters and a device.
        self.networks = nn.ModuleList(held.networks(self._defense))
        # Of the list alone: the networks are in the mode that makes them this defense.
        self.training = self.networks.training = False
        dataset = datasets.base(self.cell.dataset.name, self.cell.dataset.values)
        self._most = (
            rows_asked
            if isinstance(rows_asked := preflight.rows_of(resources.rows), int)
            else datasets.defaults(dataset)["rows"]
        )

    @property
    def cell(self) -> Cell:
        """Its defense, dataset, networks and gradient; of the attack in it nothing holds."""
        return self.job.cell

    @property
    def device(self) -> torch.device:
        """Where its networks are: libraries move them by `.to(device)`."""
        return next((p.device for p in self.parameters()), self._home)

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
        if _transformed(x):
            raise UserError(
                "a defense has a backward pass of its own, and no `torch.func`, `vmap` or forward-mode derivative",
                "use `torch.autograd.grad`, or `torch.autograd.functional.jacobian(.., vectorize=False)`",
            )
        if x.device != self.device:
            raise UserError(
                f"the images are on {x.device}, and the defense is on {self.device}", f'x.to("{self.device}")'
            )


def module(
    defense: object = "none",
    *,
    dataset: object = None,
    classifier: object = None,
    score: object = None,
    grad: object = "exact",
    seed: int | None = None,
    subset: int | None = None,
    device: str = "auto",
    rows: int | None = None,
    memory: int | str | None = None,
    **misspelt: object,
) -> Module:
    """A defense as an nn.Module, images in [0,1] to logits, for attacks of torchattacks, foolbox, ART, secml-torch or your own.

    The words are those of `purebench.run`: `purebench.module("coup:votes=3", dataset="digits", grad="bpda")`. seed: the same draws at
    every forward, instead of fresh ones; subset, rows, memory as there. Raises UserError for what that refuses."""
    given.check_words(module, misspelt)
    for word, value in (("defense", defense), ("grad", grad)):
        if isinstance(value, list | tuple):
            raise UserError(f"a module is one defense with one gradient, and `{word}` is a list", "name one of each")
    asked = {"defense": defense, "dataset": dataset, "classifier": classifier, "score": score, "subset": subset}
    request = given.request(None, {**asked, "grad": grad, "attack": ANY})
    resources = preflight.Resources(str(device), given.count("rows", rows), 1, memory)
    preflight.check_counts(resources)
    plan = grid.build(request)
    for line in plan.notes:
        progress.Reporter().say(line)
    rehearsal.check(plan)
    preflight.require_files(plan)
    if len(plan.jobs) != 1:
        raise UserError(f"a module is one defense with one gradient, and this is {len(plan.jobs)}", "name one of each")
    return Module(asked, plan.jobs[0], resources, given.count("seed", seed))


def _transformed(x: Tensor) -> bool:
    """Whether x is no plain tensor, but one of torch.func's, or carries a tangent, which would pass by the gradient that was asked for."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad.unpack_dual(x).tangent is not None


def _device(name: str) -> torch.device:
    """The device, set up as in a run; but for the threads, which are the user's own business in his process."""
    threads = torch.get_num_threads()
    try:
        return devices.setup(name)
    finally:
        torch.set_num_threads(threads)
