"""An evaluation in MLflow: a run of its own, below the training run that made the checkpoint.

Its journals and copies of its files lie in `RUN/evaluations/evaluation-N` and are sent as a training's are, so that an
outage of MLflow loses nothing: `launch/sync_tracking.py RUN` sends what is left of a run and of its evaluations.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.checkpoint.run_folder import EVALUATIONS
from distill.config.schema import TrackingConfig
from distill.tracking.tracker import Tracker
from distill.tracking.uploader import Timing


def record_evaluation(
    run_dir: Path,
    options: TrackingConfig,
    step: int,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    files: Sequence[Path],
    say: Callable[[str], None] = print,
    timing: Timing | None = None,
) -> str:
    """Returns MLflow's id of the evaluation's run; empty where MLflow has not answered.

    run_dir: the training's; step: optimizer updates of the checkpoint; files: copied into the evaluation's folder.
    Raises OSError where that cannot be written.
    """
    timing = timing or Timing(system=0.0)
    parent = Tracker(run_dir, options, None, say=say, timing=timing)  # sends what is left of it, so that it is there
    folder = _new_folder(run_dir / EVALUATIONS)
    tracking = {"uri": options.uri, "experiment": options.experiment}  # what launch/sync_tracking.py asks for
    child = Tracker(folder, options, {"recipe": {"tracking": tracking}, **params}, say=say, timing=timing)
    child.log(metrics, step)
    for file in files:
        child.artifact(Path(shutil.copy(file, folder)))
    parent.finish()
    child.finish()
    return child.run_id


def _new_folder(where: Path) -> Path:
    """`evaluation-N` with the first N that nobody has taken."""
    number = 1
    while True:
        folder = where / f"evaluation-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
