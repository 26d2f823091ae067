"""Tracking: local files first, MLflow behind them. An outage of MLflow neither stops a run nor loses a value.

Every value is appended to a journal in the run folder before anything else happens to it:

    params.jsonl     {"time", "params": {...}}, one line a start
    metrics.jsonl    {"time", "step", name: value, ...}
    system.jsonl     the same, names begin with "system/"
    artifacts.jsonl  {"time", "path", "folder"}

`mlflow_sender.Sender` reads the journals in the background and sends what is new. Only one process of a run (rank 0)
has a Tracker.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from distill.journal import Journal, metric_record, now
from distill.mlflow_sender import Sender, SendReport, Timing

JOURNALS = ("params", "metrics", "system", "artifacts")
PACKAGES = ("torch", "deepspeed", "peft", "open_clip_torch", "omegaconf", "mlflow", "numpy", "safetensors", "pillow")


class TrackingOptions(Protocol):
    """enabled: whether MLflow is used at all. uri: a server's address (http://host:5000); empty for the SQLite store
    `mlflow.db` beside the run folder, with `mlartifacts/` beside it. experiment: MLflow's name for a group of runs."""

    enabled: bool
    uri: str
    experiment: str


class Tracker:
    """Records one run. After the constructor nothing waits for MLflow except `finish`; a call only appends to a file.

    run_dir: the run's folder; its parent holds the default store. params: nested, recorded flat. run_id: MLflow run to
    continue where the folder does not know one yet. say: takes the rare line for a person. The constructor gives MLflow
    `timing.connect` seconds to answer, so that `run_id` is known when it does, and goes on without it when it does not.
    """

    def __init__(
        self,
        run_dir: Path,
        options: TrackingOptions,
        params: Mapping[str, Any],
        run_id: str = "",
        say: Callable[[str], None] = print,
        timing: Timing | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir.resolve()
        self._journals = {name: Journal(self.run_dir / f"{name}.jsonl") for name in JOURNALS}
        self._journals["params"].append({"time": now(), "params": flatten(params)})
        self._sender: Sender | None = None
        if options.enabled:
            uri = options.uri or f"sqlite:///{self.run_dir.parent / 'mlflow.db'}"
            # A server has its own place for artifacts; a local store gets a folder beside it, wherever we were started.
            artifacts = None if options.uri else (self.run_dir.parent / "mlartifacts").as_uri()
            self._sender = Sender(
                self.run_dir, uri, options.experiment, artifacts, self._journals, run_id, say, timing or Timing()
            )
            self._sender.start()

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; empty as long as MLflow has not answered."""
        return self._sender.run_id if self._sender else ""

    @property
    def uri(self) -> str:
        """MLflow's tracking URI, empty where MLflow is switched off."""
        return self._sender.uri if self._sender else ""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers of one step. NaN and infinity are kept as such."""
        self._journals["metrics"].append(metric_record(metrics, step))
        if self._sender:
            self._sender.step = step

    def artifact(self, path: Path, folder: str = "") -> None:
        """Registers a file or folder, which must stay where it is, to be copied to MLflow under `folder`."""
        assert path.exists(), path
        self._journals["artifacts"].append({"time": now(), "path": str(path.resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED", timeout: float = 60.0) -> SendReport:
        """Sends the rest and closes the MLflow run as FINISHED, FAILED or KILLED; waits `timeout` seconds at most."""
        assert status in ("FINISHED", "FAILED", "KILLED"), status
        return self._sender.finish(status, timeout) if self._sender else SendReport()


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
