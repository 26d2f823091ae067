"""`--help` of every console script: each option is described and tells its default, and an example ends it."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.common.command_help import command_parser, has_default
from tests.helpers.paths import ROOT

SCRIPTS = dict(
    re.findall(
        r'^(anytext2-[\w-]+) = "anytext2_distill\.([\w.]+):main"$',
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)
"""Name of each console script, and its module."""


@dataclass(frozen=True)
class Command:
    """A console script's parser, and the name of the method that it parses with."""

    script: Path
    parser: argparse.ArgumentParser
    method: str

    def parse(self, words: list[str]) -> argparse.Namespace:
        parsed: argparse.Namespace = getattr(self.parser, self.method)(words)
        return parsed


class ParserReached(Exception):
    """Raised in place of parsing."""


def load_command(script: Path, patch: pytest.MonkeyPatch) -> Command:
    """Runs the script up to its command line, which comes before the heavy imports."""
    found: list[Command] = []

    def reach(method: str) -> Any:
        def parse(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
            found.append(Command(script, parser, method))
            raise ParserReached

        return parse

    with patch.context() as patched:
        for method in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, method, reach(method))
        patched.setattr(sys, "argv", [str(script)])
        with contextlib.suppress(ParserReached):
            runpy.run_path(str(script), run_name="__main__")
    assert found, f"{script} does not parse its command line first"
    return found[0]


@pytest.fixture(params=sorted(SCRIPTS))
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    before = signal.getsignal(signal.SIGINT)
    try:
        yield load_command(ROOT / f"{SCRIPTS[request.param].replace('.', '/')}.py", monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def test_every_console_script_is_looked_at() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.scripts]")[1].split("\n[")[0]
    assert len(SCRIPTS) == sum("=" in line and not line.startswith("#") for line in text.splitlines()) > 10


def test_each_option_is_described_and_tells_its_default(command: Command) -> None:
    formatter = command.parser._get_formatter()
    for action in command.parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        name = "/".join(action.option_strings) or action.dest
        assert action.help, f"{command.script.name} {name}: has no help"
        said = formatter._expand_help(action)
        if has_default(action):
            assert "default" in said or str(action.default) in said, f"{command.script.name} {name}: {said}"


def test_the_example_is_the_command_and_can_be_parsed(command: Command) -> None:
    lines = [line for line in (command.parser.epilog or "").splitlines() if line.startswith("example: ")]
    assert lines, f"{command.script.name}: its epilog needs 'example: python launch/...'"
    words = shlex.split(lines[0].removeprefix("example: "))
    name = str(command.script.relative_to(ROOT))
    assert words[0] in ("python", "deepspeed") and name in words, words
    arguments = words[words.index(name) + 1 :]
    assert arguments, f"{command.script.name}: the example should show an option"
    command.parse(arguments)
    assert lines[0] in command.parser.format_help(), "the epilog is shown as it is written"


def test_a_default_is_added_where_the_help_does_not_tell_it() -> None:
    parser = command_parser("What it does.", "python launch/x.py 100%", "A note.\n  indented")
    parser.add_argument("--count", type=int, default=0, help="of pictures")
    parser.add_argument("--told", default="a", help="default: as in training")
    parser.add_argument("--switch", action="store_true", help="on")
    parser.add_argument("--none", help="nothing")
    shown = parser.format_help()
    assert "of pictures; default: 0\n" in shown and "default: as in training\n" in shown
    assert " on\n" in shown and " nothing\n" in shown
    assert shown.endswith("example: python launch/x.py 100%\n\nA note.\n  indented\n")
