"""The 13 schedule tables. They need no model."""

from __future__ import annotations

import pytest
import torch

from anytext2.model.anytext2 import schedule_tables
from anytext2.model.config import ScheduleConfig
from tests.helpers.models.official_golden import golden_tensor, read_golden

GOLDEN_TABLES = read_golden("schedule")


def test_same_tables() -> None:
    assert schedule_tables(ScheduleConfig()).keys() == GOLDEN_TABLES.keys()


@pytest.mark.parametrize("name", GOLDEN_TABLES)
def test_values(name: str) -> None:
    ours, reference = schedule_tables(ScheduleConfig())[name], golden_tensor(GOLDEN_TABLES, name)
    assert ours.dtype == reference.dtype
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-12)
