"""tracking.json: which MLflow runs a run folder has become, and how far each of its journals was sent to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.checkpoint.store import write_text_atomically

STATE = "tracking.json"


class UploadState:
    """The file of one run folder: {"targets": {URI: {"run_id", "sent": {journal: bytes}}}}."""

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = run_dir / STATE, say
        self._failing = self._unreadable = False

    def load(self, uri: str) -> tuple[str, dict[str, int]] | None:
        """The run's id in the MLflow at `uri` and how far each journal was sent; None where nothing is known."""
        state = self._targets().get(uri)
        return None if state is None else (state["run_id"], dict(state["sent"]))

    def store(self, uri: str, run_id: str, sent: Mapping[str, int]) -> None:
        """Writes it down. Where that fails (disk full) it is said once: then only this process knows."""
        targets = self._targets() | {uri: {"run_id": run_id, "sent": dict(sent)}}
        try:
            write_text_atomically(self._path, json.dumps({"targets": targets}, indent=1) + "\n")
        except OSError as error:
            if not self._failing:
                self._say(f"tracking: {self._path} cannot be written ({error.strerror}); sending goes on")
            self._failing = True
            return
        self._failing = False

    def _targets(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if "uri" in content:  # as it was written when a folder knew one MLflow only
                content = {"targets": {content["uri"]: content}}
            targets = dict(content["targets"])
            for state in targets.values():
                offsets = state["sent"].values()
                if not (isinstance(state["run_id"], str) and all(isinstance(n, int) and n >= 0 for n in offsets)):
                    raise TypeError
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if not self._unreadable:
                self._say(f"tracking: {self._path} is not readable; the run is sent to MLflow from its beginning")
            self._unreadable = True
            return {}
        return targets
