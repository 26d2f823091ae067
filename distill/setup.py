"""From a recipe to a session that is ready to train: data, model, roles, engine, tracking, resume, audit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from peft import PeftModel
from torch import nn

from anytext2.annotations import load_records
from anytext2.dataset import AnyWordDataset, missing_glyphs
from anytext2.filling import fill_by_name
from anytext2.fonts import load_font_table
from anytext2.model import AnyText2, build_model, load_model_config
from anytext2.synthetic import SyntheticConfig, write_dataset
from anytext2.weights import EMBEDDED, load_parts, load_weights, official_state
from distill import checkpoint, run_state
from distill.config import ModelSection, Recipe, SyntheticSection, dump_recipe, objective_config
from distill.engine import Engine, World
from distill.latents import LatentSource
from distill.objectives import OBJECTIVES
from distill.objectives.base import FullWeightObjective, Objective
from distill.schedule import NoiseSchedule
from distill.stream import BatchPlan
from distill.student import STUDENT, Roles, add_student
from distill.tracking import Tracker, environment
from distill.trainer import Progress, Session, TrainingStep

FONT_RECOGNISER = "embedding_manager.font_predictor."
RUN_FACTS = "run.json"
"""What the run found out about itself: ranks, precision, shard sizes, MLflow run id."""


def make_data(recipe: Recipe, world: World) -> AnyWordDataset:
    """The recipe's dataset; where it names no source, one is drawn into the run folder first. Collective."""
    sources = [Path(s) for s in recipe.data.sources]
    if not sources:
        sources = [recipe.run_dir / "data" / "data.json"]
        if world.is_main:
            _draw(recipe.data.synthetic, sources[0])
        if world.size > 1:
            dist.barrier()
    options, fonts = recipe.data.options, load_font_table()
    records, report = load_records(sources, wm_threshold=options.wm_threshold, cap_watermark=options.cap_watermark)
    if world.is_main:
        print(f"data: {report}", flush=True)
        _report_missing_glyphs(missing_glyphs(records, fonts))
    return AnyWordDataset(records, options, recipe.seed, fonts)


