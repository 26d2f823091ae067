"""Names of the UNet's layers in other programs: diffusers' paths, and kohya's, which are those with underscores.

Both know the UNet of Stable Diffusion 1.5 only. AnyText2's attnx layers and its WriteNet have no name there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from anytext2.model.anytext2 import AnyText2
from anytext2.model.unet import UNetConfig

UNET = "model.diffusion_model."
WRITENET = "control_model."
KOHYA_UNET = "lora_unet_"
_IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTNX = re.compile(r"\.attn[12]x\.")
_FAMILIES = (
    ("attnx of the UNet", _ATTNX),
    ("WriteNet", re.compile(rf"^{re.escape(WRITENET)}")),
    ("UNet", re.compile(rf"^{re.escape(UNET)}")),
)


def family(path: str) -> str:
    """The part of AnyText2 that an official path belongs to."""
    return next((name for name, pattern in _FAMILIES if pattern.search(path)), "other")


def diffusers_path(path: str, config: UNetConfig) -> str | None:
    """The path of a module or tensor in diffusers' UNet2DConditionModel; None for what that does not have.

    path: official, as in model.diffusion_model.output_blocks.4.1.transformer_blocks.0.attn2.to_k.
    """
    if not path.startswith(UNET) or _ATTNX.search(path):
        return None
    inner = path.removeprefix(UNET)
    for official, name in _blocks(config).items():
        if inner == official or inner.startswith(f"{official}."):
            rest = inner[len(official) :]
            if ".resnets." in name:
                for ours, theirs in _IN_RESNET.items():
                    if rest.startswith(f".{ours}"):
                        rest = f".{theirs}{rest[len(ours) + 1 :]}"
            return name + rest
    return None


def kohya_name(path: str) -> str:
    """kohya's name of a layer of the UNet, given diffusers' path."""
    return KOHYA_UNET + path.replace(".", "_")


def layer_aliases(model: nn.Module) -> dict[str, tuple[str, str]]:
    """All names that a layer of UNet or WriteNet has in adapter files: name -> (official path, format).

    model: an AnyText2, which may be on the meta device.
    """
    assert isinstance(model, AnyText2)
    aliases: dict[str, tuple[str, str]] = {}
    for path, config in ((p, model.cfg.unet) for p in adaptable_layers(model)):
        aliases[path] = (path, "safetensors")
        aliases[path.removeprefix("model.")] = (path, "safetensors")
        if path.startswith(UNET):
            aliases[kohya_name(path.removeprefix(UNET))] = (path, "kohya")
        theirs = diffusers_path(path, config)
        if theirs is not None:
            aliases[theirs] = aliases[f"unet.{theirs}"] = (path, "diffusers")
            aliases[kohya_name(theirs)] = (path, "kohya")
    return aliases


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions of UNet and WriteNet by official path, in the model's order."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and path.startswith((UNET, WRITENET))
    }


def count_families(paths: Iterable[str]) -> dict[str, int]:
    """How many of the layers belong to each part of AnyText2."""
    counts: dict[str, int] = {}
    for path in paths:
        counts[family(path)] = counts.get(family(path), 0) + 1
    return counts


def _blocks(config: UNetConfig) -> dict[str, str]:
    """diffusers' path of each part of the UNet by its official one, both relative to the UNet.

    A longer path never begins with a shorter one and a dot, but for the time embedding's two layers.
    """
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    levels, number = range(len(config.widths)), 0
    for level in levels:
        if level > 0:
            number += 1
            names[f"input_blocks.{number}.0.op"] = f"down_blocks.{level - 1}.downsamplers.0.conv"
        for i in range(config.num_res_blocks):
            number += 1
            names[f"input_blocks.{number}.0"] = f"down_blocks.{level}.resnets.{i}"
            names[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{i}"
    for index, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        names[f"middle_block.{index}"] = f"mid_block.{name}"
    number = -1
    for up, level in enumerate(reversed(levels)):
        for i in range(config.num_res_blocks + 1):
            number += 1
            names[f"output_blocks.{number}.0"] = f"up_blocks.{up}.resnets.{i}"
            if config.has_attention(level):
                names[f"output_blocks.{number}.1"] = f"up_blocks.{up}.attentions.{i}"
        names[f"output_blocks.{number}.{1 + config.has_attention(level)}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
    return names
