"""launch/slurm/supervise.sh without SLURM: a command under it, signals to the script, what it asks `scontrol` for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.process

RANK = f"{sys.executable} -S {ROOT / 'tests/helpers/processes/stop_at_usr1.py'} {{ready}}"
# What `deepspeed` is: a runner that knows nothing of signals above the rank that does.
UNDER_A_RUNNER = "{rank} & wait $!"


class Job:
    """A job script that runs `command`, started; the signals go to the script as SLURM sends them."""

    def __init__(self, folder: Path, command: str, **environment: str) -> None:
        self.folder, self.ready = folder, folder / "ready"
        for name in ("scontrol", "sbatch"):
            stub = folder / name
            stub.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/asked\nexit ${{REFUSED:-0}}\n')
            stub.chmod(0o755)
        script = folder / "job.sh"
        run = 'supervise env --ignore-signal=USR1 bash -c "$COMMAND"'
        script.write_text(f'source launch/slurm/supervise.sh\nschedule_next "$0" recipe.yaml\n{run}\nfinish\n')
        self.process = subprocess.Popen(
            ["bash", str(script)],
            cwd=ROOT,
            env=os.environ
            | {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "name", "PATH": f"{folder}:{os.environ['PATH']}"}
            | {"COMMAND": command.format(rank=RANK.format(ready=self.ready), ready=self.ready), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def signal(self, *numbers: signal.Signals) -> None:
        """Sends them, one after the other, as soon as the command is ready for them."""
        deadline = time.monotonic() + 60
        while not self.ready.exists():
            assert time.monotonic() < deadline and self.process.poll() is None, "the command did not start"
            time.sleep(0.02)
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """The exit code, and what was printed."""
        job = psutil.Process(self.process.pid)
        started = [job, *job.children(recursive=True)]
        try:
            said, _ = self.process.communicate(timeout=60)
        finally:
            for process in started:
                if process.is_running():
                    process.kill()
        return self.process.returncode, said

    @property
    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_the_job_ends_with_the_run_s_code(tmp_path: Path, code: int) -> None:
    job = Job(tmp_path, f"exit {code}")
    assert job.end() == (code, f"job 7: the run ended with exit code {code}\n") and job.asked == []


@pytest.mark.parametrize("command", ["{rank}", UNDER_A_RUNNER])
def test_the_warning_reaches_the_ranks_and_the_job_is_queued_again(tmp_path: Path, command: str) -> None:
    """Under the runner the whole group hears it; the runner itself does not die of it, and brings the code home."""
    job = Job(tmp_path, command, SLURM_RESTART_COUNT="3")
    job.signal(signal.SIGUSR1)
    code, said = job.end()
    assert code == 75 and "USR1: asking the run to stop" in said
    assert "queueing it again (restart 4 of at most 20)" in said and job.asked == ["scontrol requeue 7"]


def test_the_ranks_hear_one_signal_however_many_come(tmp_path: Path) -> None:
    """A second one would make them leave without a checkpoint."""
    job = Job(tmp_path, "{rank} 2")
    job.signal(signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR1)
    code, said = job.end()
    assert code == 75 and "heard 1" in said and job.asked == ["scontrol requeue 7"]


def test_a_job_that_is_ended_on_purpose_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "{rank}")
    job.signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 75 and "stopped in good order by TERM; not queued again" in said and job.asked == []


@pytest.mark.parametrize(("limit", "restarts"), [("2", "2"), ("0", "0")])
def test_the_limit_of_restarts(tmp_path: Path, limit: str, restarts: str) -> None:
    job = Job(tmp_path, "exit 75", SLURM_RESTART_COUNT=restarts, ANYTEXT2_MAX_REQUEUES=limit)
    code, said = job.end()
    assert code == 75 and f"{restarts} restarts, ANYTEXT2_MAX_REQUEUES={limit}" in said and job.asked == []


def test_a_refused_requeue_is_said(tmp_path: Path) -> None:
    code, said = Job(tmp_path, "exit 75", REFUSED="1").end()
    assert code == 75 and "scontrol requeue refused" in said


def test_a_runner_that_says_0_over_living_ranks_is_a_failure(tmp_path: Path) -> None:
    """So ends deepspeed's runner when its launcher was killed."""
    job = Job(tmp_path, "{rank} & until [ -e {ready} ]; do sleep 0.05; done; exit 0", ANYTEXT2_TIDY="2")
    code, said = job.end()
    assert code == 1 and "before its ranks" in said and "exit code 1" in said


def test_a_schedule_goes_on_but_not_twice_for_one_job(tmp_path: Path) -> None:
    every = {"ANYTEXT2_EVERY": "24hours"}
    first = Job(tmp_path, "exit 0", **every)
    assert first.end()[0] == 0
    (asked,) = first.asked
    assert asked == f"sbatch --parsable --begin=now+24hours --job-name=name {tmp_path / 'job.sh'} recipe.yaml"
    again = Job(tmp_path, "exit 0", SLURM_RESTART_COUNT="1", **every)
    assert again.end()[0] == 0 and again.asked == [asked]
