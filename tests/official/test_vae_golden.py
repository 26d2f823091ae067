"""The official-size autoencoder against the reference's recorded posterior and pictures."""

from __future__ import annotations

import torch

from anytext2.model.anytext2 import AnyText2
from tests.helpers.models.official_golden import assert_golden, golden_tensor, read_golden


@torch.inference_mode()
def test_posterior(official_model: AnyText2) -> None:
    golden = read_golden("a_vae")
    mean, logvar = official_model.first_stage_model.encode_moments(golden_tensor(golden, "image"))
    assert_golden(mean, golden, "mean")
    assert_golden(logvar, golden, "logvar")
    assert_golden((0.5 * logvar).exp(), golden, "std")


@torch.inference_mode()
def test_decoding(official_model: AnyText2) -> None:
    golden = read_golden("a_vae")
    vae = official_model.first_stage_model
    latent = golden_tensor(golden, "latent")
    assert_golden(vae.decode(latent), golden, "decoded_via_decode_first_stage")
    assert_golden(vae.decode(latent * vae.cfg.scale_factor), golden, "decoded")


@torch.inference_mode()
def test_channels_last_computes_the_same(official_model: AnyText2) -> None:
    golden = read_golden("a_vae")
    image = golden_tensor(golden, "image").contiguous(memory_format=torch.channels_last)
    assert_golden(official_model.first_stage_model.encode_moments(image)[0], golden, "mean")
