"""The data classes between the annotation file and the loss: TextLine, Record, Sample, Batch, Conditions.

All are frozen. A changed batch is a new object.

Shape legend: B batch, L lines (padded to max_lines), P polygon corners, H/W pixels, h/w latent cells, z latent
channels, K chunks of a caption, T tokens, D context width, g glyph scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from dataclasses import replace as dataclass_replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from anytext2.core.line_crop import LINE_HEIGHT, LINE_WIDTH, font_crop, quad_from_mask

UNSET_COLOR = 500
"""Value of all three channels of an unknown colour. The convention is AnyText2's; known colours are 0..255."""

GLYPH_LINE_SIZE = (80, 512)
"""Height and width in pixels of a glyph line: one text, drawn alone for the recogniser."""

Control = tuple[torch.Tensor, ...]
"""The WriteNet's control maps: one for each input block of the UNet, then the middle block's (13 at official size)."""

_Self = TypeVar("_Self", "Batch", "Conditions")


@dataclass(frozen=True)
class TextLine:
    """One line of text in a picture.

    polygon: float32 [P, 2], x and y in pixels. color: red, green, blue in 0..255, None if unknown.
    """

    text: str
    polygon: np.ndarray
    language: str
    color: tuple[int, int, int] | None


@dataclass(frozen=True)
class Record:
    """One annotated picture. Polygons are in pixels of the image file; the dataset scales them with the image.

    ignored_polygons: float32 [P, 2] each, regions of text that the loss ignores (for example, annotated as invalid).
    """

    image_path: Path
    name: str
    caption: str
    lines: tuple[TextLine, ...]
    ignored_polygons: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One picture with everything that the model is conditioned on.

    index: global sample index.
    image, masked_image: uint8 [3, H, W]; `Batch.normalized` maps them to [-1, 1].
    glyph: uint8 [1, H*g, W*g] in {0, 1}, the union of the lines' glyphs.
    position: uint8 [L, H, W] in {0, 1}. glyph_line: uint8 [L, 80, 512] in {0, 1}.
    font_hint: uint8 [1, H, W] in {0, 1}. color: float32 [L, 3] in 0..255, or UNSET_COLOR.
    inverse_mask: uint8 [1, H, W], 1 where the loss is ignored.
    n_lines: number of lines; the rows of position and glyph_line after them are zeros, those of color UNSET_COLOR.
    editing: whether the picture outside the lines is given to the model (masked_image).
    texts, languages, polygons (float32 [P, 2], pixels of H x W): n_lines each.

    Only with a feature cache:
    posterior: float16 [2, z, h, w], mean and standard deviation of the image's scaled latent; image and masked_image
    are then [3, 0, 0]. masked_latent: float16 [z, h, w], scaled; zeros unless editing.
    image_context: float16 [K, 77, D], context of the image caption in as many chunks as the caption needs.
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
    posterior: torch.Tensor | None = None
    masked_latent: torch.Tensor | None = None
    image_context: torch.Tensor | None = None

    @property
    def nonblank_lines(self) -> list[TextLine]:
        """The lines whose text is not empty or white space."""
        return _nonblank_lines(self.texts, self.languages, self.polygons)


