"""The samplers against diffusers' schedulers, step by step on a stub noise predictor."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

import anytext2  # noqa: F401  # declares torchvision's operators before diffusers looks for them
from distill.diffusion import samplers
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.schedule import NoiseSchedule, ddim_timesteps
from launch.bench.operations import OperationCounter, counted_reads

SCHEDULE = NoiseSchedule.scaled_linear()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth nonlinear function of x and t of the right size, so that errors of either would show."""
    time = (t.to(x.dtype) / 1000).reshape(-1, 1, 1, 1)
    return torch.tanh(0.8 * x + 0.3 * x.roll(1, -1)) * (0.5 + 0.5 * time) - 0.1 * (1 - time)


def start(seed: int = 5) -> torch.Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("n_steps", "eta"), [*((n, 0.0) for n in (*range(1, 17), 20, 50)), *((n, 0.7) for n in range(2, 17))]
)
def test_ddim_equals_diffusers(n_steps: int, eta: float) -> None:
    noises = [start(100 + step) for step in range(n_steps)]
    reference = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    reference.set_timesteps(n_steps)
    assert reference.timesteps.tolist() == samplers.leading_timesteps(n_steps).tolist()
    x = start()
    for step, t in enumerate(reference.timesteps):
        x = reference.step(predict(x, t.expand(2)), t, x, eta=eta, variance_noise=noises[step]).prev_sample
    ours = samplers.sample_ddim(predict, start(), n_steps, SCHEDULE, noises.__getitem__, SamplerOptions(eta=eta))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_steps", range(1, 17))
def test_consistency_equals_diffusers(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noises = [start(200 + step) for step in range(n_steps)]
    reference = LCMScheduler(**BETAS, original_inference_steps=50, clip_sample=False, set_alpha_to_one=False)
    reference.set_timesteps(n_steps)
    assert reference.timesteps.tolist() == samplers.sampling_timesteps(n_steps, ddim_timesteps(50)).tolist()
    drawn = iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(drawn))
    x = start()
    for t in reference.timesteps:
        x, denoised = reference.step(predict(x, t.expand(2)), t, x, return_dict=False)
    ours = samplers.sample_consistency(predict, start(), n_steps, SCHEDULE, noises.__getitem__)
    torch.testing.assert_close(ours, denoised, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_steps", range(1, 17))
def test_trajectory_equals_diffusers_and_phased_is_it_without_noise(
    n_steps: int, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = [start(300 + step) for step in range(n_steps)]
    reference = TCDScheduler(**BETAS, original_inference_steps=50, clip_sample=False, set_alpha_to_one=False)
    reference.set_timesteps(n_steps)
    drawn = iter(noises)
    monkeypatch.setattr("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *_, **__: next(drawn))
    x = start()
    for t in reference.timesteps:
        x = reference.step(predict(x, t.expand(2)), t, x, eta=gamma).prev_sample
    options = SamplerOptions(gamma=gamma)
    ours = samplers.sample_trajectory(predict, start(), n_steps, SCHEDULE, noises.__getitem__, options)
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    if gamma == 0.0:
        torch.testing.assert_close(samplers.sample_phased(predict, start(), n_steps, SCHEDULE), ours)


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_an_impossible_gamma_is_named(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"gamma = {gamma}"):
        samplers.sample_trajectory(predict, start(), 2, SCHEDULE, lambda _: start(), SamplerOptions(gamma=gamma))


def test_grids() -> None:
    assert samplers.leading_timesteps(4).tolist() == [751, 501, 251, 1]
    assert samplers.leading_timesteps(7).tolist() == [853, 711, 569, 427, 285, 143, 1]
    assert samplers.leading_timesteps(999).max() < 1000
    assert samplers.sampling_timesteps(4, ddim_timesteps(50)).tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("n_steps", range(1, 51))
def test_consistency_grid_is_that_of_diffusers_for_every_step_count(n_steps: int) -> None:
    reference = LCMScheduler(**BETAS, original_inference_steps=50)
    reference.set_timesteps(n_steps)
    assert reference.timesteps.tolist() == samplers.sampling_timesteps(n_steps, ddim_timesteps(50)).tolist()


def test_ddim_with_the_exact_noise_recovers_the_picture() -> None:
    """A model that knows x0 ends at x0 seen through the noise of timestep 0, whatever the number of steps."""
    x0 = start(9)

    def oracle(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return SCHEDULE.x0_to_eps(x, x0, t)

    noise = start(10)
    first = torch.full((2,), 751)
    end = samplers.sample_ddim(oracle, SCHEDULE.add_noise(x0, noise, first), 4, SCHEDULE)
    torch.testing.assert_close(
        end, SCHEDULE.add_noise(x0, noise, torch.zeros(2, dtype=torch.long)), rtol=1e-8, atol=1e-8
    )


def test_half_precision_model_is_sampled_in_float32() -> None:
    seen = []

    def half(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return predict(x, t).half()

    result = samplers.sample_ddim(half, start().half(), 4, SCHEDULE)
    assert result.dtype == torch.float32 and set(seen) == {torch.float32}


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_no_step_waits_for_the_host(name: str, eta: float) -> None:
    """On the meta device a value cannot be read, and a tensor of the host cannot be mixed with the latents.

    What comes from the host (times, coefficients, noise) is copied before the first step.
    """
    copies: list[int] = []
    counter = OperationCounter()

    def on_meta(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.is_meta and t.is_meta and t.shape == (2,)
        copies.append(counter.counts["aten._to_copy"])
        return x * t.reshape(-1, 1, 1, 1)

    with counted_reads() as reads, counter:
        options = SamplerOptions(gamma=0.5, eta=eta)
        result = samplers.SAMPLERS[name](on_meta, start().to("meta"), 4, SCHEDULE, lambda step: start(step), options)
    assert result.is_meta and not reads
    assert copies == [copies[0]] * 4 and counter.counts["aten._to_copy"] == copies[0] > 0


@pytest.mark.parametrize("name", sorted(samplers.SAMPLERS))
@pytest.mark.parametrize("n_steps", [0, 1000])
def test_impossible_step_counts_are_named(name: str, n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"{n_steps} is impossible"):
        samplers.SAMPLERS[name](predict, start(), n_steps, SCHEDULE, lambda step: start())


def test_missing_noise_is_named() -> None:
    with pytest.raises(ValueError, match="noise"):
        samplers.sample_consistency(predict, start(), 2, SCHEDULE)
    with pytest.raises(ValueError, match="noise"):
        samplers.sample_ddim(predict, start(), 2, SCHEDULE, options=SamplerOptions(eta=0.5))
