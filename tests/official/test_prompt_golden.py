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

TEXT_TOLERANCE = 1e-3
"""Of what a glyph line enters: 26 pixels of its contours differ, as FreeType draws them since 2.13.3."""


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm layout")
@torch.inference_mode()
def test_the_conditions_of_a_prompt_are_those_of_the_reference(official_model: AnyText2) -> None:
    """The font hint is the recorded one, which the reference cut at random from the picture."""
    hint = golden_tensor(read_golden("b_batch"), "font_hint_u8")[0].permute(2, 0, 1) // 255
    batch = collate([replace(recorded_prompt().sample, font_hint=hint)]).normalized()
    masked = official_model.masked_latents(batch)
    assert_golden(masked, read_golden("b_latents"), "masked_x")
    conditions = official_model.encode_conditions(batch, masked)
    golden = read_golden("b_cond")
    assert_golden(conditions.image_context, golden, "img_cond")
    assert_golden(conditions.text_context, golden, "text_cond", TEXT_TOLERANCE)
    pages = read_golden("c_hint_in")
    assert torch.equal(conditions.glyph.float(), golden_tensor(pages, "glyph_mask").float())
    control = read_golden("c_control")
    maps = official_model.control_maps(conditions)
    for number, map_ in enumerate(maps):
        assert_golden(map_, control, f"control_{number:02d}", TEXT_TOLERANCE)
