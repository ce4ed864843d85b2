"""Which network the weights in a user's file are of: its configuration, the images that it takes and its classes, told by the shapes of
its tensors, or by a configuration where shapes cannot tell. Torch-free: a plan knows it as the loader does.

What two networks of the same shapes differ in (heads of attention, a resolution) is never guessed: it is the published network's where
all that shapes tell is, else it is asked for."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purebench import assets
from purebench.assets import contents, diffusers, options
from purebench.errors import UserError

Config = dict[str, Any]
Shapes = Mapping[str, Sequence[int]]
PRECONDITIONERS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
ADM_DEFAULTS = {"attention_resolutions": "16,8", "use_scale_shift_norm": True, "resblock_updown": False}
MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
TRAINED = ("small-cnn", "adp-cnn")  # classifiers that `purebench train` makes
EBM_SIDE = 32  # pixels, of an energy network's images: halved three times, and then seen whole by a kernel of 4x4
ATTENDED = 16  # pixels: where DDPM's and Score SDE's networks attend, whatever their images' size


@dataclass(frozen=True)
class Schedule:
    """The noise of a diffusion of `steps` indices. `name`: linear (from `start` to `end`), scaled_linear (the same of the roots) or cosine;
    `rescaled`: whether the network is told 1000 / steps times the index."""

    name: str
    steps: int
    start: float
    end: float
    rescaled: bool = False


DDPM = Schedule("linear", 1000, 1e-4, 0.02)


@dataclass(frozen=True)
class Network:
    """`config`: what `networks.build` takes; `size`: [C,H,W] of its images; `classes`: those that it was conditioned on, 0 for none;
    `variances`: whether it learned them, in C more channels; `sigmas`: the least and the largest noise on the [-1,1] scale, of a family
    that says it; `schedule`: of a family of indices, where it is not DDPM's; `keys`: a key of the file -> the network's, where they
    differ."""

    config: Config
    size: list[int]
    classes: int = 0
    variances: bool = False
    sigmas: tuple[float, float] = (0.0, 0.0)
    schedule: Schedule | None = None
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """What is at hand to tell a network by. `published`: the registry's configuration of the family; `given`: the user's, or None."""

    what: str
    family: str
    shapes: Shapes
    published: Config
    given: Config | None
    size: int


def of(asset: str, path: Path | str, *, weights: str = "", size: int = 0, label: int = -1, config: str = "") -> Network:
    """The network of a file like the asset's. weights: which set of the file; size: of its images, where nothing tells it; label: the
    class that a class-conditional one is asked for; config: a file with its configuration.

    UserError: it is of no network that is built, of which none is certain, or of classes without a label; as `contents.of` besides."""
    path, entry = Path(path), assets.entry(asset)
    held = contents.of(path, entry["format"])
    kind = held.choose(weights, path.name)
    # Where an average has no names, the raw weights beside it have the same shapes.
    kind = "raw" if kind in held.nameless and "raw" in held.sets and "raw" not in held.nameless else kind
    # Without any names the published network is held against them in their order, by whoever loads them.
    shapes = {} if kind in held.nameless else held.sets[kind]
    if held.config or held.class_name:
        if config:
            raise UserError(
                f"`config={config}` has no say here: `{path.name}` says itself which network it is of",
                "leave `config` out",
            )
        given: Config | None = {**held.config, "class_name": held.class_name}
    else:
        given = configuration(path, config) or (_registered(path) if diffusers.is_it(shapes) else None)
    if diffusers.is_it(shapes) and kind in held.nameless:
        raise UserError(
            f"`{path.name}` has an average without names beside diffusers' weights", "save the averaged model"
        )
    asked = _Asked(path.name, entry["network"], shapes, entry.get("config", {}), given, size)
    scheduler = _parsed(file) if (file := _scheduler(path)) else {}
    try:
        options.check(path.name, asked.family, given or asked.published)
        found = FAMILIES[asked.family](asked)
        if asked.family in options.INDEXED:
            options.check_scheduler(path.name, scheduler, given or {})
            found = dataclasses.replace(found, schedule=_schedule(found.config, given or {}, scheduler, path.name))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # What shapes tell has been held against them: only a user's configuration can say anything.
        if given is None:
            raise
        raise UserError(
            f"the configuration of `{path.name}` is none of the family `{asked.family}`: {type(error).__name__} {error}",
            f"it has the keys {', '.join(map(str, list(given)[:12]))}",
        ) from None
    check_label(path.name, found.classes, label)
    return found


def published(asset: str) -> Network:
    """The same of the asset's own file, by the registry."""
    entry = assets.entry(asset)
    config = entry.get("config", {})
    given = config if entry["network"] == "edm" else None
    options.check(asset, entry["network"], config)
    found = FAMILIES[entry["network"]](_Asked(asset, entry["network"], {}, config, given, 0))
    if entry["network"] not in options.INDEXED:
        return found
    return dataclasses.replace(found, schedule=_schedule(found.config, {}, {}, asset))


