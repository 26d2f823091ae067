"""The DDIM step against the exact flow of a Gaussian, and against the algebra it must keep."""

import torch

from distill.diffusion.schedule import NoiseSchedule
from distill.diffusion.solver import ddim_step

SCHEDULE = NoiseSchedule.scaled_linear()


def test_step_with_the_true_noise_lands_on_the_same_path() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = torch.tensor([999, 500, 19]), torch.tensor([979, 480, 0])
    x_t = SCHEDULE.add_noise(x0, noise, t)
    stepped = ddim_step(SCHEDULE.eps_to_x0(x_t, noise, t), noise, *SCHEDULE.alpha_sigma(s, x_t))
    torch.testing.assert_close(stepped, SCHEDULE.add_noise(x0, noise, s), rtol=1e-12, atol=1e-12)


def test_many_steps_approach_the_exact_flow_of_a_gaussian() -> None:
    """Data ~ N(0, v): eps* = sigma x / (alpha^2 v + sigma^2), and the flow scales x by the ratio of the deviations."""
    variance = 0.25
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 1, 1, 5)
    start = x.clone()

    def moments(t: int) -> tuple[torch.Tensor, torch.Tensor]:
        return SCHEDULE.alpha_sigma(torch.tensor([t]), x)

    def deviation(t: int) -> torch.Tensor:
        alpha, sigma = moments(t)
        return (alpha.square() * variance + sigma.square()).sqrt()

    errors = []
    for stride in (90, 10):  # both end at t = 9
        x = start
        for t in range(999, 9, -stride):
            _, sigma = moments(t)
            eps = sigma * x / deviation(t).square()
            x = ddim_step(SCHEDULE.eps_to_x0(x, eps, torch.tensor([t])), eps, *moments(t - stride))
        errors.append((x - start * deviation(9) / deviation(999)).abs().max().item())
    assert errors[1] < errors[0] / 5
    assert errors[1] < 0.02
