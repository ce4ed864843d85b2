"""`purebench gradcheck`: its measures on gradients that are known, its file, and what a table quotes of it."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from purebench import cli
from purebench.errors import UserError
from purebench.records import gradchecks
from purebench.records import store as records
from purebench.report import gradchecks as words
from purebench.report import tables
from purebench.running import gradcheck, preflight

DRAWS = torch.randn(gradcheck.DRAWS, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def compared(other, exact):
    found = defaultdict(list)
    gradcheck._compare(found, other, exact, gradcheck._useful(exact))
    return gradcheck._compared(found)


def test_measures_of_gradients_that_are_known():
    exact = DRAWS[:16]
    same = compared(exact, exact)
    assert same == {
        "relative_error": 0,
        "cosine": pytest.approx(1),
        "sign": 1,
        "mean_cosine": pytest.approx(1),
        "mean_sign": 1,
        "blind": 0,
    }
    # Twice as long, and turned round.
    other = compared(-2 * exact, exact)
    assert (other["relative_error"], other["cosine"], other["sign"]) == (pytest.approx(3), pytest.approx(-1), 0)
    # Half of the entries kept: the cosine of a projection is the share of the length that is left.
    half = exact.clone()
    half[:, 200:] = 0
    left = (half.norm(dim=1) / exact.norm(dim=1)).mean().item()
    assert compared(half, exact)["cosine"] == pytest.approx(left)
    assert compared(half, exact)["sign"] == pytest.approx(0.5)


def test_small_gradients_have_a_direction_and_no_gradient_has_none():
    exact = DRAWS[:4]
    assert compared(1e-170 * exact, 1e-160 * exact)["cosine"] == pytest.approx(1)
    blind = compared(0 * exact, exact)
    assert (blind["blind"], blind["cosine"], blind["sign"], blind["relative_error"]) == (1, 0, 0, 1)
    # Where the exact one is zero nothing can be compared.
    assert compared(exact, 0 * exact) == {}


def test_the_variance_of_a_mean_falls_as_its_size_grows():
    """Draws of mean mu and unit variance in P entries: P / (m |mu|^2)."""
    mu = 0.3
    for size in gradcheck.SIZES:
        found = defaultdict(list)
        gradcheck._vary(found, DRAWS + mu, size)
        expected = 1 / (size * mu**2)
        assert found["variance"][0] == pytest.approx(expected, rel=0.25), size
    gradcheck._vary(found := defaultdict(list), torch.ones_like(DRAWS), 1)
    assert (found["variance"], found["cosine"], found["sign"]) == ([0.0], [pytest.approx(1)], [1.0])


# ----------------------------------------------------------------------------------------------------------------- the command


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["purebench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def test_it_measures_writes_and_is_quoted(tmp_path, monkeypatch, capsys):
    own = ["--dataset", "digits", "--images", 2, "--evals", 2, "--workers", 1, "--device", "cpu", "--out", tmp_path]
    code, out, err = said(
        monkeypatch, capsys, "gradcheck", "-d", "gaussian:sigma=0.2", "-d", "one-shot", "--success", "-a", "pgd-eot:steps=1,eot=1", *own
    )  # fmt: skip
    assert code == 0, err
    gaussian, one_shot = gradchecks.read(tmp_path)
    # Noise and nothing else: the identity is its exact gradient.
    assert gaussian["modes"]["bpda"]["relative_error"] < 1e-6
    assert gaussian["modes"]["bpda"]["sign"] > 0.999
    assert gaussian["same"] == {"detached": "exact"}
    assert "is no SDE" in gaussian["left_out"]["adjoint"]
    assert one_shot["modes"]["bpda"]["relative_error"] > 0.1
    for check in (gaussian, one_shot):
        variances = [check["eot"][str(m)]["variance"] for m in (1, 64)]
        assert variances[1] < variances[0] / 8
        # A right gradient: rounding and curvature leave a valley between them.
        assert min(of["along"] for of in check["differences"].values()) < 5e-3
        assert min(of["across"] for of in check["differences"].values()) < 5e-3
        assert set(check["success"]["modes"]) == {"exact", "bpda"}
        assert check["success"]["modes"]["exact"]["difference"] == 0
    assert "| bpda" in out
    assert "Success of pgd-eot" in out
    text = tables.render(records.load_all([tmp_path]))
    assert "gradcheck: bpda on one-shot against exact (2 images): relative error" in text
    # Measured again, an entry is replaced; another defense's stays.
    gradchecks.save(tmp_path, {**one_shot, "images": 7})
    assert [check["images"] for check in gradchecks.read(tmp_path)] == [2, 7]
    # Of another version of the defense it says nothing.
    older = json.loads(json.dumps(one_shot))
    older["of"]["parts"]["defense"]["version"] = 0
    (tmp_path / gradchecks.FILE).write_text(json.dumps({"checks": [older]}))
    assert "gradcheck:" not in tables.render(records.load_all([tmp_path]))
    (tmp_path / gradchecks.FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged") as error:
        tables.render(records.load_all([tmp_path]))
    assert error.value.hint


def test_success_is_counted_on_the_same_images():
    def log(gradient, right):
        lines = [
            {"position": i, "label": 1, "clean": [1, int(i > 0)], "adversarial": [int(i < right)] * 2} for i in range(4)
        ]
        cell = {"gradient": gradient, "attack": "a", "threat": "t"}
        return records.Log(gradient, cell, [], lines, 0.0, None)

    found = words.success([log("exact", 1), log("bpda", 3)])["modes"]
    assert found["exact"] | {"low": 0, "high": 0} == {
        "success": 0.75,
        "of_right": 1.0,
        "difference": 0,
        "low": 0,
        "high": 0,
    }
    assert (found["bpda"]["success"], found["bpda"]["difference"]) == (0.25, -0.5)
    assert words.success([log("bpda", 3)]) == {}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"defenses": ()}, "no defense was named"),
        ({"grads": ("adjoint",)}, "is no SDE"),
        ({"grads": ("exakt",)}, "unknown gradient"),
        ({"attacks": ("transfer-pgd",)}, "asks for no gradient"),
        ({"images": 0}, "not possible"),
    ],
)
def test_what_cannot_be_checked_is_refused(asked, why):
    request = gradcheck.Request(**({"defenses": ("gaussian",), "dataset": "digits"} | asked))
    with pytest.raises(UserError, match=why) as error:
        gradcheck.prepare(request, preflight.Resources("cpu"), Path("nowhere"), note=None)
    assert error.value.hint
