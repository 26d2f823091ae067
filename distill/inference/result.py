"""What drawing gives: pictures, what was written where, seconds, calls of the UNet and warnings, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from distill.diffusion.sampling import SamplingSpec


@dataclass(frozen=True)
class PlacedLine:
    """One line of text. polygon: float32 [P, 2], x and y in pixels of the result. font: as it was asked for."""

    text: str
    polygon: np.ndarray
    language: str
    color: tuple[int, int, int] | None
    font: str = ""

    def to_json(self) -> dict[str, Any]:
        polygon = np.round(self.polygon.astype(np.float64), 1).tolist()
        optional = {"color": None if self.color is None else list(self.color), "font": self.font}
        return {"text": self.text, "polygon": polygon, **{name: value for name, value in optional.items() if value}}


@dataclass(frozen=True)
class DrawnRow:
    """The pictures of one way of sampling. seconds, unet_calls: for each picture."""

    spec: SamplingSpec
    images: tuple[Image.Image, ...]
    seconds: float
    unet_calls: int

    def to_json(self) -> dict[str, Any]:
        """How the pictures were sampled."""
        spec = self.spec
        return {
            "role": spec.role,
            "sampler": spec.sampler,
            "steps": spec.steps,
            "guidance": spec.guidance,
            "seconds": round(self.seconds, 4),
            "unet_calls": self.unet_calls,
        }


@dataclass(frozen=True)
class DrawingResult:
    """The result of a prompt.

    caption: what the model was told of the picture, without the words to write. rows: one for each way of sampling, the
    teacher's first where it was asked for beside the student. warnings: one line each.
    """

    caption: str
    lines: tuple[PlacedLine, ...]
    rows: tuple[DrawnRow, ...]
    warnings: tuple[str, ...]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The student's pictures; the teacher's where there is no student."""
        return self.rows[-1].images

    @property
    def teacher_images(self) -> tuple[Image.Image, ...]:
        """The teacher's pictures; none where it was not asked for."""
        return tuple(image for row in self.rows if row.spec.role == "teacher" for image in row.images)

    @property
    def seconds(self) -> float:
        """For each of `images`."""
        return self.rows[-1].seconds

    @property
    def unet_calls(self) -> int:
        """For each of `images`."""
        return self.rows[-1].unet_calls

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "caption": self.caption,
            "lines": [line.to_json() for line in self.lines],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class DrawingResults:
    """The results of a list of prompts, in its order. Iterating gives a `DrawingResult` each."""

    results: tuple[DrawingResult, ...]

    def __iter__(self) -> Iterator[DrawingResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, number: int) -> DrawingResult:
        return self.results[number]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of all prompts, those of a prompt together, as diffusers' pipelines order them."""
        return tuple(image for result in self.results for image in result.images)

    @property
    def teacher_images(self) -> tuple[Image.Image, ...]:
        """As `images`, of the teacher."""
        return tuple(image for result in self.results for image in result.teacher_images)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all prompts with the prompts' numbers."""
        numbered = enumerate(self.results, 1)
        return tuple(f"prompt {number}: {note}" for number, result in numbered for note in result.warnings)
