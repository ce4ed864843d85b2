"""DDPM's U-Net as the library diffusers saves it (`UNet2DModel`): its keys, and its `config.json`, in those of `networks.ddpm`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from purebench.errors import UserError

CLASS = "UNet2DModel"
# What diffusers calls a layer, now or in older files -> what the published checkpoints call it.
LAYERS = {
    "time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "conv_norm_out": "norm_out",
}
MID = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
LEVEL = {"resnets": "block", "attentions": "attn"}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)\.(weight|bias)")
RESAMPLED = re.compile(r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.(weight|bias)")
MIDDLE = re.compile(r"mid_block\.(resnets\.[01]|attentions\.0)\.(.+)\.(weight|bias)")
# Of its configuration, what is built only as it is by default.
FIXED = {
    "act_fn": ("silu", "swish"), "center_input_sample": (False,), "mid_block_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",), "resnet_time_scale_shift": ("default",), "downsample_type": ("conv",),
    "upsample_type": ("conv",), "add_attention": (True,), "attn_norm_num_groups": (None,), "class_embed_type": (None,),
    "num_class_embeds": (None,), "mid_block_type": ("UNetMidBlock2D",), "_class_name": (CLASS,),
}  # fmt: skip
# What is applied, or of no say in what it computes; a key of another version that is set is refused.
KNOWN = {
    *FIXED, "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
    "norm_num_groups", "norm_eps", "attention_head_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift",
    "dropout", "num_train_timesteps", "time_embedding_dim",
}  # fmt: skip
KINDS = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}


def is_it(keys: Iterable[str]) -> bool:
    """Whether these are diffusers' keys."""
    return any(key.startswith(("down_blocks.", "mid_block.")) for key in keys)


def renamed(keys: Iterable[str]) -> dict[str, str]:
    """key -> the published network's key; what is none of diffusers' keeps its own."""
    keys = list(keys)
    levels = 1 + max((int(found[2]) for key in keys if (found := BLOCK.fullmatch(key))), default=0)
    return {key: _renamed(key, levels) for key in keys}


def _renamed(key: str, levels: int) -> str:
    def place(way: str, level: str) -> str:
        # On the way up diffusers counts from the lowest resolution, the published files from the highest.
        return f"{way}.{int(level) if way == 'down' else levels - 1 - int(level)}"

    if found := BLOCK.fullmatch(key):
        way, level, kind, i, layer, end = found.groups()
        return f"{place(way, level)}.{LEVEL[kind]}.{i}.{LAYERS.get(layer, layer)}.{end}"
    if found := RESAMPLED.fullmatch(key):
        way, level, _, end = found.groups()
        return f"{place(way, level)}.{way}sample.conv.{end}"
    if found := MIDDLE.fullmatch(key):
        return f"mid.{MID[found[1]]}.{LAYERS.get(found[2], found[2])}.{found[3]}"
    layer, _, end = key.rpartition(".")
    return f"{TOP.get(layer, layer)}.{end}"


def configuration(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The published form of a `config.json`. UserError for a network that is not built here."""
    wrong = [f"{key} {config[key]!r}" for key, usual in FIXED.items() if config.get(key, usual[0]) not in usual]
    downs, ups = list(config.get("down_block_types", ())), list(config.get("up_block_types", ()))
    wrong += [str(kind) for kind in downs + ups if kind not in KINDS]
    attended = [KINDS.get(kind, False) for kind in downs]
    if attended != [KINDS.get(kind, False) for kind in reversed(ups)]:
        wrong.append("attention at other levels on the way up than on the way down")
    wrong += [
        f"{key} {value!r}"
        for key, value in config.items()
        if key not in KNOWN and not key.startswith("_") and value is not None and value is not False
    ]
    widths = list(config.get("block_out_channels", (224, 448, 672, 896)))
    if config.get("time_embedding_dim") not in (None, 4 * widths[0]):
        wrong.append(f"time_embedding_dim {config['time_embedding_dim']!r}")
    size = config.get("sample_size")
    if isinstance(size, list | tuple) and len({*size}) == 1:
        size = size[0]
    if not isinstance(size, int):
        wrong.append(f"sample_size {size!r}")
    if wrong:
        raise UserError(f"`{what}` is of a network that is not built: {', '.join(wrong)}", "DDPM's form of it is built")
    assert isinstance(size, int)
    if any(width % widths[0] for width in widths):
        raise UserError(f"`{what}` has levels of {widths} channels, no multiples of the first", "DDPM's form is built")
    return {
        "resolution": size,
        "in_channels": config.get("in_channels", 3),
        "out_ch": config.get("out_channels", 3),
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.get("layers_per_block", 2),
        "attn_resolutions": [size >> level for level, there in enumerate(attended) if there],
        # The library's own defaults, which are not those of DDPM's published networks.
        "groups": config.get("norm_num_groups", 32),
        "eps": config.get("norm_eps", 1e-5),
        "head_channels": config.get("attention_head_dim", 8) or 0,
        "padding": config.get("downsample_padding", 1),
        "cosines_first": config.get("flip_sin_to_cos", True),
        "shift": config.get("freq_shift", 0),
    }
