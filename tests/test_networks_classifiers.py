"""NCSNv2, the EBM and the classifiers: the published networks, number for number and key for key, and as attacks need them.

The comparisons with published outputs read recorded arrays: `helpers.recorded`.
"""

from functools import cache

import numpy as np
import pytest
import torch
from helpers import filled, per_number, per_row, published, recorded

from purebench.errors import UserError
from purebench.networks import build
from purebench.networks.attribute import MinibatchStd

NCSNV2 = {"ngf": 8, "image_size": 16, "channels": 3, "sigma_begin": 1, "sigma_end": 0.01, "num_classes": 10}
NCSNV2_CIFAR = {"ngf": 128, "image_size": 32, "channels": 3, "sigma_begin": 50, "sigma_end": 0.01, "num_classes": 232}
ATTRIBUTE = {"resolution": 256, "fmap_base": 8192, "fmap_max": 512, "fixed_size": True, "use_mbstd": False}
TINY_ATTRIBUTE = ATTRIBUTE | {"resolution": 16, "fmap_base": 64, "fmap_max": 12}

TINY = {  # family, configuration, shape of one image, whether smooth in x, sum of the output for formula weights
    "ncsnv2": ("ncsnv2", NCSNV2, (3, 16, 16), True, -1562.2638),
    "ncsnv2 gray 12x12": ("ncsnv2", NCSNV2 | {"ngf": 4, "channels": 1}, (1, 12, 12), True, 12.25621),
    "ebm": ("ebm", {"n_f": 4}, (3, 32, 32), False, -0.32742068),
    "wideresnet": ("wideresnet", {"depth": 10, "widen": 1, "dropout": 0.3}, (3, 32, 32), False, 2.100584),
    "wideresnet_hill": ("wideresnet_hill", {"depth": 10, "widen": 2, "classes": 7}, (3, 32, 32), False, 3.6015592),
    "cifar_resnet50": ("cifar_resnet50", {}, (3, 8, 8), False, -1.9368448),
    "attribute": ("attribute", TINY_ATTRIBUTE, (3, 16, 16), False, 1.6525877),
    "attribute with batch deviation": (
        "attribute",
        TINY_ATTRIBUTE | {"use_mbstd": True},
        (3, 16, 16),
        False,
        1.1144323,
    ),
}

MANIFESTS = {  # family, configuration, file, entry of the file, number of parameters
    "ncsnv2": ("ncsnv2", NCSNV2_CIFAR, "adp/a_ncsnv2_cifar10_manifest.json", None, 29_694_083),
    "ebm": ("ebm", {"n_f": 32}, "adp/d_ebm_cifar10_manifest.json", "ebm", 693_569),
    "wideresnet_hill": (
        "wideresnet_hill", {"depth": 28, "widen": 10}, "adp/d_ebm_cifar10_manifest.json", "clf", 36_489_290
    ),
    "wideresnet": (
        "wideresnet", {"depth": 70, "widen": 16, "dropout": 0.3},
        "score_sde/manifest_cifar_wrn70_16_dropout.json", None, 266_796_506,
    ),
    "cifar_resnet50": ("cifar_resnet50", {}, "score_sde/manifest_cifar_resnet50.json", None, 23_520_842),
    "attribute": ("attribute", ATTRIBUTE, "score_sde/manifest_attrnet_256.json", None, 23_038_017),
}  # fmt: skip

CLASSIFIERS = {
    "attrnet_tiny": "attribute",
    "cifar_resnet50_full_golden": "cifar_resnet50",
    "cifar_wrn16_2_dropout_golden": "wideresnet",
}


def pictures(*shape):
    return torch.from_numpy(np.random.default_rng(51).random(shape))


def call(network, x):
    """The network's output for x (B, ..) in [0,1]; noise levels 0, 1, .."""
    return network(x, torch.arange(len(x))) if hasattr(network, "sigmas") else network(x)


# ------------------------------------------------------------------------------------------------ the published networks


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_published_logits_and_gradients(name, deviation):
    network, data = published(CLASSIFIERS[name], f"score_sde/{name}.npz")
    x = data["x"].clone().requires_grad_()
    logits = network(x)
    assert logits.shape == data["output_f32"].shape
    deviation(f"network {CLASSIFIERS[name]}: logits", per_row(logits, data["output_f32"]), 2e-5)
    (gradient,) = torch.autograd.grad((logits * data["fixed"]).sum(), x)
    deviation(f"network {CLASSIFIERS[name]}: gradient", per_row(gradient, data["grad_x_f32"]), 1e-4)


@cache
def ncsnv2():
    return published("ncsnv2", "adp/a_ncsnv2_tiny.npz", **NCSNV2)


