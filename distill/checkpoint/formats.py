"""The files of a checkpoint: the adapter in PEFT format, the optimizer, the trainer's state. No file is a pickle.

adapter_config.json, adapter_model.safetensors   the student, as PEFT reads it
optimizer.safetensors                            whole tensors by parameter name: any number of ranks can read them
trainer_state.json                               counters
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anytext2.core.files import not_weights, write_safetensors
from distill.checkpoint.store import CheckpointError, read_json

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_WEIGHTS = "model.safetensors"
TRAINER_STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
PEFT_PREFIX = "base_model.model."

CONFIG_KEYS = (
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "init_lora_weights"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out"),
)
"""What adapter_config.json holds. Any other key would keep releases of PEFT that do not know it from reading it."""
CONFIG_SWITCHES = ("use_dora", "use_rslora")
"""Written where they are true only: older releases than those that made them cannot read such an adapter anyway."""
CONFIG_PATTERNS = ("rank_pattern", "alpha_pattern")
"""Written where layers differ in rank or alpha."""

_OS_ERROR = re.compile(r"os error (\d+)|code: (\d+)")


@dataclass(frozen=True)
class TrainerState:
    """What a resumed run must know besides tensors. JSON values only.

    step: optimizer updates done. batches: global batches taken from the data stream, those with a skipped update too;
    the stream continues there. skipped_steps: updates left out because of inf/NaN gradients. loss_scaler: state of the
    dynamic loss scale. tracking_run_id: MLflow run to continue. extra: whatever else the trainer keeps.
    """

    step: int
    batches: int
    seed: int
    effective_batch: int
    skipped_steps: int = 0
    loss_scaler: dict[str, Any] = field(default_factory=dict)
    tracking_run_id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def portable_name(name: str, adapter: str) -> str:
    """A parameter's name without what wraps it: `module.`, PEFT's prefix and the adapter's own name.

    base_model.model.control_model.zero_convs.0.0.lora_A.student.weight -> control_model.zero_convs.0.0.lora_A.weight
    DoRA's lengths are `...lora_magnitude_vector`, as in PEFT's files.
    """
    bare = name.removeprefix("module.").removeprefix(PEFT_PREFIX)
    bare = re.sub(rf"\.(lora_\w+)\.{re.escape(adapter)}(?=\.|$)", r".\1", bare)
    return bare.removesuffix(".weight") if bare.endswith(".lora_magnitude_vector.weight") else bare


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: LoraConfig,
    base_model: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a LoRA as `PeftModel.from_pretrained(reference_model, folder)` reads it.

    tensors: by portable name, the full float32 values. base_model: what the adapter was trained on, for the reader.
    metadata: of the weights file.
    Raises ValueError where a value is not finite: such an adapter must not replace a good one.
    """
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and ".lora_" in name, (name, tensor.dtype)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter tensor {name} is not finite; the checkpoint is not written")
    given = config.to_dict()
    content = {key: given[key] for key in CONFIG_KEYS} | {key: True for key in CONFIG_SWITCHES if given.get(key)}
    content |= {key: given[key] for key in CONFIG_PATTERNS if given.get(key)}
    # PEFT shortens its list to endings that are unique in this model, which they may not be in the reader's.
    content |= {"target_modules": sorted({name.split(".lora_")[0] for name in tensors}), "inference_mode": True}
    content["base_model_name_or_path"] = base_model or given["base_model_name_or_path"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(folder / ADAPTER_WEIGHTS, {PEFT_PREFIX + name: tensor for name, tensor in tensors.items()}, metadata)


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter's float32 tensors by portable name, and its configuration. Raises CheckpointError."""
    tensors = read_tensors(folder / ADAPTER_WEIGHTS)
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}, read_json(
        folder / ADAPTER_CONFIG
    )


def write_optimizer(folder: Path, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Writes the optimizer's state: portable parameter name -> {"master", "exp_avg", "exp_avg_sq", "step", ...}.

    The tensors are whole (not a rank's shard), so that any number of ranks can read them. Slot names hold no '/'.
    """
    flat = {f"{slot}/{name}": tensor for name, slots in state.items() for slot, tensor in slots.items()}
    write_tensors(folder / OPTIMIZER, flat)


def read_optimizer(
    folder: Path, expected: Mapping[str, torch.Size] | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """The state as it was given to `write_optimizer`.

    expected: the parameters' portable names and shapes. Raises CheckpointError where the file is missing or damaged, or
    where a parameter is missing, unexpected or has slots of another shape (scalars such as "step" apart).
    """
    path = folder / OPTIMIZER
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        slot, _, name = key.partition("/")
        state.setdefault(name, {})[slot] = tensor
    if expected is not None:
        missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
        if missing or unexpected:
            first = (missing or unexpected)[0]
            raise CheckpointError(
                f"{path}: {len(missing)} parameters missing, {len(unexpected)} unexpected, first {first}; "
                "resume with the adapter's own targets"
            )
        for name, slots in state.items():
            for slot, tensor in slots.items():
                if tensor.dim() and tensor.shape != expected[name]:
                    raise CheckpointError(
                        f"{path}: {slot} of {name} has shape {tuple(tensor.shape)}, the model {tuple(expected[name])}; "
                        "resume with the same rank"
                    )
    return state


def write_trainer_state(folder: Path, state: TrainerState) -> None:
    """Writes trainer_state.json. Raises ValueError for a value that JSON cannot hold (NaN and infinity included)."""
    text = json.dumps(asdict(state), indent=1, allow_nan=False)
    (folder / TRAINER_STATE).write_text(text + "\n", encoding="utf-8")


def read_trainer_state(folder: Path) -> TrainerState:
    """Reads trainer_state.json. Raises CheckpointError where it is missing, malformed or lacks a field."""
    path = folder / TRAINER_STATE
    content = read_json(path)
    kinds = {name: type(value) for name, value in asdict(TrainerState(0, 0, 0, 0)).items()}
    unknown = sorted(set(content) - set(kinds))
    if unknown:
        raise CheckpointError(f"{path}: unknown field {unknown[0]}; it was written by another version")
    for name, kind in kinds.items():
        if name not in content:
            raise CheckpointError(f"{path}: field {name} is missing")
        if not isinstance(content[name], kind):
            raise CheckpointError(f"{path}: {name}={content[name]!r} is not of type {kind.__name__}")
    return TrainerState(**content)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, contiguous and no view of a larger buffer: safetensors stores whole tensors only."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file. Raises OSError where the disk is full or cannot be written, as other writes do."""
    try:
        write_safetensors(
            path, {name: _own(tensor) for name, tensor in tensors.items()}, {"format": "pt", **(metadata or {})}
        )
    except SafetensorError as error:  # also what the operating system refuses; its number stands in the text only
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code), str(path)) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError where it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if what := not_weights(path):
        raise CheckpointError(f"{path}: not a readable weights file: {what}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error
