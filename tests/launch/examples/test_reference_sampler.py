"""The sampler for the reference program takes the same path as the sampler that the student was trained for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.diffusion.samplers import SAMPLERS, SamplerOptions, leading_timesteps, sampling_timesteps
from distill.diffusion.schedule import NoiseSchedule, solver_grid
from launch.examples import reference_sampler
from launch.examples.reference_sampler import METADATA, StudentSampler, install, main, read_note
from tests.helpers.models.parity import normal

SCHEDULE = NoiseSchedule.scaled_linear()
SHAPE = (3, 4, 4)
OPTIONS = {"solver_steps": 50, "grid": "uniform", "sigma_data": 0.5, "timestep_scaling": 10.0, "gamma": 0.3, "eta": 0.0}


def predict(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(3 * x + t.view(-1, 1, 1, 1) / 300)


class Reference:
    """What the reference's ControlLDM has of it."""

    alphas_cumprod = SCHEDULE.alphas_cumprod.float()
    device = torch.device("cpu")
    is_uncond = True

    def parameters(self) -> Iterator[Tensor]:
        return iter(())

    def apply_model(self, x: Tensor, t: Tensor, conditions: Any) -> Tensor:
        assert conditions == "conditions" and not self.is_uncond
        return predict(x, t)


class DDIMSampler:
    def __init__(self, model: Reference) -> None:
        self.model = model


def note(sampler: str) -> dict[str, Any]:
    grid = solver_grid("uniform", 50, SCHEDULE)
    times = {n: leading_timesteps(n) if sampler == "ddim" else sampling_timesteps(n, grid) for n in (1, 4)}
    listed = {str(n): [int(t) for t in found] for n, found in times.items()}
    return {"sampler": sampler, "steps": 4, "times": listed, "sampler_options": OPTIONS}


@pytest.mark.parametrize("sampler", reference_sampler.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_same_latent_as_our_sampler(sampler: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = normal(2, *SHAPE, seed=9).float()
    drawn = [normal(2, *SHAPE, seed=step).float() for step in range(4)]
    queue = iter(drawn)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(queue))
    found, seen = StudentSampler(Reference(), note(sampler)).sample(
        steps, 2, SHAPE, "conditions", x_T=start, verbose=False
    )
    wanted = SAMPLERS[sampler](predict, start, steps, SCHEDULE, lambda step: drawn[step], SamplerOptions(**OPTIONS))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(seen["x_inter"]) == steps + 1


def test_installed_in_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "merged.safetensors"
    save_file({"x": torch.zeros(1)}, file, {METADATA: json.dumps(note("phased"))})
    program = SimpleNamespace(model=Reference(), ddim_sampler=DDIMSampler(Reference()))
    install(program, file)
    start = normal(1, *SHAPE, seed=9).float()
    usual = {"x_T": start, "unconditional_guidance_scale": 7.5, "unconditional_conditioning": "none", "eta": 0.0}
    few, _ = program.ddim_sampler.sample(4, 1, SHAPE, "conditions", x_T=start)
    many, _ = program.ddim_sampler.sample(20, 1, SHAPE, "conditions", **usual)
    assert torch.equal(few, many)
    printed = capsys.readouterr().out
    assert (
        "20 steps: the student has times for 1, 4; it is sampled in 4" in printed
        and "guidance 7.5 is not used" in printed
    )
    with pytest.raises(ValueError, match="holds no DDIMSampler"):
        install(SimpleNamespace(), file)


def test_it_says_what_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "merged.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, METADATA: json.dumps(note("phased"))}, file)
    assert read_note(file)["steps"] == 4
    assert main([str(file)]) == 0
    assert "steps 4, CFG-Scale 1" in capsys.readouterr().out
    torch.save({"state_dict": {}}, file)
    assert main([str(file)]) == 2 and "is no file of launch/export.py" in capsys.readouterr().out
    assert main([str(tmp_path / "none.ckpt")]) == 2
