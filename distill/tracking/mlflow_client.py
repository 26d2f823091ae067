"""The only importer of MLflow: a run's journal records become MLflow's metrics, parameters, tags and files.

Errors pass through; `distill.outbox` decides what they mean.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE, _MAX_KEY = 1000, 100, 6000, 250  # MLflow's limits per call and per entry
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # the same call would fail again; anything else may pass later
PARENT = "mlflow.parentRunId"
_GONE = "RESOURCE_DOES_NOT_EXIST"
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError)

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Where records go. uri: MLflow's tracking URI. experiment: its name for a group of runs. artifacts: where a new
    experiment keeps its files, None for the server's own place."""

    uri: str
    experiment: str
    artifacts: str | None = None


def import_mlflow(request_seconds: int) -> None:
    """Imports MLflow, set to give up on a server after one repetition, and to be quiet: each outage is said once by
    us, and its tracebacks add nothing. Raises ImportError."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(request_seconds))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def is_refusal(error: Exception) -> bool:
    """Whether MLflow will never take what it was sent, or says so."""
    return getattr(error, "error_code", "") in _REFUSED


def is_gone(error: Exception) -> bool:
    """Whether MLflow says that there is no such run."""
    return getattr(error, "error_code", "") == _GONE


class MlflowRun:
    """One run in MLflow. counts: what becomes of records, added to under 'malformed', 'shortened', 'absent artifacts'
    and 'artifacts outside the run folder'. may_send: which files outside the run folder may be copied."""

    def __init__(self, target: Target, run_dir: Path, counts: Counter[str], may_send: Callable[[Path], bool]) -> None:
        from mlflow import MlflowClient

        self.run_id = ""
        self._target, self._run_dir, self._counts, self._may_send = target, run_dir, counts, may_send
        self._client: MlflowClient = MlflowClient(target.uri)
        self._send = {
            "params": self._send_params,
            "metrics": self._send_metrics,
            "system": self._send_metrics,
            "status": self._send_status,
            "artifacts": self._send_artifacts,
        }

    def find(self, run_id: str) -> bool:
        """Whether MLflow has the run and it is not deleted; then it is the one that is written to."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if not (is_gone(error) or is_refusal(error)):
                raise
            # A proxy before a server that is down says 404 or 400 too; it cannot list experiments.
            self._client.search_experiments(max_results=1)
            return False
        if run.info.lifecycle_stage != "active":
            return False
        self.run_id = run_id
        return True

    def create(self, began: float | None, parent: str = "") -> str:
        """A new run, named after the folder. began: seconds since 1970, None for now; parent: id of the run that it
        belongs below. Returns its id."""
        run = self._client.create_run(
            self._experiment_id(),
            start_time=None if began is None else _milliseconds(began),
            run_name=self._run_dir.name,
            tags={"run_dir": str(self._run_dir)} | ({PARENT: parent} if parent else {}),
        )
        self.run_id = str(run.info.run_id)
        return self.run_id

    def send(self, journal: str, records: list[Record]) -> None:
        """Sends records of one journal, in their order."""
        self._send[journal](records)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._target.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=self._target.artifacts))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)  # another run may have been faster
                if found is None:
                    raise
        return str(found.experiment_id)

    # --- one journal each ---

    def _send_metrics(self, records: list[Record]) -> None:
        metrics = [metric for found in self._read(records, _metrics) for metric in found]
        for some in _portions(metrics, _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=some)

    def _send_params(self, records: list[Record]) -> None:
        """A parameter of an MLflow run cannot change. What a resume changed goes into tags `resumed.<name>`."""
        from mlflow.entities import Param, RunTag

        for params in self._read(records, _params):
            known = self._client.get_run(self.run_id).data.params
            values = {_key(name): value[:_MAX_VALUE] for name, value in params.items()}
            self._counts["shortened"] += sum(len(value) > _MAX_VALUE for value in params.values())
            fresh = [Param(name, value) for name, value in values.items() if name not in known]
            changed = [
                RunTag(f"resumed.{name}"[:_MAX_KEY], value[:5000])
                for name, value in values.items()
                if name in known and known[name] != value
            ]
            for some in _portions(fresh, _MAX_PARAMS):
                self._client.log_batch(self.run_id, params=some)
            for tags in _portions(changed, _MAX_PARAMS):
                self._client.log_batch(self.run_id, tags=tags)

    def _send_status(self, records: list[Record]) -> None:
        for status, time in self._read(records, _status):
            if status == "RUNNING":
                self._client.update_run(self.run_id, status=status)
            else:
                self._client.set_terminated(self.run_id, status, end_time=_milliseconds(time))

    def _send_artifacts(self, records: list[Record]) -> None:
        for path, folder in self._read(records, _artifact):
            place = (self._run_dir / path).resolve()
            if not place.is_relative_to(self._run_dir) and not self._may_send(place):
                # Journals may come from elsewhere: what they name must not be anything that this user can read.
                self._counts["artifacts outside the run folder"] += 1
            elif place.is_dir():
                self._client.log_artifacts(self.run_id, str(place), folder)
            elif place.is_file():
                self._client.log_artifact(self.run_id, str(place), folder)
            else:  # e.g. a checkpoint that newer ones have pushed out meanwhile
                self._counts["absent artifacts"] += 1

    def _read(self, records: list[Record], convert: Callable[[Record], T]) -> Iterator[T]:
        """The records converted; those that are not what their journal holds are counted and left out."""
        for record in records:
            try:
                converted = convert(record)
            except _MALFORMED:
                self._counts["malformed"] += 1
                continue
            yield converted


def _metrics(record: Record) -> list[Metric]:
    from mlflow.entities import Metric

    time, step = _milliseconds(record["time"]), int(record["step"])
    return [Metric(_key(n), float(value), time, step) for n, value in record.items() if n not in ("time", "step")]


def _params(record: Record) -> dict[str, str]:
    return {str(name): str(value) for name, value in record["params"].items()}


def _status(record: Record) -> tuple[str, float]:
    if record["status"] not in ("RUNNING", "FINISHED", "FAILED", "KILLED"):
        raise ValueError(record["status"])
    return record["status"], float(record["time"])


def _artifact(record: Record) -> tuple[Path, str | None]:
    path, folder = Path(record["path"]), str(record["folder"])
    if folder.startswith("/") or ".." in folder.split("/"):
        raise ValueError(folder)
    return path, folder or None


def _portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _milliseconds(seconds: float) -> int:
    return int(1000 * seconds)


def _key(name: str) -> str:
    """A name that MLflow accepts: its characters only, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:_MAX_KEY]


# --- system metrics ---


class SystemMonitors:
    """MLflow's own collectors, so that its page for system metrics shows them; GPU only where its library is there."""

    def __init__(self, say: Callable[[str], None]) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.lost = 0
        self._say = say
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(Exception):  # no pynvml, or no NVIDIA driver: each raises its own kind; nothing to watch
            self._monitors.append(GPUMonitor())

    def sample(self) -> Mapping[str, float]:
        """What there is to know now, by names that begin with `system/`."""
        values: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # drivers and psutil raise what they like
                self._monitors.remove(monitor)
                self.lost += 1
                self._say(f"tracking: {type(monitor).__name__} is left out from here on: {one_line(error)}")
        return values


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
