"""The embedded digits: data, shipped networks, and that training them again gives the same thing."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import purebench
from purebench.datasets import digits
from purebench.errors import UserError
from purebench.networks import small
from purebench.train import small as training

EMBEDDED = Path(purebench.__file__).parent / "embedded"
SHA256 = {
    "digits-classifier": "58de581911577b31a8d0178aa3d075ec7c1cabc1e724d7bfbf1b783362d5152d",
    "digits-score": "f4beed15c2662e741194863e49a9d855469d6f5627e7c9356e9ab7fc790dd6a1",
}


def test_digits_are_real_images_in_a_fixed_disjoint_split():
    (x, y), (x_test, y_test) = digits.train(), digits.test()
    assert x.shape == (1297, 1, 8, 8)
    assert x_test.shape == (digits.INFO["size"], *digits.INFO["shape"])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    assert sorted(y_test.unique().tolist()) == list(range(digits.INFO["classes"]))
    assert not {row.numpy().tobytes() for row in x} & {row.numpy().tobytes() for row in x_test}


def test_no_image_of_another_class_is_within_reach_of_the_threat():
    """Linf 0.2 is winnable: the nearest image of another class is more than twice as far from every test image."""
    (x, y), (x_test, y_test) = digits.train(), digits.test()
    x, y = torch.cat([x, x_test]).flatten(1), torch.cat([y, y_test])
    distance = torch.cdist(x_test.flatten(1), x, p=float("inf"))
    assert distance[y_test[:, None] != y].min() == 0.4375


@pytest.mark.parametrize("name", SHA256)
def test_shipped_file_is_the_measured_one_and_says_how_it_was_made(name):
    path = EMBEDDED / f"{name}.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert about["command"] == f"purebench train {name} --seed 0"
    assert json.loads(about["config"]) == training.RECIPES[name].config


def test_shipped_classifier_is_accurate():
    network = small.load(EMBEDDED / "digits-classifier.safetensors")
    x, y = digits.test()
    assert sum(p.numel() for p in network.parameters()) == 19_338
    assert not network.training
    assert (network(x[:200]).argmax(1) == y[:200]).float().mean() >= 0.985


def test_shipped_score_network_denoises():
    """Its eps-loss on the test images is the measured one (a network that always answers 0 has 1)."""
    network = small.load(EMBEDDED / "digits-score.safetensors")
    assert sum(p.numel() for p in network.parameters()) == 159_489
    loss = training.eps_loss(network, *digits.test())["eps_loss"]
    assert loss == pytest.approx({"0.05": 0.339, "0.1": 0.227, "0.3": 0.095, "0.5": 0.023}, abs=2e-3)


def test_score_network_is_the_same_function_in_float64():
    network = small.load(EMBEDDED / "digits-score.safetensors")
    x, labels = digits.test()[0][:4] * 2 - 1, torch.tensor([1.0, 100.0, 500.0, 999.0])
    single = network(x, labels)
    torch.testing.assert_close(network.double()(x.double(), labels), single.double(), atol=1e-5, rtol=1e-5)


def test_score_network_has_second_derivatives():
    torch.manual_seed(0)
    network = small.SmallUNet(channels=2, base=8, mult=(1, 2, 2)).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.full((1,), 300.0, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda x: network(x, labels).mean((2, 3)), x, fast_mode=True)


def test_a_row_does_not_depend_on_its_mates():
    network = small.load(EMBEDDED / "digits-score.safetensors")
    x, labels = digits.test()[0][:32], torch.linspace(1, 999, 32)
    mixed = torch.cat([x[:16], x[:16].flip(0)]), torch.cat([labels[:16], labels[:16].flip(0)])
    torch.testing.assert_close(network(*mixed)[:16], network(x, labels)[:16], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fit", [training.fit_classifier, training.fit_score], ids=["classifier", "score"])
def test_training_is_deterministic_in_the_seed_and_leaves_the_global_generator_alone(fit):
    recipe = next(r for r in training.RECIPES.values() if r.fit is fit)
    steps = {"epochs": 1} if fit is training.fit_classifier else {"steps": 4}

    def weights(seed):
        with training._reproducible(seed):
            network = small.NETWORKS[recipe.network](**recipe.config)
            fit(network, *digits.train(), seed, lambda fraction, line: None, **steps)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(before, torch.get_rng_state())


def test_train_writes_a_loadable_file_and_tells_its_facts(tmp_path, monkeypatch):
    def fit(network, images, labels, seed, on_progress):
        training.fit_classifier(network, images, labels, seed, on_progress, epochs=1)

    recipe = training.RECIPES["digits-classifier"]
    short = training.Recipe(recipe.network, recipe.config, fit, recipe.measure, recipe.cost)
    monkeypatch.setitem(training.RECIPES, "digits-classifier", short)
    seen = []
    runs = [training.train("digits-classifier", tmp_path / f"{i}", 3, lambda *a: seen.append(a)) for i in range(2)]
    (name, facts), (_, again) = *runs[0].items(), *runs[1].items()
    assert facts["sha256"] == again["sha256"] == hashlib.sha256((tmp_path / "0" / name).read_bytes()).hexdigest()
    assert [p.name for p in (tmp_path / "0").iterdir()] == [name]
    assert training.accuracy(small.load(tmp_path / "0" / name), *digits.test())["accuracy"] == facts["accuracy"]
    assert seen[-1][0] == 1.0


def test_the_score_recipe_for_colour_images_trains_on_a_parquet_file(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "HELD", 4)
    recipe = training.RECIPES["cifar10-score"]
    short = dataclasses.replace(recipe, options=recipe.options | {"steps": 2, "batch": 4})
    monkeypatch.setitem(training.RECIPES, "cifar10-score", short)
    path = parquet_file(tmp_path / "few.parquet", 12)
    facts = training.train("cifar10-score", tmp_path, 0, lambda *a: None, f"parquet:path={path}")
    assert facts["cifar10-score.safetensors"]["parameters"] == 1_432_620
    network = small.load(tmp_path / "cifar10-score.safetensors")
    x = torch.rand(2, 3, 32, 32)
    assert network(x, torch.tensor([1.0, 200.0])).shape == x.shape
    with safe_open(tmp_path / "cifar10-score.safetensors", framework="pt") as file:
        assert file.metadata()["data"].startswith("parquet:name=few sha256:")


def test_too_few_images_are_refused(tmp_path):
    path = parquet_file(tmp_path / "few.parquet", 12)
    with pytest.raises(UserError, match="has 12 images, and 1000 are held out"):
        training.train("cifar10-score", tmp_path, 0, print, f"parquet:path={path}")


def parquet_file(path, n):
    """n random 32x32 PNG images in the hub layout."""
    rows = []
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    pq.write_table(pa.table({"img": rows, "label": [i % 10 for i in range(n)]}), path)
    return path


def test_unknown_name_is_a_user_error_with_a_suggestion(tmp_path):
    with pytest.raises(UserError, match="unknown training `digit-score`") as error:
        training.train("digit-score", tmp_path, 0, print)
    assert "did you mean `digits-score`" in error.value.hint
