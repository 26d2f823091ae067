"""Weights made from key names alone: the same key and shape give the same values everywhere, no file needed.

For checks at the official size where nobody's checkpoint is at hand: the recorded outputs of the reference
implementation in tests/golden/official were made with these values, and so is the smoke test of a training step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["plain", "strong"]

# The encoders of glyphs, positions and fonts forget their input with small weights; 'strong' gives them larger ones.
STRONG_PREFIXES = (
    "text_predictor.",
    "embedding_manager.",
    "control_model.glyph_block.",
    "control_model.position_block.",
)


@torch.no_grad()
def fill_with_pseudo_weights(
    target: nn.Module | Mapping[str, Tensor], prefix: str = "", variant: Variant = "strong"
) -> int:
    """Fills every floating tensor in place with values that its official name determines; returns how many.

    Args:
        target: a state dict with official names (the tensors are written to), or a module whose own names are official.
        prefix: what the target's names lack in front, e.g. "first_stage_model.".

    Integers become 0. Undotted names (the noise schedule) are left as they are.
    """
    state = target.state_dict() if isinstance(target, nn.Module) else target
    filled = 0
    for name, tensor in state.items():
        key = prefix + name
        if "." not in key:
            continue
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        tensor.copy_(_values(key, tensor.shape, variant))
        filled += 1
    return filled


def _values(key: str, shape: torch.Size, variant: Variant) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 2**63
    generator = torch.Generator().manual_seed(seed)
    if key.endswith("running_var"):
        return 1 + 0.1 * torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if len(shape) >= 2 and not key.endswith("running_mean"):
        gain = 1.8 if variant == "strong" and key.startswith(STRONG_PREFIXES) else 0.5
        return values * (gain / math.sqrt(shape[1:].numel()))
    is_norm_weight = len(shape) < 2 and key.endswith(".weight")
    return 1 + 0.05 * values if is_norm_weight else 0.05 * values
