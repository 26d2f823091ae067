"""What differs between two recipes, and whether it changes what a run learns. Each recipe key is in one of three lists.

A run that goes on from its own checkpoint must go on with the recipe of that checkpoint, except for the keys in `FREE`
(distill/training/resume.py). A student is sampled as it was trained (distill/inference/loading.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from distill.config.schema import Recipe

LEARNED = (
    *("seed", "objective"),
    *("model.config", "model.weights", "model.parts", "model.fault_injection"),
    *("data.sources", "data.weights", "data.split", "data.part", "data.synthetic", "data.options", "data.buckets"),
    "data.latents",
    *("lora.kind", "lora.rank", "lora.alpha", "lora.dropout", "lora.targets"),
    *("train.effective_batch", "train.optimizer", "train.learning_rate", "train.schedule", "train.warmup_steps"),
    *("train.min_lr_ratio", "train.betas", "train.weight_decay", "train.max_grad_norm", "train.ema_decay"),
    "train.teacher_fp16_accumulation",
)
"""Keys, and sections of keys, that change what is learned."""

LEARNED_IN_SCHEDULES = ("train.max_steps",)
"""Keys that change what is learned unless train.schedule=constant. They are said, not refused."""

FREE = {
    "name": "where the run lies",
    "run_root": "where the run lies",
    "model.activation_checkpointing": "the same values in less memory",
    "data.max_faulty": "a limit",
    "data.max_faulty_lines": "a limit",
    "data.max_unreadable": "a limit",
    "data.cache": "the same samples, read from a store",
    "data.cache_mismatch": "the same samples, read from a store",
    "data.captions": "the same samples, read from a store",
    "data.workers": "the same samples, read by other processes",
    "lora.weights": "the start of a run, which a resume does not come to again",
    "train.micro_batch": "the same global batch, in other portions",
    "train.threads": "the same values, faster or slower",
    "train.compile": "the same values up to rounding, faster",
    "train.fp16_on_cpu": "precision follows the machine and the DeepSpeed configuration",
    "checkpoint": "what is kept",
    "log": "what is written down",
    "eval": "what is measured",
    "tracking": "what is written down",
    "watchdog": "limits",
}
"""Keys, and sections of keys, that a resume may change, each with the reason."""

OF_OPTIMIZER = ("train.optimizer", "train.learning_rate", "train.betas", "train.weight_decay")
"""What may change where checkpoint.resume_optimizer=false starts the optimizer afresh."""

OF_STUDENT = ("objective", "model.config", "lora.kind", "lora.rank", "lora.alpha", "lora.targets")
"""What a trained student is: it cannot be sampled as something else."""

PATHS = ("model.config", "model.weights", "model.parts", "data.sources", "lora.targets")
"""Keys whose values may name files."""


@dataclass(frozen=True)
class Difference:
    """A key with two values. is_moved: the second names the same file in another place."""

    key: str
    old: Any
    new: Any
    is_moved: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def is_in(key: str, sections: Iterable[str]) -> bool:
    """Whether the key is one of these, or lies in one of these sections."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """All values by dotted key; of the objective, its defaults too. A null that means another value is that value."""
    content: Any = OmegaConf.to_container(OmegaConf.structured(recipe))
    content["data"]["options"]["cap_watermark"] = recipe.data.options.tells_watermarks
    content["objective"] = {"name": recipe.objective["name"], **asdict(recipe.objective_config)}
    return _flat(content, "")


def _flat(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def learned_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The differences that change what is learned, and files that have moved. old, new: from `recipe_values`."""
    constant = old["train.schedule"] == new["train.schedule"] == "constant"
    keys = LEARNED if constant else (*LEARNED, *LEARNED_IN_SCHEDULES)
    names = [key for key in dict.fromkeys((*old, *new)) if is_in(key, keys) and not _is_implied(key, old, new)]
    compared = (_compare(key, old.get(key), new.get(key)) for key in names)
    return [difference for difference in compared if difference is not None]


def require_same_student(place: Path, own: Recipe, recipe: Recipe, is_certain: bool) -> None:
    """Raises ValueError where `recipe` describes another student than `own`, the recipe that it was trained with.

    place: where `own` is from. is_certain: False for a run's recipe, which a later command may have replaced; the
    differences are only printed.
    """
    found = learned_differences(recipe_values(own), recipe_values(recipe))
    changed = [d for d in found if is_in(d.key, OF_STUDENT) and not d.is_moved]
    if not changed:
        return
    line = f"{place}: this student was trained with another recipe: {'; '.join(map(str, changed))}"
    if is_certain:
        raise ValueError(f"{line}; leave out what changes that")
    print(f"warning: {line}", flush=True)


def _is_implied(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the key has no meaning of its own: an option of one objective, or of drawn data where files are given."""
    if key.startswith("data.synthetic."):
        return bool(old["data.sources"] and new["data.sources"])
    other_objective = key.startswith("objective.") and old["objective.name"] != new["objective.name"]
    return other_objective and not (key in old and key in new)


def _compare(key: str, old: Any, new: Any) -> Difference | None:
    if key == "data.latents":  # a store holds what is encoded otherwise; `memory` has the mean of it
        old, new = ("encode" if value == "cache" else value for value in (old, new))
    if old == new:
        return None
    if key not in PATHS:
        return Difference(key, old, new)
    pairs = list(zip(old, new, strict=False)) if isinstance(old, list) else [(old, new)]
    is_moved = (not isinstance(old, list) or len(old) == len(new)) and all(_same_file(a, b) for a, b in pairs)
    return Difference(key, old, new, is_moved)


def _same_file(old: str, new: str) -> bool:
    """Whether both are one file. One that is gone is taken for the one of the same name: it may have moved."""
    if old == new:
        return True
    before, now = Path(old), Path(new)
    if before.exists():
        return now.exists() and before.samefile(now)
    return now.exists() and before.name == now.name


def require_known(allow: Sequence[str]) -> None:
    """Raises ValueError where an entry of checkpoint.allow is no key that a resume is refused for."""
    known = (*LEARNED, *LEARNED_IN_SCHEDULES)
    for entry in allow:
        if not is_in(entry, known) and not any(is_in(key, [entry]) for key in known):
            raise ValueError(
                f"checkpoint.allow: '{entry}' is no key or section that a resume is refused for; those are "
                f"{', '.join(known)}"
            )