def _draw(section: SyntheticSection, annotations: Path) -> None:
    """Draws the pictures, unless just these are there already. Raises ValueError where others are."""
    folder = annotations.parent
    wanted, note = asdict(section), folder / "drawn.json"
    if annotations.is_file():
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if found != wanted:
            raise ValueError(
                f"data.synthetic={wanted}, but {folder} holds {found}; remove it or choose another name=..."
            )
        return
    print(f"data.sources is empty: drawing {section.count} pictures of {section.size} px into {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    write_dataset(folder, section.count, SyntheticConfig(size=section.size), section.seed, section.first_index)


def _report_missing_glyphs(missing: Counter[str]) -> None:
    if missing:
        often = ", ".join(f"{char!r} (U+{ord(char):04X}) {count}" for char, count in missing.most_common(5))
        print(
            f"fonts: {sum(missing.values())} characters ({len(missing)} different) have no glyph in fonts/ and are "
            f"left out of the drawn lines; most often {often}",
            flush=True,
        )


def make_model(section: ModelSection, seed: int) -> AnyText2:
    """The network with its weights, in float32 on the CPU. Raises ValueError for weights that do not fit."""
    config = load_model_config(section.config)
    if section.weights == "scratch":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(config, activation_checkpointing=section.activation_checkpointing)
    else:
        model = build_model(config, "meta", activation_checkpointing=section.activation_checkpointing)
        model = model.to_empty(device="cpu")
        if section.weights == "filled":
            fill_by_name(official_state(model))
        elif section.weights != "embedded":
            load_weights(model, Path(section.weights))
        elif section.config == "tiny":
            load_weights(model, EMBEDDED)
        else:
            raise ValueError(
                f"model.weights=embedded: only model.config=tiny ships weights, not {section.config}; give a file"
            )
    loaded = load_parts(model, [_part_file(Path(p)) for p in section.parts])
    if section.weights == "scratch" and loaded and not any(name.startswith(FONT_RECOGNISER) for name in loaded):
        # As in AnyText2, the trainable font recogniser starts as a copy of the one that reads glyphs.
        model.embedding_manager.font_predictor.load_state_dict(model.text_predictor.state_dict())
    return model


def _part_file(path: Path) -> Path:
    return checkpoint.find_checkpoint(path) / run_state.MODEL_WEIGHTS if path.is_dir() else path


def make_schedule(model: AnyText2) -> NoiseSchedule:
    """The noise schedule that the model was trained with, in float64."""
    s = model.cfg.schedule
    return NoiseSchedule.scaled_linear(s.linear_start, s.linear_end, s.timesteps)


def make_objective(recipe: Recipe, schedule: NoiseSchedule) -> Objective:
    return OBJECTIVES[recipe.objective["name"]](objective_config(recipe), schedule)


def make_roles(model: AnyText2, objective: Objective, recipe: Recipe) -> tuple[Roles, list[tuple[str, nn.Parameter]]]:
    """Freezes everything but what the objective trains; returns that by its name in checkpoints."""
    model.requires_grad_(False)
    if objective.trains == "lora":
        wrapped: nn.Module = add_student(model, recipe.lora, recipe.seed)
        params = [(checkpoint.portable_name(n, STUDENT), p) for n, p in wrapped.named_parameters() if p.requires_grad]
    else:
        assert isinstance(objective, FullWeightObjective)
        wrapped, params = model, list(objective.trainable(model))
        for _, p in params:
            p.requires_grad_(True)
    return Roles(wrapped), params


def make_session(recipe: Recipe, ds_config: dict[str, Any], world: World) -> Session:
    """Builds everything and resumes where there is something to resume. Collective."""
    plan = BatchPlan(recipe.train.effective_batch, recipe.train.micro_batch, world.size)
    resume = run_state.resume_from(recipe)
    if world.is_main:
        recipe.run_dir.mkdir(parents=True, exist_ok=True)
        dump_recipe(recipe, recipe.run_dir / "recipe.yaml")
    dataset = make_data(recipe, world)
    model = make_model(recipe.model, recipe.seed)
    schedule = make_schedule(model)
    objective = make_objective(recipe, schedule)
    if world.is_main and objective.trains == "lora" and not 32 <= plan.effective <= 64:
        print(
            f"warning: train.effective_batch={plan.effective} is outside 32-64, where distillation is known to work",
            flush=True,
        )
    roles, params = make_roles(model, objective, recipe)
    step = TrainingStep(roles.wrapped, objective, roles).to(world.device)
    engine = Engine(step, params, recipe.train, plan, ds_config, world)
    progress, tracking_id = Progress(), ""
    if resume is not None:
        progress, tracking_id = run_state.load(resume, recipe, engine, len(dataset))
        if world.is_main:
            print(f"resuming from {resume} at update {progress.updates}", flush=True)
    facts = run_facts(engine, params, isinstance(roles.wrapped, PeftModel))
    tracker = None
    if world.is_main:
        tracker = Tracker(recipe.run_dir, recipe.tracking, parameters(recipe, engine, facts), tracking_id)
        (recipe.run_dir / RUN_FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(
            f"training {facts['trained_parameters']:,} parameters in {facts['trained_tensors']} tensors; optimizer "
            f"{' + '.join(f'{b:,}' for b in facts['optimizer_bytes_per_rank'])} bytes on {world.size} rank(s); "
            f"effective batch {plan.effective} = {plan.micro} x {plan.accumulation} x {world.size}",
            flush=True,
        )
    latents = LatentSource(roles.model, recipe.data.cache_latents)
    return Session(recipe, engine, objective, roles, dataset, progress, tracker, latents, schedule)


def run_facts(engine: Engine, params: list[tuple[str, nn.Parameter]], lora: bool) -> dict[str, Any]:
    """What this run is, in numbers. Collective."""
    return {
        "ranks": engine.world.size,
        "device": engine.world.device.type,
        "precision": engine.precision,
        "effective_batch": engine.plan.effective,
        "micro_batch": engine.plan.micro,
        "accumulation": engine.plan.accumulation,
        "trained": "lora" if lora else "weights",
        "trained_parameters": sum(p.numel() for _, p in params),
        "trained_tensors": len(params),
        "optimizer_bytes_per_rank": engine.gather(engine.optimizer_bytes()),
    }


def parameters(recipe: Recipe, engine: Engine, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that MLflow records as a parameter, nested."""
    return {
        "recipe": OmegaConf.to_container(OmegaConf.structured(recipe)),
        "deepspeed": engine.ds_config,
        "run": {k: v for k, v in facts.items() if k != "optimizer_bytes_per_rank"},
        "environment": environment(),
        "command": " ".join(sys.argv),
    }
