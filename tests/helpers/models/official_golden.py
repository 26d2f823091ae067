"""Reading of the golden files; their weights come from `anytext2.filling`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tests.helpers.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "official"
TOLERANCE = 1e-4


def read_golden(stage: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file, e.g. 'a_vae'."""
    with np.load(GOLDEN / f"{stage}.npz") as file:
        return dict(file)


def golden_tensor(golden: Mapping[str, np.ndarray], name: str) -> Tensor:
    """A golden array as a tensor, for use as an input."""
    return torch.from_numpy(golden[name])


def recorded_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The WriteNet's glyph page, summed positions, masked latent and embedded text caption."""
    pages = read_golden("c_hint_in")
    latent = golden_tensor(read_golden("b_latents"), "masked_x")
    context = golden_tensor(read_golden("b_cond"), "text_cond")
    return golden_tensor(pages, "glyph_mask").float(), golden_tensor(pages, "positions"), latent, context


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
