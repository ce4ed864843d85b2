"""What a network's or a noise schedule's configuration says that no shape shows: each option is applied where the network is built, or
has the value that is built, or is refused by name. Of others the same weights would be another network, silently.

What concerns training, its optimizer or sampling alone (`training`, `optim`, `sampling`, ..) changes no network, and may say anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from purebench.errors import UserError

Config = Mapping[str, Any]
NONE: tuple[Any, ...] = (None,)  # built without
OFF = (False, None)
# family -> option, in whatever section or in one -> the values that are built; a text in whatever case, as the published codes have it.
BUILT: dict[str, dict[str, tuple[Any, ...]]] = {
    "ddpmpp": {  # Score SDE's
        "model.name": ("ncsnpp",), "sde": ("vpsde",), "continuous": (True,), "centered": (True,), "beta_min": (0.1,), "beta_max": (20,),
        "scale_by_sigma": OFF, "normalization": ("GroupNorm",), "nonlinearity": ("swish", "silu"), "resamp_with_conv": (True,),
        "conditional": (True,), "fir": OFF, "skip_rescale": (True,), "resblock_type": ("biggan",), "progressive": ("none",),
        "progressive_input": ("none",), "attention_type": ("ddpm",), "embedding_type": ("positional",), "conv_size": (3,),
    },
    "ddpm": {  # DDIM's and SDEdit's nested, pesser's flat, latent diffusion's U-Net
        "model.type": ("simple",), "rescaled": (True,), "logit_transform": OFF, "use_timestep": (True,), "use_linear_attn": OFF,
        "attn_type": ("vanilla",), "conv_shortcut": OFF, "double_z": OFF,
    },
    "ncsnv2": {
        "normalization": ("InstanceNorm++",), "nonlinearity": ("elu",), "sigma_dist": ("geometric",), "rescaled": OFF,
        "logit_transform": OFF, "spec_norm": OFF,
    },
    "adm": {
        "dims": (2,), "conv_resample": (True,), "predict_xstart": OFF, "predict_v": OFF, "use_spatial_transformer": OFF,
        "context_dim": NONE, "legacy": (True, None),
    },
    "edm": {},  # all that it says are arguments of its network
    "ebm": {},
}  # fmt: skip
# What the sections of a configuration say besides: applied where the network is built (first line), or of no say in what it computes.
MODEL = {
    "ddpmpp": {
        "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "sigma_min", "sigma_max", "num_scales",
        "dropout", "ema_rate", "init_scale", "fir_kernel", "fourier_scale", "progressive_combine",
    },
    "ddpm": {
        "ch", "in_channels", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resamp_with_conv", "resolution",
        "groups", "eps", "head_channels", "padding", "cosines_first", "shift",
        "dropout", "ema_rate", "ema", "var_type", "z_channels",
    },
    "ncsnv2": {"ngf", "sigma_begin", "sigma_end", "num_classes", "ema", "ema_rate", "type"},
    "ebm": {"n_f", "n_c", "leak", "image_size"},
}  # fmt: skip
DIFFUSION = {
    "beta_schedule", "noise_schedule", "beta_start", "beta_end", "num_diffusion_timesteps", "diffusion_steps", "rescale_timesteps",
    "timestep_respacing", "use_kl", "learn_sigma", "rescale_learned_sigmas", "sigma_small",
}  # fmt: skip
# That options are in; all is at one level where a family's code has it so.
SECTIONS = ("model", "data", "training", "diffusion")
# What says the noise of each index, and what the network predicts of it: families of indices alone.
INDEXED = ("ddpm", "adm")
NOISE = {
    "prediction_type": ("epsilon",), "parameterization": ("eps",), "objective": ("pred_noise", "eps", "epsilon"),
    "predict_epsilon": (True,), "trained_betas": (*NONE, []), "rescale_betas_zero_snr": OFF, "use_flow_sigmas": OFF,
    "timestep_type": ("discrete",), "linear_start": NONE, "linear_end": NONE, "given_betas": NONE,
}  # fmt: skip
SAID = {  # what a noise schedule is made of -> by which keys it is said
    "the noise schedule": ("noise_schedule", "beta_schedule"), "beta_start": ("beta_start",), "beta_end": ("beta_end",),
    "the number of steps": ("diffusion_steps", "num_diffusion_timesteps", "num_train_timesteps"),
}  # fmt: skip
# diffusers' schedulers of this noise: others make their own of these words, or of none.
SCHEDULERS = {
    "DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
}  # fmt: skip


def check(what: str, family: str, given: Config) -> None:
    """Raises UserError for a configuration of a user's with an option that is not built, or that nobody here knows."""
    # The other words of diffusers are held against its own network's (`diffusers.configuration`).
    theirs = "block_out_channels" in given
    options = ({} if theirs else BUILT[family]) | (NOISE if family in INDEXED else {})
    wrong = [*_wrong(given, options, "")]
    for section in SECTIONS:
        inner = given.get(section)
        if isinstance(inner, Mapping):
            wrong += _wrong(inner, options, f"{section}.")
    for section, words in (("model", MODEL.get(family)), ("diffusion", DIFFUSION if family in INDEXED else None)):
        inner = given.get(section)
        if isinstance(inner, Mapping) and words is not None:
            known = {*words, *(key.removeprefix(f"{section}.") for key in options)}
            # An option of another code that is off changes nothing.
            wrong += [
                f"{section}.{key}={value}"
                for key, value in inner.items()
                if key not in known and value is not None and value is not False
            ]
    _refuse(f"the configuration of `{what}`", wrong, options)


