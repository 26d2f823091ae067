"""A model of two layers with an adapter, for tests of files."""

from __future__ import annotations

import torch
from torch import nn

import anytext2  # noqa: F401  declares the torchvision operators that peft's imports need
from distill.checkpoint.formats import portable_name


class SmallModel(nn.Module):
    """A linear and a 1x1 convolution, as the student's targets are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"to_q": nn.Linear(6, 5), "zero_conv": nn.Conv2d(5, 4, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body["to_q"](x)
        return self.body["zero_conv"](y[:, :, None, None]).flatten(1)


def small_student(rank: int = 3) -> tuple[SmallModel, nn.Module]:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = SmallModel()
    reference = SmallModel()
    reference.load_state_dict(base.state_dict())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["body.to_q", "body.zero_conv"])
    wrapped = get_peft_model(base, config, adapter_name="student")  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return reference, wrapped


def adapter_tensors(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    return {portable_name(n, "student"): p.detach() for n, p in wrapped.named_parameters() if "lora_" in n}


def adamw_state() -> tuple[nn.Module, dict[str, dict[str, torch.Tensor]]]:
    model = SmallModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    state = {n: {**optimizer.state[p], "master": p.detach()} for n, p in model.named_parameters()}
    return model, state
