"""What MLflow can do to a run, with a real server and a real database: cost nothing, lose nothing, double nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.tracking.tracker import REPORT, Tracker
from distill.tracking.uploader import LONGEST_PAUSE, Timing
from tests.helpers.faulty_mlflow import MODES, FaultyMlflow
from tests.helpers.processes.ranks import returned, run_ranks
from tests.helpers.run_records import read_metrics
from tests.helpers.tracking import FAST

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    path = tmp_path_factory.mktemp("server") / "server.db"
    shutil.copy(empty_store, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, store: str) -> Iterator[FaultyMlflow]:
    server = FaultyMlflow(store, tmp_path_factory.mktemp("artifacts"))
    yield server
    server.close()


@pytest.fixture
def server(running: FaultyMlflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyMlflow]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    yield running
    running.set("ok")


def options(uri: str = "", enabled: bool = True) -> SimpleNamespace:
    return SimpleNamespace(enabled=enabled, uri=uri, experiment="outages")


def history(store: str, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(store).get_metric_history(run_id, name)]


def status(store: str, run_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient(store).get_run(run_id).info.status)


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def log_timed(tracker: Tracker, first: int, count: int, file: Path) -> float:
    """Logs steps, registers the file at each, and returns the median milliseconds of a call."""
    times = []
    for step in range(first, first + count):
        for call in (lambda s=step: tracker.log({"train/loss": float(s)}, s), lambda: tracker.artifact(file)):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def test_a_run_through_every_kind_of_outage(server: FaultyMlflow, store: str, tmp_path: Path) -> None:
    said: list[str] = []
    tracker = Tracker(tmp_path / "run", options(server.uri), {"lr": 1}, say=said.append, timing=FAST)
    run_id = tracker.run_id
    assert run_id and said == []
    file = tmp_path / "run" / "audit.png"
    file.write_bytes(b"png")
    step, milliseconds = 0, {}
    for mode in MODES:
        server.set(mode)
        milliseconds[mode] = log_timed(tracker, step, 20, file)
        step += 20
        until(lambda: len(said) % 2 == 1)
        assert "does not answer" in said[-1], said
        server.set("ok")
        tracker._uploader._next_try = 0.0  # not after the pause, which has grown to many seconds
        until(lambda: len(said) % 2 == 0)
        assert said[-1].endswith("answers again"), said
    report = tracker.finish()
    print("median milliseconds of a call:", {mode: round(ms, 3) for mode, ms in milliseconds.items()})
    assert max(milliseconds.values()) < 1.0
    assert tracker.run_id == run_id and report.unsent == 0 and report.failures >= len(MODES)
    assert history(store, run_id) == [(s, float(s)) for s in range(step)]
    assert status(store, run_id) == "FINISHED" and len(said) == 2 * len(MODES)


def test_a_run_that_begins_without_a_server_finds_it_later(server: FaultyMlflow, store: str, tmp_path: Path) -> None:
    server.set("stopped")
    said: list[str] = []
    tracker = Tracker(tmp_path / "run", options(server.uri), {"lr": 1}, say=said.append, timing=FAST)
    assert tracker.run_id == "" and "does not answer" in said[0]
    tracker.log({"train/loss": 1.0}, 1)
    server.set("ok")
    tracker._uploader._next_try = 0.0
    until(lambda: tracker.run_id != "")
    tracker.finish()
    assert history(store, tracker.run_id) == [(1, 1.0)]


def test_the_end_waits_no_longer_than_it_is_told_and_the_next_start_sends_the_rest(
    server: FaultyMlflow, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    said: list[str] = []
    first = Tracker(tmp_path / "run", options(server.uri), {}, say=said.append, timing=FAST)
    server.set("hang")
    first.log({"train/loss": 1.0}, 1)
    began = time.monotonic()
    report = first.finish("KILLED", timeout=1.0)
    assert time.monotonic() - began < 4.0 and report.unsent >= 1
    assert "records did not reach MLflow" in said[-1] and "python launch/sync_tracking.py" in said[-1]
    server.set("500")  # the request that hangs ends
    first._uploader._thread.join(60)
    server.set("ok")
    second = Tracker(tmp_path / "run", options(server.uri), {}, timing=FAST)
    second.log({"train/loss": 2.0}, 2)
    assert second.finish().unsent == 0 and second.run_id == first.run_id
    assert history(store, first.run_id) == [(1, 1.0), (2, 2.0)]
    assert status(store, first.run_id) == "FINISHED"


def test_a_run_deleted_while_it_runs_is_sent_again_and_nothing_is_refused(
    server: FaultyMlflow, store: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    tracker = Tracker(tmp_path / "run", options(server.uri), {}, say=said.append, timing=FAST)
    deleted = tracker.run_id
    tracker.log({"train/loss": 1.0}, 1)
    until(lambda: history(store, deleted) == [(1, 1.0)])
    MlflowClient(store).delete_run(deleted)
    tracker.log({"train/loss": 2.0}, 2)
    until(lambda: tracker.run_id not in ("", deleted))
    report = tracker.finish()
    assert "refused" not in report.counts and any(f"has no run {deleted}" in line for line in said)
    assert history(store, tracker.run_id) == [(1, 1.0), (2, 2.0)]


def test_a_database_that_another_process_has_locked(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    said: list[str] = []
    tracker = Tracker(tmp_path / "run", options(), {}, say=said.append, timing=FAST)
    until(lambda: tracker._uploader._unsent() == 0)
    other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    file = tmp_path / "run" / "audit.png"
    file.write_bytes(b"png")
    milliseconds = log_timed(tracker, 1, 100, file)
    until(lambda: len(said) == 1)
    assert "does not answer" in said[0] and "database is locked" in said[0]
    other.execute("ROLLBACK")
    other.close()
    report = tracker.finish()
    assert milliseconds < 1.0 and report.unsent == 0
    assert history(tracker.uri, tracker.run_id) == [(s, float(s)) for s in range(1, 101)]


def test_an_outage_costs_little_of_the_training(tmp_path: Path, server: FaultyMlflow) -> None:
    """Steps of 0.05 s, a fiftieth of a real one, with the usual intervals.

    What the training's thread does in the tracker's calls is at most 1 % of the steps. The sending thread tries a few
    times only, and the work of a try is at most 1 % of the pause that a longer outage has between two. Both are counted
    in processor time, which other work on the machine does not lengthen.
    """
    shares, tries = {}, {}
    for mode in ("warm-up", "stopped", "hang", "500"):
        server.set("stopped" if mode == "warm-up" else mode)
        timing = Timing(send=1.0, system=10.0, connect=0.0, request=1)
        tracker = Tracker(tmp_path / mode, options(server.uri), {}, say=lambda line: None, timing=timing)
        began, in_calls = time.monotonic(), 0.0
        for step in range(1, 101):
            time.sleep(0.05)
            if step % 10 == 0:
                call = time.thread_time()
                tracker.log({"train/loss": 1.0, "train/learning_rate": 1e-4, "train/grad_norm": 0.5}, step)
                in_calls += time.thread_time() - call
        shares[mode] = in_calls / (time.monotonic() - began)
        report = tracker.finish("KILLED", timeout=0.1)
        tries[mode] = (report.failures, report.thread_seconds / max(1, report.failures))
        written = json.loads((tmp_path / mode / REPORT).read_text())
        assert written["cost"] == pytest.approx(report.cost, abs=1e-6) and written["unsent"] == report.unsent > 0
    del shares["warm-up"], tries["warm-up"]  # the first try imports what the others have
    print("share of the training's time:", {mode: f"{share:.3%}" for mode, share in shares.items()})
    print("tries, and processor seconds of one:", {mode: (n, round(each, 3)) for mode, (n, each) in tries.items()})
    assert max(shares.values()) < 0.01
    assert all(count <= 4 and each < 0.01 * LONGEST_PAUSE for count, each in tries.values())


# --- killed, and resumed at the last checkpoint ---

STEPS, SAVE_EVERY = 60, 10


def value(step: int) -> float:
    return 1.0 / step


def train(run_dir: Path, dies_at: int) -> None:
    """What a training does to its tracker: the step it goes on from is that of the last checkpoint. dies_at: the step
    after which the process is killed, wherever its sending thread is then."""
    checkpoint = run_dir.parent / "checkpoint"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    tracker = Tracker(run_dir, options(), {"lr": 1, "start": start}, timing=FAST)
    for step in range(start + 1, STEPS + 1):
        tracker.log({"train/loss": value(step), "speed/samples_per_second": time.time() % 7}, step)
        time.sleep(0.02)
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % SAVE_EVERY == 0:
            checkpoint.with_suffix(".new").write_text(str(step))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    tracker.finish()


def killed_lives(run_dir: Path, dies_at: tuple[int, ...]) -> list[int]:
    """Trains, is killed and goes on, as often as told, and at last is left to finish: how each life ended."""
    import mlflow  # noqa: F401  # once, before the forks

    ends = []
    for step in (*dies_at, 0):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(run_dir, step)
                code = 0
            finally:
                os._exit(code)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return ends


def test_a_run_killed_thrice_is_one_run_with_every_step_once(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    run_dir = tmp_path / "run"
    (result,) = run_ranks(1, killed_lives, run_dir, (7, 18, 39))
    assert returned([result]) == [[-9, -9, -9, 0]], result.stderr
    assert [(m["step"], m["train/loss"]) for m in read_metrics(run_dir)] == [(s, value(s)) for s in range(1, STEPS + 1)]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("outages").experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["resumed.start"] == "30"
    assert history(uri, run.info.run_id) == [(s, value(s)) for s in range(1, STEPS + 1)]
    speeds = history(uri, run.info.run_id, "speed/samples_per_second")
    assert [s for s, _ in speeds] == list(range(1, STEPS + 1))
    assert "repeated" in json.loads((run_dir / REPORT).read_text())["counts"]


def test_what_was_sent_and_not_noted_is_not_doubled(tmp_path: Path, empty_store: Path) -> None:
    """As after a kill between MLflow's answer and tracking.json."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    first = Tracker(tmp_path / "run", options(), {"lr": 1}, timing=FAST)
    values = [1.0, float("nan"), float("inf"), 0.1]
    for step, loss in enumerate(values):
        first.log({"train/loss": loss}, step)
    first.finish("KILLED")
    state = json.loads((tmp_path / "run" / "tracking.json").read_text())
    state["targets"][first.uri]["sent"] = {}
    (tmp_path / "run" / "tracking.json").write_text(json.dumps(state))
    second = Tracker(tmp_path / "run", options(), {"lr": 1}, timing=FAST)
    second.log({"train/loss": 5.0}, 4)
    report = second.finish()
    assert second.run_id == first.run_id and report.counts["metrics"] == 5
    assert [step for step, _ in history(first.uri, first.run_id)] == [0, 1, 2, 3, 4]