def check_scheduler(what: str, scheduler: Config, given: Config) -> None:
    """The same of diffusers' `scheduler_config.json`, and for one that says another noise than the configuration does."""
    wrong = _wrong(scheduler, NOISE, "")
    kind = scheduler.get("_class_name")
    if kind is not None and kind not in SCHEDULERS:
        wrong.append(f"_class_name={kind}")
    _refuse(f"the scheduler_config.json beside `{what}`", wrong, NOISE)
    if not scheduler or "block_out_channels" in given:
        # Of its own network diffusers reads the scheduler's number of steps, unless a learned embedding has as many.
        steps = given.get("num_train_timesteps")
        if steps not in (None, scheduler.get("num_train_timesteps", 1000)):
            _refuse(
                f"the configuration of `{what}`", [f"num_train_timesteps={steps}"], {"num_train_timesteps": (1000,)}
            )
        return
    said = {**given, **(given.get("diffusion") or {})}
    for name, keys in SAID.items():
        ours, theirs = _first(said, keys), _first(scheduler, keys)
        if ours is not None and theirs is not None and ours != theirs:
            raise UserError(
                f"the configuration of `{what}` says {name} {ours}, and the scheduler_config.json beside it {theirs}",
                "which is its training's? take the other out",
            )


def _first(said: Config, keys: Iterable[str]) -> Any:
    return next((said[key] for key in keys if said.get(key) is not None), None)


def _wrong(said: Config, options: Mapping[str, tuple[Any, ...]], under: str) -> list[str]:
    """`key=value` for each option that has none of the values that are built."""
    asked = {key.removeprefix(under): built for key, built in options.items()}
    return [
        f"{under}{key}={said[key]}" for key, built in asked.items() if key in said and not _is_one(said[key], built)
    ]


def _is_one(value: Any, built: Iterable[Any]) -> bool:
    """Whether it is one of these: True is not 1, and texts are compared in whatever case."""
    if isinstance(value, str):
        return value.lower() in [one.lower() for one in built if isinstance(one, str)]
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in built)


def _refuse(where: str, wrong: list[str], options: Mapping[str, tuple[Any, ...]]) -> None:
    """UserError that names what is not built, if anything is."""
    if not wrong:
        return
    usual = {key.rpartition(".")[2]: values[0] for key, values in options.items()}
    keys = [one.partition("=")[0].rpartition(".")[2] for one in wrong]
    built = [f"{key}={usual[key]}" for key in keys if usual.get(key) is not None]
    hint = f"built: {', '.join(built)}" if built else "nothing of it is built"
    if any(key not in usual for key in keys):
        hint += "; an option that is not known here is to be taken out of the file if it changes nothing in the network"
    raise UserError(f"{where} says what is not built: {', '.join(f'`{one[:80]}`' for one in wrong)}", hint)
