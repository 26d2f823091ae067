"""Tracking: local files first, MLflow behind them. An outage of MLflow neither stops a run nor loses a value.

Every value is appended to a journal in the run folder before anything else happens to it:

    params.jsonl     {"time", "params": {...}}, one line a start
    metrics.jsonl    {"time", "step", name: value, ...}; each step of a metric once, also when a resume does it again
    system.jsonl     the same, names begin with "system/"; its steps count the samples
    status.jsonl     {"time", "status"}: RUNNING at a start, FINISHED, FAILED or KILLED at an orderly end
    artifacts.jsonl  {"time", "path", "folder"}; paths in the run folder are relative to it

`outbox.Outbox` reads the journals in the background and sends what is new. Only one process of a run (rank 0) has a
Tracker. `finish` leaves tracking_report.json: what was sent, and what tracking cost.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from distill.tracking.journal import metric_record, now
from distill.tracking.upload_lock import UploadLock
from distill.tracking.uploader import SendReport, Timing, Uploader, default_target, last_steps, open_journals

REPORT = "tracking_report.json"
PACKAGES = ("torch", "deepspeed", "peft", "open_clip_torch", "omegaconf", "mlflow", "numpy", "safetensors", "pillow")


class TrackingOptions(Protocol):
    """enabled: whether MLflow is used at all. uri: a server's address (http://host:5000); empty for the SQLite store
    `mlflow.db` beside the run folder, with `mlartifacts/` beside it. experiment: MLflow's name for a group of runs."""

    enabled: bool
    uri: str
    experiment: str


