"""The diffusion U-Nets: the published code's own numbers (`helpers.recorded`), and what holds without them."""

import pytest
import torch
from helpers import filled, per_row, published, recorded

from purebench.errors import UserError
from purebench.networks import build

SONG = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": "4"}
DDPM = {"ch": 32, "out_ch": 3, "in_channels": 3, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
DDPMPP = {
    "data": {"image_size": 8, "num_channels": 3},
    "model": {"nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
    | {"sigma_max": 50, "sigma_min": 0.01, "num_scales": 1000},
}
TINY = {  # id -> (family, configuration)
    "ddpm++ edm": ("edm", {**SONG, "attn_resolutions": [4]}),
    "ddpm++ vp": ("edm", {**SONG, "precond": "vp", "label_dim": 3}),
    "ncsn++ ve": ("edm", {**SONG, **NCSNPP, "precond": "VEPrecond", "augment_dim": 9}),
    "skip edm": ("edm", {**SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}),
    "adm": ("adm", {**ADM, "resblock_updown": True, "num_head_channels": 16, "learn_sigma": True}),
    "adm convs": ("adm", {**ADM, "use_scale_shift_norm": False, "use_new_attention_order": True}),
    "ddpm": ("ddpm", {"model": DDPM, "data": {"image_size": 8}}),
    "ddpm means": ("ddpm", {**DDPM, "resolution": 8, "resamp_with_conv": False}),
    "ddpm++": ("ddpmpp", DDPMPP),
}
LEVELS = {
    "edm": (0.3, 7.0),
    "adm": (37, 812),
    "ddpm": (37, 812),
    "ddpmpp": (74.925, 0.5),
}  # sigma or t of the two images
X = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8)


def tiny(name, dtype=torch.float64):
    """(network, its second argument)"""
    family, config = TINY[name]
    return filled(build(family, config)).to(dtype), torch.tensor(LEVELS[family])


# -------------------------------------------------------------------------------------------------- without recorded arrays

LITERALS = {  # of the double-precision networks filled by rule: three outputs, three gradients of the squared norm
    "ddpm++ edm": [-0.8908243206, -0.3302778378, -0.2369102618, -1.00218553, 0.6095506727, 1.188960124],
    "ddpm++ vp": [-0.8889095447, -0.5330098298, 12.4780694, -1.622731822, -2.088046355, 232.9644152],
    "ncsn++ ve": [-1.167467628, -0.4730404885, -5.302346148, -2.281165238, -0.617981759, 51.95462958],
    "skip edm": [-0.9618918852, -0.6271465833, -0.03708091052, -1.254043385, -0.7399007727, 0.5885548308],
    "adm": [-0.01578317015, -0.4863283606, -0.4050524224, 0.355299651, 1.260886719, -0.09827781265],
    "adm convs": [0.4412370909, -0.9787562393, -1.294511637, -3.192731029, 4.982844794, 8.84516269],
    "ddpm": [0.06435903393, -0.02314761539, -0.690647367, -0.9367150565, 8.841886014, 9.417474047],
    "ddpm means": [0.3405116686, 0.751380133, -1.113274933, -2.100461616, -9.618212683, 7.600843807],
    "ddpm++": [0.2144230884, -0.6093386732, 0.7643166555, -2.359158396, 1.059950782, 1.375655753],
}


@pytest.mark.parametrize("name", TINY)
def test_literals(name):
    network, level = tiny(name)
    x = X.clone().requires_grad_()
    out = network(x, level)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    values = [float(v) for a in (out, grad) for v in a.detach().flatten()[[0, 100, 300]]]
    assert values == pytest.approx(LITERALS[name], rel=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_frozen_shaped_and_twice_differentiable(name):
    network, level = tiny(name, torch.float32)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    x = X.float().requires_grad_()
    out = network(x, level)
    assert out.shape == (2, 6 if name == "adm" else 3, 8, 8)
    assert out.dtype == torch.float32
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert torch.isfinite(second).all()
    assert second.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("name", TINY)
def test_second_derivative_is_that_of_the_first(name):
    network, level = tiny(name)
    v = torch.cos(X * 7)

    def grad(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(network(x, level).square().sum(), x, create_graph=True)[0], x

    g, x = grad(X)
    (product,) = torch.autograd.grad((g * v).sum(), x)
    h = 1e-5
    assert per_row(product, (grad(X + h * v)[0] - grad(X - h * v)[0]) / (2 * h)) <= 1e-6


@pytest.mark.parametrize("name", TINY)
def test_no_batch_mates_and_both_precisions(name):
    network, level = tiny(name)
    out = network(X, level)
    assert per_row(network(X[1:], level[1:]), out[1:]) <= 1e-12
    assert per_row(network.float()(X.float(), level), out) <= 2e-5


def test_sigma_is_a_number_or_one_per_image():
    network, _ = tiny("ddpm++ edm")
    out = network(X, torch.tensor([0.7, 0.7], dtype=torch.float64))
    assert per_row(network(X, 0.7), out) <= 1e-12
    assert per_row(network(X, torch.tensor(0.7, dtype=torch.float64)), out) <= 1e-12


def test_preconditionings_know_their_noise_levels():
    edm, vp, ve = (build("edm", {**SONG, "precond": p}) for p in ("edm", "vp", "ve"))
    assert (edm.sigma_min, edm.sigma_max, edm.sigma_data) == (0, float("inf"), 0.5)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 100)
    assert (vp.beta_d, vp.beta_min, vp.M, vp.epsilon_t) == (19.9, 0.1, 1000, 1e-5)
    assert (vp.sigma_min, vp.sigma_max) == (2**-10, pytest.approx(152.16698))
    t = torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(vp.sigma_inv(vp.sigma(t)), t)


def test_labels_matter_where_they_exist():
    vp, level = tiny("ddpm++ vp")
    ve, _ = tiny("ncsn++ ve")
    none = torch.zeros(2, 3)
    assert per_row(vp(X, level), vp(X, level, class_labels=none)) <= 1e-12
    assert not torch.allclose(vp(X, level), vp(X, level, class_labels=torch.eye(3)[:2]))
    assert not torch.allclose(ve(X, level), ve(X, level, augment_labels=torch.ones(2, 9)))
    adm = filled(build("adm", {**ADM, "class_cond": True}))
    t = torch.tensor([37, 812])
    assert not torch.allclose(adm(X.float(), t, torch.tensor([3, 3])), adm(X.float(), t, torch.tensor([3, 4]))[0])
    with pytest.raises(UserError, match="labels"):
        adm(X.float(), t)


def test_half_precision_weights_are_widened():
    network = build(*TINY["adm"])
    state = {k: v.half() for k, v in network.state_dict().items()}
    network.load_state_dict(state)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("edm", {**SONG, "model_type": "DhariwalUNet"}, "DhariwalUNet"),
        ("edm", {**SONG, "precond": "iddpm"}, "iddpm"),
        ("edm", {**SONG, "encoder_type": "residul"}, "residul"),
        ("edm", {**SONG, "model_chanels": 3}, "model_chanels"),
        ("edm", {}, "img_resolution"),
        ("adm", {"image_size": 48, "num_channels": 32}, "channel_mult"),
        ("adm", {}, "image_size"),
        ("ddpm", {"model": DDPM}, "data"),
        ("ddpm", DDPM, "resolution"),
    ],
)
def test_mistakes_are_named(family, config, says):
    with pytest.raises(UserError) as error:
        build(family, config)
    assert says in error.value.message
    assert error.value.hint


