"""Makes a recipe of the settings of an earlier script. What is set here stands in the table of table.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.migration.old_files import OldSettings
from distill.migration.table import BY_NAME

TIMESTEPS = 1000
LEAST_BATCH, MOST_BATCH = 32, 64
MOST_LEARNING_RATE = 1e-4
_DS_CONFIGS = {"fp16": "zero2.json", "bf16": "zero2_bf16.json", "no": "zero2_cpu.json"}
_SCHEDULES = {"none": "constant", "warmup_cosine": "cosine"}
_COARSE = (4, 6, 8, 16)

PLAIN = {
    **{"teacher_ckpt": "model.weights", "output_dir": "run_root", "seed": "seed"},
    **{"lora_rank": "lora.rank", "lora_alpha": "lora.alpha", "lora_dropout": "lora.dropout"},
    **{name: f"data.options.{name}" for name in ("max_lines", "max_chars", "font_hint_prob", "font_hint_area")},
    **{"color_prob": "data.options.color_prob", "wm_thresh": "data.options.wm_threshold"},
    **{"resolution": "data.options.resolution", "num_workers": "data.workers"},
    **{"train_batch_size": "train.micro_batch", "learning_rate": "train.learning_rate"},
    **{"max_train_steps": "train.max_steps", "lr_min_ratio": "train.min_lr_ratio"},
    **{"sigma_data": "objective.sigma_data", "timestep_scaling": "objective.timestep_scaling"},
    **{"target_from_teacher": "objective.target_from_teacher"},
    **{"save_steps": "checkpoint.save_steps", "save_epochs": "checkpoint.save_epochs", "logging_steps": "log.every"},
    **{"log_image_steps": "log.preview_every", "log_image_samples": "log.preview_samples"},
    **{"log_image_infer_steps": "log.preview_steps"},
}
"""Recipe key by old name, where the value is the same."""


@dataclass
class Migrated:
    """recipe: nested, as in YAML. changed, dropped: what to know about keys that were given. warnings: of values that
    harmed students, or that no recipe can follow."""

    recipe: dict[str, Any]
    gpus: int
    ds_config: str
    changed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any) -> None:
        """Sets a recipe key, as in `train.max_steps`."""
        *sections, last = key.split(".")
        place = self.recipe
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value


def migrate(old: OldSettings, name: str) -> Migrated:
    """The recipe that trains what the old settings did, as a run of this name. Raises ValueError in one line."""
    precision = old["mixed_precision"]
    if precision not in _DS_CONFIGS:
        raise ValueError(f"mixed_precision={precision}: one of {', '.join(_DS_CONFIGS)}")
    made = Migrated({"name": name}, old.gpus, _DS_CONFIGS[precision])
    for old_name, key in PLAIN.items():
        if old.script in BY_NAME[old_name].scripts:
            made.set(key, old[old_name])
    _set_model(old, made)
    _set_data(old, made)
    _set_batch(old, made)
    _set_objective(old, made)
    _set_resume(old, made)
    _explain(old, made)
    return made


def _set_model(old: OldSettings, made: Migrated) -> None:
    made.set("model.config", "sd15")
    if Path(old["config"]).name != "anytext2_sd15.yaml":
        made.warnings.append(
            f"config={old['config']}: becomes model.config=sd15; another size needs a file as in anytext2/configs"
        )
    made.set("lora.targets", "paper")


def _set_data(old: OldSettings, made: Migrated) -> None:
    drawn = old["use_mock_dataset"] or (old.script == "v1" and not old["use_real_dataset"])
    made.set("data.sources", [] if drawn else _expanded(old["dataset_json"], made))
    if drawn:
        made.set("data.synthetic.count", old["dataset_size"] if old.script == "v1" else TIMESTEPS)
        made.set("data.synthetic.size", old["resolution"])
        made.warnings.append("this trained on random noise; the recipe trains on drawn pictures: set data.sources")
    if old.script != "v1":
        made.set("data.split", [old[f"{part}_ratio"] for part in ("train", "val", "test")])
    made.set("data.options.like_reference", True)  # the official checkpoint was trained on such drawings


def _expanded(entries: list[str], made: Migrated) -> list[str]:
    """The annotation files, with those that lists name. A list that is not there stays, with a warning."""
    found: list[str] = []
    for entry in (part.strip() for text in entries for part in text.split(",") if part.strip()):
        path = Path(entry)
        if path.suffix not in (".list", ".txt"):
            found.append(entry)
        elif path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            found += [line for line in lines if line and not line.startswith("#")]
        else:
            found.append(entry)
            made.warnings.append(f"dataset_json={entry}: no such list here; put its files into data.sources")
    return found


def _set_batch(old: OldSettings, made: Migrated) -> None:
    batch = old["train_batch_size"] * old["gradient_accumulation_steps"] * old.gpus
    made.set("train.effective_batch", batch)
    if batch < LEAST_BATCH:
        made.warnings.append(
            f"train.effective_batch={batch}: students of batches of 8 were suspected of being unreadable for it; the "
            f"gradient is noisy below {LEAST_BATCH}: set 48, which 1, 2, 3, 4, 6 and 8 GPUs divide"
        )
    elif batch > MOST_BATCH:
        made.warnings.append(f"train.effective_batch={batch}: {LEAST_BATCH} to {MOST_BATCH} is enough, 48 is usual")
    if (rate := old["learning_rate"]) > MOST_LEARNING_RATE:
        made.warnings.append(
            f"train.learning_rate={rate:g}: the official size's loss swung at 5e-4; {MOST_LEARNING_RATE:g} is usual"
        )
    if old.script in BY_NAME["lr_scheduler"].scripts:
        if old["lr_scheduler"] not in _SCHEDULES:
            raise ValueError(f"lr_scheduler={old['lr_scheduler']}: one of {', '.join(_SCHEDULES)}")
        made.set("train.schedule", _SCHEDULES[old["lr_scheduler"]])
        made.set("train.warmup_steps", old["lr_warmup_steps"] if old["lr_scheduler"] != "none" else 0)
        if old["max_epochs"] > 0:
            made.warnings.append(
                f"max_epochs={old['max_epochs']}: set train.max_steps to pictures x epochs / {batch}; it is "
                f"{old['max_train_steps']} now"
            )


def _set_objective(old: OldSettings, made: Migrated) -> None:
    """v2_4 distilled along the trajectory, the others regressed x0. Their Huber loss had delta 1."""
    trajectory, steps = old.script == "v2_4", old["num_inference_steps"]
    if old.script == "v1" and steps not in _COARSE:
        raise ValueError(f"num_inference_steps={steps}: one of {', '.join(map(str, _COARSE))} with v1")
    if trajectory and TIMESTEPS % steps:
        raise ValueError(f"num_inference_steps={steps}: must divide {TIMESTEPS} timesteps; 50 is usual")
    options: dict[str, Any] = {
        **{"name": "consistency" if trajectory else "x0_regression", "solver_steps": steps},
        **{"grid": "coarse" if old.script == "v1" else "uniform", "loss": "huber", "huber_c": 1.0},
    }
    guidance = [old[name] if trajectory else None for name in ("w_min", "w_max")]
    low, high = (old["cfg_scale"] if given is None else given for given in guidance)
    if low < 1.0:
        raise ValueError(f"guidance scale {low:g} (cfg_scale or w_min): must be at least 1, which is no guidance")
    options |= {"w_min": low - 1.0, "w_max": high - 1.0}
    if trajectory:
        options["teacher_interval"] = old["lcm_step"] * (TIMESTEPS // steps)
    made.recipe["objective"] = options | made.recipe.get("objective", {})
    if old.script == "v2_3":
        _set_terms(old, made)
    if not trajectory:
        made.warnings.append(
            "objective.name=x0_regression: at high noise its target is the mean of all pictures, so few steps blur; "
            "launch/recipes/rtx4090x3.yaml distils whole phases instead"
        )


def _set_terms(old: OldSettings, made: Migrated) -> None:
    if old["loss_ffl_weight"] > 0:
        options = {"weight": old["loss_ffl_weight"], "alpha": old["ffl_alpha"], "windowed": False}
        made.set("objective.terms.focal_frequency", options)
    if old["loss_grad_weight"] > 0:
        made.set("objective.terms.gradient", {"weight": old["loss_grad_weight"]})


def _set_resume(old: OldSettings, made: Migrated) -> None:
    if old.script not in BY_NAME["resume_path"].scripts or not old["resume_path"]:
        return
    made.set("lora.weights", old["resume_path"])
    if old["resume_add_steps"] > 0:
        made.set("train.max_steps", old["resume_add_steps"])


def _explain(old: OldSettings, made: Migrated) -> None:
    """Notes of the keys that were given, and of batch, learning rate and guidance: what changed, what is gone."""
    guidance = () if old.script == "v2_4" and {"w_min", "w_max"} <= old.values.keys() else ("cfg_scale",)
    told = ("gradient_accumulation_steps", "learning_rate", *guidance)  # said for defaults, too
    for name in dict.fromkeys((*told, *old.values)):
        key, value = BY_NAME[name], old[name]
        if key.scripts != ("yaml",) and old.script not in key.scripts:
            made.dropped.append(f"{name} (a key of {', '.join(key.scripts)}, not of {old.script})")
        elif not key.new:
            made.dropped.append(f"{name} ({key.note})")
        elif key.note:
            made.changed.append(f"{name}={_shown(value)} -> {', '.join(_now(key.new, made))}: {key.note}")


def _shown(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _now(keys: tuple[str, ...], made: Migrated) -> list[str]:
    """The recipe keys with the values that they have now; a list that is long only by name."""
    shown = []
    for key in keys:
        value: Any = made.recipe
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        shown.append(key if value is None or isinstance(value, list) else f"{key}={value}")
    return shown
