"""Calls a command of the user's when a run ends, stops or is in trouble (`tracking.notify`)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Event = Literal["finished", "stopped", "trouble"]
COMMAND_SECONDS = 30.0
"""How long the command may take."""


def require_command(notify: str) -> None:
    """Raises ValueError where `tracking.notify` names no command of this machine."""
    words = shlex.split(notify)
    if words and shutil.which(words[0]) is None:
        raise ValueError(
            f"tracking.notify='{notify}': there is no command {words[0]} here; give its full path, or leave it empty"
        )


class Notifier:
    """Runs the command in threads, so that nothing waits for it. A failure is counted and the first one is said.

    The command gets a JSON object on standard input, and ANYTEXT2_EVENT, ANYTEXT2_RUN and ANYTEXT2_MESSAGE in its
    environment. It runs without a shell, in a session of its own: Ctrl-C does not reach it.
    """

    def __init__(self, command: str, run_dir: Path, say: Callable[[str], None] = print) -> None:
        self._words, self._run_dir, self._say = shlex.split(command), run_dir.absolute(), say
        self._threads: list[threading.Thread] = []
        self.failures = 0

    def __call__(self, event: Event, message: str, **facts: Any) -> None:
        """Returns at once."""
        if self._words:
            content = {"event": event, "run": str(self._run_dir), "message": message, "time": time.time(), **facts}
            thread = threading.Thread(target=self._run, args=(content,), name="notify", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, seconds: float = COMMAND_SECONDS) -> None:
        """Waits for commands that run, before the process ends."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self, content: dict[str, Any]) -> None:
        names = {f"ANYTEXT2_{name.upper()}": str(content[name]) for name in ("event", "run", "message")}
        try:
            done = subprocess.run(
                self._words,
                input=json.dumps(content, ensure_ascii=False).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | names,
                timeout=COMMAND_SECONDS,
                start_new_session=True,
            )
            failure = f"exit code {done.returncode} {done.stderr.decode(errors='replace').strip()[:200]}"
            failed = done.returncode != 0
        except (OSError, subprocess.SubprocessError) as error:
            failure, failed = str(error), True
        if failed:
            self.failures += 1
            if self.failures == 1:
                self._say(f"tracking.notify: {self._words[0]} did not take {content['event']!r}: {failure.strip()}")
