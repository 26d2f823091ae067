"""File names in run folders, and where evaluations are: below the training run whose checkpoint they measured."""

from __future__ import annotations

from pathlib import Path

EVALUATIONS = "evaluations"
RECIPE = "recipe.yaml"
RUN_INFO = "run.json"
"""What the run found out about itself: ranks, precision, shard sizes, MLflow run id."""


def training_run_of(folder: Path) -> Path | None:
    """The training run that an evaluation's folder belongs to; None for the folder of a training run."""
    above = folder.resolve().parent
    return above.parent if above.name == EVALUATIONS and (above.parent / RECIPE).is_file() else None


def evaluation_folders(run_dir: Path) -> list[Path]:
    """The folders of a run's evaluations."""
    return sorted(path for path in (run_dir / EVALUATIONS).glob("*") if path.is_dir())
