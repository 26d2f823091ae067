"""A new teacher from a Stable Diffusion 1.5: what is copied from where, what is new, which files are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anytext2.model.anytext2 import build_model, load_model_config
from anytext2.model.stable_diffusion import (
    NewTeacher,
    new_teacher,
    read_recognizer,
    read_stable_diffusion,
)
from anytext2.model.weights import load_weights, official_state_dict
from tests.helpers.models.mini_model import mini_config, mini_model
from tests.helpers.models.parity import OFFICIAL_KEYS
from tests.helpers.models.stable_diffusion import TOWER, UNET, recognizer_like, stable_diffusion_like

NEW_PARTS = {
    "control_model.zero_convs",
    "control_model.glyph_block",
    "control_model.position_block",
    "control_model.fuse_block_za",
    "control_model.middle_block_out",
    "embedding_manager.position_encoder",
    "embedding_manager.style_proj",
    "embedding_manager.color_proj",
    "embedding_manager.proj",
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    model = mini_model().float().requires_grad_(False)
    return {name: tensor.clone() for name, tensor in official_state_dict(model).items()}


def teacher_of(state: dict[str, Tensor], changes: dict[str, Tensor] | None = None) -> NewTeacher:
    source = stable_diffusion_like(state) | (changes or {})
    return new_teacher(mini_config(), source, recognizer_like(state), name="sd.ckpt")


def source_of(name: str) -> str:
    """Where the reference's tool takes a tensor from."""
    name = name.replace("control_model.", UNET).replace("attn1x", "attn1").replace("attn2x", "attn2")
    return name.replace("embedding_manager.font_predictor.", "text_predictor.")


def test_every_tensor_is_where_the_reference_puts_it(state: dict[str, Tensor]) -> None:
    teacher = teacher_of(state)
    assert set(teacher.copied) | set(teacher.new) == {name for name in state if "." in name}
    assert not set(teacher.copied) & set(teacher.new)
    assert {".".join(name.split(".")[:2]) for name in teacher.new} == NEW_PARTS
    for name in teacher.copied:
        assert torch.equal(teacher(name), state[source_of(name)]), name
    assert f"{UNET}output_blocks.0.1.transformer_blocks.0.attn2x.to_k.weight" in teacher.copied
    assert "control_model.input_blocks.0.0.weight" in teacher.copied


def test_what_is_new_starts_as_in_the_reference(state: dict[str, Tensor]) -> None:
    teacher = teacher_of(state)
    zero = {".".join(name.split(".")[:3]) for name in teacher.new if not teacher(name).any()}
    assert all(f"control_model.zero_convs.{i}" in zero for i in range(4))
    assert {"control_model.fuse_block_za.weight", "control_model.middle_block_out.0"} <= zero
    for projection in ("proj", "style_proj", "color_proj"):
        assert f"embedding_manager.{projection}.0" in zero
        assert (teacher(f"embedding_manager.{projection}.1.weight") == 1).all()
    drawn = [name for name in teacher.new if "_block.0." in name or "position_encoder" in name]
    assert len(drawn) > 8
    for name in drawn:
        bound = teacher.like[name.replace(".bias", ".weight")][0].numel() ** -0.5
        values = teacher(name)
        assert values.any() and values.abs().max() <= bound and values.abs().max() > 0.3 * bound, name
        assert torch.equal(values, teacher(name))
    other = new_teacher(mini_config(), stable_diffusion_like(state), recognizer_like(state), seed=1)
    assert not torch.equal(other(drawn[0]), teacher(drawn[0]))


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_tensors_load_strictly(state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype | None) -> None:
    teacher = new_teacher(mini_config(), stable_diffusion_like(state), recognizer_like(state), dtype)
    save_file({key: teacher(key).contiguous().clone() for key in teacher.like}, tmp_path / "w.safetensors")
    model = build_model(mini_config())
    load_weights(model, tmp_path / "w.safetensors")
    for key, tensor in official_state_dict(model).items():
        assert teacher(key).dtype == teacher.like[key].dtype
        assert torch.equal(tensor, teacher(key).to(tensor.dtype)), key
    assert teacher.like["control_model.fuse_block_za.weight"].dtype == (dtype or torch.float32)
    assert teacher.like["betas"].dtype == torch.float32


def test_the_official_names_have_their_sources_by_the_contract() -> None:
    """At the official size, without a byte of weights: which of the 2047 names come from where."""
    rows = [line.split("\t") for line in OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines()]
    like = {
        name: torch.empty([int(n) for n in shape.split("x")] if shape != "scalar" else [], device="meta")
        for name, _, shape in rows
    }
    teacher = new_teacher(load_model_config("sd15"), stable_diffusion_like(like), recognizer_like(like))
    assert teacher.like.keys() == like.keys()
    assert len(stable_diffusion_like(like)) == 686 + 248 + 196 + 2  # UNet, VAE and text encoder of SD 1.5, two more
    attnx = [name for name in teacher.copied if re.search(r"attn[12]x", name)]
    assert len(attnx) == 70 and len(teacher.new) == 26 + 14 + 14 + 2 + 12 + 12
    assert sum(t.numel() * t.element_size() for t in teacher.like.values()) > 5.9e9


# --- the files of other people ---------------------------------------------------------------------------------------


