"""The recipe of a run as dataclasses: its keys, their defaults and possible values (recipes.py reads the files)."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from anytext2.data.options import DatasetConfig
from anytext2.model.recomputation import RECOMPUTATIONS
from distill.adapters.lora import AdapterConfig
from distill.config.objective import resolve_objective
from distill.objectives.base import LCM_STUDENT, ObjectiveConfig, StudentSpec
from distill.optim.optimizers import OPTIMIZERS, check_rate
from distill.runtime.watchdog import WatchdogConfig


def _require_at_least(least: int, section: str, values: object, *names: str) -> None:
    for name in names:
        value = getattr(values, name)
        if not value >= least:  # NaN included
            raise ValueError(f"{section}.{name}={value} must be at least {least}")


FAULTS = ("glyph_page_all_ink", "glyph_lines_thin", "placeholders_lost", "writenet_sees_noise")
"""The faults that distill/checks/fault_injection.py has."""


@dataclass
class ModelConfig:
    """Which network, and where its weights come from.

    config: a name in anytext2/configs (`tiny`, `sd15`) or a YAML file.
    weights: `embedded` (ships with the tiny config), `scratch` (initialised from the seed), `filled` (pseudo-random by
    key name, for smoke tests), or a .ckpt / .safetensors file with the official keys.
    parts: safetensors files with some of the keys, or run folders that trained some, laid over `weights` in order. From
    scratch, the text embedding's font recogniser then starts as a copy of the glyph recogniser.
    activation_checkpointing: `none`, `selective` or `all` (also `false` and `true`): what the backward pass recomputes
    instead of storing it, see anytext2/model/recomputation.py.
    fault_injection: a known fault of earlier attempts, one of distill/checks/fault_injection.py, to measure its cost;
    empty: none.
    """

    config: str = "tiny"
    weights: str = "embedded"
    parts: list[str] = field(default_factory=list)
    activation_checkpointing: str = "none"
    fault_injection: str = ""

    def __post_init__(self) -> None:
        given = str(self.activation_checkpointing)
        self.activation_checkpointing = {"true": "all", "false": "none"}.get(given.lower(), given)
        if self.activation_checkpointing not in RECOMPUTATIONS:
            raise ValueError(f"model.activation_checkpointing='{given}': one of {', '.join(RECOMPUTATIONS)}")
        if self.fault_injection and self.fault_injection not in FAULTS:
            raise ValueError(
                f"model.fault_injection='{self.fault_injection}': one of {', '.join(FAULTS)}, or empty for none"
            )


@dataclass
class SyntheticDataConfig:
    """The drawn dataset that is used where data.sources is empty. Size in pixels."""

    count: int = 2000
    size: int = 128
    seed: int = 0
    first_index: int = 0


@dataclass
class DataConfig:
    """Annotation files in AnyWord format, which of their pictures a run uses, and how samples are made of them.

    sources: the files; weights: how often each one's pictures occur in an epoch (empty: once; 0.5: a random half).
    split: shares of train, val and test, by a hash of the picture's name; part: the one in use, or `all`.
    max_faulty: share of a file's items that may have a fault; max_faulty_lines: share of its lines that may be left out
    for a fault (anytext2/data/limits.py), 1: no limit; max_unreadable: share of the samples read so far that may have
    been passed over. buckets: picture sizes ('512' or '768x512', width x height; empty: options.resolution), one
    for each global batch: a picture goes to the nearest shape, and the sizes of one shape take turns.
    cache: a feature cache of launch/build_lmdb_cache.py; cache_mismatch: `error`, or `online` to draw everything where
    it was made for other data or options. latents: `encode` each picture whenever it is used, keep them in `memory`
    (posterior mode, fp16, for small sets), or take them from the `cache`; the last two need a VAE that is not trained.
    captions: `encode` image captions whenever they are used, or take their contexts from the `cache`, which needs a
    text tower that is not trained; what is not there is encoded. With buckets there is one store for each size.
    """

    sources: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    split: list[float] = field(default_factory=lambda: [0.9, 0.05, 0.05])
    part: str = "train"
    max_faulty: float = 0.01
    max_faulty_lines: float = 0.05
    max_unreadable: float = 0.05
    synthetic: SyntheticDataConfig = field(default_factory=SyntheticDataConfig)
    options: DatasetConfig = field(default_factory=DatasetConfig)
    buckets: list[str] = field(default_factory=list)
    cache: str | None = None
    cache_mismatch: str = "error"
    latents: str = "encode"
    captions: str = "encode"
    workers: int = 2

    def __post_init__(self) -> None:
        _require_at_least(0, "data", self, "workers")
        for name in ("max_faulty", "max_faulty_lines", "max_unreadable"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"data.{name}={getattr(self, name)} must be a share, in [0, 1]")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"data.{name}='{getattr(self, name)}': choose one of {', '.join(choices)}")
        if len(self.split) != 3 or not all(share >= 0 for share in self.split) or not math.isclose(sum(self.split), 1):
            raise ValueError(f"data.split={self.split} must be three shares that add up to 1: train, val, test")
        if not all(weight >= 0 for weight in self.weights) or (self.weights and not any(self.weights)):
            raise ValueError(f"data.weights={self.weights} must be at least 0 and not all 0")
        if self.latents == "cache" and self.cache is None:
            raise ValueError("data.latents=cache needs data.cache, a store built with --latents")
        if self.captions == "cache" and self.cache is None:
            raise ValueError("data.captions=cache needs data.cache, a store built with --captions")
        if self.latents == "memory" and self.buckets:
            raise ValueError("data.latents=memory keeps one size of each picture; set data.latents=encode for buckets")


_CHOICES = {
    "part": ("train", "val", "test", "all"),
    "cache_mismatch": ("error", "online"),
    "latents": ("encode", "memory", "cache"),
    "captions": ("encode", "cache"),
}


COMPILE_MODES = ("none", "blocks", "graphs", "blocks+graphs")


@dataclass
class TrainConfig:
    """Batch, optimizer and schedule. Steps are optimizer updates; one that fp16 skips does not count.

    optimizer: `adamw` or `prodigy`, see distill/optim/optimizers.py. betas: empty for the optimizer's own.
    """

    max_steps: int = 1000
    effective_batch: int = 48
    micro_batch: int = 4
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    betas: list[float] = field(default_factory=list)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    # Compute threads of each CPU rank; 0 shares the machine's cores among the ranks.
    threads: int = 0
    # Accumulate the teacher's fp16 matrix products in fp16: faster on GeForce cards, and less exact.
    teacher_fp16_accumulation: bool = False
    # How a micro-step runs: as written (`none`), with compiled `blocks`, as CUDA `graphs`, or `blocks+graphs`;
    # distill/compilation.
    compile: str = "none"
    # Run the fp16 section of the DeepSpeed configuration on a CPU too: slow, for testing the production precision.
    fp16_on_cpu: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"train.schedule={self.schedule!r}: one of {', '.join(SCHEDULES)}")
        if self.optimizer not in OPTIMIZERS:
            why = "; adamw8bit was removed because it saves 54 MB of 24 GB" if self.optimizer == "adamw8bit" else ""
            raise ValueError(f"train.optimizer={self.optimizer!r}: one of {', '.join(OPTIMIZERS)}{why}")
        if self.compile not in COMPILE_MODES:
            raise ValueError(f"train.compile={self.compile!r}: one of {', '.join(COMPILE_MODES)}")
        check_rate(self.optimizer, self.learning_rate)
        self.betas = list(self.betas) or list(OPTIMIZERS[self.optimizer].betas)
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


def learning_rate(train: TrainConfig, update: int) -> float:
    """The learning rate of optimizer update `update` (from 0): linear warm-up, then the schedule."""
    if update < train.warmup_steps:
        return train.learning_rate * (update + 1) / train.warmup_steps
    progress = (update - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    return train.learning_rate * SCHEDULES[train.schedule](progress, train.min_lr_ratio)


def ema_decay(train: TrainConfig, update: int) -> float:
    """The decay of the weights' average at update `update` (from 0): a short memory first, which forgets the start."""
    return min(train.ema_decay, (1.0 + update) / (10.0 + update))


