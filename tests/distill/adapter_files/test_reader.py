"""A LoRA is read from every format to the same values, and what is wrong with a file is one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anytext2.model.anytext2 import AnyText2, build_model
from distill.adapter_files.lora_weights import LoraWeights, peft_settings
from distill.adapter_files.names import adaptable_layers, diffusers_path, kohya_name
from distill.adapter_files.reader import is_lora, read_lora
from tests.helpers.models.mini_model import mini_config
from tests.helpers.models.parity import normal

TARGETS = (
    "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q",
    "model.diffusion_model.input_blocks.3.0.in_layers.2",
    "model.diffusion_model.output_blocks.0.1.proj_out",
)
RANK, ALPHA = 3, 6.0


@cache
def model() -> AnyText2:
    return build_model(mini_config(), "meta")


def lora_tensors(targets: tuple[str, ...] = TARGETS, rank: int = RANK) -> dict[str, Tensor]:
    tensors = {}
    for seed, path in enumerate(targets):
        weight = adaptable_layers(model())[path].get_parameter("weight").shape
        ones = (1,) * (len(weight) - 2)
        tensors[f"{path}.lora_A.weight"] = normal(rank, *weight[1:], seed=2 * seed).float()
        tensors[f"{path}.lora_B.weight"] = normal(weight[0], rank, *ones, seed=2 * seed + 1).float()
    return tensors


def renamed(layer: Callable[[str], str], down: str, up: str, alpha: float | None) -> dict[str, Tensor]:
    """The tensors with other names of layers and parts, and each layer's alpha."""
    found = {}
    for key, tensor in lora_tensors().items():
        path, _, part = key.partition(".lora_")
        found[f"{layer(path)}.{down if part[0] == 'A' else up}.weight"] = tensor
        if alpha is not None:
            found[f"{layer(path)}.alpha"] = torch.tensor(alpha)
    return found


def theirs(path: str) -> str:
    name = diffusers_path(path, model().cfg.unet)
    assert name is not None
    return name


def old_diffusers(path: str) -> str:
    return theirs(path).replace(".to_q", ".processor.to_q_lora")


FORMATS: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "native": ("safetensors", lambda: renamed(str, "lora_A", "lora_B", ALPHA)),
    "peft-names": (
        "safetensors",
        lambda: renamed("base_model.model.{}".format, "lora_A.default", "lora_B.default", ALPHA),
    ),
    "comfyui": ("safetensors", lambda: renamed(lambda p: p.removeprefix("model."), "lora_down", "lora_up", ALPHA)),
    "kohya": ("kohya", lambda: renamed(lambda p: kohya_name(theirs(p)), "lora_down", "lora_up", ALPHA)),
    "kohya-ldm": (
        "kohya",
        lambda: renamed(lambda p: kohya_name(p.removeprefix("model.diffusion_model.")), "lora_down", "lora_up", ALPHA),
    ),
    "diffusers": ("diffusers", lambda: renamed(lambda p: f"unet.{theirs(p)}", "lora_A", "lora_B", None)),
    "diffusers-alpha": ("diffusers", lambda: renamed(lambda p: f"unet.{theirs(p)}", "lora.down", "lora.up", ALPHA)),
}


def require_values(weights: LoraWeights, alpha: float = ALPHA) -> None:
    assert weights.tensors.keys() == lora_tensors().keys()
    for name, tensor in lora_tensors().items():
        assert torch.equal(weights.tensors[name], tensor), name
    assert set(weights.ranks.values()) == {RANK} and set(weights.alphas.values()) == {alpha}
    assert weights.scale(TARGETS[0]) == alpha / RANK


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_any_names(tmp_path: Path, name: str) -> None:
    format_, tensors = FORMATS[name]
    save_file(tensors(), tmp_path / "lora.safetensors", {"note": "kept"})
    assert is_lora(tmp_path / "lora.safetensors")
    weights = read_lora(tmp_path / "lora.safetensors", model())
    assert (weights.format, weights.kind, weights.left_out) == (format_, "lora", {})
    assert weights.metadata == {"note": "kept"}
    require_values(weights, RANK if name == "diffusers" else ALPHA)


def test_half_precision_pickles_and_matrices_of_convolutions(tmp_path: Path) -> None:
    """Of 1x1 convolutions some programs store matrices, and of linear layers others store 1x1 kernels."""
    tensors = {n: t.half() for n, t in FORMATS["kohya"][1]().items()}
    linear, conv = (kohya_name(theirs(TARGETS[i])) for i in (0, 2))
    for part in ("lora_down", "lora_up"):
        tensors[f"{linear}.{part}.weight"] = tensors[f"{linear}.{part}.weight"][:, :, None, None]
        tensors[f"{conv}.{part}.weight"] = tensors[f"{conv}.{part}.weight"].flatten(1)
    torch.save(tensors, tmp_path / "lora.pt")
    weights = read_lora(tmp_path / "lora.pt", model())
    for name, tensor in lora_tensors().items():
        assert torch.equal(weights.tensors[name], tensor.half().float())