def test_half_precision_lightning_and_averaged_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    plain = {name: t.half() for name, t in stable_diffusion_like(state).items()}
    plain |= {
        "model_ema." + name.removeprefix("model.").replace(".", ""): t + 1
        for name, t in plain.items()
        if name.startswith(UNET)
    }
    torch.save({"epoch": 3, "global_step": 840, "state_dict": plain}, tmp_path / "sd.ckpt")
    first = f"{UNET}input_blocks.0.0.weight"
    for ema, wanted in ((False, plain[first]), (True, plain[first] + 1)):
        source = read_stable_diffusion(tmp_path / "sd.ckpt", ema=ema)
        teacher = new_teacher(mini_config(), source, recognizer_like(state))
        assert torch.equal(teacher(first), wanted.float())
        assert torch.equal(teacher(first), teacher("control_model.input_blocks.0.0.weight"))
    save_file(stable_diffusion_like(state), tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=r"--ema: .*sd\.safetensors has no averaged weights"):
        read_stable_diffusion(tmp_path / "sd.safetensors", ema=True)


def test_parts_from_other_files_and_older_names(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole = stable_diffusion_like(state)
    vae = {name.removeprefix("first_stage_model."): t for name, t in whole.items() if name.startswith("first_stage")}
    old = {name.replace("text_model.", ""): t for name, t in whole.items() if name.startswith(TOWER)}
    clip = {
        name.removeprefix("cond_stage_model.transformer."): t for name, t in whole.items() if name.startswith(TOWER)
    }
    unet = {name: t for name, t in whole.items() if name.startswith(UNET)}
    save_file(unet | vae_named(vae), tmp_path / "no_text.safetensors")
    save_file(unet | old, tmp_path / "no_vae.safetensors")
    save_file(unet, tmp_path / "unet.safetensors")
    save_file(vae, tmp_path / "vae.safetensors")
    save_file(clip, tmp_path / "clip.safetensors")
    recognizer = recognizer_like(state)
    for file, option in (("no_text", "text encoder .* --text-encoder"), ("no_vae", "VAE .* --vae")):
        with pytest.raises(ValueError, match=f"has no {option}"):
            new_teacher(mini_config(), read_stable_diffusion(tmp_path / f"{file}.safetensors"), recognizer)
    parts = (tmp_path / "vae.safetensors", tmp_path / "clip.safetensors")
    for name, arguments in (("no_vae", (parts[0], None)), ("no_text", (None, parts[1])), ("unet", parts)):
        source = read_stable_diffusion(tmp_path / f"{name}.safetensors", *arguments)
        teacher = new_teacher(mini_config(), source, recognizer)
        assert all(torch.equal(teacher(key), state[source_of(key)]) for key in teacher.copied)
    with pytest.raises(ValueError, match="vae.safetensors: no text encoder with the names"):
        read_stable_diffusion(tmp_path / "unet.safetensors", None, parts[0])


def vae_named(vae: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}


FOREIGN = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": "Stable Diffusion XL",
    "model.diffusion_model.label_emb.0.0.weight": "Stable Diffusion XL",
    "cond_stage_model.model.ln_final.weight": "Stable Diffusion 2",
    "model.diffusion_model.joint_blocks.0.x": "Stable Diffusion 3 or FLUX",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": "a LoRA; merge it",
    "down_blocks.0.resnets.0.conv1.weight": "diffusers' layout; diffusers' convert_diffusers_to",
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1x.to_k.weight": "an AnyText2 already",
    "control_model.zero_convs.0.0.weight": "a ControlNet",
    "some.weight": "has no UNet",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_models_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    save_file({name: torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=re.escape(FOREIGN[name])) as caught:
        read_stable_diffusion(tmp_path / "other.safetensors")
    assert "\n" not in str(caught.value) and "in one file is needed" in str(caught.value)


def test_models_with_other_inputs_are_refused(state: dict[str, Tensor]) -> None:
    first, width = f"{UNET}input_blocks.0.0.weight", f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    z, context = state[first].shape[1], state[width].shape[1]
    for shape, what in ((2 * z + 1, "an inpainting model"), (2 * z, "told what to change")):
        with pytest.raises(ValueError, match=rf"sd\.ckpt: this is .*{what}.* {shape} input channels"):
            teacher_of(state, {first: torch.ones(8, shape, 3, 3)})
    attn2 = {
        k: torch.ones(t.shape[0], context + 4) for k, t in state.items() if k.startswith(UNET) and "attn2.to_k" in k
    }
    with pytest.raises(ValueError, match=rf"contexts {context + 4} wide, {context} are needed"):
        teacher_of(state, attn2)
    with pytest.raises(ValueError, match=r"1 of another shape \(first_stage_model\.quant_conv\.bias"):
        teacher_of(state, {"first_stage_model.quant_conv.bias": torch.ones(5)})
    with pytest.raises(ValueError, match=r"quant_conv\.bias has values that are not finite; use another file"):
        teacher_of(state, {"first_stage_model.quant_conv.bias": torch.full((6,), torch.nan)})(
            "first_stage_model.quant_conv.bias"
        )


def test_folders_and_recognisers(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="a folder in diffusers' layout; diffusers' convert"):
        read_stable_diffusion(tmp_path)
    torch.save({"state_dict": recognizer_like(state)}, tmp_path / "ppv3_rec.pth")
    save_file(state, tmp_path / "anytext2.safetensors")
    for file in ("ppv3_rec.pth", "anytext2.safetensors"):
        assert read_recognizer(tmp_path / file).keys() == recognizer_like(state).keys()
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: no recogniser: AnyText2's PP-OCRv3 weights"):
        read_recognizer(tmp_path / "x.safetensors")
