"""launch/oom_guard.py around real commands: exit codes, signals, limits, and nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from distill.runtime.signals import STOPPED
from launch import oom_guard
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.process

GUARD = [sys.executable, "launch/oom_guard.py"]
ENOUGH = ["--min-available-gb", "0.01", "--interval", "0.1", "--grace", "3"]


def start(command: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    words = [*GUARD, *(options or ENOUGH), "--", "bash", "-c", command]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(words, cwd=ROOT, env=variables, text=True, stdout=-1, stderr=-1, preexec_fn=_hear)


def _hear() -> None:
    """A test run in the background is deaf to SIGINT, under nohup to SIGHUP, and so would be everything it starts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(guard: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = guard.communicate(timeout=60)
    assert guard.returncode == code, (out, err)
    return out, err


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def first_line(guard: subprocess.Popen[str]) -> str:
    assert guard.stdout is not None
    return guard.stdout.readline().strip()


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_the_command_s_exit_code_is_passed_on(command: str, code: int) -> None:
    assert finish(start(command), code) == ("", "")


def test_a_command_that_is_not_there_is_127() -> None:
    done = subprocess.run([*GUARD, *ENOUGH, "no-such-command"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        127,
        "oom_guard: no-such-command: cannot be started: No such file or directory\n",
    )


def test_signals_reach_everything_in_the_group() -> None:
    names = ["USR1", "USR2", "HUP", "INT"]
    traps = "; ".join(f"trap 'echo {name}' {name}" for name in names)
    child = f"{traps}; echo ready; while kill -0 $PPID; do sleep 0.05; done"
    guard = start(
        f"trap 'echo TERM; exit' TERM; {traps}; bash -c \"$CHILD\" & while :; do sleep 0.05; done", CHILD=child
    )
    assert first_line(guard) == "ready"
    for name in names:
        guard.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.5)
    guard.kill()  # the guard itself: the command gets SIGTERM
    heard = guard.communicate(timeout=60)[0].split()
    # Without job control a shell's background processes ignore SIGINT.
    assert [heard.count(name) for name in names] == [2, 2, 2, 1] and heard[-1] == "TERM", heard


def test_the_end_by_a_signal_that_was_handed_on() -> None:
    guard = start("trap 'exit 75' USR1; echo ready; while :; do sleep 0.05; done")
    assert first_line(guard) == "ready"
    guard.send_signal(signal.SIGUSR1)
    finish(guard, 75)


def test_a_signal_that_the_command_shall_ignore_stays_ignored() -> None:
    """As `env --ignore-signal=USR1` asks for, around DeepSpeed's launcher."""
    words = ["env", "--ignore-signal=USR1", *GUARD, *ENOUGH, "--", "bash", "-c", "echo ready; sleep 1; exit 4"]
    guard = subprocess.Popen(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=-1
    )
    assert first_line(guard) == "ready"
    guard.send_signal(signal.SIGUSR1)
    finish(guard, 4)


def test_too_little_memory_ends_the_command_in_good_order() -> None:
    # The host has not that much available; all it has would be refused as impossible.
    limit = str(psutil.virtual_memory().total / 2**30 - 0.01)
    guard = start("trap 'echo asked; exit 0' TERM; while :; do sleep 0.05; done", "--min-available-gb", limit)
    out, err = finish(guard, STOPPED)
    assert "GiB available of " in err and "SIGTERM to the command" in err
    assert out in ("asked\n", "")  # the trap may not stand yet


def test_a_command_that_holds_too_much_and_does_not_listen_is_killed_with_all_it_started() -> None:
    eater = "import signal, os, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); "
    eater += "a = bytearray(150 << 20); time.sleep(60)"
    guard = start(f'setsid "{sys.executable}" -c "{eater}" & wait', *ENOUGH, "--max-tree-gb", "0.1")
    pid = int(first_line(guard))
    _, err = finish(guard, STOPPED)
    assert re.search(r"the command holds 0\.[12]\d GiB, --max-tree-gb 0\.1: SIGTERM", err), err
    assert not lives(pid)


def test_what_a_finished_command_leaves_behind_is_ended() -> None:
    guard = start("setsid sleep 300 & echo $!; sleep 0.3; exit 5")
    pid = int(first_line(guard))
    _, err = finish(guard, 5)
    assert "left processes behind" in err and not lives(pid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--min-available-gb 1000000 -- true", "has "),
        ("--min-available-gb 0 -- true", "--min-available-gb 0.0: must be above 0"),
        ("--min-available-gb 1 --max-tree-gb -1 -- true", "--max-tree-gb -1.0: must be above 0"),
        ("--min-available-gb 1", "no command"),
    ],
)
def test_mistakes_are_one_line(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        oom_guard.parse(options.split())
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_the_documented_commands_are_understood() -> None:
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith(".venv/bin/python launch/oom_guard.py")]
    assert commands
    for command in commands:
        args = oom_guard.parse([w.replace("-gb=8", "-gb=0.5") for w in shlex.split(command)[2:]])
        assert args.command[0] == ".venv/bin/deepspeed"
