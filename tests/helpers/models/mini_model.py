"""An AnyText2 of a few thousand weights (beside CLIP's vocabulary), and batches for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from anytext2.core.batch import UNSET_COLOR, Batch, Sample, collate
from anytext2.model.anytext2 import AnyText2, build_model
from anytext2.model.config import AnyText2Config
from anytext2.model.recognizer import RecognizerConfig
from anytext2.model.text_embedding import TextEmbeddingConfig
from anytext2.model.text_encoder import TextEncoderConfig
from anytext2.model.unet import UNetConfig
from anytext2.model.vae import VAEConfig
from anytext2.model.weights import save_weights
from anytext2.model.writenet import WriteNetConfig
from tests.helpers.models.parity import normal

SIZE = 32
MAX_LINES = 3


def mini_config() -> AnyText2Config:
    return AnyText2Config(
        unet=UNetConfig(
            in_channels=3,
            out_channels=3,
            model_channels=8,
            num_res_blocks=1,
            channel_mult=[1, 2],
            attention_resolutions=[2],
            num_heads=2,
            context_dim=16,
            norm_groups=4,
            attnx_levels=[1],
        ),
        writenet=WriteNetConfig(glyph_widths=[2, 4, 4, 8], position_widths=[2, 2, 4, 4]),
        vae=VAEConfig(ch=4, ch_mult=[1, 1, 2, 2], num_res_blocks=1, z_channels=3, norm_groups=2, scale_factor=0.5),
        text_encoder=TextEncoderConfig(width=16, layers=2, heads=2),
        text_embedding=TextEmbeddingConfig(position_widths=[4, 6, 8]),
        recognizer=RecognizerConfig(scale=0.125, neck_dims=8, neck_hidden=16, heads=4, n_classes=12),
    )


@torch.no_grad()
def fill(module: nn.Module, gain: float = 2.2) -> None:
    """Turns a module to float64 with every tensor random, and large enough that deep parts do not forget their input.

    (An untrained model's zero convolutions would hide what passes through them.)
    """
    module.double()
    for seed, (name, tensor) in enumerate(module.state_dict().items()):
        values = normal(*tensor.shape, seed=seed)
        if name.endswith("running_var"):
            tensor.copy_(values.abs() + 0.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * values)
        elif tensor.ndim > 1:
            fan_in = 1 if name.endswith("embedding.weight") else tensor[0].numel()
            # a large gain would drive every hard gate of the squeeze-excites to its flat ends
            tensor.copy_((0.5 if "._se." in name else gain) * values / fan_in**0.5)
        elif tensor.is_floating_point() and "." in name:
            tensor.copy_(1 + 0.1 * values)


@cache
def _filled() -> AnyText2:
    model = build_model(mini_config())
    fill(model)
    return model


def mini_model() -> AnyText2:
    """Filled, in float64; a copy of its own for each caller."""
    return copy.deepcopy(_filled())


def write_mini(folder: Path) -> list[str]:
    """Writes config and float32 weights of a mini model into `folder`; returns the recipe overrides that choose them.

    Its recognisers, the slowest part of a step, are narrower still. Zero convolutions are drawn too: behind them no
    adapter would get a gradient.
    """
    mini = mini_config()
    mini = replace(mini, recognizer=replace(mini.recognizer, scale=0.04))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(mini)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    config, weights = folder / "mini.yaml", folder / "mini.safetensors"
    OmegaConf.save(OmegaConf.structured(mini), config)
    save_weights(model, weights)
    return [f"model.config={config}", f"model.weights={weights}"]


def sample(index: int, n_lines: int, editing: bool = False, image_caption: str = "a red poster . ") -> Sample:
    """Noise everywhere; line k lies in the k-th band of the picture."""
    generator = torch.Generator().manual_seed(index)

    def bits(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)

    position = torch.zeros(MAX_LINES, SIZE, SIZE, dtype=torch.uint8)
    color = torch.full((MAX_LINES, 3), float(UNSET_COLOR))
    for k in range(n_lines):
        position[k, 10 * k : 10 * k + 8, 2:30] = 1
        color[k] = torch.randint(0, 256, (3,), generator=generator).float()
    image = torch.rand(3, SIZE, SIZE, generator=generator) * 2 - 1
    hidden = position.amax(dim=0)
    return Sample(
        index=index,
        name=f"picture-{index}",
        image=image,
        masked_image=(image - 10 * hidden).clamp(-1, 1) if editing else torch.full_like(image, -1.0),
        glyph=bits(1, SIZE, SIZE),
        position=position,
        glyph_line=bits(MAX_LINES, 80, 512),
        font_hint=bits(1, SIZE, SIZE),
        color=color,
        inverse_mask=torch.zeros(1, SIZE, SIZE, dtype=torch.uint8),
        n_lines=n_lines,
        editing=editing,
        image_caption=image_caption,
        text_caption="Text says " + " , ".join(["*"] * n_lines) + " . ",
        texts=("word",) * n_lines,
        languages=("Latin",) * n_lines,
        polygons=tuple(np.zeros((4, 2), np.float32) for _ in range(n_lines)),
    )


def mini_batch(n_lines: Sequence[int] = (1, 3, 2), editing: Sequence[bool] = (False, True, False)) -> Batch:
    return collate([sample(i, n, edit) for i, (n, edit) in enumerate(zip(n_lines, editing, strict=True))])
