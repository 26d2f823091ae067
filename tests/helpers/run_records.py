"""What a run folder says about its run: the metrics, and the samples that the newest weights come from."""

from __future__ import annotations

from pathlib import Path

from distill.tracking import metric_names
from distill.tracking.journal import Journal
from distill.training.sample_log import NAME


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines of metrics.jsonl, values as floats. A run that was killed and resumed has each step once."""
    return [{name: float(value) for name, value in record.items()} for record in metric_names.read_metrics(run_dir)]


def lineage(run_dir: Path) -> dict[int, list[tuple[int, int]]]:
    """Global batch -> sorted (epoch, index) of the samples that the newest weights come from.

    What a killed run did after the checkpoint that it was resumed from does not count.
    """
    starts: dict[int, int] = {}  # of rank 0, in the order of its file: a clock may have been set back in between
    shares: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for path in sorted(run_dir.glob(NAME.format("*"))):
        session = 0
        for record in Journal(path).all():
            if "session" in record:
                session = record["session"]
                if path.name == NAME.format(0):
                    starts[session] = record["after"]
            else:
                done = shares.setdefault(session, {}).setdefault(record["batch"], [])
                done.extend((epoch, index) for epoch, index in record["samples"])
    batches: dict[int, list[tuple[int, int]]] = {}
    for session, after in starts.items():
        batches = {batch: samples for batch, samples in batches.items() if batch <= after}
        batches |= {batch: sorted(samples) for batch, samples in shares.get(session, {}).items()}
    return batches
