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

from anytext2.core.line_crop import quad_of_mask

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

    polygon: float32 [P, 2], x and y in pixels. color: red, green, blue in 0..255, or None when it is not told.
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

    index: global sample index; image, masked_image: uint8 [3, H, W], of which a batch makes numbers in [-1, 1];
    glyph: uint8 [1, H*g, W*g] in {0, 1}, union of the lines' ink; position: uint8 [L, H, W] in {0, 1}; glyph_line:
    uint8 [L, 80, 512] in {0, 1}; font_hint: uint8 [1, H, W] in {0, 1}; color: float32 [L, 3] in 0..255 or UNSET_COLOR;
    inverse_mask: uint8 [1, H, W], 1 where the loss must not look; texts, languages, polygons (float32 [P, 2], pixels
    of H x W): the n_lines real ones; posterior: float16 [2, z, h, w], mean and standard deviation of the image's scaled
    latent, and masked_latent: float16 [z, h, w] (0 unless editing), where these come from a cache; image and
    masked_image are [3, 0, 0] then; image_context: float16 [K, 77, D], the image caption's context in the K chunks that
    it needs, where it comes from a cache. Rows of position, glyph_line and color from n_lines on are padding (zeros;
    UNSET_COLOR).
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
    def written(self) -> list[TextLine]:
        """The lines that say something, so can be read."""
        return _written(self.texts, self.languages, self.polygons)


@dataclass(frozen=True)
class Batch:
    """`Sample`s with a leading B: tensors stacked, everything else a tuple with one entry a sample.

    image, masked_image: uint8 as they come from a worker (a quarter of the bytes), float32 in [-1, 1] after `floating`.

    quads: `line_quads` of `position`, found while the masks are still on the host, so that no step has to wait for
    the accelerator to hand them back.

    image_context: [B, K, 77, D], zeros behind the chunks that a row has; context_chunks: how many these are (0: its
    context does not come from a cache). None and empty where no row has any.
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
    posterior: torch.Tensor | None = None
    masked_latent: torch.Tensor | None = None
    image_context: torch.Tensor | None = None
    context_chunks: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def written(self) -> list[list[TextLine]]:
        """Of every picture the lines that say something, so can be read."""
        return [_written(*lines) for lines in zip(self.texts, self.languages, self.polygons, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`; dtypes stay (masks travel as uint8)."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def floating(self) -> Batch:
        """The batch with pictures in [-1, 1], where 0 becomes -1 and 255 becomes 1."""
        return dataclass_replace(self, image=_floating(self.image), masked_image=_floating(self.masked_image))

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


def _written(texts: Sequence[str], languages: Sequence[str], polygons: Sequence[np.ndarray]) -> list[TextLine]:
    told = zip(texts, polygons, languages, strict=True)
    return [TextLine(*line, color=None) for line in told if line[0].strip()]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one picture size and one number of padded lines into a batch."""
    assert samples, "a batch has at least one sample"
    columns: dict[str, Any] = {}
    for field in fields(Sample):
        column = [getattr(sample, field.name) for sample in samples]
        columns[field.name] = _padded(column) if field.name == "image_context" else _stacked(column)
    quads = line_quads(columns["position"], columns["n_lines"])
    if columns["image_context"] is None:
        return Batch(**columns, quads=quads)
    chunks = tuple(0 if sample.image_context is None else len(sample.image_context) for sample in samples)
    return Batch(**columns, quads=quads, context_chunks=chunks)


def _stacked(column: list[Any]) -> Any:
    if isinstance(column[0], torch.Tensor):
        return torch.stack(column)
    return None if column[0] is None else tuple(column)


def _padded(column: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Tensors of different lengths with zeros behind them; zeros alone for None. None where all are."""
    given = [rows for rows in column if rows is not None]
    if not given:
        return None
    padded = given[0].new_zeros(len(column), max(map(len, given)), *given[0].shape[1:])
    for target, rows in zip(padded, column, strict=True):
        if rows is not None:
            target[: len(rows)] = rows
    return padded


def _floating(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float().div_(127.5).sub_(1) if pictures.dtype == torch.uint8 else pictures


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
