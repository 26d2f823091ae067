"""Attention mass: inside a line's box the student's WriteNet should attend to the same placeholders as the teacher's.

The placeholders are tokens of the text caption, which only the WriteNet receives.

Shape legend: B batch, L lines, S tokens, Q = h * w queries of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.core.transfer import to_device
from anytext2.model.text_encoder import PLACEHOLDER_TOKEN, tokenize_text_captions
from distill.losses.terms.base import Term, TermConfig, TermInput
from distill.losses.text_mask import text_share
from distill.losses.writenet_attention import Attention


class AttentionMass(Term):
    """KL(teacher || student) of the attention's mass (mean over heads) on each line's placeholder and on all other
    tokens: mean over cells, weighted by their share inside the boxes, then over the cross-attentions; 0 without text.
    """

    needs_attention = True

    def __init__(self, config: TermConfig) -> None:
        self.config = config

    def __call__(self, given: TermInput) -> Tensor:
        batch, cells = given.item.batch, given.x0.shape[-2:]
        groups = to_device(token_groups(batch.text_caption).to(given.x0.dtype), given.x0.device)
        values = [
            _divergence(student, teacher, groups, text_share(batch, *_level(student, cells)).to(given.x0))
            for student, teacher in zip(given.attention.of("student"), given.attention.of("teacher"), strict=True)
        ]
        return torch.stack(values).mean(dim=0)


def token_groups(captions: Sequence[str]) -> Tensor:
    """Which tokens belong to each line's placeholder, and which to none: {0, 1} [B, S, L + 1], the rest last.

    A text caption's k-th placeholder is its k-th line; captions with fewer have empty groups.
    """
    is_placeholder = tokenize_text_captions(captions) == PLACEHOLDER_TOKEN
    line = is_placeholder.cumsum(dim=1)
    n_lines = int(line.max())
    groups = F.one_hot(torch.where(is_placeholder, line - 1, n_lines), n_lines + 1)
    return groups.float()


def _level(attention: Attention, cells: Sequence[int]) -> tuple[int, int]:
    """(h, w) of the map that the queries stand for, some halvings of the latent's cells."""
    queries, (height, width) = attention.query.shape[1], cells
    step = next(step for step in (2**k for k in range(16)) if (height // step) * (width // step) <= queries)
    assert (height // step) * (width // step) == queries, (queries, height, width)
    return height // step, width // step


def _divergence(student: Attention, teacher: Attention, groups: Tensor, share_B1hw: Tensor) -> Tensor:
    """[B]: see `AttentionMass`."""
    tiny = torch.finfo(groups.dtype).tiny
    with torch.no_grad():
        p = _mass(teacher, groups)
    each = (torch.special.xlogy(p, p) - p * _mass(student, groups).clamp_min(tiny).log()).sum(dim=2)
    share = share_B1hw.flatten(1)
    return (each * share).sum(dim=1) / share.sum(dim=1).clamp_min(tiny)


def _mass(attention: Attention, groups: Tensor) -> Tensor:
    """The groups' sums of the probabilities [B, Q, L + 1]."""
    with torch.autocast(groups.device.type, enabled=False):
        return attention.probabilities().to(groups.dtype) @ groups
