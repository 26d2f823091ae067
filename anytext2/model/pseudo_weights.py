"""Pseudo weights: deterministic values that depend only on a tensor's official name and shape.

They allow checks at the official size without a checkpoint: the recorded outputs of the official implementation in
tests/golden/official use them, and so does the smoke test of a training step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["plain", "strong"]

# With small weights the encoders of glyphs, positions and fonts are insensitive to their input. The variant 'strong'
# gives them larger ones.
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
    """Fills every floating-point tensor in place with pseudo weights. Returns the number of tensors.

    Integer tensors become 0. Names without a dot (the noise schedule) are skipped.

    Args:
        target: a state dict with official names, or a module whose own names are official.
        prefix: prefix of the official names that the target's names lack, for example "first_stage_model.".
        variant: see STRONG_PREFIXES.
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
