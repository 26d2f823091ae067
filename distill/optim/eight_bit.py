"""Block-wise 8-bit numbers as bitsandbytes keeps them (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization"), to and from float32.

A block is 256 values; a value is `code[index] * absmax` with the largest magnitude of its block. `code` is sorted, 256
float32 numbers of which the largest is 1 and the smallest 0 or a little more than -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256


def decoded(indices: Tensor, code: Tensor, absmax: Tensor) -> Tensor:
    """uint8 [n] -> float32 [n]; absmax: [ceil(n / 256)]."""
    return code[indices.long()] * absmax.repeat_interleave(BLOCK)[: indices.numel()]


def encoded(values: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [n] -> uint8 [n] and absmax [ceil(n / 256)]. What `decoded` returned gives the same indices again.

    There a block's largest value had the code nearest to 1 or -1. The latter is not -1 itself, so that a block in which
    no positive value is larger than the negative ones was scaled by a little more than its largest magnitude.
    """
    padding = -values.numel() % BLOCK
    blocks = torch.nn.functional.pad(values, (0, padding)).reshape(-1, BLOCK)
    highest, lowest = blocks.amax(dim=1), -blocks.amin(dim=1)
    least = max(float(-code[0]), 0.5)  # of a code without negative numbers nothing is negative
    absmax = torch.where(highest > lowest, highest, lowest / least)
    scaled = blocks / absmax.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    indices = torch.bucketize(scaled, (code[1:] + code[:-1]) / 2)
    return indices.flatten()[: values.numel()].to(torch.uint8), absmax
