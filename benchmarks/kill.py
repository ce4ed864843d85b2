"""The kill campaign: whatever ends a run, and whenever, the records of the finished run are the same bytes.

    python benchmarks/kill.py                     # 30 kills, about five minutes on two cores
    python benchmarks/kill.py --rounds 100 --seed 1
    python benchmarks/kill.py --attacks           # the same of a grid of every other attack, each very small

One uninterrupted run of a small grid is the reference. Then the same commands are run, killed and started again until they finish:
SIGKILL to the whole process, SIGKILL to one worker, and SIGINT to the group, as a terminal sends it; at random moments, right
after a record file grew, and between an image's row and its line. Then the run is repeated with other numbers of workers and with
the images in another order. `images.jsonl` and `adversarial.f32` of every cell must be the reference's bytes each time. After a
SIGKILL, no worker may be left two seconds later. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

COMMAND = [sys.executable, "-c", "from purebench.cli import main; main()"]
GRID = [
    *("-d", "none", "-d", "coup:steps=2", "-d", "one-shot", "-a", "null", "-a", "pgd-eot:steps=3,eot=2"),
    *("-a", "transfer:from=(reverse-sde:steps=2),attack=(pgd-eot:steps=3,eot=2)"),
]
EVERY = """
dataset = "digits"
defenses = ["diffpure:steps=2"]

[[grid]]
attacks = [
  "noise", "approximate-input:steps=2", "bpda-eot:steps=2,eot=2,average=signs", "pgd-eot:steps=2,eot=2,verify=2",
  "pgd-eot:steps=2,eot=2,targeted=true,targets=2", "pgd-eot:steps=2,eot=2,log=iterates", "joint-score:steps=2,eot=2",
  "joint-full:steps=2,eot=2", "apgd-ce:steps=4,eot=2,select=fresh", "apgd-margin:steps=4,eot=2",
  "apgd-targeted:steps=4,eot=2,n_target_classes=2", "autoattack-rand-fix:n_iter=4,eot=2,evals=4,drop=true", "hammer:steps=2,eot=3",
  "diffattack:steps=2,eot=2", "cascade:attacks=[(transfer-pgd:steps=2),(pgd-eot:steps=2,eot=2)]", "spsa:samples=4,steps=2",
  "square-eot:queries=4,eot=2", "nattack:population=4,steps=2,eot=2", "salt-and-pepper:amount=0.2",
  "autoattack-plus:n_iter=2,n_queries=4,n_restarts=1,n_target_classes=2,batch=8",
]

[[grid]]
threats = ["StAdv:0.05", "L1:3"]
attacks = ["null"]

[[grid]]
threats = ["StAdv:0.05"]
attacks = ["stadv:steps=2,eot=2"]

[[grid]]
threats = ["L1:3"]
attacks = ["pgd-eot:steps=2,eot=2", "apgd-ce:steps=4,eot=2"]
"""
AUTOATTACK = ["-a", "autoattack-rand:n_iter=2,eot=2,batch=8"]
FILES = ("images.jsonl", "adversarial.f32")
MOMENTS = ("random", "growth", "between")  # `between`: rows on disk, their lines not yet


def stages(images: int, auto: bool, grid: list[str] = GRID) -> list[list[str]]:
    """What is run, in order: a part of the images, all of them, and then more draws, which only judges again."""
    sizes = ((images - 6, 2), (images, 2), (images, 4))
    return [["run", *grid, *AUTOATTACK * auto, "--images", str(n), "--evals", str(k), "--quiet"] for n, k in sizes]


def bytes_of(out: Path) -> dict[str, bytes]:
    return {f"{cell.name}/{name}": (cell / name).read_bytes() for cell in sorted(out.iterdir()) for name in FILES}


def sizes(out: Path) -> dict[str, tuple[int, int]]:
    """file -> (size, time of the last write) of everything written so far."""
    found = {}
    for cell in os.scandir(out) if out.exists() else ():
        for name in (*FILES, "cost.jsonl", "cell.json"):
            try:
                status = os.stat(os.path.join(cell.path, name))
            except OSError:
                continue
            found[f"{cell.name}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def workers_of(pid: int) -> list[int]:
    """Processes whose parent is pid, and that run our work (not multiprocessing's own tracker)."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            parent = (
                int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]) if entry.isdigit() else 0
            )
            if parent == pid and b"spawn_main" in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(arguments: list[str], out: Path, workers: int) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *arguments, "--out", str(out), "--workers", str(workers)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # heard even where the campaign runs in the background
    )  # fmt: skip


def finish(arguments: list[str], out: Path, workers: int) -> float:
    began = time.monotonic()
    process = start(arguments, out, workers)
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"exit code {process.returncode} of {' '.join(arguments)}\n{errors}")
    return time.monotonic() - began


def wait_for(moment: str, process: subprocess.Popen, out: Path, dice: random.Random) -> bool:
    """Returns at the moment, or when the process has ended: False."""
    before = sizes(out)
    first, delay = None, dice.choice([dice.uniform(0, 0.3), dice.uniform(0, 1.5)])
    skip = dice.randrange(6)  # growths to let pass
    while process.poll() is None:
        now = sizes(out)
        if now != before:
            first = first or time.monotonic()
            changed = {name.rpartition("/")[2] for name in now if now[name] != before.get(name)}
            before = now
            if skip <= 0 and (
                moment == "growth"
                or (moment == "between" and "adversarial.f32" in changed and "images.jsonl" not in changed)
            ):
                return True
            skip -= 1
        if moment == "random" and first and time.monotonic() - first > delay:
            return True
        if not first:
            time.sleep(0.001)
    return False


