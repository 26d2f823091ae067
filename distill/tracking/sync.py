"""The journals of a run that is over, sent to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.config.schema import TrackingConfig
from distill.tracking.journal import Journal
from distill.tracking.upload_lock import UploadLock
from distill.tracking.uploader import JOURNALS, SendReport, Timing, Uploader, default_target, open_journals


class BusyError(RuntimeError):
    """Another process records or sends in that folder; the message is one line."""


def sync(
    run_dir: Path,
    uri: str | None = None,
    experiment: str | None = None,
    timeout: float = 300.0,
    say: Callable[[str], None] = print,
    timing: Timing | None = None,
) -> SendReport:
    """Sends what MLflow does not have yet, within `timeout` seconds. uri, experiment: None for what the run was told.

    A run that ended without saying so was killed, and is recorded as that.

    Raises:
        ValueError: the folder is missing or holds no journals.
        BusyError: a run is alive in it, as far as the file system's locks tell.
    """
    run_dir = run_dir.resolve()
    if not any((run_dir / f"{name}.jsonl").is_file() for name in JOURNALS):
        raise ValueError(f"{run_dir}: no journals here (metrics.jsonl, params.jsonl, ...); give the folder of a run")
    journals = open_journals(run_dir, say)
    lock = UploadLock(run_dir)
    if not lock.acquire():
        raise BusyError(f"{run_dir}: {lock.holder()} records here and sends by itself; nothing is to be done")
    try:
        told = _last(journals["params"]).get("params", {})
        uri = told.get("recipe.tracking.uri", "") if uri is None else uri
        experiment = experiment or told.get("recipe.tracking.experiment") or TrackingConfig.experiment
        _close(journals)
        timing = timing or Timing(send=1.0, system=0.0, connect=0.0)
        outbox = Uploader(run_dir, default_target(run_dir, uri, experiment), journals, lock, say=say, timing=timing)
        outbox.start()
        return outbox.finish(timeout, patient=True)
    finally:
        lock.release()


def _close(journals: dict[str, Journal]) -> None:
    """Notes an end for a run that left none, at the time of its last line."""
    if _last(journals["status"]).get("status") != "RUNNING":
        return
    times = [_last(journals[name]).get("time", 0.0) for name in JOURNALS]
    journals["status"].append({"time": max(times), "status": "KILLED"})


def _last(journal: Journal) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for last in journal.all():  # noqa: B007
        pass
    return last
