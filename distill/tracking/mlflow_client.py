"""The only module that imports MLflow. It writes journal records to an MLflow run and samples system metrics.

MLflow is slow to import and may be absent, so `uploader` imports this module when it starts and handles ImportError.
MLflow's errors pass through to `uploader`, which decides what they mean.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from PIL import Image

from distill.checkpoint.run_folder import training_run_of
from distill.tracking import journal_records
from distill.tracking.journal import one_line
from distill.tracking.journal_records import milliseconds
from distill.tracking.metric_names import present_record
from distill.tracking.page_view import GROUP, PREVIEWS, SHOWN_FIRST, VIEW_TAG, view_state
from distill.tracking.refusals import RefusedError

_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's, per call
_MAX_VALUE, _MAX_TAG, _MAX_KEY = 6000, 5000, 250  # MLflow's, in characters
_PARENT = "mlflow.parentRunId"  # MLflow's page shows runs with this tag below the run that it names
_EXTERNAL = "mlflow.model.isExternal"  # a logged model whose files are elsewhere
_EVALUATED = "evaluated_model"  # tag of an evaluation's run: the logged model that its metrics belong to
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # the same call would fail again; other errors may pass

Record = dict[str, Any]
T = TypeVar("T")


def configure(request_seconds: int) -> None:
    """Lets MLflow give up on a server after one repetition, and silences it: we report each outage once ourselves."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(request_seconds))
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)


