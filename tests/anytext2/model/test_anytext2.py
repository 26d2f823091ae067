from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anytext2.core.batch import Conditions
from anytext2.model.anytext2 import AnyText2, build_model, schedule_tables
from anytext2.model.config import AnyText2Config, ScheduleConfig, config_path, load_model_config
from anytext2.model.recognizer import CONFIG_DIR, load_charset
from tests.helpers.models.mini_model import mini_batch, mini_config, mini_model
from tests.helpers.models.parity import gradients, normal

PARAMETER_BUDGET = 19_800_000  # of the tiny model: its half-precision file must stay below 40 MB


@pytest.fixture(scope="module")
def model() -> AnyText2:
    return mini_model()


@pytest.fixture(scope="module")
def conditions(model: AnyText2) -> Conditions:
    with torch.no_grad():
        batch = mini_batch()
        return model.encode_conditions(batch, model.masked_latents(batch))


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds(file: Path) -> None:
    config = load_model_config(file)
    assert sum(p.numel() for p in build_model(config, "meta").parameters()) > 0
    if config.recognizer.charset != "ppocr":
        assert len(load_charset(config.recognizer.charset, config.recognizer.n_classes)) == config.recognizer.n_classes


def test_names_of_shipped_configs() -> None:
    assert load_model_config("sd15") == AnyText2Config()
    assert config_path("tiny") == CONFIG_DIR / "anytext2_tiny.yaml"


def test_tiny_fits_its_file() -> None:
    model = build_model(load_model_config("tiny"), "meta")
    assert sum(p.numel() for p in model.parameters()) <= PARAMETER_BUDGET


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet: {model_chanels: 64}", "model_chanels"),
        ("unets: {}", "unets"),
        ("unet: {model_channels: many}", "many"),
        ("vae: {z_channels: 8}", r"unet\.in_channels = 4 must equal vae\.z_channels = 8"),
        ("text_encoder: {width: 96}", r"unet\.context_dim = 768 must equal text_encoder\.width = 96"),
        ("vae: {ch_mult: [1, 2]}", "give 4"),
        ("schedule: {linear_start: 0.1}", r"schedule\.linear_start = 0\.1"),
        ("unet: [", "expected"),
    ],
)
def test_impossible_config_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_model_config(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_no_such_config() -> None:
    with pytest.raises(ValueError, match="'huge': no such file; names that ship: sd15, tiny"):
        load_model_config("huge")


# --- schedule --------------------------------------------------------------------------------------------------------


def test_schedule_against_its_recurrence() -> None:
    tables = {name: table.double().numpy() for name, table in schedule_tables(ScheduleConfig()).items()}
    assert len(tables) == 13
    bar = 1.0
    for t in range(1000):
        beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999) ** 2
        before, bar = bar, bar * (1 - beta)
        expected = {
            "betas": beta,
            "alphas_cumprod": bar,
            "alphas_cumprod_prev": before,
            "sqrt_one_minus_alphas_cumprod": (1 - bar) ** 0.5,
            "sqrt_recipm1_alphas_cumprod": ((1 - bar) / bar) ** 0.5,
            "posterior_variance": beta * (1 - before) / (1 - bar),
        }
        for name, value in expected.items():
            assert abs(tables[name][t] - value) <= 1e-6 * max(value, 1e-6), (name, t)
    # the posterior mean's two weights are those of an exact Gaussian posterior: x0 and x_t = sqrt(bar) x0 agree
    x_t = tables["sqrt_alphas_cumprod"]
    mean = tables["posterior_mean_coef1"] + tables["posterior_mean_coef2"] * x_t
    np.testing.assert_allclose(mean, np.sqrt(tables["alphas_cumprod_prev"]), rtol=1e-5)
    assert not tables["logvar"].any()


def test_schedule_keeps_its_precision_and_follows_the_device() -> None:
    model = build_model(mini_config())
    tables = schedule_tables(model.cfg.schedule)
    model.half()
    assert model.dtype == torch.float16
    emptied = build_model(mini_config(), "meta").to_empty(device="cpu")
    for name, table in tables.items():
        assert torch.equal(model.get_buffer(name), table) and torch.equal(emptied.get_buffer(name), table)


# --- pictures --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_masked_latents_are_those_of_encoding_every_row(model: AnyText2) -> None:
    for editing in ((False, True, False), (False, False, False), (True, True, True)):
        batch = mini_batch(editing=editing)
        torch.testing.assert_close(model.masked_latents(batch), model.encode(batch.masked_image))


@torch.no_grad()
def test_encode_and_decode_shapes(model: AnyText2) -> None:
    image = torch.zeros(2, 3, 64, 32)
    latent = model.encode(image)
    assert tuple(latent.shape[1:]) == model.latent_shape(64, 32) == (3, 8, 4)
    assert model.decode(latent).shape == image.shape
    noise = normal(*latent.shape)
    mean, logvar = model.first_stage_model.encode_moments(image.double())
    torch.testing.assert_close(model.encode(image, noise), 0.5 * (mean + (logvar / 2).exp() * noise))


# --- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_condition(model: AnyText2, conditions: Conditions) -> None:
    batch = mini_batch()
    lines = model.embedding_manager(batch, model.text_predictor)
    encoder = model.cond_stage_model
    torch.testing.assert_close(conditions.image_context, encoder.encode_image_captions(batch.image_caption))
    text = encoder.encode_text_captions(batch.text_caption, lines, batch.n_lines, batch.name)
    torch.testing.assert_close(conditions.text_context, text)
    assert torch.equal(conditions.glyph, batch.glyph.double())
    torch.testing.assert_close(conditions.masked_latent, model.encode(batch.masked_image))