# ----------------------------------------------------------------------------------------- the published code's own numbers


EDM_COUNTS = {
    "edm-cifar10-32x32-uncond-vp": 55_733_891,
    "edm-cifar10-32x32-uncond-ve": 56_397_827,
    "vpprecond-default-1222-nb4": 61_804_419,
    "vpprecond-1222-nb8": 106_632_579,
}


@pytest.mark.parametrize("name", EDM_COUNTS)
def test_published_edm_has_every_key_and_shape(name):
    manifest = recorded("edm/full_manifest.json")[name]
    with torch.device("meta"):
        network = build("edm", {**manifest["init_kwargs"], "precond": manifest["precond"]})
    assert [(k, list(v.shape)) for k, v in network.state_dict().items()] == list(manifest["keys"].items())
    assert sum(p.numel() for p in network.parameters()) == manifest["n_parameters"] == EDM_COUNTS[name]
    assert sum(v.numel() for v in network.state_dict().values()) == manifest["n_state_numel"]


@pytest.mark.parametrize(
    ("family", "file", "count"),
    [
        ("adm", "manifest_adm_256_uncond.json", 552_814_086),
        ("ddpm", "manifest_ddpm_celebahq_256.json", 113_673_219),
        ("ddpmpp", "manifest_ddpmpp_deep_full.json", 106_632_579),
    ],
)
def test_published_networks_have_every_key_and_shape(family, file, count):
    manifest = recorded(f"score_sde/{file}")
    with torch.device("meta"):
        network = build(family, manifest["config"])
    expected = [(e["key"], e["shape"], "torch." + e["dtype"]) for e in manifest["entries"]]
    assert [(k, list(v.shape), str(v.dtype)) for k, v in network.state_dict().items()] == expected
    assert [k for k, _ in network.named_parameters()] == manifest["parameter_order"]
    assert sum(p.numel() for p in network.parameters()) == manifest["total_params"] == count


