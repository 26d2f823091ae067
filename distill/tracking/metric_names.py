"""The names of metrics: one section before the first '/', as MLflow groups charts.

    train/    what the objective and the optimizer report, `train/loss` first of all
    eval/     what the validation reads, `eval/exact_match` first of all
    speed/    samples a second, seconds of evaluations, checkpoints and previews
    health/   skipped updates, loss scale, checkpoints that failed
    system/   memory and disk

Journals of earlier versions have other names. `OLD_NAMES` says what each of them is called now, and everything that
reads or sends a journal goes through `present_name`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.tracking.journal import Journal

METRICS_FILE = "metrics.jsonl"
LOSS, SPELLING, SPEED = "train/loss", "eval/exact_match", "speed/samples_per_second"
SECTIONS = ("train/", "eval/", "speed/", "health/", "system/")
VARYING = ("speed/", "system/", "health/checkpoint_failures")
"""Beginnings of names whose values differ from run to run where everything else is equal."""

OLD_NAMES = {
    **{
        name: f"train/{name}"
        for name in (
            *("loss", "distance", "teacher_distance", "loss_student", "loss_fake", "loss_plain", "loss_text"),
            *("l1", "sobel", "kl", "latent_std", "lines", "lines_skipped", "learning_rate", "grad_norm"),
        )
    },
    "samples_per_second": SPEED,
    **{name: f"health/{name}" for name in ("loss_scale", "skipped_updates", "checkpoint_failures")},
    **{
        name: f"system/{name}"
        for name in (
            *("host_memory_gib", "host_memory_available_gib", "tree_rss_gib", "disk_free_gib"),
            *("device_memory_peak_gib", "device_memory_free_gib"),
        )
    },
}
"""Names of earlier versions, and what they are called now."""
_OLD_SECTIONS = ("term/", "optimizer/")  # now train/term_NAME, train/optimizer_NAME


def present_name(name: str) -> str:
    """The name that is used now for one of a journal; any other name is returned as it is."""
    if name.startswith(_OLD_SECTIONS):
        return f"train/{name.replace('/', '_')}"
    return OLD_NAMES.get(name, name)


def sectioned(values: Mapping[str, float]) -> dict[str, float]:
    """The values of a run by their metric names. What an objective reports under a name of its own is in `train/`."""
    present = {present_name(name): value for name, value in values.items()}
    return {n if n.startswith(SECTIONS) else f"train/{n.replace('/', '_')}": value for n, value in present.items()}


def present_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl, old or new, by the names of now."""
    return {present_name(name): value for name, value in record.items()}


def read_metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl by the names of now, whichever version has written them; none without a file.

    Values are numbers, or the words 'nan', 'inf' and '-inf', which `float` takes; `time` and `step` are among them.
    """
    return (present_record(record) for record in Journal(run_dir / METRICS_FILE).all())


def is_varying(name: str) -> bool:
    """Whether the values differ between two runs that learn the same: times, speeds and memory."""
    return name in ("time", "step") or name.startswith(VARYING)