def kill(process: subprocess.Popen, victim: str, dice: random.Random) -> list[int]:
    """Ends the process, or one worker of it; returns the workers that must now vanish."""
    workers = workers_of(process.pid)
    if victim == "worker" and workers:
        os.kill(dice.choice(workers), signal.SIGKILL)
        process.communicate()
        return workers
    if victim == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return workers


def orphans(workers: list[int], limit: float = 2.0) -> int:
    end = time.monotonic() + limit
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    left = [w for w in workers if alive(w)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def campaign(plan: list[list[str]], out: Path, workers: int, kills: int, dice: random.Random) -> Counter:
    """Runs the stages to their end with this many kills on the way."""
    tally: Counter = Counter()
    victims = ["whole", "whole", "interrupt"] + (["worker"] if workers > 1 else [])
    for number, arguments in enumerate(plan):
        left = kills * (number + 1) // len(plan) - kills * number // len(plan)
        for i in range(left):
            moment, victim = MOMENTS[(i + number) % 3], dice.choice(victims)
            process = start(arguments, out, workers)
            if not wait_for(moment, process, out, dice):
                process.communicate()
                tally["finished before its kill"] += 1
                continue
            tally[f"{victim} at {moment}"] += 1
            tally["orphans after 2 s"] += orphans(kill(process, victim, dice))
            tally["torn lines"] += sum(
                not p.read_bytes().endswith(b"\n") for p in out.glob("*/images.jsonl") if p.stat().st_size
            )
        finish(arguments, out, workers)
    return tally


def other_order(arguments: list[str], out: Path) -> None:
    """The same grid through the API with the images, and the batches, in reverse order."""
    code = (
        "import sys; from pathlib import Path\n"
        "from purebench.plan import grid as plan; from purebench.running import progress, runner\n"
        "d, a = ([v for k, v in zip(sys.argv, sys.argv[1:]) if k == o] for o in ('-d', '-a'))\n"
        "n, e, out = (sys.argv[sys.argv.index(o) + 1] for o in ('--images', '--evals', '--out'))\n"
        "f = next((v for v in sys.argv if v.endswith('.toml')), None)\n"
        "p = plan.build(plan.Request(f, defenses=tuple(d), attacks=tuple(a), images=int(n), evals=int(e)))\n"
        "o = runner.run(p, runner.Settings(Path(out), workers=1, reverse=True), progress.reporter(True))\n"
        "sys.exit(bool(o.failed or o.skipped))\n"
    )
    subprocess.run([sys.executable, "-c", code, *arguments, "--out", str(out)], check=True)


def has_autoattack() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import purebench.attacks.autoattack"], capture_output=True).returncode
        == 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="kills altogether (default 30)")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images per cell (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--attacks", action="store_true", help="a grid of every other attack")
    parser.add_argument("--out", type=Path, help="keep the records there")
    options = parser.parse_args()
    dice, top = random.Random(options.seed), options.out or Path(tempfile.mkdtemp(prefix="purebench-kill-"))
    auto, grid = has_autoattack() and not options.attacks, GRID
    if options.attacks:
        top.mkdir(parents=True, exist_ok=True)
        (top / "attacks.toml").write_text(EVERY)
        grid = [str(top / "attacks.toml")]
    plan = stages(options.images, auto, grid)
    began = time.monotonic()
    for arguments in plan:
        finish(arguments, top / "reference", 1)
    reference = bytes_of(top / "reference")
    missing = "" if auto or options.attacks else " (no AutoAttack: not importable)"
    print(f"reference: {len(reference) // len(FILES)} cells{missing}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{'':34}  kills  torn  orphans  cells that differ  seconds")
    bad, kills, landed = 0, 0, Counter()

    def row(name: str, out: Path, tally: Counter, began: float, cells: dict[str, bytes] = reference) -> None:
        nonlocal bad, kills
        got = {key: data for key, data in bytes_of(out).items() if key in cells or cells is reference}
        differ = sorted({key.partition("/")[0] for key in {*got, *cells} if got.get(key) != cells.get(key)})
        count = sum(n for what, n in tally.items() if " at " in what)
        kills, bad = kills + count, bad + len(differ) + tally["orphans after 2 s"]
        landed.update({k: n for k, n in tally.items() if " at " in k or k.startswith("finished")})
        took = time.monotonic() - began
        print(
            f"{name:34}  {count:5}  {tally['torn lines']:4}  {tally['orphans after 2 s']:7}  {len(differ):17}  {took:7.0f}",
            flush=True,
        )
        for cell in differ:
            print(f"    {cell}: {out / cell} is not {top / 'reference' / cell}")

    few = options.rounds // 3
    for workers, count in ((1, options.rounds - few), (2, few)):
        began, out = time.monotonic(), top / f"killed-{workers}"
        row(f"killed, --workers {workers}", out, campaign(plan, out, workers, count, dice), began)
    began, out = time.monotonic(), top / "at-once"
    finish(plan[-1], out, 3)
    row("in one go, --workers 3", out, Counter(), began)
    began, out = time.monotonic(), top / "reversed"
    other_order(stages(options.images, False, grid)[-1], out)
    # AutoAttack draws for a batch, and a batch in reverse order is another one; rand-fix does not.
    batches = ("autoattack-rand-exact", "autoattack-standard", "autoattack-plus")
    unordered = {key: data for key, data in reference.items() if not any(name in key for name in batches)}
    row("reverse order (no AutoAttack)", out, Counter(), began, unordered)
    print("; ".join(f"{n} {what}" for what, n in sorted(landed.items())))
    print(f"{kills} kills, {bad} differences or orphans: {'FAILED' if bad else 'passed'}")
    if not options.out and not bad:
        shutil.rmtree(top)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
