"""Reads and writes weights files with the official AnyText2 names.

Only the CLIP text tower has other names in this package: it is open_clip's, whose attention has q, k and v in one
matrix. All other module paths are the official ones.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from anytext2.core.files import not_weights, write_safetensors
from anytext2.model.anytext2 import AnyText2, AnyText2Config, schedule_tables
from anytext2.model.recognizer import CONFIG_DIR

TINY_WEIGHTS = CONFIG_DIR / "anytext2_tiny.safetensors"
"""The trained weights of the model config 'tiny', which are part of the package."""

OFFICIAL_TOWER = "cond_stage_model.transformer.text_model."
OUR_TOWER = "cond_stage_model.tower."
IGNORED_KEY = OFFICIAL_TOWER + "embeddings.position_ids"
"""A constant in files that older releases of transformers wrote; it is not loaded."""

_TOWER_NAMES = (
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_IN_PROJ = re.compile(r"\.attn\.in_proj_(weight|bias)$")


# --- names -----------------------------------------------------------------------------------------------------------


def official_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with official names. The tensors share memory with the model."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for official, part in _official(name, tensor):
            state[official] = part
    return state


def official_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under official names; given are official or our names."""
    return dict(pair for name, tensor in tensors.items() for pair in _official(name, tensor))


def _official(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Official names and tensors for one of our tensors: three for the q, k, v of the text tower, else one."""
    if not name.startswith(OUR_TOWER):
        return [(name, tensor)]
    name = name.removeprefix(OUR_TOWER)
    for pattern, replacement in _TOWER_NAMES:
        name = re.sub(pattern, replacement, name)
    joined = _IN_PROJ.search(name)
    if joined is None:
        return [(OFFICIAL_TOWER + name, tensor)]
    stem = OFFICIAL_TOWER + name[: joined.start()]
    return [
        (f"{stem}.self_attn.{letter}_proj.{joined[1]}", part)
        for letter, part in zip("qkv", tensor.chunk(3), strict=True)
    ]


# --- files -----------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors`, `.ckpt`, `.pt` or `.pth` file, at the top level or under "state_dict".

    Pickles are read with `weights_only`, and memory-mapped if the format allows it.

    Raises:
        ValueError: the file is missing, truncated, of another format, has no tensors, or has objects that would run
            code; that code is not run.
    """
    path = Path(path)
    _require_weights(path)
    loaded: object
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_not_unpickled(error)}") from error
    except (
        SafetensorError,
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a readable weights file, truncated or of another format ({reason})") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path}: holds no state dict of tensors")
    return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}


def tensor_names(path: Path) -> set[str]:
    """Names of a weights file's tensors. Of safetensors, only the header is read. Raises as `read_state_dict`."""
    return set(tensor_shapes(path))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file's tensors. Of safetensors, only the header is read.

    Raises as `read_state_dict`.
    """
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}
    _require_weights(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable weights file ({' '.join(str(error).split())[:200]})") from error


def _require_weights(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path}: no such weights file")
    if what := not_weights(path):
        raise ValueError(f"{path}: not a readable weights file: {what}")


def _not_unpickled(error: pickle.UnpicklingError) -> str:
    """The reason of a refused pickle. torch's own message recommends an unsafe option."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return "not a readable weights file, truncated or of another format (not a pickle of tensors)"
    only = "only files of plain tensors are read; is there a .safetensors of it?"
    return f"refused: it holds {named[1]}, which loading would run; {only}"


@torch.no_grad()
def load_weights(model: AnyText2, path: Path) -> None:
    """Loads a complete weights file with official names. Values are converted to the model's dtypes.

    Raises:
        ValueError: the file cannot be read; names are missing, unexpected or of another shape; or its noise schedule is
            not the config's. The model is then unchanged.
    """
    path = Path(path)
    source = read_state_dict(path)
    source.pop(IGNORED_KEY, None)
    target = official_state_dict(model)
    require_fit(path, source, target)
    _require_schedule(path, source, model.cfg)
    _copy(source, target)


@torch.no_grad()
def load_partial_weights(model: AnyText2, paths: Iterable[Path]) -> set[str]:
    """Loads files with some of the model's tensors, under official or our names. Later files override earlier ones.

    Returns the names that were loaded.
    Raises ValueError for a name that the model does not have or another shape; the model is then unchanged.
    """
    target = official_state_dict(model) | model.state_dict()
    sources = []
    for path in map(Path, paths):
        source = read_state_dict(path)
        source.pop(IGNORED_KEY, None)
        require_fit(path, source, {name: tensor for name, tensor in target.items() if name in source})
        sources.append(source)
    for source in sources:
        _copy(source, target)
    return {name for source in sources for name in source}


def dtype_in_file(name: str, own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype in a file of weights in `wanted`: schedule, batch norm statistics and integers keep their own."""
    keep = wanted is None or "." not in name or ".running_" in name or not own.is_floating_point
    return own if keep or wanted is None else wanted


@torch.no_grad()
def save_weights(model: AnyText2, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes all tensors with official names to a `.safetensors` file, or as {"state_dict": ...} to a `.ckpt` or `.pt`.

    dtype: of the weights in the file; None for the model's. The schedule, batch norm statistics and integers keep their
    dtypes.
    """
    path = Path(path)
    state = {}
    for name, tensor in official_state_dict(model).items():
        state[name] = (
            tensor.detach()
            .to("cpu", dtype_in_file(name, tensor.dtype, dtype))
            .clone(memory_format=torch.contiguous_format)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    if path.suffix == ".safetensors":
        write_safetensors(unfinished, state)
    else:
        torch.save({"state_dict": state}, unfinished)
    os.replace(unfinished, path)


# --- checks ----------------------------------------------------------------------------------------------------------


def require_fit(path: Path, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises ValueError, with counts and first names, unless both have the same names and shapes."""
    missing = [name for name in target if name not in source]
    unexpected = [name for name in source if name not in target]
    reshaped = [
        f"{name} (file {_shape(source[name])}, model {_shape(tensor)})"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    if any(names for _, names in faults):
        summary = "; ".join(f"{len(names)} {what}{_first(names)}" for what, names in faults)
        raise ValueError(f"{path}: does not fit the model: {summary}{_other_model(source)}")


def _other_model(names: Iterable[str]) -> str:
    """What a file of another model may be, by its names, and what it is good for; empty where nothing is known."""
    for part, what in _OTHER_MODELS:
        if any(part in name for name in names):
            return f"; {what}"
    return ""


_OTHER_MODELS = (
    (".lora_", "these are weights of a LoRA: --checkpoint and lora.weights take it"),
    ("down_blocks.", "these are diffusers' names: one file with the official names is needed"),
)


def _first(names: Sequence[str], n: int = 3) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:n])}{', ...' if len(names) > n else ''})"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _require_schedule(path: Path, source: Mapping[str, Tensor], cfg: AnyText2Config) -> None:
    """Raises ValueError if the file's noise schedule is not the config's."""
    for name in ("betas", "alphas_cumprod"):
        # 1e-2 accepts files with tables in half precision.
        if not torch.allclose(source[name].float(), schedule_tables(cfg.schedule)[name], rtol=1e-2, atol=1e-6):
            raise ValueError(f"{path}: its table {name} is not that of the config's schedule ({cfg.schedule})")


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies all source tensors except the schedule, which comes from the config."""
    for name, tensor in source.items():
        if "." in name:
            target[name].copy_(tensor)