def peft_folder(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({f"base_model.model.{n}": t for n, t in lora_tensors().items()}, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | config
    (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_peft_folder(tmp_path: Path) -> None:
    weights = read_lora(peft_folder(tmp_path), model())
    assert weights.format == "peft"
    require_values(weights)
    assert peft_settings(weights) == {
        "r": RANK,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "target_modules": [TARGETS[1], TARGETS[0], TARGETS[2]],  # in the model's order
    }


def test_patterns_of_peft(tmp_path: Path) -> None:
    weights = read_lora(peft_folder(tmp_path, alpha_pattern={"1.proj_out": 9}, use_rslora=True), model())
    assert weights.alphas == {TARGETS[0]: 6, TARGETS[1]: 6, TARGETS[2]: 9}
    assert weights.scale(TARGETS[2]) == 9 / math.sqrt(RANK)
    assert peft_settings(weights)["alpha_pattern"] == {TARGETS[2]: 9}


def test_the_text_encoder_is_left_out_and_counted(tmp_path: Path) -> None:
    tensors = FORMATS["kohya"][1]()
    for part, shape in (("lora_down.weight", (2, 4)), ("lora_up.weight", (4, 2)), ("alpha", ())):
        tensors[f"lora_te_text_model_encoder_layers_0_mlp_fc1.{part}"] = torch.ones(shape)
    save_file(tensors, tmp_path / "lora.safetensors")
    weights = read_lora(tmp_path / "lora.safetensors", model())
    assert weights.left_out == {"text encoder": 1}
    require_values(weights)


def without(*ends: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {n: t for n, t in tensors.items() if not n.endswith(ends)}


def adding(name: str, *shape: int, value: float = 1.0) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: torch.full(shape, value)}


KOHYA_Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Mapping[str, Tensor]], str]] = {
    "no alpha": (without(".alpha"), "alpha is missing: no layer has it"),
    "an alpha lacks": (without("attn1_to_q.alpha"), "alpha is missing of 1 of 3 layers, first model"),
    "no up": (without("attn1_to_q.lora_up.weight"), "but no lora_B.weight; half a file"),
    "NaN": (adding(f"{KOHYA_Q}.alpha", value=math.nan), f"{KOHYA_Q}.alpha is not finite"),
    "zero": (adding(f"{KOHYA_Q}.alpha", value=0.0), "alpha=0 of model.*: a number above 0"),
    "two": (adding(f"{KOHYA_Q}.alpha", 2), "has 2 values; one is needed"),
    "NaN in a weight": (adding(f"{KOHYA_Q}.lora_up.weight", 16, RANK, value=math.nan), "lora_up.weight is not finite"),
    "LoHa": (adding(f"{KOHYA_Q}.hada_w1_a", 2, 2), "hada_w1_a is part of LoHa of LyCORIS"),
    "unknown part": (adding(f"{KOHYA_Q}.weight", 2, 2), "unknown key lora_unet"),
    "XL": (adding("lora_te2_text_model.lora_up.weight", 2, 2), "is of a LoRA of Stable Diffusion XL"),
    "another base": (adding("lora_unet_down_blocks_2_resnets_0_conv1.alpha"), "another base: 1 of 4 layers"),
    "another width": (adding(f"{KOHYA_Q}.lora_down.weight", RANK, 320), "another base: .*16x16 here.* lora_A is 3x320"),
    "twice": (adding(TARGETS[0] + ".lora_B.weight", 16, RANK), "lora_B.weight of .*is there twice"),
    "two formats": (
        lambda t: (
            t | {f"{TARGETS[0].replace('to_q', 'to_k')}.{p}.weight": torch.ones(2, 2) for p in ("lora_A", "lora_B")}
        ),
        "names of two formats",
    ),
    "unknown family": (
        lambda t: {"decoder.x.lora_up.weight": torch.ones(2, 2)},
        "unknown family of keys, first decoder",
    ),
    "text encoder only": (
        lambda t: {"lora_te_text_model_x.lora_up.weight": torch.ones(2, 2)},
        "a LoRA of the text encoder alone",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str) -> None:
    change, words = WRONG[name]
    file = tmp_path / "lora.safetensors"
    save_file(dict(change(FORMATS["kohya"][1]())), file)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{words}") as caught:
        read_lora(file, model())
    assert "\n" not in str(caught.value)


def test_half_a_file_and_a_folder_without_one(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(FORMATS["kohya"][1](), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable weights file, truncated"):
        read_lora(file, model())
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        read_lora(tmp_path, model())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": None}, "r=None: a number is needed"),
        ({"lora_alpha": None}, "lora_alpha=None: a number is needed"),
        ({"lora_alpha": math.nan}, "alpha=nan"),
        ({"r": 4}, "r=4, but lora_A of .* has rank 3"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA: only LORA is read"),
        ({"use_dora": True}, "its kind of LoRA .dora. is not read"),
        ({"use_dora": True, "use_rslora": True}, "its kind of LoRA .unknown. is not read"),
    ],
)
def test_a_peft_configuration_that_does_not_fit(tmp_path: Path, config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_lora(peft_folder(tmp_path, **config), model())
