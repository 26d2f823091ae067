"""The flags of torch's backends, read back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distill.runtime.device_settings import apply_device_settings, fp16_accumulation, require_fp16_accumulation


@pytest.fixture(autouse=True)
def restored_flags() -> Iterator[None]:
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("device", "tf32", "expected"),
    [("cpu", True, (False, "highest")), ("cuda", False, (True, "highest")), ("cuda", True, (True, "high"))],
)
def test_a_gpu_is_made_fast_and_a_cpu_left_alone(device: str, tf32: bool, expected: tuple[bool, str]) -> None:
    apply_device_settings(torch.device(device), tf32)
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == expected
    assert torch.backends.cuda.matmul.allow_tf32 == (expected[1] == "high")  # compilers read the old flag


def test_the_accumulation_is_switched_inside_only_and_may_be_nested() -> None:
    flags = torch.backends.cuda.matmul
    require_fp16_accumulation()
    with fp16_accumulation(True):
        assert flags.allow_fp16_accumulation
        with fp16_accumulation(False):
            assert not flags.allow_fp16_accumulation
        assert flags.allow_fp16_accumulation
    with pytest.raises(RuntimeError), fp16_accumulation(True):
        raise RuntimeError
    assert not flags.allow_fp16_accumulation


def test_a_torch_without_the_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_set_cublas_allow_fp16_accumulation")
    with pytest.raises(ValueError, match=r"^train.teacher_fp16_accumulation=true: needs torch 2.7 .* to false$"):
        require_fp16_accumulation()
