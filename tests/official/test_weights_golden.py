"""Every tensor of the official state dict: name, dtype, shape, and the filling that all other comparisons rest on."""

from __future__ import annotations

import csv
import math

from anytext2.model.anytext2 import AnyText2
from anytext2.model.weights import official_state_dict
from tests.helpers.models.official_golden import GOLDEN


def rows(name: str) -> list[list[str]]:
    with open(GOLDEN / name, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


def test_names_dtypes_and_shapes(official_model: AnyText2) -> None:
    ours = {
        name: (str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape)) or "scalar")
        for name, tensor in official_state_dict(official_model).items()
    }
    assert ours == {name: (dtype, shape) for name, dtype, shape in rows("state_dict.tsv")}


def test_number_of_parameters(official_model: AnyText2) -> None:
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in official_model.named_children()}
    assert counts == {
        "model": 917_042_884,
        "control_model": 361_511_208,
        "first_stage_model": 83_653_863,
        "cond_stage_model": 123_060_480,
        "embedding_manager": 8_743_601,
        "text_predictor": 2_639_665,
    }


def test_filled_values(official_model: AnyText2) -> None:
    state = official_state_dict(official_model)
    expected = rows("weights_check.tsv")
    assert len(expected) == len(state) == 2047
    for name, shape, first, total, norm in expected:
        assert ("x".join(map(str, state[name].shape)) or "scalar") == shape, name
        tensor = state[name].detach().double().flatten()
        assert math.isclose(tensor[0].item(), float(first), rel_tol=1e-5, abs_tol=1e-9), name
        # a sum of many signed values cancels: its error is bounded by the sum of magnitudes, not by its own size
        allowed = 1e-6 * tensor.abs().sum().item() + 1e-6
        assert math.isclose(tensor.sum().item(), float(total), rel_tol=0, abs_tol=allowed), name
        assert math.isclose(tensor.norm().item(), float(norm), rel_tol=1e-5, abs_tol=1e-9), name