class Tracker:
    """Records one run. After the constructor nothing waits for MLflow except `finish`; a call only appends to a file.

    run_dir: the run's folder; its parent holds the default store. params: nested, recorded flat; None for a process
    that only adds something to a run, such as an evaluation. run_id: MLflow run to continue where the folder does not
    know one yet. say: takes the rare line for a person. The constructor gives MLflow `timing.connect` seconds to
    answer, so that `run_id` is known when it does, and goes on without it when it does not.
    """

    def __init__(
        self,
        run_dir: Path,
        options: TrackingOptions,
        params: Mapping[str, Any] | None,
        run_id: str = "",
        say: Callable[[str], None] = print,
        timing: Timing | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir.resolve()
        self.uri = ""
        self._say, self._owns = say, params is not None
        self._began, self._call_seconds = time.monotonic(), 0.0
        self._journals = open_journals(self.run_dir, say)
        self._last_steps = last_steps(self._journals["metrics"])
        self._repeated = 0
        self._lock = UploadLock(self.run_dir)
        self._outbox: Uploader | None = None
        if params is not None:
            self._lock.acquire()  # also where nothing is sent: it tells others that the run is alive
            self._journals["params"].append({"time": now(), "params": flatten(params)})
            self._journals["status"].append({"time": now(), "status": "RUNNING"})
        if options.enabled:
            target = default_target(self.run_dir, options.uri, options.experiment)
            self.uri = target.uri  # MLflow's tracking URI, empty where MLflow is switched off
            timing = timing or Timing()
            timing = timing if self._owns else replace(timing, system=0.0)
            self._outbox = Uploader(self.run_dir, target, self._journals, self._lock, run_id, say, timing)
            self._outbox.start()

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; empty as long as MLflow has not answered."""
        return self._outbox.run_id if self._outbox else ""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers of one step. NaN and infinity are kept as such.

        A metric's steps ascend in a run: values of a step that it had before a resume are those that it has already,
        and are only counted. A process that only adds to a run may record any step, and again.
        """
        began = time.perf_counter()
        if self._owns:
            fresh = {name: value for name, value in metrics.items() if step > self._last_steps.get(name, -1)}
            if len(fresh) < len(metrics):
                self._pass_over(len(metrics) - len(fresh))
            self._last_steps.update(dict.fromkeys(fresh, step))
        else:
            fresh = dict(metrics)
        if fresh:
            self._journals["metrics"].append(metric_record(fresh, step))
        self._call_seconds += time.perf_counter() - began

    def _pass_over(self, values: int) -> None:
        if not self._repeated:
            self._say(
                f"tracking: {self.run_dir / 'metrics.jsonl'} has steps up to {self._last_steps.get('', 'here')} from "
                "before the resume, which are not recorded again; a run that is to go another way needs a name=..."
            )
        self._repeated += values

    def artifact(self, path: Path, folder: str = "") -> None:
        """Registers a file or folder, which must stay where it is, to be copied to MLflow under `folder`."""
        assert path.exists(), path
        assert not folder.startswith("/") and ".." not in folder.split("/"), folder
        began = time.perf_counter()
        place = path.resolve()
        if place.is_relative_to(self.run_dir):
            place = place.relative_to(self.run_dir)
        elif self._outbox:
            self._outbox.allow(place)
        self._journals["artifacts"].append({"time": now(), "path": str(place), "folder": folder})
        self._call_seconds += time.perf_counter() - began

    def finish(self, status: str = "FINISHED", timeout: float = 60.0) -> SendReport:
        """Sends the rest and closes the MLflow run as FINISHED, FAILED or KILLED; waits `timeout` seconds at most."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        wall = time.monotonic() - self._began
        if self._owns:
            self._journals["status"].append({"time": now(), "status": status})
        waiting = sum(journal.flush() for journal in self._journals.values())
        unwritten = waiting + sum(journal.lost for journal in self._journals.values())
        if unwritten:
            self._say(
                f"tracking: {unwritten} lines of the journals in {self.run_dir} could not be written and are lost"
            )
        report = self._outbox.finish(timeout) if self._outbox else SendReport()
        self._lock.release()
        more = {name: n for name, n in (("repeated", self._repeated), ("unwritten", unwritten)) if n}
        report = replace(report, counts={**report.counts, **more}, call_seconds=self._call_seconds, wall_seconds=wall)
        self._write_report(report)
        return report

    def _write_report(self, report: SendReport) -> None:
        content = asdict(report) | {"uri": self.uri, "cost": round(report.cost, 6)}
        try:
            (self.run_dir / REPORT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            self._say(f"tracking: {self.run_dir / REPORT} cannot be written ({error.strerror})")


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings, dataclasses and sequences, flat: {'train.lr': '0.0001', 'data.0.path': ...}; leaves as text."""
    if is_dataclass(values) and not isinstance(values, type):
        values = asdict(values)
    items: Iterable[tuple[Any, Any]]
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, Sequence) and not isinstance(values, str) and any(_is_nested(v) for v in values):
        items = enumerate(values)
    else:
        return {prefix: str(values)}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat or ({prefix: "{}"} if prefix else {})


def environment(repository: Path | None = None) -> dict[str, Any]:
    """What the numbers of a run also depend on: git revision, package versions, machine. Never raises."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": git_revision(repository or Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def git_revision(folder: Path) -> str:
    """The commit, with '-dirty' where tracked files differ from it; 'unknown' outside a git checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def progress_line(step: int, max_steps: int, loss: float, lr: float, samples_per_s: float, eta: float | None) -> str:
    """One line about a running training; eta in seconds, None while it is not known yet."""
    width = len(str(max_steps))
    remaining = "--:--" if eta is None or not math.isfinite(eta) else duration(eta)
    return (
        f"step {step:>{width}}/{max_steps}  {100 * step / max(max_steps, 1):5.1f} %  loss {loss:.5f}  lr {lr:.2e}  "
        f"{samples_per_s:6.1f} samples/s  ETA {remaining}"
    )


def duration(seconds: float) -> str:
    """75 -> '01:15', 3725 -> '1:02:05', 90061 -> '1d 01:01:01'."""
    whole = max(int(round(seconds)), 0)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{secs:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes:02d}:{secs:02d}"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) or is_dataclass(value)


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
