"""The official-size WriteNet against the reference's recorded hints and control maps."""

from __future__ import annotations

import torch

from anytext2.model.anytext2 import AnyText2
from tests.helpers.models.official_golden import assert_golden, read_golden, recorded_inputs


@torch.inference_mode()
def test_hints(official_model: AnyText2) -> None:
    golden = read_golden("c_hint")
    net = official_model.control_model
    glyph, position, latent, _ = recorded_inputs()
    assert_golden(net.glyph_block(glyph), golden, "glyph_enc")
    assert_golden(net.position_block(position), golden, "pos_enc")
    assert_golden(net.fuse_hints(glyph, position, latent), golden, "guided_hint")


@torch.inference_mode()
def test_control_maps(official_model: AnyText2) -> None:
    golden = read_golden("c_control")
    maps = official_model.control_model(*recorded_inputs())
    assert len(maps) == 13
    for i, control in enumerate(maps):
        assert_golden(control, golden, f"control_{i:02d}")


@torch.inference_mode()
def test_the_recorded_maps_tell_a_wrong_page_from_the_right_one(official_model: AnyText2) -> None:
    """What the comparison is worth: a mirrored page must miss by far more than the tolerance."""
    glyph, position, latent, context = recorded_inputs()
    right = official_model.control_model(glyph, position, latent, context)
    wrong = official_model.control_model(glyph.flip(3), position, latent, context)
    assert all((a - b).norm() / a.norm() > 1e-2 for a, b in zip(right, wrong, strict=True))
