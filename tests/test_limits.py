"""What an attack cannot do is known before it runs, and only that: a plan refuses exactly where the attack itself would fail."""

import sys
from pathlib import Path

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import nn
from typer.testing import CliRunner

from purebench import registry
from purebench.attacks import autoattack
from purebench.classifiers.foreign import as_classifier
from purebench.cli import app
from purebench.engine.defense import Defense
from purebench.engine.identity import Identity
from purebench.engine.noise import Noise
from purebench.errors import UserError
from purebench.plan import grid, limits
from purebench.plan.grid import Request
from purebench.purifiers import make
from purebench.running import evaluate, preflight, rehearsal
from purebench.spec import Resolved, ThreatModel, parse

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from odd_shapes import SHAPES, Case, outcome

torch.set_num_threads(1)
STANDARD = "autoattack-standard:n_iter=1,n_queries=2"
LINF, L2 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.5)
PARTS = """
import torch
def images(*, highest: int = 7):
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % (highest + 1)
def network(*, k: int = 5):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, k))
def one_logit(*, flat: bool = False):
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 1)]
    return torch.nn.Sequential(*layers, *[torch.nn.Flatten(0)] * flat)
INFO = {"declared": {"summary": "says that it has ten classes", "classes": 10}}
def declared(*, highest: int = 12):
    return images(highest=highest)
"""


def resolved(attack):
    part = parse(attack, "attack")
    values = registry.validated("attack", part.name, dict(part.parameters))
    return Resolved("attack", part, 1, values, info=registry.info("attack", part.name))


def refusal(attack, threat, shape, classes=10):
    """The message of the plan's refusal; empty where there is none."""
    try:
        limits.check(resolved(attack), threat, shape, classes, "it")
    except UserError as error:
        return error.message
    return ""


def noise(count, path="test"):
    return Noise(0, "attack", (path, 0), torch.arange(count), torch.zeros(count, dtype=torch.int64))


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "parts.py"
    file.write_text(PARTS)
    return file


# ------------------------------------------------------------------------------------------------------------------ shapes


def works(norm, height, width):
    """Whether pyautoattack's Square takes such images, as AutoAttack configures it."""
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    square = SquareAttack(
        lambda x: logits.repeat(len(x), 1), norm=norm, eps=0.5, n_queries=1, p_init=0.8, resc_schedule=False, device="cpu"
    )  # fmt: skip
    try:
        square.perturb(torch.full((1, 1, height, width), 0.5), torch.zeros(1, dtype=torch.int64))
    except (RuntimeError, ZeroDivisionError):
        return False
    return True


def test_a_plan_refuses_the_shapes_that_square_cannot_take_and_no_others():
    """24x24, which is square, is among those that fail under L2, and 40x32, which is higher than wide, is not."""
    shapes = {(h, w) for h in range(1, 27) for w in range(1 + h % 8, 27, 8)} | {s[1:] for s in SHAPES}
    shapes |= {(24, 24), (47, 47), (63, 21), (9, 60), (18, 2)}
    with torch.random.fork_rng():
        found = {s: works("L2", *s) for s in shapes}
        assert all(works("Linf", *s) for s in sorted(shapes)[::15])
    planned = {s: not refusal(STANDARD, L2, [1, *s]) for s in shapes}
    assert planned == found
    assert not found[24, 24]
    assert not found[44, 40]
    assert found[40, 32]
    assert all(not refusal(STANDARD, LINF, [1, *s]) for s in shapes)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (Case("AutoAttack", "L2:0.5", 10, (3, 44, 40)), "refused"),
        (Case("AutoAttack", "L2:0.5", 10, (1, 4, 16)), "refused"),
        (Case("BPDA DLR", "Linf:0.1", 2, (1, 8, 8)), "refused"),
        (Case("AutoAttack", "L2:0.5", 10, (1, 16, 4)), "runs"),
    ],
)
def test_run_and_dry_run_say_the_same(case, what, tmp_path):
    found, why = outcome(case, tmp_path)
    assert found == what, why


# ----------------------------------------------------------------------------------------------------------------- classes


