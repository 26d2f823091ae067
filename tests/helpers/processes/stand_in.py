"""Takes the place of launch/train.py where only the job's shell around it is tested: the same arguments and exit codes.

It "trains" max_steps steps of a fifth of a second, keeps a state as a checkpoint would be kept, stops at SIGUSR1 with
75, and writes when it started and ended into the run folder. STAND_IN_CODE: end at once with this code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

stop: list[int] = []


def main() -> int:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda received, frame: stop.append(received))
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    folder = Path(words["run_root"]) / words["name"]
    folder.mkdir(parents=True, exist_ok=True)
    note(folder, "start", argv=sys.argv[1:], restarts=os.environ.get("SLURM_RESTART_COUNT", "0"))
    code = int(os.environ["STAND_IN_CODE"]) if "STAND_IN_CODE" in os.environ else train(folder, int(words["max_steps"]))
    note(folder, "end", code=code)
    return code


def train(folder: Path, max_steps: int) -> int:
    state = folder / "state.json"
    step = json.loads(state.read_text()) if state.exists() else 0
    while step < max_steps:
        time.sleep(0.2)
        step += 1
        if stop or step % 10 == 0 or step == max_steps:
            temporary = folder / f".state-{os.getpid()}"  # the tasks of several nodes share the folder
            temporary.write_text(json.dumps(step))
            temporary.replace(state)
        if stop:
            note(folder, "stop", step=step, signals=stop)
            return 75
    return 0


def note(folder: Path, what: str, **facts: object) -> None:
    with (folder / "events.jsonl").open("a") as events:
        events.write(json.dumps({"what": what, "time": time.time(), "job": os.environ["SLURM_JOB_ID"], **facts}) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
