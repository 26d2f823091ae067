"""How a run stands, as its folder tells another process: the lines of launch/status.py."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.checkpoint.run_folder import RECIPE
from distill.checkpoint.run_lock import lock_holder
from distill.config.recipes import load_recipe
from distill.config.schema import Recipe
from distill.tracking.journal import Journal
from distill.tracking.metric_names import LOSS, SPEED, SPELLING, read_metrics
from distill.tracking.progress import duration, read_progress

SQUEUE_SECONDS = 5.0
_PICTURES = ("previews/*.png", "sheet.png", "audit.png")


@dataclass(frozen=True)
class Standing:
    """holder: the process that trains in the folder, '' where none does. metrics: newest value of each name, with the
    update that it belongs to. status: RUNNING, FINISHED, FAILED or KILLED, as the run itself recorded it."""

    run_dir: Path
    recipe: Recipe
    holder: str
    progress: dict[str, Any]
    metrics: dict[str, tuple[float, int]]
    status: str
    checkpoints: list[int]
    best: str
    pictures: list[Path]

    @property
    def update(self) -> int:
        """The newest update that is known of."""
        logged = max((step for _, step in self.metrics.values()), default=0)
        return max(logged, *self.checkpoints, int(self.progress.get("update", 0)), 0)

    def value(self, name: str) -> float | None:
        return self.metrics[name][0] if name in self.metrics else None


def require_run(run_dir: Path) -> None:
    """Raises ValueError where the folder is not a training run's."""
    if not (run_dir / RECIPE).is_file():
        what = "is no folder of a run" if run_dir.is_dir() else "there is no such folder"
        raise ValueError(f"{run_dir}: {what} (it would have a {RECIPE}); name one, as in runs/demo")


def read_standing(run_dir: Path) -> Standing:
    """Reads a run folder. Raises ValueError where it is none."""
    require_run(run_dir)
    newest: dict[str, tuple[float, int]] = {}
    for record in read_metrics(run_dir):
        step = int(record["step"])
        newest |= {name: (float(value), step) for name, value in record.items() if name not in ("time", "step")}
    numbers = [path.name.removeprefix("checkpoint-") for path in run_dir.glob("checkpoint-*") if path.is_dir()]
    best = run_dir / "best"
    return Standing(
        run_dir,
        load_recipe(run_dir / RECIPE),
        lock_holder(run_dir),
        read_progress(run_dir),
        newest,
        str(Journal(run_dir / "status.jsonl").last().get("status", "")),
        sorted(int(number) for number in numbers if number.isdigit()),
        best.read_text(encoding="utf-8").split()[0] if best.is_file() else "",
        [path for name in _PICTURES for path in sorted(run_dir.glob(name))[-1:]],
    )


def standing_lines(now: Standing) -> Iterator[str]:
    """What a person reads, the most important first."""
    yield _where(now)
    yield from _results(now)
    yield from _resources(now)
    saved = f"checkpoint-{now.checkpoints[-1]}" if now.checkpoints else "no checkpoint yet"
    yield f"saved: {saved}" + (f"; best {now.best}" if now.best else "")
    if now.pictures:
        yield f"pictures: {', '.join(str(path) for path in now.pictures)}"
    if page := now.progress.get("page"):
        yield f"MLflow: {page}"
    yield _next_signal(now)
    if job := now.progress.get("slurm_job"):
        yield from _slurm(str(job))


def _where(now: Standing) -> str:
    last = now.recipe.train.max_steps
    place = f"update {now.update} of {last} ({100 * now.update / last:.1f} %)"
    if not now.holder:
        ended = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed", "RUNNING": "was killed"}
        return f"{now.run_dir}: {ended.get(now.status, 'has not trained yet')}, {place}"
    phase = now.progress.get("phase", "starting")
    ago = time.time() - now.progress["time"] if "time" in now.progress else 0.0
    return f"{now.run_dir}: {phase}, {place}, written {duration(ago)} ago by {now.holder}"


def _results(now: Standing) -> Iterator[str]:
    found = [
        f"{label} {value:{digits}} at update {now.metrics[name][1]}"
        for name, label, digits in ((LOSS, "loss", ".5f"), (SPELLING, "spelling", ".3f"), ("eval/ned", "NED", ".3f"))
        if (value := now.value(name)) is not None
    ]
    if found:
        yield "; ".join(found)
    skipped, failed = now.value("health/skipped_updates"), now.value("health/checkpoint_failures")
    if skipped or failed:
        yield f"trouble: {skipped or 0:.0f} skipped updates, {failed or 0:.0f} checkpoints that could not be written"


def _resources(now: Standing) -> Iterator[str]:
    if speed := now.value(SPEED):
        line = f"speed: {speed:.1f} samples/s, {now.recipe.train.effective_batch / speed:.2f} s an update"
        if now.holder and "seconds_left" in now.progress:
            left = max(now.progress["seconds_left"] - (time.time() - now.progress["time"]), 0.0)
            at = time.strftime("%a %H:%M", time.localtime(time.time() + left))
            line += f"; ends in {duration(left)}, {at}"
            line += f", without {now.progress['not_counted']}" if now.progress.get("not_counted") else ""
        yield line
    names = {
        "system/tree_rss_gib": "held by the run",
        "system/host_memory_available_gib": "left on the host",
        "system/device_memory_peak_gib": "peak on GPU 0",
        "system/device_memory_free_gib": "free on the GPU",
        "system/disk_free_gib": "free on the disk",
    }
    found = [f"{value:.1f} GiB {what}" for name, what in names.items() if (value := now.value(name)) is not None]
    if found:
        yield f"memory: {', '.join(found)}"


def _next_signal(now: Standing) -> str:
    newest = now.checkpoints[-1] if now.checkpoints else 0
    if not now.holder:
        goes_on = f"goes on from checkpoint-{newest}" if newest else "begins from the start"
        return f"at the next signal: nothing, no process trains here; the same command {goes_on}"
    if now.progress.get("phase") is None:
        return "at the next signal: the process ends at once, as it has not begun to train (exit code 75)"
    lost = now.update - newest
    since = f"checkpoint-{newest}" if newest else "the start"
    return (
        f"at the next signal (SIGTERM, SIGINT, SIGUSR1): update {now.update + 1} is finished and saved, exit code 75, "
        "and the same command goes on; a second signal more than 3 s later ends it at once, and what was learned since "
        f"{since} ({lost} update{'s' * (lost != 1)}) is lost"
    )


def _slurm(job: str) -> Iterator[str]:
    """State and time left of a job, where squeue answers; and how to stop it with a checkpoint."""
    try:
        command = ["squeue", "--noheader", "--jobs", job, "--format", "%T, %L left"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_SECONDS)
        state = done.stdout.strip() or "not in the queue any more"
    except (OSError, subprocess.SubprocessError):
        state = "squeue does not answer here"
    yield f"SLURM job {job}: {state}; `scancel --signal=USR1 {job}` stops it with a checkpoint"
