"""Records an evaluation in MLflow, as a run below the training run that made the checkpoint.

Its journals and copies of its files lie in `RUN/evaluations/evaluation-N` and are sent like those of a training, so an
MLflow outage loses nothing. `launch/sync_tracking.py RUN` sends the rest of a run and of its evaluations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from distill.checkpoint.run_folder import EVALUATIONS
from distill.config.schema import TrackingConfig
from distill.tracking.run_notes import evaluation_note
from distill.tracking.tracker import Tracker
from distill.tracking.uploader import Timing

SERIES = {"grid.png": "eval/grid of teacher and student"}
"""Pictures of an evaluation that are also shown on the training's page, as a series over its checkpoints."""


def record_evaluation(
    run_dir: Path,
    options: TrackingConfig,
    checkpoint: Path,
    step: int,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    files: Sequence[Path],
    say: Callable[[str], None] = print,
    timing: Timing | None = None,
) -> str:
    """Returns MLflow's id of the evaluation's run; empty where MLflow has not answered.

    run_dir: the training's folder. checkpoint: what was evaluated. step: its optimizer updates. files: copied into the
    evaluation's folder. Raises OSError where that cannot be written.
    """
    timing = timing or Timing(system=0.0)
    parent = Tracker(run_dir, options, None, say=say, timing=timing)  # sends its rest first: it must be in MLflow
    folder = _new_folder(run_dir / EVALUATIONS)
    tracking = {"uri": options.uri, "experiment": options.experiment}  # read by launch/sync_tracking.py
    child = Tracker(folder, options, {"recipe": {"tracking": tracking}, **params}, say=say, timing=timing)
    child.note(evaluation_note(checkpoint, step))
    child.log(metrics, step)
    for file in files:
        copy = Path(shutil.copy(file, folder))
        child.artifact(copy)
        if file.name in SERIES:
            parent.artifact(copy, "", SERIES[file.name], step)
    parent.finish()
    child.finish()
    return child.run_id


def _new_folder(where: Path) -> Path:
    """Makes `evaluation-N` with the first free N."""
    for number in count(1):
        with suppress(FileExistsError):
            (where / f"evaluation-{number}").mkdir(parents=True)
            break
    return where / f"evaluation-{number}"
