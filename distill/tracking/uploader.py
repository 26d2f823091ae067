"""A background thread that sends the journals of a run folder to MLflow.

`tracking.json` in the run folder holds, for each MLflow, the run's id and how many bytes of each journal were sent.
During an outage the journals grow and the thread tries again, with longer pauses. A resumed run continues at the same
place of the same MLflow run. What a killed process sent without noting it is sent again: MLflow's stores ignore a
metric that they have. A run that MLflow no longer has is sent again from the beginning, as a new MLflow run.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anytext2.core.files import fsync
from distill.checkpoint.run_folder import training_run_of
from distill.tracking.journal import Journal, metric_record, one_line
from distill.tracking.refusals import RefusedError, refusal
from distill.tracking.upload_state import UploadState

if TYPE_CHECKING:
    from distill.tracking.mlflow_client import MlflowRun, SystemMonitors

JOURNALS = ("params", "notes", "metrics", "system", "status", "artifacts")
"""In the order in which they are sent. Files come last: they take longest and fail most often."""
_LINES_AT_ONCE = 200
LONGEST_PAUSE = 60.0
"""Seconds between two tries in a long outage."""


@dataclass(frozen=True)
class SendReport:
    """What was sent of a run's records. failures: failed attempts to reach MLflow. unsent: lines that are only local.
    refusal: why MLflow refuses for good and what to do; '' where it does not.

    counts: lines sent by journal; where there were any also 'refused', 'malformed', 'broken', 'shortened', 'absent
    artifacts', 'artifacts outside the run folder', 'repeated' (values of steps that a resume did again, not sent),
    'unwritten' (lines that no disk had room for), 'system monitors lost'.
    call_seconds: how long the training waited in calls of the tracker. thread_seconds: processor time of the thread.
    """

    run_id: str = ""
    failures: int = 0
    unsent: int = 0
    refusal: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    call_seconds: float = 0.0
    thread_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def cost(self) -> float:
        """Tracking's share of the run's time, at most: as if all work of the thread had held up the training."""
        return (self.call_seconds + self.thread_seconds) / max(self.wall_seconds, 1e-9)


@dataclass(frozen=True)
class Timing:
    """Seconds. send: between two batches. system: between two samples of CPU, memory, disk, network and GPU (0: none).
    connect: longest wait for MLflow at the start. request: one call to a server."""

    send: float = 5.0
    system: float = 10.0
    connect: float = 30.0
    request: int = 10


class Uploader:
    """Sends the journals of a run folder. Its methods raise nothing: failures are counted and said once an outage.

    uri: from `tracking_uri`. run_id: the MLflow run to continue where the folder knows none. state: only the holder of
    its lock sends; other processes append to the same journals and leave the sending to it. tells_rest: whether it says
    what is left at the end, why, and how to send it; False where the caller does.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        journals: Mapping[str, Journal],
        state: UploadState,
        run_id: str = "",
        say: Callable[[str], None] = print,
        timing: Timing | None = None,
        tells_rest: bool = True,
    ) -> None:
        self.allowed: set[Path] = set()  # files and folders outside the run folder that may be sent
        self._run_dir, self._uri, self._experiment, self._journals = run_dir, uri, experiment, journals
        self._state, self._given_id, self._say, self._timing = state, run_id, say, timing or Timing()
        self._tells_rest = tells_rest
        self._counts: Counter[str] = Counter()
        self._mlflow: MlflowRun | None = None  # None: not connected
        self._monitors: SystemMonitors | None = None
        self._samples, self._next_sample = 0, 0.0
        self._failures, self._thread_seconds = 0, 0.0
        self._pause, self._next_try = 0.0, 0.0  # a pause: MLflow does not answer
        self._tried, self._closing, self._deadline = threading.Event(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run, name="mlflow-uploader", daemon=True)
        self.run_id, self._sent = self._load()
        self.experiment_id = ""  # known as soon as MLflow has answered
        self._reached, self._refusal = bool(self.run_id), ""  # whether MLflow has ever answered; why it refuses

    def start(self) -> None:
        """Starts to send. Returns when MLflow has answered, has failed to, or has taken `timing.connect` seconds."""
        # Imported here and not in the thread: two threads that import large packages at once can block each other.
        try:
            from distill.tracking.mlflow_client import SystemMonitors, configure
        except ImportError as error:
            self._failures += 1
            self._say(f"tracking: MLflow cannot be imported ({error}); records stay in {self._run_dir}")
            return
        configure(self._timing.request)
        if self._timing.system:
            self._monitors = SystemMonitors(self._counts, self._say)
            step = self._journals["system"].last().get("step")
            self._samples = step if isinstance(step, int) else 0
        self._thread.start()
        self._tried.wait(self._timing.connect)

    def finish(self, timeout: float, patient: bool = False) -> SendReport:
        """Sends the rest, within `timeout` seconds. After a failure it gives up; if `patient`, after a refusal only."""
        if self._thread.is_alive():
            self._deadline = time.monotonic() + timeout if patient else 0.0
            self._closing.set()
            self._thread.join(timeout)
        unsent = self._unsent()
        if unsent and self._state.acquire():
            if self._tells_rest:
                other = ", with --uri or --experiment where those are wrong," if self._refusal else ""
                self._say(
                    f"tracking: {unsent} records did not reach MLflow ({self._uri}); they are in {self._run_dir}, "
                    f"and `python launch/sync_tracking.py {self._run_dir}`{other} sends them"
                )
        elif unsent:
            self._say(f"tracking: {unsent} records are left to {self._state.holder()}, which sends for {self._run_dir}")
        counts = dict(+self._counts.copy())  # without the zeros; the thread may still add to it
        return SendReport(
            self.run_id, self._failures, unsent, self._refusal, counts, thread_seconds=self._thread_seconds
        )

    # --- the thread ---

    def _run(self) -> None:
        self._attempt(self._connect)
        self._tried.set()
        while not self._closing.wait(self._timing.send):
            self._sample_system()
            if time.monotonic() >= self._next_try:
                self._attempt(self._send_all)
            self._thread_seconds = time.thread_time()
        while not self._attempt(self._send_all) and not self._refusal and time.monotonic() < self._deadline:
            time.sleep(min(1.0, self._timing.send))
        self._thread_seconds = time.thread_time()

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether this process may send and the action succeeded. Its errors are counted, said and tried again."""
        held = self._state.held
        if not self._state.acquire():
            return False
        if not held:  # another process may have sent meanwhile
            self.run_id, self._sent = self._load()
        try:
            action()
        except Exception as error:  # network, database and MLflow errors have no common base
            self._report_failure(error)
            self._failures += 1
            self._mlflow = None  # connect again: the run may be gone
            self._pause = min(2 * max(self._pause, self._timing.send), LONGEST_PAUSE)
            self._next_try = time.monotonic() + self._pause
            return False
        if self._pause:
            self._say(f"tracking: MLflow ({self._uri}) answers again")
        self._pause, self._next_try, self._refusal = 0.0, 0.0, ""
        return True

    def _report_failure(self, error: Exception) -> None:
        """Says the first failure of an outage, and each new reason of a refusal, which may follow an outage."""
        before, self._refusal = self._refusal, refusal(error, self._reached)
        if self._refusal and self._refusal != before and self._tells_rest:
            self._say(
                f"tracking: MLflow ({self._uri}) cannot be used: {self._refusal}; records stay in {self._run_dir}"
            )
        elif not self._refusal and not self._pause:
            self._say(
                f"tracking: MLflow ({self._uri}) does not answer, records stay in {self._run_dir}: {one_line(error)}"
            )

    def _connect(self) -> None:
        from distill.tracking.mlflow_client import MlflowRun

        mlflow = MlflowRun(self._uri, self._run_dir, self._counts, self.allowed, self._say)
        if self.run_id and not mlflow.find(self.run_id):
            self._say(f"tracking: MLflow ({self._uri}) has no run {self.run_id}; a new one begins, with all records")
            self.run_id, self._sent = "", {}
        if not self.run_id:
            began = next(self._journals["params"].all(), {}).get("time")
            self.run_id = mlflow.create(self._experiment, began, self._parent_id())
            self._state.store(self._uri, self.run_id, self._sent)
        mlflow.run_id = self.run_id
        self.experiment_id = mlflow.prepare_page()
        self._mlflow, self._reached = mlflow, True

    def _parent_id(self) -> str:
        """The id of the training run that an evaluation belongs below; '' for a training run."""
        parent = training_run_of(self._run_dir)
        if parent is None:
            return ""
        known = UploadState(parent, self._say).load(self._uri)
        if known is None:
            raise RefusedError(f"it does not know the training run {parent} yet, which is to be sent first")
        return known[0]

    def _send_all(self) -> None:
        if self._mlflow is None:
            self._connect()
        assert self._mlflow is not None
        for name, journal in self._journals.items():
            while True:
                begin = self._sent.get(name, 0)
                records, end, broken = journal.read(begin, _LINES_AT_ONCE)
                if end == begin:
                    break
                fsync(journal.path)  # after a power cut, MLflow must not know more than the journal
                self._mlflow.send(name, records)
                self._sent[name] = end
                self._state.store(self._uri, self.run_id, self._sent)
                self._counts.update({name: len(records), "broken": broken})

    def _sample_system(self) -> None:
        if self._monitors and time.monotonic() >= self._next_sample:
            self._next_sample = time.monotonic() + self._timing.system
            if values := self._monitors.sample():
                self._samples += 1  # MLflow's own step of such metrics too
                self._journals["system"].append(metric_record(values, self._samples))

    def _load(self) -> tuple[str, dict[str, int]]:
        return self._state.load(self._uri) or (self._given_id, {})

    def _unsent(self) -> int:
        return sum(journal.count(self._sent.get(name, 0)) for name, journal in self._journals.items())


def tracking_uri(run_dir: Path, uri: str) -> str:
    """`uri`, or where it is empty the SQLite store `mlflow.db` beside the folder of the training run."""
    return uri or f"sqlite:///{(training_run_of(run_dir) or run_dir).parent / 'mlflow.db'}"


def open_journals(run_dir: Path, say: Callable[[str], None]) -> dict[str, Journal]:
    return {name: Journal(run_dir / f"{name}.jsonl", say) for name in JOURNALS}
