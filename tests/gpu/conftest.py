"""Tests that need an NVIDIA GPU: `make test-gpu`. `--device cpu` runs of their bodies what a CPU can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"), help="where the tests of tests/gpu run")


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU. Without one nothing of tests/gpu is tested, and the run fails."""
    kind = cast(str, request.config.getoption("--device", "cuda"))
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.exit("no GPU that CUDA can use is here, so nothing was tested; --device cpu tests a part", returncode=1)
    return torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The GPU, for a test that a CPU cannot run."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(autouse=True)
def exact_products(device: torch.device) -> Iterator[None]:
    """float32 products are products of float32 in every test, unless it says otherwise."""
    flags = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    before = [getattr(owner, name) for owner, name in flags]
    for owner, name in flags:
        setattr(owner, name, False)
    yield
    for (owner, name), value in zip(flags, before, strict=True):
        setattr(owner, name, value)
