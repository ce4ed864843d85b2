"""`benchmarks/gpu.py`, which is meant for a GPU that may not be here: the whole of it on small networks and the CPU, and its arithmetic."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_networks

CPU = torch.device("cpu")


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(capsys, *words):
    gpu.main(["--tiny", "--device", "cpu", *words])
    return capsys.readouterr().out


def tables(text):
    """Every table as its header and its lines, cells without blanks."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append((cells[0], cells[2:]))
    return found


@pytest.mark.usefixtures("_threads")
def test_the_whole_of_it_on_small_networks(capsys, tmp_path):
    text = run(capsys, "--out", str(tmp_path / "gpu.md"))
    assert (tmp_path / "gpu.md").read_text().split() == text.split()
    assert "Left out" not in text
    parity, engine, *networks = tables(text)
    assert (
        len(parity[1]) == 16
    )  # of each network in fp32 and bf16: draws, images and gradients, or logits and gradients
    assert {line[4] for line in parity[1] if line[1] == "fp32"} == {"0 (<= 0.0001)"}
    lowered = [float(line[4]) for line in parity[1] if line[1] == "bf16" and line[3] != "noise"]
    assert all(1e-4 < value < 1 for value in lowered)
    assert [line[:2] for line in engine[1]] == [[n, m] for n in ("DDPM++ deep", "EDM") for m in ("fp32", "bf16")]
    assert not any("-" in line for line in engine[1])
    assert len(networks) == 6
    for rates, best in zip(networks[::2], networks[1::2], strict=True):
        assert rates[0] == ["rows", *gpu.MODES, *gpu.FASTER]
        assert [line[0] for line in rates[1]] == ["1", "4"]
        # What a CPU has not is a dash, and everything else a number.
        assert [cell == "-" for cell in rates[1][1][1:]] == [False, False, True, False, False, True]
        assert [line[0] for line in best[1]] == ["fp32", "fp32 channels_last", "bf16", "bf16 compiled"]
        assert all(float(line[4]) > 0 for line in best[1])


@pytest.mark.usefixtures("_threads")
def test_what_there_is_no_time_for_is_left_out_and_said(capsys):
    text = run(capsys, "--budget", "0")
    assert "parity of DDPM++ deep: out of time" in text
    assert "EDM, bf16 compiled, 4 rows: out of time" in text
    assert all(set(line[1:]) == {"-"} for header, lines in tables(text) if header[0] == "rows" for line in lines)


def setting(**changed):
    values = {"tiny": True, "least": 0.0, "ends": math.inf, "rows": 2, "steps": 2, "ladder": (1,)}
    return gpu.Setting(CPU, **values | changed)


def test_what_fails_is_a_dash_with_its_reason():
    here = setting()

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert math.isnan(gpu.tried(fails, "the stored gradient", here))
    assert math.isnan(gpu.tried(lambda: 1 / 0, "the graph", here))
    assert here.skipped == ["the stored gradient: out of memory", "the graph: ZeroDivisionError: division by zero"]
    assert gpu.tried(lambda: 2.0, "x", here) == 2.0
    assert math.isnan(gpu.tried(lambda: 2.0, "a compilation", setting(ends=0.0), need=100))


def test_a_difference_is_found_and_misses_its_target():
    [network, *_] = gpu_networks.all_networks(True)
    here = gpu.computed(network, CPU)
    gpu_networks.generated(network.module, seed=1)
    there = gpu.computed(network, CPU)
    assert gpu.apart(here["noise"], there["noise"]) == 0
    assert gpu.apart(here["gradient"], there["gradient"]) > 1e-2
    assert "MISSES" in gpu.verdict(gpu.apart(here["purified"], there["purified"]), "parity")
    assert gpu.apart(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf
    assert gpu.apart(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 10)], 0),
        ([(0, 4), (6, 10)], 0.2),
        ([(6, 10), (0, 4), (1, 3)], 0.2),  # in any order, one within another
        ([(0, 6), (4, 10)], 0),
        ([(5, 5)], 0),
    ],
)
def test_gaps_are_what_no_span_covers(spans, share):
    assert gpu.gaps(spans) == pytest.approx(share)


def test_no_event_is_no_share():
    assert math.isnan(gpu.gaps([]))


def test_generated_weights_are_alive_and_the_same_everywhere():
    first, again = gpu_networks.all_networks(True), gpu_networks.all_networks(True)
    for one, other in zip(first, again, strict=True):
        with torch.no_grad():
            out, same = (n.module(*n.inputs(2, CPU)) for n in (one, other))
        assert torch.equal(out, same)
        assert out.isfinite().all()
        assert out.std() > 1e-3


def test_operations_are_those_of_a_row():
    [network] = [n for n in gpu_networks.all_networks(True) if n.name == "WRN-28-10"]
    # A depth of 10 and a width of 1: counted by hand, of the convolutions alone, 3x3 but for two shortcuts.
    pixels = 32 * 32
    first = 3 * 16 * 9 * pixels
    blocks = sum(
        (a * b + b * b) * 9 * pixels // scale + (a * b * pixels // scale if a != b else 0)
        for a, b, scale in ((16, 16, 1), (16, 32, 4), (32, 64, 16))
    )
    assert gpu.operations(network) == 2 * (first + blocks + 64 * 10)
