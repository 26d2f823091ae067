"""`--help` of every console script: each option is described and tells its default, and an example ends it."""

from __future__ import annotations

import argparse
import shlex

import pytest

from launch.common.command_help import command_parser, has_default
from tests.helpers.command_lines import SCRIPTS, Command, load_command
from tests.helpers.paths import ROOT


@pytest.fixture(params=sorted(SCRIPTS))
def command(request: pytest.FixtureRequest) -> Command:
    return load_command(SCRIPTS[request.param])


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
