"""Reads a LoRA from a PEFT folder or a single file of native, PEFT's, kohya's or diffusers' names.

Every mistake is a ValueError of one line. Pickles are read with `weights_only`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anytext2.model.weights import read_state_dict, tensor_names
from distill.adapter_files.lora_weights import KINDS, LENGTHS, A, B, LoraWeights
from distill.adapter_files.metadata import read_metadata
from distill.adapter_files.names import KOHYA_UNET, adaptable_layers, layer_aliases
from distill.checkpoint.formats import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX
from distill.checkpoint.store import read_json

PICKLED_WEIGHTS = "adapter_model.bin"
KIND_KEY, NETWORK_ALPHA = "lora_kind", "ss_network_alpha"
"""Metadata: the kind of LoRA in files of ours with native names; the alpha of all layers in kohya's."""
LORA_KEY = re.compile(r"\.(lora_|lora\.|alpha$)|^lora_|_lora\.(down|up)\.")

_PARTS = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$|\.lora[._]down\.weight$"), A),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$|\.lora[._]up\.weight$"), B),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.lora_magnitude_vector(\.\w+)?(\.weight)?$"), LENGTHS),
)
_OLD_DIFFUSERS = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$")
_TEXT_ENCODER = ("lora_te_", "lora_te1_", "text_encoder.")
_REFUSED_PARTS = (
    (".hada_", "LoHa of LyCORIS"),
    (".lokr_", "LoKr of LyCORIS"),
    (".lora_mid.", "a LoRA of LyCORIS with a third matrix"),
    (".dora_scale", "DoRA in kohya's format"),
    (".oft_", "OFT"),
    (".lora_embedding_", "a LoRA of embeddings"),
    (".diff", "differences of weights instead of a LoRA"),
)
_REFUSED_FAMILIES = (
    (("lora_te2_", "text_encoder_2.", "lora_unet_label_emb"), "a LoRA of Stable Diffusion XL"),
    (
        ("transformer.", "lora_transformer_", "lora_unet_double_blocks", "lora_unet_joint_blocks"),
        "a LoRA of another model",
    ),
)


@dataclass
class _Found:
    """What is known of one layer while a file is read."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def is_lora(path: Path) -> bool:
    """Whether a folder or a file's tensor names are those of a LoRA. Raises ValueError for an unreadable file."""
    if path.is_dir():
        return any((path / name).is_file() for name in (ADAPTER_WEIGHTS, PICKLED_WEIGHTS))
    return any(LORA_KEY.search(name) for name in tensor_names(path))


def read_lora(path: Path, model: nn.Module) -> LoraWeights:
    """Reads the LoRA and checks it against the model's layers.

    path: a PEFT folder, or a .safetensors, .ckpt, .pt or .bin file. model: an AnyText2; the meta device is enough.
    Raises ValueError in one line for a file that is damaged, made for another model, or of an unknown kind.
    """
    file, config = _locate(path)
    tensors = read_state_dict(file)
    metadata = read_metadata(file)
    found, left_out, formats = _sort(file, tensors, layer_aliases(model))
    layers = adaptable_layers(model)
    found = {module: found[module] for module in layers if module in found}
    for module, layer in found.items():
        _require_complete(file, module, layer)
        _fit(file, module, layer, layers[module])
    ranks = {module: int(layer.parts[A].shape[0]) for module, layer in found.items()}
    kind = _kind(file, found, config, metadata)
    name = "peft" if config is not None else formats
    alphas = _alphas(file, name, found, ranks, config, metadata)
    named = {f"{m}.{part}": t for m, layer in found.items() for part, t in layer.parts.items() if part != "alpha"}
    return LoraWeights(path, name, kind, named, ranks, alphas, left_out, metadata)


def _locate(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The weights file, and the content of a PEFT folder's configuration."""
    if not path.is_dir():
        return path, None
    file = next((path / n for n in (ADAPTER_WEIGHTS, PICKLED_WEIGHTS) if (path / n).is_file()), None)
    if file is None:
        raise ValueError(f"{path}: no {ADAPTER_WEIGHTS} or {PICKLED_WEIGHTS} there; name a file, or a PEFT folder")
    config = read_json(path / ADAPTER_CONFIG)
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path / ADAPTER_CONFIG}: peft_type={config['peft_type']}: only LORA is read")
    return file, config


