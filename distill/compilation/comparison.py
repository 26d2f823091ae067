"""A fast path is compared once, when it is made, with what it stands for: releases of torch compile differently.

The limits are wide, because kernels round differently and half precision leaves little of a gradient in which large
numbers cancel. A gradient that is lost is 100 % away from what it should be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VALUE_LIMIT, GRADIENT_LIMIT = 0.05, 0.5


class Differs(RuntimeError):
    """A fast path does not give what the call that it stands for gives."""


def require_same(
    values: tuple[Sequence[Tensor | None], Sequence[Tensor | None]],
    gradients: tuple[Sequence[Tensor | None], Sequence[Tensor | None]] = ((), ()),
) -> None:
    """Raises Differs unless values and gradients, each (found, expected), are about the same. None stands for zeros."""
    for what, pair, limit in (("values", values, VALUE_LIMIT), ("gradients", gradients, GRADIENT_LIMIT)):
        found = distance(*pair)
        if not found <= limit:
            raise Differs(f"its {what} are {found:.0%} away from those of the call as written")


@torch.no_grad()
def distance(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The largest relative distance of two tensors, |a - b| / |b|. Numbers that are not finite count as zero."""
    ratios = [_ratio(one, other) for one, other in zip(found, expected, strict=True)]
    known = [ratio for ratio in ratios if ratio is not None]
    return float(torch.stack(known).max()) if known else 0.0


def _ratio(found: Tensor | None, expected: Tensor | None) -> Tensor | None:
    like = expected if expected is not None else found
    if like is None or not like.numel():
        return None
    one, other = (
        torch.zeros_like(like).float() if t is None else torch.nan_to_num(t.float(), 0.0, 0.0, 0.0)
        for t in (found, expected)
    )
    # Below this a norm of half precision is made of the few steps between its smallest numbers.
    noise = 256 * torch.finfo(like.dtype).smallest_normal if like.dtype == torch.float16 else 1e-30
    return (one - other).norm() / other.norm().clamp_min(noise)
