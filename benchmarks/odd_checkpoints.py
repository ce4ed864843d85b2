"""Which weights are loaded of the layouts that people save them in: every layout x every family, with tiny networks, bit for bit.

    python benchmarks/odd_checkpoints.py                  # a table; exit code 1 where a wrong set was loaded, or a right one refused

A file is written as the library or the repository in the layout's line writes it, from two networks that differ in every value. Asked
are the cell's name and the network that its factory builds, with nothing said, with `weights=ema` and with `weights=raw`. In the table:
what was loaded with nothing said, then what is there besides; `refused` is right where a file holds several averages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from purebench import networks
from purebench.errors import UserError
from purebench.networks.small import SmallUNet
from purebench.plan import resolved

State = dict[str, Tensor]
TINY: dict[str, tuple[str, str, dict[str, Any]]] = {  # asset -> format, network, configuration
    "ddpm-cifar10-ema": ("state-dict", "ddpm", {
        "ch": 32, "out_ch": 3, "in_channels": 3, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "resolution": 32,
    }),
    "guided-diffusion-imagenet256-uncond": ("state-dict", "adm", {
        "image_size": 256, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "attention_resolutions": "4",
        "learn_sigma": True,
    }),
    "score-sde-cifar10-vp": ("score-sde", "ddpmpp", {
        "data": {"image_size": 32, "num_channels": 3},
        "model": {
            "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "sigma_max": 50, "sigma_min": 0.01,
            "num_scales": 1000,
        },
    }),
    "ncsnv2-cifar10": ("ncsnv2-list", "ncsnv2", {"channels": 3, "ngf": 4, "sigma_begin": 50, "sigma_end": 0.01, "num_classes": 5}),
    "ebm-hill-cifar10": ("state-dict", "ebm", {"n_f": 4}),
    "edm-cifar10-uncond-vp": ("edm-pickle", "edm", {
        "precond": "edm", "img_resolution": 32, "img_channels": 3, "model_channels": 16, "channel_mult": [1, 1], "num_blocks": 1,
        "attn_resolutions": [16],
    }),
}  # fmt: skip
FAMILIES: dict[str, str] = {  # family -> how a cell asks for a file of it
    "ddpm": "ddpm:",
    "guided-diffusion": "guided-diffusion:",
    "score-sde": "score-sde:",
    "ncsnv2": "ncsnv2:",
    "edm": "edm:config={folder}/edm.json,",
    "ebm": "ebm:",
    "digits-vp": "digits-vp:",
    "file": "file:network=wideresnet,depth=10,widen=1,",
}
ASSETS = {
    "ddpm": "ddpm-cifar10-ema",
    "guided-diffusion": "guided-diffusion-imagenet256-uncond",
    "score-sde": "score-sde-cifar10-vp",
    "ncsnv2": "ncsnv2-cifar10",
    "edm": "edm-cifar10-uncond-vp",
    "ebm": "ebm-hill-cifar10",
}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 1e-4, "params": [0]}],
}
SCHEDULE = {"betas": torch.linspace(1e-4, 0.02, 1000), "alphas_cumprod": torch.linspace(0.9, 0.1, 1000)}


def built(family: str) -> nn.Module:
    """A fresh network of the family."""
    from purebench import assets

    if family == "digits-vp":
        return SmallUNet().requires_grad_(False).eval()
    if family == "file":
        return networks.build("wideresnet", {"depth": 10, "widen": 1, "dropout": 0.0, "classes": 10})
    entry = assets.entry(ASSETS[family])
    return networks.build(entry["network"], entry["config"])


def two(family: str) -> tuple[nn.Module, nn.Module]:
    """A network with the raw weights and one with their average: no value of a parameter is the same."""
    made = []
    for seed in (1, 2):
        network = built(family)
        generator = torch.Generator().manual_seed(seed)
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + seed)
        made.append(network)
    # What no average keeps is the same in both: what a network derives, and counts.
    for (name, of_raw), of_ema in zip(made[0].named_buffers(), made[1].buffers(), strict=True):
        if name.endswith(("sigmas", "num_batches_tracked")):
            of_ema.copy_(of_raw)
    return made[0], made[1]


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def parameters(network: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def shadow(network: nn.Module) -> list[Tensor]:
    return list(parameters(network).values())


# layout -> what a file of it holds, of the raw and the averaged network.


def averaged_model(raw: nn.Module, ema: nn.Module) -> Any:
    """torch.optim.swa_utils.AveragedModel, alone."""
    average = AveragedModel(ema, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    average.update_parameters(ema)
    return average.state_dict()


def lit_ema(raw: nn.Module, ema: nn.Module) -> Any:
    """LDM (CompVis): LitEma beside the network that it follows, its names without dots."""
    names = {f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in parameters(ema).items()}
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state = {**SCHEDULE, **under("model.diffusion_model.", raw.state_dict()), **counts, **names}
    return {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "optimizer_states": [OPTIMIZER],
    }


def lucidrains(raw: nn.Module, ema: nn.Module) -> Any:
    """denoising-diffusion-pytorch's Trainer, with ema-pytorch's EMA of a GaussianDiffusion."""
    wrapped = {key: {**SCHEDULE, **under("model.", net.state_dict())} for key, net in (("raw", raw), ("ema", ema))}
    counts = {"initted": torch.tensor(True), "step": torch.tensor(9)}
    follows = {**under("online_model.", wrapped["raw"]), **under("ema_model.", wrapped["ema"]), **counts}
    return {"step": 9, "model": wrapped["raw"], "opt": OPTIMIZER, "ema": follows, "scaler": None, "version": "2.1.1"}


def lightning_callback(raw: nn.Module, ema: nn.Module) -> Any:
    """pytorch-lightning with an average that a callback keeps."""
    state = under("model.", raw.state_dict())
    return {
        "state_dict": state,
        "callbacks": {"EMACallback": {"ema_state_dict": under("model.", ema.state_dict()), "decay": 0.999}},
    }


PARAMETERS = "both, the average without buffers"
# fmt: off
LAYOUTS: dict[str, tuple[str, Callable[[nn.Module, nn.Module], Any]]] = {  # layout -> (the sets that it holds, how)
    "state dict": ("one", lambda raw, ema: raw.state_dict()),
    "{model, ema}": ("both", lambda raw, ema: {"model": raw.state_dict(), "ema": ema.state_dict(), "optimizer": OPTIMIZER, "step": 5}),
    "{model, model_ema, ema_sched}": (  # k-diffusion
        "both",
        lambda raw, ema: {
            "model": raw.state_dict(), "model_ema": ema.state_dict(), "opt": OPTIMIZER, "ema_sched": {"decay": 0.99}, "step": 5,
        },
    ),
    "{state_dict, state_dict_ema}": (  # timm
        "both",
        lambda raw, ema: {"epoch": 1, "arch": "x", "state_dict": raw.state_dict(), "state_dict_ema": ema.state_dict(), "version": 2},
    ),
    "{model, ema_state_dict}": (PARAMETERS, lambda raw, ema: {"model": raw.state_dict(), "ema_state_dict": parameters(ema)}),
    "{net, ema}, wrapped": (
        "both",
        lambda raw, ema: {"net": under("module._orig_mod.", raw.state_dict()), "ema": under("_orig_mod.", ema.state_dict())},
    ),
    "{model, ema: {shadow}}": (
        PARAMETERS,
        lambda raw, ema: {"model": under("module.", raw.state_dict()), "ema": {"mu": 0.999, "shadow": parameters(ema)}},
    ),
    "{model, ema: {shadow_params}}": (  # score_sde, torch_ema
        PARAMETERS,
        lambda raw, ema: {
            "optimizer": OPTIMIZER, "model": under("module.", raw.state_dict()), "step": 9,
            "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow(ema), "collected_params": shadow(raw)},
        },
    ),
    "{unet, ema: {shadow_params}}": (  # diffusers' EMAModel
        PARAMETERS,
        lambda raw, ema: {
            "unet": raw.state_dict(),
            "ema": {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 5, "update_after_step": 0, "use_ema_warmup": False,
                    "inv_gamma": 1.0, "power": 0.67, "shadow_params": shadow(ema)},
        },
    ),
    "[model, optimizer, epoch, step, ema]": (  # DDIM, NCSNv2
        PARAMETERS,
        lambda raw, ema: [under("module.", raw.state_dict()), OPTIMIZER, 3, 9, parameters(ema)],
    ),
    "[model, optimizer, epoch, step]": ("raw", lambda raw, ema: [under("module.", raw.state_dict()), OPTIMIZER, 3, 9]),
    "AveragedModel": ("ema", averaged_model),
    "{net, averaged_model}": ("both", lambda raw, ema: {"net": raw.state_dict(), "averaged_model": averaged_model(raw, ema)}),
    "lightning, net. and ema_model.": (
        "both",
        lambda raw, ema: {
            "state_dict": under("net.", raw.state_dict()) | under("ema_model.", ema.state_dict()), "optimizer_states": [OPTIMIZER],
            "hyper_parameters": {"lr": 1e-4}, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3)}},
        },
    ),
    "lightning, AveragedModel inside": (
        "both",
        lambda raw, ema: {"state_dict": under("model.", raw.state_dict()) | under("ema.", averaged_model(raw, ema))},
    ),
    "lightning, WeightAveraging": (
        "both",
        lambda raw, ema: {
            "state_dict": under("model.", ema.state_dict()), "current_model_state": under("model.", raw.state_dict()),
            "averaging_state": {"n_averaged": torch.tensor(7)},
        },
    ),
    "lightning, a callback's": ("both", lightning_callback),
    "LDM, model_ema without dots": (PARAMETERS, lit_ema),
    "lucidrains": ("both", lucidrains),
    "{model_state_dict, unaveraged_..}": (  # Rice et al., Rebuffi et al., Wang et al.: the usual name is the average's
        "both",
        lambda raw, ema: {"model_state_dict": under("module.", ema.state_dict()), "unaveraged_model_state_dict": raw.state_dict()},
    ),
    "ema_model. alone": ("ema", lambda raw, ema: under("ema_model.module.", ema.state_dict())),
    "torch.compile in DataParallel": ("one", lambda raw, ema: under("module._orig_mod.", raw.state_dict())),
    "DataParallel in torch.compile": ("one", lambda raw, ema: under("_orig_mod.module.", raw.state_dict())),
    "thop's totals": (
        "one",
        lambda raw, ema: {
            "total_ops": torch.zeros(1), "total_params": torch.zeros(1), **raw.state_dict(),
            **{f"{key.rpartition('.')[0]}.total_ops": torch.zeros(1) for key in raw.state_dict() if "." in key},
        },
    ),
    "several averages": (
        "refused",
        lambda raw, ema: {"model": raw.state_dict(), "ema_0.999": ema.state_dict(), "ema_0.9999": raw.state_dict()},
    ),
    "safetensors": ("one", lambda raw, ema: raw.state_dict()),
    "safetensors, both": ("both", lambda raw, ema: under("model.", raw.state_dict()) | under("ema_model.", ema.state_dict())),
    "{g, d, g_ema}": (
        "refused", lambda raw, ema: {"g": raw.state_dict(), "d": {"w": torch.ones(3, 3)}, "g_ema": ema.state_dict()},
    ),
    "safetensors by another name": ("one", lambda raw, ema: raw.state_dict()),
}
# fmt: on


def write(family: str, layout: str, folder: Path) -> tuple[Path, State, State]:
    """The file, the raw weights and the averaged ones."""
    raw, ema = two(family)
    made = LAYOUTS[layout][1](raw, ema)
    if layout.startswith("safetensors"):
        path = folder / ("f.pt" if layout.endswith("another name") else "f.safetensors")
        save_file({key: value.contiguous().clone() for key, value in made.items()}, path)
    else:
        path = folder / "f.pt"
        torch.save(made, path)
    # An average of parameters alone is completed by the network's own buffers.
    kept = parameters(ema) if LAYOUTS[layout][0] == PARAMETERS else ema.state_dict()
    return path, dict(raw.state_dict()), {**raw.state_dict(), **kept}


def loaded(part: resolved.Component) -> State:
    """The weights of the network that a cell's component builds."""
    made = resolved.load(part.kind, part.key, {**part.values, **part.where})
    network = made if isinstance(made, nn.Module) else made.network
    # Adapters wrap what they watch, and NCSNv2's its own output.
    while (inner := getattr(network, "network", None)) is not None:
        network = inner
    return dict(network.state_dict())