def _sort(
    file: Path, tensors: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, _Found], dict[str, int], str]:
    """The tensors by official path, what is left out by family, and the format of the names."""
    found: dict[str, _Found] = {}
    formats: set[str] = set()
    strangers: dict[str, str] = {}
    text_encoder: set[str] = set()
    for key, tensor in tensors.items():
        name, part = _split(file, key)
        if name.startswith(_TEXT_ENCODER):
            text_encoder.add(name)
            continue
        if name not in aliases:
            strangers[name] = key
            continue
        module, format_ = aliases[name]
        layer = found.setdefault(module, _Found())
        if part in layer.parts:
            raise ValueError(f"{file}: {part} of {module} is there twice ({layer.keys[-1]}, {key})")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{file}: {key} is not finite; the file is damaged, or its training failed")
        layer.parts[part] = tensor.float()
        layer.keys.append(key)
        formats.add(format_)
    if strangers or not found:
        _refuse_strangers(file, strangers, len(found))
    if len(formats) > 1:
        raise ValueError(f"{file}: has names of two formats ({', '.join(sorted(formats))}); one file is one LoRA")
    return found, {"text encoder": len(text_encoder)} if text_encoder else {}, formats.pop()


def _split(file: Path, key: str) -> tuple[str, str]:
    """Name of the layer, and which of its tensors a key is. Raises ValueError for one that no LoRA has."""
    bare = key.removeprefix("module.").removeprefix(PEFT_PREFIX)
    if old := _OLD_DIFFUSERS.search(bare):
        layer = "to_out.0" if old[1] == "to_out" else old[1]
        return f"{bare[: old.start()]}.{layer}", A if old[2] == "down" else B
    for pattern, part in _PARTS:
        if match := pattern.search(bare):
            return bare[: match.start()], part
    what = next((kind for sign, kind in _REFUSED_PARTS if sign in bare), None)
    if what is not None:
        raise ValueError(f"{file}: {key} is part of {what}, which is not read; a plain LoRA is needed")
    raise ValueError(
        f"{file}: unknown key {key}: a LoRA has lora_A and lora_B (or lora_down, lora_up, alpha) of layers"
    )


def _refuse_strangers(file: Path, strangers: Mapping[str, str], known: int) -> None:
    """Raises ValueError for layers that the model does not have."""
    if not strangers:
        raise ValueError(f"{file}: holds a LoRA of the text encoder alone, which teacher and student share; not read")
    name, key = next(iter(strangers.items()))
    for starts, what in _REFUSED_FAMILIES:
        if other := next((key for n, key in strangers.items() if n.startswith(starts)), None):
            raise ValueError(f"{file}: {other} is of {what}; one for Stable Diffusion 1.5 or AnyText2 is needed")
    if known == 0 and not name.startswith((KOHYA_UNET, "unet.", "model.", "control_model.")):
        raise ValueError(
            f"{file}: unknown family of keys, first {key}; native, PEFT's, kohya's and diffusers' are read"
        )
    raise ValueError(
        f"{file}: a LoRA of another base: {len(strangers)} of {len(strangers) + known} layers are not in this model, "
        f"first {key}; name the model it was made for (model.config)"
    )


def _require_complete(file: Path, module: str, layer: _Found) -> None:
    for part in (A, B):
        if part not in layer.parts:
            raise ValueError(f"{file}: {module} has {', '.join(layer.keys)} but no {part}; half a file, copy it again")