@dataclass
class CheckpointConfig:
    """When a checkpoint is written besides the last one, which stay, and where a run goes on.

    save_steps: every so many updates; save_epochs: every so many passes over the data; 0: off. keep: newest ones that
    stay, beside the best. resume: `auto` (newest complete checkpoint of the run folder), `never`, or a folder to start
    from; one of another run is left behind as soon as this run has checkpoints of its own. resume_optimizer: false
    takes weights and counters of the checkpoint, but starts the optimizer and the loss scale afresh. allow: keys, or
    sections of keys, of what is learned that may differ from the checkpoint's recipe (distill/config/differences.py).
    """

    save_steps: int = 500
    save_epochs: int = 0
    keep: int = 3
    resume: str = "auto"
    resume_optimizer: bool = True
    allow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require_at_least(1, "checkpoint", self, "keep")
        _require_at_least(0, "checkpoint", self, "save_steps", "save_epochs")


@dataclass
class EvalConfig:
    """Validation of the student's spelling every so many optimizer updates (0: never). The best checkpoint is kept.

    samples: number of held-out pictures; data: their annotation files (none: the `val` part of the data, or separately
    drawn pictures where the data is drawn); steps: of the student's sampler; patience: number of validations without a
    better one after which the run ends (0: it goes on).
    """

    every: int = 0
    samples: int = 64
    data: list[str] = field(default_factory=list)
    steps: int = 4
    patience: int = 0

    def __post_init__(self) -> None:
        _require_at_least(0, "eval", self, "every", "patience")
        _require_at_least(1, "eval", self, "samples", "steps")


