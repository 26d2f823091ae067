"""A run that is killed six times ends as one that was left alone; `make torture` kills fifty times."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.helpers.processes.attempts import Attempt
from tests.helpers.processes.ranks import Started, all_output, start_ranks
from tests.helpers.processes.torture import Report, torture
from tests.helpers.processes.training_runs import train_command

pytestmark = [pytest.mark.process, pytest.mark.slow]


class Forked:
    """An attempt whose ranks are forked from the tests' server: there in no time, and without a launcher."""

    launcher = None

    def __init__(self, world: int, argv: Sequence[str], log: Path) -> None:
        self._started: Started = start_ranks(world, train_command, list(argv))

    def ranks(self) -> list[int]:
        return self._started.pids()

    def has_ended(self) -> bool:
        return not self._started.pids()

    def finish(self) -> tuple[int, str]:
        results = self._started.wait()
        return max(abs(result.exit_code) for result in results), all_output(results)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    def start(world: int, argv: Sequence[str], log: Path) -> Attempt:
        return Forked(world, argv, log)

    with redirect_stdout(io.StringIO()):
        return torture(tmp_path_factory.mktemp("torture"), kills=6, seed=1, start=start)


def test_nothing_is_lost_repeated_or_different(report: Report) -> None:
    assert report.kills == 6 and len(report.where) >= 2, report
    assert report.bit_equal_same_world, report
    assert report.max_difference < 1e-3, report
    assert (report.samples_missed, report.samples_repeated) == (0, 0), report
    assert (report.mlflow_missing, report.mlflow_doubled) == (0, 0), report


def test_the_other_ranks_end_soon_after_a_kill(report: Report) -> None:
    assert report.slowest_end_seconds < 30, report
