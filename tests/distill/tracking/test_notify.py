"""tracking.notify: the user's command is told how a run ends, and nothing waits for it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from distill.config.schema import TrackingConfig
from distill.tracking.notify import Notifier, require_command


def test_the_command_gets_json_and_variables(tmp_path: Path) -> None:
    script = tmp_path / "hook.sh"
    script.write_text('#!/bin/sh\ncat > "$1"\necho "$ANYTEXT2_EVENT $ANYTEXT2_RUN: $ANYTEXT2_MESSAGE" > "$1.env"\n')
    script.chmod(0o755)
    out = tmp_path / "a file"
    notify = Notifier(f"{script} '{out}'", tmp_path / "run")
    notify("finished", "update 3 is made", update=3)
    notify.wait()
    content = json.loads(out.read_text())
    assert (content["event"], content["update"], content["run"]) == ("finished", 3, str(tmp_path / "run"))
    assert Path(f"{out}.env").read_text() == f"finished {tmp_path / 'run'}: update 3 is made\n"
    assert notify.failures == 0


def test_a_command_that_fails_is_counted_and_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    notify = Notifier(f"{sys.executable} -c 'raise SystemExit(\"no mail\")'", tmp_path, said.append)
    for _ in range(2):
        notify("trouble", "nothing")
    notify.wait()
    assert notify.failures == 2 and len(said) == 1 and "no mail" in said[0]


def test_nothing_waits_for_a_slow_command(tmp_path: Path) -> None:
    notify = Notifier("sleep 5", tmp_path)
    began = time.monotonic()
    notify("stopped", "SIGTERM")
    notify.wait(0.05)
    assert time.monotonic() - began < 2.0
    Notifier("", tmp_path)("finished", "nobody is told")


def test_a_wrong_command_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="tracking.notify='no-such-command x': there is no command no-such-command"):
        require_command("no-such-command x")
    with pytest.raises(ValueError, match='tracking.notify="echo \'x": No closing quotation'):
        TrackingConfig(notify="echo 'x")
    require_command("")
