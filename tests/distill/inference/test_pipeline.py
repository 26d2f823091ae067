"""The pipeline on the tiny model with an adapter of random weights, at 64 pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from anytext2.core.batch import collate
from anytext2.model.weights import official_state_dict
from anytext2.synthetic.dataset import SyntheticConfig, write_dataset
from distill.config.recipes import DEFAULT_RECIPE, load_recipe
from distill.diffusion.sampling import SamplingPreparation, SamplingSpec, sample_batch
from distill.inference.loading import load_dataset, read_samples
from distill.inference.model import make_model, make_schedule
from distill.inference.pipeline import AnyText2Pipeline, drawing_limits
from distill.inference.preparation import DrawingLimits
from tests.helpers.stored_run import write_run

BOX = [(4, 16, 60, 48)]
PROMPT = 'a red wall that reads "GO"'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = load_recipe(DEFAULT_RECIPE, ["data.options.resolution=64", f"run_root={folder}", "name=run"])
    torch.manual_seed(0)
    write_run(folder / "run", recipe, make_model(recipe.model, recipe.seed))
    return folder / "run"


@pytest.fixture(scope="module")
def pipe(run: Path) -> AnyText2Pipeline:
    return AnyText2Pipeline.from_run(run, limits=DrawingLimits(letter=8, side=64))


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


@pytest.mark.heavy
def test_the_result_is_data(pipe):
    result = pipe(PROMPT, boxes=BOX, steps=1, teacher=True, teacher_steps=2, num_images_per_prompt=2, colors=["blue"])
    assert [image.size for image in result.images] == [(64, 64)] * 2 and len(result.teacher_images) == 2
    assert not np.array_equal(pixels(result.images[0]), pixels(result.images[1]))
    assert [(row.spec.role, row.spec.steps, row.unet_calls) for row in result.rows] == [
        ("teacher", 2, 4),
        ("student", 1, 1),
    ]
    assert result.unet_calls == 1 and result.seconds > 0 and result.caption == "a red wall. " and result.warnings == ()
    (line,) = result.lines
    assert line.to_json() == {
        "text": "GO",
        "polygon": [[4, 16], [60, 16], [60, 48], [4, 48]],
        "color": [0, 0, 255],
    }


@pytest.mark.heavy
def test_a_sample_of_a_dataset_is_sampled_as_without_the_pipeline(pipe, tmp_path):
    write_dataset(tmp_path, 2, SyntheticConfig(size=96), seed=5)
    dataset, _ = load_dataset([tmp_path / "data.json"], pipe.model.recipe)
    batch, model = collate(read_samples(dataset, range(2))[0]), pipe.model
    specs = (SamplingSpec("teacher", "ddim", 2, 2.0), SamplingSpec("student", "phased", 2))
    inputs = SamplingPreparation(model.roles, 3, "")(batch.normalized())
    schedule = make_schedule(model.roles.model.cfg)
    expected = list(sample_batch(model.roles, inputs, specs, schedule, model.sampler_options))
    found = list(pipe.sample_batch(batch, specs, pipe.preparation(specs, 3)))
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, expected, strict=True))


@pytest.mark.heavy
def test_the_seed_the_strength_and_the_attention_count(pipe):
    def draw(**settings: object) -> np.ndarray:
        return pixels(pipe(PROMPT, boxes=BOX, steps=1, **settings).images[0])

    plain = draw(seed=1)
    assert np.array_equal(plain, draw(seed=1, strength=1.0))
    for settings in ({"seed": 2}, {"seed": 1, "strength": 0.5}, {"seed": 1, "attnx_scale": 0.0}):
        assert np.abs(plain - draw(**settings)).max() > 3, settings
    generator = torch.Generator().manual_seed(4)
    first, second = draw(generator=generator), draw(generator=generator)
    assert np.abs(first - second).max() > 3
    assert np.array_equal(first, draw(generator=torch.Generator().manual_seed(4)))


@pytest.mark.heavy
def test_a_list_of_prompts_gives_the_pictures_of_each_alone_in_diffusers_order(pipe):
    prompts, seeds, settings = ['"GO"', 'a red wall "UP"'], [4, 5], {"boxes": BOX, "steps": 1}
    results = pipe(prompts, seed=seeds, num_images_per_prompt=2, **settings)
    assert len(results) == 2 and [result.lines[0].text for result in results] == ["GO", "UP"]
    alone = [
        pipe(prompt, seed=seed, num_images_per_prompt=2, **settings)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    expected = [image for result in alone for image in result.images]
    assert len(results.images) == 4 and results[1].images[0] is results.images[2] and results.teacher_images == ()
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(results.images, expected, strict=True))

    def generators(*numbers: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(number) for number in numbers]

    by_picture = pipe(prompts, generator=generators(1, 2, 3, 1), num_images_per_prompt=2, **settings)
    assert [result.lines[0].text for result in by_picture] == ["GO", "GO", "UP", "UP"]
    by_prompt = pipe(prompts, generator=generators(1, 3), **settings)
    assert [np.array_equal(pixels(a), pixels(b)) for a in by_prompt.images for b in by_picture.images] == [
        *(True, False, False, False),
        *(False, False, True, False),
    ]
    one, two = pipe(['"GO"', '"GO"'], generator=generators(7)[0], **settings).images
    assert not np.array_equal(pixels(one), pixels(two))  # one generator goes on
    assert np.array_equal(pixels(one), pixels(pipe('"GO"', generator=generators(7)[0], **settings).images[0]))


def test_a_list_with_a_mistake_draws_nothing(pipe, monkeypatch):
    monkeypatch.setattr(AnyText2Pipeline, "draw", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ValueError, match="^prompt 2: places: 1 for 2 texts"):
        pipe(['"GO"', '"GO" "UP"'], boxes=BOX)


@pytest.mark.heavy
def test_each_step_is_reported_and_can_stop_the_drawing(pipe):
    steps = []

    def callback(pipeline, step, timestep, values):
        assert pipeline is pipe and values["latents"].shape == (1, 16, 8, 8)
        steps.append((values["spec"].role, step, timestep))
        if len(steps) == 4:
            raise KeyboardInterrupt

    pipe(PROMPT, boxes=BOX, steps=2, callback_on_step_end=callback)
    assert steps == [("student", 0, 999), ("student", 1, 499)]
    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, boxes=BOX, steps=4, callback_on_step_end=callback)
    assert len(steps) == 4


@pytest.mark.heavy
def test_steps_that_the_student_is_not_for_are_refused_unless_asked_for(pipe):
    with pytest.raises(ValueError, match="num_inference_steps=3: .*; 1, 2, 4, 8 ... do"):
        pipe(PROMPT, boxes=BOX, steps=3)
    assert pipe(PROMPT, boxes=BOX, steps=3, any_steps=True).unet_calls == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "step: no such setting; there are prompt, negative_prompt"),
        ({"strength": 3.0}, "strength=3.0 must be 0 to 2"),
        ({"attnx_scale": float("nan")}, "attnx_scale=nan must be 0 to 2"),
        ({"guidance_scale": 0.5}, "guidance=0.5 must be at least 1"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator: give one of them"),
        ({"generator": 5}, "generator: expected a torch.Generator, got 5"),
        ({"generator": [torch.Generator()]}, r"seed: a list goes with a list of prompts, as in \[prompt\]"),
    ],
)
def test_mistakes_are_said_in_one_line(pipe, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        pipe(PROMPT, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.heavy
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_edited_photograph_is_unchanged_outside_of_the_soft_edge(pipe, tmp_path, orientation):
    rng = np.random.default_rng(0)
    stored = cv2.GaussianBlur(rng.integers(0, 256, (90, 150, 3), np.uint8), (0, 0), 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photograph.png", exif=exif)
    seen = np.array(Image.fromarray(stored).transpose(Image.Transpose.ROTATE_270)) if orientation == 6 else stored
    mask = np.zeros(seen.shape[:2], np.uint8)
    mask[20:50, 10:60] = mask[60:80, 20:70] = 255
    result = pipe('"ON" "OFF"', image=tmp_path / "photograph.png", mask=mask, steps=1)
    found, original = pixels(result.images[0]), seen.astype(int)
    assert found.shape == original.shape and any("the model sees" in warning for warning in result.warnings)
    far = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=6) == 0
    assert far.mean() > 0.4 and np.abs(found - original)[far].max() == 0
    assert np.abs(found - original)[mask > 0].mean() > 5


@pytest.mark.heavy
def test_the_teacher_alone_and_other_base_weights(run, tmp_path):
    recipe = load_recipe(run / "recipe.yaml")
    base = make_model(replace(recipe.model, weights="scratch"), 0)
    torch.save(official_state_dict(base), tmp_path / "base.pt")
    changes = [f"model.weights={tmp_path / 'base.pt'}"]
    teacher = AnyText2Pipeline.from_run(None, config=run / "recipe.yaml", overrides=changes).to("cpu", torch.bfloat16)
    result = teacher(PROMPT, boxes=BOX, guidance_scale=1.0, steps=1)
    assert result.rows[0].spec.role == "teacher" and result.unet_calls == 1 and result.images == result.teacher_images
    assert teacher.model.roles.model.dtype == torch.bfloat16 and teacher.model.precision == "bf16"
    with pytest.raises(ValueError, match=r"dtype torch.int8: one of torch.float32"):
        teacher.to("cpu", torch.int8)


def test_limits_of_the_models():
    tiny = load_recipe(DEFAULT_RECIPE)
    assert drawing_limits(tiny) == DrawingLimits(40, 128, "the tiny model")
    official = load_recipe(DEFAULT_RECIPE, ["model.config=sd15", "model.weights=filled", "data.options.resolution=512"])
    assert drawing_limits(official) == DrawingLimits(letter=20, side=1024)
