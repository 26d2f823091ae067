"""Faults of earlier attempts, for measuring the cost of each: `model.fault_injection` injects one on purpose.

None is visible in the loss. Each changes the networks' inputs in training and in sampling, for teacher and student, as
it did there. With an injected fault the check of the first batch reports what it finds and does not stop the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from anytext2.core.batch import Batch, Conditions, Control
from anytext2.model.anytext2 import AnyText2
from anytext2.model.layers import Context

FAINT_INK = 1.0 / 255.0


def glyph_page_all_ink(model: AnyText2) -> None:
    """The glyph page was drawn on white, and the WriteNet takes everything that is not zero for ink."""
    original = model.encode_conditions

    def encode_conditions(*args: Any, **kwargs: Any) -> Conditions:
        conditions = original(*args, **kwargs)
        return replace(conditions, glyph=torch.ones_like(conditions.glyph))

    model.encode_conditions = encode_conditions  # type: ignore[method-assign]


def glyph_lines_thin(model: AnyText2) -> None:
    """The lines for the OCR features came from a picture of 0 and 1, divided by 255 as if it were one of 0 to 255."""
    original = model.encode_conditions

    def encode_conditions(batch: Batch, *args: Any, **kwargs: Any) -> Conditions:
        return original(replace(batch, glyph_line=batch.glyph_line.to(torch.float32) * FAINT_INK), *args, **kwargs)

    model.encode_conditions = encode_conditions  # type: ignore[method-assign]


def placeholders_lost(model: AnyText2) -> None:
    """Placeholders were joined with a comma right behind them, which is another token: only the last one was found,
    and it took the first line's embedding."""
    encoder = model.cond_stage_model
    embed = encoder.embed_text_captions

    def embed_text_captions(
        captions: Sequence[str], lines_ND: Tensor, n_lines: Sequence[int], names: Sequence[str]
    ) -> Tensor:
        firsts = [first for first, n in zip(accumulate([0, *n_lines]), n_lines, strict=False) if n]
        joined = [caption.replace("* ,", "*,") for caption in captions]
        return embed(joined, lines_ND[firsts], [min(n, 1) for n in n_lines], names)

    encoder.embed_text_captions = embed_text_captions  # type: ignore[method-assign]


def writenet_sees_noise(model: AnyText2) -> None:
    """The WriteNet was fed the noisy latent and the time, although it is trained with zeros for both."""
    model.__class__ = _WriteNetSeesNoise  # a class, because teacher and student have a WriteNet each


class _WriteNetSeesNoise(AnyText2):
    def control_maps(self, conditions: Conditions) -> Control:
        return conditions.glyph, conditions.position, conditions.masked_latent, conditions.text_context

    def predict_noise(self, x: Tensor, t: Tensor, context: Context, control: Control | None, *more: Any) -> Tensor:
        assert control is not None
        return super().predict_noise(x, t, context, self.control_model(*control, x, t), *more)


FAULT_INJECTIONS: dict[str, Callable[[AnyText2], None]] = {
    "glyph_page_all_ink": glyph_page_all_ink,
    "glyph_lines_thin": glyph_lines_thin,
    "placeholders_lost": placeholders_lost,
    "writenet_sees_noise": writenet_sees_noise,
}