def config_files(path: Path, config: str) -> list[Path]:
    """The files that a network's configuration and its noise schedule are read from, where the user says or beside its weights."""
    beside = path.parent / "config.json" if configuration(path, "") is not None else None
    return [file for file in (Path(config) if config else beside, _scheduler(path)) if file]


def _registered(path: Path) -> Config | None:
    """The configuration of a file that the registry knows by its hash; None of another."""
    known = {
        str(entry["sha256"]): entry.get("config") for entry in map(assets.entry, assets.table()) if "sha256" in entry
    }
    return known.get(assets.hashed(path))


def check_label(what: str, classes: int, label: int) -> None:
    """Raises UserError for a class-conditional network without a class, or with one that it has not."""
    if classes and label < 0:
        raise UserError(
            f"`{what}` is class-conditional: it knows {classes} classes, and none is given",
            "write label=N, and every image is purified as one of class N; or take an unconditional network",
        )
    if classes and label >= classes:
        raise UserError(f"`label={label}`: `{what}` knows {classes} classes", f"a class is 0 to {classes - 1}")
    if label >= 0 and not classes:
        raise UserError(f"`label={label}` has no say here: `{what}` is of no class", "leave `label` out")


def configuration(path: Path, config: str) -> Config | None:
    """The configuration that a user gave, else diffusers' `config.json` beside the weights; None where there is none."""
    if not config:
        beside = path.parent / "config.json"
        found = _parsed(beside) if beside.is_file() else {}
        return found if found.get("_class_name") == diffusers.CLASS else None
    return _parsed(Path(config))


def _parsed(path: Path) -> Config:
    hint = "a configuration is a JSON, TOML or YAML file of the network's own training"
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            found: object = tomllib.loads(text)
        else:
            found = _yaml(path, text) if path.suffix in (".yml", ".yaml") else json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration `{path}`: {str(error).splitlines()[0]}", hint) from None
    if isinstance(found, dict) and (key := _no_number(found)):
        raise UserError(f"the configuration `{path}` has no number as `{key}`, but NaN", hint)
    if not isinstance(found, dict):
        raise UserError(f"`{path}` holds a {type(found).__name__}, expected keys and values", hint)
    return found


def _no_number(config: Config) -> str:
    """The first key whose value is NaN; "" where none is."""
    for key, value in config.items():
        if isinstance(value, float) and math.isnan(value):
            return str(key)
        if isinstance(value, dict) and (inner := _no_number(value)):
            return inner
    return ""


