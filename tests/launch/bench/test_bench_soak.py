"""The soak benchmark: the trainer's updates in windows, and what is called growth."""

from __future__ import annotations

import pytest

from distill.inference.model import make_schedule
from launch.bench.bench_soak import Stopwatch, Window, growth, network


def test_updates_are_those_between_heartbeats_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Stopwatch(every=2)
    for _ in range(6):
        watch.heartbeat()
    assert [window.updates for window in watch.windows] == [2, 4]
    assert all(window.seconds >= 0 and window.mib > 10 for window in watch.windows)
    assert capsys.readouterr().out.count("to update") == 2


def test_growth_leaves_the_first_window_out() -> None:
    windows = [Window(1, 9.0, 9.0, 50.0, 0.0), Window(2, 1.0, 2.0, 100.0, 10.0), Window(3, 1.5, 2.0, 103.0, 10.0)]
    assert growth(windows) == {"seconds_ratio": 1.5, "cpu_seconds_ratio": 1.0, "mib": 3.0, "children_mib": 0.0}


def test_its_network_is_a_whole_one() -> None:
    assert make_schedule(network()).timesteps == 1000