def test_ncsnv2_gives_the_published_scores_and_gradients(deviation):
    network, data = ncsnv2()
    x = data["x"].clone().requires_grad_()
    score = network(x, data["sigma_index"])
    deviation("network ncsnv2: score", per_row(score, data["output"]), 2e-5)
    deviation("network ncsnv2: before the division by sigma", per_row(network.raw(x), data["output_sigma1"]), 2e-5)
    (gradient,) = torch.autograd.grad((score * data["cotangent"]).sum(), x)
    deviation("network ncsnv2: gradient", per_row(gradient, data["grad_x"]), 1e-4)


def test_ncsnv2_goes_through_the_published_activations(deviation):
    network, data = ncsnv2()
    names = [
        "begin_conv",
        "res1",
        "res2",
        "res3",
        "res4",
        "refine1",
        "refine2",
        "refine3",
        "refine4",
        "normalizer",
        "end_conv",
    ]
    wanted, seen = [data[f"inter/{name}"] for name in names], {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, h, name=name: seen.update({name: h}))
        for name in names
    ]
    network.raw(data["x"])
    for hook in hooks:
        hook.remove()
    for name, theirs in zip(names, wanted, strict=True):
        deviation("network ncsnv2: eleven activations", per_row(seen[name], theirs), 2e-5)


def test_ncsnv2_has_the_published_denoising_loss(deviation):
    network, data = ncsnv2()
    sigma = network.sigmas[data["sigma_index"]][:, None, None, None]
    score = network(data["x"] + sigma * data["dsm_noise"], data["sigma_index"])
    losses = (0.5 * (score + data["dsm_noise"] / sigma) ** 2 * sigma**2).flatten(1).sum(1)
    assert losses.shape == data["dsm_loss_each"].shape
    deviation("network ncsnv2: denoising losses", per_number(losses, data["dsm_loss_each"]), 2e-5)
    deviation("network ncsnv2: mean denoising loss", per_number(losses.mean(), data["dsm_loss_mean"]), 2e-5)


def test_ncsnv2_walks_the_published_langevin_states(deviation):
    network, data = ncsnv2()
    x, noise = data["x"], iter(data["ald_noise"])
    states = iter(data["ald_states"])
    for i, sigma in enumerate(network.sigmas):
        step = 6.2e-6 * (sigma / network.sigmas[-1]) ** 2
        for _ in range(2):
            x = x + step * network(x, torch.full((len(x),), i)) + (2 * step).sqrt() * next(noise)
            deviation("annealed Langevin of ncsnv2: twenty states", per_row(x, next(states)), 2e-5)
    last = x + sigma**2 * network(x, torch.full((len(x),), i))
    deviation("annealed Langevin of ncsnv2: result", per_row(last, next(states)), 2e-5)


@pytest.mark.parametrize(
    ("name", "begin", "end", "number"),
    [
        ("cifar10_repo", 50, 0.01, 232),
        ("cifar10_paper_table5", 50, 0.008454, 232),
        ("cifar10_dct_augmix_table5", 50, 0.08454, 232),
        ("mnist_table5", 15, 0.005253, 110),
        ("fashionmnist_table5", 15, 0.005253, 64),
        ("tinyimagenet_repo", 90, 0.01, 500),
    ],
)
def test_ncsnv2_has_the_published_noise_levels(name, begin, end, number, deviation):
    config = NCSNV2 | {"ngf": 2, "sigma_begin": begin, "sigma_end": end, "num_classes": number}
    expected = recorded("adp/a_sigma_schedules.npz")[name]
    sigmas = build("ncsnv2", config).sigmas
    assert sigmas.shape == expected.shape
    deviation(f"ncsnv2 noise levels, {name}", per_number(sigmas, expected), 2e-7)


