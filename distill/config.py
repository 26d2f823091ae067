"""The recipe of a run: dataclasses, YAML, `key=value` overrides, and what is wrong with them in one line.

Resolution order: the dataclass defaults, the recipe file, the overrides. A recipe is an OmegaConf structured config, so
an unknown key or a value of the wrong type is an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from anytext2.dataset import DatasetConfig
from distill.objectives import OBJECTIVES
from distill.student import LoraSection

EMBEDDED_DEFAULT = Path(__file__).parent.parent / "launch" / "recipes" / "demo.yaml"


def _require_at_least(least: int, section: str, values: object, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        if not value >= least:  # NaN included
            raise ValueError(f"{section}.{name}={value} must be at least {least}")


@dataclass
class ModelSection:
    """Which network, and where its weights come from.

    config: a name in anytext2/configs (`tiny`, `sd15`) or a YAML file.
    weights: `embedded` (ships with the tiny config), `scratch` (initialised from the seed), `filled` (pseudo-random by
    key name, for smoke tests), or a .ckpt / .safetensors file with the official keys.
    parts: safetensors files with some of the keys, or run folders that trained some, laid over `weights` in order. From
    scratch, the text embedding's font recogniser then starts as a copy of the glyph recogniser.
    """

    config: str = "tiny"
    weights: str = "embedded"
    parts: list[str] = field(default_factory=list)
    activation_checkpointing: bool = False


@dataclass
class SyntheticSection:
    """The drawn dataset that is used where data.sources is empty. Size in pixels."""

    count: int = 2000
    size: int = 128
    seed: int = 0
    first_index: int = 0


@dataclass
class DataSection:
    """Annotation files in AnyWord format, and how samples are made of them."""

    sources: list[str] = field(default_factory=list)
    synthetic: SyntheticSection = field(default_factory=SyntheticSection)
    options: DatasetConfig = field(default_factory=DatasetConfig)
    workers: int = 2
    # Keep each image's latent (posterior mode, fp16) in memory after its first use: for small sets, frozen VAE only.
    cache_latents: bool = False
    # Stop when more than this share of the samples read so far had to be passed over.
    max_unreadable: float = 0.05

    def __post_init__(self) -> None:
        _require_at_least(0, "data", self, "workers")
        if not 0.0 <= self.max_unreadable <= 1.0:
            raise ValueError(f"data.max_unreadable={self.max_unreadable} must be a share, in [0, 1]")


@dataclass
class TrainSection:
    """Batch, optimizer and schedule. Steps are optimizer updates; one that fp16 skips does not count."""

    max_steps: int = 1000
    effective_batch: int = 48
    micro_batch: int = 4
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    # Compute threads of each CPU rank; 0 shares the machine's cores among the ranks.
    threads: int = 0
    # Run the fp16 section of the DeepSpeed configuration on a CPU too: slow, for testing the production precision.
    fp16_on_cpu: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"train.schedule={self.schedule!r}: one of {', '.join(SCHEDULES)}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"train.learning_rate={self.learning_rate} must be positive; 1e-4 is usual")
        _require_at_least(1, "train", self, "max_steps")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"train.ema_decay={self.ema_decay} must lie in [0, 1); 0 switches it off")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"train.betas={list(self.betas)} must be two numbers in [0, 1), as in [0.9, 0.999]")
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise ValueError(f"train.min_lr_ratio={self.min_lr_ratio} must lie in [0, 1]")
        _require_at_least(0, "train", self, "warmup_steps", "weight_decay", "max_grad_norm", "threads")


def _constant(progress: float, min_ratio: float) -> float:
    return 1.0


def _cosine(progress: float, min_ratio: float) -> float:
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


SCHEDULES = {"constant": _constant, "cosine": _cosine}


def learning_rate(train: TrainSection, update: int) -> float:
    """The learning rate of optimizer update `update` (from 0): linear warm-up, then the schedule."""
    if update < train.warmup_steps:
        return train.learning_rate * (update + 1) / train.warmup_steps
    progress = (update - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    return train.learning_rate * SCHEDULES[train.schedule](progress, train.min_lr_ratio)


def ema_decay(train: TrainSection, update: int) -> float:
    """The decay of the weights' average at update `update` (from 0): a short memory first, which forgets the start."""
    return min(train.ema_decay, (1.0 + update) / (10.0 + update))


@dataclass
class CheckpointSection:
    """resume: `auto` (newest complete checkpoint of the run folder), `never`, or a folder."""

    save_steps: int = 500
    keep: int = 3
    resume: str = "auto"

    def __post_init__(self) -> None:
        _require_at_least(1, "checkpoint", self, "save_steps", "keep")


