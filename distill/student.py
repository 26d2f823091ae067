"""Teacher and student on one set of frozen weights: the student is a LoRA that can be switched off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from anytext2.model import AnyText2
from anytext2.randomness import seed_for

STUDENT = "student"
_ATTENTION = r"attn[12]x?\.to_(q|k|v|out\.0)"

# Module paths are the official ones, so the same adapter fits the reference implementation.
TARGET_PRESETS: dict[str, str] = {
    # Attention of UNet (attn1, attn2, attn1x, attn2x) and WriteNet, and the WriteNet's 1x1 output convolutions.
    "paper": rf"^((model\.diffusion_model|control_model)\..*{_ATTENTION}|control_model\.zero_convs\.\d+\.0)$",
}


@dataclass
class LoraSection:
    """The student's adapter. `targets`: a preset name or a regular expression over official module paths."""

    rank: int = 64
    alpha: int = 64
    dropout: float = 0.0
    targets: str = "paper"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1 (64 is usual)")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout={self.dropout} must lie in [0, 1)")


def lora_targets(model: nn.Module, targets: str) -> list[str]:
    """Paths of the modules that carry the LoRA, in the model's order.

    Raises ValueError where the pattern is malformed or matches nothing.
    """
    try:
        pattern = re.compile(TARGET_PRESETS.get(targets, targets))
    except re.error as error:
        raise ValueError(
            f"lora.targets={targets!r}: neither a preset ({', '.join(TARGET_PRESETS)}) nor a pattern: {error}"
        ) from error
    names = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and pattern.search(n)]
    if not names:
        raise ValueError(f"lora.targets={targets!r} matches no module; presets: {', '.join(TARGET_PRESETS)}")
    return names


class Roles:
    """Who computes: the teacher (adapter off) or the student (adapter on), both on the same weights.

    `wrapped` is the PeftModel, or the bare model where the weights themselves are trained and there is no student.
    """

    def __init__(self, wrapped: nn.Module) -> None:
        self.wrapped = wrapped

    @property
    def model(self) -> AnyText2:
        model = self.wrapped.get_base_model() if isinstance(self.wrapped, PeftModel) else self.wrapped
        assert isinstance(model, AnyText2)
        return model

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """The undistilled model, in inference mode. What leaves the block must be cloned before autograd saves it."""
        if isinstance(self.wrapped, PeftModel):
            with self.wrapped.disable_adapter(), torch.inference_mode():
                yield
        else:
            with torch.inference_mode():
                yield

    @contextmanager
    def target(self) -> Iterator[None]:
        """The student without gradient, in inference mode."""
        with torch.inference_mode():
            yield


def add_student(model: AnyText2, config: LoraSection, seed: int) -> PeftModel:
    """Freezes `model` and puts a fresh LoRA on it (A random in `seed`, B zero: the student starts as the teacher)."""
    model.requires_grad_(False)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=lora_targets(model, config.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, 0, 0, "lora"))
        return get_peft_model(model, lora, adapter_name=STUDENT)  # type: ignore[arg-type]  # any nn.Module works


def lora_config(student: PeftModel) -> LoraConfig:
    """The configuration of the student's adapter."""
    config = student.peft_config[STUDENT]
    assert isinstance(config, LoraConfig)
    return config


def load_student(model: AnyText2, folder: Path) -> PeftModel:
    """Puts the adapter saved in `folder` (PEFT format) on `model`, frozen, for sampling.

    Raises ValueError where the folder holds no adapter, or one that does not fit the model.
    """
    if not (folder / "adapter_model.safetensors").is_file() or not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder}: no adapter here (adapter_config.json and adapter_model.safetensors are needed)")
    model.requires_grad_(False)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    try:
        student = get_peft_model(model, config, adapter_name=STUDENT)  # type: ignore[arg-type]
        result: Any = set_peft_model_state_dict(
            student, load_file(folder / "adapter_model.safetensors"), adapter_name=STUDENT
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: the adapter does not fit this model: {str(error).splitlines()[0]}") from error
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        first = (missing or result.unexpected_keys)[0]
        raise ValueError(
            f"{folder}: the adapter does not fit this model: {len(missing)} tensors missing, "
            f"{len(result.unexpected_keys)} unexpected, first {first}"
        )
    return student
