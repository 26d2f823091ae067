"""Runs a command and stops it before the host runs out of memory: `oom_guard.py --min-available-gb 8 -- COMMAND...`.

Exit code: the command's (128 + n where signal n ended it), 75 where this guard stopped it, 2 for a wrong option, 126 or
127 where the command cannot be started. Signals are forwarded to every process that the command has started.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from distill.runtime.host_memory import process_tree, read_memory, tree_memory
from distill.runtime.processes import become_subreaper, die_with_parent
from distill.runtime.signals import STOPPED
from launch.common.command_help import command_parser

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
POLL_SECONDS = 0.1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        "Stop a command before the host runs out of memory. GB here are GiB.",
        "python launch/oom_guard.py --min-available-gb 8 -- deepspeed launch/train.py --deepspeed zero2.json",
    )
    parser.add_argument("--min-available-gb", type=float, required=True, help="of the host, or of the cgroup's limit")
    parser.add_argument("--max-tree-gb", type=float, help="resident memory of the command and all it has started")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two readings")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what is run")
    args = parser.parse_args(argv)
    args.command = args.command[1:] if args.command[:1] == ["--"] else args.command
    for name in ("min_available_gb", "interval", "grace"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be above 0")
    if args.max_tree_gb is not None and not args.max_tree_gb > 0:
        parser.error(f"--max-tree-gb {args.max_tree_gb}: must be above 0")
    if not args.command:
        parser.error("no command: oom_guard.py --min-available-gb 8 -- deepspeed launch/train.py ...")
    memory = read_memory()
    if args.min_available_gb >= memory.total:
        parser.error(f"--min-available-gb {args.min_available_gb:g}: {memory.where} has {memory.total:.1f} in all")
    return args


class GuardedCommand:
    """A command in a process group of its own, with all its descendants.

    ignored: signals that the command shall ignore, as it would without this guard.
    """

    def __init__(self, command: Sequence[str], ignored: Sequence[signal.Signals] = ()) -> None:
        def in_child() -> None:
            os.setpgid(0, 0)
            die_with_parent(signal.SIGTERM)  # if this guard is killed
            for number in FORWARDED_SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        # Orphans become children of this process, so that none is lost.
        become_subreaper()
        self._process = subprocess.Popen(command, preexec_fn=in_child)
        self.code: int | None = None
        """The command's exit code, once it has ended."""

    def is_running(self) -> bool:
        """Whether any process is left; waits for those that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._process.pid:
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                self.code = code if code >= 0 else 128 - code

    def resident_gib(self) -> float:
        """Resident memory of the command and its descendants."""
        return tree_memory(child.pid for child in psutil.Process().children())

    def signal(self, number: int) -> None:
        """Sends a signal to the process group and to descendants that have left it."""
        outside = [p for p in self._tree() if _group(p.pid) != self._process.pid]
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        for process in outside:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL until no process is left: one may start others while it is being killed."""
        while self.is_running():
            self.signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _tree(self) -> list[psutil.Process]:
        return process_tree(child.pid for child in psutil.Process().children())


def watch(
    guarded: GuardedCommand, received: list[int], exceeded: Callable[[], str | None], interval: float, grace: float
) -> int:
    """Waits until all processes have ended; returns the exit code.

    received: signals to forward, filled by a handler. exceeded: returns the limit that is exceeded, or None, and is
    called every `interval` seconds. grace: seconds between SIGTERM and SIGKILL.
    """
    stopped = forwarded = False
    next_reading, deadline = 0.0, math.inf
    while guarded.is_running():
        now = time.monotonic()
        while received:
            guarded.signal(received.pop(0))
            forwarded = True
        if now > deadline:
            guarded.kill()
            break
        if guarded.code is not None and deadline == math.inf:
            deadline = now + grace
            if not forwarded:
                _say(f"the command has ended and left processes behind: SIGTERM to them, SIGKILL after {grace:g} s")
                guarded.signal(signal.SIGTERM)
        if not stopped and guarded.code is None and now >= next_reading:
            next_reading = now + interval
            if reason := exceeded():
                _say(f"{reason}: SIGTERM to the command, SIGKILL after {grace:g} s")
                stopped, deadline = True, now + grace
                guarded.signal(signal.SIGTERM)
        time.sleep(min(POLL_SECONDS, interval))
    assert guarded.code is not None
    return STOPPED if stopped else guarded.code


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    def exceeded_limit() -> str | None:
        memory = read_memory()
        if memory.available < args.min_available_gb:
            return (
                f"{memory.available:.2f} GiB available of {memory.where}, --min-available-gb {args.min_available_gb:g}"
            )
        if args.max_tree_gb is not None and (resident := guarded.resident_gib()) > args.max_tree_gb:
            return f"the command holds {resident:.2f} GiB, --max-tree-gb {args.max_tree_gb:g}"
        return None

    received: list[int] = []
    ignored = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    for number in FORWARDED_SIGNALS:
        signal.signal(number, lambda caught, frame: received.append(caught))
    try:
        guarded = GuardedCommand(args.command, ignored)
    except OSError as error:
        _say(f"{args.command[0]}: cannot be started: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    return watch(guarded, received, exceeded_limit, args.interval, args.grace)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _say(line: str) -> None:
    print(f"oom_guard: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
