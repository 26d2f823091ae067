"""The metadata of exported files: Stability's modelspec, what is known of kohya's ss_*, and our own JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from distill.adapter_files.metadata import (
    BASE,
    FINGERPRINT,
    FORMAT,
    METADATA,
    RECIPE,
    fingerprint,
    fingerprint_layers,
)
from distill.adapter_files.names import count_families
from distill.config.embedded import recipe_to_values
from distill.export.base_weights import BaseWeights
from distill.export.student import Student

_HEADLINE = ("role", "sampler", "steps", "nfe", "exact_match", "ned", "latent_rmse", "lines")
_OF_SD = "stable-diffusion-v1/lora"
_ARCHITECTURES = {"kohya": _OF_SD, "diffusers": _OF_SD, "peft": "anytext2/lora", "safetensors": "anytext2/lora"}
_ARCHITECTURES |= {"merged": "anytext2", "merged-parts": "anytext2"}


def note_of(student: Student, format_: str, base: BaseWeights | None, left_out: dict[str, int]) -> dict[str, Any]:
    """What a reader needs to draw with the file and to know where it is from, as JSON values."""
    weights, spec, row = student.weights, student.recipe.student, student.headline()
    return {
        "version": 1,
        FORMAT: format_,
        RECIPE: recipe_to_values(student.recipe),
        "objective": student.recipe.objective["name"],
        "sampler": spec.sampler,
        "sampler_options": asdict(spec.options),
        "steps": student.steps,
        "times": student.times(),
        "guidance": 1.0,
        "guidance_distilled": list(spec.guidance),
        "prediction": "epsilon",
        "updates": student.updates,
        "checkpoint": student.source.name,
        "lora": {"kind": weights.kind, "layers": count_families(weights.modules)},
        "left_out": left_out,
        BASE: None if base is None else describe_base(student, base),
        "evaluation": None if row is None else {key: row[key] for key in _HEADLINE if key in row},
    }


def describe_base(student: Student, base: BaseWeights) -> dict[str, Any]:
    """File names, hash and fingerprint of the teacher's weights."""
    names = fingerprint_layers(student.weights.modules)
    values = {name: base.read(f"{name}.weight") for name in names}
    files = ", ".join(path.name for path in base.files) or student.recipe.model.weights
    return {"file": files, "sha256": base.sha256(), FINGERPRINT: fingerprint(values)}


def metadata_of(student: Student, note: dict[str, Any]) -> dict[str, str]:
    """The texts in a safetensors file's header."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    resolution = student.recipe.data.options.resolution
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[note[FORMAT]],
        "modelspec.implementation": "https://github.com/tyxsspa/AnyText2",
        "modelspec.title": f"{student.name}, {student.steps}-step student of AnyText2",
        "modelspec.date": now,
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.usage_hint": usage_hint(note),
        METADATA: json.dumps(note, ensure_ascii=False),
    }
    return metadata | _of_kohya(student, note)


def usage_hint(note: dict[str, Any]) -> str:
    """How the student is sampled, in one line."""
    times = ", ".join(map(str, note["times"][note["steps"]]))
    return f"{note['steps']} steps of sampler {note['sampler']} at timesteps {times}; guidance 1, no negative prompt"


def _of_kohya(student: Student, note: dict[str, Any]) -> dict[str, str]:
    """Those of kohya's that are true of this training. Values of base weights say nothing of a LoRA."""
    weights, recipe = student.weights, student.recipe
    if "merged" in note[FORMAT]:
        return {}
    if student.run_dir is None:  # the training is not known, but perhaps to the file
        return {name: value for name, value in weights.metadata.items() if name.startswith("ss_")}
    alphas = {weights.scale(module) * weights.ranks[module] for module in weights.modules}
    found: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _only(set(weights.ranks.values())),
        "ss_network_alpha": _only(alphas),
        "ss_base_model_version": "sd_v1",
        "ss_output_name": student.name,
        "ss_steps": student.updates,
        "ss_max_train_steps": recipe.train.max_steps,
        "ss_total_batch_size": recipe.train.effective_batch,
        "ss_learning_rate": recipe.train.learning_rate,
        "ss_optimizer": recipe.train.optimizer,
        "ss_seed": recipe.seed,
        "ss_sd_model_name": (note[BASE] or {}).get("file"),
        "ss_new_sd_model_hash": (note[BASE] or {}).get("sha256"),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _only(values: set[Any]) -> str:
    """The one value as kohya writes it; Dynamic where layers differ."""
    if len(values) > 1:
        return "Dynamic"
    (value,) = values
    return f"{value:g}"


def stem_of(student: Student) -> str:
    """The beginning of file names."""
    return Path(student.name).name.replace(" ", "_")
