"""How far apart two sets of pictures are as distributions, without a network that would have to be downloaded.

Shape legend: N pictures, C channels, h/w latent cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anytext2.randomness import torch_generator

PATCH = 3
PROJECTIONS = 256


def sliced_wasserstein(first: Tensor, second: Tensor, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance (Rabin et al. 2011) between the patches of two sets of latents [N, C, h, w].

    Every patch of PATCH x PATCH cells, all channels, is a point; the distance is the mean over PROJECTIONS random
    directions of that of the projected points, in units of the latents. As in Karras et al. 2018 (section 5) patches
    stand for texture and strokes; the sets need not show the same pictures, but must have the same number of them.
    """
    if first.shape != second.shape:
        raise ValueError(f"sets of latents of shapes {tuple(first.shape)} and {tuple(second.shape)}: must be equal")
    directions = torch.randn(
        first.shape[1] * PATCH**2, PROJECTIONS, generator=torch_generator(seed, 0, 0, "projections")
    )
    directions = directions / directions.norm(dim=0)
    one, other = (_patches(latents) @ directions for latents in (first, second))
    return float((one.sort(dim=0).values - other.sort(dim=0).values).abs().mean())


def _patches(latents: Tensor) -> Tensor:
    """[N, C, h, w] -> float32 [N * (h - 2) * (w - 2), C * 9] on the CPU."""
    columns = F.unfold(latents.detach().float().cpu(), PATCH)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
