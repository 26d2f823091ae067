"""A run folder as a training leaves it, without a training."""

from __future__ import annotations

from pathlib import Path

import torch

from anytext2.model.anytext2 import AnyText2
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import STUDENT
from distill.checkpoint.formats import TrainerState, portable_name, write_adapter, write_trainer_state
from distill.checkpoint.store import save_checkpoint
from distill.config.recipes import dump_recipe
from distill.config.schema import Recipe


def write_run(run_dir: Path, recipe: Recipe, model: AnyText2, tracking_run_id: str = "", scale: float = 0.1) -> None:
    """recipe.yaml, and checkpoint-3 with a LoRA of random weights for `model`, which it wraps.

    scale: of the weights; with 0 the student draws as the base weights do.
    """
    wrapped = add_student(model, AdapterConfig(rank=2, alpha=2), seed=0)
    tensors = {
        portable_name(n, STUDENT): torch.randn_like(p) * scale for n, p in wrapped.named_parameters() if p.requires_grad
    }

    def write(path: Path) -> None:
        write_adapter(path, tensors, wrapped.peft_config[STUDENT])  # type: ignore[arg-type]
        write_trainer_state(path, TrainerState(3, 3, seed=7, effective_batch=48, tracking_run_id=tracking_run_id))

    save_checkpoint(run_dir, 3, write, keep=1)
    dump_recipe(recipe, run_dir / "recipe.yaml")
