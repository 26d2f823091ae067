"""The files from which a new teacher is made, cut out of an AnyText2's tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

UNET, TOWER = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
PARTS = ("model.", "first_stage_model.", "cond_stage_model.")


def stable_diffusion_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """UNet, VAE and text encoder without what AnyText2 adds to them, and two tensors that are of no use."""
    plain = {
        name: t for name, t in state.items() if name.startswith(PARTS) and "1x.to_" not in name and "2x.to_" not in name
    }
    return plain | {"model_ema.decay": torch.ones(()), "betas": torch.ones(3)}


def recognizer_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "text_predictor."
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
