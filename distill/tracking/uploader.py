"""A background thread that carries a run's journals to MLflow, whatever MLflow does meanwhile.

How far each journal has been sent stands in tracking.json of the run folder, for each MLflow that it was sent to. While
one does not answer, the journals grow and the thread tries again, with longer pauses; a resumed run continues at the
same place in the same MLflow run. What a killed process sent without noting it is sent again: MLflow's stores ignore a
metric that they have. A run that MLflow no longer knows is sent again from the beginning, into a new one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.checkpoint.run_folder import training_run_of
from distill.tracking.journal import Journal, metric_record
from distill.tracking.mlflow_client import (
    MlflowRun,
    SystemMonitors,
    Target,
    import_mlflow,
    is_gone,
    is_refusal,
    one_line,
)
from distill.tracking.upload_lock import UploadLock
from distill.tracking.upload_state import UploadState

JOURNALS = ("params", "metrics", "system", "status", "artifacts")
"""In the order in which they are sent: files last, because they take longest and have most ways to fail."""
_LINES_AT_ONCE = 200
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class SendReport:
    """What became of a run's records. failures: attempts that MLflow did not answer; unsent: lines still only local."""

    run_id: str = ""
    failures: int = 0
    unsent: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """Lines by journal that were sent; where there were any: 'refused', 'malformed', 'broken', 'shortened', 'absent
    artifacts', 'artifacts outside the run folder', 'repeated' (values of steps done again after a resume, not sent),
    'unwritten' (lines that no disk had room for), 'system monitors lost'."""
    call_seconds: float = 0.0
    """What the training waited for its calls of the tracker."""
    thread_seconds: float = 0.0
    """Processor time of the background thread."""
    wall_seconds: float = 0.0

    @property
    def cost(self) -> float:
        """Tracking's share of the run's time, at most: as if all of the thread's work had held up the training."""
        return (self.call_seconds + self.thread_seconds) / max(self.wall_seconds, 1e-9)


@dataclass(frozen=True)
class Timing:
    """Seconds. send: between two batches. system: between two samples of CPU, memory, disk, network and GPU (0: none).
    connect: what the start may wait for MLflow. request: one call to a server."""

    send: float = 5.0
    system: float = 10.0
    connect: float = 30.0
    request: int = 10


