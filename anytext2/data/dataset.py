"""Record + image file -> Sample. What is random in a sample depends on (seed, epoch, index) only.

Follows AnyText2's training data (arXiv:2411.15245): captions, glyphs, masks, font hints, colours, editing mode.
Records are never changed, polygons are scaled with the picture, and every map has the picture's own size.

Shape legend: L lines (padded to max_lines), H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from anytext2.core.batch import GLYPH_LINE_SIZE, UNSET_COLOR, Record, Sample, TextLine
from anytext2.core.rng import RandomSource, choice, hash_rng, permutation
from anytext2.data.captions import fixed_image_caption, image_caption, text_caption
from anytext2.data.features import FeatureSource, StoredLatents
from anytext2.data.geometry import Size, fit_record
from anytext2.data.image_file import ImageError, read_image
from anytext2.data.records import Records
from anytext2.glyphs import render
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.rasters import LineRasters, RenderedRasters, glyph_line_font, is_drawable


class SampleError(Exception):
    """This picture cannot be used. `reason` is the same for all pictures with this fault, so that it can be counted."""

    def __init__(self, reason: str, where: str, details: str = "") -> None:
        super().__init__(f"{where}: {reason}" + (f" ({details})" if details else ""))
        self.reason = reason


@dataclass(frozen=True)
class DatasetConfig:
    """What a sample looks like. Probabilities are per sample, or per line where they concern lines.

    resolution: side of the picture in pixels; max_lines, max_chars: more lines are left to the inverse mask, longer
    texts are cut; glyph_scale: glyph page pixels per picture pixel; ink_threshold: least coverage of a glyph page
    pixel that counts as ink; mask_img_prob: editing mode; mask_pos_prob: the position is told; font_hint_prob,
    font_hint_area (share of the line kept), font_hint_randaug: the hint at the font; color_prob: the colour is told;
    rand_font: the glyph page is drawn with any font of the language; wm_threshold, cap_watermark: what
    `load_records` does with the watermark score; max_caption_words: longer captions keep their first sentence and
    random others.
    """

    resolution: int = 512
    max_lines: int = 5
    max_chars: int = 20
    glyph_scale: int = 1
    ink_threshold: float = 0.1
    mask_img_prob: float = 0.5
    mask_pos_prob: float = 1.0
    font_hint_prob: float = 0.8
    font_hint_area: tuple[float, float] = (0.7, 1.0)
    font_hint_randaug: bool = True
    color_prob: float = 1.0
    rand_font: bool = True
    wm_threshold: float = 1.0
    cap_watermark: bool = False
    max_caption_words: int = 128

    def __post_init__(self) -> None:
        if self.resolution < 64 or self.resolution % 8:
            raise ValueError(f"resolution: {self.resolution} must be a multiple of 8, at least 64")
        for name in ("max_lines", "max_chars", "glyph_scale", "max_caption_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("mask_img_prob", "mask_pos_prob", "font_hint_prob", "color_prob", "ink_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be in [0, 1]")
        least, most = self.font_hint_area
        if not 0 <= least <= most <= 1:
            raise ValueError(f"font_hint_area: {self.font_hint_area} must be two rising numbers in [0, 1]")


class AnyWordDataset:
    """Annotated pictures as samples; holds no state besides its arguments."""

    def __init__(
        self,
        records: Sequence[Record],
        config: DatasetConfig,
        seed: int,
        fonts: FontTable,
        cache: FeatureSource | None = None,
        latents: bool = False,
        captions: bool = False,
    ) -> None:
        """cache: a store to read drawn parts from; what it lacks is drawn. latents: read these from it too, and no
        picture; a record of which the store has none raises SampleError. captions: give samples the contexts of their
        image captions, as far as the store has them."""
        assert cache is not None or not (latents or captions), "latents and contexts come from a cache"
        self.records = records
        self.config = config
        self.seed = seed
        self.fonts = fonts
        self.cache = cache
        self.latents = latents
        self.captions = captions

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, epoch: int, size: Size | None = None) -> Sample:
        """The sample `index` as it is in `epoch`, with a picture of size (H, W), by default resolution x resolution.

        Raises SampleError when the picture is missing or cannot be decoded; that is the caller's to count.
        """
        record, chance = self.record(index), _Chance(self.seed, epoch, index)
        size = size or (self.config.resolution, self.config.resolution)
        cache = self.cache.for_size(size) if self.cache is not None else None
        entry = cache.entry(record, self.latents) if cache is not None else None
        if entry is not None and entry.latents is not None:
            return self._assemble(fit_record(record, entry.size, size), size, entry.parts, entry.latents, chance)
        if self.latents:
            raise SampleError("no latents in the feature cache", str(record.image_path))
        pixels = load_image(record.image_path)
        record = fit_record(record, pixels.shape[:2], size)
        pixels = resize_image(pixels, size)
        parts: LineRasters = self.drawn(record, pixels) if entry is None else entry.parts
        return self._assemble(record, size, parts, pixels, chance)

    def select(self, indices: np.ndarray) -> AnyWordDataset:
        """A dataset of some of the records; their numbers, and with them what is random, are others."""
        assert isinstance(self.records, Records)
        selected = self.records.select(indices)
        return AnyWordDataset(selected, self.config, self.seed, self.fonts, self.cache, self.latents, self.captions)

    def count_shortened_captions(self) -> int:
        """How many records have an image caption that is shortened at random."""
        captions = (self.records[index].caption for index in range(len(self)))
        return sum(fixed_image_caption(caption, self.config.max_caption_words) is None for caption in captions)

    def record(self, index: int) -> Record:
        """The record as samples are made of it: a line of which no font has a character is text to be ignored."""
        record = self.records[index]
        drawable = [self._is_drawable(line) for line in record.lines]
        if all(drawable):
            return record
        ignored = [line.polygon for line, able in zip(record.lines, drawable, strict=True) if not able]
        lines = tuple(line for line, able in zip(record.lines, drawable, strict=True) if able)
        return replace(record, lines=lines, ignored_polygons=(*record.ignored_polygons, *ignored))

    def _is_drawable(self, line: TextLine) -> bool:
        return is_drawable(line.text[: self.config.max_chars], line.language, self.fonts)

    def drawn(self, record: Record, pixels: np.ndarray) -> RenderedRasters:
        """What is drawn for the lines of a record and a picture that have the sample's size."""
        lines = [self._cut(line) for line in record.lines]
        return RenderedRasters(lines, pixels, self.fonts, self.config.glyph_scale, self.config.ink_threshold)

    def _cut(self, line: TextLine) -> TextLine:
        return replace(line, text=line.text[: self.config.max_chars])

    def _assemble(
        self, record: Record, size: Size, parts: LineRasters, picture: np.ndarray | StoredLatents, chance: _Chance
    ) -> Sample:
        """picture: the sample's, uint8 [H, W, 3] for size (H, W), or the latents that stand in for it."""
        config = self.config
        chosen, left_out = _chosen_lines(len(record.lines), config.max_lines, chance)
        lines = [self._cut(record.lines[n]) for n in chosen]
        editing = chance.rng("editing").random() < config.mask_img_prob
        if not isinstance(picture, np.ndarray) and left_out:
            editing = False  # which lines are hidden changes with the epoch, the stored latent cannot
        ignored = () if editing else (*record.ignored_polygons, *(record.lines[n].polygon for n in left_out))
        position = self._positions(lines, size, chance)
        caption = image_caption(record.caption, config.max_caption_words, chance.rng("caption"))
        return Sample(
            index=chance.index,
            name=record.name,
            **_picture_fields(picture, position, editing),
            glyph=torch.from_numpy(self._glyph(parts, chosen, size, chance))[None],
            position=torch.from_numpy(position),
            glyph_line=torch.from_numpy(self._glyph_lines(parts, chosen)),
            font_hint=torch.from_numpy(self._font_hint(parts, chosen, lines, size, chance))[None],
            color=torch.from_numpy(self._colors(lines, chance)),
            inverse_mask=torch.from_numpy(render.fill_polygons(ignored, size))[None],
            n_lines=len(lines),
            editing=bool(editing),
            image_caption=caption,
            text_caption=text_caption(len(lines), chance.rng("phrase")),
            texts=tuple(line.text for line in lines),
            languages=tuple(line.language for line in lines),
            polygons=tuple(line.polygon for line in lines),
            image_context=self._context(caption, size),
        )

    def _context(self, caption: str, size: Size) -> torch.Tensor | None:
        """The stored context of an image caption, where it is to be used and there is one."""
        cache = self.cache.for_size(size) if self.cache is not None and self.captions else None
        context = cache.context(caption) if cache is not None else None
        return None if context is None else torch.from_numpy(context.copy())

    def _glyph(self, parts: LineRasters, chosen: Sequence[int], size: Size, chance: _Chance) -> np.ndarray:
        """Union of the lines' ink: uint8 [H*g, W*g]."""
        page = np.zeros((size[0] * self.config.glyph_scale, size[1] * self.config.glyph_scale), np.uint8)
        for number, line in enumerate(chosen):
            font = choice(chance.rng(f"font {number}"), parts.n_fonts(line)) if self.config.rand_font else 0
            parts.page(line, font).onto(page)
        return page

    def _glyph_lines(self, parts: LineRasters, chosen: Sequence[int]) -> np.ndarray:
        maps = np.zeros((self.config.max_lines, *GLYPH_LINE_SIZE), np.uint8)
        for number, line in enumerate(chosen):
            parts.glyph_line(line).onto(maps[number])
        return maps

    def _positions(self, lines: Sequence[TextLine], size: Size, chance: _Chance) -> np.ndarray:
        maps = np.zeros((self.config.max_lines, *size), np.uint8)
        for number, line in enumerate(lines):
            rng = chance.rng(f"position {number}")
            if rng.random() < self.config.mask_pos_prob:
                maps[number] = render.position_mask(line.polygon, size, rng)
        return maps

    def _font_hint(
        self, parts: LineRasters, chosen: Sequence[int], lines: Sequence[TextLine], size: Size, chance: _Chance
    ) -> np.ndarray:
        config, page = self.config, np.zeros(size, np.uint8)
        for number, line in enumerate(lines):
            rng = chance.rng(f"font hint {number}")
            if line.text.strip() and rng.random() < config.font_hint_prob:
                change = render.random_hint_transform(rng, size) if config.font_hint_randaug else None
                strokes = parts.strokes(chosen[number], change)
                render.font_hint_bitmap(strokes, line.polygon, config.font_hint_area, rng).onto(page)
        return page

    def _colors(self, lines: Sequence[TextLine], chance: _Chance) -> np.ndarray:
        colors = np.full((self.config.max_lines, 3), UNSET_COLOR, np.float32)
        rng = chance.rng("color")
        told = [rng.random() < self.config.color_prob for _ in lines]
        for number, line in enumerate(lines):
            if line.color is not None and told[number]:
                colors[number] = line.color
        return colors


