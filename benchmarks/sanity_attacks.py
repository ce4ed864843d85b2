"""Attacks that ask for no gradient against the exact one, on defenses that are smooth; StAdv against its bound; salt and pepper against its
share. On the embedded digits, in minutes on one core.

    python benchmarks/sanity_attacks.py [--images 32] [--queries 1000]

Three tables:

1. robust accuracy of `none` and `gaussian` under PGD by the exact gradient, SPSA (both variants) and Square on several draws. On a smooth
   defense a search cannot beat the gradient: where one does by more than its Wilson interval, the gradient is masked, or wrong.
2. robust accuracy against StAdv's bound, which has to fall.
3. accuracy of the bare classifier on the 500 test images against the share of salt and pepper, up to the one at which it is 87.8 %.

Exit code 1: one of the first two does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import Tensor

from purebench import embedded, registry
from purebench.datasets import digits
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.nfe import watch
from purebench.engine.noise import Noise
from purebench.purifiers.gaussian import Gaussian
from purebench.report.metrics import wilson
from purebench.spec import ThreatModel, parse, threat

EXACT = "pgd-eot:steps=40,eot=10"
BOUNDS = (0.01, 0.02, 0.05, 0.1)
WANTED = 0.878  # COUP's undefended accuracy on salt and pepper


def attacked(text: str, defense: Defense, x: Tensor, y: Tensor, model: ThreatModel, seed: int = 0) -> Tensor:
    part = parse(text, "attack")
    noise = Noise(seed, "attack", (part.name,), range(len(x)), [0] * len(x))
    return registry.factory("attack", part.name)(**dict(part.parameters))(defense, x, y, model, noise).x_adv


def accuracy(defense: Defense, x: Tensor, y: Tensor, draws: int) -> float:
    noise = Noise(0, "judge", (), range(len(x)), [0] * len(x))
    return (defense.draws(x, noise, 0, draws).argmax(2) == y[:, None]).double().mean().item()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=32, metavar="N")
    options.add_argument("--queries", type=int, default=1000, metavar="N", help="of Square")
    given = options.parse_args()
    torch.set_num_threads(1)
    classifier = watch(embedded.load("digits-classifier"))
    every, labels = digits.test()
    x, y = every[: given.images], labels[: given.images]
    wrong = False

    print(f"{given.images} digits, Linf:0.15, robust accuracy over 20 fresh purifications\n")
    print("| defense | attack | robust | Wilson 95 % | seconds |\n|---|---|---|---|---|")
    searches = (
        "spsa:samples=64",
        "spsa:samples=64,variant=adam,rel_step=0.31875",
        f"square-eot:queries={given.queries},eot=5",
    )
    for name, purifier in (("none", Identity()), ("gaussian:sigma=0.3", Gaussian(0.3))):
        defense, lowest = Defense(purifier, classifier), 0.0
        for text in (EXACT, *searches):
            began = time.perf_counter()
            robust = accuracy(defense, attacked(text, defense, x, y, threat("Linf:0.15")), y, 20)
            low, high = wilson(robust, len(x))
            lowest = low if text == EXACT else lowest
            wrong |= robust < lowest
            print(f"| {name} | {text} | {robust:.1%} | {low:.1%} .. {high:.1%} | {time.perf_counter() - began:.0f} |")

    print("\n| defense | clean |", *(f" StAdv:{bound} |" for bound in BOUNDS), "\n|---|---|" + "---|" * len(BOUNDS))
    for name, purifier, eot in (("none", Identity(), 1), ("gaussian:sigma=0.3", Gaussian(0.3), 10)):
        defense, found = Defense(purifier, classifier), [accuracy(Defense(purifier, classifier), x, y, 20)]
        for bound in BOUNDS:
            moved = attacked(f"stadv:eot={eot}", defense, x, y, ThreatModel("StAdv", bound))
            found.append(accuracy(defense, moved, y, 20))
        wrong |= found != sorted(found, reverse=True)
        print(f"| {name} |", *(f"{value:.1%} |" for value in found))

    print("\n| pixels of 64 | amount | bare accuracy, 5 seeds x 500 |\n|---|---|---|")
    bare, count, mean = Defense(Identity(), classifier), 0, 1.0
    while mean > WANTED and count < 64:
        count += 1
        text = f"salt-and-pepper:amount={count / 64}"
        noisy = [attacked(text, bare, every, labels, threat("box"), seed) for seed in range(5)]
        before, mean = mean, sum(accuracy(bare, images, labels, 1) for images in noisy) / 5
        print(f"| {count} | {count / 64:.4f} | {mean:.1%} |")
    nearest = count if mean > WANTED or WANTED - mean < before - WANTED else count - 1
    print(f"\n{WANTED:.1%} is nearest at {nearest} of 64 pixels: amount={nearest / 64:.3f}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