@dataclass(frozen=True)
class Batch:
    """`Sample`s with a leading B: tensors stacked, everything else a tuple with one entry a sample.

    image, masked_image: uint8 as they come from a worker (a quarter of the bytes), float32 in [-1, 1] after
    `normalized`.

    Computed while the masks are on the host, so that no step waits for a copy from the accelerator:
    quads: `line_quads` of `position`. line_index: int64 [2, N], sample number and line number of the N lines of the
    batch. font_line: float32 [N, 1, 48, 320], `font_lines` of the lines.

    image_context: [B, K, 77, D], padded with zeros; context_chunks: number of chunks of each row, 0 if the row has no
    cached context. None and empty if no row has one.
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
    line_index: torch.Tensor
    font_line: torch.Tensor
    posterior: torch.Tensor | None = None
    masked_latent: torch.Tensor | None = None
    image_context: torch.Tensor | None = None
    context_chunks: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def nonblank_lines(self) -> list[list[TextLine]]:
        """The lines of each sample whose text is not empty or white space."""
        return [_nonblank_lines(*lines) for lines in zip(self.texts, self.languages, self.polygons, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`. Dtypes do not change."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def normalized(self) -> Batch:
        """The batch with uint8 pictures mapped from 0..255 to float32 in [-1, 1]. Float pictures stay as they are."""
        return dataclass_replace(self, image=_normalized(self.image), masked_image=_normalized(self.masked_image))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory. A DataLoader with pin_memory calls this method."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


class Contexts(NamedTuple):
    """Encoded captions: of the image for the UNet, [B, T, D], and of the text for the WriteNet, [B, 77, D]."""

    image: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class Conditions:
    """Inputs of the UNet and the WriteNet, apart from the noisy latent and the timestep.

    image_context: [B, T, D], encoded image captions, for the UNet. text_context: [B, 77, D], encoded text captions,
    for the WriteNet. glyph: [B, 1, H*g, W*g] in {0, 1}. position: [B, 1, H, W], sum over the lines, not clipped.
    masked_latent: [B, z, h, w], scaled.
    """

    image_context: torch.Tensor
    text_context: torch.Tensor
    glyph: torch.Tensor
    position: torch.Tensor
    masked_latent: torch.Tensor

    def with_contexts(self, contexts: Contexts) -> Conditions:
        """The conditions with other captions in all rows. contexts: one row."""
        image, text = (context.expand(len(self.glyph), -1, -1) for context in contexts)
        return dataclass_replace(self, image_context=image, text_context=text)

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        """The conditions with `fn` applied to every tensor."""
        return _map_tensors(self, fn)

    def to(self, *args: Any, **kwargs: Any) -> Conditions:
        """`torch.Tensor.to` for every tensor."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))


def _nonblank_lines(texts: Sequence[str], languages: Sequence[str], polygons: Sequence[np.ndarray]) -> list[TextLine]:
    lines = zip(texts, polygons, languages, strict=True)
    return [TextLine(*line, color=None) for line in lines if line[0].strip()]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of the same picture size and max_lines into a batch."""
    assert samples, "a batch has at least one sample"
    columns: dict[str, Any] = {}
    for field in fields(Sample):
        column = [getattr(sample, field.name) for sample in samples]
        columns[field.name] = _pad_and_stack(column) if field.name == "image_context" else _stack(column)
    quads = line_quads(columns["position"], columns["n_lines"])
    pairs = [(number, line) for number, n in enumerate(columns["n_lines"]) for line in range(n)]
    columns["line_index"] = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    columns["font_line"] = font_lines(columns["font_hint"], quads)
    if columns["image_context"] is None:
        return Batch(**columns, quads=quads)
    chunks = tuple(0 if sample.image_context is None else len(sample.image_context) for sample in samples)
    return Batch(**columns, quads=quads, context_chunks=chunks)


def _stack(column: list[Any]) -> Any:
    if isinstance(column[0], torch.Tensor):
        return torch.stack(column)
    return None if column[0] is None else tuple(column)


def _pad_and_stack(column: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Tensors padded with zeros to the longest one and stacked; a None is all zeros. None if all are None."""
    given = [rows for rows in column if rows is not None]
    if not given:
        return None
    padded = given[0].new_zeros(len(column), max(map(len, given)), *given[0].shape[1:])
    for target, rows in zip(padded, column, strict=True):
        if rows is not None:
            target[: len(rows)] = rows
    return padded


def _normalized(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float().div_(127.5).sub_(1) if pictures.dtype == torch.uint8 else pictures


def line_quads(position: torch.Tensor, n_lines: Sequence[int]) -> tuple[tuple[np.ndarray | None, ...], ...]:
    """For each sample and line, the corners float32 [4, 2] of its region in the masks [B, L, H, W]; None if empty."""
    masks = position.cpu().numpy()
    return tuple(tuple(quad_from_mask(masks[b, line]) for line in range(n)) for b, n in enumerate(n_lines))


def font_lines(hints: torch.Tensor, quads: Sequence[Sequence[np.ndarray | None]]) -> torch.Tensor:
    """`font_crop` of all lines, sample by sample: float32 [N, 1, 48, 320]. hints: uint8 [B, 1, H, W] in {0, 1}."""
    crops = [font_crop(hint.float(), quad) for hint, row in zip(hints, quads, strict=True) for quad in row]
    return torch.stack(crops) if crops else torch.zeros(0, 1, LINE_HEIGHT, LINE_WIDTH)


def _map_tensors(value: _Self, fn: Callable[[torch.Tensor], torch.Tensor]) -> _Self:
    tensors: dict[str, Any] = {
        field.name: fn(getattr(value, field.name))
        for field in fields(value)
        if isinstance(getattr(value, field.name), torch.Tensor)
    }
    return dataclass_replace(value, **tensors)
