"""Writes checkpoints in a background thread, from a snapshot that training hands over. Rank 0 has one writer.

At most one write is in flight. An error of the disk (full, read-only, over quota) is printed and counted; the next
checkpoint tries again, and older checkpoints stay. Any other error is raised in the training, by the next `submit` or
`wait`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from distill.checkpoint.store import save_checkpoint


class CheckpointWriter:
    """failures: checkpoints that could not be written. last_failure: why the last one could not, "" where it could."""

    def __init__(self, run_dir: Path, keep: int, failures: int = 0, say: Callable[[str], None] | None = None) -> None:
        self.run_dir, self.failures, self.last_failure = run_dir, failures, ""
        self._keep = keep
        self._say = say or (lambda line: print(line, flush=True))
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, step: int, write: Callable[[Path], None], note: str = "", best_score: float | None = None) -> None:
        """Begins to write `checkpoint-<step>` through `write(folder)`, after the one in flight.

        `write` runs in another thread: nothing that training changes may be reached from it. note: for the line that
        tells of the complete checkpoint. best_score: given where it is the best so far, which is kept.
        """
        self.wait()
        # Not a daemon: a training that ends with an error still completes the checkpoint in flight.
        self._thread = threading.Thread(
            target=self._run, args=(step, write, note, best_score), name="checkpoint-writer"
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is in flight. Raises what the writing raised, the disk's own errors apart."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, write: Callable[[Path], None], note: str, best_score: float | None) -> None:
        began = time.perf_counter()
        try:
            path = save_checkpoint(self.run_dir, step, write, self._keep, best_score)
            megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        except OSError as error:
            self.failures += 1
            self.last_failure = f"checkpoint-{step}: {error.strerror or error}"
            self._say(
                f"warning: {self.run_dir}: {self.last_failure}; not written ({self.failures} so far), older ones are "
                "untouched; training goes on and tries again at the next interval"
            )
        except BaseException as error:  # raised again where the training waits for it
            self._error = error
        else:
            self.last_failure = ""
            seconds = time.perf_counter() - began
            self._say(f"checkpoint: {path} ({megabytes:.1f} MB in {seconds:.2f} s{note})")
