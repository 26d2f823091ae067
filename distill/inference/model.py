"""The network of a recipe, with its weights and its noise schedule."""

from __future__ import annotations

from pathlib import Path

import torch

from anytext2.model.anytext2 import AnyText2, build_model
from anytext2.model.config import AnyText2Config, load_model_config
from anytext2.model.pseudo_weights import fill_with_pseudo_weights
from anytext2.model.recognizer import load_charset
from anytext2.model.weights import TINY_WEIGHTS, load_partial_weights, load_weights, official_state_dict, tensor_names
from distill.checkpoint.formats import MODEL_WEIGHTS
from distill.checkpoint.store import find_checkpoint
from distill.checks.fault_injection import FAULT_INJECTIONS
from distill.config.schema import ModelConfig, Recipe
from distill.diffusion.schedule import NoiseSchedule
from distill.losses.terms import terms_with_charset, terms_with_recognizer

GLYPH_RECOGNISER = "text_predictor."
FONT_RECOGNISER = "embedding_manager.font_predictor."


def make_model(section: ModelConfig, seed: int) -> AnyText2:
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
            fill_with_pseudo_weights(official_state_dict(model))
        elif section.weights != "embedded":
            load_weights(model, Path(section.weights))
        elif section.config == "tiny":
            load_weights(model, TINY_WEIGHTS)
        else:
            raise ValueError(
                f"model.weights=embedded: only model.config=tiny ships weights, not {section.config}; give a file"
            )
    loaded = load_partial_weights(model, [part_file(Path(p)) for p in section.parts])
    if section.weights == "scratch" and loaded and not any(name.startswith(FONT_RECOGNISER) for name in loaded):
        # As in AnyText2, the trainable font recogniser starts as a copy of the one that reads glyphs.
        model.embedding_manager.font_predictor.load_state_dict(model.text_predictor.state_dict())
    if section.fault_injection:
        FAULT_INJECTIONS[section.fault_injection](model)
    return model


def part_file(path: Path) -> Path:
    """The weights file of an entry of model.parts, which is that or a run folder."""
    return find_checkpoint(path) / MODEL_WEIGHTS if path.is_dir() else path


def require_recognizer(recipe: Recipe) -> None:
    """Raises ValueError where a loss term needs a trained recogniser and the recipe has none.

    Only the names in weight files are read.
    """
    section, terms = recipe.model, recipe.student.terms
    reading = terms_with_recognizer(terms)
    if reading and section.weights in ("scratch", "filled"):
        files = [part_file(Path(part)) for part in section.parts]
        if not any(name.startswith(GLYPH_RECOGNISER) for file in files for name in tensor_names(file)):
            raise ValueError(
                f"objective.terms.{reading[0]}: reads with the model's own recogniser, which model.weights="
                f"{section.weights} leaves untrained; name a run of objective recognize, or a file with "
                f"{GLYPH_RECOGNISER}* keys, in model.parts"
            )
    if spelling := terms_with_charset(terms):
        recognizer = load_model_config(section.config).recognizer
        try:
            load_charset(recognizer.charset, recognizer.n_classes)
        except ValueError as error:
            raise ValueError(f"objective.terms.{spelling[0]}: {error}") from error


def make_schedule(config: AnyText2Config) -> NoiseSchedule:
    """The noise schedule that models of this configuration are trained with, in float64."""
    s = config.schedule
    return NoiseSchedule.scaled_linear(s.linear_start, s.linear_end, s.timesteps)