class MlflowRun:
    """One run in the MLflow at `uri`; `run_id` is set by the caller, who finds or creates it.

    counts: receives 'refused', 'malformed', 'shortened', 'absent artifacts' and 'artifacts outside the run folder'.
    allowed: the files and folders outside the run folder that may be sent.
    """

    def __init__(
        self, uri: str, run_dir: Path, counts: Counter[str], allowed: Collection[Path], say: Callable[[str], None]
    ) -> None:
        self.run_id = ""
        self._uri, self._run_dir, self._counts, self._allowed, self._say = uri, run_dir, counts, allowed, say
        self._client = MlflowClient(uri)
        self._evaluated_model: str | None = None  # None: not looked up; "": no evaluation, or of an unknown model

    def find(self, run_id: str) -> bool:
        """Whether MLflow has the run and it is not deleted."""
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code not in (*_REFUSED, "RESOURCE_DOES_NOT_EXIST"):
                raise
            # A proxy before a server that is down answers 404 or 400 too; it cannot list experiments.
            self._client.search_experiments(max_results=1)
            return False

    def create(self, experiment: str, began: Any, parent: str) -> str:
        """Creates a run, named after the folder, and returns its id. Raises RefusedError for a deleted experiment.

        began: seconds since 1970, anything else for now. parent: id of the run that it belongs below, or ''.
        """
        run_id = self._client.create_run(
            self._experiment_id(experiment),
            start_time=milliseconds(began) if isinstance(began, float | int) else None,
            run_name=self._run_dir.name,
            tags={"run_dir": str(self._run_dir)} | ({_PARENT: parent, GROUP: parent} if parent else {}),
        ).info.run_id
        if not run_id:  # a server that answers everything with {}: records would be lost there
            raise RefusedError("what answers there is no MLflow; check host, port and path of tracking.uri")
        return str(run_id)

    def prepare_page(self) -> str:
        """Lays out the page of a training run. Returns the id of its experiment."""
        experiment = str(self._client.get_run(self.run_id).info.experiment_id)
        if training_run_of(self._run_dir) is None:
            self._client.set_tag(self.run_id, GROUP, self.run_id)
            if f"{VIEW_TAG}{self.run_id}" not in self._client.get_experiment(experiment).tags:
                self._store_view(experiment, 0)
        return experiment

    def _store_view(self, experiment: str, preview: int) -> None:
        """Lets the run's link open with its curves, and the picture of update `preview`; see page_view.py."""
        try:
            self._client.set_experiment_tag(experiment, f"{VIEW_TAG}{self.run_id}", view_state(self.run_id, preview))
        except MlflowException as error:
            if error.error_code not in (*_REFUSED, "PERMISSION_DENIED"):
                raise
            self._counts["views not stored"] += 1  # some users may write runs, and no tags of an experiment

    def send(self, journal: str, records: list[Record]) -> None:
        """Sends records of one journal, in order. Records that MLflow refuses for good are counted and left out."""
        try:
            self._send(journal, records)
        except MlflowException as error:
            if error.error_code not in _REFUSED or not self.find(self.run_id):  # a deleted run refuses everything
                raise
            if len(records) > 1:
                for record in records:
                    self.send(journal, [record])
                return
            if not self._counts["refused"]:
                self._say(f"tracking: MLflow refuses a record (it stays in {self._run_dir}): {one_line(error)}")
            self._counts["refused"] += 1

    def _send(self, journal: str, records: list[Record]) -> None:
        if journal == "params":
            for params in self._parsed(journal_records.params, records):
                self._send_params(params)
        elif journal == "status":
            for status, time in self._parsed(journal_records.status, records):
                self._send_status(status, time)
        elif journal == "artifacts":
            for artifact in self._parsed(journal_records.artifact, records):
                self._send_artifact(*artifact)
        elif journal == "notes":
            for note in self._parsed(journal_records.note, records):
                self._send_note(note)
        elif journal == "metrics":
            model = self._model_of_evaluation()
            self._log("metrics", [m for line in self._parsed(_metrics, records) for m in _shown_first(line, model)])
        else:
            self._log("metrics", [metric for line in self._parsed(_metrics, records) for metric in line])

    def _parsed(self, parse: Callable[[Record], T], records: list[Record]) -> Iterator[T]:
        """The parsed records. Those that are not what their journal holds are counted and left out."""
        for record in records:
            try:
                parsed = parse(record)
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
                self._counts["malformed"] += 1
                continue
            yield parsed

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, _artifact_location(self._uri, self._run_dir)))
            except MlflowException as error:
                found = self._client.get_experiment_by_name(name)  # another run may have been faster
                if found is None:
                    raise error
        if found.lifecycle_stage == "deleted":
            raise RefusedError(
                f"its experiment {name!r} is deleted; `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}` brings it back, or set tracking.experiment to another name"
            )
        return str(found.experiment_id)

    def _log(self, kind: str, entries: Sequence[Any]) -> None:
        """Sends metrics, params or tags, in calls of the size that MLflow allows."""
        for first in range(0, len(entries), _LIMITS[kind]):
            some: dict[str, Any] = {kind: entries[first : first + _LIMITS[kind]]}
            self._client.log_batch(self.run_id, **some)

    def _send_params(self, params: dict[str, str]) -> None:
        """A parameter of an MLflow run cannot change. A value that a resume changed becomes a tag `resumed.<name>`.

        It is said of recipe keys: what a person looks up. Others, such as the command, differ at every resume.
        """
        known = self._client.get_run(self.run_id).data.params
        self._counts["shortened"] += sum(len(value) > _MAX_VALUE for value in params.values())
        values = {_key(name): value[:_MAX_VALUE] for name, value in params.items()}
        changed = {f"resumed.{n}"[:_MAX_KEY]: v[:_MAX_TAG] for n, v in values.items() if known.get(n, v) != v}
        self._log("params", [Param(name, value) for name, value in values.items() if name not in known])
        self._log("tags", [RunTag(name, value) for name, value in changed.items()])
        if keys := [n.removeprefix("resumed.recipe.") for n in changed if n.startswith("resumed.recipe.")]:
            self._say(
                f"tracking: MLflow shows {', '.join(keys)} as it was when this run began; the value of now is a tag, "
                f"as resumed.recipe.{keys[0]}"
            )

    def _send_status(self, status: str, time: int) -> None:
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status, time)

    def _send_note(self, note: Record) -> None:
        if tags := note.get("tags"):
            self._log("tags", [RunTag(_key(name), str(value)[:_MAX_TAG]) for name, value in tags.items()])
        if data := note.get("dataset"):
            dataset = Dataset(
                data["name"], data["digest"], "local", data["source"], profile=json.dumps(data["profile"])
            )
            tags = [InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])
        if made := note.get("model"):
            model = self._logged_model(self.run_id, made)
            outputs = self._client.get_run(self.run_id).outputs  # a second record of the same would be refused
            if model.model_id not in [one.model_id for one in (outputs.model_outputs if outputs else ())]:
                self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, int(made["step"]))])
        if evaluated := note.get("evaluates"):
            parent = self._client.get_run(self.run_id).data.tags.get(_PARENT, self.run_id)
            model = self._logged_model(parent, evaluated)
            inputs = self._client.get_run(self.run_id).inputs
            if model.model_id not in [one.model_id for one in (inputs.model_inputs if inputs else ())]:
                self._client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])
            self._client.set_tag(self.run_id, _EVALUATED, model.model_id)
            self._evaluated_model = model.model_id

    def _logged_model(self, run_id: str, made: Record) -> LoggedModel:
        """The logged model of a training run's checkpoint, made where there is none. It holds no files: its tags say
        where the checkpoint is, and which artifacts of the run are its weights."""
        experiment = self._client.get_run(run_id).info.experiment_id
        for model in self._client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            if model.tags.get("checkpoint") == made["checkpoint"]:
                return model
        tags = {_EXTERNAL: "true", "checkpoint": made["checkpoint"], "path": made["path"], "step": str(made["step"])}
        if "artifacts" in made:
            tags["artifacts"] = f"runs:/{run_id}/{made['artifacts']}"
        run_dir = training_run_of(self._run_dir) or self._run_dir
        name = re.sub(r"[^\w-]+", "_", f"{run_dir.name}-{made['checkpoint']}", flags=re.ASCII)
        created = self._client.create_logged_model(experiment, name, run_id, tags=tags, model_type=made.get("type"))
        return self._client.finalize_logged_model(created.model_id, "READY")

    def _model_of_evaluation(self) -> str:
        """The id of the model that this run's metrics belong to; '' where it is no evaluation."""
        if self._evaluated_model is None:
            known = training_run_of(self._run_dir) is not None and self._client.get_run(self.run_id).data.tags
            self._evaluated_model = str(known.get(_EVALUATED, "")) if known else ""
        return self._evaluated_model

    def _send_artifact(self, path: str, folder: str, image: str, step: int, time: int) -> None:
        place = (self._run_dir / path).resolve()
        if not place.is_relative_to(self._run_dir) and place not in self._allowed:
            # A journal may come from elsewhere. It must not have any file sent that this user can read.
            self._counts["artifacts outside the run folder"] += 1
        elif image and place.is_file():
            try:
                with Image.open(place) as picture:
                    pixels = picture.convert("RGB")
            except (OSError, ValueError):  # no picture, or one that a killed process has left half written
                self._counts["malformed"] += 1
                return
            self._client.log_image(self.run_id, pixels, key=image, step=step, timestamp=time, synchronous=True)
            if image == PREVIEWS:
                self._store_view(str(self._client.get_run(self.run_id).info.experiment_id), step)
        elif place.is_dir():
            self._client.log_artifacts(self.run_id, str(place), folder or None)
        elif place.is_file():
            self._client.log_artifact(self.run_id, str(place), folder or None)
        else:  # e.g. a checkpoint that newer ones have replaced
            self._counts["absent artifacts"] += 1


