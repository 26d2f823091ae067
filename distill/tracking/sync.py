"""Sends the journals of a run that is over to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distill.config.schema import TrackingConfig
from distill.tracking.upload_state import UploadState
from distill.tracking.uploader import JOURNALS, SendReport, Timing, Uploader, open_journals, tracking_uri


class BusyError(RuntimeError):
    """Another process records or sends in that folder. The message is one line."""


def sync(
    run_dir: Path,
    uri: str | None = None,
    experiment: str | None = None,
    timeout: float = 300.0,
    say: Callable[[str], None] = print,
    timing: Timing | None = None,
) -> SendReport:
    """Sends what MLflow does not have yet, within `timeout` seconds. uri, experiment: None for those of the run.

    A run without a recorded end was killed: it is recorded as KILLED at the time of its last line. What is left, and
    why, is in the report.

    Raises:
        ValueError: the folder is missing or holds no journals.
        BusyError: a run is alive in it, as far as the file system's locks tell.
    """
    run_dir = run_dir.resolve()
    if not any((run_dir / f"{name}.jsonl").is_file() for name in JOURNALS):
        raise ValueError(f"{run_dir}: no journals here (metrics.jsonl, params.jsonl, ...); give the folder of a run")
    journals, state = open_journals(run_dir, say), UploadState(run_dir, say)
    if not state.acquire():
        raise BusyError(f"{run_dir}: {state.holder()} records here and sends by itself; nothing is to be done")
    try:
        last = {name: journal.last() for name, journal in journals.items()}
        if last["status"].get("status") == "RUNNING":
            times = [record.get("time", 0.0) for record in last.values()]
            journals["status"].append({"time": max(times), "status": "KILLED"})
        params = last["params"].get("params", {})
        uri = tracking_uri(run_dir, params.get("recipe.tracking.uri", "") if uri is None else uri)
        experiment = experiment or params.get("recipe.tracking.experiment") or TrackingConfig.experiment
        timing = timing or Timing(send=1.0, system=0.0, connect=0.0)
        uploader = Uploader(run_dir, uri, experiment, journals, state, say=say, timing=timing, tells_rest=False)
        uploader.start()
        return uploader.finish(timeout, patient=True)
    finally:
        state.release()
