"""The fused layer equals PEFT's in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from distill.adapters.fused_linear import FusedLinear, fuse_linear_layers
from launch.bench.operations import OperationCounter

WIDTH, OUT = 12, 20


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, OUT, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


def adapted(bias: bool = True, dtype: torch.dtype = torch.float64, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["first"], **options)
    model = get_peft_model(Net(bias), config).to(dtype)  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    return model


def value_and_gradients(model: PeftModel, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    y = model(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *trained])]


def assert_equal_to_peft(x: Tensor, rtol: float = 1e-12, **options: Any) -> None:
    plain, fused = adapted(**options), adapted(**options)
    fuse_linear_layers(fused)
    assert list(plain.state_dict()) == list(fused.state_dict())
    for ours, theirs in zip(value_and_gradients(fused, x), value_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, WIDTH), (7, WIDTH), (2, 3, 4, WIDTH)])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_values_and_gradients_equal_peft(bias: bool, shape: tuple[int, ...], options: dict[str, bool]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_equal_to_peft(x, bias=bias, **options)


def test_strided_tokens_and_half_precision() -> None:
    x = torch.randn(WIDTH, 5, 3, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert_equal_to_peft(x.double())
    exact = value_and_gradients(adapted(), x.double())
    errors = []
    for fuse in (True, False):
        model = adapted().to(torch.bfloat16)
        if fuse:
            fuse_linear_layers(model)
        found = value_and_gradients(model, x.to(torch.bfloat16))
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    assert all(ours <= 1.2 * theirs + 1e-3 for ours, theirs in zip(*errors, strict=True)), errors


def test_what_cannot_be_fused_is_left_to_peft() -> None:
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    for options in ({"lora_dropout": 0.5}, {}):
        fused, plain = (adapted(dtype=torch.float32, **options) for _ in range(2))
        fuse_linear_layers(fused)
        for model in (fused, plain):
            model.train()
            if not options:
                model.disable_adapter_layers()
        torch.manual_seed(3)
        expected = plain(x)
        torch.manual_seed(3)
        assert torch.equal(fused(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), plain(x)) and fused(x).dtype == torch.bfloat16


def test_the_fused_layer_has_half_the_operations() -> None:
    """On a GPU the host's time for a micro-step is their number."""
    counts = []
    for fuse in (False, True):
        model = adapted(dtype=torch.float32)
        if fuse:
            fuse_linear_layers(model)
            assert any(isinstance(module, FusedLinear) for module in model.modules())
        x = torch.randn(2, 3, WIDTH, requires_grad=True)
        with OperationCounter() as counter:
            model(x).sum().backward()
        counts.append(counter.total)
    assert counts[1] <= 0.6 * counts[0], counts
