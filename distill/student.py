"""Teacher and student on one set of frozen weights: the student is a LoRA that can be switched off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from anytext2.model import AnyText2
from anytext2.randomness import seed_for
from distill.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX, portable_name, read_adapter

STUDENT, AVERAGE = "student", "average"
_ATTENTION = r"attn[12]x?\.to_(q|k|v|out\.0)"

# Module paths are the official ones, so the same adapter fits the reference implementation.
TARGET_PRESETS: dict[str, str] = {
    # Attention of UNet (attn1, attn2, attn1x, attn2x) and WriteNet, and the WriteNet's 1x1 output convolutions.
    "paper": rf"^((model\.diffusion_model|control_model)\..*{_ATTENTION}|control_model\.zero_convs\.\d+\.0)$",
}


@dataclass
class LoraSection:
    """The student's adapter. `targets`: a preset name or a regular expression over official module paths.

    weights: empty for a fresh one, drawn from the seed; or a folder with a PEFT adapter to start from.
    """

    rank: int = 64
    alpha: int = 64
    dropout: float = 0.0
    targets: str = "paper"
    weights: str = ""

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

    `wrapped` is the PeftModel, or the bare model where the weights themselves are trained and there is no student. With
    the adapter of `add_average` the target is that, else the student.
    """

    def __init__(self, wrapped: nn.Module) -> None:
        self.wrapped = wrapped
        self._adapted = [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
        self._target = AVERAGE if isinstance(wrapped, PeftModel) and AVERAGE in wrapped.peft_config else STUDENT

    @property
    def model(self) -> AnyText2:
        model = self.wrapped.get_base_model() if isinstance(self.wrapped, PeftModel) else self.wrapped
        assert isinstance(model, AnyText2)
        return model

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """The undistilled model, in inference mode. What leaves the block must be cloned before autograd saves it."""
        self._switch(False)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        # PEFT's disable_adapter() also searches the whole model twice for layers that disagree: 59 ms a time in the
        # official size, against 9 ms for this.
        for layer in self._adapted:
            layer.enable_adapters(on)

    @contextmanager
    def target(self) -> Iterator[None]:
        """The consistency target, in inference mode."""
        self._choose(self._target)
        try:
            with torch.inference_mode():
                yield
        finally:
            self._choose(STUDENT)

    def _choose(self, adapter: str) -> None:
        # PEFT's set_adapter() would make the chosen one trainable and the others not.
        for layer in self._adapted:
            layer._active_adapter = [adapter]


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


def add_average(student: PeftModel) -> None:
    """Puts a second, frozen adapter of the student's kind beside it. Its values are `Engine.show_average_in`'s."""
    student.add_adapter(AVERAGE, lora_config(student))
    student.set_adapter(STUDENT)
    for _, p in adapter_parameters(student, AVERAGE):
        p.requires_grad_(False)


def adapter_parameters(student: PeftModel, adapter: str) -> list[tuple[str, nn.Parameter]]:
    """(name in checkpoints, parameter) of one adapter, in the model's order."""
    return [(portable_name(n, adapter), p) for n, p in student.named_parameters() if f".{adapter}." in n]


def lora_config(student: PeftModel) -> LoraConfig:
    """The configuration of the student's adapter."""
    config = student.peft_config[STUDENT]
    assert isinstance(config, LoraConfig)
    return config


def load_student(model: AnyText2, folder: Path) -> PeftModel:
    """Puts the adapter saved in `folder` (PEFT format) on `model`, frozen, for sampling.

    Raises ValueError where the folder holds no adapter, a damaged one, or one that does not fit the model.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder}: no adapter here ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} are needed)")
    tensors, _ = read_adapter(folder)
    model.requires_grad_(False)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        student = get_peft_model(model, config, adapter_name=STUDENT)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError) as error:  # PEFT's words are long: it names every target module
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / ADAPTER_CONFIG}: does not fit this model: {reason}") from error
    wanted = {portable_name(n, STUDENT): p.shape for n, p in student.named_parameters() if ".lora_" in n}
    require_fit(folder / ADAPTER_WEIGHTS, tensors, wanted)
    set_peft_model_state_dict(student, {PEFT_PREFIX + n: t for n, t in tensors.items()}, adapter_name=STUDENT)
    return student


def require_fit(path: Path, tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raises ValueError, counting what is wrong, unless exactly the wanted names are there in the wanted shapes."""
    faults = {
        "missing": [n for n in wanted if n not in tensors],
        "unexpected": [n for n in tensors if n not in wanted],
        "of another shape": [n for n, t in tensors.items() if n in wanted and t.shape != wanted[n]],
    }
    if any(faults.values()):
        told = ", ".join(f"{len(names)} {what} (first {names[0]})" for what, names in faults.items() if names)
        raise ValueError(f"{path}: does not fit this model: of {len(wanted)} tensors {told}")
