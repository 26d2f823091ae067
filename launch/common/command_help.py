"""The help of every command: each option with its default, and one example at the end. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any


class HelpWithDefaults(argparse.RawDescriptionHelpFormatter):
    """Adds the default of each option whose help does not tell it. Texts before and after the options stay as written.

    An option without a value of its own (None, False, nothing, an empty list) has no default to tell.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        described = action.help or ""
        if not has_default(action) or "default" in described or described == argparse.SUPPRESS:
            return described
        return f"{described}; default: %(default)s"


def has_default(action: argparse.Action) -> bool:
    """Whether the option has a value of its own where the command line does not give one."""
    default: Any = action.default
    is_empty = default is None or default is False or (isinstance(default, str | list | tuple) and not default)
    return bool(action.option_strings) and not is_empty and default != argparse.SUPPRESS


def command_parser(description: str, example: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help ends with the example, a command line as a user types it, and with `epilog` after it."""
    ending = "\n\n".join(part for part in (example and f"example: {example}", epilog) if part)
    return argparse.ArgumentParser(description=description, epilog=ending, formatter_class=HelpWithDefaults)