def load_image(path: Path) -> np.ndarray:
    """`read_image`, uint8 [H, W, 3]. Raises SampleError when the picture cannot be used."""
    try:
        return read_image(path)
    except ImageError as error:
        raise SampleError(error.reason, str(path), error.details) from error


def resize_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """The picture uint8 [h, w, 3] as uint8 [H, W, 3] for size (H, W)."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    # Averaging over areas is the only one of the two that does not alias when shrinking.
    method = cv2.INTER_AREA if height * width > size[0] * size[1] else cv2.INTER_LINEAR
    return cv2.resize(pixels, (size[1], size[0]), interpolation=method)


def missing_glyphs(records: Iterable[Record], fonts: FontTable) -> Counter[str]:
    """How often each character occurs in the records that no font of the table can draw for its line."""
    missing: Counter[str] = Counter()
    for record in records:
        for line in record.lines:
            absent = glyph_line_font(line.text, line.language, fonts).missing_characters(line.text)
            if absent:
                counts = Counter(line.text)
                missing.update({char: counts[char] for char in absent})
    return missing


@dataclass(frozen=True)
class _Chance:
    """The random generators of one sample: one for each purpose, so that no option shifts another one's numbers."""

    seed: int
    epoch: int
    index: int

    def rng(self, purpose: str) -> RandomSource:
        return hash_rng(self.seed, self.epoch, self.index, f"dataset {purpose}")


