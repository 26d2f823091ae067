"""Turns a record and its image file into a `Sample`. All randomness depends on (seed, epoch, index) only.

The samples follow AnyText2's training data (arXiv:2411.15245): captions, glyphs, masks, font hints, colours, editing.
Polygons are scaled with the picture, and every map has the size of the sample.

Shape legend: L lines (padded to max_lines), H/W pixels, g the glyph scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from anytext2.core.batch import GLYPH_LINE_SIZE, UNSET_COLOR, Record, Sample, TextLine
from anytext2.core.rng import RandomSource, choice, hash_rng, permutation
from anytext2.data.captions import fixed_image_caption, image_caption, text_caption
from anytext2.data.features import FeatureSource, StoredLatents
from anytext2.data.geometry import Size, fit_record
from anytext2.data.image_file import IMAGE_MISSING, ImageError, read_image
from anytext2.data.image_lookup import describe_missing, find_image
from anytext2.data.options import DatasetConfig
from anytext2.data.records import Records
from anytext2.glyphs import render
from anytext2.glyphs.fonts import FontTable
from anytext2.glyphs.rasters import LineRasters, RenderedRasters, glyph_line_font, is_drawable
from anytext2.glyphs.reference_render import require_raqm


class SampleError(Exception):
    """A picture that cannot be used. reason: without details, so that it can be counted."""

    def __init__(self, reason: str, where: str, details: str = "") -> None:
        super().__init__(f"{where}: {reason}" + (f" ({details})" if details else ""))
        self.reason = reason


class AnyWordDataset:
    """Samples of annotated pictures, by index and epoch. It has no state besides its arguments."""

    def __init__(
        self,
        records: Sequence[Record],
        config: DatasetConfig,
        seed: int,
        fonts: FontTable,
        cache: FeatureSource | None = None,
        read_latents: bool = False,
        read_contexts: bool = False,
    ) -> None:
        """
        Args:
            cache: stored rasters to use instead of drawing. Records that it lacks are drawn.
            read_latents: read latents from the cache instead of picture files. A record without stored latents raises
                SampleError.
            read_contexts: give samples the stored contexts of their image captions. Samples without one have None.
        Raises:
            ValueError: config.like_reference is true, but Pillow cannot lay out text as the reference does.
        """
        assert cache is not None or not (read_latents or read_contexts), "latents and contexts come from a cache"
        if config.like_reference:
            require_raqm()
        self.records = records
        self.config = config
        self.seed = seed
        self.fonts = fonts
        self.cache = cache
        self.read_latents = read_latents
        self.read_contexts = read_contexts

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, epoch: int, size: Size | None = None) -> Sample:
        """Sample `index` of `epoch`, with a picture of size (H, W); by default resolution x resolution.

        Raises SampleError if the picture is missing or cannot be decoded, or if its latents are not in the cache.
        """
        record, rngs = self.record(index), _SampleRngs(self.seed, epoch, index)
        size = size or (self.config.resolution, self.config.resolution)
        cache = self.cache.for_size(size) if self.cache is not None else None
        entry = cache.entry(record, self.read_latents) if cache is not None else None
        if entry is not None and entry.latents is not None:
            record = fit_record(record, entry.file_size, size)
            return self._assemble(record, size, entry.rasters, entry.latents, rngs)
        if self.read_latents:
            raise SampleError("no latents in the feature cache", str(record.image_path))
        pixels = load_image(record, self.config.exif)
        record = fit_record(record, pixels.shape[:2], size)
        pixels = resize_image(pixels, size)
        rasters: LineRasters = self.line_rasters(record, pixels) if entry is None else entry.rasters
        return self._assemble(record, size, rasters, pixels, rngs)

    def sample_of(self, record: Record, pixels: np.ndarray, position: np.ndarray | None = None) -> Sample:
        """The sample of a record that is not in the dataset, with the random numbers of index 0 and epoch 0.

        pixels: uint8 [H, W, 3] of the sample's size; the record's polygons, at most max_lines, are in its pixels.
        position: masks of the lines, uint8 [L, H, W]; None: those of the polygons, which are not changed at random.
        """
        size = (pixels.shape[0], pixels.shape[1])
        record, rngs = fit_record(record, size, size), _SampleRngs(self.seed, 0, 0)
        if position is None:
            position = np.stack([render.position_mask(line.polygon, size) for line in record.lines])
        assert len(position) == len(record.lines) == self.config.max_lines, "a mask for each line"
        return self._assemble(record, size, self.line_rasters(record, pixels), pixels, rngs, position)

    def select(self, indices: np.ndarray) -> AnyWordDataset:
        """A dataset of some of the records. Records get new indices and therefore other random numbers."""
        assert isinstance(self.records, Records)
        selected, (read_latents, read_contexts) = self.records.select(indices), (self.read_latents, self.read_contexts)
        return AnyWordDataset(selected, self.config, self.seed, self.fonts, self.cache, read_latents, read_contexts)

    def count_shortened_captions(self) -> int:
        """Number of records whose image caption is shortened at random."""
        captions = (self.records[index].caption for index in range(len(self)))
        return sum(fixed_image_caption(caption, self.config.max_caption_words) is None for caption in captions)

    def record(self, index: int) -> Record:
        """Record `index`. Lines without any character that a font can draw are moved to its ignored polygons."""
        record = self.records[index]
        drawable = [self._is_drawable(line) for line in record.lines]
        if all(drawable):
            return record
        ignored = [line.polygon for line, ok in zip(record.lines, drawable, strict=True) if not ok]
        lines = tuple(line for line, ok in zip(record.lines, drawable, strict=True) if ok)
        return replace(record, lines=lines, ignored_polygons=(*record.ignored_polygons, *ignored))

    def _is_drawable(self, line: TextLine) -> bool:
        return is_drawable(line.text[: self.config.max_chars], line.language, self.fonts)

    def line_rasters(self, record: Record, pixels: np.ndarray) -> RenderedRasters:
        """The rasters of a record's lines. Its polygons and `pixels` (uint8 [H, W, 3]) have the sample's size."""
        lines, config = [self._cut(line) for line in record.lines], self.config
        return RenderedRasters(
            lines, pixels, self.fonts, config.glyph_scale, config.ink_threshold, config.like_reference
        )

    def _cut(self, line: TextLine) -> TextLine:
        return replace(line, text=line.text[: self.config.max_chars])

    def _assemble(
        self,
        record: Record,
        size: Size,
        rasters: LineRasters,
        picture: np.ndarray | StoredLatents,
        rngs: _SampleRngs,
        position: np.ndarray | None = None,
    ) -> Sample:
        """The sample of a record. picture: uint8 [H, W, 3] of `size`, or its latents. position: see `sample_of`."""
        config = self.config
        selected, rest = _select_lines(len(record.lines), config.max_lines, rngs)
        lines = [self._cut(record.lines[n]) for n in selected]
        editing = rngs.rng("editing").random() < config.mask_img_prob
        if not isinstance(picture, np.ndarray) and rest:
            editing = False  # the stored masked latent hides all lines, the sample would hide only the selected ones
        ignored = () if editing else (*record.ignored_polygons, *(record.lines[n].polygon for n in rest))
        position = self._position_masks(lines, size, rngs) if position is None else position
        caption = image_caption(record.caption, config.max_caption_words, rngs.rng("caption"))
        fonts = self._choose_fonts(rasters, selected, rngs)
        return Sample(
            index=rngs.index,
            name=record.name,
            **_picture_fields(picture, position, editing),
            glyph=torch.from_numpy(self._glyph_page(rasters, selected, fonts, size))[None],
            position=torch.from_numpy(position),
            glyph_line=torch.from_numpy(self._glyph_lines(rasters, selected, fonts)),
            font_hint=torch.from_numpy(self._font_hint(rasters, selected, lines, size, rngs))[None],
            color=torch.from_numpy(self._colors(lines, rngs)),
            inverse_mask=torch.from_numpy(render.fill_polygons(ignored, size))[None],
            n_lines=len(lines),
            editing=bool(editing),
            image_caption=caption,
            text_caption=text_caption(len(lines), rngs.rng("phrase"), config.like_reference),
            texts=tuple(line.text for line in lines),
            languages=tuple(line.language for line in lines),
            polygons=tuple(line.polygon for line in lines),
            image_context=self._stored_context(caption, size),
        )

    def _stored_context(self, caption: str, size: Size) -> torch.Tensor | None:
        """The stored context float16 [K, 77, D] of an image caption; None without read_contexts or a stored one."""
        cache = self.cache.for_size(size) if self.cache is not None and self.read_contexts else None
        context = cache.context(caption) if cache is not None else None
        return None if context is None else torch.from_numpy(context.copy())

    def _choose_fonts(self, rasters: LineRasters, selected: Sequence[int], rngs: _SampleRngs) -> list[int]:
        """The number of each line's font."""
        if not self.config.rand_font:
            return [0] * len(selected)
        return [choice(rngs.rng(f"font {number}"), rasters.n_fonts(line)) for number, line in enumerate(selected)]

    def _glyph_page(
        self, rasters: LineRasters, selected: Sequence[int], fonts: Sequence[int], size: Size
    ) -> np.ndarray:
        """The union of the lines' glyphs: uint8 [H*g, W*g]."""
        page = np.zeros((size[0] * self.config.glyph_scale, size[1] * self.config.glyph_scale), np.uint8)
        for line, font in zip(selected, fonts, strict=True):
            rasters.glyph_page(line, font).paste_onto(page)
        return page

    def _glyph_lines(self, rasters: LineRasters, selected: Sequence[int], fonts: Sequence[int]) -> np.ndarray:
        """uint8 [L, 80, 512]."""
        maps = np.zeros((self.config.max_lines, *GLYPH_LINE_SIZE), np.uint8)
        for number, (line, font) in enumerate(zip(selected, fonts, strict=True)):
            rasters.glyph_line(line, font).paste_onto(maps[number])
        return maps

    def _position_masks(self, lines: Sequence[TextLine], size: Size, rngs: _SampleRngs) -> np.ndarray:
        """uint8 [L, H, W]."""
        maps = np.zeros((self.config.max_lines, *size), np.uint8)
        for number, line in enumerate(lines):
            rng = rngs.rng(f"position {number}")
            if rng.random() < self.config.mask_pos_prob:
                maps[number] = render.position_mask(line.polygon, size, rng)
        return maps

    def _font_hint(
        self, rasters: LineRasters, selected: Sequence[int], lines: Sequence[TextLine], size: Size, rngs: _SampleRngs
    ) -> np.ndarray:
        """uint8 [H, W]."""
        config, page = self.config, np.zeros(size, np.uint8)
        for number, line in enumerate(lines):
            rng = rngs.rng(f"font hint {number}")
            if line.text.strip() and rng.random() < config.font_hint_prob:
                transform = render.random_hint_transform(rng, size) if config.font_hint_randaug else None
                strokes = rasters.strokes(selected[number], transform)
                render.font_hint_bitmap(strokes, line.polygon, config.font_hint_area, rng).paste_onto(page)
        return page

    def _colors(self, lines: Sequence[TextLine], rngs: _SampleRngs) -> np.ndarray:
        """float32 [L, 3]."""
        colors = np.full((self.config.max_lines, 3), UNSET_COLOR, np.float32)
        rng = rngs.rng("color")
        is_given = [rng.random() < self.config.color_prob for _ in lines]
        for number, line in enumerate(lines):
            if line.color is not None and is_given[number]:
                colors[number] = line.color
        return colors


