"""A micro-batch of the sizes that a recipe's samples have, without data: shapes alone matter to a plan."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from anytext2.core.batch import GLYPH_LINE_SIZE, UNSET_COLOR, Sample, collate
from anytext2.data.geometry import Size
from anytext2.model.anytext2 import AnyText2Config
from distill.config.schema import Recipe
from distill.data.batch_sampler import SampleKey
from distill.data.loader import LoadedBatch

TEXT = "TEXT"


def sample_of_zeros(recipe: Recipe, config: AnyText2Config, size: Size, index: int) -> Sample:
    """A sample with as many lines as the recipe allows, in editing mode in the share of samples that it has."""
    options = recipe.data.options
    (height, width), lines, scale = size, options.max_lines, options.glyph_scale
    step, channels = config.vae.downsampling, config.vae.z_channels
    latent = (channels, height // step, width // step)
    cached = recipe.data.latents != "encode"
    picture = (3, 0, 0) if cached else (3, height, width)
    share = options.mask_img_prob
    editing = int((index + 1) * share) > int(index * share)
    masks = torch.zeros(lines, height, width, dtype=torch.uint8)
    masks[:, : height // 2, : width // 2] = 1  # where each line's font hint is cut out
    return Sample(
        index=index,
        name=f"zeros/{index}",
        image=torch.zeros(picture, dtype=torch.uint8),
        masked_image=torch.zeros(picture, dtype=torch.uint8),
        glyph=torch.zeros(1, height * scale, width * scale, dtype=torch.uint8),
        position=masks,
        glyph_line=torch.zeros(lines, *GLYPH_LINE_SIZE, dtype=torch.uint8),
        font_hint=torch.zeros(1, height, width, dtype=torch.uint8),
        color=torch.full((lines, 3), float(UNSET_COLOR)),
        inverse_mask=torch.zeros(1, height, width, dtype=torch.uint8),
        n_lines=lines,
        editing=editing,
        image_caption="a picture",
        text_caption="Text says " + " , ".join("*" * lines) + " . ",
        texts=(TEXT,) * lines,
        languages=("Latin",) * lines,
        polygons=(np.zeros((4, 2), dtype=np.float32),) * lines,
        posterior=torch.zeros(2, *latent, dtype=torch.float16) if cached else None,
        masked_latent=torch.zeros(latent, dtype=torch.float16) if cached else None,
    )


def batch_of_zeros(recipe: Recipe, config: AnyText2Config, size: Size, count: int) -> LoadedBatch:
    """A micro-batch of such samples, as the loader gives it."""
    keys = tuple(SampleKey(0, index) for index in range(count))
    samples = [sample_of_zeros(recipe, config, size, index) for index in range(count)]
    return LoadedBatch(collate(samples), keys, Counter())