@dataclass
class TrackingConfig:
    """MLflow, and a command that is told how a run ends.

    uri: empty for the SQLite store `mlflow.db` in run_root; a server's address sends everything there. notify: a
    command that is called at the end, at a stop and at trouble, with JSON on its standard input
    (distill/tracking/notify.py).
    """

    enabled: bool = True
    uri: str = ""
    experiment: str = "anytext2-distill"
    notify: str = ""

    def __post_init__(self) -> None:
        try:
            shlex.split(self.notify)
        except ValueError as error:
            raise ValueError(
                f"tracking.notify={self.notify!r}: {error}; write it as for a shell, as in notify='/usr/bin/logger run'"
            ) from error


@dataclass
class LogConfig:
    """Intervals in optimizer updates: of metrics, and of preview grids (0: none), sampled with preview_steps steps.

    samples: also write the samples of each global batch to samples-RANK.jsonl.
    """

    every: int = 10
    samples: bool = False
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
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # `name` selects distill/objectives/; the other keys are that objective's Config.
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "consistency"})
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        # The run's folder must lie in run_root, whatever a recipe from elsewhere says.
        if (
            not self.name.strip()
            or self.name in (".", "..")
            or set(self.name) & set("/\\")
            or not self.name.isprintable()
        ):
            raise ValueError(
                f"name={self.name!r} must name one folder in run_root: no '/', '\\', '.', '..', line breaks"
            )
        if not self.run_root.strip() or not self.run_root.isprintable():
            raise ValueError(f"run_root={self.run_root!r} must be a folder, as in run_root=runs")

    @cached_property
    def objective_config(self) -> ObjectiveConfig:
        """The `objective` section as its objective's Config. Raises ValueError as `resolve_objective` does."""
        return resolve_objective(self.objective)

    @property
    def student(self) -> StudentSpec:
        """How the student is sampled; as an LCM-LoRA where the objective trains none."""
        return self.objective_config.student or LCM_STUDENT

    @property
    def run_dir(self) -> Path:
        return Path(self.run_root) / self.name
