"""A new AnyText2 from Stable Diffusion 1.5 and a PP-OCRv3 recogniser, as official AnyText2's tool makes one.

The WriteNet's encoder is copied from the UNet's, the attnx layers from the attention beside them, and both recognisers
from the one given. What is new in AnyText2 is initialised as in the reference: zero convolutions and the linear layers
of the text embedding are zero, other convolutions are drawn as PyTorch draws them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anytext2.core.rng import seed_for
from anytext2.model.anytext2 import build_model, schedule_tables
from anytext2.model.config import AnyText2Config
from anytext2.model.weights import OFFICIAL_TOWER, dtype_in_file, official_state_dict, read_state_dict, require_fit

UNET, VAE = "model.diffusion_model.", "first_stage_model."
RECOGNIZERS = ("text_predictor.", "embedding_manager.font_predictor.")
_TOWER = "cond_stage_model."
_PARTS = {UNET: "UNet", VAE: "VAE", _TOWER: "text encoder"}
_ZERO = re.compile(r"^control_model\.(zero_convs|middle_block_out|fuse_block_za)\.|^embedding_manager\.\w*proj\.0\.")
_NORM = re.compile(r"^embedding_manager\.\w*proj\.1\.")

_CONVERT = "diffusers' convert_diffusers_to_original_stable_diffusion.py makes one file of it"
_OTHER_FILES = (
    (r"^conditioner\.|\.label_emb\.", "Stable Diffusion XL, which has another architecture"),
    (r"\.(joint|double)_blocks\.", "Stable Diffusion 3 or FLUX, which have another architecture"),
    (r"^cond_stage_model\.model\.", "Stable Diffusion 2, whose text encoder is another"),
    (r"\.attn[12]x\.", "an AnyText2 already, which model.weights takes as it is"),
    (r"^lora_|\.lora_|\.alpha$", "a LoRA; merge it into a checkpoint of Stable Diffusion 1.5 and name that"),
    (r"(^|\.)down_blocks\.", f"a part in diffusers' layout; {_CONVERT}"),
    (r"^control_model\.", "a ControlNet"),
)
"""What a file is, by a pattern of its names, that is no Stable Diffusion 1.5."""

_NEEDED = "a checkpoint of Stable Diffusion 1.5 in one file is needed"


# --- sources ---------------------------------------------------------------------------------------------------------


def read_stable_diffusion(
    path: Path, vae: Path | None = None, text_encoder: Path | None = None, ema: bool = False
) -> dict[str, Tensor]:
    """The tensors of a Stable Diffusion 1.5 checkpoint by their usual names, memory-mapped where the format allows it.

    vae, text_encoder: files that replace those parts. ema: the average of the UNet's weights instead of the last ones.
    Raises ValueError in one line for another model's file, or for EMA weights that are not there.
    """
    if path.is_dir():
        what = f"a folder in diffusers' layout; {_CONVERT}" if (path / "model_index.json").is_file() else "a folder"
        raise ValueError(f"{path}: {what}; {_NEEDED}")
    state = read_state_dict(path)
    for pattern, what in _OTHER_FILES:
        if any(re.search(pattern, name) for name in state):
            raise ValueError(f"{path}: this is {what}; {_NEEDED}")
    if not any(name.startswith(UNET) for name in state):
        raise ValueError(f"{path}: has no UNet ({UNET}*); {_NEEDED}")
    if ema:
        state |= _averaged_unet(path, state)
    state = {_tower_name(name): tensor for name, tensor in state.items()}
    if vae is not None:
        state |= _part(
            vae, read_state_dict(vae), r"^(?:first_stage_model\.)?((?:en|de)coder\.|(?:post_)?quant_conv\.)", VAE
        )
    if text_encoder is not None:
        state |= _part(text_encoder, read_state_dict(text_encoder), r"^(?:.*\.)?text_model\.()", OFFICIAL_TOWER)
    return state


def read_recognizer(path: Path) -> dict[str, Tensor]:
    """The tensors of a recogniser, whose names start with `backbone.`, `neck.` or `head.`, alone or in an AnyText2."""
    state = read_state_dict(path)
    prefix = RECOGNIZERS[0] if any(name.startswith(RECOGNIZERS[0]) for name in state) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not any(name.startswith(("backbone.", "neck.", "head.")) for name in found):
        raise ValueError(f"{path}: no recogniser: AnyText2's PP-OCRv3 weights (ppv3_rec.pth) or an AnyText2 are needed")
    return found


def _averaged_unet(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged tensors under the UNet's names. Their own names have no dots."""
    averaged = {
        name: state[key]
        for name in state
        if name.startswith(UNET) and (key := "model_ema." + name.removeprefix("model.").replace(".", "")) in state
    }
    if not averaged:
        raise ValueError(f"--ema: {path} has no averaged weights (model_ema.*); leave --ema out")
    return averaged


def _tower_name(name: str) -> str:
    """The text encoder's names as of newer releases of transformers, whatever release wrote the file."""
    return re.sub(
        r"^cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)", OFFICIAL_TOWER, name
    )


