"""What the tests ask SLURM: submit, look at a job, wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from launch.slurm import submit
from tests.helpers.paths import ROOT

HERE = Path(__file__).parent
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE")


def slurm(*command: str) -> str:
    """What a command of SLURM prints; raises where it fails."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@dataclass(frozen=True)
class Place:
    """A folder for jobs and their runs. bin: what stands in for deepspeed and python, where it is not None."""

    folder: Path
    bin: Path | None

    def submit(self, recipe: Path, *words: str, **environment: str) -> str:
        """The number of a new job; `words` as on submit.py's command line."""
        own = [str(recipe), "--cpus", "1", "--logs", str(self.folder), *words, f"run_root={self.folder / 'runs'}"]
        bin = self.bin or Path(sys.executable).parent
        with patch.dict(os.environ, {"ANYTEXT2_BIN": str(bin), "PYTHONPATH": str(ROOT), **environment}):
            return submit.submit(submit.script_of(submit.parse(own)))

    def events(self, name: str, what: str = "") -> list[dict[str, Any]]:
        """What the stand-in wrote down in run `name`."""
        path = self.folder / "runs" / name / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if what in ("", event["what"])]

    def log(self, name: str, job: str) -> str:
        path = self.folder / f"{name}-{job}.log"
        return path.read_text() if path.exists() else "(no log)"


def stand_in_place(folder: Path) -> Place:
    """A place where `deepspeed` is a runner that knows nothing of signals, with the stand-in as its child."""
    bin = folder / "bin"
    bin.mkdir(parents=True)
    words = 'for word in "$@"; do case $word in train.max_steps=*) set -- "$@" "max_steps=${word#*=}" ;; esac; done\n'
    runner = f'#!/usr/bin/env bash\n{words}"{sys.executable}" -S "{HERE / "stand_in.py"}" "$@" &\nwait $!\n'
    for name in ("deepspeed", "python"):
        (bin / name).write_text(runner)
        (bin / name).chmod(0o755)
    return Place(folder, bin)


def job(number: str) -> dict[str, str]:
    """The fields of `scontrol show job`."""
    words = slurm("scontrol", "--oneliner", "show", "job", number).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """What `condition` returns as soon as it is true. Raises TimeoutError, saying `what`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{slurm('squeue', '--long')}")
        time.sleep(0.5)
    return found


def hurried(number: str) -> dict[str, str]:
    """The job's fields; a requeued one is made to wait for three seconds instead of SLURM's two minutes.

    In the very second of its requeue a node would refuse it: "Job credential revoked".
    """
    fields = job(number)
    waits = fields["JobState"] == "PENDING" and fields["Reason"] == "BeginTime" and fields["Restarts"] != "0"
    if waits and datetime.fromisoformat(fields["EligibleTime"]) > datetime.now() + timedelta(seconds=10):
        slurm("scontrol", "update", f"jobid={number}", "starttime=now+3")
    return fields


def ended(number: str, seconds: float = 180.0) -> dict[str, str]:
    """The job's fields once it has ended."""

    def look() -> dict[str, str] | None:
        fields = hurried(number)
        return fields if fields["JobState"] in ENDED else None

    return wait_for(look, f"the end of job {number}", seconds)  # type: ignore[no-any-return]