def _chosen_lines(n_lines: int, most: int, chance: _Chance) -> tuple[list[int], list[int]]:
    """The numbers of at most `most` lines, chosen and ordered at random where there are more, and the other numbers."""
    if n_lines <= most:
        return list(range(n_lines)), []
    shuffled = permutation(chance.rng("lines"), n_lines)
    return shuffled[:most], shuffled[most:]


def _picture_fields(
    picture: np.ndarray | StoredLatents, position: np.ndarray, editing: bool
) -> dict[str, torch.Tensor]:
    """The picture and what editing mode shows of it: as pixels, or as latents."""
    if isinstance(picture, np.ndarray):
        shown: np.ndarray = np.zeros((1, 1, 1), np.uint8)
        if editing:
            shown = cv2.bitwise_and(picture, picture, mask=1 - np.bitwise_or.reduce(position))
        image, masked = (torch.from_numpy(p).permute(2, 0, 1) for p in (picture, shown))
        return {"image": image, "masked_image": masked.expand(image.shape)}
    nothing = torch.zeros(3, 0, 0, dtype=torch.uint8)
    posterior = torch.from_numpy(np.stack([picture.mean, picture.std]))
    masked = torch.from_numpy(picture.masked.copy()) if editing else torch.zeros_like(posterior[0])
    return {"image": nothing, "masked_image": nothing, "posterior": posterior, "masked_latent": masked}
