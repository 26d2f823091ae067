"""The watchdog: limits against readings, cgroups in a drawn tree, and runs that really meet a limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from distill.config.recipes import load_recipe
from distill.runtime.host_memory import GIB, HostResources, Memory, disk_free, read_memory, tree_memory
from distill.runtime.processes import ProcessId, identify
from distill.runtime.signals import FAILED, STOPPED, StopRequests
from distill.runtime.watchdog import CONSECUTIVE_READINGS, REPORT_FILE, Peer, Watchdog, WatchdogConfig, exceeded_limit
from tests.helpers.processes.ranks import all_output, run_ranks
from tests.helpers.processes.training_runs import SMALL_BATCH, TrainingFolder, last_error_line, train_command

FINE = HostResources(Memory(40.0, 64.0), tree=20.0, disk_free=100.0)
NO_LIMIT = str(0x7FFFFFFFFFFFF000)


def with_memory(available: float, total: float = 64.0) -> HostResources:
    return replace(FINE, memory=Memory(available, total))


# --- limits ---


@pytest.mark.parametrize(
    ("config", "readings", "level", "words"),
    [
        ({}, FINE, None, ""),
        ({}, with_memory(4.1), None, ""),
        ({}, with_memory(3.9), "soft", "3.90 GiB of memory left of the host, less than watchdog.soft_available=4"),
        ({}, with_memory(1.4), "hard", "1.40 GiB of memory left of the host, less than watchdog.hard_available=1.5"),
        ({}, with_memory(0.9, total=8.0), None, ""),  # a small machine: a tenth, and a twenty-fifth
        ({}, with_memory(0.7, total=8.0), "soft", "soft_available=0.8"),
        ({}, with_memory(0.3, total=8.0), "hard", "hard_available=0.32"),
        ({"soft_available": 50.0}, FINE, "soft", "soft_available=50"),
        ({"soft_available": 0.0, "hard_available": 0.0}, with_memory(0.1), None, ""),
        ({"max_memory": 19.0}, FINE, "soft", "20.00 GiB held by the run, more than watchdog.max_memory=19"),
        ({"gpu_free": 2.0}, FINE, None, ""),
        ({"gpu_free": 2.0}, replace(FINE, gpu_free=1.0), "soft", "1.00 GiB of GPU memory free, watchdog.gpu_free=2"),
        ({}, replace(FINE, disk_free=0.0), None, ""),
        ({"disk_free": 5.0}, replace(FINE, disk_free=4.0), "soft", "4.00 GiB of disk free, watchdog.disk_free=5"),
        ({"disk_free": 5.0}, replace(with_memory(1.0), disk_free=4.0), "hard", "of memory left"),  # the worst counts
    ],
)
def test_limits(config: dict[str, float], readings: HostResources, level: str | None, words: str) -> None:
    alert = exceeded_limit(WatchdogConfig(**config), readings)  # type: ignore[arg-type]
    assert (alert.level if alert else None) == level
    assert alert is None or words in alert.reason


def test_a_limit_that_cannot_be_is_one_line() -> None:
    assert load_recipe(None, ["watchdog.soft_available=2.5"]).watchdog.soft_available == 2.5
    for wrong in ("watchdog.interval=0", "watchdog.stall=-1", "watchdog.hard_available=.inf"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            load_recipe(None, [wrong])


# --- readings ---


def cgroup(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def test_the_tightest_cgroup_above_counts_without_its_idle_pages(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/job/step\n")
    mounted = tmp_path / "mounted"
    cgroup(mounted / "job", memory__max=GIB // 4, memory__current=GIB // 5, memory__stat=f"inactive_file {GIB // 10}")
    cgroup(mounted / "job/step", memory__max="max", memory__current=GIB // 5)
    memory = read_memory(mounted, own)
    assert memory.where == f"the cgroup {mounted / 'job'}" and memory.total == pytest.approx(0.25)
    assert memory.available == pytest.approx(0.25 - 0.2 + 0.1)


def test_version_1_is_read_too_and_no_limit_is_none(tmp_path: Path, own: Path) -> None:
    own.write_text("4:memory:/box\n1:cpu:/\n0::/\n")
    mounted = tmp_path / "mounted"
    cgroup(mounted / "memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=GIB)
    cgroup(mounted / "memory/box", memory__limit_in_bytes=GIB // 8, memory__usage_in_bytes=GIB // 16)
    assert read_memory(mounted, own).available == pytest.approx(1 / 16)
    (mounted / "memory/box/memory.limit_in_bytes").write_text(NO_LIMIT)
    assert read_memory(mounted, own).where == "the host"


def test_a_container_whose_path_is_the_host_s_finds_its_limit_at_the_root(tmp_path: Path, own: Path) -> None:
    mounted = tmp_path / "mounted"
    cgroup(mounted, memory__max=GIB // 8, memory__current=0)
    for path in ("/../../kubepods/pod1", "/not/mounted/here"):
        own.write_text(f"0::{path}\n")
        assert read_memory(mounted, own).total == pytest.approx(1 / 8)
    assert read_memory(mounted, tmp_path / "nowhere").where == "the host"


def test_real_readings_are_plausible(tmp_path: Path) -> None:
    memory = read_memory()
    assert 0 < memory.available <= memory.total < 100_000
    mine = psutil.Process().memory_info().rss / GIB
    assert 0.5 * mine < tree_memory([os.getpid()])
    assert tree_memory([2**22 + 1]) == 0.0
    assert disk_free(tmp_path / "not" / "yet" / "there") == pytest.approx(disk_free(tmp_path), rel=0.1)


# --- the thread, on readings of ours ---


def watching(
    folder: Path, stop: StopRequests, read: Callable[[], HostResources] = lambda: FINE, **config: float
) -> Watchdog:
    limits = WatchdogConfig(interval=0.01, **config)  # type: ignore[arg-type]
    peers = [Peer(0, "here", identify(os.getpid())), Peer(1, "elsewhere", ProcessId(1, 0))]
    return Watchdog(limits, folder, stop, 0, peers, read=read).start()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def stop() -> StopRequests:
    requests = StopRequests()
    requests.defer_to_step_boundary()
    return requests


@pytest.mark.heavy
def test_a_soft_limit_asks_to_stop_once_it_stays_passed(tmp_path: Path, stop: StopRequests) -> None:
    blip = [3.0] * (CONSECUTIVE_READINGS - 1) + [5.0]
    series = iter([*blip, *blip, *[3.0] * CONSECUTIVE_READINGS])
    seen: list[float] = []

    def read() -> HostResources:
        seen.append(next(series, 40.0))
        return with_memory(seen[-1])

    watchdog = watching(tmp_path, stop, read)
    assert wait_for(lambda: bool(stop.reason))
    assert len(seen) == 2 * len(blip) + CONSECUTIVE_READINGS
    assert stop.reason.startswith("3.00 GiB of memory left")
    record = json.loads((tmp_path / REPORT_FILE).read_text())
    assert (record["level"], record["reason"]) == ("soft", stop.reason)
    assert record["readings"]["memory"]["available"] == 3.0
    assert watchdog.metrics()["host_memory_available_gib"] in (3.0, 40.0)
    assert watchdog.metrics()["disk_free_gib"] == 100.0 and watchdog.metrics()["tree_rss_gib"] == 20.0
    watchdog.finish()


@pytest.mark.heavy
def test_little_disk_is_said_once(tmp_path: Path, stop: StopRequests, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def read() -> HostResources:
        seen.append(1)
        return replace(FINE, disk_free=0.5)

    watchdog = watching(tmp_path, stop, read)
    assert wait_for(lambda: len(seen) > 5)
    watchdog.finish()
    assert capsys.readouterr().out == f"warning: 0.50 GiB of disk left for {tmp_path}\n"
    assert not stop.reason


@pytest.mark.process
def test_the_end_of_the_launcher_is_a_wish_to_stop(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = identify(launcher.pid)
    assert identity is not None
    stop = StopRequests([identity])
    stop.defer_to_step_boundary()
    watchdog = watching(tmp_path, stop)
    time.sleep(0.6)
    assert not stop.reason
    launcher.terminate()
    assert wait_for(lambda: bool(stop.reason)) and stop.reason == "the end of the launcher"
    launcher.wait()
    watchdog.finish()


# --- runs that meet a limit ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    return TrainingFolder.create(tmp_path_factory.mktemp("watchdog"), 12)


@pytest.mark.process
def test_a_run_short_of_memory_stops_with_a_checkpoint(runs: TrainingFolder) -> None:
    endless = [*SMALL_BATCH, "train.max_steps=100000", "watchdog.interval=0.2", "data.workers=1"]
    (result,) = run_ranks(1, train_command, runs.argv("soft", *endless, "watchdog.soft_available=100000"))
    assert result.exit_code == STOPPED, all_output([result])
    line = result.stdout.strip().splitlines()[-1]
    assert line.startswith("stopped at update ") and "less than watchdog.soft_available=1e+05: " in line
    assert (runs.run_dir("soft") / REPORT_FILE).is_file()


@pytest.mark.process
def test_a_run_out_of_memory_is_killed_with_the_reason_left_behind(runs: TrainingFolder) -> None:
    endless = [*SMALL_BATCH, "train.max_steps=100000", "data.workers=1"]
    results = run_ranks(2, train_command, runs.argv("hard", *endless, "watchdog.hard_available=100000"))
    assert [r.exit_code for r in results] == [FAILED, -signal.SIGKILL], all_output(results)
    assert "less than watchdog.hard_available=1e+05; the run is killed" in last_error_line(results[0])
