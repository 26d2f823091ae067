"""Connectionist temporal classification (Graves et al. 2006) of the recogniser's columns, and its limits.

Shape legend: N lines, T columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.transfer import to_device
from anytext2.model.recognizer import CTC_BLANK, Recognizer, ctc_targets, load_charset


def text_loss(logits_NTK: Tensor, texts: Sequence[str], charset: Sequence[str]) -> Tensor:
    """-log P(text) of each line, at least float32 [N].

    A text that needs more columns than there are (`columns_needed`) has neither loss nor gradient.
    """
    targets, lengths = ctc_targets(texts, charset)
    logits = logits_NTK.to(torch.promote_types(logits_NTK.dtype, torch.float32))
    # Lengths stay on the host, where torch needs them; copying them from a device would synchronise.
    columns = torch.full((logits.shape[0],), logits.shape[1], dtype=torch.int64)
    return F.ctc_loss(
        logits.log_softmax(dim=-1).transpose(0, 1),
        to_device(targets, logits.device),
        columns,
        lengths,
        blank=CTC_BLANK,
        reduction="none",
        zero_infinity=True,
    )


def columns_needed(text: str) -> int:
    """Columns of the shortest CTC path: one a character and a blank between equal neighbours."""
    return len(text) + sum(first == second for first, second in zip(text, text[1:], strict=False))


def charset_of(recognizer: Recognizer) -> tuple[str, ...]:
    """The character of each of the recogniser's classes; raises ValueError as `load_charset`."""
    return _load_charset(recognizer.cfg.charset, recognizer.cfg.n_classes)


@lru_cache(maxsize=4)
def _load_charset(charset: str, n_classes: int) -> tuple[str, ...]:
    return load_charset(charset, n_classes)
