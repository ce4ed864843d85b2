"""Somebody else's classifier as ours are: (B,C,H,W) in [0,1] -> logits (B,K), in evaluation mode and frozen, and probed before anything
is computed with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from purebench.engine import held
from purebench.engine.draws import Draws, rows_here
from purebench.engine.noise import Noise
from purebench.errors import UserError


def as_classifier(
    made: Any, classes: int, shape: list[int], *, name: str, own_mode: bool = False, device: torch.device | str = "cpu"
) -> Foreign:
    """What a classifier's factory made, for images of `shape` [C,H,W] in [0,1] and `classes` classes (0: not known), on a device.

    Understood are logits (B,K); an object's or a dictionary's `logits`; a tuple's first tensor; and one logit for two classes: (0, z).
    `own_mode`: it stays in the mode that it was made in. Raises UserError for anything else, with what came."""
    if not callable(made):
        raise UserError(
            f"the classifier `{name}` is an object of type `{type(made).__name__}`, which cannot be called",
            "return an `nn.Module` or a function: images (B,C,H,W) in [0,1] -> logits (B,K)",
        )
    held.settle(made, device, own_mode)
    found = Foreign(made, classes, name)
    x = Noise(0, "probe", (), range(3), [0] * 3).uniform(0, torch.empty(3, *shape)).to(device)
    with torch.no_grad():
        found.probe(x[:2])
        # Beside another image: one in training mode normalises by its batch.
        together, beside = found(x[:2]), found(x[::2])
    found.coupled = bool((together[0] - beside[0]).abs().max() > 1e-3 * together[0].abs().max())
    return found


class Foreign(nn.Module):
    """`made` with its answers read as logits. `draws`: whether it draws, which it then does for each image; `batch`: what it draws for the
    batch; `coupled`: whether an image's answer depends on those beside it; `answers`: how many classes the probe's logits were of."""

    def __init__(self, made: Any, classes: int, name: str):
        super().__init__()
        self.made, self.classes, self.name = made, classes, name
        # Of a function too: whoever looks for an altered weight finds them here.
        self.networks = nn.ModuleList(held.networks(made))
        self.draws = self.coupled = False
        self.answers = classes
        self.batch: set[str] = set()
        self._held = held.generators(made)

    def forward(self, x: Tensor) -> Tensor:
        # A copy: what writes into its images must not change them for the others.
        given = x.clone()
        if not self.draws:
            return self._logits(self.made(given), x)
        # Without rows of its own (guidance inside a purifier, or asked by hand) always the same.
        noise = rows_here(len(x)) or Noise(0, "classifier", (), range(len(x)), [0] * len(x))
        draws = Draws(noise.fork("classifier"), self._held)
        with draws:
            logits = self._logits(self.made(given), x)
        self.batch |= draws.batch
        return logits

    def probe(self, x: Tensor) -> None:
        """Asks about x (B,C,H,W), and notes whether it draws. Raises UserError for what are no logits of the data set's classes."""
        try:
            draws = Draws(Noise(0, "classifier", (), range(len(x)), [0] * len(x)), self._held)
            with draws:
                came = self.made(x.clone())
        except UserError:
            raise
        except RuntimeError as error:
            # Most often another size or number of channels.
            raise UserError(
                f"the classifier `{self.name}` failed on two images of {tuple(x.shape[1:])} in [0,1]: {error}",
                "it is given images as the data set has them, and normalises and resizes inside",
            ) from error
        self.draws, self.batch = bool(draws.number or draws.batch), set(draws.batch)
        logits = self._logits(came, x)
        self.answers = logits.shape[1]
        if not logits.isfinite().all():
            raise UserError(
                f"the classifier `{self.name}` gave logits that are not finite for images in [0,1]",
                "it is given images in [0,1], and normalises inside",
            )

    def _logits(self, came: Any, x: Tensor) -> Tensor:
        logits, k = answered(came), self.classes
        hint = "return logits (B,K), one for each class of the data set; a tuple's first tensor or `.logits` will do"
        if logits is None:
            raise UserError(f"the classifier `{self.name}` returned {_described(came)}, and no logits", hint)
        if not logits.is_floating_point():
            raise UserError(
                f"the classifier `{self.name}` returned {logits.dtype}: classes, or no logits",
                "return what stands before `argmax`: attacks need its gradient",
            )
        # Of a data set that does not say how many classes it has, too: of one class every answer would be right.
        if k in (0, 2) and tuple(logits.shape) in ((len(x),), (len(x), 1)):
            z = logits.reshape(-1)
            logits = torch.stack([torch.zeros_like(z), z], 1)
        wrong = logits.dim() != 2 or len(logits) != len(x) or (k and logits.shape[1] != k)
        if wrong:
            if k and logits.dim() == 2 and len(logits) == len(x):
                saying = f"`classes={logits.shape[1]}`, or `classes` in its file's INFO"
                hint += f"; or, if the data set has {logits.shape[1]} classes, let it say so: {saying}"
            raise UserError(
                f"the classifier `{self.name}` returned a tensor of shape {tuple(logits.shape)} for {len(x)} images, "
                f"expected ({len(x)}, {k or 'K'})",
                hint,
            )
        if logits.device != x.device:
            raise UserError(
                f"the classifier `{self.name}` answers on {logits.device} for images on {x.device}",
                "keep its tensors as parameters or buffers, which move with it",
            )
        return logits.to(x.dtype)


def answered(came: Any) -> Tensor | None:
    """The logits in an answer: itself, its `logits`, or the first tensor of several; None where there are none."""
    if isinstance(came, Tensor):
        return came
    # Hugging Face's outputs are dictionaries with attributes.
    found = came.get("logits") if isinstance(came, Mapping) else getattr(came, "logits", None)
    if found is None and isinstance(came, tuple | list):
        found = next((part for part in came if isinstance(part, Tensor)), None)
    return found if isinstance(found, Tensor) else None


def _described(came: Any) -> str:
    if isinstance(came, Mapping):
        return f"a dictionary of {', '.join(f'`{key}`' for key in list(came)[:5])}"
    return "nothing" if came is None else f"an object of type `{type(came).__name__}`"