def _part(path: Path, state: Mapping[str, Tensor], pattern: str, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names match `pattern`, named by `prefix`, the group of the pattern and what follows it."""
    found = {
        f"{prefix}{match[1]}{name[match.end() :]}": tensor
        for name, tensor in ((_tower_name(name), tensor) for name, tensor in state.items())
        if (match := re.search(pattern, name))
    }
    if not found or any(".down_blocks." in name for name in found):
        what = _PARTS[VAE] if prefix == VAE else _PARTS[_TOWER]
        raise ValueError(f"{path}: no {what} with the names of Stable Diffusion 1.5's own files")
    return found


# --- the new model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewTeacher:
    """The tensors of a new AnyText2, by official name.

    config: its sizes. like: a tensor of the dtype and shape of each name, on the device `meta`. copied: what the
    sources have. new: names of the tensors that are initialised from `seed`.
    """

    config: AnyText2Config
    like: Mapping[str, Tensor]
    copied: Mapping[str, Tensor]
    new: tuple[str, ...]
    seed: int

    def __call__(self, name: str) -> Tensor:
        """The tensor of a name. Raises ValueError for values that are not finite."""
        like = self.like[name]
        if "." not in name:
            return schedule_tables(self.config.schedule)[name].to(like.dtype)
        if name not in self.copied:
            return self._initial(name).to(like.dtype)
        tensor = self.copied[name].to(like.dtype)
        if not torch.isfinite(tensor).all():
            fits = torch.isfinite(self.copied[name].float()).all()
            why = f"are too large for {like.dtype}; use --dtype fp32" if fits else "are not finite; use another file"
            raise ValueError(f"{_source_name(name)} has values that {why}")
        return tensor

    def _initial(self, name: str) -> Tensor:
        """Zero, a norm's identity, or what PyTorch draws for a convolution: uniform within 1 / sqrt(inputs)."""
        shape = self.like[name].shape
        if _ZERO.search(name) or name.endswith(".num_batches_tracked"):
            return torch.zeros(shape)
        if _NORM.search(name):
            return torch.full(shape, float(name.endswith(".weight")))
        inputs = self.like[re.sub(r"\.bias$", ".weight", name)][0].numel()
        generator = torch.Generator().manual_seed(seed_for(self.seed, 0, 0, f"new/{name}"))
        return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(inputs)


def new_teacher(
    config: AnyText2Config,
    stable_diffusion: Mapping[str, Tensor],
    recognizer: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    seed: int = 0,
    name: str = "Stable Diffusion 1.5",
) -> NewTeacher:
    """Finds the source of each tensor. dtype: of the weights; None: float32. name: the checkpoint's, for messages.

    Raises ValueError in one line where the UNet, VAE, text encoder or recogniser is missing or has other shapes.
    """
    target = official_state_dict(build_model(config, "meta"))
    _require_channels(stable_diffusion, target, name)
    copied: dict[str, Tensor] = {}
    for key in target:
        if "." not in key:
            continue
        source = recognizer if key.startswith(RECOGNIZERS) else stable_diffusion
        if (found := source.get(_source_name(key))) is not None:
            copied[key] = found
    for prefix, option in ((VAE, "--vae"), (_TOWER, "--text-encoder")):
        if not any(key.startswith(prefix) for key in copied):
            raise ValueError(f"{name}: has no {_PARTS[prefix]} ({prefix}*); name a file that has one with {option}")
    required = {key: tensor for key, tensor in target.items() if key in copied or _is_copied(key)}
    require_fit(Path(name), copied, required)
    new = tuple(key for key in target if key not in copied and "." in key)
    like = {key: torch.empty_like(t, dtype=dtype_in_file(key, t.dtype, dtype)) for key, t in target.items()}
    return NewTeacher(config, like, copied, new, seed)


def _source_name(name: str) -> str:
    """The name, in its source, of the tensor from which an AnyText2 tensor is copied, if it exists there."""
    for prefix in RECOGNIZERS:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    name = re.sub(r"^control_model\.", UNET, name)
    return re.sub(r"\.attn([12])x\.", r".attn\1.", name)


def _is_copied(name: str) -> bool:
    """Whether a tensor must have a source."""
    return name.startswith((*_PARTS, *RECOGNIZERS)) and not name.endswith(".num_batches_tracked")


def _require_channels(state: Mapping[str, Tensor], target: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError for a UNet that sees more than the noisy latent, or another text encoder."""
    first, wanted = state.get(f"{UNET}input_blocks.0.0.weight"), target[f"{UNET}input_blocks.0.0.weight"].shape[1]
    if first is not None and first.dim() == 4 and first.shape[1] in (2 * wanted, 2 * wanted + 1):
        kind = "an inpainting model" if first.shape[1] > 2 * wanted else "a model that is told what to change (pix2pix)"
        raise ValueError(
            f"{name}: this is {kind}: its UNet has {first.shape[1]} input channels; {_NEEDED}, with {wanted} channels"
        )
    key = next((key for key in state if key.startswith(UNET) and key.endswith(".attn2.to_k.weight")), "")
    if key in target and state[key].shape[-1] != target[key].shape[-1]:
        found, needed = state[key].shape[-1], target[key].shape[-1]
        raise ValueError(
            f"{name}: its UNet attends to contexts {found} wide, {needed} are needed: it is not of Stable Diffusion 1, "
            f"perhaps of 2 (1024) or XL (2048); {_NEEDED}"
        )