def _fit(file: Path, module: str, found: _Found, layer: nn.Module) -> None:
    """Gives A and B the shapes that the layer needs. Raises ValueError where they are for another layer."""
    weight = layer.get_parameter("weight").shape
    a, b = found.parts[A], found.parts[B]
    rank, ones = int(a.shape[0]), (1,) * (len(weight) - 2)
    fits = a.dim() in (2, 4) and b.dim() in (2, 4) and rank > 0
    if not fits or a.numel() != rank * weight[1:].numel() or b.numel() != weight[0] * rank or b.shape[0] != weight[0]:
        raise ValueError(
            f"{file}: a LoRA of another base: {module} is {_shape(weight)} here, and its lora_A is {_shape(a.shape)}, "
            f"lora_B {_shape(b.shape)}"
        )
    found.parts[A], found.parts[B] = a.reshape(rank, *weight[1:]), b.reshape(weight[0], rank, *ones)


def _kind(
    file: Path, found: Mapping[str, _Found], config: Mapping[str, Any] | None, metadata: Mapping[str, str]
) -> str:
    """The kind of LoRA: by the configuration, the file's metadata, or the lengths of DoRA."""
    has_lengths = {LENGTHS in layer.parts for layer in found.values()}
    if len(has_lengths) > 1:
        raise ValueError(f"{file}: some layers have DoRA's {LENGTHS} and others do not; half a file, copy it again")
    kind = "dora" if has_lengths == {True} else metadata.get(KIND_KEY, "lora")
    if config is not None:
        on = {key: True for key in ("use_dora", "use_rslora", "fan_in_fan_out") if config.get(key)}
        kind = next((name for name, switches in KINDS.items() if switches == on), "")
    if kind not in KINDS or (kind == "dora") != (has_lengths == {True}):
        raise ValueError(f"{file}: its kind of LoRA ({kind or 'unknown'}) is not read; {', '.join(KINDS)} are")
    return kind


def _alphas(
    file: Path,
    name: str,
    found: Mapping[str, _Found],
    ranks: Mapping[str, int],
    config: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
) -> dict[str, float]:
    """alpha of each layer. Raises ValueError where it is missing or no positive number."""
    if config is not None:
        return _of_config(file.parent / ADAPTER_CONFIG, ranks, config)
    given = {module: layer.parts["alpha"] for module, layer in found.items() if "alpha" in layer.parts}
    missing = [module for module in found if module not in given]
    alphas = {module: _number(file, module, value) for module, value in given.items()}
    if missing and given:
        raise ValueError(f"{file}: alpha is missing of {len(missing)} of {len(found)} layers, first {missing[0]}")
    if missing and name == "diffusers":
        return {module: float(rank) for module, rank in ranks.items()}  # as diffusers defines it: the scale is 1
    if missing:
        text = metadata.get(NETWORK_ALPHA, "")
        try:
            alphas = dict.fromkeys(missing, float(text))
        except ValueError:
            raise ValueError(
                f"{file}: alpha is missing: no layer has it, nor do the metadata ({NETWORK_ALPHA}); "
                "take the file as it was trained"
            ) from None
    for module, alpha in alphas.items():
        _require_alpha(file, module, alpha)
    return alphas


def _of_config(path: Path, ranks: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, float]:
    """alpha of each layer by PEFT's configuration, whose ranks must be the tensors'."""
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise ValueError(f"{path}: {key}={config.get(key)!r}: a number is needed")
    for module, rank in ranks.items():
        told = _of_pattern(config.get("rank_pattern") or {}, module, config["r"])
        if told != rank:
            raise ValueError(f"{path}: r={told}, but lora_A of {module} has rank {rank}; the files are not of one LoRA")
    alphas = {m: float(_of_pattern(config.get("alpha_pattern") or {}, m, config["lora_alpha"])) for m in ranks}
    for module, alpha in alphas.items():
        _require_alpha(path, module, alpha)
    return alphas


def _of_pattern(pattern: Mapping[str, Any], module: str, usual: Any) -> Any:
    """As PEFT: the value of the first pattern that the end of the path matches, else the usual one."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), usual)


def _number(file: Path, module: str, value: Tensor) -> float:
    if value.numel() != 1:
        raise ValueError(f"{file}: alpha of {module} has {value.numel()} values; one is needed")
    return float(value)


def _require_alpha(file: Path, module: str, alpha: float) -> None:
    if not math.isfinite(alpha) or alpha <= 0:
        raise ValueError(f"{file}: alpha={alpha:g} of {module}: a number above 0 is needed")


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