class Head(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return x.flatten(1).repeat(1, 2)[:, : self.classes] * 10


@pytest.mark.parametrize("classes", [2, 3, 8, 10, 100])
@pytest.mark.parametrize(
    "attack",
    [STANDARD, "autoattack-standard:n_iter=1,n_queries=2,n_target_classes=1", "autoattack-rand:n_iter=1,eot=1",
     "apgd-ce:steps=1,eot=1", "apgd-dlr:steps=1,eot=1",
     *[f"{name}:steps=1,loss={loss}" for name in ("pgd-eot", "bpda-eot", "transfer-pgd") for loss in ("ce", "dlr", "margin")]],
)  # fmt: skip
def test_a_plan_refuses_the_classes_that_an_attack_cannot_take_and_no_others(attack, classes):
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    head, part = Head(classes), parse(attack)
    run = registry.factory("attack", part.name)(**dict(part.parameters))
    try:
        run(Defense(Identity(), head, rows=4), x, head(x).argmax(1), LINF, noise(3))
        failed = False
    except UserError:  # for whoever calls an attack by hand
        failed = True
    assert failed == bool(refusal(attack, LINF, [1, 8, 8], classes))


def test_one_class_is_no_benchmark():
    assert "one class" in refusal("pgd-eot", LINF, [1, 8, 8], 1)


@pytest.mark.parametrize(
    ("dataset", "classifier", "attack", "words"),
    [
        ("images:highest=1", "network:k=2", "pgd-eot:loss=dlr", "at least 3 classes, and `network:k=2` has 2"),
        ("images:highest=1", "network:k=2", "bpda-eot:loss=dlr", "at least 3 classes, and `network:k=2` has 2"),
        ("images:highest=7", "network:k=8", "autoattack-standard", "at least 10 classes, and `network:k=8` has 8"),
        ("images:highest=7", "one_logit", "null", "labels up to 7, and `one-logit` knows 2 classes"),
        ("images:highest=7", "network", "null", "labels up to 7, and `network` knows 5 classes"),
        ("declared", "digits-cnn", "null", "labels up to 12, and the INFO of `declared` knows 10 classes"),
        ("images:highest=11", "digits-cnn", "null", "knows 10 classes, and `images:highest=11` has labels up to 11"),
    ],
)  # fmt: skip
def test_classes_are_known_before_anything_runs(parts, dataset, classifier, attack, words):
    """Of somebody else's classifier by what it answers when it is probed."""
    named = classifier if classifier == "digits-cnn" else f"{parts}:{classifier}"
    request = Request(
        dataset=f"{parts}:{dataset}", classifier=named, defenses=("none",), attacks=(attack,), threats=("Linf:0.1",)
    )
    with pytest.raises(UserError) as told:
        rehearsal.check(grid.build(request))
    assert words in told.value.message
    assert told.value.code == 2


@pytest.mark.parametrize("flat", ["false", "true"])
def test_one_logit_is_two_classes_where_nobody_said_how_many_there_are(parts, flat):
    """(B,1) and (B,): the second class's logit, and zero for the first."""
    request = Request(
        dataset=f"{parts}:images:highest=1", classifier=f"{parts}:one_logit:flat={flat}", defenses=("none",), attacks=("pgd-eot",),
        threats=("Linf:0.1",),
    )  # fmt: skip
    plan = grid.build(request)
    rehearsal.check(plan)
    classifier = evaluate.classifier(plan.jobs[0].cell, torch.device("cpu"))
    x = torch.rand(3, 1, 8, 8)
    assert classifier.answers == 2
    assert torch.equal(classifier(x), torch.stack([torch.zeros(3), classifier.made(x).flatten()], 1))


def test_a_classifier_is_asked_how_many_classes_it_knows():
    assert as_classifier(Head(7), 0, [1, 8, 8], name="mine").answers == 7
    # One logit is read as (0, z): of one class every answer would be right.
    one = as_classifier(Head(1), 0, [1, 8, 8], name="mine")
    assert one.answers == 2
    assert one(torch.ones(3, 1, 8, 8)).tolist() == [[0, 10]] * 3
    with pytest.raises(UserError, match="expected") as told:
        as_classifier(Head(3), 10, [1, 8, 8], name="mine")
    assert "`classes=3`" in told.value.hint


# ------------------------------------------------------------------------------------------------------------------ radius


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ("L2:128", "did you mean `L2:128/255`?"),
        ("L2:8.01", "at most 8; "),
        ("L2:5000", "`L2:128/255`"),
        ("L2:8", ""),
        ("L2:128/255", ""),
        ("Linf:1", ""),
    ],
)
def test_a_radius_that_no_two_images_can_be_apart_is_refused(threat, words, monkeypatch, tmp_path):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    request = Request(dataset="digits", defenses=("none",), attacks=("noise",), threats=(threat,))
    if not words:
        assert grid.build(request).jobs
        return
    with pytest.raises(UserError, match="no two images of digits") as told:
        grid.build(request)
    assert words in f"{told.value.message}; {told.value.hint}"


def test_an_l2_radius_that_looks_like_255ths_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    request = Request(dataset="cifar10", defenses=("none",), attacks=("noise",), threats=("L2:32", "L2:3"))
    warnings = [line for line in grid.build(request).notes if "radius" in line]
    assert len(warnings) == 1
    assert "`L2:32` is 58 %" in warnings[0]
    assert "`L2:32/255`?" in warnings[0]