def test_positions_are_summed_and_not_clipped(model: AnyText2) -> None:
    batch = mini_batch((2,), (False,))
    doubled = replace(batch, position=torch.ones_like(batch.position))
    conditions = model.encode_conditions(doubled, model.masked_latents(doubled))
    assert conditions.position.shape == (1, 1, 32, 32) and (conditions.position == 3).all()


@pytest.mark.heavy
def test_captions_in_place_of_the_batchs_own(model: AnyText2, conditions: Conditions) -> None:
    batch = mini_batch()
    captions = (batch.image_caption[0], "", batch.image_caption[2])
    texts = (batch.text_caption[0], "", batch.text_caption[2])
    dropped = model.encode_conditions(batch, conditions.masked_latent, captions, texts)
    without = conditions.with_contexts(model.negative_contexts())
    for name in ("image_context", "text_context"):
        ours, kept, none = (getattr(c, name) for c in (dropped, conditions, without))
        torch.testing.assert_close(ours[[0, 2]], kept[[0, 2]])
        torch.testing.assert_close(ours[1], none[1])


def test_unconditional_shares_the_hints(model: AnyText2, conditions: Conditions) -> None:
    without = conditions.with_contexts(model.negative_contexts("blurry"))
    for field in fields(Conditions):
        same = getattr(without, field.name) is getattr(conditions, field.name)
        assert same == (field.name in ("glyph", "position", "masked_latent")), field.name
    other = conditions.with_contexts(model.negative_contexts("sharp"))
    assert without.image_context.shape == (3, 77, 16)
    assert not torch.allclose(without.image_context, other.image_context)
    torch.testing.assert_close(without.text_context, other.text_context)


@pytest.mark.heavy
def test_wrong_placeholders_name_the_sample(model: AnyText2, conditions: Conditions) -> None:
    batch = mini_batch()
    captions = (*batch.text_caption[:2], "Text says *, *. ")
    with pytest.raises(ValueError, match="^picture-2: "):
        model.encode_conditions(batch, conditions.masked_latent, text_captions=captions)


# --- denoising -------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@torch.no_grad()
def test_calls_leave_no_trace(model: AnyText2, conditions: Conditions) -> None:
    """Interleaving other calls changes no result: nothing is kept on the model."""
    x, t = normal(3, 3, 4, 4), torch.tensor([3, 500, 999])

    def predict(c: Conditions) -> Tensor:
        return model.predict_noise(x, t, c.image_context, model.control_maps(c))

    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = predict(conditions)
    without = predict(conditions.with_contexts(model.negative_contexts("blurry")))
    assert torch.equal(predict(conditions), first)
    assert not torch.allclose(without, first)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_control_and_extra_attention_matter(model: AnyText2, conditions: Conditions) -> None:
    x, t, context = normal(3, 3, 4, 4), torch.tensor([3, 500, 999]), conditions.image_context
    control = model.control_maps(conditions)
    full = model.predict_noise(x, t, context, control)
    for other in (
        model.predict_noise(x, t, context, None),
        model.predict_noise(x, t, context, control, attnx_scale=0.0),
        model.predict_noise(x, t.flip(0), context, control),
    ):
        assert full.shape == other.shape == x.shape
        assert ((full - other).norm() / full.norm()) > 1e-3


@pytest.mark.heavy
def test_gradients_reach_every_trained_part(model: AnyText2) -> None:
    batch = mini_batch()
    conditions = model.encode_conditions(batch, model.masked_latents(batch).detach())
    eps = model.predict_noise(
        normal(3, 3, 4, 4), torch.tensor([3, 500, 999]), conditions.image_context, model.control_maps(conditions)
    )
    trained = {
        name: p
        for name, p in model.named_parameters()
        if not name.startswith(("first_stage_model.", "text_predictor.", "embedding_manager.font_predictor.head."))
    }
    # the WriteNet's input latent is zero: the weights of its first convolution see nothing
    trained.pop("control_model.input_blocks.0.0.weight")
    for name, gradient in zip(trained, gradients([eps], list(trained.values())), strict=True):
        assert gradient.isfinite().all() and gradient.any(), name


def test_recognisers_stay_in_eval_mode() -> None:
    model = build_model(mini_config())
    assert not model.training
    model.train()
    assert model.model.diffusion_model.training
    for recognizer in (model.text_predictor, model.embedding_manager.font_predictor):
        assert not any(module.training for module in recognizer.modules())


def test_building_is_a_function_of_the_seed() -> None:
    def built() -> dict[str, Tensor]:
        torch.manual_seed(7)
        return build_model(mini_config()).state_dict()

    first, second = built(), built()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_keeps_the_schedule_and_runs() -> None:
    model = build_model(mini_config(), dtype=torch.bfloat16)
    batch = mini_batch()
    with torch.no_grad():
        conditions = model.encode_conditions(batch, model.masked_latents(batch))
        eps = model.predict_noise(
            torch.zeros(3, 3, 4, 4), torch.tensor([1, 2, 3]), conditions.image_context, model.control_maps(conditions)
        )
    assert conditions.text_context.dtype == torch.bfloat16 and eps.dtype == torch.float32
    assert model.betas.dtype == torch.float32
