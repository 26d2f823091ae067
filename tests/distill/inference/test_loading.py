from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anytext2.core.batch import collate
from distill.checkpoint.formats import MODEL_WEIGHTS
from distill.checkpoint.store import save_checkpoint
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.diffusion.samplers import SamplerOptions
from distill.diffusion.sampling import SamplingSpec, prepare_sampling, sample_batch
from distill.diffusion.schedule import NoiseSchedule
from distill.inference.loading import SamplingModel, load_sampling_model
from tests.helpers.models.stub_roles import make_sample

SCRATCH = ["model.weights=scratch"]


@pytest.fixture(scope="module")
def plain() -> SamplingModel:
    return load_sampling_model(None, DEFAULT_RECIPE, SCRATCH, "fp32", "cpu")


def test_the_recipe_alone_gives_a_frozen_teacher(plain):
    assert not plain.has_student and plain.checkpoint is None and plain.run_dir is None
    model = plain.roles.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert plain.run_info() == {}


def test_weights_of_a_trained_teacher_are_laid_over(plain, tmp_path):
    key = "model.diffusion_model.input_blocks.0.0.bias"
    before = plain.roles.model.state_dict()[key]
    save_checkpoint(tmp_path, 5, lambda folder: save_file({key: before + 1.0}, folder / MODEL_WEIGHTS), keep=1)
    opened = load_sampling_model(tmp_path, DEFAULT_RECIPE, SCRATCH, "fp32", "cpu")
    assert torch.equal(opened.roles.model.state_dict()[key], before + 1.0)
    assert not opened.has_student and opened.checkpoint == tmp_path / "checkpoint-5"


def test_the_sampler_follows_the_objective(plain, tmp_path):
    assert plain.sampler_options == SamplerOptions() and plain.student_sampler == "phased"
    recipe = tmp_path / "recipe.yaml"
    options = "{name: consistency, solver_steps: 25, teacher_interval: 40, timestep_scaling: 5}"
    recipe.write_text(f"model: {{config: tiny}}\nobjective: {options}\n")
    other = load_sampling_model(None, recipe, SCRATCH, "fp32", "cpu")
    assert other.sampler_options == SamplerOptions(solver_steps=25, sigma_data=0.5, timestep_scaling=5.0)


@pytest.mark.parametrize(
    ("objective", "sampler"), [("consistency", "consistency"), ("phased", "phased"), ("denoise", "consistency")]
)
def test_a_student_is_sampled_as_its_objective_taught_it(objective, sampler):
    recipe = load_recipe(DEFAULT_RECIPE)
    assert replace(recipe, objective={"name": objective}).student.sampler == sampler


@pytest.mark.parametrize(("low", "high", "scale"), [(5.0, 15.0, 7.5), (2.0, 4.0, 4.0), (8.0, 10.0, 10.0)])
def test_the_teacher_is_guided_as_it_was_distilled(plain, low, high, scale):
    objective = {**plain.recipe.objective, "w_min": low, "w_max": high}
    assert replace(plain, recipe=replace(plain.recipe, objective=objective)).guidance == scale


@pytest.mark.heavy
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same_picture(plain, precision):
    half = load_sampling_model(None, DEFAULT_RECIPE, SCRATCH, precision, "cpu")
    assert half.roles.model.dtype in (torch.bfloat16, torch.float16)
    pictures = []
    for opened in (plain, half):
        scene = prepare_sampling(opened.roles, collate([make_sample(3, size=64)]), seed=1, negative_prompt="blurred")
        (painting,) = sample_batch(
            opened.roles, scene, [SamplingSpec("teacher", "ddim", 2, 3.0)], NoiseSchedule.scaled_linear()
        )
        assert painting.latent.dtype == torch.float32
        pictures.append(painting.image)
    assert (pictures[0] - pictures[1]).abs().mean() < 0.02 and pictures[0].std() > 0.0


def test_a_folder_of_something_else_is_an_error(tmp_path: Path):
    save_checkpoint(tmp_path, 1, lambda folder: (folder / "notes.txt").write_text("x") and None, keep=1)
    with pytest.raises(ValueError, match="holds neither an adapter .* nor model.safetensors"):
        load_sampling_model(tmp_path, DEFAULT_RECIPE, SCRATCH)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision='int8'.*bf16"):
        load_sampling_model(None, DEFAULT_RECIPE, SCRATCH, "int8")