# ----------------------------------------------------------------------------------------------------------------- no rows


@pytest.mark.parametrize("votes", [1, 2])
def test_a_defense_is_callable_on_no_rows(votes):
    defense = Defense(make("gaussian"), Head(10), votes=votes, rows=4)
    x, y, none = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), noise(0)
    assert defense.purify(x, none).shape == x.shape
    assert defense.predict(x, none).shape == (0,)
    assert defense.draws(x, none, 0, 3).shape == (0, 3, 10)
    leaf = x.clone().requires_grad_()
    logits = defense.logits(leaf, none)
    assert logits.shape == (0, 10)
    assert torch.autograd.grad(logits.sum(), leaf)[0].shape == x.shape
    found = defense.loss_grad(x, y, "dlr", none, eot=3)
    assert (found.loss.shape, found.grad.shape, found.logits.shape) == ((0,), x.shape, (3, 0, 10))
    assert defense.spent.total()[:2] == (0, 0)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_survivors_that_all_have_margin_zero(threat):
    """Square then asks for a step of none of them, which its L2 arithmetic cannot take; the images withstand, as they do under Linf."""

    class Tie(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :1] * 0
            return torch.cat([z, z, z - 1, z - 2], 1)

    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = autoattack.autoattack_standard(n_iter=2, n_queries=3, n_target_classes=2)
    found = attack(Defense(Identity(), Tie(), rows=4), x, y, threat, noise(3))
    assert found.verdict.all()
    assert torch.equal(found.x_adv, x)


# ------------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(("defense", "grad"), [("coup:t=0.05", "detached"), ("diffpure:t=0.05", "surrogate:steps=2")])
def test_a_memory_budget_below_one_step_is_refused_with_the_words_of_the_run(defense, grad, tmp_path, monkeypatch):
    """The need is measured without weights and values, and is the run's own to the byte."""
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    request = Request(dataset="digits", defenses=(defense,), attacks=("pgd-eot",), grads=(grad,), images=2)
    plan = grid.build(request)
    cell = plan.jobs[0].cell
    with pytest.raises(UserError) as told:
        rehearsal.check_memory(plan, 1000, lambda _: 4)
    built = evaluate.build_defense(cell, torch.device("cpu"), rows=4, memory=1000)
    x = torch.full((2, 1, 8, 8), 0.5)
    with pytest.raises(UserError) as in_the_run:
        built.loss_grad(x, torch.zeros(2, dtype=torch.int64), "ce", noise(2))
    assert str(told.value) == str(in_the_run.value)
    need = int(told.value.message.rpartition(" ")[2].replace(",", ""))
    work = need - 1000  # more than enough, since half a graph comes on top
    rehearsal.check_memory(plan, need + work, lambda _: 4)


@pytest.mark.parametrize(("grad", "defense"), [("bpda", "coup"), ("exact", "none")])
def test_what_keeps_no_graph_fits_any_memory(grad, defense, tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    request = Request(dataset="digits", defenses=(defense,), attacks=("pgd-eot", "null"), grads=(grad,), images=2)
    rehearsal.check_memory(grid.build(request), 1, lambda _: 4)


def test_a_plan_refuses_too_little_memory_where_no_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path))
    small = {"dataset": "cifar10", "score": "cifar10-small", "classifier": "hill-wrn-28-10"}
    request = Request(**small, defenses=("one-shot",), attacks=("pgd-eot",), images=2)
    with pytest.raises(UserError, match="one step's graph and 2 states need") as told:
        preflight.prepare(request, preflight.Resources("cpu", rows=2, memory="1M"), tmp_path / "out")
    assert told.value.code == 2


CHAIN = """
import torch, purebench
class Steps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        for _ in range(3):
            x = purebench.step(lambda x: x + 0.01 * self.net(x).tanh(), x)
        return x.clamp(0, 1)
"""


def test_a_memory_budget_below_somebody_elses_step_is_refused_by_run_as_by_dry_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "chain.py").write_text(CHAIN)
    command = [
        "run",
        "--dataset",
        "digits",
        "-d",
        f"{tmp_path / 'chain.py'}:Steps",
        "-a",
        "pgd-eot:steps=1,eot=1",
        "-t",
        "Linf:0.1",
    ]
    command += [
        "--images",
        "2",
        "--evals",
        "1",
        "--workers",
        "1",
        "--rows",
        "2",
        "--memory",
        "1K",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    dry, run = (CliRunner().invoke(app, command + more).exception for more in (["--dry-run"], []))
    assert isinstance(run, UserError)
    assert "a memory budget of 1,024 bytes is too small" in run.message
    assert str(run) == str(dry)
    assert not (tmp_path / "out").exists()
