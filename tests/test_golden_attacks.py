"""Recorded arrays of the published attacks against ours, each within the tolerance of its description."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import recorded

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import golden_attacks

torch.set_num_threads(1)


@pytest.mark.parametrize("name", golden_attacks.CHECKS)
def test_a_recorded_attack_is_ours(name):
    rows = list(golden_attacks.CHECKS[name](recorded))
    assert rows
    for what, found, allowed in rows:
        print(f"{what}: {found:.1e}")
        assert found <= allowed, what


def test_the_table_names_what_is_not_here_and_what_is_outside(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PUREBENCH_GOLDEN", raising=False)
    monkeypatch.setattr(golden_attacks, "SMALL", tmp_path)
    monkeypatch.setitem(golden_attacks.CHECKS, "planted", lambda load: iter([("planted", 2e-6, 1e-6)]))
    assert golden_attacks.main() == 1
    said = capsys.readouterr().out
    assert "OUTSIDE" in said
    assert "hill, whole loop: no " in said
