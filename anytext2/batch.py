"""The values that travel from the annotation file to the loss: TextLine, Record, Sample, Batch, Conditions.

All are frozen: whoever wants another batch makes another one.

Shape legend: B batch, L lines (padded to max_lines), C channels, H/W pixels, h/w latent cells, T tokens, D width,
g the glyph scale, z latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from anytext2.line_crop import quad_of_mask

UNSET_COLOR = 500
"""Each channel of a colour that is not given (AnyText2's convention; real colours are 0..255)."""

GLYPH_LINE_SIZE = (80, 512)
"""Height and width of a glyph line, the recogniser's view of one text."""

Control = tuple[torch.Tensor, ...]
"""The WriteNet's maps, in the order in which the UNet's skips and middle consume them (13 in the official size)."""

_Self = TypeVar("_Self", "Batch", "Conditions")


@dataclass(frozen=True)
class TextLine:
    """One line of text in a picture.

    polygon: float32 [P, 2], x and y in pixels. color: red, green, blue in 0..255, or None when it is not known.
    """

    text: str
    polygon: np.ndarray
    language: str
    color: tuple[int, int, int] | None


@dataclass(frozen=True)
class Record:
    """One annotated picture. Polygons are in pixels of the image file; the dataset scales them with the image.

    ignored_polygons: places with text that is not to be learned (annotated as invalid).
    """

    image_path: Path
    name: str
    caption: str
    lines: tuple[TextLine, ...]
    ignored_polygons: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One picture ready for the model.

    index: global sample index; image, masked_image: float32 [3, H, W] in [-1, 1]; glyph: uint8 [1, H*g, W*g] in
    {0, 1}, union of the lines' ink; position: uint8 [L, H, W] in {0, 1}; glyph_line: uint8 [L, 80, 512] in {0, 1};
    font_hint: uint8 [1, H, W] in {0, 1}; color: float32 [L, 3] in 0..255 or UNSET_COLOR; inverse_mask: uint8
    [1, H, W], 1 where the loss must not look; texts, languages, polygons (float32 [P, 2], pixels of H x W): the
    n_lines real ones. Rows of position, glyph_line and color from n_lines on are padding (zeros; UNSET_COLOR).
    """

    index: int
    name: str
    image: torch.Tensor
    masked_image: torch.Tensor
    glyph: torch.Tensor
    position: torch.Tensor
    glyph_line: torch.Tensor
    font_hint: torch.Tensor
    color: torch.Tensor
    inverse_mask: torch.Tensor
    n_lines: int
    editing: bool
    image_caption: str
    text_caption: str
    texts: tuple[str, ...]
    languages: tuple[str, ...]
    polygons: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Batch:
    """`Sample`s with a leading B: tensors stacked, everything else a tuple with one entry a sample.

    quads: `line_quads` of `position`, found while the masks are still on the host, so that no step has to wait for
    the accelerator to hand them back.
    """

    index: tuple[int, ...]
    name: tuple[str, ...]
    image: torch.Tensor
    masked_image: torch.Tensor
    glyph: torch.Tensor
    position: torch.Tensor
    glyph_line: torch.Tensor
    font_hint: torch.Tensor
    color: torch.Tensor
    inverse_mask: torch.Tensor
    n_lines: tuple[int, ...]
    editing: tuple[bool, ...]
    image_caption: tuple[str, ...]
    text_caption: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    languages: tuple[tuple[str, ...], ...]
    polygons: tuple[tuple[np.ndarray, ...], ...]
    quads: tuple[tuple[np.ndarray | None, ...], ...]

    @property
    def size(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`; dtypes stay (masks travel as uint8)."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (a DataLoader calls this by name)."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True)
class Conditions:
    """What the networks are told: everything except the noisy latent and the time.

    image_context: [B, T, D] for the UNet; text_context: [B, 77, D] for the WriteNet; glyph: [B, 1, H*g, W*g] in
    {0, 1}; position: [B, 1, H, W], sum over the lines, not clipped; masked_latent: [B, z, h, w], scaled.
    """

    image_context: torch.Tensor
    text_context: torch.Tensor
    glyph: torch.Tensor
    position: torch.Tensor
    masked_latent: torch.Tensor

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        """`fn` applied to every tensor."""
        return _map_tensors(self, fn)

    def to(self, *args: Any, **kwargs: Any) -> Conditions:
        """As `torch.Tensor.to`, for every tensor."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one picture size and one number of padded lines into a batch."""
    assert samples, "a batch has at least one sample"
    columns: dict[str, Any] = {}
    for field in fields(Sample):
        column = [getattr(sample, field.name) for sample in samples]
        columns[field.name] = torch.stack(column) if isinstance(column[0], torch.Tensor) else tuple(column)
    return Batch(**columns, quads=line_quads(columns["position"], columns["n_lines"]))


def line_quads(position: torch.Tensor, n_lines: Sequence[int]) -> tuple[tuple[np.ndarray | None, ...], ...]:
    """Corners [4, 2] of every real line's place in the masks [B, L, H, W], None where a line has none."""
    masks = position.cpu().numpy()
    return tuple(tuple(quad_of_mask(masks[b, line]) for line in range(n)) for b, n in enumerate(n_lines))


def _map_tensors(value: _Self, fn: Callable[[torch.Tensor], torch.Tensor]) -> _Self:
    tensors: dict[str, Any] = {
        field.name: fn(getattr(value, field.name))
        for field in fields(value)
        if isinstance(getattr(value, field.name), torch.Tensor)
    }
    return dataclass_replace(value, **tensors)
