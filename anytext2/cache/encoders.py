"""Encodes pictures into latents and captions into contexts with the frozen networks, for a feature cache.

Shape legend: B pictures, H/W pixels, K chunks of 77 tokens, D context width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from anytext2.data.features import StoredLatents
from anytext2.model.text_encoder import CONTEXT_LENGTH, TextEncoder, tokenize_image_captions

EncodeImages = Callable[[np.ndarray, np.ndarray], list[StoredLatents]]
"""(pictures, masked pictures), both uint8 [B, H, W, 3] -> latents of each picture."""

EncodeCaptions = Callable[[Sequence[str]], list[np.ndarray]]
"""Captions -> context of each caption, float16 [K, 77, D] with as many chunks as the caption needs."""


def make_image_encoder(
    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], device: Any
) -> EncodeImages:
    """An `EncodeImages` from a function of pictures.

    encode: pictures float32 [B, 3, H, W] in [-1, 1] -> mean and standard deviation of their scaled latents, such as
    `AnyText2.posterior`. device: where the pictures are moved for it.
    """

    @torch.no_grad()
    def encoded(pictures: np.ndarray, masked: np.ndarray) -> list[StoredLatents]:
        both = torch.from_numpy(np.concatenate([pictures, masked])).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        means, deviations = (x.to("cpu", torch.float16).numpy() for x in encode(both))
        n = len(pictures)
        return [StoredLatents(means[i], deviations[i], means[n + i]) for i in range(n)]

    return encoded


def make_caption_encoder(encoder: TextEncoder) -> EncodeCaptions:
    """An `EncodeCaptions` that uses a model's text encoder."""

    @torch.no_grad()
    def encoded(captions: Sequence[str]) -> list[np.ndarray]:
        chunks = [tokenize_image_captions([caption])[0] for caption in captions]
        contexts = encoder.encode_chunks(torch.cat(chunks)).to("cpu", torch.float16)
        return [rows.numpy() for rows in contexts.split([len(ids) for ids in chunks])]

    return encoded


def context_bytes(caption: str, width: int) -> int:
    """Size in bytes of a caption's stored context of width D = `width`."""
    return 2 * CONTEXT_LENGTH * width * len(tokenize_image_captions([caption])[0])