class Uploader:
    """Sends the journals of a run folder. Nothing here raises: failures are counted, and said once an outage.

    run_id: MLflow run to continue where the folder does not know one. lock: only its holder sends; the others' lines
    are sent by the holder, which reads the same journals.
    """

    def __init__(
        self,
        run_dir: Path,
        target: Target,
        journals: Mapping[str, Journal],
        lock: UploadLock,
        run_id: str = "",
        say: Callable[[str], None] = print,
        timing: Timing | None = None,
    ) -> None:
        assert set(journals) == set(JOURNALS)
        self.counts: Counter[str] = Counter()
        self.thread_seconds = 0.0
        self._run_dir, self._target, self._journals = run_dir, target, journals
        self._lock, self._first_id, self._say, self._timing = lock, run_id, say, timing or Timing()
        self._state = UploadState(run_dir, say)
        self._run_id, self._sent = self._stored()
        self._mlflow: MlflowRun | None = None
        self._monitors: SystemMonitors | None = None
        self._outside: set[Path] = set()
        self._failures, self._in_outage = 0, False
        self._pause, self._next_try, self._next_sample = self._timing.send, 0.0, 0.0
        self._samples = 0
        self._tried, self._closing, self._deadline = threading.Event(), threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run, name="mlflow-outbox", daemon=True)

    @property
    def run_id(self) -> str:
        return self._run_id

    def start(self) -> None:
        """Begins to send; returns when MLflow has answered, has failed to, or has taken too long."""
        # Imported here and not in the thread: two threads that import large packages at once can lock each other out.
        try:
            import_mlflow(self._timing.request)
        except ImportError as error:
            self._failures += 1
            self._say(f"tracking: MLflow cannot be imported ({error}); records stay in {self._run_dir}")
            return
        if self._timing.system:
            self._monitors = SystemMonitors(self._say)
            self._samples = last_steps(self._journals["system"]).get("", 0)
        self._thread.start()
        self._tried.wait(self._timing.connect)

    def allow(self, path: Path) -> None:
        """Lets a file or folder outside the run folder be copied to MLflow."""
        self._outside.add(path)

    def finish(self, timeout: float, patient: bool = False) -> SendReport:
        """Sends the rest; waits `timeout` seconds at most. An MLflow that fails at once is left alone, or, where
        `patient`, tried again until then."""
        if self._thread.is_alive():
            self._deadline = time.monotonic() + timeout if patient else 0.0
            self._closing.set()
            self._thread.join(timeout)
        unsent = self._unsent()
        if unsent and self._lock.acquire():
            self._say(
                f"tracking: {unsent} records did not reach MLflow ({self._target.uri}); they are in {self._run_dir}, "
                f"and `python launch/sync_tracking.py {self._run_dir}` sends them"
            )
        elif unsent:
            self._say(f"tracking: {unsent} records are left to {self._lock.holder()}, which sends for {self._run_dir}")
        if not self._thread.is_alive():
            self._lock.release()
        counts = {name: count for name, count in self.counts.items() if count}
        return SendReport(self.run_id, self._failures, unsent, counts, thread_seconds=self.thread_seconds)

    # --- the thread ---

    def _run(self) -> None:
        self._attempt(self._connect)
        self._tried.set()
        while not self._closing.wait(self._timing.send):
            self._sample_system()
            if time.monotonic() >= self._next_try:
                self._attempt(self._send_all)
            self.thread_seconds = time.thread_time()
        while not self._attempt(self._send_all) and time.monotonic() < self._deadline:
            time.sleep(min(1.0, self._timing.send))
        self.thread_seconds = time.thread_time()

    def _attempt(self, action: Callable[[], None]) -> bool:
        """One exchange with MLflow. Whatever it raises concerns tracking only: it is counted, said, and tried again."""
        if not self._may_send():
            return False
        try:
            action()
        except Exception as error:  # network, database and MLflow errors have no common base
            self._failures += 1
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next_try = time.monotonic() + self._pause
            if is_gone(error):
                self._mlflow = None  # look for the run again
            if not self._in_outage:
                self._in_outage = True
                self._say(
                    f"tracking: MLflow ({self._target.uri}) does not answer, records stay in {self._run_dir}: "
                    f"{one_line(error)}"
                )
            return False
        if self._in_outage:
            self._in_outage = False
            self._say(f"tracking: MLflow ({self._target.uri}) answers again")
        self._pause, self._next_try = self._timing.send, 0.0
        return True

    def _may_send(self) -> bool:
        had = self._lock.held
        if not self._lock.acquire():
            return False
        if not had:  # somebody else may have sent since tracking.json was read
            self._run_id, self._sent = self._stored()
        return True

    def _connect(self) -> None:
        run = MlflowRun(self._target, self._run_dir, self.counts, self._outside.__contains__)
        if self._run_id and not run.find(self._run_id):
            self._say(
                f"tracking: MLflow ({self._target.uri}) has no run {self._run_id}; a new one begins, with all records"
            )
            self._run_id, self._sent = "", {}
        if not self._run_id:
            first, _, _ = self._journals["params"].read(limit=1)
            began = first[0].get("time") if first else None
            self._run_id = run.create(began if isinstance(began, float | int) else None, self._parent_id())
            self._note()
        self._mlflow = run

    def _parent_id(self) -> str:
        """The training run that an evaluation belongs below, as this MLflow knows it; '' for a training run."""
        parent = training_run_of(self._run_dir)
        if parent is None:
            return ""
        known = UploadState(parent, self._say).load(self._target.uri)
        if known is None:
            raise ConnectionError(f"it does not know the training run {parent} yet, which is to be sent first")
        return known[0]

    def _send_all(self) -> None:
        if self._mlflow is None:
            self._connect()
        for name in JOURNALS:
            journal = self._journals[name]
            while True:
                begin = self._sent.get(name, 0)
                if begin > journal.size():  # cut or replaced since; MLflow ignores what it has already
                    begin = 0
                records, end, broken = journal.read(begin, _LINES_AT_ONCE)
                if end == begin:
                    break
                journal.sync()  # after a power cut, MLflow must not know more than the journal
                self._deliver(name, records)
                self._sent[name] = end
                self._note()
                self.counts.update({name: len(records), "broken": broken})

    def _deliver(self, name: str, records: list[dict[str, Any]]) -> None:
        """Sends the records; if MLflow refuses them for good, one by one, so that only the faulty ones are left out."""
        assert self._mlflow is not None
        try:
            self._mlflow.send(name, records)
        except Exception as error:
            if not is_refusal(error):
                raise
            if not self._mlflow.find(self._run_id):
                self._mlflow = None  # deleted meanwhile
                raise
            if len(records) > 1:
                for record in records:
                    self._deliver(name, [record])
                return
            if not self.counts["refused"]:
                self._say(f"tracking: MLflow refuses a record (it stays in {self._run_dir}): {one_line(error)}")
            self.counts["refused"] += 1

    def _sample_system(self) -> None:
        if self._monitors is None or time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + self._timing.system
        values = self._monitors.sample()
        self.counts["system monitors lost"] = self._monitors.lost
        if values:
            self._samples += 1  # MLflow's own step of such metrics too
            self._journals["system"].append(metric_record(values, self._samples))

    # --- state ---

    def _unsent(self) -> int:
        return sum(journal.count(self._sent.get(name, 0)) for name, journal in self._journals.items())

    def _stored(self) -> tuple[str, dict[str, int]]:
        return self._state.load(self._target.uri) or (self._first_id, {})

    def _note(self) -> None:
        self._state.store(self._target.uri, self._run_id, self._sent)


def last_steps(journal: Journal) -> dict[str, int]:
    """The last step at which each metric stands in a journal; under '' the last step of all."""
    last: dict[str, int] = {}
    for record in journal.all():
        step = record.get("step")
        if isinstance(step, int):
            for name in ("", *record):
                last[name] = max(step, last.get(name, step))
    return last


def default_target(run_dir: Path, uri: str, experiment: str) -> Target:
    """The server or database that `uri` names; where it is empty, the SQLite store `mlflow.db` beside the run folder.

    A server has its own place for artifacts. With a database MLflow would put them under the present folder; they go
    beside an SQLite file, and beside the run folder for any other database. An evaluation goes where its training is.
    """
    run_dir = training_run_of(run_dir) or run_dir
    uri = uri or f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    if uri.startswith(("http://", "https://")):
        return Target(uri, experiment)
    home = Path(uri.removeprefix("sqlite:///")).resolve().parent if uri.startswith("sqlite:///") else run_dir.parent
    return Target(uri, experiment, (home / "mlartifacts").as_uri())


def open_journals(run_dir: Path, say: Callable[[str], None]) -> dict[str, Journal]:
    return {name: Journal(run_dir / f"{name}.jsonl", say) for name in JOURNALS}
