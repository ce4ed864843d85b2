"""What a configuration says that no shape shows: applied, as it is built, or refused by name; and all of it is in the hash."""

import json

import pytest
import torch

from purebench import assets, networks
from purebench.assets import architecture, options
from purebench.errors import UserError
from purebench.plan import resolved as components
from purebench.scores import vp

DDPM = {
    "data": {"image_size": 16, "channels": 1, "rescaled": True},
    "model": {"in_channels": 1, "out_ch": 1, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]},
    "diffusion": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_diffusion_timesteps": 1000},
}
SDE = {
    "training": {"sde": "vpsde", "continuous": True, "n_iters": 9, "type": "x"},
    "sampling": {"snr": 0.16, "beta_max": 9},
    "optim": {"lr": 1e-4, "name": "Adam"},
    "data": {"image_size": 8, "num_channels": 1, "centered": True, "random_flip": True},
    "model": {
        "name": "ncsnpp", "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "fir": False, "beta_max": 20.0,
        "sigma_min": 0.01, "sigma_max": 50, "num_scales": 1000, "dropout": 0.1, "nonlinearity": "Swish", "later_option": None,
    },
}  # fmt: skip
NCSN = {
    "data": {"image_size": 8, "channels": 1},
    "model": {"ngf": 8, "sigma_begin": 50, "sigma_end": 0.01, "num_classes": 10, "normalization": "InstanceNorm++"},
}
ADM = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": "8", "num_heads": 1,
    "lr": 1e-4, "use_kl": True, "timestep_respacing": "250",
}  # fmt: skip
UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.30", "sample_size": 16, "in_channels": 1, "out_channels": 1,
    "block_out_channels": [32], "layers_per_block": 1, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
    "dropout": 0.1, "time_embedding_dim": None,
}  # fmt: skip
FAMILIES = {
    "ddpm": ("ddpm", DDPM),
    "score-sde": ("ddpmpp", SDE),
    "ncsnv2": ("ncsnv2", NCSN),
    "guided-diffusion": ("adm", ADM),
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PUREBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PUREBENCH_CHECKPOINTS", raising=False)


def saved(path, family, config):
    torch.manual_seed(0)
    network = networks.build(family, config)
    torch.save({"model": network.state_dict(), "ema": network.state_dict()}, path)
    return network


def written(path, config):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def changed(config, place, value):
    config = json.loads(json.dumps(config))
    section, _, key = place.rpartition(".")
    (config.setdefault(section, {}) if section else config)[key] = value
    return config


@pytest.mark.parametrize(
    ("score", "place", "value"),
    [
        *(("score-sde", f"model.{key}", value) for key, value in (
            ("name", "ddpm"), ("beta_max", 30.0), ("beta_min", 0.5), ("fir", True), ("progressive", "output_skip"),
            ("progressive_input", "residual"), ("embedding_type", "fourier"), ("scale_by_sigma", True), ("skip_rescale", False),
            ("resblock_type", "ddpm"), ("nonlinearity", "elu"), ("conditional", False), ("of_a_later_code", 3),
        )),
        ("score-sde", "training.sde", "vesde"), ("score-sde", "training.sde", "subvpsde"), ("score-sde", "training.continuous", False),
        ("score-sde", "data.centered", False),
        ("ddpm", "data.rescaled", False), ("ddpm", "data.logit_transform", True), ("ddpm", "model.type", "bayesian"),
        ("ddpm", "model.num_groups", 16), ("ddpm", "model.use_linear_attn", True), ("ddpm", "diffusion.prediction_type", "v"),
        ("ddpm", "diffusion.shifted", 2), ("ddpm", "diffusion.linear_start", 0.001), ("ddpm", "trained_betas", [0.1]),
        ("ncsnv2", "data.rescaled", True), ("ncsnv2", "data.logit_transform", True), ("ncsnv2", "model.sigma_dist", "uniform"),
        ("ncsnv2", "model.spec_norm", True), ("ncsnv2", "model.nonlinearity", "relu"),
        ("guided-diffusion", "predict_xstart", True), ("guided-diffusion", "conv_resample", False), ("guided-diffusion", "dims", 1),
        ("guided-diffusion", "parameterization", "v"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_built_is_refused_by_name(score, place, value, tmp_path):
    family, config = FAMILIES[score]
    saved(tmp_path / "mine.pt", family, config)
    part = f"{score}:path={tmp_path / 'mine.pt'},config={tmp_path / 'c.json'}"
    # As it is built, whatever concerns training and sampling alone.
    written(tmp_path / "c.json", config)
    assert components.find("score", part).takes
    written(tmp_path / "c.json", changed(config, place, value))
    with pytest.raises(UserError) as caught:
        assert components.find("score", part).takes
    assert f"says what is not built: `{place}={value}`" in caught.value.message
    assert caught.value.code == 2


def test_the_published_configurations_say_what_is_built():
    for name in assets.table():
        entry = assets.entry(name)
        if entry.get("network") in options.BUILT:
            options.check(name, entry["network"], entry.get("config", {}))


def diffusers_file(folder):
    """A file in diffusers' keys, of the names that the plan reads."""
    state = {
        "conv_in.weight": torch.zeros(32, 1, 3, 3),
        "down_blocks.0.resnets.0.conv1.weight": torch.zeros(32, 32, 3, 3),
    }
    (folder / "unet").mkdir()
    torch.save(state, folder / "unet" / "mine.pt")
    written(folder / "unet" / "config.json", UNET)
    return f"ddpm:path={folder / 'unet' / 'mine.pt'}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rescale_betas_zero_snr", True), ("trained_betas", [0.1, 0.2]), ("prediction_type", "sample"), ("timestep_type", "continuous"),
        ("use_flow_sigmas", True), ("_class_name", "FlowMatchEulerDiscreteScheduler"),
    ],
)  # fmt: skip
def test_a_scheduler_of_another_noise_is_refused_by_name(key, value, tmp_path):
    part = diffusers_file(tmp_path)
    usual = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "trained_betas": None, "clip_sample": True}
    place = written(tmp_path / "scheduler" / "scheduler_config.json", usual)
    assert components.find("score", part).network.schedule is None
    written(place, usual | {key: value})
    with pytest.raises(UserError, match=key):
        assert components.find("score", part).takes


