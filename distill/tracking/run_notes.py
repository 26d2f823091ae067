"""What a person reads about a run on its MLflow page: description, source, data set, and the adapters that it made.

Notes are lines of notes.jsonl, and the uploader sends them as everything else:

    {"time", "tags": {name: text}}          tags of the MLflow run, its description and source among them
    {"time", "dataset": {...}}              an MLflow dataset: name, digest, source, samples
    {"time", "model": {...}}                an MLflow logged model: checkpoint, step, tags
    {"time", "evaluates": {...}}            of an evaluation: the checkpoint whose model its scores belong to
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anytext2.cache.header import file_hash
from distill.config.schema import Recipe
from distill.tracking.tracker import environment, git_revision

Note = dict[str, Any]

DESCRIPTION = "mlflow.note.content"


def mlflow_parameters(recipe: Recipe, ds_config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that MLflow records as a parameter, nested. facts: run.json's."""
    return {
        "recipe": OmegaConf.to_container(OmegaConf.structured(recipe)),
        "deepspeed": ds_config,
        "run": {k: v for k, v in facts.items() if k != "optimizer_bytes_per_rank"},
        "environment": environment(),
        "command": " ".join(sys.argv),
    }


def first_notes(recipe: Recipe, facts: Mapping[str, Any], sources: Sequence[Path], samples: int) -> Iterator[Note]:
    """The notes of a run that begins or goes on. sources: its annotation files, which are read for their hash."""
    commit = git_revision(Path(__file__).resolve().parent)
    source = {
        "mlflow.source.name": "launch/train.py",
        "mlflow.source.type": "JOB" if "SLURM_JOB_ID" in os.environ else "LOCAL",
        "mlflow.user": _user(),
    }
    if commit != "unknown":
        source["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    yield {"tags": source | {DESCRIPTION: description(recipe, facts)}}
    yield {"dataset": _dataset(recipe, sources, samples)}


def final_notes(
    recipe: Recipe, facts: Mapping[str, Any], updates: int, best: int | None, score: float | None
) -> Iterator[Note]:
    """The notes of a run that has made all its updates. best: the update with the best spelling, `score`."""
    made = [f"- checkpoint: `{recipe.run_dir.absolute()}/checkpoint-{updates}`"]
    if best is not None and score is not None:
        made.append(f"- best spelling: `checkpoint-{best}`, {score:.3f} of the lines")
    yield {"tags": {DESCRIPTION: description(recipe, facts, made)}}
    for step in dict.fromkeys(update for update in (best, updates) if update is not None):
        folder = recipe.run_dir / f"checkpoint-{step}"
        kind = "weights" if recipe.objective_config.student is None else "adapter"
        made_of_it = {"artifacts": "model" if step == updates else "best", "type": kind}
        yield {"model": _checkpoint(folder, step) | made_of_it}


def evaluation_note(checkpoint: Path, step: int) -> Note:
    """That an evaluation's scores belong to this checkpoint's model."""
    return {"evaluates": _checkpoint(checkpoint, step)}


def description(recipe: Recipe, facts: Mapping[str, Any], made: Sequence[str] = ()) -> str:
    """Markdown for the run's page. made: further lines of the list."""
    trained = f"{facts.get('trained_parameters', 0):,} parameters"
    if recipe.objective_config.student is None:
        what = f"**{recipe.objective['name']}**: trains {trained} of AnyText2 `{recipe.model.config}`"
    else:
        what = (
            f"**{recipe.objective['name']}** student of AnyText2 `{recipe.model.config}`: {recipe.lora.kind} of rank "
            f"{recipe.lora.rank}, {trained}"
        )
    lines = [
        f"- {recipe.train.max_steps} updates of {recipe.train.effective_batch} samples on {facts.get('ranks', 1)} "
        f"rank(s), {facts.get('device', '')} {facts.get('precision', '')}",
        f"- folder: `{recipe.run_dir.absolute()}` on {socket.gethostname()}",
        *made,
    ]
    return "\n".join([what, "", *lines, "", "This command goes on:", "", "```bash", command(), "```"])


def command() -> str:
    """The command that was given, without what the launcher adds for each rank."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    return shlex.join(["deepspeed", "launch/train.py", *words])


def _dataset(recipe: Recipe, sources: Sequence[Path], samples: int) -> dict[str, Any]:
    """An MLflow dataset. Its digest is that of the annotation files' hashes, in their order."""
    hashes = {str(path): file_hash(path) for path in sources}
    digest = "-".join(value[:12] for value in hashes.values())[:36]
    name = recipe.name if not recipe.data.sources else Path(sources[0]).parent.name or recipe.name
    return {
        "name": f"{name} (drawn)" if not recipe.data.sources else name,
        "digest": digest,
        "source": ", ".join(str(path.absolute()) for path in sources),
        "profile": {"samples": samples, "part": recipe.data.part, "blake2b": hashes},
    }


def _checkpoint(folder: Path, step: int) -> dict[str, Any]:
    return {"checkpoint": folder.name, "step": step, "path": str(folder.absolute())}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())