def _yaml(path: Path, text: str) -> object:
    try:
        # Imported here: few configurations are YAML, and the package is none that purebench asks for.
        import yaml
    except ModuleNotFoundError:
        raise UserError(f"`{path}` is YAML, and the package `pyyaml` is not installed", "write it as JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _scheduler(path: Path) -> Path | None:
    """The file with the noise schedule that diffusers keeps beside a network, or beside its folder; None where there is none."""
    places = (path.parent, path.parent.parent / "scheduler", path.parent.parent)
    return next((file for place in places if (file := place / "scheduler_config.json").is_file()), None)


def _schedule(config: Config, given: Config, scheduler: Config, what: str) -> Schedule | None:
    """The noise schedule that a configuration names, as guided-diffusion's, DDIM's or diffusers' do; None where it is DDPM's."""
    # In diffusers' network it counts a learned embedding, which is none of DDPM's.
    own = {
        key: value for key, value in given.items() if "block_out_channels" not in given or key != "num_train_timesteps"
    }
    said = {**config, **own, **given.get("diffusion", {}), **scheduler}
    name = said.get("noise_schedule") or said.get("beta_schedule") or "linear"
    name = {"squaredcos_cap_v2": "cosine", "quad": "scaled_linear"}.get(name, name)
    steps = (
        said.get("diffusion_steps") or said.get("num_diffusion_timesteps") or said.get("num_train_timesteps") or 1000
    )
    # Of any number of steps, guided-diffusion's goes through the same noise.
    scale = 1000 / int(steps) if "diffusion_steps" in said else 1
    start, end = float(said.get("beta_start", 1e-4 * scale)), float(said.get("beta_end", 0.02 * scale))
    if name not in ("linear", "scaled_linear", "cosine"):
        raise UserError(
            f"`{what}` was trained with the noise schedule `{name}`, which no score model here has",
            "built are linear, scaled_linear (DDIM's quad) and cosine",
        )
    found = Schedule(name, int(steps), start, end, bool(said.get("rescale_timesteps")) and int(steps) != 1000)
    return None if found == DDPM else found


# What the last layer of a classifier is called: torchvision's and RobustBench's networks, timm's, and those of this package.
LAST = re.compile(
    r"(.*\.)?(fc|linear|head|heads\.head|head\.fc|classifier|logits|last_linear|classifier\.\d+|fc\d|\d+)\.weight"
)
AUX = re.compile(r"(^|\.)(aux\d|AuxLogits)\.")  # heads of GoogLeNet and Inception that training alone asks
# Of a layer in parts that which has the weight's shape.
IN_PARTS = re.compile(r"\.(weight_v|weight_orig|parametrizations\.weight\.original1?)$")
HEAD = re.compile(r"((?:.*\.)?(fc|linear|classifier)\.)\d+\.(weight|bias)")


def last_layer(path: Path, weights: str = "") -> tuple[str, int]:
    """The key of a classifier's last layer, and how many classes it has; ("", 0) where the file's keys do not tell.

    UserError as `contents.of`."""
    sorted_keys = contents.is_safetensors(path)
    if sorted_keys and (classes := _of_training(path)):
        return "classes", classes
    held = contents.of(path, "state-dict")
    kind = held.choose(weights, path.name)
    if kind in held.nameless:
        return "", 0
    shapes = {IN_PARTS.sub(".weight", key): shape for key, shape in held.sets[kind].items() if not AUX.search(key)}
    # Files keep the order of the network but for safetensors, whose keys are sorted: there only one is certain.
    linear = [key for key, shape in shapes.items() if len(shape) == 2 and key.endswith(".weight")]
    last = linear[-1] if linear else ""
    if not LAST.fullmatch(last) or (sorted_keys and len(linear) > 1):
        return "", 0
    return last, int(shapes[last][0])


def head_in_sequence(keys: Iterable[str], network: str) -> tuple[str, str]:
    """(`fc.1.`, `fc.`) of a classifier whose last layer was saved as the only one with weights in a sequence, such as behind a dropout;
    ("", "") of others. Only of networks whose features are not negative: a ReLU in its place would change nothing either."""
    keys = list(keys)
    of_it = [found for key in keys if (found := HEAD.fullmatch(key))]
    # Elsewhere `classifier.1` is the layer's own name.
    of_it = [found for found in of_it if found[2] != "classifier" or "densenet" in network]
    starts = {(key[0].removesuffix(key[3]), key[1]) for key in of_it}
    if len(starts) != 1:
        return "", ""
    start, plain = starts.pop()
    return (start, plain) if plain + "weight" not in keys and start + "weight" in keys else ("", "")


def _of_training(path: Path) -> int:
    """The classes that `purebench train` wrote into a file; 0 where it says nothing."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            about = json.loads(file.read(min(length, contents.MAX_HEADER))).get("__metadata__", {})
        # What a configuration leaves out is the network's default.
        return int(json.loads(about["config"]).get("classes", 10)) if about.get("network") in TRAINED else 0
    except (OSError, ValueError, KeyError, AttributeError):
        return 0


# One function for each family: what shapes tell, and what they cannot.


def _edm(asked: _Asked) -> Network:
    """EDM's: its own `init_kwargs`. A state dict says nothing of its preconditioning, nor of its images' size."""
    if asked.given is None:
        raise UserError(
            f"`{asked.what}` holds EDM's weights, and not which network they are of",
            "write config=FILE: a JSON file of its `init_kwargs` and its `class_name`, such as EDMPrecond",
        )
    # As a pickle's converted files have it, as the training's own options, or all at one level.
    config = {**asked.given, **asked.given.get("init_kwargs", {})}
    if "network_kwargs" in config:
        config = {**_edm_ends(asked.shapes), **config["network_kwargs"]}
    name = str(config.pop("class_name", "") or config.pop("precond", "")).rpartition(".")[2]
    for key in ("init_kwargs", "class_name", "precond", "source", "keys"):
        config.pop(key, None)
    if not name or not {"img_resolution", "img_channels"} <= set(config):
        missing = [k for k in ("img_resolution", "img_channels") if k not in config] + (
            ["class_name"] if not name else []
        )
        raise UserError(
            f"the configuration of `{asked.what}` has no {', '.join(missing)}", "give EDM's own `init_kwargs`"
        )
    if name not in (*PRECONDITIONERS, *PRECONDITIONERS.values()):
        raise UserError(f"`{asked.what}` is of the class `{str(name)[:80]}`", f"built are {', '.join(PRECONDITIONERS)}")
    side, channels = int(config["img_resolution"]), int(config["img_channels"])
    made = {**config, "precond": PRECONDITIONERS.get(name, name)}
    return Network(made, [channels, side, side], int(config.get("label_dim") or 0), sigmas=_edm_sigmas(made))


def _edm_ends(shapes: Shapes) -> Config:
    """What EDM's training takes from its images and not from its options: their size, channels and classes; {} where no key tells."""
    found: Config = {}
    for key, shape in shapes.items():
        if first := re.fullmatch(r"(?:.*\.)?enc\.(\d+)x\1_conv\.weight", key):
            found |= {"img_resolution": int(first[1]), "img_channels": int(shape[1]), "label_dim": 0}
    classes = next((int(shape[1]) for key, shape in shapes.items() if key.endswith("map_label.weight")), 0)
    return found | ({"label_dim": classes} if found else {})


def _edm_sigmas(config: Config) -> tuple[float, float]:
    """The noise levels that a preconditioning is made for; EDM's own goes without ends, and was trained and sampled from 0.002 to 80."""
    if config["precond"] == "vp":
        d, low, first = (config.get(k, v) for k, v in (("beta_d", 19.9), ("beta_min", 0.1), ("epsilon_t", 1e-5)))
        least, most = (math.sqrt(math.expm1(0.5 * d * t**2 + low * t)) for t in (first, 1.0))
        return least, most
    usual = (0.02, 100.0) if config["precond"] == "ve" else (0.002, 80.0)
    least, most = float(config.get("sigma_min") or usual[0]), float(config.get("sigma_max") or usual[1])
    return least, most if math.isfinite(most) else usual[1]


def _ddpm(asked: _Asked) -> Network:
    """DDPM's U-Net, in the keys of its PyTorch ports or diffusers'."""
    keys: dict[str, str] = {}
    config, shapes = asked.given, asked.shapes
    if diffusers.is_it(shapes):
        keys = diffusers.renamed(shapes)
        shapes = {keys[key]: shape for key, shape in shapes.items()}
        if config is None:
            raise UserError(
                f"`{asked.what}` has the keys of diffusers, and not its `config.json`: networks of other heads and paddings have the same",
                "put the `config.json` of its folder beside it, or write config=FILE",
            )
    if config is not None and "block_out_channels" in config:
        config = diffusers.configuration(config, asked.what)
    if config is None and not shapes:
        config = _sized(asked, asked.published, asked.size)
    if config is None:
        _need(asked, shapes, "conv_in.weight", "conv_out.weight", "down.0.block.0.conv1.weight", "temb.dense.0.weight")
        width, channels = shapes["conv_in.weight"][:2]
        widths = _count(shapes, "down.{}.block.0.conv1.weight", lambda key: shapes[key][0])
        told = {
            "ch": width,
            "in_channels": channels,
            "out_ch": shapes["conv_out.weight"][0],
            "ch_mult": _multiples(asked, widths, width),
            "num_res_blocks": len(_count(shapes, "down.0.block.{}.conv1.weight", str)),
            "resamp_with_conv": len(widths) == 1 or "down.0.downsample.conv.weight" in shapes,
        }
        attended = [i for i in range(len(widths)) if f"down.{i}.attn.0.q.weight" in shapes]
        size = _side(asked, told, attended, _ddpm_told(asked.published))
        config = {**told, "resolution": size, "attn_resolutions": [size >> i for i in attended]}
    model = config.get("model", config)
    _has(asked, model, "ch", "in_channels", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions")
    size = int(config["data"]["image_size"] if "data" in config else config["resolution"])
    size = _halved(asked, size, len(model["ch_mult"]) - 1)
    variances = _outputs(asked, model["in_channels"], model["out_ch"])
    return Network(config, [model["in_channels"], size, size], variances=variances, keys=keys)


def _ddpm_told(config: Config) -> tuple[Config, list[int], int]:
    """Of the published configuration: what shapes tell, the attended levels, and the size."""
    model, size = config.get("model", config), config.get("data", {}).get("image_size") or config.get("resolution", 0)
    keys = ("ch", "in_channels", "out_ch", "num_res_blocks")
    told = {**{key: model[key] for key in keys}, "ch_mult": list(model["ch_mult"])}
    levels = [i for i in range(len(told["ch_mult"])) if size >> i in model["attn_resolutions"]]
    return {**told, "resamp_with_conv": model.get("resamp_with_conv", True)}, levels, size


def _ddpmpp(asked: _Asked) -> Network:
    """Score SDE's DDPM++: its layers are numbered in one row, whose kinds tell where a level ends."""
    data, model = asked.published["data"], asked.published["model"]
    config = asked.given
    if config is None and not asked.shapes:
        config = _sized(asked, asked.published, asked.size)
    if config is None:
        shapes = asked.shapes
        _need(asked, shapes, "all_modules.0.weight", "all_modules.2.weight")
        width, channels = shapes["all_modules.0.weight"][1], shapes["all_modules.2.weight"][1]
        blocks: list[list[int]] = [[]]  # by level: the channels that each block makes
        attentions: list[int] = []  # the level of each
        for i in range(3, len(shapes)):
            conv = shapes.get(f"all_modules.{i}.Conv_0.weight")
            if conv is None:
                attentions += [len(blocks) - 1] if f"all_modules.{i}.NIN_0.W" in shapes else []
            # The way up begins: its blocks take outputs of the way down along.
            elif conv[1] > conv[0]:
                break
            # A shortcut that changes no width is that of a block that halves the image.
            elif f"all_modules.{i}.Conv_2.weight" in shapes and conv[0] == conv[1]:
                blocks.append([])
            else:
                blocks[-1].append(conv[0])
        last, each = len(blocks) - 1, len(blocks[-1]) - 2
        # Behind the lowest level's own blocks stand the middle's two, with an attention between them.
        if each < 1 or [len(level) for level in blocks] != [each] * last + [each + 2]:
            raise UserError(f"the layers of `{asked.what}` are in no order that is known", "write config=FILE")
        attended = [i for i in range(len(blocks)) if attentions.count(i) == each + (i == last)]
        told = {"nf": width, "num_channels": channels, "ch_mult": _multiples(asked, [b[0] for b in blocks], width)}
        told["num_res_blocks"] = each
        usual = {"nf": model["nf"], "num_channels": data["num_channels"], "ch_mult": list(model["ch_mult"])}
        usual["num_res_blocks"] = model["num_res_blocks"]
        levels = [i for i in range(len(usual["ch_mult"])) if data["image_size"] >> i in model["attn_resolutions"]]
        size = _side(asked, told, attended, (usual, levels, data["image_size"]))
        told.pop("num_channels")
        config = {
            "data": {**data, "image_size": size, "num_channels": channels},
            "model": {**model, **told, "attn_resolutions": [size >> i for i in attended]},
        }
    for key in ("data", "model"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"the configuration of `{asked.what}` has no `{key}`", "give Score SDE's own")
    _has(asked, config["data"], "image_size", "num_channels")
    _has(asked, config["model"], "nf", "ch_mult", "num_res_blocks", "attn_resolutions")
    # What a buffer is made of that no output depends on.
    config = {
        **config,
        "model": {**{key: model[key] for key in ("sigma_min", "sigma_max", "num_scales")}, **config["model"]},
    }
    size = _halved(asked, int(config["data"]["image_size"]), len(config["model"]["ch_mult"]) - 1)
    return Network(config, [config["data"]["num_channels"], size, size])


def _adm(asked: _Asked) -> Network:
    """guided-diffusion's and improved-diffusion's U-Net: its heads stand in no shape."""
    config = asked.given
    if config is None:
        config = dict(asked.published)
        if asked.shapes:
            told = _adm_config(asked)
            # The published network is there with classes, too.
            same = all(
                told[key] == config.get(key, usual) for key, usual in (("in_channels", 3), ("learn_sigma", False))
            )
            if not asked.size and not same:
                raise UserError(
                    f"of which images `{asked.what}` is, its shapes do not tell: its ends are not those of the published network",
                    "write size=N for images of NxN, or config=FILE with its training's options",
                )
            config |= told
        config = _sized(asked, config, asked.size)
    elif "image_size" not in config or "num_channels" not in config:
        raise UserError(
            f"the configuration of `{asked.what}` has no image_size, num_channels", "give its training's own"
        )
    size = _halved(asked, int(config["image_size"]), len(_adm_told(config)["widths"]) - 1)
    classes = int(config.get("num_classes", 1000)) if config.get("class_cond") else 0
    if (label := asked.shapes.get("label_emb.weight")) is not None and classes:
        classes = label[0]
    config = {**config, "num_classes": classes}
    return Network(config, [int(config.get("in_channels", 3)), size, size], classes, bool(config.get("learn_sigma")))


def _adm_config(asked: _Asked) -> Config:
    """What shapes tell of a network that is the published one but for its classes and its ends."""
    shapes = asked.shapes
    _need(
        asked,
        shapes,
        "time_embed.0.weight",
        "input_blocks.0.0.weight",
        "out.2.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.1.0.emb_layers.1.weight",
    )
    channels, ends = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    ways = range(1 + max(i for i in range(len(shapes)) if f"input_blocks.{i}.0.in_layers.2.weight" in shapes))
    first, scales = shapes["input_blocks.1.0.in_layers.2.weight"][0], shapes["input_blocks.1.0.emb_layers.1.weight"][0]
    told = {
        "num_channels": shapes["time_embed.0.weight"][1],
        "use_scale_shift_norm": scales == 2 * first,
        "resblock_updown": not any(key.endswith(".0.op.weight") for key in shapes),
        "inputs": [shapes[key][0] if (key := f"input_blocks.{i}.0.in_layers.2.weight") in shapes else 0 for i in ways],
        "attended": [i for i in ways if f"input_blocks.{i}.1.qkv.weight" in shapes],
    }
    usual = _adm_told(asked.published)
    usual.pop("widths")
    different = [key for key in told if told[key] != usual[key]]
    if different:
        raise UserError(
            f"`{asked.what}` is no network like the published one: its {', '.join(different)} differ, and its heads stand in no shape",
            "write config=FILE: a JSON, TOML or YAML file of its training's options (image_size, num_channels, num_heads, ..)",
        )
    return {
        "in_channels": channels,
        "learn_sigma": _outputs(asked, channels, ends),
        "class_cond": "label_emb.weight" in shapes,
    }


def _adm_told(config: Config) -> Config:
    """The same of a configuration, and the width of each level."""
    options = {**ADM_DEFAULTS, "num_res_blocks": 2, **config}
    size, mult = int(options["image_size"]), options.get("channel_mult") or MULTIPLIERS.get(int(options["image_size"]))
    if not mult:
        raise UserError(f"no published `channel_mult` for image_size {size}", "say it in the configuration: `1,2,2`")
    widths = [int(m * options["num_channels"]) for m in _numbers(mult)]
    at = {size // int(r) for r in _numbers(options["attention_resolutions"])}
    inputs, attended = [0], []
    for level, width in enumerate(widths):
        for _ in range(options["num_res_blocks"]):
            attended += [len(inputs)] if 2**level in at else []
            inputs.append(width)
        if level < len(widths) - 1:
            inputs.append(width if options["resblock_updown"] else 0)
    return {
        "num_channels": options["num_channels"], "use_scale_shift_norm": options["use_scale_shift_norm"],
        "resblock_updown": options["resblock_updown"], "inputs": inputs, "attended": attended, "widths": widths,
    }  # fmt: skip


def _numbers(value: Any) -> list[float]:
    return [float(v) for v in (value.split(",") if isinstance(value, str) else value)]


def _ncsnv2(asked: _Asked) -> Network:
    """NCSNv2's for images of 32x32: of it and the one for 64x64 the noise levels' number tells."""
    config = asked.given
    if config is None:
        config = dict(asked.published)
        if asked.shapes:
            _need(asked, asked.shapes, "begin_conv.weight", "end_conv.weight")
            width, channels = asked.shapes["begin_conv.weight"][:2]
            levels = asked.shapes.get("sigmas", (config["num_classes"],))[0]
            told = {"ngf": width, "channels": channels, "num_classes": levels}
            if not asked.size and any(told[key] != config[key] for key in told):
                raise UserError(
                    f"`{asked.what}` has {levels} noise levels, {channels} channels and a width of {width}, CIFAR-10's "
                    f"{config['num_classes']}, {config['channels']} and {config['ngf']}: of which images it is, nothing tells",
                    "write size=N for images of NxN, such as size=64",
                )
            config |= told
        config = _sized(asked, config, asked.size)
    flat = {**config.get("data", {}), **config.get("model", config)}
    # A registry of the user's may leave it out: CIFAR-10's.
    flat.setdefault("image_size", 32)
    for key in ("channels", "image_size", "ngf", "sigma_begin", "sigma_end", "num_classes"):
        if key not in flat:
            raise UserError(f"the configuration of `{asked.what}` has no `{key}`", "give NCSNv2's own")
    size = _halved(asked, int(flat["image_size"]), 1)
    return Network(flat, [int(flat["channels"]), size, size])


def _ebm(asked: _Asked) -> Network:
    """Hill et al.'s, whose last convolution sees all of an image of 32x32. Its leak stands in no shape."""
    config = dict(asked.given or asked.published)
    # Nested as other families have it, or at one level.
    config = {**config, **config.get("model", {})}
    if asked.given is None and asked.shapes:
        _need(asked, asked.shapes, "f.0.weight", "f.8.weight")
        told = dict(zip(("n_f", "n_c"), asked.shapes["f.0.weight"], strict=False))
        different = [f"{key}={told[key]}" for key, usual in (("n_f", config["n_f"]), ("n_c", 3)) if told[key] != usual]
        if different:
            raise UserError(
                f"`{asked.what}` is no network like the published one: it has {', '.join(different)}, and its leak stands in no shape",
                f'write config=FILE: a JSON file such as {{"n_f": {told["n_f"]}, "n_c": {told["n_c"]}, "leak": 0.05}}',
            )
    size = asked.size or int(config.get("image_size", EBM_SIDE))
    if size != EBM_SIDE:
        raise UserError(
            f"`size={size}`: networks of the family `{asked.family}` take images of {EBM_SIDE}x{EBM_SIDE}",
            f"size={EBM_SIDE}",
        )
    return Network(config, [int(config.get("n_c", 3)), size, size])


FAMILIES: dict[str, Callable[[_Asked], Network]] = {
    "edm": _edm, "ddpm": _ddpm, "ddpmpp": _ddpmpp, "adm": _adm, "ncsnv2": _ncsnv2, "ebm": _ebm,
}  # fmt: skip


# What they have in common.


def _need(asked: _Asked, shapes: Shapes, *keys: str) -> None:
    """Raises UserError for weights of another family."""
    missing = [f"`{key}`" for key in keys if key not in shapes]
    if missing:
        has = ", ".join(f"`{key[:60]}`" for key in list(shapes)[:3])
        raise UserError(
            f"`{asked.what}` holds no network of the family `{asked.family}`: it has no {', '.join(missing)} (it has {has}, ..)",
            "another `--score` may be of its kind: `purebench list scores`",
        )


def _has(asked: _Asked, config: Config, *keys: str) -> None:
    """Raises UserError for a configuration without what a network is built from."""
    missing = [f"`{key}`" for key in keys if key not in config]
    if missing:
        raise UserError(
            f"the configuration of `{asked.what}` has no {', '.join(missing)}",
            f"it has {', '.join(map(str, list(config)[:12]))}",
        )


def _count(shapes: Shapes, pattern: str, of: Callable[[str], Any]) -> list[Any]:
    """of(key) for the keys of a pattern at 0, 1, 2, .."""
    keys = [pattern.format(i) for i in range(len(shapes))]
    return [of(key) for key in keys if key in shapes]


def _multiples(asked: _Asked, widths: Sequence[int], width: int) -> list[int]:
    """The levels' widths as multiples of the first. Raises UserError where they are none."""
    if any(w % width for w in widths):
        raise UserError(
            f"`{asked.what}` has levels of {', '.join(map(str, widths))} channels, no multiples of {width}",
            "such a network is not built",
        )
    return [w // width for w in widths]


def _side(asked: _Asked, told: Config, attended: list[int], published: tuple[Config, list[int], int]) -> int:
    """The side of the images: the user's, or the published network's where all that shapes tell is as there. UserError else."""
    if asked.size:
        return asked.size
    usual, levels, size = published
    if attended == levels and all(told[key] == usual[key] for key in usual):
        return size
    # Ho et al.'s attend at 16x16, and so do many that follow them; others do not.
    usually = f"; if it attends at 16x16 as Ho et al.'s, size={ATTENDED << attended[0]}" if len(attended) == 1 else ""
    raise UserError(
        f"of which images `{asked.what}` is, its shapes do not tell",
        f"write size=N for images of NxN, or config=FILE with its training's configuration{usually}",
    )


def _sized(asked: _Asked, config: Config, size: int) -> Config:
    """The configuration with the user's size."""
    if not size:
        return config
    if "image_size" in config:
        return _rescaled(config, size)
    if "data" in config:
        model, old = config["model"], config["data"]["image_size"]
        at = [r * size // old for r in model["attn_resolutions"]]
        return {**config, "data": {**config["data"], "image_size": size}, "model": {**model, "attn_resolutions": at}}
    at = [r * size // config["resolution"] for r in config["attn_resolutions"]]
    return {**config, "resolution": size, "attn_resolutions": at}


def _rescaled(config: Config, size: int) -> Config:
    """ADM's or NCSNv2's at another size: the same levels attend."""
    if "attention_resolutions" not in config:
        return {**config, "image_size": size}
    old = int(config["image_size"])
    at = [int(r) * size // old for r in _numbers(config["attention_resolutions"])]
    mult = config.get("channel_mult") or list(MULTIPLIERS[old])
    return {**config, "image_size": size, "attention_resolutions": at, "channel_mult": mult}


def _halved(asked: _Asked, size: int, times: int) -> int:
    """The size. Raises UserError for one that cannot be halved so often."""
    if size <= 0 or size % 2**times:
        raise UserError(
            f"`{asked.what}` halves its images {times} times, and {size}x{size} cannot be", f"a multiple of {2**times}"
        )
    return size


def _outputs(asked: _Asked, channels: int, out: int) -> bool:
    """Whether a network gives variances beside the noise. Raises UserError for another number of channels."""
    if out not in (channels, 2 * channels):
        raise UserError(
            f"`{asked.what}` makes {out} channels of {channels}",
            "a noise predictor gives as many as it takes, or twice as many where it learned the variances",
        )
    return out == 2 * channels
