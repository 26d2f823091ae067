"""What one process does with a signal, and how it knows its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distill.runtime.processes import ProcessId, describe_exit, find_launchers, identify
from distill.runtime.signals import STOPPED, Stopped, summarize_reasons
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.process

# --- signals to one process ---

PRELUDE = """
import ctypes, os, signal, sys, time
from distill.runtime.signals import install_signal_handlers, install_worker_signal_handlers
stop = install_signal_handlers()
def say(text):
    print(text, flush=True)
"""


def start_script(body: str) -> subprocess.Popen[str]:
    script = subprocess.Popen([sys.executable, "-c", PRELUDE + body], cwd=ROOT, text=True, stdout=-1, stderr=-1)
    assert script.stdout is not None and script.stdout.readline() == "ready\n"
    return script


def ends_with(script: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = script.communicate(timeout=60)
    assert script.returncode == code, (out, err)
    return out, err


def test_what_is_imported_before_the_handlers_are_installed_is_light() -> None:
    names = [f"distill.runtime.{name}" for name in ("signals", "processes", "host_memory")]
    check = f"import sys, {', '.join(names)}; print({{'torch', 'numpy', 'deepspeed'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_at_the_start_ends_at_once_and_is_no_failure(number: signal.Signals) -> None:
    script = start_script("say('ready'); time.sleep(60)")
    script.send_signal(number)
    _, err = ends_with(script, STOPPED)
    expected = f"stopped at the start by {number.name}: nothing to save; continue with the same command\n"
    assert err == expected


STUCK = """
stop.defer_to_step_boundary()
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
say('ready')
lock(mutex)  # for ever, in C, as a collective whose other ranks have gone
"""


def test_repeated_signals_are_one_wish_and_a_later_one_ends_even_a_stuck_process() -> None:
    script = start_script(STUCK)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):  # a launcher repeats what the group has received
        script.send_signal(number)
        time.sleep(0.3)
    time.sleep(3.0)
    assert script.poll() is None
    script.send_signal(signal.SIGTERM)
    _, err = ends_with(script, 128 + signal.SIGTERM)
    assert err == "ended at once by SIGTERM, the second signal\n"


HEARING = """
stop.defer_to_step_boundary()
assert install_signal_handlers() is stop and not stop.reason
say('ready')
while not stop.reason:
    time.sleep(0.02)
say(stop.reason)
stop.ignore_signals()
say('deaf')
sys.stdin.readline()
"""


def test_the_first_signal_is_the_reason_and_after_the_checkpoint_there_are_none() -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + HEARING], cwd=ROOT, text=True, stdin=-1, stdout=-1, stderr=-1
    )
    assert script.stdout is not None and script.stdout.readline() == "ready\n"
    script.send_signal(signal.SIGUSR1)
    assert [script.stdout.readline(), script.stdout.readline()] == ["SIGUSR1\n", "deaf\n"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        script.send_signal(number)
    out, err = script.communicate("\n", timeout=60)
    assert (script.returncode, out, err) == (0, "", "")


WORKER = """
stop.defer_to_step_boundary()
if (pid := os.fork()) == 0:
    install_worker_signal_handlers()
    say('ready')
    time.sleep(1.5)
    os._exit(7)
time.sleep(0.5)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    os.kill(pid, number)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), repr(stop.reason))
"""


def test_a_loader_s_worker_outlives_the_signals_of_its_group_and_does_not_pass_them_on() -> None:
    out, _ = ends_with(start_script(WORKER), 0)
    assert out == "7 ''\n"


def test_the_launcher_and_its_runner_are_recognised_and_their_end_is_seen(tmp_path: Path) -> None:
    runner = tmp_path / "deepspeed"
    runner.write_text("import subprocess, sys; subprocess.run(sys.argv[1:])")
    rank = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    launcher = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]])"
    words = [sys.executable, str(runner), sys.executable, "-c", launcher, "deepspeed.launcher.launch", rank]
    with subprocess.Popen(words, text=True, stdout=-1) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        above = find_launchers(pid)
        try:
            assert [p.pid for p in above] == [psutil.Process(pid).ppid(), started.pid]
            assert find_launchers(started.pid) == []  # a shell, a test runner: its end means nothing
            assert [describe_exit(p) for p in above] == [None, None]
            started.terminate()
            deadline = time.monotonic() + 20
            while describe_exit(above[1]) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert describe_exit(above[1]) == "was killed by SIGTERM"  # nobody has asked for its result yet
            assert describe_exit(above[0]) is None
        finally:
            psutil.Process(pid).kill()


def test_a_process_number_used_again_is_another_process() -> None:
    me = identify(os.getpid())
    assert me is not None and describe_exit(me) is None
    assert describe_exit(ProcessId(me.pid, me.start - 1)) == "has ended"


def test_the_line_says_who_was_asked_by_what() -> None:
    assert summarize_reasons(["", "SIGUSR1"]) == "SIGUSR1 (rank 1)"
    assert summarize_reasons(["SIGTERM", "SIGTERM"]) == "SIGTERM"
    assert summarize_reasons(["SIGTERM", "SIGINT", ""]) == "SIGTERM (rank 0) and SIGINT (rank 1)"
    stopped = str(Stopped(7, "SIGUSR1 (rank 1)", Path("runs/a/checkpoint-7")))
    assert stopped == (
        "stopped at update 7 by SIGUSR1 (rank 1): checkpoint runs/a/checkpoint-7; continue with the same command"
    )
