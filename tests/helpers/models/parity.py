"""What the parity tests of the networks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.helpers.paths import ROOT

OFFICIAL_KEYS = ROOT / "tests" / "golden" / "official" / "state_dict.tsv"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@torch.no_grad()
def randomised(module: nn.Module, seed: int = 0, deviation: float = 0.2) -> nn.Module:
    """The module in float64 with every parameter random: nothing is zero, no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * deviation)
    return module


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """d(sum of outputs weighted by fixed random numbers) / d(inputs)."""
    total = sum((out * normal(*out.shape, seed=100 + i)).sum() for i, out in enumerate(outputs))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, list(inputs))


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Largest difference of each pair, relative to the largest of the expected values."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, i
        scale = max(float(e.detach().abs().max()), 1e-6)
        assert float((a - e).detach().abs().max()) <= tolerance * scale, i


def assert_parity(
    module: nn.Module,
    run: Callable[[], Sequence[Tensor]],
    reference: Callable[[dict[str, Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    tolerance: float,
) -> None:
    """Values, and gradients for `inputs` and all parameters, of the module and of the reference agree."""
    state = dict(module.named_parameters())
    wanted = [*inputs, *state.values()]
    ours, theirs = run(), reference(state)
    assert_same(ours, theirs, tolerance)
    assert_same(gradients(ours, wanted), gradients(theirs, wanted), tolerance)


def official_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Key without the prefix -> shape, of the official checkpoint."""
    shapes = {}
    for line in OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines():
        key, _, shape = line.split("\t")
        if key.startswith(prefix):
            shapes[key[len(prefix) :]] = tuple(int(n) for n in shape.split("x"))
    return shapes


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