@dataclass
class TrackingSection:
    """MLflow. uri: empty for the SQLite store `mlflow.db` in run_root; a server's address sends everything there."""

    enabled: bool = True
    uri: str = ""
    experiment: str = "anytext2-distill"


@dataclass
class LogSection:
    """How often, in optimizer updates: numbers, and preview grids (0: none), drawn with preview_steps steps."""

    every: int = 10
    preview_every: int = 0
    preview_samples: int = 4
    preview_steps: int = 4

    def __post_init__(self) -> None:
        _require_at_least(1, "log", self, "every", "preview_samples", "preview_steps")
        _require_at_least(0, "log", self, "preview_every")


@dataclass
class Recipe:
    """Everything a run is made of, except what DeepSpeed owns (ds_configs/)."""

    name: str = "run"
    run_root: str = "runs"
    seed: int = 0
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    # `name` selects distill/objectives/; the other keys are that objective's Config.
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "consistency"})
    lora: LoraSection = field(default_factory=LoraSection)
    train: TrainSection = field(default_factory=TrainSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name={self.name!r} must name the run's folder in run_root")

    @property
    def run_dir(self) -> Path:
        return Path(self.run_root) / self.name


def objective_config(recipe: Recipe) -> Any:
    """The validated Config of the recipe's objective.

    Raises ValueError for an unknown objective or an unknown or impossible option of it.
    """
    options = dict(recipe.objective)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective.name={name!r}: one of {', '.join(OBJECTIVES)}")
    schema = OmegaConf.structured(OBJECTIVES[name].Config)
    return _to_object(_merge(schema, DictConfig(options), "objective"), "objective")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides.

    Raises ValueError in one line for a missing or malformed file, an unknown key, or an impossible value.
    """
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in EMBEDDED_DEFAULT.parent.glob("*.yaml")))
        raise ValueError(f"--config {path}: no such file (shipped in launch/recipes: {shipped})")
    try:
        from_file = OmegaConf.load(path)
    except Exception as error:  # OmegaConf passes the YAML parser's own exceptions through
        raise ValueError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(from_file, DictConfig):
        raise ValueError(f"--config {path}: a mapping of recipe keys is needed, found {type(from_file).__name__}")
    merged = _merge(OmegaConf.structured(Recipe), from_file, f"--config {path}")
    _to_object(merged, f"--config {path}")
    for item in overrides:
        merged = _merge(merged, _parse_override(item), f"override {item}")
    recipe: Recipe = _to_object(merged, "override")
    objective_config(recipe)
    return recipe


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, readable by `load_recipe`."""
    OmegaConf.save(OmegaConf.structured(recipe), path)


def _parse_override(item: str) -> DictConfig:
    if "=" not in item:
        raise ValueError(f"override {item!r}: write it as key=value, as in train.max_steps=100")
    try:
        return OmegaConf.from_dotlist([item])
    except (YAMLError, OmegaConfBaseException, LookupError) as error:  # what OmegaConf's own parsing lets through
        cause = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"override {item!r}: cannot be read as key=value in YAML: {cause}") from error


def _merge(base: DictConfig, layer: DictConfig, where: str) -> DictConfig:
    """`base` with the values of `layer` over it. Raises ValueError naming the key that does not fit."""
    try:
        return cast(DictConfig, OmegaConf.merge(base, layer))
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{where}: {_explained(error, _culprit(base, layer))}") from error


def _to_object(merged: DictConfig, where: str) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_explained(error, '')}") from error
    except ValueError as error:  # from the sections' own checks, which name the field
        raise ValueError(f"{where}: {error}") from error


def _culprit(base: DictConfig, layer: DictConfig) -> str:
    """The path of the first value of `layer` that alone cannot be laid over `base` (OmegaConf does not always tell)."""
    for key, value in cast(dict[str, Any], OmegaConf.to_container(layer)).items():
        try:
            OmegaConf.merge(base, DictConfig({key: value}))
        except (OmegaConfBaseException, TypeError):
            inner = base.get(key) if key in base else None
            if isinstance(inner, DictConfig) and isinstance(value, dict):
                return f"{key}.{_culprit(inner, DictConfig(value))}"
            return str(key)
    return ""


def _explained(error: Exception, culprit: str) -> str:
    """The key, what is wrong with it and, where there is no such key, those that there are; one line."""
    key = getattr(error, "full_key", None) or culprit
    cause = str(getattr(error, "msg", None) or error).split("\n")[0]
    parent = getattr(error, "parent_node", None)
    if isinstance(error, ConfigKeyError) and isinstance(parent, DictConfig):
        cause += f"; known there: {', '.join(map(str, parent))}"
    return f"{key}: {cause}" if key else cause
