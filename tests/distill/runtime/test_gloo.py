"""Parts of a tensor between CPU ranks."""

from __future__ import annotations

import pytest
import torch

from distill.runtime.gloo import gather_parts, sum_parts
from distill.training.engine import init_world
from tests.helpers.processes.ranks import returned, run_ranks

RANKS, PART = 3, 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def parts_job() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each dtype: gathered from outside, gathered in place, and this rank's part of a sum."""
    rank, found = init_world(0, 1).rank, []
    for dtype in DTYPES:
        mine = torch.full((PART,), float(rank + 1), dtype=dtype)
        outside, inside = torch.zeros(RANKS * PART, dtype=dtype), torch.zeros(RANKS * PART, dtype=dtype)
        gather_parts(outside, mine)
        own = inside.narrow(0, rank * PART, PART)
        own.copy_(mine)
        gather_parts(output_tensor=inside, input_tensor=own)
        found.append((outside, inside, sum_parts(torch.arange(RANKS * PART).to(dtype) * (rank + 1))))
    return found


@pytest.mark.process
def test_parts_are_gathered_and_summed() -> None:
    whole = torch.tensor([float(rank + 1) for rank in range(RANKS) for _ in range(PART)])
    numbers = torch.arange(RANKS * PART).float()
    for rank, dtypes in enumerate(returned(run_ranks(RANKS, parts_job))):
        for dtype, (outside, inside, summed) in zip(DTYPES, dtypes, strict=True):
            assert outside.dtype == summed.dtype == dtype
            assert torch.equal(outside.float(), whole) and torch.equal(inside.float(), whole)
            assert torch.equal(summed.float(), 6 * numbers[rank * PART : (rank + 1) * PART])
