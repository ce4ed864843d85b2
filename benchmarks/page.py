"""How large a page of records is, and how long a browser takes to open it.

    python benchmarks/page.py                         # 50 cells x 500 images of 32x32, about two minutes
    python benchmarks/page.py --cells 10 --side 224
    python benchmarks/page.py --keep page.html        # and keep the page

The records are made up: images whose spectrum falls like that of photographs, perturbations as PGD leaves them (two thirds of the values
at the edge of the ball), ten answers each. Opening is measured in headless Chromium, from the address to the first list of images, the
middle of five; exit code 1 above 15 MB or 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from purebench.records import store
from purebench.report import page
from purebench.spec import identity

LARGEST, SLOWEST = 15e6, 2.0
DEFENSES = ("none", "diffpure", "reverse-sde", "coup", "one-shot")
EPS, DRAWS = 8 / 255, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--keep", type=Path, help="write the page there, too")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records"
        make(records, options.cells, options.images, options.side)
        began = time.perf_counter()
        text = page.render(store.load_all([records]))
        made = time.perf_counter() - began
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        if options.keep:
            shutil.copy(file, options.keep)
        size = file.stat().st_size
        shown = re.search(r"Pictures of the first (\d+) of", text)
        print(f"{options.cells} cells x {options.images} images of {options.side}x{options.side}")
        print(f"made in      {made:6.1f} s")
        print(f"size         {size / 1e6:6.2f} MB")
        print(f"pictures of  {shown[1] if shown else options.images:>6} images of each cell")
        if browser is None:
            print("no Chromium here: how long it opens is not measured")
            return int(size > LARGEST)
        opened = statistics.median(seconds(browser, file, Path(folder) / "profile") for _ in range(5))
        print(f"opens in     {opened:6.2f} s")
    return int(size > LARGEST or opened > SLOWEST)


def make(root: Path, cells: int, images: int, side: int) -> None:
    """Records on disk as a run leaves them."""
    clean = photographs(images, side)
    labels = np.random.default_rng(1).integers(0, 10, images)
    for i in range(cells):
        defense, turn = DEFENSES[i % len(DEFENSES)], i // len(DEFENSES)
        rng = np.random.default_rng(100 + i)
        edge = rng.random(clean.shape) < 0.65
        delta = np.where(edge, rng.choice([-EPS, EPS], clean.shape), rng.uniform(-EPS, EPS, clean.shape))
        attacked = clean if turn == 0 else np.clip(clean + delta, 0, 1)
        write(root, defense, turn, attacked.astype("<f4"), labels, rng)


def write(
    root: Path, defense: str, turn: int, attacked: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> None:
    """One cell: the control in turn 0, then attacks of that many steps."""
    cell = {
        "dataset": "parquet:name=made-up", "subset": "first", "classifier": "cnn", "score": "-", "defense": defense,
        "gradient": "exact" if turn else "-", "attack": f"pgd-eot:steps={turn}" if turn else "null",
        "threat": "Linf:8/255" if turn else "-", "seed": 0, "source": "",
        "parts": {kind: {"version": 1, "values": {}} for kind in ("attack", "defense")} | {"dataset": {"version": 1, "hash": "made up"}},
    }  # fmt: skip
    folder = root / identity(cell)
    folder.mkdir(parents=True)
    runs = [{"started": "2026-01-01T00:00:00+00:00", "wanted": len(labels), "evals": DRAWS, "device": "cpu"}]
    data = {"schema": store.SCHEMA, "id": folder.name, "shape": list(attacked.shape[1:]), "cell": cell, "runs": runs}
    (folder / store.CELL).write_text(json.dumps(data))
    attacked.tofile(folder / store.ADVERSARIAL)
    lines = []
    for position, label in enumerate(labels.tolist()):
        right = rng.random(DRAWS) < rng.beta(0.4, 0.4)
        wrong = int(rng.integers(0, 10))
        lines.append(
            {
                "position": position, "index": position, "label": label, "undefended": label, "clean": [label] * DRAWS,
                "adversarial": [label if ok else wrong for ok in right], "verdict": None, "linf": EPS if turn else 0.0,
                "l2": float(rng.uniform(1, 1.4)) if turn else 0.0, "nfe": [825, 825], "adv_crc": store.crc(attacked[position].tobytes()),
            }
        )  # fmt: skip
    (folder / store.IMAGES).write_text("".join(map(store.line, lines)))


def photographs(count: int, side: int) -> np.ndarray:
    """(count,3,side,side) in [0,1]: noise whose amplitude falls with frequency, colours close to each other, as in photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1 / side
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, side, side))) / frequency**1.3).real
    grey = noise.mean(1, keepdims=True) + 0.3 * noise
    low, high = grey.min((1, 2, 3), keepdims=True), grey.max((1, 2, 3), keepdims=True)
    return (grey - low) / (high - low)


def seconds(browser: str, file: Path, profile: Path) -> float:
    """From the address to the first list, as the page itself measures it."""
    with Browser(browser, profile) as opened:
        opened.ask("Page.navigate", url=file.as_uri())
        for _ in range(200):
            time.sleep(0.1)
            found = opened.ask("Runtime.evaluate", expression="document.body?.dataset.ready")
            if ready := found["result"].get("value"):
                return int(ready) / 1000
    sys.exit("the page did not open within 20 s")


class Browser:
    """Headless Chromium with one page, spoken to over its debugging pipe: JSON messages that end in a zero byte."""

    def __init__(self, command: str, profile: Path):
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # It reads from 3 and writes to 4, whatever numbers the pipes have here.
        line = f"exec {shlex.join([command, *options, 'about:blank'])} 3<&{to_read} 4>&{to_write}"
        self.process = subprocess.Popen(["bash", "-c", line], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.left, self.count, self.session = b"", 0, ""

    def __enter__(self) -> Browser:
        [page] = [of for of in self.ask("Target.getTargets")["targetInfos"] if of["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.write)
        self.process.terminate()
        self.process.wait()
        os.close(self.read)

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a call; what the browser says of itself meanwhile is passed over."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.left:
                data = os.read(self.read, 1 << 16)
                if not data:
                    sys.exit("the browser went away")
                self.left += data
            line, _, self.left = self.left.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.count:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]


if __name__ == "__main__":
    raise SystemExit(main())
