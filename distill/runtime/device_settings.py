"""Settings of torch's backends that hold for a whole process, or for the calls of the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def apply_device_settings(device: torch.device, tf32: bool) -> None:
    """Sets what makes a GPU fast: cuDNN measures its convolutions once for each shape and keeps the fastest.

    tf32: multiply float32 matrices with 10-bit mantissas. Of a model in half precision, that concerns losses and
    recognisers. (cuDNN's float32 convolutions do so by default.) On a CPU nothing is changed.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    if tf32:
        # Not `fp32_precision`, torch's newer spelling: older releases lack it, and reading the old flags, as compilers
        # do, raises an error after it was set.
        torch.set_float32_matmul_precision("high")


def require_fp16_accumulation() -> None:
    """Raises ValueError where torch cannot accumulate fp16 matrix products in fp16."""
    if not hasattr(torch._C, "_set_cublas_allow_fp16_accumulation"):
        raise ValueError(
            f"train.teacher_fp16_accumulation=true: needs torch 2.7 or newer, and this is {torch.__version__}; "
            "set it to false"
        )


@contextmanager
def fp16_accumulation(enabled: bool) -> Iterator[None]:
    """Inside, cuBLAS accumulates fp16 matrix products in fp16 or, unless enabled, in fp32.

    GeForce cards run the former twice as fast.
    """
    flags = torch.backends.cuda.matmul
    before = getattr(flags, "allow_fp16_accumulation", False)
    if before == enabled:
        yield
        return
    flags.allow_fp16_accumulation = enabled
    try:
        yield
    finally:
        flags.allow_fp16_accumulation = before
