"""Loss values and gradients against plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from distill.losses import distances


def pair(requires_grad: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, 2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.requires_grad_(requires_grad), b


def gradient(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad((values * torch.tensor([1.0, 2.0, 3.0])).sum(), of)[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["l1", "l2", "pseudo_huber"])
def test_value_and_gradient_equal_the_formula(name: str, weighted: bool) -> None:
    a, b = pair()
    weight = (
        torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if weighted else None
    )
    formulas = {
        "l1": lambda d: d.abs(),
        "l2": lambda d: d**2,
        "pseudo_huber": lambda d: torch.sqrt(d**2 + 0.1**2) - 0.1,
    }
    options = (0.1,) if name == "pseudo_huber" else ()
    ours = getattr(distances, name)(a, b, *options, weight)
    elements = formulas[name](a - b) * (torch.ones(()) if weight is None else weight)
    plain = torch.stack([row.sum() / row.numel() for row in elements])
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient(ours, a), gradient(plain, a))


def test_pseudo_huber_keeps_its_digits_for_small_differences() -> None:
    difference = torch.full((1, 4), 1e-6)
    exact = (torch.sqrt(torch.tensor(1e-12, dtype=torch.float64) + 1e-6) - 1e-3).item()
    ours = distances.pseudo_huber(difference, torch.zeros(1, 4), c=1e-3).item()
    assert abs(ours / exact - 1) < 1e-4
    assert abs(((difference.square() + 1e-6).sqrt() - 1e-3).mean().item() / exact - 1) > 1e-2, (
        "the naive form has them too"
    )


def test_pseudo_huber_has_a_finite_gradient_at_equality() -> None:
    a = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(
        gradient(distances.pseudo_huber(a, torch.zeros(3, 4, dtype=torch.float64)), a),
        torch.zeros(3, 4, dtype=torch.float64),
    )


def test_sobel_difference_equals_two_filtered_images() -> None:
    a, b = pair()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8

    def gradients(image: torch.Tensor) -> torch.Tensor:
        padded = F.pad(image.reshape(-1, 1, 5, 7), (1, 1, 1, 1), mode="replicate")
        both = [F.conv2d(padded, k.reshape(1, 1, 3, 3)) for k in (kernel, kernel.T)]
        return torch.cat(both, dim=1).reshape(3, -1)

    plain = (gradients(a) - gradients(b)).abs().mean(dim=1)
    ours = distances.sobel_difference(a, b)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient(ours, a), gradient(plain, a))


def test_sobel_difference_of_a_ramp_is_its_slope() -> None:
    ramp = (torch.arange(6.0) * 0.5).expand(1, 1, 6, 6)
    horizontal = distances.sobel_difference(ramp[..., 1:-1, 1:-1].contiguous(), torch.zeros(1, 1, 4, 4))
    # inside, the horizontal gradient is 0.5 and the vertical 0; the two border columns see half of it
    assert horizontal.item() == pytest.approx((0.5 * 2 + 0.25 * 2) / 4 / 2)


def test_gaussian_kl_equals_torch_distributions() -> None:
    mean, logvar = pair(requires_grad=False)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(distances.gaussian_kl(mean, logvar), reference.flatten(1).mean(1))
