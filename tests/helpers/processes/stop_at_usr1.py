"""A rank that stops in good order at SIGUSR1: python -S stop_at_usr1.py READY [seconds]; with `seconds`, only then.

(A shell cannot play it: what it was started to ignore, it cannot hear.)
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

heard: list[int] = []


def main() -> int:
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(sys.argv[1]).touch()
    deadline = time.monotonic() + float(sys.argv[2]) if sys.argv[2:] else float("inf")
    while time.monotonic() < deadline and (sys.argv[2:] or not heard):
        time.sleep(0.02)
    print(f"heard {len(heard)}", flush=True)
    return 75


if __name__ == "__main__":
    raise SystemExit(main())
