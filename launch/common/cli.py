"""What the commands share: errors and exit codes, Ctrl-C, checks of output paths. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2
"""Exit code: the command, a file or a value is wrong."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def is_command(module: str) -> bool:
    """Whether the module of this name is what the user started, as a script or by its console script.

    If so, Ctrl-C ends the process in one line from here on, also during the imports that follow.
    """
    if module != "__main__" and not Path(sys.argv[0]).name.startswith("anytext2-"):
        return False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have told it to ignore Ctrl-C
        signal.signal(signal.SIGINT, _interrupted_early)
    return True


def _interrupted_early(number: int, frame: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def run_command(
    work: Callable[[], int | None],
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
    interrupted: str = "interrupted",
) -> int:
    """The exit code of `work`, None counting as 0. One of `errors` becomes one line on stderr, and exit code 2.

    Ctrl-C becomes the line `interrupted`, and exit code 130.
    """
    alone = signal.getsignal(signal.SIGINT) is _interrupted_early
    if alone:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work() or 0
    except errors as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        if alone:  # an impatient second Ctrl-C ends what is left to do at once
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
        print(interrupted, file=sys.stderr, flush=True)
        return INTERRUPTED


def one_line(error: Exception) -> str:
    """The error's message in one line; of an error of the operating system, the file and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def require_output_folder(folder: Path, option: str) -> None:
    """Raises ValueError, naming the option, where the folder cannot be made or written. Makes nothing itself."""
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"{option} {folder}: {place} is a file; name a folder")
        with tempfile.TemporaryFile(dir=place):  # permissions do not tell of read-only and special file systems
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot be written ({place}: {error.strerror}); name another") from error


def require_output_file(file: Path, option: str) -> None:
    """Raises ValueError, naming the option, where no such file can be written. Makes nothing itself."""
    if file.is_dir():
        raise ValueError(f"{option} {file}: is a folder; name a file")
    require_output_folder(file.parent, option)


def int_list(text: str) -> list[int]:
    """The type of an option as in `1,2,4,8`."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers are needed, as in 1,2,4,8") from error


def float_list(text: str) -> list[float]:
    """The type of an option as in `0,0.5,1`."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers are needed, as in 0,0.5,1") from error


def require_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raises ValueError where one of the options is given and smaller. A list is checked number by number."""
    for name in names:
        given = getattr(args, name.replace("-", "_"))
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: must be at least {least}")