def test_ebm_gives_the_published_energies_gradients_and_langevin_states(deviation):
    network, data = published("ebm", "adp/d_ebm_tiny.npz", n_f=4)

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(network(x).sum(), x)[0]

    energy = network(data["X"])
    assert energy.shape == data["energy"].shape
    deviation("network ebm: energy", per_row(energy[:, None], data["energy"][:, None]), 2e-5)
    deviation("network ebm: gradient", per_row(gradient(data["X"]), data["grad_energy"]), 1e-4)
    x = data["X"]
    for noise, state in zip(data["noise"], data["states"], strict=True):
        x = x - gradient(x) + 0.01 * noise
        deviation("network ebm: Langevin by hand, six states", per_row(x, state), 2e-5)


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_networks_have_the_published_keys(name):
    family, config, file, entry, _ = MANIFESTS[name]
    manifest = recorded(file)
    manifest = manifest[entry] if entry else manifest
    with torch.device("meta"):
        network = build(family, config)
    if "entries" in manifest:
        published = {e["key"]: (e["shape"], e["dtype"]) for e in manifest["entries"]}
        ours = {key: (list(v.shape), str(v.dtype)[6:]) for key, v in network.state_dict().items()}
        assert [key for key, _ in network.named_parameters()] == manifest["parameter_order"]
    else:
        published = manifest["state_dict"]
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(ours.items()) == list(published.items())
    if "parameters_only" in manifest:
        assert [key for key, _ in network.named_parameters()] == manifest["parameters_only"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_networks_have_the_published_size(name):
    family, config, *_, size = MANIFESTS[name]
    with torch.device("meta"):
        network = build(family, config)
    assert sum(p.numel() for p in network.parameters()) == size


# --------------------------------------------------------------------------------------------------- as attacks need them


@pytest.mark.parametrize("name", TINY)
def test_outputs_stay_what_they_are(name):
    family, config, shape, _, expected = TINY[name]
    output = call(filled(build(family, config).double()), pictures(2, *shape))
    assert output.sum().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_float32_and_float64_agree(name):
    family, config, shape, *_ = TINY[name]
    network, x = filled(build(family, config)), pictures(2, *shape)
    single = call(network, x.float())
    double = call(network.double(), x)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert per_row(single.reshape(2, -1), double.reshape(2, -1)) <= 1e-4


@pytest.mark.parametrize("name", TINY)
def test_networks_are_frozen_and_differentiable_to_any_order(name):
    family, config, shape, smooth, _ = TINY[name]
    network, x = filled(build(family, config).double()), pictures(2, *shape).requires_grad_()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    output = call(network, x)
    direction = torch.from_numpy(np.random.default_rng(7).standard_normal(output.shape))
    (first,) = torch.autograd.grad((output * direction).sum(), x, create_graph=True)
    h = 1e-8 * torch.from_numpy(np.random.default_rng(8).standard_normal(x.shape))
    change = ((call(network, x.detach() + h) - call(network, x.detach() - h)) * direction).sum() / 2
    assert (first * h).sum().item() == pytest.approx(change.item(), rel=1e-4)
    higher = first
    for _ in range(2):  # the second and the third derivative; none where a piecewise linear network shows no path to x
        if higher.requires_grad:
            (higher,) = torch.autograd.grad((higher**2).sum(), x, create_graph=True, materialize_grads=True)
        assert higher.isfinite().all()
        assert higher.any() or not smooth


@pytest.mark.parametrize("name", [name for name in TINY if "deviation" not in name])
def test_an_image_does_not_depend_on_its_batch(name):
    family, config, shape, *_ = TINY[name]
    network, x = filled(build(family, config).double()), pictures(3, *shape)
    torch.testing.assert_close(call(network, x)[:1], call(network, x[:1]), rtol=1e-9, atol=1e-9)


def test_ncsnv2_reads_the_published_yml_form():
    data = {"dataset": "CIFAR10", "image_size": 16, "channels": 3, "logit_transform": False, "rescaled": False}
    model = {"ngf": 8, "sigma_begin": 1, "sigma_end": 0.01, "num_classes": 10, "sigma_dist": "geometric"}
    nested = build("ncsnv2", {"data": data, "model": model | {"normalization": "InstanceNorm++", "ema": True}})
    flat, x = build("ncsnv2", NCSNV2), pictures(2, 3, 28, 28).float()
    assert torch.equal(nested.sigmas, flat.sigmas)
    assert torch.equal(call(filled(nested), x), call(filled(flat), x))


def test_ncsnv2_at_each_level_is_the_raw_output_over_sigma():
    network, x = filled(build("ncsnv2", NCSNV2)), pictures(2, 3, 16, 16).float()
    index = torch.tensor([9, 2])
    score, raw = network(x, index), network.raw(x)
    torch.testing.assert_close(score * network.sigmas[index][:, None, None, None], raw)


@pytest.mark.parametrize(
    ("family", "config", "told"),
    [
        ("ncsnv2", NCSNV2 | {"normalization": "VarianceNorm"}, "normalization"),
        ("ncsnv2", {"ngf": 8}, "channels"),
        ("attribute", ATTRIBUTE | {"fixed_size": False}, "growing"),
        ("wideresnet", {"widen": 2}, "depth"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(family, config, told):
    with pytest.raises(UserError, match=told):
        build(family, config)


def test_hills_network_normalises_inside_if_told_the_mean():
    config, x = {"depth": 10, "widen": 1}, pictures(2, 3, 32, 32)
    bare, told = (
        filled(build("wideresnet_hill", c).double()) for c in (config, config | {"mean": [0.5] * 3, "std": [0.5] * 3})
    )
    torch.testing.assert_close(told(x), bare(2 * x - 1))
    assert told.state_dict().keys() == bare.state_dict().keys()


def test_minibatch_deviation_is_the_papers():
    """A channel of the mean, over channels and positions, of the deviation in groups of four: images 0, 2, 4, 6 and 1, 3, 5, 7."""
    x = pictures(8, 2, 4, 4)
    extra = MinibatchStd()(x)[:, 2]
    for i in range(8):
        expected = x[i % 2 :: 2].std(dim=0, correction=0).mean()
        torch.testing.assert_close(extra[i], expected.expand(4, 4), rtol=1e-6, atol=0)
    assert torch.equal(MinibatchStd()(x)[:, :2], x)
