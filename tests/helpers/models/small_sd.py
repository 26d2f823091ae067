"""An AnyText2 with the blocks of Stable Diffusion 1.5 but few channels, and a run with a student of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from anytext2.model.anytext2 import AnyText2, build_model
from anytext2.model.config import AnyText2Config
from anytext2.model.unet import UNetConfig
from anytext2.model.weights import save_weights
from distill.adapters.lora import AdapterConfig, add_student
from distill.adapters.roles import STUDENT
from distill.checkpoint.formats import TrainerState, portable_name, write_adapter, write_trainer_state
from distill.checkpoint.store import save_checkpoint
from distill.config.recipes import DEFAULT_RECIPE, dump_recipe, load_recipe
from tests.helpers.models.mini_model import mini_config
from tests.helpers.models.parity import normal

RANK, ALPHA = 2, 3


def small_sd_config() -> AnyText2Config:
    mini = mini_config()
    unet = UNetConfig(model_channels=8, num_heads=2, context_dim=16, norm_groups=4)
    recognizer = replace(mini.recognizer, scale=0.04)
    return replace(mini, unet=unet, vae=replace(mini.vae, z_channels=4), recognizer=recognizer)


@cache
def small_sd_weights() -> dict[str, Tensor]:
    """Random weights, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(small_sd_config())
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model.state_dict()


def small_sd() -> AnyText2:
    model = build_model(small_sd_config())
    model.load_state_dict(small_sd_weights())
    return model.eval()


def write_small_run(folder: Path, kind: str = "lora", targets: str = "paper", updates: int = 5) -> Path:
    """folder/run: checkpoint-N with a random adapter; beside it the model's config and weights. Returns the run."""
    run = folder / "run"
    if not (folder / "small.yaml").exists():
        OmegaConf.save(OmegaConf.structured(small_sd_config()), folder / "small.yaml")
        save_weights(small_sd(), folder / "small.safetensors")
    lora = AdapterConfig(kind, RANK, ALPHA, targets=targets)
    settings = [f"model.config={folder / 'small.yaml'}", f"model.weights={folder / 'small.safetensors'}", "name=run"]
    settings += [f"lora.kind={kind}", f"lora.rank={RANK}", f"lora.alpha={ALPHA}", f"lora.targets={targets}"]
    recipe = load_recipe(DEFAULT_RECIPE, [*settings, f"run_root={folder}", "data.options.resolution=64"])
    wrapped = add_student(small_sd(), lora, seed=0)
    named = [(portable_name(n, STUDENT), p) for n, p in wrapped.named_parameters() if p.requires_grad]
    tensors = {name: p.detach() + 0.2 * normal(*p.shape, seed=i).float() for i, (name, p) in enumerate(named)}

    def write(path: Path) -> None:
        write_adapter(path, tensors, wrapped.peft_config[STUDENT])  # type: ignore[arg-type]
        write_trainer_state(path, TrainerState(updates, updates, seed=7, effective_batch=48))
        dump_recipe(recipe, path / "recipe.yaml")

    save_checkpoint(run, updates, write, keep=3)
    dump_recipe(recipe, run / "recipe.yaml")
    return run


@torch.no_grad()
def small_eps(model: AnyText2, attnx_scale: float = 1.0, with_control: bool = True) -> Tensor:
    """eps [2, 4, 8, 8] for fixed noise and conditions. The WriteNet's maps are computed with its adapter."""
    cfg = model.cfg.unet
    x, context = normal(2, 4, 8, 8, seed=1).float(), normal(2, 5, cfg.context_dim, seed=2).float()
    control = None
    if with_control:
        hint = normal(2, 1, 64, 64, seed=3).float()
        masked = normal(2, 4, 8, 8, seed=4).float()
        control = model.control_model(hint, hint, masked, context)
    return model.model.diffusion_model(x, torch.tensor([500, 20]), context, control, attnx_scale)
