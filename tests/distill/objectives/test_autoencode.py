"""The VAE objective on a real, small VAE."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from anytext2.core.batch import collate
from anytext2.core.rng import Draws
from anytext2.model.layers import initialise
from anytext2.model.vae import VAE, VAEConfig
from distill.losses.step_input import StepInput
from distill.objectives.autoencode import Autoencode, AutoencodeConfig, crop_text
from tests.helpers.models.stub_model import SCHEDULE, sample


def roles() -> Any:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(ch=8, ch_mult=[1, 2], num_res_blocks=1, z_channels=4, norm_groups=4, scale_factor=0.5)).double()
    initialise(vae)
    return SimpleNamespace(model=SimpleNamespace(first_stage_model=vae))


def step_input(count: int = 3, seed: int = 2) -> StepInput:
    batch = collate([sample(index) for index in range(count)])
    return StepInput(batch, Draws(seed, (0,) * count, tuple(range(count))))


def test_value_and_gradient_equal_the_formula() -> None:
    part, item = roles(), step_input()
    vae = part.model.first_stage_model
    config = AutoencodeConfig(l1_weight=1.5, sobel_weight=0.5, kl_weight=0.01)
    ours = Autoencode(config, SCHEDULE).loss(part, item)

    image = item.batch.image.double()
    mean, logvar = vae.encode_moments(image)
    noise = item.draws.normal("autoencode/posterior", mean.shape[1:]).double()
    difference = vae.decode(0.5 * (mean + (0.5 * logvar).exp() * noise)) - image
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8
    padded = F.pad(difference.reshape(-1, 1, 32, 32), (1, 1, 1, 1), mode="replicate")
    edges = [F.conv2d(padded, k.reshape(1, 1, 3, 3)).abs().reshape(3, -1).mean(1) for k in (kernel, kernel.T)]
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    plain = 1.5 * difference.abs().mean((1, 2, 3)) + 0.5 * (edges[0] + edges[1]) / 2 + 0.01 * kl.mean((1, 2, 3))
    torch.testing.assert_close(ours.per_sample.double(), plain, rtol=1e-5, atol=1e-7)
    parameters = list(vae.parameters())
    ours_g, plain_g = torch.autograd.grad(ours.loss, parameters), torch.autograd.grad(plain.mean(), parameters)
    for mine, reference in zip(ours_g, plain_g, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-6)


def test_crops_show_text_and_are_cut_out_of_the_right_picture() -> None:
    item = step_input(6)
    rows = list(range(6))
    crops = crop_text(item.batch, rows, 16, item.draws)
    assert crops.shape == (6, 3, 16, 16)
    for row in rows:
        windows = item.batch.image[row].unfold(1, 16, 1).unfold(2, 16, 1)
        hits = (windows - crops[row][:, None, None]).abs().amax((0, 3, 4)) == 0
        assert hits.sum() == 1, "the crop is a window of its own picture"
        top, left = hits.nonzero()[0].tolist()
        assert item.batch.position[row, :, top : top + 16, left : left + 16].any(), "with text inside"


def test_a_picture_without_text_is_cropped_too() -> None:
    batch = collate([sample(index, n_lines=0) for index in range(4)])
    crops = crop_text(batch, [1, 3], 8, Draws(0, (0, 0), (1, 3)))
    assert crops.shape == (2, 3, 8, 8)


def test_cropped_and_whole_samples_of_one_batch_keep_their_own_loss() -> None:
    part, item = roles(), step_input(6)
    objective = Autoencode(AutoencodeConfig(crop=16, crop_prob=0.5), SCHEDULE)
    cropped, whole = objective._groups(item.draws)
    assert cropped and whole and sorted(cropped + whole) == list(range(6))
    together = objective.loss(part, item).per_sample
    for row in range(6):
        alone = StepInput(collate([sample(row)]), Draws(2, (0,), (row,)))
        torch.testing.assert_close(objective.loss(part, alone).per_sample[0], together[row])


def test_only_the_vae_is_trainable() -> None:
    model = torch.nn.ModuleDict(
        {"first_stage_model": torch.nn.Linear(2, 2), "first_stage_model_b": torch.nn.Linear(2, 2)}
    )
    names = [name for name, _ in Autoencode(AutoencodeConfig(), SCHEDULE).trainable(model)]  # type: ignore[arg-type]
    assert names == ["first_stage_model.weight", "first_stage_model.bias"]


def test_impossible_options_are_named() -> None:
    with pytest.raises(ValueError, match="crop_prob = 2"):
        AutoencodeConfig(crop_prob=2)
    with pytest.raises(ValueError, match="crop = 7: must be a multiple of 2"):
        Autoencode(AutoencodeConfig(crop=7, crop_prob=1.0), SCHEDULE).loss(roles(), step_input())
    with pytest.raises(ValueError, match="crop = 64: larger than the pictures"):
        Autoencode(AutoencodeConfig(crop=64, crop_prob=1.0), SCHEDULE).loss(roles(), step_input())
