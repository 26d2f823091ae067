"""Classifier-free guidance (Ho and Salimans 2022) with both branches in one call of the network.

Shape legend: B batch, C channels, h/w latent cells, T tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anytext2.core.batch import Conditions, Contexts, Control
from anytext2.model.anytext2 import AnyText2
from anytext2.model.layers import ProjectedContext
from distill.adapters.roles import predict_noise


def with_negative(conditions: Conditions, negative: Contexts) -> Conditions:
    """The conditions [B] followed by the same with the negative contexts [1]: 2B rows."""
    unconditional = conditions.with_contexts(negative)
    tokens = math.lcm(conditions.image_context.shape[1], unconditional.image_context.shape[1])
    image = [repeat_tokens(part.image_context, tokens) for part in (conditions, unconditional)]
    return Conditions(
        image_context=torch.cat(image),
        text_context=torch.cat([conditions.text_context, unconditional.text_context]),
        glyph=_twice(conditions.glyph),
        position=_twice(conditions.position),
        masked_latent=_twice(conditions.masked_latent),
    )


def repeat_tokens(context_BTD: Tensor, tokens: int) -> Tensor:
    """The context repeated to a number of tokens that is a multiple of its own.

    Attention over k copies of the same tokens equals attention over one, so this changes nothing but the shape.
    """
    copies, rest = divmod(tokens, context_BTD.shape[1])
    assert rest == 0, f"{tokens} tokens are no multiple of {context_BTD.shape[1]}"
    return context_BTD if copies == 1 else context_BTD.repeat(1, copies, 1)


def predict_guided(
    model: AnyText2,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    control: Control,
    scale: float | Tensor,
    projected: ProjectedContext | None = None,
    attnx_scale: float = 1.0,
) -> Tensor:
    """The guided eps ``u + scale (c - u)`` [B,C,h,w] of ``x`` [B,C,h,w] at ``t`` [B], in at least float32.

    ``conditions``, ``control`` and ``projected`` have 2B rows, see `with_negative` and `predict_noise`. ``scale``: a
    number, or [B,1,1,1].
    """
    both = predict_noise(model, _twice(x), _twice(t), conditions, control, projected, attnx_scale)
    conditional, unconditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