@pytest.mark.parametrize(
    ("key", "value"),
    [("time_embedding_dim", 64), ("of_a_later_version", "x"), ("num_train_timesteps", 500), ("act_fn", "gelu")],
)
def test_an_option_of_diffusers_network_that_is_not_built_is_refused_by_name(key, value, tmp_path):
    part = diffusers_file(tmp_path)
    assert components.find("score", part).takes == [1, 16, 16]
    written(tmp_path / "unet" / "config.json", UNET | {key: value})
    with pytest.raises(UserError, match=key):
        assert components.find("score", part).takes


def test_what_decides_a_number_beside_the_weights_is_in_the_hash_and_seen_when_it_changes(tmp_path):
    """Of one process: a cell's network is kept by its hash."""
    part = diffusers_file(tmp_path)
    seen, schedules = set(), []
    for say in ("none", "beta_schedule", "beta_end", "freq_shift"):
        if say == "freq_shift":
            written(tmp_path / "unet" / "config.json", UNET | {"freq_shift": 1})
        elif say != "none":
            value = "squaredcos_cap_v2" if say == "beta_schedule" else 0.03
            written(tmp_path / "scheduler" / "scheduler_config.json", {say: value})
        found = components.find("score", part)
        seen.add(found.digest)
        schedules.append(found.network.schedule)
    assert len(seen) == 4
    cosine, linear = (
        architecture.Schedule("cosine", 1000, 1e-4, 0.02),
        architecture.Schedule("linear", 1000, 1e-4, 0.03),
    )
    assert schedules == [None, cosine, linear, linear]