@pytest.mark.parametrize("precond", ["edm", "vp", "ve"])
def test_published_edm_outputs_and_gradients(precond, deviation):
    case = f"network edm, {precond}"
    network, file = published("edm", "edm/tiny_ddpmpp.npz", precond=precond)
    x = file["xin"].requires_grad_()
    out = network(x, file["sigma"])
    deviation(f"{case}: denoised", per_row(out, file[f"{precond}/D"]), 2e-5)
    (grad,) = torch.autograd.grad((out * file["v"]).sum(), x)
    deviation(f"{case}: gradient of inner", per_row(grad, file[f"{precond}/grad_inner"]), 1e-4)
    if precond == "vp":
        assert (network.sigma_min, network.sigma_max) == (file["vp/sigma_min"].item(), file["vp/sigma_max"].item())
    labels = file["raw/noise_labels"]
    assert torch.equal(network.model.map_noise(labels), file["raw/map_noise"])
    deviation("network edm: bare", per_row(network.model(file["x"], labels), file["raw/F"]), 2e-5)
    augmented = network.model(file["x"], labels, augment_labels=file["raw/augment_labels"])
    deviation("network edm: with augmentation labels", per_row(augmented, file["raw/F_aug"]), 2e-5)


@pytest.mark.parametrize("precond", ["edm", "vp", "ve"])
def test_published_edm_losses_of_a_batch(precond, deviation):
    case = f"network edm, {precond}"
    network, file = published("edm", "edm/tiny_ddpmpp.npz", precond=precond)
    wanted = {name: file[f"{precond}/loss_{name}"].item() for name in ("inner", "diff_mean")}
    assert [f"sd/{key}" for key in network.state_dict()] == [key for key in file if key.startswith("sd/")]
    x = file["xin"].requires_grad_()
    out = network(x, file["sigma"])
    inner, mean = (out * file["v"]).sum(), (out - x).square().mean()
    for name, loss in (("inner", inner), ("diff_mean", mean)):
        deviation(f"{case}: loss {name}", abs(loss.item() / wanted[name] - 1), 2e-5)
    (grad,) = torch.autograd.grad(mean, x)
    deviation(f"{case}: gradient of diff_mean", per_row(grad, file[f"{precond}/grad_diff_mean"]), 1e-4)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("family", "name"), [("adm", "adm_tiny"), ("ddpm", "ddpm_celeba_tiny")])
def test_published_outputs_and_gradients(family, name, bits, deviation):
    network, file = published(family, f"score_sde/{name}.npz")
    dtype = torch.float32 if bits == 32 else torch.float64
    x = file["x"].to(dtype).requires_grad_()
    out = network.to(dtype)(x, file["t"])
    (grad,) = torch.autograd.grad((out * file["fixed"]).sum(), x)
    case = f"network {family}, float{bits}"
    deviation(f"{case}: output", per_row(out, file[f"output_f{bits}"]), 2e-5 if bits == 32 else 1e-9)
    deviation(f"{case}: gradient", per_row(grad, file[f"grad_x_f{bits}"]), 1e-4 if bits == 32 else 1e-9)
