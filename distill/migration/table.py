"""The flags and YAML keys of the earlier scripts, as data: their defaults, and what became of each.

There were five training scripts, `train_lcm_anytext.py` (v1) and `train_lcm_anytext_v2.py`, `_v2_2`, `_v2_3` and
`_v2_4`, and `launch_from_yaml.py`, which read a YAML file with the same names. docs/MIGRATION.md shows this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

VERSIONS = ("v1", "v2", "v2_2", "v2_3", "v2_4")
YAML = ("yaml",)
"""Of keys that only the YAML files have."""
ALL = VERSIONS
V1, FROM_V2, FROM_V2_2 = ("v1",), VERSIONS[1:], VERSIONS[2:]
V2_3, V2_4 = ("v2_3",), ("v2_4",)

Kind = Literal["text", "int", "float", "flag", "texts", "floats"]


@dataclass(frozen=True)
class OldKey:
    """A flag or a YAML key. scripts: those that have it. kind: of its value. default: of all scripts, or by script.

    new: the recipe keys that it becomes; empty if it has no counterpart. note: what changed, or why it is gone.
    section: of the YAML file.
    """

    name: str
    scripts: tuple[str, ...]
    kind: Kind
    default: Any
    new: tuple[str, ...] = ()
    note: str = ""
    section: str = "train"

    def default_of(self, script: str) -> Any:
        return self.default[script] if isinstance(self.default, dict) else self.default


def _by_script(v1: Any, later: Any) -> dict[str, Any]:
    return {script: v1 if script == "v1" else later for script in (*VERSIONS, *YAML)}


_ALWAYS = "the device's settings are made by the trainer"
_LOADER = "the loader chooses it"
_STREAM = "annotation files are read once, and their records kept packed"

KEYS: tuple[OldKey, ...] = (
    # model
    OldKey("config", ALL, "text", "models_yaml/anytext2_sd15.yaml", ("model.config",), "a name: `sd15`", "model"),
    OldKey("teacher_ckpt", ALL, "text", "models/anytext_v2.0.ckpt", ("model.weights",), "", "model"),
    OldKey(
        *("output_dir", ALL, "text", _by_script("./student_model/checkpoints", "student_model_v2/checkpoints")),
        *(("run_root",), "a run's folder lies in it under its `name`; the newest 3 checkpoints and the best stay"),
        section="model",
    ),
    OldKey("lora_rank", ALL, "int", 64, ("lora.rank",)),
    OldKey("lora_alpha", ALL, "int", 64, ("lora.alpha",)),
    OldKey("lora_dropout", FROM_V2, "float", 0.0, ("lora.dropout",)),
    OldKey(
        *("target_modules_file", V1, "text", "student_model/target_modules_list.txt", ("lora.targets",)),
        "becomes `paper`: of the list's 517 names 228 exist in the model, and 24 attention layers of the middle blocks "
        "were missing; `launch/inspect_modules.py --names FILE` keeps the names that exist",
    ),
    # data
    OldKey(
        *("dataset_json", ALL, "texts", ["demodataset/annotations/demo_data.json"], ("data.sources",)),
        *("lists in .list and .txt files are expanded", "data"),
    ),
    OldKey(
        *("use_mock_dataset", ALL, "flag", False, ("data.sources", "data.synthetic.count")),
        "drawn pictures with words take the place of random noise",
    ),
    OldKey(
        *("use_real_dataset", V1, "flag", False, ("data.sources",)),
        "v1 trained on random noise without it; a recipe trains on `data.sources`, else on drawn pictures",
    ),
    OldKey("dataset_size", V1, "int", 100, ("data.synthetic.count",), "of drawn pictures"),
    OldKey("resolution", ALL, "int", 512, ("data.options.resolution", "data.synthetic.size"), "", "data"),
    OldKey("max_lines", V1, "int", 5, ("data.options.max_lines",)),
    OldKey("max_chars", V1, "int", 20, ("data.options.max_chars",)),
    OldKey("font_path", V1, "text", "./font/Arial_Unicode.ttf", (), "fonts are listed in `fonts/fonts.yaml`"),
    OldKey("font_hint_prob", V1, "float", 0.8, ("data.options.font_hint_prob",)),
    OldKey("font_hint_area", V1, "floats", [0.7, 1.0], ("data.options.font_hint_area",)),
    OldKey("color_prob", V1, "float", 1.0, ("data.options.color_prob",)),
    OldKey(
        *("glyph_scale", V1, "float", 0.7, ()),
        "glyph pages have the picture's size, as the official checkpoint was trained; 0.7 drew them smaller",
    ),
    OldKey("wm_thresh", ALL, "float", 1.0, ("data.options.wm_threshold",), "", "data"),
    OldKey("train_ratio", FROM_V2, "float", 0.98, ("data.split",), "by a hash of the picture's name"),
    OldKey("val_ratio", FROM_V2, "float", 0.01, ("data.split",), "by a hash of the picture's name"),
    OldKey("test_ratio", FROM_V2, "float", 0.01, ("data.split",), "by a hash of the picture's name"),
    OldKey("split_seed", FROM_V2, "int", 42, (), "a picture's part does not depend on a seed or on the other pictures"),
    OldKey("streaming", FROM_V2, "flag", True, (), _STREAM, "data"),
    OldKey("no_streaming", FROM_V2, "flag", False, (), _STREAM, "data"),
    OldKey("streaming_threshold_mb", FROM_V2, "int", 200, (), _STREAM, "data"),
    OldKey("cache_dir", FROM_V2, "text", "", (), _STREAM, "data"),
    OldKey("auto_list_path", FROM_V2, "text", "", (), "the run folder's `recipe.yaml` has the list", "data"),
    OldKey(
        *("lmdb_path", V2_4, "text", "", ()),
        "another format with other drawings: build it anew with `launch/build_lmdb_cache.py`, then set `data.cache`",
        "data",
    ),
    OldKey("num_workers", FROM_V2, "int", 8, ("data.workers",), "for each rank"),
    OldKey("prefetch_factor", FROM_V2, "int", 1, (), _LOADER),
    OldKey("persistent_workers", FROM_V2, "flag", False, (), _LOADER),
    OldKey("pin_memory", FROM_V2, "flag", False, (), _LOADER),
    OldKey("mp_context", FROM_V2, "text", "", (), _LOADER),
    OldKey("worker_num_threads", FROM_V2, "int", 1, (), _LOADER),
    OldKey("cv2_num_threads", FROM_V2, "int", 0, (), _LOADER),
    # batch, optimizer, schedule
    OldKey(
        "train_batch_size", ALL, "int", _by_script(2, 1), ("train.micro_batch", "train.effective_batch"), "of a GPU"
    ),
    OldKey(
        *("gradient_accumulation_steps", ALL, "int", _by_script(4, 8), ("train.effective_batch",)),
        "`train.effective_batch` = train_batch_size x gradient_accumulation_steps x GPUs; a recipe fixes the product, "
        "and the number of micro-batches follows from the GPUs",
    ),
    OldKey(
        *("learning_rate", ALL, "float", _by_script(1e-4, 5e-5), ("train.learning_rate",)),
        "of one update of `train.effective_batch` samples; it was that of 8 samples by default",
    ),
    OldKey("lr_scheduler", FROM_V2_2, "text", "none", ("train.schedule",), "none -> constant, warmup_cosine -> cosine"),
    OldKey("lr_warmup_steps", FROM_V2_2, "int", 0, ("train.warmup_steps",), "with lr_scheduler none it had no effect"),
    OldKey("lr_min_ratio", FROM_V2_2, "float", 0.0, ("train.min_lr_ratio",)),
    OldKey("max_train_steps", ALL, "int", _by_script(100, 50000), ("train.max_steps",), "updates, as before"),
    OldKey(
        *("max_epochs", FROM_V2_2, "int", 0, ()),
        "a run is as long as `train.max_steps`: pictures x epochs / `train.effective_batch`",
    ),
    OldKey(
        *("mixed_precision", ALL, "text", "fp16", ()),
        "the file behind `--deepspeed`: fp16 -> zero2.json, bf16 -> zero2_bf16.json",
    ),
    OldKey("seed", ALL, "int", 42, ("seed",)),
    OldKey("allow_tf32", FROM_V2, "flag", False, (), _ALWAYS),
    OldKey("cudnn_benchmark", FROM_V2, "flag", False, (), _ALWAYS),
    OldKey("matmul_precision", FROM_V2, "text", "high", (), _ALWAYS),
    # objective
    OldKey(
        *("num_inference_steps", ALL, "int", _by_script(8, 50), ("objective.solver_steps", "objective.grid")),
        "the times that the student is trained at; v1: `objective.grid=coarse` (for 16 steps other times than v1's)",
    ),
    OldKey(
        *("cfg_scale", ALL, "float", 7.5, ("objective.w_min", "objective.w_max")),
        "w is guidance - 1: the teacher's guidance scale g in u + g (c - u) is w + 1 in c + w (c - u); 7.5 -> 6.5",
    ),
    OldKey("w_min", V2_4, "float", None, ("objective.w_min",), "w_min was a guidance scale; w is one less: 5 -> 4"),
    OldKey("w_max", V2_4, "float", None, ("objective.w_max",), "w_max was a guidance scale; w is one less: 15 -> 14"),
    OldKey(
        *("lcm_step", V2_4, "int", 1, ("objective.teacher_interval",)),
        "in timesteps, not in steps of the grid: 1 of 50 steps is 20 timesteps",
    ),
    OldKey("sigma_data", V2_4, "float", 0.5, ("objective.sigma_data",)),
    OldKey("timestep_scaling", V2_4, "float", 10.0, ("objective.timestep_scaling",)),
    OldKey("target_from_teacher", V2_4, "flag", False, ("objective.target_from_teacher",)),
    OldKey("loss_ffl_weight", V2_3, "float", 0.05, ("objective.terms.focal_frequency.weight",)),
    OldKey(
        "loss_grad_weight", V2_3, "float", 0.05, ("objective.terms.gradient.weight",), "counts inside the boxes only"
    ),
    OldKey("ffl_alpha", V2_3, "float", 1.0, ("objective.terms.focal_frequency.alpha",)),
    OldKey("ffl_patch_factor", V2_3, "int", 1, (), "the spectrum is that of the whole latent"),
    OldKey("ffl_ave_spectrum", V2_3, "flag", False, (), "each sample has its own spectrum"),
    OldKey("ffl_log_matrix", V2_3, "flag", False, (), "no such weights"),
    OldKey("ffl_batch_matrix", V2_3, "flag", False, (), "weights are those of each channel"),
    OldKey("loss_mask_key", V2_3, "text", "hint", (), "the boxes of the text lines, as hint"),
    OldKey(
        *("loss_text_weight", V2_3, "float", 5.0, ()),
        "weighed the gradient loss only, which counts nowhere else now; `objective.text_weight` weighs the distance",
    ),
    # checkpoints, logs, evaluation
    OldKey("save_steps", ALL, "int", _by_script(5000, 2000), ("checkpoint.save_steps",)),
    OldKey("save_epochs", FROM_V2_2, "int", 0, ("checkpoint.save_epochs",)),
    OldKey(
        *("resume_path", FROM_V2_2, "text", "", ("lora.weights",)),
        "takes the adapter only; a run of this program resumes by itself",
    ),
    OldKey(
        *("resume_optimizer", FROM_V2_2, "flag", False, ()),
        "the state of the old optimizer is not read: of `training_state.pt` only the step is said",
    ),
    OldKey("resume_add_steps", FROM_V2_2, "int", 0, ("train.max_steps",), "with resume_path, if it is above 0"),
    OldKey("logging_steps", ALL, "int", _by_script(5, 10), ("log.every",)),
    OldKey(
        "log_image_steps", FROM_V2_2, "int", 0, ("log.preview_every",), "sampled from noise, not one estimate of x0"
    ),
    OldKey("log_image_samples", FROM_V2_2, "int", 4, ("log.preview_samples",)),
    OldKey("log_image_dir", FROM_V2_2, "text", "", (), "the run folder's `previews`"),
    OldKey("log_image_infer_steps", V2_4, "int", 4, ("log.preview_steps",)),
    OldKey(
        *("eval_batches", FROM_V2, "int", 1, ()),
        "the loss of a batch says nothing about spelling: `eval.every` reads what the student writes",
    ),
    OldKey("eval_num_workers", FROM_V2_2, "int", 0, (), "see eval_batches"),
    OldKey("eval_timeout", FROM_V2_2, "int", 0, (), "see eval_batches"),
    # of the YAML files
    OldKey("train_script", YAML, "text", "", ("objective.name",), "chooses the script, and with it the objective"),
    OldKey("use_optimized", YAML, "flag", False, (), "chose v2_2 instead of v2 where no train_script was given"),
    OldKey("add_time_suffix", YAML, "flag", False, (), "give each run a `name` of its own"),
    OldKey("num_gpus", YAML, "int", 1, ("train.effective_batch",), "`deepspeed --num_gpus N`", "system"),
    OldKey("notes", YAML, "text", "", (), "comments belong into the recipe", "system"),
)

BY_NAME: Mapping[str, OldKey] = {key.name: key for key in KEYS}


def table() -> str:
    """The table of docs/MIGRATION.md."""
    rows = ["| flag or YAML key | scripts | default | recipe key | what changed |", "|---|---|---|---|---|"]
    for key in KEYS:
        new = ", ".join(f"`{name}`" for name in key.new) or "none"
        rows.append(f"| `{key.name}` | {_scripts(key)} | {_default(key)} | {new} | {key.note} |")
    return "\n".join(rows)


def _scripts(key: OldKey) -> str:
    if key.scripts == ALL:
        return "all"
    return key.scripts[0] if len(key.scripts) == 1 else f"from {key.scripts[0]} on"


def _default(key: OldKey) -> str:
    values = [key.default_of(script) for script in key.scripts]
    distinct = [value for n, value in enumerate(values) if value not in values[:n]]
    if len(distinct) == 2:
        return f"v1 `{_shown(distinct[0])}`, later `{_shown(distinct[1])}`"
    return f"`{_shown(distinct[0])}`" if distinct[0] not in ("", None) else ""


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
