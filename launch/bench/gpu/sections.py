"""A benchmark in sections: each has a limit of its own, is written down when it ends, and may fail alone."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

Values = dict[str, Any]

AGAIN_SECONDS = 15.0


class OutOfTime(BaseException):
    """A section has used up its seconds. No Exception, so that a compiler does not take it for an error of its own."""


@dataclass(frozen=True)
class Section:
    """measure: fills the dictionary that it is given, row by row, so that what was measured before an error stays.

    seconds: its limit. needs_cuda: it is left out elsewhere.
    """

    name: str
    seconds: float
    measure: Callable[[Values], None]
    needs_cuda: bool = False


def run_sections(
    sections: Sequence[Section],
    results: Values,
    path: Path,
    total_seconds: float,
    device: torch.device,
    after_error: Callable[[], None] = lambda: None,
) -> None:
    """Runs the sections in order, and writes `results` to `path` after each.

    results["sections"][name]: seconds, error (empty where there was none), values. after_error: called after a section
    that did not end, which may have left anything behind.
    """
    end = time.monotonic() + total_seconds
    results["sections"] = {}
    for section in sections:
        values: Values = {}
        limit, began, error = min(section.seconds, end - time.monotonic()), time.monotonic(), ""
        if section.needs_cuda and device.type != "cuda":
            error = "needs CUDA"
        elif limit < 1.0:
            error = f"left out: the {total_seconds:.0f} s of all sections were used up"
        else:
            error = _attempt(section, values, limit)
            if error:
                after_error()
            _free(device)
        seconds = round(time.monotonic() - began, 2)
        results["sections"][section.name] = {"seconds": seconds, "error": error, "values": values}
        print(f"{section.name}: {seconds:.1f} s" + (f", {error}" if error else ""), flush=True)
        write_json(path, results)


def _attempt(section: Section, values: Values, limit: float) -> str:
    """Runs a section; returns why it did not end, in one line."""
    try:
        with time_limit(limit):
            section.measure(values)
    except OutOfTime:
        return f"stopped after its {limit:.0f} s"
    except Exception as error:  # whatever it was, the other sections go on
        return one_line(error)
    return ""


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its text."""
    return f"{type(error).__name__}: {without_paths(str(error))[:200]}"


def without_paths(text: str) -> str:
    """The text in one line without absolute paths, which name the machine."""
    return " ".join(word for word in text.split() if not word.lstrip("\"'(<").startswith("/"))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime inside the block after so many seconds. Main thread only.

    It is raised again where a library has made another error of it.
    """

    def stop(_: int, __: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write_json(path: Path, results: Values) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
