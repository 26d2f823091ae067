"""The schedule against diffusers and against its own definitions."""

import pytest
import torch
from diffusers import DDPMScheduler

import anytext2  # noqa: F401  # declares torchvision's operators before diffusers looks for them
from distill.diffusion.schedule import NoiseSchedule, boundary_scalings, ddim_timesteps, expand_like

SCHEDULE = NoiseSchedule.scaled_linear()


def latents(count: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(count, 4, 3, 5, generator=generator, dtype=dtype) for _ in range(2))
    return x0, eps, torch.linspace(0, 999, count).round().long()


def test_table_equals_diffusers_scaled_linear() -> None:
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert SCHEDULE.alphas_cumprod.dtype == torch.float64
    torch.testing.assert_close(SCHEDULE.alphas_cumprod.float(), reference.alphas_cumprod, rtol=2e-5, atol=0)


def test_add_noise_equals_diffusers() -> None:
    x0, eps, t = latents(dtype=torch.float32)
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(SCHEDULE.add_noise(x0, eps, t), reference.add_noise(x0, eps, t), rtol=1e-5, atol=1e-5)


def test_conversions_are_inverse_to_each_other_at_every_noise_level() -> None:
    x0, eps, t = latents()
    x_t = SCHEDULE.add_noise(x0, eps, t)
    torch.testing.assert_close(SCHEDULE.eps_to_x0(x_t, eps, t), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(SCHEDULE.x0_to_eps(x_t, x0, t), eps, rtol=1e-10, atol=1e-10)


def test_rows_have_their_own_time() -> None:
    x0, eps, t = latents()
    whole = SCHEDULE.add_noise(x0, eps, t)
    for row in range(len(t)):
        torch.testing.assert_close(
            whole[row : row + 1], SCHEDULE.add_noise(x0[row : row + 1], eps[row : row + 1], t[row : row + 1])
        )


def test_precision_follows_the_tensor_but_is_at_least_float32() -> None:
    x0, _, t = latents()
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x0.to(dtype))
        assert alpha.dtype == sigma.dtype == expected
        assert alpha.shape == (len(t), 1, 1, 1)
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))


def test_ddim_timesteps_of_fifty_and_of_a_number_that_does_not_divide() -> None:
    assert ddim_timesteps(50).tolist() == list(range(19, 1000, 20))
    assert ddim_timesteps(3).tolist() == [332, 666, 999]
    assert ddim_timesteps(4, 20).tolist() == [4, 9, 14, 19]


@pytest.mark.parametrize("n_steps", [0, 1001])
def test_impossible_grid_names_the_value(n_steps: int) -> None:
    with pytest.raises(ValueError, match=str(n_steps)):
        ddim_timesteps(n_steps)


def test_boundary_scalings_are_the_identity_at_zero_and_the_network_at_high_noise() -> None:
    c_skip, c_out = boundary_scalings(torch.tensor([0, 1, 19, 999]))
    assert (c_skip[0].item(), c_out[0].item()) == (1.0, 0.0)
    # t = 1: tau = 10, c_skip = 0.25 / 100.25, c_out = 10 / sqrt(100.25)
    torch.testing.assert_close(c_skip[1].item(), 0.25 / 100.25, rtol=1e-12, atol=0)
    torch.testing.assert_close(c_out[1].item(), 10 / 100.25**0.5, rtol=1e-12, atol=0)
    assert c_skip[3] < 1e-8 and c_out[3] > 1 - 1e-8


def test_expand_like_keeps_float64() -> None:
    like = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert expand_like(torch.tensor([1.0, 2.0]), like).shape == (2, 1, 1, 1)
    assert expand_like(torch.tensor([1.0, 2.0]), like).dtype == torch.float64


def test_a_table_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule(torch.ones(4))


def test_velocity_weight_turns_a_noise_error_into_a_velocity_error() -> None:
    schedule = NoiseSchedule.scaled_linear()
    t = torch.tensor([0, 300, 600, 999])
    x_t, eps, other = torch.randn(3, 4, 2, dtype=torch.float64)
    alpha, sigma = (value.flatten()[:, None] for value in schedule.alpha_sigma(t, x_t))
    velocity = [alpha * e - sigma * (x_t - sigma * e) / alpha for e in (eps, other)]
    weight = schedule.velocity_weight(t, float("inf"))[:, None]
    torch.testing.assert_close(weight * (eps - other).square(), (velocity[0] - velocity[1]).square())
    assert schedule.velocity_weight(t, 1.0).tolist() == [1.0] * 4
