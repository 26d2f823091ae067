"""Conditions and control maps of a prompt beside those that the reference computed for the same texts and places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import features

from anytext2.core.batch import collate
from anytext2.model.anytext2 import AnyText2
from tests.helpers.models.official_golden import assert_golden, golden_tensor, read_golden
from tests.helpers.models.recorded_prompt import recorded_prompt

DRAWN_TOLERANCE = 2e-2
"""Of the text context with our glyph lines: 26 pixels of their contours differ, as FreeType draws them since 2.13.3."""


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")
@torch.inference_mode()
def test_the_conditions_of_a_prompt_are_those_of_the_reference(official_model: AnyText2) -> None:
    """With the recorded font hint, which the reference cut at random from the picture."""
    batch, golden = read_golden("b_batch"), read_golden("b_cond")

    def bits(name: str) -> torch.Tensor:
        return golden_tensor(batch, f"{name}_u8")[0].permute(2, 0, 1) // 255

    drawn = replace(recorded_prompt().sample, font_hint=bits("font_hint"))
    inputs = collate([drawn]).normalized()
    masked = official_model.masked_latents(inputs)
    assert_golden(masked, read_golden("b_latents"), "masked_x")
    conditions = official_model.encode_conditions(inputs, masked)
    assert_golden(conditions.image_context, golden, "img_cond")
    assert_golden(conditions.text_context, golden, "text_cond", DRAWN_TOLERANCE)

    lines = torch.cat([bits(f"gly_line_{n}") for n in (0, 1)])
    conditions = official_model.encode_conditions(collate([replace(drawn, glyph_line=lines)]).normalized(), masked)
    assert_golden(conditions.text_context, golden, "text_cond")
    for number, control in enumerate(official_model.control_maps(conditions)):
        assert_golden(control, read_golden("c_control"), f"control_{number:02d}")
