"""Exported files, loaded by the code of those who use them: diffusers, PEFT; for kohya, by its naming rules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytext2  # noqa: F401  declares the torchvision operators that the imports of diffusers and peft need
from anytext2.model.weights import load_partial_weights, read_state_dict
from distill.adapter_files.names import diffusers_path
from distill.export.exported import ExportOptions
from distill.export.formats import export
from distill.export.student import Student, read_student
from distill.inference.exported.files import ExportedFile
from tests.helpers.models.small_sd import ALPHA, RANK, small_eps, small_sd, small_sd_config, write_small_run

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.heavy

HARMLESS = ("No LoRA keys associated to CLIPTextModel", "Unable to import `torchao`")
"""diffusers says the first of every LoRA without a text encoder's part, and that it is safe to ignore."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """With every layer adapted, so that each name of the UNet is in the files."""
    return read_student(write_small_run(tmp_path_factory.mktemp("small"), targets="all"), None, [])


@pytest.fixture(scope="module")
def files(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for format_ in ("kohya", "diffusers"):
        export(student, format_, folder / f"{format_}.safetensors", ExportOptions())
    export(student, "peft", folder / "peft", ExportOptions())
    return folder


def sd_unet() -> nn.Module:
    """diffusers' UNet of the same shape, with our weights; it has no attnx and takes no control maps here."""
    cfg = small_sd_config().unet
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(cfg.widths),
        attention_head_dim=cfg.num_heads,
        cross_attention_dim=cfg.context_dim,
        norm_num_groups=cfg.norm_groups,
    )
    ours = {diffusers_path(name, cfg): tensor for name, tensor in small_sd().state_dict().items()}
    unet.load_state_dict({name: tensor for name, tensor in ours.items() if name is not None}, strict=True)
    return unet.eval()


def pipeline() -> Any:
    """A Stable Diffusion 1.5 pipeline, built from configurations."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(**sizes, vocab_size=50, bos_token_id=1, eos_token_id=2)
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=None,
        unet=sd_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What diffusers and PEFT warn of."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


@torch.no_grad()
def sd_eps(unet: Any) -> Tensor:
    from tests.helpers.models.parity import normal

    x, context = normal(2, 4, 8, 8, seed=1).float(), normal(2, 5, 16, seed=2).float()
    return unet(x, torch.tensor([500, 20]), context).sample


@pytest.mark.parametrize("format_", ["diffusers", "kohya"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_diffusers_loads_every_key_and_predicts_the_same(
    files: Path, student: Student, format_: str, said: list[str]
) -> None:
    pipe = pipeline()
    plain = sd_eps(pipe.unet)
    assert (plain - small_eps(small_sd(), attnx_scale=0.0, with_control=False)).abs().max() < 1e-5
    pipe.load_lora_weights(str(files), weight_name=f"{format_}.safetensors")
    assert [line for line in said if not line.startswith(HARMLESS)] == []
    attached = [name for name, _ in pipe.unet.named_parameters() if ".lora_" in name]
    stored = [name for name in read_state_dict(files / f"{format_}.safetensors") if not name.endswith(".alpha")]
    assert len(attached) == len(stored) == 2 * 282  # every Linear and Conv2d of the UNet of Stable Diffusion 1.5
    file = ExportedFile.open(files / f"{format_}.safetensors")
    recipe = file.recipe(None, [f"model.weights={student.recipe.model.weights}"])
    ours = small_eps(file.roles(recipe, False, False).model, attnx_scale=0.0, with_control=False)
    drawn = sd_eps(pipe.unet)
    assert (drawn - plain).abs().max() > 0.05 and (drawn - ours).abs().max() < 1e-5


def test_kohya_s_naming_rules(files: Path) -> None:
    """sd-scripts names a layer lora_unet_ and its path in diffusers' UNet with underscores.

    lora_down has the layer's kernel and lora_up 1x1, of a linear layer both are matrices; alpha is one number.
    """
    stored = read_state_dict(files / "kohya.safetensors")
    expected = {}
    for path, layer in sd_unet().named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.get_parameter("weight").shape
            name = f"lora_unet_{path.replace('.', '_')}"
            expected[f"{name}.lora_down.weight"] = (RANK, *weight[1:])
            expected[f"{name}.lora_up.weight"] = (weight[0], RANK, *(1 for _ in weight[2:]))
            expected[f"{name}.alpha"] = ()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
    assert {float(t) for name, t in stored.items() if name.endswith(".alpha")} == {float(ALPHA)}


def test_peft_loads_the_folder_onto_a_model_of_official_paths(files: Path, student: Student) -> None:
    from peft import PeftModel

    model = small_sd()
    wrapped = PeftModel.from_pretrained(model, str(files / "peft"))  # type: ignore[arg-type]
    attached = {n.replace(".default", ""): p for n, p in wrapped.named_parameters() if ".lora_" in n}
    assert len(attached) == len(student.weights.tensors)
    drawn = small_eps(model)
    merged = small_sd()
    path = export(student, "merged-parts", files / "parts.safetensors", ExportOptions("fp32")).path
    load_partial_weights(merged, [path])
    assert (drawn - small_eps(merged)).abs().max() < 1e-5
