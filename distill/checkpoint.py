"""Checkpoints as files: complete or absent, independent of the number of ranks, readable without pickle.

    run/latest                      name of the checkpoint that was completed last
    run/checkpoint-N/               the adapter in PEFT format, trainer_state.json, optimizer.safetensors, ...
    run/checkpoint-N/manifest.json  size and SHA-256 of every other file; written last

Order of a save: everything into a hidden folder, each file synced, the manifest, one rename, `latest`, and only then
the older ones are removed. A process killed at any point leaves a complete checkpoint. Only one process of a run
(rank 0) calls `save_checkpoint`; gathering the tensors is its caller's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from peft import LoraConfig

MANIFEST = "manifest.json"
LATEST = "latest"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINER_STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
PEFT_PREFIX = "base_model.model."

_REPLACED = ".replaced"
_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(_REPLACED)})?")
_HASH_BLOCK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or does not fit; the message is one line."""


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


# --- the protocol ---


def save_checkpoint(run_dir: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Writes `run_dir/checkpoint-<step>` through `write(folder)` and returns its path, once it is complete on disk.

    A checkpoint of the same step is replaced. Complete ones beyond the `keep` newest are removed (the one just written
    never is); incomplete ones are left for a person to look at. If `write` raises, nothing has changed.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep={keep} must be at least 1")
    assert step >= 0, step
    run_dir.mkdir(parents=True, exist_ok=True)
    for leftover in run_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(leftover)
    target = run_dir / f"checkpoint-{step}"
    temporary = run_dir / f".{target.name}.tmp"
    temporary.mkdir()
    try:
        write(temporary)
        _write_manifest(temporary, step)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _publish(temporary, target)
    write_text_atomically(run_dir / LATEST, target.name + "\n")
    _remove_old(run_dir, target, keep)
    return target


def find_checkpoint(path: Path, say: Callable[[str], None] = print) -> Path:
    """The checkpoint `path` is, or the newest complete one of the run folder `path`.

    What `latest` names comes first, then the others, highest step first. Each one passed over is reported through `say`
    with the reason. Raises CheckpointError where none is complete, or where `path` itself is a broken checkpoint.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a checkpoint-N folder or the run folder that holds it")
    if _NAME.fullmatch(path.name) or (path / MANIFEST).exists():
        verify(path)
        return path
    candidates = _candidates(path)
    for candidate in candidates:
        try:
            verify(candidate)
        except CheckpointError as error:
            say(f"checkpoint skipped: {error}")
            continue
        return candidate
    raise CheckpointError(f"{path}: no complete checkpoint-N in this folder ({len(candidates)} incomplete)")


def verify(path: Path, hashes: bool = True) -> None:
    """Checks every file of the checkpoint against its manifest (`hashes=False`: sizes only, without reading them).

    Files that the manifest does not name are allowed. Raises CheckpointError naming the first file that is wrong.
    """
    for name, entry in _read_manifest(path).items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing, although {MANIFEST} lists it")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{file}: {size} bytes, {MANIFEST} says {entry['bytes']}")
        if hashes and _sha256(file) != entry["sha256"]:
            raise CheckpointError(f"{file}: content differs from the SHA-256 in {MANIFEST}")


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces the file by `text` (UTF-8): a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _publish(temporary: Path, target: Path) -> None:
    """Gives the complete folder its name. An older one of that name stays findable until the new one stands."""
    aside = target.with_name(target.name + _REPLACED)
    if target.exists():
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(target, aside)
    os.rename(temporary, target)
    _sync(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise ValueError(f"{folder}: nothing was written into the checkpoint")
    entries = {}
    for path in paths:
        _sync(path)
        entries[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    for subfolder in (path for path in folder.rglob("*") if path.is_dir()):
        _sync(subfolder)
    write_text_atomically(folder / MANIFEST, json.dumps({"format": 1, "step": step, "files": entries}, indent=1) + "\n")


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path}: incomplete, it has no {MANIFEST}")
    content = _read_json(manifest)
    files = content.get("files")
    well_formed = isinstance(files, dict) and all(
        isinstance(e, dict) and {"bytes", "sha256"} <= set(e) for e in files.values()
    )
    if content.get("format") != 1 or not files or not well_formed:
        raise CheckpointError(f"{manifest}: not a manifest of format 1 with sizes and SHA-256 of the files")
    return files


def _candidates(run_dir: Path) -> list[Path]:
    ordered = _by_step(run_dir)
    latest = run_dir / LATEST
    if latest.is_file():
        named = latest.read_text(encoding="utf-8", errors="replace").strip()
        ordered.sort(key=lambda path: path.name != named)  # stable: only the named one moves, to the front
    return ordered


def _by_step(run_dir: Path) -> list[Path]:
    """All checkpoint folders, highest step first; one that is being replaced comes after its replacement."""
    found = [(match, path) for path in run_dir.iterdir() if path.is_dir() and (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda item: (-int(item[0][1]), item[0][2] is not None))
    return [path for _, path in found]


def _remove_old(run_dir: Path, newest: Path, keep: int) -> None:
    others = [path for path in _by_step(run_dir) if path != newest and _has_all_files(path)]
    for path in others[keep - 1 :]:
        # Without its manifest it counts as incomplete from the first moment of the removal on.
        (path / MANIFEST).unlink()
        shutil.rmtree(path)


def _has_all_files(path: Path) -> bool:
    try:
        verify(path, hashes=False)
    except CheckpointError:
        return False
    return True


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the contents ---


def portable_name(name: str, adapter: str) -> str:
    """A parameter's name without what wraps it: `module.`, PEFT's prefix and the adapter's own name.

    base_model.model.control_model.zero_convs.0.0.lora_A.student.weight -> control_model.zero_convs.0.0.lora_A.weight
    """
    bare = name.removeprefix("module.").removeprefix(PEFT_PREFIX)
    return re.sub(rf"\.(lora_\w+)\.{re.escape(adapter)}\.", r".\1.", bare)


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], config: LoraConfig, base_model: str = "") -> None:
    """Writes a LoRA as `PeftModel.from_pretrained(reference_model, folder)` reads it.

    tensors: by portable name, the full float32 values. base_model: what the adapter was trained on, for the reader.
    Raises ValueError where a value is not finite: such an adapter must not replace a good one.
    """
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and ".lora_" in name, (name, tensor.dtype)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"adapter tensor {name} is not finite; the checkpoint is not written")
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    content |= {"inference_mode": True, "base_model_name_or_path": base_model or content.get("base_model_name_or_path")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({PEFT_PREFIX + name: _own(t) for name, t in tensors.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The adapter's float32 tensors by portable name, and its configuration. Raises CheckpointError."""
    tensors = load_tensors(folder / ADAPTER_WEIGHTS)
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}, _read_json(
        folder / ADAPTER_CONFIG
    )


def write_optimizer(folder: Path, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Writes the optimizer's state: portable parameter name -> {"master", "exp_avg", "exp_avg_sq", "step", ...}.

    The tensors are whole (not a rank's shard), so that any number of ranks can read them. Slot names hold no '/'.
    """
    flat = {f"{slot}/{name}": _own(tensor) for name, slots in state.items() for slot, tensor in slots.items()}
    save_file(flat, folder / OPTIMIZER)


def read_optimizer(
    folder: Path, expected: Mapping[str, torch.Size] | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """The state as it was given to `write_optimizer`.

    expected: the parameters' portable names and shapes. Raises CheckpointError where the file is missing or damaged, or
    where a parameter is missing, unexpected or has slots of another shape (scalars such as "step" apart).
    """
    path = folder / OPTIMIZER
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_tensors(path).items():
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
    content = _read_json(path)
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
    """On the CPU, contiguous, and not a window into a larger buffer (safetensors stores whole tensors only)."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not a {type(content).__name__}")
    return content
