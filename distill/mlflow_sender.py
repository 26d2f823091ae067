"""The only importer of MLflow: a background thread that carries a run's journals there.

How far each journal has been sent stands in tracking.json of the run folder. While MLflow does not answer, the
journals grow and the thread tries again, with longer pauses; a resumed run continues at the same place in the same
MLflow run. A run that MLflow no longer knows is sent again from the beginning, into a new one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.checkpoint import write_text_atomically
from distill.journal import Journal, metric_record

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE, _MAX_KEY = 1000, 100, 6000, 250  # MLflow's limits per call and per entry
_LONGEST_PAUSE = 60.0
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # the same call would fail again; anything else may pass later
_GONE = "RESOURCE_DOES_NOT_EXIST"
_STATE = "tracking.json"


@dataclass(frozen=True)
class SendReport:
    """What became of a run's records. failures: calls that MLflow did not answer; unsent: lines still only local."""

    run_id: str = ""
    failures: int = 0
    unsent: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """Lines by journal that were sent; 'refused', 'broken', 'shortened' and 'absent artifacts' where there were any."""


@dataclass(frozen=True)
class Timing:
    """Seconds. send: between two batches. system: between two samples of CPU, memory, disk, network and GPU (0: none).
    connect: what the start may wait for MLflow. request: one call to a server."""

    send: float = 5.0
    system: float = 10.0
    connect: float = 30.0
    request: int = 10