def test_a_configuration_and_a_scheduler_that_disagree_are_refused(tmp_path):
    saved(tmp_path / "mine.pt", "ddpm", DDPM)
    part = f"ddpm:path={tmp_path / 'mine.pt'},config={written(tmp_path / 'c.json', DDPM)}"
    written(tmp_path / "scheduler_config.json", {"beta_end": 0.02, "beta_schedule": "linear"})
    assert components.find("score", part).takes == [1, 16, 16]
    written(tmp_path / "scheduler_config.json", {"beta_end": 0.03})
    with pytest.raises(UserError, match=r"says beta_end 0\.02, and the scheduler_config\.json beside it 0\.03"):
        assert components.find("score", part).takes


@pytest.mark.parametrize(
    ("score", "family", "config"),
    [
        ("ddpm", "ddpm", DDPM),  # it attends at 8x8, and was taken for one of 32x32 that attends at 16x16
        ("score-sde", "ddpmpp", SDE),
        # As the published one, but for its width: of 64x64, it was taken for CIFAR-10's.
        ("ncsnv2", "ncsnv2", {"image_size": 64, "ngf": 8, "channels": 3, "sigma_begin": 50, "sigma_end": 0.01, "num_classes": 232}),
    ],
)  # fmt: skip
def test_a_size_is_taken_unasked_of_the_published_shapes_alone(score, family, config, tmp_path):
    network = saved(tmp_path / "mine.pt", family, config)
    side = config.get("image_size") or config["data"]["image_size"]
    with pytest.raises(UserError, match="of which images") as caught:
        assert components.find("score", f"{score}:path={tmp_path / 'mine.pt'}").takes
    assert "write size=N" in caught.value.hint
    found = components.find("score", f"{score}:path={tmp_path / 'mine.pt'},size={side}")
    assert found.takes[1:] == [side, side]
    made = components.load("score", found.key, found.values)
    x = torch.rand(1, *found.takes)
    if score == "ncsnv2":
        assert torch.equal(made.direction(2 * x - 1, 1.0), network.raw(x))
    else:
        assert torch.equal(made.network(x, torch.full((1,), 3.0)), network(x, torch.full((1,), 3.0)))


def test_an_energy_network_of_any_width_and_channels(tmp_path):
    config = {"n_f": 4, "n_c": 1, "leak": 0.2}
    network = saved(tmp_path / "mine.pt", "ebm", config)
    part = f"ebm:path={tmp_path / 'mine.pt'}"
    with pytest.raises(UserError, match=r"n_f=4, n_c=1, and its leak stands in no shape") as caught:
        assert components.find("score", part).takes
    assert 'config=FILE: a JSON file such as {"n_f": 4, "n_c": 1' in caught.value.hint
    part = f"{part},config={written(tmp_path / 'c.json', config)}"
    found = components.find("score", part)
    assert found.takes == [1, 32, 32]
    digest = found.digest
    made, x = components.load("score", "ebm", found.values), torch.rand(2, 1, 32, 32)
    assert torch.equal(made.energy(x), network(x))
    # Its configuration is in the hash, and an image of another size has no number.
    written(tmp_path / "c.json", config | {"leak": 0.05})
    assert components.find("score", part).digest != digest
    written(tmp_path / "c.json", config | {"image_size": 64})
    with pytest.raises(UserError, match="take images of 32x32"):
        assert components.find("score", part).takes
    saved(tmp_path / "usual.pt", "ebm", {"n_f": 32})
    assert components.find("score", f"ebm:path={tmp_path / 'usual.pt'},size=32").takes == [3, 32, 32]


def test_a_noise_schedule_is_applied_where_it_is_built(tmp_path):
    saved(tmp_path / "mine.pt", "ddpm", DDPM)
    said = written(tmp_path / "c.json", changed(DDPM, "diffusion.beta_end", 0.03))
    made = components.load("score", "ddpm", {"path": str(tmp_path / "mine.pt"), "config": str(said)})
    assert isinstance(made, vp.ScheduleScore)
    assert (
        made.sigma_max
        > 1.5
        * components.load(
            "score", "ddpm", {"path": str(tmp_path / "mine.pt"), "config": str(written(said, DDPM))}
        ).sigma_max
    )