def load_image(record: Record, exif: str = "ignore") -> np.ndarray:
    """`read_image` of a record's picture: uint8 [H, W, 3]. Raises SampleError instead of ImageError.

    A missing file is searched under other spellings of its name.
    """
    try:
        return read_image(record.image_path, exif)
    except ImageError as error:
        is_missing = error.reason == IMAGE_MISSING
        found = find_image(record) if is_missing else None
        if found is None or found.path == record.image_path:
            details = describe_missing(record) if is_missing else error.details
            raise SampleError(error.reason, str(record.image_path), details) from error
    return load_image(replace(record, image_path=found.path), exif)


def resize_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """The picture uint8 [h, w, 3] resized to size (H, W): uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    # INTER_AREA averages, so that shrinking does not alias.
    method = cv2.INTER_AREA if height * width > size[0] * size[1] else cv2.INTER_LINEAR
    return cv2.resize(pixels, (size[1], size[0]), interpolation=method)


def missing_glyphs(records: Iterable[Record], fonts: FontTable) -> Counter[str]:
    """Characters that the font of their line's glyph line lacks, with the number of their occurrences."""
    missing: Counter[str] = Counter()
    for record in records:
        for line in record.lines:
            absent = glyph_line_font(line.text, line.language, fonts).missing_characters(line.text)
            if absent:
                counts = Counter(line.text)
                missing.update({char: counts[char] for char in absent})
    return missing


