"""The autoencoder against a plain second implementation, and its contract."""

from __future__ import annotations

import pytest
import torch

from anytext2.model.layers import initialise
from anytext2.model.vae import VAE, VAEConfig
from tests.helpers.models import plain_blocks
from tests.helpers.models.parity import assert_parity, normal, official_shapes, randomised, shapes_of


def small(**changes: object) -> VAEConfig:
    settings = {"ch": 4, "ch_mult": [1, 2, 3], "num_res_blocks": 1, "z_channels": 3, "norm_groups": 2}
    return VAEConfig(**{**settings, "scale_factor": 0.7, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{}, {"mid_attention": False, "num_res_blocks": 2}, {"ch_mult": [2]}])
def test_values_and_gradients_are_those_of_the_plain_code(changes: dict) -> None:
    cfg = small(**changes)
    vae = randomised(VAE(cfg))
    assert isinstance(vae, VAE)
    step = cfg.downsampling
    image = normal(2, 3, 3 * step, 2 * step, seed=1).requires_grad_()
    latent = normal(2, 3, 3, 2, seed=2).requires_grad_()

    def run() -> list[torch.Tensor]:
        return [*vae.encode_moments(image), vae.decode(latent)]

    def reference(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        mean, logvar = plain_blocks.vae_moments(state, image, cfg.norm_groups).chunk(2, 1)
        return [mean, logvar, plain_blocks.vae_decode(state, latent / cfg.scale_factor, cfg.norm_groups)]

    assert_parity(vae, run, reference, [image, latent], 1e-9)


def test_encode_is_the_scaled_mode_or_a_sample_of_the_posterior() -> None:
    vae = randomised(VAE(small())).requires_grad_(False)
    assert isinstance(vae, VAE)
    image, noise = normal(1, 3, 8, 8), normal(1, 3, 2, 2, seed=3)
    mean, logvar = vae.encode_moments(image)
    torch.testing.assert_close(vae.encode(image), 0.7 * mean)
    torch.testing.assert_close(vae.encode(image, noise), 0.7 * (mean + logvar.exp().sqrt() * noise))


def test_the_log_variance_is_clamped() -> None:
    vae = VAE(small()).requires_grad_(False)
    vae.quant_conv.bias.copy_(torch.tensor([0.0, 0, 0, -1e4, 1e4, 0]))
    _, logvar = vae.encode_moments(normal(1, 3, 4, 4, dtype=torch.float32))
    assert logvar[0, 0].item() == -30.0
    assert logvar[0, 1].item() == 20.0


def test_the_default_size_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert shapes_of(vae) == official_shapes("first_stage_model.")


def test_initialisation_is_reproducible_and_every_layer_learns() -> None:
    first, second = VAE(small()), VAE(small())
    for vae in (first, second):
        initialise(vae, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    image = normal(4, 3, 16, 16, seed=4, dtype=torch.float32)
    mean, logvar = first.encode_moments(image)
    assert torch.equal(logvar, torch.full_like(logvar, -6.0))  # the decoder hears the mean from the first step on
    (first.decode(first.encode(image, torch.randn_like(mean))) - image).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in first.parameters())


def test_a_residual_branch_starts_small() -> None:
    vae = VAE(small(ch=32))
    initialise(vae, torch.Generator().manual_seed(0))
    block = vae.encoder.mid.block_1
    ratio = block.conv2.weight.std() / block.conv1.weight.std()
    assert ratio.item() == pytest.approx(0.1, rel=0.05)
    assert block.conv1.weight.std().item() == pytest.approx((96 * 9) ** -0.5, rel=0.05)


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="image is 10x8 pixels: both sides must be multiples of 4"):
        VAE(small()).encode(torch.zeros(1, 3, 8, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_groups": 3}, "norm_groups = 3 must divide every width, but not 4"),
        ({"ch_mult": []}, "ch_mult"),
        ({"ch_mult": [1, 0]}, "ch_mult"),
        ({"z_channels": 0}, "z_channels"),
        ({"scale_factor": 0.0}, "scale_factor = 0.0"),
    ],
)
def test_a_wrong_configuration_names_the_field(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