def found(family: str, path: Path, weights: str, sets: Mapping[str, State]) -> str:
    """Which of the sets is loaded, and under which name: `ema` or `ema, named`; `refused`, or `WRONG`."""
    kind = "classifier" if family == "file" else "score"
    try:
        asked = FAMILIES[family].format(folder=path.parent)
        part = resolved.find(kind, f"{asked}path={path}{f',weights={weights}' if weights else ''}")
        state = loaded(part)
    except UserError:
        return "refused"
    for name, wanted in sets.items():
        if state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted):
            return f"{name}, named" if f"weights={name}" in part.text else name
    return "WRONG"


def expected(family: str, layout: str) -> dict[str, str]:
    """By what is asked for: what is right."""
    holds, default = LAYOUTS[layout][0], "ema" if family == "ncsnv2" else ""
    # NCSNv2's own default is its average, which its name therefore leaves out; its raw weights are asked for.
    named = "ema" if default else "ema, named"
    # Of another diffusion than the family's: these have no indices whose noise a file could say.
    if family in ("ncsnv2", "edm") and layout in ("LDM, model_ema without dots", "lucidrains"):
        return dict.fromkeys(("", "ema", "raw"), "refused")
    if holds in ("both", PARAMETERS):
        return {"": named, "ema": named, "raw": "raw, named"}
    if holds == "one":
        return {"": "raw", "ema": "refused", "raw": "refused"}
    if holds == "ema":
        return {"": "ema", "ema": "ema", "raw": "refused"}
    if holds == "raw":
        return {"": "refused" if default else "raw", "ema": "refused", "raw": "raw, named" if default else "raw"}
    return dict.fromkeys(("", "ema", "raw"), "refused")


