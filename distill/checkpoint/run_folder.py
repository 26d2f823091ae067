"""File names in run folders, and where evaluations are: below the training run whose checkpoint they measured."""

from __future__ import annotations

import shutil
from pathlib import Path

EVALUATIONS = "evaluations"
RECIPE = "recipe.yaml"
"""What a checkpoint was trained with, in its folder; in a run folder, the recipe of the last command that trained."""
RUN_INFO = "run.json"
"""What the run found out about itself: ranks, precision, shard sizes, MLflow run id."""


def recipe_of(checkpoint: Path) -> Path | None:
    """The recipe that a checkpoint was trained with: its own file, else its run's; None where there is neither.

    Checkpoints that were written before they had a file of their own have the run's.
    """
    return next((path for folder in (checkpoint, checkpoint.parent) if (path := folder / RECIPE).is_file()), None)


def keep_recipes(run_dir: Path) -> None:
    """Before the run's recipe is replaced: copies it to the checkpoints that have none of their own."""
    if (run_dir / RECIPE).is_file():
        for checkpoint in run_dir.glob("checkpoint-*"):
            if not (checkpoint / RECIPE).exists():
                shutil.copyfile(run_dir / RECIPE, checkpoint / RECIPE)


def training_run_of(folder: Path) -> Path | None:
    """The training run that an evaluation's folder belongs to; None for the folder of a training run."""
    above = folder.resolve().parent
    return above.parent if above.name == EVALUATIONS and (above.parent / RECIPE).is_file() else None


def evaluation_folders(run_dir: Path) -> list[Path]:
    """The folders of a run's evaluations."""
    return sorted(path for path in (run_dir / EVALUATIONS).glob("*") if path.is_dir())
