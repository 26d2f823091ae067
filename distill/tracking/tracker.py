"""The tracker records a run in local files first and in MLflow behind them. An MLflow outage stops and loses nothing.

Every value is first appended to a journal in the run folder:

    params.jsonl     {"time", "params": {...}}: at a start where MLflow is, before the first step everything
    metrics.jsonl    {"time", "step", name: value, ...}; each step of a metric once, also when a resume does it again
    system.jsonl     the same, names begin with "system/"; its steps count the samples
    status.jsonl     {"time", "status"}: RUNNING at a start, FINISHED, FAILED or KILLED at an orderly end
    artifacts.jsonl  {"time", "path", "folder"}; paths in the run folder are relative to it; with {"image", "step"} it
                     is a picture of a series, which MLflow shows with a slider
    notes.jsonl      description, source, data set and models of the run: run_notes.py

`uploader.Uploader` sends what is new in the background. Only one process of a run (rank 0) has a Tracker. `finish`
writes tracking_report.json: what was sent, and what tracking cost. A process that only adds to a run leaves that alone.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from distill.config.schema import TrackingConfig
from distill.tracking.journal import metric_record, now
from distill.tracking.links import run_page
from distill.tracking.metric_names import present_record
from distill.tracking.notify import Notifier
from distill.tracking.upload_state import UploadState
from distill.tracking.uploader import SendReport, Timing, Uploader, open_journals, tracking_uri

REPORT = "tracking_report.json"
NOTES_SECONDS = 10.0
"""What the first notes get at the end of a run that was shorter than the making of them."""
_PLACE = ("recipe.tracking.uri", "recipe.tracking.experiment")
"""Recorded at a start, for launch/sync_tracking.py."""
PACKAGES = ("torch", "deepspeed", "peft", "open_clip_torch", "omegaconf", "mlflow", "numpy", "safetensors", "pillow")


class Tracker:
    """Records one run. After the constructor only `finish` waits for MLflow; all other calls append to a file.

    run_dir: the run's folder; its parent holds the default store. params: nested, recorded flat; None for a process
    that only adds something to a run, such as an evaluation. run_id: the MLflow run to continue where the folder knows
    none. notes: recorded with the parameters, from a thread, because they may take long to make. notifier: tells people
    of the end. say: takes the rare line for a person. The constructor waits `timing.connect` seconds at most for
    MLflow's answer, which gives `run_id`.
    """

    def __init__(
        self,
        run_dir: Path,
        options: TrackingConfig,
        params: Mapping[str, Any] | None,
        run_id: str = "",
        say: Callable[[str], None] = print,
        timing: Timing | None = None,
        notes: Callable[[], Iterable[Mapping[str, Any]]] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir = run_dir.resolve()
        self.uri = tracking_uri(run_dir, options.uri) if options.enabled else ""
        self._say, self._owns = say, params is not None
        self._unrecorded: dict[str, str] | None = None
        self._first_notes = notes
        self._noting: threading.Thread | None = None
        self.notify = notifier or Notifier("", run_dir, say)
        self._began, self._call_seconds = time.monotonic(), 0.0
        self._journals, self._state = open_journals(run_dir, say), UploadState(run_dir, say)
        self._repeated = 0
        self._last_steps: dict[str, int] = {}  # of each metric; "step": of all
        for record in map(present_record, self._journals["metrics"].all()):
            if isinstance(step := record.get("step"), int):
                self._last_steps |= {name: max(step, self._last_steps.get(name, step)) for name in record}
        if params is not None:
            self._state.acquire()  # also where nothing is sent: it tells others that the run is alive
            self._unrecorded = flatten(params)
            if place := {name: self._unrecorded[name] for name in _PLACE if name in self._unrecorded}:
                self._journals["params"].append({"time": now(), "params": place})
            self._journals["status"].append({"time": now(), "status": "RUNNING"})
        self._uploader: Uploader | None = None
        if options.enabled:
            timing = (timing or Timing()) if self._owns else replace(timing or Timing(), system=0.0)
            self._uploader = Uploader(
                run_dir, self.uri, options.experiment, self._journals, self._state, run_id, say, timing
            )
            self._uploader.start()

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; empty as long as MLflow has not answered."""
        return self._uploader.run_id if self._uploader else ""

    @property
    def page(self) -> str:
        """The address of this run's curves in MLflow's web interface; empty where it is not known."""
        return run_page(self.uri, self._uploader.experiment_id, self.run_id) if self._uploader else ""

    def record_params(self) -> None:
        """Records the parameters, once: called right before the first step, so that they are those of an attempt that
        trained and not of one that was refused or had nothing to do."""
        if self._unrecorded is not None:
            self._journals["params"].append({"time": now(), "params": self._unrecorded})
            self._unrecorded = None
            if self._first_notes is not None:
                self._noting = threading.Thread(target=self._record_notes, args=(self._first_notes,), daemon=True)
                self._noting.start()

    def _record_notes(self, notes: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        try:
            for note in notes():
                self._journals["notes"].append({"time": now(), **note})
        except OSError as error:  # an annotation file that went away
            self._say(f"tracking: the run's page in MLflow lacks its data set ({error})")

    def _wait_for_notes(self) -> None:
        if self._noting is not None:
            self._noting.join(NOTES_SECONDS)

    def note(self, note: Mapping[str, Any]) -> None:
        """Records what is no number and no parameter, after the first notes; see run_notes.py."""
        self._wait_for_notes()
        self._journals["notes"].append({"time": now(), **note})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers of one step. NaN and infinity are kept.

        The steps of a metric ascend in a run. A value whose step was recorded before a resume is only counted. A
        process that only adds to a run may record any step, and again.
        """
        began = time.perf_counter()
        fresh = dict(metrics)
        if self._owns:
            self.record_params()
            fresh = {name: value for name, value in metrics.items() if step > self._last_steps.get(name, -1)}
            if len(fresh) < len(metrics) and not self._repeated:
                self._say(
                    f"tracking: {self.run_dir / 'metrics.jsonl'} has steps up to {self._last_steps.get('step', 'here')}"
                    " from before the resume, which are not recorded again; a run that is to go another way needs a "
                    "name=..."
                )
            self._repeated += len(metrics) - len(fresh)
            self._last_steps.update(dict.fromkeys(fresh, step))
        if fresh:
            self._journals["metrics"].append(metric_record(fresh, step))
        self._call_seconds += time.perf_counter() - began

    def artifact(self, path: Path, folder: str = "", image: str = "", step: int = 0) -> None:
        """Registers a file or folder, which must stay where it is, to be copied to MLflow under `folder`.

        image: of a picture that is one of a series, the series, as 'at a glance/previews'; step: its place in it.
        """
        assert path.exists(), path
        assert not folder.startswith("/") and ".." not in folder.split("/"), folder
        began = time.perf_counter()
        place = path.resolve()
        if place.is_relative_to(self.run_dir):
            place = place.relative_to(self.run_dir)
        elif self._uploader:
            self._uploader.allowed.add(place)
        series = {"image": image, "step": step} if image else {}
        self._journals["artifacts"].append({"time": now(), "path": str(place), "folder": folder, **series})
        self._call_seconds += time.perf_counter() - began

    def finish(self, status: str = "FINISHED", timeout: float = 60.0) -> SendReport:
        """Sends the rest and closes the MLflow run as FINISHED, FAILED or KILLED, within `timeout` seconds."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        wall = time.monotonic() - self._began
        self._wait_for_notes()
        if self._owns:
            self._journals["status"].append({"time": now(), "status": status})
        unwritten = sum(journal.flush() + journal.lost for journal in self._journals.values())
        if unwritten:
            self._say(
                f"tracking: {unwritten} lines of the journals in {self.run_dir} could not be written and are lost"
            )
        report = self._uploader.finish(timeout) if self._uploader else SendReport()
        self._state.release()
        self.notify.wait()
        told = {"notifications failed": self.notify.failures}
        counts = dict(+Counter({**report.counts, **told, "repeated": self._repeated, "unwritten": unwritten}))
        report = replace(report, counts=counts, call_seconds=self._call_seconds, wall_seconds=wall)
        if self._owns:
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


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) or is_dataclass(value)


def environment(repository: Path | None = None) -> dict[str, Any]:
    """What a run's numbers depend on besides its recipe: git revision, package versions, machine. Never raises."""
    return {
        "git": git_revision(repository or Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: _version(name) for name in PACKAGES},
    }


def git_revision(folder: Path) -> str:
    """The commit, with '-dirty' where tracked files differ from it; 'unknown' outside a git checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
