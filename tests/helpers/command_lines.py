"""The command lines of the console scripts: their parsers, reached without the heavy imports."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

_NAMED = re.findall(
    r'^(anytext2-[\w-]+) = "anytext2_distill\.([\w.]+):main"$',
    (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
    re.MULTILINE,
)
SCRIPTS = {name: ROOT / f"{module.replace('.', '/')}.py" for name, module in _NAMED}
"""Name of each console script, and its file."""


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


def load_command(script: Path) -> Command:
    """Runs the script up to its command line, which comes before the heavy imports."""
    before = signal.getsignal(signal.SIGINT)
    found: list[Command] = []

    def reach(method: str) -> Any:
        def parse(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
            found.append(Command(script, parser, method))
            raise ParserReached

        return parse

    with pytest.MonkeyPatch.context() as patched:
        for method in ("parse_args", "parse_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, method, reach(method))
        patched.setattr(sys, "argv", [str(script)])
        with contextlib.suppress(ParserReached):
            runpy.run_path(str(script), run_name="__main__")
    signal.signal(signal.SIGINT, before)
    assert found, f"{script} does not parse its command line first"
    return found[0]
