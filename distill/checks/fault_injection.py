"""Fault injection (`model.planted`): faults of an earlier project, one at a time, to measure what each of them costs.

None of them shows in the loss. Each changes the conditions of teacher and student, in training and in sampling, as it
did there. With an injected fault, the check of the first batch prints its findings and lets the run continue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from anytext2.core.batch import Batch, Conditions
from anytext2.model.anytext2 import AnyText2

FAINT_INK = 1.0 / 255.0


def glyph_page_all_ink(model: AnyText2) -> None:
    """The glyph page was drawn on white, and the WriteNet takes everything that is not zero for ink."""
    condition_of = model.condition

    def condition(*args: Any, **kwargs: Any) -> Conditions:
        conditions = condition_of(*args, **kwargs)
        return replace(conditions, glyph=torch.ones_like(conditions.glyph))

    model.condition = condition  # type: ignore[method-assign]


def glyph_lines_thin(model: AnyText2) -> None:
    """The lines for the OCR features came from a picture of 0 and 1, divided by 255 as if it were one of 0 to 255."""
    condition_of = model.condition

    def condition(batch: Batch, *args: Any, **kwargs: Any) -> Conditions:
        return condition_of(replace(batch, glyph_line=batch.glyph_line.to(torch.float32) * FAINT_INK), *args, **kwargs)

    model.condition = condition  # type: ignore[method-assign]


def placeholders_lost(model: AnyText2) -> None:
    """Placeholders were joined with a comma right behind them, which is another token: only the last one was found,
    and it took the first line's embedding."""
    encoder = model.cond_stage_model
    encode = encoder.encode_texts

    def encode_texts(captions: Sequence[str], lines_ND: Tensor, n_lines: Sequence[int], names: Sequence[str]) -> Tensor:
        firsts = [first for first, n in zip(accumulate([0, *n_lines]), n_lines, strict=False) if n]
        joined = [caption.replace("* ,", "*,") for caption in captions]
        return encode(joined, lines_ND[firsts], [min(n, 1) for n in n_lines], names)

    encoder.encode_texts = encode_texts  # type: ignore[method-assign]


def writenet_sees_noise(model: AnyText2) -> None:
    """The WriteNet was fed the noisy latent and the time, although it is trained with zeros for both."""
    predict = model.predict_noise

    def write(conditions: Conditions) -> tuple[Tensor, ...]:
        return conditions.glyph, conditions.position, conditions.masked_latent, conditions.text_context

    def predict_noise(x: Tensor, t: Tensor, context: Tensor, control: tuple[Tensor, ...], *more: Any) -> Tensor:
        return predict(x, t, context, model.control_model(*control, x, t), *more)

    model.write, model.predict_noise = write, predict_noise  # type: ignore[method-assign, assignment]


FAULT_INJECTIONS: dict[str, Callable[[AnyText2], None]] = {
    "glyph_page_all_ink": glyph_page_all_ink,
    "glyph_lines_thin": glyph_lines_thin,
    "placeholders_lost": placeholders_lost,
    "writenet_sees_noise": writenet_sees_noise,
}
