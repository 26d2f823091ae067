"""A model of a few additions with the interface of AnyText2, whose teacher and student differ by one number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from anytext2.core.batch import Batch, Conditions, Contexts, Sample

TEACHER_GAIN = 0.3


class StubModel(nn.Module):
    """Latents are 2 x 4 x 4 means of pictures of any size; `gain` stands for the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(TEACHER_GAIN))
        self.dropout = nn.Dropout(0.5)
        self.writes = 0
        self.calls = 0

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(image[:, :2], 4)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        rgb = torch.cat([latent, latent.mean(dim=1, keepdim=True)], dim=1)
        return F.interpolate(rgb, scale_factor=8)

    def blank_latent(self, height: int, width: int) -> torch.Tensor:
        return self.encode(torch.full((1, 3, height, width), -1.0))

    def masked_latents(self, batch: Batch, blank: torch.Tensor | None = None) -> torch.Tensor:
        return self.encode(batch.masked_image)

    def encode_conditions(self, batch: Batch, masked: torch.Tensor) -> Conditions:
        context = batch.image.mean(dim=(1, 2, 3)).reshape(-1, 1, 1)
        position = batch.position.sum(dim=1, keepdim=True).float()
        return Conditions(context, context, batch.glyph.float(), position, masked)

    def negative_contexts(self, negative_prompt: str = "") -> Contexts:
        value = torch.full((1, 1, 1), float(len(negative_prompt)))
        return Contexts(value, value)

    def control_maps(self, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        self.writes += 1
        return (conditions.text_context[..., None] * self.gain,)

    def project_context(self, conditions: Conditions) -> torch.Tensor:
        return conditions.image_context

    def predict_noise(
        self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        self.calls += 1
        mixed = self.gain * x + context[..., None] - control[0] + t.reshape(-1, 1, 1, 1) / 1000
        return self.dropout(torch.tanh(mixed))


class StubRoles:
    """The student's gain is `TEACHER_GAIN + difference`; inside teacher() it is the teacher's."""

    def __init__(self, difference: float = 0.2) -> None:
        self.model = StubModel()
        self.student_gain = TEACHER_GAIN + difference
        self.model.gain.data.fill_(self.student_gain)

    @contextmanager
    def teacher(self) -> Iterator[StubModel]:
        self.model.gain.data.fill_(TEACHER_GAIN)
        try:
            with torch.inference_mode():
                yield self.model
        finally:
            self.model.gain.data.fill_(self.student_gain)

    @contextmanager
    def target(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


def make_sample(index: int, texts: tuple[str, ...] = ("AB",), size: int = 32, max_lines: int = 3) -> Sample:
    """A sample of noise with one box a line, all of it drawn from its index."""
    rng = np.random.default_rng(index)
    image = torch.from_numpy(rng.uniform(-1, 1, (3, size, size)).astype(np.float32))
    position = torch.zeros(max_lines, size, size, dtype=torch.uint8)
    polygons = []
    for line, _ in enumerate(texts):
        top = 2 + 9 * line
        position[line, top : top + 8, 4:28] = 1
        polygons.append(np.array([[4, top], [28, top], [28, top + 8], [4, top + 8]], dtype=np.float32))
    return Sample(
        index=index,
        name=f"picture-{index}",
        image=image,
        masked_image=torch.full_like(image, -1.0),
        glyph=(position.amax(dim=0, keepdim=True) * (image[:1] > 0)).to(torch.uint8),
        position=position,
        glyph_line=torch.zeros(max_lines, 80, 512, dtype=torch.uint8),
        font_hint=torch.zeros(1, size, size, dtype=torch.uint8),
        color=torch.full((max_lines, 3), 500.0),
        inverse_mask=torch.zeros(1, size, size, dtype=torch.uint8),
        n_lines=len(texts),
        editing=False,
        image_caption="a picture",
        text_caption="Text says " + " , ".join(["*"] * len(texts)) + " . ",
        texts=texts,
        languages=("Latin",) * len(texts),
        polygons=tuple(polygons),
    )
