"""A network of two linear layers."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 4


class Net(nn.Module):
    """Two linear layers of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x))
        return result