@dataclass(frozen=True)
class _SampleRngs:
    """The random number generators of one sample: one for each purpose, so that options do not affect each other."""

    seed: int
    epoch: int
    index: int

    def rng(self, purpose: str) -> RandomSource:
        return hash_rng(self.seed, self.epoch, self.index, f"dataset {purpose}")


def _select_lines(n_lines: int, max_lines: int, rngs: _SampleRngs) -> tuple[list[int], list[int]]:
    """Indices of the lines to use and of the others. Of more than `max_lines`, a random selection in random order."""
    if n_lines <= max_lines:
        return list(range(n_lines)), []
    shuffled = permutation(rngs.rng("lines"), n_lines)
    return shuffled[:max_lines], shuffled[max_lines:]


def _picture_fields(
    picture: np.ndarray | StoredLatents, position: np.ndarray, editing: bool
) -> dict[str, torch.Tensor]:
    """The picture and the masked picture as pixels or latents. The masked picture is zeros unless `editing`."""
    if isinstance(picture, np.ndarray):
        unmasked: np.ndarray = np.zeros((1, 1, 1), np.uint8)
        if editing:
            unmasked = cv2.bitwise_and(picture, picture, mask=1 - np.bitwise_or.reduce(position))
        image, masked = (torch.from_numpy(p).permute(2, 0, 1) for p in (picture, unmasked))
        return {"image": image, "masked_image": masked.expand(image.shape)}
    no_pixels = torch.zeros(3, 0, 0, dtype=torch.uint8)
    posterior = torch.from_numpy(np.stack([picture.mean, picture.std]))
    masked = torch.from_numpy(picture.masked.copy()) if editing else torch.zeros_like(posterior[0])
    return {"image": no_pixels, "masked_image": no_pixels, "posterior": posterior, "masked_latent": masked}