def _metrics(record: Record) -> list[Metric]:
    time, step = milliseconds(record["time"]), int(record["step"])
    values = present_record(record).items()
    return [Metric(_key(n), float(value), time, step) for n, value in values if n not in ("time", "step")]


def _shown_first(metrics: list[Metric], model_id: str) -> list[Metric]:
    """The metrics of a line; of a training, with those that are to be seen first also in the section that is first. Of
    an evaluation, as metrics of the model that it evaluates."""
    if model_id:
        return [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id) for m in metrics]
    first = [m for m in metrics if m.key in SHOWN_FIRST]
    return metrics + [Metric(SHOWN_FIRST[m.key], m.value, m.timestamp, m.step) for m in first]


def _artifact_location(uri: str, run_dir: Path) -> str | None:
    """Where a new experiment keeps its files: None for a server, which has a place of its own. With a database MLflow
    would use the present folder; ours is beside an SQLite file, and beside the run folder for any other database."""
    if uri.startswith(("http://", "https://")):
        return None
    path = (
        Path(uri.removeprefix("sqlite:///")).resolve()
        if uri.startswith("sqlite:///")
        else training_run_of(run_dir) or run_dir
    )
    return (path.parent / "mlartifacts").as_uri()


def _key(name: str) -> str:
    """A name that MLflow accepts: its characters only, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:_MAX_KEY]


class SystemMonitors:
    """MLflow's collectors, whose names its page for system metrics knows. GPUs only where NVIDIA's library is there."""

    def __init__(self, counts: Counter[str], say: Callable[[str], None]) -> None:
        self._counts, self._say = counts, say
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(Exception):  # no pynvml, or no NVIDIA driver: each raises its own kind
            self._monitors.append(GPUMonitor())

    def sample(self) -> Mapping[str, float]:
        """The present values; names begin with `system/`. A monitor that fails is dropped and counted."""
        values: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            except Exception as error:  # drivers and psutil raise errors of any type
                self._monitors.remove(monitor)
                self._counts["system monitors lost"] += 1
                self._say(f"tracking: {type(monitor).__name__} is left out from here on: {one_line(error)}")
        return values
