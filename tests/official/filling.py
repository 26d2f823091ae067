"""Weights for the golden comparisons, made from key names alone, and reading of the golden files.

The values follow the rule under which the reference implementation's outputs in `tests/golden/official` were
recorded; see the note there. Nothing here needs pretrained weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent.parent / "golden" / "official"
TOLERANCE = 1e-4
Variant = Literal["plain", "strong"]

# The encoders of glyphs, positions and fonts forget their input with small weights; 'strong' gives them larger ones.
STRONG_PARTS = ("text_predictor.", "embedding_manager.", "control_model.glyph_block.", "control_model.position_block.")


@torch.no_grad()
def fill_by_name(target: nn.Module | Mapping[str, Tensor], prefix: str = "", variant: Variant = "strong") -> int:
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
        gain = 1.8 if variant == "strong" and key.startswith(STRONG_PARTS) else 0.5
        return values * (gain / math.sqrt(shape[1:].numel()))
    is_norm_weight = len(shape) < 2 and key.endswith(".weight")
    return 1 + 0.05 * values if is_norm_weight else 0.05 * values


def read_golden(stage: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file, e.g. 'a_vae'."""
    with np.load(GOLDEN / f"{stage}.npz") as file:
        return dict(file)


def golden_tensor(golden: Mapping[str, np.ndarray], name: str) -> Tensor:
    """A golden array as a tensor, for use as an input."""
    return torch.from_numpy(golden[name])


def relative_error(ours: Tensor, golden: Mapping[str, np.ndarray], name: str) -> float:
    """||ours - reference|| / ||reference|| in float64, over the recorded elements if only some were recorded."""
    values = ours.detach().double().flatten()
    if name in golden:
        assert tuple(ours.shape) == golden[name].shape, (name, tuple(ours.shape), golden[name].shape)
        reference = golden_tensor(golden, name).double().flatten()
    else:
        assert tuple(ours.shape) == tuple(golden[f"{name}.shape"]), (name, tuple(ours.shape))
        stride, mean, std, norm = golden[f"{name}.info"].tolist()
        reference = golden_tensor(golden, f"{name}.sub").double()
        # the elements between the recorded ones are held to the whole tensor's norm
        assert math.isclose(values.norm().item(), norm, rel_tol=TOLERANCE), (name, values.norm().item(), norm)
        assert math.isclose(values.std().item(), std, rel_tol=1e-3), (name, values.std().item(), std)
        values = values[:: int(stride)]
    return ((values - reference).norm() / reference.norm()).item()


def assert_golden(ours: Tensor, golden: Mapping[str, np.ndarray], name: str, tolerance: float = TOLERANCE) -> None:
    """Fails unless the relative error is within the tolerance. NaN fails."""
    error = relative_error(ours, golden, name)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"
