"""The official-size UNet against the reference's recorded noise, with and without what AnyText2 adds."""

from __future__ import annotations

import pytest
import torch

from anytext2.core.batch import Control
from anytext2.model.anytext2 import AnyText2
from tests.helpers.models.official_golden import assert_golden, golden_tensor, read_golden, recorded_inputs


@pytest.fixture(scope="module")
def control(official_model: AnyText2) -> Control:
    with torch.inference_mode():
        return official_model.control_model(*recorded_inputs())


@pytest.mark.parametrize(
    ("name", "with_control", "attnx_scale"),
    [("eps", True, 1.0), ("eps_without_control", False, 1.0), ("eps_attnx_scale_0", True, 0.0)],
)
@torch.inference_mode()
def test_noise(official_model: AnyText2, control: Control, name: str, with_control: bool, attnx_scale: float) -> None:
    golden = read_golden("d_unet")
    context = golden_tensor(read_golden("b_cond"), "img_cond")
    x, t = golden_tensor(golden, "x_noisy"), golden_tensor(golden, "t")
    unet = official_model.model.diffusion_model
    assert_golden(unet(x, t, context, control if with_control else None, attnx_scale), golden, name)
    assert_golden(unet(x, t.long(), context, control if with_control else None, attnx_scale), golden, name)
