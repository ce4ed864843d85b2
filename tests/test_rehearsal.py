"""What cannot run is refused before anything runs: exit code 2, one error, a hint, and nothing written."""

import pytest
import torch
from typer.testing import CliRunner

from purebench import cli, embedded, registry
from purebench.engine.identity import Identity
from purebench.errors import UserError
from purebench.plan import grid as plan
from purebench.plan.grid import Request
from purebench.running import rehearsal
from purebench.scores.vp import VPScore

INFO = {  # of the plug-ins below
    "my-score": {"summary": "a plug-in", "size": [1, 8, 8], "digest": "d"},
    "my-purifier": {"summary": "a plug-in", "needs": []},
}
SMALL = {"dataset": "cifar10", "score": "cifar10-small"}


def refused(defense, words, attack="null", **given):
    request = Request(**{"dataset": "digits", "defenses": (defense,), "attacks": (attack,), **given})
    with pytest.raises(UserError, match=words) as caught:
        rehearsal.check(plan.build(request))
    assert caught.value.hint
    assert caught.value.code == 2


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        ("scoreopt-n:objective=mse", "unknown objective of `scoreopt-n` `mse`"),
        ("scoreopt-n:variant=code,objective=sr", "objective=sr, variant=code is not possible"),
        ("adp:variant=code,update=langevin", "it needs update == 'deterministic'"),
        ("diffpure-ddpm:variance=learned", "learned its variances"),
        ("gdmp:form=imagenet", "learned its variances"),
        ("gdmp:form=imagenet,t=300", "it needs t <= 250"),
        ("gdmp:guidance=foo", "unknown guidance of `gdmp` `foo`"),
        ("gns:stages=[]", "stages"),
        ("gns:stages=30", "is no list"),
        ("gns:steps=5", "is no list"),
        ("gns:stages=[30,0]", "whole numbers from 1"),
        ("gns:stages=[2000]", "stages"),
        ("gns:stages=[a]", "whole numbers"),
        ("gns:stages=[30,50],steps=[5]", "1 stages, `stages` names 2"),
        ("diffpure:t=0.1234", "not a multiple of"),
        ("diffpure-ddpm:t=0.0995", "not a multiple of"),
        ("edm:sigma=1e9", "above the score model's largest"),
        ("ebm:level=1e-9", "too small"),
    ],
)
def test_parameters_that_do_not_go_together(defense, words):
    refused(defense, words)


@pytest.mark.parametrize(
    ("defense", "given", "words"),
    [
        ("coup:t=0.5", SMALL, r"more noise than it was trained on: 3.41"),
        ("one-shot:sigma=50", SMALL, "more noise"),
        ("lm:low=1,high=99", SMALL, "more noise"),
        ("gns:stages=[900]", SMALL, "more noise"),
        ("scoreopt-o:sigma=4,width=0.5", SMALL, "more noise"),
        ("gdmp:t=900,passes=1", SMALL, "more noise"),
        *[
            (d, {"dataset": "cifar10", "score": "ebm"}, "knows one level, 0.02")
            for d in ("diffpure", "coup", "one-shot", "gns", "scoreopt-o:width=0", "gdmp")
        ],
        ("scoreopt-o", {"dataset": "cifar10", "score": "ebm"}, "one noise level for all images"),
    ],
)
def test_score_models_that_cannot_serve(defense, given, words):
    refused(defense, words, **given)


def test_the_purifier_of_a_surrogate_is_walked_too():
    refused("coup", "more noise", "pgd-eot", grads=("surrogate:defense=(one-shot:sigma=50)",), **SMALL)
    refused("gns", "names 1", "pgd-eot", grads=("surrogate:stages=[20]",))


@pytest.mark.parametrize(
    ("defense", "given"),
    [
        ("gdmp", SMALL),  # an index is no time
        ("gaussian:sigma=2", {}),  # asks no score model
        ("edm:sigma=80,steps=18,start=13", SMALL),  # begins at 0.14
        ("gdmp:guidance=none", {}),
        ("diffpure-ddpm:t=1", {}),  # the last of the discrete levels
        ("gns:stages=[1000],steps=[1000]", {}),
        ("adp:first=0.0001", {}),  # not read by the updates that adapt
        ("lm:low=0.02,high=0.02", {"dataset": "cifar10", "score": "ebm"}),
        ("ebm", {"dataset": "cifar10", "score": "ebm"}),
        ("adp", {"dataset": "cifar10", "score": "ebm"}),
        ("diffpure-ddpm:variance=learned", {"dataset": "cifar10", "score": "guided-diffusion"}),
        ("gdmp:form=imagenet", {"dataset": "cifar10", "score": "guided-diffusion"}),
    ],
)
def test_what_can_run_passes(defense, given):
    rehearsal.check(plan.build(Request(**{"dataset": "digits", "defenses": (defense,), "attacks": ("null",), **given})))


def test_a_grid_with_one_that_cannot_run_runs_none(tmp_path):
    arguments = [
        "run",
        "-d",
        "one-shot",
        "-d",
        "gns:stages=[2000]",
        "-a",
        "null",
        "--dataset",
        "digits",
        "--images",
        "2",
    ]
    outcome = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "out")])
    assert isinstance(outcome.exception, UserError) or outcome.exit_code == 2
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------- plug-ins


def my_score():
    score = VPScore(embedded.load("digits-score"), (1, 8, 8), t_max=float(torch.linspace(0, 1, 3)[-1]))  # reads a value
    assert next(score.network.parameters()).device.type == "cpu"
    return score


class Particular(Identity):
    """Takes images of 32x32 alone."""

    def start(self, x, noise):
        if x.shape[-1] != 32:
            raise UserError("images of 32x32 are wanted", "give such")
        return super().start(x, noise)


def my_purifier(score, classifier, *, broken: bool = False):
    if broken:
        raise ValueError("it is broken")
    return Particular()


@pytest.fixture
def plugins(monkeypatch):
    monkeypatch.setitem(registry.NAMES["score"], "my-score", "test_rehearsal:my_score")
    monkeypatch.setitem(registry.NAMES["defense"], "my-purifier", "test_rehearsal:my_purifier")
    registry.names.cache_clear()
    yield
    monkeypatch.undo()
    registry.names.cache_clear()


def rehearse(defense, **given):
    rehearsal.check(plan.build(Request(**{"dataset": "digits", "defenses": (defense,), "attacks": ("null",), **given})))


def test_a_plug_ins_score_model_is_left_to_the_run(plugins):
    rehearse("one-shot:sigma=1000", score="my-score")


def test_a_plug_ins_purifier_sees_images_of_the_real_size(plugins):
    rehearse("my-purifier", dataset="cifar10")
    with pytest.raises(UserError, match="images of 32x32 are wanted"):
        rehearse("my-purifier")


def test_a_plug_in_that_cannot_be_made_is_an_error_in_words(plugins):
    with pytest.raises(UserError, match="`my-purifier` cannot be made: ValueError: it is broken"):
        rehearse("my-purifier:broken=true")


def test_a_transfer_source_does_not_inherit_an_energy():
    request = Request(
        dataset="cifar10", defenses=("ebm:score=ebm",), attacks=("transfer:from=(reverse-sde)",), images=1
    )
    the_plan = plan.build(request)
    assert [job.cell.score for job in the_plan.jobs] == ["score-sde", "ebm"]
    rehearsal.check(the_plan)