class Sender:
    """Sends journals to MLflow. Nothing here raises: failures are counted, and said once an outage.

    uri: MLflow's tracking URI. artifacts: where a new experiment keeps its files, None for the server's own place.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        artifacts: str | None,
        journals: Mapping[str, Journal],
        run_id: str,
        say: Callable[[str], None],
        timing: Timing,
    ) -> None:
        self.uri = uri
        self.step = 0  # of the newest metrics; system metrics are filed under it
        self._run_dir, self._experiment, self._artifacts = run_dir, experiment, artifacts
        self._journals, self._say, self._timing = journals, say, timing
        self._state = self._stored_state(run_id)
        self._client: MlflowClient | None = None
        self._monitors: list[Any] = []
        self._failures, self._in_outage = 0, False
        self._counts: Counter[str] = Counter()
        self._pause, self._next_try, self._next_sample = timing.send, 0.0, 0.0
        self._tried, self._closing = threading.Event(), threading.Event()
        self._final_status = ""
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)

    @property
    def run_id(self) -> str:
        return str(self._state["run_id"])

    def start(self) -> None:
        """Begins to send; returns when MLflow has answered, has failed to, or has taken too long."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(self._timing.request))
        # Imported here and not in the thread: two threads that import large packages at once can lock each other out.
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            self._failures += 1
            self._say(f"tracking: MLflow cannot be imported ({error}); records stay in {self._run_dir}")
            return
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._monitors = _system_monitors() if self._timing.system else []
        self._thread.start()
        self._tried.wait(self._timing.connect)

    def finish(self, status: str, timeout: float) -> SendReport:
        if self._thread.is_alive():
            self._final_status = status
            self._closing.set()
            self._thread.join(timeout)
        unsent = sum(self._unsent().values())
        if unsent:
            self._say(f"tracking: {unsent} records did not reach MLflow ({self.uri}); see {self._run_dir}/*.jsonl")
        return SendReport(self.run_id, self._failures, unsent, {k: v for k, v in self._counts.items() if v})

    # --- the thread ---

    def _run(self) -> None:
        self._attempt(self._connect)
        self._tried.set()
        while not self._closing.wait(self._timing.send):
            self._sample_system()
            if time.monotonic() >= self._next_try:
                self._attempt(self._send_all)
        self._attempt(self._close)
        self._attempt(self._send_all)

    def _attempt(self, action: Callable[[], None]) -> None:
        """One exchange with MLflow. Whatever it raises concerns tracking only: it is counted, said, and tried again."""
        try:
            action()
        except Exception as error:  # network, database and MLflow errors have no common base
            self._failures += 1
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next_try = time.monotonic() + self._pause
            if getattr(error, "error_code", "") == _GONE:
                self._client = None  # look for the run again
            if not self._in_outage:
                self._in_outage = True
                reason = _one_line(error)
                self._say(f"tracking: MLflow ({self.uri}) does not answer, records stay in {self._run_dir}: {reason}")
            return
        if self._in_outage:
            self._in_outage = False
            self._say(f"tracking: MLflow ({self.uri}) answers again")
        self._pause, self._next_try = self._timing.send, 0.0

    def _send_all(self) -> None:
        if self._client is None:
            self._connect()
        handlers = {
            "params": self._send_params,
            "metrics": self._send_metrics,
            "system": self._send_metrics,
            "artifacts": self._send_artifacts,
        }
        for name, send in handlers.items():
            while True:
                records, offset, broken = self._journals[name].read(self._state["sent"].get(name, 0), limit=200)
                if offset == self._state["sent"].get(name, 0):
                    break
                self._accepted(send, records)
                self._state["sent"][name] = offset
                self._store_state()
                self._counts.update({name: len(records), "broken": broken})

    def _accepted(self, send: Callable[[list[dict[str, Any]]], None], records: list[dict[str, Any]]) -> None:
        """Sends the records; if MLflow refuses them for good, one by one, so that only the faulty ones are left out."""
        try:
            send(records)
        except Exception as error:
            if getattr(error, "error_code", "") not in _REFUSED:
                raise
            if len(records) > 1:
                for record in records:
                    self._accepted(send, [record])
                return
            if not self._counts["refused"]:
                self._say(f"tracking: MLflow refuses a record (it stays in {self._run_dir}): {_one_line(error)}")
            self._counts["refused"] += 1

    def _connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(self.uri)
        if self.run_id:
            try:
                client.update_run(self.run_id, status="RUNNING")
            except MlflowException as error:
                if error.error_code not in (_GONE, *_REFUSED):  # the latter: deleted by someone, or no id at all
                    raise
                self._say(f"tracking: MLflow ({self.uri}) has no run {self.run_id}; a new one begins, with all records")
                self._state = {"uri": self.uri, "run_id": "", "sent": {}}
        if not self.run_id:
            tags = {"run_dir": str(self._run_dir)}
            run = client.create_run(self._experiment_id(client), run_name=self._run_dir.name, tags=tags)
            self._state["run_id"] = run.info.run_id
            self._store_state()
        self._client = client

    def _experiment_id(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(client.create_experiment(self._experiment, artifact_location=self._artifacts))
            except MlflowException:
                found = client.get_experiment_by_name(self._experiment)  # another run may have been faster
                if found is None:
                    raise
        return str(found.experiment_id)

    # --- one journal each ---

    def _send_metrics(self, records: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_key(name), float(value), int(1000 * record["time"]), int(record["step"]))
            for record in records
            for name, value in record.items()
            if name not in ("time", "step")
        ]
        for first in range(0, len(metrics), _MAX_METRICS):
            self._mlflow.log_batch(self.run_id, metrics=metrics[first : first + _MAX_METRICS])

    def _send_params(self, records: list[dict[str, Any]]) -> None:
        """A parameter of an MLflow run cannot change. What a resume changed goes into tags `resumed.<name>`."""
        from mlflow.entities import Param, RunTag

        for record in records:
            known = self._mlflow.get_run(self.run_id).data.params
            values = {_key(name): value[:_MAX_VALUE] for name, value in record["params"].items()}
            self._counts["shortened"] += sum(len(value) > _MAX_VALUE for value in record["params"].values())
            fresh = [Param(name, value) for name, value in values.items() if name not in known]
            changed = [
                RunTag(f"resumed.{name}"[:_MAX_KEY], value[:5000])
                for name, value in values.items()
                if name in known and known[name] != value
            ]
            for first in range(0, len(fresh), _MAX_PARAMS):
                self._mlflow.log_batch(self.run_id, params=fresh[first : first + _MAX_PARAMS])
            for first in range(0, len(changed), _MAX_PARAMS):
                self._mlflow.log_batch(self.run_id, tags=changed[first : first + _MAX_PARAMS])

    def _send_artifacts(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            path, folder = Path(record["path"]), record["folder"] or None
            if path.is_dir():
                self._mlflow.log_artifacts(self.run_id, str(path), folder)
            elif path.is_file():
                self._mlflow.log_artifact(self.run_id, str(path), folder)
            else:  # e.g. a checkpoint that newer ones have pushed out meanwhile
                self._counts["absent artifacts"] += 1

    def _close(self) -> None:
        if self._client is None:
            self._connect()
        self._mlflow.set_terminated(self.run_id, self._final_status)

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    # --- system metrics, state ---

    def _sample_system(self) -> None:
        if not self._monitors or time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + self._timing.system
        values: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # drivers and psutil raise what they like
                self._monitors.remove(monitor)
                self._counts["system monitors lost"] += 1
                self._say(f"tracking: {type(monitor).__name__} is left out from here on: {_one_line(error)}")
        if values:
            self._journals["system"].append(metric_record(values, self.step))

    def _unsent(self) -> dict[str, int]:
        counts = {}
        for name, journal in self._journals.items():
            records, _, _ = journal.read(self._state["sent"].get(name, 0), limit=1 << 62)
            counts[name] = len(records)
        return counts

    def _stored_state(self, run_id: str) -> dict[str, Any]:
        path = self._run_dir / _STATE
        if path.is_file():
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
                if state["uri"] == self.uri and isinstance(state["sent"], dict) and isinstance(state["run_id"], str):
                    return dict(state)
            except (ValueError, KeyError, TypeError):
                self._say(f"tracking: {path} is not readable; the run is sent to MLflow from its beginning")
        return {"uri": self.uri, "run_id": run_id, "sent": {}}

    def _store_state(self) -> None:
        write_text_atomically(self._run_dir / _STATE, json.dumps(self._state, indent=1) + "\n")


def _system_monitors() -> list[Any]:
    """MLflow's own collectors, so that its page for system metrics shows them; GPU only where its library is there."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # no pynvml, or no NVIDIA driver: each raises its own kind, and there is nothing to watch
        monitors.append(GPUMonitor())
    return monitors


def _key(name: str) -> str:
    """A name that MLflow accepts: its characters only, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:_MAX_KEY]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