def check(
    family: str, layout: str, folder: Path, asks: Sequence[str] = ("", "ema", "raw")
) -> tuple[dict[str, str], dict[str, str]]:
    """(what was found, what is right), by what was asked for."""
    path, raw, ema = write(family, layout, folder)
    sets = {"raw": raw, "ema": ema}
    right = expected(family, layout)
    return {ask: found(family, path, ask, sets) for ask in asks}, {ask: right[ask] for ask in asks}


def tiny_registry(folder: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text("\n".join(entry(asset, *of) for asset, of in TINY.items()))
    # A state dict says nothing of EDM's preconditioning.
    (folder / "edm.json").write_text(json.dumps(TINY["edm-cifar10-uncond-vp"][2]))
    return path


def entry(asset: str, format: str, network: str, config: Mapping[str, Any]) -> str:
    """An asset of a tiny network, as `checkpoints.toml` has it."""
    said = {
        "summary": "tiny",
        "kind": "score",
        "sources": [],
        "trust": "ours",
        "licence": "-",
        "format": format,
        "network": network,
    }
    return (
        f"[assets.{asset}]\n"
        + "\n".join(f"{key} = {toml(value)}" for key, value in {**said, "config": config}.items())
        + "\n"
    )


def toml(value: object) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(of)}" for key, of in value.items()) + " }"
    # Of texts, numbers, lists and truth JSON and TOML are one.
    return json.dumps(value)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PUREBENCH_CHECKPOINTS"] = str(tiny_registry(folder))
        print("| layout | " + " | ".join(FAMILIES) + " |\n|" + "---|" * (len(FAMILIES) + 1))
        for layout in LAYOUTS:
            cells = []
            for family in FAMILIES:
                got, right = check(family, layout, folder)
                wrong += [(layout, family, ask, got[ask], right[ask]) for ask in right if got[ask] != right[ask]]
                cells.append(got[""] if got == right else f"{got[''] or '?'} (WRONG)")
            print(f"| {layout} | " + " | ".join(cells) + " |", flush=True)
    for layout, family, ask, got, right in wrong:
        print(f"wrong: {layout}, {family}, weights={ask or '(not said)'}: {got}, expected {right}", file=sys.stderr)
    print(f"{len(LAYOUTS)} layouts x {len(FAMILIES)} families x 3 requests: {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
